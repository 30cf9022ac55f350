//! Remembering the queue signals that others send by NOTIFY: Oban's own nodes, Oban Web, and programs
//! that call `oban_notify`. The keeper does this while obanrs.signal_ingest is on.
//!
//! The keeper listens to the channel `signal` of each prefix that has a table of remembered signals,
//! and follows a rename. It hears the signals in the order in which nodes hear them, and remembers
//! them in that order: in one transaction all that was heard, without what a later signal has
//! replaced. NOTIFY delivers transactions as a whole. So the table never has the state of a part of
//! one.
//!
//! The keeper hears the signals of the extension's functions as well, which their own transactions
//! have remembered. It writes such a signal once more if it comes after one that is new
//! (`logic::signals::unknown`). A function may have remembered a signal that the keeper has not heard
//! yet, and that comes after those that the keeper would write. The keeper finds that out under the
//! table's lock, by the time of the newest row. Then it hears first what has come, and writes later.
//!
//! NOTIFY needs no right, so messages take a bounded part of this process's memory, and each prefix
//! has its own part (`logic::signals::room_of_each`). Beyond that the messages of the prefix are lost,
//! and with them all of the prefix that waits: what is left of a sequence could be wrong. What a
//! prefix costs in one pass is bounded, too: messages are read some at a time, and tables are written
//! as long as the pass is short. A step is one short transaction, which runs no user's code. A table
//! that is locked costs one wait of 50 ms, then it is tried again after a growing delay. If the keeper
//! dies, what it had heard and not written is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::CStr;

use pgrx::prelude::*;

use super::election::{TABLE_LOCK_TIMEOUT, earliest};
use super::{keeper, process, trouble};
use crate::backend::available_jobs;
use crate::config;
use crate::logic::backoff::{ELECTION, MILLISECOND, TOO_LONG};
use crate::logic::channel;
use crate::logic::lifecycle::Kind;
use crate::logic::retry::Retry;
use crate::logic::room::Room;
use crate::logic::signals::{self, Change, Key, MAX_ROWS};
use crate::logic::times::{ClockTime, WallTime};
use crate::pg::notify::{self, Notification};
use crate::pg::{catalog, clock, encoding, session, time, xact};
use crate::prefix::prefixes;
use crate::prefix::signals::{SignalsTable, Unusable};
use crate::shmem::Segment;

/// How many messages are read in one pass. That takes some milliseconds.
const MAX_AT_A_TIME: usize = 200;

/// How long one pass goes on to the next table, in microseconds.
const WRITE_FOR: i64 = 20 * MILLISECOND;

/// The longest that one transaction may take until its commit, in milliseconds.
const STEP_LIMIT: i32 = 1_000;

/// The least time between two readings of NOTIFY's queue, in microseconds. Every NOTIFY of the
/// database wakes this process, whatever the channel.
const MIN_READ_INTERVAL: i64 = 20 * MILLISECOND;

/// What pg_stat_activity shows of the transactions that read messages, and of those that write.
const READING: &CStr = c"obanrs: reading signals";
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
    /// What waits to be remembered, by the name of the prefix.
    waiting: BTreeMap<String, Waiting>,
    /// The prefix that was written last.
    last: String,
    /// The time of the newest row that each prefix's table had when this process last looked. All that
    /// functions have remembered until then was heard, unless `unread` says that the queue has to be
    /// read.
    newest: HashMap<String, Option<WallTime>>,
    /// Whether the last pass ran a transaction.
    pub tried: bool,
}

/// What waits to be remembered in one prefix.
#[derive(Default)]
struct Waiting {
    /// The channel's name, in the server's encoding.
    channel: Vec<u8>,
    /// The messages that are not read yet, in their order.
    messages: VecDeque<Vec<u8>>,
    /// What was read, in its order, without what a later signal has replaced.
    changes: Vec<(Key, Change)>,
    retry: Retry,
}

impl Waiting {
    /// Returns how many bytes of memory it takes.
    fn size(&self) -> usize {
        let messages: usize = self.messages.iter().map(|message| size_of::<Vec<u8>>() + message.len()).sum();
        messages + self.changes.iter().map(|(key, _)| size_of::<Change>() + key.size()).sum::<usize>()
    }

