//! `oban_prune`: deletes jobs that ended some time ago, as Oban's pruner does.
//!
//! There is a statement for each state, because an index finds the oldest jobs of one state only.

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{Jobs, delay};
use crate::error::{Error, given};
use crate::pg::argument::TextArgument;
use crate::pg::datum::Parameter;
use crate::pg::spi;
use crate::prefix::dialect::Dialect;
use crate::prefix::rights::Right;

/// The most jobs of a call. Their deletion is one transaction.
const MOST_PRUNED: i32 = 100_000;

/// The time at which the statement began, as a `timestamp` in UTC. An index finds what is before it, which
/// it does not with the time of the clock.
const NOW: &str = "pg_catalog.timezone('UTC', pg_catalog.statement_timestamp())";

/// Returns which jobs are old, as SQL for each state, the oldest first where an index has that order. $1 is
/// the age.
fn old(dialect: Dialect) -> [String; 3] {
    // Oban for Elixir goes by the time at which a completed job was due. An index has that time only behind
    // the queue, which the condition names, so that this index can be used.
    let (completed, before, order) = match dialect {
        Dialect::Python => ("completed_at", "<=", "ORDER BY j.completed_at"),
        Dialect::Elixir | Dialect::Other => ("scheduled_at", "<", "AND j.queue IS NOT NULL"),
    };
    let of = |state: &str, column: &str, order: &str| {
        format!(
            "j.state OPERATOR(pg_catalog.=) '{state}'
                AND j.{column} OPERATOR(pg_catalog.{before}) ({NOW} OPERATOR(pg_catalog.-) $1) {order}"
        )
    };
    [
        of("completed", completed, order),
        of("cancelled", "cancelled_at", "ORDER BY j.cancelled_at"),
        of("discarded", "discarded_at", "ORDER BY j.discarded_at"),
    ]
}

/// Returns how many jobs were deleted.
#[pg_extern(volatile, parallel_unsafe)]
fn oban_prune(
    prefix: default!(Option<TextArgument>, "'public'"),
    max_age: default!(Option<Interval>, "'1 day'"),
    max_jobs: default!(Option<i32>, 10_000),
) -> Result<i32, ErrorReport> {
    let max_age = delay("max_age", given("max_age", max_age)?)?;
    let max_jobs = given("max_jobs", max_jobs)?;
    if !(1..=MOST_PRUNED).contains(&max_jobs) {
        return Err(
            Error::bad(format!("max_jobs is {max_jobs}"), format!("It is from 1 to {MOST_PRUNED}.")).into()
        );
    }
    let jobs = Jobs::of(prefix, Right::Delete, "prune jobs")?;
    let mut left = max_jobs;
    for old in old(jobs.dialect) {
        if left > 0 {
            left -= prune(&jobs, &old, max_age, left);
        }
    }
    Ok(max_jobs - left)
}

/// Deletes at most `most` jobs. Returns how many it has deleted.
fn prune(jobs: &Jobs, old: &str, max_age: Interval, most: i32) -> i32 {
    let sql = format!(
        "WITH old AS MATERIALIZED (
            SELECT j.id FROM {table} j WHERE {old} LIMIT $2 FOR UPDATE SKIP LOCKED
         )
         DELETE FROM {table} j USING old WHERE j.id OPERATOR(pg_catalog.=) old.id",
        table = jobs.table
    );
    let values = [Parameter::of(Some(max_age)), Parameter::of(Some(i64::from(most)))];
    spi::prepared(&sql, &values, |_| ()) as i32
}
