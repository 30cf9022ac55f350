//! A keeper: the worker of one database that has the extension. It holds elections and sweeps up what has
//! expired (`election`).
//!
//! Should the relay not come back, it sends in its place what has waited too long, so that this depends on nobody's
//! next commit.
//!
//! It goes when it is not wanted any more: a command needs the database alone, the database became a
//! template, or the extension was dropped. Otherwise the coordinator brings it back. It holds no
//! transaction and no lock while it waits, and it waits for its latch (somebody joined or left, a row was
//! changed or let go of, a prefix was installed) or until the next lease is half over, or over.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::election::{self, Elections};
use super::process;
use crate::bus;
use crate::logic::backoff::RELAY;
use crate::logic::lifecycle::Kind;
use crate::pg::xact::Caught;
use crate::pg::{bgworker, clock, latch, notify, session, xact};
use crate::prefix::{extension, peers};
use crate::shmem;
use crate::shmem::rings;

thread_local! {
    /// Whether ALTER DATABASE said something of default_transaction_read_only when this process began: then the
    /// process has that value until it ends, whatever is said later.
    static BEGAN_WITH_SETTING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the database of this keeper is read-only by default, as ALTER DATABASE says now, or else the server's
/// configuration.
pub fn database_is_read_only() -> bool {
    let configured = || !BEGAN_WITH_SETTING.get() && session::is_read_only_by_default();
    peers::database_read_only().unwrap_or_else(configured)
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn obanrs_keeper_main(argument: pg_sys::Datum) {
    let Some(database) = process::begin(Kind::Keeper, argument) else { return };
    let pid = latch::my_pid();
    bgworker::report_name(c"obanrs keeper");
    // Transactions that are short and never wait long for a user's lock.
    session::set(c"lock_timeout", election::LOCK_TIMEOUT);
    session::set(c"synchronous_commit", c"local");

    BEGAN_WITH_SETTING.set(xact::run(c"obanrs: reading a setting", peers::database_read_only).is_some());
    let mut elections = Elections::new(database);
    let (mut look, mut wakeups) = (true, 0);
    // When the next pass is due by itself; the first is at once.
    let mut due = Some(0);
    let mut stranded = Stranded::default();
    loop {
        latch::reset();
        let reloaded = bgworker::reload_config();
        let Ok(orders) = shmem::registry(|r| r.orders(Kind::Keeper, database)) else { return };
        if orders.leave {
            return;
        }
        if look || orders.recheck || elections.dropped {
            let since = clock::now();
            let extension = xact::run(c"obanrs: looking for the extension", extension::exists);
            let relay =
                shmem::registry(|r| r.extension_looked_up(database, pid, extension, since)).ok().flatten();
            relay.into_iter().for_each(latch::wake); // which has to go with the extension
            shmem::wake_coordinator();
            if !extension {
                return;
            }
            (look, elections.dropped, due) = (false, false, Some(0));
        }
        let news = orders.wakeups != wakeups;
        wakeups = orders.wakeups;
        // The limit of a step leaves its timer on, which sets our latch when the step is long over: then
        // there is nothing to do, least of all a pass that sets the timer again.
        let clock_was_set = elections.clock_was_set();
        if news || reloaded || clock_was_set || due.is_some_and(|at| at <= clock::now()) {
            if news {
                elections.retry_held_rows();
            }
            elections.rows_changed(orders.changed_rows);
            due = elections.pass();
            // A lock that the pass waited for has eaten our latch; the kicks tell what it was set for.
            let more =
                shmem::registry(|r| r.wakeups(Kind::Keeper, database) != orders.wakeups).unwrap_or(true);
            if more || elections.dropped {
                continue;
            }
        }
        let stranded_due = stranded.send();
        // The lock of NOTIFY eats a latch, too.
        if stranded.sent && shmem::registry(|r| r.wakeups(Kind::Keeper, database) != wakeups).unwrap_or(true)
        {
            continue;
        }
        latch::wait_until(due.into_iter().chain(stranded_due).min());
    }
}

/// What waits for a relay that does not come.
#[derive(Default)]
struct Stranded {
    /// Attempts to send that failed, in a row.
    failures: u32,
    /// When to try again after a failure, by the clock that nobody sets.
    retry_at: i64,
    /// Whether the last call of `send` ran a transaction.
    sent: bool,
}

impl Stranded {
    /// Sends a part of what has waited too long, by the code that commits use, in one transaction: elections go
    /// between two of them. Returns when to look again, by the clock that nobody sets. `None`: there is a relay, or
    /// nothing waits. That this ceases to be so wakes this process: the relay's end does, and so does a commit that
    /// finds no relay any more for what it leaves to one.
    fn send(&mut self) -> Option<i64> {
        /// Commits go first: what both send is heard twice. In microseconds.
        const COMMITS_FIRST: i64 = 500_000;
        /// In microseconds.
        const RETRY_WITHIN: i64 = 1_000_000;
        self.sent = false;
        let at = (rings::relay::stranded_at()? + COMMITS_FIRST).max(self.retry_at);
        if at > clock::now() {
            return Some(at);
        }
        self.sent = true;
        // The lock that all NOTIFYs of the server share is wanted most when all send natively.
        session::set(c"lock_timeout", election::COMMIT_LOCK_TIMEOUT);
        let sent = xact::contain(|| xact::run(c"obanrs: relaying", bus::send_for_relay));
        session::set(c"lock_timeout", election::LOCK_TIMEOUT);
        if matches!(sent, Ok(true)) {
            (self.failures, self.retry_at) = (0, 0);
            return Some(at);
        }
        // NOTIFY's queue is full, its lock was not had in time, or somebody else is at it.
        let full = |caught: &Caught| caught.code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
        if sent.as_ref().map_or_else(full, |_| true) {
            notify::rouse_listeners();
        }
        self.failures = self.failures.saturating_add(1);
        self.retry_at = clock::now() + RELAY.delay(self.failures).min(RETRY_WITHIN);
        Some(self.retry_at)
    }
}
