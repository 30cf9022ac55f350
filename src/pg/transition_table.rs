//! The rows that a statement inserted, read directly from the trigger's tuplestore. SPI over the
//! transition table costs several times as much. Only triggers of versions before 0.9.0 have such
//! rows.

use pgrx::pg_sys;

use super::partition;
use super::tuple::{self, Column, Tuple};
use crate::logic::ids::{SchemaOid, TableOid};

/// The inserted rows of a statement trigger with REFERENCING NEW TABLE.
pub struct TransitionTable<'a> {
    data: &'a pg_sys::TriggerData,
}

impl<'a> TransitionTable<'a> {
    /// Returns the inserted rows. `None`: the trigger has no such transition table.
    pub fn of(data: &'a pg_sys::TriggerData) -> Option<Self> {
        (!data.tg_newtable.is_null()).then_some(Self { data })
    }

    /// Returns the topmost partitioned table that the table is a partition of, or the table itself,
    /// and its schema.
    pub fn root(&self) -> (TableOid, SchemaOid) {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { partition::root(self.data.tg_relation) }
    }

    /// Returns whether the table is temporary.
    pub fn is_of_temporary_table(&self) -> bool {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { (*(*self.data.tg_relation).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP }
    }

    /// Returns the column of this name. `None`: the table has no such column, or the column is a
    /// virtual generated one, which is NULL in the inserted rows.
    pub fn column(&self, name: &str) -> Option<Column> {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { tuple::column(self.data.tg_relation, name) }.filter(|column| !column.is_virtual())
    }

    /// Calls `row` for each inserted row.
    pub fn for_each(&self, mut row: impl FnMut(&Tuple)) {
        // SAFETY: the tuplestore is read as nodeNamedtuplestorescan.c reads it. The read pointer is
        // a new one, because pointer 0 is shared with the statement's other triggers. The slot has
        // the table's shape, and is dropped at the end. After an ERROR the memory context of the
        // trigger's call frees both.
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
                row(&Tuple::in_slot(slot));
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }
}
