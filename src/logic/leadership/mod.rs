//! Members and leaderships: the tables that shared memory holds, and the rules over them.
//!
//! An *electorate* is what has exactly one leader: (database, schema, instance name). An electorate
//! holds the oid of the schema, so renaming the schema does not change the electorate.
//!
//! * A *seat* is the slot of an electorate in shared memory.
//! * The *members* of an electorate are processes that joined. A member ends with its session, or
//!   by a lease that it renews.
//! * The *leadership* of an electorate is a copy, in the seat, of the leader's row in
//!   `<prefix>.oban_peers`. The row is the truth between nodes of every kind. The copy answers
//!   `oban_is_leader` without a read of the table.
//!
//! ```text
//!                  (1) elected                  (2) renewed at half the lease, and so on
//!    vacant ─────────────────────────────▶ local ──▶ local
//!    ▲ ▲ │                                  │ │
//!    │ │ │ (3) the row is a foreign node's  │ │ (5) the member left, resigned or lapsed,
//!    │ │ └─────────▶ foreign                │ │     or a transaction deletes the row
//!    │ │                │                   │ ▼
//!    │ └────────────────┘                   │ ended ──▶ (6) local, foreign or vacant
//!    │  (4) expired or deleted              │
//!    └──────────────────────────────────────┘
//!       (7) the renewal did not find the row
//! ```
//!
//! * (1) The keeper commits a row for a candidate. After the commit the keeper calls `record`.
//! * (2) The keeper extends the row, and calls `record` after the commit.
//! * (3) The keeper finds a foreign node's row, and calls `record`.
//! * (4) The deadline in the copy passes, and the keeper holds an election. Or a backend drops the
//!   copy: by `row_changed` when its transaction deletes, replaces or hands over the row, or by
//!   `join` for a member of the row's node. A backend whose transaction renews the row calls
//!   `foreign_renewed`, and the leadership stays foreign. If no candidate is left, the keeper calls
//!   `vacate`, and the sweep looks after the row.
//! * (5) A backend calls `leave` or `resign`, or `join` for a member that becomes an observer, or
//!   `join` with `replace` for a new member that takes the leader's slot. A backend whose
//!   transaction deletes the row calls `row_changed` before its commit:
//!   `rows_truncated` if the table is truncated or its schema dropped, `table_gone` if the table is
//!   dropped, renamed or moved. A member lapses when its lease or the row's deadline passes: no
//!   function is called.
//! * (6) In one transaction the keeper deletes the row, sends `down` and elects the next member.
//!   The keeper calls `record` after the commit, or `vacate` if the name has no row any more. A
//!   transaction that fences the row holds up this transaction.
//! * (7) The row was deleted, or has another holder. The keeper calls `vacate`, and plans again.
//!
//! `forget_schema` and `forget_database` clear seats in any state. A backend calls the former after
//! it has dropped a schema, and so does the keeper that finds no schema. The coordinator calls the
//! latter.
//!
//! The order of changes keeps two leaders from existing at the same time:
//!
//! * A leadership *begins* or is *renewed* in the table first, and in memory after the commit.
//! * A leadership *ends* in memory first, and in the table afterwards. The member leaves, or
//!   `revoked` is set, before the transaction that deletes the row commits.
//! * A leadership that ends while a keeper commits must not begin again with that commit. So the
//!   keeper notes the seat's `changes` before its transaction, and `record` refuses the row if
//!   `changes` differs by then.
//! * A keeper that dies between its commit and `record` leaves a member's row of which memory has
//!   no copy. `verdict::judge` adopts the row if its member still lives, and voids the row
//!   otherwise.
//!
//! Every question is asked for a time. A process whose lease is over is not a member, whether or
//! not a keeper has cleared its slot. The lease of a leased member's row never exceeds the member's
//! lease, so both lapse at the same moment.
//!
//! Times here are readings of `pg::clock`, which nobody can set, in microseconds, unless a name or
//! a comment says *wall*. The wall times of a row are compared with those of the row only. The time
//! that is left of a row's lease is judged once, when the keeper first sees the row
//! (`verdict::time_left`). From then on the deadline in the copy counts.

pub mod foreign_write;
pub mod plan;
pub mod term;
pub mod verdict;

pub use plan::{Candidate, Ended, LeadershipsView, Plan};

use super::ids::{DatabaseOid, MemberId, RoleOid, SchemaOid, TableOid, Term};
use super::text::Text;
use super::times::{ClockTime, WallTime};

