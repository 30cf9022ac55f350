//! Databases without a slot for which it matters whether they have the extension: databases that no
//! process has looked into, templates (which take no workers, but whose copies may), and databases
//! for which no slot was free.
//!
//! ```text
//!            (1)            (2)            (3)           (5)
//!   (none) ───────▶ Unseen ──────▶ Looking ──────▶ Gone ──────▶ (none)
//!     │               ▲             │ │ │ (4)
//!     │               │             │ │ └──────▶ Failed
//!     │               └──── (6) ────┘ │
//!     │  (7)                          │ (3)
//!     └────────▶ Has ◀────────────────┘
//!                 │ ▲
//!             (8) ▼ │ (9)
//!               (a slot)
//! ```
//!
//! * (1) The coordinator calls `look_into` for each database that it finds at the server's start. A
//!   backend calls `copied` for a copy of a database about which nothing is known, or
//!   `extension_changed` if it can't tell whether the extension is there.
//! * (2) The coordinator calls `launch_looks`, and starts a look.
//! * (3) The look calls `looked`: it has found the extension, or found no extension.
//! * (4) `MAX_FAILED_LOOKS` looks in a row have failed. The last one calls `look_ended`, or the
//!   coordinator calls `look_lost`. Another look is not tried.
//! * (5) The look calls `look_ended` when it has left the server's list of processes.
//! * (6) The look failed, or had to go. `claim_look` refuses a look whose database is held. A look
//!   that ends without a result calls `look_ended`. The coordinator calls `look_lost` for a look
//!   that ended before its claim, and `look_postponed` for one that it could not start. A
//!   coordinator that was restarted calls `adopt` for looks that have not made their claim.
//! * (7) A backend calls `extension_changed` when CREATE EXTENSION has ended and no slot is free,
//!   or `copied` for a copy of a database that has the extension. Has follows from any other state
//!   as well.
//! * (8) The coordinator calls `place` once the database takes workers and a slot is free.
//! * (9) The coordinator calls `Registry::reap` for a database that takes no workers any more.
//!
//! A database leaves from any state when a backend has dropped the extension (`extension_changed`),
//! or when the coordinator finds that the database was dropped (`forget_unslotted`). If a backend
//! has created the extension and a slot is free, `extension_changed` gives the database a slot at
//! once, unless the state is Has. As long as a look is in such a database, the entry is Gone.
//!
//! Once after the start of the server, or after its promotion, every database is looked into.
//! `done` says that a look into each of them was at least requested, so that a coordinator that is
//! restarted does not begin again. After that looks go only into databases about which nothing is
//! known: copies of such databases, and databases in which a backend could not tell.

use super::super::backoff::LOOK;
use super::super::ids::DatabaseOid;
use super::super::times::ClockTime;
use super::{ABSENT, Registry};

/// The extension is there.
pub const HAS: u32 = 1;
/// The database is to be looked into, as soon as it takes connections.
pub const UNSEEN: u32 = 2;
/// A look was launched, and has not ended.
pub const LOOKING: u32 = 3;
/// No look succeeded, and another one is not tried.
pub const FAILED: u32 = 4;
/// The extension is not there, and the look has not left yet.
pub const GONE: u32 = 5;

/// How many databases without a slot are remembered.
pub const MAX_UNSLOTTED: usize = 512;
/// How many of those databases may be there to stay. The rest is for databases that are being
/// looked into.
const MAX_UNSLOTTED_TO_STAY: usize = MAX_UNSLOTTED - MAX_UNSLOTTED / 4;

/// How many looks run at a time. A server with a thousand databases has a thousand looks to make
/// after its start. They must not use up max_worker_processes, which keepers and relays need.
const MAX_LOOKS: usize = 2;

/// How many looks into a database may fail in a row. Another one is not tried.
const MAX_FAILED_LOOKS: u32 = 8;

/// A database without a slot. `oid` 0 is a free entry. The lock Registry guards the entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Unslotted {
    /// The oid of the database; 0 in a free entry.
    pub oid: DatabaseOid,
    /// The state: one of the constants above. 0 in a free entry.
    pub state: u32,
    /// The pid of the look, from its claim until it has left the server's list of processes; else
    /// 0.
    pid: i32,
    /// The number of looks that failed in a row.
    failures: u32,
    /// The clock reading from which an Unseen database may be looked into, in microseconds; 0 for
    /// at once.
    retry_at: ClockTime,
    /// The generation of the entry, from the same count as the generations of slots.
    generation: u64,
}

/// All databases without a slot. The lock Registry guards them. Zeroed memory is the state at the
/// server's start.
#[repr(C)]
pub struct UnslottedDatabases {
    /// 1: each database of the server's start was looked into, or is in `entries`. 0: the
    /// coordinator has not come that far.
    pub done: u32,
    /// 1: there was no room for a database, so a database that is not in `entries` may have the
    /// extension. 0: there was always room.
    overflow: u32,
    /// The entries.
    entries: [Unslotted; MAX_UNSLOTTED],
}

