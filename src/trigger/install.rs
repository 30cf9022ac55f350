//! `oban_install` and `oban_uninstall`.
//!
//! `oban_install` looks first and then creates only what is missing, so that a second run changes
//! nothing. The tables are created as Oban's migration 14 creates them. What the function adds to
//! tables has names that begin with `obanrs_`, except for two columns of oban_peers. One session at
//! a time works on a prefix. A second session waits for a lock on the schema, and then finds
//! nothing missing. (The functions' own SET clauses set search_path and lock_timeout.)
//!
//! The tables belong to users. A user may rename or replace a table at any moment. So a table is
//! found by its name once, locked by its oid, tested again, and only then altered, by its oid. No
//! code of a table's owner runs.

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{due_index, tables};
use crate::backend::xact_end::{self, Note, note};
use crate::error::{self, Error, given};
use crate::logic::channel::{self, MAX_CHANNEL};
use crate::logic::ids::{SchemaOid, TableOid, Term};
use crate::logic::jobs::Fault;
use crate::logic::leadership::{MAX_PREFIX, term};
use crate::logic::shape;
use crate::logic::text::Text;
use crate::pg::argument::TextArgument;
use crate::pg::catalog::{self, TriggerRow};
use crate::pg::ddl::{self, Fires, Options};
use crate::pg::{acl, bgworker, scan, session, spi, xact};
use crate::prefix::peers::{self, Unusable};
use crate::prefix::peers_catalog::{self, Added};
use crate::prefix::triggers::{self, Functions};
use crate::prefix::{extension, jobs, rights, signals, staging, terms};

const JOBS: &str = "oban_jobs";
/// `STAGE`, as the argument of a trigger.
const STAGE_ARGUMENT: &CStr = c"stage";
const PEERS: &str = "oban_peers";

/// How often to look again for a schema or table that was replaced during the wait for its lock.
const ATTEMPTS: usize = 5;

const LOCK_HINT: &str = "Another transaction holds a lock on the table for long. Find it in pg_locks or \
                         pg_stat_activity, and install again when it has ended.";

/// What a call of `oban_install` asks for. `None`: what is there stays as it is.
#[derive(Clone, Copy)]
struct Wishes {
    /// Whether due jobs become available by themselves.
    stage: Option<bool>,
    /// Whether the triggers on jobs fire for rows that logical replication brings.
    on_replica: Option<bool>,
}

#[pg_extern(name = "oban_install", volatile, parallel_unsafe)]
fn oban_install_with(
    prefix: default!(Option<TextArgument>, "'public'"),
    stage: default!(Option<bool>, "NULL"),
    on_replica: default!(Option<bool>, "NULL"),
) -> Result<(), ErrorReport> {
    call_install(prefix, Wishes { stage, on_replica })
}

/// The symbol of oban_install in the SQL of versions before 0.9.0.
#[pg_extern(sql = false)]
fn oban_install(prefix: Option<TextArgument>, stage: Option<bool>) -> Result<(), ErrorReport> {
    call_install(prefix, Wishes { stage, on_replica: None })
}

fn call_install(prefix: Option<TextArgument>, wishes: Wishes) -> Result<(), ErrorReport> {
    let prefix = given("prefix", prefix)?.name("prefix", MAX_CHANNEL)?;
    let prefix: &str = &prefix;
    if prefix.is_empty() {
        return Err(Error::bad("prefix is empty", "Give the schema of the job tables.").into());
    }
    for name in channel::STANDARD {
        channel::full_name(prefix, name).map_err(Error::from)?;
    }
    if rights::is_reserved(prefix) {
        return Err(Error::ReservedPrefix(prefix.to_owned()).into());
    }
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || install(prefix, wishes))?;
    Ok(())
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_uninstall(prefix: default!(Option<TextArgument>, "'public'")) -> Result<(), ErrorReport> {
    let prefix: Text<MAX_PREFIX> = error::name("prefix", prefix)?;
    let prefix = prefix.as_str();
    existing(prefix)?;
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || uninstall(prefix))?;
    Ok(())
}

