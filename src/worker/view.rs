//! The rows of the view oban_workers: what the workers are doing.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::logic::lifecycle::{DatabaseSlot, Kind, state_name};
use crate::logic::times::WallTime;
use crate::pg::datum::Shown;
use crate::pg::{session, time};
use crate::shmem::Segment;

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
            name!(last_error, Option<Shown>),
        ),
    >,
    ErrorReport,
> {
    let Some(segment) = Segment::attached() else { return Ok(TableIterator::empty()) }; // oban_check says why
    let coordinator = segment.coordinator();
    let databases: Vec<DatabaseSlot> =
        segment.registry(|r| r.databases.iter().filter(|d| !d.oid.is_none()).copied().collect());
    let sees_all = session::sees_all();
    let running = |pid: i32| (pid != 0).then_some(pid);
    let since = move |pid: i32, at: WallTime| running(pid).and_then(|_| time::timestamptz(at));

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
    let workers = databases.into_iter().flat_map(|d| Kind::ALL.map(|kind| (d.oid, kind, *d.worker(kind))));
    let others = workers.map(move |(database, kind, w)| {
        // The last error may quote what a prefix's owner wrote.
        let error = if sees_all { w.last_error.as_str() } else { "" };
        (
            kind.name(),
            Some(pg_sys::Oid::from(database)),
            running(w.process.pid),
            state_name(w.state),
            since(w.process.pid, w.started_at),
            w.restarts as i32,
            (!error.is_empty()).then(|| Shown(error.to_owned())),
        )
    });
    Ok(TableIterator::new(std::iter::once(first).chain(others)))
}
