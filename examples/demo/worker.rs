//! A worker, to be copied: what a worker of any language does, with nothing but SQL.
//!
//! The worker listens first, then looks at the table until there is no job for it, and then waits. In this
//! order it hears of each job that is inserted after the look.
//!
//! A message says that there are jobs, not how many. Some jobs come without a message: their time comes, or
//! an UPDATE makes them available. So the worker looks until it finds nothing, not once for each message, and
//! it looks every few seconds without a message.

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use postgres::Client;

/// How long a worker waits for a message before it looks without one.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The name under which the workers elect a leader. It is not `Oban`, because Oban's own nodes elect their
/// leader under that name.
pub const NAME: &str = "Demo";

/// The identity of this process: its node, and a uuid that it made up when it started. With both in
/// `attempted_by`, `oban_orphans` finds the jobs that a dead process leaves behind.
struct Process<'a> {
    node: &'a str,
    uuid: String,
}

/// A session knows within milliseconds that its node was elected. This is far above that.
const ELECTED_AND_KNOWN: Duration = Duration::from_secs(1);

/// Works until the connection ends, which is an error.
///
/// The caller connects again and calls this function again. It looks at the table first, so no job is lost
/// that was inserted meanwhile. `tell` gets a line for each thing that happens.
pub fn run(
    client: &mut Client,
    node: &str,
    look_every: Duration,
    tell: impl Fn(String),
) -> Result<(), Box<dyn Error>> {
    client.batch_execute("SELECT oban_listen_channels('{insert,leader}')")?;
    client.query_one("SELECT oban_join($1, $2)", &[&node, &NAME])?;
    let uuid = client.query_one("SELECT gen_random_uuid()::text", &[])?.get(0);
    let process = Process { node, uuid };
    say_what_runs(client, &process, None)?;
    let mut leads = is_leader(client, node)?;
    tell(format!("joined {node} {leads}"));

    loop {
        loop {
            let job = fetch(client, &process)?;
            say_what_runs(client, &process, job.map(|(id, _)| id))?;
            let Some((id, attempt)) = job else { break };
            tell(format!("fetched {node} {id}"));
            // Here the worker does the job. If that takes longer than a second, another thread gossips
            // meanwhile about what runs.
            complete(client, id, attempt)?;
            tell(format!("completed {node} {id}"));
        }

        if wait(client, look_every, |heard| tell(format!("heard {node} {heard}")))? {
            let led = std::mem::replace(&mut leads, is_leader(client, node)?);
            match (led, leads) {
                (false, true) => tell(format!("leads {node}")),
                (true, false) => tell(format!("follows {node}")),
                _ => {}
            }
        }
    }
}

/// Waits for a message, and takes all messages that are there then, because one look answers them.
///
/// Returns whether another node may lead now. That is so after a message on `leader`, and may be so when no
/// message came.
fn wait(client: &mut Client, longest: Duration, tell: impl Fn(String)) -> Result<bool, postgres::Error> {
    let mut messages = client.notifications();
    let mut message = messages.timeout_iter(longest).next()?;
    let mut ask = message.is_none();
    while let Some(heard) = message {
        tell(format!("{} {}", heard.channel(), heard.payload()));
        ask |= heard.channel().ends_with(".oban_leader");
        message = messages.iter().next()?;
    }
    Ok(ask)
}

/// Takes one job whose time has come, as Oban's own engine does. Returns its id and its attempt. Oban's times
/// are in UTC, without a time zone.
fn fetch(client: &mut Client, process: &Process) -> Result<Option<(i64, i32)>, postgres::Error> {
    let taken = client.query_opt(
        "WITH next AS (
             SELECT id FROM oban_jobs
             WHERE state = 'available' AND queue = 'default'
                 AND scheduled_at <= timezone('UTC', now()) AND attempt < max_attempts
             ORDER BY priority, scheduled_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
         )
         UPDATE oban_jobs j
         SET state = 'executing', attempted_at = timezone('UTC', now()), attempted_by = ARRAY[$1, $2],
             attempt = attempt + 1
         FROM next WHERE j.id = next.id RETURNING j.id, j.attempt",
        &[&process.node, &process.uuid],
    )?;
    Ok(taken.map(|row| (row.get(0), row.get(1))))
}

/// Completes a job. Does nothing if the job was cancelled meanwhile, or was rescued and begun again.
fn complete(client: &mut Client, id: i64, attempt: i32) -> Result<(), postgres::Error> {
    let done = "UPDATE oban_jobs SET state = 'completed', completed_at = timezone('UTC', now())
                WHERE id = $1 AND attempt = $2 AND state = 'executing'";
    client.execute(done, &[&id, &attempt]).map(drop)
}

/// Gossips about this node's queue. Others see the state in oban_gossip for obanrs.gossip_ttl (30 s).
fn say_what_runs(client: &mut Client, process: &Process, job: Option<i64>) -> Result<(), postgres::Error> {
    let running = job.map(|id| id.to_string()).unwrap_or_default();
    let uuid = &process.uuid;
    let state = format!(r#"{{"uuid": "{uuid}", "local_limit": 1, "paused": false, "running": [{running}]}}"#);
    let put = "SELECT oban_gossip_put($1, 'default', $2::text::jsonb, $3)";
    client.execute(put, &[&process.node, &state, &NAME]).map(drop)
}

/// Whether this node leads. A transaction in which it writes as the leader begins with `SELECT
/// oban_fence(oban_term('Demo'), 'Demo')`.
fn is_leader(client: &mut Client, node: &str) -> Result<bool, postgres::Error> {
    let since = Instant::now();
    loop {
        let question = "SELECT oban_is_leader($2), EXISTS (SELECT FROM oban_leader($2) WHERE node = $1)";
        let row = client.query_one(question, &[&node, &NAME])?;
        let (leads, elected): (bool, bool) = (row.get(0), row.get(1));
        // The row of the elected node is committed a moment before the node's session knows.
        if leads || !elected || since.elapsed() > ELECTED_AND_KNOWN {
            return Ok(leads);
        }
        sleep(Duration::from_millis(2));
    }
}
