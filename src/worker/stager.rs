//! A stager: the worker of one prefix that makes its jobs available when they are due.
//!
//! A stager is connected as the owner of the prefix's oban_jobs, and as no other role. Its UPDATE
//! fires the table's triggers, as an UPDATE of the owner's does. That code may do anything that the
//! owner may do: wait, loop, raise, or catch what would end it. So no two prefixes share a process,
//! and a transaction that takes too long ends the process by a FATAL, which no code catches.
//! The keeper starts another one, after a delay that grows (`stagers`).
//!
//! A stager makes jobs available in batches. A batch that fails is tried again with fewer rows, and a
//! single row that fails is set aside (`logic::staging::batching`). So one bad row costs its batch
//! only. A stager that can't go on returns an error, and its process ends. A process that a batch ends
//! has made progress by that, so the next one starts at once.
//!
//! A stager sleeps until the earliest due time that its last look has found, by the wall clock, or
//! until a commit tells of an earlier one (`logic::staging::alarm`). Without a due time it sleeps
//! without a timer. While it waits, it has no transaction and no lock.
//!
//! If a stager dies in a transaction, the transaction is aborted, and the next stager finds the rows
//! again. The exit callback counts that as a failure of the batch. If a stager dies between its commit
//! and the wait, the next one begins with a look.

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::due_jobs;
use crate::bus::wakeups;
use crate::logic::ids::DatabaseOid;
use crate::logic::staging::alarm::NEVER;
use crate::logic::staging::batching::{self, Batching, RowVersion, Then};
use crate::logic::staging::pass::{Batch, Pass};
use crate::logic::staging::slots::{Claimed, End, LaunchedStager};
use crate::logic::staging::{Agenda, Announcements, Look, STATEMENT_LIMIT, Seen};
use crate::logic::times::{ClockTime, WallTime};
use crate::pg::bgworker::{self, Restarted};
use crate::pg::latch::Event;
use crate::pg::statement::NotRun;
use crate::pg::{clock, encoding, latch, session, time, xact};
use crate::prefix::staging::{REPLACED, StagedJobs, Step};
use crate::shmem::Segment;
use crate::shmem::stagers::Alarms;

/// The longest wait for a lock on the table. After that the stager gives way, and tries again soon.
const LOCK_TIMEOUT: &CStr = c"1s";

/// What the exit callback has to know: the slot, its generation (0 before the claim), and the
/// database.
static SLOT: AtomicUsize = AtomicUsize::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(0);
static DATABASE: AtomicU32 = AtomicU32::new(0);
/// The clock reading of the claim, in microseconds.
static CONNECTED_AT: AtomicI64 = AtomicI64::new(0);

/// What a transaction is about that runs code of the table's owner.
#[derive(Clone, Copy, Debug)]
enum UnderWay {
    /// No row: there is no transaction, or it only reads.
    Nothing,
    /// A batch of rows.
    Batch,
    /// One row.
    Row(RowVersion),
}

thread_local! {
    /// The size of batches and the rows that are set aside, for the exit callback, too.
    static BATCHING: Cell<Batching> = Cell::new(Batching::default());
    static UNDER_WAY: Cell<UnderWay> = const { Cell::new(UnderWay::Nothing) };
}

/// Notes that the batch under way has failed. Returns what the stager does.
fn batch_failed(failure: batching::Failure) -> Then {
    let row = match UNDER_WAY.replace(UnderWay::Nothing) {
        UnderWay::Row(row) => Some(row),
        UnderWay::Batch | UnderWay::Nothing => None,
    };
    change_batching(|batching| batching.failed(failure, row, clock::now()))
}

fn change_batching<R>(change: impl FnOnce(&mut Batching) -> R) -> R {
    let mut batching = BATCHING.get();
    let result = change(&mut batching);
    BATCHING.set(batching);
    result
}

/// For how long a stager has to run, in microseconds, before its failure counts as the first in a
/// row. The code of a table's owner can fail at any moment, for example each time after a success.
const LASTING: i64 = 60_000_000;

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_stager_main(argument: pg_sys::Datum) {
    let Some(segment) = Segment::attached() else { return };
    bgworker::take_signals(Restarted::ByLauncher);
    bgworker::end_at_limit();
    // This comes before the claim and before the process connects, as in `process::begin`.
    session::after_disconnect(exited);
    let (process, now) = (latch::my_process(), time::now());
    let Some(claimed) = segment.stagers(|s| s.claim(argument.value(), process, now)) else { return };
    SLOT.store(claimed.id.slot, Ordering::Relaxed);
    DATABASE.store(claimed.database.0, Ordering::Relaxed);
    CONNECTED_AT.store(clock::now().0, Ordering::Relaxed);
    GENERATION.store(claimed.id.generation, Ordering::Relaxed);
    // A command that needs the database alone sets its hold, and then looks for stagers. This
    // process has claimed its slot, and now looks for holds. One of them sees the other.
    if segment.registry(|r| r.is_held(claimed.database)) {
        return;
    }
    let Some(alarms) = segment.alarms(claimed.id.slot) else { return };
    bgworker::connect_as(claimed.database, claimed.owner);
    begin_session();
    BATCHING.set(claimed.batching);
    due_jobs::keep_own(claimed.schema);
    segment.stagers(|s| s.connected(claimed.id, process.pid));
    let mut stager = Stager {
        segment,
        claimed,
        alarms,
        agenda: Agenda::default(),
        announcements: Announcements::new(claimed.succeeds_another),
        was_superuser: session::is_superusers(),
    };
    if let Err(why) = stager.run() {
        segment.stagers(|s| s.note_error(claimed.id, process.pid, &why));
    }
}

