//! The owner of a table of remembered signals may put code there. Does it run as another role?

use super::signals;
use crate::support::{Ask, Cluster, code};

/// What an owner can put on the table, and whether signals are remembered in spite of that.
const TRAPS: &[(&str, bool)] = &[
    (
        "CREATE TRIGGER trap BEFORE INSERT OR UPDATE ON t.obanrs_queue_signals FOR EACH ROW EXECUTE FUNCTION t.trap()",
        true,
    ),
    ("ALTER TABLE t.obanrs_queue_signals ADD CHECK (t.check_it(queue))", false),
    ("CREATE RULE trap AS ON INSERT TO t.obanrs_queue_signals DO ALSO SELECT t.check_it('x')", false),
    ("ALTER TABLE t.obanrs_queue_signals ALTER COLUMN paused SET DEFAULT t.check_it('x')", true),
    ("ALTER TABLE t.obanrs_queue_signals ADD COLUMN more boolean DEFAULT t.check_it('x')", false),
    (
        "ALTER TABLE t.obanrs_queue_signals ADD COLUMN made boolean GENERATED ALWAYS AS (t.check_it(queue)) STORED",
        false,
    ),
    ("CREATE INDEX ON t.obanrs_queue_signals (t.check_it(queue))", false),
    ("CREATE INDEX ON t.obanrs_queue_signals (queue) WHERE t.check_it(queue)", false),
    ("CREATE INDEX ON t.obanrs_queue_signals (queue)", true),
    ("CREATE UNIQUE INDEX ON t.obanrs_queue_signals (node)", false),
    ("CREATE UNIQUE INDEX ON t.obanrs_queue_signals (name, queue, node, paused)", false),
    ("CREATE UNIQUE INDEX ON t.obanrs_queue_signals (node, queue, name) INCLUDE (paused)", true),
    ("ALTER TABLE t.obanrs_queue_signals DROP CONSTRAINT obanrs_queue_signals_pkey", true),
    ("INSERT INTO t.obanrs_queue_signals SELECT 'x', i, '' FROM generate_series(1, 4001) i", false),
    (
        "INSERT INTO t.obanrs_queue_signals SELECT 'x', i, '', true, 1, now(), now() FROM generate_series(1, 3000) i",
        true,
    ),
    ("ALTER TABLE t.obanrs_queue_signals ADD UNIQUE (queue, paused)", false),
    (
        "ALTER TABLE t.obanrs_queue_signals ENABLE ROW LEVEL SECURITY;
         ALTER TABLE t.obanrs_queue_signals FORCE ROW LEVEL SECURITY;
         CREATE POLICY trap ON t.obanrs_queue_signals USING (t.check_it(queue))",
        false,
    ),
    (
        "ALTER TABLE t.obanrs_queue_signals ENABLE ROW LEVEL SECURITY;
         CREATE POLICY trap ON t.obanrs_queue_signals USING (t.check_it(queue))",
        true,
    ),
    ("ALTER TABLE t.obanrs_queue_signals ALTER COLUMN queue TYPE t.queue", false),
    ("ALTER TABLE t.obanrs_queue_signals ALTER COLUMN limit_at SET NOT NULL", false),
    ("REVOKE INSERT ON t.obanrs_queue_signals FROM tenant", false),
    (
        "DROP TABLE t.obanrs_queue_signals; CREATE VIEW t.obanrs_queue_signals AS SELECT t.check_it('x')",
        false,
    ),
    ("CREATE TABLE t.child () INHERITS (t.obanrs_queue_signals)", false),
];

