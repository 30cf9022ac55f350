//! Elections in `<prefix>.oban_peers`: what `logic::peer::View::plan` says, done.
//!
//! Each step is one short transaction (`table`), which runs no code of any user's. The copy in shared memory is changed
//! after its commit (see `logic::peer` for what that order guarantees, and for what a successor does with the row if
//! this keeper dies in between).
//!
//! A prefix whose table can't be used stops only itself. A missing table is looked at again when the next member joins
//! or the prefix is installed; one that is locked, or has what elections would have to ignore, with a growing delay.
//! The first attempt at a table waits for its lock a moment, as a command that has just changed the table still holds
//! it; further ones do not wait at all, nor does any after one such wait in vain in the same pass. Each such state is
//! logged once. A row that another transaction holds is skipped; the end of a fence wakes the keeper (unless its
//! transaction was prepared: then the delay has to do).

mod sweep;
mod table;

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use pgrx::prelude::*;

use self::sweep::Sweep;
use crate::config;
use crate::error;
use crate::logic::backoff::ELECTION;
use crate::logic::lifecycle::{Kind, Rows};
use crate::logic::peer::{Electorate, Ended, Leadership, Plan, Recorded};
use crate::pg::{latch, session, time, xact};
use crate::shmem;
use crate::shmem::rings::{self, Counter};

/// How long the first attempt at a table waits for its lock: a prefix that is locked is not worth more of the others'
/// time.
pub const LOCK_TIMEOUT: &CStr = c"50ms";

/// How long the commit waits. If it announces the end of a leadership, it queues with every other
/// NOTIFY of the server, and the holder of that lock may be waiting for its disk or its standby.
const COMMIT_LOCK_TIMEOUT: &CStr = c"5s";

/// The longest that one step may take, in milliseconds: a table may be as large as its owner likes.
const STEP_LIMIT: i32 = 1_000;

/// Why a name, or a prefix, has no elections at the moment.
#[derive(Default)]
struct Failure {
    times: u32,
    retry_at: i64,
    message: String,
}

/// By prefix and name; the name is empty for a prefix's sweep.
type Key = (String, String);

pub struct Elections {
    database: u32,
    failures: HashMap<Key, Failure>,
    /// Rows that other transactions held: how often they did, and when to look again at the latest.
    held: HashMap<Key, (u32, i64)>,
    /// Prefixes whose table is locked, or has what elections would have to ignore.
    unusable: HashMap<String, Failure>,
    /// Prefixes of which the log says already that they hold no elections.
    warned: HashSet<String>,
    sweep: Sweep,
    /// No table has been waited for in vain in this pass: a tenant that locks many does not use up the others' time.
    patient: bool,
    /// An election found that the extension is gone: the keeper has to look, too.
    pub dropped: bool,
    /// This process does not know what holds for the database now: a new one has to take its place.
    pub outdated: bool,
}

/// What a transaction found or did; shared memory gets to know it after the commit.
enum Outcome {
    /// The row is a member's of ours.
    Ours(Leadership),
    /// The row is another node's.
    Foreign(Leadership),
    /// There is no row, and no candidate for it.
    Vacant,
    /// Another transaction holds the row, or inserts one of that name.
    Held,
    /// Another transaction was faster: look again.
    Again,
    /// There is no table, or `oban_install` has not completed it.
    Missing { hint: String },
    /// Another transaction holds a lock on the table.
    Locked,
    /// The table has what elections would have to ignore.
    Unusable { what: String, hint: String },
    /// The extension was dropped.
    Dropped,
    /// A setting of the database that this process began with has been reset.
    Outdated,
}

impl Elections {
    pub fn new(database: u32) -> Self {
        Self {
            database,
            failures: HashMap::new(),
            held: HashMap::new(),
            unusable: HashMap::new(),
            warned: HashSet::new(),
            sweep: Sweep::default(),
            patient: true,
            dropped: false,
            outdated: false,
        }
    }

    /// Somebody may have let go of a row.
    pub fn let_go(&mut self) {
        self.held.values_mut().for_each(|(_, retry_at)| *retry_at = 0);
    }

    /// Whether whoever ends a transaction with a fence shall wake this keeper.
    fn expect_fences(&self, expected: bool) {
        let _ = shmem::registry(|r| r.expect_fences(self.database, expected));
    }

