//! All rows of a table, by a scan of this library: no plan, no policies, no code of the table's
//! owner. The scan is for tables whose owner the reader need not trust. The caller has tested the
//! rights on the table by the extension's own rules.

use pgrx::pg_sys;

use super::tuple::{self, Column, Tuple};
use crate::logic::ids::TableOid;

/// Whether to wait for the table's lock, as a SELECT does, or to go on without the table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    Wait,
    Skip,
    /// Go on without the rows if the table is locked, and release the lock after the scan.
    Peek,
}

/// The greatest number of results that a scan keeps. A failed allocation by Rust ends the server,
/// and a failed allocation by Postgres is only an ERROR. See also `Tuple::short_text`.
const MAX_CONVERTED: usize = 10_000;

/// Returns what `row` returns for each row that the statement's snapshot shows, without `None`, up
/// to 10,000 results.
///
/// `admit` is called once, when the table is locked and can't change any more, with whether the
/// table is unlogged. The rights and the name that were tested before may have changed during the
/// wait for the lock. An `Err` of `admit` is returned. `find` finds the columns by name.
///
/// `None`: the rows can't be read. The table was dropped, is locked, is not an ordinary table any
/// more, is not admitted, or lacks a column.
pub fn rows<C, T, E>(
    table: TableOid,
    locked: Locked,
    admit: impl FnOnce(bool) -> Result<bool, E>,
    find: impl FnOnce(&dyn Fn(&str) -> Option<Column>) -> Option<C>,
    mut row: impl FnMut(&Tuple, &C) -> Option<T>,
) -> Result<Option<Vec<T>>, E> {
    let (table, lock) = (pg_sys::Oid::from(table), pg_sys::AccessShareLock as i32);
    // SAFETY: the lock is taken before the table is opened, so that the table can't change in
    // between. The lock is kept until the transaction ends, as a SELECT keeps it (except by
    // `Peek`). Only what the opened relation itself says counts: a view has no rows to scan. What
    // is opened here is closed here, or after an ERROR by the transaction's abort.
    unsafe {
        match locked {
            Locked::Wait => pg_sys::LockRelationOid(table, lock),
            Locked::Skip | Locked::Peek if !pg_sys::ConditionalLockRelationOid(table, lock) => {
                return Ok(None);
            }
            Locked::Skip | Locked::Peek => {}
        }
        let relation = pg_sys::try_relation_open(table, pg_sys::NoLock as i32);
        let unlock = if locked == Locked::Peek { lock } else { pg_sys::NoLock as i32 };
        if relation.is_null() {
            if locked == Locked::Peek {
                pg_sys::UnlockRelationOid(table, lock);
            }
            return Ok(None);
        }
        let form = (*relation).rd_rel;
        let is_heap = (*form).relkind as u8 == pg_sys::RELKIND_RELATION
            && (*relation).rd_tableam == pg_sys::GetHeapamTableAmRoutine();
        let admitted = if is_heap {
            admit((*form).relpersistence as u8 == pg_sys::RELPERSISTENCE_UNLOGGED)
        } else {
            Ok(false)
        };
        let columns = match &admitted {
            Ok(true) => find(&|name| tuple::column(relation, name)),
            _ => None,
        };
        let found = columns.map(|columns| {
            let mut found = Vec::new();
            let slot =
                pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
            let scan = pg_sys::systable_beginscan(
                relation,
                pg_sys::InvalidOid,
                false,
                pg_sys::GetActiveSnapshot(),
                0,
                std::ptr::null_mut(),
            );
            while found.len() < MAX_CONVERTED {
                pgrx::check_for_interrupts!();
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                pg_sys::ExecStoreHeapTuple(tuple, slot, false);
                found.extend(row(&Tuple::in_slot(slot), &columns));
            }
            pg_sys::systable_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            found
        });
        pg_sys::relation_close(relation, unlock);
        admitted.map(|_| found)
    }
}

/// Returns the greatest value of a table's column of type bigint, in the rows that are committed
/// now. The statement's snapshot does not matter. `None`: there is no such column or no value. The
/// caller holds a lock that keeps other transactions from writing rows.
pub fn greatest(table: TableOid, column: &str) -> Option<i64> {
    let mut greatest: Option<i64> = None;
    let find = |column_of: &dyn Fn(&str) -> Option<Column>| {
        column_of(column).filter(|c| c.type_oid == pg_sys::INT8OID)
    };
    let read = |row: &Tuple, column: &Column| {
        greatest = greatest.max(row.i64(*column));
        None::<()>
    };
    // SAFETY: the snapshot is popped below, or after an ERROR by the abort of the (sub)transaction.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let scanned = rows(table, Locked::Wait, |_| Ok::<_, std::convert::Infallible>(true), find, read);
    // SAFETY: the snapshot was pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    scanned.ok().flatten()?;
    greatest
}
