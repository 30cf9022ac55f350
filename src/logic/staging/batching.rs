//! How many rows a stager takes on in one transaction, and which rows it sets aside.
//!
//! The UPDATE of a row runs code of the table's owner, which may raise, take long or end the process.
//! Then the whole batch is lost. So the next batch is smaller, down to a single row. A single row that
//! fails is set aside: batches pass over it, so it holds up no other. It is tried again alone, after
//! delays that grow. If no more rows can be set aside, a look passes over the row once
//! (`Pass::pass_over`).
//!
//! A transaction that takes too long ends its process. So the next stager of the slot takes this
//! state over: the process stores it in the slot when it changes, and when the process exits.

use super::super::backoff::{Backoff, MILLISECOND};
use super::super::text::Text;
use super::super::times::ClockTime;
use super::BATCH;

/// The most rows that are set aside.
pub const MOST_ASIDE: usize = 64;

/// How much smaller the next batch is after an error: 20,000 rows become 133, and then 1.
const SHRINK: u64 = 150;

/// A batch that takes less time than this makes the next one larger, in microseconds.
const SHORT: i64 = 250 * MILLISECOND;

/// A batch that takes more time than this makes the next one smaller, in microseconds. A command that
/// waits for the table waits for a batch.
const LONG: i64 = 1_000 * MILLISECOND;

/// Trials of a row that is set aside.
const RETRY: Backoff = Backoff { first: 1_000 * MILLISECOND, max: 300_000 * MILLISECOND };

/// As how many failures the first one counts of a row that has ended its process. Such a row holds up
/// all others while it is tried, so the first trial comes after 32 s.
const ENDED_COUNTS: u32 = 6;

/// The version of a row: the table's oid, the row's ctid and xmin, and the number of the table's file,
/// with a space between them. An UPDATE makes another version, and so does a command that writes the
/// whole table anew. So a row that was changed is not set aside any more.
pub type RowVersion = Text<56>;

/// How a batch has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It has raised an error.
    Raised,
    /// It has ended the process: it took too long, or its code did that.
    Ended,
}

/// What follows from the failure of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next batch is smaller, or the row is set aside. The stager goes on.
    GoOn,
    /// No more rows can be set aside: this look passes over the row.
    PassOver,
    /// The batch can't be smaller: the stager has to end.
    GiveUp,
}

/// A row that is set aside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Aside {
    row: RowVersion,
    /// How often the row has failed in a row.
    failures: u32,
    /// The clock reading at which the row is tried again.
    retry_at: ClockTime,
}

impl Aside {
    /// Notes at the clock reading `now` that the row has failed `times` times more.
    fn failed(&mut self, times: u32, now: ClockTime) {
        self.failures = self.failures.saturating_add(times);
        self.retry_at = now.saturating_add(RETRY.delay(self.failures));
    }
}

/// The size of the next batch, and the rows that are set aside. A zeroed value is the first state.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most rows of the next batch; 0 before the first change means `BATCH`.
    limit: u32,
    /// How many of `rows` are used.
    count: u32,
    /// The rows that are set aside.
    rows: [Aside; MOST_ASIDE],
}

impl Default for Batching {
    fn default() -> Self {
        Self { limit: 0, count: 0, rows: [Aside::default(); MOST_ASIDE] }
    }
}

impl Batching {
    /// Returns the most rows that the next batch takes on.
    pub fn limit(&self) -> u64 {
        if self.limit == 0 { BATCH } else { u64::from(self.limit).min(BATCH) }
    }

    /// Returns how many rows are set aside.
    pub fn count(&self) -> usize {
        (self.count as usize).min(MOST_ASIDE)
    }

    /// Returns the rows that are set aside.
    pub fn aside(&self) -> Vec<RowVersion> {
        self.used().iter().map(|aside| aside.row).collect()
    }

