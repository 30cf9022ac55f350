//! `oban_install` and `oban_uninstall` on tables of another role: they run no code of the table's owner, and
//! alter the table that they have tested and no other.

use std::sync::atomic::{AtomicBool, Ordering};

use postgres::Client;

use crate::support::{Ask, Cluster, JOBS, code, wait_until};

/// Creates a role `tenant` that owns the schema `t` and may create schemas. Its functions count in a
/// sequence, which a rollback does not take back, how often another role runs them. Returns the superuser's
/// connection and the tenant's.
fn tenant(cluster: &Cluster) -> (Client, Client) {
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE tenant LOGIN; GRANT CREATE ON DATABASE postgres TO tenant; CREATE SCHEMA t AUTHORIZATION tenant;
         CREATE SEQUENCE public.ran_as_others MINVALUE 0 START 0; GRANT ALL ON SEQUENCE public.ran_as_others TO PUBLIC;
         SET client_min_messages = warning",
    )
    .unwrap();
    let mut tenant = cluster.client_as("postgres", "tenant");
    tenant
        .batch_execute(
            "SET client_min_messages = warning;
             CREATE FUNCTION t.spy() RETURNS void LANGUAGE plpgsql AS
                 $$ BEGIN IF current_user <> 'tenant' THEN PERFORM nextval('public.ran_as_others'); END IF; END $$;
             SELECT nextval('public.ran_as_others');
             CREATE TYPE t.e AS ENUM ('a', 'b');
             CREATE FUNCTION t.text_of(t.e) RETURNS text LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN '1'; END $$;
             CREATE FUNCTION t.bigint_of(t.e) RETURNS bigint LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN 1; END $$;
             CREATE CAST (t.e AS text) WITH FUNCTION t.text_of(t.e);
             CREATE CAST (t.e AS bigint) WITH FUNCTION t.bigint_of(t.e);
             CREATE FUNCTION t.yes(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN true; END $$;
             CREATE FUNCTION t.one(text) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN 1; END $$;
             CREATE DOMAIN t.dt AS text CHECK (t.yes(VALUE));
             CREATE DOMAIN t.di AS bigint CHECK (t.yes(VALUE::text));
             CREATE DOMAIN t.dp AS timestamp CHECK (t.yes(VALUE::text))",
        )
        .unwrap();
    (root, tenant)
}

/// How often another role than the tenant has run the tenant's functions.
fn runs_as_others(root: &mut Client) -> i64 {
    root.one("SELECT last_value FROM public.ran_as_others")
}

/// What the catalogs say of all relations in a schema, without what Postgres updates in place.
fn contents(root: &mut Client, schema: u32) -> String {
    root.one(&format!(
        "SELECT string_agg(what, E'\\n' ORDER BY what) FROM (
             SELECT c.oid || ' ' || c.relname || ' ' || c.relnatts || ' ' || c.relowner::regrole AS what
             FROM pg_class c WHERE c.relnamespace = {schema}
             UNION ALL SELECT c.oid || ' ' || a.attnum || ' ' || a.attname
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = {schema}
             UNION ALL SELECT c.oid || ' ' || g.tgname
             FROM pg_class c JOIN pg_trigger g ON g.tgrelid = c.oid WHERE c.relnamespace = {schema}
             UNION ALL SELECT t.oid || ' ' || t.typname FROM pg_type t WHERE t.typnamespace = {schema}
             UNION ALL SELECT k.oid || ' ' || k.conname FROM pg_constraint k WHERE k.connamespace = {schema}
             UNION ALL SELECT d.objoid || ' ' || d.description
             FROM pg_class c JOIN pg_description d ON d.objoid = c.oid WHERE c.relnamespace = {schema}
         ) all_of_it"
    ))
}

fn oid(root: &mut Client, schema: &str) -> u32 {
    root.one(&format!("SELECT '{schema}'::regnamespace::oid"))
}

