//! Whether the catalogs may have changed in what this process has found out of some relations: their
//! definitions, functions, operators, types and roles. Postgres tells each process of such changes
//! whenever the process takes a lock. What it tells of may be something else, so this only says when
//! to look again.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::ids::TableOid;

thread_local! {
    /// Whether something may have changed since the last call of `watch`.
    static CHANGED: Cell<bool> = const { Cell::new(true) };
    /// The relations that count.
    static WATCHED: RefCell<Vec<TableOid>> = const { RefCell::new(Vec::new()) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Begins to watch these relations, instead of those of the last call. The caller has locked them,
/// and finds out what it has to know after this call.
pub fn watch(relations: &[TableOid]) {
    if !REGISTERED.replace(true) {
        use pg_sys::SysCacheIdentifier::{AUTHMEMMEMROLE, AUTHOID, OPEROID, PROCOID, TYPEOID};
        // SAFETY: the callbacks live as long as the library. A process has room for 64 callbacks,
        // and registers these once.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
            for cache in [AUTHMEMMEMROLE, AUTHOID, OPEROID, PROCOID, TYPEOID] {
                pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(row_changed), pg_sys::Datum::null());
            }
        }
    }
    WATCHED.with_borrow_mut(|watched| {
        watched.clear();
        watched.extend_from_slice(relations);
    });
    CHANGED.set(false);
}

/// Returns whether what was found out since the last call of `watch` may not hold any more. True if
/// `watch` was never called for these relations.
pub fn has_changed(relations: &[TableOid]) -> bool {
    CHANGED.get() || WATCHED.with_borrow(|watched| watched != relations)
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    // 0 stands for all relations.
    if relation == pg_sys::InvalidOid
        || WATCHED.try_with(|w| w.try_borrow().is_ok_and(|w| w.contains(&relation.into()))).unwrap_or(true)
    {
        CHANGED.set(true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn row_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    CHANGED.set(true);
}
