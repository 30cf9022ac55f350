//! Every setting.

use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

/// How messages reach the sessions that LISTEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Notifier {
    /// Through shared memory and the relay.
    #[name = c"bus"]
    Bus,
    /// By NOTIFY in the messages' own transactions.
    #[name = c"postgres"]
    Postgres,
}

/// How messages reach the sessions that LISTEN.
static NOTIFIER: GucSetting<Notifier> = GucSetting::<Notifier>::new(Notifier::Bus);
/// Whether triggers send wake-ups.
static WAKEUPS: GucSetting<bool> = GucSetting::<bool>::new(true);
/// The size of each database's ring, in kB. 8 MB hold about 43,000 messages of 140 bytes.
static RING_SIZE: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);
/// How long a wake-up may wait under load, in ms. With 2 ms the relay sends at most five hundred
/// batches a second. Their transactions are a few percent of what a server commits.
static RELAY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(2);
/// How many databases have a ring at a time. Most databases with the extension are quiet, or use
/// only its members.
static MAX_RINGS: GucSetting<i32> = GucSetting::<i32>::new(8);
/// How many databases with the extension get their workers. A server in production rarely has more
/// than a few databases with jobs. A server for development has one for each branch and test run. A
/// slot costs less than a kilobyte.
static MAX_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(64);
/// How many members there can be over all databases. A slot costs about a kilobyte, its leadership
/// included.
static MAX_MEMBERS: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// The size of the gossip table, in kB. 8 MB hold about 11,000 queues with a state of ten keys.
static GOSSIP_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);
/// How long an entry is valid by default, in ms. Oban's nodes forget a silent node after 30 s.
static GOSSIP_TTL: GucSetting<i32> = GucSetting::<i32>::new(30_000);
/// The time between two broadcasts, in ms. 0 means no broadcasts. Oban Web sends its own gossip
/// every 750 ms.
static GOSSIP_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);
/// Whether `oban_join` refuses members without a lease.
static REQUIRE_LEASE: GucSetting<bool> = GucSetting::<bool>::new(false);
/// Whether the relay ingests the gossip of foreign nodes.
static GOSSIP_INGEST: GucSetting<bool> = GucSetting::<bool>::new(true);
/// Whether the keeper remembers the queue signals that others send by NOTIFY. Any role may NOTIFY, so
/// this is off.
static SIGNAL_INGEST: GucSetting<bool> = GucSetting::<bool>::new(false);
/// How long a leadership is valid without a renewal, in ms. Oban's own lease is as long.
static LEASE: GucSetting<i32> = GucSetting::<i32>::new(30_000);

/// How many different messages one transaction may queue. No application means to send as many. A
/// runaway loop ends here, or at `logic::outbox::MAX_BYTES`.
static MAX_TRANSACTION_MESSAGES: GucSetting<i32> = GucSetting::<i32>::new(100_000);

/// The quota of one role, in percent. With a quarter, one role can't use up what other roles need,
/// and an application of one role has enough room.
static ROLE_SHARE: GucSetting<i32> = GucSetting::<i32>::new(25);

