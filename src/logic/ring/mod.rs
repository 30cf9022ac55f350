//! The ring of one database: the database's last messages. Any number of readers read them, each at
//! the reader's own pace.
//!
//! ```text
//!                 first            relayed                    next
//!   entries ────────┼─────────────────┼─────────────────────────┼──────────▶ by ordinal, modulo their number
//!                   │ may be          │ wait for the relay,     │ reserved by transactions
//!                   │ overwritten     │ may not be overwritten  │ that are about to commit
//!   bytes   ────────┼─────────────────┼─────────────────────────┼──────────▶ by offset, modulo their number
//! ```
//!
//! **Positions** number the messages of a database, including those that found no room and were
//! sent natively only. Positions never fall. So a reader at `after` can count what it has missed:
//! the positions that it passes over, less the entries that it finds there, whatever happened in
//! between.
//!
//! **Room**: a transaction reserves room before its commit, when it can still choose another route.
//! The transaction fills the room after its commit, when nothing may fail any more. A message that
//! the relay has not sent yet is not overwritten. All others are overwritten, the oldest first,
//! whether or not every reader has read them.
//!
//! **Quotas** are backpressure for one role at a time. A role that has a limit has at most its
//! quota of the entries and bytes that wait for the relay or are reserved. A transaction that would
//! exceed the quota sends natively, and readers are told of a gap. So one role alone can't take the
//! room that others need. Quotas guarantee nothing about messages that the relay has passed: those
//! are overwritten oldest first, whichever role writes. A role that may write can turn the ring
//! over. Readers are told how many messages they missed.
//!
//! **Without a relay** messages wait for the next one, so that they keep their order, but not for
//! long. The time counts from the later of two moments: a relay last sent something, or the first
//! waiting message came. The time does not begin anew when a relay starts or ends. After that time
//! the messages are stranded.
//!
//! **Waking** loses no wakeup. A reader or relay resets its latch before it looks for messages. If
//! it finds nothing to do, it registers under the lock under which messages come in, and waits on
//! its latch only then. So the process that brings a message sees every waiter that the message
//! concerns, and wakes each waiter once. (tests/loom.rs tries every order of the steps.)
//!
//! **Channels** have as key the oid of their prefix's schema and their short name. Only native
//! NOTIFY needs the name of the schema, which is looked up when NOTIFY sends. So a message outlives
//! a new name of the schema, and a new schema with an old name has no messages of the old schema.
//!
//! **Source tables**: a message on a verbatim channel may tell of a watched table. The ring keeps
//! the table's oid beside the message. A reader tests whether its role may select from the table
//! after it has copied the message, because nothing under the lock reads a catalog.
//!
//! **Generations** tell one use of a ring from all others. A session, the relay or the keeper
//! begins a generation (`open`) when it first needs the database's ring. The coordinator ends the
//! generation (`close`) after it has freed the database's slot, and wakes all waiters. A process
//! that still has the ring of an ended generation is refused, and looks for the database's ring
//! again.
//!
//! A `Ring` exists only while its lock is held exclusively, a `View` only while the lock is held at
//! least shared. Nothing that runs under the lock allocates, so nothing fails there. (`Batch::new`
//! allocates, before the lock.)

use std::hash::{DefaultHasher, Hasher};

use super::backoff::MILLISECOND;
use super::ids::{RoleOid, SchemaOid, TableOid};
use super::times::{ClockTime, WallTime};

pub mod pool;

/// How long messages wait for a relay when no relay sends any, so that they keep their order, in
/// microseconds. A new relay usually comes within a second. After this time, while no relay is
/// attached, the next commit sends the waiting messages natively (`bus::prepare`), or the keeper
/// does. A relay that is attached and stands still strands no message.
pub const RELAY_MAY_BE_AWAY: i64 = 10_000 * MILLISECOND;

/// The most roles with a limit that can have room or waiting messages in one ring at a time.
/// Transactions of further roles send natively.
pub const MAX_ROLES: usize = 64;

/// The most entries that a reader looks at while it holds the lock once.
const MAX_SCANNED: u64 = 1024;

