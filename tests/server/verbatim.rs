//! Verbatim channels: any text arrives as JSON, and the messages of a watched table reach the roles that may
//! read the table.

use postgres::Client;
use serde_json::{Value, json};

use crate::support::{Ask, Cluster, code, heard, stat, wait_until};

/// What oban_poll returns on a verbatim channel: the position, what was missed, and the payloads.
fn poll(client: &mut Client, channel: &str, after: i64, more: &str) -> (i64, Option<i64>, Vec<Value>) {
    let sql = format!("SELECT * FROM oban_poll('{{{channel}}}', {after}, prefix => ''{more})");
    answer(&client.query_one(&sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e:?}")))
}

fn answer(row: &postgres::Row) -> (i64, Option<i64>, Vec<Value>) {
    let Value::Array(messages) = row.get(2) else { panic!("messages are an array") };
    (row.get(0), row.get(1), messages.into_iter().map(|mut m| m["payload"].take()).collect())
}

fn payloads(client: &mut Client, channel: &str, after: i64) -> Vec<Value> {
    poll(client, channel, after, "").2
}

fn heard_texts(client: &mut Client) -> Vec<String> {
    heard(client).iter().map(|n| n.payload().to_owned()).collect()
}

fn position(client: &mut Client) -> i64 {
    client.one("SELECT oban_position()")
}

/// Texts, and the JSON that readers of the ring get. `None`: the text as a string.
fn texts() -> Vec<(String, Option<Value>)> {
    let mut texts: Vec<(String, Option<Value>)> = [
        "",
        "42",
        "-0",
        "[1]",
        "null",
        "true",
        "\"q\"",
        "{",
        "{broken",
        "{\"a\":1}}",
        "{'a': 1}",
        "\"",
        "\\",
        "\\\"",
        "'",
        "\n",
        "\r\n\t",
        "\u{1}",
        "\u{7f}",
        "é日本🦀",
        "\\u0000",
        "H4sIAAAA",
        "Z:H4sIAAAA",
        "H4sIAAAAAAAAA6tWKixNLU1VslJKSU1LLM0pUaoFAJj2NkcTAAAA",
        "Z:H4sIAAAAAAAAA6tWKixNLU1VslJKSU1LLM0pUaoFAJj2NkcTAAAA",
        "{\"a\":\"\\u0000\"}",
        "{\"\\u0000\":1}",
        "{\"a\":\"\\ud83d\"}",
        "{\"a\":1e400000}",
        "{\"a\":1e-400000}",
        "{\"a\":1e131072}",
        "{\"a\":\"\t\"}",
        "{\"queue\":",
        "insert",
        "{} {}",
    ]
    .map(|text| (text.to_owned(), None))
    .into();
    texts.extend(
        [
            ("{}", json!({})),
            (" \r\n{\"a\"\t: 1} ", json!({"a": 1})),
            ("{\"a\":1,\"a\":[null]}", json!({"a": [null]})),
            ("{\"é\":\"日本🦀\\n\\\"\\\\\"}", json!({"é": "日本🦀\n\"\\"})),
            ("{\"\\u00e9\":\"\\u65e5\\ud83e\\udd80\\u0001\"}", json!({"é": "日🦀\u{1}"})),
            ("{\"seq\":7,\"payload\":{}}", json!({"seq": 7, "payload": {}})),
        ]
        .map(|(text, object)| (text.to_owned(), Some(object))),
    );
    let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    texts.push((nested(120), Some(serde_json::from_str(&nested(120)).unwrap())));
    texts.extend(
        [nested(501), nested(1_300), "{\"a\":".repeat(1_590), "[".repeat(7_999)].map(|text| (text, None)),
    );
    texts.extend(["x", "\"", "\\", "\u{1}"].map(|c| (c.repeat(7_999), None)));
    let longest = format!("{{\"a\":\"{}\"}}", "x".repeat(7_991));
    texts.push((longest.clone(), Some(serde_json::from_str(&longest).unwrap())));
    texts
}

fn send(client: &mut Client, channel: &str, text: &str) {
    client
        .execute("SELECT oban_notify_text($1, $2)", &[&channel, &text])
        .unwrap_or_else(|e| panic!("{text:?}: {e:?}"));
}

/// A session that LISTENs gets the text as it is. A reader of the ring gets each text as JSON, whatever came
/// before it.
#[test]
fn any_text_arrives_as_json() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("LISTEN news").unwrap();
    let after = position(&mut client);
    for (text, _) in texts() {
        send(&mut client, "news", &text);
    }
    client.batch_execute("SELECT oban_notify_text('news')").unwrap();
    let mut wanted: Vec<Value> =
        texts().into_iter().map(|(text, object)| object.unwrap_or(Value::String(text))).collect();
    wanted.push(json!(""));
    let (mut read, mut at) = (Vec::new(), after);
    while read.len() < wanted.len() {
        let (position, missed, payloads) = poll(&mut client, "news", at, ", max_messages => 7");
        assert_eq!(missed, Some(0));
        assert!(!payloads.is_empty(), "{} of {}", read.len(), wanted.len());
        read.extend(payloads);
        at = position;
    }
    for (read, wanted) in read.iter().zip(&wanted) {
        assert_eq!(read, wanted);
    }
    assert_eq!(payloads(&mut client, "news", at), [] as [Value; 0]);
    let row = client.query_one(&format!("CALL oban_wait('{{news}}', {after}, prefix => '')"), &[]).unwrap();
    assert_eq!(answer(&row).2, wanted);

    let mut sent: Vec<String> = texts().into_iter().map(|(text, _)| text).collect();
    sent.push(String::new());
    assert_eq!(heard_texts(&mut client), sent);
    assert_eq!(stat(&mut client, "dropped"), 0);
}

