//! Lookups in the system catalogs.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::c_name;
use super::catalog_scan::{self as scan, Key};
use super::tuple;
use crate::logic::ids::{DatabaseOid, RoleOid, SchemaOid, TableOid};

/// Returns the oid of a schema, as this transaction's caches have it. `None`: there is no such
/// schema.
pub fn namespace(name: &str) -> Option<SchemaOid> {
    let name = c_name(name);
    // SAFETY: `name` lives as long as the call.
    some(unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) })
}

/// Returns the name of a schema, as this transaction's caches have it. `None`: there is no such
/// schema.
pub fn schema_name(schema: SchemaOid) -> Option<String> {
    with_schema_name(schema, scan::lossy)
}

/// Calls `read` with the name of a schema, in the server's encoding and without a copy, and returns
/// the result. `None`: there is no such schema.
pub fn with_schema_name<R>(schema: SchemaOid, read: impl FnOnce(&CStr) -> R) -> Option<R> {
    // SAFETY: the function looks up the name in a cache. The name is freed after `read` has
    // returned.
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

/// Returns the oid of a relation of any kind by its name in a schema, as this transaction's caches
/// have it. `None`: there is no such relation.
pub fn relation(namespace: SchemaOid, name: &str) -> Option<TableOid> {
    let name = c_name(name);
    // SAFETY: `name` lives as long as the call.
    some(unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::Oid::from(namespace)) })
}

/// Fields of a relation's row in pg_class, as the caches have the row now. The statement's snapshot
/// does not matter.
#[derive(Clone, Copy)]
struct Class {
    owner: RoleOid,
    kind: u8,
    persistence: u8,
}

fn class(relation: TableOid) -> Option<Class> {
    // SAFETY: RELOID is a cache of pg_class by oid, and the fields are copied.
    unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            Class {
                owner: (*form).relowner.into(),
                kind: (*form).relkind as u8,
                persistence: (*form).relpersistence as u8,
            }
        })
    }
}

/// Returns whether a relation has this name and is in this schema, as this transaction's caches
/// have it.
pub fn is_named(relation: TableOid, schema: SchemaOid, name: &str) -> bool {
    let name = c_name(name);
    // SAFETY: RELOID is a cache of pg_class by oid, and the fields are compared before the tuple is
    // released.
    let named = unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            SchemaOid::from((*form).relnamespace) == schema
                && CStr::from_ptr((*form).relname.data.as_ptr()) == &*name
        })
    };
    named == Some(true)
}

/// Returns whether a relation is not temporary and has this name, in any schema, as this
/// transaction's caches have it.
pub fn is_called(relation: TableOid, name: &str) -> bool {
    // SAFETY: RELOID is a cache of pg_class by oid, and the name is compared before the tuple is
    // released.
    let called = unsafe {
        field(pg_sys::SysCacheIdentifier::RELOID as i32, relation, |tuple| {
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            (*form).relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
                && CStr::from_ptr((*form).relname.data.as_ptr()).to_bytes() == name.as_bytes()
        })
    };
    called == Some(true)
}

/// Returns the schema of a relation, as this transaction's caches have it. `None`: there is no such
/// relation.
pub fn schema_of(relation: TableOid) -> Option<SchemaOid> {
    // SAFETY: the function looks up a relation by its oid, and checks the oid itself.
    some(unsafe { pg_sys::get_rel_namespace(pg_sys::Oid::from(relation)) })
}

/// Returns the type of a relation's column. `None`: the relation has no column of this name.
pub fn column_type(relation: TableOid, name: &str) -> Option<pg_sys::Oid> {
    let (relation, name) = (pg_sys::Oid::from(relation), c_name(name));
    // SAFETY: the functions look up catalog rows, and `name` lives as long as the calls.
    unsafe {
        let number = pg_sys::get_attnum(relation, name.as_ptr());
        (number > 0).then(|| pg_sys::get_atttype(relation, number))
    }
}

