//! The gossip table: one entry for each (database, schema, instance name, node, queue). The memory
//! of the table is bounded, and a state may have any size. (The caller bounds the size of a state.)
//! A schema is named by its oid. So a rename changes nothing here, and a new schema of an old name
//! has none of the old schema's entries.
//!
//! The bytes of an entry (its three names, then its state) are in a chain of equal blocks. Any free
//! block is as good as any other, so there is no fragmentation. Entries hang in hash buckets. Links
//! between entries and between blocks count from 1, and 0 means none, so that zeroed memory is an
//! empty table.
//!
//! A change is made whole or not at all: `put` finds out that there is room before it changes
//! anything.
//!
//! An entry is *local* (put by a call on this server) or *foreign* (ingested from a node that
//! gossips by NOTIFY). Local entries are broadcast. A foreign entry never replaces a local entry
//! that has not expired. All foreign entries together never take more than half of the blocks,
//! because any role may NOTIFY.
//!
//! Each entry counts for one `BlockUsage`: that of the foreign entries, or that of the role that
//! put the entry last. A put that would let a role hold more than its quota is refused. A put does
//! not look at other entries in order to count.
//!
//! There are two clocks. Deadlines and clock readings are of `pg::clock`, which nobody can set, in
//! microseconds. `started_at` and `updated_at` are wall time, for people and for other nodes; they
//! decide nothing here.
//!
//! Readers copy entries piece by piece (`EntryBatch`), so that a put never waits for a whole
//! reading. Each entry is consistent; all entries together are no snapshot. An entry stays at its
//! index while it is replaced. An entry that was deleted and put again during a reading may be read
//! twice. `EntryBatch::into_latest` then keeps the later copy.

pub mod memory;

use std::collections::HashMap;
use std::hash::Hasher;

use memory::{GossipProcess, Identity, Processes};

use super::ids::{DatabaseOid, RoleOid, SchemaOid};
use super::times::{ClockTime, WallTime};

/// Bytes of a block that hold data. With the index of the next block a block has 256 bytes. A check
/// of ten keys takes two blocks.
pub const BLOCK: usize = 252;

/// A piece of an entry's bytes in shared memory, guarded by the lock Gossip. A zeroed block was
/// never used.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Block {
    /// The link of the next block of the entry or of the free list; 0 for the last one.
    next: u32,
    /// Data. The last block of an entry may hold less than `BLOCK` bytes of data.
    bytes: [u8; BLOCK],
}

impl Default for Block {
    fn default() -> Self {
        Self { next: 0, bytes: [0; BLOCK] }
    }
}

/// An entry in shared memory, guarded by the lock Gossip. A zeroed entry is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GossipEntry {
    /// The hash of the whole key. 0 in a free entry.
    hash: u64,
    /// The hash of the key without its queue. 0 in a free entry.
    node_hash: u64,
    /// The link of the next entry of the bucket, or of the free list; 0 for the last one.
    next: u32,
    /// How many blocks the entry takes; 0 if the entry is free.
    blocks: u32,
    /// The link of the entry's first block; 0 in a free entry.
    first: u32,
    /// The oid of the database; 0 in a free entry.
    database: DatabaseOid,
    /// The oid of the schema; 0 in a free entry.
    schema: SchemaOid,
    /// The length of the state, in bytes; 0 in a free entry.
    state: u32,
    /// The length of the instance name, in bytes; 0 in a free entry.
    name: u16,
    /// The length of the node's name, in bytes; 0 in a free entry.
    node: u16,
    /// The length of the queue's name, in bytes; 0 in a free entry.
    queue: u16,
    /// The index of the block usage that the entry counts for. `FOREIGN`, which is 0, marks a
    /// foreign entry.
    block_usage: u16,
    /// The wall time at which the queue started, in microseconds since 2000-01-01 UTC.
    started_at: WallTime,
    /// The wall time of the last put, in microseconds since 2000-01-01 UTC.
    updated_at: WallTime,
    /// The clock reading at the last put, in microseconds.
    put_at: ClockTime,
    /// The deadline at which the entry expires, as a clock reading in microseconds.
    expires_at: ClockTime,
    /// The link of the process that put the entry; 0 if the entry is free, or there was no room to
    /// remember the process.
    process: u32,
    /// Padding.
    unused: u32,
}

