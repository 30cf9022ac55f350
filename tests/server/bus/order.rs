//! In which order do messages arrive, and which rows does their receiver see?

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use super::{installed_with, numbers, poll, wait};
use crate::support::{Ask, PATIENCE, heard};

#[test]
fn pause_resume_pause_arrives_as_three() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{signal,sonar,insert}')").unwrap();
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    for action in ["pause", "resume", "pause"] {
        for channel in ["signal", "sonar"] {
            client
                .batch_execute(&format!("SELECT oban_notify('{channel}', '{{\"action\": \"{action}\"}}')"))
                .unwrap();
        }
    }
    let expected = ["pause", "resume", "pause"].map(|a| format!("{{\"action\":\"{a}\"}}"));
    let heard = heard(&mut listener);
    for channel in ["public.oban_signal", "public.oban_sonar"] {
        let payloads: Vec<&str> =
            heard.iter().filter(|n| n.channel() == channel).map(|n| n.payload()).collect();
        assert_eq!(payloads, expected, "{channel}");
    }
    let actions = |channel: &str, client: &mut Client| -> Vec<Value> {
        let answer = poll(client, &format!("'{{{channel}}}', {after}"));
        answer.payloads.into_iter().map(|mut p| p["action"].take()).collect()
    };
    assert_eq!(actions("signal", &mut client), ["pause", "resume", "pause"]);
    assert_eq!(actions("sonar", &mut client), ["pause", "resume", "pause"]);
}

/// A receiver of a message sees the rows of the message's transaction.
#[test]
fn rows_are_visible_when_their_message_arrives() {
    const ROWS: i64 = 10_000;
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE seen (n bigint PRIMARY KEY)").unwrap();
    let mut after: i64 = client.one("SELECT oban_position()");
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let (mut waiter, mut looker) = (cluster.client(), cluster.client());
    let (mut second, mut third) = (cluster.client(), cluster.client());
    let listener = std::thread::spawn(move || {
        let missing = looker.prepare("SELECT 1 FROM seen WHERE n = $1").unwrap();
        let (mut misses, mut got) = (0, 0);
        let mut notifications = listener.notifications();
        let mut iter = notifications.timeout_iter(PATIENCE);
        while got < ROWS {
            let n: Value = serde_json::from_str(iter.next().unwrap().expect("it comes").payload()).unwrap();
            misses +=
                usize::from(looker.query_opt(&missing, &[&n["n"].as_i64().unwrap()]).unwrap().is_none());
            got += 1;
        }
        misses
    });
    let waiter = std::thread::spawn(move || {
        let seen = waiter.prepare("SELECT count(*) FROM seen WHERE n = ANY ($1)").unwrap();
        let (mut misses, mut got) = (0, 0);
        while got < ROWS {
            let answer = wait(&mut waiter, &format!("'{{sonar}}', {after}"));
            after = answer.position;
            let there: i64 = waiter.query_one(&seen, &[&numbers(&answer.payloads)]).unwrap().get(0);
            misses += answer.payloads.len() as i64 - there;
            got += answer.payloads.len() as i64;
        }
        misses
    });
    let writers = [(&mut second, 0), (&mut third, 1)];
    std::thread::scope(|scope| {
        for (client, odd) in writers {
            scope.spawn(move || {
                let sql = "WITH i AS (INSERT INTO seen VALUES ($1) RETURNING n) SELECT oban_notify('sonar', jsonb_build_object('n', n)) FROM i";
                let send = client.prepare(sql).unwrap();
                for n in (0..ROWS).filter(|n| n % 2 == odd) {
                    client.execute(&send, &[&n]).unwrap();
                }
            });
        }
    });
    assert_eq!((listener.join().unwrap(), waiter.join().unwrap()), (0, 0), "misses");
}

/// The messages of one transaction are heard in its order. A signal among them keeps its place, although it
/// is sent in another way.
#[test]
fn a_transaction_is_heard_in_its_order() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{gossip,signal,insert}')").unwrap();
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    let calls: Vec<String> = ["gossip", "signal", "insert", "gossip", "signal"]
        .iter()
        .enumerate()
        .map(|(n, channel)| format!("SELECT oban_notify('{channel}', '{{\"n\": {n}}}')"))
        .collect();
    client.batch_execute(&format!("BEGIN; {}; COMMIT", calls.join("; "))).unwrap();
    let heard: Vec<String> = heard(&mut listener).iter().map(|n| n.payload().to_owned()).collect();
    assert_eq!(heard, (0..5).map(|n| format!("{{\"n\":{n}}}")).collect::<Vec<_>>());
    assert_eq!(numbers(&poll(&mut client, &format!("after => {after}")).payloads), [0, 1, 2, 3, 4]);
    // Equal messages of one transaction are sent once, by all of its triggers and calls together.
    let start: i64 = client.one("SELECT oban_position()");
    let twice = "INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q');
        SELECT oban_notify('insert', '{\"queue\": \"q\"}');
        SET LOCAL obanrs.notifier = postgres; SELECT oban_notify('insert', '{\"queue\":\"q\"}')";
    client.batch_execute(&format!("BEGIN; {twice}; COMMIT")).unwrap();
    assert_eq!(poll(&mut client, &format!("after => {start}")).payloads.len(), 1);
    assert_eq!(crate::support::heard(&mut listener).len(), 1);
}
