use super::super::backoff::LOOK;
use super::super::ids::{DatabaseOid, Process};
use super::super::times::{ClockTime, WallTime};
use super::Kind::{Keeper, Relay};
use super::*;
use proptest::prelude::*;

struct Memory {
    databases: Vec<DatabaseSlot>,
    holds: Vec<Hold>,
    unslotted: Box<UnslottedDatabases>,
    last_generation: u64,
}

impl Memory {
    fn new() -> Self {
        Self::with_slots(2)
    }
    fn with_slots(slots: usize) -> Self {
        let databases = vec![DatabaseSlot::default(); slots];
        Self { databases, holds: vec![Hold::default(); 2], unslotted: Box::default(), last_generation: 0 }
    }
    fn registry(&mut self) -> Registry<'_> {
        let Self { databases, holds, unslotted, last_generation } = self;
        Registry { databases, holds, unslotted, last_generation }
    }
}

/// Reaps after a scan of pg_database that found all databases.
fn reap(r: &mut Registry<'_>, alive: impl Fn(DatabaseOid) -> bool) -> (Vec<FreedSlot>, Vec<i32>) {
    r.reap(*r.last_generation, &alive, &alive)
}

fn forgettable(r: &Registry<'_>, alive: impl Fn(DatabaseOid) -> bool) -> Vec<(u32, i64)> {
    r.forgettable(*r.last_generation, alive).into_iter().map(|(oid, before)| (oid.0, before.0)).collect()
}

/// Launches workers, and returns the databases of the keepers among them.
fn keepers(r: &mut Registry<'_>, now: i64, alive: impl Fn(DatabaseOid) -> bool) -> Vec<u32> {
    let launched = r.launch(ClockTime(now), alive).into_iter();
    launched.filter(|(kind, _)| *kind == Keeper).map(|(_, oid)| oid.0).collect()
}

fn keeper(r: &Registry<'_>, oid: DatabaseOid) -> WorkerSlot {
    *r.database(oid).unwrap().worker(Keeper)
}

fn oids(freed: &[FreedSlot]) -> Vec<u32> {
    freed.iter().map(|f| f.oid.0).collect()
}

fn databases<const N: usize>(oids: [u32; N]) -> [DatabaseOid; N] {
    oids.map(DatabaseOid)
}

fn process(pid: i32, procno: i32) -> Process {
    Process { pid, procno }
}

#[test]
fn a_keeper_comes_up_runs_and_is_restarted() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert!(r.add(DatabaseOid(5)) && r.add(DatabaseOid(5)));
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
    assert_eq!(keepers(&mut r, 0, |_| true), [0u32; 0], "it counts as starting");
    assert_eq!(r.claim(Keeper, DatabaseOid(5), process(100, 7), ClockTime(0), WallTime(0)), Ok(()));
    assert_eq!(
        r.claim(Keeper, DatabaseOid(5), process(101, 8), ClockTime(0), WallTime(0)),
        Err(Refused::Second)
    );
    r.extension_looked_up(DatabaseOid(5), 100, true, ClockTime(0));
    assert_eq!(keeper(&r, DatabaseOid(5)).state, RUNNING);
    r.exited(Keeper, DatabaseOid(5), 101, ClockTime(1));
    assert_eq!(keeper(&r, DatabaseOid(5)).process.pid, 100, "not that process's slot");
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(1));
    assert_eq!(keepers(&mut r, 1, |_| true), [5], "the first restart comes at once");
    r.launch_failed(Keeper, DatabaseOid(5), ClockTime(1), "no slot");
    assert_eq!(keepers(&mut r, 1, |_| true), [0u32; 0]);
    assert_eq!(r.next_launch(), Some(ClockTime(1 + RESTART.delay(1))));
    assert_eq!(keepers(&mut r, 1 + RESTART.delay(1), |_| true), [5]);
    assert_eq!(keeper(&r, DatabaseOid(5)).last_error.as_str(), "no slot");
    assert_eq!(r.claim(Keeper, DatabaseOid(5), process(102, 7), ClockTime(2), WallTime(0)), Ok(()));
    r.exited(Keeper, DatabaseOid(5), 102, ClockTime(2 + HEALTHY));
    assert_eq!(keepers(&mut r, 2 + HEALTHY, |_| true), [5], "after a healthy run, at once again");
}

