//! Taking in what Oban's nodes gossip by NOTIFY: it shows in oban_gossip beside what was put here.
//!
//! The relay listens to the gossip channel of each installed prefix. What has come is read at once, into memory of
//! this process, and taken apart a little at a time, so that nobody's flood keeps it from relaying. Its own
//! broadcasts come back and are known by their sender. (One that an earlier relay sent does not come: who begins
//! to listen hears nothing that was committed before.)
//!
//! Nobody needs a right to NOTIFY. So what comes is tested as what is put, is no more than half of the table, and
//! never takes the place of an entry of ours.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CStr;

use pgrx::prelude::*;

use crate::config;
use crate::error;
use crate::logic::backoff::RELAY;
use crate::logic::channel;
use crate::logic::gossip::{Key, Origin};
use crate::logic::intake::{self, Heard};
use crate::logic::lifecycle::Kind;
use crate::pg::datum::RawJsonb;
use crate::pg::notify::{self, Notification};
use crate::pg::{encoding, latch, session, spi, time, xact};
use crate::shmem;
use crate::shmem::rings::{self, Counter};

/// What may wait to be taken apart, in bytes; what comes beyond that is counted as refused. A thousand nodes' worth.
const BACKLOG: usize = 4 << 20;

/// Messages that are taken apart at a time.
const AT_A_TIME: usize = 16;

/// How long a busy relay leaves NOTIFY's queue unread, in microseconds.
const PATIENCE: i64 = 50_000;

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
    failures: u32,
    retry_at: i64,
    waiting: VecDeque<Notification>,
    waiting_bytes: usize,
    last_heard: i64,
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
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            last_heard: 0,
        }
    }

    pub fn prefixes_changed(&mut self) {
        self.stale = true;
    }

    pub fn has_news(&self) -> bool {
        !self.prefixes.is_empty() && notify::has_come()
    }

    /// Listens, hears, and takes in what is due; when to come back, if ever.
    pub fn pass(&mut self, busy: bool) -> Option<i64> {
        let now = time::now();
        let wanted = config::gossip_ingest();
        self.stale |= wanted != self.wanted;
        if self.stale && self.retry_at <= now {
            self.listen(wanted);
        }
        let mut due = self.stale.then_some(self.retry_at);
        if self.has_news() {
            if !busy || (now - self.last_heard).abs() >= PATIENCE {
                self.hear();
                self.last_heard = now;
            } else {
                due = due.into_iter().chain([self.last_heard + PATIENCE]).min();
            }
        }
        for _ in 0..AT_A_TIME {
            let Some(message) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= size(&message);
            take_in(self.database, &message);
        }
        if self.waiting.is_empty() { due } else { Some(now) }
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

    fn hear(&mut self) {
        let room = BACKLOG.saturating_sub(self.waiting_bytes);
        match xact::contain(|| notify::hear(room)) {
            Ok((heard, missed)) => {
                let own = latch::my_pid();
                let others = heard.into_iter().filter(|n| n.sender != own);
                for notification in others {
                    self.waiting_bytes += size(&notification);
                    self.waiting.push_back(notification);
                }
                rings::count(Counter::GossipRefused, missed);
            }
            // Postgres has given up its place in the queue, or will end this process.
            Err(caught) => {
                self.stale = true;
                self.failed(&caught.message);
            }
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
}

fn size(notification: &Notification) -> usize {
    size_of::<Notification>() + notification.channel.len() + notification.payload.len()
}

/// The installed prefixes that can have a channel.
fn installed() -> BTreeSet<String> {
    let found = spi::installed_prefixes().into_iter();
    found.filter(|p| channel::full_name(p, CHANNEL).is_ok()).collect()
}

/// Takes one message apart, and puts its checks.
fn take_in(database: u32, message: &Notification) {
    let text = |bytes: &[u8]| xact::contain(|| encoding::to_utf8(bytes).into_owned()).ok();
    let Some((channel, payload)) = text(&message.channel).zip(text(&message.payload)) else {
        rings::count(Counter::GossipMalformed, 1);
        return;
    };
    let Some(prefix) = channel.rsplit_once('.').map(|(prefix, _)| prefix) else { return };
    let taken = intake::take_apart(&payload);
    rings::count(Counter::GossipMalformed, taken.malformed);
    put(database, prefix, &taken.checks);
}

/// Puts checks in one transaction; if Postgres refuses one of them, each in its own.
fn put(database: u32, prefix: &str, checks: &[Heard]) {
    if checks.is_empty() {
        return;
    }
    let put_all = || {
        let states: Vec<_> = checks.iter().map(|heard| RawJsonb::parse(&heard.state)).collect();
        for (heard, state) in checks.iter().zip(&states) {
            put_one(database, prefix, heard, state.as_ref());
        }
    };
    let done = xact::contain(|| xact::run(c"obanrs: taking in gossip", put_all)).is_ok();
    match checks {
        _ if done => {}
        [_] => rings::count(Counter::GossipMalformed, 1),
        several => several.chunks(1).for_each(|one| put(database, prefix, one)),
    }
}

fn put_one(database: u32, prefix: &str, heard: &Heard, state: Option<&RawJsonb>) {
    let key = Key { database, prefix, name: &heard.name, node: &heard.node, queue: &heard.queue };
    let Some(state) = state else {
        rings::count(Counter::GossipMalformed, 1);
        return;
    };
    let ttl = config::gossip_ttl().as_micros() as i64;
    match shmem::gossip::put(&key, state.bytes(), heard.started_at, ttl, Origin::Foreign) {
        Ok(Ok(put)) => rings::count(Counter::GossipTakenIn, usize::from(!put.ignored)),
        _ => rings::count(Counter::GossipRefused, 1),
    }
}
