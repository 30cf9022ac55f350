//! The rows that a statement inserted, read straight out of the trigger's tuplestore: SPI over the
//! transition table costs several times as much.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

// Not bound by pgrx. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
}

/// A column of the table that a trigger fired on.
#[derive(Clone, Copy)]
pub struct Column {
    number: i32,
    pub type_oid: pg_sys::Oid,
}

/// The inserted rows of a statement trigger with REFERENCING NEW TABLE.
pub struct NewRows<'a> {
    data: &'a pg_sys::TriggerData,
}

impl<'a> NewRows<'a> {
    /// `None` when the trigger has no such transition table.
    pub fn of(data: &'a pg_sys::TriggerData) -> Option<Self> {
        (!data.tg_newtable.is_null()).then_some(Self { data })
    }

    /// The schema that is the prefix of the table: the table's own, or for a partition the one of the
    /// partitioned table above it.
    pub fn prefix(&self) -> String {
        // SAFETY: the relation is open, and the name is copied.
        unsafe {
            let relation = self.data.tg_relation;
            let mut namespace = (*(*relation).rd_rel).relnamespace;
            if (*(*relation).rd_rel).relispartition {
                let ancestors = pg_guard_ffi_boundary(|| get_partition_ancestors((*relation).rd_id));
                if !ancestors.is_null() && (*ancestors).length > 0 {
                    let root = (*(*ancestors).elements.add((*ancestors).length as usize - 1)).oid_value;
                    namespace = pg_sys::get_rel_namespace(root);
                }
            }
            let name = pg_sys::get_namespace_name(namespace);
            if name.is_null() {
                return String::new();
            }
            let copy = std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned();
            pg_sys::pfree(name.cast());
            copy
        }
    }

    /// The column of this name as the table has it now: columns are dropped and reordered, and the
    /// names are compared each time because that costs less than a lookup in any cache.
    pub fn column(&self, name: &str) -> Option<Column> {
        // SAFETY: the relation that fired the trigger is open, and its descriptor has natts attributes.
        unsafe {
            let descriptor = (*self.data.tg_relation).rd_att;
            (0..(*descriptor).natts).find_map(|i| {
                let attribute = super::catalog_attribute(descriptor, i);
                let found = !(*attribute).attisdropped
                    && std::ffi::CStr::from_ptr((*attribute).attname.data.as_ptr()).to_bytes()
                        == name.as_bytes();
                found.then(|| Column { number: i + 1, type_oid: (*attribute).atttypid })
            })
        }
    }

    /// Calls `row` for each inserted row with a way to read its columns.
    pub fn for_each(&self, mut row: impl FnMut(&Row)) {
        // SAFETY: as nodeNamedtuplestorescan.c reads it: a read pointer of our own (pointer 0 is
        // shared with the statement's other triggers), a slot of the table's shape, dropped at the end.
        // An ERROR in between leaves both to the memory context of the trigger's call.
        unsafe {
            let store = self.data.tg_newtable;
            let pointer = pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot(
                (*self.data.tg_relation).rd_att,
                &raw const pg_sys::TTSOpsMinimalTuple,
            );
            while pg_sys::tuplestore_gettupleslot(store, true, false, slot) {
                row(&Row { slot });
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }
}

pub struct Row {
    slot: *mut pg_sys::TupleTableSlot,
}

impl Row {
    /// The column's value; `None` for NULL.
    fn datum(&self, column: Column) -> Option<pg_sys::Datum> {
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

    /// An enum's label by its oid.
    pub fn oid(&self, column: Column) -> Option<pg_sys::Oid> {
        self.datum(column).map(|d| pg_sys::Oid::from(d.value() as u32))
    }

    /// Calls `read` with the bytes of a text, varchar or the like.
    pub fn with_text<R>(&self, column: Column, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let datum = self.datum(column)?;
        // SAFETY: the column's type is a varlena. A copy that detoasting made is freed again, or a
        // statement of a million rows would hold a million of them.
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

/// The label's oid in an enum type, if it has one.
pub fn enum_label(type_oid: pg_sys::Oid, label: &std::ffi::CStr) -> Option<pg_sys::Oid> {
    // SAFETY: a catalog lookup; `label` lives for the call.
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

/// Whether values of a type are texts.
pub fn is_text(type_oid: pg_sys::Oid) -> bool {
    [pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::BPCHAROID].contains(&type_oid)
}
