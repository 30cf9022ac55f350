//! Errors are an interface: the SQLSTATE, the value that was wrong, and a hint that helps. Over all
//! functions that the extension has, as the catalog lists them, so that none is left out.

use std::collections::BTreeSet;

use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};

use crate::support::comments::announced;
use crate::support::{Ask, Cluster};

/// A function of the SQL surface and its arguments: name, type, default.
pub struct Function {
    pub name: String,
    is_procedure: bool,
    pub arguments: Vec<(String, String, Option<String>)>,
}

fn functions(client: &mut Client) -> Vec<Function> {
    functions_like(client, "oban\\_%")
}

pub fn functions_like(client: &mut Client, pattern: &str) -> Vec<Function> {
    let sql = "
        SELECT p.proname::text, a.name, format_type(a.type, NULL), pg_get_function_arg_default(p.oid, a.n::int),
               p.prokind = 'p'
        FROM pg_depend d
        JOIN pg_proc p ON p.oid = d.objid
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs'
        LEFT JOIN LATERAL unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY a (name, type, n)
            ON a.type IS NOT NULL
        WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND p.proname LIKE $1
        ORDER BY p.oid, a.n";
    let mut found: Vec<Function> = Vec::new();
    for row in client.query(sql, &[&pattern]).unwrap() {
        let name: String = row.get(0);
        if found.last().is_none_or(|f| f.name != name) {
            found.push(Function { name, is_procedure: row.get(4), arguments: Vec::new() });
        }
        if let Some(argument) = row.get::<_, Option<String>>(1) {
            found.last_mut().unwrap().arguments.push((argument, row.get(2), row.get(3)));
        }
    }
    assert!(found.len() > 15, "{} functions were found", found.len());
    found
}

/// What works for an argument of that name.
fn valid(argument: &str) -> &'static str {
    match argument {
        "after" | "position" | "missed" | "messages" => "NULL",
        "channel" => "'insert'",
        "grace" => "'1 minute'",
        "channels" => "'{insert}'",
        "candidate" => "true",
        "lease" | "queues" | "stage" | "ttl" => "NULL",
        "max_messages" => "10",
        "member" => "1",
        "name" => "'Oban'",
        "node" => "'web.1'",
        "payload" => "'{}'",
        "payloads" => "ARRAY['{}']::jsonb[]",
        "prefix" => "'public'",
        "queue" => "'default'",
        "replace" => "false",
        "state" => "'{}'",
        "term" => "1",
        "timeout" => "'1 millisecond'",
        "wire" => "'{}'",
        other => panic!("what is a valid {other}? Say so here"),
    }
}

impl Function {
    /// A call with valid arguments but for these.
    pub fn call(&self, but: &[(&str, &str)]) -> String {
        let argument = |(name, kind, _): &(String, String, Option<String>)| {
            let value = but.iter().find(|(n, _)| n == name).map_or(valid(name), |(_, value)| value);
            format!("\"{name}\" => ({value})::{kind}")
        };
        let arguments: Vec<String> = self.arguments.iter().map(argument).collect();
        let verb = if self.is_procedure { "CALL" } else { "SELECT * FROM" };
        format!("{verb} {}({})", self.name, arguments.join(", "))
    }

    fn has(&self, argument: &str) -> bool {
        self.arguments.iter().any(|(name, ..)| name == argument)
    }
}

