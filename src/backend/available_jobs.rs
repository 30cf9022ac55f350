//! The queues of which this transaction has made jobs available, or which it has resumed, told to the
//! takers after the commit.
//!
//! The end of a savepoint changes nothing: a job that was rolled back wakes a taker in vain. A process that
//! dies before its commit takes its notes along, and its rows as well.

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::logic::ids::SchemaOid;
use crate::logic::signals::{Change, DEFAULT_NAME, EVERY_QUEUE, Key};
use crate::logic::takers::{MOST_WOKEN, QueueKey};
use crate::pg::{encoding, session, xact};
use crate::shmem::Segment;

/// The most queues that are kept apart. If a transaction has more, takers look at all queues of the
/// database.
const MAX_QUEUES: usize = 64;

/// What has become of a queue.
#[derive(Clone, Copy)]
enum News {
    /// This many jobs are available.
    Jobs(QueueKey, u32),
    /// It was resumed. `None`: all queues of the prefix were.
    Resumed(Option<QueueKey>),
}

struct Pending {
    news: [(SchemaOid, News); MAX_QUEUES],
    count: usize,
    /// There were more than fit.
    all: bool,
}

impl Pending {
    const NOTHING: Self =
        Self { news: [(SchemaOid::NONE, News::Resumed(None)); MAX_QUEUES], count: 0, all: false };

    fn is_nothing(&self) -> bool {
        self.count == 0 && !self.all
    }

    fn note(&mut self, schema: SchemaOid, news: News) {
        match self.news.get_mut(self.count) {
            Some(place) => (*place, self.count) = ((schema, news), self.count + 1),
            None => self.all = true,
        }
    }
}

thread_local! {
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending::NOTHING) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
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

/// Notes a change of what is remembered of signals, if it resumes queues for takers. A taker is a node of
/// the name that a signal has by default.
pub fn note_change(schema: SchemaOid, key: &Key, change: Change) {
    let Some(segment) = Segment::attached() else { return };
    if change == Change::Paused(false) && key.name == DEFAULT_NAME {
        let queue = (key.queue != EVERY_QUEUE).then(|| segment.queue_key(&encoding::to_server(&key.queue)));
        PENDING.with_borrow_mut(|pending| pending.note(schema, News::Resumed(queue)));
    }
}

/// Tells the takers after a commit. (At PREPARE TRANSACTION the rows are not committed. COMMIT PREPARED
/// makes takers look at all queues of the database: `xact_end`.)
fn transaction_event(event: pg_sys::XactEvent::Type) {
    if !xact::is_end(event) || PENDING.with_borrow(Pending::is_nothing) {
        return;
    }
    let pending = PENDING.replace(Pending::NOTHING);
    let Some(segment) = Segment::attached().filter(|segment| segment.has_takers()) else { return };
    if !xact::is_commit(event) {
        return;
    }
    let database = session::database();
    if pending.all {
        return segment.resume_all_queues(database);
    }
    for (schema, news) in pending.news.into_iter().take(pending.count) {
        match news {
            News::Jobs(queue, jobs) => segment.publish_jobs(database, schema, queue, jobs),
            News::Resumed(queue) => segment.resume_queue(database, schema, queue),
        }
    }
}
