//! Does each function raise the errors that its comment announces, and no others?

use std::collections::BTreeSet;

use postgres::Client;

use super::{function_of, functions, is_announced, outcome};
use crate::support::comments::announced;
use crate::support::{Ask, Cluster};

/// SQLSTATEs that these calls can't provoke, each with the reason.
const NOT_PROVOKED: &[(&str, &str, &str)] = &[
    ("oban_install", "40001", "a race with DDL: install/races.rs meets it"),
    ("oban_install", "42P07", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_install", "23505", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_uninstall", "40001", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_orphans", "40001", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_pause_queue", "40001", "a race with DDL: the comment says how it ends"),
    ("oban_resume_queue", "40001", "a race with DDL, as for oban_pause_queue"),
    ("oban_scale_queue", "40001", "a race with DDL, as for oban_pause_queue"),
    ("oban_fetch", "40001", "a race: strangers that claim at the same time in a table partitioned by state"),
    ("oban_take", "40001", "a race, as for oban_fetch"),
    ("oban_prune", "40001", "a race: another transaction deletes a job after the snapshot"),
    ("oban_take", "54000", "jobs of 250 MB: jobs/take.rs meets it"),
    ("oban_listen_channels", "0A000", "a background worker that runs SQL, of another extension"),
];

/// The errors that calls raised: pairs of a function and a SQLSTATE.
#[derive(Default)]
struct Raised(BTreeSet<(String, String)>);

impl Raised {
    /// Runs a statement. If it fails, asserts that its function announces the SQLSTATE.
    fn run(&mut self, client: &mut Client, sql: &str) {
        if let Err(error) = outcome(client, sql) {
            let code = error.code().code();
            is_announced(sql, code);
            self.0.insert((function_of(sql).to_owned(), code.to_owned()));
        }
    }

    /// Calls each function after `before`, with valid arguments except those in `but`. Calls only functions
    /// that have one of these, if there are any.
    fn run_all(&mut self, client: &mut Client, before: &str, but: &[(&str, &str)]) {
        for function in
            functions(client).iter().filter(|f| but.is_empty() || but.iter().any(|(a, _)| f.has(a)))
        {
            client.batch_execute(before).unwrap();
            self.run(client, &function.call(but));
            client.batch_execute("ROLLBACK").unwrap();
        }
    }
}

