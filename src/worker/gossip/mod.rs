//! Gossip with those outside: telling Oban's nodes and Oban Web of the queues here (`broadcast`), and taking in
//! what they tell (`ingest`).
//!
//! Both are the relay's. It touches no table, so that no lock of a user's can keep it from reading NOTIFY's
//! queue, which has to keep what any listener has not read. (A relay that is stopped from outside is stopped with
//! all it does: as any session that LISTENs, it keeps NOTIFY's queue from being cut short until it goes on or ends.)

mod broadcast;
mod ingest;

use std::time::Instant;

use self::broadcast::Broadcaster;
use self::ingest::Ingest;

pub struct Gossip {
    broadcaster: Broadcaster,
    ingest: Ingest,
}

impl Gossip {
    pub fn new(database: u32) -> Self {
        Self { broadcaster: Broadcaster::new(database), ingest: Ingest::new(database) }
    }

    /// A prefix may have come or gone.
    pub fn prefixes_changed(&mut self) {
        self.ingest.prefixes_changed();
    }

    /// Does what is due; when to come back, if ever. `stuck`: the relay can't send at the moment.
    pub fn pass(&mut self, stuck: bool) -> Option<Instant> {
        self.ingest.pass().into_iter().chain(self.broadcaster.pass(stuck)).min()
    }

    /// Whether something has come since the last pass.
    pub fn has_news(&self) -> bool {
        self.ingest.has_news() || self.broadcaster.has_news()
    }
}
