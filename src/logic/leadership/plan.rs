//! Reading the tables of members and seats: which member leads, and what the keeper has to do.

use super::super::ids::{DatabaseOid, MemberId, SchemaOid, TableOid, Term};
use super::super::times::ClockTime;
use super::{Electorate, Leadership, Lease, Member, Node, RowIdentity, Seat};

/// A member that can be elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The id of the member.
    pub member: MemberId,
    /// The slot of the member.
    pub slot: u32,
    /// The node that the member stands for.
    pub node: Node,
    /// The end of the member's lease, which its row must not outlast. `None`: the member is bound
    /// to its session.
    pub lease_ends: Option<ClockTime>,
}

impl Candidate {
    fn of((slot, member): (usize, &Member)) -> Self {
        Self { member: member.id, slot: slot as u32, node: member.node, lease_ends: member.lease_ends() }
    }
}

/// A local leadership that is over, so that its row is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The node in the row.
    pub node: Node,
    /// The term of the row.
    pub term: Term,
    /// Whether the leadership ended because a lease was not renewed in time.
    pub lapsed: bool,
}

/// What the keeper has to do for an electorate now.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// Forget the copy of the row: there is no candidate and no local leadership. From now on the
    /// sweep looks after the row.
    Forget,
    /// Do nothing before this clock reading; `i64::MAX` is never.
    Wait { until: ClockTime },
    /// Extend the leader's row of this term, because the leader lives. `recheck`: half of the lease
    /// is not over yet, but the row may have changed or shows wrong times, or no trigger tells of
    /// its changes.
    Renew { leader: Candidate, term: Term, recheck: bool },
    /// Delete the row of the leadership that ended, and elect the candidate, in one transaction.
    Elect { ended: Option<Ended>, candidate: Option<Candidate> },
}

/// A table of which memory has copies of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopiedTable {
    pub table: TableOid,
    pub schema: SchemaOid,
    /// The table has the triggers that tell of changes.
    pub guarded: bool,
}

/// An electorate that has candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contested {
    pub electorate: Electorate,
    /// Memory has a copy of the electorate's row.
    pub has_copy: bool,
    /// False: the electorate has had a candidate but no leader for longer than the `moment` of
    /// `contested`.
    pub is_led: bool,
}

/// A live member, with its electorate.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    pub electorate: Electorate,
    pub member: Member,
    /// The member leads.
    pub leads: bool,
}

/// A leadership of which memory has a copy.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    pub electorate: Electorate,
    pub node: Node,
    pub term: Term,
}

/// An electorate and its plan.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned {
    pub electorate: Electorate,
    pub plan: Plan,
    /// Whether a backend waits to be told of an election.
    pub waiting: bool,
}

/// What shared memory knows of an electorate before a step of the keeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// The seat's `changes`: `Leaderships::record` refuses a step that began before another change.
    pub changes: u32,
    /// The greatest term of the electorate that shared memory knows.
    pub greatest_term: Term,
    /// The lease in the copy of the row; `None` without a copy.
    pub copy: Option<Lease>,
}

/// The tables of members and seats, to read them. The lock Leaderships is held at least shared as
/// long as this struct exists.
#[derive(Clone, Copy)]
pub struct LeadershipsView<'a> {
    /// The slots for members.
    pub members: &'a [Member],
    /// The slots for electorates.
    pub seats: &'a [Seat],
}

