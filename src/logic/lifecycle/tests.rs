use super::Kind::{Keeper, Relay};
use super::*;
use proptest::prelude::*;

struct Memory(Vec<Database>, Vec<Hold>, u64);

impl Memory {
    fn new() -> Self {
        Self(vec![Database::default(); 2], vec![Hold::default(); 2], 0)
    }
    fn registry(&mut self) -> Registry<'_> {
        Registry { databases: &mut self.0, holds: &mut self.1, births: &mut self.2 }
    }
}

/// The keepers that are launched.
fn keepers(r: &mut Registry<'_>, now: i64, alive: impl Fn(u32) -> bool) -> Vec<u32> {
    let launched = r.launch(now, alive).into_iter();
    launched.filter(|(kind, _)| *kind == Keeper).map(|(_, oid)| oid).collect()
}

fn keeper(r: &Registry<'_>, oid: u32) -> Worker {
    *r.database(oid).unwrap().worker(Keeper)
}

fn oids(freed: &[Freed]) -> Vec<u32> {
    freed.iter().map(|f| f.oid).collect()
}

#[test]
fn a_keeper_comes_up_runs_and_is_restarted() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert!(r.add(5) && r.add(5));
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
    assert_eq!(keepers(&mut r, 0, |_| true), [0u32; 0], "it counts as starting");
    assert_eq!(r.claim(Keeper, 5, 100, 7, 0), Ok(()));
    assert_eq!(r.claim(Keeper, 5, 101, 8, 0), Err(Refused::Second));
    r.found(5, 100, true, 0);
    assert_eq!(keeper(&r, 5).state, RUNNING);
    r.exited(Keeper, 5, 101, 1);
    assert_eq!(keeper(&r, 5).pid, 100, "not that process's slot");
    r.exited(Keeper, 5, 100, 1);
    assert_eq!(keepers(&mut r, 1, |_| true), [5], "the first restart comes at once");
    r.launch_failed(Keeper, 5, 1, "no slot");
    assert_eq!(keepers(&mut r, 1, |_| true), [0u32; 0]);
    assert_eq!(r.next_launch(), Some(1 + RESTART.delay(1)));
    assert_eq!(keepers(&mut r, 1 + RESTART.delay(1), |_| true), [5]);
    assert_eq!(keeper(&r, 5).last_error.as_str(), "no slot");
    assert_eq!(r.claim(Keeper, 5, 102, 7, 2), Ok(()));
    r.exited(Keeper, 5, 102, 2 + HEALTHY);
    assert_eq!(keepers(&mut r, 2 + HEALTHY, |_| true), [5], "after a healthy run, at once again");
}

#[test]
fn a_database_without_the_extension_frees_its_slot() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert!(r.add(5) && r.add(6) && !r.add(7));
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, 5, 100, 1, 0).unwrap();
    r.found(5, 100, false, 3);
    assert!(r.reap(|_| true).0.is_empty(), "its keeper has not gone yet");
    assert!(r.forgettable(|_| true).is_empty());
    r.exited(Keeper, 5, 100, 0);
    assert!(r.forgettable(|_| true).is_empty(), "it never had any: whoever joins may be creating it");
    assert_eq!(oids(&r.reap(|_| true).0), [5]);
    assert!(r.add(7));
    assert_eq!(r.claim(Keeper, 5, 103, 1, 0), Err(Refused::Unwanted));
}

#[test]
fn create_extension_while_the_probe_is_leaving_starts_another() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(5);
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, 5, 100, 1, 0).unwrap();
    r.found(5, 100, false, 3);
    assert_eq!(r.changed(5), (Some(1), true));
    r.exited(Keeper, 5, 100, 0);
    assert!(r.reap(|_| true).0.is_empty());
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
}

#[test]
fn a_dropped_extension_is_looked_for_again() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(5);
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, 5, 100, 1, 0).unwrap();
    r.found(5, 100, true, 0);
    assert_eq!(r.changed(5), (Some(1), true));
    let before = r.orders(Keeper, 5);
    assert!(before.recheck && !r.orders(Keeper, 5).recheck && !before.leave);
    assert_eq!(r.kick(5), Some(1));
    assert_ne!(r.orders(Keeper, 5).kicks, before.kicks, "not to be slept over");
    r.found(5, 100, false, 7);
    r.exited(Keeper, 5, 100, 8);
    assert_eq!(r.forgettable(|_| true), [(5, 7)]);
    assert_eq!(r.kick(5), None);
}

