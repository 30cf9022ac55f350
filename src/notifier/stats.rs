//! What the bus has done: the rows of the view oban_stats.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::shmem;
use crate::shmem::rings::{self, Counter};

#[pg_extern(volatile, parallel_restricted)]
fn obanrs_stats()
-> Result<TableIterator<'static, (name!(counter, &'static str), name!(value, i64))>, ErrorReport> {
    shmem::require()?;
    let rows: Vec<(&'static str, i64)> = match rings::stats() {
        Some((counters, (used, size, waiting))) => {
            let counted =
                Counter::ALL.iter().map(|counter| (counter.name(), counters[*counter as usize] as i64));
            let ring = [("ring_waiting", waiting), ("ring_bytes_used", used), ("ring_bytes", size)];
            counted.chain(ring.map(|(name, value)| (name, value as i64))).collect()
        }
        None => Vec::new(),
    };
    Ok(TableIterator::new(rows))
}
