//! Elections in `<prefix>.oban_peers`. The keeper carries out the plans of
//! `logic::leadership::LeadershipsView::plan`.
//!
//! Each step is one short transaction (`table`), which runs no user's code. The keeper changes the
//! copy in shared memory after the commit (`record`). See `logic::leadership` for what that order
//! guarantees, and for what the next keeper does with the row if this keeper dies in between.
//!
//! A table that can't be used holds up its own prefix and no other:
//!
//! * The keeper tries a missing table again in each later pass. A member that joins and an
//!   installation start a pass.
//! * The keeper tries a table again that is locked, or has an obstacle (`logic::shape`), after a
//!   growing delay.
//! * The first attempt at a table waits up to `TABLE_LOCK_TIMEOUT` for the table's lock, because a
//!   command that has just changed the table may still hold it. Later attempts do not wait. If one
//!   wait was in vain, no other attempt of the same pass waits.
//! * Each such state is logged once (`retries`).
//!
//! A pass makes attempts that may take long last, and one at a time (`SLOW_DUTIES`). If such an
//! attempt fails, or something new comes in during the attempt, the pass ends with the attempt. So
//! a tenant with a thousand broken tables costs a due election the time of one attempt.
//!
//! While NOTIFY's queue is full, the keeper holds elections without announcing what ended. Shared
//! memory keeps these announcements, and the keeper sends them once there is room.
//!
//! The keeper skips a row that another transaction holds. The end of a fence and of a prepared
//! transaction wake the keeper. Otherwise the keeper tries the row again after a growing delay.
//!
//! | file | what is there |
//! | --- | --- |
//! | `mod` | the pass: what is due, in which order, and what follows from each outcome |
//! | `table` | the transactions: what they read and write, as facts (`Outcome`) |
//! | `transaction` | how a transaction is run, limited and caught |
//! | `record` | what shared memory learns after a commit |
//! | `sweep` | rows of names without candidates |
//! | `retries` | what is left alone for a while |
//! | `names` | names of schemas for the log |

mod names;
mod record;
mod retries;
mod sweep;
mod table;
mod transaction;

use std::ffi::CStr;

use self::record::{log_vacant, record, vacate, wake_considered};
use self::retries::{Key, Retries};
use self::sweep::Sweep;
use self::table::{Announcing, Known};
use self::transaction::{Failed, transaction};
use crate::bus::leadership::{self, LeaderChange};
use crate::config;
use crate::logic::backoff::ANNOUNCEMENT;
use crate::logic::counter::Counter;
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::leadership::plan::Planned;
use crate::logic::leadership::{Electorate, Ended, Leadership, Plan};
use crate::logic::lifecycle::{ChangedPrefixes, Kind};
use crate::logic::retry::Retry;
use crate::logic::times::ClockTime;
use crate::pg::{catalog, clock, notify};
use crate::shmem::{Segment, stats};

/// How long the first attempt at a table waits for its lock. Elections of other prefixes wait
/// meanwhile.
pub const TABLE_LOCK_TIMEOUT: &CStr = c"50ms";

/// How long the commit waits for a lock. A commit that announces the end of a leadership needs the
/// lock that all NOTIFYs of the server share, and the holder of that lock may be waiting for its
/// disk or its standby.
pub const COMMIT_LOCK_TIMEOUT: &CStr = c"5s";

/// The least difference that counts as a step of the wall clock and not as its ordinary correction,
/// in microseconds.
const CLOCK_STEP: i64 = 1_000_000;

/// The duties that may take long and come in turn: attempts at electorates that have failed before,
/// announcements that wait, and the sweep.
const SLOW_DUTIES: usize = 3;

/// What became of one electorate in a pass.
enum Attempt {
    /// Nothing was due. The next step is due at this deadline, `None` for never.
    None(Option<ClockTime>),
    /// A step was made. The next step is due at this deadline, `None` for never.
    Made(Option<ClockTime>),
    Failed,
}

