//! The registry in shared memory: the databases' slots with their workers, holds, and the
//! coordinator.

use std::sync::atomic::Ordering;

use super::Segment;
use super::locks::Lock;
use super::segment::{MAX_HOLDS, layout};
use crate::config;
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::lifecycle::{Lack, Registry};
use crate::logic::times::WallTime;
use crate::pg::lwlock::Mode;
use crate::pg::{clock, latch, session};

/// The coordinator, as the view oban_workers shows it.
pub struct Coordinator {
    /// The process id; 0 when no coordinator runs.
    pub pid: i32,
    /// The wall time at which the last coordinator started; 0 for never.
    pub started_at: WallTime,
    /// How often a coordinator was started again since the start of the server.
    pub restarts: i32,
}

impl Segment {
    /// Runs `body` with the registry, under the lock Registry in exclusive mode.
    pub fn registry<R>(self, body: impl FnOnce(&mut Registry<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Registry.acquire(Mode::Exclusive);
        // SAFETY: areas and fields of the lock that is held exclusively until `body` has returned.
        let mut registry = unsafe {
            Registry {
                databases: self.area(l.databases, l.max_databases),
                holds: self.area(l.holds, MAX_HOLDS),
                unslotted: &mut (*self.root()).unslotted,
                last_generation: &mut (*self.root()).last_slot_generation,
            }
        };
        body(&mut registry)
    }

    /// Returns the coordinator. After its end the process id is 0, and the other fields are those
    /// of the last one.
    pub fn coordinator(self) -> Coordinator {
        let globals = self.globals();
        Coordinator {
            pid: globals.coordinator_pid.load(Ordering::Relaxed),
            started_at: WallTime(globals.coordinator_since.load(Ordering::Relaxed)),
            restarts: (globals.coordinator_starts.load(Ordering::Relaxed) - 1).max(0),
        }
    }

    /// Notes that this process is the coordinator now. The caller has registered the exit callback,
    /// which calls `coordinator_exited`, before. `now` is wall time.
    pub fn coordinator_started(self, pid: i32, procno: i32, now: WallTime) {
        let globals = self.globals();
        globals.coordinator_since.store(now.0, Ordering::Relaxed);
        if globals.coordinator_starts.fetch_add(1, Ordering::Relaxed) == 0 {
            // This is the first coordinator: the server has started, or a standby was promoted. On
            // a standby no session could put gossip.
            globals.knows_since.store(clock::now().0, Ordering::Relaxed);
        }
        globals.coordinator_pid.store(pid, Ordering::Relaxed);
        // Release, so that a process that reads this number also sees what was written above.
        globals.coordinator.store(procno, Ordering::Release);
    }

    /// Notes that the coordinator ends. Called by its exit callback.
    pub fn coordinator_exited(self) {
        self.globals().coordinator.store(-1, Ordering::Release);
        self.globals().coordinator_pid.store(0, Ordering::Relaxed);
    }

    /// Wakes the coordinator, which finds out by itself what is due. Callable after commit.
    pub fn wake_coordinator(self) {
        latch::wake(self.globals().coordinator.load(Ordering::Acquire));
    }

    /// Has the coordinator read pg_database again. Callable after commit.
    pub fn rescan(self) {
        self.globals().rescan.store(1, Ordering::Release);
        self.wake_coordinator();
    }

    /// Takes back the order to read pg_database again. Returns whether there was such an order.
    pub fn take_rescan(self) -> bool {
        self.globals().rescan.swap(0, Ordering::AcqRel) != 0
    }

    /// Wakes the keeper of a database, if there is one, to plan its elections anew. Callable after
    /// commit.
    pub fn wake_keeper(self, database: DatabaseOid) {
        latch::wake_if(self.registry(|r| r.prepare_wakeup(database)));
    }

    /// Wakes the keeper of a database. Without a keeper, has one started: the caller runs in the
    /// database, so the database has the extension. Callable after commit.
    pub fn ensure_keeper(self, database: DatabaseOid) {
        match self.registry(|r| (r.prepare_wakeup(database), r.is_backing_off(database))) {
            (Some(procno), _) => latch::wake(procno),
            // The keeper is started when its delay is over, not at each join.
            (None, true) => {}
            (None, false) => self.extension_changed(database, Some(true)),
        }
    }

    /// Notes that the extension is in the database now, or is not (`None`: the transaction could
    /// not find out). Starts workers, or has those that run find out. Callable after commit.
    pub fn extension_changed(self, database: DatabaseOid, found: Option<bool>) {
        latch::wake_if(self.registry(|r| r.extension_changed(database, found, clock::now())));
        // Reads pg_database as well, because the hook does not see every command by which a
        // database comes to take workers.
        self.rescan();
    }

    /// Gives a database a slot, if the database may have one and has none. A call came from within
    /// the database, so the database has the extension.
    pub fn called_in(self, database: DatabaseOid) {
        if self.registry(|r| r.could_have_slot(database)) {
            self.extension_changed(database, Some(true));
        }
    }

    /// What this process's database lacks to have workers; `None` when it lacks nothing. With
    /// `soon` also what the database will lack when the workers of all databases have started.
    pub fn lack(self, soon: bool) -> Option<Lack> {
        let max = session::max_worker_processes();
        self.registry(|r| r.lack(session::database(), max, soon))
    }

    /// Has the relay of a database find out which prefixes are installed, and the keeper which of
    /// them stage. If the keeper listens to the channels of prefixes, it finds out which there are as
    /// well. A worker that starts finds out anyway. Callable after commit.
    pub fn prefixes_changed(self, database: DatabaseOid) {
        let [relay, keeper] = self.registry(|r| r.prefixes_changed(database));
        latch::wake_if(relay);
        latch::wake_if(keeper);
        if config::signal_ingest() {
            self.wake_keeper(database);
        }
    }

    /// Has the keeper of a database look at its stagers again.
    pub fn staging_changed(self, database: DatabaseOid) {
        latch::wake_if(self.registry(|r| r.staging_changed(database)));
    }

    /// Has the keeper of a database, if there is one, read the rows of oban_peers again, of one
    /// schema or of all schemas. A keeper that starts reads them anyway. Callable after commit.
    pub fn rows_changed(self, database: DatabaseOid, schema: Option<SchemaOid>) {
        latch::wake_if(self.registry(|r| r.rows_changed(database, schema)));
    }
}
