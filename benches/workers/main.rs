//! How fast do workers get their jobs, and what does it cost while many are idle?
//!
//!     make bench-workers                  into benches/results/workers.md (fifteen minutes)
//!     make bench-workers BENCH=quick      fewer rounds: to see whether it runs; writes nothing
//!
//! The arms are oban_take with oban_complete_job, the same by the SQL of Oban's engine, graphile-worker,
//! pg-boss, and pgmq if the environment names its SQL file (PGMQ_SQL). They drain tables of the same number
//! of jobs in turns, on one server. Jobs a second are those of the clients too, which are this program for
//! the first arms and Node.js for the two systems that are written for it. The processor time is that of
//! the server's processes alone.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
#[allow(dead_code)] // each bench takes a part
mod common;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{about, median, on_processor, quantile, spread};
use postgres::Client;
use serde_json::Value;
use support::{Ask, Cluster, wait_until};

/// How many jobs are drained in a round.
const JOBS: usize = 2_000;

/// The other job systems take part in every round of this number: pg-boss needs seconds for one.
const OTHERS_EVERY: usize = 4;

/// How many workers wait while one job at a time comes, and how many jobs come in a round.
const IDLE: usize = 100;
const SINGLE_JOBS: usize = 40;

/// The processor time that each process of a server has used so far, in seconds.
struct Used(HashMap<i32, f64>);

impl Used {
    fn by(cluster: &Cluster) -> Self {
        let postmaster =
            std::fs::read_to_string(cluster.data_folder().join("postmaster.pid")).expect("it runs");
        let postmaster = postmaster.lines().next().expect("a pid").to_owned();
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let children = children.expect("Linux says so");
        let pids = children.split(' ').filter_map(|pid| pid.trim().parse().ok());
        Self(pids.map(|pid| (pid, on_processor_if_there(pid))).collect())
    }

    /// What all processes have used since, in seconds, but for those that have ended meanwhile.
    fn since(&self, earlier: &Self) -> f64 {
        self.0.iter().map(|(pid, used)| used - earlier.0.get(pid).unwrap_or(&0.0)).sum()
    }
}

fn on_processor_if_there(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// The statement of Oban.Engines.Basic that claims jobs: the ids in a subquery, then an UPDATE that joins
/// them.
fn fetch_by_hand(batch: usize) -> String {
    format!(
        "WITH subset AS MATERIALIZED (
             SELECT id FROM oban_jobs WHERE state = 'available' AND queue = 'q' AND attempt < max_attempts
             ORDER BY priority, scheduled_at, id LIMIT {batch} FOR UPDATE SKIP LOCKED)
         UPDATE oban_jobs j SET state = 'executing', attempted_at = timezone('UTC', now()),
             attempted_by = ARRAY['n', 'u'], attempt = j.attempt + 1
         FROM subset WHERE j.id = subset.id
         RETURNING j.id, j.attempt, j.state::text, j.queue, j.worker, j.args, j.meta, j.tags, j.max_attempts,
             j.priority, j.attempted_by, j.inserted_at::text, j.scheduled_at::text, j.attempted_at::text"
    )
}

/// The statement of Oban.Engines.Basic that completes a job.
const COMPLETE_BY_HAND: &str =
    "UPDATE oban_jobs SET state = 'completed', completed_at = timezone('UTC', now())
     WHERE id = $1 AND state = 'executing'";

/// The system that drains the jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    Take,
    ByHand,
    Pgmq,
    Graphile,
    Boss,
}