/// The schema on which one call works. The schema is used by its oid. `name` is for messages and
/// for the SQL that creates tables.
pub struct Prefix<'a> {
    pub name: &'a str,
    pub schema: SchemaOid,
}

impl<'a> Prefix<'a> {
    /// Locks the schema that `find` finds by its name, so that no other call works on it. `Err`:
    /// the name keeps changing its schema (40001), or `find` failed.
    fn locked(name: &'a str, find: impl Fn() -> Result<SchemaOid, Error>) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS {
            let schema = find()?;
            catalog::lock_namespace(schema);
            if catalog::namespace(name) == Some(schema) {
                return Ok(Self { name, schema });
            }
            catalog::unlock_namespace(schema); // nothing was changed in this schema
        }
        Err(Error::PrefixChanged(name.to_owned()))
    }

    /// Returns the relation of this name in the schema. `None`: there is no such relation.
    pub fn table(&self, name: &str) -> Option<TableOid> {
        catalog::relation(self.schema, name)
    }

    /// Locks the table of this name, which then keeps its name, schema, owner and kind. `Err`: the
    /// caller does not own the table (42501), or the table keeps being replaced (40001).
    fn lock(&self, name: &str, lock: impl Fn(TableOid)) -> Result<TableOid, Error> {
        for _ in 0..ATTEMPTS {
            let table = self.table(name).ok_or_else(|| self.changed())?;
            require_owner(table)?; // before the lock, which delays other sessions
            lock(table);
            if self.table(name) == Some(table) {
                require_owner(table)?;
                return Ok(table);
            }
        }
        Err(self.changed())
    }

    /// Returns the error 40001: another session has changed the prefix.
    pub fn changed(&self) -> Error {
        Error::PrefixChanged(self.name.to_owned())
    }

    fn another_kind(&self) -> Error {
        Error::bad(
            format!("prefix \"{}\" has an oban_jobs or an oban_peers of another kind than Oban's", self.name),
            "oban_jobs has to be a table, and oban_peers a table with name and node (text), started_at and \
             expires_at (timestamp without time zone), neither term nor boot of another type than bigint, \
             none of these generated, and no table that inherits from it or that it inherits from.",
        )
    }
}

/// Returns the schema of a prefix. `Err`: there is no such schema (3F000).
fn existing(prefix: &str) -> Result<SchemaOid, Error> {
    catalog::namespace(prefix).ok_or_else(|| Error::NoSuchPrefix(prefix.to_owned()))
}

/// Returns the schema of a prefix, and creates the schema if it does not exist.
fn existing_or_new(prefix: &str) -> Result<SchemaOid, Error> {
    if let Some(schema) = catalog::namespace(prefix) {
        return Ok(schema);
    }
    extension::lock_creation_of_prefixes();
    if catalog::namespace(prefix).is_none() {
        spi::run(&format!("CREATE SCHEMA {}", pgrx::spi::quote_identifier(prefix)));
    }
    existing(prefix)
}

fn require_owner(table: TableOid) -> Result<(), Error> {
    if acl::owns(table) { Ok(()) } else { Err(Error::NotOwner { table: catalog::shown_name(table) }) }
}

fn install(name: &str, wishes: Wishes) -> Result<(), Error> {
    session::require_writable("install")?; // raise even if nothing is missing
    let schema = existing_or_new(name)?;
    if !is_installed(&Functions::find()?, schema, wishes) {
        extension::lock().ok_or(Error::NoExtension)?; // the trigger functions must not be dropped
        // Another session may have installed the prefix during the wait of this session. So from
        // here on everything is looked up again.
        complete(&Prefix::locked(name, || existing_or_new(name))?, wishes)?;
    }
    warn_of_obstacles(name, schema);
    warn_of_jobs(name, schema);
    warn_of_signals(name, schema);
    xact_end::warn_without_place();
    note(Note::Prefix); // even if nothing was missing: the keeper may not know the tables yet
    Ok(())
}