/// What jsonb can hold depends on the database's encoding, and what a client can take on the client's.
#[test]
fn a_reader_of_any_encoding_gets_past_any_text() {
    let cluster = Cluster::installed();
    for encoding in ["UTF8", "LATIN1", "EUC_JP", "SQL_ASCII"] {
        let database = format!("of_{}", encoding.to_lowercase());
        let create = format!(
            "CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        );
        cluster.client().batch_execute(&create).unwrap();
        let mut client = cluster.client_of(&database);
        client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
        let after = position(&mut client);
        let mut sent = 0;
        for (text, _) in texts() {
            let sql = format!("SELECT oban_notify_text('news', {})", literal(&text));
            match client.batch_execute(&sql) {
                Ok(()) => sent += 1,
                // The database has no such character, or it is longer there.
                Err(e) => assert!(
                    ["22P05", "54000"].contains(&e.code().unwrap().code()),
                    "{encoding}: {text:?}: {e:?}"
                ),
            }
        }
        if encoding == "SQL_ASCII" {
            let invalid = "SELECT oban_notify_text('news', convert_from('\\xe9ff', 'SQL_ASCII')),
                oban_notify_text('news', convert_from('\\x7b22e9223a317d', 'SQL_ASCII'))";
            client.batch_execute(invalid).unwrap();
            sent += 2;
        }
        client.batch_execute("SELECT oban_notify_text('news', 'last')").unwrap();
        let poll = format!("oban_poll('{{news}}', {after}, prefix => '')");
        let mut readers = 0;
        for reader in ["UTF8", "LATIN1", "EUC_JP", "SJIS", "SQL_ASCII"] {
            client.batch_execute("RESET client_encoding").unwrap();
            if client.batch_execute(&format!("SET client_encoding = '{reader}'")).is_err() {
                continue; // Postgres has no conversion between the two
            }
            readers += 1;
            let sql = format!("SELECT jsonb_array_length(messages), messages->-1->>'payload' FROM {poll}");
            let row = client.query_one(&sql, &[]).unwrap_or_else(|e| panic!("{encoding}, {reader}: {e:?}"));
            assert_eq!(
                (row.get::<_, i32>(0), row.get::<_, &str>(1)),
                (sent + 1, "last"),
                "{encoding}, {reader}"
            );
            // The driver reads UTF-8 only, so psql reads the messages themselves.
            let mut psql = cluster.program("psql");
            let psql = psql.env("PGCLIENTENCODING", reader).args(["-XAtq", "-d", &database, "-c"]);
            let read = psql.arg(format!("SELECT messages FROM {poll}")).output().unwrap();
            let (messages, error) = (read.stdout, String::from_utf8_lossy(&read.stderr));
            assert!(read.status.success(), "{encoding}, {reader}: {error}");
            let last = b"\"last\"";
            assert!(messages.windows(last.len()).any(|w| w == last), "{encoding}, {reader}: {error}");
        }
        assert!(readers > 2, "{encoding}: {readers} encodings of clients");
    }
}

/// A text as an SQL literal without characters that a client's encoding may lack.
fn literal(text: &str) -> String {
    let escape = |c: char| match c {
        '\'' => "''".to_owned(),
        '\\' => "\\\\".to_owned(),
        c => c.to_string(),
    };
    format!("E'{}'", text.chars().map(escape).collect::<String>())
}

#[test]
fn what_is_no_text_of_a_notification_is_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let after = position(&mut client);
    for (arguments, wanted) in [
        ("'news', repeat('x', 8000)", "54000"),
        ("'news', repeat('é', 4000)", "54000"),
        ("'news', repeat('x', 10000000)", "54000"),
        ("'news', NULL", "22004"),
        ("NULL", "22004"),
        ("''", "22023"),
        ("repeat('x', 64)", "22023"),
        ("repeat('é', 32)", "22023"),
    ] {
        assert_eq!(
            code(&mut client, &format!("SELECT oban_notify_text({arguments})")),
            wanted,
            "{arguments}"
        );
    }
    let longest = "é".repeat(31) + "x";
    send(&mut client, &longest, "x");
    assert_eq!(payloads(&mut client, &longest, after), ["x"]);
    client.batch_execute("SELECT oban_notify_text('a b.C\"', '1')").unwrap();
    let odd = "SELECT messages->0->>'channel' FROM oban_poll(ARRAY['a b.C\"'], $1, prefix => '')";
    assert_eq!(client.query_one(odd, &[&after]).unwrap().get::<_, &str>(0), "a b.C\"");
}

