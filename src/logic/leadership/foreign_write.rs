//! What foreign nodes may do to `oban_peers`: the rules of the table's triggers.
//!
//! A foreign node takes and renews its lease with `INSERT ... ON CONFLICT (name) DO UPDATE SET
//! expires_at`, an upsert. The upsert proposes a row (name, node, the times of the node's clock)
//! before the node knows whether the name has a row already. Three rules make that safe, whatever
//! the node's version:
//!
//! * The times of a row are the server's. The times that an upsert proposes say only how long the
//!   lease is.
//! * A renewal touches the row of the node that proposes it, and no other row. Nodes before 2.23.1
//!   renew by name alone, and would extend another node's row for ever. The keeper alone renews the
//!   rows of members.
//! * A row changes hands in one way only: by an UPDATE that is no upsert and sets `node`. Such an
//!   UPDATE counts as a DELETE and an INSERT. So the row gets a new term, and the UPDATE waits for
//!   fences as a DELETE does. Name, term and boot never change otherwise.
//!
//! Two statements are taken at their word, because the trigger can't tell what they mean. One is a
//! DELETE of an unexpired row: its node may resign, or its clock may be fast. The other is an
//! UPDATE that is no upsert: nothing says which node runs it.

use super::super::times::WallTime;

/// The longest span between two times that counts as a lease, in microseconds: as long as
/// obanrs.lease may be. Times that lie further apart are not from a node that has just taken a
/// lease. They may be from a row out of a dump, for instance.
pub const MAX_LEASE: i64 = 3_600_000_000;

/// Returns the end of the lease of a row that is inserted, in microseconds of the server's wall
/// clock. The lease is as long as the client's times say, from `now` on. If those times are no
/// lease, the row keeps its end, but no later than a member's lease from `now` on, which is `lease`
/// long.
pub fn lease_of(started_at: WallTime, expires_at: WallTime, now: WallTime, lease: i64) -> WallTime {
    match expires_at.saturating_sub(started_at) {
        length @ 0..=MAX_LEASE => now.saturating_add(length),
        _ => expires_at.min(now.saturating_add(lease)),
    }
}

/// What an upsert proposed to insert before it came to update.
#[derive(Clone, Copy, Debug)]
pub struct Proposed {
    /// Whether the proposed row and the row to update have the same node.
    pub same_node: bool,
    /// The end of the proposed row's lease, in microseconds of the server's wall clock.
    pub expires_at: WallTime,
}

/// An UPDATE of a row by others than the keeper.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Whether the row is a member's.
    pub local: bool,
    /// What the statement changes besides the end of the lease.
    pub changes: Changes,
    /// The end of the lease as the statement sets it, in microseconds.
    pub expires_at: WallTime,
    /// What the statement proposed to insert. `None`: the statement is no upsert.
    pub proposed: Option<Proposed>,
}

/// What a statement changes of a row, besides the end of the row's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// The statement changes nothing else.
    Nothing,
    /// The statement changes the node. `started_at` is the new start by the client's clock; `None`
    /// if the statement leaves the start as it is.
    Node { started_at: Option<WallTime> },
    /// The statement changes name, term or boot, or changes the start but not the node.
    Identity,
}

/// What becomes of an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The row stays as it is. The statement has changed nothing.
    Nothing,
    /// The statement fails, because it changes what never changes.
    Refuse,
    /// The lease ends at `expires_at`, in microseconds of the server's wall clock.
    Renew { expires_at: WallTime },
    /// Another node holds the name from now on, with a new term. Its lease ends at `expires_at`, in
    /// microseconds of the server's wall clock.
    HandOver { expires_at: WallTime },
}

