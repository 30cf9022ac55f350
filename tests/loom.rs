//! Wakeups, in every order of the steps. The rules of `logic::ring` run under a lock, with a latch
//! for each waiter. A stager's alarm runs without a lock. loom tries all interleavings, and fails on
//! one with a lost wakeup: a process waits for ever.

#[path = "../src/logic/mod.rs"]
#[allow(dead_code)]
mod logic;

use logic::ids::{RoleOid, SchemaOid, TableOid};
use logic::ring::{
    Audience, Batch, Channel, Charge, Incoming, Quota, Ring, RingEntry, RingHead, RoleUsage, Route, Waiter,
};
use logic::staging::alarm::{Alarm, Word};
use logic::times::{ClockTime, WallTime};
use loom::sync::atomic::{AtomicI64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

struct Memory {
    head: RingHead,
    entries: [RingEntry; 4],
    bytes: [u8; 32],
    roles: [RoleUsage; 2],
    waiters: [Waiter; 2],
}

impl Memory {
    fn ring(&mut self) -> Ring<'_> {
        let Self { head, entries, bytes, roles, waiters } = self;
        Ring { head, entries, bytes, roles, waiters }
    }
}

/// A process's latch. Once set, it stays set until it is reset.
struct Latch {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    fn set(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_one();
    }
    fn reset(&self) {
        *self.set.lock().unwrap() = false;
    }
    fn wait(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
    }
}

/// The server: a ring under its lock, and the latches of two processes, 0 and 1.
struct Server {
    memory: Mutex<Memory>,
    latches: [Latch; 2],
}

const RELAY: i32 = 0;
const READER: i32 = 1;

fn on(channel: &str) -> Channel {
    Channel::new(SchemaOid(1), channel.into())
}

impl Server {
    fn new() -> Arc<Self> {
        let memory = Memory {
            head: RingHead::default(),
            entries: Default::default(),
            bytes: [0; 32],
            roles: Default::default(),
            waiters: Default::default(),
        };
        let latch = || Latch { set: Mutex::new(false), changed: Condvar::new() };
        let server = Self { memory: Mutex::new(memory), latches: [latch(), latch()] };
        assert_eq!(server.memory.lock().unwrap().ring().open(1, 0), Some(true));
        Arc::new(server)
    }

    /// Publishes one message, as `shmem::rings::publish` does.
    fn publish(&self, channel: &str) {
        let (relay, woken, count) = {
            let mut memory = self.memory.lock().unwrap();
            let mut ring = memory.ring();
            let all = Quota { entries: usize::MAX, bytes: usize::MAX };
            let route =
                ring.reserve(&mut [Charge::new(RoleOid::NONE, 1, channel.len() + 1)], all, || ClockTime(0));
            let channel = on(channel);
            ring.append(
                &Incoming {
                    channel: &channel,
                    table: TableOid::NONE,
                    payload: b"!",
                    text: false,
                    wakeup: false,
                    settled: route != Route::Relay,
                    role_slot: 0,
                },
                WallTime(0),
                ClockTime(0),
            );
            let mut keys = [0; 1];
            let count = ring.keys(1, &mut keys).unwrap().len();
            let mut woken = [0; 2];
            let waiters = ring.wake(Audience::Keys(&keys[..count]), &mut woken);
            (ring.wake_relay(), woken, waiters)
        };
        for procno in relay.into_iter().chain(woken.into_iter().take(count)) {
            self.latches[procno as usize].set();
        }
    }

    /// Runs the relay's loop until it has sent `left` messages.
    fn relay(&self, mut left: usize, reset_first: bool) {
        let latch = &self.latches[RELAY as usize];
        while left > 0 {
            if reset_first {
                latch.reset();
            }
            let waits = {
                let mut memory = self.memory.lock().unwrap();
                let mut ring = memory.ring();
                let mut batch = Batch::new(4, 64);
                let (upto, _) = ring.view().unsent(&mut batch);
                left -= batch.len();
                ring.passed_by_relay(upto, ClockTime(0));
                left > 0 && ring.relay_starts_waiting()
            };
            if !reset_first {
                latch.reset();
            }
            if waits {
                latch.wait();
            }
        }
    }

    /// Reads as `oban_wait` does, until `left` messages on channel `a` were read.
    fn read(&self, mut after: i64, mut left: usize) {
        let latch = &self.latches[READER as usize];
        while left > 0 {
            latch.reset();
            let waits = {
                let mut memory = self.memory.lock().unwrap();
                let mut ring = memory.ring();
                let mut batch = Batch::new(4, 64);
                let progress = ring.view().read(after, &[on("a")], &mut batch);
                assert_eq!(progress.missed, Some(0));
                after = progress.position;
                left -= batch.len();
                let waits = batch.len() == 0;
                if waits {
                    ring.start_waiting(READER, &[on("a")]);
                }
                waits
            };
            if waits {
                latch.wait();
            }
        }
        self.memory.lock().unwrap().ring().stop_waiting(READER);
    }
}

fn publishers(server: &Arc<Server>, channels: &[&'static str]) -> Vec<thread::JoinHandle<()>> {
    let spawn = |channel: &&'static str| {
        let (server, channel) = (server.clone(), *channel);
        thread::spawn(move || server.publish(channel))
    };
    channels.iter().map(spawn).collect()
}

#[test]
fn the_relay_sends_everything_and_loses_no_wakeup() {
    loom::model(|| {
        let server = Server::new();
        server.memory.lock().unwrap().ring().attach_relay(RELAY);
        let publishers = publishers(&server, &["a", "b"]);
        server.relay(2, true);
        publishers.into_iter().for_each(|p| p.join().unwrap());
        assert_eq!(server.memory.lock().unwrap().ring().view().backlog(), 0);
    });
}

