//! `oban_check`: what keeps obanrs from working here. Each row is about one thing, and says what to
//! do about it.
//!
//! `oban_check` only reads: settings, shared memory and catalogs. It waits for no lock on a user's
//! table, and gives such a lock back after the look. It shows the prefixes that the caller has any
//! right on, and what the caller lacks there.

use std::collections::BTreeSet;

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::{SpiHeapTupleData, SpiResult};

use crate::config;
use crate::error::Error;
use crate::logic::channel;
use crate::logic::ids::{Process, SchemaOid, TableOid};
use crate::logic::jobs::Fault;
use crate::logic::leadership::plan::Contested;
use crate::logic::lifecycle::{BACKOFF, Kind, Lack, RUNNING, STARTING, WorkerSlot, state_name};
use crate::logic::shape;
use crate::logic::staging::alarm::NEVER;
use crate::logic::staging::slots::StagerSlot;
use crate::logic::text::Text;
use crate::peer::leaders::leaders;
use crate::pg::datum::Shown;
use crate::pg::scan::Locked;
use crate::pg::{acl, catalog, clock, encoding, session, time};
use crate::prefix::peers::{self, Unusable};
use crate::prefix::rights::{self, Right};
use crate::prefix::{jobs, peers_catalog, prefixes, signals, watches};
use crate::shmem::Segment;
use crate::shmem::rings::{self, RingAvailability};

const PREFIXES: &str = include_str!("../sql/health/prefixes.sql");
const DETACHED: &str = include_str!("../sql/health/detached.sql");

type Finding = (String, bool, String);

/// Returns a finding. `Ok`: nothing is to be done. `Err`: the detail says what to do.
fn found(item: impl Into<String>, outcome: Result<String, String>) -> Finding {
    let ok = outcome.is_ok();
    let (Ok(detail) | Err(detail)) = outcome;
    (item.into(), ok, detail)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_check() -> TableIterator<'static, (name!(item, Shown), name!(ok, bool), name!(detail, Shown))> {
    let mut findings = vec![
        found("preload", preload()),
        found("version", version()),
        found("encoding", database_encoding()),
    ];
    let segment = Segment::attached();
    if let Some(segment) = segment {
        findings.push(found("coordinator", coordinator(segment)));
        findings.extend(Kind::ALL.map(|kind| found(kind.name(), worker(segment, kind))));
        findings.push(found("max_worker_processes", worker_slots(segment)));
        findings.push(found("ring", ring()));
        findings.push(found("gossip", gossip(segment)));
    }
    findings.push(found("idle_session_timeout", idle_sessions()));
    findings.push(found("wakeups", wakeups()));
    let (prefixes, used) = (prefixes(), segment.map(used).unwrap_or_default());
    if !prefixes.iter().any(|prefix| prefix.is_meant(&used)) {
        let none = "no schema that this role may use is installed: SELECT oban_install(), or have the owner \
                    of one GRANT USAGE ON SCHEMA to this role";
        findings.push(found("prefix", Err(none.into())));
    }
    findings.extend(prefixes.iter().flat_map(|prefix| prefix.findings(&used)));
    findings.extend(detached());
    findings.extend(watched());
    TableIterator::new(findings.into_iter().map(|(item, ok, detail)| (Shown(item), ok, Shown(detail))))
}

fn preload() -> Result<String, String> {
    if Segment::attached().is_some() {
        Ok("loaded at server start".into())
    } else {
        Err("not loaded at server start, so that there are no members, leaders, gossip and workers, and \
             their views are empty: add obanrs to shared_preload_libraries and restart the server"
            .into())
    }
}

fn version() -> Result<String, String> {
    let library = env!("CARGO_PKG_VERSION");
    // The version is read as it is now, because the transaction's snapshot may be older than the
    // extension.
    let extension =
        crate::pg::spi::look("SELECT extversion::text FROM pg_extension WHERE extname = $1", "obanrs").pop();
    let Some(extension) = extension else {
        return Err("the extension is being dropped from this database".into());
    };
    if extension == library {
        Ok(format!("library and extension are of version {library}"))
    } else {
        Err(format!(
            "the server runs the library of version {library}, the extension in this database is of version \
             {extension}: ALTER EXTENSION obanrs UPDATE, and restart the server if the library was replaced"
        ))
    }
}

