//! The transactions of an election: what they read, write and announce in `<prefix>.oban_peers`.
//!
//! These transactions run no user's code, and what the keeper writes fires no trigger. The keeper
//! itself does what the triggers of the extension do for other writers: it sets `term` and `boot`,
//! and tells shared memory (`Elections::record_outcome`).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use pgrx::prelude::*;

use super::super::{keeper, process};
use super::Outcome;
use crate::bus::leadership::{self, LeaderChange};
use crate::bus::{self, Target};
use crate::config;
use crate::error;
use crate::logic::ids::{SchemaOid, Term};
use crate::logic::leadership::term;
use crate::logic::leadership::verdict::{self, Clocks, LEASED, Verdict, judge};
use crate::logic::leadership::{
    Candidate, Electorate, Ended, Leadership, Lease, Node, RowIdentity, UNGUARDED_TRUST,
};
use crate::logic::outbox::Requester;
use crate::logic::times::{ClockTime, WallTime};
use crate::logic::{shape, wire};
use crate::pg::heap::TableLock;
use crate::pg::{catalog, clock, encoding, notify, session, time};
use crate::prefix::peers::{NewRow, PeerRow, PeersTable, Unusable, WriteResult};
use crate::prefix::{extension, terms};
use crate::shmem::Segment;

/// Opens a schema's table of leaders. `Err` says why there can be no election. `wait` is for
/// `PeersTable::open`.
pub fn open(schema: SchemaOid, wait: bool) -> Result<PeersTable<'static>, Outcome> {
    let Some(prefix) = catalog::namespace_name(schema) else {
        let gone = catalog::is_no_schema(schema);
        return Err(if gone { Outcome::SchemaGone } else { Outcome::SchemaToCome });
    };
    super::names::remember(schema, &prefix);
    if keeper::database_is_read_only() {
        let what = "the database is read-only by default";
        let hint = "Run ALTER DATABASE ... SET default_transaction_read_only = off.";
        return Err(Outcome::Unusable { what: what.into(), hint: hint.into() });
    }
    PeersTable::open(schema, TableLock::RowExclusive, wait).map_err(|why| match why {
        Unusable::Missing => {
            Outcome::Missing { hint: format!("Run SELECT oban_install({}).", spi::quote_literal(&prefix)) }
        }
        Unusable::Locked => Outcome::Locked,
        Unusable::Replaced => Outcome::Again,
        Unusable::Obstacles(obstacles) => {
            let hint = "Elections run no code of a table's owner: oban_check() names all that is in the way.";
            Outcome::Unusable { what: shape::described(&obstacles), hint: hint.into() }
        }
    })
}

/// Returns the lease that a row grants a leader from now on, with the end of the row's lease by the
/// wall clock. `started_at` is a wall time, which may be long ago.
fn lease_of(table: &PeersTable<'_>, leader: &Candidate, term: Term, started_at: WallTime) -> Lease {
    let (now, guarded) = (clock::now(), table.is_guarded());
    let ends = leader.lease_ends.unwrap_or(now + config::lease());
    let deadline = if guarded { ends } else { ends.min(now + UNGUARDED_TRUST) };
    Lease { table: table.oid(), term, started_at, expires_at: clock::to_wall(ends), deadline, guarded }
}

/// Extends the lease of a leading member's row of this term, and of no other row.
pub fn renew(electorate: &Electorate, leader: &Candidate, term: Term, wait: bool) -> Outcome {
    match open(electorate.schema, wait) {
        Ok(table) => extend(&table, electorate, leader, term),
        Err(outcome) => outcome,
    }
}

/// Extends the lease of the leader's row of this term in a table that is open.
fn extend(table: &PeersTable<'_>, electorate: &Electorate, leader: &Candidate, term: Term) -> Outcome {
    let lease = lease_of(table, leader, term, WallTime::ZERO);
    match table.renew(electorate.name.as_str(), leader.node.as_str(), term, lease.expires_at) {
        Ok(started_at) => {
            Outcome::Local(Leadership::local(leader, Lease { started_at, ..lease }, clock::now()))
        }
        // Another transaction has locked or deleted the row, and has not ended.
        Err(WriteResult::Held) => Outcome::Held,
        // The row was deleted, or is another holder's: the next plan holds an election.
        Err(_) => Outcome::Again,
    }
}

