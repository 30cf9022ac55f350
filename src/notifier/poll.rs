//! Reading the ring: the functions of clients that keep their position themselves, so that any connection,
//! through any pooler, will do.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::time::Duration;

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::bus::Target;
use crate::error::{Error, given};
use crate::logic::counter::Counter;
use crate::logic::ids::SchemaOid;
use crate::logic::lifecycle::Lack;
use crate::logic::ring::{Batch, Channel, Progress, RingMessage};
use crate::logic::wire::WireError;
use crate::logic::{channel, wire};
use crate::pg::argument::{TextArgument, TextArray};
use crate::pg::datum::{ServerJson, Text};
use crate::pg::procedure::{Call, InoutRecord};
use crate::pg::{encoding, latch, session, time};
use crate::prefix::rights::{self, Right};
use crate::shmem::{Segment, rings, stats};

/// What is copied while the ring's lock is held once.
const MESSAGES: usize = 256;
const BYTES: usize = 64 * 1024;

/// Where one answer ends, in bytes: a jsonb has its limits, and so have memory and a client.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// A day: what is longer is a mistake in the unit.
const MAX_TIMEOUT: i128 = 86_400_000_000;

/// What a reader asks for. The prefix's name is read once, at the call: after that a schema's new name changes nothing,
/// and another schema of the old name is another prefix.
struct Question {
    prefix: Text,
    /// The prefix's schema; `None` for verbatim channels, which are nobody's: any role may LISTEN to them natively.
    schema: Option<SchemaOid>,
    /// Tested, and put together when there is something to read.
    names: Vec<Text>,
    channels: OnceCell<Vec<Channel>>,
    after: Option<i64>,
    most: usize,
    /// Of messages that name a queue, only those of these are for the reader. `None`: all are.
    queues: Option<Vec<String>>,
}

/// What a signal for each queue names.
const ALL_QUEUES: &str = "*";

/// The most queues of a call, and the most bytes of a queue's name.
const MAX_QUEUES: usize = 1_024;
const MAX_QUEUE: usize = 255;

impl Question {
    fn new(
        channels: Option<TextArray>,
        after: Option<i64>,
        max_messages: Option<i32>,
        prefix: Option<TextArgument>,
        queues: Option<TextArray>,
    ) -> Result<Self, Error> {
        let (names, prefix) = super::names(channels, prefix)?;
        let max_messages = given("max_messages", max_messages)?;
        names.iter().try_for_each(|name| channel::test(&prefix, name))?;
        if let Some(after) = after.filter(|after| *after < 0) {
            return Err(Error::bad(
                format!("after is {after}"),
                "Give the position of the last answer, or NULL for from now on.",
            ));
        }
        let queues = queues.map(|queues| queues.texts("queues", MAX_QUEUES, MAX_QUEUE)).transpose()?;
        let queues: Option<Vec<String>> =
            queues.map(|queues| queues.into_iter().map(|Text(queue)| queue).collect());
        if queues.iter().flatten().any(String::is_empty) {
            return Err(Error::bad(
                "queues has an empty element",
                "Give the names of queues, or NULL for all.",
            ));
        }
        if max_messages < 1 {
            return Err(Error::bad(format!("max_messages is {max_messages}"), "It has to be at least 1."));
        }
        let most = max_messages as usize;
        let schema = if prefix.is_empty() { None } else { Some(rights::require(&prefix, Right::Read)?) };
        require_ring("poll")?;
        Ok(Self { prefix, schema, names, channels: OnceCell::new(), after, most, queues })
    }

    /// Whether a message with this payload is for the reader.
    fn wants(&self, payload: &[u8]) -> bool {
        let Some(queues) = &self.queues else { return true };
        let payload = encoding::to_utf8_lossy(payload);
        wire::queue_of(&payload).is_none_or(|queue| queue == ALL_QUEUES || queues.contains(&queue))
    }

