//! How late is a due job, and what does a burst of due jobs cost?
//!
//!     make bench-staging                  into benches/results/staging.md (ten minutes)
//!     make bench-staging BENCH=quick      fewer rounds: to see whether it runs; writes nothing
//!
//! Lateness is the time from a job's `scheduled_at` until a session that LISTENs receives the wake-up of the
//! job's queue. Beside it, in turns, is the time that a native NOTIFY takes from one session to another.
//! Server and sessions have the same clock.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
#[allow(dead_code)] // each bench takes a part
mod common;

#[path = "../common/listener.rs"]
#[allow(dead_code)]
mod listener;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{about, median, quantile, spread};
use listener::Listener;
use postgres::Client;
use support::{Ask, Cluster, PATIENCE, wait_until};

/// How many jobs are due in a second, while lateness is measured.
const RATE: usize = 100;

/// How many rows are due at one instant in a burst.
const BURST: usize = 100_000;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs_f64()
}

/// Receives notifications until `number` of them had `prefix`. Returns what stands behind the prefix in each,
/// and when it came.
fn receive(cluster: &Cluster, channel: &str, prefix: &'static str, number: usize) -> Receiver {
    let mut listener = Listener::new(cluster, channel);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut left = number;
        listener.each(|payload| {
            let text = String::from_utf8_lossy(payload).into_owned();
            if let Some(at) = text.find(prefix) {
                let rest = text[at + prefix.len()..].trim_end_matches(['"', '}', ' ']).to_owned();
                let _ = sender.send((rest, now()));
                left -= 1;
            }
            left > 0
        });
    });
    receiver
}

type Receiver = std::sync::mpsc::Receiver<(String, f64)>;

/// Inserts jobs that become due one after the other, from a second on. Returns how late each was heard, in
/// milliseconds.
fn due(cluster: &Cluster, client: &mut Client, number: usize) -> Vec<f64> {
    let heard = receive(cluster, "due.oban_insert", "probe-", number);
    let start = now() + 1.0;
    // The queue's name has the time at which the job is due, in microseconds.
    let insert = format!(
        "INSERT INTO due.oban_jobs (worker, state, queue, scheduled_at)
         SELECT 'w', 'scheduled', 'probe-' || ({:.0} + i * {}), to_timestamp(({:.0} + i * {}) / 1e6) AT TIME ZONE 'UTC'
         FROM generate_series(0, {}) i",
        start * 1e6,
        1_000_000 / RATE,
        start * 1e6,
        1_000_000 / RATE,
        number - 1
    );
    client.batch_execute(&insert).expect("it inserts");
    let lateness = (0..number).map(|_| {
        let (due, came) = heard.recv_timeout(PATIENCE).expect("it is heard");
        (came - due.parse::<f64>().expect("a time") / 1e6) * 1e3
    });
    let lateness = lateness.collect();
    client.batch_execute("DELETE FROM due.oban_jobs WHERE queue LIKE 'probe-%'").expect("they are ours");
    lateness
}

/// Returns how long native notifications take at the same rate, in milliseconds.
fn native(cluster: &Cluster, client: &mut Client, number: usize) -> Vec<f64> {
    let heard = receive(cluster, "native", "n", number);
    (0..number)
        .map(|n| {
            std::thread::sleep(Duration::from_micros(1_000_000 / RATE as u64));
            let sent = now();
            client.batch_execute(&format!("NOTIFY native, 'n{n}'")).expect("it is sent");
            (heard.recv_timeout(PATIENCE).expect("it is heard").1 - sent) * 1e3
        })
        .collect()
}

/// Measures lateness beside native notifications, in turns.
fn lateness(cluster: &Cluster, client: &mut Client, rounds: usize) -> [Vec<f64>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let times = if which == 0 { due(cluster, client, RATE) } else { native(cluster, client, RATE) };
            all[which].extend(times);
        }
    }
    all
}

fn shown(times: &[f64]) -> String {
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        quantile(times, 0.5),
        quantile(times, 0.99),
        quantile(times, 1.0)
    )
}

/// Fills a prefix with jobs of 10 queues that are due in 4 s. Returns when.
fn fill(client: &mut Client, prefix: &str) -> f64 {
    let sql = format!(
        "INSERT INTO {prefix}.oban_jobs (worker, state, queue, scheduled_at)
         SELECT 'w', 'scheduled', 'q' || i % 10, now() AT TIME ZONE 'UTC' + interval '1 hour' FROM generate_series(1, {BURST}) i"
    );
    client.batch_execute(&format!("TRUNCATE {prefix}.oban_jobs; {sql}")).expect("it is ours");
    client.batch_execute(&format!("VACUUM ANALYZE {prefix}.oban_jobs")).expect("it is ours");
    client.batch_execute("CHECKPOINT").expect("it is a superuser's");
    // The jobs become due by an instant that is the same for all of them.
    client
        .batch_execute(&format!(
            "UPDATE {prefix}.oban_jobs SET scheduled_at = now() AT TIME ZONE 'UTC' + interval '2 s'"
        ))
        .expect("it is ours");
    client.one(&format!("SELECT extract(epoch FROM max(scheduled_at))::float8 FROM {prefix}.oban_jobs"))
}

