//! The life of a database's workers, as the coordinator keeps it in shared memory. Of the keeper:
//!
//! ```text
//!            told                     launched              connected, extension there
//!   (none) ────────▶ Unknown ──────────────────▶ Starting ────────────────────────────▶ Running
//!     ▲                 ▲  ▲                        │  │                                   │
//!     │                 │  └──── hold released ─────┤  │ no extension here                 │ extension
//!     │                 │                           │  ▼                                   │ dropped
//!     │                 │   delay over              │ Absent ◀─────────────────────────────┤
//!     │                 └──────────────── Backoff ◀─┴──── ended, for whatever reason ──────┘
//!     └── Absent is taken out once both workers have gone; so is every database that was dropped
//! ```
//!
//! The relay has the same states but Absent: it is launched where a keeper has found the extension, and
//! goes when the keeper finds it gone. Neither one's failure concerns the other.
//!
//! A database gets a slot when somebody tells that it has the extension: the end of CREATE EXTENSION there, a call
//! from within it, a look at the server's start, or that it is a copy of another one (`looks`). Nobody else's
//! database is entered.
//!
//! A *hold* keeps a database without workers while a command needs it alone: DROP, RENAME, SET
//! TABLESPACE, or as the template of CREATE. It is set before the workers are asked to go, and a worker
//! looks for holds in the same critical section in which it claims its slot, so that either the
//! holder sees the worker or the worker sees the hold. A hold ends with its holder's transaction,
//! whichever way that ends (`shmem::at_end`). A database that takes no workers any more, because it
//! became a template, has its workers told to leave; that is no failure either.

mod looks;

use super::backoff::{HEALTHY, RESTART, RESTART_RELAY};
use super::text::Text;
pub use looks::Looks;

pub const UNKNOWN: u32 = 0;
pub const STARTING: u32 = 1;
pub const RUNNING: u32 = 2;
pub const ABSENT: u32 = 3;
pub const BACKOFF: u32 = 4;

/// How a state shows in the view oban_workers.
pub fn state_name(state: u32) -> &'static str {
    match state {
        UNKNOWN => "waiting",
        STARTING => "starting",
        RUNNING => "running",
        ABSENT => "stopping",
        _ => "backoff",
    }
}

/// The workers that each database with the extension has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Touches the tables: elections. Finds out whether the extension is there.
    Keeper,
    /// Sends what is in the ring to those who LISTEN; broadcasts and hears gossip.
    Relay,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Keeper, Kind::Relay];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Keeper => "keeper",
            Kind::Relay => "relay",
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerSlot {
    pub state: u32,
    /// From its claim until it has left the server's list of processes; else 0.
    pub pid: i32,
    pub procno: i32,
    pub restarts: u32,
    /// By the wall clock, to be shown. All other times are of `pg::clock`.
    pub started_at: i64,
    began: i64,
    /// In a row.
    failures: u32,
    /// 1: its last launch found no free slot of max_worker_processes.
    no_slot: u32,
    /// 1: it has failed since it last told that it is back.
    failed: u32,
    /// Counts the reasons to look again. A latch is not enough: a worker that waits for a lock in the
    /// middle of its work resets its latch there.
    wakeups: u32,
    /// When a worker in Backoff is due.
    retry_at: i64,
    pub last_error: Text<255>,
}

impl WorkerSlot {
    fn back_off(&mut self, kind: Kind, now: i64) {
        let backoff = if kind == Kind::Relay { RESTART_RELAY } else { RESTART };
        self.state = BACKOFF;
        self.retry_at = now + backoff.delay(self.failures);
        self.failed = 1;
        self.failures = self.failures.saturating_add(1);
    }

    /// Something changed that it has to look at: whom to wake.
    fn prepare_wakeup(&mut self) -> Option<i32> {
        (self.pid != 0).then(|| {
            self.wakeups = self.wakeups.wrapping_add(1);
            self.procno
        })
    }

    /// Whether it may be launched, as far as it is up to itself.
    fn is_due(&self, now: i64) -> bool {
        self.pid == 0 && (self.state == UNKNOWN || (self.state == BACKOFF && self.retry_at <= now))
    }

