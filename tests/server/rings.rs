//! The rings of a server: which database has one, how much of one a role may fill, and what becomes of
//! messages in it when the relay does not come or can't send?

use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use super::bus::{end_thief, installed_with, poll, relay, wait_for_relay, without_relay};
use crate::support::{Ask, Cluster, PATIENCE, code, heard, stat, wait_until};

fn ping(n: i64) -> String {
    format!("SELECT oban_notify('sonar', '{{\"n\": {n}}}')")
}

fn number(payload: &str) -> Option<i64> {
    serde_json::from_str::<Value>(payload).expect("it is JSON")["n"].as_i64()
}

/// The role `stranger` may connect and has no other right. The role `tenant` owns the prefix `t`.
fn with_roles(settings: &[&str]) -> (Cluster, Client) {
    let cluster = installed_with(settings);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE stranger LOGIN; CREATE ROLE tenant LOGIN; CREATE ROLE boss LOGIN;
             SELECT oban_install('t'); ALTER SCHEMA t OWNER TO tenant; GRANT ALL ON t.oban_jobs TO tenant, boss;
             GRANT USAGE ON SEQUENCE t.oban_jobs_id_seq TO tenant, boss; GRANT USAGE ON SCHEMA t TO boss;
             ALTER DATABASE postgres OWNER TO boss",
        )
        .unwrap();
    (cluster, client)
}

/// Any role may send on verbatim channels. Only a role with a right to write sends them through the ring.
#[test]
fn a_role_without_a_right_to_write_leaves_the_ring_alone() {
    let (cluster, mut client) = with_roles(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN junk; LISTEN \"public.oban_sonar\"").unwrap();
    let start: i64 = client.one("SELECT oban_position()");
    client.batch_execute(&ping(1)).unwrap();
    let mut stranger = cluster.client_as("postgres", "stranger");
    let many = |from: i32, to: i32| {
        format!(
            "SELECT count(oban_notify('junk', jsonb_build_object('i', i), '')) FROM generate_series({from}, {to}) i"
        )
    };
    for n in 0..20 {
        stranger.batch_execute(&many(n * 500, n * 500 + 499)).unwrap();
    }
    stranger.batch_execute(&many(10_000, 29_999)).unwrap();
    let array = "SELECT oban_notify_many('junk', array_agg(jsonb_build_object('i', i)), '') FROM generate_series(30000, 30009) i";
    stranger.batch_execute(array).unwrap();
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}"));
    assert_eq!((answer.position, answer.missed, answer.payloads.len()), (start + 1, Some(0), 1));
    assert_eq!(stat(&mut client, "gaps"), 0);
    let mut junk: Vec<i64> = heard(&mut listener)
        .iter()
        .filter(|n| n.channel() == "junk")
        .map(|n| serde_json::from_str::<Value>(n.payload()).unwrap()["i"].as_i64().unwrap())
        .collect();
    junk.sort();
    assert_eq!(junk, (0..=30_009).collect::<Vec<_>>(), "LISTENers hear it all, each once");

    // A right to write somewhere lets a role send through the ring: INSERT, CREATE in a schema without the
    // table, INSERT on a partitioned table, or ownership of the database. Each call tests the right of its
    // own role.
    let enters = |client: &mut Client, sql: &str| {
        let before: i64 = client.one("SELECT oban_position()");
        client.batch_execute(sql).unwrap();
        client.one::<i64>("SELECT oban_position()") - before
    };
    let notify = "SELECT oban_notify('junk', '{}', '')";
    assert_eq!(enters(&mut stranger, notify), 0);
    assert_eq!(enters(&mut cluster.client_as("postgres", "boss"), notify), 1, "the database's owner");
    for (grant, revoke) in [
        ("GRANT INSERT ON t.oban_jobs TO stranger", "REVOKE ALL ON t.oban_jobs FROM stranger"),
        ("CREATE SCHEMA AUTHORIZATION stranger", "DROP SCHEMA stranger"),
        (
            "CREATE SCHEMA p; CREATE TABLE p.oban_jobs (id int) PARTITION BY LIST (id); GRANT INSERT ON p.oban_jobs TO stranger",
            "DROP SCHEMA p CASCADE",
        ),
    ] {
        client.batch_execute(grant).unwrap();
        assert_eq!(enters(&mut stranger, notify), 1, "{grant}");
        client.batch_execute(revoke).unwrap();
        assert_eq!(enters(&mut stranger, notify), 0, "{revoke}");
    }
    client.batch_execute("GRANT stranger TO boss").unwrap();
    let mixed = format!("BEGIN; {notify}; SET LOCAL ROLE stranger; {notify}; COMMIT");
    assert_eq!(enters(&mut client, &mixed), 1, "once for each of both kinds of readers");
    stranger.batch_execute("CREATE TEMP TABLE oban_jobs (id int)").unwrap();
    assert_eq!(enters(&mut stranger, notify), 0, "a temporary table is no prefix");
}

