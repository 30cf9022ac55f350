//! Databases in encodings other than UTF-8, and clients whose encoding lacks characters of what others write.

use postgres::Client;
use serde_json::{Value, json};

use crate::errors::functions_like;
use crate::support::{Ask, Cluster, code, stat, wait_until};

/// An encoding, and an expression for a name in it that is not ASCII, or is no valid text.
const ENCODINGS: [(&str, &str); 4] = [
    ("LATIN1", "'é'"),
    ("EUC_JP", "'日本'"),
    // WIN1252 has no character for this byte.
    ("WIN1252", "convert_from('\\x81', 'WIN1252')"),
    ("SQL_ASCII", "convert_from('\\xe9', 'SQL_ASCII')"),
];

fn database(cluster: &Cluster, encoding: &str) -> Client {
    let create = format!(
        "CREATE DATABASE \"{encoding}\" TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    );
    cluster.client().batch_execute(&create).unwrap();
    let mut client = cluster.client_of(encoding);
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    client
}

/// The SQLSTATE, the message and the hint with which a statement fails. `None` means that it succeeds.
fn failure(client: &mut Client, sql: &str) -> Option<(String, String, String)> {
    let error = client.batch_execute(sql).err()?;
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    let hint = error.hint().unwrap_or_default().to_owned();
    Some((error.code().code().to_owned(), error.message().to_owned(), hint))
}

/// Each text argument of each function is tried.
#[test]
fn names_that_are_not_ascii_are_refused_with_a_hint() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    for (encoding, odd) in ENCODINGS {
        let mut client = database(&cluster, encoding);
        let mut tried = 0;
        for function in functions_like(&mut client, "oban\\_%") {
            for (name, kind, _) in &function.arguments {
                let literal = match kind.as_str() {
                    "text" => odd.to_owned(),
                    "text[]" => format!("ARRAY[{odd}]"),
                    _ => continue,
                };
                tried += 1;
                let call = function.call(&[(name, &literal)]);
                let failed = failure(&mut client, &call);
                // Messages go to channels of any prefix, and queues have any name that is valid text.
                let channels = [
                    "oban_notify",
                    "oban_listen_channels",
                    "oban_poll",
                    "oban_wait",
                    "oban_unlisten_channels",
                ];
                let of_bus = channels.iter().any(|c| function.name.starts_with(c));
                let of_signals = function.name.ends_with("_queue") || function.name == "oban_queue_state";
                let of_jobs = ["oban_fetch", "oban_take"].contains(&&*function.name) && name == "queues"
                    || function.name == "oban_insert_job"
                        && ["worker", "queue", "tags", "unique_keys"].contains(&name.as_str());
                if (of_jobs
                    || of_bus && (name == "prefix" || name == "queues")
                    || of_signals && name == "queue")
                    && ["LATIN1", "EUC_JP"].contains(&encoding)
                {
                    let codes = failed.map(|(code, ..)| code);
                    assert!(codes.is_none_or(|code| code == "3F000"), "{encoding}: {call}");
                    continue;
                }
                let of_watch = function.name == "oban_watch";
                let any = function.name == "oban_notify_text" || (of_watch && name == "channel");
                if function.takes_error(name)
                    || any && (name == "payload" || ["LATIN1", "EUC_JP"].contains(&encoding))
                {
                    assert_eq!(failed, None, "{encoding}: {call}");
                    continue;
                }
                let (code, message, hint) = failed.unwrap_or_else(|| panic!("{encoding}: {call} succeeded"));
                assert_eq!(code, "22023", "{encoding}: {call}: {message}");
                assert!(message.is_ascii() || encoding == "SQL_ASCII", "{encoding}: {call}: {message}");
                assert!(!hint.is_empty(), "{encoding}: {call}: {message}");
                // Events, conditions and states are refused for what they say.
                if !of_bus && !of_watch && name != "wire" && name != "unique_states" {
                    assert!(message.contains(&format!("\"{name}\"")), "{encoding}: {call}: {message}");
                    assert!(hint.contains(encoding), "{encoding}: {call}: {hint}");
                }
            }
        }
        assert!(tried > 20, "only {tried} texts were tried");
    }
}