/// Overrides those settings of the role and of the database that a stager can't do with. All others
/// stay: the owner's triggers find what they would find in a session of the owner.
fn begin_session() {
    for (name, value) in [
        (c"role", c"none"),
        (c"default_transaction_isolation", c"read committed"),
        (c"session_replication_role", c"origin"),
        (c"obanrs.wakeups", c"on"),
        (c"lock_timeout", LOCK_TIMEOUT),
        (c"application_name", c"obanrs stager"),
    ] {
        session::set(name, value);
    }
    session::set(c"client_encoding", encoding::of_database());
    // transaction_timeout is not known before Postgres 17.
    session::set_if_known(c"transaction_timeout", c"0");
    bgworker::report_name(c"obanrs stager");
    latch::wait_as(Event::Stager);
}

/// Records the end of this process, and wakes those that wait for it: commands that hold the
/// database, and the keeper.
#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    let Some(segment) = Segment::attached() else { return };
    let id =
        LaunchedStager { slot: SLOT.load(Ordering::Relaxed), generation: GENERATION.load(Ordering::Relaxed) };
    let database = DatabaseOid(DATABASE.load(Ordering::Relaxed));
    if id.generation == 0 {
        return; // the claim was refused, or did not come
    }
    let pid = latch::my_pid();
    // What a process has survived for a while is not the reason why the last one failed.
    if clock::now() - ClockTime(CONNECTED_AT.load(Ordering::Relaxed)) >= LASTING {
        segment.stagers(|s| s.succeeded(id, pid));
    }
    let timed_out = bgworker::has_timed_out();
    let why = if timed_out {
        format!("a transaction took longer than {} s, and was ended", STATEMENT_LIMIT / 1_000)
    } else {
        "its process was ended while it made jobs available".into()
    };
    if timed_out {
        segment.stagers(|s| s.timed_out(id, pid, &why));
    }
    // A batch that was under way is lost. Its rows may be the reason.
    let lost = !matches!(UNDER_WAY.get(), UnderWay::Nothing);
    let progressed = lost && batch_failed(batching::Failure::Ended) == Then::GoOn;
    segment.stagers(|s| s.set_aside(id, pid, &BATCHING.get(), progressed.then_some(why.as_str())));
    let holders = segment.registry(|r| r.holders(database));
    let end = match (holders.is_empty(), progressed) {
        (false, _) => End::Held,
        (true, true) => End::Progressed,
        (true, false) => End::Failed,
    };
    segment.stagers(|s| s.exited(id, pid, clock::now(), end));
    holders.into_iter().for_each(latch::wake);
    segment.staging_changed(database);
}

/// The result of one batch.
enum Looked {
    /// More rows may be due.
    More,
    /// No more rows are due. What is left.
    Seen(Seen),
    /// Nothing was done, because another transaction has the table.
    Nothing,
}

/// Why a transaction has failed.
enum Failure {
    /// The table can't be staged: the stager has to end.
    Table(String),
    /// The table's code has raised, or the transaction could not be committed.
    Code(String),
}

impl Failure {
    fn why(self) -> String {
        match self {
            Self::Table(why) | Self::Code(why) => why,
        }
    }
}

struct Stager {
    segment: Segment,
    claimed: Claimed,
    alarms: &'static Alarms,
    agenda: Agenda,
    announcements: Announcements,
    /// Whether the owner was a superuser when this process connected.
    was_superuser: bool,
}

impl Stager {
    /// Runs until the stager has to leave. `Err`: it fails, for this reason.
    fn run(&mut self) -> Result<(), String> {
        loop {
            latch::reset();
            bgworker::reload_config();
            if self.has_to_leave() {
                return Ok(());
            }
            let due = self.alarms.due.sleep_until(self.agenda.next());
            let later = if self.claimed.announces {
                self.alarms.later.sleep_until(self.announcements.next())
            } else {
                NEVER
            };
            let (now, wall) = (clock::now(), time::now());
            let looks = [self.agenda.look_at(due, now, wall), self.announcements.look_at(later, now, wall)];
            let trial = BATCHING.get().next_trial();
            let at = looks.into_iter().flatten().min();
            match (at, trial) {
                (Some(at), _) if at <= now => self.look()?,
                (_, Some((row, at))) if at <= now => self.try_row(row)?,
                (at, trial) => {
                    let trial = trial.map(|(_, at)| at);
                    latch::wait_until(at.into_iter().chain(trial).min());
                }
            }
        }
    }