/// Returns what `read` takes out of the tuple that a catalog's cache has for this oid. `None`: the
/// cache has no such tuple.
///
/// # Safety
/// `cache` is keyed by an oid alone, and `read` returns nothing that points into the tuple.
unsafe fn field<T>(
    cache: i32,
    id: impl Into<pg_sys::Oid>,
    read: impl FnOnce(pg_sys::HeapTuple) -> T,
) -> Option<T> {
    // SAFETY: the caller promises a cache that is keyed by an oid. The tuple is released after
    // `read` has returned.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(id.into()));
        if tuple.is_null() {
            return None;
        }
        let value = read(tuple);
        pg_sys::ReleaseSysCache(tuple);
        Some(value)
    }
}

/// Locks a relation in the mode `mode` until the end of the transaction. Waits for the lock.
pub(super) fn lock(relation: TableOid, mode: u32) {
    // SAFETY: the lock is on an oid, and no relation needs to have this oid.
    unsafe { pg_sys::LockRelationOid(pg_sys::Oid::from(relation), mode as i32) }
}

/// Returns the owner of a relation. `None`: there is no such relation.
pub fn owner(relation: TableOid) -> Option<RoleOid> {
    class(relation).map(|c| c.owner)
}

/// Returns `"schema"."name"` of a relation, quoted where necessary. `None`: there is no such
/// relation.
pub fn qualified_name(relation: TableOid) -> Option<String> {
    let relation = pg_sys::Oid::from(relation);
    // SAFETY: the functions look up catalog rows, and the names are copied.
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

/// Returns whether a relation is an ordinary table whose columns depend on no other object: the
/// table is not temporary, is not a partition, and is not a table OF a type.
pub fn is_table_by_itself(relation: TableOid) -> bool {
    // SAFETY: RELOID is a cache of pg_class by oid, and the fields are read before the tuple is
    // released.
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

/// Returns the type of a column that is stored as it is written. Such a column is neither generated
/// nor an identity, and its type has no modifier, which could change values. `None`: the column
/// does not exist or is of another kind.
pub fn plain_column(relation: TableOid, name: &str) -> Option<pg_sys::Oid> {
    let (relation, name) = (pg_sys::Oid::from(relation), c_name(name));
    // SAFETY: the functions look up catalog rows. `name` lives as long as the calls, and the tuple
    // is released after it was read.
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

/// Returns whether a relation may be a table of jobs: an ordinary or a partitioned table that is
/// not temporary.
pub fn is_jobs_table(relation: TableOid) -> bool {
    class(relation).is_some_and(|c| matches!(c.kind, b'r' | b'p') && c.persistence != b't')
}

/// Returns what a relation is, in the words of an error message, unless it is a table that triggers
/// for each row can be on: an ordinary or a partitioned table that is not temporary. `None`: it is
/// such a table. `Some("")`: there is no such relation.
pub fn not_a_table(relation: TableOid) -> Option<&'static str> {
    let Some(class) = class(relation) else { return Some("") };
    match class.kind {
        b'r' | b'p' if class.persistence != b't' => None,
        b'r' | b'p' => Some("a temporary table"),
        b'v' => Some("a view"),
        b'm' => Some("a materialized view"),
        b'f' => Some("a foreign table"),
        b'S' => Some("a sequence"),
        b'i' | b'I' => Some("an index"),
        _ => Some("no table"),
    }
}

/// A trigger of a table, as committed now or written by this transaction.
pub struct TriggerRow {
    pub oid: u32,
    pub name: String,
    pub function: u32,
    /// `pg_trigger.tgtype`: the events and the timing, as bits.
    pub kind: i16,
    /// `pg_trigger.tgenabled`: in which sessions the trigger fires.
    pub enabled: u8,
    /// Whether the table has the trigger itself, and not from its partitioned table.
    pub is_own: bool,
    /// `pg_trigger.tgargs`: the arguments in the server's encoding, with a zero behind each.
    pub arguments: Vec<u8>,
    /// `pg_trigger.tgqual`: the tree of the condition, as text. Empty: the trigger has no condition.
    pub condition: Vec<u8>,
    /// Whether the trigger has no list of columns (UPDATE OF), and is no constraint trigger, which
    /// may be deferred.
    pub is_ordinary: bool,
}

/// Returns the triggers of a table.
pub fn triggers_of(table: TableOid) -> Vec<TriggerRow> {
    scan::rows(scan::TRIGGERS, &[("tgrelid", Key::Oid(table.into()))], |row| {
        Some(TriggerRow {
            oid: row.oid("oid").to_u32(),
            name: row.name("tgname"),
            function: row.oid("tgfoid").to_u32(),
            kind: row.i16("tgtype"),
            enabled: row.char("tgenabled"),
            is_own: row.oid("tgparentid") == pg_sys::InvalidOid,
            arguments: row.bytes("tgargs"),
            condition: row.bytes("tgqual"),
            is_ordinary: !row.has_elements("tgattr") && row.oid("tgconstraint") == pg_sys::InvalidOid,
        })
    })
}

/// Returns the table on which a trigger was created, of which a partition has a copy of that
/// trigger. `None`: there is no such trigger.
pub fn table_of_root_trigger(trigger: u32) -> Option<TableOid> {
    let mut trigger = pg_sys::Oid::from(trigger);
    loop {
        let read = |row: &scan::CatalogRow| Some((row.oid("tgparentid"), row.oid("tgrelid")));
        let (parent, table) = scan::rows(scan::TRIGGER_OIDS, &[("oid", Key::Oid(trigger))], read).pop()?;
        if parent == pg_sys::InvalidOid {
            return Some(table.into());
        }
        trigger = parent;
    }
}

/// Returns a table, its partitions, and their partitions, in the order in which Postgres locks them:
/// by oid, and each level after the one above.
pub fn with_partitions(table: TableOid) -> Vec<TableOid> {
    let mut found = vec![table];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        if class(parent).is_some_and(|c| c.kind == b'p') {
            let keys = [("inhparent", Key::Oid(parent.into()))];
            let mut children =
                scan::rows(scan::CHILDREN, &keys, |row| Some(TableOid::from(row.oid("inhrelid"))));
            children.sort_unstable_by_key(|child| child.0);
            found.append(&mut children);
        }
    }
    found
}

/// Returns whether a relation has a column of this name that its rows store: not a system column,
/// and not a virtual generated one.
pub fn stores_column(relation: TableOid, name: &str) -> bool {
    let keys = [("attrelid", Key::Oid(relation.into()))];
    let name = super::encoding::to_server(name);
    let is_it = |row: &scan::CatalogRow| {
        let stored =
            !row.bool("attisdropped") && row.i16("attnum") > 0 && row.char("attgenerated") != tuple::VIRTUAL;
        (stored && row.name_bytes("attname") == *name).then_some(())
    };
    !scan::rows(scan::COLUMNS, &keys, is_it).is_empty()
}

/// Returns whether a relation has a column of this name and type.
pub fn has_column(relation: TableOid, name: &str, kind: u32) -> bool {
    column_type(relation, name) == Some(pg_sys::Oid::from(kind))
}

/// Returns the oid of a type by its name in a schema, as this transaction's caches have it. `None`:
/// there is no such type.
pub fn type_named(namespace: SchemaOid, name: &str) -> Option<u32> {
    let name = c_name(name);
    // SAFETY: the function looks up a catalog row, and `name` lives as long as the call.
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

/// Returns whether a type is an enum that has each of these labels.
pub fn is_enum_of<'a>(kind: u32, mut labels: impl Iterator<Item = &'a str>) -> bool {
    let kind = pg_sys::Oid::from(kind);
    // SAFETY: the function looks up a type by its oid, and checks the oid itself.
    let is_enum = unsafe { pg_sys::get_typtype(kind) as u8 } == pg_sys::TYPTYPE_ENUM;
    is_enum && labels.all(|label| tuple::enum_label(kind, &c_name(label)).is_some())
}

/// Returns whether this transaction created a relation, or was the last to change it.
pub fn is_relation_of_this_transaction(relation: TableOid) -> bool {
    is_of_this_transaction(pg_sys::SysCacheIdentifier::RELOID as i32, relation)
}

/// Returns whether this transaction created a type, or was the last to change it.
pub fn is_type_of_this_transaction(kind: u32) -> bool {
    is_of_this_transaction(pg_sys::SysCacheIdentifier::TYPEOID as i32, kind)
}

/// Returns whether this transaction wrote the newest version of a catalog row. The row's header
/// names the transaction that wrote it. `cache` is keyed by an oid alone.
fn is_of_this_transaction(cache: i32, id: impl Into<pg_sys::Oid>) -> bool {
    // SAFETY: the tuple's header is read before the tuple is released.
    let writer = unsafe {
        field(cache, id, |tuple| {
            let header = (*tuple).t_data;
            let frozen = pg_sys::HEAP_XMIN_FROZEN as u16;
            ((*header).t_infomask & frozen != frozen).then(|| (*header).t_choice.t_heap.t_xmin)
        })
    };
    // SAFETY: the function reads the state of this transaction.
    writer.flatten().is_some_and(|xid| unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) })
}

