//! A relay: the worker of one database that sends the messages in its ring by native NOTIFY, for
//! the sessions that LISTEN. Between its transactions the relay broadcasts gossip and ingests that
//! of foreign nodes (`exchange`).
//!
//! The relay's transactions write nothing but their notifications. Each writes one commit record,
//! without waiting for the disk. These transactions read `pg_namespace`, for the names of schemas,
//! and touch no other table. So no lock on a user's table holds the relay up. A command that locks
//! `pg_namespace` against reading does, without a limit: VACUUM FULL on that catalog, for example.
//! (The search for prefixes reads other catalogs, and waits 50 ms for a lock.)
//!
//! What is published while the relay sends one batch goes into the next. After a batch the relay
//! lets `obanrs.relay_interval` pass. A batch is one transaction, unless it has equal messages that
//! must not be merged: then it is several, without a pause. So under load many messages share a
//! transaction, and the one lock that NOTIFY takes for the whole server. A message after a quiet
//! time goes at once. A message goes to the channel of the name that its schema has when the
//! message is sent.
//!
//! NOTIFY's queue may be full, because a session LISTENs and does not end its transaction. Then
//! messages wait in the ring, which is the bus's backpressure, and the relay sends as many as the
//! queue has room for.
//!
//! If the relay dies, the messages that it has not sent stay in the ring and are not overwritten.
//! The next relay sends them. The relay notes in the ring what it has sent once for each batch,
//! after the last transaction of the batch. So all messages of the dead relay's last batch may come
//! twice: delivery is at least once. A relay that has to leave first sends what is in the ring, for
//! `LEAVE_WITHIN` at most. A command that needs the database alone terminates the relay earlier.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::exchange::Exchange;
use super::process::{self, Begun};
use super::trouble;
use crate::backend::listening;
use crate::bus::names::Names;
use crate::config;
use crate::error;
use crate::logic::backoff::RELAY;
use crate::logic::counter::Counter;
use crate::logic::lifecycle::Kind;
use crate::logic::relay::plan;
use crate::logic::retry::Retry;
use crate::logic::ring::Batch;
use crate::logic::times::ClockTime;
use crate::pg::xact::Caught;
use crate::pg::{bgworker, clock, latch, notify, session, xact};
use crate::shmem::rings::{self, RingHandle};
use crate::shmem::{Segment, stats};

/// The most messages, and bytes, that are copied out of the ring at a time, while the ring's lock
/// is held.
const MESSAGES: usize = 1024;
const BYTES: usize = 256 * 1024;

