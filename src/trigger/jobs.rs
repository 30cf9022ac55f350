//! The triggers on oban_jobs, which wake the workers of a queue when a job becomes available: AFTER
//! INSERT and AFTER UPDATE, for each row.
//!
//! A row wakes its queue if its state is `available`, and if before the UPDATE its state was
//! another or its queue was another. The message `{"queue": ...}` belongs to the transaction of the
//! row, so that a worker that gets the message can see the row. A transaction sends one message for
//! each queue (`repeats`). A trigger must never make a user's statement fail, so it sends nothing
//! for a row that it can't read. While obanrs.wakeups is off, the trigger sends nothing at all, and
//! counts nothing as dropped.
//!
//! The test of the row is here, and not in a WHEN of the trigger. With a WHEN, Postgres refuses
//! `ALTER COLUMN state TYPE` and `DROP COLUMN state`.
//!
//! Versions before 0.9.0 made a trigger AFTER INSERT for each statement, with a transition table.
//! This function serves such a trigger until `oban_install` replaces it.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::AllocatedByRust;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::repeats;
use crate::bus::{self, Target};
use crate::config;
use crate::error::Error;
use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::outbox::Requester;
use crate::logic::repeats::Source;
use crate::logic::wire;
use crate::pg::row_trigger::{Call, RowTrigger};
use crate::pg::transition_table::TransitionTable;
use crate::pg::trigger::{self, Answer};
use crate::pg::tuple::{self, Column, Tuple};
use crate::pg::{catalog, xact};
use crate::prefix::rights::{self, Right};

/// How to see that a row's state is `available`.
#[derive(Clone, Copy)]
enum Available {
    /// The column is an enum, and the oid is the oid of the label `available`.
    Label(Column, pg_sys::Oid),
    Text(Column),
}

/// What the trigger has to know of a table of jobs.
#[derive(Clone, Copy)]
struct JobsTable {
    /// The schema that is the prefix of the table.
    schema: SchemaOid,
    queue: Column,
    available: Available,
}

/// What the running command has looked up. A change of a table in this transaction raises the number
/// of the command, and other transactions can't change a table that a statement uses. So this holds
/// as long as the number is the same.
#[derive(Default)]
struct Known {
    /// The number of the command.
    command: u32,
    /// The last table of which a row was written. Nearly always the next row is of the same.
    last: Option<(TableOid, Option<JobsTable>)>,
    /// All tables: rows of one statement may go to many partitions. `None`: the table's rows can't
    /// be read.
    tables: HashMap<TableOid, Option<JobsTable>>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Registers the callback that forgets what was looked up. `_PG_init` calls this.
pub fn register() {
    xact::on_event(transaction_event);
}

/// A number of a command means something in its transaction only. (A rollback to a savepoint gives
/// no number again.)
fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_end(event) {
        KNOWN.with_borrow_mut(Known::forget);
    }
}

impl Known {
    fn forget(&mut self) {
        if self.last.is_some() {
            *self = Self::default();
        }
    }

    /// Returns what was looked up for a table. `None`: nothing was.
    fn of(&mut self, table: TableOid, command: u32) -> Option<Option<JobsTable>> {
        if self.command != command {
            self.forget();
            self.command = command;
        }
        if let Some((_, found)) = self.last.filter(|(last, _)| *last == table) {
            return Some(found);
        }
        let found = self.tables.get(&table).copied()?;
        self.last = Some((table, found));
        Some(found)
    }

    fn remember(&mut self, table: TableOid, found: Option<JobsTable>) {
        self.last = Some((table, found));
        self.tables.insert(table, found);
    }
}

#[pg_extern(sql = r#"
CREATE FUNCTION "obanrs_jobs_insert"()
	RETURNS TRIGGER
	LANGUAGE c
	AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn obanrs_jobs_insert(fcinfo: pg_sys::FunctionCallInfo) -> Result<Answer, ErrorReport> {
    trigger::called(fcinfo, Error::WrongTrigger, |trigger| {
        let row = RowTrigger::of(trigger);
        let rows = TransitionTable::of(trigger.trigger_data());
        match (row.call(), rows) {
            (Some(call @ (Call::AfterInsert | Call::AfterUpdate)), _) => row_fired(&row, call),
            (Some(Call::AfterInsertStatement), Some(rows)) => statement_fired(&rows),
            _ => ErrorReport::from(Error::WrongTrigger).report(PgLogLevel::ERROR),
        }
        None::<PgHeapTuple<AllocatedByRust>>
    })
}

fn row_fired(row: &RowTrigger<'_>, call: Call) {
    if !config::wakeups() {
        return;
    }
    let Some(table) = known(row) else { return };
    let before = row.row();
    if call == Call::AfterInsert {
        if table.is_available(&before) {
            table.wake(&before);
        }
        return;
    }
    let after = row.new_row();
    if table.is_available(&after) && !(table.is_available(&before) && table.has_queue_of(&before, &after)) {
        table.wake(&after);
    }
}

