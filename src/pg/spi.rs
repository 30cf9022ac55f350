//! SQL on tables of users.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, PgOid};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiResult, SpiTupleTable};

/// Runs `body` as `owner`, so that nothing on its tables (triggers, defaults, policies) gets more
/// rights than its owner has, and in a security-restricted context, so that none of it can change
/// the session. An ERROR in `body` restores the role with its (sub)transaction's abort.
pub fn as_owner<R>(owner: u32, body: impl FnOnce() -> R) -> R {
    let (mut role, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: saved and restored in pairs.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut role, &mut context);
        let restricted = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(owner), context | restricted as i32);
    }
    let result = body();
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(role, context) }
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

/// `oban_peers` of a prefix, if it is a table.
pub struct PeersTable {
    pub owner: u32,
    /// Whether `oban_install` added its columns.
    pub installed: bool,
}

/// Looks `<prefix>.oban_peers` up; `None` without such a table. Needs a transaction.
pub fn peers_table(prefix: &str) -> Option<PeersTable> {
    const SQL: &str = "
        SELECT c.relowner, (
            SELECT pg_catalog.count(*) OPERATOR(pg_catalog.=) 2 FROM pg_catalog.pg_attribute a
            WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped
              AND a.attname OPERATOR(pg_catalog.=) ANY ('{term,boot}'::pg_catalog.name[])
        )
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.name
          AND c.relname OPERATOR(pg_catalog.=) 'oban_peers'
          AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog.\"char\"[])";
    Spi::connect(|client| {
        let rows = client.select(SQL, Some(1), &[prefix.into()])?;
        if rows.is_empty() {
            return Ok(None);
        }
        let (owner, installed) = rows.first().get_two::<pg_sys::Oid, bool>()?;
        let found = owner.map(|o| PeersTable { owner: o.to_u32(), installed: installed.unwrap_or(false) });
        SpiResult::Ok(found)
    })
    .unwrap_or_else(|e| pgrx::error!("{e}"))
}

/// The prefixes that `oban_install` made usable for elections, in order.
pub fn installed_prefixes() -> Vec<String> {
    const SQL: &str = "
        SELECT n.nspname::pg_catalog.text
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.relname OPERATOR(pg_catalog.=) 'oban_peers'
          AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog.\"char\"[])
          AND 2 OPERATOR(pg_catalog.=) (
              SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a
              WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped
                AND a.attname OPERATOR(pg_catalog.=) ANY ('{term,boot}'::pg_catalog.name[]))
        ORDER BY 1";
    Spi::connect(|client| {
        let rows = client.select(SQL, None, &[])?;
        rows.map(|row| Ok(row.get::<String>(1)?.unwrap_or_default())).collect::<SpiResult<Vec<_>>>()
    })
    .unwrap_or_else(|e| pgrx::error!("{e}"))
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