impl GossipEntry {
    /// Returns whether the entry comes from a node that gossips by NOTIFY.
    fn is_foreign(&self) -> bool {
        self.block_usage == FOREIGN
    }
}

/// How many blocks the entries of one role, or of several that count together, take. A block usage
/// is in shared memory, guarded by the lock Gossip. A zeroed block usage is free. (The number of
/// entries needs no quota: each entry takes at least one block.)
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// The oid of the role; 0 if the block usage is free, or does not belong to a single role.
    role: RoleOid,
    /// How many blocks count for the block usage.
    blocks: u32,
}

/// The number of block usages. All but three belong to single roles. A role has its block usage
/// while it has entries.
pub const MAX_BLOCK_USAGES: usize = 128;

/// The index of the block usage of all foreign entries.
const FOREIGN: u16 = 0;
/// The index of the block usage of all entries that roles without a limit put.
const UNLIMITED: u16 = 1;
/// The index of the first block usage of a single role. The roles that find no free block usage
/// share the last block usage of all. An entry that counts for the shared block usage still counts
/// for it when its role finds a block usage for later entries.
const FIRST_ROLE: u16 = 2;

/// The counters and the heads of the free lists, in shared memory, guarded by the lock Gossip.
/// `*_touched` is the number of items that were ever used. Memory above that number is free and was
/// never written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GossipHead {
    /// The link of the first free entry below `entries_touched`; 0 if no such entry is free.
    free_entry: u32,
    /// The link of the first free block below `blocks_touched`; 0 if no such block is free.
    free_block: u32,
    /// How many entries were ever used.
    entries_touched: u32,
    /// How many blocks were ever used.
    blocks_touched: u32,
    /// How many entries are in use.
    pub entries: u32,
    /// How many blocks are in use.
    pub blocks: u32,
    /// How many block usages of single roles were ever used. Those beyond these are free.
    roles_touched: u32,
    /// A deadline that is not later than the earliest of any entry, in microseconds; 0 when the
    /// table is empty.
    pub next_expiry: ClockTime,
    /// How many entries were ever inserted. If this number stays the same during a reading, the
    /// reading has no entry twice.
    pub inserted: u64,
}

/// Returns how many entries, buckets and blocks fit into `bytes`, together with the memory of
/// processes. (An entry of one block is the smallest.)
pub fn capacity(bytes: usize) -> usize {
    let each = size_of::<GossipEntry>() + size_of::<Block>() + size_of::<u32>();
    let process = size_of::<GossipProcess>() + size_of::<u32>();
    (bytes / (each + process.div_ceil(ENTRIES_PER_PROCESS))).min(u32::MAX as usize / 2)
}

/// The table remembers one process for this many entries.
const ENTRIES_PER_PROCESS: usize = 2;

/// Returns how many processes are remembered beside this many entries.
pub fn processes(entries: usize) -> usize {
    (entries / ENTRIES_PER_PROCESS).max(1)
}

/// The key of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    pub database: DatabaseOid,
    pub schema: SchemaOid,
    pub name: &'a str,
    pub node: &'a str,
    pub queue: &'a str,
}

/// The quota of the role that puts: the most blocks that the role may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub role: RoleOid,
    pub most: usize,
}

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A session of this server put the entry. `None`: the role has no limit.
    Local(Option<Quota>),
    /// A foreign node gossiped the entry by NOTIFY.
    Foreign,
}

