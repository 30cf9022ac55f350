//! Elections in `<prefix>.oban_peers`: the keeper carries out the plans of `logic::leadership::View::plan`.
//!
//! Each step is one short transaction (`table`), which runs no user's code. The keeper changes the copy in
//! shared memory after the commit. (See `logic::leadership` for what that order guarantees, and for what the next
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
//! A pass makes at most one attempt that is not an ordinary one (at a name that failed before, or for the sweep) after
//! something new has come in: a tenant with a thousand broken tables costs an election that is due one attempt.
//!
//! While NOTIFY's queue is full, elections are held without the announcement of what ended. Shared memory keeps that,
//! and the keeper announces it once there is room.
//!
//! The keeper skips a row that another transaction holds. The end of a fence wakes the keeper. The end of a
//! prepared transaction does not: the keeper then retries after a growing delay.

mod names;
mod sweep;
mod table;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use pgrx::prelude::*;

use self::sweep::Sweep;
use self::table::{Announcing, Known};
use super::process;
use crate::bus::leadership::{self, LeaderChange};
use crate::config;
use crate::error;
use crate::logic::backoff::{ANNOUNCEMENT, ELECTION};
use crate::logic::leadership::{Electorate, Ended, Leadership, Plan, Recorded};
use crate::logic::lifecycle::{ChangedPrefixes, Kind};
use crate::pg::{catalog, clock, latch, notify, session, xact};
use crate::shmem;
use crate::shmem::rings::{self, Counter};

/// How long the first attempt at a table waits for its lock. Elections of other prefixes wait meanwhile.
pub const LOCK_TIMEOUT: &CStr = c"50ms";

/// How long the commit waits for a lock. A commit that announces the end of a leadership needs the lock that
/// all NOTIFYs of the server share, and the holder of that lock may be waiting for its disk or its standby.
pub const COMMIT_LOCK_TIMEOUT: &CStr = c"5s";

/// The longest that one step may take, in milliseconds: nothing limits the size of a table.
const STEP_LIMIT: i32 = 1_000;

/// What is a step of the wall clock and not its ordinary correction, in microseconds.
const STEP: i64 = 1_000_000;

/// What may take long and comes in turn: attempts at electorates that have failed before, announcements that are owed,
/// the sweep.
const SLOW_DUTIES: usize = 3;

/// What became of one electorate in a pass.
enum Attempt {
    /// Nothing was due; when something will be.
    None(Option<i64>),
    /// A step was made; when the next is due.
    Made(Option<i64>),
    Failed,
}

/// Why a name or a prefix has no elections at the moment, and when the keeper retries.
#[derive(Default)]
struct Failure {
    times: u32,
    retry_at: i64,
    message: String,
}

/// By schema and name; the name is empty for the sweep of a schema.
type Key = (u32, String);

pub struct Elections {
    database: u32,
    failures: HashMap<Key, Failure>,
    /// Rows that other transactions hold: how often in a row, and the latest time to look again.
    held: HashMap<Key, (u32, i64)>,
    /// Prefixes whose table is locked or has an obstacle.
    unusable: HashMap<u32, Failure>,
    /// Prefixes for which the log says already that they hold no elections.
    warned: HashSet<u32>,
    sweep: Sweep,
    /// False once this pass has waited for a table's lock in vain. Without it, an owner that locks many tables
    /// would use up the time of all other prefixes.
    may_wait_for_locks: bool,
    /// An election found no extension: the keeper has to look for it.
    pub dropped: bool,
    /// What the next pass begins with of `SLOW_DUTIES`, which may take long.
    turn: usize,
    /// Schemas may have been dropped without a word.
    verify: bool,
    /// How far the wall clock was ahead of the clock of deadlines at the last pass.
    wall_ahead: i64,
    /// How often in a row the end of a leadership could not be announced, and when to try again.
    unannounced: (u32, i64),
}

