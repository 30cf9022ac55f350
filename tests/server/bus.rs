//! The bus: what is committed reaches every kind of reader, whatever happens to readers, relay and ring.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use crate::support::{Ask, Cluster, PATIENCE, Stuck, code, heard, patiently, stat, wait_for, wait_until};

/// What oban_poll or oban_wait answered.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub position: i64,
    pub missed: Option<i64>,
    pub payloads: Vec<Value>,
}

impl Answer {
    fn of(row: &postgres::Row) -> Self {
        let Value::Array(messages) = row.get("messages") else { panic!("messages are an array") };
        let payloads = messages.into_iter().map(|mut m| m["payload"].take()).collect();
        Self { position: row.get("position"), missed: row.get("missed"), payloads }
    }
}

pub fn poll(client: &mut Client, arguments: &str) -> Answer {
    let row = client.query_one(&format!("SELECT * FROM oban_poll({arguments})"), &[]);
    Answer::of(&row.unwrap_or_else(|e| panic!("oban_poll({arguments}): {e:?}")))
}

pub fn wait(client: &mut Client, arguments: &str) -> Answer {
    let row = client.query_one(&format!("CALL oban_wait({arguments})"), &[]);
    Answer::of(&row.unwrap_or_else(|e| panic!("oban_wait({arguments}): {e:?}")))
}

pub fn installed_with(settings: &[&str]) -> Cluster {
    let mut lines = vec!["shared_preload_libraries = 'obanrs'"];
    lines.extend(settings);
    let cluster = Cluster::start(&lines);
    cluster.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    wait_for_relay(&cluster);
    cluster
}

pub fn relay(cluster: &Cluster) -> Option<i32> {
    let sql = "SELECT pid FROM oban_workers WHERE kind = 'relay' AND state = 'running' AND database = current_database()";
    cluster.client().query_opt(sql, &[]).unwrap().map(|row| row.get(0))
}

pub fn wait_for_relay(cluster: &Cluster) -> i32 {
    wait_for("the relay runs", || relay(cluster))
}

fn ping(n: i64) -> String {
    format!("SELECT oban_notify('sonar', '{{\"n\": {n}}}')")
}

fn numbers(payloads: &[Value]) -> Vec<i64> {
    payloads.iter().map(|p| p["n"].as_i64().expect("a number")).collect()
}

#[test]
fn a_reader_goes_on_where_it_was() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let start = poll(&mut client, "");
    assert_eq!((start.missed, start.payloads.len()), (Some(0), 0), "from now on");
    assert_eq!(client.one::<i64>("SELECT oban_position()"), start.position);
    for n in 1..=5 {
        client.batch_execute(&ping(n)).unwrap();
    }
    client.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')").unwrap();
    let from = |after: i64, most: i32| format!("'{{sonar}}', {after}, {most}");
    let first = poll(&mut client, &from(start.position, 3));
    assert_eq!((first.position, first.missed), (start.position + 3, Some(0)));
    assert_eq!(numbers(&first.payloads), [1, 2, 3]);
    let second = poll(&mut client, &from(first.position, 3));
    assert_eq!(numbers(&second.payloads), [4, 5]);
    assert_eq!(second.position, start.position + 6, "past what is on other channels");
    assert_eq!(poll(&mut client, &from(second.position, 3)), Answer { payloads: vec![], ..second });

    // A message whole: the short channel, the position, when it was sent.
    let sql = format!("SELECT messages->0 FROM oban_poll(after => {})", start.position + 5);
    let message: Value = client.one(&sql);
    assert_eq!(message["channel"], "insert");
    assert_eq!(message["seq"], start.position + 6);
    assert_eq!(message["payload"], serde_json::json!({"queue": "q"}));
    let age: bool = client.one(&format!(
        "SELECT clock_timestamp() - '{}' BETWEEN '0' AND '1 minute'",
        message["sent_at"].as_str().unwrap()
    ));
    assert!(age);
    // The same by waiting, and by name.
    let waited = wait(
        &mut client,
        &format!("channels => '{{sonar}}', after => {}, max_messages => 2", start.position),
    );
    assert_eq!(numbers(&waited.payloads), [1, 2]);
    let nothing = wait(&mut client, "timeout => '1 millisecond'");
    assert_eq!((nothing.position, nothing.missed, nothing.payloads), (start.position + 6, Some(0), vec![]));
}

/// The wildest mix: eight sessions send, with rollbacks and savepoints, six of each kind read, and the workers
/// are terminated again and again.
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
                // As fast as messages are sent; the readers may take longer than all of them do.
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

/// Sends so many messages, some of which are taken back; those that were not.
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

#[test]
fn pause_resume_pause_arrives_as_three() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{signal,sonar,insert}')").unwrap();
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    for action in ["pause", "resume", "pause"] {
        for channel in ["signal", "sonar"] {
            client
                .batch_execute(&format!("SELECT oban_notify('{channel}', '{{\"action\": \"{action}\"}}')"))
                .unwrap();
        }
    }
    let expected = ["pause", "resume", "pause"].map(|a| format!("{{\"action\":\"{a}\"}}"));
    let heard = heard(&mut listener);
    for channel in ["public.oban_signal", "public.oban_sonar"] {
        let payloads: Vec<&str> =
            heard.iter().filter(|n| n.channel() == channel).map(|n| n.payload()).collect();
        assert_eq!(payloads, expected, "{channel}");
    }
    let actions = |channel: &str, client: &mut Client| -> Vec<Value> {
        let answer = poll(client, &format!("'{{{channel}}}', {after}"));
        answer.payloads.into_iter().map(|mut p| p["action"].take()).collect()
    };
    assert_eq!(actions("signal", &mut client), ["pause", "resume", "pause"]);
    assert_eq!(actions("sonar", &mut client), ["pause", "resume", "pause"]);
}