/// Longest instance name, in bytes. Names are texts in Oban. Real names are names of modules.
pub const MAX_NAME: usize = 127;
/// Longest node name, in bytes. Node names are texts in Oban. Real node names are names of hosts.
pub const MAX_NODE: usize = 255;

/// Longest prefix, in bytes: the longest name of a schema (NAMEDATALEN - 1).
pub const MAX_PREFIX: usize = 63;

/// The name of a node, as Oban writes it to `oban_peers`.
pub type Node = Text<MAX_NODE>;

/// What has exactly one leader. `database` 0 is a free slot of the tables below.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    /// The oid of the database; 0 in a free slot.
    pub database: DatabaseOid,
    /// The oid of the schema of the table of leaders.
    pub schema: SchemaOid,
    /// The name of the Oban instance.
    pub name: Text<MAX_NAME>,
}

/// A slot for a process that joined an electorate. `id` 0 is a free slot. The lock Leaderships
/// guards the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Member {
    /// The id of the member; 0 in a free slot. No id is given twice, not even over a restart of the
    /// server.
    pub id: MemberId,
    /// The number of the seat of the member's electorate. 0 is the first seat.
    seat: u32,
    /// The oid of the role that joined the member. Only this role, and the roles that act for it,
    /// may renew or end the member.
    pub role: RoleOid,
    /// The pid of the backend that joined the member. A member without a lease is bound to this
    /// backend.
    pub pid: i32,
    /// The process number of the backend that waits for the keeper: the one that joined, resigned
    /// or renewed the member last. `considered` says whether this backend waits. 0 is a valid
    /// number.
    pub procno: i32,
    /// When the backend `pid` began, in microseconds of the wall clock. Together with `pid` this
    /// tells the backend from all other backends of the server.
    pub session_began: WallTime,
    /// 1: the keeper has dealt with the member since the member joined, resigned, became a
    /// candidate or an observer, or asked the keeper to extend the row. 0: the backend `procno`
    /// waits for the keeper.
    considered: u32,
    /// The name of the node that the member stands for.
    pub node: Node,
    /// The clock reading at which the member joined, in microseconds.
    pub joined_at: ClockTime,
    /// The wall time at which the member joined, in microseconds. Views show it.
    pub joined_at_wall: WallTime,
    /// The length of the member's lease, in microseconds; 0 for a member that is bound to its
    /// session.
    pub lease: i64,
    /// The clock reading at which the member's lease ends, in microseconds. Means nothing if
    /// `lease` is 0.
    lease_ends: ClockTime,
    /// The clock reading at which the member last resigned, in microseconds; 0 for never. Elections
    /// prefer members that never resigned, and then those that resigned earlier.
    resigned_at: ClockTime,
    /// 1: the member is an observer. 0: the member is a candidate.
    observes: u32,
}

impl Member {
    /// Returns whether this backend joined the member.
    pub fn is_of(&self, pid: i32, session_began: WallTime) -> bool {
        (self.pid, self.session_began) == (pid, session_began)
    }

    /// Returns whether the member stands for election.
    pub fn is_candidate(&self) -> bool {
        self.observes == 0
    }

    /// Returns whether the slot holds a member whose lease, if it has one, is not over at `now`.
    pub fn is_live(&self, now: ClockTime) -> bool {
        !self.id.is_none() && self.lease_ends().is_none_or(|ends| now < ends)
    }

    /// Returns the end of the member's lease. `None`: the member is bound to its session.
    pub fn lease_ends(&self) -> Option<ClockTime> {
        (self.lease != 0).then_some(self.lease_ends)
    }
}

/// What tells a row of oban_peers from another row of the name, and from the same row after a
/// renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowIdentity {
    pub term: Term,
    /// The row's start, by the wall clock.
    pub started_at: WallTime,
    /// The end of the row's lease, by the wall clock.
    pub expires_at: WallTime,
}

/// The lease that a row of `oban_peers` grants, as memory knows it. The lock Leaderships guards the
/// leases in seats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The oid of the table that has the row; 0 where a caller passes on a row without its table.
    pub table: TableOid,
    /// The term of the row; 0 if the row has no term, because a foreign node wrote it before the
    /// table had the triggers of `oban_install`.
    pub term: Term,
    /// The column started_at of the row, in microseconds of the wall clock.
    pub started_at: WallTime,
    /// The column expires_at of the row, in microseconds of the wall clock.
    pub expires_at: WallTime,
    /// The clock reading at which the lease ends unless it is renewed, in microseconds. If the row
    /// is a member's and its table is not guarded, memory believes the row until then without
    /// another look.
    pub deadline: ClockTime,
    /// Whether the table has triggers that tell memory of changes by other transactions.
    pub guarded: bool,
}

