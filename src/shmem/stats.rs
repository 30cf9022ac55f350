//! The counters of oban_stats. They are atomics, which need no lock. All functions are callable
//! after commit.

use std::sync::atomic::Ordering;

use super::Segment;
use super::segment::Counters;
use super::slots::SlotId;
use crate::logic::counter::Counter;
use crate::logic::ids::DatabaseOid;
use crate::pg::session;

/// Adds to a counter of this process's database. Without a slot nothing is counted.
pub fn count(counter: Counter, more: usize) {
    if more > 0
        && let Some(segment) = Segment::attached()
        && let Some(slot) = segment.own_slot()
    {
        segment.count_at(slot, &[(counter, more)]);
    }
}

/// Sets a counter of this process's database that is a measure. Without a slot nothing is set.
pub fn set(measure: Counter, value: u64) {
    if let Some(segment) = Segment::attached()
        && let Some(counters) = segment.own_slot().and_then(|id| segment.counters(id))
    {
        counters[measure as usize].store(value, Ordering::Relaxed);
    }
}

impl Segment {
    /// The counters of a slot. `None`: the generation is over. If the slot changes its database
    /// right after this look, the new database gets what this process adds.
    fn counters(self, id: SlotId) -> Option<&'static Counters> {
        let counters = self.slot_counters(id.slot)?;
        (counters.generation.load(Ordering::Relaxed) == id.generation).then_some(&counters.values)
    }

    /// Returns whether a slot's generation goes on.
    pub(super) fn is_current(self, id: SlotId) -> bool {
        self.counters(id).is_some()
    }

    /// Adds to counters of a slot. Nothing is counted when the generation is over.
    pub(super) fn count_at(self, id: SlotId, more: &[(Counter, usize)]) {
        if let Some(counters) = self.counters(id) {
            for (counter, more) in more.iter().filter(|(_, more)| *more > 0) {
                counters[*counter as usize].fetch_add(*more as u64, Ordering::Relaxed);
            }
        }
    }

    /// Adds to a counter of any database. Without a slot nothing is counted.
    pub(super) fn count_in(self, database: DatabaseOid, counter: Counter, more: usize) {
        if let Some(slot) = self.slot(database, |id, _, _| id) {
            self.count_at(slot, &[(counter, more)]);
        }
    }

    /// The values of all counters of this process's database, in the order of `Counter::ALL`.
    /// `None` without a slot.
    pub fn counted(self) -> Option<[u64; Counter::ALL.len()]> {
        let id = self.slot(session::database(), |id, _, _| id)?;
        Some(self.counters(id)?.each_ref().map(|counter| counter.load(Ordering::Relaxed)))
    }
}
