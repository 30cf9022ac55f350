//! The gossip table: one entry for each (database, schema, instance name, node, queue), of bounded
//! memory, with states of any size (what bounds one is the caller's business). A schema is its oid: a rename
//! changes nothing here, and a new schema of an old name has none of the old one's entries.
//!
//! An entry's bytes (its three names, then its state) are in a chain of equal blocks, and a free block
//! is as good as any other, so there is no fragmentation. Entries hang in hash buckets. Indexes count
//! from 1 and 0 means none, so that zeroed memory is an empty table.
//!
//! A change is made whole or not at all: `put` finds out that it has room before it touches anything.
//!
//! An entry is *ours*, put by a call here, or *foreign*, heard from a node that gossips by NOTIFY. Ours is
//! what is broadcast. A foreign one never takes the place of one of ours that lives, and all foreign ones
//! together never take more than half of the memory: anybody may NOTIFY.
//!
//! Each entry counts for one `BlockUsage`: that of the foreign ones, or of the role that put it last. A put that would
//! let a role hold more than its share is refused. Counting costs a put no look at other entries.
//!
//! Two clocks: what is called a deadline or a clock reading is of the clock that nobody sets, in microseconds;
//! `started_at` and `updated_at` are wall time, for people and for other nodes, and decide nothing here.
//!
//! Readers copy entries piece by piece (`EntryBatch`), so that who puts never waits for a whole reading: each
//! entry is consistent, the whole is no snapshot. An entry stays where it is while it is replaced; one that
//! was deleted and put again meanwhile may be read twice, of which `EntryBatch::into_latest` keeps the later.

pub mod memory;

use std::collections::HashMap;
use std::hash::Hasher;

use memory::{Identity, Process, Processes};

/// Bytes of a block that hold data. With the index of the next block it is 256 bytes: a check of ten
/// keys takes two.
pub const BLOCK: usize = 252;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Block {
    next: u32,
    bytes: [u8; BLOCK],
}

impl Default for Block {
    fn default() -> Self {
        Self { next: 0, bytes: [0; BLOCK] }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GossipEntry {
    hash: u64,
    /// Of the key without its queue.
    node_hash: u64,
    /// The next entry of the bucket, or of the free list.
    next: u32,
    /// 0: free.
    blocks: u32,
    first: u32,
    database: u32,
    schema: u32,
    // The lengths of its parts, in bytes.
    state: u32,
    name: u16,
    node: u16,
    queue: u16,
    /// The index of the holding that it counts for. `FOREIGN`: it was heard from a node that gossips by NOTIFY.
    block_usage: u16,
    started_at: i64,
    updated_at: i64,
    /// A clock reading.
    put_at: i64,
    /// A deadline.
    expires_at: i64,
    /// Of the process that it is of, if there was room to remember that.
    process: u32,
    unused: u32,
}

impl GossipEntry {
    fn is_foreign(&self) -> bool {
        self.block_usage == FOREIGN
    }
}

/// How many blocks the entries of a role take, or others that count together. (They are no more than that many
/// entries: each has a block.)
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// 0: free, or none of a single role.
    role: u32,
    blocks: u32,
}

/// How many holdings there are. All but three are of single roles, which are told apart while they have entries.
pub const MAX_BLOCK_USAGES: usize = 128;

/// The holding of all foreign entries.
const FOREIGN: u16 = 0;
/// The holding of all entries that were put by roles without a limit.
const UNLIMITED: u16 = 1;
/// The first holding of a single role. The last one of all is shared by the roles that find none of their own; what
/// counts there stays there, also when their later entries find one.
const FIRST_ROLE: u16 = 2;

/// Counters and the heads of the free lists. `*_touched` is how many were ever used: memory above
/// it is free and was never written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GossipHead {
    free_entry: u32,
    free_block: u32,
    entries_touched: u32,
    blocks_touched: u32,
    pub entries: u32,
    pub blocks: u32,
    /// How many holdings of single roles were ever used.
    roles_touched: u32,
    /// A deadline, not later than the earliest of any entry; 0 when there is none.
    pub next_expiry: i64,
    /// How many entries were inserted, ever: a reading during which it stays has none twice.
    pub inserted: u64,
}

