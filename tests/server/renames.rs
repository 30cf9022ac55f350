//! A prefix is a schema, not a name: which messages come before, during and after ALTER SCHEMA RENAME and
//! DROP SCHEMA?
//!
//! The tests of members and leaders are in schemas.rs.

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use super::bus::{Answer, installed_with, poll, wait, wait_for_relay};
use crate::support::{Ask, Cluster, JOBS, PATIENCE, heard, stat, wait_until};

/// Starts a server with the prefix `a`.
fn with_prefix() -> (Cluster, Client) {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('a')").unwrap();
    (cluster, client)
}

fn ping(n: i64, prefix: &str) -> String {
    format!("SELECT oban_notify('sonar', '{{\"n\": {n}}}', '{prefix}')")
}

/// A session that listens to `sonar` and to wakeups of these prefixes. They need not exist.
fn listener(cluster: &Cluster, prefixes: &[&str]) -> Client {
    let mut client = cluster.client();
    for prefix in prefixes {
        client
            .batch_execute(&format!("LISTEN \"{prefix}.oban_sonar\"; LISTEN \"{prefix}.oban_insert\""))
            .unwrap();
    }
    client
}

fn heard_on(client: &mut Client) -> Vec<(String, String)> {
    heard(client).into_iter().map(|n| (n.channel().to_owned(), n.payload().to_owned())).collect()
}

fn on(channel: &str, n: i64) -> (String, String) {
    (channel.to_owned(), format!("{{\"n\":{n}}}"))
}

fn numbers(answer: &Answer) -> Vec<i64> {
    answer.payloads.iter().filter_map(|p| p["n"].as_i64()).collect()
}

fn insert(client: &mut Client, prefix: &str, queue: &str) {
    client
        .batch_execute(&format!("INSERT INTO {prefix}.oban_jobs (worker, queue) VALUES ('w', '{queue}')"))
        .unwrap();
}

/// Starts a session that waits in oban_wait for messages of the prefix `a`.
fn waiting(cluster: &Cluster, after: i64) -> std::thread::JoinHandle<Result<Answer, String>> {
    let mut client = cluster.client();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let thread = std::thread::spawn(move || {
        let sql = format!("CALL oban_wait('{{sonar}}', {after}, '30s', prefix => 'a')");
        let code = |e: postgres::Error| e.code().expect("the server's").code().to_owned();
        client.query_one(&sql, &[]).map(|_| wait(&mut client, "timeout => '0'")).map_err(code)
    });
    let mut admin = cluster.client();
    let sql = format!(
        "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
    );
    wait_until("it waits", || admin.one::<Option<bool>>(&sql) == Some(true));
    thread
}

#[test]
fn what_waits_is_heard_under_the_name_of_the_moment() {
    let (cluster, mut client) = with_prefix();
    let mut listener = listener(&cluster, &["a", "b"]);
    let after: i64 = client.one("SELECT oban_position()");
    let relay = wait_for_relay(&cluster);
    client.batch_execute(&ping(1, "a")).unwrap();
    assert_eq!(heard_on(&mut listener), [on("a.oban_sonar", 1)]);
    cluster.signal("STOP", relay);
    client.batch_execute(&ping(2, "a")).unwrap();
    insert(&mut client, "a", "early");
    client.batch_execute("ALTER SCHEMA a RENAME TO b").unwrap();
    client.batch_execute(&ping(3, "b")).unwrap();
    insert(&mut client, "b", "late");
    cluster.signal("CONT", relay);
    let queue = |name: &str| ("b.oban_insert".to_owned(), format!("{{\"queue\":\"{name}\"}}"));
    assert_eq!(
        heard_on(&mut listener),
        [on("b.oban_sonar", 2), queue("early"), on("b.oban_sonar", 3), queue("late")]
    );
    assert_eq!(numbers(&poll(&mut client, &format!("'{{sonar}}', {after}, prefix => 'b'"))), [1, 2, 3]);
    let woken = poll(&mut client, &format!("'{{insert}}', {after}, prefix => 'b'"));
    assert_eq!(woken.payloads, ["early", "late"].map(|q| serde_json::json!({ "queue": q })));
    assert_eq!(crate::support::code(&mut client, "SELECT oban_poll(prefix => 'a')"), "3F000");
    assert_eq!(stat(&mut client, "dropped"), 0);
}

