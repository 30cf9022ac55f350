//! The coordinator: the one static worker, which is connected to no database. The coordinator
//! starts a keeper and a relay for each database that has the extension (`logic::lifecycle` is the
//! state machine of these workers), clears up after databases that are gone, and lets entries of
//! the gossip table expire.
//!
//! After the server's start or promotion the coordinator finds out once which databases have the
//! extension: it starts a look for each of them (`look`). After that the transactions that change a
//! database tell.
//!
//! The coordinator waits until something is due or its latch is set. The latch is set by a
//! transaction that created, dropped or changed a database or the extension, by a worker that
//! started or ended, and by a put whose entry expires earlier than all others. If the coordinator
//! dies, the postmaster starts another one a second later. The workers run on, and their slots tell
//! the new coordinator about them.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::logic::ids::DatabaseOid;
use crate::logic::lifecycle::{FreedSlot, Kind, Lack};
use crate::logic::times::ClockTime;
use crate::pg::bgworker::{self, Restarted, WorkerHandle, WorkerSpec};
use crate::pg::catalog::{self, Database};
use crate::pg::latch::Event;
use crate::pg::{clock, latch, session, time, xact};
use crate::shmem::slots::SlotId;
use crate::shmem::{Segment, rings};

/// How long the postmaster waits before it starts a coordinator that ended.
const RESTART_SECONDS: i32 = 1;

pub fn register() {
    let worker = WorkerSpec {
        name: "obanrs coordinator",
        kind: "obanrs coordinator",
        function: "obanrs_coordinator_main",
        argument: 0,
    };
    bgworker::register(&worker, RESTART_SECONDS);
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_coordinator_main(_argument: pg_sys::Datum) {
    bgworker::take_signals(Restarted::ByPostmaster);
    let Some(segment) = Segment::attached() else { return };
    session::before_exit(exited); // registered before there is anything to clear up
    segment.coordinator_started(latch::my_pid(), latch::my_procno(), time::now());
    bgworker::connect_to_none();
    bgworker::report_name(c"obanrs coordinator");
    latch::wait_as(Event::Coordinator);
    if segment.coordinator().restarts > 0 {
        log!("obanrs: the coordinator is back after a failure");
    }
    segment.registry(|r| r.adopt());
    segment.lift_floor(time::now().0); // after a promotion: the former primary has given positions meanwhile
    segment.rescan();

    let mut coordinator = Coordinator::new(segment);
    loop {
        latch::reset();
        bgworker::reload_config();
        let due = coordinator.pass();
        latch::wait_until(due);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    if let Some(segment) = Segment::attached() {
        segment.coordinator_exited();
    }
}

/// A process that this coordinator launches.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Job {
    Worker(Kind),
    Look,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Job::Worker(kind) => kind.name(),
            Job::Look => "look",
        }
    }
}

struct Coordinator {
    segment: Segment,
    /// The databases of the last reading of pg_database, by their oids.
    databases: HashMap<DatabaseOid, Database>,
    /// The greatest generation of a slot before that reading, which may have missed a database with
    /// a younger slot.
    last_generation: u64,
    /// The databases of the server's start for which no look has begun.
    to_look_into: Vec<DatabaseOid>,
    /// The processes that this coordinator launched and that have not ended.
    launched: HashMap<(Job, DatabaseOid), WorkerHandle>,
    /// The databases of which the log says already that there is no slot for them.
    logged_slots: HashSet<DatabaseOid>,
    /// The databases of which the log says already that all looks failed.
    logged_looks: HashSet<DatabaseOid>,
    /// The jobs of which the log says already that there is no free worker slot for them.
    logged_workers: HashSet<Job>,
}

impl Coordinator {
    fn new(segment: Segment) -> Self {
        Self {
            segment,
            databases: HashMap::new(),
            last_generation: 0,
            to_look_into: Vec::new(),
            launched: HashMap::new(),
            logged_slots: HashSet::new(),
            logged_looks: HashSet::new(),
            logged_workers: HashSet::new(),
        }
    }

