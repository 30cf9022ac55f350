//! A trigger's row: how to read it, and how to return another row in its place.

use std::ffi::CStr;

use pgrx::AllocatedByPostgres;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::tupdesc::PgTupleDesc;

use super::heap::{Heap, RowLock};
use super::partition;
use super::tuple::{self, Column, Tuple};
use crate::logic::ids::{SchemaOid, TableOid};

/// The timing and the event for which a trigger was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    BeforeInsert,
    BeforeUpdate,
    AfterInsert,
    AfterUpdate,
    AfterDelete,
    AfterInsertStatement,
    AfterTruncate,
}

/// A call of a trigger function for a row or a statement.
pub struct RowTrigger<'a> {
    trigger: &'a PgTrigger<'a>,
    data: &'a pg_sys::TriggerData,
}

impl<'a> RowTrigger<'a> {
    pub fn of(trigger: &'a PgTrigger<'a>) -> Self {
        Self { trigger, data: trigger.trigger_data() }
    }

    /// Returns the timing and the event of this call. `None`: no trigger of the extension is made
    /// for such a call.
    pub fn call(&self) -> Option<Call> {
        let event = self.trigger.event();
        if event.fired_instead() {
            return None; // such a trigger is on a view
        }
        let (before, row) = (event.fired_before(), event.fired_for_row());
        let (insert, update) = (event.fired_by_insert(), event.fired_by_update());
        match (before, row) {
            (true, true) if insert => Some(Call::BeforeInsert),
            (true, true) if update => Some(Call::BeforeUpdate),
            (false, true) if insert => Some(Call::AfterInsert),
            (false, true) if update => Some(Call::AfterUpdate),
            (false, true) if event.fired_by_delete() => Some(Call::AfterDelete),
            (false, false) if insert => Some(Call::AfterInsertStatement),
            (false, false) if event.fired_by_truncate() => Some(Call::AfterTruncate),
            _ => None,
        }
    }

    /// Returns the table's oid.
    pub fn table(&self) -> TableOid {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { (*self.data.tg_relation).rd_id.into() }
    }

    /// Returns whether the table is an ordinary table of this name that is not temporary. A schema
    /// has at most one such table.
    pub fn is_of(&self, name: &str) -> bool {
        // SAFETY: the relation that fired the trigger is open.
        unsafe {
            let form = (*self.data.tg_relation).rd_rel;
            (*form).relkind as u8 == pg_sys::RELKIND_RELATION
                && (*form).relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
                && CStr::from_ptr((*form).relname.data.as_ptr()).to_bytes() == name.as_bytes()
        }
    }

    /// Returns the table. The statement that fired the trigger has opened and locked it.
    pub fn heap(&self) -> Heap<'_> {
        // SAFETY: the executor keeps the relation open for longer than the trigger runs.
        unsafe { Heap::of_trigger(self.data.tg_relation) }
    }

    /// Returns the table's schema.
    pub fn schema(&self) -> SchemaOid {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { (*(*self.data.tg_relation).rd_rel).relnamespace.into() }
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

    /// Returns the oid of the trigger.
    pub fn oid(&self) -> u32 {
        // SAFETY: the trigger's description lasts as long as the call.
        unsafe { (*self.data.tg_trigger).tgoid.to_u32() }
    }

    /// Returns whether the table has the trigger from its partitioned table.
    pub fn is_clone(&self) -> bool {
        // SAFETY: the trigger's description lasts as long as the call.
        unsafe { (*self.data.tg_trigger).tgisclone }
    }

    /// Returns the argument of the trigger in this place, counted from 0. `None`: the trigger has
    /// no such argument.
    pub fn argument(&self, place: usize) -> Option<&'a CStr> {
        // SAFETY: the trigger's description lasts as long as the call, and has `tgnargs` texts.
        unsafe {
            let trigger = &*self.data.tg_trigger;
            (place < trigger.tgnargs as usize).then(|| CStr::from_ptr(*trigger.tgargs.add(place)))
        }
    }

    /// Returns the column of this name, if rows store it. `None`: the table has no such column, or
    /// the column is a virtual generated one, which is NULL in stored rows.
    pub fn stored_column(&self, name: &str) -> Option<Column> {
        self.column(name).filter(|column| !column.is_virtual())
    }

    /// Returns the column of this name, which is in the server's encoding, as `stored_column` does.
    pub fn stored_column_named(&self, name: &CStr) -> Option<Column> {
        // SAFETY: the relation that fired the trigger is open.
        let column = unsafe { tuple::column_named(self.data.tg_relation, name.to_bytes()) };
        column.filter(|column| !column.is_virtual())
    }

    /// Returns the column of this name. `None`: the table has no such column.
    pub fn column(&self, name: &str) -> Option<Column> {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { tuple::column(self.data.tg_relation, name) }
    }

    /// Returns the row that is inserted or deleted. For an UPDATE, returns the old row.
    pub fn row(&self) -> Tuple {
        // SAFETY: a call for a row has the row in this slot, which outlives the call.
        unsafe { Tuple::in_slot(self.data.tg_trigslot) }
    }

    /// Returns the new row of an UPDATE.
    pub fn new_row(&self) -> Tuple {
        // SAFETY: a call for an UPDATE has the new row in this slot, which outlives the call.
        unsafe { Tuple::in_slot(self.data.tg_newslot) }
    }

    /// Locks the row FOR UPDATE until the transaction ends, in a BEFORE trigger of an UPDATE. Waits
    /// for transactions that have locked the row FOR KEY SHARE. The executor has locked the row FOR
    /// NO KEY UPDATE, so no other transaction changes it meanwhile. Returns false if the row could
    /// not be locked, which should not happen.
    pub fn lock_for_update(&self) -> bool {
        // SAFETY: the slot holds the row that is updated, and pins the row's page as long as the
        // trigger runs.
        unsafe { self.heap().lock_tid((*self.data.tg_trigslot).tts_tid, RowLock::Update, true) }.is_ok()
    }

    /// Returns what a BEFORE trigger returns to have the row written with these values in place of
    /// the row's own.
    pub fn with<const N: usize>(
        &self,
        values: [(Column, Option<i64>); N],
    ) -> PgHeapTuple<'a, AllocatedByPostgres> {
        let mut numbers = values.map(|(column, _)| column.number());
        let mut nulls = values.map(|(_, value)| value.is_none());
        let mut datums = values.map(|(_, value)| pg_sys::Datum::from(value.unwrap_or(0)));
        // SAFETY: the tuple has the relation's shape. The columns belong to the relation, and are
        // of types that are passed as a 64-bit value.
        unsafe {
            let is_update = self.trigger.event().fired_by_update();
            let tuple = if is_update { self.data.tg_newtuple } else { self.data.tg_trigtuple };
            let descriptor = (*self.data.tg_relation).rd_att;
            let changed = if N == 0 {
                tuple
            } else {
                pg_sys::heap_modify_tuple_by_cols(
                    tuple,
                    descriptor,
                    N as i32,
                    numbers.as_mut_ptr(),
                    datums.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                )
            };
            PgHeapTuple::from_heap_tuple(PgTupleDesc::from_pg_copy(descriptor), changed)
        }
    }

    /// Returns what a BEFORE trigger returns to have the row written unchanged.
    pub fn unchanged(&self) -> PgHeapTuple<'a, AllocatedByPostgres> {
        self.with([])
    }
}
