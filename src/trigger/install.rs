//! `oban_install` and `oban_uninstall`.
//!
//! Installing looks first and then runs only the statements that something is missing for, so that a
//! second run takes no lock. What it creates is what Oban's migration 14 creates; what it adds to
//! tables has names that begin with `obanrs_`, except for two columns of oban_peers. A prefix is
//! installed by one session at a time: the second waits for a lock of its schema and then finds
//! everything there. (search_path and lock_timeout are set by the functions' own SET clauses.)

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::{self, Error, given};
use crate::logic::channel;
use crate::logic::peer::{MAX_PREFIX, rows};
use crate::logic::text::Text;
use crate::pg::{acl, catalog, session, spi, xact};
use crate::prefix::terms;
use crate::shmem::at_end::{Note, note};

const JOBS: &str = include_str!("../../sql/prefix/oban_jobs.sql");
const STATES: &str = include_str!("../../sql/prefix/oban_job_state.sql");
const PEERS: &str = include_str!("../../sql/prefix/oban_peers.sql");
const PEERS_COLUMNS: &str = include_str!("../../sql/prefix/oban_peers_columns.sql");
const PEERS_TRIGGERS: &str = include_str!("../../sql/prefix/peers_triggers.sql");
const TRIGGER: &str = include_str!("../../sql/prefix/jobs_trigger.sql");

const LOCK_HINT: &str = "Another transaction holds a lock on the table for long. Find it in pg_locks or \
                         pg_stat_activity, and install again when it has ended.";

#[pg_extern(volatile, parallel_unsafe)]
fn oban_install(
    prefix: default!(Option<&str>, "'public'"),
    stage: default!(Option<bool>, "NULL"),
) -> Result<(), ErrorReport> {
    let prefix = given("prefix", prefix)?;
    if prefix.is_empty() {
        return Err(Error::bad("prefix is empty", "Give the schema of the job tables.").into());
    }
    for name in channel::STANDARD {
        channel::full_name(prefix, name).map_err(Error::from)?;
    }
    if stage == Some(true) {
        return Err(Error::NotSupported("staging of scheduled jobs is not supported yet").into());
    }
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || install(prefix))?;
    Ok(())
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_uninstall(prefix: default!(Option<&str>, "'public'")) -> Result<(), ErrorReport> {
    let prefix: Text<MAX_PREFIX> = error::name("prefix", prefix)?;
    let prefix = prefix.as_str();
    let schema = catalog::namespace(prefix).ok_or_else(|| Error::NoSuchPrefix(prefix.to_owned()))?;
    xact::with_hint(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, LOCK_HINT, || uninstall(prefix, schema))?;
    Ok(())
}

fn install(prefix: &str) -> Result<(), Error> {
    let schema = match catalog::namespace(prefix) {
        Some(schema) => schema,
        None => {
            session::require_writable("install")?;
            catalog::lock_creation_of_prefixes();
            if catalog::namespace(prefix).is_none() {
                spi::run(&format!("CREATE SCHEMA {}", pgrx::spi::quote_identifier(prefix)));
            }
            catalog::namespace(prefix).ok_or_else(|| Error::NoSuchPrefix(prefix.to_owned()))?
        }
    };
    if is_installed(schema, prefix) {
        note(Note::Prefix); // the keeper may have missed how it came to that
        return Ok(());
    }
    session::require_writable("install")?;
    catalog::lock_extension(); // or what is made could depend on a function that is gone
    catalog::lock_namespace(schema);
    // Another session may have installed it while this one waited: every look from here on is a new one.
    complete(schema, prefix)?;
    note(Note::Prefix);
    Ok(())
}

/// Makes what is missing, with the schema locked.
fn complete(schema: u32, prefix: &str) -> Result<(), Error> {
    if catalog::relation(schema, "oban_jobs").is_none() {
        if !catalog::type_exists(schema, "oban_job_state") {
            spi::run(&fill(STATES, prefix));
        }
        spi::run(&fill(JOBS, prefix));
    }
    if catalog::relation(schema, "oban_peers").is_none() {
        spi::run(&fill(PEERS, prefix));
    }
    for table in ["oban_jobs", "oban_peers"] {
        require_owner(schema, prefix, table)?;
    }
    if catalog::peers_table(prefix).is_none() {
        return Err(another_kind(prefix));
    }
    if !has_peers_columns(prefix) {
        spi::run(&fill(PEERS_COLUMNS, prefix));
    }
    if !has_peers_triggers(prefix) {
        lift_terms(prefix);
        let triggers = PEERS_TRIGGERS.replace("{function}", &spi::own_function("obanrs_peers"));
        spi::run(&triggers.replace("{table}", &spi::qualified(prefix, "oban_peers")));
    }
    for table in tables_without_trigger(prefix) {
        // The table last: its name may contain anything.
        let trigger = TRIGGER.replace("{function}", &spi::own_function("obanrs_jobs_insert"));
        spi::run(&trigger.replace("{table}", &table));
    }
    if !has_peers_columns(prefix) || !has_peers_triggers(prefix) || tables_with_trigger(prefix).is_empty() {
        return Err(another_kind(prefix));
    }
    Ok(())
}

