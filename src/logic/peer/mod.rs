//! Members, and who of them leads: the tables that shared memory holds and the rules over them.
//!
//! An *electorate* is what has one leader: (database, prefix, instance name). Its members are
//! processes that joined; its leadership is a copy of its row in `<prefix>.oban_peers`. The row is
//! the truth between nodes of every kind, the copy answers `oban_is_leader` without touching a table.
//!
//! ```text
//!                    elected (row committed)
//!   vacant ───────────────────────────────────────▶ ours ──▶ renewed at half the lease, and so on
//!     ▲  │                                           │
//!     │  └── the row is another node's ──▶ foreign   ├── its member went: the row is deleted, `down`
//!     │                                      │       │   is sent and the next member elected, in one
//!     └──────── expired or deleted ◀─────────┘       │   transaction
//!     └──────────── the row is no longer ours ◀──────┘
//! ```
//!
//! Order, so that there are never two leaders: a leadership *begins* or is *renewed* in the table
//! first and here after its commit; it *ends* here first (the member's exit removes the member) and
//! in the table after. A keeper that dies between the two leaves a row of ours that nobody here
//! knows of: `judge` adopts it when its member still lives and voids it otherwise.

use super::text::Text;

/// Longest instance name, node name and prefix in bytes. A prefix is a schema's name (NAMEDATALEN - 1);
/// the others are texts in Oban, whose real values are module names and host names.
pub const MAX_NAME: usize = 127;
pub const MAX_NODE: usize = 255;
pub const MAX_PREFIX: usize = 63;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    pub database: u32,
    pub prefix: Text<MAX_PREFIX>,
    pub name: Text<MAX_NAME>,
}

/// A process that joined. `id` 0 is a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Member {
    /// Never given twice, not over a restart of the server either.
    pub id: i64,
    pub electorate: Electorate,
    pub node: Text<MAX_NODE>,
    /// The role that joined it, and that alone (with its members) may end it.
    pub role: u32,
    /// The backend it is bound to.
    pub pid: i32,
    pub procno: i32,
    /// 1 once the keeper has held an election with this member in it; `oban_join` waits for it.
    pub considered: u32,
    pub joined_at: i64,
}

/// The copy of one row of oban_peers. `used` 0 is a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Leadership {
    pub used: u32,
    pub electorate: Electorate,
    /// The leading member, or 0 when the row is another node's.
    pub member: i64,
    pub node: Text<MAX_NODE>,
    /// 0 when the row has none (a foreign node wrote it).
    pub term: i64,
    pub started_at: i64,
    /// Of a foreign row: when to look at it again, at its end at the latest.
    pub expires_at: i64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// A live member of this node and name: its id, its backend and the role that joined it.
    Taken { member: i64, pid: i32, role: u32 },
    /// Every slot is in use.
    Full,
}

/// What the keeper has to do for an electorate now.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// No member and no leadership of ours: forget it.
    Forget,
    /// Nothing before this time.
    Wait { until: i64 },
    /// The leader lives and half of its lease is over.
    Renew { node: Text<MAX_NODE>, term: i64 },
    /// One transaction: delete the row of a leadership that ended, elect the candidate.
    Elect { ended: Option<(Text<MAX_NODE>, i64)>, candidate: Option<(i64, Text<MAX_NODE>)> },
}

/// The two tables of shared memory. Whoever has this holds their lock.
pub struct Peers<'a> {
    pub members: &'a mut [Member],
    pub leaderships: &'a mut [Leadership],
}

/// The two tables for readers. Whoever has this holds their lock shared.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub members: &'a [Member],
    pub leaderships: &'a [Leadership],
}

