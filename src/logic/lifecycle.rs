//! The life of a database's keeper, as the coordinator keeps it in shared memory.
//!
//! ```text
//!            found                    launched              connected, extension there
//!   (none) ────────▶ Unknown ──────────────────▶ Starting ────────────────────────────▶ Running
//!     ▲                 ▲  ▲                        │  │                                   │
//!     │                 │  └──── hold released ─────┤  │ no extension here                 │ extension
//!     │                 │                           │  ▼                                   │ dropped
//!     │                 │   delay over              │ Absent ◀─────────────────────────────┤
//!     │                 └──────────────── Backoff ◀─┴──── ended, for whatever reason ──────┘
//!     └── Absent is taken out once its keeper has gone; so is every database that was dropped
//! ```
//!
//! A *hold* keeps a database without workers while a command needs it alone: DROP, RENAME, SET
//! TABLESPACE, or as the template of CREATE. It is set before the keeper is asked to go, and a keeper
//! looks for holds in the same critical section in which it claims its slot, so that either the
//! holder sees the keeper or the keeper sees the hold. A hold ends with its holder's transaction,
//! whichever way that ends (`shmem::at_end`). A database that takes no workers any more, because it
//! became a template, has its keeper told to leave; that is no failure either.

use super::backoff::{HEALTHY, RESTART};
use super::text::Text;

pub const UNKNOWN: u32 = 0;
pub const STARTING: u32 = 1;
pub const RUNNING: u32 = 2;
pub const ABSENT: u32 = 3;
pub const BACKOFF: u32 = 4;

/// How a state shows in the view oban_workers.
pub fn state_name(state: u32) -> &'static str {
    match state {
        UNKNOWN => "waiting",
        STARTING => "starting",
        RUNNING => "running",
        ABSENT => "stopping",
        _ => "backoff",
    }
}

/// One database that has, or may have, the extension. `oid` 0 is a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Database {
    pub oid: u32,
    pub state: u32,
    /// The keeper's, from its claim until it has left the server's list of processes; else 0.
    pub pid: i32,
    pub procno: i32,
    pub started_at: i64,
    pub restarts: u32,
    /// In a row.
    pub failures: u32,
    /// When a keeper in Backoff is due.
    pub retry_at: i64,
    /// 1: CREATE or DROP EXTENSION ended here; the keeper shall look whether it is still wanted.
    pub recheck: u32,
    /// 1: the database takes no workers any more (it is a template now); the keeper shall go.
    pub leave: u32,
    /// 1: a keeper has found the extension here.
    pub known: u32,
    /// Counts the reasons to look again. A latch is not enough: a keeper that waits for a lock in the
    /// middle of its work resets its latch there.
    pub kicks: u32,
    /// When the keeper that found no extension began to look.
    pub absent_since: i64,
    pub last_error: Text<255>,
}

/// A database that shall have no workers, and the backend that wants it so. `database` 0 is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    pub database: u32,
    pub pid: i32,
    /// To wake when the keeper has gone.
    pub procno: i32,
}

/// The two tables of shared memory. Whoever has this holds their lock.
pub struct Registry<'a> {
    pub databases: &'a mut [Database],
    pub holds: &'a mut [Hold],
}

/// What a keeper reads before each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Somebody needs the database alone, or it takes no workers any more.
    pub leave: bool,
    /// Look whether the extension is there.
    pub recheck: bool,
    /// Compare with a later reading: another number means to look again before sleeping.
    pub kicks: u32,
}

/// How many keepers may be on their way into databases of which nobody knows yet whether they have the
/// extension. A server with a thousand databases starts with a thousand of these, and worker slots are
/// for those that have it.
const PROBES: usize = 2;

/// Why a keeper that has just started must go again, quietly.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The database was dropped meanwhile, or takes no workers any more.
    Unwanted,
    Held,
    /// The slot has another keeper.
    Second,
}

