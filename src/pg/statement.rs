//! One SQL statement about one table, which the caller has locked by its oid.
//!
//! SQL names a table by its schema's name, and the owner of a schema can give that name to another
//! schema at any moment. So the statement is analyzed first, and is planned and run only if the
//! name still meant the table that the caller has locked. Nothing looks a name up after that: the
//! plan has oids. (SPI would look names up again when it finds its plan out of date.)
//!
//! The statement runs as a statement of a user does: with triggers, constraints, policies and
//! rights of the current role.

use std::ffi::{CStr, CString};
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;

use super::tuple::Tuple;
use super::{c_name, xact};
use crate::logic::ids::TableOid;
use crate::logic::times::WallTime;

// pgrx does not bind this function. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        numparents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// Why a statement was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRun {
    /// The name in the statement means another table than the one that is locked.
    AnotherTable,
    /// The table has a rule for UPDATE, which would do something else.
    Rule,
}

/// Locks a table until the end of the transaction, to write rows of it. Waits up to lock_timeout,
/// and then raises 55P03. Afterwards the caches have what was committed before.
pub fn lock_to_write(table: TableOid) {
    super::catalog::lock(table, pg_sys::RowExclusiveLock);
}

/// Locks a table and all tables that inherit from it, as `lock_to_write` does, and returns them.
pub fn lock_all_to_write(table: TableOid) -> Vec<TableOid> {
    // SAFETY: the function reads pg_inherits, and takes locks on oids. The list is copied.
    unsafe {
        let found = pg_guard_ffi_boundary(|| {
            find_all_inheritors(pg_sys::Oid::from(table), pg_sys::RowExclusiveLock as i32, null_mut())
        });
        (0..length(found)).map(|i| (*(*found).elements.add(i)).oid_value.into()).collect()
    }
}

/// A receiver of rows. Postgres sees its first field only.
#[repr(C)]
struct Receiver<'a> {
    receiver: pg_sys::DestReceiver,
    each: &'a mut dyn FnMut(&Tuple),
}

#[pg_guard]
unsafe extern "C-unwind" fn receive(
    slot: *mut pg_sys::TupleTableSlot,
    receiver: *mut pg_sys::DestReceiver,
) -> bool {
    // SAFETY: Postgres passes the receiver of `run`, which is the first field of a `Receiver`. The
    // slot holds a row during the call.
    unsafe { ((*receiver.cast::<Receiver<'_>>()).each)(&Tuple::in_slot(slot)) }
    true
}

unsafe extern "C-unwind" fn start(
    _receiver: *mut pg_sys::DestReceiver,
    _operation: i32,
    _columns: pg_sys::TupleDesc,
) {
}

unsafe extern "C-unwind" fn end(_receiver: *mut pg_sys::DestReceiver) {}

/// A statement that is planned. It lives as long as the transaction.
pub struct Planned {
    plan: *mut pg_sys::PlannedStmt,
    sql: CString,
}

impl Planned {
    /// Plans a SELECT about `table`, which may update the table in its WITH. It has this number of
    /// parameters: $1, $2 and so on, which are timestamps in UTC. `Err`: nothing can be run. Raises
    /// 42P01 or 3F000 if the name in the statement means no table. Calls `named` when no name is looked
    /// up any more. After that code of the table may run: the planner computes constants.
    pub fn of(sql: &str, table: TableOid, parameters: usize, named: impl FnOnce()) -> Result<Self, NotRun> {
        let sql = c_name(sql);
        let types = vec![pg_sys::TIMESTAMPOID; parameters];
        // SAFETY: a transaction is open. The snapshot is popped after the plan is made. After an
        // ERROR the transaction's abort cleans up.
        let plan = unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let plan = plan(&sql, table, &types, named);
            pg_sys::PopActiveSnapshot();
            plan
        };
        plan.map(|plan| Self { plan, sql })
    }

    /// Runs the statement, and calls `each` with each row. The statement sees what is committed now
    /// and what this transaction has written.
    pub fn run(&self, parameters: &[WallTime], mut each: impl FnMut(&Tuple)) {
        // SAFETY: the calls are those of SPI in their prescribed order, on nodes that Postgres made in
        // the memory of the transaction. The receiver and the statement's text outlive the execution.
        // After an ERROR the transaction's abort cleans up.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let mut receiver = Receiver {
                receiver: pg_sys::DestReceiver {
                    receiveSlot: Some(receive),
                    rStartup: Some(start),
                    rShutdown: Some(end),
                    rDestroy: Some(end),
                    mydest: pg_sys::CommandDest::DestNone,
                },
                each: &mut each,
            };
            let description = pg_sys::CreateQueryDesc(
                self.plan,
                self.sql.as_ptr(),
                pg_sys::GetActiveSnapshot(),
                null_mut(),
                (&raw mut receiver).cast(),
                arguments(parameters),
                null_mut(),
                0,
            );
            pg_sys::ExecutorStart(description, 0);
            execute(description);
            pg_sys::ExecutorFinish(description);
            pg_sys::ExecutorEnd(description);
            pg_sys::FreeQueryDesc(description);
            pg_sys::PopActiveSnapshot();
        }
        xact::next_command();
    }
}

