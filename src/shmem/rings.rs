//! The ring of this process's database: publishing, reading, waiting, and the relay's side.
//!
//! There are at most as many rings as slots of databases, by default fewer (`logic::ring::pool`). A
//! process remembers its database's ring with the ring's generation. A ring in another generation
//! refuses the process, and the process looks for its ring again. A database has no ring while it
//! has no slot (there are more databases than obanrs.max_databases, or the extension was just
//! dropped), or while no ring is free. Then its transactions send by native NOTIFY.
//!
//! A ring begins with its first message or reader, often while the relay runs already. The process
//! that begins the ring attaches the relay to it, and then looks whether the slot still has this
//! relay. A relay that ends leaves the slot first and the ring second. So one of the two processes
//! sees the other, and no ring keeps a relay that has ended.
//!
//! Functions return `None` or false where there is no ring. Functions marked "Callable after
//! commit" raise no error, so that they may run after a commit.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::Segment;
use super::locks::Lock;
use super::segment::{Padded, layout};
use super::slots::{self, Slot, SlotId};
use crate::config;
use crate::logic::counter::Counter;
use crate::logic::ring::pool::{Pool, RingId};
use crate::logic::ring::{
    Audience, Batch, Channel, Charge, Incoming, MAX_ROLES, Progress, Quota, Ring, Route, View,
};
use crate::logic::times::ClockTime;
use crate::pg::lwlock::Mode;
use crate::pg::{clock, latch, session, time};

/// A ring in one generation, and the slot of the database that has the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHandle {
    slot_id: SlotId,
    ring_id: RingId,
}

/// The route of a transaction that is about to commit.
#[derive(Clone, Copy)]
pub struct Reserved {
    pub ring: RingHandle,
    pub route: Route,
    /// Whether there are stranded messages in the ring: this transaction sends them.
    pub stranded: bool,
}

/// How many messages are published, and how many waiters are taken out, while the lock is held
/// once.
const CHUNK: usize = 64;

