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
use crate::logic::ring::pool::{Pool, Use};
use crate::logic::ring::{
    Batch, Channel, Charge, HOLDERS, Head, Incoming, News, Progress, Ring, Share, View, Way,
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
    GossipTakenIn,
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
        Counter::GossipTakenIn,
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
            Counter::GossipTakenIn => "gossip_taken_in",
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
    birth: u64,
    /// The process number of its relay plus 1; 0 without one.
    relay: u32,
}

/// A use of a database's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Home {
    slot: usize,
    birth: u64,
}

/// A ring in one of its lives, and the slot whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    home: Home,
    used: Use,
}

/// The way of a transaction that is about to commit.
#[derive(Clone, Copy)]
pub struct Reserved {
    pub ring: Handle,
    pub way: Way,
    /// Whether messages wait for a relay that does not come: this transaction sends them.
    pub orphaned: bool,
}

/// How many messages are published, and how many sleepers are taken, while the lock is held once.
const CHUNK: usize = 64;

thread_local! {
    static HOME: Cell<Option<Home>> = const { Cell::new(None) };
    static OWN: Cell<Option<Handle>> = const { Cell::new(None) };
    /// The ring in which this process sleeps.
    static SLEEPING: Cell<Option<usize>> = const { Cell::new(None) };
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
            holders: &mut area(root, l.holders, HOLDERS * l.max_rings)[HOLDERS * ring..HOLDERS * (ring + 1)],
            sleepers: area(root, l.sleepers, l.max_processes),
        }
    };
    Some(body(&mut ring))
}

