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
        WHERE c.relname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND c.relkind OPERATOR(pg_catalog.=) 'r'
        ORDER BY n.nspname";
    look(SQL, "oban_peers")
}

/// The table oban_peers of a schema, of whatever shape: by a query, as below.
pub fn peers_by_query(schema: &str) -> Option<u32> {
    const SQL: &str = "
        SELECT c.oid::pg_catalog.text
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND c.relkind OPERATOR(pg_catalog.=) 'r'
            AND c.relname OPERATOR(pg_catalog.=) 'oban_peers'";
    look(SQL, schema).pop()?.parse().ok()
}

/// The schemas that `oban_install` made prefixes of, by the columns that it adds. By a query, not by the caches of
/// catalogs: who changes a prefix wakes others before their caches are told.
pub fn installed_prefixes() -> Vec<String> {
    const SQL: &str = "
        SELECT n.nspname::pg_catalog.text
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
        WHERE c.relname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND c.relkind OPERATOR(pg_catalog.=) 'r'
            AND c.relpersistence OPERATOR(pg_catalog.<>) 't' AND NOT a.attisdropped
            AND a.atttypid OPERATOR(pg_catalog.=) 'pg_catalog.int8'::pg_catalog.regtype
            AND (a.attname OPERATOR(pg_catalog.=) 'term' OR a.attname OPERATOR(pg_catalog.=) 'boot')
        GROUP BY n.nspname
        HAVING pg_catalog.count(*) OPERATOR(pg_catalog.=) 2";
    look(SQL, "oban_peers")
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

/// A relation of our own extension, wherever it was created.
pub fn own_relation(name: &str) -> Option<u32> {
    const SQL: &str = "
        SELECT c.oid::pg_catalog.text FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_extension e ON e.extnamespace OPERATOR(pg_catalog.=) c.relnamespace
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs'
          AND c.relname OPERATOR(pg_catalog.=) $1::pg_catalog.name";
    look(SQL, name).pop()?.parse().ok()
}

/// Lifts a sequence, as its owner.
pub(super) fn set_sequence(sequence: u32, value: i64) {
    let Some(owner) = super::catalog::owner(sequence) else { return };
    const SQL: &str = "SELECT pg_catalog.setval($1, $2)";
    let args = [pg_sys::Oid::from(sequence).into(), value.into()];
    let done = as_owner(owner, || Spi::connect(|client| write(client, SQL, &args).map(|_| ())));
    if let Err(e) = done {
        pgrx::error!("{e}");
    }
}

/// What a sequence gave last; 0 before the first time.
pub(super) fn last_of_sequence(sequence: u32) -> i64 {
    let Some(owner) = super::catalog::owner(sequence) else { return 0 };
    const SQL: &str = "SELECT pg_catalog.pg_sequence_last_value($1)";
    let args = [pg_sys::Oid::from(sequence).into()];
    let last = as_owner(owner, || Spi::connect(|client| write(client, SQL, &args)?.first().get_one::<i64>()));
    last.unwrap_or_else(|e| pgrx::error!("{e}")).unwrap_or(0)
}

/// Gives the row of a name another term, as that role; whether it did. No trigger fires but such as the
/// owner wants always fired: others may have put some on the table, which must not run as the owner.
pub(super) fn set_term(table: u32, elector: u32, name: &str, term: i64, new: i64) -> bool {
    let Some(table) = super::catalog::qualified_name(table) else { return false };
    let sql = format!(
        "UPDATE ONLY {table} SET term = $1
         WHERE name OPERATOR(pg_catalog.=) $2 AND term OPERATOR(pg_catalog.=) $3 RETURNING 1"
    );
    let args = [new.into(), name.into(), term.into()];
    let done = as_owner(elector, || {
        super::session::set_within(c"session_replication_role", c"replica");
        Spi::connect(|client| SpiResult::Ok(write(client, &sql, &args)?.len() == 1))
    });
    done.unwrap_or_else(|e| pgrx::error!("{e}"))
}

/// Whether a table of leaders has the trigger that tells of changes, and it is on.
pub fn is_guarded(table: u32) -> bool {
    const SQL: &str = "
        SELECT g.tgname::pg_catalog.text FROM pg_catalog.pg_trigger g
        JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) g.tgfoid
        JOIN pg_catalog.pg_extension e ON e.extnamespace OPERATOR(pg_catalog.=) f.pronamespace
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs' AND f.proname OPERATOR(pg_catalog.=) 'obanrs_peers'
          AND g.tgname OPERATOR(pg_catalog.=) 'obanrs_peers_rows'
          AND g.tgenabled::pg_catalog.text OPERATOR(pg_catalog.~) '^[OA]$'
          AND g.tgrelid::pg_catalog.text OPERATOR(pg_catalog.=) $1";
    !look(SQL, &table.to_string()).is_empty()
}