/// A text is a call's message, as that of oban_notify is.
#[test]
fn texts_follow_their_transaction() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 1"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); LISTEN news").unwrap();
    let after = position(&mut client);
    client
        .batch_execute(
            "BEGIN; SELECT oban_notify_text('news', '1'); SAVEPOINT s; SELECT oban_notify_text('news', '2');
             ROLLBACK TO s; SELECT oban_notify_text('news', '3'), oban_notify_text('news', '1'); COMMIT;
             BEGIN; SELECT oban_notify_text('news', '4'); ROLLBACK",
        )
        .unwrap();
    assert_eq!(payloads(&mut client, "news", after), ["1", "3"]);
    client.batch_execute("BEGIN; SELECT oban_notify_text('news', '5')").unwrap();
    assert_eq!(code(&mut client, "PREPARE TRANSACTION 'x'"), "0A000");
    // What is equal is sent each time, if the transactions differ.
    send(&mut client, "news", "1");
    send(&mut client, "news", "1");
    assert_eq!(heard_texts(&mut client), ["1", "3", "1", "1"]);
    // A packed object stays one, beside a text that looks like it.
    let after = position(&mut client);
    client
        .batch_execute(
            "SELECT oban_notify('news', jsonb_build_object('x', repeat('y', 9000)), '');
             SELECT oban_notify_text('news', oban_encode(jsonb_build_object('x', repeat('y', 9000))))",
        )
        .unwrap();
    let both = payloads(&mut client, "news", after);
    assert_eq!(both[0]["x"], json!("y".repeat(9_000)));
    assert!(both[1].as_str().unwrap().starts_with("H4sI"));
}