/// The attack as it was found: a cast of the tenant's type is the tenant's function.
#[test]
fn a_cast_of_a_tenants_type_does_not_run_as_the_installer() {
    let cluster = Cluster::with_extension();
    let mut root = cluster.client();
    root.batch_execute("CREATE ROLE mal5 LOGIN; GRANT CREATE ON DATABASE postgres TO mal5").unwrap();
    let mut mal5 = cluster.client_as("postgres", "mal5");
    mal5.batch_execute(
        "create schema xa; create type xa.t as enum ('a','b');
         create table xa.oban_jobs(id bigint, state text, queue text);
         create table xa.oban_peers(name text primary key, node text, started_at timestamp, expires_at timestamp, term xa.t);
         insert into xa.oban_peers values ('Oban', 'n', now(), now(), 'a');
         create function xa.pwn(x xa.t) returns text language plpgsql as $$ begin
           execute format('copy (select %L) to program %L', current_user, 'cat > pwned.txt'); return '1'; end $$;
         create cast (xa.t as text) with function xa.pwn(xa.t)",
    )
    .unwrap();
    assert_eq!(code(&mut root, "SELECT oban_install('xa')"), "22023");
    assert!(!cluster.data_folder().join("pwned.txt").exists());
    assert_eq!(code(&mut root, "SELECT oban_install('xa')"), "22023", "and it has made nothing");
    assert_eq!(
        root.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'xa.oban_peers'::regclass"),
        0
    );
}

const PEERS: &str =
    "CREATE TABLE t.oban_peers (name text, node text, started_at timestamp, expires_at timestamp";

/// `oban_install` refuses each table of leaders of another kind, whichever role calls it, runs none of its
/// code, and leaves it as it was.
#[test]
fn tables_of_another_kind_are_refused_unread() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    let with = |columns: &str| format!("{PEERS}, {columns})");
    let instead = |column: &str, kind: &str| {
        let columns =
            ["name text", "node text", "started_at timestamp", "expires_at timestamp", "term bigint"];
        let columns =
            columns.map(|c| if c.starts_with(column) { format!("{column} {kind}") } else { c.into() });
        format!("CREATE TABLE t.oban_peers ({})", columns.join(", "))
    };
    let tables = [
        with("term t.e"),
        with("boot t.e"),
        with("term t.di"),
        with("boot t.di"),
        with("term integer"),
        with("term information_schema.cardinal_number"),
        with("term numeric"),
        with("term bigint GENERATED ALWAYS AS (t.one(node)) STORED"),
        with("term bigint GENERATED BY DEFAULT AS IDENTITY"),
        instead("name", "t.e"),
        instead("name", "t.dt"),
        instead("node", "t.e"),
        instead("node", "t.dt"),
        instead("name", "varchar(10)"),
        instead("name", "name"),
        instead("node", "information_schema.character_data"),
        instead("node", "text GENERATED ALWAYS AS (lower(name)) STORED"),
        instead("started_at", "t.dp"),
        instead("expires_at", "timestamptz"),
        instead("expires_at", "timestamp(0)"),
        instead("expires_at", "information_schema.time_stamp"),
        format!("{PEERS}) PARTITION BY LIST (name)"),
        format!("{PEERS}); CREATE TABLE t.child () INHERITS (t.oban_peers)"),
        format!("{}; CREATE TABLE t.oban_peers () INHERITS (t.parent)", PEERS.replace("oban_peers", "parent") + ")"),
        format!(
            "{}; CREATE TABLE t.oban_peers PARTITION OF t.parent DEFAULT",
            PEERS.replace("oban_peers", "parent") + ") PARTITION BY LIST (name)"
        ),
        "CREATE TYPE t.row AS (name text, node text, started_at timestamp, expires_at timestamp);
         CREATE TABLE t.oban_peers OF t.row"
            .into(),
        "CREATE VIEW t.oban_peers AS
         SELECT t.text_of('a') AS name, ''::text AS node, now()::timestamp AS started_at, now()::timestamp AS expires_at"
            .into(),
        "CREATE MATERIALIZED VIEW t.oban_peers AS
         SELECT ''::text AS name, ''::text AS node, now()::timestamp AS started_at, now()::timestamp AS expires_at"
            .into(),
        "CREATE SEQUENCE t.oban_peers".into(),
    ];
    let schema = oid(&mut root, "t");
    for table in tables {
        tenant.batch_execute(&format!("CREATE TABLE t.oban_jobs {JOBS}; {table}")).unwrap();
        let before = contents(&mut root, schema);
        for installer in [&mut root, &mut tenant] {
            assert_eq!(code(installer, "SELECT oban_install('t')"), "22023", "{table}");
        }
        root.batch_execute("SELECT oban_uninstall('t')").unwrap();
        assert_eq!(contents(&mut root, schema), before, "{table}");
        assert_eq!(runs_as_others(&mut root), 0, "{table}");
        tenant
            .batch_execute(
                "DROP TABLE t.oban_jobs;
                 DO $$ BEGIN EXECUTE (
                     SELECT format('DROP %s t.oban_peers CASCADE', CASE relkind WHEN 'v' THEN 'VIEW'
                         WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END)
                     FROM pg_class WHERE oid = 't.oban_peers'::regclass); END $$;
                 DROP TABLE IF EXISTS t.parent; DROP TYPE IF EXISTS t.row",
            )
            .unwrap();
    }
    for jobs in ["CREATE VIEW t.oban_jobs AS SELECT t.text_of('a') AS queue", "CREATE SEQUENCE t.oban_jobs"] {
        tenant.batch_execute(jobs).unwrap();
        assert_eq!(code(&mut root, "SELECT oban_install('t')"), "22023", "{jobs}");
        let drop = if jobs.contains("VIEW") { "DROP VIEW t.oban_jobs" } else { "DROP SEQUENCE t.oban_jobs" };
        tenant.batch_execute(drop).unwrap();
    }
    assert_eq!(runs_as_others(&mut root), 0);
}

