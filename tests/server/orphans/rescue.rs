//! `oban_rescue`: what it writes, which roles may call it, and what other sessions do meanwhile.

use std::sync::Arc;
use std::thread;

use postgres::Client;

use super::{fetch, leader, orphans_after, server};
use crate::support::{Ask, Cluster, code, heard, wait_until};

/// What a call of oban_rescue returns, such as "1 available, 2 discarded".
fn rescued(client: &mut Client, arguments: &str) -> String {
    client.one(&format!(
        "SELECT coalesce(string_agg(id || ' ' || state, ', ' ORDER BY id), '') FROM oban_rescue({arguments})"
    ))
}

/// Makes the process of these jobs gossip once, and waits until it is gone.
fn lose(client: &mut Client, jobs: &[i64]) {
    for job in jobs {
        fetch(client, *job, "lost", "u1", "1 minute");
    }
    client
        .batch_execute(r#"SELECT oban_gossip_put('lost', 'default', '{"uuid":"u1","running":[]}', ttl => '100 milliseconds')"#)
        .unwrap();
    let gone: Vec<_> = jobs.iter().map(|job| format!("{job} gone")).collect();
    wait_until("the process is gone", || orphans_after(client, "0s") == gone.join(", "));
}

#[test]
fn jobs_become_available_or_are_discarded_with_an_error() {
    let (_cluster, mut client) = server(&[]);
    client
        .batch_execute(
            "UPDATE oban_jobs SET max_attempts = 1 WHERE id = 2;
             UPDATE oban_jobs SET queue = 'other' WHERE id IN (3, 2)",
        )
        .unwrap();
    for job in [1, 2, 3] {
        fetch(&mut client, job, "lost", "u1", "1 minute");
    }
    fetch(&mut client, 4, "never heard", "u0", "1 hour");
    client
        .batch_execute(
            r#"SELECT oban_gossip_put('lost', 'default', '{"uuid":"u1"}', ttl => '100 milliseconds')"#,
        )
        .unwrap();
    let all = "1 gone, 2 gone, 3 gone, 4 unknown";
    wait_until("it is gone", || orphans_after(&mut client, "0s") == all);
    let before = "SELECT string_agg(to_jsonb(j) - '{state,discarded_at,errors}'::text[] #>> '{}', '' ORDER BY id) FROM oban_jobs j";
    let unchanged: String = client.one(before);
    client.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    assert_eq!(rescued(&mut client, "grace => '0s'"), "1 available, 2 discarded, 3 available");
    let woken: Vec<String> = heard(&mut client).iter().map(|n| n.payload().to_owned()).collect();
    assert_eq!(woken, [r#"{"queue":"default"}"#, r#"{"queue":"other"}"#]);
    assert_eq!(client.one::<String>(before), unchanged, "nothing else is written");
    let written = "SELECT string_agg(concat_ws(' ', id, state, discarded_at IS NOT NULL, cardinality(errors)), ', ' ORDER BY id)
         FROM oban_jobs WHERE id < 5";
    assert_eq!(
        client.one::<String>(written),
        "1 available f 0, 2 discarded t 1, 3 available f 0, 4 executing f 0"
    );
    // The error has the keys of Oban's own, and a time with its zone.
    let error =
        "SELECT e->>'attempt' = '1' AND e->>'at' ~ '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{6}Z$'
             AND (e->>'at')::timestamptz > now() - interval '1 minute' AND e->>'error' LIKE '%node lost%'
             AND (SELECT count(*) FROM jsonb_object_keys(e)) = 3
         FROM oban_jobs, unnest(errors) e WHERE id = 2";
    assert!(client.one::<bool>(error));
    assert_eq!(rescued(&mut client, "grace => '0s'"), "");
    assert_eq!(rescued(&mut client, "grace => '0s', include_unknown => true"), "4 available");
}

/// Oban for Python has `errors` as one jsonb, and counts the rescues in `meta`.
#[test]
fn a_table_of_oban_for_python_is_written_as_that_does() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    let made = std::fs::read_to_string("tests/fixtures/oban/python-0.7.0.sql").unwrap();
    client.batch_execute(&made).unwrap();
    client
        .batch_execute(
            r#"SET search_path = public; CREATE EXTENSION obanrs; SELECT oban_install();
               INSERT INTO oban_jobs (worker, state, attempt, max_attempts, attempted_by, attempted_at, meta)
               SELECT 'W', 'executing', a, m, '{lost,u1}', timezone('UTC', now()) - interval '1 minute', meta::jsonb
               FROM (VALUES (1, 3, '{"a": 1}'), (3, 3, '{"rescued": 1}'), (2, 3, '{"rescued": 4}'),
                            (2, 3, '{"rescued": "x"}')) v (a, m, meta)"#,
        )
        .unwrap();
    let gossip = r#"SELECT oban_gossip_put('lost', 'default', '{"uuid":"u1"}', ttl => '100 milliseconds')"#;
    client.batch_execute(gossip).unwrap();
    let orphans = "SELECT count(*) FROM oban_orphans(grace => '0s') WHERE reason = 'gone'";
    wait_until("it is gone", || client.one::<i64>(orphans) == 4);
    assert_eq!(rescued(&mut client, "grace => '0s'"), "1 available, 2 discarded, 3 available, 4 available");
    let written = "SELECT string_agg(concat_ws(' ', state, attempt, meta, jsonb_array_length(errors)), ', ' ORDER BY id) FROM oban_jobs";
    assert_eq!(
        client.one::<String>(written),
        r#"available 1 {"a": 1, "rescued": 1} 0, discarded 3 {"rescued": 1} 1, available 2 {"rescued": 5} 0, available 2 {"rescued": 1} 0"#
    );
    assert_eq!(client.one::<i32>("SELECT (errors->0->>'attempt')::int FROM oban_jobs WHERE id = 2"), 3);
}

/// Each job is taken once, however many rescue at a time.
#[test]
fn rescuers_at_the_same_time_take_each_job_once() {
    let (cluster, mut client) = server(&[]);
    client.batch_execute("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(11, 500)").unwrap();
    client
        .batch_execute(
            r#"UPDATE oban_jobs SET state = 'executing', attempt = 1, attempted_by = '{lost,u1}',
                   attempted_at = timezone('UTC', now()) - interval '1 minute';
               SELECT oban_gossip_put('lost', 'default', '{"uuid":"u1"}', ttl => '100 milliseconds')"#,
        )
        .unwrap();
    let orphans = "SELECT count(*) FROM oban_orphans(grace => '0s') WHERE reason = 'gone'";
    wait_until("it is gone", || client.one::<i64>(orphans) == 500);
    let rescuers: Vec<_> = (0..4)
        .map(|_| {
            let cluster: Arc<Cluster> = cluster.clone();
            thread::spawn(move || {
                let ids = "SELECT coalesce(array_agg(id), '{}') FROM oban_rescue(grace => '0s')";
                cluster.client().one::<Vec<i64>>(ids)
            })
        })
        .collect();
    let mut all: Vec<i64> = rescuers.into_iter().flat_map(|r| r.join().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=500).collect::<Vec<i64>>());
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM oban_jobs WHERE state = 'available' AND attempt = 1"),
        500
    );
}

