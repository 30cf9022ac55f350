//! What is retried: how often it has failed in a row, when the next attempt is due, and whether the failure
//! is known.

use super::backoff::Backoff;
use super::times::ClockTime;

/// The state of something that is retried after failures. The default is something that never failed.
#[derive(Clone, Debug, Default)]
pub struct Retry {
    /// Failures in a row.
    failures: u32,
    /// The clock reading before which there is no attempt; 0 for none.
    not_before: ClockTime,
    /// What was reported last; empty for nothing.
    reported: String,
}

impl Retry {
    /// How often it has failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The clock reading before which there is no attempt; 0 for none.
    pub fn not_before(&self) -> ClockTime {
        self.not_before
    }

    /// Whether an attempt is due at the clock reading `now`.
    pub fn is_due(&self, now: ClockTime) -> bool {
        self.not_before <= now
    }

    /// Notes a failure at the clock reading `now`. Returns when the next attempt is due.
    pub fn failed(&mut self, now: ClockTime, backoff: Backoff) -> ClockTime {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + backoff.delay(self.failures);
        self.not_before
    }

    /// Has nothing to wait for: the next attempt is due at once. The failures still count.
    pub fn hurry(&mut self) {
        self.not_before = ClockTime::ZERO;
    }

    /// Notes that an attempt has succeeded in part: the next failure is not the first in a row, and has a
    /// short delay.
    pub fn progressed(&mut self) {
        self.failures = self.failures.min(1);
    }

    /// Notes a success. The next attempt is due at the clock reading `not_before`.
    pub fn succeeded(&mut self, not_before: ClockTime) {
        *self = Self { not_before, ..Self::default() };
    }

    /// Notes what is to be reported. False: it was reported last, so that a lasting failure is logged once.
    pub fn reports(&mut self, what: &str) -> bool {
        let is_new = self.reported != what;
        if is_new {
            what.clone_into(&mut self.reported);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::backoff::{ELECTION, MILLISECOND};

    #[test]
    fn delays_grow_until_a_success_and_a_lasting_failure_is_reported_once() {
        let mut retry = Retry::default();
        assert!(retry.is_due(ClockTime(0)) && retry.failures() == 0);
        assert_eq!(retry.failed(ClockTime(1_000), ELECTION), ClockTime(1_000 + 50 * MILLISECOND));
        assert!(!retry.is_due(ClockTime(1_000)) && retry.is_due(ClockTime(51_000)));
        assert!(retry.reports("locked") && !retry.reports("locked") && retry.reports("broken"));
        assert_eq!(retry.failed(ClockTime(0), ELECTION), ClockTime(100 * MILLISECOND));
        retry.hurry();
        assert!(
            retry.is_due(ClockTime(0)) && retry.failures() == 2,
            "it is tried at once, and is a failure all the same"
        );
        retry.progressed();
        assert_eq!(retry.failed(ClockTime(0), ELECTION), ClockTime(100 * MILLISECOND));
        retry.succeeded(ClockTime(7));
        assert_eq!((retry.failures(), retry.not_before()), (0, ClockTime(7)));
        assert!(retry.reports("broken"), "a failure after a success is a new one");
    }
}
