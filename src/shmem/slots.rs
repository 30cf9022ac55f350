//! The slot of a database: what the bus has to know of the database, and how this process finds the
//! slot of the database that it is connected to.
//!
//! A process remembers its database's slot with the slot's generation. When the slot is freed, its
//! generation is over. A later use of the slot has another generation. So a process finds out that
//! what it remembers is over, and looks for its database's slot again.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::Segment;
use super::segment::layout;
use crate::logic::ids::DatabaseOid;
use crate::logic::lifecycle::Registry;
use crate::logic::ring::pool::Pool;
use crate::pg::session;

/// What the bus has to know of a database's slot. Guarded by the lock Registry. Zeroed memory is a
/// slot that no database has used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// The generation of the slot that `relay` and the slot's counters are about; 0 for none.
    generation: u64,
    /// The process number of the database's relay plus 1; 0 without a relay.
    pub relay: u32,
}

/// The slot of a database in one generation of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId {
    pub slot: usize,
    pub generation: u64,
}

thread_local! {
    /// The slot of this process's database, as it was when this process last looked. `None`: it had
    /// none.
    static OWN: Cell<Option<SlotId>> = const { Cell::new(None) };
}

impl Segment {
    /// Runs `body` with the registry and the pool of rings, under the lock Registry in exclusive
    /// mode.
    pub(super) fn ring_pool<R>(self, body: impl FnOnce(&mut Registry<'_>, &mut Pool<'_>) -> R) -> R {
        let l = layout();
        self.registry(|r| {
            // SAFETY: an area and a field of the lock that `registry` holds exclusively until
            // `body` has returned.
            let mut pool = unsafe {
                Pool {
                    owners: self.area(l.owners, l.max_rings),
                    last_generation: &mut (*self.root()).last_ring_generation,
                }
            };
            body(r, &mut pool)
        })
    }

    /// Runs `body` with a database's slot and the pool of rings, under the lock Registry. `None`
    /// when the database has no slot. The first call in a generation of the slot sets the counters
    /// of the slot to zero.
    pub(super) fn slot<R>(
        self,
        database: DatabaseOid,
        body: impl FnOnce(SlotId, &mut Slot, &mut Pool<'_>) -> R,
    ) -> Option<R> {
        let l = layout();
        self.ring_pool(|r, pool| {
            let (at, generation) = r.slot(database)?;
            // SAFETY: an area of the lock that `ring_pool` holds exclusively until this closure has
            // returned.
            let slots: &mut [Slot] = unsafe { self.area(l.slots, l.max_databases) };
            let slot = slots.get_mut(at)?;
            if slot.generation != generation {
                *slot = Slot { generation, relay: 0 };
                let counters = self.slot_counters(at)?;
                counters.values.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
                counters.generation.store(generation, Ordering::Relaxed);
            }
            Some(body(SlotId { slot: at, generation }, slot, pool))
        })
    }

    /// Returns the slot of this process's database. This process looks for the slot only if it
    /// remembers none, or if the generation that it remembers is over. `None`: the database has no
    /// slot. The generation that is returned may end at any time.
    pub fn own_slot(self) -> Option<SlotId> {
        OWN.get().filter(|id| self.is_current(*id)).or_else(|| {
            remember(self.slot(session::database(), |id, _, _| id));
            OWN.get()
        })
    }

    /// Ends a generation of a slot that was freed, for the processes that remember it. Does nothing
    /// if the slot has another generation by now.
    pub(super) fn end_slot(self, id: SlotId) {
        if let Some(counters) = self.slot_counters(id.slot) {
            let (over, order) = (0, Ordering::Relaxed);
            _ = counters.generation.compare_exchange(id.generation, over, order, order);
        }
    }
}

/// Remembers the slot of this process's database.
pub(super) fn remember(slot: Option<SlotId>) {
    OWN.set(slot);
}