#[test]
fn a_hold_keeps_keepers_off_and_brings_them_back() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(5);
    assert!(r.hold(5, 40, 9));
    assert_eq!(keepers(&mut r, 0, |_| true), [0u32; 0]);
    r.release(41);
    assert!(r.is_held(5));
    r.release(40);
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
    assert!(r.hold(5, 40, 9));
    assert_eq!(r.claim(Keeper, 5, 100, 1, 0), Err(Refused::Held), "held between launch and claim");
    r.launch_failed(Keeper, 5, 0, "it had to go");
    r.release(40);
    assert_eq!(keepers(&mut r, 0, |_| true), [5]);
    r.claim(Keeper, 5, 101, 1, 0).unwrap();
    assert!(r.hold(5, 40, 9) && r.hold(6, 40, 9) && !r.hold(7, 40, 9));
    assert_eq!(r.exited(Keeper, 5, 101, 0), [9], "its holder is woken");
    assert_eq!((keeper(&r, 5).state, keeper(&r, 5).failures), (UNKNOWN, 0), "no failure of its own");
}

#[test]
fn a_new_coordinator_takes_over() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    assert!(r.add(5) && r.add(6));
    keepers(&mut r, 0, |_| true);
    r.claim(Keeper, 5, 100, 1, 0).unwrap();
    r.adopt();
    assert_eq!(keepers(&mut r, 0, |_| true), [6]);
    r.found(5, 100, true, 0);
    assert_eq!(r.reap(|oid| oid != 5), (vec![], vec![1]), "its keeper has to go first, and is told");
    assert!(r.orders(Keeper, 5).leave);
    r.exited(Keeper, 5, 100, 0);
    assert_eq!(r.forgettable(|oid| oid != 5), [(5, i64::MAX)]);
    assert_eq!(keepers(&mut r, HEALTHY, |oid| oid != 5), [0u32; 0], "nor does another one come");
    assert_eq!(r.reap(|oid| oid != 5), (vec![Freed { oid: 5, slot: 0, birth: 1 }], vec![]));
    assert_eq!(r.reap(|oid| oid != 6), (vec![], vec![]));
    assert_eq!(r.claim(Keeper, 6, 101, 1, 0), Err(Refused::Unwanted), "it was on its way");
    assert_eq!(oids(&r.reap(|oid| oid != 6).0), [6]);
}

#[test]
fn a_few_probes_at_a_time() {
    let mut memory = Memory(vec![Database::default(); 5], vec![Hold::default(); 2], 0);
    let mut r = memory.registry();
    assert!((1..=5).all(|oid| r.add(oid)));
    assert_eq!(keepers(&mut r, 0, |_| true), [1, 2]);
    assert_eq!(keepers(&mut r, 0, |_| true), [0u32; 0]);
    r.claim(Keeper, 1, 100, 1, 0).unwrap();
    r.found(1, 100, true, 0);
    assert_eq!(keepers(&mut r, 0, |_| true), [3], "one of them is known now");
    assert!(!r.is_full());
    r.exited(Keeper, 1, 100, 0);
    assert_eq!(keepers(&mut r, 0, |_| true), [1], "what is known needs not wait for probes");
}

#[test]
fn a_relay_runs_where_a_keeper_found_the_extension() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(5);
    assert_eq!(r.launch(0, |_| true), [(Keeper, 5)]);
    assert_eq!(r.claim(Relay, 5, 99, 3, 0), Err(Refused::Unwanted));
    r.claim(Keeper, 5, 100, 1, 0).unwrap();
    assert_eq!(r.found(5, 100, true, 0), None);
    assert_eq!(r.launch(0, |_| true), [(Relay, 5)]);
    r.claim(Relay, 5, 101, 2, 0).unwrap();
    r.running(Relay, 5, 101);
    assert_eq!(r.processes(5), [(100, 1), (101, 2)]);

    // Either one's end is its own affair.
    r.exited(Relay, 5, 101, 1);
    assert_eq!((keeper(&r, 5).state, keeper(&r, 5).restarts), (RUNNING, 0));
    assert_eq!(r.next_launch(), Some(1 + RESTART.delay(0)));
    assert_eq!(r.launch(1 + RESTART.delay(0), |_| true), [(Relay, 5)]);
    r.launch_failed(Relay, 5, 1, "no slot");
    assert_eq!(r.database(5).unwrap().worker(Relay).last_error.as_str(), "no slot");
    assert_eq!(r.launch(HEALTHY, |_| true), [(Relay, 5)]);
    r.claim(Relay, 5, 102, 2, 1).unwrap();

    // The extension is dropped: the relay goes first or last, and then the slot is free.
    let kicks = r.orders(Relay, 5).kicks;
    assert_eq!(r.found(5, 100, false, 7), Some(2));
    let orders = r.orders(Relay, 5);
    assert!(orders.leave && orders.kicks != kicks);
    r.exited(Keeper, 5, 100, 8);
    assert!(r.reap(|_| true).0.is_empty() && r.forgettable(|_| true).is_empty());
    r.exited(Relay, 5, 102, 8);
    assert_eq!(r.launch(HEALTHY * 9, |_| true), []);
    assert_eq!(r.forgettable(|_| true), [(5, 7)]);
    assert_eq!(oids(&r.reap(|_| true).0), [5]);
    assert!(r.add(5));
    assert_eq!(r.slot(5), Some((0, 2)), "another life of the slot");
}