#[test]
fn a_database_without_the_extension_frees_its_slot() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert!(r.add(DatabaseOid(5)) && r.add(DatabaseOid(6)) && !r.add(DatabaseOid(7)));
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    r.extension_looked_up(DatabaseOid(5), 100, false, ClockTime(3));
    assert!(reap(&mut r, |_| true).0.is_empty(), "its keeper has not gone yet");
    assert!(forgettable(&r, |_| true).is_empty());
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(0));
    assert!(forgettable(&r, |_| true).is_empty(), "it never had any: a member that joins may be creating it");
    assert_eq!(oids(&reap(&mut r, |_| true).0), [5]);
    assert!(r.add(DatabaseOid(7)));
    assert_eq!(
        r.claim(Keeper, DatabaseOid(5), process(103, 1), ClockTime(0), WallTime(0)),
        Err(Refused::Unwanted)
    );
}

#[test]
fn create_extension_while_a_keeper_is_leaving_starts_another() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(DatabaseOid(5));
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    r.extension_looked_up(DatabaseOid(5), 100, false, ClockTime(3));
    assert_eq!(r.extension_changed(DatabaseOid(5), Some(true), ClockTime(0)), Some(1));
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(0));
    assert!(reap(&mut r, |_| true).0.is_empty());
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
}

#[test]
fn a_dropped_extension_is_looked_for_again() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(DatabaseOid(5));
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    r.extension_looked_up(DatabaseOid(5), 100, true, ClockTime(0));
    assert_eq!(r.extension_changed(DatabaseOid(5), Some(true), ClockTime(0)), Some(1));
    let before = r.take_orders(Keeper, DatabaseOid(5));
    assert!(
        before.look_for_extension
            && !r.take_orders(Keeper, DatabaseOid(5)).look_for_extension
            && !before.leave
    );
    assert_eq!(r.prepare_wakeup(DatabaseOid(5)), Some(1));
    assert_ne!(r.take_orders(Keeper, DatabaseOid(5)).wakeups, before.wakeups, "not to be slept over");
    r.extension_looked_up(DatabaseOid(5), 100, false, ClockTime(7));
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(8));
    assert_eq!(forgettable(&r, |_| true), [(5, 7)]);
    assert_eq!(r.prepare_wakeup(DatabaseOid(5)), None);
}

#[test]
fn a_hold_keeps_keepers_off_and_brings_them_back() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(DatabaseOid(5));
    assert!(r.hold(DatabaseOid(5), process(40, 9)));
    assert_eq!(keepers(&mut r, 0, |_| true), [0u32; 0]);
    r.release(41);
    assert!(r.is_held(DatabaseOid(5)));
    r.release(40);
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
    assert!(r.hold(DatabaseOid(5), process(40, 9)));
    assert_eq!(
        r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)),
        Err(Refused::Held),
        "held between launch and claim"
    );
    r.launch_failed(Keeper, DatabaseOid(5), ClockTime(0), "it had to go");
    r.release(40);
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
    r.claim(Keeper, DatabaseOid(5), process(101, 1), ClockTime(0), WallTime(0)).unwrap();
    assert!(
        r.hold(DatabaseOid(5), process(40, 9))
            && r.hold(DatabaseOid(6), process(40, 9))
            && !r.hold(DatabaseOid(7), process(40, 9))
    );
    assert_eq!(r.exited(Keeper, DatabaseOid(5), 101, ClockTime(0)), [9], "its holder is woken");
    assert_eq!(
        (keeper(&r, DatabaseOid(5)).state, keeper(&r, DatabaseOid(5)).failures),
        (WAITING, 0),
        "not its own failure"
    );
}

