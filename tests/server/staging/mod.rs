//! Do jobs become available when they are due? Their tables may carry any code, and other programs may stage
//! them.

mod bad_rows;
mod beside_oban;
mod lifecycle;
mod on_time;
mod owners_code;

use postgres::Client;

use crate::support::{Ask, Cluster, wait_until};

/// Inserts a job that is due this many milliseconds from now.
fn schedule(client: &mut Client, prefix: &str, queue: &str, milliseconds: i64) -> i64 {
    client.one(&format!(
        "INSERT INTO {prefix}.oban_jobs (worker, queue, state, scheduled_at)
         VALUES ('w', '{queue}', 'scheduled', timezone('UTC', clock_timestamp()) + {milliseconds} * interval '1 ms')
         RETURNING id"
    ))
}

/// Waits until a job is available.
fn becomes_available(client: &mut Client, prefix: &str, id: i64) {
    let sql = format!("SELECT state = 'available' FROM {prefix}.oban_jobs WHERE id = {id}");
    wait_until("the job is available", || client.one(&sql));
}

/// The stager of a prefix of the database postgres: its pid, state, restarts and last error.
#[derive(Debug)]
struct Seen {
    pid: Option<i32>,
    state: String,
    restarts: i32,
    last_error: String,
}

fn stager(client: &mut Client, prefix: &str) -> Option<Seen> {
    let sql = "SELECT pid, state, restarts, coalesce(last_error, '') FROM oban_workers
               WHERE kind = 'stager' AND database = 'postgres' AND prefix = $1";
    client.query_opt(sql, &[&prefix]).unwrap().map(|row| Seen {
        pid: row.get(0),
        state: row.get(1),
        restarts: row.get(2),
        last_error: row.get(3),
    })
}

/// Waits until the stager of a prefix runs, and returns its pid.
fn running(client: &mut Client, prefix: &str) -> i32 {
    crate::support::wait_for(&format!("the stager of {prefix} runs"), || {
        stager(client, prefix).filter(|s| s.state == "running").and_then(|s| s.pid)
    })
}

/// Waits until the stager of a prefix waits on its latch, because it has looked at its table. Returns its
/// pid.
fn sleeps(client: &mut Client, prefix: &str) -> i32 {
    crate::support::wait_for(&format!("the stager of {prefix} sleeps"), || {
        let pid = stager(client, prefix).filter(|s| s.state == "running")?.pid?;
        let sql = format!(
            "SELECT count(*) = 1 FROM pg_stat_activity
             WHERE pid = {pid} AND state = 'idle' AND wait_event_type = 'Extension'"
        );
        client.one::<bool>(&sql).then_some(pid)
    })
}

fn installed() -> (Cluster, Client) {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    sleeps(&mut client, "public");
    (cluster, client)
}

/// What oban_check says of the staging of a prefix: whether it is fine, and the detail.
fn check(client: &mut Client, prefix: &str) -> Option<(bool, String)> {
    let item = format!("staging of {prefix}");
    let row = client.query_opt("SELECT ok, detail FROM oban_check() WHERE item = $1", &[&item]).unwrap();
    row.map(|row| (row.get(0), row.get(1)))
}
