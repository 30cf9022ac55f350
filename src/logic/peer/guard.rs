//! What nodes that are no members of ours may do to oban_peers: the rules of its triggers.
//!
//! Such a node takes and renews its lease with `INSERT … ON CONFLICT (name) DO UPDATE SET expires_at`, whose
//! row it proposes (its name, its node, its clock's times) before it is known whether there is one already.
//! Three rules make that safe, whatever the node's version:
//!
//! * A row's times are the server's: what an upsert says of its clock is how long its lease is.
//! * A renewal touches the row of the node that proposes it, and no other: nodes before 2.23.1 renew by name
//!   alone, and would hold up another's row for ever. Rows of our members are renewed by their keeper only.
//! * Holder and term of a row never change. A new holder deletes and inserts.
//!
//! What can't be told apart is taken at its word: a DELETE of an unexpired row, by a node that resigns or by one whose
//! clock is fast; and an UPDATE that is no upsert, as nobody knows whose it is.

/// The longest lease that is taken for one, in microseconds: as long as obanrs.lease may be. Times that lie
/// further apart are no lease that was just taken, but, say, a row out of a dump.
pub const LONGEST: i64 = 3_600_000_000;

/// The lease of a row that is inserted: its length by the client's clock, from `now` on by the server's; of what
/// is none the end as it is, but no later than a lease of ours.
pub fn lease_of(started_at: i64, expires_at: i64, now: i64, lease: i64) -> i64 {
    match expires_at.saturating_sub(started_at) {
        length @ 0..=LONGEST => now.saturating_add(length),
        _ => expires_at.min(now.saturating_add(lease)),
    }
}

/// What the same statement proposed to insert before it came to update: an upsert.
#[derive(Clone, Copy, Debug)]
pub struct Proposed {
    /// The row that is updated is one of the proposed node.
    pub same_node: bool,
    /// The end of its lease, by the server's clock.
    pub expires_at: i64,
}

/// The update of a row by somebody who is no keeper.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// The row is of a member of ours.
    pub ours: bool,
    /// Its name, node, start or term would change.
    pub changes_holder: bool,
    /// The end of its lease as the statement sets it.
    pub expires_at: i64,
    pub proposed: Option<Proposed>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The row stays as it is, and the statement has changed nothing.
    Nothing,
    /// An error: somebody means to change what never changes.
    Refuse,
    /// The lease ends then.
    Renew { expires_at: i64 },
}

pub fn update(update: Update, now: i64) -> Answer {
    match update.proposed {
        // An upsert that finds another's row has lost: to its node that is no error.
        Some(proposed) if !proposed.same_node || update.ours || update.changes_holder => Answer::Nothing,
        Some(proposed) => Answer::Renew { expires_at: proposed.expires_at },
        None if update.changes_holder => Answer::Refuse,
        None if update.ours => Answer::Nothing,
        None => Answer::Renew { expires_at: update.expires_at.min(now.saturating_add(LONGEST)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000;
    const LEASE: i64 = 30 * SECOND;
    const HOURS: i64 = 5 * 3_600 * SECOND;

    #[test]
    fn a_clients_clock_says_how_long_not_when() {
        for off in [-HOURS, 0, HOURS] {
            assert_eq!(lease_of(off, off + LEASE, 100, LEASE), 100 + LEASE);
        }
        assert_eq!(lease_of(0, 30 * 24 * HOURS, 100, LEASE), 100 + LEASE, "no lease is that long");
        assert_eq!(lease_of(-30 * 24 * HOURS, 50, 100, LEASE), 50, "out of a dump: it stays expired");
        assert_eq!(lease_of(50, 40, 100, LEASE), 40);
    }

    #[test]
    fn upserts_renew_their_own_row_only() {
        let proposed = |same_node| Some(Proposed { same_node, expires_at: 7 });
        let ask = |ours, changes_holder, proposed| {
            update(Update { ours, changes_holder, expires_at: HOURS, proposed }, 0)
        };
        assert_eq!(ask(false, false, proposed(true)), Answer::Renew { expires_at: 7 });
        assert_eq!(ask(false, false, proposed(false)), Answer::Nothing, "by name alone");
        assert_eq!(ask(true, false, proposed(true)), Answer::Nothing, "a node of the same name as ours");
        assert_eq!(ask(false, true, proposed(false)), Answer::Nothing, "taking over in place");
        assert_eq!(ask(false, false, None), Answer::Renew { expires_at: LONGEST });
        assert_eq!(ask(true, false, None), Answer::Nothing);
        assert_eq!(ask(false, true, None), Answer::Refuse);
        assert_eq!(ask(true, true, None), Answer::Refuse);
    }

    proptest! {
        /// Whatever clocks say, nobody gets more than the longest lease, and nobody renews what is not theirs.
        #[test]
        fn nobody_gets_more_than_a_lease(started: i64, expires: i64, now in 0..HOURS, ours: bool, same: bool) {
            prop_assert!(lease_of(started, expires, now, LEASE) <= now + LONGEST);
            let proposed = Some(Proposed { same_node: same, expires_at: now + LEASE });
            let answer = update(Update { ours, changes_holder: false, expires_at: expires, proposed }, now);
            prop_assert_eq!(answer == Answer::Nothing, ours || !same);
            if let Answer::Renew { expires_at } =
                update(Update { ours: false, changes_holder: false, expires_at: expires, proposed: None }, now)
            {
                prop_assert!(expires_at <= now + LONGEST);
            }
        }
    }
}
