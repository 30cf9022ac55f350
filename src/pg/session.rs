//! Facts about this process and its session, and callbacks that run when the process ends.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use crate::error::Error;
use crate::logic::ids::{DatabaseOid, RoleOid};
use crate::logic::times::WallTime;

// pgrx does not bind this function. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn DiscardCommand(statement: *mut pg_sys::DiscardStmt, is_top_level: bool);
}

/// Returns the oid of this session's database. Returns 0 without a database.
pub fn database() -> DatabaseOid {
    // SAFETY: this is a plain global, which is 0 without a database.
    unsafe { pg_sys::MyDatabaseId }.into()
}

/// Returns how many processes of clients and workers there can be. Each of them has a number
/// (`latch::my_procno`).
pub fn max_processes() -> usize {
    // SAFETY: this is a plain global, which is set before shared memory is requested.
    unsafe { pg_sys::MaxBackends as usize }
}

/// Returns the setting max_worker_processes: how many background workers of all extensions there
/// can be.
pub fn max_worker_processes() -> usize {
    // SAFETY: this is a plain global, which is set before shared memory is requested.
    unsafe { pg_sys::max_worker_processes as usize }
}

/// Returns the oid of the current role.
pub fn role() -> RoleOid {
    // SAFETY: the function reads the current user.
    unsafe { pg_sys::GetUserId() }.into()
}

/// Returns whether the current role has the privileges of `role`.
pub fn acts_for(role: RoleOid) -> bool {
    // SAFETY: the function reads the caches of roles. A role that was dropped has no members.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::Oid::from(role)) }
}

/// Returns whether the current role may see what concerns other roles: superusers and members of
/// pg_read_all_stats (pg_monitor is one) may.
pub fn sees_all() -> bool {
    acts_for(RoleOid(pg_sys::ROLE_PG_READ_ALL_STATS))
}

/// Returns whether this server is in recovery.
pub fn in_recovery() -> bool {
    // SAFETY: the function reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Requires a transaction that can write tables. Raises 55000 in recovery, and 25006 in any other
/// read-only transaction.
pub fn require_writable(what: &'static str) -> Result<(), Error> {
    if in_recovery() {
        return Err(Error::InRecovery(what));
    }
    // SAFETY: this is a plain global.
    if unsafe { pg_sys::XactReadOnly } { Err(Error::ReadOnly(what)) } else { Ok(()) }
}

/// Returns whether transactions of this process are read-only unless they say otherwise.
pub fn is_read_only_by_default() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::DefaultXactReadOnly }
}

/// Raises 25000 while a parallel plan runs, because nothing can be written or locked meanwhile.
pub fn prevent_in_parallel_mode(command: &CStr) {
    // SAFETY: the name lives as long as the call.
    unsafe { pg_sys::PreventCommandIfParallelMode(command.as_ptr()) }
}

/// Returns whether the snapshot stays the same for the whole transaction: under REPEATABLE READ and
/// SERIALIZABLE.
pub fn has_fixed_snapshot() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Returns whether this transaction is SERIALIZABLE.
pub fn is_serializable() -> bool {
    // SAFETY: the isolation level is a plain global.
    unsafe { pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32 }
}

/// Runs `body` with the rights of a role. After an ERROR the abort of the (sub)transaction restores
/// the role.
pub(super) fn as_role<R>(role: RoleOid, body: impl FnOnce() -> R) -> R {
    let (mut before, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: the role and the security context are saved here, and restored below.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        let changed = context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(role), changed);
    }
    let result = body();
    // SAFETY: the values are the ones that were saved above.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
    result
}

/// Runs DISCARD ALL in a transaction of a worker: what code has left in the session is gone. What
/// `set` has set stays.
pub fn discard() {
    // SAFETY: the statement is a node that lives as long as the call. The worker runs the
    // transaction as a client's single statement runs in one.
    unsafe {
        let statement = pg_sys::palloc0(size_of::<pg_sys::DiscardStmt>()).cast::<pg_sys::DiscardStmt>();
        (*statement).type_ = pg_sys::NodeTag::T_DiscardStmt;
        (*statement).target = pg_sys::DiscardMode::DISCARD_ALL;
        pg_guard_ffi_boundary(|| DiscardCommand(statement, true));
    }
}

/// Runs `body` as a role, in a security-restricted operation: what code of that role runs can
/// neither change the session nor keep a setting. After an ERROR the abort of the (sub)transaction
/// restores all of it.
pub fn restricted_as<R>(role: RoleOid, body: impl FnOnce() -> R) -> R {
    let (mut before, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: the role, the security context and the settings are saved here, and restored below.
    let level = unsafe {
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(role), context | restricted as i32);
        pg_sys::NewGUCNestLevel()
    };
    let result = body();
    // SAFETY: the values are the ones that were saved above.
    unsafe {
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(before, context);
    }
    result
}

/// Returns when this process began, in microseconds since 2000-01-01 UTC. This time and the pid
/// together identify a process of this server for ever.
pub fn began_at() -> WallTime {
    // SAFETY: this is a plain global.
    WallTime(unsafe { pg_sys::MyStartTimestamp })
}

