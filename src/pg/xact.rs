//! Transactions: how to run a transaction in a worker, how to survive its error, and how to learn
//! of the end of each transaction.

use std::cell::RefCell;
use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::ptr::null_mut;
use std::sync::Once;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;

/// Runs `body` in a transaction with a snapshot, in a worker that has no open transaction.
/// pg_stat_activity and log lines show `activity` meanwhile.
pub fn run<R>(activity: &'static CStr, body: impl FnOnce() -> R) -> R {
    // SAFETY: the calls of a worker's transaction are in their prescribed order. An ERROR in `body`
    // leaves the transaction open: `contain` aborts it, or the worker ends.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::debug_query_string = activity.as_ptr();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
        pg_sys::StartTransactionCommand();
        // A read-only default of the database must not make the transaction fail halfway. Elections
        // ask for that default before they begin.
        pg_sys::XactReadOnly = false;
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let result = body();
    // SAFETY: the transaction and the snapshot were begun above.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        // Without this call autovacuum never learns of a worker's writes.
        pg_sys::pgstat_report_stat(true);
        idle();
    }
    result
}

/// Marks the worker as idle.
///
/// # Safety
/// No transaction is open.
unsafe fn idle() {
    // SAFETY: the caller promises that no transaction is open. The call sets plain globals and
    // sends a report.
    unsafe {
        pg_sys::debug_query_string = std::ptr::null();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}

// pgrx does not bind these functions. They may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
    /// The setting lock_timeout, in milliseconds; 0 is no limit. Postgres reads it at each wait.
    static mut LockTimeout: c_int;
}

/// The number of this timeout in Postgres' enum of timeouts, which is the same in 15 to 18.
const STATEMENT_TIMEOUT: c_int = 3;

/// Runs `body` within a transaction. After `milliseconds`, `body` is cancelled (57014). The setting
/// statement_timeout has no effect in a background worker.
pub fn limit<R>(milliseconds: i32, body: impl FnOnce() -> R) -> R {
    // SAFETY: the timeout is registered in every process with a database. After an error `contain`
    // ends the timeout.
    unsafe { pg_guard_ffi_boundary(|| enable_timeout_after(STATEMENT_TIMEOUT, milliseconds)) };
    let result = body();
    // SAFETY: the timeout is registered, as above. A cancel that came slightly too late must not
    // hit what runs next.
    unsafe {
        pg_guard_ffi_boundary(|| disable_timeout(STATEMENT_TIMEOUT, false));
        pg_sys::QueryCancelPending = 0;
    }
    result
}

/// Runs `body`, in which a wait for a lock ends after `milliseconds` with an ERROR (55P03), or earlier
/// if the session's lock_timeout says so.
pub fn limit_lock_waits<R>(milliseconds: i32, body: impl FnOnce() -> R) -> R {
    /// The value before, which comes back at the end, also after an ERROR.
    struct Before(c_int);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: this is a plain global of this process, which has one thread.
            unsafe { LockTimeout = self.0 }
        }
    }
    // SAFETY: as above.
    let before = Before(unsafe { LockTimeout });
    if before.0 == 0 || before.0 > milliseconds {
        // SAFETY: as above.
        unsafe { LockTimeout = milliseconds }
    }
    body()
}

/// An ERROR that was contained.
pub struct Caught {
    pub message: String,
    pub code: PgSqlErrorCode,
}

/// Runs `body`, which runs one transaction. `Err`: an ERROR in `body`, after the transaction was
/// aborted (its locks and changes are gone). A Rust panic is no such error: the worker ends by the
/// panic and is started again.
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
        // SAFETY: these are the calls of Postgres' own worker loops after an ERROR, and pgrx has
        // flushed its state.
        unsafe {
            pg_guard_ffi_boundary(|| disable_timeout(STATEMENT_TIMEOUT, false));
            pg_sys::AbortCurrentTransaction();
            idle();
        }
    }
    outcome
}

