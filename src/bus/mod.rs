//! The way of a message out of its transaction.
//!
//! ```text
//!                        PRE_COMMIT                 COMMIT
//! oban_notify, ──queue──▶ outbox ──reserve──▶ ... ──publish──▶ ring ──▶ oban_poll, oban_wait
//! triggers                  │  │                                └──▶ relay ──▶ LISTEN
//!                           │  └─ signal, leader; notifier postgres; no relay, no room:
//!                           │     native NOTIFY in this transaction ────────▶ LISTEN
//!                           ├─ ROLLBACK [TO SAVEPOINT]: gone
//!                           └─ PREPARE TRANSACTION: 0A000 after a call, wake-ups are dropped
//! ```
//!
//! What can fail fails at the call, or before the commit, while it still rolls the transaction back. After
//! the commit an error would be a PANIC of the whole server: then memory is copied under the ring's lock,
//! latches are set, and memory is freed, nothing else. Only there positions are given, so that whoever
//! reads a message sees the rows of its transaction.
//!
//! A relay that has ended is waited for; one that does not come is done without: then each transaction sends
//! what waits in the ring before its own, and if none commits the keeper does (`send_for_relay`).
//!
//! A message belongs to a schema, not to its name. The name is looked up when the message is sent natively (`names`): by
//! the relay, or before the commit by a transaction that sends by itself. A message whose schema has no channel by
//! then is heard by no session that LISTENs, and counts as dropped.
//!
//! The outbox and what follows it are plain memory of this process, empty whenever no transaction is open.
//! An error, a cancel or the end of the process between PRE_COMMIT and COMMIT is an abort, and that gives the
//! reserved room back; a process that dies without one (SIGKILL) takes shared memory along.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::backend::listening;
use crate::config::{self, Notifier};
use crate::error::Error;
use crate::logic::counter::Counter;
use crate::logic::ids::{RoleOid, SchemaOid};
use crate::logic::outbox::{Delivery, Outbox, Queued, QueuedMessage, Requester};
use crate::logic::ring::{self, Batch, Charge, Incoming};
use crate::logic::{channel, relay};
use crate::pg::{encoding, notify, session, xact};
use crate::prefix::rights;
use crate::shmem::rings::{self, Reserved, RingHandle};
use crate::shmem::stats;

pub mod leadership;
pub mod names;

use names::Names;

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::default();
    /// Between PRE_COMMIT, when the outbox was emptied, and the end of the transaction.
    static CLOSED: Cell<bool> = const { Cell::new(false) };
    /// Room in the ring that an abort has to give back.
    static RESERVED: Cell<Option<(RingHandle, Vec<Charge>)>> = const { Cell::new(None) };
    /// The last role that queued a message in this transaction, and what `charged_role` says of it.
    static LAST_ROLE: Cell<Option<(RoleOid, RoleOid)>> = const { Cell::new(None) };
    /// What is published with the commit.
    static PUBLICATION: RefCell<Option<Publication>> = const { RefCell::new(None) };
}

// No borrow of these is held while Postgres is called: it may end the process there, and the end of its
// transaction comes back to us.

/// Messages of a transaction that is about to commit.
struct Publication {
    ring: RingHandle,
    messages: Vec<QueuedMessage>,
    /// What each of their roles has reserved.
    charges: Vec<Charge>,
    /// Whether there is room for them in the ring.
    room: bool,
    /// Whether all of them were sent natively.
    sent: bool,
    /// How far the transaction has sent what waited for a relay.
    relayed: Option<u64>,
    /// How many more messages there are, not in the ring.
    late: usize,
}

impl Publication {
    fn empty(ring: RingHandle) -> Self {
        let (messages, charges) = (Vec::new(), Vec::new());
        Self { ring, messages, charges, room: true, sent: true, relayed: None, late: 0 }
    }
}

/// In `_PG_init`, once per process.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Where a message goes.
#[derive(Clone)]
pub struct Target {
    channel: Rc<ring::Channel>,
    delivery: Delivery,
}

