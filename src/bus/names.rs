//! Native NOTIFY on the channels of schemas. A schema may have been renamed or dropped since the call: the name that
//! counts is the one at the moment of sending.

use std::collections::HashMap;

use crate::logic::channel::MAX_CHANNEL;
use crate::logic::ids::SchemaOid;
use crate::pg::{catalog, notify, session};

/// Looks each schema up once. A value serves one transaction.
pub struct Names {
    /// Names are looked up in the catalogs, not in this process's caches.
    in_catalogs: bool,
    /// `<name>.oban_`, by the schema's oid. `None`: no channel can be in it.
    prefixes: HashMap<SchemaOid, Option<Vec<u8>>>,
    full: Vec<u8>,
}

impl Names {
    /// As they are committed now, or changed by this transaction.
    pub fn now() -> Self {
        session::see_changes();
        Self { in_catalogs: false, prefixes: HashMap::new(), full: Vec::new() }
    }

    /// As they are committed now, for a worker: a transaction that renames a schema and sends a message wakes the
    /// worker before its caches are told of the name.
    pub fn committed() -> Self {
        Self { in_catalogs: true, prefixes: HashMap::new(), full: Vec::new() }
    }

    /// Queues a native notification until the end of this transaction. False when there is no such channel, as the
    /// schema was dropped, has a dot in its name by now, or a name that is too long.
    pub fn notify(&mut self, schema: SchemaOid, channel: &[u8], payload: &[u8]) -> bool {
        let full = self.full(schema, channel);
        full.is_some_and(|full| {
            notify::notify(full, payload);
            true
        })
    }

    /// The full name of a channel, in the server's encoding.
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

/// Every byte below 128 of a name in the server's encoding is ASCII, so that nothing need be converted.
fn prefix_of(schema: SchemaOid) -> Option<Vec<u8>> {
    catalog::with_schema_name(schema, |name| {
        let name = name.to_bytes();
        (!name.contains(&b'.')).then(|| [name, b".oban_"].concat())
    })?
}

/// The same by the catalogs.
fn committed_prefix_of(schema: SchemaOid) -> Option<Vec<u8>> {
    let name = catalog::namespace_bytes(schema).filter(|name| !name.contains(&b'.'))?;
    Some([&name[..], b".oban_"].concat())
}
