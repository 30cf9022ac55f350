//! The ring of one database: its last messages, which any number of readers read at their own pace.
//!
//! ```text
//!                 first            relayed                    next
//!   entries ────────┼─────────────────┼─────────────────────────┼──────────▶ by ordinal, modulo their number
//!                   │ may be          │ wait for the relay,     │ reserved by transactions
//!                   │ overwritten     │ may not be overwritten  │ that are about to commit
//!   bytes   ────────┼─────────────────┼─────────────────────────┼──────────▶ by offset, modulo their number
//! ```
//!
//! **Positions** number the messages of a database, also those that found no room and were sent natively
//! only; they never go back. So what a reader at `after` missed is the number of positions that it passes
//! over less the number of entries it finds there, whatever happened in between.
//!
//! **Room**: a transaction reserves before its commit, when it can still choose another way, and fills
//! what it reserved after it, when nothing may fail any more. What the relay has not sent yet is not
//! overwritten; everything else is, oldest first, whoever may not have read it.
//!
//! **Shares**: a role that has a limit has at most its share of the entries and of the bytes between `relayed` and
//! the reservations. A transaction that would exceed it sends natively, and readers are told of a gap. So one role
//! alone can't take the room that others need. Shares guarantee nothing about what the relay has passed: that is
//! overwritten oldest first, whichever role writes. A role that may write can turn the ring over, and readers are
//! told how many messages they missed.
//!
//! **Without a relay** messages wait for the next one, for their order's sake, but not for long: the time counts
//! from when a relay last sent something, or the first of them came, not from the end of the last of many relays.
//!
//! **Waking**: whoever finds nothing to do says so under the same lock under which messages come in, and
//! then sleeps on its latch. So the one that brings a message knows exactly whom to wake, and each sleeper
//! is woken once. (tests/loom.rs tries every order of the steps.)
//!
//! **Channels** are keyed by the oid of their prefix's schema and their short name. A schema's name is for
//! native NOTIFY only, and is looked up when that sends: a message outlives the renaming of its schema, and a
//! new schema of an old name has none of the old one's.
//!
//! Whoever has a `Ring` holds its lock exclusively, whoever has a `View` at least shared. Nothing here
//! allocates, so that nothing fails under the lock.

use std::hash::{DefaultHasher, Hasher};

use super::backoff::MILLISECOND;

pub mod pool;

/// How long messages wait where no relay sends any, for their order's sake; a new one comes within a second. After
/// that each transaction sends what waits, and its own, natively, and so does the keeper.
pub const RELAY_MAY_BE_AWAY: i64 = 10_000 * MILLISECOND;

/// The roles with a limit that may have something waiting in one ring at a time. One more sends natively.
pub const MAX_ROLES: usize = 64;

/// The most entries that are looked at while the lock is held once.
const MAX_SCANNED: u64 = 1024;

/// What the entries take of a ring's memory: for messages of about 140 bytes both parts fill up alike.
const BYTES_PER_ENTRY: usize = 192;

/// How many entries and how many bytes fit in that much memory.
pub fn capacity(memory: usize) -> (usize, usize) {
    let entries = (memory / BYTES_PER_ENTRY).max(1);
    (entries, memory.saturating_sub(entries * size_of::<RingEntry>()))
}

/// Everything about a ring but its messages. Zeroed memory is a ring that was never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RingHead {
    /// The life that it is in (`pool`).
    generation: u64,
    /// 1: the database has no slot any more.
    closed: u32,
    /// The relay's process number plus 1; 0 without a relay.
    relay: u32,
    /// 1: the relay sleeps and wants to be woken.
    relay_waits: u32,
    /// The first sleeping reader's process number plus 1.
    waiters: u32,
    /// By the clock that nobody sets: when the relay last sent something, or the first message that waits came,
    /// whichever is later. Means nothing while no message waits.
    waits_since: i64,
    /// The position before the first message of this life.
    start: i64,
    /// The last position that was given.
    position: i64,
    /// Ordinals of entries.
    first: u64,
    relayed: u64,
    next: u64,
    /// Offsets of bytes: the first entry's, and behind the last one's.
    begin: u64,
    end: u64,
    reserved_entries: u64,
    reserved_bytes: u64,
}

