//! DDL on a table by its oid. The DDL alters the table that was locked and tested, even if names
//! have changed since.
//!
//! This DDL fires no event trigger by itself. Inside another command, such as CREATE TABLE ... AS
//! SELECT, the event triggers of that command see this DDL as a part of the command.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::expression::Expression;
use crate::logic::ids::TableOid;

/// When a trigger fires, relative to the event.
pub enum Timing {
    Before,
    After,
}

/// A command that fires a trigger.
#[derive(Clone, Copy)]
pub enum Event {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// In which sessions a trigger fires, as `pg_trigger.tgenabled` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fires {
    /// Not where changes are replicated (session_replication_role = replica).
    Origin,
    /// In all sessions.
    Always,
    /// Only where changes are replicated.
    Replica,
    /// In no session: the trigger is disabled.
    Never,
}

impl Fires {
    /// Returns the value of a `tgenabled`.
    pub fn of(enabled: u8) -> Self {
        match enabled {
            pg_sys::TRIGGER_FIRES_ALWAYS => Self::Always,
            pg_sys::TRIGGER_FIRES_ON_REPLICA => Self::Replica,
            pg_sys::TRIGGER_DISABLED => Self::Never,
            _ => Self::Origin,
        }
    }

    fn enabled(self) -> u8 {
        match self {
            Self::Origin => pg_sys::TRIGGER_FIRES_ON_ORIGIN,
            Self::Always => pg_sys::TRIGGER_FIRES_ALWAYS,
            Self::Replica => pg_sys::TRIGGER_FIRES_ON_REPLICA,
            Self::Never => pg_sys::TRIGGER_DISABLED,
        }
    }
}

/// A trigger without a list of columns.
pub struct Trigger<'a> {
    pub name: &'a CStr,
    pub timing: Timing,
    pub events: &'a [Event],
    pub for_each_row: bool,
}

/// What may differ between two triggers that are otherwise the same.
pub struct Options<'a> {
    pub fires: Fires,
    /// The arguments that the trigger's function finds in each call.
    pub arguments: &'a [&'a CStr],
    /// The condition under which the trigger fires for a row (WHEN). `None`: it always fires. Names
    /// in the condition mean what the current search_path says.
    pub condition: Option<Expression>,
    /// The partitions on which the trigger fires in other sessions than on the table itself.
    pub on_partitions: &'a [(TableOid, Fires)],
    /// Whether a trigger of the same name on the table, or on a partition, is replaced. False: it
    /// is an ERROR (42710).
    pub replaces: bool,
}

impl Options<'_> {
    /// A trigger without arguments that fires where changes are made.
    pub const ORDINARY: Options<'static> =
        Options { fires: Fires::Origin, arguments: &[], condition: None, on_partitions: &[], replaces: true };
}

/// Adds columns of type bigint that may be NULL and have no default, so that ALTER TABLE reads and
/// writes no row. The caller has locked and tested the table. The function takes the table's ACCESS
/// EXCLUSIVE lock.
pub fn add_bigints(table: TableOid, names: &[&CStr]) {
    alter(table, pg_sys::AccessExclusiveLock, names, |command, name| {
        // SAFETY: `command` is a node that `alter` has just made, and the name is copied.
        unsafe {
            let column = pg_sys::makeColumnDef(name.as_ptr(), pg_sys::INT8OID, -1, pg_sys::InvalidOid);
            (*command).subtype = pg_sys::AlterTableType::AT_AddColumn;
            (*command).def = column.cast();
        }
    });
}

/// Drops columns, with the indexes and constraints on them. Raises an ERROR if another object
/// depends on a column. The caller has locked and tested the table.
pub fn drop_columns(table: TableOid, names: &[&CStr]) {
    alter(table, pg_sys::AccessExclusiveLock, names, |command, name| {
        // SAFETY: `command` is a node that `alter` has just made, and the name is copied.
        unsafe {
            (*command).subtype = pg_sys::AlterTableType::AT_DropColumn;
            (*command).name = pg_sys::pstrdup(name.as_ptr());
            (*command).behavior = pg_sys::DropBehavior::DROP_RESTRICT;
        }
    });
}

