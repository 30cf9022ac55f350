//! Many takers at a time, while calls are cancelled, sessions are ended, queues are paused, other programs
//! claim jobs, and processes die. Is every job done, and none twice? Is no wakeup lost?
//!
//! The takers wait for an hour. So a round of jobs that is not done within half a minute has lost a wakeup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use postgres::Client;
use serde_json::Value;

use crate::splitbrain::Dice;
use crate::support::{Ask, Cluster, patiently, wait_for, wait_until};

const TAKERS: u64 = 20;
const QUEUES: [&str; 4] = ["a", "b", "c", "d"];

/// How a taker connects. `None`: the server is not there at the moment.
pub type Connect = Arc<dyn Fn() -> Option<Client> + Send + Sync>;

/// What the takers share.
#[derive(Default)]
struct Shared {
    /// The round. A taker whose call or session was ended comes back in the next one, so that it does not
    /// find by chance what nobody was woken for.
    round: AtomicU64,
    stop: AtomicBool,
    /// How many calls were ended.
    ended: AtomicU64,
}

struct Worker {
    number: u64,
    dice: Dice,
    client: Option<Client>,
    shared: Arc<Shared>,
    connect: Connect,
    timeout: &'static str,
}

impl Worker {
    /// Takes and does jobs until the test stops.
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let round = self.shared.round.load(Ordering::SeqCst);
            if self.work().is_err() && !self.shared.stop.load(Ordering::SeqCst) {
                self.shared.ended.fetch_add(1, Ordering::SeqCst);
                self.recover();
                let next = || self.shared.round.load(Ordering::SeqCst) > round;
                while !next() && !self.shared.stop.load(Ordering::SeqCst) {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }

    fn client(&mut self) -> &mut Client {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.client = Some(wait_for("it connects", || (self.connect)()));
        }
        self.client.as_mut().expect("it was put there")
    }

    /// Gives the jobs back that were claimed by a call whose answer was lost. This is tried until it
    /// succeeds.
    fn recover(&mut self) {
        let sql = format!(
            "SELECT count(oban_fail_job(id, attempt, 'lost', retry_in => '0')) FROM oban_jobs
             WHERE state = 'executing' AND attempted_by[1] = 'n{}'",
            self.number
        );
        wait_until("it recovers", || self.client().simple_query(&sql).is_ok());
    }

    /// Takes some jobs, and does them. `Err`: the call or the session was ended.
    fn work(&mut self) -> Result<(), postgres::Error> {
        let (number, timeout) = (self.number, self.timeout);
        let queues: Vec<&str> =
            QUEUES.into_iter().zip(0..).filter(|(_, n)| (number >> n) & 1 == 1).map(|(q, _)| q).collect();
        let queues = if queues.is_empty() { QUEUES.to_vec() } else { queues };
        let most = 1 + self.dice.below(4);
        let call = format!(
            "CALL oban_take('{{{}}}', 'n{number}', {most}, timeout => '{timeout}')",
            queues.join(",")
        );
        // The simple protocol works through PgBouncer, too.
        let answer = self.client().simple_query(&call)?;
        let jobs = answer.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let jobs: Vec<Value> = serde_json::from_str(&jobs.expect("one row")).unwrap();
        assert!(jobs.len() <= most as usize);
        for job in jobs {
            let (id, attempt) = (&job["id"], &job["attempt"]);
            assert!(queues.contains(&job["queue"].as_str().unwrap()), "{job}");
            let outcome = match self.dice.below(20) {
                0 => format!("oban_fail_job({id}, {attempt}, 'e', retry_in => '0') IS NOT NULL"),
                1 => format!("oban_snooze_job({id}, {attempt}, '0')"),
                _ => format!("oban_complete_job({id}, {attempt})"),
            };
            // The log has one row for each attempt, which its primary key holds.
            let sql = format!(
                "BEGIN; INSERT INTO log VALUES ({id}, {attempt}, 'n{number}', '{}'); SELECT {outcome}; COMMIT",
                &outcome[5..9]
            );
            if let Err(error) = self.client().simple_query(&sql) {
                assert!(error.code().is_none_or(|c| c.code() != "23505"), "attempt {attempt} of {id} twice");
                let _ = self.client().simple_query("ROLLBACK");
                return Err(error);
            }
        }
        Ok(())
    }
}

