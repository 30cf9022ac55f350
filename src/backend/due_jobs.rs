//! The due times of the jobs that this transaction has written in prefixes that stage, told to the
//! stagers after the commit.
//!
//! The triggers on oban_jobs note the times here. For each prefix only the earliest counts, so this
//! is bounded memory, and the end of a savepoint changes nothing: a time that was rolled back makes
//! a stager look once too early. A process that dies before its commit takes the times along, and
//! its rows as well.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;

use crate::logic::ids::SchemaOid;
use crate::logic::staging::alarm::NEVER;
use crate::logic::times::WallTime;
use crate::pg::{session, xact};
use crate::shmem::Segment;
use crate::shmem::stagers::DueTimes;

/// The most prefixes that are kept apart. If a transaction writes to more, it tells all stagers of
/// the database to look.
const MAX_PREFIXES: usize = 8;

/// The earliest due times of this transaction, by the schema.
struct Pending {
    prefixes: [(SchemaOid, DueTimes); MAX_PREFIXES],
    count: usize,
    /// There were more prefixes than fit.
    all: bool,
}

impl Pending {
    const NOTHING: Self =
        Self { prefixes: [(SchemaOid::NONE, DueTimes::NONE); MAX_PREFIXES], count: 0, all: false };

    fn is_nothing(&self) -> bool {
        self.count == 0 && !self.all
    }

    /// Returns the times of a schema, to change them. `None`: there is no room for the schema.
    fn times_of(&mut self, schema: SchemaOid) -> Option<&mut DueTimes> {
        let known = self.prefixes[..self.count].iter().position(|(of, _)| *of == schema);
        let at = known.unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        });
        match self.prefixes.get_mut(at) {
            Some(prefix) => {
                prefix.0 = schema;
                Some(&mut prefix.1)
            }
            None => {
                (self.count, self.all) = (MAX_PREFIXES, true);
                None
            }
        }
    }
}

thread_local! {
    /// In a stager: the schema that it stages. `NONE` in all other processes.
    static OWN_SCHEMA: Cell<SchemaOid> = const { Cell::new(SchemaOid::NONE) };
    /// In a stager: the earliest due time of rows that its transactions have written; `NEVER` for none.
    static OWN: Cell<WallTime> = const { Cell::new(NEVER) };
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending::NOTHING) };
}

pub(super) fn register() {
    xact::on_event(transaction_event);
}

/// Makes this process, the stager of a prefix, keep the due times of that prefix to itself.
pub fn keep_own(schema: SchemaOid) {
    OWN_SCHEMA.set(schema);
}

/// Returns the earliest due time of rows that this stager has written and committed since the last
/// call; `NEVER` for none. Such rows are scheduled or retryable: a trigger of the table wrote them.
pub fn take_own() -> WallTime {
    OWN.replace(NEVER)
}

/// Notes that a row of a prefix becomes due at this time: a scheduled or retryable one.
pub fn becomes_due(schema: SchemaOid, at: WallTime) {
    remember(schema, DueTimes { due: at, later: NEVER });
}

/// Notes that a row of a prefix is available, and becomes due at this time.
pub fn is_due_later(schema: SchemaOid, at: WallTime) {
    remember(schema, DueTimes { due: NEVER, later: at });
}

fn remember(schema: SchemaOid, times: DueTimes) {
    PENDING.with_borrow_mut(|pending| {
        if let Some(known) = pending.times_of(schema) {
            *known = DueTimes { due: known.due.min(times.due), later: known.later.min(times.later) };
        }
    });
}

/// Tells the stagers after a commit. (At PREPARE TRANSACTION the rows are not committed. COMMIT
/// PREPARED tells all stagers of the database: `xact_end`.)
fn transaction_event(event: pg_sys::XactEvent::Type) {
    if !xact::is_end(event) || PENDING.with_borrow(Pending::is_nothing) {
        return;
    }
    let pending = PENDING.replace(Pending::NOTHING);
    if !xact::is_commit(event) {
        return;
    }
    let Some(segment) = Segment::attached() else { return };
    let own = OWN_SCHEMA.get();
    if pending.all {
        return segment.tell_all_stagers(session::database());
    }
    for (schema, mut times) in pending.prefixes.into_iter().take(pending.count) {
        if !own.is_none() && schema == own {
            OWN.set(OWN.get().min(std::mem::replace(&mut times.due, NEVER)));
        }
        segment.tell_stager(session::database(), schema, times);
    }
}
