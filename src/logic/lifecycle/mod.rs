//! The states of a database's workers, as the registry in shared memory keeps them. For the keeper:
//!
//! ```text
//!              (1)               (2)                (3)
//!   (none) ────────▶ Waiting ────────▶ Starting ────────▶ Running
//!     ▲               ▲  ▲              │ ▲ │ │            │ │ │
//!     │               │  └───── (4) ────┴─┼─┼─┼────────────┘ │ │
//!     │               │                   │ └─┼──── (5) ─────┴─┼───▶ Backoff
//!     │               │                   └───┼──── (6) ───────┼────────┘
//!     │               └─ (8) ── Absent ◀──────┴──── (7) ───────┘
//!     └────────── (9) ─────────────┘
//! ```
//!
//! * (1) A backend calls `extension_changed` after its transaction has created the extension, or
//!   when a call comes from within the database. The coordinator calls `place` for databases that
//!   waited for a slot (`looks`).
//! * (2) The coordinator calls `launch`.
//! * (3) The keeper calls `extension_looked_up` once it is connected and has found the extension.
//!   The relay calls `relay_connected`.
//! * (4) The worker had to go. `claim` refuses a worker that is launched, or the worker calls
//!   `exited` after an order to leave. A coordinator that was restarted calls `adopt` for workers
//!   that have not claimed their slot.
//! * (5) The coordinator calls `launch_failed` or `no_worker_slot` for a worker that did not come
//!   up. A worker that has claimed its slot and ends for any other reason than an order calls
//!   `exited`.
//! * (6) The coordinator calls `launch` after the delay.
//! * (7) The keeper calls `extension_looked_up` when there is no extension. A backend calls
//!   `extension_changed` after its transaction has dropped the extension. If there is no keeper,
//!   that call leads to Absent from Waiting and Backoff, too.
//! * (8) A backend calls `extension_changed`, because the extension is there again or may be, while
//!   there is no keeper. That call leads to Waiting from Backoff, too. The keeper calls `exited`
//!   after a backend has told it to look again (`look_for_extension`).
//! * (9) The coordinator calls `reap` once both workers have gone. A database that was dropped, or
//!   takes no workers any more, leaves from any state.
//!
//! The relay has the same states but Absent. The coordinator launches a relay where a keeper has
//! found the extension, and the relay goes when the keeper finds that the extension is gone. The
//! failure of one worker does not concern the other.
//!
//! A database gets a slot when the registry is told that the database has the extension. CREATE
//! EXTENSION tells that when it ends, and so does a call from within the database, a look at the
//! server's start, and the copy of a database that has the extension (`looks`). No keeper and no
//! relay enters any other database.
//!
//! A *hold* keeps a database without workers while a command needs the database alone: DROP,
//! RENAME, SET TABLESPACE, or CREATE with the database as the template. A backend sets the hold
//! before it asks the workers to go. A worker looks for holds in the same critical section in which
//! it claims its slot. So either the holder sees the worker, or the worker sees the hold. A hold
//! ends with its holder's transaction, whichever way that ends (`backend::xact_end`).
//!
//! A database that became a template takes no workers any more. Its workers are told to leave. That
//! does not count as a failure.

mod looks;

use super::backoff::{HEALTHY, RESTART, RESTART_RELAY};
use super::ids::{DatabaseOid, Process, SchemaOid};
use super::text::Text;
use super::times::{ClockTime, WallTime};
pub use looks::UnslottedDatabases;

/// The keeper or relay is to be launched as soon as nothing holds the database. A zeroed slot is in
/// this state.
pub const WAITING: u32 = 0;
/// The worker was launched, or has claimed its slot and is connecting.
pub const STARTING: u32 = 1;
/// The worker is connected. A keeper has found the extension.
pub const RUNNING: u32 = 2;
/// The keeper has found no extension, or a backend has told so. Both workers go, and then the slot
/// is freed.
pub const ABSENT: u32 = 3;
/// The worker ended or did not come up. It is launched again at `retry_at`.
pub const BACKOFF: u32 = 4;

/// Returns how the view oban_workers shows a state.
pub fn state_name(state: u32) -> &'static str {
    match state {
        WAITING => "waiting",
        STARTING => "starting",
        RUNNING => "running",
        ABSENT => "stopping",
        _ => "backoff",
    }
}

/// The workers that each database with the extension has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Holds elections, which touch tables, and finds out whether the extension is there.
    Keeper,
    /// Sends the messages of the ring to sessions that LISTEN; broadcasts and ingests gossip.
    Relay,
}

