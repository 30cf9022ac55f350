//! One ordinary table, opened by its oid. The table's rows are read, locked and written through the
//! access methods of the table and of the table's indexes: without SQL, planner, triggers, a change
//! of role or a lookup by name. So no code of the table's owner runs, and the owner can't change by
//! a rename which table is meant.
//!
//! This code does not do the other work of the executor: constraints, generated columns, triggers,
//! policies, rights. The caller tests first that the table has nothing of that kind (`shape`,
//! `logic::shape`).
//!
//! Locks. A relation is locked before it is opened, and stays locked until the transaction ends. A
//! row is locked before it is updated or deleted, so the update or deletion never waits, and never
//! fails because of another transaction.

use std::marker::PhantomData;
use std::ptr::null_mut;

use pgrx::pg_sys;

use super::index::{Duplicates, KeyIndex, OpenIndex, begin_index_scan, is_summarizing};
use super::session;
use super::tuple::{Column, Tuple};
use super::xact::next_command;
use crate::logic::ids::{RoleOid, SchemaOid, TableOid};

/// The mode in which a table is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableLock {
    /// ROW SHARE, for a transaction that locks rows and writes none.
    RowShare,
    /// ROW EXCLUSIVE, for a transaction that writes rows.
    RowExclusive,
    /// SHARE ROW EXCLUSIVE, for a transaction that is the only one to write rows.
    ShareRowExclusive,
    /// ACCESS SHARE, for a transaction that only reads.
    AccessShare,
}

impl TableLock {
    fn mode(self) -> i32 {
        (match self {
            Self::RowShare => pg_sys::RowShareLock,
            Self::RowExclusive => pg_sys::RowExclusiveLock,
            Self::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            Self::AccessShare => pg_sys::AccessShareLock,
        }) as i32
    }
}

/// The result of opening a table.
pub enum Opened<'a> {
    Table(Heap<'a>),
    /// Another transaction holds a conflicting lock, and the caller did not want to wait.
    Locked,
    /// No relation has that oid any more.
    Gone,
}

/// A table that is open and locked.
pub struct Heap<'a> {
    relation: pg_sys::Relation,
    /// Whether this value closes the relation. A trigger's relation belongs to the executor.
    owned: bool,
    /// Whether opening the table was allowed to wait for the lock. If so, opening an index may wait
    /// for a lock as well.
    waits: bool,
    _relation: PhantomData<&'a ()>,
}

impl Drop for Heap<'_> {
    fn drop(&mut self) {
        // After an ERROR the transaction's abort closes the relation.
        if self.owned && !std::thread::panicking() {
            // SAFETY: `Heap::open` opened the relation, and `drop` closes it once. The lock stays
            // until the transaction ends.
            unsafe { pg_sys::relation_close(self.relation, pg_sys::NoLock as i32) }
        }
    }
}

