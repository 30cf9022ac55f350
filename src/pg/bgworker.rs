//! Background workers: how to register a worker, and the first steps of a worker's main function.
//!
//! A main function that returns ends its process with the exit code 0. Postgres then removes the
//! worker for good, whatever its restart time is. So the coordinator never returns, and a keeper
//! returns only when it is not wanted any more.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

// pgrx's versions of these functions are Rust wrappers, which can't be given to Postgres as signal
// handlers.
unsafe extern "C-unwind" {
    fn die(signal: c_int);
    fn SignalHandlerForConfigReload(signal: c_int);
    fn StatementCancelHandler(signal: c_int);
    fn get_timeout_indicator(id: c_int, reset: bool) -> bool;
}

#[cfg(not(feature = "pg18"))]
use pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pg_sys::pqsignal_be as pqsignal;

use crate::logic::ids::{DatabaseOid, RoleOid};

/// A background worker as this library describes it to Postgres.
pub struct WorkerSpec<'a> {
    /// The name that ps and the log show.
    pub name: &'a str,
    /// The worker's `backend_type` in pg_stat_activity.
    pub kind: &'a str,
    /// The name of the exported main function.
    pub function: &'a str,
    /// The argument of the main function.
    pub argument: u32,
}

/// A worker that this process launched. The handle lives in the memory of the process that launched
/// the worker.
pub struct WorkerHandle(*mut pg_sys::BackgroundWorkerHandle);

fn describe(worker: &WorkerSpec<'_>, restart_seconds: i32) -> pg_sys::BackgroundWorker {
    let mut w = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: restart_seconds,
        bgw_main_arg: pg_sys::Datum::from(worker.argument),
        ..Default::default()
    };
    copy(&mut w.bgw_name, worker.name);
    copy(&mut w.bgw_type, worker.kind);
    copy(&mut w.bgw_library_name, "obanrs");
    copy(&mut w.bgw_function_name, worker.function);
    w
}

fn copy(to: &mut [c_char], from: &str) {
    let room = to.len() - 1;
    for (to, from) in to[..room].iter_mut().zip(from.bytes()) {
        *to = from as c_char;
    }
}

/// Registers a worker while the library is preloaded. Postgres starts the worker when recovery is
/// over, and again `restart_seconds` seconds after each end with an exit code other than 0.
pub fn register(worker: &WorkerSpec<'_>, restart_seconds: i32) {
    let mut w = describe(worker, restart_seconds);
    // SAFETY: Postgres copies the struct.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut w) }
}

/// Starts a worker that Postgres never restarts. Postgres sets this process's latch when the worker
/// starts and when the worker ends. `None`: every slot of max_worker_processes is in use.
pub fn launch(worker: &WorkerSpec<'_>) -> Option<WorkerHandle> {
    let mut w = describe(worker, pg_sys::BGW_NEVER_RESTART);
    w.bgw_notify_pid = super::latch::my_pid();
    let mut handle = std::ptr::null_mut();
    // SAFETY: Postgres copies the struct. Postgres allocates the handle in the current memory
    // context, which is switched to the context that lives as long as the process.
    let launched = unsafe {
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let launched = pg_sys::RegisterDynamicBackgroundWorker(&mut w, &mut handle);
        pg_sys::MemoryContextSwitchTo(before);
        launched
    };
    launched.then(|| WorkerHandle(handle)) // a null handle must not exist: its `drop` would free null
}