impl Kind {
    /// All kinds, in the order of `DatabaseSlot::workers`.
    pub const ALL: [Kind; 2] = [Kind::Keeper, Kind::Relay];

    /// Returns the name of the kind, as the log and the view oban_workers show it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Keeper => "keeper",
            Kind::Relay => "relay",
        }
    }
}

/// One worker of a database. The lock Registry guards the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerSlot {
    /// The state of the worker; 0 is `WAITING`.
    pub state: u32,
    /// The worker's process, from its claim until it has left the server's list of processes; else
    /// `Process::NONE`.
    pub process: Process,
    /// How often the worker ended without an order to leave, in this generation of the database's
    /// slot.
    pub restarts: u32,
    /// The wall time of the last claim, in microseconds; 0 before the first. Views show it.
    pub started_at: WallTime,
    /// The clock reading at the last claim, in microseconds.
    began: ClockTime,
    /// The number of failures in a row. A worker that ran for `HEALTHY` begins anew from 0.
    failures: u32,
    /// 1: the last launch found no free slot of max_worker_processes. 0: the last launch found one,
    /// or there was no launch.
    no_slot: u32,
    /// 1: the worker has failed since it last logged that it is back. 0: it has not.
    failed: u32,
    /// The wakeup counter: the number of reasons to look again. A latch alone would lose wakeups,
    /// because a worker that waits for a lock in the middle of a pass resets its latch there. The
    /// number wraps around.
    wakeups: u32,
    /// The clock reading at which a worker in Backoff is due, in microseconds.
    retry_at: ClockTime,
    /// What went wrong last; empty for nothing. Views show it.
    pub last_error: Text<255>,
}

impl WorkerSlot {
    /// Puts the worker into Backoff, with a delay that grows with the failures in a row.
    fn back_off(&mut self, kind: Kind, now: ClockTime) {
        let backoff = if kind == Kind::Relay { RESTART_RELAY } else { RESTART };
        self.state = BACKOFF;
        self.retry_at = now + backoff.delay(self.failures);
        self.failed = 1;
        self.failures = self.failures.saturating_add(1);
    }

    /// Counts a reason to look again. Returns the process number of the worker, which the caller
    /// wakes after the lock is released. `None`: there is no process, and a new one looks anyway.
    fn prepare_wakeup(&mut self) -> Option<i32> {
        (self.process.pid != 0).then(|| {
            self.wakeups = self.wakeups.wrapping_add(1);
            self.process.procno
        })
    }

    /// Returns whether the worker has no process and is to be launched at `now`, as far as its own
    /// state says.
    fn is_due(&self, now: ClockTime) -> bool {
        self.process.pid == 0 && (self.state == WAITING || (self.state == BACKOFF && self.retry_at <= now))
    }

    /// Returns whether the worker waits for a free slot of max_worker_processes.
    pub fn lacks_slot(&self) -> bool {
        self.state == BACKOFF && self.no_slot != 0
    }

    /// Returns whether the worker has a process, or one that was launched.
    fn is_up(&self) -> bool {
        self.process.pid != 0 || self.state == STARTING
    }
}

/// The slot of a database that has the extension, as far as the registry was told. `oid` 0 is a
/// free slot. The lock Registry guards the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DatabaseSlot {
    /// The oid of the database; 0 in a free slot.
    pub oid: DatabaseOid,
    /// 1: the extension was created or dropped here, and the keeper has to look whether it is
    /// there. 0: the keeper need not look.
    look_for_extension: u32,
    /// 1: the database takes no workers any more, because it was dropped or became a template. Its
    /// workers have to leave. 0: the database takes workers.
    leave: u32,
    /// 1: the extension was here in this generation of the slot: a keeper has found it, or a
    /// transaction has dropped it. 0: neither is known.
    pub known: u32,
    /// The generation of the slot: it tells this use of the slot from all others. 0 in a free slot.
    pub generation: u64,
    /// The clock reading at which the keeper that found no extension began to look, in
    /// microseconds. If there was no keeper, the clock reading at which a transaction had dropped
    /// the extension.
    absent_since: ClockTime,
    /// Which prefixes have changed rows of `oban_peers`, for the keeper to read: 0 for none,
    /// `CHANGED_ONE` for `changed_schema`, `CHANGED_ALL` for all.
    changed_rows: u32,
    /// The oid of the one schema with changed rows. Means nothing unless `changed_rows` is
    /// `CHANGED_ONE`.
    changed_schema: SchemaOid,
    /// 1: the keeper may have to wait for a fence, so the end of a fence wakes it. 0: no fence
    /// concerns it.
    expects_fences: u32,
    /// 1: the relay has to look which prefixes are installed. 0: the relay need not look.
    prefixes: u32,
    /// 1: the keeper has to look which prefixes stage. 0: the keeper need not look.
    staging: u32,
    /// The workers, by `Kind`.
    workers: [WorkerSlot; 2],
}

