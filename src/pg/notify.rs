//! Native LISTEN and NOTIFY, and receiving notifications in a process that has no client.
//!
//! Postgres refuses SQL's LISTEN in a worker, because no client would read the notifications. The
//! functions behind LISTEN work in a worker. The signal of a NOTIFY sets a flag and the process's
//! latch. `ProcessNotifyInterrupt` then reads NOTIFY's queue in a separate transaction, and writes
//! each notification of the process's channels as a protocol message through the functions to which
//! `PqCommMethods` points. For the time of that call, `PqCommMethods` points to a table of this
//! library, which keeps the message. (Parallel workers pass messages to their leader in the same
//! way.)

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::{c_name, c_string};
use crate::logic::room::Room;

// pgrx does not bind these functions. They may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn Async_Notify(channel: *const c_char, payload: *const c_char);
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
    fn ProcessNotifyInterrupt(flush: bool);
    static mut PqCommMethods: *const CommMethods;
    static mut FrontendProtocol: u32;
    static mut notifyInterruptPending: c_int;
}

/// PQcommMethods of libpq/libpq.h, which is the same in Postgres 15 to 18.
#[repr(C)]
struct CommMethods {
    comm_reset: extern "C" fn(),
    flush: extern "C" fn() -> c_int,
    flush_if_writable: extern "C" fn() -> c_int,
    is_send_pending: extern "C" fn() -> bool,
    putmessage: unsafe extern "C" fn(kind: c_char, bytes: *const c_char, len: usize) -> c_int,
    putmessage_noblock: unsafe extern "C" fn(kind: c_char, bytes: *const c_char, len: usize),
}

/// Queues a notification until the end of this transaction. Postgres sends equal notifications of a
/// transaction once. Raises 22023 for a channel over 63 bytes or a payload over 7,999.
pub fn notify(channel: &[u8], payload: &[u8]) {
    let (channel, payload) = (c_string(channel), c_string(payload));
    // SAFETY: both strings are copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) }
}

/// Returns whether the next NOTIFY might find its queue full, which fails a commit. The call moves
/// the queue's tail. Otherwise only a NOTIFY that succeeds moves the tail, so a full queue stays
/// full until this call. (A session that LISTENs and does not end its transaction lets the queue
/// fill: 8 GB by default.)
pub fn is_queue_full() -> bool {
    // SAFETY: the function takes no argument and reads shared memory.
    let usage = unsafe { pgrx::direct_function_call::<f64>(pg_sys::pg_notification_queue_usage, &[]) };
    usage.is_some_and(|usage| usage > 0.95)
}

