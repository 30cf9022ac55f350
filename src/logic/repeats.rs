//! Which wake-ups a transaction has queued already. A trigger runs once for each row, and most rows
//! ask for a wake-up that an earlier row of the transaction has asked for. Such a repeat costs one
//! comparison here, in place of a message that the outbox merges.
//!
//! A rollback to a savepoint takes messages back. So the memory is cleared at each rollback: a
//! wake-up that is forgotten is queued again, and the outbox merges it. The memory is also cleared
//! when it is full.

use std::collections::{HashMap, HashSet};

use super::ids::SchemaOid;

/// What asks for a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The jobs of a prefix. The text is the queue.
    Prefix(SchemaOid),
    /// A trigger on a watched table, by the trigger's oid and a hash of the arguments: a trigger
    /// that is replaced keeps the oid. The text is the value that is sent.
    Watch { trigger: u32, arguments: u64 },
}

/// The most bytes of the texts that are remembered.
const MAX_BYTES: usize = 1 << 20;

/// What one text takes in memory besides its bytes, about.
const ENTRY: usize = 64;

/// The wake-ups that this transaction has queued.
#[derive(Debug, Default)]
pub struct Repeats {
    /// The last wake-up. Nearly always the next row asks for the same.
    last: Option<(Source, Vec<u8>)>,
    others: HashMap<Source, HashSet<Vec<u8>>>,
    bytes: usize,
}

impl Repeats {
    /// Returns whether this wake-up was queued before, and remembers it. The text is copied only
    /// the first time.
    pub fn is_repeat(&mut self, source: Source, text: &[u8]) -> bool {
        if self.last.as_ref().is_some_and(|(of, last)| *of == source && last == text) {
            return true;
        }
        let known = self.others.get(&source).is_some_and(|texts| texts.contains(text));
        if !known && self.bytes + text.len() + ENTRY > MAX_BYTES {
            self.clear();
        }
        if !known {
            self.bytes += text.len() + ENTRY;
            self.others.entry(source).or_default().insert(text.to_vec());
        }
        let mut last = self.last.take().map(|(_, last)| last).unwrap_or_default();
        last.clear();
        last.extend_from_slice(text);
        self.last = Some((source, last));
        known
    }

    /// Forgets everything, and frees the memory.
    pub fn clear(&mut self) {
        if self.last.is_some() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_memory_forgets_and_never_invents() {
        let mut repeats = Repeats::default();
        let source = Source::Prefix(SchemaOid(7));
        let text = |n: usize| format!("{n:0>1000}").into_bytes();
        let mut highest = 0;
        for n in 0..5_000 {
            assert!(!repeats.is_repeat(source, &text(n)), "{n}");
            assert!(repeats.is_repeat(source, &text(n)), "{n}");
            highest = highest.max(repeats.bytes);
        }
        assert!(highest <= MAX_BYTES && highest > MAX_BYTES / 2, "{highest}");
        repeats.clear();
        assert!(repeats.last.is_none() && repeats.others.is_empty() && repeats.bytes == 0);
    }

    proptest! {
        /// The model is the set of what was asked since the last rollback.
        #[test]
        fn it_is_a_set_until_a_rollback(
            steps in proptest::collection::vec((0u8..20, 0u32..3, 0u8..5), 0..200)
        ) {
            let (mut repeats, mut model) = (Repeats::default(), HashSet::new());
            for (what, source, text) in steps {
                if what == 0 {
                    repeats.clear();
                    model.clear();
                    continue;
                }
                let of = if what < 10 { Source::Prefix(SchemaOid(source)) } else {
                    Source::Watch { trigger: source, arguments: 7 }
                };
                prop_assert_eq!(repeats.is_repeat(of, &[text]), !model.insert((of, text)));
            }
        }
    }
}