/// Makes the kernel notice within about 8 s that a client over TCP has vanished with its host. The
/// kernel sends a probe after three seconds of silence, and five probes a second apart. Data on the
/// way to the client may stay unacknowledged for 8 s. Settings that have a value already stay. Over
/// a Unix socket the settings mean nothing. The settings survive a rollback.
pub fn notice_vanished_client() {
    for (name, value) in [
        (c"tcp_keepalives_idle", c"3"),
        (c"tcp_keepalives_interval", c"1"),
        (c"tcp_keepalives_count", c"5"),
        (c"tcp_user_timeout", c"8000"),
    ] {
        // SAFETY: the function looks up a setting by name, and the result is read before another
        // call.
        let unset = unsafe {
            let current = pg_sys::GetConfigOption(name.as_ptr(), true, false);
            !current.is_null() && CStr::from_ptr(current) == c"0"
        };
        if unset {
            set(name, value);
        }
    }
}

/// Reads what other sessions have committed to the catalogs. Between two statements of a
/// transaction nothing else does this.
pub fn see_changes() {
    // SAFETY: every caller runs in a transaction.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}

/// Gives up the snapshot that reading a catalog has left, so that this process holds back no VACUUM
/// while it waits.
pub fn drop_catalog_snapshot() {
    // SAFETY: the function drops only the snapshot that Postgres keeps for itself between two
    // readings of catalogs.
    unsafe { pg_sys::InvalidateCatalogSnapshot() }
}

/// Returns whether the code of another role runs in this session, such as an index function during
/// a superuser's REINDEX. Such code must not change to what the session listens, or which
/// memberships it has.
pub fn is_restricted() -> bool {
    // SAFETY: the function reads the current security context.
    unsafe { pg_sys::InSecurityRestrictedOperation() }
}

/// Returns whether this process serves a client: it is neither a background worker nor a walsender.
pub fn is_client_backend() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND }
}

/// Returns the socket of this session's client. `None`: this process has no client.
pub fn socket() -> Option<i32> {
    // SAFETY: the pointer is null, or points to a struct whose first field is the socket (`pgsocket
    // sock`) in Postgres 15 to 18.
    unsafe {
        let port = (&raw const pg_sys::MyProcPort).read().cast::<i32>();
        (!port.is_null()).then(|| *port)
    }
}

/// Returns whether this session has the rights of a superuser, which it keeps in part after ALTER
/// ROLE ... NOSUPERUSER. Needs no transaction.
pub fn is_superusers() -> bool {
    // SAFETY: the function looks up a setting by name, and the result is read before another call.
    unsafe {
        let value = pg_sys::GetConfigOption(c"is_superuser".as_ptr(), true, false);
        !value.is_null() && CStr::from_ptr(value) == c"on"
    }
}

/// Returns whether this process is a parallel worker.
pub fn is_parallel_worker() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// Returns whether the postmaster is loading the libraries of shared_preload_libraries.
pub fn is_preloading() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Keeps backtraces out of errors, whatever RUST_BACKTRACE says in the server's environment. A
/// backtrace would be in the DETAIL that each client gets, with the paths of the machine that built
/// the library. `_PG_init` calls this before any error.
///
/// The standard library reads the environment once, at the first capture, and each library has a
/// separate copy of the standard library. So the environment is changed for that one moment only,
/// and other extensions find it as it was.
pub fn disable_backtraces() {
    let saved = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"].map(|name| (name, std::env::var_os(name)));
    for (name, _) in &saved {
        // SAFETY: a process of Postgres has one thread.
        unsafe { std::env::remove_var(name) }
    }
    drop(std::backtrace::Backtrace::capture());
    for (name, value) in saved {
        if let Some(value) = value {
            // SAFETY: a process of Postgres has one thread.
            unsafe { std::env::set_var(name, value) }
        }
    }
}

/// Returns whether this session runs the script of a CREATE EXTENSION at present.
pub fn is_creating_extension() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::creating_extension }
}

/// Returns whether pg_upgrade runs this server.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Returns the timeline that this server writes. Must not be called in recovery.
pub fn timeline() -> u32 {
    // SAFETY: the function reads shared memory.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

pub type ExitCallback = unsafe extern "C-unwind" fn(code: i32, arg: pg_sys::Datum);

/// Registers a callback that runs when this process ends, while the process still counts as
/// running. The callback does not run after SIGKILL and the like: after these the server makes
/// shared memory anew.
pub fn before_exit(callback: ExitCallback) {
    // SAFETY: the callback is a guarded function that lives as long as the library, which is never
    // unloaded.
    unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::null()) }
}

/// Registers a callback that runs when this process ends, after its open transaction was rolled back. A
/// session may call this. (The callbacks of `before_exit` run before the rollback.)
pub fn after_rollback_at_exit(callback: ExitCallback) {
    after_disconnect(callback);
}

/// Registers a callback that runs when this process ends, after the process has left the list of
/// running processes. That order holds only if this is called before the process connects to a
/// database, because callbacks run last in, first out.
pub fn after_disconnect(callback: ExitCallback) {
    // SAFETY: the callback is a guarded function that lives as long as the library, which is never
    // unloaded.
    unsafe { pg_sys::on_shmem_exit(Some(callback), pg_sys::Datum::null()) }
}

/// Sets a setting for this process. The value takes precedence over the settings of the role and
/// the database.
pub fn set(name: &CStr, value: &CStr) {
    // SAFETY: both strings live as long as the call.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Sets a setting as `set` does, if this version of Postgres has the setting.
pub fn set_if_known(name: &CStr, value: &CStr) {
    // SAFETY: the function looks up a setting by name, and returns null if there is no such
    // setting.
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
        // SAFETY: the call sends a signal to a process. If the process has ended, the call fails
        // without harm.
        unsafe {
            kill(pid, pg_sys::SIGTERM as i32);
        }
    }
}
