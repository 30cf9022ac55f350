//! A sequence, used by its oid: without SQL, and without any right of the current role.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::heap::{Heap, Opened, TableLock};
use super::{catalog, session};
use crate::logic::ids::TableOid;

// pgrx does not bind this function. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// Returns the next value of a sequence. Raises an ERROR in a read-only transaction, or if the
/// sequence was dropped.
pub fn next(sequence: TableOid) -> i64 {
    // SAFETY: the function raises an ERROR if the oid is not the oid of a sequence.
    unsafe { pg_guard_ffi_boundary(|| nextval_internal(pg_sys::Oid::from(sequence), false)) }
}

/// Returns the last value that a sequence gave. Returns 0 if the sequence has given no value, or
/// was dropped.
pub fn last(sequence: TableOid) -> i64 {
    let Opened::Table(relation) = Heap::open(sequence, TableLock::AccessShare, true) else { return 0 };
    let columns = (relation.column("last_value"), relation.column("is_called"));
    let (Some(value), Some(called)) = columns else { return 0 };
    let mut last = 0;
    // A sequence is a table of one row, which is overwritten in place.
    relation.each(|row| {
        last = row.i64(value).filter(|_| row.bool(called) == Some(true)).unwrap_or(0);
        false
    });
    last
}

/// Sets `value` as the last value that a sequence gave. Does nothing if the sequence was dropped.
/// `setval` tests rights, so it is called with the rights of the sequence's owner. `setval` is
/// Postgres' own C code and runs no user's code.
pub fn set(sequence: TableOid, value: i64) {
    let Some(owner) = catalog::owner(sequence) else { return };
    session::as_role(owner, || {
        // SAFETY: the function raises an ERROR if the oid is not the oid of a sequence.
        unsafe {
            pgrx::direct_function_call::<i64>(
                pg_sys::setval_oid,
                &[Some(pg_sys::Oid::from(sequence).into()), Some(pg_sys::Datum::from(value))],
            )
        }
    });
}

/// Locks a sequence until the transaction ends. The lock conflicts only with itself.
pub fn lock(sequence: TableOid) {
    catalog::lock(sequence, pg_sys::ShareUpdateExclusiveLock);
}
