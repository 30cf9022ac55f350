//! The tables that are created in a prefix that lacks them: Oban's, as Oban's migration 14 creates
//! them, and the table of remembered signals.
//!
//! SQL creates the tables by the name of the schema, and the schema's owner can give that name to
//! another schema at any moment. So afterwards the tables in the locked schema have to be complete
//! and created by this transaction. If they are not, the SQL has created tables in another schema,
//! and an ERROR undoes that.

use super::install::Prefix;
use crate::error::Error;
use crate::logic::ids::TableOid;
use crate::pg::{catalog, ddl, spi};
use crate::prefix::signals;

const JOBS: &str = include_str!("../../sql/prefix/oban_jobs.sql");
const STATES: &str = include_str!("../../sql/prefix/oban_job_state.sql");
const PEERS: &str = include_str!("../../sql/prefix/oban_peers.sql");
const SIGNALS: &str = include_str!("../../sql/prefix/obanrs_queue_signals.sql");

/// Creates oban_jobs. `Err`: a name is taken (22023), or the prefix was changed meanwhile (40001).
pub fn create_jobs(prefix: &Prefix<'_>) -> Result<(), Error> {
    let states = states(prefix)?;
    for name in ["oban_jobs"].into_iter().chain(indexes()) {
        require_free(prefix, name, "oban_jobs")?;
    }
    spi::run(&fill(JOBS, prefix));
    let jobs = created(prefix, "oban_jobs")?;
    let is_obans = catalog::has_column(jobs, "state", states) && has_primary_key(jobs) && is_whole(jobs);
    if is_obans { Ok(()) } else { Err(prefix.changed()) }
}

/// Creates oban_peers. `Err`: a name is taken (22023), or the prefix was changed meanwhile (40001).
pub fn create_peers(prefix: &Prefix<'_>) -> Result<(), Error> {
    require_free(prefix, "oban_peers", "oban_peers")?;
    spi::run(&fill(PEERS, prefix));
    let peers = created(prefix, "oban_peers")?;
    if has_primary_key(peers) { Ok(()) } else { Err(prefix.changed()) }
}

/// Creates the table of remembered signals. `Err`: a name is taken (22023), or the prefix was changed
/// meanwhile (40001).
pub fn create_signals(prefix: &Prefix<'_>) -> Result<(), Error> {
    require_free(prefix, signals::TABLE, signals::TABLE)?;
    spi::run(&fill(SIGNALS, prefix));
    let table = created(prefix, signals::TABLE)?;
    // A superuser may install the prefix of another role. That role has to be able to dump the
    // table, and to uninstall.
    if let Some(jobs) = prefix.table("oban_jobs") {
        ddl::give_to_owner_of(table, jobs);
    }
    if has_primary_key(table) && signals::is_own(table) { Ok(()) } else { Err(prefix.changed()) }
}

/// Returns the type of a job's state, and creates it if necessary. A type that exists already is
/// tested before anything uses it. `Err`: the existing type is not Oban's (22023), or the prefix
/// was changed meanwhile (40001).
fn states(prefix: &Prefix<'_>) -> Result<u32, Error> {
    const NAME: &str = "oban_job_state";
    if let Some(there) = catalog::type_named(prefix.schema, NAME) {
        return if catalog::is_enum_of(there, labels()) { Ok(there) } else { Err(odd_states(prefix)) };
    }
    spi::run(&fill(STATES, prefix));
    let made = catalog::type_named(prefix.schema, NAME);
    made.filter(|kind| catalog::is_type_of_this_transaction(*kind)).ok_or_else(|| prefix.changed())
}

/// Returns the labels of the type: the quoted words of the statement that creates the type.
fn labels() -> impl Iterator<Item = &'static str> {
    STATES.split('\'').skip(1).step_by(2)
}

fn odd_states(prefix: &Prefix<'_>) -> Error {
    Error::bad(
        format!("the type oban_job_state of prefix \"{}\" is of another kind than Oban's", prefix.name),
        format!("It has to be an enum with the labels {}.", labels().collect::<Vec<_>>().join(", ")),
    )
}

/// Returns the names of the indexes that JOBS creates. (For objects that have no name in JOBS,
/// Postgres picks free names.)
fn indexes() -> impl Iterator<Item = &'static str> {
    JOBS.split("CREATE INDEX ").skip(1).filter_map(|rest| rest.split_whitespace().next())
}

/// Refuses a name (22023) that another relation or a type has already. For example, a table that
/// was renamed has kept its indexes' names.
fn require_free(prefix: &Prefix<'_>, name: &str, table: &str) -> Result<(), Error> {
    let taken = catalog::relation(prefix.schema, name).is_some()
        || catalog::type_named(prefix.schema, name).is_some();
    if !taken {
        return Ok(());
    }
    Err(Error::bad(
        format!("prefix \"{}\" has no {table}, but already something named {name}", prefix.name),
        format!("Rename or drop it, so that {table} can be created."),
    ))
}

/// Returns the table of this name in the locked schema. `Err`: this transaction has not just
/// created the table (40001).
fn created(prefix: &Prefix<'_>, table: &str) -> Result<TableOid, Error> {
    let found = prefix.table(table).filter(|table| catalog::is_relation_of_this_transaction(*table));
    found.ok_or_else(|| prefix.changed())
}

/// Returns whether a table has its primary key. To create that index, CREATE TABLE looks the table
/// up by its name again.
fn has_primary_key(table: TableOid) -> bool {
    let sql = "SELECT 'has one' FROM pg_index i WHERE i.indrelid = $1::oid AND i.indisprimary";
    !spi::look(sql, &table.to_string()).is_empty()
}

/// Returns whether the table has everything that JOBS creates. Each statement of JOBS looks the
/// table up by its name again.
fn is_whole(jobs: TableOid) -> bool {
    let sql = format!(
        "SELECT 'whole' FROM pg_class c
         WHERE c.oid = $1::oid AND obj_description(c.oid, 'pg_class') = '14'
           AND EXISTS (
                SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = 'non_negative_priority'
           )
           AND {indexes} <= (
                SELECT count(*) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                WHERE i.indrelid = c.oid AND x.relnamespace = c.relnamespace
           )
           AND EXISTS (
                SELECT FROM pg_attribute a
                JOIN pg_attrdef v ON v.adrelid = a.attrelid AND v.adnum = a.attnum
                JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = v.oid
                JOIN pg_class s ON d.refclassid = 'pg_class'::regclass AND s.oid = d.refobjid
                JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = s.oid AND o.deptype = 'a'
                    AND o.refclassid = 'pg_class'::regclass AND o.refobjid = c.oid AND o.refobjsubid = a.attnum
                WHERE a.attrelid = c.oid AND a.attname = 'id' AND s.relkind = 'S'
                  AND s.relnamespace = c.relnamespace
           )",
        indexes = indexes().count() + 1 // the index of the primary key counts, too
    );
    !spi::look(&sql, &jobs.to_string()).is_empty()
}

/// Returns a template of sql/prefix with the name of the prefix filled in.
fn fill(template: &str, prefix: &Prefix<'_>) -> String {
    template.replace("{prefix}", &pgrx::spi::quote_identifier(prefix.name))
}
