//! The channel `leadership`: each change of leader, for programs.
//!
//! `{"elected": <node>, "name": <name>, "term": <term>}` goes with the transaction that inserts a leader's row,
//! `{"ended": <node>, "name": <name>, "term": <term>}` with the one that deletes it. The term is null if the row has
//! none. Nodes of Oban do not know the channel. (Oban for Python takes anything on `leader` for the end of a
//! leadership.)
//!
//! They are hints: the row is written, whether or not there is room for its message. Nothing here raises: a foreign
//! node's name may be any bytes.

use super::{Target, count_dropped, queue};
use crate::backend::listening;
use crate::logic::ids::{SchemaOid, Term};
use crate::logic::outbox::Requester;
use crate::logic::wire;
use crate::pg::{catalog, encoding};
use crate::shmem::rings;

/// A change of leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderChange {
    Elected,
    Ended,
}

/// Tells of a change, when this transaction commits. `schema` is the prefix's; `term` 0 is none.
pub fn tell(change: LeaderChange, schema: SchemaOid, name: &str, node: &str, term: Term) {
    // Nobody has polled in a database without a ring, and this need not take one from the pool.
    let in_ring = rings::availability().is_some_and(|ring| ring.has_ring);
    if name.is_empty() || !(in_ring || listening::any()) {
        return;
    }
    // A prefix can have a name that is too long for this channel, though not for Oban's.
    let Some(prefix) = catalog::namespace_name(schema) else { return };
    let Ok(target) = Target::new(Some(schema), &prefix, "leadership") else { return };
    let target = if in_ring { target } else { target.native_only() };
    let payload = wire::change_of_leader(
        if change == LeaderChange::Elected { "elected" } else { "ended" },
        &encoding::to_server_lossy(node),
        &encoding::to_server_lossy(name),
        Some(term.0).filter(|_| !term.is_none()),
    );
    if payload.len() > wire::MAX_PAYLOAD || queue(&target, payload, Requester::Trigger).is_err() {
        count_dropped();
    }
}