/// While the relay stands still, a role's wakeups take its share of the ring and no more.
#[test]
fn a_role_has_a_share_of_what_waits() {
    let (cluster, mut client) = with_roles(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"t.oban_insert\"; LISTEN \"public.oban_sonar\"").unwrap();
    let pid = wait_for_relay(&cluster);
    let start: i64 = client.one("SELECT oban_position()");
    cluster.signal("STOP", pid);
    let entries = 8 * 1024 * 1024 / 192;
    let insert = |client: &mut Client, from: i64, to: i64| {
        let sql = format!(
            "INSERT INTO t.oban_jobs (worker, queue) SELECT 'w', 'q' || i FROM generate_series({from}, {to}) i"
        );
        client.batch_execute(&sql).unwrap();
    };
    let mut tenant = cluster.client_as("postgres", "tenant");
    insert(&mut tenant, 1, 20_000);
    assert_eq!(stat(&mut client, "ring_waiting"), 0, "more than a quarter of the entries");
    assert_eq!(stat(&mut client, "gaps"), 1);
    for n in 0..20 {
        insert(&mut tenant, 20_001 + n * 1_000, 21_000 + n * 1_000);
    }
    let share = (entries / 4) / 1_000 * 1_000;
    assert_eq!(stat(&mut client, "ring_waiting"), share);
    // An abort gives back what the transaction had reserved, and no more.
    tenant
        .batch_execute("BEGIN; INSERT INTO t.oban_jobs (worker, queue) VALUES ('w', 'undone'); ROLLBACK")
        .unwrap();
    // A role that acts as another, the owner of the database, and a superuser have shares of their own.
    client.batch_execute(&ping(1)).unwrap();
    assert_eq!(stat(&mut client, "ring_waiting"), share + 1);
    let mut boss = cluster.client_as("postgres", "boss");
    insert(&mut boss, 50_001, 65_000);
    assert_eq!(stat(&mut client, "ring_waiting"), share + 15_001, "the database's owner");
    insert(&mut client, 70_001, 70_010);
    assert_eq!(stat(&mut client, "ring_waiting"), share + 15_011, "a superuser");
    client
        .batch_execute("BEGIN; SET LOCAL ROLE tenant; INSERT INTO t.oban_jobs (worker, queue) SELECT 'w', 's' || i FROM generate_series(1, 1000) i; COMMIT")
        .unwrap();
    assert_eq!(stat(&mut client, "ring_waiting"), share + 15_011, "it counts as the role that it acts as");
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}"));
    assert_eq!(answer.payloads.len(), 1, "in spite of all that, what others sent is there");
    cluster.signal("CONT", pid);
    wait_until("all was passed", || stat(&mut client, "ring_waiting") == 0);
    // The relay has made room.
    cluster.signal("STOP", pid);
    insert(&mut tenant, 80_001, 81_000);
    assert_eq!(stat(&mut client, "ring_waiting"), 1_000);
    cluster.signal("CONT", pid);
    let heard: std::collections::BTreeSet<String> =
        heard(&mut listener).into_iter().map(|n| n.payload().to_owned()).collect();
    assert_eq!(heard.len(), 20_000 + 20_000 + 1 + 15_000 + 10 + 1_000 + 1_000, "LISTENers hear everything");
}

