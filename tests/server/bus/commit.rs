//! What remains of a transaction that fails before its commit, or loses its session after it?

use std::io::Write;
use std::os::unix::net::UnixStream;

use postgres::Client;

use super::{installed_with, poll};
use crate::support::{Ask, Stuck, code, stat, wait_for, wait_until};

/// A failure between the call and the commit gives the reserved room back, at each point where it may come.
#[test]
fn what_fails_before_its_commit_leaves_no_message_and_no_reservation() {
    let cluster = installed_with(&["obanrs.ring_size = '64kB'"]);
    let (mut one, mut two) = (cluster.client(), cluster.client());
    one.batch_execute(
        "CREATE TABLE skew (n int);
         CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    )
    .unwrap();
    let start: i64 = one.one("SELECT oban_position()");
    // Two of these fill the ring. A third would not fit if any of them were left behind.
    let large = "SELECT oban_notify('sonar', jsonb_build_object('n', 0, 'x', n, 'pad', repeat('x', 7000))) FROM generate_series(1, 2) n";
    for _ in 0..20 {
        // Postgres' check for serialization failures comes after the reservation, and refuses the commit.
        for client in [&mut one, &mut two] {
            let sql = format!("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM skew; {large}");
            client.batch_execute(&sql).unwrap();
        }
        one.batch_execute("INSERT INTO skew VALUES (1)").unwrap();
        let failed = two.batch_execute("INSERT INTO skew VALUES (2)");
        one.batch_execute("COMMIT").unwrap();
        let code = match failed {
            Ok(()) => code(&mut two, "COMMIT"),
            Err(e) => {
                two.batch_execute("ROLLBACK").unwrap();
                e.code().unwrap().code().to_owned()
            }
        };
        assert_eq!(code, "40001");
        let deferred = format!("BEGIN; {large}; INSERT INTO child VALUES (1); COMMIT");
        assert_eq!(crate::support::code(&mut one, &deferred), "23503");
        assert_eq!(crate::support::code(&mut one, &format!("{large}; SELECT 1 / 0")), "22012");
    }
    assert_eq!(stat(&mut one, "gaps"), 0, "there was always room");
    let answer = poll(&mut one, &format!("'{{sonar}}', {start}, 1000"));
    assert_eq!(answer.position, start + 40, "the twenty that were committed");
}

/// A commit waits for its standby after the transaction is committed. A session that ends in that wait has
/// committed, and its message is sent.
#[test]
fn a_commit_that_waits_for_a_standby_sends_when_it_is_let_go() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    for ends in ["pg_cancel_backend", "pg_terminate_backend"] {
        let start: i64 = admin.one("SELECT oban_position()");
        let insert = "INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')";
        let stuck = Stuck::start(&cluster, cluster.client(), insert);
        let before = poll(&mut admin, &format!("after => {start}"));
        stuck.end(&mut admin, ends);
        let after = poll(&mut admin, &format!("after => {}", before.position));
        assert_eq!(after.payloads.len(), 1, "{ends}: {after:?}");
    }
}

/// A session is terminated among its native NOTIFYs, while it can't write to its client. That is a FATAL,
/// which unwinds nothing. Postgres aborts the transaction all the same.
#[test]
fn a_session_ended_before_its_commit_gives_everything_back() {
    let cluster = installed_with(&["obanrs.ring_size = '2MB'"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE TABLE held (n int)").unwrap();
    let signals = "SELECT oban_notify('signal', jsonb_build_object('n', n)) FROM generate_series(1, 6000) n";
    for _ in 0..4 {
        // The session asks for a debug message about each NOTIFY, and its client reads none of them.
        let mut socket = UnixStream::connect(format!("{}/.s.PGSQL.5432", cluster.socket_folder())).unwrap();
        let mut startup = 196_608u32.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0application_name\0deaf\0\0");
        let query = format!(
            "SET trace_notify = on; SET client_min_messages = debug1; BEGIN; INSERT INTO held VALUES (1); {signals}; COMMIT\0"
        );
        for (kind, body) in [(None, startup), (Some(b'Q'), query.into_bytes())] {
            let mut message: Vec<u8> = kind.into_iter().collect();
            message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            message.extend_from_slice(&body);
            socket.write_all(&message).unwrap();
        }
        let pid = wait_for("it is stuck", || {
            let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'deaf' AND wait_event = 'ClientWrite'";
            admin.query_opt(sql, &[]).unwrap().map(|row| row.get::<_, i32>(0))
        });
        admin.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
        let gone = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})");
        wait_until("it is gone", || admin.one(&gone));
        let left =
            format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} OR (relation = 'held'::regclass)");
        assert_eq!(admin.one::<i64>(&left), 0);
    }
    admin.batch_execute("BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE held; COMMIT").unwrap();
    for _ in 0..3 {
        admin.batch_execute(signals).unwrap();
    }
    assert_eq!(stat(&mut admin, "gaps"), 0, "there is room for as many as before");
    assert!(!cluster.log().contains("borrowed"), "{}", cluster.log());
}

/// A backend sends a million messages in a thousand transactions, and keeps no memory of them.
#[test]
fn a_backends_memory_is_flat() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()
    };
    let send = |client: &mut Client, transactions: i32| {
        client.batch_execute(&format!(
            "DO $$ BEGIN FOR t IN 1..{transactions} LOOP
                 PERFORM oban_notify('sonar', jsonb_build_object('t', t, 'n', n)) FROM generate_series(1, 1000) n;
                 COMMIT;
             END LOOP; END $$"
        ))
        .unwrap();
    };
    send(&mut client, 50);
    let before = resident();
    send(&mut client, 1000);
    let after = resident();
    assert!(after - before < 1024, "{before} kB, and after a million messages {after} kB");
}

/// A trigger that can't send a wakeup lets the row in, and counts it in `dropped`.
#[test]
fn what_a_trigger_can_not_send_is_counted() {
    let cluster = installed_with(&["obanrs.max_transaction_messages = 2"]);
    let mut client = cluster.client();
    let mut dropped = |sql: &str| {
        let before = stat(&mut client, "dropped");
        client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        stat(&mut client, "dropped") - before
    };
    assert_eq!(
        dropped("INSERT INTO oban_jobs (worker, queue) SELECT 'w', 'q' || n FROM generate_series(1, 5) n"),
        3
    );
    assert_eq!(
        dropped("ALTER TABLE oban_jobs RENAME queue TO line; INSERT INTO oban_jobs (worker) VALUES ('w')"),
        1
    );
    assert_eq!(
        dropped("ALTER TABLE oban_jobs RENAME line TO queue; INSERT INTO oban_jobs (worker) VALUES ('w')"),
        0
    );
    // A schema's name can leave no room for a channel. The counter shows that once a session listens.
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN anything").unwrap();
    let before = stat(&mut client, "dropped");
    let dot = "CREATE SCHEMA \"with.dot\"; ALTER TABLE oban_jobs SET SCHEMA \"with.dot\"";
    client
        .batch_execute(&format!("{dot}; INSERT INTO \"with.dot\".oban_jobs (worker) VALUES ('w')"))
        .unwrap();
    wait_until("it is counted", || stat(&mut client, "dropped") == before + 1);
}
