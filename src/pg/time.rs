//! The server's wall clock: microseconds since 2000-01-01 UTC. A `timestamptz` holds the same number,
//! and so does a `timestamp` that means UTC (as in Oban's tables).

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::times::WallTime;

// This is Postgres' own function. pgrx's wrapper would prepare for an ERROR. The function only
// reads the clock, and is called for every question of which member leads.
unsafe extern "C" {
    fn GetCurrentTimestamp() -> pg_sys::TimestampTz;
}

/// Returns the time now. The call is safe after commit and under a lock.
pub fn now() -> WallTime {
    // SAFETY: the function reads the clock.
    WallTime(unsafe { GetCurrentTimestamp() })
}

/// A time as a `timestamp` that means UTC.
#[derive(Clone, Copy, Debug)]
pub struct Utc(pub WallTime);

impl IntoDatum for Utc {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(pg_sys::Datum::from(self.0.0))
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::TIMESTAMPOID
    }
}

const UNIX_EPOCH_TO_POSTGRES: i64 = 946_684_800_000_000;

/// Returns a time from seconds since 1970, as date_part('epoch', ...) gives them. The result is
/// exact for every time that a clock can have shown.
pub fn of_epoch(seconds: f64) -> WallTime {
    WallTime(((seconds * 1e6).round() as i64).saturating_sub(UNIX_EPOCH_TO_POSTGRES))
}

/// Returns when the control file was last written. In the postmaster at its start, this is a time
/// of the server's previous run. Returns 0 if the time can't be read.
pub fn control_file_written() -> WallTime {
    let written = std::fs::metadata("global/pg_control").and_then(|file| file.modified());
    let since = written.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(WallTime::ZERO, |since| WallTime(since.as_micros() as i64 - UNIX_EPOCH_TO_POSTGRES))
}

/// Returns a time as JSON shows it, in UTC.
pub fn iso(at: WallTime) -> String {
    let mut buffer = [0 as std::ffi::c_char; 128]; // MAXDATELEN
    let utc = 0;
    // SAFETY: the buffer is as large as Postgres' own buffers are, and what is written ends with a
    // zero.
    unsafe {
        let micros = pg_sys::Datum::from(at.0);
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), micros, pg_sys::TIMESTAMPTZOID, &utc);
        std::ffi::CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
    }
}

/// Returns a time as a timestamptz. `None`: a timestamptz can't hold the time.
pub fn timestamptz(at: WallTime) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(at.0).ok()
}
