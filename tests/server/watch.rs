//! Watched tables: what is sent on which channel, whose statements are let alone, and what is refused.

use postgres::Client;

use crate::support::{Ask, Cluster, code, stat, wait_until};

const TABLE: &str = "CREATE TABLE q (id bigserial PRIMARY KEY, lane text, state text DEFAULT 'new', n int)";

struct Listener(Client);

impl Listener {
    fn new(cluster: &Cluster, channel: &str) -> Self {
        let mut client = cluster.client();
        client.batch_execute(&format!("LISTEN \"{channel}\"")).unwrap();
        Self(client)
    }

    /// Returns the payloads that were heard since the last time, sorted.
    fn heard(&mut self) -> Vec<String> {
        let heard = crate::support::heard(&mut self.0);
        let mut payloads: Vec<_> = heard.iter().map(|message| message.payload().to_owned()).collect();
        payloads.sort();
        payloads
    }
}

/// What oban_poll returns of a verbatim channel behind a position: the payloads as JSON.
fn polled(client: &mut Client, channel: &str, after: i64) -> String {
    client.one(&format!(
        "SELECT COALESCE(jsonb_agg(m -> 'payload')::text, '[]')
         FROM oban_poll('{{{channel}}}', {after}, prefix => ''), jsonb_array_elements(messages) m"
    ))
}

fn watched(client: &mut Client) -> Vec<String> {
    let sql =
        "SELECT concat_ws(' | ', queue_table, channel, queue_column, events, payload_column, condition, ok)
               FROM oban_watches ORDER BY queue_table::text, channel";
    let rows = client.query(sql, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn the_three_kinds_of_payload() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "{TABLE}; SELECT oban_watch('q', 'any'), oban_watch('q', 'lanes', queue_column => 'lane'),
                 oban_watch('q', 'ids', payload_column => 'id')"
        ))
        .unwrap();
    let start: i64 = client.one("SELECT oban_position()");
    let mut listeners = ["any", "lanes", "ids"].map(|channel| Listener::new(&cluster, channel));
    let mut heard = || listeners.each_mut().map(Listener::heard);
    client.batch_execute("INSERT INTO q (lane) VALUES ('a'), ('b \"ü'), ('a'), (NULL)").unwrap();
    let lanes = vec![r#"{"queue":"a"}"#, r#"{"queue":"b \"ü"}"#, r#"{"queue":null}"#];
    assert_eq!(heard(), [vec![""], lanes, vec!["1", "2", "3", "4"]]);
    assert_eq!(polled(&mut client, "any", start), r#"[""]"#);
    assert_eq!(
        polled(&mut client, "lanes", start),
        r#"[{"queue": "a"}, {"queue": "b \"ü"}, {"queue": null}]"#
    );
    assert_eq!(polled(&mut client, "ids", start), r#"["1", "2", "3", "4"]"#);
    // Only inserts are watched.
    client.batch_execute("UPDATE q SET lane = 'c'; DELETE FROM q; INSERT INTO q SELECT WHERE false").unwrap();
    assert_eq!(heard(), [vec![""; 0], vec![], vec![]]);
    // One message for each distinct text in a transaction, by savepoints that stay.
    client
        .batch_execute(
            "BEGIN; INSERT INTO q (lane) VALUES ('x'); SAVEPOINT s; INSERT INTO q (lane) VALUES ('y'); ROLLBACK TO s;
             INSERT INTO q (lane) VALUES ('x'), ('z'); SAVEPOINT s; INSERT INTO q (lane) VALUES ('y'); RELEASE s; COMMIT",
        )
        .unwrap();
    let lanes = ["x", "y", "z"].map(|lane| format!("{{\"queue\":\"{lane}\"}}"));
    assert_eq!(heard()[1], lanes);
    client.batch_execute("SELECT oban_unwatch('q'); INSERT INTO q (lane) VALUES ('a')").unwrap();
    assert_eq!(heard(), [vec![""; 0], vec![], vec![]]);
    assert_eq!(watched(&mut client), Vec::<String>::new());
}

#[test]
fn events_and_conditions() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "{TABLE}; SELECT oban_watch('q', 'all', payload_column => 'state', events => '{{delete,insert,update,insert}}');
             SELECT oban_watch('q', 'ready', 'lane', '{{insert,update}}', condition => 'NEW.state = ''ready''');
             SELECT oban_watch('q', 'turned', 'lane', '{{update}}', condition =>
                 'NEW.state = ''ready'' AND OLD.state IS DISTINCT FROM NEW.state -- a comment');
             SELECT oban_watch('q', 'gone', 'lane', '{{delete,update}}', condition => 'OLD.n > 1')"
        ))
        .unwrap();
    assert_eq!(
        watched(&mut client),
        [
            "q | all | {insert,update,delete} | state | t",
            "q | gone | lane | {update,delete} | OLD.n > 1 | t",
            "q | ready | lane | {insert,update} | NEW.state = 'ready' | t",
            "q | turned | lane | {update} | NEW.state = 'ready' AND OLD.state IS DISTINCT FROM NEW.state -- a comment | t",
        ]
    );
    let mut listeners = ["all", "ready", "turned", "gone"].map(|channel| Listener::new(&cluster, channel));
    let mut after = |sql: &str| {
        cluster.client().batch_execute(sql).unwrap();
        listeners
            .each_mut()
            .map(|listener| listener.heard().join(" ").replace("\"queue\":", "").replace('"', ""))
    };
    assert_eq!(after("INSERT INTO q (lane, n) VALUES ('a', 1)"), ["new", "", "", ""]);
    assert_eq!(after("INSERT INTO q (lane, n, state) VALUES ('b', 2, 'ready')"), ["ready", "{b}", "", ""]);
    assert_eq!(after("UPDATE q SET state = 'ready'"), ["ready", "{a} {b}", "{a}", "{b}"]);
    assert_eq!(after("UPDATE q SET state = 'done'"), ["done", "", "", "{b}"]);
    assert_eq!(after("DELETE FROM q"), ["done", "", "", "{b}"]);
    // Another call for the channel replaces the watch.
    client.batch_execute("SELECT oban_watch('q', 'all', 'lane', '{update}')").unwrap();
    assert_eq!(watched(&mut client)[0], "q | all | lane | {update} | t");
    assert_eq!(after("INSERT INTO q (lane, n) VALUES ('a', 1)"), ["", "", "", ""]);
    assert_eq!(after("UPDATE q SET n = 1"), ["{a}", "", "", ""]);
}