#[test]
fn a_new_coordinator_takes_over() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert!(r.add(DatabaseOid(5)) && r.add(DatabaseOid(6)));
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    r.adopt();
    assert_eq!(keepers(&mut r, 0, |_| true), [6]);
    r.extension_looked_up(DatabaseOid(5), 100, true, ClockTime(0));
    assert_eq!(
        reap(&mut r, |oid| oid != DatabaseOid(5)),
        (vec![], vec![1]),
        "its keeper has to go first, and is told"
    );
    assert!(r.take_orders(Keeper, DatabaseOid(5)).leave);
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(0));
    assert_eq!(forgettable(&r, |oid| oid != DatabaseOid(5)), [(5, i64::MAX)]);
    assert_eq!(keepers(&mut r, HEALTHY, |oid| oid != DatabaseOid(5)), [0u32; 0], "nor does another one come");
    assert_eq!(
        reap(&mut r, |oid| oid != DatabaseOid(5)),
        (vec![FreedSlot { oid: DatabaseOid(5), slot: 0, generation: 1 }], vec![])
    );
    assert_eq!(reap(&mut r, |oid| oid != DatabaseOid(6)), (vec![], vec![]));
    assert_eq!(
        r.claim(Keeper, DatabaseOid(6), process(101, 1), ClockTime(0), WallTime(0)),
        Err(Refused::Unwanted),
        "it was on its way"
    );
    assert_eq!(oids(&reap(&mut r, |oid| oid != DatabaseOid(6)).0), [6]);
}

#[test]
fn a_relay_runs_where_a_keeper_found_the_extension() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(DatabaseOid(5));
    assert_eq!(r.launch(ClockTime(0), |_| true), [(Keeper, DatabaseOid(5))]);
    assert_eq!(
        r.claim(Relay, DatabaseOid(5), process(99, 3), ClockTime(0), WallTime(0)),
        Err(Refused::Unwanted)
    );
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    assert_eq!(r.extension_looked_up(DatabaseOid(5), 100, true, ClockTime(0)), None);
    assert_eq!(r.launch(ClockTime(0), |_| true), [(Relay, DatabaseOid(5))]);
    r.claim(Relay, DatabaseOid(5), process(101, 2), ClockTime(0), WallTime(0)).unwrap();
    r.relay_connected(DatabaseOid(5), 101);
    assert_eq!(r.processes(DatabaseOid(5)), [process(100, 1), process(101, 2), process(0, -1)]);

    // The end of one worker does not concern the other.
    r.exited(Relay, DatabaseOid(5), 101, ClockTime(1));
    assert_eq!((keeper(&r, DatabaseOid(5)).state, keeper(&r, DatabaseOid(5)).restarts), (RUNNING, 0));
    assert_eq!(r.next_launch(), Some(ClockTime(1 + RESTART.delay(0))));
    assert_eq!(r.launch(ClockTime(1 + RESTART.delay(0)), |_| true), [(Relay, DatabaseOid(5))]);
    r.launch_failed(Relay, DatabaseOid(5), ClockTime(1), "no slot");
    assert_eq!(r.database(DatabaseOid(5)).unwrap().worker(Relay).last_error.as_str(), "no slot");
    assert_eq!(r.launch(ClockTime(HEALTHY), |_| true), [(Relay, DatabaseOid(5))]);
    r.claim(Relay, DatabaseOid(5), process(102, 2), ClockTime(1), WallTime(0)).unwrap();

    // The extension is dropped. The relay goes first or last, and then the slot is free.
    let wakeups = r.take_orders(Relay, DatabaseOid(5)).wakeups;
    assert_eq!(r.extension_looked_up(DatabaseOid(5), 100, false, ClockTime(7)), Some(2));
    let orders = r.take_orders(Relay, DatabaseOid(5));
    assert!(orders.leave && orders.wakeups != wakeups);
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(8));
    assert!(reap(&mut r, |_| true).0.is_empty() && forgettable(&r, |_| true).is_empty());
    r.exited(Relay, DatabaseOid(5), 102, ClockTime(8));
    assert_eq!(r.launch(ClockTime(HEALTHY * 9), |_| true), []);
    assert_eq!(forgettable(&r, |_| true), [(5, 7)]);
    assert_eq!(oids(&reap(&mut r, |_| true).0), [5]);
    assert!(r.add(DatabaseOid(5)));
    assert_eq!(r.slot(DatabaseOid(5)), Some((0, 2)), "another generation of the slot");
}

