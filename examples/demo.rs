//! The whole path on a throwaway server: `make demo`.
//!
//! This process starts the server and plays the application that inserts jobs. Three workers are processes of
//! their own, each with its own connection. (They are this program, started again with `worker NODE`.) They
//! join, gossip about their queue, listen, and work (`demo/worker.rs`, to be copied).
//!
//! The workers print a line for each event, and this process takes the time. It exits with 0 only if
//! everything was seen.

#[path = "../tests/support/mod.rs"]
mod support;
#[path = "demo/worker.rs"]
mod worker;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

use support::Cluster;

const NODES: [&str; 3] = ["worker-1", "worker-2", "worker-3"];
const JOBS: i32 = 10;
const SOCKET: &str = "OBANRS_DEMO_SOCKET";

/// The longest time that the demo waits for one thing to be seen.
const PATIENCE: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "worker", node] => work(node),
        _ => demo(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn work(node: &str) -> Result<(), Failure> {
    let mut client = connect(&std::env::var(SOCKET)?)?;
    worker::run(&mut client, node, worker::LOOK_EVERY, |event| println!("{event}"))
}

// ---- the demo --------------------------------------------------------------------------------------

fn demo() -> Result<(), Failure> {
    let begun = Instant::now();
    println!("Starting a throwaway server with shared_preload_libraries = 'obanrs' ...");
    let cluster = Cluster::installed();
    println!("{} it is up, with CREATE EXTENSION obanrs; SELECT oban_install();\n", took(begun));
    let result = show(&cluster);
    drop(cluster);
    Cluster::close_all();
    result?;
    println!("\nAll of it was seen, in {:.1} s. The server is gone again.", begun.elapsed().as_secs_f64());
    Ok(())
}

fn show(cluster: &Cluster) -> Result<(), Failure> {
    let mut client = connect(cluster.socket_folder())?;
    let mut workers = Workers::start(cluster.socket_folder())?;

    println!("1. Three workers join: each a process, each with a session of its own");
    let mut leader = None;
    for _ in NODES {
        let (event, after) = workers.next(|e| e.starts_with("joined "))?;
        let words: Vec<&str> = event.split(' ').collect();
        let leads = words[2] == "true";
        println!("{after} {} joined{}", words[1], if leads { " and was elected" } else { "" });
        if leads && leader.replace(words[1].to_owned()).is_some() {
            return Err("two workers lead".into());
        }
    }
    let leader = leader.ok_or("no worker was elected")?;
    let row = client.query_one("SELECT node, term FROM oban_leader('Demo')", &[])?;
    if row.get::<_, String>(0) != leader {
        return Err(format!("oban_leader('Demo') says {:?}", row.get::<_, String>(0)).into());
    }
    println!("          oban_leader('Demo'): {leader}, term {}", row.get::<_, i64>(1));

    println!("\n2. One plain INSERT INTO oban_jobs of {JOBS} jobs from another connection");
    workers.clock = Instant::now();
    let insert = "INSERT INTO oban_jobs (worker, args)
                  SELECT 'Greeter', jsonb_build_object('name', n) FROM generate_series(1, $1) n";
    client.execute(insert, &[&JOBS])?;
    println!("{} they are committed", took(workers.clock));
    let mut listeners = HashSet::new();
    let mut completed: BTreeMap<String, i32> = BTreeMap::new();
    while completed.values().sum::<i32>() < JOBS || listeners.len() < NODES.len() {
        let (event, after) = workers.next(|_| true)?;
        let words: Vec<&str> = event.splitn(4, ' ').collect();
        match words[0] {
            "heard" if words[2] == "public.oban_insert" => {
                println!("{after} {} heard {} on {}", words[1], words[3], words[2]);
                listeners.insert(words[1].to_owned());
            }
            "fetched" => {
                println!("{after} {} fetched job {} with FOR UPDATE SKIP LOCKED", words[1], words[2]);
            }
            "completed" => *completed.entry(words[1].to_owned()).or_default() += 1,
            _ => {}
        }
    }
    let by: Vec<String> = completed.iter().map(|(node, jobs)| format!("{jobs} by {node}")).collect();
    println!("{} all are completed: {}", took(workers.clock), by.join(", "));
    let left: i64 =
        client.query_one("SELECT count(*) FROM oban_jobs WHERE state <> 'completed'", &[])?.get(0);
    if left > 0 {
        return Err(format!("{left} jobs are left").into());
    }

    println!("\n3. Who runs what: SELECT node, queue, local_limit, running FROM oban_gossip");
    let asked = Instant::now();
    // A worker updates its gossip a moment after its last job is committed.
    let rows = loop {
        let rows = gossip(&mut client)?;
        if rows.len() == NODES.len() && rows.iter().all(|row| row.ends_with("| 0")) {
            break rows;
        }
        if asked.elapsed() > PATIENCE {
            return Err(format!("oban_gossip has {rows:?}").into());
        }
        sleep(Duration::from_millis(1));
    };
    for row in &rows {
        println!("{} {row}", took(asked));
    }

    println!("\n4. The leader's process is killed (SIGKILL)");
    workers.clock = Instant::now();
    workers.kill(&leader)?;
    let (event, after) = workers.next(|e| e.starts_with("leads "))?;
    let next = event.split(' ').nth(1).unwrap_or_default().to_owned();
    println!("{after} {next} was elected and knows it");
    if next == leader {
        return Err("the dead worker was elected".into());
    }
    while gossip(&mut client)?.iter().any(|row| row.starts_with(&leader)) {
        if workers.clock.elapsed() > PATIENCE {
            return Err(format!("the queues of {leader} are still in oban_gossip").into());
        }
        sleep(Duration::from_millis(1));
    }
    println!("{} the queues of {leader} are gone from oban_gossip", took(workers.clock));
    let row = client.query_one("SELECT node, term FROM oban_leader('Demo')", &[])?;
    println!("          oban_leader('Demo'): {}, term {}", row.get::<_, String>(0), row.get::<_, i64>(1));
    if row.get::<_, String>(0) != next {
        return Err("oban_leader('Demo') does not agree".into());
    }
    Ok(())
}

fn gossip(client: &mut Client) -> Result<Vec<String>, Failure> {
    let rows =
        client.query("SELECT node, queue, local_limit, running FROM oban_gossip ORDER BY 1, 2", &[])?;
    let line = |row: &postgres::Row| {
        let (node, queue): (String, String) = (row.get(0), row.get(1));
        let (limit, running): (i32, i32) = (row.get(2), row.get(3));
        format!("{node} | {queue} | {limit} | {running}")
    };
    Ok(rows.iter().map(line).collect())
}

fn connect(socket: &str) -> Result<Client, Failure> {
    let mut config = postgres::Config::new();
    Ok(config.host_path(socket).user("postgres").dbname("postgres").connect(NoTls)?)
}

fn took(since: Instant) -> String {
    milliseconds(since.elapsed())
}

fn milliseconds(time: Duration) -> String {
    format!("{:>7.1} ms", time.as_secs_f64() * 1000.0)
}

/// The worker processes, and the lines that they print.
struct Workers {
    children: Vec<(&'static str, Child)>,
    events: Receiver<(String, Instant)>,
    /// The start of all times that are shown.
    clock: Instant,
}

impl Workers {
    fn start(socket: &str) -> Result<Self, Failure> {
        let (sender, events) = channel();
        let clock = Instant::now();
        let mut children = Vec::new();
        for node in NODES {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["worker", node]).env(SOCKET, socket).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = command.spawn()?;
            let lines = BufReader::new(child.stdout.take().ok_or("the worker has no output")?).lines();
            let sender = sender.clone();
            std::thread::spawn(move || {
                lines.map_while(Result::ok).all(|line| sender.send((line, Instant::now())).is_ok())
            });
            children.push((node, child));
        }
        Ok(Self { children, events, clock })
    }

    /// Returns the next event that is wanted, and when it came.
    fn next(&self, wanted: impl Fn(&str) -> bool) -> Result<(String, String), Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((event, at)) if wanted(&event) => return Ok((event, milliseconds(at - self.clock))),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err("a worker's event did not come".into()),
                Err(RecvTimeoutError::Disconnected) => return Err("all workers ended".into()),
            }
        }
    }

    fn kill(&mut self, node: &str) -> Result<(), Failure> {
        let (_, child) = self.children.iter_mut().find(|(n, _)| *n == node).ok_or("no such worker")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // A worker may have been killed before. Then there is nothing left to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
