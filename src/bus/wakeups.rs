//! Waking the workers of a queue: the sessions that listen to the channel `insert`, and one that waits in
//! oban_take.

use super::{Target, count_dropped, queue};
use crate::backend::available_jobs;
use crate::logic::ids::SchemaOid;
use crate::logic::outbox::Requester;
use crate::logic::wire;

/// Wakes the workers of a queue when this transaction commits, because a job is available. The queue's
/// name is in the server's encoding. A wake-up that can't be sent is counted as dropped, because the caller
/// must not fail.
pub fn wake(schema: SchemaOid, of_queue: &[u8]) {
    if of_queue.len() > wire::MAX_PAYLOAD {
        return count_dropped();
    }
    available_jobs::is_available(schema, of_queue);
    send(&Target::wakeups(schema), of_queue);
}

/// Sends the message that wakes the sessions which listen. `target` is that of the prefix's wake-ups.
pub fn send(target: &Target, of_queue: &[u8]) {
    let payload = wire::object_of_one("queue", of_queue);
    // Beyond the transaction's limit the message is dropped, because the caller must not fail. `queue`
    // counts that.
    if payload.len() > wire::MAX_PAYLOAD {
        count_dropped();
    } else {
        let _ = queue(target, payload, Requester::Trigger);
    }
}
