//! Bugs that other systems had with their messages: does this extension have them?
//!
//! Each test names the system that had the bug, and links to it.

use crate::bus::{installed_with, poll, wait, wait_for_relay};
use crate::support::{Ask, Cluster, code, heard, stat, wait_for, wait_until};

/// Graphile Worker filled the log of a hot standby: its listener failed there and started again at once.
/// https://github.com/graphile/worker/issues/224
#[test]
fn a_server_in_recovery_fills_no_log() {
    let primary = Cluster::installed();
    let standby = primary.standby(&["log_min_messages = info"]);
    let mut client = standby.client();
    for _ in 0..50 {
        client.batch_execute("SELECT * FROM oban_workers, oban_members; SELECT oban_is_leader()").unwrap();
        assert!(client.batch_execute("SELECT oban_join('a')").is_err());
    }
    let during = standby.log();
    assert!(during.contains("client backend ERROR:  cannot join during recovery"), "{during}");
    standby.promote();
    let running = "SELECT count(*) = 4 FROM oban_workers WHERE state = 'running'";
    wait_until("the workers start with the promotion", || client.one(running));
    assert_eq!(client.one::<i64>("SELECT sum(restarts) FROM oban_workers"), 0, "they had not tried before");
    client.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    // The workers, and the postmaster about them, write two lines: the sizes at the start, and the leader.
    let log = standby.log();
    let ours = |l: &&str| l.contains("obanrs") && !l.contains("client backend") && !l.contains("Unix socket");
    let said: Vec<&str> = log.lines().filter(ours).collect();
    assert!(said.len() == 2 && said[0].contains("obanrs 0."), "{said:#?}");
    assert!(said[1].contains("node \"a\" leads"), "{said:#?}");
}

/// pgbus dropped and created its trigger at each start of a worker. Workers that started together had
/// deadlocks. https://github.com/zoolutions/pgbus/issues/125
#[test]
fn a_trigger_that_is_there_is_enabled_again_without_a_lock_on_its_table() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let trigger = "SELECT oid::bigint FROM pg_trigger WHERE tgname = 'obanrs_jobs_insert'";
    let before: i64 = client.one(trigger);
    // This transaction is in the middle of its work. Its locks conflict with all DDL.
    let mut worker = cluster.client();
    worker.batch_execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    worker.batch_execute("INSERT INTO oban_peers VALUES ('Other', 'n', now(), now())").unwrap();
    client.batch_execute("BEGIN; SELECT oban_install()").unwrap();
    let locks = "SELECT COALESCE(string_agg(relation::regclass || ' ' || mode, ', '), '') FROM pg_locks
                 WHERE pid = pg_backend_pid() AND mode <> 'AccessShareLock' AND locktype <> 'virtualxid'";
    assert_eq!(client.one::<String>(locks), "");
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(client.one::<i64>(trigger), before, "it is the same trigger");
    worker.batch_execute("COMMIT").unwrap();
}

/// River loses a cancellation that is sent while its notifier reconnects. Its rescuer finds the job an hour
/// later. https://github.com/riverqueue/river/issues/1358
#[test]
fn what_is_sent_while_a_listener_is_away_is_received_on_resume() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let mut position = poll(&mut client, "").position;
    for round in 0..5 {
        let mut listener = cluster.client();
        listener.batch_execute("SELECT oban_listen_channels()").unwrap();
        drop(listener); // the listener loses its connection
        for n in 0..3 {
            let cancel = format!("SELECT oban_notify('signal', '{{\"job\": {}}}')", round * 3 + n);
            client.batch_execute(&cancel).unwrap();
        }
        let mut again = cluster.client();
        let answer = poll(&mut again, &format!("'{{signal}}', {position}"));
        let jobs: Vec<i64> = answer.payloads.iter().map(|p| p["job"].as_i64().unwrap()).collect();
        assert_eq!((jobs, answer.missed), ((round * 3..round * 3 + 3).collect(), Some(0)));
        position = answer.position;
    }
}

/// PGMQ keeps the throttle of its notifications in an unlogged table. A crash empties that table, and every
/// queue's notifications are off until they are enabled again. The pull request that brought the table:
/// https://github.com/pgmq/pgmq/pull/445
#[test]
fn after_a_server_crash_the_bus_works_without_enabling_anything() {
    let cluster = installed_with(&[]);
    cluster.crash(cluster.client().one("SELECT pg_backend_pid()"));
    let mut client = wait_for("the server is back", || {
        let mut client = cluster.try_client("postgres", "postgres").ok()?;
        client.query_one("SELECT oban_position()", &[]).ok()?;
        Some(client)
    });
    client.batch_execute("SELECT oban_listen_channels()").unwrap();
    client.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')").unwrap();
    assert_eq!(heard(&mut client).len(), 1);
    assert_eq!(poll(&mut client, "after => 0").payloads, [serde_json::json!({"queue": "q"})]);
    wait_until("the relay sends again", || {
        client.batch_execute("SELECT oban_notify('gossip', '{}')").unwrap();
        heard(&mut client);
        stat(&mut client, "relayed") > 0
    });
}