/// Returns a relation's name as messages show it: the qualified name, or the oid if there is no
/// such relation.
pub fn shown_name(relation: TableOid) -> String {
    qualified_name(relation).unwrap_or_else(|| relation.to_string())
}

/// Locks a table until the end of the transaction, so that its name, schema, owner and kind stay.
/// Other sessions can still read and write rows.
pub fn lock_name(table: TableOid) {
    lock(table, pg_sys::AccessShareLock);
}

/// Locks a table until the end of the transaction, before triggers are created on it. Other
/// sessions can read rows, and can't write any.
pub fn lock_for_triggers(table: TableOid) {
    lock(table, pg_sys::ShareRowExclusiveLock);
}

/// Locks a table until the end of the transaction, before triggers are dropped or columns changed.
/// Other sessions can neither read nor write rows.
pub fn lock_for_alteration(table: TableOid) {
    lock(table, pg_sys::AccessExclusiveLock);
}

/// Locks a schema until the end of the transaction. The lock conflicts only with itself: other
/// sessions can still use and create tables in the schema.
pub fn lock_namespace(namespace: SchemaOid) {
    // SAFETY: the lock is on an oid, and no object needs to have this oid.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::NamespaceRelationId,
            pg_sys::Oid::from(namespace),
            0,
            pg_sys::ShareUpdateExclusiveLock as i32,
        );
    }
}