fn database_encoding() -> Result<String, String> {
    match setting("SELECT getdatabaseencoding()::text").as_str() {
        "UTF8" => Ok("UTF8".into()),
        other => Err(format!(
            "the database's encoding is {other}: notifications work, but names of members, nodes, queues and \
             prefixes have to be ASCII here, or the database UTF8"
        )),
    }
}

fn coordinator(segment: Segment) -> Result<String, String> {
    match segment.coordinator() {
        _ if session::in_recovery() => Ok("none during recovery: it starts with the promotion".into()),
        c if c.pid != 0 => Ok(format!("running with PID {}", c.pid)),
        _ => Err(
            "not running: the server's log says why; max_worker_processes must leave it a slot (raise it \
                  and restart the server)"
                .into(),
        ),
    }
}

/// Describes this database's worker of a kind. `Err` says what the database does without while the
/// worker does not run.
fn worker(segment: Segment, kind: Kind) -> Result<String, String> {
    let without = match kind {
        Kind::Keeper => "so that nobody elects leaders here",
        Kind::Relay => {
            "so that each transaction sends its notifications itself, behind one lock of the whole server"
        }
    };
    if session::in_recovery() {
        return Ok("none during recovery: it starts with the promotion".into());
    }
    let own = session::database();
    let database = segment.registry(|r| r.database(own).copied());
    let name = catalog::database_name(own).unwrap_or_default();
    match database.map(|d| *d.worker(kind)) {
        Some(WorkerSlot { state: RUNNING | STARTING, process: Process { pid, .. }, last_error, .. })
            if pid != 0 =>
        {
            Ok(match trouble(&last_error) {
                Some(trouble) => format!("running with PID {pid}; last trouble: {trouble}"),
                None => format!("running with PID {pid}"),
            })
        }
        Some(worker) if worker.lacks_slot() => {
            let lack = segment.lack(true).map_or(String::new(), |lack| format!(" ({lack})"));
            Err(format!(
                "{} in database \"{name}\", {without}: no free worker slot{lack}; raise max_worker_processes \
                 and restart the server",
                state_name(worker.state)
            ))
        }
        Some(worker) => Err(format!(
            "{}, {without}: {}",
            state_name(worker.state),
            trouble(&worker.last_error).unwrap_or(
                "if it does not start in a moment, the server's log says why (or oban_workers, to pg_monitor)"
            )
        )),
        None => Err(match segment.lack(false) {
            Some(lack @ Lack::Slot { .. }) => {
                format!("none in database \"{name}\", {without}: {lack}. {}", lack.hint())
            }
            _ => "none yet: the next oban_join or oban_install has it started".into(),
        }),
    }
}

/// Returns what went wrong last. `None`: nothing has, or the role may not see it, because the text
/// may quote what a prefix's owner wrote.
fn trouble<const N: usize>(last_error: &Text<N>) -> Option<&str> {
    Some(last_error.as_str()).filter(|error| !error.is_empty() && session::sees_all())
}

/// Finds out whether every database with the extension can have its workers.
fn worker_slots(segment: Segment) -> Result<String, String> {
    let most: usize = setting("SELECT current_setting('max_worker_processes')").parse().unwrap_or(0);
    let databases = segment.registry(|r| r.databases.iter().filter(|d| !d.oid.is_none()).count());
    let needed = 1 + Kind::ALL.len() * databases;
    if needed <= most {
        let all = 1 + Kind::ALL.len() * config::max_databases();
        let more =
            if all <= most { String::new() } else { format!(" (obanrs.max_databases allows for {all})") };
        let stagers = segment.stagers_view(|s| s.count());
        let stagers = match stagers {
            0 => String::new(),
            n => format!(", and {n} for prefixes that stage"),
        };
        Ok(format!(
            "{needed} of {most} slots are for obanrs: the coordinator's and two for each database with the \
             extension{more}{stagers}"
        ))
    } else {
        Err(format!(
            "obanrs needs {needed} slots, the coordinator's and two for each database with the extension, \
             but the server has {most}, which parallel queries and other extensions share: raise \
             max_worker_processes and restart the server"
        ))
    }
}

/// Finds out whether this database has a ring of messages, or will have one when it needs it.
fn ring() -> Result<String, String> {
    match rings::availability() {
        Some(RingAvailability { has_ring: true, .. }) => Ok("this database has one".into()),
        Some(RingAvailability { free: 0, .. }) => {
            Err("no ring is free: transactions here send natively, behind one lock of the whole server, and \
             oban_poll, oban_wait and oban_position fail; raise obanrs.max_rings and restart the server"
                .into())
        }
        Some(RingAvailability { free, .. }) => {
            Ok(format!("none yet: the first message or reader takes one of {free} that are free"))
        }
        None => Ok("none, as this database has no workers".into()),
    }
}

