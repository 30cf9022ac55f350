//! Commands that need a database alone. The database's workers leave before such a command, and
//! come back after it (`backend::xact_end`), however the command ends.

use crate::backend::xact_end::{self, Note, note};
use crate::backend::{ddl_changes, listening};
use crate::logic::backoff::MILLISECOND;
use crate::logic::ids::{DatabaseOid, Process};
use crate::pg::hooks::{self, CatalogChange, DatabaseCommand, Listening};
use crate::pg::{acl, catalog, clock, latch, session};
use crate::shmem::Segment;

/// How long a command waits for the workers, in microseconds. An idle worker leaves at once. A
/// worker in the middle of a transaction (50 ms for each lock) is terminated after `MAX_WAIT`.
/// After `LIMIT`, which is as long as Postgres itself would wait for the worker, the command goes
/// on, and fails with Postgres' own error.
const MAX_WAIT: i64 = 100 * MILLISECOND;
const LIMIT: i64 = 5_000 * MILLISECOND;

/// Installs the hooks, with what each of them does in this library.
pub fn install() {
    let on_listening = |command| match command {
        Listening::Begins => listening::listen(),
        Listening::Ends => listening::unlisten_all(),
        Listening::Discards => {
            listening::unlisten_all();
            note(Note::Discard);
        }
    };
    let change = |change| match change {
        CatalogChange::Extension(extension) => xact_end::extension_changed(extension),
        CatalogChange::Trigger => {
            note(Note::Shapes);
            ddl_changes::trigger_touched();
        }
        CatalogChange::Schema(schema) => {
            note(Note::Shapes);
            ddl_changes::schema_touched(schema);
        }
        CatalogChange::AlteredRelation(relation) => {
            note(Note::Shapes);
            ddl_changes::relation_touched(relation, false);
        }
        CatalogChange::DroppedRelation(relation) => {
            note(Note::Shapes);
            ddl_changes::relation_touched(relation, true);
        }
        CatalogChange::Database(database) => xact_end::database_created(database),
        // The prepared transaction may have created or dropped the extension, and anything else.
        CatalogChange::Prepared => {
            note(Note::Extension);
            note(Note::Shapes);
            note(Note::Prepared);
            ddl_changes::prepared_ends();
        }
    };
    hooks::install(before_database_command, on_listening, change);
}

/// Holds the database that the command needs alone, if the current role owns the database. Postgres
/// refuses the command of any other role. Without this test any role could stop the workers of any
/// database. (A role that may create databases may also copy the databases marked as templates, but
/// these have no workers.)
fn before_database_command(command: DatabaseCommand<'_>) {
    note(Note::Databases);
    let (DatabaseCommand::Alone(name) | DatabaseCommand::Copies(name)) = command else { return };
    let Some(database) = catalog::database(name) else { return };
    if matches!(command, DatabaseCommand::Copies(_)) {
        xact_end::will_copy(database);
    }
    if acl::owns_database(database) {
        hold(database);
    }
}

/// Keeps workers off `database` until the end of this transaction, and waits until they have left,
/// for `LIMIT` at most.
fn hold(database: DatabaseOid) {
    note(Note::Holding); // before the hold, so that it is released even if the wait is cancelled
    let Some(segment) = Segment::attached() else { return };
    let workers = |then_hold: bool| {
        let processes = segment.registry(|r| {
            if then_hold {
                r.hold(database, latch::my_process());
            }
            r.processes(database)
        });
        // After the hold is set: a stager claims its slot, and then looks for holds.
        let stagers = segment.stagers_view(|s| s.processes(database));
        processes.into_iter().filter(|process| process.pid != 0).chain(stagers)
    };
    let since = clock::now();
    // A worker that starts from here on sees the hold, and leaves by itself.
    let there: Vec<Process> = workers(true).collect();
    there.iter().for_each(|process| latch::wake(process.procno));
    let mut terminated = false;
    loop {
        latch::reset();
        let left: Vec<i32> =
            workers(false).map(|p| p.pid).filter(|pid| there.iter().any(|p| p.pid == *pid)).collect();
        let now = clock::now();
        if left.is_empty() || now - since >= LIMIT {
            return;
        }
        if !terminated && now - since >= MAX_WAIT {
            left.into_iter().for_each(session::terminate);
            terminated = true;
        }
        let next = if terminated { LIMIT } else { MAX_WAIT };
        latch::wait_until(Some(since + next));
    }
}
