//! A trigger's row: reading it, and giving back another one.

use pgrx::AllocatedByPostgres;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::tupdesc::PgTupleDesc;

use super::heap::{Heap, RowLock};
use super::tuple::{self, Column, Tuple};

/// What a trigger was called for.
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

pub struct RowTrigger<'a> {
    trigger: &'a PgTrigger<'a>,
    data: &'a pg_sys::TriggerData,
}

impl<'a> RowTrigger<'a> {
    pub fn of(trigger: &'a PgTrigger<'a>) -> Self {
        Self { trigger, data: trigger.trigger_data() }
    }

    /// `None` for a call that none of ours is made for.
    pub fn call(&self) -> Option<Call> {
        let event = self.trigger.event();
        if event.fired_instead() {
            return None; // of a view
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

    /// The table's id.
    pub fn table(&self) -> u32 {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { (*self.data.tg_relation).rd_id.to_u32() }
    }

    /// Whether it is an ordinary table of this name, of which there is one in a schema.
    pub fn is_of(&self, name: &str) -> bool {
        // SAFETY: the relation that fired the trigger is open.
        unsafe {
            let form = (*self.data.tg_relation).rd_rel;
            (*form).relkind as u8 == pg_sys::RELKIND_RELATION
                && (*form).relpersistence as u8 != pg_sys::RELPERSISTENCE_TEMP
                && std::ffi::CStr::from_ptr((*form).relname.data.as_ptr()).to_bytes() == name.as_bytes()
        }
    }

    /// The table, which the statement that fired the trigger has opened and locked.
    pub fn heap(&self) -> Heap<'_> {
        // SAFETY: the executor keeps it open for longer than the trigger runs.
        unsafe { Heap::of_trigger(self.data.tg_relation) }
    }

    /// The table's schema.
    pub fn schema(&self) -> u32 {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { (*(*self.data.tg_relation).rd_rel).relnamespace.to_u32() }
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<Column> {
        // SAFETY: the relation that fired the trigger is open.
        unsafe { tuple::column(self.data.tg_relation, name) }
    }

    /// The row that is inserted or deleted; of an UPDATE the one that it was.
    pub fn row(&self) -> Tuple {
        // SAFETY: a call for a row has it in this slot, which outlives the call.
        unsafe { Tuple::in_slot(self.data.tg_trigslot) }
    }

    /// Of an UPDATE the row that it becomes.
    pub fn new_row(&self) -> Tuple {
        // SAFETY: as above.
        unsafe { Tuple::in_slot(self.data.tg_newslot) }
    }

    /// In a BEFORE trigger of an UPDATE: locks the row FOR UPDATE until the transaction ends, and waits for others that
    /// have locked it FOR KEY SHARE. The executor has locked it FOR NO KEY UPDATE, so that nobody changes it meanwhile.
    /// False: it could not be locked, which should not happen.
    pub fn lock_for_update(&self) -> bool {
        // SAFETY: the slot holds the row that is updated, and pins its page for as long as the trigger runs.
        unsafe { self.heap().lock_tid((*self.data.tg_trigslot).tts_tid, RowLock::Update, true) }.is_ok()
    }

    /// What a BEFORE trigger gives back to have the row written with these values in place of its own.
    pub fn with<const N: usize>(
        &self,
        values: [(Column, Option<i64>); N],
    ) -> PgHeapTuple<'a, AllocatedByPostgres> {
        let mut numbers = values.map(|(column, _)| column.number());
        let mut nulls = values.map(|(_, value)| value.is_none());
        let mut datums = values.map(|(_, value)| pg_sys::Datum::from(value.unwrap_or(0)));
        // SAFETY: the tuple is of the relation's shape, the columns are its own and of types that are passed
        // as a 64-bit value.
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

    /// What a BEFORE trigger gives back to have the row written as it is.
    pub fn unchanged(&self) -> PgHeapTuple<'a, AllocatedByPostgres> {
        self.with([])
    }
}
