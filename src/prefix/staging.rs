//! The statements of a stager, and what a table has to be for them. They run in the stager, as the
//! table's owner, and run what the table carries: its triggers, constraints and policies.
//!
//! Every name and every operator in the statements is qualified. The owner of the database or the
//! owner of the table sets the session's search_path.

use pgrx::pg_sys;

use super::{prefixes, staged};
use crate::logic::ids::{RoleOid, SchemaOid, TableOid};
use crate::logic::staging::alarm::NEVER;
use crate::logic::staging::{BATCH, Seen};
use crate::logic::times::WallTime;
use crate::pg::statement::{self, NotRun};
use crate::pg::tuple::{self, Column, Tuple};
use crate::pg::{acl, catalog, catalog_watch, session, spi};

/// The condition of the index that finds what is due: the states from which jobs become available.
/// The statements use the same words, so that Postgres finds the index.
pub const STAGEABLE: &str = "state OPERATOR(pg_catalog.=) ANY ('{scheduled,retryable}')";

/// Why a table is not staged that the keeper has taken for one.
const REPLACED: &str = "its table was replaced or altered, or does not stage any more";

/// A table of jobs that is locked for this transaction, and fit to be staged.
pub struct StagedJobs {
    table: TableOid,
    /// The qualified name. `statement::run` tests that it means this table.
    name: String,
}

impl StagedJobs {
    /// Locks the table of jobs of a schema by its oid, until the transaction ends. Waits up to
    /// lock_timeout, and then raises 55P03. `Err` says why the table is not staged.
    pub fn open(
        table: TableOid,
        schema: SchemaOid,
        owner: RoleOid,
        was_superuser: bool,
    ) -> Result<Self, String> {
        statement::lock_to_write(table);
        // A session keeps the rights of a superuser in part after ALTER ROLE ... NOSUPERUSER.
        if acl::is_superuser_role(owner) != was_superuser {
            return Err("its owner has become a superuser, or is none any more".into());
        }
        let tables = statement::lock_all_to_write(table);
        // Of a change that was committed before it took the locks, this process knows by now.
        if catalog_watch::has_changed(&tables) {
            catalog_watch::watch(&tables);
            if !staged::is_staged(table) {
                return Err(REPLACED.into());
            }
            misfit(table).map_or(Ok(()), Err)?;
            if let Some(code) = acl::is_powerful_role(owner).then(|| foreign_code(&tables)).flatten() {
                return Err(format!(
                    "its owner is a superuser or can become one, and an UPDATE of the table may run code \
                     of another role's: {code}"
                ));
            }
        }
        let is_same = catalog::is_named(table, schema, staged::TABLE) && catalog::owner(table) == Some(owner);
        let Some(name) = catalog::schema_name(schema).filter(|_| is_same) else {
            return Err(REPLACED.into());
        };
        // ALTER DATABASE counts at once. Another setting counts when the next stager begins.
        if prefixes::database_read_only().unwrap_or_else(session::is_read_only_by_default) {
            return Err("its owner's transactions are read-only by default \
                        (default_transaction_read_only)"
                .into());
        }
        Ok(Self { table, name: spi::qualified(&name, staged::TABLE) })
    }

