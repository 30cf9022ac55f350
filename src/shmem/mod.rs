//! The segment of shared memory: its layout, and the tables in it under their locks.
//!
//! ```text
//! Root │ Database[] │ Hold[] │ Member[] │ Seat[] │ Owed[] │ Foreign[] │ gossip: Holding[] │ buckets[] │ Entry[] │ Block[] │ …
//!      └── lock Registry ──┘  └─────────── lock Peers ─────────────┘  └───────── lock Gossip (gossip.rs) ──────────┘
//!      │ Slot[] │ Place[] │ Sleeper[] │ ring::Head[] │ for each ring: Holder[] │ ring::Entry[] │ bytes
//!      └ lock Registry ───┘ └─────────────── a lock Ring for each ring (rings.rs) ────────────────────┘
//!      │ for each database's slot: Counters, whether its relay announces gossip, what it has heard (atomics)
//! ```
//! … are the processes that gossip, and suspects: jobs that none of them lists.
//!
//! Sizes come from settings that only a restart changes. All of it is plain data for which zeroed
//! memory is an empty table (the rings' messages need not even be zeroed); whoever dies with SIGKILL takes the server through a crash restart, and
//! the segment is made anew. A process that ends otherwise clears up in its exit callbacks (`peer`,
//! `worker`).
//!
//! Under a lock runs pure code of `logic` only: nothing that raises, waits or calls Postgres. No two
//! locks are held at a time.
#![allow(unsafe_code)]

pub mod at_end;
mod floor;
pub mod gossip;
pub mod listeners;
pub mod members;
pub mod rings;
pub mod rows;
pub mod tables;

use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_shmem_init;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::shmem::PgSharedMemoryInitialization;

use self::rings::{Counters, Padded};
use crate::config;
use crate::error::{self, Error};
use crate::logic::gossip::memory::{Process, ProcessesHead};
use crate::logic::gossip::{
    Block, BlockUsage, GossipEntry, GossipHead, MAX_BLOCK_USAGES, capacity as gossip_capacity,
    processes as gossip_processes,
};
use crate::logic::leadership::{self, Electorate, Leaderships, Member, Seat};
use crate::logic::lifecycle::{DatabaseSlot, Hold, Lack, Looks, Registry};
use crate::logic::orphans::{SUSPECTS, Suspect};
use crate::logic::ring::pool::RingOwner;
use crate::logic::ring::{self, RingHead, RoleUsage, Waiter};
use crate::pg::lwlock::{self, Lock, Mode};
use crate::pg::{clock, latch, session};

const CACHE_LINE: usize = 128;

/// What a session may hold at a time are the databases that its transaction drops or renames: few.
/// Past that DROP DATABASE still works, it may just have to be repeated.
const HOLDS: usize = 64;

/// Names whose last leadership ended while NOTIFY's queue was full. What has no room is not announced: foreign nodes
/// find out at their next election, within half a minute.
const MAX_UNANNOUNCED: usize = 256;

/// Names that foreign nodes have led since the server's start, of all databases.
const MAX_FOREIGN: usize = 1_024;

#[repr(C)]
struct Root {
    /// This start of the server: the time at which the segment was made. Rows of oban_peers carry it.
    boot: i64,
    /// The last member id. It counts from the floor of this life, so that none is given twice over restarts.
    next_member: AtomicI64,
    coordinator_pid: AtomicI32,
    /// For `pg::latch::wake`; -1 without a coordinator.
    coordinator: AtomicI32,
    coordinator_since: AtomicI64,
    coordinator_starts: AtomicI32,
    /// 1: the coordinator shall look at pg_database again.
    rescan: AtomicI32,
    /// Under the lock Gossip.
    gossip: GossipHead,
    /// Under the lock Gossip.
    processes: ProcessesHead,
    /// A clock reading: since when gossip is heard.
    knows_since: AtomicI64,
    /// The deadline, on `pg::clock`, at which the coordinator will look for expired entries; 0 for never. Under the
    /// lock Gossip.
    sweep_at: i64,
    /// The last birth of a database's slot. Under the lock Registry.
    last_generation: u64,
    /// Under the lock Registry.
    looks: Looks,
    /// The last life of a ring. Under the lock Registry.
    last_ring_generation: u64,
    /// The first position of a ring that begins is above it: where this life of the server began (`floor.rs`), or the
    /// last position of a ring that ended since.
    floor: AtomicI64,
    /// How many sessions LISTEN, by their database's oid modulo the length: databases that share a counter
    /// have each other's listeners counted, which costs and loses nothing.
    listeners: [AtomicU32; listeners::COUNTERS],
}

