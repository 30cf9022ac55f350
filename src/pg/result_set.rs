//! The rows of a function that returns a table, all at once. (pgrx gives them one by one, and Postgres then writes
//! them to disk as soon as they are more than work_mem.)

use pgrx::memcxt::PgMemoryContexts;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// What may be kept in memory before it goes to disk, in kB, if work_mem is not more.
const MEMORY: i32 = 64 * 1024;

pub struct ResultSet {
    /// What the values of rows take until they are copied.
    scratch: PgMemoryContexts,
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
}

impl ResultSet {
    /// Of the function that is being called, which returns a table. 0A000 where none is wanted.
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the call's own structs; what the caller is given lives in the memory of its query, as it
        // has to.
        unsafe {
            let wanted = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let modes = if wanted.is_null() || (*wanted).type_ != pg_sys::NodeTag::T_ReturnSetInfo {
                0
            } else {
                (*wanted).allowedModes as u32
            };
            if modes & pg_sys::SetFunctionReturnMode::SFRM_Materialize == 0 {
                pgrx::ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "a table is not wanted here",
                    "Call it in FROM."
                );
            }
            let before = pg_sys::MemoryContextSwitchTo((*(*wanted).econtext).ecxt_per_query_memory);
            let mut descriptor = std::ptr::null_mut();
            pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut descriptor);
            let any_order = modes & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random != 0;
            let store = pg_sys::tuplestore_begin_heap(any_order, false, MEMORY.max(pg_sys::work_mem));
            pg_sys::MemoryContextSwitchTo(before);
            (*wanted).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            ((*wanted).setResult, (*wanted).setDesc) = (store, descriptor);
            Self { scratch: PgMemoryContexts::new("obanrs rows"), store, descriptor }
        }
    }

    /// Runs `body`, whose values are freed after it.
    pub fn within(&mut self, body: impl FnOnce(&mut Self)) {
        // SAFETY: a context of our own, in which nothing is that outlives `body`: rows are copied into another.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch.value());
            body(self);
            pg_sys::MemoryContextSwitchTo(before);
            self.scratch.reset();
        }
    }

    /// Throws away what was added.
    pub fn clear(&mut self) {
        // SAFETY: the store that is being filled.
        unsafe { pg_sys::tuplestore_clear(self.store) }
    }

    /// Adds a row: a value for each column, of its type.
    pub fn push<const N: usize>(&mut self, values: [Option<pg_sys::Datum>; N]) {
        let mut nulls = values.map(|value| value.is_none());
        let mut datums = values.map(|value| value.unwrap_or(pg_sys::Datum::null()));
        // SAFETY: as many values as the function has columns, checked here; they are copied.
        unsafe {
            assert_eq!((*self.descriptor).natts as usize, N, "a value for each column");
            pg_sys::tuplestore_putvalues(
                self.store,
                self.descriptor,
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }
}