/// Bytes count as well as entries. A share that was given back is whole again.
#[test]
fn a_share_is_of_bytes_too() {
    let (cluster, mut client) = with_roles(&["obanrs.ring_size = '1MB'", "obanrs.role_share = 10"]);
    client
        .batch_execute("GRANT INSERT ON t.oban_jobs TO stranger; GRANT USAGE ON SCHEMA t TO stranger")
        .unwrap();
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}', 't')").unwrap();
    let pid = wait_for_relay(&cluster);
    let start: i64 = client.one("SELECT oban_position()");
    cluster.signal("STOP", pid);
    let mut stranger = cluster.client_as("postgres", "stranger");
    let send = |client: &mut Client, n: i32| {
        let payload = format!(
            "jsonb_build_object('n', {n}, 'x', (SELECT string_agg(md5((i * {n})::text), '') FROM generate_series(1, 120) i))"
        );
        client.batch_execute(&format!("SELECT oban_notify('sonar', {payload}, 't')")).unwrap();
    };
    for n in 1..=40 {
        send(&mut stranger, n);
    }
    let waiting = stat(&mut client, "ring_waiting");
    assert!((10..30).contains(&waiting), "a tenth of a megabyte: {waiting}");
    for n in 41..=60 {
        send(&mut client, n);
    }
    assert_eq!(stat(&mut client, "ring_waiting"), waiting + 20);
    cluster.signal("CONT", pid);
    let mut numbers: Vec<i64> = heard(&mut listener).iter().filter_map(|n| number(n.payload())).collect();
    numbers.sort();
    assert_eq!(numbers, (1..=60).collect::<Vec<_>>());
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}, prefix => 't'"));
    assert_eq!(answer.missed, Some(40 - waiting));
}

/// The relay ends again and again, and then there are no commits any more. The listener still hears all that
/// waits.
#[test]
fn after_many_ends_of_the_relay_and_silence_everything_is_heard() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (sent, since) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (mut client, stop) = (cluster.client(), &stop);
                scope.spawn(move || {
                    let mut n = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        n += 1;
                        client.batch_execute(&ping(writer * 1_000_000 + n)).unwrap();
                        std::thread::sleep(Duration::from_millis(2)); // keeps the ring from being full
                    }
                    (1..=n).map(move |n| writer * 1_000_000 + n)
                })
            })
            .collect();
        let mut client = cluster.client();
        for _ in 0..10 {
            let pid = wait_for_relay(&cluster);
            client.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
            wait_until("it ends", || relay(&cluster) != Some(pid));
        }
        // (A relay that is busy must not be stopped by a signal here, because it may hold the ring's lock.)
        wait_until("messages wait", || stat(&mut client, "ring_waiting") > 20);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent: Vec<i64> = writers.into_iter().flat_map(|w| w.join().unwrap()).collect();
        (sent, Instant::now())
    });
    let mut left: std::collections::BTreeSet<i64> = sent.into_iter().collect();
    let mut notifications = listener.notifications();
    let mut iter = notifications.timeout_iter(PATIENCE);
    while !left.is_empty() {
        let next = iter.next().unwrap().unwrap_or_else(|| panic!("{} are not heard", left.len()));
        left.remove(&number(next.payload()).unwrap());
    }
    let delay = since.elapsed();
    println!("the last one was heard {delay:?} after the last commit");
    assert!(delay < Duration::from_secs(13), "{delay:?}");
}

