//! Background workers: registering one, and the first steps of its main function.
//!
//! A main that returns exits with 0, which takes the worker out for good, whatever its restart time;
//! so the coordinator never returns, and a keeper returns only when it is not wanted any more.

use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;

// pgrx's versions of these are Rust wrappers, which can't be given to Postgres as signal handlers.
unsafe extern "C-unwind" {
    fn die(signal: c_int);
    fn SignalHandlerForConfigReload(signal: c_int);
}

#[cfg(not(feature = "pg18"))]
use pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pg_sys::pqsignal_be as pqsignal;

pub struct Worker<'a> {
    /// Shown by ps and in the log.
    pub name: &'a str,
    /// `backend_type` in pg_stat_activity.
    pub kind: &'a str,
    /// The exported main function.
    pub function: &'a str,
    pub argument: u32,
}

/// A worker that was launched; it lives in the memory of the process that launched it.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

fn describe(worker: &Worker<'_>, restart_seconds: i32) -> pg_sys::BackgroundWorker {
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
pub fn register(worker: &Worker<'_>, restart_seconds: i32) {
    let mut w = describe(worker, restart_seconds);
    // SAFETY: Postgres copies the struct.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut w) }
}

/// Starts a worker now that Postgres never restarts by itself, and sets our latch when it starts and
/// ends. `None` when every slot of max_worker_processes is in use.
pub fn launch(worker: &Worker<'_>) -> Option<Handle> {
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
    launched.then(|| Handle(handle)) // a handle of null must not even be dropped
}

impl Handle {
    pub fn has_stopped(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is valid until it is dropped.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by `launch` and freed once.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// A worker's first step: SIGTERM ends it at the next interrupt check, in the middle of a query too
/// (FATAL, exit code 1: a static worker is restarted), SIGHUP makes `reload_config` read the settings.
///
/// Postgres ignores a SIGHUP that comes between the fork and this call, and the worker has the settings from before
/// the fork. So the first `reload_config` reads them in any case.
pub fn take_signals() {
    // SAFETY: both are async-signal-safe handlers of Postgres' own; the flag is a plain global.
    unsafe {
        pqsignal(pg_sys::SIGTERM as c_int, Some(die));
        pqsignal(pg_sys::SIGHUP as c_int, Some(SignalHandlerForConfigReload));
        pg_sys::ConfigReloadPending = 1;
        pg_sys::BackgroundWorkerUnblockSignals();
    }
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
