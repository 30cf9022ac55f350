//! Gossip: what is put is seen, until it ends.

use postgres::Client;

use crate::support::{Ask, Cluster, code, wait_until};

fn queues(client: &mut Client) -> Vec<String> {
    let rows = client.query("SELECT node || '/' || queue FROM oban_gossip ORDER BY 1", &[]).unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}

#[test]
fn a_state_is_seen_with_its_columns_and_replaced() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            r#"SELECT oban_gossip_put('web.1', 'default', '{"limit": 10, "paused": false, "running": [7, 8],
               "uuid": "u-1", "started_at": "2026-01-31T12:00:00.5+02:00", "mine": {"n": 12345678901234567890.5}}')"#,
        )
        .unwrap();
    let sql = "SELECT prefix, name, node, queue, paused, local_limit, running, uuid,
                      started_at = '2026-01-31 10:00:00.5Z', updated_at <= now(),
                      expires_at > now() + interval '29 seconds', state->'mine'->>'n'
               FROM oban_gossip";
    let row = client.query_one(sql, &[]).unwrap();
    let texts: Vec<String> = (0..4).map(|i| row.get(i)).collect();
    assert_eq!(texts, ["public", "Oban", "web.1", "default"]);
    assert_eq!((row.get(4), row.get(5), row.get(6), row.get(7)), (false, 10, 2, "u-1"));
    assert_eq!((row.get(8), row.get(9), row.get(10)), (true, true, true));
    assert_eq!(row.get::<_, &str>(11), "12345678901234567890.5", "numbers stay exact");

    client.batch_execute(r#"SELECT oban_gossip_put('web.1', 'default', '{"local_limit": 3}')"#).unwrap();
    let row =
        client.query_one("SELECT paused, local_limit, running, state::text FROM oban_gossip", &[]).unwrap();
    assert_eq!((row.get::<_, Option<bool>>(0), row.get::<_, Option<i32>>(1)), (None, Some(3)));
    assert_eq!((row.get::<_, Option<i32>>(2), row.get::<_, &str>(3)), (None, r#"{"local_limit": 3}"#));
}

#[test]
fn entries_end_by_ttl_by_deletion_and_with_their_member() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_gossip_put('a', 'short', ttl => '200 milliseconds')").unwrap();
    for queue in ["1", "2", "3"] {
        client.query_one("SELECT oban_gossip_put('a', $1)", &[&queue]).unwrap();
    }
    wait_until("the short one expired", || queues(&mut client) == ["a/1", "a/2", "a/3"]);
    let deleted = |c: &mut Client, sql: &str| -> i32 { c.one(sql) };
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('a', '1')"), 1);
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('a', '1')"), 0);
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('b')"), 0);
    assert_eq!(queues(&mut client), ["a/2", "a/3"]);
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('a')"), 2);

    let mut member = cluster.shell();
    member.ask("SELECT oban_join('m')");
    member.ask("SELECT oban_gossip_put('m', 'default') IS NULL");
    client.batch_execute("SELECT oban_gossip_put('n', 'default')").unwrap();
    assert_eq!(queues(&mut client), ["m/default", "n/default"]);
    member.kill();
    wait_until("the killed member's are gone", || queues(&mut client) == ["n/default"]);

    // They are about processes: a rollback does not take them back.
    client.batch_execute("BEGIN; SELECT oban_gossip_put('r', 'default'); ROLLBACK").unwrap();
    assert_eq!(queues(&mut client), ["n/default", "r/default"]);
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_memory = '64kB'"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let fill = |c: &mut Client| -> usize {
        let sql = "SELECT oban_gossip_put('a', 'q' || $1::int, jsonb_build_object('pad', repeat('x', 1000)))";
        for i in 0..1000 {
            if let Err(error) = c.query_one(sql, &[&i]) {
                let error = error.as_db_error().expect("the server answers").clone();
                assert_eq!(error.code().code(), "53400");
                assert!(error.hint().unwrap().contains("obanrs.gossip_memory"));
                return i as usize;
            }
        }
        panic!("64 kB hold a megabyte");
    };
    let first = fill(&mut client);
    assert!(first > 20, "{first}");
    for _ in 0..20 {
        assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('a')"), first as i32);
        assert_eq!(fill(&mut client), first);
    }
    // What can't be replaced by something larger keeps its old state.
    let large = "SELECT oban_gossip_put('a', 'q0', jsonb_build_object('pad', repeat('y', 60000)))";
    assert_eq!(code(&mut client, large), "53400");
    let kept = "SELECT length(state->>'pad') FROM oban_gossip WHERE queue = 'q0'";
    assert_eq!(client.one::<i32>(kept), 1000);
}

#[test]
fn what_would_crash_a_reader_is_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for (state, key) in [
        (r#"{"running": 3}"#, "running"),
        (r#"{"running": ["1"]}"#, "running"),
        (r#"{"limit": "10"}"#, "limit"),
        (r#"{"started_at": "2026-01-31 12:00:00"}"#, "started_at"),
        (r#"{"paused": null}"#, "paused"),
        ("[]", "state"),
    ] {
        let error =
            client.query_one("SELECT oban_gossip_put('a', 'q', $1::text::jsonb)", &[&state]).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "22023", "{state}");
        assert!(error.message().contains(key) && error.hint().is_some(), "{error:?}");
    }
    assert!(queues(&mut client).is_empty(), "bad input changes nothing");
}

/// Every time that we let in, Postgres can read: else one entry would break the view for all.
#[test]
fn every_accepted_time_is_a_timestamptz() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for time in [
        "0001-01-01T00:00:00-14:59",
        "0001-01-01T00:00:00+14:59",
        "9999-12-31T23:59:59.999999999Z",
        "2024-02-29 23:59:59.1+00:00",
    ] {
        let sql = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('started_at', $1::text))";
        client.query_one(sql, &[&time]).unwrap();
        client
            .query_one("SELECT started_at::text FROM oban_gossip", &[])
            .unwrap_or_else(|e| panic!("{time}: {e}"));
    }
}
