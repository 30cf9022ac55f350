use super::super::ids::{DatabaseOid, RoleOid, SchemaOid};
use super::super::times::{ClockTime, WallTime};
use super::memory::{ProcessesHead, Remembered, remembered};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const LOCAL: Source = Source::Local(None);

struct Memory {
    head: GossipHead,
    buckets: Vec<u32>,
    entries: Vec<GossipEntry>,
    blocks: Vec<Block>,
    block_usages: Vec<BlockUsage>,
    processes_head: ProcessesHead,
    process_buckets: Vec<u32>,
    processes: Vec<GossipProcess>,
}

impl Memory {
    fn new(entries: usize, blocks: usize) -> Self {
        Self {
            head: GossipHead::default(),
            buckets: vec![0; 3], // few, so that chains are tested
            entries: vec![GossipEntry::default(); entries],
            blocks: vec![Block::default(); blocks],
            block_usages: vec![BlockUsage::default(); 5], // two of them for single roles
            processes_head: ProcessesHead::default(),
            process_buckets: vec![0; 3],
            processes: vec![GossipProcess::default(); entries],
        }
    }
    fn put(
        &mut self,
        key: &Key<'_>,
        state: &[u8],
        now: i64,
        expires_at: i64,
        source: Source,
    ) -> Result<Put, Full> {
        self.put_as(None, key, state, (now, expires_at), source)
    }
    /// Puts as the process with this uuid.
    fn put_as(
        &mut self,
        uuid: Option<&str>,
        key: &Key<'_>,
        state: &[u8],
        (now, expires_at): (i64, i64),
        source: Source,
    ) -> Result<Put, Full> {
        let identity = Identity::of(key, uuid.map(str::as_bytes));
        let new = NewEntry {
            state,
            started_at: None,
            updated_at: WallTime(now),
            now: ClockTime(now),
            expires_at: ClockTime(expires_at),
            source,
            identity,
        };
        self.table().put(key, &new)
    }
    /// Returns what is remembered of a process of a schema.
    fn process(&self, schema: SchemaOid, node: &str, uuid: Option<&str>, now: i64) -> Option<Remembered> {
        let hash = memory::hash(node, uuid.map(str::as_bytes));
        let mut found = remembered(&self.processes, DatabaseOid(1), schema, ClockTime(now))
            .filter(|process| process.hash == hash);
        let process = found.next();
        assert_eq!(found.next(), None, "it is there once");
        process
    }
    fn ended_at(&self, node: &str, uuid: &str, now: i64) -> Option<i64> {
        self.process(SchemaOid(7), node, Some(uuid), now).expect("it is remembered").ended_at.map(|at| at.0)
    }
    fn table(&mut self) -> Table<'_> {
        Table {
            head: &mut self.head,
            buckets: &mut self.buckets,
            entries: &mut self.entries,
            blocks: &mut self.blocks,
            block_usages: &mut self.block_usages,
            processes: Processes {
                head: &mut self.processes_head,
                buckets: &mut self.process_buckets,
                processes: &mut self.processes,
            },
        }
    }
    fn foreign_blocks(&self) -> u32 {
        self.block_usages[FOREIGN as usize].blocks
    }
    /// Returns the blocks of each block usage, counted from the entries.
    fn recount(&self) -> Vec<u32> {
        let mut blocks = vec![0; self.block_usages.len()];
        let used = self.entries.iter().filter(|e| e.blocks != 0);
        used.for_each(|e| blocks[e.block_usage as usize] += e.blocks);
        blocks
    }
    fn all(&self, database: DatabaseOid, now: i64) -> Vec<EntryCopy> {
        self.read(database, false, now)
    }
    fn view(&self) -> View<'_> {
        View { entries: &self.entries, blocks: &self.blocks, touched: self.head.entries_touched as usize }
    }
    fn usage(&self, database: DatabaseOid, now: i64) -> Usage {
        let (mut usage, mut from) = (Usage::default(), Some(0));
        while let Some(at) = from {
            from = self.view().add_usage(database, ClockTime(now), at, &mut usage);
        }
        usage
    }
    fn read(&self, database: DatabaseOid, only_local: bool, now: i64) -> Vec<EntryCopy> {
        let (mut piece, mut all) = (EntryBatch::new(), Vec::new());
        loop {
            let done = self.view().read(database, only_local, ClockTime(now), &mut piece);
            piece.take(|entry| all.push(entry.copy()));
            if done {
                return all;
            }
        }
    }
}

