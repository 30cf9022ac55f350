//! `<prefix>.oban_jobs` as the catalogs have it. The functions read catalogs only, and take no lock
//! on the table.

use crate::logic::ids::TableOid;
use crate::logic::jobs::{self, Fault, WrongColumns};
use crate::pg::{shape, spi};

/// Returns what distinguishes a table from Oban's table of jobs since Oban's migration 11. `None`:
/// nothing does.
pub fn fault(table: TableOid) -> Option<Fault> {
    const COMMENT: &str = "SELECT pg_catalog.obj_description($1::pg_catalog.oid, 'pg_class')";
    let comment = spi::look(COMMENT, &table.to_string());
    jobs::fault(comment.first().map(String::as_str), &shape::columns_of_jobs(table))
}

/// Returns the columns that keep the triggers from finding out which queues to wake. `None`:
/// there are no such columns.
pub fn unreadable(table: TableOid) -> Option<WrongColumns> {
    jobs::unreadable(&shape::columns_of_jobs(table))
}
