//! Procedures: how to end the transaction that CALL began, and how to return the record of INOUT
//! arguments.

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys;
use pgrx::tupdesc::PgTupleDesc;

/// The CALL statement that runs a procedure.
pub struct Call {
    atomic: bool,
}

impl Call {
    /// Returns the CALL statement of the running procedure.
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the context of a call is null or a node, whose tag says what the node is.
        let atomic = unsafe {
            let context = (*fcinfo).context;
            context.is_null()
                || (*context).type_ != pg_sys::NodeTag::T_CallContext
                || (*context.cast::<pg_sys::CallContext>()).atomic
        };
        Self { atomic }
    }

    /// Returns whether the CALL can't end the transaction, because it runs in a transaction block
    /// or in a function.
    pub fn is_atomic(&self) -> bool {
        self.atomic
    }

    /// Commits, and runs `body` in the next transaction. In that transaction nothing takes a
    /// snapshot by itself. What `body` returns must be in Rust's memory.
    pub fn commit<R>(&self, body: impl FnOnce() -> R) -> R {
        // SAFETY: the calls of SPI are in the prescribed order. SPI restores the memory context of
        // the caller, which outlives the transaction. An ERROR leaves the clean-up to the
        // transaction's abort.
        unsafe {
            pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
            pg_sys::SPI_commit();
            let result = body();
            pg_sys::SPI_finish();
            result
        }
    }
}

/// The shape of the record of a procedure's INOUT arguments. A caller that waits reads the shape
/// before the wait, because another session may drop the procedure during the wait.
pub struct InoutRecord(PgTupleDesc<'static>);

impl InoutRecord {
    /// Returns the shape of the running procedure's record.
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the descriptor is what the catalog says of this procedure. It is copied into the
        // call's memory, which outlives the transactions that the procedure ends.
        unsafe {
            let mut descriptor = std::ptr::null_mut();
            pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut descriptor);
            Self(PgTupleDesc::from_pg_unchecked(pg_sys::BlessTupleDesc(descriptor)))
        }
    }

    /// Returns the record with these values.
    pub fn with<const N: usize>(
        self,
        values: [Option<pg_sys::Datum>; N],
    ) -> PgHeapTuple<'static, pgrx::AllocatedByRust> {
        // SAFETY: the caller gives as many values as the procedure has INOUT arguments, and of
        // their types.
        let tuple = unsafe { PgHeapTuple::from_datums(self.0, values) };
        tuple.unwrap_or_else(|e| pgrx::error!("{e}"))
    }
}
