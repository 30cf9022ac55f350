//! Terms: numbers that only rise. Each database has one sequence for its terms.

use super::extension;
use crate::logic::ids::{TableOid, Term};
use crate::pg::sequence;

/// Returns the sequence of terms. Raises an ERROR if there is no such sequence.
pub fn sequence() -> TableOid {
    let Some(sequence) = extension::sequence_of_terms() else {
        pgrx::error!("the sequence obanrs_term is not there")
    };
    sequence
}

/// Returns the next term, which is greater than all earlier terms, and at least `least`. The
/// current role needs no right on the sequence, because a trigger draws terms in the sessions of
/// foreign nodes.
pub fn next(sequence: TableOid, least: Term) -> Term {
    let term = Term(sequence::next(sequence));
    if term >= least {
        return term;
    }
    // This happens once after each promotion. Two transactions that lift the sequence at the same
    // time would get the same term, so the lock allows only one transaction at a time.
    sequence::lock(sequence);
    let term = Term(sequence::next(sequence));
    if term >= least {
        return term;
    }
    sequence::set(sequence, least.0);
    least
}

/// Returns a term to replace `term`, if another term was drawn after `term`. `None`: `term` was the
/// last term drawn.
///
/// The caller has just inserted a row of a name with `term`. The earlier row of that name was
/// deleted before, and a later row can't be inserted before this transaction ends. So the terms of
/// a name's rows rise in the order of the rows.
pub fn later(sequence: TableOid, term: Term, least: Term) -> Option<Term> {
    (sequence::last(sequence) > term.0).then(|| next(sequence, least))
}

/// Lifts the sequence to `least`, unless its last term is greater than `seen`, the greatest term in
/// a table. A table can have greater terms than the sequence: if the extension is dropped and
/// created again, its new sequence starts from the beginning.
pub fn lift_above(seen: Term, least: Term) {
    let terms = sequence();
    if sequence::last(terms) <= seen.0 {
        next(terms, least);
    }
}
