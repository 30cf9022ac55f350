//! The rings: this process's way to its database's own, publishing, and sleeping.
//!
//! There are fewer rings than slots of databases (`logic::ring::pool`). A process remembers its database's slot with
//! the slot's birth, and its ring with the ring's life; a ring in another life refuses it, and it looks again. A
//! database without a slot (more databases than obanrs.max_databases, or the extension was just dropped), or for
//! which no ring is free, has none: its transactions send natively. Counters are of the slot.
//!
//! A ring begins with its first message or reader, often while the relay runs already. The process that begins it
//! enters the relay in it and then looks whether the slot still has this relay. A relay that ends takes itself out of
//! the slot first and out of the ring second, so one of the two processes sees the other, and no ring keeps a relay
//! that has ended.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::config;
use crate::logic::ring::pool::{Pool, RingId};
use crate::logic::ring::{
    Audience, Batch, Channel, Charge, Incoming, MAX_ROLES, Progress, Quota, Ring, RingHead, Route, View,
};
use crate::pg::lwlock::{self, Lock, Mode};
use crate::pg::{clock, latch, session, time};

use crate::logic::lifecycle::Registry;

use super::{area, layout, registry, root};

/// What oban_stats shows of a database. Counted since it has its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Messages that were given a position.
    Published,
    /// Messages that the relay sent.
    Relayed,
    /// Wake-ups that the relay did not send, as an equal one was in the same transaction of its.
    Merged,
    /// Messages that nobody was there to LISTEN to.
    Unheard,
    RelayTransactions,
    /// Messages that their own transactions sent natively: signals, leaders, and what follows.
    Native,
    /// Of those, the ones for which there was no relay or no room.
    NativeFallbacks,
    /// Transactions whose messages found no room in the ring.
    Gaps,
    /// Wake-ups that triggers dropped.
    Dropped,
    /// Calls of oban_poll and oban_wait.
    Polls,
    /// Leaderships that a keeper gave to a member.
    Elections,
    /// Leaderships of members that ended by their lease.
    Lapses,
    /// Calls of oban_fence with a term that was not held.
    FencesRefused,
    /// Calls of oban_gossip_put that put something.
    GossipPuts,
    /// Entries of oban_gossip that ended by their ttl.
    GossipExpired,
    /// Rounds in which entries were sent.
    GossipBroadcasts,
    /// Checks that were too long for a message and lost something.
    GossipShortened,
    /// Checks of other nodes that were taken in.
    GossipIngested,
    /// What came on a channel of gossip and was no check.
    GossipMalformed,
    /// Checks of other nodes for which there was no room.
    GossipRefused,
    /// Not counted but set: how many entries the last broadcast had.
    GossipBroadcastEntries,
    /// Not counted but set: for how long, in microseconds, a name had no leader before the last election that
    /// followed another leadership.
    LastFailover,
}

impl Counter {
    pub const ALL: [Counter; 22] = [
        Counter::Published,
        Counter::Relayed,
        Counter::Merged,
        Counter::Unheard,
        Counter::RelayTransactions,
        Counter::Native,
        Counter::NativeFallbacks,
        Counter::Gaps,
        Counter::Dropped,
        Counter::Polls,
        Counter::Elections,
        Counter::Lapses,
        Counter::FencesRefused,
        Counter::GossipPuts,
        Counter::GossipExpired,
        Counter::GossipBroadcasts,
        Counter::GossipShortened,
        Counter::GossipIngested,
        Counter::GossipMalformed,
        Counter::GossipRefused,
        Counter::GossipBroadcastEntries,
        Counter::LastFailover,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Counter::Published => "published",
            Counter::Relayed => "relayed",
            Counter::Merged => "merged",
            Counter::Unheard => "unheard",
            Counter::RelayTransactions => "relay_transactions",
            Counter::Native => "native",
            Counter::NativeFallbacks => "native_fallbacks",
            Counter::Gaps => "gaps",
            Counter::Dropped => "dropped",
            Counter::Polls => "polls",
            Counter::Elections => "elections",
            Counter::Lapses => "lapses",
            Counter::FencesRefused => "fences_refused",
            Counter::GossipPuts => "gossip_puts",
            Counter::GossipExpired => "gossip_expired",
            Counter::GossipBroadcasts => "gossip_broadcasts",
            Counter::GossipShortened => "gossip_shortened",
            Counter::GossipIngested => "gossip_taken_in",
            Counter::GossipMalformed => "gossip_malformed",
            Counter::GossipRefused => "gossip_refused",
            Counter::GossipBroadcastEntries => "gossip_broadcast_entries",
            Counter::LastFailover => "last_failover_us",
        }
    }
}