/// Raises a WARNING if the prefix's table of leaders has an obstacle: the prefix is installed, and
/// holds no elections.
fn warn_of_obstacles(prefix: &str, schema: SchemaOid) {
    if let Err(Unusable::Obstacles(obstacles)) = peers::inspect(schema) {
        error::log(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            format!(
                "prefix \"{prefix}\" holds no elections, as they would have to ignore what its oban_peers has"
            ),
            format!("{}.", shape::described(&obstacles)),
        );
    }
}

/// Raises a WARNING if this version would refuse the prefix's table of jobs. An earlier version may
/// have installed the table, or the table was altered since. The table's wake-ups go on as far as
/// they can.
fn warn_of_jobs(prefix: &str, schema: SchemaOid) {
    if let Some((error, _)) = catalog::relation(schema, JOBS).and_then(|jobs| fault_of_jobs(prefix, jobs)) {
        ErrorReport::from(error).report(PgLogLevel::WARNING);
    }
}

/// Raises a WARNING if the prefix's table of remembered signals can't be written: signals are sent and
/// not remembered.
fn warn_of_signals(prefix: &str, schema: SchemaOid) {
    if let Some(what) = signals::odd(schema) {
        error::log(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            format!("queue signals of prefix \"{prefix}\" are not remembered: {}: {what}", signals::TABLE),
            "Drop or rename that table, and install again.",
        );
    }
}

/// Returns whether nothing is missing. Reads catalogs only.
fn is_installed(functions: &Functions, schema: SchemaOid, wishes: Wishes) -> bool {
    catalog::relation(schema, JOBS).is_some_and(|jobs| are_jobs_complete(functions, jobs, wishes))
        && catalog::relation(schema, PEERS).is_some_and(|peers| are_peers_complete(functions, peers))
        && catalog::relation(schema, signals::TABLE).is_some()
}

/// Returns whether a table of jobs has the triggers, as the call asks for. (Then its partitions
/// have them, too.) Returns true also for a table that this version would refuse, because it was
/// altered since: `warn_of_jobs` names what is wrong with the table.
fn are_jobs_complete(functions: &Functions, jobs: TableOid, wishes: Wishes) -> bool {
    catalog::is_jobs_table(jobs)
        && functions.are_on_jobs(jobs, wishes.on_replica, wishes.stage)
        && wishes.stage.is_none_or(|stage| due_index::find(jobs).is_some() == stage)
}

/// Returns whether a table of leaders has all columns and triggers. Returns true also for a table
/// that an earlier version has installed and that this version would refuse. Such a table stays
/// unchanged, and `warn_of_obstacles` names what is wrong with it.
fn are_peers_complete(functions: &Functions, peers: TableOid) -> bool {
    peers_catalog::info_of(peers).is_some_and(|table| table.installed) && functions.guard(peers)
}

/// Returns whether a table of leaders has both columns that `oban_install` adds.
fn has_columns(peers: TableOid) -> bool {
    peers_catalog::added_columns(peers) == Some(Added { term: true, boot: true })
}

/// Creates what is missing. The caller has locked the schema. `Err`: a table is not the caller's
/// (42501), is of another kind (22023), or was changed by another session meanwhile (40001).
fn complete(prefix: &Prefix<'_>, mut wishes: Wishes) -> Result<(), Error> {
    let functions = Functions::find()?;
    if prefix.table(JOBS).is_none() {
        tables::create_jobs(prefix)?;
        wishes.stage = wishes.stage.or_else(|| Some(staging_of_new_table(prefix)));
    }
    if prefix.table(PEERS).is_none() {
        tables::create_peers(prefix)?;
    }
    for table in [JOBS, PEERS] {
        require_owner(prefix.table(table).ok_or_else(|| prefix.changed())?)?;
    }
    let jobs = prefix.table(JOBS).ok_or_else(|| prefix.changed())?;
    if !are_jobs_complete(&functions, jobs, wishes) {
        require_obans_jobs(&functions, prefix, jobs)?; // refuse before any lock
        if wishes.stage == Some(true) {
            require_stageable(prefix, jobs)?;
        }
    }
    if prefix.table(signals::TABLE).is_none() {
        tables::create_signals(prefix)?;
    }
    complete_peers(prefix, &functions)?;
    complete_jobs(prefix, &functions, wishes)?;
    if is_installed(&functions, prefix.schema, wishes) { Ok(()) } else { Err(prefix.changed()) }
}

