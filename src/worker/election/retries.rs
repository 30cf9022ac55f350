//! What the keeper leaves alone for a while: steps that failed, rows that other transactions hold,
//! and prefixes whose table can't be used.

use std::collections::{HashMap, HashSet};

use pgrx::prelude::*;

use super::super::{process, trouble};
use super::names;
use super::transaction::Failed;
use crate::logic::backoff::ELECTION;
use crate::logic::ids::SchemaOid;
use crate::logic::leadership::Electorate;
use crate::logic::lifecycle::Kind;
use crate::logic::retry::Retry;
use crate::logic::times::ClockTime;
use crate::pg::clock;
use crate::shmem::Segment;

/// What a step is about: the election of a name, or the sweep of a prefix (without a name).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    schema: SchemaOid,
    name: String,
}

impl Key {
    /// The election of a name.
    pub fn of(electorate: &Electorate) -> Self {
        Self { schema: electorate.schema, name: electorate.name.as_str().to_owned() }
    }

    /// The sweep of a prefix.
    pub fn of_sweep(schema: SchemaOid) -> Self {
        Self { schema, name: String::new() }
    }

    fn is_sweep(&self) -> bool {
        self.name.is_empty()
    }
}

pub struct Retries {
    segment: Segment,
    /// Steps that failed.
    failures: HashMap<Key, Retry>,
    /// Steps whose row another transaction holds.
    held: HashMap<Key, Retry>,
    /// Prefixes whose table is locked or has an obstacle.
    unusable: HashMap<SchemaOid, Retry>,
    /// Prefixes of which the log says already that they hold no elections.
    warned: HashSet<SchemaOid>,
    /// The schemas with electorates, as of the last call of `retain`.
    electing: HashSet<SchemaOid>,
    /// False once this pass has waited for a table's lock in vain. Without it, an owner that locks
    /// many tables would use up the time of all other prefixes.
    may_wait: bool,
}

impl Retries {
    pub fn new(segment: Segment) -> Self {
        Self {
            segment,
            failures: HashMap::new(),
            held: HashMap::new(),
            unusable: HashMap::new(),
            warned: HashSet::new(),
            electing: HashSet::new(),
            may_wait: true,
        }
    }

    /// Begins a pass: its first attempt at a locked table may wait.
    pub fn begin_pass(&mut self) {
        self.may_wait = true;
    }

    /// A transaction that held a row may have ended: held rows are tried in the next pass.
    pub fn release_held(&mut self) {
        self.held.values_mut().for_each(Retry::hurry);
    }

    /// Whether a row is held by another transaction.
    pub fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Forgets electorates that are no longer in shared memory, and prefixes for which `is_needed`
    /// is false.
    pub fn retain(&mut self, electorates: &[Electorate], is_needed: impl Fn(SchemaOid) -> bool) {
        if !(self.failures.is_empty() && self.held.is_empty()) {
            let known: HashSet<Key> = electorates.iter().map(Key::of).collect();
            self.failures.retain(|key, _| key.is_sweep() || known.contains(key));
            self.held.retain(|key, _| key.is_sweep() || known.contains(key));
        }
        let schemas: HashSet<SchemaOid> = electorates.iter().map(|e| e.schema).collect();
        self.warned.retain(|schema| schemas.contains(schema));
        self.unusable.retain(|schema, _| schemas.contains(schema) || is_needed(*schema));
        names::retain(|schema| schemas.contains(&schema) || is_needed(schema));
        self.electing = schemas;
    }

    /// Forgets failed sweeps of prefixes that are not among `schemas`.
    pub fn retain_sweeps(&mut self, schemas: &[SchemaOid]) {
        self.failures.retain(|key, _| !key.is_sweep() || schemas.contains(&key.schema));
    }

    /// How often an electorate, or its prefix, has failed in a row.
    pub fn failures_of(&self, electorate: &Electorate) -> u32 {
        let own = self.failures.get(&Key::of(electorate)).map_or(0, Retry::failures);
        own.max(self.unusable.get(&electorate.schema).map_or(0, Retry::failures))
    }

    /// The clock reading before which there is no attempt; `None`: an attempt is due now.
    pub fn not_before(&self, key: &Key) -> Option<ClockTime> {
        let retries = [self.failures.get(key), self.unusable.get(&key.schema), self.held.get(key)];
        let latest = retries.into_iter().flatten().map(Retry::not_before).max();
        latest.filter(|at| clock::now() < *at)
    }

