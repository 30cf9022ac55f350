//! Which messages does the relay send, and what becomes of them when it stands still or does not return?

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use super::{
    Answer, end_thief, installed_with, numbers, ping, poll, relay, wait, wait_for_relay, without_relay,
};
use crate::support::{Ask, PATIENCE, Stuck, heard, stat, wait_until};

/// The relay stands still. Writers never wait, listeners lose nothing, and readers are told of gaps.
#[test]
fn a_ring_kept_full_blocks_nobody_and_loses_nothing_for_listeners() {
    let cluster = installed_with(&["obanrs.ring_size = '64kB'"]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut client = cluster.client();
    let start: i64 = client.one("SELECT oban_position()");
    let pid = wait_for_relay(&cluster);
    cluster.signal("STOP", pid);
    for n in 1..=2_000 {
        client.batch_execute(&ping(n)).unwrap();
    }
    let (gaps, waiting) = (stat(&mut client, "gaps"), stat(&mut client, "ring_waiting"));
    assert!(gaps > 100 && waiting > 100, "{gaps} {waiting}");
    assert_eq!(gaps + waiting, 2_000);
    assert_eq!(stat(&mut client, "native_fallbacks"), gaps);
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}, 5000"));
    assert_eq!(answer.missed, Some(gaps));
    assert_eq!(numbers(&answer.payloads), (1..=waiting).collect::<Vec<_>>());
    assert_eq!(answer.position, start + 2_000);
    // A waiting session is told of a gap at once.
    let mut waiter = cluster.client();
    let last = answer.position;
    let waiting_thread =
        std::thread::spawn(move || wait(&mut waiter, &format!("'{{other}}', {last}, '30s'")));
    wait_until("it waits", || {
        client.one(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CALL%' AND wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker')",
        )
    });
    client.batch_execute(&ping(2_001)).unwrap();
    let told = waiting_thread.join().unwrap();
    assert_eq!(told, Answer { position: last + 1, missed: Some(1), payloads: vec![] });
    cluster.signal("CONT", pid);
    // While the ring is full, a new message overtakes those that wait in it. So does the message that `heard`
    // waits for.
    wait_until("the relay has sent it", || stat(&mut client, "ring_waiting") == 0);
    let mut got: Vec<i64> = heard(&mut listener)
        .iter()
        .map(|n| numbers(&[serde_json::from_str(n.payload()).unwrap()])[0])
        .collect();
    got.sort();
    assert_eq!(got, (1..=2_001).collect::<Vec<_>>());
    assert_eq!(stat(&mut client, "ring_waiting"), 0);
}

#[test]
fn the_notifier_is_chosen_by_session_role_database_or_function() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE ROLE nat LOGIN; GRANT INSERT ON oban_jobs TO nat; ALTER ROLE nat SET obanrs.notifier = 'postgres';
             CREATE FUNCTION natively(n int) RETURNS void LANGUAGE sql SET obanrs.notifier = 'postgres'
                 AS 'SELECT oban_notify(''sonar'', jsonb_build_object(''n'', n))'",
        )
        .unwrap();
    let mut role = cluster.client_as("postgres", "nat");
    let pid = |client: &mut Client| client.one::<i32>("SELECT pg_backend_pid()");
    let own = (pid(&mut admin), pid(&mut role));
    let start: i64 = admin.one("SELECT oban_position()");
    role.batch_execute(&ping(1)).unwrap();
    admin.batch_execute(&ping(2)).unwrap();
    admin.batch_execute("SET obanrs.notifier = postgres").unwrap();
    admin.batch_execute(&ping(3)).unwrap();
    admin.batch_execute("RESET obanrs.notifier").unwrap();
    admin.batch_execute("SELECT natively(4)").unwrap();
    admin
        .batch_execute(&format!(
            "BEGIN; SET LOCAL obanrs.notifier = postgres; {}; COMMIT; {}",
            ping(5),
            ping(6)
        ))
        .unwrap();
    assert!(admin.batch_execute("SET obanrs.notifier = 'redis'").is_err());
    let mut from: Vec<(i64, i32)> = heard(&mut listener)
        .iter()
        .map(|n| (numbers(&[serde_json::from_str(n.payload()).unwrap()])[0], n.process_id()))
        .collect();
    from.sort();
    let relay = wait_for_relay(&cluster);
    assert_eq!(from, [(1, own.1), (2, relay), (3, own.0), (4, own.0), (5, own.0), (6, relay)]);
    // Readers of the ring get all of them.
    let answer = poll(&mut admin, &format!("'{{sonar}}', {start}"));
    assert_eq!(numbers(&answer.payloads), [1, 2, 3, 4, 5, 6]);
}

