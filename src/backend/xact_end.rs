//! What a transaction has to tell the workers when it ends, however it ends.
//!
//! Notes are kept in the process. One transaction callback acts on them. A backend that dies before
//! its transaction ends takes its notes along.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::logic::ids::DatabaseOid;
use crate::pg::{catalog, latch, session, xact};
use crate::shmem::Segment;

/// The notes of this transaction, as bits of `Note`.
static PENDING: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The oids of the extensions that this transaction has created or has begun to drop.
    static EXTENSIONS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// What this process saw of the extension right before the commit.
    static SEEN: Cell<Seen> = const { Cell::new(Seen::Unchanged) };
    /// The database that CREATE DATABASE copies, and the database that it creates; 0 for none.
    static SOURCE: Cell<DatabaseOid> = const { Cell::new(DatabaseOid::NONE) };
    static COPY: Cell<DatabaseOid> = const { Cell::new(DatabaseOid::NONE) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The transaction does not change whether the extension is in this database.
    Unchanged,
    /// The extension is in this database with this commit. It may not have been there before.
    There,
    /// The extension is not in this database with this commit.
    NotThere,
    /// The catalog is locked, so this process could not find out.
    Unknown,
}

/// A note for the end of the transaction.
#[derive(Clone, Copy)]
pub enum Note {
    /// An extension was created or dropped in this database (`extension_changed`), or a prepared
    /// transaction ends.
    Extension = 1,
    /// A database was created, changed or dropped.
    Databases = 2,
    /// This backend has a hold: databases that have no workers meanwhile.
    Holding = 4,
    /// The tables of a prefix changed.
    Prefix = 8,
    /// This transaction has locked the row of a leadership, or has tried to.
    Fence = 16,
    /// DISCARD ALL ran: the next client of this session is another process.
    Discard = 32,
    /// Triggers, schemas or tables changed, so that prefixes may have come or gone.
    Shapes = 64,
    /// A prepared transaction ends, which may have written jobs.
    Prepared = 128,
}

pub(super) fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Notes something for the end of this transaction. Callable anywhere.
pub fn note(what: Note) {
    PENDING.fetch_or(what as u32, Ordering::Relaxed);
}

/// Notes that an extension was created or is being dropped.
pub fn extension_changed(extension: u32) {
    note(Note::Extension);
    EXTENSIONS.with_borrow_mut(|all| {
        if !all.contains(&extension) {
            all.push(extension);
        }
    });
}

/// Notes that CREATE DATABASE is going to copy this database.
pub fn will_copy(source: DatabaseOid) {
    SOURCE.set(source);
}

/// Notes that CREATE DATABASE has created this database.
pub fn database_created(database: DatabaseOid) {
    note(Note::Databases);
    COPY.set(database);
}

/// Finds out whether the extension is there now. Runs right before the commit, which is the last
/// moment at which catalogs can be read. A commit does not wait for a lock for that, least of all
/// COMMIT PREPARED, which has committed already.
fn see_extension() -> Seen {
    xact::next_command();
    let changed = EXTENSIONS.with_borrow(Clone::clone);
    let found = catalog::extension_without_waiting("obanrs");
    if changed.is_empty() {
        // This is the end of a prepared transaction, which rarely has to do with the extension.
        let known = Segment::attached().and_then(|s| s.registry(|r| r.knows(session::database())));
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
        None => Seen::Unknown,
    }
}

/// Raises a WARNING if this database will have no workers.
pub fn warn_without_place() {
    if catalog::is_in_template() {
        return;
    }
    if let Some(lack) = Segment::attached().and_then(|segment| segment.lack(true)) {
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
    if pending & Note::Extension as u32 != 0
        && xact::is_before_commit(event)
        && !session::database().is_none()
    {
        SEEN.set(see_extension());
    }
    if pending == 0 || !xact::is_end(event) {
        return;
    }
    PENDING.store(0, Ordering::Relaxed);
    EXTENSIONS.with_borrow_mut(Vec::clear);
    let (source, copy) = (SOURCE.take(), COPY.take());
    let seen = SEEN.replace(Seen::Unchanged);
    let Some(segment) = Segment::attached() else { return };
    let database = session::database();
    let noted = |what: Note| pending & what as u32 != 0;
    if !copy.is_none() && xact::is_commit(event) {
        segment.registry(|r| r.copied(source, copy));
    }
    // This comes before the hold ends. Otherwise the coordinator would launch a keeper for a
    // database that is gone.
    if noted(Note::Databases) {
        segment.rescan();
    }
    if noted(Note::Holding) {
        segment.registry(|r| r.release(latch::my_pid()));
        segment.wake_coordinator();
    }
    if noted(Note::Extension) && xact::is_commit(event) {
        match seen {
            Seen::Unchanged => {}
            Seen::There => segment.extension_changed(database, Some(true)),
            Seen::NotThere => {
                segment.extension_changed(database, Some(false));
                segment.revoke_takers(database);
            }
            Seen::Unknown => segment.extension_changed(database, None),
        }
    }
    if noted(Note::Prefix) {
        segment.rows_changed(database, None);
        if xact::is_commit(event) {
            segment.ensure_keeper(database);
        } else {
            segment.wake_keeper(database);
        }
    }
    if noted(Note::Prefix) || noted(Note::Shapes) {
        segment.prefixes_changed(database);
        // A table or a partition with jobs may have taken the place of another one. (The end of a prepared
        // transaction, which may have written jobs, notes this as well.)
        if xact::is_commit(event) && segment.has_takers() {
            segment.resume_all_queues(database);
        }
    }
    if noted(Note::Prepared) && xact::is_commit(event) {
        segment.tell_all_stagers(database);
    }
    // The transaction's locks on rows are gone by now: they last as long as the transaction counts
    // as running.
    if noted(Note::Fence) {
        fence_ended(segment);
    }
    if noted(Note::Discard) && xact::is_commit(event) {
        super::memberships::leave_all();
    }
}

/// A subtransaction that is rolled back frees the rows that it had locked.
fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    let aborted = event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB;
    let fenced = PENDING.load(Ordering::Relaxed) & Note::Fence as u32 != 0;
    if aborted
        && fenced
        && let Some(segment) = Segment::attached()
    {
        fence_ended(segment);
    }
}

/// Wakes the keeper if it waits for the end of a fence.
fn fence_ended(segment: Segment) {
    latch::wake_if(segment.registry(|r| r.fence_ended(session::database())));
}
