//! The stagers of all databases, and their alarms.
//!
//! The lock Stagers guards the slots. An alarm is a pair of atomics in the slot's place
//! (`logic::staging::alarm`). A process tells an alarm under the lock in shared mode, so the slot
//! has the same use meanwhile. It looks the slot up after its commit. So either it finds the slot of
//! a stager, or that stager has claimed its slot later, and sees the rows in its first look.

use super::Segment;
use super::locks::Lock;
use super::segment::{Padded, layout};
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::staging::alarm::{Alarm, NEVER};
use crate::logic::staging::slots::{Kept, StagedPrefix, Stagers, StagersView};
use crate::logic::times::WallTime;
use crate::pg::lwlock::Mode;
use crate::pg::{latch, time};

/// The alarms of a stager.
#[repr(C)]
pub struct Alarms {
    /// Of rows that become due: they are scheduled or retryable.
    pub due: Alarm,
    /// Of rows that are available already, with a due time in the future.
    pub later: Alarm,
}

/// The earliest due times that a transaction has to tell of; `NEVER` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueTimes {
    /// Of rows that are scheduled or retryable.
    pub due: WallTime,
    /// Of rows that are available already.
    pub later: WallTime,
}

impl DueTimes {
    /// No due time.
    pub const NONE: Self = Self { due: NEVER, later: NEVER };
}

impl Segment {
    /// Runs `body` with the stagers, under the lock Stagers in exclusive mode.
    pub fn stagers<R>(self, body: impl FnOnce(&mut Stagers<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Stagers.acquire(Mode::Exclusive);
        // SAFETY: an area of the lock that is held exclusively until `body` has returned.
        let mut stagers = unsafe { Stagers { slots: self.area(l.stagers, l.max_stagers) } };
        body(&mut stagers)
    }

    /// Runs `body` with the stagers to read, under the lock Stagers in shared mode.
    pub fn stagers_view<R>(self, body: impl FnOnce(StagersView<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Stagers.acquire(Mode::Shared);
        // SAFETY: an area of the lock that is held in shared mode until `body` has returned; no
        // process writes.
        let view = unsafe { StagersView { slots: &*self.area(l.stagers, l.max_stagers) } };
        body(view)
    }

    /// Returns the alarms of a slot; `None` when there is no slot of this number.
    pub fn alarms(self, slot: usize) -> Option<&'static Alarms> {
        let l = layout();
        // SAFETY: the area has atomics only, which need no lock.
        let all: &[Padded<Alarms>] = unsafe { self.area(l.alarms, l.max_stagers) };
        all.get(slot).map(|padded| &padded.0)
    }

    /// Does what `Stagers::keep` does, and clears the alarms of new uses of slots.
    pub fn keep_stagers(self, database: DatabaseOid, wanted: &[StagedPrefix], room: usize) -> Kept {
        self.stagers(|s| {
            let kept = s.keep(database, wanted, room);
            for alarms in kept.begun.iter().filter_map(|slot| self.alarms(*slot)) {
                alarms.due.clear();
                alarms.later.clear();
            }
            kept
        })
    }

    /// Tells the stager of a prefix, if there is one, at which times rows become due, and wakes the
    /// stager if it waits for a later time. Callable after commit.
    pub fn tell_stager(self, database: DatabaseOid, schema: SchemaOid, times: DueTimes) {
        let woken = self.stagers_view(|s| {
            let slot = s.slot_of_prefix(database, schema)?;
            let alarms = self.alarms(slot)?;
            let due = times.due < NEVER && alarms.due.tell(times.due);
            let later = times.later < NEVER && alarms.later.tell(times.later);
            let process = s.slots.get(slot)?.process;
            ((due || later) && process.pid != 0).then_some(process.procno)
        });
        latch::wake_if(woken);
    }

    /// Tells all stagers of a database to look at once for rows with any due time. Callable after
    /// commit.
    pub fn tell_all_stagers(self, database: DatabaseOid) {
        // Rows that are available and due already are there to be fetched.
        let times = DueTimes { due: WallTime(i64::MIN), later: time::now() };
        let mut slot = 0;
        while let Some(schema) = self.stagers_view(|s| s.next_schema(database, &mut slot)) {
            self.tell_stager(database, schema, times);
        }
    }
}
