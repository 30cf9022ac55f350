use super::super::ids::{DatabaseOid, MemberId, RoleOid, SchemaOid, TableOid, Term};
use super::super::times::{ClockTime, WallTime};
use super::*;
use proptest::prelude::*;

const LEASE: i64 = 30_000_000;

fn electorate(name: &str) -> Electorate {
    Electorate { database: DatabaseOid(5), schema: SchemaOid(2200), name: Text::truncated(name) }
}

fn joining(id: i64, pid: i32, node: &str, lease: i64) -> Joining {
    let node = Text::truncated(node);
    Joining {
        id: MemberId(id),
        electorate: electorate("Oban"),
        node,
        pid,
        procno: pid,
        lease,
        ..Joining::default()
    }
}

fn bound(id: i64, pid: i32, node: &str) -> Joining {
    joining(id, pid, node, 0)
}

fn candidate(member: i64, slot: u32, node: &str, lease_ends: Option<i64>) -> Candidate {
    Candidate {
        member: MemberId(member),
        slot,
        node: Text::truncated(node),
        lease_ends: lease_ends.map(ClockTime),
    }
}

struct Memory(Vec<Member>, Vec<Seat>, [Vec<Electorate>; 2]);

impl Memory {
    fn new(capacity: usize) -> Self {
        let names = || vec![Electorate::default(); capacity];
        Self(vec![Member::default(); capacity], vec![Seat::default(); capacity], [names(), names()])
    }
    fn peers(&mut self) -> Leaderships<'_> {
        let [unannounced, foreign] = &mut self.2;
        Leaderships { members: &mut self.0, seats: &mut self.1, unannounced, foreign }
    }
}

impl Leaderships<'_> {
    /// Joins, and returns only the id.
    fn joined(&mut self, new: &Joining, replace: Option<MemberId>, now: i64) -> Result<i64, JoinError> {
        self.join(new, replace, ClockTime(now)).map(|joined| joined.id.0)
    }
}

/// The oid of the table that has the rows.
const TABLE: u32 = 99;

/// The guarded table `TABLE` as one of this schema.
fn table_in(schema: u32) -> plan::CopiedTable {
    plan::CopiedTable { table: TableOid(TABLE), schema: SchemaOid(schema), guarded: true }
}

/// Returns a lease from `now` on. The wall clock is an hour ahead.
fn lease(term: i64, now: i64, deadline: i64) -> Lease {
    let wall = |at| at + 3_600_000_000;
    Lease {
        table: TableOid(TABLE),
        term: Term(term),
        started_at: WallTime(wall(now)),
        expires_at: WallTime(wall(deadline)),
        deadline: ClockTime(deadline),
        guarded: true,
    }
}

fn foreign(node: &str, term: i64, now: i64, deadline: i64) -> Leadership {
    Leadership::foreign(Text::truncated(node), lease(term, now, deadline), ClockTime(i64::MAX))
}

/// Elects the candidate of the plan, as the keeper does. The candidate leads from `now` on. Returns
/// for how long there was no leader.
fn elect(peers: &mut Leaderships<'_>, e: &Electorate, term: i64, now: i64) -> Option<i64> {
    let Plan::Elect { candidate: Some(c), .. } = peers.view().plan(e, ClockTime(now), LEASE) else {
        panic!("nobody to elect: {:?}", peers.view().plan(e, ClockTime(now), LEASE))
    };
    let deadline = c.lease_ends.unwrap_or(ClockTime(now + LEASE));
    tell(peers, e, Leadership::local(&c, lease(term, now, deadline.0), ClockTime(now)), now)
}

/// Records a row, as the keeper does after its commit. Returns for how long there was no leader.
fn tell(peers: &mut Leaderships<'_>, e: &Electorate, row: Leadership, now: i64) -> Option<i64> {
    let seen = peers.view().basis(e).changes;
    match peers.record(e, row, seen, ClockTime(now)) {
        Recorded::After { without, .. } => without,
        Recorded::Stale => panic!("nothing happened meanwhile"),
    }
}

fn held(peers: &Leaderships<'_>, e: &Electorate, now: i64) -> Option<i64> {
    let view = peers.view();
    view.seat(e).and_then(|seat| view.held(seat, ClockTime(now))).map(|(l, _)| l.lease.term.0)
}

#[test]
fn zeroed_memory_is_empty() {
    let mut memory = Memory::new(2);
    let peers = memory.peers();
    assert_eq!(peers.view().plan(&electorate("Oban"), ClockTime(0), LEASE), Plan::Forget);
    assert!(
        peers.view().plans(DatabaseOid(5), ClockTime(0), LEASE).is_empty()
            && peers.view().plans(DatabaseOid(0), ClockTime(0), LEASE).is_empty()
    );
    assert!(peers.view().member(MemberId(0), ClockTime(0)).is_none());
}

#[test]
fn one_member_per_node_and_name() {
    let mut memory = Memory::new(2);
    let mut peers = memory.peers();
    assert_eq!(peers.joined(&bound(1, 10, "a"), None, 0), Ok(1));
    assert_eq!(peers.joined(&bound(2, 10, "a"), None, 0), Ok(1), "the same session: the same id");
    let taken = Err(JoinError::Taken { member: MemberId(1), pid: 10, role: RoleOid(0), lease_ends: None });
    assert_eq!(peers.joined(&bound(3, 11, "a"), None, 0), taken);
    assert_eq!(peers.joined(&joining(3, 10, "a", LEASE), None, 0), taken, "the same session, in another way");
    assert_eq!(peers.joined(&bound(3, 11, "a"), Some(MemberId(9)), 0), taken, "another one by now");
    let later = Joining { session_began: WallTime(7), ..bound(3, 10, "a") };
    assert_eq!(peers.joined(&later, None, 0), taken, "a later backend with the same pid");
    assert_eq!(peers.joined(&bound(4, 11, "a"), Some(MemberId(1)), 0), Ok(4));
    assert!(peers.view().member(MemberId(1), ClockTime(0)).is_none(), "replaced");
    assert_eq!(peers.joined(&bound(5, 12, "b"), None, 0), Ok(5));
    assert_eq!(peers.joined(&bound(6, 13, "c"), None, 0), Err(JoinError::Full));
    assert_eq!(
        peers.leave(MemberId(4), ClockTime(0)).map(|(e, m)| (e, m.id)),
        Some((electorate("Oban"), MemberId(4)))
    );
    assert!(
        peers.leave(MemberId(4), ClockTime(0)).is_none() && peers.leave(MemberId(0), ClockTime(0)).is_none()
    );
    assert_eq!(peers.joined(&bound(6, 13, "c"), None, 0), Ok(6));
}

