//! `oban_insert_job` and `oban_insert_jobs`: insert jobs with the columns and values that Oban writes.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::elements::Elements;
use super::unique::{Identity, Unique};
use super::{Jobs, delay};
use crate::error::{Error, given};
use crate::logic::signals::MAX_QUEUE_CHARS;
use crate::logic::text::excerpt;
use crate::logic::times::WallTime;
use crate::logic::{enqueue, iso8601};
use crate::pg::argument::{self, JsonbArgument, TextArgument, TextArray};
use crate::pg::datum::{Parameter, RawJsonb};
use crate::pg::result_set::ResultSet;
use crate::pg::spi;
use crate::pg::time::Utc;
use crate::prefix::dialect::UTC;
use crate::prefix::rights::Right;

/// The longest name of a worker. Oban's tables take no longer one.
const MAX_WORKER_CHARS: usize = 127;

/// The most attempts of a job: a `smallint`, as Oban for Python has it.
const MOST_ATTEMPTS: i32 = i16::MAX as i32;

/// The most tags of a job, and the most bytes of a tag.
const MOST_TAGS: usize = 100;
const MAX_TAG: usize = 1_020;

/// The most bytes of args, of meta, and of all jobs of a call. They are in memory several times.
pub const MOST_BYTES: usize = 32 << 20;

/// The most jobs of a call that are unique. Each holds a lock to the end of the transaction.
const MOST_UNIQUE: usize = 1_000;

/// The arguments of a job, as a call gives them.
pub struct Given {
    pub worker: Option<TextArgument>,
    pub args: Option<JsonbArgument>,
    pub queue: Option<TextArgument>,
    pub scheduled_at: Option<WallTime>,
    pub schedule_in: Option<Interval>,
    pub priority: Option<i32>,
    pub max_attempts: Option<i32>,
    pub tags: Option<TextArray>,
    pub meta: Option<JsonbArgument>,
    pub unique_for: Option<Interval>,
    pub unique_keys: Option<TextArray>,
    pub unique_states: Option<TextArray>,
}

/// A job to insert, whose values are valid.
pub struct NewJob {
    pub worker: TextArgument,
    pub queue: TextArgument,
    pub args: JsonbArgument,
    meta: JsonbArgument,
    tags: RawJsonb,
    priority: i32,
    max_attempts: i32,
    scheduled_at: Option<WallTime>,
    schedule_in: Option<Interval>,
    pub unique: Option<Unique>,
}

impl NewJob {
    /// `Err` is 22004 or 22023.
    pub fn of(job: &Given) -> Result<Self, Error> {
        if job.scheduled_at.is_some() && job.schedule_in.is_some() {
            return Err(Error::bad("both scheduled_at and schedule_in are given", "Give one of them."));
        }
        if job.scheduled_at.is_some_and(|at| !iso8601::is_readable(at.0)) {
            return Err(Error::bad("scheduled_at is out of range", "It is a time of the years 1 to 9999."));
        }
        Ok(Self {
            worker: name("worker", job.worker, MAX_WORKER_CHARS)?,
            queue: name("queue", job.queue, MAX_QUEUE_CHARS)?,
            args: object("args", job.args)?,
            meta: object("meta", job.meta)?,
            tags: tags(given("tags", job.tags)?)?,
            priority: within("priority", job.priority, 0, 9)?,
            max_attempts: within("max_attempts", job.max_attempts, 1, MOST_ATTEMPTS)?,
            scheduled_at: job.scheduled_at,
            schedule_in: job.schedule_in.map(|by| delay("schedule_in", by)).transpose()?,
            unique: Unique::of(job)?,
        })
    }

    /// As Oban has it, a job with a time is scheduled, even if that time is in the past.
    fn is_scheduled(&self) -> bool {
        self.scheduled_at.is_some() || self.schedule_in.is_some()
    }

    /// Returns whether one statement inserts both jobs.
    fn goes_with(&self, other: &Self) -> bool {
        self.unique.is_none() && other.unique.is_none() && self.is_scheduled() == other.is_scheduled()
    }
}

/// Returns a name of 1 to `most` characters.
fn name(argument: &'static str, name: Option<TextArgument>, most: usize) -> Result<TextArgument, Error> {
    let name = given(argument, name)?;
    let text = name.text(argument, 4 * most)?;
    match text.chars().count() {
        chars if (1..=most).contains(&chars) => Ok(name),
        chars => Err(Error::bad(
            format!("{argument} has {chars} characters: \"{}\"", excerpt(&text)),
            format!("It has 1 to {most} characters."),
        )),
    }
}

/// Returns a JSON object of at most `MOST_BYTES`.
fn object(argument: &'static str, value: Option<JsonbArgument>) -> Result<JsonbArgument, Error> {
    let value = given(argument, value)?;
    let bytes = value.bytes();
    if bytes > MOST_BYTES {
        return Err(Error::too_long(argument, bytes, MOST_BYTES));
    }
    match value.json_kind().as_str() {
        "object" => Ok(value),
        kind => Err(Error::bad(
            format!("{argument} is no JSON object, but of the kind {kind}"),
            format!("Wrap it, as in {{\"value\": ...}}: {argument} has keys."),
        )),
    }
}

fn within(argument: &'static str, value: Option<i32>, least: i32, most: i32) -> Result<i32, Error> {
    match given(argument, value)? {
        value if (least..=most).contains(&value) => Ok(value),
        value => Err(Error::bad(format!("{argument} is {value}"), format!("It is from {least} to {most}."))),
    }
}