/// # Safety
/// `description` was started.
#[cfg(not(feature = "pg18"))]
unsafe fn execute(description: *mut pg_sys::QueryDesc) {
    // SAFETY: the caller promises a query that was started.
    unsafe { pg_sys::ExecutorRun(description, pg_sys::ScanDirection::ForwardScanDirection, 0, true) }
}

/// # Safety
/// `description` was started.
#[cfg(feature = "pg18")]
unsafe fn execute(description: *mut pg_sys::QueryDesc) {
    // SAFETY: the caller promises a query that was started.
    unsafe { pg_sys::ExecutorRun(description, pg_sys::ScanDirection::ForwardScanDirection, 0) }
}

/// Returns the plan of a statement about `table`.
///
/// # Safety
/// A transaction with an active snapshot is open.
unsafe fn plan(
    sql: &CStr,
    table: TableOid,
    types: &[pg_sys::Oid],
    named: impl FnOnce(),
) -> Result<*mut pg_sys::PlannedStmt, NotRun> {
    // SAFETY: the text is one statement of this library. Lists have as many elements as they say.
    unsafe {
        let parsed = pg_sys::pg_parse_query(sql.as_ptr());
        let raw = first(parsed).cast::<pg_sys::RawStmt>();
        let query = pg_sys::parse_analyze_fixedparams(
            raw,
            sql.as_ptr(),
            types.as_ptr(),
            types.len() as i32,
            null_mut(),
        );
        if !is_about(query, pg_sys::Oid::from(table)) {
            return Err(NotRun::AnotherTable);
        }
        named();
        if has_rule_for_update(table) {
            return Err(NotRun::Rule);
        }
        let rewritten = pg_sys::pg_rewrite_query(query);
        if length(rewritten) != 1 {
            return Err(NotRun::Rule);
        }
        let query = first(rewritten).cast::<pg_sys::Query>();
        Ok(pg_sys::pg_plan_query(query, sql.as_ptr(), 0, null_mut()))
    }
}

/// Returns whether a table has a rule that says what an UPDATE does in an ordinary session.
///
/// # Safety
/// The caller has the table locked.
unsafe fn has_rule_for_update(table: TableOid) -> bool {
    // SAFETY: the caller promises the lock. The rules live as long as the relation is open.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::Oid::from(table), pg_sys::NoLock as i32);
        let rules = (*relation).rd_rules;
        let found = !rules.is_null()
            && (0..(*rules).numLocks as usize).any(|i| {
                let rule = *(*rules).rules.add(i);
                let fires = matches!((*rule).enabled as u8, b'O' | b'A');
                fires && (*rule).event == pg_sys::CmdType::CMD_UPDATE
            });
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        found
    }
}

/// Returns whether all relations of a query, and of the queries in its WITH, are this table.
///
/// # Safety
/// `query` is a query that was analyzed and not rewritten.
unsafe fn is_about(query: *mut pg_sys::Query, table: pg_sys::Oid) -> bool {
    // SAFETY: the caller promises a query. Its lists have the nodes that they are made for.
    unsafe {
        let relations = (*query).rtable;
        let are_it = (0..length(relations)).all(|i| {
            let relation = (*(*relations).elements.add(i)).ptr_value.cast::<pg_sys::RangeTblEntry>();
            match (*relation).rtekind {
                pg_sys::RTEKind::RTE_RELATION => (*relation).relid == table,
                pg_sys::RTEKind::RTE_SUBQUERY => is_about((*relation).subquery, table),
                _ => true,
            }
        });
        let with = (*query).cteList;
        are_it
            && (0..length(with)).all(|i| {
                let part = (*(*with).elements.add(i)).ptr_value.cast::<pg_sys::CommonTableExpr>();
                is_about((*part).ctequery.cast(), table)
            })
    }
}

/// Returns timestamps as the arguments of a statement.
fn arguments(parameters: &[WallTime]) -> pg_sys::ParamListInfo {
    // SAFETY: the list has room for as many parameters as were asked for.
    unsafe {
        let list = pg_sys::makeParamList(parameters.len() as i32);
        for (i, parameter) in parameters.iter().enumerate() {
            *(*list).params.as_mut_ptr().add(i) = pg_sys::ParamExternData {
                value: pg_sys::Datum::from(parameter.0),
                isnull: false,
                pflags: pg_sys::PARAM_FLAG_CONST as u16,
                ptype: pg_sys::TIMESTAMPOID,
            };
        }
        list
    }
}

/// # Safety
/// `list` is null or a list.
unsafe fn length(list: *mut pg_sys::List) -> usize {
    // SAFETY: the caller promises null or a list.
    if list.is_null() { 0 } else { unsafe { (*list).length as usize } }
}

/// Returns the first element.
///
/// # Safety
/// `list` is a list of pointers with at least one element.
unsafe fn first(list: *mut pg_sys::List) -> *mut std::ffi::c_void {
    // SAFETY: the caller promises an element.
    unsafe { (*(*list).elements).ptr_value }
}
