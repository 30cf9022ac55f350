//! Is each entry read whole and once, while others put, delete and expire?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::{Ask, Cluster, stat};

/// Each state carries a checksum of itself and the names of its entry. Two sessions put states of many sizes,
/// with long and short ttls. One deletes, and one reads.
#[test]
fn no_reading_is_torn() {
    read_while_others_write(1_000_000);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_no_reading_is_torn() {
    read_while_others_write(10_000_000);
}

fn read_while_others_write(readings: i64) {
    let cluster =
        Arc::new(Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_interval = 50ms"]));
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install();
             CREATE PROCEDURE put(many int, ttl interval) LANGUAGE plpgsql AS $$
             DECLARE body text; node text; queue text;
             BEGIN
                 FOR i IN 1..many LOOP
                     node := 'n' || (random() * 20)::int;
                     queue := 'q' || (random() * 10)::int;
                     body := repeat(md5(random()::text), (random() * CASE WHEN random() < 0.02 THEN 600 ELSE 12 END)::int);
                     PERFORM oban_gossip_put(node, queue, ttl => ttl * random() + interval '1 microsecond',
                         state => jsonb_build_object('of', node || queue, 'body', body, 'sum', md5(body)));
                 END LOOP;
             END $$",
        )
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let repeatedly = |sql: &'static str| {
        let (mut client, stop) = (cluster.client(), stop.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                client.batch_execute(sql).unwrap();
            }
        })
    };
    let others = [
        repeatedly("CALL put(1000, '1 hour')"),
        repeatedly("CALL put(1000, '20 milliseconds')"),
        repeatedly(
            "SELECT oban_gossip_delete('n' || (random() * 20)::int,
                        CASE WHEN random() < 0.9 THEN 'q' || (random() * 10)::int END)
             FROM generate_series(1, 20)",
        ),
    ];
    let look = "SELECT count(*), count(DISTINCT (node, queue)),
                       count(*) FILTER (WHERE md5(state->>'body') <> state->>'sum' OR state->>'of' <> node || queue)
                FROM oban_gossip";
    let (mut read, mut most) = (0, 0);
    while read < readings {
        let row = client.query_one(look, &[]).unwrap();
        let (rows, entries, torn): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((torn, entries), (0, rows), "after {read} readings");
        read += rows;
        most = most.max(rows);
    }
    stop.store(true, Ordering::Relaxed);
    others.into_iter().for_each(|other| other.join().unwrap());
    assert!(most > 50, "there was something to read: {most} at a time");
    for counter in ["gossip_puts", "gossip_expired", "gossip_broadcasts"] {
        assert!(stat(&mut client, counter) > 10, "{counter}");
    }
}

/// Other entries are read while two keys are deleted and put again.
#[test]
fn many_entries_are_read_once_each() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let sql = "SELECT count(oban_gossip_put('n' || i % 100, 'q' || i)) FROM generate_series(1, 9000) i";
    assert_eq!(client.one::<i64>(sql), 9000);
    let stop = Arc::new(AtomicBool::new(false));
    let mover = {
        let (mut client, stop) = (cluster.client(), stop.clone());
        thread::spawn(move || {
            let mut moved = 0;
            while !stop.load(Ordering::Relaxed) {
                client
                    .batch_execute(
                        "SELECT oban_gossip_delete('n1', 'q1'); SELECT oban_gossip_put('n1', 'q1')",
                    )
                    .unwrap();
                client
                    .batch_execute(
                        "SELECT oban_gossip_delete('n2', 'q2'); SELECT oban_gossip_put('n2', 'q2')",
                    )
                    .unwrap();
                moved += 1;
            }
            moved
        })
    };
    for _ in 0..100 {
        let row =
            client.query_one("SELECT count(*), count(DISTINCT (node, queue)) FROM oban_gossip", &[]).unwrap();
        let (rows, keys): (i64, i64) = (row.get(0), row.get(1));
        assert!(rows == keys && (8998..=9000).contains(&rows), "{rows} rows, {keys} keys");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(mover.join().unwrap() > 10);
}
