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
//! The outbox and what follows it are plain memory of this process, empty whenever no transaction is open.
//! An error, a cancel or the end of the process between PRE_COMMIT and COMMIT is an abort, and that gives the
//! reserved room back; a process that dies without one (SIGKILL) takes shared memory along.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::config::{self, Notifier};
use crate::error::Error;
use crate::logic::channel;
use crate::logic::outbox::{Message, Origin, Outbox, Queued, Way};
use crate::logic::ring::{self, Incoming};
use crate::pg::{encoding, notify, session, xact};
use crate::shmem::listeners;
use crate::shmem::rings::{self, Counter, Handle};

thread_local! {
    static OUTBOX: RefCell<Outbox> = RefCell::default();
    /// Between PRE_COMMIT, when the outbox was emptied, and the end of the transaction.
    static CLOSED: Cell<bool> = const { Cell::new(false) };
    /// What is published with the commit.
    static PUBLICATION: RefCell<Option<Publication>> = const { RefCell::new(None) };
}

/// Messages of a transaction that is about to commit.
struct Publication {
    ring: Handle,
    messages: Vec<Message>,
    /// What is reserved for them in the ring: entries and bytes. Without room they are not in it.
    reserved: Option<(usize, usize)>,
    /// Whether all of them were sent natively.
    sent: bool,
    /// How many more there are, not in the ring.
    late: usize,
}

/// In `_PG_init`, once per process.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// A channel in the server's encoding.
pub struct Target {
    name: Vec<u8>,
    prefix: u8,
    way: Way,
}

impl Target {
    /// A prefix's channel; prefix `""` means that `channel` is the full name, of a watched table or of
    /// anybody's. 22023 for names that no channel can have.
    pub fn new(prefix: &str, channel: &str) -> Result<Self, Error> {
        let full = channel::full_name(prefix, channel)?;
        let way = match (prefix, channel) {
            // Rare, and their order and repetition matter; so does it that nobody's relay has to run for them.
            (p, "signal" | "leader") if !p.is_empty() => Way::Natively,
            (p, "insert") if !p.is_empty() => Way::Merged,
            _ => Way::Single,
        };
        let name = encoding::to_server(&full).into_owned();
        if name.len() > channel::MAX_CHANNEL {
            return Err(channel::ChannelError::TooLong(full).into());
        }
        Ok(Self { name, prefix: encoding::to_server(prefix).len() as u8, way })
    }

    /// As readers ask for it.
    pub fn channel(self) -> ring::Channel {
        ring::Channel::new(self.name, self.prefix)
    }
}

/// Queues a message until the end of this transaction. 54000 when somebody called for it and the
/// transaction has as many as it may, 53200 without memory; a trigger's is dropped then.
pub fn queue(target: &Target, payload: &[u8], origin: Origin) -> Result<(), Error> {
    // A parallel worker, which Postgres refuses.
    if session::is_parallel_worker() {
        notify::notify(&target.name, payload);
        return Ok(());
    }
    // Somebody else's PRE_COMMIT callback, after ours.
    if CLOSED.get() {
        notify::notify(&target.name, payload);
        count_late();
        return Ok(());
    }
    let way = if config::notifier() == Notifier::Postgres { Way::Natively } else { target.way };
    let most = config::max_transaction_messages();
    let queued = match Message::new(&target.name, target.prefix, payload, origin, way) {
        Some(message) => OUTBOX.with_borrow_mut(|outbox| outbox.queue(message, xact::level(), most)),
        None => Queued::OutOfMemory,
    };
    match (queued, origin) {
        (Queued::Full, Origin::Call) => return Err(Error::TooManyMessages(most)),
        (Queued::OutOfMemory, Origin::Call) => return Err(Error::OutOfMemory),
        (Queued::Full | Queued::OutOfMemory, Origin::Trigger) => rings::count(Counter::Dropped, 1),
        (Queued::New | Queued::Merged, _) => {}
    }
    Ok(())
}

/// A message that came too late for the ring: readers are told of a gap.
fn count_late() {
    let ring = PUBLICATION.with_borrow(|p| p.as_ref().map(|p| p.ring));
    let Some(ring) = ring.or_else(|| rings::reserve(0, 0).map(|(ring, _)| ring)) else { return };
    PUBLICATION.with_borrow_mut(|publication| {
        let none = Publication { ring, messages: Vec::new(), reserved: None, sent: true, late: 0 };
        publication.get_or_insert(none).late += 1;
    });
}

#[pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn transaction_event(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    if xact::is_end(event) {
        CLOSED.set(false);
        let publication = PUBLICATION.take();
        match publication {
            Some(publication) if xact::is_commit(event) => publish(publication),
            Some(Publication { ring, reserved: Some((entries, bytes)), .. }) => {
                rings::give_back(ring, entries, bytes);
            }
            _ => {}
        }
        // Of a transaction that was rolled back, or prepared.
        if let Some(left) = take() {
            rings::count(Counter::Dropped, if xact::is_prepare(event) { left.len() } else { 0 });
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
fn take() -> Option<Vec<Message>> {
    OUTBOX.with_borrow_mut(|outbox| (!outbox.is_empty()).then(|| outbox.take()))
}

/// Before the commit: finds the way for the messages, and reserves it.
fn prepare(messages: Vec<Message>) {
    let bytes = messages.iter().map(Message::bytes).sum();
    let Some((ring, way)) = rings::reserve(messages.len(), bytes) else {
        messages.iter().for_each(|m| notify::notify(&m.channel, &m.payload));
        return;
    };
    // Where nobody listens, nothing need be sent: should somebody begin to before the commit, the relay will
    // find it. But it finds only what is in the ring.
    let all = match way {
        ring::Way::Relay => false,
        ring::Way::Both => listeners::any(),
        ring::Way::Natively => true,
    };
    let reserved = (way != ring::Way::Natively).then_some((messages.len(), bytes));
    // From here on an abort gives the room back. Native NOTIFY may raise.
    PUBLICATION.set(Some(Publication { ring, messages, reserved, sent: all, late: 0 }));
    let mut natively = 0;
    PUBLICATION.with_borrow(|publication| {
        for message in publication.iter().flat_map(|p| &p.messages) {
            if all || message.way == Way::Natively {
                notify::notify(&message.channel, &message.payload);
                natively += 1;
            }
        }
    });
    rings::count(Counter::Native, natively);
    rings::count(Counter::NativeFallbacks, if all { natively } else { 0 });
}

/// After the commit.
fn publish(publication: Publication) {
    let Publication { ring, messages, reserved, sent, late } = publication;
    let nobody = !listeners::any();
    let (in_ring, gap) = match reserved {
        Some(_) => (&messages[..], late),
        None => (&[][..], late + messages.len()),
    };
    let incoming = in_ring.iter().map(|message| Incoming {
        channel: &message.channel,
        prefix: message.prefix,
        payload: &message.payload,
        wakeup: message.way == Way::Merged,
        sent: sent || nobody || message.way == Way::Natively,
    });
    rings::publish(ring, incoming, gap);
    rings::count(Counter::Published, in_ring.len() + gap);
    rings::count(Counter::Gaps, usize::from(gap > 0));
    rings::count(Counter::Unheard, if nobody { in_ring.len() } else { 0 });
}

#[pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    OUTBOX.with_borrow_mut(|outbox| {
        if outbox.is_empty() {
            return;
        }
        match event {
            pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => outbox.commit_level(xact::level()),
            pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => outbox.abort_level(xact::level()),
            _ => {}
        }
    });
}
