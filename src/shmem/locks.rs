//! The locks of the segment, which are lightweight locks of Postgres. ARCHITECTURE.md has the table
//! of what each guards and what may run under it.

use crate::pg::lwlock::{self, Guard, Mode};

/// A lock of the segment. A process holds at most one of them at a time, so that there is no order
/// to keep.
#[derive(Clone, Copy)]
pub(super) enum Lock {
    /// Guards the databases' slots, the holds, the databases without a slot, and which database has
    /// which ring.
    Registry,
    /// Guards members, seats, announcements that wait, and the names that foreign nodes have led.
    Leaderships,
    /// Guards the gossip table, the processes that gossip, and suspects.
    Gossip,
    /// Guards the slots of stagers.
    Stagers,
    /// Guards the slots of takers, and their FIFO.
    Takers,
    /// Guards the processes that have claimed jobs as members.
    Claimants,
    /// Guards the ring of this number: its head, entries, bytes, role usages, and the waiters that
    /// are linked in it.
    Ring(usize),
}

impl Lock {
    /// The lock's number in the tranche.
    fn index(self) -> usize {
        match self {
            Lock::Registry => 0,
            Lock::Leaderships => 1,
            Lock::Gossip => 2,
            Lock::Stagers => 3,
            Lock::Takers => 4,
            Lock::Claimants => 5,
            Lock::Ring(ring) => 6 + ring,
        }
    }

    /// How many locks there are with `rings` rings.
    pub fn count(rings: usize) -> usize {
        Lock::Ring(rings).index()
    }

    /// Waits for the lock and holds it until the guard is dropped.
    pub fn acquire(self, mode: Mode) -> Guard {
        lwlock::acquire(self.index(), mode)
    }
}
