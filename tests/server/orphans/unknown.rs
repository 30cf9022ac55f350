//! Does a job stay with its node when the server does not know what that node runs?

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::Client;

use super::{GRACE, Process, Way, fetch, leader, orphans, orphans_after, rescue, server, wait_until_heard};
use crate::support::{Ask, code, wait_for, wait_until};

#[test]
fn after_a_restart_nobody_is_known_and_nobody_is_taken() {
    let (cluster, mut client) = server(&[]);
    let alive = Process::start(&cluster, "alive", "u1", "[1]", Way::Member);
    let gone = Process::start(&cluster, "gone", "u2", "[2]", Way::Member);
    alive.fetches(&mut client, 1, "10 minutes");
    gone.fetches(&mut client, 2, "10 minutes");
    fetch(&mut client, 3, "elixir@host", "u3", "10 minutes");
    let nodes = "SELECT count(*) FROM oban_gossip";
    wait_until("both gossip", || client.one::<i64>(nodes) == 2);
    drop(gone);
    drop(alive);
    cluster.restart();
    let mut client = cluster.client();
    let mut leader = leader(&cluster);
    wait_until("all are listed", || orphans(&mut client) == "1 unknown, 2 unknown, 3 unknown");
    assert!(rescue(&mut leader, GRACE).is_empty());
    // A process that is heard again is known.
    let alive = Process::start(&cluster, "alive", "u1", "[1]", Way::Member);
    wait_until("it is heard", || orphans(&mut client) == "2 unknown, 3 unknown");
    assert!(rescue(&mut leader, GRACE).is_empty());
    drop(alive);
    wait_until("it is gone", || orphans(&mut client) == "1 gone, 2 unknown, 3 unknown");
    assert_eq!(rescue(&mut leader, GRACE), [1]);
}

/// Nodes of Oban without metrics never gossip. README's rescue runs again and again, and leaves them their
/// jobs. Another process gossips and ends: its job shows that the rescue works.
fn nodes_without_gossip_keep_their_jobs(at_least: Duration) {
    let (cluster, mut client) = server(&[]);
    let mut leader = leader(&cluster);
    // Oban for Elixir and Oban for Python write these nodes and uuids. The third node writes no uuid.
    fetch(&mut client, 1, "web@10.0.0.1", "9b2f0a1e-7a3c-4c3e-8f59-0123456789ab", "0s");
    fetch(&mut client, 2, "worker-7f9c", "0f8fad5bd9cb469fa16570867728950e", "1 hour");
    fetch(&mut client, 3, "alone", "", "1 hour");
    client
        .batch_execute(
            "UPDATE oban_jobs SET attempted_by = '{alone}' WHERE id = 3;
             UPDATE oban_jobs SET state = 'executing' WHERE id = 4",
        )
        .unwrap();
    let held = "SELECT count(*) FROM oban_jobs WHERE id <= 4 AND state = 'executing'";
    let since = Instant::now();
    let mut turns = 0;
    loop {
        client.batch_execute("UPDATE oban_jobs SET attempt = 0 WHERE id = 5").unwrap();
        let process = Process::start(&cluster, "gossips", &format!("u{turns}"), "[5]", Way::Put);
        process.fetches(&mut client, 5, "0s");
        wait_until("it gossips", || {
            client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE node = 'gossips'") == 1
        });
        drop(process);
        wait_until("what is lost is rescued", || rescue(&mut leader, "1s") == [5]);
        assert_eq!(client.one::<i64>(held), 4);
        turns += 1;
        if since.elapsed() >= at_least && turns >= 2 {
            break;
        }
    }
    assert_eq!(orphans_after(&mut client, "1s"), "1 unknown, 2 unknown, 3 unknown, 4 unknown");
}

