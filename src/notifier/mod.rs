//! Notifications: the SQL functions.

pub mod poll;
pub mod stats;

use std::borrow::Cow;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde::de::IgnoredAny;

use crate::backend::listening;
use crate::bus::{self, Target};
use crate::config;
use crate::error::{Error, given};
use crate::logic::channel::MAX_CHANNEL;
use crate::logic::outbox::{self, Requester};
use crate::logic::text::excerpt;
use crate::logic::wire::WireError;
use crate::logic::{channel, jsonb, wire};
use crate::pg::argument::{JsonbArgument, JsonbArray, TextArgument, TextArray};
use crate::pg::datum::{RawJsonb, Text};
use crate::pg::{encoding, notify, session};
use crate::prefix::rights::{self, Right};

/// The most bytes of a payload as a jsonb. Text that can be packed into a notification has at most
/// 8 MB. As a jsonb it has at most six times as many bytes, in an array of small numbers.
const MAX_JSONB: usize = 64 << 20;

/// The most bytes, and the most elements, of an array of payloads.
const MAX_PAYLOADS_BYTES: usize = 128 << 20;
const MAX_PAYLOADS: usize = 1 << 20;

/// The most channels of a call. A reading compares each channel with each message while the ring's
/// lock is held.
const MAX_CHANNELS: usize = 64;