/// How many entries, buckets and blocks fit into `bytes` (an entry of one block is the smallest), with what is
/// remembered of processes.
pub fn capacity(bytes: usize) -> usize {
    let each = size_of::<GossipEntry>() + size_of::<Block>() + size_of::<u32>();
    let process = size_of::<Process>() + size_of::<u32>();
    (bytes / (each + process.div_ceil(ENTRIES_PER_PROCESS))).min(u32::MAX as usize / 2)
}

const ENTRIES_PER_PROCESS: usize = 2;

/// How many processes are remembered beside so many entries.
pub fn processes(entries: usize) -> usize {
    (entries / ENTRIES_PER_PROCESS).max(1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    pub database: u32,
    pub schema: u32,
    pub name: &'a str,
    pub node: &'a str,
    pub queue: &'a str,
}

/// The role that puts, and how many blocks it may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub role: u32,
    pub most: usize,
}

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Put by a role. `None`: one without a limit.
    Local(Option<Quota>),
    Foreign,
}

/// What is put.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    pub state: &'a [u8],
    /// Wall time. `None`: that of the entry of the same origin that it replaces, if it lives, else `updated_at`.
    pub started_at: Option<i64>,
    /// Wall time.
    pub updated_at: i64,
    /// The clock's reading.
    pub now: i64,
    /// A deadline.
    pub expires_at: i64,
    pub source: Source,
    /// The process that puts.
    pub identity: Identity,
}

/// What a put has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// Nothing: it was a foreign one, and there is one of ours.
    pub ignored: bool,
    /// The entry that it replaced had expired.
    pub expired: bool,
}

/// No room.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    /// So many more bytes would have been needed.
    pub missing: usize,
    /// Whether it is the share of the role that is used up; else it is the table.
    pub quota: bool,
}

/// The table. Whoever has this holds its lock exclusively.
pub struct Table<'a> {
    pub head: &'a mut GossipHead,
    pub buckets: &'a mut [u32],
    pub entries: &'a mut [GossipEntry],
    pub blocks: &'a mut [Block],
    /// At least four.
    pub block_usages: &'a mut [BlockUsage],
    pub processes: Processes<'a>,
}

/// The table for readers. Whoever has this holds its lock shared.
pub struct View<'a> {
    pub entries: &'a [GossipEntry],
    pub blocks: &'a [Block],
    pub touched: usize,
}

/// What a database has in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub entries: usize,
    /// Of those, the foreign ones.
    pub foreign: usize,
    /// Memory that they take, in bytes.
    pub bytes: usize,
}

/// An entry on its way out of the table.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    pub schema: u32,
    pub name: &'a str,
    pub node: &'a str,
    pub queue: &'a str,
    pub state: &'a [u8],
    pub started_at: i64,
    pub updated_at: i64,
    pub put_at: i64,
    pub expires_at: i64,
    pub foreign: bool,
}

/// The same, to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryCopy {
    pub schema: u32,
    pub name: String,
    pub node: String,
    pub queue: String,
    pub state: Vec<u8>,
    pub started_at: i64,
    pub updated_at: i64,
    pub put_at: i64,
    pub expires_at: i64,
    pub foreign: bool,
}

impl EntryCopy {
    pub fn seen(&self) -> EntryRef<'_> {
        let Self { name, node, queue, state, .. } = self;
        let Self { schema, started_at, updated_at, put_at, expires_at, foreign, .. } = *self;
        EntryRef { schema, name, node, queue, state, started_at, updated_at, put_at, expires_at, foreign }
    }
}

impl EntryRef<'_> {
    pub fn copy(&self) -> EntryCopy {
        let EntryRef { schema, started_at, updated_at, put_at, expires_at, foreign, .. } = *self;
        let [name, node, queue] = [self.name, self.node, self.queue].map(str::to_owned);
        let state = self.state.to_vec();
        EntryCopy { schema, name, node, queue, state, started_at, updated_at, put_at, expires_at, foreign }
    }
}

