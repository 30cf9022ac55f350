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

/// `oban_peers` of a prefix.
pub struct PeersTable {
    pub oid: u32,
    pub prefix: String,
    pub owner: u32,
    /// Whether `oban_install` added its columns.
    pub installed: bool,
    pub unlogged: bool,
}

/// Every ordinary table of that name with Oban's columns and their types. A table of another shape, or a
/// temporary one of another session, must not make a query over all prefixes fail for everybody.
/// (Every operator is qualified, here and wherever SQL of ours runs with a user's search_path.)
const PEERS_TABLES: &str = "
    SELECT p.prefix, p.owner, p.ours OPERATOR(pg_catalog.=) 2, p.unlogged, p.oid
    FROM (
        SELECT n.nspname::pg_catalog.text AS prefix, c.relowner AS owner,
            c.relpersistence OPERATOR(pg_catalog.=) 'u' AS unlogged, c.oid,
            pg_catalog.count(*) FILTER (WHERE
                a.attname OPERATOR(pg_catalog.=) ANY ('{name,node}'::pg_catalog.name[])
                AND a.atttypid OPERATOR(pg_catalog.=) 'pg_catalog.text'::pg_catalog.regtype::pg_catalog.oid
                OR a.attname OPERATOR(pg_catalog.=) ANY ('{started_at,expires_at}'::pg_catalog.name[])
                AND a.atttypid OPERATOR(pg_catalog.=) 'pg_catalog.timestamp'::pg_catalog.regtype::pg_catalog.oid
            ) AS theirs,
            pg_catalog.count(*) FILTER (WHERE
                a.attname OPERATOR(pg_catalog.=) ANY ('{term,boot}'::pg_catalog.name[])
                AND a.atttypid OPERATOR(pg_catalog.=) 'pg_catalog.int8'::pg_catalog.regtype::pg_catalog.oid
            ) AS ours
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped
        WHERE c.relname OPERATOR(pg_catalog.=) 'oban_peers'
          AND c.relkind OPERATOR(pg_catalog.=) 'r'
          AND c.relpersistence OPERATOR(pg_catalog.<>) 't'
          AND ($1 IS NULL OR n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.name)
        GROUP BY n.nspname, c.oid, c.relowner, c.relpersistence
    ) p
    WHERE p.theirs OPERATOR(pg_catalog.=) 4
    ORDER BY p.prefix";

fn peers_tables(prefix: Option<&str>) -> Vec<PeersTable> {
    Spi::connect(|client| {
        let rows = client.select(PEERS_TABLES, None, &[prefix.into()])?;
        rows.map(|row| {
            Ok(PeersTable {
                prefix: row.get(1)?.unwrap_or_default(),
                owner: row.get::<pg_sys::Oid>(2)?.map_or(0, |o| o.to_u32()),
                installed: row.get(3)?.unwrap_or(false),
                unlogged: row.get(4)?.unwrap_or(false),
                oid: row.get::<pg_sys::Oid>(5)?.map_or(0, |o| o.to_u32()),
            })
        })
        .collect::<SpiResult<Vec<_>>>()
    })
    .unwrap_or_else(|e| pgrx::error!("{e}"))
}

/// Looks `<prefix>.oban_peers` up; `None` without such a table. Needs a transaction.
pub fn peers_table(prefix: &str) -> Option<PeersTable> {
    peers_tables(Some(prefix)).pop()
}

/// The tables of all prefixes that `oban_install` made usable for elections, in order.
pub fn installed_peers_tables() -> Vec<PeersTable> {
    peers_tables(None).into_iter().filter(|t| t.installed).collect()
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