impl Peers<'_> {
    pub fn view(&self) -> View<'_> {
        View { members: self.members, leaderships: self.leaderships }
    }

    /// Adds `new`. The same backend joining again gets the id it has. `replace` is the one member
    /// whose place may be taken: the caller has tested that its role allows that.
    pub fn join(&mut self, new: Member, replace: Option<i64>) -> Result<i64, JoinError> {
        let same = |m: &&mut Member| m.id != 0 && m.electorate == new.electorate && m.node == new.node;
        if let Some(old) = self.members.iter_mut().find(same) {
            if old.pid == new.pid {
                return Ok(old.id);
            }
            if replace != Some(old.id) {
                return Err(JoinError::Taken { member: old.id, pid: old.pid, role: old.role });
            }
            *old = new;
            return Ok(new.id);
        }
        let slot = self.members.iter_mut().find(|m| m.id == 0).ok_or(JoinError::Full)?;
        *slot = new;
        Ok(new.id)
    }

    /// Ends a membership; its leadership, if any, has ended with it.
    pub fn leave(&mut self, id: i64) -> Option<Member> {
        let slot = self.members.iter_mut().find(|m| id != 0 && m.id == id)?;
        Some(std::mem::take(slot))
    }

    /// Notes what the table says after a commit: a row of a member of ours, or of a foreign node.
    pub fn record(&mut self, row: Leadership) {
        let known = self.leaderships.iter().position(|l| l.used != 0 && l.electorate == row.electorate);
        let slot = known.or_else(|| self.leaderships.iter().position(|l| l.used == 0));
        // There are as many leaderships as members, and each has a member or is forgotten at the
        // keeper's next pass; without room the electorate is simply planned anew.
        if let Some(slot) = slot {
            self.leaderships[slot] = Leadership { used: 1, ..row };
        }
    }

    /// Notes that the electorate has no leader that we know of.
    pub fn vacate(&mut self, electorate: &Electorate) {
        for l in self.leaderships.iter_mut().filter(|l| l.used != 0 && l.electorate == *electorate) {
            *l = Leadership::default();
        }
    }

    /// Marks the electorate's members as having been through an election; the backends to wake.
    pub fn mark_considered(&mut self, electorate: &Electorate) -> Vec<i32> {
        let waiting = |m: &&mut Member| m.id != 0 && m.considered == 0 && m.electorate == *electorate;
        self.members
            .iter_mut()
            .filter(waiting)
            .map(|m| {
                m.considered = 1;
                m.procno
            })
            .collect()
    }

    /// Forgets who joined in a database before that time: it or its extension was dropped.
    pub fn forget_database(&mut self, database: u32, before: i64) {
        let gone = |m: &&mut Member| m.electorate.database == database && m.joined_at < before;
        for m in self.members.iter_mut().filter(gone) {
            *m = Member::default();
        }
        for l in self.leaderships.iter_mut().filter(|l| l.electorate.database == database) {
            *l = Leadership::default();
        }
    }
}

impl View<'_> {
    /// The electorates of a database that a keeper has to look after.
    pub fn electorates(&self, database: u32) -> Vec<Electorate> {
        let mut found: Vec<Electorate> = Vec::new();
        let members = self.members.iter().filter(|m| m.id != 0).map(|m| m.electorate);
        let led = self.leaderships.iter().filter(|l| l.used != 0).map(|l| l.electorate);
        for electorate in members.chain(led).filter(|e| e.database == database) {
            if !found.contains(&electorate) {
                found.push(electorate);
            }
        }
        found
    }

    /// What is to be done for `electorate` at `now`, with leases of `lease` microseconds.
    pub fn plan(&self, electorate: &Electorate, now: i64, lease: i64) -> Plan {
        let candidate = self.candidate(electorate).map(|m| (m.id, m.node));
        let Some(leadership) = self.leadership(electorate) else {
            return match candidate {
                None => Plan::Forget,
                some => Plan::Elect { ended: None, candidate: some },
            };
        };
        if leadership.member == 0 {
            return match candidate {
                None => Plan::Forget,
                _ if now < leadership.expires_at => Plan::Wait { until: leadership.expires_at },
                some => Plan::Elect { ended: None, candidate: some },
            };
        }
        if !self.is_member(leadership.member, electorate) || now >= leadership.expires_at {
            let ended = Some((leadership.node, leadership.term));
            return Plan::Elect { ended, candidate };
        }
        let renew_at = leadership.expires_at.saturating_sub(lease / 2);
        if now >= renew_at {
            Plan::Renew { node: leadership.node, term: leadership.term }
        } else {
            Plan::Wait { until: renew_at }
        }
    }

    /// The leadership that holds at `now`: of a member of ours that lives, within its lease.
    pub fn held(&self, electorate: &Electorate, now: i64) -> Option<&Leadership> {
        self.leadership(electorate).filter(|l| now < l.expires_at && self.is_member(l.member, electorate))
    }

    pub fn leadership(&self, electorate: &Electorate) -> Option<&Leadership> {
        self.leaderships.iter().find(|l| l.used != 0 && l.electorate == *electorate)
    }

    pub fn member(&self, id: i64) -> Option<&Member> {
        self.members.iter().find(|m| id != 0 && m.id == id)
    }

    /// The live member of this node, if any.
    pub fn member_of_node(&self, electorate: &Electorate, node: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.id != 0 && m.electorate == *electorate && m.node.as_str() == node)
    }

    fn is_member(&self, id: i64, electorate: &Electorate) -> bool {
        self.member(id).is_some_and(|m| m.electorate == *electorate)
    }

    /// Who would lead next: the member that joined first.
    fn candidate(&self, electorate: &Electorate) -> Option<&Member> {
        self.members.iter().filter(|m| m.id != 0 && m.electorate == *electorate).min_by_key(|m| m.id)
    }
}

