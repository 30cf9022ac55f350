//! Notifications by function, and what works without preload.

use postgres::Client;

use crate::support::{Cluster, code};

fn heard(client: &mut Client) -> Vec<String> {
    crate::support::heard(client).iter().map(|n| format!("{} {}", n.channel(), n.payload())).collect()
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
    assert_eq!(heard(&mut listener), [r#"public.oban_signal {"n":12345678901234567890,"action":"pause"}"#]);

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

    // A payload that is too long for a notification is packed, and read back.
    client
        .batch_execute("SELECT oban_notify('signal', jsonb_build_object('pad', repeat('x', 20000)))")
        .unwrap();
    let long = heard(&mut listener).remove(0);
    let wire = long.strip_prefix("public.oban_signal ").unwrap();
    assert!(wire.starts_with("H4sI"));
    let unpacked = "SELECT length(oban_decode($1)->>'pad')";
    assert_eq!(client.query_one(unpacked, &[&wire]).unwrap().get::<_, i32>(0), 20000);
}

/// A guarded utility hook would take these fields from every user's errors.
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
