//! Finds executing jobs that no live process runs. The rules name no job that a live process runs,
//! as long as processes keep to these conditions:
//!
//! 1. A process has a node and a uuid, and writes both to `attempted_by`. The process gossips with
//!    this uuid as long as it lives, without a silence as long as the grace. Its puts arrive in
//!    their order.
//! 2. A process that gossips `running` for a queue lists each job of the queue there. The job is
//!    listed from, at the latest, a grace after the attempt began. The job stays listed until its
//!    completion is committed, or until at most a grace before that.
//!
//! **Gone.** A process that has gossiped has ended: its last entry was deleted, has expired, or
//! another process has replaced it. If the process is not heard again for a grace, its jobs are
//! orphans. A job that the process fetched later is a sign of life, so the grace counts from the
//! fetch. The reason is *restarted* if another process gossips the node's queue. Silence says
//! nothing about a process that was never heard, or that was forgotten. The jobs of such a process
//! are of an *unknown* process, and nobody knows whether it lives. All this knowledge is lost when
//! the server restarts.
//!
//! **Not running.** A process lives, but does not list the job, because the process never got the
//! answer to its fetch. One look is not enough: the job may have ended, and its completion may be
//! on its way. So the first look only notes the job as a suspect (`Suspects`), if the put that
//! lacks the job was made a grace after the attempt began or later. A later look names the job on
//! two conditions. A put that was made a grace after the first look or later lacks the job as well,
//! and the first put was late enough by the grace of this look. A live process would have listed
//! the job by the first of the two puts (2), so the job had ended at that time. Then its completion
//! would be committed by the second put (2), and the row would say so.
//!
//! **The order of reading.** Gossip is read first, and then the rows, by a snapshot that is taken
//! after that. So a row that is executing was executing when the put that lacks its job was made.
//! In the other order, a job that ends in between would look like an orphan.
//!
//! **Claims by members.** What `oban_fetch` and `oban_take` claim for a node that has a member ends with that
//! member (`logic::claimants`), unless the process gossips on.
//!
//! **Gossip by NOTIFY** may be missed: the relay does not listen, is stopped, or has no room. The
//! rules take a foreign process for ended only on two conditions. The relay has listened without a
//! gap since the process was heard last (`Coverage::since`), and has read all that was sent until a
//! grace after the end (`Coverage::at`). A foreign put counts as made now only if the relay has read all
//! that was sent until the put, because the relay may be late. The put's list counts only if the
//! state is so short that nobody can have shortened it to fit into a notification.
//!
//! These rules miss some orphans: jobs of processes that never gossiped, a lost fetch of a process
//! that gossips no `running`, and a lost fetch of a foreign process that runs some hundred jobs in
//! a queue at a time. A job that begins and ends between two looks is not seen. Times are clock
//! readings. The beginning of an attempt is the time in the row, by its writer's clock. If that
//! clock is behind by more than a grace, a suspect is noted too early, and is named no sooner than
//! a grace later.

use std::collections::{HashMap, HashSet};

use super::check;
use super::claimants::{ClaimEvidence, Lives, ProcessHash};
use super::gossip::EntryRef;
use super::gossip::memory::{self, Remembered};
use super::ids::{DatabaseOid, SchemaOid};
use super::jsonb::{self, Value};
use super::times::{ClockTime, WallTime};

/// The longest foreign state, in bytes of `jsonb`, that can't have been shortened. As text the
/// state is shorter, and far from filling a notification.
const MAX_WHOLE: usize = 7_000;

/// The relay's coverage of foreign gossip, as clock readings in microseconds; 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The relay has missed nothing since this time. 0: the relay does not listen.
    pub since: ClockTime,
    /// The relay has read all that was sent until this time.
    pub at: ClockTime,
}

/// An executing job, as its row has it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub id: i64,
    pub queue: Option<&'a str>,
    /// The node that fetched the job. `None`: the row names no node, or one that can't have
    /// gossiped.
    pub node: Option<&'a str>,
    /// The uuid of the process that fetched the job, in the server's encoding, as in states.
    pub uuid: Option<&'a [u8]>,
    /// The wall time at which the attempt began, in microseconds since 2000.
    pub attempted_at: Option<WallTime>,
}

