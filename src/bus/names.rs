//! Native NOTIFY on the channels of schemas. A schema may have been renamed or dropped since the
//! call. The name that counts is the one at the moment of sending.

use std::collections::HashMap;

use crate::logic::channel::MAX_CHANNEL;
use crate::logic::ids::SchemaOid;
use crate::pg::{catalog, notify, session};

/// The names of schemas, each looked up once. A value serves one transaction.
pub struct Names {
    /// Whether names are looked up in the catalogs, and not in this process's caches.
    in_catalogs: bool,
    /// `<name>.oban_`, by the schema's oid. `None`: no channel can be in the schema.
    prefixes: HashMap<SchemaOid, Option<Vec<u8>>>,
    full: Vec<u8>,
}

impl Names {
    /// Returns the names as they are committed now, or as this transaction has changed them.
    pub fn now() -> Self {
        session::see_changes();
        Self { in_catalogs: false, prefixes: HashMap::new(), full: Vec::new() }
    }

    /// Returns the names as they are committed now, for a worker. A transaction that renames a
    /// schema and sends a message wakes the worker before the worker's caches are told of the new
    /// name.
    pub fn committed() -> Self {
        Self { in_catalogs: true, prefixes: HashMap::new(), full: Vec::new() }
    }

    /// Queues a native notification until the end of this transaction. Returns false if there is no
    /// such channel: the schema was dropped, or by now its name has a dot or is too long.
    pub fn notify(&mut self, schema: SchemaOid, channel: &[u8], payload: &[u8]) -> bool {
        let full = self.full(schema, channel);
        full.is_some_and(|full| {
            notify::notify(full, payload);
            true
        })
    }

    /// Returns the full name of a channel, in the server's encoding. `None`: there is no such
    /// channel.
    pub fn full(&mut self, schema: SchemaOid, channel: &[u8]) -> Option<&[u8]> {
        self.full.clear();
        if !schema.is_none() {
            let in_catalogs = self.in_catalogs;
            let look = || if in_catalogs { committed_prefix_of(schema) } else { prefix_of(schema) };
            let prefix = self.prefixes.entry(schema).or_insert_with(look);
            self.full.extend_from_slice(prefix.as_ref()?);
        }
        self.full.extend_from_slice(channel);
        (self.full.len() <= MAX_CHANNEL).then_some(&*self.full)
    }
}

/// Returns `<name>.oban_` by this process's caches. `None`: no channel can be in the schema. Every
/// byte below 128 of a name in the server's encoding is ASCII, so that nothing need be converted.
fn prefix_of(schema: SchemaOid) -> Option<Vec<u8>> {
    catalog::with_schema_name(schema, |name| {
        let name = name.to_bytes();
        (!name.contains(&b'.')).then(|| [name, b".oban_"].concat())
    })?
}

/// Returns `<name>.oban_` by the catalogs. `None`: no channel can be in the schema.
fn committed_prefix_of(schema: SchemaOid) -> Option<Vec<u8>> {
    let name = catalog::namespace_bytes(schema).filter(|name| !name.contains(&b'.'))?;
    Some([&name[..], b".oban_"].concat())
}
