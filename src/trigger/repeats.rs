//! The wake-ups that this transaction's triggers have queued already (`logic::repeats`).

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;

use crate::config::{self, Notifier};
use crate::logic::repeats::{Repeats, Source};
use crate::pg::xact;

thread_local! {
    static REPEATS: RefCell<Repeats> = RefCell::default();
    /// The value of obanrs.notifier for which `REPEATS` holds. With another value, an equal message
    /// may have to go another way, which the outbox decides.
    static NOTIFIER: Cell<Option<Notifier>> = const { Cell::new(None) };
}

/// Registers the callbacks that forget wake-ups. `_PG_init` calls this.
pub fn register() {
    xact::on_event(transaction_event);
    xact::on_subtransaction_event(subtransaction_event);
}

fn transaction_event(event: pg_sys::XactEvent::Type) {
    if xact::is_end(event) {
        REPEATS.with_borrow_mut(Repeats::clear);
    }
}

fn subtransaction_event(event: pg_sys::SubXactEvent::Type) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        REPEATS.with_borrow_mut(Repeats::clear);
    }
}

/// Returns how often this transaction has asked for this wake-up before, at most `MOST_COUNTED`, and
/// remembers it.
pub fn count(source: Source, text: &[u8]) -> u32 {
    let notifier = Some(config::notifier());
    REPEATS.with_borrow_mut(|repeats| {
        if NOTIFIER.replace(notifier) != notifier {
            repeats.clear();
        }
        repeats.count(source, text)
    })
}