/// Adds the missing columns and triggers to the table of leaders.
fn complete_peers(prefix: &Prefix<'_>, functions: &Functions) -> Result<(), Error> {
    if prefix.table(PEERS).is_some_and(|peers| are_peers_complete(functions, peers)) {
        return Ok(());
    }
    let peers = prefix.lock(PEERS, |peers| {
        if has_columns(peers) {
            catalog::lock_for_triggers(peers)
        } else {
            catalog::lock_for_alteration(peers)
        }
    })?;
    let there = peers_catalog::added_columns(peers).filter(|_| !triggers::is_inherited(peers));
    let there = there.ok_or_else(|| prefix.another_kind())?;
    let columns = [(c"term", there.term), (c"boot", there.boot)];
    let missing: Vec<_> = columns.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    if !missing.is_empty() {
        ddl::add_bigints(peers, &missing);
    }
    if let Some(function) = functions.peers.filter(|_| !functions.guard(peers)) {
        lift_terms(peers);
        let there = catalog::triggers_of(peers);
        triggers::ON_PEERS.iter().for_each(|trigger| {
            let is_it = |row: &&TriggerRow| {
                row.function == function && row.name.as_bytes() == trigger.name.to_bytes()
            };
            // A trigger that is there stays disabled, if it is.
            let fires = there.iter().find(is_it).map_or(Fires::Origin, |row| Fires::of(row.enabled));
            ddl::create_trigger(peers, function, trigger, &Options { fires, ..Options::ORDINARY });
        });
    }
    Ok(())
}

/// Lifts the sequence of terms above the terms in the table. The extension may have been dropped
/// and created again since these terms were drawn.
fn lift_terms(peers: TableOid) {
    let Some(seen) = scan::greatest(peers, "term").map(Term) else { return };
    let least = term::next_term(session::timeline(), seen);
    if least > seen {
        terms::lift_above(seen, least);
    }
}

/// Adds the missing triggers to the table of jobs. Replaces those of versions before 0.9.0, in this
/// one transaction: a session that writes jobs waits for its end, so each of its rows is seen by
/// exactly one of the two.
fn complete_jobs(prefix: &Prefix<'_>, functions: &Functions, wishes: Wishes) -> Result<(), Error> {
    if prefix.table(JOBS).is_some_and(|jobs| are_jobs_complete(functions, jobs, wishes)) {
        return Ok(());
    }
    let drops_index = |jobs: TableOid| wishes.stage == Some(false) && due_index::find(jobs).is_some();
    let jobs = prefix.lock(JOBS, |jobs| {
        if drops_index(jobs) { catalog::lock_for_alteration(jobs) } else { catalog::lock_for_triggers(jobs) }
    })?;
    require_obans_jobs(functions, prefix, jobs)?;
    Functions::job_tables(jobs).into_iter().try_for_each(require_owner)?;
    // Nobody can disable a trigger of a partition between the look at it and its replacement.
    catalog::with_partitions(jobs).into_iter().skip(1).for_each(catalog::lock_for_triggers);
    let there = functions.on_jobs(jobs);
    let stages = wishes.stage.unwrap_or_else(|| there.iter().any(|t| t.stages));
    if wishes.stage == Some(true) {
        require_stageable(prefix, jobs)?;
        due_index::create(prefix, jobs)?;
    } else if drops_index(jobs) {
        due_index::drop(jobs);
    }
    for trigger in &triggers::ON_JOBS {
        let whole = there.iter().find(|t| t.is(trigger)).map(|t| t.fires);
        // A trigger that is new beside one that fires always is to fire always, too.
        let now = whole.or_else(|| there.iter().map(|t| t.fires).find(|fires| *fires == Fires::Always));
        let fires = triggers::wanted(wishes.on_replica, now);
        let on_partitions = functions.differing_partitions(jobs, trigger, wishes.on_replica, whole, fires);
        let arguments: &[&CStr] = if stages { &[STAGE_ARGUMENT] } else { &[] };
        let options = Options { fires, arguments, on_partitions: &on_partitions, ..Options::ORDINARY };
        ddl::create_trigger(jobs, functions.jobs, trigger, &options);
    }
    Ok(())
}