    /// Reads the first messages, at most `most` of them.
    fn read(&mut self, most: usize) {
        let some = self.messages.drain(..most.min(self.messages.len()));
        self.changes.extend(some.filter_map(|message| signals::read(&encoding::to_utf8_lossy(&message))));
        self.changes = signals::last_of_each(std::mem::take(&mut self.changes));
    }

    /// Forgets what waits.
    fn lose(&mut self) {
        self.messages.clear();
        self.changes.clear();
    }

    /// Returns whether all messages are read, so that the changes are those of whole transactions.
    fn is_read(&self) -> bool {
        self.messages.is_empty()
    }
}

/// What became of what waits for a prefix.
enum Written {
    /// It is remembered. The time of the newest row is this one now.
    Done(Option<WallTime>),
    /// It can't be remembered: the prefix or its table is gone, or is of another kind.
    Never,
    /// Functions have remembered signals that may not be heard yet. The newest row is of this time.
    Unheard(Option<WallTime>),
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
            last: String::new(),
            newest: HashMap::new(),
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
            self.hear();
        }
        self.read_some();
        // What has come is heard first. See `remember_heard`.
        if !self.unread {
            self.write_some();
        }
        let listening = self.stale.then(|| self.listening.not_before());
        let reading = self.unread.then(|| self.reading.not_before());
        let next = |waiting: &Waiting| match waiting.is_read() {
            false => Some(ClockTime::ZERO),
            true if self.unread || waiting.changes.is_empty() => None,
            true => Some(waiting.retry.not_before()),
        };
        let writing = self.waiting.values().filter_map(next).min();
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
                self.newest.retain(|prefix, _| now.contains(prefix));
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
    fn hear(&mut self) {
        self.tried = true;
        let each = signals::room_of_each(self.prefixes.len());
        let left = |waiting: &Waiting| (waiting.channel.clone(), each.saturating_sub(waiting.size()));
        let room = Room::Apart { each, left: self.waiting.values().map(left).collect() };
        match xact::contain(|| notify::hear(room, |_| true)) {
            Ok((heard, missed)) => {
                for Notification { channel, payload } in heard {
                    let Some(waiting) = self.waiting_of(&channel) else { continue };
                    waiting.channel = channel;
                    waiting.messages.push_back(payload);
                }
                // Only a flood takes that much. Without the messages that were lost, an earlier signal
                // would count as the last one, and would replace what its sender has remembered. So
                // nothing of the prefix is written.
                for channel in missed.keys() {
                    self.waiting_of(channel).into_iter().for_each(Waiting::lose);
                }
                self.unread = false;
                self.reading.succeeded(clock::now() + MIN_READ_INTERVAL);
            }
            Err(caught) => {
                self.waiting.values_mut().for_each(Waiting::lose); // some messages are lost
                self.reading.failed(clock::now(), ELECTION);
                if self.reading.failures() == 1 {
                    self.report(&caught.message);
                }
            }
        }
    }

    /// Returns what waits for the prefix of a channel. `None`: the channel is of no prefix.
    fn waiting_of(&mut self, channel: &[u8]) -> Option<&mut Waiting> {
        let channel = encoding::to_utf8_lossy(channel);
        let (prefix, _) = channel.rsplit_once('.')?;
        Some(self.waiting.entry(prefix.to_owned()).or_default())
    }

    /// Reads some messages of each prefix.
    fn read_some(&mut self) {
        let mut unread: Vec<_> = self.waiting.values_mut().filter(|waiting| !waiting.is_read()).collect();
        if !unread.is_empty() {
            self.tried = true;
            let share = (MAX_AT_A_TIME / unread.len()).max(1);
            // Converting from the server's encoding needs a transaction.
            let read = || unread.iter_mut().for_each(|waiting| waiting.read(share));
            let each = signals::room_of_each(self.prefixes.len());
            if xact::contain(|| xact::run(READING, read)).is_err() {
                unread.iter_mut().for_each(|waiting| waiting.lose());
            }
            // What was read may take more room than its message.
            unread.iter_mut().filter(|waiting| waiting.size() > each).for_each(|waiting| waiting.lose());
        }
        self.tidy();
    }

    /// Drops what has nothing to wait for.
    fn tidy(&mut self) {
        let now = clock::now();
        self.waiting.retain(|_, waiting| {
            !waiting.is_read() || !waiting.changes.is_empty() || !waiting.retry.is_due(now)
        });
    }

    /// Writes what waits for each prefix whose turn it is, in a transaction for each prefix.
    fn write_some(&mut self) {
        // If one wait was in vain, no other attempt of this pass waits: elections come after it.
        let (began, mut failed, mut may_wait) = (clock::now(), None, true);
        // The prefixes behind the one that was written last come first.
        let due = |(_, waiting): &(&String, &Waiting)| {
            waiting.is_read() && !waiting.changes.is_empty() && waiting.retry.is_due(began)
        };
        let mut due: Vec<String> =
            self.waiting.iter().filter(due).map(|(prefix, _)| prefix.clone()).collect();
        due.sort_by_key(|prefix| *prefix <= self.last);
        for prefix in due {
            let Some(waiting) = self.waiting.get_mut(&prefix) else { continue };
            self.tried = true;
            // Only the first attempt waits for a lock.
            let wait = if waiting.retry.failures() == 0 && may_wait { TABLE_LOCK_TIMEOUT } else { c"1ms" };
            session::set(c"lock_timeout", wait);
            let newest = self.newest.get(&prefix).copied();
            let step = || xact::limit(STEP_LIMIT, || remember_heard(&prefix, &waiting.changes, newest));
            match xact::contain(|| xact::run(REMEMBERING, step)) {
                Ok(Written::Done(newest)) => {
                    waiting.changes.clear();
                    self.newest.insert(prefix.clone(), newest);
                }
                Ok(Written::Never) => waiting.changes.clear(),
                Ok(Written::Unheard(newest)) => {
                    self.newest.insert(prefix.clone(), newest);
                    self.unread = true;
                }
                Ok(Written::Again) => drop(waiting.retry.failed(clock::now(), ELECTION)),
                Err(caught) => {
                    let too_long = caught.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED;
                    waiting.retry.failed(clock::now(), if too_long { TOO_LONG } else { ELECTION });
                    let locked = caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE;
                    may_wait &= !locked;
                    if !locked && waiting.retry.reports(&caught.message) {
                        failed = Some(caught.message);
                    }
                }
            }
            session::set(c"lock_timeout", TABLE_LOCK_TIMEOUT);
            self.last = prefix;
            if clock::now() - began > WRITE_FOR {
                break;
            }
        }
        self.tidy();
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

/// Remembers these changes in a prefix, in their order. `newest` is the time of the newest row of all
/// that is heard. `None`: it is not known.
fn remember_heard(prefix: &str, changes: &[(Key, Change)], newest: Option<Option<WallTime>>) -> Written {
    // A message for a schema that is gone belongs to no schema.
    let Some(schema) = catalog::namespace_now(prefix).filter(|_| !keeper::database_is_read_only()) else {
        return Written::Never;
    };
    // The locks of the table's indexes are waited for, up to lock_timeout as well.
    let table = match SignalsTable::open(schema) {
        Ok(table) => table,
        Err(Unusable::Replaced) => return Written::Again,
        Err(Unusable::Missing | Unusable::Odd(_)) => return Written::Never,
    };
    let now_newest = signals::newest(table.rows());
    let unknown = signals::unknown(table.rows(), changes.to_vec());
    if unknown.is_empty() {
        return Written::Done(now_newest);
    }
    // Functions remember signals under the lock that this transaction holds, and send them when they
    // release it. So what they have remembered can be heard by now, and later rows come from nobody.
    if newest != Some(now_newest) {
        return Written::Unheard(now_newest);
    }
    let writes = signals::writes(table.rows(), &unknown, time::now(), MAX_ROWS);
    let (written, deletes) = (signals::newest(&writes.put), !writes.delete.is_empty());
    if table.write(&writes) {
        available_jobs::note_changes(schema, unknown.iter().map(|(key, change)| (key, change)));
        if deletes {
            available_jobs::note_deletion(schema);
        }
        return Written::Done(written);
    }
    // What was written has to be rolled back.
    pgrx::error!("another transaction has changed the table")
}
