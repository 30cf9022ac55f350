//! Changes of rows of oban_peers by foreign nodes and by hand, told to shared memory and to the
//! keeper.
//!
//! A local leadership whose row is deleted ends in shared memory *before* the deletion commits. So
//! no other node can have the name while a member still believes that it leads. If the commit fails
//! after that, the keeper deletes the row and elects anew. The keeper is told after the commit that
//! there is something to read.
//!
//! A change that a savepoint takes back is no change. A deletion counts as done at PREPARE
//! TRANSACTION: the row is locked from then on, and no callback tells of the rows of COMMIT
//! PREPARED (`ddl_changes` wakes the keeper then).

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::logic::ids::Term;
use crate::logic::leadership::{Electorate, Lease, RowChange};
use crate::pg::{clock, session, xact};
use crate::shmem::Segment;

/// A change of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRowChange {
    /// A foreign node has inserted a row with this term, or an UPDATE has handed a row to a foreign
    /// node with this term.
    Inserted(Term),
    /// An UPDATE that is no renewal has written the row of this term: it has handed the row to a
    /// member, or made the lease shorter.
    Written(Term),
    /// A foreign node has renewed its row, which may make the lease shorter. `lease` says nothing
    /// of the table.
    Renewed { lease: Lease, shorter: bool },
    /// The row of this term was deleted.
    Deleted(Term),
    /// All rows of the schema were deleted. The name of the electorate is empty.
    Truncated,
}

/// The most changes of one transaction that are kept. Each further change counts as a TRUNCATE of
/// its schema's table: all leaders of that schema are elected anew. A further renewal is not kept
/// and counts as nothing: the keeper finds it when the old lease ends.
const MAX_CHANGES: usize = 1_000;

thread_local! {
    /// The changes in their order, each with the level of the subtransaction that made it.
    static CHANGES: RefCell<Vec<(Electorate, PeerRowChange, u32)>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Notes a change, which counts when this transaction commits.
pub fn changed(electorate: Electorate, change: PeerRowChange) {
    if Segment::attached().is_none() {
        return;
    }
    let level = xact::level();
    CHANGES.with_borrow_mut(|changes| {
        let known = |(e, c, _): &(Electorate, PeerRowChange, u32)| *e == electorate && *c == change;
        if changes.iter().any(known) {
            // The change is noted at this level or an outer one. The end of an inner level lifts a
            // change or drops it.
            return;
        }
        if matches!(change, PeerRowChange::Renewed { .. }) && changes.len() >= MAX_CHANGES {
            return; // the keeper sees the new lease when it looks at the row at the old deadline
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

/// Records changes in shared memory. Callable after commit.
fn record(segment: Segment, changes: &[(Electorate, PeerRowChange, u32)]) {
    let now = clock::now();
    segment.leaderships(|p| {
        for (electorate, change, _) in changes {
            match change {
                PeerRowChange::Inserted(term) => {
                    p.foreign_leads(electorate);
                    p.row_changed(electorate, RowChange::Written(*term), now);
                }
                PeerRowChange::Written(term) => p.row_changed(electorate, RowChange::Written(*term), now),
                PeerRowChange::Renewed { lease, .. } => {
                    p.foreign_leads(electorate);
                    p.foreign_renewed(electorate, *lease);
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
    let Some(segment) = Segment::attached() else { return };
    if before {
        let ends: Vec<_> = changes
            .iter()
            .filter(|(_, c, _)| matches!(c, PeerRowChange::Deleted(_) | PeerRowChange::Truncated))
            .copied()
            .collect();
        record(segment, &ends);
        CHANGES.set(changes);
        return;
    }
    if xact::is_commit(event) {
        record(segment, &changes);
    }
    // This runs after an abort, too: a leadership may have ended in shared memory just before the
    // abort.
    let database = session::database();
    let news = changes.iter().filter(|(_, c, _)| !matches!(c, PeerRowChange::Renewed { shorter: false, .. }));
    let mut schemas = news.map(|(e, _, _)| e.schema);
    let Some(first) = schemas.next() else { return };
    let first = Some(first);
    let one = first.filter(|first| schemas.all(|other| other == *first));
    segment.rows_changed(database, one);
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