#[test]
fn a_leadership_from_election_to_succession() {
    let (mut memory, e) = (Memory::new(4), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    peers.joined(&bound(2, 11, "b"), None, 0).unwrap();
    let first = Some(candidate(1, 0, "a", None));
    assert_eq!(peers.view().plan(&e, ClockTime(0), LEASE), Plan::Elect { ended: None, candidate: first });
    assert!(peers.view().plans(DatabaseOid(5), ClockTime(0), LEASE)[0].waiting, "a member waits");
    assert_eq!(elect(&mut peers, &e, 7, 0), None, "there was nobody before");
    assert_eq!(peers.mark_considered(&e), [10, 11]);
    assert!(
        peers.mark_considered(&e).is_empty()
            && !peers.view().plans(DatabaseOid(5), ClockTime(0), LEASE)[0].waiting
    );
    assert_eq!(peers.view().plan(&e, ClockTime(0), LEASE), Plan::Wait { until: ClockTime(LEASE / 2) });
    let renew = Plan::Renew { leader: candidate(1, 0, "a", None), term: Term(7), recheck: false };
    assert_eq!(peers.view().plan(&e, ClockTime(LEASE / 2), LEASE), renew);
    assert_eq!(held(&peers, &e, LEASE - 1), Some(7));
    assert_eq!(held(&peers, &e, LEASE), None, "true only within the lease");

    peers.leave(MemberId(1), ClockTime(5));
    assert!(
        held(&peers, &e, 5).is_none() && peers.view().is_over(&e, Term(7), ClockTime(5)),
        "gone with its member"
    );
    let ended = Some(Ended { node: Text::truncated("a"), term: Term(7), lapsed: false });
    let next = Some(candidate(2, 1, "b", None));
    assert_eq!(peers.view().plan(&e, ClockTime(5), LEASE), Plan::Elect { ended, candidate: next });
    assert_eq!(elect(&mut peers, &e, 8, 9), Some(4), "the time without a leader");
    peers.leave(MemberId(2), ClockTime(10));
    let ended = Some(Ended { node: Text::truncated("b"), term: Term(8), lapsed: false });
    assert_eq!(peers.view().plan(&e, ClockTime(10), LEASE), Plan::Elect { ended, candidate: None });
    peers.vacate(&e, ClockTime(10));
    assert_eq!(peers.view().plan(&e, ClockTime(10), LEASE), Plan::Forget);
    assert!(peers.view().plans(DatabaseOid(5), ClockTime(10), LEASE).is_empty(), "the seat is free");
}

#[test]
fn a_lease_ends_membership_and_leadership_at_once() {
    let (mut memory, e) = (Memory::new(1), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&joining(1, 10, "a", 100), None, 0).unwrap();
    elect(&mut peers, &e, 7, 0);
    assert_eq!(
        peers.view().plan(&e, ClockTime(0), LEASE),
        Plan::Wait { until: ClockTime(50) },
        "it may be renewed by then"
    );
    assert_eq!(
        peers.view().plan(&e, ClockTime(60), LEASE),
        Plan::Wait { until: ClockTime(100) },
        "nothing to extend it by"
    );
    assert_eq!(
        peers.renew(MemberId(1), 10, ClockTime(40)),
        Some(Renewed { term: Some(Term(7)), due: false })
    );
    assert_eq!(peers.view().plan(&e, ClockTime(40), LEASE), Plan::Wait { until: ClockTime(50) });
    assert_eq!(peers.renew(MemberId(1), 10, ClockTime(60)), Some(Renewed { term: Some(Term(7)), due: true }));
    let leader = candidate(1, 0, "a", Some(160));
    assert_eq!(
        peers.view().plan(&e, ClockTime(60), LEASE),
        Plan::Renew { leader, term: Term(7), recheck: false }
    );
    assert_eq!(held(&peers, &e, 99), Some(7));
    assert_eq!(held(&peers, &e, 100), None, "the row was not renewed");
    tell(&mut peers, &e, Leadership::local(&leader, lease(7, 0, 160), ClockTime(0)), 70);
    assert_eq!(held(&peers, &e, 159), Some(7));
    assert_eq!(peers.renew(MemberId(2), 10, ClockTime(70)), None);

    let ended = Some(Ended { node: Text::truncated("a"), term: Term(7), lapsed: true });
    assert_eq!(peers.view().plan(&e, ClockTime(160), LEASE), Plan::Elect { ended, candidate: None });
    assert!(
        peers.renew(MemberId(1), 10, ClockTime(160)).is_none()
            && peers.leave(MemberId(1), ClockTime(160)).is_none(),
        "no member any more"
    );
    assert_eq!(peers.joined(&bound(2, 11, "b"), None, 160), Ok(2), "its slot is free");
    assert_eq!(elect(&mut peers, &e, 8, 165), Some(5), "since the lease ended");
    assert_eq!(held(&peers, &e, 165), Some(8));
}

#[test]
fn who_resigns_comes_last() {
    let (mut memory, e) = (Memory::new(3), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    elect(&mut peers, &e, 1, 0);
    assert_eq!(
        (
            peers.resign(MemberId(1), 10, ClockTime(10)),
            peers.resign(MemberId(1), 10, ClockTime(10)),
            peers.resign(MemberId(9), 10, ClockTime(10))
        ),
        (Some(true), Some(false), None)
    );
    assert_eq!(held(&peers, &e, 10), None);
    let ended = Some(Ended { node: Text::truncated("a"), term: Term(1), lapsed: false });
    assert_eq!(peers.view().plan(&e, ClockTime(10), LEASE), Plan::Elect { ended, candidate: None });
    peers.vacate(&e, ClockTime(10));
    assert_eq!(
        peers.view().plan(&e, ClockTime(10), LEASE),
        Plan::Wait { until: ClockTime(10 + LEASE) },
        "it gives others time"
    );
    peers.joined(&bound(2, 11, "b"), None, 11).unwrap();
    elect(&mut peers, &e, 2, 11);
    assert_eq!(peers.resign(MemberId(2), 10, ClockTime(12)), Some(true));
    let Plan::Elect { candidate, .. } = peers.view().plan(&e, ClockTime(12), LEASE) else {
        panic!("nobody leads")
    };
    assert_eq!(candidate.map(|c| c.member), Some(MemberId(1)), "another, though it stepped down before");
    elect(&mut peers, &e, 3, 12);
    peers.leave(MemberId(1), ClockTime(13));
    elect(&mut peers, &e, 4, 13);
    assert_eq!(held(&peers, &e, 13), Some(4), "the one that stepped down, as another member has led since");
    peers.resign(MemberId(2), 10, ClockTime(14));
    peers.vacate(&e, ClockTime(14));
    assert_eq!(peers.view().plan(&e, ClockTime(14), LEASE), Plan::Wait { until: ClockTime(14 + LEASE) });
    elect(&mut peers, &e, 5, 14 + LEASE);
    peers.resign(MemberId(2), 10, ClockTime(15 + LEASE));
    tell(&mut peers, &e, foreign("x", 6, 0, 16 + LEASE), 15 + LEASE);
    elect(&mut peers, &e, 7, 16 + LEASE);
}

#[test]
fn a_foreign_leader_is_respected_until_its_row_changes() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.row_changed(&e, RowChange::Deleted(Term(1)), ClockTime(0)); // without a member the name has no seat
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    let leader = foreign("elixir", 3, 0, LEASE);
    tell(&mut peers, &e, leader, 0);
    assert_eq!(peers.view().plan(&e, ClockTime(5), LEASE), Plan::Wait { until: ClockTime(LEASE) });
    let row = |lease: Lease| {
        let (term, started_at, expires_at) = (lease.term, lease.started_at, lease.expires_at);
        RowIdentity { term, started_at, expires_at }
    };
    assert_eq!(peers.view().holds(&e, row(leader.lease), ClockTime(5)), Some(true));
    assert_eq!(peers.view().holds(&e, row(leader.lease), ClockTime(LEASE)), Some(false));
    assert_eq!(peers.view().holds(&e, row(lease(4, 0, LEASE)), ClockTime(5)), None, "another row");
    assert_eq!(peers.view().holds(&e, row(lease(3, 0, LEASE + 1)), ClockTime(5)), None, "it was renewed");
    let unguarded = Leadership::foreign(leader.node, leader.lease, ClockTime(7));
    tell(&mut peers, &e, unguarded, 0);
    assert_eq!(
        peers.view().plan(&e, ClockTime(5), LEASE),
        Plan::Wait { until: ClockTime(7) },
        "no process tells that it ended"
    );
    tell(&mut peers, &e, leader, 0);
    assert_eq!(held(&peers, &e, 5), None);
    let candidate = Some(candidate(1, 0, "a", None));
    assert_eq!(peers.view().plan(&e, ClockTime(LEASE), LEASE), Plan::Elect { ended: None, candidate });
    peers.row_changed(&e, RowChange::Deleted(Term(3)), ClockTime(7));
    assert_eq!(peers.view().plan(&e, ClockTime(7), LEASE), Plan::Elect { ended: None, candidate });
    assert_eq!(elect(&mut peers, &e, 4, 9), Some(2));
    peers.row_changed(&e, RowChange::Deleted(Term(3)), ClockTime(10));
    peers.row_changed(&e, RowChange::Written(Term(4)), ClockTime(10));
    assert_eq!(held(&peers, &e, 10), Some(4), "another term's row");
    peers.row_changed(&e, RowChange::Deleted(Term(4)), ClockTime(11));
    assert_eq!(held(&peers, &e, 11), None, "over before the deletion commits");
    peers.vacate(&e, ClockTime(11));
    elect(&mut peers, &e, 5, 12);
    peers.rows_truncated(DatabaseOid(5), SchemaOid(2201), ClockTime(13));
    peers.table_gone(DatabaseOid(5), TableOid(TABLE + 1), ClockTime(13));
    peers.table_gone(DatabaseOid(6), TableOid(TABLE), ClockTime(13));
    assert_eq!(held(&peers, &e, 13), Some(5));
    peers.rows_truncated(DatabaseOid(5), SchemaOid(2200), ClockTime(13));
    assert_eq!(held(&peers, &e, 13), None);
    peers.vacate(&e, ClockTime(13));
    elect(&mut peers, &e, 6, 14);
    peers.row_changed(&e, RowChange::Written(Term(7)), ClockTime(15));
    assert_eq!(held(&peers, &e, 15), None, "its successor is there, in another table of that name");
}

/// A backend whose UPDATE changes the node tells of a deletion before the commit. After the commit
/// the backend tells of that deletion again, and of a new row.
#[test]
fn a_hand_over_is_a_deletion_and_a_new_row() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.join(&bound(1, 10, "a"), None, ClockTime(0)).unwrap();
    elect(&mut peers, &e, 3, 0);
    peers.row_changed(&e, RowChange::Deleted(Term(3)), ClockTime(5));
    assert!(held(&peers, &e, 5).is_none() && peers.view().is_over(&e, Term(3), ClockTime(5)));
    for change in [RowChange::Deleted(Term(3)), RowChange::Written(Term(4))] {
        peers.row_changed(&e, change, ClockTime(6));
        assert_eq!(held(&peers, &e, 6), None, "{change:?}");
    }
    let ended = Some(Ended { node: Text::truncated("a"), term: Term(3), lapsed: false });
    let candidate = Some(candidate(1, 0, "a", None));
    assert_eq!(
        peers.view().plan(&e, ClockTime(6), LEASE),
        Plan::Elect { ended, candidate },
        "the keeper reads the row"
    );
    let leader = foreign("x", 4, 6, LEASE);
    assert_eq!(tell(&mut peers, &e, leader, 7), Some(2));
    assert_eq!(
        peers.view().plan(&e, ClockTime(7), LEASE),
        Plan::Wait { until: ClockTime(LEASE) },
        "its deadline is known"
    );
    // Now one foreign node hands over to another.
    for change in [RowChange::Deleted(Term(4)), RowChange::Written(Term(5))] {
        peers.row_changed(&e, change, ClockTime(8));
    }
    assert_eq!(peers.view().plan(&e, ClockTime(8), LEASE), Plan::Elect { ended: None, candidate });
}

