//! Elections in `<prefix>.oban_peers`: what `logic::peer::View::plan` says, done.
//!
//! Each step is one short transaction (`table`), as the table's owner or the schema's (`catalog::elector`). The
//! copy in shared memory is changed after its commit (see `logic::peer` for what that order guarantees, and for
//! what a successor does with the row if this keeper dies in between).
//!
//! A prefix whose table can't be used stops only itself: a locked or broken one is tried again with
//! a growing delay, name by name, a missing one when the next member joins or the prefix is installed.
//! Each such state is logged once. A row that somebody fences is skipped; the end of that transaction wakes
//! the keeper (unless it was prepared: then the delay has to do).

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

/// How long a statement waits for a lock on a user's table: a prefix that is locked is not worth more
/// of the others' time.
pub const LOCK_TIMEOUT: &CStr = c"50ms";

/// How long the commit waits. If it announces the end of a leadership, it queues with every other
/// NOTIFY of the server, and the holder of that lock may be waiting for its disk or its standby.
const COMMIT_LOCK_TIMEOUT: &CStr = c"5s";

/// The longest that the statements of one step may take, in milliseconds: users' triggers run in them.
const STEP_LIMIT: i32 = 1_000;

/// Why a name of a prefix has no elections at the moment.
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
    /// Rows that somebody held: how often they did, and when to look again at the latest.
    fenced: HashMap<Key, (u32, i64)>,
    /// Prefixes without a table that can be used: nothing to wait for but somebody who changes that.
    missing: HashSet<String>,
    sweep: Sweep,
    /// An election found that the extension is gone: the keeper has to look, too.
    pub dropped: bool,
}

/// What a transaction found or did; shared memory gets to know it after the commit.
enum Outcome {
    /// The row is a member's of ours.
    Ours(Leadership),
    /// The row is another node's.
    Foreign(Leadership),
    /// There is no row, and no candidate for it.
    Vacant,
    /// The row is to be deleted, and somebody holds it.
    Fenced,
    /// Somebody was faster: look again.
    Again,
    Missing {
        hint: String,
    },
    /// The extension was dropped.
    Dropped,
}

impl Elections {
    pub fn new(database: u32) -> Self {
        Self {
            database,
            failures: HashMap::new(),
            fenced: HashMap::new(),
            missing: HashSet::new(),
            sweep: Sweep::default(),
            dropped: false,
        }
    }

    /// Somebody may have let go of a row.
    pub fn let_go(&mut self) {
        self.fenced.values_mut().for_each(|(_, retry_at)| *retry_at = 0);
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
    /// Renewals come first, and what failed before comes last. A step that fails has cost the time of a
    /// lock or of somebody's trigger, so the pass ends with it: the next one begins with what has
    /// become due meanwhile, and leaves out what failed until its delay is over.
    pub fn pass(&mut self) -> Option<i64> {
        let (now, lease) = (time::now(), config::lease());
        let mut plans = shmem::peers_view(|v| v.plans(self.database, now, lease)).unwrap_or_default();
        if !(self.failures.is_empty() && self.fenced.is_empty()) {
            let known: HashSet<Key> = plans.iter().map(|(e, _, _)| names(e)).collect();
            self.failures.retain(|key, _| key.1.is_empty() || known.contains(key));
            self.fenced.retain(|key, _| key.1.is_empty() || known.contains(key));
        }
        self.missing.retain(|prefix| plans.iter().any(|(e, _, _)| prefix == e.prefix.as_str()));
        plans.sort_by_cached_key(|(e, plan, _)| {
            let times = self.failures.get(&names(e)).map_or(0, |f| f.times);
            (times, !matches!(plan, Plan::Renew { .. }))
        });
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
            due = due.into_iter().chain(next).min();
        }
        let swept = self.sweep_rows();
        due.into_iter().chain(swept).min()
    }

    /// When something that failed, or is held, is tried again; `None` when that is now.
    fn retry_at(&self, key: &Key) -> Option<i64> {
        let failed = self.failures.get(key).map(|f| f.retry_at);
        let fenced = self.fenced.get(key).map(|(_, retry_at)| *retry_at);
        failed.into_iter().chain(fenced).max().filter(|at| time::now() < *at)
    }