/// Offsets of the areas behind the root, in bytes, and their lengths in elements.
struct Layout {
    databases: usize,
    holds: usize,
    members: usize,
    seats: usize,
    block_usages: usize,
    unannounced: usize,
    foreign: usize,
    buckets: usize,
    entries: usize,
    blocks: usize,
    process_buckets: usize,
    processes: usize,
    suspects: usize,
    slots: usize,
    owners: usize,
    waiters: usize,
    roles: usize,
    rings: usize,
    counters: usize,
    polling: usize,
    coverages: usize,
    /// What begins here need not be zero.
    ring_entries: usize,
    ring_bytes: usize,
    total: usize,
    ring_capacity: (usize, usize),
    max_processes: usize,
    max_databases: usize,
    max_rings: usize,
    max_members: usize,
    max_entries: usize,
}

/// From settings that don't change while the server runs: the same in every process.
fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(compute_layout)
}

/// No more than databases have slots.
fn max_rings() -> usize {
    config::max_rings().min(config::max_databases())
}

fn compute_layout() -> Layout {
    let max_databases = config::max_databases();
    let max_rings = max_rings();
    let max_members = config::max_members();
    let max_entries = gossip_capacity(config::gossip_memory());
    let max_processes = session::max_processes();
    let ring_capacity = ring::capacity(config::ring_size());
    let mut end = size_of::<Root>();
    let mut area = |element: usize, count: usize| {
        let start = end.next_multiple_of(CACHE_LINE);
        end = start + element * count;
        start
    };
    Layout {
        databases: area(size_of::<DatabaseSlot>(), max_databases),
        holds: area(size_of::<Hold>(), HOLDS),
        members: area(size_of::<Member>(), max_members),
        seats: area(size_of::<Seat>(), max_members),
        block_usages: area(size_of::<BlockUsage>(), MAX_BLOCK_USAGES),
        unannounced: area(size_of::<Electorate>(), MAX_UNANNOUNCED),
        foreign: area(size_of::<Electorate>(), MAX_FOREIGN),
        buckets: area(size_of::<u32>(), max_entries),
        entries: area(size_of::<GossipEntry>(), max_entries),
        blocks: area(size_of::<Block>(), max_entries),
        process_buckets: area(size_of::<u32>(), gossip_processes(max_entries)),
        processes: area(size_of::<Process>(), gossip_processes(max_entries)),
        suspects: area(size_of::<Suspect>(), SUSPECTS),
        slots: area(size_of::<rings::Slot>(), max_databases),
        owners: area(size_of::<RingOwner>(), max_rings),
        waiters: area(size_of::<Waiter>(), max_processes),
        roles: area(size_of::<RoleUsage>(), ring::MAX_ROLES * max_rings),
        rings: area(size_of::<Padded<RingHead>>(), max_rings),
        counters: area(size_of::<Padded<Counters>>(), max_databases),
        polling: area(size_of::<AtomicU64>(), max_databases),
        coverages: area(size_of::<gossip::coverage::SharedCoverage>(), max_databases),
        ring_entries: area(size_of::<ring::RingEntry>(), ring_capacity.0 * max_rings),
        ring_bytes: area(1, ring_capacity.1 * max_rings),
        total: area(0, 0),
        ring_capacity,
        max_processes,
        max_databases,
        max_rings,
        max_members,
        max_entries,
    }
}

struct Segment {
    root: AtomicPtr<Root>,
}

