//! Lookups in the system catalogs.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::c_name;
use super::catalog_scan::{self as scan, Key};

pub fn namespace(name: &str) -> Option<u32> {
    let name = c_name(name);
    // SAFETY: `name` lives for the call.
    some(unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) })
}

/// The name of a schema, as this transaction's caches have it. `None`: there is no such schema.
pub fn schema_name(schema: u32) -> Option<String> {
    with_schema_name(schema, scan::lossy)
}

/// The same in the server's encoding, without a copy: `read` gets the name.
pub fn with_schema_name<R>(schema: u32, read: impl FnOnce(&CStr) -> R) -> Option<R> {
    // SAFETY: a catalog lookup; the name is freed after it was read.
    unsafe {
        let name = pg_sys::get_namespace_name(pg_sys::Oid::from(schema));
        if name.is_null() {
            return None;
        }
        let result = read(CStr::from_ptr(name));
        pg_sys::pfree(name.cast());
        Some(result)
    }
}

/// A relation of any kind by its name in a schema.
pub fn relation(namespace: u32, name: &str) -> Option<u32> {
    let name = c_name(name);
    // SAFETY: `name` lives for the call.
    some(unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::Oid::from(namespace)) })
}

/// What pg_class says of a relation now, whatever the statement's snapshot shows.
#[derive(Clone, Copy)]
struct Class {
    owner: u32,
    kind: u8,
    persistence: u8,
}

fn class(relation: u32) -> Option<Class> {
    // SAFETY: a cache of pg_class by oid; the fields are copied.
    unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            Class {
                owner: (*form).relowner.to_u32(),
                kind: (*form).relkind as u8,
                persistence: (*form).relpersistence as u8,
            }
        })
    }
}

/// Whether a relation has this name and is in this schema, as this transaction's caches have it.
pub fn is_named(relation: u32, schema: u32, name: &str) -> bool {
    let name = c_name(name);
    // SAFETY: a cache of pg_class by oid; the fields are compared before the tuple is released.
    let named = unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            (*form).relnamespace.to_u32() == schema && CStr::from_ptr((*form).relname.data.as_ptr()) == &*name
        })
    };
    named == Some(true)
}

/// Whether a relation that is not temporary has this name, in whatever schema, as this transaction's caches have it.
pub fn is_called(relation: u32, name: &str) -> bool {
    // SAFETY: a cache of pg_class by oid; the name is compared before the tuple is released.
    let called = unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            (*form).relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
                && CStr::from_ptr((*form).relname.data.as_ptr()).to_bytes() == name.as_bytes()
        })
    };
    called == Some(true)
}

/// The schema of a relation, as this transaction's caches have it.
pub fn schema_of(relation: u32) -> Option<u32> {
    // SAFETY: a catalog lookup.
    some(unsafe { pg_sys::get_rel_namespace(pg_sys::Oid::from(relation)) })
}

/// The type of a relation's column, if it has one of this name.
fn column_type(relation: u32, name: &str) -> Option<pg_sys::Oid> {
    let (relation, name) = (pg_sys::Oid::from(relation), c_name(name));
    // SAFETY: catalog lookups; `name` lives for the call.
    unsafe {
        let number = pg_sys::get_attnum(relation, name.as_ptr());
        (number > 0).then(|| pg_sys::get_atttype(relation, number))
    }
}

/// `<prefix>.oban_peers`, of Oban's kind: an ordinary table with Oban's columns and their types.
#[derive(Clone, Copy)]
pub struct PeersTable {
    pub oid: u32,
    /// Whether `oban_install` added its columns.
    pub installed: bool,
}

/// As it is now. A table of another shape, or a temporary one of another session, is none.
pub fn peers_table(prefix: &str) -> Option<PeersTable> {
    peers_table_in(namespace(prefix)?)
}

/// The same in a schema by its oid.
pub fn peers_table_in(schema: u32) -> Option<PeersTable> {
    peers_table_of(relation(schema, "oban_peers")?)
}

/// The same for a relation by its oid.
pub fn peers_table_of(oid: u32) -> Option<PeersTable> {
    class(oid).filter(|c| c.kind == b'r' && c.persistence != b't')?;
    let all = |names: [&str; 2], wanted: &dyn Fn(pg_sys::Oid) -> bool| {
        names.iter().all(|name| column_type(oid, name).is_some_and(wanted))
    };
    let typed = |names, wanted| all(names, &|found| found == wanted);
    (all(["name", "node"], &super::tuple::is_name)
        && typed(["started_at", "expires_at"], pg_sys::TIMESTAMPOID))
    .then(|| PeersTable { oid, installed: typed(["term", "boot"], pg_sys::INT8OID) })
}

