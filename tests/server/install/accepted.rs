//! Which tables does `oban_install` accept, and what does it say about the others?

use postgres::Client;

use super::{PEERS, tenant, triggers};
use crate::support::{Ask, Cluster, JOBS, code, wait_until};

/// A renamed table keeps the names of its indexes, and a type may have a table's name. The error gives the
/// name that is taken.
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
    assert_eq!(all(&mut root), [2; 4]);
    tenant.batch_execute("CREATE TABLE t.c PARTITION OF t.oban_jobs DEFAULT").unwrap();
    assert_eq!(triggers(&mut root, "t.c"), 2);
    assert_eq!(code(&mut tenant, "SELECT oban_uninstall('t')"), "42501");
    assert_eq!(all(&mut root), [2; 4]);
    root.batch_execute("SELECT oban_uninstall('t')").unwrap();
    assert_eq!(all(&mut root), [0; 4]);
}

/// A table that an earlier version has installed may have an obstacle. `oban_install` does not refuse it: a
/// WARNING says that the table holds no elections any more, and what removes the obstacle.
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

/// `oban_install` refuses a table of jobs that is not Oban's, or that Oban has to migrate first, and the
/// error says why. It warns of such a table that an earlier version has installed, whose wakeups go on.
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
    // A user's own table has what the trigger reads.
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
    // This is a table of Oban's migration 10. Real migrations leave such a comment.
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

    // This is a table as 0.4.0 installed it.
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
    client
        .batch_execute(
            "DROP TRIGGER obanrs_jobs_insert ON t.oban_jobs; DROP TRIGGER obanrs_jobs_update ON t.oban_jobs",
        )
        .unwrap();
    refused(&mut client, "something would be added");
    client.batch_execute("SELECT oban_uninstall('t')").unwrap();
}

/// The rows that the trigger reads contain a stored generated column. They do not contain a virtual one, and
/// the trigger counts that.
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
                client.batch_execute("DROP TRIGGER obanrs_jobs_insert ON oban_jobs; DROP TRIGGER obanrs_jobs_update ON oban_jobs").unwrap();
                assert_eq!(code(&mut client, "SELECT oban_install()"), "22023", "{column}");
            }
        }
    }
}

/// A read-only transaction refuses the call also when nothing is missing.
#[test]
fn read_only_transactions_install_nothing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for call in ["oban_install()", "oban_install('new')", "oban_uninstall()"] {
        assert_eq!(code(&mut client, &format!("BEGIN READ ONLY; SELECT {call}")), "25006", "{call}");
        client.batch_execute("ROLLBACK").unwrap();
    }
}
