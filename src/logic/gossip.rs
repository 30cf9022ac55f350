//! The gossip table: one entry for each (database, prefix, instance name, node, queue), of bounded
//! memory, with states of any size up to `check::MAX_STATE`.
//!
//! An entry's bytes (its four names, then its state) are in a chain of equal blocks, and a free block
//! is as good as any other, so there is no fragmentation. Entries hang in hash buckets. Indexes count
//! from 1 and 0 means none, so that zeroed memory is an empty table.
//!
//! A change is made whole or not at all: `put` finds out that it has room before it touches anything.

use std::hash::Hasher;

/// Bytes of a block that hold data. With the index of the next block it is 256 bytes: a check of ten
/// keys takes one or two.
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
pub struct Entry {
    hash: u64,
    /// The next entry of the bucket, or of the free list.
    next: u32,
    /// 0: free.
    blocks: u32,
    first: u32,
    database: u32,
    prefix: u16,
    name: u16,
    node: u16,
    queue: u16,
    state: u32,
    started_at: i64,
    updated_at: i64,
    expires_at: i64,
}

/// Counters and the heads of the free lists. `*_touched` is how many were ever used: memory above
/// it is free and was never written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    free_entry: u32,
    free_block: u32,
    entries_touched: u32,
    blocks_touched: u32,
    pub entries: u32,
    pub blocks: u32,
    /// Not later than the earliest expiry of any entry; 0 when there is none.
    pub next_expiry: i64,
}

/// How many entries, buckets and blocks fit into `bytes` (an entry of one block is the smallest).
pub fn capacity(bytes: usize) -> usize {
    let each = size_of::<Entry>() + size_of::<Block>() + size_of::<u32>();
    (bytes / each).min(u32::MAX as usize / 2)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    pub database: u32,
    pub prefix: &'a str,
    pub name: &'a str,
    pub node: &'a str,
    pub queue: &'a str,
}

/// No room: this many more bytes would have been needed.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    pub missing: usize,
}

/// The table. Whoever has this holds its lock exclusively.
pub struct Table<'a> {
    pub head: &'a mut Head,
    pub buckets: &'a mut [u32],
    pub entries: &'a mut [Entry],
    pub blocks: &'a mut [Block],
}

/// The table for readers. Whoever has this holds its lock shared.
pub struct View<'a> {
    pub entries: &'a [Entry],
    pub blocks: &'a [Block],
    pub touched: usize,
}

/// A consistent copy of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub prefix: String,
    pub name: String,
    pub node: String,
    pub queue: String,
    pub state: String,
    pub started_at: i64,
    pub updated_at: i64,
    pub expires_at: i64,
}

impl Head {
    /// How many entries a reader has to look at.
    pub fn entries_touched(&self) -> usize {
        self.entries_touched as usize
    }
}

