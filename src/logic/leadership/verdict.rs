//! What a row of oban_peers means to a keeper that has no copy of it in shared memory.

use super::foreign_write::MAX_LEASE;
use super::term::least_term;
use super::{Candidate, Lease};

/// The column boot of a row whose member has a lease: it outlives a start of the server. A row of a member
/// that is bound to its session has the start that the session belongs to, one of a foreign node NULL.
pub const LEASED: i64 = 0;

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its lease is over, or it is bound to a session that is gone: delete it.
    Void,
    /// Ours, written just before an earlier keeper died, or by a leased member before the server's
    /// restart: this member leads.
    Adopt(Candidate),
    /// The same, but the term is of an earlier timeline, which may have given later ones that this server has
    /// never seen: this member leads, with a new term.
    Reissue(Candidate),
    /// Another node's, or a leased member's that may come back, until it expires.
    Foreign,
}

/// A row as it is judged.
#[derive(Clone, Copy, Debug)]
pub struct JudgedRow {
    /// How long its lease still runs, in microseconds (`time_left`).
    pub left: i64,
    pub term: Option<i64>,
    pub boot: Option<i64>,
}

/// Twice the lease of Oban's nodes, in microseconds: the most that a foreign row is granted that may be from before
/// the server's start.
pub const MAX_FOREIGN_LEASE: i64 = 60_000_000;

/// The wall times of a row, and the time at which it is seen.
#[derive(Clone, Copy, Debug)]
pub struct RowTimes {
    pub term: i64,
    pub boot: Option<i64>,
    /// By the wall clock.
    pub started_at: i64,
    pub expires_at: i64,
}

/// The clocks at one moment, and what they are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The clock that nobody sets.
    pub now: i64,
    /// The wall clock, and what it showed when the server started.
    pub wall: i64,
    pub boot: i64,
    /// The setting obanrs.lease, in microseconds.
    pub lease: i64,
}

/// How long the lease of a row still runs, in microseconds; 0 or less when it is over.
///
/// A row that memory has a copy of has the copy's deadline, whatever the wall clock shows. Any other row is judged by
/// the wall clock, now and never again. A wall clock that was set back would grant it hours, so there is a limit: one
/// lease for a row that a keeper wrote, and for a foreign one what guarded tables allow if it began between the
/// server's start and now, else twice Oban's lease.
pub fn time_left(row: RowTimes, copy: Option<Lease>, clocks: Clocks) -> i64 {
    if let Some(copy) = copy.filter(|copy| copy.is_of(row.term, row.started_at, row.expires_at)) {
        return copy.deadline.saturating_sub(clocks.now);
    }
    let most = match row.boot {
        Some(_) => clocks.lease,
        None if (clocks.boot..=clocks.wall).contains(&row.started_at) => MAX_LEASE,
        None => MAX_FOREIGN_LEASE,
    };
    row.expires_at.saturating_sub(clocks.wall).min(most)
}

/// Judges a row on `timeline`: `boot` is this start of the server, `live` the member that has the row's node.
pub fn judge(row: JudgedRow, boot: i64, timeline: u32, live: Option<Candidate>) -> Verdict {
    if row.left <= 0 {
        return Verdict::Void;
    }
    let (Some(row_boot), Some(term)) = (row.boot, row.term) else { return Verdict::Foreign };
    let leased = live.filter(|m| m.lease_ends.is_some());
    let bound = live.filter(|m| m.lease_ends.is_none());
    match (row_boot, leased, bound) {
        (LEASED, Some(member), _) if term >= least_term(timeline) => Verdict::Adopt(member),
        (LEASED, Some(member), _) => Verdict::Reissue(member),
        (LEASED, None, _) => Verdict::Foreign,
        (of, _, Some(member)) if of == boot => Verdict::Adopt(member),
        _ => Verdict::Void,
    }
}