fn outcome(client: &mut Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, DbError> {
    client.simple_query(sql).map_err(|e| e.as_db_error().unwrap_or_else(|| panic!("{sql}: {e}")).clone())
}

/// The function that a statement calls.
fn function_of(sql: &str) -> &str {
    let calls = sql.match_indices("oban").map(|(at, _)| {
        let end = sql[at..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(sql.len() - at);
        (&sql[at..at + end], &sql[at + end..])
    });
    let mut called = calls.filter(|(_, rest)| rest.starts_with('(')).map(|(name, _)| name);
    called.next().unwrap_or_else(|| panic!("{sql} calls no function"))
}

/// The comment on the function that a statement calls announces this SQLSTATE.
fn is_announced(sql: &str, code: &str) {
    let function = function_of(sql);
    let announced = announced(function).unwrap_or_else(|| panic!("{function} has no comment"));
    assert!(announced.contains(code), "{code} is not under Errors in the comment on {function}: {sql}");
}

/// The statement fails with this SQLSTATE, which its function announces; the message shows the value, the hint names
/// what helps.
fn refused(client: &mut Client, sql: &str, code: &str, shows: &str, helps: &str) {
    let error = outcome(client, sql).expect_err(sql);
    assert_eq!(error.code().code(), code, "{sql}: {error}");
    is_announced(sql, code);
    assert!(error.message().contains(shows), "{sql}: the message does not show {shows}: {error}");
    let hint = error.hint().unwrap_or_else(|| panic!("{sql}: no hint: {error}"));
    assert!(hint.contains(helps), "{sql}: the hint does not name {helps}: {hint}");
    assert!(error.detail().is_none_or(|d| !d.contains("backtrace")), "{sql}: {:?}", error.detail());
}

#[test]
fn a_null_argument_is_an_error_that_names_it() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let mut tried = 0;
    for function in functions(&mut client) {
        for (name, _, default) in &function.arguments {
            let optional = default.as_ref().is_some_and(|d| d.starts_with("NULL"));
            // No term is a term that is not held: 40001.
            let of_fence = function.name == "oban_fence" && name == "term";
            if !optional && !of_fence {
                let call = function.call(&[(name, "NULL")]);
                refused(&mut client, &call, "22004", &format!("\"{name}\""), name);
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "only {tried} arguments were tried");
    for call in [
        "oban_notify_many('insert', ARRAY['{}', NULL]::jsonb[])",
        "oban_listen_channels(ARRAY['insert', NULL])",
    ] {
        refused(&mut client, &format!("SELECT {call}"), "22004", "", "Leave");
    }
}

/// Every text of every function: empty, and far too long. Nothing is cut in silence.
#[test]
fn empty_and_endless_texts_are_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for function in functions(&mut client) {
        for (name, kind, _) in &function.arguments {
            let (empty, endless) = match kind.as_str() {
                "text" => ("''", "repeat('x', 3000)"),
                "text[]" => ("ARRAY['']", "ARRAY[repeat('x', 3000)]"),
                _ => continue,
            };
            // The empty prefix means the channel as it is named.
            let verbatim = name == "prefix" && (function.has("channel") || function.has("channels"));
            if !verbatim {
                let call = function.call(&[(name, empty)]);
                refused(&mut client, &call, "22023", "", "");
            }
            let call = function.call(&[(name, endless)]);
            refused(&mut client, &call, "22023", "", "");
            let error = outcome(&mut client, &call).unwrap_err();
            assert!(error.message().len() < 500, "it shows an excerpt only: {error}");
        }
    }
}

#[test]
fn a_prefix_that_does_not_exist_is_named() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for function in functions(&mut client).iter().filter(|f| f.has("prefix")) {
        let call = function.call(&[("prefix", "'nowhere'")]);
        match function.name.as_str() {
            // One creates it, the other only takes names off this session's list.
            "oban_install" | "oban_unlisten_channels" => {
                assert!(outcome(&mut client, &call).is_ok(), "{call}")
            }
            _ => refused(&mut client, &call, "3F000", "\"nowhere\"", "oban_install('nowhere')"),
        }
        client.batch_execute("DROP SCHEMA IF EXISTS nowhere CASCADE").unwrap();
    }
}

#[test]
fn wrong_values_are_shown_with_what_helps() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_members = 1"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(), oban_join('taken')").unwrap();
    let mut other = cluster.client();
    let noise =
        "(SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 2000) i)";
    for (call, code, shows, helps) in [
        ("oban_notify('insert', '[]')", "22023", "[]", "wrap it"),
        ("oban_notify('insert', '1')", "22023", "1", "wrap it"),
        ("oban_notify_many('insert', ARRAY['{}', '\"x\"']::jsonb[])", "22023", "\"x\"", "wrap it"),
        ("oban_notify('Insert', '{}')", "22023", "\"Insert\"", "lower-case"),
        ("oban_notify('insert', '{}', 'a.b')", "22023", "\"a.b\"", "rename"),
        ("oban_notify(repeat('x', 60), '{}')", "22023", "72 bytes", "63 bytes"),
        ("oban_listen_channels('{Insert}')", "22023", "\"Insert\"", "lower-case"),
        ("oban_unlisten_channels('{a b}')", "22023", "\"a b\"", "lower-case"),
        ("oban_install('a.b')", "22023", "\"a.b\"", "rename"),
        ("oban_install('pg_temp_3')", "42939", "\"pg_temp_3\"", "another schema"),
        ("oban_install('pg_toast')", "42939", "\"pg_toast\"", "another schema"),
        ("oban_install('information_schema')", "42939", "\"information_schema\"", "another schema"),
        ("oban_install(stage => true)", "0A000", "staging", "README"),
        ("oban_encode('[1]')", "22023", "[1]", "wrap it"),
        ("oban_decode('Z:nonsense')", "22023", "", "H4sI"),
        ("oban_decode('{')", "22023", "\"{\"", "H4sI"),
        ("oban_join('x', lease => '1ms')", "22023", "lease is 0.001 s", "100 ms"),
        ("oban_join('x', lease => '25h')", "22023", "lease is 90000 s", "a day"),
        ("oban_orphans(grace => '-1s')", "22023", "grace is -1 s", "at least 0"),
        ("oban_orphans(grace => '-1us')", "22023", "grace is -0.000001 s", "at least 0"),
        ("oban_orphans(grace => '10 years')", "22023", "grace is 3", "a year"),
        ("oban_orphans('pg_catalog')", "42939", "\"pg_catalog\"", "another schema"),
        ("oban_renew(7)", "55000", "7 is no member", "Join again"),
        ("oban_resign(7)", "55000", "7 is no member", "Join again"),
        ("oban_fence(7)", "40001", "term 7 of \"Oban\"", "oban_renew"),
        ("oban_join('x', repeat('n', 300))", "22023", "\"name\" has 300 bytes", "fit"),
        ("oban_join('x')", "53400", "member", "obanrs.max_members"),
        ("oban_join('x')", "53400", "member", "oban_leave"),
        ("oban_poll(after => -1)", "22023", "-1", "last answer"),
        ("oban_poll(max_messages => 0)", "22023", "max_messages is 0", "at least 1"),
        ("oban_poll(array_fill('a'::text, ARRAY[65]))", "22023", "channels has 65", "64"),
        ("oban_poll('{Insert}')", "22023", "\"Insert\"", "lower-case"),
        ("oban_gossip_put('a', 'q', '[]')", "22023", "", ""),
        ("oban_gossip_put('a', 'q', '{\"running\": 1}')", "22023", "running", ""),
        ("oban_gossip_put('a', 'q', ttl => '0s')", "22023", "ttl", ""),
        ("oban_gossip_put('a', 'q', ttl => '2 years')", "22023", "ttl", ""),
        ("oban_gossip_put('a', 'q', jsonb_build_object('x', repeat('x', 70000)))", "22023", "state", ""),
    ] {
        refused(&mut other, &format!("SELECT {call}"), code, shows, helps);
    }
    // Too long even when packed: random text does not compress.
    for call in [format!("oban_notify('insert', {noise})"), format!("oban_encode({noise})")] {
        refused(&mut other, &format!("SELECT {call}"), "54000", "7999", "table");
    }
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    refused(&mut other, "SELECT oban_join('taken')", "23505", "\"taken\"", &pid.to_string());
    let read_only = "BEGIN READ ONLY; SELECT oban_install('new')";
    refused(&mut other, read_only, "25006", "install", "READ WRITE");
    other.batch_execute("ROLLBACK").unwrap();
    let error = outcome(&mut other, "SET obanrs.no_such_setting = 1").unwrap_err();
    assert_eq!(error.code().code(), "42602");
    for (call, code, shows, helps) in [
        ("oban_wait(timeout => '-1s')", "22023", "timeout is -1 s", "at most a day"),
        ("oban_wait(timeout => '25h')", "22023", "timeout is 90000 s", "at most a day"),
        ("oban_wait(after => -7)", "22023", "-7", "last answer"),
    ] {
        refused(&mut other, &format!("CALL {call}"), code, shows, helps);
    }
    for block in [
        "BEGIN; CALL oban_wait()",
        "BEGIN; DO $$ DECLARE p bigint; m bigint; j jsonb; BEGIN CALL oban_wait(\"position\" => p, missed => m, messages => j); END $$",
    ] {
        refused(&mut other, block, "25001", "oban_wait", "oban_poll");
        other.batch_execute("ROLLBACK").unwrap();
    }
    // None of it changed anything.
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_members"), 1);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_gossip"), 0);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_namespace WHERE nspname IN ('a.b', 'new')"), 0);
}