/// A table that was renamed keeps the names of its indexes, and a type may have a table's name. The error
/// gives the name that is taken.
#[test]
fn names_that_are_taken_are_named() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for (taken, name, freed) in [
        (
            "ALTER TABLE oban_jobs RENAME TO old_jobs",
            "oban_jobs_state_queue_priority_scheduled_at_id_index",
            "DROP TABLE old_jobs",
        ),
        (
            "DROP TABLE oban_jobs; CREATE VIEW oban_jobs_args_index AS SELECT 1",
            "oban_jobs_args_index",
            "DROP VIEW oban_jobs_args_index",
        ),
        ("DROP TABLE oban_jobs; CREATE DOMAIN oban_jobs AS text", "oban_jobs", "DROP DOMAIN oban_jobs"),
        ("DROP TABLE oban_peers; CREATE DOMAIN oban_peers AS text", "oban_peers", "DROP DOMAIN oban_peers"),
    ] {
        client.batch_execute(taken).unwrap();
        let error = client.batch_execute("SELECT oban_install()").expect_err(taken);
        let error = error.as_db_error().expect(taken);
        assert_eq!(error.code().code(), "22023", "{taken}: {error}");
        assert!(error.message().ends_with(&format!(" named {name}")), "{taken}: {error}");
        client.batch_execute(freed).unwrap();
        client.batch_execute("SELECT oban_install()").unwrap();
    }
    client.batch_execute("ALTER TABLE oban_peers RENAME TO old_peers; SELECT oban_install()").unwrap();
}

