//! The sweep: rows of names without members, which are foreign nodes' rows and rows of sessions before a
//! restart.
//!
//! The keeper deletes such a row when its lease is over, and announces the end. Without the announcement the
//! foreign nodes of that name would find out at their own next election, up to half a minute later. The
//! keeper elects nobody for such a name. It reads a prefix's rows when they have changed, and when the next
//! of them expires.

use std::collections::{HashMap, HashSet};

use super::table::{self, is_void};
use super::{Elections, Locks, Outcome, earliest, transaction};
use crate::logic::lifecycle::Rows;
use crate::logic::peer::{Electorate, MAX_PREFIX};
use crate::logic::text::Text;
use crate::pg::time;
use crate::prefix::peers::{self, Change, PeerRow};
use crate::shmem;

pub struct Sweep {
    /// All prefixes are due.
    all: bool,
    /// These prefixes are due.
    changed: HashSet<String>,
    /// When the next row of a prefix expires.
    expiries: HashMap<String, i64>,
    /// Prefixes whose rows took long to read, each with the time until which it rests.
    resting: HashMap<String, i64>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { all: true, changed: HashSet::new(), expiries: HashMap::new(), resting: HashMap::new() }
    }
}

impl Sweep {
    pub fn changed(&mut self, rows: Rows) {
        match rows {
            Rows::Unchanged => {}
            Rows::Of(prefix) => {
                self.changed.insert(prefix.as_str().to_owned());
            }
            Rows::All => self.all = true,
        }
    }

    /// The time until which a prefix rests, which may be over. `None`: it does not rest.
    pub fn rests_until(&self, prefix: &str) -> Option<i64> {
        self.resting.get(prefix).copied()
    }

    /// Lets a prefix rest whose rows took `took` to read. The rest is so long that all such prefixes together
    /// take a small share (one part in `REST`) of the keeper's time: the rest of its time is for elections.
    fn rest(&mut self, prefix: &str, took: i64, now: i64) {
        self.resting.retain(|_, until| *until > now);
        let among = self.resting.len() as i64 + 1;
        self.resting.insert(prefix.to_owned(), now + took * REST * among);
    }

    /// Whether a prefix is due because its rows have changed.
    pub fn is_due(&self, prefix: &str) -> bool {
        self.changed.contains(prefix)
    }
}

/// How many microseconds a look at a prefix's rows may take before the prefix has to rest.
const SLOW: i64 = 20_000;

/// How many times longer the rest is than the slow look before it.
const REST: i64 = 20;

/// The most rows that one transaction deletes, so that its time is bounded.
const MOST_DELETIONS: usize = 100;

/// What a look at a prefix's rows found.
enum Swept {
    /// Nothing is left to do until the next row expires; `None`: no row will.
    Until(Option<i64>),
    /// Another transaction holds a row whose lease is over, or has replaced the table.
    Held,
    /// The table can't be used. The prefix is due again when rows change or `oban_install` runs.
    Unusable,
    /// Another transaction holds a lock on the table.
    Locked,
    /// There is more to do.
    Again,
}

impl Locks for Swept {
    fn locked() -> Option<Self> {
        Some(Self::Locked)
    }
}

impl Locks for Vec<String> {
    fn locked() -> Option<Self> {
        None
    }
}

impl Elections {
    /// Looks at the prefixes that are due. Returns when the next look is due, `None` for never.
    pub(super) fn sweep_rows(&mut self) -> Option<i64> {
        if self.sweep.all {
            let prefixes = transaction(c"obanrs: looking for tables of leaders", peers::installed_prefixes);
            match prefixes {
                Ok(prefixes) => {
                    self.sweep.all = false;
                    self.sweep.expiries.retain(|prefix, _| prefixes.contains(prefix));
                    self.failures.retain(|(prefix, name), _| !name.is_empty() || prefixes.contains(prefix));
                    self.sweep.changed.extend(prefixes);
                }
                Err(message) => {
                    self.failed(of_prefix(""), message);
                    return self.retry_at(&of_prefix(""));
                }
            }
        }
        let now = time::now();
        self.expect_fences(true); // before any attempt, or the end of a fence could be missed
        let expired = self.sweep.expiries.iter().filter(|(_, at)| **at <= now).map(|(prefix, _)| prefix);
        let due: HashSet<String> = expired.chain(&self.sweep.changed).cloned().collect();
        for prefix in due.iter().filter(|p| self.retry_at(&of_prefix(p)).is_none()).collect::<Vec<_>>() {
            let (wait, began) = (self.waits_for(prefix), time::now());
            let swept = transaction(c"obanrs: looking for expired leaders", || look(prefix, wait));
            let (ended, failed) = (time::now(), swept.is_err());
            let slow = ended - began > SLOW && !matches!(swept, Ok(Swept::Locked));
            if slow {
                self.sweep.rest(prefix, ended - began, ended);
            }
            match swept {
                Ok(swept) => self.swept(prefix, swept),
                Err(message) => self.failed(of_prefix(prefix), message),
            }
            // Elections that have become due meanwhile come first.
            if failed || slow {
                return Some(now);
            }
        }
        if self.held.is_empty() {
            self.expect_fences(false);
        }
        let held_off = due.iter().filter_map(|prefix| self.retry_at(&of_prefix(prefix)));
        let again = self.sweep.changed.iter().filter(|p| self.retry_at(&of_prefix(p)).is_none()).map(|_| now);
        let live = self.sweep.expiries.values().copied().filter(|at| *at > now);
        held_off.chain(again).chain(live).min()
    }

