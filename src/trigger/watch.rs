//! `oban_watch`, `oban_unwatch` and the rows of the view oban_watches.
//!
//! A watch is one trigger for each event, and nothing else: its options are the arguments of the
//! trigger, so a dump has them, and DROP TABLE takes them along. A table has at most one watch for
//! a channel. A second call for the channel replaces the options.
//!
//! The table belongs to a user, and may be renamed, replaced or dropped at any moment. So it is
//! locked by its oid, tested again, and only then altered, by its oid. No code of the table's owner
//! runs with the caller's rights. A call analyzes the condition with the caller's search_path, and
//! so the functions here read catalogs in ways that need no search_path.

use std::ffi::CString;
use std::panic::{AssertUnwindSafe, UnwindSafe};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::bus::Target;
use crate::error::{Error, given};
use crate::logic::channel::MAX_CHANNEL;
use crate::logic::ids::TableOid;
use crate::logic::text::excerpt;
use crate::logic::watch::{self, Content, EVENTS, Watch};
use crate::pg::argument::{self, NameArgument, TextArgument, TextArray};
use crate::pg::catalog;
use crate::pg::datum::{Shown, Text};
use crate::pg::ddl::{self, Fires, Options, Timing, Trigger};
use crate::pg::expression::{self, Expression};
use crate::pg::{acl, encoding, session, xact};
use crate::prefix::extension;
use crate::prefix::watches::{self, WatchTrigger};

/// The longest condition in bytes. A condition that is longer is a mistake: it is evaluated for
/// each row.
const MAX_CONDITION: usize = 10_000;

/// The most elements of `events`, which may repeat an event.
const MAX_EVENTS: usize = 16;

const LOCK_HINT: &str = "Another transaction holds a lock on the table for long. Find it in pg_locks or \
                         pg_stat_activity, and call again when it has ended.";

#[pg_extern(sql = r#"
CREATE FUNCTION "oban_watch"(
	"queue_table" regclass,
	"channel" TEXT,
	"queue_column" name DEFAULT NULL,
	"events" TEXT[] DEFAULT '{insert}',
	"payload_column" name DEFAULT NULL,
	"condition" TEXT DEFAULT NULL
) RETURNS void
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn oban_watch(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let table: pg_sys::Oid = given("queue_table", argument::at(fcinfo, 0))?;
    let channel: TextArgument = given("channel", argument::at(fcinfo, 1))?;
    let Text(channel) = channel.text("channel", MAX_CHANNEL)?;
    Target::new(None, "", &channel)?;
    let events: TextArray = given("events", argument::at(fcinfo, 3))?;
    let columns = [argument::at(fcinfo, 2), argument::at(fcinfo, 4)];
    let (content, column) = match columns.map(|column| column.map(|NameArgument(name)| name)) {
        [None, None] => (Content::Empty, String::new()),
        [Some(queue), None] => (Content::Queue, queue),
        [None, Some(payload)] => (Content::Payload, payload),
        [Some(_), Some(_)] => {
            return Err(Error::bad(
                "both queue_column and payload_column are given",
                "Give queue_column to send {\"queue\": its value}, or payload_column to send its value.",
            )
            .into());
        }
    };
    let condition: Option<TextArgument> = argument::at(fcinfo, 5);
    let condition = condition.map(|text| text.text("condition", MAX_CONDITION)).transpose()?;
    let expression = condition.as_ref().map(|Text(text)| Expression::parse(text)).transpose();
    let expression = expression.map_err(|why| refused_condition(&why))?;
    let condition = condition.map(|Text(text)| text).unwrap_or_default();
    let wanted = Wanted {
        watch: Watch { channel, content, column, condition },
        events: events_of(&events)?,
        expression,
    };
    let wanted = AssertUnwindSafe(&wanted);
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || wanted.put(table.into()))?;
    Ok(())
}

#[pg_extern(sql = r#"
CREATE FUNCTION "oban_unwatch"(
	"queue_table" regclass
) RETURNS void
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn oban_unwatch(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let table: pg_sys::Oid = given("queue_table", argument::at(fcinfo, 0))?;
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || unwatch(table.into()))?;
    Ok(())
}

/// Returns the error 22023 for a condition that Postgres refuses.
fn refused_condition(why: &str) -> Error {
    Error::bad(
        format!("condition can't be used: {}", excerpt(why)),
        "It is one expression as in WHEN of CREATE TRIGGER, such as NEW.state = 'ready'. An INSERT has no \
         OLD, and a DELETE has no NEW. Columns are named by NEW and OLD only.",
    )
}