/// What is put.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    pub state: &'a [u8],
    /// Wall time. `None`: the new entry keeps `started_at` of the entry of the same origin that it
    /// replaces. If there is no such entry, or it has expired, the new entry gets `updated_at`.
    pub started_at: Option<WallTime>,
    /// Wall time.
    pub updated_at: WallTime,
    /// The clock reading at the put.
    pub now: ClockTime,
    /// The deadline of the entry.
    pub expires_at: ClockTime,
    pub source: Source,
    /// The process that puts.
    pub identity: Identity,
}

/// What a put has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// The put changed nothing, because the entry is foreign and a local entry has not expired.
    pub ignored: bool,
    /// The entry that was replaced had expired.
    pub expired: bool,
}

/// The error of a put that finds no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    /// How many more bytes the put would have needed.
    pub missing: usize,
    /// Whether the quota of the role is used up; if false, the table is full.
    pub quota: bool,
}

/// The table for writers. The caller holds the lock Gossip exclusively as long as this value lives.
pub struct Table<'a> {
    pub head: &'a mut GossipHead,
    /// The link of the first entry of each hash bucket; 0 if the bucket is empty.
    pub buckets: &'a mut [u32],
    pub entries: &'a mut [GossipEntry],
    pub blocks: &'a mut [Block],
    /// At least four block usages: foreign, unlimited, at least one for a single role, and the
    /// shared one.
    pub block_usages: &'a mut [BlockUsage],
    pub processes: Processes<'a>,
}

/// The table for readers. The caller holds the lock Gossip, shared or exclusively, as long as this
/// value lives.
pub struct View<'a> {
    pub entries: &'a [GossipEntry],
    pub blocks: &'a [Block],
    /// How many of `entries` were ever used; a reader looks at no others.
    pub touched: usize,
}

/// What a database has in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub entries: usize,
    /// How many of `entries` are foreign.
    pub foreign: usize,
    /// The memory that the entries take, in bytes.
    pub bytes: usize,
}

/// An entry that was copied out of the table, as references into a `EntryBatch` or a `EntryCopy`.
/// The times are those of `GossipEntry`.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    pub schema: SchemaOid,
    pub name: &'a str,
    pub node: &'a str,
    pub queue: &'a str,
    pub state: &'a [u8],
    pub started_at: WallTime,
    pub updated_at: WallTime,
    pub put_at: ClockTime,
    pub expires_at: ClockTime,
    pub foreign: bool,
}

/// A copy of an entry that owns its parts. The times are those of `GossipEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryCopy {
    pub schema: SchemaOid,
    pub name: String,
    pub node: String,
    pub queue: String,
    pub state: Vec<u8>,
    pub started_at: WallTime,
    pub updated_at: WallTime,
    pub put_at: ClockTime,
    pub expires_at: ClockTime,
    pub foreign: bool,
}

impl EntryCopy {
    /// Returns the entry as references into this copy.
    pub fn seen(&self) -> EntryRef<'_> {
        let Self { name, node, queue, state, .. } = self;
        let Self { schema, started_at, updated_at, put_at, expires_at, foreign, .. } = *self;
        EntryRef { schema, name, node, queue, state, started_at, updated_at, put_at, expires_at, foreign }
    }
}

impl EntryRef<'_> {
    /// Returns a copy that owns its parts.
    pub fn copy(&self) -> EntryCopy {
        let EntryRef { schema, started_at, updated_at, put_at, expires_at, foreign, .. } = *self;
        let [name, node, queue] = [self.name, self.node, self.queue].map(str::to_owned);
        let state = self.state.to_vec();
        EntryCopy { schema, name, node, queue, state, started_at, updated_at, put_at, expires_at, foreign }
    }
}

impl GossipHead {
    /// Returns how many entries a reader has to look at.
    pub fn entries_touched(&self) -> usize {
        self.entries_touched as usize
    }
}

