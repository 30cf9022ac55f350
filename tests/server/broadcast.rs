//! The gossip that the relay broadcasts: what do Oban's nodes hear of the queues of this extension's members?

use std::collections::BTreeSet;
use std::io::Read;

use base64::Engine;
use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use crate::support::{Ask, Cluster, PATIENCE, stat, wait_for, wait_until};

fn installed_with(settings: &[&str]) -> (Cluster, Client) {
    let cluster = Cluster::start(&[&["shared_preload_libraries = 'obanrs'"], settings].concat());
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    (cluster, client)
}

fn listener(cluster: &Cluster) -> Client {
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_listen_channels('{gossip}')").unwrap();
    client
}

/// Returns the next notification: its channel and its payload.
fn next(listener: &mut Client) -> (String, String) {
    let mut notifications = listener.notifications();
    let next = notifications.timeout_iter(PATIENCE).next().expect("the connection is open");
    let next = next.unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for a broadcast"));
    (next.channel().to_owned(), next.payload().to_owned())
}

/// Returns the checks of a message. Oban's nodes read it in the same way: as JSON, or as base64 of gzip.
fn checks(payload: &str) -> Vec<Value> {
    assert!(payload.len() <= 7_999, "{} bytes", payload.len());
    let mut json = String::new();
    let payload = if payload.starts_with("H4sI") {
        let packed = base64::engine::general_purpose::STANDARD.decode(payload).expect("base64");
        flate2::read::GzDecoder::new(&*packed).read_to_string(&mut json).expect("gzip");
        &json
    } else {
        payload
    };
    let message: Value = serde_json::from_str(payload).expect("a complete object");
    assert_eq!(message.as_object().unwrap().len(), 1, "{payload}");
    message["checks"].as_array().expect("an array").clone()
}

fn queue(check: &Value) -> String {
    check["queue"].as_str().expect("a name").to_owned()
}

const FAST: &str = "obanrs.gossip_interval = 50ms";

#[test]
fn listeners_hear_what_the_golden_file_has() {
    let (cluster, mut client) = installed_with(&[FAST]);
    client
        .batch_execute(
            r#"SELECT oban_gossip_put('web.1', 'media'),
                      oban_gossip_put('web.1', '"é"', '{"uuid": "8b2ff8a5-9f2c-4a5e-9d57-0b8f8e1a2b3c", "name": "other",
                          "limit": 10, "paused": true, "running": [7, 8, 9007199254740993],
                          "started_at": "2026-01-30T12:00:00Z", "updated_at": "2020-01-01T00:00:00Z",
                          "shutdown_started_at": "2026-01-31T11:59:59Z", "refresh_interval": 60000,
                          "x": 1.50, "rate_limit": {"allowed": 1, "period": 60, "window_time": "12:00:00",
                              "windows": [{"curr_count": 1, "prev_count": 2}]}}'),
                      oban_gossip_put('web.1', 'default', '{"local_limit": 3, "running": []}')"#,
        )
        .unwrap();
    let mut listener = listener(&cluster);
    let payload = loop {
        let (channel, payload) = next(&mut listener);
        assert_eq!(channel, "public.oban_gossip");
        // A broadcast that was on its way meanwhile may have fewer entries.
        if checks(&payload).len() == 3 {
            break payload;
        }
    };
    // The times are the server's, in ascending order. The golden file has other times.
    let golden = include_str!("../fixtures/gossip/broadcast.json").trim_end();
    let mut sent = payload.clone();
    for (key, of_server) in
        [("started_at", "2026-01-31T12:00:00+00:00"), ("updated_at", "2026-01-31T12:00:01.5+00:00")]
    {
        assert!(golden.contains(of_server));
        for check in checks(&payload) {
            let time = check[key].as_str().unwrap().to_owned();
            let sql = "SELECT $1::text::timestamptz > now() - interval '1 minute' AND $1::text ~ '[+]00:00$'";
            if client.query_one(sql, &[&time]).unwrap().get::<_, bool>(0) {
                sent = sent.replace(&format!("\"{key}\":\"{time}\""), &format!("\"{key}\":\"{of_server}\""));
            }
        }
    }
    assert_eq!(sent, golden);
    wait_until("it is counted", || stat(&mut client, "gossip_broadcast_entries") == 3);
    assert_eq!(stat(&mut client, "gossip_shortened"), 0);
}