/// A job is fetched again between the look and the lock, by a trigger that stands for another session.
#[test]
fn a_job_that_was_fetched_again_stays() {
    let (_cluster, mut client) = server(&[]);
    lose(&mut client, &[1, 2]);
    client
        .batch_execute(
            "CREATE FUNCTION fetch_the_other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 UPDATE oban_jobs SET attempt = attempt + 1, attempted_by = '{b,u2}' WHERE id = 2 AND attempt = 1;
                 RETURN NULL; END $$;
             CREATE TRIGGER first BEFORE UPDATE ON oban_jobs FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
                 EXECUTE FUNCTION fetch_the_other()",
        )
        .unwrap();
    // The first of the two statements that oban_rescue runs fires the trigger.
    assert_eq!(rescued(&mut client, "grace => '0s'"), "1 available");
    assert_eq!(
        client.one::<String>("SELECT concat_ws(' ', state, attempt) FROM oban_jobs WHERE id = 2"),
        "executing 2"
    );
}

#[test]
fn with_a_term_it_is_within_the_fence() {
    let (cluster, mut client) = server(&[]);
    lose(&mut client, &[1, 2]);
    let mut leader = leader(&cluster);
    let term: i64 = leader.one("SELECT oban_term()");
    assert_eq!(code(&mut client, &format!("SELECT * FROM oban_rescue(term => {})", term - 1)), "40001");
    assert_eq!(
        code(&mut client, &format!("SELECT * FROM oban_rescue(term => {term}, name => 'Other')")),
        "40001"
    );
    leader.batch_execute("BEGIN").unwrap();
    assert_eq!(rescued(&mut leader, &format!("grace => '0s', term => {term}")), "1 available, 2 available");
    // Nobody else leads until the transaction has ended.
    let mut other = cluster.client();
    other
        .batch_execute(
            "SELECT oban_join('other'); SELECT oban_leave(member) FROM oban_members WHERE node = 'leader'",
        )
        .unwrap();
    assert!(!other.one::<bool>("SELECT oban_is_leader()"));
    leader.batch_execute("COMMIT").unwrap();
    wait_until("the other leads", || other.one("SELECT oban_is_leader()"));
    lose(&mut client, &[3]);
    assert_eq!(
        code(&mut leader, &format!("SELECT * FROM oban_rescue(grace => '0s', term => {term})")),
        "40001"
    );
    assert_eq!(client.one::<String>("SELECT state::text FROM oban_jobs WHERE id = 3"), "executing");
}

