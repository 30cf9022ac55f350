//! The sweep: rows of names without members, which are foreign nodes' rows and rows of sessions before a
//! restart.
//!
//! The keeper deletes such a row when its lease is over, and announces the end. Without the announcement the
//! foreign nodes of that name would find out at their own next election, up to half a minute later. The
//! keeper elects nobody for such a name, nor for one whose members all do not stand for election. It reads a prefix's rows when they have changed, and when the next
//! of them expires.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use super::table::{self, Announcing, SeenRows, fingerprint, fingerprint_of};
use super::{Elections, Failed, Key, Locks, Outcome, earliest, transaction};
use crate::bus::leadership::{self, LeaderChange};
use crate::config;
use crate::logic::leadership::{Electorate, FOREIGN_NAMES, Leadership, verdict};
use crate::logic::lifecycle::ChangedPrefixes;
use crate::logic::text::Text;
use crate::pg::{clock, session};
use crate::prefix::peers::{self, PeerRow, WriteResult};
use crate::shmem;

pub struct Sweep {
    /// All prefixes are due.
    all: bool,
    /// These prefixes are due.
    changed: HashSet<u32>,
    /// When the next row of a prefix expires.
    expiries: HashMap<u32, i64>,
    /// Prefixes whose rows took long to read, each with the time until which it rests.
    resting: HashMap<u32, i64>,
    /// What the last look at a prefix has seen. A row that has not changed since keeps its deadline, whatever the
    /// wall clock shows.
    seen: HashMap<u32, SeenRows>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            all: true,
            changed: HashSet::new(),
            expiries: HashMap::new(),
            resting: HashMap::new(),
            seen: HashMap::new(),
        }
    }
}

impl Sweep {
    pub fn changed(&mut self, rows: ChangedPrefixes) {
        match rows {
            ChangedPrefixes::Unchanged => {}
            ChangedPrefixes::Of(schema) => {
                self.changed.insert(schema);
            }
            ChangedPrefixes::All => self.all = true,
        }
    }

    /// The wall clock was set: all prefixes are due, so that it is known of each row whether it is from before.
    pub fn clock_was_set(&mut self) {
        self.all = true;
    }

    /// The time until which a prefix rests, which may be over. `None`: it does not rest.
    pub fn rests_until(&self, schema: u32) -> Option<i64> {
        self.resting.get(&schema).copied()
    }

    /// Lets a prefix rest whose rows took `took` to read. The rest is so long that all such prefixes together
    /// take a small share (one part in `REST`) of the keeper's time: the rest of its time is for elections.
    fn rest(&mut self, schema: u32, took: i64, now: i64) {
        self.resting.retain(|_, until| *until > now);
        let among = self.resting.len() as i64 + 1;
        self.resting.insert(schema, now + took * REST * among);
    }

    /// What the last look at a prefix has seen.
    pub fn seen_in(&self, schema: u32) -> &SeenRows {
        static NONE: LazyLock<SeenRows> = LazyLock::new(SeenRows::default);
        self.seen.get(&schema).unwrap_or(&NONE)
    }

    /// Notes the deadline of a row that an electorate knew, for the next look.
    pub fn has_seen(&mut self, electorate: &Electorate, leadership: &Leadership) {
        let lease = &leadership.lease;
        let (name, node) = (electorate.name.as_str(), leadership.node.as_str());
        let print = fingerprint(name, node, lease.term, lease.started_at, lease.expires_at);
        self.seen.entry(electorate.schema).or_default().deadlines.insert(print, lease.deadline);
    }

    /// Whether a prefix is due because its rows have changed.
    pub fn is_due(&self, schema: u32) -> bool {
        self.changed.contains(&schema)
    }
}

/// How many microseconds a look at a prefix's rows may take before the prefix has to rest.
const SLOW: i64 = 20_000;

/// How many times longer the rest is than the slow look before it.
const REST: i64 = 20;

/// The most rows that one transaction deletes, so that its time is bounded.
const MAX_DELETIONS: usize = 100;

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

