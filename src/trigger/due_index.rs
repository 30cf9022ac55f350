//! The index on oban_jobs that finds what is due, for a prefix that stages.
//!
//! SQL creates the index by the name of the schema, which its owner can give to another schema at
//! any moment. So afterwards the index has to be on the locked table. If it is not, an ERROR undoes
//! what was created elsewhere. (Postgres builds an index with the rights of the owner of the table.)

use super::install::Prefix;
use crate::error::Error;
use crate::logic::ids::TableOid;
use crate::logic::staging::INDEX;
use crate::pg::{ddl, spi};
use crate::prefix::staging::STAGEABLE;

/// The largest table on which `oban_install` builds the index, in bytes. Nobody can write to the
/// table meanwhile: with 64 MB for a fraction of a second.
const LARGE: i64 = 64 << 20;

/// Returns the oid of the index of a table of jobs. `None`: there is no such index, it is not valid,
/// or it is an index of that name on something else.
pub fn find(jobs: TableOid) -> Option<u32> {
    let sql = format!(
        "SELECT i.indexrelid::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = 'scheduled_at'
         WHERE i.indrelid = $1::oid AND x.relname = '{INDEX}' AND i.indisvalid AND i.indkey[0] = a.attnum
           AND pg_get_expr(i.indpred, i.indrelid) LIKE '%state%scheduled,retryable%'"
    );
    spi::look(&sql, &jobs.to_string()).pop()?.parse().ok()
}

/// Creates the index if it is missing. The caller has locked the table. `Err`: the table is so large
/// that nobody could write to it for long (55000), its name is taken (22023), or the schema was
/// renamed meanwhile (40001).
pub fn create(prefix: &Prefix<'_>, jobs: TableOid) -> Result<(), Error> {
    if find(jobs).is_some() {
        return Ok(());
    }
    if prefix.table(INDEX).is_some() {
        return Err(Error::bad(
            format!(
                "prefix \"{}\" has no index of due jobs, but already something named {INDEX}",
                prefix.name
            ),
            "Drop it: it is another relation, or an index that CREATE INDEX CONCURRENTLY has left invalid.",
        ));
    }
    let table = spi::qualified(prefix.name, "oban_jobs");
    let definition = format!("{INDEX} ON {table} (scheduled_at) WHERE {STAGEABLE}");
    if size(jobs) > LARGE {
        return Err(Error::TooLargeForIndex { table, definition });
    }
    spi::run(&format!("CREATE INDEX {definition}"));
    if find(jobs).is_some() { Ok(()) } else { Err(prefix.changed()) }
}

/// Returns the size of a table together with the partitions, in bytes.
fn size(jobs: TableOid) -> i64 {
    let sql = "WITH RECURSIVE tables AS (
            SELECT $1::oid AS oid
            UNION
            SELECT i.inhrelid FROM tables t JOIN pg_inherits i ON i.inhparent = t.oid
         )
         SELECT sum(pg_relation_size(oid))::text FROM tables";
    spi::look(sql, &jobs.to_string()).pop().and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// Drops the index, if it is there. The caller has locked the table.
pub fn drop(jobs: TableOid) {
    if let Some(index) = find(jobs) {
        ddl::drop_index(index);
    }
}
