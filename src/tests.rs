//! Tests that need a backend but no commit. Each test runs in a transaction that is rolled back.
//! Tests that need commits, other sessions or workers are in tests/server.

use pgrx::prelude::*;

/// The module that `cargo pgrx test` looks for at the root of the crate, by this name.
#[cfg(test)]
pub mod pg_test {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::process::Command;
    use std::sync::OnceLock;

    use pgrx_pg_config::Pgrx;

    /// Runs before each test, and before pgrx installs the library. Panics if pgrx would change a
    /// Postgres that may be in use, or could not install.
    ///
    /// pgrx installs a debug build as soon as it has the right to, and a Postgres that is in use
    /// has to keep its files. Without that right, or as root, pgrx fails in ways that do not say
    /// what to do.
    pub fn setup(_options: Vec<&str>) {
        static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
        if let Some(why) = REFUSAL.get_or_init(refusal) {
            panic!("{why}");
        }
    }

    /// Returns why the tests must not run. `None`: they may run.
    fn refusal() -> Option<String> {
        if std::env::var_os("PGRX_TEST_SKIP").is_some_and(|skip| !skip.is_empty()) {
            return None;
        }
        let major = pgrx::pg_sys::get_pg_major_version_num();
        let remedy = format!(
            "`make pgrx-test` runs the same tests on a private copy of a Postgres (PG_CONFIG=... says of \
             which). Or, as a user other than root, give pgrx a Postgres of your own: `cargo pgrx init \
             --pg{major} download`"
        );
        let known = Pgrx::from_config().and_then(|pgrx| pgrx.get(&format!("pg{major}")));
        let folders = known.and_then(|c| Ok((c.bin_dir()?, [c.pkglibdir()?, c.extension_dir()?])));
        let (bin, targets) = match folders {
            Ok(folders) => folders,
            Err(error) => return Some(format!("pgrx has no Postgres {major} to test: {error}\n{remedy}")),
        };
        // tools/pgrx-test writes this file into its copy of Postgres. If root runs the tests, the
        // programs of the copy run as another user.
        if bin.join("obanrs-private-copy").exists() {
            return None;
        }
        let root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        let why = if root {
            "from which a server may run, and as root none can be started"
        } else if !targets.iter().all(|folder| writable(folder)) {
            "where you may not write"
        } else {
            return None;
        };
        Some(format!(
            "cargo pgrx test would install a debug build into {}, {why}\n{remedy}",
            targets[0].display()
        ))
    }

