//! Members, and who of them leads: the tables that shared memory holds and the rules over them.
//!
//! An *electorate* is what has one leader: (database, schema, instance name). The schema is known by its oid, so
//! that an electorate stays the same when the schema is renamed. A *seat* is the place of one in shared memory. Its *members* are processes that joined, bound to their session or to a lease that they
//! renew; its *leadership* is a copy of its row in `<prefix>.oban_peers`. The row is the truth between nodes
//! of every kind, the copy answers `oban_is_leader` without touching a table.
//!
//! ```text
//!                    elected (row committed)
//!   vacant ───────────────────────────────────────▶ ours ──▶ renewed at half the lease, and so on
//!     ▲  │                                           │
//!     │  └── the row is another node's ──▶ foreign   ├── its member left, resigned or lapsed, or somebody
//!     │                                      │       │   deleted the row: the row is deleted, `down` is
//!     └──────── expired or deleted ◀─────────┘       │   sent and the next member elected, in one
//!     ▲                                              │   transaction; held up while the row is fenced
//!     └──────────── the row is no longer ours ◀──────┘
//! ```
//!
//! Order, so that there are never two leaders: a leadership *begins* or is *renewed* in the table
//! first and here after its commit; it *ends* here first (the member goes, or `ended` is set, before
//! the commit of who deletes the row) and in the table after. What ends while a keeper's commit is on its way
//! must not begin again with that: what the keeper tells is ignored if the seat has `changes` that it had not
//! seen when it began. A keeper that dies between the two leaves a
//! row of ours that nobody here knows of: `verdict::judge` adopts it when its member still lives and
//! voids it otherwise.
//!
//! Every question has a time: a member whose lease is over is none, whether or not anybody has cleared
//! it away. A row's lease never exceeds its leased member's, so that both lapse at the same moment.
//!
//! Times here are readings of `pg::clock`, which nobody can set, unless a name or a comment says *wall*. The wall
//! times of a row are compared with nothing but the row: what is left of its lease is judged once, when the keeper
//! first sees the row (`verdict::time_left`), and from then on the deadline in the copy counts.

pub mod foreign_write;
mod plan;
pub mod term;
pub mod verdict;

pub use plan::{Candidate, Ended, LeadershipsView, Plan};

use super::text::Text;

/// Longest instance name and node name in bytes. They are texts in Oban, whose real values are module names and
/// host names.
pub const MAX_NAME: usize = 127;
pub const MAX_NODE: usize = 255;

/// Longest prefix in bytes: the name of a schema (NAMEDATALEN - 1).
pub const MAX_PREFIX: usize = 63;

pub type Node = Text<MAX_NODE>;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    pub database: u32,
    /// The schema of the table of leaders.
    pub schema: u32,
    pub name: Text<MAX_NAME>,
}

/// A process that joined. `id` 0 is a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Member {
    /// Never given twice, not over a restart of the server either.
    pub id: i64,
    /// Its electorate, by the number of its seat.
    seat: u32,
    /// The role that joined it, and that alone (with its members) may renew or end it.
    pub role: u32,
    /// The backend that joined it: the one that it is bound to, unless it has a lease.
    pub pid: i32,
    pub procno: i32,
    /// When that backend began; with `pid` it tells backends apart for ever.
    pub session_began: i64,
    /// 1 once the keeper has looked at this member since it joined, resigned or needed its row extended;
    /// the backend `procno` waits for it.
    considered: u32,
    pub node: Node,
    pub joined_at: i64,
    /// The same by the wall clock, to be shown.
    pub joined_at_wall: i64,
    /// In microseconds; 0 for a member that is bound to its session.
    pub lease: i64,
    /// The end of its lease.
    lease_ends: i64,
    /// When it last stepped down; 0 for never. Who did so comes last in elections.
    resigned_at: i64,
    /// 1: it does not stand for election.
    observes: u32,
}

impl Member {
    /// Whether this backend joined it.
    pub fn is_of(&self, pid: i32, session_began: i64) -> bool {
        (self.pid, self.session_began) == (pid, session_began)
    }

    /// Whether it stands for election.
    pub fn is_candidate(&self) -> bool {
        self.observes == 0
    }

    pub fn is_live(&self, now: i64) -> bool {
        self.id != 0 && self.lease_ends().is_none_or(|ends| now < ends)
    }

