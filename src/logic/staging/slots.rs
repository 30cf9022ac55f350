//! The slots of stagers: one for each prefix that stages, in all databases.

use super::super::backoff::Backoff;
use super::super::ids::{DatabaseOid, Process, RoleOid, SchemaOid, TableOid};
use super::super::lifecycle::{ABSENT, BACKOFF, RUNNING, STARTING, WAITING};
use super::super::text::Text;
use super::super::times::{ClockTime, WallTime};
use super::RESTART_STAGER;
use super::batching::Batching;

/// The slot of a stager. `database` 0 is a free slot. The lock Stagers guards the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StagerSlot {
    /// The generation: it tells this use of the slot from all others. 0 before the first use.
    pub generation: u64,
    /// The oid of the database; 0 in a free slot.
    pub database: DatabaseOid,
    /// The oid of the prefix's schema.
    pub schema: SchemaOid,
    /// The oid of the table of jobs.
    pub table: TableOid,
    /// The oid of the table's owner: the role as which the stager connects.
    pub owner: RoleOid,
    /// The state, as for the other workers (`lifecycle`). 0 is `WAITING`.
    pub state: u32,
    /// 1: the stager has to leave, and the slot is freed when it has left. 0: it may stay.
    leave: u32,
    /// 1: the stager has said why it failed, and nobody has logged that yet. 0: it has not.
    unlogged: u32,
    /// What became of the looks for jobs that are available before they are due (`ANNOUNCING` and
    /// `GIVEN_UP`). 0: the last one has ended, or there was none.
    announcing: u32,
    /// The number of failures in a row, since a look last succeeded.
    pub failures: u32,
    /// The stager's process, from its claim until it has left the server's list of processes; else
    /// `Process::NONE`.
    pub process: Process,
    /// How often the stager ended without an order, in this generation.
    pub restarts: u32,
    /// The wall time of the last claim; 0 before the first. Views show it.
    pub started_at: WallTime,
    /// The clock reading at which a stager in Backoff is due.
    pub retry_at: ClockTime,
    /// The name of the schema, for views. The keeper writes it again when it changes.
    pub prefix: Text<63>,
    /// What went wrong last; empty for nothing. Views show it.
    pub last_error: Text<255>,
    /// The size of batches, and the rows that are set aside. The stager writes it when rows are set
    /// aside or taken back, and when it exits. The next stager of the slot goes on with it.
    pub batching: Batching,
}

/// The stager looks for jobs that are available before they are due.
const ANNOUNCING: u32 = 1;
/// Such a look has taken too long. The stagers of this slot do without.
const GIVEN_UP: u32 = 2;

impl StagerSlot {
    /// Returns whether the stager wakes the queues of jobs that were inserted as available and have
    /// become due since.
    pub fn announces(&self) -> bool {
        self.announcing != GIVEN_UP
    }

    /// Returns whether the slot is free.
    pub fn is_free(&self) -> bool {
        self.database.is_none()
    }

    /// Returns whether the stager has to leave.
    pub fn is_leaving(&self) -> bool {
        self.leave != 0
    }

    /// Returns the state that views show.
    pub fn shown_state(&self) -> u32 {
        if self.is_leaving() { ABSENT } else { self.state }
    }

    /// Returns whether the stager has a process, or one that was launched.
    fn is_up(&self) -> bool {
        self.process.pid != 0 || self.state == STARTING
    }

    /// Returns whether the stager is to be launched at `now`.
    fn is_due(&self, now: ClockTime) -> bool {
        let waits = self.state == WAITING || (self.state == BACKOFF && self.retry_at <= now);
        !self.is_free() && !self.is_leaving() && self.process.pid == 0 && waits
    }

