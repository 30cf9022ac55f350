//! What does `oban_check` say about a prefix, and does the named statement help?

use super::{follow, healthy, only_wrong, wrong};
use crate::support::{Ask, Cluster, JOBS, code, wait_until};

#[test]
fn a_healthy_prefix_has_a_row_a_thing_and_all_are_ok() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    let items: Vec<String> =
        client.query("SELECT item FROM oban_check()", &[]).unwrap().iter().map(|r| r.get(0)).collect();
    assert_eq!(
        items,
        [
            "preload",
            "version",
            "encoding",
            "coordinator",
            "keeper",
            "relay",
            "max_worker_processes",
            "ring",
            "gossip",
            "idle_session_timeout",
            "wakeups",
            "prefix public",
            "columns of public.oban_jobs",
            "trigger on public.oban_jobs",
            "rights on public",
            "staging of public",
            "triggers on public.oban_peers",
            "public.oban_peers",
            "publication of public.oban_peers",
            "public.obanrs_queue_signals",
            "elections in public",
            "owner of public.oban_peers",
        ]
    );
}

#[test]
fn what_is_wrong_with_a_prefix_is_named_with_the_statement_that_helps() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    for (breaks, item) in [
        ("ALTER TABLE oban_jobs DISABLE TRIGGER obanrs_jobs_insert", "trigger on public.oban_jobs"),
        ("ALTER TABLE oban_jobs ENABLE REPLICA TRIGGER obanrs_jobs_insert", "trigger on public.oban_jobs"),
        ("DROP TRIGGER obanrs_jobs_insert ON oban_jobs", "prefix public"),
        (
            "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE OR REPLACE TRIGGER obanrs_jobs_insert AFTER INSERT ON oban_jobs
             REFERENCING NEW TABLE AS x FOR EACH STATEMENT EXECUTE FUNCTION other()",
            "prefix public",
        ),
        ("ALTER TABLE oban_peers DISABLE TRIGGER obanrs_peers_guard", "triggers on public.oban_peers"),
        ("ALTER TABLE oban_peers DISABLE TRIGGER USER", "triggers on public.oban_peers"),
        ("DROP TRIGGER obanrs_peers_end ON oban_peers", "prefix public"),
        ("ALTER TABLE oban_peers DROP COLUMN term", "prefix public"),
        ("DROP TABLE oban_peers", "prefix public"),
        ("ALTER TABLE oban_peers SET UNLOGGED", "public.oban_peers"),
        (
            "CREATE ROLE app; ALTER TABLE oban_peers OWNER TO app; REVOKE INSERT ON oban_peers FROM app",
            "owner of public.oban_peers",
        ),
        (
            "ALTER TABLE oban_peers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "owner of public.oban_peers",
        ),
        ("ALTER TABLE oban_peers ADD CHECK (name <> '')", "elections in public"),
        ("ALTER TABLE oban_peers ADD COLUMN note text NOT NULL DEFAULT ''", "elections in public"),
        ("CREATE INDEX ON oban_peers (upper(name))", "elections in public"),
    ] {
        client.batch_execute(breaks).unwrap();
        let detail = only_wrong(&mut client, item);
        follow(&mut client, &detail);
        assert_eq!(wrong(&mut client), [], "after {breaks}: {detail}");
    }
    for column in ["queue", "state"] {
        client.batch_execute(&format!("ALTER TABLE oban_jobs RENAME COLUMN {column} TO renamed")).unwrap();
        let detail = only_wrong(&mut client, "columns of public.oban_jobs");
        assert!(detail.contains(column), "{detail}");
        client.batch_execute(&format!("ALTER TABLE oban_jobs RENAME COLUMN renamed TO {column}")).unwrap();
    }
    // A thing that was never installed is no fault.
    for (prefix, odd) in [
        ("a_view", "CREATE VIEW a_view.oban_jobs AS SELECT 1"),
        ("a_sequence", "CREATE SEQUENCE a_sequence.oban_peers"),
        ("a_shape", "CREATE TABLE a_shape.oban_peers (name text, node text)"),
    ] {
        client.batch_execute(&format!("CREATE SCHEMA {prefix}; {odd}")).unwrap();
        assert_eq!(wrong(&mut client), []);
        assert_eq!(code(&mut client, &format!("SELECT oban_install('{prefix}')")), "22023");
        client.batch_execute(&format!("SELECT oban_gossip_put('a', 'q', prefix => '{prefix}')")).unwrap();
        let detail = only_wrong(&mut client, &format!("prefix {prefix}"));
        assert!(detail.contains("can't use this schema"), "in use: {detail}");
        client.batch_execute(&format!("DROP SCHEMA {prefix} CASCADE")).unwrap();
    }
    client.batch_execute("SELECT oban_install('dotted'); ALTER SCHEMA dotted RENAME TO \"a.b\"").unwrap();
    let detail = wrong(&mut client).into_iter().find(|(item, _)| item == "prefix a.b").unwrap().1;
    assert!(detail.contains("contains a dot"), "{detail}");
}