    /// What is due for one electorate; when to come back, or why it failed.
    fn step(&mut self, electorate: &Electorate) -> Result<Option<i64>, String> {
        // Twice is enough for every honest race; what is left comes with the next pass.
        for _ in 0..2 {
            let now = time::now();
            let planned =
                shmem::peers_view(|v| (v.plan(electorate, now, config::lease()), v.changes(electorate)));
            let Ok((plan, (seen, greatest))) = planned else { return Ok(None) };
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
                Plan::Renew { leader, term } => {
                    transaction(c"obanrs: renewing a lease", || table::renew(electorate, &leader, term))?
                }
                Plan::Elect { ended, candidate } => {
                    self.expect_fences(true); // before it is tried, or its end could be missed
                    transaction(c"obanrs: election", || table::elect(electorate, ended, candidate, greatest))?
                }
            };
            match outcome {
                // Not ours any more. (But a leadership that is over stays so until its row is gone.)
                Outcome::Again if renewal => vacate(electorate),
                Outcome::Again => {}
                outcome => return Ok(self.publish(electorate, outcome, seen, lapsed)),
            }
        }
        // A trigger that suppresses our row, or the like: not worth the processor's whole time.
        Err("its row keeps changing under us".into())
    }

    /// Tells shared memory, and whoever waits for an election, what the table says now; `seen` is for
    /// `Peers::record`, `lapsed` whether a lease was over.
    fn publish(&mut self, electorate: &Electorate, outcome: Outcome, seen: u32, lapsed: bool) -> Option<i64> {
        let (prefix, key) = (electorate.prefix.as_str(), names(electorate));
        match outcome {
            Outcome::Missing { hint } => {
                vacate(electorate);
                wake_considered(electorate);
                self.warn_of_missing(prefix, hint);
                return None;
            }
            Outcome::Fenced => {
                // Nobody leads meanwhile, and nobody need wait for that.
                wake_considered(electorate);
                return Some(self.hold_off(key));
            }
            Outcome::Dropped => {
                self.dropped = true;
                return None;
            }
            Outcome::Ours(row) | Outcome::Foreign(row) => {
                let told = record(electorate, row, seen);
                rings::count(Counter::Lapses, usize::from(told && lapsed));
            }
            Outcome::Vacant | Outcome::Again => {
                vacate(electorate);
                rings::count(Counter::Lapses, usize::from(lapsed));
            }
        }
        self.failures.remove(&key);
        self.fenced.remove(&key);
        self.missing.remove(prefix);
        let (now, lease) = (time::now(), config::lease());
        // Somebody may have come or gone meanwhile; the plan says so.
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
        let (times, retry_at) = self.fenced.entry(key).or_default();
        *times += 1;
        *retry_at = time::now() + ELECTION.delay(*times);
        *retry_at
    }

    fn warn_of_missing(&mut self, prefix: &str, hint: String) {
        if self.missing.insert(prefix.to_owned()) {
            let message = format!("obanrs holds no elections in prefix \"{prefix}\"");
            self.note(&format!("{message}: {hint}"));
            error::log(PgLogLevel::WARNING, PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, message, hint);
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

fn names(electorate: &Electorate) -> Key {
    (electorate.prefix.as_str().to_owned(), electorate.name.as_str().to_owned())
}

/// Runs one step in a transaction; an ERROR in it is given back by its message.
fn transaction<R>(activity: &'static CStr, step: impl FnOnce() -> R) -> Result<R, String> {
    xact::contain(|| {
        let outcome = xact::run(activity, || {
            let outcome = xact::limit(STEP_LIMIT, step);
            session::set(c"lock_timeout", COMMIT_LOCK_TIMEOUT);
            outcome
        });
        session::set(c"lock_timeout", LOCK_TIMEOUT); // an abort takes it back by itself
        outcome
    })
    .map_err(|caught| caught.message)
}

/// What the table says of an electorate's leader, from its commit on; a change of leader is a line in the log.
/// False when it came too late.
fn record(electorate: &Electorate, row: Leadership, seen: u32) -> bool {
    let recorded = shmem::peers(|p| p.record(electorate, row, seen, time::now()));
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