/// The alteration of a table fires nothing else that a tenant may have put on it.
#[test]
fn code_on_a_tenants_tables_does_not_run_as_the_installer() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    tenant
        .batch_execute(&format!(
            "CREATE FUNCTION t.trigger() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN NEW; END $$;
             CREATE TABLE t.oban_jobs {JOBS};
             CREATE UNLOGGED TABLE t.oban_peers (
                 name varchar PRIMARY KEY, node varchar NOT NULL CHECK (t.yes(node)), started_at timestamp, expires_at timestamp,
                 more t.e DEFAULT 'a', domain t.dt DEFAULT 'x', made bigint GENERATED ALWAYS AS (t.one(node)) STORED,
                 term bigint CHECK (t.yes(term::text)));
             CREATE INDEX ON t.oban_peers (t.one(node)) WHERE t.yes(node);
             INSERT INTO t.oban_peers VALUES ('Oban', 'n', now(), now(), 'b', 'y', DEFAULT, (1::bigint << 40) + 1000);
             CREATE TRIGGER own BEFORE INSERT OR UPDATE OR DELETE ON t.oban_peers FOR EACH ROW EXECUTE FUNCTION t.trigger();
             ALTER TABLE t.oban_peers ENABLE ALWAYS TRIGGER own;
             CREATE POLICY own ON t.oban_peers USING (t.yes(node));
             ALTER TABLE t.oban_peers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             CREATE RULE own AS ON INSERT TO t.oban_peers DO ALSO SELECT t.spy();
             CREATE FUNCTION t.same(text, text) RETURNS boolean LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN true; END $$;
             CREATE OPERATOR t.= (LEFTARG = text, RIGHTARG = text, FUNCTION = t.same);
             CREATE FUNCTION t.obanrs_peers() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN NEW; END $$;
             CREATE FUNCTION t.obanrs_jobs_insert() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN NEW; END $$"
        ))
        .unwrap();
    let file = "SELECT pg_relation_filenode('t.oban_peers')";
    let before: u32 = root.one(file);
    root.batch_execute("SET search_path = t, public; SELECT oban_install('t'), oban_install('t')").unwrap();
    let last: i64 = root.one("SELECT last_value FROM public.obanrs_term");
    assert!(last > 1 << 40, "terms go on above those that are there: {last}");
    let ours =
        "SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('t.oban_jobs'::regclass, 't.oban_peers'::regclass)
                AND tgfoid IN ('public.obanrs_jobs_insert'::regproc, 'public.obanrs_peers'::regproc)";
    assert_eq!(root.one::<i64>(ours), 4);
    root.batch_execute("SELECT oban_uninstall('t')").unwrap();
    assert_eq!(root.one::<i64>(ours), 0);
    assert_eq!(root.one::<u32>(file), before, "no row was written");
    assert_eq!(runs_as_others(&mut root), 0);
}

/// A type that is there already is used only if it is Oban's.
#[test]
fn a_type_of_another_kind_is_refused_before_it_is_used() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    let labels = "'available', 'suspended', 'scheduled', 'executing', 'retryable', 'completed', 'discarded', 'cancelled'";
    let schema = oid(&mut root, "t");
    tenant.batch_execute(&format!("CREATE TYPE t.states AS ENUM ({labels})")).unwrap();
    for (create, drop) in [
        ("DOMAIN t.oban_job_state AS text CHECK (t.yes(VALUE))", "DOMAIN"),
        ("DOMAIN t.oban_job_state AS t.e CHECK (t.yes('x'))", "DOMAIN"),
        ("DOMAIN t.oban_job_state AS t.states CHECK (t.yes('x'))", "DOMAIN"),
        ("TYPE t.oban_job_state AS (available text)", "TYPE"),
        ("TYPE t.oban_job_state AS RANGE (subtype = t.e)", "TYPE"),
        ("TYPE t.oban_job_state AS ENUM ('available')", "TYPE"),
    ] {
        tenant.batch_execute(&format!("CREATE {create}")).unwrap();
        let before = contents(&mut root, schema);
        for installer in [&mut root, &mut tenant] {
            assert_eq!(code(installer, "SELECT oban_install('t')"), "22023", "{create}");
        }
        assert_eq!(contents(&mut root, schema), before, "{create}");
        assert_eq!(runs_as_others(&mut root), 0, "{create}");
        tenant.batch_execute(&format!("DROP {drop} t.oban_job_state CASCADE")).unwrap();
    }
    tenant.batch_execute("ALTER TYPE t.states RENAME TO oban_job_state; SELECT oban_install('t')").unwrap();
    tenant.batch_execute("INSERT INTO t.oban_jobs (worker) VALUES ('w')").unwrap();
}

/// Users' functions with the names of the extension's functions are ignored.
#[test]
fn functions_of_the_same_names_are_not_ours() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    root.batch_execute("GRANT CREATE ON SCHEMA public TO tenant").unwrap();
    tenant
        .batch_execute(
            "CREATE FUNCTION public.obanrs_jobs_insert(int) RETURNS void LANGUAGE sql AS 'SELECT';
             CREATE FUNCTION public.obanrs_peers(int) RETURNS void LANGUAGE sql AS 'SELECT';
             SELECT oban_install('t'), oban_install('t')",
        )
        .unwrap();
    assert!(root.one::<bool>("SELECT ok FROM oban_check() WHERE item = 'prefix t'"));
    tenant.batch_execute("SELECT oban_uninstall('t')").unwrap();
}

