//! Arguments of any size. When Rust gets no memory, it ends its process, and Postgres then ends all others.
//! So obanrs measures each argument before it reads it.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzEncoder;
use postgres::Client;

use super::errors::{Function, functions_like};
use crate::support::{Ask, Cluster, code};

const MB: u64 = 1 << 20;

/// Values that are larger than any useful argument, each with its type and the column that holds it. The
/// table of one row stores them compressed, so that a call that passes one needs no memory until the value is
/// read.
const LARGE: [(&str, &str, &str); 7] = [
    ("text", "long", "repeat(repeat('x', 1000000), 400)"),
    ("text[]", "one", "ARRAY[repeat(repeat('x', 1000000), 400)]"),
    ("text[]", "many", "array_fill('a'::text, ARRAY[30000000])"),
    // A string in a jsonb has at most 256 MB.
    ("jsonb", "document", "jsonb_build_object('a', repeat(repeat('x', 1000000), 250))"),
    ("jsonb", "numbers", "('[' || repeat('1e131000,', 20000) || '1]')::jsonb"),
    ("jsonb[]", "documents", "ARRAY[jsonb_build_object('a', repeat(repeat('x', 1000000), 250))]"),
    ("jsonb[]", "objects", "array_fill('{}'::jsonb, ARRAY[20000000])"),
];

/// A server with a table of these values, and with a function that returns each, because an argument of CALL
/// can't be a query.
fn cluster() -> Cluster {
    let cluster = Cluster::installed();
    let columns: Vec<String> = LARGE.iter().map(|(kind, name, _)| format!("{name} {kind}")).collect();
    let mut client = cluster.client();
    client.batch_execute(&format!("CREATE TABLE large ({})", columns.join(", "))).unwrap();
    client.batch_execute("INSERT INTO large DEFAULT VALUES").unwrap();
    let faster = "SELECT set_config(name, 'lz4', false) FROM pg_settings
        WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)";
    client.batch_execute(faster).unwrap();
    for (kind, name, value) in LARGE {
        client.batch_execute(&format!("UPDATE large SET {name} = {value}")).unwrap();
        let body = format!("RETURNS {kind} LANGUAGE sql AS 'SELECT {name} FROM large'");
        client.batch_execute(&format!("CREATE FUNCTION large_{name}() {body}")).unwrap();
    }
    cluster
}

/// Tells whether a process of the server has crashed: a crash ends this old session, and is in the log.
pub struct Watch {
    pub client: Client,
    pid: i32,
    started: String,
}

impl Watch {
    pub fn begin(cluster: &Cluster) -> Self {
        let mut client = cluster.client();
        let (pid, started) = (client.one("SELECT pg_backend_pid()"), client.one(Self::STARTED));
        Self { client, pid, started }
    }

    const STARTED: &str = "SELECT pg_postmaster_start_time()::text";

    pub fn nothing_has_ended(&mut self, cluster: &Cluster, what: &str) {
        let same = self
            .client
            .query_one("SELECT pg_backend_pid()", &[])
            .is_ok_and(|row| row.get::<_, i32>(0) == self.pid);
        assert!(same, "the server ended its sessions: {what}");
        assert_eq!(self.client.one::<String>(Self::STARTED), self.started, "{what}");
        assert!(!cluster.log().contains("was terminated by signal"), "{what}");
    }
}

/// The outcome of a call: its SQLSTATE if it fails. The connection may be gone after it.
fn outcome(client: &mut Client, call: &str) -> Result<(), String> {
    let error = |e: postgres::Error| match e.code() {
        Some(code) => code.code().to_owned(),
        None => format!("no SQLSTATE: {e}"),
    };
    client.simple_query(call).map(|_| ()).map_err(error)
}

/// Calls `function` with each large value for each of its arguments of that type. Returns how many calls that
/// were.
fn call_with_each(function: &Function, mut tried: impl FnMut(&str, &str)) -> usize {
    let mut calls = 0;
    for (argument, kind, _) in &function.arguments {
        for (_, column, _) in LARGE.iter().filter(|(of, ..)| of == kind) {
            tried(argument, &function.call(&[(argument, &format!("large_{column}()"))]));
            calls += 1;
        }
    }
    calls
}

/// Each function of the extension gets each of its arguments of variable length. First a copy of the value
/// fits into memory once, and not again. Then it does not fit at all.
#[test]
fn large_arguments_are_refused_and_the_server_lives() {
    let mut cluster = cluster();
    for (memory, fits) in [(1_200 * MB, true), (560 * MB, false)] {
        cluster.restart_with_memory(memory);
        let mut watch = Watch::begin(&cluster);
        let mut client = cluster.client();
        let mut calls = 0;
        for function in functions_like(&mut client, "%") {
            calls += call_with_each(&function, |argument, call| {
                let answer = outcome(&mut client, call);
                watch.nothing_has_ended(&cluster, call);
                // The INOUT arguments of a procedure come in only to be returned.
                if [("oban_wait", "messages"), ("oban_take", "jobs")].contains(&(&*function.name, argument)) {
                    return assert_eq!(answer, Ok(()), "{call}");
                }
                let code = answer.expect_err(call);
                assert!(["22023", "54000"].contains(&&*code), "{call}: {code}");
            });
        }
        assert!(calls > 40, "only {calls} calls");
        // The limit works: Postgres itself gets no more memory.
        let most = if fits { "repeat(repeat('x', 1000000), 700) || 'y'" } else { "repeat('x', 600000000)" };
        assert_eq!(code(&mut client, &format!("SELECT length({most})")), "53200");
        watch.nothing_has_ended(&cluster, "Postgres' own error");
    }
}