/// The statements are the caller's own: rights, policies and triggers of the table count.
#[test]
fn it_is_an_update_of_the_caller() {
    let (cluster, mut client) = server(&[]);
    lose(&mut client, &[1, 2, 3]);
    client
        .batch_execute(
            "CREATE ROLE reader LOGIN; GRANT SELECT ON oban_jobs TO reader;
             CREATE ROLE steerer LOGIN; GRANT UPDATE ON oban_jobs TO steerer;
             CREATE ROLE app LOGIN; GRANT SELECT, UPDATE ON oban_jobs TO app;
             CREATE POLICY see ON oban_jobs FOR SELECT TO app, reader USING (true);
             CREATE POLICY own ON oban_jobs FOR UPDATE TO app USING (id <> 2);
             ALTER TABLE oban_jobs ENABLE ROW LEVEL SECURITY;
             CREATE TABLE ran (as_role text); GRANT INSERT ON ran TO PUBLIC;
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO ran VALUES (current_user); RETURN NEW; END $$;
             CREATE TRIGGER note BEFORE UPDATE ON oban_jobs FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .unwrap();
    for role in ["reader", "steerer"] {
        let mut session = cluster.client_as("postgres", role);
        assert_eq!(code(&mut session, "SELECT * FROM oban_rescue(grace => '0s')"), "42501", "{role}");
    }
    let mut app = cluster.client_as("postgres", "app");
    assert_eq!(rescued(&mut app, "grace => '0s'"), "1 available, 3 available");
    assert_eq!(client.one::<String>("SELECT string_agg(as_role, ' ') FROM ran"), "app app");
    // Operators and functions of the caller's search path do not count.
    client
        .batch_execute(
            "DROP TRIGGER note ON oban_jobs; CREATE SCHEMA evil;
             CREATE FUNCTION evil.f(oban_job_state, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
             CREATE OPERATOR evil.= (LEFTARG = oban_job_state, RIGHTARG = text, FUNCTION = evil.f);
             CREATE FUNCTION evil.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
             CREATE TABLE evil.oban_jobs (x int);
             SET search_path = evil, public, pg_catalog",
        )
        .unwrap();
    let sql = "SELECT pg_catalog.array_agg(id) FROM public.oban_rescue(grace => '0s')";
    assert_eq!(client.one::<Vec<i64>>(sql), [2]);
}

/// In a fixed snapshot a job may have changed since: then the call fails, or leaves the job.
#[test]
fn a_fixed_snapshot_takes_no_job_that_changed_since() {
    let (cluster, mut client) = server(&[]);
    let mut old = cluster.client();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM oban_jobs").unwrap();
    lose(&mut client, &[1]);
    assert_eq!(rescued(&mut old, "grace => '0s'"), "", "it was fetched after the snapshot");
    old.batch_execute("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM oban_jobs")
        .unwrap();
    client.batch_execute("UPDATE oban_jobs SET priority = 1 WHERE id = 1").unwrap();
    assert_eq!(code(&mut old, "SELECT * FROM oban_rescue(grace => '0s')"), "40001");
    old.batch_execute("ROLLBACK").unwrap();
    assert_eq!(rescued(&mut old, "grace => '0s'"), "1 available");
}