#[test]
fn values_of_all_types_are_sent_as_sql_casts_them() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('sad', 'très gai');
             CREATE DOMAIN lane AS varchar(20) CHECK (VALUE <> '')",
        )
        .unwrap();
    let mut listener = Listener::new(&cluster, "c");
    for (kind, value) in [
        ("text", "'a \"b\" \\ c'"),
        ("varchar(9)", "'v'"),
        ("char(5)", "'ab'"),
        ("name", "'n'"),
        ("\"char\"", "'c'"),
        ("boolean", "true"),
        ("boolean", "false"),
        ("int", "-7"),
        ("bigint", "9223372036854775807"),
        ("smallint", "1"),
        ("numeric", "1.50"),
        ("numeric", "1e300"),
        ("float8", "0.1"),
        ("uuid", "'7b9d2d3e-0000-4000-8000-000000000000'"),
        ("jsonb", "'{\"a\": [1, \"ü\"]}'"),
        ("json", "'{\"a\":1}'"),
        ("timestamptz", "'2026-01-02 03:04:05.678+00'"),
        ("timestamp", "'2026-01-02 03:04:05'"),
        ("date", "'2026-01-02'"),
        ("interval", "'1 day 2 hours'"),
        ("inet", "'10.0.0.1'"),
        ("cidr", "'10.0.0.0/8'"),
        ("bytea", "'\\x00ff'"),
        ("int[]", "'{1,2}'"),
        ("text[]", "'{a,\"b c\"}'"),
        ("mood", "'très gai'"),
        ("lane", "'l'"),
        ("oid", "7"),
        ("regclass", "'pg_class'"),
        ("xml", "'<a/>'"),
        ("int4range", "'[1,5)'"),
        ("bit(3)", "'101'"),
        ("money", "1.5"),
    ] {
        if kind == "xml" && client.batch_execute("SELECT '<a/>'::xml").is_err() {
            continue; // a Postgres that was built without libxml
        }
        client
            .batch_execute(&format!(
                "CREATE TABLE v (v {kind}); SELECT oban_watch('v', 'c', payload_column => 'v'); INSERT INTO v VALUES ({value})"
            ))
            .unwrap();
        let expected: String = client.one("SELECT v::text FROM v");
        assert_eq!(listener.heard(), [expected.as_str()], "{kind}");
        client.batch_execute("SELECT oban_watch('v', 'c', 'v'); INSERT INTO v SELECT * FROM v").unwrap();
        let expected: String = client.one("SELECT jsonb_build_object('queue', v::text)::text FROM v LIMIT 1");
        assert_eq!(listener.heard(), [expected.replace("{\"queue\": ", "{\"queue\":")], "{kind}");
        client.batch_execute("DROP TABLE v").unwrap();
    }
}

/// Nothing of a watch makes a statement fail. What can't be sent is counted.
#[test]
fn what_can_not_be_sent_is_counted_and_the_row_is_let_in() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 2"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    client
        .batch_execute(&format!(
            "{TABLE}; SELECT oban_watch('q', 'c', payload_column => 'lane'), oban_watch('q', 'd', 'lane')"
        ))
        .unwrap();
    let mut dropped = 0;
    let mut counts = |client: &mut Client, sql: &str, by: i64| {
        client.batch_execute(sql).unwrap();
        let now = stat(client, "dropped");
        assert_eq!(now - dropped, by, "{sql}");
        dropped = now;
    };
    counts(&mut client, "INSERT INTO q (lane) VALUES (repeat('x', 7999))", 1); // as JSON it is longer
    counts(&mut client, "INSERT INTO q (lane) VALUES (repeat('x', 8000))", 2);
    counts(
        &mut client,
        "INSERT INTO q (lane) SELECT string_agg(md5(i::text), '') FROM generate_series(1, 100000) i",
        2,
    );
    counts(&mut client, "BEGIN; INSERT INTO q (lane) VALUES ('a'); PREPARE TRANSACTION 'p'", 2);
    counts(&mut client, "COMMIT PREPARED 'p'", 0);
    cluster.configure(&["obanrs.max_transaction_messages = 2"]);
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until("it is read", || {
        client.one("SELECT current_setting('obanrs.max_transaction_messages') = '2'")
    });
    counts(&mut client, "INSERT INTO q (lane) VALUES ('a'), ('b'), ('c')", 4);
    cluster.configure(&["obanrs.max_transaction_messages = 1000"]);
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until("it is read", || {
        client.one("SELECT current_setting('obanrs.max_transaction_messages') = '1000'")
    });
    counts(&mut client, "SET obanrs.wakeups = off; INSERT INTO q (lane) VALUES ('a'); RESET ALL", 0);
    client.batch_execute("ALTER TABLE q RENAME COLUMN lane TO renamed").unwrap();
    counts(&mut client, "INSERT INTO q (renamed) SELECT 'a' FROM generate_series(1, 100)", 2);
    assert_eq!(watched(&mut client), ["q | c | {insert} | lane | f", "q | d | lane | {insert} | f"]);
    let wrong = "SELECT count(*) FROM oban_check() WHERE item = 'watch of public.q' AND NOT ok AND detail LIKE '%\"lane\"%'";
    assert_eq!(client.one::<i64>(wrong), 2);
    client
        .batch_execute(
            "SELECT oban_watch('q', 'c', payload_column => 'renamed'), oban_watch('q', 'd', 'renamed')",
        )
        .unwrap();
    assert_eq!(client.one::<i64>(wrong), 0);
    let mut listener = Listener::new(&cluster, "c");
    counts(
        &mut client,
        "ALTER TABLE q DROP COLUMN n; ALTER TABLE q DROP COLUMN state; INSERT INTO q (renamed) VALUES ('a')",
        0,
    );
    assert_eq!(listener.heard(), ["a"], "columns were dropped before it");
    counts(&mut client, "ALTER TABLE q DROP COLUMN renamed; INSERT INTO q DEFAULT VALUES", 2);
    client.batch_execute("ALTER TABLE q DISABLE TRIGGER USER; SELECT oban_unwatch('q'); SELECT oban_watch('q', 'c'); ALTER TABLE q DISABLE TRIGGER USER").unwrap();
    let detail: String =
        client.one("SELECT detail FROM oban_check() WHERE item = 'watch of public.q' AND NOT ok");
    client.batch_execute(detail.rsplit_once(": ").unwrap().1).unwrap();
    assert_eq!(watched(&mut client), ["q | c | {insert} | t"]);
}