#[test]
fn what_may_have_changed_is_read_again_at_once() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    elect(&mut peers, &e, 1, 0);
    peers.require_recheck(DatabaseOid(6), None);
    peers.require_recheck(DatabaseOid(5), Some(TableOid(TABLE + 1)));
    assert_eq!(peers.view().plan(&e, ClockTime(1), LEASE), Plan::Wait { until: ClockTime(LEASE / 2) });
    peers.require_recheck(DatabaseOid(5), Some(TableOid(TABLE)));
    let leader = candidate(1, 0, "a", None);
    assert_eq!(
        peers.view().plan(&e, ClockTime(1), LEASE),
        Plan::Renew { leader, term: Term(1), recheck: true }
    );
    tell(&mut peers, &e, Leadership::local(&leader, lease(1, 0, 1 + LEASE), ClockTime(0)), 1);
    assert_eq!(peers.view().plan(&e, ClockTime(1), LEASE), Plan::Wait { until: ClockTime(1 + LEASE / 2) });
    peers.renew_all(DatabaseOid(6));
    assert_eq!(peers.view().plan(&e, ClockTime(1), LEASE), Plan::Wait { until: ClockTime(1 + LEASE / 2) });
    peers.renew_all(DatabaseOid(5));
    assert_eq!(
        peers.view().plan(&e, ClockTime(1), LEASE),
        Plan::Renew { leader, term: Term(1), recheck: true }
    );
    tell(&mut peers, &e, foreign("x", 2, 0, LEASE), 2);
    peers.renew_all(DatabaseOid(5));
    assert_eq!(peers.view().plan(&e, ClockTime(3), LEASE), Plan::Wait { until: ClockTime(LEASE) });
    peers.require_recheck(DatabaseOid(5), None);
    assert!(matches!(peers.view().plan(&e, ClockTime(3), LEASE), Plan::Elect { ended: None, .. }));
    let copy = peers.view().basis(&e).copy;
    assert_eq!(copy, Some(lease(2, 0, LEASE)), "its deadline is not forgotten");
}

