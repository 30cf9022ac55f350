//! Procedures: how to end the transaction that CALL began, and how to return the record of INOUT
//! arguments.

use std::time::Duration;

use pgrx::datum::Interval;
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys;
use pgrx::tupdesc::PgTupleDesc;

use crate::error::{Error, given};

/// The longest timeout in microseconds: a day. A longer timeout is a mistake in the unit.
const MAX_TIMEOUT: i128 = 86_400_000_000;

/// Returns how long a procedure waits at most, from its argument `timeout`. `Err` is 22004, or 22023: the
/// timeout is negative or longer than a day.
pub fn waiting_time(timeout: Option<Interval>) -> Result<Duration, Error> {
    let micros = given("timeout", timeout)?.as_micros();
    if (0..=MAX_TIMEOUT).contains(&micros) {
        return Ok(Duration::from_micros(micros as u64));
    }
    Err(Error::bad(
        format!("timeout is {} s", micros as f64 / 1e6),
        "It has to be at least 0 and at most a day; 5 to 10 seconds suit most poolers.",
    ))
}

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

/// Runs `first` and then `body` in the present transaction, in the `body` of `Call::commit`, and commits it.
/// The transaction is READ COMMITTED, whatever the session's default is. It takes its snapshot between the
/// two. What `body` returns must be in Rust's memory. `Err` is an error of one of them, which the caller has
/// to raise: nothing is committed then.
pub fn run_transaction<S, R, E>(
    first: impl FnOnce() -> Result<S, E>,
    body: impl FnOnce(S) -> Result<R, E>,
) -> Result<R, E> {
    // SAFETY: `Call::commit` has begun the transaction, and nothing has taken a snapshot in it. So its
    // isolation level can still be set. After an ERROR the abort of the transaction pops the snapshot. The
    // memory of the transaction lives as long as it. A procedure may run many transactions, so what `first`
    // and `body` allocate must not be in the procedure's memory.
    unsafe {
        pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::CurTransactionContext);
        let first = first()?;
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = body(first)?;
        pg_sys::PopActiveSnapshot();
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::SPI_commit();
        Ok(result)
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