/// The bytes of a ring's memory for each entry, its message included. With messages of 144 bytes
/// the entries and the bytes fill up at the same rate.
const BYTES_PER_ENTRY: usize = 192;

/// Returns how many entries, and how many bytes of messages, fit into so much memory.
pub fn capacity(memory: usize) -> (usize, usize) {
    let entries = (memory / BYTES_PER_ENTRY).max(1);
    (entries, memory.saturating_sub(entries * size_of::<RingEntry>()))
}

/// Everything about a ring but its messages. Zeroed memory is a ring that was never used. The
/// ring's lock guards the head.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RingHead {
    /// The generation of the ring, as `pool` gives it; 0 before the first.
    generation: u64,
    /// 1: the generation has ended, because the database has no slot any more. 0: the generation
    /// runs.
    closed: u32,
    /// The relay's process number plus 1; 0 without a relay.
    relay: u32,
    /// 1: the relay waits on its latch, and the next message to send has to wake it. 0: the relay
    /// does not wait.
    relay_waits: u32,
    /// The process number plus 1 of the first waiter in the list; 0 if no process waits.
    waiters: u32,
    /// The clock reading from which `RELAY_MAY_BE_AWAY` runs, in microseconds. The relay last sent
    /// something then, or the first waiting message came, whichever is later. Means nothing while
    /// no message waits.
    waits_since: ClockTime,
    /// The position before the first message of this generation.
    start: i64,
    /// The last position that was given in this generation, or `start` before the first message.
    /// 0 before the first generation. Above all positions of earlier generations.
    position: i64,
    /// The ordinal of the oldest entry. Ordinals count the entries of this generation from 0.
    first: u64,
    /// The ordinal of the first entry that the relay has not passed.
    relayed: u64,
    /// The ordinal of the next message.
    next: u64,
    /// The offset of the first entry's bytes. Offsets count the bytes of this generation from 0.
    begin: u64,
    /// The offset behind the last entry's bytes.
    end: u64,
    /// The number of entries that transactions have reserved and not filled.
    reserved_entries: u64,
    /// The number of bytes that transactions have reserved and not filled.
    reserved_bytes: u64,
}

/// One message. Its channel and payload are in the bytes, one behind the other. The ring's lock
/// guards the entry. An entry means nothing unless its ordinal is between `first` and `next`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RingEntry {
    /// The position of the message.
    position: i64,
    /// The wall time at which the message was published, in microseconds.
    sent_at: WallTime,
    /// The offset of the channel's first byte.
    at: u64,
    /// The key of the channel: a hash of schema and name.
    key: u32,
    /// The oid of the channel's schema; 0 for a verbatim channel.
    schema: SchemaOid,
    /// The oid of the source table; 0 without one.
    table: TableOid,
    /// The length of the payload, in bytes.
    payload: u16,
    /// The length of the channel's name, in bytes.
    channel: u8,
    /// 1: the payload is any text. 0: the payload is the wire form of a JSON object.
    text: u8,
    /// 1: the relay may merge the message with an equal one. 0: the message is sent for itself.
    wakeup: u8,
    /// 1: the relay need not send the message, because its transaction has sent or dropped it, or
    /// no session listens. 0: the relay has to send the message.
    settled: u8,
    /// The role's slot in `roles` plus 1, whose usage shrinks when the relay passes the message. 0:
    /// the role has no limit.
    role_slot: u16,
}

impl RingHead {
    /// Returns the last position that was given, or `start` if this generation has given none; 0
    /// before the first generation.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Returns the clock reading from which waiting messages are stranded. `None`: there is a
    /// relay, or no message waits.
    fn stranded_at(&self) -> Option<ClockTime> {
        (self.relay == 0 && self.relayed < self.next).then(|| self.waits_since + RELAY_MAY_BE_AWAY)
    }
}

/// A role with a limit, and its usage of the ring. The ring's lock guards the slot. A free slot has
/// no entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RoleUsage {
    /// The oid of the role.
    role: RoleOid,
    /// The number of entries that the role has reserved, or that the relay has not passed; 0 in a
    /// free slot.
    entries: u32,
    /// The number of bytes of those entries.
    bytes: u64,
}