/// Finds settings of gossip that contradict each other or what Oban's nodes do, and memory that is
/// nearly used up.
fn gossip(segment: Segment) -> Result<String, String> {
    /// How long oban_met remembers a check, in microseconds.
    const REMEMBERED: i64 = 30_000_000;
    let seconds = |micros: i64| micros as f64 / 1e6;
    let (interval, ttl) = (config::gossip_interval(), config::gossip_ttl().as_micros() as i64);
    if interval >= REMEMBERED {
        return Err(format!(
            "Oban's nodes forget a queue after 30 s, and hear of it every {} s: lower obanrs.gossip_interval",
            seconds(interval)
        ));
    }
    if interval >= ttl {
        return Err(format!(
            "entries end after {} s, and are sent every {} s: lower obanrs.gossip_interval, or raise \
             obanrs.gossip_ttl",
            seconds(ttl),
            seconds(interval)
        ));
    }
    let full = segment.gossip().full();
    if full > 0.9 {
        return Err(format!(
            "{:.0} % of its memory are used, by the entries of all databases: raise obanrs.gossip_memory and \
             restart the server",
            full * 100.0
        ));
    }
    let heard =
        if config::gossip_ingest() { "is taken in" } else { "is not taken in (obanrs.gossip_ingest)" };
    let told = match interval {
        0 => "are not sent (obanrs.gossip_interval)".to_owned(),
        _ => format!("are sent every {} s", seconds(interval)),
    };
    Ok(format!(
        "entries {told}, what Oban's nodes tell {heard}; {:.0} % of obanrs.gossip_memory are used",
        full * 100.0
    ))
}

/// Finds a limit for idle sessions. Sessions that listen or lead are idle by nature.
fn idle_sessions() -> Result<String, String> {
    match setting("SELECT current_setting('idle_session_timeout')").as_str() {
        "0" => Ok("0: sessions that listen or lead may be idle".into()),
        limit => Err(format!(
            "{limit}, after which sessions that only listen or lead are ended, and their leadership with \
             them: SET idle_session_timeout = 0 in those sessions, or for their role"
        )),
    }
}

/// Finds wake-ups that are off. The switch is meant for one load. If it was set for a role or a
/// database, it would keep all jobs of that role or database waiting, and nothing would say so.
fn wakeups() -> Result<String, String> {
    if config::wakeups() {
        return Ok("on: what this session inserts wakes its queues".into());
    }
    Err("obanrs.wakeups is off, so that nothing tells of the jobs that this session inserts: if that is not \
         meant, look into pg_db_role_setting, and RESET obanrs.wakeups"
        .into())
}

/// Returns whether elections leave the database alone because it is read-only by default: as ALTER
/// DATABASE says, or else as the server's configuration says.
fn read_only_by_default() -> bool {
    let configured = || {
        setting(
            "SELECT (setting = 'on' AND source IN ('configuration file', 'command line'))::text
             FROM pg_settings WHERE name = 'default_transaction_read_only'",
        ) == "true"
    };
    prefixes::database_read_only().unwrap_or_else(configured)
}

/// Returns the schemas of this database in which members have joined, or nodes have put gossip on
/// this server.
fn used(segment: Segment) -> BTreeSet<SchemaOid> {
    let (own, now) = (session::database(), clock::now());
    let members = segment.leaderships_view(|view| {
        view.members_of(own, now).iter().map(|m| m.electorate.schema).collect::<Vec<_>>()
    });
    let mut used = segment.gossip().schemas(own, true);
    used.extend(members);
    used
}

/// Says why a prefix that stages has no slot of a stager. `None`: there is no keeper, which would
/// give it one, and the keeper's row says so.
fn without_stager(segment: Segment) -> Option<String> {
    let most = session::max_worker_processes();
    let (room, keeper) = segment.registry(|r| {
        let keeper = r.database(session::database()).map(|d| d.worker(Kind::Keeper).state);
        (r.room_for_stagers(most), keeper)
    });
    (keeper == Some(RUNNING)).then(|| {
        format!(
            "due jobs stay as they are, as there is no place for its stager: all databases together have \
             {room} of {most} max_worker_processes for stagers; the owner of the database has half of all, \
             and any other role obanrs.role_share; raise max_worker_processes and restart the server"
        )
    })
}