static SEGMENT: Segment = Segment { root: AtomicPtr::new(null_mut()) };

/// Asks for the segment; in `_PG_init` while preloading.
#[allow(unexpected_cfgs)] // pgrx's macro asks for majors that we don't have
pub fn request() {
    pg_shmem_init!(SEGMENT = ());
}

impl PgSharedMemoryInitialization for Segment {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called from shmem_request_hook, as the trait promises.
        unsafe {
            pg_sys::RequestAddinShmemSpace(layout().total);
            let locks = Lock::count(max_rings());
            pg_sys::RequestNamedLWLockTranche(lwlock::TRANCHE.as_ptr(), locks as i32);
        }
    }

    unsafe fn on_shmem_startup(&'static self, (): ()) {
        // Index of AddinShmemInitLock, which has no name in pgrx; the same in 13 to 18.
        const ADDIN_SHMEM_INIT_LOCK: usize = 21;
        // SAFETY: called from shmem_startup_hook, as the trait promises. The area is as large as was
        // asked for, and everything in it is plain data for which zeros are valid.
        unsafe {
            let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
            pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            let (total, mut found) = (layout().total, false);
            let root = pg_sys::ShmemInitStruct(c"obanrs".as_ptr(), total, &mut found).cast::<Root>();
            if !found {
                root.cast::<u8>().write_bytes(0, layout().ring_entries);
                let boot = pg_sys::GetCurrentTimestamp();
                (*root).boot = boot;
                (*root).coordinator.store(-1, Ordering::Relaxed);
                (*root).knows_since.store(clock::now(), Ordering::Relaxed);
                let floor = floor::begin(boot, ended);
                (*root).next_member.store(floor, Ordering::Relaxed);
                (*root).floor.store(floor, Ordering::Relaxed);
            }
            self.root.store(root, Ordering::Relaxed);
            pg_sys::LWLockRelease(lock);
            if !found {
                latch::name_events();
                log_sizes();
            }
        }
    }
}

/// One line in the log for each start of the server, and each new beginning after a crash: what it was that ran.
fn log_sizes() {
    let size = |bytes: usize| {
        if bytes < 1 << 20 { format!("{} kB", bytes >> 10) } else { format!("{} MB", bytes >> 20) }
    };
    let message = format!(
        "obanrs {}: {} rings of {}, {} members, {} for gossip, {} databases, {} of shared memory in all",
        env!("CARGO_PKG_VERSION"),
        max_rings(),
        size(config::ring_size()),
        config::max_members(),
        size(config::gossip_memory()),
        config::max_databases(),
        size(layout().total)
    );
    error::log(PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "");
}

/// The postmaster ends: after a clean shutdown, or to begin anew after a crash (then `code` is not 0).
#[pg_guard]
unsafe extern "C-unwind" fn ended(code: i32, _argument: pg_sys::Datum) {
    if code == 0
        && let Ok(root) = root()
    {
        // SAFETY: atomics in the segment, which the postmaster still has.
        let root = unsafe { &*root };
        let last = [&root.next_member, &root.floor].map(|last| last.load(Ordering::Relaxed));
        floor::end(last.into_iter().fold(rings::last_position(), i64::max));
    }
}

pub fn is_attached() -> bool {
    !SEGMENT.root.load(Ordering::Relaxed).is_null()
}

/// 55000 unless the library was preloaded.
pub fn require() -> Result<(), Error> {
    if is_attached() { Ok(()) } else { Err(Error::NotPreloaded) }
}

fn root() -> Result<*mut Root, Error> {
    require()?;
    Ok(SEGMENT.root.load(Ordering::Relaxed))
}

/// # Safety
/// `offset` and `count` are of `layout` for elements of type `T`, and the area's lock is held in a
/// mode that allows what is done with the slice.
unsafe fn area<'a, T>(root: *mut Root, offset: usize, count: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise; the segment lives as long as the process.
    unsafe { std::slice::from_raw_parts_mut(root.cast::<u8>().add(offset).cast(), count) }
}

