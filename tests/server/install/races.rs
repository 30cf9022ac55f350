//! Does `oban_install` alter only the table that it has tested, while other sessions change tables and
//! schemas?

use std::sync::atomic::{AtomicBool, Ordering};

use postgres::Client;

use super::{PEERS, contents, oid, runs_as_others, tenant, triggers};
use crate::support::{Ask, Cluster, JOBS, code, wait_until};

/// Runs `changes` in the tenant's open transaction while `call` waits for its lock, and commits. Returns the
/// result of the call.
fn while_it_waits(
    cluster: &Cluster,
    caller: &mut Client,
    call: &str,
    tenant: &mut Client,
    changes: &str,
) -> Result<(), postgres::Error> {
    tenant.batch_execute(&format!("BEGIN; {changes}")).unwrap();
    let pid: i32 = caller.one("SELECT pg_backend_pid()");
    std::thread::scope(|scope| {
        let called = scope.spawn(|| caller.batch_execute(call));
        let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
        let mut other = cluster.client();
        wait_until("it waits for the lock", || other.one(&waits));
        tenant.batch_execute("COMMIT").unwrap();
        called.join().unwrap()
    })
}

/// `oban_install` tests a table again that was replaced while the call waited for its lock.
#[test]
fn a_table_is_tested_again_once_it_is_locked() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    let fresh = format!(
        "DROP TABLE IF EXISTS t.oban_jobs, t.oban_peers, t.others; CREATE TABLE t.oban_jobs {JOBS};
         {PEERS}, term bigint); INSERT INTO t.oban_peers VALUES ('Oban', 'n', now(), now(), 1)"
    );
    let install = "SELECT oban_install('t')";
    for (changes, expected) in [
        ("ALTER TABLE t.oban_peers ALTER term TYPE t.e USING 'a'", Some("22023")),
        ("ALTER TABLE t.oban_peers ALTER node TYPE t.dt", Some("22023")),
        (
            "ALTER TABLE t.oban_peers RENAME TO others; CREATE VIEW t.oban_peers AS SELECT 1 AS name",
            Some("22023"),
        ),
        ("DROP TABLE t.oban_peers", Some("40001")),
        ("ALTER TABLE t.oban_jobs SET SCHEMA u", Some("40001")),
        ("ALTER TABLE t.oban_peers DROP COLUMN term", None),
    ] {
        tenant.batch_execute(&format!("CREATE SCHEMA u; {fresh}")).unwrap();
        let result = while_it_waits(&cluster, &mut root, install, &mut tenant, changes);
        let found = result.err().map(|e| e.code().unwrap().code().to_owned());
        assert_eq!(found.as_deref(), expected, "{changes}");
        tenant.batch_execute("DROP VIEW IF EXISTS t.v; DROP SCHEMA u CASCADE").unwrap();
        if changes.contains("VIEW") {
            tenant.batch_execute("DROP VIEW t.oban_peers").unwrap();
        }
    }
    assert_eq!(runs_as_others(&mut root), 0);

    // The call alters the table that has taken the place, and not the one that it waited for.
    tenant.batch_execute(&fresh).unwrap();
    let changes = format!("ALTER TABLE t.oban_peers RENAME TO others; {PEERS})");
    while_it_waits(&cluster, &mut root, install, &mut tenant, &changes).unwrap();
    assert_eq!((triggers(&mut root, "t.others"), triggers(&mut root, "t.oban_peers")), (0, 3));

    // A table that was given away is refused.
    root.batch_execute("CREATE ROLE other; GRANT other TO tenant; GRANT CREATE, USAGE ON SCHEMA t TO other")
        .unwrap();
    let mut second = cluster.client_as("postgres", "tenant");
    tenant.batch_execute(&fresh).unwrap();
    root.batch_execute("BEGIN; ALTER TABLE t.oban_peers OWNER TO postgres").unwrap();
    let pid: i32 = second.one("SELECT pg_backend_pid()");
    let refused = std::thread::scope(|scope| {
        let called = scope.spawn(|| second.batch_execute(install));
        let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
        wait_until("it waits for the lock", || tenant.one(&waits));
        root.batch_execute("COMMIT").unwrap();
        called.join().unwrap()
    });
    assert_eq!(refused.unwrap_err().code().unwrap().code(), "42501");
}

