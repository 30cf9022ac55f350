//! `<prefix>.oban_peers`, the table of leaders: found once by its name, then used by its oid and through its access
//! methods (`pg::heap`), so that no code of anybody's runs in an election, a fence or a trigger.
//!
//! A table is judged under its lock (`logic::shape`) before anything of it is used. One that has what access methods
//! do not honour, such as a check constraint, holds no elections.
//!
//! No column of text is copied beyond its first bytes: a foreign node's name may be as long as a gigabyte.

use crate::logic::peer::{MAX_NODE, Node};
use crate::logic::shape::{self, Obstacle};
use crate::pg::heap::{Conflict, Heap, KeyIndex, Opened, RowLock, RowLocked, Stored, TableLock, Value};
use crate::pg::row::{self, Column, Row};
use crate::pg::{catalog, encoding, session};

pub const TABLE: &str = "oban_peers";

/// Why a prefix's table can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is none, or `oban_install` has not added its columns.
    Missing,
    /// Another transaction holds a lock on it, or on an index of it.
    Locked,
    /// It was another one by the time of its lock.
    Replaced,
    /// It has what elections would have to ignore.
    Obstacles(Vec<Obstacle>),
}

/// The columns of a table of leaders.
#[derive(Clone, Copy)]
pub struct Columns {
    pub name: Column,
    pub node: Column,
    pub started_at: Column,
    pub expires_at: Column,
    pub term: Column,
    pub boot: Column,
}

impl Columns {
    /// `None` when one is missing, or of another type.
    pub fn of(find: impl Fn(&str) -> Option<Column>) -> Option<Self> {
        use pgrx::pg_sys::{INT8OID, TIMESTAMPOID};
        let text = |name: &str| find(name).filter(|c| row::is_name(c.type_oid));
        let typed = |name: &str, wanted| find(name).filter(|c| c.type_oid == wanted);
        Some(Self {
            name: text("name")?,
            node: text("node")?,
            started_at: typed("started_at", TIMESTAMPOID)?,
            expires_at: typed("expires_at", TIMESTAMPOID)?,
            term: typed("term", INT8OID)?,
            boot: typed("boot", INT8OID)?,
        })
    }
}

/// One row. Times are microseconds since 2000-01-01 UTC.
#[derive(Clone, Debug)]
pub struct PeerRow {
    /// In the server's encoding, whole: a longer name than `MAX_NAME_READ` is not read at all.
    key: Vec<u8>,
    /// As much of the node as a member's could have, or more: one that is longer is no member's.
    pub node: Node,
    pub term: Option<i64>,
    pub boot: Option<i64>,
    pub started_at: i64,
    pub expires_at: i64,
}

/// The longest name that is read, in bytes. Those of members are shorter.
const MAX_NAME_READ: usize = 1_023;

impl PeerRow {
    fn of(row: &Row, columns: &Columns) -> Option<Self> {
        if row.text_len(columns.name)? > MAX_NAME_READ {
            return None;
        }
        let node = row.text_prefix(columns.node, MAX_NODE + 1).unwrap_or_default();
        Some(Self {
            key: row.text_prefix(columns.name, MAX_NAME_READ)?,
            node: Node::truncated(&encoding::to_utf8_lossy(whole_characters(&node))),
            term: row.i64(columns.term),
            boot: row.i64(columns.boot),
            started_at: row.i64(columns.started_at).unwrap_or(0),
            expires_at: row.i64(columns.expires_at).unwrap_or(0),
        })
    }

    /// As UTF-8.
    pub fn name(&self) -> String {
        encoding::to_utf8_lossy(&self.key).into_owned()
    }

    /// Whether two readings are of one leadership, with one end of its lease.
    fn is_same(&self, other: &Self) -> bool {
        (&self.key, self.started_at, self.expires_at) == (&other.key, other.started_at, other.expires_at)
    }
}

/// A text that was cut between bytes, without the character that was cut.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => &bytes[..e.valid_up_to()],
        _ => bytes,
    }
}

/// A new row of a member.
pub struct NewRow<'a> {
    pub name: &'a str,
    pub node: &'a str,
    pub started_at: i64,
    pub expires_at: i64,
    pub term: i64,
    pub boot: i64,
}

/// What became of a row that was to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Done,
    /// Another transaction holds it.
    Held,
    /// It is another one by now, or none.
    Gone,
}

/// A table of leaders, open, locked and judged.
pub struct PeersTable<'a> {
    heap: Heap<'a>,
    key: KeyIndex,
    columns: Columns,
}

