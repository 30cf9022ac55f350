//! `oban_install` and `oban_uninstall`.
//!
//! `oban_install` looks first and then makes only what is missing, so that a second run changes nothing. It
//! creates tables as Oban's migration 14 does. What it adds to tables has names that begin with `obanrs_`,
//! except for two columns of oban_peers. One session at a time works on a prefix: a second one waits for a
//! lock on the schema and then finds all of it there. (search_path and lock_timeout are set by the functions'
//! own SET clauses.)
//!
//! The tables belong to users. A user may rename or replace a table at any moment. So a table is found by
//! its name once, locked by its oid, tested again, and only then altered, by its oid. No code of a table's
//! owner runs.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::attached::{self, Functions};
use super::tables;
use crate::error::{self, Error, given};
use crate::logic::channel::{self, MAX_CHANNEL};
use crate::logic::jobs::Fault;
use crate::logic::leadership::{MAX_PREFIX, term};
use crate::logic::shape;
use crate::logic::text::Text;
use crate::pg::argument::TextArgument;
use crate::pg::catalog::{self, Added};
use crate::pg::{acl, ddl, scan, session, spi, xact};
use crate::prefix::jobs;
use crate::prefix::peers::{self, Unusable};
use crate::prefix::terms;
use crate::shmem::at_end::{self, Note, note};

const JOBS: &str = "oban_jobs";
const PEERS: &str = "oban_peers";

/// How often to look again for a schema or table that was replaced while this waited for its lock.
const ATTEMPTS: usize = 5;

const LOCK_HINT: &str = "Another transaction holds a lock on the table for long. Find it in pg_locks or \
                         pg_stat_activity, and install again when it has ended.";

#[pg_extern(volatile, parallel_unsafe)]
fn oban_install(
    prefix: default!(Option<TextArgument>, "'public'"),
    stage: default!(Option<bool>, "NULL"),
) -> Result<(), ErrorReport> {
    let prefix = given("prefix", prefix)?.name("prefix", MAX_CHANNEL)?;
    let prefix: &str = &prefix;
    if prefix.is_empty() {
        return Err(Error::bad("prefix is empty", "Give the schema of the job tables.").into());
    }
    for name in channel::STANDARD {
        channel::full_name(prefix, name).map_err(Error::from)?;
    }
    if acl::is_reserved(prefix) {
        return Err(Error::ReservedPrefix(prefix.to_owned()).into());
    }
    if stage == Some(true) {
        return Err(Error::NotSupported("staging of scheduled jobs is not supported yet").into());
    }
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || install(prefix))?;
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

/// The schema that one call works on. It is used by its oid; `name` is for messages and for the SQL that
/// creates tables.
pub struct Prefix<'a> {
    pub name: &'a str,
    pub schema: u32,
}

impl<'a> Prefix<'a> {
    /// Locks the schema that `find` finds by its name, so that no other call works on it. `Err` when the name
    /// keeps changing its schema.
    fn locked(name: &'a str, find: impl Fn() -> Result<u32, Error>) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS {
            let schema = find()?;
            catalog::lock_namespace(schema);
            if catalog::namespace(name) == Some(schema) {
                return Ok(Self { name, schema });
            }
            catalog::unlock_namespace(schema); // nothing was changed in it
        }
        Err(Error::PrefixChanged(name.to_owned()))
    }

    pub fn table(&self, name: &str) -> Option<u32> {
        catalog::relation(self.schema, name)
    }

    /// Locks the table of this name, which then keeps its name, schema, owner and kind. `Err` when the caller
    /// does not own it, or it keeps being replaced.
    fn lock(&self, name: &str, lock: impl Fn(u32)) -> Result<u32, Error> {
        for _ in 0..ATTEMPTS {
            let table = self.table(name).ok_or_else(|| self.changed())?;
            require_owner(table)?; // before the lock, which holds up other sessions
            lock(table);
            if self.table(name) == Some(table) {
                require_owner(table)?;
                return Ok(table);
            }
        }
        Err(self.changed())
    }

    pub fn changed(&self) -> Error {
        Error::PrefixChanged(self.name.to_owned())
    }

    fn another_kind(&self) -> Error {
        Error::bad(
            format!("prefix \"{}\" has an oban_jobs or an oban_peers of another kind than Oban's", self.name),
            "oban_jobs has to be a table, and oban_peers a table with name and node (text), started_at and \
             expires_at (timestamp without time zone), neither term nor boot of another type than bigint, none of \
             these generated, and no table that inherits from it or that it inherits from.",
        )
    }
}