/// The comment on each function announces exactly the errors that its calls raise. (An end by Postgres
/// itself, such as a cancellation, does not count.)
#[test]
fn functions_announce_the_errors_that_they_raise_and_no_others() {
    let mut raised = Raised::default();
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_rings = 1"]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); CREATE ROLE nobody LOGIN; CREATE SCHEMA bare;
             REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE TABLE bare.oban_peers (name text); CREATE VIEW a_view AS SELECT 1 AS id;
             CREATE SCHEMA odd; CREATE TABLE odd.oban_jobs (id int); CREATE SCHEMA kind; CREATE TYPE kind.oban_jobs AS (id int); CREATE SCHEMA zone; CREATE TABLE zone.oban_jobs (id int, scheduled_at timestamptz); CREATE SCHEMA picky; SELECT oban_install('picky'); CREATE FUNCTION picky.none() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER none BEFORE INSERT ON picky.oban_jobs FOR EACH ROW EXECUTE FUNCTION picky.none(); CREATE ROLE other; GRANT INSERT ON oban_jobs TO other",
        )
        .unwrap();

    // Each argument is NULL, empty, too long, or of another kind.
    for function in functions(&mut client) {
        for (name, kind, _) in &function.arguments {
            let mut values = vec!["NULL"];
            match kind.as_str() {
                "text" => values.extend(["''", "repeat('x', 9000)"]),
                "text[]" => values.extend(["ARRAY['']", "ARRAY[NULL]", "array_fill('a'::text, ARRAY[2000])"]),
                "interval" => values.extend(["'-1 s'", "'1000 years'"]),
                "jsonb" => values.extend(["'[]'"]),
                "jsonb[]" => values.extend(["ARRAY[NULL]::jsonb[]", "ARRAY['1']::jsonb[]"]),
                "bigint" | "integer" => values.extend(["-1"]),
                "regclass" => values.extend(["99999999", "'a_view'"]),
                "name" => values.extend(["'nowhere'"]),
                _ => {}
            }
            values.iter().for_each(|value| raised.run(&mut client, &function.call(&[(name, value)])));
        }
    }
    for prefix in ["'nowhere'", "'pg_catalog'", "'a.b'", "'bare'", "'odd'", "'kind'", "'zone'", "'picky'"] {
        raised.run_all(&mut client, "BEGIN", &[("prefix", prefix)]);
        raised.run_all(&mut client, "BEGIN", &[("prefix", prefix), ("node", "'x'")]);
    }
    for prefix in ["bare", "odd", "kind"] {
        raised.run(&mut client, &format!("SELECT * FROM oban_rescue('{prefix}')"));
        raised.run(&mut client, &format!("CALL oban_take('{{a}}', 'n', prefix => '{prefix}')"));
    }
    raised.run_all(&mut client, "BEGIN READ ONLY", &[]);
    raised.run_all(&mut client, "BEGIN", &[]);
    raised.run_all(&mut client, "SET obanrs.require_lease = on; BEGIN", &[]);
    client.batch_execute("RESET obanrs.require_lease").unwrap();
    let mut nobody = cluster.client_as("postgres", "nobody");
    raised.run_all(&mut nobody, "BEGIN", &[]);
    raised.run(&mut nobody, "SELECT oban_install('bare')");

    // Each of these is an obstacle to one function.
    let member: i64 = client.one("SELECT oban_join('taken', 'Taken')");
    let noise =
        "(SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 2000) i)";
    let mut other = cluster.client();
    for sql in [
        "SELECT oban_join('taken', 'Taken')".to_owned(),
        format!("SELECT oban_notify('insert', {noise})"),
        format!("SELECT oban_notify_many('insert', ARRAY[{noise}])"),
        format!("SELECT oban_encode({noise})"),
    ] {
        raised.run(&mut other, &sql);
    }
    other.batch_execute("SET ROLE other").unwrap();
    for function in ["renew", "resign", "leave"] {
        raised.run(&mut other, &format!("SELECT oban_{function}({member})"));
    }
    raised.run(&mut other, "SELECT oban_join('taken', 'Taken', replace => true)");
    other.batch_execute("RESET ROLE; BEGIN; LOCK TABLE bare.oban_peers").unwrap();
    client.batch_execute("CREATE ROLE owner; CREATE SCHEMA locked; SELECT oban_install('locked')").unwrap();
    client.batch_execute("DROP TRIGGER obanrs_jobs_insert ON locked.oban_jobs").unwrap();
    client.batch_execute("SELECT oban_watch('locked.oban_jobs', 'c')").unwrap();
    other.batch_execute("LOCK TABLE locked.oban_jobs, locked.oban_peers").unwrap();
    raised.run(&mut client, "SELECT oban_watch('locked.oban_jobs', 'd')");
    raised.run(&mut client, "SELECT oban_unwatch('locked.oban_jobs')");
    raised.run(&mut client, "SELECT oban_install('locked')");
    raised.run(&mut client, "SELECT oban_uninstall('locked')");
    other.batch_execute("ROLLBACK").unwrap();
    for call in [
        "notify('news', '{}')",
        "notify_many('news', ARRAY['{}']::jsonb[])",
        "notify_text('news')",
        "pause_queue('a')",
        "resume_queue('a')",
        "scale_queue('a', 1)",
        "start_queue('a', 1)",
        "stop_queue('a')",
        "pkill_job(1)",
    ] {
        client.batch_execute(&format!("BEGIN; SELECT oban_{call}")).unwrap();
        let error = client.batch_execute("PREPARE TRANSACTION 'x'").unwrap_err();
        raised.0.insert((
            function_of(&format!("oban_{call}")).to_owned(),
            error.code().unwrap().code().to_owned(),
        ));
    }
    // These are signals that can't be queued, or not be remembered.
    let signals = ["pause_queue('a')", "resume_queue('a')", "scale_queue('a', 1)", "start_queue('a', 1)"];
    for call in signals.into_iter().chain(["stop_queue('a')", "pkill_job(1)"]) {
        raised.run(&mut client, &format!("SELECT oban_{call} FROM generate_series(1, 100001)"));
    }
    let running: i64 = client
        .one("INSERT INTO oban_jobs (worker, args, state) VALUES ('w', '{}', 'executing') RETURNING id");
    let cancel = format!("SELECT oban_cancel_job({running})");
    client
        .batch_execute("BEGIN; SELECT oban_pkill_job(1) FROM generate_series(1, 100000); SAVEPOINT s")
        .unwrap();
    raised.run(&mut client, &cancel);
    client.batch_execute(&format!("ROLLBACK; BEGIN; {cancel}")).unwrap();
    let error = client.batch_execute("PREPARE TRANSACTION 'x'").unwrap_err();
    raised.0.insert(("oban_cancel_job".into(), error.code().unwrap().code().to_owned()));
    let mut holder = cluster.client();
    holder.batch_execute("BEGIN; LOCK TABLE obanrs_queue_signals").unwrap();
    for call in &signals[..3] {
        raised.run(&mut client, &format!("SELECT oban_{call}"));
    }
    raised.run(&mut client, "SELECT * FROM oban_fetch('{a}', 'n')");
    raised.run(&mut client, "CALL oban_take('{a}', 'n')");
    holder.batch_execute("ROLLBACK").unwrap();
    client.batch_execute("CREATE VIEW depends AS SELECT * FROM obanrs_queue_signals").unwrap();
    raised.run(&mut client, "SELECT oban_uninstall()");
    client.batch_execute("DROP VIEW depends").unwrap();
    // These calls are made in a security-restricted operation.
    for call in ["listen_channels", "unlisten_channels", "join"] {
        let argument = if call == "join" { "'x'" } else { "" };
        client
            .batch_execute(&format!(
                "CREATE TABLE indexed (a int); INSERT INTO indexed VALUES (1);
                 CREATE FUNCTION restricted(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
                     $$ BEGIN PERFORM oban_{call}({argument}); RETURN 1; END $$"
            ))
            .unwrap();
        let error = client.batch_execute("CREATE INDEX ON indexed (restricted(a))").unwrap_err();
        raised.0.insert((format!("oban_{call}"), error.code().unwrap().code().to_owned()));
        client.batch_execute("DROP TABLE indexed; DROP FUNCTION restricted").unwrap();
    }
    // These are texts that nodes can't read, in databases of other encodings.
    for (encoding, bytes) in [("WIN1252", "\\x81"), ("SQL_ASCII", "\\xe9")] {
        let create =
            format!("CREATE DATABASE {encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        client.batch_execute(&create).unwrap();
        let mut client = cluster.client_of(&encoding.to_lowercase());
        client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
        let odd = format!("jsonb_build_object('x', convert_from('{bytes}', '{encoding}'))");
        for call in [
            format!("oban_gossip_put('a', 'q', {odd})"),
            format!("oban_notify('insert', {odd})"),
            format!("oban_notify_many('insert', ARRAY[{odd}])"),
            format!("oban_encode({odd})"),
        ] {
            raised.run(&mut client, &format!("SELECT {call}"));
        }
    }
    // The only ring is taken. Below, the only place for a member is.
    client.batch_execute("SELECT oban_position()").unwrap();
    client.batch_execute("CREATE DATABASE second").unwrap();
    let mut second = cluster.client_of("second");
    second.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    raised.run_all(&mut second, "BEGIN; ROLLBACK", &[]);
    let small =
        ["shared_preload_libraries = 'obanrs'", "obanrs.max_members = 1", "obanrs.gossip_memory = 64kB"];
    let small = Cluster::start(&small);
    let mut client = small.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(), oban_join('a')").unwrap();
    raised.run(&mut small.client(), "SELECT oban_join('b', 'Other')");
    let pad = "jsonb_build_object('x', repeat('x', 60000))";
    (1..4).for_each(|i| raised.run(&mut client, &format!("SELECT oban_gossip_put('a', 'q{i}', {pad})")));

    // These servers are without preload, and in recovery.
    let bare = Cluster::start(&[]);
    bare.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    raised.run_all(&mut bare.client(), "BEGIN; ROLLBACK", &[]);
    client
        .batch_execute("ALTER TABLE oban_peers SET UNLOGGED; ALTER TABLE obanrs_queue_signals SET UNLOGGED")
        .unwrap();
    let standby = small.standby(&[]);
    small.wait_for_standby(&standby);
    raised.run_all(&mut standby.client(), "BEGIN; ROLLBACK", &[]);

    let known = NOT_PROVOKED.iter().map(|(function, code, _)| ((*function).to_owned(), (*code).to_owned()));
    let known: BTreeSet<_> = known.collect();
    let mut announced_by_all = BTreeSet::new();
    for function in functions(&mut bare.client()) {
        let codes = announced(&function.name).into_iter().flatten();
        announced_by_all.extend(codes.map(|code| (function.name.clone(), code.clone())));
    }
    let met: BTreeSet<_> = raised.0.union(&known).cloned().collect();
    let never: Vec<_> = announced_by_all.difference(&met).collect();
    assert!(never.is_empty(), "announced, and never raised: {never:#?}");
    let listed: Vec<_> =
        known.iter().filter(|pair| raised.0.contains(pair) || !announced_by_all.contains(pair)).collect();
    assert!(listed.is_empty(), "provoked after all, or not announced: {listed:#?}");
}