/// The statement itself makes the values, as a client's does.
#[test]
fn large_values_of_the_statement_are_refused_and_the_server_lives() {
    let mut cluster = Cluster::installed();
    cluster.restart_with_memory(1_200 * MB);
    let mut watch = Watch::begin(&cluster);
    let mut client = cluster.client();
    for (call, codes) in [
        ("oban_decode(repeat(repeat('x', 1000000), 400))", &["54000"][..]),
        ("oban_poll(ARRAY[repeat(repeat('x', 1000000), 300)], 0, 1, '')", &["22023", "53200"]),
        ("oban_poll(prefix => repeat(repeat('x', 1000000), 400))", &["22023"]),
        ("oban_install(repeat(repeat('x', 1000000), 400))", &["22023"]),
        ("oban_install(repeat(repeat('x', 1000000), 400) || '.')", &["22023", "53200"]),
        ("oban_join(repeat(repeat('x', 1000000), 400))", &["22023"]),
        ("oban_notify(repeat(repeat('x', 1000000), 400), '{}')", &["22023"]),
        ("oban_encode(jsonb_build_object('a', repeat(repeat('x', 1000000), 100)))", &["54000", "53200"]),
        // Text of 2.6 GB.
        ("oban_encode(('[' || repeat('1e131000,', 20000) || '1]')::jsonb)", &["54000"]),
        (
            "oban_gossip_put('n', 'q', jsonb_build_object('a', repeat(repeat('x', 1000000), 100)))",
            &["22023", "53200"],
        ),
    ] {
        let code = outcome(&mut client, &format!("SELECT {call}")).expect_err(call);
        assert!(codes.contains(&&*code), "{call}: {code}");
        watch.nothing_has_ended(&cluster, call);
    }
}

/// The trigger on jobs reads queues of any length, where the table's owner allows them: it counts one that no
/// message could name.
#[test]
fn a_huge_queue_is_counted_and_the_server_lives() {
    let mut cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "ALTER TABLE oban_jobs DROP CONSTRAINT queue_length; DROP INDEX oban_jobs_state_queue_priority_scheduled_at_id_index;
             CREATE TABLE large (queue text)",
        )
        .unwrap();
    client.batch_execute("INSERT INTO large VALUES (repeat(repeat('x', 1000000), 400))").unwrap();
    drop(client);
    cluster.restart_with_memory(1_200 * MB);
    let mut watch = Watch::begin(&cluster);
    let mut client = cluster.client();
    let dropped = "SELECT value FROM oban_stats WHERE counter = 'dropped'";
    let before: i64 = client.one(dropped);
    // Postgres itself has no memory for a second value in the same statement, or has just enough.
    let answer = outcome(&mut client, "INSERT INTO oban_jobs (worker, queue) SELECT 'w', queue FROM large");
    assert!([Ok(()), Err("53200".into())].contains(&answer), "{answer:?}");
    watch.nothing_has_ended(&cluster, "a huge queue");
    let short = "INSERT INTO oban_jobs (worker, queue) VALUES ('w', repeat('y', 8000))";
    assert_eq!(outcome(&mut client, short), Ok(()));
    assert!(client.one::<i64>(dropped) > before);
}

/// A call that takes long to read its value can be cancelled, or is refused before.
#[test]
fn a_timeout_ends_a_call_with_a_large_value() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE large (list text)").unwrap();
    client.batch_execute("INSERT INTO large VALUES ('[' || repeat('1,', 100000000) || '1]')").unwrap();
    client.batch_execute("SET statement_timeout = '100ms'").unwrap();
    let answer = outcome(&mut client, "SELECT oban_decode(list) FROM large").unwrap_err();
    assert!(["54000", "57014"].contains(&&*answer), "{answer}");
    // The longest JSON that a wire form can unpack to is read, or cancelled. (Postgres' parser can't be
    // cancelled.)
    let wire = packed(&format!("[{}1]", "1,".repeat(2_900_000)));
    assert!((7_000..8_000).contains(&wire.len()), "{}", wire.len());
    let answer = outcome(&mut client, &format!("SELECT oban_decode('{wire}')"));
    assert!([Ok(()), Err("57014".into())].contains(&answer), "{answer:?}");

    // A million messages take longer than that, and so do the longest messages that may be sent.
    for payloads in [
        "array_fill('{\"a\": 1}'::jsonb, ARRAY[1000000])",
        "array_fill(jsonb_build_object('a', repeat('x', 1000000)), ARRAY[100])",
    ] {
        client.batch_execute("RESET statement_timeout; DROP TABLE IF EXISTS many").unwrap();
        client.batch_execute(&format!("CREATE TABLE many AS SELECT {payloads} AS payloads")).unwrap();
        client.batch_execute("SET statement_timeout = '100ms'").unwrap();
        let call = "SELECT oban_notify_many('insert', payloads) FROM many";
        assert_eq!(outcome(&mut client, call), Err("57014".into()), "{payloads}");
    }
}