fn key<'a>(node: &'a str, queue: &'a str) -> Key<'a> {
    Key { database: DatabaseOid(1), schema: SchemaOid(7), name: "Oban", node, queue }
}

#[test]
fn a_state_is_replaced_whole_or_not_at_all() {
    let mut memory = Memory::new(4, 3);
    let (small, large) = (vec![b's'; 300], vec![b'l'; 3 * BLOCK]);
    memory.put(&key("a", "q"), &small, 1, 100, LOCAL).unwrap();
    let full = memory.put(&key("a", "q"), &large, 2, 200, LOCAL).unwrap_err();
    assert_eq!(full, Full { missing: size_of::<Block>(), quota: false });
    let kept = memory.all(DatabaseOid(1), 1).pop().unwrap();
    assert_eq!((&*kept.state, kept.started_at.0, kept.updated_at.0), (&*small, 1, 1));
    memory.put(&key("a", "q"), b"{}", 3, 300, LOCAL).unwrap();
    let kept = memory.all(DatabaseOid(1), 1).pop().unwrap();
    assert_eq!(
        (&*kept.state, kept.started_at.0, kept.updated_at.0, kept.expires_at.0),
        (&b"{}"[..], 1, 3, 300)
    );
    assert_eq!(memory.head.blocks, 1);
    let identity = Identity::of(&key("a", "q"), None);
    let (state, started_at) = (b"{}", Some(WallTime(-7)));
    let known = NewEntry {
        state,
        started_at,
        updated_at: WallTime(4),
        now: ClockTime(4),
        expires_at: ClockTime(300),
        source: LOCAL,
        identity,
    };
    memory.table().put(&key("a", "q"), &known).unwrap();
    assert_eq!(memory.all(DatabaseOid(1), 4)[0].started_at, WallTime(-7), "as the process itself knows");
}

#[test]
fn entries_expire_and_their_room_comes_back() {
    let mut memory = Memory::new(2, 2);
    memory.put(&key("a", "1"), b"{}", 0, 10, LOCAL).unwrap();
    memory.put(&key("a", "2"), b"{}", 0, 20, LOCAL).unwrap();
    assert_eq!(memory.head.next_expiry, ClockTime(10));
    assert!(memory.put(&key("a", "3"), b"{}", 0, 5, LOCAL).is_err());
    assert_eq!(memory.all(DatabaseOid(1), 10).len(), 1, "expired for readers before any sweep");
    let mut expired = Vec::new();
    memory.table().expire(ClockTime(10), |database| expired.push(database));
    assert_eq!(expired, [DatabaseOid(1)]);
    assert_eq!(memory.head.next_expiry, ClockTime(20));
    memory.put(&key("a", "3"), b"{}", 0, 30, LOCAL).unwrap();
    memory.table().expire(ClockTime(30), |database| expired.push(database));
    assert_eq!(expired, [DatabaseOid(1); 3]);
    assert_eq!((memory.head.next_expiry.0, memory.head.entries, memory.head.blocks), (0, 0, 0));
}

#[test]
fn deletes_a_queue_or_a_node_and_forgets_a_database() {
    let mut memory = Memory::new(9, 9);
    for (node, queue) in [("a", "1"), ("a", "2"), ("b", "1")] {
        memory.put(&key(node, queue), b"{}", 0, 10, LOCAL).unwrap();
        memory.put(&Key { database: DatabaseOid(2), ..key(node, queue) }, b"{}", 0, 10, LOCAL).unwrap();
    }
    assert!(memory.table().delete(&key("a", "1"), ClockTime(0)));
    assert!(!memory.table().delete(&key("a", "1"), ClockTime(0)));
    assert_eq!(memory.table().delete_node(&key("a", ""), ClockTime(0)), 1);
    assert_eq!(memory.table().delete_node(&key("b", ""), ClockTime(10)), 0, "expired: gone already");
    assert!(memory.all(DatabaseOid(1), 0).is_empty());
    assert_eq!(memory.table().forget_database(DatabaseOid(2), ClockTime(0)), 0);
    assert_eq!(memory.table().forget_database(DatabaseOid(2), ClockTime(1)), 3);
    assert_eq!(memory.head.blocks, 0);
}