    /// Returns whether the stager has to leave: a command needs the database alone, or the keeper
    /// has dismissed the stager.
    fn has_to_leave(&self) -> bool {
        self.segment.stagers_view(|s| s.has_to_end(self.claimed.id))
            || self.segment.registry(|r| r.is_held(self.claimed.database))
    }

    /// Looks at the table until nothing is left that is due. `Err`: the stager has to end.
    fn look(&mut self) -> Result<(), String> {
        // Before the snapshots of the transactions.
        let told_later = self.alarms.later.begin_look();
        let told = self.alarms.due.begin_look();
        let began = clock::now();
        let from = self.agenda.look_from(told, began);
        let mut pass = Pass::begin(from, time::now());
        let mut resets = false;
        loop {
            match self.batch(&mut pass, from, &mut resets)? {
                Looked::More if self.has_to_leave() => return Ok(()),
                Looked::More => {}
                Looked::Seen(seen) => {
                    let (kept, failed) = (pass.has_kept(), pass.has_failed());
                    self.agenda.looked(seen, Look { from, began, kept, failed, resets }, clock::now());
                    break;
                }
                Looked::Nothing => {
                    self.tell_later_again(told_later);
                    self.agenda.put_off(clock::now());
                    return Ok(());
                }
            }
        }
        self.look_for_later(told_later)
    }

    /// Tells the alarm again what a look has taken, so that the next look knows of it.
    fn tell_later_again(&self, told: WallTime) {
        if told < NEVER {
            self.alarms.later.tell(told);
        }
    }

    /// Makes one batch of jobs available, of a look that began at the due time `from`. Sets `resets` if
    /// it has written rows that became due after the look began. `Err`: the stager has to end.
    fn batch(&mut self, pass: &mut Pass, from: WallTime, resets: &mut bool) -> Result<Looked, String> {
        let batching = BATCHING.get();
        let (limit, began, at) = (batching.limit(), clock::now(), *pass);
        let first_due = Cell::new(at.from);
        due_jobs::take_own(); // what an earlier transaction has left
        let outcome = self.transaction(|jobs| {
            let aside = jobs.present(batching.aside())?;
            UNDER_WAY.set(UnderWay::Batch);
            let batch = match limit {
                1 => match jobs.first(&at, &aside)? {
                    None => Batch::NOTHING,
                    Some((row, due)) => {
                        first_due.set(due);
                        UNDER_WAY.set(UnderWay::Row(row));
                        jobs.stage_row(&row, at.now)?
                    }
                },
                _ => jobs.stage(&at, limit, &aside)?,
            };
            let seen = if batch.chosen < limit { Some(jobs.seen(from, at.now, &aside)?) } else { None };
            Ok((batch, seen, aside))
        });
        match outcome {
            Ok(Some((batch, seen, aside))) => {
                UNDER_WAY.set(UnderWay::Nothing);
                let fewer = change_batching(|batching| {
                    batching.succeeded(batch.chosen, clock::now() - began);
                    batching.retain(|row| aside.contains(row))
                });
                if fewer {
                    self.store_batching(None);
                }
                // When rows are due again that this transaction has written: a trigger has done that.
                let again = due_jobs::take_own();
                *resets |= again > at.now && again <= time::now();
                pass.took(batch, limit, again <= at.now);
                Ok(seen.map_or(Looked::More, Looked::Seen))
            }
            Ok(None) => {
                UNDER_WAY.set(UnderWay::Nothing);
                Ok(Looked::Nothing)
            }
            Err(Failure::Code(why)) => {
                let then = batch_failed(batching::Failure::Raised);
                self.store_batching(Some(&why));
                match then {
                    Then::GoOn => {}
                    Then::PassOver => pass.pass_over(first_due.get()),
                    Then::GiveUp => return Err(why),
                }
                Ok(Looked::More)
            }
            Err(Failure::Table(why)) => Err(why),
        }
    }

    /// Stores the size of batches and the rows that are set aside in the slot. `why`: the last failure.
    fn store_batching(&self, why: Option<&str>) {
        let (id, pid, batching) = (self.claimed.id, latch::my_pid(), BATCHING.get());
        if self.segment.stagers(|s| s.set_aside(id, pid, &batching, why)) {
            self.segment.staging_changed(self.claimed.database);
        }
    }