thread_local! {
    /// How far the wall clock was ahead of the clock of deadlines before the wall clock was set,
    /// and when the keeper found that out.
    static BEFORE_STEP: Cell<Option<(i64, ClockTime)>> = const { Cell::new(None) };
}

/// Notes that the wall clock was set, and how far it was ahead before.
pub fn clock_was_set(before: i64) {
    BEFORE_STEP.set(Some((before, clock::now())));
}

/// Returns how long the lease of a row still runs (see `verdict::time_left`). `copy` is what shared
/// memory knows of the name's row. `unseen_since` is when the sweep last read all rows of the
/// table, and 0 if it never did. This row was not among them.
///
/// If the wall clock was set after `unseen_since`, the keeper does not know whether a foreign row
/// was written before the step or after it. For a while the lease of such a row runs by the clock
/// that leaves it more time.
pub fn time_left(row: &PeerRow, copy: Option<Lease>, boot: i64, unseen_since: ClockTime) -> i64 {
    let left = time_left_now(row, copy, boot);
    let stepped = BEFORE_STEP.get().filter(|_| copy.is_none() && row.boot.is_none());
    let in_doubt = |at: ClockTime| unseen_since <= at && clock::now() - at < verdict::MAX_FOREIGN_LEASE;
    match stepped.filter(|(_, at)| in_doubt(*at)) {
        Some((before, _)) => {
            let by_old_time = row.expires_at.saturating_sub(clock::now().to_wall(before));
            left.max(by_old_time.min(verdict::MAX_FOREIGN_LEASE))
        }
        None => left,
    }
}

/// Returns how long the lease of a row still runs, by the clocks as they are now.
fn time_left_now(row: &PeerRow, copy: Option<Lease>, boot: i64) -> i64 {
    let seen = verdict::RowTimes { identity: identity_of(row), boot: row.boot };
    let clocks =
        Clocks { now: clock::now(), wall: time::now(), boot: WallTime(boot), lease: config::lease() };
    verdict::time_left(seen, copy, clocks)
}

/// The state of one election while it is held.
struct Election<'a> {
    segment: Segment,
    electorate: &'a Electorate,
    table: PeersTable<'static>,
    candidate: Option<Candidate>,
    /// The greatest term of the name that is known.
    greatest_term: Term,
    known: Known<'a>,
    /// A leadership ended in this transaction: its end has to be announced.
    down: bool,
    /// The leaderships that ended in this transaction, by node and term.
    ended: Vec<(Node, Term)>,
    announcing: Announcing,
}

/// When the end of a leadership is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcing {
    /// In the transaction that deletes its row, if NOTIFY's queue has room.
    WithRow,
    /// In a later transaction, as NOTIFY's queue was full at the commit of this one.
    Later,
}

/// What shared memory knows of a name before the name's election.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The greatest term.
    pub greatest_term: Term,
    /// The lease in the copy of the name's row.
    pub copy: Option<Lease>,
    /// What the sweep has seen of the table.
    pub seen: &'a SeenRows,
}

/// What the sweep has seen of a table.
#[derive(Default)]
pub struct SeenRows {
    /// The deadlines of rows, by `fingerprint`: a name may have a thousand bytes, and a prefix a
    /// thousand rows.
    pub deadlines: HashMap<u64, ClockTime>,
    /// When the last look began that read all rows of the table; 0 for never.
    pub all_at: ClockTime,
}

/// The fingerprint of a row: another number than that of every other row, and than its own after a
/// renewal.
pub fn fingerprint(name: &str, node: &str, row: RowIdentity) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, node, row).hash(&mut hasher);
    hasher.finish()
}

/// The fingerprint of a row that was read.
pub fn fingerprint_of(row: &PeerRow) -> u64 {
    fingerprint(&row.name(), row.node.as_str(), identity_of(row))
}

/// What tells a row that was read from others.
fn identity_of(row: &PeerRow) -> RowIdentity {
    RowIdentity { term: Term::of_row(row.term), started_at: row.started_at, expires_at: row.expires_at }
}

