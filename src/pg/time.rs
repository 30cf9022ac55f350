//! The server's clock: microseconds since 2000-01-01 UTC, which is what a `timestamptz` holds, and a
//! `timestamp` that means UTC (as in Oban's tables) too.

use pgrx::pg_sys;
use pgrx::prelude::*;

pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// `None` for a value outside of what a timestamptz can hold.
pub fn timestamptz(micros: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(micros).ok()
}

/// The same instant as a `timestamp` in UTC.
pub fn utc_timestamp(micros: i64) -> Option<Timestamp> {
    Timestamp::try_from(micros).ok()
}

pub fn micros(timestamp: Timestamp) -> i64 {
    timestamp.into()
}