    /// When its lease ends; `None` for a member that is bound to its session.
    pub fn lease_ends(&self) -> Option<i64> {
        (self.lease != 0).then_some(self.lease_ends)
    }
}

/// The lease that a row of oban_peers grants.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The table that has the row.
    pub table: u32,
    /// 0 when the row has none (a foreign node wrote it before the table had its triggers).
    pub term: i64,
    /// The row's own times, by the wall clock.
    pub started_at: i64,
    pub expires_at: i64,
    /// When it ends, unless it is renewed. Of a member's row in a table that is not guarded: how long memory believes
    /// it without another look.
    pub deadline: i64,
    /// Triggers tell of what others do to the row.
    pub guarded: bool,
}

/// How long memory believes the row of a member without another look, if no trigger tells of its end. In microseconds.
pub const UNGUARDED_TRUST: i64 = 2_000_000;

impl Lease {
    /// Whether a row with these times is the one that this lease was read from: it was not renewed or replaced.
    pub fn is_of(&self, term: i64, started_at: i64, expires_at: i64) -> bool {
        (self.term, self.started_at, self.expires_at) == (term, started_at, expires_at)
    }
}

/// The copy of one row of oban_peers. `used` 0 is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    used: u32,
    /// 1: it is over, though its member lives and its lease runs: the member resigned, or somebody
    /// deletes the row.
    ended: u32,
    /// 1: the table may have changed; the next renewal will tell.
    recheck: u32,
    /// The leading member, or 0 when the row is another node's; and the slot that it was in.
    pub member: i64,
    slot: u32,
    pub node: Node,
    pub lease: Lease,
    /// When the keeper looks at the row again, even if its lease runs longer.
    look_at: i64,
}

/// The place of an electorate that has members or a leadership. `electorate.database` 0 is a free one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Seat {
    pub electorate: Electorate,
    leadership: Leadership,
    /// When the last leadership ended, as long as there is no other; 0 if there was none.
    vacant_since: i64,
    /// The member that stepped down last, and when, as long as nobody else has led since.
    resigned: i64,
    resigned_at: i64,
    /// Counts what others than the keeper do to the leadership.
    changes: u32,
    /// Of those that were recorded here.
    greatest_term: i64,
}

/// What somebody who is no keeper did to an electorate's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// There is one with this term (0 for none), or its lease is shorter now.
    Written(i64),
    /// The one with this term was deleted.
    Deleted(i64),
}

/// What the keeper has told, or that it was too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// What was known before, and for how long there was no leader, if there had been one.
    After { before: Option<Leadership>, without: Option<i64> },
    /// Something else has happened meanwhile: read the row again.
    Stale,
}

/// What a process that wants to join says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Joining {
    pub id: i64,
    pub electorate: Electorate,
    pub node: Node,
    pub role: u32,
    pub pid: i32,
    pub procno: i32,
    pub session_began: i64,
    /// In microseconds; 0 to be bound to the session.
    pub lease: i64,
    /// Whether it is to stand for election. `None` is for the rule: yes, unless a foreign node has led the name.
    pub candidate: Option<bool>,
    /// A foreign node's row of the name is in the table.
    pub foreign_leads: bool,
    /// The time by the wall clock, to be shown.
    pub wall: i64,
    /// The most members that its role may have; `None` for no limit.
    pub share: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// A live member of this node and name: its id, its backend, the role that joined it and the end of
    /// its lease.
    Taken { member: i64, pid: i32, role: u32, lease_ends: Option<i64> },
    /// The session has joined the name as this node, and is to be another one without a lease, too.
    OtherNode { node: Node },
    /// Every slot is in use.
    Full,
    /// Its role has as many members as its share allows.
    ShareUsed,
}

/// What a process that joined is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    pub id: i64,
    /// It does not stand for election, though that was not asked for: a foreign node has led the name.
    pub yields: bool,
    /// It was a member already.
    pub again: bool,
}

/// What a renewal did.
#[derive(Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Its term, when the member leads.
    pub term: Option<i64>,
    /// Half of the leadership's lease is over: the keeper has to extend the row.
    pub due: bool,
}

