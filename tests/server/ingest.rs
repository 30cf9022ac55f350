//! Gossip of Oban's own nodes, which send it by NOTIFY in three wire forms: what does the relay ingest?

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzEncoder;
use postgres::Client;
use serde_json::Value;

use crate::support::{Ask, Cluster, code, stat, wait_for, wait_until};

const CHANNEL: &str = "public.oban_gossip";

/// Sends a payload as a node sends it.
fn send(client: &mut Client, channel: &str, payload: &str) {
    client.execute("SELECT pg_notify($1, $2)", &[&channel, &payload]).unwrap();
}

/// The wire form `H4sI…`, which Oban 2.15 to 2.20 and Oban for Python send.
fn packed(json: &str) -> String {
    let mut bytes = Vec::new();
    GzEncoder::new(json.as_bytes(), Compression::default()).read_to_end(&mut bytes).unwrap();
    STANDARD.encode(bytes)
}

fn check(node: &str, queue: &str, more: &str) -> String {
    format!(r#"{{"name":"Oban","node":"{node}","queue":"{queue}","limit":10,"running":[1]{more}}}"#)
}

fn entries(client: &mut Client) -> Vec<String> {
    let rows = client
        .query("SELECT prefix || '/' || node || '/' || queue FROM oban_gossip ORDER BY 1", &[])
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Sends checks on a prefix's channel until the relay has counted one.
fn wait_until_heard(client: &mut Client, channel: &str) {
    let before = stat(client, "gossip_malformed");
    wait_until("the relay listens", || {
        send(client, channel, "probe");
        stat(client, "gossip_malformed") > before
    });
}

fn listening() -> (Cluster, Client) {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    wait_until_heard(&mut client, CHANNEL);
    settle(&mut client); // the last probes
    (cluster, client)
}

/// Waits until the relay has heard everything that was sent before. It takes messages in their order.
fn settle(client: &mut Client) {
    send(client, CHANNEL, &check("settled", "q", ""));
    wait_until("all was heard", || {
        client.one("SELECT EXISTS (SELECT FROM oban_gossip WHERE node = 'settled')")
    });
    assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('settled')"), 1);
}

#[test]
fn every_sample_of_real_nodes_is_taken_in_in_every_form() {
    let (_cluster, mut client) = listening();
    let samples: Vec<Value> = serde_json::from_str(include_str!("../fixtures/gossip/samples.json")).unwrap();
    assert!(samples.len() > 8);
    for sample in samples {
        let json = sample["message"].to_string();
        let mut queues: Vec<&str> =
            sample["queues"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
        queues.sort_unstable();
        for form in [json.clone(), packed(&json), format!("Z:{}", packed(&json))] {
            if form.len() >= 8_000 {
                continue; // NOTIFY can't carry it
            }
            let (before, malformed) =
                (stat(&mut client, "gossip_taken_in"), stat(&mut client, "gossip_malformed"));
            send(&mut client, CHANNEL, &form);
            wait_until("it is taken in", || {
                stat(&mut client, "gossip_taken_in") == before + queues.len() as i64
            });
            let rows = client
                .query("SELECT queue, local_limit, running, paused FROM oban_gossip ORDER BY 1", &[])
                .unwrap();
            let seen: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(seen, queues, "{} as {form}", sample["from"]);
            assert!(
                rows.iter().all(|row| row.get::<_, i32>(1) == 10 && row.get::<_, Option<i32>>(2).is_some())
            );
            assert_eq!(stat(&mut client, "gossip_malformed"), malformed);
            client.batch_execute("SELECT oban_gossip_delete(node, name => name) FROM (SELECT DISTINCT node, name FROM oban_gossip) n").unwrap();
        }
    }
}

#[test]
fn running_jobs_may_be_texts() {
    let (_cluster, mut client) = listening();
    let check = r#"{"name":"Oban","node":"n","queue":"q","running":["01HZX3K8Q4E8W7V5N2J6T9R0CB",7]}"#;
    send(&mut client, CHANNEL, &packed(&format!(r#"{{"checks":[{check}]}}"#)));
    wait_until("it is taken in", || entries(&mut client) == ["public/n/q"]);
    assert_eq!(client.one::<i32>("SELECT running FROM oban_gossip"), 2);
}

#[test]
fn what_is_malformed_is_counted_and_its_neighbours_are_taken() {
    let (_cluster, mut client) = listening();
    let before = stat(&mut client, "gossip_malformed");
    for bad in ["", "[]", "5", "null", "H4sI", "Z:!", "{", r#"{"checks": 1}"#, r#"{"n": 1}"#] {
        send(&mut client, CHANNEL, bad);
    }
    settle(&mut client);
    assert_eq!(stat(&mut client, "gossip_malformed"), before + 9);
    // These checks have what JSON allows and jsonb does not, a field of a wrong type, or a number that prints
    // with many digits.
    let nul = check("bad", "nul", r#","x":"\u0000""#);
    let running = r#"{"name":"Oban","node":"bad","queue":"running","running":3}"#;
    let huge = check("bad", "huge", r#","x":1e100000"#);
    let range = check("bad", "range", r#","x":1E99,"limit":99999999999"#);
    let name = check("bad\\u0000", "name", "");
    let good = [check("good", "1", ""), check("good", "2", r#","x":[{"y":"é"}]"#)];
    let message = format!(r#"{{"checks":[{},{nul},{running},{huge},{range},{name},{}]}}"#, good[0], good[1]);
    send(&mut client, CHANNEL, &message);
    settle(&mut client);
    assert_eq!(entries(&mut client), ["public/good/1", "public/good/2"]);
    assert_eq!(stat(&mut client, "gossip_malformed"), before + 14);
    assert_eq!(client.one::<String>("SELECT state->'x'->0->>'y' FROM oban_gossip WHERE queue = '2'"), "é");
}

#[test]
fn ours_goes_before_theirs_and_only_ours_is_sent() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_interval = 50ms"]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_listen_channels('{gossip}')",
        )
        .unwrap();
    wait_until_heard(&mut client, CHANNEL);
    client.batch_execute(r#"SELECT oban_gossip_put('a', 'q', '{"limit": 1}')"#).unwrap();
    send(&mut client, CHANNEL, &check("a", "q", ""));
    send(&mut client, CHANNEL, &check("b", "q", ""));
    wait_until("theirs is there", || entries(&mut client) == ["public/a/q", "public/b/q"]);
    let limit = "SELECT local_limit FROM oban_gossip WHERE node = 'a'";
    assert_eq!(client.one::<i32>(limit), 1, "ours stays");
    assert_eq!((stat(&mut client, "gossip_entries"), stat(&mut client, "gossip_entries_taken_in")), (2, 1));
    let rounds = stat(&mut client, "gossip_broadcasts");
    wait_until("it was broadcast", || stat(&mut client, "gossip_broadcasts") > rounds + 3);
    let own: i32 = client.one("SELECT pid FROM oban_workers WHERE kind = 'relay'");
    let heard = crate::support::heard(&mut client);
    let broadcasts: Vec<_> = heard.iter().filter(|n| n.process_id() == own).collect();
    assert!(broadcasts.len() > 2);
    for broadcast in broadcasts {
        let message: Value = serde_json::from_str(broadcast.payload()).unwrap();
        let nodes: Vec<_> = message["checks"].as_array().unwrap().iter().map(|c| c["node"].clone()).collect();
        assert_eq!(nodes, ["a"], "what was taken in is not sent again");
    }
    // The relay does not ingest its own broadcast. Otherwise the broadcast would outlive the entry.
    assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('a')"), 1);
    settle(&mut client);
    assert_eq!(entries(&mut client), ["public/b/q"]);
    // A foreign entry gives way to an entry that is put here.
    client.batch_execute(r#"SELECT oban_gossip_put('b', 'q', '{"limit": 2}')"#).unwrap();
    assert_eq!(stat(&mut client, "gossip_entries_taken_in"), 0);
}

#[test]
fn foreign_entries_end_by_their_ttl_and_only_readers_of_the_prefix_see_them() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_ttl = 300ms"]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); CREATE ROLE reader LOGIN; CREATE ROLE other LOGIN;
                        GRANT SELECT ON oban_jobs TO reader")
        .unwrap();
    wait_until_heard(&mut client, CHANNEL);
    // Any role may NOTIFY.
    let mut other = cluster.client_as("postgres", "other");
    let mut reader = cluster.client_as("postgres", "reader");
    wait_until("the reader sees it", || {
        send(&mut other, CHANNEL, &check("a", "q", ""));
        entries(&mut reader) == ["public/a/q"]
    });
    send(&mut other, CHANNEL, &check("a", "q", ""));
    settle(&mut client);
    assert!(entries(&mut other).is_empty());
    wait_until("it is over", || entries(&mut reader).is_empty());
}

/// A role that floods a channel of gossip takes at most half of the table, and no entry that was put here.
#[test]
fn a_flood_leaves_room_for_ours() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_memory = '64kB'"]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_gossip_put('a', 'q')")
        .unwrap();
    wait_until_heard(&mut client, CHANNEL);
    for queue in 0..1000 {
        send(&mut client, CHANNEL, &check("flood", &format!("q{queue}"), ""));
    }
    wait_until("it is refused", || stat(&mut client, "gossip_refused") > 500);
    let foreign = stat(&mut client, "gossip_entries_taken_in");
    assert!((60..=110).contains(&foreign), "{foreign} of some 170");
    let sql = "SELECT count(oban_gossip_put('a', 'q' || i)) FROM generate_series(1, 80) i";
    assert_eq!(client.one::<i64>(sql), 80);
}

#[test]
fn prefixes_that_come_go_and_change_their_names_are_followed() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('one')").unwrap();
    wait_until_heard(&mut client, "one.oban_gossip");
    client.batch_execute("SELECT oban_install('two')").unwrap();
    wait_until_heard(&mut client, "two.oban_gossip");
    client.batch_execute("ALTER SCHEMA two RENAME TO three").unwrap();
    wait_until_heard(&mut client, "three.oban_gossip");
    // pg_restore makes such a prefix, without a call of oban_install.
    client
        .batch_execute(
            "CREATE SCHEMA four;
             CREATE TABLE four.oban_jobs (LIKE one.oban_jobs INCLUDING ALL);
             CREATE TABLE four.oban_peers (LIKE one.oban_peers INCLUDING ALL);
             CREATE TRIGGER obanrs_peers_guard BEFORE INSERT OR UPDATE ON four.oban_peers
                 FOR EACH ROW EXECUTE FUNCTION obanrs_peers()",
        )
        .unwrap();
    wait_until_heard(&mut client, "four.oban_gossip");
    client.batch_execute("CREATE SCHEMA five; ALTER TABLE four.oban_peers SET SCHEMA five").unwrap();
    wait_until_heard(&mut client, "five.oban_gossip");
    // The relay stops hearing prefixes that are gone. It hears the others in their order.
    client.batch_execute("SELECT oban_uninstall('one'); DROP SCHEMA four, five CASCADE").unwrap();
    let message = check("a", "q", "");
    wait_until("they are not heard", || {
        client
            .batch_execute("SELECT oban_gossip_delete('a', prefix => p) FROM unnest('{one,three}'::text[]) p")
            .unwrap();
        for prefix in ["one", "two", "four", "five", "three"] {
            send(&mut client, &format!("{prefix}.oban_gossip"), &message);
        }
        wait_until("the last one is heard", || entries(&mut client).contains(&"three/a/q".into()));
        entries(&mut client) == ["three/a/q"]
    });
}

/// A schema is its oid. An entry that was put or heard for it stays with it under each of its names.
#[test]
fn a_renamed_schema_keeps_its_entries() {
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'obanrs'",
        "obanrs.gossip_interval = 50ms",
        "obanrs.gossip_ttl = 1h",
    ]);
    let (mut client, mut other) = (cluster.client(), cluster.client());
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install('one');
             SELECT oban_gossip_put('ours', 'q', prefix => 'one');
             SELECT oban_listen_channels('{gossip}', 'one'); LISTEN \"two.oban_gossip\"",
        )
        .unwrap();
    wait_until_heard(&mut other, "one.oban_gossip");
    send(&mut other, "one.oban_gossip", &check("theirs", "q", ""));
    wait_until("both are there", || entries(&mut other) == ["one/ours/q", "one/theirs/q"]);

    client.batch_execute("BEGIN").unwrap();
    assert_eq!(entries(&mut client).len(), 2);
    other.batch_execute("ALTER SCHEMA one RENAME TO two").unwrap();
    let renamed = ["two/ours/q", "two/theirs/q"];
    assert_eq!(
        (entries(&mut other), entries(&mut client)),
        (renamed.map(Into::into).into(), renamed.map(Into::into).into())
    );
    client.batch_execute("COMMIT").unwrap();
    wait_until_heard(&mut other, "two.oban_gossip");
    send(&mut other, "two.oban_gossip", &check("theirs", "later", ""));
    wait_until("it is taken in", || entries(&mut other).contains(&"two/theirs/later".into()));

    // A schema that has the old name now is another schema.
    other.batch_execute("SELECT oban_install('one')").unwrap();
    wait_until_heard(&mut other, "one.oban_gossip");
    send(&mut other, "one.oban_gossip", &check("new", "q", ""));
    wait_until("it is taken in", || entries(&mut other).contains(&"one/new/q".into()));
    assert_eq!(other.one::<i32>("SELECT oban_gossip_delete('ours', prefix => 'one')"), 0);
    assert_eq!(entries(&mut other), ["one/new/q", "two/ours/q", "two/theirs/later", "two/theirs/q"]);

    // The relay broadcasts an entry on the channel of the schema's present name.
    let relay: i32 = other.one("SELECT pid FROM oban_workers WHERE kind = 'relay'");
    let rounds = stat(&mut other, "gossip_broadcasts");
    wait_until("it was broadcast", || stat(&mut other, "gossip_broadcasts") > rounds + 3);
    let all = crate::support::heard(&mut client);
    let channels: Vec<_> = all.iter().filter(|n| n.process_id() == relay).map(|n| n.channel()).collect();
    let first = channels.iter().position(|c| *c == "two.oban_gossip").expect("it is told on its new channel");
    assert!(channels[first..].iter().all(|c| *c == "two.oban_gossip"), "{channels:?}");
    assert!(channels[..first].iter().all(|c| *c == "one.oban_gossip") && first > 0, "{channels:?}");

    assert_eq!(other.one::<i32>("SELECT oban_gossip_delete('ours', prefix => 'two')"), 1);
}

#[test]
fn it_can_be_turned_off_and_on_and_a_new_relay_goes_on() {
    let (cluster, mut client) = listening();
    let set = |client: &mut Client, value: &str| {
        cluster.configure(&[&format!("obanrs.gossip_ingest = {value}")]);
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    set(&mut client, "off");
    // The relay does not listen now. Postgres shows that by an empty queue of NOTIFY.
    let relay: i32 = client.one("SELECT pid FROM oban_workers WHERE kind = 'relay'");
    wait_until("it does not listen", || {
        let before = stat(&mut client, "gossip_malformed");
        send(&mut client, CHANNEL, "probe");
        // The relay sends this message after everything that it had to do before.
        client.batch_execute("LISTEN x; SELECT oban_notify('x', '{}', '')").unwrap();
        wait_for("the relay's", || {
            crate::support::heard(&mut client).iter().any(|n| n.process_id() == relay).then_some(())
        });
        stat(&mut client, "gossip_malformed") == before
    });
    set(&mut client, "on");
    wait_until_heard(&mut client, CHANNEL);
    client.execute("SELECT pg_terminate_backend($1, 10000)", &[&relay]).unwrap();
    wait_until_heard(&mut client, CHANNEL);
    assert_ne!(client.one::<i32>("SELECT pid FROM oban_workers WHERE kind = 'relay'"), relay);
}

/// NOTIFY keeps what a listener has not read. Users can hold up the keeper, but not the relay, which listens.
#[test]
fn nothing_that_users_do_keeps_the_queue_of_notify_full() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_join('a')").unwrap();
    wait_until_heard(&mut client, CHANNEL);
    let mut locker = cluster.client();
    // The transaction locks the prefix's tables, and the catalog in which the relay looks for prefixes.
    locker
        .batch_execute(
            "BEGIN; LOCK TABLE oban_peers, oban_jobs IN ACCESS EXCLUSIVE MODE;
             LOCK TABLE pg_catalog.pg_trigger IN ACCESS EXCLUSIVE MODE",
        )
        .unwrap();
    cluster.configure(&["obanrs.gossip_ingest = off", "obanrs.gossip_ingest = on"]);
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    let usage = |c: &mut Client| -> f64 { c.one("SELECT pg_notification_queue_usage()") };
    let pad = "x".repeat(7_000);
    let flood = format!("SELECT count(pg_notify('{CHANNEL}', i || '{pad}')) FROM generate_series(1, 100) i");
    for _ in 0..50 {
        client.one::<i64>(&flood);
    }
    wait_until("all was read", || usage(&mut client) == 0.0);
    locker.batch_execute("ROLLBACK").unwrap();
    wait_until_heard(&mut client, CHANNEL);
}

/// A few kilobytes hold tens of thousands of checks, and each would be an error in Postgres. A role that
/// sends them does not hold up the relay, which ends when it has to.
#[test]
fn a_flood_of_bombs_does_not_hold_the_relay_up() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE ROLE stranger LOGIN").unwrap();
    client.batch_execute("CREATE DATABASE flooded").unwrap();
    let mut admin = cluster.client_of("flooded");
    admin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    wait_until_heard(&mut admin, CHANNEL);
    let bomb =
        |check: &str, many: usize| packed(&format!(r#"{{"checks":[{}]}}"#, vec![check; many].join(",")));
    let bombs = [
        bomb(r#"{"name":"a","node":"b","queue":"c","x":"\u0000"}"#, 9_000),
        bomb(r#"{"name":"a","node":"b","queue":"c","x":1e400000}"#, 9_000),
        bomb(r#"{"name":"a","node":"b","queue":"c"}"#, 14_000),
    ];
    let mut stranger = cluster.client_as("flooded", "stranger");
    let (before, refused) = (stat(&mut admin, "gossip_malformed"), stat(&mut admin, "gossip_refused"));
    for _ in 0..100 {
        for bomb in &bombs {
            assert!(bomb.len() < 8_000, "{}", bomb.len());
            send(&mut stranger, CHANNEL, bomb);
        }
    }
    wait_until("they are being taken apart", || {
        stat(&mut admin, "gossip_malformed") > before && stat(&mut admin, "gossip_refused") > refused
    });
    drop((stranger, admin));
    client.batch_execute("DROP DATABASE flooded").unwrap();
}

/// Texts come in the database's encoding, whatever the clients' encoding is. A name that the database can't
/// show is malformed: otherwise one NOTIFY would break the view.
#[test]
fn encodings_do_not_matter() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").unwrap();
    client.batch_execute("ALTER DATABASE postgres SET client_encoding = 'LATIN1'").unwrap();
    let relay: i32 =
        client.one("SELECT pid FROM oban_workers WHERE kind = 'relay' AND database = 'postgres'");
    client.execute("SELECT pg_terminate_backend($1, 10000)", &[&relay]).unwrap();
    let mut latin = cluster.client_of("latin");
    latin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    wait_until_heard(&mut client, CHANNEL);
    wait_until_heard(&mut latin, CHANNEL);
    let relay = "SELECT pid FROM oban_workers WHERE kind = 'relay' AND database = current_database()";
    let before: i32 = client.one(relay);
    send(&mut client, CHANNEL, &check("€", "q", ""));
    wait_until("it is there", || entries(&mut client) == ["public/€/q"]);
    assert_eq!(client.one::<i32>(relay), before, "the relay has not died of it");

    settle(&mut latin);
    let malformed = stat(&mut latin, "gossip_malformed");
    for (node, queue) in [("\\u20ac", "euro"), ("\\u00e9", "escaped"), ("é", "é")] {
        send(&mut latin, CHANNEL, &check(node, queue, r#","x":"é""#));
    }
    settle(&mut latin);
    assert_eq!(entries(&mut latin), ["public/é/escaped", "public/é/é"]);
    assert_eq!(stat(&mut latin, "gossip_malformed"), malformed + 1);
    assert_eq!(latin.one::<i64>("SELECT count(*) FROM oban_gossip WHERE state->>'x' = 'é'"), 2);

    // An entry that is put here has to be valid text for all readers. Otherwise it could never be broadcast,
    // nor any entry beside it.
    client.batch_execute("CREATE DATABASE windows ENCODING 'WIN1252' LOCALE 'C' TEMPLATE template0").unwrap();
    let mut windows = cluster.client_of("windows");
    windows
        .batch_execute("SET client_encoding = 'UTF8'; CREATE EXTENSION obanrs; SELECT oban_install()")
        .unwrap();
    let put = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('x', convert_from(decode('81', 'hex'), 'WIN1252')))";
    assert_eq!(code(&mut windows, put), "22P05");
    windows.batch_execute("SELECT oban_gossip_put('a', 'q', jsonb_build_object('x', U&'\\20ac'))").unwrap();
    wait_until("it is broadcast", || stat(&mut windows, "gossip_broadcasts") > 0);
}
