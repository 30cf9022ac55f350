//! Background workers: registering one, and the first steps of its main function.
//!
//! A main that returns exits with 0, which takes the worker out for good, whatever its restart time;
//! so the coordinator never returns, and a keeper returns only when it is not wanted any more.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

// pgrx's versions of these are Rust wrappers, which can't be given to Postgres as signal handlers.
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

pub struct WorkerSpec<'a> {
    /// Shown by ps and in the log.
    pub name: &'a str,
    /// `backend_type` in pg_stat_activity.
    pub kind: &'a str,
    /// The exported main function.
    pub function: &'a str,
    pub argument: u32,
}

/// A worker that was launched; it lives in the memory of the process that launched it.
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

/// While preloading: Postgres starts it when recovery is over, and again this long after it ended.
pub fn register(worker: &WorkerSpec<'_>, restart_seconds: i32) {
    let mut w = describe(worker, restart_seconds);
    // SAFETY: Postgres copies the struct.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut w) }
}

/// Starts a worker now that Postgres never restarts by itself, and sets our latch when it starts and
/// ends. `None` when every slot of max_worker_processes is in use.
pub fn launch(worker: &WorkerSpec<'_>) -> Option<WorkerHandle> {
    let mut w = describe(worker, pg_sys::BGW_NEVER_RESTART);
    w.bgw_notify_pid = super::latch::my_pid();
    let mut handle = std::ptr::null_mut();
    // SAFETY: Postgres copies the struct and allocates the handle in the current memory context,
    // which is made the process's longest-lived one.
    let launched = unsafe {
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let launched = pg_sys::RegisterDynamicBackgroundWorker(&mut w, &mut handle);
        pg_sys::MemoryContextSwitchTo(before);
        launched
    };
    launched.then(|| WorkerHandle(handle)) // a handle of null must not even be dropped
}

impl WorkerHandle {
    pub fn has_stopped(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is valid until it is dropped.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // SAFETY: allocated by `launch` and freed once.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// What starts a worker again that was terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarted {
    /// The postmaster, if it ends with an exit code of 1.
    ByPostmaster,
    /// The process that launched it, in whatever way it ends.
    ByLauncher,
}

/// A worker's first step: SIGTERM ends it at the next interrupt check, in the middle of a transaction too, without a
/// word in the log. SIGHUP makes `reload_config` read the settings. SIGINT, which pg_cancel_backend sends, is for the
/// timeouts of Postgres only.
///
/// Postgres ignores a SIGHUP that comes between the fork and this call, and the worker has the settings from before
/// the fork. So the first `reload_config` reads them in any case.
pub fn take_signals(restarted: Restarted) {
    leave_quietly(restarted);
    // SAFETY: async-signal-safe handlers; the flag is a plain global.
    unsafe {
        pqsignal(pg_sys::SIGTERM as c_int, Some(die));
        pqsignal(pg_sys::SIGINT as c_int, Some(cancel_at_timeout));
        pqsignal(pg_sys::SIGHUP as c_int, Some(SignalHandlerForConfigReload));
        pg_sys::ConfigReloadPending = 1;
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Postgres' timers for locks and for steps (`xact::limit`) end a wait by a SIGINT to their own process. One that comes
/// from elsewhere would be an ERROR outside of a transaction, which ends the worker: it is nothing to a worker.
unsafe extern "C-unwind" fn cancel_at_timeout(signal: c_int) {
    // The same in 15 to 18.
    const LOCK_TIMEOUT: c_int = 2;
    const STATEMENT_TIMEOUT: c_int = 3;
    // SAFETY: reads flags that are set before the signal is sent; what is called is a handler itself.
    unsafe {
        if get_timeout_indicator(LOCK_TIMEOUT, false) || get_timeout_indicator(STATEMENT_TIMEOUT, false) {
            StatementCancelHandler(signal);
        }
    }
}

/// Set when this process ends because it was told to.
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// The hook that was there before ours.
static LOG_HOOK: OnceLock<pg_sys::emit_log_hook_type> = OnceLock::new();

/// Postgres ends a worker on SIGTERM by a FATAL, which aborts the worker's transaction wherever it is. In the log that
/// line is an alarm at each clean stop of a server. The error stays a FATAL, is not logged, and ends the process with an
/// exit code of 0.
fn leave_quietly(restarted: Restarted) {
    // SAFETY: globals of this process; both functions live as long as the library, which is never unloaded.
    unsafe {
        if LOG_HOOK.set(pg_sys::emit_log_hook).is_ok() {
            pg_sys::emit_log_hook = Some(without_termination);
            let by_postmaster = restarted == Restarted::ByPostmaster;
            pg_sys::on_proc_exit(Some(exiting), pg_sys::Datum::from(by_postmaster));
        }
    }
}

/// Called by Postgres for each line of the log. Raises nothing.
unsafe extern "C-unwind" fn without_termination(line: *mut pg_sys::ErrorData) {
    // SAFETY: the line that is being logged.
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

/// The postmaster logs other exit codes than 0. It starts a worker of its own again after another one only.
#[pg_guard]
unsafe extern "C-unwind" fn exiting(code: c_int, by_postmaster: pg_sys::Datum) {
    let comes_back = by_postmaster.value() != 0 && !is_server_stopping();
    if code != 0 && TERMINATED.swap(false, Ordering::Relaxed) && !comes_back {
        // SAFETY: callbacks may end the process with another code: those that are left run next, each once.
        unsafe { pg_sys::proc_exit(0) }
    }
}

/// Whether the postmaster has begun to stop the server, which it writes into its file before it sends a signal. The
/// working directory of every process is the data directory.
fn is_server_stopping() -> bool {
    const STATUS: usize = 7;
    let file = std::fs::read_to_string("postmaster.pid").unwrap_or_default();
    file.lines().nth(STATUS).is_some_and(|status| status.trim() == "stopping")
}

/// Connects to no database: shared catalogs only, and no DROP or CREATE DATABASE ever waits for us.
pub fn connect_to_none() {
    // SAFETY: once, after `take_signals`.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) }
}

/// Connects as the bootstrap superuser. FATAL when the database is gone or takes no connections.
pub fn connect_to(database: u32) {
    // SAFETY: once, after `take_signals`.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::from(database), pg_sys::InvalidOid, 0);
    }
}

/// Reads the settings again if SIGHUP asked for it, and at the first call. Returns whether it did.
pub fn reload_config() -> bool {
    // SAFETY: plain globals, and a call at a point where no transaction is open.
    unsafe {
        let asked = pg_sys::ConfigReloadPending != 0;
        if asked {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        asked
    }
}

/// What pg_stat_activity shows of this worker while it waits.
pub fn report_name(name: &CStr) {
    // SAFETY: copied.
    unsafe {
        pg_sys::pgstat_report_appname(name.as_ptr());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}
