//! The watches of tables (`oban_watch`) as the catalogs have them: triggers whose arguments say what
//! is sent. The functions read catalogs only, and need no search_path.

use super::extension;
use super::triggers::OnPartition;
use crate::logic::ids::TableOid;
use crate::logic::watch::{self, Content, EVENTS, Watch};
use crate::pg::catalog::{self, TriggerRow};
use crate::pg::ddl::{self, Event, Fires};
use crate::pg::{encoding, spi};

/// A trigger of a watch: a watch has one for each event.
pub struct WatchTrigger {
    pub oid: u32,
    /// The name of the trigger.
    name: String,
    /// The number in the trigger's name. `None`: a user has renamed the trigger.
    pub number: Option<u32>,
    /// The event by its place in `EVENTS`.
    pub event: usize,
    pub fires: Fires,
    pub watch: Watch,
    /// The tree of the condition, as `TriggerRow` has it.
    pub condition: Vec<u8>,
    /// Whether it is a trigger of the kind that `oban_watch` creates. False: a user has replaced it.
    pub is_ordinary: bool,
}

impl WatchTrigger {
    /// Returns the trigger of a row. `None`: it is no trigger that `oban_watch` has put on this
    /// table itself.
    fn of(row: &TriggerRow, function: u32) -> Option<Self> {
        let event = event_of(row.kind).filter(|_| row.is_own && row.function == function)?;
        Some(Self {
            oid: row.oid,
            name: row.name.clone(),
            number: watch::number_of(&row.name),
            event,
            fires: Fires::of(row.enabled),
            watch: watch_of(&row.arguments)?,
            condition: row.condition.clone(),
            is_ordinary: row.is_ordinary,
        })
    }

    /// Returns the partitions on which the trigger fires in other sessions than on its table. The
    /// caller has locked the partitions.
    pub fn differing_partitions(&self, table: TableOid, function: u32) -> Vec<(TableOid, Fires)> {
        let all = OnPartition::named(table, function, self.name.as_bytes()).into_iter();
        all.filter(|t| t.fires != self.fires).map(|t| (t.partition, t.fires)).collect()
    }

    /// Returns the triggers of all watches of a table.
    pub fn all(table: TableOid, function: u32) -> Vec<Self> {
        catalog::triggers_of(table).iter().filter_map(|row| Self::of(row, function)).collect()
    }
}

/// Returns the one event of a trigger for each row, by its place in `EVENTS`. `kind` is the
/// trigger's `pg_trigger.tgtype`. `None`: the trigger is of another kind.
fn event_of(kind: i16) -> Option<usize> {
    EVENTS_OF_ROWS.iter().position(|event| ddl::kind_after_row(event) == kind)
}

/// The events, in the order of `EVENTS`.
pub const EVENTS_OF_ROWS: [Event; 3] = [Event::Insert, Event::Update, Event::Delete];

fn watch_of(tgargs: &[u8]) -> Option<Watch> {
    let arguments: Vec<String> = watch::arguments_of(tgargs)
        .into_iter()
        .map(|argument| encoding::to_utf8_lossy(argument).into_owned())
        .collect();
    Watch::of(&arguments)
}

/// A trigger of a watch, with what the view oban_watches shows.
pub struct Found {
    pub table: TableOid,
    /// The name of the trigger.
    pub trigger: String,
    pub event: usize,
    pub watch: Watch,
    /// Whether the trigger fires where changes are made, on each partition as well.
    pub enabled: bool,
    /// Whether rows of the table store the column whose value is sent.
    pub stored: bool,
}

/// Returns the triggers of all watches in this database, in the order of tables and numbers. The
/// catalogs of triggers are open to every role.
pub fn all() -> Vec<Found> {
    let Some(function) = extension::trigger_function("obanrs_watched") else { return Vec::new() };
    // A trigger that is off on a partition does not fire for the partition's rows.
    let sql = format!(
        "WITH RECURSIVE ours AS (
            SELECT g.oid, g.oid AS root, g.tgenabled FROM pg_catalog.pg_trigger g
            WHERE g.tgparentid OPERATOR(pg_catalog.=) 0 AND g.tgfoid OPERATOR(pg_catalog.=) {function}
            UNION ALL
            SELECT c.oid, o.root, c.tgenabled FROM ours o
            JOIN pg_catalog.pg_trigger c ON c.tgparentid OPERATOR(pg_catalog.=) o.oid
         )
         SELECT g.tgrelid, g.tgname::pg_catalog.text, g.tgargs, g.tgtype, NOT EXISTS (
             SELECT FROM ours o WHERE o.root OPERATOR(pg_catalog.=) g.oid
             AND (o.tgenabled OPERATOR(pg_catalog.=) 'D' OR o.tgenabled OPERATOR(pg_catalog.=) 'R')
         )
         FROM pg_catalog.pg_trigger g
         WHERE g.tgparentid OPERATOR(pg_catalog.=) 0 AND g.tgfoid OPERATOR(pg_catalog.=) {function}"
    );
    let mut found = Vec::new();
    spi::each(&sql, |row| {
        let all = [0, 1, 2, 3, 4].map(|place| row.datum(place));
        let [Some(table), Some(name), Some(arguments), Some(kind), Some(enabled)] = all else { return };
        let name = encoding::to_utf8_lossy(row.bytes(name)).into_owned();
        let Some(event) = event_of(kind.value() as i16) else { return };
        let Some(watch) = watch_of(row.bytes(arguments)) else { return };
        let (table, enabled) = (TableOid(table.value() as u32), enabled.value() as u8 != 0);
        let stored = watch.content == Content::Empty || catalog::stores_column(table, &watch.column);
        found.push(Found { table, trigger: name, event, watch, enabled, stored });
    });
    found.sort_by_key(|found: &Found| (found.table.0, found.watch.channel.clone(), found.event));
    found
}

/// Returns whether a partition has a trigger with this number in the name that the partition does
/// not have from the table. A trigger of the table with the same number might replace that trigger.
pub fn is_taken_in_partitions(table: TableOid, number: u32) -> bool {
    let is_own = |row: &TriggerRow| row.is_own && watch::number_of(&row.name) == Some(number);
    catalog::with_partitions(table)[1..].iter().any(|p| catalog::triggers_of(*p).iter().any(is_own))
}

/// Returns a number that neither a table nor one of its partitions has in the name of a watch's
/// trigger.
pub fn free_number(table: TableOid) -> u32 {
    let rows: Vec<TriggerRow> =
        catalog::with_partitions(table).into_iter().flat_map(catalog::triggers_of).collect();
    watch::free_number(rows.iter().map(|row| row.name.as_str()))
}

/// Returns the names of the events in an error message.
pub fn events() -> String {
    EVENTS.join(", ")
}
