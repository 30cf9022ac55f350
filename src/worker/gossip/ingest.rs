//! Taking in what Oban's nodes gossip by NOTIFY: it shows in oban_gossip beside what was put here.
//!
//! The relay listens to the gossip channel of each installed prefix, and follows a rename. What comes on a channel is
//! of the schema that has its name at the moment when it is taken in. What has come is read soon, into memory of
//! this process, so that NOTIFY's queue need not keep it; it is taken apart a little at a time, between the relay's
//! transactions, so that nobody's flood keeps it from relaying. Its own broadcasts come back, and are known by how
//! they begin.
//!
//! Nobody needs a right to NOTIFY. So what comes is tested as what is put, is no more than half of the table, and
//! never takes the place of an entry of ours.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::super::process;
use crate::config;
use crate::error;
use crate::logic::backoff::RELAY;
use crate::logic::broadcast;
use crate::logic::channel;
use crate::logic::check;
use crate::logic::gossip::{Key, Source};
use crate::logic::ingest::{self, ForeignCheck};
use crate::logic::jsonb;
use crate::logic::lifecycle::Kind;
use crate::pg::datum::RawJsonb;
use crate::pg::notify::{self, Notification};
use crate::pg::{catalog, clock, encoding, session, xact};
use crate::prefix::peers;
use crate::shmem;
use crate::shmem::gossip::coverage;
use crate::shmem::rings::{self, Counter};

/// What may wait to be taken apart, in bytes; what comes beyond that is counted as refused. A thousand nodes' worth.
const BACKLOG: usize = 4 << 20;

/// How many checks are put at a time, and of how many bytes (or one of more): some milliseconds at the most.
const MAX_CHECKS_AT_A_TIME: usize = 64;
const MAX_BYTES_AT_A_TIME: usize = 32 << 10;

/// How many checks of a message Postgres may refuse, each of which costs a transaction, before the rest is not looked
/// at. Real nodes send none of these.
const MAX_REFUSALS: usize = 8;

/// The largest state that is taken in, as jsonb: thousands of running jobs.
const MAX_FOREIGN: usize = 64 << 10;

/// The least time between two readings of NOTIFY's queue: every NOTIFY of the database wakes us, whatever its
/// channel.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(20);

/// How long a look into the catalogs waits for somebody who has locked them.
const CATALOG_TIMEOUT: &CStr = c"50ms";

const CHANNEL: &str = "gossip";

pub struct Ingest {
    database: u32,
    /// The prefixes whose channels this process listens to.
    prefixes: BTreeSet<String>,
    /// Whether they are to be looked for.
    stale: bool,
    /// obanrs.gossip_ingest as it was when they were.
    wanted: bool,
    listening: Attempts,
    /// NOTIFY's queue has to be read, whether or not something has come since.
    unread: bool,
    reading: Attempts,
    messages: VecDeque<Notification>,
    bytes: usize,
    /// Of the message that was taken apart last, what is still to be put, the last first; its prefix; and how many of
    /// it Postgres has refused.
    checks: Vec<String>,
    prefix: String,
    refusals: usize,
}

/// When something may be tried again.
struct Attempts {
    failures: u32,
    next: Instant,
}

impl Attempts {
    fn new() -> Self {
        Self { failures: 0, next: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    fn succeeded(&mut self, pause: Duration) {
        *self = Self { failures: 0, next: Instant::now() + pause };
    }

    /// True for the first in a row.
    fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.next = Instant::now() + Duration::from_micros(RELAY.delay(self.failures) as u64);
        self.failures == 1
    }
}

impl Ingest {
    pub fn new(database: u32) -> Self {
        coverage::end();
        Self {
            database,
            prefixes: BTreeSet::new(),
            stale: true,
            wanted: false,
            listening: Attempts::new(),
            unread: false,
            reading: Attempts::new(),
            messages: VecDeque::new(),
            bytes: 0,
            checks: Vec::new(),
            prefix: String::new(),
            refusals: 0,
        }
    }