    /// Whether it waits for a free slot of max_worker_processes.
    pub fn lacks_slot(&self) -> bool {
        self.state == BACKOFF && self.no_slot != 0
    }

    /// Whether there is a process of it, or one on its way.
    fn is_up(&self) -> bool {
        self.pid != 0 || self.state == STARTING
    }
}

/// One database that has the extension, as far as anybody has told. `oid` 0 is a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DatabaseSlot {
    pub oid: u32,
    /// 1: the extension was created or dropped here; the keeper shall look whether it is still wanted.
    recheck: u32,
    /// 1: the database takes no workers any more (it is a template now); they shall go.
    leave: u32,
    /// 1: a keeper has found the extension here.
    pub known: u32,
    /// Tells this use of the slot from all others.
    pub generation: u64,
    /// When the keeper that found no extension began to look, or the extension was dropped without one.
    absent_since: i64,
    /// Whose rows of oban_peers the keeper shall read: of no schema, of `changed_schema` or of every schema.
    changed_rows: u32,
    changed_schema: u32,
    /// 1: the keeper may have to wait for the end of somebody's fence.
    expects_fences: u32,
    /// 1: the relay shall look which prefixes are installed.
    prefixes: u32,
    workers: [WorkerSlot; 2],
}

const CHANGED_ONE: u32 = 1;
const CHANGED_ALL: u32 = 2;

impl DatabaseSlot {
    fn take_changed_prefixes(&mut self) -> ChangedPrefixes {
        match std::mem::take(&mut self.changed_rows) {
            0 => ChangedPrefixes::Unchanged,
            CHANGED_ONE => ChangedPrefixes::Of(self.changed_schema),
            _ => ChangedPrefixes::All,
        }
    }

    pub fn worker(&self, kind: Kind) -> &WorkerSlot {
        &self.workers[kind as usize]
    }

    /// Whether a worker of it waits for a free slot of max_worker_processes.
    fn lacks_worker_slots(&self) -> bool {
        self.workers.iter().any(WorkerSlot::lacks_slot)
    }

    fn keeper(&mut self) -> &mut WorkerSlot {
        &mut self.workers[Kind::Keeper as usize]
    }

    /// Whether there shall be no worker of this kind.
    fn is_unwanted(&self, kind: Kind) -> bool {
        let absent = self.worker(Kind::Keeper).state == ABSENT;
        self.leave != 0 || (kind == Kind::Relay && (self.known == 0 || absent))
    }
}

/// A database that shall have no workers, and the backend that wants it so. `database` 0 is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    pub database: u32,
    pub pid: i32,
    /// To wake when a worker has gone.
    pub procno: i32,
}

/// The tables of shared memory. Whoever has this holds their lock.
pub struct Registry<'a> {
    pub databases: &'a mut [DatabaseSlot],
    pub holds: &'a mut [Hold],
    /// Databases without a slot.
    pub looks: &'a mut Looks,
    /// The last `generation` of a slot.
    pub last_generation: &'a mut u64,
}

/// What a worker reads before each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Somebody needs the database alone, it takes no workers any more, or this one is not wanted.
    pub leave: bool,
    /// Look whether the extension is there.
    pub recheck: bool,
    /// Compare with a later reading: another number means to look again before sleeping.
    pub wakeups: u32,
    pub changed_rows: ChangedPrefixes,
    /// Look which prefixes are installed.
    pub prefixes: bool,
}

/// What a database lacks to have its workers: the limit that really holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// All places of obanrs.max_databases, so many, are taken. With one more so many worker processes would be
    /// needed, if that is more than there may be.
    Place { most: usize, workers: Option<usize> },
    /// There may be so many worker processes, and all databases with a place need so many. It may be for a
    /// moment only: parallel queries and other extensions share them.
    Workers { most: usize, needed: usize },
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lack::Place { most: 1, .. } => {
                write!(f, "the one place of obanrs.max_databases is taken by another database")
            }
            Lack::Place { most, .. } => {
                write!(f, "all {most} places of obanrs.max_databases are taken by other databases")
            }
            Lack::Workers { most, needed } => write!(
                f,
                "max_worker_processes is {most}, which others share, and obanrs needs {needed} (one, and two for \
                 each database with the extension)"
            ),
        }
    }
}

