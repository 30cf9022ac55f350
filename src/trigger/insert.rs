//! The trigger that tells a queue's workers of new jobs: AFTER INSERT, once per statement.
//!
//! The trigger sends `{"queue": ...}` once for each distinct queue that has an `available` row
//! among the inserted rows. The message belongs to the transaction of the INSERT, so that a worker
//! that gets the message can see the rows. The trigger must never make a user's INSERT fail, so it
//! sends nothing for a row that it can't read. While obanrs.wakeups is off, the trigger sends
//! nothing at all, and counts nothing as dropped.

use std::cell::RefCell;
use std::collections::BTreeSet;

use pgrx::AllocatedByRust;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::bus::{self, Target};
use crate::config;
use crate::error::Error;
use crate::logic::ids::SchemaOid;
use crate::logic::outbox::Requester;
use crate::logic::wire;
use crate::pg::transition_table::TransitionTable;
use crate::pg::trigger::{self, Answer};
use crate::pg::tuple::{self, Column};

/// How to see that a row's state is `available`.
enum Available {
    /// The column is an enum, and the oid is the oid of the label `available`.
    Label(Column, pg_sys::Oid),
    Text(Column),
}

#[pg_extern(sql = r#"
CREATE FUNCTION "obanrs_jobs_insert"()
	RETURNS TRIGGER
	LANGUAGE c
	AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn obanrs_jobs_insert(fcinfo: pg_sys::FunctionCallInfo) -> Result<Answer, ErrorReport> {
    trigger::called(fcinfo, Error::WrongTrigger, |trigger| {
        let rows = TransitionTable::of(trigger.trigger_data())
            .filter(|_| trigger.event().fired_by_insert() && trigger.event().fired_for_statement());
        match rows {
            Some(rows) => wake_queues(&rows),
            None => ErrorReport::from(Error::WrongTrigger).report(PgLogLevel::ERROR),
        }
        None::<PgHeapTuple<AllocatedByRust>>
    })
}

fn wake_queues(rows: &TransitionTable<'_>) {
    if !config::wakeups() {
        return;
    }
    // Other sessions can't see a temporary table, and any role may create one. So a temporary table
    // takes no room in the ring.
    if rows.is_of_temporary_table() {
        return bus::count_dropped();
    }
    let queue = rows.column("queue").filter(|c| tuple::is_text(c.type_oid));
    let Some((queue, available)) = queue.zip(rows.column("state").and_then(available)) else {
        return bus::count_dropped(); // a column is missing, virtual, or of another type
    };

    // Nearly always the next row has the same queue as the last row. The set is for the other
    // queues.
    let (mut last, mut others): (Option<Vec<u8>>, BTreeSet<Vec<u8>>) = (None, BTreeSet::new());
    let mut too_long = false;
    rows.for_each(|row| {
        let is_available = match available {
            Available::Label(column, label) => row.oid(column) == Some(label),
            Available::Text(column) => {
                row.with_short_text(column, b"available".len(), |s| s == b"available") == Some(true)
            }
        };
        if is_available {
            // A name that is longer than any message is not copied. If there were no memory for the
            // copy, the server would end.
            let read = row.with_short_text(queue, wire::MAX_PAYLOAD, |name| {
                if last.as_deref() != Some(name) {
                    others.extend(last.replace(name.to_vec()));
                }
            });
            too_long |= read.is_none() && row.text_len(queue).is_some();
        }
    });
    if too_long {
        bus::count_dropped();
    }
    let Some(last) = last else { return };
    let target = target(rows.schema());
    others.remove(&last);
    for queue in others.into_iter().chain([last]) {
        let payload = wire::object_of_one("queue", &queue);
        if payload.len() > wire::MAX_PAYLOAD {
            bus::count_dropped();
            continue;
        }
        // Beyond the transaction's limit the wake-up is dropped, because the INSERT must not fail.
        let _ = bus::queue(&target, payload, Requester::Trigger);
    }
}

/// Returns the channel of a schema's wake-ups. The last channel is kept, because most sessions
/// insert into one schema again and again.
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
