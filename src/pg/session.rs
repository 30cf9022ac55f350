//! Facts about this process and its session, and what runs when it ends.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::error::Error;

pub fn database() -> u32 {
    // SAFETY: a plain global; 0 without a database.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// How many processes with a number (`latch::my_procno`) there can be: those of clients and workers.
pub fn max_processes() -> usize {
    // SAFETY: a plain global, set before shared memory is requested.
    unsafe { pg_sys::MaxBackends as usize }
}

/// The setting: how many background workers there can be, of everybody's.
pub fn max_worker_processes() -> usize {
    // SAFETY: a plain global, set before shared memory is requested.
    unsafe { pg_sys::max_worker_processes as usize }
}

pub fn role() -> u32 {
    // SAFETY: reads the current user.
    unsafe { pg_sys::GetUserId() }.to_u32()
}

/// Whether the current role has the privileges of `role`.
pub fn acts_for(role: u32) -> bool {
    // SAFETY: looks into the role caches; a role that was dropped has no members.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::Oid::from(role)) }
}

/// Whether the current role may see what concerns others: superusers and members of pg_read_all_stats
/// (pg_monitor is one).
pub fn sees_all() -> bool {
    acts_for(pg_sys::ROLE_PG_READ_ALL_STATS)
}

pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// For what writes tables: 55000 in recovery, 25006 in another read-only transaction.
pub fn require_writable(what: &'static str) -> Result<(), Error> {
    if in_recovery() {
        return Err(Error::InRecovery(what));
    }
    // SAFETY: a plain global.
    if unsafe { pg_sys::XactReadOnly } { Err(Error::ReadOnly(what)) } else { Ok(()) }
}

/// Whether transactions of this process are read-only unless they say otherwise.
pub fn is_read_only_by_default() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::DefaultXactReadOnly }
}

/// 25000 while a parallel plan runs, in which nothing can be written or locked.
pub fn prevent_in_parallel_mode(command: &CStr) {
    // SAFETY: the name lives for the call.
    unsafe { pg_sys::PreventCommandIfParallelMode(command.as_ptr()) }
}

/// Whether the snapshot stays the same for the whole transaction: REPEATABLE READ, SERIALIZABLE.
pub fn has_fixed_snapshot() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Runs `body` with the rights of a role. An ERROR restores the role with its (sub)transaction's abort.
pub(super) fn as_role<R>(role: u32, body: impl FnOnce() -> R) -> R {
    let (mut before, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: saved and restored in pairs.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        let changed = context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(role), changed);
    }
    let result = body();
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
    result
}

/// When this process began. With its pid it tells processes of this server apart for ever.
pub fn began_at() -> i64 {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyStartTimestamp }
}

/// Has the kernel find out within about 8 s that a client over TCP has vanished with its host: three
/// seconds without a word, then five questions a second apart; and no longer for what is on its way to it.
/// Settings that are made already stay. Over a Unix socket they mean nothing. Survives a rollback.
pub fn notice_vanished_client() {
    for (name, value) in [
        (c"tcp_keepalives_idle", c"3"),
        (c"tcp_keepalives_interval", c"1"),
        (c"tcp_keepalives_count", c"5"),
        (c"tcp_user_timeout", c"8000"),
    ] {
        // SAFETY: a lookup by name; the result is copied before another call.
        let unset = unsafe {
            let current = pg_sys::GetConfigOption(name.as_ptr(), true, false);
            !current.is_null() && CStr::from_ptr(current) == c"0"
        };
        if unset {
            set(name, value);
        }
    }
}

/// Catches up with what others have committed to the catalogs: nothing else does between two statements.
pub fn see_changes() {
    // SAFETY: in a transaction.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}

/// Whether somebody else's code runs in this session, such as an index function during a superuser's
/// REINDEX: it must not change what the session listens to or takes part in.
pub fn is_restricted() -> bool {
    // SAFETY: reads the current security context.
    unsafe { pg_sys::InSecurityRestrictedOperation() }
}

/// Whether a client is at the other end (not a background worker, not a walsender).
pub fn is_client_backend() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND }
}

/// The socket of this session's client, if it has one.
pub fn socket() -> Option<i32> {
    // SAFETY: null, or a struct whose first field is the socket (`pgsocket sock`) in 15 to 18.
    unsafe {
        let port = (&raw const pg_sys::MyProcPort).read().cast::<i32>();
        (!port.is_null()).then(|| *port)
    }
}

pub fn is_parallel_worker() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

pub fn is_preloading() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Keeps backtraces out of errors, whatever RUST_BACKTRACE says in the server's environment: they would be in the DETAIL
/// that each client gets, with the paths of the machine that built the library. In `_PG_init`, before any error.
///
/// The standard library asks the environment once, at the first capture, and each library has a copy of its own. So
/// the environment is changed for that one moment only, and other extensions find it as it was.
pub fn disable_backtraces() {
    let saved = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"].map(|name| (name, std::env::var_os(name)));
    for (name, _) in &saved {
        // SAFETY: a process of Postgres' has one thread.
        unsafe { std::env::remove_var(name) }
    }
    drop(std::backtrace::Backtrace::capture());
    for (name, value) in saved {
        if let Some(value) = value {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) }
        }
    }
}

/// Whether this is the session of a CREATE EXTENSION in the midst of its script.
pub fn is_creating_extension() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::creating_extension }
}

pub fn is_binary_upgrade() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// The timeline that this server writes; not in recovery.
pub fn timeline() -> u32 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

pub type ExitCallback = unsafe extern "C-unwind" fn(code: i32, arg: pg_sys::Datum);

/// Runs `callback` when this process ends in any way but SIGKILL and its like (after which the server
/// makes shared memory anew): while it still counts as running.
pub fn before_exit(callback: ExitCallback) {
    // SAFETY: a guarded function that lives as long as the library, which is never unloaded.
    unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::null()) }
}

/// The same, but after the process has left the list of running ones, provided that this is called
/// before it connects to a database (callbacks run last in, first out).
pub fn after_disconnect(callback: ExitCallback) {
    // SAFETY: as above.
    unsafe { pg_sys::on_shmem_exit(Some(callback), pg_sys::Datum::null()) }
}

/// Sets a setting for this process, over what the role's and the database's settings say.
pub fn set(name: &CStr, value: &CStr) {
    // SAFETY: both strings live for the call.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// As `set`, for a setting that not every major has.
pub fn set_if_known(name: &CStr, value: &CStr) {
    // SAFETY: a lookup by name; null if there is none.
    let known = unsafe { !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() };
    if known {
        set(name, value);
    }
}

/// Terminates another process of this server, as `pg_terminate_backend` does.
pub fn terminate(pid: i32) {
    unsafe extern "C" {
        fn kill(pid: i32, signal: i32) -> i32;
    }
    if pid > 1 {
        // SAFETY: a signal to a process; one that is gone already makes it fail harmlessly.
        unsafe {
            kill(pid, pg_sys::SIGTERM as i32);
        }
    }
}