impl Table<'_> {
    /// Inserts or replaces the entry of `key`. `started_at` stays when it is replaced.
    pub fn put(&mut self, key: &Key<'_>, state: &[u8], now: i64, expires_at: i64) -> Result<(), Full> {
        let parts =
            [key.prefix.as_bytes(), key.name.as_bytes(), key.node.as_bytes(), key.queue.as_bytes(), state];
        let needed = parts.iter().map(|p| p.len()).sum::<usize>().div_ceil(BLOCK).max(1);
        let hash = hash(key);
        let old = self.find(hash, key);
        let reusable = old.map_or(0, |i| self.entries[i].blocks as usize);
        let free = self.blocks.len() - self.head.blocks as usize + reusable;
        let no_entry = old.is_none() && self.head.entries as usize >= self.entries.len();
        if needed > free || no_entry {
            return Err(Full { missing: needed.saturating_sub(free).max(1) * size_of::<Block>() });
        }

        let (index, started_at) = match old {
            Some(index) => {
                self.release_blocks(index);
                let Entry { started_at, expires_at, .. } = self.entries[index];
                (index, if now < expires_at { started_at } else { now })
            }
            None => (self.take_entry(hash), now),
        };
        let first = self.write_blocks(&parts, needed);
        let entry = &mut self.entries[index];
        *entry = Entry {
            hash,
            next: entry.next,
            blocks: needed as u32,
            first,
            database: key.database,
            prefix: key.prefix.len() as u16,
            name: key.name.len() as u16,
            node: key.node.len() as u16,
            queue: key.queue.len() as u16,
            state: state.len() as u32,
            started_at,
            updated_at: now,
            expires_at,
        };
        if self.head.next_expiry == 0 || expires_at < self.head.next_expiry {
            self.head.next_expiry = expires_at;
        }
        Ok(())
    }

    /// Deletes the entries of `key`'s node, or of one queue of it; how many still held at `now`.
    pub fn delete(&mut self, key: &Key<'_>, queue: Option<&str>, now: i64) -> usize {
        let mut live = 0;
        for index in 0..self.head.entries_touched as usize {
            let entry = self.entries[index];
            if entry.blocks != 0 && self.view().is_of(&entry, key, queue) {
                live += usize::from(now < entry.expires_at);
                self.remove(index);
            }
        }
        live
    }

    /// Deletes what has expired by `now`; how many. Sets `next_expiry` to the earliest that is left.
    pub fn expire(&mut self, now: i64) -> usize {
        let mut earliest = 0;
        let removed = self.remove_where(|entry| {
            if entry.expires_at > now && (earliest == 0 || entry.expires_at < earliest) {
                earliest = entry.expires_at;
            }
            entry.expires_at <= now
        });
        self.head.next_expiry = earliest;
        removed
    }

    /// Deletes the entries of a database that was dropped, or whose extension was, put before that time.
    pub fn forget_database(&mut self, database: u32, before: i64) -> usize {
        self.remove_where(|entry| entry.database == database && entry.updated_at < before)
    }

    fn remove_where(&mut self, mut wanted: impl FnMut(&Entry) -> bool) -> usize {
        let mut removed = 0;
        for index in 0..self.head.entries_touched as usize {
            if self.entries[index].blocks != 0 && wanted(&self.entries[index]) {
                self.remove(index);
                removed += 1;
            }
        }
        removed
    }

    fn remove(&mut self, index: usize) {
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
        self.entries[index] = Entry { next: self.head.free_entry, ..Entry::default() };
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
            if entry.hash == hash && self.view().is_of(entry, key, Some(key.queue)) {
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
        self.entries[index] = Entry { hash, next: self.buckets[bucket], ..Entry::default() };
        self.buckets[bucket] = index as u32 + 1;
        self.head.entries += 1;
        index
    }

    /// Writes `parts` behind each other into `count` free blocks; the first one's index.
    fn write_blocks(&mut self, parts: &[&[u8]], count: usize) -> u32 {
        let mut bytes = parts.iter().flat_map(|p| p.iter().copied());
        let (mut first, mut last) = (0, 0);
        for _ in 0..count {
            let block = match self.head.free_block {
                0 => {
                    self.head.blocks_touched += 1;
                    self.head.blocks_touched
                }
                free => {
                    self.head.free_block = self.blocks[free as usize - 1].next;
                    free
                }
            };
            let slot = &mut self.blocks[block as usize - 1];
            slot.next = 0;
            for (to, from) in slot.bytes.iter_mut().zip(&mut bytes) {
                *to = from;
            }
            match last {
                0 => first = block,
                before => self.blocks[before as usize - 1].next = block,
            }
            last = block;
        }
        self.head.blocks += count as u32;
        first
    }

    fn release_blocks(&mut self, index: usize) {
        let Entry { first, blocks, .. } = self.entries[index];
        let mut last = first;
        for _ in 1..blocks {
            last = self.blocks[last as usize - 1].next;
        }
        self.blocks[last as usize - 1].next = self.head.free_block;
        self.head.free_block = first;
        self.head.blocks -= blocks;
    }
}