impl Table<'_> {
    /// Inserts or replaces the entry of `key`. Err: there is no room, and the table is unchanged. A
    /// put that is refused or ignored is nevertheless a sign of life of the process.
    pub fn put(&mut self, key: &Key<'_>, new: &NewEntry<'_>) -> Result<Put, Full> {
        let NewEntry { state, now, expires_at, source, identity, .. } = *new;
        let foreign = source == Source::Foreign;
        let parts = [key.name.as_bytes(), key.node.as_bytes(), key.queue.as_bytes(), state];
        let needed = parts.iter().map(|p| p.len()).sum::<usize>().div_ceil(BLOCK).max(1);
        let (node_hash, hash) = hashes(key);
        let old = self.find(hash, key);
        let before = old.map_or_else(GossipEntry::default, |i| self.entries[i]);
        let lives = old.is_some() && now < before.expires_at;
        if foreign && lives && !before.is_foreign() {
            self.processes.refused(&identity, now, expires_at, foreign);
            return Ok(Put { ignored: true, expired: false });
        }

        let block_usage = self.block_usage_of(source);
        let (free, own) = self.room(source, block_usage, &before);
        let no_entry = old.is_none() && self.head.entries as usize >= self.entries.len();
        if needed > free.min(own) || no_entry {
            let missing = needed.saturating_sub(free.min(own)).max(1) * size_of::<Block>();
            self.processes.refused(&identity, now, expires_at, foreign);
            return Err(Full { missing, quota: !foreign && own < needed.min(free) });
        }

        let index = match old {
            Some(index) => {
                self.release_blocks(index);
                index
            }
            None => self.take_entry(hash),
        };
        let first = self.write_blocks(&parts, needed);
        self.hold(block_usage, source, needed);
        let same_origin = old.is_some() && before.is_foreign() == foreign;
        let process = if self.processes.is(before.process, &identity) {
            self.processes.again(before.process, now, foreign);
            before.process
        } else {
            self.processes.detach(before.process, now, lives);
            self.processes.attach(&identity, now, foreign)
        };
        let entry = &mut self.entries[index];
        *entry = GossipEntry {
            hash,
            node_hash,
            next: entry.next,
            blocks: needed as u32,
            first,
            database: key.database,
            schema: key.schema,
            state: state.len() as u32,
            name: key.name.len() as u16,
            node: key.node.len() as u16,
            queue: key.queue.len() as u16,
            block_usage: block_usage as u16,
            started_at: new.started_at.unwrap_or(if lives && same_origin {
                before.started_at
            } else {
                new.updated_at
            }),
            updated_at: new.updated_at,
            put_at: now,
            expires_at,
            process,
            unused: 0,
        };
        if self.head.next_expiry == ClockTime::ZERO || expires_at < self.head.next_expiry {
            self.head.next_expiry = expires_at;
        }
        Ok(Put { ignored: false, expired: old.is_some() && !lives })
    }

    /// Returns how many blocks are free, and how many a source may take up, once the entry `before`
    /// is replaced.
    fn room(&self, source: Source, block_usage: usize, before: &GossipEntry) -> (usize, usize) {
        let free = self.blocks.len() - (self.head.blocks - before.blocks) as usize;
        let most = match source {
            Source::Foreign => Some(self.blocks.len() / 2),
            Source::Local(quota) => quota.map(|quota| quota.most),
        };
        let own = most.map_or(free, |most| {
            // The replaced entry may count for another role.
            let replaced = if before.block_usage as usize == block_usage { before.blocks } else { 0 };
            most.saturating_sub((self.block_usages[block_usage].blocks - replaced) as usize)
        });
        (free, own)
    }

    /// Returns the index of the `BlockUsage` that an entry of this source counts for: the role's
    /// own, else a free one, else the last.
    fn block_usage_of(&self, source: Source) -> usize {
        let quota = match source {
            Source::Foreign => return FOREIGN as usize,
            Source::Local(None) => return UNLIMITED as usize,
            Source::Local(Some(quota)) => quota,
        };
        let (first, last) = (FIRST_ROLE as usize, self.block_usages.len() - 1);
        let touched = first + self.head.roles_touched as usize;
        let found = |wanted: RoleOid| self.block_usages[first..touched].iter().position(|h| h.role == wanted);
        found(quota.role).or_else(|| found(RoleOid::NONE)).map_or(touched.min(last), |i| first + i)
    }

    /// Adds `blocks` blocks of an entry of this origin to a block usage.
    fn hold(&mut self, index: usize, source: Source, blocks: usize) {
        self.block_usages[index].blocks += blocks as u32;
        if let Source::Local(Some(quota)) = source
            && index != self.block_usages.len() - 1
        {
            self.block_usages[index].role = quota.role;
            let touched = index + 1 - FIRST_ROLE as usize;
            self.head.roles_touched = self.head.roles_touched.max(touched as u32);
        }
    }

    /// Deletes the entry of `key`. Returns whether the entry was there and had not expired at
    /// `now`.
    pub fn delete(&mut self, key: &Key<'_>, now: ClockTime) -> bool {
        let Some(index) = self.find(hashes(key).1, key) else { return false };
        let lived = now < self.entries[index].expires_at;
        self.remove(index, now, lived);
        lived
    }

    /// Deletes the entries of `key`'s node, whatever their queues are. Returns how many of these
    /// entries had not expired at `now`.
    pub fn delete_node(&mut self, key: &Key<'_>, now: ClockTime) -> usize {
        let (node_hash, _) = hashes(key);
        let mut lived = 0;
        for index in 0..self.head.entries_touched as usize {
            let entry = self.entries[index];
            if entry.blocks != 0 && entry.node_hash == node_hash && self.view().is_of_node(&entry, key) {
                let lives = now < entry.expires_at;
                lived += usize::from(lives);
                self.remove(index, now, lives);
            }
        }
        lived
    }

    /// Deletes the entries that have expired at `now`, and calls `tell` with the database of each.
    /// Sets `next_expiry` to the earliest deadline that is left.
    pub fn expire(&mut self, now: ClockTime, mut tell: impl FnMut(DatabaseOid)) {
        let mut earliest = ClockTime::ZERO;
        self.remove_where(now, |entry| {
            let expired = entry.expires_at <= now;
            if expired {
                tell(entry.database);
            } else if earliest == ClockTime::ZERO || entry.expires_at < earliest {
                earliest = entry.expires_at;
            }
            expired
        });
        self.head.next_expiry = earliest;
    }

    /// Deletes the entries of a database that were put before the clock reading `before`. The
    /// database or its extension was dropped. Returns how many entries were deleted.
    pub fn forget_database(&mut self, database: DatabaseOid, before: ClockTime) -> usize {
        self.forget(before, |d, _| d == database)
    }

    /// Deletes the entries of a schema that were put before the clock reading `before`. Returns how
    /// many entries were deleted.
    pub fn forget_schema(&mut self, database: DatabaseOid, schema: SchemaOid, before: ClockTime) -> usize {
        self.forget(before, |d, s| (d, s) == (database, schema))
    }

    /// Deletes the entries of all databases for which `exists` returns false, if they were put
    /// before the clock reading `before`. Returns how many entries were deleted.
    pub fn forget_databases(&mut self, exists: impl Fn(DatabaseOid) -> bool, before: ClockTime) -> usize {
        self.forget(before, |d, _| !exists(d))
    }

    /// Deletes entries that were put before the clock reading `before`, and forgets processes
    /// without an entry that were last heard before then. `wanted` gets the oids of a database and
    /// a schema, and returns whether their entries and processes go. Returns how many entries were
    /// deleted.
    fn forget(&mut self, before: ClockTime, wanted: impl Fn(DatabaseOid, SchemaOid) -> bool) -> usize {
        let removed =
            self.remove_where(before, |entry| entry.put_at < before && wanted(entry.database, entry.schema));
        self.processes.forget(before, wanted);
        removed
    }

    /// Deletes the entries for which `wanted` returns true, as if they expired at `now`. Returns
    /// how many entries were deleted.
    fn remove_where(&mut self, now: ClockTime, mut wanted: impl FnMut(&GossipEntry) -> bool) -> usize {
        let mut removed = 0;
        for index in 0..self.head.entries_touched as usize {
            if self.entries[index].blocks != 0 && wanted(&self.entries[index]) {
                self.remove(index, now, false);
                removed += 1;
            }
        }
        removed
    }

    /// Removes the entry at `index`. `deleted` is false if the entry expired.
    fn remove(&mut self, index: usize, now: ClockTime, deleted: bool) {
        self.processes.detach(self.entries[index].process, now, deleted);
        self.release_blocks(index);
        let bucket = self.bucket(self.entries[index].hash);
        let (link, next) = (index as u32 + 1, self.entries[index].next);
        if self.buckets[bucket] == link {
            self.buckets[bucket] = next;
        } else {
            let mut at = self.buckets[bucket];
            while at != 0 {
                let before = &mut self.entries[at as usize - 1];
                if before.next == link {
                    before.next = next;
                    break;
                }
                at = before.next;
            }
        }
        self.entries[index] = GossipEntry { next: self.head.free_entry, ..GossipEntry::default() };
        self.head.free_entry = link;
        self.head.entries -= 1;
        if self.head.entries == 0 {
            self.head.next_expiry = ClockTime::ZERO;
        }
    }

    fn view(&self) -> View<'_> {
        let touched = self.head.entries_touched as usize;
        View { entries: self.entries, blocks: self.blocks, touched }
    }

    /// Returns the index of the entry of `key`, or `None`. `hash` is the hash of the whole key.
    fn find(&self, hash: u64, key: &Key<'_>) -> Option<usize> {
        let mut at = self.buckets[self.bucket(hash)];
        while at != 0 {
            let entry = &self.entries[at as usize - 1];
            if entry.hash == hash && self.view().is_of(entry, key) {
                return Some(at as usize - 1);
            }
            at = entry.next;
        }
        None
    }

    fn bucket(&self, hash: u64) -> usize {
        (hash % self.buckets.len() as u64) as usize
    }

    /// Returns the index of a free entry, which is linked into its bucket. The caller has made sure
    /// that there is a free entry.
    fn take_entry(&mut self, hash: u64) -> usize {
        let index = match self.head.free_entry {
            0 => {
                self.head.entries_touched += 1;
                self.head.entries_touched as usize - 1
            }
            free => {
                self.head.free_entry = self.entries[free as usize - 1].next;
                free as usize - 1
            }
        };
        let bucket = self.bucket(hash);
        self.entries[index] = GossipEntry { hash, next: self.buckets[bucket], ..GossipEntry::default() };
        self.buckets[bucket] = index as u32 + 1;
        self.head.entries += 1;
        self.head.inserted += 1;
        index
    }

    /// Returns the link of a free block. The caller has made sure that there is a free block.
    fn take_block(&mut self) -> u32 {
        match self.head.free_block {
            0 => {
                self.head.blocks_touched += 1;
                self.head.blocks_touched
            }
            free => {
                self.head.free_block = self.blocks[free as usize - 1].next;
                free
            }
        }
    }

    /// Writes `parts` one behind the other into `count` free blocks. The parts fill exactly that
    /// many. Returns the link of the first block.
    fn write_blocks(&mut self, parts: &[&[u8]], count: usize) -> u32 {
        self.head.blocks += count as u32;
        let first = self.take_block();
        let (mut block, mut at) = (first, 0);
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                if at == BLOCK {
                    let next = self.take_block();
                    self.blocks[block as usize - 1].next = next;
                    (block, at) = (next, 0);
                }
                let (piece, left) = rest.split_at(rest.len().min(BLOCK - at));
                self.blocks[block as usize - 1].bytes[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
                rest = left;
            }
        }
        self.blocks[block as usize - 1].next = 0;
        first
    }

    /// Frees the blocks of an entry, and subtracts them from the entry's block usage.
    fn release_blocks(&mut self, index: usize) {
        let GossipEntry { first, blocks, block_usage, .. } = self.entries[index];
        let mut last = first;
        for _ in 1..blocks {
            last = self.blocks[last as usize - 1].next;
        }
        self.blocks[last as usize - 1].next = self.head.free_block;
        self.head.free_block = first;
        self.head.blocks -= blocks;
        let block_usage = &mut self.block_usages[block_usage as usize];
        block_usage.blocks -= blocks;
        if block_usage.blocks == 0 {
            block_usage.role = RoleOid::NONE;
        }
    }
}