/// The tables of shared memory, under their lock, which is held exclusively.
pub struct Leaderships<'a> {
    pub members: &'a mut [Member],
    pub seats: &'a mut [Seat],
    /// Names whose last leadership ended without an announcement, as NOTIFY's queue was full. Database 0 is free.
    pub unannounced: &'a mut [Electorate],
    /// Names that foreign nodes have led since the server's start, the oldest first, without a gap. Database 0 is
    /// free.
    pub foreign: &'a mut [Electorate],
}

/// The most names of one schema that memory knows foreign nodes to have led. Fleets have few.
pub const FOREIGN_NAMES: usize = 16;

impl Leadership {
    /// As a member holds it from `now` on.
    pub fn local(leader: &Candidate, lease: Lease, now: i64) -> Self {
        let (member, slot, node) = (leader.member, leader.slot, leader.node);
        let look_at = if lease.guarded { lease.deadline } else { now + (lease.deadline - now) / 2 };
        Self { used: 1, ended: 0, recheck: 0, member, slot, node, lease, look_at }
    }

    /// As a foreign node holds it. The keeper looks at the row again at `look_at` at the latest.
    pub fn foreign(node: Node, lease: Lease, look_at: i64) -> Self {
        Self { used: 1, node, lease, look_at: look_at.min(lease.deadline), ..Self::default() }
    }

    pub fn is_local(&self) -> bool {
        self.member != 0
    }
}

impl Seat {
    fn row_changed(&mut self, change: RowChange, now: i64) {
        self.changes = self.changes.wrapping_add(1);
        if matches!(change, RowChange::Written(_)) {
            // Others have their turn.
            (self.resigned, self.resigned_at) = (0, 0);
        }
        let was = self.leadership;
        let over = match change {
            _ if was.used == 0 => return,
            RowChange::Deleted(term) => !was.is_local() || term == was.lease.term,
            RowChange::Written(term) => was.is_local() && term > was.lease.term,
        };
        if !was.is_local() {
            self.leadership = Leadership::default();
        } else if over {
            self.leadership.ended = 1;
        }
        if over && was.ended == 0 {
            self.vacant_since = was.lease.deadline.min(now);
        }
    }
}