/// How long the relay goes on sending when it has to leave: the extension was dropped, or the
/// database takes no workers any more. A command that needs the database alone waits for a shorter
/// time only: after `MAX_WAIT` (`ddl`) the command terminates the relay, and the next relay sends
/// what is left.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_relay_main(argument: pg_sys::Datum) {
    let Some(Begun { segment, database }) = process::begin(Kind::Relay, argument) else { return };
    // A crash ends every listening session. So the notifications of a commit that the crash loses
    // have no listener any more.
    session::set(c"synchronous_commit", c"off");
    bgworker::report_name(c"obanrs relay");
    session::before_exit(detach_at_exit);
    if !rings::relay::attach(segment) {
        return;
    }
    segment.registry(|r| r.relay_connected(database, latch::my_pid()));

    let batch = Batch::new(MESSAGES, BYTES);
    let mut relay = Relay {
        segment,
        ring: None,
        batch,
        sent_up_to: 0,
        pending: VecDeque::new(),
        retry: Retry::default(),
    };
    let mut exchange = Exchange::new(segment, database);
    // Other processes set this latch, too: by a NOTIFY, for instance.
    let mut not_before = Instant::now();
    loop {
        pgrx::check_for_interrupts!();
        latch::reset();
        bgworker::reload_config();
        let orders = segment.registry(|r| r.take_orders(Kind::Relay, database));
        if orders.leave {
            let until = Instant::now() + LEAVE_WITHIN;
            while Instant::now() < until && relay.pass() == Pass::Sent {
                pgrx::check_for_interrupts!();
            }
            return;
        }
        if orders.prefixes {
            exchange.prefixes_changed();
        }
        let mut nothing = false;
        if Instant::now() >= not_before {
            match relay.pass() {
                Pass::Gone => return,
                Pass::Sent => not_before = Instant::now() + config::relay_interval(),
                Pass::Failed(delay) => not_before = Instant::now() + delay,
                Pass::Nothing => nothing = true,
            }
        }
        let due = exchange.pass(relay.retry.failures() > 0);
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        if !nothing {
            latch::wait(Some(until(due.map_or(not_before, |due| due.min(not_before)))));
        } else if relay.may_wait() // false if the broadcast has put something into the ring, to go at once
            && !exchange.has_news()
            && segment.registry(|r| r.wakeups(Kind::Relay, database) == orders.wakeups)
        {
            latch::wait(due.map(until));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn detach_at_exit(_code: i32, _argument: pg_sys::Datum) {
    rings::relay::detach();
}

#[derive(Debug, PartialEq, Eq)]
enum Pass {
    /// The ring has nothing to send, or had only messages that no session listens to.
    Nothing,
    /// A batch was sent. There may be more by now.
    Sent,
    /// The attempt failed, and the next is due after this long.
    Failed(Duration),
    /// The database has another ring by now, or no ring.
    Gone,
}

struct Relay {
    segment: Segment,
    /// The database's ring; `None` until the database has one.
    ring: Option<RingHandle>,
    /// The messages that are being sent.
    batch: Batch,
    /// How far the batch reaches, as an ordinal of the ring.
    sent_up_to: u64,
    /// The transactions of the batch that are not committed, each as numbers of messages.
    pending: VecDeque<Vec<usize>>,
    retry: Retry,
}

impl Relay {
    /// The ring of this database; `None` until it has one. The process that takes a ring wakes this
    /// process.
    fn ring(&mut self) -> Option<RingHandle> {
        self.ring = self.ring.or_else(rings::relay::ring);
        self.ring
    }

    /// Has the next message set this process's latch. False: there is a message to send already.
    fn may_wait(&mut self) -> bool {
        self.ring().is_none_or(rings::relay::start_waiting)
    }

    /// Sends one batch in as many transactions as the batch takes, or sends what is left of the
    /// last batch.
    fn pass(&mut self) -> Pass {
        let Some(ring) = self.ring() else { return Pass::Nothing };
        if self.pending.is_empty() {
            self.batch.clear();
            let Some((sent_up_to, _)) = rings::relay::unsent(ring, &mut self.batch) else {
                return Pass::Gone;
            };
            self.sent_up_to = sent_up_to;
            if self.batch.len() > 0 && listening::any() {
                let plan = plan(self.batch.messages());
                self.pending = plan.transactions.into();
                stats::count(Counter::Merged, plan.merged);
            } else {
                stats::count(Counter::Unheard, self.batch.len());
                // Their own transactions have sent these messages, or no session listens.
                rings::relay::sent(ring, sent_up_to);
                return Pass::Nothing;
            }
        }
        match self.send() {
            Ok(()) => {
                rings::relay::sent(ring, self.sent_up_to);
                self.retry.succeeded(ClockTime::ZERO);
                Pass::Sent
            }
            // NOTIFY's queue or the disk is full. No message is the reason.
            Err(Caught { message: why, code }) => {
                if code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED {
                    notify::rouse_listeners();
                }
                if self.retry.failures() == 0 {
                    trouble::report(
                        self.segment,
                        Kind::Relay,
                        &why,
                        PgSqlErrorCode::ERRCODE_WARNING,
                        format!("obanrs can't relay notifications in {}: {why}", process::of_database()),
                        "They wait in shared memory, and are tried again every few seconds at the latest.",
                    );
                }
                let now = clock::now();
                Pass::Failed(Duration::from_micros((self.retry.failed(now, RELAY) - now) as u64))
            }
        }
    }

    /// Runs the pending transactions. `Err`: one failed, and stays pending.
    fn send(&mut self) -> Result<(), Caught> {
        let messages: Vec<_> = self.batch.messages().collect();
        while let Some(mut transaction) = self.pending.pop_front() {
            let sent = xact::contain(|| {
                xact::run(c"obanrs: relaying", || {
                    if self.retry.failures() > 0 {
                        notify::is_queue_full(); // moves the tail of the queue
                    }
                    let mut names = Names::committed();
                    let all = transaction.iter().map(|number| &messages[*number]);
                    all.filter(|m| names.notify(m.schema, m.channel, m.payload)).count()
                })
            });
            match sent {
                Ok(sent) => {
                    stats::count(Counter::Relayed, sent);
                    stats::count(Counter::Dropped, transaction.len() - sent);
                    stats::count(Counter::RelayTransactions, 1);
                    self.retry.progressed();
                }
                // NOTIFY's queue may have room for a part of it.
                Err(Caught { code: PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, .. })
                    if transaction.len() > 1 =>
                {
                    let later = transaction.split_off(transaction.len() / 2);
                    self.pending.push_front(later);
                    self.pending.push_front(transaction);
                }
                // The call should have refused what Postgres refuses. If one message got through,
                // it must not keep the others from being sent.
                Err(Caught { code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message }) => {
                    if transaction.len() > 1 {
                        transaction.into_iter().rev().for_each(|one| self.pending.push_front(vec![one]));
                        continue;
                    }
                    stats::count(Counter::Dropped, 1);
                    error::log(
                        PgLogLevel::WARNING,
                        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                        format!(
                            "obanrs drops a notification in {} that Postgres refuses: {message}",
                            process::of_database()
                        ),
                        "Please report this.",
                    );
                }
                Err(other) => {
                    self.pending.push_front(transaction);
                    return Err(other);
                }
            }
        }
        Ok(())
    }
}