    pub fn prefixes_changed(&mut self) {
        self.stale = true;
    }

    /// Listens, reads, and takes in what is due; when to come back, if ever.
    pub fn pass(&mut self) -> Option<Instant> {
        let wanted = config::gossip_ingest();
        self.stale |= wanted != self.wanted;
        if self.stale && self.listening.is_due() {
            self.listen(wanted);
        }
        self.unread |= !self.prefixes.is_empty() && notify::has_come();
        if self.unread && self.reading.is_due() {
            self.read();
        }
        self.ingest_some();
        if !(self.checks.is_empty() && self.messages.is_empty()) {
            return Some(Instant::now());
        }
        let now = clock::now(); // before it looks whether something has come, and after all that it has put
        if !(self.stale || self.unread || self.has_news()) {
            coverage::extend(now);
        }
        let listening = self.stale.then_some(self.listening.next);
        let reading = self.unread.then_some(self.reading.next);
        listening.into_iter().chain(reading).min()
    }

    /// Whether something has come since the last pass.
    pub fn has_news(&self) -> bool {
        !self.unread && !self.prefixes.is_empty() && notify::has_come()
    }

    /// Listens to the channels of the prefixes that are installed now, and to no others.
    fn listen(&mut self, wanted: bool) {
        let before = std::mem::take(&mut self.prefixes);
        session::set(c"lock_timeout", CATALOG_TIMEOUT);
        let listened = xact::contain(|| {
            xact::run(c"obanrs: listening to gossip", || {
                let installed = if wanted { installed() } else { BTreeSet::new() };
                let full = |prefix: &str| channel::full_name(prefix, CHANNEL).ok();
                before.difference(&installed).filter_map(|p| full(p)).for_each(|c| notify::unlisten(&c));
                installed.difference(&before).filter_map(|p| full(p)).for_each(|c| notify::listen(&c));
                installed
            })
        });
        session::set(c"lock_timeout", c"0"); // what the relay's commits wait for is no user's
        match listened {
            Ok(installed) => {
                match installed.is_empty() {
                    true => coverage::end(),
                    // What was sent to a prefix that has this name since, or had it until now, went unheard.
                    false if installed != before => coverage::restart(),
                    false => {}
                }
                (self.prefixes, self.stale, self.wanted) = (installed, false, wanted);
                self.listening.succeeded(Duration::ZERO);
            }
            Err(caught) => {
                self.prefixes = before;
                let first = self.listening.failed();
                self.failed(first, &caught.message);
            }
        }
    }

    /// Reads NOTIFY's queue.
    fn read(&mut self) {
        let room = BACKLOG.saturating_sub(self.bytes);
        match xact::contain(|| notify::hear(room, |payload| !broadcast::is_own_broadcast(payload))) {
            Ok((heard, missed)) => {
                self.bytes += heard.iter().map(size).sum::<usize>();
                self.messages.extend(heard);
                refused(missed);
                self.unread = false;
                self.reading.succeeded(MIN_READ_INTERVAL);
            }
            Err(caught) => {
                let first = self.reading.failed();
                self.failed(first, &caught.message);
            }
        }
    }

    fn failed(&self, first: bool, why: &str) {
        coverage::restart();
        if first {
            let _ = shmem::registry(|r| r.note_error(Kind::Relay, self.database, why));
            error::log(
                PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("obanrs can't listen to gossip in {}: {why}", process::of_database()),
                "It is tried again every few seconds; obanrs.gossip_ingest = off keeps it from being tried.",
            );
        }
    }

