//! A keeper: the worker of one database with the extension that holds elections and sweeps up
//! expired rows (`election`).
//!
//! If the relay does not come back, the keeper sends stranded messages in its place, so that they
//! do not depend on another commit.
//!
//! While obanrs.signal_ingest is on, the keeper also remembers queue signals of others (`signals`).
//!
//! A keeper ends when it is not wanted any more: a command needs the database alone, the database
//! became a template, or the extension was dropped. After any other end the coordinator starts it
//! again. While a keeper waits, it has no transaction and no lock. The keeper waits until the first
//! of these: its latch is set (a member joined or left, a row was changed or freed, a prefix was
//! installed), half of a lease is over, a lease ends, a row expires, messages are stranded, or a
//! retry is due.
//!
//! The keeper also starts and ends the database's stagers (`stagers`), and stages nothing itself.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::election::{self, Elections};
use super::process::{self, Begun};
use super::signals::SignalIngest;
use super::stagers::Supervisor;
use crate::bus;
use crate::logic::backoff::STRANDED;
use crate::logic::lifecycle::Kind;
use crate::logic::retry::Retry;
use crate::logic::times::ClockTime;
use crate::pg::xact::Caught;
use crate::pg::{bgworker, clock, latch, notify, session, xact};
use crate::prefix::{extension, prefixes};
use crate::shmem::rings;

thread_local! {
    /// Whether ALTER DATABASE had set default_transaction_read_only when this process began. Then
    /// the process has that value until it ends, whatever is set later.
    static BEGAN_WITH_SETTING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the database of this keeper is read-only by default: as ALTER DATABASE has set now, or
/// else as the server's configuration says.
pub fn database_is_read_only() -> bool {
    let configured = || !BEGAN_WITH_SETTING.get() && session::is_read_only_by_default();
    prefixes::database_read_only().unwrap_or_else(configured)
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_keeper_main(argument: pg_sys::Datum) {
    let Some(Begun { segment, database }) = process::begin(Kind::Keeper, argument) else { return };
    let pid = latch::my_pid();
    bgworker::report_name(c"obanrs keeper");
    // The keeper's transactions are short and never wait long for a user's lock.
    session::set(c"lock_timeout", election::TABLE_LOCK_TIMEOUT);
    session::set(c"synchronous_commit", c"local");

    BEGAN_WITH_SETTING.set(xact::run(c"obanrs: reading a setting", prefixes::database_read_only).is_some());
    let mut elections = Elections::new(segment, database);
    let (mut look, mut wakeups) = (true, 0);
    // When the next pass is due by itself. The first pass is due at once.
    let mut due = Some(ClockTime::ZERO);
    let mut stranded = StrandedSender::default();
    let mut signals = SignalIngest::new(segment);
    let mut stagers = Supervisor::new(segment, database);
    loop {
        latch::reset();
        let reloaded = bgworker::reload_config();
        let orders = segment.registry(|r| r.take_orders(Kind::Keeper, database));
        if orders.leave {
            stagers.dismiss();
            return;
        }
        if look || orders.look_for_extension || elections.dropped {
            let since = clock::now();
            let extension = xact::run(c"obanrs: looking for the extension", extension::exists);
            // The relay ends with the extension.
            latch::wake_if(segment.registry(|r| r.extension_looked_up(database, pid, extension, since)));
            segment.wake_coordinator();
            if !extension {
                stagers.dismiss();
                return;
            }
            (look, elections.dropped, due) = (false, false, Some(ClockTime::ZERO));
        }
        let woken = orders.wakeups != wakeups;
        wakeups = orders.wakeups;
        // The time limit of a step leaves its timer on. The timer sets this process's latch when
        // the step is long over. Then there is nothing to do, least of all a pass that sets the
        // timer again.
        let clock_was_set = elections.clock_was_set();
        if woken || reloaded || clock_was_set || due.is_some_and(|at| at <= clock::now()) {
            if woken {
                elections.retry_held_rows();
            }
            elections.rows_changed(orders.changed_rows);
            due = elections.pass();
            // If the pass waited for a lock, that wait reset the latch. The wakeup counter shows a
            // wakeup that would be lost.
            let more = segment.registry(|r| r.wakeups(Kind::Keeper, database) != orders.wakeups);
            if more || elections.dropped {
                continue;
            }
        }
        let stranded_due = stranded.send();
        // Waiting for the lock of NOTIFY resets the latch, too.
        if stranded.tried && segment.registry(|r| r.wakeups(Kind::Keeper, database) != wakeups) {
            continue;
        }
        let signals_due = signals.pass(woken);
        // The last that may run a transaction: nothing resets the latch after it has looked.
        let looked_at_stagers = stagers.pass();
        if looked_at_stagers
            || signals.has_news()
            || signals.tried && segment.registry(|r| r.wakeups(Kind::Keeper, database) != wakeups)
        {
            continue;
        }
        let due = [due, stranded_due, signals_due, stagers.due()];
        latch::wait_until(due.into_iter().reduce(election::earliest).flatten());
    }
}

/// Sends stranded messages: those in the ring that wait for a relay that does not come.
#[derive(Default)]
struct StrandedSender {
    retry: Retry,
    /// Whether the last call of `send` ran a transaction.
    tried: bool,
}

impl StrandedSender {
    /// Sends a part of the stranded messages in one transaction, by the code that commits use.
    /// Elections go between two such transactions. Returns the clock reading at which to look
    /// again. `None`: there is a relay, or no message waits. This process is woken when that
    /// changes: by the end of the relay, and by a commit that leaves messages to a relay that has
    /// ended.
    fn send(&mut self) -> Option<ClockTime> {
        /// How long commits have before the keeper sends, in microseconds. A message that both send
        /// is heard twice.
        const COMMITS_FIRST: i64 = 500_000;
        self.tried = false;
        let at = (rings::relay::stranded_at()? + COMMITS_FIRST).max(self.retry.not_before());
        if at > clock::now() {
            return Some(at);
        }
        self.tried = true;
        // Without a relay every transaction takes the lock that all NOTIFYs of the server share. So
        // the keeper waits longer for this lock than for a table.
        session::set(c"lock_timeout", election::COMMIT_LOCK_TIMEOUT);
        let sent = xact::contain(|| xact::run(c"obanrs: relaying", bus::send_for_relay));
        session::set(c"lock_timeout", election::TABLE_LOCK_TIMEOUT);
        if matches!(sent, Ok(true)) {
            self.retry.succeeded(ClockTime::ZERO);
            return Some(at);
        }
        // NOTIFY's queue is full, its lock was not free in time, or another process sends these
        // messages.
        let full = |caught: &Caught| caught.code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
        if sent.as_ref().map_or_else(full, |_| true) {
            notify::rouse_listeners();
        }
        Some(self.retry.failed(clock::now(), STRANDED))
    }
}
