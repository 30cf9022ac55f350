//! Broadcasting local entries to foreign nodes: one merged broadcast for each schema, on the
//! channel of the schema's name, every `obanrs.gossip_interval` while there are local entries.
//! Foreign entries are never sent again, because their nodes broadcast them themselves.
//!
//! A broadcast goes through the bus as any message does, to readers and to sessions that LISTEN. A
//! broadcast that would take more than a 64th of the ring goes to sessions that LISTEN only.
//! Through the ring it would push out what other readers wait for, and readers have the view
//! oban_gossip.
//!
//! Without a local entry the relay has no timer for broadcasts. The next put wakes it
//! (`shmem::polling`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::super::process;
use super::super::trouble;
use crate::backend::listening;
use crate::bus::{self, Target};
use crate::config;
use crate::logic::broadcast::{self, Broadcast, Queue};
use crate::logic::counter::Counter;
use crate::logic::gossip::EntryCopy;
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::lifecycle::Kind;
use crate::logic::outbox::Requester;
use crate::logic::retry::Retry;
use crate::logic::times::ClockTime;
use crate::logic::wire;
use crate::pg::datum::RawJsonb;
use crate::pg::{catalog, encoding, notify, time, xact};
use crate::shmem::{Segment, stats};

/// The part of the ring that one broadcast may take.
const PART_OF_RING: usize = 64;

/// What a check's names, times and defaults take beside its state, in bytes, roughly.
const BESIDE_STATE: usize = 200;

pub struct Broadcaster {
    segment: Segment,
    database: DatabaseOid,
    /// Whether this process polls for local entries.
    polls: bool,
    /// obanrs.gossip_interval in microseconds, as it was when `next` was set.
    interval: i64,
    /// When the next broadcast is due.
    next: Instant,
    /// The last failure, so that it is logged once.
    retry: Retry,
}

impl Broadcaster {
    pub fn new(segment: Segment, database: DatabaseOid) -> Self {
        segment.start_polling();
        Self { segment, database, polls: true, next: Instant::now(), interval: 0, retry: Retry::default() }
    }

    /// Whether a put has turned polling on since this process stopped.
    pub fn has_news(&self) -> bool {
        !self.polls && self.segment.is_polling()
    }

    /// Broadcasts if a broadcast is due. Returns when the next pass is due; `None`: not before a
    /// put. With `stuck` the relay can't send at the moment. Then the broadcast is left out: it
    /// would fill the ring, and the next one says the same.
    pub fn pass(&mut self, stuck: bool) -> Option<Instant> {
        self.polls |= self.segment.is_polling();
        let (interval, now) = (config::gossip_interval(), Instant::now());
        if !self.polls || interval == 0 {
            return None;
        }
        if now < self.next && self.interval == interval {
            return Some(self.next);
        }
        let entries = self.segment.gossip().entries(self.database, true);
        if entries.is_empty() && self.segment.stop_polling() {
            self.polls = false;
            return None;
        }
        (self.next, self.interval) = (now + Duration::from_micros(interval as u64), interval);
        if stuck {
            return Some(self.next);
        }
        let (segment, database) = (self.segment, self.database);
        let send = || broadcast(segment, database, &entries);
        match xact::contain(|| xact::run(c"obanrs: broadcasting gossip", send)) {
            Ok(sent) => {
                stats::count(Counter::GossipBroadcasts, usize::from(sent.checks > 0));
                stats::count(Counter::GossipShortened, sent.shortened);
                if sent.checks > 0 {
                    stats::set(Counter::GossipBroadcastEntries, sent.checks as u64);
                }
                self.retry.succeeded(ClockTime::ZERO);
            }
            Err(caught) => self.failed(&caught.message),
        }
        Some(self.next)
    }

    fn failed(&mut self, why: &str) {
        if self.retry.reports(why) {
            trouble::report(
                self.segment,
                Kind::Relay,
                why,
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("obanrs can't broadcast gossip in {}: {why}", process::of_database()),
                "It is tried again every obanrs.gossip_interval.",
            );
        }
    }
}

/// Sends these entries in the open transaction.
fn broadcast(segment: Segment, database: DatabaseOid, entries: &[EntryCopy]) -> Broadcast {
    let bytes: usize = entries.iter().map(|e| e.state.len() + BESIDE_STATE).sum();
    let through_ring = bytes <= config::ring_size() / PART_OF_RING;
    let mut all = Broadcast::default();
    // A full queue of NOTIFY would fail each such transaction.
    let sends = through_ring || (listening::any() && !notify::is_queue_full());
    let mut schemas: BTreeMap<SchemaOid, Vec<&EntryCopy>> = BTreeMap::new();
    entries.iter().for_each(|e| schemas.entry(e.schema).or_default().push(e));
    for (schema, entries) in schemas {
        // The schema's present name: a session that renames the schema wakes this process before
        // its caches are told.
        let Some(prefix) = catalog::namespace_name(schema) else {
            segment.gossip().forget_nameless(database, schema);
            continue;
        };
        // A prefix may be too long for a channel. No session can listen to that.
        let Some(target) = Target::new(Some(schema), &prefix, "gossip").ok().filter(|_| sends) else {
            continue;
        };
        let sent = messages(&entries);
        for message in &sent.messages {
            let payload = encoding::to_server(message).into_owned();
            if through_ring {
                // A trigger's message is never refused: without room it is dropped.
                let _ = bus::queue(&target, payload, Requester::Trigger);
            } else {
                bus::notify_now(&target, &payload);
            }
        }
        all.checks += sent.checks;
        all.shortened += sent.shortened;
    }
    all
}

fn messages(entries: &[&EntryCopy]) -> Broadcast {
    let texts: Vec<[String; 3]> = entries
        .iter()
        .map(|e| {
            let state = RawJsonb::copy(&e.state).text();
            // A state that can't be read was never put.
            [wire::compact(&state).unwrap_or_default(), time::iso(e.started_at), time::iso(e.updated_at)]
        })
        .collect();
    let queues: Vec<Queue<'_>> = entries
        .iter()
        .zip(&texts)
        .map(|(e, [state, started_at, updated_at])| Queue {
            name: &e.name,
            node: &e.node,
            queue: &e.queue,
            state,
            started_at,
            updated_at,
        })
        .collect();
    broadcast::messages(&queues, |text| encoding::to_server(text).len())
}
