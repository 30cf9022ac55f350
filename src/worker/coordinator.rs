//! The coordinator: one static worker that is connected to no database. It starts a keeper and a relay
//! for each database that has the extension (`logic::lifecycle` is its state machine), clears up after
//! databases that are gone, and lets entries of the gossip table expire.
//!
//! Which databases have the extension it finds out once, after the server's start or its promotion, by a look into
//! each of them (`look`). After that the transactions that change a database tell of it.
//!
//! It sleeps until something is due or somebody sets its latch: a transaction that created, dropped
//! or changed a database or the extension, a worker that started or ended, an entry that expires
//! earlier than all before it. If it dies, the postmaster starts another a second later; workers run
//! on, and their slots tell the new one about them.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::logic::lifecycle::{Kind, Lack};
use crate::pg::bgworker::{self, Restarted, WorkerHandle, WorkerSpec};
use crate::pg::catalog::{self, Database};
use crate::pg::latch::Event;
use crate::pg::{clock, latch, session, time, xact};
use crate::shmem;

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
    session::before_exit(exited); // before the state that it clears up
    let started = shmem::coordinator_started(latch::my_pid(), latch::my_procno(), time::now());
    if started.is_err() {
        return; // no segment: not this server's worker
    }
    bgworker::connect_to_none();
    bgworker::report_name(c"obanrs coordinator");
    latch::wait_as(Event::Coordinator);
    if shmem::coordinator().is_ok_and(|c| c.restarts > 0) {
        log!("obanrs: the coordinator is back after a failure");
    }
    let _ = shmem::registry(|r| r.adopt());
    shmem::lift_floor(time::now()); // after a promotion, whose primary has given positions meanwhile
    shmem::rescan();

    let mut coordinator = Coordinator::default();
    loop {
        latch::reset();
        bgworker::reload_config();
        let due = coordinator.pass();
        latch::wait_until(due);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    shmem::coordinator_exited();
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

#[derive(Default)]
struct Coordinator {
    /// From the last look at pg_database, by their oids.
    databases: HashMap<u32, Database>,
    /// The count of births before that look: what is younger it may have missed.
    last_generation: u64,
    /// Those of the server's start that nobody has begun to look into.
    to_look_into: Vec<u32>,
    /// Workers that this coordinator launched and that have not ended.
    launched: HashMap<(Job, u32), WorkerHandle>,
    /// Databases of which it was logged that there is no slot for them, and that nobody could look into them, so
    /// that it is logged once, not at each pass.
    logged_slots: HashSet<u32>,
    logged_looks: HashSet<u32>,
    /// Of which it was logged that there is no free worker slot.
    logged_workers: HashSet<Job>,
}

impl Coordinator {
    /// Does all that is due now; when the next is, if ever.
    fn pass(&mut self) -> Option<i64> {
        // Until there is nothing new: the scan may wait for a lock, and whoever asks for another one
        // meanwhile sets a latch that this wait resets.
        while shmem::take_rescan() {
            self.scan();
        }
        self.reap();
        self.place();
        self.look();
        self.launch();
        let now = clock::now();
        let next = shmem::registry(|r| {
            let next_look = r.next_look(now, |oid| takes_connections(&self.databases, oid));
            r.next_launch().into_iter().chain(next_look).min()
        });
        next.ok().flatten().into_iter().chain(shmem::gossip::sweep()).min()
    }

    fn scan(&mut self) {
        let (last_generation, done) =
            shmem::registry(|r| (*r.last_generation, r.looks.done != 0)).unwrap_or((0, true));
        let (first, began) = (self.databases.is_empty(), clock::now());
        let known = shmem::leaderships_view(|v| v.databases()).unwrap_or_default();
        let found = xact::run(c"obanrs: looking for databases", catalog::databases);
        (self.last_generation, self.databases) =
            (last_generation, found.into_iter().map(|d| (d.oid, d)).collect());
        self.logged_slots.retain(|oid| self.databases.contains_key(oid));
        self.logged_looks.retain(|oid| self.databases.contains_key(oid));
        let exists = |oid: u32| self.databases.contains_key(&oid);
        for oid in known.into_iter().filter(|oid| !exists(*oid)) {
            let _ = shmem::peers(|p| p.forget_database(oid, began));
        }
        shmem::gossip::forget_databases(exists, began);
        if first && !done {
            // What takes no connections is looked into when it does. Nobody ever creates an extension in template0.
            let wanted = self.databases.values().filter(|d| !d.is_invalid);
            let wanted = wanted.filter(|d| d.takes_connections || d.oid != catalog::TEMPLATE0);
            let (now, later): (Vec<&Database>, Vec<&Database>) = wanted.partition(|d| d.takes_connections);
            let mut now: Vec<_> = now.iter().map(|d| (!d.is_template, Reverse(d.oid))).collect();
            now.sort_unstable(); // the last is the first to be looked into: templates wait
            self.to_look_into = now.into_iter().map(|(_, Reverse(oid))| oid).collect();
            let _ = shmem::registry(|r| later.iter().for_each(|d| _ = r.look_into(d.oid)));
        }
    }

    /// Takes out workers that ended and databases that need none, and what was kept for them.
    fn reap(&mut self) {
        let now = clock::now();
        self.launched.retain(|(job, oid), handle| {
            let stopped = handle.has_stopped();
            if stopped {
                // Only of one that never claimed its slot: the others have told by themselves.
                let why = "the worker ended while it started";
                let _ = shmem::registry(|r| match job {
                    Job::Worker(kind) => r.launch_failed(*kind, *oid, now, why),
                    Job::Look => r.look_lost(*oid, now),
                });
            }
            !stopped
        });
        // First what was kept for them, and only what is older than the look that found them gone:
        // somebody may be creating the extension again, and join.
        let (last_generation, databases) = (self.last_generation, &self.databases);
        let alive = |oid: u32| takes_workers(databases, oid);
        for (oid, before) in shmem::registry(|r| r.forgettable(last_generation, alive)).unwrap_or_default() {
            let _ = shmem::peers(|p| p.forget_database(oid, before));
            shmem::gossip::forget_database(oid, before);
        }
        let exists = |oid: u32| databases.contains_key(&oid);
        let (freed, leaving) = shmem::registry(|r| {
            r.forget_unslotted(last_generation, exists);
            r.reap(last_generation, alive, exists)
        })
        .unwrap_or_default();
        freed.iter().for_each(|f| shmem::rings::close(f.generation));
        leaving.into_iter().for_each(latch::wake);
    }

    /// Gives slots to databases that have the extension, and says for which there is none.
    fn place(&mut self) {
        let databases = &self.databases;
        let most = session::max_worker_processes();
        let waiting = shmem::registry(|r| {
            let waiting = r.place(|oid| takes_workers(databases, oid));
            waiting.into_iter().map(|oid| (oid, r.lack(oid, most, false))).collect::<Vec<_>>()
        });
        let waiting = waiting.unwrap_or_default();
        self.logged_slots.retain(|oid| waiting.iter().any(|(waits, _)| waits == oid));
        for (oid, lack) in waiting {
            if let Some(lack) = lack.filter(|_| self.logged_slots.insert(oid)) {
                log_lack(&format!("no place for {}: {lack}", shown(&self.databases, oid)), &lack);
            }
        }
    }

    /// Has those databases looked into of which nobody knows.
    fn look(&mut self) {
        let databases = &self.databases;
        let now = clock::now();
        let looks = shmem::registry(|r| {
            let may_enter = |oid: u32| takes_connections(databases, oid);
            for _ in 0..r.free_looks(now, may_enter) {
                let Some(oid) = self.to_look_into.pop() else { break };
                r.look_into(oid);
            }
            r.looks.done |= u32::from(self.to_look_into.is_empty());
            (r.launch_looks(now, may_enter), r.failed_looks())
        });
        let (wanted, failed) = looks.unwrap_or_default();
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
                let _ = shmem::registry(|r| r.look_postponed(oid, now));
            }
        }
    }

    /// Starts the workers that are wanted.
    fn launch(&mut self) {
        let (now, databases) = (clock::now(), &self.databases);
        let alive = |oid: u32| takes_workers(databases, oid);
        for (kind, oid) in shmem::registry(|r| r.launch(now, alive)).unwrap_or_default() {
            if !self.start(Job::Worker(kind), oid) {
                let why = "no free worker slot: raise max_worker_processes and restart the server";
                let _ = shmem::registry(|r| r.no_worker_slot(kind, oid, now, why));
            }
        }
    }

    /// Starts a process; false when there is no free slot of max_worker_processes.
    fn start(&mut self, job: Job, oid: u32) -> bool {
        let name = job.name();
        let worker = WorkerSpec {
            name: &format!("obanrs {name} for database {oid}"),
            kind: &format!("obanrs {name}"),
            function: &format!("obanrs_{name}_main"),
            argument: oid,
        };
        let handle = bgworker::launch(&worker);
        let started = handle.is_some();
        if started {
            self.logged_workers.remove(&job);
        } else if self.logged_workers.insert(job) {
            let most = session::max_worker_processes();
            let lack =
                shmem::registry(|r| r.workers_lacking(most)).unwrap_or(Lack::Workers { most, needed: 0 });
            let what =
                format!("can't start a {name} for {}, no free worker slot", shown(&self.databases, oid));
            log_lack(&format!("{what}: {lack}"), &lack);
        }
        self.launched.extend(handle.map(|handle| ((job, oid), handle)));
        started
    }
}

/// Whether workers may connect to a database, as the last look at pg_database has it: not to a template, else
/// nobody but its owner could copy it.
fn takes_workers(databases: &HashMap<u32, Database>, oid: u32) -> bool {
    databases.get(&oid).is_some_and(|d| d.takes_connections && !d.is_template)
}

/// Whether it may be looked into.
fn takes_connections(databases: &HashMap<u32, Database>, oid: u32) -> bool {
    databases.get(&oid).is_some_and(|d| d.takes_connections)
}

/// A database as the log shows it.
fn shown(databases: &HashMap<u32, Database>, oid: u32) -> String {
    match databases.get(&oid) {
        Some(database) => format!("database \"{}\"", database.name),
        None => format!("database {oid}"),
    }
}

/// Says in the server's log what a database lacks.
fn log_lack(what: &str, lack: &Lack) {
    error::log(
        PgLogLevel::LOG,
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("obanrs: {what}"),
        lack.hint(),
    );
}
