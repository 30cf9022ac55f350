//! The takers of all databases, under the lock Takers (`logic::takers`). A process has the slot with the
//! process number.
//!
//! A process that has made jobs available reads the count of takers first, without the lock. No wakeup is
//! lost by that: the process has committed before it reads. A taker is counted before it takes its
//! snapshot. So either the process sees the taker, or the taker's snapshot has the jobs. Both accesses are
//! sequentially consistent.

use std::sync::atomic::Ordering;

use super::Segment;
use super::locks::Lock;
use super::segment::layout;
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::takers::{Claimed, Next, QueueKey, Queues, Takers, Wakes};
use crate::pg::latch;
use crate::pg::lwlock::Mode;

/// The slot of this process.
fn own_slot() -> usize {
    latch::my_procno().unsigned_abs() as usize
}

impl Segment {
    /// Runs `body` with the takers, under the lock Takers in exclusive mode.
    fn takers<R>(self, body: impl FnOnce(&mut Takers<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Takers.acquire(Mode::Exclusive);
        // SAFETY: an area and a field of the lock that is held exclusively until `body` has returned.
        let mut takers = unsafe {
            Takers { fifo: &mut (*self.root()).takers, slots: self.area(l.takers, l.max_processes) }
        };
        let result = body(&mut takers);
        self.globals().takers.store(takers.fifo.arrived(), Ordering::SeqCst);
        result
    }

    /// Runs `body` with the takers, and wakes those that it returns, after the lock is released. Callable
    /// after commit.
    fn wake_takers(self, body: impl FnOnce(&mut Takers<'_>) -> Wakes) {
        self.wake_these(self.takers(body));
    }

    fn wake_these(self, wakes: Wakes) {
        wakes.procnos().iter().for_each(|procno| latch::wake(*procno));
        if wakes.overflow {
            (0..layout().max_processes).for_each(|slot| latch::wake_if(self.takers(|t| t.woken(slot))));
        }
    }

    /// Returns whether there is a taker in any database. Callable after commit.
    pub fn has_takers(self) -> bool {
        self.globals().takers.load(Ordering::SeqCst) > 0
    }

    /// Returns the hash of a queue's name, which is in the server's encoding.
    pub fn queue_key(self, queue: &[u8]) -> QueueKey {
        self.globals().queue_hash_key.hash(queue)
    }

    /// Makes this process a taker of these queues, and begins its first look.
    pub fn arrive(self, database: DatabaseOid, schema: SchemaOid, queues: &[QueueKey]) {
        self.wake_takers(|t| t.arrive(own_slot(), latch::my_process(), database, schema, queues));
    }

    /// Begins a look of this process (`Takers::begin_look`). False: this process has to end its wait, because
    /// the extension was dropped.
    pub fn begin_taking(self, restricted: bool) -> bool {
        self.takers(|t| t.begin_look(own_slot(), restricted))
    }

    /// Ends a look of this process that has found no job (`Takers::found_nothing`).
    pub fn took_nothing(self, paused: Queues) -> Next {
        let (next, wakes) = self.takers(|t| t.found_nothing(own_slot(), paused));
        self.wake_these(wakes);
        next
    }

    /// Returns whether this process was woken as a taker.
    pub fn is_woken_taker(self) -> bool {
        self.takers(|t| t.woken(own_slot()).is_some())
    }

    /// Ends the wait of this process, which has committed a claim. Callable after commit.
    pub fn took_jobs(self, claimed: Claimed) {
        self.wake_takers(|t| t.took(own_slot(), claimed));
    }

    /// Ends the wait of this process, which has no job (`Takers::leave`). Callable after commit.
    pub fn leave_takers(self) {
        self.wake_takers(|t| t.leave(own_slot()));
    }

    /// Wakes takers of a queue for `jobs` jobs that this process has committed. Callable after commit.
    pub fn publish_jobs(self, database: DatabaseOid, schema: SchemaOid, queue: QueueKey, jobs: u32) {
        self.wake_takers(|t| t.publish(database, schema, queue, jobs));
    }

    /// Makes takers look at a queue that was resumed; `None` for all queues of a prefix. Callable after
    /// commit.
    pub fn resume_queue(self, database: DatabaseOid, schema: SchemaOid, queue: Option<QueueKey>) {
        self.wake_takers(|t| t.resume(database, schema, queue));
    }

    /// Ends the waits of all takers of a database, because the extension was dropped. Callable after commit.
    pub fn revoke_takers(self, database: DatabaseOid) {
        self.wake_takers(|t| t.revoke(database));
    }

    /// Makes takers look at all queues of a database. Callable after commit.
    pub fn resume_all_queues(self, database: DatabaseOid) {
        self.wake_takers(|t| t.resume_all(database));
    }
}
