//! What a transaction of somebody else does to rows of oban_peers, told to shared memory and the keeper.
//!
//! A leadership of ours whose row is deleted is over *before* that commits, so that nobody can have taken the
//! name while our member still believes it leads; should the commit fail after that, the keeper deletes the
//! row and elects anew. That there is something to read is told after the commit. What savepoints take back
//! is no change. At PREPARE TRANSACTION a deletion counts as done: the row is locked from then on, and no
//! callback tells of COMMIT PREPARED itself (`tables` wakes the keeper then).

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::logic::leadership::{Electorate, Lease, RowChange};
use crate::pg::{clock, session, xact};

/// What happened to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRowChange {
    /// A foreign node has inserted a row, which has this term.
    Inserted(i64),
    /// The lease of the row of this term is shorter.
    Written(i64),
    /// A foreign node has renewed its row, which may make its lease shorter. The lease says nothing of the table.
    Renewed { lease: Lease, shorter: bool },
    /// The row of this term was deleted.
    Deleted(i64),
    /// All rows of the schema were. The electorate's name is empty.
    Truncated,
}

/// Past that a transaction's changes count as those of a TRUNCATE: who leads is elected anew.
const MAX_CHANGES: usize = 1_000;

thread_local! {
    /// In their order, each with the level of its subtransaction.
    static CHANGES: RefCell<Vec<(Electorate, PeerRowChange, u32)>> = const { RefCell::new(Vec::new()) };
}

/// In `_PG_init` while preloading.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Notes a change that counts when this transaction commits.
pub fn changed(electorate: Electorate, change: PeerRowChange) {
    if !super::is_attached() {
        return;
    }
    let level = xact::level();
    CHANGES.with_borrow_mut(|changes| {
        let known = |(e, c, _): &(Electorate, PeerRowChange, u32)| *e == electorate && *c == change;
        if changes.iter().any(known) {
            return; // of an outer level or this one; an inner one's end has lifted it or taken it out
        }
        if matches!(change, PeerRowChange::Renewed { .. }) && changes.len() >= MAX_CHANGES {
            return; // the keeper sees it when it looks at the old end of the lease
        }
        if changes.len() < MAX_CHANGES {
            changes.push((electorate, change, level));
        } else {
            let all = Electorate { name: Default::default(), ..electorate };
            if !changes.iter().any(|(e, c, _)| *e == all && *c == PeerRowChange::Truncated) {
                changes.push((all, PeerRowChange::Truncated, level));
            }
        }
    });
}

/// Tells shared memory. Callable after commit.
fn tell(changes: &[(Electorate, PeerRowChange, u32)]) {
    let now = clock::now();
    let _ = super::peers(|p| {
        for (electorate, change, _) in changes {
            match change {
                PeerRowChange::Inserted(term) => {
                    p.foreign_leads(electorate);
                    p.row_changed(electorate, RowChange::Written(*term), now);
                }
                PeerRowChange::Written(term) => p.row_changed(electorate, RowChange::Written(*term), now),
                PeerRowChange::Renewed { lease, .. } => {
                    p.foreign_leads(electorate);
                    p.renewed(electorate, *lease);
                }
                PeerRowChange::Deleted(term) => p.row_changed(electorate, RowChange::Deleted(*term), now),
                PeerRowChange::Truncated => p.rows_truncated(electorate.database, electorate.schema, now),
            }
        }
    });
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    let (before, end) =
        (xact::is_before_commit(event) || xact::is_before_prepare(event), xact::is_end(event));
    if !(before || end) || CHANGES.with_borrow(Vec::is_empty) {
        return;
    }
    let changes = CHANGES.take();
    if before {
        let ends: Vec<_> = changes
            .iter()
            .filter(|(_, c, _)| matches!(c, PeerRowChange::Deleted(_) | PeerRowChange::Truncated))
            .copied()
            .collect();
        tell(&ends);
        CHANGES.set(changes);
        return;
    }
    if xact::is_commit(event) {
        tell(&changes);
    }
    // After an abort, too: a leadership may be over since just before it.
    let database = session::database();
    let news = changes.iter().filter(|(_, c, _)| !matches!(c, PeerRowChange::Renewed { shorter: false, .. }));
    let mut schemas = news.map(|(e, _, _)| e.schema);
    let Some(first) = schemas.next() else { return };
    let first = Some(first);
    let one = first.filter(|first| schemas.all(|other| other == *first));
    super::look_at_rows(database, one);
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_COMMIT_SUB};
    let level = xact::level();
    CHANGES.with_borrow_mut(|changes| match event {
        SUBXACT_EVENT_ABORT_SUB => changes.retain(|(_, _, at)| *at < level),
        SUBXACT_EVENT_COMMIT_SUB => {
            changes.iter_mut().filter(|(_, _, at)| *at >= level).for_each(|(_, _, at)| *at = level - 1);
        }
        _ => {}
    });
}