#[test]
fn a_hold_sends_both_away() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(DatabaseOid(5));
    r.launch(ClockTime(0), |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    r.extension_looked_up(DatabaseOid(5), 100, true, ClockTime(0));
    r.launch(ClockTime(0), |_| true);
    r.claim(Relay, DatabaseOid(5), process(101, 2), ClockTime(0), WallTime(0)).unwrap();
    assert!(r.hold(DatabaseOid(5), process(40, 9)));
    assert!(r.take_orders(Keeper, DatabaseOid(5)).leave && r.take_orders(Relay, DatabaseOid(5)).leave);
    assert_eq!(r.exited(Relay, DatabaseOid(5), 101, ClockTime(0)), [9]);
    assert_eq!(r.exited(Keeper, DatabaseOid(5), 100, ClockTime(0)), [9]);
    assert_eq!(r.launch(ClockTime(0), |_| true), []);
    r.release(40);
    assert_eq!(r.launch(ClockTime(0), |_| true), [(Keeper, DatabaseOid(5)), (Relay, DatabaseOid(5))]);
}

/// The extension is dropped while there is no keeper. What was kept is given up all the same.
#[test]
fn a_dropped_extension_needs_no_keeper_to_be_noticed() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert_eq!(r.extension_changed(DatabaseOid(5), Some(true), ClockTime(0)), None);
    r.launch(ClockTime(0), |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    r.extension_looked_up(DatabaseOid(5), 100, true, ClockTime(0));
    r.launch(ClockTime(0), |_| true);
    r.claim(Relay, DatabaseOid(5), process(101, 2), ClockTime(0), WallTime(0)).unwrap();
    r.exited(Keeper, DatabaseOid(5), 100, ClockTime(1));
    assert_eq!(
        r.extension_changed(DatabaseOid(5), Some(false), ClockTime(3)),
        Some(2),
        "the relay has to go"
    );
    assert!(r.take_orders(Relay, DatabaseOid(5)).leave);
    assert_eq!(r.launch(ClockTime(HEALTHY), |_| true), []);
    r.exited(Relay, DatabaseOid(5), 101, ClockTime(4));
    assert_eq!(forgettable(&r, |_| true), [(5, 3)]);
    assert_eq!(oids(&reap(&mut r, |_| true).0), [5]);
    assert_eq!(r.place(|_| true), [DatabaseOid::NONE; 0]);
    assert!(r.database(DatabaseOid(5)).is_none());

    // A keeper that was launched looks for itself.
    r.extension_changed(DatabaseOid(5), Some(true), ClockTime(5));
    r.launch(ClockTime(5), |_| true);
    assert_eq!(r.extension_changed(DatabaseOid(5), Some(false), ClockTime(6)), None);
    assert!(reap(&mut r, |_| true).0.is_empty());
    // An extension that is created later makes the database wanted again.
    r.launch_failed(Keeper, DatabaseOid(5), ClockTime(6), "lost");
    r.extension_changed(DatabaseOid(5), Some(false), ClockTime(7));
    r.extension_changed(DatabaseOid(5), Some(true), ClockTime(8));
    assert_eq!(keepers(&mut r, 8, |_| true), [5]);
}

/// A scan of pg_database that began before a database was made does not take the database's slot.
#[test]
fn what_is_younger_than_the_look_is_left_alone() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    let last_generation = *r.last_generation;
    r.extension_changed(DatabaseOid(5), Some(true), ClockTime(0));
    r.look_into(DatabaseOid(6));
    let nothing = |_: DatabaseOid| false;
    assert_eq!(r.reap(last_generation, nothing, nothing), (vec![], vec![]));
    assert!(r.forgettable(last_generation, nothing).is_empty());
    r.forget_unslotted(last_generation, nothing);
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([6]));
    r.look_lost(DatabaseOid(6), ClockTime(0));
    let last_generation = *r.last_generation;
    r.forget_unslotted(last_generation, nothing);
    assert_eq!(oids(&r.reap(last_generation, nothing, nothing).0), [5]);
    assert_eq!(r.launch_looks(ClockTime(i64::MAX), |_| true), [DatabaseOid::NONE; 0]);
}