/// Returns the text of a query with one row and one column.
fn setting(sql: &str) -> String {
    let value = Spi::connect(|client| client.select(sql, Some(1), &[])?.first().get_one::<String>());
    value.unwrap_or_else(|e| pgrx::error!("{e}")).unwrap_or_default()
}

/// A row of `PREFIXES`.
struct Prefix {
    name: String,
    jobs: Option<String>,
    jobs_is_table: bool,
    jobs_oid: Option<TableOid>,
    /// Whether due jobs are made available, as the triggers say.
    stages: bool,
    has_due_index: bool,
    /// Whether the prefix's tables have a trigger or a column that obanrs has added.
    touched: bool,
    without_trigger: Vec<String>,
    /// The tables with the trigger of a version before 0.9.0, or with one of the two triggers.
    old_trigger: Vec<String>,
    /// The tables with a trigger that is off. Behind each stand the names of the triggers.
    disabled: Vec<String>,
    peers: Option<String>,
    peers_triggers_are_there: bool,
    peers_triggers_off: Vec<String>,
    unlogged: bool,
    /// The publications that include oban_peers, each with the command that ends that.
    publications: Vec<String>,
    /// The subscriptions that write oban_peers.
    subscriptions: Vec<String>,
    caller_lacks: Vec<String>,
    caller_reads_only: bool,
}

/// Returns the schemas with tables of Oban's names that the caller has any right on.
fn prefixes() -> Vec<Prefix> {
    let read = |row: SpiHeapTupleData<'_>| {
        let text = |column: &str| row.get_by_name(column).map(|text| text.map(|Shown(text)| text));
        let texts = |column: &str| -> SpiResult<Vec<String>> {
            let texts = row.get_by_name::<Vec<Shown>, _>(column)?.unwrap_or_default();
            Ok(texts.into_iter().map(|Shown(text)| text).collect())
        };
        Ok(Prefix {
            name: text("prefix")?.unwrap_or_default(),
            jobs: text("jobs")?,
            jobs_is_table: row.get_by_name("jobs_is_table")?.unwrap_or(false),
            jobs_oid: row.get_by_name::<pg_sys::Oid, _>("jobs_oid")?.map(TableOid::from),
            stages: row.get_by_name("stages")?.unwrap_or(false),
            has_due_index: row.get_by_name("has_due_index")?.unwrap_or(false),
            touched: row.get_by_name("touched")?.unwrap_or(false),
            without_trigger: texts("without_trigger")?,
            old_trigger: texts("old_trigger")?,
            disabled: texts("disabled")?,
            peers: text("peers")?,
            peers_triggers_are_there: row.get_by_name("peers_triggers_are_there")?.unwrap_or(false),
            peers_triggers_off: texts("peers_triggers_off")?,
            unlogged: row.get_by_name("unlogged")?.unwrap_or(false),
            publications: texts("publications")?,
            subscriptions: texts("subscriptions")?,
            caller_lacks: texts("caller_lacks")?,
            caller_reads_only: row.get_by_name("caller_reads_only")?.unwrap_or(false),
        })
    };
    Spi::connect(|client| {
        let rows = client.select(PREFIXES, None, &[])?;
        rows.map(read).collect::<SpiResult<Vec<_>>>()
    })
    .unwrap_or_else(|e| pgrx::error!("{e}"))
}

/// Returns a row for each table that has the triggers and is no table of jobs any more. Such a table
/// still wakes queues in the schema, and can't be attached to a partitioned table of jobs (42710).
fn detached() -> Vec<Finding> {
    let read = |row: SpiHeapTupleData<'_>| {
        let text =
            |column: &str| row.get_by_name(column).map(|text| text.map_or(String::new(), |Shown(t)| t));
        Ok((text("relation")?, text("remedy")?))
    };
    let tables = Spi::connect(|client| {
        client.select(DETACHED, None, &[])?.map(read).collect::<SpiResult<Vec<(String, String)>>>()
    });
    let finding = |(table, remedy): (String, String)| {
        let detail = format!(
            "the table is no oban_jobs, and has its triggers: if it is to become a partition of one, they \
             have to go before ALTER TABLE ... ATTACH PARTITION: {remedy}"
        );
        found(format!("trigger on {table}"), Err(detail))
    };
    tables.unwrap_or_else(|e| pgrx::error!("{e}")).into_iter().map(finding).collect()
}

