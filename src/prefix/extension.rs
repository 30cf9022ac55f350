//! The extension in this database, as committed now. A session that creates or drops the extension
//! wakes the workers shortly before their caches of the catalogs are invalidated. So these
//! functions read the catalogs themselves.

use crate::logic::ids::{SchemaOid, TableOid};
use crate::pg::{catalog, spi};

/// Returns whether this database has the extension.
pub fn exists() -> bool {
    catalog::extension("obanrs").is_some()
}

/// Returns the sequence of terms. `None`: there is no extension, or the extension is older than
/// 0.3.0.
///
/// The name is looked up in the extension's schema. The sequence is a member of the extension, so
/// only the owner of the sequence can rename or drop it and put another one in its place.
pub fn sequence_of_terms() -> Option<TableOid> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::relation_now(schema, "obanrs_term")
}

/// Returns the function of the triggers on tables of leaders. `None`: there is no extension, or the
/// extension is older than 0.4.0.
pub fn peers_function() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::function_without_arguments(schema, "obanrs_peers")
}

/// Returns the function of the triggers on tables of jobs. `None`: there is no extension.
pub fn jobs_function() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::function_without_arguments(schema, "obanrs_jobs_insert")
}

/// Returns the extension, locked until the end of the transaction so that no session can drop it
/// meanwhile. `None`: there is no extension, or it was dropped before this transaction held the
/// lock.
pub fn lock() -> Option<u32> {
    let oid = catalog::extension("obanrs")?.oid;
    catalog::lock_extension(oid);
    catalog::extension("obanrs").is_some_and(|now| now.oid == oid).then_some(oid)
}

/// Locks the creation of prefixes until the end of the transaction, so that sessions create
/// prefixes one after the other. The lock uses the oid 0, which no schema has.
pub fn lock_creation_of_prefixes() {
    catalog::lock_namespace(SchemaOid::NONE);
}

/// Returns the extension's trigger function of this name in this database. `None`: this version of
/// the extension has no such function. The function has to be a member of the extension, because
/// users may have created functions of the same name.
pub fn trigger_function(name: &str) -> Option<u32> {
    const SQL: &str = "
        SELECT f.oid::pg_catalog.text FROM pg_catalog.pg_proc f
        JOIN pg_catalog.pg_depend d ON d.objid OPERATOR(pg_catalog.=) f.oid
            AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            AND d.deptype OPERATOR(pg_catalog.=) 'e'
        JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs' AND f.proname OPERATOR(pg_catalog.=) $1::pg_catalog.name
          AND f.prorettype OPERATOR(pg_catalog.=) 'pg_catalog.trigger'::pg_catalog.regtype";
    spi::look(SQL, name).pop()?.parse().ok()
}
