//! Rows of system catalogs, found through an index and read as committed now.
//!
//! The functions use no SQL. They also use none of the catalog caches, which learn of a change only
//! after the session that made the change has woken the workers. The functions work in parallel
//! mode, too.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::tuple::{self, Tuple};

/// The value that a column of the index has to have.
pub(super) enum Key<'a> {
    Oid(pg_sys::Oid),
    /// A name in the server's encoding.
    Name(&'a CStr),
}

// Each pair is the oid of a catalog and the oid of an index on that catalog: pgrx has no names for
// the indexes.
pub(super) const CONSTRAINTS: (u32, u32) = (2606, 2665); // pg_constraint by conrelid, contypid, conname
pub(super) const PARENTS: (u32, u32) = (2611, 2680); // pg_inherits by inhrelid, inhseqno
pub(super) const CHILDREN: (u32, u32) = (2611, 2187); // pg_inherits by inhparent
pub(super) const TRIGGERS: (u32, u32) = (2620, 2701); // pg_trigger by tgrelid, tgname
pub(super) const TRIGGER_OIDS: (u32, u32) = (2620, 2702); // pg_trigger by oid
pub(super) const INDEXES: (u32, u32) = (2610, 2679); // pg_index by indexrelid
pub(super) const RULES: (u32, u32) = (2618, 2692); // pg_rewrite by oid
pub(super) const SETTINGS: (u32, u32) = (2964, 2965); // pg_db_role_setting by setdatabase, setrole
pub(super) const RELATIONS: (u32, u32) = (1259, 2663); // pg_class by relname, relnamespace
pub(super) const COLUMNS: (u32, u32) = (1249, 2659); // pg_attribute by attrelid, attnum
pub(super) const SCHEMAS: (u32, u32) = (2615, 2685); // pg_namespace by oid
pub(super) const SCHEMA_NAMES: (u32, u32) = (2615, 2684); // pg_namespace by nspname
pub(super) const FUNCTIONS: (u32, u32) = (1255, 2691); // pg_proc by proname, proargtypes, pronamespace
pub(super) const EXTENSIONS: (u32, u32) = (3079, 3081); // pg_extension by extname

/// A row of a catalog. Columns are found by their names.
pub(super) struct CatalogRow {
    relation: pg_sys::Relation,
    row: Tuple,
}

impl CatalogRow {
    /// Returns the value of a column. `None`: the value is NULL. Raises an ERROR if the catalog has
    /// no such column.
    fn datum(&self, name: &str) -> Option<pg_sys::Datum> {
        // SAFETY: the catalog is open as long as a reader has the row.
        let column = unsafe { tuple::column(self.relation, name) };
        let Some(column) = column else { pgrx::error!("a system catalog has no column {name}") };
        self.row.datum(column)
    }

    /// Returns the value of a column of type oid. Returns 0 for NULL.
    pub fn oid(&self, name: &str) -> pg_sys::Oid {
        pg_sys::Oid::from(self.datum(name).map_or(0, |d| d.value() as u32))
    }

    /// Returns the value of a column of type "char". Returns 0 for NULL.
    pub fn char(&self, name: &str) -> u8 {
        self.datum(name).map_or(0, |d| d.value() as u8)
    }

    /// Returns the value of a column of type smallint. Returns 0 for NULL.
    pub fn i16(&self, name: &str) -> i16 {
        self.datum(name).map_or(0, |d| d.value() as i16)
    }

    /// Returns the value of a column of type boolean. Returns false for NULL.
    pub fn bool(&self, name: &str) -> bool {
        self.datum(name).is_some_and(|d| d.value() as u8 != 0)
    }

    /// Returns the value of a column of type name, as UTF-8. Returns an empty string for NULL.
    pub fn name(&self, name: &str) -> String {
        let Some(datum) = self.datum(name) else { return String::new() };
        // SAFETY: the column is of type name, so the value ends with a zero within its 64 bytes.
        unsafe { lossy(CStr::from_ptr(datum.cast_mut_ptr::<std::ffi::c_char>())) }
    }

    /// Returns the value of a column of type name, in the server's encoding. Returns no bytes for
    /// NULL.
    pub fn name_bytes(&self, name: &str) -> Vec<u8> {
        let Some(datum) = self.datum(name) else { return Vec::new() };
        // SAFETY: the column is of type name, so the value ends with a zero within its 64 bytes.
        unsafe { CStr::from_ptr(datum.cast_mut_ptr::<std::ffi::c_char>()) }.to_bytes().to_vec()
    }