/// Sets in which sessions a trigger of a table fires, as ALTER TABLE ONLY ... ENABLE TRIGGER does.
/// Does so with the rights of the table's owner: the owner of a partitioned table need not own the
/// partitions, and gives them triggers all the same. The caller has locked the table.
fn set_fires(table: TableOid, trigger: &CStr, fires: Fires) {
    let subtype = match fires {
        Fires::Origin => pg_sys::AlterTableType::AT_EnableTrig,
        Fires::Always => pg_sys::AlterTableType::AT_EnableAlwaysTrig,
        Fires::Replica => pg_sys::AlterTableType::AT_EnableReplicaTrig,
        Fires::Never => pg_sys::AlterTableType::AT_DisableTrig,
    };
    let Some(owner) = super::catalog::owner(table) else { return };
    super::session::as_role(owner, || {
        alter(table, pg_sys::ShareRowExclusiveLock, &[trigger], |command, name| {
            // SAFETY: `command` is a node that `alter` has just made, and the name is copied.
            unsafe {
                (*command).subtype = subtype;
                (*command).name = pg_sys::pstrdup(name.as_ptr());
            }
        });
    });
}

/// Runs ALTER TABLE ONLY with one subcommand for each of these columns or triggers, in a lock that
/// is strong enough for it.
fn alter(table: TableOid, lock: u32, names: &[&CStr], fill: impl Fn(*mut pg_sys::AlterTableCmd, &CStr)) {
    let oid = pg_sys::Oid::from(table);
    // SAFETY: the nodes are of Postgres' own kinds, and live in the current memory context as long
    // as the call. Where event triggers collect commands, AlterTableInternal needs the calls of
    // EventTriggerAlterTableStart and EventTriggerAlterTableEnd around it. Elsewhere these two
    // calls do nothing. After an ERROR the abort of the (sub)transaction cleans up.
    unsafe {
        let mut commands = std::ptr::null_mut();
        for name in names {
            let command = node::<pg_sys::AlterTableCmd>(pg_sys::NodeTag::T_AlterTableCmd);
            fill(command, name);
            commands = pg_sys::lappend(commands, command.cast());
        }
        let relation = pg_sys::relation_open(oid, lock as i32);
        // To change a trigger, like to create one, does no harm to a query that uses the table.
        if lock == pg_sys::AccessExclusiveLock {
            pg_sys::CheckTableNotInUse(relation, c"ALTER TABLE".as_ptr());
        }
        let statement = node::<pg_sys::AlterTableStmt>(pg_sys::NodeTag::T_AlterTableStmt);
        (*statement).relation = name_of(relation);
        (*statement).cmds = commands;
        (*statement).objtype = pg_sys::ObjectType::OBJECT_TABLE;
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        pg_sys::EventTriggerAlterTableStart(statement.cast());
        pg_sys::AlterTableInternal(oid, commands, false);
        pg_sys::EventTriggerAlterTableEnd();
        pg_sys::CommandCounterIncrement();
    }
}

/// Runs CREATE OR REPLACE TRIGGER. The current role needs the rights TRIGGER on the table and
/// EXECUTE on the function. The caller has locked and tested the table. On a partitioned table a
/// row trigger goes to each partition as well, in place of a partition's own trigger of that name.
/// For that, the function locks the partitions one after the other (SHARE ROW EXCLUSIVE).
pub fn create_trigger(table: TableOid, function: u32, trigger: &Trigger<'_>, options: &Options<'_>) {
    let (table, function) = (pg_sys::Oid::from(table), pg_sys::Oid::from(function));
    let none = pg_sys::InvalidOid;
    // SAFETY: the nodes are of Postgres' own kinds, and live in the current memory context as long
    // as the call. After an ERROR the abort of the (sub)transaction cleans up.
    unsafe {
        let statement = node::<pg_sys::CreateTrigStmt>(pg_sys::NodeTag::T_CreateTrigStmt);
        (*statement).replace = options.replaces;
        (*statement).trigname = pg_sys::pstrdup(trigger.name.as_ptr());
        (*statement).row = trigger.for_each_row;
        (*statement).timing = trigger.timing.bits();
        (*statement).events = trigger.events.iter().fold(0, |all, event| all | event.bits());
        for argument in options.arguments {
            let copy = pg_sys::makeString(pg_sys::pstrdup(argument.as_ptr()));
            (*statement).args = pg_sys::lappend((*statement).args, copy.cast());
        }
        let relation = pg_sys::relation_open(table, pg_sys::ShareRowExclusiveLock as i32);
        (*statement).relation = name_of(relation);
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        let text = c"".as_ptr();
        // Postgres alters the tree while it analyzes the condition.
        (*statement).whenClause = options.condition.map_or(std::ptr::null_mut(), |condition| {
            pg_sys::copyObjectImpl(condition.node().cast_const().cast()).cast()
        });
        let condition = std::ptr::null_mut();
        let fires = options.fires.enabled() as std::ffi::c_char;
        let made = pg_sys::CreateTriggerFiringOn(
            statement, text, table, none, none, none, function, none, condition, false, false, fires,
        );
        pg_sys::EventTriggerCollectSimpleCommand(made, pg_sys::InvalidObjectAddress, statement.cast());
        pg_sys::CommandCounterIncrement();
    }
    // Here the trigger fires on each partition as on the table.
    options.on_partitions.iter().for_each(|(partition, fires)| set_fires(*partition, trigger.name, *fires));
}

