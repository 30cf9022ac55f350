//! Reading the tables: who leads, and what a keeper has to do.

use super::{Electorate, Leadership, Lease, Member, Node, Seat};

/// Who is to be elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub member: i64,
    pub slot: u32,
    pub node: Node,
    /// The row may not outlast it.
    pub lease_ends: Option<i64>,
}

impl Candidate {
    fn of((slot, member): (usize, &Member)) -> Self {
        Self { member: member.id, slot: slot as u32, node: member.node, lease_ends: member.lease_ends() }
    }
}

/// A leadership of ours that is over, whose row is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub node: Node,
    pub term: i64,
    /// By its lease, which was not renewed.
    pub lapsed: bool,
}

/// What the keeper has to do for an electorate now.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// No candidate and no leadership of ours: forget the copy of the row, which is the sweep's from now on.
    Forget,
    /// Nothing before this time.
    Wait { until: i64 },
    /// The leader lives: extend the row of this term. `recheck`: not because half of its lease is over, but because
    /// the row may have changed, or shows wrong times.
    Renew { leader: Candidate, term: i64, recheck: bool },
    /// One transaction: delete the row of a leadership that ended, elect the candidate.
    Elect { ended: Option<Ended>, candidate: Option<Candidate> },
}

/// The two tables for readers. Whoever has this holds their lock shared.
#[derive(Clone, Copy)]
pub struct LeadershipsView<'a> {
    pub members: &'a [Member],
    pub seats: &'a [Seat],
}