#[test]
fn what_is_no_watch_is_refused_and_changes_nothing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "{TABLE}; CREATE VIEW v AS SELECT * FROM q; CREATE MATERIALIZED VIEW m AS SELECT * FROM q;
             CREATE TEMP TABLE t (id int); CREATE SEQUENCE s; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER w FOREIGN DATA WRAPPER w;
             CREATE FOREIGN TABLE f (id int) SERVER w; CREATE TABLE others (id int); CREATE ROLE app LOGIN;
             GRANT ALL ON q TO app; CREATE DOMAIN few AS int CHECK (VALUE > 0); ALTER TABLE q ADD few few[];
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it ran'; END $$"
        ))
        .unwrap();
    for (sqlstate, arguments) in [
        ("22004", "NULL, 'c'"),
        ("22004", "'q', NULL"),
        ("22004", "'q', 'c', events => NULL"),
        ("22004", "'q', 'c', events => '{insert,NULL}'"),
        ("42P01", "'nowhere', 'c'"),
        ("42P01", "99999999::regclass, 'c'"),
        ("42809", "'v', 'c'"),
        ("42809", "'m', 'c'"),
        ("42809", "'t', 'c'"),
        ("42809", "'s', 'c'"),
        ("42809", "'f', 'c'"),
        ("42809", "'q_pkey', 'c'"),
        ("42501", "'pg_class', 'c'"),
        ("22023", "'q', ''"),
        ("22023", "'q', repeat('c', 64)"),
        ("22023", "'q', repeat('ü', 32)"),
        ("22023", "'q', 'c', events => '{}'"),
        ("22023", "'q', 'c', events => '{truncate}'"),
        ("22023", "'q', 'c', events => '{INSERT}'"),
        ("22023", "'q', 'c', 'lane', payload_column => 'lane'"),
        ("22023", "'q', 'c', 'nothing'"),
        ("22023", "'q', 'c', payload_column => 'nothing'"),
        ("22023", "'q', 'c', 'ctid'"),
        ("22023", "'q', 'c', 'lane\"'"),
        ("22023", "'q', 'c', ''"),
    ] {
        assert_eq!(code(&mut client, &format!("SELECT oban_watch({arguments})")), sqlstate, "{arguments}");
    }
    for condition in [
        "",
        " ",
        ";",
        "true;",
        "true; SELECT 1",
        "true) EXECUTE FUNCTION f(); --",
        "true, false",
        "true AS x",
        "true x",
        "*",
        "NEW.*",
        "true FROM q",
        "true WHERE true",
        "true ORDER BY 1",
        "true LIMIT 1",
        "DISTINCT true",
        "true FOR UPDATE",
        "SELECT true",
        "(SELECT true)",
        "EXISTS (SELECT FROM q)",
        "true UNION SELECT false",
        "NEW.nothing",
        "lane = 'a'",
        "q.lane = 'a'",
        "NEW.id",
        "'maybe'",
        "NEW.id = 'x'",
        "count(*) > 1",
        "nothing()",
        "NEW.lane ==== 'a'",
        "generate_series(1, 2) = 1",
        "$1",
        ":x",
        "NEW.lane = ANY",
        "/*",
        "OLD.state = 'a'",
        "row_number() OVER () = 1",
        "CURRENT OF c",
        "all true",
        "true FOR READ ONLY",
        "NEW.lane = 'a' FOR READ ONLY",
        "nowhere.f(NEW.id)",
        "NEW.id OPERATOR(nowhere.=) 1",
        "DEFAULT",
        "true INTO x",
        // Postgres raises an internal error for these.
        "unknownin('x')",
        "unknownin(NULL) AND true",
        "COALESCE(unknownin('x'), true)",
        // The literal violates the domain's CHECK.
        "NEW.few = '{-1}'",
    ] {
        let refused =
            client.execute("SELECT oban_watch('q', 'c', condition => $1)", &[&condition]).unwrap_err();
        let refused = refused.as_db_error().unwrap_or_else(|| panic!("{condition:?}: {refused}"));
        assert_eq!(refused.code().code(), "22023", "{condition}: {refused}");
        assert!(
            refused.hint().is_some() && refused.message().starts_with("condition can't be used: "),
            "{refused}"
        );
    }
    for (events, condition) in
        [("{delete}", "NEW.id > 1"), ("{insert,delete}", "NEW.id > 1"), ("{update,insert}", "OLD.id > 1")]
    {
        let sql = format!("SELECT oban_watch('q', 'c', events => '{events}', condition => '{condition}')");
        assert_eq!(code(&mut client, &sql), "22023", "{sql}");
    }
    let deep = format!("{}true{}", "(".repeat(3_000), ")".repeat(3_000));
    assert!(
        client.execute("SELECT oban_watch('q', 'c', condition => $1)", &[&deep]).is_err()
            || !watched(&mut client).is_empty()
    );
    client.batch_execute("SELECT oban_unwatch('q')").unwrap();
    let mut app = cluster.client_as("postgres", "app");
    assert_eq!(code(&mut app, "SELECT oban_watch('q', 'c')"), "42501");
    assert_eq!(code(&mut app, "SELECT oban_unwatch('q')"), "42501");
    for (sqlstate, argument) in
        [("22004", "NULL"), ("42P01", "99999999::regclass"), ("42809", "'v'"), ("42809", "'f'")]
    {
        assert_eq!(code(&mut client, &format!("SELECT oban_unwatch({argument})")), sqlstate, "{argument}");
    }
    assert_eq!(code(&mut client, "BEGIN READ ONLY; SELECT oban_watch('q', 'c')"), "25006");
    client.batch_execute("ROLLBACK").unwrap();
    assert_eq!(watched(&mut client), Vec::<String>::new());
    assert_eq!(
        client
            .one::<i64>("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'q'::regclass"),
        0
    );
}

