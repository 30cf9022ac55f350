//! Reading the ring: the functions for clients that keep their position themselves. Such a client
//! can use any connection, through any pooler.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::time::Duration;

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::bus::Target;
use crate::error::{Error, given};
use crate::logic::counter::Counter;
use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::lifecycle::Lack;
use crate::logic::ring::{Batch, Channel, Progress, RingMessage};
use crate::logic::wire::WireError;
use crate::logic::{channel, object_text, wire};
use crate::pg::argument::{TextArgument, TextArray};
use crate::pg::datum::{ServerJson, Text};
use crate::pg::procedure::{self, Call, InoutRecord};
use crate::pg::{encoding, latch, session, time};
use crate::prefix::rights::{self, Right};
use crate::shmem::{Segment, rings, stats};

/// The most messages, and the most bytes, that are copied while the ring's lock is held once.
const MESSAGES: usize = 256;
const BYTES: usize = 64 * 1024;

/// The bytes at which one answer ends. A jsonb has its limits, and so have memory and a client.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What a reader asks for. The prefix's name is looked up once, at the call. After that a schema's
/// new name changes nothing, and another schema of the old name is another prefix.
struct Question {
    prefix: Text,
    /// The prefix's schema. `None`: the channels are verbatim, and belong to no prefix. Any role
    /// may LISTEN to such channels natively. But the messages of a watched table are only for roles
    /// that may read the table (`Readable`).
    schema: Option<SchemaOid>,
    /// The names of the channels, which are tested. `channels` is made of them when there is
    /// something to read.
    names: Vec<Text>,
    channels: OnceCell<Vec<Channel>>,
    after: Option<i64>,
    most: usize,
    /// The queues whose messages are for the reader. `None`: those of all queues are. Messages that
    /// name no queue are for the reader in any case.
    queues: Option<Vec<String>>,
}

/// The name that a signal for all queues has in place of a queue's name.
const ALL_QUEUES: &str = "*";

/// The most queues of a call, and the most bytes of a queue's name.
const MAX_QUEUES: usize = 1_024;
const MAX_QUEUE: usize = 255;

impl Question {
    /// Returns the question that the arguments ask. `Err` is 22004 or 22023 for a bad argument,
    /// 3F000 or 42501 without the prefix or the right to read it, and 55000 as `require_ring` says.
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

    /// Returns whether a message with this payload is for the reader.
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

    /// Requires the right to read once more: during the wait it may have been revoked, or the
    /// schema dropped. `Err` is 42501 or 3F000.
    fn require_right(&self) -> Result<(), Error> {
        session::see_changes();
        match self.schema {
            Some(schema) => rights::require_in(schema, &self.prefix, Right::Read),
            None => Ok(()),
        }
    }
}

/// Requires a server that can have rings. `Err` is 55000: the library is not preloaded, or the
/// server is in recovery. Gives this database a slot if it has none and may have one.
fn require_ring(what: &'static str) -> Result<(), Error> {
    let segment = Segment::require()?;
    if session::in_recovery() {
        return Err(Error::InRecovery(what));
    }
    if segment.own_slot().is_none() {
        segment.called_in(session::database()); // right after the server's start the registry may not know it
    }
    Ok(())
}

/// Returns the error that says why this database has no ring: 53400 if there is no room for one,
/// and 55000 if the extension is not there.
fn no_ring() -> Error {
    if rings::availability().is_some() {
        let what = "this database's messages".into();
        return Error::TableFull { what, setting: "obanrs.max_rings" };
    }
    match Segment::attached().and_then(|segment| segment.lack(false)) {
        Some(lack @ Lack::Slot { .. }) => Error::NoPlace { what: "this database's messages", lack },
        _ => Error::NoExtension,
    }
}

/// Which source tables the current role may read. A value serves one reading, as rights may change
/// before the next.
#[derive(Default)]
struct Readable(HashMap<TableOid, bool>);