impl Lack {
    pub fn hint(&self) -> String {
        match self {
            Lack::Place { workers: Some(workers), .. } => format!(
                "Raise obanrs.max_databases, and max_worker_processes to {workers} or more, and restart the server."
            ),
            Lack::Place { .. } => "Raise obanrs.max_databases and restart the server.".into(),
            Lack::Workers { .. } => "Raise max_worker_processes and restart the server.".into(),
        }
    }
}

/// Of which schemas the rows of oban_peers have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangedPrefixes {
    #[default]
    Unchanged,
    Of(u32),
    All,
}

/// Why a worker that has just started must go again, quietly.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The database was dropped meanwhile, takes no workers any more, or not this one.
    Unwanted,
    Held,
    /// The slot has another worker.
    Second,
}

/// A slot that was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedSlot {
    pub oid: u32,
    pub slot: usize,
    pub generation: u64,
}

impl Registry<'_> {
    /// Takes a slot for a database that has the extension; false when none is free.
    pub fn add(&mut self, oid: u32) -> bool {
        if self.find(oid).is_some() {
            return true;
        }
        match self.databases.iter_mut().find(|d| d.oid == 0) {
            Some(slot) => {
                *self.last_generation += 1;
                *slot = DatabaseSlot { oid, generation: *self.last_generation, ..DatabaseSlot::default() };
                self.looks.take_out(oid);
                true
            }
            None => false,
        }
    }

    /// The slot of a database and its birth.
    pub fn slot(&self, oid: u32) -> Option<(usize, u64)> {
        let slot = self.databases.iter().position(|d| oid != 0 && d.oid == oid)?;
        Some((slot, self.databases[slot].generation))
    }

    /// The workers that shall be launched at `now`, in those databases that are `alive`. They count as
    /// Starting from here on.
    pub fn launch(&mut self, now: i64, alive: impl Fn(u32) -> bool) -> Vec<(Kind, u32)> {
        let mut launched = Vec::new();
        let holds = &*self.holds;
        for d in self.databases.iter_mut().filter(|d| d.oid != 0 && alive(d.oid)) {
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

    /// When the next worker in Backoff is due; `None` without one.
    pub fn next_launch(&self) -> Option<i64> {
        let open = self.databases.iter().filter(|d| d.oid != 0 && !self.is_held(d.oid));
        open.flat_map(|d| {
            let waiting = move |kind: &Kind| {
                let worker = d.worker(*kind);
                let wanted = *kind == Kind::Keeper || !d.is_unwanted(Kind::Relay);
                worker.state == BACKOFF && worker.pid == 0 && wanted
            };
            Kind::ALL.into_iter().filter(waiting).map(|kind| d.worker(kind).retry_at)
        })
        .min()
    }

    /// A worker that was launched did not come up: no fork, or an early death.
    pub fn launch_failed(&mut self, kind: Kind, oid: u32, now: i64, why: &str) {
        self.not_launched(kind, oid, now, why, false);
    }

    /// There is no free slot of max_worker_processes for a worker.
    pub fn no_worker_slot(&mut self, kind: Kind, oid: u32, now: i64, why: &str) {
        self.not_launched(kind, oid, now, why, true);
    }

    fn not_launched(&mut self, kind: Kind, oid: u32, now: i64, why: &str, no_slot: bool) {
        let worker = self.find(oid).map(|d| &mut d.workers[kind as usize]);
        if let Some(worker) = worker.filter(|w| w.state == STARTING && w.pid == 0) {
            worker.back_off(kind, now);
            worker.no_slot = u32::from(no_slot);
            worker.last_error = Text::truncated(why);
        }
    }

    /// A worker's first act, before it connects: its slot, if it may have it. `now` is the clock's and the wall's.
    pub fn claim(
        &mut self,
        kind: Kind,
        oid: u32,
        (pid, procno): (i32, i32),
        now: (i64, i64),
    ) -> Result<(), Refused> {
        let held = self.is_held(oid);
        let d = self.find(oid).ok_or(Refused::Unwanted)?;
        let unwanted = d.is_unwanted(kind);
        let worker = &mut d.workers[kind as usize];
        if held || unwanted {
            // To be launched anew when that ends; that it had to go is no failure of its.
            if worker.pid == 0 {
                worker.state = UNKNOWN;
            }
            return Err(if held { Refused::Held } else { Refused::Unwanted });
        }
        if worker.pid != 0 {
            return Err(Refused::Second);
        }
        (worker.pid, worker.procno, worker.state) = (pid, procno, STARTING);
        (worker.began, worker.started_at) = now;
        worker.no_slot = 0;
        Ok(())
    }

    /// Whether a worker that is connected now has failed since this was asked for the last time: it is back.
    pub fn is_back(&mut self, kind: Kind, oid: u32, pid: i32) -> bool {
        let worker = self.find(oid).map(|d| &mut d.workers[kind as usize]);
        worker.filter(|w| w.pid == pid).is_some_and(|w| std::mem::take(&mut w.failed) != 0)
    }

    /// The keeper began to look at `since` and has found the extension (or not). The coordinator has to be woken,
    /// as a relay may be wanted. The relay to wake, if it has to go.
    pub fn extension_looked_up(&mut self, oid: u32, pid: i32, extension: bool, since: i64) -> Option<i32> {
        let d = self.find(oid).filter(|d| d.worker(Kind::Keeper).pid == pid)?;
        if extension {
            (d.keeper().state, d.known) = (RUNNING, 1);
            return None;
        }
        (d.keeper().state, d.absent_since) = (ABSENT, since);
        d.workers[Kind::Relay as usize].prepare_wakeup()
    }

    /// The relay is connected.
    pub fn relay_connected(&mut self, kind: Kind, oid: u32, pid: i32) {
        let worker = self.find(oid).map(|d| &mut d.workers[kind as usize]);
        if let Some(worker) = worker.filter(|w| w.pid == pid) {
            worker.state = RUNNING;
        }
    }

    /// To wake when a worker has gone.
    fn holders(&self, oid: u32) -> Vec<i32> {
        self.holds.iter().filter(|h| h.database == oid && oid != 0).map(|h| h.procno).collect()
    }

    /// The worker's last act: it has left the list of processes. Returns the holders to wake, and the keeper when
    /// its relay ended.
    pub fn exited(&mut self, kind: Kind, oid: u32, pid: i32, now: i64) -> Vec<i32> {
        let mut holders = self.holders(oid);
        let held = !holders.is_empty();
        let Some(d) = self.find(oid).filter(|d| d.worker(kind).pid == pid) else { return holders };
        let told = d.is_unwanted(kind) || (kind == Kind::Keeper && d.recheck != 0);
        let worker = &mut d.workers[kind as usize];
        (worker.pid, worker.procno) = (0, 0);
        if worker.state == ABSENT && d.recheck == 0 {
            return holders;
        }
        if held || told {
            worker.state = UNKNOWN;
            if kind == Kind::Keeper {
                d.recheck = 0;
            }
            if d.workers.iter().all(|w| w.pid == 0) {
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
        // Without a relay the keeper has to see to what waits for one.
        holders.extend(if kind == Kind::Relay { d.keeper().prepare_wakeup() } else { None });
        holders
    }

    /// A transaction ended that created or dropped the extension in this database, after which it is there or
    /// not (`None`: nobody could see). A keeper that runs looks for itself. Otherwise one will be started, or
    /// what was kept for the database is given up: that is the coordinator's, which has to be woken. The worker to
    /// wake, if any.
    pub fn extension_changed(&mut self, oid: u32, found: Option<bool>, now: i64) -> Option<i32> {
        let is_listed = self.looks.find(oid).is_some_and(|o| o.state == looks::HAS);
        let Some(d) = self.find(oid) else {
            match found {
                // What is listed takes no workers, as far as the coordinator knows.
                Some(true) if is_listed || self.add(oid) => {}
                Some(true) => _ = self.has_extension(oid),
                Some(false) => self.looks.take_out(oid),
                None => _ = self.look_into(oid),
            }
            return None;
        };
        if d.keeper().pid != 0 {
            d.recheck = 1;
            return d.keeper().prepare_wakeup();
        }
        if d.keeper().state == STARTING {
            return None; // it looks when it has come up
        }
        if found == Some(false) {
            // As if a keeper had found it and lost it: members have joined, perhaps.
            (d.keeper().state, d.known, d.absent_since) = (ABSENT, 1, now);
            return d.workers[Kind::Relay as usize].prepare_wakeup();
        }
        d.keeper().state = UNKNOWN;
        None
    }

    /// Something changed that the keeper has to plan for: the keeper to wake, if there is one.
    pub fn prepare_wakeup(&mut self, oid: u32) -> Option<i32> {
        self.find(oid)?.keeper().prepare_wakeup()
    }

    /// Rows of oban_peers have changed, of this schema or of many: the keeper to wake, if there is one.
    pub fn rows_changed(&mut self, oid: u32, schema: Option<u32>) -> Option<i32> {
        let d = self.find(oid)?;
        (d.changed_rows, d.changed_schema) = match schema {
            Some(schema)
                if d.changed_rows == 0 || (d.changed_rows == CHANGED_ONE && d.changed_schema == schema) =>
            {
                (CHANGED_ONE, schema)
            }
            _ => (CHANGED_ALL, 0),
        };
        d.keeper().prepare_wakeup()
    }

    /// Whether the keeper wants to be woken when a transaction ends that fenced.
    pub fn expect_fences(&mut self, oid: u32, expected: bool) {
        if let Some(d) = self.find(oid) {
            d.expects_fences = u32::from(expected);
        }
    }

    /// A transaction ended that fenced: the keeper to wake, if it waits for such.
    pub fn fence_ended(&mut self, oid: u32) -> Option<i32> {
        self.find(oid).filter(|d| d.expects_fences != 0)?.keeper().prepare_wakeup()
    }

    /// Notes what went wrong, for the view oban_workers.
    pub fn note_error(&mut self, kind: Kind, oid: u32, what: &str) {
        if let Some(d) = self.find(oid) {
            d.workers[kind as usize].last_error = Text::truncated(what);
        }
    }

    /// Something changed that the relay has to look at: the relay to wake, if there is one.
    pub fn prepare_relay_wakeup(&mut self, oid: u32) -> Option<i32> {
        self.find(oid)?.workers[Kind::Relay as usize].prepare_wakeup()
    }

    /// A prefix may have been installed, renamed or dropped: the relay to wake, if there is one.
    pub fn prefixes_changed(&mut self, oid: u32) -> Option<i32> {
        self.find(oid)?.prefixes = 1;
        self.prepare_relay_wakeup(oid)
    }

    /// What a worker has to know before a pass. Its reading takes the wishes to look back.
    pub fn orders(&mut self, kind: Kind, oid: u32) -> Orders {
        let held = self.is_held(oid);
        match self.find(oid) {
            Some(d) => Orders {
                leave: held || d.is_unwanted(kind),
                recheck: kind == Kind::Keeper && std::mem::take(&mut d.recheck) != 0,
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
                recheck: false,
                wakeups: 0,
                changed_rows: ChangedPrefixes::Unchanged,
                prefixes: false,
            },
        }
    }

    /// Whether the keeper waits for its next start after a failure.
    pub fn is_backing_off(&mut self, oid: u32) -> bool {
        self.find(oid).is_some_and(|d| d.keeper().pid == 0 && d.keeper().state == BACKOFF)
    }

    pub fn wakeups(&mut self, kind: Kind, oid: u32) -> u32 {
        self.find(oid).map_or(0, |d| d.worker(kind).wakeups)
    }

    /// The extension's processes in a database, each with its number (-1: it is not waiting for anything).
    pub fn processes(&mut self, oid: u32) -> [(i32, i32); 3] {
        let [keeper, relay] = self.find(oid).map_or([(0, 0); 2], |d| d.workers.map(|w| (w.pid, w.procno)));
        [keeper, relay, (self.looker(oid), -1)]
    }

    /// Whether there is a slot for a database that has none, and that is not known to take no workers.
    pub fn could_have_slot(&mut self, oid: u32) -> bool {
        let is_listed = self.looks.find(oid).is_some_and(|o| o.state == looks::HAS);
        self.database(oid).is_none() && !is_listed && self.databases.iter().any(|d| d.oid == 0)
    }

    /// For a worker that finds no free slot.
    pub fn workers_lacking(&self, most: usize) -> Lack {
        let taken = self.databases.iter().filter(|d| d.oid != 0).count();
        Lack::Workers { most, needed: 1 + Kind::ALL.len() * taken }
    }

    /// What a database lacks to have its workers, where there are `most` worker processes for everybody. `soon`:
    /// also what it will lack once the workers of all databases that have a slot have started.
    pub fn lack(&self, oid: u32, most: usize, soon: bool) -> Option<Lack> {
        let (own, taken) = (self.database(oid), self.databases.iter().filter(|d| d.oid != 0).count());
        let needed = |databases: usize| 1 + Kind::ALL.len() * databases;
        if own.is_none() && taken == self.databases.len() {
            let workers = needed(taken + 1);
            return Some(Lack::Place { most: taken, workers: (workers > most).then_some(workers) });
        }
        let all = needed(taken + usize::from(own.is_none()));
        let waits = own.is_some_and(DatabaseSlot::lacks_worker_slots);
        (waits || (soon && all > most)).then_some(Lack::Workers { most, needed: all })
    }

    /// The databases for which nothing needs to be kept any more, each with the time before which it
    /// was kept in vain: those that are not `alive`, and those that had the extension and lost it. `last_generation` is
    /// the count of births before the look that found those that are alive: nothing is known of younger ones.
    pub fn forgettable(&self, last_generation: u64, alive: impl Fn(u32) -> bool) -> Vec<(u32, i64)> {
        let gone = self.databases.iter().filter(|d| d.oid != 0 && !d.workers.iter().any(WorkerSlot::is_up));
        gone.filter_map(|d| match d.worker(Kind::Keeper).state {
            _ if d.generation <= last_generation && !alive(d.oid) => Some((d.oid, i64::MAX)),
            ABSENT if d.known != 0 => Some((d.oid, d.absent_since)),
            _ => None,
        })
        .collect()
    }

    /// Frees the slots that nobody needs: keepers that found no extension, databases that are not
    /// `alive` any more. Workers that still run in the latter, or are on their way there, are told to
    /// leave; the second list are those to be woken. A database that `exists` and has the extension is
    /// remembered. `last_generation` as for `forgettable`.
    pub fn reap(
        &mut self,
        last_generation: u64,
        alive: impl Fn(u32) -> bool,
        exists: impl Fn(u32) -> bool,
    ) -> (Vec<FreedSlot>, Vec<i32>) {
        let (mut freed, mut leaving, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, d) in self.databases.iter_mut().enumerate().filter(|(_, d)| d.oid != 0) {
            let absent = d.keeper().state == ABSENT && d.recheck == 0;
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

    /// After a coordinator's restart: what the one before had launched and nobody claimed is launched
    /// again. (Should both come up, the second is refused.)
    pub fn adopt(&mut self) {
        let workers = self.databases.iter_mut().filter(|d| d.oid != 0).flat_map(|d| &mut d.workers);
        workers.filter(|w| w.pid == 0 && w.state == STARTING).for_each(|w| w.state = UNKNOWN);
        self.adopt_looks();
    }

    /// Keeps workers off a database; false when the table of holds is full.
    pub fn hold(&mut self, database: u32, pid: i32, procno: i32) -> bool {
        let Some(free) = self.holds.iter_mut().find(|h| h.database == 0) else { return false };
        *free = Hold { database, pid, procno };
        if let Some(d) = self.find(database) {
            d.workers.iter_mut().for_each(|w| {
                w.prepare_wakeup();
            });
        }
        true
    }

    /// Ends all holds of a backend.
    pub fn release(&mut self, pid: i32) {
        for hold in self.holds.iter_mut().filter(|h| h.pid == pid) {
            *hold = Hold::default();
        }
    }

    pub fn is_held(&self, database: u32) -> bool {
        database != 0 && self.holds.iter().any(|h| h.database == database)
    }

    fn find(&mut self, oid: u32) -> Option<&mut DatabaseSlot> {
        self.databases.iter_mut().find(|d| oid != 0 && d.oid == oid)
    }

    /// What is known of a database.
    pub fn database(&self, oid: u32) -> Option<&DatabaseSlot> {
        self.databases.iter().find(|d| oid != 0 && d.oid == oid)
    }
}

#[cfg(test)]
mod tests;
