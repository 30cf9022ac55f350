//! The names of schemas, for the keeper's log. Lines are written outside of transactions, where no
//! name can be looked up.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::logic::ids::SchemaOid;

thread_local! {
    static NAMES: RefCell<HashMap<SchemaOid, String>> = RefCell::default();
}

/// Notes the name that a schema has now.
pub fn remember(schema: SchemaOid, name: &str) {
    NAMES.with_borrow_mut(|names| {
        if names.get(&schema).is_none_or(|known| known != name) {
            names.insert(schema, name.to_owned());
        }
    });
}

/// Returns the name that the schema had when the keeper last looked at it, or else the schema's
/// oid.
pub fn shown(schema: SchemaOid) -> String {
    NAMES.with_borrow(|names| names.get(&schema).cloned()).unwrap_or_else(|| schema.to_string())
}

/// Forgets the names of the schemas that are not needed.
pub fn retain(is_needed: impl Fn(SchemaOid) -> bool) {
    NAMES.with_borrow_mut(|names| names.retain(|schema, _| is_needed(*schema)));
}
