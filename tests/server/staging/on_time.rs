//! When is a due job available, and when is its queue woken?

use super::{becomes_available, installed, schedule, sleeps};
use crate::support::{Ask, Cluster, heard, wait_until};

#[test]
fn a_due_job_is_made_available_and_its_queue_is_woken() {
    let (cluster, mut client) = installed();
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    let position: i64 = client.one("SELECT oban_position()");
    for state in ["scheduled", "retryable"] {
        let id = schedule(&mut client, "public", "q", 300);
        client.batch_execute(&format!("UPDATE oban_jobs SET state = '{state}' WHERE id = {id}")).unwrap();
        assert_eq!(heard(&mut listener).len(), 0, "not before it is due");
        becomes_available(&mut client, "public", id);
        wait_until("its queue is woken", || !heard(&mut listener).is_empty());
        let late: f64 = client.one(&format!(
            "SELECT extract(epoch FROM timezone('UTC', clock_timestamp()) - scheduled_at)::float8 FROM oban_jobs WHERE id = {id}"
        ));
        assert!(late >= 0.0, "not before it is due: {late}");
    }
    let messages: String =
        client.one(&format!("SELECT messages::text FROM oban_poll('{{insert}}', {position})"));
    assert_eq!(messages.matches(r#""queue": "q""#).count(), 2, "{messages}");
}

#[test]
fn an_insert_or_update_with_an_earlier_due_time_moves_the_alarm() {
    let (_cluster, mut client) = installed();
    schedule(&mut client, "public", "later", 3_600_000);
    let pid = sleeps(&mut client, "public");
    let first = schedule(&mut client, "public", "q", 200);
    becomes_available(&mut client, "public", first);
    // An UPDATE of the state, and one of the time.
    let retried: i64 =
        client.one("INSERT INTO oban_jobs (worker, state) VALUES ('w', 'executing') RETURNING id");
    client
        .batch_execute(&format!(
            "UPDATE oban_jobs SET state = 'retryable', scheduled_at = timezone('UTC', clock_timestamp()) + interval '200 ms'
             WHERE id = {retried};
             UPDATE oban_jobs SET scheduled_at = timezone('UTC', clock_timestamp()) WHERE queue = 'later'"
        ))
        .unwrap();
    becomes_available(&mut client, "public", retried);
    wait_until("the other, too", || {
        client.one("SELECT state = 'available' FROM oban_jobs WHERE queue = 'later'")
    });
    assert_eq!(sleeps(&mut client, "public"), pid);
}

#[test]
fn what_is_rolled_back_does_no_harm() {
    let (_cluster, mut client) = installed();
    client.batch_execute("BEGIN").unwrap();
    schedule(&mut client, "public", "q", -1_000);
    client.batch_execute("ROLLBACK; BEGIN; SAVEPOINT a").unwrap();
    schedule(&mut client, "public", "q", -1_000);
    client.batch_execute("ROLLBACK TO a").unwrap();
    let id = schedule(&mut client, "public", "kept", 100);
    client.batch_execute("COMMIT").unwrap();
    becomes_available(&mut client, "public", id);
    // A prepared transaction tells at its second commit.
    client.batch_execute("BEGIN").unwrap();
    let id = schedule(&mut client, "public", "prepared", 50);
    client.batch_execute("PREPARE TRANSACTION 'p'").unwrap();
    sleeps(&mut client, "public");
    client.batch_execute("COMMIT PREPARED 'p'").unwrap();
    becomes_available(&mut client, "public", id);
}

#[test]
fn times_that_are_null_or_infinite_do_no_harm() {
    let (_cluster, mut client) = installed();
    client.batch_execute("ALTER TABLE oban_jobs ALTER scheduled_at DROP NOT NULL").unwrap();
    for at in ["NULL", "'infinity'", "'-infinity'", "'294276-12-31 23:59:59.999999'", "'4713-01-01 00:00 BC'"]
    {
        client
            .batch_execute(&format!(
                "INSERT INTO oban_jobs (worker, queue, state, scheduled_at) VALUES ('w', $q${at}$q$, 'scheduled', {at})"
            ))
            .unwrap();
    }
    let id = schedule(&mut client, "public", "q", 100);
    becomes_available(&mut client, "public", id);
    let available: String =
        client.one("SELECT string_agg(queue, ' ' ORDER BY id) FROM oban_jobs WHERE state = 'available'");
    assert_eq!(available, "'-infinity' '4713-01-01 00:00 BC' q");
}

#[test]
fn jobs_that_are_available_before_they_are_due_are_announced_when_they_are() {
    let (cluster, mut client) = installed();
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    let insert = |client: &mut postgres::Client, queue: &str, ms: i64| {
        client
            .batch_execute(&format!(
                "INSERT INTO oban_jobs (worker, queue, scheduled_at)
                 VALUES ('w', '{queue}', timezone('UTC', clock_timestamp()) + {ms} * interval '1 ms')"
            ))
            .unwrap();
    };
    insert(&mut client, "now", 0);
    insert(&mut client, "soon", 700);
    insert(&mut client, "sooner", 400);
    insert(&mut client, "in an hour", 3_600_000);
    let queues =
        |heard: &[postgres::Notification]| heard.iter().map(|n| n.payload().to_owned()).collect::<Vec<_>>();
    let mut all = queues(&heard(&mut listener));
    assert_eq!(all, [r#"{"queue":"now"}"#]);
    wait_until("both are announced", || {
        all.extend(queues(&heard(&mut listener)));
        all.len() >= 3
    });
    assert_eq!(all[1..], [r#"{"queue":"sooner"}"#, r#"{"queue":"soon"}"#]);
    // A stager that starts knows of them, too. It wakes each queue that has a job which is due: it may have
    // become due while no stager ran.
    let before = sleeps(&mut client, "public");
    insert(&mut client, "restart", 1_500);
    client.query_one("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
    wait_until("another announces it", || {
        all.extend(queues(&heard(&mut listener)));
        all.last().is_some_and(|last| last.contains("restart"))
    });
    let mut later = all.split_off(3);
    later.sort();
    assert_eq!(later, ["now", "restart", "soon", "sooner"].map(|queue| format!("{{\"queue\":\"{queue}\"}}")));
}

/// obanrs.wakeups is about messages. Jobs of a session without wake-ups are due as well.
#[test]
fn jobs_of_a_session_without_wake_ups_are_staged() {
    let (_cluster, mut client) = installed();
    client.batch_execute("SET obanrs.wakeups = off").unwrap();
    let id = schedule(&mut client, "public", "q", 100);
    becomes_available(&mut client, "public", id);
}

/// A burst is staged in batches, and all of it.
#[test]
fn a_burst_is_staged_whole() {
    let (_cluster, mut client) = installed();
    client
        .batch_execute(
            "INSERT INTO oban_jobs (worker, queue, state, scheduled_at)
             SELECT 'w', 'q' || i % 7, 'scheduled', timezone('UTC', clock_timestamp()) - interval '1 s'
             FROM generate_series(1, 12001) i",
        )
        .unwrap();
    wait_until("all are available", || client.one("SELECT bool_and(state = 'available') FROM oban_jobs"));
}

/// A million rows wait, and nobody has analyzed the table. A look reads a few pages of the index.
#[test]
fn a_million_rows_wait_and_a_look_is_one_look_up() {
    let (_cluster, mut client) = installed();
    client
        .batch_execute(
            "INSERT INTO oban_jobs (worker, state, scheduled_at)
             SELECT 'w', 'scheduled', timezone('UTC', clock_timestamp()) + interval '1 day' + i * interval '1 ms'
             FROM generate_series(1, 1000000) i",
        )
        .unwrap();
    sleeps(&mut client, "public");
    let id = schedule(&mut client, "public", "q", 0);
    becomes_available(&mut client, "public", id);
    // The words of src/prefix/staging.rs.
    let stageable = "state OPERATOR(pg_catalog.=) ANY ('{scheduled,retryable}')";
    let now = "timezone('UTC', now())";
    let update = format!(
        "WITH due AS MATERIALIZED (
            SELECT j.ctid AS place, j.tableoid AS of, j.scheduled_at AS at FROM public.oban_jobs j
            WHERE j.{stageable} AND j.scheduled_at OPERATOR(pg_catalog.<=) {now}
            AND j.scheduled_at OPERATOR(pg_catalog.>=) '-infinity'
            ORDER BY j.scheduled_at LIMIT 20000 FOR NO KEY UPDATE SKIP LOCKED
         ), staged AS (
            UPDATE public.oban_jobs AS j SET state = 'available' FROM due
            WHERE j.ctid OPERATOR(pg_catalog.=) due.place AND j.tableoid OPERATOR(pg_catalog.=) due.of
            RETURNING true
         )
         SELECT pg_catalog.count(*), (SELECT pg_catalog.count(*) FROM staged), pg_catalog.max(due.at) FROM due"
    );
    let next = format!(
        "SELECT j.scheduled_at FROM public.oban_jobs j WHERE j.{stageable}
         AND j.scheduled_at OPERATOR(pg_catalog.>) {now} ORDER BY j.scheduled_at LIMIT 1"
    );
    let code = std::fs::read_to_string("src/prefix/staging.rs").unwrap();
    assert!(code.contains(stageable) && code.contains("FOR NO KEY UPDATE SKIP LOCKED"));
    for analyzed in [false, true] {
        for sql in [&update, &next] {
            let plan: Vec<String> =
                client.query(&format!("EXPLAIN {sql}"), &[]).unwrap().iter().map(|row| row.get(0)).collect();
            let plan = plan.join("\n");
            assert!(plan.contains("obanrs_jobs_due"), "analyzed: {analyzed}\n{plan}");
            assert!(!plan.contains("Seq Scan"), "analyzed: {analyzed}\n{plan}");
        }
        client.batch_execute("ANALYZE oban_jobs").unwrap();
    }
}

/// scheduled_at is UTC, whatever the time zone of sessions, roles and the database is.
#[test]
fn time_zones_do_not_matter() {
    let (cluster, mut client) = installed();
    client
        .batch_execute("ALTER DATABASE postgres SET timezone = 'Pacific/Kiritimati'; ALTER ROLE postgres SET timezone = 'Pacific/Pago_Pago'")
        .unwrap();
    let pid = sleeps(&mut client, "public");
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_until("another runs", || sleeps(&mut client, "public") != pid);
    let mut client = cluster.client();
    let late = schedule(&mut client, "public", "in an hour", 3_600_000);
    let id = schedule(&mut client, "public", "q", 200);
    becomes_available(&mut client, "public", id);
    assert!(client.one::<bool>(&format!("SELECT state = 'scheduled' FROM oban_jobs WHERE id = {late}")));
}

/// The wall clock is set while the stager sleeps. A job is due by the clock as it is then.
#[test]
fn steps_of_the_clock_do_no_harm() {
    let cluster = Cluster::start_with_clock(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let id = schedule(&mut client, "public", "q", 3_600_000);
    sleeps(&mut client, "public");
    cluster.step_clock(3_601);
    becomes_available(&mut client, "public", id);
    let id = schedule(&mut client, "public", "q", 1_000);
    cluster.step_clock(-7_200);
    let soon = schedule(&mut client, "public", "q", 100);
    becomes_available(&mut client, "public", soon);
    assert!(client.one::<bool>(&format!("SELECT state = 'scheduled' FROM oban_jobs WHERE id = {id}")));
    cluster.step_clock(7_200);
    becomes_available(&mut client, "public", id);
}

/// A partitioned table, with partitions whose columns have another order, and one by state.
#[test]
fn partitions_are_staged() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(
            "SELECT oban_install('model', stage => false); CREATE SCHEMA p;
             CREATE TABLE p.oban_jobs (LIKE model.oban_jobs INCLUDING DEFAULTS) PARTITION BY LIST (state);
             CREATE TABLE p.waiting PARTITION OF p.oban_jobs FOR VALUES IN ('scheduled');
             CREATE TABLE p.rest (LIKE model.oban_jobs INCLUDING DEFAULTS);
             ALTER TABLE p.rest DROP COLUMN queue; ALTER TABLE p.rest ADD queue text NOT NULL DEFAULT 'default';
             ALTER TABLE p.oban_jobs ATTACH PARTITION p.rest DEFAULT;
             SELECT oban_install('p', stage => true)",
        )
        .unwrap();
    sleeps(&mut client, "p");
    let id = schedule(&mut client, "p", "q", 100);
    becomes_available(&mut client, "p", id);
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM p.rest WHERE state = 'available'"),
        1,
        "the row has moved"
    );
}

/// A table of another job system's make: its state is a text.
#[test]
fn a_state_that_is_a_text_is_staged() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE SCHEMA t; CREATE TABLE t.oban_jobs {}; SELECT oban_install('t', stage => true)",
            crate::support::JOBS
        ))
        .unwrap();
    sleeps(&mut client, "t");
    client
        .batch_execute(
            "INSERT INTO t.oban_jobs (id, queue, state, scheduled_at)
             VALUES (1, 'q', 'scheduled', timezone('UTC', clock_timestamp()) + interval '100 ms')",
        )
        .unwrap();
    becomes_available(&mut client, "t", 1);
}
