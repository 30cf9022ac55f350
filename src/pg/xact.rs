//! Transactions: running one in a worker, surviving its error, and hearing of every end of one.

use std::cell::RefCell;
use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::ptr::null_mut;
use std::sync::Once;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;

/// Runs `body` in a transaction with a snapshot, in a worker that has none open. `activity` is what
/// pg_stat_activity and log lines show meanwhile.
pub fn run<R>(activity: &'static CStr, body: impl FnOnce() -> R) -> R {
    // SAFETY: the calls of a worker's transaction in their prescribed order. An ERROR in `body` leaves
    // it open: `contain` aborts it, or the worker ends.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::debug_query_string = activity.as_ptr();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
        pg_sys::StartTransactionCommand();
        // A default of the database must not fail it half way. Elections ask for that default before they begin.
        pg_sys::XactReadOnly = false;
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let result = body();
    // SAFETY: as above.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        // Without this autovacuum never hears of a worker's writes.
        pg_sys::pgstat_report_stat(true);
        idle();
    }
    result
}

/// Marks the worker as idle.
///
/// # Safety
/// Outside of a transaction.
unsafe fn idle() {
    // SAFETY: plain globals and a report.
    unsafe {
        pg_sys::debug_query_string = std::ptr::null();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}

// Not bound by pgrx. They may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
}

/// Its number in Postgres' enum of timeouts; the same in 15 to 18.
const STATEMENT_TIMEOUT: c_int = 3;

/// Runs `body` within a transaction. After that many milliseconds `body` is cancelled (57014). The setting
/// statement_timeout does nothing in a background worker.
pub fn limit<R>(milliseconds: i32, body: impl FnOnce() -> R) -> R {
    // SAFETY: the timeout is registered in every process with a database; `contain` ends it on errors.
    unsafe { pg_guard_ffi_boundary(|| enable_timeout_after(STATEMENT_TIMEOUT, milliseconds)) };
    let result = body();
    // SAFETY: as above. A cancel that came just too late must not hit what runs next.
    unsafe {
        pg_guard_ffi_boundary(|| disable_timeout(STATEMENT_TIMEOUT, false));
        pg_sys::QueryCancelPending = 0;
    }
    result
}

/// An ERROR that was contained.
pub struct Caught {
    pub message: String,
    pub code: PgSqlErrorCode,
}

/// Runs `body`, which runs one transaction; an ERROR in it is given back after the
/// transaction was aborted (its locks and changes are gone). A panic of our own is no such error: the
/// worker dies of it and starts anew.
pub fn contain<R>(body: impl FnOnce() -> R) -> Result<R, Caught> {
    let body = AssertUnwindSafe(body);
    let outcome = PgTryBuilder::new(move || Ok({ body }.0()))
        .catch_others(|error| match error {
            CaughtError::PostgresError(e) | CaughtError::ErrorReport(e) => {
                Err(Caught { message: e.message().to_owned(), code: e.sql_error_code() })
            }
            panic => panic.rethrow(),
        })
        .execute();
    if outcome.is_err() {
        // SAFETY: what Postgres' own worker loops do after an ERROR; pgrx has flushed its state.
        unsafe {
            pg_guard_ffi_boundary(|| disable_timeout(STATEMENT_TIMEOUT, false));
            pg_sys::AbortCurrentTransaction();
            idle();
        }
    }
    outcome
}

/// Runs `body`; when it raises `code`, raises that again with this hint.
pub fn with_hint<R>(code: PgSqlErrorCode, hint: &str, body: impl FnOnce() -> R + UnwindSafe) -> R {
    let hint = AssertUnwindSafe(hint.to_owned());
    PgTryBuilder::new(body)
        .catch_when(code, move |error| match error {
            CaughtError::PostgresError(e) => {
                ErrorReport::new(e.sql_error_code(), e.message().to_owned(), "obanrs")
                    .set_hint(hint.0.clone())
                    .report(PgLogLevel::ERROR);
                unreachable!("an ERROR does not return")
            }
            other => other.rethrow(),
        })
        .execute()
}

pub type Callback = fn(event: pg_sys::XactEvent::Type);
pub type SubCallback = fn(event: pg_sys::SubXactEvent::Type);

thread_local! {
    /// Filled in `_PG_init`, in the order of registration. Not borrowed while one runs: it may raise, or end
    /// the process.
    static CALLBACKS: RefCell<Vec<Callback>> = const { RefCell::new(Vec::new()) };
    static SUB_CALLBACKS: RefCell<Vec<SubCallback>> = const { RefCell::new(Vec::new()) };
}

/// Registers `callback` for every event of every transaction of this process and its children. Before a commit the
/// last one that was registered is called first, at the end of the transaction the first one: `bus` is the first. So it
/// takes what the others send before the commit, and publishes before the others wake anybody. After a commit a callback
/// must not raise: that would be a PANIC of the whole server.
pub fn on_event(callback: Callback) {
    static REGISTERED: Once = Once::new();
    // SAFETY: a function that lives as long as the library, which is never unloaded.
    REGISTERED.call_once(|| unsafe { pg_sys::RegisterXactCallback(Some(event_happened), null_mut()) });
    CALLBACKS.with_borrow_mut(|callbacks| callbacks.push(callback));
}

/// As `on_event`, for every subtransaction. The callback runs in it still: `level` is its own.
pub fn on_subtransaction_event(callback: SubCallback) {
    static REGISTERED: Once = Once::new();
    // SAFETY: as above.
    REGISTERED.call_once(|| unsafe { pg_sys::RegisterSubXactCallback(Some(sub_event_happened), null_mut()) });
    SUB_CALLBACKS.with_borrow_mut(|callbacks| callbacks.push(callback));
}

#[pg_guard]
unsafe extern "C-unwind" fn event_happened(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    let count = CALLBACKS.with_borrow(Vec::len);
    for nth in 0..count {
        let i = if is_end(event) { nth } else { count - 1 - nth };
        let callback = CALLBACKS.with_borrow(|callbacks| callbacks[i]);
        callback(event);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn sub_event_happened(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    for i in (0..SUB_CALLBACKS.with_borrow(Vec::len)).rev() {
        let callback = SUB_CALLBACKS.with_borrow(|callbacks| callbacks[i]);
        callback(event);
    }
}

/// How deep in subtransactions this is: 1 in a transaction, 0 outside of one.
pub fn level() -> u32 {
    // SAFETY: reads the transaction's state.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() as u32 }
}

/// Makes what this transaction has written visible to what it does next.
pub fn next_command() {
    // SAFETY: in a transaction.
    unsafe { pg_sys::CommandCounterIncrement() }
}

/// Whether an event comes right before PREPARE TRANSACTION, which can still be refused.
pub fn is_before_prepare(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE
}

/// Whether an event comes right after a commit, which can't be taken back any more.
pub fn is_commit(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_COMMIT
}

/// Whether an event is PREPARE TRANSACTION.
pub fn is_prepare(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_PREPARE
}

/// Whether an event is an end of the session's own transaction (not of a parallel worker's).
pub fn is_end(event: pg_sys::XactEvent::Type) -> bool {
    use pg_sys::XactEvent::*;
    matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE)
}

/// Whether an event comes right before a commit: the last chance to say something.
pub fn is_before_commit(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT
}
