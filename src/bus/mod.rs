//! How a message leaves its transaction.
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
//! Every step that can fail runs at the call or before the commit, where an error still rolls the
//! transaction back. After the commit an error would be a PANIC of the whole server. So after the
//! commit this code copies memory under the ring's lock, sets latches and frees memory, and does
//! nothing else. Messages get their positions after the commit, so that a reader of a message sees
//! the rows of the message's transaction.
//!
//! After a relay has ended, messages wait in the ring for the next relay. If no relay comes, the
//! messages are stranded. Then the next commit sends stranded messages before its own messages, as
//! many as fit into one transaction (`prepare` has the exceptions). If no transaction commits, the
//! keeper sends the stranded messages (`send_for_relay`).
//!
//! A message belongs to a schema, not to the schema's name. The name is looked up when the message
//! is sent natively (`names`). The relay sends it, or before the commit a transaction that sends
//! its messages itself. If the schema has no channel by then, no session that LISTENs hears the
//! message, and the message counts as dropped.
//!
//! The outbox, `RESERVED` and `PUBLICATION` are plain memory of this process. They are empty while
//! no transaction is open. An error, a cancel or the end of the process between PRE_COMMIT and
//! COMMIT is an abort, and the abort gives the reserved room back. A process that dies without an
//! abort (SIGKILL) causes a crash restart, and the server makes a new segment of shared memory.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::backend::listening;
use crate::config::{self, Notifier};
use crate::error::Error;
use crate::logic::counter::Counter;
use crate::logic::ids::{RoleOid, SchemaOid, TableOid};
use crate::logic::outbox::{Delivery, Outbox, Queued, QueuedMessage, Requester};
use crate::logic::ring::{self, Batch, Charge, Incoming};
use crate::logic::{channel, relay};
use crate::pg::{encoding, notify, session, xact};
use crate::prefix::rights;
use crate::shmem::rings::{self, Reserved, RingHandle};
use crate::shmem::stats;

pub mod leadership;
pub mod names;
pub mod wakeups;

use names::Names;

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::default();
    /// Whether PRE_COMMIT has emptied the outbox, and the transaction has not ended yet.
    static CLOSED: Cell<bool> = const { Cell::new(false) };
    /// Room in the ring that an abort has to give back.
    static RESERVED: Cell<Option<(RingHandle, Vec<Charge>)>> = const { Cell::new(None) };
    /// The last role that queued a message in this transaction, and what `charged_role` returned
    /// for that role.
    static LAST_ROLE: Cell<Option<(RoleOid, RoleOid)>> = const { Cell::new(None) };
    /// The messages that are published after the commit.
    static PUBLICATION: RefCell<Option<Publication>> = const { RefCell::new(None) };
}

// No borrow of these cells is held while Postgres is called. Postgres may end the process during
// the call. Then the end of the transaction calls this module again.

/// Messages of a transaction that is about to commit.
struct Publication {
    ring: RingHandle,
    messages: Vec<QueuedMessage>,
    /// What each role of the messages has reserved in the ring.
    charges: Vec<Charge>,
    /// Whether the ring has room for the messages.
    room: bool,
    /// Whether nothing is left to send: each message was sent natively, or was dropped.
    settled: bool,
    /// How far this transaction has sent stranded messages, as an ordinal of the ring. `None`: it
    /// has sent no stranded message.
    relayed: Option<u64>,
    /// How many messages came too late for the ring. Readers are told of a gap of this length.
    late: usize,
}

impl Publication {
    fn empty(ring: RingHandle) -> Self {
        let (messages, charges) = (Vec::new(), Vec::new());
        Self { ring, messages, charges, room: true, settled: true, relayed: None, late: 0 }
    }
}

/// Registers the callbacks of transactions. `_PG_init` calls this once per process.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// The channel and the delivery of a message, and what its readers have to know of it.
#[derive(Clone)]
pub struct Target {
    channel: Rc<ring::Channel>,
    delivery: Delivery,
    /// The table from which the message comes. `NONE`: the message comes from no table.
    table: TableOid,
    /// Whether the payload is any text, and not the wire form of a JSON object.
    text: bool,
}

impl Target {
    /// Returns the target of a channel. `schema` is the schema of the prefix. Without a schema,
    /// `prefix` is `""` and `channel` is the full name of a channel, such as that of a watched
    /// table. `Err` is 22023: no channel can have the name.
    pub fn new(schema: Option<SchemaOid>, prefix: &str, channel: &str) -> Result<Self, Error> {
        let full = channel::full_name(prefix, channel)?;
        if encoding::to_server(&full).len() > channel::MAX_CHANNEL {
            return Err(channel::too_long(&full).into());
        }
        let delivery = match (schema, channel) {
            // These messages are rare. Their order and their repetition matter. They also have to
            // arrive where no relay runs.
            (Some(_), "signal" | "leader") => Delivery::Native,
            (Some(_), "insert") => Delivery::Merged,
            _ => Delivery::Single,
        };
        let name = encoding::to_server(channel).into_owned();
        Ok(Self::of(ring::Channel::new(schema.unwrap_or(SchemaOid::NONE), name), delivery))
    }

