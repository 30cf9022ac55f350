//! The sweep: rows of names without candidates, which are rows of foreign nodes and of sessions
//! before a restart.
//!
//! The keeper deletes such a row when the row's lease is over, and announces the end. Without the
//! announcement the foreign nodes of that name would find out at their next election, up to half a
//! minute later. The keeper elects no leader for such a name. The keeper reads a prefix's rows when
//! they have changed, and when the next of them expires.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use super::retries::{Key, Retries};
use super::table::{self, Announcing, SeenRows, fingerprint, fingerprint_of};
use super::transaction::{Failed, Locks, transaction};
use super::{Duty, Outcome, earliest, expect_fences, wakeups};
use crate::bus::leadership::{self, LeaderChange};
use crate::config;
use crate::logic::ids::{SchemaOid, Term};
use crate::logic::leadership::{Electorate, FOREIGN_NAMES, Leadership, RowIdentity, verdict};
use crate::logic::lifecycle::ChangedPrefixes;
use crate::logic::text::Text;
use crate::logic::times::ClockTime;
use crate::pg::{clock, session};
use crate::prefix::peers::{PeerRow, WriteResult};
use crate::prefix::prefixes;
use crate::shmem::Segment;

/// What the sweep has to do, and what it has seen.
pub struct Sweep {
    /// Whether all prefixes are due.
    all: bool,
    /// The prefixes that are due.
    changed: HashSet<SchemaOid>,
    /// When the next row of each prefix expires.
    expiries: HashMap<SchemaOid, ClockTime>,
    /// Prefixes whose rows took long to read, each with the time until which it rests.
    resting: HashMap<SchemaOid, ClockTime>,
    /// What the last look at a prefix has seen. A row that has not changed since keeps its
    /// deadline, whatever the wall clock shows.
    seen: HashMap<SchemaOid, SeenRows>,
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
    /// Makes prefixes due whose rows have changed.
    pub fn changed(&mut self, rows: ChangedPrefixes) {
        match rows {
            ChangedPrefixes::Unchanged => {}
            ChangedPrefixes::Of(schema) => {
                self.changed.insert(schema);
            }
            ChangedPrefixes::All => self.all = true,
        }
    }

    /// Makes all prefixes due, because the wall clock was set. The keeper has to know of each row
    /// whether the row is from before the step.
    pub fn clock_was_set(&mut self) {
        self.all = true;
    }

    /// Lets a prefix rest whose rows took `took` to read. The rest is so long that all such
    /// prefixes together take a small share (one part in `REST`) of the keeper's time: the
    /// remaining time is for elections.
    fn rest(&mut self, schema: SchemaOid, took: i64, now: ClockTime) {
        self.resting.retain(|_, until| *until > now);
        let among = self.resting.len() as i64 + 1;
        self.resting.insert(schema, now + took * REST * among);
    }

    /// Returns what the last look at a prefix has seen.
    pub fn seen_in(&self, schema: SchemaOid) -> &SeenRows {
        static NONE: LazyLock<SeenRows> = LazyLock::new(SeenRows::default);
        self.seen.get(&schema).unwrap_or(&NONE)
    }

    /// Notes the deadline of a row that an electorate knew, for the next look.
    pub fn has_seen(&mut self, electorate: &Electorate, leadership: &Leadership) {
        let lease = &leadership.lease;
        let (name, node) = (electorate.name.as_str(), leadership.node.as_str());
        let (term, started_at, expires_at) = (lease.term, lease.started_at, lease.expires_at);
        let print = fingerprint(name, node, RowIdentity { term, started_at, expires_at });
        self.seen.entry(electorate.schema).or_default().deadlines.insert(print, lease.deadline);
    }

