//! The first and the last steps of a database's worker, of whatever kind.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::lifecycle::Kind;
use crate::pg::bgworker::{self, Restarted};
use crate::pg::latch::Event;
use crate::pg::{catalog, clock, encoding, latch, session, time, xact};
use crate::shmem;

/// This worker's database and kind, for its exit callback.
static DATABASE: AtomicU32 = AtomicU32::new(0);
static KIND: AtomicU32 = AtomicU32::new(0);

/// The name of this worker's database. A worker leaves before its database is renamed.
static NAME: OnceLock<String> = OnceLock::new();

/// This worker's database, as lines of the log name it: log_line_prefix may not.
pub fn of_database() -> String {
    format!("database \"{}\"", NAME.get().map_or("", String::as_str))
}

/// Claims the slot and connects: the database. `None` when this worker is not wanted: the database is held
/// or gone, or there is another. Whoever knows better starts one again.
pub fn begin(kind: Kind, argument: pg_sys::Datum) -> Option<u32> {
    let database = argument.value() as u32;
    DATABASE.store(database, Ordering::Relaxed);
    KIND.store(kind as u32, Ordering::Relaxed);
    bgworker::take_signals(Restarted::ByLauncher);
    // Before it connects, so that it runs after the process has left the list of processes: whoever
    // waits for this worker to go can then go on at once. And before the claim, which it takes back.
    session::after_disconnect(exited);
    let (process, now) = ((latch::my_pid(), latch::my_procno()), (clock::now(), time::now()));
    if !matches!(shmem::registry(|r| r.claim(kind, database, process, now)), Ok(Ok(()))) {
        return None;
    }
    bgworker::connect_to(database);
    // These override the settings of the database and of the role. (default_transaction_read_only stays as it
    // is: a database that is read-only by default holds no elections.)
    for (name, value) in [
        (c"role", c"none"),
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_isolation", c"read committed"),
    ] {
        session::set(name, value);
    }
    // What comes by NOTIFY is converted to it; a character that it does not have would end the worker.
    session::set(c"client_encoding", encoding::of_database());
    // The user's patience is not for the locks of ours; the last one is not known before 17.
    for name in [c"lock_timeout", c"transaction_timeout"] {
        session::set_if_known(name, c"0");
    }
    let name = xact::run(c"obanrs: reading the name of the database", || catalog::database_name(database));
    let _ = NAME.set(name.unwrap_or_else(|| database.to_string()));
    latch::wait_as(if kind == Kind::Relay { Event::Relay } else { Event::Keeper });
    if shmem::registry(|r| r.is_back(kind, database, latch::my_pid())).unwrap_or(false) {
        log!("obanrs: the {} of {} is back after a failure", kind.name(), of_database());
    }
    Some(database)
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    let database = DATABASE.load(Ordering::Relaxed);
    let kind = if KIND.load(Ordering::Relaxed) == Kind::Relay as u32 { Kind::Relay } else { Kind::Keeper };
    let holders = shmem::registry(|r| r.exited(kind, database, latch::my_pid(), clock::now()));
    for procno in holders.unwrap_or_default() {
        latch::wake(procno);
    }
    shmem::wake_coordinator();
}
