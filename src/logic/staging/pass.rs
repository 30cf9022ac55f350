//! A pass: one walk over the rows that are due, in the order of their due times, in batches. A batch
//! is one transaction.
//!
//! Rows can stay where they are: a trigger of the table's owner may keep a row as it was, or reset
//! its state. A pass moves past such rows, so that they hold up no row that is due later:
//!
//! * The next batch begins at the last due time of the one before.
//! * If a batch has begun and ended at one due time, the rows that it has left are passed over. Such
//!   rows come first at that time, because a row that was not written keeps its place.
//! * Rows that were written and are due again have another place, and would come again and again. The
//!   triggers of obanrs tell of them. If a batch with such rows has begun and ended at one due time,
//!   the pass goes on after that time. After many such batches it goes on later and later, because a
//!   trigger may put rows off by a moment only. Where the triggers are disabled, a pass leaves a due
//!   time after `MOST_AT_ONE_TIME` rows.
//! * A single row that fails and can't be set aside is passed over. After many such rows in a pass,
//!   more and more rows are passed over with each of them.
//!
//! Rows that are left are found by a later pass.

use super::super::times::WallTime;
use super::BATCH;

/// The most rows of one due time that a pass takes on. Real bursts have fewer.
const MOST_AT_ONE_TIME: u64 = 50 * BATCH;

/// How many rows that fail are passed over one by one in a pass, and how many batches may write rows
/// that are due again before the pass goes on later and later.
const ONE_BY_ONE: u32 = 64;

/// The result of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many rows the batch has locked. Rows that another transaction has locked do not count.
    pub chosen: u64,
    /// How many of these the UPDATE has written.
    pub staged: u64,
    /// The latest due time of the rows; any time if there was none.
    pub last: WallTime,
}

impl Batch {
    /// A batch without rows.
    pub const NOTHING: Self = Self { chosen: 0, staged: 0, last: WallTime(i64::MIN) };
}

/// Where the next batch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The wall time at which the pass has begun. Rows are due by this time.
    pub now: WallTime,
    /// The due time at which the next batch begins.
    pub from: WallTime,
    /// How many rows of that due time the next batch passes over.
    pub skip: u64,
    /// How many rows of that due time batches have chosen.
    at_from: u64,
    /// How many rows that have failed were passed over.
    failed: u32,
    /// How many batches have written rows that are due again.
    resets: u32,
    /// Whether a row was chosen and is due still.
    kept: bool,
}

impl Pass {
    /// Begins a pass at the wall time `now`, over the rows that are due from `from` on.
    pub fn begin(from: WallTime, now: WallTime) -> Self {
        Self { now, from, skip: 0, at_from: 0, failed: 0, resets: 0, kept: false }
    }

    /// Returns whether the pass was of little use: it has left rows which it has chosen.
    pub fn has_kept(&self) -> bool {
        self.kept
    }

    /// Returns whether the pass has passed over rows that have failed.
    pub fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// Notes the result of a batch of at most `limit` rows. `is_reset`: it has written rows that are
    /// due again. Returns whether more rows may be due.
    pub fn took(&mut self, batch: Batch, limit: u64, is_reset: bool) -> bool {
        let kept = batch.chosen.saturating_sub(batch.staged);
        self.kept |= kept > 0 || is_reset;
        if batch.chosen < limit {
            return false;
        }
        if is_reset {
            let at_one_time = batch.last <= self.from;
            let further = 1_i64 << self.resets.saturating_sub(ONE_BY_ONE).min(60);
            let is_first = self.resets < ONE_BY_ONE && !at_one_time;
            self.go_on_at(batch.last.saturating_add(if is_first { 0 } else { further }));
            self.resets = self.resets.saturating_add(1);
        } else if batch.last > self.from {
            self.go_on_at(batch.last);
        } else {
            self.skip += kept;
            self.at_from += batch.chosen;
        }
        if self.at_from >= MOST_AT_ONE_TIME {
            self.go_on_at(self.from.saturating_add(1));
        }
        true
    }

    /// Passes over a row that is due at `at` and has failed.
    pub fn pass_over(&mut self, at: WallTime) {
        if at > self.from {
            self.go_on_at(at);
        }
        self.kept = true;
        self.skip += 1 << self.failed.saturating_sub(ONE_BY_ONE).min(20);
        self.failed = self.failed.saturating_add(1);
    }