/// Returns whether a table of jobs that this call has created is to be staged, if the call leaves
/// that open. A NOTICE says why it is not.
fn staging_of_new_table(prefix: &Prefix<'_>) -> bool {
    let Some(jobs) = prefix.table(JOBS) else { return false };
    match require_stageable(prefix, jobs) {
        Ok(()) => true,
        Err(error) => {
            ErrorReport::from(error).report(PgLogLevel::NOTICE);
            false
        }
    }
}

/// Refuses a table of jobs that no stager can serve: its owner has NOLOGIN before Postgres 17
/// (55000), or it lacks a column of Oban's (22023).
fn require_stageable(prefix: &Prefix<'_>, jobs: TableOid) -> Result<(), Error> {
    let owner = catalog::owner(jobs).ok_or_else(|| prefix.changed())?;
    if !bgworker::CONNECTS_WITHOUT_LOGIN && !acl::may_log_in(owner) {
        return Err(Error::StagingNeedsLogin {
            prefix: prefix.name.to_owned(),
            owner: catalog::quoted_role(owner),
        });
    }
    match staging::misfit(jobs) {
        Some(misfit) => Err(Error::bad(
            format!("jobs of prefix \"{}\" can't be staged: {misfit}", prefix.name),
            "A table of Oban's has these columns. Install it without staging, or have Oban migrate a \
             table of its own.",
        )),
        None => Ok(()),
    }
}

/// Refuses (22023) a table of jobs that is not Oban's, or that a migration of Oban before 11 made.
/// A table that has a trigger already is not refused: an earlier version has installed it, and its
/// wake-ups go on as far as they can (`warn_of_jobs`).
fn require_obans_jobs(functions: &Functions, prefix: &Prefix<'_>, jobs: TableOid) -> Result<(), Error> {
    if !catalog::is_jobs_table(jobs) {
        return Err(prefix.another_kind());
    }
    match fault_of_jobs(prefix.name, jobs) {
        Some((error, false)) if functions.on_jobs(jobs).is_empty() => Err(error),
        Some(_) | None => Ok(()),
    }
}

/// Returns what distinguishes a table of jobs from Oban's own since its migration 11, and whether
/// the table can be installed in spite of that. `None`: nothing does.
fn fault_of_jobs(prefix: &str, jobs: TableOid) -> Option<(Error, bool)> {
    let error = match jobs::fault(jobs)? {
        Fault::Partial(wrong) => {
            let error = Error::bad(
                format!("oban_jobs of prefix \"{prefix}\" is not all of Oban's: it {}", wrong.described()),
                "Its wake-ups work. oban_orphans, and queries of Oban's jobs, need what Oban's own table has.",
            );
            return Some((error, true));
        }
        Fault::TooOld { version } => Error::bad(
            format!("prefix \"{prefix}\" has the tables of Oban's migration {version}"),
            "Have Oban migrate them to version 11 or later first (Oban.Migration.up), and install again.",
        ),
        Fault::Columns(wrong) => Error::bad(
            format!(
                "oban_jobs of prefix \"{prefix}\" is of another kind than Oban's: it {}",
                wrong.described()
            ),
            "It has to have the columns of Oban's table, with queue and state not virtual. Have Oban migrate \
             a table of its own to version 11 or later first, and install again.",
        ),
    };
    Some((error, false))
}

