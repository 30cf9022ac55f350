//! A look: the process that finds out whether a database has the extension, when no process has
//! told. A look connects, reads one catalog, records the answer in the registry and ends. A look
//! waits for a lock for moments only, while it connects, too. So no user's command waits for a look
//! for long.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::ids::DatabaseOid;
use crate::pg::bgworker::{self, Restarted};
use crate::pg::{clock, latch, session, xact};
use crate::prefix::extension;
use crate::shmem::Segment;

/// The longest that a look waits for a lock. A look that fails is tried again
/// (`logic::lifecycle::looks`).
const LOOK_LOCK_TIMEOUT: &CStr = c"50ms";

/// The oid of this process's database, for the exit callback.
static DATABASE: AtomicU32 = AtomicU32::new(0);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_look_main(argument: pg_sys::Datum) {
    let database = DatabaseOid(argument.value() as u32);
    DATABASE.store(database.0, Ordering::Relaxed);
    bgworker::take_signals(Restarted::ByLauncher);
    let Some(segment) = Segment::attached() else { return };
    // This comes before the claim and before the process connects, as in `process::begin`.
    session::after_disconnect(exited);
    let pid = latch::my_pid();
    if !segment.registry(|r| r.claim_look(database, pid)) {
        return;
    }
    session::set(c"lock_timeout", LOOK_LOCK_TIMEOUT);
    bgworker::connect_to(database);
    bgworker::report_name(c"obanrs look");
    let found = xact::run(c"obanrs: looking for the extension", extension::exists);
    segment.registry(|r| r.looked(database, pid, found));
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    let database = DatabaseOid(DATABASE.load(Ordering::Relaxed));
    let Some(segment) = Segment::attached() else { return };
    let holders = segment.registry(|r| r.look_ended(database, latch::my_pid(), clock::now()));
    holders.into_iter().for_each(latch::wake);
    segment.wake_coordinator();
}