/// A schema with Oban's tables and without anything of obanrs is no fault, whether it was uninstalled or
/// never installed. A schema that is installed in part, or in use, is one.
#[test]
fn a_prefix_that_is_not_installed_is_no_fault() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    client.batch_execute("SELECT oban_install('billing')").unwrap();
    assert_eq!(wrong(&mut client), []);
    client
        .batch_execute(
            "SELECT oban_uninstall('billing'); CREATE SCHEMA alien; CREATE TABLE alien.oban_jobs (status text);
             CREATE SCHEMA plain; CREATE TABLE plain.oban_jobs (LIKE oban_jobs);
             CREATE TABLE plain.oban_peers (
                 name text PRIMARY KEY, node text, started_at timestamp, expires_at timestamp)",
        )
        .unwrap();
    assert_eq!(wrong(&mut client), []);
    for prefix in ["billing", "plain", "alien"] {
        let rows = format!(
            "SELECT string_agg(item || ': ' || detail, '; ') FROM oban_check() WHERE item LIKE '%{prefix}%'"
        );
        let expected =
            format!("prefix {prefix}: not installed; if it shall be, SELECT oban_install('{prefix}')");
        assert_eq!(client.one::<String>(&rows), expected);
    }
    // Each part is installed by itself.
    for part in [
        "ALTER TABLE plain.oban_peers ADD COLUMN term bigint",
        "CREATE TRIGGER obanrs_peers_rows AFTER INSERT ON plain.oban_peers FOR EACH ROW EXECUTE FUNCTION obanrs_peers()",
        "CREATE TRIGGER obanrs_jobs_insert AFTER INSERT ON plain.oban_jobs REFERENCING NEW TABLE AS n
         FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert()",
    ] {
        client.batch_execute(part).unwrap();
        let detail = only_wrong(&mut client, "prefix plain");
        follow(&mut client, &detail);
        assert_eq!(wrong(&mut client), [], "{part}");
        client.batch_execute("SELECT oban_uninstall('plain')").unwrap();
        assert_eq!(wrong(&mut client), [], "{part}");
    }
    // The schema is in use: it has members and gossip, and no keeper serves it.
    for (begin, end) in [
        (
            "SELECT oban_gossip_put('a', 'q', prefix => 'billing')",
            "SELECT oban_gossip_delete('a', prefix => 'billing')",
        ),
        ("SELECT oban_join('a', prefix => 'billing')", "SELECT oban_leave(member) FROM oban_members"),
    ] {
        client.batch_execute(begin).unwrap();
        let found = wrong(&mut client);
        assert!(
            found.iter().any(|(item, d)| item == "prefix billing" && d.contains("oban_install")),
            "{found:?}"
        );
        client.batch_execute(end).unwrap();
        assert_eq!(wrong(&mut client), [], "{begin}");
    }
    // At least one prefix has to be installed.
    client.batch_execute("SELECT oban_uninstall()").unwrap();
    assert!(only_wrong(&mut client, "prefix").contains("SELECT oban_install()"));
    client.batch_execute("SELECT oban_install()").unwrap();
    assert_eq!(wrong(&mut client), []);
}