impl<'a> Heap<'a> {
    /// Locks and opens a relation of any kind. With `wait`, waits for the lock up to lock_timeout,
    /// and then raises 55P03.
    pub fn open(oid: TableOid, lock: TableLock, wait: bool) -> Opened<'a> {
        let oid = pg_sys::Oid::from(oid);
        // SAFETY: the lock is on an oid, and no relation needs to have this oid. Taking the lock
        // makes this process read what was committed before.
        let relation = unsafe {
            if wait {
                pg_sys::LockRelationOid(oid, lock.mode());
            } else if !pg_sys::ConditionalLockRelationOid(oid, lock.mode()) {
                return Opened::Locked;
            }
            pg_sys::try_relation_open(oid, pg_sys::NoLock as i32)
        };
        if relation.is_null() {
            // SAFETY: the lock was taken above, once.
            unsafe { pg_sys::UnlockRelationOid(oid, lock.mode()) }
            return Opened::Gone;
        }
        Opened::Table(Self { relation, owned: true, waits: wait, _relation: PhantomData })
    }

    /// Closes the table and releases its lock, for a caller that has only read the table.
    pub fn close_and_unlock(self, lock: TableLock) {
        let oid = pg_sys::Oid::from(self.oid());
        drop(self);
        // SAFETY: `open` took the lock, once.
        unsafe { pg_sys::UnlockRelationOid(oid, lock.mode()) }
    }

    /// Returns the table that fired a trigger. The statement has locked the table.
    ///
    /// # Safety
    /// `relation` stays open as long as the result lives.
    pub(super) unsafe fn of_trigger(relation: pg_sys::Relation) -> Self {
        Self { relation, owned: false, waits: true, _relation: PhantomData }
    }

    pub(super) fn relation(&self) -> pg_sys::Relation {
        self.relation
    }

    /// Returns what `look` returns for an index of this table. The index is locked only for the
    /// call, because no session can drop it while the table is locked. `None`: another transaction
    /// holds a lock on the index, and this table was opened without waiting.
    pub(super) fn look_at_index<R>(
        &self,
        oid: pg_sys::Oid,
        look: impl FnOnce(pg_sys::Relation) -> R,
    ) -> Option<R> {
        let mode = pg_sys::AccessShareLock as i32;
        // SAFETY: the index belongs to a table that is locked. Opening the index builds nothing but
        // copies of the index's catalog rows.
        unsafe {
            if self.waits {
                pg_sys::LockRelationOid(oid, mode);
            } else if !pg_sys::ConditionalLockRelationOid(oid, mode) {
                return None;
            }
            let index = pg_sys::index_open(oid, pg_sys::NoLock as i32);
            let seen = look(index);
            pg_sys::index_close(index, mode);
            Some(seen)
        }
    }

    fn form(&self) -> pg_sys::FormData_pg_class {
        // SAFETY: an open relation has its row of pg_class, which is plain data.
        unsafe { *(*self.relation).rd_rel }
    }

    pub fn oid(&self) -> TableOid {
        // SAFETY: the relation is open as long as this value lives.
        unsafe { (*self.relation).rd_id.into() }
    }

    pub fn namespace(&self) -> SchemaOid {
        self.form().relnamespace.into()
    }

    pub fn owner(&self) -> RoleOid {
        self.form().relowner.into()
    }

    /// Returns whether the relation has this name. The comparison is of bytes, in the server's
    /// encoding.
    pub fn is_named(&self, name: &str) -> bool {
        // SAFETY: the name ends with a zero within its 64 bytes.
        unsafe {
            std::ffi::CStr::from_ptr((*(*self.relation).rd_rel).relname.data.as_ptr()).to_bytes()
                == name.as_bytes()
        }
    }

    /// Returns the column of this name. `None`: the table has no such column.
    pub fn column(&self, name: &str) -> Option<Column> {
        // SAFETY: the relation is open as long as this value lives.
        unsafe { super::tuple::column(self.relation, name) }
    }

    /// Returns whether the table has a trigger of this name and function that fires for ordinary
    /// sessions.
    pub fn has_enabled_trigger(&self, name: &str, function: u32) -> bool {
        super::shape::triggers(self.relation).iter().any(|trigger| {
            // SAFETY: a trigger has a name that ends with a zero.
            let own = unsafe { std::ffi::CStr::from_ptr(trigger.tgname) };
            own.to_bytes() == name.as_bytes()
                && trigger.tgfoid.to_u32() == function
                && [b'O', b'A'].contains(&(trigger.tgenabled as u8))
        })
    }

    /// Returns the row that has this text in the first column of `index`. Sees what is committed
    /// now and what this transaction has written. `None`: there is no such row. `index` has to be a
    /// unique btree on a text (`shape` tests that).
    pub fn find(&self, index: &KeyIndex, key: &[u8]) -> Option<Stored> {
        let _snapshot = ActiveSnapshot::latest();
        // SAFETY: the snapshot is active for the whole call.
        self.scan_key(index, key, unsafe { pg_sys::GetActiveSnapshot() })
    }

    /// Returns the row of this text, as `find` does, but by the transaction's own snapshot. Under
    /// REPEATABLE READ this is the row as it was when the snapshot was taken.
    pub fn find_in_own_snapshot(&self, index: &KeyIndex, key: &[u8]) -> Option<Stored> {
        // SAFETY: the snapshot is pushed for the call, and the guard pops it.
        let snapshot = unsafe { pg_sys::GetTransactionSnapshot() };
        let _snapshot = ActiveSnapshot::push(snapshot);
        // SAFETY: the snapshot is active for the whole call.
        self.scan_key(index, key, unsafe { pg_sys::GetActiveSnapshot() })
    }

    fn scan_key(&self, index: &KeyIndex, key: &[u8], snapshot: pg_sys::Snapshot) -> Option<Stored> {
        let stored = Stored::empty(self);
        // SAFETY: the index belongs to this table, and its first column is a text. The key and the
        // slot outlive the scan. The slot keeps a pin on the page of the row that was found.
        let found = unsafe {
            let index = OpenIndex::open(index.oid);
            let mut entry = pg_sys::ScanKeyData::default();
            let key = pg_sys::cstring_to_text_with_len(key.as_ptr().cast(), key.len() as i32);
            pg_sys::ScanKeyEntryInitialize(
                &raw mut entry,
                0,
                1,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                pg_sys::InvalidOid,
                *(*index.relation).rd_indcollation,
                pg_sys::Oid::from(pg_sys::F_TEXTEQ),
                pg_sys::Datum::from(key),
            );
            let scan = begin_index_scan(self.relation, index.relation, snapshot);
            pg_sys::index_rescan(scan, &raw mut entry, 1, null_mut(), 0);
            let found =
                pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, stored.slot);
            pg_sys::index_endscan(scan);
            pg_sys::pfree(key.cast());
            found
        };
        found.then_some(stored)
    }

    /// Returns whether a row with this key conflicts with a new row. The search also sees
    /// uncommitted rows, and waits for no transaction.
    pub fn conflict(&self, index: &KeyIndex, key: &[u8]) -> Conflict {
        let mut dirty = pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
            ..Default::default()
        };
        match self.scan_key(index, key, &raw mut dirty) {
            None => Conflict::None,
            Some(_) if dirty.xmin != pg_sys::InvalidTransactionId => Conflict::InProgress,
            Some(_) if dirty.xmax != pg_sys::InvalidTransactionId => Conflict::InProgress,
            Some(_) => Conflict::Row,
        }
    }

    /// Calls `read` for each row that is committed now, in no particular order, until `read`
    /// returns false.
    pub fn each(&self, mut read: impl FnMut(&Tuple) -> bool) {
        let _snapshot = ActiveSnapshot::latest();
        // SAFETY: the snapshot is active for the whole call.
        unsafe { self.scan(pg_sys::GetActiveSnapshot(), |row, _| read(row)) }
    }

    /// Calls `read` as `each` does, with the place of each row, for a caller whose lock keeps other
    /// transactions from writing rows. Sees what this transaction has written, too. Under SERIALIZABLE
    /// this does not count as a reading of the table, so it conflicts with no other transaction.
    pub fn each_alone(&self, read: impl FnMut(&Tuple, Place) -> bool) {
        let _snapshot = ActiveSnapshot::latest();
        let mut now = committed_or_own();
        // SAFETY: the snapshot lives as long as the call, and the active one as well.
        unsafe {
            // A reading by an MVCC snapshot also clears the pages of old versions.
            let latest = if session::is_serializable() { &raw mut now } else { pg_sys::GetActiveSnapshot() };
            self.scan(latest, read);
        }
    }

    /// # Safety
    /// `snapshot` is valid for the whole call, and some snapshot is active.
    unsafe fn scan(&self, snapshot: pg_sys::Snapshot, mut read: impl FnMut(&Tuple, Place) -> bool) {
        // SAFETY: the caller promises the snapshot, and what is made here is dropped here.
        unsafe {
            let slot = pg_sys::table_slot_create(self.relation, null_mut());
            let scan = pg_sys::table_beginscan(self.relation, snapshot, 0, null_mut());
            while pg_sys::table_scan_getnextslot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                pgrx::check_for_interrupts!();
                if !read(&Tuple::in_slot(slot), Place((*slot).tts_tid)) {
                    break;
                }
            }
            pg_sys::table_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }

    /// Returns the row that `each_alone` has found at this place, under the same lock. `None`: this
    /// transaction has deleted or updated the row.
    pub fn at(&self, mut place: Place) -> Option<Stored> {
        let _snapshot = ActiveSnapshot::latest(); // Postgres wants one to be active, whatever it reads by
        let (stored, mut now) = (Stored::empty(self), committed_or_own());
        // SAFETY: Postgres tests the place itself. The snapshot outlives the call, and the slot is one
        // of this table. The slot keeps a pin on the page of the row that was found.
        let found = unsafe {
            pg_sys::table_tuple_fetch_row_version(self.relation, &raw mut place.0, &raw mut now, stored.slot)
        };
        found.then_some(stored)
    }

    pub fn is_unlogged(&self) -> bool {
        self.form().relpersistence as u8 == pg_sys::RELPERSISTENCE_UNLOGGED
    }

    /// Returns the size of the table's rows in bytes, with the space that is free, and without indexes.
    /// 0: it is no ordinary table, or is an unlogged one on a standby, where it has no file.
    pub fn size(&self) -> u64 {
        if self.form().relkind as u8 != pg_sys::RELKIND_RELATION
            || self.is_unlogged() && session::in_recovery()
        {
            return 0;
        }
        // SAFETY: the relation is open, and is a table.
        let pages = unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM)
        };
        u64::from(pages) * u64::from(pg_sys::BLCKSZ)
    }

    /// Locks the newest version of a row. FOR KEY SHARE needs `wait`. Once the row is locked,
    /// `stored` holds that version. The caller has to read the version again, because columns may
    /// have changed.
    pub fn lock_row(&self, stored: &mut Stored, strength: RowLock, wait: bool) -> RowLocked {
        // SAFETY: `stored` pins the page of the row, so the tid still means that row.
        match unsafe { self.lock_tid((*stored.slot).tts_tid, strength, wait) } {
            Ok(locked) => {
                *stored = locked;
                RowLocked::Locked
            }
            Err(not) => not,
        }
    }

    /// Locks the newest version of the row that is stored at `tid`, and returns that version. `Err`
    /// is never `Locked`.
    ///
    /// # Safety
    /// The page of the row is pinned.
    pub(super) unsafe fn lock_tid(
        &self,
        mut tid: pg_sys::ItemPointerData,
        strength: RowLock,
        wait: bool,
    ) -> Result<Stored, RowLocked> {
        let _snapshot = ActiveSnapshot::latest();
        let mut failure = pg_sys::TM_FailureData::default();
        // An update does not wait for FOR KEY SHARE. So that lock also has to cover the version
        // that an update is writing: after the update's commit, that version is the row.
        let (wait, in_progress) = if wait {
            (pg_sys::LockWaitPolicy::LockWaitBlock, pg_sys::TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS)
        } else {
            (pg_sys::LockWaitPolicy::LockWaitSkip, 0) // following an update in progress may wait
        };
        let locked = Stored::empty(self);
        // SAFETY: the caller promises a pinned page, and the slot fits this table.
        let result = unsafe {
            pg_sys::table_tuple_lock(
                self.relation,
                &raw mut tid,
                pg_sys::GetActiveSnapshot(),
                locked.slot,
                pg_sys::GetCurrentCommandId(false),
                strength.mode(),
                wait,
                (pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION | in_progress) as u8,
                &raw mut failure,
            )
        };
        use pg_sys::TM_Result as Tm;
        match result {
            Tm::TM_Ok => Ok(locked),
            Tm::TM_WouldBlock | Tm::TM_BeingModified => Err(RowLocked::Held),
            Tm::TM_Deleted | Tm::TM_Updated | Tm::TM_SelfModified => Err(RowLocked::Gone),
            other => pgrx::error!("locking a row of a table of leaders failed: {other}"),
        }
    }

    /// Deletes a row that was locked with `RowLock::Update`.
    pub fn delete(&self, stored: &Stored) {
        let _snapshot = ActiveSnapshot::latest();
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: the slot holds the version that this transaction has locked.
        let result = unsafe {
            pg_sys::table_tuple_delete(
                self.relation,
                &raw mut (*stored.slot).tts_tid,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::GetActiveSnapshot(),
                null_mut(),
                true, // may wait for a locked row, but this transaction has locked the row itself
                &raw mut failure,
                false,
            )
        };
        if result != pg_sys::TM_Result::TM_Ok {
            pgrx::error!("deleting a locked row of a table of leaders failed: {result}");
        }
        next_command();
    }

    /// Updates columns of a row that was locked with `RowLock::NoKeyUpdate`. None of the columns
    /// may be in a unique index. `stored` keeps the old version.
    pub fn update<const N: usize>(&self, stored: &Stored, values: [(Column, i64); N]) {
        let _snapshot = ActiveSnapshot::latest();
        // The new version gets index entries, unless heap_update reports that it needs none.
        let indexes = self.open_indexes();
        // SAFETY: the slot holds the version that this transaction has locked. The other columns
        // are copied as they are stored. The columns that change are passed as a 64-bit value.
        unsafe {
            let mut free = false;
            let old = pg_sys::ExecFetchSlotHeapTuple(stored.slot, false, &raw mut free);
            let mut numbers = values.map(|(column, _)| column.number());
            let mut datums = values.map(|(_, value)| pg_sys::Datum::from(value));
            let mut nulls = [false; N];
            let changed = pg_sys::heap_modify_tuple_by_cols(
                old,
                (*self.relation).rd_att,
                N as i32,
                numbers.as_mut_ptr(),
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let slot =
                pg_sys::MakeSingleTupleTableSlot((*self.relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
            pg_sys::ExecStoreHeapTuple(changed, slot, false);
            (*slot).tts_tableOid = (*self.relation).rd_id;
            match self.update_heap(stored, slot) {
                IndexesToUpdate::None => {}
                which => {
                    for index in &indexes {
                        if which == IndexesToUpdate::All || is_summarizing(index.info) {
                            index.insert(self.relation, slot, Duplicates::Raise, true);
                        }
                    }
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            if free {
                pg_sys::heap_freetuple(old);
            }
        }
        drop(indexes);
        next_command();
    }

    /// Writes the new version into the table. Returns which indexes need an entry for the new
    /// version.
    ///
    /// # Safety
    /// `stored` holds the locked version, and `slot` holds the new version.
    unsafe fn update_heap(&self, stored: &Stored, slot: *mut pg_sys::TupleTableSlot) -> IndexesToUpdate {
        let mut failure = pg_sys::TM_FailureData::default();
        let mut mode = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
        #[cfg(feature = "pg15")]
        let mut indexes = false;
        #[cfg(not(feature = "pg15"))]
        let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
        // SAFETY: the caller promises both versions.
        let result = unsafe {
            pg_sys::table_tuple_update(
                self.relation,
                &raw mut (*stored.slot).tts_tid,
                slot,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::GetActiveSnapshot(),
                null_mut(),
                true, // may wait for a locked row, but this transaction has locked the row itself
                &raw mut failure,
                &raw mut mode,
                &raw mut indexes,
            )
        };
        if result != pg_sys::TM_Result::TM_Ok {
            pgrx::error!("updating a locked row of a table of leaders failed: {result}");
        }
        #[cfg(feature = "pg15")]
        return if indexes { IndexesToUpdate::All } else { IndexesToUpdate::None };
        #[cfg(not(feature = "pg15"))]
        match indexes {
            pg_sys::TU_UpdateIndexes::TU_None => IndexesToUpdate::None,
            pg_sys::TU_UpdateIndexes::TU_Summarizing => IndexesToUpdate::Summarizing,
            _ => IndexesToUpdate::All,
        }
    }

    /// Inserts a row with NULL in the columns that are not given. Returns false if nothing was
    /// inserted, because a unique index has a row with the same key. That row may be uncommitted.
    ///
    /// The row is inserted speculatively, as INSERT ... ON CONFLICT DO NOTHING does: a conflict
    /// removes the new row and does not abort this transaction.
    pub fn insert<const N: usize>(&self, values: [(Column, Value<'_>); N]) -> bool {
        let _snapshot = ActiveSnapshot::latest(); // before a commit the session has none
        let indexes = self.open_indexes();
        // SAFETY: the slot has as many columns as the table, and each column is set. The token is
        // released here, or after an ERROR by the transaction's abort.
        let inserted = unsafe {
            let slot =
                pg_sys::MakeSingleTupleTableSlot((*self.relation).rd_att, &raw const pg_sys::TTSOpsVirtual);
            pg_sys::ExecClearTuple(slot);
            for i in 0..(*(*self.relation).rd_att).natts as usize {
                *(*slot).tts_isnull.add(i) = true;
                *(*slot).tts_values.add(i) = pg_sys::Datum::null();
            }
            for (column, value) in values {
                let Some(datum) = value.datum() else { continue };
                let at = column.number() as usize - 1;
                *(*slot).tts_isnull.add(at) = false;
                *(*slot).tts_values.add(at) = datum;
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            (*slot).tts_tableOid = (*self.relation).rd_id;
            let xid = pg_sys::GetCurrentTransactionId();
            let token = pg_sys::SpeculativeInsertionLockAcquire(xid);
            pg_sys::table_tuple_insert_speculative(
                self.relation,
                slot,
                pg_sys::GetCurrentCommandId(true),
                0,
                null_mut(),
                token,
            );
            let mut alone = true;
            for index in &indexes {
                alone &= index.insert(self.relation, slot, Duplicates::Tell, false);
            }
            pg_sys::table_tuple_complete_speculative(self.relation, slot, token, alone);
            pg_sys::SpeculativeInsertionLockRelease(xid);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            alone
        };
        drop(indexes);
        next_command();
        inserted
    }

    /// Returns every index of the table, open and locked for an insertion. Raises an ERROR if an
    /// index evaluates an expression: such an index was created after `shape` had looked. CREATE
    /// INDEX CONCURRENTLY can do that in spite of the table's lock.
    fn open_indexes(&self) -> Vec<OpenIndex> {
        self.index_oids().into_iter().map(OpenIndex::open_to_insert).collect()
    }

    /// Returns the oids of the table's indexes.
    pub(super) fn index_oids(&self) -> Vec<pg_sys::Oid> {
        // SAFETY: the list is a copy, and is freed after it was read.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let oids = oids_of(list);
            pg_sys::list_free(list);
            oids
        }
    }
}

/// Returns the elements of a list of oids.
///
/// # Safety
/// `list` is null or a list of oids.
pub(super) unsafe fn oids_of(list: *const pg_sys::List) -> Vec<pg_sys::Oid> {
    // SAFETY: the caller promises null or a list of oids, which has `length` elements.
    unsafe {
        if list.is_null() {
            return Vec::new();
        }
        (0..(*list).length as usize).map(|i| (*(*list).elements.add(i)).oid_value).collect()
    }
}

/// A snapshot that is active until this value is dropped. Under an active snapshot, values that are
/// stored out of line can be read.
struct ActiveSnapshot;

impl ActiveSnapshot {
    fn latest() -> Self {
        // SAFETY: every caller runs in a transaction.
        Self::push(unsafe { pg_sys::GetLatestSnapshot() })
    }

    fn push(snapshot: pg_sys::Snapshot) -> Self {
        // SAFETY: `drop` pops the snapshot once.
        unsafe { pg_sys::PushActiveSnapshot(snapshot) };
        Self
    }
}

impl Drop for ActiveSnapshot {
    fn drop(&mut self) {
        // After an ERROR the abort of the (sub)transaction pops the snapshot.
        if !std::thread::panicking() {
            // SAFETY: `push` pushed the snapshot, and guards are dropped in the reverse order.
            unsafe { pg_sys::PopActiveSnapshot() }
        }
    }
}

/// Which indexes need an entry for a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "pg15", allow(dead_code))] // Postgres 15 does not tell summarizing indexes apart
enum IndexesToUpdate {
    None,
    /// Only indexes that summarize pages (BRIN).
    Summarizing,
    All,
}

/// Returns a snapshot of what is committed now, and of what this transaction has written.
fn committed_or_own() -> pg_sys::SnapshotData {
    pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() }
}

/// Where a version of a row is stored.
#[derive(Clone, Copy)]
pub struct Place(pg_sys::ItemPointerData);

/// What conflicts with a new row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    None,
    /// A committed row.
    Row,
    /// A row that a running transaction has inserted, updated or deleted.
    InProgress,
}

/// The mode in which a row is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowLock {
    /// FOR KEY SHARE: other transactions can update columns that are in no unique index, and can't
    /// delete the row.
    KeyShare,
    /// FOR NO KEY UPDATE, before an update of columns that are in no unique index.
    NoKeyUpdate,
    /// FOR UPDATE, before a deletion.
    Update,
}

impl RowLock {
    fn mode(self) -> pg_sys::LockTupleMode::Type {
        match self {
            Self::KeyShare => pg_sys::LockTupleMode::LockTupleKeyShare,
            Self::NoKeyUpdate => pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
            Self::Update => pg_sys::LockTupleMode::LockTupleExclusive,
        }
    }
}

/// The result of locking a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowLocked {
    Locked,
    /// Another transaction holds the row, and the caller does not wait.
    Held,
    /// The row was deleted.
    Gone,
}

/// A row of a table. The slot pins the row's page.
pub struct Stored {
    slot: *mut pg_sys::TupleTableSlot,
}

impl Stored {
    fn empty(table: &Heap<'_>) -> Self {
        // SAFETY: the table is open, and the slot is for rows of this table.
        Self { slot: unsafe { pg_sys::table_slot_create(table.relation, null_mut()) } }
    }

    /// Returns the row, for reading its columns.
    pub fn row(&self) -> Tuple {
        // SAFETY: the slot holds a row as long as this value lives.
        unsafe { Tuple::in_slot(self.slot) }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // After an ERROR the transaction's abort releases the pin and frees the slot.
        if !std::thread::panicking() {
            // SAFETY: `empty` made the slot, and `drop` drops it once.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.slot) }
        }
    }
}

/// The value of a column that is written.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// The value of a text or varchar, in the server's encoding.
    Text(&'a [u8]),
    /// The value of a bigint, an integer or a boolean, or of a timestamp in microseconds since 2000.
    Int(i64),
    Null,
}

impl Value<'_> {
    /// Returns the value as Postgres has it. `None`: the value is NULL.
    fn datum(self) -> Option<pg_sys::Datum> {
        match self {
            // SAFETY: the bytes are copied.
            Self::Text(bytes) => unsafe {
                Some(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32).into())
            },
            Self::Int(value) => Some(pg_sys::Datum::from(value)),
            Self::Null => None,
        }
    }
}
