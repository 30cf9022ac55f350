//! Do elections survive every kind of statement on the table?

use std::sync::atomic::{AtomicBool, Ordering};

use postgres::Client;

use super::{Stop, Strangers, assert_no_leaks, come_and_go, complaints};
use crate::support::{Ask, Cluster, wait_until};

/// Unusual statements fire the triggers: each row gets a term, and no row is lost.
#[test]
fn foreign_rows_come_by_every_way_of_sql() {
    let cluster = Cluster::installed();
    let (mut client, mut other) = (cluster.client(), cluster.client());
    client.batch_execute("ALTER TABLE oban_peers ADD COLUMN gone text, ADD COLUMN kept int; ALTER TABLE oban_peers DROP COLUMN gone").unwrap();
    let row = |name: &str| {
        format!("INSERT INTO oban_peers VALUES ('{name}', 'f', now(), now() + interval '1 hour')")
    };
    let has_term = "SELECT bool_and(term IS NOT NULL) AND count(*) > 0 FROM oban_peers";
    // Another session draws terms between this row's term and its commit.
    let draws = "SELECT oban_join('z', 'Drawn', '1 hour', replace => true)";
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {level}; {}; SAVEPOINT s; {}; ROLLBACK TO s; {}",
                row("one"),
                row("two"),
                row("three")
            ))
            .unwrap();
        other.batch_execute(draws).unwrap();
        client.batch_execute(&format!("{}; COMMIT", row("two"))).unwrap();
        assert!(client.one::<bool>(has_term), "{level}");
        client.batch_execute("DELETE FROM oban_peers").unwrap();
    }
    let mut copy = client.copy_in("COPY oban_peers (name, node, started_at, expires_at) FROM STDIN").unwrap();
    for i in 0..500 {
        use std::io::Write as _;
        writeln!(copy, "c{i}\tf\t2020-01-01\t2040-01-01").unwrap();
    }
    copy.finish().unwrap();
    client.batch_execute(
        "DO $$ BEGIN
             FOR i IN 1..100 LOOP
                 BEGIN
                     INSERT INTO oban_peers VALUES ('d' || i, 'f', now(), now() + interval '1 hour');
                     IF i % 2 = 0 THEN RAISE division_by_zero; END IF;
                 EXCEPTION WHEN division_by_zero THEN
                     INSERT INTO oban_peers VALUES ('e' || i, 'f', now(), now() + interval '1 hour');
                 END;
             END LOOP;
         END $$;
         WITH w AS (INSERT INTO oban_peers SELECT 'w' || i, 'f', now(), now() + interval '1 hour' FROM generate_series(1, 50) i RETURNING name)
             SELECT count(*) FROM w",
    )
    .unwrap();
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM oban_peers WHERE node = 'f' AND term IS NOT NULL"),
        650
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) - count(DISTINCT term) FROM oban_peers"),
        0,
        "terms are of one row each"
    );
    client.batch_execute("BEGIN; DELETE FROM oban_peers; PREPARE TRANSACTION 'p'").ok();
    client.batch_execute("ROLLBACK").unwrap();
    assert_no_leaks(&cluster);
}