/// One message. Its channel and payload are in the bytes, one behind the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RingEntry {
    position: i64,
    sent_at: i64,
    at: u64,
    key: u32,
    /// Of the channel; 0 for a verbatim one.
    schema: u32,
    payload: u16,
    channel: u8,
    /// 1: equal ones may be merged.
    wakeup: u8,
    /// 1: its listeners have heard it, or there are none.
    sent: u8,
    /// Of `Charge`: what the relay gives back to when it passes it.
    role_slot: u16,
}

impl RingHead {
    /// The last position that was given; 0 before the first life.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// When what waits is to be sent without a relay, as there is none.
    fn stranded_at(&self) -> Option<i64> {
        (self.relay == 0 && self.relayed < self.next).then(|| self.waits_since + RELAY_MAY_BE_AWAY)
    }
}

/// A role with a limit, and what it has reserved or has in the ring and the relay has not passed. A free place has no
/// entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RoleUsage {
    role: u32,
    entries: u32,
    bytes: u64,
}

/// The messages of one role in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// 0: without a limit.
    pub role: u32,
    pub entries: usize,
    pub bytes: usize,
    /// The place of its holder plus 1, while room is reserved; 0 without a limit.
    role_slot: u16,
}

impl Charge {
    pub fn new(role: u32, entries: usize, bytes: usize) -> Self {
        Self { role, entries, bytes, role_slot: 0 }
    }

    /// For `Incoming`.
    pub fn role_slot(&self) -> u16 {
        self.role_slot
    }
}

/// The most that one role with a limit may have in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub entries: usize,
    pub bytes: usize,
}

impl RingEntry {
    fn len(&self) -> u64 {
        u64::from(self.channel) + u64::from(self.payload)
    }
}

/// A channel as readers ask for it. Under the same full name a verbatim channel is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The oid of the prefix's schema; 0 for a verbatim channel.
    pub schema: u32,
    /// The short name; the full one of a verbatim channel.
    pub name: Vec<u8>,
    /// Of both of them.
    key: u32,
}

impl Channel {
    pub fn new(schema: u32, name: Vec<u8>) -> Self {
        let key = key(schema, &name);
        Self { schema, name, key }
    }
}

fn key(schema: u32, name: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(schema);
    hasher.write(name);
    hasher.finish() as u32
}

/// One message on its way into a ring.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    pub channel: &'a Channel,
    pub payload: &'a [u8],
    pub wakeup: bool,
    pub sent: bool,
    /// Of the charge that it is a part of.
    pub role_slot: u16,
}

/// How a transaction that is about to commit shall send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Room is reserved, and the relay will send.
    Relay,
    /// Room is reserved, but there is no relay: the transaction sends.
    RelayAndNative,
    /// There is no room, or not within a role's share: the transaction sends, and readers are told of a gap.
    Native,
}

/// A reader that sleeps, in the slot of its process. Zeroed memory is one that does not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiter {
    linked: u32,
    /// Process numbers plus 1.
    before: u32,
    after: u32,
    /// The number of channels that it sleeps for; more than fit means any.
    count: u32,
    keys: [u32; WAITER_KEYS],
}

/// Oban's nodes listen to four channels.
const WAITER_KEYS: usize = 8;

/// What a sleeper is woken by.
#[derive(Clone, Copy, Debug)]
pub enum Audience<'a> {
    /// Messages with these keys (`keys`).
    Keys(&'a [u32]),
    /// A gap, or the end of the ring.
    All,
}

/// How far a reader got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub position: i64,
    /// How many messages were passed over unread; `None` when it came from another life of the ring.
    pub missed: Option<i64>,
    /// Whether there may be more to read now.
    pub more: bool,
}

/// Room for what a reader copies out, allocated beforehand.
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<Item>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    entry: RingEntry,
    at: usize,
    missed: i64,
}

/// A message that was copied out of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMessage<'a> {
    pub position: i64,
    pub sent_at: i64,
    /// The channel's schema; 0 for a verbatim channel.
    pub schema: u32,
    /// The short name; the full one of a verbatim channel.
    pub channel: &'a [u8],
    pub payload: &'a [u8],
    pub wakeup: bool,
    /// How many messages the reader passed over unread before this one, in this read.
    pub missed: i64,
}