#[test]
fn a_rename_of_the_same_transaction_counts() {
    let (cluster, mut client) = with_prefix();
    let mut listener = listener(&cluster, &["a", "b", "c"]);
    let after: i64 = client.one("SELECT oban_position()");
    // The first message goes through the relay. The second is native by the setting.
    client.batch_execute(&format!("BEGIN; {}; ALTER SCHEMA a RENAME TO b; COMMIT", ping(1, "a"))).unwrap();
    assert_eq!(heard_on(&mut listener), [on("b.oban_sonar", 1)]);
    let natively = "SET LOCAL obanrs.notifier = 'postgres'";
    let rename = "ALTER SCHEMA b RENAME TO c";
    client.batch_execute(&format!("BEGIN; {natively}; {}; {rename}; COMMIT", ping(2, "b"))).unwrap();
    assert_eq!(heard_on(&mut listener), [on("c.oban_sonar", 2)]);
    // A rename that is rolled back does not count.
    let (begin, undo) = ("BEGIN; SAVEPOINT s; ALTER SCHEMA c RENAME TO a", "ROLLBACK TO s; COMMIT");
    client.batch_execute(&format!("{begin}; {natively}; {}; {undo}", ping(3, "a"))).unwrap();
    client
        .batch_execute(&format!(
            "BEGIN; {natively}; {}; SAVEPOINT s; ALTER SCHEMA c RENAME TO a; {undo}",
            ping(4, "c")
        ))
        .unwrap();
    assert_eq!(heard_on(&mut listener), [on("c.oban_sonar", 4)]);
    assert_eq!(numbers(&poll(&mut client, &format!("'{{sonar}}', {after}, prefix => 'c'"))), [1, 2, 4]);
}

#[test]
fn a_new_schema_of_an_old_name_has_nothing_of_the_old_one() {
    let (cluster, mut client) = with_prefix();
    let mut listener = listener(&cluster, &["a"]);
    let after: i64 = client.one("SELECT oban_position()");
    let relay = wait_for_relay(&cluster);
    cluster.signal("STOP", relay);
    client.batch_execute(&ping(1, "a")).unwrap();
    insert(&mut client, "a", "old");
    let waiter = waiting(&cluster, client.one("SELECT oban_position()"));
    client.batch_execute("DROP SCHEMA a CASCADE; SELECT oban_install('a')").unwrap();
    client.batch_execute(&ping(2, "a")).unwrap();
    cluster.signal("CONT", relay);
    assert_eq!(heard_on(&mut listener), [on("a.oban_sonar", 2)]);
    assert_eq!(numbers(&poll(&mut client, &format!("'{{sonar,insert}}', {after}, prefix => 'a'"))), [2]);
    let dropped = poll(&mut client, &format!("'{{insert}}', {after}, prefix => 'a'")).payloads;
    assert_eq!(dropped, [Value::Null; 0], "no wake-up of the old one's jobs");
    wait_until("both are counted", || stat(&mut client, "dropped") == 2);
    // A session that waits for the old schema hears nothing of the new one. Below, another is told when its
    // schema is dropped.
    let pid = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL oban_wait%' AND state = 'active'";
    let pid: i32 = client.one(pid);
    assert!(!waiter.is_finished());
    client.execute("SELECT pg_cancel_backend($1)", &[&pid]).unwrap();
    assert_eq!(waiter.join().unwrap().unwrap_err(), "57014");
    let mut late = cluster.client();
    late.batch_execute("CREATE SCHEMA gone").unwrap();
    let gone = std::thread::spawn(move || {
        crate::support::code(&mut late, "CALL oban_wait('{sonar}', timeout => '300ms', prefix => 'gone')")
    });
    let waits =
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CALL oban_wait%' AND state = 'active'";
    wait_until("it waits, or is done", || client.one::<bool>(waits) || gone.is_finished());
    client.batch_execute("DROP SCHEMA gone").unwrap();
    assert_eq!(gone.join().unwrap(), "3F000");
}

