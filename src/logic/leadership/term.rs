//! Terms: the numbers of leaderships. A term is a fencing token, so terms only rise. They rise from
//! leader to leader, over restarts and promotions, and over a DROP and a CREATE of the extension.

use super::super::ids::Term;

/// Returns the least term that a timeline may give. A promoted standby may have missed the last
/// value of the sequence, but its timeline is new, so its terms are above all earlier ones. (Eight
/// million promotions fit. After those only the sequence keeps terms rising.)
pub fn least_term(timeline: u32) -> Term {
    Term((i64::from(timeline.min(0x7f_ffff)) << 40) | 1)
}

/// Returns the least value for the next term, if a row of `oban_peers` has the term `seen`. An
/// extension that was dropped and created has a sequence that begins anew. The table's owner can
/// write any term, and must not be able to use up the terms of the whole database. So a term that
/// no sequence of this timeline can have given is ignored.
pub fn next_term(timeline: u32, seen: Term) -> Term {
    let first = least_term(timeline);
    if seen < least_term(timeline.saturating_add(1)) {
        first.max(Term(seen.0.saturating_add(1)))
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_of_a_later_timeline_are_greater() {
        assert_eq!(least_term(1), Term((1 << 40) + 1));
        assert!(least_term(2).0 > least_term(1).0 + 1_000_000_000);
        assert!(least_term(u32::MAX) > Term(0));
        let first = least_term(3);
        assert_eq!((next_term(3, Term(0)), next_term(3, Term(first.0 + 9))), (first, Term(first.0 + 10)));
        assert_eq!(next_term(3, Term(least_term(2).0 + 5)), first, "from before a promotion");
        assert_eq!((next_term(3, least_term(4)), next_term(3, Term(i64::MAX))), (first, first), "forged");
        assert_eq!(next_term(3, Term(-1)), first);
    }
}
