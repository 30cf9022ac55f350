//! What a row of oban_peers means to a keeper that does not know it as its own, and what terms rows get.

use super::Candidate;

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
pub struct Row {
    pub expires_at: i64,
    pub term: Option<i64>,
    pub boot: Option<i64>,
}

/// Judges a row at `now` on `timeline`: `boot` is this start of the server, `live` the member of ours that
/// has the row's node.
pub fn judge(row: Row, boot: i64, timeline: u32, live: Option<Candidate>, now: i64) -> Verdict {
    if row.expires_at <= now {
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

/// The least term that a timeline may give: a promoted standby may have missed the last value of
/// the sequence, but its timeline is new, so its terms are above all earlier ones. (Eight million
/// promotions fit; after that the sequence alone has to do.)
pub fn least_term(timeline: u32) -> i64 {
    (i64::from(timeline.min(0x7f_ffff)) << 40) | 1
}

/// The least that the next term may be, after `seen` in a row of oban_peers: an extension that was
/// dropped and created has a sequence that begins anew. Rows are their table's owner's, who must not be
/// able to use up the terms of the whole database: what no sequence of this timeline gave is ignored.
pub fn next_term(timeline: u32, seen: i64) -> i64 {
    let first = least_term(timeline);
    if seen < least_term(timeline.saturating_add(1)) { first.max(seen.saturating_add(1)) } else { first }
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
        let judged = |expires_at, boot, live| judge(Row { expires_at, term, boot }, 7, 2, live, 10);
        let adopt = |live: Option<Candidate>| live.map_or(Verdict::Void, Verdict::Adopt);
        assert_eq!(judged(10, None, None), Verdict::Void, "expired");
        assert_eq!(judged(11, None, bound), Verdict::Foreign);
        assert_eq!(judged(11, Some(7), bound), adopt(bound));
        assert_eq!(judged(11, Some(7), leased), Verdict::Void, "another process of the same name");
        assert_eq!(judged(11, Some(7), None), Verdict::Void, "its session is gone");
        assert_eq!(judged(11, Some(6), bound), Verdict::Void, "from before a restart");
        assert_eq!(judged(11, Some(LEASED), None), Verdict::Foreign, "it may come back");
        assert_eq!(judged(11, Some(LEASED), bound), Verdict::Foreign);
        assert_eq!(judged(11, Some(LEASED), leased), adopt(leased));
        assert_eq!(judged(10, Some(LEASED), leased), Verdict::Void);
        let earlier = Row { expires_at: 11, term: Some(least_term(1)), boot: Some(LEASED) };
        assert_eq!(judge(earlier, 7, 2, leased, 10), leased.map_or(Verdict::Void, Verdict::Reissue));
        assert!(outlives_start(None, 7) && outlives_start(Some(LEASED), 7) && outlives_start(Some(7), 7));
        assert!(!outlives_start(Some(6), 7));
    }

    #[test]
    fn terms_of_a_later_timeline_are_greater() {
        assert_eq!(least_term(1), (1 << 40) + 1);
        assert!(least_term(2) > least_term(1) + 1_000_000_000);
        assert!(least_term(u32::MAX) > 0);
        let first = least_term(3);
        assert_eq!((next_term(3, 0), next_term(3, first + 9)), (first, first + 10));
        assert_eq!(next_term(3, least_term(2) + 5), first, "from before a promotion");
        assert_eq!((next_term(3, least_term(4)), next_term(3, i64::MAX)), (first, first), "forged");
        assert_eq!(next_term(3, -1), first);
    }
}
