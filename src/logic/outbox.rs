//! The messages of one transaction, from the call to the end of the transaction.
//!
//! Each message belongs to the subtransaction (savepoint, exception block) in which it was queued.
//! The nesting level names the subtransaction; level 1 is the transaction itself. A subtransaction
//! that commits hands its messages to the one around it. A subtransaction that rolls back takes its
//! messages along. Equal messages collapse into the first. The first message is in the same
//! subtransaction as the later one, or in one around it. So the first survives whenever the later
//! one would, and the later one need not be kept.
//!
//! Levels never fall from one message to the next, because an inner subtransaction ends before the
//! outer one goes on. So both ends of a subtransaction touch only the tail of the list.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::ids::{RoleOid, TableOid};
use super::ring::Channel;

/// Why a message is sent. The origin decides what becomes of the message if the transaction can't
/// send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Requester {
    /// A call asked for the message. Either the message is sent, or the call raises an error.
    Call,
    /// A trigger's wake-up: a hint, and never the reason why a user's statement fails.
    Trigger,
}

/// How a message reaches its listeners. Readers of the ring get all messages except those of the
/// kind `NativeOnly`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Through the relay, which may merge the message with an equal one of another transaction.
    Merged,
    /// Through the relay, which sends each such message, also one that equals another.
    Single,
    /// By a native NOTIFY in the message's own transaction, and through the ring for the ring's
    /// readers.
    Native,
    /// By a native NOTIFY only. The message does not go into the ring, so the ring's readers do not
    /// get it.
    NativeOnly,
}

/// A message of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedMessage {
    pub channel: Rc<Channel>,
    /// The table from which the message comes: only roles that may SELECT the table read the
    /// message in the ring. `NONE`: the message comes from no table.
    pub table: TableOid,
    /// The text that is sent, in the server's encoding, which need not be UTF-8.
    pub payload: Vec<u8>,
    /// Whether the payload is any text, and not the wire form of a JSON object.
    pub text: bool,
    pub requester: Requester,
    pub delivery: Delivery,
    /// The role whose quota of the ring the message counts for; 0 for a role without a limit.
    pub role: RoleOid,
}

impl QueuedMessage {
    /// Returns the length of channel and payload in bytes.
    pub fn bytes(&self) -> usize {
        self.channel.name.len() + self.payload.len()
    }

    /// Returns whether the two messages say the same to the same readers. The roles that send them
    /// may differ.
    fn is_equal(&self, other: &Self) -> bool {
        self.channel == other.channel
            && self.payload == other.payload
            && (self.table, self.text) == (other.table, other.text)
            && self.is_native_only() == other.is_native_only()
    }

    /// Returns whether the message does not go into the ring.
    pub fn is_native_only(&self) -> bool {
        self.delivery == Delivery::NativeOnly
    }

    /// Returns whether the message's own transaction has to send it.
    pub fn is_native(&self) -> bool {
        matches!(self.delivery, Delivery::Native | Delivery::NativeOnly)
    }

    /// Returns a hash that is equal for equal messages.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.channel.schema, &self.channel.name, &self.payload).hash(&mut hasher);
        (self.table, self.text, self.is_native_only()).hash(&mut hasher);
        hasher.finish()
    }
}

/// What `Outbox::queue` did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// The message was added.
    New,
    /// An equal message was queued before, and stands for this one.
    Merged,
    /// The transaction already has as many messages, or as many bytes, as allowed. The message was
    /// not added.
    Full,
    /// There is no memory for the message. The message was not added.
    OutOfMemory,
}

/// The most bytes of a transaction's messages: 8,000 messages of the longest kind.
pub const MAX_BYTES: usize = 64 << 20;

/// Up to this many messages are compared one by one, without hashes.
const MAX_COMPARED: usize = 16;

/// The messages that a transaction has queued so far.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The messages in the order of their calls, each with its level.
    messages: Vec<(QueuedMessage, u32)>,
    /// The index of a message with each hash, once there are more than `MAX_COMPARED` messages. If two
    /// different messages ever share a hash, equal messages may be kept more than once, and
    /// Postgres collapses them.
    first: HashMap<u64, usize>,
    /// The bytes of all messages, as `QueuedMessage::bytes` counts them.
    bytes: usize,
}

