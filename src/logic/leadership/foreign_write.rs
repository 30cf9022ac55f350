//! What nodes that are no members of ours may do to oban_peers: the rules of its triggers.
//!
//! Such a node takes and renews its lease with `INSERT … ON CONFLICT (name) DO UPDATE SET expires_at`, whose
//! row it proposes (its name, its node, its clock's times) before it is known whether there is one already.
//! Three rules make that safe, whatever the node's version:
//!
//! * A row's times are the server's: what an upsert says of its clock is how long its lease is.
//! * A renewal touches the row of the node that proposes it, and no other: nodes before 2.23.1 renew by name
//!   alone, and would hold up another's row for ever. Rows of our members are renewed by their keeper only.
//! * A row changes hands in one way only: an UPDATE that is no upsert sets `node`. It counts as a DELETE and an INSERT.
//!   So the row gets a new term, and waits for fences as a DELETE does. Name, term and boot never change otherwise.
//!
//! What can't be told apart is taken at its word: a DELETE of an unexpired row, by a node that resigns or by one whose
//! clock is fast; and an UPDATE that is no upsert, as nobody knows whose it is.

/// The longest lease that is taken for one, in microseconds: as long as obanrs.lease may be. Times that lie
/// further apart are no lease that was just taken, but, say, a row out of a dump.
pub const MAX_LEASE: i64 = 3_600_000_000;

/// The lease of a row that is inserted: its length by the client's clock, from `now` on by the server's; of what
/// is none the end as it is, but no later than a lease of ours.
pub fn lease_of(started_at: i64, expires_at: i64, now: i64, lease: i64) -> i64 {
    match expires_at.saturating_sub(started_at) {
        length @ 0..=MAX_LEASE => now.saturating_add(length),
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
    pub local: bool,
    pub changes: Changes,
    /// The end of its lease as the statement sets it.
    pub expires_at: i64,
    pub proposed: Option<Proposed>,
}

/// What the statement changes of a row, besides the end of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    Nothing,
    /// Its node, and perhaps its start: the new one by the client's clock.
    Node {
        started_at: Option<i64>,
    },
    /// Its name, term or boot, or its start without its node.
    Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The row stays as it is, and the statement has changed nothing.
    Nothing,
    /// An error: somebody means to change what never changes.
    Refuse,
    /// The lease ends then.
    Renew { expires_at: i64 },
    /// Another node holds the name from now on, with a new term, and its lease ends then.
    HandOver { expires_at: i64 },
}

/// `lease` is how long a lease of a member's is.
pub fn update(update: Update, now: i64, lease: i64) -> Ruling {
    let longest = update.expires_at.min(now.saturating_add(MAX_LEASE));
    match (update.proposed, update.changes) {
        // An upsert that finds another's row has lost: to its node that is no error.
        (Some(proposed), changes) if !proposed.same_node || update.local || changes != Changes::Nothing => {
            Ruling::Nothing
        }
        (Some(proposed), _) => Ruling::Renew { expires_at: proposed.expires_at },
        (None, Changes::Identity) => Ruling::Refuse,
        (None, Changes::Node { started_at: Some(started_at) }) => {
            Ruling::HandOver { expires_at: lease_of(started_at, update.expires_at, now, lease) }
        }
        (None, Changes::Node { started_at: None }) => Ruling::HandOver { expires_at: longest },
        (None, Changes::Nothing) if update.local => Ruling::Nothing,
        (None, Changes::Nothing) => Ruling::Renew { expires_at: longest },
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
        let node = Changes::Node { started_at: None };
        let ask = |local, changes, proposed| {
            update(Update { local, changes, expires_at: HOURS, proposed }, 0, LEASE)
        };
        assert_eq!(ask(false, Changes::Nothing, proposed(true)), Ruling::Renew { expires_at: 7 });
        assert_eq!(ask(false, Changes::Nothing, proposed(false)), Ruling::Nothing, "by name alone");
        assert_eq!(
            ask(true, Changes::Nothing, proposed(true)),
            Ruling::Nothing,
            "a node of the same name as ours"
        );
        assert_eq!(ask(false, node, proposed(false)), Ruling::Nothing, "taking over in place");
        assert_eq!(ask(false, Changes::Nothing, None), Ruling::Renew { expires_at: MAX_LEASE });
        assert_eq!(ask(true, Changes::Nothing, None), Ruling::Nothing);
        assert_eq!(ask(false, Changes::Identity, None), Ruling::Refuse);
        assert_eq!(ask(true, Changes::Identity, None), Ruling::Refuse);
    }

    #[test]
    fn an_update_of_the_node_hands_over() {
        let ask = |started_at, expires_at| {
            let changes = Changes::Node { started_at };
            let answers = [true, false]
                .map(|local| update(Update { local, changes, expires_at, proposed: None }, 100, LEASE));
            assert_eq!(answers[0], answers[1], "whoever held it");
            answers[0]
        };
        let until = |expires_at| Ruling::HandOver { expires_at };
        assert_eq!(ask(None, 100 + LEASE), until(100 + LEASE));
        assert_eq!(ask(None, 50), until(50), "one that is over");
        assert_eq!(ask(None, i64::MAX), until(100 + MAX_LEASE));
        assert_eq!(ask(Some(HOURS), HOURS + LEASE), until(100 + LEASE), "by another clock, as an INSERT");
    }

    proptest! {
        /// Whatever clocks say, nobody gets more than the longest lease, and nobody renews what is not theirs.
        #[test]
        fn nobody_gets_more_than_a_lease(
            started: i64, expires: i64, now in 0..HOURS, local: bool, same: bool, node: bool, starts: bool
        ) {
            prop_assert!(lease_of(started, expires, now, LEASE) <= now + MAX_LEASE);
            let changes = match node {
                true => Changes::Node { started_at: starts.then_some(started) },
                false => Changes::Nothing,
            };
            let proposed = Some(Proposed { same_node: same, expires_at: now + LEASE });
            let answer = update(Update { local, changes, expires_at: expires, proposed }, now, LEASE);
            prop_assert_eq!(answer == Ruling::Nothing, local || !same || node);
            prop_assert!(!matches!(answer, Ruling::HandOver { .. }), "no upsert takes a row over");
            let answer = update(Update { local, changes, expires_at: expires, proposed: None }, now, LEASE);
            match answer {
                Ruling::Renew { expires_at } => prop_assert!(!local && !node && expires_at <= now + MAX_LEASE),
                Ruling::HandOver { expires_at } => prop_assert!(node && expires_at <= now + MAX_LEASE),
                answer => prop_assert_eq!((answer, local, node), (Ruling::Nothing, true, false)),
            }
        }
    }
}
