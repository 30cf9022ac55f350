//! The server's half of a worker: SQL functions that insert jobs, claim them, say what became of them, and
//! delete them.
//!
//! The statements are SQL with the caller's rights on `oban_jobs`, and a session plans each of them
//! once. Triggers, constraints and policies apply as they do to the caller's own statements.
//!
//! An *attempt* is a claim of a job: its number rises by one with each claim, and no function lowers it.
//! A function that names an attempt changes the job only while the job is executing in that attempt. So
//! a worker whose job was rescued and claimed again meanwhile changes nothing.

mod ack;
mod elements;
pub mod enqueue;
pub mod fetch;
mod prune;
pub mod taker;
mod unique;

use pgrx::datum::Interval;
use pgrx::pg_sys;

use crate::error::{self, Error};
use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::leadership::MAX_PREFIX;
use crate::logic::text::Text;
use crate::pg::argument::TextArgument;
use crate::pg::{catalog, session, spi};
use crate::prefix::dialect::Dialect;
use crate::prefix::rights::{self, Right};

/// The table of jobs of a call.
struct Jobs {
    schema: SchemaOid,
    prefix: Text<MAX_PREFIX>,
    oid: TableOid,
    /// The qualified name, as SQL has it.
    table: String,
    dialect: Dialect,
}

impl Jobs {
    /// Returns the table of a prefix, to write to it. `doing` is what the call does, for messages.
    /// `Err` is 22004 or 22023 for the argument, 25006 or 55000 where nothing can be written, 3F000,
    /// 42501 or 42939 without the prefix or the right, 42P01 without the table, and 42804 for a table
    /// with times that have a zone.
    fn of(prefix: Option<TextArgument>, right: Right, doing: &'static str) -> Result<Self, Error> {
        let prefix: Text<MAX_PREFIX> = error::name("prefix", prefix)?;
        session::require_writable(doing)?;
        session::see_changes();
        let schema = rights::require(prefix.as_str(), right)?;
        Self::in_schema(schema, prefix)
    }

    /// `Err` is 42P01 without the table, and 42804 for a table with times that have a zone.
    fn in_schema(schema: SchemaOid, prefix: Text<MAX_PREFIX>) -> Result<Self, Error> {
        let jobs = catalog::relation(schema, "oban_jobs");
        let jobs = jobs.ok_or_else(|| Error::NoJobs(prefix.as_str().to_owned()))?;
        // A time with a zone would be compared with times in UTC by the time zone of the session.
        if catalog::column_type(jobs, "scheduled_at") == Some(pg_sys::TIMESTAMPTZOID) {
            return Err(Error::TimesWithZone(prefix.as_str().to_owned()));
        }
        let table = spi::qualified(prefix.as_str(), "oban_jobs");
        Ok(Self { schema, prefix, oid: jobs, table, dialect: Dialect::of(schema) })
    }
}

/// Returns a table once more, after a wait in which it may have changed. `Err` is 3F000 or 42501: the
/// prefix or the right is gone, or an error of `in_schema`.
fn look_up_again(jobs: &Jobs, right: Right) -> Result<Jobs, Error> {
    session::see_changes();
    rights::require_in(jobs.schema, jobs.prefix.as_str(), right)?;
    let name = catalog::schema_name(jobs.schema).unwrap_or_default();
    Jobs::in_schema(jobs.schema, Text::new(&name).unwrap_or(jobs.prefix))
}

/// The longest time to put a job off, in microseconds: a hundred years.
const LONGEST: i128 = 100 * 366 * 86_400 * 1_000_000;

/// Returns an interval by which a job is put off. `Err` is 22023: it is negative, or longer than a
/// hundred years.
fn delay(argument: &'static str, delay: Interval) -> Result<Interval, Error> {
    // A month is no fixed time, so a negative part could outweigh the others.
    let parts = [i64::from(delay.months()), i64::from(delay.days()), delay.micros()];
    match delay.as_micros() {
        0..=LONGEST if parts.iter().all(|part| *part >= 0) => Ok(delay),
        micros => Err(Error::bad(
            format!("{argument} is {} s", micros as f64 / 1e6),
            "It has to be from 0 to a hundred years, without negative parts.",
        )),
    }
}