/// Numbers of few bytes in a text may be long in print. An answer ends before it is too long for a client.
#[test]
fn an_answer_is_bounded_by_its_numbers_in_print() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let after = position(&mut client);
    for n in 0..10 {
        let numbers = vec!["1e131071"; 40].join(",");
        send(&mut client, "news", &format!("{{\"n\":{n},\"x\":[{numbers}]}}"));
    }
    send(&mut client, "news", &format!("{{\"x\":[{}]}}", vec!["1e131071"; 800].join(",")));
    let (mut at, mut answers, mut read) = (after, 0, 0);
    while read < 11 {
        let sql = format!(
            "SELECT position, missed, jsonb_array_length(messages), length(messages::text), messages #>> '{{-1,payload}}' FROM oban_poll('{{news}}', {at}, prefix => '')"
        );
        let row = client.query_one(&sql, &[]).unwrap();
        let (number, length): (i32, i32) = (row.get(2), row.get(3));
        assert!((1..=3).contains(&number) && length < 17_000_000, "{number} {length}");
        (at, answers, read) = (row.get(0), answers + 1, read + number);
        if read == 11 {
            assert!(row.get::<_, &str>(4).starts_with("{\"x\":[1e131071,"), "over 16 MB in print: a string");
        }
    }
    assert!(answers >= 4);
}

/// Tables a and b, which send on the channel `both`, each to its own readers.
fn watched(cluster: &Cluster) -> Client {
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE a (payload text, more int); CREATE TABLE b (payload text);
             CREATE ROLE reads_a LOGIN; CREATE ROLE reads_b LOGIN; CREATE ROLE reads_column LOGIN; CREATE ROLE nobody LOGIN;
             GRANT SELECT ON a TO reads_a; GRANT SELECT ON b TO reads_b; GRANT SELECT (more) ON a TO reads_column;
             SELECT oban_watch('a', 'both', payload_column => 'payload'), oban_watch('b', 'both', payload_column => 'payload')",
        )
        .unwrap();
    client
}