    /// Puts the stager into Backoff, with a delay that grows with the failures in a row.
    fn back_off(&mut self, backoff: Backoff, now: ClockTime) {
        self.state = BACKOFF;
        self.retry_at = now.saturating_add(backoff.delay(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// Notes why the stager fails.
    fn blame(&mut self, why: &str) {
        self.last_error = Text::truncated(why);
        self.unlogged = 1;
    }

    /// Frees the slot. The generation stays, so that the next use has a later one.
    fn free(&mut self) {
        *self = Self { generation: self.generation, ..Self::default() };
    }
}

/// A prefix that stages, as the catalogs have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedPrefix {
    pub schema: SchemaOid,
    pub table: TableOid,
    pub owner: RoleOid,
    pub prefix: Text<63>,
    /// How many stagers the owner may have, in all databases.
    pub quota: usize,
    /// Why no stager can serve the prefix; `None` if nothing is known.
    pub obstacle: Option<String>,
}

/// A stager that is to be launched, or that has claimed its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaunchedStager {
    /// The number of the slot.
    pub slot: usize,
    /// The generation of the slot.
    pub generation: u64,
}

/// What a stager learns from its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub id: LaunchedStager,
    pub database: DatabaseOid,
    pub schema: SchemaOid,
    pub table: TableOid,
    pub owner: RoleOid,
    pub prefix: Text<63>,
    /// Whether the stager wakes the queues of jobs that were inserted as available and have become
    /// due since.
    pub announces: bool,
    /// Whether another stager had the slot before, since the prefix was kept.
    pub succeeds_another: bool,
    /// The size of batches, and the rows that are set aside.
    pub batching: Batching,
}

/// How a stager's process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A command holds the database, so the stager is not to blame.
    Held,
    /// A batch has ended the process. The next stager takes on fewer rows, or sets one aside.
    Progressed,
    /// Something else.
    Failed,
}

/// What a stager has failed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub prefix: Text<63>,
    pub why: Text<255>,
    /// When the next attempt is due.
    pub at: ClockTime,
    /// Whether the stager runs on: it has set rows aside.
    pub runs_on: bool,
}

/// What `Stagers::keep` did.
#[derive(Debug, Default)]
pub struct Kept {
    /// The numbers of the slots that begin a new use. Their alarms have to be cleared before the
    /// lock is released.
    pub begun: Vec<usize>,
    /// The process numbers of stagers that have to leave, which the caller wakes.
    pub leaving: Vec<i32>,
    /// The prefixes that found no place, for lack of slots, workers or quota.
    pub without_place: Vec<SchemaOid>,
}

/// The slots to change. The lock Stagers is held exclusively as long as this struct exists.
pub struct Stagers<'a> {
    /// The slots.
    pub slots: &'a mut [StagerSlot],
}

/// The slots to read. The lock Stagers is held in shared mode as long as this struct exists.
#[derive(Clone, Copy)]
pub struct StagersView<'a> {
    /// The slots.
    pub slots: &'a [StagerSlot],
}

impl StagersView<'_> {
    /// Returns the number of the slot of a prefix; `None` without one. Callable after commit.
    pub fn slot_of_prefix(&self, database: DatabaseOid, schema: SchemaOid) -> Option<usize> {
        self.slots.iter().position(|s| !database.is_none() && s.database == database && s.schema == schema)
    }

    /// Returns the schema of the first slot of a database from `slot` on, and sets `slot` to the one
    /// after that. `None`: there is no such slot. Callable after commit.
    pub fn next_schema(&self, database: DatabaseOid, slot: &mut usize) -> Option<SchemaOid> {
        while let Some(s) = self.slots.get(*slot) {
            *slot += 1;
            if !database.is_none() && s.database == database {
                return Some(s.schema);
            }
        }
        None
    }

    /// Returns the processes of a database's stagers.
    pub fn processes(&self, database: DatabaseOid) -> Vec<Process> {
        let of = |s: &&StagerSlot| !database.is_none() && s.database == database && s.process.pid != 0;
        self.slots.iter().filter(of).map(|s| s.process).collect()
    }

    /// Returns how many slots are used.
    pub fn count(&self) -> usize {
        self.slots.iter().filter(|s| !s.is_free()).count()
    }

    /// Returns whether a stager has to end: its slot has another use, or it has to leave.
    pub fn has_to_end(&self, id: LaunchedStager) -> bool {
        self.slots.get(id.slot).is_none_or(|s| s.generation != id.generation || s.is_leaving() || s.is_free())
    }
}