    /// Returns whether this user may write to a folder.
    fn writable(folder: &Path) -> bool {
        Command::new("test").arg("-w").arg(folder).status().is_ok_and(|status| status.success())
    }

    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'obanrs'"]
    }
}

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::logic::{jsonb, object_text, wire};
    use crate::pg::datum::RawJsonb;
    use crate::pg::encoding;

    /// Returns the first column of all rows.
    fn texts(sql: &str) -> Vec<String> {
        Spi::connect(|client| {
            let rows = client.select(sql, None, &[]).expect("the query runs");
            rows.map(|row| row.get::<String>(1).expect("a text").unwrap_or_default()).collect()
        })
    }

    fn text(sql: &str) -> String {
        texts(sql).pop().expect("one row")
    }

    #[pg_test]
    fn version_is_the_crates_and_the_extensions() {
        assert_eq!(text("SELECT oban_version()"), env!("CARGO_PKG_VERSION"));
        let extension = "SELECT extversion FROM pg_extension WHERE extname = 'obanrs'";
        assert_eq!(text(extension), env!("CARGO_PKG_VERSION"));
    }

    /// Names, argument names, types and defaults are a contract, because clients call by name.
    #[pg_test]
    fn functions_have_the_contracts_signatures() {
        let signature = |name: &str| {
            text(&format!(
                "SELECT pg_get_function_arguments(oid) || ' -> ' || pg_get_function_result(oid)
                 FROM pg_proc WHERE proname = '{name}'"
            ))
        };
        let four = "'{gossip,insert,leader,signal}'::text[]";
        let prefix = "prefix text DEFAULT 'public'::text";
        let name = "name text DEFAULT 'Oban'::text";
        let (node, limit) = ("node text DEFAULT NULL::text", "queue_limit integer");
        for (function, expected) in [
            ("oban_version", " -> text".to_owned()),
            (
                "oban_install",
                format!(
                    "{prefix}, stage boolean DEFAULT NULL::boolean, on_replica boolean DEFAULT NULL::boolean -> void"
                ),
            ),
            (
                "oban_watch",
                "queue_table regclass, channel text, queue_column name DEFAULT NULL::name, \
                 events text[] DEFAULT '{insert}'::text[], payload_column name DEFAULT NULL::name, \
                 condition text DEFAULT NULL::text -> void"
                    .to_owned(),
            ),
            ("oban_unwatch", "queue_table regclass -> void".to_owned()),
            ("oban_uninstall", format!("{prefix} -> void")),
            ("oban_notify", format!("channel text, payload jsonb, {prefix} -> void")),
            ("oban_notify_many", format!("channel text, payloads jsonb[], {prefix} -> void")),
            ("oban_notify_text", "channel text, payload text DEFAULT ''::text -> void".to_owned()),
            ("oban_listen_channels", format!("channels text[] DEFAULT {four}, {prefix} -> SETOF text")),
            ("oban_unlisten_channels", format!("channels text[] DEFAULT {four}, {prefix} -> SETOF text")),
            (
                "oban_poll",
                format!(
                    "channels text[] DEFAULT {four}, after bigint DEFAULT NULL::bigint, max_messages integer DEFAULT 1000, {prefix}, queues text[] DEFAULT NULL::text[] -> TABLE(\"position\" bigint, missed bigint, messages jsonb)"
                ),
            ),
            ("oban_position", " -> bigint".to_owned()),
            ("oban_encode", "payload jsonb -> text".to_owned()),
            ("oban_decode", "wire text -> jsonb".to_owned()),
            (
                "oban_join",
                format!(
                    "node text, {name}, lease interval DEFAULT NULL::interval, replace boolean DEFAULT false, {prefix}, candidate boolean DEFAULT true -> bigint"
                ),
            ),
            ("oban_renew", "member bigint -> bigint".to_owned()),
            ("oban_resign", "member bigint -> boolean".to_owned()),
            ("oban_leave", "member bigint -> boolean".to_owned()),
            ("oban_fence", format!("term bigint, {name}, {prefix} -> void")),
            ("oban_is_leader", format!("{name}, node text DEFAULT NULL::text, {prefix} -> boolean")),
            ("oban_term", format!("{name}, node text DEFAULT NULL::text, {prefix} -> bigint")),
            (
                "oban_leader",
                format!(
                    "{name}, {prefix} -> TABLE(node text, term bigint, started_at timestamp with time zone, expires_at timestamp with time zone)"
                ),
            ),
            (
                "oban_gossip_put",
                format!(
                    "node text, queue text, state jsonb DEFAULT '{{}}'::jsonb, {name}, ttl interval DEFAULT NULL::interval, {prefix} -> void"
                ),
            ),
            ("oban_check", " -> TABLE(item text, ok boolean, detail text)".to_owned()),
            (
                "oban_gossip_delete",
                format!("node text, queue text DEFAULT NULL::text, {name}, {prefix} -> integer"),
            ),
            (
                "oban_orphans",
                format!(
                    "{prefix}, grace interval DEFAULT '00:01:00'::interval -> TABLE(id bigint, queue text, worker text, node text, reason text, since timestamp with time zone)"
                ),
            ),
            (
                "oban_rescue",
                format!(
                    "{prefix}, grace interval DEFAULT '00:01:00'::interval, term bigint DEFAULT NULL::bigint, {name}, include_unknown boolean DEFAULT false -> TABLE(id bigint, state text)"
                ),
            ),
            ("oban_pause_queue", format!("queue text, {node}, {name}, {prefix} -> void")),
            ("oban_resume_queue", format!("queue text, {node}, {name}, {prefix} -> void")),
            ("oban_stop_queue", format!("queue text, {node}, {name}, {prefix} -> void")),
            ("oban_scale_queue", format!("queue text, {limit}, {node}, {name}, {prefix} -> void")),
            ("oban_start_queue", format!("queue text, {limit}, {node}, {name}, {prefix} -> void")),
            ("oban_pkill_job", format!("job_id bigint, {prefix} -> void")),
            (
                "oban_queue_state",
                format!(
                    "queue text, {node}, {name}, {prefix} -> TABLE(paused boolean, queue_limit integer, since timestamp with time zone)"
                ),
            ),
        ] {
            assert_eq!(signature(function), expected, "{function}");
        }
    }

    #[pg_test]
    fn oban_wait_has_the_contracts_signature() {
        assert_eq!(
            text(
                "SELECT pg_get_function_arguments(oid) FROM pg_proc WHERE proname = 'oban_wait' AND prokind = 'p'"
            ),
            "IN channels text[] DEFAULT '{gossip,insert,leader,signal}'::text[], \
             IN after bigint DEFAULT NULL::bigint, IN timeout interval DEFAULT '00:00:05'::interval, \
             IN max_messages integer DEFAULT 1000, IN prefix text DEFAULT 'public'::text, \
             INOUT \"position\" bigint DEFAULT NULL::bigint, \
             INOUT missed bigint DEFAULT NULL::bigint, INOUT messages jsonb DEFAULT NULL::jsonb, \
             IN queues text[] DEFAULT NULL::text[]"
        );
    }

    #[pg_test]
    fn views_have_the_contracts_columns() {
        for (view, expected) in [
            ("oban_members", "prefix,name,node,member,kind,pid,leader,joined_at,expires_at"),
            ("oban_leadership", "prefix,name,node,term,started_at,expires_at"),
            (
                "oban_gossip",
                "prefix,name,node,queue,paused,local_limit,running,uuid,started_at,updated_at,expires_at,state",
            ),
            ("oban_stats", "counter,value"),
            ("oban_watches", "queue_table,channel,queue_column,events,payload_column,condition,ok"),
            ("oban_workers", "kind,database,pid,state,started_at,restarts,last_error,prefix"),
        ] {
            let columns = text(&format!(
                "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = '{view}'::regclass AND attnum > 0"
            ));
            assert_eq!(columns, expected, "{view}");
        }
    }

    #[pg_test]
    fn every_object_has_a_comment_and_a_name_that_begins_with_oban() {
        let members = "FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
             WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'obanrs' AND d.deptype = 'e'
               AND (d.classid = 'pg_proc'::regclass OR d.classid = 'pg_class'::regclass)
               AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = d.objid AND p.pronamespace = 'tests'::regnamespace)";
        let without = format!(
            "SELECT pg_describe_object(d.classid, d.objid, 0) {members} AND obj_description(d.objid, d.classid::regclass::name) IS NULL"
        );
        assert_eq!(texts(&without), Vec::<String>::new());
        let foreign = format!(
            "SELECT pg_describe_object(d.classid, d.objid, 0) {members}
             AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = d.objid AND p.proname ~ '^oban(rs)?_')
             AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = d.objid AND c.relname ~ '^oban(rs)?_')"
        );
        assert_eq!(texts(&foreign), Vec::<String>::new());
        let taken = format!(
            "SELECT pg_describe_object(d.classid, d.objid, 0) {members}
             AND pg_describe_object(d.classid, d.objid, 0) ~ '\\m(oban_jobs_notify|oban_leaders|oban_producers)\\M'"
        );
        assert_eq!(texts(&taken), Vec::<String>::new(), "names that Oban's own migrations drop or create");
    }

    #[pg_test]
    fn wire_forms_are_written_and_read() {
        assert_eq!(
            text(r#"SELECT oban_encode('{"b": [1, 2.50], "a": null}')"#),
            r#"{"a":null,"b":[1,2.50]}"#
        );
        for wire in [
            r#"{"queue":"default"}"#,
            "H4sIAAAAAAAAA6tWKixNLU1VslJKSU1LLM0pUaoFAJj2NkcTAAAA",
            "Z:H4sIAAAAAAAAA6tWKixNLU1VslJKSU1LLM0pUaoFAJj2NkcTAAAA",
        ] {
            assert_eq!(text(&format!("SELECT oban_decode('{wire}')::text")), r#"{"queue": "default"}"#);
        }
        let long = "jsonb_build_object('pad', repeat('x', 9000), 'n', 1e300)";
        assert_eq!(text(&format!("SELECT left(oban_encode({long}), 4)")), "H4sI");
        assert_eq!(text(&format!("SELECT (oban_decode(oban_encode({long})) = {long})::text")), "true");
    }

    /// The names are those that Oban's migration 14 leaves. A real Oban looks for them.
    #[pg_test]
    fn install_makes_the_tables_of_migration_14() {
        Spi::run("SELECT oban_install('jobs here', stage => false)").expect("it installs");
        let of = |what: &str| text(&what.replace("{t}", "'\"jobs here\".oban_jobs'::regclass"));
        assert_eq!(of("SELECT obj_description({t})"), "14");
        assert_eq!(
            of(
                "SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint WHERE conrelid = {t} AND contype <> 'n'"
            ),
            "attempt_range,non_negative_priority,oban_jobs_pkey,positive_max_attempts,queue_length,worker_length"
        );
        assert_eq!(
            of("SELECT string_agg(indexrelid::regclass::text, ',' ORDER BY indexrelid::regclass::text COLLATE \"C\")
                FROM pg_index WHERE indrelid = {t} AND NOT indisprimary"),
            [
                "oban_jobs_args_index",
                "oban_jobs_meta_index",
                "oban_jobs_state_cancelled_at_index",
                "oban_jobs_state_discarded_at_index",
                "oban_jobs_state_queue_priority_scheduled_at_id_index",
            ]
            .map(|i| format!("\"jobs here\".{i}"))
            .join(",")
        );
        assert_eq!(
            text(
                "SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum
                  WHERE enumtypid = '\"jobs here\".oban_job_state'::regtype"
            ),
            "available,suspended,scheduled,executing,retryable,completed,discarded,cancelled"
        );
        assert_eq!(
            text(
                "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
                  WHERE attrelid = '\"jobs here\".oban_peers'::regclass AND attnum > 0"
            ),
            "name,node,started_at,expires_at,term,boot"
        );
        assert_eq!(
            of("SELECT string_agg(tgname, ',' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = {t}"),
            "obanrs_jobs_insert,obanrs_jobs_update"
        );
        assert_eq!(
            text(
                "SELECT relpersistence::text FROM pg_class WHERE oid = '\"jobs here\".oban_peers'::regclass"
            ),
            "p"
        );
    }

    #[pg_test]
    fn settings_are_there_with_their_units() {
        let settings = texts(
            "SELECT name || ' ' || setting || coalesce(unit, '') || ' ' || context FROM pg_settings
             WHERE name LIKE 'obanrs.%' ORDER BY 1",
        );
        assert_eq!(
            settings,
            [
                "obanrs.gossip_ingest on sighup",
                "obanrs.gossip_interval 1000ms sighup",
                "obanrs.gossip_memory 8192kB postmaster",
                "obanrs.gossip_ttl 30000ms sighup",
                "obanrs.lease 30000ms sighup",
                "obanrs.max_databases 64 postmaster",
                "obanrs.max_members 1024 postmaster",
                "obanrs.max_rings 8 postmaster",
                "obanrs.max_transaction_messages 100000 sighup",
                "obanrs.notifier bus user",
                "obanrs.relay_interval 2ms sighup",
                "obanrs.require_lease off user",
                "obanrs.ring_size 8192kB postmaster",
                "obanrs.role_share 25 sighup",
                "obanrs.signal_ingest off sighup",
                "obanrs.wakeups on user",
            ]
        );
    }

    /// Values of jsonb of many kinds and sizes, made by Postgres, are read as Postgres prints them.
    #[pg_test]
    fn a_jsonb_is_read_as_postgres_prints_it() {
        let states = "
            SELECT jsonb_build_object('n', i * 1000003::numeric ^ (i % 40) / 7, 'small', -i / 3.0 ^ (i % 50), 'i', -i,
                'text', repeat(chr(i % 200 + 1), i % 50), 'o', jsonb_build_object('', null, 'é', i % 2 = 0),
                'a', (SELECT jsonb_agg(CASE WHEN j % 3 = 0 THEN to_jsonb(j) WHEN j % 3 = 1 THEN '{}' ELSE to_jsonb(j::text) END)
                      FROM generate_series(1, i % 100) j))
            FROM generate_series(1, 2000) i";
        let mut read = 0;
        Spi::connect(|client| {
            for row in client.select(states, None, &[]).expect("it runs") {
                let state: RawJsonb = row.get(1).expect("a jsonb").expect("not null");
                let text = state.text();
                let value = jsonb::read(state.bytes()).expect("it can be read");
                let wanted: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(value.as_serde().expect("it can be read"), wanted);
                assert_eq!(value.walk(&mut |_| {}), Ok(wire::compact(&text).expect("JSON").len()), "{text}");
                read += 1;
            }
        });
        assert_eq!(read, 2000);
    }

    /// Whether a text is an object is decided without `jsonb_in`, and has to be what `jsonb_in`
    /// decides. The texts are pieces of JSON in every order.
    #[pg_test]
    fn a_text_is_an_object_if_jsonb_takes_it_as_one() {
        Spi::run(
            "CREATE FUNCTION pg_temp.printed(t text) RETURNS text LANGUAGE plpgsql AS $$
             DECLARE object jsonb;
             BEGIN
                 object := t::jsonb;
                 RETURN CASE jsonb_typeof(object) WHEN 'object' THEN object::text ELSE '' END;
             EXCEPTION WHEN others THEN RETURN '';
             END $$",
        )
        .expect("it is created");
        let pieces = [
            "",
            " ",
            "\n",
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"",
            "\\",
            "\\u0000",
            "\\u00e9",
            "\\ud83d",
            "\\ude00",
            "\\u0041",
            "\\u20AC",
            "\\n",
            "\\x",
            "é",
            "\u{1}",
            "1",
            "-",
            "0",
            ".",
            "5",
            "e",
            "E+",
            "e-16383",
            "e131071",
            "e131072",
            "e-16384",
            "e400000",
            "e99999999999",
            "null",
            "tru",
            "true",
            "nan",
            "//",
            "'",
            "H4sI",
        ];
        // A linear congruential generator: the texts are the same each time.
        let mut random = 1u64;
        let mut next = |most: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % most
        };
        let mut texts: Vec<String> =
            ["{}", "", "{", "[]", "{\"a\":1}x", " {\"\":{}} "].map(Into::into).into();
        for _ in 0..6_000 {
            let mut some = |most: usize| -> String {
                let count = next(most);
                (0..count).map(|_| pieces[next(pieces.len())]).collect()
            };
            texts.push(format!("{{\"a\":{}}}", some(4)));
            texts.push(format!("{{\"a\":\"{}\"}}", some(4)));
            texts.push(format!("{{\"{}\":[{},\"{}\"]}}", some(3), some(4), some(2)));
            texts.push(some(8));
        }
        let mut objects = 0;
        for text in &texts {
            let printed =
                Spi::get_one_with_args::<String>("SELECT pg_temp.printed($1)", &[text.as_str().into()]);
            let printed = printed.expect("it runs").expect("not null");
            let Some(object) = object_text::object_of(text.as_bytes(), encoding::character) else {
                assert_eq!(printed, "", "{text}");
                continue;
            };
            let json = std::str::from_utf8(&object.json).expect("UTF-8");
            let again = Spi::get_one_with_args::<String>("SELECT pg_temp.printed($1)", &[json.into()]);
            assert_eq!(again, Ok(Some(printed.clone())), "{text}");
            assert!(!printed.is_empty(), "{text}");
            // Postgres prints a space behind each comma and colon.
            let separators = json.matches([',', ':']).count();
            assert!(printed.len() <= json.len() + object.printed_more + separators, "{text}");
            objects += 1;
        }
        assert!((1_000..texts.len() - 1_000).contains(&objects), "{objects} of {}", texts.len());
    }
}