/// A queue may have any name that the database can hold. A signal to it is heard and remembered.
#[test]
fn signals_go_to_queues_of_any_name() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.signal_ingest = on"]);
    for (encoding, queue) in [("LATIN1", "é"), ("EUC_JP", "日本"), ("SQL_ASCII", "é")] {
        let mut client = database(&cluster, encoding);
        client.batch_execute("LISTEN \"public.oban_signal\"").unwrap();
        client
            .batch_execute(&format!("SELECT oban_pause_queue('{queue}'), oban_scale_queue('{queue}', 3)"))
            .unwrap();
        let heard: Vec<String> =
            crate::support::heard(&mut client).iter().map(|n| n.payload().trim_end().to_owned()).collect();
        let wanted = [
            format!(r#"{{"action":"pause","queue":"{queue}","ident":"any"}}"#),
            format!(r#"{{"action":"scale","queue":"{queue}","ident":"any","limit":3}}"#),
        ];
        assert_eq!(heard, wanted, "{encoding}");
        let state = format!("SELECT paused AND queue_limit = 3 FROM oban_queue_state('{queue}')");
        assert!(client.one::<bool>(&state), "{encoding}");
        assert_eq!(client.one::<String>("SELECT string_agg(queue, ' ') FROM oban_queue_signals"), queue);
    }
}

/// These messages quote a text, or the beginning of a long one.
#[test]
fn errors_quote_texts_in_ascii() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    for (encoding, odd, shown) in [("LATIN1", "é", "\\u00e9"), ("EUC_JP", "日本", "\\u65e5\\u672c")] {
        let mut client = database(&cluster, encoding);
        for call in [
            format!("oban_notify('{odd}', '{{}}')"),
            format!("oban_notify('signal', to_jsonb(repeat('{odd}', 200)))"),
            format!("oban_encode(to_jsonb('{odd}'::text))"),
            format!("oban_decode('{odd}')"),
            format!("oban_decode(repeat('{odd}', 200))"),
            format!("oban_gossip_put('a', 'q', jsonb_build_object('running', repeat('{odd}', 200)))"),
        ] {
            let (code, message, _) = failure(&mut client, &format!("SELECT {call}")).expect(&call);
            assert_eq!(code, "22023", "{encoding}: {call}: {message}");
            assert!(message.contains(shown) && message.is_ascii(), "{encoding}: {call}: {message}");
        }
    }
}

/// The database has no characters for this JSON.
#[test]
fn what_jsonb_can_not_hold_is_no_wire_form() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let mut client = database(&cluster, encoding);
        assert_eq!(code(&mut client, "SELECT oban_decode('{\"a\": \"\\u65e5\"}')"), "22023", "{encoding}");
    }
}

