//! Rights on a prefix, which are the rights on the prefix's table `oban_jobs`.

use std::cell::Cell;

use crate::config;
use crate::error::Error;
use crate::logic::ids::{RoleOid, SchemaOid, TableOid};
use crate::pg::{acl, catalog, session};

/// A right on a prefix. In a prefix without a table `oban_jobs`, `Read` is USAGE of the schema, and
/// every other right is CREATE in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To listen and to see: SELECT on the table or on any column of the table.
    Read,
    /// To publish, to join and to gossip: INSERT.
    Write,
    /// To signal running queues: UPDATE.
    Signal,
    /// To prune jobs: DELETE.
    Delete,
    /// To announce leaders: ownership.
    Own,
}

impl Right {
    fn needs(self) -> &'static str {
        match self {
            Self::Read => "SELECT on",
            Self::Write => "INSERT on",
            Self::Signal => "UPDATE on",
            Self::Delete => "DELETE on",
            Self::Own => "the ownership of",
        }
    }
}

/// Returns the oid of the prefix's schema if the current role has the right. Raises 3F000 if there
/// is no such schema, and 42501 if the role lacks the right.
///
/// Raises 42939 for a schema that belongs to Postgres. Any role may make temporary tables, so any
/// role may write to the role's temporary schema.
pub fn require(prefix: &str, right: Right) -> Result<SchemaOid, Error> {
    if is_reserved(prefix) {
        return Err(Error::ReservedPrefix(prefix.to_owned()));
    }
    let schema = catalog::namespace(prefix).ok_or_else(|| Error::NoSuchPrefix(prefix.to_owned()))?;
    if allows_in(schema, right) {
        Ok(schema)
    } else {
        Err(Error::NotAllowed { prefix: prefix.to_owned(), needs: right.needs() })
    }
}

/// Returns whether a schema belongs to Postgres, by the schema's name.
pub fn is_reserved(prefix: &str) -> bool {
    prefix.starts_with("pg_") || prefix == "information_schema"
}

/// Requires the right on a prefix whose schema was found before, under the name `prefix`. Raises
/// 3F000 if the schema was dropped since, and 42501 if the current role lacks the right.
pub fn require_in(schema: SchemaOid, prefix: &str, right: Right) -> Result<(), Error> {
    if catalog::schema_name(schema).is_none() {
        return Err(Error::NoSuchPrefix(prefix.to_owned()));
    }
    if allows_in(schema, right) {
        Ok(())
    } else {
        Err(Error::NotAllowed { prefix: prefix.to_owned(), needs: right.needs() })
    }
}

/// Returns whether the current role has the right. Returns false if there is no such prefix.
pub fn allows(prefix: &str, right: Right) -> bool {
    catalog::namespace(prefix).is_some_and(|schema| allows_in(schema, right))
}

/// Returns whether the current role has the right in a schema. For a schema that does not exist,
/// returns true to a superuser and raises 3F000 to any other role.
pub fn allows_in(schema: SchemaOid, right: Right) -> bool {
    let Some(table) = catalog::relation(schema, "oban_jobs") else {
        return if right == Right::Read { acl::may_use(schema) } else { acl::may_create_in(schema) };
    };
    match right {
        Right::Read => acl::may_select_any(table),
        Right::Write => acl::may_insert(table),
        Right::Signal => acl::may_update(table),
        Right::Delete => acl::may_delete(table),
        Right::Own => acl::owns(table),
    }
}

/// Returns whether the current role may read the messages of a watched table: it needs SELECT on
/// the table. SELECT on a column is not enough, because a message may have the value of another
/// column. USAGE of the schema is not needed. Returns false to every role if the table does not
/// exist.
pub fn reads_table(table: TableOid) -> bool {
    acl::exists_and_may_select(table)
}

/// Returns how much of `total` the current role may hold: the percentage that obanrs.role_share
/// sets, and at least 1. `None`: the role has no limit, because the role is a superuser or owns the
/// database, or because obanrs.role_share is 100.
pub fn quota_of(total: usize) -> Option<usize> {
    let limited = !acl::is_superuser() && !acl::owns_database(session::database());
    (limited && config::role_share() < 100).then(|| (total * config::role_share() / 100).max(1))
}

/// Returns how many of `total` worker processes the stagers of a role may be. `usize::MAX`: the role
/// has no limit, as in `quota_of`. The owner of the database has a limit here, which is half of them:
/// the workers are the server's, and other databases need some.
pub fn quota_of_stagers(role: RoleOid, total: usize) -> usize {
    if acl::is_superuser_role(role) || config::role_share() >= 100 {
        return usize::MAX;
    }
    let share = (total * config::role_share() / 100).max(1);
    if acl::role_owns_database(role, session::database()) { share.max(total / 2) } else { share }
}

/// Returns whether the current role may write to a prefix of this database. A superuser and the
/// owner of the database may. Any other role needs the right `Write` in at least one schema that
/// does not belong to Postgres.
pub fn writes_somewhere() -> bool {
    thread_local! {
        /// The schema in which the last call found the right. `NONE`: the last call found none.
        static LAST: Cell<SchemaOid> = const { Cell::new(SchemaOid::NONE) };
    }
    // Another session may drop a schema during this search, so the schema's name is looked up
    // first.
    let writes = |schema: &SchemaOid| {
        catalog::with_schema_name(*schema, |_| ()).is_some() && allows_in(*schema, Right::Write)
    };
    if quota_of(1).is_none() || (!LAST.get().is_none() && writes(&LAST.get())) {
        return true;
    }
    // Schemas with a table `oban_jobs` are searched first, because a right is likely there.
    let mut found = catalog::schemas_of("oban_jobs").into_iter().find(writes);
    if found.is_none() {
        found = catalog::schemas_of_users().into_iter().find(writes);
    }
    LAST.set(found.unwrap_or(SchemaOid::NONE));
    found.is_some()
}
