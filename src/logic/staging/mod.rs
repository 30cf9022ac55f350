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
//! * (4) The stager calls `exited`. A command holds the database, or a batch has ended the process. The
//!   next stager goes on with smaller batches (`batching`). A keeper that was restarted calls `adopt`
//!   for stagers that have not claimed their slots.
//! * (5) The keeper calls `not_started` for a stager that did not come up. A stager that ends for
//!   another reason, and without an order to leave, calls `exited`.
//! * (6) The prefix does not stage any more, or its table or owner is another: `keep` or `dismiss`.
//!   If a process has the slot, the process is told to leave, and its `exited` frees the slot.
//!
//! The delay in Backoff grows until a stager has run for a minute (`succeeded`): a stager that starts
//! and fails again and again has not recovered.

pub mod alarm;
pub mod batching;
pub mod pass;
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

/// Looks for due rows that another transaction has locked, or that a trigger has kept as they are.
/// Nothing tells of the end of a lock.
const ROWS_LEFT: Backoff = Backoff { first: 50 * MILLISECOND, max: 1_000 * MILLISECOND };

/// How many times as long as a look the stager waits before it does the same again, if the look was of
/// little use.
const PAUSE: i64 = 4;

/// After a look the stager rests for as long as the look took, and for at most this time, in
/// microseconds. A trigger may make rows due again at once: the other processes get their turn.
const REST: i64 = 10 * MILLISECOND;

/// A look reads all rows that are due if the last such look was longer ago than this, in
/// microseconds. It finds rows of which no trigger has told.
const WHOLE_LOOK: i64 = 60_000 * MILLISECOND;

/// What a look has found of the due times in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The earliest time after the look at which a row becomes due; `NEVER` for none.
    pub next: WallTime,
    /// A row that was due is still there: another transaction has it locked, or a trigger has kept it.
    pub left: bool,
}

/// How a look went.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The due time at which it began. The earliest time there is: it was a whole look.
    pub from: WallTime,
    /// The clock reading at which it began.
    pub began: ClockTime,
    /// Whether rows are due still that it has tried to make available.
    pub kept: bool,
    /// Whether rows have failed that are not set aside.
    pub failed: bool,
    /// Whether it has written rows that became due meanwhile.
    pub resets: bool,
}

/// When a stager looks at its table next.
///
/// A look begins at a due time, and leaves rows alone that were due before. No trigger has told of
/// such a row since the last look, so an earlier look has read it and left it. A whole look begins at
/// the first row.
#[derive(Clone, Copy, Debug)]
pub struct Agenda {
    /// When the next row becomes due.
    next: WallTime,
    /// How many whole looks in a row have left rows that were due.
    left: u32,
    /// The clock reading at which rows that were left are looked for again.
    again: ClockTime,
    /// The clock reading before which there is no look; 0 for none.
    not_before: ClockTime,
    /// The clock reading from which on the next look is a whole one.
    whole_from: ClockTime,
    /// How many looks in a row have written rows that are due again at the time of the look.
    resets: u32,
}

impl Default for Agenda {
    /// The agenda of a stager that has not looked yet.
    fn default() -> Self {
        Self {
            next: WallTime(i64::MIN),
            left: 0,
            again: ClockTime::NEVER,
            not_before: ClockTime::ZERO,
            whole_from: ClockTime::ZERO,
            resets: 0,
        }
    }
}

impl Agenda {
    /// Returns when the next row becomes due.
    pub fn next(&self) -> WallTime {
        self.next
    }

    /// Returns the due time from which on a look reads rows that begins at the clock reading `now`.
    /// `told` is the earliest due time that was told since the last look. The earliest time there is:
    /// a whole look.
    pub fn look_from(&self, told: WallTime, now: ClockTime) -> WallTime {
        let is_whole = self.again <= now || self.whole_from <= now;
        if is_whole { WallTime(i64::MIN) } else { told.min(self.next) }
    }