/// A template remembers whether it has the extension, and its copies have it too.
#[test]
fn copies_have_what_their_source_has() {
    let mut memory = Memory::with_slots(8);
    let mut r = memory.registry();
    r.unslotted.done = 1;
    r.extension_changed(DatabaseOid(5), Some(true), ClockTime(0));
    r.copied(DatabaseOid(5), DatabaseOid(6));
    assert_eq!((r.place(|_| true), keepers(&mut r, 0, |_| true)), (vec![], vec![5, 6]));
    for oid in [5, 6] {
        r.launch_failed(Keeper, DatabaseOid(oid), ClockTime(0), "lost");
    }
    // 5 becomes a template. 7 is copied from 5, and is a template itself.
    r.reap(*r.last_generation, |oid| oid != DatabaseOid(5), |_| true);
    assert!(r.database(DatabaseOid(5)).is_none());
    r.copied(DatabaseOid(5), DatabaseOid(7));
    assert_eq!(r.place(|oid| oid != DatabaseOid(5) && oid != DatabaseOid(7)), [DatabaseOid::NONE; 0]);
    assert!(r.database(DatabaseOid(5)).is_none() && r.database(DatabaseOid(7)).is_none());
    // CREATE EXTENSION or a call in a template changes nothing. Once 5 and 7 are no templates any
    // more, they have slots.
    r.extension_changed(DatabaseOid(5), Some(true), ClockTime(1));
    assert!(r.database(DatabaseOid(5)).is_none());
    r.place(|_| true);
    assert!(r.database(DatabaseOid(5)).is_some() && r.database(DatabaseOid(7)).is_some());
    // The extension is dropped in a template. Copies of the template do not have it.
    r.reap(*r.last_generation, |oid| oid != DatabaseOid(7), |_| true);
    r.extension_changed(DatabaseOid(7), Some(false), ClockTime(2));
    r.copied(DatabaseOid(7), DatabaseOid(8));
    // Nor has the copy of a source that was looked into with all others.
    r.copied(DatabaseOid(99), DatabaseOid(9));
    assert_eq!((r.place(|_| true), r.launch_looks(ClockTime(2), |_| true)), (vec![], vec![]));
    assert!(r.database(DatabaseOid(8)).is_none() && r.database(DatabaseOid(9)).is_none());
}

#[test]
fn a_copy_of_what_nobody_knows_is_looked_into() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.copied(DatabaseOid(5), DatabaseOid(6)); // before the server's first looks are done
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([6]));
    assert!(r.claim_look(DatabaseOid(6), 100));
    r.looked(DatabaseOid(6), 100, false);
    assert_eq!(r.free_looks(ClockTime(0), |_| true), 1, "it is still there");
    r.look_ended(DatabaseOid(6), 100, ClockTime(0));
    assert_eq!(r.free_looks(ClockTime(0), |_| true), 2);
    r.unslotted.done = 1;
    r.copied(DatabaseOid(0), DatabaseOid(7)); // the source is not known
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([7]));
    r.look_lost(DatabaseOid(7), ClockTime(0));
    r.copied(DatabaseOid(7), DatabaseOid(8)); // a look is still to go into the source
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([8]));
    assert!(r.claim_look(DatabaseOid(8), 101));
    r.looked(DatabaseOid(8), 101, true);
    r.look_ended(DatabaseOid(8), 101, ClockTime(0));
    assert_eq!((r.place(|_| true), keepers(&mut r, 0, |_| true)), (vec![], vec![8]));
}