    /// Returns whether a prefix is due because its rows have changed.
    pub fn has_changed_rows(&self, schema: SchemaOid) -> bool {
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
    /// Nothing is left to do until the next row expires. `None`: no row will expire.
    Until(Option<ClockTime>),
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

impl Sweep {
    /// Looks at the prefixes that are due. `began` is the wakeup counter at the beginning of the
    /// pass. When the counter has changed, elections come first again.
    pub fn pass(&mut self, segment: Segment, retries: &mut Retries, began: u32) -> Duty {
        let database = session::database();
        if self.all {
            let schemas =
                transaction(segment, c"obanrs: looking for tables of leaders", prefixes::installed_schemas);
            match schemas {
                Ok(schemas) => {
                    self.all = false;
                    self.expiries.retain(|schema, _| schemas.contains(schema));
                    self.seen.retain(|schema, _| schemas.contains(schema));
                    retries.retain_sweeps(&schemas);
                    self.changed.extend(schemas);
                }
                Err(failed) => {
                    retries.failed(Key::of_sweep(SchemaOid::NONE), &failed);
                    return Duty {
                        next: retries.not_before(&Key::of_sweep(SchemaOid::NONE)),
                        ends_pass: false,
                    };
                }
            }
        }
        let now = clock::now();
        expect_fences(segment, database, true); // before any attempt, or the end of a fence could be missed
        let expired = self.expiries.iter().filter(|(_, at)| **at <= now).map(|(schema, _)| schema);
        let due: HashSet<SchemaOid> = expired.chain(&self.changed).copied().collect();
        let ready: Vec<SchemaOid> =
            due.iter().copied().filter(|schema| self.not_before(retries, *schema).is_none()).collect();
        for schema in ready {
            let (wait, began_at) = (retries.may_wait_for(schema), clock::now());
            let known = self.seen.remove(&schema).unwrap_or_default();
            let mut seen = SeenRows::default();
            let swept = look_at(segment, schema, wait, &known, &mut seen);
            let (ended, failed) = (clock::now(), swept.is_err());
            let slow = ended - began_at > SLOW && !matches!(swept, Ok(Swept::Locked));
            if slow {
                self.rest(schema, ended - began_at, ended);
            }
            // A row that was not looked at keeps its deadline.
            if !matches!(swept, Ok(Swept::Until(_))) {
                let room = (2 * MAX_ROWS).saturating_sub(seen.deadlines.len());
                for (print, deadline) in known.deadlines.into_iter().take(room) {
                    seen.deadlines.entry(print).or_insert(deadline);
                }
                seen.all_at = known.all_at;
            }
            self.seen.insert(schema, seen);
            match swept {
                Ok(swept) => self.swept(retries, schema, swept),
                Err(failed) => retries.failed(Key::of_sweep(schema), &failed),
            }
            // Elections that have become due meanwhile come first.
            if failed || slow || wakeups(segment, database) != began {
                return Duty { next: Some(now), ends_pass: true };
            }
        }
        if !retries.has_held() {
            expect_fences(segment, database, false);
        }
        let held_off = due.iter().filter_map(|schema| self.not_before(retries, *schema));
        let again = self.changed.iter().filter(|s| self.not_before(retries, **s).is_none()).map(|_| now);
        let live = self.expiries.values().copied().filter(|at| *at > now);
        Duty { next: held_off.chain(again).chain(live).min(), ends_pass: false }
    }

    /// Returns the clock reading before which the keeper does not look at a prefix. `None`: the
    /// keeper may look now.
    fn not_before(&self, retries: &Retries, schema: SchemaOid) -> Option<ClockTime> {
        let rests = self.resting.get(&schema).copied().filter(|until| clock::now() < *until);
        retries.not_before(&Key::of_sweep(schema)).max(rests)
    }

    /// Notes what a look at a prefix found.
    fn swept(&mut self, retries: &mut Retries, schema: SchemaOid, swept: Swept) {
        retries.sweep_ran(schema);
        match swept {
            Swept::Held => {
                retries.hold(Key::of_sweep(schema));
                self.changed.insert(schema);
                return;
            }
            Swept::Locked => {
                retries.sweep_locked(schema);
                self.changed.insert(schema);
                return;
            }
            Swept::Unusable => {}
            Swept::Until(_) | Swept::Again => retries.usable(schema),
        }
        retries.sweep_met_no_held_row(schema);
        self.changed.remove(&schema);
        self.expiries.remove(&schema);
        match swept {
            Swept::Until(Some(at)) => {
                self.expiries.insert(schema, at);
            }
            Swept::Again => {
                self.changed.insert(schema);
            }
            Swept::Until(None) | Swept::Unusable | Swept::Held | Swept::Locked => {}
        }
    }
}

/// Looks at the rows of a prefix in one transaction. If NOTIFY's queue is full at the commit, looks
/// once more without the announcements.
fn look_at(
    segment: Segment,
    schema: SchemaOid,
    wait: bool,
    known: &SeenRows,
    seen: &mut SeenRows,
) -> Result<Swept, Failed> {
    let mut look = |announcing| {
        *seen = SeenRows::default();
        transaction(segment, c"obanrs: looking for expired leaders", || {
            look(segment, schema, wait, announcing, known, seen)
        })
    };
    match look(Announcing::WithRow) {
        Err(failed) if failed.queue_full => look(Announcing::Later),
        swept => swept,
    }
}

/// The most rows that one transaction reads.
const MAX_ROWS: usize = 1_000;

/// Runs in a transaction. Deletes the rows whose lease is over, and announces each end. `known` is
/// what the look before has seen. `seen` becomes what this look has seen and left.
fn look(
    segment: Segment,
    schema: SchemaOid,
    wait: bool,
    announcing: Announcing,
    known: &SeenRows,
    seen: &mut SeenRows,
) -> Swept {
    let began = clock::now();
    let table = match table::open(schema, wait) {
        Ok(table) => table,
        // The owner may swap tables in a loop, which is not worth the processor's whole time.
        Err(Outcome::Again) => return Swept::Held,
        Err(Outcome::Locked) => return Swept::Locked,
        Err(_) => return Swept::Unusable,
    };
    let rows = table.earliest(MAX_ROWS);
    let (now, boot) = (clock::now(), segment.boot());
    let mut foreign = Vec::new();
    seen.all_at = if rows.len() < MAX_ROWS { began } else { known.all_at };
    let (mut next, mut deleted, mut held) = (None, 0, false);
    for row in &rows {
        let electorate = electorate(schema, row);
        if electorate.as_ref().is_some_and(|e| elects(segment, e)) {
            continue; // elections judge the row
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
        // Each deletion sends two messages.
        if deleted == MAX_DELETIONS.min(config::max_transaction_messages().div_ceil(2)) {
            return Swept::Again;
        }
        match table.delete(row) {
            WriteResult::Done => {
                // A name that is longer than a member's has no electorate, and its end is not
                // announced.
                if let Some(e) = &electorate {
                    table::announce_down(e, announcing);
                    let (name, node) = (e.name.as_str(), row.node.as_str());
                    leadership::tell(LeaderChange::Ended, schema, name, node, Term::of_row(row.term));
                }
                deleted += 1;
            }
            WriteResult::Held => held = true,
            WriteResult::Gone => {} // the triggers in the transaction that changed the row tell the keeper
        }
    }
    // Shared memory keeps no more names of a schema.
    let newest = foreign.len().saturating_sub(FOREIGN_NAMES);
    if !foreign.is_empty() {
        segment.leaderships(|l| foreign[newest..].iter().for_each(|e| l.foreign_leads(e)));
    }
    match next {
        _ if held => Swept::Held,
        // More rows may follow those that were deleted.
        None if deleted > 0 && rows.len() == MAX_ROWS => Swept::Again,
        // The elections of their names judge all rows that were read. The next row may expire just
        // after them.
        None if rows.len() == MAX_ROWS => {
            let left = rows.last().map(|row| table::time_left(row, None, boot, known.all_at));
            Swept::Until(left.map(|left| now.saturating_add(left)))
        }
        next => Swept::Until(next),
    }
}

/// Returns the electorate of a row. `None`: the row's name is longer than a member's may be.
fn electorate(schema: SchemaOid, row: &PeerRow) -> Option<Electorate> {
    Some(Electorate { database: session::database(), schema, name: Text::new(&row.name())? })
}

/// Returns whether the elections of a name judge the name's row, and not the sweep.
fn elects(segment: Segment, electorate: &Electorate) -> bool {
    segment.leaderships_view(|v| v.elects(electorate, clock::now()))
}