/// The relay starts no transaction for a message that no session listens for.
#[test]
fn what_nobody_listens_to_is_not_relayed() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let mut listener = cluster.client();
    let mut n = 0;
    let mut relays = |client: &mut Client| {
        let before = (stat(client, "relay_transactions"), stat(client, "unheard"));
        n += 1;
        client.batch_execute(&ping(n)).unwrap();
        wait_until("it is sent or left", || {
            (stat(client, "relay_transactions"), stat(client, "unheard")) != before
        });
        stat(client, "relay_transactions") > before.0
    };
    assert!(!relays(&mut client));
    for (sql, counts) in [
        ("LISTEN a", true),
        ("UNLISTEN *", false),
        ("LISTEN a; UNLISTEN a", true),
        ("DISCARD ALL", false),
        ("BEGIN; LISTEN a; ROLLBACK", true), // counts as a listener, to be on the safe side
        ("UNLISTEN *", false),
        ("SELECT oban_listen_channels()", true),
        ("BEGIN; UNLISTEN *; ROLLBACK", true),
        ("BEGIN; SAVEPOINT s; UNLISTEN *; ROLLBACK TO s; COMMIT", true),
        ("BEGIN; UNLISTEN *; LISTEN a; COMMIT", true),
        ("DO $$ BEGIN EXECUTE 'UNLISTEN *'; END $$", false),
        ("DO $$ BEGIN EXECUTE 'LISTEN b'; END $$", true),
    ] {
        if sql == "DISCARD ALL" {
            listener.simple_query(sql).unwrap();
        } else {
            listener.batch_execute(sql).unwrap();
        }
        assert_eq!(relays(&mut client), counts, "after {sql}");
    }
    let pid: i32 = listener.one("SELECT pg_backend_pid()");
    client.execute("SELECT pg_terminate_backend($1, 10000)", &[&pid]).unwrap();
    assert!(!relays(&mut client), "it ended");
    // A listener in another database does not count.
    client.batch_execute("CREATE DATABASE other").unwrap();
    cluster.client_of("other").batch_execute("LISTEN a").unwrap();
    assert!(!relays(&mut client));
}

#[test]
fn the_counters_add_up() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_insert\"").unwrap();
    let mut client = cluster.client();
    let relay = wait_for_relay(&cluster);
    // While the relay stands still, equal wakeups gather in one entry.
    cluster.signal("STOP", relay);
    for _ in 0..10 {
        client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    }
    client.batch_execute("SELECT oban_notify('signal', '{}')").unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w'); PREPARE TRANSACTION 'p'")
        .unwrap();
    client.batch_execute("COMMIT PREPARED 'p'").unwrap();
    assert_eq!(
        (stat(&mut client, "ring_waiting"), stat(&mut client, "relayed")),
        (11, 0),
        "the signal waits in its row, but for nothing"
    );
    cluster.signal("CONT", relay);
    wait_until("the relay has sent it all", || stat(&mut client, "ring_waiting") == 0);
    let polls = stat(&mut client, "polls");
    poll(&mut client, "");
    wait(&mut client, "after => 0");
    let mut counters: Vec<(String, i64)> = client
        .query("SELECT counter, value FROM oban_stats WHERE value > 0 AND counter !~ 'ring' ORDER BY 1", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let transactions = counters.iter().position(|(name, _)| name == "relay_transactions").unwrap();
    let transactions = counters.remove(transactions).1;
    let relayed = counters.iter().find(|(name, _)| name == "relayed").unwrap().1;
    assert!(
        transactions <= relayed && (1..=2).contains(&relayed),
        "the first may have been on its way: {counters:?}"
    );
    let merged = 10 - relayed;
    let expected = [
        ("dropped", 1),
        ("merged", merged),
        ("native", 1),
        ("polls", polls + 2),
        ("published", 11),
        ("relayed", relayed),
    ];
    assert_eq!(counters, expected.map(|(name, value)| (name.to_owned(), value)));
}