/// Returns a row for each trigger of a watched table that can't do its work, or one row that says
/// that all can. Returns no row if no table is watched.
fn watched() -> Vec<Finding> {
    let watches = watches::all();
    if watches.is_empty() {
        return Vec::new();
    }
    let wrong = |w: &watches::Found| {
        let table = catalog::shown_name(w.table);
        let outcome = if !w.stored {
            Err(format!(
                "the watch of channel \"{}\" sends the column \"{}\", which rows of the table do not store, \
                 so that nothing is sent: SELECT oban_watch with the column's new name, or oban_unwatch",
                w.watch.channel, w.watch.column
            ))
        } else if !w.enabled {
            Err(format!(
                "the watch of channel \"{}\" is disabled, so that nothing is sent: ALTER TABLE {table} \
                 ENABLE TRIGGER {}",
                w.watch.channel, w.trigger
            ))
        } else {
            return None;
        };
        Some(found(format!("watch of {table}"), outcome))
    };
    let wrong: Vec<_> = watches.iter().filter_map(wrong).collect();
    if wrong.is_empty() {
        return vec![found("watches", Ok(format!("triggers of watches, all enabled: {}", watches.len())))];
    }
    wrong
}

impl Prefix {
    /// Returns whether the schema is meant to be a prefix: it is installed at least in part, or in
    /// use.
    fn is_meant(&self, used: &BTreeSet<SchemaOid>) -> bool {
        let is_used = || catalog::namespace(&self.name).is_some_and(|schema| used.contains(&schema));
        self.touched || (encoding::is_name(&self.name) && is_used())
    }

    fn findings(&self, used: &BTreeSet<SchemaOid>) -> Vec<Finding> {
        let name = &self.name;
        if !encoding::is_name(name) {
            // Such a prefix has no row in oban_leadership either. The schema need not be meant to
            // be a prefix.
            let left_out = format!(
                "left out, as its name is not ASCII and the database's encoding is {}: rename the schema, or \
                 use a database in UTF8",
                encoding::of_database().to_string_lossy()
            );
            let left_out = if self.touched { Err(left_out) } else { Ok(left_out) };
            return vec![found(format!("prefix {name}"), left_out)];
        }
        if !self.is_meant(used) {
            let install = format!(
                "not installed; if it shall be, SELECT oban_install({})",
                spi::quote_literal(&**name)
            );
            return vec![found(format!("prefix {name}"), Ok(install))];
        }
        let mut findings = vec![found(format!("prefix {name}"), self.installed())];
        if self.jobs.is_some() && self.jobs_is_table {
            findings.push(found(format!("columns of {name}.oban_jobs"), self.columns()));
            findings.extend(self.triggers());
            findings.push(found(format!("rights on {name}"), self.rights()));
            findings.extend(self.staging().map(|outcome| found(format!("staging of {name}"), outcome)));
        }
        if let Some(leaders) = self.leaders() {
            findings.push(found(format!("leaders of {name}"), leaders));
        }
        if peers_catalog::info(name).is_some() {
            if self.peers_triggers_are_there {
                findings.push(found(format!("triggers on {name}.oban_peers"), self.guards()));
            }
            findings.push(found(format!("{name}.oban_peers"), self.persistence()));
            findings.push(found(format!("publication of {name}.oban_peers"), self.publication()));
        }
        findings.extend(self.signals());
        // A table with a column of another type is no table of Oban's. The findings name the column
        // all the same.
        let schema = catalog::namespace(name);
        let inspected = schema.map_or(Err(Unusable::Missing), peers::inspect);
        if peers_catalog::info(name).is_some_and(|table| table.installed)
            || matches!(inspected, Err(Unusable::Obstacles(_)))
        {
            findings.extend(self.elections(&inspected));
        }
        findings
    }

