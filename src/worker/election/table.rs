//! The transactions of an election: what they read, write and announce in `<prefix>.oban_peers`.
//!
//! They run no user's code, and what the keeper writes fires no trigger. The keeper itself does what the
//! triggers of the extension do for other writers: it sets `term` and `boot`, and tells shared memory
//! (`Elections::record_outcome`).

use super::super::keeper;
use super::Outcome;
use crate::bus::{self, Target};
use crate::config;
use crate::logic::outbox::Origin;
use crate::logic::peer::rows::{self, LEASED, Verdict, judge};
use crate::logic::peer::{Candidate, Electorate, Ended, Leadership};
use crate::logic::{shape, wire};
use crate::pg::heap::TableLock;
use crate::pg::{catalog, encoding, session, time};
use crate::prefix::peers::{Change, NewRow, PeerRow, PeersTable, Unusable};
use crate::prefix::terms;
use crate::shmem;

/// A prefix's table. `Err` says why there can be no election. `wait` is for `PeersTable::open`.
pub fn open(prefix: &str, wait: bool) -> Result<PeersTable<'static>, Outcome> {
    if keeper::database_is_read_only() {
        let what = "the database is read-only by default";
        let hint = "Run ALTER DATABASE ... SET default_transaction_read_only = off.";
        return Err(Outcome::Unusable { what: what.into(), hint: hint.into() });
    }
    PeersTable::open(prefix, TableLock::RowExclusive, wait).map_err(|why| match why {
        Unusable::Missing => Outcome::Missing {
            hint: format!("Run SELECT oban_install({}).", pgrx::spi::quote_literal(prefix)),
        },
        Unusable::Locked => Outcome::Locked,
        Unusable::Replaced => Outcome::Again,
        Unusable::Obstacles(obstacles) => {
            let hint = "Elections run no code of a table's owner: oban_check() names all that is in the way.";
            Outcome::Unusable { what: shape::described(&obstacles), hint: hint.into() }
        }
    })
}

/// The end of a leader's lease in a row that is written at `now`.
fn lease_of(leader: &Candidate, now: i64) -> i64 {
    leader.lease_ends.unwrap_or(now + config::lease())
}

/// Extends the lease of a leading member's row of this term, and of no other row.
pub fn renew(electorate: &Electorate, leader: &Candidate, term: i64, wait: bool) -> Outcome {
    match open(electorate.prefix.as_str(), wait) {
        Ok(table) => extend(&table, electorate, leader, term),
        Err(outcome) => outcome,
    }
}

fn extend(table: &PeersTable<'_>, electorate: &Electorate, leader: &Candidate, term: i64) -> Outcome {
    let expires_at = lease_of(leader, time::now());
    match table.renew(electorate.name.as_str(), leader.node.as_str(), term, expires_at) {
        Ok(started_at) => Outcome::Ours(Leadership::ours(leader, term, started_at, expires_at)),
        // Another transaction has locked or deleted the row, and has not ended.
        Err(Change::Held) => Outcome::Held,
        // The row was deleted, or is another holder's: the next plan holds an election.
        Err(_) => Outcome::Again,
    }
}

/// Whether a row is void: its lease is over, or it belongs to a session before the server's last start.
pub fn is_void(row: &PeerRow, boot: i64, now: i64) -> bool {
    row.expires_at <= now || !rows::outlives_start(row.boot, boot)
}

/// The state of one election while it is held.
struct Election<'a> {
    electorate: &'a Electorate,
    table: PeersTable<'static>,
    candidate: Option<Candidate>,
    /// The greatest term of the name that is known.
    greatest_term: i64,
    /// A leadership ended in this transaction: its end has to be announced.
    down: bool,
    boot: i64,
    now: i64,
}

/// In one transaction: deletes the row of the leadership that has ended, announces that once (`down`) and
/// inserts the candidate's row. `greatest_term` is the greatest known term of the name.
pub fn elect(
    electorate: &Electorate,
    ended: Option<Ended>,
    candidate: Option<Candidate>,
    greatest_term: i64,
    wait: bool,
) -> Outcome {
    // The sequence of terms belongs to the extension, which must not be dropped meanwhile.
    if catalog::lock_extension().is_none() {
        return Outcome::Dropped;
    }
    let table = match open(electorate.prefix.as_str(), wait) {
        Ok(table) => table,
        Err(outcome) => return outcome,
    };
    let (boot, now) = (or_raise(shmem::boot()), time::now());
    let mut election = Election { electorate, table, candidate, greatest_term, down: false, boot, now };
    election.hold(ended).unwrap_or_else(|outcome| outcome)
}