/// How many of the extension's triggers a table has.
fn triggers(client: &mut Client, table: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs%' AND tgrelid";
    client.one(&format!("{sql} = '{table}'::regclass"))
}

/// The event triggers of a command that calls `oban_install` see what that did to tables.
#[test]
fn event_triggers_of_a_surrounding_command_see_what_was_done() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    root.batch_execute(
        "CREATE TABLE seen (n serial, tag text, object text); GRANT ALL ON seen, seen_n_seq TO PUBLIC;
         CREATE FUNCTION see() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen (tag, object) SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
         END $$;
         CREATE FUNCTION see_drops() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen (tag, object) SELECT 'dropped', object_identity FROM pg_event_trigger_dropped_objects();
         END $$;
         CREATE EVENT TRIGGER see ON ddl_command_end EXECUTE FUNCTION see();
         CREATE EVENT TRIGGER see_drops ON sql_drop EXECUTE FUNCTION see_drops()",
    )
    .unwrap();
    tenant
        .batch_execute(&format!(
            "CREATE TABLE t.oban_jobs {JOBS}; {PEERS}); TRUNCATE public.seen;
             CREATE TABLE t.x AS SELECT oban_install('t')::text"
        ))
        .unwrap();
    let saw = |root: &mut Client| -> Vec<String> {
        let rows = root.query("SELECT tag || ' ' || object FROM seen ORDER BY n", &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let seen = saw(&mut root);
    for wanted in [
        "ALTER TABLE t.oban_peers",
        "CREATE TRIGGER obanrs_peers_guard on t.oban_peers",
        "CREATE TRIGGER obanrs_jobs_insert on t.oban_jobs",
        "CREATE TABLE AS t.x",
    ] {
        assert!(seen.iter().any(|line| line == wanted), "{wanted} is missing: {seen:?}");
    }
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (1, 3));

    root.batch_execute("TRUNCATE seen; CREATE TABLE t.y AS SELECT oban_uninstall('t')::text").unwrap();
    let seen = saw(&mut root);
    for wanted in
        ["ALTER TABLE t.oban_peers", "dropped t.oban_peers.term", "dropped obanrs_jobs_insert on t.oban_jobs"]
    {
        assert!(seen.iter().any(|line| line == wanted), "{wanted} is missing: {seen:?}");
    }
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (0, 0));

    // What fails within such a command, and is caught there, leaves it as it was.
    root.batch_execute(
        "SELECT oban_install('t'); CREATE VIEW t.v AS SELECT term FROM t.oban_peers;
         CREATE FUNCTION try() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             PERFORM oban_uninstall('t'); RETURN 'done'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$;
         CREATE TABLE t.z AS SELECT try(), oban_install('q')::text, try() AS again; ALTER TABLE t.z ADD COLUMN i int",
    )
    .unwrap();
    assert_eq!(root.one::<String>("SELECT try || ' ' || again FROM t.z"), "2BP01 2BP01");
    assert_eq!(triggers(&mut root, "t.oban_peers"), 3);
}

#[test]
fn event_triggers_may_install_and_uninstall() {
    let cluster = Cluster::with_extension();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE FUNCTION act() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM public.oban_install('t'); PERFORM public.oban_uninstall('t'); PERFORM public.oban_install('t');
         END $$;
         CREATE EVENT TRIGGER at_end ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION act();
         CREATE EVENT TRIGGER at_start ON ddl_command_start WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION act();
         CREATE FUNCTION undo() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM public.oban_uninstall('t');
         END $$;
         CREATE EVENT TRIGGER at_drop ON sql_drop WHEN TAG IN ('DROP VIEW') EXECUTE FUNCTION undo();
         CREATE FUNCTION rewrite() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM public.oban_install('r');
         END $$;
         CREATE EVENT TRIGGER at_rewrite ON table_rewrite EXECUTE FUNCTION rewrite();
         CREATE VIEW v AS SELECT 1 AS one",
    )
    .unwrap();
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (1, 3));
    root.batch_execute("DROP VIEW v").unwrap();
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (0, 0));
    root.batch_execute("CREATE TABLE w (i int); INSERT INTO w VALUES (1); ALTER TABLE w ALTER i TYPE bigint")
        .unwrap();
    assert_eq!((triggers(&mut root, "r.oban_jobs"), triggers(&mut root, "r.oban_peers")), (1, 3));
}

