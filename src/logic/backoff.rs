//! How long to wait after the n-th failure in a row.

pub const MILLISECOND: i64 = 1_000;

/// The first retry of a worker that ended comes at once: one `pg_terminate_backend` should cost
/// milliseconds. From the second failure in a row on the delay doubles, so that a worker that can't
/// start burns two forks a minute, not thousands.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: i64,
    pub max: i64,
}

/// Restarts of a worker. One that ran for `HEALTHY` starts again from no failures.
pub const RESTART: Backoff = Backoff { first: 100 * MILLISECOND, max: 30_000 * MILLISECOND };

/// Restarts of a relay, without which messages wait: half of the time that they wait for one at most.
pub const RESTART_RELAY: Backoff = Backoff { max: super::ring::RELAY_MAY_BE_AWAY / 2, ..RESTART };
pub const HEALTHY: i64 = 5_000 * MILLISECOND;

/// Looks for the extension in a database. What keeps a look out is a lock on a catalog, which may be long.
pub const LOOK: Backoff = Backoff { first: 500 * MILLISECOND, max: 30_000 * MILLISECOND };

/// Elections of one prefix whose table is locked, missing or broken.
pub const ELECTION: Backoff = Backoff { first: 50 * MILLISECOND, max: 5_000 * MILLISECOND };

/// Announcements that wait for room in NOTIFY's queue.
pub const ANNOUNCEMENT: Backoff = Backoff { first: 50 * MILLISECOND, max: 1_000 * MILLISECOND };

/// Transactions of a relay that fail, as NOTIFY's queue or the disk is full.
pub const RELAY: Backoff = Backoff { first: 50 * MILLISECOND, max: 5_000 * MILLISECOND };

impl Backoff {
    /// The delay in microseconds after `failures` failures in a row.
    pub fn delay(&self, failures: u32) -> i64 {
        match failures {
            0 => 0,
            n => self.first.saturating_mul(1 << (n - 1).min(30)).min(self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_doubling_up_to_the_most() {
        let delays: Vec<i64> = (0..12).map(|n| RESTART.delay(n) / MILLISECOND).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(RESTART.delay(u32::MAX), RESTART.max);
        assert!(RESTART_RELAY.delay(u32::MAX) < super::super::ring::RELAY_MAY_BE_AWAY);
    }
}