impl View<'_> {
    /// Copies the entries of a database that have not expired at `now`, all or only the local ones,
    /// into `piece`. Begins where the last call ended, and ends when the piece is full or the table
    /// has no more entries. Returns false if the table has more entries to look at.
    pub fn read(
        &self,
        database: DatabaseOid,
        only_local: bool,
        now: ClockTime,
        piece: &mut EntryBatch,
    ) -> bool {
        let end = self.touched.min(piece.next + EntryBatch::ENTRIES);
        while piece.next < end {
            let entry = &self.entries[piece.next];
            let wanted = entry.blocks != 0
                && entry.database == database
                && now < entry.expires_at
                && !(only_local && entry.is_foreign());
            if wanted {
                if piece.bytes.len() >= EntryBatch::BYTES {
                    return false;
                }
                piece.entries.push(*entry);
                self.slices(entry).for_each(|slice| piece.bytes.extend_from_slice(slice));
            }
            piece.next += 1;
        }
        piece.next >= self.touched
    }

    /// Adds to `usage` what a database has at `now` in the next part of the table, which begins at
    /// the index `from`. Returns the index at which to go on, or `None` at the end of the table.
    pub fn add_usage(
        &self,
        database: DatabaseOid,
        now: ClockTime,
        from: usize,
        usage: &mut Usage,
    ) -> Option<usize> {
        let end = self.touched.min(from + EntryBatch::ENTRIES);
        let own = |e: &&GossipEntry| e.blocks != 0 && e.database == database && now < e.expires_at;
        for entry in self.entries[from.min(end)..end].iter().filter(own) {
            usage.entries += 1;
            usage.foreign += usize::from(entry.is_foreign());
            usage.bytes += entry.blocks as usize * size_of::<Block>() + size_of::<GossipEntry>();
        }
        (end < self.touched).then_some(end)
    }

    /// Returns whether a database has a local entry that has not expired at `now`.
    pub fn has_local(&self, database: DatabaseOid, now: ClockTime) -> bool {
        let is_local = |e: &GossipEntry| {
            e.blocks != 0 && e.database == database && !e.is_foreign() && now < e.expires_at
        };
        self.entries[..self.touched].iter().any(is_local)
    }

    /// Returns whether an entry in use has this key.
    fn is_of(&self, entry: &GossipEntry, key: &Key<'_>) -> bool {
        entry.queue as usize == key.queue.len() && self.begins_with(entry, key, key.queue)
    }

    /// Returns whether an entry in use has this key, whatever the queues are.
    fn is_of_node(&self, entry: &GossipEntry, key: &Key<'_>) -> bool {
        self.begins_with(entry, key, "")
    }

    /// Returns whether an entry in use is of the schema, instance name and node of `key`, and its
    /// queue begins with `queue`.
    fn begins_with(&self, entry: &GossipEntry, key: &Key<'_>, queue: &str) -> bool {
        let is_of_schema = (entry.database, entry.schema) == (key.database, key.schema);
        if !is_of_schema || (entry.name as usize, entry.node as usize) != (key.name.len(), key.node.len()) {
            return false;
        }
        let names = [key.name, key.node, queue];
        let mut bytes = self.slices(entry);
        let mut slice = bytes.next().unwrap_or_default();
        names.iter().all(|name| {
            let mut rest = name.as_bytes();
            while !rest.is_empty() {
                if slice.is_empty() {
                    slice = bytes.next().unwrap_or_default();
                }
                let len = rest.len().min(slice.len());
                if len == 0 || rest[..len] != slice[..len] {
                    return false;
                }
                (rest, slice) = (&rest[len..], &slice[len..]);
            }
            true
        })
    }

    /// Returns the bytes of an entry, block by block.
    fn slices(&self, entry: &GossipEntry) -> impl Iterator<Item = &[u8]> {
        let names = [entry.name, entry.node, entry.queue].map(usize::from);
        let mut left = names.iter().sum::<usize>() + entry.state as usize;
        let mut at = entry.first;
        (0..entry.blocks).map(move |_| {
            let block = &self.blocks[at as usize - 1];
            at = block.next;
            let len = left.min(BLOCK);
            left -= len;
            &block.bytes[..len]
        })
    }
}