/// The relay waits for the server's lock of NOTIFY without a limit, whatever lock_timeout the server has.
#[test]
fn the_relay_has_patience_of_its_own() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut admin = cluster.client();
    admin.batch_execute("SET lock_timeout = 0").unwrap();
    admin.batch_execute("ALTER SYSTEM SET lock_timeout = '1ms'").unwrap();
    // Another session's native NOTIFY holds the lock while it waits for a standby.
    let mut holder = cluster.client();
    holder.batch_execute("SET lock_timeout = 0").unwrap();
    let notify =
        "BEGIN; INSERT INTO oban_jobs (worker, state) VALUES ('w', 'completed'); NOTIFY other; COMMIT";
    let holder = Stuck::start(&cluster, holder, notify);
    admin.batch_execute(&format!("SET synchronous_commit = local; {}", ping(1))).unwrap();
    let waits = "SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                 WHERE a.backend_type = 'obanrs relay' AND NOT l.granted
                   AND clock_timestamp() - l.waitstart > interval '50 milliseconds'";
    wait_until("the relay waits", || admin.one(waits));
    holder.end(&mut admin, "pg_cancel_backend");
    let mut notifications = listener.notifications();
    let heard = notifications.timeout_iter(PATIENCE).next().unwrap().expect("it is heard");
    assert_eq!(heard.payload(), "{\"n\":1}");
    assert!(!cluster.log().contains("can't relay"), "{}", cluster.log());
}

/// A relay does not return. After some seconds commits send what waits for it, in order, and then their own
/// messages. The ring is no longer full for readers.
#[test]
#[ignore = "half a minute: make soak"]
fn soak_a_relay_that_does_not_come_is_done_without() {
    let mut n = 0;
    let mut send = |client: &mut Client| {
        n += 1;
        client.batch_execute(&ping(n)).unwrap();
        n
    };
    let mut actions = Vec::new();
    let (cluster, mut listener, thief) = without_relay(&["obanrs.ring_size = '64kB'"], |cluster| {
        let mut listener = cluster.client();
        listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
        let mut client = cluster.client();
        // These equal messages mean something each, and come in transactions of their own.
        let after: i64 = client.one("SELECT oban_position()");
        for action in ["pause", "resume", "pause"] {
            client
                .batch_execute(&format!("SELECT oban_notify('sonar', '{{\"action\": \"{action}\"}}')"))
                .unwrap();
        }
        actions = poll(&mut client, &format!("'{{sonar}}', {after}")).payloads;
        while stat(&mut client, "gaps") == 0 {
            send(&mut client);
        }
        listener
    });
    let mut client = cluster.client();
    wait_until("a commit sends what waits", || {
        send(&mut client);
        stat(&mut client, "ring_waiting") == 0
    });
    assert_eq!(relay(&cluster), None, "it has not come");
    let start: i64 = client.one("SELECT oban_position()");
    let last = send(&mut client);
    assert_eq!(numbers(&poll(&mut client, &format!("'{{sonar}}', {start}")).payloads), [last]);
    let payloads =
        heard(&mut listener).into_iter().map(|n| serde_json::from_str::<Value>(n.payload()).unwrap());
    let (heard_actions, rest): (Vec<Value>, Vec<Value>) = payloads.partition(|p| p["n"].is_null());
    assert_eq!(heard_actions, actions);
    let mut heard = numbers(&rest);
    heard.sort();
    assert_eq!(heard, (1..=last).collect::<Vec<_>>());
    end_thief(&mut client, thief);
}
