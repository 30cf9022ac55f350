//! The extension in this database, as it is committed now. A session that creates or drops the extension
//! wakes the workers a moment before their caches of the catalogs are invalidated, so this reads the catalogs
//! themselves.

use crate::pg::catalog;

/// Whether this database has the extension.
pub fn exists() -> bool {
    catalog::extension("obanrs").is_some()
}

/// The sequence of terms. `None` without the extension, and in an extension older than 0.3.0.
///
/// The name is looked up in the extension's schema. The sequence is a member of the extension, so only its
/// owner can rename or drop it and put another one in its place.
pub fn sequence_of_terms() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::relation_now(schema, "obanrs_term")
}

/// The function of the triggers on tables of leaders. `None` without the extension, and in an extension older
/// than 0.4.0.
pub fn peers_function() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::function_without_arguments(schema, "obanrs_peers")
}