/// The rows of a message's transaction can be seen by whoever has received it.
#[test]
fn rows_are_visible_when_their_message_arrives() {
    const ROWS: i64 = 10_000;
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE seen (n bigint PRIMARY KEY)").unwrap();
    let mut after: i64 = client.one("SELECT oban_position()");
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let (mut waiter, mut looker) = (cluster.client(), cluster.client());
    let (mut second, mut third) = (cluster.client(), cluster.client());
    let listener = std::thread::spawn(move || {
        let missing = looker.prepare("SELECT 1 FROM seen WHERE n = $1").unwrap();
        let (mut misses, mut got) = (0, 0);
        let mut notifications = listener.notifications();
        let mut iter = notifications.timeout_iter(PATIENCE);
        while got < ROWS {
            let n: Value = serde_json::from_str(iter.next().unwrap().expect("it comes").payload()).unwrap();
            misses +=
                usize::from(looker.query_opt(&missing, &[&n["n"].as_i64().unwrap()]).unwrap().is_none());
            got += 1;
        }
        misses
    });
    let waiter = std::thread::spawn(move || {
        let seen = waiter.prepare("SELECT count(*) FROM seen WHERE n = ANY ($1)").unwrap();
        let (mut misses, mut got) = (0, 0);
        while got < ROWS {
            let answer = wait(&mut waiter, &format!("'{{sonar}}', {after}"));
            after = answer.position;
            let there: i64 = waiter.query_one(&seen, &[&numbers(&answer.payloads)]).unwrap().get(0);
            misses += answer.payloads.len() as i64 - there;
            got += answer.payloads.len() as i64;
        }
        misses
    });
    let writers = [(&mut second, 0), (&mut third, 1)];
    std::thread::scope(|scope| {
        for (client, odd) in writers {
            scope.spawn(move || {
                let sql = "WITH i AS (INSERT INTO seen VALUES ($1) RETURNING n) SELECT oban_notify('sonar', jsonb_build_object('n', n)) FROM i";
                let send = client.prepare(sql).unwrap();
                for n in (0..ROWS).filter(|n| n % 2 == odd) {
                    client.execute(&send, &[&n]).unwrap();
                }
            });
        }
    });
    assert_eq!((listener.join().unwrap(), waiter.join().unwrap()), (0, 0), "misses");
}

#[test]
fn a_reader_that_was_away_gets_everything_or_is_told_how_much_it_missed() {
    let cluster = installed_with(&["obanrs.ring_size = '2MB'"]);
    let mut client = cluster.client();
    let start: i64 = client.one("SELECT oban_position()");
    let send = |client: &mut Client, from: i64, to: i64| {
        let sql = format!(
            "SELECT oban_notify('sonar', jsonb_build_object('n', n)) FROM generate_series({from}, {to}) n"
        );
        client.batch_execute(&sql).unwrap();
    };
    send(&mut client, 1, 10_000);
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}, 20000"));
    assert_eq!((answer.position, answer.missed), (start + 10_000, Some(0)));
    assert_eq!(numbers(&answer.payloads), (1..=10_000).collect::<Vec<_>>());

    send(&mut client, 10_001, 20_000);
    send(&mut client, 20_001, 30_000);
    let answer = wait(&mut client, &format!("'{{sonar}}', {start}, max_messages => 40000"));
    let (missed, got) = (answer.missed.unwrap(), numbers(&answer.payloads));
    assert!(missed > 0 && got.len() > 5_000, "{missed} {}", got.len());
    assert_eq!(got, (missed + 1..=30_000).collect::<Vec<_>>(), "what was missed, and the rest");
    assert_eq!(answer.position, start + 30_000);
    // In portions it is the same.
    let (mut after, mut total) = (start, 0);
    while after < start + 30_000 {
        let answer = poll(&mut client, &format!("'{{sonar}}', {after}, 777"));
        total += answer.missed.unwrap() + answer.payloads.len() as i64;
        after = answer.position;
    }
    assert_eq!(total, 30_000);
}

/// The relay stands still. Writers never wait, nothing is lost for listeners, and readers are told of gaps.
#[test]
fn a_ring_kept_full_blocks_nobody_and_loses_nothing_for_listeners() {
    let cluster = installed_with(&["obanrs.ring_size = '64kB'"]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut client = cluster.client();
    let start: i64 = client.one("SELECT oban_position()");
    let pid = wait_for_relay(&cluster);
    cluster.signal("STOP", pid);
    for n in 1..=2_000 {
        client.batch_execute(&ping(n)).unwrap();
    }
    let (gaps, waiting) = (stat(&mut client, "gaps"), stat(&mut client, "ring_waiting"));
    assert!(gaps > 100 && waiting > 100, "{gaps} {waiting}");
    assert_eq!(gaps + waiting, 2_000);
    assert_eq!(stat(&mut client, "native_fallbacks"), gaps);
    let answer = poll(&mut client, &format!("'{{sonar}}', {start}, 5000"));
    assert_eq!(answer.missed, Some(gaps));
    assert_eq!(numbers(&answer.payloads), (1..=waiting).collect::<Vec<_>>());
    assert_eq!(answer.position, start + 2_000);
    // Who waits is told of a gap at once.
    let mut waiter = cluster.client();
    let last = answer.position;
    let waiting_thread =
        std::thread::spawn(move || wait(&mut waiter, &format!("'{{other}}', {last}, '30s'")));
    wait_until("it waits", || {
        client.one(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CALL%' AND wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker')",
        )
    });
    client.batch_execute(&ping(2_001)).unwrap();
    let told = waiting_thread.join().unwrap();
    assert_eq!(told, Answer { position: last + 1, missed: Some(1), payloads: vec![] });
    cluster.signal("CONT", pid);
    // While the ring is full, what is sent overtakes what waits in it, also the message that `heard` waits for.
    wait_until("the relay has sent it", || stat(&mut client, "ring_waiting") == 0);
    let mut got: Vec<i64> = heard(&mut listener)
        .iter()
        .map(|n| numbers(&[serde_json::from_str(n.payload()).unwrap()])[0])
        .collect();
    got.sort();
    assert_eq!(got, (1..=2_001).collect::<Vec<_>>());
    assert_eq!(stat(&mut client, "ring_waiting"), 0);
}

