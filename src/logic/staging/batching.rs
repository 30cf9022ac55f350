//! How many rows a stager takes on in one transaction, and which rows it sets aside.
//!
//! The UPDATE of a row runs code of the table's owner, which may raise or take long. Then the whole
//! batch is lost. So the next batch is smaller, down to a single row. A single row that fails is set
//! aside: batches pass over it, so it holds up no other. It is tried again alone, after delays that
//! grow. If more rows fail than can be set aside, the stager fails as a whole.
//!
//! A transaction that takes too long ends its process. So the next stager of the slot takes this
//! state over: the process stores it in the slot when it changes, and when the process exits.

use super::super::backoff::{Backoff, MILLISECOND};
use super::super::text::Text;
use super::super::times::ClockTime;
use super::BATCH;

/// The most rows that are set aside.
pub const MOST_ASIDE: usize = 64;

/// How much smaller the next batch is after a failure: 20,000 rows become 133, and then 1. Each step
/// can cost a transaction's time limit.
const SHRINK: u32 = 150;

/// A batch that takes less time than this makes the next one larger, in microseconds.
const SHORT: i64 = 250 * MILLISECOND;

/// A batch that takes more time than this makes the next one smaller, in microseconds. A command that
/// waits for the table waits for a batch.
const LONG: i64 = 1_000 * MILLISECOND;

/// Trials of rows that are set aside.
const RETRY: Backoff = Backoff { first: 1_000 * MILLISECOND, max: 300_000 * MILLISECOND };

/// The version of a row: the table's oid, the row's ctid and xmin, with a space between them. An UPDATE
/// makes another version. So a row that was changed is not set aside any more.
pub type RowVersion = Text<40>;

/// What became of a batch that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The next batch is smaller, or the row was set aside. The stager goes on.
    GoOn,
    /// No more rows can be set aside, or the batch can't be smaller: the stager has to end.
    GiveUp,
}

/// The size of the next batch, and the rows that are set aside. A zeroed value is the first state.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most rows of the next batch; 0 before the first change means `BATCH`.
    limit: u32,
    /// How many of `rows` are used.
    count: u32,
    /// How many trials in a row have failed.
    failures: u32,
    /// The clock reading at which the first of `rows` is tried again.
    retry_at: ClockTime,
    /// The rows that are set aside. The first is tried next.
    rows: [RowVersion; MOST_ASIDE],
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            limit: 0,
            count: 0,
            failures: 0,
            retry_at: ClockTime::ZERO,
            rows: [RowVersion::default(); MOST_ASIDE],
        }
    }
}

impl Batching {
    /// Returns the most rows that the next batch takes on.
    pub fn limit(&self) -> u64 {
        if self.limit == 0 { BATCH } else { u64::from(self.limit).min(BATCH) }
    }

    /// Returns the rows that are set aside.
    pub fn aside(&self) -> &[RowVersion] {
        &self.rows[..(self.count as usize).min(MOST_ASIDE)]
    }

    /// Returns the row that is tried next, and the clock reading at which that is due. `None`: no row
    /// is set aside.
    pub fn next_trial(&self) -> Option<(RowVersion, ClockTime)> {
        self.aside().first().map(|row| (*row, self.retry_at))
    }

    /// Notes that a batch of `chosen` rows has succeeded, and how long it took in microseconds.
    pub fn succeeded(&mut self, chosen: u64, took: i64) {
        let limit = self.limit();
        if took > LONG {
            self.set_limit(chosen.min(limit) / 2);
        } else if took < SHORT && chosen >= limit {
            self.set_limit(limit * 2);
        }
    }

    /// Notes at the clock reading `now` that a batch has failed. `row`: the row, if the batch was one
    /// row that is known.
    pub fn failed(&mut self, row: Option<RowVersion>, now: ClockTime) -> Failed {
        let Some(row) = row else {
            if self.limit() == 1 {
                return Failed::GiveUp; // it did not come as far as a row
            }
            self.set_limit(self.limit() / u64::from(SHRINK));
            return Failed::GoOn;
        };
        if self.aside().contains(&row) {
            self.trial_failed(now);
            return Failed::GoOn;
        }
        let Some(place) = self.rows.get_mut(self.count as usize) else { return Failed::GiveUp };
        *place = row;
        self.count += 1;
        if self.count == 1 {
            self.failures = 1;
            self.retry_at = now.saturating_add(RETRY.delay(1));
        }
        Failed::GoOn
    }