#[test]
fn a_foreign_entry_does_not_replace_a_live_local_one() {
    let mut memory = Memory::new(9, 9);
    memory.put(&key("a", "q"), b"ours", 0, 10, LOCAL).unwrap();
    let ignored = memory.put(&key("a", "q"), b"theirs", 1, 11, Source::Foreign);
    assert_eq!(ignored, Ok(Put { ignored: true, expired: false }));
    assert_eq!(memory.all(DatabaseOid(1), 1)[0].state, b"ours");
    let taken = memory.put(&key("a", "q"), b"theirs", 10, 30, Source::Foreign);
    assert_eq!(taken, Ok(Put { ignored: false, expired: true }), "ours was over");
    assert!(
        memory.read(DatabaseOid(1), true, 11).is_empty()
            && !memory.view().has_local(DatabaseOid(1), ClockTime(11))
    );
    let usage = memory.usage(DatabaseOid(1), 11);
    assert_eq!((usage.entries, usage.foreign, memory.foreign_blocks()), (1, 1, 1));
    memory.put(&key("a", "q"), b"ours", 12, 30, LOCAL).unwrap();
    assert_eq!((memory.read(DatabaseOid(1), true, 12).len(), memory.foreign_blocks()), (1, 0));
    assert_eq!(
        memory.all(DatabaseOid(1), 12)[0].started_at,
        WallTime(12),
        "a foreign entry says nothing of a local one"
    );
    assert!(
        memory.view().has_local(DatabaseOid(1), ClockTime(12))
            && !memory.view().has_local(DatabaseOid(2), ClockTime(12))
            && !memory.view().has_local(DatabaseOid(1), ClockTime(30))
    );
}

#[test]
fn foreign_ones_take_no_more_than_half() {
    let mut memory = Memory::new(8, 8);
    for queue in ["1", "2", "3", "4"] {
        memory.put(&key("f", queue), b"{}", 0, 10, Source::Foreign).unwrap();
    }
    let full = memory.put(&key("f", "5"), b"{}", 0, 10, Source::Foreign);
    assert_eq!(full, Err(Full { missing: size_of::<Block>(), quota: false }));
    memory.put(&key("f", "4"), b"[]", 0, 10, Source::Foreign).expect("its own room is free for it");
    for queue in ["1", "2", "3", "4"] {
        memory.put(&key("o", queue), b"{}", 0, 10, LOCAL).unwrap();
    }
    assert!(memory.put(&key("o", "5"), b"{}", 0, 10, LOCAL).is_err());
    memory.put(&key("f", "1"), b"{}", 0, 10, LOCAL).expect("it takes a foreign one's place");
    assert_eq!(memory.foreign_blocks(), 3);
}

#[test]
fn names_that_run_together_are_other_names() {
    let mut memory = Memory::new(9, 9);
    let long = "n".repeat(BLOCK);
    for (node, queue) in [("ab", "c"), ("a", "bc"), (&*long, "x"), (&*long, "y")] {
        memory.put(&key(node, queue), queue.as_bytes(), 0, 10, LOCAL).unwrap();
    }
    assert_eq!(memory.all(DatabaseOid(1), 0).len(), 4);
    assert!(
        memory.table().delete(&key(&long, "y"), ClockTime(0))
            && !memory.table().delete(&key("abc", ""), ClockTime(0))
    );
    assert_eq!(memory.table().delete_node(&key("a", ""), ClockTime(0)), 1);
    assert_eq!(memory.table().delete_node(&key(&long, ""), ClockTime(0)), 1);
    assert_eq!(memory.all(DatabaseOid(1), 0)[0].node, "ab");
}

#[test]
fn a_schema_has_its_own_and_is_forgotten_alone() {
    let mut memory = Memory::new(9, 9);
    let other = Key { schema: SchemaOid(8), ..key("a", "q") };
    memory.put(&key("a", "q"), b"7", 0, 10, LOCAL).unwrap();
    memory.put(&other, b"8", 1, 10, Source::Foreign).unwrap();
    memory.put(&Key { database: DatabaseOid(2), ..other }, b"8", 1, 10, LOCAL).unwrap();
    let seen = |m: &Memory, database| -> Vec<_> {
        m.all(database, 2).into_iter().map(|c| (c.schema, c.state)).collect()
    };
    assert_eq!(seen(&memory, DatabaseOid(1)), [(SchemaOid(7), b"7".to_vec()), (SchemaOid(8), b"8".to_vec())]);
    assert!(!memory.table().delete(&Key { schema: SchemaOid(9), ..other }, ClockTime(2)));
    assert_eq!(
        memory.table().forget_schema(DatabaseOid(1), SchemaOid(8), ClockTime(1)),
        0,
        "it was put later"
    );
    assert_eq!(memory.table().forget_schema(DatabaseOid(1), SchemaOid(8), ClockTime(2)), 1);
    assert_eq!((seen(&memory, DatabaseOid(1)).len(), seen(&memory, DatabaseOid(2)).len()), (1, 1));
}

