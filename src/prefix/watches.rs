//! The watches of tables (`oban_watch`) as the catalogs have them: triggers whose arguments say what
//! is sent. The functions read catalogs only, and need no search_path.

use super::extension;
use crate::logic::ids::TableOid;
use crate::logic::watch::{self, Content, EVENTS, Watch};
use crate::pg::catalog::{self, TriggerRow};
use crate::pg::ddl::Fires;
use crate::pg::{encoding, spi};

/// A trigger of a watch: a watch has one for each event.
pub struct WatchTrigger {
    pub oid: u32,
    /// The number in the names of the watch's triggers.
    pub number: u32,
    /// The event by its place in `EVENTS`.
    pub event: usize,
    pub watch: Watch,
}

impl WatchTrigger {
    /// Returns the trigger of a row. `None`: it is no trigger that `oban_watch` has put on this
    /// table itself.
    fn of(row: &TriggerRow, function: u32) -> Option<Self> {
        let is_own = row.is_own && row.function == function;
        let (number, event) = watch::number_and_event(&row.name).filter(|_| is_own)?;
        Some(Self { oid: row.oid, number, event, watch: watch_of(&row.arguments)? })
    }

    /// Returns the triggers of all watches of a table.
    pub fn all(table: TableOid, function: u32) -> Vec<Self> {
        catalog::triggers_of(table).iter().filter_map(|row| Self::of(row, function)).collect()
    }
}

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
    pub number: u32,
    pub event: usize,
    pub watch: Watch,
    /// Whether the trigger fires where changes are made.
    pub enabled: bool,
    /// Whether rows of the table store the column whose value is sent.
    pub stored: bool,
}

/// Returns the triggers of all watches in this database, in the order of tables and numbers. The
/// catalogs of triggers are open to every role.
pub fn all() -> Vec<Found> {
    let Some(function) = extension::trigger_function("obanrs_watched") else { return Vec::new() };
    let sql = format!(
        "SELECT g.tgrelid, g.tgname::pg_catalog.text, g.tgargs, g.tgenabled FROM pg_catalog.pg_trigger g
         WHERE g.tgparentid OPERATOR(pg_catalog.=) 0 AND g.tgfoid OPERATOR(pg_catalog.=) {function}"
    );
    let mut found = Vec::new();
    spi::each(&sql, |row| {
        let [Some(table), Some(name), Some(arguments), Some(enabled)] = [0, 1, 2, 3].map(|i| row.datum(i))
        else {
            return;
        };
        let name = encoding::to_utf8_lossy(row.bytes(name)).into_owned();
        let Some((number, event)) = watch::number_and_event(&name) else { return };
        let Some(watch) = watch_of(row.bytes(arguments)) else { return };
        let table = TableOid(table.value() as u32);
        let enabled = matches!(Fires::of(enabled.value() as u8), Fires::Origin | Fires::Always);
        let stored = watch.content == Content::Empty || catalog::stores_column(table, &watch.column);
        found.push(Found { table, trigger: name, number, event, watch, enabled, stored });
    });
    found.sort_by_key(|found: &Found| (found.table.0, found.number, found.event));
    found
}

/// Returns a number that neither a table nor one of its partitions has in the name of a watch's
/// trigger. With a number that a partition has, the partition's own trigger would be replaced.
pub fn free_number(table: TableOid) -> u32 {
    let rows: Vec<TriggerRow> =
        catalog::with_partitions(table).into_iter().flat_map(catalog::triggers_of).collect();
    watch::free_number(rows.iter().map(|row| row.name.as_str()))
}

/// Returns the names of the events in an error message.
pub fn events() -> String {
    EVENTS.join(", ")
}