/// SQLSTATEs that no call provokes at will, and why.
const NOT_PROVOKED: &[(&str, &str, &str)] = &[
    ("oban_install", "40001", "a race with DDL: install.rs meets it"),
    ("oban_install", "42P07", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_install", "23505", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_uninstall", "40001", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_orphans", "40001", "a race with DDL: soak_hostile_calls meets it"),
    ("oban_listen_channels", "0A000", "a background worker that runs SQL, of another extension"),
];

/// What calls raised: functions, each with a SQLSTATE.
#[derive(Default)]
struct Raised(BTreeSet<(String, String)>);

impl Raised {
    /// Runs a statement. If it fails, its function has announced that.
    fn run(&mut self, client: &mut Client, sql: &str) {
        if let Err(error) = outcome(client, sql) {
            let code = error.code().code();
            is_announced(sql, code);
            self.0.insert((function_of(sql).to_owned(), code.to_owned()));
        }
    }

    /// Calls each function, after `before`, and with valid arguments but for these where it has them.
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

/// The comments announce what calls raise, function by function, and nothing else. (A call that Postgres itself ends,
/// as when it is cancelled, is no function's own.)
#[test]
fn functions_announce_the_errors_that_they_raise_and_no_others() {
    let mut raised = Raised::default();
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_rings = 1"]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); CREATE ROLE nobody LOGIN; CREATE SCHEMA bare;
             REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE TABLE bare.oban_peers (name text);
             CREATE SCHEMA odd; CREATE TABLE odd.oban_jobs (id int); CREATE SCHEMA kind; CREATE TYPE kind.oban_jobs AS (id int); CREATE ROLE other; GRANT INSERT ON oban_jobs TO other",
        )
        .unwrap();

    // Every argument: NULL, empty, endless, of another kind.
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
                _ => {}
            }
            values.iter().for_each(|value| raised.run(&mut client, &function.call(&[(name, value)])));
        }
    }
    for prefix in ["'nowhere'", "'pg_catalog'", "'a.b'", "'bare'", "'odd'", "'kind'"] {
        raised.run_all(&mut client, "BEGIN", &[("prefix", prefix)]);
        raised.run_all(&mut client, "BEGIN", &[("prefix", prefix), ("node", "'x'")]);
    }
    raised.run_all(&mut client, "BEGIN READ ONLY", &[]);
    raised.run_all(&mut client, "BEGIN", &[]);
    raised.run_all(&mut client, "SET obanrs.require_lease = on; BEGIN", &[]);
    client.batch_execute("RESET obanrs.require_lease").unwrap();
    let mut nobody = cluster.client_as("postgres", "nobody");
    raised.run_all(&mut nobody, "BEGIN", &[]);
    raised.run(&mut nobody, "SELECT oban_install('bare')");

    // What is in the way of one function.
    let member: i64 = client.one("SELECT oban_join('taken', 'Taken')");
    let noise =
        "(SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 2000) i)";
    let mut other = cluster.client();
    for sql in [
        "SELECT oban_join('taken', 'Taken')".to_owned(),
        format!("SELECT oban_notify('insert', {noise})"),
        format!("SELECT oban_notify_many('insert', ARRAY[{noise}])"),
        format!("SELECT oban_encode({noise})"),
        "SELECT oban_install(stage => true)".into(),
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
    other.batch_execute("LOCK TABLE locked.oban_jobs, locked.oban_peers").unwrap();
    raised.run(&mut client, "SELECT oban_install('locked')");
    raised.run(&mut client, "SELECT oban_uninstall('locked')");
    other.batch_execute("ROLLBACK").unwrap();
    for call in ["notify('news', '{}')", "notify_many('news', ARRAY['{}']::jsonb[])"] {
        client.batch_execute(&format!("BEGIN; SELECT oban_{call}")).unwrap();
        let error = client.batch_execute("PREPARE TRANSACTION 'x'").unwrap_err();
        raised.0.insert((
            function_of(&format!("oban_{call}")).to_owned(),
            error.code().unwrap().code().to_owned(),
        ));
    }
    // A security-restricted operation.
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
    // What is no text for nodes, in databases of other encodings.
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
    // The only ring is taken; the only place for a member is.
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

    // Without preload, and in recovery.
    let bare = Cluster::start(&[]);
    bare.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    raised.run_all(&mut bare.client(), "BEGIN; ROLLBACK", &[]);
    client.batch_execute("ALTER TABLE oban_peers SET UNLOGGED").unwrap();
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

/// As Postgres' own functions of triggers do.
#[test]
fn a_trigger_function_that_is_called_says_so() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for function in ["obanrs_jobs_insert", "obanrs_peers"] {
        refused(&mut client, &format!("SELECT {function}()"), "39P01", function, "oban_install");
    }
}