/// The messages of one role in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The oid of the role; 0 for a role without a limit.
    pub role: RoleOid,
    /// The number of messages.
    pub entries: usize,
    /// The number of bytes of their channels and payloads.
    pub bytes: usize,
    /// The role's slot in `roles` plus 1, while room is reserved; 0 for a role without a limit.
    role_slot: u16,
}

impl Charge {
    /// Returns a charge that has reserved nothing yet.
    pub fn new(role: RoleOid, entries: usize, bytes: usize) -> Self {
        Self { role, entries, bytes, role_slot: 0 }
    }

    /// Returns the value for `Incoming::role_slot`, once room is reserved.
    pub fn role_slot(&self) -> u16 {
        self.role_slot
    }
}

/// The most that one role with a limit may have in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The number of entries.
    pub entries: usize,
    /// The number of bytes.
    pub bytes: usize,
}

impl RingEntry {
    /// Returns the bytes of channel and payload.
    fn len(&self) -> u64 {
        u64::from(self.channel) + u64::from(self.payload)
    }
}

/// A channel as readers ask for it. A verbatim channel and a prefix's channel with the same full
/// name are two channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The oid of the prefix's schema; 0 for a verbatim channel.
    pub schema: SchemaOid,
    /// The short name. A verbatim channel has its full name.
    pub name: Vec<u8>,
    /// A hash of schema and name. Two channels may have the same key.
    key: u32,
}

impl Channel {
    pub fn new(schema: SchemaOid, name: Vec<u8>) -> Self {
        let key = key(schema, &name);
        Self { schema, name, key }
    }
}

fn key(schema: SchemaOid, name: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(schema.0);
    hasher.write(name);
    hasher.finish() as u32
}

/// One message on its way into a ring.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// The channel of the message.
    pub channel: &'a Channel,
    /// The source table of the message. `NONE`: the message has no source table.
    pub table: TableOid,
    /// The payload of the message.
    pub payload: &'a [u8],
    /// Whether the payload is any text, and not the wire form of a JSON object.
    pub text: bool,
    /// Whether the relay may merge the message with an equal one.
    pub wakeup: bool,
    /// Whether the relay need not send the message.
    pub settled: bool,
    /// The slot of the charge that the message is a part of; 0 for a role without a limit.
    pub role_slot: u16,
}

/// How the messages of a transaction that is about to commit are to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Room is reserved, and the relay will send. If there is no relay, earlier messages already
    /// wait for one, and are not stranded yet.
    Relay,
    /// Room is reserved, and the transaction sends as well. There is no relay, and either no
    /// message waits for one, or the waiting messages are stranded.
    RelayAndNative,
    /// There is no room, or a role would exceed its quota. The transaction sends, and readers are
    /// told of a gap.
    Native,
}

/// The slot of a process that may wait in a ring. The lock of the ring in which the process waits
/// guards the slot: a process waits in one ring at a time. Zeroed memory is a process that does not
/// wait.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiter {
    /// 1: the process waits, and is in the list of waiters. 0: the process does not wait.
    linked: u32,
    /// The process number plus 1 of the waiter before this one; 0 for the first.
    before: u32,
    /// The process number plus 1 of the waiter behind this one; 0 for the last.
    after: u32,
    /// The number of channels that the process waits for. If not all fit into `keys`, any message
    /// wakes the process.
    count: u32,
    /// The keys of the channels.
    keys: [u32; WAITER_KEYS],
}

/// The most channels that a waiter is woken for singly. Oban's nodes listen to four.
const WAITER_KEYS: usize = 8;

/// Which waiters to wake.
#[derive(Clone, Copy, Debug)]
pub enum Audience<'a> {
    /// Waiters for a channel that has one of these keys (`keys`).
    Keys(&'a [u32]),
    /// All waiters, because there is a gap, or the generation ended.
    All,
}

/// How far a reader has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The position behind which the reader goes on.
    pub position: i64,
    /// The number of messages that the reader passed over and did not find. `None`: the position
    /// that the reader came from is not of this generation.
    pub missed: Option<i64>,
    /// Whether there may be more to read now.
    pub more: bool,
}