    fn installed(&self) -> Result<String, String> {
        for standard in channel::STANDARD {
            if let Err(e) = channel::full_name(&self.name, standard) {
                return Err(format!("{}: Oban can't use this schema", Error::from(e)));
            }
        }
        if self.jobs.is_some() && !self.jobs_is_table {
            return Err("oban_jobs is no table: Oban can't use this schema".into());
        }
        let peers = peers_catalog::info(&self.name);
        if self.peers.is_some() && peers.is_none() {
            return Err(
                "oban_peers is no table with Oban's columns (name and node of type text, started_at and \
                        expires_at of type timestamp): obanrs can't use this schema"
                    .into(),
            );
        }
        let mut missing = Vec::new();
        if self.jobs.is_none() {
            missing.push("table oban_jobs".to_owned());
        }
        missing.extend(self.without_trigger.iter().map(|t| format!("triggers on {t}")));
        let newer = |t: &String| format!("triggers of this version on {t} (those that it has still work)");
        missing.extend(self.old_trigger.iter().map(newer));
        match peers {
            None => missing.push("table oban_peers".into()),
            Some(peers) if !peers.installed => missing.push("columns term and boot of oban_peers".into()),
            Some(_) if !self.peers_triggers_are_there => missing.push("triggers on oban_peers".into()),
            Some(_) => {}
        }
        let schema = catalog::namespace(&self.name);
        if schema.is_some_and(|schema| catalog::relation(schema, signals::TABLE).is_none()) {
            missing.push(format!("table {}", signals::TABLE));
        }
        if missing.is_empty() {
            return Ok("installed".into());
        }
        Err(format!(
            "missing {}: SELECT oban_install({})",
            missing.join(", "),
            spi::quote_literal(&*self.name)
        ))
    }

    /// Finds out whether queue signals can be remembered. `None`: the prefix has no table for that.
    fn signals(&self) -> Option<Finding> {
        let schema = catalog::namespace(&self.name)?;
        catalog::relation(schema, signals::TABLE)?;
        let judged = match signals::odd(schema) {
            None => Ok("remembers queue signals".to_owned()),
            Some(what) => Err(format!(
                "queue signals are sent and not remembered, as {what}: drop or rename it, and SELECT \
                 oban_install({})",
                spi::quote_literal(&*self.name)
            )),
        };
        Some(found(format!("{}.{}", self.name, signals::TABLE), judged))
    }

    /// Finds out whether each name that has members has a leader. `None`: no name has members, or
    /// the role may not read the prefix.
    fn leaders(&self) -> Option<Result<String, String>> {
        if !rights::allows(&self.name, Right::Read) {
            return None;
        }
        // How long a name may be without a leader before that is a finding, in microseconds.
        // Elections take milliseconds. (A name whose only member has resigned is a finding, too.)
        const MOMENT: i64 = 2_000_000;
        let (own, now, schema) = (session::database(), clock::now(), catalog::namespace(&self.name)?);
        let segment = Segment::attached()?;
        let mut names = segment.leaderships_view(|view| view.contested(own, now, MOMENT));
        names.retain(|name| name.electorate.schema == schema);
        let name_of = |name: &Contested| name.electorate.name.as_str().to_owned();
        // In a table that is not installed, foreign nodes lead and members can't.
        let rows = leaders(schema, &self.name, None, Locked::Peek).ok().flatten().unwrap_or_default();
        let foreign = |name: &str| rows.iter().find(|row| row.name == name);
        let others: Vec<String> = names
            .iter()
            .filter(|name| !name.has_copy)
            .map(name_of)
            .filter_map(|name| foreign(&name).map(|row| format!("{} leads {name}", row.node)))
            .collect();
        let leaderless: Vec<String> = names
            .iter()
            .filter(|name| !name.is_led && (name.has_copy || foreign(&name_of(name)).is_none()))
            .map(name_of)
            .collect();
        if names.is_empty() {
            None
        } else if leaderless.is_empty() && !others.is_empty() {
            Some(Err(format!(
                "{}, and no member can: elections of members need what oban_install adds",
                others.join(", ")
            )))
        } else if leaderless.is_empty() {
            Some(Ok("every name that has members has a leader".into()))
        } else {
            Some(Err(format!(
                "nobody leads {}, though members have joined: if that stays so, the server's log says why \
                 (or oban_workers, to pg_monitor)",
                leaderless.join(", ")
            )))
        }
    }

