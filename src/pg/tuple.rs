//! Columns and rows of a user's table, read in place: without SQL or a plan, so that no user's code
//! runs.

use pgrx::pg_sys;

use super::encoding;

/// A column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    number: i32,
    pub type_oid: pg_sys::Oid,
    /// Whether the column is computed when it is read. In a stored row such a column is NULL.
    is_virtual: bool,
}

/// `pg_attribute.attgenerated` of a virtual column. Postgres has virtual columns since version 18.
pub(super) const VIRTUAL: u8 = b'v';

impl Column {
    pub(super) fn number(self) -> i32 {
        self.number
    }

    /// Returns a column of a query's result, counted from 1, whose values have this type.
    pub fn of_result(number: i32, type_oid: pg_sys::Oid) -> Self {
        Self { number, type_oid, is_virtual: false }
    }

    pub(super) fn is_virtual(self) -> bool {
        self.is_virtual
    }
}

/// Returns the column of this name, as the table has it now. `None`: there is no such column. Users
/// drop and reorder columns, so the names are compared each time. That costs less than a lookup in
/// any cache.
///
/// # Safety
/// `relation` is open.
pub(super) unsafe fn column(relation: pg_sys::Relation, name: &str) -> Option<Column> {
    // SAFETY: the caller promises an open relation.
    unsafe { column_named(relation, name.as_bytes()) }
}

/// Returns the column of this name, which is in the server's encoding, as `column` does.
///
/// # Safety
/// `relation` is open.
pub(super) unsafe fn column_named(relation: pg_sys::Relation, name: &[u8]) -> Option<Column> {
    // SAFETY: the caller promises an open relation, whose descriptor has natts attributes.
    unsafe {
        let descriptor = (*relation).rd_att;
        (0..(*descriptor).natts).find_map(|i| {
            let attribute = super::catalog_attribute(descriptor, i);
            let found = !(*attribute).attisdropped
                && std::ffi::CStr::from_ptr((*attribute).attname.data.as_ptr()).to_bytes() == name;
            found.then(|| Column {
                number: i + 1,
                type_oid: (*attribute).atttypid,
                is_virtual: (*attribute).attgenerated as u8 == VIRTUAL,
            })
        })
    }
}

/// A row, in a slot that lives as long as this value.
pub struct Tuple {
    slot: *mut pg_sys::TupleTableSlot,
}

impl Tuple {
    /// Returns the row in a slot.
    ///
    /// # Safety
    /// As long as the result lives, `slot` holds a row of the table whose columns will be read.
    pub(super) unsafe fn in_slot(slot: *mut pg_sys::TupleTableSlot) -> Self {
        Self { slot }
    }

    /// Returns the column's value. `None`: the value is NULL.
    pub(super) fn datum(&self, column: Column) -> Option<pg_sys::Datum> {
        let number = column.number;
        // SAFETY: the slot holds a row with at least `number` columns.
        unsafe {
            if i32::from((*self.slot).tts_nvalid) < number {
                pg_sys::slot_getsomeattrs_int(self.slot, number);
            }
            let at = number as usize - 1;
            (!*(*self.slot).tts_isnull.add(at)).then(|| *(*self.slot).tts_values.add(at))
        }
    }

    /// Returns an oid. The value of an enum is the label's oid. `None`: the value is NULL.
    pub fn oid(&self, column: Column) -> Option<pg_sys::Oid> {
        self.datum(column).map(|d| pg_sys::Oid::from(d.value() as u32))
    }

    /// Returns a boolean. `None`: the value is NULL.
    pub fn bool(&self, column: Column) -> Option<bool> {
        self.datum(column).map(|d| d.value() as u8 != 0)
    }

    /// Returns a text of at most `most` bytes as UTF-8. What can't be converted is replaced.
    /// `None`: the text is longer, or NULL.
    pub fn short_text(&self, column: Column, most: usize) -> Option<String> {
        self.with_short_text(column, most, |text| encoding::to_utf8_lossy(text).into_owned())
    }