/// Shows that the model can fail. The latch is reset after the look, so the wakeup of a message in
/// between is lost. (loom aborts the process, so this test runs in a process apart.)
#[test]
fn a_latch_that_is_reset_too_late_is_found_out() {
    let own = std::env::current_exe().unwrap();
    let run = std::process::Command::new(own)
        .args(["--exact", "reset_too_late", "--ignored", "--nocapture"])
        .output();
    let run = run.unwrap();
    assert!(!run.status.success());
    assert!(String::from_utf8_lossy(&run.stderr).contains("deadlock"), "{run:?}");
}

#[test]
#[ignore = "it fails, as it should: see above"]
fn reset_too_late() {
    loom::model(|| {
        let server = Server::new();
        server.memory.lock().unwrap().ring().attach_relay(RELAY);
        let publishers = publishers(&server, &["a"]);
        server.relay(1, false);
        publishers.into_iter().for_each(|p| p.join().unwrap());
    });
}

#[test]
fn a_reader_is_woken_by_its_channel_whatever_else_comes() {
    loom::model(|| {
        let server = Server::new();
        let after = server.memory.lock().unwrap().ring().view().position();
        let publishers = publishers(&server, &["b", "a"]);
        server.read(after, 1);
        publishers.into_iter().for_each(|p| p.join().unwrap());
        let mut memory = server.memory.lock().unwrap();
        assert_eq!(memory.ring().wake(Audience::All, &mut [0; 2]), 0, "nobody is left on the list");
    });
}

#[test]
fn a_relay_that_leaves_loses_nothing() {
    loom::model(|| {
        let server = Server::new();
        server.memory.lock().unwrap().ring().attach_relay(RELAY);
        let start = server.memory.lock().unwrap().ring().view().position();
        let publishers = publishers(&server, &["a", "b"]);
        // The relay dies without a look. The next relay sends what is there and what comes.
        server.memory.lock().unwrap().ring().detach_relay(RELAY);
        server.memory.lock().unwrap().ring().attach_relay(RELAY);
        let sent = {
            let mut memory = server.memory.lock().unwrap();
            let view = memory.ring();
            (view.view().position() - start - view.view().backlog() as i64) as usize
        };
        server.relay(2 - sent, true);
        publishers.into_iter().for_each(|p| p.join().unwrap());
        assert_eq!(server.memory.lock().unwrap().ring().view().backlog(), 0);
    });
}

/// A word of an alarm. loom treats its sequentially consistent operations as weaker ones, but not its
/// fences.
struct Fenced(AtomicI64);

impl Word for Fenced {
    fn load(&self) -> i64 {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst)
    }

    fn store(&self, value: i64) {
        self.0.store(value, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn swap(&self, value: i64) -> i64 {
        let before = self.0.swap(value, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        before
    }

    fn lower(&self, value: i64) {
        self.0.fetch_min(value, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

/// A table of jobs, as the due times of its rows, with the alarm and the latch of its stager.
struct Staged {
    rows: Mutex<Vec<i64>>,
    alarm: Alarm<Fenced>,
    latch: Latch,
}

/// The wall time in these models. Rows up to this time are due.
const NOW: i64 = 10;

impl Staged {
    fn new(rows: &[i64]) -> Arc<Self> {
        let word = || Fenced(AtomicI64::new(0));
        let latch = Latch { set: Mutex::new(false), changed: Condvar::new() };
        Arc::new(Self { rows: Mutex::new(rows.to_vec()), alarm: Alarm::of(word(), word()), latch })
    }

    /// Commits a row, and tells the stager.
    fn commit(&self, due: i64) {
        self.rows.lock().unwrap().push(due);
        if self.alarm.tell(WallTime(due)) {
            self.latch.set();
        }
    }

    /// Runs the stager's loop until it has staged `left` rows.
    fn stage(&self, mut left: usize, reset_first: bool) {
        let mut next = WallTime(i64::MIN);
        while left > 0 {
            if reset_first {
                self.latch.reset();
            }
            let until = self.alarm.sleep_until(next);
            if !reset_first {
                self.latch.reset();
            }
            if until.0 > NOW {
                self.latch.wait();
                continue;
            }
            self.alarm.begin_look();
            let mut rows = self.rows.lock().unwrap();
            left -= rows.iter().filter(|due| **due <= NOW).count();
            rows.retain(|due| *due > NOW);
            next = WallTime(rows.iter().copied().min().unwrap_or(i64::MAX));
        }
    }
}

/// Stages one row of several that are committed meanwhile. Without the bound the orders are too many to
/// try.
fn stage_what_is_committed(reset_first: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let staged = Staged::new(&[20]);
        let commits = [15, 5].map(|due| {
            let staged = staged.clone();
            thread::spawn(move || staged.commit(due))
        });
        staged.stage(1, reset_first);
        commits.into_iter().for_each(|commit| commit.join().unwrap());
    });
}

#[test]
fn a_stager_that_goes_to_sleep_misses_no_earlier_job() {
    stage_what_is_committed(true);
}

/// Shows that the model can fail, as `a_latch_that_is_reset_too_late_is_found_out` does for the relay.
#[test]
fn a_stagers_latch_that_is_reset_too_late_is_found_out() {
    let own = std::env::current_exe().unwrap();
    let run = std::process::Command::new(own)
        .args(["--exact", "stagers_reset_too_late", "--ignored", "--nocapture"])
        .output();
    let run = run.unwrap();
    assert!(!run.status.success());
    assert!(String::from_utf8_lossy(&run.stderr).contains("deadlock"), "{run:?}");
}

#[test]
#[ignore = "it fails, as it should: see above"]
fn stagers_reset_too_late() {
    stage_what_is_committed(false);
}
