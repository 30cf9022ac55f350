//! Jobs that are inserted once: a job that is equal, and not too old, keeps another one out.
//!
//! Calls for equal jobs wait for each other at a lock, which is held until the transaction ends. The one that
//! waited then sees what the other has committed.

use pgrx::datum::Interval;

use super::enqueue::{Given, NewJob};
use super::{Jobs, LONGEST, delay};
use crate::error::Error;
use crate::logic::enqueue::{self, UNIQUE_STATES};
use crate::logic::ids::SchemaOid;
use crate::logic::text::excerpt;
use crate::pg::argument::JsonbArgument;
use crate::pg::datum::{Parameter, Text};
use crate::pg::{catalog, spi, user_lock};
use crate::prefix::dialect::UTC;

/// The most keys that a call names, and the most bytes of a key.
const MOST_KEYS: usize = 32;
const MAX_KEY: usize = 1_020;

/// The most states that a call names, and the most bytes of a state.
const MOST_STATES: usize = 32;
const MAX_STATE: usize = 64;

/// How a job is unique.
pub struct Unique {
    /// How old an equal job may be. `None`: any age.
    period: Option<Interval>,
    /// The keys of `args` that count. Empty: all of `args` counts.
    keys: Vec<Text>,
    /// The states of an equal job.
    states: Vec<&'static str>,
}

impl Unique {
    /// `None`: the job is not unique. `Err` is 22004 or 22023.
    pub fn of(job: &Given) -> Result<Option<Self>, Error> {
        if job.unique_for.is_none() && job.unique_keys.is_none() && job.unique_states.is_none() {
            return Ok(None);
        }
        let period = match job.unique_for.map(|period| (period, period.as_micros())) {
            Some((_, micros)) if micros <= 0 => {
                return Err(Error::bad(
                    format!("unique_for is {} s", micros as f64 / 1e6),
                    "It is longer than 0. Leave it out, and name unique_keys or unique_states, for a job \
                     that is unique for ever.",
                ));
            }
            Some((_, micros)) if micros > LONGEST => None,
            period => period.map(|(period, _)| delay("unique_for", period)).transpose()?,
        };
        let keys = job.unique_keys.map(|keys| keys.texts("unique_keys", MOST_KEYS, MAX_KEY)).transpose()?;
        let keys = keys.unwrap_or_default();
        if keys.iter().any(|key| key.is_empty()) {
            return Err(Error::bad("unique_keys has an empty element", "Its elements are keys of args."));
        }
        let named = job
            .unique_states
            .map(|states| states.texts("unique_states", MOST_STATES, MAX_STATE))
            .transpose()?;
        let states = match &named {
            Some(named) => named_states(&named.iter().map(|state| &**state).collect::<Vec<_>>())?,
            None => UNIQUE_STATES.to_vec(),
        };
        Ok(Some(Self { period, keys, states }))
    }

    /// Returns the values of a statement about equal jobs: the worker, the queue, the args, another one,
    /// and the keys if there are any.
    fn parameters(&self, job: &NewJob, args: JsonbArgument, other: Parameter) -> Vec<Parameter> {
        let (worker, queue) = (job.worker.parameter(), job.queue.parameter());
        let mut values = vec![worker, queue, Parameter::of(Some(args)), other];
        if !self.keys.is_empty() {
            values.push(Parameter::of(Some(self.keys.clone())));
        }
        values
    }

    /// Returns, as SQL, what counts of some args: all, or an object with the keys $5. A key that is missing
    /// counts as null.
    fn chosen(&self, args: &str) -> String {
        if self.keys.is_empty() {
            return args.to_owned();
        }
        format!(
            "(SELECT pg_catalog.jsonb_object_agg(k.key, COALESCE({args} OPERATOR(pg_catalog.->) k.key, 'null'))
              FROM pg_catalog.unnest($5) k (key))"
        )
    }
}

fn named_states(named: &[&str]) -> Result<Vec<&'static str>, Error> {
    let wrong = |what: String| Error::bad(what, format!("Oban's states are {}.", enqueue::STATES.join(", ")));
    match enqueue::states(named) {
        Ok(states) if states.is_empty() => Err(wrong("unique_states is empty".into())),
        Ok(states) => Ok(states),
        Err(unknown) => Err(wrong(format!("unique_states has no state of a job: \"{}\"", excerpt(unknown)))),
    }
}

