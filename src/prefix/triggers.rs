//! The triggers that `oban_install` attaches to tables, as the catalogs have them. A table is given
//! by its oid, and a trigger is found by its name and function. The functions read only catalogs.

use super::extension;
use crate::error::Error;
use crate::logic::ids::TableOid;
use crate::pg::ddl::{Event, Timing, Trigger};
use crate::pg::spi;

/// The trigger on oban_jobs and on each partition.
pub const ON_JOBS: Trigger = Trigger {
    name: c"obanrs_jobs_insert",
    timing: Timing::After,
    events: &[Event::Insert],
    for_each_row: false,
    new_rows: Some(c"obanrs_inserted"),
};

/// The triggers on oban_peers.
pub const ON_PEERS: [Trigger; 3] = [
    Trigger {
        name: c"obanrs_peers_guard",
        timing: Timing::Before,
        events: &[Event::Insert, Event::Update],
        for_each_row: true,
        new_rows: None,
    },
    Trigger {
        name: c"obanrs_peers_rows",
        timing: Timing::After,
        events: &[Event::Insert, Event::Update, Event::Delete],
        for_each_row: true,
        new_rows: None,
    },
    Trigger {
        name: c"obanrs_peers_end",
        timing: Timing::After,
        events: &[Event::Insert, Event::Truncate],
        for_each_row: false,
        new_rows: None,
    },
];

/// The functions that the triggers call. They belong to the version of the extension that this
/// database has.
#[derive(Clone, Copy)]
pub struct Functions {
    pub jobs: u32,
    /// `None` in an extension older than 0.4.0.
    pub peers: Option<u32>,
}

impl Functions {
    /// Returns the functions. `Err`: this database does not have the extension.
    pub fn find() -> Result<Self, Error> {
        let jobs = extension::trigger_function("obanrs_jobs_insert").ok_or(Error::NoExtension)?;
        Ok(Self { jobs, peers: extension::trigger_function("obanrs_peers") })
    }

    /// Returns the tables among oban_jobs and its partitions that lack the trigger. Partitions
    /// count, because an INSERT into a partition fires only the partition's own triggers. Foreign
    /// tables do not count, because they can't have such a trigger.
    pub fn job_tables_without_trigger(&self, jobs: TableOid) -> Vec<TableOid> {
        self.of_job_tables("t.oid", "g.oid IS NULL", jobs).into_iter().map(TableOid).collect()
    }

    /// Returns the tables among oban_jobs and its partitions that have the trigger.
    pub fn job_tables_with_trigger(&self, jobs: TableOid) -> Vec<TableOid> {
        self.of_job_tables("t.oid", "g.oid IS NOT NULL", jobs).into_iter().map(TableOid).collect()
    }

    /// Returns the oid of the trigger on one table of jobs. `None`: the table has no such trigger.
    pub fn on_jobs(&self, table: TableOid) -> Option<u32> {
        self.of_job_tables("g.oid", &format!("g.tgrelid = {table}"), table).pop()
    }

    /// Returns the column `what` for each table among oban_jobs and its partitions for which
    /// `condition` holds. (pg_partition_tree would lock the tables.)
    fn of_job_tables(&self, what: &str, condition: &str, jobs: TableOid) -> Vec<u32> {
        let sql = format!(
            "WITH RECURSIVE tables AS (
                SELECT c.oid, c.relkind FROM pg_class c WHERE c.oid = $1::oid
                UNION
                SELECT c.oid, c.relkind FROM tables t
                JOIN pg_inherits i ON i.inhparent = t.oid AND t.relkind = 'p'
                JOIN pg_class c ON c.oid = i.inhrelid
            )
            SELECT {what}::text FROM tables t
            LEFT JOIN pg_trigger g
                ON g.tgrelid = t.oid AND g.tgname = 'obanrs_jobs_insert' AND g.tgfoid = {}
            WHERE t.relkind IN ('r', 'p') AND {condition}
            ORDER BY t.oid",
            self.jobs
        );
        selected_oids(&sql, jobs)
    }

    /// Returns the oids of the extension's triggers on a table of leaders.
    pub fn on_peers(&self, peers: TableOid) -> Vec<u32> {
        let Some(function) = self.peers else { return Vec::new() };
        let names = ON_PEERS.map(|trigger| format!("'{}'", trigger.name.to_string_lossy()));
        let sql = format!(
            "SELECT g.oid::text FROM pg_trigger g
             WHERE g.tgrelid = $1::oid AND g.tgfoid = {function} AND g.tgname IN ({})",
            names.join(", ")
        );
        selected_oids(&sql, peers)
    }

    /// Returns whether a table of leaders has all the triggers that this version of the extension
    /// has.
    pub fn guard(&self, peers: TableOid) -> bool {
        self.peers.is_none() || self.on_peers(peers).len() == ON_PEERS.len()
    }
}

/// Returns whether a table inherits from another table, or another table inherits from it.
pub fn is_inherited(table: TableOid) -> bool {
    let sql = "SELECT i.inhrelid::text FROM pg_inherits i WHERE $1::oid IN (i.inhparent, i.inhrelid)";
    !selected_oids(sql, table).is_empty()
}

fn selected_oids(sql: &str, of: TableOid) -> Vec<u32> {
    spi::look(sql, &of.to_string()).iter().filter_map(|oid| oid.parse().ok()).collect()
}