/// What a waiting session may not do, and all that ends it.
#[test]
fn a_waiter_holds_nothing_and_obeys() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin.batch_execute("SELECT oban_install('other')").unwrap();
    let waiting = |cluster: &Cluster, database: &str| {
        let mut client = cluster.client_of(database);
        let pid: i32 = client.one("SELECT pg_backend_pid()");
        let thread = std::thread::spawn(move || {
            let row = client.query_one("CALL oban_wait('{sonar}', timeout => '1 hour')", &[]);
            // The driver may find the connection closed before it has read why.
            let code = |e: postgres::Error| e.code().map_or("57P01".into(), |c| c.code().to_owned());
            row.map(|row| Answer::of(&row)).map_err(code)
        });
        let mut admin = cluster.client();
        let sql = format!(
            "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
        );
        wait_until("it waits", || admin.one::<Option<bool>>(&sql) == Some(true));
        (pid, thread)
    };
    let (pid, thread) = waiting(&cluster, "postgres");
    let holds = format!(
        "SELECT backend_xmin IS NULL AND backend_xid IS NULL
             AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype <> 'virtualxid')
         FROM pg_stat_activity a WHERE pid = {pid}"
    );
    assert!(admin.one::<bool>(&holds), "no snapshot, no transaction id, no lock");
    // It sleeps through what concerns others: another channel, another prefix, the verbatim namesake.
    let switches = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap().to_owned();
        line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()
    };
    let before = switches(pid);
    for n in 0..200 {
        admin.batch_execute(&format!("SELECT oban_notify('gossip', '{{\"n\":{n}}}'), oban_notify('sonar', '{{\"n\":{n}}}', 'other'), oban_notify('public.oban_sonar', '{{\"n\":{n}}}', '')")).unwrap();
    }
    assert_eq!(switches(pid), before, "nothing wakes it");
    admin.batch_execute(&ping(7)).unwrap();
    let answer = thread.join().unwrap().unwrap();
    assert_eq!((numbers(&answer.payloads), answer.missed), (vec![7], Some(0)));

    let (pid, thread) = waiting(&cluster, "postgres");
    admin.execute("SELECT pg_cancel_backend($1)", &[&pid]).unwrap();
    assert_eq!(thread.join().unwrap(), Err("57014".into()));
    let (pid, thread) = waiting(&cluster, "postgres");
    admin.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    assert_eq!(thread.join().unwrap(), Err("57P01".into()));
    admin.batch_execute(&ping(8)).unwrap();

    admin.batch_execute("CREATE DATABASE doomed").unwrap();
    cluster.client_of("doomed").batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let (_, thread) = waiting(&cluster, "doomed");
    admin.batch_execute("DROP DATABASE doomed WITH (FORCE)").unwrap();
    assert_eq!(thread.join().unwrap(), Err("57P01".into()));

    // A client that went away without a word.
    let mut shell = cluster.shell();
    let pid: i32 = shell.ask("SELECT pg_backend_pid()").parse().unwrap();
    shell.tell("CALL oban_wait(timeout => '1 hour')");
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    let waits = format!("{sql} AND wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker')");
    wait_until("it waits", || admin.one::<i64>(&waits) == 1);
    shell.kill();
    wait_until("its session is gone, too", || admin.one::<i64>(&sql) == 0);

    // DROP EXTENSION makes a waiter look again: there is nothing to wait for any more.
    admin.batch_execute("CREATE DATABASE plain").unwrap();
    let mut plain = cluster.client_of("plain");
    plain.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let (_, thread) = waiting(&cluster, "plain");
    plain.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    assert_eq!(thread.join().unwrap(), Err("55000".into()));

    let (_, thread) = waiting(&cluster, "postgres");
    cluster.stop("fast");
    assert_eq!(thread.join().unwrap(), Err("57P01".into()));
}

/// Positions never go back: not over a restart, nor a crash, nor with the extension made anew.
#[test]
fn positions_never_go_back() {
    let cluster = installed_with(&[]);
    let mut last = 0;
    let mut further = |client: &mut Client, what: &str| {
        let position: i64 = client.one("SELECT oban_position()");
        assert!(position > last, "{what}: {position} after {last}");
        client.batch_execute(&ping(1)).unwrap();
        // A reader from before gets what there is, and hears that nobody knows what it missed.
        let answer = poll(client, &format!("'{{sonar}}', {last}, 5"));
        assert_eq!((answer.missed, answer.payloads.len()), (None, 1), "{what}");
        last = answer.position;
    };
    further(&mut cluster.client(), "at first");
    cluster.restart();
    further(&mut cluster.client(), "after a restart");
    cluster.stop("immediate");
    cluster.start_again();
    further(&mut cluster.client(), "after a crash");
    let mut client = cluster.client();
    client.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("its slot is free", || relay_is_gone(&cluster));
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    further(&mut client, "after CREATE EXTENSION");
    // From a server that was ahead.
    let answer = poll(&mut client, "'{sonar}', 9000000000000000000");
    assert_eq!((answer.missed, answer.payloads.len()), (None, 1));
}

fn relay_is_gone(cluster: &Cluster) -> bool {
    let sql = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'obanrs relay'";
    cluster.client().one(sql)
}

