//! The statements of a stager, and what a table has to be for them. They run in the stager, as the
//! table's owner, and run what the table carries: its triggers, constraints and policies.
//!
//! Every name and every operator in the statements is qualified. The owner of the database or the
//! owner of the table sets the session's search_path.

use std::cell::Cell;

use pgrx::pg_sys;

use super::{prefixes, staged};
use crate::logic::ids::{RoleOid, SchemaOid, TableOid};
use crate::logic::staging::Seen;
use crate::logic::staging::alarm::NEVER;
use crate::logic::staging::batching::RowVersion;
use crate::logic::staging::pass::{Batch, Pass};
use crate::logic::times::WallTime;
use crate::pg::statement::{self, NotRun, Planned};
use crate::pg::tuple::{self, Column, Tuple};
use crate::pg::{acl, catalog, catalog_watch, session, spi};

/// The condition of the index that finds what is due: the states from which jobs become available.
/// The statements use the same words, so that Postgres finds the index.
pub const STAGEABLE: &str = "state OPERATOR(pg_catalog.=) ANY ('{scheduled,retryable}')";

/// Why a table is not staged that the keeper has taken for one.
pub const REPLACED: &str = "its table was replaced or altered, or does not stage any more";

/// How far a transaction of a stager has come. If it raises, this says whose code did that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The table is not locked yet.
    Opening,
    /// The name of the table is looked up.
    Naming,
    /// The table's code may run.
    Running,
}

/// A table of jobs that is locked for this transaction, and fit to be staged.
pub struct StagedJobs<'a> {
    table: TableOid,
    /// The qualified name. `Planned::of` tests that it means this table.
    name: String,
    step: &'a Cell<Step>,
}

impl<'a> StagedJobs<'a> {
    /// Locks the table of jobs of a schema by its oid, until the transaction ends. Waits up to
    /// lock_timeout, and then raises 55P03. `Err` says why the table is not staged.
    pub fn open(
        table: TableOid,
        schema: SchemaOid,
        owner: RoleOid,
        was_superuser: bool,
        step: &'a Cell<Step>,
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
        Ok(Self { table, name: spi::qualified(&name, staged::TABLE), step })
    }

    /// Makes up to `limit` rows available that are due, from the position of the pass on. Passes over
    /// rows that another transaction has locked, and over those that are set aside.
    pub fn stage(&self, pass: &Pass, limit: u64, aside: &[RowVersion]) -> Result<Batch, NotRun> {
        self.update(&due(pass, limit, aside), &[pass.now, pass.from])
    }

    /// Locks the row that a batch of one row makes available. Returns its version and its due time;
    /// `None` if no row is due.
    pub fn first(&self, pass: &Pass, aside: &[RowVersion]) -> Result<Option<(RowVersion, WallTime)>, NotRun> {
        let sql = format!(
            "SELECT {VERSION}, j.scheduled_at FROM {} j WHERE {} FOR NO KEY UPDATE SKIP LOCKED",
            self.name,
            due(pass, 1, aside)
        );
        let mut found = None;
        self.run(&sql, &[pass.now, pass.from], |row| {
            let due = row.i64(Column::of_result(2, pg_sys::TIMESTAMPOID)).map(WallTime);
            found = version(row).zip(due);
        })?;
        Ok(found)
    }

    /// Returns those of some row versions that the table has.
    pub fn present(&self, versions: Vec<RowVersion>) -> Result<Vec<RowVersion>, NotRun> {
        if versions.is_empty() {
            return Ok(versions);
        }
        let places: Vec<String> =
            versions.iter().filter_map(|v| Some(format!("\"{}\"", place(v)?))).collect();
        let sql = format!(
            "SELECT {VERSION} FROM {} j WHERE j.ctid OPERATOR(pg_catalog.=) ANY ('{{{}}}') AND {}",
            self.name,
            places.join(","),
            is_any(&versions)
        );
        let mut found = Vec::new();
        self.run(&sql, &[], |row| found.extend(version(row)))?;
        Ok(found)
    }

    /// Makes one row available, if it is due at `now`, has this version still, and is not locked.
    pub fn stage_row(&self, row: &RowVersion, now: WallTime) -> Result<Batch, NotRun> {
        let Some(place) = place(row) else { return Ok(Batch::NOTHING) };
        let which = format!(
            "j.ctid OPERATOR(pg_catalog.=) '{place}' AND {}
             AND j.{STAGEABLE} AND j.scheduled_at OPERATOR(pg_catalog.<=) $1",
            is_any(std::slice::from_ref(row))
        );
        self.update(&which, &[now])
    }