/// Returns what there is to know of the table that fired the trigger. Looks it up once in a
/// command. `None`: nothing can be sent for the table's rows, which this function counts as dropped when it
/// looks the table up.
fn known(row: &RowTrigger<'_>) -> Option<JobsTable> {
    let (table, command) = (row.table(), xact::command_id());
    if let Some(found) = KNOWN.with_borrow_mut(|known| known.of(table, command)) {
        return found;
    }
    // Other sessions can't see a temporary table, and any role may create one. So a temporary table
    // takes no room in the ring.
    let found = if row.is_of_temporary_table() {
        None
    } else {
        JobsTable::of(|name| row.stored_column(name), || row.root())
    };
    if found.is_none() {
        bus::count_dropped();
    }
    KNOWN.with_borrow_mut(|known| known.remember(table, found));
    found
}

fn statement_fired(rows: &TransitionTable<'_>) {
    if !config::wakeups() {
        return;
    }
    if rows.is_of_temporary_table() {
        return bus::count_dropped();
    }
    match JobsTable::of(|name| rows.column(name), || rows.root()) {
        Some(table) => rows.for_each(|row| {
            if table.is_available(row) {
                table.wake(row);
            }
        }),
        None => bus::count_dropped(),
    }
}

impl JobsTable {
    /// Returns what there is to know of a table. `None`: a column is missing, virtual, or of
    /// another type.
    ///
    /// `root` returns the topmost partitioned table, or the table itself, and its schema. Another
    /// table than oban_jobs may have the trigger, too: it was renamed, or a user has put the trigger
    /// there. The trigger wakes queues for a role that may publish in the schema, and for no other. `None`:
    /// the role may not.
    fn of(
        column: impl Fn(&str) -> Option<Column>,
        root: impl FnOnce() -> (TableOid, SchemaOid),
    ) -> Option<Self> {
        let queue = column("queue").filter(|column| tuple::is_text(column.type_oid))?;
        let available = column("state").and_then(available)?;
        let (root, schema) = root();
        let may_wake = catalog::is_called(root, "oban_jobs") || rights::allows_in(schema, Right::Write);
        may_wake.then_some(Self { schema, queue, available })
    }

    fn is_available(&self, row: &Tuple) -> bool {
        const AVAILABLE: &[u8] = b"available";
        match self.available {
            Available::Label(column, label) => row.oid(column) == Some(label),
            Available::Text(column) => {
                row.with_short_text(column, AVAILABLE.len(), |state| state == AVAILABLE) == Some(true)
            }
        }
    }

    /// Returns whether two rows have the same queue. Returns false if a queue is NULL or longer
    /// than any message.
    fn has_queue_of(&self, before: &Tuple, after: &Tuple) -> bool {
        let same = before.with_short_text(self.queue, wire::MAX_PAYLOAD, |before| {
            after.with_short_text(self.queue, wire::MAX_PAYLOAD, |after| before == after)
        });
        same.flatten() == Some(true)
    }

    /// Queues the wake-up for the queue of a row, unless this transaction has queued it before.
    fn wake(&self, row: &Tuple) {
        // A name that is longer than any message is not copied. If there were no memory for the
        // copy, the server would end.
        let read = row.with_short_text(self.queue, wire::MAX_PAYLOAD, |queue| {
            if repeats::is_repeat(Source::Prefix(self.schema), queue) {
                return;
            }
            let payload = wire::object_of_one("queue", queue);
            if payload.len() > wire::MAX_PAYLOAD {
                return bus::count_dropped();
            }
            // Beyond the transaction's limit the wake-up is dropped, because the statement must not
            // fail.
            let _ = bus::queue(&target(self.schema), payload, Requester::Trigger);
        });
        if read.is_none() && row.text_len(self.queue).is_some() {
            bus::count_dropped();
        }
    }
}

/// Returns the channel of a schema's wake-ups. The last channel is kept, because most sessions
/// write jobs of one schema again and again.
fn target(schema: SchemaOid) -> Target {
    thread_local! {
        static LAST: RefCell<Option<(SchemaOid, Target)>> = const { RefCell::new(None) };
    }
    let last = LAST
        .with_borrow(|last| last.as_ref().filter(|(of, _)| *of == schema).map(|(_, target)| target.clone()));
    last.unwrap_or_else(|| {
        let target = Target::wakeups(schema);
        LAST.set(Some((schema, target.clone())));
        target
    })
}

fn available(state: Column) -> Option<Available> {
    if tuple::is_text(state.type_oid) {
        return Some(Available::Text(state));
    }
    tuple::enum_label(state.type_oid, c"available").map(|label| Available::Label(state, label))
}