/// This start of the server.
pub fn boot() -> Result<i64, Error> {
    // SAFETY: written once, before any other process existed.
    Ok(unsafe { (*root()?).boot })
}

/// Lifts the floor of positions, and member ids, to a time. A standby began at a floor that it copied from its primary.
pub fn lift_floor(to: i64) {
    if let Ok(root) = root() {
        // SAFETY: atomics in the segment.
        let root = unsafe { &*root };
        root.floor.fetch_max(to, Ordering::SeqCst);
        root.next_member.fetch_max(to, Ordering::SeqCst);
    }
}

/// A member id that was never given before.
pub fn new_member_id() -> Result<i64, Error> {
    // SAFETY: an atomic in the segment.
    Ok(unsafe { &(*root()?).next_member }.fetch_add(1, Ordering::Relaxed) + 1)
}

/// The keepers and the holds, under their lock.
pub fn registry<R>(body: impl FnOnce(&mut Registry<'_>) -> R) -> Result<R, Error> {
    let (root, l) = (root()?, layout());
    let _guard = lwlock::acquire(Lock::Registry, Mode::Exclusive);
    // SAFETY: the areas of the lock that is held exclusively until `body` has returned.
    let mut registry = unsafe {
        Registry {
            databases: area(root, l.databases, l.max_databases),
            holds: area(root, l.holds, HOLDS),
            looks: &mut (*root).looks,
            last_generation: &mut (*root).last_generation,
        }
    };
    Ok(body(&mut registry))
}

/// Members and seats, to change them.
pub fn peers<R>(body: impl FnOnce(&mut Leaderships<'_>) -> R) -> Result<R, Error> {
    let (root, l) = (root()?, layout());
    let _guard = lwlock::acquire(Lock::Leaderships, Mode::Exclusive);
    // SAFETY: the areas of the lock that is held exclusively until `body` has returned.
    let mut peers = unsafe {
        Leaderships {
            members: area(root, l.members, l.max_members),
            seats: area(root, l.seats, l.max_members),
            unannounced: area(root, l.unannounced, MAX_UNANNOUNCED),
            foreign: area(root, l.foreign, MAX_FOREIGN),
        }
    };
    Ok(body(&mut peers))
}

/// Members and seats, to read them.
pub fn leaderships_view<R>(body: impl FnOnce(leadership::LeadershipsView<'_>) -> R) -> Result<R, Error> {
    let (root, l) = (root()?, layout());
    let _guard = lwlock::acquire(Lock::Leaderships, Mode::Shared);
    // SAFETY: the areas of the lock that is held shared until `body` has returned; nobody writes.
    let view = unsafe {
        leadership::LeadershipsView {
            members: &*area(root, l.members, l.max_members),
            seats: &*area(root, l.seats, l.max_members),
        }
    };
    Ok(body(view))
}

/// The coordinator, as the view oban_workers shows it.
pub struct Coordinator {
    pub pid: i32,
    pub started_at: i64,
    pub restarts: i32,
}

/// The running coordinator, or the last one with pid 0.
pub fn coordinator() -> Result<Coordinator, Error> {
    // SAFETY: atomics in the segment.
    let root = unsafe { &*root()? };
    Ok(Coordinator {
        pid: root.coordinator_pid.load(Ordering::Relaxed),
        started_at: root.coordinator_since.load(Ordering::Relaxed),
        restarts: (root.coordinator_starts.load(Ordering::Relaxed) - 1).max(0),
    })
}

/// The coordinator's first act. Its exit callback must be registered before.
pub fn coordinator_started(pid: i32, procno: i32, now: i64) -> Result<(), Error> {
    // SAFETY: atomics in the segment.
    let root = unsafe { &*root()? };
    root.coordinator_since.store(now, Ordering::Relaxed);
    if root.coordinator_starts.fetch_add(1, Ordering::Relaxed) == 0 {
        root.knows_since.store(clock::now(), Ordering::Relaxed); // a standby was promoted: nobody could put before
    }
    root.coordinator_pid.store(pid, Ordering::Relaxed);
    root.coordinator.store(procno, Ordering::Release);
    Ok(())
}

/// Its last act.
pub fn coordinator_exited() {
    if let Ok(root) = root() {
        // SAFETY: atomics in the segment.
        let root = unsafe { &*root };
        root.coordinator.store(-1, Ordering::Release);
        root.coordinator_pid.store(0, Ordering::Relaxed);
    }
}

/// Wakes the coordinator; it looks at the tables by itself. Callable after commit.
pub fn wake_coordinator() {
    if let Ok(root) = root() {
        // SAFETY: an atomic in the segment.
        latch::wake(unsafe { &(*root).coordinator }.load(Ordering::Acquire));
    }
}

/// Has the coordinator look at pg_database again. Callable after commit.
pub fn rescan() {
    if let Ok(root) = root() {
        // SAFETY: an atomic in the segment.
        unsafe { &(*root).rescan }.store(1, Ordering::Release);
    }
    wake_coordinator();
}

/// Whether it shall; asking takes it back.
pub fn take_rescan() -> bool {
    // SAFETY: an atomic in the segment.
    root().is_ok_and(|root| unsafe { &(*root).rescan }.swap(0, Ordering::AcqRel) != 0)
}

/// Wakes the keeper of a database to plan its elections anew, if there is one. Callable after commit.
pub fn wake_keeper(database: u32) {
    let keeper = registry(|r| r.prepare_wakeup(database)).ok().flatten();
    keeper.into_iter().for_each(latch::wake);
}

/// The same for a call from within the database, which therefore has the extension: should there be no keeper
/// against expectation, one is started. Callable after commit.
pub fn ensure_keeper(database: u32) {
    match registry(|r| (r.prepare_wakeup(database), r.is_backing_off(database))) {
        Ok((Some(procno), _)) => latch::wake(procno),
        // It will be started when its delay is over, not at each join.
        Ok((None, true)) => {}
        _ => extension_changed(database, Some(true)),
    }
}

/// The extension is in the database now, or not (`None`: nobody could see): starts workers, or has those that run
/// look. Callable after commit.
pub fn extension_changed(database: u32, found: Option<bool>) {
    let woken = registry(|r| r.extension_changed(database, found, clock::now())).ok().flatten();
    woken.into_iter().for_each(latch::wake);
    // With a look at pg_database: not every way in which a database comes to take workers is a command that our
    // hook sees.
    rescan();
}

/// A call came from within a database, which therefore has the extension: it gets its slot, if it may have one.
pub fn called_in(database: u32) {
    if registry(|r| r.could_have_slot(database)).unwrap_or(false) {
        extension_changed(database, Some(true));
    }
}

/// What this database lacks to have workers, if anything. `soon`: also what it will lack when the workers of all
/// databases have started.
pub fn lack(soon: bool) -> Option<Lack> {
    let most = session::max_worker_processes();
    registry(|r| r.lack(session::database(), most, soon)).ok().flatten()
}

/// Has the database's relay look which prefixes are installed, if there is one (a new one does anyway).
/// Callable after commit.
pub fn look_for_prefixes(database: u32) {
    let relay = registry(|r| r.prefixes_changed(database)).ok().flatten();
    relay.into_iter().for_each(latch::wake);
}

/// A schema was dropped: its members, what they led and what they told are gone. Callable after commit.
pub fn forget_schema(database: u32, schema: u32) {
    let mut waiting = [0; 64];
    let count = peers(|p| p.forget_schema(database, schema, &mut waiting)).unwrap_or(0);
    gossip::forget_schema(database, schema);
    waiting[..count].iter().for_each(|procno| latch::wake(*procno));
}

/// Has the database's keeper read the rows of oban_peers again, of one schema or of all, if there is a keeper (a new one
/// does anyway). Callable after commit.
pub fn look_at_rows(database: u32, schema: Option<u32>) {
    let keeper = registry(|r| r.rows_changed(database, schema)).ok().flatten();
    keeper.into_iter().for_each(latch::wake);
}
