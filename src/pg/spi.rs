//! SQL through SPI: queries of catalogs and of jobs, and the DDL that creates a prefix. No
//! election, fence or trigger on oban_peers uses SPI.

use pgrx::pg_sys;
use pgrx::prelude::*;

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

/// Runs DDL as the current role.
pub fn run(sql: &str) {
    if let Err(e) = Spi::run(sql) {
        pgrx::error!("{e}");
    }
}