/// Whether a row may still be led by at all: one of an earlier start's session may not.
pub fn outlives_start(row_boot: Option<i64>, boot: i64) -> bool {
    row_boot.is_none_or(|of| of == LEASED || of == boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_judged_by_lease_boot_and_timeline() {
        let member =
            |lease_ends| Some(Candidate { member: 4, slot: 0, node: Default::default(), lease_ends });
        let (bound, leased) = (member(None), member(Some(99)));
        let term = Some(least_term(2));
        let judged = |left, boot, live| judge(JudgedRow { left, term, boot }, 7, 2, live);
        let adopt = |live: Option<Candidate>| live.map_or(Verdict::Void, Verdict::Adopt);
        assert_eq!(judged(0, None, None), Verdict::Void, "expired");
        assert_eq!(judged(1, None, bound), Verdict::Foreign);
        assert_eq!(judged(1, Some(7), bound), adopt(bound));
        assert_eq!(judged(1, Some(7), leased), Verdict::Void, "another process of the same name");
        assert_eq!(judged(1, Some(7), None), Verdict::Void, "its session is gone");
        assert_eq!(judged(1, Some(6), bound), Verdict::Void, "from before a restart");
        assert_eq!(judged(1, Some(LEASED), None), Verdict::Foreign, "it may come back");
        assert_eq!(judged(1, Some(LEASED), bound), Verdict::Foreign);
        assert_eq!(judged(1, Some(LEASED), leased), adopt(leased));
        assert_eq!(judged(0, Some(LEASED), leased), Verdict::Void);
        let earlier = JudgedRow { left: 1, term: Some(least_term(1)), boot: Some(LEASED) };
        assert_eq!(judge(earlier, 7, 2, leased), leased.map_or(Verdict::Void, Verdict::Reissue));
        assert!(outlives_start(None, 7) && outlives_start(Some(LEASED), 7) && outlives_start(Some(7), 7));
        assert!(!outlives_start(Some(6), 7));
    }

    const SECOND: i64 = 1_000_000;
    const LEASE: i64 = 30 * SECOND;
    const HOUR: i64 = 3_600 * SECOND;

    #[test]
    fn a_row_is_granted_no_more_than_its_length() {
        // The server started an hour before: its clocks show 10 hours and 3 hours.
        let clocks = Clocks { now: 10 * HOUR, wall: 3 * HOUR, boot: 2 * HOUR, lease: LEASE };
        let row = |boot, started_at, expires_at| RowTimes { term: 1, boot, started_at, expires_at };
        let left = |row| time_left(row, None, clocks);
        let ends = |after| 3 * HOUR + after;
        assert_eq!(left(row(None, ends(-SECOND), ends(29 * SECOND))), 29 * SECOND);
        assert_eq!(left(row(None, ends(-SECOND), ends(HOUR / 2))), HOUR / 2, "a long lease of this life");
        assert_eq!(left(row(None, HOUR, ends(HOUR / 2))), MAX_FOREIGN_LEASE, "from before the start");
        assert_eq!(left(row(None, ends(SECOND), ends(HOUR))), MAX_FOREIGN_LEASE, "the clock was set back");
        assert_eq!(left(row(Some(LEASED), HOUR, ends(HOUR))), LEASE);
        assert_eq!(left(row(Some(7), ends(0), ends(LEASE))), LEASE);
        assert!(left(row(None, HOUR, ends(-1))) < 0, "over");

        // Memory knows the row: the wall clock may show what it likes.
        let known = row(None, ends(0), ends(LEASE));
        let copy = Lease {
            table: 9,
            term: 1,
            started_at: ends(0),
            expires_at: ends(LEASE),
            deadline: 0,
            guarded: true,
        };
        for wall in [0, 3 * HOUR, 9 * HOUR] {
            let copy = Lease { deadline: 10 * HOUR + SECOND, ..copy };
            assert_eq!(time_left(known, Some(copy), Clocks { wall, ..clocks }), SECOND);
        }
        let renewed = Lease { expires_at: ends(LEASE) - 1, ..copy };
        assert_eq!(time_left(known, Some(renewed), clocks), LEASE, "renewed since: judged anew");
    }
}
