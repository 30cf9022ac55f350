//! The triggers on oban_peers. They hold foreign nodes (nodes that are not members) to the rules of
//! `logic::leadership::foreign_write`, give the nodes' leaderships terms, and tell shared memory and the
//! keeper what the nodes have changed.
//!
//! An upsert calls the triggers twice: BEFORE INSERT with the row that its node proposes, and, if
//! the name already has a row, BEFORE UPDATE with that row. Between the two calls the upsert may
//! wait for a row that is not committed yet, so only the second call can judge. The second call
//! needs to know what was proposed, so the first call remembers the proposal. The end of the
//! statement forgets the proposal, and so does a rollback.
//!
//! A term is drawn before the row is inserted. Meanwhile other nodes may draw terms and lead. So
//! once the row is inserted, its term is replaced if it is not the last term drawn: see
//! `terms::later`. The new term is written through the table's access methods, so no trigger fires
//! for this write.
//!
//! An UPDATE of `node` hands a leadership over. An UPDATE of a column that is in no key does not
//! wait for FOR KEY SHARE. So the trigger itself locks the row FOR UPDATE: the trigger waits for
//! the fences on the row, and later fences wait for the transaction of the UPDATE.
//!
//! The keeper's writes fire no triggers. Without preload the triggers do everything except telling
//! shared memory and the keeper.

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use pgrx::AllocatedByPostgres;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::backend::peer_row_changes::{PeerRowChange, changed};
use crate::backend::xact_end::{Note, note};
use crate::bus::leadership::{self, LeaderChange};
use crate::config;
use crate::error::Error;
use crate::logic::ids::{TableOid, Term};
use crate::logic::leadership::foreign_write::{self, Changes, Proposed, Ruling, Update};
use crate::logic::leadership::plan::Copied;
use crate::logic::leadership::{Electorate, Lease, MAX_NAME, MAX_NODE, Node, term};
use crate::logic::text::Text;
use crate::logic::times::WallTime;
use crate::pg::row_trigger::{Call, RowTrigger};
use crate::pg::tuple::{Column, Tuple};
use crate::pg::{clock, encoding, session, time, trigger, xact};
use crate::prefix::peers::{Columns, PeersTable, TABLE};
use crate::prefix::terms;
use crate::shmem::Segment;

/// The length and the hash of a text. They are compared in place of the text, which may be as long
/// as a gigabyte.
type Digest = (usize, u64);

/// The last row that the running statement has proposed to insert, in the subtransaction of this
/// level.
struct Proposal {
    table: TableOid,
    name: Digest,
    node: Digest,
    expires_at: WallTime,
    level: u32,
}

thread_local! {
    /// The proposals that wait for their second call: at most one, unless a user's trigger runs
    /// statements on such tables in between.
    static PROPOSALS: RefCell<Vec<Proposal>> = const { RefCell::new(Vec::new()) };
}

/// Registers the callbacks that forget proposals. `_PG_init` calls this.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_end(event) {
        PROPOSALS.with_borrow_mut(Vec::clear);
    }
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        let level = xact::level();
        PROPOSALS.with_borrow_mut(|proposals| proposals.retain(|p| p.level < level));
    }
}

/// Returns the digest of a text. `None`: the value is NULL.
fn digest(row: &Tuple, column: Column) -> Option<Digest> {
    row.with_text(column, |text| {
        let mut hasher = DefaultHasher::new();
        hasher.write(text);
        (text.len(), hasher.finish())
    })
}

#[pg_extern(sql = r#"
CREATE FUNCTION "obanrs_peers"()
	RETURNS TRIGGER
	LANGUAGE c
	AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn obanrs_peers(fcinfo: pg_sys::FunctionCallInfo) -> Result<trigger::Answer, ErrorReport> {
    trigger::called(fcinfo, Error::WrongPeersTrigger, fired)
}

/// Returns the row that a BEFORE trigger writes. `None`: the BEFORE trigger writes no row, or this
/// is an AFTER trigger.
fn fired<'a>(trigger: &'a PgTrigger<'a>) -> Option<PgHeapTuple<'a, AllocatedByPostgres>> {
    let row = RowTrigger::of(trigger);
    let Some(call) = row.call() else {
        ErrorReport::from(Error::WrongPeersTrigger).report(PgLogLevel::ERROR);
        return None;
    };
    let before = matches!(call, Call::BeforeInsert | Call::BeforeUpdate);
    // The table may have been altered or renamed since, or a user may have put this trigger on
    // another table. Then no rule applies, and there is nothing to tell.
    let concerns_us = row.is_of(TABLE);
    let Some(columns) = Columns::of(|name| row.column(name)).filter(|_| concerns_us) else {
        return before.then(|| row.unchanged());
    };
    match call {
        Call::BeforeInsert => Some(before_insert(&row, &columns)),
        Call::BeforeUpdate => before_update(&row, &columns),
        Call::AfterInsertStatement => {
            PROPOSALS.with_borrow_mut(|proposals| proposals.retain(|p| p.table != row.table()));
            None
        }
        Call::AfterTruncate => {
            let (database, schema) = (session::database(), row.schema());
            let leaderships = Segment::attached()
                .map(|segment| segment.leaderships_view(|v| v.leaderships(database, schema)))
                .unwrap_or_default();
            for Copied { electorate: e, node, term } in leaderships {
                leadership::tell(LeaderChange::Ended, schema, e.name.as_str(), node.as_str(), term);
            }
            changed(electorate(&row, ""), PeerRowChange::Truncated);
            None
        }
        Call::AfterInsert | Call::AfterUpdate | Call::AfterDelete => {
            after(&row, call, &columns);
            None
        }
    }
}

