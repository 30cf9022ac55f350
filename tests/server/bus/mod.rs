//! The bus: each kind of reader gets what is committed, through ends of readers and relay and through a full
//! ring.
//!
//! Each file here answers one question about it. This file has what they share.

mod commit;
mod delivery;
mod order;
mod payloads;
mod positions;
mod relay;
mod waiting;

use postgres::Client;
use serde_json::Value;

use crate::support::{Ask, Cluster, wait_for, wait_until};

/// The answer of oban_poll or oban_wait.
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

/// Starts a server with room for three workers, where another worker has taken the relay's place for a
/// minute. Before that the relay stood still, while `meanwhile` sent something and made a session that
/// LISTENs. Returns the server, that session, and the thread that holds the place.
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
    // The delay before the relay's restart doubles each time. After four ends it is long enough to take the
    // place.
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