/// The table's owner runs every kind of command on the table, beside members, fences and foreign nodes.
#[test]
fn commands_on_the_table_break_no_election() {
    let mut strangers = Strangers::with(&["deadlock_timeout = 50ms"]);
    for sql in [
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE s LOCATION ''",
        "GRANT CREATE ON TABLESPACE s TO t",
    ] {
        strangers.root.batch_execute(sql).unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut clients: Vec<Client> = (0..3).map(|_| strangers.cluster.client_as("postgres", "t")).collect();
    std::thread::scope(|scope| {
        let (mut fencing, mut foreign, mut bound) =
            (clients.pop().unwrap(), clients.pop().unwrap(), clients.pop().unwrap());
        let stop = &stop;
        let _stop = Stop(stop);
        scope.spawn(move || come_and_go(&mut fencing, "t", stop));
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // The table may be gone, or may be another one by now.
                let row = "INSERT INTO t.oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour') ON CONFLICT DO NOTHING";
                let _ = foreign.batch_execute(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE; {row}; COMMIT"));
                let _ = foreign.batch_execute("ROLLBACK");
                let _ = foreign.batch_execute("DELETE FROM t.oban_peers WHERE node = 'f'");
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let id: i64 = bound.one("SELECT oban_join('a', prefix => 't', candidate => true)");
                let _ = bound.query("SELECT oban_fence(oban_term(prefix => 't'), prefix => 't')", &[]);
                bound.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
            }
        });
        for _ in 0..12 {
            for ddl in [
                "TRUNCATE t.oban_peers",
                "BEGIN; TRUNCATE t.oban_peers; ROLLBACK",
                "VACUUM FULL t.oban_peers",
                "CLUSTER t.oban_peers USING oban_peers_pkey",
                "ALTER TABLE t.oban_peers SET TABLESPACE s; ALTER TABLE t.oban_peers SET TABLESPACE pg_default",
                "ALTER INDEX t.oban_peers_pkey SET TABLESPACE s; ALTER INDEX t.oban_peers_pkey SET TABLESPACE pg_default",
                "ALTER TABLE t.oban_peers SET LOGGED; ALTER TABLE t.oban_peers SET UNLOGGED",
                "BEGIN; LOCK TABLE t.oban_peers IN SHARE MODE; SELECT pg_sleep(0.06); COMMIT",
                "BEGIN; LOCK TABLE t.oban_peers IN SHARE ROW EXCLUSIVE MODE; COMMIT",
                "ALTER TABLE t.oban_peers ADD COLUMN x int DEFAULT 7; ALTER TABLE t.oban_peers ALTER COLUMN x DROP DEFAULT",
                "ALTER TABLE t.oban_peers DROP COLUMN x",
                "ALTER TABLE t.oban_peers ALTER COLUMN name TYPE varchar; ALTER TABLE t.oban_peers ALTER COLUMN name TYPE text",
                "ALTER TABLE t.oban_peers RENAME TO other; ALTER TABLE t.other RENAME TO oban_peers",
                "BEGIN; DROP TABLE t.oban_peers; ROLLBACK",
                "DROP TABLE t.oban_peers; SELECT oban_install('t')",
                "BEGIN; ALTER TABLE t.oban_peers ADD CHECK (t.ok(name)) NOT VALID; SAVEPOINT s; DROP TABLE t.oban_peers; ROLLBACK TO s; ROLLBACK",
                "CREATE UNIQUE INDEX u ON t.oban_peers (name); DROP INDEX t.u",
                "ALTER TABLE t.oban_peers ADD COLUMN k text; CREATE INDEX k ON t.oban_peers (k, expires_at); ALTER TABLE t.oban_peers DROP COLUMN k",
            ] {
                // A command may fail by a deadlock only.
                if let Err(e) = strangers.tenant.batch_execute(ddl) {
                    let db = e.as_db_error().unwrap_or_else(|| panic!("{ddl}: {e:?}"));
                    assert_eq!(db.code().code(), "40P01", "{ddl}: {e:?}");
                    strangers.tenant.batch_execute("ROLLBACK").unwrap();
                }
            }
            strangers.others_elect();
        }
    });
    strangers.tenant.batch_execute("SELECT oban_install('t')").unwrap();
    let id = strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers.renew_and_leave(id, "after all of them");
    strangers.nothing_was_seen("commands");
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
    let odd: Vec<String> = complaints(&strangers.cluster)
        .into_iter()
        .filter(|line| {
            !["wait for a lock", "holds no elections", "keeps changing"]
                .iter()
                .any(|known| line.contains(known))
        })
        .collect();
    assert_eq!(odd, [] as [String; 0]);
}