/// What disturbs the takers.
#[derive(Clone, Copy, Default)]
pub struct Disturbances {
    /// Ends of calls and sessions in a round, at most.
    pub ends: u64,
    pub pauses: bool,
    /// Another program claims jobs, and rolls some of its claims back. The takers' timeouts are short then.
    pub foreign: bool,
    /// In these rounds a session is killed, so that the whole server restarts.
    pub crashes: &'static [u64],
}

/// Other programs' claims, as Oban's nodes claim.
fn claim_as_others(mut client: Client, shared: &Shared) {
    let mut dice = Dice(99);
    while !shared.stop.load(Ordering::SeqCst) {
        client
            .batch_execute(
                "BEGIN; UPDATE oban_jobs SET state = 'executing', attempt = attempt + 1, attempted_by = '{foreign}'
                 WHERE id IN (SELECT id FROM oban_jobs WHERE state = 'available' AND attempt < 10
                     ORDER BY priority, scheduled_at, id LIMIT 2 FOR UPDATE SKIP LOCKED)",
            )
            .unwrap();
        dice.pause(5);
        let end = if dice.below(2) == 0 {
            "UPDATE oban_jobs SET state = 'completed' WHERE state = 'executing' AND attempted_by = '{foreign}'; COMMIT"
        } else {
            "ROLLBACK"
        };
        client.batch_execute(end).unwrap();
        dice.pause(10);
    }
}

/// Runs rounds of at most `most` jobs, with takers that connect by `connect`.
pub fn run(cluster: &Cluster, connect: Connect, rounds: u64, most: u64, what: Disturbances) {
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE TABLE log (id bigint, attempt int, node text, outcome text, PRIMARY KEY (id, attempt));
             ALTER TABLE oban_jobs ALTER max_attempts SET DEFAULT 1000",
        )
        .unwrap();
    let shared = Arc::new(Shared::default());
    let timeout = if what.foreign { "200 ms" } else { "1 hour" };
    let takers: Vec<JoinHandle<()>> = (0..TAKERS)
        .map(|number| {
            let (shared, connect) = (shared.clone(), connect.clone());
            let worker = Worker { number, dice: Dice(number), client: None, shared, connect, timeout };
            std::thread::spawn(|| worker.run())
        })
        .collect();
    let foreign = what.foreign.then(|| {
        let (client, shared) = (cluster.client(), shared.clone());
        std::thread::spawn(move || claim_as_others(client, &shared))
    });
    let mut dice = Dice(4711);
    let mut jobs = 0;
    for round in 0..rounds {
        shared.round.fetch_add(1, Ordering::SeqCst);
        let mut left = 1 + dice.below(most);
        jobs += left;
        let mut paused = None;
        if what.pauses {
            let (queue, node) = (QUEUES[dice.below(4) as usize], dice.below(TAKERS));
            let node = if dice.below(2) == 0 { "NULL".into() } else { format!("'n{node}'") };
            admin.batch_execute(&format!("SELECT oban_pause_queue('{queue}', {node})")).unwrap();
            paused = Some((queue, node));
        }
        let mut ends = if what.ends == 0 { 0 } else { dice.below(what.ends + 1) };
        while left > 0 {
            let some = left.min(1 + dice.below(8));
            left -= some;
            let queue = QUEUES[dice.below(4) as usize];
            admin
                .batch_execute(&format!(
                    "INSERT INTO oban_jobs (worker, queue) SELECT 'w', '{queue}' FROM generate_series(1, {some})"
                ))
                .unwrap();
            if ends > 0 && dice.below(2) == 0 {
                ends -= 1;
                let function = ["pg_cancel_backend", "pg_terminate_backend"][dice.below(2) as usize];
                // Sessions that are looking, waiting or working.
                admin
                    .batch_execute(&format!(
                        "SELECT {function}(pid) FROM pg_stat_activity WHERE query LIKE 'CALL oban_take%'
                         ORDER BY random() LIMIT 1"
                    ))
                    .unwrap();
            }
        }
        // By name: the view leaves out a table that a VACUUM has locked at the moment.
        if let Some((queue, node)) = paused {
            admin.batch_execute(&format!("SELECT oban_resume_queue('{queue}', {node})")).unwrap();
        }
        if what.crashes.contains(&round) {
            let pid: i32 = admin.one(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL oban_take%' ORDER BY random() LIMIT 1",
            );
            cluster.crash(pid);
            admin = wait_for("the server is back", || cluster.try_client("postgres", "postgres").ok());
            shared.round.fetch_add(1, Ordering::SeqCst); // the takers come back at once
        }
        let open = "SELECT count(*) FROM oban_jobs WHERE state <> 'completed'";
        if patiently(|| (admin.one::<i64>(open) == 0).then_some(())).is_none() {
            panic!("round {round} is not done: {}", state_of(&mut admin));
        }
    }
    shared.stop.store(true, Ordering::SeqCst);
    wait_until("the takers end", || {
        let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL oban_take%' AND state = 'active'";
        admin.batch_execute(sql).unwrap();
        takers.iter().all(JoinHandle::is_finished)
    });
    takers.into_iter().chain(foreign).for_each(|thread| thread.join().unwrap());
    // Each job was completed by one attempt. Each earlier attempt has failed, was snoozed or was lost.
    let sums = admin
        .query_one(
            "SELECT count(DISTINCT j.id), count(*) FILTER (WHERE l.outcome = 'comp'), count(l.id),
                 count(DISTINCT l.id) FILTER (WHERE l.outcome = 'comp'), count(*) FILTER (WHERE l.attempt > j.attempt)
             FROM oban_jobs j LEFT JOIN log l USING (id) WHERE j.state = 'completed' AND j.attempted_by[1] <> 'foreign'",
            &[],
        )
        .unwrap();
    let [done, completed, attempts, distinct, later]: [i64; 5] = std::array::from_fn(|n| sums.get(n));
    assert_eq!((done, done, 0), (completed, distinct, later), "of {attempts} attempts");
    let all: i64 = admin.one("SELECT count(*) FROM oban_jobs WHERE state = 'completed'");
    assert_eq!(all as u64, jobs);
    assert!(what.foreign || done == all);
    println!("{jobs} jobs in {attempts} attempts, {} calls were ended", shared.ended.load(Ordering::SeqCst));
}

