//! Privileges of the current role on relations, schemas and databases, which are given by their oids.

use pgrx::pg_sys;

use super::session;
use crate::logic::ids::{DatabaseOid, RoleOid, SchemaOid, TableOid};

/// Returns whether the current role is a superuser.
pub fn is_superuser() -> bool {
    // SAFETY: `superuser` takes no argument and reads the caches of roles.
    unsafe { pg_sys::superuser() }
}

/// Returns whether the current role may select from the table, or from any column of the table.
pub fn may_select_any(table: TableOid) -> bool {
    let (oid, role) = (pg_sys::Oid::from(table), pg_sys::Oid::from(session::role()));
    let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
    may(table, pg_sys::ACL_SELECT) || {
        // SAFETY: the function looks up privileges by oids, and checks the oids itself.
        let result =
            unsafe { pg_sys::pg_attribute_aclcheck_all(oid, role, select, pg_sys::AclMaskHow::ACLMASK_ANY) };
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Returns whether the table exists and the current role may select from all of it. Returns false
/// to a superuser as well if there is no such table.
pub fn exists_and_may_select(table: TableOid) -> bool {
    let (oid, role) = (pg_sys::Oid::from(table), pg_sys::Oid::from(session::role()));
    let mut is_missing = false;
    // SAFETY: the function looks up privileges by oids, and checks the oids itself. It writes the
    // flag.
    let result = unsafe {
        pg_sys::pg_class_aclcheck_ext(oid, role, pg_sys::ACL_SELECT as pg_sys::AclMode, &mut is_missing)
    };
    !is_missing && result == pg_sys::AclResult::ACLCHECK_OK
}

/// Returns whether the current role may insert into the table.
pub fn may_insert(table: TableOid) -> bool {
    may(table, pg_sys::ACL_INSERT)
}

/// Returns whether the current role may update the table.
pub fn may_update(table: TableOid) -> bool {
    may(table, pg_sys::ACL_UPDATE)
}

/// Returns whether row security hides rows of the table from the current role.
pub fn row_security_applies(table: TableOid) -> bool {
    // SAFETY: the function looks up the table and the role by oids. Without a table it says that no policy
    // applies.
    let applies = unsafe { pg_sys::check_enable_rls(table.into(), pg_sys::InvalidOid, true) };
    applies == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
}

/// Returns whether the current role may delete rows of the table.
pub fn may_delete(table: TableOid) -> bool {
    may(table, pg_sys::ACL_DELETE)
}

fn may(table: TableOid, mode: u32) -> bool {
    let (table, role) = (pg_sys::Oid::from(table), pg_sys::Oid::from(session::role()));
    // SAFETY: the function looks up privileges by oids, and checks the oids itself.
    let result = unsafe { pg_sys::pg_class_aclcheck(table, role, mode as pg_sys::AclMode) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// Returns whether the current role may use the schema. For a schema that does not exist, returns
/// true to a superuser and raises 3F000 to any other role.
pub fn may_use(schema: SchemaOid) -> bool {
    may_in_schema(schema, pg_sys::ACL_USAGE)
}

/// Returns whether the current role may create objects in the schema. For a schema that does not
/// exist, returns true to a superuser and raises 3F000 to any other role.
pub fn may_create_in(schema: SchemaOid) -> bool {
    may_in_schema(schema, pg_sys::ACL_CREATE)
}

/// Returns whether the current role owns the relation.
pub fn owns(relation: TableOid) -> bool {
    owns_relation(pg_sys::Oid::from(relation), pg_sys::Oid::from(session::role()))
}

/// Returns whether a superuser owns the relation.
pub fn is_owned_by_superuser(relation: TableOid) -> bool {
    let owner = super::catalog::owner(relation).map_or(pg_sys::InvalidOid, pg_sys::Oid::from);
    // SAFETY: the function reads the caches of roles. An oid that is no role's is no superuser's.
    unsafe { pg_sys::superuser_arg(owner) }
}

/// Returns whether the current role owns the database.
pub fn owns_database(database: DatabaseOid) -> bool {
    role_owns_database(session::role(), database)
}

/// Returns whether a role is a superuser. Returns false if there is no such role.
pub fn is_superuser_role(role: RoleOid) -> bool {
    // SAFETY: the function reads the caches of roles.
    unsafe { pg_sys::superuser_arg(pg_sys::Oid::from(role)) }
}

/// Returns whether a role is a superuser or can become one: it is a member of a superuser, or of a
/// role of Postgres that may run programs or read and write files on the server. Returns false if
/// there is no such role.
pub fn is_powerful_role(role: RoleOid) -> bool {
    const SQL: &str = "
        SELECT 'it is' FROM pg_catalog.pg_roles r
        WHERE (r.rolsuper OR r.rolname OPERATOR(pg_catalog.=) ANY (
                '{pg_execute_server_program,pg_read_server_files,pg_write_server_files}'::pg_catalog.name[]
            )) AND pg_catalog.pg_has_role($1::pg_catalog.oid, r.oid, 'MEMBER')
        LIMIT 1";
    is_superuser_role(role) || !super::spi::look(SQL, &role.to_string()).is_empty()
}

/// Returns whether a role has LOGIN. Returns false if there is no such role.
pub fn may_log_in(role: RoleOid) -> bool {
    // SAFETY: AUTHOID is a cache of pg_authid by oid. The field is read before the tuple is
    // released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::AUTHOID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(pg_sys::Oid::from(role)));
        if tuple.is_null() {
            return false;
        }
        let may = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>()).rolcanlogin;
        pg_sys::ReleaseSysCache(tuple);
        may
    }
}

/// Returns whether a role may connect to a database.
pub fn may_connect(role: RoleOid, database: DatabaseOid) -> bool {
    let (database, role) = (pg_sys::Oid::from(database), pg_sys::Oid::from(role));
    let connect = pg_sys::ACL_CONNECT as pg_sys::AclMode;
    #[cfg(feature = "pg15")]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    let result = unsafe { pg_sys::pg_database_aclcheck(database, role, connect) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    let result = unsafe { pg_sys::object_aclcheck(pg_sys::DatabaseRelationId, database, role, connect) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// Returns whether a role owns a database.
pub fn role_owns_database(role: RoleOid, database: DatabaseOid) -> bool {
    let (database, role) = (pg_sys::Oid::from(database), pg_sys::Oid::from(role));
    #[cfg(feature = "pg15")]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    unsafe {
        pg_sys::pg_database_ownercheck(database, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    unsafe {
        pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role)
    }
}

fn owns_relation(relation: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    unsafe {
        pg_sys::pg_class_ownercheck(relation, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    unsafe {
        pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role)
    }
}

fn may_in_schema(schema: SchemaOid, mode: u32) -> bool {
    let (schema, role) = (pg_sys::Oid::from(schema), pg_sys::Oid::from(session::role()));
    #[cfg(feature = "pg15")]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    let result = unsafe { pg_sys::pg_namespace_aclcheck(schema, role, mode as pg_sys::AclMode) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the function looks up a privilege by oids, and checks the oids itself.
    let result = unsafe {
        pg_sys::object_aclcheck(pg_sys::NamespaceRelationId, schema, role, mode as pg_sys::AclMode)
    };
    result == pg_sys::AclResult::ACLCHECK_OK
}