    /// Notes what a look at a prefix found.
    fn swept(&mut self, prefix: &str, swept: Swept) {
        let key = of_prefix(prefix);
        self.failures.remove(&key);
        match swept {
            Swept::Held => {
                self.hold_off(key);
                self.sweep.changed.insert(prefix.to_owned());
                return;
            }
            Swept::Locked => {
                self.patient = false;
                self.hold_off_prefix(prefix);
                self.sweep.changed.insert(prefix.to_owned());
                return;
            }
            Swept::Unusable => {}
            Swept::Until(_) | Swept::Again => {
                self.unusable.remove(prefix);
            }
        }
        self.held.remove(&key);
        self.sweep.changed.remove(prefix);
        self.sweep.expiries.remove(prefix);
        match swept {
            Swept::Until(Some(at)) => {
                self.sweep.expiries.insert(prefix.to_owned(), at);
            }
            Swept::Again => {
                self.sweep.changed.insert(prefix.to_owned());
            }
            Swept::Until(None) | Swept::Unusable | Swept::Held | Swept::Locked => {}
        }
    }
}

fn of_prefix(prefix: &str) -> (String, String) {
    (prefix.to_owned(), String::new())
}

/// The most rows that one transaction reads.
const MAX_ROWS: usize = 1_000;

/// In a transaction: deletes the rows whose lease is over, and announces each.
fn look(prefix: &str, wait: bool) -> Swept {
    let table = match table::open(prefix, wait) {
        Ok(table) => table,
        // Its owner may swap tables in a loop: not worth the processor's whole time.
        Err(Outcome::Again) => return Swept::Held,
        Err(Outcome::Locked) => return Swept::Locked,
        Err(_) => return Swept::Unusable,
    };
    let rows = table.earliest(MAX_ROWS);
    let (now, boot) = (time::now(), table::or_raise(shmem::boot()));
    let (mut next, mut deleted, mut held) = (None, 0, false);
    for row in rows.iter().filter(|row| !is_ours(prefix, row)) {
        if !is_void(row, boot, now) {
            next = earliest(next, Some(row.expires_at));
            continue;
        }
        if deleted == MOST_DELETIONS {
            return Swept::Again;
        }
        match table.delete(row) {
            Change::Done => {
                table::announce_down(prefix, &row.name());
                deleted += 1;
            }
            Change::Held => held = true,
            Change::Gone => {} // the triggers of the transaction that changed it tell the keeper
        }
    }
    match next {
        _ if held => Swept::Held,
        // More rows may follow those that were deleted.
        None if deleted > 0 && rows.len() == MAX_ROWS => Swept::Again,
        // All rows that were read are of names with a seat. The next row may expire just after them.
        None if rows.len() == MAX_ROWS => Swept::Until(rows.last().map(|row| row.expires_at)),
        next => Swept::Until(next),
    }
}

/// Whether the row's name has a seat: then its elections judge the row, not the sweep.
fn is_ours(prefix: &str, row: &PeerRow) -> bool {
    let (prefix, name) = (Text::<MAX_PREFIX>::new(prefix), Text::new(&row.name()));
    let Some((prefix, name)) = prefix.zip(name) else { return false };
    let electorate = Electorate { database: crate::pg::session::database(), prefix, name };
    shmem::peers_view(|v| v.seat(&electorate).is_some()).unwrap_or(false)
}
