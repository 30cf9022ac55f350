//! Does a reader go on where it was, and learn how much it has missed?

use postgres::Client;
use serde_json::Value;

use super::{Answer, installed_with, numbers, ping, poll, wait};
use crate::support::{Ask, Cluster, wait_until};

#[test]
fn a_reader_goes_on_where_it_was() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let start = poll(&mut client, "");
    assert_eq!((start.missed, start.payloads.len()), (Some(0), 0), "from now on");
    assert_eq!(client.one::<i64>("SELECT oban_position()"), start.position);
    for n in 1..=5 {
        client.batch_execute(&ping(n)).unwrap();
    }
    client.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')").unwrap();
    let from = |after: i64, most: i32| format!("'{{sonar}}', {after}, {most}");
    let first = poll(&mut client, &from(start.position, 3));
    assert_eq!((first.position, first.missed), (start.position + 3, Some(0)));
    assert_eq!(numbers(&first.payloads), [1, 2, 3]);
    let second = poll(&mut client, &from(first.position, 3));
    assert_eq!(numbers(&second.payloads), [4, 5]);
    assert_eq!(second.position, start.position + 6, "past what is on other channels");
    assert_eq!(poll(&mut client, &from(second.position, 3)), Answer { payloads: vec![], ..second });

    // A whole message has the short channel, its position, and the time when it was sent.
    let sql = format!("SELECT messages->0 FROM oban_poll(after => {})", start.position + 5);
    let message: Value = client.one(&sql);
    assert_eq!(message["channel"], "insert");
    assert_eq!(message["seq"], start.position + 6);
    assert_eq!(message["payload"], serde_json::json!({"queue": "q"}));
    let age: bool = client.one(&format!(
        "SELECT clock_timestamp() - '{}' BETWEEN '0' AND '1 minute'",
        message["sent_at"].as_str().unwrap()
    ));
    assert!(age);
    // oban_wait with named arguments answers the same.
    let waited = wait(
        &mut client,
        &format!("channels => '{{sonar}}', after => {}, max_messages => 2", start.position),
    );
    assert_eq!(numbers(&waited.payloads), [1, 2]);
    let nothing = wait(&mut client, "timeout => '1 millisecond'");
    assert_eq!((nothing.position, nothing.missed, nothing.payloads), (start.position + 6, Some(0), vec![]));
}

#[test]
fn a_reader_that_was_away_gets_everything_or_is_told_how_much_it_missed() {
    let cluster = installed_with(&["obanrs.ring_size = '2MB'"]);
    let mut client = cluster.client();
    let start: i64 = client.one("SELECT oban_position()");
    let send = |client: &mut Client, from: i64, to: i64| {
        let sql = format!(
            "SELECT oban_notify('sonar', jsonb_build_object('n', n)) FROM generate_series({from}, {to}) n"
        );
        client.batch_execute(&sql).unwrap();
    };
    send(&mut client, 1, 10_000);
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}, 20000"));
    assert_eq!((answer.position, answer.missed), (start + 10_000, Some(0)));
    assert_eq!(numbers(&answer.payloads), (1..=10_000).collect::<Vec<_>>());

    send(&mut client, 10_001, 20_000);
    send(&mut client, 20_001, 30_000);
    let answer = wait(&mut client, &format!("'{{sonar}}', {start}, max_messages => 40000"));
    let (missed, got) = (answer.missed.unwrap(), numbers(&answer.payloads));
    assert!(missed > 0 && got.len() > 5_000, "{missed} {}", got.len());
    assert_eq!(got, (missed + 1..=30_000).collect::<Vec<_>>(), "what was missed, and the rest");
    assert_eq!(answer.position, start + 30_000);
    // Small portions add up to the same number.
    let (mut after, mut total) = (start, 0);
    while after < start + 30_000 {
        let answer = poll(&mut client, &format!("'{{sonar}}', {after}, 777"));
        total += answer.missed.unwrap() + answer.payloads.len() as i64;
        after = answer.position;
    }
    assert_eq!(total, 30_000);
}

/// A position never goes back: neither over a restart or a crash, nor when the extension is created anew.
#[test]
fn positions_never_go_back() {
    let cluster = installed_with(&[]);
    let mut last = 0;
    let mut further = |client: &mut Client, what: &str| {
        let position: i64 = client.one("SELECT oban_position()");
        assert!(position > last, "{what}: {position} after {last}");
        client.batch_execute(&ping(1)).unwrap();
        // A reader from before gets what there is. The answer says with NULL that the number of missed
        // messages is unknown.
        let answer = poll(client, &format!("'{{sonar}}', {last}, 5"));
        assert_eq!((answer.missed, answer.payloads.len()), (None, 1), "{what}");
        last = answer.position;
    };
    further(&mut cluster.client(), "at first");
    cluster.restart();
    further(&mut cluster.client(), "after a restart");
    cluster.stop("immediate");
    cluster.start_again();
    further(&mut cluster.client(), "after a crash");
    let mut client = cluster.client();
    client.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("its slot is free", || relay_is_gone(&cluster));
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    further(&mut client, "after CREATE EXTENSION");
    // A position from a server that was ahead is answered in the same way.
    let answer = poll(&mut client, "'{sonar}', 9000000000000000000");
    assert_eq!((answer.missed, answer.payloads.len()), (None, 1));
}

fn relay_is_gone(cluster: &Cluster) -> bool {
    let sql = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'obanrs relay'";
    cluster.client().one(sql)
}

/// A client of the primary goes on at the promoted standby, with the position that it has.
#[test]
fn a_position_of_the_primary_goes_on_after_a_promotion() {
    let primary = Cluster::installed();
    let mut client = primary.client();
    let begin: i64 = client.one("SELECT oban_position()");
    client.batch_execute("SELECT oban_notify('sonar', '{\"of\": \"primary\"}')").unwrap();
    let there = poll(&mut client, &format!("'{{sonar}}', {begin}"));
    assert_eq!((there.missed, there.payloads.len()), (Some(0), 1));
    let standby = primary.standby(&[]);
    primary.wait_for_standby(&standby);
    primary.stop("immediate");
    standby.promote();
    let mut client = standby.client();
    let workers = "SELECT count(*) = 4 FROM oban_workers WHERE state = 'running'";
    wait_until("the workers start with the promotion", || client.one(workers));
    let first = poll(&mut client, &format!("'{{sonar}}', {}", there.position));
    assert_eq!((first.missed, first.payloads.len()), (None, 0), "nobody knows what it missed");
    assert!(first.position >= there.position, "{} after {}", first.position, there.position);
    client.batch_execute("SELECT oban_notify('sonar', '{\"of\": \"standby\"}')").unwrap();
    let next = poll(&mut client, &format!("'{{sonar}}', {}", first.position));
    assert_eq!((next.missed, next.payloads.len()), (Some(0), 1));
}
