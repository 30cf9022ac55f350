//! Databases without a slot of which it matters whether they have the extension: those that nobody has looked
//! into, templates (which take no workers, but whose copies may), and those for which there was no slot.
//!
//! ```text
//!            found at the start, or a copy of an unseen one      connected, no extension
//!   (none) ─────────────────────────────────────▶ Unseen ──▶ Looking ───────────────────────▶ (none)
//!     │                                             ▲          │  │ extension there
//!     │ CREATE EXTENSION ended here,                └──────────┘  ▼
//!     └─ or it is a copy of one that has it ──▶ Has ◀─────────────┴── (a slot), taking no workers
//!                                                │  failed, MOST_LOOKS times: Failed
//!                                                └──▶ (a slot), once it takes workers and one is free
//! ```
//!
//! All databases are looked into once, after the start of the server or its promotion: `done` says that each of
//! them was at least begun with, so that a coordinator that is restarted does not begin again. After that only
//! copies of databases of which nobody knows are looked into.

use super::super::backoff::LOOK;
use super::{ABSENT, Registry};

/// The extension is there.
pub const HAS: u32 = 1;
/// To be looked into, as soon as it takes connections.
pub const UNSEEN: u32 = 2;
/// A process that looks was launched.
pub const LOOKING: u32 = 3;
/// No look succeeded. Another one is not tried.
pub const FAILED: u32 = 4;
/// The extension is not there, and the process that looks has not left yet.
pub const GONE: u32 = 5;

/// How many databases without a slot are remembered.
pub const MAX_UNSLOTTED: usize = 512;
/// Of those, how many may be there to stay. The rest is for those that are being looked into.
const MAX_UNSLOTTED_TO_STAY: usize = MAX_UNSLOTTED - MAX_UNSLOTTED / 4;

/// How many databases are looked into at a time. A server with a thousand databases starts with a thousand
/// looks, and worker slots are for those that have the extension.
const MAX_LOOKS: usize = 2;

/// After so many looks that failed in a row there is no other.
const MAX_FAILED_LOOKS: u32 = 8;

/// One database without a slot. `oid` 0 is a free entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Unslotted {
    pub oid: u32,
    pub state: u32,
    /// The process that looks, from its claim until it has left the server's list of processes; else 0.
    pid: i32,
    /// Looks that failed, in a row.
    failures: u32,
    /// When an unseen one is due.
    retry_at: i64,
    /// From the same count as the births of slots.
    generation: u64,
}

/// Under the lock of the registry. Zeroed memory is the state at the server's start.
#[repr(C)]
pub struct Looks {
    /// 1: each database of the server's start was looked into, or is among `unslotted`.
    pub done: u32,
    /// 1: there was no room for a database, so that one which is not among `unslotted` may have the extension.
    overflow: u32,
    unslotted: [Unslotted; MAX_UNSLOTTED],
}

impl Default for Looks {
    fn default() -> Self {
        Self { done: 0, overflow: 0, unslotted: [Unslotted::default(); MAX_UNSLOTTED] }
    }
}

impl Looks {
    pub(super) fn find(&mut self, oid: u32) -> Option<&mut Unslotted> {
        self.unslotted.iter_mut().find(|o| oid != 0 && o.oid == oid)
    }

    fn used(&mut self) -> impl Iterator<Item = &mut Unslotted> {
        self.unslotted.iter_mut().filter(|o| o.oid != 0)
    }

    /// Takes a database out, or has the process that looks into it do that when it leaves.
    pub(super) fn take_out(&mut self, oid: u32) {
        if let Some(unslotted) = self.find(oid) {
            unslotted.leave_out();
        }
    }
}

impl Unslotted {
    fn leave_out(&mut self) {
        if self.pid == 0 {
            *self = Self::default();
        } else {
            self.state = GONE;
        }
    }

