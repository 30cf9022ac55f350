//! Remembering the queue signals that others send by NOTIFY: Oban's own nodes, Oban Web, and programs
//! that call `oban_notify`. The keeper does this while obanrs.signal_ingest is on.
//!
//! The keeper listens to the channel `signal` of each prefix that has a table of remembered signals,
//! and follows a rename. It hears the signals in the order in which nodes hear them, and remembers
//! them in that order. It hears those of the extension's functions as well, which their own
//! transactions have remembered. It writes such a signal once more if it comes after one that is new
//! (`logic::signals::unknown`). So for some milliseconds the table may have the state of an earlier
//! signal. When the keeper has remembered all that it has heard, the last signal of all counts.
//!
//! NOTIFY needs no right, so messages take a bounded part of this process's memory. Beyond that they
//! are lost, and with them all that waits: what is left of a sequence could be wrong. Each step
//! writes a bounded number. A step is one short transaction, which runs no user's code. A table that
//! is locked costs one wait of 50 ms, then it is tried again after a growing delay. If the keeper
//! dies, what it had heard and not written is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;

use pgrx::prelude::*;

use super::election::{TABLE_LOCK_TIMEOUT, earliest};
use super::{keeper, process, trouble};
use crate::config;
use crate::logic::backoff::{ELECTION, MILLISECOND};
use crate::logic::channel;
use crate::logic::lifecycle::Kind;
use crate::logic::retry::Retry;
use crate::logic::signals::{self, MAX_ROWS};
use crate::logic::times::ClockTime;
use crate::pg::notify::{self, Notification};
use crate::pg::{catalog, clock, encoding, session, time, xact};
use crate::prefix::prefixes;
use crate::prefix::signals::{SignalsTable, Unusable};
use crate::shmem::Segment;

/// The most bytes of messages that wait to be remembered.
const BACKLOG: usize = 256 << 10;

/// The most messages that one transaction remembers. That takes some milliseconds.
const MAX_AT_A_TIME: usize = 200;

/// The longest that one transaction may take until its commit, in milliseconds.
const STEP_LIMIT: i32 = 1_000;

/// The least time between two readings of NOTIFY's queue, in microseconds. Every NOTIFY of the
/// database wakes this process, whatever the channel.
const MIN_READ_INTERVAL: i64 = 20 * MILLISECOND;

/// What pg_stat_activity shows of the transactions that write.
const REMEMBERING: &CStr = c"obanrs: remembering signals";

const CHANNEL: &str = "signal";

pub struct SignalIngest {
    segment: Segment,
    /// The prefixes whose channels this process listens to.
    prefixes: BTreeSet<String>,
    /// Whether prefixes may have come or gone since.
    stale: bool,
    /// obanrs.signal_ingest as it was then.
    wanted: bool,
    listening: Retry,
    /// Whether NOTIFY's queue has to be read, even if nothing has come since.
    unread: bool,
    reading: Retry,
    /// The messages that wait to be remembered, by the name of the prefix.
    waiting: BTreeMap<String, Waiting>,
    /// Whether the last pass ran a transaction.
    pub tried: bool,
}

/// The messages of one prefix, in their order.
#[derive(Default)]
struct Waiting {
    messages: Vec<Vec<u8>>,
    retry: Retry,
}

/// What became of some messages.
enum Written {
    /// They are remembered, or can't be: the prefix or its table is gone, or is of another kind.
    Done,
    /// The table was replaced or changed meanwhile.
    Again,
}

impl SignalIngest {
    pub fn new(segment: Segment) -> Self {
        Self {
            segment,
            prefixes: BTreeSet::new(),
            stale: false,
            wanted: false,
            listening: Retry::default(),
            unread: false,
            reading: Retry::default(),
            waiting: BTreeMap::new(),
            tried: false,
        }
    }

    /// Listens, reads and writes what is due. `woken` says whether a session has woken this process:
    /// then a prefix may have come or gone. Returns when the next pass is due; `None`: not before
    /// something comes.
    pub fn pass(&mut self, woken: bool) -> Option<ClockTime> {
        self.tried = false;
        let wanted = config::signal_ingest();
        self.stale |= wanted != self.wanted || wanted && woken;
        if self.stale && self.listening.is_due(clock::now()) {
            self.listen(wanted);
        }
        self.unread |= !self.prefixes.is_empty() && notify::has_come();
        if self.unread && self.reading.is_due(clock::now()) {
            self.read();
        }
        self.write_some();
        let listening = self.stale.then(|| self.listening.not_before());
        let reading = self.unread.then(|| self.reading.not_before());
        let writing = self.waiting.values().map(|waiting| waiting.retry.not_before()).min();
        earliest(earliest(listening, reading), writing)
    }

    /// Returns whether something has come since the last pass.
    pub fn has_news(&self) -> bool {
        !self.unread && !self.prefixes.is_empty() && notify::has_come()
    }