/// Names in a condition mean what they mean to the caller, at the call.
#[test]
fn names_of_a_condition_are_resolved_once_by_the_callers_search_path() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE SCHEMA a; CREATE SCHEMA b; {TABLE};
             CREATE FUNCTION a.wakes(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 = 'a' $$;
             CREATE FUNCTION b.wakes(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 = 'b' $$;
             CREATE FUNCTION b.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
             CREATE OPERATOR b.= (LEFTARG = text, RIGHTARG = text, FUNCTION = b.same);
             CREATE FUNCTION b.same(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
             CREATE OPERATOR b.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = b.same);
             SET search_path = a, public; SELECT oban_watch('q', 'c', 'lane', condition => 'wakes(NEW.lane)');
             SET search_path = b, public; SELECT oban_watch('q', 'd', 'lane', condition => 'wakes(NEW.lane)');
             SET search_path = b, pg_catalog, public; SELECT oban_watch('q', 'e', 'lane'), oban_watch('q', 'e', 'lane');
             SELECT count(*) FROM oban_watches; SELECT oban_unwatch('q') FROM (SELECT 1 WHERE false) x"
        ))
        .unwrap();
    let mut listeners = ["c", "d", "e"].map(|channel| Listener::new(&cluster, channel));
    client.batch_execute("RESET search_path; INSERT INTO q (lane) VALUES ('a'), ('b')").unwrap();
    let (a, b) = (r#"{"queue":"a"}"#, r#"{"queue":"b"}"#);
    assert_eq!(listeners.each_mut().map(Listener::heard), [vec![a], vec![b], vec![a, b]]);
}

#[test]
fn watching_twice_changes_nothing_and_takes_no_lock() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let watch = "SELECT oban_watch('q', 'c', 'lane', '{insert,update}', condition => 'NEW.n IS NULL')";
    client.batch_execute(&format!("{TABLE}; {watch}; CREATE TABLE bare (id int)")).unwrap();
    let triggers = "SELECT string_agg(oid || ' ' || xmin, ', ' ORDER BY oid) FROM pg_trigger WHERE tgname LIKE 'obanrs_watch%'";
    let before: String = client.one(triggers);
    let mut other = cluster.client();
    other
        .batch_execute(
            "BEGIN; LOCK TABLE q, bare IN SHARE UPDATE EXCLUSIVE MODE; INSERT INTO q (lane) VALUES ('a')",
        )
        .unwrap();
    client.batch_execute("BEGIN").unwrap();
    for same in [
        watch,
        "SELECT oban_watch('q', 'c', 'lane', '{update,insert,insert}', condition => 'NEW.n IS NULL')",
        "SELECT oban_unwatch('bare')",
    ] {
        client.batch_execute(same).unwrap();
    }
    let locks = "SELECT COALESCE(string_agg(relation::regclass || ' ' || mode, ', '), '') FROM pg_locks
                 WHERE pid = pg_backend_pid() AND mode <> 'AccessShareLock' AND locktype <> 'virtualxid'";
    assert_eq!(client.one::<String>(locks), "");
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(client.one::<String>(triggers), before);
    // Anything else waits 2 s for the lock.
    for call in ["SELECT oban_watch('q', 'c')", "SELECT oban_watch('q', 'd')", "SELECT oban_unwatch('q')"] {
        let refused = client.batch_execute(call).unwrap_err();
        let refused = refused.as_db_error().unwrap();
        assert_eq!((refused.code().code(), refused.hint().is_some()), ("55P03", true), "{call}");
    }
    other.batch_execute("COMMIT").unwrap();
    assert_eq!(client.one::<String>(triggers), before);
}

/// The same call changes nothing only as long as the triggers mean what the call means now.
#[test]
fn the_same_call_replaces_what_means_something_else() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE SCHEMA a; CREATE FUNCTION wakes(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 = 'a' $$;
             CREATE FUNCTION a.wakes(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 = 'a' $$;
             CREATE TYPE mood AS ENUM ('a'); CREATE TABLE one (lane text, n int);
             CREATE TABLE many (lane text, n int) PARTITION BY LIST (n); CREATE TABLE part (gone int, n int, lane text);
             ALTER TABLE part DROP COLUMN gone; ALTER TABLE many ATTACH PARTITION part DEFAULT",
        )
        .unwrap();
    let triggers = "SELECT string_agg(oid || ' ' || xmin, ', ' ORDER BY oid) FROM pg_trigger WHERE tgname LIKE 'obanrs_watch%'";
    let renamed = "ALTER TABLE {t} RENAME lane TO was; ALTER TABLE {t} ADD lane text";
    let by_hand = "CREATE OR REPLACE TRIGGER obanrs_watch_1_update AFTER UPDATE {rest} EXECUTE FUNCTION
                       obanrs_watched('c', 'payload', 'lane', 'NEW.lane = ''a''')";
    let is_a = ("NEW.lane = 'a'", "WHEN ((new.lane = 'a'::text))");
    for (table, (condition, means), change) in [
        ("one", is_a, renamed.to_owned()),
        ("many", is_a, renamed.to_owned()),
        (
            "one",
            ("wakes(NEW.lane)", "WHEN (wakes(new.lane))"),
            "ALTER FUNCTION wakes(text) RENAME TO woke;
             CREATE FUNCTION wakes(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 = 'a' $$"
                .to_owned(),
        ),
        (
            "one",
            ("wakes(NEW.lane)", "WHEN (wakes(new.lane))"),
            "SET LOCAL search_path = a, public".to_owned(),
        ),
        (
            "one",
            ("NEW.lane::mood = 'a'", "WHEN (((new.lane)::mood = 'a'::mood))"),
            "ALTER TYPE mood RENAME TO old_mood; CREATE TYPE mood AS ENUM ('a')".to_owned(),
        ),
        ("one", is_a, by_hand.replace("{rest}", "ON one FOR EACH ROW WHEN (NEW.lane = 'b')")),
        ("one", is_a, by_hand.replace("{rest}", "ON one FOR EACH ROW")),
        ("one", is_a, by_hand.replace("{rest}", "OF n ON one FOR EACH ROW WHEN (NEW.lane = 'a')")),
        ("one", is_a, "DROP TRIGGER obanrs_watch_1_update ON one".to_owned()),
    ] {
        let watch = format!(
            "SELECT public.oban_watch('{table}', 'c', payload_column => 'lane', events => '{{insert,update}}',
                 condition => $c${condition}$c$)"
        );
        let change = change.replace("{t}", table);
        client.batch_execute(&format!("BEGIN; {watch}")).unwrap();
        let first: String = client.one(triggers);
        client.batch_execute(&watch).unwrap();
        assert_eq!(client.one::<String>(triggers), first, "{condition}: the same");
        client.batch_execute(&format!("{change}; {watch}")).unwrap();
        let definitions = client
            .query(
                "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'obanrs_watch%' AND tgrelid = $1::text::regclass",
                &[&table],
            )
            .unwrap();
        assert_eq!(definitions.len(), 2, "{condition}: {change}");
        for definition in definitions {
            let definition: String = definition.get(0);
            let is_whole = definition.contains(means) && !definition.contains("UPDATE OF");
            assert!(is_whole, "{condition}: {change}: {definition}");
        }
        let now: String = client.one(triggers);
        assert_ne!(now, first, "{condition}: {change}");
        client.batch_execute(&watch).unwrap();
        assert_eq!(client.one::<String>(triggers), now, "{condition}: {change}: the same again");
        client.batch_execute("ROLLBACK").unwrap();
    }
    // A column that is sent is looked up by its name, when a row comes.
    let mut listener = Listener::new(&cluster, "c");
    let watch = "SELECT oban_watch('one', 'c', payload_column => 'lane', condition => 'NEW.n > 1')";
    client.batch_execute(&format!("{watch}; {}", renamed.replace("{t}", "one"))).unwrap();
    let before: String = client.one(triggers);
    client.batch_execute(watch).unwrap();
    assert_eq!(client.one::<String>(triggers), before);
    client.batch_execute("INSERT INTO one (was, lane, n) VALUES ('old', 'new', 2)").unwrap();
    assert_eq!(listener.heard(), ["new"]);
    // Without a column of that name the same call is refused, and what is there stays.
    client.batch_execute("ALTER TABLE one RENAME n TO m").unwrap();
    assert_eq!(code(&mut client, watch), "22023");
    assert_eq!(client.one::<String>(triggers), before);
}

