//! A look: the process that finds out whether a database of which nobody knows has the extension. It enters,
//! reads one catalog, tells the registry and leaves. It waits for a lock for moments only, while it connects, too:
//! nobody's command waits for it, and nobody takes it for a session that waits.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::bgworker::{self, Restarted};
use crate::pg::{clock, latch, session, xact};
use crate::prefix::extension;
use crate::shmem;

/// The longest that it waits for a lock. A look that fails is tried again (`logic::lifecycle::looks`).
const LOCK_TIMEOUT: &CStr = c"50ms";

/// This process's database, for its exit callback.
static DATABASE: AtomicU32 = AtomicU32::new(0);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_look_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    DATABASE.store(database, Ordering::Relaxed);
    bgworker::take_signals(Restarted::ByLauncher);
    // Before the claim and before it connects, as in `process::begin`.
    session::after_disconnect(exited);
    let pid = latch::my_pid();
    if !shmem::registry(|r| r.claim_look(database, pid)).unwrap_or(false) {
        return;
    }
    session::set(c"lock_timeout", LOCK_TIMEOUT);
    bgworker::connect_to(database);
    bgworker::report_name(c"obanrs look");
    let found = xact::run(c"obanrs: looking for the extension", extension::exists);
    let _ = shmem::registry(|r| r.looked(database, pid, found));
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    let database = DATABASE.load(Ordering::Relaxed);
    let holders = shmem::registry(|r| r.look_ended(database, latch::my_pid(), clock::now()));
    holders.unwrap_or_default().into_iter().for_each(latch::wake);
    shmem::wake_coordinator();
}
