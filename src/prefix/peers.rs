//! `<prefix>.oban_peers`, the table of leaders. The table is found once by its name. After that it
//! is used by its oid and through its access methods (`pg::heap`), so that no user's code runs in
//! an election, a fence or a trigger.
//!
//! A table is judged under its lock (`logic::shape`) before anything in it is used. A table with an
//! obstacle, such as a check constraint, holds no elections: access methods would ignore the
//! constraint.
//!
//! Only the first bytes of a text are copied, because a foreign node's name may be as long as a
//! gigabyte.

use crate::logic::ids::{SchemaOid, TableOid, Term};
use crate::logic::leadership::{MAX_NODE, Node};
use crate::logic::shape::{self, Obstacle};
use crate::logic::times::WallTime;
use crate::pg::heap::{Conflict, Heap, Opened, RowLock, RowLocked, Stored, TableLock, Value};
use crate::pg::index::KeyIndex;
use crate::pg::tuple::{self, Column, Tuple};
use crate::pg::{catalog, encoding};

/// The name of the table of leaders.
pub const TABLE: &str = "oban_peers";

/// Why a prefix's table of leaders can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no such table, or `oban_install` has not added its columns.
    Missing,
    /// Another transaction holds a lock on the table, or on an index on the table.
    Locked,
    /// The table was dropped, renamed or replaced before its lock was taken.
    Replaced,
    /// The table has something that elections would have to ignore.
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
    /// Returns the columns that `find` finds. `None`: a column is missing or is of another type.
    pub fn of(find: impl Fn(&str) -> Option<Column>) -> Option<Self> {
        use pgrx::pg_sys::{INT8OID, TIMESTAMPOID};
        let text = |name: &str| find(name).filter(|c| tuple::is_name(c.type_oid));
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

/// A row of a table of leaders. Times are microseconds since 2000-01-01 UTC.
#[derive(Clone, Debug)]
pub struct PeerRow {
    /// The whole name, in the server's encoding.
    key: Vec<u8>,
    /// The node, of which at most `MAX_NODE` bytes are kept.
    pub node: Node,
    pub term: Option<Term>,
    pub boot: Option<i64>,
    pub started_at: WallTime,
    pub expires_at: WallTime,
}

/// The longest name that is read, in bytes. A row with a longer name is ignored. Names of members
/// are shorter.
const MAX_NAME_READ: usize = 1_023;

impl PeerRow {
    /// Returns the row's values. `None`: the name is NULL or longer than `MAX_NAME_READ`.
    fn of(row: &Tuple, columns: &Columns) -> Option<Self> {
        if row.text_len(columns.name)? > MAX_NAME_READ {
            return None;
        }
        let node = row.text_prefix(columns.node, MAX_NODE + 1).unwrap_or_default();
        Some(Self {
            key: row.text_prefix(columns.name, MAX_NAME_READ)?,
            node: Node::truncated(&encoding::to_utf8_lossy(whole_characters(&node))),
            term: row.i64(columns.term).map(Term),
            boot: row.i64(columns.boot),
            started_at: WallTime(row.i64(columns.started_at).unwrap_or(0)),
            expires_at: WallTime(row.i64(columns.expires_at).unwrap_or(0)),
        })
    }

    /// Returns the name as UTF-8.
    pub fn name(&self) -> String {
        encoding::to_utf8_lossy(&self.key).into_owned()
    }

    /// Returns whether two readings of a row are of the same leadership and show the same end of
    /// the lease.
    fn is_same(&self, other: &Self) -> bool {
        (&self.key, self.started_at, self.expires_at) == (&other.key, other.started_at, other.expires_at)
    }
}

/// Returns a text without the incomplete character at the end, which a cut may have left there.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => &bytes[..e.valid_up_to()],
        _ => bytes,
    }
}

/// A new row for a member.
pub struct NewRow<'a> {
    pub name: &'a str,
    pub node: &'a str,
    pub started_at: WallTime,
    pub expires_at: WallTime,
    pub term: Term,
    pub boot: i64,
}

/// The result of a change to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    Done,
    /// Another transaction holds the row.
    Held,
    /// The row was deleted or replaced.
    Gone,
}

/// A table of leaders that is open and locked, and has no obstacle.
pub struct PeersTable<'a> {
    heap: Heap<'a>,
    key: KeyIndex,
    columns: Columns,
}

