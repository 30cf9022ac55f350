//! The lightweight locks of this library's tranche. Code that runs under such a lock is pure code
//! over shared memory. The code allocates little, does not wait, does not raise, and does not call
//! Postgres, except for functions that only read a clock or a global.

use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;

/// The name of the tranche.
pub const TRANCHE: &std::ffi::CStr = c"obanrs";

/// A lightweight lock. A process holds at most one of these locks at a time, so there is no lock
/// order.
#[derive(Clone, Copy)]
pub enum Lock {
    Registry,
    Leaderships,
    Gossip,
    /// The lock of one ring of the pool.
    Ring(usize),
}

impl Lock {
    fn index(self) -> usize {
        match self {
            Lock::Registry => 0,
            Lock::Leaderships => 1,
            Lock::Gossip => 2,
            Lock::Ring(ring) => 3 + ring,
        }
    }

    /// Returns how many locks there are if the pool has `rings` rings.
    pub fn count(rings: usize) -> usize {
        Lock::Ring(rings).index()
    }
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

/// Takes a lock, and waits for it if necessary. The segment has to be attached, that is, the
/// library has to be preloaded.
pub fn acquire(lock: Lock, mode: Mode) -> Guard {
    let mode = match mode {
        Mode::Shared => pg_sys::LWLockMode::LW_SHARED,
        Mode::Exclusive => pg_sys::LWLockMode::LW_EXCLUSIVE,
    };
    // SAFETY: the tranche was requested with `Lock::count` locks, and `lock` is one of them.
    unsafe {
        let mut base = BASE.load(Ordering::Relaxed);
        if base.is_null() {
            base = pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr());
            BASE.store(base, Ordering::Relaxed);
        }
        let lock = &raw mut (*base.add(lock.index())).lock;
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
