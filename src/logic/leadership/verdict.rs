//! What a row of `oban_peers` means to a keeper that has no copy of the row in shared memory.

use super::super::ids::Term;
use super::super::times::{ClockTime, WallTime};
use super::foreign_write::MAX_LEASE;
use super::term::least_term;
use super::{Candidate, Lease, RowIdentity};

/// The value of the column boot in a row whose member has a lease: the row outlives a restart of
/// the server. The row of a session-bound member has the boot in which its session began. The row
/// of a foreign node has NULL.
pub const LEASED: i64 = 0;

/// What becomes of a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The keeper deletes the row: its lease is over, or it belongs to a session that is gone.
    Void,
    /// This member leads with the row. An earlier keeper wrote the row just before it died, or the
    /// member has a lease and the row is from before a restart of the server.
    Adopt(Candidate),
    /// This member leads, but with a new term. The row would be adopted, but its term is of an
    /// earlier timeline, which may have given later terms that this server has never seen.
    Reissue(Candidate),
    /// The row counts until it expires. It belongs to a foreign node, or to a leased member that
    /// may come back.
    Foreign,
}

/// A row, as far as `judge` asks for it.
#[derive(Clone, Copy, Debug)]
pub struct JudgedRow {
    /// How long the lease of the row still runs, in microseconds (`time_left`); 0 or less if it is
    /// over.
    pub left: i64,
    /// The term of the row, if it has one.
    pub term: Option<Term>,
    /// The column boot of the row. `None`: the row is a foreign node's.
    pub boot: Option<i64>,
}

/// Twice the lease of Oban's nodes, in microseconds. A foreign row that may be from before the
/// server's start is granted no more.
pub const MAX_FOREIGN_LEASE: i64 = 60_000_000;

/// What `time_left` has to know of a row.
#[derive(Clone, Copy, Debug)]
pub struct RowTimes {
    pub identity: RowIdentity,
    /// The row's column boot. NULL is `None`, for a foreign row.
    pub boot: Option<i64>,
}

/// The clocks at one moment, and what rows are compared with. All are microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The reading of `pg::clock`, which nobody can set.
    pub now: ClockTime,
    /// The wall time.
    pub wall: WallTime,
    /// The wall time at which the server started.
    pub boot: WallTime,
    /// The setting obanrs.lease.
    pub lease: i64,
}

/// Returns how long the lease of a row still runs, in microseconds; 0 or less if the lease is over.
///
/// If `copy` is a copy of the row, the deadline in the copy counts, whatever the wall clock shows.
/// Any other row is judged by the wall clock, once. A wall clock that was set back would grant such
/// a row hours, so there is a limit:
///
/// * A row that a keeper wrote is granted one lease.
/// * A foreign row that began between the server's start and now is granted what guarded tables
///   allow.
/// * Any other foreign row is granted twice the lease of Oban's nodes.
pub fn time_left(row: RowTimes, copy: Option<Lease>, clocks: Clocks) -> i64 {
    if let Some(copy) = copy.filter(|copy| copy.is_of(row.identity)) {
        return copy.deadline.saturating_sub(clocks.now);
    }
    let most = match row.boot {
        Some(_) => clocks.lease,
        None if (clocks.boot..=clocks.wall).contains(&row.identity.started_at) => MAX_LEASE,
        None => MAX_FOREIGN_LEASE,
    };
    row.identity.expires_at.saturating_sub(clocks.wall).min(most)
}

/// Judges a row on `timeline`. `boot` is the boot of this server. `live` is the live candidate that
/// has the row's node, if there is one.
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

/// Returns whether a row can still have a leader after a restart of the server. False: the row is
/// of a session of an earlier boot.
pub fn outlives_start(row_boot: Option<i64>, boot: i64) -> bool {
    row_boot.is_none_or(|of| of == LEASED || of == boot)
}

#[cfg(test)]
mod tests {
    use super::super::super::ids::{MemberId, TableOid};
    use super::*;

    #[test]
    fn rows_are_judged_by_lease_boot_and_timeline() {
        let member = |lease_ends| {
            Some(Candidate { member: MemberId(4), slot: 0, node: Default::default(), lease_ends })
        };
        let (bound, leased) = (member(None), member(Some(ClockTime(99))));
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
        // The server started an hour before. Its clocks show 10 hours and 3 hours.
        let clocks = Clocks {
            now: ClockTime(10 * HOUR),
            wall: WallTime(3 * HOUR),
            boot: WallTime(2 * HOUR),
            lease: LEASE,
        };
        let row = |boot, started_at, expires_at| RowTimes {
            identity: RowIdentity { term: Term(1), started_at, expires_at },
            boot,
        };
        let left = |row| time_left(row, None, clocks);
        let ends = |after| 3 * HOUR + after;
        assert_eq!(left(row(None, WallTime(ends(-SECOND)), WallTime(ends(29 * SECOND)))), 29 * SECOND);
        assert_eq!(
            left(row(None, WallTime(ends(-SECOND)), WallTime(ends(HOUR / 2)))),
            HOUR / 2,
            "a long lease of this life"
        );
        assert_eq!(
            left(row(None, WallTime(HOUR), WallTime(ends(HOUR / 2)))),
            MAX_FOREIGN_LEASE,
            "from before the start"
        );
        assert_eq!(
            left(row(None, WallTime(ends(SECOND)), WallTime(ends(HOUR)))),
            MAX_FOREIGN_LEASE,
            "the clock was set back"
        );
        assert_eq!(left(row(Some(LEASED), WallTime(HOUR), WallTime(ends(HOUR)))), LEASE);
        assert_eq!(left(row(Some(7), WallTime(ends(0)), WallTime(ends(LEASE)))), LEASE);
        assert!(left(row(None, WallTime(HOUR), WallTime(ends(-1)))) < 0, "over");

        // Memory has a copy of the row, so the wall clock does not count.
        let known = row(None, WallTime(ends(0)), WallTime(ends(LEASE)));
        let copy = Lease {
            table: TableOid(9),
            term: Term(1),
            started_at: WallTime(ends(0)),
            expires_at: WallTime(ends(LEASE)),
            deadline: ClockTime(0),
            guarded: true,
        };
        for wall in [0, 3 * HOUR, 9 * HOUR] {
            let copy = Lease { deadline: ClockTime(10 * HOUR + SECOND), ..copy };
            assert_eq!(time_left(known, Some(copy), Clocks { wall: WallTime(wall), ..clocks }), SECOND);
        }
        let renewed = Lease { expires_at: WallTime(ends(LEASE) - 1), ..copy };
        assert_eq!(time_left(known, Some(renewed), clocks), LEASE, "renewed since: judged anew");
    }
}