/// A role that may create schemas gives one such a name.
#[test]
fn a_schema_with_such_a_name_breaks_nothing_for_others() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    for (encoding, odd) in ENCODINGS {
        let mut client = database(&cluster, encoding);
        client
            .batch_execute(&format!(
                "DO $$ DECLARE s text := {odd}; BEGIN
                     EXECUTE format('CREATE SCHEMA %I', s);
                     EXECUTE format('CREATE TABLE %I.oban_jobs (id bigint, state text, queue text)', s);
                     EXECUTE format('CREATE TABLE %I.oban_peers (name text PRIMARY KEY, node text NOT NULL,
                         started_at timestamp NOT NULL, expires_at timestamp NOT NULL, term bigint, boot bigint)', s);
                     EXECUTE format('INSERT INTO %I.oban_peers VALUES (''X'', ''y'', now(), now() + interval ''1 h'')', s);
                     -- A row of a foreign node in a prefix of an ordinary name.
                     EXECUTE format('INSERT INTO public.oban_peers VALUES (''Odd'', %L, now(), now() + interval ''1 h'')', s);
                 END $$; SELECT oban_join('a')"
            ))
            .unwrap();
        wait_until("it leads", || client.one("SELECT oban_is_leader()"));
        assert_eq!(
            client.one::<Vec<String>>(
                "SELECT array_agg(prefix || '/' || name ORDER BY name) FROM oban_leadership"
            ),
            ["public/Oban", "public/Odd"],
            "{encoding}"
        );
        let nodes = client.query("SELECT node FROM oban_leader('Odd')", &[]).unwrap();
        assert_eq!(nodes.len(), 1, "{encoding}");
        let left_out = format!(
            "SELECT count(*) FROM oban_check() WHERE NOT ok AND item LIKE 'prefix%' AND detail LIKE '%{encoding}%'"
        );
        assert_eq!(client.one::<i64>(&left_out), 1, "{encoding}");
        assert_eq!(
            client.one::<i64>("SELECT count(*) FROM oban_check() WHERE item = 'prefix public' AND ok"),
            1
        );
        // The relay goes on to listen to the gossip of other nodes.
        let check = json!({
            "name": "Oban", "node": "far", "queue": "q", "uuid": "u",
            "limit": 1, "paused": false, "running": [],
            "started_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        });
        let gossip = format!("SELECT pg_notify('public.oban_gossip', '{check}')");
        wait_until("gossip is taken in", || {
            client.batch_execute(&gossip).unwrap();
            client.one("SELECT count(*) = 1 FROM oban_gossip WHERE node = 'far'")
        });
        assert!(!cluster.log().contains("can't listen"), "{encoding}: {}", cluster.log());
    }
}

fn messages(client: &mut Client, call: &str) -> Value {
    client.one(&format!("SELECT messages FROM {call}"))
}

/// A reader's encoding may lack characters of a queue's name. The reader still gets all that comes after it.
#[test]
fn a_reader_gets_past_what_its_encoding_lacks() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    client
        .batch_execute(
            "INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'é日本🦀'), ('w', 'plain');
             SELECT oban_notify('signal', '{\"日\": {\"本\": [\"🦀\"]}}'), oban_notify('日本', '{}', '');
             SELECT oban_notify('sonar', jsonb_build_object('x', repeat('é日', 30000)))",
        )
        .unwrap();
    let poll = format!("oban_poll('{{insert,signal}}', {after})");
    let all = messages(&mut client, &poll);
    assert_eq!(all[0]["payload"]["queue"], "é日本🦀", "in UTF-8 all is as it was written");
    assert_eq!(all[2]["payload"], json!({"日": {"本": ["🦀"]}}));

    client.batch_execute("SET client_encoding = 'LATIN1'").unwrap();
    let queue = format!(
        r"SELECT messages->0->'payload'->>'queue' = U&'\00e9' || '\u65e5\u672c\ud83e\udd80' FROM {poll}"
    );
    assert!(client.one::<bool>(&queue), "only what the encoding lacks is escaped");
    let rest = messages(&mut client, &format!("(SELECT messages - 0 AS messages FROM {poll}) m"));
    assert_eq!(rest[0]["payload"]["queue"], "plain");
    assert_eq!(rest[1]["payload"], json!({r"\u65e5": {r"\u672c": [r"\ud83e\udd80"]}}), "keys, too");
    // This payload is longer than what is converted at a time, and is packed on its way.
    let long = format!(
        r"SELECT messages->0->'payload'->>'x' = repeat(U&'\00e9' || '\u65e5', 30000) FROM oban_poll('{{sonar}}', {after})"
    );
    assert!(client.one::<bool>(&long));
    // A verbatim channel is named in escaped form.
    let verbatim = format!("oban_poll(ARRAY[U&'\\65e5\\672c'], {after}, prefix => '')");
    assert_eq!(messages(&mut client, &verbatim)[0]["channel"], r"\u65e5\u672c");
    let call = format!("CALL oban_wait('{{signal}}', {after})");
    let row = client.query_one(&call, &[]).unwrap();
    assert_eq!(row.get::<_, Value>(2)[0]["payload"], json!({r"\u65e5": {r"\u672c": [r"\ud83e\udd80"]}}));

    // A reader names its queues in its own encoding, also in a database of another encoding.
    let mine = format!(
        "SELECT jsonb_array_length(messages) FROM oban_poll('{{insert}}', {after}, queues => ARRAY[U&'\\00e9\\65e5\\672c\\+01f980'])"
    );
    assert_eq!(client.one::<i32>(&mine), 1);
    let mut latin = database(&cluster, "LATIN1");
    let after: i64 = latin.one("SELECT oban_position()");
    latin.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'é'), ('w', 'plain')").unwrap();
    let all = messages(&mut latin, &format!("oban_poll('{{insert}}', {after}, queues => '{{é}}')"));
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    assert_eq!(all[0]["payload"]["queue"], "é");

    // This database has the encoding SQL_ASCII.
    let mut bare = database(&cluster, "SQL_ASCII");
    let after: i64 = bare.one("SELECT oban_position()");
    bare.batch_execute(
        "INSERT INTO oban_jobs (worker, queue) VALUES ('w', convert_from('\\xe9', 'SQL_ASCII')), ('w', 'plain')",
    )
    .unwrap();
    for encoding in ["UTF8", "EUC_JP"] {
        bare.batch_execute(&format!("SET client_encoding = '{encoding}'")).unwrap();
        let all = messages(&mut bare, &format!("oban_poll('{{insert}}', {after})"));
        assert_eq!(all.as_array().map(Vec::len), Some(2), "{encoding}: {all}");
    }
    assert_eq!(stat(&mut bare, "dropped"), 0);
}