    /// Whether an attempt at a prefix's table waits for the table's lock.
    pub fn may_wait_for(&self, schema: SchemaOid) -> bool {
        self.may_wait && !self.unusable.contains_key(&schema)
    }

    /// Whether the log says already that a prefix holds no elections.
    pub fn is_warned(&self, schema: SchemaOid) -> bool {
        self.warned.contains(&schema)
    }

    /// Notes that another transaction holds a row. Returns when to look again at the latest.
    pub fn hold(&mut self, key: Key) -> ClockTime {
        self.held.entry(key).or_default().failed(clock::now(), ELECTION)
    }

    /// Notes that a prefix's table has an obstacle. Returns when to look again.
    pub fn unusable(&mut self, schema: SchemaOid) -> ClockTime {
        self.unusable.entry(schema).or_default().failed(clock::now(), ELECTION)
    }

    /// Notes that a lock on a prefix's table was not free in time: no other attempt of this pass
    /// waits for a lock. Returns when to look again.
    pub fn locked(&mut self, schema: SchemaOid) -> ClockTime {
        self.may_wait = false;
        self.unusable(schema)
    }

    /// Does what `locked` does for a sweep. Elections of the prefix wait for the same lock. A sweep that
    /// is due at the same time as an election can put the election off again and again, so the sweep
    /// reports it.
    pub fn sweep_locked(&mut self, schema: SchemaOid) {
        self.locked(schema);
        if self.electing.contains(&schema) {
            self.report_locked(schema);
        }
    }

    /// Reports, once, that elections of a prefix wait for a lock. The caller has called `locked`
    /// before.
    pub fn report_locked(&mut self, schema: SchemaOid) {
        let prefix = names::shown(schema);
        let what = format!("elections in prefix \"{prefix}\" wait for a lock on its table of leaders");
        if self.unusable.entry(schema).or_default().reports(&what) {
            self.report(&what);
        }
    }

    /// Reports, once, that a prefix holds no elections.
    pub fn warn(&mut self, schema: SchemaOid, why: &str, hint: String) {
        if self.warned.insert(schema) {
            let prefix = names::shown(schema);
            let database = process::of_database();
            trouble::report(
                self.segment,
                Kind::Keeper,
                &format!("obanrs holds no elections in prefix \"{prefix}\": {why}"),
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("obanrs holds no elections in prefix \"{prefix}\" of {database}: {why}"),
                hint,
            );
        }
    }

    /// Notes that a step failed, and reports the failure unless it was reported last.
    pub fn failed(&mut self, key: Key, failed: &Failed) {
        let (prefix, message) = (names::shown(key.schema), &failed.message);
        let what = if key.is_sweep() {
            format!("looking for expired leaders in prefix \"{prefix}\" failed, will try again: {message}")
        } else {
            format!("election of \"{}\" in prefix \"{prefix}\" failed, will try again: {message}", key.name)
        };
        let retry = self.failures.entry(key).or_default();
        retry.failed(clock::now(), ELECTION);
        if retry.reports(message) {
            self.report(&what);
        }
    }

    /// Forgets the failures of an electorate and of the prefix. Returns whether the log says that
    /// the prefix holds no elections: the sweep has given up on the prefix, too, then.
    pub fn election_succeeded(&mut self, electorate: &Electorate) -> bool {
        let key = Key::of(electorate);
        self.failures.remove(&key);
        self.held.remove(&key);
        self.unusable.remove(&key.schema);
        self.warned.remove(&key.schema)
    }

    /// Forgets that the sweep of a prefix failed.
    pub fn sweep_ran(&mut self, schema: SchemaOid) {
        self.failures.remove(&Key::of_sweep(schema));
    }

    /// Forgets that the sweep of a prefix met a held row.
    pub fn sweep_met_no_held_row(&mut self, schema: SchemaOid) {
        self.held.remove(&Key::of_sweep(schema));
    }

    /// Notes that a prefix's table can be used.
    pub fn usable(&mut self, schema: SchemaOid) {
        self.unusable.remove(&schema);
    }

    fn report(&self, what: &str) {
        let message = format!("obanrs in {}: {what}", process::of_database());
        trouble::report(self.segment, Kind::Keeper, what, PgSqlErrorCode::ERRCODE_WARNING, message, "");
    }
}
