//! Who may do what: rights on a prefix are rights on its `oban_jobs`.

use std::cell::Cell;

use pgrx::pg_sys;

use super::{catalog, session};
use crate::config;
use crate::error::Error;

/// What is asked for. Without a table `oban_jobs` in the prefix, `Read` is USAGE of the schema and
/// the others are CREATE in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Listens and sees: SELECT on the table or on any column of it.
    Read,
    /// Publishes, joins and gossips: INSERT.
    Write,
    /// Signals running queues: UPDATE.
    Signal,
    /// Announces leaders: ownership.
    Own,
}

impl Right {
    fn needs(self) -> &'static str {
        match self {
            Self::Read => "SELECT on",
            Self::Write => "INSERT on",
            Self::Signal => "UPDATE on",
            Self::Own => "the ownership of",
        }
    }
}

/// The schema of a prefix, for which the current role has the right. 3F000 without such a schema, 42501 without the
/// right.
///
/// 42939 for a schema of Postgres' own: any role may make temporary tables, so any role may write to its temporary
/// schema.
pub fn require(prefix: &str, right: Right) -> Result<u32, Error> {
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

/// Whether a schema is one of Postgres' own.
pub fn is_reserved(prefix: &str) -> bool {
    prefix.starts_with("pg_") || prefix == "information_schema"
}

/// The same for a prefix that was found before, under this name. 3F000 when its schema was dropped since.
pub fn require_in(schema: u32, prefix: &str, right: Right) -> Result<(), Error> {
    if catalog::schema_name(schema).is_none() {
        return Err(Error::NoSuchPrefix(prefix.to_owned()));
    }
    if allows_in(schema, right) {
        Ok(())
    } else {
        Err(Error::NotAllowed { prefix: prefix.to_owned(), needs: right.needs() })
    }
}

/// Whether the current role has the right; false without such a prefix.
pub fn allows(prefix: &str, right: Right) -> bool {
    catalog::namespace(prefix).is_some_and(|schema| allows_in(schema, right))
}

/// Whether the current role has the right in a schema. Of a schema that does not exist: whether it is a superuser.
pub fn allows_in(schema: u32, right: Right) -> bool {
    let (role, ok) = (pg_sys::Oid::from(session::role()), pg_sys::AclResult::ACLCHECK_OK);
    let Some(table) = catalog::relation(schema, "oban_jobs") else {
        let mode = if right == Right::Read { pg_sys::ACL_USAGE } else { pg_sys::ACL_CREATE };
        return namespace_check(schema, role, mode) == ok;
    };
    let table = pg_sys::Oid::from(table);
    // SAFETY: privilege lookups of a relation by its id.
    unsafe {
        match right {
            Right::Read => {
                let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
                pg_sys::pg_class_aclcheck(table, role, select) == ok
                    || pg_sys::pg_attribute_aclcheck_all(table, role, select, pg_sys::AclMaskHow::ACLMASK_ANY)
                        == ok
            }
            Right::Write => {
                pg_sys::pg_class_aclcheck(table, role, pg_sys::ACL_INSERT as pg_sys::AclMode) == ok
            }
            Right::Signal => {
                pg_sys::pg_class_aclcheck(table, role, pg_sys::ACL_UPDATE as pg_sys::AclMode) == ok
            }
            Right::Own => owns_relation(table, role),
        }
    }
}

/// Whether the current role owns the relation.
pub fn owns(relation: u32) -> bool {
    owns_relation(pg_sys::Oid::from(relation), pg_sys::Oid::from(session::role()))
}

/// Whether the current role owns the database.
pub fn owns_database(database: u32) -> bool {
    let (database, role) = (pg_sys::Oid::from(database), pg_sys::Oid::from(session::role()));
    #[cfg(feature = "pg15")]
    // SAFETY: a privilege lookup.
    unsafe {
        pg_sys::pg_database_ownercheck(database, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: a privilege lookup.
    unsafe {
        pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role)
    }
}

/// The most of `total` that the current role may hold: its share (obanrs.role_share). `None`: it has no limit, as a
/// superuser or the owner of the database.
pub fn quota_of(total: usize) -> Option<usize> {
    // SAFETY: a lookup in the role caches.
    let limited = !unsafe { pg_sys::superuser() } && !owns_database(session::database());
    (limited && config::role_share() < 100).then(|| (total * config::role_share() / 100).max(1))
}

/// Whether the current role may write to a prefix of this database: as a superuser, as the owner of the database, or
/// with that right in any schema that is not Postgres' own.
pub fn writes_somewhere() -> bool {
    thread_local! {
        /// The schema that it was the last time.
        static LAST: Cell<u32> = const { Cell::new(0) };
    }
    // A schema may be dropped while this looks.
    let writes = |schema: &u32| {
        catalog::with_schema_name(*schema, |_| ()).is_some() && allows_in(*schema, Right::Write)
    };
    if quota_of(1).is_none() || (LAST.get() != 0 && writes(&LAST.get())) {
        return true;
    }
    // First where it is likely.
    let mut found = catalog::schemas_of("oban_jobs").into_iter().find(writes);
    if found.is_none() {
        found = catalog::schemas_of_users().into_iter().find(writes);
    }
    LAST.set(found.unwrap_or(0));
    found.is_some()
}

fn owns_relation(relation: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: a privilege lookup.
    unsafe {
        pg_sys::pg_class_ownercheck(relation, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: a privilege lookup.
    unsafe {
        pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role)
    }
}

fn namespace_check(schema: u32, role: pg_sys::Oid, mode: u32) -> pg_sys::AclResult::Type {
    let schema = pg_sys::Oid::from(schema);
    #[cfg(feature = "pg15")]
    // SAFETY: a privilege lookup.
    unsafe {
        pg_sys::pg_namespace_aclcheck(schema, role, mode as pg_sys::AclMode)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: a privilege lookup.
    unsafe {
        pg_sys::object_aclcheck(pg_sys::NamespaceRelationId, schema, role, mode as pg_sys::AclMode)
    }
}