#[test]
fn the_notifier_is_chosen_by_session_role_database_or_function() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE ROLE nat LOGIN; GRANT INSERT ON oban_jobs TO nat; ALTER ROLE nat SET obanrs.notifier = 'postgres';
             CREATE FUNCTION natively(n int) RETURNS void LANGUAGE sql SET obanrs.notifier = 'postgres'
                 AS 'SELECT oban_notify(''sonar'', jsonb_build_object(''n'', n))'",
        )
        .unwrap();
    let mut role = cluster.client_as("postgres", "nat");
    let pid = |client: &mut Client| client.one::<i32>("SELECT pg_backend_pid()");
    let own = (pid(&mut admin), pid(&mut role));
    let start: i64 = admin.one("SELECT oban_position()");
    role.batch_execute(&ping(1)).unwrap();
    admin.batch_execute(&ping(2)).unwrap();
    admin.batch_execute("SET obanrs.notifier = postgres").unwrap();
    admin.batch_execute(&ping(3)).unwrap();
    admin.batch_execute("RESET obanrs.notifier").unwrap();
    admin.batch_execute("SELECT natively(4)").unwrap();
    admin
        .batch_execute(&format!(
            "BEGIN; SET LOCAL obanrs.notifier = postgres; {}; COMMIT; {}",
            ping(5),
            ping(6)
        ))
        .unwrap();
    assert!(admin.batch_execute("SET obanrs.notifier = 'redis'").is_err());
    let mut from: Vec<(i64, i32)> = heard(&mut listener)
        .iter()
        .map(|n| (numbers(&[serde_json::from_str(n.payload()).unwrap()])[0], n.process_id()))
        .collect();
    from.sort();
    let relay = wait_for_relay(&cluster);
    assert_eq!(from, [(1, own.1), (2, relay), (3, own.0), (4, own.0), (5, own.0), (6, relay)]);
    // Readers of the ring get them all.
    let answer = poll(&mut admin, &format!("'{{sonar}}', {start}"));
    assert_eq!(numbers(&answer.payloads), [1, 2, 3, 4, 5, 6]);
}

/// A relay transaction that nobody hears is none.
#[test]
fn what_nobody_listens_to_is_not_relayed() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let mut listener = cluster.client();
    let mut n = 0;
    let mut relays = |client: &mut Client| {
        let before = (stat(client, "relay_transactions"), stat(client, "unheard"));
        n += 1;
        client.batch_execute(&ping(n)).unwrap();
        wait_until("it is sent or left", || {
            (stat(client, "relay_transactions"), stat(client, "unheard")) != before
        });
        stat(client, "relay_transactions") > before.0
    };
    assert!(!relays(&mut client));
    for (sql, counts) in [
        ("LISTEN a", true),
        ("UNLISTEN *", false),
        ("LISTEN a; UNLISTEN a", true),
        ("DISCARD ALL", false),
        ("BEGIN; LISTEN a; ROLLBACK", true), // to be on the safe side
        ("UNLISTEN *", false),
        ("SELECT oban_listen_channels()", true),
        ("BEGIN; UNLISTEN *; ROLLBACK", true),
        ("BEGIN; SAVEPOINT s; UNLISTEN *; ROLLBACK TO s; COMMIT", true),
        ("BEGIN; UNLISTEN *; LISTEN a; COMMIT", true),
        ("DO $$ BEGIN EXECUTE 'UNLISTEN *'; END $$", false),
        ("DO $$ BEGIN EXECUTE 'LISTEN b'; END $$", true),
    ] {
        if sql == "DISCARD ALL" {
            listener.simple_query(sql).unwrap();
        } else {
            listener.batch_execute(sql).unwrap();
        }
        assert_eq!(relays(&mut client), counts, "after {sql}");
    }
    let pid: i32 = listener.one("SELECT pg_backend_pid()");
    client.execute("SELECT pg_terminate_backend($1, 10000)", &[&pid]).unwrap();
    assert!(!relays(&mut client), "it ended");
    // One in another database is none of ours.
    client.batch_execute("CREATE DATABASE other").unwrap();
    cluster.client_of("other").batch_execute("LISTEN a").unwrap();
    assert!(!relays(&mut client));
}

/// Whatever fails between the call and the commit gives the reserved room back.
#[test]
fn what_fails_before_its_commit_leaves_no_message_and_no_reservation() {
    let cluster = installed_with(&["obanrs.ring_size = '64kB'"]);
    let (mut one, mut two) = (cluster.client(), cluster.client());
    one.batch_execute(
        "CREATE TABLE skew (n int);
         CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    )
    .unwrap();
    let start: i64 = one.one("SELECT oban_position()");
    // Two of these fill the ring: a third one's would not fit, were any of them left behind.
    let large = "SELECT oban_notify('sonar', jsonb_build_object('n', 0, 'x', n, 'pad', repeat('x', 7000))) FROM generate_series(1, 2) n";
    for _ in 0..20 {
        // Refused by the check for serialization failures, which comes after our reservation.
        for client in [&mut one, &mut two] {
            let sql = format!("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM skew; {large}");
            client.batch_execute(&sql).unwrap();
        }
        one.batch_execute("INSERT INTO skew VALUES (1)").unwrap();
        let failed = two.batch_execute("INSERT INTO skew VALUES (2)");
        one.batch_execute("COMMIT").unwrap();
        let code = match failed {
            Ok(()) => code(&mut two, "COMMIT"),
            Err(e) => {
                two.batch_execute("ROLLBACK").unwrap();
                e.code().unwrap().code().to_owned()
            }
        };
        assert_eq!(code, "40001");
        let deferred = format!("BEGIN; {large}; INSERT INTO child VALUES (1); COMMIT");
        assert_eq!(crate::support::code(&mut one, &deferred), "23503");
        assert_eq!(crate::support::code(&mut one, &format!("{large}; SELECT 1 / 0")), "22012");
    }
    assert_eq!(stat(&mut one, "gaps"), 0, "there was always room");
    let answer = poll(&mut one, &format!("'{{sonar}}', {start}, 1000"));
    assert_eq!(answer.position, start + 40, "the twenty that were committed");
}

