//! What became of a job: the functions that a worker calls when a job has ended, and that an operator
//! calls for any job. They write the columns and states that Oban writes.

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{Jobs, delay};
use crate::backend::available_jobs;
use crate::bus::wakeups;
use crate::config;
use crate::error::{Error, given};
use crate::pg::argument::TextArgument;
use crate::pg::datum::Parameter;
use crate::pg::spi::{self, SqlRow};
use crate::prefix::dialect::{self, Dialect, UTC};
use crate::prefix::rights::Right;
use crate::signal;

/// The job that a call is about. $1 is the id of the job, and $2 an attempt or null.
#[derive(Clone, Copy, Debug)]
struct Target {
    id: i64,
    attempt: Option<i32>,
}

/// A worker's own job: it is executing in the attempt that the call names.
const OWN: &str = "j.id OPERATOR(pg_catalog.=) $1 AND j.attempt OPERATOR(pg_catalog.=) $2
    AND j.state OPERATOR(pg_catalog.=) 'executing'";

/// A worker's own job if the call names an attempt, else any job that has not ended.
const OWN_OR_ANY: &str = "j.id OPERATOR(pg_catalog.=) $1 AND CASE WHEN $2 IS NULL
    THEN j.state OPERATOR(pg_catalog.<>) ALL ('{cancelled,completed,discarded}')
    ELSE j.attempt OPERATOR(pg_catalog.=) $2 AND j.state OPERATOR(pg_catalog.=) 'executing' END";

impl Target {
    /// `Err` is 22004.
    fn own(id: Option<i64>, attempt: Option<i32>) -> Result<Self, Error> {
        Ok(Self { id: given("id", id)?, attempt: Some(given("attempt", attempt)?) })
    }

    /// `Err` is 22004.
    fn own_or_any(id: Option<i64>, attempt: Option<i32>) -> Result<Self, Error> {
        Ok(Self { id: given("id", id)?, attempt })
    }

    /// Runs an UPDATE of the job, if the condition holds for it. `more` are the values of $3 and so on.
    /// Returns whether the job was changed.
    fn update_job(self, jobs: &Jobs, condition: &str, set: &str, more: Vec<Parameter>) -> bool {
        let sql = format!("UPDATE {} j SET {set} WHERE {condition}", jobs.table);
        let values = [Parameter::of(Some(self.id)), Parameter::of(self.attempt)];
        spi::prepared(&sql, &values.into_iter().chain(more).collect::<Vec<_>>(), |_| ()) > 0
    }
}

/// Returns the time at which a job of which the attempt has failed is due again: after the interval $4,
/// or after Oban's delay if that is null. Oban's delay is 15 s and 2 to the power of the attempt, which
/// counts as if the job had 20 attempts in all, and up to a tenth more.
fn retry_at() -> String {
    let power = "CASE WHEN j.max_attempts OPERATOR(pg_catalog.<=) 20 THEN j.attempt::pg_catalog.numeric
        ELSE pg_catalog.round(pg_catalog.numeric_div(pg_catalog.numeric_mul(j.attempt, 20), j.max_attempts)) END";
    let seconds = format!(
        "pg_catalog.trunc(pg_catalog.float8mul(
            pg_catalog.float8pl(15, pg_catalog.power(2, ({power})::pg_catalog.float8)),
            pg_catalog.float8pl(1, pg_catalog.float8mul(0.1, pg_catalog.random()))))"
    );
    format!(
        "{UTC} OPERATOR(pg_catalog.+) COALESCE($4, pg_catalog.make_interval(0, 0, 0, 0, 0, 0, {seconds}))"
    )
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_complete_job(
    id: Option<i64>,
    attempt: Option<i32>,
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    let target = Target::own(id, attempt)?;
    let jobs = Jobs::of(prefix, Right::Signal, "complete a job")?;
    Ok(target.update_job(&jobs, OWN, &format!("state = 'completed', completed_at = {UTC}"), Vec::new()))
}