/// What a row of oban_peers means to a keeper that does not hold it as its own.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its lease is over, or it is bound to a session that is gone: delete it.
    Void,
    /// Ours, written just before an earlier keeper of this server died: this member leads.
    Adopt { member: i64 },
    /// Another node's until then.
    Foreign { until: i64 },
}

/// Judges a row: `row_boot` is its column boot (NULL for rows of foreign nodes), `boot` this start
/// of the server, `live` the member of ours that has the row's node.
pub fn judge(expires_at: i64, row_boot: Option<i64>, boot: i64, live: Option<i64>, now: i64) -> Verdict {
    if expires_at <= now {
        return Verdict::Void;
    }
    match (row_boot, live) {
        (None, _) => Verdict::Foreign { until: expires_at },
        (Some(b), Some(member)) if b == boot => Verdict::Adopt { member },
        (Some(_), _) => Verdict::Void,
    }
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
    use proptest::prelude::*;

    const LEASE: i64 = 30_000_000;

    fn electorate(name: &str) -> Electorate {
        Electorate { database: 5, prefix: Text::truncated("public"), name: Text::truncated(name) }
    }

    fn member(id: i64, pid: i32, node: &str) -> Member {
        let node = Text::truncated(node);
        Member { id, electorate: electorate("Oban"), node, pid, procno: pid, ..Member::default() }
    }

    fn row(member: i64, node: &str, term: i64, now: i64) -> Leadership {
        Leadership {
            used: 1,
            electorate: electorate("Oban"),
            member,
            node: Text::truncated(node),
            term,
            started_at: now,
            expires_at: now + LEASE,
        }
    }

    struct Memory(Vec<Member>, Vec<Leadership>);

    impl Memory {
        fn new(capacity: usize) -> Self {
            Self(vec![Member::default(); capacity], vec![Leadership::default(); capacity])
        }
        fn peers(&mut self) -> Peers<'_> {
            Peers { members: &mut self.0, leaderships: &mut self.1 }
        }
    }

    #[test]
    fn one_member_per_node_and_name() {
        let mut memory = Memory::new(2);
        let mut peers = memory.peers();
        assert_eq!(peers.join(member(1, 10, "a"), None), Ok(1));
        assert_eq!(peers.join(member(2, 10, "a"), None), Ok(1), "the same session: the same id");
        let taken = Err(JoinError::Taken { member: 1, pid: 10, role: 0 });
        assert_eq!(peers.join(member(3, 11, "a"), None), taken);
        assert_eq!(peers.join(member(3, 11, "a"), Some(9)), taken, "another one by now");
        assert_eq!(peers.join(member(4, 11, "a"), Some(1)), Ok(4));
        assert!(peers.view().member(1).is_none(), "replaced");
        assert_eq!(peers.join(member(5, 12, "b"), None), Ok(5));
        assert_eq!(peers.join(member(6, 13, "c"), None), Err(JoinError::Full));
        assert_eq!(peers.leave(4).map(|m| m.id), Some(4));
        assert!(peers.leave(4).is_none() && peers.leave(0).is_none());
        assert_eq!(peers.join(member(6, 13, "c"), None), Ok(6));
    }

    #[test]
    fn a_leadership_from_election_to_succession() {
        let (mut memory, e) = (Memory::new(4), electorate("Oban"));
        let mut peers = memory.peers();
        assert_eq!(peers.view().plan(&e, 0, LEASE), Plan::Forget);
        peers.join(member(1, 10, "a"), None).unwrap();
        peers.join(member(2, 11, "b"), None).unwrap();
        let first = Some((1, Text::truncated("a")));
        assert_eq!(peers.view().plan(&e, 0, LEASE), Plan::Elect { ended: None, candidate: first });
        peers.record(row(1, "a", 7, 0));
        assert_eq!(peers.mark_considered(&e), [10, 11]);
        assert!(peers.mark_considered(&e).is_empty());
        assert_eq!(peers.view().plan(&e, 0, LEASE), Plan::Wait { until: LEASE / 2 });
        let renew = Plan::Renew { node: Text::truncated("a"), term: 7 };
        assert_eq!(peers.view().plan(&e, LEASE / 2, LEASE), renew);
        assert_eq!(peers.view().held(&e, LEASE - 1).map(|l| l.term), Some(7));
        assert!(peers.view().held(&e, LEASE).is_none(), "true only within the lease");

        peers.leave(1);
        assert!(peers.view().held(&e, 1).is_none(), "gone with its member");
        let ended = Some((Text::truncated("a"), 7));
        let next = Some((2, Text::truncated("b")));
        assert_eq!(peers.view().plan(&e, 1, LEASE), Plan::Elect { ended, candidate: next });
        peers.leave(2);
        assert_eq!(peers.view().plan(&e, 1, LEASE), Plan::Elect { ended, candidate: None });
        peers.vacate(&e);
        assert_eq!(peers.view().plan(&e, 1, LEASE), Plan::Forget);
        assert!(peers.view().electorates(5).is_empty());
    }

    #[test]
    fn a_foreign_leader_is_respected_until_it_expires() {
        let (mut memory, e) = (Memory::new(2), electorate("Oban"));
        let mut peers = memory.peers();
        peers.join(member(1, 10, "a"), None).unwrap();
        peers.record(row(0, "elixir", 0, 0));
        assert_eq!(peers.view().plan(&e, 5, LEASE), Plan::Wait { until: LEASE });
        assert!(peers.view().held(&e, 5).is_none());
        let candidate = Some((1, Text::truncated("a")));
        assert_eq!(peers.view().plan(&e, LEASE, LEASE), Plan::Elect { ended: None, candidate });
    }

    #[test]
    fn databases_are_apart() {
        let mut memory = Memory::new(2);
        let mut peers = memory.peers();
        peers.join(member(1, 10, "a"), None).unwrap();
        assert!(peers.view().electorates(6).is_empty());
        peers.forget_database(6, 1);
        peers.forget_database(5, 0);
        assert_eq!(peers.view().electorates(5), [electorate("Oban")]);
        peers.forget_database(5, 1);
        assert!(peers.view().electorates(5).is_empty());
    }

    #[test]
    fn rows_are_judged_by_lease_and_boot() {
        assert_eq!(judge(10, None, 1, None, 10), Verdict::Void, "expired");
        assert_eq!(judge(11, None, 1, Some(4), 10), Verdict::Foreign { until: 11 });
        assert_eq!(judge(11, Some(1), 1, Some(4), 10), Verdict::Adopt { member: 4 });
        assert_eq!(judge(11, Some(1), 1, None, 10), Verdict::Void, "its session is gone");
        assert_eq!(judge(11, Some(0), 1, Some(4), 10), Verdict::Void, "from before a restart");
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

    proptest! {
        /// A keeper that always acts on `plan` against one table row: whatever joins, leaves and
        /// time does, the copy never names a leader that the row does not, and terms only rise.
        #[test]
        fn the_copy_never_runs_ahead_of_the_row(steps in prop::collection::vec((0u8..5, 1i64..5), 1..80)) {
            let (mut memory, e) = (Memory::new(4), electorate("Oban"));
            let (mut now, mut term, mut row_in_table) = (0i64, 0i64, None::<Leadership>);
            let mut peers = memory.peers();
            let mut next_id = 100;
            for (what, which) in steps {
                match what {
                    0 => { next_id += 1; let _ = peers.join(member(next_id, which as i32, &format!("n{which}")), None); }
                    1 => { let gone = peers.members.iter().find(|m| m.pid == which as i32).map(|m| m.id); peers.leave(gone.unwrap_or(0)); }
                    2 => now += which * LEASE / 3,
                    3 => row_in_table = row_in_table.filter(|_| which != 1),      // somebody deletes it
                    _ => match peers.view().plan(&e, now, LEASE) {
                        Plan::Renew { term: t, .. } => match row_in_table.as_mut().filter(|r| r.term == t) {
                            Some(r) => { r.expires_at = now + LEASE; let copy = *r; peers.record(copy); }
                            None => peers.vacate(&e),
                        },
                        Plan::Elect { ended, candidate } => {
                            row_in_table = row_in_table.filter(|r| ended.is_none_or(|(_, t)| r.term != t) && r.expires_at > now);
                            peers.vacate(&e);
                            if let (None, Some((id, node))) = (row_in_table, candidate) {
                                prop_assert!(peers.view().member(id).is_some());
                                term += 1;
                                row_in_table = Some(Leadership { node, ..row(id, "", term, now) });
                                peers.record(row_in_table.unwrap());
                            }
                        }
                        Plan::Wait { until } => prop_assert!(until > now),
                        Plan::Forget => peers.vacate(&e),
                    },
                }
                if let (Some(held), Some(in_table)) = (peers.view().held(&e, now), row_in_table) {
                    prop_assert!(held.term <= in_table.term || in_table.term == 0);
                    prop_assert!(held.expires_at <= in_table.expires_at || held.term != in_table.term);
                    prop_assert!(peers.view().member(held.member).is_some());
                }
            }
        }
    }
}