    fn channels(&self) -> Result<&[Channel], Error> {
        if self.channels.get().is_none() {
            let channels =
                self.names.iter().map(|name| Ok(Target::new(self.schema, &self.prefix, name)?.channel()));
            let _ = self.channels.set(channels.collect::<Result<_, Error>>()?);
        }
        Ok(self.channels.get().map_or(&[], Vec::as_slice))
    }

    /// The right may have been revoked, the schema dropped, while this waited.
    fn require_right(&self) -> Result<(), Error> {
        session::see_changes();
        match self.schema {
            Some(schema) => rights::require_in(schema, &self.prefix, Right::Read),
            None => Ok(()),
        }
    }
}

/// 55000 where there can't be a ring.
fn require_ring(what: &'static str) -> Result<(), Error> {
    let segment = Segment::require()?;
    if session::in_recovery() {
        return Err(Error::InRecovery(what));
    }
    if segment.own_slot().is_none() {
        segment.called_in(session::database()); // right after the server's start nobody knows of the extension yet
    }
    Ok(())
}

/// Why this database has no ring.
fn no_ring() -> Error {
    if rings::availability().is_some() {
        let what = "this database's messages".into();
        return Error::TableFull { what, setting: "obanrs.max_rings" };
    }
    match Segment::attached().and_then(|segment| segment.lack(false)) {
        Some(lack @ Lack::Place { .. }) => Error::NoPlace { what: "this database's messages", lack },
        _ => Error::NoExtension,
    }
}

#[derive(Debug)]
struct Answer {
    position: i64,
    missed: Option<i64>,
    count: usize,
    /// The elements of the array, each behind a comma.
    json: Vec<u8>,
}

impl Answer {
    fn new(position: i64) -> Self {
        Self { position, missed: Some(0), count: 0, json: Vec::new() }
    }

    fn pass(&mut self, progress: Progress) {
        self.position = progress.position;
        self.missed = self.missed.zip(progress.missed).map(|(a, b)| a + b);
    }

    fn is_empty(&self) -> bool {
        self.count == 0 && self.missed == Some(0)
    }

    /// Adds the messages that the reader wants, until it has as many as the reader wants, or as many bytes as an answer may;
    /// but a first one always.
    /// How many it has looked at.
    fn add(&mut self, batch: &Batch, question: &Question) -> Result<usize, Error> {
        let client = encoding::Client::of_session();
        for (added, message) in batch.messages().enumerate() {
            if self.count == question.most {
                return Ok(added);
            }
            let Some(json) = shown(&message, question)? else { continue };
            let json = client.json(json);
            if self.count > 0 && self.json.len() + json.len() > MAX_ANSWER_BYTES {
                return Ok(added);
            }
            self.json.try_reserve(json.len() + 2).map_err(|_| Error::OutOfMemory)?;
            self.json.push(b',');
            self.json.extend_from_slice(&json);
            self.count += 1;
        }
        Ok(batch.len())
    }

    fn messages(mut self) -> ServerJson {
        match self.json.first_mut() {
            Some(comma) => *comma = b'[',
            None => self.json.push(b'['),
        }
        self.json.push(b']'); // there is room for it
        ServerJson(self.json)
    }
}

/// A message as JSON, in the server's encoding. What is packed may become megabytes. `None`: the reader does not want
/// it.
fn shown(message: &RingMessage<'_>, question: &Question) -> Result<Option<Vec<u8>>, Error> {
    // Only what is packed is ASCII, and has to be unpacked; it was UTF-8 then.
    let unpacked = std::str::from_utf8(message.payload).ok().and_then(|text| match wire::decode(text) {
        Ok(unpacked) if text != unpacked => Some(Ok(unpacked)),
        Err(WireError::OutOfMemory) => Some(Err(Error::OutOfMemory)),
        _ => None,
    });
    let unpacked = unpacked.transpose()?;
    let payload = unpacked.as_deref().map_or(Cow::Borrowed(message.payload), encoding::to_server);
    if !question.wants(&payload) {
        return Ok(None);
    }
    let mut json = format!("{{\"seq\":{},\"channel\":", message.position).into_bytes();
    wire::push_string(&mut json, message.channel);
    let sent_at = format!(",\"sent_at\":\"{}\"}}", time::iso(message.sent_at));
    let rest = [b",\"payload\":", &*payload, sent_at.as_bytes()];
    json.try_reserve(rest.iter().map(|part| part.len()).sum()).map_err(|_| Error::OutOfMemory)?;
    rest.iter().for_each(|part| json.extend_from_slice(part));
    Ok(Some(json))
}