/// Runs `change` in the tenant's open transaction while a call waits for its lock, and commits. Returns the
/// call's result.
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

/// A table that is replaced while the call waits for its lock is tested again.
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

    // A table in the place of the one that was waited for is altered, and that one is not.
    tenant.batch_execute(&fresh).unwrap();
    let changes = format!("ALTER TABLE t.oban_peers RENAME TO others; {PEERS})");
    while_it_waits(&cluster, &mut root, install, &mut tenant, &changes).unwrap();
    assert_eq!((triggers(&mut root, "t.others"), triggers(&mut root, "t.oban_peers")), (0, 3));

    // One that was given away is nobody else's to change.
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

/// The installation is refused where ALTER TABLE would be.
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

/// Each partition is a table with an owner of its own.
#[test]
fn partitions_are_tested_each() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    tenant
        .batch_execute(&format!(
            "{PEERS}); CREATE TABLE t.oban_jobs {JOBS} PARTITION BY LIST (queue);
             CREATE TABLE t.a PARTITION OF t.oban_jobs FOR VALUES IN ('a') PARTITION BY LIST (state);
             CREATE TABLE t.ab PARTITION OF t.a DEFAULT;
             CREATE TABLE t.b PARTITION OF t.oban_jobs FOR VALUES IN ('b')"
        ))
        .unwrap();
    root.batch_execute("ALTER TABLE t.ab OWNER TO postgres").unwrap();
    let refused = tenant.batch_execute("SELECT oban_install('t')").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "42501");
    assert!(refused.message().contains("t.ab"), "{refused}");
    assert_eq!(triggers(&mut root, "t.oban_jobs"), 0, "nothing is half done");
    root.batch_execute("SELECT oban_install('t')").unwrap();
    let all = |root: &mut Client| ["t.oban_jobs", "t.a", "t.ab", "t.b"].map(|table| triggers(root, table));
    assert_eq!(all(&mut root), [1; 4]);
    tenant
        .batch_execute("CREATE TABLE t.c PARTITION OF t.oban_jobs DEFAULT; SELECT oban_install('t')")
        .unwrap();
    assert_eq!(triggers(&mut root, "t.c"), 1);
    assert_eq!(code(&mut tenant, "SELECT oban_uninstall('t')"), "42501");
    assert_eq!(all(&mut root), [1; 4]);
    root.batch_execute("SELECT oban_uninstall('t')").unwrap();
    assert_eq!(all(&mut root), [0; 4]);
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
            // Now right after each other, now with work in between, so that each step of a call meets one.
            for i in (0..10).cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                let work = format!("SELECT count(*) FROM generate_series(1, {})", 500 << i);
                for sql in [swap, &work, if i % 3 == 0 { &clear } else { swap }] {
                    if let Err(e) = tenant.batch_execute(sql) {
                        // A deadlock, or a table that came in between.
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

/// A table with an obstacle that an earlier version has installed is not refused when it is installed again.
/// A WARNING says that it holds no elections any more, and what removes the obstacle.
#[test]
fn a_prefix_that_elects_no_more_is_warned_of() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let warnings =
        |cluster: &Cluster| cluster.log().matches("holds no elections, as they would have to ignore").count();
    client.batch_execute("SET log_min_messages = warning").unwrap();
    for (i, (breaks, mends)) in [
        ("ALTER COLUMN expires_at TYPE timestamp(0)", "ALTER COLUMN \"expires_at\" TYPE timestamp"),
        ("ADD CONSTRAINT c CHECK (name <> '')", "DROP CONSTRAINT \"c\""),
        ("ADD COLUMN note text NOT NULL", "ALTER COLUMN \"note\" DROP NOT NULL"),
    ]
    .into_iter()
    .enumerate()
    {
        client.batch_execute(&format!("ALTER TABLE oban_peers {breaks}")).unwrap();
        client.batch_execute("SELECT oban_install()").unwrap();
        assert_eq!(warnings(&cluster), i + 1, "{breaks}");
        let check = "SELECT detail FROM oban_check() WHERE item = 'elections in public' AND NOT ok";
        let remedy = format!("ALTER TABLE public.oban_peers {mends}");
        assert!(client.one::<String>(check).ends_with(&remedy), "{breaks}");
        assert!(cluster.log().contains(&format!("{remedy}.")), "{breaks}");
        client.batch_execute(&remedy).unwrap();
        client.batch_execute("SELECT oban_install()").unwrap();
        assert_eq!(warnings(&cluster), i + 1, "after {mends}");
    }
    client.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
}

/// A table of jobs that is not Oban's, or that Oban has to migrate first, is refused, and the error says why. One that an
/// earlier version has installed is warned of, and its wake-ups go on.
#[test]
fn jobs_of_another_kind_are_refused_and_named() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let refused = |client: &mut Client, why: &str| {
        let error = client.batch_execute("SELECT oban_install('t')").expect_err(why);
        let error = error.as_db_error().expect(why);
        assert_eq!(error.code().code(), "22023", "{why}: {error}");
        (error.message().to_owned(), error.hint().expect(why).to_owned())
    };
    client.batch_execute("SELECT oban_install('good')").unwrap();
    for (change, named) in [
        ("RENAME state TO status", "lacks state (a text, or an enum with the label available)"),
        ("RENAME queue TO lane", "lacks queue (a text)"),
        ("ALTER queue TYPE int USING 1", "has of another type queue (a text)"),
        ("ALTER state TYPE int USING 1", "has of another type state (a text, or an enum"),
        ("DROP COLUMN attempted_by, DROP COLUMN meta", "lacks meta, attempted_by (an array of texts)"),
        ("ALTER attempted_by TYPE text", "has of another type attempted_by (an array of texts)"),
    ] {
        let create = format!(
            "CREATE SCHEMA t; CREATE TABLE t.oban_jobs {JOBS}; ALTER TABLE t.oban_jobs ALTER state DROP DEFAULT;
             ALTER TABLE t.oban_jobs {change}"
        );
        client.batch_execute(&create).unwrap();
        let (message, hint) = refused(&mut client, change);
        assert!(message.contains(named) && message.contains("prefix \"t\""), "{change}: {message}");
        assert!(hint.contains("11 or later"), "{hint}");
        assert_eq!(triggers(&mut client, "t.oban_jobs"), 0, "{change}");
        assert!(client.one::<bool>("SELECT to_regclass('t.oban_peers') IS NULL"), "{change}");
        client.batch_execute("DROP SCHEMA t CASCADE").unwrap();
    }
    // Somebody's own table, with what the trigger reads.
    client
        .batch_execute(
            "CREATE SCHEMA own; CREATE TABLE own.oban_jobs (id bigserial, queue text, state text DEFAULT 'available');
             SELECT oban_install('own')",
        )
        .unwrap();
    assert!(
        cluster.log().contains("WARNING:  oban_jobs of prefix \"own\" is not all of Oban's: it lacks worker")
    );
    let row = "SELECT detail FROM oban_check() WHERE item = 'columns of own.oban_jobs' AND ok";
    assert!(client.one::<String>(row).contains("lacks worker"));
    client.batch_execute("DROP SCHEMA own CASCADE").unwrap();
    // Oban's own tables of migration 10, and what real migrations make has a comment.
    client
        .batch_execute(
            "CREATE SCHEMA t; CREATE TABLE t.oban_jobs (LIKE good.oban_jobs INCLUDING DEFAULTS);
             COMMENT ON TABLE t.oban_jobs IS '10'",
        )
        .unwrap();
    let (message, hint) = refused(&mut client, "migration 10");
    assert!(message.contains("migration 10") && hint.contains("11 or later"), "{message}, {hint}");
    for comment in ["'11'", "NULL", "'jobs of billing'", "'∞'"] {
        client
            .batch_execute(&format!("COMMENT ON TABLE t.oban_jobs IS {comment}; SELECT oban_install('t')"))
            .unwrap();
    }

    // As 0.4.0 installed it.
    client
        .batch_execute("COMMENT ON TABLE t.oban_jobs IS '2'; ALTER TABLE t.oban_jobs DROP COLUMN tags")
        .unwrap();
    let warned = |cluster: &Cluster, of: &str| cluster.log().matches(&format!("WARNING:  {of}")).count();
    client.batch_execute("SELECT oban_install('t')").unwrap();
    assert_eq!(warned(&cluster, "prefix \"t\" has the tables of Oban's migration 2"), 1);
    let row = "SELECT detail FROM oban_check() WHERE item = 'columns of t.oban_jobs' AND NOT ok";
    assert!(client.one::<String>(row).contains("migration 2"));
    client.batch_execute("COMMENT ON TABLE t.oban_jobs IS NULL").unwrap();
    assert!(client.one::<String>(row).contains("lacks tags"));
    let after: i64 = client.one("SELECT oban_position()");
    client.batch_execute("INSERT INTO t.oban_jobs (id, worker) VALUES (1, 'w')").unwrap();
    let woken =
        format!("SELECT jsonb_array_length(messages) FROM oban_poll(after => {after}, prefix => 't')");
    assert_eq!(client.one::<i32>(&woken), 1, "its wake-ups go on");
    client.batch_execute("DROP TRIGGER obanrs_jobs_insert ON t.oban_jobs").unwrap();
    refused(&mut client, "something would be added");
    client.batch_execute("SELECT oban_uninstall('t')").unwrap();
}