/// Space for the messages that a reader or the relay copies out. All of it is allocated beforehand.
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
    /// The position of the message.
    pub position: i64,
    /// The wall time at which the message was published, in microseconds.
    pub sent_at: WallTime,
    /// The oid of the channel's schema; 0 for a verbatim channel.
    pub schema: SchemaOid,
    /// The short name of the channel. A verbatim channel has its full name.
    pub channel: &'a [u8],
    /// The source table of the message. `NONE`: the message has no source table.
    pub table: TableOid,
    /// The payload of the message.
    pub payload: &'a [u8],
    /// Whether the payload is any text, and not the wire form of a JSON object.
    pub text: bool,
    /// Whether the relay may merge the message with an equal one.
    pub wakeup: bool,
    /// The number of messages that the reader has passed over and not found, in this read and
    /// before this message.
    pub missed: i64,
}

/// The bytes of the longest channel and the longest payload together.
const MAX_MESSAGE_BYTES: usize = super::channel::MAX_CHANNEL + super::wire::MAX_PAYLOAD;

impl Batch {
    /// Returns an empty batch for at most so many messages and bytes. One message always fits.
    pub fn new(messages: usize, bytes: usize) -> Self {
        Self {
            items: Vec::with_capacity(messages.max(1)),
            bytes: Vec::with_capacity(bytes.max(MAX_MESSAGE_BYTES)),
        }
    }

    /// Takes all messages out, and keeps the memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.bytes.clear();
    }

    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns the messages, in the order of their positions.
    pub fn messages(&self) -> impl Iterator<Item = RingMessage<'_>> {
        self.items.iter().map(|Item { entry, at, missed }| {
            let (channel, payload) = (usize::from(entry.channel), usize::from(entry.payload));
            RingMessage {
                position: entry.position,
                sent_at: entry.sent_at,
                schema: entry.schema,
                channel: &self.bytes[*at..at + channel],
                table: entry.table,
                payload: &self.bytes[at + channel..at + channel + payload],
                text: entry.text != 0,
                wakeup: entry.wakeup != 0,
                missed: *missed,
            }
        })
    }

    /// Returns whether the batch can take an entry without allocating.
    fn fits(&self, entry: &RingEntry) -> bool {
        self.items.len() < self.items.capacity()
            && self.bytes.len() + entry.len() as usize <= self.bytes.capacity()
    }
}

/// A ring, to read it. The ring's lock is held at least shared as long as this struct exists.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The state of the ring.
    pub head: &'a RingHead,
    /// The entries, by ordinal modulo their number.
    pub entries: &'a [RingEntry],
    /// The bytes of the messages, by offset modulo their number.
    pub bytes: &'a [u8],
}

