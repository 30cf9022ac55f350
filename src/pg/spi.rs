//! SQL through SPI: queries of catalogs and of jobs, and the DDL that creates a prefix. No
//! election, fence or trigger on oban_peers uses SPI.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::argument::JsonbArgument;
use super::datum::Parameter;

/// Returns `"schema"."name"`, quoted where necessary.
pub fn qualified(schema: &str, name: &str) -> String {
    spi::quote_qualified_identifier(schema, name)
}

/// Returns the texts that a query with one text argument returns. The query sees what is committed
/// now. (pgrx would run the query under the transaction's own snapshot, which is old after a wait
/// for a lock.)
pub fn look(sql: &str, argument: &str) -> Vec<String> {
    let sql = super::c_name(sql);
    let Some(argument) = argument.into_datum() else { return Vec::new() };
    let (mut types, mut values) = ([pg_sys::TEXTOID], [argument]);
    // SAFETY: the calls of SPI are in the prescribed order. The snapshot is popped again, and rows
    // are copied before SPI_finish frees them. An ERROR leaves both to the abort of the
    // (sub)transaction.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        pg_sys::SPI_connect();
        let code = pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            1,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            std::ptr::null(),
            true,
            0,
        );
        if code != pg_sys::SPI_OK_SELECT as i32 {
            pgrx::error!("a query of obanrs' own failed: {code}");
        }
        let table = pg_sys::SPI_tuptable;
        let found = (0..pg_sys::SPI_processed as usize)
            .map(|i| {
                let text = pg_sys::SPI_getvalue(*(*table).vals.add(i), (*table).tupdesc, 1);
                if text.is_null() {
                    String::new()
                } else {
                    super::encoding::to_utf8_lossy(std::ffi::CStr::from_ptr(text).to_bytes()).into_owned()
                }
            })
            .collect();
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        found
    }
}

/// A row of a query's result. The row is valid as long as the result is read.
pub struct SqlRow {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl SqlRow {
    /// Returns the value of a column, counted from 0. `None`: the value is null, or there is no
    /// such column.
    pub fn datum(&self, column: usize) -> Option<pg_sys::Datum> {
        let mut is_null = true;
        // SAFETY: the row belongs to the result, which `each` keeps. For a column that does not
        // exist, SPI_getbinval reports null.
        let datum =
            unsafe { pg_sys::SPI_getbinval(self.tuple, self.descriptor, column as i32 + 1, &mut is_null) };
        (!is_null).then_some(datum)
    }

    /// Returns the `jsonb` of a column as `datum` does, in memory of the caller of the statement.
    pub fn kept_jsonb(&self, column: usize) -> Option<JsonbArgument> {
        let datum = self.datum(column)?;
        // SAFETY: by the caller's statement, the value is a jsonb. The session is connected to SPI, as
        // the row is being read. What SPI copies lives on in the context of the caller.
        unsafe { JsonbArgument::from_datum(pg_sys::SPI_datumTransfer(datum, false, -1), false) }
    }

    /// Returns how many bytes a column would take uncompressed; 0 if the value is null. The column is of a
    /// type of variable length.
    pub fn raw_size(&self, column: usize) -> usize {
        // SAFETY: by the caller's query the value is of a type of variable length.
        self.datum(column).map_or(0, |value| unsafe { pg_sys::toast_raw_datum_size(value) })
    }

    /// Returns the bytes of a `text` of this row, in the server's encoding, without a copy in
    /// Rust's memory.
    pub fn bytes(&self, text: pg_sys::Datum) -> &[u8] {
        // SAFETY: by the caller's query, `text` is a text. What detoasting makes is in Postgres'
        // memory until the result is freed.
        unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(text.cast_mut_ptr())) }
    }
}

/// Runs a query with the rights of the current role, and calls `body` with each row. The query sees
/// what is committed now, even if the transaction's own snapshot is older, and what this
/// transaction has done.
pub fn each(sql: &str, mut body: impl FnMut(&SqlRow)) {
    let sql = super::c_name(sql);
    // SAFETY: the calls of SPI are in the prescribed order, as in `look`. The rows are in Postgres'
    // memory until SPI_finish.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        pg_sys::SPI_connect();
        let code = pg_sys::SPI_execute(sql.as_ptr(), true, 0);
        if code != pg_sys::SPI_OK_SELECT as i32 {
            pgrx::error!("a query of obanrs' own failed: {code}");
        }
        let table = pg_sys::SPI_tuptable;
        for i in 0..pg_sys::SPI_processed as usize {
            body(&SqlRow { tuple: *(*table).vals.add(i), descriptor: (*table).tupdesc });
        }
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
    }
}

/// Runs an UPDATE ... RETURNING with the rights of the current role, and calls `body` with each row
/// that it returns. The statement's arguments are an array of bigints and an array of texts, which
/// have to be ASCII. The statement sees what any statement of the transaction would see.
pub fn update(sql: &str, numbers: Vec<i64>, texts: Vec<String>, mut body: impl FnMut(&SqlRow)) {
    let sql = super::c_name(sql);
    let (Some(numbers), Some(texts)) = (numbers.into_datum(), texts.into_datum()) else { return };
    let (mut types, mut values) = ([pg_sys::INT8ARRAYOID, pg_sys::TEXTARRAYOID], [numbers, texts]);
    // SAFETY: the calls of SPI are in the prescribed order, as in `look`. The rows are in Postgres'
    // memory until SPI_finish.
    unsafe {
        pg_sys::SPI_connect();
        let (types, values) = (types.as_mut_ptr(), values.as_mut_ptr());
        let code = pg_sys::SPI_execute_with_args(sql.as_ptr(), 2, types, values, std::ptr::null(), false, 0);
        if code != pg_sys::SPI_OK_UPDATE_RETURNING as i32 {
            pgrx::error!("a statement of obanrs' own failed: {code}");
        }
        let table = pg_sys::SPI_tuptable;
        for i in 0..pg_sys::SPI_processed as usize {
            body(&SqlRow { tuple: *(*table).vals.add(i), descriptor: (*table).tupdesc });
        }
        pg_sys::SPI_finish();
    }
}

