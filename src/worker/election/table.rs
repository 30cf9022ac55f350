//! The transactions of an election: what they read, write and announce in `<prefix>.oban_peers`.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiResult;

use super::Outcome;
use crate::bus::{self, Target};
use crate::config;
use crate::logic::outbox::Origin;
use crate::logic::peer::rows::{self, LEASED, Verdict, judge};
use crate::logic::peer::{Candidate, Electorate, Ended, Leadership, MAX_NODE, Node};
use crate::logic::wire;
use crate::pg::datum::Text;
use crate::pg::{catalog, encoding, sequence, session, spi, time};
use crate::shmem;

/// A prefix's table.
pub struct Table {
    /// Quoted.
    pub name: String,
    /// As whom to write it.
    pub elector: u32,
    oid: u32,
}

/// The prefix's table, locked against what would make it another one, or why there can be no election.
pub fn table(prefix: &str) -> Result<Table, Outcome> {
    let hint = format!("Run SELECT oban_install({}).", pgrx::spi::quote_literal(prefix));
    let installed = || catalog::peers_table(prefix).filter(|t| t.installed);
    let mut found = installed();
    if found.is_none()
        && let Some(oid) = spi::peers_by_query(prefix)
    {
        // Whoever installs it wakes us with the commit, a moment before caches are told; and still has its lock
        // until they are.
        catalog::lock_for_writing(oid);
        found = installed();
    }
    let Some(table) = found else { return Err(Outcome::Missing { hint }) };
    // Not one that somebody put in its place while its lock was waited for. (A name can change hands later,
    // too: whom that could harm is `catalog::elector`'s business.)
    catalog::lock_for_writing(table.oid);
    match installed() {
        Some(now) if now.oid == table.oid => {
            Ok(Table { name: spi::qualified(prefix, "oban_peers"), elector: now.elector, oid: now.oid })
        }
        _ => Err(Outcome::Again),
    }
}

/// Until when a leader's row holds if it is written at `now`.
fn lease_of(leader: &Candidate, now: i64) -> i64 {
    leader.lease_ends.unwrap_or(now + config::lease())
}

/// Extends the lease of our own row, and of no other.
pub fn renew(electorate: &Electorate, leader: &Candidate, term: i64) -> Outcome {
    match table(electorate.prefix.as_str()) {
        Ok(table) => extend(&table, electorate, leader, term),
        Err(outcome) => outcome,
    }
}

fn extend(table: &Table, electorate: &Electorate, leader: &Candidate, term: i64) -> Outcome {
    let expires_at = lease_of(leader, time::now());
    let sql = format!(
        "UPDATE ONLY {} SET expires_at = $1 WHERE name = $2 AND node = $3 AND term = $4 RETURNING started_at",
        table.name
    );
    let renewed = spi::as_owner(table.elector, || {
        Spi::connect(|client| {
            let args = [
                time::utc_timestamp(expires_at).into(),
                electorate.name.as_str().into(),
                leader.node.as_str().into(),
                term.into(),
            ];
            let rows = spi::write(client, &sql, &args)?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one::<Timestamp>() }
        })
    });
    match or_raise(renewed) {
        Some(started_at) => {
            Outcome::Ours(Leadership::ours(leader, term, time::micros(started_at), expires_at))
        }
        // Deleted, or another's by now: no leader of ours, and the next plan looks for one.
        None => Outcome::Again,
    }
}

/// One row of oban_peers.
pub struct PeerRow {
    pub name: String,
    pub node: Node,
    term: Option<i64>,
    boot: Option<i64>,
    started_at: i64,
    pub expires_at: i64,
}

impl PeerRow {
    /// Whether nobody can lead by it any more, whoever lives.
    pub fn is_void(&self, boot: i64, now: i64) -> bool {
        self.expires_at <= now || !rows::outlives_start(self.boot, boot)
    }
}

/// What became of a row that is to be deleted.
pub enum Deletion {
    Done,
    /// Somebody's transaction holds it.
    Held,
    /// It is another one by now, or none.
    Gone,
}