#[test]
fn partitions_have_the_watch_of_their_table() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE q (lane text, n int) PARTITION BY LIST (lane);
             CREATE TABLE qa PARTITION OF q FOR VALUES IN ('a');
             SELECT oban_watch('qa', 'own', payload_column => 'n');
             SELECT oban_watch('q', 'c', 'lane', '{insert,update,delete}', condition => 'true');
             CREATE TABLE qb (n int, gone int, lane text); ALTER TABLE qb DROP COLUMN gone;
             ALTER TABLE q ATTACH PARTITION qb FOR VALUES IN ('b');
             CREATE TABLE qc PARTITION OF q DEFAULT PARTITION BY LIST (lane); CREATE TABLE qcc PARTITION OF qc DEFAULT;
             CREATE ROLE reader LOGIN; GRANT SELECT ON q TO reader; CREATE ROLE other LOGIN; GRANT SELECT ON qa, qb, qcc TO other",
        )
        .unwrap();
    assert_eq!(
        watched(&mut client),
        ["q | c | lane | {insert,update,delete} | true | t", "qa | own | {insert} | n | t"]
    );
    let start: i64 = client.one("SELECT oban_position()");
    let mut listeners = ["c", "own"].map(|channel| Listener::new(&cluster, channel));
    client
        .batch_execute("INSERT INTO q VALUES ('a', 1), ('b', 2), ('c', 3); INSERT INTO qb VALUES (4, 'b')")
        .unwrap();
    let lanes =
        |lanes: &[&str]| lanes.iter().map(|lane| format!("{{\"queue\":\"{lane}\"}}")).collect::<Vec<_>>();
    assert_eq!(listeners.each_mut().map(Listener::heard), [lanes(&["a", "b", "c"]), vec!["1".to_owned()]]);
    client.batch_execute("UPDATE q SET n = 5 WHERE lane = 'b'; DELETE FROM qcc").unwrap();
    assert_eq!(listeners[0].heard(), lanes(&["b", "c"]));
    // The watched table is what a role has to be able to read, not the partition.
    let mut reader = cluster.client_as("postgres", "reader");
    assert_ne!(polled(&mut reader, "c", start), "[]");
    assert_eq!(polled(&mut reader, "own", start), "[]");
    let mut other = cluster.client_as("postgres", "other");
    assert_eq!(polled(&mut other, "c", start), "[]");
    assert_eq!(polled(&mut other, "own", start), r#"["1"]"#);
    client.batch_execute("SELECT oban_unwatch('qa'); SELECT oban_unwatch('qb')").unwrap();
    assert_eq!(watched(&mut client), ["q | c | lane | {insert,update,delete} | true | t"]);
    client.batch_execute("SELECT oban_unwatch('q'); INSERT INTO q VALUES ('a', 1)").unwrap();
    assert_eq!(listeners.each_mut().map(Listener::heard), [vec![""; 0], vec![]]);
}