impl Leaderships<'_> {
    pub fn view(&self) -> LeadershipsView<'_> {
        LeadershipsView { members: self.members, seats: self.seats }
    }

    /// Adds a member. The same backend joining again in the same way gets the id that it has. `replace` is
    /// the one member whose place may be taken: the caller has tested that its role allows that.
    pub fn join(&mut self, new: &Joining, replace: Option<i64>, now: i64) -> Result<Joined, JoinError> {
        let yields = new.candidate.is_none() && (new.foreign_leads || self.foreign_has_led(&new.electorate));
        let observes = u32::from(yields || new.candidate == Some(false));
        let seat = self.view().seat(&new.electorate);
        let of_node = |seat| self.view().live(seat, now).find(|(_, m)| m.node == new.node);
        let old = seat.and_then(of_node).map(|(slot, m)| (slot, *m));
        if let Some((slot, old)) = old {
            if old.is_of(new.pid, new.session_began)
                && old.role == new.role
                && (old.lease != 0) == (new.lease != 0)
            {
                let member = &mut self.members[slot];
                (member.lease, member.lease_ends) = (new.lease, now.saturating_add(new.lease));
                // What it is stays as it is, unless it says otherwise.
                if let Some(candidate) = new.candidate.filter(|candidate| *candidate != old.is_candidate()) {
                    self.change_candidacy(slot, candidate, new.procno, now);
                }
                return Ok(Joined { id: old.id, yields: false, again: true });
            }
            if replace != Some(old.id) {
                let (member, pid, role, lease_ends) = (old.id, old.pid, old.role, old.lease_ends());
                return Err(JoinError::Taken { member, pid, role, lease_ends });
            }
        }
        let replaced = old.map(|(slot, _)| slot);
        // Two nodes that live as long as one session are one process, or many processes that share the session.
        if let Some(seat) = seat.filter(|_| new.lease == 0) {
            let bound_here = |m: &Member| m.lease == 0 && m.is_of(new.pid, new.session_began);
            let other =
                self.view().live(seat, now).find(|(slot, m)| bound_here(m) && Some(*slot) != replaced);
            if let Some((_, other)) = other {
                return Err(JoinError::OtherNode { node: other.node });
            }
        }
        if let Some(share) = new.share {
            let of_role = |(slot, m): &(usize, &Member)| m.role == new.role && Some(*slot) != replaced;
            let live = self.members.iter().enumerate().filter(|(_, m)| m.is_live(now));
            if live.filter(of_role).count() >= share {
                return Err(JoinError::ShareUsed);
            }
        }
        let seat = seat.or_else(|| self.free_seat(now)).ok_or(JoinError::Full)?;
        // What a lapsed member leaves is free: the seat's leadership tells members apart by their ids.
        let free = replaced.or_else(|| self.members.iter().position(|m| !m.is_live(now)));
        let slot = free.ok_or(JoinError::Full)?;
        if let Some(slot) = replaced {
            self.gone(slot, now);
        }
        if self.seats[seat].electorate != new.electorate {
            self.clear_seat(seat);
            self.seats[seat].electorate = new.electorate;
        }
        let place = &mut self.seats[seat];
        // A row that is there, or is being read, may be this very member's, from before a restart: to be judged anew.
        place.changes = place.changes.wrapping_add(1);
        if !place.leadership.is_local() && place.leadership.node == new.node {
            place.leadership = Leadership::default();
        }
        self.members[slot] = Member {
            id: new.id,
            seat: seat as u32,
            role: new.role,
            pid: new.pid,
            procno: new.procno,
            session_began: new.session_began,
            considered: 0,
            node: new.node,
            joined_at: now,
            joined_at_wall: new.wall,
            lease: new.lease,
            lease_ends: now.saturating_add(new.lease),
            resigned_at: 0,
            observes,
        };
        Ok(Joined { id: new.id, yields, again: false })
    }

    /// A member that did not say whether it is to stand for election no longer does, if a foreign node has led the name by
    /// now and it does not lead itself. Whether that is so.
    pub fn yields(&mut self, id: i64, procno: i32, now: i64) -> bool {
        let Some((slot, member)) = self.view().member(id, now) else { return false };
        let seat = member.seat as usize;
        let leads = self.view().held(seat, now).is_some_and(|(l, _)| l.member == id);
        let yields = member.is_candidate() && !leads && self.foreign_has_led(&self.seats[seat].electorate);
        if yields {
            self.change_candidacy(slot, false, procno, now);
        }
        yields
    }

    /// A member stands for election from now on, or no longer. One that leads steps down; what a keeper tells of it
    /// meanwhile is to be read again.
    fn change_candidacy(&mut self, slot: usize, candidate: bool, procno: i32, now: i64) {
        let id = self.members[slot].id;
        if !candidate {
            self.resign(id, procno, now);
        }
        let member = &mut self.members[slot];
        (member.observes, member.considered, member.procno) = (u32::from(!candidate), 0, procno);
        let seat = &mut self.seats[member.seat as usize];
        seat.changes = seat.changes.wrapping_add(1);
        if candidate && seat.resigned == id {
            // It says that it is to lead.
            (seat.resigned, seat.resigned_at) = (0, 0);
        }
    }

    /// Notes that a foreign node leads a name. Of too many names of a schema, or of all, the oldest is forgotten.
    pub fn foreign_leads(&mut self, electorate: &Electorate) {
        if electorate.name.as_str().is_empty() || self.foreign_has_led(electorate) {
            return;
        }
        let used = self.foreign.iter().position(|e| e.database == 0).unwrap_or(self.foreign.len());
        let schema = (electorate.database, electorate.schema);
        let mut of_schema =
            (0..used).filter(|n| (self.foreign[*n].database, self.foreign[*n].schema) == schema);
        let oldest = of_schema.next();
        let over = oldest.filter(|_| of_schema.count() + 1 >= FOREIGN_NAMES);
        // When there is no room, a database with more than its share gives way first.
        let full = used == self.foreign.len() && used > 0;
        let of_database = self.foreign[..used].iter().filter(|e| e.database == electorate.database).count();
        let greedy = full && of_database > used / 4;
        let own = greedy.then(|| self.foreign.iter().position(|e| e.database == electorate.database));
        let out = over.or(own.flatten()).or(full.then_some(0));
        let end = match out {
            Some(out) => {
                self.foreign.copy_within(out + 1..used, out);
                used - 1
            }
            None => used,
        };
        if let Some(free) = self.foreign.get_mut(end) {
            *free = *electorate;
        }
    }

    /// Whether a foreign node has led a name since the server's start, as far as memory knows.
    pub fn foreign_has_led(&self, electorate: &Electorate) -> bool {
        electorate.database != 0 && self.foreign.contains(electorate)
    }

    /// The schemas of a database that have such names.
    pub fn foreign_schemas(&self, database: u32) -> Vec<u32> {
        let own = self.foreign.iter().filter(|e| database != 0 && e.database == database);
        own.map(|e| e.schema).collect()
    }

    fn forget_foreign(&mut self, gone: impl Fn(&Electorate) -> bool) {
        let mut kept = 0;
        for n in 0..self.foreign.len() {
            let electorate = std::mem::take(&mut self.foreign[n]);
            if electorate.database != 0 && !gone(&electorate) {
                self.foreign[kept] = electorate;
                kept += 1;
            }
        }
    }

    /// A seat that nobody has; else one whose members have all lapsed, which no keeper has cleared away yet.
    fn free_seat(&self, now: i64) -> Option<usize> {
        let free = self.seats.iter().position(|s| s.electorate.database == 0);
        free.or_else(|| {
            let unused =
                |n: &usize| self.seats[*n].leadership.used == 0 && self.view().live(*n, now).next().is_none();
            (0..self.seats.len()).find(unused)
        })
    }

    /// Ends a membership; its leadership, if any, has ended with it.
    pub fn leave(&mut self, id: i64, now: i64) -> Option<(Electorate, Member)> {
        let (slot, _) = self.view().member(id, now)?;
        self.gone(slot, now);
        let member = std::mem::take(&mut self.members[slot]);
        Some((self.seats[member.seat as usize].electorate, member))
    }

    /// Notes that a leadership of the member in this slot, if any, has no leader from now on.
    fn gone(&mut self, slot: usize, now: i64) {
        let seat = self.members[slot].seat as usize;
        if self.view().held(seat, now).is_some_and(|(l, _)| l.slot as usize == slot) {
            self.seats[seat].vacant_since = now;
        }
    }

    /// A member's heartbeat: its lease begins anew. `None` when it is no member any more. `procno` is the
    /// backend that waits for the row to be extended, if that is due.
    pub fn renew(&mut self, id: i64, procno: i32, now: i64) -> Option<Renewed> {
        let (slot, _) = self.view().member(id, now)?;
        let member = &mut self.members[slot];
        member.lease_ends = now.saturating_add(member.lease);
        let (seat, lease) = (member.seat as usize, member.lease);
        let held = self.view().held(seat, now).map(|(l, _)| l).filter(|l| l.member == id);
        let due = held.is_some_and(|l| lease != 0 && now >= l.lease.deadline.saturating_sub(lease / 2));
        let term = held.map(|l| l.lease.term);
        if due {
            (self.members[slot].considered, self.members[slot].procno) = (0, procno);
        }
        Some(Renewed { term, due })
    }

    /// Steps down: whether it led. `None` when it is no member. `procno` is the backend that waits for the
    /// election of another.
    pub fn resign(&mut self, id: i64, procno: i32, now: i64) -> Option<bool> {
        let (slot, _) = self.view().member(id, now)?;
        let number = self.members[slot].seat as usize;
        if self.view().held(number, now).is_none_or(|(l, _)| l.member != id) {
            return Some(false);
        }
        let member = &mut self.members[slot];
        (member.resigned_at, member.considered, member.procno) = (now, 0, procno);
        let seat = &mut self.seats[number];
        seat.changes = seat.changes.wrapping_add(1);
        (seat.leadership.ended, seat.vacant_since) = (1, now);
        (seat.resigned, seat.resigned_at) = (id, now);
        Some(true)
    }

    /// Somebody who is no keeper has changed the electorate's row, or is about to: what is known of a foreign
    /// leader must be read anew, and a leadership of ours is over whose row is deleted, or that has a successor (in
    /// another table of that name, say).
    pub fn row_changed(&mut self, electorate: &Electorate, change: RowChange, now: i64) {
        if let Some(seat) = self.view().seat(electorate) {
            self.seats[seat].row_changed(change, now);
        }
    }

    /// A foreign node has renewed its row, which now has this lease: memory knows its deadline at once, whatever the
    /// wall clock shows when the keeper looks at the row.
    pub fn renewed(&mut self, electorate: &Electorate, lease: Lease) {
        let Some(seat) = self.view().seat(electorate) else { return };
        let seat = &mut self.seats[seat];
        seat.changes = seat.changes.wrapping_add(1);
        let copy = &mut seat.leadership;
        if copy.used != 0 && !copy.is_local() && copy.lease.term == lease.term {
            if copy.lease.guarded {
                copy.look_at = lease.deadline;
            }
            copy.lease = Lease { table: copy.lease.table, guarded: copy.lease.guarded, ..lease };
        }
    }

    /// Tables may have been altered or replaced: what is known of every leader of a database, or of one table only, is
    /// to be read anew.
    pub fn require_recheck(&mut self, database: u32, table: Option<u32>) {
        let concerns = |s: &&mut Seat| {
            s.electorate.database == database && table.is_none_or(|table| s.leadership.lease.table == table)
        };
        for seat in self.seats.iter_mut().filter(|_| database != 0).filter(concerns) {
            seat.changes = seat.changes.wrapping_add(1);
            if seat.leadership.is_local() {
                seat.leadership.recheck = 1;
            } else {
                // The copy stays: a row that turns out to be the same keeps its deadline.
                seat.leadership.look_at = 0;
            }
        }
    }

    /// The wall times in the rows of a database's members are wrong: each is to be renewed at once.
    pub fn renew_all(&mut self, database: u32) {
        let own = self.seats.iter_mut().filter(|s| database != 0 && s.electorate.database == database);
        own.filter(|s| s.leadership.is_local()).for_each(|s| s.leadership.recheck = 1);
    }

    /// As `row_changed` for all names of a schema, with all rows deleted.
    pub fn rows_truncated(&mut self, database: u32, schema: u32, now: i64) {
        self.rows_gone(database, |seat| seat.electorate.schema == schema, now);
    }

    /// As `row_changed` for all names whose row is in a table, with all rows deleted: it was dropped, renamed or moved
    /// to another schema.
    pub fn table_gone(&mut self, database: u32, table: u32, now: i64) {
        self.rows_gone(database, |seat| seat.leadership.lease.table == table, now);
    }

    fn rows_gone(&mut self, database: u32, is_gone: impl Fn(&Seat) -> bool, now: i64) {
        for seat in self.seats.iter_mut().filter(|s| database != 0 && s.electorate.database == database) {
            if is_gone(seat) {
                seat.row_changed(RowChange::Deleted(seat.leadership.lease.term), now);
            }
        }
    }

    /// A table of leaders of these schemas may go, and memory may not know that rows were just written to it: what a keeper tells of
    /// a name that has no copy of a row is to be read again.
    pub fn invalidate_records(&mut self, database: u32, is_concerned: impl Fn(u32) -> bool) {
        let own = self.seats.iter_mut().filter(|s| database != 0 && s.electorate.database == database);
        own.filter(|s| s.leadership.used == 0 && is_concerned(s.electorate.schema))
            .for_each(|s| s.changes = s.changes.wrapping_add(1));
    }

    /// A schema was dropped: its members and leaderships end. Puts backends of these members that wait for an
    /// election into `waiting`, as many as fit, and returns how many. Allocates nothing.
    pub fn forget_schema(&mut self, database: u32, schema: u32, waiting: &mut [i32]) -> usize {
        let (seats, mut count) = (&*self.seats, 0);
        let gone = |e: &Electorate| database != 0 && (e.database, e.schema) == (database, schema);
        for m in self.members.iter_mut().filter(|m| m.id != 0) {
            if !seats.get(m.seat as usize).is_some_and(|s| gone(&s.electorate)) {
                continue;
            }
            if let Some(place) = waiting.get_mut(count).filter(|_| m.considered == 0) {
                (*place, count) = (m.procno, count + 1);
            }
            *m = Member::default();
        }
        self.seats.iter_mut().filter(|s| gone(&s.electorate)).for_each(|s| *s = Seat::default());
        self.unannounced.iter_mut().filter(|e| gone(e)).for_each(|e| *e = Electorate::default());
        self.forget_foreign(gone);
        count
    }

    /// Notes that the end of a leadership is still to be announced. False when there is no room for that.
    pub fn add_unannounced(&mut self, electorate: &Electorate) -> bool {
        if self.unannounced.contains(electorate) {
            return true;
        }
        let Some(free) = self.unannounced.iter_mut().find(|e| e.database == 0) else { return false };
        *free = *electorate;
        true
    }

    /// Notes that it was announced, or need not be.
    pub fn announced(&mut self, electorate: &Electorate) {
        self.unannounced.iter_mut().filter(|e| *e == electorate).for_each(|e| *e = Electorate::default());
    }

    /// The names of a database whose last leadership ended without an announcement.
    pub fn unannounced(&self, database: u32) -> Vec<Electorate> {
        self.unannounced.iter().filter(|e| database != 0 && e.database == database).copied().collect()
    }

    /// Notes what the table says after a commit: a row of a member of ours, or of a foreign node. `seen` are the
    /// `changes` from before the transaction.
    pub fn record(&mut self, electorate: &Electorate, row: Leadership, seen: u32, now: i64) -> Recorded {
        // Without a seat its last member has left and the electorate was forgotten meanwhile.
        let Some(number) = self.view().seat(electorate) else { return Recorded::Stale };
        let seat = &mut self.seats[number];
        if seat.changes != seen {
            return Recorded::Stale;
        }
        let before = Some(seat.leadership).filter(|l| l.used != 0);
        let changed = before.is_some_and(|b| (b.node, b.lease.term) != (row.node, row.lease.term));
        let since = match seat.vacant_since {
            0 => before.filter(|_| changed).map(|b| b.lease.deadline.min(now)),
            since => Some(since),
        };
        if row.member != seat.resigned {
            // Others have had their turn.
            (seat.resigned, seat.resigned_at) = (0, 0);
        }
        (seat.leadership, seat.greatest_term) = (row, seat.greatest_term.max(row.lease.term));
        // It may have ended while it was elected or renewed.
        let ended = row.is_local() && self.view().leader(&row, number, now).is_none();
        if !ended {
            self.seats[number].vacant_since = 0;
        }
        Recorded::After { before, without: since.map(|since| now.saturating_sub(since).max(0)) }
    }

    /// Notes that the electorate has no leader that we know of; who was known before. The seat goes with the
    /// last member.
    pub fn vacate(&mut self, electorate: &Electorate, now: i64) -> Option<Leadership> {
        let number = self.view().seat(electorate)?;
        let seat = &mut self.seats[number];
        let before = Some(std::mem::take(&mut seat.leadership)).filter(|l| l.used != 0);
        if let Some(before) = before.filter(|_| seat.vacant_since == 0) {
            seat.vacant_since = before.lease.deadline.min(now);
        }
        if self.view().live(number, now).next().is_none() {
            self.clear_seat(number);
        }
        before
    }

    /// Frees a seat, with those of its members that are left, so that they are never found in another's.
    fn clear_seat(&mut self, number: usize) {
        self.seats[number] = Seat::default();
        for m in self.members.iter_mut().filter(|m| m.id != 0 && m.seat as usize == number) {
            *m = Member::default();
        }
    }

    /// Marks the electorate's members as having been through an election; the backends to wake.
    pub fn mark_considered(&mut self, electorate: &Electorate) -> Vec<i32> {
        let Some(seat) = self.view().seat(electorate) else { return Vec::new() };
        let waiting = |m: &&mut Member| m.id != 0 && m.considered == 0 && m.seat as usize == seat;
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
        for number in 0..self.seats.len() {
            if self.seats[number].electorate.database != database || database == 0 {
                continue;
            }
            let of_seat = |m: &Member| m.id != 0 && m.seat as usize == number;
            for m in self.members.iter_mut().filter(|m| of_seat(m) && m.joined_at < before) {
                *m = Member::default();
            }
            self.seats[number].leadership = Leadership::default();
            if !self.members.iter().any(of_seat) {
                self.seats[number] = Seat::default();
            }
        }
        let gone = |e: &Electorate| database != 0 && e.database == database;
        self.unannounced.iter_mut().filter(|e| gone(e)).for_each(|e| *e = Electorate::default());
        self.forget_foreign(gone);
    }
}

#[cfg(test)]
mod tests;