/// PGMQ took the name of a queue from the name of its table, which is in lower case. A queue with another
/// name sent no notification.
/// https://github.com/pgmq/pgmq/pull/593
#[test]
fn prefixes_in_mixed_case_quoted_of_63_bytes_and_unicode_have_channels() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let longest = "L".repeat(63 - ".oban_gossip".len());
    for prefix in ["MixedCase", "with \"quotes\"", "with spaces", "ümläut", &longest] {
        client.execute("SELECT oban_install($1)", &[&prefix]).unwrap();
        client.execute("SELECT oban_listen_channels(prefix => $1)", &[&prefix]).unwrap();
        let after: i64 = client.one("SELECT oban_position()");
        let table = format!("\"{}\".oban_jobs", prefix.replace('"', "\"\""));
        client
            .batch_execute(&format!("INSERT INTO {table} (worker, queue) VALUES ('w', 'Q \"ü\"')"))
            .unwrap();
        let heard = heard(&mut client);
        assert_eq!(heard.len(), 1, "{prefix}");
        assert_eq!(heard[0].channel(), format!("{prefix}.oban_insert"));
        let queue: serde_json::Value = client
            .query_one("SELECT messages->0 FROM oban_poll(after => $1, prefix => $2)", &[&after, &prefix])
            .unwrap()
            .get(0);
        assert_eq!((&queue["channel"], &queue["payload"]["queue"]), (&"insert".into(), &"Q \"ü\"".into()));
    }
    let too_long = format!("{longest}L");
    assert!(client.execute("SELECT oban_install($1)", &[&too_long]).is_err(), "one byte more");
}

/// The channel of Graphile Worker is `jobs:insert` for each of its schemas in a database. PgDog gave the
/// notifications of one pool to the listeners of another.
/// https://github.com/graphile/worker/blob/abfb4cff30747ad423046d117dfb88470f03ae00/src/main.ts#L536
/// https://github.com/pgdogdev/pgdog/pull/1285
#[test]
fn a_prefix_never_hears_another_prefix() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('a'), oban_install('b'), oban_install('ab')").unwrap();
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels(prefix => 'a')").unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    let mut waiter = cluster.client();
    let waiting = std::thread::spawn(move || wait(&mut waiter, &format!("after => {after}, prefix => 'a'")));
    for (prefix, n) in [("b", 1), ("ab", 2), ("public", 3), ("a", 4)] {
        let sql = format!("INSERT INTO {prefix}.oban_jobs (worker, queue) VALUES ('w', 'q{n}')");
        client.batch_execute(&sql).unwrap();
    }
    // A verbatim channel of that name does not belong to the prefix, either.
    client.batch_execute("SELECT oban_notify('a.oban_gossip', '{\"forged\": true}', '')").unwrap();
    let own = [serde_json::json!({"queue": "q4"})];
    assert_eq!(waiting.join().unwrap().payloads, own);
    assert_eq!(poll(&mut client, &format!("after => {after}, prefix => 'a'")).payloads, own);
    let heard = heard(&mut listener);
    let heard: Vec<&str> = heard.iter().map(|n| n.channel()).collect();
    // For LISTEN a channel is only its name, and any session may send there. README says so.
    assert_eq!(heard, ["a.oban_insert", "a.oban_gossip"]);
}

/// DBOS drops all notifications of a batch if one of them is too long.
/// https://github.com/dbos-inc/dbos-transact-py/blob/6bc3032f8bd3/dbos/_sys_db_postgres.py#L351
#[test]
fn large_payloads_arrive_and_a_refused_one_affects_only_itself() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_listen_channels()").unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    let mut sent = Vec::new();
    let noise =
        "(SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 2000) i)";
    for size in [100, 7_989, 7_990, 7_991, 8_192, 100_000, 1_000_000] {
        let payload = serde_json::json!({ "pad": "x".repeat(size) });
        client.execute("SELECT oban_notify('gossip', $1)", &[&payload]).unwrap();
        sent.push(payload);
        assert_eq!(code(&mut client, &format!("SELECT oban_notify('gossip', {noise})")), "54000");
        assert_eq!(code(&mut client, "SELECT oban_notify('gossip', '[]')"), "22023");
        assert_eq!(
            code(&mut client, "SELECT oban_notify_many('gossip', ARRAY['{}', '1']::jsonb[])"),
            "22023"
        );
    }
    for odd in ["{\"a\": 1e400}", "{\"\": \"\\\"\\\\ \u{1}\"}", "{\"a\": {\"a\": [[[[]]]]}}", "{}"] {
        let payload: serde_json::Value =
            client.one(&format!("SELECT $j${}$j$::jsonb", odd.replace('\u{1}', "\\u0001")));
        client.execute("SELECT oban_notify('gossip', $1)", &[&payload]).unwrap();
        sent.push(payload);
    }
    let answer = poll(&mut client, &format!("'{{gossip}}', {after}"));
    assert_eq!(answer.missed, Some(0));
    assert!(answer.payloads == sent, "each as it was sent");
    let heard = heard(&mut client);
    assert_eq!(heard.len(), sent.len());
    for (n, payload) in heard.iter().zip(&sent) {
        assert!(n.payload().len() < 8_000);
        let read: serde_json::Value =
            client.query_one("SELECT oban_decode($1)", &[&n.payload()]).unwrap().get(0);
        assert!(read == *payload);
    }
}