/// Makes every session of the server that LISTENs read NOTIFY's queue to its end. A transaction
/// that fills the queue and fails leaves its entries in the queue. No session is told of these
/// entries, and they keep the queue full.
pub fn rouse_listeners() {
    // SAFETY: the array is in shared memory and lives as long as the server. A pid may be stale by
    // now: Postgres looks it up among the processes that take such signals, and sends nothing if it
    // does not find the pid. A process that does not LISTEN ignores the signal.
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

/// Starts listening to a channel at the end of this transaction.
pub fn listen(channel: &str) {
    let channel = c_name(channel);
    // SAFETY: the string is copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Listen(channel.as_ptr())) }
}

/// Stops listening to a channel at the end of this transaction.
pub fn unlisten(channel: &str) {
    let channel = c_name(channel);
    // SAFETY: the string is copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Unlisten(channel.as_ptr())) }
}

/// A notification on a channel to which this process listens.
pub struct Notification {
    /// The channel, in the server's encoding, as is the payload.
    pub channel: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Notification {
    /// Returns how many bytes of memory it takes.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.channel.len() + self.payload.len()
    }
}

thread_local! {
    static HEARD: RefCell<Vec<Notification>> = const { RefCell::new(Vec::new()) };
    /// How many more bytes may be kept.
    static ROOM: RefCell<Room> = RefCell::default();
    /// How many notifications were not kept, by their channel.
    static MISSED: RefCell<Missed> = RefCell::default();
    static WANTED: Cell<fn(&[u8]) -> bool> = const { Cell::new(|_| true) };
}

/// How many notifications were not kept for lack of room, by their channel. Other channels have no
/// entry.
pub type Missed = HashMap<Vec<u8>, usize>;

/// Returns whether a notification may have arrived, on any channel. A wait for notifications has to
/// call this after it has reset its latch, and after each transaction of this process: what this
/// process sends to itself sets no latch.
pub fn has_come() -> bool {
    // SAFETY: the flag is a global, which a signal handler sets.
    unsafe { (&raw const notifyInterruptPending).read_volatile() != 0 }
}

/// Reads all notifications that have arrived, so that NOTIFY's queue need not keep them for this
/// process. Keeps the notifications whose payload is `wanted`, as far as there is room. The second
/// value is how many wanted notifications were not kept. Must not be called within a transaction.
/// May raise; then what was heard is lost.
pub fn hear(room: Room, wanted: fn(&[u8]) -> bool) -> (Vec<Notification>, Missed) {
    /// Restores the previous values when it is dropped, also when an error passes.
    struct Before(*const CommMethods, pg_sys::CommandDest::Type);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: the variables are globals of this process, which has one thread.
            unsafe { (PqCommMethods, pg_sys::whereToSendOutput) = (self.0, self.1) }
        }
    }
    const PROTOCOL_3: u32 = 3 << 16;
    ROOM.set(room);
    MISSED.take();
    WANTED.set(wanted);
    HEARD.take(); // what a call left that ended with an error
    // SAFETY: the variables are globals of this process, which has one thread. While the table of
    // this library is in place, messages of other kinds, such as an error's, are thrown away, and
    // only the log has them. `FrontendProtocol` must be set: without a version of the protocol,
    // Postgres would write an error past the table.
    unsafe {
        let before = Before(PqCommMethods, pg_sys::whereToSendOutput);
        (PqCommMethods, FrontendProtocol) = (&raw const KEEP, PROTOCOL_3);
        pg_sys::whereToSendOutput = pg_sys::CommandDest::DestRemote;
        notifyInterruptPending = 1; // an earlier error may have left notifications unread
        pg_guard_ffi_boundary(|| ProcessNotifyInterrupt(false));
        drop(before);
    }
    (HEARD.take(), MISSED.take())
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

/// Keeps a message for the client if it is a wanted notification. Postgres calls this function,
/// which raises nothing.
unsafe extern "C" fn keep(kind: c_char, bytes: *const c_char, len: usize) -> c_int {
    if kind as u8 != b'A' || bytes.is_null() {
        return 0;
    }
    // SAFETY: the message is Postgres' own and has that length, and it is copied.
    let message = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
    // Postgres' own messages are never malformed.
    let Some(notification) = notification(message).filter(|n| WANTED.get()(&n.payload)) else { return 0 };
    if ROOM.with_borrow_mut(|room| room.take(&notification.channel, notification.size())) {
        HEARD.with_borrow_mut(|heard| heard.push(notification));
    } else {
        MISSED.with_borrow_mut(|missed| *missed.entry(notification.channel).or_default() += 1);
    }
    0
}

unsafe extern "C" fn keep_too(kind: c_char, bytes: *const c_char, len: usize) {
    // SAFETY: the arguments are the ones that Postgres gave.
    unsafe { keep(kind, bytes, len) };
}

/// Returns the notification in a NotificationResponse of the protocol, which holds the sender, the
/// channel and the payload. `None`: the message is malformed.
fn notification(message: &[u8]) -> Option<Notification> {
    let (_sender, rest) = message.split_first_chunk::<4>()?;
    let channel = CStr::from_bytes_until_nul(rest).ok()?;
    let payload = CStr::from_bytes_until_nul(rest.get(channel.count_bytes() + 1..)?).ok()?;
    Some(Notification { channel: channel.to_bytes().to_vec(), payload: payload.to_bytes().to_vec() })
}
