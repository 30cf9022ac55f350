//! A keeper: the worker of one database that has the extension. It holds elections (`election`).
//!
//! It goes when it is not wanted any more: a command needs the database alone, the database became a
//! template, or the extension was dropped. Otherwise the coordinator brings it back. It holds no transaction and no lock while it
//! waits, and it waits for its latch (somebody joined or left, a prefix was installed) or until the
//! next lease is half over.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::election::{self, Elections};
use crate::pg::{bgworker, catalog, latch, session, time, xact};
use crate::shmem;

/// This keeper's database, for its exit callback.
static DATABASE: AtomicU32 = AtomicU32::new(0);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_keeper_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    DATABASE.store(database, Ordering::Relaxed);
    bgworker::take_signals();
    // Before it connects, so that it runs after the process has left the list of processes: whoever
    // waits for this keeper to go can then go on at once. And before the claim, which it takes back.
    session::after_disconnect(exited);
    let (pid, procno) = (latch::my_pid(), latch::my_procno());
    if !matches!(shmem::registry(|r| r.claim(database, pid, procno, time::now())), Ok(Ok(()))) {
        return; // held, dropped, or there is another: whoever knows better starts one again
    }
    bgworker::connect_to(database);
    bgworker::report_name(c"obanrs keeper");
    take_settings();

    let mut elections = Elections::new(database);
    let mut look = true;
    loop {
        latch::reset();
        pgrx::check_for_interrupts!(); // news can come faster than this ever waits
        bgworker::reload_config();
        let Ok(orders) = shmem::registry(|r| r.orders(database)) else { return };
        if orders.leave {
            return;
        }
        if look || orders.recheck || elections.dropped {
            let since = time::now();
            let extension = xact::run(c"obanrs: looking for the extension", catalog::extension).is_some();
            let _ = shmem::registry(|r| r.found(database, pid, extension, since));
            shmem::wake_coordinator();
            if !extension {
                return;
            }
            (look, elections.dropped) = (false, false);
        }
        let due = elections.pass();
        // A lock that the pass waited for has eaten our latch; the kicks tell what it was set for.
        let news = shmem::registry(|r| r.kicks(database) != orders.kicks).unwrap_or(true);
        if news || elections.dropped {
            continue;
        }
        latch::wait(due.map(|at| Duration::from_micros((at - time::now()).max(0) as u64)));
    }
}

/// Over whatever the database's or the role's settings say: transactions that are short, that write,
/// that never wait long for a user's lock, and in which names mean what they say.
fn take_settings() {
    for (name, value) in [
        (c"role", c"none"),
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"lock_timeout", election::LOCK_TIMEOUT),
        (c"synchronous_commit", c"local"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"session_replication_role", c"origin"),
    ] {
        session::set(name, value);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    let database = DATABASE.load(Ordering::Relaxed);
    let holders = shmem::registry(|r| r.exited(database, latch::my_pid(), time::now()));
    for procno in holders.unwrap_or_default() {
        latch::wake(procno);
    }
    shmem::wake_coordinator();
}