/// Returns the new state: `retryable`, or `discarded` after the last attempt. `None`: the job is not
/// executing in that attempt, and was not changed.
#[pg_extern(volatile, parallel_unsafe)]
fn oban_fail_job(
    id: Option<i64>,
    attempt: Option<i32>,
    error: Option<TextArgument>,
    retry_in: default!(Option<Interval>, "NULL"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<Option<String>, ErrorReport> {
    let target = Target::own(id, attempt)?;
    let error = error_text("error", given("error", error)?)?;
    let retry_in = retry_in.map(|retry_in| delay("retry_in", retry_in)).transpose()?;
    let jobs = Jobs::of(prefix, Right::Signal, "fail a job")?;
    // The row is locked first, so that another transaction can't change how many attempts are left.
    let values = [Parameter::of(Some(target.id)), Parameter::of(target.attempt)];
    let lock = format!("SELECT 1 FROM {} j WHERE {OWN} FOR NO KEY UPDATE", jobs.table);
    if spi::prepared(&lock, &values, |_| ()) == 0 {
        return Ok(None);
    }
    let recorded = jobs.dialect.add_error("$3");
    let fails = |left: &str, set: &str, more| {
        let condition = format!("{OWN} AND j.attempt OPERATOR(pg_catalog.{left}) j.max_attempts");
        target.update_job(&jobs, &condition, &format!("{set}{recorded}"), more)
    };
    let retryable = format!("state = 'retryable', scheduled_at = {}", retry_at());
    if fails("<", &retryable, vec![error, Parameter::of(retry_in)]) {
        return Ok(Some("retryable".into()));
    }
    let discarded = format!("state = 'discarded', discarded_at = {UTC}");
    Ok(fails(">=", &discarded, vec![error]).then(|| "discarded".into()))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_snooze_job(
    id: Option<i64>,
    attempt: Option<i32>,
    snooze_for: Option<Interval>,
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    let target = Target::own(id, attempt)?;
    let snooze_for = delay("snooze_for", given("snooze_for", snooze_for)?)?;
    let jobs = Jobs::of(prefix, Right::Signal, "snooze a job")?;
    // A snooze is no failed attempt. Oban takes the attempt back; here its number never falls, so the
    // job gets one attempt more.
    let set = format!(
        "state = 'scheduled', scheduled_at = {UTC} OPERATOR(pg_catalog.+) $3,
         max_attempts = j.max_attempts OPERATOR(pg_catalog.+) 1{}",
        dialect::count_in_meta("snoozed")
    );
    Ok(target.update_job(&jobs, OWN, &set, vec![Parameter::of(Some(snooze_for))]))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_cancel_job(
    id: Option<i64>,
    attempt: default!(Option<i32>, "NULL"),
    reason: default!(Option<TextArgument>, "NULL"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    let target = Target::own_or_any(id, attempt)?;
    let reason = reason.map(|reason| error_text("reason", reason)).transpose()?;
    let jobs = Jobs::of(prefix, Right::Signal, "cancel a job")?;
    let set = format!("state = 'cancelled', cancelled_at = {UTC}{}", recorded(&jobs, reason.as_ref()));
    // The row is locked first, so that the state is the one that the job had before.
    let sql = format!(
        "WITH job AS MATERIALIZED (
            SELECT j.id, j.state OPERATOR(pg_catalog.=) 'executing' AS runs FROM {table} j WHERE {OWN_OR_ANY}
            FOR NO KEY UPDATE
         )
         UPDATE {table} j SET {set} FROM job WHERE j.id OPERATOR(pg_catalog.=) job.id
         RETURNING job.runs, j.queue::pg_catalog.text",
        table = jobs.table
    );
    let values = [Parameter::of(Some(target.id)), Parameter::of(target.attempt)];
    let mut runs = false;
    let values: Vec<_> = values.into_iter().chain(reason).collect();
    let cancelled = spi::prepared(&sql, &values, |row| {
        runs |= row.datum(0).is_some_and(|runs| runs.value() != 0);
        note_claim(&jobs, row, 1);
    });
    if runs {
        signal::pkill(jobs.prefix.as_str(), target.id)?;
    }
    Ok(cancelled > 0)
}

/// Notes that this transaction has ended a job, of which a column has the queue. If that is rolled back, the
/// job may be available, and a taker has passed it over.
fn note_claim(jobs: &Jobs, row: &SqlRow, column: usize) {
    row.datum(column).into_iter().for_each(|queue| available_jobs::is_claimed(jobs.schema, row.bytes(queue)));
}

/// The longest error, in bytes. A row with many errors of this size can still be written.
const MAX_ERROR: usize = 1 << 20;

/// Returns the text of an error as a parameter. `Err` is 22023: it is too long.
fn error_text(argument: &'static str, text: TextArgument) -> Result<Parameter, Error> {
    match text.bytes() {
        bytes if bytes > MAX_ERROR => Err(Error::too_long(argument, bytes, MAX_ERROR)),
        _ => Ok(text.parameter()),
    }
}

/// Returns the assignment that records an error $3, if there is one.
fn recorded(jobs: &Jobs, error: Option<&Parameter>) -> String {
    error.map_or(String::new(), |_| jobs.dialect.add_error("$3"))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_discard_job(
    id: Option<i64>,
    attempt: default!(Option<i32>, "NULL"),
    error: default!(Option<TextArgument>, "NULL"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    let target = Target::own_or_any(id, attempt)?;
    let error = error.map(|error| error_text("error", error)).transpose()?;
    let jobs = Jobs::of(prefix, Right::Signal, "discard a job")?;
    let set = format!("state = 'discarded', discarded_at = {UTC}{}", recorded(&jobs, error.as_ref()));
    let sql =
        format!("UPDATE {} j SET {set} WHERE {OWN_OR_ANY} RETURNING j.queue::pg_catalog.text", jobs.table);
    let values = [Parameter::of(Some(target.id)), Parameter::of(target.attempt)];
    let values: Vec<_> = values.into_iter().chain(error).collect();
    Ok(spi::prepared(&sql, &values, |row| note_claim(&jobs, row, 0)) > 0)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_retry_job(
    id: Option<i64>,
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    let id = given("id", id)?;
    let jobs = Jobs::of(prefix, Right::Signal, "retry a job")?;
    // Oban for Python keeps in `uniq_bmp` for which states the job is unique.
    let unique = match jobs.dialect {
        Dialect::Python => {
            ", meta = CASE WHEN pg_catalog.jsonb_typeof(j.meta) OPERATOR(pg_catalog.=) 'object'
                THEN pg_catalog.jsonb_set(j.meta, '{uniq_bmp}', '[]') ELSE j.meta END"
        }
        Dialect::Elixir | Dialect::Other => "",
    };
    let sql = format!(
        "UPDATE {} j SET state = 'available', scheduled_at = {UTC},
            max_attempts = GREATEST(j.max_attempts, j.attempt OPERATOR(pg_catalog.+) 1),
            completed_at = NULL, cancelled_at = NULL, discarded_at = NULL{unique}
         WHERE j.id OPERATOR(pg_catalog.=) $1
            AND j.state OPERATOR(pg_catalog.<>) ALL ('{{available,executing}}')
         RETURNING j.queue::pg_catalog.text",
        jobs.table
    );
    // The table may not have the triggers of the extension.
    let wakes = |row: &SqlRow| row.datum(0).map(|queue| row.bytes(queue).to_vec());
    let mut queue = None;
    let retried = spi::prepared(&sql, &[Parameter::of(Some(id))], |row| queue = wakes(row)) > 0;
    if let Some(queue) = queue.filter(|_| config::wakeups()) {
        wakeups::wake(jobs.schema, &queue);
    }
    Ok(retried)
}
