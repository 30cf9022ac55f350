//! Taking in what Oban's nodes gossip by NOTIFY: it shows in oban_gossip beside what was put here.
//!
//! The relay listens to the gossip channel of each installed prefix. What has come is read soon, into memory of
//! this process, so that NOTIFY's queue need not keep it; it is taken apart a little at a time, between the relay's
//! transactions, so that nobody's flood keeps it from relaying. Its own broadcasts come back, and are known by how
//! they begin.
//!
//! Nobody needs a right to NOTIFY. So what comes is tested as what is put, is no more than half of the table, and
//! never takes the place of an entry of ours.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CStr;

use pgrx::prelude::*;

use crate::config;
use crate::error;
use crate::logic::backoff::RELAY;
use crate::logic::broadcast;
use crate::logic::channel;
use crate::logic::check;
use crate::logic::gossip::{Key, Origin};
use crate::logic::intake::{self, Heard};
use crate::logic::jsonb;
use crate::logic::lifecycle::Kind;
use crate::pg::datum::RawJsonb;
use crate::pg::notify::{self, Notification};
use crate::pg::{encoding, session, spi, time, xact};
use crate::shmem;
use crate::shmem::rings::{self, Counter};

/// What may wait to be taken apart, in bytes; what comes beyond that is counted as refused. A thousand nodes' worth.
const BACKLOG: usize = 4 << 20;

/// Checks that are put at a time. (Should Postgres refuse one, each gets a transaction of its own.)
const AT_A_TIME: usize = 64;

/// The least time between two readings of NOTIFY's queue, in microseconds: every NOTIFY of the database wakes us,
/// whatever its channel.
const BETWEEN_READINGS: i64 = 20_000;

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
    /// Of looking for prefixes, or of reading.
    failures: u32,
    retry_at: i64,
    /// NOTIFY's queue has to be read, whether or not something has come since.
    unread: bool,
    next_reading: i64,
    messages: VecDeque<Notification>,
    bytes: usize,
    /// Of the message that was taken apart last, what is still to be put; and its prefix.
    checks: Vec<Heard>,
    prefix: String,
}

impl Ingest {
    pub fn new(database: u32) -> Self {
        Self {
            database,
            prefixes: BTreeSet::new(),
            stale: true,
            wanted: false,
            failures: 0,
            retry_at: 0,
            unread: false,
            next_reading: 0,
            messages: VecDeque::new(),
            bytes: 0,
            checks: Vec::new(),
            prefix: String::new(),
        }
    }

    pub fn prefixes_changed(&mut self) {
        self.stale = true;
    }