const CHANGED_ONE: u32 = 1;
const CHANGED_ALL: u32 = 2;

impl DatabaseSlot {
    /// Returns which prefixes have changed rows, and forgets them.
    fn take_changed_prefixes(&mut self) -> ChangedPrefixes {
        match std::mem::take(&mut self.changed_rows) {
            0 => ChangedPrefixes::Unchanged,
            CHANGED_ONE => ChangedPrefixes::Of(self.changed_schema),
            _ => ChangedPrefixes::All,
        }
    }

    /// Returns the worker of a kind.
    pub fn worker(&self, kind: Kind) -> &WorkerSlot {
        &self.workers[kind as usize]
    }

    /// Returns whether a worker of the database waits for a free slot of max_worker_processes.
    fn lacks_worker_slots(&self) -> bool {
        self.workers.iter().any(WorkerSlot::lacks_slot)
    }

    /// Returns the keeper, to change it.
    fn keeper(&mut self) -> &mut WorkerSlot {
        &mut self.workers[Kind::Keeper as usize]
    }

    /// Returns whether the database is to have no worker of this kind.
    fn is_unwanted(&self, kind: Kind) -> bool {
        let absent = self.worker(Kind::Keeper).state == ABSENT;
        self.leave != 0 || (kind == Kind::Relay && (self.known == 0 || absent))
    }
}

/// A hold: a database that is to have no workers, and the backend that needs the database alone.
/// `database` 0 is a free slot. The lock Registry guards the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    /// The oid of the database; 0 in a free slot.
    pub database: DatabaseOid,
    /// The holder, which a worker that has gone wakes.
    pub holder: Process,
}

/// The registry: databases, their workers, and holds. The lock Registry is held exclusively as long
/// as this struct exists.
pub struct Registry<'a> {
    /// The slots for databases.
    pub databases: &'a mut [DatabaseSlot],
    /// The slots for holds.
    pub holds: &'a mut [Hold],
    /// Databases without a slot.
    pub unslotted: &'a mut UnslottedDatabases,
    /// The last generation that a slot or an entry of `unslotted` was given; 0 before the first.
    pub last_generation: &'a mut u64,
}

/// What a worker reads before each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// The worker has to leave. A command needs the database alone, the database takes no workers
    /// any more, or it takes none of this kind.
    pub leave: bool,
    /// The keeper has to look whether the extension is there.
    pub look_for_extension: bool,
    /// The wakeup counter. A worker reads it again before it waits: if the number has changed, the
    /// worker has to look again instead.
    pub wakeups: u32,
    /// Which prefixes have changed rows of `oban_peers`, for the keeper.
    pub changed_rows: ChangedPrefixes,
    /// The relay has to look which prefixes are installed.
    pub prefixes: bool,
}

/// The limit that keeps a database from having its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// All `most` slots of obanrs.max_databases are taken. `workers` is how many worker processes
    /// one more database would need, if that is more than the server allows; `None` if it is not.
    Slot { most: usize, workers: Option<usize> },
    /// The server allows `most` worker processes, and all databases with a slot need `needed`. The
    /// lack may last for a moment only, because parallel queries and other extensions share the
    /// processes.
    Workers { most: usize, needed: usize },
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lack::Slot { most: 1, .. } => {
                write!(f, "the one place of obanrs.max_databases is taken by another database")
            }
            Lack::Slot { most, .. } => {
                write!(f, "all {most} places of obanrs.max_databases are taken by other databases")
            }
            Lack::Workers { most, needed } => write!(
                f,
                "max_worker_processes is {most}, which others share, and obanrs needs {needed} (one, and two \
                 for each database with the extension)"
            ),
        }
    }
}