impl Registry<'_> {
    /// Takes a slot for a database that may have the extension; false when none is free.
    pub fn add(&mut self, oid: u32) -> bool {
        if self.find(oid).is_some() {
            return true;
        }
        match self.databases.iter_mut().find(|d| d.oid == 0) {
            Some(slot) => {
                *slot = Database { oid, ..Database::default() };
                true
            }
            None => false,
        }
    }

    /// The databases whose keeper shall be launched at `now`, of those that are `alive`. They count as
    /// Starting from here on.
    pub fn launch(&mut self, now: i64, alive: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut probes = self.probes();
        let holds = &*self.holds;
        self.databases
            .iter_mut()
            .filter(|d| d.oid != 0 && d.pid == 0 && alive(d.oid))
            .filter(|d| !holds.iter().any(|h| h.database == d.oid))
            .filter(|d| d.state == UNKNOWN || (d.state == BACKOFF && d.retry_at <= now))
            .filter(|d| {
                probes += usize::from(d.known == 0);
                d.known != 0 || probes <= PROBES
            })
            .map(|d| {
                (d.state, d.leave) = (STARTING, 0);
                d.oid
            })
            .collect()
    }

    /// Keepers on their way into databases of which nobody knows whether they have the extension.
    fn probes(&self) -> usize {
        self.databases.iter().filter(|d| d.oid != 0 && d.state == STARTING && d.known == 0).count()
    }

    /// Whether every slot is taken by a database that is known to have the extension.
    pub fn is_full(&self) -> bool {
        self.databases.iter().all(|d| d.oid != 0 && d.known != 0)
    }

    /// When the next keeper in Backoff is due; `None` without one.
    pub fn next_launch(&self) -> Option<i64> {
        // What waits for the place of a probe is launched when one ends, not by the clock.
        let probes = self.probes();
        let waiting = self.databases.iter().filter(|d| d.oid != 0 && d.state == BACKOFF && d.pid == 0);
        waiting
            .filter(|d| !self.is_held(d.oid) && (d.known != 0 || probes < PROBES))
            .map(|d| d.retry_at)
            .min()
    }

    /// A keeper that was launched did not come up: no worker slot, no fork, or an early death.
    pub fn launch_failed(&mut self, oid: u32, now: i64, why: &str) {
        if let Some(d) = self.find(oid).filter(|d| d.state == STARTING && d.pid == 0) {
            back_off(d, now);
            self.note_error(oid, why);
        }
    }

    /// A keeper's first act, before it connects: its slot, if it may have it.
    pub fn claim(&mut self, oid: u32, pid: i32, procno: i32, now: i64) -> Result<(), Refused> {
        let held = self.is_held(oid);
        let d = self.find(oid).ok_or(Refused::Unwanted)?;
        if held || d.leave != 0 {
            // To be launched anew when the hold ends; that it had to go is no failure of its.
            if d.pid == 0 {
                d.state = UNKNOWN;
            }
            return Err(if held { Refused::Held } else { Refused::Unwanted });
        }
        if d.pid != 0 {
            return Err(Refused::Second);
        }
        (d.pid, d.procno, d.state, d.started_at) = (pid, procno, STARTING, now);
        Ok(())
    }

    /// The keeper began to look at `since` and has found the extension (or not). The coordinator has to
    /// be woken: the place of a probe may be free.
    pub fn found(&mut self, oid: u32, pid: i32, extension: bool, since: i64) {
        if let Some(d) = self.find(oid).filter(|d| d.pid == pid) {
            if extension {
                (d.state, d.known) = (RUNNING, 1);
            } else {
                (d.state, d.absent_since) = (ABSENT, since);
            }
        }
    }

    /// The keeper's last act: it has left the list of processes. Returns the holders to wake.
    pub fn exited(&mut self, oid: u32, pid: i32, now: i64) -> Vec<i32> {
        let holders: Vec<i32> =
            self.holds.iter().filter(|h| h.database == oid && oid != 0).map(|h| h.procno).collect();
        let held = !holders.is_empty();
        let Some(d) = self.find(oid).filter(|d| d.pid == pid) else { return holders };
        (d.pid, d.procno) = (0, 0);
        match d.state {
            ABSENT if d.recheck == 0 => {}
            _ if held || d.recheck != 0 || d.leave != 0 => {
                (d.state, d.recheck, d.leave) = (UNKNOWN, 0, 0);
            }
            _ => {
                if now - d.started_at >= HEALTHY {
                    d.failures = 0;
                }
                d.restarts += 1;
                d.last_error = Text::truncated("the keeper ended: the server's log says why");
                back_off(d, now);
            }
        }
        holders
    }

    /// CREATE or DROP EXTENSION ended in this database: its keeper looks again, or one is started.
    /// The keeper to wake, if any; false when the database has no slot and none is free.
    pub fn changed(&mut self, oid: u32) -> (Option<i32>, bool) {
        if !self.add(oid) {
            return (None, false);
        }
        let Some(d) = self.find(oid) else { return (None, false) };
        if d.pid != 0 {
            d.recheck = 1;
            d.kicks = d.kicks.wrapping_add(1);
            return (Some(d.procno), true);
        }
        if d.state != STARTING {
            d.state = UNKNOWN;
        }
        (None, true)
    }

    /// Something changed that the keeper has to plan for: the keeper to wake, if there is one.
    pub fn kick(&mut self, oid: u32) -> Option<i32> {
        let d = self.find(oid).filter(|d| d.pid != 0)?;
        d.kicks = d.kicks.wrapping_add(1);
        Some(d.procno)
    }

    /// Notes what went wrong, for the view oban_workers.
    pub fn note_error(&mut self, oid: u32, what: &str) {
        if let Some(d) = self.find(oid) {
            d.last_error = Text::truncated(what);
        }
    }

    /// What the keeper has to know before a pass; reading it takes the wish to look back.
    pub fn orders(&mut self, oid: u32) -> Orders {
        let held = self.is_held(oid);
        match self.find(oid) {
            Some(d) => {
                let recheck = std::mem::take(&mut d.recheck) != 0;
                Orders { leave: held || d.leave != 0, recheck, kicks: d.kicks }
            }
            None => Orders { leave: true, recheck: false, kicks: 0 },
        }
    }

    /// Whether the keeper waits for its next start after a failure.
    pub fn is_backing_off(&mut self, oid: u32) -> bool {
        self.find(oid).is_some_and(|d| d.pid == 0 && d.state == BACKOFF)
    }

    pub fn kicks(&mut self, oid: u32) -> u32 {
        self.find(oid).map_or(0, |d| d.kicks)
    }

    /// The databases for which nothing needs to be kept any more, each with the time before which it
    /// was kept in vain: those that are not `alive`, and those that had the extension and lost it.
    pub fn forgettable(&self, alive: impl Fn(u32) -> bool) -> Vec<(u32, i64)> {
        let gone = self.databases.iter().filter(|d| d.oid != 0 && d.pid == 0 && d.state != STARTING);
        gone.filter_map(|d| match d.state {
            _ if !alive(d.oid) => Some((d.oid, i64::MAX)),
            ABSENT if d.known != 0 => Some((d.oid, d.absent_since)),
            _ => None,
        })
        .collect()
    }

    /// Frees the slots that nobody needs: keepers that found no extension, databases that are not
    /// `alive` any more. Returns their oids. Keepers that still run in the latter, or are on their way
    /// there, are told to leave; the second list are those to be woken.
    pub fn reap(&mut self, alive: impl Fn(u32) -> bool) -> (Vec<u32>, Vec<i32>) {
        let (mut gone, mut leaving) = (Vec::new(), Vec::new());
        for d in self.databases.iter_mut().filter(|d| d.oid != 0) {
            let absent = d.state == ABSENT && d.recheck == 0;
            if d.pid != 0 || d.state == STARTING {
                if !alive(d.oid) {
                    (d.leave, d.kicks) = (1, d.kicks.wrapping_add(1));
                    leaving.extend((d.pid != 0).then_some(d.procno));
                }
            } else if absent || !alive(d.oid) {
                gone.push(d.oid);
                *d = Database::default();
            }
        }
        (gone, leaving)
    }

    /// After a coordinator's restart: what the one before had launched and nobody claimed is launched
    /// again. (Should both keepers come up, the second is refused.)
    pub fn adopt(&mut self) {
        for d in self.databases.iter_mut().filter(|d| d.oid != 0 && d.pid == 0 && d.state == STARTING) {
            d.state = UNKNOWN;
        }
    }

    /// Keeps workers off a database; false when the table of holds is full.
    pub fn hold(&mut self, database: u32, pid: i32, procno: i32) -> bool {
        match self.holds.iter_mut().find(|h| h.database == 0) {
            Some(free) => {
                *free = Hold { database, pid, procno };
                self.kick(database);
                true
            }
            None => false,
        }
    }

    /// Ends all holds of a backend.
    pub fn release(&mut self, pid: i32) {
        for hold in self.holds.iter_mut().filter(|h| h.pid == pid) {
            *hold = Hold::default();
        }
    }

    pub fn is_held(&self, database: u32) -> bool {
        database != 0 && self.holds.iter().any(|h| h.database == database)
    }

    pub fn find(&mut self, oid: u32) -> Option<&mut Database> {
        self.databases.iter_mut().find(|d| oid != 0 && d.oid == oid)
    }
}

