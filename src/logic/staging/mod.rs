//! Staging: jobs that are due become available on time.
//!
//! A prefix stages if the triggers on its table of jobs have the argument `STAGE`. Each such prefix
//! has a *stager*: a background worker that serves no other prefix, and is connected as the table's
//! owner. The states of a stager's slot:
//!
//! ```text
//!            (1)               (2)                (3)
//!   (free) ────────▶ Waiting ────────▶ Starting ────────▶ Running
//!     ▲               ▲  ▲               │  │ ▲             │ │
//!     │               │  └───── (4) ─────┘  │ └── (2) ──┐   │ │
//!     │               └──────── (4) ────────┼───────────┼───┘ │
//!     │                                     └─── (5) ──▶ Backoff
//!     └──────── (6), from each state                     ▲
//!                                              (5) ──────┘
//! ```
//!
//! * (1) The keeper calls `keep` for the prefixes that stage, by its last reading of the catalogs.
//! * (2) The keeper calls `launch` when the stager is due.
//! * (3) The stager calls `claim` before it connects, and `connected` after that.
//! * (4) A command holds the database: the stager calls `exited` and is not to blame. A keeper that
//!   was restarted calls `adopt` for stagers that have not claimed their slots.
//! * (5) The keeper calls `not_started` for a stager that did not come up. A stager that ends without
//!   an order to leave calls `exited`.
//! * (6) The prefix does not stage any more, or its table or owner is another: `keep` or `dismiss`.
//!   If a process has the slot, the process is told to leave, and its `exited` frees the slot.
//!
//! The delay in Backoff grows until a look at the table has succeeded (`succeeded`): a stager that
//! starts and fails again and again has not recovered.

pub mod alarm;
pub mod slots;

use super::backoff::{Backoff, MILLISECOND};
use super::times::{ClockTime, WallTime};
use alarm::NEVER;

/// The argument of the triggers on a table of jobs that is staged.
pub const STAGE: &str = "stage";

/// The name of the index on oban_jobs that finds what is due.
pub const INDEX: &str = "obanrs_jobs_due";

/// The most rows that one transaction makes available, as many as Oban for Python takes. A burst of
/// due jobs is many short transactions, and a command that has to wait for one waits for that.
/// Measured for 100,000 rows, as a multiple of the time of one UPDATE: 1.5 in batches of 5,000, and
/// 1.2 in batches of 20,000.
pub const BATCH: u64 = 20_000;

/// How long one transaction of a stager may take, in milliseconds. It runs the code of the table's
/// owner. A batch takes a fraction of a second.
pub const STATEMENT_LIMIT: i32 = 10_000;

/// Restarts of a stager that failed.
pub const RESTART_STAGER: Backoff = Backoff { first: 1_000 * MILLISECOND, max: 300_000 * MILLISECOND };

/// Looks for due rows that another transaction has locked.
const LOCKED_ROWS: Backoff = Backoff { first: 50 * MILLISECOND, max: 5_000 * MILLISECOND };

/// What a look has found of the due times in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The earliest time after the look at which a row becomes due; `NEVER` for none.
    pub next: WallTime,
    /// A row that was due is still there: another transaction has it locked.
    pub left: bool,
}

/// When a stager looks at its table next.
#[derive(Clone, Copy, Debug)]
pub struct Agenda {
    /// When the next row becomes due.
    next: WallTime,
    /// How many looks in a row have left rows that were due.
    left: u32,
    /// The clock reading at which rows that were left are looked for again.
    again: ClockTime,
    /// The clock reading before which there is no look; 0 for none.
    not_before: ClockTime,
}

impl Default for Agenda {
    /// The agenda of a stager that has not looked yet.
    fn default() -> Self {
        Self { next: WallTime(i64::MIN), left: 0, again: ClockTime::NEVER, not_before: ClockTime::ZERO }
    }
}

impl Agenda {
    /// Returns when the next row becomes due.
    pub fn next(&self) -> WallTime {
        self.next
    }

    /// Notes what a look has found that ended at the clock reading `now`.
    pub fn looked(&mut self, seen: Seen, now: ClockTime) {
        (self.next, self.not_before) = (seen.next, ClockTime::ZERO);
        self.left = if seen.left { self.left.saturating_add(1) } else { 0 };
        self.again =
            if seen.left { now.saturating_add(LOCKED_ROWS.delay(self.left)) } else { ClockTime::NEVER };
    }

    /// Notes at the clock reading `now` that the table could not be looked at, because another
    /// transaction has it. The next look comes after a delay that grows.
    pub fn put_off(&mut self, now: ClockTime) {
        self.left = self.left.saturating_add(1);
        self.not_before = now.saturating_add(LOCKED_ROWS.delay(self.left));
        self.again = self.not_before;
    }

    /// Returns the clock reading at which to look, at the clock reading `now` and the wall time
    /// `wall`. `until` is the earliest due time, which an alarm may have made earlier. `None`: not
    /// before the latch is set. A reading that is not after `now` means at once.
    pub fn look_at(&self, until: WallTime, now: ClockTime, wall: WallTime) -> Option<ClockTime> {
        let due = if until >= NEVER {
            ClockTime::NEVER
        } else {
            now.saturating_add(until.saturating_sub(wall).max(0))
        };
        Some(due.min(self.again).max(self.not_before)).filter(|at| *at < ClockTime::NEVER)
    }
}

/// The jobs that were inserted as available with a due time in the future: when their queues are
/// woken.
#[derive(Clone, Copy, Debug)]
pub struct Announcements {
    /// The next due time of such a row, as far as the last look knows; `NEVER` for none. `None`: the
    /// stager has not looked yet.
    next: Option<WallTime>,
    /// Whether another stager served the prefix before.
    succeeds_another: bool,
}

