//! Which schemas are prefixes, and which prefixes are installed, as committed now. The catalogs are read
//! themselves, for the reason that `extension` gives.

use pgrx::pg_sys;

use super::peers::TABLE;
use super::signals;
use crate::logic::ids::SchemaOid;
use crate::pg::catalog::{self, NamedTable};
use crate::pg::{encoding, session};

/// Returns the schemas that have a table named oban_peers, as committed now. The table's shape does
/// not matter.
pub fn schemas() -> Vec<SchemaOid> {
    catalog::tables_named(TABLE).into_iter().map(|table| table.schema).collect()
}

/// Returns the schemas that have a table named oban_peers with their names, in the order of the
/// names. A schema is left out if a prefix in this database can't have its name: the database may
/// not be able to convert the name.
pub fn named_schemas() -> Vec<(String, SchemaOid)> {
    with_names(schemas())
}

/// Returns the schemas that have a table of remembered signals with their names, as `named_schemas`
/// does.
pub fn named_schemas_of_signals() -> Vec<(String, SchemaOid)> {
    with_names(catalog::tables_named(signals::TABLE).into_iter().map(|table| table.schema).collect())
}

/// Returns these schemas with their names, as `named_schemas` does.
fn with_names(schemas: Vec<SchemaOid>) -> Vec<(String, SchemaOid)> {
    let named = |schema| Some((prefix_name(schema)?, schema));
    let mut named: Vec<_> = schemas.into_iter().filter_map(named).collect();
    named.sort();
    named
}

/// Returns the schemas whose table of leaders has the columns that `oban_install` adds.
pub fn installed_schemas() -> Vec<SchemaOid> {
    let installed = |table: &NamedTable| catalog::has_columns(table.oid, &["term", "boot"], pg_sys::INT8OID);
    let tables = catalog::tables_named(TABLE).into_iter().filter(installed);
    tables.map(|table| table.schema).collect()
}

/// Returns the names of the schemas whose table of leaders has the columns that `oban_install`
/// adds. Names that a prefix can't have are left out, as in `named_schemas`.
pub fn installed_names() -> Vec<String> {
    installed_schemas().into_iter().filter_map(prefix_name).collect()
}

/// Returns the name of a schema, as committed now. `None`: there is no such schema, or a prefix
/// can't have the name.
fn prefix_name(schema: SchemaOid) -> Option<String> {
    catalog::namespace_name(schema).filter(|name| encoding::is_name(name))
}

/// Returns the value of default_transaction_read_only that ALTER DATABASE has set, as committed
/// now. `None`: ALTER DATABASE has set no value.
pub fn database_read_only() -> Option<bool> {
    let value = catalog::setting_of_database(session::database(), "default_transaction_read_only")?;
    // Postgres reads any beginning of these words as a boolean. The shortest one for "off" is "of".
    let value = value.to_ascii_lowercase();
    let is = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    Some(!(is("false", 1) || is("no", 1) || is("off", 2) || value == "0"))
}