impl Readable {
    /// Returns whether the current role may read the messages of a table. Looks each table up once.
    /// Returns true for messages without a source table.
    fn includes(&mut self, table: TableOid) -> bool {
        if table.is_none() {
            return true;
        }
        if self.0.is_empty() {
            session::see_changes();
        }
        *self.0.entry(table).or_insert_with(|| rights::reads_table(table))
    }
}

#[derive(Debug)]
/// What a reader gets: its new position, how many messages it has missed, and messages as JSON. For
/// `missed` see `Progress::missed`.
struct Answer {
    position: i64,
    missed: Option<i64>,
    count: usize,
    /// The elements of the array, each after a comma.
    json: Vec<u8>,
    /// How many bytes the numbers take up in addition in print (`Object::printed_more`).
    printed_more: usize,
}

impl Answer {
    fn new(position: i64) -> Self {
        Self { position, missed: Some(0), count: 0, json: Vec::new(), printed_more: 0 }
    }

    fn pass(&mut self, progress: Progress) {
        self.position = progress.position;
        self.missed = self.missed.zip(progress.missed).map(|(a, b)| a + b);
    }

    fn is_empty(&self) -> bool {
        self.count == 0 && self.missed == Some(0)
    }

    /// Adds the messages that the reader wants, until the answer has as many as the reader asked
    /// for, or as many bytes as an answer may have. A first message is added whatever its length.
    /// Returns how many messages of the batch were looked at. `Err` is 53200: there is no memory.
    fn add(&mut self, batch: &Batch, question: &Question, readable: &mut Readable) -> Result<usize, Error> {
        let client = encoding::Client::of_session();
        for (added, message) in batch.messages().enumerate() {
            if self.count == question.most {
                return Ok(added);
            }
            if !readable.includes(message.table) {
                continue;
            }
            let Some((json, printed_more)) = shown(&message, question)? else { continue };
            let json = client.json(json);
            let bytes = self.json.len() + self.printed_more + json.len() + printed_more;
            if self.count > 0 && bytes > MAX_ANSWER_BYTES {
                return Ok(added);
            }
            self.json.try_reserve(json.len() + 2).map_err(|_| Error::OutOfMemory)?;
            self.json.push(b',');
            self.json.extend_from_slice(&json);
            self.printed_more += printed_more;
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

/// Returns a message as JSON, in the server's encoding, and how many more bytes its numbers take up
/// in print. A packed message may become megabytes. `None`: the message is not for the reader. `Err`
/// is 53200: there is no memory.
fn shown(message: &RingMessage<'_>, question: &Question) -> Result<Option<(Vec<u8>, usize)>, Error> {
    let (payload, printed_more) =
        if message.text { text_payload(message.payload) } else { (object_payload(message.payload)?, 0) };
    if !question.wants(&payload) {
        return Ok(None);
    }
    let mut json = format!("{{\"seq\":{},\"channel\":", message.position).into_bytes();
    wire::push_string(&mut json, message.channel);
    let sent_at = format!(",\"sent_at\":\"{}\"}}", time::iso(message.sent_at));
    let rest = [b",\"payload\":", &*payload, sent_at.as_bytes()];
    json.try_reserve(rest.iter().map(|part| part.len()).sum()).map_err(|_| Error::OutOfMemory)?;
    rest.iter().for_each(|part| json.extend_from_slice(part));
    Ok(Some((json, printed_more)))
}

/// Returns the object of a wire form, in the server's encoding. `Err` is 53200: there is no memory.
fn object_payload(payload: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    // A packed payload is ASCII, and unpacks to UTF-8. Any other payload is in the server's
    // encoding.
    let unpacked = std::str::from_utf8(payload).ok().and_then(|text| match wire::decode(text) {
        Ok(unpacked) if text != unpacked => Some(Ok(unpacked)),
        Err(WireError::OutOfMemory) => Some(Err(Error::OutOfMemory)),
        _ => None,
    });
    let Some(unpacked) = unpacked.transpose()? else { return Ok(Cow::Borrowed(payload)) };
    Ok(Cow::Owned(match encoding::to_server(&unpacked) {
        Cow::Owned(converted) => converted,
        Cow::Borrowed(_) => unpacked.into_bytes(),
    }))
}

/// Returns a text as JSON, in the server's encoding, and how many more bytes its numbers take up in
/// print. A text that is no object becomes a string.
fn text_payload(text: &[u8]) -> (Cow<'_, [u8]>, usize) {
    if let Some(object) = object_text::object_of(text, encoding::character) {
        return (object.json, object.printed_more);
    }
    let mut string = Vec::with_capacity(text.len() + 2);
    wire::push_string(&mut string, text);
    (Cow::Owned(string), 0)
}

/// Reads what there is now. Without a ring, `Err` is the error of `no_ring`.
fn read(question: &Question) -> Result<Answer, Error> {
    stats::count(Counter::Polls, 1);
    let position = rings::position().ok_or_else(no_ring)?;
    let Some(after) = question.after else { return Ok(Answer::new(position)) };
    let mut answer = Answer::new(after);
    if after == position {
        return Ok(answer); // most polls find nothing, and need no batch
    }
    // With a filter, a batch may hold more messages than the answer has room for, because most may
    // be for other readers. Messages on verbatim channels may be of tables that the role can't read.
    let filtered = question.queues.is_some() || question.schema.is_none();
    let mut readable = Readable::default();
    let mut batch = Batch::new(if filtered { MESSAGES } else { MESSAGES.min(question.most) }, BYTES);
    loop {
        let left = question.most - answer.count;
        if left < MESSAGES && !filtered {
            batch = Batch::new(left, BYTES);
        }
        batch.clear();
        let progress = rings::read(answer.position, question.channels()?, &mut batch).ok_or_else(no_ring)?;
        let added = answer.add(&batch, question, &mut readable)?;
        if added < batch.len() {
            // The answer reaches up to the last message that was added, and no further.
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

/// Has the signature of oban_poll and does nothing: a benchmark compares the two.
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

/// The procedure oban_wait, which has three INOUT arguments before the last argument.
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
    _messages: Option<i64>, // a jsonb that is not read
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

/// Runs oban_wait. The procedure ends the transaction that CALL began, so that this session holds
/// no snapshot and no lock while it waits. `Err` is 25001 where the transaction can't be ended, or
/// an error of the question, of `read` or of `wait`.
fn call_wait(
    timeout: Option<Interval>,
    question: impl FnOnce() -> Result<Question, Error>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<pgrx::composite_type!('static, "record"), Error> {
    let timeout = procedure::waiting_time(timeout)?;
    let mut question = question()?;
    let call = Call::of(fcinfo);
    if call.is_atomic() {
        return Err(Error::InTransactionBlock { call: "oban_wait", instead: "oban_poll" });
    }
    let row = InoutRecord::of(fcinfo);
    session::notice_vanished_client();
    // The wait reads from here on. So a message that is published before the sleep is not missed.
    let mut answer = read(&question)?;
    question.after = Some(answer.position);
    call.commit(|| wait(&mut question, &mut answer, timeout))?;
    let (position, missed) = (answer.position.into_datum(), answer.missed.into_datum());
    Ok(row.with([position, missed, answer.messages().into_datum()]))
}

/// Waits until there is a message for this reader, or a gap, and reads it. Waits for `timeout` at
/// most. No registration of this session as a waiter outlives the call, whether the call returns,
/// raises an error or ends the session. `Err` is 42501 or 3F000 if the right to read was lost
/// during the wait, and the error of `no_ring` if the ring was.
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
            // The messages were for other readers. This process is not a waiter any more, so it
            // reads again before it sleeps.
            session::drop_catalog_snapshot();
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
