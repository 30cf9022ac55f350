//! What DDL does to tables of leaders and to their schemas, told to shared memory and the keeper.
//!
//! A table that is dropped, renamed or moved to another schema takes its rows along, and no trigger tells of that. The
//! same holds for a schema. So the hook on catalog changes (`pg::hooks`) notes here which relations and schemas the
//! transaction has touched, and right before the commit the catalogs say what became of them:
//!
//! * Leaderships whose table is no longer `oban_peers` of their schema are over *before* the commit, as with deleted
//!   rows (`rows`): nobody can take the name in another table while a member still believes that it leads.
//! * The same holds for a table that loses the columns or the trigger of `oban_install`. (Without the trigger members can
//!   be elected again; memory then believes their rows for a moment only.)
//! * A table that was altered otherwise, or has become the `oban_peers` of its schema, is read anew after the commit.
//! * What belongs to a schema that was dropped (members, leaderships, gossip) goes after the commit.
//!
//! Renaming a schema changes nothing here, because all of this is keyed by the schema's oid.
//!
//! A keeper may have committed the first row of a name and not told yet: memory has no copy then, so such names are
//! *unsettled*, and what the keeper tells of them is read again.
//!
//! Should the commit fail after all, the keeper finds the rows and elects anew. PREPARE TRANSACTION counts as a commit
//! for what ends; what the transaction has locked stays locked. COMMIT PREPARED and ROLLBACK PREPARED say nothing of
//! what they change: after them the keeper looks at all tables, and at which schemas are left.
//!
//! The lists are bounded, plain memory of the process, empty whenever no transaction is open. A process that dies with
//! them has not committed.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::pg::{catalog, clock, session, xact};
use crate::prefix::peers::{self, TABLE};

/// Past that, all tables and schemas that memory knows of are looked at.
const MAX_OIDS: usize = 64;

/// Distinct oids, as many as fit.
#[derive(Clone, Copy)]
struct Oids {
    oids: [u32; MAX_OIDS],
    count: usize,
    /// There were more.
    all: bool,
}

impl Oids {
    const NONE: Self = Self { oids: [0; MAX_OIDS], count: 0, all: false };

    fn add(&mut self, oid: u32) {
        if self.all || self.oids().contains(&oid) {
            return;
        }
        match self.oids.get_mut(self.count) {
            Some(free) => (*free, self.count) = (oid, self.count + 1),
            None => self.all = true,
        }
    }

    fn oids(&self) -> &[u32] {
        &self.oids[..self.count]
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn contains(&self, oid: u32) -> bool {
        self.all || self.oids().contains(&oid)
    }
}

thread_local! {
    /// Whether there is anything in the others: most transactions have nothing.
    static TOUCHED: Cell<bool> = const { Cell::new(false) };
    /// What this transaction has touched, whether or not a savepoint took it back: the catalogs tell.
    static RELATIONS: Cell<Oids> = const { Cell::new(Oids::NONE) };
    static SCHEMAS: Cell<Oids> = const { Cell::new(Oids::NONE) };
    /// The schemas of the relations that were touched and had the name of a table of leaders.
    static OF_LEADERS: Cell<Oids> = const { Cell::new(Oids::NONE) };
    /// Whether a trigger was touched, of whatever table.
    static TRIGGERS: Cell<bool> = const { Cell::new(false) };
    /// Whether this transaction ends a prepared one.
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    /// What was found before the commit.
    static FOUND: Cell<Option<Found>> = const { Cell::new(None) };
}

/// What the transaction does.
#[derive(Clone, Copy)]
struct Found {
    /// Schemas that are dropped, and whether members may have joined in one of them.
    dropped: Oids,
    known: bool,
    /// Tables of leaders that were altered and are still those of their schemas.
    altered: Oids,
    /// Schemas whose table of leaders is another one, or was altered.
    changed: Oids,
}

/// In `_PG_init` while preloading.
pub fn register() {
    xact::on_event(transaction_event);
}

/// A relation was altered or is being dropped. Its name is still the old one: the caches do not know of the command
/// that is running. Raises only what a look-up in the caches raises.
pub fn relation_touched(relation: u32, dropped: bool) {
    let of_leaders = catalog::is_called(relation, TABLE);
    if of_leaders && let Some(schema) = catalog::schema_of(relation) {
        let mut schemas = OF_LEADERS.get();
        schemas.add(schema);
        OF_LEADERS.set(schemas);
    }
    // What is altered may take the name. What is dropped had it or does not concern us.
    if of_leaders || !dropped {
        let mut relations = RELATIONS.get();
        relations.add(relation);
        RELATIONS.set(relations);
        TOUCHED.set(true);
    }
}

/// A trigger was created, altered or is being dropped. Does not raise.
pub fn trigger_touched() {
    TRIGGERS.set(true);
    TOUCHED.set(true);
}

/// A schema was altered or is being dropped. Does not raise.
pub fn schema_touched(schema: u32) {
    let mut schemas = SCHEMAS.get();
    schemas.add(schema);
    SCHEMAS.set(schemas);
    TOUCHED.set(true);
}

/// This transaction ends a prepared one. Does not raise.
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
            FOUND.set(look(&relations, &schemas));
        }
    } else if xact::is_end(event) {
        TOUCHED.set(false);
        RELATIONS.set(Oids::NONE);
        SCHEMAS.set(Oids::NONE);
        if let Some(found) = FOUND.take() {
            tell(&found, event);
        }
        OF_LEADERS.set(Oids::NONE);
        TRIGGERS.set(false);
        if PREPARED.take() && xact::is_commit(event) {
            let database = session::database();
            let _ = super::peers(|p| p.require_recheck(database, None));
            super::look_at_rows(database, None);
        }
    }
}