/// `oban_install` is refused where ALTER TABLE would be refused.
#[test]
fn a_table_that_this_session_is_reading_is_not_altered() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    tenant
        .batch_execute(&format!(
            "CREATE TABLE t.oban_jobs {JOBS}; {PEERS});
             INSERT INTO t.oban_peers VALUES ('Oban', 'n', now(), 'infinity')"
        ))
        .unwrap();
    assert_eq!(code(&mut root, "SELECT oban_install('t') FROM t.oban_peers"), "55006");
    tenant.batch_execute("SELECT oban_install('t')").unwrap();
    assert_eq!(code(&mut root, "SELECT oban_uninstall('t') FROM t.oban_peers"), "55006");
}

/// A schema's owner gives its name to another schema, again and again, while a superuser installs and
/// uninstalls. All changes are in one schema, and none in the other.
#[test]
fn a_schema_that_is_swapped_gets_nothing_of_another_ones() {
    const ROUNDS: usize = 300;
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    tenant
        .batch_execute(
            "CREATE SCHEMA honest; CREATE SCHEMA odd; CREATE DOMAIN odd.oban_job_state AS text CHECK (t.yes(VALUE));
             CREATE TABLE odd.oban_jobs (
                 id t.di NOT NULL, state t.e, queue t.dt, priority t.e, scheduled_at timestamp, args jsonb, meta jsonb,
                 cancelled_at timestamp, discarded_at timestamp CHECK (t.yes('x')));
             CREATE TABLE odd.oban_peers (
                 name text NOT NULL CHECK (t.yes(name)), node text, started_at timestamp, expires_at timestamp, term t.e);
             INSERT INTO odd.oban_jobs (id, state, queue, priority, args) SELECT i, 'a', 'q', 'a', '{}' FROM generate_series(1, 3) i;
             INSERT INTO odd.oban_peers VALUES ('Oban', 'n', now(), now(), 'a')",
        )
        .unwrap();
    let (honest, odd) = (oid(&mut root, "honest"), oid(&mut root, "odd"));
    let before = contents(&mut root, odd);

    let swap = "BEGIN; ALTER SCHEMA honest RENAME TO spare; ALTER SCHEMA odd RENAME TO honest;
                ALTER SCHEMA spare RENAME TO odd; COMMIT";
    let clear = format!(
        "DO $$ DECLARE s text := {honest}::regnamespace; BEGIN
             EXECUTE format('DROP TABLE IF EXISTS %s.oban_jobs, %s.oban_peers', s, s);
             EXECUTE format('DROP TYPE IF EXISTS %s.oban_job_state', s); END $$"
    );
    let done = AtomicBool::new(false);
    let (mut installed, mut failures) = (0, Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The swaps come at times right after each other, and at times with work in between. So each step
            // of a call meets one.
            for i in (0..10).cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                let work = format!("SELECT count(*) FROM generate_series(1, {})", 500 << i);
                for sql in [swap, &work, if i % 3 == 0 { &clear } else { swap }] {
                    if let Err(e) = tenant.batch_execute(sql) {
                        // These are a deadlock, or a table that came in between.
                        assert!(["40P01", "2BP01"].contains(&e.code().unwrap().code()), "{e:?}");
                        tenant.batch_execute("ROLLBACK").unwrap();
                    }
                }
            }
        });
        let mut call = |sql| match root.batch_execute(sql) {
            Ok(()) => true,
            Err(e) => {
                failures.push(e.code().map_or_else(|| e.to_string(), |code| code.code().to_owned()));
                false
            }
        };
        for _ in 0..ROUNDS {
            installed += usize::from(call("SELECT oban_install('honest')"));
            call("SELECT oban_uninstall('honest')");
        }
        done.store(true, Ordering::Relaxed);
    });
    failures.sort();
    failures.dedup();
    assert!(installed > ROUNDS / 20, "it hardly ever worked: {installed}, {failures:?}");
    assert!(failures.iter().all(|code| code.len() == 5 && !code.starts_with("XX")), "{failures:?}");
    assert_eq!(runs_as_others(&mut root), 0);
    assert_eq!(contents(&mut root, odd), before, "nothing was done in the odd one");
    let name: String = root.one(&format!("SELECT {honest}::regnamespace::text"));
    root.batch_execute(&format!("SELECT oban_install('{name}')")).unwrap();
    assert!(root.one::<bool>(&format!("SELECT ok FROM oban_check() WHERE item = 'prefix {name}'")));
}