/// Entries on their way out of the table. A reader fills a piece under the lock Gossip, and empties
/// the piece without the lock.
pub struct EntryBatch {
    /// The index of the next entry to look at.
    next: usize,
    /// Copies of the entries, in the order of their bytes.
    entries: Vec<GossipEntry>,
    /// Names and states of the entries, one behind the other.
    bytes: Vec<u8>,
}

impl EntryBatch {
    /// How many entries are looked at, and how many bytes are copied, under the lock at a time:
    /// about ten microseconds of work. One more entry, of any size, may come on top.
    const ENTRIES: usize = 2048;
    const BYTES: usize = 64 << 10;
    /// The largest state for which the buffer has room from the start. (A short number takes six
    /// times as much room in a `jsonb` as in a text of 64 kB.) A larger state only makes the buffer
    /// grow under the lock.
    const MAX_MEASURED: usize = 400 << 10;

    pub fn new() -> Self {
        Self {
            next: 0,
            entries: Vec::with_capacity(Self::ENTRIES),
            bytes: Vec::with_capacity(Self::BYTES + Self::MAX_MEASURED),
        }
    }

    /// Calls `body` with each entry that was copied since the last call.
    pub fn take(&mut self, mut body: impl FnMut(EntryRef<'_>)) {
        let mut rest = &self.bytes[..];
        let mut cut = |len: usize| {
            let (part, left) = rest.split_at(len.min(rest.len()));
            rest = left;
            part
        };
        for entry in self.entries.drain(..) {
            let [name, node, queue] = [entry.name, entry.node, entry.queue]
                .map(|len| std::str::from_utf8(cut(len as usize)).unwrap_or_default());
            let state = cut(entry.state as usize);
            let GossipEntry { schema, started_at, updated_at, put_at, expires_at, .. } = entry;
            let foreign = entry.is_foreign();
            body(EntryRef {
                schema,
                name,
                node,
                queue,
                state,
                started_at,
                updated_at,
                put_at,
                expires_at,
                foreign,
            });
        }
        self.bytes.clear();
    }

    /// Returns the entries without duplicates. An entry that was deleted and put again during the
    /// reading is there twice. The copy that was read later is kept, because a key has one entry at
    /// a time.
    pub fn into_latest(mut entries: Vec<EntryCopy>) -> Vec<EntryCopy> {
        let mut latest: HashMap<(SchemaOid, [&str; 3]), usize> = HashMap::with_capacity(entries.len());
        let mut twice = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let names = [&entry.name, &entry.node, &entry.queue].map(String::as_str);
            twice.extend(latest.insert((entry.schema, names), i));
        }
        twice.sort_unstable();
        twice.into_iter().rev().for_each(|i| {
            entries.remove(i);
        });
        entries
    }
}

/// The hash FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Returns the hash of a key without its queue, and the hash of the whole key.
fn hashes(key: &Key<'_>) -> (u64, u64) {
    let mut fnv = Fnv::new();
    fnv.write_u32(key.database.0);
    fnv.write_u32(key.schema.0);
    for part in [key.name, key.node] {
        fnv.write(part.as_bytes());
        fnv.write_u8(0xff);
    }
    let node = fnv.finish();
    fnv.write(key.queue.as_bytes());
    (node, fnv.finish())
}

#[cfg(test)]
mod tests;
