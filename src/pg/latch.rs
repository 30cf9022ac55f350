//! Waiting and waking. A process number belongs to a slot for the server's life, and a later
//! process may use the slot. So a wake-up with a stale number wakes a process without a reason, and
//! does no other harm: every wait loop of Postgres copes with that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

use super::clock;
use crate::logic::ids::Process;
use crate::logic::times::ClockTime;

/// Returns this process's number, which `wake` takes.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub fn my_procno() -> i32 {
    // SAFETY: MyProc is set in every process that runs this library's code, because all of them
    // have shared memory.
    unsafe { (*pg_sys::MyProc).pgprocno }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
pub fn my_procno() -> i32 {
    // SAFETY: this is a plain global, which is set before any code of this library runs.
    unsafe { pg_sys::MyProcNumber }
}

/// Returns this process's pid.
pub fn my_pid() -> i32 {
    // SAFETY: this is a plain global.
    unsafe { pg_sys::MyProcPid }
}

/// Returns this process.
pub fn my_process() -> Process {
    Process { pid: my_pid(), procno: my_procno() }
}

/// Sets the latch of a process. The call is safe after commit, because it can't fail. A negative
/// number wakes no process.
pub fn wake(procno: i32) {
    if procno >= 0 {
        // SAFETY: `procno` was returned by `my_procno` in a process of this server.
        unsafe { pg_sys::ProcSendSignal(procno) }
    }
}

/// Sets the latch of a process, if there is one to wake. The call is safe after commit.
pub fn wake_if(procno: Option<i32>) {
    if let Some(procno) = procno {
        wake(procno);
    }
}

/// What pg_stat_activity shows as the wait event of a process that waits here. Before Postgres 17
/// the event is Extension.
#[derive(Clone, Copy)]
pub enum Event {
    /// A session waits in oban_wait.
    Wait,
    /// A session waits for a worker: for an election, or for the worker to leave a database.
    Worker,
    Coordinator,
    Keeper,
    Relay,
    Stager,
}

/// The numbers that Postgres gave to the events. A number is 0 without preload, and before Postgres
/// 17.
static NUMBERS: [AtomicU32; 6] = [const { AtomicU32::new(0) }; 6];

impl Event {
    fn number(self) -> u32 {
        match NUMBERS[self as usize].load(Ordering::Relaxed) {
            0 => pg_sys::PG_WAIT_EXTENSION,
            number => number,
        }
    }
}

/// Does nothing: Postgres before 17 has no wait events of extensions.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub fn name_events() {}

#[cfg(any(feature = "pg17", feature = "pg18"))]
pub fn name_events() {
    for (event, name) in [
        (Event::Wait, c"ObanrsWait"),
        (Event::Worker, c"ObanrsWorker"),
        (Event::Coordinator, c"ObanrsCoordinator"),
        (Event::Keeper, c"ObanrsKeeper"),
        (Event::Relay, c"ObanrsRelay"),
        (Event::Stager, c"ObanrsStager"),
    ] {
        // SAFETY: the name is copied into shared memory.
        let number = unsafe { pg_sys::WaitEventExtensionNew(name.as_ptr()) };
        NUMBERS[event as usize].store(number, Ordering::Relaxed);
    }
}

/// The number of the event that `wait` shows in this process, if the process is a worker. 0: the
/// process is not a worker.
static OWN: AtomicU32 = AtomicU32::new(0);

/// Sets the event that `wait` shows in this process. Workers call this.
pub fn wait_as(event: Event) {
    OWN.store(event.number(), Ordering::Relaxed);
}

/// Sleeps until the latch is set, or at most for `timeout` (`None`: without a limit), and then
/// serves interrupts (cancel, terminate, barriers). The caller resets the latch *before* it tests
/// the condition that it waits for.
pub fn wait(timeout: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if timeout.is_some() {
        events |= pg_sys::WL_TIMEOUT;
    }
    // The timeout is rounded up: a wake-up a fraction of a millisecond too early would lead to a
    // second one.
    let millis = timeout.map_or(-1, |t| t.as_micros().div_ceil(1_000).min(i32::MAX as u128) as _);
    let event = match OWN.load(Ordering::Relaxed) {
        0 => Event::Worker.number(),
        own => own,
    };
    // SAFETY: this is the process's own latch, which exists as long as the process.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, millis, event);
    }
    pgrx::check_for_interrupts!();
}

/// The longest time that a process with a deadline sleeps before it reads the clock again. A
/// latch's timeout does not count the time in which the machine is suspended, and deadlines do.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Waits as `wait` does, until `clock` reads `deadline` (`None`: without a limit). The function may
/// return earlier, so callers read the clock.
pub fn wait_until(deadline: Option<ClockTime>) {
    let left = |at: ClockTime| Duration::from_micros(at.saturating_sub(clock::now()).max(0) as u64);
    wait(deadline.map(|at| left(at).min(LOOK_AGAIN)));
}

/// Waits as `wait` does, while this session's client waits for the result. If the client closes the
/// connection, the session ends with a FATAL. Without a client, or on a platform that can't report
/// a closed socket, this is `wait`.
pub fn wait_with_client(timeout: Duration) {
    // SAFETY: the latch and the client's socket belong to this process. The socket is the first
    // field of the struct Port in Postgres 15 to 18, and a background worker has no socket. The
    // flags are the ones that Postgres' own check of the client sets.
    unsafe {
        let can_tell = pg_sys::WaitEventSetCanReportClosed();
        let Some(socket) = super::session::socket().filter(|_| can_tell) else { return wait(Some(timeout)) };
        let events = pg_sys::WL_LATCH_SET
            | pg_sys::WL_EXIT_ON_PM_DEATH
            | pg_sys::WL_TIMEOUT
            | pg_sys::WL_SOCKET_CLOSED;
        let millis = timeout.as_micros().div_ceil(1_000).min(i32::MAX as u128) as _;
        let happened =
            pg_sys::WaitLatchOrSocket(pg_sys::MyLatch, events as i32, socket, millis, Event::Wait.number());
        if happened as u32 & pg_sys::WL_SOCKET_CLOSED != 0 {
            pg_sys::ClientConnectionLost = 1;
            pg_sys::InterruptPending = 1;
        }
    }
    pgrx::check_for_interrupts!();
}

/// Resets the latch, and serves interrupts. A loop calls this before it tests its condition.
///
/// A signal that arrived before has set the latch, too. After the reset that signal no longer wakes
/// the process, so its interrupt is served here. (Besides, messages can arrive so fast that a loop
/// never waits.)
pub fn reset() {
    // SAFETY: this is the process's own latch.
    unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) }
    pgrx::check_for_interrupts!();
}