/// Defines the settings. `_PG_init` calls this. The sizes of shared memory can only be defined
/// while the library is preloaded, before shared memory is laid out.
#[expect(clippy::too_many_lines, reason = "a table of settings")]
pub fn register(preloading: bool) {
    GucRegistry::define_int_guc(
        c"obanrs.lease",
        c"How long a leadership holds without a renewal.",
        c"The keeper renews at half of it, by the server's clock. Oban's own nodes use 30 s.",
        &LEASE,
        1_000,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"obanrs.gossip_ttl",
        c"How long an entry of oban_gossip stays when oban_gossip_put is given no ttl.",
        c"Oban's nodes forget a silent node after 30 s.",
        &GOSSIP_TTL,
        100,
        86_400_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"obanrs.gossip_interval",
        c"How often the entries of oban_gossip are sent to the sessions that LISTEN to gossip.",
        c"Each prefix with entries has one merged broadcast, in the form that Oban Web reads. 0 turns it off. Oban's nodes forget a silent node after 30 s.",
        &GOSSIP_INTERVAL,
        0,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"obanrs.gossip_ingest",
        c"Whether oban_gossip shows what Oban's own nodes gossip.",
        c"The relay listens to the gossip channel of each installed prefix. Any role may send there, so what comes takes at most half of obanrs.gossip_memory.",
        &GOSSIP_INGEST,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"obanrs.signal_ingest",
        c"Whether queue signals that others send by NOTIFY are remembered.",
        c"The keeper listens to the signal channel of each prefix with obanrs_queue_signals, and remembers what Oban's nodes and Oban Web send there. Any role may send there, without a right on the prefix.",
        &SIGNAL_INGEST,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"obanrs.max_transaction_messages",
        c"How many different messages one transaction may send.",
        c"They are kept in the backend's memory until the commit, 64 MB of them at most. Beyond that oban_notify fails, and a trigger's wake-ups are dropped.",
        &MAX_TRANSACTION_MESSAGES,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"obanrs.role_share",
        c"How much of each shared resource one role may hold, in percent.",
        c"The resources are obanrs.max_members, obanrs.gossip_memory, and the room of a ring for what waits there. The current role of the call counts. Superusers and the owner of the database have no limit. 100 turns it off.",
        &ROLE_SHARE,
        1,
        100,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"obanrs.require_lease",
        c"Whether oban_join refuses members without a lease.",
        c"It is for roles and databases behind a transaction pooler, where a session is not a process: ALTER ROLE app SET obanrs.require_lease = on.",
        &REQUIRE_LEASE,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"obanrs.notifier",
        c"How messages reach the sessions that LISTEN.",
        c"bus: through shared memory and the relay's transactions. postgres: by NOTIFY in their own transactions, as always without preload.",
        &NOTIFIER,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"obanrs.wakeups",
        c"Whether triggers send wake-ups for the rows that a statement writes.",
        c"off: they send nothing, as for a bulk load. oban_notify sends as always. The value when the statement ends counts.",
        &WAKEUPS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"obanrs.relay_interval",
        c"The least time between two transactions of the relay under load.",
        c"What is sent meanwhile goes into one transaction. A message after a quiet time goes at once.",
        &RELAY_INTERVAL,
        0,
        1_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    if preloading {
        let sizes: [(_, _, _, &'static GucSetting<i32>, _, _, _); 5] = [
            (
                c"obanrs.ring_size",
                c"Shared memory for the last messages of each database.",
                c"Each of obanrs.max_rings takes as much. A reader that was away gets what is still there. 8 MB hold about 43,000 messages of 140 bytes.",
                &RING_SIZE,
                64,
                1024 * 1024,
                GucFlags::UNIT_KB,
            ),
            (
                c"obanrs.max_rings",
                c"How many databases may have a ring of messages at a time.",
                c"A database takes one of them when something is first sent or read there, and keeps it while it has the extension. Without one its transactions send natively, and oban_poll, oban_wait and oban_position fail. More than obanrs.max_databases are never used.",
                &MAX_RINGS,
                1,
                10_000,
                GucFlags::default(),
            ),
            (
                c"obanrs.max_databases",
                c"How many databases may have the extension's workers at a time.",
                c"Each takes two slots of max_worker_processes.",
                &MAX_DATABASES,
                1,
                10_000,
                GucFlags::default(),
            ),
            (
                c"obanrs.max_members",
                c"How many members may have joined, over all databases.",
                c"Each takes about a kilobyte of shared memory.",
                &MAX_MEMBERS,
                1,
                1_000_000,
                GucFlags::default(),
            ),
            (
                c"obanrs.gossip_memory",
                c"Shared memory for the entries of oban_gossip, over all databases.",
                c"8 MB hold about 11,000 queues with a state of ten keys.",
                &GOSSIP_MEMORY,
                64,
                1024 * 1024,
                GucFlags::UNIT_KB,
            ),
        ];
        for (name, short, long, setting, least, most, flags) in sizes {
            GucRegistry::define_int_guc(
                name,
                short,
                long,
                setting,
                least,
                most,
                GucContext::Postmaster,
                flags,
            );
        }
    }
    reserve_prefix();
}

/// Reserves the prefix of the settings' names. From here on `SET obanrs.typo` is an error. Before,
/// Postgres would accept it as a placeholder that no code reads.
#[allow(unsafe_code)]
fn reserve_prefix() {
    // SAFETY: the name is a literal, and all settings of this library were defined before.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"obanrs".as_ptr()) }
}

/// Returns how many databases may have workers at a time.
pub fn max_databases() -> usize {
    MAX_DATABASES.get() as usize
}

/// Returns how many databases may have a ring at a time.
pub fn max_rings() -> usize {
    MAX_RINGS.get() as usize
}

/// Returns how many members there can be over all databases.
pub fn max_members() -> usize {
    MAX_MEMBERS.get() as usize
}

/// Returns the size of the gossip table, in bytes.
pub fn gossip_memory() -> usize {
    GOSSIP_MEMORY.get() as usize * 1024
}

/// Returns whether members of this session need a lease.
pub fn require_lease() -> bool {
    REQUIRE_LEASE.get()
}

/// Returns how messages of this session reach the sessions that LISTEN.
pub fn notifier() -> Notifier {
    NOTIFIER.get()
}

/// Returns whether triggers send wake-ups.
pub fn wakeups() -> bool {
    WAKEUPS.get()
}

/// Returns the size of each database's ring, in bytes.
pub fn ring_size() -> usize {
    RING_SIZE.get() as usize * 1024
}

/// Returns the least time between two transactions of the relay under load.
pub fn relay_interval() -> Duration {
    Duration::from_millis(RELAY_INTERVAL.get() as u64)
}

/// Returns how long an entry is valid by default.
pub fn gossip_ttl() -> Duration {
    Duration::from_millis(GOSSIP_TTL.get() as u64)
}

/// Returns the time between two broadcasts, in microseconds. 0 means no broadcasts.
pub fn gossip_interval() -> i64 {
    i64::from(GOSSIP_INTERVAL.get()) * 1_000
}

/// Returns whether the relay ingests the gossip of foreign nodes.
pub fn gossip_ingest() -> bool {
    GOSSIP_INGEST.get()
}

/// Returns whether the keeper remembers the queue signals that others send by NOTIFY.
pub fn signal_ingest() -> bool {
    SIGNAL_INGEST.get()
}

/// Returns how many different messages one transaction may queue.
pub fn max_transaction_messages() -> usize {
    MAX_TRANSACTION_MESSAGES.get() as usize
}

/// Returns the quota of one role, in percent.
pub fn role_share() -> usize {
    ROLE_SHARE.get() as usize
}

/// Returns how long a leadership is valid without a renewal, in microseconds, as `logic` counts.
pub fn lease() -> i64 {
    i64::from(LEASE.get()) * 1_000
}
