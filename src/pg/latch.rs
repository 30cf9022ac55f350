//! Waiting and waking. A process number belongs to its slot for the server's life, so waking a stale
//! one wakes somebody in vain and nothing worse: every wait loop of Postgres takes that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

use super::clock;

/// This process's number, what `wake` takes.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub fn my_procno() -> i32 {
    // SAFETY: MyProc is set in every process that runs our code (all of them have shared memory).
    unsafe { (*pg_sys::MyProc).pgprocno }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
pub fn my_procno() -> i32 {
    // SAFETY: a plain global, set before any of our code runs.
    unsafe { pg_sys::MyProcNumber }
}

pub fn my_pid() -> i32 {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyProcPid }
}

/// Sets the latch of a process. Callable after commit: it can't fail.
pub fn wake(procno: i32) {
    if procno >= 0 {
        // SAFETY: procno came out of `my_procno` of some process of this server.
        unsafe { pg_sys::ProcSendSignal(procno) }
    }
}

/// What pg_stat_activity shows as the wait event of a process that waits here (before 17: Extension).
#[derive(Clone, Copy)]
pub enum Event {
    /// A session in oban_wait.
    Wait,
    /// A session that waits for a worker: for an election, or for it to leave a database.
    Worker,
    Coordinator,
    Keeper,
    Relay,
}

/// The numbers that Postgres gave to the events; 0 without preload, and before 17.
static NUMBERS: [AtomicU32; 5] = [const { AtomicU32::new(0) }; 5];

impl Event {
    fn number(self) -> u32 {
        match NUMBERS[self as usize].load(Ordering::Relaxed) {
            0 => pg_sys::PG_WAIT_EXTENSION,
            number => number,
        }
    }
}

/// In the postmaster, each time that it has made shared memory: all processes have the numbers from it. (A session
/// that asked for a number might meet an error there: Postgres has 128.)
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
    ] {
        // SAFETY: the name is copied into shared memory.
        let number = unsafe { pg_sys::WaitEventExtensionNew(name.as_ptr()) };
        NUMBERS[event as usize].store(number, Ordering::Relaxed);
    }
}

/// What `wait` is shown as in this process, if it is a worker.
static OWN: AtomicU32 = AtomicU32::new(0);

/// In a worker: names what it waits for.
pub fn wait_as(event: Event) {
    OWN.store(event.number(), Ordering::Relaxed);
}

/// Sleeps until the latch is set, or at most for `timeout` (None: for ever), then serves interrupts
/// (cancel, terminate, barriers). Reset the latch *before* you test the condition you wait for.
pub fn wait(timeout: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if timeout.is_some() {
        events |= pg_sys::WL_TIMEOUT;
    }
    // Rounded up: waking a fraction of a millisecond early would mean to wake twice.
    let millis = timeout.map_or(-1, |t| t.as_micros().div_ceil(1_000).min(i32::MAX as u128) as _);
    let event = match OWN.load(Ordering::Relaxed) {
        0 => Event::Worker.number(),
        own => own,
    };
    // SAFETY: our own latch, which exists as long as the process.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, millis, event);
    }
    pgrx::check_for_interrupts!();
}

/// The longest that a process with a deadline sleeps before it looks at the clock again. A latch's timeout does not
/// count the time that the machine is suspended, deadlines do.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// As `wait`, until `clock` reads `deadline` (`None`: for ever). It may return earlier: callers ask the clock.
pub fn wait_until(deadline: Option<i64>) {
    let left = |at: i64| Duration::from_micros(at.saturating_sub(clock::now()).max(0) as u64);
    wait(deadline.map(|at| left(at).min(LOOK_AGAIN)));
}

/// As `wait`, on behalf of a client that waits with us: should it go away, this session ends (FATAL).
pub fn wait_with_client(timeout: Duration) {
    // SAFETY: our own latch and our client's socket, which is the first field of its struct in 15 to 18; a
    // background worker has none. The flags are what Postgres' own check of the client sets.
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

/// Before the condition is tested. A signal that came before set the latch, too: it is served now, as nobody
/// will be woken by it any more (and as news can come faster than a loop ever waits).
pub fn reset() {
    // SAFETY: our own latch.
    unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) }
    pgrx::check_for_interrupts!();
}
