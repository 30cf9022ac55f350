//! An index of a table, opened and locked for a scan or for the entry of a new row version.
//!
//! An index that is opened for entries must run no user's code (`shape::is_plain`). It has neither
//! an expression nor a predicate, and no function of a type or of an operator class that a user has
//! made.

use std::ptr::null_mut;

use pgrx::pg_sys;

/// The unique index by which rows are found. `shape` has tested the index.
#[derive(Clone, Copy, Debug)]
pub struct KeyIndex {
    pub(super) oid: pg_sys::Oid,
}

/// An index that is open and locked.
pub(super) struct OpenIndex {
    pub relation: pg_sys::Relation,
    /// What an insertion needs. Null if the index is only read.
    pub info: *mut pg_sys::IndexInfo,
}

impl Drop for OpenIndex {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: `open` or `open_to_insert` opened the index, and `drop` closes it once.
        unsafe {
            if !self.info.is_null() {
                clean_up_after_insert(self.relation, self.info);
            }
            pg_sys::index_close(self.relation, pg_sys::NoLock as i32);
        }
    }
}

/// The first oid that Postgres gives to objects that users create.
pub(super) const FIRST_OF_USERS: u32 = pg_sys::FirstNormalObjectId;

impl OpenIndex {
    /// Opens an index for a scan. The table is open and locked.
    pub fn open(oid: pg_sys::Oid) -> Self {
        // SAFETY: the index belongs to a table that is locked.
        let relation = unsafe { pg_sys::index_open(oid, pg_sys::AccessShareLock as i32) };
        Self { relation, info: null_mut() }
    }

    /// Opens an index and builds what an insertion needs. Building that would evaluate an immutable
    /// function in the index's expression or predicate, so the index's row of pg_index is tested
    /// before. Raises 55000 if the index is not plain.
    pub fn open_to_insert(oid: pg_sys::Oid) -> Self {
        // SAFETY: the index belongs to a table that is locked. Whether an index has expressions or
        // a predicate never changes.
        unsafe {
            let relation = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
            if !super::shape::is_plain(relation) {
                pgrx::ereport!(
                    ERROR,
                    pgrx::PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "an index of the table of leaders evaluates an expression",
                    "oban_check() names it."
                );
            }
            Self { relation, info: pg_sys::BuildIndexInfo(relation) }
        }
    }

    /// Inserts the index entry of a row. Returns false if this is a unique index that has, or may
    /// have, another row with the same key.
    ///
    /// # Safety
    /// `slot` holds a row that is stored in `table`, and `info` is not null.
    pub unsafe fn insert(
        &self,
        table: pg_sys::Relation,
        slot: *mut pg_sys::TupleTableSlot,
        duplicates: Duplicates,
        unchanged: bool,
    ) -> bool {
        let mut values = [pg_sys::Datum::null(); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [true; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: the caller promises a stored row and an `info`. The arrays have as many elements
        // as an index can have columns. The index has no expressions, and only expressions would
        // need an executor state.
        unsafe {
            if !(*self.info).ii_ReadyForInserts {
                return true;
            }
            let unique = (*(*self.relation).rd_index).indisunique;
            let check = match duplicates {
                _ if !unique => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                Duplicates::Tell => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_PARTIAL,
                Duplicates::Raise => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES,
            };
            pg_sys::FormIndexDatum(self.info, slot, null_mut(), values.as_mut_ptr(), nulls.as_mut_ptr());
            let done = pg_sys::index_insert(
                self.relation,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                &raw mut (*slot).tts_tid,
                table,
                check,
                unchanged,
                self.info,
            );
            !unique || done
        }
    }
}

/// What a duplicate in a unique index leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duplicates {
    /// `OpenIndex::insert` returns false, and the caller removes its row.
    Tell,
    /// `OpenIndex::insert` raises 23505.
    Raise,
}

/// Returns whether an index summarizes pages. Postgres 15 does not tell, so the result is false
/// there.
///
/// # Safety
/// `info` was built for an open index.
#[cfg(feature = "pg15")]
pub(super) unsafe fn is_summarizing(_info: *mut pg_sys::IndexInfo) -> bool {
    false
}

/// Returns whether an index summarizes pages.
///
/// # Safety
/// `info` was built for an open index.
#[cfg(not(feature = "pg15"))]
pub(super) unsafe fn is_summarizing(info: *mut pg_sys::IndexInfo) -> bool {
    // SAFETY: the caller promises an `info` that was built for an open index.
    unsafe { (*info).ii_Summarizing }
}

/// Does nothing: before Postgres 17 an insertion leaves nothing to clean up.
///
/// # Safety
/// `info` was built for this open index.
#[cfg(any(feature = "pg15", feature = "pg16"))]
unsafe fn clean_up_after_insert(_index: pg_sys::Relation, _info: *mut pg_sys::IndexInfo) {}

/// Releases what an insertion has kept. The function exists since Postgres 17.
///
/// # Safety
/// `info` was built for this open index.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
unsafe fn clean_up_after_insert(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo) {
    // SAFETY: the caller promises an `info` that was built for this open index.
    unsafe { pg_sys::index_insert_cleanup(index, info) }
}

/// Begins a scan of an index with one key.
///
/// # Safety
/// Both relations are open, the second is an index of the first, and the snapshot outlives the
/// scan.
#[cfg(not(feature = "pg18"))]
pub(super) unsafe fn begin_index_scan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
) -> pg_sys::IndexScanDesc {
    // SAFETY: the caller promises open relations and a snapshot that outlives the scan.
    unsafe { pg_sys::index_beginscan(table, index, snapshot, 1, 0) }
}

/// Begins a scan of an index with one key. Since Postgres 18 index_beginscan has one more argument.
///
/// # Safety
/// Both relations are open, the second is an index of the first, and the snapshot outlives the
/// scan.
#[cfg(feature = "pg18")]
pub(super) unsafe fn begin_index_scan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
) -> pg_sys::IndexScanDesc {
    // SAFETY: the caller promises open relations and a snapshot that outlives the scan.
    unsafe { pg_sys::index_beginscan(table, index, snapshot, null_mut(), 1, 0) }
}