/// What makes a job equal to others.
pub struct Identity {
    /// The number of the lock. Other jobs may have the same number: they wait in vain, and no more.
    lock: u32,
    /// What counts of the args.
    chosen: JsonbArgument,
    /// A small part of `chosen` that the args of each equal job contain, by which an index finds them.
    /// `None`: `chosen` has no small part. (To test whether a large value contains another takes time that
    /// grows with the square of the length, and can't be cancelled.)
    contained: Option<JsonbArgument>,
}

impl Identity {
    /// Returns the identities of those jobs that are unique, in their order, when this transaction has their
    /// locks. It takes them in the order of their numbers, so no two calls wait for each other.
    pub fn locked(jobs: &Jobs, all: &[NewJob]) -> Result<Vec<Self>, Error> {
        let identity = |job: &NewJob| Some(Self::of(jobs.schema, job, job.unique.as_ref()?));
        let identities: Vec<Self> = all.iter().filter_map(identity).collect::<Result<_, _>>()?;
        let mut locks: Vec<u32> = identities.iter().map(|identity| identity.lock).collect();
        locks.sort_unstable();
        locks.dedup();
        locks.into_iter().for_each(|lock| user_lock::lock(jobs.schema, lock));
        Ok(identities)
    }

    fn of(schema: SchemaOid, job: &NewJob, unique: &Unique) -> Result<Self, Error> {
        let chosen = unique.chosen("$3");
        let sql = format!(
            "SELECT pg_catalog.jsonb_hash_extended(
                pg_catalog.jsonb_build_array($4, $1, $2, c.chosen), 0),
                c.chosen,
                (SELECT pg_catalog.jsonb_object_agg(e.key, e.value) FROM (
                    SELECT e.key, e.value FROM pg_catalog.jsonb_each(c.chosen) e
                    WHERE pg_catalog.jsonb_typeof(e.value) OPERATOR(pg_catalog.=) ANY ('{{string,number,boolean}}')
                        AND pg_catalog.pg_column_size(e.value) OPERATOR(pg_catalog.<=) 256
                    LIMIT 8) e)
             FROM (SELECT {chosen} AS chosen OFFSET 0) c"
        );
        let schema = Parameter::of(Some(i64::from(schema.0)));
        let mut found = None;
        spi::prepared(&sql, &unique.parameters(job, job.args, schema), |row| {
            let (hash, chosen, contained) = (row.datum(0), row.kept_jsonb(1), row.kept_jsonb(2));
            found = hash.zip(chosen).map(|found| (found, contained));
        });
        let ((hash, chosen), contained) = found.ok_or(Error::OutOfMemory)?;
        let hash = hash.value() as u64;
        Ok(Self { lock: (hash ^ hash >> 32) as u32, chosen, contained })
    }

    /// Returns the id of a job that is equal to a new one. `None`: there is no such job.
    pub fn equal_job(&self, jobs: &Jobs, job: &NewJob) -> Option<i64> {
        let unique = job.unique.as_ref()?;
        let mut values = unique.parameters(job, self.chosen, Parameter::of(self.contained));
        let contained = self.contained.map_or("", |_| "AND j.args OPERATOR(pg_catalog.@>) $4");
        let mut since = String::new();
        if let Some(period) = unique.period {
            values.push(Parameter::of(Some(period)));
            let period = values.len();
            since =
                format!("AND j.inserted_at OPERATOR(pg_catalog.>=) ({UTC} OPERATOR(pg_catalog.-) ${period})");
        }
        let sql = format!(
            "SELECT j.id::pg_catalog.int8 FROM {table} j
             WHERE j.state OPERATOR(pg_catalog.=) ANY ('{{{states}}}')
                AND j.worker OPERATOR(pg_catalog.=) $1 AND j.queue OPERATOR(pg_catalog.=) $2
                {contained}
                AND {chosen} OPERATOR(pg_catalog.=) $3 {since} LIMIT 1",
            table = jobs.table,
            states = states_of(jobs, &unique.states),
            chosen = unique.chosen("j.args"),
        );
        let mut found = None;
        spi::prepared_now(&sql, &values, |row| found = row.datum(0).map(|id| id.value() as i64));
        found
    }
}

/// Returns those states that the table has, with commas. Oban's tables have `suspended` since its migration
/// 14. No job can have a state that is not in the type of the column.
fn states_of(jobs: &Jobs, states: &[&'static str]) -> String {
    let kind = catalog::relation(jobs.schema, "oban_jobs")
        .and_then(|table| catalog::column_type(table, "state"))
        .map_or(0, u32::from);
    let is_enum = catalog::is_enum_of(kind, std::iter::empty());
    let has = |state: &str| !is_enum || catalog::is_enum_of(kind, std::iter::once(state));
    states.iter().filter(|state| has(state)).copied().collect::<Vec<_>>().join(",")
}
