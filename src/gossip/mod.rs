//! Who runs what where: entries of queues in shared memory, and the view over them.

use std::time::Duration;

use pgrx::datum::{Interval, JsonB};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::Value;

use crate::config;
use crate::error::{self, Error, given};
use crate::logic::check;
use crate::logic::gossip::{Copied, Full, Key};
use crate::logic::peer::{MAX_NAME, MAX_NODE, MAX_PREFIX};
use crate::logic::text::Text;
use crate::pg::acl::{self, Right};
use crate::pg::{session, time};
use crate::shmem;

/// Oban's own limit of a queue's name is 127 characters, of up to four bytes.
const MAX_QUEUE: usize = 508;

/// A year: what is longer is a mistake in the unit.
const MAX_TTL: i64 = 366 * 86_400 * 1_000_000;

struct Names {
    prefix: Text<MAX_PREFIX>,
    name: Text<MAX_NAME>,
    node: Text<MAX_NODE>,
}

impl Names {
    fn of(prefix: Option<&str>, name: Option<&str>, node: Option<&str>) -> Result<Self, Error> {
        Ok(Self {
            prefix: error::name("prefix", prefix)?,
            name: error::name("name", name)?,
            node: error::name("node", node)?,
        })
    }

    fn key<'a>(&'a self, queue: &'a str) -> Key<'a> {
        Key {
            database: session::database(),
            prefix: self.prefix.as_str(),
            name: self.name.as_str(),
            node: self.node.as_str(),
            queue,
        }
    }
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_gossip_put(
    node: Option<&str>,
    queue: Option<&str>,
    state: default!(Option<JsonB>, "'{}'"),
    name: default!(Option<&str>, "'Oban'"),
    ttl: default!(Option<Interval>, "NULL"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<(), ErrorReport> {
    let names = Names::of(prefix, name, node)?;
    let queue: Text<MAX_QUEUE> = error::name("queue", queue)?;
    let state = validated(given("state", state)?)?;
    let ttl = lifetime(ttl)?;
    acl::require(names.prefix.as_str(), Right::Write)?;
    // The coordinator, who lets entries expire, is not there either.
    if session::in_recovery() {
        return Err(Error::InRecovery("gossip").into());
    }

    let now = time::now();
    let expires_at = now + ttl;
    let put = shmem::gossip(|table, sweep_at| {
        let key = names.key(queue.as_str());
        let put = table.put(&key, state.as_bytes(), now, expires_at).or_else(|_| {
            // The coordinator may be late, and on a standby there is none.
            table.expire(now);
            table.put(&key, state.as_bytes(), now, expires_at)
        });
        put.map(|()| {
            // Only an entry that expires before the coordinator looks again has to wake it.
            let sooner = *sweep_at == 0 || expires_at < *sweep_at;
            if sooner {
                *sweep_at = expires_at;
            }
            sooner
        })
    })?;
    match put {
        Ok(true) => shmem::wake_coordinator(),
        Ok(false) => {}
        Err(Full { missing }) => {
            let what = format!("the state of queue \"{}\" ({missing} bytes missing)", queue.as_str());
            return Err(Error::TableFull { what, setting: "obanrs.gossip_memory" }.into());
        }
    }
    Ok(())
}

/// The state as text, if it is an object whose known keys have the types that readers rely on.
fn validated(state: JsonB) -> Result<String, Error> {
    let Value::Object(object) = &state.0 else {
        return Err(Error::bad(
            "state is no JSON object",
            "Give a check's keys, such as {\"limit\": 10, \"running\": []}.",
        ));
    };
    check::validate(object).map_err(|bad| {
        Error::bad(
            format!("key \"{}\" of state is {}", bad.key, object.get(bad.key).unwrap_or(&Value::Null)),
            format!("It has to be {}.", bad.wanted),
        )
    })?;
    let text = state.0.to_string();
    if text.len() > check::MAX_STATE {
        return Err(Error::bad(
            format!("state has {} bytes", text.len()),
            format!("At most {} bytes fit.", check::MAX_STATE),
        ));
    }
    Ok(text)
}

/// A ttl in microseconds.
fn lifetime(ttl: Option<Interval>) -> Result<i64, Error> {
    let Some(ttl) = ttl else {
        return Ok(micros(config::gossip_ttl()));
    };
    match i64::try_from(ttl.as_micros()) {
        Ok(t) if (1..=MAX_TTL).contains(&t) => Ok(t),
        _ => Err(Error::bad(
            format!("ttl is {} microseconds", ttl.as_micros()),
            "It has to be positive and at most a year.",
        )),
    }
}

fn micros(duration: Duration) -> i64 {
    duration.as_micros() as i64
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_gossip_delete(
    node: Option<&str>,
    queue: default!(Option<&str>, "NULL"),
    name: default!(Option<&str>, "'Oban'"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<i32, ErrorReport> {
    let names = Names::of(prefix, name, node)?;
    let queue: Option<Text<MAX_QUEUE>> = queue.map(|q| error::name("queue", Some(q))).transpose()?;
    acl::require(names.prefix.as_str(), Right::Write)?;
    let queue = queue.as_ref().map(Text::as_str);
    let deleted = shmem::gossip(|table, _| table.delete(&names.key(""), queue, time::now()))?;
    Ok(deleted as i32)
}

/// The rows of the view oban_gossip: of this database and the prefixes that the caller may read.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_gossip() -> Result<
    TableIterator<
        'static,
        (
            name!(prefix, String),
            name!(name, String),
            name!(node, String),
            name!(queue, String),
            name!(state, JsonB),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(updated_at, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let mut entries: Vec<Copied> = shmem::gossip_view(|v| v.of_database(session::database(), time::now()))?;
    entries.retain(|e| acl::allows(&e.prefix, Right::Read));
    Ok(TableIterator::new(entries.into_iter().map(|e| {
        (
            e.prefix,
            e.name,
            e.node,
            e.queue,
            JsonB(serde_json::from_str(&e.state).unwrap_or(Value::Null)),
            time::timestamptz(e.started_at),
            time::timestamptz(e.updated_at),
            time::timestamptz(e.expires_at),
        )
    })))
}
