//! What the workers are doing: the rows of the view oban_workers.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::logic::lifecycle::{Database, state_name};
use crate::pg::{session, time};
use crate::shmem;

#[pg_extern(volatile, parallel_restricted)]
fn obanrs_workers() -> Result<
    TableIterator<
        'static,
        (
            name!(kind, &'static str),
            name!(database, Option<pg_sys::Oid>),
            name!(pid, Option<i32>),
            name!(state, &'static str),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(restarts, i32),
            name!(last_error, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let coordinator = shmem::coordinator()?;
    let keepers: Vec<Database> =
        shmem::registry(|r| r.databases.iter().filter(|d| d.oid != 0).copied().collect())?;
    let sees_all = session::sees_all();
    let running = |pid: i32| (pid != 0).then_some(pid);
    let since = move |pid: i32, at: i64| running(pid).and_then(|_| time::timestamptz(at));

    let state = if coordinator.pid == 0 { "waiting" } else { "running" };
    let first = (
        "coordinator",
        None,
        running(coordinator.pid),
        state,
        since(coordinator.pid, coordinator.started_at),
        coordinator.restarts,
        None,
    );
    let others = keepers.into_iter().map(move |d| {
        // It may quote what a prefix's owner wrote.
        let error = if sees_all { d.last_error.as_str() } else { "" };
        (
            "keeper",
            Some(pg_sys::Oid::from(d.oid)),
            running(d.pid),
            state_name(d.state),
            since(d.pid, d.started_at),
            d.restarts as i32,
            (!error.is_empty()).then(|| error.to_owned()),
        )
    });
    Ok(TableIterator::new(std::iter::once(first).chain(others)))
}