/// Returns the events by their places in `EVENTS`, each once and in order. `Err` is 22023 or 22004.
fn events_of(events: &TextArray) -> Result<Vec<usize>, Error> {
    let names = events.texts("events", MAX_EVENTS, MAX_CHANNEL)?;
    let unknown = |name: &str| {
        Error::bad(format!("events has \"{name}\""), format!("The events are {}.", watches::events()))
    };
    let mut found = Vec::new();
    for Text(name) in &names {
        found.push(EVENTS.iter().position(|event| event == name).ok_or_else(|| unknown(name))?);
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return Err(Error::bad("events is empty", format!("Give some of {}.", watches::events())));
    }
    Ok(found)
}

/// Returns `Err` unless the current role may watch the table: 42P01 if there is no such relation,
/// 42809 if it is no table that can be watched, 42501 if the role does not own it.
fn require_watchable(table: TableOid) -> Result<(), Error> {
    match catalog::not_a_table(table) {
        Some("") => return Err(Error::NoSuchTable(table.0)),
        Some(kind) => return Err(Error::NotWatchable { table: catalog::shown_name(table), kind }),
        None => {}
    }
    if acl::owns(table) { Ok(()) } else { Err(Error::NotOwner { table: catalog::shown_name(table) }) }
}

/// What a call of `oban_watch` asks for.
struct Wanted {
    watch: Watch,
    events: Vec<usize>,
    expression: Option<Expression>,
}

impl Wanted {
    fn put(&self, table: TableOid) -> Result<(), Error> {
        session::require_writable("watch a table")?;
        let function = extension::trigger_function("obanrs_watched").ok_or(Error::NoExtension)?;
        require_watchable(table)?;
        self.require_column(table)?;
        self.require_rights_for_condition(table)?;
        let there = self.triggers(table, function);
        if self.is_there(table, &there)? {
            return Ok(()); // takes no lock that lasts
        }
        extension::lock().ok_or(Error::NoExtension)?; // the trigger function must not be dropped
        // A trigger can be dropped only while no other session reads the table. The partitions are
        // locked before their triggers are looked at, so that no session gives them more.
        let lock = if there.is_empty() { catalog::lock_for_triggers } else { catalog::lock_for_alteration };
        lock(table);
        catalog::with_partitions(table).into_iter().skip(1).for_each(lock);
        require_watchable(table)?;
        self.require_column(table)?;
        self.require_rights_for_condition(table)?;
        if let Some(expression) = self.expression {
            analyzed(table, expression, &[])?; // refuse before anything is changed
        }
        let there = self.triggers(table, function);
        let firing: Vec<Firing> =
            self.events.iter().map(|event| Firing::of(*event, &there, table, function)).collect();
        there.iter().for_each(|trigger| ddl::drop_trigger(trigger.oid));
        let number = there.first().and_then(|trigger| trigger.number);
        let number = number.filter(|number| !watches::is_taken_in_partitions(table, *number));
        let number = number.unwrap_or_else(|| watches::free_number(table));
        firing.iter().try_for_each(|firing| self.create(table, function, number, firing))
    }

    /// Refuses (42501) a condition on a superuser's table, unless a superuser gives it. The analysis
    /// of a condition may run code, with the rights of the table's owner (`create`).
    fn require_rights_for_condition(&self, table: TableOid) -> Result<(), Error> {
        if self.expression.is_none() || acl::is_superuser() || !acl::is_owned_by_superuser(table) {
            return Ok(());
        }
        Err(Error::NotOwner { table: catalog::shown_name(table) })
    }

    /// Returns the triggers of the table's watch of this channel.
    fn triggers(&self, table: TableOid, function: u32) -> Vec<WatchTrigger> {
        let mut all = WatchTrigger::all(table, function);
        all.retain(|trigger| trigger.watch.channel == self.watch.channel);
        all
    }

    /// Returns whether the table has exactly this watch. The triggers have to mean what the call
    /// means now: a name in the condition may have got another meaning since. (The column that is
    /// sent is looked up by its name when a row comes.) `Err` is 22023: Postgres refuses the
    /// condition.
    fn is_there(&self, table: TableOid, there: &[WatchTrigger]) -> Result<bool, Error> {
        let mut events: Vec<usize> = there.iter().map(|trigger| trigger.event).collect();
        events.sort_unstable();
        if events != self.events || there.iter().any(|t| t.watch != self.watch || !t.is_ordinary) {
            return Ok(false);
        }
        let Some(expression) = self.expression else {
            return Ok(there.iter().all(|trigger| trigger.condition.is_empty()));
        };
        let trees: Vec<&[u8]> = there.iter().map(|trigger| trigger.condition.as_slice()).collect();
        analyzed(table, expression, &trees)
    }