/// What `read` takes out of the tuple that a catalog's cache has for this id.
///
/// # Safety
/// `cache` is one that is keyed by an oid alone, and `read` returns nothing that points into the tuple.
unsafe fn field<T>(cache: i32, id: u32, read: impl FnOnce(pg_sys::HeapTuple) -> T) -> Option<T> {
    // SAFETY: the caller's promise; the tuple is released after it was read.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(pg_sys::Oid::from(id)));
        if tuple.is_null() {
            return None;
        }
        let value = read(tuple);
        pg_sys::ReleaseSysCache(tuple);
        Some(value)
    }
}

pub(super) fn lock(relation: u32, mode: u32) {
    // SAFETY: locks a relation by its id, which needs not exist.
    unsafe { pg_sys::LockRelationOid(pg_sys::Oid::from(relation), mode as i32) }
}

/// The owner of a relation.
pub(super) fn owner(relation: u32) -> Option<u32> {
    class(relation).map(|c| c.owner)
}

/// `"schema"."name"` of a relation.
pub fn qualified_name(relation: u32) -> Option<String> {
    let relation = pg_sys::Oid::from(relation);
    // SAFETY: catalog lookups; the names are copied.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        let name = pg_sys::get_rel_name(relation);
        if schema.is_null() || name.is_null() {
            return None;
        }
        let quoted = pg_sys::quote_qualified_identifier(schema, name);
        Some(scan::lossy(CStr::from_ptr(quoted)))
    }
}

/// Which of the columns that `oban_install` adds to a table of leaders are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    pub term: bool,
    pub boot: bool,
}

/// Of a relation that is a table of leaders otherwise, and whose columns of these names are of no other kind. The
/// types are Postgres' own, so that reading and writing their values runs no code of the table's owner.
pub fn peers_columns(relation: u32) -> Option<Added> {
    let has =
        |name: &str, types: &[pg_sys::Oid]| plain_column(relation, name).map(|kind| types.contains(&kind));
    let all = |names: [&str; 2], types| names.iter().all(|name| has(name, types) == Some(true));
    let added = |name: &str| match (column_type(relation, name), has(name, &[pg_sys::INT8OID])) {
        (None, _) => Some(false),
        (_, Some(true)) => Some(true),
        _ => None,
    };
    let is_of_leaders = is_table_by_itself(relation)
        && all(["name", "node"], &[pg_sys::TEXTOID, pg_sys::VARCHAROID])
        && all(["started_at", "expires_at"], &[pg_sys::TIMESTAMPOID]);
    if !is_of_leaders {
        return None;
    }
    Some(Added { term: added("term")?, boot: added("boot")? })
}

/// An ordinary table whose columns are nobody else's business: no temporary one, no partition and none that is
/// made after a type.
fn is_table_by_itself(relation: u32) -> bool {
    // SAFETY: a cache of pg_class by oid; the fields are read before the tuple is released.
    let found = unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            (*form).relkind as u8 == pg_sys::RELKIND_RELATION
                && (*form).relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
                && !(*form).relispartition
                && (*form).reloftype == pg_sys::InvalidOid
        })
    };
    found == Some(true)
}

/// The type of a column that is stored as it is written: neither generated nor an identity, and of a type
/// without a modifier, which could change its values.
fn plain_column(relation: u32, name: &str) -> Option<pg_sys::Oid> {
    let (relation, name) = (pg_sys::Oid::from(relation), c_name(name));
    // SAFETY: catalog lookups; `name` lives for the calls, and the tuple is released after it was read.
    unsafe {
        let number = pg_sys::get_attnum(relation, name.as_ptr());
        if number <= 0 {
            return None;
        }
        let cache = pg_sys::SysCacheIdentifier::ATTNUM as i32;
        let tuple =
            pg_sys::SearchSysCache2(cache, pg_sys::Datum::from(relation), pg_sys::Datum::from(number));
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_attribute>();
        let is_plain = (*form).attgenerated == 0 && (*form).attidentity == 0 && (*form).atttypmod == -1;
        let kind = (*form).atttypid;
        pg_sys::ReleaseSysCache(tuple);
        is_plain.then_some(kind)
    }
}

