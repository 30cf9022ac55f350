//! The way of a message out of its transaction.
//!
//! ```text
//! oban_notify, triggers ──queue──▶ outbox (of this backend) ──PRE_COMMIT──▶ native NOTIFY ──COMMIT──▶ listeners
//!                                     │ ROLLBACK [TO SAVEPOINT]: gone
//!                                     │ PREPARE TRANSACTION: 0A000 after a call, wake-ups are dropped
//! ```
//!
//! What can fail fails at the call, or before the commit. The outbox is plain memory of this process; it
//! is empty whenever no transaction is open, and a backend that dies takes it along, as it does the
//! transaction.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::config;
use crate::error::Error;
use crate::logic::outbox::{Message, Origin, Outbox, Queued};
use crate::pg::{notify, session, xact};

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::default();
    /// Between PRE_COMMIT, when the outbox was emptied, and the end of the transaction.
    static CLOSED: Cell<bool> = const { Cell::new(false) };
}

/// In `_PG_init`, once per process.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Queues a message until the end of this transaction. 54000 when somebody called for it and the
/// transaction has as many as it may, 53200 without memory; a trigger's is dropped then.
pub fn queue(channel: &[u8], payload: &[u8], origin: Origin) -> Result<(), Error> {
    // Somebody else's PRE_COMMIT callback, after ours; or a parallel worker, which Postgres refuses.
    if CLOSED.get() || session::is_parallel_worker() {
        notify::notify(channel, payload);
        return Ok(());
    }
    let most = config::max_transaction_messages();
    let queued = match Message::new(channel, payload, origin) {
        Some(message) => OUTBOX.with_borrow_mut(|outbox| outbox.queue(message, xact::level(), most)),
        None => Queued::OutOfMemory,
    };
    match (queued, origin) {
        (Queued::Full, Origin::Call) => Err(Error::TooManyMessages(most)),
        (Queued::OutOfMemory, Origin::Call) => Err(Error::OutOfMemory),
        _ => Ok(()),
    }
}

#[pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    if xact::is_end(event) {
        CLOSED.set(false);
        drop(take());
    } else if xact::is_before_commit(event) {
        CLOSED.set(true);
        for message in take().into_iter().flatten() {
            notify::notify(&message.channel, &message.payload);
        }
    } else if xact::is_before_prepare(event) && OUTBOX.with_borrow(Outbox::has_calls) {
        ErrorReport::from(Error::Prepared).report(PgLogLevel::ERROR);
    }
}

/// The messages, in their order. Most transactions have none.
fn take() -> Option<impl Iterator<Item = Message>> {
    OUTBOX.with_borrow_mut(|outbox| (!outbox.is_empty()).then(|| outbox.take()))
}

#[pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    OUTBOX.with_borrow_mut(|outbox| {
        if outbox.is_empty() {
            return;
        }
        match event {
            pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => outbox.commit_level(xact::level()),
            pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => outbox.abort_level(xact::level()),
            _ => {}
        }
    });
}