/// The wait for a standby comes after the commit: whoever ends it there has committed, and its message is
/// sent.
#[test]
fn a_commit_that_waits_for_a_standby_sends_when_it_is_let_go() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    for ends in ["pg_cancel_backend", "pg_terminate_backend"] {
        let start: i64 = admin.one("SELECT oban_position()");
        let insert = "INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')";
        let stuck = Stuck::start(&cluster, cluster.client(), insert);
        let before = poll(&mut admin, &format!("after => {start}"));
        stuck.end(&mut admin, ends);
        let after = poll(&mut admin, &format!("after => {}", before.position));
        assert_eq!(after.payloads.len(), 1, "{ends}: {after:?}");
    }
}

/// A million messages in a thousand transactions: nothing stays behind.
#[test]
fn a_backends_memory_is_flat() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()
    };
    let send = |client: &mut Client, transactions: i32| {
        client.batch_execute(&format!(
            "DO $$ BEGIN FOR t IN 1..{transactions} LOOP
                 PERFORM oban_notify('sonar', jsonb_build_object('t', t, 'n', n)) FROM generate_series(1, 1000) n;
                 COMMIT;
             END LOOP; END $$"
        ))
        .unwrap();
    };
    send(&mut client, 50);
    let before = resident();
    send(&mut client, 1000);
    let after = resident();
    assert!(after - before < 1024, "{before} kB, and after a million messages {after} kB");
}

#[test]
fn the_counters_add_up() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_insert\"").unwrap();
    let mut client = cluster.client();
    let relay = wait_for_relay(&cluster);
    // While the relay stands still, equal wake-ups gather.
    cluster.signal("STOP", relay);
    for _ in 0..10 {
        client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    }
    client.batch_execute("SELECT oban_notify('signal', '{}')").unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w'); PREPARE TRANSACTION 'p'")
        .unwrap();
    client.batch_execute("COMMIT PREPARED 'p'").unwrap();
    assert_eq!(
        (stat(&mut client, "ring_waiting"), stat(&mut client, "relayed")),
        (11, 0),
        "the signal waits in its row, but for nothing"
    );
    cluster.signal("CONT", relay);
    wait_until("the relay has sent it all", || stat(&mut client, "ring_waiting") == 0);
    let polls = stat(&mut client, "polls");
    poll(&mut client, "");
    wait(&mut client, "after => 0");
    let mut counters: Vec<(String, i64)> = client
        .query("SELECT counter, value FROM oban_stats WHERE value > 0 AND counter !~ 'ring' ORDER BY 1", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let transactions = counters.iter().position(|(name, _)| name == "relay_transactions").unwrap();
    let transactions = counters.remove(transactions).1;
    let relayed = counters.iter().find(|(name, _)| name == "relayed").unwrap().1;
    assert!(
        transactions <= relayed && (1..=2).contains(&relayed),
        "the first may have been on its way: {counters:?}"
    );
    let merged = 10 - relayed;
    let expected = [
        ("dropped", 1),
        ("merged", merged),
        ("native", 1),
        ("polls", polls + 2),
        ("published", 11),
        ("relayed", relayed),
    ];
    assert_eq!(counters, expected.map(|(name, value)| (name.to_owned(), value)));
}

/// Databases of two encodings on one server. Whoever asks in UTF-8 gets UTF-8.
#[test]
fn encodings_quotes_and_the_longest_names() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0").unwrap();
    let mut latin = cluster.client_of("latin");
    latin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let longest = "ü".repeat((63 - ".oban_insert".len()) / 2);
    for (client, texts) in [(&mut latin, &["Größe \"ß\" \\ '"][..]), (&mut admin, &["日本 \"\\ '", "🦀"])]
    {
        for prefix in [longest.as_str(), "größe", "it's \"quoted\""] {
            let quoted = format!("\"{}\"", prefix.replace('"', "\"\""));
            let sql = format!(
                "CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.oban_jobs (queue text, state text);
                CREATE TRIGGER t AFTER INSERT ON {quoted}.oban_jobs REFERENCING NEW TABLE AS n
                FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert()"
            );
            client.batch_execute(&sql).unwrap();
            let listens =
                client.query_one("SELECT oban_listen_channels('{insert}', $1)", &[&prefix]).unwrap();
            let channel: String = listens.get(0);
            assert_eq!(channel, format!("{prefix}.oban_insert"));
            for text in texts {
                let after: i64 = client.one("SELECT oban_position()");
                let payload = serde_json::json!({ "text": text });
                client.execute("SELECT oban_notify('insert', $1, $2)", &[&payload, &prefix]).unwrap();
                // Longer than a notification may be: packed on its way to LISTENers, and not to readers.
                let long = serde_json::json!({ "text": text.repeat(2_000) });
                client.execute("SELECT oban_notify('insert', $1, $2)", &[&long, &prefix]).unwrap();
                client
                    .execute(&format!("INSERT INTO {quoted}.oban_jobs VALUES ($1, 'available')"), &[text])
                    .unwrap();
                let expected = [payload, long, serde_json::json!({ "queue": text })];
                let answer = client
                    .query_one("SELECT * FROM oban_poll('{insert}', $1, prefix => $2)", &[&after, &prefix]);
                assert_eq!(Answer::of(&answer.unwrap()).payloads, expected);
                let heard = heard(client);
                let heard: Vec<Value> = heard
                    .iter()
                    .map(|n| {
                        assert_eq!(n.channel(), channel);
                        client.query_one("SELECT oban_decode($1)", &[&n.payload()]).unwrap().get(0)
                    })
                    .collect();
                assert_eq!(heard, expected);
            }
        }
        // Verbatim, and to the last byte.
        let verbatim = "é".repeat(31);
        let after: i64 = client.one("SELECT oban_position()");
        client.execute("SELECT oban_notify($1, '{}', '')", &[&verbatim]).unwrap();
        let answer =
            client.query_one("SELECT * FROM oban_poll(ARRAY[$1], $2, prefix => '')", &[&verbatim, &after]);
        assert_eq!(Answer::of(&answer.unwrap()).payloads.len(), 1);
    }
}

