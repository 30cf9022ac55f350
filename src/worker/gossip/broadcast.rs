//! Telling others of the queues here: one merged broadcast for each schema, on the channel of its name, every
//! `obanrs.gossip_interval`, while there are entries that were put here. What was taken in is never sent again:
//! its nodes tell by themselves.
//!
//! It goes through the bus as any message does, to those who poll and those who LISTEN. A broadcast that would take
//! more than a 64th of the ring goes to those who LISTEN only, else it would push what others wait for out of it;
//! who polls has the view.
//!
//! Idle means idle: without an entry the relay has no timer for this. The next put wakes it
//! (`shmem::gossip::announcer`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::super::process;
use crate::bus::{self, Target};
use crate::config;
use crate::error;
use crate::logic::broadcast::{self, Broadcast, Queue};
use crate::logic::gossip::EntryCopy;
use crate::logic::lifecycle::Kind;
use crate::logic::outbox::Requester;
use crate::logic::wire;
use crate::pg::datum::RawJsonb;
use crate::pg::{catalog, encoding, notify, time, xact};
use crate::shmem;
use crate::shmem::gossip::announcer;
use crate::shmem::listeners;
use crate::shmem::rings::{self, Counter};

/// The part of the ring that one broadcast may take.
const PART_OF_RING: usize = 64;

/// What a check's names, times and defaults take beside its state, about.
const BESIDE_STATE: usize = 200;

pub struct Broadcaster {
    database: u32,
    /// Whether this looks for entries by itself.
    awake: bool,
    /// obanrs.gossip_interval when `next` was set.
    interval: i64,
    next: Instant,
    /// Why the last one failed, so that it is logged once.
    failure: Option<String>,
}

impl Broadcaster {
    pub fn new(database: u32) -> Self {
        announcer::start_polling();
        Self { database, awake: true, next: Instant::now(), interval: 0, failure: None }
    }

    pub fn has_news(&self) -> bool {
        !self.awake && announcer::is_polling()
    }

    /// Broadcasts if it is due; when to come back, if ever. What can't be sent is left out: the next one says all
    /// that it would have said, and meanwhile it would fill the ring.
    pub fn pass(&mut self, stuck: bool) -> Option<Instant> {
        self.awake |= announcer::is_polling();
        let (interval, now) = (config::gossip_interval(), Instant::now());
        if !self.awake || interval == 0 {
            return None;
        }
        if now < self.next && self.interval == interval {
            return Some(self.next);
        }
        let entries = shmem::gossip::entries(self.database, true).unwrap_or_default();
        if entries.is_empty() && announcer::stop_polling() {
            self.awake = false;
            return None;
        }
        (self.next, self.interval) = (now + Duration::from_micros(interval as u64), interval);
        if stuck {
            return Some(self.next);
        }
        let database = self.database;
        match xact::contain(|| xact::run(c"obanrs: broadcasting gossip", || broadcast(database, &entries))) {
            Ok(sent) => {
                rings::count(Counter::GossipBroadcasts, usize::from(sent.checks > 0));
                rings::count(Counter::GossipShortened, sent.shortened);
                if sent.checks > 0 {
                    rings::set(Counter::GossipBroadcastEntries, sent.checks as u64);
                }
                self.failure = None;
            }
            Err(caught) => self.failed(caught.message),
        }
        Some(self.next)
    }

    fn failed(&mut self, why: String) {
        if self.failure.as_ref() != Some(&why) {
            let _ = shmem::registry(|r| r.note_error(Kind::Relay, self.database, &why));
            error::log(
                PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("obanrs can't broadcast gossip in {}: {why}", process::of_database()),
                "It is tried again every obanrs.gossip_interval.",
            );
        }
        self.failure = Some(why);
    }
}

/// Sends what there is of these entries, in the transaction that is open.
fn broadcast(database: u32, entries: &[EntryCopy]) -> Broadcast {
    let bytes: usize = entries.iter().map(|e| e.state.len() + BESIDE_STATE).sum();
    let through_ring = bytes <= config::ring_size() / PART_OF_RING;
    let mut all = Broadcast::default();
    // A full queue of NOTIFY would fail the transaction, each time anew.
    let sends = through_ring || (listeners::any() && !notify::is_queue_full());
    let mut schemas: BTreeMap<u32, Vec<&EntryCopy>> = BTreeMap::new();
    entries.iter().for_each(|e| schemas.entry(e.schema).or_default().push(e));
    for (schema, entries) in schemas {
        // As it is called now: a session that has renamed it wakes this process before its caches are told.
        let Some(prefix) = catalog::namespace_name(schema) else {
            shmem::gossip::forget_nameless(database, schema);
            continue;
        };
        // A prefix may be too long for a channel; nobody could listen to it.
        let Some(target) = Target::new(Some(schema), &prefix, "gossip").ok().filter(|_| sends) else {
            continue;
        };
        let sent = messages(&entries);
        for message in &sent.messages {
            let payload = encoding::to_server(message).into_owned();
            if through_ring {
                // Never refused: what has no room is dropped.
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
            // What can't be read any more was never put.
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