/// Judges an UPDATE. `now` is the server's wall clock, and `lease` the length of a member's lease,
/// both in microseconds.
pub fn update(update: Update, now: WallTime, lease: i64) -> Ruling {
    let longest = update.expires_at.min(now.saturating_add(MAX_LEASE));
    match (update.proposed, update.changes) {
        // An upsert that finds another node's row has lost. For the upsert's node that is no error.
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
            assert_eq!(
                lease_of(WallTime(off), WallTime(off + LEASE), WallTime(100), LEASE),
                WallTime(100 + LEASE)
            );
        }
        assert_eq!(
            lease_of(WallTime(0), WallTime(30 * 24 * HOURS), WallTime(100), LEASE),
            WallTime(100 + LEASE),
            "no lease is that long"
        );
        assert_eq!(
            lease_of(WallTime(-30 * 24 * HOURS), WallTime(50), WallTime(100), LEASE),
            WallTime(50),
            "out of a dump: it stays expired"
        );
        assert_eq!(lease_of(WallTime(50), WallTime(40), WallTime(100), LEASE), WallTime(40));
    }

    #[test]
    fn upserts_renew_their_own_row_only() {
        let proposed = |same_node| Some(Proposed { same_node, expires_at: WallTime(7) });
        let node = Changes::Node { started_at: None };
        let ask = |local, changes, proposed| {
            update(Update { local, changes, expires_at: WallTime(HOURS), proposed }, WallTime(0), LEASE)
        };
        assert_eq!(ask(false, Changes::Nothing, proposed(true)), Ruling::Renew { expires_at: WallTime(7) });
        assert_eq!(ask(false, Changes::Nothing, proposed(false)), Ruling::Nothing, "by name alone");
        assert_eq!(
            ask(true, Changes::Nothing, proposed(true)),
            Ruling::Nothing,
            "a node of the same name as ours"
        );
        assert_eq!(ask(false, node, proposed(false)), Ruling::Nothing, "taking over in place");
        assert_eq!(ask(false, Changes::Nothing, None), Ruling::Renew { expires_at: WallTime(MAX_LEASE) });
        assert_eq!(ask(true, Changes::Nothing, None), Ruling::Nothing);
        assert_eq!(ask(false, Changes::Identity, None), Ruling::Refuse);
        assert_eq!(ask(true, Changes::Identity, None), Ruling::Refuse);
    }

    #[test]
    fn an_update_of_the_node_hands_over() {
        let ask = |started_at, expires_at| {
            let changes = Changes::Node { started_at };
            let answers = [true, false].map(|local| {
                update(Update { local, changes, expires_at, proposed: None }, WallTime(100), LEASE)
            });
            assert_eq!(answers[0], answers[1], "by any holder");
            answers[0]
        };
        let until = |expires_at| Ruling::HandOver { expires_at };
        assert_eq!(ask(None, WallTime(100 + LEASE)), until(WallTime(100 + LEASE)));
        assert_eq!(ask(None, WallTime(50)), until(WallTime(50)), "one that is over");
        assert_eq!(ask(None, WallTime(i64::MAX)), until(WallTime(100 + MAX_LEASE)));
        assert_eq!(
            ask(Some(WallTime(HOURS)), WallTime(HOURS + LEASE)),
            until(WallTime(100 + LEASE)),
            "by another clock, as an INSERT"
        );
    }

    proptest! {
        /// Whatever clocks say, no row gets more than the longest lease, and no upsert renews
        /// another node's row.
        #[test]
        fn nobody_gets_more_than_a_lease(
            started: i64, expires: i64, now in 0..HOURS, local: bool, same: bool, node: bool, starts: bool
        ) {
            let limit = WallTime(now + MAX_LEASE);
            let (starts_at, expires_at, now_at) = (WallTime(started), WallTime(expires), WallTime(now));
            prop_assert!(lease_of(starts_at, expires_at, now_at, LEASE) <= limit);
            let changes = match node {
                true => Changes::Node { started_at: starts.then_some(starts_at) },
                false => Changes::Nothing,
            };
            let proposed = Some(Proposed { same_node: same, expires_at: WallTime(now + LEASE) });
            let answer = update(Update { local, changes, expires_at, proposed }, now_at, LEASE);
            prop_assert_eq!(answer == Ruling::Nothing, local || !same || node);
            prop_assert!(!matches!(answer, Ruling::HandOver { .. }), "no upsert takes a row over");
            let answer = update(Update { local, changes, expires_at, proposed: None }, now_at, LEASE);
            match answer {
                Ruling::Renew { expires_at } => prop_assert!(!local && !node && expires_at <= limit),
                Ruling::HandOver { expires_at } => prop_assert!(node && expires_at <= limit),
                answer => prop_assert_eq!((answer, local, node), (Ruling::Nothing, true, false)),
            }
        }
    }
}