/// How long memory believes a member's row without another look if no trigger tells of the row's
/// end, in microseconds.
pub const UNGUARDED_TRUST: i64 = 2_000_000;

impl Lease {
    /// Returns whether the lease was read from a row with this term and these times. False: the row
    /// was renewed or replaced since.
    pub fn is_of(&self, row: RowIdentity) -> bool {
        (self.term, self.started_at, self.expires_at) == (row.term, row.started_at, row.expires_at)
    }
}

/// The copy of one leader's row. `used` 0 is no copy. The lock Leaderships guards the copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// 1: the seat has a copy of a row. 0: the seat has none, and the other fields mean nothing.
    used: u32,
    /// 1: the leadership is over, although its member lives and its lease runs. The member has
    /// resigned, or a transaction deletes the row. 0: member and lease decide.
    revoked: u32,
    /// 1: the table may have changed, or the row may show wrong times. The keeper renews the row at
    /// once, and so finds out. 0: the keeper renews the row when that is due.
    recheck: u32,
    /// The id of the leading member; 0 if the row is a foreign node's.
    pub member: MemberId,
    /// The slot of the leading member; 0 is the first slot. Means nothing if `member` is 0.
    slot: u32,
    /// The node of the row.
    pub node: Node,
    /// The lease of the row.
    pub lease: Lease,
    /// The clock reading at which the keeper looks at the row again by itself, in microseconds; 0
    /// for at once. In a guarded table this is the lease's deadline. (The keeper renews a member's
    /// row earlier, at half of the lease.) In another table this is earlier than the deadline,
    /// because no trigger tells of the row's end.
    look_at: ClockTime,
}

/// The slot of an electorate that has members or a leadership. `electorate.database` 0 is a free
/// seat. The lock Leaderships guards the seat.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Seat {
    /// The electorate that has the seat.
    pub electorate: Electorate,
    /// The copy of the leader's row.
    leadership: Leadership,
    /// The clock reading at which the last leadership ended, in microseconds, while no other has
    /// begun; 0 if there was none, or one holds now.
    vacant_since: ClockTime,
    /// The id of the member that resigned last, while nobody else has led since; 0 for no such
    /// member.
    resigned: MemberId,
    /// The clock reading at which `resigned` resigned, in microseconds; 0 for no such member.
    resigned_at: ClockTime,
    /// The number of events that may make a keeper's `record` stale: joins, resignations, and
    /// changes of the row or its table by others than the keeper. The number wraps around.
    changes: u32,
    /// The greatest term that was recorded in the seat; 0 before the first.
    greatest_term: Term,
}

/// What a transaction of others than the keeper did to an electorate's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// The electorate has a new row, with this term (0 for none), or the row's lease is shorter
    /// now.
    Written(Term),
    /// The row with this term was deleted.
    Deleted(Term),
}

/// The result of `Leaderships::record`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Memory has the row now. `before` is the copy that memory had before, if any. `without` is
    /// for how long the electorate had no leader, in microseconds; `None` if there was no leader
    /// before, or the leader is the same.
    After { before: Option<Leadership>, without: Option<i64> },
    /// Other changes came in between, and memory does not have the row. The keeper has to read it
    /// again.
    Stale,
}

/// The arguments of `Leaderships::join`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Joining {
    /// The id for the new member, which was never given before.
    pub id: MemberId,
    /// The electorate that the process joins.
    pub electorate: Electorate,
    /// The name of the node that the process stands for.
    pub node: Node,
    /// The oid of the role that joins.
    pub role: RoleOid,
    /// The pid of the joining backend.
    pub pid: i32,
    /// The process number of the joining backend.
    pub procno: i32,
    /// When the joining backend began, in microseconds of the wall clock.
    pub session_began: WallTime,
    /// The length of the lease, in microseconds; 0 binds the member to the session.
    pub lease: i64,
    /// Whether the member stands for election. `None`: the rule decides. By the rule the member
    /// stands, unless a foreign node has led the name.
    pub candidate: Option<bool>,
    /// Whether the table has a foreign node's row of the name.
    pub foreign_leads: bool,
    /// The wall time, in microseconds. Views show it.
    pub wall: WallTime,
    /// The most live members that the role may have; `None` for no limit.
    pub quota: Option<usize>,
}

