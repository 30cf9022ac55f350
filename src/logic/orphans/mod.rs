//! Which executing jobs no live process runs. The rules name no job that a live process runs, as long as
//! processes keep to these:
//!
//! 1. A process has a node and a uuid, and writes both to `attempted_by`. It gossips with that uuid as long
//!    as it lives, without a silence as long as the grace, and its puts arrive in their order.
//! 2. A process that gossips `running` for a queue lists there each job of it from, at the latest, a grace
//!    after the attempt began, until the job's completion is committed, or no more than a grace less.
//!
//! **Gone.** A process that has gossiped has ended: the last of its entries was deleted, has expired, or
//! another process has taken its place. If it has not been heard again for a grace, its jobs are orphans,
//! except those that it fetched since: each of them is a sign of life. It is called *restarted* when the
//! node's queue is gossiped by another process. Silence says nothing about a process that was never heard, or
//! that was forgotten: its jobs are of an *unknown* process, and nobody knows whether that lives. All of that
//! is new knowledge after each start of the server.
//!
//! **Not running.** A process lives, but does not list the job, whose fetch it never got the answer of. One
//! look is not enough: the job may have ended and its completion be on its way. So the first look only notes
//! the job as a suspect (`Suspects`), if the put that lacks it was made a grace after the attempt began or
//! later. A later look names the job, if a put that was made a grace after the first look or later lacks it
//! as well, and the first put was late enough by the grace of this look. A live process would have listed the
//! job by the first of the two puts (2), so at that time the job had ended; then its completion would be
//! committed by the second put (2), and the row would say so.
//!
//! **The order of reading.** Gossip is read first, then the rows, by a snapshot that is taken after that. So
//! a row that is executing was so when the put was made that lacks its job. The other way round a job that
//! ends in between would look like an orphan.
//!
//! **What is heard by NOTIFY** may be missed: the relay does not listen, is stopped, or has no room. A
//! foreign process has ended only if the relay has listened without a gap since it was heard last
//! (`Coverage::since`), and has been through all that was sent until a grace after the end (`Coverage::at`). A put of
//! it counts as made now only if the relay has been through all that was sent since (it may be late), and
//! only if it is so short that nobody can have shortened it to fit into a notification.
//!
//! What these rules miss: processes that never gossiped, a lost fetch of a process that gossips no `running`,
//! and of a foreign process that runs some hundred jobs in a queue at a time. What is between two looks is
//! not seen. Times are clock readings; an attempt's beginning is what the row says, by its writer's
//! clock. If that clock is behind by more than a grace, a suspect is found too early, and named no sooner than a
//! grace later.

use std::collections::{HashMap, HashSet};

use super::check;
use super::gossip::EntryRef;
use super::gossip::memory::{self, Remembered};
use super::jsonb::{self, Value};

/// The longest foreign state, as jsonb, that can't have been shortened: as text it is shorter, and far from
/// filling a notification.
const MAX_WHOLE: usize = 7_000;

/// The relay's listening, as clock readings; 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// It has missed nothing since.
    pub since: i64,
    /// It has been through all that was sent until then.
    pub at: i64,
}

/// An executing job, as its row has it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub id: i64,
    pub queue: Option<&'a str>,
    /// `None`: there is none, or none that can have gossiped.
    pub node: Option<&'a str>,
    /// In the server's encoding, as in states.
    pub uuid: Option<&'a [u8]>,
    /// Wall time.
    pub attempted_at: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Gone,
    Restarted,
    NotRunning,
    Unknown,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Restarted => "restarted",
            Self::NotRunning => "not running",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Orphan {
        reason: Reason,
        since: i64,
    },
    /// A process lives that may run it, or has not been gone for the grace.
    Fine,
    /// A process lives that lists it.
    Listed,
    /// A process lives that does not, by a put of that time; the attempt began at the other.
    NotListed {
        put_at: i64,
        began: i64,
    },
}

