//! Notifications: the SQL functions.

pub mod poll;
pub mod stats;

use pgrx::datum::Array;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde::de::IgnoredAny;

use crate::bus::{self, Target};
use crate::config;
use crate::error::{Error, given};
use crate::logic::outbox::{self, Origin};
use crate::logic::text::excerpt;
use crate::logic::wire::WireError;
use crate::logic::{channel, wire};
use crate::pg::acl::{self, Right};
use crate::pg::datum::{Jsonb, Text};
use crate::pg::{encoding, notify, session};
use crate::shmem::listeners;

#[pg_extern(volatile, parallel_unsafe)]
fn oban_notify(
    channel: Option<Text>,
    payload: Option<Jsonb>,
    prefix: default!(Option<Text>, "'public'"),
) -> Result<(), ErrorReport> {
    let payload = given("payload", payload)?;
    Ok(publish(channel.as_deref(), [Some(payload)].into_iter(), prefix.as_deref())?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_notify_many(
    channel: Option<Text>,
    payloads: Option<Array<'_, Jsonb>>,
    prefix: default!(Option<Text>, "'public'"),
) -> Result<(), ErrorReport> {
    // One after the other: printed they can be many times as large as the array.
    let payloads = given("payloads", payloads)?;
    Ok(publish(channel.as_deref(), payloads.iter(), prefix.as_deref())?)
}

/// Queues every payload, or none: all are tested before the first is queued.
fn publish(
    channel: Option<&str>,
    payloads: impl Iterator<Item = Option<Jsonb>>,
    prefix: Option<&str>,
) -> Result<(), Error> {
    let (channel, prefix) = (given("channel", channel)?, given("prefix", prefix)?);
    let target = Target::new(prefix, channel)?;
    // A verbatim channel is nobody's: any role may NOTIFY it natively.
    if !prefix.is_empty() {
        acl::require(prefix, right_to_publish(channel))?;
    }
    if session::in_recovery() {
        return Err(Error::InRecovery("notify"));
    }
    let (mut forms, mut bytes) = (Vec::new(), 0);
    for payload in payloads {
        let form = server_form(&given("payloads", payload)?.0)?;
        bytes += form.len();
        if bytes > outbox::MOST_BYTES {
            return Err(Error::TooManyMessages(config::max_transaction_messages()));
        }
        forms.push(form);
    }
    forms.into_iter().try_for_each(|form| bus::queue(&target, form, Origin::Call))
}

fn right_to_publish(channel: &str) -> Right {
    match channel {
        "signal" => Right::Signal,
        "leader" => Right::Own,
        _ => Right::Write,
    }
}

/// The wire form in the server's encoding, in which it may be longer.
fn server_form(payload: &str) -> Result<Vec<u8>, Error> {
    let form = encoding::to_server(&wire_form(payload)?).into_owned();
    if form.len() <= wire::MAX_PAYLOAD { Ok(form) } else { Err(WireError::TooLong(form.len()).into()) }
}

fn wire_form(payload: &str) -> Result<String, Error> {
    let json = wire::compact(payload)?;
    if !json.starts_with('{') {
        return Err(Error::bad(
            format!("payload is no JSON object: {}", excerpt(&json)),
            "Oban's nodes crash on anything else: wrap it, as in {\"value\": 1}.",
        ));
    }
    Ok(wire::encode(&json)?)
}

#[pg_extern(immutable, parallel_safe)]
fn oban_encode(payload: Option<Jsonb>) -> Result<Text, ErrorReport> {
    Ok(Text(wire_form(&given("payload", payload)?.0)?))
}

#[pg_extern(immutable, parallel_safe)]
fn oban_decode(wire: Option<Text>) -> Result<Jsonb, ErrorReport> {
    let wire = given("wire", wire)?;
    let json = wire::decode(&wire).map_err(Error::from)?;
    serde_json::from_str::<IgnoredAny>(&json).map_err(|e| {
        Error::bad(
            format!("not a wire form of Oban's: \"{}\" is not JSON ({e})", excerpt(&json)),
            "Oban sends JSON, base64 of gzip (H4sI...), or the latter behind \"Z:\".",
        )
    })?;
    Ok(Jsonb(json))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_listen_channels(
    channels: default!(Option<Vec<Option<Text>>>, "'{gossip,insert,leader,signal}'"),
    prefix: default!(Option<Text>, "'public'"),
) -> Result<SetOfIterator<'static, Text>, ErrorReport> {
    let names = full_names(channels, prefix.as_deref())?;
    if let Some(prefix) = prefix.as_deref().filter(|p| !p.is_empty()) {
        acl::require(prefix, Right::Read)?;
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
    listeners::listen();
    names.iter().for_each(|name| notify::listen(name));
    Ok(SetOfIterator::new(names.into_iter().map(Text)))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_unlisten_channels(
    channels: default!(Option<Vec<Option<Text>>>, "'{gossip,insert,leader,signal}'"),
    prefix: default!(Option<Text>, "'public'"),
) -> Result<SetOfIterator<'static, Text>, ErrorReport> {
    let names = full_names(channels, prefix.as_deref())?;
    if session::is_restricted() {
        return Err(Error::Restricted("unlisten").into());
    }
    names.iter().for_each(|name| notify::unlisten(name));
    Ok(SetOfIterator::new(names.into_iter().map(Text)))
}

/// The full names of a prefix's channels.
fn full_names(channels: Option<Vec<Option<Text>>>, prefix: Option<&str>) -> Result<Vec<String>, Error> {
    let (channels, prefix) = (given("channels", channels)?, given("prefix", prefix)?);
    channels.into_iter().map(|c| Ok(channel::full_name(prefix, &given("channels", c)?)?)).collect()
}
