//! The triggers of a watched table (`oban_watch`): AFTER INSERT, UPDATE or DELETE, for each row.
//!
//! Such a trigger sends a text on a verbatim channel: the empty text, `{"queue": ...}` with the
//! value of a column, or the value of a column itself. A transaction sends one message for each
//! distinct text. The message belongs to the table, so that roles that may SELECT the table read it
//! by `oban_poll` and `oban_wait`. The trigger must never make a user's statement fail, so it sends
//! nothing where it can't do its work, and counts that as dropped. While obanrs.wakeups is off, the
//! trigger sends nothing, and counts nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use pgrx::AllocatedByRust;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::repeats;
use crate::bus::{self, Target};
use crate::config;
use crate::error::Error;
use crate::logic::outbox::Requester;
use crate::logic::repeats::Source;
use crate::logic::watch::Content;
use crate::logic::wire;
use crate::pg::row_trigger::{Call, RowTrigger};
use crate::pg::trigger::{self, Answer};
use crate::pg::tuple::Tuple;
use crate::pg::value_text::ValueText;
use crate::pg::{catalog, xact};

/// What a trigger has to know to do its work.
#[derive(Clone)]
struct Watch {
    /// The trigger and its arguments, as `repeats` has them.
    source: Source,
    target: Target,
    text: WatchText,
}

/// The text of a message.
#[derive(Clone, Copy)]
enum WatchText {
    Empty,
    Queue(ValueText),
    Value(ValueText),
}

/// What the running command has looked up, by the oid of the trigger. A change of a table or its
/// triggers in this transaction raises the number of the command, and other transactions can't change
/// a table that a statement uses. So this holds as long as the number is the same. `None`: the
/// trigger can't do its work.
#[derive(Default)]
struct Watches {
    /// The number of the command.
    command: u32,
    by_trigger: HashMap<u32, Option<Watch>>,
}

thread_local! {
    static WATCHES: RefCell<Watches> = RefCell::default();
}

/// Registers the callback that forgets what was looked up. `_PG_init` calls this.
pub fn register() {
    xact::on_event(transaction_event);
}

/// A number of a command means something in its transaction only.
fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_end(event) {
        WATCHES.with_borrow_mut(Watches::forget_all);
    }
}

impl Watches {
    fn forget_all(&mut self) {
        if !self.by_trigger.is_empty() {
            *self = Self::default();
        }
    }
}

#[pg_extern(sql = r#"
CREATE FUNCTION "obanrs_watched"()
	RETURNS TRIGGER
	LANGUAGE c
	AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn obanrs_watched(fcinfo: pg_sys::FunctionCallInfo) -> Result<Answer, ErrorReport> {
    trigger::called(fcinfo, Error::WrongWatchTrigger, |trigger| {
        let row = RowTrigger::of(trigger);
        match row.call() {
            Some(Call::AfterInsert | Call::AfterDelete) => fired(&row, &row.row()),
            Some(Call::AfterUpdate) => fired(&row, &row.new_row()),
            _ => ErrorReport::from(Error::WrongWatchTrigger).report(PgLogLevel::ERROR),
        }
        None::<PgHeapTuple<AllocatedByRust>>
    })
}

fn fired(trigger: &RowTrigger<'_>, row: &Tuple) {
    /// What stands for NULL among texts, which have no such byte.
    const NULL: &[u8] = b"\0";
    if !config::wakeups() {
        return;
    }
    let Some(watch) = known(trigger) else { return };
    let send = |text: &[u8]| {
        if repeats::count(watch.source, text) > 0 {
            return;
        }
        let payload = match watch.text {
            WatchText::Queue(_) if text == NULL => b"{\"queue\":null}".to_vec(),
            WatchText::Queue(_) => wire::object_of_one("queue", text),
            WatchText::Empty | WatchText::Value(_) => text.to_vec(),
        };
        if payload.len() > wire::MAX_PAYLOAD {
            return bus::count_dropped();
        }
        // Beyond the transaction's limit the wake-up is dropped, because the statement must not
        // fail.
        let _ = bus::queue(&watch.target, payload, Requester::Trigger);
    };
    match watch.text {
        WatchText::Empty => send(b""),
        WatchText::Queue(value) if value.is_null(row) => send(NULL),
        WatchText::Value(value) if value.is_null(row) => send(b""),
        WatchText::Queue(value) | WatchText::Value(value) => {
            if value.with(row, wire::MAX_PAYLOAD, send).is_none() {
                bus::count_dropped(); // the text is too long
            }
        }
    }
}

/// Returns what there is to know of the trigger that fired. Looks it up once in a command. `None`:
/// the trigger can't do its work, which this function counts as dropped when it looks.
fn known(trigger: &RowTrigger<'_>) -> Option<Watch> {
    let (oid, command) = (trigger.oid(), xact::command_id());
    let known = WATCHES.with_borrow_mut(|watches| {
        if watches.command != command {
            watches.forget_all();
            watches.command = command;
        }
        watches.by_trigger.get(&oid).cloned()
    });
    known.unwrap_or_else(|| {
        let found = look_up(trigger);
        if found.is_none() {
            bus::count_dropped();
        }
        WATCHES.with_borrow_mut(|watches| watches.by_trigger.insert(oid, found.clone()));
        found
    })
}

/// Looks up what there is to know of a trigger. `None`: the table is temporary, so that no other
/// session sees it; or the arguments are not those of `oban_watch`; or rows store no such column.
fn look_up(trigger: &RowTrigger<'_>) -> Option<Watch> {
    if trigger.is_of_temporary_table() {
        return None;
    }
    let argument = |place| trigger.argument(place).map(std::ffi::CStr::to_bytes);
    let column = trigger.argument(2)?;
    let value = || trigger.stored_column_named(column).map(ValueText::of);
    let text = match Content::of(argument(1)?)? {
        Content::Empty => WatchText::Empty,
        Content::Queue => WatchText::Queue(value()?),
        Content::Payload => WatchText::Value(value()?),
    };
    // A partition has the trigger from the table that is watched, and roles read that table.
    let table =
        if trigger.is_clone() { catalog::table_of_root_trigger(trigger.oid())? } else { trigger.table() };
    let mut arguments = DefaultHasher::new();
    [argument(0)?, argument(1)?, column.to_bytes()].hash(&mut arguments);
    let source = Source::Watch { trigger: trigger.oid(), arguments: arguments.finish() };
    Some(Watch { source, target: Target::watched(table, argument(0)?.to_vec())?, text })
}