/// There is no relay, and none can start. The keeper sends what waits.
#[test]
fn what_waits_for_a_relay_that_cannot_start_is_heard() {
    let (cluster, mut listener, thief) = without_relay(&[], |cluster| {
        let mut listener = cluster.client();
        listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
        let mut client = cluster.client();
        (1..=5).for_each(|n| client.batch_execute(&ping(n)).unwrap());
        // These equal messages mean something each.
        (1..=3).for_each(|_| client.batch_execute(&ping(6)).unwrap());
        listener
    });
    let mut client = cluster.client();
    assert_eq!(stat(&mut client, "ring_waiting"), 8, "they wait for a relay");
    let since = Instant::now();
    let mut notifications = listener.notifications();
    let mut iter = notifications.timeout_iter(PATIENCE);
    let mut next = || number(iter.next().unwrap().expect("it is heard").payload()).unwrap();
    let heard: Vec<i64> = (0..8).map(|_| next()).collect();
    let delay = since.elapsed();
    assert_eq!(heard, [1, 2, 3, 4, 5, 6, 6, 6]);
    println!("heard {delay:?} after the relay's end");
    assert!(delay < Duration::from_secs(12), "{delay:?}");
    assert_eq!(relay(&cluster), None, "it has not come");
    wait_until("nothing waits", || stat(&mut client, "ring_waiting") == 0);
    // When a relay can start, it starts soon.
    end_thief(&mut client, thief);
    wait_for_relay(&cluster);
}

const MESSAGES: i64 = 400;

/// Hears MESSAGES messages, and asserts their order.
fn hear_all(client: &mut Client) {
    let mut heard = Vec::new();
    let mut notifications = client.notifications();
    let mut iter = notifications.timeout_iter(PATIENCE);
    while heard.last() != Some(&MESSAGES) {
        let next = iter.next().unwrap().unwrap_or_else(|| panic!("only {heard:?} are heard"));
        heard.push(number(next.payload()).unwrap());
    }
    heard.dedup();
    assert_eq!(heard, (1..=MESSAGES).collect::<Vec<_>>());
}

