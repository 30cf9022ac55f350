//! Which states are accepted, and what does the server add to them?

use postgres::Client;

use super::queues;
use crate::support::{Ask, Cluster};

#[test]
fn what_would_crash_a_reader_is_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for (state, key) in [
        (r#"{"running": 3}"#, "running"),
        (r#"{"running": ["1", null]}"#, "running"),
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

#[test]
fn running_jobs_are_named_by_integers_and_by_texts() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let state = r#"{"running": [7, "01HZX3K8Q4E8W7V5N2J6T9R0CB", "9b2f0a1e-0000-4000-8000-0123456789ab", "\u00e9\""]}"#;
    client.query_one("SELECT oban_gossip_put('a', 'q', $1::text::jsonb)", &[&state]).unwrap();
    let row =
        client.query_one("SELECT running, state = $1::text::jsonb FROM oban_gossip", &[&state]).unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, bool>(1)), (4, true));
}

/// Postgres reads each accepted time as the extension does.
#[test]
fn every_accepted_time_is_a_timestamptz() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for time in ["0001-01-01T00:00:00-14:59", "9999-12-31T23:59:59.999999Z", "2024-02-29 23:59:59.1+00:00"] {
        let sql = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('started_at', $1::text))";
        client.query_one(sql, &[&time]).unwrap();
        let same =
            "SELECT started_at = $1::text::timestamptz AND started_at = (state->>'started_at')::timestamptz
                    FROM oban_gossip";
        assert!(client.query_one(same, &[&time]).unwrap().get::<_, bool>(0), "{time}");
    }
}

/// A state has a limit, and the server adds its times.
#[test]
fn a_state_is_64_kb_at_most_and_has_the_servers_times() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let put = |c: &mut Client, bytes: i32| {
        let sql = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('pad', repeat('x', $1)))";
        c.query_one(sql, &[&(bytes - r#"{"pad":""}"#.len() as i32)]).map(|_| ())
    };
    put(&mut client, 65_536).unwrap();
    let kept = "SELECT octet_length(state::text) FROM oban_gossip";
    assert_eq!(client.one::<i32>(kept), 65_537, "with the space that Postgres puts behind the colon");
    let error = put(&mut client, 65_537).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22023");
    // The limit counts a state without the spaces that Postgres puts behind commas: these are 60,900 bytes.
    // (As jsonb they are more.)
    let ids = "SELECT oban_gossip_put('a', 'ids', (SELECT jsonb_build_object('running', jsonb_agg(i))
                      FROM generate_series(1, 12000) i))";
    client.batch_execute(ids).unwrap();
    assert_eq!(client.one::<i32>("SELECT running FROM oban_gossip WHERE queue = 'ids'"), 12_000);

    // The server sets updated_at, whatever a state says. started_at stays while the entry lives.
    client
        .batch_execute(r#"SELECT oban_gossip_put('b', 'q', '{"updated_at": "2001-01-01T00:00:00Z"}')"#)
        .unwrap();
    let times = "SELECT started_at::text, (updated_at > now() - interval '1 minute')::text,
                        (updated_at > started_at)::text FROM oban_gossip WHERE node = 'b'";
    let texts = |c: &mut Client| -> Vec<String> {
        let row = c.query_one(times, &[]).unwrap();
        (0..3).map(|i| row.get(i)).collect()
    };
    let first = texts(&mut client);
    assert_eq!(first[1..], ["true", "false"]);
    client.batch_execute("SELECT oban_gossip_put('b', 'q')").unwrap();
    let second = texts(&mut client);
    assert_eq!((&second[0], &*second[2]), (&first[0], "true"));
}