fn existing(prefix: &str) -> Result<u32, Error> {
    catalog::namespace(prefix).ok_or_else(|| Error::NoSuchPrefix(prefix.to_owned()))
}

fn existing_or_new(prefix: &str) -> Result<u32, Error> {
    if let Some(schema) = catalog::namespace(prefix) {
        return Ok(schema);
    }
    catalog::lock_creation_of_prefixes();
    if catalog::namespace(prefix).is_none() {
        spi::run(&format!("CREATE SCHEMA {}", pgrx::spi::quote_identifier(prefix)));
    }
    existing(prefix)
}

fn require_owner(table: u32) -> Result<(), Error> {
    if acl::owns(table) { Ok(()) } else { Err(Error::NotOwner { table: catalog::shown_name(table) }) }
}

fn install(name: &str) -> Result<(), Error> {
    session::require_writable("install")?; // even if nothing is missing
    let schema = existing_or_new(name)?;
    if !is_installed(&Functions::find()?, schema) {
        catalog::lock_extension().ok_or(Error::NoExtension)?; // or a function could be dropped meanwhile
        // Another session may have installed the prefix while this one waited: from here on all is looked up
        // anew.
        complete(&Prefix::locked(name, || existing_or_new(name))?)?;
    }
    warn_of_obstacles(name, schema);
    warn_of_jobs(name, schema);
    at_end::warn_without_place();
    note(Note::Prefix); // even if nothing was missing: the keeper may not know the tables yet
    Ok(())
}

/// Raises a WARNING when the prefix's table of leaders has an obstacle: the prefix is installed, and holds no
/// elections.
fn warn_of_obstacles(prefix: &str, schema: u32) {
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

/// Raises a WARNING when the prefix's table of jobs is one that would be refused by now, as an earlier version installed it,
/// or it was altered since. Its wake-ups go on as far as they can.
fn warn_of_jobs(prefix: &str, schema: u32) {
    if let Some((error, _)) = catalog::relation(schema, JOBS).and_then(|jobs| fault_of_jobs(prefix, jobs)) {
        ErrorReport::from(error).report(PgLogLevel::WARNING);
    }
}

/// Whether nothing is missing. Reads catalogs only.
fn is_installed(functions: &Functions, schema: u32) -> bool {
    catalog::relation(schema, JOBS).is_some_and(|jobs| are_jobs_complete(functions, jobs))
        && catalog::relation(schema, PEERS).is_some_and(|peers| are_peers_complete(functions, peers))
}

/// Whether a table of jobs and its partitions have the trigger. True also for a table that an earlier version has
/// installed and this version would refuse: `warn_of_jobs` names what is wrong with it.
fn are_jobs_complete(functions: &Functions, jobs: u32) -> bool {
    catalog::is_jobs_table(jobs) && functions.job_tables_without_trigger(jobs).is_empty()
}

/// Whether a table of leaders has all columns and triggers. True also for a table that an earlier version has
/// installed and this version would refuse: it stays as it is, and `warn_of_obstacles` names what is wrong
/// with it.
fn are_peers_complete(functions: &Functions, peers: u32) -> bool {
    catalog::peers_table_of(peers).is_some_and(|table| table.installed) && functions.guard(peers)
}

fn has_columns(peers: u32) -> bool {
    catalog::peers_columns(peers) == Some(Added { term: true, boot: true })
}

/// Makes what is missing, with the schema locked.
fn complete(prefix: &Prefix<'_>) -> Result<(), Error> {
    let functions = Functions::find()?;
    if prefix.table(JOBS).is_none() {
        tables::create_jobs(prefix)?;
    }
    if prefix.table(PEERS).is_none() {
        tables::create_peers(prefix)?;
    }
    for table in [JOBS, PEERS] {
        require_owner(prefix.table(table).ok_or_else(|| prefix.changed())?)?;
    }
    let jobs = prefix.table(JOBS).ok_or_else(|| prefix.changed())?;
    if !are_jobs_complete(&functions, jobs) {
        require_obans_jobs(prefix, jobs)?; // before any lock
    }
    complete_peers(prefix, &functions)?;
    complete_jobs(prefix, &functions)?;
    if is_installed(&functions, prefix.schema) { Ok(()) } else { Err(prefix.changed()) }
}

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
    let there = catalog::peers_columns(peers).filter(|_| !attached::is_inherited(peers));
    let there = there.ok_or_else(|| prefix.another_kind())?;
    let columns = [(c"term", there.term), (c"boot", there.boot)];
    let missing: Vec<_> = columns.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    if !missing.is_empty() {
        ddl::add_bigints(peers, &missing);
    }
    if let Some(function) = functions.peers.filter(|_| !functions.guard(peers)) {
        lift_terms(peers);
        attached::ON_PEERS.iter().for_each(|trigger| ddl::create_trigger(peers, function, trigger));
    }
    Ok(())
}

