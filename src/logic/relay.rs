//! Plans which messages the relay sends in which transaction.
//!
//! Postgres sends equal notifications of one transaction once. For wake-ups this is welcome: a
//! process that is woken looks into the tables, and finds the rows of all equal wake-ups. Any other
//! message has a meaning each time (pause, resume, pause), so a message that equals an earlier one
//! begins a new transaction. Messages keep their order.
//!
//! Two messages of one schema and channel are equal on the wire if their payloads are equal,
//! whichever tables they come from. A verbatim channel may have the same name as the full name of a
//! schema's channel, and the schema's name is not known yet. Such messages may be equal if the rest
//! of both names is the same. A wake-up that may equal an earlier message is sent in the same
//! transaction: if they are equal, Postgres sends one of them. Any other such message begins a new
//! transaction.

use std::collections::HashSet;

use super::ids::SchemaOid;
use super::ring::RingMessage;

/// What to send. Messages are named by their index in the batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The messages of each transaction, in order.
    pub transactions: Vec<Vec<usize>>,
    /// The number of wake-ups that need not be sent, because an equal one is sent.
    pub merged: usize,
    /// How many messages of the batch the first transaction covers, merged wake-ups included.
    pub first_messages: usize,
}

/// The messages of the transaction that is being planned.
#[derive(Default)]
struct Seen<'m> {
    /// Schema, channel and payload of each message.
    messages: HashSet<(SchemaOid, &'m [u8], &'m [u8])>,
    /// Short channel and payload of each message that may equal a message of another kind on the
    /// wire, and whether the message's channel is verbatim.
    on_the_wire: HashSet<(&'m [u8], &'m [u8], bool)>,
}

/// Whether a message is equal on the wire to an earlier one of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Equal {
    No,
    /// The message is equal if the schema of one of the two messages has a certain name.
    Perhaps,
    Yes,
}

impl<'m> Seen<'m> {
    /// Adds a message. Returns whether it is equal to an earlier one.
    fn insert(&mut self, message: &RingMessage<'m>) -> Equal {
        if !self.messages.insert((message.schema, message.channel, message.payload)) {
            return Equal::Yes;
        }
        let is_verbatim = message.schema.is_none();
        let short = if is_verbatim { short_of(message.channel) } else { Some(message.channel) };
        let Some(short) = short else { return Equal::No };
        self.on_the_wire.insert((short, message.payload, is_verbatim));
        let others = self.on_the_wire.contains(&(short, message.payload, !is_verbatim));
        if others { Equal::Perhaps } else { Equal::No }
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.on_the_wire.clear();
    }
}

/// Returns the short channel of a full name, or `None` for a name that no channel of a prefix has.
fn short_of(full: &[u8]) -> Option<&[u8]> {
    let dot = full.iter().position(|byte| *byte == b'.')?;
    full[dot..].strip_prefix(b".oban_")
}