    fn failed(&mut self, now: i64) {
        self.failures += 1;
        self.state = if self.failures < MAX_FAILED_LOOKS { UNSEEN } else { FAILED };
        self.retry_at = now + LOOK.delay(self.failures);
    }
}

impl Registry<'_> {
    /// Remembers a database without a slot; false when there is no room.
    fn remember(&mut self, oid: u32, state: u32) -> bool {
        if let Some(unslotted) = self.looks.find(oid) {
            // A look that is under way sees for itself.
            if state != UNSEEN || unslotted.state == GONE {
                unslotted.state = state;
            }
            return true;
        }
        let used = self.looks.used().count();
        let free = self.looks.unslotted.iter_mut().find(|o| o.oid == 0);
        match free.filter(|_| state == UNSEEN || used < MAX_UNSLOTTED_TO_STAY) {
            Some(free) => {
                *self.last_generation += 1;
                *free = Unslotted { oid, state, generation: *self.last_generation, ..Unslotted::default() };
                true
            }
            None => {
                self.looks.overflow = 1;
                false
            }
        }
    }

    /// A database that has no slot has the extension: it gets one as soon as it takes workers and one is free.
    pub fn has_extension(&mut self, oid: u32) -> bool {
        self.remember(oid, HAS)
    }

    /// A database that has no slot shall be looked into.
    pub fn look_into(&mut self, oid: u32) -> bool {
        self.database(oid).is_some() || self.remember(oid, UNSEEN)
    }

    /// Database `copy` was made from `source` (0: from one that is not known): it has the extension if that
    /// has it, and is looked into if nobody knows.
    pub fn copied(&mut self, source: u32, copy: u32) {
        let has = if source == 0 { None } else { self.knows(source) };
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

    /// Whether a database has the extension, if that is known.
    pub fn knows(&mut self, oid: u32) -> Option<bool> {
        let slot = self.database(oid).map(|d| d.worker(super::Kind::Keeper).state != ABSENT);
        let unslotted = self.looks.find(oid).map(|o| o.state);
        match (slot, unslotted) {
            (Some(true), _) | (_, Some(HAS)) => Some(true),
            (Some(false), _) | (_, Some(UNSEEN | LOOKING | FAILED)) => None,
            (None, Some(_)) => Some(false),
            (None, None) if self.looks.done == 0 || self.looks.overflow != 0 => None,
            (None, None) => Some(false),
        }
    }

    /// How many more databases may be looked into now.
    pub fn free_looks(&mut self, now: i64, takes_connections: impl Fn(u32) -> bool) -> usize {
        let busy = |o: &&mut Unslotted| match o.state {
            LOOKING => true,
            UNSEEN => o.retry_at <= now && takes_connections(o.oid),
            _ => o.pid != 0,
        };
        MAX_LOOKS.saturating_sub(self.looks.used().filter(busy).count())
    }

    /// The databases for which a process that looks shall be launched at `now`. They count as being looked into
    /// from here on.
    pub fn launch_looks(&mut self, now: i64, takes_connections: impl Fn(u32) -> bool) -> Vec<u32> {
        let busy = self.looks.used().filter(|o| o.state == LOOKING || o.pid != 0).count();
        let holds = &*self.holds;
        let due = |o: &&mut Unslotted| {
            let is_held = holds.iter().any(|h| h.database == o.oid);
            o.state == UNSEEN && o.pid == 0 && o.retry_at <= now && !is_held && takes_connections(o.oid)
        };
        let launched = self.looks.used().filter(due).take(MAX_LOOKS.saturating_sub(busy));
        launched
            .map(|o| {
                o.state = LOOKING;
                o.oid
            })
            .collect()
    }

    /// When the next look is due that failed before; `None` without one. What waits for the end of another look
    /// is launched when that ends, not by the clock.
    pub fn next_look(&mut self, now: i64, takes_connections: impl Fn(u32) -> bool) -> Option<i64> {
        let later = |o: &&mut Unslotted| o.state == UNSEEN && o.retry_at > now && takes_connections(o.oid);
        self.looks.used().filter(later).map(|o| o.retry_at).min()
    }

    /// The first act of a process that looks, before it connects. False: it shall not.
    pub fn claim_look(&mut self, oid: u32, pid: i32) -> bool {
        let held = self.is_held(oid);
        let Some(unslotted) = self.looks.find(oid).filter(|o| o.state == LOOKING && o.pid == 0) else {
            return false;
        };
        if held {
            unslotted.state = UNSEEN; // launched anew when the hold ends; that is no failure
            return false;
        }
        unslotted.pid = pid;
        true
    }

    /// The process that looks has found the extension, or not. What somebody else has told since it began
    /// counts more.
    pub fn looked(&mut self, oid: u32, pid: i32, found: bool) {
        if let Some(unslotted) = self.looks.find(oid).filter(|o| o.pid == pid && o.state == LOOKING) {
            unslotted.state = if found { HAS } else { GONE };
        }
    }

    /// The last act of a process that looks: it has left the list of processes. The holders to wake.
    pub fn look_ended(&mut self, oid: u32, pid: i32, now: i64) -> Vec<i32> {
        let holders = self.holders(oid);
        if let Some(unslotted) = self.looks.find(oid).filter(|o| o.pid == pid) {
            unslotted.pid = 0;
            match unslotted.state {
                LOOKING if holders.is_empty() => unslotted.failed(now),
                LOOKING => unslotted.state = UNSEEN, // it had to go
                GONE => *unslotted = Unslotted::default(),
                _ => {}
            }
        }
        holders
    }

    /// A process that looks ended before its claim.
    pub fn look_lost(&mut self, oid: u32, now: i64) {
        if let Some(unslotted) = self.looks.find(oid).filter(|o| o.state == LOOKING && o.pid == 0) {
            unslotted.failed(now);
        }
    }

    /// There is no free worker slot for a process that looks: that is no failure of the database's.
    pub fn look_postponed(&mut self, oid: u32, now: i64) {
        if let Some(unslotted) = self.looks.find(oid).filter(|o| o.state == LOOKING && o.pid == 0) {
            (unslotted.state, unslotted.retry_at) = (UNSEEN, now + LOOK.max);
        }
    }

    /// The databases into which no look succeeded.
    pub fn failed_looks(&mut self) -> Vec<u32> {
        self.looks.used().filter(|o| o.state == FAILED).map(|o| o.oid).collect()
    }

    /// Gives slots to the databases that have the extension and take workers. Those for which there is none.
    pub fn place(&mut self, takes_workers: impl Fn(u32) -> bool) -> Vec<u32> {
        let waits = |o: &&mut Unslotted| o.state == HAS && takes_workers(o.oid);
        let waiting: Vec<u32> = self.looks.used().filter(waits).map(|o| o.oid).collect();
        waiting.into_iter().filter(|oid| !self.add(*oid)).collect()
    }

    /// Takes out databases that do not exist any more. `last_generation` is the count of births before the look that
    /// found those that `exist`: younger entries may be of databases that are younger, too.
    pub fn forget_unslotted(&mut self, last_generation: u64, exists: impl Fn(u32) -> bool) {
        let gone = self.looks.used().filter(|o| o.generation <= last_generation && !exists(o.oid));
        gone.for_each(Unslotted::leave_out);
    }

    /// After a coordinator's restart: what the one before had launched and nobody claimed is launched again.
    pub(super) fn adopt_looks(&mut self) {
        let lost = self.looks.used().filter(|o| o.state == LOOKING && o.pid == 0);
        lost.for_each(|o| o.state = UNSEEN);
    }

    /// The process that looks into a database; 0 without one.
    pub(super) fn looker(&mut self, oid: u32) -> i32 {
        self.looks.find(oid).map_or(0, |o| o.pid)
    }
}
