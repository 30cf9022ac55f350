//! How many sessions of a database LISTEN: at least as many as really do.
//!
//! A session counts from the moment at which its first LISTEN is executed, before that LISTEN
//! commits. So a process that sends after the commit of a LISTEN sees the session counted. A
//! session stops counting after the commit of an UNLISTEN * or DISCARD ALL that no LISTEN follows,
//! and when its process ends. After a LISTEN that is rolled back, and after an UNLISTEN of one
//! channel, the session stays counted: that costs a transaction of the relay in which no session
//! hears anything.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::{session, xact};
use crate::shmem::Segment;

thread_local! {
    /// Whether this session is counted.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    /// Whether this transaction has run UNLISTEN * and nothing after it that listens again or rolls
    /// it back.
    static LEAVING: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

fn counter() -> Option<&'static AtomicU32> {
    Segment::attached().map(|segment| segment.listeners(session::database()))
}

/// Whether a session of this database may LISTEN. True as well while the library is not preloaded.
/// Callable after commit.
pub fn any() -> bool {
    counter().is_none_or(|counter| counter.load(Ordering::SeqCst) > 0)
}

/// Counts this session. Called before a LISTEN is executed.
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

/// Notes that the commit of this transaction ends the listening. Called before an UNLISTEN * or
/// DISCARD ALL is executed.
pub fn unlisten_all() {
    LEAVING.set(COUNTED.get());
}

fn stop_counting() {
    if COUNTED.replace(false)
        && let Some(counter) = counter()
    {
        counter.fetch_sub(1, Ordering::SeqCst);
    }
}

#[pg_guard]
#[allow(unsafe_code)] // the signature that Postgres calls
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    stop_counting();
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if LEAVING.get() && xact::is_end(event) {
        LEAVING.set(false);
        if xact::is_commit(event) {
            stop_counting();
        }
    }
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        LEAVING.set(false);
    }
}
