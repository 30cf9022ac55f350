//! The extension's sequence of terms.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::{catalog, spi};

// Not bound by pgrx. It may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

fn next(sequence: u32) -> i64 {
    // SAFETY: a sequence, or an ERROR.
    unsafe { pg_guard_ffi_boundary(|| nextval_internal(pg_sys::Oid::from(sequence), false)) }
}

/// The sequence, for whoever may read the catalogs: the keeper, and who installs.
pub fn terms() -> u32 {
    let Some(sequence) = spi::own_relation("obanrs_term") else {
        pgrx::error!("the sequence obanrs_term is not there")
    };
    sequence
}

/// The next term: above all before it, and at least `least`. For whoever runs it: terms are given to rows of
/// foreign nodes in their sessions, whose roles need no right on our sequence.
pub fn next_term(sequence: u32, least: i64) -> i64 {
    let term = next(sequence);
    if term >= least {
        return term;
    }
    // Once for each promotion: only one at a time may lift it, or two would get the same term.
    catalog::lock(sequence, pg_sys::ShareUpdateExclusiveLock);
    let term = next(sequence);
    if term >= least {
        return term;
    }
    spi::set_sequence(sequence, least);
    least
}

/// The term of a row of oban_peers that this transaction has just inserted with `term`: that, or if any was
/// drawn since, a new one, which the row is given as `elector` says. Whoever inserted the name before has
/// been deleted by now, and whoever comes after finds this row: so terms rise in the order of the rows.
/// A row that the elector may not write, or see, keeps its term: an election must not fail by this.
pub fn later_term(sequence: u32, table: u32, name: &str, term: i64, least: i64) -> i64 {
    if spi::last_of_sequence(sequence) <= term {
        return term;
    }
    let Some(elector) = catalog::elector_who_may_update(table) else { return term };
    let new = next_term(sequence, least);
    if spi::set_term(table, elector, name, term, new) { new } else { term }
}

/// Lifts the sequence above a term that a table has already: an extension that was dropped and created has a
/// sequence that begins anew.
pub fn lift_above(seen: i64, next: i64) {
    let sequence = terms();
    if spi::last_of_sequence(sequence) <= seen {
        next_term(sequence, next);
    }
}
