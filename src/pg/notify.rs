//! Native LISTEN and NOTIFY, and hearing what comes in a process that has no client.
//!
//! SQL's LISTEN is refused in a worker, as nobody would read what comes. The functions behind it work: the
//! signal sets a flag and our latch, `ProcessNotifyInterrupt` reads NOTIFY's queue in a transaction of its own
//! and writes each notification of our channels as a protocol message to whatever `PqCommMethods` points at.
//! For the time of that call this is a table of our own, which keeps the message. (Parallel workers give their
//! leader messages in the same way.)

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::{c_name, c_string};

// Not bound by pgrx. They may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn Async_Notify(channel: *const c_char, payload: *const c_char);
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
    fn ProcessNotifyInterrupt(flush: bool);
    static mut PqCommMethods: *const CommMethods;
    static mut FrontendProtocol: u32;
    static mut notifyInterruptPending: c_int;
}

/// `PQcommMethods` of libpq/libpq.h, the same in 15 to 18.
#[repr(C)]
struct CommMethods {
    comm_reset: extern "C" fn(),
    flush: extern "C" fn() -> c_int,
    flush_if_writable: extern "C" fn() -> c_int,
    is_send_pending: extern "C" fn() -> bool,
    putmessage: unsafe extern "C" fn(kind: c_char, bytes: *const c_char, len: usize) -> c_int,
    putmessage_noblock: unsafe extern "C" fn(kind: c_char, bytes: *const c_char, len: usize),
}

/// Queues a notification until the end of this transaction; an equal one in it is sent once.
/// 22023 for a channel over 63 bytes or a payload over 7,999.
pub fn notify(channel: &[u8], payload: &[u8]) {
    let (channel, payload) = (c_string(channel), c_string(payload));
    // SAFETY: both strings are copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) }
}

/// Whether the next NOTIFY might find its queue full, which fails a commit. Moves the queue's tail, which otherwise only
/// a NOTIFY that succeeds does: a queue that was full stays so until this is asked. (A session that LISTENs and does not
/// end its transaction lets it fill: 8 GB by default.)
pub fn is_queue_full() -> bool {
    // SAFETY: a function without arguments that reads shared memory.
    let usage = unsafe { pgrx::direct_function_call::<f64>(pg_sys::pg_notification_queue_usage, &[]) };
    usage.is_some_and(|usage| usage > 0.95)
}

/// Has every session of the server that LISTENs read NOTIFY's queue to its end. A transaction that fills the queue and
/// fails leaves its entries there. No session is told of them, and they keep the queue full.
pub fn rouse_listeners() {
    // SAFETY: an array in shared memory that lives as long as the server. A pid may be stale by now: it is looked up
    // among the processes that take such signals, and nothing is sent if it is not there. A process that does not
    // LISTEN ignores the signal.
    unsafe {
        let all = pg_sys::ProcGlobal;
        for i in 0..(*all).allProcCount as usize {
            let process = &raw const *(*all).allProcs.add(i);
            let (pid, database) = ((*process).pid, (*process).databaseId);
            if pid != 0 && database != pg_sys::InvalidOid {
                const NOBODY_KNOWS_ITS_NUMBER: i32 = -1;
                let reason = pg_sys::ProcSignalReason::PROCSIG_NOTIFY_INTERRUPT;
                pg_sys::SendProcSignal(pid, reason, NOBODY_KNOWS_ITS_NUMBER);
            }
        }
    }
}

/// Starts listening with the end of this transaction.
pub fn listen(channel: &str) {
    let channel = c_name(channel);
    // SAFETY: the string is copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Listen(channel.as_ptr())) }
}

/// Stops listening with the end of this transaction.
pub fn unlisten(channel: &str) {
    let channel = c_name(channel);
    // SAFETY: the string is copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Unlisten(channel.as_ptr())) }
}

/// A notification that came on a channel that this process listens to.
pub struct Notification {
    /// In the server's encoding, as the payload.
    pub channel: Vec<u8>,
    pub payload: Vec<u8>,
}