#[test]
fn a_hold_sends_both_away() {
    let mut memory = Memory::new();
    let mut r = memory.registry();
    r.add(5);
    r.launch(0, |_| true);
    r.claim(Keeper, 5, 100, 1, 0).unwrap();
    r.found(5, 100, true, 0);
    r.launch(0, |_| true);
    r.claim(Relay, 5, 101, 2, 0).unwrap();
    assert!(r.hold(5, 40, 9));
    assert!(r.orders(Keeper, 5).leave && r.orders(Relay, 5).leave);
    assert_eq!(r.exited(Relay, 5, 101, 0), [9]);
    assert_eq!(r.exited(Keeper, 5, 100, 0), [9]);
    assert_eq!(r.launch(0, |_| true), []);
    r.release(40);
    assert_eq!(r.launch(0, |_| true), [(Keeper, 5), (Relay, 5)]);
}

proptest! {
    /// Whatever happens: never two workers of a kind in one database, none claims while it is held,
    /// and once nothing is held any more everything wanted is launched sooner or later.
    #[test]
    fn one_of_each_and_nothing_is_forgotten(
        steps in prop::collection::vec((0u8..8, 1u32..3, prop::bool::ANY), 1..160)
    ) {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        let (mut pid, mut now) = (100, 0);
        let mut launched: Vec<(Kind, u32)> = Vec::new();
        let mut running: Vec<(Kind, u32, i32)> = Vec::new();
        assert!(r.add(1) && r.add(2));
        for (what, oid, is_keeper) in steps {
            let kind = if is_keeper { Keeper } else { Relay };
            now += 1;
            match what {
                0 | 1 => launched.extend(r.launch(now + RESTART.most, |_| true)),
                2 | 3 => if let Some(at) = launched.iter().position(|l| *l == (kind, oid)) {
                    launched.remove(at);
                    pid += 1;
                    match r.claim(kind, oid, pid, 1, now) {
                        Ok(()) => {
                            prop_assert!(!r.is_held(oid));
                            prop_assert!(running.iter().all(|(k, o, _)| (*k, *o) != (kind, oid)));
                            match kind {
                                Keeper => { r.found(oid, pid, true, now); }
                                Relay => r.running(kind, oid, pid),
                            }
                            running.push((kind, oid, pid));
                        }
                        Err(_) => r.launch_failed(kind, oid, now, "refused"),
                    }
                },
                4 => if let Some(at) = running.iter().position(|(k, o, _)| (*k, *o) == (kind, oid)) {
                    let (_, _, pid) = running.remove(at);
                    r.exited(kind, oid, pid, now);
                },
                5 => { r.hold(oid, oid as i32, 9); }
                6 => r.release(oid as i32),
                _ => { r.changed(oid); }
            }
        }
        [1, 2].into_iter().for_each(|pid| r.release(pid));
        for (kind, oid) in launched {
            r.launch_failed(kind, oid, now, "lost");
        }
        r.launch(now + RESTART.most, |_| true);
        for d in r.databases.iter() {
            for kind in Kind::ALL {
                let worker = d.worker(kind);
                let up = worker.state == STARTING || (worker.state == RUNNING && worker.pid != 0);
                prop_assert!(up || (kind == Relay && d.known == 0), "{d:?}");
            }
        }
    }
}
