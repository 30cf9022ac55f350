//! `<prefix>.obanrs_queue_signals`, in which the last signals are remembered. `oban_install` makes
//! the table. It is found once by its name, and then used by its oid and through its access methods
//! (`pg::heap`), as `oban_peers` is. So no code of the table's owner runs in the session of a role
//! that sends a signal, and that role needs no right on the table.
//!
//! A table that is not as `oban_install` makes it (`logic::signals::fault`) is not written.

use std::collections::HashMap;

use pgrx::pg_sys;

use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::signals::{self, COLUMNS, Key, Remembered, Writes};
use crate::logic::times::WallTime;
use crate::pg::heap::{Heap, Opened, Place, RowLock, RowLocked, Stored, TableLock, Value};
use crate::pg::tuple::{Column, Tuple};
use crate::pg::{catalog, encoding, session};

/// The name of the table.
pub const TABLE: &str = "obanrs_queue_signals";

/// The longest text that is read, in bytes. What the extension writes is shorter.
const MAX_TEXT: usize = 1_024;

/// The columns of the table.
#[derive(Clone, Copy)]
pub struct Columns {
    name: Column,
    queue: Column,
    node: Column,
    paused: Column,
    queue_limit: Column,
    paused_at: Column,
    limit_at: Column,
}

impl Columns {
    /// Returns the columns that `find` finds. `None`: a column is missing or is of another type.
    pub fn of(find: impl Fn(&str) -> Option<Column>) -> Option<Self> {
        use pg_sys::{BOOLOID, INT4OID, TEXTOID, TIMESTAMPTZOID};
        let typed = |place: usize, wanted| find(COLUMNS[place]).filter(|c| c.type_oid == wanted);
        Some(Self {
            name: typed(0, TEXTOID)?,
            queue: typed(1, TEXTOID)?,
            node: typed(2, TEXTOID)?,
            paused: typed(3, BOOLOID)?,
            queue_limit: typed(4, INT4OID)?,
            paused_at: typed(5, TIMESTAMPTZOID)?,
            limit_at: typed(6, TIMESTAMPTZOID)?,
        })
    }
}

/// Returns what a row remembers. `None`: the row is not of the extension, because a text is NULL or
/// too long.
pub fn remembered(row: &Tuple, columns: &Columns) -> Option<Remembered> {
    let text = |column| row.short_text(column, MAX_TEXT);
    let at = |column| row.i64(column).map(WallTime);
    Some(Remembered {
        key: key_of(text(columns.name)?, text(columns.queue)?, text(columns.node)?),
        paused: row.bool(columns.paused).zip(at(columns.paused_at)),
        limit: row.i32(columns.queue_limit).zip(at(columns.limit_at)),
    })
}

/// Returns the key of a row. The table has an empty node for all nodes, because a primary key has
/// no NULL.
fn key_of(name: String, queue: String, node: String) -> Key {
    Key { name, queue, node: (!node.is_empty()).then_some(node) }
}

/// Why the table of a prefix can't be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no such table.
    Missing,
    /// The table was dropped, renamed or replaced before its lock was taken.
    Replaced,
    /// The table is not as `oban_install` makes it; what distinguishes it, in words.
    Odd(String),
}

/// The table, open and locked, and as `oban_install` makes it. No other transaction writes rows
/// until this one ends.
pub struct SignalsTable<'a> {
    heap: Heap<'a>,
    columns: Columns,
    /// All rows of the extension.
    rows: Vec<Remembered>,
    places: HashMap<Key, Place>,
}