pub fn packed(json: &str) -> String {
    let mut bytes = Vec::new();
    GzEncoder::new(json.as_bytes(), Compression::best()).read_to_end(&mut bytes).unwrap();
    STANDARD.encode(bytes)
}

/// plpgsql keeps an array in a variable in another form, which is measured as well.
#[test]
fn arrays_of_variables_are_read_and_measured() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let call = |assignment: &str, call: &str| {
        format!(
            "DO $$ DECLARE c text[]; p jsonb[]; BEGIN FOR i IN 1..2 LOOP {assignment}; END LOOP; PERFORM {call}; END $$"
        )
    };
    let (listen, notify) = ("oban_listen_channels(c)", "oban_notify_many('insert', p)");
    client.batch_execute(&call("c[i] := 'sonar'", listen)).unwrap();
    client.batch_execute(&call("p[i] := '{\"a\": 1}'", notify)).unwrap();
    for (assignment, of, refused) in [
        ("c[i] := repeat('x', 64)", listen, "22023"),
        ("c[i] := repeat('x', 100000000)", listen, "22023"),
        ("c[i * 100] := 'a'", listen, "22023"),
        ("c[i * 2] := 'a'", listen, "22004"),
        ("p[i * 1100000] := '{}'", notify, "54000"),
        ("p[i] := jsonb_build_object('a', repeat('x', 70000000))", notify, "54000"),
        ("p[i] := jsonb_build_object('a', repeat('x', 50000000))", notify, "54000"),
    ] {
        assert_eq!(code(&mut client, &call(assignment, of)), refused, "{assignment}");
    }
}

/// A text that is no wire form is refused with 22023. One that is too long, unpacks to too much or is nested
/// too deep is refused with 54000.
#[test]
fn what_no_jsonb_can_hold_is_no_wire_form() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let mut decode = |wire: &str| {
        let answer = client.query("SELECT oban_decode($1)::text", &[&wire]);
        answer.map(|rows| rows[0].get::<_, String>(0)).map_err(|e| {
            let error = e.as_db_error().unwrap_or_else(|| panic!("{e}")).clone();
            assert!(error.message().len() < 500 && error.hint().is_some(), "{error:?}");
            error.code().code().to_owned()
        })
    };
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for (json, code) in [
        (r#"{"a":"\u0000"}"#.to_owned(), "22023"),
        (r#"{"\u0000":1}"#.to_owned(), "22023"),
        (r#"{"a":"\ud800"}"#.to_owned(), "22023"),
        (r#"{"a":"\udc00"}"#.to_owned(), "22023"),
        (r#"{"a":"\ud800\ud800"}"#.to_owned(), "22023"),
        ("1e1000000".to_owned(), "22023"),
        ("[-1e200000]".to_owned(), "22023"),
        ("1e-20000".to_owned(), "22023"),
        ("1e99999999999999999999".to_owned(), "22023"),
        ("{".to_owned(), "22023"),
        ("".to_owned(), "22023"),
        ("NaN".to_owned(), "22023"),
        ("01".to_owned(), "22023"),
        ("'x'".to_owned(), "22023"),
        ("{} {}".to_owned(), "22023"),
        ("\"\u{1}\"".to_owned(), "22023"),
        (nested(501), "54000"),
        ("[".repeat(501), "54000"),
        (nested(100_000), "54000"),
    ] {
        let wire = packed(&json);
        assert_eq!(decode(&wire), Err(code.into()), "{json:.100} packed");
        assert_eq!(decode(&format!("Z:{wire}")), Err(code.into()), "{json:.100} packed");
        assert_eq!(decode(&json), Err(if json.len() > 7_999 { "54000" } else { code }.into()), "{json:.100}");
    }
    for (wire, code) in [
        ("H4sI", "22023"),
        ("H4sI日本", "22023"),
        ("Z:", "22023"),
        ("日本", "22023"),
        (&*" ".repeat(8_000), "54000"),
    ] {
        assert_eq!(decode(wire), Err(code.into()), "{wire:.100}");
    }
    let long = format!("\"{}\"", "x".repeat(7_997));
    for json in [&*nested(500), &long, "1e-16383", "1e131071", r#""\ud83d\ude00""#, "null"] {
        for wire in [json.to_owned(), packed(json)] {
            assert!(decode(&wire).is_ok(), "{json:.100}");
        }
    }
}