/// Why a process can't join.
#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// The name has a live member of this node: the member's id, the pid of the backend and the
    /// role that joined it, and the end of the member's lease (`None` without a lease).
    Taken { member: MemberId, pid: i32, role: RoleOid, lease_ends: Option<ClockTime> },
    /// The session is already a session-bound member of the name, as this node. The session asks to
    /// be another node of the name, without a lease as well.
    OtherNode { node: Node },
    /// Every slot for a member, or every seat, is in use.
    Full,
    /// The role has as many live members as it may have.
    QuotaUsed,
}

/// The result of `Leaderships::join`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The id of the member.
    pub id: MemberId,
    /// The member does not stand for election, although the caller did not ask for that: a foreign
    /// node has led the name.
    pub yields: bool,
    /// The process was a member already.
    pub again: bool,
}

/// The result of `Leaderships::renew`.
#[derive(Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The term that the member holds; `None` if the member does not lead.
    pub term: Option<Term>,
    /// Half of the leadership's lease is over, so the keeper has to extend the row.
    pub due: bool,
}

/// The tables of members and seats, to change them. The lock Leaderships is held exclusively as
/// long as this struct exists.
pub struct Leaderships<'a> {
    /// The slots for members.
    pub members: &'a mut [Member],
    /// The slots for electorates.
    pub seats: &'a mut [Seat],
    /// Electorates whose last leadership ended without an announcement, because NOTIFY's queue was
    /// full. Database 0 is a free slot.
    pub unannounced: &'a mut [Electorate],
    /// Electorates that foreign nodes have led since the server's start, the oldest first, without
    /// a gap between them. Database 0 is a free slot.
    pub foreign: &'a mut [Electorate],
}

/// The most names of one schema of which memory keeps that a foreign node has led them. Fleets have
/// few names.
pub const FOREIGN_NAMES: usize = 16;

impl Leadership {
    /// Returns the copy of a member's row, as it holds from `now` on. If the table is not guarded,
    /// the keeper looks at the row again after half of the time until the deadline.
    pub fn local(leader: &Candidate, lease: Lease, now: ClockTime) -> Self {
        let (member, slot, node) = (leader.member, leader.slot, leader.node);
        let look_at = if lease.guarded { lease.deadline } else { now + (lease.deadline - now) / 2 };
        Self { used: 1, revoked: 0, recheck: 0, member, slot, node, lease, look_at }
    }

    /// Returns the copy of a foreign node's row. The keeper looks at the row again at `look_at` or
    /// at the lease's deadline, whichever comes first.
    pub fn foreign(node: Node, lease: Lease, look_at: ClockTime) -> Self {
        Self { used: 1, node, lease, look_at: look_at.min(lease.deadline), ..Self::default() }
    }

    /// Returns whether the leader is a member. False: it is a foreign node.
    pub fn is_local(&self) -> bool {
        !self.member.is_none()
    }
}

impl Seat {
    /// Applies a change by others than the keeper to the seat: see `Leaderships::row_changed`.
    fn row_changed(&mut self, change: RowChange, now: ClockTime) {
        self.changes = self.changes.wrapping_add(1);
        if matches!(change, RowChange::Written(_)) {
            // Another node has its turn now, so the member that resigned may stand again.
            (self.resigned, self.resigned_at) = (MemberId::NONE, ClockTime::ZERO);
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
            self.leadership.revoked = 1;
        }
        if over && was.revoked == 0 {
            self.vacant_since = was.lease.deadline.min(now);
        }
    }
}