/// The longest channel and payload.
const MAX_MESSAGE_BYTES: usize = super::channel::MAX_CHANNEL + super::wire::MAX_PAYLOAD;

impl Batch {
    /// For at most so many messages and bytes; but one message always fits.
    pub fn new(messages: usize, bytes: usize) -> Self {
        Self {
            items: Vec::with_capacity(messages.max(1)),
            bytes: Vec::with_capacity(bytes.max(MAX_MESSAGE_BYTES)),
        }
    }

    pub fn clear(&mut self) {
        self.items.clear();
        self.bytes.clear();
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn messages(&self) -> impl Iterator<Item = RingMessage<'_>> {
        self.items.iter().map(|Item { entry, at, missed }| {
            let (channel, payload) = (usize::from(entry.channel), usize::from(entry.payload));
            RingMessage {
                position: entry.position,
                sent_at: entry.sent_at,
                schema: entry.schema,
                channel: &self.bytes[*at..at + channel],
                payload: &self.bytes[at + channel..at + channel + payload],
                wakeup: entry.wakeup != 0,
                missed: *missed,
            }
        })
    }

    fn fits(&self, entry: &RingEntry) -> bool {
        self.items.len() < self.items.capacity()
            && self.bytes.len() + entry.len() as usize <= self.bytes.capacity()
    }
}

/// To read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub head: &'a RingHead,
    pub entries: &'a [RingEntry],
    pub bytes: &'a [u8],
}

impl View<'_> {
    pub fn position(&self) -> i64 {
        self.head.position
    }

    pub fn is_of(&self, generation: u64) -> bool {
        self.head.generation == generation && self.head.closed == 0
    }

    /// Bytes of messages that are in the ring, and those that it can hold.
    pub fn used(&self) -> (u64, u64) {
        (self.head.end - self.head.begin, self.bytes.len() as u64)
    }

    /// Whether entries wait, and no relay has sent any for too long.
    pub fn is_stranded(&self, now: impl Fn() -> i64) -> bool {
        self.head.stranded_at().is_some_and(|at| at <= now())
    }

    /// From when on that is so, if no relay comes; `None` when there is one, or nothing waits.
    pub fn stranded_at(&self) -> Option<i64> {
        self.head.stranded_at()
    }

    /// How many entries wait for the relay.
    pub fn backlog(&self) -> u64 {
        self.head.next - self.head.relayed
    }

    fn entry(&self, ordinal: u64) -> &RingEntry {
        &self.entries[(ordinal % self.entries.len() as u64) as usize]
    }

    /// The part of the bytes from an offset on, which ends at the end of the area at the latest.
    fn part(&self, at: u64, len: usize) -> &[u8] {
        let start = (at % self.bytes.len() as u64) as usize;
        &self.bytes[start..self.bytes.len().min(start + len)]
    }

    fn is_on(&self, entry: &RingEntry, channel: &Channel) -> bool {
        if entry.key != channel.key
            || entry.schema != channel.schema
            || usize::from(entry.channel) != channel.name.len()
        {
            return false;
        }
        let part = self.part(entry.at, channel.name.len());
        let (one, other) = channel.name.split_at(part.len());
        one == part && other == self.part(entry.at + part.len() as u64, other.len())
    }

    fn copy(&self, entry: &RingEntry, missed: i64, batch: &mut Batch) {
        let (at, len) = (batch.bytes.len(), entry.len() as usize);
        batch.items.push(Item { entry: *entry, at, missed });
        let part = self.part(entry.at, len);
        batch.bytes.extend_from_slice(part);
        batch.bytes.extend_from_slice(self.part(entry.at + part.len() as u64, len - part.len()));
    }

    /// Copies messages behind `after` that are on one of the channels, until the batch is full.
    pub fn read(&self, after: i64, channels: &[Channel], batch: &mut Batch) -> Progress {
        let head = self.head;
        if after == head.position {
            return Progress { position: after, missed: Some(0), more: false };
        }
        let known = (head.start..head.position).contains(&after);
        let from = if known { self.first_behind(after) } else { head.first };
        let mut passed = 0;
        let mut position = after;
        let mut more = false;
        for ordinal in from..head.next {
            let entry = self.entry(ordinal);
            if channels.iter().any(|c| self.is_on(entry, c)) {
                if !batch.fits(entry) && batch.len() > 0 {
                    more = true;
                    break;
                }
                self.copy(entry, entry.position - after - passed - 1, batch);
            }
            (position, passed) = (entry.position, passed + 1);
            if passed as u64 == MAX_SCANNED {
                more = true;
                break;
            }
        }
        if !more {
            position = head.position; // past a gap at the end, too
        } else if passed == 0 && !known {
            position = self.entry(from).position - 1;
        }
        Progress { position, missed: known.then(|| position - after - passed), more }
    }

    /// The ordinal of the first entry behind a position.
    fn first_behind(&self, position: i64) -> u64 {
        let (mut low, mut high) = (self.head.first, self.head.next);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle).position <= position {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Copies what the relay has to send, until the batch is full: the ordinal behind the last, and whether there
    /// is more behind it.
    pub fn unsent(&self, batch: &mut Batch) -> (u64, bool) {
        let mut ordinal = self.head.relayed;
        while ordinal < self.head.next {
            let entry = self.entry(ordinal);
            if entry.sent == 0 {
                if !batch.fits(entry) && batch.len() > 0 {
                    break;
                }
                self.copy(entry, 0, batch);
            }
            ordinal += 1;
        }
        (ordinal, ordinal < self.head.next)
    }
}

