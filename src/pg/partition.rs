//! Partitions of a partitioned table.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use crate::logic::ids::{SchemaOid, TableOid};

// pgrx does not bind this function. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
}

/// Returns the topmost partitioned table that a table is a partition of, and its schema. For a table
/// that is no partition, returns the table itself.
///
/// # Safety
/// `relation` is open.
pub(super) unsafe fn root(relation: pg_sys::Relation) -> (TableOid, SchemaOid) {
    // SAFETY: the caller promises an open relation. The list is in Postgres' memory until the
    // statement ends.
    unsafe {
        let (mut root, mut namespace) = ((*relation).rd_id, (*(*relation).rd_rel).relnamespace);
        if (*(*relation).rd_rel).relispartition {
            let ancestors = pg_guard_ffi_boundary(|| get_partition_ancestors((*relation).rd_id));
            if !ancestors.is_null() && (*ancestors).length > 0 {
                root = (*(*ancestors).elements.add((*ancestors).length as usize - 1)).oid_value;
                namespace = pg_sys::get_rel_namespace(root);
            }
        }
        (root.into(), namespace.into())
    }
}
