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
//! whichever way that ends (the transaction callback in `worker::ddl`).

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

/// Why a keeper that has just started must go again, quietly.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// No slot: the database was dropped meanwhile.
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

    /// The databases whose keeper shall be launched at `now`. They count as Starting from here on.
    pub fn launch(&mut self, now: i64) -> Vec<u32> {
        let holds = &*self.holds;
        self.databases
            .iter_mut()
            .filter(|d| d.oid != 0 && d.pid == 0 && !holds.iter().any(|h| h.database == d.oid))
            .filter(|d| d.state == UNKNOWN || (d.state == BACKOFF && d.retry_at <= now))
            .map(|d| {
                d.state = STARTING;
                d.oid
            })
            .collect()
    }

    /// When the next keeper in Backoff is due; `None` without one.
    pub fn next_launch(&self) -> Option<i64> {
        let waiting = self.databases.iter().filter(|d| d.oid != 0 && d.state == BACKOFF && d.pid == 0);
        waiting.filter(|d| !self.is_held(d.oid)).map(|d| d.retry_at).min()
    }

    /// A keeper that was launched did not come up: no worker slot, no fork, or an early death.
    pub fn launch_failed(&mut self, oid: u32, now: i64, why: &str) {
        if let Some(d) = self.find(oid).filter(|d| d.state == STARTING && d.pid == 0) {
            back_off(d, now);
            d.last_error = Text::truncated(why);
        }
    }

    /// A keeper's first act, before it connects: its slot, if it may have it.
    pub fn claim(&mut self, oid: u32, pid: i32, procno: i32, now: i64) -> Result<(), Refused> {
        let held = self.is_held(oid);
        let d = self.find(oid).ok_or(Refused::Unwanted)?;
        if held {
            // To be launched anew when the hold ends; that it had to go is no failure of its.
            if d.pid == 0 {
                d.state = UNKNOWN;
            }
            return Err(Refused::Held);
        }
        if d.pid != 0 {
            return Err(Refused::Second);
        }
        (d.pid, d.procno, d.state, d.started_at) = (pid, procno, STARTING, now);
        Ok(())
    }

    /// The keeper has found the extension (or not).
    pub fn found(&mut self, oid: u32, pid: i32, extension: bool) {
        if let Some(d) = self.find(oid).filter(|d| d.pid == pid) {
            d.state = if extension { RUNNING } else { ABSENT };
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
            _ if held || d.recheck != 0 => (d.state, d.recheck) = (UNKNOWN, 0),
            _ => {
                if now - d.started_at >= HEALTHY {
                    d.failures = 0;
                }
                d.restarts += 1;
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
            return (Some(d.procno), true);
        }
        if d.state != STARTING {
            d.state = UNKNOWN;
        }
        (None, true)
    }

    /// Whether the keeper shall look for its extension again; asking takes the wish back.
    pub fn take_recheck(&mut self, oid: u32) -> bool {
        self.find(oid).is_some_and(|d| std::mem::take(&mut d.recheck) != 0)
    }

    /// Frees the slots that nobody needs: keepers that found no extension, databases that are not
    /// `alive` any more. Returns their oids.
    pub fn reap(&mut self, alive: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut gone = Vec::new();
        for d in self.databases.iter_mut().filter(|d| d.oid != 0 && d.pid == 0) {
            let absent = d.state == ABSENT && d.recheck == 0;
            if absent || (d.state != STARTING && !alive(d.oid)) {
                gone.push(d.oid);
                *d = Database::default();
            }
        }
        gone
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
        assert_eq!(r.launch(0), [5]);
        assert_eq!(r.launch(0), [0u32; 0], "it counts as starting");
        assert_eq!(r.claim(5, 100, 7, 0), Ok(()));
        assert_eq!(r.claim(5, 101, 8, 0), Err(Refused::Second));
        r.found(5, 100, true);
        assert_eq!(r.find(5).unwrap().state, RUNNING);
        r.exited(5, 101, 1);
        assert_eq!(r.find(5).unwrap().pid, 100, "not that process's slot");
        r.exited(5, 100, 1);
        assert_eq!(r.launch(1), [5], "the first restart comes at once");
        r.launch_failed(5, 1, "no slot");
        assert_eq!(r.launch(1), [0u32; 0]);
        assert_eq!(r.next_launch(), Some(1 + RESTART.delay(1)));
        assert_eq!(r.launch(1 + RESTART.delay(1)), [5]);
        assert_eq!(r.find(5).unwrap().last_error.as_str(), "no slot");
        assert_eq!(r.claim(5, 102, 7, 2), Ok(()));
        r.exited(5, 102, 2 + HEALTHY);
        assert_eq!(r.launch(2 + HEALTHY), [5], "after a healthy run, at once again");
    }

    #[test]
    fn a_database_without_the_extension_frees_its_slot() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        assert!(r.add(5) && r.add(6) && !r.add(7));
        r.launch(0);
        r.claim(5, 100, 1, 0).unwrap();
        r.found(5, 100, false);
        assert!(r.reap(|_| true).is_empty(), "its keeper has not gone yet");
        r.exited(5, 100, 0);
        assert_eq!(r.reap(|_| true), [5]);
        assert!(r.add(7));
        assert_eq!(r.claim(5, 103, 1, 0), Err(Refused::Unwanted));
    }

    #[test]
    fn create_extension_while_the_probe_is_leaving_starts_another() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        r.add(5);
        r.launch(0);
        r.claim(5, 100, 1, 0).unwrap();
        r.found(5, 100, false);
        assert_eq!(r.changed(5), (Some(1), true));
        r.exited(5, 100, 0);
        assert!(r.reap(|_| true).is_empty());
        assert_eq!(r.launch(0), [5]);
    }

    #[test]
    fn a_dropped_extension_is_looked_for_again() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        r.add(5);
        r.launch(0);
        r.claim(5, 100, 1, 0).unwrap();
        r.found(5, 100, true);
        assert_eq!(r.changed(5), (Some(1), true));
        assert!(r.take_recheck(5) && !r.take_recheck(5));
    }

    #[test]
    fn a_hold_keeps_keepers_off_and_brings_them_back() {
        let mut memory = Memory::new();
        let mut r = memory.registry();
        r.add(5);
        assert!(r.hold(5, 40, 9));
        assert_eq!(r.launch(0), [0u32; 0]);
        r.release(41);
        assert!(r.is_held(5));
        r.release(40);
        assert_eq!(r.launch(0), [5]);
        assert!(r.hold(5, 40, 9));
        assert_eq!(r.claim(5, 100, 1, 0), Err(Refused::Held), "held between launch and claim");
        r.launch_failed(5, 0, "it had to go");
        r.release(40);
        assert_eq!(r.launch(0), [5]);
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
        r.launch(0);
        r.claim(5, 100, 1, 0).unwrap();
        r.adopt();
        assert_eq!(r.launch(0), [6]);
        assert_eq!(r.reap(|oid| oid != 5), [0u32; 0], "running: its keeper has to go first");
        r.exited(5, 100, 0);
        assert_eq!(r.reap(|oid| oid != 5), [5]);
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
                    0 | 1 => launched.extend(r.launch(now + RESTART.most)),
                    2 | 3 => if let Some(at) = launched.iter().position(|o| *o == oid) {
                        launched.remove(at);
                        pid += 1;
                        match r.claim(oid, pid, 1, now) {
                            Ok(()) => {
                                prop_assert!(!r.is_held(oid));
                                prop_assert!(running.iter().all(|(o, _)| *o != oid));
                                r.found(oid, pid, true);
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
            r.launch(now + RESTART.most);
            for d in r.databases.iter() {
                prop_assert!(d.state == STARTING || (d.state == RUNNING && d.pid != 0), "{d:?}");
            }
        }
    }
}