    /// Does all that is due now. Returns the deadline of the next pass; `None`: not before the
    /// latch is set.
    fn pass(&mut self) -> Option<ClockTime> {
        // Repeated until there is no order to read: reading may wait for a lock, and that wait
        // resets the latch that another order has set meanwhile.
        while self.segment.take_rescan() {
            self.scan();
        }
        self.reap();
        self.place();
        self.look();
        self.launch();
        let expiry = self.segment.gossip().sweep();
        let now = clock::now();
        let (launch, look) = self
            .segment
            .registry(|r| (r.next_launch(), r.next_look(now, |oid| takes_connections(&self.databases, oid))));
        [expiry, launch, look].into_iter().flatten().min()
    }

    /// Reads pg_database, and forgets what is kept for databases that are gone.
    fn scan(&mut self) {
        let segment = self.segment;
        let (last_generation, done) = segment.registry(|r| (*r.last_generation, r.unslotted.done != 0));
        let (first, began) = (self.databases.is_empty(), clock::now());
        let known = segment.leaderships_view(|v| v.databases());
        let found = xact::run(c"obanrs: looking for databases", catalog::databases);
        (self.last_generation, self.databases) =
            (last_generation, found.into_iter().map(|d| (d.oid, d)).collect());
        self.logged_slots.retain(|oid| self.databases.contains_key(oid));
        self.logged_looks.retain(|oid| self.databases.contains_key(oid));
        let exists = |oid: DatabaseOid| self.databases.contains_key(&oid);
        for oid in known.into_iter().filter(|oid| !exists(*oid)) {
            segment.leaderships(|l| l.forget_database(oid, began));
        }
        segment.gossip().forget_databases(exists, began);
        if first && !done {
            // A database that takes no connections gets its look when it does. template0 never has
            // an extension.
            let wanted = self.databases.values().filter(|d| !d.is_invalid);
            let wanted = wanted.filter(|d| d.takes_connections || d.oid != catalog::TEMPLATE0);
            let (now, later): (Vec<&Database>, Vec<&Database>) = wanted.partition(|d| d.takes_connections);
            let mut now: Vec<_> = now.iter().map(|d| (!d.is_template, Reverse(d.oid))).collect();
            now.sort_unstable(); // the last gets the first look: templates wait
            self.to_look_into = now.into_iter().map(|(_, Reverse(oid))| oid).collect();
            segment.registry(|r| later.iter().for_each(|d| _ = r.look_into(d.oid)));
        }
    }

    /// Deletes workers that ended and databases that need none, and what is kept for these
    /// databases.
    fn reap(&mut self) {
        let (segment, now) = (self.segment, clock::now());
        self.launched.retain(|(job, oid), handle| {
            let stopped = handle.has_stopped();
            if stopped {
                // This concerns a worker that never claimed its slot. The others have recorded
                // their end themselves.
                let why = "the worker ended while it started";
                segment.registry(|r| match job {
                    Job::Worker(kind) => r.launch_failed(*kind, *oid, now, why),
                    Job::Look => r.look_lost(*oid, now),
                });
            }
            !stopped
        });
        // What is kept for the databases that are gone goes first. Of that, only what is older than
        // the reading that found them gone may go: a session may be creating the extension again,
        // and join.
        let (last_generation, databases) = (self.last_generation, &self.databases);
        let alive = |oid: DatabaseOid| takes_workers(databases, oid);
        for (oid, before) in segment.registry(|r| r.forgettable(last_generation, alive)) {
            segment.leaderships(|l| l.forget_database(oid, before));
            segment.gossip().forget_database(oid, before);
        }
        let exists = |oid: DatabaseOid| databases.contains_key(&oid);
        let (freed, leaving) = segment.registry(|r| {
            r.forget_unslotted(last_generation, exists);
            r.reap(last_generation, alive, exists)
        });
        for FreedSlot { oid, slot, generation } in freed {
            rings::close(segment, SlotId { slot, generation });
            super::stagers::dismiss_all(segment, oid); // a keeper that was killed could not
        }
        leaving.into_iter().for_each(latch::wake);
    }