/// Returns the plan for the messages of a batch.
pub fn plan<'m>(messages: impl Iterator<Item = RingMessage<'m>>) -> Plan {
    let mut plan = Plan::default();
    let mut seen = Seen::default();
    let mut count = 0;
    for (number, message) in messages.enumerate() {
        count = number + 1;
        if plan.transactions.is_empty() {
            plan.transactions.push(Vec::new());
        }
        match seen.insert(&message) {
            Equal::Yes if message.wakeup => {
                plan.merged += 1;
                continue;
            }
            Equal::No => {}
            Equal::Perhaps if message.wakeup => {}
            Equal::Perhaps | Equal::Yes => {
                if plan.transactions.len() == 1 {
                    plan.first_messages = number;
                }
                seen.clear();
                seen.insert(&message);
                plan.transactions.push(Vec::new());
            }
        }
        if let Some(last) = plan.transactions.last_mut() {
            last.push(number);
        }
    }
    if plan.transactions.len() < 2 {
        plan.first_messages = count;
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::super::ids::TableOid;
    use super::*;
    use proptest::prelude::*;

    fn message(n: &(bool, u8)) -> RingMessage<'_> {
        RingMessage {
            position: 0,
            sent_at: super::super::times::WallTime(0),
            schema: SchemaOid(6),
            channel: if n.0 { b"insert" } else { b"gossip" },
            table: TableOid::NONE,
            payload: std::slice::from_ref(&n.1),
            text: false,
            wakeup: n.0,
            missed: 0,
        }
    }

    fn planned(messages: &[(bool, u8)]) -> (Vec<Vec<usize>>, usize) {
        let plan = plan(messages.iter().map(message));
        (plan.transactions, plan.merged)
    }

    #[test]
    fn wake_ups_are_merged_and_the_rest_comes_each_time() {
        assert_eq!(planned(&[]), (vec![], 0));
        let (pause, resume, wake) = ((false, 1), (false, 2), (true, 3));
        assert_eq!(planned(&[wake, pause, wake, resume, wake]), (vec![vec![0, 1, 3]], 2));
        assert_eq!(planned(&[pause, resume, pause, wake]), (vec![vec![0, 1], vec![2, 3]], 0));
        assert_eq!(planned(&[pause, pause, pause]), (vec![vec![0], vec![1], vec![2]], 0));
    }

    #[test]
    fn what_may_be_equal_on_the_wire_is_sent_twice() {
        let on = |schema, channel: &'static [u8]| RingMessage { schema, channel, ..message(&(false, 1)) };
        let sent = |messages: &[RingMessage<'_>]| plan(messages.iter().copied()).transactions;
        let (own, verbatim) = (on(SchemaOid(6), b"gossip"), on(SchemaOid(0), b"public.oban_gossip"));
        assert_eq!(sent(&[own, verbatim]), [[0], [1]]);
        assert_eq!(sent(&[verbatim, own]), [[0], [1]]);
        assert_eq!(
            sent(&[
                own,
                on(SchemaOid(7), b"gossip"),
                on(SchemaOid(0), b"gossip"),
                on(SchemaOid(0), b"public.oban_sonar")
            ]),
            [[0, 1, 2, 3]]
        );
        assert_eq!(sent(&[on(SchemaOid(0), b"a.b.oban_gossip"), own]), [[0, 1]], "no prefix has a dot");
    }

    #[test]
    fn wake_ups_of_tables_are_merged_on_the_wire() {
        let on = |schema, channel: &'static [u8], table| RingMessage {
            schema,
            channel,
            table: TableOid(table),
            wakeup: true,
            ..message(&(false, 1))
        };
        let planned = |messages: &[RingMessage<'_>]| {
            let plan = plan(messages.iter().copied());
            (plan.transactions, plan.merged)
        };
        let [one, other] = [8, 9].map(|table| on(SchemaOid(0), b"orders", table));
        assert_eq!(planned(&[one, other, one]), (vec![vec![0]], 2));
        let call = RingMessage { wakeup: false, table: TableOid::NONE, ..one };
        assert_eq!(planned(&[one, call, other, call]), (vec![vec![0], vec![1], vec![3]], 1), "calls are not");

        // Which schema has the name "public" is not known here, so none of these is left out.
        let verbatim = on(SchemaOid(0), b"public.oban_insert", 8);
        let (public, tenant) = (on(SchemaOid(6), b"insert", 0), on(SchemaOid(7), b"insert", 0));
        assert_eq!(planned(&[verbatim, public, tenant]), (vec![vec![0, 1, 2]], 0));
        assert_eq!(planned(&[tenant, verbatim, verbatim, tenant]), (vec![vec![0, 1]], 2));
        let call = RingMessage { wakeup: false, ..verbatim };
        assert_eq!(planned(&[tenant, call, public]), (vec![vec![0], vec![1, 2]], 0));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_collapses(
            messages in prop::collection::vec((any::<bool>(), 0u8..4), 0..60)
        ) {
            let (transactions, merged) = planned(&messages);
            let sent: Vec<usize> = transactions.iter().flatten().copied().collect();
            prop_assert!(sent.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(sent.len() + merged, messages.len());
            let plan = plan(messages.iter().map(message));
            let first = plan.transactions.get(1).map_or(messages.len(), |second| second[0]);
            prop_assert_eq!(plan.first_messages, first);
            for transaction in &transactions {
                let distinct: HashSet<_> = transaction.iter().map(|n| messages[*n]).collect();
                prop_assert_eq!(distinct.len(), transaction.len());
            }
            for (n, message) in messages.iter().enumerate() {
                let is_merged = message.0 && sent.iter().any(|s| messages[*s] == *message);
                prop_assert!(sent.contains(&n) || is_merged);
            }
        }
    }
}