    /// Rows of oban_peers have changed.
    pub fn rows_changed(&mut self, rows: Rows) {
        if rows == Rows::All {
            let _ = shmem::peers(|p| p.doubt(self.database));
        }
        self.sweep.changed(rows);
    }

    /// Does what is due now; when to come back, if ever.
    ///
    /// Renewals come first, and what failed before comes last. A step that fails has cost time, that of a lock at the
    /// most, so the pass ends with it: the next one begins with what has become due meanwhile, and leaves out what
    /// failed until its delay is over.
    pub fn pass(&mut self) -> Option<i64> {
        let (now, lease) = (time::now(), config::lease());
        self.patient = true;
        let mut plans = shmem::peers_view(|v| v.plans(self.database, now, lease)).unwrap_or_default();
        self.forget_what_is_gone(&plans);
        plans.sort_by_cached_key(|(e, plan, _)| (self.failures_of(e), !matches!(plan, Plan::Renew { .. })));
        let mut due = None::<i64>;
        for (electorate, plan, waiting) in &plans {
            let next = match (self.retry_at(&names(electorate)), plan) {
                (Some(retry_at), _) => Some(retry_at),
                (None, Plan::Wait { until }) if !waiting => Some(*until),
                (None, _) => match self.step(electorate) {
                    Ok(next) => next,
                    Err(message) => {
                        self.failed(names(electorate), message);
                        due = Some(now);
                        break;
                    }
                },
            };
            due = earliest(due, next);
        }
        earliest(due, self.sweep_rows())
    }

    /// Drops what is remembered of electorates that are no more.
    fn forget_what_is_gone(&mut self, plans: &[(Electorate, Plan, bool)]) {
        if !(self.failures.is_empty() && self.held.is_empty()) {
            let known: HashSet<Key> = plans.iter().map(|(e, _, _)| names(e)).collect();
            self.failures.retain(|key, _| key.1.is_empty() || known.contains(key));
            self.held.retain(|key, _| key.1.is_empty() || known.contains(key));
        }
        let is_known = |prefix: &String| plans.iter().any(|(e, _, _)| prefix == e.prefix.as_str());
        self.warned.retain(is_known);
        let swept = &self.sweep;
        self.unusable.retain(|prefix, _| is_known(prefix) || swept.is_due(prefix));
    }

    /// How often an electorate has failed in a row.
    fn failures_of(&self, electorate: &Electorate) -> u32 {
        let own = self.failures.get(&names(electorate)).map_or(0, |f| f.times);
        own.max(self.unusable.get(electorate.prefix.as_str()).map_or(0, |f| f.times))
    }

    /// When something that failed, or is held, is tried again; `None` when that is now.
    fn retry_at(&self, key: &Key) -> Option<i64> {
        let failed = self.failures.get(key).map(|f| f.retry_at);
        let unusable = self.unusable.get(&key.0).map(|f| f.retry_at);
        let held = self.held.get(key).map(|(_, retry_at)| *retry_at);
        let resting = self.sweep.rests_until(&key.0).filter(|_| key.1.is_empty());
        failed.max(unusable).max(held).max(resting).filter(|at| time::now() < *at)
    }

    /// Whether an attempt at a prefix's table waits for its lock.
    fn waits_for(&self, prefix: &str) -> bool {
        self.patient && !self.unusable.contains_key(prefix)
    }

    /// What is due for one electorate; when to come back, or why it failed.
    fn step(&mut self, electorate: &Electorate) -> Result<Option<i64>, String> {
        let wait = self.waits_for(electorate.prefix.as_str());
        // Twice is enough for every honest race; what is left comes with the next pass.
        for _ in 0..2 {
            let now = time::now();
            let planned =
                shmem::peers_view(|v| (v.plan(electorate, now, config::lease()), v.changes(electorate)));
            let Ok((plan, (changes_seen, greatest_term))) = planned else { return Ok(None) };
            let lapsed = matches!(plan, Plan::Elect { ended: Some(Ended { lapsed: true, .. }), .. });
            let renewal = matches!(plan, Plan::Renew { .. });
            let outcome = match plan {
                Plan::Forget => {
                    self.forget(electorate);
                    return Ok(None);
                }
                Plan::Wait { until } => {
                    wake_considered(electorate);
                    return Ok(Some(until));
                }
                Plan::Renew { leader, term } => transaction(c"obanrs: renewing a lease", || {
                    table::renew(electorate, &leader, term, wait)
                })?,
                Plan::Elect { ended, candidate } => {
                    self.expect_fences(true); // before it is tried, or its end could be missed
                    transaction(c"obanrs: election", || {
                        table::elect(electorate, ended, candidate, greatest_term, wait)
                    })?
                }
            };
            match outcome {
                // Not ours any more. (But a leadership that is over stays so until its row is gone.)
                Outcome::Again if renewal => vacate(electorate),
                Outcome::Again => {}
                outcome => return Ok(self.record_outcome(electorate, outcome, changes_seen, lapsed)),
            }
        }
        // Its schema's owner swaps tables, or the like: not worth the processor's whole time.
        Err("its row keeps changing under us".into())
    }