impl SignalsTable<'_> {
    /// Opens the table of a schema, locks it until the end of the transaction, and reads it. Waits for
    /// the lock up to lock_timeout, and then raises 55P03. `Err` says why the table can't be written.
    pub fn open(schema: SchemaOid) -> Result<Self, Unusable> {
        let oid = catalog::relation_now(schema, TABLE).ok_or(Unusable::Missing)?;
        let lock = TableLock::ShareRowExclusive;
        let Opened::Table(heap) = Heap::open(oid, lock, true) else { return Err(Unusable::Replaced) };
        // The lock keeps the table's name and schema as they are.
        if heap.namespace() != schema || !heap.is_named(TABLE) {
            heap.close_and_unlock(lock);
            return Err(Unusable::Replaced);
        }
        let read = |columns| read(&heap, &columns).map(|(rows, places)| (columns, rows, places));
        match judge(&heap).map(|judged| judged.and_then(read)) {
            Some(Ok((columns, rows, places))) => Ok(Self { heap, columns, rows, places }),
            judged => {
                heap.close_and_unlock(lock); // nothing was written, so other sessions need not wait
                Err(judged.and_then(Result::err).map_or(Unusable::Replaced, Unusable::Odd))
            }
        }
    }

    /// The rows of the extension.
    pub fn rows(&self) -> &[Remembered] {
        &self.rows
    }

    /// Writes rows, once. Returns false if a row could not be written, because another transaction has
    /// written to the table in spite of the lock, or a unique index of the owner refuses it.
    pub fn write(self, writes: &Writes) -> bool {
        for key in &writes.delete {
            if let Some(stored) = self.locked(key, RowLock::Update) {
                self.heap.delete(&stored);
            }
        }
        writes.put.iter().all(|row| self.put(row))
    }

    fn put(&self, row: &Remembered) -> bool {
        let columns = &self.columns;
        let paused =
            row.paused.map(|(paused, at)| [(columns.paused, paused.into()), (columns.paused_at, at.0)]);
        let limit =
            row.limit.map(|(limit, at)| [(columns.queue_limit, limit.into()), (columns.limit_at, at.0)]);
        if !self.places.contains_key(&row.key) {
            return self.insert(&row.key, paused, limit);
        }
        let Some(stored) = self.locked(&row.key, RowLock::NoKeyUpdate) else { return false };
        // A row that has a value never loses it, so what is not set stays NULL.
        match (paused, limit) {
            (Some([a, b]), Some([c, d])) => self.heap.update(&stored, [a, b, c, d]),
            (Some(values), None) | (None, Some(values)) => self.heap.update(&stored, values),
            (None, None) => {}
        }
        true
    }

    fn insert(
        &self,
        key: &Key,
        paused: Option<[(Column, i64); 2]>,
        limit: Option<[(Column, i64); 2]>,
    ) -> bool {
        let columns = &self.columns;
        let node = key.node.as_deref().unwrap_or_default();
        let [name, queue, node] = [&key.name, &key.queue, node].map(encoding::to_server);
        let [paused, limit] = [paused, limit].map(|values| {
            values.map_or([Value::Null; 2], |values| values.map(|(_, value)| Value::Int(value)))
        });
        self.heap.insert([
            (columns.name, Value::Text(&name)),
            (columns.queue, Value::Text(&queue)),
            (columns.node, Value::Text(&node)),
            (columns.paused, paused[0]),
            (columns.paused_at, paused[1]),
            (columns.queue_limit, limit[0]),
            (columns.limit_at, limit[1]),
        ])
    }

    /// Returns the row of a key, locked. `None`: there is no such row any more.
    fn locked(&self, key: &Key, strength: RowLock) -> Option<Stored> {
        let mut stored = self.heap.at(*self.places.get(key)?)?;
        let locked = self.heap.lock_row(&mut stored, strength, true);
        (locked == RowLocked::Locked).then_some(stored)
    }
}

/// Returns all rows of the extension, and where they are. `Err` says why the table is not read to its
/// end.
fn read(heap: &Heap<'_>, columns: &Columns) -> Result<(Vec<Remembered>, HashMap<Key, Place>), String> {
    if let Some(odd) = signals::too_large(heap.size()) {
        return Err(odd);
    }
    let (mut rows, mut places, mut all, mut odd) = (Vec::new(), HashMap::new(), 0, None);
    heap.each_alone(|row, place| {
        all += 1;
        odd = signals::too_many(all);
        if let Some(row) = remembered(row, columns) {
            places.insert(row.key.clone(), place);
            rows.push(row);
        }
        odd.is_none()
    });
    odd.map_or(Ok((rows, places)), Err)
}

/// Returns the columns of a table that is as `oban_install` makes it. `Err` says what distinguishes
/// the table. `None`: another transaction holds a lock on an index, and the table was opened without
/// waiting.
fn judge(heap: &Heap<'_>) -> Option<Result<Columns, String>> {
    let Some(columns) = Columns::of(|name| heap.column(name)) else {
        return Some(Err("it lacks a column, or has one of another type".into()));
    };
    let (shape, _) = crate::pg::shape::of(heap)?;
    Some(signals::fault(&shape).map_or(Ok(columns), Err))
}

/// Returns what distinguishes a schema's table from the one that `oban_install` makes, in words.
/// `None`: nothing does, there is no such table, or another transaction has locked it.
pub fn odd(schema: SchemaOid) -> Option<String> {
    let lock = TableLock::AccessShare;
    let Opened::Table(heap) = Heap::open(catalog::relation_now(schema, TABLE)?, lock, false) else {
        return None;
    };
    let judged = judge(&heap);
    let filled = || {
        let (mut all, mut odd) = (0, signals::too_large(heap.size()));
        if odd.is_none() && !(heap.is_unlogged() && session::in_recovery()) {
            heap.each(|_| {
                all += 1;
                odd = signals::too_many(all);
                odd.is_none()
            });
        }
        odd
    };
    let odd = judged.map(|judged| judged.err().or_else(filled));
    heap.close_and_unlock(lock);
    odd?
}

/// Returns whether a schema's table is so large that it is not read for what it remembers. False as
/// well: there is no such table, or another transaction has locked it.
pub fn is_too_large(schema: SchemaOid) -> bool {
    let lock = TableLock::AccessShare;
    let Some(oid) = catalog::relation_now(schema, TABLE) else { return false };
    let Opened::Table(heap) = Heap::open(oid, lock, false) else { return false };
    let too_large = signals::too_large(heap.size()).is_some();
    heap.close_and_unlock(lock);
    too_large
}

/// Returns whether a relation is a table with the columns that `oban_install` makes.
pub fn is_own(table: TableOid) -> bool {
    let typed =
        |names: &[&str], kind| names.iter().all(|name| catalog::plain_column(table, name) == Some(kind));
    catalog::is_table_by_itself(table)
        && typed(&COLUMNS[..3], pg_sys::TEXTOID)
        && typed(&["paused"], pg_sys::BOOLOID)
        && typed(&["queue_limit"], pg_sys::INT4OID)
        && typed(&["paused_at", "limit_at"], pg_sys::TIMESTAMPTZOID)
}
