//! Elections in `<prefix>.oban_peers`: the keeper carries out the plans of `logic::peer::View::plan`.
//!
//! Each step is one short transaction (`table`), which runs no user's code. The keeper changes the copy in
//! shared memory after the commit. (See `logic::peer` for what that order guarantees, and for what the next
//! keeper does with the row if this keeper dies in between.)
//!
//! A table that can't be used holds up its own prefix and no other:
//!
//! * The keeper retries a missing table in each later pass. A member that joins and an installation start a
//!   pass.
//! * The keeper retries a table that is locked, or has an obstacle (`logic::shape`), after a growing delay.
//! * The first attempt at a table waits up to `LOCK_TIMEOUT` for the table's lock, because a command that has
//!   just changed the table may still hold it. Later attempts do not wait. If one wait was in vain, no other
//!   attempt of the same pass waits.
//! * Each such state is logged once.
//!
//! The keeper skips a row that another transaction holds. The end of a fence wakes the keeper. The end of a
//! prepared transaction does not: the keeper then retries after a growing delay.

mod sweep;
mod table;

use std::cell::Cell;
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

/// How long the first attempt at a table waits for its lock. Elections of other prefixes wait meanwhile.
pub const LOCK_TIMEOUT: &CStr = c"50ms";

/// How long the commit waits for a lock. A commit that announces the end of a leadership needs the lock that
/// all NOTIFYs of the server share, and the holder of that lock may be waiting for its disk or its standby.
const COMMIT_LOCK_TIMEOUT: &CStr = c"5s";

/// The longest that one step may take, in milliseconds: nothing limits the size of a table.
const STEP_LIMIT: i32 = 1_000;

/// Why a name or a prefix has no elections at the moment, and when the keeper retries.
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
    /// Rows that other transactions hold: how often in a row, and the latest time to look again.
    held: HashMap<Key, (u32, i64)>,
    /// Prefixes whose table is locked or has an obstacle.
    unusable: HashMap<String, Failure>,
    /// Prefixes for which the log says already that they hold no elections.
    warned: HashSet<String>,
    sweep: Sweep,
    /// False once this pass has waited for a table's lock in vain. Without it, an owner who locks many tables
    /// would use up the time of all other prefixes.
    patient: bool,
    /// An election found no extension: the keeper has to look for it.
    pub dropped: bool,
}

