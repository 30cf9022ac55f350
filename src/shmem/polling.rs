//! Whether a database's relay polls the gossip table for local entries to broadcast.
//!
//! A relay with entries to broadcast polls: it looks every `obanrs.gossip_interval` by itself, so a
//! put need not wake it. A relay that finds no entry stops polling, and the next put has to wake
//! it. Relay and put each store first and load then, both sequentially consistent, so that no
//! wakeup is lost:
//!
//! * The relay clears the flag, then looks for an entry (`stop_polling`).
//! * A put writes its entry, then reads the flag (`wake_relay_after_put`).
//!
//! At least one of them sees what the other wrote. If the relay sees the entry, it polls on. If the
//! put sees the flag cleared, it sets the flag and wakes the relay.
//!
//! The flag is the generation of the database's slot, so that a flag of an earlier use of the slot
//! counts as cleared. A relay that dies leaves the flag set: the next relay polls at first anyway.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Segment;
use super::segment::layout;
use super::slots::SlotId;
use crate::logic::ids::DatabaseOid;
use crate::pg::{latch, session};

impl Segment {
    /// The flag of a slot: the slot's generation while the relay polls, else another number. `None`
    /// when there is no slot of this number.
    fn polling(self, slot: usize) -> Option<&'static AtomicU64> {
        let l = layout();
        // SAFETY: the area has atomics only, which need no lock.
        let all: &[AtomicU64] = unsafe { self.area(l.polling, l.max_databases) };
        all.get(slot)
    }

    /// Runs after a put. Wakes the relay of the database if the relay does not poll. Does so while
    /// obanrs.gossip_interval is 0, too: this session may not know yet that the setting has
    /// changed, and the relay is woken only once.
    pub(super) fn wake_relay_after_put(self, database: DatabaseOid) {
        // Reads the flag of the slot that this process remembers. If the slot is another database's
        // by now, the flag is another generation.
        if self.is_polling() {
            return;
        }
        let (slot, relay) = self.registry(|r| (r.slot(database), r.prepare_relay_wakeup(database)));
        if let Some((slot, generation)) = slot
            && let Some(polling) = self.polling(slot)
        {
            polling.store(generation, Ordering::SeqCst);
        }
        latch::wake_if(relay);
    }

    /// Whether the relay of this process's database polls. A put turns that on again.
    pub fn is_polling(self) -> bool {
        self.own_slot().is_some_and(|SlotId { slot, generation }| {
            self.polling(slot).is_some_and(|polling| polling.load(Ordering::SeqCst) == generation)
        })
    }

    /// Notes that this process, the relay, polls from now on.
    pub fn start_polling(self) {
        self.set_polling(true);
    }

    /// Stops polling. False: there is a local entry by now, and the relay polls on.
    pub fn stop_polling(self) -> bool {
        self.set_polling(false);
        let stops = !self.gossip().has_local(session::database());
        if !stops {
            self.start_polling();
        }
        stops
    }

    fn set_polling(self, polls: bool) {
        if let Some(SlotId { slot, generation }) = self.own_slot()
            && let Some(polling) = self.polling(slot)
        {
            polling.store(if polls { generation } else { 0 }, Ordering::SeqCst);
        }
    }
}