/// When a duty is due again, and whether the pass is to end here because there is more to do now.
struct Duty {
    /// A deadline; `None` for never.
    next: Option<ClockTime>,
    ends_pass: bool,
}

pub struct Elections {
    segment: Segment,
    database: DatabaseOid,
    retries: Retries,
    sweep: Sweep,
    /// An election found no extension: the keeper has to look for it.
    pub dropped: bool,
    /// Which of `SLOW_DUTIES` the next pass begins with.
    turn: usize,
    /// Schemas may have been dropped and shared memory not told.
    verify: bool,
    /// How far the wall clock was ahead of the clock of deadlines at the last pass, in
    /// microseconds.
    wall_ahead: i64,
    /// Announcements of ends that wait for room in NOTIFY's queue.
    announcement: Retry,
}

/// What a transaction found or did. The keeper records it in shared memory after the commit.
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
    pub fn new(segment: Segment, database: DatabaseOid) -> Self {
        // A keeper that starts after a step of the wall clock does not know of the step.
        segment.leaderships(|l| l.renew_all(database));
        Self {
            segment,
            database,
            retries: Retries::new(segment),
            sweep: Sweep::default(),
            dropped: false,
            turn: 0,
            verify: true,
            wall_ahead: clock::wall_ahead(),
            announcement: Retry::default(),
        }
    }

    /// Has the next pass look at held rows: a transaction that held one may have ended.
    pub fn retry_held_rows(&mut self) {
        self.retries.release_held();
    }

    /// Notes that rows of oban_peers have changed: the next pass looks at them.
    pub fn rows_changed(&mut self, changed: ChangedPrefixes) {
        self.verify |= changed == ChangedPrefixes::All;
        self.sweep.changed(changed);
    }

    /// Whether the wall clock was set since the last call: a pass is due then. Foreign nodes and
    /// standbys read the wall times of the members' rows, so each row is renewed at once.
    pub fn clock_was_set(&mut self) -> bool {
        let wall_ahead = clock::wall_ahead();
        let was_set = (wall_ahead - self.wall_ahead).abs() > CLOCK_STEP;
        if was_set {
            self.segment.leaderships(|l| l.renew_all(self.database));
            table::clock_was_set(self.wall_ahead);
            self.sweep.clock_was_set();
            self.wall_ahead = wall_ahead;
        }
        was_set
    }

    /// Does what is due now. Returns the deadline of the next pass, `None` for never.
    ///
    /// Electorates that never failed come first: renewals, then elections, then rows that are to be
    /// rechecked. A step that fails has cost up to the time limit of a step, so it ends the pass.
    /// The next pass begins at once with what has become due meanwhile, and leaves out the
    /// electorate that failed until its delay is over.
    ///
    /// What may take long comes after that, one attempt at a time (`SLOW_DUTIES`).
    pub fn pass(&mut self) -> Option<ClockTime> {
        let (now, lease) = (clock::now(), config::lease());
        self.retries.begin_pass();
        let began = self.wakeups();
        if std::mem::take(&mut self.verify) {
            self.forget_dropped_schemas();
        }
        let mut plans = self.segment.leaderships_view(|v| v.plans(self.database, now, lease));
        let electorates: Vec<Electorate> = plans.iter().map(|p| p.electorate).collect();
        self.retries.retain(&electorates, |schema| self.sweep.has_changed_rows(schema));
        let urgency = |plan: &Plan| match plan {
            Plan::Renew { recheck: false, .. } => 0,
            Plan::Renew { recheck: true, .. } => 2,
            _ => 1,
        };
        plans.sort_by_cached_key(|p| (self.retries.failures_of(&p.electorate), urgency(&p.plan)));
        let failing = plans.partition_point(|p| self.retries.failures_of(&p.electorate) == 0);
        let (healthy, failing) = plans.split_at(failing);
        let mut due = None::<ClockTime>;
        for planned in healthy {
            match self.carry_out(planned) {
                Attempt::Failed => return Some(now),
                Attempt::None(next) | Attempt::Made(next) => due = earliest(due, next),
            }
        }
        for n in 0..SLOW_DUTIES {
            let duty = (self.turn + n) % SLOW_DUTIES;
            let Duty { next, ends_pass } = match duty {
                0 => self.retry(failing, began),
                1 => self.announce_pending(),
                _ => self.sweep.pass(self.segment, &mut self.retries, began),
            };
            // Something else is due now, or this duty has more to do: the next pass begins with the
            // duty after it.
            if ends_pass || self.wakeups() != began {
                self.turn = (duty + 1) % SLOW_DUTIES;
                return Some(now);
            }
            due = earliest(due, next);
        }
        due
    }

    /// Makes attempts at electorates that have failed before. `began` is the wakeup counter at the
    /// beginning of the pass.
    fn retry(&mut self, failing: &[Planned], began: u32) -> Duty {
        let mut next = None;
        for planned in failing {
            match self.carry_out(planned) {
                Attempt::Failed => return Duty { next, ends_pass: true },
                Attempt::Made(_) if self.wakeups() != began => return Duty { next, ends_pass: true },
                Attempt::None(at) | Attempt::Made(at) => next = earliest(next, at),
            }
        }
        Duty { next, ends_pass: false }
    }

    /// Makes a step for one electorate, if one is due.
    fn carry_out(&mut self, Planned { electorate, plan, waiting }: &Planned) -> Attempt {
        match (self.retries.not_before(&Key::of(electorate)), plan) {
            (Some(not_before), _) => {
                // Members that have joined meanwhile need not wait for an election either.
                if *waiting && self.retries.is_warned(electorate.schema) {
                    wake_considered(self.segment, electorate);
                }
                Attempt::None(Some(not_before))
            }
            (None, Plan::Wait { until }) if !waiting => Attempt::None(deadline(*until)),
            (None, _) => match self.step(electorate) {
                Ok(next) => Attempt::Made(next),
                Err(failed) => {
                    self.retries.failed(Key::of(electorate), &failed);
                    Attempt::Failed
                }
            },
        }
    }

    /// The wakeup counter of this keeper.
    fn wakeups(&self) -> u32 {
        wakeups(self.segment, self.database)
    }

    /// Ends what is in shared memory for schemas that are gone. A schema that an ordinary
    /// transaction drops is forgotten at its commit (`backend::ddl_changes`). This is for other
    /// drops, such as in a prepared transaction.
    fn forget_dropped_schemas(&mut self) {
        let mut known = self.segment.leaderships_view(|v| v.schemas(self.database));
        known.extend(self.segment.leaderships(|l| l.foreign_schemas(self.database)));
        known.extend(self.segment.gossip().schemas(self.database, false));
        known.sort_unstable();
        known.dedup();
        if known.is_empty() {
            return;
        }
        let gone = transaction(self.segment, c"obanrs: looking for schemas", || {
            known.into_iter().filter(|schema| catalog::is_no_schema(*schema)).collect::<Vec<SchemaOid>>()
        });
        match gone {
            Ok(gone) => gone.into_iter().for_each(|schema| self.segment.forget_schema(self.database, schema)),
            Err(_) => self.verify = true, // meanwhile each step finds out for itself
        }
    }

    /// Announces the ends of leaderships that could not be announced while NOTIFY's queue was full.
    fn announce_pending(&mut self) -> Duty {
        let mut unannounced = self.segment.leaderships(|l| l.unannounced(self.database));
        if unannounced.is_empty() {
            self.announcement.succeeded(ClockTime::ZERO);
            return Duty { next: None, ends_pass: false };
        }
        if !self.announcement.is_due(clock::now()) {
            return Duty { next: Some(self.announcement.not_before()), ends_pass: false };
        }
        let all = unannounced.len();
        unannounced.truncate(config::max_transaction_messages());
        let announced = transaction(self.segment, c"obanrs: announcing", || {
            // This moves the tail of NOTIFY's queue as well, which no other process may do.
            let full = notify::is_queue_full();
            if !full {
                unannounced.iter().for_each(table::send_down);
            }
            !full
        });
        if announced.is_ok_and(|announced| announced) {
            self.segment.leaderships(|l| unannounced.iter().for_each(|e| l.announced(e)));
            self.announcement.succeeded(ClockTime::ZERO);
            return Duty { next: None, ends_pass: unannounced.len() < all };
        }
        // A NOTIFY that failed has filled the queue, and told no listener to read it.
        notify::rouse_listeners();
        Duty { next: Some(self.announcement.failed(clock::now(), ANNOUNCEMENT)), ends_pass: false }
    }

    /// Does what is due for one electorate. Returns the deadline of the next step, `None` for
    /// never. `Err` says why the step failed.
    ///
    /// The plan of the pass may be old by now, because members join and resign at any time. So the
    /// plan is made anew, together with the basis that `record` compares with.
    fn step(&mut self, electorate: &Electorate) -> Result<Option<ClockTime>, Failed> {
        let (segment, wait) = (self.segment, self.retries.may_wait_for(electorate.schema));
        let mut announcing = Announcing::WithRow;
        // Two attempts are enough for ordinary races.
        for _ in 0..2 {
            let (now, lease) = (clock::now(), config::lease());
            let (plan, basis) =
                segment.leaderships_view(|v| (v.plan(electorate, now, lease), v.basis(electorate)));
            let lapsed = matches!(plan, Plan::Elect { ended: Some(Ended { lapsed: true, .. }), .. });
            let renewal = matches!(plan, Plan::Renew { .. });
            let outcome = match plan {
                Plan::Forget => {
                    self.forget(electorate);
                    return Ok(None);
                }
                Plan::Wait { until } => {
                    wake_considered(segment, electorate);
                    return Ok(deadline(until));
                }
                Plan::Renew { leader, term, .. } => {
                    transaction(segment, c"obanrs: renewing a lease", || {
                        table::renew(electorate, &leader, term, wait)
                    })?
                }
                Plan::Elect { ended, candidate } => {
                    // This comes before the attempt. Otherwise the end of a fence could be missed.
                    expect_fences(segment, self.database, true);
                    let known = Known {
                        greatest_term: basis.greatest_term,
                        copy: basis.copy,
                        seen: self.sweep.seen_in(electorate.schema),
                    };
                    let elected = transaction(segment, c"obanrs: election", || {
                        table::elect(segment, electorate, ended, candidate, known, announcing, wait)
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
                // The row is no longer the member's. (A leadership that was revoked stays so until
                // its row is gone.)
                Outcome::Again if renewal => drop(vacate(segment, electorate)),
                Outcome::Again => {}
                outcome => return Ok(self.record_outcome(electorate, outcome, basis.changes, lapsed)),
            }
        }
        // The schema's owner swaps tables in a loop, for example. The delay after a failure keeps
        // that from taking all the time.
        Err("its row keeps changing under us".to_owned().into())
    }

    /// Records in shared memory what the table says now, and wakes the members that wait for an
    /// election. Returns the deadline of the next step, `None` for never. `changes_seen` is for
    /// `Leaderships::record`; `lapsed` says whether a lease was over.
    fn record_outcome(
        &mut self,
        electorate: &Electorate,
        outcome: Outcome,
        changes_seen: u32,
        lapsed: bool,
    ) -> Option<ClockTime> {
        let (segment, schema) = (self.segment, electorate.schema);
        match outcome {
            Outcome::SchemaGone => {
                segment.forget_schema(self.database, schema);
                return None;
            }
            // The end of that transaction wakes the keeper if oban_install runs in it.
            Outcome::SchemaToCome => {
                vacate(segment, electorate);
                wake_considered(segment, electorate);
                return Some(self.retries.hold(Key::of(electorate)));
            }
            Outcome::Missing { hint } => {
                // No trigger and no election tells of a row that went with its table.
                if let Some(before) = vacate(segment, electorate) {
                    let (name, node) = (electorate.name.as_str(), before.node.as_str());
                    let _ = transaction(segment, c"obanrs: announcing", || {
                        leadership::tell(LeaderChange::Ended, schema, name, node, before.lease.term);
                        true
                    });
                }
                wake_considered(segment, electorate);
                self.retries.warn(schema, "its table of leaders is missing, or not installed", hint);
                return None;
            }
            Outcome::Unusable { what, hint } => {
                // A leadership in shared memory stays until its lease is over.
                wake_considered(segment, electorate);
                self.retries.warn(schema, &what, hint);
                return Some(self.retries.unusable(schema));
            }
            Outcome::Locked => {
                let not_before = self.retries.locked(schema);
                self.retries.report_locked(schema);
                return Some(not_before);
            }
            Outcome::Held => {
                // The name has no leader until the row is free. Members do not wait for that.
                wake_considered(segment, electorate);
                return Some(self.retries.hold(Key::of(electorate)));
            }
            Outcome::Dropped => {
                self.dropped = true;
                return None;
            }
            Outcome::Local(row) | Outcome::Foreign(row) => {
                let recorded = record(segment, electorate, row, changes_seen);
                stats::count(Counter::Lapses, usize::from(recorded && lapsed));
            }
            // `step` handles `Again` by itself, so `Again` never comes here.
            Outcome::Vacant | Outcome::Again => {
                vacate(segment, electorate);
                stats::count(Counter::Lapses, usize::from(lapsed));
            }
        }
        if self.retries.election_succeeded(electorate) {
            self.sweep.changed(ChangedPrefixes::Of(schema));
        }
        self.next_of(electorate)
    }

    /// The deadline of the next step of an electorate, `None` for never. The plan is made anew,
    /// because members may have joined or left during the step.
    fn next_of(&mut self, electorate: &Electorate) -> Option<ClockTime> {
        let (now, lease) = (clock::now(), config::lease());
        match self.segment.leaderships_view(|v| v.plan(electorate, now, lease)) {
            Plan::Wait { until } => {
                wake_considered(self.segment, electorate);
                deadline(until)
            }
            Plan::Forget => {
                self.forget(electorate);
                None
            }
            Plan::Renew { .. } | Plan::Elect { .. } => Some(now),
        }
    }

    /// Gives up an electorate without candidates. Its row in the table is the sweep's from now on.
    fn forget(&mut self, electorate: &Electorate) {
        // A foreign row keeps its deadline. Its leadership does not end because shared memory
        // forgets it.
        if let Some(before) = self.segment.leaderships(|l| l.vacate(electorate, clock::now())) {
            if before.is_local() {
                log_vacant(electorate, &before);
            }
            self.sweep.has_seen(electorate, &before);
        }
        self.sweep.changed(ChangedPrefixes::Of(electorate.schema));
        wake_considered(self.segment, electorate);
    }
}

/// The wakeup counter of a database's keeper: another number than before is a reason for another
/// pass.
fn wakeups(segment: Segment, database: DatabaseOid) -> u32 {
    segment.registry(|r| r.wakeups(Kind::Keeper, database))
}

/// Sets whether the end of a transaction with a fence wakes the keeper.
fn expect_fences(segment: Segment, database: DatabaseOid, expected: bool) {
    segment.registry(|r| r.expect_fences(database, expected));
}

/// The deadline of a plan. `None` is never: only a wakeup changes that plan.
fn deadline(until: ClockTime) -> Option<ClockTime> {
    (until != ClockTime::NEVER).then_some(until)
}

/// The earlier of two deadlines. `None` is never.
pub fn earliest(a: Option<ClockTime>, b: Option<ClockTime>) -> Option<ClockTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