/// A transaction that PREPARE TRANSACTION ends does not wake the worker of pg_net, and is not counted.
/// https://github.com/supabase/pg_net/blob/68ef0bf044b7a44f2e075b06609555a298ecb0bd/src/worker.c#L112
#[test]
fn prepare_transaction_is_refused_or_counted_and_a_savepoint_takes_its_messages_back() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    let notify = "SELECT oban_notify('gossip', '{\"n\": 1}')";
    assert_eq!(code(&mut client, &format!("BEGIN; {notify}; PREPARE TRANSACTION 'p'")), "0A000");
    client.batch_execute(&format!("BEGIN; SAVEPOINT s; {notify}; ROLLBACK TO s; COMMIT")).unwrap();
    let insert = "INSERT INTO oban_jobs (worker) VALUES ('w')";
    client.batch_execute(&format!("BEGIN; {insert}; PREPARE TRANSACTION 'p'")).unwrap();
    client.batch_execute("COMMIT PREPARED 'p'").unwrap();
    assert_eq!(stat(&mut client, "dropped"), 1, "a wake-up is, and it is counted");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 1, "the row is not");
    client.batch_execute("SELECT oban_notify('gossip', '{\"n\": 2}')").unwrap();
    assert_eq!(poll(&mut client, &format!("after => {after}")).payloads, [serde_json::json!({"n": 2})]);
}

/// pg_net sets the latch of its worker at a commit without a test whether the worker has ended.
/// https://github.com/supabase/pg_net/blob/68ef0bf044b7a44f2e075b06609555a298ecb0bd/src/worker.c#L107
#[test]
fn a_relay_that_dies_between_publish_and_wakeup_loses_no_message() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels()").unwrap();
    let mut client = cluster.client();
    let mut expected = Vec::new();
    let mut ended = 0;
    for round in 0..4 {
        // A relay that was terminated is shown until it has ended.
        let relay = wait_for("the next relay", || Some(wait_for_relay(&cluster)).filter(|pid| *pid != ended));
        ended = relay;
        // The relay stands still. A message wakes it, and it dies before it can look.
        cluster.signal("STOP", relay);
        for n in 0..5 {
            client
                .batch_execute(&format!("SELECT oban_notify('gossip', '{{\"n\": {}}}')", round * 10 + n))
                .unwrap();
            expected.push(format!("{{\"n\":{}}}", round * 10 + n));
        }
        client.execute("SELECT pg_terminate_backend($1)", &[&relay]).unwrap();
        cluster.signal("CONT", relay);
        for n in 5..10 {
            client
                .batch_execute(&format!("SELECT oban_notify('gossip', '{{\"n\": {}}}')", round * 10 + n))
                .unwrap();
            expected.push(format!("{{\"n\":{}}}", round * 10 + n));
        }
    }
    let heard = heard(&mut listener);
    let mut heard: Vec<&str> = heard.iter().map(|n| n.payload()).collect();
    // What was sent in the transaction in which a relay died may come twice. The first time is in order.
    let mut seen = std::collections::BTreeSet::new();
    heard.retain(|payload| seen.insert(*payload));
    assert_eq!(heard, expected);
    let restarts = "SELECT restarts FROM oban_workers WHERE kind = 'relay'";
    assert_eq!(client.one::<i32>(restarts), 4);
}

/// In Flyte a full buffer of notifications blocks the calls that write.
/// https://github.com/flyteorg/flyte/issues/7757
#[test]
fn a_slow_consumer_never_blocks_a_writer_and_is_told_it_lagged() {
    let cluster = installed_with(&["obanrs.ring_size = '64kB'"]);
    let mut slow = cluster.client();
    slow.batch_execute("SELECT oban_listen_channels()").unwrap();
    slow.batch_execute("BEGIN").unwrap(); // the listener hears nothing until its transaction ends
    let mut client = cluster.client();
    let start: i64 = client.one("SELECT oban_position()");
    client.batch_execute("SET statement_timeout = '20s'").unwrap();
    for n in 0..5_000 {
        client.batch_execute(&format!("SELECT oban_notify('gossip', '{{\"n\": {n}}}')")).unwrap();
    }
    let answer = poll(&mut client, &format!("'{{gossip}}', {start}, 10000"));
    assert_eq!(answer.missed.unwrap() + answer.payloads.len() as i64, 5_000);
    assert!(answer.missed.unwrap() > 4_000, "{:?}", answer.missed);
    slow.batch_execute("COMMIT").unwrap();
    assert_eq!(heard(&mut slow).len(), 5_000);
}