impl Outbox {
    /// Queues a message in the subtransaction of this level, unless the transaction has `most`
    /// messages already.
    pub fn queue(&mut self, message: QueuedMessage, level: u32, most: usize) -> Queued {
        debug_assert!(self.messages.last().is_none_or(|(_, last)| *last <= level));
        if let Some(at) = self.find(&message, level) {
            let first = &mut self.messages[at].0;
            if message.requester == Requester::Call {
                first.requester = Requester::Call;
            }
            // If the later message is rolled back, the first is sent natively for nothing, which
            // does no harm.
            if message.delivery == Delivery::Native {
                first.delivery = Delivery::Native;
            }
            return Queued::Merged;
        }
        if self.messages.len() >= most || self.bytes + message.bytes() > MAX_BYTES {
            return Queued::Full;
        }
        let new = if self.messages.len() == MAX_COMPARED { MAX_COMPARED + 1 } else { 1 };
        if self.messages.try_reserve(1).is_err() || self.first.try_reserve(new).is_err() {
            return Queued::OutOfMemory;
        }
        self.bytes += message.bytes();
        self.messages.push((message, level));
        let indexed =
            if self.messages.len() > MAX_COMPARED { self.messages.len() - new } else { self.messages.len() };
        for at in indexed..self.messages.len() {
            let hash = self.messages[at].0.hash();
            // Of two equal messages the later one is a call. All equal messages that follow can be
            // merged with the call.
            self.first.insert(hash, at);
        }
        Queued::New
    }

