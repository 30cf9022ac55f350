//! What a transaction has to tell the workers when it ends, whichever way it ends.
//!
//! Notes are kept in the process and acted on by one transaction callback, registered once for all
//! processes. After a commit it must not raise (that would be a PANIC of the whole server): it takes
//! locks of ours, changes plain memory and sets latches. A backend that dies in between takes its notes
//! with it; an exit aborts the transaction first, and that is an end as well.

use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;

use crate::pg::{latch, session, xact};

/// Per process: backends inherit it empty.
static PENDING: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Copy)]
pub enum Note {
    /// An extension was created or dropped in this database.
    Extension = 1,
    /// A database was created, changed or dropped.
    Databases = 2,
    /// This backend holds databases without workers.
    Holding = 4,
    /// The tables of a prefix changed.
    Prefix = 8,
    /// This transaction may hold the row of a leadership, or have tried to.
    Fence = 16,
    /// DISCARD ALL: whoever gets this session next is another process.
    Discard = 32,
    /// Triggers, schemas or tables changed, and with them perhaps what prefixes there are.
    Shapes = 64,
}

/// In `_PG_init` while preloading.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

pub fn note(what: Note) {
    PENDING.fetch_or(what as u32, Ordering::Relaxed);
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if PENDING.load(Ordering::Relaxed) == 0 || !xact::is_end(event) {
        return;
    }
    let pending = PENDING.swap(0, Ordering::Relaxed);
    let noted = |what: Note| pending & what as u32 != 0;
    // Before the hold ends, or a keeper would be launched for a database that is gone.
    if noted(Note::Databases) {
        super::rescan(super::RESCAN_DATABASES);
    }
    if noted(Note::Holding) {
        let _ = super::registry(|r| r.release(latch::my_pid()));
        super::wake_coordinator();
    }
    if noted(Note::Extension) {
        super::look_for_extension(session::database());
    }
    if noted(Note::Prefix) {
        super::look_at_rows(session::database(), None);
        super::wake_keeper(session::database());
    }
    if noted(Note::Prefix) || noted(Note::Shapes) {
        super::look_for_prefixes(session::database());
    }
    // Its locks on rows are gone by now: they last as long as its transaction counts as running.
    if noted(Note::Fence) {
        fence_ended();
    }
    if noted(Note::Discard) && xact::is_commit(event) {
        super::members::leave_all();
    }
}

/// A savepoint that is rolled back gives its rows free.
fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    let aborted = event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB;
    if aborted && PENDING.load(Ordering::Relaxed) & Note::Fence as u32 != 0 {
        fence_ended();
    }
}

fn fence_ended() {
    let keeper = super::registry(|r| r.fence_ended(session::database())).ok().flatten();
    keeper.into_iter().for_each(latch::wake);
}