/// Releases one `lock_namespace` of this transaction.
pub fn unlock_namespace(namespace: SchemaOid) {
    // SAFETY: this transaction holds the lock on this oid.
    unsafe {
        pg_sys::UnlockDatabaseObject(
            pg_sys::NamespaceRelationId,
            pg_sys::Oid::from(namespace),
            0,
            pg_sys::ShareUpdateExclusiveLock as i32,
        );
    }
}

/// Locks an extension until the end of the transaction against being dropped or altered.
pub fn lock_extension(extension: u32) {
    // SAFETY: the lock is on an oid, and no object needs to have this oid.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::ExtensionRelationId,
            pg_sys::Oid::from(extension),
            0,
            pg_sys::AccessShareLock as i32,
        );
    }
}

/// Returns whether a relation is an ordinary table and not a temporary one.
pub fn is_plain_table(relation: TableOid) -> bool {
    class(relation).is_some_and(|c| c.kind == b'r' && c.persistence != b't')
}

/// Returns whether a relation is a table or a partitioned table: a view or a foreign table may show some
/// rows only.
pub fn is_any_table(relation: TableOid) -> bool {
    class(relation).is_some_and(|c| matches!(c.kind, b'r' | b'p'))
}

/// An extension in this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    pub oid: u32,
    pub schema: SchemaOid,
}

