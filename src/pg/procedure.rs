//! Procedures: ending the transaction that CALL began, and the row of their INOUT arguments.

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys;
use pgrx::tupdesc::PgTupleDesc;

/// The CALL statement that runs a procedure.
pub struct Call {
    atomic: bool,
}

impl Call {
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the context of a call is null or a node, whose tag says what it is.
        let atomic = unsafe {
            let context = (*fcinfo).context;
            context.is_null()
                || (*context).type_ != pg_sys::NodeTag::T_CallContext
                || (*context.cast::<pg_sys::CallContext>()).atomic
        };
        Self { atomic }
    }

    /// Whether it runs in a transaction block, or in a function, so that it can't end the transaction.
    pub fn is_atomic(&self) -> bool {
        self.atomic
    }

    /// Commits, and runs `body` in the next transaction, in which nothing takes a snapshot by itself. What
    /// `body` returns must be Rust's own.
    pub fn commit<R>(&self, body: impl FnOnce() -> R) -> R {
        // SAFETY: SPI's calls in their order; it restores the memory context of the caller, which outlives
        // the transaction. An ERROR leaves all of it to the transaction's abort.
        unsafe {
            pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
            pg_sys::SPI_commit();
            let result = body();
            pg_sys::SPI_finish();
            result
        }
    }
}

/// What the row of a procedure's INOUT arguments looks like. To be asked for before a wait: the procedure may
/// have been dropped after it.
pub struct InoutRecord(PgTupleDesc<'static>);

impl InoutRecord {
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        // SAFETY: the descriptor is what the catalog says of this procedure, copied into the call's memory, which
        // outlives the transactions that it ends.
        unsafe {
            let mut descriptor = std::ptr::null_mut();
            pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut descriptor);
            Self(PgTupleDesc::from_pg_unchecked(pg_sys::BlessTupleDesc(descriptor)))
        }
    }

    pub fn with<const N: usize>(
        self,
        values: [Option<pg_sys::Datum>; N],
    ) -> PgHeapTuple<'static, pgrx::AllocatedByRust> {
        // SAFETY: as many values as the procedure has such arguments, of their types.
        let tuple = unsafe { PgHeapTuple::from_datums(self.0, values) };
        tuple.unwrap_or_else(|e| pgrx::error!("{e}"))
    }
}
