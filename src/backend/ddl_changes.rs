//! DDL on tables of leaders and on their schemas, told to shared memory and to the keeper.
//!
//! A table that is dropped, renamed or moved to another schema takes its rows along, and no trigger
//! tells of that. The same holds for a schema. So the hook on catalog changes (`pg::hooks`) notes
//! here which relations and schemas the transaction has touched. Right before the commit this file
//! reads the catalogs to find out what became of them:
//!
//! * A leadership whose table is no longer the `oban_peers` of the schema ends *before* the commit,
//!   as with deleted rows (`peer_row_changes`). So no node can take the name in another table while
//!   a member still believes that it leads.
//! * The same holds for a table that loses the columns or the trigger of `oban_install`. (Without
//!   the trigger members can be elected again. Shared memory then trusts their rows for a moment
//!   only.)
//! * After the commit the keeper reads anew each table that was altered otherwise, or that has
//!   become the `oban_peers` of the schema.
//! * What belongs to a schema that was dropped (members, leaderships, gossip) goes after the
//!   commit.
//!
//! Renaming a schema changes nothing here, because all of this is keyed by the schema's oid.
//!
//! A keeper may have committed the first row of a name and not recorded it yet. Shared memory has
//! no copy of that row then. So the records of such names are *invalidated*: what the keeper is
//! about to record is read again.
//!
//! If the commit fails after all, the keeper finds the rows and elects anew. Leaderships end at
//! PREPARE TRANSACTION as they end at a commit. What the transaction has locked stays locked until
//! COMMIT PREPARED or ROLLBACK PREPARED. These two commands do not tell what they change. After
//! them the keeper looks at all tables, and finds out which schemas are left.
//!
//! The lists are bounded memory of the process, empty whenever no transaction is open. A process
//! that dies with them has not committed.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::leadership::plan::CopiedTable;
use crate::pg::{catalog, clock, session, xact};
use crate::prefix::peers::{self, TABLE, TableState};
use crate::shmem::Segment;

/// The most oids of one kind that are kept. With more, all tables and schemas that shared memory
/// knows are looked at.
const MAX_OIDS: usize = 64;

/// A set of oids of one kind, as many as fit.
#[derive(Clone, Copy)]
struct Oids<T> {
    oids: [T; MAX_OIDS],
    count: usize,
    /// More oids were added than fit: the set counts as all oids.
    all: bool,
}

impl<T: Copy + PartialEq> Oids<T> {
    /// The empty set. `filler` fills places that have no oid.
    const fn empty(filler: T) -> Self {
        Self { oids: [filler; MAX_OIDS], count: 0, all: false }
    }

    fn add(&mut self, oid: T) {
        if self.all || self.oids().contains(&oid) {
            return;
        }
        match self.oids.get_mut(self.count) {
            Some(free) => (*free, self.count) = (oid, self.count + 1),
            None => self.all = true,
        }
    }

