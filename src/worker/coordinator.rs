//! The coordinator: one static worker that is connected to no database. It starts a keeper and a relay
//! for each database that has the extension (`logic::lifecycle` is its state machine), clears up after
//! databases that are gone, and lets entries of the gossip table expire.
//!
//! It sleeps until something is due or somebody sets its latch: a transaction that created, dropped
//! or changed a database or the extension, a worker that started or ended, an entry that expires
//! earlier than all before it. If it dies, the postmaster starts another a second later; workers run
//! on, and their slots tell the new one about them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::logic::lifecycle::{Kind, Registry};
use crate::pg::bgworker::{self, Handle, Worker};
use crate::pg::{catalog, clock, latch, session, time, xact};
use crate::shmem;

/// How long the postmaster waits before it starts a coordinator that ended.
const RESTART_SECONDS: i32 = 1;

pub fn register() {
    let worker = Worker {
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
    bgworker::take_signals();
    session::before_exit(exited); // before the state that it clears up
    let started = shmem::coordinator_started(latch::my_pid(), latch::my_procno(), time::now());
    if started.is_err() {
        return; // no segment: not this server's worker
    }
    bgworker::connect_to_none();
    bgworker::report_name(c"obanrs coordinator");
    let _ = shmem::registry(|r| r.adopt());
    shmem::rescan(shmem::RESCAN_ALL);

    let mut coordinator = Coordinator::default();
    loop {
        latch::reset();
        bgworker::reload_config();
        let due = coordinator.pass();
        latch::wait(due.map(|at| Duration::from_micros((at - time::now()).max(0) as u64)));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    shmem::coordinator_exited();
}

#[derive(Default)]
struct Coordinator {
    /// From the last look at pg_database.
    databases: HashSet<u32>,
    /// Those that were found to have no extension. A commit that creates it takes a slot by itself.
    absent: HashSet<u32>,
    /// Workers that this coordinator launched and that have not ended.
    launched: HashMap<(Kind, u32), Handle>,
    /// So that each trouble is logged once, not at each pass.
    told_of_slots: bool,
    told_of_workers: bool,
}

impl Coordinator {
    /// Does all that is due now; when the next is, if ever.
    fn pass(&mut self) -> Option<i64> {
        // Until there is nothing new: the scan may wait for a lock, and whoever asks for another one
        // meanwhile sets a latch that this wait resets.
        loop {
            match shmem::take_rescan() {
                shmem::RESCAN_NOTHING => break,
                what => self.scan(what),
            }
        }
        self.reap();
        self.launch();
        let next_launch = shmem::registry(|r| r.next_launch()).ok().flatten();
        next_launch.into_iter().chain(shmem::gossip::sweep().map(clock::to_wall)).min()
    }

    fn scan(&mut self, what: i32) {
        if what == shmem::RESCAN_ALL {
            self.absent.clear();
        }
        let found = xact::run(c"obanrs: looking for databases", catalog::connectable_databases);
        self.databases = found.into_iter().collect();
        self.absent.retain(|oid| self.databases.contains(oid));
    }

    /// Takes out workers that ended and databases that need none, and what was kept for them.
    fn reap(&mut self) {
        let now = time::now();
        self.launched.retain(|(kind, oid), handle| {
            let stopped = handle.has_stopped();
            if stopped {
                // Only of one that never claimed its slot: the others have told by themselves.
                let why = "the worker ended while it started";
                let _ = shmem::registry(|r| r.launch_failed(*kind, *oid, now, why));
            }
            !stopped
        });
        // First what was kept for them, and only what is older than the look that found them gone:
        // somebody may be creating the extension again, and join.
        let alive = |oid: u32| self.databases.contains(&oid);
        for (oid, before) in shmem::registry(|r| r.forgettable(alive)).unwrap_or_default() {
            let _ = shmem::peers(|p| p.forget_database(oid, before));
            shmem::gossip::forget_database(oid, before);
        }
        let (freed, leaving) = shmem::registry(|r| r.reap(alive)).unwrap_or_default();
        freed.iter().for_each(|f| shmem::rings::close(f.birth));
        self.absent.extend(freed.into_iter().map(|f| f.oid).filter(|oid| self.databases.contains(oid)));
        leaving.into_iter().for_each(latch::wake);
    }

    /// Starts the workers that are wanted.
    fn launch(&mut self) {
        let wanted: Vec<u32> = self.databases.difference(&self.absent).copied().collect();
        let add = |r: &mut Registry<'_>| wanted.iter().all(|oid| r.add(*oid)) || !r.is_full();
        let placed = shmem::registry(add).unwrap_or(true);
        if !placed && !self.told_of_slots {
            error::log(
                PgLogLevel::LOG,
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "obanrs has more databases to look after than slots",
                "Raise obanrs.max_databases and restart the server.",
            );
        }
        self.told_of_slots = !placed;

        let now = time::now();
        let alive = |oid: u32| self.databases.contains(&oid);
        for (kind, oid) in shmem::registry(|r| r.launch(now, alive)).unwrap_or_default() {
            let name = kind.name();
            let worker = Worker {
                name: &format!("obanrs {name} for database {oid}"),
                kind: &format!("obanrs {name}"),
                function: &format!("obanrs_{name}_main"),
                argument: oid,
            };
            match bgworker::launch(&worker) {
                Some(handle) => {
                    self.launched.insert((kind, oid), handle);
                    self.told_of_workers = false;
                }
                None => {
                    let why = "no free worker slot: raise max_worker_processes and restart the server";
                    let _ = shmem::registry(|r| r.launch_failed(kind, oid, now, why));
                    if !self.told_of_workers {
                        error::log(
                            PgLogLevel::LOG,
                            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                            format!("obanrs can't start a {name}: no free worker slot"),
                            "Raise max_worker_processes and restart the server.",
                        );
                    }
                    self.told_of_workers = true;
                }
            }
        }
    }
}