/// Each trap is set by the tenant, and a superuser sends, reads, installs and asks `oban_check`. The
/// tenant's functions write down as which role they run.
#[test]
fn no_code_of_the_tables_owner_runs_as_another_role() {
    let cluster = Cluster::with_extension();
    let (mut root, told) = cluster.client_with_notices();
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"t.oban_signal\"").unwrap();
    root.batch_execute("CREATE ROLE tenant LOGIN; CREATE SCHEMA t AUTHORIZATION tenant").unwrap();
    let mut tenant = cluster.client_as("postgres", "tenant");
    tenant
        .batch_execute(
            "CREATE TABLE t.ran (as_role text); GRANT INSERT ON t.ran TO PUBLIC; GRANT USAGE ON SCHEMA t TO PUBLIC;
             CREATE FUNCTION t.check_it(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN EXECUTE 'INSERT INTO t.ran VALUES (current_user)'; RETURN true; END $$;
             ALTER FUNCTION t.check_it VOLATILE;
             CREATE FUNCTION t.trap() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO t.ran VALUES (current_user); RETURN NEW; END $$;
             CREATE DOMAIN t.queue AS text CHECK (t.check_it(VALUE))",
        )
        .unwrap();
    for (trap, remembered) in TRAPS {
        tenant.batch_execute("SELECT oban_install('t')").unwrap();
        if trap.contains("(t.check_it(queue)) STORED") || trap.contains("INDEX") {
            tenant.batch_execute("ALTER FUNCTION t.check_it IMMUTABLE").unwrap();
        }
        tenant.batch_execute(trap).unwrap_or_else(|e| panic!("{trap}: {e}"));
        tenant.batch_execute("ALTER FUNCTION t.check_it VOLATILE; TRUNCATE t.ran").unwrap();
        told.lock().unwrap().clear();
        root.batch_execute("SELECT oban_pause_queue('media', prefix => 't')").unwrap();
        root.batch_execute(
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT oban_scale_queue('media', 7, prefix => 't'); COMMIT",
        )
        .unwrap();
        assert_eq!(signals(&mut listener).len(), 2, "{trap}");
        let warnings = told.lock().unwrap().iter().filter(|n| n.message().contains("not remembered")).count();
        assert_eq!(warnings, if *remembered { 0 } else { 2 }, "{trap}: {:?}", told.lock().unwrap());
        let shown =
            "SELECT count(*) FROM oban_queue_signals WHERE prefix = 't' AND paused AND queue_limit = 7";
        assert_eq!(root.one::<i64>(shown), i64::from(*remembered), "{trap}");
        root.batch_execute("SELECT * FROM oban_queue_state('media', prefix => 't'); SELECT oban_check(); SELECT oban_install('t')")
            .unwrap_or_else(|e| panic!("{trap}: {e}"));
        assert_eq!(root.one::<i64>("SELECT count(*) FROM t.ran"), 0, "{trap}");
        tenant.batch_execute("DROP TABLE IF EXISTS t.child").unwrap();
        let drop = if trap.contains("VIEW") { "VIEW" } else { "TABLE" };
        tenant.batch_execute(&format!("DROP {drop} t.obanrs_queue_signals")).unwrap();
    }
}

/// A role that may UPDATE the jobs may signal, and needs no right on the table that remembers. A right on
/// that table allows nothing.
#[test]
fn the_right_to_signal_is_update_on_the_jobs() {
    let cluster = Cluster::installed();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE steerer LOGIN; GRANT UPDATE ON oban_jobs TO steerer;
         CREATE ROLE other LOGIN; GRANT ALL ON obanrs_queue_signals TO other",
    )
    .unwrap();
    let mut steerer = cluster.client_as("postgres", "steerer");
    steerer.batch_execute("SELECT oban_pause_queue('a')").unwrap();
    assert!(root.one::<bool>("SELECT paused FROM oban_queue_signals"));
    assert_eq!(code(&mut steerer, "TABLE obanrs_queue_signals"), "42501");
    assert_eq!(
        steerer.one::<i64>("SELECT count(*) FROM oban_queue_signals"),
        0,
        "it may not SELECT the jobs"
    );
    let mut other = cluster.client_as("postgres", "other");
    assert_eq!(code(&mut other, "SELECT oban_pause_queue('a')"), "42501");
}

/// A superuser may install the prefix of another role, which can then dump and uninstall it.
#[test]
fn the_table_belongs_to_the_owner_of_the_jobs() {
    let cluster = Cluster::with_extension();
    let mut root = cluster.client();
    root.batch_execute("CREATE ROLE tenant LOGIN; CREATE SCHEMA t AUTHORIZATION tenant").unwrap();
    let mut tenant = cluster.client_as("postgres", "tenant");
    tenant.batch_execute("SELECT oban_install('t'); DROP TABLE t.obanrs_queue_signals").unwrap();
    root.batch_execute("SELECT oban_install('t'), oban_pause_queue('a', prefix => 't')").unwrap();
    assert!(tenant.one::<bool>("SELECT paused FROM t.obanrs_queue_signals"));
    let mut dump = cluster.program("pg_dump");
    let dumped = dump.args(["-U", "tenant", "-n", "t", "-f", "/dev/null", "postgres"]).status().unwrap();
    assert!(dumped.success());
    tenant.batch_execute("SELECT oban_uninstall('t')").unwrap();
    assert!(root.one::<bool>("SELECT to_regclass('t.obanrs_queue_signals') IS NULL"));
}

/// A table of that name which is not the extension's stays, and signals are not remembered in it.
#[test]
fn a_table_of_somebody_elses_stays() {
    let cluster = Cluster::with_extension();
    let (mut client, told) = cluster.client_with_notices();
    client.batch_execute("CREATE TABLE obanrs_queue_signals (a int); SELECT oban_install()").unwrap();
    assert_eq!(told.lock().unwrap().len(), 1, "{:?}", told.lock().unwrap());
    client.batch_execute("SELECT oban_pause_queue('a')").unwrap();
    assert_eq!(told.lock().unwrap().len(), 2);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM obanrs_queue_signals"), 0);
    client.batch_execute("SELECT oban_uninstall()").unwrap();
    assert!(client.one::<bool>("SELECT to_regclass('obanrs_queue_signals') IS NOT NULL"));
}