impl Default for UnslottedDatabases {
    fn default() -> Self {
        Self { done: 0, overflow: 0, entries: [Unslotted::default(); MAX_UNSLOTTED] }
    }
}

impl UnslottedDatabases {
    /// Returns the entry of a database, to change it; `None` without an entry.
    pub(super) fn find(&mut self, oid: DatabaseOid) -> Option<&mut Unslotted> {
        self.entries.iter_mut().find(|o| !oid.is_none() && o.oid == oid)
    }

    /// Returns all entries that are not free.
    fn used(&mut self) -> impl Iterator<Item = &mut Unslotted> {
        self.entries.iter_mut().filter(|o| !o.oid.is_none())
    }

    /// Takes a database out. If a look is in the database, it takes the database out when it
    /// leaves.
    pub(super) fn take_out(&mut self, oid: DatabaseOid) {
        if let Some(unslotted) = self.find(oid) {
            unslotted.leave_out();
        }
    }
}

impl Unslotted {
    /// Frees the entry, or has the look free it when the look leaves.
    fn leave_out(&mut self) {
        if self.pid == 0 {
            *self = Self::default();
        } else {
            self.state = GONE;
        }
    }

    /// Notes that a look failed. The next one waits for a delay that grows with the failures in a
    /// row.
    fn failed(&mut self, now: ClockTime) {
        self.failures += 1;
        self.state = if self.failures < MAX_FAILED_LOOKS { UNSEEN } else { FAILED };
        self.retry_at = now + LOOK.delay(self.failures);
    }
}