/// A put counts even if the wall clock was set back before it.
#[test]
fn wall_time_decides_nothing() {
    let mut memory = Memory::new(9, 9);
    let identity = Identity::of(&key("a", "q"), None);
    let (state, source) = (b"{}", LOCAL);
    let new = NewEntry {
        state,
        started_at: None,
        updated_at: WallTime(-50),
        now: ClockTime(5),
        expires_at: ClockTime(10),
        source,
        identity,
    };
    memory.table().put(&key("a", "q"), &new).unwrap();
    assert_eq!(memory.all(DatabaseOid(1), 9).len(), 1);
    assert!(memory.all(DatabaseOid(1), 10).is_empty());
    assert_eq!(memory.table().forget_database(DatabaseOid(1), ClockTime(5)), 0, "put at 5, not at -50");
    memory
        .table()
        .put(&key("a", "q"), &NewEntry { updated_at: WallTime(-90), now: ClockTime(6), ..new })
        .unwrap();
    let kept = memory.all(DatabaseOid(1), 9).pop().unwrap();
    assert_eq!((kept.started_at.0, kept.updated_at.0), (-50, -90));
}

fn of(role: RoleOid, most: usize) -> Source {
    Source::Local(Some(Quota { role, most }))
}

#[test]
fn a_role_holds_no_more_than_its_quota() {
    let mut memory = Memory::new(16, 16);
    let two = vec![b'x'; BLOCK + 1];
    let quota = |missing: usize| Err(Full { missing: missing * size_of::<Block>(), quota: true });
    memory.put(&key("a", "1"), &two, 0, 10, of(RoleOid(100), 4)).unwrap();
    memory.put(&key("a", "2"), b"{}", 0, 10, of(RoleOid(100), 4)).unwrap();
    assert_eq!(memory.put(&key("a", "3"), &two, 0, 10, of(RoleOid(100), 4)), quota(1));
    assert!(memory.all(DatabaseOid(1), 0).iter().all(|c| c.queue != "3"), "it changed nothing");
    memory.put(&key("a", "2"), &two, 0, 10, of(RoleOid(100), 4)).expect("what it replaces is given back");
    assert_eq!(
        memory.put(&key("a", "3"), b"{}", 0, 10, of(RoleOid(100), 4)),
        quota(1),
        "one of them is too many, too"
    );
    memory.put(&key("b", "1"), b"{}", 0, 10, of(RoleOid(200), 4)).expect("another role has its own");
    memory.put(&key("c", "1"), &[b'x'; 5 * BLOCK], 0, 10, LOCAL).expect("without a limit");
    // An entry that another role replaces counts for that role from then on.
    memory.put(&key("a", "1"), b"{}", 0, 10, of(RoleOid(200), 4)).unwrap();
    memory.put(&key("a", "3"), &two, 0, 10, of(RoleOid(100), 4)).unwrap();
    assert_eq!(memory.recount(), [0, 6, 4, 2, 0]);
    // Each way in which an entry ends gives its blocks back.
    memory.table().delete(&key("a", "2"), ClockTime(0));
    memory.table().expire(ClockTime(10), |_| {});
    assert_eq!(memory.recount(), [0; 5]);
    for _ in 0..3 {
        memory.put(&key("a", "1"), &[b'x'; 3 * BLOCK], 0, 10, of(RoleOid(100), 4)).unwrap();
        assert!(memory.put(&key("a", "2"), b"{}", 0, 10, of(RoleOid(100), 4)).is_err());
        memory.table().forget_database(DatabaseOid(1), ClockTime(i64::MAX));
        memory.put(&key("a", "1"), &[b'x'; 3 * BLOCK], 0, 10, of(RoleOid(100), 4)).unwrap();
        memory.table().delete_node(&key("a", ""), ClockTime(0));
    }
}

