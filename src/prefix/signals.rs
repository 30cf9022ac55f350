//! `<prefix>.obanrs_queue_signals`, in which the last signals are remembered. `oban_install` makes
//! the table. It is found once by its name, and then used by its oid and through its access methods
//! (`pg::heap`), as `oban_peers` is. So no code of the table's owner runs in the session of a role
//! that sends a signal, and that role needs no right on the table.
//!
//! A table that is not as `oban_install` makes it (`logic::signals::fault`) is not written.

use pgrx::pg_sys;

use crate::logic::ids::{SchemaOid, TableOid};
use crate::logic::signals::{self, COLUMNS, Key, Remembered, Writes};
use crate::logic::times::WallTime;
use crate::pg::heap::{Heap, Opened, RowLock, RowLocked, Stored, TableLock, Value};
use crate::pg::tuple::{Column, Tuple};
use crate::pg::{catalog, encoding};

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
}

impl SignalsTable<'_> {
    /// Opens the table of a schema, and locks it until the end of the transaction. Waits for the
    /// lock up to lock_timeout, and then raises 55P03. `Err` says why the table can't be written.
    pub fn open(schema: SchemaOid) -> Result<Self, Unusable> {
        let oid = catalog::relation_now(schema, TABLE).ok_or(Unusable::Missing)?;
        let lock = TableLock::ShareRowExclusive;
        let Opened::Table(heap) = Heap::open(oid, lock, true) else { return Err(Unusable::Replaced) };
        // The lock keeps the table's name and schema as they are.
        if heap.namespace() != schema || !heap.is_named(TABLE) {
            heap.close_and_unlock(lock);
            return Err(Unusable::Replaced);
        }
        match judge(&heap) {
            Some(Ok(columns)) => Ok(Self { heap, columns }),
            judged => {
                heap.close_and_unlock(lock); // nothing was written, so other sessions need not wait
                Err(judged.and_then(Result::err).map_or(Unusable::Replaced, Unusable::Odd))
            }
        }
    }

    /// Returns all rows of the extension.
    pub fn rows(&self) -> Vec<Remembered> {
        let mut rows = Vec::new();
        self.heap.each(|row| {
            rows.extend(remembered(row, &self.columns));
            // Only the table's owner can have put more rows there.
            rows.len() < 2 * signals::MAX_ROWS
        });
        rows
    }

    /// Writes rows. Returns false if a row could not be written, because another transaction has
    /// written to the table in spite of the lock, or a unique index of the owner refuses it.
    pub fn write(&self, writes: &Writes) -> bool {
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
        let is_new = self.find(&row.key).is_none();
        if is_new {
            return self.insert(&row.key, paused, limit);
        }
        // A row that has a value never loses it, so what is not set stays NULL.
        [paused, limit].into_iter().flatten().all(|values| {
            let stored = self.locked(&row.key, RowLock::NoKeyUpdate);
            stored.is_some_and(|stored| {
                self.heap.update(&stored, values);
                true
            })
        })
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

    fn find(&self, key: &Key) -> Option<Stored> {
        self.heap.find_any(|row| remembered(row, &self.columns).is_some_and(|row| row.key == *key))
    }

    /// Returns the row of a key, locked. `None`: there is no such row any more.
    fn locked(&self, key: &Key, strength: RowLock) -> Option<Stored> {
        let mut stored = self.find(key)?;
        let locked = self.heap.lock_row(&mut stored, strength, true);
        (locked == RowLocked::Locked).then_some(stored)
    }
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
    heap.close_and_unlock(lock);
    judged?.err()
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
