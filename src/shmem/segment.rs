//! The segment: its layout, and how a process gets at it.

use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_shmem_init;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::shmem::PgSharedMemoryInitialization;

use super::coverage::SharedCoverage;
use super::floor;
use super::locks::Lock;
use super::slots::Slot;
use super::stagers::Alarms;
use crate::config;
use crate::error::{self, Error};
use crate::logic::claimants::Claimant;
use crate::logic::counter::Counter;
use crate::logic::gossip::memory::{GossipProcess, ProcessesHead};
use crate::logic::gossip::{
    Block, BlockUsage, GossipEntry, GossipHead, MAX_BLOCK_USAGES, capacity as gossip_capacity,
    processes as gossip_processes,
};
use crate::logic::ids::DatabaseOid;
use crate::logic::leadership::{Electorate, Member, Seat};
use crate::logic::lifecycle::{DatabaseSlot, Hold, UnslottedDatabases};
use crate::logic::orphans::{MAX_SUSPECTS, Suspect};
use crate::logic::ring::pool::RingOwner;
use crate::logic::ring::{self, RingHead, RoleUsage, Waiter};
use crate::logic::staging::slots::StagerSlot;
use crate::logic::takers::{Fifo, QueueHashKey, TakerSlot};
use crate::logic::times::ClockTime;
use crate::pg::{clock, latch, lwlock, session};

const CACHE_LINE: usize = 128;

/// A session holds the databases that its transaction drops, renames or copies, which are few.
/// Without a free hold DROP DATABASE still works, but it may have to be repeated.
pub(super) const MAX_HOLDS: usize = 64;

/// The most names whose end of leadership waits to be announced because NOTIFY's queue was full. A
/// name without room is not announced: foreign nodes find out at their next election, within half a
/// minute.
pub(super) const MAX_UNANNOUNCED: usize = 256;

/// Memory keeps the names that foreign nodes have led since the server's start: at most this many,
/// over all databases.
pub(super) const MAX_FOREIGN_NAMES: usize = 1_024;

/// The counters of sessions that LISTEN (`Globals::listeners`).
pub(super) const LISTENER_COUNTERS: usize = 256;

/// A value that shares no cache line with another, so that what one database writes does not slow
/// another database.
#[repr(C, align(128))]
pub(super) struct Padded<T>(pub T);

/// The counters of one database (`oban_stats`).
pub(super) type Counters = [AtomicU64; Counter::ALL.len()];

/// The counters of a slot. They belong to one generation of the slot. A process that remembers
/// another generation must not change them.
#[repr(C)]
pub(super) struct SlotCounters {
    /// The generation of the slot; 0 when no database uses the slot.
    pub generation: AtomicU64,
    pub values: Counters,
}

/// The fixed part of the segment. Zeroed memory is the state before the first start of the
/// coordinator, but for what `on_shmem_startup` writes.
#[repr(C)]
pub(super) struct Root {
    pub globals: Globals,
    /// The greatest generation that a database's slot, or an entry of `unslotted`, was given; 0 for
    /// none. Guarded by the lock Registry.
    pub last_slot_generation: u64,
    /// The databases without a slot. Guarded by the lock Registry.
    pub unslotted: UnslottedDatabases,
    /// The greatest generation that a ring was given; 0 for none. Guarded by the lock Registry.
    pub last_ring_generation: u64,
    /// The counters and free lists of the gossip table. Guarded by the lock Gossip.
    pub gossip: GossipHead,
    /// The counters and free lists of the processes that gossip. Guarded by the lock Gossip.
    pub processes: ProcessesHead,
    /// The deadline, on `pg::clock`, at which the coordinator next looks for expired entries; 0 for
    /// never. Guarded by the lock Gossip.
    pub sweep_at: ClockTime,
    /// The FIFO of takers. Guarded by the lock Takers.
    pub takers: Fifo,
}