    /// Takes the next message apart, if the one before is done with, and puts some of its checks.
    fn ingest_some(&mut self) {
        if self.checks.is_empty() {
            let Some(message) = self.messages.pop_front() else { return };
            self.bytes -= size(&message);
            // Converting from the server's encoding needs a transaction.
            let texts = || {
                let text = |bytes: &[u8]| encoding::to_utf8(bytes).into_owned();
                (text(&message.channel), text(&message.payload))
            };
            let Ok((channel, payload)) = xact::contain(|| xact::run(INGESTING, texts)) else {
                malformed(1);
                return;
            };
            let Some((prefix, _)) = channel.rsplit_once('.') else { return };
            let parsed = ingest::parse_message(&payload);
            malformed(parsed.malformed);
            refused(parsed.too_many);
            (self.prefix, self.checks, self.refusals) = (prefix.to_owned(), parsed.checks, 0);
            self.checks.reverse();
        }
        let (mut some, mut bytes) = (Vec::new(), 0);
        while some.len() < MAX_CHECKS_AT_A_TIME
            && bytes < MAX_BYTES_AT_A_TIME
            && let Some(check) = self.checks.pop()
        {
            bytes += check.len();
            match ingest::parse_check(&check) {
                Some(heard) => some.push(heard),
                None => malformed(1),
            }
        }
        self.put(&some);
    }

    /// Puts checks in one transaction; if Postgres refuses one of them, each in its own.
    fn put(&mut self, checks: &[ForeignCheck]) {
        let (database, prefix) = (self.database, &*self.prefix);
        let put_all = || {
            // What came for a schema that is gone is nobody's.
            let Some(schema) = catalog::namespace_now(prefix) else { return Vec::new() };
            checks.iter().map(|heard| put_one(database, schema, heard)).collect()
        };
        match xact::contain(|| xact::run(INGESTING, put_all)) {
            Ok(counters) => counters.into_iter().flatten().for_each(|counter| match counter {
                Counter::GossipMalformed => malformed(1),
                Counter::GossipRefused => refused(1),
                counter => rings::count(counter, 1),
            }),
            Err(_) if checks.len() > 1 => {
                for (i, one) in checks.chunks(1).enumerate() {
                    if self.refusals >= MAX_REFUSALS {
                        malformed(checks.len() - i + self.checks.len());
                        self.checks.clear();
                        return;
                    }
                    self.put(one);
                }
            }
            Err(_) => {
                self.refusals += 1;
                malformed(1);
            }
        }
    }
}

/// What could not be taken in may have been a sign of life of any process.
fn malformed(checks: usize) {
    if checks > 0 {
        coverage::restart();
        rings::count(Counter::GossipMalformed, checks);
    }
}

/// The same for want of room.
fn refused(checks: usize) {
    if checks > 0 {
        coverage::restart();
        rings::count(Counter::GossipRefused, checks);
    }
}

const INGESTING: &CStr = c"obanrs: taking in gossip";

fn size(notification: &Notification) -> usize {
    size_of::<Notification>() + notification.channel.len() + notification.payload.len()
}

/// The installed prefixes that can have a channel.
fn installed() -> BTreeSet<String> {
    let found = peers::installed_prefixes().into_iter();
    found.filter(|p| channel::full_name(p, CHANNEL).is_ok()).collect()
}

/// What it is counted as, if at all. May raise.
fn put_one(database: u32, schema: u32, heard: &ForeignCheck) -> Option<Counter> {
    let ForeignCheck { name, node, queue, state } = heard;
    // A name that this database can't show would break the view for all.
    [name, node, queue].into_iter().for_each(|name| drop(encoding::to_server(name)));
    let Some(state) = RawJsonb::parse(state) else { return Some(Counter::GossipMalformed) };
    let Ok(started_at) = check::validate_foreign(jsonb::read(state.bytes())) else {
        return Some(Counter::GossipMalformed);
    };
    if state.bytes().len() > MAX_FOREIGN {
        return Some(Counter::GossipRefused);
    }
    let key = Key { database, schema, name, node, queue };
    let ttl = config::gossip_ttl().as_micros() as i64;
    match shmem::gossip::put(&key, state.bytes(), started_at, ttl, Source::Foreign) {
        Ok(Ok(put)) => (!put.ignored).then_some(Counter::GossipIngested),
        _ => Some(Counter::GossipRefused),
    }
}