/// A member joins anew with a shorter lease. The keeper does not sleep past the end of that lease.
#[test]
fn a_shorter_lease_counts_at_once() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&joining(1, 10, "a", 1_000), None, 0).unwrap();
    elect(&mut peers, &e, 1, 0);
    assert_eq!(peers.joined(&joining(2, 10, "a", 10), None, 5), Ok(1));
    assert_eq!(peers.view().plan(&e, ClockTime(5), LEASE), Plan::Wait { until: ClockTime(15) });
    let ended = Some(Ended { node: Text::truncated("a"), term: Term(1), lapsed: true });
    assert_eq!(peers.view().plan(&e, ClockTime(15), LEASE), Plan::Elect { ended, candidate: None });
}

/// After a restart all nodes join at once. A member that joins while the keeper reads the member's
/// own row must not be overlooked.
#[test]
fn who_joins_while_the_row_is_read_has_it_judged_anew() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "other"), None, 0).unwrap();
    let seen = peers.view().basis(&e).changes;
    peers.joined(&joining(2, 11, "leased", 1_000), None, 0).unwrap();
    let row = foreign("leased", 7, 0, 1_000);
    assert_eq!(peers.record(&e, row, seen, ClockTime(1)), Recorded::Stale);
}

#[test]
fn seats_of_lapsed_members_are_free_for_others() {
    let mut memory = Memory::new(2);
    let mut peers = memory.peers();
    for (id, name) in [(1, "A"), (2, "B")] {
        let of = Joining { electorate: electorate(name), ..joining(id, 10, "n", 100) };
        peers.joined(&of, None, 0).unwrap();
    }
    let other = Joining { electorate: electorate("C"), ..bound(3, 11, "n") };
    assert_eq!(peers.joined(&other, None, 99), Err(JoinError::Full));
    assert_eq!(peers.joined(&other, None, 100), Ok(3));
    assert_eq!(peers.view().members_of(DatabaseOid(5), ClockTime(0)).len(), 2, "one lapsed, and the new one");
    assert!(
        peers
            .view()
            .members_of(DatabaseOid(5), ClockTime(0))
            .iter()
            .all(|m| (m.member.id == MemberId(3)) == (m.electorate.name.as_str() == "C"))
    );
}

#[test]
fn databases_are_apart() {
    let mut memory = Memory::new(2);
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 1).unwrap();
    assert!(peers.view().plans(DatabaseOid(6), ClockTime(1), LEASE).is_empty());
    peers.forget_database(DatabaseOid(6), ClockTime(2));
    peers.forget_database(DatabaseOid(5), ClockTime(1));
    assert_eq!(peers.view().plans(DatabaseOid(5), ClockTime(1), LEASE).len(), 1);
    peers.forget_database(DatabaseOid(5), ClockTime(2));
    assert!(peers.view().plans(DatabaseOid(5), ClockTime(1), LEASE).is_empty());
}

#[test]
fn what_ended_meanwhile_does_not_begin_again() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    elect(&mut peers, &e, 7, 0);
    let renewed = Leadership::local(&candidate(1, 0, "a", None), lease(7, 0, 2 * LEASE), ClockTime(0));
    let seen = peers.view().basis(&e).changes;
    peers.resign(MemberId(1), 10, ClockTime(5));
    assert_eq!(peers.record(&e, renewed, seen, ClockTime(6)), Recorded::Stale);
    assert_eq!(held(&peers, &e, 6), None, "it had resigned");
    peers.vacate(&e, ClockTime(6));

    // The new row is deleted before the keeper tells of it.
    let seen = peers.view().basis(&e).changes;
    peers.row_changed(&e, RowChange::Deleted(Term(8)), ClockTime(7));
    let new = Leadership { lease: Lease { term: Term(8), ..renewed.lease }, ..renewed };
    assert_eq!(peers.record(&e, new, seen, ClockTime(8)), Recorded::Stale);
    assert_eq!(held(&peers, &e, 8), None);
    assert_eq!(peers.record(&electorate("Other"), renewed, 0, ClockTime(8)), Recorded::Stale, "forgotten");
}