/// A session that is ended in the middle of its native NOTIFYs, while it can't write to its client: a FATAL,
/// which unwinds nothing. Its transaction is aborted all the same.
#[test]
fn a_session_ended_before_its_commit_gives_everything_back() {
    let cluster = installed_with(&["obanrs.ring_size = '2MB'"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE TABLE held (n int)").unwrap();
    let signals = "SELECT oban_notify('signal', jsonb_build_object('n', n)) FROM generate_series(1, 6000) n";
    for _ in 0..4 {
        // It asks to be told of each NOTIFY, and does not listen.
        let mut socket = UnixStream::connect(format!("{}/.s.PGSQL.5432", cluster.socket_folder())).unwrap();
        let mut startup = 196_608u32.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0application_name\0deaf\0\0");
        let query = format!(
            "SET trace_notify = on; SET client_min_messages = debug1; BEGIN; INSERT INTO held VALUES (1); {signals}; COMMIT\0"
        );
        for (kind, body) in [(None, startup), (Some(b'Q'), query.into_bytes())] {
            let mut message: Vec<u8> = kind.into_iter().collect();
            message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            message.extend_from_slice(&body);
            socket.write_all(&message).unwrap();
        }
        let pid = wait_for("it is stuck", || {
            let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'deaf' AND wait_event = 'ClientWrite'";
            admin.query_opt(sql, &[]).unwrap().map(|row| row.get::<_, i32>(0))
        });
        admin.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
        let gone = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})");
        wait_until("it is gone", || admin.one(&gone));
        let left =
            format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} OR (relation = 'held'::regclass)");
        assert_eq!(admin.one::<i64>(&left), 0);
    }
    admin.batch_execute("BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE held; COMMIT").unwrap();
    for _ in 0..3 {
        admin.batch_execute(signals).unwrap();
    }
    assert_eq!(stat(&mut admin, "gaps"), 0, "there is room for as many as before");
    assert!(!cluster.log().contains("borrowed"), "{}", cluster.log());
}

/// Small on the wire, large when unpacked: one answer has a size that memory and jsonb can take.
#[test]
fn an_answer_is_bounded_by_what_it_unpacks_to() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let mut after: i64 = client.one("SELECT oban_position()");
    let large = "SELECT oban_notify('sonar', jsonb_build_object('n', n, 'x', repeat('a', 5000000))) FROM generate_series(1, 60) n";
    client.batch_execute(large).unwrap();
    let (mut seen, mut answers) = (0, 0);
    while seen < 60 {
        let sql = format!(
            "SELECT position, missed, jsonb_array_length(messages), length(messages::text), messages->0->'payload'->'n' FROM oban_poll('{{sonar}}', {after})"
        );
        let row = client.query_one(&sql, &[]).unwrap();
        let (number, length, first): (i32, i32, Value) = (row.get(2), row.get(3), row.get(4));
        assert_eq!((row.get::<_, i64>(1), first), (0, Value::from(seen + 1)));
        assert!((1..=4).contains(&number) && length < 17_000_000, "{number} {length}");
        seen += number;
        answers += 1;
        after = row.get(0);
    }
    assert!(answers >= 15);
    // What nobody could unpack is refused.
    let huge = "SELECT oban_notify('sonar', jsonb_build_object('x', repeat('a', 17000000)))";
    assert_eq!(code(&mut client, huge), "54000");
}

/// In the server's encoding a character may take more bytes than in UTF-8.
#[test]
fn what_is_too_long_in_the_servers_encoding_is_refused_at_the_call() {
    let cluster = installed_with(&[]);
    cluster.client().batch_execute("CREATE DATABASE euc ENCODING 'EUC_JP' TEMPLATE template0").unwrap();
    let mut client = cluster.client_of("euc");
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_listen_channels('{sonar}')",
        )
        .unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    let payload = |times: usize| serde_json::json!({ "x": "é".repeat(times) });
    client.execute("SELECT oban_notify('sonar', $1)", &[&payload(2_000)]).unwrap();
    let error = client.execute("SELECT oban_notify('sonar', $1)", &[&payload(3_980)]).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "54000");
    client.execute("SELECT oban_notify('sonar', $1)", &[&serde_json::json!({ "n": 1 })]).unwrap();
    let expected = [payload(2_000), serde_json::json!({ "n": 1 })];
    assert_eq!(poll(&mut client, &format!("'{{sonar}}', {after}")).payloads, expected);
    assert_eq!(heard(&mut client).len(), 2);
}

/// What comes while a CALL still commits is served before it waits.
#[test]
fn a_termination_during_the_commit_is_not_slept_over() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE PROCEDURE insert_and_wait() LANGUAGE plpgsql AS $$
             DECLARE p bigint; m bigint; j jsonb;
             BEGIN
                 INSERT INTO oban_jobs (worker) VALUES ('w');
                 CALL oban_wait('{sonar}', timeout => '1 hour', \"position\" => p, missed => m, messages => j);
             END $$",
        )
        .unwrap();
    let probe = Stuck::start(&cluster, cluster.client(), "INSERT INTO oban_jobs (worker) VALUES ('w')");
    // Now every commit waits, this one's in the midst of a CALL.
    let call = Stuck::start(&cluster, cluster.client(), "CALL insert_and_wait()");
    let gone = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {})", call.pid);
    call.end(&mut admin, "pg_terminate_backend");
    wait_until("it is gone", || admin.one(&gone));
    probe.end(&mut admin, "pg_terminate_backend");
}

#[test]
fn a_right_that_is_revoked_while_waiting_is_gone() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE ROLE joe LOGIN; GRANT SELECT (id) ON oban_jobs TO joe").unwrap();
    let mut joe = cluster.client_as("postgres", "joe");
    let pid: i32 = joe.one("SELECT pg_backend_pid()");
    let thread = std::thread::spawn(move || code(&mut joe, "CALL oban_wait('{sonar}')"));
    let waits = format!(
        "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
    );
    wait_until("it waits", || admin.one::<Option<bool>>(&waits) == Some(true));
    admin.batch_execute("REVOKE SELECT (id) ON oban_jobs FROM joe").unwrap();
    admin.batch_execute(&ping(1)).unwrap();
    assert_eq!(thread.join().unwrap(), "42501");
}