/// Whether a relation may be a table of jobs: an ordinary or a partitioned table, and no temporary one.
pub fn is_jobs_table(relation: u32) -> bool {
    class(relation).is_some_and(|c| matches!(c.kind, b'r' | b'p') && c.persistence != b't')
}

/// Whether a relation has a column of this type.
pub fn has_column(relation: u32, name: &str, kind: u32) -> bool {
    column_type(relation, name) == Some(pg_sys::Oid::from(kind))
}

pub fn type_named(namespace: u32, name: &str) -> Option<u32> {
    let name = c_name(name);
    // SAFETY: a catalog lookup; `name` lives for the call.
    some(unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            pg_sys::Anum_pg_type_oid as i16,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(pg_sys::Oid::from(namespace)),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
        )
    })
}

/// Whether a type is an enum that has each of these labels.
pub fn is_enum_of<'a>(kind: u32, mut labels: impl Iterator<Item = &'a str>) -> bool {
    let kind = pg_sys::Oid::from(kind);
    // SAFETY: a catalog lookup.
    let is_enum = unsafe { pg_sys::get_typtype(kind) as u8 } == pg_sys::TYPTYPE_ENUM;
    is_enum && labels.all(|label| super::tuple::enum_label(kind, &c_name(label)).is_some())
}

/// Whether this transaction made a relation, or changed it last.
pub fn is_relation_of_this_transaction(relation: u32) -> bool {
    is_of_this_transaction(pg_sys::SysCacheIdentifier::RELOID as i32, relation)
}

/// Whether this transaction made a type, or changed it last.
pub fn is_type_of_this_transaction(kind: u32) -> bool {
    is_of_this_transaction(pg_sys::SysCacheIdentifier::TYPEOID as i32, kind)
}

/// The catalog's row says which transaction wrote it; `cache` is one that is keyed by an oid alone.
fn is_of_this_transaction(cache: i32, id: u32) -> bool {
    // SAFETY: the tuple's header is read before it is released.
    let writer = unsafe {
        field(cache, id, |tuple| {
            let header = (*tuple).t_data;
            let frozen = pg_sys::HEAP_XMIN_FROZEN as u16;
            ((*header).t_infomask & frozen != frozen).then(|| (*header).t_choice.t_heap.t_xmin)
        })
    };
    // SAFETY: reads the state of this transaction.
    writer.flatten().is_some_and(|xid| unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) })
}

/// A relation's name as messages show it.
pub fn shown_name(relation: u32) -> String {
    qualified_name(relation).unwrap_or_else(|| relation.to_string())
}

/// Locks a table against what changes its name, schema, owner or kind, until the end of the transaction;
/// everything else goes on.
pub fn lock_name(table: u32) {
    lock(table, pg_sys::AccessShareLock);
}

/// The same for a transaction that creates triggers on it: nobody writes rows meanwhile.
pub fn lock_for_triggers(table: u32) {
    lock(table, pg_sys::ShareRowExclusiveLock);
}

/// The same for a transaction that drops triggers or changes columns: nobody reads rows meanwhile.
pub fn lock_for_alteration(table: u32) {
    lock(table, pg_sys::AccessExclusiveLock);
}

/// Locks a schema until the end of the transaction, against the same lock only: tables in it can
/// still be used and created.
pub fn lock_namespace(namespace: u32) {
    // SAFETY: locks an object by its id.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::NamespaceRelationId,
            pg_sys::Oid::from(namespace),
            0,
            pg_sys::ShareUpdateExclusiveLock as i32,
        );
    }
}

/// Takes back one `lock_namespace` of this transaction.
pub fn unlock_namespace(namespace: u32) {
    // SAFETY: unlocks an object by its id that this transaction has locked.
    unsafe {
        pg_sys::UnlockDatabaseObject(
            pg_sys::NamespaceRelationId,
            pg_sys::Oid::from(namespace),
            0,
            pg_sys::ShareUpdateExclusiveLock as i32,
        );
    }
}

/// An extension in this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    pub oid: u32,
    pub schema: u32,
}

