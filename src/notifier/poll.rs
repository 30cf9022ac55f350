//! Reading the ring: the functions of clients that keep their position themselves, so that any connection,
//! through any pooler, will do.

use std::time::Duration;

use pgrx::datum::{Interval, ToIsoString};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::Value;

use crate::bus::Target;
use crate::error::{Error, given};
use crate::logic::ring::{Batch, Channel, Message, Progress};
use crate::logic::wire;
use crate::pg::acl::{self, Right};
use crate::pg::datum::{Jsonb, Text};
use crate::pg::procedure::{self, Call};
use crate::pg::{encoding, latch, session, time};
use crate::shmem;
use crate::shmem::rings::{self, Counter};

/// What is copied while the ring's lock is held once.
const MESSAGES: usize = 256;
const BYTES: usize = 64 * 1024;

/// Where one answer ends, in bytes on the wire: a jsonb has its limits, and so has a client.
const MOST_BYTES: usize = 16 << 20;

/// A day: what is longer is a mistake in the unit.
const MAX_TIMEOUT: i128 = 86_400_000_000;

/// What a reader asks for.
struct Question<'a> {
    prefix: &'a str,
    channels: Vec<Channel>,
    after: Option<i64>,
    most: usize,
}

impl<'a> Question<'a> {
    fn new(
        channels: Option<Vec<Option<Text>>>,
        after: Option<i64>,
        max_messages: Option<i32>,
        prefix: Option<&'a str>,
    ) -> Result<Self, Error> {
        let (channels, prefix) = (given("channels", channels)?, given("prefix", prefix)?);
        let max_messages = given("max_messages", max_messages)?;
        let channels = channels
            .into_iter()
            .map(|c| Ok(Target::new(prefix, &given("channels", c)?)?.channel()))
            .collect::<Result<Vec<_>, Error>>()?;
        if let Some(after) = after.filter(|after| *after < 0) {
            return Err(Error::bad(
                format!("after is {after}"),
                "Give the position of the last answer, or NULL for from now on.",
            ));
        }
        if max_messages < 1 {
            return Err(Error::bad(format!("max_messages is {max_messages}"), "It has to be at least 1."));
        }
        let question = Self { prefix, channels, after, most: max_messages as usize };
        question.require_right()?;
        require_ring("poll")?;
        Ok(question)
    }

    /// A verbatim channel is nobody's: any role may LISTEN to it natively.
    fn require_right(&self) -> Result<(), Error> {
        if self.prefix.is_empty() { Ok(()) } else { acl::require(self.prefix, Right::Read) }
    }
}

/// 55000 where there can't be a ring.
fn require_ring(what: &'static str) -> Result<(), Error> {
    shmem::require()?;
    if session::in_recovery() { Err(Error::InRecovery(what)) } else { Ok(()) }
}

/// Every slot is taken by other databases.
fn no_ring() -> Error {
    Error::TableFull { what: "this database's messages".into(), setting: "obanrs.max_databases" }
}

#[derive(Debug)]
struct Answer {
    position: i64,
    missed: Option<i64>,
    messages: Vec<Value>,
}

impl Answer {
    fn new(position: i64) -> Self {
        Self { position, missed: Some(0), messages: Vec::new() }
    }

    fn add(&mut self, progress: Progress, batch: &Batch) {
        self.position = progress.position;
        self.missed = self.missed.zip(progress.missed).map(|(a, b)| a + b);
        self.messages.extend(batch.messages().map(|m| shown(&m)));
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.missed == Some(0)
    }

    fn messages(self) -> Jsonb {
        Jsonb(Value::Array(self.messages))
    }
}

fn shown(message: &Message<'_>) -> Value {
    let channel = encoding::to_utf8(message.channel);
    let short = match message.prefix {
        0 => &*channel,
        _ => channel.split_once(".oban_").map_or(&*channel, |(_, short)| short),
    };
    let text = encoding::to_utf8(message.payload);
    let json = wire::decode(&text).unwrap_or_default();
    let payload = serde_json::from_str(&json).unwrap_or_else(|_| Value::String(text.into_owned()));
    let sent_at = time::timestamptz(message.sent_at).map(|at| at.to_iso_string());
    serde_json::json!({ "seq": message.position, "channel": short, "payload": payload, "sent_at": sent_at })
}