impl Arm {
    fn name(self) -> &'static str {
        match self {
            Self::Take => "`oban_take`, `oban_complete_job`",
            Self::ByHand => "Oban's SQL by hand",
            Self::Pgmq => "pgmq: `read`, `delete`",
            Self::Graphile => "graphile-worker 0.16.6",
            Self::Boss => "pg-boss 10.4.2: `fetch`, `complete`",
        }
    }

    /// Adds jobs.
    fn fill(self, client: &mut Client) {
        let sql = match self {
            Self::Take | Self::ByHand => format!(
                "TRUNCATE oban_jobs; INSERT INTO oban_jobs (worker, queue) SELECT 'w', 'q' FROM generate_series(1, {JOBS});
                 ANALYZE oban_jobs"
            ),
            Self::Pgmq => format!(
                "SELECT pgmq.purge_queue('q');
                 SELECT pgmq.send_batch('q', array_agg('{{}}'::jsonb)) FROM generate_series(1, {JOBS}); ANALYZE pgmq.q_q"
            ),
            Self::Graphile | Self::Boss => return,
        };
        client.batch_execute(&sql).expect("jobs can be added");
        client.batch_execute("CHECKPOINT").expect("it is a superuser's");
    }

    /// Takes jobs and completes each, until there are none.
    fn work(self, client: &mut Client, batch: usize) {
        match self {
            Self::Take => {
                let take = client
                    .prepare(&format!("CALL oban_take('{{q}}', 'n', {batch}, '0')"))
                    .expect("it is ours");
                let complete = client.prepare("SELECT oban_complete_job($1, $2)").expect("it is ours");
                loop {
                    let Value::Array(jobs) = client.query_one(&take, &[]).expect("it runs").get(0) else {
                        return;
                    };
                    if jobs.is_empty() {
                        return;
                    }
                    for job in jobs {
                        let (id, attempt) = (job["id"].as_i64(), job["attempt"].as_i64().map(|n| n as i32));
                        client.execute(&complete, &[&id, &attempt]).expect("it runs");
                    }
                }
            }
            Self::ByHand => {
                let fetch = client.prepare(&fetch_by_hand(batch)).expect("it is valid");
                let complete = client.prepare(COMPLETE_BY_HAND).expect("it is valid");
                loop {
                    let jobs = client.query(&fetch, &[]).expect("it runs");
                    if jobs.is_empty() {
                        return;
                    }
                    for job in jobs {
                        client.execute(&complete, &[&job.get::<_, i64>(0)]).expect("it runs");
                    }
                }
            }
            Self::Pgmq => {
                let read =
                    client.prepare(&format!("SELECT msg_id, message::text FROM pgmq.read('q', 60, {batch})"));
                let read = read.expect("it is installed");
                let delete = client.prepare("SELECT pgmq.delete('q', $1::bigint)").expect("it is installed");
                loop {
                    let jobs = client.query(&read, &[]).expect("it runs");
                    if jobs.is_empty() {
                        return;
                    }
                    for job in jobs {
                        client.execute(&delete, &[&job.get::<_, i64>(0)]).expect("it runs");
                    }
                }
            }
            Self::Graphile | Self::Boss => unreachable!("Node.js does that"),
        }
    }
}

/// Workers of one arm, which are connected and wait for their start.
struct Workers {
    starts: Vec<Sender<()>>,
    done: Receiver<()>,
}

impl Workers {
    fn new(cluster: &Cluster, arm: Arm, count: usize, batch: usize) -> Self {
        let (sender, done) = channel();
        let starts = (0..count).map(|_| {
            let (start, started) = channel::<()>();
            let (mut client, sender) = (cluster.client(), sender.clone());
            std::thread::spawn(move || {
                while started.recv().is_ok() {
                    arm.work(&mut client, batch);
                    let _ = sender.send(());
                }
            });
            start
        });
        Self { starts: starts.collect(), done }
    }

    fn drain(&self) {
        self.starts.iter().for_each(|start| start.send(()).expect("it waits"));
        self.starts.iter().for_each(|_| self.done.recv().expect("it ends"));
    }
}

/// A program of Node.js with its workers.
struct Node {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    fn new(cluster: &Cluster, system: &str, workers: usize, batch: usize) -> Self {
        let mut node = Command::new("node");
        node.args(["target/bench-workers/others.mjs", system, &workers.to_string(), &batch.to_string()]);
        node.env("PGHOST", cluster.socket_folder()).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        let mut child = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("there is Node.js");
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Self { child, input, output: BufReader::new(output) }
    }

