//! Which node runs what: the entries of queues in shared memory, the view over them, and the jobs
//! that no process runs (`orphans`). (`worker::exchange` broadcasts the entries to foreign nodes,
//! and ingests what those nodes send.)

pub mod orphans;

use std::collections::HashMap;

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::config;
use crate::error::{self, Error, given};
use crate::logic::check::{self, BadKey, InvalidState, JsonObject, MAX_QUEUE};
use crate::logic::gossip::{EntryRef, Full, Key, Quota, Source};
use crate::logic::ids::SchemaOid;
use crate::logic::jsonb;
use crate::logic::leadership::{MAX_NAME, MAX_NODE, MAX_PREFIX};
use crate::logic::text::Text;
use crate::logic::times::WallTime;
use crate::pg::argument::{JsonbArgument, TextArgument};
use crate::pg::datum::{self, RawJsonb};
use crate::pg::result_set::ResultSet;
use crate::pg::{catalog, clock, encoding, session, time};
use crate::prefix::rights::{self, Right};
use crate::shmem::Segment;

/// The longest ttl in microseconds: a year. A longer ttl is a mistake in the unit.
const MAX_TTL: i64 = 366 * 86_400 * 1_000_000;

/// The most bytes that are read of a state. A state's text is at least a sixth as long: in an array
/// of small numbers each number takes two characters, and twelve bytes.
const MAX_BYTES: usize = 8 * check::MAX_STATE;

struct Names {
    prefix: Text<MAX_PREFIX>,
    name: Text<MAX_NAME>,
    node: Text<MAX_NODE>,
}

impl Names {
    fn of(
        prefix: Option<TextArgument>,
        name: Option<TextArgument>,
        node: Option<TextArgument>,
    ) -> Result<Self, Error> {
        Ok(Self {
            prefix: error::name("prefix", prefix)?,
            name: error::name("name", name)?,
            node: error::name("node", node)?,
        })
    }