/// Why a job is an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The process has ended, and no process gossips the node's queue.
    Gone,
    /// The process has ended, and another process gossips the node's queue.
    Restarted,
    /// The process lives, but does not run the job.
    NotRunning,
    /// The row names no process, or one that was never heard, was forgotten, or whose end the relay
    /// may have missed.
    Unknown,
}

impl Reason {
    /// Returns the reason as `oban_orphans` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Restarted => "restarted",
            Self::NotRunning => "not running",
            Self::Unknown => "unknown",
        }
    }
}

/// What gossip says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No live process runs the job, since the clock reading `since`.
    Orphan { reason: Reason, since: ClockTime },
    /// A live process may run the job, or the grace is not over.
    Fine,
    /// A live process lists the job.
    Listed,
    /// The process lives, and does not list the job in the put made at `put_at`. The attempt began
    /// at `began`. Both are clock readings.
    NotListed { put_at: ClockTime, began: ClockTime },
}

/// What the last put of a process says of a queue.
#[derive(Debug)]
struct Check {
    queue: String,
    /// The jobs that the put lists. `None`: the put has no list, or its list may be late or
    /// shortened.
    running: Option<HashSet<i64>>,
    put_at: ClockTime,
}

/// The times by which jobs are judged, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The clock reading before any of the evidence was read.
    pub now: ClockTime,
    /// How far the wall clock is ahead of `pg::clock`.
    pub wall_ahead: i64,
    /// The clock reading since which this server hears gossip.
    pub knows_since: ClockTime,
    /// How long a process must not be heard, or a job must not be listed.
    pub grace: i64,
}

/// What gossip says of one schema.
#[derive(Debug)]
pub struct Evidence {
    times: Times,
    coverage: Coverage,
    /// The processes that the server remembers, by their hash.
    processes: HashMap<u64, Remembered>,
    /// The last puts of each process, by the hash of the process.
    checks: HashMap<u64, Vec<Check>>,
    /// The processes that gossip a queue of a node, by their hashes. The key is node and queue.
    places: HashMap<(String, String), HashSet<u64>>,
}

impl Evidence {
    pub fn new(times: Times, coverage: Coverage) -> Self {
        Self { times, coverage, processes: HashMap::new(), checks: HashMap::new(), places: HashMap::new() }
    }

    /// Adds a process that the server remembers.
    pub fn add_process(&mut self, process: Remembered) {
        self.processes.insert(process.hash, process);
    }

    /// Adds an entry that has not expired.
    pub fn add_entry(&mut self, entry: &EntryRef<'_>) {
        let state = match jsonb::read(entry.state) {
            Ok(Value::Object(state)) => Some(state),
            _ => None,
        };
        let get = |key: &str| state.and_then(|state| state.get(key).ok().flatten());
        let hash = memory::hash(entry.node, check::uuid(get("uuid")));
        let late = entry.foreign && (entry.state.len() > MAX_WHOLE || entry.put_at > self.coverage.at);
        let running = get("running").and_then(|running| check::listed(&running)).filter(|_| !late);
        let queue = entry.queue.to_owned();
        self.places.entry((entry.node.to_owned(), queue.clone())).or_default().insert(hash);
        self.checks.entry(hash).or_default().push(Check { queue, running, put_at: entry.put_at });
    }

    pub fn grace(&self) -> i64 {
        self.times.grace
    }

    /// Returns whether any process is foreign, so that the verdicts depend on what the relay has
    /// heard.
    pub fn needs_coverage(&self) -> bool {
        self.processes.values().any(|process| process.foreign)
    }

    /// Returns whether a grace has passed since the clock reading `since`.
    fn is_due(&self, since: ClockTime) -> bool {
        since.saturating_add(self.times.grace) <= self.times.now
    }

