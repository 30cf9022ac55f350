//! The result of a function that returns a table, all rows at once. (pgrx returns rows one by one.
//! Postgres then writes them to disk as soon as they take more than work_mem.)

use pgrx::memcxt::PgMemoryContexts;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// How much memory the result may take before it is written to disk, in kB. work_mem counts if it
/// is larger.
const MEMORY: i32 = 64 * 1024;

/// The rows that a function has added so far.
pub struct ResultSet {
    /// The memory for the values of rows until they are copied.
    scratch: PgMemoryContexts,
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
}

impl ResultSet {
    /// Starts the result of the function that is being called, which returns a table. Raises 0A000
    /// if the caller does not want a table.
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the structs belong to the running call. What the caller is given lives in the
        // memory of the caller's query, as Postgres requires.
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

    /// Runs `body`, and frees the values that `body` made.
    pub fn within(&mut self, body: impl FnOnce(&mut Self)) {
        // SAFETY: the context belongs to this value. Nothing in the context outlives `body`,
        // because rows are copied into another context.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch.value());
            body(self);
            pg_sys::MemoryContextSwitchTo(before);
            self.scratch.reset();
        }
    }

    /// Removes the rows that were added.
    pub fn clear(&mut self) {
        // SAFETY: the store is the one that is being filled.
        unsafe { pg_sys::tuplestore_clear(self.store) }
    }

    /// Adds a row: one value for each column, of the column's type.
    pub fn push<const N: usize>(&mut self, values: [Option<pg_sys::Datum>; N]) {
        let mut nulls = values.map(|value| value.is_none());
        let mut datums = values.map(|value| value.unwrap_or(pg_sys::Datum::null()));
        // SAFETY: there are as many values as the function has columns, which the assertion checks,
        // and the values are copied.
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