/// An error says that the table is full if the role has room in its quota.
#[test]
fn a_full_table_is_not_the_quota_of_a_role() {
    let mut memory = Memory::new(4, 4);
    memory.put(&key("a", "1"), &[b'x'; 2 * BLOCK], 0, 10, LOCAL).unwrap();
    let full = memory.put(&key("b", "1"), &[b'x'; BLOCK], 0, 10, of(RoleOid(100), 4)).unwrap_err();
    assert_eq!(full, Full { missing: size_of::<Block>(), quota: false });
    memory.put(&key("b", "1"), b"{}", 0, 10, of(RoleOid(100), 1)).unwrap();
    assert!(!memory.put(&key("b", "2"), b"{}", 0, 10, of(RoleOid(200), 1)).unwrap_err().quota);
}

/// The last block usage belongs to all roles for which no other block usage is free.
#[test]
fn roles_beyond_the_block_usages_share_one() {
    let mut memory = Memory::new(16, 16);
    for role in [100, 200, 300] {
        memory.put(&key("a", &role.to_string()), b"{}", 0, 10, of(RoleOid(role), 2)).unwrap();
    }
    memory.put(&key("b", "400"), b"{}", 0, 10, of(RoleOid(400), 2)).unwrap();
    assert!(memory.put(&key("b", "500"), b"{}", 0, 10, of(RoleOid(500), 2)).unwrap_err().quota);
    memory.put(&key("b", "200"), b"{}", 0, 10, of(RoleOid(200), 2)).expect("a role that has one keeps it");
    // The next role takes a block usage that is free.
    assert!(memory.table().delete(&key("a", "100"), ClockTime(0)));
    memory.put(&key("b", "500"), b"{}", 0, 10, of(RoleOid(500), 2)).unwrap();
    assert_eq!(memory.recount(), [0, 0, 1, 2, 2]);
    memory.table().expire(ClockTime(10), |_| {});
    assert!(memory.block_usages.iter().all(|h| *h == BlockUsage::default()));
}

/// Entries change between the pieces of a reading. An entry that stays is read once, and an entry
/// that moved shows its last state.
#[test]
fn an_entry_that_moves_during_a_reading_is_read_once() {
    let mut memory = Memory::new(5000, 5000);
    let queues: Vec<String> = (0..4000).map(|n| n.to_string()).collect();
    for queue in &queues {
        memory.put(&key("a", queue), b"old", 0, 10, LOCAL).unwrap();
    }
    let (mut piece, mut all) = (EntryBatch::new(), Vec::new());
    assert!(!memory.view().read(DatabaseOid(1), false, ClockTime(1), &mut piece), "more than a piece");
    piece.take(|entry| all.push(entry.copy()));
    assert!(
        memory.table().delete(&key("a", "0"), ClockTime(1))
            && memory.table().delete(&key("a", "1"), ClockTime(1))
    );
    for queue in ["1", "new", "0"] {
        memory.put(&key("a", queue), b"newer", 2, 10, LOCAL).unwrap();
    }
    while !memory.view().read(DatabaseOid(1), false, ClockTime(2), &mut piece) {
        piece.take(|entry| all.push(entry.copy()));
    }
    piece.take(|entry| all.push(entry.copy()));
    let all = EntryBatch::into_latest(all);
    let state =
        |queue: &str| all.iter().filter(|c| c.queue == queue).map(|c| c.state.clone()).collect::<Vec<_>>();
    assert_eq!(state("0"), [b"newer"], "it has moved behind the others");
    assert_eq!(state("1"), [b"old"], "as it was when it was read");
    assert_eq!(all.len(), queues.len(), "and what came behind the reader's back is not among them");
}

#[test]
fn a_piece_ends_by_its_bytes() {
    let mut memory = Memory::new(3000, 3000);
    for queue in ["1", "2", "3"] {
        memory.put(&key("a", queue), &vec![b'x'; 60_000], 0, 10, LOCAL).unwrap();
    }
    let (mut piece, mut all) = (EntryBatch::new(), Vec::new());
    assert!(!memory.view().read(DatabaseOid(1), false, ClockTime(1), &mut piece));
    piece.take(|entry| all.push(entry.copy()));
    assert_eq!(all.len(), 2);
    assert!(memory.view().read(DatabaseOid(1), false, ClockTime(1), &mut piece));
    piece.take(|entry| all.push(entry.copy()));
    assert!(all.len() == 3 && all.iter().all(|c| c.state == [b'x'; 60_000]));
}