fn back_off(d: &mut Database, now: i64) {
    d.state = BACKOFF;
    d.retry_at = now + RESTART.delay(d.failures);
    d.failures = d.failures.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Memory(Vec<Database>, Vec<Hold>);

    impl Memory {
        fn new() -> Self {
            Self(vec![Database::default(); 2], vec![Hold::default(); 2])
        }
        fn registry(&mut self) -> Registry<'_> {
            Registry { databases: &mut self.0, holds: &mut self.1 }
        }
    }

    #[test]
    fn a_keeper_comes_up_runs_and_is_restarted() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        assert!(r.add(5) && r.add(5));
        assert_eq!(r.launch(0, |_| true), [5]);
        assert_eq!(r.launch(0, |_| true), [0u32; 0], "it counts as starting");
        assert_eq!(r.claim(5, 100, 7, 0), Ok(()));
        assert_eq!(r.claim(5, 101, 8, 0), Err(Refused::Second));
        r.found(5, 100, true, 0);
        assert_eq!(r.find(5).unwrap().state, RUNNING);
        r.exited(5, 101, 1);
        assert_eq!(r.find(5).unwrap().pid, 100, "not that process's slot");
        r.exited(5, 100, 1);
        assert_eq!(r.launch(1, |_| true), [5], "the first restart comes at once");
        r.launch_failed(5, 1, "no slot");
        assert_eq!(r.launch(1, |_| true), [0u32; 0]);
        assert_eq!(r.next_launch(), Some(1 + RESTART.delay(1)));
        assert_eq!(r.launch(1 + RESTART.delay(1), |_| true), [5]);
        assert_eq!(r.find(5).unwrap().last_error.as_str(), "no slot");
        assert_eq!(r.claim(5, 102, 7, 2), Ok(()));
        r.exited(5, 102, 2 + HEALTHY);
        assert_eq!(r.launch(2 + HEALTHY, |_| true), [5], "after a healthy run, at once again");
    }

    #[test]
    fn a_database_without_the_extension_frees_its_slot() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        assert!(r.add(5) && r.add(6) && !r.add(7));
        r.launch(0, |_| true);
        r.claim(5, 100, 1, 0).unwrap();
        r.found(5, 100, false, 3);
        assert!(r.reap(|_| true).0.is_empty(), "its keeper has not gone yet");
        assert!(r.forgettable(|_| true).is_empty());
        r.exited(5, 100, 0);
        assert!(r.forgettable(|_| true).is_empty(), "it never had any: whoever joins may be creating it");
        assert_eq!(r.reap(|_| true).0, [5]);
        assert!(r.add(7));
        assert_eq!(r.claim(5, 103, 1, 0), Err(Refused::Unwanted));
    }

    #[test]
    fn create_extension_while_the_probe_is_leaving_starts_another() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        r.add(5);
        r.launch(0, |_| true);
        r.claim(5, 100, 1, 0).unwrap();
        r.found(5, 100, false, 3);
        assert_eq!(r.changed(5), (Some(1), true));
        r.exited(5, 100, 0);
        assert!(r.reap(|_| true).0.is_empty());
        assert_eq!(r.launch(0, |_| true), [5]);
    }

    #[test]
    fn a_dropped_extension_is_looked_for_again() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        r.add(5);
        r.launch(0, |_| true);
        r.claim(5, 100, 1, 0).unwrap();
        r.found(5, 100, true, 0);
        assert_eq!(r.changed(5), (Some(1), true));
        let before = r.orders(5);
        assert!(before.recheck && !r.orders(5).recheck && !before.leave);
        assert_eq!(r.kick(5), Some(1));
        assert_ne!(r.orders(5).kicks, before.kicks, "not to be slept over");
        r.found(5, 100, false, 7);
        r.exited(5, 100, 8);
        assert_eq!(r.forgettable(|_| true), [(5, 7)]);
        assert_eq!(r.kick(5), None);
    }

    #[test]
    fn a_hold_keeps_keepers_off_and_brings_them_back() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        r.add(5);
        assert!(r.hold(5, 40, 9));
        assert_eq!(r.launch(0, |_| true), [0u32; 0]);
        r.release(41);
        assert!(r.is_held(5));
        r.release(40);
        assert_eq!(r.launch(0, |_| true), [5]);
        assert!(r.hold(5, 40, 9));
        assert_eq!(r.claim(5, 100, 1, 0), Err(Refused::Held), "held between launch and claim");
        r.launch_failed(5, 0, "it had to go");
        r.release(40);
        assert_eq!(r.launch(0, |_| true), [5]);
        r.claim(5, 101, 1, 0).unwrap();
        assert!(r.hold(5, 40, 9) && r.hold(6, 40, 9) && !r.hold(7, 40, 9));
        assert_eq!(r.exited(5, 101, 0), [9], "its holder is woken");
        assert_eq!(r.find(5).map(|d| (d.state, d.failures)), Some((UNKNOWN, 0)), "no failure of its own");
    }

    #[test]
    fn a_new_coordinator_takes_over() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        assert!(r.add(5) && r.add(6));
        r.launch(0, |_| true);
        r.claim(5, 100, 1, 0).unwrap();
        r.adopt();
        assert_eq!(r.launch(0, |_| true), [6]);
        r.found(5, 100, true, 0);
        assert_eq!(r.reap(|oid| oid != 5), (vec![], vec![1]), "its keeper has to go first, and is told");
        assert!(r.orders(5).leave);
        r.exited(5, 100, 0);
        assert_eq!(r.forgettable(|oid| oid != 5), [(5, i64::MAX)]);
        assert_eq!(r.launch(HEALTHY, |oid| oid != 5), [0u32; 0], "nor does another one come");
        assert_eq!(r.reap(|oid| oid != 5), (vec![5], vec![]));
        assert_eq!(r.reap(|oid| oid != 6), (vec![], vec![]));
        assert_eq!(r.claim(6, 101, 1, 0), Err(Refused::Unwanted), "it was on its way");
        assert_eq!(r.reap(|oid| oid != 6), (vec![6], vec![]));
    }

    #[test]
    fn a_few_probes_at_a_time() {
        let mut memory = Memory(vec![Database::default(); 5], vec![Hold::default(); 2]);
        let mut r = memory.registry();
        assert!((1..=5).all(|oid| r.add(oid)));
        assert_eq!(r.launch(0, |_| true), [1, 2]);
        assert_eq!(r.launch(0, |_| true), [0u32; 0]);
        r.claim(1, 100, 1, 0).unwrap();
        r.found(1, 100, true, 0);
        assert_eq!(r.launch(0, |_| true), [3], "one of them is known now");
        assert!(!r.is_full());
        r.exited(1, 100, 0);
        assert_eq!(r.launch(0, |_| true), [1], "what is known needs not wait for probes");
    }

    proptest! {
        /// Whatever happens: never two keepers of one database, none claims while it is held, and
        /// once nothing is held any more everything wanted is launched sooner or later.
        #[test]
        fn one_keeper_each_and_nothing_is_forgotten(steps in prop::collection::vec((0u8..8, 1u32..3), 1..120)) {
            let mut memory = Memory::new();
            let mut r = memory.registry();
            let (mut pid, mut now) = (100, 0);
            let mut launched: Vec<u32> = Vec::new();
            let mut running: Vec<(u32, i32)> = Vec::new();
            assert!(r.add(1) && r.add(2));
            for (what, oid) in steps {
                now += 1;
                match what {
                    0 | 1 => launched.extend(r.launch(now + RESTART.most, |_| true)),
                    2 | 3 => if let Some(at) = launched.iter().position(|o| *o == oid) {
                        launched.remove(at);
                        pid += 1;
                        match r.claim(oid, pid, 1, now) {
                            Ok(()) => {
                                prop_assert!(!r.is_held(oid));
                                prop_assert!(running.iter().all(|(o, _)| *o != oid));
                                r.found(oid, pid, true, now);
                                running.push((oid, pid));
                            }
                            Err(_) => r.launch_failed(oid, now, "refused"),
                        }
                    },
                    4 => if let Some(at) = running.iter().position(|(o, _)| *o == oid) {
                        let (_, pid) = running.remove(at);
                        r.exited(oid, pid, now);
                    },
                    5 => { r.hold(oid, oid as i32, 9); }
                    6 => r.release(oid as i32),
                    _ => { r.changed(oid); }
                }
            }
            [1, 2].into_iter().for_each(|pid| r.release(pid));
            for oid in launched {
                r.launch_failed(oid, now, "lost");
            }
            r.launch(now + RESTART.most, |_| true);
            for d in r.databases.iter() {
                prop_assert!(d.state == STARTING || (d.state == RUNNING && d.pid != 0), "{d:?}");
            }
        }
    }
}
