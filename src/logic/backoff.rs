//! How long to wait after the n-th failure in a row. Times are in microseconds.

pub const MILLISECOND: i64 = 1_000;

/// The delays before retries. A worker that ended is retried at once the first time, because one
/// `pg_terminate_backend` should cost only milliseconds. From the second failure in a row on the
/// delay doubles. So a worker that can't start costs two forks a minute, not thousands.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// What `delay` returns after one failure.
    pub first: i64,
    /// The longest delay that `delay` returns.
    pub max: i64,
}

/// Restarts of a worker. A worker that ran for `HEALTHY` starts again from no failures.
pub const RESTART: Backoff = Backoff { first: 100 * MILLISECOND, max: 30_000 * MILLISECOND };

/// Restarts of a relay. Messages wait without a relay for at most `RELAY_MAY_BE_AWAY`; the longest
/// delay is half of that.
pub const RESTART_RELAY: Backoff = Backoff { max: super::ring::RELAY_MAY_BE_AWAY / 2, ..RESTART };
/// How long a worker has to run before it ends, so that its next failure counts as the first.
pub const HEALTHY: i64 = 5_000 * MILLISECOND;

/// Looks for the extension in a database. A lock on a catalog keeps a look out, perhaps for long.
pub const LOOK: Backoff = Backoff { first: 500 * MILLISECOND, max: 30_000 * MILLISECOND };

/// Elections and sweeps that fail or meet a held row, and all those of a prefix whose table is
/// locked or has an obstacle. A missing table has no delay: each later pass tries it again.
pub const ELECTION: Backoff = Backoff { first: 50 * MILLISECOND, max: 5_000 * MILLISECOND };

/// Steps of a prefix's own business that took longer than a step may take. Each attempt holds up the
/// elections of all prefixes for that long.
pub const TOO_LONG: Backoff = Backoff { first: 5_000 * MILLISECOND, max: 60_000 * MILLISECOND };

/// Announcements of leaders that wait for room in NOTIFY's queue.
pub const ANNOUNCEMENT: Backoff = Backoff { first: 50 * MILLISECOND, max: 1_000 * MILLISECOND };

/// Transactions of a relay that fail because NOTIFY's queue or the disk is full.
pub const RELAY: Backoff = Backoff { first: 50 * MILLISECOND, max: 5_000 * MILLISECOND };

/// A keeper's transactions that send stranded messages in a relay's place.
pub const STRANDED: Backoff = Backoff { first: 50 * MILLISECOND, max: 1_000 * MILLISECOND };

impl Backoff {
    /// Returns the delay in microseconds after `failures` failures in a row.
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