#[test]
fn a_poll_reads_the_broadcast_and_each_prefix_has_its_own() {
    let (cluster, mut client) = installed_with(&[FAST]);
    client.batch_execute("SELECT oban_install('other')").unwrap();
    let from: i64 = client.one("SELECT oban_position()");
    client
        .batch_execute("SELECT oban_gossip_put('a', 'q1'), oban_gossip_put('a', 'q2', prefix => 'other')")
        .unwrap();
    for (prefix, own) in [("public", "q1"), ("other", "q2")] {
        let sql = "SELECT messages->0->'payload'->'checks'->0->>'queue', jsonb_array_length(messages->0->'payload'->'checks')
                   FROM oban_poll('{gossip}', $1, prefix => $2)";
        wait_until("it can be polled", || {
            let row = client.query_one(sql, &[&from, &prefix]).unwrap();
            row.get::<_, Option<&str>>(0).is_some_and(|queue| {
                assert_eq!((queue, row.get::<_, i32>(1)), (own, 1));
                true
            })
        });
    }
    let mut other = cluster.client();
    other.batch_execute("LISTEN \"other.oban_gossip\"").unwrap();
    assert_eq!(checks(&next(&mut other).1).iter().map(queue).collect::<Vec<_>>(), ["q2"]);
}

/// The relay broadcasts while there are entries, not by the clock alone.
#[test]
fn there_is_a_broadcast_while_there_are_entries() {
    let (cluster, mut client) = installed_with(&[FAST]);
    client.batch_execute("SELECT oban_install('other'); SELECT oban_gossip_put('a', 'q')").unwrap();
    let mut listener = listener(&cluster);
    next(&mut listener);
    client.batch_execute("SELECT oban_gossip_put('b', 'q', prefix => 'other')").unwrap();
    assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('a')"), 1);
    // Broadcasts that were on their way come before the next round. After it, only those of the other prefix
    // come.
    let rounds = stat(&mut client, "gossip_broadcasts");
    wait_until("others go on", || stat(&mut client, "gossip_broadcasts") > rounds + 1);
    crate::support::heard(&mut listener);
    let rounds = stat(&mut client, "gossip_broadcasts");
    wait_until("others go on", || stat(&mut client, "gossip_broadcasts") > rounds + 5);
    let heard: Vec<String> =
        crate::support::heard(&mut listener).iter().map(|n| n.payload().to_owned()).collect();
    assert!(heard.is_empty(), "{heard:?}");
    // The relay has nothing to broadcast, and the next put wakes it.
    assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('b', prefix => 'other')"), 1);
    client.batch_execute("SELECT oban_gossip_put('c', 'again')").unwrap();
    assert_eq!(queue(&checks(&next(&mut listener).1)[0]), "again");
}