thread_local! {
    /// The ring of this process's database, as it was when this process last looked. `None`: it had
    /// none.
    static RING: Cell<Option<RingHandle>> = const { Cell::new(None) };
    /// The number of the ring in which this process is a waiter.
    static WAITING_IN: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Segment {
    /// Runs `body` with a ring of the pool, under the ring's lock.
    fn ring<R>(self, ring: usize, mode: Mode, body: impl FnOnce(&mut Ring<'_>) -> R) -> R {
        let l = layout();
        let (entries, bytes) = l.ring_capacity;
        let _guard = Lock::Ring(ring).acquire(mode);
        // SAFETY: the areas of the lock that is held until `body` has returned. Each caller in this
        // file that holds the lock in shared mode gives a `body` that only reads.
        let mut ring = unsafe {
            Ring {
                head: &mut self.area::<Padded<_>>(l.rings, l.max_rings)[ring].0,
                entries: &mut self.area(l.ring_entries, entries * l.max_rings)
                    [entries * ring..entries * (ring + 1)],
                bytes: &mut self.area(l.ring_bytes, bytes * l.max_rings)[bytes * ring..bytes * (ring + 1)],
                roles: &mut self.area(l.roles, MAX_ROLES * l.max_rings)
                    [MAX_ROLES * ring..MAX_ROLES * (ring + 1)],
                waiters: self.area(l.waiters, l.max_processes),
            }
        };
        body(&mut ring)
    }
}

/// Runs `body` with a ring to change it. `None`: this generation of the ring is over.
fn change<R>(handle: RingHandle, body: impl FnOnce(&mut Ring<'_>) -> R) -> Option<R> {
    let RingId { ring, generation } = handle.ring_id;
    let segment = Segment::attached()?;
    segment.ring(ring, Mode::Exclusive, |ring| ring.view().is_of(generation).then(|| body(ring)))
}

/// Runs `body` with a ring to read it. `None`: this generation of the ring is over.
fn view<R>(handle: RingHandle, body: impl FnOnce(View<'_>) -> R) -> Option<R> {
    let RingId { ring, generation } = handle.ring_id;
    let segment = Segment::attached()?;
    segment.ring(ring, Mode::Shared, |ring| ring.view().is_of(generation).then(|| body(ring.view())))
}

/// The ring of this process's database. `None`: it has none. With `takes` the database takes a free
/// ring if it has none yet.
fn own_ring(takes: bool) -> Option<RingHandle> {
    if let Some(handle) = RING.get() {
        return Some(handle);
    }
    let segment = Segment::attached()?;
    let found = segment.slot(session::database(), |id, slot, pool| {
        let ring_id = if takes { pool.take(id.generation) } else { pool.of(id.generation) };
        (id, ring_id, slot.relay)
    });
    slots::remember(found.map(|(id, ..)| id));
    let (slot_id, ring_id, relay) = found?;
    let handle = RingHandle { slot_id, ring_id: ring_id? };
    let floor = segment.globals().floor.load(Ordering::SeqCst);
    let begins = segment.ring(handle.ring_id.ring, Mode::Exclusive, |ring| {
        let begins = ring.open(handle.ring_id.generation, floor)?;
        if begins && relay != 0 {
            ring.attach_relay(relay as i32 - 1);
        }
        Some(begins)
    })?;
    if begins && relay != 0 {
        confirm_relay(segment, handle, relay);
    }
    RING.set(Some(handle));
    Some(handle)
}

/// After this process has attached a relay to a ring: wakes the relay, or detaches it if the relay
/// has ended meanwhile.
fn confirm_relay(segment: Segment, handle: RingHandle, relay: u32) {
    let procno = relay as i32 - 1;
    let is_there =
        |id: SlotId, slot: &mut Slot, _: &mut Pool<'_>| id == handle.slot_id && slot.relay == relay;
    if segment.slot(session::database(), is_there) == Some(true) {
        latch::wake(procno);
    } else {
        change(handle, |ring| ring.detach_relay(procno));
    }
}

/// Runs `body` with the ring of this process's database, at most twice: the ring may have changed
/// since this process last looked. `takes` is for `own_ring`.
fn with_own_ring<R>(takes: bool, mut body: impl FnMut(RingHandle) -> Option<R>) -> Option<R> {
    for _ in 0..2 {
        match body(own_ring(takes)?) {
            None => RING.set(None),
            found => return found,
        }
    }
    None
}

/// Ends the generation of a slot that was freed, and closes the ring that it had. The ring's
/// readers are woken, and look for another ring.
pub fn close(segment: Segment, slot: SlotId) {
    segment.end_slot(slot);
    let Some(ring_id) = segment.ring_pool(|_, pool| pool.of(slot.generation)) else { return };
    let position = segment.ring(ring_id.ring, Mode::Exclusive, |ring| ring.close(ring_id.generation));
    segment.globals().floor.fetch_max(position + 1, Ordering::SeqCst);
    wake_waiters(segment, ring_id.ring, Audience::All);
    segment.ring_pool(|_, pool| pool.give_back(slot.generation));
}

/// Reserves room in the ring for the messages of a transaction that is about to commit. `None`:
/// there is no ring.
pub fn reserve(charges: &mut [Charge]) -> Option<Reserved> {
    let quota = quota();
    with_own_ring(!charges.is_empty(), |ring| {
        let reserve =
            |r: &mut Ring<'_>| (r.view().is_stranded(clock::now), r.reserve(charges, quota, clock::now));
        let (stranded, route) = change(ring, reserve)?;
        Some(Reserved { ring, route, stranded })
    })
}

/// Gives back the room that `reserve` reserved, when the transaction aborts.
pub fn give_back(handle: RingHandle, charges: &[Charge]) {
    change(handle, |ring| ring.give_back(charges));
}

/// What one role with a limit may have waiting in a ring.
fn quota() -> Quota {
    let part = |all: usize| (all * config::role_share() / 100).max(1);
    let (entries, bytes) = layout().ring_capacity;
    Quota { entries: part(entries), bytes: part(bytes) }
}

/// Publishes messages for which room was reserved, and a gap of `gap` messages that are not in the
/// ring. Wakes the relay and the waiters that the messages concern. Runs after the commit, where
/// nothing may fail (callable after commit). False: the database has lost its ring meanwhile,
/// because the extension was dropped, and nothing is published.
pub fn publish<'m>(
    handle: RingHandle,
    messages: impl ExactSizeIterator<Item = Incoming<'m>>,
    gap: usize,
) -> bool {
    let Some(segment) = Segment::attached() else { return false };
    let (sent_at, now, mut messages) = (time::now(), clock::now(), messages);
    loop {
        let chunk = messages.len().min(CHUNK);
        let (mut keys, mut woken) = ([0; CHUNK], [0; CHUNK]);
        let published = change(handle, |ring| {
            let waited_alone = ring.view().stranded_at().is_some();
            messages.by_ref().take(chunk).for_each(|message| ring.append(&message, sent_at, now));
            let waits_alone = !waited_alone && ring.view().stranded_at().is_some();
            let last = messages.len() == 0;
            let count = ring.keys(chunk, &mut keys).map_or(0, <[u32]>::len);
            let wakes_all = last && gap > 0;
            if last {
                ring.skip(gap);
            }
            let audience = if wakes_all { Audience::All } else { Audience::Keys(&keys[..count]) };
            (ring.wake_relay(), ring.wake(audience, &mut woken), count, wakes_all, waits_alone)
        });
        let Some((relay, waiters, count, wakes_all, waits_alone)) = published else { return false };
        if waits_alone {
            // The relay has ended since room was reserved. The keeper sends what waits if no other
            // relay comes.
            segment.wake_keeper(session::database());
        }
        latch::wake_if(relay);
        woken[..waiters].iter().for_each(|procno| latch::wake(*procno));
        if waiters == CHUNK {
            let audience = if wakes_all { Audience::All } else { Audience::Keys(&keys[..count]) };
            wake_waiters(segment, handle.ring_id.ring, audience);
        }
        if messages.len() == 0 {
            return true;
        }
    }
}

/// Takes waiters out of a ring and wakes them, `CHUNK` at a time.
fn wake_waiters(segment: Segment, ring: usize, audience: Audience<'_>) {
    loop {
        let mut woken = [0; CHUNK];
        let count = segment.ring(ring, Mode::Exclusive, |ring| ring.wake(audience, &mut woken));
        woken[..count].iter().for_each(|procno| latch::wake(*procno));
        if count < CHUNK {
            return;
        }
    }
}

/// The last position of this database.
pub fn position() -> Option<i64> {
    with_own_ring(true, |handle| view(handle, |ring| ring.position()))
}

/// Copies messages behind the position `after` into `batch`.
pub fn read(after: i64, channels: &[Channel], batch: &mut Batch) -> Option<Progress> {
    with_own_ring(true, |handle| view(handle, |ring| ring.read(after, channels, batch)))
}

/// Copies messages behind the position `after` into `batch`. Where there is nothing to read, this
/// process becomes a waiter: the next message on one of the channels sets its latch. Both happen
/// under one lock, so that no wakeup is lost. The caller has to call `stop_waiting` afterwards.
pub fn read_or_wait(after: i64, channels: &[Channel], batch: &mut Batch) -> Option<Progress> {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    REGISTERED.call_once(|| session::before_exit(exited));
    stop_waiting();
    with_own_ring(true, |handle| {
        change(handle, |ring| {
            let progress = ring.view().read(after, channels, batch);
            if batch.len() == 0 && progress.missed == Some(0) && !progress.more {
                WAITING_IN.set(Some(handle.ring_id.ring));
                ring.start_waiting(latch::my_procno(), channels);
            }
            progress
        })
    })
}

/// Takes this process out of the waiters.
pub fn stop_waiting() {
    if let Some(ring) = WAITING_IN.take()
        && let Some(segment) = Segment::attached()
    {
        segment.ring(ring, Mode::Exclusive, |ring| ring.stop_waiting(latch::my_procno()));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    stop_waiting();
}

/// Adds to counters of a ring's database. Callable after commit.
pub fn count_all(ring: RingHandle, more: &[(Counter, usize)]) {
    if let Some(segment) = Segment::attached() {
        segment.count_at(ring.slot_id, more);
    }
}

/// What of this database's ring is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingUsage {
    /// Bytes of messages in the ring.
    pub bytes_used: u64,
    /// Bytes that the ring can hold.
    pub bytes: u64,
    /// Messages that the relay has not sent.
    pub waiting: u64,
}

/// What of this database's ring is used.
pub fn usage() -> Option<RingUsage> {
    with_own_ring(false, |handle| {
        view(handle, |ring| {
            let (bytes_used, bytes) = ring.used();
            RingUsage { bytes_used, bytes, waiting: ring.backlog() }
        })
    })
}

/// Whether this database has a ring, and how many rings are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAvailability {
    pub has_ring: bool,
    pub free: usize,
}

/// Whether this database has a ring, and how many rings are free. `None`: the database has no slot.
pub fn availability() -> Option<RingAvailability> {
    Segment::attached()?.slot(session::database(), |id, _, pool| RingAvailability {
        has_ring: pool.of(id.generation).is_some(),
        free: pool.free(),
    })
}

/// The relay's side of a ring.
pub mod relay {
    use super::*;

    /// Notes in the slot that this process is the relay of the database. False: the database has no
    /// slot.
    pub fn attach(segment: Segment) -> bool {
        let relay = latch::my_procno() as u32 + 1;
        segment.slot(session::database(), |_, slot, _| slot.relay = relay).is_some()
    }

    /// The ring of the database, with this process as its relay. `None`: there is no ring yet. The
    /// process that takes one wakes this process.
    pub fn ring() -> Option<RingHandle> {
        with_own_ring(false, |handle| {
            change(handle, |ring| ring.attach_relay(latch::my_procno())).map(|()| handle)
        })
    }

    /// Takes this process out of the slot first and out of the ring second (see the head of this
    /// file).
    pub fn detach() {
        let procno = latch::my_procno();
        let Some(segment) = Segment::attached() else { return };
        segment.slot(session::database(), |_, slot, _| {
            if slot.relay == procno as u32 + 1 {
                slot.relay = 0;
            }
        });
        with_own_ring(false, |handle| change(handle, |ring| ring.detach_relay(procno)));
    }

    /// Copies messages that are to be sent until the batch is full. Returns how far the batch
    /// reaches, for `sent`, and whether there are more.
    pub fn unsent(handle: RingHandle, batch: &mut Batch) -> Option<(u64, bool)> {
        view(handle, |ring| ring.unsent(batch))
    }

    /// Notes that this process, the relay, has sent every message before `ordinal`.
    pub fn sent(handle: RingHandle, ordinal: u64) {
        change(handle, |ring| ring.passed_by_relay(ordinal, clock::now()));
    }

    /// Notes that another process has sent every message before `ordinal` in the relay's place.
    /// Callable after commit.
    pub fn sent_by_others(handle: RingHandle, ordinal: u64) {
        change(handle, |ring| ring.passed_by_others(ordinal));
    }

    /// The clock reading at which the messages in this database's ring count as stranded. `None`:
    /// there is a relay, or no message waits.
    pub fn stranded_at() -> Option<ClockTime> {
        with_own_ring(false, |handle| view(handle, |ring| ring.stranded_at())).flatten()
    }

    /// Has the next message set this process's latch. False: there is a message to send already.
    pub fn start_waiting(handle: RingHandle) -> bool {
        change(handle, |ring| ring.relay_starts_waiting()).unwrap_or(true)
    }
}
