//! The triggers that `oban_install` attaches to tables, as the catalogs have them. A table is given
//! by its oid, and a trigger is found by its name and function. The functions read only catalogs.

use super::extension;
use crate::error::Error;
use crate::logic::ids::TableOid;
use crate::logic::staging::STAGE;
use crate::pg::ddl::{Event, Fires, Timing, Trigger};
use crate::pg::spi;

/// The triggers on oban_jobs. Postgres gives them to each partition, also to later ones.
pub const ON_JOBS: [Trigger<'static>; 2] = [
    Trigger {
        name: c"obanrs_jobs_insert",
        timing: Timing::After,
        events: &[Event::Insert],
        for_each_row: true,
    },
    // Of any UPDATE: with UPDATE OF state, the trigger would not fire if a BEFORE trigger of the
    // table sets the state.
    Trigger {
        name: c"obanrs_jobs_update",
        timing: Timing::After,
        events: &[Event::Update],
        for_each_row: true,
    },
];

/// The triggers on oban_peers.
pub const ON_PEERS: [Trigger<'static>; 3] = [
    Trigger {
        name: c"obanrs_peers_guard",
        timing: Timing::Before,
        events: &[Event::Insert, Event::Update],
        for_each_row: true,
    },
    Trigger {
        name: c"obanrs_peers_rows",
        timing: Timing::After,
        events: &[Event::Insert, Event::Update, Event::Delete],
        for_each_row: true,
    },
    Trigger {
        name: c"obanrs_peers_end",
        timing: Timing::After,
        events: &[Event::Insert, Event::Truncate],
        for_each_row: false,
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

/// A trigger of the extension on a table of jobs, as pg_trigger has it.
pub struct JobsTrigger {
    pub oid: u32,
    name: String,
    pub fires: Fires,
    /// False: a trigger of a version before 0.9.0, which fires for each statement.
    for_each_row: bool,
    /// Whether the trigger has the argument `STAGE`.
    pub stages: bool,
}

impl JobsTrigger {
    /// Returns the trigger that a row of `Functions::on_jobs` describes.
    fn of(row: &str) -> Option<Self> {
        let mut fields = row.split(' ');
        Some(Self {
            oid: fields.next()?.parse().ok()?,
            name: fields.next()?.to_owned(),
            fires: Fires::of(*fields.next()?.as_bytes().first()?),
            for_each_row: fields.next()? == "1",
            stages: fields.next()? == "1",
        })
    }

    /// Returns whether this is the trigger of that name.
    pub fn is(&self, trigger: &Trigger<'_>) -> bool {
        self.name.as_bytes() == trigger.name.to_bytes()
    }

    /// Returns whether the trigger fires in the sessions in which `oban_install` is asked to have
    /// it fire.
    fn fires_as(&self, on_replica: Option<bool>) -> bool {
        self.fires == wanted(on_replica, Some(self.fires))
    }
}

/// Returns in which sessions a trigger is to fire that fires in the sessions `now`, or is missing.
/// A trigger that an administrator has disabled stays disabled unless `on_replica` is true.
pub fn wanted(on_replica: Option<bool>, now: Option<Fires>) -> Fires {
    match (on_replica, now) {
        (Some(true), _) => Fires::Always,
        (Some(false), Some(Fires::Always | Fires::Replica)) | (_, None) => Fires::Origin,
        (_, Some(now)) => now,
    }
}

impl Functions {
    /// Returns the functions. `Err`: this database does not have the extension.
    pub fn find() -> Result<Self, Error> {
        let jobs = extension::trigger_function("obanrs_jobs_insert").ok_or(Error::NoExtension)?;
        Ok(Self { jobs, peers: extension::trigger_function("obanrs_peers") })
    }

    /// Returns the extension's triggers on one table of jobs, apart from those that a partition has
    /// from its partitioned table.
    pub fn on_jobs(&self, table: TableOid) -> Vec<JobsTrigger> {
        let sql = format!(
            "SELECT concat_ws(' ', g.oid, g.tgname, g.tgenabled, (g.tgtype & 1)::text,
                (g.tgargs = convert_to('{STAGE}', 'SQL_ASCII') || decode('00', 'hex'))::int::text)
             FROM pg_trigger g
             WHERE g.tgrelid = $1::oid AND {} AND g.tgparentid = 0",
            self.is_on_jobs()
        );
        spi::look(&sql, &table.to_string()).iter().filter_map(|row| JobsTrigger::of(row)).collect()
    }

    /// Returns whether a table of jobs has all the triggers that this version of the extension has.
    /// `on_replica`: whether they have to fire where changes are replicated, too. `stage`: whether
    /// they have to have the argument `STAGE`. `None`: either is fine.
    pub fn are_on_jobs(&self, table: TableOid, on_replica: Option<bool>, stage: Option<bool>) -> bool {
        let there = self.on_jobs(table);
        let stage = stage.unwrap_or_else(|| there.iter().any(|t| t.stages)); // both, or neither
        ON_JOBS.iter().all(|trigger| {
            let is_it = |t: &&JobsTrigger| t.is(trigger) && t.for_each_row && t.stages == stage;
            let fits = |t: &&JobsTrigger| is_it(t) && t.fires_as(on_replica);
            there.iter().any(|t| fits(&t))
        })
    }

    /// Returns oban_jobs and its partitions. Foreign tables do not count. (pg_partition_tree would
    /// lock the tables.)
    pub fn job_tables(jobs: TableOid) -> Vec<TableOid> {
        Self::selected_job_tables("true", jobs)
    }

    /// Returns the tables among oban_jobs and its partitions that have such a trigger of their own.
    /// Versions before 0.9.0 made one on each partition.
    pub fn job_tables_with_trigger(&self, jobs: TableOid) -> Vec<TableOid> {
        let has_own = format!(
            "EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND {} AND g.tgparentid = 0)",
            self.is_on_jobs()
        );
        Self::selected_job_tables(&has_own, jobs)
    }

    fn selected_job_tables(condition: &str, jobs: TableOid) -> Vec<TableOid> {
        let sql = format!(
            "WITH RECURSIVE tables AS (
                SELECT c.oid, c.relkind FROM pg_class c WHERE c.oid = $1::oid
                UNION
                SELECT c.oid, c.relkind FROM tables t
                JOIN pg_inherits i ON i.inhparent = t.oid AND t.relkind = 'p'
                JOIN pg_class c ON c.oid = i.inhrelid
            )
            SELECT t.oid::text FROM tables t WHERE t.relkind IN ('r', 'p') AND {condition} ORDER BY t.oid"
        );
        selected_oids(&sql, jobs).into_iter().map(TableOid).collect()
    }

    /// Returns the SQL condition that the row g of pg_trigger is one of `ON_JOBS`.
    fn is_on_jobs(&self) -> String {
        let names = ON_JOBS.map(|trigger| format!("'{}'", trigger.name.to_string_lossy()));
        format!("g.tgfoid = {} AND g.tgname IN ({})", self.jobs, names.join(", "))
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