impl Leaderships<'_> {
    /// Returns the tables for reading.
    pub fn view(&self) -> LeadershipsView<'_> {
        LeadershipsView { members: self.members, seats: self.seats }
    }

    /// Adds a member. If the same backend joins again with the same role, node and kind of lease,
    /// the member keeps its id. `replace` is the id of the one member whose slot the new member may
    /// take. The caller has tested that its role may replace that member.
    pub fn join(
        &mut self,
        new: &Joining,
        replace: Option<MemberId>,
        now: ClockTime,
    ) -> Result<Joined, JoinError> {
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
                // The member stays a candidate or an observer, unless the call asks for the other.
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
        // A session-bound node stands for the process behind its session. Two such nodes of one
        // session would be one process, or several processes that share the session.
        if let Some(seat) = seat.filter(|_| new.lease == 0) {
            let bound_here = |m: &Member| m.lease == 0 && m.is_of(new.pid, new.session_began);
            let other =
                self.view().live(seat, now).find(|(slot, m)| bound_here(m) && Some(*slot) != replaced);
            if let Some((_, other)) = other {
                return Err(JoinError::OtherNode { node: other.node });
            }
        }
        if let Some(quota) = new.quota {
            let of_role = |(slot, m): &(usize, &Member)| m.role == new.role && Some(*slot) != replaced;
            let live = self.members.iter().enumerate().filter(|(_, m)| m.is_live(now));
            if live.filter(of_role).count() >= quota {
                return Err(JoinError::QuotaUsed);
            }
        }
        let seat = seat.or_else(|| self.free_seat(now)).ok_or(JoinError::Full)?;
        // The slot of a lapsed member is free. The seat's leadership names its member by id, so a
        // new member in the slot is not taken for the leader.
        let free = replaced.or_else(|| self.members.iter().position(|m| !m.is_live(now)));
        let slot = free.ok_or(JoinError::Full)?;
        if let Some(slot) = replaced {
            self.gone(slot, now);
        }
        if self.seats[seat].electorate != new.electorate {
            self.clear_seat(seat);
            self.seats[seat].electorate = new.electorate;
        }
        let joined_seat = &mut self.seats[seat];
        // The row that the table has, or that the keeper is reading, may be this member's own, from
        // before a restart. The keeper has to judge that row anew.
        joined_seat.changes = joined_seat.changes.wrapping_add(1);
        if !joined_seat.leadership.is_local() && joined_seat.leadership.node == new.node {
            joined_seat.leadership = Leadership::default();
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
            resigned_at: ClockTime::ZERO,
            observes,
        };
        Ok(Joined { id: new.id, yields, again: false })
    }

    /// Makes a member an observer if the member did not say whether it stands for election, a
    /// foreign node has led the name by now, and the member itself does not lead. Returns whether
    /// it did so. The caller asks only for members that did not say.
    pub fn yield_if_foreign(&mut self, id: MemberId, procno: i32, now: ClockTime) -> bool {
        let Some((slot, member)) = self.view().member(id, now) else { return false };
        let seat = member.seat as usize;
        let leads = self.view().held(seat, now).is_some_and(|(l, _)| l.member == id);
        let yields = member.is_candidate() && !leads && self.foreign_has_led(&self.seats[seat].electorate);
        if yields {
            self.change_candidacy(slot, false, procno, now);
        }
        yields
    }

    /// Makes a member a candidate or an observer. A leading member that becomes an observer steps
    /// down. Records that the keeper makes at the same time become stale.
    fn change_candidacy(&mut self, slot: usize, candidate: bool, procno: i32, now: ClockTime) {
        let id = self.members[slot].id;
        if !candidate {
            self.resign(id, procno, now);
        }
        let member = &mut self.members[slot];
        (member.observes, member.considered, member.procno) = (u32::from(!candidate), 0, procno);
        let seat = &mut self.seats[member.seat as usize];
        seat.changes = seat.changes.wrapping_add(1);
        if candidate && seat.resigned == id {
            // The member asks to lead, so it need not let others go first.
            (seat.resigned, seat.resigned_at) = (MemberId::NONE, ClockTime::ZERO);
        }
    }

    /// Notes that a foreign node leads a name. If the schema has too many such names, or the table
    /// is full, the oldest name goes. A call with an empty name, or with a name that memory knows
    /// already, changes nothing.
    pub fn foreign_leads(&mut self, electorate: &Electorate) {
        if electorate.name.as_str().is_empty() || self.foreign_has_led(electorate) {
            return;
        }
        let used = self.foreign.iter().position(|e| e.database.is_none()).unwrap_or(self.foreign.len());
        let schema = (electorate.database, electorate.schema);
        let mut of_schema =
            (0..used).filter(|n| (self.foreign[*n].database, self.foreign[*n].schema) == schema);
        let oldest = of_schema.next();
        let over = oldest.filter(|_| of_schema.count() + 1 >= FOREIGN_NAMES);
        // When the table is full, a database that has more than a quarter of it gives way first.
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

    /// Returns whether a foreign node has led a name since the server's start, as far as memory
    /// knows.
    pub fn foreign_has_led(&self, electorate: &Electorate) -> bool {
        !electorate.database.is_none() && self.foreign.contains(electorate)
    }

    /// Returns the schemas of a database that have names which foreign nodes have led, one for each
    /// name.
    pub fn foreign_schemas(&self, database: DatabaseOid) -> Vec<SchemaOid> {
        let own = self.foreign.iter().filter(|e| !database.is_none() && e.database == database);
        own.map(|e| e.schema).collect()
    }

    /// Takes all names for which `gone` is true out of `foreign`, and closes the gaps.
    fn forget_foreign(&mut self, gone: impl Fn(&Electorate) -> bool) {
        let mut kept = 0;
        for n in 0..self.foreign.len() {
            let electorate = std::mem::take(&mut self.foreign[n]);
            if !electorate.database.is_none() && !gone(&electorate) {
                self.foreign[kept] = electorate;
                kept += 1;
            }
        }
    }

    /// Returns a free seat. If no seat is free, returns one without a leadership whose members have
    /// all lapsed: no keeper has cleared it yet. `None`: every seat is in use.
    fn free_seat(&self, now: ClockTime) -> Option<usize> {
        let free = self.seats.iter().position(|s| s.electorate.database.is_none());
        free.or_else(|| {
            let unused =
                |n: &usize| self.seats[*n].leadership.used == 0 && self.view().live(*n, now).next().is_none();
            (0..self.seats.len()).find(unused)
        })
    }

    /// Ends a membership. A leadership of the member ends with it. Returns the electorate and the
    /// member as it was; `None` if there is no live member with this id.
    pub fn leave(&mut self, id: MemberId, now: ClockTime) -> Option<(Electorate, Member)> {
        let (slot, _) = self.view().member(id, now)?;
        self.gone(slot, now);
        let member = std::mem::take(&mut self.members[slot]);
        Some((self.seats[member.seat as usize].electorate, member))
    }

    /// Notes, if the member in this slot leads, that its electorate has no leader from `now` on.
    fn gone(&mut self, slot: usize, now: ClockTime) {
        let seat = self.members[slot].seat as usize;
        if self.view().held(seat, now).is_some_and(|(l, _)| l.slot as usize == slot) {
            self.seats[seat].vacant_since = now;
        }
    }

    /// Extends the lease of a member from `now` on. `procno` is the backend that waits for the
    /// keeper if the row is due to be extended. `None`: there is no live member with this id.
    pub fn renew(&mut self, id: MemberId, procno: i32, now: ClockTime) -> Option<Renewed> {
        let (slot, _) = self.view().member(id, now)?;
        let member = &mut self.members[slot];
        member.lease_ends = now.saturating_add(member.lease);
        let (seat, lease) = (member.seat as usize, member.lease);
        let held = self.view().held(seat, now).map(|(l, _)| l).filter(|l| l.member == id);
        let due = held.is_some_and(|l| lease != 0 && now >= l.lease.deadline.before(lease / 2));
        let term = held.map(|l| l.lease.term);
        if due {
            (self.members[slot].considered, self.members[slot].procno) = (0, procno);
        }
        Some(Renewed { term, due })
    }

    /// Steps down. Returns whether the member led; `None` if there is no live member with this id.
    /// `procno` is the backend that waits for the election of another member.
    pub fn resign(&mut self, id: MemberId, procno: i32, now: ClockTime) -> Option<bool> {
        let (slot, _) = self.view().member(id, now)?;
        let number = self.members[slot].seat as usize;
        if self.view().held(number, now).is_none_or(|(l, _)| l.member != id) {
            return Some(false);
        }
        let member = &mut self.members[slot];
        (member.resigned_at, member.considered, member.procno) = (now, 0, procno);
        let seat = &mut self.seats[number];
        seat.changes = seat.changes.wrapping_add(1);
        (seat.leadership.revoked, seat.vacant_since) = (1, now);
        (seat.resigned, seat.resigned_at) = (id, now);
        Some(true)
    }

    /// Notes that a transaction of others than the keeper has changed the electorate's row, or is
    /// about to commit such a change. A foreign leader's copy is dropped, because the keeper has to
    /// read the row anew. A local leadership is over if its row is deleted, or if the row has a
    /// successor with a greater term (in another table of that name, for instance).
    pub fn row_changed(&mut self, electorate: &Electorate, change: RowChange, now: ClockTime) {
        if let Some(seat) = self.view().seat(electorate) {
            self.seats[seat].row_changed(change, now);
        }
    }

    /// Notes the lease of a row that a foreign node has renewed. Memory knows the deadline at once,
    /// whatever the wall clock shows when the keeper looks at the row.
    pub fn foreign_renewed(&mut self, electorate: &Electorate, lease: Lease) {
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

    /// Has the keeper read rows anew, because tables may have been altered or replaced: the rows of
    /// all leaders of a database, or of those in one table.
    pub fn require_recheck(&mut self, database: DatabaseOid, table: Option<TableOid>) {
        let concerns = |s: &&mut Seat| {
            s.electorate.database == database && table.is_none_or(|table| s.leadership.lease.table == table)
        };
        for seat in self.seats.iter_mut().filter(|_| !database.is_none()).filter(concerns) {
            seat.changes = seat.changes.wrapping_add(1);
            if seat.leadership.is_local() {
                seat.leadership.recheck = 1;
            } else {
                // The copy stays. If the row turns out to be the same, it keeps its deadline.
                seat.leadership.look_at = ClockTime::ZERO;
            }
        }
    }

    /// Has the keeper renew the rows of all members of a database at once, because their wall times
    /// are wrong.
    pub fn renew_all(&mut self, database: DatabaseOid) {
        let own = self.seats.iter_mut().filter(|s| !database.is_none() && s.electorate.database == database);
        own.filter(|s| s.leadership.is_local()).for_each(|s| s.leadership.recheck = 1);
    }

    /// Does what `row_changed` does when a row is deleted, for all names of a schema.
    pub fn rows_truncated(&mut self, database: DatabaseOid, schema: SchemaOid, now: ClockTime) {
        self.rows_gone(database, |seat| seat.electorate.schema == schema, now);
    }

    /// Does what `row_changed` does when a row is deleted, for all names whose row is in a table.
    /// The table was dropped, renamed or moved to another schema.
    pub fn table_gone(&mut self, database: DatabaseOid, table: TableOid, now: ClockTime) {
        self.rows_gone(database, |seat| seat.leadership.lease.table == table, now);
    }

    /// Does what `row_changed` does when a row is deleted, for all seats of a database for which
    /// `is_gone` is true.
    fn rows_gone(&mut self, database: DatabaseOid, is_gone: impl Fn(&Seat) -> bool, now: ClockTime) {
        for seat in self.seats.iter_mut().filter(|s| !database.is_none() && s.electorate.database == database)
        {
            if is_gone(seat) {
                seat.row_changed(RowChange::Deleted(seat.leadership.lease.term), now);
            }
        }
    }

    /// Makes the keeper's records stale for names of these schemas of which memory has no copy.
    /// Their table of leaders may go, and memory may not know yet that the keeper has just written
    /// rows to it. The keeper reads such rows again.
    pub fn invalidate_records(&mut self, database: DatabaseOid, is_concerned: impl Fn(SchemaOid) -> bool) {
        let own = self.seats.iter_mut().filter(|s| !database.is_none() && s.electorate.database == database);
        own.filter(|s| s.leadership.used == 0 && is_concerned(s.electorate.schema))
            .for_each(|s| s.changes = s.changes.wrapping_add(1));
    }

    /// Ends the members and the leaderships of a schema that was dropped. Puts the process numbers
    /// of backends that wait for an election of these members into `waiting`, as many as fit, and
    /// returns how many they are. Allocates nothing.
    pub fn forget_schema(&mut self, database: DatabaseOid, schema: SchemaOid, waiting: &mut [i32]) -> usize {
        let (seats, mut count) = (&*self.seats, 0);
        let gone = |e: &Electorate| !database.is_none() && (e.database, e.schema) == (database, schema);
        for m in self.members.iter_mut().filter(|m| !m.id.is_none()) {
            if !seats.get(m.seat as usize).is_some_and(|s| gone(&s.electorate)) {
                continue;
            }
            if let Some(next) = waiting.get_mut(count).filter(|_| m.considered == 0) {
                (*next, count) = (m.procno, count + 1);
            }
            *m = Member::default();
        }
        self.seats.iter_mut().filter(|s| gone(&s.electorate)).for_each(|s| *s = Seat::default());
        self.unannounced.iter_mut().filter(|e| gone(e)).for_each(|e| *e = Electorate::default());
        self.forget_foreign(gone);
        count
    }

    /// Notes that the end of a leadership is still to be announced. Returns false if the table is
    /// full.
    pub fn add_unannounced(&mut self, electorate: &Electorate) -> bool {
        if self.unannounced.contains(electorate) {
            return true;
        }
        let Some(free) = self.unannounced.iter_mut().find(|e| e.database.is_none()) else { return false };
        *free = *electorate;
        true
    }

    /// Notes that the end of an electorate's last leadership was announced, or need not be.
    pub fn announced(&mut self, electorate: &Electorate) {
        self.unannounced.iter_mut().filter(|e| *e == electorate).for_each(|e| *e = Electorate::default());
    }

    /// Returns the electorates of a database whose last leadership ended without an announcement.
    pub fn unannounced(&self, database: DatabaseOid) -> Vec<Electorate> {
        self.unannounced.iter().filter(|e| !database.is_none() && e.database == database).copied().collect()
    }

    /// Notes which row the keeper has found or written, after the keeper's commit. `seen` is the
    /// seat's `changes` from before the transaction. Returns `Stale`, and notes nothing, if the
    /// seat has other `changes` by now or is gone.
    pub fn record(
        &mut self,
        electorate: &Electorate,
        row: Leadership,
        seen: u32,
        now: ClockTime,
    ) -> Recorded {
        // Without a seat the last member has left, and the electorate was forgotten meanwhile.
        let Some(number) = self.view().seat(electorate) else { return Recorded::Stale };
        let seat = &mut self.seats[number];
        if seat.changes != seen {
            return Recorded::Stale;
        }
        let before = Some(seat.leadership).filter(|l| l.used != 0);
        let changed = before.is_some_and(|b| (b.node, b.lease.term) != (row.node, row.lease.term));
        let since = match seat.vacant_since {
            ClockTime::ZERO => before.filter(|_| changed).map(|b| b.lease.deadline.min(now)),
            since => Some(since),
        };
        if row.member != seat.resigned {
            // Another node has its turn now, so the member that resigned may stand again.
            (seat.resigned, seat.resigned_at) = (MemberId::NONE, ClockTime::ZERO);
        }
        (seat.leadership, seat.greatest_term) = (row, seat.greatest_term.max(row.lease.term));
        // The leadership may have ended while the keeper elected or renewed it.
        let ended = row.is_local() && self.view().leader(&row, number, now).is_none();
        if !ended {
            self.seats[number].vacant_since = ClockTime::ZERO;
        }
        Recorded::After { before, without: since.map(|since| now.saturating_sub(since).max(0)) }
    }

    /// Notes that the electorate has no leader that memory knows of. Returns the copy that memory
    /// had, if any. Frees the seat if the electorate has no live member.
    pub fn vacate(&mut self, electorate: &Electorate, now: ClockTime) -> Option<Leadership> {
        let number = self.view().seat(electorate)?;
        let seat = &mut self.seats[number];
        let before = Some(std::mem::take(&mut seat.leadership)).filter(|l| l.used != 0);
        if let Some(before) = before.filter(|_| seat.vacant_since == ClockTime::ZERO) {
            seat.vacant_since = before.lease.deadline.min(now);
        }
        if self.view().live(number, now).next().is_none() {
            self.clear_seat(number);
        }
        before
    }

    /// Frees a seat, and the slots of the members that it still has. So the next electorate in the
    /// seat does not find them.
    fn clear_seat(&mut self, number: usize) {
        self.seats[number] = Seat::default();
        for m in self.members.iter_mut().filter(|m| !m.id.is_none() && m.seat as usize == number) {
            *m = Member::default();
        }
    }

    /// Marks that the keeper has dealt with the members of the electorate. Returns the process
    /// numbers of the backends that waited for it, which the caller wakes.
    pub fn mark_considered(&mut self, electorate: &Electorate) -> Vec<i32> {
        let Some(seat) = self.view().seat(electorate) else { return Vec::new() };
        let waiting = |m: &&mut Member| !m.id.is_none() && m.considered == 0 && m.seat as usize == seat;
        self.members
            .iter_mut()
            .filter(waiting)
            .map(|m| {
                m.considered = 1;
                m.procno
            })
            .collect()
    }

    /// Forgets the members that joined in a database before the clock reading `before`, and all of
    /// its leaderships. The database, or its extension, was dropped.
    pub fn forget_database(&mut self, database: DatabaseOid, before: ClockTime) {
        for number in 0..self.seats.len() {
            if self.seats[number].electorate.database != database || database.is_none() {
                continue;
            }
            let of_seat = |m: &Member| !m.id.is_none() && m.seat as usize == number;
            for m in self.members.iter_mut().filter(|m| of_seat(m) && m.joined_at < before) {
                *m = Member::default();
            }
            self.seats[number].leadership = Leadership::default();
            if !self.members.iter().any(of_seat) {
                self.seats[number] = Seat::default();
            }
        }
        let gone = |e: &Electorate| !database.is_none() && e.database == database;
        self.unannounced.iter_mut().filter(|e| gone(e)).for_each(|e| *e = Electorate::default());
        self.forget_foreign(gone);
    }
}

#[cfg(test)]
mod tests;
