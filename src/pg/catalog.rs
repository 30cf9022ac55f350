//! Lookups in the system catalogs.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

/// A string for Postgres. Names come out of SQL, which has no NUL bytes; one with such a byte would
/// name nothing.
fn c_string(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

pub fn namespace(name: &str) -> Option<u32> {
    let name = c_string(name);
    // SAFETY: `name` lives for the call.
    some(unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) })
}

/// A relation of any kind by its name in a schema.
pub fn relation(namespace: u32, name: &str) -> Option<u32> {
    let name = c_string(name);
    // SAFETY: `name` lives for the call.
    some(unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::Oid::from(namespace)) })
}

/// A type by its name in a schema.
pub fn type_exists(namespace: u32, name: &str) -> bool {
    let name = c_string(name);
    // SAFETY: a catalog lookup; `name` lives for the call.
    unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            pg_sys::Anum_pg_type_oid as i16,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(pg_sys::Oid::from(namespace)),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
        ) != pg_sys::InvalidOid
    }
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

/// Our extension in this database. Needs a transaction.
pub fn extension() -> Option<u32> {
    // SAFETY: a catalog lookup in a transaction.
    some(unsafe { pg_sys::get_extension_oid(c"obanrs".as_ptr(), true) })
}

/// Our extension, locked until the end of the transaction so that it can't be dropped meanwhile.
/// `None` when it is not there any more once the lock is had.
pub fn lock_extension() -> Option<u32> {
    let oid = extension()?;
    // SAFETY: locks an object by its id, which needs not exist.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::ExtensionRelationId,
            pg_sys::Oid::from(oid),
            0,
            pg_sys::AccessShareLock as i32,
        );
    }
    (extension() == Some(oid)).then_some(oid)
}

pub fn database(name: &CStr) -> Option<u32> {
    // SAFETY: `name` lives for the call.
    some(unsafe { pg_sys::get_database_oid(name.as_ptr(), true) })
}

/// The databases that workers may connect to: no templates, none that is being dropped or takes no
/// connections. Reads the shared catalog by a scan, for a process without a database has no SPI.
/// Needs a transaction with a snapshot.
pub fn connectable_databases() -> Vec<u32> {
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
            let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if (*row).datallowconn && !(*row).datistemplate && (*row).datconnlimit != -2 {
                found.push((*row).oid.to_u32());
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

fn some(oid: pg_sys::Oid) -> Option<u32> {
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}