/// Returns the extension of this name, as committed now. Needs a transaction. `None`: there is no
/// such extension.
pub fn extension(name: &str) -> Option<Extension> {
    let found = scan::rows(scan::EXTENSIONS, &[("extname", Key::Name(&c_name(name)))], |row| {
        Some(Extension { oid: row.oid("oid").to_u32(), schema: row.oid("extnamespace").into() })
    });
    found.into_iter().next()
}

/// Returns the extension of this name, as `extension` does, without waiting for a lock. The outer
/// `None`: another session has locked pg_extension.
pub fn extension_without_waiting(name: &str) -> Option<Option<Extension>> {
    // SAFETY: the transaction owns the lock, and releases it at its end.
    let locked = unsafe {
        pg_sys::ConditionalLockRelationOid(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32)
    };
    locked.then(|| extension(name))
}

/// Returns the oid of the schema of this name, as committed now. `None`: there is no such schema.
pub fn namespace_now(name: &str) -> Option<SchemaOid> {
    let name = c_name(name);
    if name.count_bytes() > 63 {
        return None; // Postgres truncates longer names, so no schema has such a name
    }
    let found =
        scan::rows(scan::SCHEMA_NAMES, &[("nspname", Key::Name(&name))], |row| Some(row.oid("oid").into()));
    found.into_iter().next()
}

/// Returns the name of a schema, as committed now. `None`: there is no such schema.
pub fn namespace_name(schema: SchemaOid) -> Option<String> {
    let found =
        scan::rows(scan::SCHEMAS, &[("oid", Key::Oid(schema.into()))], |row| Some(row.name("nspname")));
    found.into_iter().next()
}

/// Returns the name of a schema in the server's encoding, as committed now. `None`: there is no
/// such schema.
pub fn namespace_bytes(schema: SchemaOid) -> Option<Vec<u8>> {
    let name = |row: &scan::CatalogRow| Some(row.name_bytes("nspname"));
    scan::rows(scan::SCHEMAS, &[("oid", Key::Oid(schema.into()))], name).into_iter().next()
}

/// Returns whether no schema has this oid. A schema that a running transaction has created counts
/// as existing.
pub fn is_no_schema(schema: SchemaOid) -> bool {
    scan::rows_in_progress(scan::SCHEMAS, &[("oid", Key::Oid(schema.into()))], |_| Some(())).is_empty()
}

/// Returns the oid of a relation of any kind by its name in a schema, as committed now. `None`:
/// there is no such relation.
pub fn relation_now(namespace: SchemaOid, name: &str) -> Option<TableOid> {
    let name = c_name(name);
    let keys = [("relname", Key::Name(&name)), ("relnamespace", Key::Oid(namespace.into()))];
    scan::rows(scan::RELATIONS, &keys, |row| Some(row.oid("oid").into())).into_iter().next()
}

/// A table that was looked up by its name.
#[derive(Clone, Copy)]
pub struct NamedTable {
    pub oid: TableOid,
    pub schema: SchemaOid,
}

/// Returns the ordinary tables of this name that are not temporary, as committed now.
pub fn tables_named(name: &str) -> Vec<NamedTable> {
    scan::rows(scan::RELATIONS, &[("relname", Key::Name(&c_name(name)))], |row| {
        let is_table = row.char("relkind") == pg_sys::RELKIND_RELATION
            && row.char("relpersistence") != pg_sys::RELPERSISTENCE_TEMP;
        is_table.then(|| NamedTable { oid: row.oid("oid").into(), schema: row.oid("relnamespace").into() })
    })
}