/// The same, for this life of it; `None` when that is over.
fn of<R>(handle: Handle, body: impl FnOnce(&mut Ring<'_>) -> R) -> Option<R> {
    let Use { ring, life } = handle.used;
    locked(ring, Mode::Exclusive, |ring| ring.view().is_of(life).then(|| body(ring))).flatten()
}

/// Reads this life of a ring; `None` when that is over.
fn view<R>(handle: Handle, body: impl FnOnce(View<'_>) -> R) -> Option<R> {
    let Use { ring, life } = handle.used;
    let read = |ring: &mut Ring<'_>| ring.view().is_of(life).then(|| body(ring.view()));
    locked(ring, Mode::Shared, read).flatten()
}

/// Runs `body` with the pool of rings, under the lock Registry.
fn pool<R>(body: impl FnOnce(&mut Registry<'_>, &mut Pool<'_>) -> R) -> Option<R> {
    let (root, l) = (root().ok()?, layout());
    registry(|r| {
        // SAFETY: areas of the lock that is held exclusively until `body` has returned.
        let mut pool =
            unsafe { Pool { places: area(root, l.places, l.max_rings), lives: &mut (*root).ring_lives } };
        body(r, &mut pool)
    })
    .ok()
}

/// The same, with a database's slot; `None` when it has none.
fn with_slot<R>(database: u32, body: impl FnOnce(Home, &mut Slot, &mut Pool<'_>) -> R) -> Option<R> {
    let (root, l) = (root().ok()?, layout());
    pool(|r, pool| {
        let (at, birth) = r.slot(database)?;
        // SAFETY: as above.
        let slots: &mut [Slot] = unsafe { area(root, l.slots, l.max_databases) };
        let slot = slots.get_mut(at)?;
        if slot.birth != birth {
            *slot = Slot { birth, relay: 0 };
            counters(at)?.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
        }
        Some(body(Home { slot: at, birth }, slot, pool))
    })
    .flatten()
}

/// The slot of this process's database, as this process remembers it, if it has one.
fn home() -> Option<Home> {
    HOME.get().or_else(|| {
        HOME.set(with_slot(session::database(), |home, _, _| home));
        HOME.get()
    })
}

/// The ring of this process's database, if there is one. Takes one if it has none yet and `takes` says so.
fn own(takes: bool) -> Option<Handle> {
    if let Some(handle) = OWN.get() {
        return Some(handle);
    }
    let found = with_slot(session::database(), |home, slot, pool| {
        let used = if takes { pool.take(home.birth) } else { pool.of(home.birth) };
        (home, used, slot.relay)
    });
    HOME.set(found.map(|(home, ..)| home));
    let (home, used, relay) = found?;
    let handle = Handle { home, used: used? };
    let root = root().ok()?;
    // SAFETY: an atomic in the segment.
    let floor = unsafe { &(*root).floor }.load(Ordering::SeqCst);
    let begins = locked(handle.used.ring, Mode::Exclusive, |ring| {
        let begins = ring.open(handle.used.life, floor)?;
        if begins && relay != 0 {
            ring.relay_came(relay as i32 - 1);
        }
        Some(begins)
    })
    .flatten()?;
    if begins && relay != 0 {
        entered(handle, relay);
    }
    OWN.set(Some(handle));
    Some(handle)
}

/// This process has entered a relay into a ring: tells it, or takes it out again if it has gone meanwhile.
fn entered(handle: Handle, relay: u32) {
    let procno = relay as i32 - 1;
    let is_there = |home: Home, slot: &mut Slot, _: &mut Pool<'_>| home == handle.home && slot.relay == relay;
    if with_slot(session::database(), is_there) == Some(true) {
        latch::wake(procno);
    } else {
        of(handle, |ring| ring.relay_left(procno));
    }
}

/// Runs `body` with the ring of this process's database. Twice at most: the slot may have changed since this
/// process last looked.
fn with_own<R>(takes: bool, mut body: impl FnMut(Handle) -> Option<R>) -> Option<R> {
    for _ in 0..2 {
        match body(own(takes)?) {
            None => OWN.set(None),
            found => return found,
        }
    }
    None
}

/// Ends the life of the ring of a database whose slot was freed, if it had one: readers go and look for another.
pub fn close(birth: u64) {
    let Some(used) = pool(|_, pool| pool.of(birth)).flatten() else { return };
    let Some(position) = locked(used.ring, Mode::Exclusive, |ring| ring.close(used.life)) else { return };
    if let Ok(root) = root() {
        // SAFETY: an atomic in the segment.
        unsafe { &(*root).floor }.fetch_max(position + 1, Ordering::SeqCst);
    }
    wake_sleepers(used.ring, News::All);
    pool(|_, pool| pool.give_back(birth));
}

/// The last position of all rings. In the postmaster when no other process is left: it takes no lock, which a
/// process that was killed may hold.
pub(super) fn last_position() -> i64 {
    let Ok(root) = root() else { return 0 };
    // SAFETY: the area; nobody writes to it any more.
    let rings: &[Padded<Head>] = unsafe { area(root, layout().rings, layout().max_rings) };
    rings.iter().map(|ring| ring.0.position()).max().unwrap_or(0)
}

/// Reserves room for the messages of a transaction that is about to commit; where there is a ring.
pub fn reserve(charges: &mut [Charge]) -> Option<Reserved> {
    let share = share();
    with_own(!charges.is_empty(), |ring| {
        let reserve =
            |r: &mut Ring<'_>| (r.view().is_orphaned(clock::now), r.reserve(charges, share, clock::now));
        let (orphaned, way) = of(ring, reserve)?;
        Some(Reserved { ring, way, orphaned })
    })
}

/// Gives back what `reserve` gave, at the transaction's abort.
pub fn give_back(handle: Handle, charges: &[Charge]) {
    of(handle, |ring| ring.give_back(charges));
}

/// What one role with a limit may have waiting in a ring.
fn share() -> Share {
    let part = |all: usize| (all * config::role_share() / 100).max(1);
    let (entries, bytes) = layout().ring_capacity;
    Share { entries: part(entries), bytes: part(bytes) }
}

/// Publishes messages for which room was reserved, and tells of `gap` more that are not in the ring. Wakes
/// whom it concerns. After commit: nothing here fails. False if the database lost its slot meanwhile, as the
/// extension was dropped: then nothing is published any more.
pub fn publish<'m>(
    handle: Handle,
    messages: impl ExactSizeIterator<Item = Incoming<'m>>,
    gap: usize,
) -> bool {
    let (sent_at, now, mut messages) = (time::now(), clock::now(), messages);
    loop {
        let chunk = messages.len().min(CHUNK);
        let (mut keys, mut woken) = ([0; CHUNK], [0; CHUNK]);
        let published = of(handle, |ring| {
            let waited = ring.view().orphaned_at().is_some();
            messages.by_ref().take(chunk).for_each(|message| ring.append(&message, sent_at, now));
            let waits = !waited && ring.view().orphaned_at().is_some();
            let last = messages.len() == 0;
            let count = ring.keys(chunk, &mut keys).map_or(0, <[u32]>::len);
            let tell_all = last && gap > 0;
            if last {
                ring.skip(gap);
            }
            let news = if tell_all { News::All } else { News::Keys(&keys[..count]) };
            (ring.wake_relay(), ring.wake(news, &mut woken), count, tell_all, waits)
        });
        let Some((relay, sleepers, count, tell_all, waits)) = published else { return false };
        if waits {
            tell_keeper();
        }
        relay.into_iter().for_each(latch::wake);
        woken[..sleepers].iter().for_each(|procno| latch::wake(*procno));
        if sleepers == CHUNK {
            wake_sleepers(handle.used.ring, if tell_all { News::All } else { News::Keys(&keys[..count]) });
        }
        if messages.len() == 0 {
            return true;
        }
    }
}

/// The relay has ended since room was reserved: the keeper has to send what waits, should no other relay come.
fn tell_keeper() {
    let keeper = registry(|r| r.kick(session::database())).ok().flatten();
    keeper.into_iter().for_each(latch::wake);
}

fn wake_sleepers(ring: usize, news: News<'_>) {
    loop {
        let mut woken = [0; CHUNK];
        let count = locked(ring, Mode::Exclusive, |ring| ring.wake(news, &mut woken)).unwrap_or(0);
        woken[..count].iter().for_each(|procno| latch::wake(*procno));
        if count < CHUNK {
            return;
        }
    }
}

/// The last position of this database.
pub fn position() -> Option<i64> {
    with_own(true, |handle| view(handle, |ring| ring.position()))
}

/// Copies messages behind `after`; `None` without a ring.
pub fn read(after: i64, channels: &[Channel], batch: &mut Batch) -> Option<Progress> {
    with_own(true, |handle| view(handle, |ring| ring.read(after, channels, batch)))
}

/// The same; where there is nothing to read, this process is a sleeper from then on, whose latch is set by the
/// next message that concerns it. `stop_sleeping` has to follow.
pub fn read_or_sleep(after: i64, channels: &[Channel], batch: &mut Batch) -> Option<Progress> {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    REGISTERED.call_once(|| session::before_exit(exited));
    stop_sleeping();
    with_own(true, |handle| {
        of(handle, |ring| {
            let progress = ring.view().read(after, channels, batch);
            if batch.len() == 0 && progress.missed == Some(0) && !progress.more {
                SLEEPING.set(Some(handle.used.ring));
                ring.sleep(latch::my_procno(), channels);
            }
            progress
        })
    })
}

/// This process is no sleeper any more.
pub fn stop_sleeping() {
    if let Some(ring) = SLEEPING.take() {
        locked(ring, Mode::Exclusive, |ring| ring.stop_sleeping(latch::my_procno()));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    stop_sleeping();
}

/// The relay's side of a ring.
pub mod relay {
    use super::*;

    /// This process is the relay of its database; false when that has no slot.
    pub fn came() -> bool {
        let own = latch::my_procno() as u32 + 1;
        with_slot(session::database(), |_, slot, _| slot.relay = own).is_some()
    }

    /// The ring of its database, once there is one, with this process as its relay. The process that takes it wakes
    /// this one.
    pub fn ring() -> Option<Handle> {
        with_own(false, |handle| of(handle, |ring| ring.relay_came(latch::my_procno())).map(|()| handle))
    }

    /// This process is the relay no longer.
    pub fn left() {
        let procno = latch::my_procno();
        with_slot(session::database(), |_, slot, _| {
            if slot.relay == procno as u32 + 1 {
                slot.relay = 0;
            }
        });
        with_own(false, |handle| of(handle, |ring| ring.relay_left(procno)));
    }

    /// Copies what is to be sent, until the batch is full: how far that is, for `sent`, and whether there is more.
    pub fn unsent(handle: Handle, batch: &mut Batch) -> Option<(u64, bool)> {
        view(handle, |ring| ring.unsent(batch))
    }

    /// This process, the relay, sent everything before.
    pub fn sent(handle: Handle, ordinal: u64) {
        of(handle, |ring| ring.relayed_by_relay(ordinal, clock::now()));
    }

    /// Everything before was sent in the relay's place.
    pub fn sent_by_others(handle: Handle, ordinal: u64) {
        of(handle, |ring| ring.relayed(ordinal));
    }

    /// By the clock that nobody sets: when what waits in the ring of this database has waited for too long without a
    /// relay. `None` when there is one, or nothing waits.
    pub fn orphaned_at() -> Option<i64> {
        with_own(false, |handle| view(handle, |ring| ring.orphaned_at())).flatten()
    }

    /// The next message will set this process's latch; false when there is something to send.
    pub fn sleeps(handle: Handle) -> bool {
        of(handle, |ring| ring.relay_sleeps()).unwrap_or(true)
    }
}

fn counters(slot: usize) -> Option<&'static Counters> {
    let (root, l) = (root().ok()?, layout());
    // SAFETY: atomics in the segment.
    let all: &[Padded<Counters>] = unsafe { area(root, l.counters, l.max_databases) };
    all.get(slot).map(|padded| &padded.0)
}

/// Adds to counters of a ring's database. Callable after commit.
pub fn count_all(ring: Handle, more: &[(Counter, usize)]) {
    count_at(ring.home, more);
}

fn count_at(home: Home, more: &[(Counter, usize)]) {
    if let Some(counters) = counters(home.slot) {
        for (counter, more) in more.iter().filter(|(_, more)| *more > 0) {
            counters[*counter as usize].fetch_add(*more as u64, Ordering::Relaxed);
        }
    }
}

/// Adds to a counter of this process's database. Callable after commit.
pub fn count(counter: Counter, more: usize) {
    if more > 0
        && let Some(home) = home()
    {
        count_at(home, &[(counter, more)]);
    }
}

/// Adds to a counter of any database that has a slot.
pub fn count_in(database: u32, counter: Counter, more: usize) {
    if let Some(home) = with_slot(database, |home, _, _| home) {
        count_at(home, &[(counter, more)]);
    }
}

/// The slot of this process's database and its birth, as this process remembers them: that life may be over.
pub fn own_slot() -> Option<(usize, u64)> {
    home().map(|home| (home.slot, home.birth))
}

/// Sets a counter of this process's database that is a measure.
pub fn set(measure: Counter, value: u64) {
    if let Some(counters) = home().and_then(|home| counters(home.slot)) {
        counters[measure as usize].store(value, Ordering::Relaxed);
    }
}

/// All counters of this database, and what of its ring is used and waits for the relay: (bytes in use, bytes
/// in all, messages that wait); zeros while it has no ring. `None` without a slot.
pub fn stats() -> Option<([u64; Counter::ALL.len()], (u64, u64, u64))> {
    let home = with_slot(session::database(), |home, _, _| home)?;
    let counters = counters(home.slot)?.each_ref().map(|counter| counter.load(Ordering::Relaxed));
    let ring = with_own(false, |handle| view(handle, |ring| (ring.used(), ring.backlog())));
    Some((counters, ring.map_or((0, 0, 0), |((used, all), waiting)| (used, all, waiting))))
}

/// Whether this database has a ring, and how many are free; `None` without a slot.
pub fn places() -> Option<(bool, usize)> {
    with_slot(session::database(), |home, _, pool| (pool.of(home.birth).is_some(), pool.free()))
}
