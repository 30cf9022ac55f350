//! Functions that triggers call.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use super::datum::sql_name;

/// What a trigger's function returns: a row or no row. The result is never an SQL NULL.
pub struct Answer(pg_sys::Datum);

/// Returns the answer of `body` to the trigger that called the function. `Err` is `otherwise`: no
/// trigger called the function. (Any role may call such a function in SQL, and `#[pg_trigger]`
/// would raise an internal error.)
pub fn called<A: WhoAllocated>(
    fcinfo: pg_sys::FunctionCallInfo,
    otherwise: impl Into<ErrorReport>,
    body: impl for<'a> FnOnce(&'a PgTrigger<'a>) -> Option<PgHeapTuple<'a, A>>,
) -> Result<Answer, ErrorReport> {
    // SAFETY: this is Postgres' own description of the call, which lasts as long as the call.
    let trigger = unsafe { PgTrigger::from_fcinfo(&*fcinfo) }.map_err(|_| otherwise.into())?;
    let row = body(&trigger).and_then(PgHeapTuple::into_trigger_datum);
    Ok(Answer(row.unwrap_or(pg_sys::Datum::null())))
}

// SAFETY: the implementation does what `#[pg_trigger]` does.
unsafe impl BoxRet for Answer {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: the datum is a row in Postgres' memory, or a null pointer. A null pointer means
        // "no row" and is not an SQL NULL.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

sql_name!(Answer, "trigger");
