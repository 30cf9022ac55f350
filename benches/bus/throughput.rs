//! Commits a second, and what calls cost.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postgres::Client;

use super::listener::Listeners;
use super::report::{Calls, Cell, Report, Run};
use super::support::{Ask, Cluster, wait_until};
use super::{Arm, Disk, Plan, median};

pub const CLIENTS: [usize; 4] = [1, 4, 16, 64];
pub const LISTENERS: [usize; 3] = [0, 1, 10];
pub const QUEUES: [usize; 2] = [1, 100];

pub fn measure(cluster: &Cluster, disk: Disk, plan: &Plan, report: &mut Report) {
    for listeners in LISTENERS {
        for queues in QUEUES {
            for clients in CLIENTS {
                let mut runs: Vec<(Arm, Run)> = Vec::new();
                for round in 0..plan.rounds {
                    reset(cluster);
                    for turn in 0..Arm::ALL.len() {
                        let arm = Arm::ALL[(turn + round) % Arm::ALL.len()];
                        runs.push((arm, run(cluster, arm, listeners, queues, clients, plan.cell)));
                    }
                }
                let cell = Cell::new(disk, listeners, queues, clients, runs);
                eprintln!("{}", cell.line());
                report.cells.push(cell);
            }
        }
    }
}

fn reset(cluster: &Cluster) {
    let mut client = cluster.client();
    let tables = Arm::ALL.map(|arm| format!("\"{}\".oban_jobs", arm.prefix())).join(", ");
    client.batch_execute(&format!("TRUNCATE {tables}")).expect("they are ours");
    client.batch_execute("CHECKPOINT").expect("it is allowed");
}