/// Returns how long a burst takes from its instant until no job is due, in seconds, and how long messages of
/// oban_notify took meanwhile, in milliseconds.
fn burst(cluster: &Cluster, client: &mut Client) -> (f64, Vec<f64>) {
    let at = fill(client, "due");
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = channel();
    let probe = {
        let (stop, mut session) = (stop.clone(), cluster.client());
        let heard = receive(cluster, "probes.oban_news", "probe-", usize::MAX);
        std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
                let sent = now();
                let notify = format!("SELECT oban_notify('news', '{{\"n\": \"probe-{n}\"}}', 'probes')");
                session.batch_execute(&notify).expect("it is sent");
                let came = heard.recv_timeout(PATIENCE).expect("it is heard").1;
                let _ = sender.send((sent, (came - sent) * 1e3));
                n += 1;
            }
        })
    };
    let left = "SELECT count(*) = 0 FROM (SELECT FROM due.oban_jobs WHERE state = 'scheduled' LIMIT 1) x";
    while now() < at {
        std::thread::sleep(Duration::from_millis(1));
    }
    let patience = Instant::now();
    while !client.one::<bool>(left) {
        assert!(patience.elapsed() < Duration::from_secs(120), "it is staged");
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = now() - at;
    stop.store(true, Ordering::Relaxed);
    probe.join().expect("it ends");
    (took, receiver.iter().filter(|(sent, _)| *sent >= at && *sent <= at + took).map(|(_, ms)| ms).collect())
}

/// Returns how long one UPDATE of as many jobs takes, in seconds. The table has the same triggers and
/// indexes.
fn update(client: &mut Client) -> f64 {
    let at = fill(client, "updated");
    while now() < at {
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    let sql = "UPDATE updated.oban_jobs SET state = 'available'
               WHERE state IN ('scheduled', 'retryable') AND scheduled_at <= now() AT TIME ZONE 'UTC'";
    client.batch_execute(sql).expect("it is ours");
    start.elapsed().as_secs_f64()
}

fn main() {
    let quick = std::env::args().any(|a| a == "quick");
    let (rounds, waiting) = if quick { (2, 20_000) } else { (20, 1_000_000) };
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'obanrs'",
        "shared_buffers = 512MB",
        "max_wal_size = 8GB",
        "max_worker_processes = 16",
    ]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install('due', stage => true), oban_install('updated', stage => false),
                 oban_install('probes', stage => false);
             CREATE INDEX ON updated.oban_jobs (scheduled_at, id) WHERE state IN ('scheduled', 'retryable')",
        )
        .expect("they can be made");
    wait_until("the stager runs", || {
        client.one("SELECT count(*) = 1 FROM oban_workers WHERE kind = 'stager' AND state = 'running'")
    });
    let mut text = format!("Measured by `make bench-staging`: {}.\n\n", about(&cluster));
    let mut line = |what: &str, figure: String| {
        eprintln!("{what}: {figure}");
        writeln!(text, "| {what} | {figure} |").expect("memory");
    };
    line("figure", format!("{rounds} rounds, in turns"));
    line("---", "---".into());

    let [late, native_times] = lateness(&cluster, &mut client, rounds);
    line("100 jobs due a second: due → its wake-up is heard", shown(&late));
    line("100 native NOTIFY a second in the same rounds", shown(&native_times));
    let fill = format!(
        "INSERT INTO due.oban_jobs (worker, state, queue, scheduled_at)
         SELECT 'w', 'scheduled', 'later', now() AT TIME ZONE 'UTC' + interval '1 day' + i * interval '1 ms'
         FROM generate_series(1, {waiting}) i"
    );
    client.batch_execute(&fill).expect("it inserts");
    client.batch_execute("VACUUM ANALYZE due.oban_jobs").expect("it is ours");
    let [late, native_times] = lateness(&cluster, &mut client, rounds);
    line(&format!("the same with {waiting} jobs that are scheduled for later"), shown(&late));
    line("100 native NOTIFY a second in the same rounds", shown(&native_times));

    let (mut ratios, mut bursts, mut meanwhile) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (mut staged, mut updated) = (0.0, 0.0);
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let (took, times) = burst(&cluster, &mut client);
                staged = took;
                meanwhile.extend(times);
            } else {
                updated = update(&mut client);
            }
        }
        ratios.push(staged / updated);
        bursts.push(staged);
    }
    let burst = median(bursts);
    line(
        &format!("{BURST} jobs due at one instant → all are available, ÷ one UPDATE of them"),
        spread(median(ratios)),
    );
    line("the burst itself", format!("{:.2} s ({:.2}–{:.2})", burst.0, burst.1, burst.2));
    line("a message of oban_notify meanwhile", shown(&meanwhile));
    if !quick {
        std::fs::write("benches/results/staging.md", text).expect("it can be written");
    }
}
