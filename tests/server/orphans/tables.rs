//! Which tables does `oban_orphans` read, by which rights and which snapshot?

use postgres::Client;

use super::{Process, Way, fetch, orphans, server};
use crate::support::{Ask, code, wait_until};

/// A job that ends is no orphan in a transaction that began before it ended.
#[test]
fn an_old_snapshot_sees_no_orphans() {
    let (cluster, mut client) = server(&[]);
    let process = Process::start(&cluster, "a", "u1", "[1]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE running = 1") == 1);
    let mut old = cluster.client();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM oban_jobs").unwrap();
    process.fetches(&mut client, 2, "10 minutes");
    client.batch_execute("UPDATE oban_jobs SET state = 'completed' WHERE id = 1").unwrap();
    process.runs("[]");
    let executing = "SELECT array_agg(id ORDER BY id) FROM oban_jobs WHERE state = 'executing'";
    let found = |c: &mut Client| -> Vec<i64> {
        c.one("SELECT coalesce(array_agg(id), '{}') FROM oban_orphans(grace => '1s')")
    };
    wait_until("what it lost is found", || found(&mut old) == [2]);
    assert_eq!(old.one::<Vec<i64>>(executing), [1], "by the transaction's own snapshot");
    // A transaction sees what it has done itself.
    client.batch_execute("BEGIN; UPDATE oban_jobs SET state = 'available' WHERE id = 2").unwrap();
    assert!(found(&mut client).is_empty());
    client.batch_execute("ROLLBACK").unwrap();
    drop(process);
}

/// The table is read with the caller's rights and policies, and with no operators of users.
#[test]
fn a_role_sees_what_it_may_read() {
    let (cluster, mut client) = server(&[]);
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE ROLE peeper LOGIN; CREATE ROLE nobody LOGIN;
             GRANT SELECT ON oban_jobs TO app; GRANT SELECT (id, state) ON oban_jobs TO peeper;
             UPDATE oban_jobs SET queue = 'secret' WHERE id = 2;
             CREATE POLICY p ON oban_jobs FOR SELECT TO app USING (queue <> 'secret');
             ALTER TABLE oban_jobs ENABLE ROW LEVEL SECURITY",
        )
        .unwrap();
    for job in 1..=2 {
        fetch(&mut client, job, "a", "u", "1 hour");
    }
    wait_until("all are listed", || orphans(&mut client) == "1 unknown, 2 unknown");
    let ids = "SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM oban_orphans(grace => '3s')";
    assert_eq!(cluster.client_as("postgres", "app").one::<Vec<i64>>(ids), [1]);
    for role in ["peeper", "nobody"] {
        assert_eq!(code(&mut cluster.client_as("postgres", role), ids), "42501", "{role}");
    }
    // Another prefix has its own jobs.
    client.batch_execute("SELECT oban_install('next')").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_orphans('next', '1s')"), 0);
    client.batch_execute("ALTER SCHEMA next RENAME TO \"Odd \"\"one\"").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_orphans('Odd \"one', '1s')"), 0);
    assert_eq!(code(&mut client, "SELECT * FROM oban_orphans('next')"), "3F000");
    client.batch_execute("CREATE SCHEMA bare").unwrap();
    assert_eq!(code(&mut client, "SELECT * FROM oban_orphans('bare')"), "42P01");

    client
        .batch_execute(
            "CREATE SCHEMA evil;
             CREATE FUNCTION evil.f(oban_job_state, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
             CREATE OPERATOR evil.= (LEFTARG = oban_job_state, RIGHTARG = text, FUNCTION = evil.f);
             CREATE FUNCTION evil.date_part(text, timestamp) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
             CREATE TABLE evil.oban_jobs (x int);
             SET search_path = evil, public, pg_catalog",
        )
        .unwrap();
    assert_eq!(
        client.one::<Vec<i64>>("SELECT pg_catalog.array_agg(id) FROM oban_orphans(grace => '3s')"),
        [1, 2]
    );
}

/// The table has values that are no time, and columns of types that Oban's tables do not have.
#[test]
fn any_table_is_read() {
    let (_cluster, mut client) = server(&[]);
    client
        .batch_execute(
            "CREATE SCHEMA own;
             CREATE TABLE own.oban_jobs (id int, state text, queue varchar, worker name, attempted_by varchar[], attempted_at timestamptz)
                 PARTITION BY LIST (state);
             CREATE TABLE own.part PARTITION OF own.oban_jobs DEFAULT;
             INSERT INTO own.oban_jobs VALUES
                 (1, 'executing', 'default', 'W', '{a,u}', now() - interval '1 hour'), (2, 'executing', NULL, NULL, NULL, NULL),
                 (3, 'executing', 'q', 'W', ARRAY[repeat('x', 1000000)], '-infinity'), (4, 'executing', 'q', 'W', '{}', 'infinity'),
                 (5, 'available', 'q', 'W', NULL, NULL)",
        )
        .unwrap();
    let sql = "SELECT coalesce(string_agg(id || ' ' || reason, ', ' ORDER BY id), '') FROM oban_orphans('own', '1s')";
    wait_until("they are listed", || client.one::<String>(sql) == "1 unknown, 2 unknown, 3 unknown");
    let put =
        "SELECT oban_gossip_put('a', 'default', '{\"uuid\": \"u\", \"running\": [1]}', prefix => 'own')";
    client.batch_execute(put).unwrap();
    wait_until("it is known", || client.one::<String>(sql) == "1 gone, 2 unknown, 3 unknown");
    // The row's time counts, in any time zone.
    client
        .batch_execute("SET timezone = 'Asia/Tokyo'; UPDATE own.oban_jobs SET attempted_at = now()")
        .unwrap();
    assert_eq!(client.one::<String>(sql), "");
}
