//! The rows of the view oban_workers: what the workers are doing.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::logic::lifecycle::{DatabaseSlot, Kind, state_name};
use crate::logic::staging::slots::StagerSlot;
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

/// The rows of the view oban_workers for stagers.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_stagers() -> Result<
    TableIterator<
        'static,
        (
            name!(database, Option<pg_sys::Oid>),
            name!(pid, Option<i32>),
            name!(state, &'static str),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(restarts, i32),
            name!(last_error, Option<Shown>),
            name!(prefix, Option<Shown>),
        ),
    >,
    ErrorReport,
> {
    let Some(segment) = Segment::attached() else { return Ok(TableIterator::empty()) };
    let (sees_all, own) = (session::sees_all(), session::database());
    let slots: Vec<StagerSlot> =
        segment.stagers_view(|s| s.slots.iter().filter(|s| !s.is_free()).copied().collect());
    Ok(TableIterator::new(slots.into_iter().map(move |s| {
        let shown = |text: &str, may: bool| (may && !text.is_empty()).then(|| Shown(text.to_owned()));
        let runs = s.process.pid != 0;
        (
            Some(pg_sys::Oid::from(s.database)),
            runs.then_some(s.process.pid),
            state_name(s.shown_state()),
            time::timestamptz(s.started_at).filter(|_| runs),
            s.restarts as i32,
            // The last error may quote what a prefix's owner wrote.
            shown(s.last_error.as_str(), sees_all),
            // Not each role may see the schemas of another database.
            shown(s.prefix.as_str(), sees_all || s.database == own),
        )
    })))
}
