//! The triggers that `oban_install` attaches to tables, as the catalogs have them. A table is given
//! by its oid, and a trigger is found by its name and function. The functions read only catalogs.

use super::extension;
use crate::error::Error;
use crate::logic::ids::TableOid;
use crate::logic::staging::STAGE;
use crate::pg::catalog::{self, TriggerRow};
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

/// As `wanted`, for a trigger that fires in the sessions `now` on a partition, and in the sessions
/// `whole` on the partitioned table. What is disabled on the partition alone stays disabled. `whole`
/// is `None` if the partitioned table has no such trigger.
pub fn wanted_on_partition(on_replica: Option<bool>, whole: Option<Fires>, now: Fires) -> Fires {
    let is_off_here = now == Fires::Never && whole != Some(Fires::Never);
    if is_off_here { Fires::Never } else { wanted(on_replica, Some(now)) }
}

/// A trigger of a partition.
pub struct OnPartition {
    pub partition: TableOid,
    pub fires: Fires,
    /// Whether the partition has it from the partitioned table.
    pub is_copy: bool,
}

impl OnPartition {
    /// Returns the triggers of this name and function on all partitions of a table, as committed
    /// now. To change one, or to create another, takes a lock on its partition that `lock_for_triggers`
    /// conflicts with.
    pub fn named(table: TableOid, function: u32, name: &[u8]) -> Vec<Self> {
        let of = |partition: TableOid| {
            let rows = catalog::triggers_of(partition).into_iter();
            let is_it = move |row: &TriggerRow| row.function == function && row.name.as_bytes() == name;
            let described = move |row: TriggerRow| Self {
                partition,
                fires: Fires::of(row.enabled),
                is_copy: !row.is_own,
            };
            rows.filter(is_it).map(described)
        };
        catalog::with_partitions(table).into_iter().skip(1).flat_map(of).collect()
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
            there.iter().any(|t| fits(&t) && self.fire_on_partitions(table, t, on_replica))
        })
    }

    /// Returns whether a trigger fires on the partitions of its table as the call of `oban_install`
    /// wants.
    fn fire_on_partitions(&self, table: TableOid, whole: &JobsTrigger, on_replica: Option<bool>) -> bool {
        let is_as_wanted =
            |t: &OnPartition| t.fires == wanted_on_partition(on_replica, Some(whole.fires), t.fires);
        on_replica.is_none()
            || OnPartition::named(table, self.jobs, whole.name.as_bytes()).iter().all(is_as_wanted)
    }

    /// Returns the partitions of a table of jobs on which a trigger is to fire in other sessions than
    /// in `fires`, which is for the table itself. `whole`: as in `wanted_on_partition`. The caller has
    /// locked the partitions.
    pub fn differing_partitions(
        &self,
        table: TableOid,
        trigger: &Trigger<'_>,
        on_replica: Option<bool>,
        whole: Option<Fires>,
        fires: Fires,
    ) -> Vec<(TableOid, Fires)> {
        let there = OnPartition::named(table, self.jobs, trigger.name.to_bytes()).into_iter();
        // A trigger of a version before 0.9.0 is each partition's own. What counts of it is that it
        // was disabled: the partitioned table has decided about all rows that came by it.
        let counts = |t: &OnPartition| t.is_copy || t.fires == Fires::Never;
        there
            .filter(counts)
            .map(|t| (t.partition, wanted_on_partition(on_replica, whole, t.fires)))
            .filter(|(_, wanted)| *wanted != fires)
            .collect()
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
