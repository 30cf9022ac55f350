//! Ingesting what foreign nodes gossip by NOTIFY. The view oban_gossip shows it beside the local
//! entries.
//!
//! The relay listens to the gossip channel of each installed prefix, and follows a rename. A
//! message on a channel belongs to the schema that has the channel's name when the message is
//! ingested. The relay reads NOTIFY's queue soon into the memory of the process, so that the queue
//! need not keep the messages. The relay parses the messages a little at a time, between the
//! transactions that send, so that no flood keeps it from relaying. The relay's own broadcasts come
//! back, and are known by their beginning.
//!
//! NOTIFY needs no right. So a message is tested as a put is, foreign entries take no more than
//! half of the table, and a foreign entry never takes the place of a local one.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::super::{process, trouble};
use crate::config;
use crate::logic::backoff::{MILLISECOND, RELAY};
use crate::logic::broadcast;
use crate::logic::channel;
use crate::logic::check;
use crate::logic::counter::Counter;
use crate::logic::gossip::{Key, Source};
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::ingest::{self, ForeignCheck};
use crate::logic::jsonb;
use crate::logic::lifecycle::Kind;
use crate::logic::retry::Retry;
use crate::logic::room::Room;
use crate::logic::times::ClockTime;
use crate::pg::datum::RawJsonb;
use crate::pg::notify::{self, Notification};
use crate::pg::{catalog, clock, encoding, session, xact};
use crate::prefix::prefixes;
use crate::shmem::{Segment, stats};

/// The most bytes of messages that wait to be parsed: those of a thousand nodes. More are counted
/// as refused.
const BACKLOG: usize = 4 << 20;

/// How many checks are put at a time, and of how many bytes (or one longer check). That takes some
/// milliseconds at most.
const MAX_CHECKS_AT_A_TIME: usize = 64;
const MAX_BYTES_AT_A_TIME: usize = 32 << 10;

/// How many checks of a message Postgres may refuse before the rest of the message is skipped. Each
/// costs a transaction, and real nodes send none of these.
const MAX_REFUSALS: usize = 8;

/// The largest state that is ingested, in bytes as jsonb: thousands of running jobs.
const MAX_FOREIGN_STATE: usize = 64 << 10;

/// The least time between two readings of NOTIFY's queue, in microseconds. Every NOTIFY of the
/// database wakes this process, whatever the channel.
const MIN_READ_INTERVAL: i64 = 20 * MILLISECOND;

/// How long a look into the catalogs waits for a session that has locked them.
const CATALOG_TIMEOUT: &CStr = c"50ms";

/// What pg_stat_activity shows of the transactions that put.
const INGESTING: &CStr = c"obanrs: taking in gossip";

const CHANNEL: &str = "gossip";

pub struct Ingest {
    segment: Segment,
    database: DatabaseOid,
    /// The prefixes whose channels this process listens to.
    prefixes: BTreeSet<String>,
    /// Whether prefixes may have come or gone since.
    stale: bool,
    /// obanrs.gossip_ingest as it was then.
    wanted: bool,
    listening: Retry,
    /// Whether NOTIFY's queue has to be read, even if nothing has come since.
    unread: bool,
    reading: Retry,
    /// The messages that wait to be parsed.
    messages: VecDeque<Notification>,
    /// How many bytes these messages have.
    bytes: usize,
    /// The checks of the message that was parsed last that are still to be put, the last check
    /// first.
    checks: Vec<String>,
    /// The prefix of that message.
    prefix: String,
    /// How many checks of that message Postgres has refused.
    refusals: usize,
}

impl Ingest {
    pub fn new(segment: Segment, database: DatabaseOid) -> Self {
        segment.end_coverage();
        Self {
            segment,
            database,
            prefixes: BTreeSet::new(),
            stale: true,
            wanted: false,
            listening: Retry::default(),
            unread: false,
            reading: Retry::default(),
            messages: VecDeque::new(),
            bytes: 0,
            checks: Vec::new(),
            prefix: String::new(),
            refusals: 0,
        }
    }

    /// Notes that a prefix may have been installed, renamed or dropped.
    pub fn prefixes_changed(&mut self) {
        self.stale = true;
    }

    /// Listens, reads and ingests what is due. Returns when the next pass is due; `None`: not
    /// before something comes.
    pub fn pass(&mut self) -> Option<Instant> {
        let wanted = config::gossip_ingest();
        self.stale |= wanted != self.wanted;
        if self.stale && self.listening.is_due(clock::now()) {
            self.listen(wanted);
        }
        self.unread |= !self.prefixes.is_empty() && notify::has_come();
        if self.unread && self.reading.is_due(clock::now()) {
            self.read();
        }
        self.ingest_some();
        if !(self.checks.is_empty() && self.messages.is_empty()) {
            return Some(Instant::now());
        }
        let now = clock::now(); // read before the test whether something has come, and after all puts
        if !(self.stale || self.unread || self.has_news()) {
            self.segment.extend_coverage(now);
        }
        let listening = self.stale.then_some(&self.listening);
        let reading = self.unread.then_some(&self.reading);
        let next = listening.into_iter().chain(reading).map(Retry::not_before).min()?;
        Some(Instant::now() + Duration::from_micros((next - now).max(0) as u64))
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
        session::set(c"lock_timeout", c"0"); // the relay's commits wait for no lock of a user
        match listened {
            Ok(installed) => {
                match installed.is_empty() {
                    true => self.segment.end_coverage(),
                    // Messages to a prefix that has this name since, or had it until now, went
                    // unheard.
                    false if installed != before => self.segment.restart_coverage(),
                    false => {}
                }
                (self.prefixes, self.stale, self.wanted) = (installed, false, wanted);
                self.listening.succeeded(ClockTime::ZERO);
            }
            Err(caught) => {
                self.prefixes = before;
                self.listening.failed(clock::now(), RELAY);
                self.report(self.listening.failures(), &caught.message);
            }
        }
    }