#[test]
fn few_looks_at_a_time_with_growing_delays_and_an_end() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    (1..=4).for_each(|oid| assert!(r.look_into(DatabaseOid(oid))));
    assert_eq!(
        r.launch_looks(ClockTime(0), |oid| oid != DatabaseOid(1)),
        databases([2, 3]),
        "where it may enter"
    );
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), [DatabaseOid::NONE; 0]);
    assert!(!r.claim_look(DatabaseOid(1), 99), "it was not launched");
    assert!(r.claim_look(DatabaseOid(2), 100) && !r.claim_look(DatabaseOid(2), 101));
    r.look_ended(DatabaseOid(2), 100, ClockTime(7)); // the look ends without a result: it failed
    r.look_postponed(DatabaseOid(3), ClockTime(7));
    assert_eq!(r.launch_looks(ClockTime(7), |_| true), databases([1, 4]));
    r.adopt();
    assert_eq!(
        r.launch_looks(ClockTime(7), |_| true),
        databases([1, 4]),
        "a new coordinator does not know them"
    );
    for (oid, pid) in [(1, 102), (4, 103)] {
        assert!(r.claim_look(DatabaseOid(oid), pid));
        r.looked(DatabaseOid(oid), pid, false);
        r.look_ended(DatabaseOid(oid), pid, ClockTime(7));
    }
    assert_eq!(r.next_look(ClockTime(7), |_| true), Some(ClockTime(7 + LOOK.delay(1))));
    assert_eq!(r.next_look(ClockTime(7), |_| false), None);
    let mut now = 7;
    for failures in 1.. {
        now += LOOK.delay(failures);
        if r.launch_looks(ClockTime(now), |oid| oid == DatabaseOid(2)).is_empty() {
            break;
        }
        assert!(r.failed_looks().is_empty() && failures < 100);
        r.look_lost(DatabaseOid(2), ClockTime(now));
    }
    assert_eq!(r.failed_looks(), databases([2]));
    assert_eq!(r.launch_looks(ClockTime(i64::MAX), |_| true), databases([3]));
    r.unslotted.done = 1;
    r.copied(DatabaseOid(2), DatabaseOid(9));
    assert_eq!(r.launch_looks(ClockTime(i64::MAX), |_| true), databases([9]), "its copies are looked into");
    r.extension_changed(DatabaseOid(2), Some(true), ClockTime(now));
    assert!(r.database(DatabaseOid(2)).is_some() && r.failed_looks().is_empty());
}

/// What a backend tells while a look runs counts more than what the look finds.
#[test]
fn a_commit_during_a_look_counts_more() {
    for (told, found) in [(true, false), (false, true)] {
        for slots in [0, 1] {
            let mut memory = Memory::with_slots(slots);
            let mut r = memory.registry();
            r.look_into(DatabaseOid(5));
            r.launch_looks(ClockTime(0), |_| true);
            assert!(r.claim_look(DatabaseOid(5), 100));
            r.extension_changed(DatabaseOid(5), Some(told), ClockTime(0));
            r.looked(DatabaseOid(5), 100, found);
            assert_eq!(
                r.processes(DatabaseOid(5))[2],
                process(100, -1),
                "the holder of the database waits for it"
            );
            r.look_ended(DatabaseOid(5), 100, ClockTime(0));
            let waiting = r.place(|_| true);
            assert_eq!(r.database(DatabaseOid(5)).is_some(), told && slots == 1);
            assert_eq!(!waiting.is_empty(), told && slots == 0);
            assert_eq!(r.launch_looks(ClockTime(i64::MAX), |_| true), [DatabaseOid::NONE; 0]);
        }
    }
}

#[test]
fn a_hold_keeps_looks_out_too() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.look_into(DatabaseOid(5));
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([5]));
    assert!(r.hold(DatabaseOid(5), process(40, 9)));
    assert!(!r.claim_look(DatabaseOid(5), 100));
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), [DatabaseOid::NONE; 0]);
    r.release(40);
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([5]));
    assert!(r.claim_look(DatabaseOid(5), 101) && r.hold(DatabaseOid(5), process(40, 9)));
    assert_eq!(r.look_ended(DatabaseOid(5), 101, ClockTime(0)), [9], "its holder is woken");
    r.release(40);
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([5]), "that it had to go is no failure");
}