/// To change.
pub struct Ring<'a> {
    pub head: &'a mut RingHead,
    pub entries: &'a mut [RingEntry],
    pub bytes: &'a mut [u8],
    pub roles: &'a mut [RoleUsage],
    /// One for each process.
    pub waiters: &'a mut [Waiter],
}

impl Ring<'_> {
    pub fn view(&self) -> View<'_> {
        View { head: self.head, entries: self.entries, bytes: self.bytes }
    }

    /// Begins a new life unless this one, or a later one, has begun: whether this call began it. `None`: it is over. The
    /// first position will be above `start`, and above what the ring's earlier lives have given.
    pub fn open(&mut self, generation: u64, start: i64) -> Option<bool> {
        let begins = self.head.generation < generation;
        if begins {
            let start = start.max(self.head.position + 1);
            let waiters = self.head.waiters;
            *self.head = RingHead { generation, start, position: start, waiters, ..RingHead::default() };
            self.roles.fill(RoleUsage::default());
        }
        self.view().is_of(generation).then_some(begins)
    }

    /// Ends this life, unless a later one has begun. The last position.
    pub fn close(&mut self, generation: u64) -> i64 {
        if self.head.generation <= generation {
            (self.head.generation, self.head.closed) = (generation, 1);
        }
        self.head.position
    }

    /// Reserves room for a transaction's messages if there is any, for each role within its share.
    pub fn reserve(&mut self, charges: &mut [Charge], quota: Quota, now: impl Fn() -> i64) -> Route {
        let head = &mut *self.head;
        let (entries, bytes) = total(charges);
        let unsent = head.next - head.relayed;
        let unsent_bytes = if unsent == 0 {
            0
        } else {
            head.end - self.entries[(head.relayed % self.entries.len() as u64) as usize].at
        };
        if unsent + head.reserved_entries + entries > self.entries.len() as u64
            || unsent_bytes + head.reserved_bytes + bytes > self.bytes.len() as u64
        {
            return Route::Native;
        }
        // Two charges of one transaction are of different roles.
        for at in 0..charges.len() {
            if !self.charge(&mut charges[at], quota) {
                charges[..at].iter().for_each(|charge| self.discharge(charge));
                return Route::Native;
            }
        }
        let head = &mut *self.head;
        head.reserved_entries += entries;
        head.reserved_bytes += bytes;
        // What waits for a relay would be overtaken by what is sent now.
        let waits = head.stranded_at().is_some_and(|at| now() < at);
        if head.relay != 0 || waits { Route::Relay } else { Route::RelayAndNative }
    }

    /// Notes what a role reserves; false if it may not have that much.
    fn charge(&mut self, charge: &mut Charge, quota: Quota) -> bool {
        charge.role_slot = 0;
        if charge.role == 0 || charge.entries == 0 {
            return true;
        }
        let (known, free) =
            (|h: &RoleUsage| h.entries > 0 && h.role == charge.role, |h: &RoleUsage| h.entries == 0);
        let Some(at) = self.roles.iter().position(known).or_else(|| self.roles.iter().position(free)) else {
            return false;
        };
        let before = if self.roles[at].entries > 0 { self.roles[at] } else { RoleUsage::default() };
        let after = RoleUsage {
            role: charge.role,
            entries: before.entries + charge.entries as u32,
            bytes: before.bytes + charge.bytes as u64,
        };
        if after.entries as usize > quota.entries || after.bytes > quota.bytes as u64 {
            return false;
        }
        self.roles[at] = after;
        charge.role_slot = at as u16 + 1;
        true
    }

    fn discharge(&mut self, charge: &Charge) {
        self.release(charge.role_slot, charge.entries, charge.bytes);
    }

    fn release(&mut self, role_slot: u16, entries: usize, bytes: usize) {
        if let Some(role_slot) = usize::from(role_slot).checked_sub(1).and_then(|at| self.roles.get_mut(at)) {
            role_slot.entries -= entries as u32;
            role_slot.bytes -= bytes as u64;
        }
    }

    /// Gives back what was reserved and not used, at an abort.
    pub fn give_back(&mut self, charges: &[Charge]) {
        let (entries, bytes) = total(charges);
        self.head.reserved_entries -= entries;
        self.head.reserved_bytes -= bytes;
        charges.iter().for_each(|charge| self.discharge(charge));
    }

    /// Adds a message in room that was reserved, and that it gives back. `sent_at` is for readers, `now` of the clock
    /// that nobody sets.
    pub fn append(&mut self, message: &Incoming<'_>, sent_at: i64, now: i64) {
        let name = &*message.channel.name;
        let len = name.len() + message.payload.len();
        let (slots, space) = (self.entries.len() as u64, self.bytes.len() as u64);
        while self.head.next - self.head.first >= slots
            || self.head.end + len as u64 - self.head.begin > space
        {
            self.head.first += 1;
            self.head.begin = if self.head.first < self.head.next {
                self.entries[(self.head.first % slots) as usize].at
            } else {
                self.head.end
            };
        }
        debug_assert!(self.head.first <= self.head.relayed, "what was not sent is overwritten");
        let at = self.head.end;
        self.write(at, name);
        self.write(at + name.len() as u64, message.payload);
        self.head.position += 1;
        self.entries[(self.head.next % slots) as usize] = RingEntry {
            position: self.head.position,
            sent_at,
            at,
            key: message.channel.key,
            schema: message.channel.schema,
            payload: message.payload.len() as u16,
            channel: name.len() as u8,
            wakeup: message.wakeup.into(),
            sent: message.sent.into(),
            role_slot: message.role_slot,
        };
        if self.head.relayed == self.head.next {
            if message.sent {
                self.head.relayed += 1;
                self.release(message.role_slot, 1, len);
            } else {
                self.head.waits_since = now;
            }
        }
        self.head.next += 1;
        self.head.end += len as u64;
        self.head.reserved_entries -= 1;
        self.head.reserved_bytes -= len as u64;
    }

    fn write(&mut self, at: u64, what: &[u8]) {
        let start = (at % self.bytes.len() as u64) as usize;
        let (one, other) = what.split_at(what.len().min(self.bytes.len() - start));
        self.bytes[start..start + one.len()].copy_from_slice(one);
        self.bytes[..other.len()].copy_from_slice(other);
    }

    /// So many messages are not in the ring: readers will be told.
    pub fn skip(&mut self, messages: usize) {
        self.head.position += messages as i64;
    }

    /// Everything before this ordinal was sent.
    pub fn relayed(&mut self, ordinal: u64) {
        for passed in self.head.relayed..ordinal.min(self.head.next) {
            let entry = *self.view().entry(passed);
            self.release(entry.role_slot, 1, entry.len() as usize);
            self.head.relayed = passed + 1;
        }
    }

    /// The relay sent it, and so what follows waits anew.
    pub fn relayed_by_relay(&mut self, ordinal: u64, now: i64) {
        self.relayed(ordinal);
        self.head.waits_since = now;
    }

    pub fn attach_relay(&mut self, procno: i32) {
        (self.head.relay, self.head.relay_waits) = (procno as u32 + 1, 0);
    }

    pub fn detach_relay(&mut self, procno: i32) {
        if self.head.relay == procno as u32 + 1 {
            (self.head.relay, self.head.relay_waits) = (0, 0);
        }
    }

    /// Notes that the relay will sleep on its latch, unless there is something to send.
    pub fn relay_starts_waiting(&mut self) -> bool {
        self.head.relay_waits = u32::from(self.head.relayed == self.head.next);
        self.head.relay_waits != 0
    }

    /// The relay to wake, if it sleeps and there is something to send.
    pub fn wake_relay(&mut self) -> Option<i32> {
        let wake = self.head.relay_waits != 0 && self.head.relayed < self.head.next;
        wake.then(|| {
            self.head.relay_waits = 0;
            self.head.relay as i32 - 1
        })
    }

    /// Notes that a reader will sleep on its latch until a message comes on one of the channels, or a gap.
    pub fn start_waiting(&mut self, procno: i32, channels: &[Channel]) {
        self.stop_waiting(procno);
        let own = procno as u32 + 1;
        let first = self.head.waiters;
        let mut keys = [0; WAITER_KEYS];
        for (key, channel) in keys.iter_mut().zip(channels) {
            *key = channel.key;
        }
        self.waiters[procno as usize] =
            Waiter { linked: 1, before: 0, after: first, count: channels.len() as u32, keys };
        if first != 0 {
            self.waiters[first as usize - 1].before = own;
        }
        self.head.waiters = own;
    }

    pub fn stop_waiting(&mut self, procno: i32) {
        let waiter = std::mem::take(&mut self.waiters[procno as usize]);
        if waiter.linked == 0 {
            return;
        }
        match waiter.before {
            0 => self.head.waiters = waiter.after,
            before => self.waiters[before as usize - 1].after = waiter.after,
        }
        if waiter.after != 0 {
            self.waiters[waiter.after as usize - 1].before = waiter.before;
        }
    }

    /// Takes sleepers whom this concerns, as many as `woken` has room for: how many. Whoever takes them has
    /// to set their latches. Repeat while it comes back full.
    pub fn wake(&mut self, audience: Audience<'_>, woken: &mut [i32]) -> usize {
        let (mut count, mut at) = (0, self.head.waiters);
        while at != 0 && count < woken.len() {
            let waiter = self.waiters[at as usize - 1];
            let concerns = match audience {
                Audience::All => true,
                Audience::Keys(keys) => {
                    let own = waiter.keys.get(..waiter.count as usize);
                    own.is_none_or(|own| own.iter().any(|key| keys.contains(key)))
                }
            };
            if concerns {
                woken[count] = at as i32 - 1;
                count += 1;
                self.stop_waiting(at as i32 - 1);
            }
            at = waiter.after;
        }
        count
    }

    /// The keys of the channels of the last `messages` entries, each once, as many as fit; `None` when they
    /// don't.
    pub fn keys<'k>(&self, messages: usize, keys: &'k mut [u32]) -> Option<&'k [u32]> {
        let mut count = 0;
        for ordinal in self.head.next.saturating_sub(messages as u64)..self.head.next {
            let key = self.view().entry(ordinal).key;
            if !keys[..count].contains(&key) {
                *keys.get_mut(count)? = key;
                count += 1;
            }
        }
        Some(&keys[..count])
    }
}

/// Entries and bytes.
fn total(charges: &[Charge]) -> (u64, u64) {
    charges.iter().fold((0, 0), |(entries, bytes), c| (entries + c.entries as u64, bytes + c.bytes as u64))
}

#[cfg(test)]
mod tests;
