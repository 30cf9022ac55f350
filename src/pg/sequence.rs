//! A sequence, used by its oid: no SQL, and no right of the current role is needed.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::heap::{Heap, Opened, TableLock};
use super::{catalog, session};

// Not bound by pgrx. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// The next value of a sequence. An ERROR in a read-only transaction, and when it was dropped.
pub fn next(sequence: u32) -> i64 {
    // SAFETY: a sequence, or an ERROR.
    unsafe { pg_guard_ffi_boundary(|| nextval_internal(pg_sys::Oid::from(sequence), false)) }
}

/// The value that a sequence gave last. 0 when it has given none, or was dropped.
pub fn last(sequence: u32) -> i64 {
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

/// Sets `value` as the value that a sequence gave last. `setval` tests rights, so it is called with the
/// rights of the sequence's owner. It is Postgres' own C code and runs no user's code.
pub fn set(sequence: u32, value: i64) {
    let Some(owner) = catalog::owner(sequence) else { return };
    session::as_role(owner, || {
        // SAFETY: a sequence, or an ERROR.
        unsafe {
            pgrx::direct_function_call::<i64>(
                pg_sys::setval_oid,
                &[Some(pg_sys::Oid::from(sequence).into()), Some(pg_sys::Datum::from(value))],
            )
        }
    });
}

/// Locks a sequence until the transaction ends, against the same lock only.
pub fn lock(sequence: u32) {
    catalog::lock(sequence, pg_sys::ShareUpdateExclusiveLock);
}