/// A reader of a channel gets the messages of the tables that it may SELECT, and no others.
#[test]
fn two_tables_share_a_channel_and_readers_see_their_own() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE one LOGIN; CREATE ROLE two LOGIN; CREATE ROLE nobody LOGIN; GRANT CREATE ON SCHEMA public TO one, two",
        )
        .unwrap();
    let mut one = cluster.client_as("postgres", "one");
    let mut two = cluster.client_as("postgres", "two");
    one.batch_execute("CREATE TABLE q1 (v text); SELECT oban_watch('q1', 'c', payload_column => 'v')")
        .unwrap();
    two.batch_execute("CREATE TABLE q2 (v text); SELECT oban_watch('q2', 'c', payload_column => 'v')")
        .unwrap();
    let start: i64 = client.one("SELECT oban_position()");
    one.batch_execute("INSERT INTO q1 VALUES ('1'), ('same')").unwrap();
    two.batch_execute("INSERT INTO q2 VALUES ('2'), ('same')").unwrap();
    assert_eq!(polled(&mut one, "c", start), r#"["1", "same"]"#);
    assert_eq!(polled(&mut two, "c", start), r#"["2", "same"]"#);
    assert_eq!(polled(&mut cluster.client_as("postgres", "nobody"), "c", start), "[]");
    assert_eq!(polled(&mut client, "c", start), r#"["1", "same", "2", "same"]"#);
    let none: i64 = cluster
        .client_as("postgres", "nobody")
        .one(&format!("SELECT missed FROM oban_poll('{{c}}', {start}, prefix => '')"));
    assert_eq!(none, 0);
}

/// A watch is a trigger, and nothing else: a dump has it.
#[test]
fn a_dump_has_the_watches() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE \"odd table\" (\"odd col\" text, n int); CREATE TABLE p (lane text) PARTITION BY LIST (lane);
             CREATE TABLE pa PARTITION OF p FOR VALUES IN ('a');
             SELECT oban_watch('\"odd table\"', 'it''s \"odd\" \\ ü', 'odd col', '{insert,update}', condition => 'NEW.n > 1 AND NEW.\"odd col\" <> ''\\''');
             SELECT oban_watch('p', 'c', payload_column => 'lane')",
        )
        .unwrap();
    let before = watched(&mut client);
    let folder = cluster.socket_folder().to_owned();
    let arguments = ["-h", &folder, "-U", "postgres"];
    let dump = cluster.program("pg_dump").args(arguments).args(["-d", "postgres"]).output().unwrap();
    assert!(dump.status.success());
    client.batch_execute("CREATE DATABASE restored").unwrap();
    let mut psql = cluster
        .program("psql")
        .args(arguments)
        .args(["-d", "restored", "-v", "ON_ERROR_STOP=1", "-q"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), &dump.stdout).unwrap();
    assert!(psql.wait().unwrap().success());
    let mut restored = cluster.client_of("restored");
    assert_eq!(watched(&mut restored), before);
    assert_eq!(before.len(), 2);
    let mut listener = cluster.client_of("restored");
    listener.batch_execute("LISTEN \"it's \"\"odd\"\" \\ ü\"; LISTEN c").unwrap();
    restored
        .batch_execute("INSERT INTO \"odd table\" VALUES ('a', 1), ('b', 2); INSERT INTO p VALUES ('a')")
        .unwrap();
    let heard: Vec<_> = crate::support::heard(&mut listener)
        .iter()
        .map(|n| format!("{} {}", n.channel(), n.payload()))
        .collect();
    assert_eq!(heard, ["it's \"odd\" \\ ü {\"queue\":\"b\"}", "c a"]);
    // The same call finds everything there.
    let triggers =
        "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_trigger WHERE tgname LIKE 'obanrs_watch%'";
    let oids: String = restored.one(triggers);
    restored.batch_execute("SELECT oban_watch('p', 'c', payload_column => 'lane')").unwrap();
    assert_eq!(restored.one::<String>(triggers), oids);
}

/// The function is for the triggers of oban_watch. A trigger that a user makes of it by hand does no harm.
#[test]
fn triggers_made_by_hand_do_no_harm() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE q (lane text)").unwrap();
    for arguments in [
        "",
        "'c'",
        "'c', 'queue'",
        "'c', 'queue', 'nothing', ''",
        "'', 'empty', '', ''",
        "'c', 'odd', 'lane', ''",
        "'c', 'payload', 'lane'",
    ] {
        client
            .batch_execute(&format!(
                "CREATE OR REPLACE TRIGGER own AFTER INSERT ON q FOR EACH ROW EXECUTE FUNCTION obanrs_watched({arguments});
                 INSERT INTO q VALUES ('a')"
            ))
            .unwrap();
        // With the arguments of a watch it is one.
        let is_watch = arguments.matches(',').count() == 3 && !arguments.contains("odd");
        assert_eq!(watched(&mut client).len(), usize::from(is_watch), "{arguments}");
    }
    client.batch_execute("DROP TRIGGER own ON q").unwrap();
    for when in
        ["BEFORE INSERT ON q FOR EACH ROW", "AFTER INSERT ON q FOR EACH STATEMENT", "AFTER TRUNCATE ON q"]
    {
        client
            .batch_execute(&format!(
                "CREATE TRIGGER own {when} EXECUTE FUNCTION obanrs_watched('c', 'empty', '', '')"
            ))
            .unwrap();
        let fires = if when.contains("TRUNCATE") { "TRUNCATE q" } else { "INSERT INTO q VALUES ('a')" };
        assert_eq!(code(&mut client, fires), "39P01", "{when}");
        client.batch_execute("DROP TRIGGER own ON q").unwrap();
    }
    assert_eq!(code(&mut client, "SELECT obanrs_watched()"), "39P01");
}

/// The analysis of a condition reads literals, and for some types that runs code: a domain's CHECK. A caller
/// of oban_watch must not run it with rights that its author lacks.
#[test]
fn a_condition_runs_no_code_with_the_callers_rights() {
    let cluster = Cluster::installed();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE tenant LOGIN; CREATE SCHEMA t AUTHORIZATION tenant; CREATE TABLE ran (who text, path text);
         GRANT INSERT ON ran TO PUBLIC; CREATE ROLE member LOGIN IN ROLE tenant; CREATE ROLE boss SUPERUSER;
         CREATE ROLE deputy LOGIN IN ROLE boss",
    )
    .unwrap();
    let mut tenant = cluster.client_as("postgres", "tenant");
    tenant
        .batch_execute(
            "CREATE FUNCTION t.spy(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.ran VALUES (current_user, current_setting('search_path'));
                 PERFORM set_config('search_path', 't', false);
                 RETURN true;
             END $$;
             CREATE DOMAIN t.d AS int CHECK (t.spy(VALUE)); CREATE TYPE t.r AS RANGE (subtype = t.d);
             CREATE TABLE t.q (id int, tags t.d[], span t.r)",
        )
        .unwrap();
    let mut member = cluster.client_as("postgres", "member");
    for (number, condition) in ["NEW.tags <> '{1}'", "NEW.span = '[1,2]'"].into_iter().enumerate() {
        for (session, who) in [(&mut root, "root"), (&mut member, "member"), (&mut tenant, "tenant")] {
            let watch =
                format!("SELECT public.oban_watch('t.q', '{who} {number}', condition => $c${condition}$c$)");
            session.batch_execute(&watch).unwrap();
            let path: String = session.one("SELECT current_setting('search_path')");
            assert_eq!(path, "\"$user\", public", "{who}: {condition}");
        }
    }
    let who: Vec<String> =
        root.query("SELECT DISTINCT who FROM ran", &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(who, ["tenant"], "the code ran, with the rights of its author only");
    // A role that owns a superuser's table by its membership gets no superuser's rights in this way.
    root.batch_execute("CREATE TABLE bosses (id int, tags t.d[]); ALTER TABLE bosses OWNER TO boss").unwrap();
    let mut deputy = cluster.client_as("postgres", "deputy");
    let watch = "SELECT oban_watch('bosses', 'c', condition => 'NEW.id > 1')";
    assert_eq!(code(&mut deputy, watch), "42501");
    deputy.batch_execute("SELECT oban_watch('bosses', 'c')").unwrap();
    // So it is with a condition that is there already: the call analyzes it.
    root.batch_execute(watch).unwrap();
    assert_eq!(code(&mut deputy, watch), "42501");
}

