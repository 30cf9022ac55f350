//! What does gossip cost, and how long do the entries of a killed node stay?
//!
//! The costs are those of putting a state, of a thousand nodes that put one each second, of reading ten
//! thousand entries, and of fifty nodes that all hear each other.
//!
//!     make bench-gossip                   into benches/results/gossip.md (ten minutes)
//!     make bench-gossip BENCH=quick       fewer rounds: to see whether it runs; writes nothing
//!
//! Processor time is the time of all processes of the server together, by the kernel's account. Two things
//! that are compared take turns.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
#[allow(dead_code)] // each bench takes a part
mod common;

mod nodes;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{about, median, on_processor, quantile, spread};
use postgres::Client;
use support::{Ask, Cluster, stat, wait_until};

use nodes::{Load, Measured};

/// The state with which a node of Oban describes a queue: ten keys.
pub const STATE: &str = r#"{"uuid":"8b2ff8a5-9f2c-4a5e-9d57-0b8f8e1a2b3c","name":"Oban","node":"web.1","queue":"default","limit":10,"paused":false,"running":[1000001,1000002,1000003,1000004,1000005,1000006,1000007,1000008,1000009,1000010],"started_at":"2026-01-31T12:00:00.123456Z","updated_at":"2026-01-31T12:00:01.654321Z","refresh_interval":60000}"#;

const PUT: &str = "oban_gossip_put";
const EMPTY: &str = "obanrs_bench_gossip_put";

struct Plan {
    rounds: usize,
    /// The time of one load in each round.
    time: Duration,
    trials: usize,
}

