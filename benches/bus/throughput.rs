//! Commits a second, and what calls cost.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use postgres::Client;

use super::common::compare;
use super::listener::Listeners;
use super::report::{Calls, Cell, Report, Run};
use super::support::{Ask, Cluster, wait_until};
use super::{Arm, Disk, Plan, Setup};

pub const CLIENTS: [usize; 4] = [1, 4, 16, 64];
pub const LISTENERS: [usize; 2] = [1, 10];

pub fn measure(cluster: &Cluster, disk: Disk, plan: &Plan, report: &mut Report) {
    for &setup in &plan.setups {
        let arms = setup.arms();
        let mut runs: Vec<(Arm, Run)> = Vec::new();
        for round in 0..plan.rounds {
            if round % 5 == 0 {
                reset(cluster);
            }
            for turn in 0..arms.len() {
                // Each round, and each cell, begins with another arm.
                let arm = arms[(turn + round + report.cells()) % arms.len()];
                runs.push((arm, run(cluster, arm, setup, plan.cell)));
            }
        }
        report.add(Cell::new(disk, setup, runs));
    }
}

fn reset(cluster: &Cluster) {
    let mut client = cluster.client();
    let tables = Arm::ALL.map(|arm| format!("\"{}\".oban_jobs", arm.prefix())).join(", ");
    client.batch_execute(&format!("TRUNCATE {tables}")).expect("they are ours");
    client.batch_execute("CHECKPOINT").expect("it is allowed");
}

/// Runs pgbench with this script for so long. Returns its transactions a second.
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
    // pgbench takes whole seconds only.
    command.args(["-T", &time.as_secs().max(1).to_string(), "postgres"]);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pgbench starts");
    let output = output.wait_with_output().expect("it ends");
    finish();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = text.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// A pgbench in the background, until it is stopped.
pub struct Load(std::process::Child);

impl Load {
    /// Starts it with so many transactions a second, or with as many as it can do.
    pub fn start(cluster: &Cluster, script: &str, clients: usize, rate: Option<u32>) -> Self {
        let file = format!("{}/load.sql", cluster.socket_folder());
        fs::write(&file, script).expect("the folder is ours");
        let mut command = cluster.program("pgbench");
        command.args([
            "-n",
            "-M",
            "prepared",
            "-j",
            "2",
            "-T",
            "3600",
            "-f",
            &file,
            "-c",
            &clients.to_string(),
        ]);
        command.args(rate.map(|rate| format!("--rate={rate}"))).arg("postgres");
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench starts"))
    }

    /// Stops it. Fails if it has ended by itself.
    pub fn stop(mut self) {
        assert!(self.0.try_wait().expect("it is ours").is_none(), "the load has ended");
        self.0.kill().expect("it runs");
        self.0.wait().expect("it is ours");
    }
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

fn run(cluster: &Cluster, arm: Arm, setup: Setup, time: Duration) -> Run {
    let Setup { listeners, queues, clients } = setup;
    let mut client = cluster.client();
    let channel = format!("{}.oban_insert", arm.prefix());
    let listening = Listeners::start(cluster, listeners, &channel);
    let counters = ["merged", "relay_transactions", "unheard", "gaps"];
    let before = counters.map(|c| stat(&mut client, c));
    let rows = format!("SELECT count(*) FROM \"{}\".oban_jobs", arm.prefix());
    let rows_before: i64 = client.one(&rows);
    let watcher = Watcher::start(cluster);
    let mut relay_transactions = 0;
    let tps = pgbench(cluster, &insert(arm, queues), clients, time, || {
        relay_transactions = stat(&mut client, "relay_transactions");
    });
    let in_line = watcher.stop();
    let commits = (client.one::<i64>(&rows) - rows_before) as u64;
    // Messages that are still on their way count as well.
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
    Run {
        tps,
        receipts: expected,
        merged,
        relays: (relay_transactions - before[1]) as f64 / time.as_secs_f64().max(1.0),
        in_line,
    }
}

/// Looks every 100 milliseconds at what sessions wait for.
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

    /// Stops. Returns how many sessions waited for the lock of NOTIFY, on average.
    fn stop(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it ends");
        self.seen.load(Ordering::Relaxed) as f64 / self.looks.load(Ordering::Relaxed).max(1) as f64
    }
}

/// Measures single calls by the time that the backend itself was on a processor.
pub fn calls(cluster: &Cluster, plan: &Plan) -> Calls {
    let mut client = cluster.client();
    let position: i64 = client.one("SELECT oban_position()");
    let poll = |function: &str| {
        format!(
            "DO $$ DECLARE r record; BEGIN FOR i IN 1..20000 LOOP
                 SELECT * INTO r FROM {function}('{{gossip,insert,leader,signal}}', {position}, 1000, 'bus');
             END LOOP; END $$"
        )
    };
    let insert = |arm: Arm, queues: usize| {
        let prefix = arm.prefix();
        let one = format!(
            "INSERT INTO {prefix}.oban_jobs (worker, queue)
             SELECT 'Worker', 'queue_' || i % {queues} FROM generate_series(1, 10000) i;"
        );
        one.repeat(5)
    };
    let bulk = |queues| [Arm::Bus, Arm::Bare].map(|arm| insert(arm, queues));
    let mut turns = |rounds, prepare, statements: [String; 2]| {
        compare(&mut client, rounds, prepare, statements.each_ref().map(String::as_str))
    };
    let truncate = "TRUNCATE bus.oban_jobs, bare.oban_jobs; CHECKPOINT";
    Calls {
        poll: turns(plan.rounds, "", ["oban_poll", "obanrs_bench_poll"].map(poll)),
        bulk: turns(plan.rounds, truncate, bulk(1)),
        bulk_queues: turns(plan.rounds, truncate, bulk(100)),
    }
}