    /// Notes that the trial of the first row that is set aside has not failed: the row is not set aside
    /// any more, and the next one is due at once.
    pub fn trial_succeeded(&mut self) {
        let used = (self.count as usize).min(MOST_ASIDE);
        if used > 0 {
            self.rows[..used].rotate_left(1);
            self.count = used as u32 - 1;
        }
        (self.failures, self.retry_at) = (0, ClockTime::ZERO);
    }

    /// Notes at the clock reading `now` that the trial of the first row has failed. All others are
    /// tried before it is tried again.
    fn trial_failed(&mut self, now: ClockTime) {
        let used = (self.count as usize).min(MOST_ASIDE);
        self.rows[..used].rotate_left(1);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.saturating_add(RETRY.delay(self.failures));
    }

    fn set_limit(&mut self, limit: u64) {
        self.limit = limit.clamp(1, BATCH) as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(n: u32) -> RowVersion {
        RowVersion::truncated(&format!("16384 (0,{n}) 700"))
    }

    #[test]
    fn a_failure_makes_batches_small_and_success_makes_them_large() {
        let mut b = Batching::default();
        let mut limits = vec![b.limit()];
        for _ in 0..2 {
            assert_eq!(b.failed(None, ClockTime(0)), Failed::GoOn);
            limits.push(b.limit());
        }
        assert_eq!(limits, [20_000, 133, 1]);
        assert_eq!(b.failed(None, ClockTime(0)), Failed::GiveUp, "no busy loop");
        b.succeeded(0, 1);
        assert_eq!(b.limit(), 1, "a batch that was not full says nothing of larger ones");
        for _ in 0..20 {
            b.succeeded(b.limit(), SHORT - 1);
        }
        assert_eq!(b.limit(), BATCH);
        b.succeeded(BATCH, LONG + 1);
        assert_eq!(b.limit(), BATCH / 2);
        b.succeeded(BATCH / 2, (SHORT + LONG) / 2);
        assert_eq!(b.limit(), BATCH / 2);
        b.succeeded(30, LONG + 1);
        assert_eq!(b.limit(), 15, "30 rows took long");
    }

    #[test]
    fn rows_that_fail_are_tried_again_in_turns_after_growing_delays() {
        let mut b = Batching::default();
        assert_eq!(b.next_trial(), None);
        for n in 1..=3 {
            b.failed(Some(row(n)), ClockTime(i64::from(n)));
        }
        let (mut tried, mut delays, mut now) = (Vec::new(), Vec::new(), ClockTime(1));
        for _ in 0..11 {
            let (next, at) = b.next_trial().unwrap();
            tried.push(next);
            delays.push((at - now) / (1_000 * MILLISECOND));
            now = at;
            b.failed(Some(next), now);
        }
        assert_eq!(tried[..4], [row(1), row(2), row(3), row(1)]);
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        // One succeeds, and so the others are tried at once.
        b.trial_succeeded();
        assert_eq!((b.aside().len(), b.next_trial().unwrap().1), (2, ClockTime::ZERO));
        b.trial_succeeded();
        b.trial_succeeded();
        b.trial_succeeded();
        assert_eq!(b.next_trial(), None);
    }

    #[test]
    fn a_stager_gives_up_when_too_many_rows_fail() {
        let mut b = Batching::default();
        for n in 0..MOST_ASIDE as u32 {
            assert_eq!(b.failed(Some(row(n)), ClockTime(0)), Failed::GoOn);
        }
        assert_eq!(b.failed(Some(row(99)), ClockTime(0)), Failed::GiveUp);
        assert_eq!(b.failed(Some(row(5)), ClockTime(0)), Failed::GoOn, "it is set aside already");
        assert_eq!(b.aside().len(), MOST_ASIDE);
    }

    proptest! {
        /// Whatever happens: the limit is from 1 to BATCH, and no row is set aside twice.
        #[test]
        fn the_state_stays_sound(steps in prop::collection::vec((0..5_u8, 0..90_u32, any::<i64>()), 1..300)) {
            let mut b = Batching::default();
            for (step, n, time) in steps {
                match step {
                    0 => b.succeeded(u64::from(n), time),
                    1 => drop(b.failed(None, ClockTime(time))),
                    2 => drop(b.failed(Some(row(n)), ClockTime(time))),
                    3 => if let Some((next, _)) = b.next_trial() {
                        b.failed(Some(next), ClockTime(time));
                    },
                    _ => b.trial_succeeded(),
                }
                prop_assert!((1..=BATCH).contains(&b.limit()));
                let mut rows: Vec<_> = b.aside().iter().map(|row| row.as_str().to_owned()).collect();
                let all = rows.len();
                rows.sort();
                rows.dedup();
                prop_assert_eq!(rows.len(), all);
            }
        }
    }
}
