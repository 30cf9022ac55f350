//! Messages and the ends of transactions: is exactly that heard which was committed?

use postgres::Client;

use crate::support::{Ask, Cluster};

fn heard(client: &mut Client) -> Vec<String> {
    crate::support::heard(client).iter().map(|n| n.payload().to_owned()).collect()
}

fn listener(cluster: &Cluster) -> Client {
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_listen_channels()").unwrap();
    client
}

fn n(n: u32) -> String {
    format!("SELECT oban_notify('gossip', '{{\"n\": {n}}}')")
}

fn ns(numbers: &[u32]) -> Vec<String> {
    numbers.iter().map(|n| format!("{{\"n\":{n}}}")).collect()
}

#[test]
fn savepoints_exception_blocks_and_rollbacks_take_their_messages_along() {
    let cluster = Cluster::installed();
    let mut listener = listener(&cluster);
    let mut client = cluster.client();
    let mut run = |sql: &str| client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    run(&format!("BEGIN; {}; ROLLBACK", n(1)));
    run(&format!("BEGIN; {}; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT", n(2), n(3), n(4)));
    run(&format!(
        "BEGIN; SAVEPOINT a; {}; SAVEPOINT b; {}; RELEASE b; SAVEPOINT c; {}; ROLLBACK TO c; RELEASE a; {}; COMMIT",
        n(5),
        n(6),
        n(7),
        n(8)
    ));
    run(&format!("BEGIN; SAVEPOINT a; SAVEPOINT b; {}; RELEASE b; ROLLBACK TO a; {}; COMMIT", n(9), n(10)));
    run("DO $$ BEGIN
             PERFORM oban_notify('gossip', '{\"n\": 11}');
             BEGIN
                 PERFORM oban_notify('gossip', '{\"n\": 12}');
                 RAISE 'undone';
             EXCEPTION WHEN OTHERS THEN PERFORM oban_notify('gossip', '{\"n\": 13}');
             END;
             COMMIT;
             PERFORM oban_notify('gossip', '{\"n\": 14}');
             ROLLBACK;
             PERFORM oban_notify('gossip', '{\"n\": 15}');
         END $$");
    assert_eq!(heard(&mut listener), ns(&[2, 4, 5, 6, 8, 10, 11, 13, 15]));

    // Equal messages are sent once, in the place of the first. A message that was rolled back does not count.
    run(&format!("BEGIN; {}; {}; {}; COMMIT", n(1), n(2), n(1)));
    run(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; {}; {}; COMMIT", n(3), n(4), n(3)));
    assert_eq!(heard(&mut listener), ns(&[1, 2, 4, 3]));
}

/// A session's queued messages end with the session, in whichever way it ends. The next session begins
/// without any.
#[test]
fn a_session_that_ends_in_the_middle_sends_nothing() {
    let cluster = Cluster::installed();
    let mut listener = listener(&cluster);
    let mut other = cluster.client();
    let begin = format!("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w'); SAVEPOINT s; {}", n(1));
    cluster.client().batch_execute(&begin).unwrap(); // the connection is closed here
    let mut client = cluster.client();
    client.batch_execute(&begin).unwrap();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    other.batch_execute(&format!("SELECT pg_terminate_backend({pid}, 10000)")).unwrap();
    other.batch_execute(&n(2)).unwrap();
    assert_eq!(heard(&mut listener), ns(&[2]));

    // A session that is killed makes the server restart. No message of before comes after it.
    let mut client = cluster.client();
    client.batch_execute(&begin).unwrap();
    cluster.crash(client.one("SELECT pg_backend_pid()"));
    let mut again = crate::support::wait_for("the server is back", || {
        let mut client = cluster.try_client("postgres", "postgres").ok()?;
        client.batch_execute("SELECT oban_listen_channels()").ok().map(|()| client)
    });
    again.batch_execute(&n(3)).unwrap();
    assert_eq!(heard(&mut again), ns(&[3]));
    assert_eq!(again.one::<i64>("SELECT count(*) FROM oban_jobs"), 0);
}

/// A deferred trigger runs within COMMIT, and its messages are sent.
#[test]
fn what_is_sent_at_the_very_end_is_sent() {
    let cluster = Cluster::installed();
    let mut listener = listener(&cluster);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE t (n int);
             CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM oban_notify('gossip', jsonb_build_object('n', NEW.n));
                 INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'late');
                 RETURN NULL;
             END $$;
             CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()",
        )
        .unwrap();
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1); COMMIT").unwrap();
    assert_eq!(heard(&mut listener), [r#"{"n":1}"#, r#"{"queue":"late"}"#]);
}

/// A wakeup is a hint, and PREPARE TRANSACTION drops it. A message that a call sent does not vanish in
/// silence.
#[test]
fn prepare_transaction_drops_wake_ups_and_refuses_messages() {
    let cluster = Cluster::installed();
    let mut listener = listener(&cluster);
    let mut client = cluster.client();
    client
        .batch_execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w'); PREPARE TRANSACTION 'jobs'")
        .unwrap();
    client.batch_execute("SELECT oban_notify('gossip', '{\"n\": 1}')").unwrap();
    client.batch_execute("COMMIT PREPARED 'jobs'").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 1);

    for sends in [&n(2), "SELECT oban_notify_many('insert', ARRAY['{}']::jsonb[])"] {
        let transaction = format!(
            "BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w'); {sends}; PREPARE TRANSACTION 'sent'"
        );
        let error = client.batch_execute(&transaction).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "0A000", "{error:?}");
        assert!(error.message().contains("oban_notify") && error.hint().unwrap().contains("COMMIT PREPARED"));
        client.batch_execute("ROLLBACK").unwrap();
    }
    assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_prepared_xacts"), 0);
    // A message that was rolled back does not stop PREPARE TRANSACTION.
    let undone = format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; PREPARE TRANSACTION 'undone'", n(3));
    client.batch_execute(&undone).unwrap();
    client.batch_execute("ROLLBACK PREPARED 'undone'; ").unwrap();
    client.batch_execute(&n(4)).unwrap();
    assert_eq!(heard(&mut listener), ns(&[1, 4]));
}