impl View<'_> {
    /// Returns the last position that was given, or `start` if this generation has given none.
    pub fn position(&self) -> i64 {
        self.head.position
    }

    /// Returns whether the ring is in this generation, and the generation has not ended.
    pub fn is_of(&self, generation: u64) -> bool {
        self.head.generation == generation && self.head.closed == 0
    }

    /// Returns the bytes of the messages in the ring, and the bytes that the ring can hold.
    pub fn used(&self) -> (u64, u64) {
        (self.head.end - self.head.begin, self.bytes.len() as u64)
    }

    /// Returns whether messages are stranded.
    pub fn is_stranded(&self, now: impl Fn() -> ClockTime) -> bool {
        self.head.stranded_at().is_some_and(|at| at <= now())
    }

    /// Returns the clock reading from which waiting messages are stranded if no relay comes.
    /// `None`: there is a relay, or no message waits.
    pub fn stranded_at(&self) -> Option<ClockTime> {
        self.head.stranded_at()
    }

    /// Returns how many entries the relay has not passed.
    pub fn backlog(&self) -> u64 {
        self.head.next - self.head.relayed
    }

    fn entry(&self, ordinal: u64) -> &RingEntry {
        &self.entries[(ordinal % self.entries.len() as u64) as usize]
    }

    /// Returns the bytes from an offset on: `len` bytes, or fewer if the area ends before.
    fn part(&self, at: u64, len: usize) -> &[u8] {
        let start = (at % self.bytes.len() as u64) as usize;
        &self.bytes[start..self.bytes.len().min(start + len)]
    }

    /// Returns whether an entry's message is on a channel.
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

    /// Copies an entry and its bytes into a batch that has space for them.
    fn copy(&self, entry: &RingEntry, missed: i64, batch: &mut Batch) {
        let (at, len) = (batch.bytes.len(), entry.len() as usize);
        batch.items.push(Item { entry: *entry, at, missed });
        let part = self.part(entry.at, len);
        batch.bytes.extend_from_slice(part);
        batch.bytes.extend_from_slice(self.part(entry.at + part.len() as u64, len - part.len()));
    }

    /// Copies messages behind `after` that are on one of the channels, until the batch is full.
    /// Returns how far the reader has come.
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
            position = head.position; // passes a gap at the end, too
        } else if passed == 0 && !known {
            position = self.entry(from).position - 1;
        }
        Progress { position, missed: known.then(|| position - after - passed), more }
    }

    /// Returns the ordinal of the first entry behind a position.
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

    /// Copies messages that the relay has to send, until the batch is full. Returns the ordinal
    /// behind the last entry that was looked at, and whether entries follow.
    pub fn unsent(&self, batch: &mut Batch) -> (u64, bool) {
        let mut ordinal = self.head.relayed;
        while ordinal < self.head.next {
            let entry = self.entry(ordinal);
            if entry.settled == 0 {
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

/// A ring, to change it. The ring's lock is held exclusively as long as this struct exists.
pub struct Ring<'a> {
    /// The state of the ring.
    pub head: &'a mut RingHead,
    /// The entries, by ordinal modulo their number.
    pub entries: &'a mut [RingEntry],
    /// The bytes of the messages, by offset modulo their number.
    pub bytes: &'a mut [u8],
    /// The usage of roles with a limit.
    pub roles: &'a mut [RoleUsage],
    /// The slots for waiters, one for each process of the server. All rings share them.
    pub waiters: &'a mut [Waiter],
}

impl Ring<'_> {
    /// Returns the ring for reading.
    pub fn view(&self) -> View<'_> {
        View { head: self.head, entries: self.entries, bytes: self.bytes }
    }

    /// Begins a generation, unless this generation or a later one has begun. Returns whether this
    /// call began the generation. `None`: the generation has ended, or a later one has begun. The
    /// first position of the generation is above `start`, and above all positions of earlier
    /// generations.
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

    /// Ends a generation, unless a later one has begun. Returns the last position.
    pub fn close(&mut self, generation: u64) -> i64 {
        if self.head.generation <= generation {
            (self.head.generation, self.head.closed) = (generation, 1);
        }
        self.head.position
    }

    /// Reserves room for a transaction's messages, if there is room and each role stays within its
    /// quota. Returns how the transaction is to send.
    pub fn reserve(&mut self, charges: &mut [Charge], quota: Quota, now: impl Fn() -> ClockTime) -> Route {
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
        // A message that is sent now would overtake those that wait for a relay.
        let waits = head.stranded_at().is_some_and(|at| now() < at);
        if head.relay != 0 || waits { Route::Relay } else { Route::RelayAndNative }
    }

    /// Notes what a role reserves. Returns false if the role would exceed its quota, or `roles` is
    /// full.
    fn charge(&mut self, charge: &mut Charge, quota: Quota) -> bool {
        charge.role_slot = 0;
        if charge.role.is_none() || charge.entries == 0 {
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

    /// Takes back what `charge` noted.
    fn discharge(&mut self, charge: &Charge) {
        self.release(charge.role_slot, charge.entries, charge.bytes);
    }

    /// Takes entries and bytes off the usage of the role in this slot.
    fn release(&mut self, role_slot: u16, entries: usize, bytes: usize) {
        if let Some(role_slot) = usize::from(role_slot).checked_sub(1).and_then(|at| self.roles.get_mut(at)) {
            role_slot.entries -= entries as u32;
            role_slot.bytes -= bytes as u64;
        }
    }

    /// Gives back room that was reserved and not filled, after an abort.
    pub fn give_back(&mut self, charges: &[Charge]) {
        let (entries, bytes) = total(charges);
        self.head.reserved_entries -= entries;
        self.head.reserved_bytes -= bytes;
        charges.iter().for_each(|charge| self.discharge(charge));
    }

    /// Adds a message, in room that was reserved for it. `sent_at` is the wall time for readers,
    /// and `now` the clock reading, both in microseconds.
    pub fn append(&mut self, message: &Incoming<'_>, sent_at: WallTime, now: ClockTime) {
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
            table: message.table,
            payload: message.payload.len() as u16,
            channel: name.len() as u8,
            text: message.text.into(),
            wakeup: message.wakeup.into(),
            settled: message.settled.into(),
            role_slot: message.role_slot,
        };
        if self.head.relayed == self.head.next {
            if message.settled {
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

    /// Writes bytes from an offset on, around the end of the area if needed.
    fn write(&mut self, at: u64, what: &[u8]) {
        let start = (at % self.bytes.len() as u64) as usize;
        let (one, other) = what.split_at(what.len().min(self.bytes.len() - start));
        self.bytes[start..start + one.len()].copy_from_slice(one);
        self.bytes[..other.len()].copy_from_slice(other);
    }

    /// Counts messages that are not in the ring. Readers are told of them as a gap.
    pub fn skip(&mut self, messages: usize) {
        self.head.position += messages as i64;
    }

    /// Notes that a backend or the keeper has sent everything before this ordinal in the relay's
    /// place. `waits_since` stays, or messages that are still stranded would wait again.
    pub fn passed_by_others(&mut self, ordinal: u64) {
        self.release_up_to(ordinal);
    }

    /// Notes that the relay has sent everything before this ordinal. The messages behind it wait
    /// anew.
    pub fn passed_by_relay(&mut self, ordinal: u64, now: ClockTime) {
        self.release_up_to(ordinal);
        self.head.waits_since = now;
    }

    /// Frees the room of the entries before this ordinal, which were sent.
    fn release_up_to(&mut self, ordinal: u64) {
        for passed in self.head.relayed..ordinal.min(self.head.next) {
            let entry = *self.view().entry(passed);
            self.release(entry.role_slot, 1, entry.len() as usize);
            self.head.relayed = passed + 1;
        }
    }

    /// Makes a process the relay. The relay calls this, or the process that opens the ring of a
    /// database that has a relay.
    pub fn attach_relay(&mut self, procno: i32) {
        (self.head.relay, self.head.relay_waits) = (procno as u32 + 1, 0);
    }

    /// Takes the relay out, if it is this process.
    pub fn detach_relay(&mut self, procno: i32) {
        if self.head.relay == procno as u32 + 1 {
            (self.head.relay, self.head.relay_waits) = (0, 0);
        }
    }

    /// Notes that the relay will wait on its latch, unless there is something to send. Returns
    /// false if there is something to send: then the relay must not wait.
    pub fn relay_starts_waiting(&mut self) -> bool {
        self.head.relay_waits = u32::from(self.head.relayed == self.head.next);
        self.head.relay_waits != 0
    }

    /// Returns the process number of the relay if it waits and there is something to send. The
    /// caller has to set its latch, after the lock is released. `None`: the relay need not be
    /// woken.
    pub fn wake_relay(&mut self) -> Option<i32> {
        let wake = self.head.relay_waits != 0 && self.head.relayed < self.head.next;
        wake.then(|| {
            self.head.relay_waits = 0;
            self.head.relay as i32 - 1
        })
    }

    /// Registers a reader as a waiter for messages on these channels, and for gaps. The reader
    /// waits on its latch only after the lock is released.
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

    /// Takes a process out of the waiters. Does nothing for a process that does not wait.
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

    /// Takes waiters out that the audience includes, as many as `woken` has room for. Returns how
    /// many. The caller has to set their latches after the lock is released, and to repeat the call
    /// as long as `woken` comes back full.
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

    /// Returns the keys of the channels of the last `messages` entries, each once. `None`: `keys`
    /// has too little room for them.
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

/// Returns the entries and the bytes of all charges.
fn total(charges: &[Charge]) -> (u64, u64) {
    charges.iter().fold((0, 0), |(entries, bytes), c| (entries + c.entries as u64, bytes + c.bytes as u64))
}

#[cfg(test)]
mod tests;