    /// Tells shared memory, and members that wait for an election, what the table says now; when to come back.
    /// `changes_seen` is for `Peers::record`, `lapsed` whether a lease was over.
    fn record_outcome(
        &mut self,
        electorate: &Electorate,
        outcome: Outcome,
        changes_seen: u32,
        lapsed: bool,
    ) -> Option<i64> {
        let (prefix, key) = (electorate.prefix.as_str(), names(electorate));
        match outcome {
            Outcome::Missing { hint } => {
                vacate(electorate);
                wake_considered(electorate);
                self.warn(prefix, "its table of leaders is missing, or not installed", hint);
                return None;
            }
            Outcome::Unusable { what, hint } => {
                // What is in shared memory holds until its lease is over.
                wake_considered(electorate);
                self.warn(prefix, &what, hint);
                return Some(self.hold_off_prefix(prefix));
            }
            Outcome::Locked => {
                self.patient = false;
                let retry_at = self.hold_off_prefix(prefix);
                let what =
                    format!("elections in prefix \"{prefix}\" wait for a lock on its table of leaders");
                // The sweep may have been there before, and has said nothing.
                let told = self.unusable.get(prefix).is_some_and(|failure| failure.message == what);
                if !told {
                    self.note(&what);
                    warning!("obanrs: {what}");
                    self.unusable.entry(prefix.to_owned()).or_default().message = what;
                }
                return Some(retry_at);
            }
            Outcome::Held => {
                // Nobody leads meanwhile, and nobody need wait for that.
                wake_considered(electorate);
                return Some(self.hold_off(key));
            }
            Outcome::Dropped => {
                self.dropped = true;
                return None;
            }
            Outcome::Outdated => {
                self.outdated = true;
                return None;
            }
            Outcome::Ours(row) | Outcome::Foreign(row) => {
                let told = record(electorate, row, changes_seen);
                rings::count(Counter::Lapses, usize::from(told && lapsed));
            }
            Outcome::Vacant | Outcome::Again => {
                vacate(electorate);
                rings::count(Counter::Lapses, usize::from(lapsed));
            }
        }
        self.succeeded(electorate);
        self.next_of(electorate)
    }

    /// Forgets what was wrong with an electorate and its prefix.
    fn succeeded(&mut self, electorate: &Electorate) {
        let key = names(electorate);
        self.failures.remove(&key);
        self.held.remove(&key);
        self.unusable.remove(&key.0);
        self.warned.remove(&key.0);
    }

    /// When to come back to an electorate. Members may have come or gone during a step; the plan says so.
    fn next_of(&mut self, electorate: &Electorate) -> Option<i64> {
        let (now, lease) = (time::now(), config::lease());
        match shmem::peers_view(|v| v.plan(electorate, now, lease)).ok()? {
            Plan::Wait { until } => {
                wake_considered(electorate);
                Some(until)
            }
            Plan::Forget => {
                self.forget(electorate);
                None
            }
            Plan::Renew { .. } | Plan::Elect { .. } => Some(now),
        }
    }

    /// Nobody of ours is in this electorate: what there is of it in the table is the sweep's.
    fn forget(&mut self, electorate: &Electorate) {
        vacate(electorate);
        self.sweep.changed(Rows::Of(electorate.prefix));
    }

    /// When to look again at a row that somebody holds, should nobody tell before.
    fn hold_off(&mut self, key: Key) -> i64 {
        let (times, retry_at) = self.held.entry(key).or_default();
        *times += 1;
        *retry_at = time::now() + ELECTION.delay(*times);
        *retry_at
    }