    fn require_column(&self, table: TableOid) -> Result<(), Error> {
        if self.watch.content == Content::Empty || catalog::stores_column(table, &self.watch.column) {
            return Ok(());
        }
        Err(Error::bad(
            format!("{} stores no column \"{}\"", catalog::shown_name(table), self.watch.column),
            "Give the name of a column of the table that is neither a system column nor virtual.",
        ))
    }

    /// Creates the trigger of one event. `Err` is 22023: Postgres refuses the condition.
    fn create(&self, table: TableOid, function: u32, number: u32, firing: &Firing) -> Result<(), Error> {
        let c_string = |text: &str| CString::new(encoding::to_server(text).into_owned()).unwrap_or_default();
        let name = c_string(&watch::trigger_name(number, firing.event));
        let arguments = self.watch.arguments().map(c_string);
        let arguments = arguments.each_ref().map(CString::as_c_str);
        let events = [watches::EVENTS_OF_ROWS[firing.event]];
        let trigger = Trigger { name: &name, timing: Timing::After, events: &events, for_each_row: true };
        let options = Options {
            fires: firing.fires,
            arguments: &arguments,
            condition: self.expression,
            on_partitions: &firing.on_partitions,
            replaces: false,
        };
        let create = || ddl::create_trigger(table, function, &trigger, &options);
        if self.expression.is_none() {
            create();
            return Ok(());
        }
        let create = analyzing(table, create)?;
        expression::refusals(create).map_err(|why| refused_condition(&why))
    }
}

/// In which sessions the trigger of one event is to fire. A watch that was turned off, or that fires
/// for replicated rows, stays so, also on a single partition.
struct Firing {
    /// The event by its place in `EVENTS`.
    event: usize,
    fires: Fires,
    /// The partitions on which the trigger is to fire in other sessions.
    on_partitions: Vec<(TableOid, Fires)>,
}

impl Firing {
    /// Returns this for the watch that has the triggers `there`. An event that is new fires as
    /// another event of the watch does.
    fn of(event: usize, there: &[WatchTrigger], table: TableOid, function: u32) -> Self {
        match there.iter().find(|trigger| trigger.event == event).or(there.first()) {
            Some(trigger) => Self {
                event,
                fires: trigger.fires,
                on_partitions: trigger.differing_partitions(table, function),
            },
            None => Self { event, fires: Fires::Origin, on_partitions: Vec::new() },
        }
    }
}

/// Returns whether the trees are what the expression means (`Expression::means`). `Err` is 22023:
/// Postgres refuses the expression.
fn analyzed(table: TableOid, expression: Expression, trees: &[&[u8]]) -> Result<bool, Error> {
    let analysis = analyzing(table, || expression.means(table, trees))?;
    expression::refusals_of_analysis(analysis).map_err(|why| refused_condition(&why))
}

/// Returns `body`, in which Postgres analyzes a condition for the table, with fewer rights. `Err` is
/// 42P01: there is no such table.
///
/// The analysis reads literals, and may run code for that: '{1}' as an array of a domain runs the
/// domain's CHECK. So it runs with the rights of the table's owner, and can change nothing of the
/// session.
fn analyzing<R>(table: TableOid, body: impl FnOnce() -> R) -> Result<impl FnOnce() -> R + UnwindSafe, Error> {
    let owner = catalog::owner(table).ok_or(Error::NoSuchTable(table.0))?;
    Ok(AssertUnwindSafe(move || session::restricted_as(owner, body)))
}

fn unwatch(table: TableOid) -> Result<(), Error> {
    session::require_writable("unwatch a table")?;
    let function = extension::trigger_function("obanrs_watched").ok_or(Error::NoExtension)?;
    require_watchable(table)?;
    if WatchTrigger::all(table, function).is_empty() {
        return Ok(()); // takes no lock
    }
    catalog::lock_for_alteration(table);
    require_watchable(table)?;
    WatchTrigger::all(table, function).iter().for_each(|trigger| ddl::drop_trigger(trigger.oid));
    Ok(())
}

// It reads catalogs by SQL with a new snapshot, which Postgres refuses in parallel mode.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)] // it is the view's
pub fn obanrs_watches() -> TableIterator<
    'static,
    (
        name!(queue_table, pg_sys::Oid),
        name!(channel, Shown),
        name!(content, Shown),
        name!(column_name, Shown),
        name!(condition, Shown),
        name!(event, Shown),
        name!(ok, bool),
    ),
> {
    TableIterator::new(watches::all().into_iter().map(|w| {
        let Watch { channel, content, column, condition } = w.watch;
        (
            w.table.into(),
            Shown(channel),
            Shown(content.word().to_owned()),
            Shown(column),
            Shown(condition),
            Shown(EVENTS[w.event].to_owned()),
            w.enabled && w.stored,
        )
    }))
}