impl<'a> LeadershipsView<'a> {
    /// What is to be done for every electorate of a database, and whether somebody waits to be told of
    /// an election.
    pub fn plans(&self, database: u32, now: i64, lease: i64) -> Vec<(Electorate, Plan, bool)> {
        // One walk over the members for all seats: there may be a thousand of each.
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.seats.len()];
        for (slot, member) in self.members.iter().enumerate().filter(|(_, m)| m.is_live(now)) {
            if let Some(of_seat) = members.get_mut(member.seat as usize) {
                of_seat.push(slot);
            }
        }
        let own =
            (0..self.seats.len()).filter(|s| database != 0 && self.seats[*s].electorate.database == database);
        own.map(|seat| {
            let of_seat = || members[seat].iter().map(|slot| (*slot, &self.members[*slot]));
            let waiting = of_seat().any(|(_, m)| m.considered == 0);
            (self.seats[seat].electorate, self.plan_of(seat, of_seat(), now, lease), waiting)
        })
        .collect()
    }

    /// The `changes` for `Leaderships::record`, the greatest term that is known, and the lease in the copy of the row, if
    /// there is a copy.
    pub fn changes(&self, electorate: &Electorate) -> (u32, i64, Option<Lease>) {
        let seat = self.seat(electorate).map(|seat| &self.seats[seat]);
        seat.map_or((0, 0, None), |seat| {
            let copy = Some(seat.leadership).filter(|l| l.used != 0);
            (seat.changes, seat.greatest_term, copy.map(|l| l.lease))
        })
    }

    /// Whether the leadership that a row shows holds at `now`, by the row's term and its times by the wall clock.
    /// `None` if memory has no copy of that row. A foreign row that was renewed since is another row.
    pub fn holds(&self, electorate: &Electorate, row: (i64, i64, i64), now: i64) -> Option<bool> {
        let number = self.seat(electorate)?;
        let (copy, (term, started_at, expires_at)) = (&self.seats[number].leadership, row);
        let lease = &copy.lease;
        let is_copied = if copy.is_local() {
            (lease.term, lease.started_at) == (term, started_at)
        } else {
            lease.is_of(term, started_at, expires_at)
        };
        (copy.used != 0 && is_copied)
            .then(|| if copy.is_local() { self.held(number, now).is_some() } else { now < lease.deadline })
    }

    /// The tables of a database that memory has copies of rows of, each with its schema, and whether it is guarded.
    pub fn tables(&self, database: u32) -> Vec<(u32, u32, bool)> {
        let own = self.seats.iter().filter(|s| database != 0 && s.electorate.database == database);
        let mut tables: Vec<_> = own
            .filter(|s| s.leadership.used != 0)
            .map(|s| (s.leadership.lease.table, s.electorate.schema, s.leadership.lease.guarded))
            .collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// The databases that have electorates.
    pub fn databases(&self) -> Vec<u32> {
        let mut databases: Vec<u32> =
            self.seats.iter().map(|s| s.electorate.database).filter(|oid| *oid != 0).collect();
        databases.sort_unstable();
        databases.dedup();
        databases
    }

    /// The schemas of a database's electorates.
    pub fn schemas(&self, database: u32) -> Vec<u32> {
        let own = self.seats.iter().filter(|s| database != 0 && s.electorate.database == database);
        let mut schemas: Vec<u32> = own.map(|s| s.electorate.schema).collect();
        schemas.sort_unstable();
        schemas.dedup();
        schemas
    }

    /// What is to be done for `electorate` at `now`, with leases of `lease` microseconds.
    pub fn plan(&self, electorate: &Electorate, now: i64, lease: i64) -> Plan {
        match self.seat(electorate) {
            Some(seat) => self.plan_of(seat, self.live(seat, now), now, lease),
            None => Plan::Forget,
        }
    }

    fn plan_of(
        &self,
        number: usize,
        members: impl Iterator<Item = (usize, &'a Member)>,
        now: i64,
        lease: i64,
    ) -> Plan {
        let seat = &self.seats[number];
        // Who stepped down last gives others time to take over, foreign nodes too: one lease.
        let stands_again = seat.resigned_at.saturating_add(lease);
        let (mut candidate, mut somebody, mut candidates) = (None::<(usize, &Member)>, false, false);
        for (slot, member) in members {
            somebody = true;
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
            None if somebody && seat.leadership.used == 0 => Plan::Wait { until: i64::MAX },
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
            // Nobody has looked at the row for too long: it may be there as ever.
            let unguarded = !leadership.lease.guarded && leadership.ended == 0;
            self.leader(leadership, number, now).filter(|_| unguarded)
        };
        // One that no longer stands for election leads no more.
        let leader = self.holder(leadership, number, now).or_else(believed).filter(|m| m.is_candidate());
        let Some(leader) = leader else {
            // Its slot is its own until somebody else takes it.
            let member = self.members.get(leadership.slot as usize).filter(|m| m.id == leadership.member);
            let lapsed = now >= leadership.lease.deadline || member.is_some_and(|m| !m.is_live(now));
            let lapsed = leadership.ended == 0 && lapsed;
            return elect(Some(Ended { node: leadership.node, term: leadership.lease.term, lapsed }));
        };
        let deadline = leadership.lease.deadline;
        let half = |lease: i64| deadline.saturating_sub(lease / 2);
        let renew_at = match leader.lease_ends() {
            // What can't be extended further is looked at as if it were guarded.
            ends if leadership.look_at < deadline && ends.is_none_or(|ends| ends > deadline) => {
                leadership.look_at
            }
            None => half(lease),
            // Nothing to extend it by until the member renews, which tells from here on.
            Some(ends) if ends <= deadline && now >= half(leader.lease) => deadline,
            Some(_) => half(leader.lease),
        };
        if now >= renew_at || leadership.recheck != 0 {
            let leader = Candidate::of((leadership.slot as usize, leader));
            let recheck = now < renew_at || !leadership.lease.guarded;
            Plan::Renew { leader, term: leadership.lease.term, recheck }
        } else {
            // A lease that was joined anew may be shorter than the row's.
            Plan::Wait { until: leader.lease_ends().map_or(renew_at, |ends| renew_at.min(ends)) }
        }
    }

    /// The leadership that holds at `now`, and its holder: a member of ours that lives, within its lease.
    pub fn held(&self, seat: usize, now: i64) -> Option<(&'a Leadership, &'a Member)> {
        let leadership = &self.seats[seat].leadership;
        self.holder(leadership, seat, now).map(|holder| (leadership, holder))
    }

    /// The member that holds a leadership at `now`.
    fn holder(&self, leadership: &Leadership, seat: usize, now: i64) -> Option<&'a Member> {
        let runs = leadership.used != 0 && leadership.ended == 0 && now < leadership.lease.deadline;
        self.leader(leadership, seat, now).filter(|_| runs)
    }

    /// The member that a leadership of ours was given to, if it still lives.
    pub(super) fn leader(&self, leadership: &Leadership, seat: usize, now: i64) -> Option<&'a Member> {
        let member = self.members.get(leadership.slot as usize)?;
        let is_it = member.id == leadership.member && member.seat as usize == seat;
        (is_it && member.is_live(now)).then_some(member)
    }

    /// Whether a leadership of ours with this term has ended before its lease, though its row may still be
    /// there.
    pub fn is_over(&self, electorate: &Electorate, term: i64, now: i64) -> bool {
        self.seat(electorate).is_some_and(|seat| {
            let leadership = &self.seats[seat].leadership;
            let over = leadership.ended != 0 || self.leader(leadership, seat, now).is_none();
            leadership.is_local() && leadership.lease.term == term && over
        })
    }

    /// The term that this member holds.
    pub fn term_of(&self, id: i64, now: i64) -> Option<i64> {
        let (_, member) = self.member(id, now)?;
        self.held(member.seat as usize, now).filter(|(l, _)| l.member == id).map(|(l, _)| l.lease.term)
    }

    /// The names of a database that have candidates. The first value of each says whether memory has a copy of its row,
    /// the second whether it is led, or is without a leader for less than `moment`.
    pub fn led(&self, database: u32, now: i64, moment: i64) -> Vec<(Electorate, bool, bool)> {
        let own = (0..self.seats.len()).filter(|s| self.seats[*s].electorate.database == database);
        own.filter(|seat| self.live(*seat, now).any(|(_, m)| m.is_candidate()))
            .map(|number| {
                let seat = &self.seats[number];
                let until = seat.leadership.lease.deadline.saturating_add(moment);
                let led = seat.leadership.used != 0 && now < until;
                let stood = |m: &Member| m.is_candidate() && m.joined_at < now - moment;
                let waiting = self.live(number, now).any(|(_, m)| stood(m));
                (seat.electorate, seat.leadership.used != 0, led || !waiting)
            })
            .collect()
    }

    /// The live members of a database, each with its electorate and whether it leads.
    pub fn members_of(&self, database: u32, now: i64) -> Vec<(Electorate, Member, bool)> {
        let live = self.members.iter().filter(|m| m.is_live(now));
        let own = live.filter(|m| self.electorate(m).database == database);
        let leads = |m: &Member| self.held(m.seat as usize, now).is_some_and(|(l, _)| l.member == m.id);
        own.map(|m| (*self.electorate(m), *m, leads(m))).collect()
    }

    pub fn seat(&self, electorate: &Electorate) -> Option<usize> {
        self.seats.iter().position(|s| s.electorate == *electorate)
    }

    /// As `seat`, beginning where it was the last time.
    pub fn seat_near(&self, electorate: &Electorate, hint: usize) -> Option<usize> {
        match self.seats.get(hint) {
            Some(seat) if seat.electorate == *electorate => Some(hint),
            _ => self.seat(electorate),
        }
    }

    /// The member of this id, and its slot.
    pub fn member(&self, id: i64, now: i64) -> Option<(usize, &'a Member)> {
        self.members.iter().enumerate().find(|(_, m)| id != 0 && m.id == id && m.is_live(now))
    }

    pub fn electorate(&self, member: &Member) -> &'a Electorate {
        &self.seats[member.seat as usize].electorate
    }

    /// Whether the keeper has looked at this member, or it is none any more.
    pub fn is_considered(&self, id: i64, now: i64) -> bool {
        self.member(id, now).is_none_or(|(_, m)| m.considered != 0)
    }

    /// The live member of this node, if there is one that stands for election.
    pub fn member_of_node(&self, electorate: &Electorate, node: &str, now: i64) -> Option<Candidate> {
        let seat = self.seat(electorate)?;
        let is_it = |m: &Member| m.is_candidate() && m.node.as_str() == node;
        self.live(seat, now).find(|(_, m)| is_it(m)).map(Candidate::of)
    }

    /// Whether elections judge the row of a name: it has a candidate, or memory has a copy of the row. Else the sweep
    /// does.
    pub fn elects(&self, electorate: &Electorate, now: i64) -> bool {
        self.seat(electorate).is_some_and(|seat| {
            let led = self.seats[seat].leadership.used != 0;
            led || self.live(seat, now).any(|(_, m)| m.is_candidate())
        })
    }

    /// Whether a name has a leader, as far as memory knows: a member, or a foreign node.
    pub fn has_leader(&self, electorate: &Electorate, now: i64) -> bool {
        self.seat(electorate).is_some_and(|seat| {
            let leadership = &self.seats[seat].leadership;
            let foreign = leadership.used != 0 && !leadership.is_local() && now < leadership.lease.deadline;
            foreign || self.held(seat, now).is_some()
        })
    }

    /// The leaderships of a schema that memory has a copy of.
    pub fn leaderships(&self, database: u32, schema: u32) -> Vec<(Electorate, Node, i64)> {
        let of_schema = |s: &&Seat| (s.electorate.database, s.electorate.schema) == (database, schema);
        let led = self.seats.iter().filter(of_schema).filter(|s| s.leadership.used != 0);
        led.map(|s| (s.electorate, s.leadership.node, s.leadership.lease.term)).collect()
    }

    /// The live members of a seat, with their slots.
    pub(super) fn live(&self, seat: usize, now: i64) -> impl Iterator<Item = (usize, &'a Member)> + use<'a> {
        let members = self.members.iter().enumerate();
        members.filter(move |(_, m)| m.seat as usize == seat && m.is_live(now))
    }
}