/// The relay waits for the server's lock of NOTIFY as long as it takes, whatever users' settings say.
#[test]
fn the_relay_has_patience_of_its_own() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let mut admin = cluster.client();
    admin.batch_execute("SET lock_timeout = 0").unwrap();
    admin.batch_execute("ALTER SYSTEM SET lock_timeout = '1ms'").unwrap();
    // Somebody's native NOTIFY holds the lock while it waits for a standby.
    let mut holder = cluster.client();
    holder.batch_execute("SET lock_timeout = 0").unwrap();
    let notify =
        "BEGIN; INSERT INTO oban_jobs (worker, state) VALUES ('w', 'completed'); NOTIFY other; COMMIT";
    let holder = Stuck::start(&cluster, holder, notify);
    admin.batch_execute(&format!("SET synchronous_commit = local; {}", ping(1))).unwrap();
    let waits = "SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                 WHERE a.backend_type = 'obanrs relay' AND NOT l.granted
                   AND clock_timestamp() - l.waitstart > interval '50 milliseconds'";
    wait_until("the relay waits", || admin.one(waits));
    holder.end(&mut admin, "pg_cancel_backend");
    let mut notifications = listener.notifications();
    let heard = notifications.timeout_iter(PATIENCE).next().unwrap().expect("it is heard");
    assert_eq!(heard.payload(), "{\"n\":1}");
    assert!(!cluster.log().contains("can't relay"), "{}", cluster.log());
}

/// A server with room for three workers, where another worker has taken the relay's place for a minute. The relay stood
/// still before, while `meanwhile` sent something and made a session that LISTENs.
pub fn without_relay(
    settings: &[&str],
    meanwhile: impl FnOnce(&Cluster) -> Client,
) -> (Cluster, Client, std::thread::JoinHandle<()>) {
    let mut all =
        vec!["max_worker_processes = 3", "max_parallel_workers = 3", "max_logical_replication_workers = 0"];
    all.extend(settings);
    let cluster = installed_with(&all);
    let mut client = cluster.client();
    let mut thief = cluster.client();
    let force = "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')";
    thief.batch_execute(force).unwrap();
    // The delay of its restarts doubles: after four ends there is time to take its place.
    for _ in 0..4 {
        let pid = wait_for_relay(&cluster);
        client.execute("SELECT pg_terminate_backend($1, 10000)", &[&pid]).unwrap();
    }
    let last = wait_for_relay(&cluster);
    cluster.signal("STOP", last);
    let listener = meanwhile(&cluster);
    client.execute("SELECT pg_terminate_backend($1)", &[&last]).unwrap();
    cluster.signal("CONT", last);
    wait_until("it ends", || relay(&cluster) != Some(last));
    let thief = std::thread::spawn(move || {
        let _ = thief.batch_execute("SELECT pg_sleep(60)");
    });
    let stolen = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'parallel worker'";
    wait_until("its place is taken", || client.one(stolen));
    (cluster, listener, thief)
}

pub fn end_thief(client: &mut Client, thief: std::thread::JoinHandle<()>) {
    client
        .batch_execute(
            "SELECT pg_cancel_backend(leader_pid) FROM pg_stat_activity WHERE leader_pid IS NOT NULL",
        )
        .unwrap();
    thief.join().unwrap();
}

/// A relay that does not come back: after some seconds commits send what waits for it, in order, and then their
/// own; and the ring is no longer full for readers.
#[test]
#[ignore = "half a minute: make soak"]
fn soak_a_relay_that_does_not_come_is_done_without() {
    let mut n = 0;
    let mut send = |client: &mut Client| {
        n += 1;
        client.batch_execute(&ping(n)).unwrap();
        n
    };
    let mut actions = Vec::new();
    let (cluster, mut listener, thief) = without_relay(&["obanrs.ring_size = '64kB'"], |cluster| {
        let mut listener = cluster.client();
        listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
        let mut client = cluster.client();
        // Equal ones that mean something each: they come in transactions of their own.
        let after: i64 = client.one("SELECT oban_position()");
        for action in ["pause", "resume", "pause"] {
            client
                .batch_execute(&format!("SELECT oban_notify('sonar', '{{\"action\": \"{action}\"}}')"))
                .unwrap();
        }
        actions = poll(&mut client, &format!("'{{sonar}}', {after}")).payloads;
        while stat(&mut client, "gaps") == 0 {
            send(&mut client);
        }
        listener
    });
    let mut client = cluster.client();
    wait_until("a commit sends what waits", || {
        send(&mut client);
        stat(&mut client, "ring_waiting") == 0
    });
    assert_eq!(relay(&cluster), None, "it has not come");
    let start: i64 = client.one("SELECT oban_position()");
    let last = send(&mut client);
    assert_eq!(numbers(&poll(&mut client, &format!("'{{sonar}}', {start}")).payloads), [last]);
    let payloads =
        heard(&mut listener).into_iter().map(|n| serde_json::from_str::<Value>(n.payload()).unwrap());
    let (heard_actions, rest): (Vec<Value>, Vec<Value>) = payloads.partition(|p| p["n"].is_null());
    assert_eq!(heard_actions, actions);
    let mut heard = numbers(&rest);
    heard.sort();
    assert_eq!(heard, (1..=last).collect::<Vec<_>>());
    end_thief(&mut client, thief);
}