    /// Reads NOTIFY's queue.
    fn read(&mut self) {
        let room = Room::Together(BACKLOG.saturating_sub(self.bytes));
        match xact::contain(|| notify::hear(room, |payload| !broadcast::is_own_broadcast(payload))) {
            Ok((heard, missed)) => {
                self.bytes += heard.iter().map(Notification::size).sum::<usize>();
                self.messages.extend(heard);
                self.refused(missed.into_values().sum());
                self.unread = false;
                self.reading.succeeded(clock::now() + MIN_READ_INTERVAL);
            }
            Err(caught) => {
                self.reading.failed(clock::now(), RELAY);
                self.report(self.reading.failures(), &caught.message);
            }
        }
    }

    /// Restarts the coverage after a failure, and reports the first failure in a row.
    fn report(&self, failures: u32, why: &str) {
        self.segment.restart_coverage();
        if failures == 1 {
            trouble::report(
                self.segment,
                Kind::Relay,
                why,
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("obanrs can't listen to gossip in {}: {why}", process::of_database()),
                "It is tried again every few seconds; obanrs.gossip_ingest = off keeps it from being tried.",
            );
        }
    }

    /// Counts elements of a message that are no checks. Each may have been a sign of life of a
    /// process, so the coverage restarts.
    fn malformed(&self, checks: usize) {
        if checks > 0 {
            self.segment.restart_coverage();
            stats::count(Counter::GossipMalformed, checks);
        }
    }

    /// Counts checks for which there was no room. The coverage restarts.
    fn refused(&self, checks: usize) {
        if checks > 0 {
            self.segment.restart_coverage();
            stats::count(Counter::GossipRefused, checks);
        }
    }

    /// Puts some checks of the present message. Parses the next message first, if all checks of the
    /// last one are put.
    fn ingest_some(&mut self) {
        if self.checks.is_empty() {
            let Some(message) = self.messages.pop_front() else { return };
            self.bytes -= message.size();
            // Converting from the server's encoding needs a transaction.
            let texts = || {
                let text = |bytes: &[u8]| encoding::to_utf8(bytes).into_owned();
                (text(&message.channel), text(&message.payload))
            };
            let Ok((channel, payload)) = xact::contain(|| xact::run(INGESTING, texts)) else {
                self.malformed(1);
                return;
            };
            let Some((prefix, _)) = channel.rsplit_once('.') else { return };
            let parsed = ingest::parse_message(&payload);
            self.malformed(parsed.malformed);
            self.refused(parsed.too_many);
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
                Some(check) => some.push(check),
                None => self.malformed(1),
            }
        }
        self.put(&some);
    }

    /// Puts checks in one transaction. If Postgres refuses one of them, puts each in a separate
    /// transaction.
    fn put(&mut self, checks: &[ForeignCheck]) {
        let (segment, database, prefix) = (self.segment, self.database, &*self.prefix);
        let put_all = || {
            // A message for a schema that is gone belongs to no schema.
            let Some(schema) = catalog::namespace_now(prefix) else { return Vec::new() };
            checks.iter().map(|check| put_one(segment, database, schema, check)).collect()
        };
        match xact::contain(|| xact::run(INGESTING, put_all)) {
            Ok(counters) => counters.into_iter().flatten().for_each(|counter| match counter {
                Counter::GossipMalformed => self.malformed(1),
                Counter::GossipRefused => self.refused(1),
                counter => stats::count(counter, 1),
            }),
            Err(_) if checks.len() > 1 => {
                for (i, one) in checks.chunks(1).enumerate() {
                    if self.refusals >= MAX_REFUSALS {
                        self.malformed(checks.len() - i + self.checks.len());
                        self.checks.clear();
                        return;
                    }
                    self.put(one);
                }
            }
            Err(_) => {
                self.refusals += 1;
                self.malformed(1);
            }
        }
    }
}

/// The installed prefixes that can have a channel.
fn installed() -> BTreeSet<String> {
    let found = prefixes::installed_names().into_iter();
    found.filter(|p| channel::full_name(p, CHANNEL).is_ok()).collect()
}

/// Puts a check. Returns the counter that counts it; `None`: there is a local entry, and the check
/// is ignored. Raises what Postgres raises for a text that it refuses.
fn put_one(
    segment: Segment,
    database: DatabaseOid,
    schema: SchemaOid,
    check: &ForeignCheck,
) -> Option<Counter> {
    let ForeignCheck { name, node, queue, state } = check;
    // A name that this database can't show would break the view for all roles.
    [name, node, queue].into_iter().for_each(|name| drop(encoding::to_server(name)));
    let Some(state) = RawJsonb::parse(state) else { return Some(Counter::GossipMalformed) };
    let Ok(started_at) = check::validate_foreign(jsonb::read(state.bytes())) else {
        return Some(Counter::GossipMalformed);
    };
    if state.bytes().len() > MAX_FOREIGN_STATE {
        return Some(Counter::GossipRefused);
    }
    let key = Key { database, schema, name, node, queue };
    let ttl = config::gossip_ttl().as_micros() as i64;
    match segment.gossip().put(&key, state.bytes(), started_at, ttl, Source::Foreign) {
        Ok(put) => (!put.ignored).then_some(Counter::GossipIngested),
        Err(_) => Some(Counter::GossipRefused),
    }
}