/// Holds an election in one transaction: deletes the row of the leadership that has ended,
/// announces the end once (`down`), and inserts the candidate's row.
pub fn elect(
    segment: Segment,
    electorate: &Electorate,
    ended: Option<Ended>,
    candidate: Option<Candidate>,
    known: Known<'_>,
    announcing: Announcing,
    wait: bool,
) -> Outcome {
    // The sequence of terms belongs to the extension, which must not be dropped meanwhile.
    if extension::lock().is_none() {
        return Outcome::Dropped;
    }
    let table = match open(electorate.schema, wait) {
        Ok(table) => table,
        Err(outcome) => return outcome,
    };
    let greatest_term = known.greatest_term;
    let mut election = Election {
        segment,
        electorate,
        table,
        candidate,
        greatest_term,
        known,
        down: false,
        ended: Vec::new(),
        announcing,
    };
    election.hold(ended).unwrap_or_else(|outcome| outcome)
}

impl Election<'_> {
    /// Holds the election and returns the outcome. `Err` is the outcome of an election that ended
    /// before a candidate was elected. What the election has written until then is committed, too.
    fn hold(&mut self, ended: Option<Ended>) -> Result<Outcome, Outcome> {
        if let Some(ended) = ended {
            self.retire(ended)?;
        }
        let judged_row = self.judge_current_row();
        // The announcement to the nodes comes first, so that the messages to programs leave room
        // for it in the transaction.
        if self.down {
            announce_down(self.electorate, self.announcing);
        }
        for (node, term) in std::mem::take(&mut self.ended) {
            self.tell(LeaderChange::Ended, node.as_str(), term);
        }
        judged_row?;
        self.insert_candidate()
    }

    /// Deletes the row of a leadership that has ended. `Err`: another transaction holds the row.
    fn retire(&mut self, ended: Ended) -> Result<(), Outcome> {
        // The extension may have been dropped and created since, with a sequence that begins anew.
        self.greatest_term = self.greatest_term.max(ended.term);
        let name = self.electorate.name.as_str();
        match self.table.delete_term(name, ended.node.as_str(), ended.term) {
            WriteResult::Held => return Err(Outcome::Held),
            WriteResult::Done => {
                self.ended.push((ended.node, ended.term));
                self.down = true;
            }
            WriteResult::Gone => {}
        }
        Ok(())
    }

    /// Tells programs of a change of leader.
    fn tell(&self, change: LeaderChange, node: &str, term: Term) {
        leadership::tell(change, self.electorate.schema, self.electorate.name.as_str(), node, term);
    }

    /// Judges the row that the name has now, and deletes the row if it is void. `Ok`: the name has
    /// no row any more. `Err` is the outcome if the row stays, or can't be deleted.
    fn judge_current_row(&mut self) -> Result<(), Outcome> {
        let Some(found) = self.table.find(self.electorate.name.as_str()) else { return Ok(()) };
        let row = found.row;
        self.greatest_term = self.greatest_term.max(Term::of_row(row.term));
        let now = clock::now();
        let live =
            self.segment.leaderships_view(|v| v.member_of_node(self.electorate, row.node.as_str(), now));
        let Known { copy, seen, .. } = self.known;
        let left = match seen.deadlines.get(&fingerprint_of(&row)).filter(|_| copy.is_none()) {
            Some(deadline) => *deadline - now,
            None => time_left(&row, copy, self.segment.boot(), seen.all_at),
        };
        let judged_row = verdict::JudgedRow { left, term: row.term, boot: row.boot };
        match judge(judged_row, self.segment.boot(), session::timeline(), live) {
            Verdict::Foreign => {
                if row.boot.is_none() {
                    self.segment.leaderships(|l| l.foreign_leads(self.electorate));
                }
                // Without the trigger the keeper does not hear of the row's deletion, so it looks
                // at the row again.
                let guarded = self.table.is_guarded();
                let look_at = if guarded { ClockTime::NEVER } else { now + config::lease() / 2 };
                let lease = Lease {
                    table: self.table.oid(),
                    term: Term::of_row(row.term),
                    started_at: row.started_at,
                    expires_at: row.expires_at,
                    deadline: now + left,
                    guarded,
                };
                Err(Outcome::Foreign(Leadership::foreign(row.node, lease, look_at)))
            }
            // The table was away and is back. Other nodes have led since, with later terms.
            Verdict::Adopt(leader) if Term::of_row(row.term) < self.known.greatest_term => {
                self.remove(&row)?;
                self.candidate = Some(leader);
                Ok(())
            }
            Verdict::Adopt(leader) => {
                // The row is renewed at once: one that can't be renewed must not be adopted again
                // and again.
                Err(extend(&self.table, self.electorate, &leader, Term::of_row(row.term)))
            }
            Verdict::Reissue(leader) => {
                self.remove(&row)?;
                self.candidate = Some(leader);
                Ok(())
            }
            Verdict::Void => {
                self.remove(&row)?;
                self.down = true;
                Ok(())
            }
        }
    }

    /// Deletes a row. `Err` is the outcome when another transaction holds the row or has changed
    /// it.
    fn remove(&mut self, row: &PeerRow) -> Result<(), Outcome> {
        match self.table.delete(row) {
            WriteResult::Done => {
                self.ended.push((row.node, Term::of_row(row.term)));
                Ok(())
            }
            WriteResult::Held => Err(Outcome::Held),
            WriteResult::Gone => Err(Outcome::Again),
        }
    }

    /// Inserts the candidate's row, if there is a candidate, with a term above all earlier terms.
    /// `Err`: another transaction holds a row of the name, or has changed it.
    fn insert_candidate(&self) -> Result<Outcome, Outcome> {
        let Some(leader) = self.candidate else { return Ok(Outcome::Vacant) };
        let sequence = terms::sequence();
        let least = term::next_term(session::timeline(), self.greatest_term);
        let term = terms::next(sequence, least);
        let lease = lease_of(&self.table, &leader, term, time::now());
        let name = self.electorate.name.as_str();
        let new = NewRow {
            name,
            node: leader.node.as_str(),
            started_at: lease.started_at,
            expires_at: lease.expires_at,
            term,
            boot: if leader.lease_ends.is_some() { LEASED } else { self.segment.boot() },
        };
        match self.table.insert(&new) {
            WriteResult::Done => {}
            WriteResult::Held => return Err(Outcome::Held),
            WriteResult::Gone => return Err(Outcome::Again),
        }
        let term = match terms::later(sequence, term, least) {
            Some(later) if self.table.set_term(&encoding::to_server(name), term, later) => later,
            _ => term,
        };
        self.tell(LeaderChange::Elected, leader.node.as_str(), term);
        Ok(Outcome::Local(Leadership::local(&leader, Lease { term, ..lease }, clock::now())))
    }
}