/// A type's owner may make casts of it to text by functions that do not expect to be called so.
#[test]
fn a_cast_of_a_types_owner_is_not_called() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TYPE e AS ENUM ('a'); CREATE CAST (e AS text) WITH FUNCTION pg_catalog.concat(\"any\");
             CREATE TYPE f AS ENUM ('a'); CREATE CAST (f AS text) WITH FUNCTION quote_literal(anyelement);
             CREATE TABLE q (id int, e e, f f, c bpchar);
             SELECT oban_watch('q', 'e', payload_column => 'e'), oban_watch('q', 'f', payload_column => 'f'),
                 oban_watch('q', 'c', payload_column => 'c')",
        )
        .unwrap();
    let mut listeners = ["e", "f", "c"].map(|channel| Listener::new(&cluster, channel));
    client.batch_execute("INSERT INTO q VALUES (1, 'a', 'a', 'b  ')").unwrap();
    assert_eq!(listeners.each_mut().map(Listener::heard), [["a"], ["a"], ["b"]]);
    let before = stat(&mut client, "dropped");
    client.batch_execute("INSERT INTO q (c) VALUES (repeat('z', 134217800))").unwrap();
    assert_eq!(stat(&mut client, "dropped") - before, 1);
}

#[test]
fn a_readers_right_is_that_on_the_table() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE people (id int, ssn text); CREATE ROLE app LOGIN; GRANT SELECT (id) ON people TO app;
             SELECT oban_watch('people', 'c', payload_column => 'ssn')",
        )
        .unwrap();
    let start: i64 = client.one("SELECT oban_position()");
    client.batch_execute("INSERT INTO people VALUES (1, '123-45')").unwrap();
    let mut app = cluster.client_as("postgres", "app");
    assert_eq!(polled(&mut app, "c", start), "[]");
    client.batch_execute("GRANT SELECT ON people TO app").unwrap();
    assert_eq!(polled(&mut app, "c", start), r#"["123-45"]"#);
}

#[test]
fn what_changes_within_a_transaction_changes_what_is_sent() {
    let cluster = Cluster::installed();
    let (mut client, mut listener) = (cluster.client(), Listener::new(&cluster, "c"));
    client.batch_execute(&format!("{TABLE}; SELECT oban_watch('q', 'c', payload_column => 'n')")).unwrap();
    client
        .batch_execute(
            "BEGIN; INSERT INTO q (n) VALUES (1); SELECT oban_watch('q', 'c', 'n'); INSERT INTO q (n) VALUES (1); COMMIT",
        )
        .unwrap();
    assert_eq!(listener.heard(), ["1", r#"{"queue":"1"}"#]);
    // CREATE OR REPLACE by hand keeps the trigger's oid.
    client
        .batch_execute(
            "BEGIN; INSERT INTO q (n) VALUES (2);
             CREATE OR REPLACE TRIGGER obanrs_watch_1_insert AFTER INSERT ON q FOR EACH ROW
                 EXECUTE FUNCTION obanrs_watched('c', 'payload', 'n', '');
             INSERT INTO q (n) VALUES (2); COMMIT",
        )
        .unwrap();
    assert_eq!(listener.heard(), ["2", r#"{"queue":"2"}"#]);
    client
        .batch_execute(
            "BEGIN; INSERT INTO q (n, state) VALUES (3, 'x'); ALTER TABLE q RENAME COLUMN n TO m;
             ALTER TABLE q RENAME COLUMN state TO n; INSERT INTO q (m, n) VALUES (3, 'y'); COMMIT",
        )
        .unwrap();
    assert_eq!(listener.heard(), ["3", "y"]);
    // With the notifier postgres a message is sent by its own transaction, also a repeated one.
    let own: i32 = client.one("SELECT pg_backend_pid()");
    client
        .batch_execute("BEGIN; INSERT INTO q (n) VALUES ('z'); SET LOCAL obanrs.notifier = 'postgres'; INSERT INTO q (n) VALUES ('z'); COMMIT")
        .unwrap();
    let heard = crate::support::heard(&mut listener.0);
    assert_eq!(heard.iter().map(|n| (n.process_id(), n.payload())).collect::<Vec<_>>(), [(own, "z")]);
}

/// Neither a race nor new events replace a watch that a partition has of its own.
#[test]
fn a_partition_keeps_its_own_watch() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE q (lane text) PARTITION BY LIST (lane); CREATE TABLE qa PARTITION OF q FOR VALUES IN ('a');
             CREATE TABLE qb (lane text); SELECT oban_watch('q', 'root'), oban_watch('qb', 'leaf b', events => '{update}');
             ALTER TABLE q ATTACH PARTITION qb FOR VALUES IN ('b');
             SELECT oban_watch('q', 'root', events => '{insert,update}')",
        )
        .unwrap();
    let expected = ["q | root | {insert,update} | t", "qb | leaf b | {update} | t"];
    assert_eq!(watched(&mut client), expected);
    let mut other = cluster.client();
    other.batch_execute("BEGIN; SELECT oban_watch('qa', 'leaf a')").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = cluster.client();
            client.batch_execute("SELECT oban_watch('q', 'second', events => '{insert,update,delete}')")
        });
        wait_until("the call waits for the partition", || {
            client.one("SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'qa'::regclass")
        });
        other.batch_execute("COMMIT").unwrap();
        waiting.join().unwrap().unwrap();
    });
    let channels: String = client
        .one("SELECT string_agg(queue_table || ' ' || channel, ', ' ORDER BY channel) FROM oban_watches");
    assert_eq!(channels, "qa leaf a, qb leaf b, q root, q second");
    let mut listeners =
        ["root", "second", "leaf a", "leaf b"].map(|channel| Listener::new(&cluster, channel));
    for (sql, counts) in
        [("INSERT INTO q VALUES ('a'), ('b')", [1, 1, 1, 0]), ("UPDATE q SET lane = lane", [1, 1, 0, 1])]
    {
        client.batch_execute(sql).unwrap();
        assert_eq!(listeners.each_mut().map(|listener| listener.heard().len()), counts, "{sql}");
    }
}