impl Stagers<'_> {
    /// Returns the slots to read.
    pub fn view(&self) -> StagersView<'_> {
        StagersView { slots: self.slots }
    }

    /// Gives each of these prefixes of a database a slot, and dismisses the stagers of all others.
    /// At most `room` slots are used, over all databases.
    pub fn keep(&mut self, database: DatabaseOid, wanted: &[StagedPrefix], room: usize) -> Kept {
        let is_same =
            |s: &StagerSlot, w: &StagedPrefix| (s.schema, s.table, s.owner) == (w.schema, w.table, w.owner);
        let mut kept = Kept {
            leaving: self.dismiss(database, |s| !wanted.iter().any(|w| is_same(s, w))),
            ..Kept::default()
        };
        for w in wanted {
            if let Some(at) = self.view().slot_of_prefix(database, w.schema) {
                // A slot of another table is freed first. The keeper is woken then.
                if is_same(&self.slots[at], w) {
                    self.slots[at].prefix = w.prefix;
                }
                continue;
            }
            let of_owner = self.slots.iter().filter(|s| !s.is_free() && s.owner == w.owner).count();
            let has_room = of_owner < w.quota && self.view().count() < room;
            let free = self.slots.iter().position(StagerSlot::is_free).filter(|_| has_room);
            let Some(at) = free else {
                kept.without_place.push(w.schema);
                continue;
            };
            let slot = &mut self.slots[at];
            *slot = StagerSlot {
                generation: slot.generation + 1,
                database,
                schema: w.schema,
                table: w.table,
                owner: w.owner,
                prefix: w.prefix,
                ..StagerSlot::default()
            };
            kept.begun.push(at);
        }
        kept
    }

    /// Has those stagers of a database leave for which `is_unwanted` holds. Slots without a process
    /// are freed at once. Returns the process numbers of the others, which the caller wakes.
    pub fn dismiss(&mut self, database: DatabaseOid, is_unwanted: impl Fn(&StagerSlot) -> bool) -> Vec<i32> {
        let mut leaving = Vec::new();
        let of = |s: &&mut StagerSlot| !database.is_none() && s.database == database && is_unwanted(s);
        for slot in self.slots.iter_mut().filter(of) {
            if slot.process.pid == 0 {
                slot.free(); // a process that was launched and has not claimed the slot finds that out
            } else {
                slot.leave = 1;
                leaving.push(slot.process.procno);
            }
        }
        leaving
    }

    /// Returns the stagers of a database that are to be launched at `now`. They are in the state
    /// Starting from here on.
    pub fn launch(&mut self, database: DatabaseOid, now: ClockTime) -> Vec<(LaunchedStager, SchemaOid)> {
        let due = |(_, s): &(usize, &mut StagerSlot)| s.database == database && s.is_due(now);
        let started = self.slots.iter_mut().enumerate().filter(due).map(|(slot, s)| {
            s.state = STARTING;
            (LaunchedStager { slot, generation: s.generation }, s.schema)
        });
        started.collect()
    }

    /// Returns the clock reading at which the next stager of a database is due to be launched.
    /// `None`: no stager of the database waits for that.
    pub fn next_launch(&self, database: DatabaseOid) -> Option<ClockTime> {
        let waits = |s: &&StagerSlot| s.database == database && s.is_due(ClockTime::NEVER);
        let due = |s: &StagerSlot| if s.state == BACKOFF { s.retry_at } else { ClockTime::ZERO };
        self.slots.iter().filter(waits).map(due).min()
    }

    /// Notes that a stager did not come up, and why.
    pub fn not_started(&mut self, id: LaunchedStager, now: ClockTime, why: &str) {
        let slot = self.slots.get_mut(id.slot).filter(|s| s.generation == id.generation);
        if let Some(slot) = slot.filter(|s| s.state == STARTING && s.process.pid == 0 && !s.is_free()) {
            slot.failures = slot.failures.max(1); // not at once again
            slot.back_off(RESTART_STAGER, now);
            slot.blame(why);
        }
    }

    /// Claims a slot for a stager. This is the stager's first act, before it connects. `None`: the
    /// stager has to go, because its slot was freed, or has a process.
    pub fn claim(&mut self, slot: usize, process: Process, wall: WallTime) -> Option<Claimed> {
        let s = self
            .slots
            .get_mut(slot)
            .filter(|s| !s.is_free() && s.state == STARTING && s.process.pid == 0 && !s.is_leaving())?;
        let succeeds_another = s.started_at != WallTime::ZERO;
        (s.process, s.started_at) = (process, wall);
        Some(Claimed {
            id: LaunchedStager { slot, generation: s.generation },
            database: s.database,
            schema: s.schema,
            table: s.table,
            owner: s.owner,
            prefix: s.prefix,
            announces: s.announces(),
            succeeds_another,
            batching: s.batching,
        })
    }

    /// Returns the slot of a stager with this process; `None` if the slot has another use by now.
    fn own(&mut self, id: LaunchedStager, pid: i32) -> Option<&mut StagerSlot> {
        let slot = self.slots.get_mut(id.slot);
        slot.filter(|s| s.generation == id.generation && !s.is_free() && s.process.pid == pid)
    }

    /// Notes that a stager is connected.
    pub fn connected(&mut self, id: LaunchedStager, pid: i32) {
        if let Some(slot) = self.own(id, pid) {
            slot.state = RUNNING;
        }
    }

    /// Notes that a look of a stager has succeeded: the next failure is the first in a row.
    pub fn succeeded(&mut self, id: LaunchedStager, pid: i32) {
        if let Some(slot) = self.own(id, pid) {
            slot.failures = 0;
        }
    }

    /// Notes that a stager begins to look for jobs that are available before they are due.
    pub fn begin_announcing(&mut self, id: LaunchedStager, pid: i32) {
        if let Some(slot) = self.own(id, pid) {
            slot.announcing = ANNOUNCING;
        }
    }

    /// Notes that such a look has ended.
    pub fn announced(&mut self, id: LaunchedStager, pid: i32) {
        if let Some(slot) = self.own(id, pid) {
            slot.announcing = 0;
        }
    }

    /// Notes that a stager is going to end because a transaction takes too long. If that is a look
    /// for jobs that are available before they are due, the next stagers of the slot do without.
    pub fn timed_out(&mut self, id: LaunchedStager, pid: i32, why: &str) {
        if let Some(slot) = self.own(id, pid) {
            slot.blame(why);
            if slot.announcing == ANNOUNCING {
                slot.announcing = GIVEN_UP;
            }
        }
    }

    /// Notes why a stager is going to end.
    pub fn note_error(&mut self, id: LaunchedStager, pid: i32, why: &str) {
        if let Some(slot) = self.own(id, pid) {
            slot.blame(why);
        }
    }

    /// Stores the size of batches and the rows that are set aside. `why`: what has failed; `None`:
    /// nothing has. Returns whether a row is set aside and none was before. The keeper logs that, and
    /// the caller wakes the keeper.
    pub fn set_aside(
        &mut self,
        id: LaunchedStager,
        pid: i32,
        batching: &Batching,
        why: Option<&str>,
    ) -> bool {
        let Some(slot) = self.own(id, pid) else { return false };
        let (before, now) = (slot.batching.count(), batching.count());
        slot.batching = *batching;
        match why {
            Some(why) if now > 0 => slot.last_error = Text::truncated(why),
            None if before > 0 && now == 0 => slot.last_error = Text::default(),
            _ => {}
        }
        let is_first = before == 0 && now > 0;
        slot.unlogged |= u32::from(is_first);
        is_first
    }

    /// Notes that a stager has left the server's list of processes. This is the stager's last act.
    pub fn exited(&mut self, id: LaunchedStager, pid: i32, now: ClockTime, end: End) {
        let Some(slot) = self.own(id, pid) else { return };
        slot.process = Process::NONE;
        slot.announcing = if slot.announces() { 0 } else { GIVEN_UP };
        if slot.is_leaving() {
            return slot.free();
        }
        if end != End::Held {
            slot.restarts += 1;
        }
        if end != End::Failed {
            slot.state = WAITING;
            return;
        }
        if slot.unlogged == 0 {
            slot.last_error = Text::truncated("the stager ended: the server's log says why");
        }
        slot.back_off(RESTART_STAGER, now);
    }

    /// Returns what the stagers of a database have failed for and nobody has logged yet.
    pub fn take_unlogged(&mut self, database: DatabaseOid) -> Vec<Failure> {
        let told = |s: &StagerSlot| s.state == BACKOFF || s.batching.count() > 0;
        let failed = |s: &&mut StagerSlot| s.database == database && s.unlogged != 0 && told(s);
        self.slots
            .iter_mut()
            .filter(failed)
            .map(|s| {
                s.unlogged = 0;
                let runs_on = s.state != BACKOFF;
                let trial = s.batching.next_trial().map_or(ClockTime::ZERO, |(_, at)| at);
                Failure {
                    prefix: s.prefix,
                    why: s.last_error,
                    at: if runs_on { trial } else { s.retry_at },
                    runs_on,
                }
            })
            .collect()
    }

    /// Has stagers of a database launched again that an earlier keeper had launched and that have
    /// not claimed their slots.
    pub fn adopt(&mut self, database: DatabaseOid) {
        let lost = |s: &&mut StagerSlot| s.database == database && s.is_up() && s.process.pid == 0;
        self.slots.iter_mut().filter(lost).for_each(|s| s.state = WAITING);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::backoff::MILLISECOND;
    use super::super::batching;
    use super::*;

    const DB: DatabaseOid = DatabaseOid(5);

    fn prefix(schema: u32) -> StagedPrefix {
        StagedPrefix {
            schema: SchemaOid(schema),
            table: TableOid(schema + 100),
            owner: RoleOid(10),
            prefix: Text::truncated(&format!("p{schema}")),
            quota: usize::MAX,
            obstacle: None,
        }
    }

    fn process(pid: i32) -> Process {
        Process { pid, procno: pid + 1000 }
    }

    fn launched(s: &mut Stagers<'_>, now: i64) -> Vec<LaunchedStager> {
        s.launch(DB, ClockTime(now)).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn each_prefix_that_stages_has_one_stager_as_its_owner() {
        let mut slots = [StagerSlot::default(); 4];
        let mut s = Stagers { slots: &mut slots };
        let kept = s.keep(DB, &[prefix(1), prefix(2)], 9);
        assert_eq!((kept.begun, kept.leaving, kept.without_place), (vec![0, 1], vec![], vec![]));
        assert!(s.keep(DB, &[prefix(1), prefix(2)], 9).begun.is_empty());
        assert_eq!(s.next_launch(DB), Some(ClockTime::ZERO));
        let ids = launched(&mut s, 0);
        assert_eq!(ids.len(), 2);
        assert!(launched(&mut s, 0).is_empty(), "once");
        let claimed = s.claim(0, process(7), WallTime(3)).unwrap();
        assert_eq!((claimed.schema, claimed.owner, claimed.id), (SchemaOid(1), RoleOid(10), ids[0]));
        assert_eq!(s.claim(0, process(8), WallTime(3)), None, "it has a process");
        s.connected(ids[0], 7);
        assert_eq!(s.view().processes(DB), [process(7)]);

        // The owner becomes another. The stager leaves, then the new one has the slot.
        let other = StagedPrefix { owner: RoleOid(11), ..prefix(1) };
        let kept = s.keep(DB, &[other.clone(), prefix(2)], 9);
        assert_eq!(kept.leaving, [1007]);
        assert!(kept.begun.is_empty() && s.view().has_to_end(ids[0]) && !s.view().has_to_end(ids[1]));
        s.exited(ids[0], 7, ClockTime(0), End::Failed);
        assert_eq!(s.keep(DB, &[other, prefix(2)], 9).begun, [0]);
        let again = launched(&mut s, 0);
        assert!(again[0].generation > ids[0].generation && s.view().has_to_end(ids[0]));
        s.exited(ids[0], 7, ClockTime(0), End::Failed); // what is told of an earlier use changes nothing
        assert_eq!(s.slots[0].restarts, 0);
        assert_eq!(s.dismiss(DB, |_| true), [0; 0]);
        assert_eq!(s.view().count(), 0, "none had a process");
        assert_eq!(s.claim(0, process(9), WallTime(0)), None, "the one that was launched has to go");
    }

    #[test]
    fn failures_have_growing_delays_until_a_look_succeeds() {
        let mut slots = [StagerSlot::default(); 1];
        let mut s = Stagers { slots: &mut slots };
        s.keep(DB, &[prefix(1)], 9);
        let (mut now, mut delays) = (0, Vec::new());
        for pid in 1..=12 {
            let id = launched(&mut s, now)[0];
            s.claim(0, process(pid), WallTime(0)).unwrap();
            s.connected(id, pid);
            if pid == 1 {
                s.succeeded(id, pid);
            }
            s.note_error(id, pid, "it raised");
            s.exited(id, pid, ClockTime(now), End::Failed);
            let due = s.next_launch(DB).unwrap();
            delays.push((due - ClockTime(now)) / (1_000 * MILLISECOND));
            assert_eq!(s.take_unlogged(DB).len(), 1);
            assert!(s.take_unlogged(DB).is_empty());
            now = due.0;
        }
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        let id = launched(&mut s, now)[0];
        s.claim(0, process(99), WallTime(0)).unwrap();
        s.succeeded(id, 99);
        s.exited(id, 99, ClockTime(now), End::Failed);
        assert_eq!(s.next_launch(DB), Some(ClockTime(now)), "the first failure is retried at once");
        assert!(s.take_unlogged(DB).is_empty(), "one that was terminated says nothing");
        assert_eq!(s.slots[0].restarts, 13);
        // It does not come up.
        let id = launched(&mut s, now)[0];
        s.not_started(id, ClockTime(now), "no worker");
        assert!(s.next_launch(DB).unwrap() > ClockTime(now));
    }

    #[test]
    fn rows_that_are_set_aside_stay_so_for_the_next_stager() {
        let mut slots = [StagerSlot::default(); 1];
        let mut s = Stagers { slots: &mut slots };
        s.keep(DB, &[prefix(1)], 9);
        let id = launched(&mut s, 0)[0];
        let mut batching = s.claim(0, process(1), WallTime(0)).unwrap().batching;
        s.connected(id, 1);
        batching.failed(batching::Failure::Raised, Some(Text::truncated("1 (0,1) 3")), ClockTime(5));
        assert!(s.set_aside(id, 1, &batching, Some("it raised")));
        assert!(!s.set_aside(id, 1, &batching, Some("so did it")));
        let failures = s.take_unlogged(DB);
        assert_eq!((failures.len(), failures[0].runs_on), (1, true));
        assert_eq!(failures[0].at, batching.next_trial().unwrap().1);
        assert!(s.take_unlogged(DB).is_empty(), "once");
        s.exited(id, 1, ClockTime(5), End::Progressed);
        assert_eq!((s.slots[0].failures, s.slots[0].restarts), (0, 1));
        assert_eq!(launched(&mut s, 5).len(), 1, "the next one comes at once");
        let claimed = s.claim(0, process(2), WallTime(0)).unwrap();
        assert_eq!(claimed.batching, batching);
        assert!(!s.set_aside(id, 1, &Batching::default(), Some("x")), "it is another's slot by now");
        assert!(!s.set_aside(claimed.id, 2, &Batching::default(), None));
        assert_eq!((s.slots[0].batching.count(), s.slots[0].last_error.as_str()), (0, ""));
    }

    #[test]
    fn a_look_for_later_jobs_that_takes_too_long_is_not_tried_again() {
        let mut slots = [StagerSlot::default(); 1];
        let mut s = Stagers { slots: &mut slots };
        s.keep(DB, &[prefix(1)], 9);
        let mut announces = Vec::new();
        for (pid, looks, times_out) in
            [(1, true, false), (2, false, true), (3, true, true), (4, false, false)]
        {
            let id = launched(&mut s, i64::MAX)[0];
            announces.push(s.claim(0, process(pid), WallTime(0)).unwrap().announces);
            s.begin_announcing(id, pid);
            if !looks {
                s.announced(id, pid);
            }
            if times_out {
                s.timed_out(id, pid, "too long");
            }
            s.exited(id, pid, ClockTime(0), End::Failed);
        }
        assert_eq!(announces, [true, true, true, false]);
        assert!(s.dismiss(DB, |_| true).is_empty());
        s.keep(DB, &[prefix(1)], 9);
        assert!(s.slots[0].announces(), "a new use of the slot begins anew");
    }

    #[test]
    fn a_role_has_its_quota_and_all_have_the_room() {
        let mut slots = [StagerSlot::default(); 8];
        let mut s = Stagers { slots: &mut slots };
        let wanted: Vec<_> = (1..=4).map(|n| StagedPrefix { quota: 2, ..prefix(n) }).collect();
        assert_eq!(s.keep(DB, &wanted, 9).without_place, [SchemaOid(3), SchemaOid(4)]);
        let others: Vec<_> = (1..=4).map(|n| StagedPrefix { owner: RoleOid(77), ..prefix(n) }).collect();
        let kept = s.keep(DatabaseOid(6), &others, 5);
        assert_eq!((kept.begun.len(), kept.without_place), (3, vec![SchemaOid(4)]));
        assert_eq!(
            s.keep(DB, &wanted[1..], 6).begun.len(),
            1,
            "the first has gone, and the third has its place"
        );
    }

    #[test]
    fn a_hold_and_a_new_keeper_are_no_failures() {
        let mut slots = [StagerSlot::default(); 1];
        let mut s = Stagers { slots: &mut slots };
        s.keep(DB, &[prefix(1)], 9);
        let id = launched(&mut s, 0)[0];
        s.adopt(DB);
        assert_eq!(launched(&mut s, 0), [id]);
        s.claim(0, process(7), WallTime(0)).unwrap();
        s.adopt(DB);
        assert!(launched(&mut s, 0).is_empty());
        s.exited(id, 7, ClockTime(0), End::Held);
        assert_eq!((s.slots[0].failures, s.slots[0].restarts, launched(&mut s, 0).len()), (0, 0, 1));
    }

    proptest! {
        /// Whatever keepers, stagers and commands do in any order: no two processes have a prefix, no
        /// prefix has two slots, and a prefix that stages has a stager in the end.
        #[test]
        fn one_stager_for_each_prefix(steps in prop::collection::vec((0..8_u8, 0..3_u32), 1..80)) {
            let mut slots = [StagerSlot::default(); 4];
            let mut s = Stagers { slots: &mut slots };
            let (mut wanted, mut pid, mut now) = (Vec::new(), 0, 0_i64);
            let mut running: Vec<(Claimed, i32)> = Vec::new();
            let mut up: Vec<LaunchedStager> = Vec::new();
            for (step, n) in steps {
                now += 400_000_000;
                match step {
                    0 => wanted = (0..=n).map(prefix).collect(),
                    1 => wanted = vec![StagedPrefix { owner: RoleOid(n + 20), ..prefix(n) }],
                    2 => drop(s.keep(DB, &wanted, 4)),
                    3 => up.extend(launched(&mut s, now)),
                    4 => if let Some(id) = up.pop() {
                        pid += 1;
                        running.extend(s.claim(id.slot, process(pid), WallTime(now)).map(|c| (c, pid)));
                    },
                    5 => if let Some((claimed, pid)) = running.pop() {
                        let end = [End::Held, End::Progressed, End::Failed][n as usize];
                        s.exited(claimed.id, pid, ClockTime(now), end);
                    },
                    6 => s.adopt(DB),
                    _ => if let Some(id) = up.pop() {
                        s.not_started(id, ClockTime(now), "why");
                    },
                }
                let schemas: Vec<_> = s.slots.iter().filter(|s| !s.is_free()).map(|s| s.schema).collect();
                let mut unique = schemas.clone();
                unique.sort();
                unique.dedup();
                prop_assert_eq!(unique.len(), schemas.len());
                let mut of: Vec<_> = running.iter().map(|(c, _)| c.id.slot).collect();
                of.sort_unstable();
                of.dedup();
                prop_assert_eq!(of.len(), running.len());
            }
            // All leave, and then each prefix has a stager.
            s.keep(DB, &wanted, 4);
            running.drain(..).for_each(|(c, pid)| s.exited(c.id, pid, ClockTime(now), End::Failed));
            s.adopt(DB);
            s.keep(DB, &wanted, 4);
            prop_assert_eq!(launched(&mut s, now + 400_000_000).len(), wanted.len());
        }
    }
}
