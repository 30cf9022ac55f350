//! `<prefix>.oban_peers` as the caches of the catalogs have it. These functions take no lock on the table.
//! They serve `oban_install`, `oban_check` and `oban_leader`; elections use `peers`.

use pgrx::pg_sys;

use super::peers::TABLE;
use crate::logic::ids::{SchemaOid, TableOid};
use crate::pg::{catalog, tuple};

/// `<prefix>.oban_peers` as Oban makes it: an ordinary table with Oban's columns and their types.
#[derive(Clone, Copy)]
pub struct PeersInfo {
    pub oid: TableOid,
    /// Whether the table has the columns that `oban_install` adds.
    pub installed: bool,
}

/// Returns the table of leaders of a prefix, as the caches have it now. `None`: the prefix or the
/// table does not exist, the table has another shape, or it is temporary.
pub fn info(prefix: &str) -> Option<PeersInfo> {
    info_in(catalog::namespace(prefix)?)
}

/// Returns the table of leaders of a schema, as `info` does.
pub fn info_in(schema: SchemaOid) -> Option<PeersInfo> {
    info_of(catalog::relation(schema, TABLE)?)
}

/// Returns a relation as a table of leaders, as `info` does.
pub fn info_of(oid: TableOid) -> Option<PeersInfo> {
    if !catalog::is_plain_table(oid) {
        return None;
    }
    let all = |names: [&str; 2], wanted: &dyn Fn(pg_sys::Oid) -> bool| {
        names.iter().all(|name| catalog::column_type(oid, name).is_some_and(wanted))
    };
    let typed = |names, wanted| all(names, &|found| found == wanted);
    (all(["name", "node"], &tuple::is_name) && typed(["started_at", "expires_at"], pg_sys::TIMESTAMPOID))
        .then(|| PeersInfo { oid, installed: typed(["term", "boot"], pg_sys::INT8OID) })
}

/// Which of the columns that `oban_install` adds to a table of leaders exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    pub term: bool,
    pub boot: bool,
}

/// Returns which of the columns that `oban_install` adds a table of leaders has. `None`: the
/// relation is not a table of leaders apart from these columns, or it has a column `term` or `boot`
/// of another kind. The types are types of Postgres, so reading and writing their values runs no
/// code of the table's owner.
pub fn added_columns(relation: TableOid) -> Option<Added> {
    let has = |name: &str, types: &[pg_sys::Oid]| {
        catalog::plain_column(relation, name).map(|kind| types.contains(&kind))
    };
    let all = |names: [&str; 2], types| names.iter().all(|name| has(name, types) == Some(true));
    let added = |name: &str| match (catalog::column_type(relation, name), has(name, &[pg_sys::INT8OID])) {
        (None, _) => Some(false),
        (_, Some(true)) => Some(true),
        _ => None,
    };
    let is_of_leaders = catalog::is_table_by_itself(relation)
        && all(["name", "node"], &[pg_sys::TEXTOID, pg_sys::VARCHAROID])
        && all(["started_at", "expires_at"], &[pg_sys::TIMESTAMPOID]);
    if !is_of_leaders {
        return None;
    }
    Some(Added { term: added("term")?, boot: added("boot")? })
}