/// What a transaction found or did. The keeper tells shared memory after the commit.
enum Outcome {
    /// The row is a member's.
    Local(Leadership),
    /// The row is a foreign node's.
    Foreign(Leadership),
    /// There is no row and no candidate.
    Vacant,
    /// Another transaction holds the row, or is inserting one of that name.
    Held,
    /// Another transaction has changed the row or replaced the table: look again.
    Again,
    /// There is no such schema.
    SchemaGone,
    /// A transaction that creates the schema is in progress.
    SchemaToCome,
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
        // A keeper that came with a step of the wall clock, or after one, knows nothing of it.
        let _ = shmem::peers(|p| p.renew_all(database));
        Self {
            database,
            turn: 0,
            failures: HashMap::new(),
            held: HashMap::new(),
            unusable: HashMap::new(),
            warned: HashSet::new(),
            sweep: Sweep::default(),
            may_wait_for_locks: true,
            dropped: false,
            verify: true,
            wall_ahead: clock::wall_ahead(),
            unannounced: (0, 0),
        }
    }

    /// A transaction that held a row may have ended: held rows are looked at in the next pass.
    pub fn retry_held_rows(&mut self) {
        self.held.values_mut().for_each(|(_, retry_at)| *retry_at = 0);
    }

    /// Sets whether the end of a transaction with a fence wakes this keeper.
    fn expect_fences(&self, expected: bool) {
        let _ = shmem::registry(|r| r.expect_fences(self.database, expected));
    }

    /// Notes that rows of oban_peers have changed: the next pass looks at them.
    pub fn rows_changed(&mut self, rows: ChangedPrefixes) {
        self.verify |= rows == ChangedPrefixes::All;
        self.sweep.changed(rows);
    }

    /// Whether the wall clock was set since the last call: a pass is due then. Foreign nodes and standbys read the wall
    /// times of the members' rows, so each row is renewed at once.
    pub fn clock_was_set(&mut self) -> bool {
        let wall_ahead = clock::wall_ahead();
        let was_set = (wall_ahead - self.wall_ahead).abs() > STEP;
        if was_set {
            let _ = shmem::peers(|p| p.renew_all(self.database));
            table::clock_was_set(self.wall_ahead);
            self.sweep.clock_was_set();
            self.wall_ahead = wall_ahead;
        }
        was_set
    }

    /// Does what is due now. Returns when the next pass is due, `None` for never.
    ///
    /// Electorates that never failed come first: renewals, elections, and then rows that are only doubted. A step
    /// that fails has cost up to `STEP_LIMIT`, so it ends the pass. The next pass begins at once with what has become
    /// due meanwhile, and leaves out the electorate that failed until its delay is over.
    ///
    /// What may take long comes after that, one attempt at a time (`SLOW_DUTIES`).
    pub fn pass(&mut self) -> Option<i64> {
        let (now, lease) = (clock::now(), config::lease());
        self.may_wait_for_locks = true;
        let began = self.wakeups();
        if std::mem::take(&mut self.verify) {
            self.forget_dropped_schemas();
        }
        let mut plans = shmem::leaderships_view(|v| v.plans(self.database, now, lease)).unwrap_or_default();
        self.forget_what_is_gone(&plans);
        let urgency = |plan: &Plan| match plan {
            Plan::Renew { recheck: false, .. } => 0,
            Plan::Renew { recheck: true, .. } => 2,
            _ => 1,
        };
        plans.sort_by_cached_key(|(e, plan, _)| (self.failures_of(e), urgency(plan)));
        let failing = plans.partition_point(|(e, ..)| self.failures_of(e) == 0);
        let (healthy, failing) = plans.split_at(failing);
        let mut due = None::<i64>;
        for plan in healthy {
            match self.carry_out(plan) {
                Attempt::Failed => return Some(now),
                Attempt::None(next) | Attempt::Made(next) => due = earliest(due, next),
            }
        }
        for n in 0..SLOW_DUTIES {
            let duty = (self.turn + n) % SLOW_DUTIES;
            let (next, more) = match duty {
                0 => self.retry(failing, began),
                1 => self.announce_pending(),
                _ => self.sweep_rows(began),
            };
            // Something else is due now, or this has more to do: the next pass goes on behind it.
            if more || self.wakeups() != began {
                self.turn = (duty + 1) % SLOW_DUTIES;
                return Some(now);
            }
            due = earliest(due, next);
        }
        due
    }

    /// Attempts at electorates that have failed before. Returns when the next is due, and whether the pass is to end
    /// here.
    fn retry(&mut self, failing: &[(Electorate, Plan, bool)], began: u32) -> (Option<i64>, bool) {
        let mut due = None;
        for plan in failing {
            match self.carry_out(plan) {
                Attempt::Failed => return (due, true),
                Attempt::Made(_) if self.wakeups() != began => return (due, true),
                Attempt::None(next) | Attempt::Made(next) => due = earliest(due, next),
            }
        }
        (due, false)
    }

    /// Carries out the plan for one electorate, if it is due.
    fn carry_out(&mut self, (electorate, plan, waiting): &(Electorate, Plan, bool)) -> Attempt {
        match (self.retry_at(&key_of(electorate)), plan) {
            (Some(retry_at), _) => {
                // Members that have joined meanwhile need not wait for an election either.
                if *waiting && self.warned.contains(&electorate.schema) {
                    wake_considered(electorate);
                }
                Attempt::None(Some(retry_at))
            }
            (None, Plan::Wait { until }) if !waiting => Attempt::None(at(*until)),
            (None, _) => match self.step(electorate) {
                Ok(next) => Attempt::Made(next),
                Err(why) => {
                    self.failed(key_of(electorate), why);
                    Attempt::Failed
                }
            },
        }
    }

    /// Counts the reasons for another pass.
    fn wakeups(&self) -> u32 {
        shmem::registry(|r| r.wakeups(Kind::Keeper, self.database)).unwrap_or(0)
    }

    /// Ends what is in shared memory for schemas that are gone. A schema that is dropped by an ordinary transaction
    /// is forgotten at its commit (`shmem::tables`); this is for the others, such as a prepared transaction.
    fn forget_dropped_schemas(&mut self) {
        let mut known = shmem::leaderships_view(|v| v.schemas(self.database)).unwrap_or_default();
        known.extend(shmem::peers(|p| p.foreign_schemas(self.database)).unwrap_or_default());
        known.extend(shmem::gossip::schemas(self.database, false));
        known.sort_unstable();
        known.dedup();
        if known.is_empty() {
            return;
        }
        let gone = transaction(c"obanrs: looking for schemas", || {
            known.into_iter().filter(|schema| catalog::is_no_schema(*schema)).collect::<Vec<u32>>()
        });
        match gone {
            Ok(gone) => gone.into_iter().for_each(|schema| shmem::forget_schema(self.database, schema)),
            Err(_) => self.verify = true, // each step finds out for itself meanwhile
        }
    }

    /// Announces the ends of leaderships that could not be announced while NOTIFY's queue was full. Returns when to
    /// try again, `None` without any, and whether there is more to announce now.
    fn announce_pending(&mut self) -> (Option<i64>, bool) {
        let mut unannounced = shmem::peers(|p| p.unannounced(self.database)).unwrap_or_default();
        let (failures, retry_at) = self.unannounced;
        if unannounced.is_empty() {
            self.unannounced = (0, 0);
            return (None, false);
        }
        if clock::now() < retry_at {
            return (Some(retry_at), false);
        }
        let all = unannounced.len();
        unannounced.truncate(config::max_transaction_messages());
        let announced = transaction(c"obanrs: announcing", || {
            // This moves the tail of NOTIFY's queue, too, which nobody else may do.
            let full = notify::is_queue_full();
            if !full {
                unannounced.iter().for_each(table::send_down);
            }
            !full
        });
        if announced.is_ok_and(|announced| announced) {
            let _ = shmem::peers(|p| unannounced.iter().for_each(|e| p.announced(e)));
            self.unannounced = (0, 0);
            return (None, unannounced.len() < all);
        }
        // A NOTIFY that failed has filled the queue, and told no listener to read it.
        notify::rouse_listeners();
        let retry_at = clock::now() + ANNOUNCEMENT.delay(failures + 1);
        self.unannounced = (failures.saturating_add(1), retry_at);
        (Some(retry_at), false)
    }

    /// Forgets the electorates that are no longer in shared memory.
    fn forget_what_is_gone(&mut self, plans: &[(Electorate, Plan, bool)]) {
        if !(self.failures.is_empty() && self.held.is_empty()) {
            let known: HashSet<Key> = plans.iter().map(|(e, _, _)| key_of(e)).collect();
            self.failures.retain(|key, _| key.1.is_empty() || known.contains(key));
            self.held.retain(|key, _| key.1.is_empty() || known.contains(key));
        }
        let schemas: HashSet<u32> = plans.iter().map(|(e, _, _)| e.schema).collect();
        self.warned.retain(|schema| schemas.contains(schema));
        let swept = &self.sweep;
        self.unusable.retain(|schema, _| schemas.contains(schema) || swept.is_due(*schema));
        names::retain(|schema| schemas.contains(&schema) || swept.is_due(schema));
    }

    /// How often an electorate, or its prefix, has failed in a row.
    fn failures_of(&self, electorate: &Electorate) -> u32 {
        let own = self.failures.get(&key_of(electorate)).map_or(0, |f| f.times);
        own.max(self.unusable.get(&electorate.schema).map_or(0, |f| f.times))
    }

    /// When the keeper retries a key that failed, is held or rests. `None`: now.
    fn retry_at(&self, key: &Key) -> Option<i64> {
        let failed = self.failures.get(key).map(|f| f.retry_at);
        let unusable = self.unusable.get(&key.0).map(|f| f.retry_at);
        let held = self.held.get(key).map(|(_, retry_at)| *retry_at);
        let resting = self.sweep.rests_until(key.0).filter(|_| key.1.is_empty());
        failed.max(unusable).max(held).max(resting).filter(|at| clock::now() < *at)
    }

    /// Whether an attempt at a prefix's table waits for the table's lock.
    fn waits_for(&self, schema: u32) -> bool {
        self.may_wait_for_locks && !self.unusable.contains_key(&schema)
    }

    /// Does what is due for one electorate. Returns when the next step is due, `None` for never; `Err` says
    /// why the step failed.
    fn step(&mut self, electorate: &Electorate) -> Result<Option<i64>, Failed> {
        let wait = self.waits_for(electorate.schema);
        let mut announcing = Announcing::WithRow;
        // Two attempts are enough for ordinary races.
        for _ in 0..2 {
            let now = clock::now();
            let planned = shmem::leaderships_view(|v| {
                (v.plan(electorate, now, config::lease()), v.changes(electorate))
            });
            let Ok((plan, (changes_seen, greatest_term, copy))) = planned else { return Ok(None) };
            let lapsed = matches!(plan, Plan::Elect { ended: Some(Ended { lapsed: true, .. }), .. });
            let renewal = matches!(plan, Plan::Renew { .. });
            let outcome = match plan {
                Plan::Forget => {
                    self.forget(electorate);
                    return Ok(None);
                }
                Plan::Wait { until } => {
                    wake_considered(electorate);
                    return Ok(at(until));
                }
                Plan::Renew { leader, term, .. } => transaction(c"obanrs: renewing a lease", || {
                    table::renew(electorate, &leader, term, wait)
                })?,
                Plan::Elect { ended, candidate } => {
                    self.expect_fences(true); // before the attempt, or the end of a fence could be missed
                    let known = Known { greatest_term, copy, seen: self.sweep.seen_in(electorate.schema) };
                    let elected = transaction(c"obanrs: election", || {
                        table::elect(electorate, ended, candidate, known, announcing, wait)
                    });
                    match elected {
                        // NOTIFY's queue was filled between the look at it and the commit.
                        Err(failed) if failed.queue_full && announcing == Announcing::WithRow => {
                            announcing = Announcing::Later;
                            continue;
                        }
                        elected => elected?,
                    }
                }
            };
            match outcome {
                // The row is no longer the member's. (A leadership that has ended stays ended until its row
                // is gone.)
                Outcome::Again if renewal => drop(vacate(electorate)),
                Outcome::Again => {}
                outcome => return Ok(self.record_outcome(electorate, outcome, changes_seen, lapsed)),
            }
        }
        // Its schema's owner swaps tables in a loop, say. The delay after a failure keeps that from taking
        // all the time.
        Err("its row keeps changing under us".to_owned().into())
    }

    /// Tells shared memory, and the members that wait for an election, what the table says now. Returns when
    /// the next step is due, `None` for never. `changes_seen` is for `Leaderships::record`; `lapsed` says whether a
    /// lease was over.
    fn record_outcome(
        &mut self,
        electorate: &Electorate,
        outcome: Outcome,
        changes_seen: u32,
        lapsed: bool,
    ) -> Option<i64> {
        let (schema, key) = (electorate.schema, key_of(electorate));
        match outcome {
            Outcome::SchemaGone => {
                shmem::forget_schema(self.database, schema);
                return None;
            }
            // The end of its transaction wakes the keeper if oban_install runs in it.
            Outcome::SchemaToCome => {
                vacate(electorate);
                wake_considered(electorate);
                return Some(self.hold_off(key));
            }
            Outcome::Missing { hint } => {
                // No trigger and no election tells of a row that went with its table.
                if let Some(before) = vacate(electorate) {
                    let (name, node) = (electorate.name.as_str(), before.node.as_str());
                    let _ = transaction(c"obanrs: announcing", || {
                        leadership::tell(LeaderChange::Ended, schema, name, node, before.lease.term);
                        true
                    });
                }
                wake_considered(electorate);
                self.warn(schema, "its table of leaders is missing, or not installed", hint);
                return None;
            }
            Outcome::Unusable { what, hint } => {
                // A leadership in shared memory stays until its lease is over.
                wake_considered(electorate);
                self.warn(schema, &what, hint);
                return Some(self.hold_off_schema(schema));
            }
            Outcome::Locked => {
                self.may_wait_for_locks = false;
                let retry_at = self.hold_off_schema(schema);
                let prefix = names::shown(schema);
                let what =
                    format!("elections in prefix \"{prefix}\" wait for a lock on its table of leaders");
                // The sweep may have made this entry. It logs nothing.
                let told = self.unusable.get(&schema).is_some_and(|failure| failure.message == what);
                if !told {
                    self.note(&what);
                    warn(&what);
                    self.unusable.entry(schema).or_default().message = what;
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
            Outcome::Local(row) | Outcome::Foreign(row) => {
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
        let key = key_of(electorate);
        self.failures.remove(&key);
        self.held.remove(&key);
        self.unusable.remove(&key.0);
        if self.warned.remove(&key.0) {
            // The sweep has given up on the prefix, too.
            self.sweep.changed(ChangedPrefixes::Of(electorate.schema));
        }
    }

    /// When the next step of an electorate is due, `None` for never. The plan is made anew, because members
    /// may have joined or left during the step.
    fn next_of(&mut self, electorate: &Electorate) -> Option<i64> {
        let (now, lease) = (clock::now(), config::lease());
        match shmem::leaderships_view(|v| v.plan(electorate, now, lease)).ok()? {
            Plan::Wait { until } => {
                wake_considered(electorate);
                at(until)
            }
            Plan::Forget => {
                self.forget(electorate);
                None
            }
            Plan::Renew { .. } | Plan::Elect { .. } => Some(now),
        }
    }

    /// Gives up an electorate without candidates. Its row in the table is from now on the sweep's.
    fn forget(&mut self, electorate: &Electorate) {
        // A foreign row keeps its deadline. That memory forgets it is no end of its leadership.
        if let Some(before) = shmem::peers(|p| p.vacate(electorate, clock::now())).ok().flatten() {
            if before.is_local() {
                log_vacant(electorate, &before);
            }
            self.sweep.has_seen(electorate, &before);
        }
        self.sweep.changed(ChangedPrefixes::Of(electorate.schema));
        wake_considered(electorate);
    }

    /// Notes that another transaction holds a row. Returns when to look again at the latest.
    fn hold_off(&mut self, key: Key) -> i64 {
        let (times, retry_at) = self.held.entry(key).or_default();
        *times += 1;
        *retry_at = clock::now() + ELECTION.delay(*times);
        *retry_at
    }

    /// Notes that a prefix's table can't be used. Returns when to look again.
    fn hold_off_schema(&mut self, schema: u32) -> i64 {
        let failure = self.unusable.entry(schema).or_default();
        failure.times += 1;
        failure.retry_at = clock::now() + ELECTION.delay(failure.times);
        failure.retry_at
    }

    /// Says in the log and in oban_workers, once, that a prefix holds no elections.
    fn warn(&mut self, schema: u32, why: &str, hint: String) {
        if self.warned.insert(schema) {
            let prefix = names::shown(schema);
            self.note(&format!("obanrs holds no elections in prefix \"{prefix}\": {why}"));
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            let database = process::of_database();
            let message = format!("obanrs holds no elections in prefix \"{prefix}\" of {database}: {why}");
            error::log(PgLogLevel::WARNING, code, message, hint);
        }
    }

    /// Shows an error in the view oban_workers.
    fn note(&self, what: &str) {
        let _ = shmem::registry(|r| r.note_error(Kind::Keeper, self.database, what));
    }

    fn failed(&mut self, key: Key, failed: Failed) {
        let message = failed.message;
        let (times, known) = match self.failures.get(&key) {
            Some(before) => (before.times + 1, before.message == message),
            None => (1, false),
        };
        if !known {
            let (prefix, name) = (names::shown(key.0), &key.1);
            let what = if name.is_empty() {
                format!(
                    "looking for expired leaders in prefix \"{prefix}\" failed, will try again: {message}"
                )
            } else {
                format!("election of \"{name}\" in prefix \"{prefix}\" failed, will try again: {message}")
            };
            self.note(&what);
            warn(&what);
        }
        let retry_at = clock::now() + ELECTION.delay(times);
        self.failures.insert(key, Failure { times, retry_at, message });
    }
}

/// Says in the log what is wrong in this database.
fn warn(what: &str) {
    let message = format!("obanrs in {}: {what}", process::of_database());
    error::log(PgLogLevel::WARNING, PgSqlErrorCode::ERRCODE_WARNING, message, "");
}

/// When a plan's time comes. `None` is never: nothing but news changes that plan.
fn at(until: i64) -> Option<i64> {
    (until != i64::MAX).then_some(until)
}

/// The earlier of two times. `None` is never.
fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

fn key_of(electorate: &Electorate) -> Key {
    (electorate.schema, electorate.name.as_str().to_owned())
}

/// Why a step failed.
struct Failed {
    message: String,
    /// NOTIFY's queue was full at the commit.
    queue_full: bool,
}

impl From<String> for Failed {
    fn from(message: String) -> Self {
        Self { message, queue_full: false }
    }
}

/// Runs one step in a transaction. `Err` is the message of an ERROR. A lock that could not be taken in time
/// (55P03) is the outcome `R::locked()`, if there is one.
fn transaction<R: Locks>(activity: &'static CStr, step: impl FnOnce() -> R) -> Result<R, Failed> {
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
    table::keep_unannounced(result.is_ok());
    match result {
        Err(caught) if caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE && !committing.get() => {
            R::locked().ok_or(caught.message.into())
        }
        result => result.map_err(|caught| Failed {
            queue_full: caught.code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED && committing.get(),
            message: caught.message,
        }),
    }
}

/// The result of a step that could not take a lock in time.
trait Locks: Sized {
    /// `None`: such a step has failed like any other.
    fn locked() -> Option<Self>;
}

impl Locks for Vec<u32> {
    fn locked() -> Option<Self> {
        None
    }
}

impl Locks for bool {
    fn locked() -> Option<Self> {
        None
    }
}

impl Locks for Outcome {
    fn locked() -> Option<Self> {
        Some(Self::Locked)
    }
}

/// Records in shared memory the leader that the table has since a commit. A change of leader is a line in the
/// log. False when shared memory has changed since the transaction began: then nothing is recorded.
fn record(electorate: &Electorate, row: Leadership, changes_seen: u32) -> bool {
    let recorded = shmem::peers(|p| p.record(electorate, row, changes_seen, clock::now()));
    let Ok(Recorded::After { before, without }) = recorded else { return false };
    if before.is_some_and(|b| (b.node, b.lease.term) == (row.node, row.lease.term)) {
        return true;
    }
    if row.is_local() {
        rings::count(Counter::Elections, 1);
        without.into_iter().for_each(|micros| rings::set(Counter::LastFailover, micros as u64));
    }
    let after = before.map(|b| format!(", after \"{}\"", b.node.as_str())).unwrap_or_default();
    log!(
        "obanrs: node \"{}\" leads \"{}\" in prefix \"{}\" of {} (term {}){after}",
        row.node.as_str(),
        electorate.name.as_str(),
        names::shown(electorate.schema),
        process::of_database(),
        row.lease.term
    );
    true
}

/// Records in shared memory that an electorate has no known leader. If it had one, that is a line in the log, and the
/// result.
fn vacate(electorate: &Electorate) -> Option<Leadership> {
    let before = shmem::peers(|p| p.vacate(electorate, clock::now())).ok().flatten();
    before.iter().for_each(|before| log_vacant(electorate, before));
    before
}

fn log_vacant(electorate: &Electorate, before: &Leadership) {
    log!(
        "obanrs: nobody leads \"{}\" in prefix \"{}\" of {}, after \"{}\" (term {})",
        electorate.name.as_str(),
        names::shown(electorate.schema),
        process::of_database(),
        before.node.as_str(),
        before.lease.term
    );
}

/// Wakes the sessions that wait for an election of this electorate.
fn wake_considered(electorate: &Electorate) {
    for procno in shmem::peers(|p| p.mark_considered(electorate)).unwrap_or_default() {
        latch::wake(procno);
    }
}
