//! `<prefix>.oban_jobs` as the catalogs have it. Reads catalogs only, and takes no lock on the table.

use crate::logic::jobs::{self, Fault, WrongColumns};
use crate::pg::{shape, spi};

/// What keeps a table from being one of Oban's since its migration 11. `None`: nothing does.
pub fn fault(table: u32) -> Option<Fault> {
    const COMMENT: &str = "SELECT pg_catalog.obj_description($1::pg_catalog.oid, 'pg_class')";
    let comment = spi::look(COMMENT, &table.to_string());
    jobs::fault(comment.first().map(String::as_str), &shape::columns_of_jobs(table))
}

/// The columns that keep the insert trigger from telling what to wake. `None`: there is none.
pub fn unreadable(table: u32) -> Option<WrongColumns> {
    jobs::unreadable(&shape::columns_of_jobs(table))
}
