//! Does the worker that people copy (`examples/demo/worker.rs`) leave no job behind, and run none too early?

#[path = "../../examples/demo/worker.rs"]
mod copied;

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::{Ask, Cluster, PATIENCE, wait_until};

/// This is far beyond the time that a test takes. So these workers look only when they hear of something, and
/// at their start.
const NEVER: Duration = Duration::from_secs(3600);

/// Starts a worker that works until the server stops. Returns the lines that it prints, once it has joined.
fn start(cluster: &Cluster, node: &'static str, look_every: Duration) -> Receiver<String> {
    let (sender, events) = channel();
    let mut client = cluster.client();
    std::thread::spawn(move || {
        // When the test is over, the channel is closed and the connection ends.
        let ended = copied::run(&mut client, node, look_every, |event| drop(sender.send(event)));
        drop(sender.send(format!("ended {node} {ended:?}")));
    });
    let joined = events.recv_timeout(PATIENCE).unwrap();
    assert!(joined.starts_with("joined"), "{joined}");
    events
}

fn all_completed(cluster: &Cluster, jobs: i64) {
    let mut client = cluster.client();
    let completed = "SELECT count(*) FROM oban_jobs WHERE state = 'completed' AND attempt = 1";
    wait_until("all jobs are completed", || client.one::<i64>(completed) == jobs);
}

const INSERT: &str = "INSERT INTO oban_jobs (worker, scheduled_at)";

#[test]
fn three_workers_complete_ten_jobs_of_one_statement() {
    let cluster = Cluster::installed();
    let _workers = ["w.1", "w.2", "w.3"].map(|node| start(&cluster, node, NEVER));
    let mut client = cluster.client();
    let one_statement = "INSERT INTO oban_jobs (worker) SELECT 'w' FROM generate_series(1, 10)";
    client.batch_execute(one_statement).unwrap();
    all_completed(&cluster, 10);
    // One wakeup stands for all of the jobs. Then the same happens again.
    client.batch_execute(one_statement).unwrap();
    all_completed(&cluster, 20);
}

#[test]
fn a_worker_that_starts_finds_what_was_there() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("INSERT INTO oban_jobs (worker) SELECT 'w' FROM generate_series(1, 10)").unwrap();
    // The first job has no attempt left. No worker takes it, and it stops no other job.
    client
        .batch_execute(
            "INSERT INTO oban_jobs (worker, priority, attempt, max_attempts) VALUES ('w', 0, 20, 20);
             UPDATE oban_jobs SET priority = 1 WHERE attempt = 0",
        )
        .unwrap();
    let _worker = start(&cluster, "w.1", NEVER);
    all_completed(&cluster, 10);
    assert_eq!(client.one::<String>("SELECT state::text FROM oban_jobs WHERE attempt = 20"), "available");
}

/// A job for later that was inserted as available is announced at once. It runs when its time has come, in
/// any time zone of the server.
#[test]
fn a_job_waits_for_its_time() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "timezone = 'Pacific/Kiritimati'"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let _worker = start(&cluster, "w.1", Duration::from_millis(50));
    client
        .batch_execute(&format!(
            "{INSERT} VALUES ('soon', timezone('utc', now()) + interval '2 s'),
                             ('tomorrow', timezone('utc', now()) + interval '1 day')"
        ))
        .unwrap();
    all_completed(&cluster, 1);
    let early = "SELECT count(*) FROM oban_jobs WHERE attempted_at < scheduled_at";
    assert_eq!(client.one::<i64>(early), 0);
    assert_eq!(
        client.one::<String>("SELECT state::text FROM oban_jobs WHERE worker = 'tomorrow'"),
        "available"
    );
}

/// An UPDATE wakes no worker. A worker finds what the UPDATE made available when it looks without a message,
/// or after a call of oban_notify.
#[test]
fn a_job_that_an_update_makes_available_is_found() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let retryable = "INSERT INTO oban_jobs (worker, state) VALUES ('w', 'retryable')";
    let retry = "UPDATE oban_jobs SET state = 'available' WHERE state = 'retryable'";
    let slow = start(&cluster, "w.1", NEVER);
    client
        .batch_execute(&format!(
            "{retryable}; BEGIN; {retry}; SELECT oban_notify('insert', '{{\"queue\": \"default\"}}'); COMMIT"
        ))
        .unwrap();
    all_completed(&cluster, 1);
    drop(slow);
    let _looks = start(&cluster, "w.2", copied::LOOK_EVERY);
    client.batch_execute(&format!("{retryable}; {retry}")).unwrap();
    all_completed(&cluster, 2);
}

/// The worker learns that it was elected although it waits for messages only. The end of its connection is an
/// error.
#[test]
fn a_worker_hears_that_it_leads_and_that_its_connection_ended() {
    let cluster = Cluster::installed();
    let first = start(&cluster, "w.1", NEVER);
    let second = start(&cluster, "w.2", NEVER);
    let end = "SELECT pg_terminate_backend(pid) FROM oban_members WHERE node = 'w.1'";
    cluster.client().batch_execute(end).unwrap();
    let wait_for = |events: &Receiver<String>, start: &str| {
        while !events.recv_timeout(PATIENCE).unwrap().starts_with(start) {}
    };
    wait_for(&second, "leads w.2");
    wait_for(&first, "ended w.1 Err");
}
