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
//!
//! If a trigger has the argument `STAGE`, the prefix stages (`logic::staging`), whatever
//! obanrs.wakeups is. Then the trigger also tells the prefix's stager when rows become due. A row
//! that is available with a due time in the future wakes its queue when it is due: the stager does
//! that.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::AllocatedByRust;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::repeats;
use crate::backend::{available_jobs, due_jobs};
use crate::bus::{self, Target, wakeups};
use crate::config;
use crate::error::Error;
use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::repeats::{MOST_COUNTED, Source};
use crate::logic::staging::STAGE;
use crate::logic::times::WallTime;
use crate::logic::wire;
use crate::pg::row_trigger::{Call, RowTrigger};
use crate::pg::transition_table::TransitionTable;
use crate::pg::trigger::{self, Answer};
use crate::pg::tuple::{self, Column, Tuple};
use crate::pg::{catalog, time, xact};
use crate::prefix::rights::{self, Right};
use crate::shmem::Segment;

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
    /// `None`: the prefix does not stage.
    staging: Option<Staging>,
}

/// What the trigger has to know of a table of jobs that is staged.
#[derive(Clone, Copy)]
struct Staging {
    state: Column,
    /// The labels of the states from which jobs become available. `None`: the column is a text.
    labels: Option<[pg_sys::Oid; 2]>,
    scheduled_at: Column,
}

/// The states from which jobs become available when they are due.
const STAGEABLE: [&std::ffi::CStr; 2] = [c"scheduled", c"retryable"];

impl Staging {
    /// Returns what there is to know of a table. `None`: it can't be staged. `oban_check` says why.
    fn of(column: impl Fn(&str) -> Option<Column>) -> Option<Self> {
        let state = column("state")?;
        let scheduled_at = column("scheduled_at").filter(|c| c.type_oid == pg_sys::TIMESTAMPOID)?;
        let labels = if tuple::is_text(state.type_oid) {
            None
        } else {
            let label = |name| tuple::enum_label(state.type_oid, name);
            Some([label(STAGEABLE[0])?, label(STAGEABLE[1])?])
        };
        Some(Self { state, labels, scheduled_at })
    }

    /// Returns whether a row becomes available when it is due.
    fn is_stageable(&self, row: &Tuple) -> bool {
        match self.labels {
            Some(labels) => row.oid(self.state).is_some_and(|label| labels.contains(&label)),
            None => {
                let is = |state: &[u8]| STAGEABLE.iter().any(|wanted| wanted.to_bytes() == state);
                row.with_short_text(self.state, STAGEABLE[0].count_bytes(), is) == Some(true)
            }
        }
    }

    /// Returns when a row is due. `None`: never.
    fn due_at(&self, row: &Tuple) -> Option<WallTime> {
        row.i64(self.scheduled_at).filter(|at| *at < i64::MAX).map(WallTime)
    }
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
    let stages = row.argument(0).is_some_and(|argument| argument.to_bytes() == STAGE.as_bytes());
    if !config::wakeups() && !stages {
        return;
    }
    let Some(table) = known(row, stages) else { return };
    let before = row.row();
    if call == Call::AfterInsert {
        table.written(&before, || true);
        return;
    }
    let after = row.new_row();
    table.written(&after, || {
        let was_available = table.is_available(&before) && table.has_queue_of(&before, &after);
        !was_available || table.is_due_later(&before)
    });
}

/// Returns what there is to know of the table that fired the trigger. Looks it up once in a
/// command. `None`: nothing can be sent for the rows, which this function counts as dropped when it
/// looks the table up.
fn known(row: &RowTrigger<'_>, stages: bool) -> Option<JobsTable> {
    let (table, command) = (row.table(), xact::command_id());
    if let Some(found) = KNOWN.with_borrow_mut(|known| known.of(table, command)) {
        return found;
    }
    // Other sessions can't see a temporary table, and any role may create one. So a temporary table
    // takes no room in the ring.
    let found = if row.is_of_temporary_table() {
        None
    } else {
        let found = JobsTable::of(|name| row.stored_column(name), || row.root());
        // Without shared memory there is no stager, which would have to wake queues later.
        let stages = stages && Segment::attached().is_some();
        let staging = || Staging::of(|name| row.stored_column(name));
        found.map(|table| JobsTable { staging: stages.then(staging).flatten(), ..table })
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
                table.wake(row, true);
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
    /// there. The trigger wakes queues for a role that may publish in the schema, and for no other.
    /// `None`: the role may not.
    fn of(
        column: impl Fn(&str) -> Option<Column>,
        root: impl FnOnce() -> (TableOid, SchemaOid),
    ) -> Option<Self> {
        let queue = column("queue").filter(|column| tuple::is_text(column.type_oid))?;
        let available = column("state").and_then(available)?;
        let (root, schema) = root();
        let may_wake = catalog::is_called(root, "oban_jobs") || rights::allows_in(schema, Right::Write);
        may_wake.then_some(Self { schema, queue, available, staging: None })
    }

    /// Does what a row asks for that was inserted or updated. `is_news` says whether a row that is
    /// available was not available before, or was in another queue. If it is no news, sessions that listen
    /// are not woken. A session in oban_take is: it may have passed the row over, because this transaction
    /// had locked it, or because the job had no attempt left.
    fn written(&self, row: &Tuple, is_news: impl FnOnce() -> bool) {
        let due = self.staging.and_then(|staging| staging.due_at(row));
        if self.is_available(row) {
            if let Some(due) = due.filter(|due| *due > time::now()) {
                due_jobs::is_due_later(self.schema, due);
            } else if config::wakeups() {
                self.wake(row, is_news());
            }
        } else if let (Some(due), Some(staging)) = (due, self.staging)
            && staging.is_stageable(row)
        {
            due_jobs::becomes_due(self.schema, due);
        }
    }

    /// Returns the text of a queue as a worker names it. A `char(n)` has blanks at its end that do not count.
    fn key_text<'t>(&self, queue: &'t [u8]) -> &'t [u8] {
        if self.queue.type_oid == pg_sys::BPCHAROID { queue.trim_ascii_end() } else { queue }
    }

    /// Returns whether a row becomes due in the future. False as well: the prefix does not stage.
    fn is_due_later(&self, row: &Tuple) -> bool {
        self.staging.and_then(|staging| staging.due_at(row)).is_some_and(|due| due > time::now())
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

    /// Queues the wake-up for the queue of a row, unless this transaction has queued it before. Counts the
    /// rows of the queue, as far as more of them wake more takers.
    fn wake(&self, row: &Tuple, is_news: bool) {
        // A name that is longer than any message is not copied. If there were no memory for the
        // copy, the server would end.
        let read = row.with_short_text(self.queue, wire::MAX_PAYLOAD, |queue| {
            let source = if is_news { Source::Prefix } else { Source::Takers };
            let before = repeats::count(source(self.schema), queue);
            if before < MOST_COUNTED {
                available_jobs::is_available(self.schema, self.key_text(queue));
            }
            if before == 0 && is_news {
                wakeups::send(&target(self.schema), queue);
            }
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