/// Each kind of publication that has oban_peers is named, with the statement that takes the table out.
#[test]
fn a_publication_of_leaders_is_named() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    let item = "publication of public.oban_peers";
    client.batch_execute("CREATE PUBLICATION p FOR TABLE oban_jobs, oban_peers").unwrap();
    let detail = only_wrong(&mut client, item);
    follow(&mut client, &detail);
    assert_eq!(wrong(&mut client), [], "{detail}");
    for publication in ["FOR ALL TABLES", "FOR TABLES IN SCHEMA public", "FOR TABLE oban_peers"] {
        client.batch_execute(&format!("DROP PUBLICATION p; CREATE PUBLICATION p {publication}")).unwrap();
        let detail = only_wrong(&mut client, item);
        assert!(detail.contains("publication p: "), "{publication}: {detail}");
    }
    client.batch_execute("ALTER PUBLICATION p SET (publish = '')").unwrap();
    assert_eq!(wrong(&mut client), []);
    // On the other side a subscription has the table.
    client
        .batch_execute(
            "DROP PUBLICATION p; CREATE PUBLICATION p FOR TABLE oban_jobs;
             CREATE SUBSCRIPTION s CONNECTION 'dbname=none' PUBLICATION p
                 WITH (connect = false, slot_name = NONE, enabled = false)",
        )
        .unwrap();
    assert_eq!(wrong(&mut client), []);
    client
        .batch_execute(
            "INSERT INTO pg_subscription_rel SELECT oid, 'oban_peers'::regclass, 'i' FROM pg_subscription",
        )
        .unwrap();
    assert!(only_wrong(&mut client, item).contains("subscription s"));
    client.batch_execute("DELETE FROM pg_subscription_rel; DROP SUBSCRIPTION s").unwrap();
    // Oban creates the table unlogged, and Postgres never publishes an unlogged table.
    client
        .batch_execute(
            "DROP PUBLICATION p; ALTER TABLE oban_peers SET UNLOGGED; CREATE PUBLICATION p FOR ALL TABLES",
        )
        .unwrap();
    only_wrong(&mut client, "public.oban_peers");
    client.batch_execute("DROP PUBLICATION p; ALTER TABLE oban_peers SET LOGGED").unwrap();
    assert_eq!(wrong(&mut client), []);
}

/// oban_check tests what an election needs. So its answer is right before the first member joins.
#[test]
fn it_is_green_if_and_only_if_a_member_can_lead() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    client.batch_execute("CREATE ROLE tenant; CREATE SCHEMA billing AUTHORIZATION tenant").unwrap();
    client
        .batch_execute("SELECT oban_install('billing'); ALTER TABLE billing.oban_peers OWNER TO tenant")
        .unwrap();
    let t = "ALTER TABLE billing.oban_peers";
    for (change, back, can_lead) in [
        ("ENABLE ROW LEVEL SECURITY", "DISABLE ROW LEVEL SECURITY", true),
        (
            "ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY",
            false,
        ),
        ("FORCE ROW LEVEL SECURITY", "NO FORCE ROW LEVEL SECURITY", true),
        ("ADD COLUMN note text NOT NULL", "DROP COLUMN note", false),
        ("ADD COLUMN note text", "DROP COLUMN note", true),
        ("ADD COLUMN note text GENERATED ALWAYS AS (node) STORED", "DROP COLUMN note", false),
        ("ADD COLUMN note int GENERATED ALWAYS AS IDENTITY", "DROP COLUMN note", false),
    ] {
        client.batch_execute(&format!("{t} {change}")).unwrap();
        let before = wrong(&mut client);
        assert_eq!(before.is_empty(), can_lead, "{change}: {before:?}");
        client.batch_execute("SELECT oban_join('a', prefix => 'billing')").unwrap();
        if can_lead {
            wait_until("it leads", || client.one("SELECT oban_is_leader(prefix => 'billing')"));
        }
        assert_eq!(client.one::<bool>("SELECT oban_is_leader(prefix => 'billing')"), can_lead, "{change}");
        client.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
        wait_until("its row is gone", || client.one("SELECT count(*) = 0 FROM billing.oban_peers"));
        client.batch_execute(&format!("{t} {back}")).unwrap();
        assert_eq!(wrong(&mut client), [], "{back}");
    }
}

#[test]
fn a_partition_whose_triggers_are_off_is_named() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE TABLE oban_jobs {JOBS} PARTITION BY LIST (queue);
             SELECT oban_install();
             CREATE TABLE jobs_a PARTITION OF oban_jobs FOR VALUES IN ('a')"
        ))
        .unwrap();
    wait_until("the keeper runs", || client.one("SELECT ok FROM oban_check() WHERE item = 'keeper'"));
    assert_eq!(wrong(&mut client), [], "a later partition has the triggers by itself");
    client.batch_execute("ALTER TABLE jobs_a DISABLE TRIGGER obanrs_jobs_insert").unwrap();
    let detail = only_wrong(&mut client, "trigger on public.jobs_a");
    follow(&mut client, &detail);
    assert_eq!(wrong(&mut client), []);
    client.batch_execute("ALTER TABLE jobs_a DISABLE TRIGGER USER").unwrap();
    let detail = only_wrong(&mut client, "trigger on public.jobs_a");
    assert!(detail.contains("obanrs_jobs_insert, ENABLE TRIGGER obanrs_jobs_update"), "{detail}");
    follow(&mut client, &detail);
    assert_eq!(wrong(&mut client), []);
}