impl View<'_> {
    /// The entries of a database that hold at `now`.
    pub fn of_database(&self, database: u32, now: i64) -> Vec<Copied> {
        self.entries[..self.touched]
            .iter()
            .filter(|e| e.blocks != 0 && e.database == database && now < e.expires_at)
            .map(|e| self.copy(e))
            .collect()
    }

    /// Whether an entry in use is of this database, prefix, name and node, and of this queue if given.
    fn is_of(&self, entry: &Entry, key: &Key<'_>, queue: Option<&str>) -> bool {
        let lengths = (entry.prefix as usize, entry.name as usize, entry.node as usize);
        if entry.database != key.database
            || lengths != (key.prefix.len(), key.name.len(), key.node.len())
            || queue.is_some_and(|q| q.len() != entry.queue as usize)
        {
            return false;
        }
        let names = [key.prefix, key.name, key.node, queue.unwrap_or_default()];
        names
            .iter()
            .flat_map(|name| name.bytes())
            .eq(self.bytes(entry).take(names.iter().map(|name| name.len()).sum()))
    }

    fn bytes(&self, entry: &Entry) -> impl Iterator<Item = u8> {
        let mut at = entry.first;
        (0..entry.blocks).flat_map(move |_| {
            let block = &self.blocks[at as usize - 1];
            at = block.next;
            block.bytes.iter().copied()
        })
    }

    fn copy(&self, entry: &Entry) -> Copied {
        let mut bytes = self.bytes(entry);
        let mut cut = |len: usize| {
            let part: Vec<u8> = bytes.by_ref().take(len).collect();
            String::from_utf8_lossy(&part).into_owned()
        };
        let [prefix, name, node, queue] =
            [entry.prefix, entry.name, entry.node, entry.queue].map(|len| cut(len as usize));
        let state = cut(entry.state as usize);
        let Entry { started_at, updated_at, expires_at, .. } = *entry;
        Copied { prefix, name, node, queue, state, started_at, updated_at, expires_at }
    }
}