/// What one transaction sends is heard in its order, also around a signal, which goes another way.
#[test]
fn a_transaction_is_heard_in_its_order() {
    let cluster = installed_with(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{gossip,signal,insert}')").unwrap();
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    let calls: Vec<String> = ["gossip", "signal", "insert", "gossip", "signal"]
        .iter()
        .enumerate()
        .map(|(n, channel)| format!("SELECT oban_notify('{channel}', '{{\"n\": {n}}}')"))
        .collect();
    client.batch_execute(&format!("BEGIN; {}; COMMIT", calls.join("; "))).unwrap();
    let heard: Vec<String> = heard(&mut listener).iter().map(|n| n.payload().to_owned()).collect();
    assert_eq!(heard, (0..5).map(|n| format!("{{\"n\":{n}}}")).collect::<Vec<_>>());
    assert_eq!(numbers(&poll(&mut client, &format!("after => {after}")).payloads), [0, 1, 2, 3, 4]);
    // Equal ones are sent once, whoever wanted them and however they are sent.
    let start: i64 = client.one("SELECT oban_position()");
    let twice = "INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q');
        SELECT oban_notify('insert', '{\"queue\": \"q\"}');
        SET LOCAL obanrs.notifier = postgres; SELECT oban_notify('insert', '{\"queue\":\"q\"}')";
    client.batch_execute(&format!("BEGIN; {twice}; COMMIT")).unwrap();
    assert_eq!(poll(&mut client, &format!("after => {start}")).payloads.len(), 1);
    assert_eq!(crate::support::heard(&mut listener).len(), 1);
}

/// Each reader parses a payload again, deeper in its stack than the sender was.
#[test]
fn what_is_nested_too_deep_is_refused_at_the_call() {
    let cluster = installed_with(&[]);
    let mut client = cluster.client();
    let after: i64 = client.one("SELECT oban_position()");
    let nested = |levels: usize| {
        format!(
            "SELECT oban_notify('sonar', ('{{\"a\":' || repeat('[', {levels}) || repeat(']', {levels}) || '}}')::jsonb)"
        )
    };
    client.batch_execute(&nested(499)).unwrap();
    assert_eq!(code(&mut client, &nested(500)), "54000");
    let answer = client
        .query_one(&format!("SELECT position, messages::text FROM oban_poll('{{sonar}}', {after})"), &[]);
    assert!(answer.unwrap().get::<_, String>(1).contains(&"[".repeat(499)));
    // A number may be a few bytes as it is stored, and megabytes as it is printed.
    let numbers = "SELECT oban_notify_many('sonar', ARRAY[jsonb_build_object('n', array_fill(1e131071::numeric, ARRAY[200]))])";
    assert_eq!(code(&mut client, numbers), "54000");
}

/// In a database without an encoding a text can be anything.
#[test]
fn without_an_encoding_texts_are_utf_8_or_refused() {
    let cluster = installed_with(&[]);
    cluster.client().batch_execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0").unwrap();
    let mut client = cluster.client_of("ascii");
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let after: i64 = client.one("SELECT oban_position()");
    client.batch_execute("SELECT oban_notify('sonar', '{\"a\": \"é\"}')").unwrap();
    let invalid = "SELECT oban_notify('sonar', jsonb_build_object('a', convert_from('\\xe9', 'SQL_ASCII')))";
    assert_eq!(code(&mut client, invalid), "22021");
    assert_eq!(poll(&mut client, &format!("'{{sonar}}', {after}")).payloads, [serde_json::json!({"a": "é"})]);
}

/// A trigger that can't do its work lets the row in, and counts.
#[test]
fn what_a_trigger_can_not_send_is_counted() {
    let cluster = installed_with(&["obanrs.max_transaction_messages = 2"]);
    let mut client = cluster.client();
    let mut dropped = |sql: &str| {
        let before = stat(&mut client, "dropped");
        client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        stat(&mut client, "dropped") - before
    };
    assert_eq!(
        dropped("INSERT INTO oban_jobs (worker, queue) SELECT 'w', 'q' || n FROM generate_series(1, 5) n"),
        3
    );
    assert_eq!(
        dropped("ALTER TABLE oban_jobs RENAME queue TO line; INSERT INTO oban_jobs (worker) VALUES ('w')"),
        1
    );
    assert_eq!(
        dropped("ALTER TABLE oban_jobs RENAME line TO queue; INSERT INTO oban_jobs (worker) VALUES ('w')"),
        0
    );
    // That a schema has no channels shows when somebody could hear them.
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN anything").unwrap();
    let before = stat(&mut client, "dropped");
    let dot = "CREATE SCHEMA \"with.dot\"; ALTER TABLE oban_jobs SET SCHEMA \"with.dot\"";
    client
        .batch_execute(&format!("{dot}; INSERT INTO \"with.dot\".oban_jobs (worker) VALUES ('w')"))
        .unwrap();
    wait_until("it is counted", || stat(&mut client, "dropped") == before + 1);
}

/// A client that was connected to the primary goes on at the promoted standby with the position that it has.
#[test]
fn a_position_of_the_primary_goes_on_after_a_promotion() {
    let primary = Cluster::installed();
    let mut client = primary.client();
    let begin: i64 = client.one("SELECT oban_position()");
    client.batch_execute("SELECT oban_notify('sonar', '{\"of\": \"primary\"}')").unwrap();
    let there = poll(&mut client, &format!("'{{sonar}}', {begin}"));
    assert_eq!((there.missed, there.payloads.len()), (Some(0), 1));
    let standby = primary.standby(&[]);
    primary.wait_for_standby(&standby);
    primary.stop("immediate");
    standby.promote();
    let mut client = standby.client();
    let workers = "SELECT count(*) = 3 FROM oban_workers WHERE state = 'running'";
    wait_until("the workers start with the promotion", || client.one(workers));
    let first = poll(&mut client, &format!("'{{sonar}}', {}", there.position));
    assert_eq!((first.missed, first.payloads.len()), (None, 0), "nobody knows what it missed");
    assert!(first.position >= there.position, "{} after {}", first.position, there.position);
    client.batch_execute("SELECT oban_notify('sonar', '{\"of\": \"standby\"}')").unwrap();
    let next = poll(&mut client, &format!("'{{sonar}}', {}", first.position));
    assert_eq!((next.missed, next.payloads.len()), (Some(0), 1));
}