#[test]
fn a_schema_takes_all_of_its_own_along() {
    let (mut memory, e) = (Memory::new(4), electorate("Oban"));
    let mut peers = memory.peers();
    let other = Electorate { schema: SchemaOid(2201), ..e };
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    peers.joined(&Joining { electorate: other, ..bound(2, 11, "a") }, None, 0).unwrap();
    elect(&mut peers, &e, 1, 0);
    elect(&mut peers, &other, 2, 0);
    assert!(peers.add_unannounced(&e) && peers.add_unannounced(&e) && peers.add_unannounced(&other));
    assert_eq!(
        (
            peers.unannounced(DatabaseOid(5)).len(),
            peers.unannounced(DatabaseOid(6)).len(),
            peers.unannounced(DatabaseOid(0)).len()
        ),
        (2, 0, 0)
    );
    assert_eq!(peers.view().schemas(DatabaseOid(5)), [SchemaOid(2200), SchemaOid(2201)]);
    assert_eq!(peers.view().tables(DatabaseOid(5)), [table_in(2200), table_in(2201)]);
    let mut waiting = [0; 2];
    assert_eq!(peers.forget_schema(DatabaseOid(5), SchemaOid(2200), &mut waiting), 1);
    assert_eq!(waiting, [10, 0], "that one still waited for its election");
    assert_eq!(
        (
            peers.forget_schema(DatabaseOid(5), SchemaOid(2200), &mut waiting),
            peers.forget_schema(DatabaseOid(0), SchemaOid(0), &mut waiting)
        ),
        (0, 0)
    );
    assert_eq!((held(&peers, &e, 1), held(&peers, &other, 1)), (None, Some(2)));
    assert!(
        peers.view().member(MemberId(1), ClockTime(1)).is_none()
            && peers.view().member(MemberId(2), ClockTime(1)).is_some()
    );
    assert_eq!(peers.unannounced(DatabaseOid(5)), [other]);
    peers.announced(&other);
    assert!(peers.unannounced(DatabaseOid(5)).is_empty());
}

/// The deadline is that of the renewal, not of the moment at which the keeper happens to look.
#[test]
fn a_foreign_renewal_is_known_at_once() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.foreign_renewed(&e, lease(3, 0, 9)); // no member has joined
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    tell(&mut peers, &e, foreign("elixir", 3, 0, LEASE), 0);
    let later = Lease { expires_at: WallTime(77), ..lease(3, 0, 2 * LEASE) };
    peers.foreign_renewed(&e, Lease { term: Term(4), ..later });
    assert_eq!(
        peers.view().plan(&e, ClockTime(5), LEASE),
        Plan::Wait { until: ClockTime(LEASE) },
        "of another term"
    );
    let seen = peers.view().basis(&e).changes;
    peers.foreign_renewed(&e, later);
    assert_eq!(peers.view().plan(&e, ClockTime(LEASE), LEASE), Plan::Wait { until: ClockTime(2 * LEASE) });
    assert_eq!(peers.view().basis(&e).copy, Some(later));
    assert_eq!(peers.record(&e, foreign("elixir", 3, 0, LEASE), seen, ClockTime(6)), Recorded::Stale);
}

/// If no trigger tells of a row's end, the keeper looks at the row every second.
#[test]
fn a_row_that_nobody_guards_is_believed_for_a_moment() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    for (id, node, of) in [(1, "a", 0), (2, "b", LEASE)] {
        peers.joined(&joining(id, 10, node, of), None, 0).unwrap();
        let c = candidate(id, 0, node, (of != 0).then_some(LEASE));
        let believed = Lease { guarded: false, ..lease(1, 0, UNGUARDED_TRUST) };
        tell(&mut peers, &e, Leadership::local(&c, believed, ClockTime(0)), 0);
        assert_eq!(
            peers.view().plan(&e, ClockTime(0), LEASE),
            Plan::Wait { until: ClockTime(UNGUARDED_TRUST / 2) }
        );
        let renew = Plan::Renew { leader: c, term: Term(1), recheck: true };
        assert_eq!(peers.view().plan(&e, ClockTime(UNGUARDED_TRUST / 2), LEASE), renew);
        assert_eq!(held(&peers, &e, UNGUARDED_TRUST - 1), Some(1));
        assert_eq!(held(&peers, &e, UNGUARDED_TRUST), None);
        assert_eq!(
            peers.view().plan(&e, ClockTime(UNGUARDED_TRUST), LEASE),
            renew,
            "the keeper was late: the row may be there"
        );
        peers.leave(MemberId(id), ClockTime(0));
        peers.vacate(&e, ClockTime(0));
    }
}

/// A member has a short lease in such a table. The keeper does not try again and again to extend
/// what it can't extend.
#[test]
fn a_short_lease_that_nobody_guards_is_no_busy_loop() {
    for (of, ends) in [
        (100, 100),
        (UNGUARDED_TRUST, UNGUARDED_TRUST),
        (3 * UNGUARDED_TRUST, UNGUARDED_TRUST / 4),
        (0, 1_000_000),
    ] {
        let (mut memory, e) = (Memory::new(1), electorate("Oban"));
        let mut peers = memory.peers();
        peers.joined(&joining(1, 10, "a", of), None, ends - of.min(ends)).unwrap();
        let c = candidate(1, 0, "a", (of != 0).then_some(ends));
        for m in peers.members.iter_mut().filter(|_| of != 0) {
            m.lease_ends = ClockTime(ends);
        }
        for now in [0, ends / 2, ends - 1] {
            let most = if of == 0 { now + ends } else { ends };
            let believed = Lease { guarded: false, ..lease(1, 0, most.min(now + UNGUARDED_TRUST)) };
            tell(&mut peers, &e, Leadership::local(&c, believed, ClockTime(now)), now);
            let plan = peers.view().plan(&e, ClockTime(now), LEASE);
            assert!(
                matches!(plan, Plan::Wait { until } if until > ClockTime(now)),
                "{of} {ends} {now}: {plan:?}"
            );
        }
    }
}