/// What is not done, and what the takers do.
fn state_of(admin: &mut Client) -> String {
    admin.one(
        "SELECT concat(
            (SELECT jsonb_agg(to_jsonb(j) - 'args' - 'errors') FROM oban_jobs j WHERE state <> 'completed'),
            (SELECT jsonb_agg(to_jsonb(s)) FROM oban_queue_signals s WHERE paused),
            (SELECT jsonb_agg(to_jsonb(s)) FROM oban_workers s),
            (SELECT jsonb_agg(jsonb_build_array(pid, wait_event, left(query, 60), state_change)) FROM pg_stat_activity
             WHERE query LIKE '%oban_take%'))",
    )
}

fn direct(cluster: &Arc<Cluster>) -> Connect {
    let cluster = cluster.clone();
    Arc::new(move || cluster.try_client("postgres", "postgres").ok())
}

#[test]
fn each_job_is_done_once_whatever_ends_or_pauses() {
    let cluster = Arc::new(Cluster::installed());
    let what = Disturbances { ends: 4, pauses: true, ..Disturbances::default() };
    run(&cluster, direct(&cluster), 200, 40, what);
}

#[test]
fn each_job_is_done_once_beside_other_programs() {
    let cluster = Arc::new(Cluster::installed());
    let what = Disturbances { ends: 2, foreign: true, ..Disturbances::default() };
    run(&cluster, direct(&cluster), 60, 40, what);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_each_job_is_done_once_over_crashes() {
    let cluster = Arc::new(Cluster::installed());
    let what = Disturbances { ends: 6, pauses: true, crashes: &[50, 120, 190], ..Disturbances::default() };
    run(&cluster, direct(&cluster), 500, 400, what);
}