    fn oids(&self) -> &[T] {
        &self.oids[..self.count]
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn contains(&self, oid: T) -> bool {
        self.all || self.oids().contains(&oid)
    }
}

const NO_TABLES: Oids<TableOid> = Oids::empty(TableOid::NONE);
const NO_SCHEMAS: Oids<SchemaOid> = Oids::empty(SchemaOid::NONE);

thread_local! {
    /// Whether one of the other thread-locals has something. Most transactions touch nothing.
    static TOUCHED: Cell<bool> = const { Cell::new(false) };
    /// What this transaction has touched, whether or not a savepoint took that back: the catalogs
    /// tell.
    static RELATIONS: Cell<Oids<TableOid>> = const { Cell::new(NO_TABLES) };
    static SCHEMAS: Cell<Oids<SchemaOid>> = const { Cell::new(NO_SCHEMAS) };
    /// The schemas of the touched relations that had the name of a table of leaders.
    static OF_LEADERS: Cell<Oids<SchemaOid>> = const { Cell::new(NO_SCHEMAS) };
    /// Whether a trigger of any table was touched.
    static TRIGGERS: Cell<bool> = const { Cell::new(false) };
    /// Whether this transaction ends a prepared one.
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    /// What `end_what_goes` found before the commit.
    static FOUND: Cell<Option<Found>> = const { Cell::new(None) };
}

/// What a transaction does to tables of leaders and schemas.
#[derive(Clone, Copy)]
struct Found {
    /// Schemas that are dropped.
    dropped: Oids<SchemaOid>,
    /// Whether members may have joined in one of the dropped schemas.
    has_members: bool,
    /// Tables of leaders that were altered and are still those of their schemas.
    altered: Oids<TableOid>,
    /// Schemas whose table of leaders was altered or replaced.
    changed: Oids<SchemaOid>,
}

pub(super) fn register() {
    xact::on_event(transaction_event);
}

/// Notes that a relation was altered or is being dropped. The relation's name is still the old one,
/// because the caches do not know of the command that is running. Raises only what a look-up in the
/// caches raises.
pub fn relation_touched(relation: TableOid, dropped: bool) {
    let of_leaders = catalog::is_called(relation, TABLE);
    if of_leaders && let Some(schema) = catalog::schema_of(relation) {
        let mut schemas = OF_LEADERS.get();
        schemas.add(schema);
        OF_LEADERS.set(schemas);
    }
    // An altered relation counts in any case, because it may have taken the name `oban_peers`. A
    // dropped relation counts only if it was called `oban_peers`.
    if of_leaders || !dropped {
        let mut relations = RELATIONS.get();
        relations.add(relation);
        RELATIONS.set(relations);
        TOUCHED.set(true);
    }
}

/// Notes that a trigger was created, altered or is being dropped. Does not raise.
pub fn trigger_touched() {
    TRIGGERS.set(true);
    TOUCHED.set(true);
}

/// Notes that a schema was altered or is being dropped. Does not raise.
pub fn schema_touched(schema: SchemaOid) {
    let mut schemas = SCHEMAS.get();
    schemas.add(schema);
    SCHEMAS.set(schemas);
    TOUCHED.set(true);
}

/// Notes that this transaction ends a prepared one. Does not raise.
pub fn prepared_ends() {
    PREPARED.set(true);
    TOUCHED.set(true);
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if !TOUCHED.get() {
        return;
    }
    if xact::is_before_commit(event) || xact::is_before_prepare(event) {
        let (relations, schemas) = (RELATIONS.get(), SCHEMAS.get());
        if !(relations.is_empty() && schemas.is_empty() && !TRIGGERS.get()) {
            FOUND.set(end_what_goes(&relations, &schemas));
        }
    } else if xact::is_end(event) {
        TOUCHED.set(false);
        RELATIONS.set(NO_TABLES);
        SCHEMAS.set(NO_SCHEMAS);
        let segment = Segment::attached();
        if let Some((found, segment)) = FOUND.take().zip(segment) {
            record(segment, &found, event);
        }
        OF_LEADERS.set(NO_SCHEMAS);
        TRIGGERS.set(false);
        if PREPARED.take()
            && xact::is_commit(event)
            && let Some(segment) = segment
        {
            let database = session::database();
            segment.leaderships(|p| p.require_recheck(database, None));
            segment.rows_changed(database, None);
        }
    }
}

/// Runs before the commit. Finds out what became of what the transaction has touched, and ends the
/// leaderships whose rows go. `None`: the library is not preloaded.
fn end_what_goes(relations: &Oids<TableOid>, schemas: &Oids<SchemaOid>) -> Option<Found> {
    let (segment, database) = (Segment::attached()?, session::database());
    let (tables, electorates) = segment.leaderships_view(|v| (v.tables(database), v.schemas(database)));
    xact::next_command(); // makes visible what the last statement did
    let (mut dropped, mut changed) = (NO_SCHEMAS, NO_SCHEMAS);
    let (mut gone, mut altered) = (Vec::new(), NO_TABLES);
    for CopiedTable { table, schema, guarded } in tables {
        let touched = relations.contains(table);
        if !(touched || TRIGGERS.get()) {
            continue;
        }
        let TableState { installed, tells } = peers::state_of(table);
        // Without the columns no member leads in the table. Without the trigger no process tells of
        // rows that end.
        if (touched && !catalog::is_named(table, schema, TABLE)) || !installed || (guarded && !tells) {
            changed.add(schema);
            gone.push(table);
        } else if touched {
            changed.add(schema);
            altered.add(table);
        }
    }
    // Tables that are called `oban_peers` now, whether or not another table had the name before.
    for relation in relations.oids() {
        if let Some(schema) = catalog::schema_of(*relation)
            && catalog::is_named(*relation, schema, TABLE)
        {
            changed.add(schema);
        }
    }
    let mut has_members = schemas.all;
    let all = schemas.all.then_some(&electorates);
    for schema in all.into_iter().flatten().chain(schemas.oids()) {
        if catalog::schema_name(*schema).is_none() {
            dropped.add(*schema);
            has_members |= electorates.contains(schema);
        }
    }
    let (now, of_leaders) = (clock::now(), OF_LEADERS.get());
    segment.leaderships(|p| {
        gone.iter().for_each(|table| p.table_gone(database, *table, now));
        if !of_leaders.is_empty() {
            p.invalidate_records(database, |schema| of_leaders.contains(schema));
        }
        dropped.oids().iter().for_each(|schema| p.rows_truncated(database, *schema, now));
    });
    changed.all |= relations.all;
    Some(Found { dropped, has_members, altered, changed })
}

/// Records what `end_what_goes` found. Runs after the commit, or after the abort of a commit that
/// was on its way: nothing here fails.
fn record(segment: Segment, found: &Found, event: pg_sys::XactEvent::Type) {
    let database = session::database();
    if xact::is_commit(event) {
        found.dropped.oids().iter().for_each(|schema| segment.forget_schema(database, *schema));
        // The keeper looks after the commit, because until then the table is locked.
        segment.leaderships(|p| match found.altered.all {
            true => p.require_recheck(database, None),
            false => found.altered.oids().iter().for_each(|table| p.require_recheck(database, Some(*table))),
        });
    }
    // This runs after an abort, too: leaderships may have ended in shared memory just before the
    // abort.
    let several = found.changed.all || found.changed.count > 1 || found.has_members;
    if several || found.changed.count == 1 {
        let one = found.changed.oids().first().copied().filter(|_| !several);
        segment.rows_changed(database, one);
    }
}