/// Announces to every node, foreign ones included, that a leadership has ended, so that they hold
/// an election. While NOTIFY's queue is full, the announcement would fail the transaction. Then
/// shared memory keeps the announcement (`Elections::announce_pending`), for the next keeper, too.
pub fn announce_down(electorate: &Electorate, announcing: Announcing) {
    if announcing == Announcing::Later || notify::is_queue_full() {
        UNANNOUNCED.with_borrow_mut(|unannounced| unannounced.push(*electorate));
        return;
    }
    send_down(electorate);
}

thread_local! {
    /// The announcements that the running transaction leaves for later.
    static UNANNOUNCED: RefCell<Vec<Electorate>> = const { RefCell::new(Vec::new()) };
}

/// Runs after a transaction. If the transaction was committed, hands the announcements that it left
/// for later to shared memory. Logs a WARNING for an announcement that shared memory has no room
/// for.
pub fn keep_unannounced(segment: Segment, committed: bool) {
    for electorate in UNANNOUNCED.take().iter().filter(|_| committed) {
        if !segment.leaderships(|l| l.add_unannounced(electorate)) {
            let what = "NOTIFY's queue is full, and the end of a leadership is not announced";
            error::log(
                PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("obanrs in {}: {what}", process::of_database()),
                "",
            );
        }
    }
}

/// Queues the announcement in this transaction. In a schema that was dropped meanwhile there is no
/// node to tell. Raises an ERROR if the message can't be queued.
pub fn send_down(electorate: &Electorate) {
    let Some(prefix) = catalog::namespace_name(electorate.schema) else { return };
    // oban_install refuses a prefix whose channels' names are too long, but a prefix can be renamed
    // later.
    if let Ok(target) = Target::new(Some(electorate.schema), &prefix, "leader") {
        let payload = wire::object_of_one("down", &encoding::to_server_lossy(electorate.name.as_str()));
        if payload.len() <= wire::MAX_PAYLOAD {
            or_raise(bus::queue(&target, payload, Requester::Call));
        }
    }
}

/// Returns the value of `result`. Raises the error of `result` as an ERROR, which aborts the
/// keeper's transaction.
pub fn or_raise<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| pgrx::error!("{e}"))
}
