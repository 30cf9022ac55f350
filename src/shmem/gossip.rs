//! The gossip table in shared memory: putting, deleting, reading and expiring, under the lock
//! Gossip. Deadlines count on `pg::clock`.
//!
//! The coordinator lets entries expire. Readers leave out an entry that is over, whether or not the
//! coordinator has deleted it. A database's relay broadcasts what sessions put there (`polling`).

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::Segment;
use super::locks::Lock;
use super::segment::layout;
use super::stats;
use crate::logic::check;
use crate::logic::counter::Counter;
use crate::logic::gossip::memory::{self, Identity, Processes, Remembered};
use crate::logic::gossip::{
    self, EntryBatch, EntryCopy, Full, Key, MAX_BLOCK_USAGES, NewEntry, Put, Source, Table, Usage, View,
};
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::jsonb::{self, Value};
use crate::logic::orphans::{MAX_SUSPECTS, Suspects};
use crate::logic::times::{ClockTime, WallTime};
use crate::pg::lwlock::Mode;
use crate::pg::{clock, time};

/// How long the coordinator leaves an entry in the table after its deadline, in microseconds. So
/// one pass deletes all entries that have ended within this time. No reader sees such an entry, and
/// a put that needs its room takes it.
const SWEEP_DELAY: i64 = 100_000;

/// How long an entry of a schema without a name is kept, in microseconds. The transaction that
/// creates the schema may put into it before it commits.
const KEEP_NAMELESS: i64 = 10_000_000;

/// The gossip table of the segment.
#[derive(Clone, Copy)]
pub struct Gossip(Segment);

impl Segment {
    pub fn gossip(self) -> Gossip {
        Gossip(self)
    }
}