#[test]
fn no_rescue_takes_a_job_of_a_node_without_gossip() {
    nodes_without_gossip_keep_their_jobs(Duration::ZERO);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_no_rescue_takes_a_job_of_a_node_without_gossip() {
    nodes_without_gossip_keep_their_jobs(Duration::from_secs(300));
}

#[test]
fn after_a_promotion_nobody_is_known_and_nobody_is_taken() {
    let (primary, mut client) = server(&[]);
    let process = Process::start(&primary, "a", "u1", "[1]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 1);
    let standby = Arc::new(primary.standby(&[]));
    primary.wait_for_standby(&standby);
    assert_eq!(code(&mut standby.client(), "SELECT * FROM oban_orphans()"), "55000");
    drop(process);
    standby.promote();
    let (mut client, mut leader) = (standby.client(), leader(&standby));
    wait_until("it is listed", || orphans(&mut client) == "1 unknown");
    let sql = "SELECT since > attempted_at AT TIME ZONE 'UTC' + interval '5 minutes'
               FROM oban_orphans(grace => '1s') JOIN oban_jobs USING (id)";
    assert!(client.one::<bool>(sql), "since the promotion");
    assert!(rescue(&mut leader, GRACE).is_empty());
    let process = Process::start(&standby, "a", "u1", "[1]", Way::Put);
    wait_until("it is known again", || orphans(&mut client).is_empty());
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 gone");
}

#[test]
fn what_is_heard_by_notify_counts_while_the_relay_listens() {
    let (cluster, mut client) = server(&[]);
    wait_until_heard(&mut client);
    let process = Process::start(&cluster, "elixir", "u1", "[1]", Way::Notify);
    process.fetches(&mut client, 1, "10 minutes");
    let heard = |client: &mut Client| {
        client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE node = 'elixir'") == 1
    };
    wait_until("it is heard", || heard(&mut client));
    // While the relay does not listen, silence says nothing.
    let set = |client: &mut Client, value: &str| {
        cluster.configure(&[&format!("obanrs.gossip_ingest = {value}")]);
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    set(&mut client, "off");
    wait_until("it is listed", || {
        let found = orphans(&mut client);
        assert!(["", "1 unknown"].contains(&&*found), "{found}");
        found == "1 unknown"
    });
    set(&mut client, "on");
    wait_until("it is heard", || orphans(&mut client).is_empty() && heard(&mut client));
    // A relay that is stopped does not hear anything either.
    let relay: i32 = client.one("SELECT pid FROM oban_workers WHERE kind = 'relay'");
    cluster.signal("STOP", relay);
    wait_until("it is listed", || {
        let found = orphans(&mut client);
        assert!(["", "1 unknown"].contains(&&*found), "{found}");
        found == "1 unknown"
    });
    cluster.signal("CONT", relay);
    wait_until("it is heard", || orphans(&mut client).is_empty() && heard(&mut client));
    drop(process);
    wait_until("it is gone", || {
        let found = orphans(&mut client);
        assert!(["", "1 unknown", "1 gone"].contains(&&*found), "{found}");
        found == "1 gone"
    });
}

/// A process that is forgotten because memory is full counts as one that was never heard.
#[test]
fn what_is_forgotten_is_unknown() {
    let (cluster, mut client) = server(&["obanrs.gossip_memory = 64kB"]);
    let mut leader = leader(&cluster);
    let process = Process::start(&cluster, "a", "u1", "[1]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 1);
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 gone");
    let others = "SELECT count(oban_gossip_put('b', 'q', jsonb_build_object('uuid', i))) FROM generate_series(1, 2000) i";
    let others = others.replace("'uuid', i", "'uuid', i::text");
    assert_eq!(client.one::<i64>(&others), 2000);
    assert_eq!(orphans(&mut client), "1 unknown");
    assert!(rescue(&mut leader, GRACE).is_empty());
    // The memory goes on working.
    let process = wait_for("another is remembered", || {
        let process = Process::start(&cluster, "c", "u3", "[3]", Way::Put);
        wait_until("it gossips", || {
            client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE node = 'c'") == 1
        });
        Some(process)
    });
    process.fetches(&mut client, 3, "10 minutes");
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 unknown, 3 gone");
}