/// A table that was renamed, or a partition that was detached under an earlier version, has the triggers
/// still. Postgres refuses to attach it.
#[test]
fn a_table_that_can_not_be_attached_is_named() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE TABLE oban_jobs {JOBS}; SELECT oban_install(); ALTER TABLE oban_jobs RENAME TO jobs_old;
             CREATE TABLE oban_jobs (LIKE jobs_old) PARTITION BY LIST (queue); SELECT oban_install()"
        ))
        .unwrap();
    wait_until("the keeper runs", || client.one("SELECT ok FROM oban_check() WHERE item = 'keeper'"));
    let attach = "ALTER TABLE oban_jobs ATTACH PARTITION jobs_old DEFAULT";
    assert_eq!(code(&mut client, attach), "42710");
    let detail = only_wrong(&mut client, "trigger on public.jobs_old");
    follow(&mut client, &detail);
    assert_eq!(wrong(&mut client), []);
    client.batch_execute(attach).unwrap();
    assert_eq!(wrong(&mut client), []);
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'jobs_old'::regclass";
    assert_eq!(client.one::<i64>(triggers), 2);
}

#[test]
fn the_trigger_of_an_earlier_version_is_named_until_it_is_replaced() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    client
        .batch_execute(
            "DROP TRIGGER obanrs_jobs_update ON oban_jobs;
             CREATE OR REPLACE TRIGGER obanrs_jobs_insert AFTER INSERT ON oban_jobs
                 REFERENCING NEW TABLE AS obanrs_inserted FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert()",
        )
        .unwrap();
    let detail = only_wrong(&mut client, "prefix public");
    assert!(detail.contains("on public.oban_jobs") && detail.contains("still work"), "{detail}");
    follow(&mut client, &detail);
    assert_eq!(wrong(&mut client), []);
}

#[test]
fn what_a_role_lacks_is_named_with_its_grant() {
    let cluster = Cluster::installed();
    let mut client = healthy(&cluster);
    client
        .batch_execute("CREATE ROLE app LOGIN; CREATE SCHEMA hidden; SELECT oban_install('hidden')")
        .unwrap();
    client.batch_execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC; SELECT oban_uninstall()").unwrap();
    client.batch_execute("DROP EXTENSION obanrs CASCADE; CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE EXTENSION obanrs SCHEMA ext; SELECT ext.oban_install(), ext.oban_install('hidden')").unwrap();
    let mut app = cluster.client_as("postgres", "app");
    app.batch_execute("SET search_path = ext").unwrap();
    wait_until("the keeper runs", || app.one("SELECT ok FROM oban_check() WHERE item = 'keeper'"));
    assert!(only_wrong(&mut app, "prefix").contains("GRANT USAGE"), "it may see nothing at all");
    client.batch_execute("GRANT USAGE ON SCHEMA public TO app").unwrap();
    let detail = only_wrong(&mut app, "rights on public");
    // One row names all three grants.
    follow(&mut client, &detail);
    assert_eq!(detail.matches("GRANT").count(), 3, "{detail}");
    assert_eq!(wrong(&mut app), [], "and of the prefix that is none of its business it hears nothing");
    // A role with SELECT only, which is meant to read, lacks nothing. It is told of everything else.
    client.batch_execute("REVOKE INSERT, UPDATE ON public.oban_jobs FROM app").unwrap();
    assert_eq!(wrong(&mut app), []);
    let told: String = app.one("SELECT detail FROM oban_check() WHERE item = 'rights on public'");
    assert!(told.contains("GRANT INSERT") && told.contains("GRANT UPDATE"), "{told}");
}

/// A transaction that has called oban_check holds up no DDL of others.
#[test]
fn oban_check_keeps_no_lock_on_tables() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("ALTER TABLE oban_peers ADD CONSTRAINT c CHECK (true)").unwrap();
    for mend in ["SELECT", "ALTER TABLE oban_peers DROP CONSTRAINT c"] {
        client.batch_execute(mend).unwrap();
        client.batch_execute("BEGIN; SELECT * FROM oban_check()").unwrap();
        let locks = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
            WHERE l.pid = pg_backend_pid() AND c.relnamespace = 'public'::regnamespace AND c.relname LIKE 'oban_peers%'";
        assert_eq!(client.one::<i64>(locks), 0, "{mend}");
        client.batch_execute("COMMIT").unwrap();
    }
}

/// Postgres finds the function by the newest catalogs. So the function has to read those, too.
#[test]
fn a_snapshot_that_is_older_than_the_extension_does_not_matter() {
    let cluster = Cluster::installed();
    let (mut client, mut other) = (cluster.client(), cluster.client());
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    other.batch_execute("DROP EXTENSION obanrs CASCADE; CREATE EXTENSION obanrs").unwrap();
    assert!(client.one::<bool>("SELECT ok FROM oban_check() WHERE item = 'version'"));
}