    /// Tries to make a job available that was set aside. `Err`: the stager has to end.
    fn try_row(&mut self, row: RowVersion) -> Result<(), String> {
        let now = time::now();
        let outcome = self.transaction(|jobs| {
            UNDER_WAY.set(UnderWay::Row(row));
            jobs.stage_row(&row, now)
        });
        let why = match outcome {
            Ok(tried) => {
                UNDER_WAY.set(UnderWay::Nothing);
                change_batching(|batching| match tried {
                    Some(_) => batching.trial_succeeded(&row, clock::now()),
                    None => batching.put_off(&row, clock::now()),
                });
                if tried.is_some_and(|batch| batch.staged == 0) {
                    self.agenda.look_again(); // the row was changed, is locked, or a trigger has kept it
                }
                None
            }
            Err(Failure::Code(why)) => {
                let _ = batch_failed(batching::Failure::Raised);
                Some(why)
            }
            Err(Failure::Table(why)) => return Err(why),
        };
        self.store_batching(why.as_deref());
        Ok(())
    }

    /// Wakes the queues of jobs that were inserted as available and have become due since, and finds
    /// out when the next one is due. `told` is the earliest due time that was told since the last
    /// look. This reads all jobs that are available. If that takes too long, which ends this process,
    /// the stagers of this slot do without (`Stagers::begin_announcing`).
    fn look_for_later(&mut self, told: WallTime) -> Result<(), String> {
        let began = clock::now();
        if !self.claimed.announces {
            return Ok(());
        }
        if !self.announcements.has_to_look(told, began, time::now()) {
            self.tell_later_again(told);
            return Ok(());
        }
        let (id, pid, schema) = (self.claimed.id, latch::my_pid(), self.claimed.schema);
        self.segment.stagers(|s| s.begin_announcing(id, pid));
        // A row that is inserted from here on is woken by its own transaction, or told.
        let (now, before) = (time::now(), self.announcements);
        let next = self.transaction(|jobs| {
            if let Some((after, upto)) = before.due(told, now) {
                jobs.queues_due(after, upto, |queue| wakeups::wake(schema, queue))?;
            }
            jobs.next_later(now)
        });
        self.segment.stagers(|s| s.announced(id, pid));
        match next.map_err(Failure::why)? {
            Some(next) => self.announcements.announced(next, began, clock::now()),
            None => {
                self.tell_later_again(told);
                self.agenda.put_off(clock::now());
            }
        }
        Ok(())
    }

    /// Runs one transaction of this process, in which `body` has the table locked. `None`: nothing
    /// was done, because another transaction has the table, or a name was changed meanwhile. `Err`
    /// says why the transaction failed.
    fn transaction<R>(
        &self,
        body: impl FnOnce(&StagedJobs<'_>) -> Result<R, NotRun>,
    ) -> Result<Option<R>, Failure> {
        let Claimed { table, schema, owner, .. } = self.claimed;
        let step = Cell::new(Step::Opening);
        let in_transaction = || {
            let jobs =
                StagedJobs::open(table, schema, owner, self.was_superuser, &step).map_err(Failure::Table)?;
            match body(&jobs) {
                Ok(result) => Ok(Some(result)),
                Err(NotRun::AnotherTable) => Ok(None),
                Err(NotRun::Rule) => Err(Failure::Table("its table has a rule for UPDATE".into())),
            }
        };
        let limited = || xact::limit(STATEMENT_LIMIT, || xact::run(c"obanrs: staging", in_transaction));
        // The time limit includes the commit, at which deferred triggers run.
        let outcome = match (xact::contain(limited), step.get()) {
            (Ok(outcome), _) => outcome,
            (Err(caught), Step::Opening) if caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => {
                Ok(None)
            }
            // A table that is being dropped has no rows in some catalogs any more.
            (Err(caught), Step::Opening) if caught.code == PgSqlErrorCode::ERRCODE_INTERNAL_ERROR => {
                Err(Failure::Table(REPLACED.into()))
            }
            (Err(caught), Step::Opening) => Err(Failure::Table(caught.message)),
            // The schema was renamed after its name was looked up, and before the table's name was.
            (Err(caught), Step::Naming) if is_lost_name(caught.code) => Ok(None),
            (Err(caught), Step::Naming | Step::Running) => Err(Failure::Code(caught.message)),
        };
        // The table's code may have left a role, settings, advisory locks or temporary tables.
        if step.get() != Step::Opening {
            xact::contain(|| xact::run(c"obanrs: staging", session::discard))
                .map_err(|e| Failure::Table(e.message))?;
        }
        outcome
    }
}

/// Returns whether this is the error of a name that means no table.
fn is_lost_name(code: PgSqlErrorCode) -> bool {
    matches!(code, PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE | PgSqlErrorCode::ERRCODE_INVALID_SCHEMA_NAME)
}