/// The extension of this name, as it is committed now. Needs a transaction.
pub fn extension(name: &str) -> Option<Extension> {
    let found = scan::rows(scan::EXTENSIONS, &[("extname", Key::Name(&c_name(name)))], |row| {
        Some(Extension { oid: row.oid("oid"), schema: row.oid("extnamespace") })
    });
    found.into_iter().next()
}

/// The same without waiting for anybody. `None`: pg_extension is locked.
pub fn extension_without_waiting(name: &str) -> Option<Option<Extension>> {
    // SAFETY: the lock is the transaction's, which gives it back at its end.
    let locked = unsafe {
        pg_sys::ConditionalLockRelationOid(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32)
    };
    locked.then(|| extension(name))
}

/// The schema of this name, as it is committed now.
pub fn namespace_now(name: &str) -> Option<u32> {
    let name = c_name(name);
    if name.count_bytes() > 63 {
        return None; // Postgres cuts longer names; no schema has one
    }
    let found = scan::rows(scan::SCHEMA_NAMES, &[("nspname", Key::Name(&name))], |row| Some(row.oid("oid")));
    found.into_iter().next()
}

/// The name of a schema, as it is committed now.
pub fn namespace_name(oid: u32) -> Option<String> {
    let found = scan::rows(scan::SCHEMAS, &[("oid", Key::Oid(oid))], |row| Some(row.name("nspname")));
    found.into_iter().next()
}

/// The same in the server's encoding.
pub fn namespace_bytes(oid: u32) -> Option<Vec<u8>> {
    let name = |row: &scan::CatalogRow| Some(row.name_bytes("nspname"));
    scan::rows(scan::SCHEMAS, &[("oid", Key::Oid(oid))], name).into_iter().next()
}

/// Whether there is no schema of this oid, not even one that a transaction in progress has created.
pub fn is_no_schema(oid: u32) -> bool {
    scan::rows_in_progress(scan::SCHEMAS, &[("oid", Key::Oid(oid))], |_| Some(())).is_empty()
}

/// A relation of any kind by its name in a schema, as it is committed now.
pub fn relation_now(namespace: u32, name: &str) -> Option<u32> {
    let name = c_name(name);
    let keys = [("relname", Key::Name(&name)), ("relnamespace", Key::Oid(namespace))];
    scan::rows(scan::RELATIONS, &keys, |row| Some(row.oid("oid"))).into_iter().next()
}

/// The ordinary tables of this name that are not temporary, each with its schema, as they are committed now.
pub fn tables_named(name: &str) -> Vec<(u32, u32)> {
    scan::rows(scan::RELATIONS, &[("relname", Key::Name(&c_name(name)))], |row| {
        let is_table = row.char("relkind") == pg_sys::RELKIND_RELATION
            && row.char("relpersistence") != pg_sys::RELPERSISTENCE_TEMP;
        is_table.then(|| (row.oid("oid"), row.oid("relnamespace")))
    })
}

/// The schemas that have a relation of this name which is not temporary, as they are committed now.
pub fn schemas_of(name: &str) -> Vec<u32> {
    scan::rows(scan::RELATIONS, &[("relname", Key::Name(&c_name(name)))], |row| {
        (row.char("relpersistence") != pg_sys::RELPERSISTENCE_TEMP).then(|| row.oid("relnamespace"))
    })
}

/// The schemas that are not Postgres' own, as they are committed now.
pub fn schemas_of_users() -> Vec<u32> {
    scan::rows(scan::SCHEMAS, &[], |row| {
        let name = row.name("nspname");
        (!name.starts_with("pg_") && name != "information_schema").then(|| row.oid("oid"))
    })
}

/// Whether a relation has columns of all these names and this type, as it is committed now.
pub fn has_columns(relation: u32, names: &[&str], type_oid: pg_sys::Oid) -> bool {
    let found = scan::rows(scan::COLUMNS, &[("attrelid", Key::Oid(relation))], |row| {
        let is_one = !row.bool("attisdropped") && row.oid("atttypid") == type_oid.to_u32();
        is_one.then(|| row.name("attname"))
    });
    names.iter().all(|name| found.iter().any(|found| found == name))
}

/// Whether a table has an enabled trigger of this name that calls this function, as it is committed now or as this
/// transaction has left it.
pub fn has_enabled_trigger(table: u32, name: &str, function: u32) -> bool {
    let keys = [("tgrelid", Key::Oid(table)), ("tgname", Key::Name(&c_name(name)))];
    let is_it = |row: &scan::CatalogRow| {
        (row.oid("tgfoid") == function && [b'O', b'A'].contains(&row.char("tgenabled"))).then_some(())
    };
    !scan::rows(scan::TRIGGERS, &keys, is_it).is_empty()
}