/// A listener that stays in its transaction makes NOTIFY's queue fill. When it has read on, each listener
/// hears what waited.
#[test]
fn a_queue_of_notify_that_was_full_is_gone_on_with() {
    if installed_with(&[]).client().one::<bool>("SELECT current_setting('server_version_num')::int < 170000")
    {
        return; // NOTIFY's queue has 8 GB
    }
    let cluster = installed_with(&["max_notify_queue_pages = 64"]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut other = cluster.client();
    other.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    // The session of a client that does not read stands still, too.
    let other = std::thread::spawn(move || hear_all(&mut other));
    listener.batch_execute("BEGIN; SELECT 1").unwrap();
    let mut client = cluster.client();
    for n in 1..=MESSAGES {
        let payload = format!(
            "jsonb_build_object('n', {n}, 'x', (SELECT string_agg(md5((i * {n})::text), '') FROM generate_series(1, 125) i))"
        );
        client.batch_execute(&format!("SELECT oban_notify('sonar', {payload})")).unwrap();
    }
    wait_until("the queue is full", || cluster.log().contains("can't relay"));
    let waiting = stat(&mut client, "ring_waiting");
    assert!(waiting > 100, "{waiting}");
    let since = Instant::now();
    listener.batch_execute("COMMIT").unwrap();
    hear_all(&mut listener);
    other.join().unwrap();
    let delay = since.elapsed();
    println!("all were heard {delay:?} after the listener's COMMIT");
    assert!(delay < Duration::from_secs(20), "{delay:?}");
}

/// A transaction that is larger than NOTIFY's queue fails. It leaves the queue full of messages that are
/// never sent.
#[test]
fn a_queue_of_notify_that_a_failed_transaction_has_filled_is_emptied() {
    let cluster = installed_with(&[]);
    if cluster.client().one::<bool>("SELECT current_setting('server_version_num')::int < 170000") {
        return; // NOTIFY's queue has 8 GB
    }
    cluster.configure(&["max_notify_queue_pages = 64"]);
    cluster.restart();
    wait_for_relay(&cluster);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut client = cluster.client();
    let large = "SELECT count(pg_notify('other', n || repeat('x', 7000))) FROM generate_series(1, 100) n";
    assert_eq!(code(&mut client, large), "54000");
    assert_eq!(code(&mut client, "NOTIFY other"), "54000");
    client.batch_execute(&ping(1)).unwrap();
    let mut notifications = listener.notifications();
    let next = notifications.timeout_iter(PATIENCE).next().unwrap().expect("it is heard");
    assert_eq!(number(next.payload()), Some(1));
}

/// There are more databases than rings. A database without a ring sends natively, says so, and gets a ring
/// that is given back.
#[test]
fn databases_take_rings_as_they_need_them() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_rings = 2"]);
    let mut clients = Vec::new();
    for name in ["one", "two", "three"] {
        cluster.client().batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        let mut client = cluster.client_of(name);
        client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
        let running =
            "SELECT count(*) = 3 FROM oban_workers WHERE state = 'running' AND database = current_database()";
        wait_until("its workers run", || client.one(running));
        clients.push(client);
    }
    let check = |client: &mut Client| -> (bool, String) {
        let row = client.query_one("SELECT ok, detail FROM oban_check() WHERE item = 'ring'", &[]).unwrap();
        (row.get(0), row.get(1))
    };
    // The extension, members and counters take no ring.
    clients[0].batch_execute("SELECT oban_join('a')").unwrap();
    assert_eq!(stat(&mut clients[0], "ring_bytes"), 0);
    assert!(stat(&mut clients[0], "elections") > 0);
    assert!(check(&mut clients[0]).1.contains("one of 2"), "{:?}", check(&mut clients[0]));
    // The first message takes a ring. The relay that ran before sends the message.
    let send = "INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')";
    let mut listener = cluster.client_of("three");
    listener.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    clients[2].batch_execute(send).unwrap();
    assert_eq!(heard(&mut listener).len(), 1);
    let after = clients[2].one::<i64>("SELECT oban_position()");
    clients[2].batch_execute(send).unwrap();
    assert_eq!(heard(&mut listener).len(), 1);
    assert!(stat(&mut clients[2], "relayed") > 0);
    assert_eq!(check(&mut clients[2]), (true, "this database has one".into()));
    // The first reader takes a ring as well.
    clients[1].one::<i64>("SELECT oban_position()");
    assert!(stat(&mut clients[1], "ring_bytes") > 0);
    // No ring is left.
    let (ok, detail) = check(&mut clients[0]);
    assert!(!ok && detail.contains("obanrs.max_rings"), "{detail}");
    for sql in ["SELECT oban_position()", "SELECT * FROM oban_poll()", "CALL oban_wait(timeout => '0')"] {
        let error = clients[0].batch_execute(sql).unwrap_err();
        let error = error.as_db_error().expect("the server's");
        assert_eq!(error.code().code(), "53400", "{sql}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("obanrs.max_rings") && !hint.contains("entries"), "{error:?}");
    }
    let mut native = cluster.client_of("one");
    native.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    clients[0].batch_execute(send).unwrap();
    clients[0].batch_execute("SELECT oban_notify('insert', '{}')").unwrap();
    assert_eq!(heard(&mut native).len(), 2);
    // The third is the last message that `heard` sends.
    assert_eq!((stat(&mut clients[0], "native"), stat(&mut clients[0], "native_fallbacks")), (3, 3));
    // Another database gets the ring that was given back, without any entry of the first database.
    clients[2].batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("a ring is free", || check(&mut clients[0]).0);
    let position: i64 = clients[0].one("SELECT oban_position()");
    assert!(position > after, "{position} {after}");
    assert_eq!(poll(&mut clients[0], "'{insert}', 0").payloads.len(), 0);
    clients[0].batch_execute(send).unwrap();
    assert_eq!(poll(&mut clients[0], &format!("'{{insert}}', {position}")).payloads.len(), 1);
    clients[2].batch_execute("CREATE EXTENSION obanrs").unwrap();
    wait_until("it has its slot", || clients[2].one("SELECT count(*) > 0 FROM oban_stats"));
    assert_eq!(stat(&mut clients[2], "published"), 0, "counted since it has this slot");
    assert_eq!(code(&mut clients[2], "SELECT oban_position()"), "53400");
}