impl Registry<'_> {
    /// Remembers a database without a slot, in this state. Returns false if there is no room.
    fn remember(&mut self, oid: DatabaseOid, state: u32) -> bool {
        if let Some(unslotted) = self.unslotted.find(oid) {
            // A look that is under way finds out by itself.
            if state != UNSEEN || unslotted.state == GONE {
                unslotted.state = state;
            }
            return true;
        }
        let used = self.unslotted.used().count();
        let free = self.unslotted.entries.iter_mut().find(|o| o.oid.is_none());
        match free.filter(|_| state == UNSEEN || used < MAX_UNSLOTTED_TO_STAY) {
            Some(free) => {
                *self.last_generation += 1;
                *free = Unslotted { oid, state, generation: *self.last_generation, ..Unslotted::default() };
                true
            }
            None => {
                self.unslotted.overflow = 1;
                false
            }
        }
    }

    /// Notes that a database without a slot has the extension. The database gets a slot as soon as
    /// it takes workers and a slot is free. Returns false if there is no room for the note.
    pub fn has_extension(&mut self, oid: DatabaseOid) -> bool {
        self.remember(oid, HAS)
    }

    /// Has a database without a slot looked into. Returns false if there is no room for the
    /// request.
    pub fn look_into(&mut self, oid: DatabaseOid) -> bool {
        self.database(oid).is_some() || self.remember(oid, UNSEEN)
    }

    /// Notes that database `copy` was made from `source` (0 for an unknown one). If `source` has
    /// the extension, `copy` has it too. If nothing is known of `source`, a look goes into `copy`.
    pub fn copied(&mut self, source: DatabaseOid, copy: DatabaseOid) {
        let has = if source.is_none() { None } else { self.knows(source) };
        match has {
            Some(true) => {
                self.has_extension(copy);
            }
            Some(false) => {}
            None => {
                self.look_into(copy);
            }
        }
    }

    /// Returns whether a database has the extension. `None`: that is not known.
    pub fn knows(&mut self, oid: DatabaseOid) -> Option<bool> {
        let slot = self.database(oid).map(|d| d.worker(super::Kind::Keeper).state != ABSENT);
        let unslotted = self.unslotted.find(oid).map(|o| o.state);
        match (slot, unslotted) {
            (Some(true), _) | (_, Some(HAS)) => Some(true),
            (Some(false), _) | (_, Some(UNSEEN | LOOKING | FAILED)) => None,
            (None, Some(_)) => Some(false),
            (None, None) if self.unslotted.done == 0 || self.unslotted.overflow != 0 => None,
            (None, None) => Some(false),
        }
    }

    /// Returns how many more databases may be looked into now.
    pub fn free_looks(&mut self, now: ClockTime, takes_connections: impl Fn(DatabaseOid) -> bool) -> usize {
        let busy = |o: &&mut Unslotted| match o.state {
            LOOKING => true,
            UNSEEN => o.retry_at <= now && takes_connections(o.oid),
            _ => o.pid != 0,
        };
        MAX_LOOKS.saturating_sub(self.unslotted.used().filter(busy).count())
    }

    /// Returns the databases for which looks are to be launched at `now`. They are in the state
    /// Looking from here on.
    pub fn launch_looks(
        &mut self,
        now: ClockTime,
        takes_connections: impl Fn(DatabaseOid) -> bool,
    ) -> Vec<DatabaseOid> {
        let busy = self.unslotted.used().filter(|o| o.state == LOOKING || o.pid != 0).count();
        let holds = &*self.holds;
        let due = |o: &&mut Unslotted| {
            let is_held = holds.iter().any(|h| h.database == o.oid);
            o.state == UNSEEN && o.pid == 0 && o.retry_at <= now && !is_held && takes_connections(o.oid)
        };
        let launched = self.unslotted.used().filter(due).take(MAX_LOOKS.saturating_sub(busy));
        launched
            .map(|o| {
                o.state = LOOKING;
                o.oid
            })
            .collect()
    }

    /// Returns the clock reading at which the next look is due among those that failed or were
    /// postponed; `None` without one. A database that waits for the end of another look is not
    /// among them, because the end of that look starts the next one.
    pub fn next_look(
        &mut self,
        now: ClockTime,
        takes_connections: impl Fn(DatabaseOid) -> bool,
    ) -> Option<ClockTime> {
        let later = |o: &&mut Unslotted| o.state == UNSEEN && o.retry_at > now && takes_connections(o.oid);
        self.unslotted.used().filter(later).map(|o| o.retry_at).min()
    }

    /// Claims a database for a look. This is the look's first act, before it connects. Returns
    /// false if the look has to go.
    pub fn claim_look(&mut self, oid: DatabaseOid, pid: i32) -> bool {
        let held = self.is_held(oid);
        let Some(unslotted) = self.unslotted.find(oid).filter(|o| o.state == LOOKING && o.pid == 0) else {
            return false;
        };
        if held {
            // The look is launched anew when the hold ends. A look that has to leave has not
            // failed.
            unslotted.state = UNSEEN;
            return false;
        }
        unslotted.pid = pid;
        true
    }

    /// Notes whether a look has found the extension. What a backend has told since the look began
    /// counts more.
    pub fn looked(&mut self, oid: DatabaseOid, pid: i32, found: bool) {
        if let Some(unslotted) = self.unslotted.find(oid).filter(|o| o.pid == pid && o.state == LOOKING) {
            unslotted.state = if found { HAS } else { GONE };
        }
    }

    /// Notes that a look has left the server's list of processes. This is the look's last act.
    /// Returns the process numbers of the database's holders, which the look wakes.
    pub fn look_ended(&mut self, oid: DatabaseOid, pid: i32, now: ClockTime) -> Vec<i32> {
        let holders = self.holders(oid);
        if let Some(unslotted) = self.unslotted.find(oid).filter(|o| o.pid == pid) {
            unslotted.pid = 0;
            match unslotted.state {
                LOOKING if holders.is_empty() => unslotted.failed(now),
                LOOKING => unslotted.state = UNSEEN, // the look had to go
                GONE => *unslotted = Unslotted::default(),
                _ => {}
            }
        }
        holders
    }

    /// Notes that a look that was launched ended before its claim.
    pub fn look_lost(&mut self, oid: DatabaseOid, now: ClockTime) {
        if let Some(unslotted) = self.unslotted.find(oid).filter(|o| o.state == LOOKING && o.pid == 0) {
            unslotted.failed(now);
        }
    }

    /// Notes that a look was not launched, because no worker slot was free. That is no failure of
    /// the database.
    pub fn look_postponed(&mut self, oid: DatabaseOid, now: ClockTime) {
        if let Some(unslotted) = self.unslotted.find(oid).filter(|o| o.state == LOOKING && o.pid == 0) {
            (unslotted.state, unslotted.retry_at) = (UNSEEN, now + LOOK.max);
        }
    }

    /// Returns the databases into which no look succeeded.
    pub fn failed_looks(&mut self) -> Vec<DatabaseOid> {
        self.unslotted.used().filter(|o| o.state == FAILED).map(|o| o.oid).collect()
    }

    /// Gives slots to the databases that have the extension and take workers. Returns those for
    /// which no slot is free.
    pub fn place(&mut self, takes_workers: impl Fn(DatabaseOid) -> bool) -> Vec<DatabaseOid> {
        let waits = |o: &&mut Unslotted| o.state == HAS && takes_workers(o.oid);
        let waiting: Vec<DatabaseOid> = self.unslotted.used().filter(waits).map(|o| o.oid).collect();
        waiting.into_iter().filter(|oid| !self.add(*oid)).collect()
    }

    /// Takes out databases that do not exist any more. `last_generation` is the last generation
    /// from before the scan that found the databases that `exist`: younger entries may be of
    /// younger databases.
    pub fn forget_unslotted(&mut self, last_generation: u64, exists: impl Fn(DatabaseOid) -> bool) {
        let gone = self.unslotted.used().filter(|o| o.generation <= last_generation && !exists(o.oid));
        gone.for_each(Unslotted::leave_out);
    }

    /// Has looks launched again that an earlier coordinator had launched and that have not made
    /// their claim.
    pub(super) fn adopt_looks(&mut self) {
        let lost = self.unslotted.used().filter(|o| o.state == LOOKING && o.pid == 0);
        lost.for_each(|o| o.state = UNSEEN);
    }

    /// Returns the pid of the look into a database; 0 without one.
    pub(super) fn looker(&mut self, oid: DatabaseOid) -> i32 {
        self.unslotted.find(oid).map_or(0, |o| o.pid)
    }
}