    /// Listens, reads, and takes in what is due; when to come back, if ever.
    pub fn pass(&mut self) -> Option<i64> {
        let now = time::now();
        let wanted = config::gossip_ingest();
        self.stale |= wanted != self.wanted;
        if self.stale && self.retry_at <= now {
            self.listen(wanted);
        }
        let mut due = self.stale.then_some(self.retry_at);
        self.unread |= !self.prefixes.is_empty() && notify::has_come();
        if self.unread {
            let at = self.next_reading.max(self.retry_at);
            if at <= now || at > now + RELAY.most {
                self.read(now);
            } else {
                due = due.into_iter().chain([at]).min();
            }
        }
        self.take_in();
        let left = !(self.checks.is_empty() && self.messages.is_empty());
        if left { Some(now) } else { due }
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
                (self.prefixes, self.stale, self.wanted, self.failures) = (installed, false, wanted, 0);
            }
            Err(caught) => {
                self.prefixes = before;
                self.failed(&caught.message);
            }
        }
    }

    /// Reads NOTIFY's queue.
    fn read(&mut self, now: i64) {
        let room = BACKLOG.saturating_sub(self.bytes);
        self.next_reading = now + BETWEEN_READINGS;
        match xact::contain(|| notify::hear(room, |payload| !broadcast::is_ours(payload))) {
            Ok((heard, missed)) => {
                self.bytes += heard.iter().map(size).sum::<usize>();
                self.messages.extend(heard);
                rings::count(Counter::GossipRefused, missed);
                self.unread = false;
            }
            // By an ERROR before it has read, Postgres has forgotten that something has come; we have not.
            Err(caught) => self.failed(&caught.message),
        }
    }

    fn failed(&mut self, why: &str) {
        if self.failures == 0 {
            let _ = shmem::registry(|r| r.note_error(Kind::Relay, self.database, why));
            error::log(
                PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("obanrs can't listen to gossip: {why}"),
                "It is tried again every few seconds; obanrs.gossip_ingest = off keeps it from being tried.",
            );
        }
        self.failures = self.failures.saturating_add(1);
        self.retry_at = time::now() + RELAY.delay(self.failures);
    }

    /// Takes the next message apart, if the one before is done with, and puts some of its checks.
    fn take_in(&mut self) {
        if self.checks.is_empty() {
            let Some(message) = self.messages.pop_front() else { return };
            self.bytes -= size(&message);
            // Converting from the server's encoding needs a transaction.
            let texts = || {
                let text = |bytes: &[u8]| encoding::to_utf8(bytes).into_owned();
                (text(&message.channel), text(&message.payload))
            };
            let Ok((channel, payload)) = xact::contain(|| xact::run(TAKING_IN, texts)) else {
                rings::count(Counter::GossipMalformed, 1);
                return;
            };
            let Some((prefix, _)) = channel.rsplit_once('.') else { return };
            let intake = intake::take_apart(&payload);
            rings::count(Counter::GossipMalformed, intake.malformed);
            rings::count(Counter::GossipRefused, intake.too_many);
            (self.prefix, self.checks) = (prefix.to_owned(), intake.checks);
            self.checks.reverse(); // they are taken from the end
        }
        let some = self.checks.split_off(self.checks.len().saturating_sub(AT_A_TIME));
        put(self.database, &self.prefix, &some.into_iter().rev().collect::<Vec<_>>());
    }
}

const TAKING_IN: &CStr = c"obanrs: taking in gossip";

fn size(notification: &Notification) -> usize {
    size_of::<Notification>() + notification.channel.len() + notification.payload.len()
}

/// The installed prefixes that can have a channel.
fn installed() -> BTreeSet<String> {
    let found = spi::installed_prefixes().into_iter();
    found.filter(|p| channel::full_name(p, CHANNEL).is_ok()).collect()
}

/// Puts checks in one transaction; if Postgres refuses one of them, each in its own.
fn put(database: u32, prefix: &str, checks: &[Heard]) {
    let put_all = || checks.iter().map(|heard| put_one(database, prefix, heard)).collect::<Vec<_>>();
    match xact::contain(|| xact::run(TAKING_IN, put_all)) {
        Ok(counters) => counters.into_iter().flatten().for_each(|counter| rings::count(counter, 1)),
        Err(_) if checks.len() == 1 => rings::count(Counter::GossipMalformed, 1),
        Err(_) => checks.chunks(1).for_each(|one| put(database, prefix, one)),
    }
}

/// What it is counted as, if at all. May raise.
fn put_one(database: u32, prefix: &str, heard: &Heard) -> Option<Counter> {
    let Heard { name, node, queue, state } = heard;
    // A name that this database can't show would break the view for all.
    [name, node, queue].into_iter().for_each(|name| drop(encoding::to_server(name)));
    let Some(state) = RawJsonb::parse(state) else { return Some(Counter::GossipMalformed) };
    let Ok(started_at) = check::validate_foreign(jsonb::read(state.bytes())) else {
        return Some(Counter::GossipMalformed);
    };
    let key = Key { database, prefix, name, node, queue };
    let ttl = config::gossip_ttl().as_micros() as i64;
    match shmem::gossip::put(&key, state.bytes(), started_at, ttl, Origin::Foreign) {
        Ok(Ok(put)) => (!put.ignored).then_some(Counter::GossipTakenIn),
        _ => Some(Counter::GossipRefused),
    }
}
