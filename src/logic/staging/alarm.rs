//! The alarm of a stager: how a process that commits a job with an earlier due time wakes the stager
//! that sleeps until a later one.
//!
//! Both sides store first and load then, sequentially consistent, so that no wakeup is lost:
//!
//! * A process that has committed rows lowers `told`, then reads `awaited` (`Alarm::tell`).
//! * The stager stores in `awaited` what it is going to wait for, then reads `told`
//!   (`Alarm::sleep_until`). The stager has reset its latch before.
//!
//! At least one of them sees what the other wrote. If the stager sees the earlier time, it sleeps
//! until that. If the process sees that the stager waits for a later time, it sets the stager's
//! latch. While the stager looks at the table, `awaited` is `AWAKE`, and no process sets its latch.
//!
//! The stager takes what was told first, and the snapshot of the look then (`Alarm::begin_look`).
//! Rows are visible before their process tells of them. So the look sees the rows of all that was
//! taken, and what is told later stays.
//!
//! A process that dies between its commit and `Alarm::tell` dies by a signal that restarts the
//! server. A stager that dies leaves what was told. The next stager of the slot begins with a look.

use std::sync::atomic::{AtomicI64, Ordering};

use super::super::times::WallTime;

/// A 64-bit number in shared memory. The operations are sequentially consistent.
pub trait Word {
    /// Returns the number.
    fn load(&self) -> i64;
    /// Replaces the number.
    fn store(&self, value: i64);
    /// Replaces the number, and returns the one before.
    fn swap(&self, value: i64) -> i64;
    /// Replaces the number by `value` if that is smaller.
    fn lower(&self, value: i64);
}

impl Word for AtomicI64 {
    fn load(&self) -> i64 {
        Self::load(self, Ordering::SeqCst)
    }

    fn store(&self, value: i64) {
        Self::store(self, value, Ordering::SeqCst);
    }

    fn swap(&self, value: i64) -> i64 {
        Self::swap(self, value, Ordering::SeqCst)
    }

    fn lower(&self, value: i64) {
        self.fetch_min(value, Ordering::SeqCst);
    }
}

/// A time that never comes. It is also how Postgres stores the timestamp `infinity`.
pub const NEVER: WallTime = WallTime(i64::MAX);

/// What `awaited` is while the stager does not sleep: no time is earlier.
const AWAKE: i64 = i64::MIN;

/// An alarm in shared memory. Times are wall times. Zeroed memory is not an alarm: `clear` makes it
/// one.
#[repr(C)]
pub struct Alarm<W = AtomicI64> {
    /// The earliest time that commits have told of and no look has taken; `NEVER` for none.
    told: W,
    /// What the stager waits for: `AWAKE` while it does not wait.
    awaited: W,
}

impl<W: Word> Alarm<W> {
    /// Returns an alarm of these two words, which `clear` sets.
    #[cfg(test)]
    pub fn of(told: W, awaited: W) -> Self {
        let alarm = Self { told, awaited };
        alarm.clear();
        alarm
    }

    /// Sets the alarm for a new use of the slot: nothing was told, and no stager waits.
    pub fn clear(&self) {
        self.awaited.store(AWAKE);
        self.told.store(NEVER.0);
    }

    /// Tells of a time at which a row that was committed becomes due. Returns whether the caller
    /// has to set the stager's latch. Callable after commit.
    pub fn tell(&self, at: WallTime) -> bool {
        self.told.lower(at.0);
        at.0 < self.awaited.load()
    }

    /// Begins a look at the table, before its snapshot is taken. Returns the earliest time that was
    /// told since the last look; `NEVER` for none.
    pub fn begin_look(&self) -> WallTime {
        self.awaited.store(AWAKE);
        WallTime(self.told.swap(NEVER.0))
    }

    /// Announces that the stager sleeps until `next`, the earliest due time that the last look has
    /// found. Returns until when it may sleep: `next`, or an earlier time that was told. The stager
    /// has reset its latch before.
    pub fn sleep_until(&self, next: WallTime) -> WallTime {
        let mut until = next.0;
        loop {
            self.awaited.store(until);
            let told = self.told.load();
            if told >= until {
                return WallTime(until);
            }
            until = told; // later ones that are told need not wake the stager
        }
    }

    /// Returns what the stager waits for, for views. `None`: it does not wait.
    pub fn shown(&self) -> Option<WallTime> {
        let awaited = self.awaited.load();
        (awaited != AWAKE).then_some(WallTime(awaited))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alarm() -> Alarm {
        Alarm::of(AtomicI64::new(0), AtomicI64::new(0))
    }

    #[test]
    fn only_an_earlier_time_wakes_a_stager_that_sleeps() {
        let alarm = alarm();
        assert!(!alarm.tell(WallTime(5)), "the stager is awake");
        assert_eq!(alarm.sleep_until(WallTime(9)), WallTime(5));
        assert_eq!(alarm.shown(), Some(WallTime(5)));
        assert!(!alarm.tell(WallTime(7)) && !alarm.tell(WallTime(5)) && alarm.tell(WallTime(4)));
        assert_eq!(alarm.sleep_until(WallTime(9)), WallTime(4));
        assert_eq!(alarm.begin_look(), WallTime(4));
        assert_eq!((alarm.begin_look(), alarm.shown()), (NEVER, None));
        assert_eq!(alarm.sleep_until(NEVER), NEVER);
        assert!(!alarm.tell(NEVER), "infinity is never due");
        assert!(alarm.tell(WallTime(i64::MIN)), "-infinity is due");
        assert_eq!(alarm.sleep_until(NEVER), WallTime(i64::MIN));
    }

    proptest! {
        /// Whatever order looks, tellings and sleeps have: a stager that sleeps waits for nothing
        /// later than the earliest row that it has not seen, or its latch was set.
        #[test]
        fn no_row_is_slept_over(steps in prop::collection::vec((0..3_u8, 0..50_i64), 1..60)) {
            let alarm = alarm();
            let (mut rows, mut latch, mut sleeps) = (Vec::new(), false, None);
            for (step, at) in steps {
                match step {
                    0 => {
                        rows.push(at); // committed, then told
                        latch |= alarm.tell(WallTime(at));
                    }
                    1 => {
                        alarm.begin_look();
                        sleeps = None;
                        rows.retain(|row| *row > at); // staged
                    }
                    _ => {
                        latch = false;
                        let next = rows.iter().copied().min().map_or(NEVER, WallTime);
                        sleeps = Some(alarm.sleep_until(next));
                    }
                }
                if let Some(until) = sleeps {
                    let earliest = rows.iter().copied().min().map_or(NEVER, WallTime);
                    prop_assert!(latch || until <= earliest);
                }
            }
        }
    }
}