/// A function of this name without arguments in a schema, as it is committed now.
pub fn function_without_arguments(namespace: u32, name: &str) -> Option<u32> {
    let found = scan::rows(scan::FUNCTIONS, &[("proname", Key::Name(&c_name(name)))], |row| {
        let is_it = row.oid("pronamespace") == namespace && row.i16("pronargs") == 0;
        is_it.then(|| row.oid("oid"))
    });
    found.into_iter().next()
}

/// What ALTER DATABASE ... SET says of a setting for every role, as it is committed now.
pub fn setting_of_database(database: u32, name: &str) -> Option<String> {
    let keys = [("setdatabase", Key::Oid(database)), ("setrole", Key::Oid(0))];
    let settings = scan::rows(scan::SETTINGS, &keys, |row| Some(row.texts("setconfig")));
    settings.into_iter().flatten().find_map(|setting| {
        let setting = String::from_utf8_lossy(&setting).into_owned();
        setting.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    })
}

/// A role's name, quoted where it has to be.
pub fn quoted_role(role: u32) -> String {
    // SAFETY: a catalog lookup; the name is copied.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::Oid::from(role), true);
        if name.is_null() {
            return String::new();
        }
        scan::lossy(CStr::from_ptr(pg_sys::quote_identifier(name)))
    }
}

/// Makes sessions that create a prefix at the same time do so one after the other: a lock of no schema.
pub fn lock_creation_of_prefixes() {
    lock_namespace(pg_sys::InvalidOid.to_u32());
}

/// The extension, locked until the end of the transaction so that it can't be dropped meanwhile. `None` when it is not
/// there any more once the lock is held.
pub fn lock_extension() -> Option<u32> {
    let oid = extension("obanrs")?.oid;
    // SAFETY: locks an object by its id, which needs not exist.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::ExtensionRelationId,
            pg_sys::Oid::from(oid),
            0,
            pg_sys::AccessShareLock as i32,
        );
    }
    extension("obanrs").is_some_and(|now| now.oid == oid).then_some(oid)
}

pub fn database(name: &CStr) -> Option<u32> {
    // SAFETY: `name` lives for the call.
    some(unsafe { pg_sys::get_database_oid(name.as_ptr(), true) })
}

/// The name of a database, as this transaction's caches have it. `None`: there is no such database.
pub fn database_name(database: u32) -> Option<String> {
    // SAFETY: a catalog lookup; the name is copied.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::Oid::from(database));
        (!name.is_null()).then(|| scan::lossy(CStr::from_ptr(name)))
    }
}

/// A database of this server.
pub struct Database {
    pub oid: u32,
    pub name: String,
    pub is_template: bool,
    /// It is valid and takes connections.
    pub takes_connections: bool,
    /// A DROP DATABASE of it began and did not end. All that remains to do is to drop it again.
    pub is_invalid: bool,
}

/// All databases. Reads the shared catalog by a scan, for a process without a database has no SPI.
/// Needs a transaction with a snapshot.
pub fn databases() -> Vec<Database> {
    let mut found = Vec::new();
    // SAFETY: a catalog scan as in autovacuum's get_database_list; tuples are read before it ends.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let row = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            let is_invalid = row.datconnlimit == -2;
            found.push(Database {
                oid: row.oid.to_u32(),
                name: scan::lossy(CStr::from_ptr(row.datname.data.as_ptr())),
                is_template: row.datistemplate,
                takes_connections: row.datallowconn && !is_invalid,
                is_invalid,
            });
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

/// The database that nobody should ever have changed.
pub const TEMPLATE0: u32 = pg_sys::Template0DbOid;

/// Whether this session's database takes no workers, being a template.
pub fn is_in_template() -> bool {
    // SAFETY: a cache of pg_database by oid; the field is copied.
    unsafe {
        field(pg_sys::SysCacheIdentifier::DATABASEOID as i32, super::session::database(), |tuple| {
            (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>()).datistemplate
        })
    }
    .unwrap_or(false)
}

fn some(oid: pg_sys::Oid) -> Option<u32> {
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}