/// What there is to read now.
fn read(question: &Question) -> Result<Answer, Error> {
    stats::count(Counter::Polls, 1);
    let position = rings::position().ok_or_else(no_ring)?;
    let Some(after) = question.after else { return Ok(Answer::new(position)) };
    let mut answer = Answer::new(after);
    if after == position {
        return Ok(answer); // most polls find nothing, and need no room for it
    }
    // With a filter a batch has more messages than there is room for: most may be for others.
    let filtered = question.queues.is_some();
    let mut batch = Batch::new(if filtered { MESSAGES } else { MESSAGES.min(question.most) }, BYTES);
    loop {
        let left = question.most - answer.count;
        if left < MESSAGES && !filtered {
            batch = Batch::new(left, BYTES);
        }
        batch.clear();
        let progress = rings::read(answer.position, question.channels()?, &mut batch).ok_or_else(no_ring)?;
        let added = answer.add(&batch, question)?;
        if added < batch.len() {
            // Up to the last one that was added, and no further.
            if let Some(last) = added.checked_sub(1).and_then(|last| batch.messages().nth(last)) {
                let missed = progress.missed.map(|_| last.missed);
                answer.pass(Progress { position: last.position, missed, more: true });
            }
            return Ok(answer);
        }
        answer.pass(progress);
        if !progress.more || answer.count == question.most {
            return Ok(answer);
        }
        pgrx::check_for_interrupts!();
    }
}

#[pg_extern(name = "oban_poll", volatile, parallel_unsafe)]
fn oban_poll_queues(
    channels: default!(Option<TextArray>, "'{gossip,insert,leader,signal}'"),
    after: default!(Option<i64>, "NULL"),
    max_messages: default!(Option<i32>, "1000"),
    prefix: default!(Option<TextArgument>, "'public'"),
    queues: default!(Option<TextArray>, "NULL"),
) -> Result<
    TableIterator<'static, (name!(position, i64), name!(missed, Option<i64>), name!(messages, ServerJson))>,
    ErrorReport,
> {
    let answer = read(&Question::new(channels, after, max_messages, prefix, queues)?)?;
    Ok(TableIterator::once((answer.position, answer.missed, answer.messages())))
}

/// The symbol of oban_poll in the SQL of versions before 0.7.0.
#[pg_extern(sql = false)]
fn oban_poll(
    channels: Option<TextArray>,
    after: Option<i64>,
    max_messages: Option<i32>,
    prefix: Option<TextArgument>,
) -> Result<
    TableIterator<'static, (name!(position, i64), name!(missed, Option<i64>), name!(messages, ServerJson))>,
    ErrorReport,
> {
    let answer = read(&Question::new(channels, after, max_messages, prefix, None)?)?;
    Ok(TableIterator::once((answer.position, answer.missed, answer.messages())))
}

/// The signature of oban_poll and nothing else: what it is compared with.
#[cfg(feature = "bench")]
#[pg_extern(volatile, parallel_unsafe)]
fn obanrs_bench_poll(
    _channels: default!(Option<TextArray>, "'{gossip,insert,leader,signal}'"),
    after: default!(Option<i64>, "NULL"),
    _max_messages: default!(Option<i32>, "1000"),
    _prefix: default!(Option<TextArgument>, "'public'"),
    _queues: default!(Option<TextArray>, "NULL"),
) -> Result<
    TableIterator<'static, (name!(position, i64), name!(missed, Option<i64>), name!(messages, ServerJson))>,
    ErrorReport,