impl Election<'_> {
    /// The outcome. `Err` is the outcome of an election that ended before a candidate was elected; what it
    /// has written until then is committed, too.
    fn hold(&mut self, ended: Option<Ended>) -> Result<Outcome, Outcome> {
        if let Some(ended) = ended {
            self.retire(ended)?;
        }
        let judged = self.judge_current_row();
        if self.down {
            announce_down(self.electorate.prefix.as_str(), self.electorate.name.as_str());
        }
        judged?;
        self.insert_candidate()
    }

    /// Deletes the row of a leadership that has ended.
    fn retire(&mut self, ended: Ended) -> Result<(), Outcome> {
        // The extension may have been dropped and created since, with a sequence that begins anew.
        self.greatest_term = self.greatest_term.max(ended.term);
        let name = self.electorate.name.as_str();
        match self.table.delete_term(name, ended.node.as_str(), ended.term) {
            Change::Held => return Err(Outcome::Held),
            Change::Done => self.down = true,
            Change::Gone => {}
        }
        Ok(())
    }

    /// Judges the row that the name has now, and deletes it if it is void. `Ok`: the name has no row any
    /// more.
    fn judge_current_row(&mut self) -> Result<(), Outcome> {
        let Some(found) = self.table.find(self.electorate.name.as_str()) else { return Ok(()) };
        let row = found.row;
        self.greatest_term = self.greatest_term.max(row.term.unwrap_or(0));
        let live = shmem::peers_view(|v| v.member_of_node(self.electorate, row.node.as_str(), self.now));
        let judged = rows::Row { expires_at: row.expires_at, term: row.term, boot: row.boot };
        match judge(judged, self.boot, session::timeline(), live.ok().flatten(), self.now) {
            Verdict::Foreign => {
                // Without the trigger the keeper does not hear of the row's deletion: it looks again.
                let look_at = if self.table.is_guarded() { i64::MAX } else { self.now + config::lease() / 2 };
                let (term, expires_at) = (row.term.unwrap_or(0), row.expires_at.min(look_at));
                Err(Outcome::Foreign(Leadership::foreign(row.node, term, row.started_at, expires_at)))
            }
            Verdict::Adopt(leader) => {
                // The row is renewed at once: one that can't be renewed must not be adopted again and again.
                Err(extend(&self.table, self.electorate, &leader, row.term.unwrap_or(0)))
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

    /// Deletes a row. `Err` is the outcome when another transaction holds the row or has changed it.
    fn remove(&self, row: &PeerRow) -> Result<(), Outcome> {
        match self.table.delete(row) {
            Change::Done => Ok(()),
            Change::Held => Err(Outcome::Held),
            Change::Gone => Err(Outcome::Again),
        }
    }

    /// Inserts the candidate's row, if there is a candidate, with a term above all earlier ones.
    fn insert_candidate(&self) -> Result<Outcome, Outcome> {
        let Some(leader) = self.candidate else { return Ok(Outcome::Vacant) };
        let sequence = terms::sequence();
        let least = rows::next_term(session::timeline(), self.greatest_term);
        let term = terms::next(sequence, least);
        let expires_at = lease_of(&leader, self.now);
        let name = self.electorate.name.as_str();
        let new = NewRow {
            name,
            node: leader.node.as_str(),
            started_at: self.now,
            expires_at,
            term,
            boot: if leader.lease_ends.is_some() { LEASED } else { self.boot },
        };
        match self.table.insert(&new) {
            Change::Done => {}
            Change::Held => return Err(Outcome::Held),
            Change::Gone => return Err(Outcome::Again),
        }
        let term = match terms::later(sequence, term, least) {
            Some(later) if self.table.set_term(&encoding::to_server(name), term, later) => later,
            _ => term,
        };
        Ok(Outcome::Ours(Leadership::ours(&leader, term, self.now, expires_at)))
    }
}

/// Announces to every node, foreign ones included, that a leadership has ended, so that they hold an
/// election.
pub fn announce_down(prefix: &str, name: &str) {
    // oban_install refuses a prefix whose channels' names are too long, but a prefix can be renamed later.
    let target = catalog::namespace(prefix).map(|schema| Target::new(Some(schema), prefix, "leader"));
    if let Some(Ok(target)) = target {
        let payload = wire::object_of_one("down", &encoding::to_server(name));
        if payload.len() <= wire::MAX_PAYLOAD {
            or_raise(bus::queue(&target, payload, Origin::Call));
        }
    }
}

/// The value of `result`. Raises its error as an ERROR, which aborts the keeper's transaction.
pub fn or_raise<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| pgrx::error!("{e}"))
}
