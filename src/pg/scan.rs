//! All rows of a table, by a scan of our own: no plan, no policies, no code of the table's owner. It is
//! for tables whose owner the reader need not trust, and whose rights we have tested by our own rules.

use pgrx::pg_sys;

use super::row::{self, Column, Row};

/// Whether to wait for the table's lock, as a SELECT does, or to do without its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    Wait,
    Skip,
}

/// What `row` makes of each row that the statement's snapshot shows. It gets the columns that `find`
/// found, which asks for them by name. `None` when there are no rows to be had: the table was dropped,
/// is locked, or has not the columns.
pub fn rows<C, T>(
    table: u32,
    locked: Locked,
    find: impl FnOnce(&dyn Fn(&str) -> Option<Column>) -> Option<C>,
    mut row: impl FnMut(&Row, &C) -> Option<T>,
) -> Option<Vec<T>> {
    let (table, lock) = (pg_sys::Oid::from(table), pg_sys::AccessShareLock as i32);
    // SAFETY: the lock is had before the table is opened, so that it can't change in between, and is kept
    // until the transaction ends, as a SELECT's is. What is opened here is closed here; on an ERROR in
    // between the transaction's abort does.
    unsafe {
        match locked {
            Locked::Wait => pg_sys::LockRelationOid(table, lock),
            Locked::Skip if !pg_sys::ConditionalLockRelationOid(table, lock) => return None,
            Locked::Skip => {}
        }
        let relation = pg_sys::try_table_open(table, pg_sys::NoLock as i32);
        if relation.is_null() {
            return None;
        }
        let columns = find(&|name| row::column(relation, name));
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
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                pg_sys::ExecStoreHeapTuple(tuple, slot, false);
                found.extend(row(&Row::in_slot(slot), &columns));
            }
            pg_sys::systable_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            found
        });
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        found
    }
}
