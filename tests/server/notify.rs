//! Notifications by function, and what works without preload.

use fallible_iterator::FallibleIterator;
use postgres::Client;

use crate::support::{Cluster, code};

fn heard(client: &mut Client) -> Vec<String> {
    client.batch_execute("LISTEN fence; NOTIFY fence").unwrap();
    let mut notifications = client.notifications();
    let until_fence = notifications.blocking_iter().take_while(|n| Ok(n.channel() != "fence"));
    until_fence.map(|n| Ok(format!("{} {}", n.channel(), n.payload()))).collect().unwrap()
}

#[test]
fn what_is_sent_is_heard_after_commit_in_the_prefix() {
    let cluster = Cluster::installed();
    let mut listener = cluster.client();
    let names: Vec<String> = listener
        .query("SELECT * FROM oban_listen_channels()", &[])
        .unwrap()
        .iter()
        .map(|r| r.get(0))
        .collect();
    assert_eq!(
        names,
        ["public.oban_gossip", "public.oban_insert", "public.oban_leader", "public.oban_signal"]
    );
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('other')").unwrap();

    client
        .batch_execute(r#"SELECT oban_notify('signal', '{"action": "pause", "n": 12345678901234567890}')"#)
        .unwrap();
    client.batch_execute(r#"SELECT oban_notify('signal', '{"action": "other"}', 'other')"#).unwrap();
    client.batch_execute(r#"BEGIN; SELECT oban_notify('signal', '{"a": 1}'); ROLLBACK"#).unwrap();
    assert_eq!(heard(&mut listener), [r#"public.oban_signal {"action":"pause","n":12345678901234567890}"#]);

    client.batch_execute(r#"SELECT oban_notify_many('insert', ARRAY['{"queue":"a"}', '{"queue":"b"}', '{"queue":"a"}']::jsonb[])"#).unwrap();
    assert_eq!(
        heard(&mut listener),
        [r#"public.oban_insert {"queue":"a"}"#, r#"public.oban_insert {"queue":"b"}"#]
    );
    let refused = r#"SELECT oban_notify_many('insert', ARRAY['{"queue":"a"}', '[]']::jsonb[])"#;
    assert_eq!(code(&mut client, refused), "22023");
    assert!(heard(&mut listener).is_empty(), "all or none");

    listener.batch_execute("SELECT oban_unlisten_channels('{insert}')").unwrap();
    client.batch_execute(r#"SELECT oban_notify('insert', '{}'), oban_notify('signal', '{}')"#).unwrap();
    assert_eq!(heard(&mut listener), ["public.oban_signal {}"]);

    listener.batch_execute("SELECT oban_listen_channels('{orders}', prefix => '')").unwrap();
    client.batch_execute(r#"SELECT oban_notify('orders', '{"id": 1}', prefix => '')"#).unwrap();
    assert_eq!(heard(&mut listener), [r#"orders {"id":1}"#]);

    // What is too long for a notification is packed, and read back.
    client
        .batch_execute("SELECT oban_notify('signal', jsonb_build_object('pad', repeat('x', 20000)))")
        .unwrap();
    let long = heard(&mut listener).remove(0);
    let wire = long.strip_prefix("public.oban_signal ").unwrap();
    assert!(wire.starts_with("H4sI"));
    let unpacked = "SELECT length(oban_decode($1)->>'pad')";
    assert_eq!(client.query_one(unpacked, &[&wire]).unwrap().get::<_, i32>(0), 20000);
}

#[test]
fn errors_name_the_value_and_what_helps() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE SCHEMA bare").unwrap();
    for (sql, expected) in [
        ("SELECT oban_notify(NULL, '{}')", "22004"),
        ("SELECT oban_notify('insert', NULL)", "22004"),
        ("SELECT oban_notify('insert', '{}', NULL)", "22004"),
        ("SELECT oban_notify_many('insert', ARRAY[NULL]::jsonb[])", "22004"),
        ("SELECT oban_notify('insert', '[]')", "22023"),
        ("SELECT oban_notify('insert', '1')", "22023"),
        ("SELECT oban_notify('Insert', '{}')", "22023"),
        ("SELECT oban_notify('insert', '{}', 'a.b')", "22023"),
        ("SELECT oban_notify(repeat('x', 60), '{}')", "22023"),
        ("SELECT oban_notify('insert', '{}', 'nowhere')", "3F000"),
        ("SELECT oban_listen_channels('{insert}', 'nowhere')", "3F000"),
        ("SELECT oban_listen_channels(ARRAY['insert', NULL])", "22004"),
        ("SELECT oban_encode('[1]')", "22023"),
        ("SELECT oban_decode('Z:nonsense')", "22023"),
        ("SELECT oban_decode('')", "22023"),
        ("SELECT oban_join(NULL)", "22004"),
        ("SELECT oban_join('')", "22023"),
        ("SELECT oban_join(repeat('x', 256))", "22023"),
        ("SELECT oban_join('a', prefix => 'nowhere')", "3F000"),
        ("SELECT oban_join('a', lease => '30s')", "0A000"),
        ("SELECT oban_is_leader(NULL)", "22004"),
        ("SELECT * FROM oban_leader(prefix => 'nowhere')", "3F000"),
        ("SELECT oban_leave(NULL)", "22004"),
        ("SELECT oban_gossip_put('a', NULL)", "22004"),
        ("SELECT oban_gossip_put('a', 'q', ttl => '0s')", "22023"),
        ("SELECT oban_gossip_put('a', 'q', ttl => '2 years')", "22023"),
        ("SELECT oban_gossip_put('a', 'q', jsonb_build_object('x', repeat('x', 70000)))", "22023"),
        ("SELECT oban_gossip_delete(NULL)", "22004"),
        ("SET obanrs.no_such_setting = 1", "42602"),
    ] {
        let error = client.batch_execute(sql).expect_err(sql);
        let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone();
        assert_eq!(error.code().code(), expected, "{sql}: {error}");
        assert!(error.hint().is_some() || expected == "42602", "{sql}: no hint");
        assert!(error.detail().is_none_or(|d| !d.contains("backtrace")), "{sql}: {:?}", error.detail());
    }
    // Too long even when packed: random text does not compress.
    let noise = "SELECT oban_notify('insert', (SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 2000) i))";
    assert_eq!(code(&mut client, noise), "54000");
}

#[test]
fn rights_on_a_prefix_are_rights_on_its_jobs() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE reader LOGIN; CREATE ROLE peeper LOGIN; CREATE ROLE writer LOGIN; CREATE ROLE steerer LOGIN; CREATE ROLE nobody LOGIN;
             GRANT SELECT ON oban_jobs TO reader; GRANT SELECT (id) ON oban_jobs TO peeper;
             GRANT INSERT ON oban_jobs TO writer; GRANT UPDATE ON oban_jobs TO steerer;
             CREATE SCHEMA bare; GRANT USAGE ON SCHEMA bare TO reader; GRANT CREATE ON SCHEMA bare TO writer;
             SELECT oban_join('root'), oban_gossip_put('root', 'default')",
        )
        .unwrap();
    let roles = ["reader", "peeper", "writer", "steerer", "nobody"];
    for (sql, allowed) in [
        ("SELECT oban_listen_channels()", "reader peeper"),
        ("SELECT oban_is_leader(node => 'root')", "reader peeper"),
        ("SELECT oban_is_leader(), oban_term()", "reader peeper writer steerer nobody"),
        ("SELECT * FROM oban_leader()", "reader peeper"),
        ("SELECT oban_notify('insert', '{}')", "writer"),
        ("SELECT oban_notify('gossip', '{}')", "writer"),
        ("SELECT oban_notify('signal', '{}')", "steerer"),
        ("SELECT oban_notify('leader', '{}')", ""),
        ("SELECT oban_gossip_put('a', 'q')", "writer"),
        ("SELECT oban_gossip_delete('a')", "writer"),
        ("SELECT oban_join(current_user::text)", "writer"),
        ("SELECT oban_listen_channels(prefix => 'bare')", "reader"),
        ("SELECT oban_notify('insert', '{}', 'bare')", "writer"),
        ("SELECT oban_unlisten_channels()", "reader peeper writer steerer nobody"),
        ("SELECT 1 / count(*) FROM oban_members", "reader peeper"),
        ("SELECT 1 / count(*) FROM oban_leadership", "reader peeper"),
        ("SELECT 1 / count(*) FROM oban_gossip", "reader peeper"),
        ("SELECT 1 / count(*) FROM oban_workers", "reader peeper writer steerer nobody"),
    ] {
        for role in roles {
            let mut session = cluster.client_as("postgres", role);
            let outcome = session.batch_execute(sql);
            let expected = allowed.split(' ').any(|r| r == role);
            assert_eq!(outcome.is_ok(), expected, "{role}: {sql}: {outcome:?}");
            if let Err(error) = outcome {
                // Views show nothing (22012, the division by zero); functions say what is missing.
                let wanted = if sql.contains("1 /") { "22012" } else { "42501" };
                assert_eq!(error.code().unwrap().code(), wanted, "{role}: {sql}");
            }
        }
    }
}

#[test]
fn without_preload_notifications_work_and_the_rest_says_why_not() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute("CREATE SCHEMA \"Odd one\"").unwrap();
    // The notice goes to the client, and with this setting to the log too.
    client
        .batch_execute("SET log_min_messages = notice; CREATE EXTENSION obanrs SCHEMA \"Odd one\"")
        .unwrap();
    assert!(cluster.log().contains("obanrs is not loaded at server start"), "{}", cluster.log());
    assert_eq!(code(&mut client, "SELECT oban_version()"), "42883", "it is where the user wanted it");
    client.batch_execute("SELECT \"Odd one\".oban_install()").unwrap();
    client.batch_execute("SELECT \"Odd one\".oban_listen_channels()").unwrap();
    client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    assert_eq!(heard(&mut client), [r#"public.oban_insert {"queue":"default"}"#]);
    client.batch_execute("SET search_path = \"Odd one\"").unwrap();
    client.batch_execute("SELECT oban_notify('signal', '{}')").unwrap();
    assert_eq!(heard(&mut client), ["public.oban_signal {}"]);
    assert_eq!(client.query("SELECT * FROM oban_leader()", &[]).unwrap().len(), 0);
    for sql in [
        "SELECT oban_join('a')",
        "SELECT oban_leave(1)",
        "SELECT oban_is_leader()",
        "SELECT oban_term()",
        "SELECT oban_gossip_put('a', 'q')",
        "SELECT oban_gossip_delete('a')",
        "SELECT * FROM oban_members",
        "SELECT * FROM oban_gossip",
        "SELECT * FROM oban_workers",
    ] {
        let error = client.batch_execute(sql).expect_err(sql);
        let error = error.as_db_error().unwrap().clone();
        assert_eq!(error.code().code(), "55000", "{sql}");
        assert!(error.hint().unwrap().contains("shared_preload_libraries"));
    }
}

/// A guarded utility hook would take these fields away from every user's errors.
#[test]
fn other_peoples_errors_keep_all_their_fields() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute("CREATE TABLE t (id int CONSTRAINT one PRIMARY KEY); INSERT INTO t VALUES (1)")
        .unwrap();
    let error = client.batch_execute("DO $$ BEGIN INSERT INTO t VALUES (1); END $$").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!((error.constraint(), error.table(), error.schema()), (Some("one"), Some("t"), Some("public")));
    assert!(error.where_().unwrap().contains("inline_code_block"), "{:?}", error.where_());
    let error = client.batch_execute("CREATE TABLE u (id nonsense)").unwrap_err();
    assert!(error.as_db_error().unwrap().position().is_some());
    let error = client.batch_execute("DROP DATABASE no_such_database").unwrap_err();
    assert_eq!(error.code().unwrap().code(), "3D000");
    let error = client.batch_execute("CREATE DATABASE postgres").unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42P04");
}
