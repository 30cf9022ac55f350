//! What was done in this database: the rows of the view oban_stats.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::pg::session;
use crate::shmem;
use crate::shmem::rings::{self, Counter};

#[pg_extern(volatile, parallel_restricted)]
fn obanrs_stats()
-> Result<TableIterator<'static, (name!(counter, &'static str), name!(value, i64))>, ErrorReport> {
    if !shmem::is_attached() {
        return Ok(TableIterator::empty()); // oban_check says why
    }
    // A database without a place has no counters: nothing was counted.
    let (counters, (used, size, waiting)) = rings::stats().unwrap_or_default();
    let counted = Counter::ALL.iter().map(|counter| (counter.name(), counters[*counter as usize] as i64));
    let gossip = shmem::gossip::usage(session::database())?;
    let measured = [
        ("ring_waiting", waiting as i64),
        ("ring_bytes_used", used as i64),
        ("ring_bytes", size as i64),
        ("gossip_entries", gossip.entries as i64),
        ("gossip_entries_taken_in", gossip.foreign as i64),
        ("gossip_bytes", gossip.bytes as i64),
    ];
    let rows: Vec<(&'static str, i64)> = counted.chain(measured).collect();
    Ok(TableIterator::new(rows))
}
