//! Queue signals: the SQL functions. `logic::signals` has their wire form and the rules of what is
//! remembered, `remember` remembers, and `view` shows it.
//!
//! A signal is part of the transaction: it is sent, and remembered, when the transaction commits.

mod remember;
pub mod view;

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::bus::{self, Target};
use crate::error::{self, Error, given};
use crate::logic::ids::SchemaOid;
use crate::logic::leadership::{MAX_NAME, MAX_NODE, MAX_PREFIX};
use crate::logic::outbox::Requester;
use crate::logic::signals::{self, Action, EVERY_QUEUE, Key, MAX_QUEUE_CHARS};
use crate::logic::text::{Text, excerpt};
use crate::pg::argument::TextArgument;
use crate::pg::{encoding, session, xact};
use crate::prefix::rights::{self, Right};

thread_local! {
    /// How many signals this transaction has sent.
    static SENT: Cell<u32> = const { Cell::new(0) };
}

/// Registers the callbacks of transactions. `_PG_init` calls this once per process, after
/// `bus::register`: what is remembered has to be written before the signals are sent.
pub fn register() {
    xact::on_event(transaction_event);
    remember::register();
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_end(event) {
        SENT.set(0);
    }
}

/// The names that a call gives.
struct Names {
    key: Key,
    prefix: Text<MAX_PREFIX>,
}

impl Names {
    /// `Err` is 22004 or 22023: an argument is NULL, or no name.
    fn of(
        queue: Option<TextArgument>,
        node: Option<TextArgument>,
        name: Option<TextArgument>,
        prefix: Option<TextArgument>,
    ) -> Result<Self, Error> {
        let queue = given("queue", queue)?.text("queue", 4 * MAX_QUEUE_CHARS)?;
        let chars = queue.chars().count();
        if !(1..=MAX_QUEUE_CHARS).contains(&chars) {
            return Err(Error::bad(
                format!("queue has {chars} characters: \"{}\"", excerpt(&queue)),
                format!("A queue of Oban's has 1 to {MAX_QUEUE_CHARS} characters."),
            ));
        }
        let node: Option<Text<MAX_NODE>> = node.map(|node| error::name("node", Some(node))).transpose()?;
        let name: Text<MAX_NAME> = error::name("name", name)?;
        let (name, node) = (name.as_str().to_owned(), node.map(|node| node.as_str().to_owned()));
        Ok(Self { key: Key { name, queue: queue.0, node }, prefix: error::name("prefix", prefix)? })
    }
}

/// Sends a signal to a queue when this transaction commits, and remembers it. `Err` is 22023 for
/// what no node of Oban's understands, 25006 or 55000 where nothing can be written, and 3F000,
/// 42501 or 42939 without the prefix or the right.
fn send_to_queue(names: &Names, action: Action) -> Result<(), Error> {
    let Names { key, prefix } = names;
    if key.queue == EVERY_QUEUE && !action.knows_every_queue() {
        return Err(Error::bad(
            "queue \"*\" stands for all queues in a pause and a resume only",
            "Give one queue: Oban's nodes neither scale nor start nor stop all of them by one signal.",
        ));
    }
    if let Some(limit) = action.limit().filter(|limit| *limit < 1) {
        return Err(Error::bad(
            format!("queue_limit is {limit}"),
            "It has to be 1 or more: a node of Oban's would crash. oban_pause_queue lets a queue begin nothing.",
        ));
    }
    let schema = send(prefix.as_str(), action.change().is_some(), signals::payload(action, key))?;
    if let Some(change) = action.change() {
        remember::note(schema, prefix.as_str(), key.clone(), change);
    }
    Ok(())
}

/// Queues a signal for the end of this transaction, and returns the schema of the prefix. `writes`
/// says whether the transaction has to be able to write.
fn send(prefix: &str, writes: bool, mut payload: String) -> Result<SchemaOid, Error> {
    let schema = rights::require(prefix, Right::Signal)?;
    if writes {
        session::require_writable("send a queue signal")?;
    } else if session::in_recovery() {
        return Err(Error::InRecovery("send a queue signal"));
    }
    let target = Target::new(Some(schema), prefix, "signal")?;
    signals::set_apart(&mut payload, SENT.get());
    bus::queue(&target, encoding::to_server(&payload).into_owned(), Requester::Call)?;
    SENT.set(SENT.get().saturating_add(1));
    Ok(schema)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_pause_queue(
    queue: Option<TextArgument>,
    node: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    Ok(send_to_queue(&Names::of(queue, node, name, prefix)?, Action::Pause)?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_resume_queue(
    queue: Option<TextArgument>,
    node: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    Ok(send_to_queue(&Names::of(queue, node, name, prefix)?, Action::Resume)?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_stop_queue(
    queue: Option<TextArgument>,
    node: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    Ok(send_to_queue(&Names::of(queue, node, name, prefix)?, Action::Stop)?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_scale_queue(
    queue: Option<TextArgument>,
    queue_limit: Option<i32>,
    node: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    let limit = given("queue_limit", queue_limit)?;
    Ok(send_to_queue(&Names::of(queue, node, name, prefix)?, Action::Scale(limit))?)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_start_queue(
    queue: Option<TextArgument>,
    queue_limit: Option<i32>,
    node: default!(Option<TextArgument>, "NULL"),
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    let limit = given("queue_limit", queue_limit)?;
    Ok(send_to_queue(&Names::of(queue, node, name, prefix)?, Action::Start(limit))?)
}

/// Asks the nodes of a prefix to end a running job when this transaction commits. `Err` is 3F000, 42501
/// or 42939 without the prefix or the right, and 55000 in recovery.
pub fn pkill(prefix: &str, job: i64) -> Result<(), Error> {
    send(prefix, false, signals::pkill_payload(job)).map(|_| ())
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_pkill_job(
    job_id: Option<i64>,
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    let (job, prefix): (i64, Text<MAX_PREFIX>) = (given("job_id", job_id)?, error::name("prefix", prefix)?);
    Ok(pkill(prefix.as_str(), job)?)
}