/// What every process reads and writes without a lock.
#[repr(C)]
pub(super) struct Globals {
    /// The wall time at which the segment was made, in microseconds. It names this start of the
    /// server: rows of `oban_peers` carry it. Written before any other process exists, and never
    /// again.
    pub boot: i64,
    /// The member id that was given last. It begins at the floor of positions, so that no id is
    /// given twice over restarts.
    pub last_member: AtomicI64,
    /// The coordinator's process id; 0 without a coordinator.
    pub coordinator_pid: AtomicI32,
    /// The coordinator's process number, for `pg::latch::wake`; -1 without a coordinator.
    pub coordinator: AtomicI32,
    /// The wall time at which the last coordinator started; 0 for never.
    pub coordinator_since: AtomicI64,
    /// How often a coordinator has started since the segment was made.
    pub coordinator_starts: AtomicI32,
    /// 1: the coordinator has to read pg_database again.
    pub rescan: AtomicI32,
    /// The clock reading since which this server accepts gossip: its start, or its promotion.
    pub knows_since: AtomicI64,
    /// A ring that begins gives positions above this floor. The floor is the one at which this run
    /// of the server began (`floor.rs`), or the last position plus 1 of a ring that was closed
    /// since, or what a promotion lifted it to: whichever is greatest.
    pub floor: AtomicI64,
    /// How many sessions LISTEN, by their database's oid modulo the length. Databases that share a
    /// counter have each other's listeners counted: that costs transactions of a relay, and loses
    /// no message.
    pub listeners: [AtomicU32; LISTENER_COUNTERS],
    /// How many takers there are (`Fifo::arrived`). A process that has made jobs available reads this
    /// without the lock.
    pub takers: AtomicU32,
    /// The key of the hashes of queues. Written before any other process exists, and never again.
    pub queue_hash_key: QueueHashKey,
}

/// Offsets of the areas behind the root, in bytes, and their lengths in elements.
pub(super) struct Layout {
    pub databases: usize,
    pub holds: usize,
    pub members: usize,
    pub seats: usize,
    pub block_usages: usize,
    pub unannounced: usize,
    pub foreign: usize,
    pub buckets: usize,
    pub entries: usize,
    pub blocks: usize,
    pub process_buckets: usize,
    pub processes: usize,
    pub suspects: usize,
    pub slots: usize,
    pub owners: usize,
    pub waiters: usize,
    pub roles: usize,
    pub rings: usize,
    pub counters: usize,
    pub polling: usize,
    pub coverages: usize,
    pub stagers: usize,
    pub alarms: usize,
    pub takers: usize,
    pub claimants: usize,
    /// The areas from here on need not be zeroed.
    pub ring_entries: usize,
    pub ring_bytes: usize,
    pub total: usize,
    pub ring_capacity: (usize, usize),
    pub max_processes: usize,
    pub max_databases: usize,
    pub max_rings: usize,
    pub max_members: usize,
    pub max_entries: usize,
    pub max_stagers: usize,
    pub max_claimants: usize,
}

/// The layout that the settings give. These settings don't change while the server runs, so the
/// layout is the same in every process.
pub(super) fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(compute_layout)
}

/// There are no more rings than slots of databases.
fn max_rings() -> usize {
    config::max_rings().min(config::max_databases())
}