    /// Makes those rows available of which `which` holds. ctid and tableoid find a row without its
    /// key, whose type may be any. The rows are locked, so they do not move before they are updated.
    fn update(&self, which: &str, parameters: &[WallTime]) -> Result<Batch, NotRun> {
        let sql = format!(
            "WITH due AS MATERIALIZED (
                SELECT j.ctid AS place, j.tableoid AS of, j.scheduled_at AS at FROM {table} j
                WHERE {which} FOR NO KEY UPDATE SKIP LOCKED
             ), staged AS (
                UPDATE {table} AS j SET state = 'available' FROM due
                WHERE j.ctid OPERATOR(pg_catalog.=) due.place AND j.tableoid OPERATOR(pg_catalog.=) due.of
                RETURNING true
             )
             SELECT pg_catalog.count(*), (SELECT pg_catalog.count(*) FROM staged), pg_catalog.max(due.at)
             FROM due",
            table = self.name
        );
        let mut batch = Batch::NOTHING;
        self.run(&sql, parameters, |row| {
            let count = |column| row.i64(Column::of_result(column, pg_sys::INT8OID)).unwrap_or(0) as u64;
            let last = row.i64(Column::of_result(3, pg_sys::TIMESTAMPOID)).map_or(NEVER, WallTime);
            batch = Batch { chosen: count(1), staged: count(2), last };
        })?;
        Ok(batch)
    }

    /// Returns what is left to stage after a pass, from the due time `from` on. Rows that are set aside
    /// do not count.
    pub fn seen(&self, from: WallTime, now: WallTime, aside: &[RowVersion]) -> Result<Seen, NotRun> {
        let rows = |at| {
            let but = but_for(aside);
            format!("{STAGEABLE} AND j.scheduled_at OPERATOR(pg_catalog.{at}) $1{but}")
        };
        let first = self.earliest(&rows(">="), from)?;
        let left = first.is_some_and(|first| first <= now);
        let next = if left { self.earliest(&rows(">"), now)? } else { first };
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
        self.run(&sql, &[now], |row| {
            found = row.i64(Column::of_result(1, pg_sys::TIMESTAMPOID)).map(WallTime);
        })?;
        Ok(found)
    }

    /// Plans a statement about the table and runs it.
    fn run(&self, sql: &str, parameters: &[WallTime], each: impl FnMut(&Tuple)) -> Result<(), NotRun> {
        self.step.set(Step::Naming);
        let planned = Planned::of(sql, self.table, parameters.len(), || self.step.set(Step::Running))?;
        planned.run(parameters, each);
        Ok(())
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
        self.run(&sql, &[after, upto], |row| {
            let queue = Column::of_result(1, pg_sys::TEXTOID);
            row.with_short_text(queue, crate::logic::wire::MAX_PAYLOAD, &mut each);
        })?;
        Ok(())
    }
}

/// Returns the condition, order and limit of the rows that a batch takes on. $1 is the time by which
/// they are due, and $2 the due time from which on.
fn due(pass: &Pass, limit: u64, aside: &[RowVersion]) -> String {
    // Without the OFFSET the planner has one node less.
    let offset = if pass.skip > 0 { format!(" OFFSET {}", pass.skip) } else { String::new() };
    format!(
        "j.{STAGEABLE} AND j.scheduled_at OPERATOR(pg_catalog.<=) $1
         AND j.scheduled_at OPERATOR(pg_catalog.>=) $2{}
         ORDER BY j.scheduled_at LIMIT {limit}{offset}",
        but_for(aside)
    )
}

/// The version of a row (`RowVersion`), as a text.
const VERSION: &str =
    "pg_catalog.concat_ws(' ', j.tableoid, j.ctid, j.xmin, pg_catalog.pg_relation_filenode(j.tableoid))";

/// Returns the version in the first column of a result.
fn version(row: &Tuple) -> Option<RowVersion> {
    RowVersion::new(&row.short_text(Column::of_result(1, pg_sys::TEXTOID), 100)?)
}

/// Returns the ctid of a row version. `None`: it is no version.
fn place(version: &RowVersion) -> Option<&str> {
    version.as_str().split(' ').nth(1)
}

/// Returns the condition that a row is one of these versions. A version has digits, spaces and ( , ).
fn is_any(versions: &[RowVersion]) -> String {
    let quoted: Vec<String> = versions.iter().map(|version| format!("\"{}\"", version.as_str())).collect();
    format!("{VERSION} OPERATOR(pg_catalog.=) ANY ('{{{}}}')", quoted.join(","))
}

/// Returns a condition, after AND, that leaves these rows out; an empty text for none.
fn but_for(rows: &[RowVersion]) -> String {
    if rows.is_empty() { String::new() } else { format!(" AND NOT {}", is_any(rows)) }
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