thread_local! {
    static HEARD: RefCell<Vec<Notification>> = const { RefCell::new(Vec::new()) };
    /// How many bytes more may be kept, and how many notifications were not.
    static ROOM: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static WANTED: Cell<fn(&[u8]) -> bool> = const { Cell::new(|_| true) };
}

/// Whether something may have come, on a channel of ours or not. Each wait for it has to look at this after it has
/// reset its latch, and after its own transactions: what this process sends itself sets no latch.
pub fn has_come() -> bool {
    // SAFETY: a flag that a signal handler sets.
    unsafe { (&raw const notifyInterruptPending).read_volatile() != 0 }
}

/// Reads everything that has come, so that NOTIFY's queue need not keep it for us. Of notifications whose payload is
/// `wanted` up to `most` bytes are kept; how many were not is the second value. Not within a transaction. May raise.
pub fn hear(most: usize, wanted: fn(&[u8]) -> bool) -> (Vec<Notification>, usize) {
    /// Puts back what was there, also when an error passes.
    struct Before(*const CommMethods, pg_sys::CommandDest::Type);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: globals of this process, which has one thread.
            unsafe { (PqCommMethods, pg_sys::whereToSendOutput) = (self.0, self.1) }
        }
    }
    const PROTOCOL_3: u32 = 3 << 16;
    ROOM.set((most, 0));
    WANTED.set(wanted);
    HEARD.take(); // of a time that ended with an error
    // SAFETY: as above. While our table is in place messages of other kinds, such as an error's, are thrown away;
    // the log has them. Without a version of the protocol an error would be written past the table.
    unsafe {
        let before = Before(PqCommMethods, pg_sys::whereToSendOutput);
        (PqCommMethods, FrontendProtocol) = (&raw const KEEP, PROTOCOL_3);
        pg_sys::whereToSendOutput = pg_sys::CommandDest::DestRemote;
        notifyInterruptPending = 1; // or it would not look, after an error that came before it did
        pg_guard_ffi_boundary(|| ProcessNotifyInterrupt(false));
        drop(before);
    }
    (HEARD.take(), ROOM.get().1)
}

static KEEP: CommMethods = CommMethods {
    comm_reset: nothing,
    flush: nothing_to_flush,
    flush_if_writable: nothing_to_flush,
    is_send_pending: never,
    putmessage: keep,
    putmessage_noblock: keep_too,
};

extern "C" fn nothing() {}

extern "C" fn nothing_to_flush() -> c_int {
    0
}

extern "C" fn never() -> bool {
    false
}

/// Called by Postgres with a message for the client; raises nothing.
unsafe extern "C" fn keep(kind: c_char, bytes: *const c_char, len: usize) -> c_int {
    if kind as u8 != b'A' || bytes.is_null() {
        return 0;
    }
    // SAFETY: Postgres' own message of that length, which is copied.
    let message = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
    let (room, missed) = ROOM.get();
    match notification(message) {
        Some(notification) if !WANTED.get()(&notification.payload) => {}
        Some(notification) if room >= len => {
            ROOM.set((room - len, missed));
            HEARD.with_borrow_mut(|heard| heard.push(notification));
        }
        _ => ROOM.set((room, missed + 1)),
    }
    0
}

unsafe extern "C" fn keep_too(kind: c_char, bytes: *const c_char, len: usize) {
    // SAFETY: the same arguments.
    unsafe { keep(kind, bytes, len) };
}

/// NotificationResponse of the protocol: the sender, the channel, the payload.
fn notification(message: &[u8]) -> Option<Notification> {
    let (_sender, rest) = message.split_first_chunk::<4>()?;
    let channel = CStr::from_bytes_until_nul(rest).ok()?;
    let payload = CStr::from_bytes_until_nul(rest.get(channel.count_bytes() + 1..)?).ok()?;
    Some(Notification { channel: channel.to_bytes().to_vec(), payload: payload.to_bytes().to_vec() })
}