impl Lack {
    /// Returns the settings to raise, as a hint for the user.
    pub fn hint(&self) -> String {
        match self {
            Lack::Slot { workers: Some(workers), .. } => format!(
                "Raise obanrs.max_databases, and max_worker_processes to {workers} or more, and restart the server."
            ),
            Lack::Slot { .. } => "Raise obanrs.max_databases and restart the server.".into(),
            Lack::Workers { .. } => "Raise max_worker_processes and restart the server.".into(),
        }
    }
}

/// Which prefixes have changed rows of `oban_peers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangedPrefixes {
    #[default]
    /// No prefix has.
    Unchanged,
    /// The prefix with this schema oid has.
    Of(SchemaOid),
    /// Any prefix may have.
    All,
}

/// Why a worker that has just started must go again, without a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The database was dropped meanwhile, takes no workers any more, or takes none of this kind.
    Unwanted,
    /// A command holds the database.
    Held,
    /// The slot has another worker of this kind.
    Second,
}

/// A slot that was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedSlot {
    /// The oid of the database that had the slot.
    pub oid: DatabaseOid,
    /// The number of the slot.
    pub slot: usize,
    /// The generation that has ended.
    pub generation: u64,
}

impl Registry<'_> {
    /// Takes a slot for a database that has the extension. Returns whether the database has a slot
    /// now; false if no slot is free.
    pub fn add(&mut self, oid: DatabaseOid) -> bool {
        if self.find(oid).is_some() {
            return true;
        }
        match self.databases.iter_mut().find(|d| d.oid.is_none()) {
            Some(slot) => {
                *self.last_generation += 1;
                *slot = DatabaseSlot { oid, generation: *self.last_generation, ..DatabaseSlot::default() };
                self.unslotted.take_out(oid);
                true
            }
            None => false,
        }
    }

    /// Returns the number and the generation of a database's slot; `None` without a slot.
    pub fn slot(&self, oid: DatabaseOid) -> Option<(usize, u64)> {
        let slot = self.databases.iter().position(|d| !oid.is_none() && d.oid == oid)?;
        Some((slot, self.databases[slot].generation))
    }

    /// Returns the workers that are to be launched at `now`, in databases that are `alive`. They
    /// are in the state Starting from here on.
    pub fn launch(
        &mut self,
        now: ClockTime,
        alive: impl Fn(DatabaseOid) -> bool,
    ) -> Vec<(Kind, DatabaseOid)> {
        let mut launched = Vec::new();
        let holds = &*self.holds;
        for d in self.databases.iter_mut().filter(|d| !d.oid.is_none() && alive(d.oid)) {
            if holds.iter().any(|h| h.database == d.oid) {
                continue;
            }
            if d.keeper().is_due(now) {
                (d.keeper().state, d.leave) = (STARTING, 0);
                launched.push((Kind::Keeper, d.oid));
            }
            if d.worker(Kind::Relay).is_due(now) && !d.is_unwanted(Kind::Relay) {
                d.workers[Kind::Relay as usize].state = STARTING;
                launched.push((Kind::Relay, d.oid));
            }
        }
        launched
    }

    /// Returns the clock reading at which the next worker in Backoff is due; `None` if no worker
    /// waits so.
    pub fn next_launch(&self) -> Option<ClockTime> {
        let open = self.databases.iter().filter(|d| !d.oid.is_none() && !self.is_held(d.oid));
        open.flat_map(|d| {
            let waiting = move |kind: &Kind| {
                let worker = d.worker(*kind);
                let wanted = *kind == Kind::Keeper || !d.is_unwanted(Kind::Relay);
                worker.state == BACKOFF && worker.process.pid == 0 && wanted
            };
            Kind::ALL.into_iter().filter(waiting).map(|kind| d.worker(kind).retry_at)
        })
        .min()
    }

    /// Notes that a worker that was launched ended before its claim.
    pub fn launch_failed(&mut self, kind: Kind, oid: DatabaseOid, now: ClockTime, why: &str) {
        self.not_launched(kind, oid, now, why, false);
    }

    /// Notes that a worker was not launched, because no slot of max_worker_processes was free.
    pub fn no_worker_slot(&mut self, kind: Kind, oid: DatabaseOid, now: ClockTime, why: &str) {
        self.not_launched(kind, oid, now, why, true);
    }

    /// Puts a worker that was launched and has not claimed its slot into Backoff.
    fn not_launched(&mut self, kind: Kind, oid: DatabaseOid, now: ClockTime, why: &str, no_slot: bool) {
        let worker = self.find(oid).map(|d| &mut d.workers[kind as usize]);
        if let Some(worker) = worker.filter(|w| w.state == STARTING && w.process.pid == 0) {
            worker.back_off(kind, now);
            worker.no_slot = u32::from(no_slot);
            worker.last_error = Text::truncated(why);
        }
    }

    /// Claims the slot for a worker. This is the worker's first act, before it connects. `now` is
    /// the clock reading, `wall` the wall time. `Err`: the worker has to go.
    pub fn claim(
        &mut self,
        kind: Kind,
        oid: DatabaseOid,
        process: Process,
        now: ClockTime,
        wall: WallTime,
    ) -> Result<(), Refused> {
        let held = self.is_held(oid);
        let d = self.find(oid).ok_or(Refused::Unwanted)?;
        let unwanted = d.is_unwanted(kind);
        let worker = &mut d.workers[kind as usize];
        if held || unwanted {
            // The worker is launched anew when the hold or the order ends. To have to go is no
            // failure.
            if worker.process.pid == 0 {
                worker.state = WAITING;
            }
            return Err(if held { Refused::Held } else { Refused::Unwanted });
        }
        if worker.process.pid != 0 {
            return Err(Refused::Second);
        }
        (worker.process, worker.state) = (process, STARTING);
        (worker.began, worker.started_at) = (now, wall);
        worker.no_slot = 0;
        Ok(())
    }

    /// Returns whether a connected worker is back after a failure, and forgets the failure: the
    /// worker has failed since the last call.
    pub fn take_recovery(&mut self, kind: Kind, oid: DatabaseOid, pid: i32) -> bool {
        let worker = self.find(oid).map(|d| &mut d.workers[kind as usize]);
        worker.filter(|w| w.process.pid == pid).is_some_and(|w| std::mem::take(&mut w.failed) != 0)
    }

    /// Notes whether the keeper has found the extension. The keeper began to look at `since`.
    /// Returns the process number of a relay that has to go, which the caller wakes; `None` if no
    /// relay has to. The caller wakes the coordinator too, because a relay may be wanted.
    pub fn extension_looked_up(
        &mut self,
        oid: DatabaseOid,
        pid: i32,
        extension: bool,
        since: ClockTime,
    ) -> Option<i32> {
        let d = self.find(oid).filter(|d| d.worker(Kind::Keeper).process.pid == pid)?;
        if extension {
            (d.keeper().state, d.known) = (RUNNING, 1);
            return None;
        }
        (d.keeper().state, d.absent_since) = (ABSENT, since);
        d.workers[Kind::Relay as usize].prepare_wakeup()
    }

    /// Notes that the relay with the process id `pid` is connected.
    pub fn relay_connected(&mut self, oid: DatabaseOid, pid: i32) {
        let worker = self.find(oid).map(|d| &mut d.workers[Kind::Relay as usize]);
        if let Some(worker) = worker.filter(|w| w.process.pid == pid) {
            worker.state = RUNNING;
        }
    }

    /// Returns the process numbers of the backends that hold a database. A worker that has gone
    /// wakes them.
    pub fn holders(&self, oid: DatabaseOid) -> Vec<i32> {
        self.holds.iter().filter(|h| h.database == oid && !oid.is_none()).map(|h| h.holder.procno).collect()
    }

    /// Notes that a worker has left the server's list of processes. This is the worker's last act.
    /// Returns the process numbers to wake: the holders, and the keeper if a relay failed.
    pub fn exited(&mut self, kind: Kind, oid: DatabaseOid, pid: i32, now: ClockTime) -> Vec<i32> {
        let mut holders = self.holders(oid);
        let held = !holders.is_empty();
        let Some(d) = self.find(oid).filter(|d| d.worker(kind).process.pid == pid) else { return holders };
        let told = d.is_unwanted(kind) || (kind == Kind::Keeper && d.look_for_extension != 0);
        let worker = &mut d.workers[kind as usize];
        worker.process = Process::NONE;
        if worker.state == ABSENT && d.look_for_extension == 0 {
            return holders;
        }
        if held || told {
            worker.state = WAITING;
            if kind == Kind::Keeper {
                d.look_for_extension = 0;
            }
            if d.workers.iter().all(|w| w.process.pid == 0) {
                d.leave = 0;
            }
            return holders;
        }
        if now - worker.began >= HEALTHY {
            worker.failures = 0;
        }
        worker.restarts += 1;
        worker.last_error = Text::truncated("the worker ended: the server's log says why");
        worker.back_off(kind, now);
        // Without a relay the keeper has to send the messages that become stranded.
        holders.extend(if kind == Kind::Relay { d.keeper().prepare_wakeup() } else { None });
        holders
    }

    /// Notes that a transaction that created or dropped the extension in this database has ended.
    /// `found` says whether the extension is there now; `None` if nothing could tell. A keeper that
    /// runs looks for itself. Otherwise the coordinator starts one, or gives up what was kept for
    /// the database, so the caller wakes the coordinator. Returns the process number of a worker to
    /// wake, if there is one.
    pub fn extension_changed(
        &mut self,
        oid: DatabaseOid,
        found: Option<bool>,
        now: ClockTime,
    ) -> Option<i32> {
        let is_listed = self.unslotted.find(oid).is_some_and(|o| o.state == looks::HAS);
        let Some(d) = self.find(oid) else {
            match found {
                // A database that is listed takes no workers, as far as the coordinator knows.
                Some(true) if is_listed || self.add(oid) => {}
                Some(true) => _ = self.has_extension(oid),
                Some(false) => self.unslotted.take_out(oid),
                None => _ = self.look_into(oid),
            }
            return None;
        };
        if d.keeper().process.pid != 0 {
            d.look_for_extension = 1;
            return d.keeper().prepare_wakeup();
        }
        if d.keeper().state == STARTING {
            return None; // the keeper looks once it has come up
        }
        if found == Some(false) {
            // Treated as if a keeper had found the extension and lost it: members may have joined.
            (d.keeper().state, d.known, d.absent_since) = (ABSENT, 1, now);
            return d.workers[Kind::Relay as usize].prepare_wakeup();
        }
        d.keeper().state = WAITING;
        None
    }

    /// Counts a reason for the keeper to plan anew. Returns the process number of the keeper to
    /// wake; `None` if there is no keeper.
    pub fn prepare_wakeup(&mut self, oid: DatabaseOid) -> Option<i32> {
        self.find(oid)?.keeper().prepare_wakeup()
    }

    /// Notes that rows of `oban_peers` have changed, of one schema or of many (`None`). Returns the
    /// process number of the keeper to wake; `None` if there is no keeper.
    pub fn rows_changed(&mut self, oid: DatabaseOid, schema: Option<SchemaOid>) -> Option<i32> {
        let d = self.find(oid)?;
        (d.changed_rows, d.changed_schema) = match schema {
            Some(schema)
                if d.changed_rows == 0 || (d.changed_rows == CHANGED_ONE && d.changed_schema == schema) =>
            {
                (CHANGED_ONE, schema)
            }
            _ => (CHANGED_ALL, SchemaOid::NONE),
        };
        d.keeper().prepare_wakeup()
    }

    /// Sets whether the end of a transaction with a fence wakes the keeper.
    pub fn expect_fences(&mut self, oid: DatabaseOid, expected: bool) {
        if let Some(d) = self.find(oid) {
            d.expects_fences = u32::from(expected);
        }
    }

    /// Notes that a transaction with a fence has ended. Returns the process number of the keeper to
    /// wake; `None` if there is no keeper, or the keeper waits for no fence.
    pub fn fence_ended(&mut self, oid: DatabaseOid) -> Option<i32> {
        self.find(oid).filter(|d| d.expects_fences != 0)?.keeper().prepare_wakeup()
    }

    /// Notes what went wrong, for the view oban_workers.
    pub fn note_error(&mut self, kind: Kind, oid: DatabaseOid, what: &str) {
        if let Some(d) = self.find(oid) {
            d.workers[kind as usize].last_error = Text::truncated(what);
        }
    }

    /// Counts a reason for the relay to look again. Returns the process number of the relay to
    /// wake; `None` if there is no relay.
    pub fn prepare_relay_wakeup(&mut self, oid: DatabaseOid) -> Option<i32> {
        self.find(oid)?.workers[Kind::Relay as usize].prepare_wakeup()
    }

    /// Notes that a prefix may have been installed, renamed or dropped. Returns the process numbers
    /// of the relay and of the keeper to wake; `None` for one that there is not.
    pub fn prefixes_changed(&mut self, oid: DatabaseOid) -> [Option<i32>; 2] {
        let Some(d) = self.find(oid) else { return [None; 2] };
        d.prefixes = 1;
        [self.prepare_relay_wakeup(oid), self.staging_changed(oid)]
    }

    /// Notes that the keeper has to look which prefixes stage, and at their stagers. Returns the
    /// process number of the keeper to wake; `None` if there is no keeper. The wakeup counter stays:
    /// elections need not be planned anew.
    pub fn staging_changed(&mut self, oid: DatabaseOid) -> Option<i32> {
        let d = self.find(oid)?;
        d.staging = 1;
        let keeper = d.worker(Kind::Keeper).process;
        (keeper.pid != 0).then_some(keeper.procno)
    }

    /// Returns whether the keeper has to look which prefixes stage, and forgets that.
    pub fn take_staging(&mut self, oid: DatabaseOid) -> bool {
        self.find(oid).is_some_and(|d| std::mem::take(&mut d.staging) != 0)
    }

    /// Returns how many of `most` worker processes are left for stagers, when each database with a
    /// slot has its keeper and its relay.
    pub fn room_for_stagers(&self, most: usize) -> usize {
        let databases = self.databases.iter().filter(|d| !d.oid.is_none()).count();
        most.saturating_sub(1 + Kind::ALL.len() * databases)
    }

    /// Returns what a worker has to know before a pass, and forgets the requests to look. A
    /// database without a slot orders the worker to leave.
    pub fn take_orders(&mut self, kind: Kind, oid: DatabaseOid) -> Orders {
        let held = self.is_held(oid);
        match self.find(oid) {
            Some(d) => Orders {
                leave: held || d.is_unwanted(kind),
                look_for_extension: kind == Kind::Keeper && std::mem::take(&mut d.look_for_extension) != 0,
                wakeups: d.worker(kind).wakeups,
                changed_rows: if kind == Kind::Keeper {
                    d.take_changed_prefixes()
                } else {
                    ChangedPrefixes::Unchanged
                },
                prefixes: kind == Kind::Relay && std::mem::take(&mut d.prefixes) != 0,
            },
            None => Orders {
                leave: true,
                look_for_extension: false,
                wakeups: 0,
                changed_rows: ChangedPrefixes::Unchanged,
                prefixes: false,
            },
        }
    }

    /// Returns whether the keeper failed and waits until it is launched again.
    pub fn is_backing_off(&mut self, oid: DatabaseOid) -> bool {
        self.find(oid).is_some_and(|d| d.keeper().process.pid == 0 && d.keeper().state == BACKOFF)
    }

    /// Returns a worker's wakeup counter; 0 for a database without a slot.
    pub fn wakeups(&mut self, kind: Kind, oid: DatabaseOid) -> u32 {
        self.find(oid).map_or(0, |d| d.worker(kind).wakeups)
    }

    /// Returns pid and process number of the keeper, the relay and the look of a database. Pid 0 is
    /// no process. The look has process number -1, because it waits for nothing.
    pub fn processes(&mut self, oid: DatabaseOid) -> [Process; 3] {
        let [keeper, relay] = self.find(oid).map_or([Process::NONE; 2], |d| d.workers.map(|w| w.process));
        [keeper, relay, Process { pid: self.looker(oid), procno: -1 }]
    }

    /// Returns whether a database without a slot could have one. False as well for a database that
    /// is known to take no workers.
    pub fn could_have_slot(&mut self, oid: DatabaseOid) -> bool {
        let is_listed = self.unslotted.find(oid).is_some_and(|o| o.state == looks::HAS);
        self.database(oid).is_none() && !is_listed && self.databases.iter().any(|d| d.oid.is_none())
    }

    /// Returns the lack of worker processes, for a worker that finds no free slot. The server
    /// allows `most`.
    pub fn workers_lacking(&self, most: usize) -> Lack {
        let taken = self.databases.iter().filter(|d| !d.oid.is_none()).count();
        Lack::Workers { most, needed: 1 + Kind::ALL.len() * taken }
    }

    /// Returns what keeps a database from having its workers; `None` if nothing does. The server
    /// allows `most` worker processes. With `soon` the result is also what the database will lack
    /// once all databases with a slot have started their workers.
    pub fn lack(&self, oid: DatabaseOid, most: usize, soon: bool) -> Option<Lack> {
        let (own, taken) = (self.database(oid), self.databases.iter().filter(|d| !d.oid.is_none()).count());
        let needed = |databases: usize| 1 + Kind::ALL.len() * databases;
        if own.is_none() && taken == self.databases.len() {
            let workers = needed(taken + 1);
            return Some(Lack::Slot { most: taken, workers: (workers > most).then_some(workers) });
        }
        let all = needed(taken + usize::from(own.is_none()));
        let waits = own.is_some_and(DatabaseSlot::lacks_worker_slots);
        (waits || (soon && all > most)).then_some(Lack::Workers { most, needed: all })
    }

    /// Returns the databases for which nothing needs to be kept any more: those that are not
    /// `alive`, and those that had the extension and lost it. With each comes a clock reading: what
    /// was kept for the database before that reading may go. `last_generation` is the last
    /// generation from before the scan that found the `alive` databases, because nothing is known
    /// of younger ones.
    pub fn forgettable(
        &self,
        last_generation: u64,
        alive: impl Fn(DatabaseOid) -> bool,
    ) -> Vec<(DatabaseOid, ClockTime)> {
        let gone =
            self.databases.iter().filter(|d| !d.oid.is_none() && !d.workers.iter().any(WorkerSlot::is_up));
        gone.filter_map(|d| match d.worker(Kind::Keeper).state {
            _ if d.generation <= last_generation && !alive(d.oid) => Some((d.oid, ClockTime::NEVER)),
            ABSENT if d.known != 0 => Some((d.oid, d.absent_since)),
            _ => None,
        })
        .collect()
    }

    /// Frees the slots of databases that need none: keepers that found no extension, and databases
    /// that are not `alive`. Workers that still run in the latter, or were launched for them, are
    /// told to leave. Returns the freed slots, and the process numbers of leaving workers, which
    /// the caller wakes. A database that `exists` and has the extension is remembered.
    /// `last_generation` is as for `forgettable`.
    pub fn reap(
        &mut self,
        last_generation: u64,
        alive: impl Fn(DatabaseOid) -> bool,
        exists: impl Fn(DatabaseOid) -> bool,
    ) -> (Vec<FreedSlot>, Vec<i32>) {
        let (mut freed, mut leaving, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, d) in self.databases.iter_mut().enumerate().filter(|(_, d)| !d.oid.is_none()) {
            let absent = d.keeper().state == ABSENT && d.look_for_extension == 0;
            let dead = d.generation <= last_generation && !alive(d.oid);
            if d.workers.iter().any(WorkerSlot::is_up) {
                if dead {
                    d.leave = 1;
                    leaving.extend(d.workers.iter_mut().filter_map(WorkerSlot::prepare_wakeup));
                }
            } else if absent || dead {
                freed.push(FreedSlot { oid: d.oid, slot, generation: d.generation });
                if !absent && exists(d.oid) {
                    kept.push(d.oid);
                }
                *d = DatabaseSlot::default();
            }
        }
        kept.into_iter().for_each(|oid| _ = self.has_extension(oid));
        (freed, leaving)
    }

    /// Has workers launched again that an earlier coordinator had launched and that have not
    /// claimed their slot. (Should both come up, `claim` refuses the second.)
    pub fn adopt(&mut self) {
        let workers = self.databases.iter_mut().filter(|d| !d.oid.is_none()).flat_map(|d| &mut d.workers);
        workers.filter(|w| w.process.pid == 0 && w.state == STARTING).for_each(|w| w.state = WAITING);
        self.adopt_looks();
    }

    /// Keeps workers off a database. Returns false if the table of holds is full.
    pub fn hold(&mut self, database: DatabaseOid, holder: Process) -> bool {
        let Some(free) = self.holds.iter_mut().find(|h| h.database.is_none()) else { return false };
        *free = Hold { database, holder };
        if let Some(d) = self.find(database) {
            d.workers.iter_mut().for_each(|w| {
                w.prepare_wakeup();
            });
        }
        true
    }

    /// Ends all holds of a backend.
    pub fn release(&mut self, pid: i32) {
        for hold in self.holds.iter_mut().filter(|h| h.holder.pid == pid) {
            *hold = Hold::default();
        }
    }

    /// Returns whether a command holds a database.
    pub fn is_held(&self, database: DatabaseOid) -> bool {
        !database.is_none() && self.holds.iter().any(|h| h.database == database)
    }

    /// Returns the slot of a database, to change it; `None` without a slot.
    fn find(&mut self, oid: DatabaseOid) -> Option<&mut DatabaseSlot> {
        self.databases.iter_mut().find(|d| !oid.is_none() && d.oid == oid)
    }

    /// Returns the slot of a database; `None` without a slot.
    pub fn database(&self, oid: DatabaseOid) -> Option<&DatabaseSlot> {
        self.databases.iter().find(|d| !oid.is_none() && d.oid == oid)
    }
}

#[cfg(test)]
mod tests;
