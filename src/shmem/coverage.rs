//! The coverage of a database's relay: the span of time in which the relay has heard all foreign
//! gossip (`logic::orphans::Coverage`). Only the relay writes the coverage, which is atomics and
//! needs no lock.

use std::sync::atomic::{AtomicI64, Ordering};

use super::Segment;
use super::segment::layout;
use crate::logic::ids::DatabaseOid;
use crate::logic::orphans::Coverage;
use crate::logic::times::ClockTime;
use crate::pg::{clock, latch};

/// The coverage of one database's slot, as clock readings. Zeroed memory is a relay that does not
/// listen.
#[repr(C)]
pub(super) struct SharedCoverage {
    /// The relay has missed nothing since then; 0 while it does not listen.
    since: AtomicI64,
    /// The relay has gone through everything that was sent until then; 0 for never.
    at: AtomicI64,
}

impl Segment {
    /// The coverage of a slot; `None` when there is no slot of this number.
    fn shared_coverage(self, slot: usize) -> Option<&'static SharedCoverage> {
        let l = layout();
        // SAFETY: the area has atomics only, which need no lock.
        let all: &[SharedCoverage] = unsafe { self.area(l.coverages, l.max_databases) };
        all.get(slot)
    }

    fn own_coverage(self) -> Option<&'static SharedCoverage> {
        self.shared_coverage(self.own_slot()?.slot)
    }

    /// Notes that this relay does not listen.
    pub fn end_coverage(self) {
        if let Some(coverage) = self.own_coverage() {
            coverage.since.store(0, Ordering::SeqCst);
        }
    }

    /// Notes that this relay may have missed something up to now.
    pub fn restart_coverage(self) {
        if let Some(coverage) = self.own_coverage() {
            coverage.since.store(clock::now().0, Ordering::SeqCst);
        }
    }

    /// Notes that this relay listens and has gone through everything that was sent until the clock
    /// reading `at`.
    pub fn extend_coverage(self, at: ClockTime) {
        if let Some(coverage) = self.own_coverage() {
            coverage.at.store(at.0, Ordering::SeqCst);
        }
    }

    /// The coverage of a database's relay. Reads `at` first: what the relay misses after that does
    /// not concern the span until `at`.
    pub fn coverage(self, database: DatabaseOid) -> Coverage {
        let slot = self.registry(|r| r.slot(database));
        slot.and_then(|(slot, _)| self.shared_coverage(slot)).map_or_else(Coverage::default, |coverage| {
            let at = ClockTime(coverage.at.load(Ordering::SeqCst));
            Coverage { since: ClockTime(coverage.since.load(Ordering::SeqCst)), at }
        })
    }

    /// Wakes the relay to go through what has come, so that the next call of `coverage` has a newer
    /// answer.
    pub fn update_coverage(self, database: DatabaseOid) {
        latch::wake_if(self.registry(|r| r.prepare_relay_wakeup(database)));
    }
}