    fn columns(&self) -> Result<String, String> {
        let Some(table) = self.jobs_oid else { return Ok(String::new()) };
        if let Some(wrong) = jobs::unreadable(table) {
            return Err(format!(
                "the triggers can't tell what to wake, so that new jobs wake nobody: the table {}; name it \
                 as Oban does, and store it",
                wrong.described()
            ));
        }
        match jobs::fault(table) {
            None => Ok("those of Oban's table".into()),
            Some(Fault::TooOld { version }) => Err(format!(
                "those of Oban's migration {version}, whose own trigger sends other messages: have Oban \
                 migrate to version 11 or later"
            )),
            Some(Fault::Partial(wrong)) => Ok(format!(
                "the trigger reads queue and state; the table {}, which oban_orphans and queries of Oban's jobs need",
                wrong.described()
            )),
            Some(Fault::Columns(wrong)) => Err(format!(
                "the table {}, which queries of jobs need: have Oban migrate to version 11 or later",
                wrong.described()
            )),
        }
    }

    /// Returns one row for each table whose trigger is off, or one row that says that no trigger is
    /// off. Returns no row if a table has no trigger.
    fn triggers(&self) -> Vec<Finding> {
        let off = |table_and_triggers: &String| {
            let (table, triggers) = table_and_triggers.rsplit_once(' ').unwrap_or_default();
            let enable: Vec<_> = triggers.split(',').map(|t| format!("ENABLE TRIGGER {t}")).collect();
            let detail = format!(
                "disabled, so that what is written there wakes nobody: ALTER TABLE {table} {}",
                enable.join(", ")
            );
            found(format!("trigger on {table}"), Err(detail))
        };
        if !self.disabled.is_empty() {
            return self.disabled.iter().map(off).collect();
        }
        if !self.without_trigger.is_empty() || !self.old_trigger.is_empty() {
            return Vec::new(); // the row of the prefix says so
        }
        vec![found(format!("trigger on {}.oban_jobs", self.name), Ok("enabled".into()))]
    }

    /// Finds out whether the prefix's stager makes due jobs available. `None`: the prefix does not
    /// stage, or the row of the preload, the keeper or the triggers says why it can't.
    fn staging(&self) -> Option<Result<String, String>> {
        let segment = Segment::attached().filter(|_| self.stages && self.disabled.is_empty())?;
        if session::in_recovery() {
            return Some(Ok("none during recovery: it starts with the promotion".into()));
        }
        let (own, schema) = (session::database(), catalog::namespace(&self.name));
        let slot = schema.and_then(|schema| {
            segment
                .stagers_view(|s| s.slot_of_prefix(own, schema).and_then(|at| Some((at, *s.slots.get(at)?))))
        });
        match slot {
            Some((at, slot)) => Some(self.stager(segment, at, &slot)),
            None if !self.has_due_index => Some(Err(self.without_due_index())),
            None => without_stager(segment).map(Err),
        }
    }

    fn without_due_index(&self) -> String {
        format!(
            "due jobs stay as they are, as the index obanrs_jobs_due is missing: \
             SELECT oban_install({}, stage => true)",
            spi::quote_literal(&*self.name)
        )
    }

    /// Describes the stager in the slot of number `at`.
    fn stager(&self, segment: Segment, at: usize, slot: &StagerSlot) -> Result<String, String> {
        // The text may quote what the table's owner wrote. The owner may see it.
        let may_see = session::sees_all() || self.jobs_oid.is_some_and(acl::owns);
        let error = Some(slot.last_error.as_str()).filter(|error| may_see && !error.is_empty());
        let why = error.unwrap_or("the server's log says why (or oban_workers, to pg_monitor)");
        if slot.shown_state() == BACKOFF {
            let wait = (slot.retry_at.saturating_sub(clock::now()).max(0) + 999_999) / 1_000_000;
            return Err(format!(
                "due jobs stay as they are, until its stager starts again in {wait} s: {why}"
            ));
        }
        if !self.has_due_index {
            return Err(self.without_due_index());
        }
        let aside = slot.batching.count();
        if aside > 0 {
            let jobs = if aside == 1 { "1 due job is".into() } else { format!("{aside} due jobs are") };
            return Err(format!(
                "{jobs} set aside and tried again from time to time, as the UPDATE that makes them available \
                 fails: {why}"
            ));
        }
        if !slot.announces() {
            return Err(format!(
                "due jobs are made available, but queues are not woken for jobs that were inserted as \
                 available and have become due since: to look for them took longer than 10 s. If there are \
                 fewer by now, SELECT oban_install({name}, stage => false), and in another \
                 transaction SELECT oban_install({name}, stage => true)",
                name = spi::quote_literal(&*self.name)
            ));
        }
        let wait = segment.alarms(at).and_then(|alarms| alarms.due.shown());
        Ok(
            match (
                slot.process.pid,
                wait.filter(|at| *at < NEVER && time::timestamptz(*at).is_some()).map(time::iso),
            ) {
                (0, _) => format!("its stager is {}", state_name(slot.shown_state())),
                (pid, None) => format!("its stager runs with PID {pid}"),
                (pid, Some(due)) => {
                    format!("its stager runs with PID {pid}, and waits for a job that is due at {due}")
                }
            },
        )
    }

