//! The extension in this database: read from the catalogs themselves, as sessions that create or drop it wake workers
//! before caches are told.

use crate::pg::catalog;

/// Whether the extension is there.
pub fn exists() -> bool {
    catalog::extension("obanrs").is_some()
}

/// The sequence of terms. `None` without the extension, and in one older than 0.3.0.
///
/// The name is looked up in the extension's own schema, where nobody but a superuser can put another sequence of that
/// name in its place: it is a member of the extension.
pub fn sequence_of_terms() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::relation_now(schema, "obanrs_term")
}

/// The trigger's function on tables of leaders.
pub fn peers_function() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::function_without_arguments(schema, "obanrs_peers")
}
