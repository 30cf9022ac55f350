//! `oban_prune`: deletes jobs that ended some time ago, as Oban's pruner does.
//!
//! There is a statement for each state, because an index finds the oldest jobs of one state only.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{Jobs, delay};
use crate::error::{Error, given};
use crate::pg::argument::TextArgument;
use crate::pg::datum::Parameter;
use crate::pg::{spi, time};
use crate::prefix::dialect::Dialect;
use crate::prefix::rights::Right;

/// The most jobs of a call. Their deletion is one transaction.
const MOST_PRUNED: i32 = 100_000;

/// A state in which jobs end, and which of these jobs are old, as SQL, the oldest first where an index has
/// that order. $1 is the age, and $3 the time now.
struct Old {
    state: &'static str,
    condition: String,
    order: &'static str,
}

fn old(dialect: Dialect) -> [Old; 3] {
    // Oban for Elixir goes by the time at which a completed job was due. An index has that time only behind
    // the queue, which the condition names, so that this index can be used.
    let (completed, before, order) = match dialect {
        Dialect::Python => ("completed_at", "<=", "ORDER BY j.completed_at"),
        Dialect::Elixir | Dialect::Other => ("scheduled_at", "<", "AND j.queue IS NOT NULL"),
    };
    let of = |state: &'static str, column: &str, before: &str, order: &'static str| {
        let condition = format!("j.{column} OPERATOR(pg_catalog.{before}) ($3 OPERATOR(pg_catalog.-) $1)");
        Old { state, condition, order }
    };
    [
        of("completed", completed, before, order),
        of("cancelled", "cancelled_at", before, "ORDER BY j.cancelled_at"),
        of("discarded", "discarded_at", before, "ORDER BY j.discarded_at"),
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
fn prune(jobs: &Jobs, old: &Old, max_age: Interval, most: i32) -> i32 {
    let Old { state, condition, order } = old;
    // An array of ids, and no join with them, for the reason that `fetch::statement` gives.
    let sql = format!(
        "DELETE FROM {table} j WHERE j.state OPERATOR(pg_catalog.=) '{state}'
            AND j.id OPERATOR(pg_catalog.=) ANY (ARRAY(
                SELECT j.id FROM {table} j WHERE j.state OPERATOR(pg_catalog.=) '{state}' AND {condition} {order}
                LIMIT $2 FOR UPDATE SKIP LOCKED))",
        table = jobs.table
    );
    let now = Parameter::typed(pg_sys::TIMESTAMPOID, Some(pg_sys::Datum::from(time::now().0)));
    let values = [Parameter::of(Some(max_age)), Parameter::of(Some(i64::from(most))), now];
    spi::prepared(&sql, &values, |_| ()) as i32
}
