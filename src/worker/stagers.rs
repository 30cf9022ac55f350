//! The keeper's side of staging: it finds out which prefixes stage, and starts and ends their
//! stagers (`stager`). `logic::staging` is the state machine of their slots.
//!
//! The keeper runs no code of a table's owner: it reads catalogs, and waits 50 ms for a lock on
//! them. If the keeper dies, stagers run on, and the next keeper finds them in their slots.

use std::collections::HashMap;

use pgrx::prelude::*;

use super::process;
use crate::error;
use crate::logic::backoff::{LOOK, MILLISECOND};
use crate::logic::ids::{DatabaseOid, RoleOid};
use crate::logic::retry::Retry;
use crate::logic::staging::slots::{Failure, LaunchedStager, StagedPrefix};
use crate::logic::text::Text;
use crate::logic::times::ClockTime;
use crate::pg::bgworker::{self, WorkerHandle, WorkerSpec};
use crate::pg::catalog::{self, NamedJobs};
use crate::pg::{acl, clock, encoding, latch, session, xact};
use crate::prefix::{rights, staged};
use crate::shmem::Segment;

/// How often to look whether there is a place for prefixes that found none, in microseconds. Nothing
/// tells when the stager of another database leaves its place.
const WITHOUT_PLACE: i64 = 30_000 * MILLISECOND;

/// How many times as long as a reading of the catalogs the keeper waits before the next one.
const PAUSE: i64 = 4;

/// The stagers of this keeper's database.
pub struct Supervisor {
    segment: Segment,
    database: DatabaseOid,
    /// The processes that this keeper launched and that have not ended.
    launched: HashMap<LaunchedStager, WorkerHandle>,
    /// Readings of the catalogs that fail.
    reading: Retry,
    /// Whether the catalogs have to be read.
    reads: bool,
    /// When to look for places again. `None`: each prefix that stages has one.
    without_place: Option<ClockTime>,
}

impl Supervisor {
    /// Returns the supervisor of a keeper that has just started.
    pub fn new(segment: Segment, database: DatabaseOid) -> Self {
        segment.stagers(|s| s.adopt(database));
        Self {
            segment,
            database,
            launched: HashMap::new(),
            reading: Retry::default(),
            reads: true,
            without_place: None,
        }
    }

    /// Has all stagers of the database leave, because the keeper leaves.
    pub fn dismiss(&self) {
        dismiss_all(self.segment, self.database);
    }

    /// Does all that is due now. Returns whether it ran a transaction, which may have reset the
    /// latch.
    pub fn pass(&mut self) -> bool {
        let (segment, database, now) = (self.segment, self.database, clock::now());
        self.reap(now);
        for failure in segment.stagers(|s| s.take_unlogged(database)) {
            log_failure(&failure, now);
        }
        self.reads |= segment.registry(|r| r.take_staging(database));
        // Roles are altered without a word, so the catalogs are read before each launch.
        self.reads |= segment.stagers(|s| s.next_launch(database)).is_some_and(|at| at <= now);
        self.reads |= self.without_place.is_some_and(|at| at <= now);
        if !self.reads || !self.reading.is_due(now) {
            return false;
        }
        match xact::contain(|| xact::run(c"obanrs: looking for prefixes that stage", staged_prefixes)) {
            Ok(wanted) => {
                // Any role may change tables again and again, in a database with many of them. The
                // keeper spends at most a fifth of its time on that.
                self.reads = false;
                self.reading.succeeded(clock::now() + PAUSE * (clock::now() - now));
                self.keep(&wanted, now);
            }
            Err(_) => _ = self.reading.failed(now, LOOK), // another transaction has a catalog locked
        }
        true
    }

    /// Returns when the next pass is due by itself; `None`: not before the latch is set.
    pub fn due(&self) -> Option<ClockTime> {
        let reading = self.reads.then_some(ClockTime::ZERO);
        let launch = self.segment.stagers(|s| s.next_launch(self.database));
        let due = [reading, launch, self.without_place].into_iter().flatten().min();
        due.map(|at| at.max(self.reading.not_before())) // each of them begins with a reading
    }

    /// Notes which of the launched processes have ended before their claim. The others have
    /// recorded their end themselves.
    fn reap(&mut self, now: ClockTime) {
        let segment = self.segment;
        self.launched.retain(|id, handle| {
            let stopped = handle.has_stopped();
            if stopped {
                segment.stagers(|s| s.not_started(*id, now, "the stager ended while it started"));
            }
            !stopped
        });
    }

