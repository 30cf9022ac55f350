//! The queues of which this transaction has made jobs available, or which it has resumed, told to the
//! takers after the commit.
//!
//! The end of a savepoint changes nothing: a job that was rolled back wakes a taker in vain. A process that
//! dies before its commit takes its notes along, and its rows as well.

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::logic::ids::SchemaOid;
use crate::logic::signals::{Change, EVERY_QUEUE, Key};
use crate::logic::takers::{MOST_WOKEN, QueueKey};
use crate::pg::{encoding, session, xact};
use crate::shmem::Segment;

/// The most queues that are kept apart. If a transaction has more, takers look at all queues of the prefix.
const MAX_QUEUES: usize = 64;

/// The most prefixes with more queues. If a transaction has more, takers look at all queues of the database.
const MAX_BEYOND: usize = 8;

/// What has become of a queue.
#[derive(Clone, Copy)]
enum News {
    /// This many jobs are available.
    Jobs(QueueKey, u32),
    /// It was resumed. `None`: all queues of the prefix were.
    Resumed(Option<QueueKey>),
    /// This transaction has claimed jobs of it. If they are rolled back, they are available.
    Claimed(QueueKey),
}

struct Pending {
    news: [(SchemaOid, News); MAX_QUEUES],
    count: usize,
    /// The prefixes of which there were more than fit.
    beyond: [SchemaOid; MAX_BEYOND],
    beyond_count: usize,
    /// There were more such prefixes than fit.
    all: bool,
    /// A part of the transaction was rolled back.
    rolled_back: bool,
}

impl Pending {
    const NOTHING: Self = Self {
        news: [(SchemaOid::NONE, News::Resumed(None)); MAX_QUEUES],
        count: 0,
        beyond: [SchemaOid::NONE; MAX_BEYOND],
        beyond_count: 0,
        all: false,
        rolled_back: false,
    };

    fn is_nothing(&self) -> bool {
        self.count == 0
    }

    fn note(&mut self, schema: SchemaOid, news: News) {
        match self.news.get_mut(self.count) {
            Some(place) => (*place, self.count) = ((schema, news), self.count + 1),
            None if self.beyond[..self.beyond_count].contains(&schema) => {}
            None => match self.beyond.get_mut(self.beyond_count) {
                Some(place) => (*place, self.beyond_count) = (schema, self.beyond_count + 1),
                None => self.all = true,
            },
        }
    }
}

thread_local! {
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending::NOTHING) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

/// Notes that a job of a queue is available. The queue's name is in the server's encoding.
pub fn is_available(schema: SchemaOid, queue: &[u8]) {
    let Some(segment) = Segment::attached() else { return };
    let key = segment.queue_key(queue);
    PENDING.with_borrow_mut(|pending| {
        let known = pending.news[..pending.count].iter_mut().rev().find_map(|(of, news)| match news {
            News::Jobs(known, jobs) if *of == schema && *known == key => Some(jobs),
            _ => None,
        });
        match known {
            Some(jobs) => *jobs = MOST_WOKEN.min(*jobs + 1),
            None => pending.note(schema, News::Jobs(key, 1)),
        }
    });
}

/// Notes that this transaction has claimed jobs of a queue, or has ended one that may be available. The
/// queue's name is in the server's encoding.
pub fn is_claimed(schema: SchemaOid, queue: &[u8]) {
    let Some(segment) = Segment::attached() else { return };
    let key = segment.queue_key(queue);
    PENDING.with_borrow_mut(|pending| {
        let is_claim = |news: &News| matches!(news, News::Claimed(known) if *known == key);
        if !pending.news[..pending.count].iter().any(|(of, news)| *of == schema && is_claim(news)) {
            pending.note(schema, News::Claimed(key));
        }
    });
}

/// Notes what this transaction changes of the signals that are remembered, if it may resume queues for
/// takers. Whether a signal concerns a taker, the taker finds out by itself.
pub fn note_changes<'c>(schema: SchemaOid, changes: impl Iterator<Item = (&'c Key, &'c Change)>) {
    let Some(segment) = Segment::attached() else { return };
    for (key, _) in changes.filter(|(_, change)| **change == Change::Paused(false)) {
        let queue = (key.queue != EVERY_QUEUE).then(|| segment.queue_key(&encoding::to_server(&key.queue)));
        PENDING.with_borrow_mut(|pending| pending.note(schema, News::Resumed(queue)));
    }
}

/// Notes that this transaction deletes rows of remembered signals, which may have been pauses.
pub fn note_deletion(schema: SchemaOid) {
    PENDING.with_borrow_mut(|pending| pending.note(schema, News::Resumed(None)));
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        PENDING.with_borrow_mut(|pending| pending.rolled_back = true);
    }
}

/// Tells the takers after a commit, and after a rollback if jobs were claimed. (At PREPARE TRANSACTION the
/// rows are not committed. COMMIT PREPARED makes takers look at all queues of the database: `xact_end`.)
fn transaction_event(event: pg_sys::XactEvent::Type) {
    if !xact::is_end(event) || PENDING.with_borrow(Pending::is_nothing) {
        return;
    }
    let pending = PENDING.replace(Pending::NOTHING);
    let Some(segment) = Segment::attached().filter(|segment| segment.has_takers()) else { return };
    if xact::is_prepare(event) {
        return;
    }
    let (database, commits) = (session::database(), xact::is_commit(event));
    if pending.all && commits {
        return segment.resume_all_queues(database);
    }
    for (schema, news) in pending.news.into_iter().take(pending.count) {
        match news {
            News::Jobs(queue, jobs) if commits => segment.publish_jobs(database, schema, queue, jobs),
            News::Resumed(queue) if commits => segment.resume_queue(database, schema, queue),
            News::Claimed(queue) if !commits || pending.rolled_back => {
                segment.publish_jobs(database, schema, queue, MOST_WOKEN);
            }
            _ => {}
        }
    }
    // Whether these were committed or not: there are few such transactions.
    for schema in pending.beyond.into_iter().take(pending.beyond_count) {
        segment.resume_queue(database, schema, None);
    }
}