    /// Returns what gossip and claims say of a job.
    pub fn judge(&self, job: &Job<'_>, claims: &ClaimEvidence) -> Verdict {
        let gossip = self.judge_by_gossip(job);
        let (Some(node), Some(attempted_at)) = (job.node, job.attempted_at) else { return gossip };
        let hash = ProcessHash::of(node, job.uuid);
        let gossips = self.checks.contains_key(&hash.process);
        match (claims.lives(hash, attempted_at), gossip) {
            (Lives::Unknown, verdict) => verdict,
            // A process whose gossip has ended may live as a member. If its gossip goes on, that says which
            // jobs it runs.
            (Lives::Yes, Verdict::Orphan { .. }) => Verdict::Fine,
            (Lives::Yes, verdict) => verdict,
            (Lives::No { .. }, verdict) if gossips => verdict,
            (Lives::No { since, replaced }, _) => {
                let reason = if replaced { Reason::Restarted } else { Reason::Gone };
                let since = since.max(attempted_at.to_clock(self.times.wall_ahead));
                if self.is_due(since) { Verdict::Orphan { reason, since } } else { Verdict::Fine }
            }
        }
    }

    /// Returns what gossip says of a job.
    fn judge_by_gossip(&self, job: &Job<'_>) -> Verdict {
        let Times { grace, wall_ahead, knows_since, .. } = self.times;
        let began = job.attempted_at.map_or(knows_since, |at| at.to_clock(wall_ahead));
        let orphan = |reason: Reason, since: ClockTime| {
            if self.is_due(since) { Verdict::Orphan { reason, since } } else { Verdict::Fine }
        };
        let unknown = orphan(Reason::Unknown, began.max(knows_since));
        let Some(node) = job.node else { return unknown };
        let hash = memory::hash(node, job.uuid);
        let checks = self.checks.get(&hash).map_or(&[][..], Vec::as_slice);
        let Some(process) = self.processes.get(&hash) else {
            // The process put its first entry between the two readings, or there was no room to
            // remember it.
            return if checks.is_empty() { unknown } else { self.look_up(job, began, checks) };
        };
        let Some(ended_at) = process.ended_at.filter(|_| checks.is_empty()) else {
            return self.look_up(job, began, checks);
        };
        let since = ended_at.max(began);
        let heard = !process.foreign
            || self.coverage.since != ClockTime::ZERO
                && self.coverage.since <= process.heard_at
                && since.saturating_add(grace) <= self.coverage.at;
        let other = || self.places.get(&(node.to_owned(), job.queue?.to_owned())).map(|_| ());
        match (heard, other()) {
            (false, _) => unknown,
            (true, None) => orphan(Reason::Gone, since),
            // The queue is gossiped by another process, because this one has no entry.
            (true, Some(())) => orphan(Reason::Restarted, since),
        }
    }

    /// Returns the verdict on a job of a process that lives. `checks` are the last puts of the
    /// process.
    fn look_up(&self, job: &Job<'_>, began: ClockTime, checks: &[Check]) -> Verdict {
        let lists = |check: &Check| check.running.as_ref().is_some_and(|ids| ids.contains(&job.id));
        if checks.iter().any(lists) {
            return Verdict::Listed;
        }
        let mut of_queue = checks.iter().filter(|check| Some(&*check.queue) == job.queue).peekable();
        if of_queue.peek().is_none() {
            return Verdict::Fine;
        }
        // Instances of several names may gossip a queue of this name.
        let oldest = of_queue.try_fold(ClockTime::NEVER, |oldest, check| {
            check.running.as_ref().map(|_| oldest.min(check.put_at))
        });
        match oldest {
            Some(put_at) if began.saturating_add(self.times.grace) <= put_at => {
                Verdict::NotListed { put_at, began }
            }
            _ => Verdict::Fine,
        }
    }
}

/// A job that was looked for and not listed, in shared memory, guarded by the lock Gossip. A zeroed
/// suspect is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    /// The id of the job.
    id: i64,
    /// The hash of the attempt; see `Attempt`.
    attempt: u64,
    /// The oid of the database.
    database: DatabaseOid,
    /// The oid of the schema.
    schema: SchemaOid,
    /// The clock reading after the snapshot of the first look, in microseconds; 0 if the suspect is
    /// free.
    since: ClockTime,
    /// The clock reading, in microseconds, at which the put was made that did not list the job at
    /// the first look.
    put_at: ClockTime,
    /// The clock reading after the snapshot of the last look, in microseconds.
    seen_at: ClockTime,
}