impl PeersTable<'_> {
    /// Opens the table of leaders of a schema and locks it until the end of the transaction. `Err`
    /// says why the table can't be used. With `wait`, waits for the lock up to lock_timeout, and
    /// then raises 55P03. Otherwise a lock of another transaction is `Unusable::Locked`.
    pub fn open(schema: SchemaOid, lock: TableLock, wait: bool) -> Result<Self, Unusable> {
        Self::judged(open_heap(schema, lock, wait)?)
    }

    /// Returns the oid of the table.
    pub fn oid(&self) -> TableOid {
        self.heap.oid()
    }

    /// Returns the row of a name. Sees what is committed now and what this transaction has written.
    /// `None`: there is no such row.
    pub fn find(&self, name: &str) -> Option<FoundRow> {
        let stored = self.heap.find(&self.key, &encoding::to_server(name))?;
        Some(FoundRow { row: PeerRow::of(&stored.row(), &self.columns)?, stored })
    }

    /// Returns whether the transaction's own snapshot shows a row of this name and term.
    pub fn is_in_own_snapshot(&self, name: &str, term: Term) -> bool {
        let found = self.heap.find_in_own_snapshot(&self.key, &encoding::to_server(name));
        found.is_some_and(|stored| stored.row().i64(self.columns.term) == Some(term.0))
    }

    /// Returns the `most` rows that expire first, in the order of `expires_at`.
    pub fn earliest(&self, most: usize) -> Vec<PeerRow> {
        let mut rows: Vec<PeerRow> = Vec::new();
        self.heap.each(|row| {
            if let Some(row) = PeerRow::of(row, &self.columns) {
                rows.push(row);
                // The rows are sorted once for every `most` rows that are read.
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

    /// Locks a row and returns its newest version. `Err` is `Held` or `Gone`.
    fn lock(&self, found: &mut FoundRow, strength: RowLock, wait: bool) -> Result<PeerRow, WriteResult> {
        match self.heap.lock_row(&mut found.stored, strength, wait) {
            RowLocked::Locked => PeerRow::of(&found.stored.row(), &self.columns).ok_or(WriteResult::Gone),
            RowLocked::Held => Err(WriteResult::Held),
            RowLocked::Gone => Err(WriteResult::Gone),
        }
    }

    /// Locks the row of a name and a term against deletion until the transaction ends, and returns
    /// the newest version of the row. Waits for another transaction that is deleting the row.
    /// `None`: there is no such row.
    pub fn fence(&self, name: &str, term: Term) -> Option<PeerRow> {
        let mut found = self.find(name).filter(|found| found.row.term == Some(term))?;
        let key = found.row.key.clone();
        let row = self.lock(&mut found, RowLock::KeyShare, true).ok()?;
        (row.term == Some(term) && row.key == key).then_some(row)
    }

    /// Deletes a row if it is still of the leadership that was read.
    pub fn delete(&self, row: &PeerRow) -> WriteResult {
        self.delete_if(&row.key, |locked| locked.is_same(row))
    }

    /// Deletes the row of a name if it has this node and this term.
    pub fn delete_term(&self, name: &str, node: &str, term: Term) -> WriteResult {
        let key = encoding::to_server(name);
        self.delete_if(&key, |row| row.node.as_str() == node && row.term == Some(term))
    }

    fn delete_if(&self, key: &[u8], is_it: impl Fn(&PeerRow) -> bool) -> WriteResult {
        let Some(mut found) = self.find_by_key(key).filter(|found| is_it(&found.row)) else {
            return WriteResult::Gone;
        };
        match self.lock(&mut found, RowLock::Update, false) {
            Ok(row) if row.key == key && is_it(&row) => {
                self.heap.delete(&found.stored);
                WriteResult::Done
            }
            Ok(_) => WriteResult::Gone,
            Err(change) => change,
        }
    }

    fn find_by_key(&self, key: &[u8]) -> Option<FoundRow> {
        let stored = self.heap.find(&self.key, key)?;
        Some(FoundRow { row: PeerRow::of(&stored.row(), &self.columns)?, stored })
    }

    /// Extends the lease in the row of a name if the row has this node and this term. Returns when
    /// the leadership began. `Err` is `Held` or `Gone`. A fence on the row does not delay the
    /// renewal.
    pub fn renew(
        &self,
        name: &str,
        node: &str,
        term: Term,
        expires_at: WallTime,
    ) -> Result<WallTime, WriteResult> {
        let mut found = self.find(name).ok_or(WriteResult::Gone)?;
        let row = self.lock(&mut found, RowLock::NoKeyUpdate, false)?;
        if row.key != *encoding::to_server(name) || row.node.as_str() != node || row.term != Some(term) {
            return Err(WriteResult::Gone);
        }
        self.heap.update(&found.stored, [(self.columns.expires_at, expires_at.0)]);
        Ok(row.started_at)
    }

    /// Inserts a row. Returns `Gone` and inserts nothing if the name has a row: the caller looks
    /// again. Returns `Held` and inserts nothing if another transaction is writing a row of the
    /// name. Does not wait for that transaction.
    pub fn insert(&self, new: &NewRow<'_>) -> WriteResult {
        let (name, node) = (encoding::to_server(new.name), encoding::to_server(new.node));
        match self.heap.conflict(&self.key, &name) {
            Conflict::None => {}
            Conflict::Row => return WriteResult::Gone,
            Conflict::InProgress => return WriteResult::Held,
        }
        let columns = &self.columns;
        let inserted = self.heap.insert([
            (columns.name, Value::Text(&name)),
            (columns.node, Value::Text(&node)),
            (columns.started_at, Value::Int(new.started_at.0)),
            (columns.expires_at, Value::Int(new.expires_at.0)),
            (columns.term, Value::Int(new.term.0)),
            (columns.boot, Value::Int(new.boot)),
        ]);
        if inserted { WriteResult::Done } else { WriteResult::Held }
    }

    /// Replaces the term in the row of a name by `new` if the row has the term `term`. Returns
    /// false if there is no such row, or if another transaction holds the row.
    pub fn set_term(&self, name: &[u8], term: Term, new: Term) -> bool {
        let Some(mut found) = self.find_by_key(name) else { return false };
        match self.lock(&mut found, RowLock::NoKeyUpdate, false) {
            Ok(row) if row.key == name && row.term == Some(term) => {
                self.heap.update(&found.stored, [(self.columns.term, new.0)]);
                true
            }
            _ => false,
        }
    }

    /// Returns whether the table has the trigger that tells the keeper of changes, and the trigger
    /// is enabled.
    pub fn is_guarded(&self) -> bool {
        let function = super::extension::peers_function();
        function.is_some_and(|function| self.heap.has_enabled_trigger(TELLS, function))
    }
}

impl<'a> PeersTable<'a> {
    fn judged(heap: Heap<'a>) -> Result<Self, Unusable> {
        let (key, columns) = judge(&heap)?;
        Ok(Self { heap, key, columns })
    }

    /// Returns the table that fired a trigger of the extension. `Err` says why the trigger must not
    /// write the table's rows.
    pub fn of_trigger(trigger: &'a crate::pg::row_trigger::RowTrigger<'a>) -> Result<Self, Unusable> {
        Self::judged(trigger.heap())
    }
}

/// A row, and where the row is stored in the table.
pub struct FoundRow {
    pub row: PeerRow,
    stored: Stored,
}

/// The name of the trigger that tells the keeper of changes.
const TELLS: &str = "obanrs_peers_rows";

/// What the catalogs say of a table of leaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableState {
    /// The table has the columns that `oban_install` adds.
    pub installed: bool,
    /// The table's trigger tells the keeper of changes.
    pub tells: bool,
}

/// Returns the state of a table of leaders, as committed now and as this transaction has changed it.
pub fn state_of(table: TableOid) -> TableState {
    let installed = catalog::has_columns(table, &["term", "boot"], pgrx::pg_sys::INT8OID);
    let function = super::extension::peers_function();
    let tells = function.is_some_and(|function| catalog::has_enabled_trigger(table, TELLS, function));
    TableState { installed, tells }
}

/// Returns whether a schema's table of leaders can be used. `Err` says why the table can't be used.
/// Waits for no lock, and releases the table's lock at the end.
pub fn inspect(schema: SchemaOid) -> Result<(), Unusable> {
    let heap = open_heap(schema, TableLock::AccessShare, false)?;
    let judged = judge(&heap);
    heap.close_and_unlock(TableLock::AccessShare);
    judged.map(|_| ())
}

/// Opens and locks the table of leaders of a schema. The table's name is looked up here and nowhere
/// else. All later work uses the table that was locked, even if it is renamed.
fn open_heap<'a>(schema: SchemaOid, lock: TableLock, wait: bool) -> Result<Heap<'a>, Unusable> {
    let oid = catalog::relation_now(schema, TABLE).ok_or(Unusable::Missing)?;
    let heap = match Heap::open(oid, lock, wait) {
        Opened::Table(heap) => heap,
        Opened::Locked => return Err(Unusable::Locked),
        Opened::Gone => return Err(Unusable::Replaced),
    };
    // The lock keeps the table's name and schema as they are.
    if heap.namespace() == schema && heap.is_named(TABLE) {
        Ok(heap)
    } else {
        heap.close_and_unlock(lock); // the lock would delay DDL on a table that is no table of leaders
        Err(Unusable::Replaced)
    }
}

/// Returns the index by which rows are found, and the columns. `Err` says why elections can't write
/// the table.
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