    fn of(channel: ring::Channel, delivery: Delivery) -> Self {
        Self { channel: Rc::new(channel), delivery, table: TableOid::NONE, text: false }
    }

    /// Returns the target of a schema's wake-ups. Whether the schema's name can have a channel
    /// shows when the messages are sent.
    pub fn wakeups(schema: SchemaOid) -> Self {
        Self::of(ring::Channel::new(schema, b"insert".to_vec()), Delivery::Merged)
    }

    /// Returns the target of a watched table's wake-ups, on a verbatim channel in the server's
    /// encoding. The payloads are any texts of at most `wire::MAX_PAYLOAD` bytes. `None`: no
    /// channel can have the name.
    pub fn watched(table: TableOid, channel: Vec<u8>) -> Option<Self> {
        let target = Self::of(ring::Channel::new(SchemaOid::NONE, channel), Delivery::Merged);
        let has_name = (1..=channel::MAX_CHANNEL).contains(&target.channel.name.len());
        has_name.then_some(Self { table, text: true, ..target })
    }

    /// Returns the target for payloads that are any texts, in the server's encoding.
    pub fn any_text(self) -> Self {
        Self { text: true, ..self }
    }

    /// Returns the target that sends by native NOTIFY only, past the ring.
    pub fn native_only(self) -> Self {
        Self { delivery: Delivery::NativeOnly, ..self }
    }

    /// Returns the channel in the form in which readers ask for it.
    pub fn channel(&self) -> ring::Channel {
        (*self.channel).clone()
    }
}

/// Queues a message until the end of this transaction. For a message that a call asked for, `Err`
/// is 54000 if the transaction has as many messages as allowed, and 53200 if there is no memory. A
/// trigger's message is dropped and counted instead.
pub fn queue(target: &Target, payload: Vec<u8>, requester: Requester) -> Result<(), Error> {
    if session::is_parallel_worker() {
        // Postgres refuses the NOTIFY with its own error.
        notify_now(target, &payload);
        return Ok(());
    }
    if CLOSED.get() {
        // Another PRE_COMMIT callback queues a message after this module's callback has run.
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
    let message = QueuedMessage {
        channel: target.channel.clone(),
        table: target.table,
        payload,
        text: target.text,
        requester,
        delivery,
        role: charged_role(),
    };
    let queued = OUTBOX.with_borrow_mut(|outbox| outbox.queue(message, level, most));
    match (queued, requester) {
        (Queued::Full, Requester::Call) => return Err(Error::TooManyMessages(most)),
        (Queued::OutOfMemory, Requester::Call) => return Err(Error::OutOfMemory),
        (Queued::Full | Queued::OutOfMemory, Requester::Trigger) => stats::count(Counter::Dropped, 1),
        (Queued::New | Queued::Merged, _) => {}
    }
    Ok(())
}

/// Returns the role for whose quota a message counts: the current role, or 0 if that role has no
/// limit, such as a superuser or the owner of the database. While the role stays the same, the
/// quota is looked up once a transaction.
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

/// Sends a message by native NOTIFY in this transaction, past the ring. A message whose schema has
/// no channel any more is dropped and counted.
pub fn notify_now(target: &Target, payload: &[u8]) {
    if !Names::now().notify(target.channel.schema, &target.channel.name, payload) {
        count_dropped();
    }
}

/// Counts a message as dropped. A trigger that can't do its work calls this for what it does not
/// send.
pub fn count_dropped() {
    stats::count(Counter::Dropped, 1);
}

/// Counts a message that came too late for the ring. After the commit, readers are told of a gap.
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
        // The messages of a transaction that was rolled back, or prepared.
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

/// Empties the outbox and returns its messages in their order. `None`: the outbox was empty, as in
/// most transactions.
fn take() -> Option<Vec<QueuedMessage>> {
    OUTBOX.with_borrow_mut(|outbox| (!outbox.is_empty()).then(|| outbox.take()))
}

/// Runs before the commit. Finds the route of the messages, reserves room in the ring, and sends
/// the messages that this transaction has to send natively.
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
    // From here on an abort gives the room back. NOTIFY may raise an error, or end the process.
    let room = route != ring::Route::Native;
    RESERVED.set(room.then(|| (ring, charges.clone())));
    let stranded_sent = if stranded { send_stranded(ring) } else { None };
    // Messages in the ring wait while stranded messages before them wait. Messages that have no
    // room in the ring can't wait.
    let wait = stranded && stranded_sent.as_ref().is_none_or(|o| o.are_followed_by(&messages));
    // With a relay, all messages are sent now if one of them is native. So a signal does not
    // overtake the messages before it.
    //
    // Without a relay, messages in the ring need not be sent while no session LISTENs. If a session
    // begins to LISTEN before the commit, a relay or the keeper sends them. If messages have to
    // wait, `send` sends only those that are native. These overtake the other messages of the
    // transaction and the stranded messages that are left.
    //
    // No process finds messages that have no room in the ring, so these are sent now.
    let send_all = match route {
        ring::Route::Relay => messages.iter().any(QueuedMessage::is_native),
        ring::Route::RelayAndNative => listening::any() && !wait,
        ring::Route::Native => true,
    };
    let natively = send(&messages, send_all);
    let relayed = stranded_sent.map(|o| o.upto);
    messages.retain(|m| !m.is_native_only());
    PUBLICATION.set(Some(Publication { ring, messages, charges, room, settled: send_all, relayed, late: 0 }));
    let fallbacks = if route == ring::Route::Relay { 0 } else { natively };
    rings::count_all(ring, &[(Counter::Native, natively), (Counter::NativeFallbacks, fallbacks)]);
}