impl PeersTable<'_> {
    /// The table of a prefix, locked until the end of the transaction. With `wait` it waits for the lock, up to
    /// lock_timeout (55P03).
    pub fn open(prefix: &str, lock: TableLock, wait: bool) -> Result<Self, Unusable> {
        Self::judged(open_heap(prefix, lock, wait)?)
    }

    /// The row of a name, as it is committed now or as this transaction has written it.
    pub fn find(&self, name: &str) -> Option<FoundRow> {
        let stored = self.heap.find(&self.key, &encoding::to_server(name))?;
        Some(FoundRow { row: PeerRow::of(&stored.row(), &self.columns)?, stored })
    }

    /// Whether the transaction's own snapshot shows a row of this name and term.
    pub fn is_in_own_snapshot(&self, name: &str, term: i64) -> bool {
        let found = self.heap.find_in_own_snapshot(&self.key, &encoding::to_server(name));
        found.is_some_and(|stored| stored.row().i64(self.columns.term) == Some(term))
    }

    /// The rows that expire first, at most `most` of them, in the order of their ends.
    pub fn earliest(&self, most: usize) -> Vec<PeerRow> {
        let mut rows: Vec<PeerRow> = Vec::new();
        self.heap.each(|row| {
            if let Some(row) = PeerRow::of(row, &self.columns) {
                rows.push(row);
                // Sorting is amortised over as many rows as are kept.
                if rows.len() >= 2 * most {
                    rows.sort_by_key(|row| row.expires_at);
                    rows.truncate(most);
                }
            }
            true
        });
        rows.sort_by_key(|row| row.expires_at);
        rows.truncate(most);
        rows
    }

    /// Locks a row, and gives its newest version. `Err` says why there is none.
    fn lock(&self, found: &mut FoundRow, strength: RowLock, wait: bool) -> Result<PeerRow, Change> {
        match self.heap.lock_row(&mut found.stored, strength, wait) {
            RowLocked::Locked => PeerRow::of(&found.stored.row(), &self.columns).ok_or(Change::Gone),
            RowLocked::Held => Err(Change::Held),
            RowLocked::Gone => Err(Change::Gone),
        }
    }

    /// Locks the row of a name and a term against deletion until the transaction ends, waiting for a transaction that
    /// is deleting it. Its newest version; `None` without such a row.
    pub fn fence(&self, name: &str, term: i64) -> Option<PeerRow> {
        let mut found = self.find(name).filter(|found| found.row.term == Some(term))?;
        let key = found.row.key.clone();
        let row = self.lock(&mut found, RowLock::KeyShare, true).ok()?;
        (row.term == Some(term) && row.key == key).then_some(row)
    }

    /// Deletes a row if it is still the one that was found.
    pub fn delete(&self, row: &PeerRow) -> Change {
        self.delete_if(&row.key, |locked| locked.is_same(row))
    }

    /// Deletes the row of a holder and its term.
    pub fn delete_term(&self, name: &str, node: &str, term: i64) -> Change {
        let key = encoding::to_server(name);
        self.delete_if(&key, |row| row.node.as_str() == node && row.term == Some(term))
    }

    fn delete_if(&self, key: &[u8], is_it: impl Fn(&PeerRow) -> bool) -> Change {
        let Some(mut found) = self.find_by_key(key).filter(|found| is_it(&found.row)) else {
            return Change::Gone;
        };
        match self.lock(&mut found, RowLock::Update, false) {
            Ok(row) if row.key == key && is_it(&row) => {
                self.heap.delete(&found.stored);
                Change::Done
            }
            Ok(_) => Change::Gone,
            Err(change) => change,
        }
    }

    fn find_by_key(&self, key: &[u8]) -> Option<FoundRow> {
        let stored = self.heap.find(&self.key, key)?;
        Some(FoundRow { row: PeerRow::of(&stored.row(), &self.columns)?, stored })
    }

    /// Extends the lease of a holder's row of this term, and of no other; when the leadership began. `Err` says why
    /// it was not extended. A fence does not stand in the way.
    pub fn renew(&self, name: &str, node: &str, term: i64, expires_at: i64) -> Result<i64, Change> {
        let mut found = self.find(name).ok_or(Change::Gone)?;
        let row = self.lock(&mut found, RowLock::NoKeyUpdate, false)?;
        if row.key != *encoding::to_server(name) || row.node.as_str() != node || row.term != Some(term) {
            return Err(Change::Gone);
        }
        self.heap.update(&found.stored, [(self.columns.expires_at, expires_at)]);
        Ok(row.started_at)
    }

    /// Inserts a row, unless one of that name is there (`Gone`: the caller looks again) or is being written by another
    /// transaction (`Held`). It waits for nobody.
    pub fn insert(&self, new: &NewRow<'_>) -> Change {
        let (name, node) = (encoding::to_server(new.name), encoding::to_server(new.node));
        match self.heap.conflict(&self.key, &name) {
            Conflict::None => {}
            Conflict::Row => return Change::Gone,
            Conflict::InProgress => return Change::Held,
        }
        let columns = &self.columns;
        let inserted = self.heap.insert([
            (columns.name, Value::Text(&name)),
            (columns.node, Value::Text(&node)),
            (columns.started_at, Value::Int(new.started_at)),
            (columns.expires_at, Value::Int(new.expires_at)),
            (columns.term, Value::Int(new.term)),
            (columns.boot, Value::Int(new.boot)),
        ]);
        if inserted { Change::Done } else { Change::Held }
    }

    /// Gives the row of a name and a term another term; false when there is no such row.
    pub fn set_term(&self, name: &[u8], term: i64, new: i64) -> bool {
        let Some(mut found) = self.find_by_key(name) else { return false };
        match self.lock(&mut found, RowLock::NoKeyUpdate, false) {
            Ok(row) if row.key == name && row.term == Some(term) => {
                self.heap.update(&found.stored, [(self.columns.term, new)]);
                true
            }
            _ => false,
        }
    }

    /// Whether the trigger that tells of changes is on this table, and on.
    pub fn is_guarded(&self) -> bool {
        let function = super::extension::peers_function();
        function.is_some_and(|function| self.heap.has_enabled_trigger("obanrs_peers_rows", function))
    }
}