/// A table of jobs that was looked up by its name.
#[derive(Clone, Copy)]
pub struct NamedJobs {
    pub oid: TableOid,
    pub schema: SchemaOid,
    pub owner: RoleOid,
}

/// Returns the relations of this name that may be tables of jobs (`is_jobs_table`), as committed
/// now.
pub fn jobs_tables_named(name: &str) -> Vec<NamedJobs> {
    scan::rows(scan::RELATIONS, &[("relname", Key::Name(&c_name(name)))], |row| {
        let is_table = matches!(row.char("relkind"), b'r' | b'p')
            && row.char("relpersistence") != pg_sys::RELPERSISTENCE_TEMP;
        is_table.then(|| NamedJobs {
            oid: row.oid("oid").into(),
            schema: row.oid("relnamespace").into(),
            owner: row.oid("relowner").into(),
        })
    })
}

/// Returns whether a table has an enabled row trigger of this name that calls this function with
/// this one argument. Sees what is committed now and what this transaction has done.
pub fn has_trigger_with_argument(table: TableOid, name: &str, function: u32, argument: &str) -> bool {
    let keys = [("tgrelid", Key::Oid(table.into())), ("tgname", Key::Name(&c_name(name)))];
    let stored = [argument.as_bytes(), b"\0"].concat();
    let is_it = |row: &scan::CatalogRow| {
        let fires = row.oid("tgfoid").to_u32() == function
            && [b'O', b'A'].contains(&row.char("tgenabled"))
            && row.i16("tgtype") & pg_sys::TRIGGER_TYPE_ROW as i16 != 0;
        (fires && row.i16("tgnargs") == 1 && row.bytes("tgargs") == stored).then_some(())
    };
    !scan::rows(scan::TRIGGERS, &keys, is_it).is_empty()
}

/// Returns whether a table has a valid index of this name, in the table's schema. Sees what is
/// committed now and what this transaction has done.
pub fn has_index(table: TableOid, name: &str) -> bool {
    let Some(schema) = schema_of(table) else { return false };
    let Some(index) = relation_now(schema, name) else { return false };
    let is_it = |row: &scan::CatalogRow| {
        (TableOid::from(row.oid("indrelid")) == table && row.bool("indisvalid")).then_some(())
    };
    !scan::rows(scan::INDEXES, &[("indexrelid", Key::Oid(index.into()))], is_it).is_empty()
}

/// Returns the schemas that have a relation of this name which is not temporary, as committed now.
pub fn schemas_of(name: &str) -> Vec<SchemaOid> {
    scan::rows(scan::RELATIONS, &[("relname", Key::Name(&c_name(name)))], |row| {
        (row.char("relpersistence") != pg_sys::RELPERSISTENCE_TEMP).then(|| row.oid("relnamespace").into())
    })
}

/// Returns the schemas that do not belong to Postgres, as committed now.
pub fn schemas_of_users() -> Vec<SchemaOid> {
    scan::rows(scan::SCHEMAS, &[], |row| {
        let name = row.name("nspname");
        (!name.starts_with("pg_") && name != "information_schema").then(|| row.oid("oid").into())
    })
}

/// Returns whether a relation has columns of all these names and of this type, as committed now.
pub fn has_columns(relation: TableOid, names: &[&str], type_oid: pg_sys::Oid) -> bool {
    let found = scan::rows(scan::COLUMNS, &[("attrelid", Key::Oid(relation.into()))], |row| {
        let is_one = !row.bool("attisdropped") && row.oid("atttypid") == type_oid;
        is_one.then(|| row.name("attname"))
    });
    names.iter().all(|name| found.iter().any(|found| found == name))
}

/// Returns whether a table has an enabled trigger of this name that calls this function. Sees what
/// is committed now and what this transaction has done.
pub fn has_enabled_trigger(table: TableOid, name: &str, function: u32) -> bool {
    let keys = [("tgrelid", Key::Oid(table.into())), ("tgname", Key::Name(&c_name(name)))];
    let is_it = |row: &scan::CatalogRow| {
        (row.oid("tgfoid").to_u32() == function && [b'O', b'A'].contains(&row.char("tgenabled")))
            .then_some(())
    };
    !scan::rows(scan::TRIGGERS, &keys, is_it).is_empty()
}