impl WorkerHandle {
    /// Returns whether the worker has ended.
    pub fn has_stopped(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is valid until it is dropped.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // SAFETY: `launch` allocated the handle, and `drop` frees it once.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// What restarts a worker that was terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarted {
    /// The postmaster restarts the worker if the worker ends with the exit code 1.
    ByPostmaster,
    /// The process that launched the worker starts another one, whatever the exit code is.
    ByLauncher,
}

/// Installs a worker's signal handlers, as the worker's first step. SIGTERM ends the worker at the
/// next interrupt check, also in the middle of a transaction, and writes no line into the log.
/// SIGHUP makes `reload_config` read the settings. SIGINT, which pg_cancel_backend sends, only
/// serves the timeouts of Postgres.
///
/// Postgres ignores a SIGHUP that arrives between the fork and this call, and the worker has the
/// settings from before the fork. So the first call of `reload_config` always reads the settings.
pub fn take_signals(restarted: Restarted) {
    leave_quietly(restarted);
    // SAFETY: the handlers are async-signal-safe, and the flag is a plain global.
    unsafe {
        pqsignal(pg_sys::SIGTERM as c_int, Some(die));
        pqsignal(pg_sys::SIGINT as c_int, Some(cancel_at_timeout));
        pqsignal(pg_sys::SIGHUP as c_int, Some(SignalHandlerForConfigReload));
        pg_sys::ConfigReloadPending = 1;
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Whether `xact::limit` has ended this process.
static TIMED_OUT: AtomicBool = AtomicBool::new(false);

/// Has the timer of `xact::limit` end this process by a FATAL, instead of cancelling the statement.
/// Code that runs in the statement may catch a cancel and go on. Comes after `take_signals`.
pub fn end_at_limit() {
    // SAFETY: the handler is async-signal-safe.
    unsafe {
        pqsignal(pg_sys::SIGINT as c_int, Some(end_at_timeout));
    }
}

/// Returns whether this process ends because of `end_at_limit`.
pub fn has_timed_out() -> bool {
    TIMED_OUT.load(Ordering::Relaxed)
}

/// Handles SIGINT in a process that called `end_at_limit`, otherwise as `cancel_at_timeout` does.
unsafe extern "C-unwind" fn end_at_timeout(signal: c_int) {
    const STATEMENT_TIMEOUT: c_int = 3;
    // SAFETY: the timer sets the flag before it sends the signal, and `die` is a signal handler
    // itself.
    unsafe {
        if get_timeout_indicator(STATEMENT_TIMEOUT, false) {
            TIMED_OUT.store(true, Ordering::Relaxed);
            die(signal);
        } else {
            cancel_at_timeout(signal);
        }
    }
}

/// Handles SIGINT. Postgres' timers for locks and for steps (`xact::limit`) end a wait by a SIGINT
/// to their own process. This handler ignores a SIGINT from elsewhere: outside of a transaction it
/// would be an ERROR, which ends the worker.
unsafe extern "C-unwind" fn cancel_at_timeout(signal: c_int) {
    // These numbers are the same in Postgres 15 to 18.
    const LOCK_TIMEOUT: c_int = 2;
    const STATEMENT_TIMEOUT: c_int = 3;
    // SAFETY: the timer sets the flags before it sends the signal, and `StatementCancelHandler` is
    // a signal handler itself.
    unsafe {
        if get_timeout_indicator(LOCK_TIMEOUT, false) || get_timeout_indicator(STATEMENT_TIMEOUT, false) {
            StatementCancelHandler(signal);
        }
    }
}

/// Whether this process ends because of a SIGTERM. `without_termination` sets the flag, and
/// `exiting` reads and clears it.
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// The log hook that was installed before this library's hook.
static LOG_HOOK: OnceLock<pg_sys::emit_log_hook_type> = OnceLock::new();

/// Keeps a termination out of the log. On SIGTERM Postgres ends a worker by a FATAL, which aborts
/// the worker's transaction wherever it is. The log line of that FATAL would be an alarm at each
/// clean stop of a server. The error stays a FATAL, is not logged, and ends the process with the
/// exit code 0 (except where the postmaster restarts the worker: see `exiting`).
fn leave_quietly(restarted: Restarted) {
    // SAFETY: the variables are globals of this process, and both functions live as long as the
    // library, which is never unloaded.
    unsafe {
        if LOG_HOOK.set(pg_sys::emit_log_hook).is_ok() {
            pg_sys::emit_log_hook = Some(without_termination);
            let by_postmaster = restarted == Restarted::ByPostmaster;
            pg_sys::on_proc_exit(Some(exiting), pg_sys::Datum::from(by_postmaster));
        }
    }
}

/// Keeps the FATAL of a SIGTERM out of the log. Postgres calls this hook for each line of the log.
/// The hook raises nothing.
unsafe extern "C-unwind" fn without_termination(line: *mut pg_sys::ErrorData) {
    // SAFETY: `line` is the line that is being logged.
    unsafe {
        let is_fatal = (*line).elevel == FATAL as c_int;
        if is_fatal && (*line).sqlerrcode == PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN as c_int {
            (*line).output_to_server = false;
            TERMINATED.store(true, Ordering::Relaxed);
        }
        if let Some(Some(before)) = LOG_HOOK.get() {
            before(line);
        }
    }
}

/// Replaces the exit code of a terminated worker by 0, because the postmaster logs any other code.
/// A worker that the postmaster restarts keeps its code, except while the server stops: after the
/// code 0 the postmaster does not restart the worker.
#[pg_guard]
unsafe extern "C-unwind" fn exiting(code: c_int, by_postmaster: pg_sys::Datum) {
    let comes_back = by_postmaster.value() != 0 && !is_server_stopping();
    if code != 0 && TERMINATED.swap(false, Ordering::Relaxed) && !comes_back {
        // SAFETY: an exit callback may end the process with another code. The callbacks that are
        // left run next, each once.
        unsafe { pg_sys::proc_exit(0) }
    }
}

/// Returns whether the postmaster has begun to stop the server. The postmaster writes its state
/// into postmaster.pid before it sends a signal. The working directory of every process is the data
/// directory.
fn is_server_stopping() -> bool {
    const STATUS: usize = 7;
    let file = std::fs::read_to_string("postmaster.pid").unwrap_or_default();
    file.lines().nth(STATUS).is_some_and(|status| status.trim() == "stopping")
}

/// Connects to no database. The worker can read only the shared catalogs, and no DROP or CREATE
/// DATABASE ever waits for the worker.
pub fn connect_to_none() {
    // SAFETY: a worker connects once, after `take_signals`.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) }
}

/// Connects to a database as the bootstrap superuser. Raises a FATAL if the database does not exist
/// or takes no connections.
pub fn connect_to(database: DatabaseOid) {
    // SAFETY: a worker connects once, after `take_signals`.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::from(database), pg_sys::InvalidOid, 0);
    }
}

/// Whether a worker can connect as a role that has NOLOGIN: since Postgres 17.
pub const CONNECTS_WITHOUT_LOGIN: bool = cfg!(any(feature = "pg17", feature = "pg18"));

#[cfg(any(feature = "pg17", feature = "pg18"))]
const ANY_ROLE: u32 = pg_sys::BGWORKER_BYPASS_ROLELOGINCHECK;
#[cfg(not(any(feature = "pg17", feature = "pg18")))]
const ANY_ROLE: u32 = 0;

/// Connects to a database as a role, with the settings of that role in that database. Raises a
/// FATAL if the database takes no connections or does not exist, or if the role may not connect.
pub fn connect_as(database: DatabaseOid, role: RoleOid) {
    // SAFETY: a worker connects once, after `take_signals`.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::Oid::from(database),
            pg_sys::Oid::from(role),
            ANY_ROLE,
        );
    }
}

/// Reads the settings if a SIGHUP arrived since the last call, and at the first call. Returns
/// whether it read them.
pub fn reload_config() -> bool {
    // SAFETY: the variables are plain globals, and the caller has no open transaction.
    unsafe {
        let asked = pg_sys::ConfigReloadPending != 0;
        if asked {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        asked
    }
}

/// Sets the name that pg_stat_activity shows for this worker, and marks the worker as idle.
pub fn report_name(name: &CStr) {
    // SAFETY: Postgres copies the name.
    unsafe {
        pg_sys::pgstat_report_appname(name.as_ptr());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}