impl Target {
    /// A channel of a prefix, whose schema this is. Without a schema `prefix` is `""` and `channel` the full name, of a
    /// watched table or of anybody's. 22023 for names that no channel can have.
    pub fn new(schema: Option<SchemaOid>, prefix: &str, channel: &str) -> Result<Self, Error> {
        let full = channel::full_name(prefix, channel)?;
        if encoding::to_server(&full).len() > channel::MAX_CHANNEL {
            return Err(channel::too_long(&full).into());
        }
        let delivery = match (schema, channel) {
            // Rare, and their order and repetition matter; so does it that nobody's relay has to run for them.
            (Some(_), "signal" | "leader") => Delivery::Native,
            (Some(_), "insert") => Delivery::Merged,
            _ => Delivery::Single,
        };
        let name = encoding::to_server(channel).into_owned();
        Ok(Self { channel: Rc::new(ring::Channel::new(schema.unwrap_or(SchemaOid::NONE), name)), delivery })
    }

    /// Where the wake-ups of a schema go. Whether its name can have a channel shows when they are sent.
    pub fn wakeups(schema: SchemaOid) -> Self {
        Self { channel: Rc::new(ring::Channel::new(schema, b"insert".to_vec())), delivery: Delivery::Merged }
    }

    /// The same, past the ring.
    pub fn native_only(self) -> Self {
        Self { delivery: Delivery::NativeOnly, ..self }
    }

    /// As readers ask for it.
    pub fn channel(&self) -> ring::Channel {
        (*self.channel).clone()
    }
}

/// Queues a message until the end of this transaction. 54000 when somebody called for it and the
/// transaction has as many as it may, 53200 without memory; a trigger's is dropped then.
pub fn queue(target: &Target, payload: Vec<u8>, requester: Requester) -> Result<(), Error> {
    // A parallel worker, which Postgres refuses.
    if session::is_parallel_worker() {
        notify_now(target, &payload);
        return Ok(());
    }
    // Somebody else's PRE_COMMIT callback, after ours.
    if CLOSED.get() {
        notify_now(target, &payload);
        if target.delivery != Delivery::NativeOnly {
            count_late();
        }
        return Ok(());
    }
    let delivery = match target.delivery {
        Delivery::NativeOnly => Delivery::NativeOnly,
        _ if config::notifier() == Notifier::Postgres => Delivery::Native,
        delivery => delivery,
    };
    let (most, level) = (config::max_transaction_messages(), xact::level());
    let message =
        QueuedMessage { channel: target.channel.clone(), payload, requester, delivery, role: charged_role() };
    let queued = OUTBOX.with_borrow_mut(|outbox| outbox.queue(message, level, most));
    match (queued, requester) {
        (Queued::Full, Requester::Call) => return Err(Error::TooManyMessages(most)),
        (Queued::OutOfMemory, Requester::Call) => return Err(Error::OutOfMemory),
        (Queued::Full | Queued::OutOfMemory, Requester::Trigger) => stats::count(Counter::Dropped, 1),
        (Queued::New | Queued::Merged, _) => {}
    }
    Ok(())
}

/// The current role, or 0 if it has no limit, as a superuser or the owner of the database. Asked for once a
/// transaction, as long as it is the same.
fn charged_role() -> RoleOid {
    let role = session::role();
    match LAST_ROLE.get() {
        Some((last, charged)) if last == role => charged,
        _ => {
            let charged = if rights::quota_of(1).is_some() { role } else { RoleOid::NONE };
            LAST_ROLE.set(Some((role, charged)));
            charged
        }
    }
}

/// Sends a message natively, with this transaction, and past the ring. What has no channel any more is dropped.
pub fn notify_now(target: &Target, payload: &[u8]) {
    if !Names::now().notify(target.channel.schema, &target.channel.name, payload) {
        count_dropped();
    }
}

/// A trigger that can't do its work counts what it did not send.
pub fn count_dropped() {
    stats::count(Counter::Dropped, 1);
}