/// The same in every process of a server, so not std's randomly keyed hasher.
fn hash(key: &Key<'_>) -> u64 {
    /// FNV-1a.
    struct Fnv(u64);
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
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    fnv.write_u32(key.database);
    for part in [key.prefix, key.name, key.node, key.queue] {
        fnv.write(part.as_bytes());
        fnv.write_u8(0xff);
    }
    fnv.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Memory {
        head: Head,
        buckets: Vec<u32>,
        entries: Vec<Entry>,
        blocks: Vec<Block>,
    }

    impl Memory {
        fn new(entries: usize, blocks: usize) -> Self {
            Self {
                head: Head::default(),
                buckets: vec![0; 3], // few, so that chains are tested
                entries: vec![Entry::default(); entries],
                blocks: vec![Block::default(); blocks],
            }
        }
        fn table(&mut self) -> Table<'_> {
            Table {
                head: &mut self.head,
                buckets: &mut self.buckets,
                entries: &mut self.entries,
                blocks: &mut self.blocks,
            }
        }
        fn all(&self, database: u32, now: i64) -> Vec<Copied> {
            View { entries: &self.entries, blocks: &self.blocks, touched: self.head.entries_touched as usize }
                .of_database(database, now)
        }
    }

    fn key<'a>(node: &'a str, queue: &'a str) -> Key<'a> {
        Key { database: 1, prefix: "public", name: "Oban", node, queue }
    }

    #[test]
    fn a_state_is_replaced_whole_or_not_at_all() {
        let mut memory = Memory::new(4, 3);
        let (small, large) = (vec![b's'; 300], vec![b'l'; 3 * BLOCK]);
        memory.table().put(&key("a", "q"), &small, 1, 100).unwrap();
        let full = memory.table().put(&key("a", "q"), &large, 2, 200).unwrap_err();
        assert_eq!(full, Full { missing: size_of::<Block>() });
        let kept = memory.all(1, 1).pop().unwrap();
        assert_eq!((kept.state.as_bytes(), kept.started_at, kept.updated_at), (&*small, 1, 1));
        memory.table().put(&key("a", "q"), b"{}", 3, 300).unwrap();
        let kept = memory.all(1, 1).pop().unwrap();
        assert_eq!((&*kept.state, kept.started_at, kept.updated_at, kept.expires_at), ("{}", 1, 3, 300));
        assert_eq!(memory.head.blocks, 1);
    }

    #[test]
    fn entries_expire_and_their_room_comes_back() {
        let mut memory = Memory::new(2, 2);
        memory.table().put(&key("a", "1"), b"{}", 0, 10).unwrap();
        memory.table().put(&key("a", "2"), b"{}", 0, 20).unwrap();
        assert_eq!(memory.head.next_expiry, 10);
        assert!(memory.table().put(&key("a", "3"), b"{}", 0, 5).is_err());
        assert_eq!(memory.all(1, 10).len(), 1, "expired for readers before any sweep");
        assert_eq!(memory.table().expire(10), 1);
        assert_eq!(memory.head.next_expiry, 20);
        memory.table().put(&key("a", "3"), b"{}", 0, 30).unwrap();
        assert_eq!(memory.table().expire(30), 2);
        assert_eq!((memory.head.next_expiry, memory.head.entries, memory.head.blocks), (0, 0, 0));
    }

    #[test]
    fn deletes_a_queue_or_a_node_and_forgets_a_database() {
        let mut memory = Memory::new(9, 9);
        for (node, queue) in [("a", "1"), ("a", "2"), ("b", "1")] {
            memory.table().put(&key(node, queue), b"{}", 0, 10).unwrap();
            memory.table().put(&Key { database: 2, ..key(node, queue) }, b"{}", 0, 10).unwrap();
        }
        assert_eq!(memory.table().delete(&key("a", ""), Some("1"), 0), 1);
        assert_eq!(memory.table().delete(&key("a", ""), None, 0), 1);
        assert_eq!(memory.table().delete(&key("b", ""), None, 10), 0, "expired: gone already");
        assert!(memory.all(1, 0).is_empty());
        assert_eq!(memory.table().forget_database(2, 0), 0);
        assert_eq!(memory.table().forget_database(2, 1), 3);
        assert_eq!(memory.head.blocks, 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put { node: u8, queue: u8, size: usize, ttl: i64 },
        Delete { node: u8, queue: Option<u8> },
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..4, 0u8..4, 0usize..900, 1i64..40)
                .prop_map(|(node, queue, size, ttl)| Step::Put { node, queue, size, ttl }),
            1 => (0u8..4, prop::option::of(0u8..4)).prop_map(|(node, queue)| Step::Delete { node, queue }),
            1 => Just(Step::Expire),
        ]
    }

    proptest! {
        /// The table is a map of bounded size: same contents as a BTreeMap after any steps, and no
        /// block is lost or in two chains.
        #[test]
        fn behaves_as_a_bounded_map(steps in prop::collection::vec(step(), 1..200)) {
            let mut memory = Memory::new(8, 16);
            let mut model: BTreeMap<(String, String), (String, i64)> = BTreeMap::new();
            for (now, step) in steps.into_iter().enumerate() {
                let now = now as i64;
                match step {
                    Step::Put { node, queue, size, ttl } => {
                        let (node, queue) = (node.to_string(), queue.to_string());
                        let state = format!("{now:04}").repeat(size / 4);
                        let put = memory.table().put(&key(&node, &queue), state.as_bytes(), now, now + ttl);
                        if put.is_ok() {
                            model.insert((node, queue), (state, now + ttl));
                        }
                    }
                    Step::Delete { node, queue } => {
                        let (node, queue) = (node.to_string(), queue.map(|q| q.to_string()));
                        memory.table().delete(&key(&node, ""), queue.as_deref(), now);
                        model.retain(|(n, q), _| *n != node || queue.as_ref().is_some_and(|w| w != q));
                    }
                    Step::Expire => {
                        memory.table().expire(now);
                        model.retain(|_, (_, until)| *until > now);
                    }
                }
                let mut seen: Vec<_> = memory.all(1, now).into_iter().map(|c| ((c.node, c.queue), c.state)).collect();
                seen.sort();
                let wanted: Vec<_> = model.iter().filter(|(_, (_, until))| *until > now)
                    .map(|(k, (state, _))| (k.clone(), state.clone())).collect();
                prop_assert_eq!(seen, wanted);

                let chained: u32 = memory.entries.iter().map(|e| e.blocks).sum();
                prop_assert_eq!(chained, memory.head.blocks);
                let (mut free, mut at) = (0, memory.head.free_block);
                while at != 0 { free += 1; at = memory.blocks[at as usize - 1].next; }
                prop_assert_eq!(free + chained, memory.head.blocks_touched);
            }
        }
    }
}
