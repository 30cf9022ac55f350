//! Native LISTEN and NOTIFY.

use std::ffi::c_char;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::{c_name, c_string};

// Not bound by pgrx. They may raise, so each call goes through the guard.
unsafe extern "C-unwind" {
    fn Async_Notify(channel: *const c_char, payload: *const c_char);
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
}

/// Queues a notification until the end of this transaction; an equal one in it is sent once.
/// 22023 for a channel over 63 bytes or a payload over 7,999.
pub fn notify(channel: &[u8], payload: &[u8]) {
    let (channel, payload) = (c_string(channel), c_string(payload));
    // SAFETY: both strings are copied.
    unsafe { pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) }
}

/// Whether the next NOTIFY might find its queue full, which fails a commit. (A session that LISTENs and does
/// not end its transaction lets it fill: 8 GB by default.)
pub fn is_queue_full() -> bool {
    // SAFETY: a function without arguments that reads shared memory.
    let usage = unsafe { pgrx::direct_function_call::<f64>(pgrx::pg_sys::pg_notification_queue_usage, &[]) };
    usage.is_some_and(|usage| usage > 0.95)
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