/// A reader passes over what it may not read, and misses nothing.
#[test]
fn who_may_read_a_table_reads_its_messages() {
    let cluster = Cluster::installed();
    let mut client = watched(&cluster);
    let after = position(&mut client);
    client
        .batch_execute(
            "BEGIN; INSERT INTO a VALUES ('1'), ('{\"queue\":\"x\"}'), (''); INSERT INTO b VALUES ('1'), ('2'); COMMIT;
             SELECT oban_notify_text('both', 'any'), oban_notify('both', '{\"n\": 1}', '')",
        )
        .unwrap();
    let end = position(&mut client);
    let any = [json!("any"), json!({"n": 1})];
    let of_a = [json!("1"), json!({"queue": "x"}), json!("")];
    let of_b = [json!("1"), json!("2")];
    for (role, wanted) in [
        ("postgres", [&of_a[..], &of_b, &any].concat()),
        ("reads_a", [&of_a[..], &any].concat()),
        ("reads_column", any.to_vec()), // a message may have the value of another column
        ("reads_b", [&of_b[..], &any].concat()),
        ("nobody", any.to_vec()),
    ] {
        let mut reader = cluster.client_as("postgres", role);
        assert_eq!(poll(&mut reader, "both", after, ""), (end, Some(0), wanted.clone()), "{role}");
        // One at a time.
        let (mut at, mut read) = (after, Vec::new());
        loop {
            let (position, missed, payloads) = poll(&mut reader, "both", at, ", max_messages => 1");
            assert_eq!(missed, Some(0), "{role}");
            if payloads.is_empty() {
                break;
            }
            read.extend(payloads);
            at = position;
        }
        assert_eq!((at, read), (end, wanted.clone()), "{role}");
        let row =
            reader.query_one(&format!("CALL oban_wait('{{both}}', {after}, prefix => '')"), &[]).unwrap();
        assert_eq!(answer(&row), (end, Some(0), wanted), "{role}");
    }
    let mut reader = cluster.client_as("postgres", "reads_a");
    let of_queue = poll(&mut reader, "both", after, ", queues => '{y}'").2;
    assert_eq!(of_queue, [json!("1"), json!(""), json!("any"), json!({"n": 1})], "the queue counts, too");

    // Rights that change count at the next reading, also within a transaction.
    let mut transaction = reader.transaction().unwrap();
    let read = |transaction: &mut postgres::Transaction<'_>| {
        let sql = format!("SELECT * FROM oban_poll('{{both}}', {after}, prefix => '')");
        answer(&transaction.query_one(&sql, &[]).unwrap()).2
    };
    client.batch_execute("REVOKE SELECT ON a FROM reads_a; GRANT SELECT ON b TO reads_a").unwrap();
    assert_eq!(read(&mut transaction), [&of_b[..], &any].concat());
    transaction.rollback().unwrap();

    // The messages of a table that was dropped are for no role.
    client.batch_execute("DROP TABLE b").unwrap();
    assert_eq!(payloads(&mut client, "both", after), [&of_a[..], &any].concat());
    assert_eq!(payloads(&mut reader, "both", after), any);
    client.batch_execute("CREATE TABLE b (payload text); GRANT SELECT ON b TO PUBLIC").unwrap();
    assert_eq!(payloads(&mut reader, "both", after), any, "nor is another of its name");
    client.batch_execute("DROP TABLE a").unwrap();
    assert_eq!(payloads(&mut client, "both", after), any);
}

/// Tables are made and dropped all the time. Each reading passes over what has gone.
#[test]
fn a_table_that_goes_while_it_is_read_raises_nothing() {
    let cluster = Cluster::installed();
    let mut client = watched(&cluster);
    let after = position(&mut client);
    let churn = std::thread::spawn(move || {
        for n in 0..150 {
            let sql = format!(
                "CREATE TABLE t{n} (payload text); SELECT oban_watch('t{n}', 'both', payload_column => 'payload');
                 GRANT SELECT (payload) ON t{n} TO reads_a"
            );
            client.batch_execute(&sql).unwrap();
            client.batch_execute(&format!("INSERT INTO t{n} VALUES ('x')")).unwrap();
            client.batch_execute(&format!("DROP TABLE t{n}")).unwrap();
        }
    });
    let mut readers = ["postgres", "reads_a", "nobody"].map(|role| cluster.client_as("postgres", role));
    let mut seen = false;
    while !churn.is_finished() {
        for reader in &mut readers {
            seen |= !payloads(reader, "both", after).is_empty();
        }
    }
    churn.join().unwrap();
    assert!(seen, "a message was read while its table was there");
    readers.iter_mut().for_each(|reader| assert_eq!(payloads(reader, "both", after), [] as [Value; 0]));
}

/// More messages than a reader looks at at a time are for others.
#[test]
fn many_messages_for_others_are_passed_over() {
    let cluster = Cluster::installed();
    let mut client = watched(&cluster);
    let after = position(&mut client);
    client
        .batch_execute(
            "INSERT INTO a SELECT i FROM generate_series(1, 3000) i; SELECT oban_notify_text('both', 'x');
             INSERT INTO a SELECT i FROM generate_series(1, 3000) i; SELECT oban_notify_text('both', 'y')",
        )
        .unwrap();
    let end = position(&mut client);
    let mut nobody = cluster.client_as("postgres", "nobody");
    assert_eq!(poll(&mut nobody, "both", after, ""), (end, Some(0), vec![json!("x"), json!("y")]));
    let (at, missed, one) = poll(&mut nobody, "both", after, ", max_messages => 1");
    assert_eq!((missed, one), (Some(0), vec![json!("x")]));
    assert!(at < end);
    assert_eq!(poll(&mut nobody, "both", at, ", max_messages => 1"), (end, Some(0), vec![json!("y")]));
    assert_eq!(payloads(&mut client, "both", after).len(), 1000);
}