/// Runs DROP TRIGGER for a trigger by its oid. The caller has locked and tested the trigger's
/// table.
pub fn drop_trigger(trigger: u32) {
    let address = pg_sys::ObjectAddress {
        classId: pg_sys::TriggerRelationId,
        objectId: pg_sys::Oid::from(trigger),
        objectSubId: 0,
    };
    // SAFETY: the address lives as long as the call.
    unsafe { pg_sys::performDeletion(&raw const address, pg_sys::DropBehavior::DROP_RESTRICT, 0) }
}

/// Runs DROP TABLE for a table by its oid. Raises 2BP01 if another object depends on the table. The
/// caller has locked and tested the table.
pub fn drop_table(table: TableOid) {
    let address = pg_sys::ObjectAddress {
        classId: pg_sys::RelationRelationId,
        objectId: pg_sys::Oid::from(table),
        objectSubId: 0,
    };
    // SAFETY: the address lives as long as the call.
    unsafe { pg_sys::performDeletion(&raw const address, pg_sys::DropBehavior::DROP_RESTRICT, 0) }
}

/// Runs DROP INDEX for an index by its oid. The caller has locked and tested the index's table. The
/// function takes the table's ACCESS EXCLUSIVE lock.
pub fn drop_index(index: u32) {
    let address = pg_sys::ObjectAddress {
        classId: pg_sys::RelationRelationId,
        objectId: pg_sys::Oid::from(index),
        objectSubId: 0,
    };
    // SAFETY: the address lives as long as the call.
    unsafe { pg_sys::performDeletion(&raw const address, pg_sys::DropBehavior::DROP_RESTRICT, 0) }
}

/// Gives a table to the owner of another table, if the current role is a superuser. The caller has
/// made the table in this transaction.
pub fn give_to_owner_of(table: TableOid, other: TableOid) {
    let owners = (super::catalog::owner(table), super::catalog::owner(other));
    let (Some(own), Some(wanted)) = owners else { return };
    if own == wanted || !super::acl::is_superuser() {
        return;
    }
    let lock = pg_sys::AccessExclusiveLock as i32;
    // SAFETY: both oids were looked up, and the function raises for one that is gone.
    unsafe {
        pg_sys::ATExecChangeOwner(table.into(), wanted.into(), false, lock);
        pg_sys::CommandCounterIncrement();
    }
}

/// Returns the `pg_trigger.tgtype` of a trigger AFTER an event, for each row.
pub fn kind_after_row(event: &Event) -> i16 {
    pg_sys::TRIGGER_TYPE_ROW as i16 | Timing::After.bits() | event.bits()
}

impl Timing {
    fn bits(&self) -> i16 {
        match self {
            Self::Before => pg_sys::TRIGGER_TYPE_BEFORE as i16,
            Self::After => pg_sys::TRIGGER_TYPE_AFTER as i16,
        }
    }
}

impl Event {
    fn bits(&self) -> i16 {
        match self {
            Self::Insert => pg_sys::TRIGGER_TYPE_INSERT as i16,
            Self::Update => pg_sys::TRIGGER_TYPE_UPDATE as i16,
            Self::Delete => pg_sys::TRIGGER_TYPE_DELETE as i16,
            Self::Truncate => pg_sys::TRIGGER_TYPE_TRUNCATE as i16,
        }
    }
}

/// Returns the name of a relation, for event triggers that read a command's parse tree. Postgres
/// itself uses the oid.
///
/// # Safety
/// `relation` is open.
unsafe fn name_of(relation: pg_sys::Relation) -> *mut pg_sys::RangeVar {
    // SAFETY: the caller promises an open relation, and both names are copies.
    unsafe {
        let form = (*relation).rd_rel;
        let schema = pg_sys::get_namespace_name((*form).relnamespace);
        pg_sys::makeRangeVar(schema, pg_sys::pstrdup((*form).relname.data.as_ptr()), -1)
    }
}

/// Returns a new node of a parse tree in the current memory context. All fields but the tag are
/// zero.
///
/// # Safety
/// `tag` is the tag of the node type `T`.
unsafe fn node<T>(tag: pg_sys::NodeTag) -> *mut T {
    // SAFETY: every node begins with its tag, and zeroes are a valid value of each field.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>());
        (*node.cast::<pg_sys::Node>()).type_ = tag;
        node.cast()
    }
}