/// Returns the least term of this server's present timeline.
fn least_term() -> Term {
    term::least_term(session::timeline())
}

/// Draws the next term.
fn next_term() -> Term {
    terms::next(terms::sequence(), least_term())
}

/// Returns the row to insert. The row has the server's times, a term above all others, and no
/// `boot`.
fn before_insert<'a>(row: &RowTrigger<'a>, columns: &Columns) -> PgHeapTuple<'a, AllocatedByPostgres> {
    let (proposed, now) = (row.row(), time::now());
    let time = |column| proposed.i64(column).map(WallTime);
    let (started_at, expires_at) = (time(columns.started_at), time(columns.expires_at));
    // If one of the row's times is NULL, the row's lease is not longer than a member's lease.
    let lease = config::lease();
    let expires_at = expires_at
        .map(|ends| foreign_write::lease_of(started_at.unwrap_or(WallTime(i64::MIN)), ends, now, lease));
    let (name, node) = (digest(&proposed, columns.name), digest(&proposed, columns.node));
    if let (Some(name), Some(node), Some(expires_at)) = (name, node, expires_at) {
        let (table, level) = (row.table(), xact::level());
        PROPOSALS.with_borrow_mut(|proposals| {
            proposals.retain(|p| (p.table, p.name) != (table, name));
            proposals.push(Proposal { table, name, node, expires_at, level });
        });
    }
    row.with([
        (columns.started_at, started_at.map(|_| now.0)),
        (columns.expires_at, expires_at.map(|ends| ends.0)),
        (columns.term, Some(next_term().0)),
        (columns.boot, None),
    ])
}

/// Returns the row to write in place of the old one. `None`: the row stays unchanged. Raises 22023
/// if the UPDATE would change what does not change in a leadership.
fn before_update<'a>(
    row: &RowTrigger<'a>,
    columns: &Columns,
) -> Option<PgHeapTuple<'a, AllocatedByPostgres>> {
    let (old, new, now) = (row.row(), row.new_row(), time::now());
    let (name, node) = (digest(&old, columns.name), digest(&old, columns.node));
    let proposal = PROPOSALS.with_borrow_mut(|proposals| {
        let of_this = |p: &Proposal| p.table == row.table() && Some(p.name) == name;
        let at = proposals.iter().rposition(of_this)?;
        Some(proposals.remove(at))
    });
    let (local, term) = (old.i64(columns.boot).is_some(), old.i64(columns.term).map(Term));
    let update = |now| {
        let update = Update {
            local,
            changes: changes(&old, &new, columns),
            expires_at: WallTime(new.i64(columns.expires_at)?),
            proposed: proposal
                .as_ref()
                .map(|p| Proposed { same_node: Some(p.node) == node, expires_at: p.expires_at }),
        };
        Some(foreign_write::update(update, now, config::lease()))
    };
    match update(now)? {
        Ruling::Nothing => None,
        Ruling::Refuse => {
            ErrorReport::from(Error::HolderChanged).report(PgLogLevel::ERROR);
            None
        }
        // The row of a leader from before the table had its triggers has no term yet. A row from
        // before a promotion may have a term that is no longer the greatest.
        Ruling::Renew { expires_at } => Some(row.with([
            (columns.expires_at, Some(expires_at.0)),
            (columns.term, Some(term.filter(|term| *term >= least_term()).unwrap_or_else(next_term).0)),
        ])),
        Ruling::HandOver { .. } => {
            // The keeper can't renew the row during this wait. So the keeper looks at the row
            // again, whatever becomes of this transaction.
            note(Note::Fence);
            // The row is locked even if the table has an obstacle by now: fences may have been
            // taken before that.
            if !row.lock_for_update() {
                ErrorReport::from(Error::HolderChanged).report(PgLogLevel::ERROR);
            }
            // The wait may have been long, so the lease and the term are computed again.
            let now = time::now();
            let Some(Ruling::HandOver { expires_at }) = update(now) else { return None };
            Some(row.with([
                (columns.started_at, Some(now.0)),
                (columns.expires_at, Some(expires_at.0)),
                (columns.term, Some(next_term().0)),
                (columns.boot, None),
            ]))
        }
    }
}