/// A message that a waiter may not read does not end its wait, and leaves nothing that the waiter holds.
#[test]
fn a_waiter_sleeps_on_and_learns_of_its_rights() {
    let cluster = Cluster::installed();
    let mut client = watched(&cluster);
    let mut reader = cluster.client_as("postgres", "reads_b");
    let pid: i32 = reader.one("SELECT pg_backend_pid()");
    let thread = std::thread::spawn(move || {
        let row =
            reader.query_one("CALL oban_wait('{both}', timeout => '1 hour', prefix => '')", &[]).unwrap();
        (answer(&row), reader)
    });
    let state = format!(
        "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
    );
    let waits = |client: &mut Client| {
        wait_until("it waits", || client.one::<Option<bool>>(&state) == Some(true));
    };
    waits(&mut client);
    let polls = stat(&mut client, "polls");
    client.batch_execute("INSERT INTO a VALUES ('1')").unwrap();
    wait_until("it has looked", || stat(&mut client, "polls") > polls);
    waits(&mut client);
    let holds = format!(
        "SELECT backend_xmin IS NULL AND backend_xid IS NULL
             AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = s.pid AND locktype <> 'virtualxid')
         FROM pg_stat_activity s WHERE pid = {pid}"
    );
    assert!(client.one::<bool>(&holds), "no snapshot, no transaction id, no lock");
    // The right to b is revoked during the wait, and that to a is granted.
    client
        .batch_execute(
            "REVOKE SELECT ON b FROM reads_b; INSERT INTO b VALUES ('2'); GRANT SELECT ON a TO reads_b",
        )
        .unwrap();
    client.batch_execute("INSERT INTO a VALUES ('3')").unwrap();
    let ((_, missed, payloads), mut reader) = thread.join().unwrap();
    assert_eq!((missed, payloads), (Some(0), vec![json!("3")]));
    let timeout = format!("CALL oban_wait('{{both}}', {}, '10 ms', prefix => '')", position(&mut client));
    client.batch_execute("INSERT INTO b VALUES ('4')").unwrap();
    let (at, missed, payloads) = answer(&reader.query_one(&timeout, &[]).unwrap());
    assert_eq!((at, missed, payloads), (position(&mut client), Some(0), vec![]));
}

/// Two tables send equal texts: two messages for readers of the ring, and one notification in a transaction.
#[test]
fn equal_wake_ups_of_two_tables_are_one_notification() {
    let cluster = Cluster::installed();
    let mut client = watched(&cluster);
    client.batch_execute("LISTEN \"both\"").unwrap();
    let after = position(&mut client);
    client
        .batch_execute("BEGIN; INSERT INTO a VALUES ('1'), ('1'); INSERT INTO b VALUES ('1'); COMMIT")
        .unwrap();
    client.batch_execute("INSERT INTO a VALUES ('end')").unwrap();
    assert_eq!(payloads(&mut client, "both", after), ["1", "1", "end"]);
    assert_eq!(heard_texts(&mut client), ["1", "end"]);
    client.batch_execute("SET obanrs.notifier = 'postgres'").unwrap();
    client.batch_execute("BEGIN; INSERT INTO a VALUES ('2'); INSERT INTO b VALUES ('2'); COMMIT").unwrap();
    client.batch_execute("INSERT INTO a VALUES ('')").unwrap();
    assert_eq!(heard_texts(&mut client), ["2", ""]);
    assert_eq!(stat(&mut client, "dropped"), 0);
}