    /// When to look again at a prefix whose table can't be used.
    fn hold_off_prefix(&mut self, prefix: &str) -> i64 {
        let failure = self.unusable.entry(prefix.to_owned()).or_default();
        failure.times += 1;
        failure.retry_at = time::now() + ELECTION.delay(failure.times);
        failure.retry_at
    }

    /// Says once, in the log and in oban_workers, that a prefix holds no elections.
    fn warn(&mut self, prefix: &str, why: &str, hint: String) {
        if self.warned.insert(prefix.to_owned()) {
            let message = format!("obanrs holds no elections in prefix \"{prefix}\": {why}");
            self.note(&message);
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            error::log(PgLogLevel::WARNING, code, message, hint);
        }
    }

    /// For the view oban_workers.
    fn note(&self, what: &str) {
        let _ = shmem::registry(|r| r.note_error(Kind::Keeper, self.database, what));
    }

    fn failed(&mut self, key: Key, message: String) {
        let (times, known) = match self.failures.get(&key) {
            Some(before) => (before.times + 1, before.message == message),
            None => (1, false),
        };
        if !known {
            let (prefix, name) = &key;
            let what = if name.is_empty() {
                format!(
                    "looking for expired leaders in prefix \"{prefix}\" failed, will try again: {message}"
                )
            } else {
                format!("election of \"{name}\" in prefix \"{prefix}\" failed, will try again: {message}")
            };
            self.note(&what);
            warning!("obanrs: {what}");
        }
        let retry_at = time::now() + ELECTION.delay(times);
        self.failures.insert(key, Failure { times, retry_at, message });
    }
}

/// The earlier of two times, of which each may be never.
fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

fn names(electorate: &Electorate) -> Key {
    (electorate.prefix.as_str().to_owned(), electorate.name.as_str().to_owned())
}

/// Runs one step in a transaction. An ERROR in it is given back by its message, but a lock that was not had in time is
/// an outcome.
fn transaction<R: Locks>(activity: &'static CStr, step: impl FnOnce() -> R) -> Result<R, String> {
    let result = xact::contain(|| {
        let outcome = xact::run(activity, || {
            let outcome = xact::limit(STEP_LIMIT, step);
            session::set(c"lock_timeout", COMMIT_LOCK_TIMEOUT);
            outcome
        });
        session::set(c"lock_timeout", LOCK_TIMEOUT); // an abort takes it back by itself
        outcome
    });
    match result {
        Err(caught) if caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => {
            R::locked().ok_or(caught.message)
        }
        result => result.map_err(|caught| caught.message),
    }
}

/// What a step comes to when a lock was not had in time; `None` when it is a failure like others.
trait Locks: Sized {
    fn locked() -> Option<Self>;
}

impl Locks for Outcome {
    fn locked() -> Option<Self> {
        Some(Self::Locked)
    }
}

/// What the table says of an electorate's leader, from its commit on; a change of leader is a line in the log.
/// False when it came too late.
fn record(electorate: &Electorate, row: Leadership, changes_seen: u32) -> bool {
    let recorded = shmem::peers(|p| p.record(electorate, row, changes_seen, time::now()));
    let Ok(Recorded::After { before, without }) = recorded else { return false };
    if before.is_some_and(|b| (b.node, b.term) == (row.node, row.term)) {
        return true;
    }
    if row.is_ours() {
        rings::count(Counter::Elections, 1);
        without.into_iter().for_each(|micros| rings::set(Counter::LastFailover, micros as u64));
    }
    let after = before.map(|b| format!(", after \"{}\"", b.node.as_str())).unwrap_or_default();
    log!(
        "obanrs: node \"{}\" leads \"{}\" in prefix \"{}\" (term {}){after}",
        row.node.as_str(),
        electorate.name.as_str(),
        electorate.prefix.as_str(),
        row.term
    );
    true
}

/// Nobody leads, as far as we know; a line in the log if somebody did.
fn vacate(electorate: &Electorate) {
    let before = shmem::peers(|p| p.vacate(electorate, time::now())).ok().flatten();
    if let Some(before) = before {
        log!(
            "obanrs: nobody leads \"{}\" in prefix \"{}\", after \"{}\" (term {})",
            electorate.name.as_str(),
            electorate.prefix.as_str(),
            before.node.as_str(),
            before.term
        );
    }
}

fn wake_considered(electorate: &Electorate) {
    for procno in shmem::peers(|p| p.mark_considered(electorate)).unwrap_or_default() {
        latch::wake(procno);
    }
}