impl GossipHead {
    /// How many entries a reader has to look at.
    pub fn entries_touched(&self) -> usize {
        self.entries_touched as usize
    }
}

impl Table<'_> {
    /// Inserts or replaces the entry of `key`.
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
        let free = self.blocks.len() - (self.head.blocks - before.blocks) as usize;
        let most = match source {
            Source::Foreign => Some(self.blocks.len() / 2),
            Source::Local(quota) => quota.map(|quota| quota.most),
        };
        let own = most.map_or(free, |most| {
            // What it replaces may count for another.
            let replaced = if before.block_usage as usize == block_usage { before.blocks } else { 0 };
            most.saturating_sub((self.block_usages[block_usage].blocks - replaced) as usize)
        });
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
        if self.head.next_expiry == 0 || expires_at < self.head.next_expiry {
            self.head.next_expiry = expires_at;
        }
        Ok(Put { ignored: false, expired: old.is_some() && !lives })
    }

    /// The holding that an entry of this origin counts for: the role's own, else a free one, else the last.
    fn block_usage_of(&self, source: Source) -> usize {
        let quota = match source {
            Source::Foreign => return FOREIGN as usize,
            Source::Local(None) => return UNLIMITED as usize,
            Source::Local(Some(quota)) => quota,
        };
        let (first, last) = (FIRST_ROLE as usize, self.block_usages.len() - 1);
        let touched = first + self.head.roles_touched as usize;
        let found = |wanted: u32| self.block_usages[first..touched].iter().position(|h| h.role == wanted);
        found(quota.role).or_else(|| found(0)).map_or(touched.min(last), |i| first + i)
    }

    /// Counts so many blocks of an entry of this origin for a holding.
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

    /// Deletes the entry of `key`; whether it still held at `now`.
    pub fn delete(&mut self, key: &Key<'_>, now: i64) -> bool {
        let Some(index) = self.find(hashes(key).1, key) else { return false };
        let lived = now < self.entries[index].expires_at;
        self.remove(index, now, lived);
        lived
    }

    /// Deletes the entries of `key`'s node, whatever its queue; how many still held at `now`.
    pub fn delete_node(&mut self, key: &Key<'_>, now: i64) -> usize {
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

    /// Deletes what has expired by `now`, and tells of each the database. Sets `next_expiry` to the earliest
    /// that is left.
    pub fn expire(&mut self, now: i64, mut tell: impl FnMut(u32)) {
        let mut earliest = 0;
        self.remove_where(now, |entry| {
            let expired = entry.expires_at <= now;
            if expired {
                tell(entry.database);
            } else if earliest == 0 || entry.expires_at < earliest {
                earliest = entry.expires_at;
            }
            expired
        });
        self.head.next_expiry = earliest;
    }

    /// Deletes the entries of a database that was dropped, or whose extension was, put before that clock reading.
    pub fn forget_database(&mut self, database: u32, before: i64) -> usize {
        self.forget(before, |d, _| d == database)
    }

    /// The same for a schema.
    pub fn forget_schema(&mut self, database: u32, schema: u32, before: i64) -> usize {
        self.forget(before, |d, s| (d, s) == (database, schema))
    }

    /// The same for all databases that do not exist.
    pub fn forget_databases(&mut self, exists: impl Fn(u32) -> bool, before: i64) -> usize {
        self.forget(before, |d, _| !exists(d))
    }

    fn forget(&mut self, before: i64, wanted: impl Fn(u32, u32) -> bool) -> usize {
        let removed =
            self.remove_where(before, |entry| entry.put_at < before && wanted(entry.database, entry.schema));
        self.processes.forget(before, wanted);
        removed
    }

    /// Deletes entries that end at `now` by themselves.
    fn remove_where(&mut self, now: i64, mut wanted: impl FnMut(&GossipEntry) -> bool) -> usize {
        let mut removed = 0;
        for index in 0..self.head.entries_touched as usize {
            if self.entries[index].blocks != 0 && wanted(&self.entries[index]) {
                self.remove(index, now, false);
                removed += 1;
            }
        }
        removed
    }

    fn remove(&mut self, index: usize, now: i64, deleted: bool) {
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
            self.head.next_expiry = 0;
        }
    }

    fn view(&self) -> View<'_> {
        let touched = self.head.entries_touched as usize;
        View { entries: self.entries, blocks: self.blocks, touched }
    }

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

    /// A free entry, linked into its bucket. The caller has made sure that there is one.
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

    /// Writes `parts` behind each other into `count` free blocks, which is as many as they fill; the first
    /// one's index.
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

    /// Gives the blocks of an entry back, and what it counts for its holding.
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
            block_usage.role = 0;
        }
    }
}

