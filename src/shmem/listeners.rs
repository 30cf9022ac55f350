//! How many sessions of a database LISTEN, at least as many as really do.
//!
//! A session counts from the execution of its first LISTEN, before that commits; so whoever sends after the
//! commit of a LISTEN sees it counted. It counts no more after the commit of an UNLISTEN * or DISCARD ALL
//! with no LISTEN behind it, and when the process ends. A LISTEN that is rolled back, and an UNLISTEN of
//! one channel, leave it counted: that costs a transaction of the relay's in which nobody hears anything.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::{session, xact};

pub const COUNTERS: usize = 256;

thread_local! {
    /// Whether this session is counted.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    /// Whether this transaction has run UNLISTEN * and nothing after it that LISTENs again or undoes it.
    static LEAVING: Cell<bool> = const { Cell::new(false) };
}

/// In `_PG_init` while preloading.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

fn counter() -> Option<&'static AtomicU32> {
    let root = super::root().ok()?;
    // SAFETY: atomics in the segment, which lives as long as the process.
    let counters = unsafe { &(*root).listeners };
    counters.get(session::database() as usize % COUNTERS)
}

/// Whether anybody in this database may LISTEN. Callable after commit.
pub fn any() -> bool {
    counter().is_none_or(|counter| counter.load(Ordering::SeqCst) > 0)
}

/// Before a LISTEN is executed.
pub fn listen() {
    LEAVING.set(false);
    if !COUNTED.get()
        && let Some(counter) = counter()
    {
        static REGISTERED: std::sync::Once = std::sync::Once::new();
        REGISTERED.call_once(|| session::before_exit(exited));
        counter.fetch_add(1, Ordering::SeqCst);
        COUNTED.set(true);
    }
}

/// Before an UNLISTEN * or DISCARD ALL is executed.
pub fn unlisten_all() {
    LEAVING.set(COUNTED.get());
}

fn uncount() {
    if COUNTED.replace(false)
        && let Some(counter) = counter()
    {
        counter.fetch_sub(1, Ordering::SeqCst);
    }
}

#[pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    uncount();
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if LEAVING.get() && xact::is_end(event) {
        LEAVING.set(false);
        if xact::is_commit(event) {
            uncount();
        }
    }
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        LEAVING.set(false);
    }
}