/// Locks the row of a name and a term in a table of leaders (FOR KEY SHARE) as it is now, whatever the
/// transaction's snapshot shows, and gives the end of its lease and the start of the server that it is bound to.
/// `None` without such a row, also if there was none when the transaction's snapshot was taken, where that
/// stays the same for the whole transaction.
pub fn lock_leader(table: &str, name: &str, term: i64) -> Option<(Option<i64>, Option<i64>)> {
    let row =
        format!("FROM ONLY {table} WHERE name OPERATOR(pg_catalog.=) $1 AND term OPERATOR(pg_catalog.=) $2");
    let lock = super::c_name(&format!("SELECT expires_at, boot {row} FOR KEY SHARE"));
    let name = name.into_datum()?;
    let (mut types, values) = ([pg_sys::TEXTOID, pg_sys::INT8OID], [name, pg_sys::Datum::from(term)]);
    // SAFETY: SPI's calls in their order. The snapshot is copied by SPI. The first column is a timestamp and the
    // second a bigint (`catalog::peers_table` has looked), both passed by value. An ERROR leaves all of it to
    // the (sub)transaction's abort.
    unsafe {
        pg_sys::SPI_connect();
        let mut found = None;
        let mut run = |sql: &std::ffi::CStr, snapshot: pg_sys::Snapshot| {
            let plan = pg_sys::SPI_prepare(sql.as_ptr(), 2, types.as_mut_ptr());
            if plan.is_null() {
                pgrx::error!("a query of obanrs' own can't be planned");
            }
            let (values, nulls) = (values.as_ptr().cast_mut(), std::ptr::null());
            let none = std::ptr::null_mut();
            let code = pg_sys::SPI_execute_snapshot(plan, values, nulls, snapshot, none, false, true, 1);
            if code != pg_sys::SPI_OK_SELECT as i32 {
                pgrx::error!("a query of obanrs' own failed: {code}");
            }
            pg_sys::SPI_processed > 0
        };
        let fixed = pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32;
        let known = !fixed || {
            let look = super::c_name(&format!("SELECT NULL {row}"));
            run(&look, pg_sys::GetTransactionSnapshot())
        };
        if known && run(&lock, pg_sys::GetLatestSnapshot()) {
            let table = pg_sys::SPI_tuptable;
            let value = |column| {
                let mut is_null = false;
                let datum = pg_sys::SPI_getbinval(*(*table).vals, (*table).tupdesc, column, &raw mut is_null);
                (!is_null).then(|| datum.value() as i64)
            };
            found = Some((value(1), value(2)));
        }
        pg_sys::SPI_finish();
        found
    }
}

/// Whether our own extension, as it is in this database, has a function of this name.
#[allow(dead_code)]
pub fn has_own_function(name: &str) -> bool {
    const SQL: &str = "
        SELECT f.proname::pg_catalog.text FROM pg_catalog.pg_proc f
        JOIN pg_catalog.pg_extension e ON e.extnamespace OPERATOR(pg_catalog.=) f.pronamespace
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs' AND f.proname OPERATOR(pg_catalog.=) $1::pg_catalog.name";
    !look(SQL, name).is_empty()
}

/// `schema.name` of a function of our own extension, wherever it was created.
#[allow(dead_code)]
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

/// A trigger function of the extension, as it is in this database: a member of it, for others may have
/// created functions of the same name beside it.
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