/// Returns tags as Oban writes them, as a JSON array.
fn tags(tags: TextArray) -> Result<RawJsonb, Error> {
    let tags = tags.texts("tags", MOST_TAGS, MAX_TAG)?;
    let tags = enqueue::tags(tags.into_iter().map(|tag| tag.0));
    let json = serde_json::to_string(&tags).unwrap_or_default();
    RawJsonb::parse(&json).ok_or(Error::OutOfMemory)
}

/// The declaration of oban_insert_job is in sql/56_jobs.sql.
#[pg_extern(sql = false)]
pub fn oban_insert_job(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let job = NewJob::of(&Given {
        worker: argument::at(fcinfo, 0),
        args: argument::at(fcinfo, 1),
        queue: argument::at(fcinfo, 2),
        scheduled_at: argument::at::<TimestampWithTimeZone>(fcinfo, 3).map(|at| WallTime(at.into())),
        schedule_in: argument::at(fcinfo, 4),
        priority: argument::at(fcinfo, 5),
        max_attempts: argument::at(fcinfo, 6),
        tags: argument::at(fcinfo, 7),
        meta: argument::at(fcinfo, 8),
        unique_for: argument::at(fcinfo, 9),
        unique_keys: argument::at(fcinfo, 10),
        unique_states: argument::at(fcinfo, 11),
    })?;
    let jobs = Jobs::of(argument::at(fcinfo, 12), Right::Write, "insert a job")?;
    Ok(insert_all(&jobs, &[job], &mut ResultSet::of(fcinfo))?)
}

/// The declaration of oban_insert_jobs is in sql/56_jobs.sql.
#[pg_extern(sql = false)]
pub fn oban_insert_jobs(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let elements = Elements::of(given("jobs", argument::at::<JsonbArgument>(fcinfo, 0))?)?;
    let all = elements.new_jobs()?;
    let unique = all.iter().filter(|job| job.unique.is_some()).count();
    if unique > MOST_UNIQUE {
        return Err(Error::bad(
            format!("jobs has {unique} jobs that are unique"),
            format!("At most {MOST_UNIQUE} of a call are: each holds a lock until the transaction ends."),
        )
        .into());
    }
    let jobs = Jobs::of(argument::at(fcinfo, 1), Right::Write, "insert jobs")?;
    Ok(insert_all(&jobs, &all, &mut ResultSet::of(fcinfo))?)
}

/// Inserts jobs in their order, and adds a row for each to the result.
fn insert_all(jobs: &Jobs, all: &[NewJob], rows: &mut ResultSet) -> Result<(), Error> {
    let mut identities = Identity::locked(jobs, all)?.into_iter();
    for run in all.chunk_by(NewJob::goes_with) {
        let identity = if run[0].unique.is_some() { identities.next() } else { None };
        match identity.and_then(|identity| identity.equal_job(jobs, &run[0])) {
            Some(id) => rows.push([id.into_datum(), true.into_datum()]),
            None => insert_run(jobs, run, rows)?,
        }
    }
    Ok(())
}

/// Inserts jobs by one statement. The first job says whether they are scheduled. `Err`: a trigger of the
/// table has left some out, so that nobody knows whose ids are whose.
fn insert_run(jobs: &Jobs, run: &[NewJob], rows: &mut ResultSet) -> Result<(), Error> {
    fn values_of<T: IntoDatum>(run: &[NewJob], of: impl Fn(&NewJob) -> T) -> Parameter {
        Parameter::of(Some(run.iter().map(of).collect::<Vec<T>>()))
    }
    let values = [
        values_of(run, |job| job.queue),
        values_of(run, |job| job.worker),
        values_of(run, |job| job.args),
        values_of(run, |job| job.meta),
        values_of(run, |job| job.tags.clone()),
        values_of(run, |job| job.priority),
        values_of(run, |job| job.max_attempts),
        values_of(run, |job| job.scheduled_at.map(Utc)),
        values_of(run, |job| job.schedule_in),
    ];
    let mut taken = 0;
    spi::prepared(&statement(&jobs.table, run[0].is_scheduled()), &values, |row| {
        taken += 1;
        rows.push([row.datum(0), false.into_datum()]);
    });
    let given = run.len();
    if taken == given { Ok(()) } else { Err(Error::JobsLeftOut { given, taken }) }
}

/// Returns the statement that inserts jobs, whose values are arrays. A row is inserted, and comes back, in
/// its order. The state is a literal, so that it has the type of the column.
fn statement(table: &str, is_scheduled: bool) -> String {
    let state = if is_scheduled { "scheduled" } else { "available" };
    format!(
        "INSERT INTO {table} AS j
            (state, queue, worker, args, meta, tags, priority, max_attempts, scheduled_at)
         SELECT '{state}', n.queue, n.worker, n.args, n.meta,
            ARRAY(SELECT pg_catalog.jsonb_array_elements_text(n.tags)), n.priority, n.max_attempts,
            COALESCE(n.due, {UTC} OPERATOR(pg_catalog.+) n.delay, pg_catalog.timezone('UTC', pg_catalog.now()))
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),
            pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),
            pg_catalog.unnest($8), pg_catalog.unnest($9)) WITH ORDINALITY
            AS n (queue, worker, args, meta, tags, priority, max_attempts, due, delay, place)
         ORDER BY n.place RETURNING j.id::pg_catalog.int8"
    )
}