/// Returns the function of this name without arguments in a schema, as committed now. `None`: there
/// is no such function.
pub fn function_without_arguments(namespace: SchemaOid, name: &str) -> Option<u32> {
    let found = scan::rows(scan::FUNCTIONS, &[("proname", Key::Name(&c_name(name)))], |row| {
        let is_it = SchemaOid::from(row.oid("pronamespace")) == namespace && row.i16("pronargs") == 0;
        is_it.then(|| row.oid("oid").to_u32())
    });
    found.into_iter().next()
}

/// Returns the value that ALTER DATABASE ... SET gives to a setting for every role, as committed
/// now. `None`: no such value is set.
pub fn setting_of_database(database: DatabaseOid, name: &str) -> Option<String> {
    let keys = [("setdatabase", Key::Oid(database.into())), ("setrole", Key::Oid(pg_sys::InvalidOid))];
    let settings = scan::rows(scan::SETTINGS, &keys, |row| Some(row.texts("setconfig")));
    settings.into_iter().flatten().find_map(|setting| {
        let setting = String::from_utf8_lossy(&setting).into_owned();
        setting.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    })
}

/// Returns a role's name, quoted where necessary. Returns an empty string if there is no such role.
pub fn quoted_role(role: RoleOid) -> String {
    // SAFETY: the function looks up a role by its oid, and the name is copied.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::Oid::from(role), true);
        if name.is_null() {
            return String::new();
        }
        scan::lossy(CStr::from_ptr(pg_sys::quote_identifier(name)))
    }
}

/// Returns the oid of the database of this name. `None`: there is no such database.
pub fn database(name: &CStr) -> Option<DatabaseOid> {
    // SAFETY: `name` lives as long as the call.
    some(unsafe { pg_sys::get_database_oid(name.as_ptr(), true) })
}

/// Returns the name of a database, as this transaction's caches have it. `None`: there is no such
/// database.
pub fn database_name(database: DatabaseOid) -> Option<String> {
    // SAFETY: the function looks up a database by its oid, and the name is copied.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::Oid::from(database));
        (!name.is_null()).then(|| scan::lossy(CStr::from_ptr(name)))
    }
}

/// A database of this server.
pub struct Database {
    pub oid: DatabaseOid,
    pub name: String,
    pub is_template: bool,
    /// The database is valid and takes connections.
    pub takes_connections: bool,
    /// A DROP DATABASE of this database began and did not end. The only thing left to do is to drop
    /// the database again.
    pub is_invalid: bool,
}

/// Returns all databases. Reads the shared catalog by a scan, because a process without a database
/// has no SPI. Needs a transaction with a snapshot.
pub fn databases() -> Vec<Database> {
    let mut found = Vec::new();
    // SAFETY: the scan follows autovacuum's get_database_list, and each tuple is read before the
    // scan goes on.
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
                oid: row.oid.into(),
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

/// The oid of template0, the database that must never be changed.
pub const TEMPLATE0: DatabaseOid = DatabaseOid(pg_sys::Template0DbOid);

/// Returns whether this session's database is a template, so that it takes no workers.
pub fn is_in_template() -> bool {
    // SAFETY: DATABASEOID is a cache of pg_database by oid, and the field is copied.
    unsafe {
        field(pg_sys::SysCacheIdentifier::DATABASEOID as i32, super::session::database(), |tuple| {
            (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>()).datistemplate
        })
    }
    .unwrap_or(false)
}

fn some<T: From<pg_sys::Oid>>(oid: pg_sys::Oid) -> Option<T> {
    (oid != pg_sys::InvalidOid).then(|| oid.into())
}