    fn guards(&self) -> Result<String, String> {
        let Some(peers) = self.peers.as_ref().filter(|_| !self.peers_triggers_off.is_empty()) else {
            return Ok("enabled".into());
        };
        let enable: Vec<String> =
            self.peers_triggers_off.iter().map(|trigger| format!("ENABLE TRIGGER {trigger}")).collect();
        Err(format!(
            "disabled, so that other nodes may renew rows of another node, by their own clocks and \
             without terms, and that they lead or resign is not noticed: ALTER TABLE {peers} {}",
            enable.join(", ")
        ))
    }

    fn persistence(&self) -> Result<String, String> {
        let Some(peers) = self.peers.as_ref().filter(|_| self.unlogged) else {
            return Ok("logged: it survives a crash, and a standby knows the leaders".into());
        };
        Err(format!(
            "unlogged, as Oban's migrations make it: a crash empties it, a standby can't read it \
             (oban_leader fails there, and oban_leadership leaves the prefix out) and starts without any \
             leader when it is promoted: ALTER TABLE {peers} SET LOGGED"
        ))
    }

    /// Finds out whether replication includes oban_peers. Leaders belong to one server. A
    /// replicated row is a leader that this server knows nothing of, or a duplicate key that stops
    /// the subscription.
    fn publication(&self) -> Result<String, String> {
        let Some(peers) = &self.peers else { return Ok(String::new()) };
        if !self.publications.is_empty() {
            return Err(format!(
                "published, though leaders are of one server: a row of the subscriber's own stops the \
                 subscription; publication {}",
                self.publications.join("; publication ")
            ));
        }
        if !self.subscriptions.is_empty() {
            return Err(format!(
                "written by subscription {}, so that leaders of another server come here, and a leader of \
                 this one stops it: take {peers} out of the publication there, then ALTER SUBSCRIPTION ... \
                 REFRESH PUBLICATION",
                self.subscriptions.join(", ")
            ));
        }
        Ok("in no publication and no subscription".into())
    }

    /// Finds out whether the keeper can write the table with the owner's rights, and without
    /// running the owner's code.
    fn elections(&self, inspected: &Result<(), Unusable>) -> [Finding; 2] {
        let obstacles = match inspected {
            Err(Unusable::Obstacles(obstacles)) => obstacles.as_slice(),
            _ => &[],
        };
        let judged = |of_owner: bool, fine: &str| {
            let here = || obstacles.iter().filter(|obstacle| obstacle.of_owner == of_owner);
            match here().next() {
                None => Ok(fine.to_owned()),
                Some(_) => Err(format!(
                    "no elections, as they would have to ignore what it has: {}",
                    shape::described(here())
                )),
            }
        };
        let table = match inspected {
            _ if read_only_by_default() => Err(
                "none, as the database is read-only by default: ALTER DATABASE ... SET default_transaction_read_only = off"
                    .into(),
            ),
            Err(Unusable::Locked) => Err(
                "another transaction holds a lock on oban_peers, and elections wait for its end: look into pg_locks"
                    .into(),
            ),
            Err(Unusable::Missing | Unusable::Replaced) => {
                Err(format!("none: SELECT oban_install({})", spi::quote_literal(&*self.name)))
            }
            Ok(()) | Err(Unusable::Obstacles(_)) => {
                judged(false, "the keeper writes oban_peers, and runs no code of users")
            }
        };
        [
            found(format!("elections in {}", self.name), table),
            found(
                format!("owner of {}.oban_peers", self.name),
                judged(true, "may insert, update and delete its rows, as elections do"),
            ),
        ]
    }

    fn rights(&self) -> Result<String, String> {
        if self.caller_lacks.is_empty() {
            Ok("this role may listen and see, publish, join and gossip, and signal".into())
        } else if self.caller_reads_only {
            Ok(format!(
                "this role may listen and see; for more it would need: {}",
                self.caller_lacks.join("; ")
            ))
        } else {
            Err(format!("what this role lacks to use all of it: {}", self.caller_lacks.join("; ")))
        }
    }
}