#[test]
fn a_process_lives_until_its_last_entry_has_ended() {
    let mut memory = Memory::new(9, 9);
    let put = |memory: &mut Memory, uuid: &str, queue: &str, now: i64, until: i64| {
        memory.put_as(Some(uuid), &key("a", queue), b"{}", (now, until), LOCAL).unwrap();
    };
    assert_eq!(memory.process(SchemaOid(7), "a", Some("u"), 0), None, "never heard of");
    put(&mut memory, "u", "1", 0, 10);
    put(&mut memory, "u", "2", 1, 10);
    assert!(memory.table().delete(&key("a", "1"), ClockTime(2)));
    assert_eq!(memory.ended_at("a", "u", 3), None, "it has another");
    assert!(memory.table().delete(&key("a", "2"), ClockTime(4)));
    assert_eq!(memory.ended_at("a", "u", 5), Some(4));
    put(&mut memory, "u", "1", 6, 10);
    assert_eq!(memory.ended_at("a", "u", 6), None, "it is there again");
    // An expired entry ends when it is found to have expired.
    assert_eq!(memory.ended_at("a", "u", 20), None);
    memory.table().expire(ClockTime(20), |_| {});
    assert_eq!(memory.ended_at("a", "u", 20), Some(20));
    // Another process replaces the entry.
    put(&mut memory, "u", "1", 21, 30);
    put(&mut memory, "v", "1", 25, 35);
    assert_eq!((memory.ended_at("a", "u", 26), memory.ended_at("a", "v", 26)), (Some(25), None));
    assert_eq!(memory.table().delete_node(&key("a", ""), ClockTime(27)), 1);
    assert_eq!(memory.ended_at("a", "v", 27), Some(27));
    assert_eq!(memory.process(SchemaOid(7), "a", None, 27), None, "without a uuid it is another");
    assert_eq!(memory.process(SchemaOid(8), "a", Some("u"), 27), None, "and in another schema");
    // A process that is forgotten with its schema was never heard.
    memory.table().forget_schema(DatabaseOid(1), SchemaOid(7), ClockTime(25));
    assert_eq!(memory.process(SchemaOid(7), "a", Some("u"), 30), None);
    assert!(memory.process(SchemaOid(7), "a", Some("v"), 30).is_some(), "it was heard later");
}

/// A process whose puts are refused lives nevertheless.
#[test]
fn a_put_that_has_no_room_is_a_sign_of_life() {
    let mut memory = Memory::new(4, 4);
    memory.put_as(Some("u"), &key("a", "1"), b"{}", (0, 10), LOCAL).unwrap();
    let large = vec![b'x'; 5 * BLOCK];
    memory.put_as(Some("u"), &key("a", "1"), &large, (5, 15), LOCAL).unwrap_err();
    memory.table().expire(ClockTime(10), |_| {});
    assert_eq!(memory.ended_at("a", "u", 14), None);
    assert_eq!(memory.ended_at("a", "u", 15), Some(15));
    // A foreign put that is ignored beside a local entry is a sign of life, too.
    memory.put_as(Some("u"), &key("a", "1"), b"{}", (20, 30), LOCAL).unwrap();
    memory.put_as(Some("w"), &key("a", "1"), b"{}", (21, 31), Source::Foreign).unwrap();
    assert_eq!((memory.ended_at("a", "w", 30), memory.ended_at("a", "w", 31)), (None, Some(31)));
    assert!(memory.process(SchemaOid(7), "a", Some("w"), 31).is_some_and(|process| process.foreign));
}

