//! What the keeper records in shared memory after a step's commit, and the log lines of changes of
//! leaders.

use pgrx::prelude::*;

use super::super::process;
use super::names;
use crate::logic::counter::Counter;
use crate::logic::leadership::{Electorate, Leadership, Recorded};
use crate::pg::{clock, latch};
use crate::shmem::{Segment, stats};

/// Records in shared memory the leader that the commit has written or found. Logs a change of
/// leader.
/// False: shared memory has changed since `changes_seen` was read, and nothing is recorded.
pub fn record(segment: Segment, electorate: &Electorate, row: Leadership, changes_seen: u32) -> bool {
    let recorded = segment.leaderships(|l| l.record(electorate, row, changes_seen, clock::now()));
    let Recorded::After { before, without } = recorded else { return false };
    if before.is_some_and(|b| (b.node, b.lease.term) == (row.node, row.lease.term)) {
        return true;
    }
    if row.is_local() {
        stats::count(Counter::Elections, 1);
        if let Some(micros) = without {
            stats::set(Counter::LastFailover, micros as u64);
        }
    }
    let after = before.map(|b| format!(", after \"{}\"", b.node.as_str())).unwrap_or_default();
    log!(
        "obanrs: node \"{}\" leads \"{}\" in prefix \"{}\" of {} (term {}){after}",
        row.node.as_str(),
        electorate.name.as_str(),
        names::shown(electorate.schema),
        process::of_database(),
        row.lease.term
    );
    true
}

/// Records in shared memory that an electorate has no known leader. Returns the leadership before,
/// and logs its end; `None`: there was none.
pub fn vacate(segment: Segment, electorate: &Electorate) -> Option<Leadership> {
    let before = segment.leaderships(|l| l.vacate(electorate, clock::now()));
    if let Some(before) = &before {
        log_vacant(electorate, before);
    }
    before
}

/// Logs that an electorate has no leader any more.
pub fn log_vacant(electorate: &Electorate, before: &Leadership) {
    log!(
        "obanrs: nobody leads \"{}\" in prefix \"{}\" of {}, after \"{}\" (term {})",
        electorate.name.as_str(),
        names::shown(electorate.schema),
        process::of_database(),
        before.node.as_str(),
        before.lease.term
    );
}

/// Marks the members of an electorate as considered, and wakes the sessions that wait for that.
pub fn wake_considered(segment: Segment, electorate: &Electorate) {
    segment.leaderships(|l| l.mark_considered(electorate)).into_iter().for_each(latch::wake);
}