/// What there is to read now.
fn read(question: &Question<'_>) -> Result<Answer, Error> {
    rings::count(Counter::Polls, 1);
    let Some(after) = question.after else {
        return Ok(Answer::new(rings::position().ok_or_else(no_ring)?));
    };
    let mut answer = Answer::new(after);
    let (mut batch, mut bytes) = (None, 0);
    while answer.messages.len() < question.most && bytes < MOST_BYTES {
        let left = question.most - answer.messages.len();
        // Most polls find nothing, and need no room for it.
        let progress = match &mut batch {
            None => {
                if rings::position() == Some(answer.position) {
                    break;
                }
                batch = Some(Batch::new(MESSAGES.min(left), BYTES));
                continue;
            }
            Some(batch) => {
                if left < MESSAGES {
                    *batch = Batch::new(left, BYTES);
                }
                batch.clear();
                let progress = rings::read(answer.position, &question.channels, batch).ok_or_else(no_ring)?;
                bytes += batch.bytes();
                answer.add(progress, batch);
                progress
            }
        };
        if !progress.more {
            break;
        }
        pgrx::check_for_interrupts!();
    }
    Ok(answer)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_poll(
    channels: default!(Option<Vec<Option<Text>>>, "'{gossip,insert,leader,signal}'"),
    after: default!(Option<i64>, "NULL"),
    max_messages: default!(Option<i32>, "1000"),
    prefix: default!(Option<Text>, "'public'"),
) -> Result<
    TableIterator<'static, (name!(position, i64), name!(missed, Option<i64>), name!(messages, Jsonb))>,
    ErrorReport,
> {
    let answer = read(&Question::new(channels, after, max_messages, prefix.as_deref())?)?;
    Ok(TableIterator::once((answer.position, answer.missed, answer.messages())))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_position() -> Result<i64, ErrorReport> {
    require_ring("poll")?;
    Ok(rings::position().ok_or_else(no_ring)?)
}

/// The procedure oban_wait, whose last three arguments are INOUT. It ends the transaction that CALL began,
/// so that while it waits this session holds no snapshot and no lock.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // they are the contract's
pub fn oban_wait(
    channels: Option<Vec<Option<Text>>>,
    after: Option<i64>,
    timeout: Option<Interval>,
    max_messages: Option<i32>,
    prefix: Option<Text>,
    _position: Option<i64>,
    _missed: Option<i64>,
    _messages: Option<Jsonb>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<pgrx::composite_type!('static, "record"), ErrorReport> {
    let timeout = waiting_time(given("timeout", timeout)?)?;
    let mut question = Question::new(channels, after, max_messages, prefix.as_deref())?;
    let call = Call::of(fcinfo);
    if call.is_atomic() {
        return Err(Error::InTransactionBlock("oban_wait").into());
    }
    // From here on: what comes between this and the sleep is not missed.
    let mut answer = read(&question)?;
    question.after = Some(answer.position);
    call.commit(|| wait(&question, &mut answer, timeout))?;
    Ok(procedure::row(
        fcinfo,
        [answer.position.into_datum(), answer.missed.into_datum(), answer.messages().into_datum()],
    ))
}

fn waiting_time(timeout: Interval) -> Result<Duration, Error> {
    let micros = timeout.as_micros();
    if (0..=MAX_TIMEOUT).contains(&micros) {
        return Ok(Duration::from_micros(micros as u64));
    }
    Err(Error::bad(
        format!("timeout is {micros} microseconds"),
        "It has to be at least 0 and at most a day; 5 to 10 seconds suit most poolers.",
    ))
}

/// Waits until there is something to read, or a gap, and reads it. Nothing that this session registers
/// outlives it, whether it returns, raises or ends the session.
fn wait(question: &Question<'_>, answer: &mut Answer, timeout: Duration) -> Result<(), Error> {
    struct Awake;
    impl Drop for Awake {
        fn drop(&mut self) {
            rings::stop_sleeping();
        }
    }
    let _awake = Awake;
    let since = std::time::Instant::now();
    let mut batch = Batch::new(1, 0);
    while answer.is_empty() {
        latch::reset();
        batch.clear();
        let progress =
            rings::read_or_sleep(answer.position, &question.channels, &mut batch).ok_or_else(no_ring)?;
        if batch.len() > 0 || progress.missed != Some(0) {
            rings::stop_sleeping();
            question.require_right()?; // it may have been revoked meanwhile
            *answer = read(&Question {
                after: Some(answer.position),
                channels: question.channels.clone(),
                ..*question
            })?;
            return Ok(());
        }
        answer.position = progress.position;
        let left = timeout.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        if !progress.more {
            latch::wait_with_client(left);
        }
        pgrx::check_for_interrupts!();
    }
    Ok(())
}
