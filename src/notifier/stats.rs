//! The rows of the view oban_stats: what was done in this database.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::logic::counter::Counter;
use crate::pg::session;
use crate::shmem::{Segment, rings};

#[pg_extern(volatile, parallel_restricted)]
fn obanrs_stats()
-> Result<TableIterator<'static, (name!(counter, &'static str), name!(value, i64))>, ErrorReport> {
    let Some(segment) = Segment::attached() else { return Ok(TableIterator::empty()) }; // oban_check says why
    // A database without a slot has no counters: nothing was counted. A database without a ring
    // uses no part of a ring.
    let counted = segment.counted().unwrap_or_default();
    let counted = Counter::ALL.iter().map(|counter| (counter.name(), counted[*counter as usize] as i64));
    let ring = rings::usage().unwrap_or_default();
    let gossip = segment.gossip().usage(session::database());
    let measured = [
        ("ring_waiting", ring.waiting as i64),
        ("ring_bytes_used", ring.bytes_used as i64),
        ("ring_bytes", ring.bytes as i64),
        ("gossip_entries", gossip.entries as i64),
        ("gossip_entries_taken_in", gossip.foreign as i64),
        ("gossip_bytes", gossip.bytes as i64),
    ];
    let rows: Vec<(&'static str, i64)> = counted.chain(measured).collect();
    Ok(TableIterator::new(rows))
}