/// A stored generated column is in the rows that the trigger reads; a virtual one is not, and says so.
#[test]
fn generated_queues_wake_or_say_that_they_do_not() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let is_18 = client.one::<i32>("SELECT current_setting('server_version_num')::int") >= 180_000;
    client.batch_execute("SELECT oban_install()").unwrap();
    let dropped = |client: &mut Client| crate::support::stat(client, "dropped");
    for (column, of) in [("queue", "'q_' || worker"), ("state", "left('available' || worker, 9)")] {
        for kind in ["STORED", "VIRTUAL"] {
            if kind == "VIRTUAL" && !is_18 {
                continue;
            }
            client
                .batch_execute(&format!(
                    "DROP TABLE oban_jobs; SELECT oban_install(); ALTER TABLE oban_jobs DROP COLUMN {column};
                     ALTER TABLE oban_jobs ADD COLUMN {column} text GENERATED ALWAYS AS ({of}) {kind}"
                ))
                .unwrap();
            let (before, after): (i64, i64) = (dropped(&mut client), client.one("SELECT oban_position()"));
            client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
            let woken = format!("SELECT jsonb_array_length(messages) FROM oban_poll(after => {after})");
            let check = "SELECT ok FROM oban_check() WHERE item = 'columns of public.oban_jobs'";
            let is_read = kind == "STORED";
            assert_eq!(client.one::<i32>(&woken), i32::from(is_read), "{column} {kind}");
            assert_eq!(dropped(&mut client) - before, i64::from(!is_read), "{column} {kind}");
            assert_eq!(client.one::<bool>(check), is_read, "{column} {kind}");
            client.batch_execute("SELECT oban_install()").unwrap();
            let warned = cluster.log().contains(&format!("virtual generated column {column}"));
            assert_eq!(warned, !is_read, "{column} {kind}");
            if !is_read {
                client.batch_execute("DROP TRIGGER obanrs_jobs_insert ON oban_jobs").unwrap();
                assert_eq!(code(&mut client, "SELECT oban_install()"), "22023", "{column}");
            }
        }
    }
}

/// What it says of read-only transactions and standbys holds also if nothing is missing.
#[test]
fn read_only_transactions_install_nothing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for call in ["oban_install()", "oban_install('new')", "oban_uninstall()"] {
        assert_eq!(code(&mut client, &format!("BEGIN READ ONLY; SELECT {call}")), "25006", "{call}");
        client.batch_execute("ROLLBACK").unwrap();
    }
}