fn main() {
    let quick = std::env::args().any(|a| a == "quick");
    let plan = if quick {
        Plan { rounds: 1, time: Duration::from_secs(2), trials: 5 }
    } else {
        Plan { rounds: 5, time: Duration::from_secs(8), trials: 100 }
    };
    let cluster =
        Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_connections = 1100", "fsync = on"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").expect("they can be made");
    let mut text = format!("Measured by `make bench-gossip`: {}.\n\n", about(&cluster));
    let mut line = |what: &str, figure: String| {
        eprintln!("{what}: {figure}");
        writeln!(text, "| {what} | {figure} |").expect("memory");
    };
    line("figure", format!("{} rounds", plan.rounds));
    line("---", "---".into());

    let (statement, call) = put_costs(&mut client, plan.rounds * 12);
    line(
        "one put of a state of ten keys ÷ an empty function of the same signature, each a statement",
        spread(statement),
    );
    line("the put itself, in a loop of one statement", format!("{call:.1} µs"));
    clear(&mut client);

    let load = |function| Load {
        database: "postgres",
        nodes: 1000,
        statement: nodes::puts(function, 10),
        arguments: 10,
        listening: false,
    };
    let rounds = take_turns(&cluster, &plan, &load(PUT), &load(EMPTY));
    line(
        "1,000 nodes × 10 queues a second, processor time of the server ÷ the same calls to the empty function",
        spread(median(rounds.iter().map(|(put, empty)| put.processor / empty.processor).collect())),
    );
    let middle = |of: fn(&(Measured, Measured)) -> f64| median(rounds.iter().map(of).collect()).0;
    line("calls a second meanwhile", format!("{:.0}, {:.0}", middle(|r| r.0.calls), middle(|r| r.1.calls)));
    line(
        "processors that it takes",
        format!("{:.2}, {:.2}", middle(|r| r.0.processor), middle(|r| r.1.processor)),
    );
    let sum = |of: fn(&Measured) -> i64| rounds.iter().map(|(put, _)| of(put)).sum::<i64>();
    line("WAL bytes, transaction ids that it used", format!("{}, {}", sum(|m| m.wal), sum(|m| m.xids)));
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{gossip}')").expect("it listens");
    let drain = drain(listener);
    let rounds = take_turns(&cluster, &plan, &load(PUT), &load(EMPTY));
    line(
        "the same while a session listens, to which all of it is broadcast each second",
        spread(median(rounds.iter().map(|(put, empty)| put.processor / empty.processor).collect())),
    );
    drain.store(true, Ordering::Relaxed);

    let fill = format!(
        "SELECT count(oban_gossip_put('node.' || i % 1000, 'queue_' || i, '{STATE}', ttl => '1 hour')) FROM generate_series(1, 10000) i"
    );
    assert_eq!(client.one::<i64>(&fill), 10_000);
    let reading = read(&cluster, if quick { 5 } else { 100 });
    line(
        "reading the view with 10,000 entries, all columns to the client",
        format!("p50 {:.1} ms, p99 {:.1} ms", quantile(&reading, 0.5), quantile(&reading, 0.99)),
    );
    let waits = if quick { 1 } else { 10 };
    line("waiting for the table's lock, as a put does, while nobody reads", self::waits(&mut client, waits));
    let (stop, mut reader) = (Arc::new(AtomicBool::new(false)), cluster.client());
    let readings = {
        let stop = stop.clone();
        thread::spawn(move || {
            let mut readings = 0;
            while !stop.load(Ordering::Relaxed) {
                reader.one::<i64>("SELECT count(*) FROM oban_gossip");
                readings += 1;
            }
            readings
        })
    };
    let waited = self::waits(&mut client, waits);
    stop.store(true, Ordering::Relaxed);
    let readings = readings.join().expect("it reads");
    line("the same while another session reads all the time", format!("{waited}; {readings} readings"));
    clear(&mut client);

    let ours = Load {
        database: "postgres",
        nodes: 50,
        statement: nodes::puts(PUT, 2),
        arguments: 2,
        listening: true,
    };
    // This database does not have the extension.
    client.batch_execute("CREATE DATABASE plain").expect("it can be made");
    let native =
        Load { database: "plain", nodes: 50, statement: nodes::native(), arguments: 0, listening: true };
    let rounds = take_turns(&cluster, &plan, &ours, &native);
    line(
        "50 nodes × 2 queues a second, all listening, processor time of the server ÷ each node broadcasting by NOTIFY",
        spread(median(rounds.iter().map(|(ours, native)| ours.processor / native.processor).collect())),
    );
    let middle = |of: fn(&(Measured, Measured)) -> f64| median(rounds.iter().map(of).collect()).0;
    line(
        "processors that it takes",
        format!("{:.3}, {:.3}", middle(|r| r.0.processor), middle(|r| r.1.processor)),
    );
    line(
        "notifications heard a second, by all of them",
        format!("{:.0}, {:.0}", middle(|r| r.0.heard), middle(|r| r.1.heard)),
    );

    let gone = killed(&cluster, plan.trials);
    line(
        "a member's client killed → its entries are gone from the view",
        format!(
            "p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
            quantile(&gone, 0.5),
            quantile(&gone, 0.99),
            quantile(&gone, 1.0)
        ),
    );
    if !quick {
        std::fs::create_dir_all("benches/results").expect("it can be made");
        std::fs::write("benches/results/gossip.md", text).expect("it can be written");
    }
}

/// Returns the processor time of a put ÷ that of the empty function, each a prepared statement. Returns the
/// time of the put by itself as well, in µs.
fn put_costs(client: &mut Client, rounds: usize) -> (common::Spread, f64) {
    const CALLS: usize = 1_000;
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let prepared = [PUT, EMPTY].map(|function| {
        client.prepare(&format!("SELECT {function}($1, $2, $3::text::jsonb)")).expect("it can be prepared")
    });
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let mut used = [0.0, 0.0];
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let before = on_processor(pid);
            for _ in 0..CALLS {
                client.query_one(&prepared[which], &[&"web.1", &"default", &STATE]).expect("it is put");
            }
            used[which] = on_processor(pid) - before;
        }
        ratios.push(used[0] / used[1]);
    }
    let mut in_a_loop = |function: &str| {
        let sql = format!(
            "SELECT count({function}('web.1', 'default', '{STATE}'::jsonb)) FROM generate_series(1, 100000)"
        );
        let before = on_processor(pid);
        client.one::<i64>(&sql);
        (on_processor(pid) - before) * 1e6 / 100_000.0
    };
    (median(ratios), in_a_loop(PUT) - in_a_loop(EMPTY))
}