#[pg_extern(volatile, parallel_unsafe)]
fn oban_notify(
    channel: Option<TextArgument>,
    payload: Option<JsonbArgument>,
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    let payload = given("payload", payload)?;
    Ok(queue_all(channel, "payload", [Some(payload)].into_iter(), prefix)?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_notify_many(
    channel: Option<TextArgument>,
    payloads: Option<JsonbArray>,
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    let payloads = given("payloads", payloads)?;
    if payloads.bytes() > MAX_PAYLOADS_BYTES {
        return Err(Error::too_large("payloads", payloads.bytes(), MAX_PAYLOADS_BYTES).into());
    }
    let payloads = payloads.open().ok_or(Error::NullArgument("payloads"))?;
    if payloads.len() > MAX_PAYLOADS {
        let message = format!("payloads has {} elements", payloads.len());
        let hint = format!("At most {MAX_PAYLOADS} are read: send them in several calls.");
        return Err(Error::ArgumentTooLarge { message, hint }.into());
    }
    // The payloads are printed one after the other. As text they can be many times as large as the
    // array.
    Ok(queue_all(channel, "payloads", payloads.iter(), prefix)?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_notify_text(
    channel: Option<TextArgument>,
    payload: default!(Option<TextArgument>, "''"),
) -> Result<(), ErrorReport> {
    let (channel, payload) = (given("channel", channel)?, given("payload", payload)?);
    let target = verbatim(&channel.text("channel", MAX_CHANNEL)?)?.any_text();
    if session::in_recovery() {
        return Err(Error::InRecovery("notify").into());
    }
    let payload = payload.in_server_encoding(wire::MAX_PAYLOAD).map_err(|bytes| {
        let most = wire::MAX_PAYLOAD;
        Error::PayloadTooLarge(format!("{bytes} bytes; a notification has at most {most}"))
    })?;
    Ok(bus::queue(&target, payload, Requester::Call)?)
}

/// Returns the target of a verbatim channel. It belongs to no prefix: any role may NOTIFY it
/// natively. But only a role that may write to a prefix gets room in the ring. `Err` is 22023: no
/// channel can have the name.
fn verbatim(channel: &str) -> Result<Target, Error> {
    let target = Target::new(None, "", channel)?;
    Ok(if rights::writes_somewhere() { target } else { target.native_only() })
}

/// Queues every payload or none: all are tested before the first is queued. `Err` is 22004 or 22023
/// for an argument that can't be sent, 54000 for too long or too many messages, 3F000 or 42501
/// without the prefix or the right, 55000 in recovery, and 53200 without memory.
fn queue_all(
    channel: Option<TextArgument>,
    argument: &'static str,
    payloads: impl Iterator<Item = Option<JsonbArgument>>,
    prefix: Option<TextArgument>,
) -> Result<(), Error> {
    let (channel, prefix) = (given("channel", channel)?, given("prefix", prefix)?);
    let (channel, prefix) = (channel.text("channel", MAX_CHANNEL)?, prefix.text("prefix", MAX_CHANNEL)?);
    channel::test(&prefix, &channel)?;
    let target = if prefix.is_empty() {
        verbatim(&channel)?
    } else {
        Target::new(Some(rights::require(&prefix, right_to_publish(&channel))?), &prefix, &channel)?
    };
    if session::in_recovery() {
        return Err(Error::InRecovery("notify"));
    }
    let (mut forms, mut bytes) = (Vec::new(), 0);
    for payload in payloads {
        pgrx::check_for_interrupts!();
        let form = server_form(wire_form(argument, given(argument, payload)?)?)?;
        bytes += form.len();
        if bytes > outbox::MAX_BYTES {
            return Err(Error::TooManyMessages(config::max_transaction_messages()));
        }
        forms.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
        forms.push(form);
    }
    forms.into_iter().try_for_each(|form| bus::queue(&target, form, Requester::Call))
}

fn right_to_publish(channel: &str) -> Right {
    match channel {
        "signal" => Right::Signal,
        "leader" | "leadership" => Right::Own,
        _ => Right::Write,
    }
}

/// Returns the wire form in the server's encoding, in which it may be longer. `Err` is 54000: it is
/// too long for a notification.
fn server_form(form: String) -> Result<Vec<u8>, Error> {
    let form = match encoding::to_server(&form) {
        Cow::Borrowed(_) => form.into_bytes(),
        Cow::Owned(converted) => converted,
    };
    if form.len() <= wire::MAX_PAYLOAD { Ok(form) } else { Err(WireError::TooLong(form.len()).into()) }
}

/// Returns the wire form of a payload. `Err` is 22023 for a payload that is no JSON object, and
/// 54000 for one that is too large to be sent.
fn wire_form(argument: &'static str, payload: JsonbArgument) -> Result<String, Error> {
    let json = compact(argument, payload)?;
    if !json.starts_with('{') {
        return Err(Error::bad(
            format!("payload is no JSON object: {}", excerpt(&json)),
            "Oban's nodes crash on anything else: wrap it, as in {\"value\": 1}.",
        ));
    }
    Ok(wire::encode(json)?)
}

/// Returns a payload as compact text. The text is measured before Postgres prints it. `Err` is
/// 54000 for a payload that is too large or nested too deep, and 22004 for a NULL.
fn compact(argument: &'static str, payload: JsonbArgument) -> Result<String, Error> {
    if payload.bytes() > MAX_JSONB {
        return Err(Error::too_large(argument, payload.bytes(), MAX_JSONB));
    }
    let payload = payload.open().ok_or(Error::NullArgument(argument))?;
    let len = jsonb::text_len(payload.bytes(), wire::MAX_DEPTH).map_err(|_| WireError::TooDeep)?;
    if len > wire::MAX_UNPACKED {
        let most = wire::MAX_UNPACKED;
        return Err(Error::PayloadTooLarge(format!("{len} bytes as text; at most {most} are sent")));
    }
    Ok(payload.with_text(wire::compact)?)
}

#[pg_extern(immutable, parallel_safe)]
fn oban_encode(payload: Option<JsonbArgument>) -> Result<Text, ErrorReport> {
    Ok(Text(wire_form("payload", given("payload", payload)?)?))
}

#[pg_extern(immutable, parallel_safe)]
fn oban_decode(wire: Option<TextArgument>) -> Result<Option<RawJsonb>, ErrorReport> {
    let wire = given("wire", wire)?;
    if wire.bytes() > wire::MAX_PAYLOAD {
        return Err(Error::too_large("wire", wire.bytes(), wire::MAX_PAYLOAD).into());
    }
    let json = wire::decode(&wire.text("wire", wire::MAX_PAYLOAD)?).map_err(Error::from)?;
    wire::require_flat(&json).map_err(Error::from)?;
    serde_json::from_str::<IgnoredAny>(&json)
        .map_err(|e| no_wire_form(&format!("\"{}\" is not JSON ({e})", excerpt(&json))))?;
    pgrx::check_for_interrupts!();
    Ok(RawJsonb::parse_or(&json, no_wire_form))
}

fn no_wire_form(why: &str) -> Error {
    Error::bad(
        format!("not a wire form of Oban's: {why}"),
        "Oban sends JSON, base64 of gzip (H4sI...), or the latter behind \"Z:\".",
    )
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_listen_channels(
    channels: default!(Option<TextArray>, "'{gossip,insert,leader,signal}'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<SetOfIterator<'static, Text>, ErrorReport> {
    let (names, prefix) = full_names(channels, prefix)?;
    if !prefix.is_empty() {
        rights::require(&prefix, Right::Read)?;
    }
    if !session::is_client_backend() {
        return Err(Error::NotSupported("a background process can't listen").into());
    }
    if session::in_recovery() {
        return Err(Error::InRecovery("listen").into());
    }
    if session::is_restricted() {
        return Err(Error::Restricted("listen").into());
    }
    session::notice_vanished_client(); // else Postgres would send to it for hours
    listening::listen();
    names.iter().for_each(|name| notify::listen(name));
    Ok(SetOfIterator::new(names.into_iter().map(Text)))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_unlisten_channels(
    channels: default!(Option<TextArray>, "'{gossip,insert,leader,signal}'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<SetOfIterator<'static, Text>, ErrorReport> {
    let (names, _) = full_names(channels, prefix)?;
    if session::is_restricted() {
        return Err(Error::Restricted("unlisten").into());
    }
    names.iter().for_each(|name| notify::unlisten(name));
    Ok(SetOfIterator::new(names.into_iter().map(Text)))
}

/// Returns the full names of a prefix's channels, and the prefix. `Err` is 22004 or 22023: an
/// argument is NULL, or a name is no channel's.
fn full_names(
    channels: Option<TextArray>,
    prefix: Option<TextArgument>,
) -> Result<(Vec<String>, Text), Error> {
    let (channels, prefix) = names(channels, prefix)?;
    let names = channels.iter().map(|channel| Ok(channel::full_name(&prefix, channel)?));
    Ok((names.collect::<Result<_, Error>>()?, prefix))
}

/// Returns the names of channels and of their prefix, as they were given. `Err` is 22004 or 22023:
/// an argument is NULL, too long, or has too many elements.
fn names(channels: Option<TextArray>, prefix: Option<TextArgument>) -> Result<(Vec<Text>, Text), Error> {
    let (channels, prefix) = (given("channels", channels)?, given("prefix", prefix)?);
    Ok((channels.texts("channels", MAX_CHANNELS, MAX_CHANNEL)?, prefix.text("prefix", MAX_CHANNEL)?))
}
