//! Which wake-ups a transaction has queued already. A trigger runs once for each row, and most rows
//! ask for a wake-up that an earlier row of the transaction has asked for. Such a repeat costs one
//! comparison here, in place of a message that the outbox merges.
//!
//! A rollback to a savepoint takes messages back. So the memory is cleared at each rollback: a
//! wake-up that is forgotten is queued again, and the outbox merges it. The memory is also cleared
//! when it is full.

use std::collections::HashMap;

use super::ids::SchemaOid;
use super::takers::MOST_WOKEN;

/// What asks for a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The jobs of a prefix. The text is the queue.
    Prefix(SchemaOid),
    /// The jobs of a prefix, for sessions in oban_take only. The text is the queue.
    Takers(SchemaOid),
    /// A trigger on a watched table, by the trigger's oid and a hash of the arguments: a trigger
    /// that is replaced keeps the oid. The text is the value that is sent.
    Watch { trigger: u32, arguments: u64 },
}

/// The most bytes of the texts that are remembered.
const MAX_BYTES: usize = 1 << 20;

/// What one text takes in memory besides its bytes, about.
const ENTRY: usize = 64;

/// How far repeats are counted: as many takers a wake-up may wake.
pub const MOST_COUNTED: u32 = MOST_WOKEN;

/// The wake-ups that this transaction has queued.
#[derive(Debug, Default)]
pub struct Repeats {
    /// The last wake-up that was asked for `MOST_COUNTED` times. Nearly always the next row asks for the
    /// same.
    last: Option<(Source, Vec<u8>)>,
    /// How often each wake-up was asked for, up to `MOST_COUNTED`.
    counts: HashMap<Source, HashMap<Vec<u8>, u32>>,
    bytes: usize,
}

impl Repeats {
    /// Returns how often this wake-up was asked for before, at most `MOST_COUNTED`, and remembers it. The
    /// text is copied only the first time.
    pub fn count(&mut self, source: Source, text: &[u8]) -> u32 {
        if self.last.as_ref().is_some_and(|(of, last)| *of == source && last == text) {
            return MOST_COUNTED;
        }
        let known = self.counts.get_mut(&source).and_then(|counts| counts.get_mut(text));
        let Some(known) = known else {
            if self.bytes + text.len() + ENTRY > MAX_BYTES {
                self.clear();
            }
            self.bytes += text.len() + ENTRY;
            self.counts.entry(source).or_default().insert(text.to_vec(), 1);
            return 0;
        };
        let before = *known;
        *known = MOST_COUNTED.min(before + 1);
        if before == MOST_COUNTED {
            let mut last = self.last.take().map(|(_, last)| last).unwrap_or_default();
            last.clear();
            last.extend_from_slice(text);
            self.last = Some((source, last));
        }
        before
    }

    /// Forgets everything, and frees the memory.
    pub fn clear(&mut self) {
        if self.bytes > 0 {
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
            assert_eq!(repeats.count(source, &text(n)), 0, "{n}");
            assert_eq!(repeats.count(source, &text(n)), 1, "{n}");
            highest = highest.max(repeats.bytes);
        }
        assert!(highest <= MAX_BYTES && highest > MAX_BYTES / 2, "{highest}");
        repeats.clear();
        assert!(repeats.last.is_none() && repeats.counts.is_empty() && repeats.bytes == 0);
    }

    proptest! {
        /// The model counts what was asked since the last rollback.
        #[test]
        fn it_counts_until_a_rollback(
            steps in proptest::collection::vec((0u8..20, 0u32..3, 0u8..5), 0..200)
        ) {
            let (mut repeats, mut model) = (Repeats::default(), HashMap::new());
            for (what, source, text) in steps {
                if what == 0 {
                    repeats.clear();
                    model.clear();
                    continue;
                }
                let of = if what < 10 { Source::Prefix(SchemaOid(source)) } else {
                    Source::Watch { trigger: source, arguments: 7 }
                };
                let count = model.entry((of, text)).or_insert(0);
                prop_assert_eq!(repeats.count(of, &[text]), MOST_COUNTED.min(*count));
                *count += 1;
            }
        }
    }
}