/// These functions work, and every other one raises 55000 with this.
fn works_or_says_why_not(client: &mut Client, works: &[&str], shows: &str, helps: &str) {
    let functions = functions(client);
    for name in works {
        assert!(functions.iter().any(|f| f.name == *name), "there is no {name}");
    }
    for function in functions {
        let call = function.call(&[]);
        if works.contains(&function.name.as_str()) {
            outcome(client, &call).unwrap_or_else(|e| panic!("{call}: {e}"));
        } else {
            refused(client, &call, "55000", shows, helps);
        }
    }
}

/// Without preload, what needs no shared memory works, and all the rest says what is missing.
#[test]
fn without_preload_functions_work_or_say_why_not() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute("CREATE SCHEMA \"Odd_one\"").unwrap();
    // The notice goes to the client, and with this setting to the log too.
    client
        .batch_execute("SET log_min_messages = notice; CREATE EXTENSION obanrs SCHEMA \"Odd_one\"")
        .unwrap();
    assert!(cluster.log().contains("obanrs is not loaded at server start"), "{}", cluster.log());
    assert!(outcome(&mut client, "SELECT oban_version()").is_err(), "it is where the user wanted it");
    client.batch_execute("SET search_path = \"Odd_one\", public; SELECT oban_install()").unwrap();
    client
        .batch_execute("SELECT oban_listen_channels(); INSERT INTO oban_jobs (worker) VALUES ('w')")
        .unwrap();
    let works = [
        "oban_version",
        "oban_check",
        "oban_install",
        "oban_uninstall",
        "oban_notify",
        "oban_notify_many",
        "oban_listen_channels",
        "oban_unlisten_channels",
        "oban_encode",
        "oban_decode",
        "oban_leader",
    ];
    works_or_says_why_not(&mut client, &works, "not loaded", "shared_preload_libraries");
    // A query of the monitoring's goes on.
    for view in ["oban_members", "oban_gossip", "oban_workers", "oban_stats"] {
        assert_eq!(client.one::<i64>(&format!("SELECT count(*) FROM {view}")), 0, "{view}");
    }
    let why = "SELECT detail FROM oban_check() WHERE item = 'preload' AND NOT ok";
    let why: String = client.one(why);
    assert!(why.contains("views are empty") && why.contains("shared_preload_libraries"), "{why}");
    outcome(&mut client, "SELECT * FROM oban_leadership").unwrap();
}