/// Locks each table that `find` finds, and calls `act` for each one that `find` finds again.
/// Repeats this until `find` finds no table. `Err`: `find` still finds one after `ATTEMPTS` rounds
/// (40001), or the caller does not own one (42501).
fn each_locked(
    prefix: &Prefix<'_>,
    find: impl Fn() -> Vec<TableOid>,
    lock: impl Fn(TableOid),
    act: impl Fn(TableOid),
) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        let found = find();
        if found.is_empty() {
            return Ok(());
        }
        for table in &found {
            require_owner(*table)?;
            lock(*table);
        }
        for table in find().into_iter().filter(|table| found.contains(table)) {
            require_owner(table)?;
            act(table);
        }
    }
    Err(prefix.changed())
}

fn uninstall(name: &str) -> Result<(), Error> {
    session::require_writable("uninstall")?;
    let prefix = Prefix::locked(name, || existing(name))?;
    let functions = Functions::find()?;
    for table in [JOBS, PEERS].into_iter().filter_map(|name| prefix.table(name)).chain(own_signals(&prefix)) {
        require_owner(table)?;
    }
    clear_jobs(&prefix, &functions)?;
    clear_peers(&prefix, &functions)?;
    drop_signals(&prefix)?;
    note(Note::Prefix);
    Ok(())
}

/// Drops the triggers of the table of jobs and its partitions.
fn clear_jobs(prefix: &Prefix<'_>, functions: &Functions) -> Result<(), Error> {
    let has_any = |jobs: TableOid| {
        !functions.job_tables_with_trigger(jobs).is_empty() || due_index::find(jobs).is_some()
    };
    if !prefix.table(JOBS).is_some_and(has_any) {
        return Ok(());
    }
    let jobs = prefix.lock(JOBS, catalog::lock_for_alteration)?;
    Functions::job_tables(jobs).into_iter().try_for_each(require_owner)?;
    due_index::drop(jobs);
    each_locked(
        prefix,
        || functions.job_tables_with_trigger(jobs),
        catalog::lock_for_alteration,
        |table| functions.on_jobs(table).into_iter().for_each(|trigger| ddl::drop_trigger(trigger.oid)),
    )
}

/// Drops the triggers of the table of leaders and the columns that `oban_install` adds.
fn clear_peers(prefix: &Prefix<'_>, functions: &Functions) -> Result<(), Error> {
    let has_any = |peers: TableOid| has_columns(peers) || !functions.on_peers(peers).is_empty();
    if !prefix.table(PEERS).is_some_and(has_any) {
        return Ok(());
    }
    let peers = prefix.lock(PEERS, catalog::lock_for_alteration)?;
    functions.on_peers(peers).into_iter().for_each(ddl::drop_trigger);
    if has_columns(peers) {
        if triggers::is_inherited(peers) {
            return Err(prefix.another_kind());
        }
        ddl::drop_columns(peers, &[c"term", c"boot"]);
    }
    Ok(())
}

/// Returns the table of remembered signals. `None`: the prefix has no such table, or has another table
/// of that name.
fn own_signals(prefix: &Prefix<'_>) -> Option<TableOid> {
    prefix.table(signals::TABLE).filter(|table| signals::is_own(*table))
}

/// Drops the table of remembered signals.
fn drop_signals(prefix: &Prefix<'_>) -> Result<(), Error> {
    if own_signals(prefix).is_none() {
        return Ok(());
    }
    let table = prefix.lock(signals::TABLE, catalog::lock_for_alteration)?;
    if !signals::is_own(table) {
        return Err(prefix.changed());
    }
    ddl::drop_table(table);
    Ok(())
}