/// If there is no room, a process that has ended is forgotten, first one of the same schema. A
/// process that lives is never forgotten.
#[test]
fn memory_of_processes_is_bounded() {
    let mut memory = Memory::new(8, 8);
    let mut put = |uuid: &str, schema: SchemaOid, queue: &str, now: i64| {
        let key = Key { schema, ..key("a", queue) };
        memory.put_as(Some(uuid), &key, b"{}", (now, 1_000), LOCAL).unwrap();
    };
    put("lives", SchemaOid(7), "1", 0);
    put("other 1", SchemaOid(9), "1", 1);
    put("other 2", SchemaOid(9), "1", 2);
    for n in 0..100 {
        put(&n.to_string(), SchemaOid(7), "2", 3 + n);
    }
    for uuid in ["lives", "99", "98"] {
        assert!(memory.process(SchemaOid(7), "a", Some(uuid), 200).is_some(), "{uuid}");
    }
    assert_eq!(memory.ended_at("a", "98", 200), Some(102));
    assert_eq!(memory.process(SchemaOid(7), "a", Some("1"), 200), None, "forgotten");
    assert_eq!(
        memory.process(SchemaOid(9), "a", Some("other 1"), 200).and_then(|p| p.ended_at),
        Some(ClockTime(2))
    );
    // If all processes live, there is no room for another one.
    for n in 0..8 {
        let key = Key { schema: SchemaOid(7), ..key("b", "q") };
        let node = format!("b{n}");
        memory.table().delete_node(&Key { node: "a", ..key }, ClockTime(300));
        let _ = memory.put_as(Some("u"), &Key { node: &node, ..key }, b"{}", (300, 1_000), LOCAL);
    }
    assert!((0..7).all(|n| memory.process(SchemaOid(7), &format!("b{n}"), Some("u"), 400).is_some()));
}

#[derive(Clone, Debug)]
enum Step {
    /// A put by a role (0: a role without a limit). `None`: a foreign put.
    Put {
        node: u8,
        queue: u8,
        size: usize,
        ttl: i64,
        role: Option<u32>,
    },
    Delete {
        node: u8,
        queue: Option<u8>,
    },
    Expire,
    Forget {
        node: u8,
        since: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..4, 0u8..4, 0usize..900, 1i64..40, prop::option::weighted(0.7, 0u32..5))
            .prop_map(|(node, queue, size, ttl, role)| Step::Put { node, queue, size, ttl, role }),
        1 => (0u8..4, prop::option::of(0u8..4)).prop_map(|(node, queue)| Step::Delete { node, queue }),
        1 => Just(Step::Expire),
        1 => (0u8..4, 0i64..20).prop_map(|(node, since)| Step::Forget { node, since }),
    ]
}

/// What the model knows of an entry: its state, its deadline, its role (`None` if foreign), and the
/// time of the put.
type Known = (Vec<u8>, i64, Option<u32>, i64);

/// Returns the schema of a node's entries.
fn schema_of(node: &str) -> u32 {
    node.parse::<u32>().unwrap() % 2
}

/// The quota of each role, in blocks.
const MOST: usize = 5;