> {
    Ok(TableIterator::once((after.unwrap_or_default(), Some(0), ServerJson(b"[]".to_vec()))))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_position() -> Result<i64, ErrorReport> {
    require_ring("poll")?;
    Ok(rings::position().ok_or_else(no_ring)?)
}

/// The procedure oban_wait, with three INOUT arguments before the last.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // they are the contract's
pub fn oban_wait_queues(
    channels: Option<TextArray>,
    after: Option<i64>,
    timeout: Option<Interval>,
    max_messages: Option<i32>,
    prefix: Option<TextArgument>,
    _position: Option<i64>,
    _missed: Option<i64>,
    _messages: Option<i64>, // a jsonb that nobody looks at
    queues: Option<TextArray>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<pgrx::composite_type!('static, "record"), ErrorReport> {
    Ok(call_wait(timeout, || Question::new(channels, after, max_messages, prefix, queues), fcinfo)?)
}

/// The symbol of oban_wait in the SQL of versions before 0.7.0.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn oban_wait(
    channels: Option<TextArray>,
    after: Option<i64>,
    timeout: Option<Interval>,
    max_messages: Option<i32>,
    prefix: Option<TextArgument>,
    _position: Option<i64>,
    _missed: Option<i64>,
    _messages: Option<i64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<pgrx::composite_type!('static, "record"), ErrorReport> {
    Ok(call_wait(timeout, || Question::new(channels, after, max_messages, prefix, None), fcinfo)?)
}

/// It ends the transaction that CALL began, so that while it waits this session holds no snapshot and no lock.
fn call_wait(
    timeout: Option<Interval>,
    question: impl FnOnce() -> Result<Question, Error>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<pgrx::composite_type!('static, "record"), Error> {
    let timeout = waiting_time(given("timeout", timeout)?)?;
    let mut question = question()?;
    let call = Call::of(fcinfo);
    if call.is_atomic() {
        return Err(Error::InTransactionBlock("oban_wait"));
    }
    let row = InoutRecord::of(fcinfo);
    session::notice_vanished_client();
    // From here on: what comes between this and the sleep is not missed.
    let mut answer = read(&question)?;
    question.after = Some(answer.position);
    call.commit(|| wait(&mut question, &mut answer, timeout))?;
    let (position, missed) = (answer.position.into_datum(), answer.missed.into_datum());
    Ok(row.with([position, missed, answer.messages().into_datum()]))
}

fn waiting_time(timeout: Interval) -> Result<Duration, Error> {
    let micros = timeout.as_micros();
    if (0..=MAX_TIMEOUT).contains(&micros) {
        return Ok(Duration::from_micros(micros as u64));
    }
    Err(Error::bad(
        format!("timeout is {} s", micros as f64 / 1e6),
        "It has to be at least 0 and at most a day; 5 to 10 seconds suit most poolers.",
    ))
}

/// Waits until there is something to read for this reader, or a gap, and reads it. Nothing that this session registers
/// outlives it, whether it returns, raises or ends the session.
fn wait(question: &mut Question, answer: &mut Answer, timeout: Duration) -> Result<(), Error> {
    struct Awake;
    impl Drop for Awake {
        fn drop(&mut self) {
            rings::stop_waiting();
        }
    }
    let _awake = Awake;
    let since = std::time::Instant::now();
    let mut batch = Batch::new(1, 0);
    while answer.is_empty() {
        latch::reset();
        batch.clear();
        let progress =
            rings::read_or_wait(answer.position, question.channels()?, &mut batch).ok_or_else(no_ring)?;
        if batch.len() > 0 || progress.missed != Some(0) {
            rings::stop_waiting();
            question.after = Some(answer.position);
            *answer = read(question)?;
            if !answer.is_empty() || since.elapsed() >= timeout {
                break;
            }
            // They were of other queues. This session no longer counts as asleep, so it looks again before it sleeps.
            pgrx::check_for_interrupts!();
            continue;
        }
        answer.position = progress.position;
        let left = timeout.saturating_sub(since.elapsed());
        if left.is_zero() {
            break;
        }
        if !progress.more {
            latch::wait_with_client(left);
        }
    }
    question.require_right()
}
