//! Bugs that other job systems had, by their numbers in our collection, each as a test that this one
//! does not have it.

use crate::support::{Ask, Cluster, wait_until};

/// Graphile Worker filled the log of a hot standby: its worker failed there, and was started again.
#[test]
fn museum_8_server_in_recovery_no_log_storm() {
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
    let running = "SELECT count(*) = 3 FROM oban_workers WHERE state = 'running'";
    wait_until("the workers start with the promotion", || client.one(running));
    assert_eq!(client.one::<i64>("SELECT sum(restarts) FROM oban_workers"), 0, "they had not tried before");
    client.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    // All that our workers, or the postmaster about them, had to say: who leads now.
    let log = standby.log();
    let ours = |l: &&str| l.contains("obanrs") && !l.contains("client backend") && !l.contains("Unix socket");
    let said: Vec<&str> = log.lines().filter(ours).collect();
    assert!(said.len() == 1 && said[0].contains("node \"a\" leads"), "{said:#?}");
}

/// pgbus dropped and created its trigger at each start of a worker: deadlocks between workers that
/// boot together.
#[test]
fn museum_10_enabling_a_trigger_is_idempotent_and_takes_no_access_exclusive_when_nothing_changes() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let trigger = "SELECT oid::bigint FROM pg_trigger WHERE tgname = 'obanrs_jobs_insert'";
    let before: i64 = client.one(trigger);
    // A transaction in the middle of its work, whose locks conflict with all DDL.
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