pub type Counters = [AtomicU64; Counter::ALL.len()];

/// On cache lines of its own: what one database writes does not slow another.
#[repr(C, align(128))]
pub struct Padded<T>(pub T);

/// What the bus has to know of a database's slot. Under the lock Registry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// The use of the slot that this is about.
    generation: u64,
    /// The process number of its relay plus 1; 0 without one.
    relay: u32,
}

/// A use of a database's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotId {
    slot: usize,
    generation: u64,
}

/// A ring in one of its lives, and the slot whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHandle {
    slot_id: SlotId,
    ring_id: RingId,
}

/// The way of a transaction that is about to commit.
#[derive(Clone, Copy)]
pub struct Reserved {
    pub ring: RingHandle,
    pub route: Route,
    /// Whether messages wait for a relay that does not come: this transaction sends them.
    pub stranded: bool,
}

/// How many messages are published, and how many sleepers are taken, while the lock is held once.
const CHUNK: usize = 64;

thread_local! {
    static SLOT: Cell<Option<SlotId>> = const { Cell::new(None) };
    static RING: Cell<Option<RingHandle>> = const { Cell::new(None) };
    /// The ring in which this process sleeps.
    static WAITING_IN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `body` on a ring of the pool.
fn locked<R>(ring: usize, mode: Mode, body: impl FnOnce(&mut Ring<'_>) -> R) -> Option<R> {
    let (root, l) = (root().ok()?, layout());
    let (entries, bytes) = l.ring_capacity;
    let _guard = lwlock::acquire(Lock::Ring(ring), mode);
    // SAFETY: the areas of the lock that is held until `body` has returned. Held in shared mode, `body` is one
    // of this file's that read only.
    let mut ring = unsafe {
        Ring {
            head: &mut area::<Padded<_>>(root, l.rings, l.max_rings)[ring].0,
            entries: &mut area(root, l.ring_entries, entries * l.max_rings)
                [entries * ring..entries * (ring + 1)],
            bytes: &mut area(root, l.ring_bytes, bytes * l.max_rings)[bytes * ring..bytes * (ring + 1)],
            roles: &mut area(root, l.roles, MAX_ROLES * l.max_rings)
                [MAX_ROLES * ring..MAX_ROLES * (ring + 1)],
            waiters: area(root, l.waiters, l.max_processes),
        }
    };
    Some(body(&mut ring))
}

/// The same, for this life of it; `None` when that is over.
fn of<R>(handle: RingHandle, body: impl FnOnce(&mut Ring<'_>) -> R) -> Option<R> {
    let RingId { ring, generation } = handle.ring_id;
    locked(ring, Mode::Exclusive, |ring| ring.view().is_of(generation).then(|| body(ring))).flatten()
}

/// Reads this life of a ring; `None` when that is over.
fn view<R>(handle: RingHandle, body: impl FnOnce(View<'_>) -> R) -> Option<R> {
    let RingId { ring, generation } = handle.ring_id;
    let read = |ring: &mut Ring<'_>| ring.view().is_of(generation).then(|| body(ring.view()));
    locked(ring, Mode::Shared, read).flatten()
}

/// Runs `body` with the pool of rings, under the lock Registry.
fn pool<R>(body: impl FnOnce(&mut Registry<'_>, &mut Pool<'_>) -> R) -> Option<R> {
    let (root, l) = (root().ok()?, layout());
    registry(|r| {
        // SAFETY: areas of the lock that is held exclusively until `body` has returned.
        let mut pool = unsafe {
            Pool {
                owners: area(root, l.owners, l.max_rings),
                last_generation: &mut (*root).last_ring_generation,
            }
        };
        body(r, &mut pool)
    })
    .ok()
}

/// The same, with a database's slot; `None` when it has none.
fn with_slot<R>(database: u32, body: impl FnOnce(SlotId, &mut Slot, &mut Pool<'_>) -> R) -> Option<R> {
    let (root, l) = (root().ok()?, layout());
    pool(|r, pool| {
        let (at, generation) = r.slot(database)?;
        // SAFETY: as above.
        let slots: &mut [Slot] = unsafe { area(root, l.slots, l.max_databases) };
        let slot = slots.get_mut(at)?;
        if slot.generation != generation {
            *slot = Slot { generation, relay: 0 };
            counters(at)?.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
        }
        Some(body(SlotId { slot: at, generation }, slot, pool))
    })
    .flatten()
}

/// The slot of this process's database, as this process remembers it, if it has one.
fn slot_id() -> Option<SlotId> {
    SLOT.get().or_else(|| {
        SLOT.set(with_slot(session::database(), |slot_id, _, _| slot_id));
        SLOT.get()
    })
}

/// The ring of this process's database, if there is one. Takes one if it has none yet and `takes` says so.
fn own_ring(takes: bool) -> Option<RingHandle> {
    if let Some(handle) = RING.get() {
        return Some(handle);
    }
    let found = with_slot(session::database(), |slot_id, slot, pool| {
        let ring_id = if takes { pool.take(slot_id.generation) } else { pool.of(slot_id.generation) };
        (slot_id, ring_id, slot.relay)
    });
    SLOT.set(found.map(|(slot_id, ..)| slot_id));
    let (slot_id, ring_id, relay) = found?;
    let handle = RingHandle { slot_id, ring_id: ring_id? };
    let root = root().ok()?;
    // SAFETY: an atomic in the segment.
    let floor = unsafe { &(*root).floor }.load(Ordering::SeqCst);
    let begins = locked(handle.ring_id.ring, Mode::Exclusive, |ring| {
        let begins = ring.open(handle.ring_id.generation, floor)?;
        if begins && relay != 0 {
            ring.attach_relay(relay as i32 - 1);
        }
        Some(begins)
    })
    .flatten()?;
    if begins && relay != 0 {
        confirm_relay(handle, relay);
    }
    RING.set(Some(handle));
    Some(handle)
}

/// This process has entered a relay into a ring: tells it, or takes it out again if it has gone meanwhile.
fn confirm_relay(handle: RingHandle, relay: u32) {
    let procno = relay as i32 - 1;
    let is_there =
        |slot_id: SlotId, slot: &mut Slot, _: &mut Pool<'_>| slot_id == handle.slot_id && slot.relay == relay;
    if with_slot(session::database(), is_there) == Some(true) {
        latch::wake(procno);
    } else {
        of(handle, |ring| ring.detach_relay(procno));
    }
}

/// Runs `body` with the ring of this process's database. Twice at most: the slot may have changed since this
/// process last looked.
fn with_own_ring<R>(takes: bool, mut body: impl FnMut(RingHandle) -> Option<R>) -> Option<R> {
    for _ in 0..2 {
        match body(own_ring(takes)?) {
            None => RING.set(None),
            found => return found,
        }
    }
    None
}

/// Ends the life of the ring of a database whose slot was freed, if it had one: readers go and look for another.
pub fn close(generation: u64) {
    let Some(ring_id) = pool(|_, pool| pool.of(generation)).flatten() else { return };
    let Some(position) = locked(ring_id.ring, Mode::Exclusive, |ring| ring.close(ring_id.generation)) else {
        return;
    };
    if let Ok(root) = root() {
        // SAFETY: an atomic in the segment.
        unsafe { &(*root).floor }.fetch_max(position + 1, Ordering::SeqCst);
    }
    wake_waiters(ring_id.ring, Audience::All);
    pool(|_, pool| pool.give_back(generation));
}

/// The last position of all rings. In the postmaster when no other process is left: it takes no lock, which a
/// process that was killed may hold.
pub(super) fn last_position() -> i64 {
    let Ok(root) = root() else { return 0 };
    // SAFETY: the area; nobody writes to it any more.
    let rings: &[Padded<RingHead>] = unsafe { area(root, layout().rings, layout().max_rings) };
    rings.iter().map(|ring| ring.0.position()).max().unwrap_or(0)
}

/// Reserves room for the messages of a transaction that is about to commit; where there is a ring.
pub fn reserve(charges: &mut [Charge]) -> Option<Reserved> {
    let quota = quota();
    with_own_ring(!charges.is_empty(), |ring| {
        let reserve =
            |r: &mut Ring<'_>| (r.view().is_stranded(clock::now), r.reserve(charges, quota, clock::now));
        let (stranded, route) = of(ring, reserve)?;
        Some(Reserved { ring, route, stranded })
    })
}

/// Gives back what `reserve` gave, at the transaction's abort.
pub fn give_back(handle: RingHandle, charges: &[Charge]) {
    of(handle, |ring| ring.give_back(charges));
}

/// What one role with a limit may have waiting in a ring.
fn quota() -> Quota {
    let part = |all: usize| (all * config::role_share() / 100).max(1);
    let (entries, bytes) = layout().ring_capacity;
    Quota { entries: part(entries), bytes: part(bytes) }
}

/// Publishes messages for which room was reserved, and tells of `gap` more that are not in the ring. Wakes
/// whom it concerns. After commit: nothing here fails. False if the database lost its slot meanwhile, as the
/// extension was dropped: then nothing is published any more.
pub fn publish<'m>(
    handle: RingHandle,
    messages: impl ExactSizeIterator<Item = Incoming<'m>>,
    gap: usize,
) -> bool {
    let (sent_at, now, mut messages) = (time::now(), clock::now(), messages);
    loop {
        let chunk = messages.len().min(CHUNK);
        let (mut keys, mut woken) = ([0; CHUNK], [0; CHUNK]);
        let published = of(handle, |ring| {
            let waited = ring.view().stranded_at().is_some();
            messages.by_ref().take(chunk).for_each(|message| ring.append(&message, sent_at, now));
            let waits = !waited && ring.view().stranded_at().is_some();
            let last = messages.len() == 0;
            let count = ring.keys(chunk, &mut keys).map_or(0, <[u32]>::len);
            let tell_all = last && gap > 0;
            if last {
                ring.skip(gap);
            }
            let audience = if tell_all { Audience::All } else { Audience::Keys(&keys[..count]) };
            (ring.wake_relay(), ring.wake(audience, &mut woken), count, tell_all, waits)
        });
        let Some((relay, waiters, count, tell_all, waits)) = published else { return false };
        if waits {
            tell_keeper();
        }
        relay.into_iter().for_each(latch::wake);
        woken[..waiters].iter().for_each(|procno| latch::wake(*procno));
        if waiters == CHUNK {
            wake_waiters(
                handle.ring_id.ring,
                if tell_all { Audience::All } else { Audience::Keys(&keys[..count]) },
            );
        }
        if messages.len() == 0 {
            return true;
        }
    }
}

/// The relay has ended since room was reserved: the keeper has to send what waits, should no other relay come.
fn tell_keeper() {
    let keeper = registry(|r| r.prepare_wakeup(session::database())).ok().flatten();
    keeper.into_iter().for_each(latch::wake);
}

fn wake_waiters(ring: usize, audience: Audience<'_>) {
    loop {
        let mut woken = [0; CHUNK];
        let count = locked(ring, Mode::Exclusive, |ring| ring.wake(audience, &mut woken)).unwrap_or(0);
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

/// Copies messages behind `after`; `None` without a ring.
pub fn read(after: i64, channels: &[Channel], batch: &mut Batch) -> Option<Progress> {
    with_own_ring(true, |handle| view(handle, |ring| ring.read(after, channels, batch)))
}

/// The same; where there is nothing to read, this process is a sleeper from then on, whose latch is set by the
/// next message that concerns it. `stop_waiting` has to follow.
pub fn read_or_wait(after: i64, channels: &[Channel], batch: &mut Batch) -> Option<Progress> {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    REGISTERED.call_once(|| session::before_exit(exited));
    stop_waiting();
    with_own_ring(true, |handle| {
        of(handle, |ring| {
            let progress = ring.view().read(after, channels, batch);
            if batch.len() == 0 && progress.missed == Some(0) && !progress.more {
                WAITING_IN.set(Some(handle.ring_id.ring));
                ring.start_waiting(latch::my_procno(), channels);
            }
            progress
        })
    })
}

/// This process is no sleeper any more.
pub fn stop_waiting() {
    if let Some(ring) = WAITING_IN.take() {
        locked(ring, Mode::Exclusive, |ring| ring.stop_waiting(latch::my_procno()));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    stop_waiting();
}

/// The relay's side of a ring.
pub mod relay {
    use super::*;

    /// This process is the relay of its database; false when that has no slot.
    pub fn attach() -> bool {
        let relay = latch::my_procno() as u32 + 1;
        with_slot(session::database(), |_, slot, _| slot.relay = relay).is_some()
    }

    /// The ring of its database, once there is one, with this process as its relay. The process that takes it wakes
    /// this one.
    pub fn ring() -> Option<RingHandle> {
        with_own_ring(false, |handle| {
            of(handle, |ring| ring.attach_relay(latch::my_procno())).map(|()| handle)
        })
    }

    /// This process is the relay no longer.
    pub fn detach() {
        let procno = latch::my_procno();
        with_slot(session::database(), |_, slot, _| {
            if slot.relay == procno as u32 + 1 {
                slot.relay = 0;
            }
        });
        with_own_ring(false, |handle| of(handle, |ring| ring.detach_relay(procno)));
    }

    /// Copies what is to be sent, until the batch is full: how far that is, for `sent`, and whether there is more.
    pub fn unsent(handle: RingHandle, batch: &mut Batch) -> Option<(u64, bool)> {
        view(handle, |ring| ring.unsent(batch))
    }

    /// This process, the relay, sent everything before.
    pub fn sent(handle: RingHandle, ordinal: u64) {
        of(handle, |ring| ring.relayed_by_relay(ordinal, clock::now()));
    }

    /// Everything before was sent in the relay's place.
    pub fn sent_by_others(handle: RingHandle, ordinal: u64) {
        of(handle, |ring| ring.relayed(ordinal));
    }

    /// By the clock that nobody sets: when what waits in the ring of this database has waited for too long without a
    /// relay. `None` when there is one, or nothing waits.
    pub fn stranded_at() -> Option<i64> {
        with_own_ring(false, |handle| view(handle, |ring| ring.stranded_at())).flatten()
    }

    /// The next message will set this process's latch; false when there is something to send.
    pub fn start_waiting(handle: RingHandle) -> bool {
        of(handle, |ring| ring.relay_starts_waiting()).unwrap_or(true)
    }
}

fn counters(slot: usize) -> Option<&'static Counters> {
    let (root, l) = (root().ok()?, layout());
    // SAFETY: atomics in the segment.
    let all: &[Padded<Counters>] = unsafe { area(root, l.counters, l.max_databases) };
    all.get(slot).map(|padded| &padded.0)
}

/// Adds to counters of a ring's database. Callable after commit.
pub fn count_all(ring: RingHandle, more: &[(Counter, usize)]) {
    count_at(ring.slot_id, more);
}

fn count_at(slot_id: SlotId, more: &[(Counter, usize)]) {
    if let Some(counters) = counters(slot_id.slot) {
        for (counter, more) in more.iter().filter(|(_, more)| *more > 0) {
            counters[*counter as usize].fetch_add(*more as u64, Ordering::Relaxed);
        }
    }
}

/// Adds to a counter of this process's database. Callable after commit.
pub fn count(counter: Counter, more: usize) {
    if more > 0
        && let Some(slot_id) = slot_id()
    {
        count_at(slot_id, &[(counter, more)]);
    }
}

/// Adds to a counter of any database that has a slot.
pub fn count_in(database: u32, counter: Counter, more: usize) {
    if let Some(slot_id) = with_slot(database, |slot_id, _, _| slot_id) {
        count_at(slot_id, &[(counter, more)]);
    }
}

/// The slot of this process's database and its birth, as this process remembers them: that life may be over.
pub fn own_slot() -> Option<(usize, u64)> {
    slot_id().map(|slot_id| (slot_id.slot, slot_id.generation))
}

/// Sets a counter of this process's database that is a measure.
pub fn set(measure: Counter, value: u64) {
    if let Some(counters) = slot_id().and_then(|slot_id| counters(slot_id.slot)) {
        counters[measure as usize].store(value, Ordering::Relaxed);
    }
}

/// All counters of this database, and what of its ring is used and waits for the relay: (bytes in use, bytes
/// in all, messages that wait); zeros while it has no ring. `None` without a slot.
pub fn stats() -> Option<([u64; Counter::ALL.len()], (u64, u64, u64))> {
    let slot_id = with_slot(session::database(), |slot_id, _, _| slot_id)?;
    let counters = counters(slot_id.slot)?.each_ref().map(|counter| counter.load(Ordering::Relaxed));
    let ring = with_own_ring(false, |handle| view(handle, |ring| (ring.used(), ring.backlog())));
    Some((counters, ring.map_or((0, 0, 0), |((used, all), waiting)| (used, all, waiting))))
}

/// Whether this database has a ring, and how many are free; `None` without a slot.
pub fn ring_availability() -> Option<(bool, usize)> {
    with_slot(session::database(), |slot_id, _, pool| (pool.of(slot_id.generation).is_some(), pool.free()))
}