fn compute_layout() -> Layout {
    let max_databases = config::max_databases();
    let max_rings = max_rings();
    let max_members = config::max_members();
    let max_entries = gossip_capacity(config::gossip_memory());
    let max_processes = session::max_processes();
    let max_stagers = session::max_worker_processes();
    // Room for each member, and for those that have ended.
    let max_claimants = 2 * max_members;
    let ring_capacity = ring::capacity(config::ring_size());
    let mut end = size_of::<Root>();
    let mut area = |element: usize, count: usize| {
        let start = end.next_multiple_of(CACHE_LINE);
        end = start + element * count;
        start
    };
    Layout {
        databases: area(size_of::<DatabaseSlot>(), max_databases),
        holds: area(size_of::<Hold>(), MAX_HOLDS),
        members: area(size_of::<Member>(), max_members),
        seats: area(size_of::<Seat>(), max_members),
        block_usages: area(size_of::<BlockUsage>(), MAX_BLOCK_USAGES),
        unannounced: area(size_of::<Electorate>(), MAX_UNANNOUNCED),
        foreign: area(size_of::<Electorate>(), MAX_FOREIGN_NAMES),
        buckets: area(size_of::<u32>(), max_entries),
        entries: area(size_of::<GossipEntry>(), max_entries),
        blocks: area(size_of::<Block>(), max_entries),
        process_buckets: area(size_of::<u32>(), gossip_processes(max_entries)),
        processes: area(size_of::<GossipProcess>(), gossip_processes(max_entries)),
        suspects: area(size_of::<Suspect>(), MAX_SUSPECTS),
        slots: area(size_of::<Slot>(), max_databases),
        owners: area(size_of::<RingOwner>(), max_rings),
        waiters: area(size_of::<Waiter>(), max_processes),
        roles: area(size_of::<RoleUsage>(), ring::MAX_ROLES * max_rings),
        rings: area(size_of::<Padded<RingHead>>(), max_rings),
        counters: area(size_of::<Padded<SlotCounters>>(), max_databases),
        polling: area(size_of::<AtomicU64>(), max_databases),
        coverages: area(size_of::<SharedCoverage>(), max_databases),
        stagers: area(size_of::<StagerSlot>(), max_stagers),
        alarms: area(size_of::<Padded<Alarms>>(), max_stagers),
        takers: area(size_of::<TakerSlot>(), max_processes),
        claimants: area(size_of::<Claimant>(), max_claimants),
        ring_entries: area(size_of::<ring::RingEntry>(), ring_capacity.0 * max_rings),
        ring_bytes: area(1, ring_capacity.1 * max_rings),
        total: area(0, 0),
        ring_capacity,
        max_processes,
        max_databases,
        max_rings,
        max_members,
        max_entries,
        max_stagers,
        max_claimants,
    }
}

/// Where this process has the segment; null while the library is not preloaded.
struct Attachment {
    root: AtomicPtr<Root>,
}

static ATTACHMENT: Attachment = Attachment { root: AtomicPtr::new(null_mut()) };

/// Asks for the segment. `_PG_init` calls this while Postgres preloads the library.
#[allow(unexpected_cfgs)] // pgrx's macro asks for majors that this crate does not have
pub fn request() {
    pg_shmem_init!(ATTACHMENT = ());
}

impl PgSharedMemoryInitialization for Attachment {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called from shmem_request_hook, as the trait promises.
        unsafe { pg_sys::RequestAddinShmemSpace(layout().total) };
        lwlock::request(Lock::count(max_rings()));
    }

    unsafe fn on_shmem_startup(&'static self, (): ()) {
        let made = lwlock::while_making_segment(|| {
            let (total, mut found) = (layout().total, false);
            // SAFETY: called from shmem_startup_hook, as the trait promises, under the lock that it
            // asks for. The area is as large as was asked for, and everything in it is plain data
            // for which zeros are valid.
            unsafe {
                let root = pg_sys::ShmemInitStruct(c"obanrs".as_ptr(), total, &mut found).cast::<Root>();
                if !found {
                    root.cast::<u8>().write_bytes(0, layout().ring_entries);
                    let globals = &mut (*root).globals;
                    globals.boot = pg_sys::GetCurrentTimestamp();
                    globals.queue_hash_key = QueueHashKey::random();
                    globals.coordinator.store(-1, Ordering::Relaxed);
                    globals.knows_since.store(clock::now().0, Ordering::Relaxed);
                    let floor = floor::begin(globals.boot, ended);
                    globals.last_member.store(floor, Ordering::Relaxed);
                    globals.floor.store(floor, Ordering::Relaxed);
                }
                self.root.store(root, Ordering::Relaxed);
            }
            !found
        });
        if made {
            latch::name_events();
            log_sizes();
        }
    }
}