impl Elections {
    /// Looks at the prefixes that are due. Returns when the next look is due, `None` for never, and whether the pass is
    /// to end here. `began` are the kicks at the beginning of the pass: when there are more, elections come first again.
    pub(super) fn sweep_rows(&mut self, began: u32) -> (Option<i64>, bool) {
        if self.sweep.all {
            let schemas = transaction(c"obanrs: looking for tables of leaders", peers::installed_schemas);
            match schemas {
                Ok(schemas) => {
                    self.sweep.all = false;
                    self.sweep.expiries.retain(|schema, _| schemas.contains(schema));
                    self.sweep.seen.retain(|schema, _| schemas.contains(schema));
                    self.failures.retain(|(schema, name), _| !name.is_empty() || schemas.contains(schema));
                    self.sweep.changed.extend(schemas);
                }
                Err(failed) => {
                    self.failed(sweep_of(0), failed);
                    return (self.retry_at(&sweep_of(0)), false);
                }
            }
        }
        let now = clock::now();
        self.expect_fences(true); // before any attempt, or the end of a fence could be missed
        let expired = self.sweep.expiries.iter().filter(|(_, at)| **at <= now).map(|(schema, _)| schema);
        let due: HashSet<u32> = expired.chain(&self.sweep.changed).copied().collect();
        for schema in
            due.iter().copied().filter(|s| self.retry_at(&sweep_of(*s)).is_none()).collect::<Vec<_>>()
        {
            let (wait, began_at) = (self.waits_for(schema), clock::now());
            let known = self.sweep.seen.remove(&schema).unwrap_or_default();
            let mut seen = SeenRows::default();
            let swept = self.look_at(schema, wait, &known, &mut seen);
            let (ended, failed) = (clock::now(), swept.is_err());
            let slow = ended - began_at > SLOW && !matches!(swept, Ok(Swept::Locked));
            if slow {
                self.sweep.rest(schema, ended - began_at, ended);
            }
            // A row that was not looked at keeps its deadline.
            if !matches!(swept, Ok(Swept::Until(_))) {
                let room = (2 * MAX_ROWS).saturating_sub(seen.deadlines.len());
                for (print, deadline) in known.deadlines.into_iter().take(room) {
                    seen.deadlines.entry(print).or_insert(deadline);
                }
                seen.all_at = known.all_at;
            }
            self.sweep.seen.insert(schema, seen);
            match swept {
                Ok(swept) => self.swept(schema, swept),
                Err(why) => self.failed(sweep_of(schema), why),
            }
            // Elections that have become due meanwhile come first.
            if failed || slow || self.wakeups() != began {
                return (Some(now), true);
            }
        }
        if self.held.is_empty() {
            self.expect_fences(false);
        }
        let held_off = due.iter().filter_map(|schema| self.retry_at(&sweep_of(*schema)));
        let again =
            self.sweep.changed.iter().filter(|s| self.retry_at(&sweep_of(**s)).is_none()).map(|_| now);
        let live = self.sweep.expiries.values().copied().filter(|at| *at > now);
        (held_off.chain(again).chain(live).min(), false)
    }

    /// One look. When NOTIFY's queue is full at its commit, once more without the announcements.
    fn look_at(
        &self,
        schema: u32,
        wait: bool,
        known: &SeenRows,
        seen: &mut SeenRows,
    ) -> Result<Swept, Failed> {
        let mut look = |announcing| {
            *seen = SeenRows::default();
            transaction(c"obanrs: looking for expired leaders", || {
                look(schema, wait, announcing, known, seen)
            })
        };
        match look(Announcing::WithRow) {
            Err(failed) if failed.queue_full => look(Announcing::Later),
            swept => swept,
        }
    }

    /// Notes what a look at a prefix found.
    fn swept(&mut self, schema: u32, swept: Swept) {
        let key = sweep_of(schema);
        self.failures.remove(&key);
        match swept {
            Swept::Held => {
                self.hold_off(key);
                self.sweep.changed.insert(schema);
                return;
            }
            Swept::Locked => {
                self.may_wait_for_locks = false;
                self.hold_off_schema(schema);
                self.sweep.changed.insert(schema);
                return;
            }
            Swept::Unusable => {}
            Swept::Until(_) | Swept::Again => {
                self.unusable.remove(&schema);
            }
        }
        self.held.remove(&key);
        self.sweep.changed.remove(&schema);
        self.sweep.expiries.remove(&schema);
        match swept {
            Swept::Until(Some(at)) => {
                self.sweep.expiries.insert(schema, at);
            }
            Swept::Again => {
                self.sweep.changed.insert(schema);
            }
            Swept::Until(None) | Swept::Unusable | Swept::Held | Swept::Locked => {}
        }
    }
}

