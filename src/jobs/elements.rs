//! The elements of `jobs`, the argument of `oban_insert_jobs`. Each is an object whose keys are the names of
//! the arguments of `oban_insert_job`. A key that is missing or null has the default of the argument.

use pgrx::datum::Interval;

use super::enqueue::{Given, MOST_BYTES, NewJob};
use crate::error::Error;
use crate::logic::iso8601;
use crate::logic::text::excerpt;
use crate::logic::times::WallTime;
use crate::pg::argument::{JsonbArgument, TextArgument, TextArray};
use crate::pg::datum::{Parameter, RawJsonb, Shown};
use crate::pg::{encoding, spi};

/// The most elements of a call.
const MOST_ELEMENTS: usize = 10_000;

/// The keys of an element.
const KEYS: [&str; 12] = [
    "worker",
    "args",
    "queue",
    "scheduled_at",
    "schedule_in",
    "priority",
    "max_attempts",
    "tags",
    "meta",
    "unique_for",
    "unique_keys",
    "unique_states",
];

/// The elements, which are at most `MOST_ELEMENTS`.
pub struct Elements {
    array: JsonbArgument,
    defaults: Defaults,
}

/// Values for keys that are missing.
#[derive(Clone, Copy)]
struct Defaults {
    queue: Option<TextArgument>,
    object: Option<JsonbArgument>,
    tags: Option<TextArray>,
}

impl Elements {
    /// `Err` is 22023: the argument is no array, or too large.
    pub fn of(jobs: JsonbArgument) -> Result<Self, Error> {
        let bytes = jobs.bytes();
        if bytes > MOST_BYTES {
            return Err(Error::too_long("jobs", bytes, MOST_BYTES));
        }
        // It is unpacked once, and not for each element.
        let array = jobs.open().map_or(jobs, JsonbArgument::from);
        let kind = array.json_kind();
        if kind != "array" {
            return Err(Error::bad(
                format!("jobs is no JSON array, but of the kind {kind}"),
                "Give an array, also of one job: [{\"worker\": \"Mailer\"}].",
            ));
        }
        let size = array.json_size();
        if size > MOST_ELEMENTS {
            let hint = format!("At most {MOST_ELEMENTS} fit: make several calls.");
            return Err(Error::bad(format!("jobs has {size} elements"), hint));
        }
        let defaults = Defaults {
            queue: TextArgument::made("default"),
            object: RawJsonb::parse("{}").map(JsonbArgument::from),
            tags: TextArray::made(Vec::new()),
        };
        Ok(Self { array, defaults })
    }

    /// Returns the jobs. `Err` is 22023, and says which element is wrong.
    pub fn new_jobs(&self) -> Result<Vec<NewJob>, Error> {
        let job = |place: usize| {
            let element = self.array.json_element(place).ok_or(Error::OutOfMemory)?;
            let job = Element(element).given_job(self.defaults).and_then(|given| NewJob::of(&given));
            job.map_err(|error| in_element(place, error))
        };
        (0..self.array.json_size()).map(job).collect()
    }
}

/// Returns an error that says in which element a value is wrong. Places count from 0, as in `jobs->0`.
fn in_element(place: usize, error: Error) -> Error {
    match error {
        Error::BadArgument { message, hint } => Error::bad(format!("jobs[{place}]: {message}"), hint),
        Error::NullArgument(key) => Error::bad(
            format!("jobs[{place}]: \"{key}\" is missing, or has a null in it"),
            format!("The keys are {}. Only \"worker\" has no default.", KEYS.join(", ")),
        ),
        other => other,
    }
}

/// An element of the array.
#[derive(Clone, Copy)]
struct Element(JsonbArgument);

impl Element {
    fn given_job(self, defaults: Defaults) -> Result<Given, Error> {
        let kind = self.0.json_kind();
        if kind != "object" {
            return Err(Error::bad(
                format!("it is no JSON object, but of the kind {kind}"),
                "Each job is an object, such as {\"worker\": \"Mailer\"}.",
            ));
        }
        let known = KEYS.iter().filter(|key| self.0.json_field(key).is_some()).count();
        if known < self.0.json_size() {
            return Err(self.unknown_key());
        }
        Ok(Given {
            worker: self.text_of("worker", "string")?,
            args: self.of_kind("args", "object")?.or(defaults.object),
            queue: self.text_of("queue", "string")?.or(defaults.queue),
            scheduled_at: self.time_of("scheduled_at")?,
            schedule_in: self.seconds_of("schedule_in")?,
            priority: Some(self.number_of("priority", "an integer")?.unwrap_or(0)),
            max_attempts: Some(self.number_of("max_attempts", "an integer")?.unwrap_or(20)),
            tags: self.strings_of("tags")?.or(defaults.tags),
            meta: self.of_kind("meta", "object")?.or(defaults.object),
            unique_for: self.seconds_of("unique_for")?,
            unique_keys: self.strings_of("unique_keys")?,
            unique_states: self.strings_of("unique_states")?,
        })
    }