impl Gossip {
    /// Runs `body` with the table to change it, under the lock Gossip in exclusive mode. The second
    /// argument of `body` is the deadline at which the coordinator next looks for expired entries
    /// (0: it does not look).
    fn table<R>(self, body: impl FnOnce(&mut Table<'_>, &mut ClockTime) -> R) -> R {
        let (segment, l) = (self.0, layout());
        let _guard = Lock::Gossip.acquire(Mode::Exclusive);
        // SAFETY: areas and fields of the lock that is held exclusively until `body` has returned.
        unsafe {
            let root = segment.root();
            let mut table = Table {
                head: &mut (*root).gossip,
                buckets: segment.area(l.buckets, l.max_entries),
                entries: segment.area(l.entries, l.max_entries),
                blocks: segment.area(l.blocks, l.max_entries),
                block_usages: segment.area(l.block_usages, MAX_BLOCK_USAGES),
                processes: Processes {
                    head: &mut (*root).processes,
                    buckets: segment.area(l.process_buckets, gossip::processes(l.max_entries)),
                    processes: segment.area(l.processes, gossip::processes(l.max_entries)),
                },
            };
            body(&mut table, &mut (*root).sweep_at)
        }
    }

    /// Runs `body` with the table to read it, under the lock Gossip in shared mode. Also returns
    /// how many entries were ever inserted.
    fn view<R>(self, body: impl FnOnce(View<'_>) -> R) -> (R, u64) {
        let (segment, l) = (self.0, layout());
        let _guard = Lock::Gossip.acquire(Mode::Shared);
        // SAFETY: areas and fields of the lock that is held in shared mode until `body` has
        // returned; no process writes.
        unsafe {
            let head = &(*segment.root()).gossip;
            let view = View {
                entries: &*segment.area(l.entries, l.max_entries),
                blocks: &*segment.area(l.blocks, l.max_entries),
                touched: head.entries_touched(),
            };
            (body(view), head.inserted)
        }
    }

    /// How many blocks the table has. It has as many entries.
    pub fn capacity(self) -> usize {
        layout().max_entries
    }

    /// Inserts or replaces an entry, which expires after `ttl` microseconds. `started_at` is wall
    /// time. `Err`: there is no room. Not for a server in recovery, which has no coordinator to let
    /// entries expire.
    pub fn put(
        self,
        key: &Key<'_>,
        state: &[u8],
        started_at: Option<WallTime>,
        ttl: i64,
        source: Source,
    ) -> Result<Put, Full> {
        let uuid = match jsonb::read(state) {
            Ok(Value::Object(state)) => check::uuid(state.get("uuid").ok().flatten()),
            _ => None,
        };
        let identity = Identity::of(key, uuid);
        let now = clock::now();
        let expires_at = now.saturating_add(ttl);
        let new = NewEntry { state, started_at, updated_at: time::now(), now, expires_at, source, identity };
        let mut expired = Vec::new();
        let (put, sooner) = self.table(|table, sweep_at| {
            let put = table.put(key, &new).or_else(|full| {
                // The coordinator may be late. If no entry is over, looking through all would win
                // nothing.
                if table.head.next_expiry > now {
                    return Err(full);
                }
                table.expire(now, |database| expired.push(database));
                table.put(key, &new)
            });
            // Only an entry that is to be swept before the coordinator looks again has to wake it.
            let swept_at = expires_at.saturating_add(SWEEP_DELAY);
            let sooner = put.is_ok() && (*sweep_at == ClockTime::ZERO || swept_at < *sweep_at);
            if sooner {
                *sweep_at = swept_at;
            }
            (put, sooner)
        });
        if sooner {
            self.0.wake_coordinator();
        }
        self.count_expired(&expired);
        let done = put?;
        stats::count(Counter::GossipExpired, usize::from(done.expired));
        if source != Source::Foreign {
            stats::count(Counter::GossipPuts, 1);
            self.0.wake_relay_after_put(key.database);
        }
        Ok(done)
    }

    /// Deletes an entry. Returns whether it was there.
    pub fn delete(self, key: &Key<'_>) -> bool {
        self.table(|table, _| table.delete(key, clock::now()))
    }

    /// Deletes the entries of a node, whatever the queue in the key. Returns how many there were.
    /// Callable after commit.
    pub fn delete_node(self, key: &Key<'_>) -> usize {
        self.table(|table, _| table.delete_node(key, clock::now()))
    }

    /// Deletes what was put before the clock reading `before` in a database that is gone.
    pub fn forget_database(self, database: DatabaseOid, before: ClockTime) {
        self.table(|table, _| table.forget_database(database, before));
    }

    /// Deletes what was put before the clock reading `before` in databases that do not exist. A
    /// database without a slot may have entries, too.
    pub fn forget_databases(self, exists: impl Fn(DatabaseOid) -> bool, before: ClockTime) {
        self.table(|table, _| table.forget_databases(exists, before));
    }

    /// Returns the schemas of a database that have entries; with `only_local`, those that have
    /// local entries.
    pub fn schemas(self, database: DatabaseOid, only_local: bool) -> BTreeSet<SchemaOid> {
        let mut schemas = BTreeSet::new();
        self.each(database, only_local, |piece| piece.take(|entry| _ = schemas.insert(entry.schema)));
        schemas
    }

    /// Deletes the entries of a schema that was dropped. Returns how many there were. Callable
    /// after commit.
    pub fn forget_schema(self, database: DatabaseOid, schema: SchemaOid) -> usize {
        self.table(|table, _| table.forget_schema(database, schema, ClockTime::NEVER))
    }

    /// Deletes what was put `KEEP_NAMELESS` ago or earlier into a schema that has no name: the
    /// schema was dropped after the put, or the transaction that created it did not commit.
    pub fn forget_nameless(self, database: DatabaseOid, schema: SchemaOid) {
        let before = clock::now().before(KEEP_NAMELESS);
        self.table(|table, _| table.forget_schema(database, schema, before));
    }

    /// Deletes entries that are over. Returns the deadline of the next look; `None`: there is no
    /// entry.
    pub fn sweep(self) -> Option<ClockTime> {
        let now = clock::now();
        let mut expired = Vec::new();
        let next = self.table(|table, sweep_at| {
            if table.head.next_expiry != ClockTime::ZERO && table.head.next_expiry <= now {
                table.expire(now, |database| expired.push(database));
            }
            *sweep_at = match table.head.next_expiry {
                ClockTime::ZERO => ClockTime::ZERO,
                next => next.saturating_add(SWEEP_DELAY),
            };
            (*sweep_at != ClockTime::ZERO).then_some(*sweep_at)
        });
        self.count_expired(&expired);
        next
    }

    /// Counts the entries that expired, for each database.
    fn count_expired(self, expired: &[DatabaseOid]) {
        for same in expired.chunk_by(|a, b| a == b) {
            self.0.count_in(same[0], Counter::GossipExpired, same.len());
        }
    }

    /// Gives `body` the entries of a database that hold now, all or only local ones, batch by
    /// batch. Each entry is a consistent copy. False: entries were inserted meanwhile, so that
    /// `body` may have got an entry twice.
    pub fn each(
        self,
        database: DatabaseOid,
        only_local: bool,
        mut body: impl FnMut(&mut EntryBatch),
    ) -> bool {
        let (now, mut piece) = (clock::now(), EntryBatch::new());
        let mut first = None;
        loop {
            // The lock is free between two batches, so that a put waits for one batch at most.
            let (done, inserted) = self.view(|view| view.read(database, only_local, now, &mut piece));
            body(&mut piece);
            let began = *first.get_or_insert(inserted);
            if done {
                return inserted == began;
            }
        }
    }

    /// All entries of a database that hold now, or only local ones, each once.
    pub fn entries(self, database: DatabaseOid, only_local: bool) -> Vec<EntryCopy> {
        let mut all = Vec::new();
        let once = self.each(database, only_local, |piece| piece.take(|entry| all.push(entry.copy())));
        if once { all } else { EntryBatch::into_latest(all) }
    }

    /// What is remembered at `now` of the processes of a schema.
    pub fn remembered(self, database: DatabaseOid, schema: SchemaOid, now: ClockTime) -> Vec<Remembered> {
        /// How many processes are read while the lock is held once.
        const MAX_AT_A_TIME: usize = 2048;
        let (segment, l) = (self.0, layout());
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let mut piece = Vec::with_capacity(MAX_AT_A_TIME);
            let done = {
                let _guard = Lock::Gossip.acquire(Mode::Shared);
                // SAFETY: an area and a field of the lock that is held in shared mode; no process
                // writes.
                let (processes, touched) = unsafe {
                    let processes = &*segment.area(l.processes, gossip::processes(l.max_entries));
                    (processes, (*segment.root()).processes.touched as usize)
                };
                let end = touched.min(from + MAX_AT_A_TIME);
                piece.extend(memory::remembered(&processes[from.min(end)..end], database, schema, now));
                from = end;
                end == touched
            };
            all.append(&mut piece);
            if done {
                return all;
            }
        }
    }

    /// The clock reading since which this server knows of gossip: its start, or its promotion.
    pub fn knows_since(self) -> ClockTime {
        ClockTime(self.0.globals().knows_since.load(Ordering::Relaxed))
    }

    /// Runs `body` with the suspects, under the lock Gossip in exclusive mode.
    pub fn suspects<R>(self, body: impl FnOnce(&mut Suspects<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Gossip.acquire(Mode::Exclusive);
        // SAFETY: the area of the lock that is held exclusively until `body` has returned.
        body(&mut Suspects(unsafe { self.0.area(l.suspects, MAX_SUSPECTS) }))
    }

    /// What a database has in the table.
    pub fn usage(self, database: DatabaseOid) -> Usage {
        let (now, mut usage, mut from) = (clock::now(), Usage::default(), Some(0));
        while let Some(at) = from {
            from = self.view(|view| view.add_usage(database, now, at, &mut usage)).0;
        }
        usage
    }

    /// How long this process waits for the table's lock now.
    #[cfg(feature = "bench")]
    pub fn bench_wait(self) -> std::time::Duration {
        let since = std::time::Instant::now();
        self.table(|_, _| since.elapsed())
    }

    /// The part of the memory that the entries of all databases use, from 0 to 1.
    pub fn full(self) -> f64 {
        self.table(|table, _| {
            let part = |used: u32, all: usize| f64::from(used) / all.max(1) as f64;
            part(table.head.blocks, table.blocks.len()).max(part(table.head.entries, table.entries.len()))
        })
    }

    /// Whether a database has a local entry.
    pub fn has_local(self, database: DatabaseOid) -> bool {
        self.view(|view| view.has_local(database, clock::now())).0
    }
}
