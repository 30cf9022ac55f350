//! Commands that need a database alone: our workers leave before, and come back after (`shmem::at_end`),
//! whichever way the command ends.

use std::time::{Duration, Instant};

use crate::pg::hooks::{self, DatabaseCommand};
use crate::pg::{acl, catalog, latch, session};
use crate::shmem;
use crate::shmem::at_end::{Note, note};

/// A keeper that is idle goes at once. One in the middle of a transaction (50 ms for each lock) is
/// terminated after the first time; after the second, which is as long as Postgres itself would wait
/// for it, the command is left to fail with Postgres' own error.
const PATIENCE: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(5);

pub fn install() {
    hooks::install(before_database_command, || note(Note::Extension));
}

/// Holds the database that the command needs alone. Only for its owner, as any other role will be
/// refused: else anybody could stop the keeper of any database. (Whoever may create databases may copy
/// those marked as templates, too, but they have no keeper.)
fn before_database_command(command: DatabaseCommand<'_>) {
    note(Note::Databases);
    if let DatabaseCommand::Alone(name) = command
        && let Some(database) = catalog::database(name)
        && acl::owns_database(database)
    {
        hold(database);
    }
}

/// Keeps workers off `database` until the end of this transaction and waits until they have gone.
fn hold(database: u32) {
    note(Note::Holding); // before the hold, so that it is released even if the wait is cancelled
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