#[test]
fn a_transaction_has_a_limit_which_wake_ups_never_fail_at() {
    let cluster = Cluster::installed();
    cluster.configure(&["obanrs.max_transaction_messages = 3"]);
    cluster.client().batch_execute("SELECT pg_reload_conf()").unwrap();
    let mut listener = listener(&cluster);
    let mut client = cluster.client();
    crate::support::wait_until("the setting counts", || {
        client.one::<String>("SHOW obanrs.max_transaction_messages") == "3"
    });
    let three = format!("{}; {}; {}; {}", n(1), n(2), n(1), n(3));
    let error = client.batch_execute(&format!("BEGIN; {three}; {}", n(4))).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "54000");
    assert!(
        error.message().contains('3') && error.hint().unwrap().contains("obanrs.max_transaction_messages")
    );
    client.batch_execute("ROLLBACK").unwrap();
    let many = "SELECT oban_notify_many('gossip', ARRAY['{\"n\": 5}', '{\"n\": 6}', '{\"n\": 7}', '{\"n\": 8}']::jsonb[])";
    assert!(client.batch_execute(many).is_err());
    client
        .batch_execute(&format!(
            "BEGIN; {three}; INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'a'), ('w', 'b'); COMMIT"
        ))
        .unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 2, "the rows count, not the hints");
    assert_eq!(heard(&mut listener), ns(&[1, 2, 3]));
}

/// Postgres refuses to notify from a parallel worker. So does oban_notify, in a function that is wrongly
/// marked as parallel safe.
#[test]
fn a_parallel_worker_is_refused_as_natively() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE FUNCTION tell(i int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$
             BEGIN PERFORM oban_notify('gossip', '{}'); RETURN i; END $$;
             CREATE TABLE t AS SELECT i FROM generate_series(1, 100000) i; ANALYZE t;
             SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
             SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off",
        )
        .unwrap();
    let error = client.batch_execute("SELECT count(*) FROM t WHERE i = 7 AND tell(i) > 0").unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("parallel worker"), "{error:?}");
}