/// A message that came too late for the ring: readers are told of a gap.
fn count_late() {
    let ring = PUBLICATION.with_borrow(|p| p.as_ref().map(|p| p.ring));
    let Some(ring) = ring.or_else(|| rings::reserve(&mut []).map(|r| r.ring)) else { return };
    PUBLICATION.with_borrow_mut(|publication| {
        publication.get_or_insert_with(|| Publication::empty(ring)).late += 1;
    });
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_end(event) {
        CLOSED.set(false);
        LAST_ROLE.set(None);
        let (reserved, publication) = (RESERVED.take(), PUBLICATION.take());
        if xact::is_commit(event) {
            publication.into_iter().for_each(publish);
        } else if let Some((ring, charges)) = reserved {
            rings::give_back(ring, &charges);
        }
        // Of a transaction that was rolled back, or prepared.
        if let Some(left) = take() {
            stats::count(Counter::Dropped, if xact::is_prepare(event) { left.len() } else { 0 });
        }
    } else if xact::is_before_commit(event) {
        CLOSED.set(true);
        if let Some(messages) = take() {
            prepare(messages);
        }
    } else if xact::is_before_prepare(event) && OUTBOX.with_borrow(Outbox::has_calls) {
        ErrorReport::from(Error::Prepared).report(PgLogLevel::ERROR);
    }
}

/// The messages, in their order. Most transactions have none.
fn take() -> Option<Vec<QueuedMessage>> {
    OUTBOX.with_borrow_mut(|outbox| (!outbox.is_empty()).then(|| outbox.take()))
}

/// Before the commit: finds the way for the messages, reserves it, and sends natively what has to be.
fn prepare(mut messages: Vec<QueuedMessage>) {
    let mut charges = charges(&messages);
    let reserved = if charges.is_empty() { None } else { rings::reserve(&mut charges) };
    let Some(Reserved { ring, route, stranded }) = reserved else {
        let natively = send(&messages, true);
        let fallbacks = messages.iter().filter(|m| !m.is_native()).count().min(natively);
        stats::count(Counter::Native, natively);
        stats::count(Counter::NativeFallbacks, fallbacks);
        return;
    };
    // From here on an abort gives the room back. Native NOTIFY may raise, or end the process.
    let room = route != ring::Route::Native;
    RESERVED.set(room.then(|| (ring, charges.clone())));
    let stranded_sent = if stranded { send_stranded(ring) } else { None };
    // In the ring they wait as those before them; what has no room there can't.
    let wait = stranded && stranded_sent.as_ref().is_none_or(|o| o.are_followed_by(&messages));
    // Where nobody listens, nothing need be sent: should somebody begin to before the commit, the relay will
    // find it. But it finds only what is in the ring. And what is in one transaction with a signal is not
    // overtaken by it.
    let sent = match route {
        ring::Route::Relay => messages.iter().any(QueuedMessage::is_native),
        ring::Route::RelayAndNative => listening::any() && !wait,
        ring::Route::Native => true,
    };
    let natively = send(&messages, sent);
    let relayed = stranded_sent.map(|o| o.upto);
    messages.retain(|m| !m.is_native_only());
    PUBLICATION.set(Some(Publication { ring, messages, charges, room, sent, relayed, late: 0 }));
    let fallbacks = if route == ring::Route::Relay { 0 } else { natively };
    rings::count_all(ring, &[(Counter::Native, natively), (Counter::NativeFallbacks, fallbacks)]);
}

/// What each role would have in the ring.
fn charges(messages: &[QueuedMessage]) -> Vec<Charge> {
    let mut charges: Vec<Charge> = Vec::new();
    for message in messages.iter().filter(|m| !m.is_native_only()) {
        let bytes = message.bytes();
        match charges.iter_mut().rev().find(|charge| charge.role == message.role) {
            Some(charge) => (charge.entries, charge.bytes) = (charge.entries + 1, charge.bytes + bytes),
            None => charges.push(Charge::new(message.role, 1, bytes)),
        }
    }
    charges
}

/// Sends all messages natively, or those that have to be; how many. A full queue of NOTIFY would fail the
/// commit: for wake-ups it does not, they are dropped.
fn send(messages: &[QueuedMessage], all: bool) -> usize {
    let mut sent = 0;
    let mut full = None;
    let mut names = None;
    for message in messages.iter().filter(|m| all || m.is_native()) {
        if message.requester == Requester::Trigger && *full.get_or_insert_with(notify::is_queue_full) {
            stats::count(Counter::Dropped, 1);
            continue;
        }
        let names = names.get_or_insert_with(Names::now);
        if names.notify(message.channel.schema, &message.channel.name, &message.payload) {
            sent += 1;
        } else {
            count_dropped();
        }
    }
    sent
}