/// Lifts the sequence of terms above the terms in the table: the extension may have been dropped and created
/// since they were given.
fn lift_terms(peers: u32) {
    let Some(seen) = scan::greatest(peers, "term") else { return };
    let least = term::next_term(session::timeline(), seen);
    if least > seen {
        terms::lift_above(seen, least);
    }
}

fn complete_jobs(prefix: &Prefix<'_>, functions: &Functions) -> Result<(), Error> {
    if prefix.table(JOBS).is_some_and(|jobs| are_jobs_complete(functions, jobs)) {
        return Ok(());
    }
    let jobs = prefix.lock(JOBS, catalog::lock_name)?;
    require_obans_jobs(prefix, jobs)?;
    each_locked(
        prefix,
        || functions.job_tables_without_trigger(jobs),
        catalog::lock_for_triggers,
        |table| ddl::create_trigger(table, functions.jobs, &attached::ON_JOBS),
    )
}

/// Refuses (22023) a table of jobs that is not Oban's, or of a migration of Oban's before 11.
fn require_obans_jobs(prefix: &Prefix<'_>, jobs: u32) -> Result<(), Error> {
    if !catalog::is_jobs_table(jobs) {
        return Err(prefix.another_kind());
    }
    match fault_of_jobs(prefix.name, jobs) {
        Some((error, false)) => Err(error),
        Some((_, true)) | None => Ok(()),
    }
}

/// What keeps a table of jobs from being one of Oban's since its migration 11, and whether it can be installed all the
/// same. `None`: nothing does.
fn fault_of_jobs(prefix: &str, jobs: u32) -> Option<(Error, bool)> {
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
            "It has to have the columns of Oban's table, with queue and state not virtual. Have Oban migrate a table of \
             its own to version 11 or later first, and install again.",
        ),
    };
    Some((error, false))
}

/// Locks each table that `find` finds and, if `find` finds it again, calls `act` for it; until `find` finds
/// none. `Err` when `find` still finds one after `ATTEMPTS` rounds.
fn each_locked(
    prefix: &Prefix<'_>,
    find: impl Fn() -> Vec<u32>,
    lock: impl Fn(u32),
    act: impl Fn(u32),
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
    for table in [JOBS, PEERS].into_iter().filter_map(|name| prefix.table(name)) {
        require_owner(table)?;
    }
    clear_jobs(&prefix, &functions)?;
    clear_peers(&prefix, &functions)?;
    note(Note::Prefix);
    Ok(())
}

fn clear_jobs(prefix: &Prefix<'_>, functions: &Functions) -> Result<(), Error> {
    let has_trigger = |jobs: u32| !functions.job_tables_with_trigger(jobs).is_empty();
    if !prefix.table(JOBS).is_some_and(has_trigger) {
        return Ok(());
    }
    let jobs = prefix.lock(JOBS, catalog::lock_for_alteration)?;
    each_locked(
        prefix,
        || functions.job_tables_with_trigger(jobs),
        catalog::lock_for_alteration,
        |table| functions.on_jobs(table).into_iter().for_each(ddl::drop_trigger),
    )
}

fn clear_peers(prefix: &Prefix<'_>, functions: &Functions) -> Result<(), Error> {
    let has_any = |peers: u32| has_columns(peers) || !functions.on_peers(peers).is_empty();
    if !prefix.table(PEERS).is_some_and(has_any) {
        return Ok(());
    }
    let peers = prefix.lock(PEERS, catalog::lock_for_alteration)?;
    functions.on_peers(peers).into_iter().for_each(ddl::drop_trigger);
    if has_columns(peers) {
        if attached::is_inherited(peers) {
            return Err(prefix.another_kind());
        }
        ddl::drop_columns(peers, &[c"term", c"boot"]);
    }
    Ok(())
}