    /// Notes what a look has found that ended at the clock reading `now`.
    pub fn looked(&mut self, seen: Seen, look: Look, now: ClockTime) {
        let took = now.saturating_sub(look.began).max(0);
        self.resets = if look.resets { self.resets.saturating_add(1) } else { 0 };
        let rest = took.min(REST).max(ROWS_LEFT.delay(self.resets));
        (self.next, self.not_before) = (seen.next, now.saturating_add(rest));
        let pause = if look.kept { PAUSE.saturating_mul(took) } else { 0 };
        let backoff = if look.failed { RESTART_STAGER } else { ROWS_LEFT };
        let left = seen.left || look.kept;
        let again = |looks| now.saturating_add(backoff.delay(looks).max(pause));
        if look.from == WallTime(i64::MIN) {
            self.whole_from = now.saturating_add(WHOLE_LOOK);
            self.left = if left { self.left.saturating_add(1) } else { 0 };
            self.again = if left { again(self.left) } else { ClockTime::NEVER };
        } else if left {
            self.again = self.again.min(again(1)); // what earlier looks have left is still to come
        }
    }

    /// Notes at the clock reading `now` that the table could not be looked at, because another
    /// transaction has it. The next look is a whole one, and comes after a delay that grows.
    pub fn put_off(&mut self, now: ClockTime) {
        self.left = self.left.saturating_add(1);
        self.not_before = now.saturating_add(ROWS_LEFT.delay(self.left));
        self.again = self.not_before;
    }

    /// Has the stager look at all rows that are due, at once.
    pub fn look_again(&mut self) {
        self.again = ClockTime::ZERO;
    }

    /// Returns the clock reading at which to look, at the clock reading `now` and the wall time
    /// `wall`. `until` is the earliest due time, which an alarm may have made earlier. `None`: not
    /// before the latch is set. A reading that is not after `now` means at once.
    pub fn look_at(&self, until: WallTime, now: ClockTime, wall: WallTime) -> Option<ClockTime> {
        let due = reading_at(until, now, wall);
        Some(due.min(self.again).max(self.not_before)).filter(|at| *at < ClockTime::NEVER)
    }
}

/// Returns the clock reading at the wall time `at`, at the clock reading `now` and the wall time
/// `wall`; `now` if that time is past.
fn reading_at(at: WallTime, now: ClockTime, wall: WallTime) -> ClockTime {
    if at >= NEVER { ClockTime::NEVER } else { now.saturating_add(at.saturating_sub(wall).max(0)) }
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
    /// The clock reading before which there is no look: a look reads all jobs that are available, and
    /// takes no more than a fifth of the stager's time.
    not_before: ClockTime,
}

impl Announcements {
    /// Returns the state of a stager that has not looked yet.
    pub fn new(succeeds_another: bool) -> Self {
        Self { next: None, succeeds_another, not_before: ClockTime::ZERO }
    }

    /// Returns the next due time of such a row. The earliest time: the stager has not looked yet.
    pub fn next(&self) -> WallTime {
        self.next.unwrap_or(WallTime(i64::MIN))
    }

    /// Returns whether the table has to be looked at, at the clock reading `now` and the wall time
    /// `wall`. `told` is the earliest due time that was told since the last look, or `NEVER`.
    pub fn has_to_look(&self, told: WallTime, now: ClockTime, wall: WallTime) -> bool {
        self.not_before <= now && (told < NEVER || self.next() <= wall)
    }