/// The job of a row, and the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub database: DatabaseOid,
    pub schema: SchemaOid,
    pub id: i64,
    /// The hash of process and time of the attempt. Another attempt of the job has another hash.
    pub attempt: u64,
}

impl Attempt {
    /// Returns the attempt that a row shows.
    pub fn of(database: DatabaseOid, schema: SchemaOid, job: &Job<'_>) -> Self {
        let by = memory::hash(job.node.unwrap_or_default(), job.uuid);
        let at = job.attempted_at.map_or(i64::MIN, |at| at.0) as u64;
        let attempt = by ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { database, schema, id: job.id, attempt }
    }
}

/// The number of suspects for which shared memory has room.
pub const MAX_SUSPECTS: usize = 8_192;

/// How many suspects a group has. The hash of an attempt selects its group.
const PLACES: usize = 8;

/// How many suspects of a group one schema may have.
const MAX_OF_SCHEMA: usize = PLACES / 2;

/// How long after its last look a suspect may be overwritten, in microseconds.
const STALE: i64 = 600_000_000;

/// All suspects. The caller holds the lock Gossip exclusively as long as this value lives.
pub struct Suspects<'a>(pub &'a mut [Suspect]);

impl Suspects<'_> {
    /// Notes that the put made at `put_at` does not list a job whose attempt began at `began`.
    /// `now` is a clock reading after the snapshot of the row. Returns the clock reading since
    /// which the job is an orphan. `None`: the job is no orphan yet, or there is no room for the
    /// suspect.
    pub fn sight(
        &mut self,
        attempt: &Attempt,
        (put_at, began): (ClockTime, ClockTime),
        now: ClockTime,
        grace: i64,
    ) -> Option<ClockTime> {
        let places = self.places(attempt);
        if let Some(suspect) = places.iter_mut().find(|suspect| suspect.is(attempt)) {
            suspect.seen_at = now;
            if suspect.put_at < began.saturating_add(grace) {
                // The first put was too early for this grace, because a call with a shorter grace
                // has noted it.
                (suspect.since, suspect.put_at) = (now, put_at);
            }
            return (suspect.since.saturating_add(grace) <= put_at).then_some(suspect.since);
        }
        let own = |s: &Suspect| {
            s.since != ClockTime::ZERO && (s.database, s.schema) == (attempt.database, attempt.schema)
        };
        let full = places.iter().filter(|s| own(s)).count() >= MAX_OF_SCHEMA;
        // No suspect that may still be named is overwritten. If a schema has too many suspects,
        // some of them are named first, and the others later.
        let over = |s: &Suspect| s.since == ClockTime::ZERO || s.seen_at.saturating_add(STALE) < now;
        let Attempt { database, schema, id, attempt: of } = *attempt;
        if let Some(place) = places.iter_mut().find(|s| over(s) && (!full || own(s))) {
            *place = Suspect { id, attempt: of, database, schema, since: now, put_at, seen_at: now };
        }
        None
    }

    /// Returns whether a schema has suspects.
    pub fn any(&self, database: DatabaseOid, schema: SchemaOid) -> bool {
        self.0.iter().any(|s| s.since != ClockTime::ZERO && (s.database, s.schema) == (database, schema))
    }

    /// Frees the suspect of a job that is listed.
    pub fn clear(&mut self, attempt: &Attempt) {
        let found = self.places(attempt).iter_mut().find(|suspect| suspect.is(attempt));
        found.into_iter().for_each(|suspect| *suspect = Suspect::default());
    }

    /// Returns the group of suspects to which an attempt belongs.
    fn places(&mut self, attempt: &Attempt) -> &mut [Suspect] {
        let hash = (attempt.id as u64 ^ attempt.attempt ^ u64::from(attempt.schema.0) << 32)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let groups = (self.0.len() / PLACES).max(1);
        let first = (hash >> 32) as usize % groups * PLACES;
        let len = self.0.len();
        &mut self.0[first..(first + PLACES).min(len)]
    }
}

impl Suspect {
    fn is(&self, attempt: &Attempt) -> bool {
        self.since != ClockTime::ZERO
            && (self.database, self.schema, self.id, self.attempt)
                == (attempt.database, attempt.schema, attempt.id, attempt.attempt)
    }
}

#[cfg(test)]
mod tests;
