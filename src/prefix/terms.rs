//! Terms: numbers that only rise. Each database has one sequence for them.

use super::extension;
use crate::pg::sequence;

/// The sequence of terms. An ERROR when there is none.
pub fn sequence() -> u32 {
    let Some(sequence) = extension::sequence_of_terms() else {
        pgrx::error!("the sequence obanrs_term is not there")
    };
    sequence
}

/// The next term: greater than all earlier ones, and at least `least`. The current role needs no right on the
/// sequence, because a trigger draws terms in the sessions of foreign nodes.
pub fn next(sequence: u32, least: i64) -> i64 {
    let term = sequence::next(sequence);
    if term >= least {
        return term;
    }
    // This happens once after each promotion. Two transactions that lift the sequence at the same time would
    // get the same term: the lock allows one at a time.
    sequence::lock(sequence);
    let term = sequence::next(sequence);
    if term >= least {
        return term;
    }
    sequence::set(sequence, least);
    least
}

/// A term to replace `term`, if another one has been drawn since. `None`: `term` was the last one drawn.
///
/// The caller has just inserted a row of a name with `term`. The earlier row of that name is deleted by then,
/// and a later one can't be inserted before this transaction ends. So the terms of a name's rows rise in the
/// order of the rows.
pub fn later(sequence: u32, term: i64, least: i64) -> Option<i64> {
    (sequence::last(sequence) > term).then(|| next(sequence, least))
}

/// Lifts the sequence to `least` unless its last term is greater than `seen`, a term that a table has. An
/// extension that was dropped and created again has a sequence that begins anew.
pub fn lift_above(seen: i64, least: i64) {
    let terms = sequence();
    if sequence::last(terms) <= seen {
        next(terms, least);
    }
}