/// Returns what an UPDATE changes in a row, besides the end of the lease.
fn changes(old: &Tuple, new: &Tuple, columns: &Columns) -> Changes {
    let same_text = |column| digest(old, column) == digest(new, column);
    let same_number = |column| old.i64(column) == new.i64(column);
    let same_start = same_number(columns.started_at);
    if !same_text(columns.name) || !same_number(columns.term) || !same_number(columns.boot) {
        return Changes::Identity;
    }
    match (same_text(columns.node), same_start) {
        (true, true) => Changes::Nothing,
        (true, false) => Changes::Identity,
        (false, _) => {
            Changes::Node { started_at: new.i64(columns.started_at).map(WallTime).filter(|_| !same_start) }
        }
    }
}

/// Tells shared memory and the keeper of a change. A renewal that makes a lease longer is told to
/// shared memory only. A member's row that is renewed by hand to a later end is told to neither.
fn after(row: &RowTrigger<'_>, call: Call, columns: &Columns) {
    let old = row.row();
    let term = |row: &Tuple| Term(row.i64(columns.term).unwrap_or(0));
    // A name that is longer than `MAX_NAME` can have no member. The empty name tells the keeper of
    // the whole prefix.
    let name = old.with_text(columns.name, |name| {
        if name.len() <= MAX_NAME { encoding::to_utf8_lossy(name).into_owned() } else { String::new() }
    });
    let Some(name) = name else { return };
    let handed_over = || digest(&row.new_row(), columns.node) != digest(&old, columns.node);
    let tell = |change, of: &Tuple, term| {
        leadership::tell(change, row.schema(), &name, &node(of, columns), term);
    };
    let change = match call {
        // A handover is told as a DELETE and an INSERT.
        Call::AfterUpdate if handed_over() => {
            tell(LeaderChange::Ended, &old, term(&old));
            changed(electorate(row, &name), PeerRowChange::Deleted(term(&old)));
            let new = row.new_row();
            let term = reissued(row, columns, &name, term(&new));
            tell(LeaderChange::Elected, &new, term);
            // An UPDATE by hand may name a member, which is not a foreign node.
            let (e, node, now) = (electorate(row, &name), node(&new, columns), clock::now());
            let member = Segment::attached()
                .and_then(|segment| segment.leaderships_view(|v| v.member_of_node(&e, &node, now)));
            if member.is_some() { PeerRowChange::Written(term) } else { PeerRowChange::Inserted(term) }
        }
        Call::AfterInsert => {
            let term = reissued(row, columns, &name, term(&old));
            tell(LeaderChange::Elected, &old, term);
            PeerRowChange::Inserted(term)
        }
        Call::AfterDelete => {
            tell(LeaderChange::Ended, &old, term(&old));
            PeerRowChange::Deleted(term(&old))
        }
        _ => {
            let new = row.new_row();
            let shorter = new.i64(columns.expires_at) < old.i64(columns.expires_at);
            match renewal(&new, columns) {
                Some(lease) if lease.term == term(&old) => PeerRowChange::Renewed { lease, shorter },
                _ if shorter => PeerRowChange::Written(term(&new)),
                _ => return,
            }
        }
    };
    changed(electorate(row, &name), change);
}

/// Returns the node of a row, at most `MAX_NODE` bytes of it.
fn node(row: &Tuple, columns: &Columns) -> String {
    let node = row.text_prefix(columns.node, MAX_NODE).unwrap_or_default();
    Node::truncated(&encoding::to_utf8_lossy(&node)).as_str().to_owned()
}

/// Returns the lease of a renewed row of a foreign node, with its deadline as of now. `None`: the
/// row is a member's, or has no end of a lease.
fn renewal(row: &Tuple, columns: &Columns) -> Option<Lease> {
    let expires_at = row.i64(columns.expires_at).map(WallTime).filter(|_| row.i64(columns.boot).is_none())?;
    Some(Lease {
        term: Term(row.i64(columns.term).unwrap_or(0)),
        started_at: WallTime(row.i64(columns.started_at).unwrap_or(0)),
        expires_at,
        deadline: clock::now().saturating_add(expires_at.saturating_sub(time::now())),
        ..Lease::default()
    })
}

/// Returns the term of a row that was just inserted or handed over. If another term was drawn
/// since, the row's term is replaced first. In a table with an obstacle the row keeps its term: no
/// elections are held there, and the INSERT must not fail.
fn reissued(row: &RowTrigger<'_>, columns: &Columns, name: &str, term: Term) -> Term {
    let Some(new) = terms::later(terms::sequence(), term, least_term()).filter(|_| !name.is_empty()) else {
        return term;
    };
    let key = row.row().text_prefix(columns.name, MAX_NAME).unwrap_or_default();
    xact::next_command(); // makes visible what this statement wrote
    match PeersTable::of_trigger(row) {
        Ok(table) if table.set_term(&key, term, new) => new,
        _ => term,
    }
}

fn electorate(row: &RowTrigger<'_>, name: &str) -> Electorate {
    Electorate {
        database: session::database(),
        schema: row.schema(),
        name: Text::new(name).unwrap_or_default(),
    }
}