#[test]
fn a_waiter_goes_on_across_a_rename() {
    let (cluster, mut client) = with_prefix();
    let after: i64 = client.one("SELECT oban_position()");
    let mut waiter = cluster.client();
    let pid: i32 = waiter.one("SELECT pg_backend_pid()");
    let thread =
        std::thread::spawn(move || wait(&mut waiter, &format!("'{{sonar}}', {after}, '30s', prefix => 'a'")));
    let waits = format!(
        "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
    );
    wait_until("it waits", || client.one::<Option<bool>>(&waits) == Some(true));
    client.batch_execute("ALTER SCHEMA a RENAME TO b").unwrap();
    client.batch_execute(&ping(1, "b")).unwrap();
    assert_eq!(numbers(&thread.join().unwrap()), [1]);
}

/// When the message is sent, the schema has a name that leaves room for no channel.
#[test]
fn what_has_no_channel_any_more_is_dropped() {
    let (cluster, mut client) = with_prefix();
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels()").unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    let relay = wait_for_relay(&cluster);
    let long = "x".repeat(60);
    let natively = "SET LOCAL obanrs.notifier = 'postgres'";
    let (mut before, mut dropped) = ("a".to_owned(), 0);
    for (name, sent) in [("a.b", 1), (&*long, 3)] {
        cluster.signal("STOP", relay);
        client.batch_execute(&ping(sent, &before)).unwrap();
        insert(&mut client, &before, "q");
        let rename = format!("ALTER SCHEMA \"{before}\" RENAME TO \"{name}\"");
        client
            .batch_execute(&format!("BEGIN; {natively}; {}; {rename}; COMMIT", ping(sent + 1, &before)))
            .unwrap();
        cluster.signal("CONT", relay);
        dropped += 3;
        wait_until("they are counted", || stat(&mut client, "dropped") == dropped);
        // The call raises an error.
        let notify = format!("SELECT oban_notify('sonar', '{{}}', '{name}')");
        assert_eq!(crate::support::code(&mut client, &notify), "22023");
        // The trigger raises none.
        insert(&mut client, &format!("\"{name}\""), "q");
        dropped += 1;
        wait_until("it is counted", || stat(&mut client, "dropped") == dropped);
        before = format!("c{sent}");
        client.batch_execute(&format!("ALTER SCHEMA \"{name}\" RENAME TO {before}")).unwrap();
    }
    assert_eq!(
        numbers(&poll(&mut client, &format!("'{{sonar}}', {after}, prefix => '{before}'"))),
        [1, 2, 3, 4]
    );
    assert_eq!(heard_on(&mut listener), []);
    let mut other = cluster.client();
    other.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    client.batch_execute(&ping(5, "public")).unwrap();
    let mut notifications = other.notifications();
    let next = notifications.timeout_iter(PATIENCE).next().unwrap().expect("the relay goes on");
    assert_eq!(next.payload(), "{\"n\":5}");
}

/// Wakeups of partitions belong to the schema of their parent table, under each name of that schema.
#[test]
fn partitions_in_other_schemas_wake_the_schema_of_their_root() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE SCHEMA a; CREATE SCHEMA parts;
             CREATE TABLE a.oban_jobs {JOBS} PARTITION BY LIST (queue);
             CREATE TABLE parts.leaf PARTITION OF a.oban_jobs FOR VALUES IN ('q');
             SELECT oban_install('a')"
        ))
        .unwrap();
    let mut listener = listener(&cluster, &["a", "b", "parts"]);
    let after: i64 = client.one("SELECT oban_position()");
    client.batch_execute("ALTER SCHEMA a RENAME TO b; ALTER SCHEMA parts RENAME TO a").unwrap();
    let wakeup = ("b.oban_insert".to_owned(), "{\"queue\":\"q\"}".to_owned());
    for table in ["b.oban_jobs", "a.leaf"] {
        client.batch_execute(&format!("INSERT INTO {table} (queue) VALUES ('q')")).unwrap();
        assert_eq!(heard_on(&mut listener), std::slice::from_ref(&wakeup));
    }
    assert_eq!(poll(&mut client, &format!("'{{insert}}', {after}, prefix => 'b'")).payloads.len(), 2);
    assert_eq!(poll(&mut client, &format!("'{{insert}}', {after}, prefix => 'a'")).payloads.len(), 0);
}
