//! Which signals this transaction has sent, to be remembered when it commits.
//!
//! The rows are written before the commit and not at the call. So the lock on the table, under which
//! rows are written in the order of commits, is held as shortly as NOTIFY's own lock, and the table
//! ends with the state that the nodes hear last. Nor can two transactions that signal several queues
//! deadlock, as a transaction locks the tables of its prefixes in the order of their oids. Only a
//! session that locks rows or indexes of such a table by hand can deadlock with one (40P01).
//!
//! A process that dies here takes its notes along, and writes nothing.

use std::cell::RefCell;
use std::collections::HashSet;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::backend::available_jobs;
use crate::error::{self, Error};
use crate::logic::ids::SchemaOid;
use crate::logic::signals::{self, Change, Key, MAX_ROWS, Remembered};
use crate::pg::{catalog, time, xact};
use crate::prefix::signals::{SignalsTable, TABLE, Unusable};

/// The longest wait for the lock on the table, in milliseconds. Other transactions hold it while
/// they commit, and a user may hold it for longer.
const LOCK_TIMEOUT: i32 = 2_000;

/// How often to look again for a table that was replaced during the wait for its lock.
const ATTEMPTS: usize = 5;

/// A signal that is remembered when the transaction commits.
struct Noted {
    schema: SchemaOid,
    key: Key,
    change: Change,
    /// The level of the subtransaction that sent the signal.
    level: u32,
}

thread_local! {
    /// The signals in their order.
    static NOTED: RefCell<Vec<Noted>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Notes a signal, which is remembered when this transaction commits. If the prefix has no table for
/// that, a NOTICE says so. `prefix` is the schema's name.
pub(super) fn note(schema: SchemaOid, prefix: &str, key: Key, change: Change) {
    if catalog::relation(schema, TABLE).is_none() {
        error::log(
            PgLogLevel::NOTICE,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("the signal is sent and not remembered: prefix \"{prefix}\" has no {TABLE}"),
            error::install_hint(prefix),
        );
        return;
    }
    available_jobs::note_changes(schema, [(&key, &change)].into_iter());
    let level = xact::level();
    NOTED.with_borrow_mut(|noted| noted.push(Noted { schema, key, change, level }));
}

/// Returns the rows of a schema's table as they will be when this transaction commits. `rows` are
/// those that are committed.
pub(super) fn with_noted(schema: SchemaOid, mut rows: Vec<Remembered>) -> Vec<Remembered> {
    let changes = NOTED.with_borrow(|noted| changes(noted, schema));
    if changes.is_empty() {
        return rows;
    }
    let writes = signals::writes(&rows, &changes, time::now(), MAX_ROWS);
    let gone: HashSet<&Key> = writes.delete.iter().chain(writes.put.iter().map(|row| &row.key)).collect();
    rows.retain(|row| !gone.contains(&row.key));
    rows.extend(writes.put);
    rows
}

fn changes(noted: &[Noted], schema: SchemaOid) -> Vec<(Key, Change)> {
    let own = noted.iter().filter(|noted| noted.schema == schema);
    // What does not count in the end costs no time under the table's lock.
    signals::last_of_each(own.map(|noted| (noted.key.clone(), noted.change)).collect())
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_before_commit(event) {
        write();
    } else if xact::is_end(event) {
        NOTED.take();
    }
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_COMMIT_SUB};
    let level = xact::level();
    NOTED.with_borrow_mut(|all| match event {
        SUBXACT_EVENT_ABORT_SUB => all.retain(|noted| noted.level < level),
        SUBXACT_EVENT_COMMIT_SUB => {
            all.iter_mut().filter(|noted| noted.level >= level).for_each(|noted| noted.level = level - 1);
        }
        _ => {}
    });
}

/// Runs before the commit, and writes what this transaction has noted. An ERROR here rolls the
/// transaction back, and its signals are not sent.
fn write() {
    let noted = NOTED.take();
    let mut schemas: Vec<SchemaOid> = noted.iter().map(|noted| noted.schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    for schema in schemas {
        let changes = changes(&noted, schema);
        let locked = Error::SignalsLocked(catalog::namespace_name(schema).unwrap_or_default());
        let written = xact::with_error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, locked, || {
            xact::limit_lock_waits(LOCK_TIMEOUT, || write_in(schema, &changes))
        });
        if let Err(error) = written {
            ErrorReport::from(error).report(PgLogLevel::ERROR);
        }
    }
}

/// Writes the changes of one schema. Says so by a WARNING if the table is not as `oban_install` makes
/// it, and writes nothing. `Err` is 40001: the table keeps being replaced, or another transaction has
/// written to it meanwhile.
fn write_in(schema: SchemaOid, changes: &[(Key, Change)]) -> Result<(), Error> {
    let prefix = || catalog::namespace_name(schema).unwrap_or_default();
    for _ in 0..ATTEMPTS {
        let table = match SignalsTable::open(schema) {
            Ok(table) => table,
            Err(Unusable::Replaced) => continue,
            Err(Unusable::Missing) => return Ok(()), // dropped since the call
            Err(Unusable::Odd(what)) => {
                error::log(
                    PgLogLevel::WARNING,
                    PgSqlErrorCode::ERRCODE_WARNING,
                    format!(
                        "the signal is sent and not remembered: {TABLE} of prefix \"{}\": {what}",
                        prefix()
                    ),
                    format!("Drop or rename it. {}", error::install_hint(&prefix())),
                );
                return Ok(());
            }
        };
        let writes = signals::writes(table.rows(), changes, time::now(), MAX_ROWS);
        let deletes = !writes.delete.is_empty();
        if table.write(&writes) {
            if deletes {
                available_jobs::note_deletion(schema);
            }
            return Ok(());
        }
        break;
    }
    Err(Error::PrefixChanged(prefix()))
}
