//! The clock for deadlines in memory. The clock counts microseconds since the machine started, and
//! includes the time in which the machine was suspended. This clock can't be set, so a step of the
//! server's wall clock ends no lease early or late.
//!
//! The wall clock (`time`) is for rows, for what users see, and for what foreign nodes write. A
//! reading of this clock goes into no row: the reading means nothing on another machine, or after
//! the machine's next start.

use std::ffi::c_int;

use super::time;
use crate::logic::times::{ClockTime, WallTime};

/// `struct timespec` of a 64-bit platform.
#[repr(C)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the struct timespec of this platform is another one");

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut TimeSpec) -> c_int;
}

/// CLOCK_BOOTTIME.
#[cfg(target_os = "linux")]
const CLOCK: c_int = 7;
/// CLOCK_MONOTONIC, which on macOS counts the time of a suspend.
#[cfg(target_os = "macos")]
const CLOCK: c_int = 6;
/// CLOCK_MONOTONIC.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
const CLOCK: c_int = 4;

/// Returns the time since the machine started, in microseconds. Never returns 0. The call is safe
/// after commit and under a lock.
pub fn now() -> ClockTime {
    let mut time = TimeSpec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the call writes the struct, and can't fail for a clock that the platform has.
    unsafe { clock_gettime(CLOCK, &mut time) };
    ClockTime((time.seconds * 1_000_000 + time.nanoseconds / 1_000).max(1))
}

/// Returns how far the wall clock is ahead of this clock now, in microseconds. The difference
/// changes when the wall clock is set.
pub fn wall_ahead() -> i64 {
    time::now().0 - now().0
}

/// Returns what the wall clock will show when this clock reads `at`, by the present setting of the
/// wall clock. The result is in microseconds since 2000-01-01 UTC.
pub fn to_wall(at: ClockTime) -> WallTime {
    at.to_wall(wall_ahead())
}