impl View<'_> {
    /// Copies entries of a database that hold at `now`, all or only ours, from where `piece` has come to,
    /// until it is full or there are no more: false when there are.
    pub fn read(&self, database: u32, only_local: bool, now: i64, piece: &mut EntryBatch) -> bool {
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

    /// Adds what a database has at `now` in the next part of the table, from the entry `from` on: where to go on,
    /// if there is more.
    pub fn add_usage(&self, database: u32, now: i64, from: usize, usage: &mut Usage) -> Option<usize> {
        let end = self.touched.min(from + EntryBatch::ENTRIES);
        let own = |e: &&GossipEntry| e.blocks != 0 && e.database == database && now < e.expires_at;
        for entry in self.entries[from.min(end)..end].iter().filter(own) {
            usage.entries += 1;
            usage.foreign += usize::from(entry.is_foreign());
            usage.bytes += entry.blocks as usize * size_of::<Block>() + size_of::<GossipEntry>();
        }
        (end < self.touched).then_some(end)
    }

    /// Whether any entry of ours holds at `now` in a database.
    pub fn has_local(&self, database: u32, now: i64) -> bool {
        let ours = |e: &GossipEntry| {
            e.blocks != 0 && e.database == database && !e.is_foreign() && now < e.expires_at
        };
        self.entries[..self.touched].iter().any(ours)
    }

    /// Whether an entry in use is of this key.
    fn is_of(&self, entry: &GossipEntry, key: &Key<'_>) -> bool {
        entry.queue as usize == key.queue.len() && self.begins_with(entry, key, key.queue)
    }

    /// Whether an entry in use is of this key, whatever the queues are.
    fn is_of_node(&self, entry: &GossipEntry, key: &Key<'_>) -> bool {
        self.begins_with(entry, key, "")
    }

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

    /// An entry's bytes, block by block.
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

/// Entries on their way out of the table: filled under its lock, emptied without it.
pub struct EntryBatch {
    /// The index of the next entry to look at.
    next: usize,
    entries: Vec<GossipEntry>,
    /// Their names and states behind each other.
    bytes: Vec<u8>,
}

impl EntryBatch {
    /// What is looked at, and copied, under the lock at a time: some ten microseconds. An entry more may
    /// come on top, of any size.
    const ENTRIES: usize = 2048;
    const BYTES: usize = 64 << 10;
    /// The largest entry that is expected (a short number takes six times as much as jsonb as in a text of 64 kB); a
    /// larger one makes the buffer grow under the lock, no more.
    const MAX_MEASURED: usize = 400 << 10;

    pub fn new() -> Self {
        Self {
            next: 0,
            entries: Vec::with_capacity(Self::ENTRIES),
            bytes: Vec::with_capacity(Self::BYTES + Self::MAX_MEASURED),
        }
    }

    /// Gives `body` what was copied since the last time.
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

    /// Of entries that were read twice, as they were deleted and put again meanwhile, the later: the one that was
    /// read later, as a key has one entry at a time.
    pub fn into_latest(mut entries: Vec<EntryCopy>) -> Vec<EntryCopy> {
        let mut latest: HashMap<(u32, [&str; 3]), usize> = HashMap::with_capacity(entries.len());
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

/// FNV-1a.
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

/// Of a key without its queue, and of the whole.
fn hashes(key: &Key<'_>) -> (u64, u64) {
    let mut fnv = Fnv::new();
    fnv.write_u32(key.database);
    fnv.write_u32(key.schema);
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
