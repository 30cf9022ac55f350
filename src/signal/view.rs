//! What is remembered of signals: the rows of the view oban_queue_signals, and the state of one
//! queue.
//!
//! The table is read by a scan of this library, with the rights of the extension's functions: no
//! code of the table's owner runs, and the table's own rights do not count. What this transaction
//! has sent counts as remembered.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{Names, remember};
use crate::error::Error;
use crate::logic::ids::SchemaOid;
use crate::logic::signals::{self, Remembered};
use crate::pg::argument::TextArgument;
use crate::pg::datum::Shown;
use crate::pg::scan::{self, Locked};
use crate::pg::tuple::{Column, Tuple};
use crate::pg::{catalog, session, spi, time, xact};
use crate::prefix::prefixes;
use crate::prefix::rights::{self, Right};
use crate::prefix::signals::{self as table, Columns, TABLE};

/// Returns what is remembered in a schema. `prefix` is the schema's name, for messages. `None`: the
/// table can't be read, because it is missing, locked or of another kind. `Err` is 3F000 or 42501 if
/// the schema or the right to read it is gone, and 55000 if the table is unlogged and this server is
/// in recovery.
fn remembered(schema: SchemaOid, prefix: &str, locked: Locked) -> Result<Option<Vec<Remembered>>, Error> {
    let find = |column: &dyn Fn(&str) -> Option<Column>| Columns::of(column);
    let read = |row: &Tuple, columns: &Columns| table::remembered(row, columns);
    for _ in 0..3 {
        let Some(oid) = catalog::relation(schema, TABLE) else { return Ok(None) };
        let admit = |unlogged: bool| {
            rights::require_in(schema, prefix, Right::Read)?;
            if unlogged && session::in_recovery() {
                return Err(Error::UnloggedInRecovery { table: spi::qualified(prefix, TABLE) });
            }
            Ok(catalog::relation(schema, TABLE) == Some(oid))
        };
        if let Some(rows) = scan::rows(oid, locked, admit, find, read)? {
            return Ok(Some(remember::with_noted(schema, rows)));
        }
        if locked != Locked::Wait {
            break;
        }
    }
    Ok(None)
}

/// Returns the rows of the view oban_queue_signals: those of every prefix that the caller may read.
/// Leaves out a prefix whose table can't be read at the moment, or is too large: a tenant's lock or
/// rows must not hold up a reader of all prefixes.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_queue_signals() -> TableIterator<
    'static,
    (
        name!(prefix, Shown),
        name!(name, Shown),
        name!(queue, Shown),
        name!(node, Option<Shown>),
        name!(paused, Option<bool>),
        name!(queue_limit, Option<i32>),
        name!(since, Option<TimestampWithTimeZone>),
    ),
> {
    let prefixes = prefixes::named_schemas_of_signals().into_iter();
    let readable = prefixes
        .filter(|(_, schema)| rights::allows_in(*schema, Right::Read) && !table::is_too_large(*schema));
    let rows: Vec<_> = readable
        .flat_map(|(prefix, schema)| {
            let rows = remembered(schema, &prefix, Locked::Skip).ok().flatten().unwrap_or_default();
            let mut rows: Vec<_> = rows.into_iter().filter(|row| row.since().is_some()).collect();
            rows.sort_by(|a, b| a.key.cmp(&b.key));
            rows.into_iter().map(move |row| (Shown(prefix.clone()), row))
        })
        .map(|(prefix, row)| {
            let since = row.since().and_then(time::timestamptz);
            let (paused, limit) = (row.paused.map(|(paused, _)| paused), row.limit.map(|(limit, _)| limit));
            let key = row.key;
            (prefix, Shown(key.name), Shown(key.queue), key.node.map(Shown), paused, limit, since)
        })
        .collect();
    TableIterator::new(rows)
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_queue_state(
    queue: Option<TextArgument>,
    node: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(paused, Option<bool>),
            name!(queue_limit, Option<i32>),
            name!(since, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let Names { key, prefix } = Names::of(queue, node, name, prefix)?;
    session::see_changes();
    let schema = rights::require(prefix.as_str(), Right::Read)?;
    let rows = remembered(schema, prefix.as_str(), Locked::Wait)?.unwrap_or_default();
    let state = signals::state(&rows, &key.name, &key.queue, key.node.as_deref());
    let since = state.since.and_then(time::timestamptz);
    Ok(TableIterator::once((state.paused, state.limit, since)))
}

/// The longest wait for a lock on the table, in milliseconds, as for a sender of signals.
const LOCK_TIMEOUT: i32 = 2_000;

/// Returns those of some queues that are paused on a node, for the name `Oban`. `Err` is as of
/// `remembered`. Raises 55P03 if another transaction holds a lock on the table for longer.
pub fn paused_queues(
    schema: SchemaOid,
    prefix: &str,
    queues: &[String],
    node: &str,
) -> Result<Vec<String>, Error> {
    let locked = Error::SignalsLocked(prefix.to_owned());
    let rows = xact::with_error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, locked, || {
        xact::limit_lock_waits(LOCK_TIMEOUT, || remembered(schema, prefix, Locked::Wait))
    });
    let rows = rows?.unwrap_or_default();
    let is_paused = |queue: &&String| {
        signals::state(&rows, signals::DEFAULT_NAME, queue, Some(node)).paused == Some(true)
    };
    Ok(queues.iter().filter(is_paused).cloned().collect())
}