proptest! {
    /// The table is a map of bounded size. After any steps it has the same contents as a BTreeMap,
    /// and no block is lost or in two chains.
    #[test]
    fn behaves_as_a_bounded_map(steps in prop::collection::vec(step(), 1..200)) {
        let mut memory = Memory::new(8, 16);
        fn at<'a>(node: &'a str, queue: &'a str) -> Key<'a> {
            Key { schema: SchemaOid(schema_of(node)), ..key(node, queue) }
        }
        let mut model: BTreeMap<(String, String), Known> = BTreeMap::new();
        for (now, step) in steps.into_iter().enumerate() {
            let now = now as i64;
            match step {
                Step::Put { node, queue, size, ttl, role } => {
                    let (node, queue) = (node.to_string(), queue.to_string());
                    let state = format!("{now:04}").repeat(size / 4).into_bytes();
                    let local = |r| if r == 0 { LOCAL } else { of(RoleOid(r), MOST) };
                    let source = role.map_or(Source::Foreign, local);
                    let block_usage = memory.table().block_usage_of(source);
                    let held = memory.block_usages[block_usage].blocks;
                    let put = memory.put(&at(&node, &queue), &state, now, now + ttl, source);
                    let local_lives = model.get(&(node.clone(), queue.clone()))
                        .is_some_and(|(_, until, role, _)| now < *until && role.is_some());
                    match put {
                        Ok(put) => {
                            prop_assert_eq!(put.ignored, role.is_none() && local_lives);
                            if !put.ignored {
                                model.insert((node, queue), (state, now + ttl, role, now));
                            }
                        }
                        Err(full) => {
                            // The names and the state take at most this many blocks.
                            let needed = (state.len() + 8).div_ceil(BLOCK);
                            let shared = role.is_some_and(|r| r != 0) && held as usize + needed > MOST;
                            prop_assert!(!full.quota || shared, "{:?}", full);
                        }
                    }
                }
                Step::Delete { node, queue } => {
                    let (node, queue) = (node.to_string(), queue.map(|q| q.to_string()));
                    let goes = |n: &str, q: &str| n == node && queue.as_ref().is_none_or(|w| w == q);
                    let lived =
                        model.iter().filter(|((n, q), (_, until, ..))| goes(n, q) && now < *until).count();
                    let deleted = match &queue {
                        Some(queue) => usize::from(memory.table().delete(&at(&node, queue), ClockTime(now))),
                        None => memory.table().delete_node(&at(&node, ""), ClockTime(now)),
                    };
                    prop_assert_eq!(deleted, lived);
                    model.retain(|(n, q), _| !goes(n, q));
                }
                Step::Expire => {
                    let mut expired = 0;
                    memory.table().expire(ClockTime(now), |_| expired += 1);
                    let before = model.len();
                    model.retain(|_, (_, until, ..)| *until > now);
                    prop_assert_eq!(expired, before - model.len());
                }
                Step::Forget { node, since } => {
                    let (schema, before) = (u32::from(node) % 2, model.len());
                    let before_reading = ClockTime(now - since);
                    let schema_oid = SchemaOid(schema);
                    let forgotten = memory.table().forget_schema(DatabaseOid(1), schema_oid, before_reading);
                    model.retain(|(n, _), (.., put_at)| schema_of(n) != schema || *put_at >= now - since);
                    prop_assert_eq!(forgotten, before - model.len());
                }
            }
            let seen = |only_local| {
                let all = memory.read(DatabaseOid(1), only_local, now).into_iter();
                let mut seen: Vec<_> = all.map(|c| ((c.node, c.queue), c.state)).collect();
                seen.sort();
                seen
            };
            let wanted = |only_local: bool| -> Vec<_> {
                let live = model
                    .iter()
                    .filter(|(_, (_, until, role, _))| *until > now && !(only_local && role.is_none()));
                live.map(|(k, (state, ..))| (k.clone(), state.clone())).collect()
            };
            prop_assert_eq!(seen(false), wanted(false));
            prop_assert_eq!(seen(true), wanted(true));
            prop_assert_eq!(memory.usage(DatabaseOid(1), now).entries, wanted(false).len());
            let has_local = memory.view().has_local(DatabaseOid(1), ClockTime(now));
            prop_assert_eq!(has_local, !wanted(true).is_empty());

            // Each entry is counted for the process that put it, if that process is remembered.
            for (i, process) in memory.processes.iter().enumerate() {
                let own = |e: &&GossipEntry| e.blocks != 0 && e.process == i as u32 + 1;
                prop_assert_eq!(process.entries(), memory.entries.iter().filter(own).count());
            }
            for ((node, _), (_, until, ..)) in model.iter().filter(|(_, known)| known.1 > now) {
                let process = memory.process(SchemaOid(schema_of(node)), node, None, now);
                prop_assert!(process.is_some_and(|p| p.ended_at.is_none()), "{} until {}", node, until);
            }
            let chained: u32 = memory.entries.iter().map(|e| e.blocks).sum();
            prop_assert_eq!(chained, memory.head.blocks);
            let counted: Vec<u32> = memory.block_usages.iter().map(|h| h.blocks).collect();
            prop_assert_eq!(&counted, &memory.recount());
            prop_assert!(memory.foreign_blocks() as usize <= memory.blocks.len() / 2);
            // No role holds more than its quota. The roles that share a block usage hold no more than
            // one quota.
            let last = memory.block_usages.len() - 1;
            prop_assert!(counted[FIRST_ROLE as usize..].iter().all(|blocks| *blocks as usize <= MOST));
            for (i, block_usage) in memory.block_usages.iter().enumerate() {
                let single = (FIRST_ROLE as usize..last).contains(&i);
                prop_assert_eq!(block_usage.role != RoleOid(0), single && block_usage.blocks != 0);
                let same = |h: &&BlockUsage| h.role != RoleOid(0) && h.role == block_usage.role;
                prop_assert!(memory.block_usages.iter().filter(same).count() <= 1);
            }
            let (mut free, mut at) = (0, memory.head.free_block);
            while at != 0 { free += 1; at = memory.blocks[at as usize - 1].next; }
            prop_assert_eq!(free + chained, memory.head.blocks_touched);
        }
    }
}
