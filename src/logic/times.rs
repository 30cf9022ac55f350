//! Times by two clocks, which must not be mixed up. Both are in microseconds, and so is every
//! difference of two times.
//!
//! Deadlines count on the clock that nobody can set (`pg::clock`). Times by the wall clock are for
//! rows, for other nodes and for people.

use std::ops::{Add, Sub};

/// Declares a type for times by one clock.
macro_rules! time {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $(
            $(#[$doc])*
            #[repr(transparent)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub i64);

            impl $name {
                /// The earliest time of the clock; in shared memory no time at all.
                pub const ZERO: Self = Self(0);

                /// Returns the time `micros` microseconds later; the last time of the clock if that is
                /// out of range.
                pub fn saturating_add(self, micros: i64) -> Self {
                    Self(self.0.saturating_add(micros))
                }

                /// Returns the microseconds since another time; fewer than 0 if the other is later.
                pub fn saturating_sub(self, other: Self) -> i64 {
                    self.0.saturating_sub(other.0)
                }
            }

            impl Add<i64> for $name {
                type Output = Self;

                fn add(self, micros: i64) -> Self {
                    Self(self.0 + micros)
                }
            }

            impl Sub for $name {
                type Output = i64;

                fn sub(self, other: Self) -> i64 {
                    self.0 - other.0
                }
            }
        )*
    };
}

time! {
    /// A time by the wall clock, in microseconds since 2000-01-01 UTC, as in a `timestamptz`.
    /// An administrator may set that clock.
    WallTime,
    /// A reading of the clock that nobody can set, in microseconds. Deadlines count on it.
    ClockTime,
}

impl ClockTime {
    /// A time that never comes.
    pub const NEVER: Self = Self(i64::MAX);

    /// Returns the time `micros` microseconds earlier; the first time of the clock if that is out of
    /// range.
    pub fn before(self, micros: i64) -> Self {
        Self(self.0.saturating_sub(micros))
    }

    /// Returns what the wall clock shows at this time, while the wall clock is `wall_ahead`
    /// microseconds ahead.
    pub fn to_wall(self, wall_ahead: i64) -> WallTime {
        WallTime(self.0.saturating_add(wall_ahead))
    }
}

impl WallTime {
    /// Returns the clock reading at this time, while the wall clock is `wall_ahead` microseconds
    /// ahead.
    pub fn to_clock(self, wall_ahead: i64) -> ClockTime {
        ClockTime(self.0.saturating_sub(wall_ahead))
    }
}