/// What a transaction found or did. The keeper tells shared memory after the commit.
enum Outcome {
    /// The row is a member's.
    Ours(Leadership),
    /// The row is a foreign node's.
    Foreign(Leadership),
    /// There is no row and no candidate.
    Vacant,
    /// Another transaction holds the row, or is inserting one of that name.
    Held,
    /// Another transaction has changed the row or replaced the table: look again.
    Again,
    /// There is no table, or `oban_install` has not added its columns.
    Missing { hint: String },
    /// Another transaction holds a lock on the table.
    Locked,
    /// The table has an obstacle, or the database is read-only by default.
    Unusable { what: String, hint: String },
    /// The extension was dropped.
    Dropped,
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
        }
    }

    /// A transaction that held a row may have ended: held rows are looked at in the next pass.
    pub fn let_go(&mut self) {
        self.held.values_mut().for_each(|(_, retry_at)| *retry_at = 0);
    }

    /// Sets whether the end of a transaction with a fence wakes this keeper.
    fn expect_fences(&self, expected: bool) {
        let _ = shmem::registry(|r| r.expect_fences(self.database, expected));
    }

    /// Notes that rows of oban_peers have changed: the next pass looks at them.
    pub fn rows_changed(&mut self, rows: Rows) {
        if rows == Rows::All {
            let _ = shmem::peers(|p| p.doubt(self.database));
        }
        self.sweep.changed(rows);
    }

    /// Does what is due now. Returns when the next pass is due, `None` for never.
    ///
    /// Renewals come first, and electorates that failed before come last. A step that fails has cost up to
    /// `STEP_LIMIT`, so it ends the elections of this pass. The next pass begins at once with what has become
    /// due meanwhile, and leaves out the electorate that failed until its delay is over.
    pub fn pass(&mut self) -> Option<i64> {
        let (now, lease) = (time::now(), config::lease());
        self.patient = true;
        let mut plans = shmem::peers_view(|v| v.plans(self.database, now, lease)).unwrap_or_default();
        self.forget_what_is_gone(&plans);
        plans.sort_by_cached_key(|(e, plan, _)| (self.failures_of(e), !matches!(plan, Plan::Renew { .. })));
        let mut due = None::<i64>;
        for (electorate, plan, waiting) in &plans {
            let next = match (self.retry_at(&names(electorate)), plan) {
                (Some(retry_at), _) => {
                    // Members that have joined meanwhile need not wait for an election either.
                    if *waiting && self.warned.contains(electorate.prefix.as_str()) {
                        wake_considered(electorate);
                    }
                    Some(retry_at)
                }
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

    /// Forgets the electorates that are no longer in shared memory.
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

    /// How often an electorate, or its prefix, has failed in a row.
    fn failures_of(&self, electorate: &Electorate) -> u32 {
        let own = self.failures.get(&names(electorate)).map_or(0, |f| f.times);
        own.max(self.unusable.get(electorate.prefix.as_str()).map_or(0, |f| f.times))
    }

    /// When the keeper retries a key that failed, is held or rests. `None`: now.
    fn retry_at(&self, key: &Key) -> Option<i64> {
        let failed = self.failures.get(key).map(|f| f.retry_at);
        let unusable = self.unusable.get(&key.0).map(|f| f.retry_at);
        let held = self.held.get(key).map(|(_, retry_at)| *retry_at);
        let resting = self.sweep.rests_until(&key.0).filter(|_| key.1.is_empty());
        failed.max(unusable).max(held).max(resting).filter(|at| time::now() < *at)
    }

    /// Whether an attempt at a prefix's table waits for the table's lock.
    fn waits_for(&self, prefix: &str) -> bool {
        self.patient && !self.unusable.contains_key(prefix)
    }

    /// Does what is due for one electorate. Returns when the next step is due, `None` for never; `Err` says
    /// why the step failed.
    fn step(&mut self, electorate: &Electorate) -> Result<Option<i64>, String> {
        let wait = self.waits_for(electorate.prefix.as_str());
        // Two attempts are enough for ordinary races.
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
                    self.expect_fences(true); // before the attempt, or the end of a fence could be missed
                    transaction(c"obanrs: election", || {
                        table::elect(electorate, ended, candidate, greatest_term, wait)
                    })?
                }
            };
            match outcome {
                // The row is no longer the member's. (A leadership that has ended stays ended until its row
                // is gone.)
                Outcome::Again if renewal => vacate(electorate),
                Outcome::Again => {}
                outcome => return Ok(self.record_outcome(electorate, outcome, changes_seen, lapsed)),
            }
        }
        // Its schema's owner swaps tables in a loop, say. The delay after a failure keeps that from taking
        // all the time.
        Err("its row keeps changing under us".into())
    }

    /// Tells shared memory, and the members that wait for an election, what the table says now. Returns when
    /// the next step is due, `None` for never. `changes_seen` is for `Peers::record`; `lapsed` says whether a
    /// lease was over.
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
                // A leadership in shared memory stays until its lease is over.
                wake_considered(electorate);
                self.warn(prefix, &what, hint);
                return Some(self.hold_off_prefix(prefix));
            }
            Outcome::Locked => {
                self.patient = false;
                let retry_at = self.hold_off_prefix(prefix);
                let what =
                    format!("elections in prefix \"{prefix}\" wait for a lock on its table of leaders");
                // The sweep may have made this entry. It logs nothing.
                let told = self.unusable.get(prefix).is_some_and(|failure| failure.message == what);
                if !told {
                    self.note(&what);
                    warning!("obanrs: {what}");
                    self.unusable.entry(prefix.to_owned()).or_default().message = what;
                }
                return Some(retry_at);
            }
            Outcome::Held => {
                // The name has no leader until the row is free: members do not wait for that.
                wake_considered(electorate);
                return Some(self.hold_off(key));
            }
            Outcome::Dropped => {
                self.dropped = true;
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

    /// Forgets the failures of an electorate and of its prefix.
    fn succeeded(&mut self, electorate: &Electorate) {
        let key = names(electorate);
        self.failures.remove(&key);
        self.held.remove(&key);
        self.unusable.remove(&key.0);
        if self.warned.remove(&key.0) {
            // The sweep has given up on the prefix, too.
            self.sweep.changed(Rows::Of(electorate.prefix));
        }
    }

    /// When the next step of an electorate is due, `None` for never. The plan is made anew, because members
    /// may have joined or left during the step.
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

    /// Gives up an electorate without members. Its rows in the table are from now on the sweep's.
    fn forget(&mut self, electorate: &Electorate) {
        vacate(electorate);
        self.sweep.changed(Rows::Of(electorate.prefix));
    }

    /// Notes that another transaction holds a row. Returns when to look again at the latest.
    fn hold_off(&mut self, key: Key) -> i64 {
        let (times, retry_at) = self.held.entry(key).or_default();
        *times += 1;
        *retry_at = time::now() + ELECTION.delay(*times);
        *retry_at
    }

    /// Notes that a prefix's table can't be used. Returns when to look again.
    fn hold_off_prefix(&mut self, prefix: &str) -> i64 {
        let failure = self.unusable.entry(prefix.to_owned()).or_default();
        failure.times += 1;
        failure.retry_at = time::now() + ELECTION.delay(failure.times);
        failure.retry_at
    }

    /// Says in the log and in oban_workers, once, that a prefix holds no elections.
    fn warn(&mut self, prefix: &str, why: &str, hint: String) {
        if self.warned.insert(prefix.to_owned()) {
            let message = format!("obanrs holds no elections in prefix \"{prefix}\": {why}");
            self.note(&message);
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            error::log(PgLogLevel::WARNING, code, message, hint);
        }
    }

    /// Shows an error in the view oban_workers.
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

/// The earlier of two times. `None` is never.
fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

fn names(electorate: &Electorate) -> Key {
    (electorate.prefix.as_str().to_owned(), electorate.name.as_str().to_owned())
}

/// Runs one step in a transaction. `Err` is the message of an ERROR. A lock that could not be taken in time
/// (55P03) is the outcome `R::locked()`, if there is one.
fn transaction<R: Locks>(activity: &'static CStr, step: impl FnOnce() -> R) -> Result<R, String> {
    // The commit may wait for another lock: that of NOTIFY.
    let committing = Cell::new(false);
    let result = xact::contain(|| {
        let outcome = xact::run(activity, || {
            let outcome = xact::limit(STEP_LIMIT, step);
            session::set(c"lock_timeout", COMMIT_LOCK_TIMEOUT);
            committing.set(true);
            outcome
        });
        session::set(c"lock_timeout", LOCK_TIMEOUT); // an abort takes it back by itself
        outcome
    });
    match result {
        Err(caught) if caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE && !committing.get() => {
            R::locked().ok_or(caught.message)
        }
        result => result.map_err(|caught| caught.message),
    }
}

/// The result of a step that could not take a lock in time.
trait Locks: Sized {
    /// `None`: such a step has failed like any other.
    fn locked() -> Option<Self>;
}

impl Locks for Outcome {
    fn locked() -> Option<Self> {
        Some(Self::Locked)
    }
}

/// Records in shared memory the leader that the table has since a commit. A change of leader is a line in the
/// log. False when shared memory has changed since the transaction began: then nothing is recorded.
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

/// Records in shared memory that an electorate has no known leader. If it had one, that is a line in the log.
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

/// Wakes the sessions that wait for an election of this electorate.
fn wake_considered(electorate: &Electorate) {
    for procno in shmem::peers(|p| p.mark_considered(electorate)).unwrap_or_default() {
        latch::wake(procno);
    }
}