    /// Gives the prefixes that stage their slots, and launches the stagers that are due.
    fn keep(&mut self, wanted: &[StagedPrefix], now: ClockTime) {
        let (segment, database) = (self.segment, self.database);
        let room = segment.registry(|r| r.room_for_stagers(session::max_worker_processes()));
        let kept = segment.keep_stagers(database, wanted, room);
        kept.leaving.into_iter().for_each(latch::wake);
        self.without_place = (!kept.without_place.is_empty()).then(|| now + WITHOUT_PLACE);
        for (id, schema) in segment.stagers(|s| s.launch(database, now)) {
            let obstacle = wanted.iter().find(|w| w.schema == schema).and_then(|w| w.obstacle.as_deref());
            let why = match obstacle {
                Some(obstacle) => obstacle,
                None if self.start(id) => continue,
                None => "no free worker slot: raise max_worker_processes and restart the server",
            };
            segment.stagers(|s| s.not_started(id, now, why));
        }
        for failure in segment.stagers(|s| s.take_unlogged(database)) {
            log_failure(&failure, now);
        }
    }

    /// Starts a stager. False: there is no free slot of max_worker_processes.
    fn start(&mut self, id: LaunchedStager) -> bool {
        let worker = WorkerSpec {
            name: &format!("obanrs stager {} for database {}", id.slot, self.database),
            kind: "obanrs stager",
            function: "obanrs_stager_main",
            argument: id.slot as u32,
        };
        let handle = bgworker::launch(&worker);
        let started = handle.is_some();
        self.launched.extend(handle.map(|handle| (id, handle)));
        started
    }
}

/// Has all stagers of a database leave. They are not started again before a keeper finds that their
/// prefixes stage.
pub fn dismiss_all(segment: Segment, database: DatabaseOid) {
    segment.stagers(|s| s.dismiss(database, |_| true)).into_iter().for_each(latch::wake);
}

/// Logs why a stager has failed. Each line comes with a delay that has grown, so a lasting failure
/// does not fill the log.
fn log_failure(failure: &Failure, now: ClockTime) {
    let (prefix, why, database) = (failure.prefix.as_str(), failure.why.as_str(), process::of_database());
    let seconds = (failure.at.saturating_sub(now).max(0) + 999_999) / 1_000_000;
    let (message, hint) = if failure.runs_on {
        (
            format!("obanrs has set a due job of prefix \"{prefix}\" in {database} aside: {why}"),
            format!(
                "The job stays as it is, and is tried again in {seconds} s. oban_check() says how many \
                 jobs are set aside."
            ),
        )
    } else {
        (
            format!("obanrs can't stage jobs of prefix \"{prefix}\" in {database}: {why}"),
            format!("Its stager is started again in {seconds} s."),
        )
    };
    error::log(PgLogLevel::WARNING, PgSqlErrorCode::ERRCODE_WARNING, message, hint);
}

/// Returns the prefixes of this database that stage, with what keeps a stager from connecting.
fn staged_prefixes() -> Vec<StagedPrefix> {
    let most = session::max_worker_processes();
    let prefix = |jobs: NamedJobs| {
        let name = catalog::namespace_name(jobs.schema).filter(|name| encoding::is_name(name))?;
        Some(StagedPrefix {
            schema: jobs.schema,
            table: jobs.oid,
            owner: jobs.owner,
            prefix: Text::truncated(&name),
            quota: rights::quota_of_stagers(jobs.owner, most),
            obstacle: obstacle_to_connect(jobs.owner),
        })
    };
    staged::staged_tables().into_iter().filter_map(prefix).collect()
}

/// Returns why a stager can't connect as the owner of a table; `None` if nothing is known.
fn obstacle_to_connect(owner: RoleOid) -> Option<String> {
    let role = || catalog::quoted_role(owner);
    if !bgworker::CONNECTS_WITHOUT_LOGIN && !acl::may_log_in(owner) {
        return Some(format!(
            "role {} owns oban_jobs and has NOLOGIN, as which no worker can connect before Postgres 17: \
             ALTER ROLE {} LOGIN",
            role(),
            role()
        ));
    }
    if !acl::may_connect(owner, session::database()) {
        return Some(format!(
            "role {} owns oban_jobs and may not connect to this database: GRANT CONNECT",
            role()
        ));
    }
    None
}
