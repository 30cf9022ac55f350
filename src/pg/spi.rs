//! SQL through SPI: queries of catalogs, and the DDL that creates a prefix. No election, fence or trigger on
//! oban_peers uses it.

use pgrx::pg_sys;
use pgrx::prelude::*;

/// `"schema"."name"`.
pub fn qualified(schema: &str, name: &str) -> String {
    spi::quote_qualified_identifier(schema, name)
}

/// The texts that a query with one text argument returns, by what is committed now. (pgrx would run the query
/// under the transaction's own snapshot, which is old after a wait for a lock.)
pub fn look(sql: &str, argument: &str) -> Vec<String> {
    let sql = super::c_name(sql);
    let Some(argument) = argument.into_datum() else { return Vec::new() };
    let (mut types, mut values) = ([pg_sys::TEXTOID], [argument]);
    // SAFETY: SPI's calls in their order, with a snapshot that is popped again; rows are copied before
    // SPI_finish frees them. An ERROR leaves both to the (sub)transaction's abort.
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

/// Runs DDL as the current role.
pub fn run(sql: &str) {
    if let Err(e) = Spi::run(sql) {
        pgrx::error!("{e}");
    }
}

/// The extension's trigger function of this name in this database. `None`: this version has none. It has to
/// be a member of the extension, because users may have created functions of the same name.
pub fn own_trigger_function(name: &str) -> Option<u32> {
    const SQL: &str = "
        SELECT f.oid::pg_catalog.text FROM pg_catalog.pg_proc f
        JOIN pg_catalog.pg_depend d ON d.objid OPERATOR(pg_catalog.=) f.oid
            AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            AND d.deptype OPERATOR(pg_catalog.=) 'e'
        JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs' AND f.proname OPERATOR(pg_catalog.=) $1::pg_catalog.name
          AND f.prorettype OPERATOR(pg_catalog.=) 'pg_catalog.trigger'::pg_catalog.regtype";
    look(SQL, name).pop()?.parse().ok()
}