    /// Returns the row that is tried next, and the clock reading at which that is due. `None`: no row
    /// is set aside.
    pub fn next_trial(&self) -> Option<(RowVersion, ClockTime)> {
        let first = self.used().iter().min_by_key(|aside| aside.retry_at);
        first.map(|aside| (aside.row, aside.retry_at))
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
    pub fn failed(&mut self, failure: Failure, row: Option<RowVersion>, now: ClockTime) -> Then {
        let Some(row) = row else {
            if self.limit() == 1 {
                return Then::GiveUp; // it did not come as far as a row
            }
            self.set_limit(if failure == Failure::Raised { self.limit() / SHRINK } else { 1 });
            return Then::GoOn;
        };
        if let Some(aside) = self.used_mut().iter_mut().find(|aside| aside.row == row) {
            aside.failed(1, now);
            return Then::GoOn;
        }
        let Some(place) = self.rows.get_mut(self.count as usize) else { return Then::PassOver };
        *place = Aside { row, ..Aside::default() };
        place.failed(if failure == Failure::Raised { 1 } else { ENDED_COUNTS }, now);
        self.count += 1;
        Then::GoOn
    }

    /// Notes at the clock reading `now` that the trial of a row has not failed. The row is not set aside
    /// any more. The others are tried at once: what was wrong with them may be mended as well.
    pub fn trial_succeeded(&mut self, row: &RowVersion, now: ClockTime) {
        self.retain(|other| other != row);
        self.used_mut().iter_mut().for_each(|aside| aside.retry_at = aside.retry_at.min(now));
    }

    /// Notes at the clock reading `now` that a row could not be tried, because another transaction has
    /// the table.
    pub fn put_off(&mut self, row: &RowVersion, now: ClockTime) {
        let retry_at = now.saturating_add(RETRY.first);
        self.used_mut()
            .iter_mut()
            .filter(|aside| aside.row == *row)
            .for_each(|aside| aside.retry_at = retry_at);
    }

    /// Takes back all rows for which `stays` does not hold: the table does not have these versions any
    /// more. Returns whether there were any.
    pub fn retain(&mut self, mut stays: impl FnMut(&RowVersion) -> bool) -> bool {
        let before = self.count();
        let mut kept = 0;
        for at in 0..before {
            if stays(&self.rows[at].row) {
                self.rows[kept] = self.rows[at];
                kept += 1;
            }
        }
        self.rows[kept..].fill(Aside::default());
        self.count = kept as u32;
        kept < before
    }

    fn used(&self) -> &[Aside] {
        &self.rows[..self.count()]
    }

    fn used_mut(&mut self) -> &mut [Aside] {
        let count = self.count();
        &mut self.rows[..count]
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
        RowVersion::truncated(&format!("16384 (0,{n}) 700 16390"))
    }

    #[test]
    fn the_longest_version_fits() {
        let longest = "4294967295 (4294967295,65535) 4294967295 4294967295";
        assert_eq!(RowVersion::new(longest).unwrap().as_str(), longest);
    }

    #[test]
    fn a_failure_makes_batches_small_and_success_makes_them_large() {
        let mut b = Batching::default();
        let mut limits = vec![b.limit()];
        for _ in 0..2 {
            assert_eq!(b.failed(Failure::Raised, None, ClockTime(0)), Then::GoOn);
            limits.push(b.limit());
        }
        assert_eq!(limits, [20_000, 133, 1]);
        assert_eq!(b.failed(Failure::Raised, None, ClockTime(0)), Then::GiveUp, "no busy loop");
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
        b.failed(Failure::Ended, None, ClockTime(0));
        assert_eq!(b.limit(), 1, "each step would cost a process");
    }

    #[test]
    fn each_row_that_fails_is_tried_again_after_delays_of_its_own() {
        let mut b = Batching::default();
        assert_eq!(b.next_trial(), None);
        b.failed(Failure::Raised, Some(row(1)), ClockTime(0));
        let (mut delays, mut now) = (Vec::new(), ClockTime(0));
        for _ in 0..11 {
            let (next, at) = b.next_trial().unwrap();
            assert_eq!(next, row(1));
            delays.push((at - now) / (1_000 * MILLISECOND));
            now = at;
            b.failed(Failure::Raised, Some(next), now);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        // A row that comes later does not wait behind it.
        b.failed(Failure::Raised, Some(row(2)), now);
        let second = now + 1_000 * MILLISECOND;
        assert_eq!(b.next_trial(), Some((row(2), second)));
        b.put_off(&row(2), second);
        assert_eq!(b.next_trial(), Some((row(2), second + 1_000 * MILLISECOND)));
        b.failed(Failure::Ended, Some(row(3)), now);
        // One succeeds, and so the others are tried at once.
        b.trial_succeeded(&row(2), second);
        assert_eq!((b.aside(), b.next_trial().unwrap().1), (vec![row(1), row(3)], second));
        assert!(b.retain(|row| *row == self::row(3)) && !b.retain(|_| true));
        assert_eq!(b.aside(), [row(3)]);
    }

    #[test]
    fn a_row_that_ends_its_process_is_tried_later() {
        let mut b = Batching::default();
        b.failed(Failure::Ended, Some(row(1)), ClockTime(0));
        assert_eq!(b.next_trial(), Some((row(1), ClockTime(32_000 * MILLISECOND))));
    }

    #[test]
    fn rows_that_find_no_place_are_passed_over() {
        let mut b = Batching::default();
        for n in 0..MOST_ASIDE as u32 {
            assert_eq!(b.failed(Failure::Raised, Some(row(n)), ClockTime(0)), Then::GoOn);
        }
        assert_eq!(b.failed(Failure::Raised, Some(row(99)), ClockTime(0)), Then::PassOver);
        assert_eq!(
            b.failed(Failure::Raised, Some(row(5)), ClockTime(0)),
            Then::GoOn,
            "it is set aside already"
        );
        assert_eq!(b.count(), MOST_ASIDE);
        b.retain(|row| *row != self::row(7));
        assert_eq!(b.failed(Failure::Raised, Some(row(99)), ClockTime(0)), Then::GoOn);
    }

    proptest! {
        /// Whatever happens: the limit is from 1 to BATCH, and no row is set aside twice.
        #[test]
        fn the_state_stays_sound(steps in prop::collection::vec((0..7_u8, 0..90_u32, any::<i64>()), 1..300)) {
            let mut b = Batching::default();
            for (step, n, time) in steps {
                match step {
                    0 => b.succeeded(u64::from(n), time),
                    1 => _ = b.failed(Failure::Raised, None, ClockTime(time)),
                    2 => _ = b.failed(Failure::Raised, Some(row(n)), ClockTime(time)),
                    3 => _ = b.failed(Failure::Ended, Some(row(n)), ClockTime(time)),
                    4 => b.trial_succeeded(&row(n), ClockTime(time)),
                    5 => b.put_off(&row(n), ClockTime(time)),
                    _ => _ = b.retain(|row| *row != self::row(n)),
                }
                prop_assert!((1..=BATCH).contains(&b.limit()));
                let mut rows: Vec<_> = b.aside().iter().map(|row| row.as_str().to_owned()).collect();
                let all = rows.len();
                rows.sort();
                rows.dedup();
                prop_assert_eq!(rows.len(), all);
                prop_assert_eq!(b.next_trial().is_some(), all > 0);
            }
        }
    }
}