    /// Returns the index of an equal message with which this one can be merged, or `None`. A call
    /// is not merged with the wake-up of a trigger in an outer subtransaction. The call may be
    /// rolled back; then the transaction has no call, and may be prepared.
    fn find(&self, message: &QueuedMessage, level: u32) -> Option<usize> {
        let serves = |(m, at): &(QueuedMessage, u32)| {
            let requester =
                message.requester == Requester::Trigger || m.requester == Requester::Call || *at == level;
            requester && m.is_equal(message)
        };
        if self.messages.len() <= MAX_COMPARED {
            return self.messages.iter().position(serves);
        }
        let at = *self.first.get(&message.hash())?;
        serves(&self.messages[at]).then_some(at)
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns whether the transaction has a message that a call asked for.
    pub fn has_calls(&self) -> bool {
        self.messages.iter().any(|(m, _)| m.requester == Requester::Call)
    }

    /// Hands the messages of the subtransaction of this level to the one around it, because the
    /// subtransaction commits.
    pub fn commit_level(&mut self, level: u32) {
        let inner = self.messages.iter_mut().rev().take_while(|(_, at)| *at >= level);
        inner.for_each(|(_, at)| *at = level - 1);
    }

    /// Drops the messages of the subtransaction of this level, and of all that committed into it,
    /// because the subtransaction rolls back.
    pub fn abort_level(&mut self, level: u32) {
        let before = self.messages.len();
        while let Some((message, _)) = self.messages.pop_if(|(_, at)| *at >= level) {
            self.bytes -= message.bytes();
            if before > MAX_COMPARED {
                let hash = message.hash();
                if self.first.get(&hash) == Some(&self.messages.len()) {
                    self.first.remove(&hash);
                }
            }
        }
        if self.messages.len() <= MAX_COMPARED {
            self.first.clear();
        }
    }

    /// Empties the outbox and returns its messages in their order. (The outbox keeps no memory.)
    pub fn take(&mut self) -> Vec<QueuedMessage> {
        std::mem::take(self).messages.into_iter().map(|(message, _)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::SchemaOid;
    use super::*;
    use proptest::prelude::*;

    /// Returns one of many messages. The payload is the last digit of `n`, the table is the rest.
    fn message(n: u8) -> QueuedMessage {
        let requester = if n.is_multiple_of(2) { Requester::Call } else { Requester::Trigger };
        let channel = Rc::new(Channel::new(SchemaOid(6), b"insert".to_vec()));
        QueuedMessage {
            channel,
            table: TableOid(u32::from(n / 10)),
            payload: vec![n % 10],
            text: false,
            requester,
            delivery: Delivery::Merged,
            role: RoleOid(0),
        }
    }

    fn sent(outbox: &mut Outbox) -> Vec<u8> {
        outbox.take().iter().map(|m| 10 * m.table.0 as u8 + m.payload[0]).collect()
    }

    #[test]
    fn savepoints_as_native_notify_has_them() {
        let mut outbox = Outbox::default();
        outbox.queue(message(0), 1, 10);
        outbox.queue(message(1), 2, 10);
        assert_eq!(outbox.queue(message(0), 2, 10), Queued::Merged);
        outbox.abort_level(2);
        assert_eq!(outbox.queue(message(1), 2, 10), Queued::New, "the first one was rolled back");
        outbox.commit_level(2);
        assert_eq!(outbox.queue(message(1), 2, 10), Queued::Merged);
        assert_eq!(sent(&mut outbox), [0, 1]);
        assert!(outbox.is_empty() && outbox.first.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn what_is_over_the_limit_is_refused_and_changes_nothing() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.queue(message(1), 1, 2), Queued::New);
        assert_eq!(outbox.queue(message(3), 1, 2), Queued::New);
        assert!(!outbox.has_calls());
        assert_eq!(outbox.queue(message(2), 1, 2), Queued::Full);
        assert_eq!(outbox.queue(message(3), 1, 2), Queued::Merged, "an equal one needs no room");
        assert!(!outbox.has_calls());
        assert_eq!(sent(&mut outbox), [1, 3]);
    }

    #[test]
    fn equal_is_what_says_the_same() {
        let mut outbox = Outbox::default();
        let with = |requester, delivery| QueuedMessage { requester, delivery, ..message(1) };
        outbox.queue(with(Requester::Trigger, Delivery::Merged), 1, 10);
        assert_eq!(outbox.queue(with(Requester::Trigger, Delivery::Native), 1, 10), Queued::Merged);
        assert!(!outbox.has_calls());
        assert_eq!(outbox.queue(with(Requester::Call, Delivery::Merged), 1, 10), Queued::Merged);
        assert!(outbox.has_calls());
        let verbatim = Channel::new(SchemaOid(0), b"insert".to_vec());
        assert_eq!(
            outbox.queue(QueuedMessage { channel: Rc::new(verbatim), ..message(1) }, 1, 10),
            Queued::New,
            "verbatim"
        );
        assert_eq!(outbox.take()[0], with(Requester::Call, Delivery::Native));

        for message in [message(1), message(2)] {
            let other_table = QueuedMessage { table: TableOid(7), ..message.clone() };
            let as_text = QueuedMessage { text: true, ..message.clone() };
            for message in [message, other_table, as_text] {
                assert_eq!(
                    outbox.queue(message.clone(), 1, 10),
                    Queued::New,
                    "other readers, or another JSON"
                );
                assert_eq!(outbox.queue(message, 1, 10), Queued::Merged);
            }
        }
        outbox.take();

        outbox.queue(with(Requester::Call, Delivery::Single), 1, 10);
        assert_eq!(
            outbox.queue(with(Requester::Call, Delivery::NativeOnly), 1, 10),
            Queued::New,
            "for other readers"
        );
        assert_eq!(outbox.queue(with(Requester::Call, Delivery::NativeOnly), 1, 10), Queued::Merged);
        outbox.take();

        // PREPARE TRANSACTION is refused only if the call in the savepoint was not rolled back.
        for others in [0, 20] {
            let mut outbox = Outbox::default();
            outbox.queue(with(Requester::Trigger, Delivery::Merged), 1, 100);
            for n in 0..others {
                outbox.queue(message(101 + 2 * n), 1, 100);
            }
            assert_eq!(outbox.queue(with(Requester::Call, Delivery::Merged), 2, 100), Queued::New);
            assert_eq!(outbox.queue(with(Requester::Call, Delivery::Merged), 2, 100), Queued::Merged);
            assert!(outbox.has_calls());
            outbox.abort_level(2);
            assert!(!outbox.has_calls());
            assert_eq!(outbox.take().len(), 1 + usize::from(others));
        }
    }

    #[test]
    fn bytes_are_limited_and_given_back() {
        let mut outbox = Outbox::default();
        let large = |n: u8| QueuedMessage { payload: vec![n; MAX_BYTES / 2 - 8], ..message(n) };
        assert_eq!(outbox.queue(large(1), 1, 10), Queued::New);
        assert_eq!(outbox.queue(large(2), 2, 10), Queued::New);
        assert_eq!(outbox.queue(message(3), 2, 10), Queued::Full);
        outbox.abort_level(2);
        assert_eq!(outbox.queue(message(3), 1, 10), Queued::New);
        assert_eq!(outbox.take().len(), 2);
        assert_eq!(outbox.bytes, 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Queue(u8),
        Begin,
        Commit,
        Abort,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0u8..40).prop_map(Step::Queue),
            2 => Just(Step::Begin),
            1 => Just(Step::Commit),
            1 => Just(Step::Abort),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// The model is a list of messages for each open subtransaction, which is joined at its
        /// commit and dropped at its rollback. Equal messages are removed at the very end.
        #[test]
        fn it_is_a_stack_of_lists(steps in steps()) {
            let mut outbox = Outbox::default();
            let mut model: Vec<Vec<u8>> = vec![vec![]];
            for step in steps {
                let level = model.len() as u32;
                match step {
                    Step::Queue(n) => {
                        let known = model.iter().flatten().any(|m| *m == n);
                        let queued = outbox.queue(message(n), level, 1000);
                        prop_assert_eq!(queued == Queued::Merged, known);
                        model.last_mut().unwrap().push(n);
                    }
                    Step::Begin => model.push(vec![]),
                    Step::Commit if level > 1 => {
                        outbox.commit_level(level);
                        let inner = model.pop().unwrap();
                        model.last_mut().unwrap().extend(inner);
                    }
                    Step::Abort if level > 1 => {
                        outbox.abort_level(level);
                        model.pop();
                    }
                    Step::Commit | Step::Abort => {}
                }
                let calls = model.iter().flatten().any(|m| m.is_multiple_of(2));
                prop_assert_eq!(outbox.has_calls(), calls);
            }
            let mut expected = Vec::new();
            for n in model.into_iter().flatten() {
                if !expected.contains(&n) {
                    expected.push(n);
                }
            }
            prop_assert_eq!(sent(&mut outbox), expected);
        }
    }
}
