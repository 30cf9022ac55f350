//! Does every reader get each message, while sessions roll back and workers are terminated?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use super::{installed_with, poll, wait};
use crate::support::{Ask, PATIENCE, patiently, stat};

/// Eight sessions send, with rollbacks and savepoints. Six readers of each kind read. The workers are
/// terminated again and again.
#[test]
fn nothing_is_lost() {
    everything_arrives(100_000);
}

/// `make soak` runs it for longer.
#[test]
#[ignore = "minutes long: make soak"]
fn soak_nothing_is_lost() {
    everything_arrives(3_000_000);
}

fn everything_arrives(messages: usize) {
    const WRITERS: usize = 8;
    let cluster = Arc::new(installed_with(&["obanrs.ring_size = '256MB'", "obanrs.max_databases = 1"]));
    let mut admin = cluster.client();
    let start: i64 = admin.one("SELECT oban_position()");
    let stop = Arc::new(AtomicBool::new(false));

    let listeners: Vec<Client> = (0..6)
        .map(|_| {
            let mut client = cluster.client();
            client.batch_execute("SELECT oban_listen_channels('{insert,sonar}')").unwrap();
            client
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mut client = cluster.client();
            std::thread::spawn(move || write(&mut client, writer, messages / WRITERS))
        })
        .collect();
    let killer = {
        let (cluster, stop) = (cluster.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut killed = 0;
            let mut client = cluster.client();
            while !stop.load(Ordering::Relaxed) {
                // The workers end as fast as messages are sent. The readers may take longer than all messages
                // do.
                let before = stat(&mut client, "published");
                let more = |client: &mut Client| stat(client, "published") > before + 3_000;
                patiently(|| (more(&mut client) || stop.load(Ordering::Relaxed)).then_some(()));
                killed += client.one::<i64>("SELECT count(pg_terminate_backend(pid)) FROM oban_workers WHERE kind <> 'coordinator' AND pid IS NOT NULL");
            }
            killed
        })
    };
    // The last message of each writer ends the readers.
    let readers: Vec<_> = [false, true]
        .into_iter()
        .flat_map(|waits| (0..6).map(move |_| waits))
        .map(|waits| {
            let mut client = cluster.client();
            std::thread::spawn(move || {
                let (mut got, mut after, mut ended) = (Vec::new(), start, 0);
                while ended < WRITERS {
                    let arguments = format!("'{{sonar}}', {after}");
                    let answer =
                        if waits { wait(&mut client, &arguments) } else { poll(&mut client, &arguments) };
                    assert_eq!(answer.missed, Some(0));
                    assert!(answer.position >= after, "positions never go back");
                    after = answer.position;
                    ended += answer.payloads.iter().filter(|p| p["end"] == true).count();
                    got.extend(answer.payloads.iter().filter(|p| p["end"].is_null()).map(key));
                }
                got
            })
        })
        .collect();
    let listeners: Vec<_> = listeners
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                let (mut got, mut ended, mut done) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
                let mut notifications = client.notifications();
                let mut iter = notifications.timeout_iter(PATIENCE);
                while ended.len() < WRITERS || done.len() < WRITERS {
                    let n = iter
                        .next()
                        .unwrap()
                        .unwrap_or_else(|| panic!("nothing comes any more: {ended:?} {done:?}"));
                    let payload: Value = serde_json::from_str(n.payload()).unwrap();
                    match (n.channel(), &payload["end"]) {
                        ("public.oban_sonar", Value::Null) => got.push(key(&payload)),
                        ("public.oban_sonar", _) => {
                            ended.insert(payload["w"].as_i64());
                        }
                        _ => {
                            done.extend(
                                payload["queue"].as_str().unwrap().strip_prefix("last").map(str::to_owned),
                            );
                        }
                    }
                }
                got
            })
        })
        .collect();

    let sent: Vec<Vec<(i64, i64)>> = writers.into_iter().map(|w| w.join().unwrap()).collect();
    let sent: BTreeSet<(i64, i64)> = sent.into_iter().flatten().collect();
    for (i, reader) in readers.into_iter().enumerate() {
        let got = reader.join().unwrap();
        assert_eq!(got.len(), sent.len(), "reader {i}: each once");
        assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), sent, "reader {i}");
        in_order(&got);
    }
    for (i, listener) in listeners.into_iter().enumerate() {
        let got = listener.join().unwrap();
        assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), sent, "listener {i}");
        let mut seen = BTreeSet::new();
        in_order(&got.into_iter().filter(|m| seen.insert(*m)).collect::<Vec<_>>());
    }
    stop.store(true, Ordering::Relaxed);
    let killed = killer.join().unwrap();
    assert!(killed >= 4, "the workers were terminated {killed} times only");
    assert_eq!(stat(&mut admin, "gaps"), 0);
}

fn key(payload: &Value) -> (i64, i64) {
    (payload["w"].as_i64().unwrap(), payload["n"].as_i64().unwrap())
}

/// The messages of each session keep their order.
fn in_order(messages: &[(i64, i64)]) {
    let mut last = BTreeMap::new();
    for (writer, n) in messages {
        let before = last.insert(writer, n);
        assert!(before.is_none_or(|b| b < n), "writer {writer}: {n} after {before:?}");
    }
}

/// Sends so many messages and takes some of them back. Returns those that were committed.
fn write(client: &mut Client, writer: usize, messages: usize) -> Vec<(i64, i64)> {
    let mut random = 0x9E37_79B9_7F4A_7C15u64 ^ ((writer as u64 + 1) << 32);
    let mut dice = move |sides: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % sides
    };
    let mut sent = Vec::new();
    let mut n = 0i64;
    while (n as usize) < messages {
        let mut sql = String::from("BEGIN;");
        let mut kept = Vec::new();
        for _ in 0..=dice(4) {
            n += 1;
            let undone = dice(5) == 0;
            if undone {
                sql.push_str("SAVEPOINT s;");
            }
            sql.push_str(&format!("SELECT oban_notify('sonar', '{{\"w\":{writer},\"n\":{n}}}');"));
            if dice(10) == 0 {
                sql.push_str(&format!("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q{}');", dice(3)));
            }
            if undone {
                sql.push_str("ROLLBACK TO s;");
            } else {
                kept.push((writer as i64, n));
            }
        }
        if dice(6) == 0 {
            sql.push_str("ROLLBACK");
        } else {
            sql.push_str("COMMIT");
            sent.extend(kept);
        }
        client.batch_execute(&sql).unwrap();
    }
    let end = format!(
        "BEGIN; SELECT oban_notify('sonar', '{{\"w\":{writer},\"end\":true}}');
         INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'last{writer}'); COMMIT"
    );
    client.batch_execute(&end).unwrap();
    sent
}