    /// Makes up to `BATCH` rows available that are due at `now`. Rows that another transaction has
    /// locked are passed over. Returns how many were made available.
    pub fn stage(&self, now: WallTime) -> Result<u64, NotRun> {
        // ctid and tableoid find a row without its key, whose type may be any. The rows are locked,
        // so they do not move before they are updated.
        let sql = format!(
            "WITH due AS MATERIALIZED (
                SELECT j.ctid AS place, j.tableoid AS of FROM {table} j
                WHERE j.{STAGEABLE} AND j.scheduled_at OPERATOR(pg_catalog.<=) $1
                ORDER BY j.scheduled_at LIMIT {BATCH} FOR NO KEY UPDATE SKIP LOCKED
             )
             UPDATE {table} AS j SET state = 'available' FROM due
             WHERE j.ctid OPERATOR(pg_catalog.=) due.place AND j.tableoid OPERATOR(pg_catalog.=) due.of",
            table = self.name
        );
        statement::run(&sql, self.table, &[now], |_| ())
    }

    /// Returns what is left to stage, after `stage`.
    pub fn seen(&self, now: WallTime) -> Result<Seen, NotRun> {
        let from = |at| format!("{STAGEABLE} AND j.scheduled_at OPERATOR(pg_catalog.{at}) $1");
        let first = self.earliest(&from(">="), WallTime(i64::MIN))?;
        let left = first.is_some_and(|first| first <= now);
        let next = if left { self.earliest(&from(">"), now)? } else { first };
        Ok(Seen { next: next.unwrap_or(NEVER), left })
    }

    /// Returns the next due time after `now` of a row that is available already; `NEVER` for none.
    pub fn next_later(&self, now: WallTime) -> Result<WallTime, NotRun> {
        const LATER: &str = "state OPERATOR(pg_catalog.=) 'available' \
                             AND j.scheduled_at OPERATOR(pg_catalog.>) $1";
        Ok(self.earliest(LATER, now)?.unwrap_or(NEVER))
    }

    /// Returns the earliest due time of the rows for which `condition` holds. `None`: there is no
    /// such row.
    fn earliest(&self, condition: &str, now: WallTime) -> Result<Option<WallTime>, NotRun> {
        let sql = format!(
            "SELECT j.scheduled_at FROM {} j WHERE j.{condition} ORDER BY j.scheduled_at LIMIT 1",
            self.name
        );
        let mut found = None;
        statement::run(&sql, self.table, &[now], |row| {
            found = row.i64(Column::of_result(1, pg_sys::TIMESTAMPOID)).map(WallTime);
        })?;
        Ok(found)
    }

    /// Calls `each` with the queue of each row that is available and has become due after `after`,
    /// up to `upto`. Each queue comes once, in the server's encoding.
    pub fn queues_due(
        &self,
        after: WallTime,
        upto: WallTime,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NotRun> {
        let sql = format!(
            "SELECT DISTINCT j.queue FROM {} j WHERE j.state OPERATOR(pg_catalog.=) 'available'
                AND j.scheduled_at OPERATOR(pg_catalog.>) $1 AND j.scheduled_at OPERATOR(pg_catalog.<=) $2",
            self.name
        );
        statement::run(&sql, self.table, &[after, upto], |row: &Tuple| {
            let queue = Column::of_result(1, pg_sys::TEXTOID);
            row.with_short_text(queue, crate::logic::wire::MAX_PAYLOAD, &mut each);
        })?;
        Ok(())
    }
}

/// Returns why rows of a table can't be staged. `None`: they can.
pub fn misfit(table: TableOid) -> Option<String> {
    let kind = |name: &str| catalog::column_type(table, name);
    if kind("scheduled_at") != Some(pg_sys::TIMESTAMPOID) {
        return Some("its column scheduled_at is no timestamp without time zone".into());
    }
    let label = |kind, label| tuple::enum_label(kind, label).is_some();
    let labels = [c"scheduled", c"retryable", c"available"];
    let has_states = |kind| tuple::is_text(kind) || labels.iter().all(|wanted| label(kind, wanted));
    if !kind("state").is_some_and(has_states) {
        return Some("its column state has not the states scheduled, retryable and available".into());
    }
    if !kind("queue").is_some_and(tuple::is_text) {
        return Some("its column queue is no text".into());
    }
    None
}

/// Returns what an UPDATE of these tables would run of a role that is no superuser: a function, or a
/// table of such a role, which can add any code. `None`: nothing. The tables are locked, so none of
/// them gets other triggers, constraints, indexes or rules meanwhile.
///
/// The functions are those on which triggers, constraints, defaults, indexes, rules, policies and
/// types of the columns depend, directly or through operators and domains. What a function of a
/// superuser's calls is that superuser's choice.
fn foreign_code(tables: &[TableOid]) -> Option<String> {
    let oids: Vec<String> = tables.iter().map(ToString::to_string).collect();
    spi::look(FOREIGN_CODE, &format!("{{{}}}", oids.join(","))).pop()
}

const FOREIGN_CODE: &str = include_str!("../../sql/staging/foreign_code.sql");