    /// Returns the key of an entry of this database, in the prefix's schema.
    fn key<'a>(&'a self, schema: SchemaOid, queue: &'a str) -> Key<'a> {
        let (name, node) = (self.name.as_str(), self.node.as_str());
        Key { database: session::database(), schema, name, node, queue }
    }
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_gossip_put(
    node: Option<TextArgument>,
    queue: Option<TextArgument>,
    state: default!(Option<JsonbArgument>, "'{}'"),
    name: default!(Option<TextArgument>, "'Oban'"),
    ttl: default!(Option<Interval>, "NULL"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    let names = Names::of(prefix, name, node)?;
    let queue: Text<MAX_QUEUE> = error::name("queue", queue)?;
    let state = opened(state)?;
    let ttl = lifetime(ttl)?;
    let schema = rights::require(names.prefix.as_str(), Right::Write)?;
    let started_at = validated(&state)?;
    if !encoding::is_utf8() {
        // A state that can't be converted to UTF-8 could never be broadcast, nor could any entry
        // beside it. `text` raises an error for such a state. The state is known to be short by
        // now.
        state.text();
    }
    let segment = Segment::require()?;
    // In recovery there is no coordinator, which lets entries expire.
    if session::in_recovery() {
        return Err(Error::InRecovery("gossip").into());
    }

    let key = names.key(schema, queue.as_str());
    let quota =
        rights::quota_of(segment.gossip().capacity()).map(|most| Quota { role: session::role(), most });
    let put = segment.gossip().put(&key, state.bytes(), started_at, ttl, Source::Local(quota));
    let Err(Full { missing, quota }) = put else { return Ok(()) };
    let what = format!("the state of queue \"{}\" ({missing} bytes missing)", queue.as_str());
    let setting = "obanrs.gossip_memory";
    Err(if quota {
        Error::QuotaUsed { role: catalog::quoted_role(session::role()), what, setting }
    } else {
        Error::TableFull { what, setting }
    }
    .into())
}

/// Returns a state that is short enough to be tested. `Err` is 22004 for a NULL, and 22023 for a
/// state that is too long.
fn opened(state: Option<JsonbArgument>) -> Result<RawJsonb, Error> {
    let state = given("state", state)?;
    if state.bytes() > MAX_BYTES {
        return Err(Error::too_long("state", state.bytes(), check::MAX_STATE));
    }
    state.open().ok_or(Error::NullArgument("state"))
}

/// Tests a state: it has to be an object whose known keys have the types that readers rely on.
/// Returns when the queue started. `None`: the state does not say so. `Err` is 22023 for a state
/// that fails the test.
fn validated(state: &RawJsonb) -> Result<Option<WallTime>, Error> {
    check::validate(jsonb::read(state.bytes())).map_err(|bad| match bad {
        InvalidState::NoObject => Error::bad(
            "state is no JSON object",
            "Give a check's keys, such as {\"limit\": 10, \"running\": []}.",
        ),
        InvalidState::TooLong(len) => {
            Error::bad(format!("state has {len} bytes"), format!("At most {} bytes fit.", check::MAX_STATE))
        }
        InvalidState::HugeNumber => Error::bad(
            "a number of state is too long",
            format!("At most {} digits fit before the point, and behind it.", check::MAX_DIGITS),
        ),
        InvalidState::TooDeep => {
            Error::bad("state is nested too deep", format!("At most {} levels fit.", jsonb::MAX_DEPTH))
        }
        // The text is not long, because the length was tested before.
        InvalidState::Key(BadKey { key, wanted }) => {
            let text = state.text();
            let value = JsonObject::of(&text).and_then(|members| members.get(key).map(check::excerpt));
            Error::bad(
                format!("key \"{key}\" of state is {}", value.unwrap_or_default()),
                format!("It has to be {wanted}."),
            )
        }
    })
}

/// Has the signature of oban_gossip_put and does nothing: a benchmark compares the two.
#[cfg(feature = "bench")]
#[pg_extern(volatile, parallel_unsafe)]
fn obanrs_bench_gossip_put(
    _node: Option<TextArgument>,
    _queue: Option<TextArgument>,
    _state: default!(Option<JsonbArgument>, "'{}'"),
    _name: default!(Option<TextArgument>, "'Oban'"),
    _ttl: default!(Option<Interval>, "NULL"),
    _prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    Ok(())
}

/// Returns how long a put waits for the table's lock, in nanoseconds, over `times` attempts: the
/// median, what one in a thousand exceeds, the most, and how many exceed a millisecond.
#[cfg(feature = "bench")]
#[pg_extern(volatile, parallel_unsafe)]
fn obanrs_bench_gossip_waits(
    times: i32,
) -> Result<
    TableIterator<'static, (name!(p50, i64), name!(p999, i64), name!(most, i64), name!(over, i64))>,
    ErrorReport,
> {
    let (segment, mut waits) = (Segment::require()?, Vec::new());
    for _ in 0..times.max(1) {
        pgrx::check_for_interrupts!();
        waits.push(segment.gossip().bench_wait().as_nanos() as i64);
    }
    waits.sort_unstable();
    let part = |of: f64| waits[((waits.len() - 1) as f64 * of) as usize];
    let over = waits.iter().filter(|wait| **wait > 1_000_000).count() as i64;
    Ok(TableIterator::once((part(0.5), part(0.999), part(1.0), over)))
}

/// Returns a ttl in microseconds. Without a ttl that is obanrs.gossip_ttl. `Err` is 22023: the ttl
/// is not positive, or longer than a year.
fn lifetime(ttl: Option<Interval>) -> Result<i64, Error> {
    let Some(ttl) = ttl else {
        return Ok(config::gossip_ttl().as_micros() as i64);
    };
    match i64::try_from(ttl.as_micros()) {
        Ok(t) if (1..=MAX_TTL).contains(&t) => Ok(t),
        _ => Err(Error::bad(
            format!("ttl is {} microseconds", ttl.as_micros()),
            "It has to be positive and at most a year.",
        )),
    }
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_gossip_delete(
    node: Option<TextArgument>,
    queue: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<i32, ErrorReport> {
    let names = Names::of(prefix, name, node)?;
    let queue: Option<Text<MAX_QUEUE>> = queue.map(|q| error::name("queue", Some(q))).transpose()?;
    let schema = rights::require(names.prefix.as_str(), Right::Write)?;
    let segment = Segment::require()?;
    let deleted = match queue {
        Some(queue) => usize::from(segment.gossip().delete(&names.key(schema, queue.as_str()))),
        None => segment.gossip().delete_node(&names.key(schema, "")),
    };
    Ok(deleted as i32)
}

/// The names of schemas, each looked up once. `None`: the schema has no name, or the caller may not
/// read it.
type Prefixes = HashMap<SchemaOid, Option<String>>;

/// Returns the rows of the view oban_gossip: those of this database and of the prefixes that the
/// caller may read. The columns are in sql/50_views.sql.
#[pg_extern(sql = false)]
pub fn obanrs_gossip(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let (database, mut rows) = (session::database(), ResultSet::of(fcinfo));
    let Some(segment) = Segment::attached() else { return Ok(()) }; // oban_check says why
    let mut prefixes = Prefixes::new();
    session::see_changes(); // else a renamed schema could have its old name in this transaction
    let once = segment.gossip().each(database, false, |piece| {
        pgrx::check_for_interrupts!();
        rows.within(|rows| piece.take(|entry| push(rows, &entry, &mut prefixes)));
    });
    if !once {
        rows.clear();
        let entries = segment.gossip().entries(database, false);
        rows.within(|rows| entries.iter().for_each(|entry| push(rows, &entry.seen(), &mut prefixes)));
    }
    Ok(())
}

/// Adds an entry's row, if the caller may see the entry.
fn push(rows: &mut ResultSet, entry: &EntryRef<'_>, prefixes: &mut Prefixes) {
    let prefix = prefixes.entry(entry.schema).or_insert_with_key(|schema| {
        catalog::schema_name(*schema).filter(|_| rights::allows_in(*schema, Right::Read))
    });
    if let Some(prefix) = prefix {
        rows.push([
            datum::shown(prefix),
            datum::shown(entry.name),
            datum::shown(entry.node),
            datum::shown(entry.queue),
            RawJsonb::copy(entry.state).into_datum(),
            time::timestamptz(entry.started_at).into_datum(),
            time::timestamptz(entry.updated_at).into_datum(),
            time::timestamptz(clock::to_wall(entry.expires_at)).into_datum(),
        ]);
    }
}