fn another_kind(prefix: &str) -> Error {
    Error::bad(
        format!("prefix \"{prefix}\" has an oban_jobs or an oban_peers of another kind than Oban's"),
        "oban_jobs has to be a table, and oban_peers a table with name and node (text), started_at and \
         expires_at (timestamp without time zone), and neither term nor boot of another type than bigint.",
    )
}

fn uninstall(prefix: &str, schema: u32) -> Result<(), Error> {
    session::require_writable("uninstall")?;
    catalog::lock_namespace(schema);
    for table in ["oban_jobs", "oban_peers"] {
        if catalog::relation(schema, table).is_some() {
            require_owner(schema, prefix, table)?;
        }
    }
    for table in tables_with_trigger(prefix) {
        spi::run(&format!("DROP TRIGGER obanrs_jobs_insert ON {table}"));
    }
    let peers = spi::qualified(prefix, "oban_peers");
    for trigger in peers_triggers(prefix) {
        spi::run(&format!("DROP TRIGGER {trigger} ON {peers}"));
    }
    if has_peers_columns(prefix) {
        spi::run(&format!("ALTER TABLE {peers} DROP COLUMN IF EXISTS term, DROP COLUMN IF EXISTS boot"));
    }
    note(Note::Prefix);
    Ok(())
}

fn is_installed(schema: u32, prefix: &str) -> bool {
    catalog::relation(schema, "oban_jobs").is_some()
        && has_peers_columns(prefix)
        && has_peers_triggers(prefix)
        && tables_without_trigger(prefix).is_empty()
        && !tables_with_trigger(prefix).is_empty()
}

fn has_peers_columns(prefix: &str) -> bool {
    catalog::peers_table(prefix).is_some_and(|t| t.installed)
}

/// Terms go on above those that are in the table: the extension may have been dropped and created since.
fn lift_terms(prefix: &str) {
    let sql =
        format!("SELECT max(term)::text FROM ONLY {} WHERE $1 <> ''", spi::qualified(prefix, "oban_peers"));
    let seen = spi::look(&sql, prefix).pop().and_then(|term| term.parse::<i64>().ok());
    if let Some(seen) = seen {
        let least = rows::next_term(session::timeline(), seen);
        if least > seen {
            terms::lift_above(seen, least);
        }
    }
}

/// Those of our triggers that oban_peers has.
const ON_PEERS: &str = "
    SELECT g.tgname::text FROM pg_trigger g
    JOIN pg_class c ON c.oid = g.tgrelid AND c.relname = 'oban_peers'
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1::name
    JOIN pg_proc f ON f.oid = g.tgfoid AND f.proname = 'obanrs_peers'
    JOIN pg_extension e ON e.extname = 'obanrs' AND e.extnamespace = f.pronamespace
    WHERE g.tgname IN ('obanrs_peers_guard', 'obanrs_peers_rows', 'obanrs_peers_end')";

fn peers_triggers(prefix: &str) -> Vec<String> {
    spi::look(ON_PEERS, prefix)
}

/// True also where the extension in this database is of a version that has none.
fn has_peers_triggers(prefix: &str) -> bool {
    !spi::has_own_function("obanrs_peers")
        || peers_triggers(prefix).len() == PEERS_TRIGGERS.matches("CREATE OR REPLACE TRIGGER").count()
}

fn require_owner(schema: u32, prefix: &str, table: &str) -> Result<(), Error> {
    match catalog::relation(schema, table) {
        Some(relation) if !acl::owns(relation) => {
            Err(Error::NotOwner { table: spi::qualified(prefix, table) })
        }
        _ => Ok(()),
    }
}

/// Writes the prefix into a template of sql/prefix.
fn fill(template: &str, prefix: &str) -> String {
    template.replace("{prefix}", &pgrx::spi::quote_identifier(prefix))
}

/// oban_jobs and, when it is partitioned, all partitions: an INSERT into one of them fires only its
/// own triggers. Foreign tables can't have such a trigger.
/// (pg_partition_tree would lock them.)
const JOB_TABLES: &str = "
    WITH RECURSIVE tables AS (
        SELECT c.oid, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1::name AND c.relname = 'oban_jobs'
        UNION
        SELECT c.oid, c.relkind FROM tables t
        JOIN pg_inherits i ON i.inhparent = t.oid AND t.relkind = 'p'
        JOIN pg_class c ON c.oid = i.inhrelid
    )
    SELECT t.oid::regclass::text FROM tables t
    WHERE t.relkind IN ('r', 'p') AND {with_trigger} = EXISTS (
        SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid AND g.tgname = 'obanrs_jobs_insert' AND g.tgfoid = (
            SELECT f.oid FROM pg_proc f JOIN pg_extension e ON e.extnamespace = f.pronamespace
            WHERE e.extname = 'obanrs' AND f.proname = 'obanrs_jobs_insert'
        )
    )
    ORDER BY t.oid";

fn tables_without_trigger(prefix: &str) -> Vec<String> {
    job_tables(prefix, false)
}

fn tables_with_trigger(prefix: &str) -> Vec<String> {
    job_tables(prefix, true)
}

fn job_tables(prefix: &str, with_trigger: bool) -> Vec<String> {
    spi::look(&JOB_TABLES.replace("{with_trigger}", if with_trigger { "true" } else { "false" }), prefix)
}