/// Writes one line to the log for each start of the server and each crash restart: the version and
/// the sizes.
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

/// Runs when the postmaster ends a run of the server: at a clean shutdown (`code` is 0), or for a
/// crash restart.
#[pg_guard]
unsafe extern "C-unwind" fn ended(code: i32, _argument: pg_sys::Datum) {
    if code == 0
        && let Some(segment) = Segment::attached()
    {
        let globals = segment.globals();
        let last = [&globals.last_member, &globals.floor].map(|last| last.load(Ordering::Relaxed));
        floor::end(last.into_iter().fold(segment.last_position(), i64::max));
    }
}

/// The segment as this process sees it. A value exists only where the segment is attached, so
/// access through it does not fail.
#[derive(Clone, Copy)]
pub struct Segment {
    root: *mut Root,
}

impl Segment {
    /// The segment; `None` when the library was not preloaded.
    pub fn attached() -> Option<Self> {
        let root = ATTACHMENT.root.load(Ordering::Relaxed);
        (!root.is_null()).then_some(Self { root })
    }

    /// The segment; the error 55000 when the library was not preloaded.
    pub fn require() -> Result<Self, Error> {
        Self::attached().ok_or(Error::NotPreloaded)
    }

    pub(super) fn globals(self) -> &'static Globals {
        // SAFETY: the segment lives as long as the process. All but `boot` and `queue_hash_key` are
        // atomics, and these two are written before any other process exists.
        unsafe { &(*self.root).globals }
    }

    /// The fixed part of the segment. A caller reads and writes a field only under the field's
    /// lock.
    pub(super) fn root(self) -> *mut Root {
        self.root
    }

    /// An area behind the root, as a slice.
    ///
    /// # Safety
    /// `offset` and `count` are those of `layout` for elements of type `T`. The caller holds the
    /// area's lock in a mode that allows what the caller does with the slice, for as long as the
    /// slice is used.
    pub(super) unsafe fn area<'a, T>(self, offset: usize, count: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise; the segment lives as long as the process.
        unsafe { std::slice::from_raw_parts_mut(self.root.cast::<u8>().add(offset).cast(), count) }
    }

    /// The counters of a database's slot; `None` when there is no slot of this number.
    pub(super) fn slot_counters(self, slot: usize) -> Option<&'static SlotCounters> {
        let l = layout();
        // SAFETY: the area has atomics only, which need no lock.
        let all: &[Padded<SlotCounters>] = unsafe { self.area(l.counters, l.max_databases) };
        all.get(slot).map(|padded| &padded.0)
    }

    /// The counter of the sessions that LISTEN in a database (`backend::listening`).
    pub fn listeners(self, database: DatabaseOid) -> &'static AtomicU32 {
        &self.globals().listeners[database.0 as usize % LISTENER_COUNTERS]
    }

    /// The start of the server to which the segment belongs: the wall time at which it was made, in
    /// microseconds.
    pub fn boot(self) -> i64 {
        self.globals().boot
    }

    /// Lifts the floor of positions and of member ids to `to`. A promoted standby needs that: the
    /// standby began at a floor that was copied from its primary, and the primary has given
    /// positions since.
    pub fn lift_floor(self, to: i64) {
        self.globals().floor.fetch_max(to, Ordering::SeqCst);
        self.globals().last_member.fetch_max(to, Ordering::SeqCst);
    }

    /// Returns the last position of all rings. The postmaster calls this when no other process is
    /// left. The function takes no lock, because a process that was killed may hold that lock.
    fn last_position(self) -> i64 {
        // SAFETY: the area of the rings' heads, to which no process writes any more.
        let rings: &[Padded<RingHead>] = unsafe { self.area(layout().rings, layout().max_rings) };
        rings.iter().map(|ring| ring.0.position()).max().unwrap_or(0)
    }
}
