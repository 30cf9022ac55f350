//! Terms: the numbers of leaderships. A term is a fencing token, so terms only rise: over leaders, restarts,
//! promotions, and over an extension that is dropped and created again.

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
