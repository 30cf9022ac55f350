//! Which prefixes stage, as committed now. The keeper asks this: the functions read catalogs by
//! themselves, without SQL, and take no lock on a table.
//!
//! A prefix stages if its trigger has the argument, and its table has the index of due jobs. Any
//! role with the right TRIGGER on the table can give a trigger the argument, but only the owner of
//! the table can create an index on it. So no other role turns staging on.

use super::extension;
use crate::logic::ids::TableOid;
use crate::logic::staging::{INDEX, STAGE};
use crate::pg::catalog::{self, NamedJobs};

/// The name of a table of jobs.
pub const TABLE: &str = "oban_jobs";

/// The name of the trigger whose argument says whether the prefix stages.
const TRIGGER: &str = "obanrs_jobs_insert";

/// Returns the tables of jobs that are staged.
pub fn staged_tables() -> Vec<NamedJobs> {
    let Some(function) = extension::jobs_function() else { return Vec::new() };
    let mut tables = catalog::jobs_tables_named(TABLE);
    tables.retain(|table| stages(table.oid, function));
    tables
}

/// Returns whether a table of jobs is staged.
pub fn is_staged(table: TableOid) -> bool {
    extension::jobs_function().is_some_and(|function| stages(table, function))
}

fn stages(table: TableOid, function: u32) -> bool {
    catalog::has_trigger_with_argument(table, TRIGGER, function, STAGE) && catalog::has_index(table, INDEX)
}