/// Measures two loads in turns, round by round.
fn take_turns(cluster: &Cluster, plan: &Plan, first: &Load, second: &Load) -> Vec<(Measured, Measured)> {
    (0..plan.rounds)
        .map(|_| {
            let first = nodes::measure(cluster, first, plan.time);
            clear(&mut cluster.client());
            (first, nodes::measure(cluster, second, plan.time))
        })
        .collect()
}

fn clear(client: &mut Client) {
    client
        .batch_execute("SELECT oban_gossip_delete(node) FROM (SELECT DISTINCT node FROM oban_gossip) n")
        .expect("they can be deleted");
    wait_until("it is empty", || stat(client, "gossip_entries") == 0);
}

/// Reads what the server sends, as a client would, until it is told to stop.
fn drain(mut listener: Client) -> Arc<AtomicBool> {
    use fallible_iterator::FallibleIterator;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let mut notifications = listener.notifications();
            let mut heard = notifications.timeout_iter(Duration::from_millis(500));
            while let Ok(Some(_)) = heard.next() {}
        }
    });
    stop
}

/// Returns times in ms, as pgbench sees them. (pgbench does nothing with what it reads.)
fn read(cluster: &Cluster, times: usize) -> Vec<f64> {
    let folder = cluster.socket_folder();
    let (script, log) = (format!("{folder}/read.sql"), format!("{folder}/read"));
    std::fs::write(&script, "SELECT * FROM oban_gossip;\n").expect("the folder is ours");
    let mut command = cluster.program("pgbench");
    command.args([
        "-n",
        "-M",
        "prepared",
        "-f",
        &script,
        "-t",
        &times.to_string(),
        "-l",
        "--log-prefix",
        &log,
    ]);
    let output = command.arg("postgres").output().expect("pgbench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let of_this = |entry: &std::fs::DirEntry| {
        entry.file_name().to_string_lossy().starts_with("read.")
            && entry.path().extension().is_none_or(|e| e != "sql")
    };
    let log = std::fs::read_dir(folder).expect("it is there").flatten().find(of_this).expect("a log");
    let log = std::fs::read_to_string(log.path()).expect("it can be read");
    // A line has the client, the number, and the time in µs.
    let micros = |line: &str| line.split(' ').nth(2).and_then(|time| time.parse::<f64>().ok());
    log.lines().filter_map(micros).map(|micros| micros / 1e3).collect()
}

/// Returns how long a session waits for the table's lock. It is asked half a million times, in so many
/// rounds.
fn waits(client: &mut Client, rounds: i32) -> String {
    const TIMES: i32 = 500_000;
    let sql = "SELECT max(w.p999), max(w.most), sum(w.over)::int8
               FROM generate_series(1, $1) i, LATERAL (SELECT * FROM obanrs_bench_gossip_waits($2 + i * 0)) w";
    let row = client.query_one(sql, &[&rounds, &TIMES]).expect("it answers");
    let of = |i: usize| row.get::<_, i64>(i) as f64 / 1e3;
    format!(
        "p99.9 {:.1}, most {:.0} µs; {} of {} over 1 ms",
        of(0),
        of(1),
        row.get::<_, i64>(2),
        i64::from(rounds) * i64::from(TIMES)
    )
}

/// Kills a member of 10 queues (SIGKILL) while another session looks. Returns times in ms.
fn killed(cluster: &Cluster, trials: usize) -> Vec<f64> {
    let mut client = cluster.client();
    let look =
        client.prepare("SELECT count(*) FROM oban_gossip WHERE node = 'victim'").expect("it can be prepared");
    let trial = |_| {
        let mut member = cluster.shell();
        member.ask("SELECT oban_join('victim')");
        member.ask("SELECT count(oban_gossip_put('victim', 'q' || i)) FROM generate_series(1, 10) i");
        let since = Instant::now();
        member.kill();
        while client.query_one(&look, &[]).expect("it answers").get::<_, i64>(0) > 0 {}
        since.elapsed().as_secs_f64() * 1e3
    };
    (0..trials).map(trial).collect()
}