impl<'a> PeersTable<'a> {
    fn judged(heap: Heap<'a>) -> Result<Self, Unusable> {
        let (key, columns) = judge(&heap)?;
        Ok(Self { heap, key, columns })
    }

    /// The table that fired a trigger of the extension's; `Err` says why its rows can't be written.
    pub fn of_trigger(trigger: &'a crate::pg::row_trigger::RowTrigger<'a>) -> Result<Self, Unusable> {
        Self::judged(trigger.heap())
    }
}

/// A row, and where it is.
pub struct FoundRow {
    pub row: PeerRow,
    stored: Stored,
}

/// What ALTER DATABASE says now of default_transaction_read_only, `None` if nothing.
pub fn database_read_only() -> Option<bool> {
    let value = catalog::setting_of_database(session::database(), "default_transaction_read_only")?;
    // As Postgres reads a boolean: any beginning of these words, "of" for "off".
    let value = value.to_ascii_lowercase();
    let is = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    Some(!(is("false", 1) || is("no", 1) || is("off", 2) || value == "0"))
}

/// The schemas with a table of leaders, of whatever shape, in the order of their names.
pub fn schemas() -> Vec<String> {
    let tables = catalog::tables_named(TABLE);
    let mut names: Vec<_> =
        tables.into_iter().filter_map(|(_, schema)| catalog::namespace_name(schema)).collect();
    names.sort();
    names
}

/// The schemas that `oban_install` made prefixes of, by the columns that it adds to the table of leaders.
pub fn installed_prefixes() -> Vec<String> {
    let installed =
        |(table, _): &(u32, u32)| catalog::has_columns(*table, &["term", "boot"], pgrx::pg_sys::INT8OID);
    let tables = catalog::tables_named(TABLE).into_iter().filter(installed);
    tables.filter_map(|(_, schema)| catalog::namespace_name(schema)).collect()
}

/// Whether a prefix's table of leaders can be used, and why not. Holds a lock on it no longer than it looks, and waits
/// for none.
pub fn inspect(prefix: &str) -> Result<(), Unusable> {
    let heap = open_heap(prefix, TableLock::AccessShare, false)?;
    let judged = judge(&heap);
    heap.close_and_unlock(TableLock::AccessShare);
    judged.map(|_| ())
}

/// Names are resolved here, and nowhere else. Whatever they mean later, the table is the one that was locked.
fn open_heap<'a>(prefix: &str, lock: TableLock, wait: bool) -> Result<Heap<'a>, Unusable> {
    let schema = catalog::namespace_now(prefix).ok_or(Unusable::Missing)?;
    let oid = catalog::relation_now(schema, TABLE).ok_or(Unusable::Missing)?;
    let heap = match Heap::open(oid, lock, wait) {
        Opened::Table(heap) => heap,
        Opened::Locked => return Err(Unusable::Locked),
        Opened::Gone => return Err(Unusable::Replaced),
    };
    // From here on the table keeps its name and its schema. The schema's name was the prefix a moment ago.
    if heap.namespace() == schema && heap.is_named(TABLE) && catalog::namespace_now(prefix) == Some(schema) {
        Ok(heap)
    } else {
        Err(Unusable::Replaced)
    }
}

/// What rows are found by, and the columns, of a table that elections can write as it is.
fn judge(heap: &Heap<'_>) -> Result<(KeyIndex, Columns), Unusable> {
    if heap.column("term").is_none() || heap.column("boot").is_none() {
        return Err(Unusable::Missing);
    }
    let (shape, key) = crate::pg::shape::of(heap).ok_or(Unusable::Locked)?;
    let obstacles = shape::obstacles(&shape, &catalog::qualified_name(heap.oid()).unwrap_or_default());
    if !obstacles.is_empty() {
        return Err(Unusable::Obstacles(obstacles));
    }
    key.zip(Columns::of(|name| heap.column(name))).ok_or(Unusable::Missing)
}
