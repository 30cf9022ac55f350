//! This process as a taker: what it tells the other takers when its transaction or its session ends.
//!
//! A claim is committed, or it is rolled back. Only then may the next taker look, because until then the
//! rows are locked. So the taker's slot is given back by the callbacks of transactions, which run after
//! the rows are free. The callback of the exit runs after the one of the transaction, which an exit rolls
//! back.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::ids::SchemaOid;
use crate::logic::takers::{Claimed, Next, QueueKey, Queues};
use crate::pg::{session, xact};
use crate::shmem::Segment;

thread_local! {
    /// Whether this process has the slot of a taker.
    static TAKES: Cell<bool> = const { Cell::new(false) };
    /// What this transaction has claimed. `None`: nothing.
    static CLAIMED: Cell<Option<Claimed>> = const { Cell::new(None) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
}

/// Makes this process a taker of these queues of a prefix in its database. `begin_look` follows.
pub fn arrive(segment: Segment, schema: SchemaOid, queues: &[QueueKey]) {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        session::after_rollback_at_exit(exited);
    }
    TAKES.set(true);
    segment.arrive(session::database(), schema, queues);
}

/// Begins a look. The snapshot of the claim comes after it. `restricted`: row security hides rows from
/// the current role. False: the extension was dropped.
pub fn begin_look(segment: Segment, restricted: bool) -> bool {
    segment.begin_taking(restricted)
}

/// Notes what this transaction has claimed. The wait ends with its commit.
pub fn note_claim(claimed: Claimed) {
    CLAIMED.set(Some(claimed));
}

/// Ends a look that has found no job.
pub fn found_nothing(segment: Segment, paused: Queues) -> Next {
    segment.took_nothing(paused)
}

/// Ends the wait of this process without a job, if it is a taker. Callable after commit.
pub fn leave() {
    if TAKES.replace(false)
        && let Some(segment) = Segment::attached()
    {
        segment.leave_takers();
    }
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if !xact::is_end(event) || !TAKES.get() {
        return;
    }
    match CLAIMED.take() {
        Some(claimed) if xact::is_commit(event) => {
            TAKES.set(false);
            if let Some(segment) = Segment::attached() {
                segment.took_jobs(claimed);
            }
        }
        _ if xact::is_commit(event) => {} // a look without a job, or the start of the wait
        _ => leave(),
    }
}

#[pg_guard]
#[allow(unsafe_code)] // the signature that Postgres calls
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    leave();
}