impl<'a> LeadershipsView<'a> {
    /// Returns a plan for each electorate of a database. `lease` is the length of a lease, in
    /// microseconds.
    pub fn plans(&self, database: DatabaseOid, now: ClockTime, lease: i64) -> Vec<Planned> {
        // One walk over the members serves all seats: there may be a thousand of each.
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.seats.len()];
        for (slot, member) in self.members.iter().enumerate().filter(|(_, m)| m.is_live(now)) {
            if let Some(of_seat) = members.get_mut(member.seat as usize) {
                of_seat.push(slot);
            }
        }
        let own = (0..self.seats.len())
            .filter(|s| !database.is_none() && self.seats[*s].electorate.database == database);
        own.map(|seat| {
            let of_seat = || members[seat].iter().map(|slot| (*slot, &self.members[*slot]));
            Planned {
                electorate: self.seats[seat].electorate,
                plan: self.plan_of(seat, of_seat(), now, lease),
                waiting: of_seat().any(|(_, m)| m.considered == 0),
            }
        })
        .collect()
    }

    /// Returns the basis of a step for an electorate. All values are 0 or `None` without a seat.
    pub fn basis(&self, electorate: &Electorate) -> Basis {
        let seat = self.seat(electorate).map(|seat| &self.seats[seat]);
        seat.map_or_else(Basis::default, |seat| {
            let copy = Some(seat.leadership).filter(|l| l.used != 0).map(|l| l.lease);
            Basis { changes: seat.changes, greatest_term: seat.greatest_term, copy }
        })
    }

    /// Returns whether the leadership that a row shows holds at `now`. `None`: memory has no copy
    /// of this row. A foreign row that was renewed since is another row; a member's row is not.
    pub fn holds(&self, electorate: &Electorate, row: RowIdentity, now: ClockTime) -> Option<bool> {
        let number = self.seat(electorate)?;
        let copy = &self.seats[number].leadership;
        let lease = &copy.lease;
        let is_copied = if copy.is_local() {
            (lease.term, lease.started_at) == (row.term, row.started_at)
        } else {
            lease.is_of(row)
        };
        (copy.used != 0 && is_copied)
            .then(|| if copy.is_local() { self.held(number, now).is_some() } else { now < lease.deadline })
    }

    /// Returns the tables of a database of which memory has copies of rows.
    pub fn tables(&self, database: DatabaseOid) -> Vec<CopiedTable> {
        let own = self.seats.iter().filter(|s| !database.is_none() && s.electorate.database == database);
        let mut tables: Vec<_> = own
            .filter(|s| s.leadership.used != 0)
            .map(|s| CopiedTable {
                table: s.leadership.lease.table,
                schema: s.electorate.schema,
                guarded: s.leadership.lease.guarded,
            })
            .collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Returns whether a slot has this member, and the member lives at `now`.
    pub fn has_live(&self, slot: usize, id: MemberId, now: ClockTime) -> bool {
        self.members.get(slot).is_some_and(|member| member.id == id && member.is_live(now))
    }

    /// Returns the slot and the id of the member that stands for a node in a schema, of any name. `None`:
    /// no member does.
    pub fn any_member_of_node(
        &self,
        place: (DatabaseOid, SchemaOid),
        node: &str,
        now: ClockTime,
    ) -> Option<(usize, MemberId)> {
        let is_own = |m: &&(usize, &Member)| m.1.node.as_str() == node && self.is_in(m.1, place);
        let live = self.members.iter().enumerate().filter(|(_, m)| m.is_live(now));
        live.filter(|m| is_own(&m)).map(|(slot, m)| (slot, m.id)).next()
    }

    /// Returns the nodes of the members of a schema that live at `now`.
    pub fn live_nodes(
        &self,
        place: (DatabaseOid, SchemaOid),
        now: ClockTime,
    ) -> impl Iterator<Item = &'a str> {
        let view = *self;
        let live = self.members.iter().filter(move |m| m.is_live(now) && view.is_in(m, place));
        live.map(|m| m.node.as_str())
    }

    fn is_in(&self, member: &Member, (database, schema): (DatabaseOid, SchemaOid)) -> bool {
        let seat = self.seats.get(member.seat as usize).map(|seat| &seat.electorate);
        seat.is_some_and(|electorate| (electorate.database, electorate.schema) == (database, schema))
    }

    /// Returns the databases that have electorates.
    pub fn databases(&self) -> Vec<DatabaseOid> {
        let mut databases: Vec<DatabaseOid> =
            self.seats.iter().map(|s| s.electorate.database).filter(|oid| !oid.is_none()).collect();
        databases.sort_unstable();
        databases.dedup();
        databases
    }

    /// Returns the schemas of a database's electorates.
    pub fn schemas(&self, database: DatabaseOid) -> Vec<SchemaOid> {
        let own = self.seats.iter().filter(|s| !database.is_none() && s.electorate.database == database);
        let mut schemas: Vec<SchemaOid> = own.map(|s| s.electorate.schema).collect();
        schemas.sort_unstable();
        schemas.dedup();
        schemas
    }

    /// Returns what the keeper has to do for `electorate` at `now`. `lease` is the length of a
    /// lease, in microseconds.
    pub fn plan(&self, electorate: &Electorate, now: ClockTime, lease: i64) -> Plan {
        match self.seat(electorate) {
            Some(seat) => self.plan_of(seat, self.live(seat, now), now, lease),
            None => Plan::Forget,
        }
    }

    /// Returns the plan for a seat that has these live members.
    fn plan_of(
        &self,
        number: usize,
        members: impl Iterator<Item = (usize, &'a Member)>,
        now: ClockTime,
        lease: i64,
    ) -> Plan {
        let seat = &self.seats[number];
        // A member that resigned gives others one lease's time to take over, foreign nodes too.
        let stands_again = seat.resigned_at.saturating_add(lease);
        let (mut candidate, mut has_members, mut candidates) = (None::<(usize, &Member)>, false, false);
        for (slot, member) in members {
            has_members = true;
            if !member.is_candidate() {
                continue;
            }
            candidates = true;
            let stands = member.id != seat.resigned || now >= stands_again;
            let before = |other: &Member| (member.resigned_at, member.id) < (other.resigned_at, other.id);
            if stands && candidate.is_none_or(|(_, best)| before(best)) {
                candidate = Some((slot, member));
            }
        }
        let candidate = candidate.map(Candidate::of);
        let elect = |ended| Plan::Elect { ended, candidate };
        let vacant = || match candidate {
            Some(_) => elect(None),
            None if candidates => Plan::Wait { until: stands_again },
            None if has_members && seat.leadership.used == 0 => Plan::Wait { until: ClockTime::NEVER },
            None => Plan::Forget,
        };
        let leadership = &seat.leadership;
        if leadership.used == 0 {
            return vacant();
        }
        if !leadership.is_local() {
            return match candidates {
                true if now < leadership.look_at => Plan::Wait { until: leadership.look_at },
                _ => vacant(),
            };
        }
        let believed = || {
            // The keeper has not looked at the row for too long. The row may be there all the same.
            let unguarded = !leadership.lease.guarded && leadership.revoked == 0;
            self.leader(leadership, number, now).filter(|_| unguarded)
        };
        // A member that no longer stands for election leads no more.
        let leader = self.holder(leadership, number, now).or_else(believed).filter(|m| m.is_candidate());
        let Some(leader) = leader else {
            // The slot of a member that ended keeps the member's id until another member takes the
            // slot.
            let member = self.members.get(leadership.slot as usize).filter(|m| m.id == leadership.member);
            let lapsed = now >= leadership.lease.deadline || member.is_some_and(|m| !m.is_live(now));
            let lapsed = leadership.revoked == 0 && lapsed;
            return elect(Some(Ended { node: leadership.node, term: leadership.lease.term, lapsed }));
        };
        let deadline = leadership.lease.deadline;
        let half = |lease: i64| deadline.before(lease / 2);
        let renew_at = match leader.lease_ends() {
            // A row that can't be extended further is looked at as late as a row in a guarded
            // table.
            ends if leadership.look_at < deadline && ends.is_none_or(|ends| ends > deadline) => {
                leadership.look_at
            }
            None => half(lease),
            // The row can't be extended until the member renews its lease. That call wakes the
            // keeper.
            Some(ends) if ends <= deadline && now >= half(leader.lease) => deadline,
            Some(_) => half(leader.lease),
        };
        if now >= renew_at || leadership.recheck != 0 {
            let leader = Candidate::of((leadership.slot as usize, leader));
            let recheck = now < renew_at || !leadership.lease.guarded;
            Plan::Renew { leader, term: leadership.lease.term, recheck }
        } else {
            // A member that joined anew may have a shorter lease than its row.
            Plan::Wait { until: leader.lease_ends().map_or(renew_at, |ends| renew_at.min(ends)) }
        }
    }

    /// Returns the leadership that holds at `now`, and its holder: a live member, within the row's
    /// lease. `None`: the seat has no local leadership that holds.
    pub fn held(&self, seat: usize, now: ClockTime) -> Option<(&'a Leadership, &'a Member)> {
        let leadership = &self.seats[seat].leadership;
        self.holder(leadership, seat, now).map(|holder| (leadership, holder))
    }

    /// Returns the member that holds a leadership at `now`; `None` if the leadership is over or
    /// foreign.
    fn holder(&self, leadership: &Leadership, seat: usize, now: ClockTime) -> Option<&'a Member> {
        let runs = leadership.used != 0 && leadership.revoked == 0 && now < leadership.lease.deadline;
        self.leader(leadership, seat, now).filter(|_| runs)
    }

    /// Returns the member that a local leadership was given to; `None` if that member does not
    /// live.
    pub(super) fn leader(&self, leadership: &Leadership, seat: usize, now: ClockTime) -> Option<&'a Member> {
        let member = self.members.get(leadership.slot as usize)?;
        let is_it = member.id == leadership.member && member.seat as usize == seat;
        (is_it && member.is_live(now)).then_some(member)
    }

    /// Returns whether a local leadership with this term is over, whatever time is left of the
    /// row's lease. The row may still be in the table.
    pub fn is_over(&self, electorate: &Electorate, term: Term, now: ClockTime) -> bool {
        self.seat(electorate).is_some_and(|seat| {
            let leadership = &self.seats[seat].leadership;
            let over = leadership.revoked != 0 || self.leader(leadership, seat, now).is_none();
            leadership.is_local() && leadership.lease.term == term && over
        })
    }

    /// Returns the term that a member holds; `None` if the member does not lead, or does not live.
    pub fn term_of(&self, id: MemberId, now: ClockTime) -> Option<Term> {
        let (_, member) = self.member(id, now)?;
        self.held(member.seat as usize, now).filter(|(l, _)| l.member == id).map(|(l, _)| l.lease.term)
    }

    /// Returns the electorates of a database that have candidates. `moment` is in microseconds.
    pub fn contested(&self, database: DatabaseOid, now: ClockTime, moment: i64) -> Vec<Contested> {
        let own = (0..self.seats.len()).filter(|s| self.seats[*s].electorate.database == database);
        own.filter(|seat| self.live(*seat, now).any(|(_, m)| m.is_candidate()))
            .map(|number| {
                let seat = &self.seats[number];
                let until = seat.leadership.lease.deadline.saturating_add(moment);
                let led = seat.leadership.used != 0 && now < until;
                let stood = |m: &Member| m.is_candidate() && m.joined_at < now.before(moment);
                let waiting = self.live(number, now).any(|(_, m)| stood(m));
                Contested {
                    electorate: seat.electorate,
                    has_copy: seat.leadership.used != 0,
                    is_led: led || !waiting,
                }
            })
            .collect()
    }

    /// Returns the live members of a database.
    pub fn members_of(&self, database: DatabaseOid, now: ClockTime) -> Vec<Membership> {
        let live = self.members.iter().filter(|m| m.is_live(now));
        let own = live.filter(|m| self.electorate(m).database == database);
        let leads = |m: &Member| self.held(m.seat as usize, now).is_some_and(|(l, _)| l.member == m.id);
        own.map(|m| Membership { electorate: *self.electorate(m), member: *m, leads: leads(m) }).collect()
    }

    /// Returns the number of an electorate's seat; `None` if the electorate has no seat.
    pub fn seat(&self, electorate: &Electorate) -> Option<usize> {
        self.seats.iter().position(|s| s.electorate == *electorate)
    }

    /// Does what `seat` does, but tries the seat with the number `hint` first.
    pub fn seat_near(&self, electorate: &Electorate, hint: usize) -> Option<usize> {
        match self.seats.get(hint) {
            Some(seat) if seat.electorate == *electorate => Some(hint),
            _ => self.seat(electorate),
        }
    }

    /// Returns the slot and the live member with this id; `None` if there is no such member.
    pub fn member(&self, id: MemberId, now: ClockTime) -> Option<(usize, &'a Member)> {
        self.members.iter().enumerate().find(|(_, m)| !id.is_none() && m.id == id && m.is_live(now))
    }

    /// Returns the electorate of a member.
    pub fn electorate(&self, member: &Member) -> &'a Electorate {
        &self.seats[member.seat as usize].electorate
    }

    /// Returns whether the keeper has dealt with a member since the member last asked for that.
    /// True as well if the member does not live.
    pub fn is_considered(&self, id: MemberId, now: ClockTime) -> bool {
        self.member(id, now).is_none_or(|(_, m)| m.considered != 0)
    }

    /// Returns the live member of this node, if there is one that stands for election.
    pub fn member_of_node(&self, electorate: &Electorate, node: &str, now: ClockTime) -> Option<Candidate> {
        let seat = self.seat(electorate)?;
        let is_it = |m: &Member| m.is_candidate() && m.node.as_str() == node;
        self.live(seat, now).find(|(_, m)| is_it(m)).map(Candidate::of)
    }

    /// Returns whether elections judge the row of a name: the name has a candidate, or memory has a
    /// copy of the row. False: the sweep judges the row.
    pub fn elects(&self, electorate: &Electorate, now: ClockTime) -> bool {
        self.seat(electorate).is_some_and(|seat| {
            let led = self.seats[seat].leadership.used != 0;
            led || self.live(seat, now).any(|(_, m)| m.is_candidate())
        })
    }

    /// Returns whether a name has a leader, as far as memory knows: a member, or a foreign node.
    pub fn has_leader(&self, electorate: &Electorate, now: ClockTime) -> bool {
        self.seat(electorate).is_some_and(|seat| {
            let leadership = &self.seats[seat].leadership;
            let foreign = leadership.used != 0 && !leadership.is_local() && now < leadership.lease.deadline;
            foreign || self.held(seat, now).is_some()
        })
    }

    /// Returns the leaderships of a schema of which memory has a copy.
    pub fn leaderships(&self, database: DatabaseOid, schema: SchemaOid) -> Vec<Copied> {
        let of_schema = |s: &&Seat| (s.electorate.database, s.electorate.schema) == (database, schema);
        let led = self.seats.iter().filter(of_schema).filter(|s| s.leadership.used != 0);
        led.map(|s| Copied {
            electorate: s.electorate,
            node: s.leadership.node,
            term: s.leadership.lease.term,
        })
        .collect()
    }

    /// Returns the live members of a seat, with their slots.
    pub(super) fn live(
        &self,
        seat: usize,
        now: ClockTime,
    ) -> impl Iterator<Item = (usize, &'a Member)> + use<'a> {
        let members = self.members.iter().enumerate();
        members.filter(move |(_, m)| m.seat as usize == seat && m.is_live(now))
    }
}
