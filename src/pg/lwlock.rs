//! Lightweight locks of our tranche. While one is held nothing may allocate much, wait, raise or
//! call into Postgres: what is done under it is pure code over shared memory.

use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;

pub const TRANCHE: &std::ffi::CStr = c"obanrs";

/// Lock order: nobody holds two of them.
#[derive(Clone, Copy)]
pub enum Lock {
    Registry,
    Leaderships,
    Gossip,
    /// That of a ring of the pool.
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

    /// How many there are with so many rings.
    pub fn count(rings: usize) -> usize {
        Lock::Ring(rings).index()
    }
}

#[derive(Clone, Copy)]
pub enum Mode {
    Shared,
    Exclusive,
}

/// Released when dropped, in a panic too. (An ERROR releases all lightweight locks by itself; nothing
/// under a lock of ours raises one.)
pub struct Guard(*mut pg_sys::LWLock);

/// The first lock of the tranche, once this process has looked it up.
static BASE: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());

/// Only after the segment was attached, that is with the library preloaded.
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
        // SAFETY: acquired by this process and not released yet, unless an error's clean-up did it.
        unsafe {
            if pg_sys::LWLockHeldByMe(self.0) {
                pg_sys::LWLockRelease(self.0);
            }
        }
    }
}
