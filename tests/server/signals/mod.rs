//! Queue signals: what nodes hear, what is remembered of it, and what a hostile owner of the table that
//! remembers can do.

mod ingest;
mod owners;
mod remembered;

use postgres::Client;

use crate::support::{Ask, Cluster, code, heard};

fn signals(client: &mut Client) -> Vec<String> {
    heard(client).iter().map(|n| format!("{} {}", n.channel(), n.payload())).collect()
}

/// Each call, and what it sends. The payloads are those that `lib/oban.ex` of Oban 2.23.0 and `oban.py` of
/// Oban for Python 0.7.0 build; only the order of the keys differs between the two. (A node of the latter
/// was tried by hand: it obeys each of them.)
const CALLS: &[(&str, &str)] = &[
    ("oban_pause_queue('media')", r#"{"action":"pause","queue":"media","ident":"any"}"#),
    ("oban_pause_queue('*')", r#"{"action":"pause","queue":"*","ident":"any"}"#),
    ("oban_resume_queue('media', 'web.1')", r#"{"action":"resume","queue":"media","ident":"Oban.web.1"}"#),
    (
        "oban_resume_queue('*', name => 'MyApp.Oban', node => 'worker@10.0.0.3')",
        r#"{"action":"resume","queue":"*","ident":"MyApp.Oban.worker@10.0.0.3"}"#,
    ),
    ("oban_pause_queue('media', name => 'Other')", r#"{"action":"pause","queue":"media","ident":"any"}"#),
    ("oban_scale_queue('media', 5)", r#"{"action":"scale","queue":"media","ident":"any","limit":5}"#),
    (
        "oban_scale_queue('media', 2147483647, 'a')",
        r#"{"action":"scale","queue":"media","ident":"Oban.a","limit":2147483647}"#,
    ),
    ("oban_start_queue('media', 1)", r#"{"action":"start","queue":"media","ident":"any","limit":1}"#),
    ("oban_stop_queue('media', 'a')", r#"{"action":"stop","queue":"media","ident":"Oban.a"}"#),
    ("oban_pkill_job(9223372036854775807)", r#"{"action":"pkill","job_id":9223372036854775807}"#),
    ("oban_pause_queue('a\"\\ü\n')", "{\"action\":\"pause\",\"queue\":\"a\\\"\\\\ü\\n\",\"ident\":\"any\"}"),
];

#[test]
fn nodes_hear_what_obans_own_calls_send() {
    let cluster = Cluster::installed();
    let (mut listener, mut client) = (cluster.client(), cluster.client());
    listener.batch_execute("SELECT oban_listen_channels('{signal}')").unwrap();
    for notifier in ["bus", "postgres"] {
        client.batch_execute(&format!("SET obanrs.notifier = {notifier}")).unwrap();
        for (call, payload) in CALLS {
            client.batch_execute(&format!("SELECT {call}")).unwrap();
            assert_eq!(signals(&mut listener), [format!("public.oban_signal {payload}")], "{call}");
        }
    }
    // In another prefix.
    client.batch_execute("SELECT oban_install('other')").unwrap();
    client.batch_execute("SELECT oban_pause_queue('media', prefix => 'other')").unwrap();
    assert!(signals(&mut listener).is_empty());
    listener.batch_execute("SELECT oban_listen_channels('{signal}', 'other')").unwrap();
    client.batch_execute("SELECT oban_pkill_job(1, 'other')").unwrap();
    assert_eq!(signals(&mut listener), [r#"other.oban_signal {"action":"pkill","job_id":1}"#]);
}

/// NOTIFY drops what equals an earlier notification of the transaction. All signals arrive all the same, in
/// their order: the last one counts.
#[test]
fn each_signal_of_a_transaction_arrives_in_its_order() {
    let cluster = Cluster::installed();
    let (mut listener, mut client) = (cluster.client(), cluster.client());
    listener.batch_execute("SELECT oban_listen_channels('{signal}')").unwrap();
    let calls = ["pause", "resume", "pause", "pause", "resume", "pause"];
    let all: Vec<_> = calls.iter().map(|call| format!("SELECT oban_{call}_queue('media')")).collect();
    for notifier in ["bus", "postgres"] {
        let position: i64 = client.one("SELECT oban_position()");
        client
            .batch_execute(&format!("SET obanrs.notifier = {notifier}; BEGIN; {}; COMMIT", all.join("; ")))
            .unwrap();
        let actions: Vec<String> = signals(&mut listener).iter().map(|s| action(s)).collect();
        assert_eq!(actions, calls, "a session that LISTENs");
        let read = "SELECT coalesce(array_agg(m->'payload'->>'action' ORDER BY (m->>'seq')::bigint), '{}')
             FROM oban_poll('{signal}', $1) p, jsonb_array_elements(p.messages) m";
        let read: Vec<String> = client.query_one(read, &[&position]).unwrap().get(0);
        assert_eq!(read, calls, "a reader of the ring");
        assert!(client.one::<bool>("SELECT paused FROM oban_queue_state('media')"));
    }
    // Thousands are set apart from each other, too.
    client
        .batch_execute(
            "SELECT oban_resume_queue('media'), oban_pause_queue('media') FROM generate_series(1, 2000)",
        )
        .unwrap();
    let actions: Vec<String> = signals(&mut listener).iter().map(|s| action(s)).collect();
    assert_eq!(actions.len(), 4000);
    assert!(actions.chunks(2).all(|pair| pair == ["resume", "pause"]));
}

/// The action of what a session has heard. The payload is JSON, perhaps with white space at its end.
fn action(signal: &str) -> String {
    let (_, payload) = signal.split_once(' ').unwrap();
    let payload: serde_json::Value =
        serde_json::from_str(payload).unwrap_or_else(|e| panic!("{signal}: {e}"));
    payload["action"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_rolled_back_is_neither_heard_nor_remembered() {
    let cluster = Cluster::installed();
    let (mut listener, mut client) = (cluster.client(), cluster.client());
    listener.batch_execute("SELECT oban_listen_channels('{signal}')").unwrap();
    client.batch_execute("BEGIN; SELECT oban_pause_queue('a'); ROLLBACK").unwrap();
    client
        .batch_execute(
            "BEGIN; SELECT oban_scale_queue('b', 3); SAVEPOINT s; SELECT oban_scale_queue('b', 4);
             SAVEPOINT t; SELECT oban_pause_queue('b'); RELEASE t; ROLLBACK TO s;
             SAVEPOINT u; SELECT oban_resume_queue('c'); RELEASE u; COMMIT",
        )
        .unwrap();
    // An error at the commit takes both back.
    client
        .batch_execute(
            "CREATE TABLE one (a int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO one VALUES (1)",
        )
        .unwrap();
    let failing = "BEGIN; SELECT oban_pause_queue('d'); INSERT INTO one VALUES (1); COMMIT";
    assert_eq!(code(&mut client, failing), "23505");
    let actions: Vec<String> = signals(&mut listener).iter().map(|s| action(s)).collect();
    assert_eq!(actions, ["scale", "resume"]);
    let rows = "SELECT string_agg(concat_ws(' ', queue, paused, queue_limit), ', ' ORDER BY queue) FROM oban_queue_signals";
    assert_eq!(client.one::<String>(rows), "b 3, c f");
    // Nor is it sent where it can't be written.
    assert_eq!(code(&mut client, "BEGIN READ ONLY; SELECT oban_pause_queue('a')"), "25006");
    client.batch_execute("ROLLBACK; BEGIN READ ONLY; SELECT oban_stop_queue('a'); COMMIT").unwrap();
    client.batch_execute("BEGIN; SELECT oban_pause_queue('a')").unwrap();
    assert_eq!(code(&mut client, "PREPARE TRANSACTION 'x'"), "0A000");
    assert_eq!(signals(&mut listener).len(), 1);
    assert_eq!(client.one::<String>(rows), "b 3, c f");
}

#[test]
fn what_no_node_understands_is_refused() {
    let cluster = Cluster::installed();
    let (mut listener, mut client) = (cluster.client(), cluster.client());
    listener.batch_execute("SELECT oban_listen_channels('{signal}')").unwrap();
    for call in [
        "oban_scale_queue('*', 1)",
        "oban_start_queue('*', 1)",
        "oban_stop_queue('*')",
        "oban_scale_queue('a', 0)",
        "oban_start_queue('a', -1)",
        "oban_pause_queue('')",
        "oban_pause_queue(repeat('ü', 128))",
        "oban_pause_queue('a', node => '')",
        "oban_pause_queue('a', node => repeat('x', 256))",
        "oban_pause_queue('a', name => repeat('x', 128))",
        "oban_pause_queue('a', prefix => 'a.b')",
    ] {
        let wanted = if call.contains("a.b") { ["3F000", "22023"] } else { ["22023"; 2] };
        let code = code(&mut client, &format!("SELECT {call}"));
        assert!(wanted.contains(&code.as_str()), "{call}: {code}");
    }
    assert!(signals(&mut listener).is_empty());
    client
        .batch_execute("SELECT oban_pause_queue(repeat('ü', 127), repeat('x', 255), repeat('y', 127))")
        .unwrap();
    assert_eq!(signals(&mut listener).len(), 1);
}

/// Without the extension's preload, signals go by NOTIFY and are remembered.
#[test]
fn without_preload_signals_are_sent_and_remembered() {
    let cluster = Cluster::start(&[]);
    let (mut listener, mut client) = (cluster.client(), cluster.client());
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    listener.batch_execute("LISTEN \"public.oban_signal\"").unwrap();
    let mut client = cluster.client();
    client
        .batch_execute(
            "BEGIN; SELECT oban_pause_queue('a'), oban_resume_queue('a'), oban_pause_queue('a'); COMMIT",
        )
        .unwrap();
    let actions: Vec<String> = signals(&mut listener).iter().map(|s| action(s)).collect();
    assert_eq!(actions, ["pause", "resume", "pause"]);
    assert!(client.one::<bool>("SELECT paused FROM oban_queue_signals"));
}