/// On a standby what reads works, and what would write says where to go.
#[test]
fn in_recovery_functions_work_or_name_the_primary() {
    let primary = Cluster::installed();
    let mut client = primary.client();
    client
        .batch_execute("SELECT oban_install('unlogged'); ALTER TABLE unlogged.oban_peers SET UNLOGGED")
        .unwrap();
    client.batch_execute("CREATE SCHEMA bare; SELECT oban_join('web.1')").unwrap();
    crate::support::wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    let standby = primary.standby(&[]);
    primary.wait_for_standby(&standby);
    let mut client = standby.client();
    let works = [
        "oban_version",
        "oban_check",
        "oban_unlisten_channels",
        "oban_encode",
        "oban_decode",
        "oban_leader",
        "oban_is_leader",
        "oban_term",
        "oban_leave",
        "oban_gossip_delete",
    ];
    works_or_says_why_not(&mut client, &works, "recovery", "primary");
    refused(&mut client, "SELECT oban_install('bare')", "55000", "recovery", "primary");
    refused(&mut client, "SELECT oban_install()", "55000", "recovery", "primary");
    refused(&mut client, "SELECT oban_uninstall()", "55000", "recovery", "primary");
    refused(&mut client, "SELECT oban_install('new')", "55000", "recovery", "primary");
    for view in ["oban_members", "oban_leadership", "oban_gossip", "oban_workers", "oban_stats"] {
        outcome(&mut client, &format!("SELECT * FROM {view}")).unwrap();
    }
    assert_eq!(client.one::<String>("SELECT node FROM oban_leader()"), "web.1");
    assert_eq!(client.one::<String>("SELECT prefix FROM oban_leadership"), "public");
    assert!(
        !client.one::<bool>("SELECT oban_is_leader(node => 'web.1')"),
        "it is a member over there, not here"
    );
    let unlogged = "SELECT * FROM oban_leader(prefix => 'unlogged')";
    refused(&mut client, unlogged, "55000", "unlogged.oban_peers", "SET LOGGED");
    let workers =
        "SELECT bool_and(ok) FROM oban_check() WHERE item IN ('preload', 'coordinator', 'keeper', 'relay')";
    assert!(client.one::<bool>(workers), "a standby needs no workers");
}

/// A backtrace names the functions and the paths of the machine that built the library, which are nobody's business.
#[test]
fn no_error_has_a_backtrace() {
    for preload in ["shared_preload_libraries = 'obanrs'", "port = 5432"] {
        let cluster =
            Cluster::start_in(&[preload], &[("RUST_BACKTRACE", "1"), ("RUST_LIB_BACKTRACE", "full")]);
        let mut client = cluster.client();
        client.batch_execute("CREATE EXTENSION obanrs").unwrap();
        // Another session: one that has loaded the library for CREATE EXTENSION knows already.
        let mut client = cluster.client();
        for call in ["oban_notify(NULL, '{}')", "oban_fence(1)", "oban_decode('no')", "obanrs_peers()"] {
            let error = client.batch_execute(&format!("SELECT {call}")).unwrap_err();
            let error = error.as_db_error().unwrap_or_else(|| panic!("{call}: {error}"));
            assert_eq!(error.detail(), None, "{call}");
        }
        assert!(!cluster.log().contains("std::backtrace"), "nor has the log one");
    }
}
