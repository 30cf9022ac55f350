//! What a transaction has to tell the workers when it ends, whichever way it ends.
//!
//! Notes are kept in the process and acted on by one transaction callback, registered once for all
//! processes. After a commit it must not raise (that would be a PANIC of the whole server): it takes
//! locks of ours, changes plain memory and sets latches. A backend that dies in between takes its notes
//! with it; an exit aborts the transaction first, and that is an end as well.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::pg::{catalog, latch, session, xact};

/// Per process: backends inherit it empty.
static PENDING: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The extensions that this transaction has created or dropped, or means to.
    static EXTENSIONS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// What was seen of the extension right before the commit.
    static SEEN: Cell<Seen> = const { Cell::new(Seen::Unchanged) };
    /// The database that CREATE DATABASE copies, and the one that it creates; 0 for none.
    static SOURCE: Cell<u32> = const { Cell::new(0) };
    static COPY: Cell<u32> = const { Cell::new(0) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Unchanged,
    /// It is in this database with this commit, and may not have been before.
    There,
    NotThere,
    /// Nobody may look now.
    Nothing,
}

#[derive(Clone, Copy)]
pub enum Note {
    /// An extension was created or dropped in this database (`extension_changed`), or a prepared transaction ends.
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

/// This extension was created or is being dropped.
pub fn extension_changed(extension: u32) {
    note(Note::Extension);
    EXTENSIONS.with_borrow_mut(|all| {
        if !all.contains(&extension) {
            all.push(extension);
        }
    });
}

/// CREATE DATABASE will copy this database.
pub fn will_copy(source: u32) {
    SOURCE.set(source);
}

/// CREATE DATABASE has created this database.
pub fn database_created(database: u32) {
    note(Note::Databases);
    COPY.set(database);
}

/// Right before the commit, the last moment at which catalogs can be read: whether the extension is there now.
/// Nobody's commit waits for a lock for that, least of all COMMIT PREPARED, which has committed already.
fn see_extension() -> Seen {
    xact::next_command();
    let changed = EXTENSIONS.with_borrow(Clone::clone);
    let found = catalog::extension_without_waiting("obanrs");
    if changed.is_empty() {
        // The end of a prepared transaction, which rarely has to do with the extension.
        let known = super::registry(|r| r.knows(session::database())).ok().flatten();
        if found.is_some_and(|found| known == Some(found.is_some())) {
            return Seen::Unchanged;
        }
    }
    match found {
        Some(Some(extension)) if !changed.is_empty() && !changed.contains(&extension.oid) => Seen::Unchanged,
        Some(Some(_)) => {
            warn_without_place();
            Seen::There
        }
        Some(None) => Seen::NotThere,
        None => Seen::Nothing,
    }
}

/// Says that this database will have no workers, if that is so.
pub fn warn_without_place() {
    if catalog::is_in_template() {
        return;
    }
    if let Some(lack) = super::lack(true) {
        let name = catalog::database_name(session::database()).unwrap_or_default();
        error::log(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("database \"{name}\" gets no elections and no relay: {lack}"),
            lack.hint(),
        );
    }
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    let pending = PENDING.load(Ordering::Relaxed);
    if pending & Note::Extension as u32 != 0 && xact::is_before_commit(event) && session::database() != 0 {
        SEEN.set(see_extension());
    }
    if pending == 0 || !xact::is_end(event) {
        return;
    }
    PENDING.store(0, Ordering::Relaxed);
    EXTENSIONS.with_borrow_mut(Vec::clear);
    let (source, copy) = (SOURCE.take(), COPY.take());
    let seen = SEEN.replace(Seen::Unchanged);
    let noted = |what: Note| pending & what as u32 != 0;
    if copy != 0 && xact::is_commit(event) {
        let _ = super::registry(|r| r.copied(source, copy));
    }
    // Before the hold ends, or a keeper would be launched for a database that is gone.
    if noted(Note::Databases) {
        super::rescan();
    }
    if noted(Note::Holding) {
        let _ = super::registry(|r| r.release(latch::my_pid()));
        super::wake_coordinator();
    }
    if noted(Note::Extension) && xact::is_commit(event) {
        match seen {
            Seen::Unchanged => {}
            Seen::There => super::extension_changed(session::database(), Some(true)),
            Seen::NotThere => super::extension_changed(session::database(), Some(false)),
            Seen::Nothing => super::extension_changed(session::database(), None),
        }
    }
    if noted(Note::Prefix) {
        super::look_at_rows(session::database(), None);
        if xact::is_commit(event) {
            super::ensure_keeper(session::database());
        } else {
            super::wake_keeper(session::database());
        }
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