    /// Listens to the channels of the prefixes that have a table now, and to no others.
    fn listen(&mut self, wanted: bool) {
        self.tried = true;
        let before = std::mem::take(&mut self.prefixes);
        let listened = xact::contain(|| {
            xact::run(c"obanrs: listening to signals", || {
                let found = if wanted { prefixes::named_schemas_of_signals() } else { Vec::new() };
                let full = |prefix: &str| channel::full_name(prefix, CHANNEL).ok();
                let now: BTreeSet<String> =
                    found.into_iter().map(|(name, _)| name).filter(|name| full(name).is_some()).collect();
                before.difference(&now).filter_map(|p| full(p)).for_each(|c| notify::unlisten(&c));
                now.difference(&before).filter_map(|p| full(p)).for_each(|c| notify::listen(&c));
                now
            })
        });
        match listened {
            Ok(now) => {
                (self.prefixes, self.stale, self.wanted) = (now, false, wanted);
                self.listening.succeeded(ClockTime::ZERO);
            }
            Err(caught) => {
                self.prefixes = before;
                self.listening.failed(clock::now(), ELECTION);
                if self.listening.failures() == 1 {
                    self.report(&caught.message);
                }
            }
        }
    }

    /// Reads NOTIFY's queue.
    fn read(&mut self) {
        self.tried = true;
        let size = |message: &Vec<u8>| size_of::<Vec<u8>>() + message.len();
        let held: usize = self.waiting.values().flat_map(|w| &w.messages).map(size).sum();
        // Beyond the room, messages are lost. Only a flood takes that much.
        match xact::contain(|| notify::hear(BACKLOG.saturating_sub(held), |_| true)) {
            Ok((heard, missed)) => {
                // Without the messages that were lost, an earlier signal would count as the last one, and
                // would replace what its sender has remembered. So nothing of this is written.
                let heard = if missed == 0 { heard } else { Vec::new() };
                if missed > 0 {
                    self.waiting.clear();
                }
                for Notification { channel, payload } in heard {
                    let channel = encoding::to_utf8_lossy(&channel).into_owned();
                    let Some((prefix, _)) = channel.rsplit_once('.') else { continue };
                    self.waiting.entry(prefix.to_owned()).or_default().messages.push(payload);
                }
                self.unread = false;
                self.reading.succeeded(clock::now() + MIN_READ_INTERVAL);
            }
            Err(caught) => {
                self.reading.failed(clock::now(), ELECTION);
                if self.reading.failures() == 1 {
                    self.report(&caught.message);
                }
            }
        }
    }

    /// Writes some messages of each prefix whose turn it is, in a transaction for each prefix.
    fn write_some(&mut self) {
        // If one wait was in vain, no other attempt of this pass waits: elections come after it.
        let (now, mut failed, mut may_wait) = (clock::now(), None, true);
        for (prefix, waiting) in &mut self.waiting {
            if !waiting.retry.is_due(now) {
                continue;
            }
            self.tried = true;
            let some = waiting.messages.len().min(MAX_AT_A_TIME);
            // Only the first attempt waits for a lock.
            let wait = if waiting.retry.failures() == 0 && may_wait { TABLE_LOCK_TIMEOUT } else { c"1ms" };
            session::set(c"lock_timeout", wait);
            let step = || xact::limit(STEP_LIMIT, || remember_heard(prefix, &waiting.messages[..some]));
            match xact::contain(|| xact::run(REMEMBERING, step)) {
                Ok(Written::Done) => {
                    waiting.messages.drain(..some);
                    waiting.retry.succeeded(ClockTime::ZERO);
                }
                Ok(Written::Again) => drop(waiting.retry.failed(now, ELECTION)),
                Err(caught) => {
                    waiting.retry.failed(now, ELECTION);
                    let locked = caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE;
                    may_wait &= !locked;
                    if !locked && waiting.retry.reports(&caught.message) {
                        failed = Some(caught.message);
                    }
                }
            }
            session::set(c"lock_timeout", TABLE_LOCK_TIMEOUT);
        }
        self.waiting.retain(|_, waiting| !waiting.messages.is_empty());
        if let Some(why) = failed {
            self.report(&why);
        }
    }

    fn report(&self, why: &str) {
        trouble::report(
            self.segment,
            Kind::Keeper,
            why,
            PgSqlErrorCode::ERRCODE_WARNING,
            format!("obanrs can't remember signals in {}: {why}", process::of_database()),
            "It is tried again every few seconds; obanrs.signal_ingest = off keeps it from being tried.",
        );
    }
}

/// Remembers the signals of these messages in a prefix.
fn remember_heard(prefix: &str, messages: &[Vec<u8>]) -> Written {
    // A message for a schema that is gone belongs to no schema.
    let Some(schema) = catalog::namespace_now(prefix).filter(|_| !keeper::database_is_read_only()) else {
        return Written::Done;
    };
    let heard: Vec<_> =
        messages.iter().filter_map(|message| signals::read(&encoding::to_utf8_lossy(message))).collect();
    if heard.is_empty() {
        return Written::Done;
    }
    // The locks of the table's indexes are waited for, up to lock_timeout as well.
    let table = match SignalsTable::open(schema) {
        Ok(table) => table,
        Err(Unusable::Replaced) => return Written::Again,
        Err(Unusable::Missing | Unusable::Odd(_)) => return Written::Done,
    };
    let unknown = signals::unknown(table.rows(), heard);
    if unknown.is_empty() {
        return Written::Done;
    }
    let writes = signals::writes(table.rows(), &unknown, time::now(), MAX_ROWS);
    if table.write(&writes) {
        return Written::Done;
    }
    // What was written has to be rolled back.
    pgrx::error!("another transaction has changed the table")
}
