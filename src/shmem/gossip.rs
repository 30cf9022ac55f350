//! The gossip table: putting, deleting, reading, expiring, and which processes have to be woken for that. What is a deadline here
//! counts on `pg::clock`.
//!
//! The coordinator lets entries expire (readers leave out what is over by themselves); a database's relay
//! announces what is put there. A relay that has nothing to announce is woken by the next put: under
//! `polling` it says whether it looks by itself. It takes that back before it looks for the last time, and
//! who puts looks at it after the put, so that one of them sees the other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::rings::{self, Counter};
use super::{area, layout, registry, root};
use crate::error::Error;
use crate::logic::check;
use crate::logic::gossip::memory::{self, Identity, Processes, Remembered};
use crate::logic::gossip::{
    self, EntryBatch, EntryCopy, Full, Key, MAX_BLOCK_USAGES, NewEntry, Put, Source, Table, Usage, View,
};
use crate::logic::jsonb::{self, Value};
use crate::logic::orphans::{Coverage, SUSPECTS, Suspects};
use crate::pg::lwlock::{self, Lock, Mode};
use crate::pg::{clock, latch, session, time};

/// How long an entry that is over stays in the table, in microseconds: many that end one after the other are
/// looked for at a time. Nobody sees it meanwhile, and who needs its room takes it.
const SWEEP_DELAY: i64 = 100_000;

