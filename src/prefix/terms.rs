//! Terms: numbers that only rise, from one sequence for each database.

use super::extension;
use crate::pg::sequence;

/// The sequence, or an ERROR without the extension.
pub fn sequence() -> u32 {
    let Some(sequence) = extension::sequence_of_terms() else {
        pgrx::error!("the sequence obanrs_term is not there")
    };
    sequence
}

/// The next term: above all before it, and at least `least`. The current role needs no right on the sequence, because
/// terms are given to rows of foreign nodes in their sessions.
pub fn next(sequence: u32, least: i64) -> i64 {
    let term = sequence::next(sequence);
    if term >= least {
        return term;
    }
    // Once for each promotion. Only one transaction at a time may lift it, or two would get the same term.
    sequence::lock(sequence);
    let term = sequence::next(sequence);
    if term >= least {
        return term;
    }
    sequence::set(sequence, least);
    least
}

/// A term that replaces `term`, if any was drawn since; else `None`.
///
/// The caller has just inserted a row of a name with `term`. The row of that name before it has been deleted by then,
/// and the next one can't come before this transaction ends. So terms that are drawn here rise in the order of rows.
pub fn later(sequence: u32, term: i64, least: i64) -> Option<i64> {
    (sequence::last(sequence) > term).then(|| next(sequence, least))
}

/// Lifts the sequence to `least`, unless it is above `seen`, a term that a table has: an extension that was dropped and
/// created has a sequence that begins anew.
pub fn lift_above(seen: i64, least: i64) {
    let terms = sequence();
    if sequence::last(terms) <= seen {
        next(terms, least);
    }
}