fn sweep_of(schema: u32) -> Key {
    (schema, String::new())
}

/// The most rows that one transaction reads.
const MAX_ROWS: usize = 1_000;

/// In a transaction: deletes the rows whose lease is over, and announces each. `known` is what the look before has
/// seen, `seen` becomes what this one has seen and left.
fn look(schema: u32, wait: bool, announcing: Announcing, known: &SeenRows, seen: &mut SeenRows) -> Swept {
    let began = clock::now();
    let table = match table::open(schema, wait) {
        Ok(table) => table,
        // Its owner may swap tables in a loop: not worth the processor's whole time.
        Err(Outcome::Again) => return Swept::Held,
        Err(Outcome::Locked) => return Swept::Locked,
        Err(_) => return Swept::Unusable,
    };
    let rows = table.earliest(MAX_ROWS);
    let (now, boot) = (clock::now(), table::or_raise(shmem::boot()));
    let mut foreign = Vec::new();
    seen.all_at = if rows.len() < MAX_ROWS { began } else { known.all_at };
    let (mut next, mut deleted, mut held) = (None, 0, false);
    for row in &rows {
        let electorate = electorate(schema, row);
        if electorate.as_ref().is_some_and(elects) {
            continue; // its elections judge the row
        }
        let print = fingerprint_of(row);
        let deadline = known
            .deadlines
            .get(&print)
            .copied()
            .unwrap_or_else(|| now.saturating_add(table::time_left(row, None, boot, known.all_at)));
        if now < deadline && verdict::outlives_start(row.boot, boot) {
            seen.deadlines.insert(print, deadline);
            foreign.extend(electorate.filter(|_| row.boot.is_none()));
            next = earliest(next, Some(deadline));
            continue;
        }
        // Each has two messages.
        if deleted == MAX_DELETIONS.min(config::max_transaction_messages().div_ceil(2)) {
            return Swept::Again;
        }
        match table.delete(row) {
            WriteResult::Done => {
                // A name that is longer than a member's is no electorate's, and is not announced.
                for e in electorate.iter() {
                    table::announce_down(e, announcing);
                    let (name, node) = (e.name.as_str(), row.node.as_str());
                    leadership::tell(LeaderChange::Ended, schema, name, node, row.term.unwrap_or(0));
                }
                deleted += 1;
            }
            WriteResult::Held => held = true,
            WriteResult::Gone => {} // the triggers of the transaction that changed it tell the keeper
        }
    }
    // Memory keeps no more names of a schema.
    let newest = foreign.len().saturating_sub(FOREIGN_NAMES);
    if !foreign.is_empty() {
        let _ = shmem::peers(|p| foreign[newest..].iter().for_each(|e| p.foreign_leads(e)));
    }
    match next {
        _ if held => Swept::Held,
        // More rows may follow those that were deleted.
        None if deleted > 0 && rows.len() == MAX_ROWS => Swept::Again,
        // All rows that were read are of names with a seat. The next row may expire just after them.
        None if rows.len() == MAX_ROWS => {
            let left = rows.last().map(|row| table::time_left(row, None, boot, known.all_at));
            Swept::Until(left.map(|left| now.saturating_add(left)))
        }
        next => Swept::Until(next),
    }
}

/// The electorate of a row; `None` when its name is longer than a member's may be.
fn electorate(schema: u32, row: &PeerRow) -> Option<Electorate> {
    Some(Electorate { database: session::database(), schema, name: Text::new(&row.name())? })
}

/// Whether the elections of a name judge its row, and not the sweep.
fn elects(electorate: &Electorate) -> bool {
    shmem::leaderships_view(|v| v.elects(electorate, clock::now())).unwrap_or(false)
}