#[test]
fn when_there_is_no_room_to_remember_copies_are_looked_into() {
    let mut memory = Memory::with_slots(1);
    let mut r = memory.registry();
    r.unslotted.done = 1;
    r.copied(DatabaseOid(5), DatabaseOid(1000));
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), [DatabaseOid::NONE; 0]);
    let kept = (1..).take_while(|oid| r.has_extension(DatabaseOid(*oid))).count();
    assert!(kept > 100, "{kept}");
    r.copied(DatabaseOid(2000), DatabaseOid(2001));
    assert_eq!(r.launch_looks(ClockTime(0), |_| true), databases([2001]), "for looks there is room");
    assert_eq!(r.place(|_| true).len(), kept - 1);
}

#[test]
fn the_limit_that_holds_is_named() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert_eq!(r.lack(DatabaseOid(5), 8, true), None);
    assert_eq!(r.lack(DatabaseOid(5), 2, false), None, "it may start all the same");
    assert_eq!(r.lack(DatabaseOid(5), 2, true), Some(Lack::Workers { most: 2, needed: 3 }));
    r.extension_changed(DatabaseOid(5), Some(true), ClockTime(0));
    r.launch(ClockTime(0), |_| true);
    r.no_worker_slot(Keeper, DatabaseOid(5), ClockTime(0), "none");
    assert_eq!(
        r.lack(DatabaseOid(5), 8, false),
        Some(Lack::Workers { most: 8, needed: 3 }),
        "others have them"
    );
    keepers(&mut r, HEALTHY, |_| true);
    r.claim(Keeper, DatabaseOid(5), process(100, 1), ClockTime(0), WallTime(0)).unwrap();
    assert_eq!(r.lack(DatabaseOid(5), 8, false), None);
    r.extension_changed(DatabaseOid(6), Some(true), ClockTime(0));
    r.extension_changed(DatabaseOid(7), Some(true), ClockTime(0));
    assert_eq!(r.lack(DatabaseOid(7), 8, false), Some(Lack::Slot { most: 2, workers: None }));
    assert_eq!(r.lack(DatabaseOid(7), 6, false), Some(Lack::Slot { most: 2, workers: Some(7) }));
    assert_eq!(r.place(|_| true), databases([7]));
    r.extension_changed(DatabaseOid(6), Some(false), ClockTime(0));
    reap(&mut r, |_| true);
    assert_eq!((r.place(|_| true), r.lack(DatabaseOid(7), 8, false)), (vec![], None));
}