#[test]
fn an_interval_of_0_turns_it_off_and_a_reload_on() {
    let (cluster, mut client) = installed_with(&[FAST]);
    let mut listener = listener(&cluster);
    let set = |client: &mut Client, setting: &str| {
        cluster.configure(&[setting]);
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    // The relay has nothing to broadcast by then, and does not look again by itself.
    set(&mut client, "obanrs.gossip_interval = 0");
    wait_until("the session knows", || client.one::<String>("SHOW obanrs.gossip_interval") == "0");
    client.batch_execute("SELECT oban_gossip_put('a', 'q')").unwrap();
    wait_until("nothing is broadcast, while the relay sends what else there is", || {
        let rounds = stat(&mut client, "gossip_broadcasts");
        for _ in 0..50 {
            client.batch_execute("SELECT oban_notify('gossip', '{\"n\": 1}')").unwrap();
            while next(&mut listener).1 != "{\"n\":1}" {}
        }
        stat(&mut client, "gossip_broadcasts") == rounds
    });
    set(&mut client, FAST);
    assert_eq!(queue(&checks(&next(&mut listener).1)[0]), "q");
}

#[test]
fn many_queues_are_split_into_whole_messages() {
    let (cluster, mut client) = installed_with(&[FAST]);
    let mut listener = listener(&cluster);
    let state = r#"{"uuid": "8b2ff8a5-9f2c-4a5e-9d57-0b8f8e1a2b3c", "limit": 10, "running": [1, 2, 3]}"#;
    let sql = format!(
        "SELECT count(oban_gossip_put('n' || i % 10, 'q' || i, '{state}')) FROM generate_series(1, 200) i"
    );
    assert_eq!(client.one::<i64>(&sql), 200);
    let (mut seen, mut messages) = (BTreeSet::new(), 0);
    while seen.len() < 200 {
        let (_, payload) = next(&mut listener);
        seen.extend(checks(&payload).iter().map(queue));
        messages += 1;
    }
    assert!(messages >= 7, "200 checks of some 300 bytes each, in {messages} messages");
    wait_until("they are counted", || stat(&mut client, "gossip_broadcast_entries") == 200);
}

/// A broadcast has all of 1,200 running jobs, whichever ids they have. So oban_met and other readers see all.
#[test]
fn a_check_that_is_too_long_is_compressed() {
    let (cluster, mut client) = installed_with(&[FAST]);
    let mut listener = listener(&cluster);
    let from: i64 = client.one("SELECT oban_position()");
    for (queue, id, many) in [("numbers", "1000000 + i", 1200), ("uuids", "md5(i::text)::uuid", 250)] {
        let sql = format!(
            "SELECT oban_gossip_put('a', '{queue}', (SELECT jsonb_build_object('limit', 5, 'running', jsonb_agg({id}))
                                                 FROM generate_series(1, {many}) i))"
        );
        client.batch_execute(&sql).unwrap();
        let running: Value =
            client.one(&format!("SELECT state->'running' FROM oban_gossip WHERE queue = '{queue}'"));
        assert_eq!(running.as_array().unwrap().len(), many);
        let sent = wait_for("it is broadcast", || {
            let (_, payload) = next(&mut listener);
            checks(&payload).into_iter().find(|check| check["queue"] == queue).map(|check| (check, payload))
        });
        assert!(sent.0["running"] == running && sent.0["limit"] == 5, "{}", sent.1);
        // A reader of the ring gets the same payload.
        let polled = "SELECT count(*) FROM oban_poll('{gossip}', $1), jsonb_array_elements(messages) m,
                      jsonb_array_elements(m->'payload'->'checks') c WHERE c->'running' = $2";
        wait_until("it can be polled", || {
            client.query_one(polled, &[&from, &running]).unwrap().get::<_, i64>(0) > 0
        });
        client.batch_execute("SELECT oban_gossip_delete('a')").unwrap();
    }
    assert_eq!(stat(&mut client, "gossip_shortened"), 0);
    assert_eq!(stat(&mut client, "gossip_malformed") + stat(&mut client, "gossip_taken_in"), 0, "it is ours");
}

#[test]
fn a_check_that_is_too_long_compressed_keeps_its_newest_jobs_and_is_counted() {
    let (cluster, mut client) = installed_with(&[FAST]);
    let mut listener = listener(&cluster);
    let sql =
        "SELECT oban_gossip_put('a', 'q', (SELECT jsonb_build_object('limit', 5, 'running', jsonb_agg(i))
                                                 FROM generate_series(1000001, 1008000) i))";
    client.batch_execute(sql).unwrap();
    let (_, payload) = next(&mut listener);
    let check = &checks(&payload)[0];
    let kept: Vec<i64> = serde_json::from_value(check["running"].clone()).unwrap();
    assert_eq!(kept, (1_008_001 - kept.len() as i64..=1_008_000).collect::<Vec<_>>());
    assert!(kept.len() > 2_000 && check["limit"] == 5, "{}", kept.len());
    wait_until("it is counted", || stat(&mut client, "gossip_shortened") > 0);
    assert_eq!(client.one::<i32>("SELECT running FROM oban_gossip"), 8000, "the view has all");
}

/// Broadcasts that would fill the ring go to LISTENers only, and leave the ring to other messages.
#[test]
fn a_large_broadcast_does_not_go_through_the_ring() {
    let (cluster, mut client) = installed_with(&[FAST, "obanrs.ring_size = '64kB'"]);
    let from: i64 = client.one("SELECT oban_position()");
    let sql = "SELECT count(oban_gossip_put('a', 'q' || i)) FROM generate_series(1, 100) i";
    assert_eq!(client.one::<i64>(sql), 100);
    let mut listener = listener(&cluster);
    let mut seen = BTreeSet::new();
    while seen.len() < 100 {
        seen.extend(checks(&next(&mut listener).1).iter().map(queue));
    }
    let rounds = stat(&mut client, "gossip_broadcasts");
    wait_until("there are more", || stat(&mut client, "gossip_broadcasts") > rounds + 2);
    let poll =
        format!("SELECT position || ' ' || missed || ' ' || messages FROM oban_poll('{{gossip}}', {from})");
    assert_eq!(client.one::<String>(&poll), format!("{from} 0 []"));
}