/// Sends what waits for a relay that does not come, as far as one transaction can: how far that is. Another
/// transaction may do the same; then it comes twice.
fn send_stranded(ring: RingHandle) -> Option<Stranded> {
    let mut batch = Batch::new(1024, 256 * 1024);
    rings::relay::unsent(ring, &mut batch)?;
    // A message that is equal to one before it, and means something, needs a transaction of its own.
    let first = relay::plan(batch.messages()).first_messages;
    let mut batch = Batch::new(first, 256 * 1024);
    // Whether that is all has to be told by the same look: others may be sending, too, and have come further.
    let (upto, left) = rings::relay::unsent(ring, &mut batch)?;
    let plan = relay::plan(batch.messages());
    if plan.transactions.len() > 1 || notify::is_queue_full() {
        return None; // somebody else was at it meanwhile; or it would fail this commit
    }
    let stranded_sent: Vec<_> = batch.messages().collect();
    let sent =
        plan.transactions.first().into_iter().flatten().filter_map(|number| stranded_sent.get(*number));
    if listening::any() {
        let mut names = Names::now();
        let dropped = sent.filter(|m| !names.notify(m.schema, m.channel, m.payload)).count();
        stats::count(Counter::Dropped, dropped);
        stats::count(Counter::NativeFallbacks, batch.len() - dropped);
    }
    Some(Stranded { upto, left, batch })
}

/// Sends what waits for a relay that does not come, in a transaction that is for nothing else, as far as one can: false
/// if it could send nothing.
pub fn send_for_relay() -> bool {
    let Some(Reserved { ring, stranded: true, .. }) = rings::reserve(&mut []) else { return true };
    let Some(Stranded { upto, .. }) = send_stranded(ring) else { return false };
    PUBLICATION.set(Some(Publication { relayed: Some(upto), ..Publication::empty(ring) }));
    true
}

/// What waited for a relay and was sent.
struct Stranded {
    upto: u64,
    /// Whether there is more of it.
    left: bool,
    batch: Batch,
}

impl Stranded {
    /// Whether these messages have to wait, too: for those before them, or for a transaction in which an equal one
    /// does not stand for them.
    fn are_followed_by(&self, messages: &[QueuedMessage]) -> bool {
        let mut names = Names::now();
        let mut full = |schema, channel: &[u8]| names.full(schema, channel).map(<[u8]>::to_vec);
        let mut equal = |m: &QueuedMessage| {
            let equal = self.batch.messages().filter(|o| o.payload == m.payload);
            let own = full(m.channel.schema, &m.channel.name);
            m.delivery != Delivery::Merged && equal.into_iter().any(|o| full(o.schema, o.channel) == own)
        };
        self.left || messages.iter().any(&mut equal)
    }
}

/// After the commit.
fn publish(publication: Publication) {
    let Publication { ring, messages, charges, room, sent, relayed, late } = publication;
    let role_slot = |role| charges.iter().find(|c| c.role == role).map_or(0, Charge::role_slot);
    relayed.into_iter().for_each(|upto| rings::relay::sent_by_others(ring, upto));
    let nobody = !sent && !listening::any();
    let (in_ring, gap) = if room { (&messages[..], late) } else { (&[][..], late + messages.len()) };
    let incoming = in_ring.iter().map(|message| Incoming {
        channel: &message.channel,
        payload: &message.payload,
        wakeup: message.delivery == Delivery::Merged,
        sent: sent || nobody || message.delivery == Delivery::Native,
        role_slot: role_slot(message.role),
    });
    if !rings::publish(ring, incoming, gap) {
        stats::count(Counter::Dropped, messages.len());
        return;
    }
    let unheard = in_ring.iter().filter(|m| nobody && m.delivery != Delivery::Native).count();
    let counts = [
        (Counter::Published, in_ring.len() + gap),
        (Counter::Gaps, usize::from(gap > 0)),
        (Counter::Unheard, unheard),
    ];
    rings::count_all(ring, &counts);
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    let level = xact::level();
    OUTBOX.with_borrow_mut(|outbox| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => outbox.commit_level(level),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => outbox.abort_level(level),
        _ => {}
    });
}
