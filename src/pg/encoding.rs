//! The server's encoding, which need not be UTF-8.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;

const UTF8: i32 = pg_sys::pg_enc::PG_UTF8 as i32;
const SQL_ASCII: i32 = pg_sys::pg_enc::PG_SQL_ASCII as i32;

/// Whether texts are bytes of UTF-8 already (or nobody knows what, which is given on as it is).
fn is_native(bytes: &[u8]) -> bool {
    // SAFETY: reads a global.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    encoding == UTF8 || encoding == SQL_ASCII || bytes.is_ascii()
}

pub fn is_utf8() -> bool {
    // SAFETY: reads a global.
    unsafe { pg_sys::GetDatabaseEncoding() == UTF8 }
}

/// The name of this database's encoding.
pub fn of_database() -> &'static CStr {
    // SAFETY: a static string of Postgres'.
    unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) }
}

/// Text of ours in the server's encoding. 22P05 for a character that it does not have.
pub fn to_server(text: &str) -> Cow<'_, [u8]> {
    if is_native(text.as_bytes()) {
        return Cow::Borrowed(text.as_bytes());
    }
    // SAFETY: a conversion of so many bytes; the result is a new string, as nothing else was native.
    Cow::Owned(unsafe {
        let len = text.len() as i32;
        copied(pg_sys::pg_any_to_server(text.as_ptr().cast::<c_char>(), len, UTF8))
    })
}

/// In a database without an encoding (SQL_ASCII) a text can be anything.
fn not_utf8() -> ! {
    pgrx::ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
        "invalid byte sequence: the database has no encoding, and this text is not UTF-8",
        "Send texts in UTF-8."
    );
}

/// Text of the server's as UTF-8. 22021 for what is none in a database without an encoding.
pub fn to_utf8(bytes: &[u8]) -> Cow<'_, str> {
    if is_native(bytes) {
        return Cow::Borrowed(std::str::from_utf8(bytes).unwrap_or_else(|_| not_utf8()));
    }
    // SAFETY: as above.
    let utf8 = unsafe {
        copied(pg_sys::pg_server_to_any(bytes.as_ptr().cast::<c_char>(), bytes.len() as i32, UTF8))
    };
    Cow::Owned(String::from_utf8(utf8).unwrap_or_default())
}

/// The same, without an error: what is not UTF-8 in a database without an encoding is shown as far as it is.
pub fn to_utf8_lossy(bytes: &[u8]) -> Cow<'_, str> {
    if is_native(bytes) { String::from_utf8_lossy(bytes) } else { to_utf8(bytes) }
}

/// # Safety
/// `converted` was allocated by a conversion, and is used by nobody else.
unsafe fn copied(converted: *mut c_char) -> Vec<u8> {
    // SAFETY: the caller's promise; conversions end with a zero.
    unsafe {
        let bytes = copy(CStr::from_ptr(converted).to_bytes());
        pg_sys::pfree(converted.cast());
        bytes
    }
}

/// As `to_utf8`, in memory of Rust's. 53200 when there is none.
pub fn to_string(bytes: &[u8]) -> String {
    match to_utf8(bytes) {
        Cow::Borrowed(text) => String::from_utf8(copy(text.as_bytes())).unwrap_or_default(),
        Cow::Owned(text) => text,
    }
}

/// What comes out of SQL may be large, and Rust ends the server when it gets no memory.
fn copy(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::new();
    if copy.try_reserve_exact(bytes.len()).is_err() {
        ErrorReport::from(Error::OutOfMemory).report(PgLogLevel::ERROR);
    }
    copy.extend_from_slice(bytes);
    copy
}
