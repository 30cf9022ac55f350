//! Members and seats in shared memory.

use std::sync::atomic::Ordering;

use super::Segment;
use super::locks::Lock;
use super::segment::{MAX_FOREIGN_NAMES, MAX_UNANNOUNCED, layout};
use crate::logic::ids::{DatabaseOid, MemberId, SchemaOid};
use crate::logic::leadership::{Leaderships, LeadershipsView};
use crate::pg::latch;
use crate::pg::lwlock::Mode;

impl Segment {
    /// A member id that this server never gave before, over restarts too.
    pub fn new_member_id(self) -> MemberId {
        MemberId(self.globals().last_member.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Runs `body` with members and seats, under the lock Leaderships in exclusive mode.
    pub fn leaderships<R>(self, body: impl FnOnce(&mut Leaderships<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Leaderships.acquire(Mode::Exclusive);
        // SAFETY: areas of the lock that is held exclusively until `body` has returned.
        let mut leaderships = unsafe {
            Leaderships {
                members: self.area(l.members, l.max_members),
                seats: self.area(l.seats, l.max_members),
                unannounced: self.area(l.unannounced, MAX_UNANNOUNCED),
                foreign: self.area(l.foreign, MAX_FOREIGN_NAMES),
            }
        };
        body(&mut leaderships)
    }

    /// Runs `body` with members and seats to read, under the lock Leaderships in shared mode.
    pub fn leaderships_view<R>(self, body: impl FnOnce(LeadershipsView<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Leaderships.acquire(Mode::Shared);
        // SAFETY: areas of the lock that is held in shared mode until `body` has returned; no
        // process writes.
        let view = unsafe {
            LeadershipsView {
                members: &*self.area(l.members, l.max_members),
                seats: &*self.area(l.seats, l.max_members),
            }
        };
        body(view)
    }

    /// Ends the members, leaderships and gossip of a schema that was dropped, and wakes the
    /// sessions that wait for an election in it. Callable after commit: nothing here allocates for
    /// the waiting sessions.
    pub fn forget_schema(self, database: DatabaseOid, schema: SchemaOid) {
        let mut waiting = [0; 64];
        let count = self.leaderships(|l| l.forget_schema(database, schema, &mut waiting));
        self.gossip().forget_schema(database, schema);
        waiting[..count].iter().for_each(|procno| latch::wake(*procno));
    }
}