proptest! {
    /// Databases are looked into, get the extension and lose it, become templates and are held, in
    /// any order. Never do two looks run in one database, or one while the database is held. In the
    /// end everything is known as it is.
    #[test]
    fn looks_and_commits_in_any_order_end_with_the_truth(
        steps in prop::collection::vec((0u8..9, 1u32..4), 1..200)
    ) {
        let mut memory = Memory::with_slots(2);
        let mut r = memory.registry();
        r.unslotted.done = 1;
        let (mut pid, mut now) = (100, 0);
        let mut has = [false, true, false, true];
        let mut templates = [false; 4];
        // Each look with its database, its pid and what it has seen.
        let mut looking: Vec<(DatabaseOid, i32, bool)> = Vec::new();
        (1..4).for_each(|oid| assert!(r.look_into(DatabaseOid(oid))));
        for (what, oid) in steps {
            let (at, pid_of_oid, oid) = (oid as usize, oid as i32, DatabaseOid(oid));
            now += LOOK.max;
            match what {
                0 | 1 => for oid in r.launch_looks(ClockTime(now), |_| true) {
                    pid += 1;
                    if r.claim_look(oid, pid) {
                        prop_assert!(!r.is_held(oid) && looking.iter().all(|l| l.0 != oid));
                        looking.push((oid, pid, has[oid.0 as usize]));
                    }
                },
                2 => if let Some(l) = looking.iter().find(|l| l.0 == oid) {
                    r.looked(oid, l.1, l.2);
                },
                3 => if let Some(l) = looking.iter().position(|l| l.0 == oid) {
                    let (oid, pid, _) = looking.remove(l);
                    r.look_ended(oid, pid, ClockTime(now));
                },
                4 => {
                    has[at] = !has[at];
                    r.extension_changed(oid, Some(has[at]), ClockTime(now));
                }
                5 => { r.look_into(oid); }
                6 => { r.hold(oid, process(pid_of_oid, 9)); }
                7 => r.release(pid_of_oid),
                _ => {
                    templates[at] = !templates[at];
                    r.place(|oid| !templates[oid.0 as usize]);
                    r.reap(*r.last_generation, |oid| !templates[oid.0 as usize], |_| true);
                }
            }
        }
        (1..4).for_each(|oid| r.release(oid));
        for (oid, pid, seen) in looking {
            r.looked(oid, pid, seen);
            r.look_ended(oid, pid, ClockTime(now));
        }
        for _ in 0..9 {
            now += LOOK.max;
            for oid in r.launch_looks(ClockTime(now), |_| true) {
                prop_assert!(r.claim_look(oid, 99));
                r.looked(oid, 99, has[oid.0 as usize]);
                r.look_ended(oid, 99, ClockTime(now));
            }
        }
        r.reap(*r.last_generation, |_| true, |_| true);
        let waiting = r.place(|_| true);
        let placed = (1..4).filter(|oid| r.database(DatabaseOid(*oid)).is_some()).count();
        prop_assert!(waiting.is_empty() || placed == 2);
        let failed = r.failed_looks();
        for oid in (1..4).map(DatabaseOid) {
            if !failed.contains(&oid) {
                prop_assert_eq!(r.knows(oid), Some(has[oid.0 as usize]), "{}", oid);
            }
        }
    }

    /// Whatever happens, a database never has two workers of one kind, and no worker claims its
    /// slot while the database is held. Once nothing is held any more, every wanted worker is
    /// launched sooner or later.
    #[test]
    fn one_of_each_and_nothing_is_forgotten(
        steps in prop::collection::vec((0u8..8, 1u32..3, prop::bool::ANY), 1..160)
    ) {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        let (mut pid, mut now) = (100, 0);
        let mut launched: Vec<(Kind, DatabaseOid)> = Vec::new();
        let mut running: Vec<(Kind, DatabaseOid, i32)> = Vec::new();
        assert!(r.add(DatabaseOid(1)) && r.add(DatabaseOid(2)));
        for (what, oid, is_keeper) in steps {
            let (pid_of_oid, oid) = (oid as i32, DatabaseOid(oid));
            let kind = if is_keeper { Keeper } else { Relay };
            now += 1;
            match what {
                0 | 1 => launched.extend(r.launch(ClockTime(now + RESTART.max), |_| true)),
                2 | 3 => if let Some(at) = launched.iter().position(|l| *l == (kind, oid)) {
                    launched.remove(at);
                    pid += 1;
                    match r.claim(kind, oid, process(pid, 1), ClockTime(now), WallTime(0)) {
                        Ok(()) => {
                            prop_assert!(!r.is_held(oid));
                            prop_assert!(running.iter().all(|(k, o, _)| (*k, *o) != (kind, oid)));
                            match kind {
                                Keeper => { r.extension_looked_up(oid, pid, true, ClockTime(now)); }
                                Relay => r.relay_connected(oid, pid),
                            }
                            running.push((kind, oid, pid));
                        }
                        Err(_) => r.launch_failed(kind, oid, ClockTime(now), "refused"),
                    }
                },
                4 => if let Some(at) = running.iter().position(|(k, o, _)| (*k, *o) == (kind, oid)) {
                    let (_, _, pid) = running.remove(at);
                    r.exited(kind, oid, pid, ClockTime(now));
                },
                5 => { r.hold(oid, process(pid_of_oid, 9)); }
                6 => r.release(pid_of_oid),
                _ => { r.extension_changed(oid, Some(true), ClockTime(now)); }
            }
        }
        [1, 2].into_iter().for_each(|pid| r.release(pid));
        for (kind, oid) in launched {
            r.launch_failed(kind, oid, ClockTime(now), "lost");
        }
        r.launch(ClockTime(now + RESTART.max), |_| true);
        for d in r.databases.iter() {
            for kind in Kind::ALL {
                let worker = d.worker(kind);
                let up = worker.state == STARTING || (worker.state == RUNNING && worker.process.pid != 0);
                prop_assert!(up || (kind == Relay && d.known == 0), "{d:?}");
            }
        }
    }
}