impl Announcements {
    /// Returns the state of a stager that has not looked yet.
    pub fn new(succeeds_another: bool) -> Self {
        Self { next: None, succeeds_another }
    }

    /// Returns the next due time of such a row. The earliest time: the stager has not looked yet.
    pub fn next(&self) -> WallTime {
        self.next.unwrap_or(WallTime(i64::MIN))
    }

    /// Returns whether the table has to be looked at, at the wall time `now`. `told` is the earliest
    /// due time that was told since the last look, or `NEVER`.
    pub fn has_to_look(&self, told: WallTime, now: WallTime) -> bool {
        told < NEVER || self.next() <= now
    }

    /// Returns the span of due times to announce at the wall time `now`: after the first, up to the
    /// second. No row became due before what was told and what the last look has found, except rows
    /// that were due when they were inserted. The first look of a stager that succeeds another
    /// announces all rows that are due: some may have become due while no stager ran. Before the
    /// prefix's first stager, triggers have told of all such rows.
    pub fn due(&self, told: WallTime, now: WallTime) -> Option<(WallTime, WallTime)> {
        let from = if self.next.is_none() && !self.succeeds_another { told } else { told.min(self.next()) };
        (from <= now).then_some((from.saturating_add(-1), now))
    }

    /// Notes that the queues of what was due were woken, and when the next row becomes due.
    pub fn announced(&mut self, next: WallTime) {
        self.next = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stager_looks_at_once_and_then_when_a_row_is_due() {
        let mut agenda = Agenda::default();
        let (now, wall) = (ClockTime(1_000), WallTime(-500));
        assert_eq!(agenda.look_at(agenda.next(), now, wall), Some(now));
        agenda.looked(Seen { next: NEVER, left: false }, now);
        assert_eq!(agenda.look_at(agenda.next(), now, wall), None, "idle means idle");
        assert_eq!(agenda.look_at(WallTime(-600), now, wall), Some(now), "an alarm in the past");
        agenda.looked(Seen { next: WallTime(500), left: false }, now);
        assert_eq!(agenda.look_at(agenda.next(), now, wall), Some(ClockTime(2_000)));
        // The wall clock is set.
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(600)), Some(now));
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(-1_000_000)), Some(ClockTime(1_001_500)));
        assert_eq!(agenda.look_at(WallTime(i64::MAX - 1), now, WallTime(i64::MIN)), None, "no overflow");
    }

    #[test]
    fn locked_rows_are_looked_for_again_after_growing_delays() {
        let (mut agenda, now) = (Agenda::default(), ClockTime(7));
        let mut delays = Vec::new();
        for _ in 0..9 {
            agenda.looked(Seen { next: NEVER, left: true }, now);
            delays.push(agenda.look_at(agenda.next(), now, WallTime(0)).unwrap() - now);
        }
        assert_eq!(
            delays.iter().map(|d| d / MILLISECOND).collect::<Vec<_>>(),
            [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]
        );
        agenda.looked(Seen { next: WallTime(10), left: true }, now);
        assert_eq!(
            agenda.look_at(agenda.next(), now, WallTime(0)),
            Some(ClockTime(17)),
            "others are on time"
        );
        agenda.looked(Seen { next: NEVER, left: false }, now);
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(0)), None);
    }

    #[test]
    fn a_locked_table_is_no_busy_loop() {
        let (mut agenda, now) = (Agenda::default(), ClockTime(7));
        for delay in [50, 100, 200] {
            agenda.put_off(now);
            let at = agenda.look_at(WallTime(i64::MIN), now, WallTime(0)).unwrap();
            assert_eq!((at - now) / MILLISECOND, delay, "whatever is due");
        }
        agenda.looked(Seen { next: WallTime(-5), left: false }, now);
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(0)), Some(now));
    }

    #[test]
    fn each_due_time_is_announced_once_whatever_the_clock_does() {
        let first = Announcements::new(false);
        assert!(first.has_to_look(NEVER, WallTime(100)), "once at the start");
        assert_eq!(first.due(NEVER, WallTime(100)), None, "it was there to be fetched, or woken");
        assert_eq!(first.due(WallTime(90), WallTime(100)), Some((WallTime(89), WallTime(100))));
        let mut a = Announcements::new(true);
        assert!(a.has_to_look(NEVER, WallTime(100)), "once at the start");
        assert_eq!(a.due(NEVER, WallTime(100)), Some((WallTime(i64::MIN), WallTime(100))), "whatever is due");
        a.announced(NEVER);
        assert!(!a.has_to_look(NEVER, WallTime(1_000)), "nobody has told of such rows");
        assert!(a.has_to_look(WallTime(150), WallTime(120)));
        assert_eq!(a.due(WallTime(150), WallTime(120)), None);
        a.announced(WallTime(150));
        assert!(!a.has_to_look(NEVER, WallTime(149)) && a.has_to_look(NEVER, WallTime(150)));
        assert_eq!(a.due(NEVER, WallTime(155)), Some((WallTime(149), WallTime(155))));
        assert_eq!(a.due(WallTime(140), WallTime(155)), Some((WallTime(139), WallTime(155))));
        a.announced(NEVER);
        // The clock is set back, and a row is inserted that is due before 155.
        assert_eq!(a.due(WallTime(90), WallTime(50)), None);
        a.announced(WallTime(90));
        assert_eq!(a.due(NEVER, WallTime(90)), Some((WallTime(89), WallTime(90))));
    }
}
