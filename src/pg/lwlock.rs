//! The lightweight locks of this library's tranche. ARCHITECTURE.md says what may run under such a
//! lock.

use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;

/// The name of the tranche.
const TRANCHE: &std::ffi::CStr = c"obanrs";

/// Asks Postgres for the tranche with `count` locks. Called from shmem_request_hook only.
pub fn request(count: usize) {
    // SAFETY: the name lives for ever. Outside of the hook Postgres refuses the call by an ERROR.
    unsafe { pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), count as i32) }
}

/// Runs `body` under the lock that Postgres has for making shared memory of extensions. Called from
/// shmem_startup_hook only.
pub fn while_making_segment<R>(body: impl FnOnce() -> R) -> R {
    // The index of AddinShmemInitLock, which has no name in pgrx. It is the same in Postgres 15 to
    // 18.
    const ADDIN_SHMEM_INIT_LOCK: usize = 21;
    // SAFETY: the array exists when the hook runs, and has a lock of this index.
    let _guard = unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        Guard(lock)
    };
    body()
}

#[derive(Clone, Copy)]
pub enum Mode {
    Shared,
    Exclusive,
}

/// A lock that this process holds. The lock is released when the guard is dropped, also by a panic.
/// (An ERROR releases all lightweight locks by itself. No code under a lock of this library raises
/// one.)
pub struct Guard(*mut pg_sys::LWLock);

/// The first lock of the tranche. Null until this process has looked the tranche up.
static BASE: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());

/// Takes the lock of this number in the tranche, and waits for it if necessary. The segment has to
/// be attached, that is, the library has to be preloaded.
pub fn acquire(lock: usize, mode: Mode) -> Guard {
    let mode = match mode {
        Mode::Shared => pg_sys::LWLockMode::LW_SHARED,
        Mode::Exclusive => pg_sys::LWLockMode::LW_EXCLUSIVE,
    };
    // SAFETY: `shmem::locks` asked for a tranche that has a lock of this number.
    unsafe {
        let mut base = BASE.load(Ordering::Relaxed);
        if base.is_null() {
            base = pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr());
            BASE.store(base, Ordering::Relaxed);
        }
        let lock = &raw mut (*base.add(lock)).lock;
        pg_sys::LWLockAcquire(lock, mode);
        Guard(lock)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: this process acquired the lock. The lock is released only if the process still
        // holds it: the clean-up after an error may have released it.
        unsafe {
            if pg_sys::LWLockHeldByMe(self.0) {
                pg_sys::LWLockRelease(self.0);
            }
        }
    }
}