/// Before the commit: what became of what the transaction has touched. Ends the leaderships whose rows go.
fn look(relations: &Oids, schemas: &Oids) -> Option<Found> {
    let database = session::database();
    let known = super::leaderships_view(|v| (v.tables(database), v.schemas(database)));
    let (tables, electorates) = known.ok()?;
    xact::next_command(); // or what the last statement did could not be seen
    let (mut dropped, mut changed) = (Oids::NONE, Oids::NONE);
    let (mut gone, mut altered) = (Vec::new(), Oids::NONE);
    for (table, schema, guarded) in tables {
        let touched = relations.contains(table);
        if !(touched || TRIGGERS.get()) {
            continue;
        }
        let (installed, tells) = peers::state_of(table);
        // Without its columns no member leads in it. Without its trigger nobody tells of what ends there.
        if (touched && !catalog::is_named(table, schema, TABLE)) || !installed || (guarded && !tells) {
            changed.add(schema);
            gone.push(table);
        } else if touched {
            changed.add(schema);
            altered.add(table);
        }
    }
    // A table that takes the place of another one, or of none.
    for relation in relations.oids() {
        if let Some(schema) = catalog::schema_of(*relation)
            && catalog::is_named(*relation, schema, TABLE)
        {
            changed.add(schema);
        }
    }
    let mut known = schemas.all;
    let all = schemas.all.then_some(&electorates);
    for schema in all.into_iter().flatten().chain(schemas.oids()) {
        if catalog::schema_name(*schema).is_none() {
            dropped.add(*schema);
            known |= electorates.contains(schema);
        }
    }
    let (now, of_leaders) = (clock::now(), OF_LEADERS.get());
    let _ = super::peers(|p| {
        gone.iter().for_each(|table| p.table_gone(database, *table, now));
        if !of_leaders.is_empty() {
            p.invalidate_records(database, |schema| of_leaders.contains(schema));
        }
        dropped.oids().iter().for_each(|schema| p.rows_truncated(database, *schema, now));
    });
    changed.all |= relations.all;
    Some(Found { dropped, known, altered, changed })
}

/// After the commit, or the abort of one that was on its way: nothing here fails.
fn tell(found: &Found, event: pg_sys::XactEvent::Type) {
    let database = session::database();
    if xact::is_commit(event) {
        found.dropped.oids().iter().for_each(|schema| super::forget_schema(database, *schema));
        // Not before the commit: until then the table is locked.
        let _ = super::peers(|p| match found.altered.all {
            true => p.require_recheck(database, None),
            false => found.altered.oids().iter().for_each(|table| p.require_recheck(database, Some(*table))),
        });
    }
    // After an abort, too: leaderships may be over since just before it.
    let several = found.changed.all || found.changed.count > 1 || found.known;
    if several || found.changed.count == 1 {
        let one = found.changed.oids().first().copied().filter(|_| !several);
        super::look_at_rows(database, one);
    }
}