    fn tell(&mut self, line: &str, answer: &str) {
        writeln!(self.input, "{line}").expect("it reads");
        let mut got = String::new();
        self.output.read_line(&mut got).expect("it answers");
        assert_eq!(got.trim(), answer);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The workers that drain in a round.
enum Drainer {
    Own(Workers),
    Node(Node),
}

/// Returns jobs a second, and milliseconds of the server's processors for a job.
fn drain(cluster: &Cluster, client: &mut Client, arm: Arm, drainer: &mut Drainer) -> (f64, f64) {
    arm.fill(client);
    if let Drainer::Node(node) = drainer {
        node.tell(&JOBS.to_string(), "ready");
        client.batch_execute("CHECKPOINT").expect("it is a superuser's");
    }
    let (before, since) = (Used::by(cluster), Instant::now());
    match drainer {
        Drainer::Own(workers) => workers.drain(),
        Drainer::Node(node) => node.tell("go", "done"),
    }
    let seconds = since.elapsed().as_secs_f64();
    (JOBS as f64 / seconds, Used::by(cluster).since(&before) * 1e3 / JOBS as f64)
}

fn throughput(cluster: &Cluster, rounds: usize, text: &mut String) {
    let mut client = cluster.client();
    let pgmq = std::env::var("PGMQ_SQL").ok();
    if let Some(file) = &pgmq {
        let sql = std::fs::read_to_string(file).expect("PGMQ_SQL names a file");
        client
            .batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS pgmq; {sql}; SELECT pgmq.create('q')"))
            .expect("pgmq can be installed");
    }
    let arms = [Arm::Take, Arm::ByHand, Arm::Pgmq, Arm::Graphile, Arm::Boss];
    let arms: Vec<Arm> = arms.into_iter().filter(|arm| *arm != Arm::Pgmq || pgmq.is_some()).collect();
    writeln!(
        text,
        "## Draining {JOBS} jobs\n\nJobs a second, and milliseconds of the server's processors for a job: \
         median (least–most) of {rounds} rounds in turns. \
         The other systems take part in every {OTHERS_EVERY}th round. \
         graphile-worker fetches one job at a time.\n\n\
         | workers × jobs a call | arm | jobs a second | of the SQL by hand | ms a job |\n\
         | --- | --- | --- | --- | --- |"
    )
    .expect("memory");
    for (workers, batch) in [(1, 1), (1, 10), (4, 1), (4, 10), (16, 1), (16, 10)] {
        let start = |arm: &Arm| match arm {
            Arm::Graphile => Drainer::Node(Node::new(cluster, "graphile-worker", workers, batch)),
            Arm::Boss => Drainer::Node(Node::new(cluster, "pg-boss", workers, batch)),
            arm => Drainer::Own(Workers::new(cluster, *arm, workers, batch)),
        };
        let mut drainers: Vec<Drainer> = arms.iter().map(start).collect();
        let mut found: Vec<Vec<(usize, (f64, f64))>> = vec![Vec::new(); arms.len()];
        for round in 0..=rounds {
            for turn in 0..arms.len() {
                let which = (round + turn) % arms.len();
                if round % OTHERS_EVERY > 0 && !matches!(arms[which], Arm::Take | Arm::ByHand) {
                    continue;
                }
                let measured = drain(cluster, &mut client, arms[which], &mut drainers[which]);
                if round > 0 {
                    found[which].push((round, measured)); // the first round fills caches
                }
            }
        }
        for (arm, of_arm) in arms.iter().zip(&found) {
            let by_hand =
                |round: usize| found[1].iter().find(|(of, _)| *of == round).map(|(_, (rate, _))| rate);
            let rates = median(of_arm.iter().map(|(_, (rate, _))| *rate).collect());
            let ratios = of_arm.iter().filter_map(|(round, (rate, _))| Some(rate / by_hand(*round)?));
            let ratios = median(ratios.collect());
            let cost = median(of_arm.iter().map(|(_, (_, cost))| *cost).collect());
            let (middle, least, most) = rates;
            let line = format!(
                "| {workers} × {batch} | {} | {middle:.0} ({least:.0}–{most:.0}) | {} | {} |",
                arm.name(),
                spread(ratios),
                spread(cost)
            );
            eprintln!("{line}");
            writeln!(text, "{line}").expect("memory");
        }
    }
}

/// Sessions that wait for one job at a time, and do it.
struct Waiters {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    jobs: Receiver<i64>,
}

impl Waiters {
    /// `all_wake`: each waits in oban_wait for a message, and then fetches.
    fn new(cluster: &Cluster, count: usize, all_wake: bool) -> Self {
        let (sender, jobs) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let connected = Arc::new(Barrier::new(count + 1));
        let threads = (0..count).map(|_| {
            let (mut client, sender, stop, connected) =
                (cluster.client(), sender.clone(), stop.clone(), connected.clone());
            std::thread::spawn(move || {
                let queue = if all_wake { "all" } else { "one" };
                let wait = if all_wake {
                    "CALL oban_wait('{insert}', $1, '1 hour')".to_owned()
                } else {
                    format!("CALL oban_take('{{{queue}}}', 'n', 1, '1 hour')")
                };
                let wait = client.prepare(&wait).expect("it is ours");
                let fetch = client
                    .prepare(&format!("SELECT id FROM oban_fetch('{{{queue}}}', 'n')"))
                    .expect("it is ours");
                let mut position: i64 = client.one("SELECT oban_position()");
                connected.wait();
                while !stop.load(Ordering::SeqCst) {
                    let ids: Vec<i64> = if all_wake {
                        let Ok(row) = client.query_one(&wait, &[&position]) else { return };
                        position = row.get(0);
                        client.query(&fetch, &[]).expect("it runs").iter().map(|row| row.get(0)).collect()
                    } else {
                        let Ok(row) = client.query_one(&wait, &[]) else { return };
                        let Value::Array(jobs) = row.get(0) else { return };
                        jobs.iter().filter_map(|job| job["id"].as_i64()).collect()
                    };
                    for id in ids {
                        let _ = sender.send(id);
                    }
                }
            })
        });
        let threads = threads.collect();
        connected.wait();
        Self { stop, threads, jobs }
    }

    fn end(self, client: &mut Client) {
        self.stop.store(true, Ordering::SeqCst);
        wait_until("the waiters end", || {
            client
                .batch_execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL oban_%' AND state = 'active'")
                .expect("it is a superuser's");
            self.threads.iter().all(JoinHandle::is_finished)
        });
    }
}

fn idle(cluster: &Cluster, rounds: usize, text: &mut String) {
    let mut client = cluster.client();
    client.batch_execute("TRUNCATE oban_jobs").expect("it is ours");
    let arms = [("one", false), ("all", true)];
    let mut costs = [Vec::new(), Vec::new()];
    for (arm, (queue, all_wake)) in arms.into_iter().enumerate() {
        // The sessions of one arm at a time: those of the other would hear the same inserts.
        let waiters = Waiters::new(cluster, IDLE, all_wake);
        let insert =
            client.prepare(&format!("INSERT INTO oban_jobs (worker, queue) VALUES ('w', '{queue}')"));
        let insert = insert.expect("it is valid");
        for round in 0..=rounds {
            let before = Used::by(cluster);
            for _ in 0..SINGLE_JOBS {
                client.execute(&insert, &[]).expect("it runs");
                waiters.jobs.recv().expect("it comes");
                std::thread::sleep(Duration::from_millis(20)); // a rate, and time for those that wake in vain
            }
            if round > 0 {
                costs[arm].push(Used::by(cluster).since(&before) * 1e3 / SINGLE_JOBS as f64);
            }
        }
        waiters.end(&mut client);
    }
    writeln!(
        text,
        "\n## One job at a time, while {IDLE} workers wait\n\nMilliseconds of the server's processors for a job, from the INSERT until all sleep again: median (least–most) of {rounds} rounds of {SINGLE_JOBS} jobs.\n\n\
         | workers wait in | ms a job |\n| --- | --- |\n| `oban_take`: one is woken | {} |\n\
         | `oban_wait`, then `oban_fetch`: all are woken | {} |",
        spread(median(costs[0].clone())),
        spread(median(costs[1].clone()))
    )
    .expect("memory");
}

fn latency(cluster: &Cluster, jobs: usize, text: &mut String) {
    let mut client = cluster.client();
    client.batch_execute("TRUNCATE oban_jobs").expect("it is ours");
    let waiters = Waiters::new(cluster, 2, false);
    let insert =
        client.prepare("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'one')").expect("it is valid");
    let mut found = Vec::new();
    for _ in 0..jobs {
        std::thread::sleep(Duration::from_millis(10)); // idle
        let since = Instant::now();
        client.execute(&insert, &[]).expect("it runs");
        waiters.jobs.recv().expect("it comes");
        found.push(since.elapsed().as_secs_f64() * 1e3);
    }
    waiters.end(&mut client);
    writeln!(
        text,
        "\n## From the INSERT to the answer\n\nFrom the start of an INSERT to the answer of `oban_take` in another session, idle, of {jobs} jobs: p50 {:.2} ms, p99 {:.2} ms.",
        quantile(&found, 0.5),
        quantile(&found, 0.99)
    )
    .expect("memory");
}

/// Claims and completes jobs one by one. Returns microseconds of the backend's processor for each of both.
fn claim_and_complete(client: &mut Client, pid: i32, fetch: &str, complete: &str, calls: usize) -> [f64; 2] {
    Arm::ByHand.fill(client);
    let (fetch, complete) =
        (client.prepare(fetch).expect("it is valid"), client.prepare(complete).expect("it is valid"));
    let mut jobs: Vec<(i64, Option<i32>)> = Vec::new();
    let before = on_processor(pid);
    for _ in 0..calls {
        let row = client.query_one(&fetch, &[]).expect("there are enough");
        jobs.push(match row.columns()[0].name() {
            "jobs" => {
                let taken: Value = row.get(0);
                (taken[0]["id"].as_i64().expect("a job"), taken[0]["attempt"].as_i64().map(|n| n as i32))
            }
            _ => (row.get("id"), row.get::<_, Option<i32>>("attempt")),
        });
    }
    let between = on_processor(pid);
    for (id, attempt) in &jobs {
        let values: [&(dyn postgres::types::ToSql + Sync); 2] = [id, attempt];
        client.execute(&complete, &values[..complete.params().len()]).expect("it runs");
    }
    [between - before, on_processor(pid) - between].map(|seconds| seconds * 1e6 / calls as f64)
}

fn calls(cluster: &Cluster, rounds: usize, text: &mut String) {
    const CALLS: usize = 1_000;
    let mut client = cluster.client();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let by_hand = fetch_by_hand(1).replace("j.attempt,", "j.attempt::int4 AS attempt,");
    let own = "SELECT oban_complete_job($1, $2)";
    let arms = [
        (by_hand.as_str(), COMPLETE_BY_HAND),
        ("SELECT * FROM oban_fetch('{q}', 'n')", own),
        ("CALL oban_take('{q}', 'n', 1, '0')", own),
    ];
    let mut found: [Vec<[f64; 2]>; 3] = Default::default();
    for round in 0..=rounds {
        for turn in 0..arms.len() {
            let which = (round + turn) % arms.len();
            let used = claim_and_complete(&mut client, pid, arms[which].0, arms[which].1, CALLS);
            if round > 0 {
                found[which].push(used);
            }
        }
    }
    let of = |which: usize, part: usize| spread(median(found[which].iter().map(|used| used[part]).collect()));
    let ratio = |which: usize, part: usize| {
        spread(median(
            found[which].iter().zip(&found[0]).map(|(own, by_hand)| own[part] / by_hand[part]).collect(),
        ))
    };
    writeln!(
        text,
        "\n## What a call costs\n\nMicroseconds of the backend's processor for one job: median (least–most) of {rounds} rounds in turns of {CALLS} calls.\n\n\
         | call | µs | ÷ by hand |\n| --- | --- | --- |\n\
         | Oban's fetch by hand | {} | 1 |\n| `oban_fetch` | {} | {} |\n| `oban_take` | {} | {} |\n\
         | Oban's completion by hand | {} | 1 |\n| `oban_complete_job` | {} | {} |",
        of(0, 0), of(1, 0), ratio(1, 0), of(2, 0), ratio(2, 0), of(0, 1), of(1, 1), ratio(1, 1)
    )
    .expect("memory");
}

fn main() {
    let quick = std::env::args().any(|a| a == "quick");
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'obanrs'",
        "shared_buffers = 512MB",
        "max_wal_size = 8GB",
        "max_connections = 300",
        "fsync = off",
        "autovacuum = off",
    ]);
    cluster.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").expect("it can be made");
    let mut text =
        format!("Measured by `make bench-workers`: {}. fsync and autovacuum are off.\n", about(&cluster));
    let only = |part: &str| std::env::args().any(|a| a == part);
    let all = !["drain", "idle", "latency", "calls"].into_iter().any(only);
    if all || only("idle") {
        idle(&cluster, if quick { 2 } else { 20 }, &mut text);
    }
    if all || only("latency") {
        latency(&cluster, if quick { 50 } else { 1_000 }, &mut text);
    }
    if all || only("calls") {
        calls(&cluster, if quick { 4 } else { 20 }, &mut text);
    }
    if all || only("drain") {
        text.push('\n');
        throughput(&cluster, if quick { OTHERS_EVERY } else { 20 }, &mut text);
    }
    println!("{text}");
    if !quick && all {
        std::fs::write("benches/results/workers.md", text).expect("the checkout can be written");
    }
    drop(cluster);
    Cluster::close_all();
}
