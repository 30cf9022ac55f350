//! The exchange of gossip with foreign nodes: telling Oban's nodes and Oban Web of the local queues
//! (`broadcast`), and ingesting what those nodes tell (`ingest`).
//!
//! Both run in the relay. The relay touches no user's table, so that no lock on one can keep it
//! from reading NOTIFY's queue, which keeps what a listener has not read. (A relay that is stopped
//! by a signal stops with all that it does. As any session that LISTENs, it then keeps NOTIFY's
//! queue from being cut short until it goes on or ends.)

mod broadcast;
mod ingest;

use std::time::Instant;

use self::broadcast::Broadcaster;
use self::ingest::Ingest;
use crate::logic::ids::DatabaseOid;
use crate::shmem::Segment;

pub struct Exchange {
    broadcaster: Broadcaster,
    ingest: Ingest,
}

impl Exchange {
    pub fn new(segment: Segment, database: DatabaseOid) -> Self {
        Self { broadcaster: Broadcaster::new(segment, database), ingest: Ingest::new(segment, database) }
    }

    /// Notes that a prefix may have been installed, renamed or dropped.
    pub fn prefixes_changed(&mut self) {
        self.ingest.prefixes_changed();
    }

    /// Does what is due. Returns when the next pass is due; `None`: not before something comes.
    /// With `stuck` the relay can't send at the moment.
    pub fn pass(&mut self, stuck: bool) -> Option<Instant> {
        self.ingest.pass().into_iter().chain(self.broadcaster.pass(stuck)).min()
    }

    /// Whether something has come since the last pass.
    pub fn has_news(&self) -> bool {
        self.ingest.has_news() || self.broadcaster.has_news()
    }
}