/// Ends the leadership that is over and elects the candidate, in one transaction, which also
/// announces the end (`down`), once. `seen` is the greatest term of the name that is known.
pub fn elect(
    electorate: &Electorate,
    ended: Option<Ended>,
    candidate: Option<Candidate>,
    seen: i64,
) -> Outcome {
    // The sequence of terms is the extension's: keep it from being dropped under us.
    if catalog::lock_extension().is_none() {
        return Outcome::Dropped;
    }
    let table = match table(electorate.prefix.as_str()) {
        Ok(found) => found,
        Err(outcome) => return outcome,
    };
    let (name, boot) = (electorate.name.as_str(), or_raise(shmem::boot()));
    // The extension may have been dropped and created since, and its sequence with it.
    let mut seen = seen.max(ended.map_or(0, |ended| ended.term));
    let mut down = false;
    if let Some(Ended { node, term, .. }) = ended {
        let args = [name.into(), node.as_str().into(), term.into()];
        match delete(&table, "name = $1 AND node = $2 AND term = $3", &args) {
            Deletion::Held => return Outcome::Fenced,
            Deletion::Done => down = true,
            Deletion::Gone => {}
        }
    }
    let row = spi::as_owner(table.elector, || or_raise(read_rows(&table.name, Some(name)))).pop();
    let now = time::now();
    let mut candidate = candidate;
    if let Some(row) = row {
        seen = seen.max(row.term.unwrap_or(0));
        let live = shmem::peers_view(|v| v.member_of_node(electorate, row.node.as_str(), now));
        let judged = rows::Row { expires_at: row.expires_at, term: row.term, boot: row.boot };
        match judge(judged, boot, session::timeline(), live.ok().flatten(), now) {
            Verdict::Foreign => {
                // Without triggers its node may resign and nobody is told.
                let look_at = if spi::is_guarded(table.oid) { i64::MAX } else { now + config::lease() / 2 };
                let expires_at = row.expires_at.min(look_at);
                let term = row.term.unwrap_or(0);
                return Outcome::Foreign(Leadership::foreign(row.node, term, row.started_at, expires_at));
            }
            Verdict::Adopt(leader) => {
                // Renewed at once: a row that can't be renewed must not be found here again and again.
                return match extend(&table, electorate, &leader, row.term.unwrap_or(0)) {
                    Outcome::Ours(renewed) => Outcome::Ours(renewed),
                    _ => or_raise(Err("its row can't be renewed")),
                };
            }
            Verdict::Reissue(leader) => match delete_row(&table, &row) {
                Deletion::Done => candidate = Some(leader),
                Deletion::Held => return Outcome::Fenced,
                Deletion::Gone => return Outcome::Again,
            },
            Verdict::Void => match delete_row(&table, &row) {
                Deletion::Done => down = true,
                Deletion::Held => return Outcome::Fenced,
                Deletion::Gone => return Outcome::Again,
            },
        }
    }
    if down {
        announce_down(electorate.prefix.as_str(), name);
    }
    let Some(leader) = candidate else { return Outcome::Vacant };
    let terms = sequence::terms();
    let term = sequence::next_term(terms, rows::next_term(session::timeline(), seen));
    let expires_at = lease_of(&leader, now);
    let boot = if leader.lease_ends.is_some() { LEASED } else { boot };
    let sql = format!(
        "INSERT INTO {} (name, node, started_at, expires_at, term, boot) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (name) DO NOTHING RETURNING 1",
        table.name
    );
    let args = [
        name.into(),
        leader.node.as_str().into(),
        time::utc_timestamp(now).into(),
        time::utc_timestamp(expires_at).into(),
        term.into(),
        boot.into(),
    ];
    if !changed(table.elector, &sql, &args) {
        return Outcome::Again;
    }
    let least = rows::next_term(session::timeline(), seen);
    let term = sequence::later_term(terms, table.oid, name, term, least);
    Outcome::Ours(Leadership::ours(&leader, term, now, expires_at))
}

/// Deletes just this row: by now it may be renewed, or another's.
pub fn delete_row(table: &Table, row: &PeerRow) -> Deletion {
    let (started_at, expires_at) = (time::utc_timestamp(row.started_at), time::utc_timestamp(row.expires_at));
    let args = [row.name.as_str().into(), started_at.into(), expires_at.into()];
    delete(table, "name = $1 AND started_at = $2 AND expires_at = $3", &args)
}

/// Deletes the row of which `is_it` is true, unless somebody holds it: who fences must not be waited for.
fn delete(table: &Table, is_it: &str, args: &[DatumWithOid<'_>]) -> Deletion {
    let name = &table.name;
    let sql = format!(
        "DELETE FROM ONLY {name} WHERE ctid = (SELECT ctid FROM ONLY {name} WHERE {is_it} FOR UPDATE SKIP LOCKED)
         RETURNING 1"
    );
    if changed(table.elector, &sql, args) {
        return Deletion::Done;
    }
    let there = changed(table.elector, &format!("SELECT 1 FROM ONLY {name} WHERE {is_it}"), args);
    if there { Deletion::Held } else { Deletion::Gone }
}

/// Runs a statement as the table's owner; whether it gave a row.
fn changed(owner: u32, sql: &str, args: &[DatumWithOid<'_>]) -> bool {
    let run = || Spi::connect(|client| SpiResult::Ok(!spi::write(client, sql, args)?.is_empty()));
    spi::as_owner(owner, || or_raise(run()))
}

/// The most rows that are read at a time.
pub const MOST_ROWS: usize = 1_000;

/// The row of a name, or of all that are no longer than any of Oban's, those that expire first in front: to copy
/// what somebody else has written has its limits.
pub fn read_rows(table: &str, name: Option<&str>) -> SpiResult<Vec<PeerRow>> {
    let (which, args) = match name {
        Some(name) => ("name = $1", vec![name.into()]),
        None => ("octet_length(name) < 1024", Vec::new()),
    };
    let sql = format!(
        "SELECT name, left(node, {MAX_NODE}), term, boot, started_at, expires_at FROM ONLY {table} WHERE {which}
         ORDER BY expires_at LIMIT {MOST_ROWS}"
    );
    let text = |text: Option<Text>| text.map_or_else(String::new, |text| text.0);
    Spi::connect(|client| {
        // With a snapshot of now: what was deleted since the transaction began must not be seen.
        let rows = spi::write(client, &sql, &args)?;
        rows.map(|row| {
            let time_at = |at| SpiResult::Ok(row.get::<Timestamp>(at)?.map_or(0, time::micros));
            Ok(PeerRow {
                name: text(row.get(1)?),
                node: Node::truncated(&text(row.get(2)?)),
                term: row.get(3)?,
                boot: row.get(4)?,
                started_at: time_at(5)?,
                expires_at: time_at(6)?,
            })
        })
        .collect()
    })
}

/// Tells every node, foreign ones too, that a leadership ended: they hold an election.
pub fn announce_down(prefix: &str, name: &str) {
    // oban_install refuses a prefix whose channels don't fit; an adopted table may still have one.
    if let Ok(target) = Target::new(prefix, "leader") {
        let payload = wire::object_of_one("down", &encoding::to_server(name));
        if payload.len() <= wire::MAX_PAYLOAD {
            or_raise(bus::queue(&target, payload, Origin::Call));
        }
    }
}

/// In a transaction of the keeper: an error of ours ends it as one of Postgres' does.
pub fn or_raise<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| pgrx::error!("{e}"))
}
