//! The server's clock: microseconds since 2000-01-01 UTC, which is what a `timestamptz` holds, and a
//! `timestamp` that means UTC (as in Oban's tables) too.

use pgrx::pg_sys;
use pgrx::prelude::*;

// Postgres' own, not pgrx's wrapper of it, which prepares for an ERROR: it only reads the clock, and is called for
// every question of who leads.
unsafe extern "C" {
    fn GetCurrentTimestamp() -> pg_sys::TimestampTz;
}

pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { GetCurrentTimestamp() }
}

const UNIX_EPOCH_TO_POSTGRES: i64 = 946_684_800_000_000;

/// Seconds since 1970, as date_part('epoch', …) gives them. What a clock could ever have shown is exact.
pub fn of_epoch(seconds: f64) -> i64 {
    ((seconds * 1e6).round() as i64).saturating_sub(UNIX_EPOCH_TO_POSTGRES)
}

/// When the control file was last written: in the postmaster at its start, a time of the server's last
/// life. 0 when that can't be told.
pub fn control_file_written() -> i64 {
    let written = std::fs::metadata("global/pg_control").and_then(|file| file.modified());
    let since = written.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_micros() as i64 - UNIX_EPOCH_TO_POSTGRES)
}

/// As JSON shows it, in UTC.
pub fn iso(micros: i64) -> String {
    let mut buffer = [0 as std::ffi::c_char; 128]; // MAXDATELEN
    let utc = 0;
    // SAFETY: the buffer is as large as Postgres' own are; what is written ends with a zero.
    unsafe {
        let micros = pg_sys::Datum::from(micros);
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), micros, pg_sys::TIMESTAMPTZOID, &utc);
        std::ffi::CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
    }
}

/// `None` for a value outside of what a timestamptz can hold.
pub fn timestamptz(micros: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(micros).ok()
}