#[test]
fn a_watch_that_is_off_stays_off_and_is_shown() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE q (lane text) PARTITION BY LIST (lane); CREATE TABLE qa PARTITION OF q DEFAULT;
             SELECT oban_watch('q', 'c', 'lane'); ALTER TABLE qa DISABLE TRIGGER USER",
        )
        .unwrap();
    assert_eq!(watched(&mut client), ["q | c | lane | {insert} | f"], "its rows go to that partition");
    let detail: String =
        client.one("SELECT detail FROM oban_check() WHERE item = 'watch of public.q' AND NOT ok");
    client.batch_execute(detail.rsplit_once(": ").unwrap().1).unwrap();
    assert_eq!(watched(&mut client), ["q | c | lane | {insert} | t"]);
    let fires = "SELECT string_agg(tgenabled::text, '') FROM pg_trigger WHERE tgrelid = 'q'::regclass";
    for (alter, expected) in [("DISABLE", "D"), ("ENABLE ALWAYS", "A")] {
        client
            .batch_execute(&format!(
                "ALTER TABLE q {alter} TRIGGER obanrs_watch_1_insert; SELECT oban_watch('q', 'c')"
            ))
            .unwrap();
        assert_eq!(client.one::<String>(fires), expected);
        client.batch_execute("SELECT oban_watch('q', 'c', 'lane')").unwrap();
        assert_eq!(client.one::<String>(fires), expected);
        client.batch_execute("ALTER TABLE q ENABLE TRIGGER USER").unwrap();
    }
    // What is off on one partition, or for one event, stays so as well.
    let states =
        "SELECT string_agg(tgrelid::regclass || ' ' || substr(tgname, 16) || ' ' || tgenabled::text, ', '
                      ORDER BY tgrelid::regclass::text, tgname)
                  FROM pg_trigger WHERE tgname LIKE 'obanrs_watch%'";
    client
        .batch_execute(
            "CREATE TABLE qb PARTITION OF q FOR VALUES IN ('b') PARTITION BY LIST (lane);
             CREATE TABLE qbb PARTITION OF qb DEFAULT; CREATE ROLE keeper LOGIN; CREATE ROLE other;
             ALTER TABLE q OWNER TO keeper; ALTER TABLE qa OWNER TO other; GRANT TRIGGER ON qa, qb, qbb TO keeper;
             SELECT oban_watch('q', 'c', 'lane', '{insert,update}');
             ALTER TABLE qa DISABLE TRIGGER obanrs_watch_1_insert;
             ALTER TABLE qb ENABLE ALWAYS TRIGGER obanrs_watch_1_insert;
             ALTER TABLE q DISABLE TRIGGER obanrs_watch_1_update;
             ALTER TABLE qbb ENABLE REPLICA TRIGGER obanrs_watch_1_update",
        )
        .unwrap();
    let expected = "q insert O, q update D, qa insert D, qa update D, \
                    qb insert A, qb update D, qbb insert A, qbb update R";
    assert_eq!(client.one::<String>(states), expected);
    let mut keeper = cluster.client_as("postgres", "keeper");
    for call in [
        "SELECT oban_watch('q', 'c', events => '{insert,update}')",
        "SELECT oban_watch('q', 'c', 'lane', '{insert,update}', condition => 'true')",
    ] {
        keeper.batch_execute(call).unwrap();
        assert_eq!(client.one::<String>(states), expected, "{call}");
    }
    client.batch_execute("ALTER TABLE q ENABLE TRIGGER USER; SELECT oban_watch('q', 'c', 'lane')").unwrap();
    // A trigger under another name is the same watch.
    client.batch_execute("ALTER TRIGGER obanrs_watch_1_insert ON q RENAME TO audit").unwrap();
    assert_eq!(watched(&mut client), ["q | c | lane | {insert} | t"]);
    client.batch_execute("SELECT oban_watch('q', 'c', 'lane'), oban_watch('q', 'c')").unwrap();
    assert_eq!(watched(&mut client), ["q | c | {insert} | t"]);
    client.batch_execute("SELECT oban_unwatch('q')").unwrap();
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('q'::regclass, 'qa'::regclass)"),
        0
    );
}

#[test]
fn names_of_columns_in_every_encoding() {
    let cluster = Cluster::installed();
    for (encoding, column) in [("LATIN1", "cé"), ("EUC_JP", "列"), ("UTF8", "列é")] {
        cluster
            .client()
            .batch_execute(&format!(
                "CREATE DATABASE {encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            ))
            .unwrap();
        let mut client = cluster.client_of(&encoding.to_lowercase());
        client
            .batch_execute(&format!(
                "CREATE EXTENSION obanrs; CREATE TABLE q (id int, \"{column}\" text);
                 SELECT oban_watch('q', 'p{column}', payload_column => '{column}'), oban_watch('q', 'q', '{column}',
                     condition => 'NEW.\"{column}\" <> ''no''')"
            ))
            .unwrap();
        let mut listener = cluster.client_of(&encoding.to_lowercase());
        listener.batch_execute(&format!("LISTEN \"p{column}\"; LISTEN q")).unwrap();
        client.batch_execute(&format!("INSERT INTO q VALUES (1, '{column}'), (2, 'no')")).unwrap();
        let heard: Vec<String> = crate::support::heard(&mut listener)
            .iter()
            .map(|n| format!("{} {}", n.channel(), n.payload()))
            .collect();
        let expected =
            [format!("p{column} {column}"), format!("q {{\"queue\":\"{column}\"}}"), format!("p{column} no")];
        assert_eq!(heard, expected, "{encoding}");
        assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_watches WHERE ok"), 2, "{encoding}");
        assert_eq!(code(&mut client, "SELECT oban_watch('q', 'c', 'nothing')"), "22023");
    }
}
