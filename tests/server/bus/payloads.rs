//! Does a payload arrive as it was sent, or is it refused at the call?

use serde_json::Value;

use super::{Answer, installed_with, poll};
use crate::support::{Ask, code, heard};

/// Databases of two encodings are on one server. A client with the encoding UTF-8 gets UTF-8 from both.
#[test]
fn encodings_quotes_and_the_longest_names() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0").unwrap();
    let mut latin = cluster.client_of("latin");
    latin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let longest = "ü".repeat((63 - ".oban_insert".len()) / 2);
    for (client, texts) in [(&mut latin, &["Größe \"ß\" \\ '"][..]), (&mut admin, &["日本 \"\\ '", "🦀"])]
    {
        for prefix in [longest.as_str(), "größe", "it's \"quoted\""] {
            let quoted = format!("\"{}\"", prefix.replace('"', "\"\""));
            let sql = format!(
                "CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.oban_jobs (queue text, state text);
                CREATE TRIGGER t AFTER INSERT ON {quoted}.oban_jobs REFERENCING NEW TABLE AS n
                FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert()"
            );
            client.batch_execute(&sql).unwrap();
            let listens =
                client.query_one("SELECT oban_listen_channels('{insert}', $1)", &[&prefix]).unwrap();
            let channel: String = listens.get(0);
            assert_eq!(channel, format!("{prefix}.oban_insert"));
            for text in texts {
                let after: i64 = client.one("SELECT oban_position()");
                let payload = serde_json::json!({ "text": text });
                client.execute("SELECT oban_notify('insert', $1, $2)", &[&payload, &prefix]).unwrap();
                // This payload is longer than a notification may be. It is packed for LISTENers only.
                let long = serde_json::json!({ "text": text.repeat(2_000) });
                client.execute("SELECT oban_notify('insert', $1, $2)", &[&long, &prefix]).unwrap();
                client
                    .execute(&format!("INSERT INTO {quoted}.oban_jobs VALUES ($1, 'available')"), &[text])
                    .unwrap();
                let expected = [payload, long, serde_json::json!({ "queue": text })];
                let answer = client
                    .query_one("SELECT * FROM oban_poll('{insert}', $1, prefix => $2)", &[&after, &prefix]);
                assert_eq!(Answer::of(&answer.unwrap()).payloads, expected);
                let heard = heard(client);
                let heard: Vec<Value> = heard
                    .iter()
                    .map(|n| {
                        assert_eq!(n.channel(), channel);
                        client.query_one("SELECT oban_decode($1)", &[&n.payload()]).unwrap().get(0)
                    })
                    .collect();
                assert_eq!(heard, expected);
            }
        }
        // A verbatim channel may have 63 bytes.
        let verbatim = "é".repeat(31);
        let after: i64 = client.one("SELECT oban_position()");
        client.execute("SELECT oban_notify($1, '{}', '')", &[&verbatim]).unwrap();
        let answer =
            client.query_one("SELECT * FROM oban_poll(ARRAY[$1], $2, prefix => '')", &[&verbatim, &after]);
        assert_eq!(Answer::of(&answer.unwrap()).payloads.len(), 1);
    }
}

/// Payloads are small when packed and large when unpacked. One answer has a size that memory and jsonb can
/// take.
#[test]
fn an_answer_is_bounded_by_what_it_unpacks_to() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let mut after: i64 = client.one("SELECT oban_position()");
    let large = "SELECT oban_notify('sonar', jsonb_build_object('n', n, 'x', repeat('a', 5000000))) FROM generate_series(1, 60) n";
    client.batch_execute(large).unwrap();
    let (mut seen, mut answers) = (0, 0);
    while seen < 60 {
        let sql = format!(
            "SELECT position, missed, jsonb_array_length(messages), length(messages::text), messages->0->'payload'->'n' FROM oban_poll('{{sonar}}', {after})"
        );
        let row = client.query_one(&sql, &[]).unwrap();
        let (number, length, first): (i32, i32, Value) = (row.get(2), row.get(3), row.get(4));
        assert_eq!((row.get::<_, i64>(1), first), (0, Value::from(seen + 1)));
        assert!((1..=4).contains(&number) && length < 17_000_000, "{number} {length}");
        seen += number;
        answers += 1;
        after = row.get(0);
    }
    assert!(answers >= 15);
    // A payload that is too large to be unpacked is refused.
    let huge = "SELECT oban_notify('sonar', jsonb_build_object('x', repeat('a', 17000000)))";
    assert_eq!(code(&mut client, huge), "54000");
}

/// In the server's encoding a character may take more bytes than in UTF-8.
#[test]
fn what_is_too_long_in_the_servers_encoding_is_refused_at_the_call() {
    let cluster = installed_with(&[]);
    cluster.client().batch_execute("CREATE DATABASE euc ENCODING 'EUC_JP' TEMPLATE template0").unwrap();
    let mut client = cluster.client_of("euc");
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_listen_channels('{sonar}')",
        )
        .unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    let payload = |times: usize| serde_json::json!({ "x": "é".repeat(times) });
    client.execute("SELECT oban_notify('sonar', $1)", &[&payload(2_000)]).unwrap();
    let error = client.execute("SELECT oban_notify('sonar', $1)", &[&payload(3_980)]).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "54000");
    client.execute("SELECT oban_notify('sonar', $1)", &[&serde_json::json!({ "n": 1 })]).unwrap();
    let expected = [payload(2_000), serde_json::json!({ "n": 1 })];
    assert_eq!(poll(&mut client, &format!("'{{sonar}}', {after}")).payloads, expected);
    assert_eq!(heard(&mut client).len(), 2);
}

/// Each reader parses a payload again, deeper in its stack than the sender was.
#[test]
fn what_is_nested_too_deep_is_refused_at_the_call() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    let nested = |levels: usize| {
        format!(
            "SELECT oban_notify('sonar', ('{{\"a\":' || repeat('[', {levels}) || repeat(']', {levels}) || '}}')::jsonb)"
        )
    };
    client.batch_execute(&nested(499)).unwrap();
    assert_eq!(code(&mut client, &nested(500)), "54000");
    let answer = client
        .query_one(&format!("SELECT position, messages::text FROM oban_poll('{{sonar}}', {after})"), &[]);
    assert!(answer.unwrap().get::<_, String>(1).contains(&"[".repeat(499)));
    // A number may take a few bytes when it is stored, and megabytes when it is printed.
    let numbers = "SELECT oban_notify_many('sonar', ARRAY[jsonb_build_object('n', array_fill(1e131071::numeric, ARRAY[200]))])";
    assert_eq!(code(&mut client, numbers), "54000");
}

/// In a database with the encoding SQL_ASCII a text can be any bytes.
#[test]
fn without_an_encoding_texts_are_utf_8_or_refused() {
    let cluster = installed_with(&[]);
    cluster.client().batch_execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0").unwrap();
    let mut client = cluster.client_of("ascii");
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    client.batch_execute("SELECT oban_notify('sonar', '{\"a\": \"é\"}')").unwrap();
    let invalid = "SELECT oban_notify('sonar', jsonb_build_object('a', convert_from('\\xe9', 'SQL_ASCII')))";
    assert_eq!(code(&mut client, invalid), "22021");
    assert_eq!(poll(&mut client, &format!("'{{sonar}}', {after}")).payloads, [serde_json::json!({"a": "é"})]);
}