    fn go_on_at(&mut self, from: WallTime) {
        (self.from, self.skip, self.at_from) = (from, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a trigger does with a row.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Does {
        Stages,
        Keeps,
        Resets,
        Fails,
    }

    fn rows() -> impl Strategy<Value = Vec<(i64, Does)>> {
        let does = prop_oneof![Just(Does::Stages), Just(Does::Keeps), Just(Does::Resets), Just(Does::Fails)];
        prop::collection::vec((0..6_i64, does), 0..25)
    }

    /// Runs a pass over rows: their due time, place, and what their trigger does. Batches have `limit`
    /// rows. A batch with a row that fails is lost, and then that row is passed over. Returns how many
    /// batches there were.
    fn pass_over_all(table: &mut Vec<(i64, usize, Does)>, limit: usize, tells: bool) -> usize {
        let mut places = table.iter().map(|row| row.1).max().unwrap_or(0);
        let mut pass = Pass::begin(WallTime(i64::MIN), WallTime(9));
        let most = 20 * table.len() as u64 + 20;
        for batches in 1.. {
            assert!(batches < 10_000, "it ends");
            // The limit on one due time is for real sizes; here it is reached by hand.
            if pass.at_from >= most {
                pass.at_from = MOST_AT_ONE_TIME - 1;
            }
            table.sort_by_key(|(at, place, _)| (*at, *place));
            let due = table.iter().enumerate().filter(|(_, (at, ..))| WallTime(*at) >= pass.from);
            let mut chosen: Vec<usize> =
                due.skip(pass.skip as usize).take(limit).map(|(index, _)| index).collect();
            let mut limit = limit;
            if let Some(bad) = chosen.iter().position(|index| table[*index].2 == Does::Fails) {
                if bad == 0 {
                    pass.pass_over(WallTime(table[chosen[0]].0));
                    continue;
                }
                chosen.truncate(bad);
                limit = bad;
            }
            let last = chosen.last().map_or(WallTime(0), |index| WallTime(table[*index].0));
            let (mut staged, mut is_reset) = (0, false);
            for index in &chosen {
                if table[*index].2 != Does::Keeps {
                    staged += 1;
                    places += 1;
                    table[*index].1 = places;
                    is_reset |= tells && table[*index].2 == Does::Resets;
                }
            }
            let batch = Batch { chosen: chosen.len() as u64, staged, last };
            for index in chosen.iter().rev().copied().collect::<Vec<_>>() {
                if table[index].2 == Does::Stages {
                    table.remove(index);
                }
            }
            if !pass.took(batch, limit as u64, is_reset) {
                return batches;
            }
        }
        unreachable!()
    }

    proptest! {
        /// Passes end, and stage each row that its trigger lets pass. If they are told of rows that are due
        /// again, that takes more passes.
        #[test]
        fn rows_that_stay_hold_up_no_other(rows in rows(), limit in 1..9_usize, tells in any::<bool>()) {
            let mut table: Vec<(i64, usize, Does)> =
                rows.iter().enumerate().map(|(place, (at, does))| (*at, place, *does)).collect();
            pass_over_all(&mut table, limit, tells);
            let stages = |row: &(i64, usize, Does)| row.2 == Does::Stages;
            prop_assert!(tells || !table.iter().any(stages), "{table:?}");
            for _ in 0..rows.len() {
                pass_over_all(&mut table, limit, tells);
            }
            prop_assert!(!table.iter().any(stages), "{table:?}");
        }
    }

    #[test]
    fn a_burst_at_one_time_is_taken_whole() {
        let mut pass = Pass::begin(WallTime(i64::MIN), WallTime(9));
        let full = Batch { chosen: BATCH, staged: BATCH, last: WallTime(5) };
        for _ in 0..20 {
            assert!(pass.took(full, BATCH, false));
            assert_eq!((pass.from, pass.skip, pass.has_kept()), (WallTime(5), 0, false));
        }
        assert!(!pass.took(Batch { chosen: 3, ..full }, BATCH, false));
    }

    #[test]
    fn rows_that_are_put_off_by_a_moment_end_a_pass() {
        let mut pass = Pass::begin(WallTime(i64::MIN), WallTime(1 << 50));
        let mut batches = 0;
        while pass.from <= pass.now {
            let last = pass.from.max(WallTime(0)).saturating_add(1);
            pass.took(Batch { chosen: BATCH, staged: BATCH, last }, BATCH, true);
            batches += 1;
        }
        assert!(batches < 130, "{batches}");
    }

    #[test]
    fn a_million_rows_that_fail_are_passed_over_in_a_hundred_steps() {
        let mut pass = Pass::begin(WallTime(i64::MIN), WallTime(9));
        for _ in 0..90 {
            pass.pass_over(WallTime(5));
        }
        assert!(pass.skip > 1_000_000 && pass.has_failed() && pass.has_kept());
    }
}
