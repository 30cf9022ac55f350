//! The channel `leadership`, which tells programs of each change of leader.
//!
//! The transaction that inserts a leader's row sends
//! `{"elected": <node>, "name": <name>, "term": <term>}`. The transaction that deletes the row
//! sends `{"ended": <node>, "name": <name>, "term": <term>}`. The term is null if the row has none.
//! Oban's nodes do not know the channel. (Oban for Python takes any message on `leader` for the end
//! of a leadership.)
//!
//! The messages are hints: the row is written whether or not there is room for its message. No
//! function here raises an error, because a foreign node's name may hold any bytes.

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

/// Queues the message of a change until this transaction commits. `schema` is the prefix's schema,
/// and `Term::NONE` means that the row has no term. Queues nothing if `name` is empty, if no
/// session can read the message, or if the prefix has no such channel. A message that is too long,
/// or has no room, is dropped and counted.
pub fn tell(change: LeaderChange, schema: SchemaOid, name: &str, node: &str, term: Term) {
    // No session has polled in a database without a ring. This message need not take a ring from
    // the pool.
    let in_ring = rings::availability().is_some_and(|ring| ring.has_ring);
    if name.is_empty() || !(in_ring || listening::any()) {
        return;
    }
    // A prefix's name may be too long for this channel, and short enough for Oban's channels.
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