/// What is known of a queue by the last put of a process.
#[derive(Debug)]
struct Check {
    queue: String,
    /// The jobs that it lists. `None`: it lists none, or not all.
    running: Option<HashSet<i64>>,
    put_at: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The clock's reading, before anything of the evidence was read.
    pub now: i64,
    /// How far the wall clock is ahead of the clock.
    pub wall_ahead: i64,
    /// Since when this server has heard anything.
    pub knows_since: i64,
    pub grace: i64,
}

/// What gossip says of one schema.
#[derive(Debug)]
pub struct Evidence {
    times: Times,
    coverage: Coverage,
    processes: HashMap<u64, Remembered>,
    checks: HashMap<u64, Vec<Check>>,
    /// The processes of a node's queue.
    places: HashMap<(String, String), HashSet<u64>>,
}

impl Evidence {
    pub fn new(times: Times, coverage: Coverage) -> Self {
        Self { times, coverage, processes: HashMap::new(), checks: HashMap::new(), places: HashMap::new() }
    }

    pub fn add_process(&mut self, process: Remembered) {
        self.processes.insert(process.hash, process);
    }

    /// An entry that holds.
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

    /// Whether any process is heard by the relay.
    pub fn needs_ear(&self) -> bool {
        self.processes.values().any(|process| process.foreign)
    }

    fn is_due(&self, since: i64) -> bool {
        since.saturating_add(self.times.grace) <= self.times.now
    }

    pub fn judge(&self, job: &Job<'_>) -> Verdict {
        let Times { grace, wall_ahead, knows_since, .. } = self.times;
        let began = job.attempted_at.map_or(knows_since, |at| at.saturating_sub(wall_ahead));
        let orphan = |reason: Reason, since: i64| {
            if self.is_due(since) { Verdict::Orphan { reason, since } } else { Verdict::Fine }
        };
        let unknown = orphan(Reason::Unknown, began.max(knows_since));
        let Some(node) = job.node else { return unknown };
        let hash = memory::hash(node, job.uuid);
        let checks = self.checks.get(&hash).map_or(&[][..], Vec::as_slice);
        let Some(process) = self.processes.get(&hash) else {
            // Put in between, or for want of room not remembered.
            return if checks.is_empty() { unknown } else { self.look_up(job, began, checks) };
        };
        let Some(ended_at) = process.ended_at.filter(|_| checks.is_empty()) else {
            return self.look_up(job, began, checks);
        };
        let since = ended_at.max(began);
        let heard = !process.foreign
            || self.coverage.since != 0
                && self.coverage.since <= process.heard_at
                && since.saturating_add(grace) <= self.coverage.at;
        let other = || self.places.get(&(node.to_owned(), job.queue?.to_owned())).map(|_| ());
        match (heard, other()) {
            (false, _) => unknown,
            (true, None) => orphan(Reason::Gone, since),
            // Of another process, as this one has no entry.
            (true, Some(())) => orphan(Reason::Restarted, since),
        }
    }

    /// Whether a process that lives lists a job.
    fn look_up(&self, job: &Job<'_>, began: i64, checks: &[Check]) -> Verdict {
        let lists = |check: &Check| check.running.as_ref().is_some_and(|ids| ids.contains(&job.id));
        if checks.iter().any(lists) {
            return Verdict::Listed;
        }
        let mut of_queue = checks.iter().filter(|check| Some(&*check.queue) == job.queue).peekable();
        if of_queue.peek().is_none() {
            return Verdict::Fine;
        }
        // An instance of each name may have one.
        let oldest = of_queue
            .try_fold(i64::MAX, |oldest, check| check.running.as_ref().map(|_| oldest.min(check.put_at)));
        match oldest {
            Some(put_at) if began.saturating_add(self.times.grace) <= put_at => {
                Verdict::NotListed { put_at, began }
            }
            _ => Verdict::Fine,
        }
    }
}