/// The table, to change it. `sweep_at` is the deadline at which the coordinator will next look for expired entries (0:
/// it will not).
fn table<R>(body: impl FnOnce(&mut Table<'_>, &mut i64) -> R) -> Result<R, Error> {
    let (root, l) = (root()?, layout());
    let _guard = lwlock::acquire(Lock::Gossip, Mode::Exclusive);
    // SAFETY: the areas of the lock that is held exclusively until `body` has returned.
    unsafe {
        let mut table = Table {
            head: &mut (*root).gossip,
            buckets: area(root, l.buckets, l.max_entries),
            entries: area(root, l.entries, l.max_entries),
            blocks: area(root, l.blocks, l.max_entries),
            block_usages: area(root, l.block_usages, MAX_BLOCK_USAGES),
            processes: Processes {
                head: &mut (*root).processes,
                buckets: area(root, l.process_buckets, gossip::processes(l.max_entries)),
                processes: area(root, l.processes, gossip::processes(l.max_entries)),
            },
        };
        Ok(body(&mut table, &mut (*root).sweep_at))
    }
}

/// The table, to read it, and how many entries were ever inserted.
fn view<R>(body: impl FnOnce(View<'_>) -> R) -> Result<(R, u64), Error> {
    let (root, l) = (root()?, layout());
    let _guard = lwlock::acquire(Lock::Gossip, Mode::Shared);
    // SAFETY: the areas of the lock that is held shared until `body` has returned; nobody writes.
    unsafe {
        let view = View {
            entries: &*area(root, l.entries, l.max_entries),
            blocks: &*area(root, l.blocks, l.max_entries),
            touched: (*root).gossip.entries_touched(),
        };
        Ok((body(view), (*root).gossip.inserted))
    }
}

/// How many blocks there are; as many entries.
pub fn blocks() -> usize {
    layout().max_entries
}

/// Inserts or replaces an entry, which ends after `ttl` microseconds. `started_at` is wall time. (Not in recovery: the
/// coordinator, which lets entries expire, is not there either.)
pub fn put(
    key: &Key<'_>,
    state: &[u8],
    started_at: Option<i64>,
    ttl: i64,
    source: Source,
) -> Result<Result<Put, Full>, Error> {
    let uuid = match jsonb::read(state) {
        Ok(Value::Object(state)) => check::uuid(state.get("uuid").ok().flatten()),
        _ => None,
    };
    let identity = Identity::of(key, uuid);
    let now = clock::now();
    let expires_at = now.saturating_add(ttl);
    let new = NewEntry { state, started_at, updated_at: time::now(), now, expires_at, source, identity };
    let mut expired = Vec::new();
    let (put, sooner) = table(|table, sweep_at| {
        let put = table.put(key, &new).or_else(|full| {
            // The coordinator may be late. (If it is not, nothing would be won by looking through all.)
            if table.head.next_expiry > now {
                return Err(full);
            }
            table.expire(now, |database| expired.push(database));
            table.put(key, &new)
        });
        // Only an entry that is to be swept before the coordinator looks again has to wake it.
        let swept_at = expires_at.saturating_add(SWEEP_DELAY);
        let sooner = put.is_ok() && (*sweep_at == 0 || swept_at < *sweep_at);
        if sooner {
            *sweep_at = swept_at;
        }
        (put, sooner)
    })?;
    if sooner {
        super::wake_coordinator();
    }
    count_expired(&expired);
    let Ok(done) = put else { return Ok(put) };
    rings::count(Counter::GossipExpired, usize::from(done.expired));
    if source != Source::Foreign {
        rings::count(Counter::GossipPuts, 1);
        wake_announcer(key.database);
    }
    Ok(put)
}

/// Deletes an entry; whether it was there.
pub fn delete(key: &Key<'_>) -> Result<bool, Error> {
    table(|table, _| table.delete(key, clock::now()))
}

/// Deletes a node's entries, whatever the key's queue is; how many.
pub fn delete_node(key: &Key<'_>) -> Result<usize, Error> {
    table(|table, _| table.delete_node(key, clock::now()))
}

/// Deletes what a database that is gone has left, put before that reading of the clock.
pub fn forget_database(database: u32, before: i64) {
    let _ = table(|table, _| table.forget_database(database, before));
}

/// The same for all databases that do not exist: one without a place in obanrs.max_databases may have entries, too.
pub fn forget_databases(exists: impl Fn(u32) -> bool, before: i64) {
    let _ = table(|table, _| table.forget_databases(exists, before));
}

/// The schemas of a database that have entries, all or only ours.
pub fn schemas(database: u32, only_local: bool) -> BTreeSet<u32> {
    let mut schemas = BTreeSet::new();
    let _ = each(database, only_local, |piece| piece.take(|entry| _ = schemas.insert(entry.schema)));
    schemas
}

/// Deletes what a schema that was dropped has left; how many entries that were. Callable after commit.
pub fn forget_schema(database: u32, schema: u32) -> usize {
    table(|table, _| table.forget_schema(database, schema, i64::MAX)).unwrap_or(0)
}

/// For how long an entry of a schema without a name is kept, in microseconds: the transaction that creates the schema
/// may put into it before it commits.
const KEEP_NAMELESS: i64 = 10_000_000;

/// Deletes what was put some time ago into a schema that has no name: it was dropped after the put, or never committed.
pub fn forget_nameless(database: u32, schema: u32) {
    let before = clock::now() - KEEP_NAMELESS;
    let _ = table(|table, _| table.forget_schema(database, schema, before));
}

/// Lets entries expire. The deadline of the next look; `None`: there is no entry.
pub fn sweep() -> Option<i64> {
    let now = clock::now();
    let mut expired = Vec::new();
    let next = table(|table, sweep_at| {
        if table.head.next_expiry != 0 && table.head.next_expiry <= now {
            table.expire(now, |database| expired.push(database));
        }
        *sweep_at = match table.head.next_expiry {
            0 => 0,
            next => next.saturating_add(SWEEP_DELAY),
        };
        (*sweep_at != 0).then_some(*sweep_at)
    });
    count_expired(&expired);
    next.ok().flatten()
}

/// Counts for each database the entries that expired.
fn count_expired(expired: &[u32]) {
    for same in expired.chunk_by(|a, b| a == b) {
        rings::count_in(same[0], Counter::GossipExpired, same.len());
    }
}

/// Gives `body` the entries of a database that hold now, all or only ours, piece by piece: each a consistent
/// copy. False if entries were inserted meanwhile, so that some may have been given twice.
pub fn each(database: u32, only_local: bool, mut body: impl FnMut(&mut EntryBatch)) -> Result<bool, Error> {
    let (now, mut piece) = (clock::now(), EntryBatch::new());
    let mut first = None;
    loop {
        // Between two pieces whoever waits to put goes first.
        let (done, inserted) = view(|view| view.read(database, only_local, now, &mut piece))?;
        body(&mut piece);
        let began = *first.get_or_insert(inserted);
        if done {
            return Ok(inserted == began);
        }
    }
}

/// All of them, each once.
pub fn entries(database: u32, only_local: bool) -> Result<Vec<EntryCopy>, Error> {
    let mut all = Vec::new();
    let once = each(database, only_local, |piece| piece.take(|entry| all.push(entry.copy())))?;
    Ok(if once { all } else { EntryBatch::into_latest(all) })
}

/// What is remembered at `now` of the processes of a schema.
pub fn remembered(database: u32, schema: u32, now: i64) -> Result<Vec<Remembered>, Error> {
    /// How many are looked at under the lock at a time.
    const PIECE: usize = 2048;
    let (root, l) = (root()?, layout());
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let done = {
            let _guard = lwlock::acquire(Lock::Gossip, Mode::Shared);
            // SAFETY: the areas of the lock that is held shared; nobody writes.
            let (processes, touched) = unsafe {
                let processes = &*area(root, l.processes, gossip::processes(l.max_entries));
                (processes, (*root).processes.touched as usize)
            };
            let end = touched.min(from + PIECE);
            piece.extend(memory::remembered(&processes[from.min(end)..end], database, schema, now));
            from = end;
            end == touched
        };
        all.append(&mut piece);
        if done {
            return Ok(all);
        }
    }
}

/// Since when this server has heard anything: its start, or its promotion.
pub fn knows_since() -> Result<i64, Error> {
    // SAFETY: an atomic in the segment.
    Ok(unsafe { &(*root()?).knows_since }.load(Ordering::Relaxed))
}

/// The jobs that were found not to be listed.
pub fn suspects<R>(body: impl FnOnce(&mut Suspects<'_>) -> R) -> Result<R, Error> {
    let (root, l) = (root()?, layout());
    let _guard = lwlock::acquire(Lock::Gossip, Mode::Exclusive);
    // SAFETY: the area of the lock that is held exclusively until `body` has returned.
    Ok(body(&mut Suspects(unsafe { area(root, l.suspects, SUSPECTS) })))
}

/// What a database has in the table.
pub fn usage(database: u32) -> Result<Usage, Error> {
    let (now, mut usage, mut from) = (clock::now(), Usage::default(), Some(0));
    while let Some(at) = from {
        from = view(|view| view.add_usage(database, now, at, &mut usage))?.0;
    }
    Ok(usage)
}

/// How long this process waited for the table's lock just now.
#[cfg(feature = "bench")]
pub fn bench_wait() -> Result<std::time::Duration, Error> {
    let since = std::time::Instant::now();
    table(|_, _| since.elapsed())
}

/// The part of the memory that is used, by all databases.
pub fn full() -> Result<f64, Error> {
    table(|table, _| {
        let part = |used: u32, all: usize| f64::from(used) / all.max(1) as f64;
        part(table.head.blocks, table.blocks.len()).max(part(table.head.entries, table.entries.len()))
    })
}

/// Whether a database has an entry of ours.
pub fn has_local(database: u32) -> bool {
    view(|view| view.has_local(database, clock::now())).is_ok_and(|(has, _)| has)
}

/// Says of each slot's life whether its relay looks for entries by itself: the slot's birth if so.
fn polling(slot: usize) -> Option<&'static AtomicU64> {
    let (root, l) = (root().ok()?, layout());
    // SAFETY: atomics in the segment.
    let all: &[AtomicU64] = unsafe { area(root, l.polling, l.max_databases) };
    all.get(slot)
}

/// After a put: wakes the relay if it does not look by itself. (Also while nothing is broadcast: this session may
/// not know yet that this has changed, and it is once.)
fn wake_announcer(database: u32) {
    // By the slot that this process remembers; if that is another's by now, it says another birth.
    if announcer::is_polling() {
        return;
    }
    let (slot, relay) =
        registry(|r| (r.slot(database), r.prepare_relay_wakeup(database))).unwrap_or_default();
    if let Some((slot, generation)) = slot
        && let Some(polling) = polling(slot)
    {
        polling.store(generation, Ordering::SeqCst);
    }
    relay.into_iter().for_each(latch::wake);
}

/// The relay's side of it.
pub mod announcer {
    use super::*;

    /// This process looks for entries by itself.
    pub fn start_polling() {
        set(true);
    }

    /// Whether somebody has put since it ceased to, or it has not.
    pub fn is_polling() -> bool {
        rings::own_slot().is_some_and(|(slot, generation)| {
            polling(slot).is_some_and(|a| a.load(Ordering::SeqCst) == generation)
        })
    }

    /// It does so no more, unless there is an entry by now: whether it need not.
    pub fn stop_polling() -> bool {
        set(false);
        let ceases = !has_local(session::database());
        if !ceases {
            start_polling();
        }
        ceases
    }

    fn set(start_polling: bool) {
        if let Some((slot, generation)) = rings::own_slot()
            && let Some(polling) = polling(slot)
        {
            polling.store(if start_polling { generation } else { 0 }, Ordering::SeqCst);
        }
    }
}

/// What a database's relay has heard of foreign gossip, for `logic::orphans`. Written by the relay only.
pub mod coverage {
    use super::*;

    #[repr(C)]
    pub struct SharedCoverage {
        since: AtomicI64,
        at: AtomicI64,
    }

    fn shared(slot: usize) -> Option<&'static SharedCoverage> {
        let (root, l) = (root().ok()?, layout());
        // SAFETY: atomics in the segment.
        let all: &[SharedCoverage] = unsafe { area(root, l.coverages, l.max_databases) };
        all.get(slot)
    }

    fn own() -> Option<&'static SharedCoverage> {
        shared(rings::own_slot()?.0)
    }

    /// This relay does not listen, or no more.
    pub fn end() {
        if let Some(coverage) = own() {
            coverage.since.store(0, Ordering::SeqCst);
        }
    }

    /// It may have missed something up to now.
    pub fn restart() {
        if let Some(coverage) = own() {
            coverage.since.store(clock::now(), Ordering::SeqCst);
        }
    }

    /// It listens, and has been through all that was sent until that reading of the clock.
    pub fn extend(at: i64) {
        if let Some(coverage) = own() {
            coverage.at.store(at, Ordering::SeqCst);
        }
    }

    /// That of a database. `at` is read first: what is missed after it does not concern it.
    pub fn of(database: u32) -> Coverage {
        let slot = registry(|r| r.slot(database)).ok().flatten();
        slot.and_then(|(slot, _)| shared(slot)).map_or_else(Coverage::default, |coverage| {
            let at = coverage.at.load(Ordering::SeqCst);
            Coverage { since: coverage.since.load(Ordering::SeqCst), at }
        })
    }

    /// Has the relay go through what there is, so that the next question has a newer answer.
    pub fn request_update(database: u32) {
        let relay = registry(|r| r.prepare_relay_wakeup(database)).ok().flatten();
        relay.into_iter().for_each(latch::wake);
    }
}