/// Runs `body`. If Postgres raises `code` in `body`, raises the error again with this hint.
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

/// Runs `body`. If Postgres raises `code` in `body`, raises `instead`.
pub fn with_error<R>(
    code: PgSqlErrorCode,
    instead: impl Into<ErrorReport>,
    body: impl FnOnce() -> R + UnwindSafe,
) -> R {
    let mut instead = AssertUnwindSafe(Some(instead.into()));
    PgTryBuilder::new(body)
        .catch_when(code, move |_| {
            { &mut instead }.take().into_iter().for_each(|error| error.report(PgLogLevel::ERROR));
            unreachable!("an ERROR does not return")
        })
        .execute()
}

pub type Callback = fn(event: pg_sys::XactEvent::Type);
pub type SubCallback = fn(event: pg_sys::SubXactEvent::Type);

thread_local! {
    /// The callbacks in the order of registration, which `_PG_init` fills. The list is not borrowed
    /// while a callback runs, because the callback may raise, or end the process.
    static CALLBACKS: RefCell<Vec<Callback>> = const { RefCell::new(Vec::new()) };
    static SUB_CALLBACKS: RefCell<Vec<SubCallback>> = const { RefCell::new(Vec::new()) };
}

/// Registers `callback` for every event of every transaction of this process and of the processes
/// that it forks.
///
/// Before a commit the callback that was registered last is called first. At the end of the
/// transaction the callback that was registered first is called first. `bus` is registered first.
/// So before the commit `bus` runs last, and takes what the other callbacks send. After the commit
/// `bus` runs first, and publishes before the other callbacks wake a process.
///
/// After a commit a callback must not raise: that would be a PANIC of the whole server.
pub fn on_event(callback: Callback) {
    static REGISTERED: Once = Once::new();
    // SAFETY: the callback is a function that lives as long as the library, which is never
    // unloaded.
    REGISTERED.call_once(|| unsafe { pg_sys::RegisterXactCallback(Some(event_happened), null_mut()) });
    CALLBACKS.with_borrow_mut(|callbacks| callbacks.push(callback));
}

/// Registers `callback` for every event of every subtransaction. The callback runs while the
/// subtransaction still exists: `level` returns the subtransaction's level.
pub fn on_subtransaction_event(callback: SubCallback) {
    static REGISTERED: Once = Once::new();
    // SAFETY: the callback is a function that lives as long as the library, which is never
    // unloaded.
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

/// Returns the depth of nested subtransactions: 1 in a transaction, 0 outside of a transaction.
pub fn level() -> u32 {
    // SAFETY: the function reads the transaction's state.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() as u32 }
}

/// Returns the number of the running command. It rises in a transaction with each command that
/// writes, and with each change of a table's definition.
pub fn command_id() -> u32 {
    // SAFETY: every caller runs in a transaction.
    unsafe { pg_sys::GetCurrentCommandId(false) }
}

/// Makes what this transaction has written visible to what the transaction does next.
pub fn next_command() {
    // SAFETY: every caller runs in a transaction.
    unsafe { pg_sys::CommandCounterIncrement() }
}

/// Returns whether an event comes right before PREPARE TRANSACTION, which can still be refused.
pub fn is_before_prepare(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE
}

/// Returns whether an event comes right after a commit, which can't be undone any more.
pub fn is_commit(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_COMMIT
}

/// Returns whether an event is PREPARE TRANSACTION.
pub fn is_prepare(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_PREPARE
}

/// Returns whether an event is an end of the session's own transaction (not of a parallel
/// worker's).
pub fn is_end(event: pg_sys::XactEvent::Type) -> bool {
    use pg_sys::XactEvent::*;
    matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE)
}

/// Returns whether an event comes right before a commit: the last moment at which a transaction can
/// send or raise.
pub fn is_before_commit(event: pg_sys::XactEvent::Type) -> bool {
    event == pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT
}
