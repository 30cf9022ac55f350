//! The extension in this database, as committed now. A session that creates or drops the extension
//! wakes the workers shortly before their caches of the catalogs are invalidated. So these
//! functions read the catalogs themselves.

use crate::pg::catalog;

/// Returns whether this database has the extension.
pub fn exists() -> bool {
    catalog::extension("obanrs").is_some()
}

/// Returns the sequence of terms. `None`: there is no extension, or the extension is older than
/// 0.3.0.
///
/// The name is looked up in the extension's schema. The sequence is a member of the extension, so
/// only the owner of the sequence can rename or drop it and put another one in its place.
pub fn sequence_of_terms() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::relation_now(schema, "obanrs_term")
}

/// Returns the function of the triggers on tables of leaders. `None`: there is no extension, or the
/// extension is older than 0.4.0.
pub fn peers_function() -> Option<u32> {
    let schema = catalog::extension("obanrs")?.schema;
    catalog::function_without_arguments(schema, "obanrs_peers")
}