    /// Returns the clock reading at which to look, as `Agenda::look_at` does.
    pub fn look_at(&self, until: WallTime, now: ClockTime, wall: WallTime) -> Option<ClockTime> {
        let due = reading_at(until, now, wall);
        (due < ClockTime::NEVER).then_some(due.max(self.not_before))
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

    /// Notes that the queues of what was due were woken, and when the next row becomes due. The look
    /// has begun at the clock reading `began`, and ended at `now`.
    pub fn announced(&mut self, next: WallTime, began: ClockTime, now: ClockTime) {
        self.next = Some(next);
        self.not_before = now.saturating_add(PAUSE * now.saturating_sub(began).max(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: WallTime = WallTime(i64::MIN);

    const LOOK: Look = Look { from: WHOLE, began: ClockTime(0), kept: false, failed: false, resets: false };

    /// Notes a whole look that took no time.
    fn looked(agenda: &mut Agenda, next: WallTime, left: bool, now: ClockTime) {
        agenda.looked(Seen { next, left }, Look { began: now, ..LOOK }, now);
    }

    #[test]
    fn a_stager_looks_at_once_and_then_when_a_row_is_due() {
        let mut agenda = Agenda::default();
        let (now, wall) = (ClockTime(1_000), WallTime(-500));
        assert_eq!(agenda.look_at(agenda.next(), now, wall), Some(now));
        looked(&mut agenda, NEVER, false, now);
        assert_eq!(agenda.look_at(agenda.next(), now, wall), None, "idle means idle");
        assert_eq!(agenda.look_at(WallTime(-600), now, wall), Some(now), "an alarm in the past");
        looked(&mut agenda, WallTime(500), false, now);
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
            looked(&mut agenda, NEVER, true, now);
            delays.push(agenda.look_at(agenda.next(), now, WallTime(0)).unwrap() - now);
        }
        assert_eq!(
            delays.iter().map(|d| d / MILLISECOND).collect::<Vec<_>>(),
            [50, 100, 200, 400, 800, 1000, 1000, 1000, 1000]
        );
        looked(&mut agenda, WallTime(10), true, now);
        assert_eq!(
            agenda.look_at(agenda.next(), now, WallTime(0)),
            Some(ClockTime(17)),
            "others are on time"
        );
        looked(&mut agenda, NEVER, false, now);
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(0)), None);
    }

    #[test]
    fn a_look_begins_where_the_last_one_has_ended() {
        let (mut agenda, now) = (Agenda::default(), ClockTime(7));
        assert_eq!(agenda.look_from(WallTime(3), now), WHOLE, "the first");
        looked(&mut agenda, WallTime(50), true, now);
        assert_eq!(agenda.look_from(NEVER, now), WallTime(50));
        assert_eq!(agenda.look_from(WallTime(30), now), WallTime(30), "a row that was told of");
        assert_eq!(agenda.look_from(WHOLE, now), WHOLE);
        // A look in between does not forget what was left before.
        let again = now + 50 * MILLISECOND;
        agenda.looked(
            Seen { next: NEVER, left: false },
            Look { from: WallTime(50), began: now, ..LOOK },
            now,
        );
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(60)), Some(again));
        assert_eq!(agenda.look_from(NEVER, again), WHOLE);
        looked(&mut agenda, WallTime(70), false, again);
        assert_eq!(agenda.look_from(NEVER, again), WallTime(70));
        assert_eq!(agenda.look_from(NEVER, again + WHOLE_LOOK), WHOLE, "from time to time");
        agenda.looked(
            Seen { next: NEVER, left: true },
            Look { from: WallTime(70), began: again, ..LOOK },
            again,
        );
        assert_eq!(agenda.look_at(NEVER, again, WallTime(80)), Some(again + 50 * MILLISECOND));
        agenda.look_again();
        assert_eq!(
            (agenda.look_at(NEVER, again, WHOLE), agenda.look_from(NEVER, again)),
            (Some(again), WHOLE)
        );
    }

    #[test]
    fn a_stager_rests_after_a_look() {
        let (mut agenda, began) = (Agenda::default(), ClockTime(7));
        for (took, rest) in [(3, 3), (REST + 1, REST)] {
            let now = began + took;
            agenda.looked(Seen { next: WallTime(0), left: false }, Look { began, ..LOOK }, now);
            assert_eq!(agenda.look_at(agenda.next(), now, WallTime(5)), Some(now + rest));
        }
    }

    #[test]
    fn rows_that_a_trigger_keeps_take_a_fifth_of_the_time() {
        let (mut agenda, began) = (Agenda::default(), ClockTime(7));
        let now = began + 1_000 * MILLISECOND;
        agenda.looked(Seen { next: NEVER, left: true }, Look { began, kept: true, ..LOOK }, now);
        assert_eq!(agenda.look_at(NEVER, now, WallTime(0)), Some(now + 4_000 * MILLISECOND));
        agenda.looked(Seen { next: NEVER, left: true }, Look { began, ..LOOK }, now);
        assert_eq!(agenda.look_at(NEVER, now, WallTime(0)), Some(now + 100 * MILLISECOND), "locked rows");
    }

    #[test]
    fn rows_that_a_trigger_makes_due_again_are_no_busy_loop() {
        let (mut agenda, now) = (Agenda::default(), ClockTime(7));
        let mut rests = Vec::new();
        for resets in [true, true, true, true, true, true, true, false] {
            agenda.looked(Seen { next: WallTime(0), left: false }, Look { began: now, resets, ..LOOK }, now);
            rests.push((agenda.look_at(agenda.next(), now, WallTime(5)).unwrap() - now) / MILLISECOND);
        }
        assert_eq!(rests, [50, 100, 200, 400, 800, 1000, 1000, 0]);
    }

    #[test]
    fn rows_that_fail_are_looked_for_after_up_to_five_minutes() {
        let (mut agenda, now) = (Agenda::default(), ClockTime(7));
        let mut delays = Vec::new();
        for _ in 0..10 {
            let look = Look { began: now, kept: true, failed: true, ..LOOK };
            agenda.looked(Seen { next: NEVER, left: true }, look, now);
            delays.push((agenda.look_at(NEVER, now, WallTime(0)).unwrap() - now) / (1_000 * MILLISECOND));
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    }

    #[test]
    fn looks_for_later_jobs_take_a_fifth_of_the_time() {
        let mut a = Announcements::new(false);
        let (began, now) = (ClockTime(0), ClockTime(1_000));
        a.announced(WallTime(10), began, now);
        assert!(
            !a.has_to_look(WallTime(1), now, WallTime(99))
                && a.has_to_look(NEVER, ClockTime(5_000), WallTime(99))
        );
        assert_eq!(a.look_at(WallTime(10), now, WallTime(99)), Some(ClockTime(5_000)));
        assert_eq!(a.look_at(WallTime(10_099), now, WallTime(99)), Some(ClockTime(11_000)));
        assert_eq!(a.look_at(NEVER, now, WallTime(99)), None);
    }

    #[test]
    fn a_locked_table_is_no_busy_loop() {
        let (mut agenda, now) = (Agenda::default(), ClockTime(7));
        for delay in [50, 100, 200] {
            agenda.put_off(now);
            let at = agenda.look_at(WallTime(i64::MIN), now, WallTime(0)).unwrap();
            assert_eq!((at - now) / MILLISECOND, delay, "whatever is due");
        }
        looked(&mut agenda, WallTime(-5), false, now);
        assert_eq!(agenda.look_at(agenda.next(), now, WallTime(0)), Some(now));
    }

    #[test]
    fn each_due_time_is_announced_once_whatever_the_clock_does() {
        let announced = |a: &mut Announcements, next| a.announced(next, ClockTime(0), ClockTime(0));
        let first = Announcements::new(false);
        assert!(first.has_to_look(NEVER, ClockTime(0), WallTime(100)), "once at the start");
        assert_eq!(first.due(NEVER, WallTime(100)), None, "it was there to be fetched, or woken");
        assert_eq!(first.due(WallTime(90), WallTime(100)), Some((WallTime(89), WallTime(100))));
        let mut a = Announcements::new(true);
        assert!(a.has_to_look(NEVER, ClockTime(0), WallTime(100)), "once at the start");
        assert_eq!(a.due(NEVER, WallTime(100)), Some((WallTime(i64::MIN), WallTime(100))), "whatever is due");
        announced(&mut a, NEVER);
        assert!(!a.has_to_look(NEVER, ClockTime(0), WallTime(1_000)), "nobody has told of such rows");
        assert!(a.has_to_look(WallTime(150), ClockTime(0), WallTime(120)));
        assert_eq!(a.due(WallTime(150), WallTime(120)), None);
        announced(&mut a, WallTime(150));
        assert!(
            !a.has_to_look(NEVER, ClockTime(0), WallTime(149))
                && a.has_to_look(NEVER, ClockTime(0), WallTime(150))
        );
        assert_eq!(a.due(NEVER, WallTime(155)), Some((WallTime(149), WallTime(155))));
        assert_eq!(a.due(WallTime(140), WallTime(155)), Some((WallTime(139), WallTime(155))));
        announced(&mut a, NEVER);
        // The clock is set back, and a row is inserted that is due before 155.
        assert_eq!(a.due(WallTime(90), WallTime(50)), None);
        announced(&mut a, WallTime(90));
        assert_eq!(a.due(NEVER, WallTime(90)), Some((WallTime(89), WallTime(90))));
    }
}
