//! What other people's commands mean for our workers: hooks before the command, and one transaction
//! callback after it, whichever way it ended.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::hooks::{self, DatabaseCommand};
use crate::pg::{acl, catalog, latch, session, xact};
use crate::shmem;

/// What this transaction did that its end has to tell. Per process: backends inherit it empty.
static PENDING: AtomicU32 = AtomicU32::new(0);

/// An extension was created or dropped in this database.
const EXTENSION: u32 = 1;
/// A database was created, changed or dropped.
const DATABASES: u32 = 2;
/// This backend holds databases without workers.
const HOLDING: u32 = 4;
/// The tables of a prefix changed.
const PREFIX: u32 = 8;

/// A keeper that is idle goes at once. One in the middle of a transaction (50 ms for each lock) is
/// terminated after the first time; after the second, which is as long as Postgres itself would wait
/// for it, the command is left to fail with Postgres' own error.
const PATIENCE: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(5);

pub fn install() {
    hooks::install(before_database_command, || note(EXTENSION));
    xact::on_event(transaction_ended);
}

/// At the end of this transaction the keeper shall look at the prefixes' tables again.
pub fn prefix_changed() {
    note(PREFIX);
}

fn note(what: u32) {
    PENDING.fetch_or(what, Ordering::Relaxed);
}

/// Holds the database that the command needs alone. Only for a role that the command will not refuse
/// anyway: else anybody could stop the keeper of any database.
fn before_database_command(command: DatabaseCommand<'_>) {
    note(DATABASES);
    let held = match command {
        DatabaseCommand::Alone(name) => catalog::database(name).filter(|oid| acl::owns_database(*oid)),
        DatabaseCommand::Copy(template) => catalog::database(template).filter(|_| acl::creates_databases()),
        DatabaseCommand::Other => None,
    };
    if let Some(database) = held {
        hold(database);
    }
}

/// Keeps workers off `database` until the end of this transaction and waits until they have gone.
fn hold(database: u32) {
    note(HOLDING); // before the hold, so that it is released even if the wait is cancelled
    let (pid, procno) = (latch::my_pid(), latch::my_procno());
    let keeper = |then_hold: bool| {
        shmem::registry(|r| {
            if then_hold {
                r.hold(database, pid, procno);
            }
            r.find(database).filter(|d| d.pid != 0).map(|d| (d.pid, d.procno))
        })
        .ok()
        .flatten()
    };
    let since = Instant::now();
    let Some((keeper_pid, keeper_procno)) = keeper(true) else { return };
    latch::wake(keeper_procno);
    let mut terminated = false;
    loop {
        latch::reset();
        if keeper(false).is_none_or(|(pid, _)| pid != keeper_pid) || since.elapsed() >= LIMIT {
            return;
        }
        if !terminated && since.elapsed() >= PATIENCE {
            session::terminate(keeper_pid);
            terminated = true;
        }
        let next = if terminated { LIMIT } else { PATIENCE };
        latch::wait(Some(next.saturating_sub(since.elapsed())));
    }
}

/// After a commit nothing here may raise: locks of ours, plain memory and latches only.
#[pg_guard]
unsafe extern "C-unwind" fn transaction_ended(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    if PENDING.load(Ordering::Relaxed) == 0 || !xact::is_end(event) {
        return;
    }
    let pending = PENDING.swap(0, Ordering::Relaxed);
    if pending & HOLDING != 0 {
        let _ = shmem::registry(|r| r.release(latch::my_pid()));
        shmem::wake_coordinator();
    }
    if pending & DATABASES != 0 {
        shmem::rescan(shmem::RESCAN_DATABASES);
    }
    if pending & EXTENSION != 0 {
        start_keeper(session::database());
    }
    if pending & PREFIX != 0 {
        shmem::wake_keeper(session::database());
    }
}

/// Makes the database's keeper look for its extension, or has one started that will.
pub fn start_keeper(database: u32) {
    match shmem::registry(|r| r.changed(database)) {
        Ok((Some(procno), _)) => latch::wake(procno),
        Ok((None, true)) => shmem::wake_coordinator(),
        _ => shmem::rescan(shmem::RESCAN_ALL),
    }
}