/// pgbench with this script, for so long; the transactions it made.
pub fn pgbench(
    cluster: &Cluster,
    script: &str,
    clients: usize,
    time: Duration,
    finish: impl FnOnce(),
) -> f64 {
    let file = format!("{}/script.{}.sql", cluster.socket_folder(), clients);
    fs::write(&file, script).expect("the folder is ours");
    let mut command = cluster.program("pgbench");
    let (jobs, clients) = (clients.min(2).to_string(), clients.to_string());
    command.args(["-n", "-M", "prepared", "-j", &jobs, "-c", &clients, "-f", &file]);
    // By whole seconds only.
    command.args(["-T", &time.as_secs().max(1).to_string(), "postgres"]);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pgbench starts");
    let output = output.wait_with_output().expect("it ends");
    finish();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = text.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

pub fn insert(arm: Arm, queues: usize) -> String {
    let table = format!("\"{}\".oban_jobs", arm.prefix());
    match queues {
        1 => format!("INSERT INTO {table} (worker, queue) VALUES ('Worker', 'default');\n"),
        n => format!(
            "\\set q random(1, {n})\nINSERT INTO {table} (worker, queue) VALUES ('Worker', 'queue_' || :q);\n"
        ),
    }
}

fn stat(client: &mut Client, counter: &str) -> u64 {
    client.one::<i64>(&format!("SELECT value FROM oban_stats WHERE counter = '{counter}'")) as u64
}

fn run(cluster: &Cluster, arm: Arm, listeners: usize, queues: usize, clients: usize, time: Duration) -> Run {
    let mut client = cluster.client();
    let channel = format!("{}.oban_insert", arm.prefix());
    let listening = Listeners::start(cluster, listeners, &channel);
    let counters = ["merged", "relay_transactions", "unheard", "gaps"];
    let before = counters.map(|c| stat(&mut client, c));
    let rows = format!("SELECT count(*) FROM \"{}\".oban_jobs", arm.prefix());
    let rows_before: i64 = client.one(&rows);
    let watcher = Watcher::start(cluster);
    let since = Instant::now();
    let mut relay_transactions = 0;
    let tps = pgbench(cluster, &insert(arm, queues), clients, time, || {
        relay_transactions = stat(&mut client, "relay_transactions");
    });
    let took = since.elapsed().as_secs_f64();
    let in_line = watcher.stop();
    let commits = (client.one::<i64>(&rows) - rows_before) as u64;
    // What is still on its way belongs to it.
    if arm == Arm::Bus {
        wait_until("the relay has sent everything", || stat(&mut client, "ring_waiting") == 0);
    }
    let after = counters.map(|c| stat(&mut client, c));
    let [merged, _, unheard, gaps] = std::array::from_fn(|i| after[i] - before[i]);
    let expected = match arm {
        Arm::Bare => 0,
        Arm::Bus => commits - merged - unheard,
        Arm::Statement | Arm::Row => commits,
    };
    wait_until("every listener has heard all of it", || listening.heard().iter().all(|n| *n >= expected));
    assert!(listening.heard().iter().all(|n| *n == expected), "{:?} {expected}", listening.heard());
    if listeners == 0 && arm == Arm::Bus {
        assert_eq!(unheard, commits);
    }
    assert_eq!(gaps, 0, "the ring had room for all of it");
    listening.stop();
    Run { tps, receipts: expected, merged, relays: (relay_transactions - before[1]) as f64 / took, in_line }
}

/// Looks at what sessions wait for, every few milliseconds.
struct Watcher {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    seen: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Watcher {
    fn start(cluster: &Cluster) -> Self {
        let mut client = cluster.client();
        let (stop, looks, seen) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stopped, all, found) = (stop.clone(), looks.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let sql = "SELECT count(*) FROM pg_stat_activity
                       WHERE backend_type = 'client backend' AND wait_event_type = 'Lock' AND wait_event = 'object'";
            let sql = client.prepare(sql).expect("it can be asked");
            while !stopped.load(Ordering::Relaxed) {
                let waiting: i64 = client.query_one(&sql, &[]).expect("it answers").get(0);
                all.fetch_add(1, Ordering::Relaxed);
                found.fetch_add(waiting as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, looks, seen, thread }
    }

    /// How many sessions it has seen in line for the lock of NOTIFY, on average.
    fn stop(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it ends");
        self.seen.load(Ordering::Relaxed) as f64 / self.looks.load(Ordering::Relaxed).max(1) as f64
    }
}

/// What single calls cost.
pub fn calls(cluster: &Cluster, plan: &Plan) -> Calls {
    let mut client = cluster.client();
    let position: i64 = client.one("SELECT oban_position()");
    let ask = |function: &str| {
        format!("SELECT * FROM {function}('{{gossip,insert,leader,signal}}', {position}, 1000, 'bus');\n")
    };
    let mut poll = Vec::new();
    for round in 0..plan.rounds {
        let mut tps = [0.0, 0.0];
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let script = ask(["oban_poll", "obanrs_bench_poll"][which]);
            tps[which] = pgbench(cluster, &script, 1, plan.cell, || {});
        }
        poll.push(tps[1] / tps[0]);
    }
    // The time that the backend itself was on a processor.
    let mut bulk = Vec::new();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    for round in 0..plan.rounds * 4 {
        let mut cpu = [0.0, 0.0];
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let prefix = [Arm::Bus, Arm::Bare][which].prefix();
            client.batch_execute(&format!("TRUNCATE {prefix}.oban_jobs; CHECKPOINT")).expect("it is ours");
            let before = on_processor(pid);
            for _ in 0..5 {
                let sql = format!(
                    "INSERT INTO {prefix}.oban_jobs (worker, queue) SELECT 'Worker', 'default' FROM generate_series(1, 10000)"
                );
                client.batch_execute(&sql).expect("it inserts");
            }
            cpu[which] = on_processor(pid) - before;
        }
        bulk.push(cpu[0] / cpu[1]);
    }
    Calls { poll: median(poll), bulk: median(bulk) }
}

/// In seconds.
fn on_processor(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it runs");
    text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}