/// Returns what the messages of each role would take up in the ring.
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

/// Sends messages natively: all of them, or without `all` only those that have to be sent so.
/// Returns how many were sent. While NOTIFY's queue is full, a message would fail the commit. So a
/// trigger's message is then dropped and counted, and a call's message fails the commit.
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

/// Sends stranded messages in this transaction, as many as one transaction can send. Returns what
/// it sent. `None`: another process has sent some meanwhile, NOTIFY's queue is full, or the
/// database has lost this ring. Another transaction may send these messages at the same time. Then
/// they arrive twice.
fn send_stranded(ring: RingHandle) -> Option<SentStranded> {
    let mut batch = Batch::new(1024, 256 * 1024);
    rings::relay::unsent(ring, &mut batch)?;
    // A message that equals an earlier one, and is no wake-up, has to be sent in another
    // transaction.
    let first = relay::plan(batch.messages()).first_messages;
    let mut batch = Batch::new(first, 256 * 1024);
    // One reading has to tell both the messages and whether there are more: other processes may be
    // sending, too, and may have come further.
    let (upto, left) = rings::relay::unsent(ring, &mut batch)?;
    let plan = relay::plan(batch.messages());
    if plan.transactions.len() > 1 || notify::is_queue_full() {
        return None; // another process has sent some meanwhile, or NOTIFY would fail this commit
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
    Some(SentStranded { upto, left, batch })
}

/// Sends stranded messages in a transaction that does nothing else, as many as one transaction can
/// send. Returns true as well if no message is stranded, and false if nothing could be sent.
pub fn send_for_relay() -> bool {
    let Some(Reserved { ring, stranded: true, .. }) = rings::reserve(&mut []) else { return true };
    let Some(SentStranded { upto, .. }) = send_stranded(ring) else { return false };
    PUBLICATION.set(Some(Publication { relayed: Some(upto), ..Publication::empty(ring) }));
    true
}

/// Stranded messages that this transaction has sent.
struct SentStranded {
    /// How far they reach, as an ordinal of the ring.
    upto: u64,
    /// Whether more stranded messages are left.
    left: bool,
    batch: Batch,
}

impl SentStranded {
    /// Returns whether messages of this transaction have to wait in the ring, too. They wait if
    /// stranded messages are left that come before them. They also wait if one of them equals a
    /// stranded message that this transaction sends, because Postgres sends equal notifications of
    /// one transaction once. A wake-up does not wait for that reason: an equal wake-up stands for
    /// it.
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

/// Runs after the commit, where nothing may fail. Publishes the messages in the ring. Messages that
/// are not in the ring become a gap, of which readers are told.
fn publish(publication: Publication) {
    let Publication { ring, messages, charges, room, settled, relayed, late } = publication;
    let role_slot = |role| charges.iter().find(|c| c.role == role).map_or(0, Charge::role_slot);
    relayed.into_iter().for_each(|upto| rings::relay::sent_by_others(ring, upto));
    let nobody = !settled && !listening::any();
    let (in_ring, gap) = if room { (&messages[..], late) } else { (&[][..], late + messages.len()) };
    let incoming = in_ring.iter().map(|message| Incoming {
        channel: &message.channel,
        table: message.table,
        payload: &message.payload,
        text: message.text,
        wakeup: message.delivery == Delivery::Merged,
        settled: settled || nobody || message.delivery == Delivery::Native,
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