    /// Returns the error for a key that is not in `KEYS`.
    fn unknown_key(self) -> Error {
        let sql = "SELECT k.key FROM pg_catalog.jsonb_object_keys($1) k (key)
            WHERE k.key OPERATOR(pg_catalog.<>) ALL ($2) LIMIT 1";
        let known: Vec<Shown> = KEYS.iter().map(|key| Shown((*key).to_owned())).collect();
        let mut unknown = String::new();
        spi::prepared(sql, &[Parameter::of(Some(self.0)), Parameter::of(Some(known))], |row| {
            let key = row.datum(0).map_or(&[][..], |key| row.bytes(key));
            unknown = excerpt(&encoding::to_utf8_lossy(&key[..key.len().min(512)]));
        });
        Error::bad(format!("\"{unknown}\" is no key of a job"), format!("The keys are {}.", KEYS.join(", ")))
    }

    /// Returns the value of a key. `None`: the key is missing or null. `Err`: the value is of another kind.
    fn of_kind(self, key: &str, wanted: &str) -> Result<Option<JsonbArgument>, Error> {
        let Some(value) = self.0.json_field(key) else { return Ok(None) };
        match value.json_kind() {
            kind if kind == wanted => Ok(Some(value)),
            kind if kind == "null" => Ok(None),
            kind => Err(Error::bad(
                format!("\"{key}\" is of the kind {kind}"),
                format!("It is of the kind {wanted}."),
            )),
        }
    }

    fn text_of(self, key: &str, kind: &str) -> Result<Option<TextArgument>, Error> {
        Ok(self.of_kind(key, kind)?.and_then(|_| self.0.json_field_text(key)))
    }

    /// Returns a value as a number. `wanted` says which numbers are read.
    fn number_of<T: std::str::FromStr>(self, key: &'static str, wanted: &str) -> Result<Option<T>, Error> {
        /// No number that is read has more digits.
        const MOST_DIGITS: usize = 64;
        let Some(number) = self.text_of(key, "number")? else { return Ok(None) };
        let text = number.text(key, MOST_DIGITS)?;
        let wrong =
            || Error::bad(format!("\"{key}\" is {}", excerpt(&text)), format!("It is {wanted} in range."));
        text.parse().map(Some).map_err(|_| wrong())
    }

    /// Returns a number of seconds, which may have a fraction.
    fn seconds_of(self, key: &'static str) -> Result<Option<Interval>, Error> {
        // What is out of range is rounded to the nearest microsecond that is in range.
        let micros = |seconds: f64| Interval::new(0, 0, (seconds * 1e6).round() as i64).ok();
        Ok(self.number_of::<f64>(key, "a number of seconds")?.and_then(micros))
    }

    fn time_of(self, key: &'static str) -> Result<Option<WallTime>, Error> {
        /// No time that is read is longer.
        const MAX_TIME: usize = 64;
        let Some(time) = self.text_of(key, "string")? else { return Ok(None) };
        let text = time.text(key, MAX_TIME)?;
        let wrong = || {
            Error::bad(
                format!("\"{key}\" is \"{}\"", excerpt(&text)),
                "It is a time of ISO 8601 with a zone, such as \"2026-01-31T12:00:00Z\".",
            )
        };
        iso8601::micros(&text).map(|at| Some(WallTime(at))).ok_or_else(wrong)
    }

    fn strings_of(self, key: &'static str) -> Result<Option<TextArray>, Error> {
        let Some(array) = self.of_kind(key, "array")? else { return Ok(None) };
        let text = |place: usize| match array.json_element(place).map(JsonbArgument::json_kind).as_deref() {
            Some("string" | "null") => Ok(array.json_element_text(place)),
            kind => Err(Error::bad(
                format!("\"{key}\" has an element of the kind {}", kind.unwrap_or_default()),
                "Its elements are strings.",
            )),
        };
        let texts: Result<Vec<_>, Error> = (0..array.json_size()).map(text).collect();
        Ok(TextArray::made(texts?))
    }
}
