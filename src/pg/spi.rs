//! SQL on tables of users.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, PgOid};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiResult, SpiTupleTable};

/// Runs `body` as `owner`, so that nothing on its tables (triggers, defaults, policies) gets more
/// rights than its owner has, in a security-restricted context, and with settings that change back
/// afterwards: a trigger's `set_config('search_path', …)` would otherwise choose the operators of
/// whatever this session runs next, which may be a superuser's. An ERROR in `body` restores all of it
/// with its (sub)transaction's abort.
pub fn as_owner<R>(owner: u32, body: impl FnOnce() -> R) -> R {
    let (mut role, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: saved and restored in pairs.
    let settings = unsafe {
        pg_sys::GetUserIdAndSecContext(&mut role, &mut context);
        let restricted = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(owner), context | restricted as i32);
        pg_sys::NewGUCNestLevel()
    };
    let result = body();
    // SAFETY: as above.
    unsafe {
        pg_sys::AtEOXact_GUC(false, settings);
        pg_sys::SetUserIdAndSecContext(role, context);
    }
    result
}

/// Runs a statement that may write, without a transaction id for one that writes nothing: pgrx's own
/// `update` takes one in any case, and its `select` of a text refuses to write.
pub fn write<'conn>(
    client: &SpiClient<'conn>,
    sql: &str,
    args: &[DatumWithOid<'_>],
) -> SpiResult<SpiTupleTable<'conn>> {
    let types: Vec<PgOid> = args.iter().map(|a| PgOid::from(a.oid())).collect();
    let statement = client.prepare_mut(sql, &types)?;
    client.select(&statement, None, args)
}

/// `"schema"."name"`.
pub fn qualified(schema: &str, name: &str) -> String {
    spi::quote_qualified_identifier(schema, name)
}

/// The schemas that have a table oban_peers, of whatever shape, in order. (Every operator is qualified, here
/// and wherever SQL of ours runs with a user's search_path.)
pub fn schemas_with_peers() -> Vec<String> {
    const SQL: &str = "
        SELECT n.nspname::pg_catalog.text
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.relname OPERATOR(pg_catalog.=) 'oban_peers' AND c.relkind OPERATOR(pg_catalog.=) 'r'
        ORDER BY n.nspname";
    Spi::connect(|client| {
        let rows = client.select(SQL, None, &[])?;
        rows.map(|row| Ok(row.get(1)?.unwrap_or_default())).collect::<SpiResult<Vec<_>>>()
    })
    .unwrap_or_else(|e| pgrx::error!("{e}"))
}

/// The texts that a query with one text argument gives, by what is committed now: pgrx would show it
/// what the transaction's own snapshot shows, and a lock that was waited for has made that old.
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
                    std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            })
            .collect();
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        found
    }
}

/// Whether our extension is in this database. By a query, not by a cache (Postgres 18 has one): whoever drops it
/// wakes a keeper at a point of the commit at which caches have not been told yet.
pub fn has_extension() -> bool {
    const SQL: &str = "SELECT e.extname::pg_catalog.text FROM pg_catalog.pg_extension e
        WHERE e.extname OPERATOR(pg_catalog.=) $1::pg_catalog.name";
    !look(SQL, "obanrs").is_empty()
}

/// Runs DDL as the current role.
pub fn run(sql: &str) {
    if let Err(e) = Spi::run(sql) {
        pgrx::error!("{e}");
    }
}

/// `schema.name` of a function of our own extension, wherever it was created.
pub fn own_function(name: &str) -> String {
    const SQL: &str = "
        SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_extension e
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs'";
    let schema = Spi::connect(|client| client.select(SQL, Some(1), &[])?.first().get_one::<String>());
    match schema {
        Ok(Some(schema)) => qualified(&schema, name),
        _ => pgrx::error!("the extension obanrs is not there"),
    }
}
