//! A relay: the worker of one database that sends what is in its ring to those who LISTEN, by native NOTIFY.
//! Between its transactions it broadcasts gossip and takes in that of others (`gossip`).
//!
//! Its transactions write nothing but their notifications (a commit record that nobody waits for), and touch
//! no table, so that no lock of a user's can hold it up. What comes in while one of them runs goes into the
//! next; after one it lets `obanrs.relay_interval` pass, so that under load many messages share a
//! transaction and the one lock that NOTIFY takes for the whole server. A message after a quiet time goes
//! at once. A message goes to the channel of the name that its schema has then.
//!
//! NOTIFY's queue may be full, as some session LISTENs and does not end its transaction. Then messages wait, and as much
//! is sent as the queue has room for.
//!
//! If it dies, what it has not sent stays in the ring, and is not overwritten; the next one sends it. What was
//! sent in its last transaction may then come twice. It goes as the keeper does, and sends what there is
//! before.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::gossip::Gossip;
use super::process;
use crate::bus::names::Names;
use crate::config;
use crate::error;
use crate::logic::backoff::RELAY;
use crate::logic::lifecycle::Kind;
use crate::logic::relay::plan;
use crate::logic::ring::Batch;
use crate::pg::xact::Caught;
use crate::pg::{bgworker, latch, notify, session, xact};
use crate::shmem;
use crate::shmem::listeners;
use crate::shmem::rings::{self, Counter, RingHandle};

/// What is taken out of the ring at a time, while its lock is held.
const MESSAGES: usize = 1024;
const BYTES: usize = 256 * 1024;

/// How long it goes on sending when it has to leave: somebody waits for that.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_relay_main(argument: pg_sys::Datum) {
    let Some(database) = process::begin(Kind::Relay, argument) else { return };
    // What is lost in a crash has no listener any more.
    session::set(c"synchronous_commit", c"off");
    bgworker::report_name(c"obanrs relay");
    session::before_exit(detach_at_exit);
    if !rings::relay::attach() {
        return;
    }
    let _ = shmem::registry(|r| r.relay_connected(Kind::Relay, database, latch::my_pid()));

    let batch = Batch::new(MESSAGES, BYTES);
    let mut relay =
        Relay { database, ring: None, batch, sent_up_to: 0, pending: VecDeque::new(), failures: 0 };
    let mut gossip = Gossip::new(database);
    // Others wake us, too: by a NOTIFY of theirs, for instance.
    let mut not_before = Instant::now();
    loop {
        pgrx::check_for_interrupts!();
        latch::reset();
        bgworker::reload_config();
        let Ok(orders) = shmem::registry(|r| r.orders(Kind::Relay, database)) else { return };
        if orders.leave {
            let until = Instant::now() + LEAVE_WITHIN;
            while Instant::now() < until && relay.pass() == Pass::Sent {
                pgrx::check_for_interrupts!();
            }
            return;
        }
        if orders.prefixes {
            gossip.prefixes_changed();
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
        let due = gossip.pass(relay.failures > 0);
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        if !nothing {
            latch::wait(Some(until(due.map_or(not_before, |due| due.min(not_before)))));
        } else if relay.may_wait() // what the broadcast put into the ring goes at once
            && !gossip.has_news()
            && shmem::registry(|r| r.wakeups(Kind::Relay, database) == orders.wakeups).unwrap_or(false)
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
    /// The ring has nothing to send.
    Nothing,
    /// Something was sent; there may be more by now.
    Sent,
    /// To be tried again after this long.
    Failed(Duration),
    /// The database has another ring by now, or none.
    Gone,
}

struct Relay {
    database: u32,
    /// `None` until this database has one.
    ring: Option<RingHandle>,
    batch: Batch,
    /// How far the batch reaches.
    sent_up_to: u64,
    /// The transactions of the batch that have not been committed.
    pending: VecDeque<Vec<usize>>,
    failures: u32,
}

impl Relay {
    /// The ring of this database, once it has one. The process that takes it wakes this one.
    fn ring(&mut self) -> Option<RingHandle> {
        self.ring = self.ring.or_else(rings::relay::ring);
        self.ring
    }

    /// Whether there is nothing to send; then the next message sets this process's latch.
    fn may_wait(&mut self) -> bool {
        self.ring().is_none_or(rings::relay::start_waiting)
    }

    /// Sends one batch, in as many transactions as it takes, or what is left of the last one.
    fn pass(&mut self) -> Pass {
        let Some(ring) = self.ring() else { return Pass::Nothing };
        if self.pending.is_empty() {
            self.batch.clear();
            let Some((sent_up_to, _)) = rings::relay::unsent(ring, &mut self.batch) else {
                return Pass::Gone;
            };
            self.sent_up_to = sent_up_to;
            if self.batch.len() > 0 && listeners::any() {
                let plan = plan(self.batch.messages());
                self.pending = plan.transactions.into();
                rings::count(Counter::Merged, plan.merged);
            } else {
                rings::count(Counter::Unheard, self.batch.len());
                rings::relay::sent(ring, sent_up_to); // by their own transactions, or to nobody
                return Pass::Nothing;
            }
        }
        match self.send() {
            Ok(()) => {
                rings::relay::sent(ring, self.sent_up_to);
                self.failures = 0;
                Pass::Sent
            }
            // NOTIFY's queue is full, or the disk is: nothing that is up to a message.
            Err(Caught { message: why, code }) => {
                if code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED {
                    notify::rouse_listeners();
                }
                if self.failures == 0 {
                    let _ = shmem::registry(|r| r.note_error(Kind::Relay, self.database, &why));
                    error::log(
                        PgLogLevel::WARNING,
                        PgSqlErrorCode::ERRCODE_WARNING,
                        format!("obanrs can't relay notifications in {}: {why}", process::of_database()),
                        "They wait in shared memory, and are tried again every few seconds at the latest.",
                    );
                }
                self.failures = self.failures.saturating_add(1);
                Pass::Failed(Duration::from_micros(RELAY.delay(self.failures) as u64))
            }
        }
    }

    fn send(&mut self) -> Result<(), Caught> {
        let messages: Vec<_> = self.batch.messages().collect();
        while let Some(mut transaction) = self.pending.pop_front() {
            let sent = xact::contain(|| {
                xact::run(c"obanrs: relaying", || {
                    if self.failures > 0 {
                        notify::is_queue_full(); // for its tail's sake
                    }
                    let mut names = Names::committed();
                    let all = transaction.iter().map(|number| &messages[*number]);
                    all.filter(|m| names.notify(m.schema, m.channel, m.payload)).count()
                })
            });
            match sent {
                Ok(sent) => {
                    rings::count(Counter::Relayed, sent);
                    rings::count(Counter::Dropped, transaction.len() - sent);
                    rings::count(Counter::RelayTransactions, 1);
                    self.failures = self.failures.min(1);
                }
                // NOTIFY's queue may have room for a part of it.
                Err(Caught { code: PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, .. })
                    if transaction.len() > 1 =>
                {
                    let later = transaction.split_off(transaction.len() / 2);
                    self.pending.push_front(later);
                    self.pending.push_front(transaction);
                }
                // What Postgres refuses was to be refused at the call. Should one have come through, it must not
                // keep the others from being sent.
                Err(Caught { code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message }) => {
                    if transaction.len() > 1 {
                        transaction.into_iter().rev().for_each(|one| self.pending.push_front(vec![one]));
                        continue;
                    }
                    rings::count(Counter::Dropped, 1);
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