/// A table is dropped after the keeper has committed a row in it, and before the keeper tells of
/// the row.
#[test]
fn what_is_told_of_a_table_that_has_gone_is_read_again() {
    let (mut memory, e) = (Memory::new(2), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    let seen = peers.view().basis(&e).changes;
    let row = Leadership::local(&candidate(1, 0, "a", None), lease(7, 0, LEASE), ClockTime(0));
    peers.invalidate_records(DatabaseOid(6), |_| true);
    peers.invalidate_records(DatabaseOid(5), |schema| schema != SchemaOid(2200));
    assert_eq!(peers.view().basis(&e).changes, seen, "of others");
    peers.invalidate_records(DatabaseOid(5), |schema| schema == SchemaOid(2200));
    assert_eq!(peers.record(&e, row, seen, ClockTime(1)), Recorded::Stale);
    tell(&mut peers, &e, row, 2);
    let seen = peers.view().basis(&e).changes;
    peers.invalidate_records(DatabaseOid(5), |schema| schema == SchemaOid(2200));
    assert_eq!(peers.view().basis(&e).changes, seen, "the copy says which table that is");
}

#[test]
fn what_is_to_be_announced_is_bounded() {
    let mut memory = Memory::new(2);
    let mut peers = memory.peers();
    assert!(
        peers.add_unannounced(&electorate("A"))
            && peers.add_unannounced(&electorate("B"))
            && !peers.add_unannounced(&electorate("C"))
    );
    peers.forget_database(DatabaseOid(6), ClockTime(1));
    assert_eq!(peers.unannounced(DatabaseOid(5)).len(), 2);
    peers.forget_database(DatabaseOid(5), ClockTime(1));
    assert!(peers.unannounced(DatabaseOid(5)).is_empty());
}

#[test]
fn a_role_has_its_quota_of_members() {
    let mut memory = Memory::new(6);
    let mut peers = memory.peers();
    let of = |id, node: &str, role, lease| Joining {
        role,
        quota: Some(2),
        ..joining(id, i32::from(node.as_bytes()[0]), node, lease)
    };
    assert_eq!(peers.joined(&of(1, "a", RoleOid(7), 0), None, 0), Ok(1));
    assert_eq!(peers.joined(&of(2, "b", RoleOid(7), 50), None, 0), Ok(2));
    assert_eq!(peers.joined(&of(3, "c", RoleOid(7), 0), None, 0), Err(JoinError::QuotaUsed));
    assert_eq!(peers.joined(&of(3, "a", RoleOid(7), 0), None, 0), Ok(1), "the same member again");
    let later = Joining { session_began: WallTime(1), ..of(4, "a", RoleOid(7), 0) };
    assert_eq!(peers.joined(&later, Some(MemberId(1)), 0), Ok(4), "in place of a member that is its own");
    assert_eq!(peers.joined(&of(5, "c", RoleOid(8), 0), None, 0), Ok(5), "another role");
    assert_eq!(peers.joined(&of(6, "d", RoleOid(7), 0), None, 50), Ok(6), "one has lapsed");
    assert_eq!(peers.joined(&Joining { quota: None, ..of(7, "e", RoleOid(7), 0) }, None, 50), Ok(7));
}

/// One row of the table, as a keeper and foreign nodes see it.
#[derive(Clone, Copy, Debug)]
struct InTable {
    leadership: Leadership,
    /// Whether a transaction fences the row.
    fenced: bool,
}

proptest! {
    /// A keeper acts on `plan` against one row, and tells shared memory some time after its commit.
    /// The keeper may die in between. Meanwhile members join, leave, lapse and resign, and the row
    /// is fenced or deleted. Whatever the order: a leadership that holds in shared memory is in the
    /// table in the same form, terms only rise, and a fenced row stays.
    #[test]
    fn the_copy_never_runs_ahead_of_the_row(steps in prop::collection::vec((0u8..12, 1i64..5), 1..150)) {
        let (mut memory, e) = (Memory::new(3), electorate("Oban"));
        let (mut now, mut last_term, mut row) = (0i64, 0i64, None::<InTable>);
        // What the keeper has committed and not told yet: the row, or that there is no row.
        let mut on_its_way = None::<(Option<Leadership>, u32)>;
        let mut peers = memory.peers();
        let mut next_id = 100;
        for (what, which) in steps {
            let id = peers.members.iter().find(|m| m.pid == which as i32).map_or(0, |m| m.id.0);
            match what {
                0 | 1 => {
                    next_id += 1;
                    let lease = if what == 0 { 0 } else { LEASE / 2 };
                    let new = joining(next_id, which as i32, &format!("n{which}"), lease);
                    let _ = peers.joined(&new, None, now);
                }
                2 => { peers.leave(MemberId(id), ClockTime(now)); }
                3 => { peers.renew(MemberId(id), 0, ClockTime(now)); }
                4 => { peers.resign(MemberId(id), 0, ClockTime(now)); }
                5 => now += which * LEASE / 7,
                6 => if let Some(r) = row.as_mut() { r.fenced = which != 1 },
                // A foreign DELETE, or an UPDATE of the node. The leadership is over in memory
                // before the change is in the table.
                7 => if let Some(r) = row.filter(|r| !r.fenced) {
                    let deleted = RowChange::Deleted(r.leadership.lease.term);
                    peers.row_changed(&e, deleted, ClockTime(now));
                    row = None;
                    if which > 2 {
                        last_term += 1;
                        let leadership = foreign("y", last_term, now, now + LEASE);
                        row = Some(InTable { leadership, fenced: false });
                        peers.row_changed(&e, deleted, ClockTime(now));
                        peers.row_changed(&e, RowChange::Written(Term(last_term)), ClockTime(now));
                    }
                },
                // A foreign node takes a free name.
                8 => if row.is_none() {
                    last_term += 1;
                    let leadership = foreign("x", last_term, now, now + LEASE);
                    row = Some(InTable { leadership, fenced: false });
                    peers.row_changed(&e, RowChange::Written(Term(last_term)), ClockTime(now));
                },
                _ if on_its_way.is_some() => match on_its_way.take() {
                    Some((Some(leadership), seen)) if which != 4 => {
                        peers.record(&e, leadership, seen, ClockTime(now));
                    }
                    Some((None, _)) if which != 4 => { peers.vacate(&e, ClockTime(now)); }
                    _ => {} // the keeper died
                },
                _ => {
                    let seen = peers.view().basis(&e).changes;
                    match peers.view().plan(&e, ClockTime(now), LEASE) {
                        Plan::Wait { until } => prop_assert!(until > ClockTime(now), "a busy loop"),
                        Plan::Forget => { peers.vacate(&e, ClockTime(now)); }
                        Plan::Renew { leader, term, .. } => match &mut row {
                            Some(r) if r.leadership.lease.term == term => {
                                let until = leader.lease_ends.unwrap_or(ClockTime(now + LEASE));
                                let deadline = &mut r.leadership.lease.deadline;
                                prop_assert!(until >= *deadline, "a renewal never shortens");
                                *deadline = until;
                                on_its_way = Some((Some(r.leadership), seen));
                            }
                            _ => on_its_way = Some((None, seen)),
                        },
                        Plan::Elect { ended, candidate } => {
                            let over = |r: &InTable| ended.is_some_and(|x| x.term == r.leadership.lease.term)
                                || r.leadership.lease.deadline <= ClockTime(now);
                            if row.is_some_and(|r| over(&r) && r.fenced) {
                                continue; // until the fence ends
                            }
                            row = row.filter(|r| !over(r));
                            if let Some(r) = row.filter(|r| r.leadership.is_local()) {
                                // A keeper that died left the row: see `verdict::judge`.
                                let member = r.leadership.member;
                                if peers.view().member(member, ClockTime(now)).is_none() && !r.fenced {
                                    row = None;
                                }
                            }
                            let mut new = row.map(|r| r.leadership);
                            if let (None, Some(c)) = (new, candidate) {
                                last_term += 1;
                                let until = c.lease_ends.unwrap_or(ClockTime(now + LEASE));
                                let lease = lease(last_term, now, until.0);
                                new = Some(Leadership::local(&c, lease, ClockTime(now)));
                                row = new.map(|leadership| InTable { leadership, fenced: false });
                            }
                            on_its_way = Some((new, seen));
                        }
                    }
                }
            }
            let view = peers.view();
            if let Some((l, member)) = view.seat(&e).and_then(|seat| view.held(seat, ClockTime(now))) {
                let there = row.map(|r| r.leadership);
                let shown = there.map(|r| (r.lease.term, r.node));
                prop_assert_eq!(shown, Some((l.lease.term, l.node)), "led without a row");
                prop_assert!(there.is_some_and(|r| l.lease.deadline <= r.lease.deadline));
                let (id, term) = (member.id, view.term_of(member.id, ClockTime(now)));
                prop_assert_eq!((id, term), (l.member, Some(l.lease.term)));
                prop_assert!(member.lease_ends().is_none_or(|ends| l.lease.deadline <= ends));
                prop_assert!(l.lease.term <= Term(last_term));
            }
        }
    }
}

#[test]
fn one_node_without_a_lease_for_a_session_and_name() {
    let mut memory = Memory::new(4);
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    let other = Err(JoinError::OtherNode { node: Text::truncated("a") });
    assert_eq!(peers.joined(&bound(2, 10, "b"), None, 0), other);
    let elsewhere = Joining { electorate: electorate("Cron"), ..bound(2, 10, "b") };
    assert_eq!(peers.joined(&elsewhere, None, 0), Ok(2), "another name");
    assert_eq!(peers.joined(&joining(3, 10, "b", LEASE), None, 0), Ok(3), "with a lease");
    assert_eq!(peers.joined(&bound(4, 11, "b"), Some(MemberId(3)), 0), Ok(4), "another session");
    assert_eq!(peers.joined(&bound(5, 10, "b"), Some(MemberId(4)), 0), other, "also in another's place");
    peers.leave(MemberId(1), ClockTime(0));
    assert_eq!(peers.joined(&bound(5, 10, "b"), Some(MemberId(4)), 0), Ok(5));
}

fn observer(id: i64, pid: i32, node: &str) -> Joining {
    Joining { candidate: Some(false), ..bound(id, pid, node) }
}

#[test]
fn observers_never_stand_for_election() {
    let (mut memory, e) = (Memory::new(4), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&observer(1, 10, "a"), None, 0).unwrap();
    assert_eq!(peers.view().plan(&e, ClockTime(0), LEASE), Plan::Wait { until: ClockTime(i64::MAX) });
    assert!(
        !peers.view().elects(&e, ClockTime(0))
            && peers.view().contested(DatabaseOid(5), ClockTime(9_000_000), 2_000_000).is_empty()
    );
    assert_eq!(peers.view().member_of_node(&e, "a", ClockTime(0)), None, "no row is its own");
    assert_eq!(peers.mark_considered(&e), [10]);

    // A candidate is elected although it joined later. No other member can be elected.
    peers.joined(&bound(2, 11, "b"), None, 0).unwrap();
    assert!(peers.view().elects(&e, ClockTime(0)));
    assert_eq!(elect(&mut peers, &e, 7, 0), None);
    peers.leave(MemberId(2), ClockTime(1));
    let ended = Some(Ended { node: Text::truncated("b"), term: Term(7), lapsed: false });
    assert_eq!(peers.view().plan(&e, ClockTime(1), LEASE), Plan::Elect { ended, candidate: None });
    peers.vacate(&e, ClockTime(1));
    assert_eq!(peers.view().plan(&e, ClockTime(1), LEASE), Plan::Wait { until: ClockTime(i64::MAX) });

    // A foreign node's row is left to the sweep.
    tell(&mut peers, &e, foreign("x", 8, 2, 2 + LEASE), 2);
    assert_eq!(peers.view().plan(&e, ClockTime(2), LEASE), Plan::Forget);
    peers.vacate(&e, ClockTime(2));
    assert!(!peers.view().elects(&e, ClockTime(2)) && peers.view().seat(&e).is_some(), "its members stay");
}

#[test]
fn who_stands_for_election_may_change() {
    let (mut memory, e) = (Memory::new(4), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    elect(&mut peers, &e, 7, 0);
    peers.mark_considered(&e);
    let again = peers.join(&bound(9, 10, "a"), None, ClockTime(1));
    assert_eq!(again, Ok(Joined { id: MemberId(1), yields: false, again: true }));
    assert_eq!(held(&peers, &e, 1), Some(7), "what it is stays as it is");
    let down = peers.join(&observer(9, 10, "a"), None, ClockTime(1));
    assert_eq!(down, Ok(Joined { id: MemberId(1), yields: false, again: true }));
    assert_eq!(held(&peers, &e, 1), None);
    assert!(!peers.view().is_considered(MemberId(1), ClockTime(1)), "it waits until its row is gone");
    assert!(matches!(
        peers.view().plan(&e, ClockTime(1), LEASE),
        Plan::Elect { ended: Some(_), candidate: None }
    ));
    peers.vacate(&e, ClockTime(1));
    peers.joined(&bound(9, 10, "a"), None, 2).unwrap();
    assert!(!peers.view().elects(&e, ClockTime(2)), "it said that it observes");
    let up = Joining { candidate: Some(true), ..bound(9, 10, "a") };
    peers.joined(&up, None, 2).unwrap();
    assert_eq!(elect(&mut peers, &e, 8, 3), Some(2), "at once: it says that it is to lead");
}

/// A member becomes an observer while it is elected. Later the keeper is late to look at the
/// member's unguarded row.
#[test]
fn an_observer_is_never_kept_as_leader() {
    let (mut memory, e) = (Memory::new(4), electorate("Oban"));
    let mut peers = memory.peers();
    peers.joined(&bound(1, 10, "a"), None, 0).unwrap();
    let seen = peers.view().basis(&e).changes;
    let Plan::Elect { candidate: Some(c), .. } = peers.view().plan(&e, ClockTime(0), LEASE) else {
        panic!("it stands")
    };
    peers.joined(&observer(9, 10, "a"), None, 1).unwrap();
    let row = Leadership::local(&c, lease(7, 1, 1 + LEASE), ClockTime(1));
    assert_eq!(peers.record(&e, row, seen, ClockTime(1)), Recorded::Stale);
    // The keeper reads the row after all, or believes an unguarded row.
    tell(&mut peers, &e, row, 1);
    let ended = Some(Ended { node: Text::truncated("a"), term: Term(7), lapsed: false });
    assert_eq!(peers.view().plan(&e, ClockTime(1), LEASE), Plan::Elect { ended, candidate: None });
    let believed = Leadership::local(&c, Lease { guarded: false, ..lease(7, 1, 2) }, ClockTime(1));
    tell(&mut peers, &e, believed, 1);
    assert!(matches!(
        peers.view().plan(&e, ClockTime(3), LEASE),
        Plan::Elect { ended: Some(_), candidate: None }
    ));
}

#[test]
fn a_member_yields_where_a_foreign_node_has_led() {
    let (mut memory, e) = (Memory::new(8), electorate("Oban"));
    let mut peers = memory.peers();
    let yields = |joined: Result<Joined, JoinError>| joined.map(|joined| joined.yields);
    assert_eq!(yields(peers.join(&bound(1, 10, "a"), None, ClockTime(0))), Ok(false));
    let seen = Joining { foreign_leads: true, ..bound(2, 11, "b") };
    assert_eq!(yields(peers.join(&seen, None, ClockTime(0))), Ok(true), "its row is there");
    assert_eq!(yields(peers.join(&Joining { candidate: Some(true), ..seen }, None, ClockTime(0))), Ok(false));
    peers.leave(MemberId(2), ClockTime(0));
    peers.foreign_leads(&e);
    assert!(peers.foreign_has_led(&e) && !peers.foreign_has_led(&electorate("Cron")));
    assert_eq!(yields(peers.join(&bound(3, 12, "c"), None, ClockTime(0))), Ok(true), "it has led");
    let asked = Joining { candidate: Some(true), ..bound(4, 13, "d") };
    assert_eq!(yields(peers.join(&asked, None, ClockTime(0))), Ok(false));
    let asked = Joining { candidate: Some(false), ..bound(5, 14, "e") };
    assert_eq!(yields(peers.join(&asked, None, ClockTime(0))), Ok(false), "as it asked for");
    // A candidate that joined earlier yields too, as long as it does not lead.
    assert!(
        peers.yield_if_foreign(MemberId(4), 13, ClockTime(0))
            && !peers.yield_if_foreign(MemberId(4), 13, ClockTime(0))
            && !peers.yield_if_foreign(MemberId(99), 1, ClockTime(0))
    );
    assert_eq!(peers.forget_schema(DatabaseOid(5), SchemaOid(2200), &mut []), 0);
    assert!(!peers.foreign_has_led(&e));
}

proptest! {
    /// Memory knows a foreign name until there are too many, in its schema or in all. Memory knows
    /// no other name.
    #[test]
    fn foreign_names_are_kept_in_their_order(
        notes in proptest::collection::vec((5_u32..8, 0_u32..3, 0_u8..30), 0..200),
    ) {
        const ROOM: usize = 40;
        let mut memory = Memory::new(ROOM);
        let mut peers = memory.peers();
        let mut model: Vec<Electorate> = Vec::new();
        for (database, schema, name) in notes {
            let e = Electorate {
                database: DatabaseOid(database),
                schema: SchemaOid(schema),
                ..electorate(&name.to_string())
            };
            peers.foreign_leads(&e);
            if !model.contains(&e) {
                let of = |schema: Option<SchemaOid>| -> Vec<usize> {
                    let own = |m: &Electorate| {
                        m.database == DatabaseOid(database) && schema.is_none_or(|s| s == m.schema)
                    };
                    (0..model.len()).filter(|n| own(&model[*n])).collect()
                };
                let (of_schema, of_database) = (of(Some(SchemaOid(schema))), of(None));
                if of_schema.len() == FOREIGN_NAMES {
                    model.remove(of_schema[0]);
                } else if model.len() == ROOM {
                    let greedy = of_database.len() > ROOM / 4;
                    model.remove(if greedy { of_database[0] } else { 0 });
                }
                model.push(e);
            }
            prop_assert_eq!(&peers.foreign[..model.len()], &model[..]);
            prop_assert!(peers.foreign[model.len()..].iter().all(|e| e.database == DatabaseOid(0)));
        }
        peers.forget_schema(DatabaseOid(5), SchemaOid(1), &mut []);
        model.retain(|e| (e.database, e.schema) != (DatabaseOid(5), SchemaOid(1)));
        prop_assert_eq!(&peers.foreign[..model.len()], &model[..]);
    }
}