    /// Gives slots to databases that have the extension, and logs for which databases there is no
    /// slot.
    fn place(&mut self) {
        let databases = &self.databases;
        let most = session::max_worker_processes();
        let waiting = self.segment.registry(|r| {
            let waiting = r.place(|oid| takes_workers(databases, oid));
            waiting.into_iter().map(|oid| (oid, r.lack(oid, most, false))).collect::<Vec<_>>()
        });
        self.logged_slots.retain(|oid| waiting.iter().any(|(waits, _)| waits == oid));
        for (oid, lack) in waiting {
            if let Some(lack) = lack.filter(|_| self.logged_slots.insert(oid)) {
                log_lack(&format!("no place for {}: {lack}", shown(&self.databases, oid)), &lack);
            }
        }
    }

    /// Starts looks for databases of which it is not known whether they have the extension.
    fn look(&mut self) {
        let databases = &self.databases;
        let now = clock::now();
        let (wanted, failed) = self.segment.registry(|r| {
            let may_enter = |oid: DatabaseOid| takes_connections(databases, oid);
            for _ in 0..r.free_looks(now, may_enter) {
                let Some(oid) = self.to_look_into.pop() else { break };
                r.look_into(oid);
            }
            r.unslotted.done |= u32::from(self.to_look_into.is_empty());
            (r.launch_looks(now, may_enter), r.failed_looks())
        });
        for oid in failed {
            if self.logged_looks.insert(oid) {
                error::log(
                    PgLogLevel::LOG,
                    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                    format!(
                        "obanrs could not find out whether {} has the extension",
                        shown(&self.databases, oid)
                    ),
                    "If it has, the next oban_join or oban_install there has its workers started.",
                );
            }
        }
        for oid in wanted {
            if !self.start(Job::Look, oid) {
                self.segment.registry(|r| r.look_postponed(oid, now));
            }
        }
    }

    /// Starts the workers that are due.
    fn launch(&mut self) {
        let (now, databases) = (clock::now(), &self.databases);
        let alive = |oid: DatabaseOid| takes_workers(databases, oid);
        for (kind, oid) in self.segment.registry(|r| r.launch(now, alive)) {
            if !self.start(Job::Worker(kind), oid) {
                let why = "no free worker slot: raise max_worker_processes and restart the server";
                self.segment.registry(|r| r.no_worker_slot(kind, oid, now, why));
            }
        }
    }

    /// Starts a process. False: there is no free slot of max_worker_processes.
    fn start(&mut self, job: Job, oid: DatabaseOid) -> bool {
        let name = job.name();
        let worker = WorkerSpec {
            name: &format!("obanrs {name} for database {oid}"),
            kind: &format!("obanrs {name}"),
            function: &format!("obanrs_{name}_main"),
            argument: oid.0,
        };
        let handle = bgworker::launch(&worker);
        let started = handle.is_some();
        if started {
            self.logged_workers.remove(&job);
        } else if self.logged_workers.insert(job) {
            let most = session::max_worker_processes();
            let lack = self.segment.registry(|r| r.workers_lacking(most));
            let what =
                format!("can't start a {name} for {}, no free worker slot", shown(&self.databases, oid));
            log_lack(&format!("{what}: {lack}"), &lack);
        }
        if let Some(handle) = handle {
            self.launched.insert((job, oid), handle);
        }
        started
    }
}

/// Whether workers may connect to a database, by the last reading of pg_database. They do not
/// connect to a template, because only its owner could copy it then.
fn takes_workers(databases: &HashMap<DatabaseOid, Database>, oid: DatabaseOid) -> bool {
    databases.get(&oid).is_some_and(|d| d.takes_connections && !d.is_template)
}

/// Whether a look may connect to a database, by the last reading of pg_database.
fn takes_connections(databases: &HashMap<DatabaseOid, Database>, oid: DatabaseOid) -> bool {
    databases.get(&oid).is_some_and(|d| d.takes_connections)
}

/// A database as the log shows it.
fn shown(databases: &HashMap<DatabaseOid, Database>, oid: DatabaseOid) -> String {
    match databases.get(&oid) {
        Some(database) => format!("database \"{}\"", database.name),
        None => format!("database {oid}"),
    }
}

/// Writes to the server's log what a database lacks.
fn log_lack(what: &str, lack: &Lack) {
    error::log(
        PgLogLevel::LOG,
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("obanrs: {what}"),
        lack.hint(),
    );
}
