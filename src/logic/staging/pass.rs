//! A pass: one walk over the rows that are due, in the order of their due times, in batches. A batch
//! is one transaction.
//!
//! Rows can stay where they are: a trigger of the table's owner may keep a row as it was, or reset
//! its state. A pass moves past such rows, so that they hold up no row that is due later:
//!
//! * The next batch begins at the last due time of the one before.
//! * If a batch has begun and ended at one due time, the rows that it has left are passed over. Such
//!   rows come first at that time, because a row that was not written keeps its place.
//! * Rows that were written and are due again have another place. So a pass leaves a due time after
//!   `MOST_AT_ONE_TIME` rows, however many are left.
//!
//! Rows that are left are found by a later pass.

use super::super::times::WallTime;
use super::BATCH;

/// The most rows of one due time that a pass takes on. Real bursts have fewer.
const MOST_AT_ONE_TIME: u64 = 50 * BATCH;

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
    /// Whether a row was chosen and not written.
    pub kept: bool,
}

impl Pass {
    /// Begins a pass at the wall time `now`, over the rows that are due from `from` on.
    pub fn begin(from: WallTime, now: WallTime) -> Self {
        Self { now, from, skip: 0, at_from: 0, kept: false }
    }

    /// Notes the result of a batch of at most `limit` rows. Returns whether more rows may be due.
    pub fn took(&mut self, batch: Batch, limit: u64) -> bool {
        let kept = batch.chosen.saturating_sub(batch.staged);
        self.kept |= kept > 0;
        if batch.chosen < limit {
            return false;
        }
        if batch.last > self.from {
            (self.from, self.skip, self.at_from) = (batch.last, 0, 0);
        } else {
            self.skip += kept;
            self.at_from += batch.chosen;
        }
        if self.at_from >= MOST_AT_ONE_TIME {
            (self.from, self.skip, self.at_from) = (self.from.saturating_add(1), 0, 0);
        }
        true
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
    }

    fn rows() -> impl Strategy<Value = Vec<(i64, Does)>> {
        let does = prop_oneof![Just(Does::Stages), Just(Does::Keeps), Just(Does::Resets)];
        prop::collection::vec((0..6_i64, does), 0..60)
    }

    proptest! {
        /// A pass ends, and stages each row that its trigger lets pass.
        #[test]
        fn rows_that_stay_hold_up_no_other(rows in rows(), limit in 1..9_u64) {
            // A row: its due time, its place, and what its trigger does.
            let mut table: Vec<(i64, usize, Does)> =
                rows.iter().enumerate().map(|(place, (at, does))| (*at, place, *does)).collect();
            let mut places = table.len();
            let mut pass = Pass::begin(WallTime(i64::MIN), WallTime(9));
            let most = 20 * rows.len() as u64 + 20;
            for n in 0.. {
                // The limit on one due time is for real sizes; here it is reached by hand.
                if pass.at_from >= most {
                    pass.at_from = MOST_AT_ONE_TIME - 1;
                }
                prop_assert!(n < 10_000, "it ends");
                table.sort_by_key(|(at, place, _)| (*at, *place));
                let due = table.iter().enumerate().filter(|(_, (at, ..))| WallTime(*at) >= pass.from);
                let chosen: Vec<usize> =
                    due.skip(pass.skip as usize).take(limit as usize).map(|(index, _)| index).collect();
                let last = chosen.last().map_or(WallTime(0), |index| WallTime(table[*index].0));
                let mut staged = 0;
                for index in &chosen {
                    if table[*index].2 != Does::Keeps {
                        staged += 1;
                        places += 1;
                        table[*index].1 = places;
                    }
                }
                let written = |does: Does| does == Does::Stages;
                for index in chosen.iter().rev() {
                    if written(table[*index].2) {
                        table.remove(*index);
                    }
                }
                if !pass.took(Batch { chosen: chosen.len() as u64, staged, last }, limit) {
                    break;
                }
            }
            prop_assert!(table.iter().all(|(_, _, does)| *does != Does::Stages), "{table:?}");
        }
    }

    #[test]
    fn a_burst_at_one_time_is_taken_whole() {
        let mut pass = Pass::begin(WallTime(i64::MIN), WallTime(9));
        let full = Batch { chosen: BATCH, staged: BATCH, last: WallTime(5) };
        for _ in 0..20 {
            assert!(pass.took(full, BATCH));
            assert_eq!((pass.from, pass.skip, pass.kept), (WallTime(5), 0, false));
        }
        assert!(!pass.took(Batch { chosen: 3, ..full }, BATCH));
    }
}