/// The most statements that a session keeps. A statement names the prefix, so a session that goes
/// through many prefixes plans those that come later each time.
const MOST_KEPT: usize = 256;

thread_local! {
    /// The plans of this session, by the statement. Postgres plans a statement again by itself when a
    /// table or a type in it has changed.
    static KEPT: RefCell<HashMap<String, pg_sys::SPIPlanPtr>> = RefCell::new(HashMap::new());
}

/// Runs a statement with the rights of the current role, and calls `body` with each row that it
/// returns. Returns how many rows it returned or wrote. The session keeps the plan. The types of the
/// parameters of a statement are the same in each call. The statement sees what any statement of the
/// transaction would see.
pub fn prepared(sql: &str, values: &[Parameter], body: impl FnMut(&SqlRow)) -> u64 {
    run_kept(sql, values, Planned::Once, body)
}

/// Runs a query as `prepared` does, but with a plan for these values, and so that the query sees what is
/// committed now, even if the transaction's own snapshot is older.
pub fn prepared_now(sql: &str, values: &[Parameter], body: impl FnMut(&SqlRow)) -> u64 {
    // SAFETY: the snapshot is popped again. An ERROR leaves it to the abort of the (sub)transaction.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let rows = run_kept(sql, values, Planned::ForValues, body);
    // SAFETY: the snapshot is the one of above.
    unsafe { pg_sys::PopActiveSnapshot() };
    rows
}

/// How a statement is planned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planned {
    /// Once for all values, unless Postgres finds that the values matter. It takes a new snapshot.
    Once,
    /// For the values of each call. It reads under the active snapshot.
    ForValues,
}

/// Runs a statement whose plan is kept, and calls `body` with each row.
fn run_kept(sql: &str, values: &[Parameter], planned: Planned, mut body: impl FnMut(&SqlRow)) -> u64 {
    let mut datums: Vec<_> = values.iter().map(|v| v.datum.unwrap_or(pg_sys::Datum::null())).collect();
    let mark = |v: &Parameter| if v.datum.is_some() { b' ' } else { b'n' } as std::ffi::c_char;
    let nulls: Vec<_> = values.iter().map(mark).collect();
    // SAFETY: the calls of SPI are in the prescribed order, as in `look`. There are as many values and
    // marks as the plan has parameters. A plan that is kept is never freed, so a statement that the
    // code of a trigger runs meanwhile can't free it.
    unsafe {
        pg_sys::SPI_connect();
        let plan = kept_plan(sql, values, planned);
        let read_only = planned == Planned::ForValues;
        let code = pg_sys::SPI_execute_plan(plan, datums.as_mut_ptr(), nulls.as_ptr(), read_only, 0);
        if code < 0 {
            pgrx::error!("a statement of obanrs' own failed: {code}");
        }
        let (rows, table) = (pg_sys::SPI_processed, pg_sys::SPI_tuptable);
        for i in 0..if table.is_null() { 0 } else { rows as usize } {
            body(&SqlRow { tuple: *(*table).vals.add(i), descriptor: (*table).tupdesc });
        }
        pg_sys::SPI_finish();
        rows
    }
}

/// Returns the plan of a statement, which is kept if there is room.
///
/// # Safety
/// The caller is connected to SPI.
unsafe fn kept_plan(sql: &str, values: &[Parameter], planned: Planned) -> pg_sys::SPIPlanPtr {
    if let Some(plan) = KEPT.with_borrow(|kept| kept.get(sql).copied()) {
        return plan;
    }
    let text = super::c_name(sql);
    let mut types: Vec<_> = values.iter().map(|v| v.kind).collect();
    // SAFETY: the caller is connected. Postgres copies the text and the types.
    unsafe {
        let options = match planned {
            // One plan serves all values. Otherwise Postgres would plan a claim in each call, as a LIMIT that
            // it does not know counts as a tenth of the table. Planning costs more than the claim.
            Planned::Once => pg_sys::CURSOR_OPT_GENERIC_PLAN as i32,
            Planned::ForValues => pg_sys::CURSOR_OPT_CUSTOM_PLAN as i32,
        };
        let (count, types) = (types.len() as i32, types.as_mut_ptr());
        let plan = pg_sys::SPI_prepare_cursor(text.as_ptr(), count, types, options);
        if plan.is_null() {
            let code = pg_sys::SPI_result;
            pgrx::error!("a statement of obanrs' own can't be planned: {code}");
        }
        if KEPT.with_borrow(HashMap::len) < MOST_KEPT && pg_sys::SPI_keepplan(plan) == 0 {
            KEPT.with_borrow_mut(|kept| kept.insert(sql.to_owned(), plan));
        }
        plan
    }
}

/// Runs DDL as the current role.
pub fn run(sql: &str) {
    if let Err(e) = Spi::run(sql) {
        pgrx::error!("{e}");
    }
}