/// A job that was looked for and not listed. Plain data in shared memory; zeroed, it is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    id: i64,
    /// Of the attempt.
    attempt: u64,
    database: u32,
    schema: u32,
    /// A clock reading, after the snapshot of the first look. 0: free.
    since: i64,
    /// When the put was made that did not list it then.
    put_at: i64,
    /// The same of the last look.
    seen_at: i64,
}

/// The job of a row, and which attempt of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub database: u32,
    pub schema: u32,
    pub id: i64,
    pub attempt: u64,
}

impl Attempt {
    pub fn of(database: u32, schema: u32, job: &Job<'_>) -> Self {
        let by = memory::hash(job.node.unwrap_or_default(), job.uuid);
        let at = job.attempted_at.unwrap_or(i64::MIN) as u64;
        let attempt = by ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { database, schema, id: job.id, attempt }
    }
}

/// How many suspects there can be.
pub const SUSPECTS: usize = 8_192;

/// A suspect has one of so many places, by its hash.
const PLACES: usize = 8;

/// How many of them the suspects of one schema may take.
const MAX_OF_SCHEMA: usize = PLACES / 2;

/// What was not found again for that long is no suspect any more, in microseconds.
const STALE: i64 = 600_000_000;

/// The caller holds the lock Gossip exclusively as long as this value lives.
pub struct Suspects<'a>(pub &'a mut [Suspect]);

impl Suspects<'_> {
    /// A job is not listed by a put of `put_at`: since when it is an orphan, if it is. `now` was read after
    /// the row.
    pub fn sight(
        &mut self,
        attempt: &Attempt,
        (put_at, began): (i64, i64),
        now: i64,
        grace: i64,
    ) -> Option<i64> {
        let places = self.places(attempt);
        if let Some(suspect) = places.iter_mut().find(|suspect| suspect.is(attempt)) {
            suspect.seen_at = now;
            if suspect.put_at < began.saturating_add(grace) {
                // Too early for this grace: another call, with a shorter one, has noted it.
                (suspect.since, suspect.put_at) = (now, put_at);
            }
            return (suspect.since.saturating_add(grace) <= put_at).then_some(suspect.since);
        }
        let own = |s: &Suspect| s.since != 0 && (s.database, s.schema) == (attempt.database, attempt.schema);
        let full = places.iter().filter(|s| own(s)).count() >= MAX_OF_SCHEMA;
        // None that may still be named gives way: where there are too many, some are found, and then the
        // others.
        let over = |s: &Suspect| s.since == 0 || s.seen_at.saturating_add(STALE) < now;
        let Attempt { database, schema, id, attempt: of } = *attempt;
        if let Some(place) = places.iter_mut().find(|s| over(s) && (!full || own(s))) {
            *place = Suspect { id, attempt: of, database, schema, since: now, put_at, seen_at: now };
        }
        None
    }

    /// Whether a schema has any.
    pub fn any(&self, database: u32, schema: u32) -> bool {
        self.0.iter().any(|s| s.since != 0 && (s.database, s.schema) == (database, schema))
    }

    /// A job is listed.
    pub fn clear(&mut self, attempt: &Attempt) {
        let found = self.places(attempt).iter_mut().find(|suspect| suspect.is(attempt));
        found.into_iter().for_each(|suspect| *suspect = Suspect::default());
    }

    fn places(&mut self, attempt: &Attempt) -> &mut [Suspect] {
        let hash = (attempt.id as u64 ^ attempt.attempt ^ u64::from(attempt.schema) << 32)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let groups = (self.0.len() / PLACES).max(1);
        let first = (hash >> 32) as usize % groups * PLACES;
        let len = self.0.len();
        &mut self.0[first..(first + PLACES).min(len)]
    }
}

impl Suspect {
    fn is(&self, attempt: &Attempt) -> bool {
        self.since != 0
            && (self.database, self.schema, self.id, self.attempt)
                == (attempt.database, attempt.schema, attempt.id, attempt.attempt)
    }
}

#[cfg(test)]
mod tests;