    /// Returns the bytes of a column of type bytea. Returns no bytes for NULL.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let Some(datum) = self.datum(name) else { return Vec::new() };
        // SAFETY: the column is of type bytea, and its bytes are copied.
        unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr())).to_vec() }
    }

    /// Returns whether a column of type int2vector has elements.
    pub fn has_elements(&self, name: &str) -> bool {
        // SAFETY: the column is of type int2vector, whose number of elements is a field of it.
        self.datum(name).is_some_and(|datum| unsafe {
            (*pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::int2vector>()).dim1 > 0
        })
    }

    /// Returns the elements of a column of type text[] that are not NULL, in the server's encoding.
    /// Returns no elements if the column is NULL.
    pub fn texts(&self, name: &str) -> Vec<Vec<u8>> {
        let Some(datum) = self.datum(name) else { return Vec::new() };
        let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the column is of type text[], and its elements are copied.
        unsafe {
            pg_sys::deconstruct_array(
                pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast(),
                pg_sys::TEXTOID,
                -1,
                false,
                b'i' as std::ffi::c_char,
                &raw mut elements,
                &raw mut nulls,
                &raw mut count,
            );
            (0..count as usize)
                .filter(|i| !*nulls.add(*i))
                .map(|i| pgrx::varlena_to_byte_slice((*elements.add(i)).cast_mut_ptr()).to_vec())
                .collect()
        }
    }
}

/// Returns a name from the catalogs as UTF-8. Bytes that are not valid text are replaced.
pub(super) fn lossy(name: &CStr) -> String {
    super::encoding::to_utf8_lossy(name.to_bytes()).into_owned()
}

/// Returns what `read` returns for the rows of a catalog that have these keys, as committed now.
/// Rows for which `read` returns `None` are left out. `read` must not return anything that points
/// into the row.
pub(super) fn rows<T>(
    catalog: (u32, u32),
    keys: &[(&str, Key<'_>)],
    read: impl FnMut(&CatalogRow) -> Option<T>,
) -> Vec<T> {
    rows_of(catalog, keys, std::ptr::null_mut(), read)
}

/// Returns what `read` returns for the rows that have these keys, as `rows` does, and also sees
/// rows that running transactions have written.
pub(super) fn rows_in_progress<T>(
    catalog: (u32, u32),
    keys: &[(&str, Key<'_>)],
    read: impl FnMut(&CatalogRow) -> Option<T>,
) -> Vec<T> {
    let mut dirty =
        pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
    rows_of(catalog, keys, &raw mut dirty, read)
}

/// Returns what `read` returns for the rows that have these keys, as `snapshot` shows them. A null
/// `snapshot` stands for a new snapshot of the catalogs.
fn rows_of<T>(
    (catalog, index): (u32, u32),
    keys: &[(&str, Key<'_>)],
    snapshot: pg_sys::Snapshot,
    mut read: impl FnMut(&CatalogRow) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    let mut names: Vec<[u8; 64]> = Vec::with_capacity(keys.len());
    // SAFETY: this is a scan of a catalog in a transaction. The names outlive the scan: `names` has
    // room for all of them and never moves them. What is made here is released here, or by the
    // transaction's abort.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::Oid::from(catalog), pg_sys::AccessShareLock as i32);
        let mut entries: Vec<pg_sys::ScanKeyData> = Vec::with_capacity(keys.len());
        for (name, key) in keys {
            let Some(column) = tuple::column(relation, name) else {
                pgrx::error!("a system catalog has no column {name}")
            };
            let (procedure, argument) = match key {
                Key::Oid(oid) => (pg_sys::F_OIDEQ, pg_sys::Datum::from(*oid)),
                Key::Name(name) => {
                    let mut padded = [0; 64];
                    let bytes = name.to_bytes();
                    let bytes = &bytes[..bytes.len().min(63)];
                    padded[..bytes.len()].copy_from_slice(bytes);
                    names.push(padded);
                    (pg_sys::F_NAMEEQ, pg_sys::Datum::from(names[names.len() - 1].as_ptr()))
                }
            };
            let mut entry = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyInit(
                &raw mut entry,
                column.number() as pg_sys::AttrNumber,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                pg_sys::Oid::from(procedure),
                argument,
            );
            entries.push(entry);
        }
        // The scan needs a new snapshot. Postgres keeps an old snapshot of the catalogs until the
        // caches learn of a change.
        pg_sys::InvalidateCatalogSnapshot();
        let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::Oid::from(index),
            true,
            snapshot,
            entries.len() as i32,
            entries.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            found.extend(read(&CatalogRow { relation, row: Tuple::in_slot(slot) }));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}
