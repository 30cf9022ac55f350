//! Which of the relay's transactions a message goes into.
//!
//! Postgres sends equal notifications of one transaction once. For wake-ups that is welcome: whoever is woken
//! looks into the tables, where it finds the rows of all of them. Any other message means something each
//! time (pause, resume, pause), so an equal one begins a new transaction. Messages keep their order.

use std::collections::HashSet;

use super::ring::Message;

/// What to send in one transaction each, by the messages' numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub transactions: Vec<Vec<usize>>,
    /// Wake-ups that need not be sent, as an equal one is.
    pub merged: usize,
    /// How many messages the first transaction stands for.
    pub first_messages: usize,
}

pub fn plan<'m>(messages: impl Iterator<Item = Message<'m>>) -> Plan {
    let mut plan = Plan::default();
    let mut seen = HashSet::new();
    let mut count = 0;
    for (number, message) in messages.enumerate() {
        count = number + 1;
        if plan.transactions.is_empty() {
            plan.transactions.push(Vec::new());
        }
        if !seen.insert((message.channel, message.payload)) {
            if message.wakeup {
                plan.merged += 1;
                continue;
            }
            if plan.transactions.len() == 1 {
                plan.first_messages = number;
            }
            seen.clear();
            seen.insert((message.channel, message.payload));
            plan.transactions.push(Vec::new());
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
    use super::*;
    use proptest::prelude::*;

    fn message(n: &(bool, u8)) -> Message<'_> {
        Message {
            position: 0,
            sent_at: 0,
            channel: if n.0 { b"public.oban_insert" } else { b"public.oban_gossip" },
            prefix: 6,
            payload: std::slice::from_ref(&n.1),
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

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_collapses(messages in prop::collection::vec((any::<bool>(), 0u8..4), 0..60)) {
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
                prop_assert!(sent.contains(&n) || (message.0 && sent.iter().any(|s| messages[*s] == *message)));
            }
        }
    }
}
