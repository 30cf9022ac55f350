//! Does code of a table's owner run for an election, while indexes and schemas change?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Stop, Strangers, WATCH, assert_no_leaks, code_of, come_and_go, complaints};
use crate::support::{Ask, Cluster, wait_until};

/// This is the opposite case: Postgres' own operator class calls a range type's code, once the index has a
/// second page.
#[test]
fn a_range_types_code_does_not_run_for_a_renewal() {
    let mut strangers = Strangers::new();
    strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers
        .tenant
        .batch_execute(
            "ALTER TABLE t.oban_peers ADD COLUMN s t.span, DISABLE TRIGGER USER;
             INSERT INTO t.oban_peers
                 SELECT 'n' || i, 'x', now(), 'infinity', 1, NULL, t.span(i, i + 10) FROM generate_series(1, 2000) i;
             UPDATE t.oban_peers SET s = t.span(-100000, 100000) WHERE name = 'Oban';
             CREATE INDEX ON t.oban_peers USING gist (s); CREATE INDEX ON t.oban_peers (expires_at);
             ALTER TABLE t.oban_peers ENABLE TRIGGER USER",
        )
        .unwrap();
    let warned = |s: &Strangers| {
        complaints(&s.cluster).iter().any(|line| line.contains("a type that is not Postgres' own"))
    };
    wait_until("the keeper says that it leaves the prefix alone", || warned(&strangers));
    strangers.nothing_was_seen("a renewal");
}

/// An index that runs a user's code is created and dropped while elections go on.
#[test]
fn an_index_that_comes_and_goes_runs_for_nobody_else() {
    let mut strangers = Strangers::new();
    let stop = Arc::new(AtomicBool::new(false));
    let members = {
        let (stop, mut client) = (stop.clone(), strangers.cluster.client_as("postgres", "t"));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let id: i64 = client.one("SELECT oban_join('b', 'Often', '1 hour', prefix => 't')");
                client.query_one("SELECT oban_renew($1)", &[&id]).unwrap();
                client.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
            }
        })
    };
    for _ in 0..30 {
        for ddl in [
            "CREATE INDEX CONCURRENTLY i ON t.oban_peers (t.same(name))",
            "DROP INDEX CONCURRENTLY t.i",
            "CREATE INDEX CONCURRENTLY i ON t.oban_peers (node) WHERE t.ok(node)",
            "DROP INDEX t.i",
            "CREATE INDEX CONCURRENTLY i ON t.oban_peers (node)",
            "DROP INDEX CONCURRENTLY t.i",
        ] {
            strangers.tenant.batch_execute(ddl).unwrap_or_else(|e| panic!("{ddl}: {e:?}"));
        }
        strangers.others_elect();
    }
    stop.store(true, Ordering::Relaxed);
    members.join().unwrap();
    let id = strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers.renew_and_leave(id, "after all of them");
    strangers.nothing_was_seen("elections");
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
}

/// A schema's owner gives its name to another schema, and back, while elections are held there. Neither the
/// table's owner nor the keeper runs code of the table that has taken the place.
#[test]
fn a_schema_that_takes_anothers_place_gets_no_code_run() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut root = cluster.client();
    root.batch_execute(&format!(
        "CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE EXTENSION obanrs SCHEMA ext;
         ALTER DATABASE postgres SET search_path = ext; SET search_path = ext; {WATCH}
         CREATE ROLE dbo LOGIN; CREATE ROLE vic LOGIN; ALTER DATABASE postgres OWNER TO dbo;
         CREATE SCHEMA place AUTHORIZATION dbo; CREATE SCHEMA decoy AUTHORIZATION dbo; CREATE SCHEMA code AUTHORIZATION dbo;
         GRANT USAGE ON SCHEMA place, decoy, code, public TO PUBLIC; GRANT CREATE ON SCHEMA place TO vic"
    ))
    .unwrap();
    let mut vic = cluster.client_as("postgres", "vic");
    vic.batch_execute("SELECT oban_install('place')").unwrap();
    let mut dbo = cluster.client_as("postgres", "dbo");
    dbo.batch_execute("SELECT oban_install('decoy')").unwrap();
    let oid = |schema| format!("SELECT '{schema}.oban_peers'::regclass::oid");
    let tables: &[u32] = &[root.one(&oid("place")), root.one(&oid("decoy"))];
    let of_dbo = code_of("dbo").replace("dbo.", "code.");
    dbo.batch_execute(&of_dbo).unwrap();
    for code in [
        "CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON decoy.oban_peers FOR EACH ROW EXECUTE FUNCTION code.act();
         CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON decoy.oban_peers FOR EACH ROW EXECUTE FUNCTION code.act();
         ALTER TABLE decoy.oban_peers ENABLE ALWAYS TRIGGER a, ENABLE ALWAYS TRIGGER b",
        "ALTER TABLE decoy.oban_peers ADD CHECK (code.ok(name)) NOT VALID",
        "CREATE INDEX i ON decoy.oban_peers (code.same(name))",
        "ALTER TABLE decoy.oban_peers ADD COLUMN g text GENERATED ALWAYS AS (code.same(name)) STORED",
    ] {
        dbo.batch_execute(code).unwrap();
        let stop = AtomicBool::new(false);
        // Only a superuser has rights in both.
        let mut member = cluster.client();
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| come_and_go(&mut member, "place", &stop));
            let mut swap = || {
                let swapped =
                    "BEGIN; ALTER SCHEMA place RENAME TO nowhere; ALTER SCHEMA decoy RENAME TO place;
                     ALTER SCHEMA nowhere RENAME TO decoy; COMMIT";
                dbo.batch_execute(&format!("{swapped}; {swapped}")).unwrap();
            };
            (0..75).for_each(|_| swap());
            // The test proves nothing without elections. If both tables may hold some, they come between
            // swaps.
            let both = code.contains("CREATE TRIGGER");
            for table in if both { tables } else { &tables[..1] } {
                let inserted = format!("SELECT pg_stat_get_tuples_inserted({table}::oid)");
                let before: i64 = root.one(&inserted);
                wait_until("there are elections", || {
                    if both {
                        swap();
                    }
                    root.one::<i64>(&inserted) > before + 2
                });
            }
        });
        // The number of swaps is even, so each schema has its own name.
        let seen: bool = root.one("SELECT is_called FROM public.strangers");
        let log = cluster.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("stranger: ")).collect();
        assert!(!seen && lines.is_empty(), "{code}: {lines:?}");
    }
    root.batch_execute("SELECT oban_join('x', prefix => 'place')").unwrap();
    wait_until("the prefix has a leader", || root.one("SELECT oban_is_leader(prefix => 'place')"));
    assert_no_leaks(&cluster);
}