    /// Calls `read` as `with_text` does, if the text has at most `most` bytes. The text is measured
    /// before it is unpacked. `None`: the text is longer, or NULL.
    pub fn with_short_text<R>(
        &self,
        column: Column,
        most: usize,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        if self.text_len(column)? > most { None } else { self.with_text(column, read) }
    }

    /// Returns the first bytes of a text, at most `most` of them, in the server's encoding. If a
    /// long text is stored out of line, only these bytes are read. The cut is between bytes, and
    /// may split a character. `None`: the value is NULL.
    pub fn text_prefix(&self, column: Column, most: usize) -> Option<Vec<u8>> {
        let datum = self.datum(column)?;
        // SAFETY: the column's type is a varlena. What detoasting made is freed after it was
        // copied.
        unsafe {
            let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
            let slice = pg_sys::pg_detoast_datum_slice(stored, 0, most as i32);
            let bytes = std::slice::from_raw_parts(
                pgrx::vardata_any(slice).cast::<u8>(),
                pgrx::varsize_any_exhdr(slice).min(most),
            )
            .to_vec();
            if slice != stored {
                pg_sys::pfree(slice.cast());
            }
            Some(bytes)
        }
    }

    /// Returns the length of a text in bytes, without reading what is stored out of line. `None`:
    /// the value is NULL.
    pub fn text_len(&self, column: Column) -> Option<usize> {
        // SAFETY: the column's type is a varlena.
        Some(unsafe { super::datum::size(self.datum(column)?) })
    }

    /// Returns a bigint, or a timestamp in microseconds since 2000. `None`: the value is NULL.
    pub fn i64(&self, column: Column) -> Option<i64> {
        self.datum(column).map(|d| d.value() as i64)
    }

    /// Returns an integer of 32 bits. `None`: the value is NULL.
    pub fn i32(&self, column: Column) -> Option<i32> {
        self.datum(column).map(|d| d.value() as i32)
    }

    /// Calls `read` with the bytes of a text, varchar or the like, and returns the result. `None`:
    /// the value is NULL.
    pub fn with_text<R>(&self, column: Column, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let datum = self.datum(column)?;
        // SAFETY: the column's type is a varlena. A copy that detoasting made is freed again.
        // Otherwise a statement of a million rows would keep a million copies.
        unsafe {
            let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
            let plain = if pgrx::varatt_is_1b(stored) && !pgrx::varatt_is_1b_e(stored)
                || pgrx::varatt_is_4b_u(stored)
            {
                stored
            } else {
                pg_sys::pg_detoast_datum_packed(stored)
            };
            let bytes = std::slice::from_raw_parts(
                pgrx::vardata_any(plain).cast::<u8>(),
                pgrx::varsize_any_exhdr(plain),
            );
            let result = read(bytes);
            if plain != stored {
                pg_sys::pfree(plain.cast());
            }
            Some(result)
        }
    }
}

/// Returns the oid of a label of an enum type. `None`: the type has no such label.
pub fn enum_label(type_oid: pg_sys::Oid, label: &std::ffi::CStr) -> Option<pg_sys::Oid> {
    // SAFETY: the function looks up a catalog row, and `label` lives as long as the call.
    let oid = unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::ENUMTYPOIDNAME as i32,
            pg_sys::Anum_pg_enum_oid as i16,
            pg_sys::Datum::from(type_oid),
            pg_sys::Datum::from(label.as_ptr()),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Returns whether a type is text or varchar, which Oban's tables have for names.
pub fn is_name(type_oid: pg_sys::Oid) -> bool {
    [pg_sys::TEXTOID, pg_sys::VARCHAROID].contains(&type_oid)
}

/// Returns whether values of a type are arrays of texts.
pub(super) fn is_texts(type_oid: pg_sys::Oid) -> bool {
    [pg_sys::TEXTARRAYOID, pg_sys::VARCHARARRAYOID, pg_sys::BPCHARARRAYOID].contains(&type_oid)
}

/// Returns whether values of a type are texts.
pub fn is_text(type_oid: pg_sys::Oid) -> bool {
    [pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::BPCHAROID].contains(&type_oid)
}
