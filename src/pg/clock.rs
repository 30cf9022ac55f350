//! The clock that deadlines in memory count on: microseconds since the machine started, with the time that it was
//! suspended. Nobody can set it, so a step of the server's wall clock ends no lease early and none late.
//!
//! The wall clock (`time`) is for rows, for what users see, and for what foreign nodes write. A reading of this
//! clock goes into no row: it means nothing on another machine, or after the machine's next start.

use std::ffi::c_int;

use super::time;

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
/// CLOCK_MONOTONIC, which counts the time of a suspend there.
#[cfg(target_os = "macos")]
const CLOCK: c_int = 6;
/// CLOCK_MONOTONIC.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
const CLOCK: c_int = 4;

/// The time since the machine started, in microseconds. Never 0. Callable after commit and under a lock.
pub fn now() -> i64 {
    let mut time = TimeSpec { seconds: 0, nanoseconds: 0 };
    // SAFETY: writes the struct. It can't fail for a clock that the platform has.
    unsafe { clock_gettime(CLOCK, &mut time) };
    (time.seconds * 1_000_000 + time.nanoseconds / 1_000).max(1)
}

/// How far the wall clock is ahead of this clock, as it is set now. It changes when the wall clock is set.
pub fn wall_ahead() -> i64 {
    time::now() - now()
}

/// What the wall clock shows, as it is set now, when this clock reads `at`. In microseconds since 2000-01-01 UTC.
pub fn to_wall(at: i64) -> i64 {
    at.saturating_add(wall_ahead())
}
