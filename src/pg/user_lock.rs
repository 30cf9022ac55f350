//! Locks of this library's own in Postgres' table of locks: `pg_locks` shows them as advisory. No SQL
//! function of Postgres' takes one, so no role can hold one but by a call of this library.

use pgrx::pg_sys;

use super::session;
use crate::logic::ids::SchemaOid;

/// What tells these locks from those of `pg_advisory_lock`, which have 1 or 2 here.
const KIND: u16 = 3;

/// Locks a number of a schema of this database until the end of the transaction. Waits for another
/// transaction that has the lock, as for a lock of a row: until a cancellation, lock_timeout or a deadlock.
///
/// The schema is a field of the lock by itself. So a role that knows how numbers are computed can't hold a
/// lock of a schema on which it has no rights.
pub fn lock(schema: SchemaOid, number: u32) {
    let tag = pg_sys::LOCKTAG {
        locktag_field1: session::database().0,
        locktag_field2: schema.0,
        locktag_field3: number,
        locktag_field4: KIND,
        locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    };
    // SAFETY: the tag lives as long as the call. The function raises if it does not get the lock.
    unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, false, false) };
}
