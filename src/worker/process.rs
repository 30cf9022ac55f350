//! The process of a keeper or a relay: how it begins and ends.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::ids::DatabaseOid;
use crate::logic::lifecycle::Kind;
use crate::pg::bgworker::{self, Restarted};
use crate::pg::latch::Event;
use crate::pg::{catalog, clock, encoding, latch, session, time, xact};
use crate::shmem::Segment;

/// The oid of this worker's database, and its kind, for the exit callback.
static DATABASE: AtomicU32 = AtomicU32::new(0);
static KIND: AtomicU32 = AtomicU32::new(0);

/// The name of this worker's database. A worker leaves before the database is renamed.
static NAME: OnceLock<String> = OnceLock::new();

/// The oid of this worker's database.
pub fn database() -> DatabaseOid {
    DatabaseOid(DATABASE.load(Ordering::Relaxed))
}

/// This worker's database as lines of the log name it, because log_line_prefix may not name it.
pub fn of_database() -> String {
    format!("database \"{}\"", NAME.get().map_or("", String::as_str))
}

/// What a worker has once it is connected.
#[derive(Clone, Copy)]
pub struct Begun {
    pub segment: Segment,
    /// The oid of the worker's database.
    pub database: DatabaseOid,
}

/// Claims the worker's slot and connects to the database. `None`: this worker is not wanted,
/// because the database is held or was dropped, or has another such worker. The coordinator
/// launches a worker again when it is wanted.
pub fn begin(kind: Kind, argument: pg_sys::Datum) -> Option<Begun> {
    let segment = Segment::attached()?;
    let database = DatabaseOid(argument.value() as u32);
    DATABASE.store(database.0, Ordering::Relaxed);
    KIND.store(kind as u32, Ordering::Relaxed);
    bgworker::take_signals(Restarted::ByLauncher);
    // The callback is registered before the process connects, so that it runs after the process has
    // left the list of processes. A command that waits for this worker to go can then go on at
    // once. The callback is also registered before the claim, which it takes back.
    session::after_disconnect(exited);
    let (process, now, wall) = (latch::my_process(), clock::now(), time::now());
    segment.registry(|r| r.claim(kind, database, process, now, wall)).ok()?;
    bgworker::connect_to(database);
    // These override the settings of the database and of the role. (default_transaction_read_only
    // stays as it is, because a database that is read-only by default holds no elections.)
    for (name, value) in [
        (c"role", c"none"),
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_isolation", c"read committed"),
    ] {
        session::set(name, value);
    }
    // Postgres converts what comes by NOTIFY to this encoding. A character that the encoding lacks
    // would end the worker.
    session::set(c"client_encoding", encoding::of_database());
    // The user's limits are for the user's transactions. transaction_timeout is not known before
    // Postgres 17.
    for name in [c"lock_timeout", c"transaction_timeout"] {
        session::set_if_known(name, c"0");
    }
    let name = xact::run(c"obanrs: reading the name of the database", || catalog::database_name(database));
    let _ = NAME.set(name.unwrap_or_else(|| database.to_string()));
    latch::wait_as(if kind == Kind::Relay { Event::Relay } else { Event::Keeper });
    if segment.registry(|r| r.take_recovery(kind, database, latch::my_pid())) {
        log!("obanrs: the {} of {} is back after a failure", kind.name(), of_database());
    }
    Some(Begun { segment, database })
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    let database = database();
    let kind = if KIND.load(Ordering::Relaxed) == Kind::Relay as u32 { Kind::Relay } else { Kind::Keeper };
    let Some(segment) = Segment::attached() else { return };
    let holders = segment.registry(|r| r.exited(kind, database, latch::my_pid(), clock::now()));
    holders.into_iter().for_each(latch::wake);
    segment.wake_coordinator();
}
