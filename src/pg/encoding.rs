//! The server's encoding, which need not be UTF-8.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use crate::logic::text::excerpt;

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

/// The same, without an error: what has no UTF-8 is replaced.
pub fn to_utf8_lossy(bytes: &[u8]) -> Cow<'_, str> {
    if is_native(bytes) {
        return String::from_utf8_lossy(bytes);
    }
    let replaced = Conversion::between(of_server(), UTF8)
        .map(|c| c.replacing(bytes, |_, utf8| utf8.extend_from_slice("\u{fffd}".as_bytes())));
    Cow::Owned(String::from_utf8(replaced.unwrap_or_default()).unwrap_or_default())
}

/// Text of ours in the server's encoding, without an error: a character that it does not have becomes "?".
pub fn to_server_lossy(text: &str) -> Cow<'_, [u8]> {
    if is_native(text.as_bytes()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let replaced = Conversion::between(UTF8, of_server())
        .map(|c| c.replacing(text.as_bytes(), |_, server| server.push(b'?')));
    Cow::Owned(replaced.unwrap_or_default())
}

/// A text that an argument gives, as UTF-8. 22023 for what is no text in UTF-8.
pub fn argument<'a>(argument: &'static str, bytes: &'a [u8]) -> Result<Cow<'a, str>, Error> {
    let text = to_utf8_lossy(bytes);
    let is_text = match of_server() {
        UTF8 => true,
        SQL_ASCII => matches!(text, Cow::Borrowed(_)),
        _ => !text.contains('\u{fffd}'),
    };
    if is_text {
        return Ok(text);
    }
    Err(Error::bad(
        format!("argument \"{argument}\" has no UTF-8: \"{}\"", excerpt(&text)),
        format!("This database's encoding is {}: give a text that is one in UTF-8, too.", name()),
    ))
}

/// A name that an argument gives, for shared memory and tables. 22023 for one that this database can't have there.
pub fn name_argument<'a>(name: &'static str, bytes: &'a [u8]) -> Result<&'a str, Error> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && is_name(text)
    {
        return Ok(text);
    }
    let shown = argument(name, bytes)?;
    Err(Error::bad(
        format!("argument \"{name}\" is not ASCII: \"{}\"", excerpt(&shown)),
        format!(
            "This database's encoding is {}: names of members, nodes, queues and prefixes have to be ASCII here, or \
             the database UTF8.",
            self::name()
        ),
    ))
}

/// Whether a name from the catalogs, as `to_utf8_lossy` gives it, can be that of a prefix in this database.
pub fn is_name(name: &str) -> bool {
    match of_server() {
        UTF8 => true,
        SQL_ASCII => !name.contains('\u{fffd}'),
        _ => name.is_ascii(),
    }
}

/// A message of ours as Postgres takes it, which is in the server's encoding: without characters that might mean
/// others there, or nothing.
pub fn shown(message: &str) -> String {
    // SAFETY: reads a global.
    let client = unsafe { pg_sys::pg_get_client_encoding() };
    let is_known = match of_server() {
        UTF8 => true,
        SQL_ASCII => client == UTF8 || client == SQL_ASCII,
        _ => false,
    };
    if is_known || message.is_ascii() {
        return message.to_owned();
    }
    let mut shown = Vec::new();
    for c in message.chars() {
        match c {
            ' '..='~' | '\n' | '\t' => shown.push(c as u8),
            other => push_escape(&mut shown, other, "\\"),
        }
    }
    String::from_utf8(shown).unwrap_or_default()
}

/// A character as JSON escapes it, behind this backslash.
fn push_escape(to: &mut Vec<u8>, c: char, backslash: &str) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        to.extend_from_slice(format!("{backslash}u{unit:04x}").as_bytes());
    }
}

fn of_server() -> i32 {
    // SAFETY: reads a global.
    unsafe { pg_sys::GetDatabaseEncoding() }
}

fn name() -> Cow<'static, str> {
    of_database().to_string_lossy()
}

/// How texts of one encoding become texts of another.
pub struct Conversion {
    procedure: pg_sys::Oid,
    from: i32,
    to: i32,
}

/// What is converted at a time, and how many bytes each of these may become, at most.
const PIECE: usize = 16 * 1024;
const GROWTH: usize = 4;

/// The most bytes of a character, in any encoding.
const MAX_CHARACTER: usize = 4;

impl Conversion {
    /// In a transaction. `None` when there is nothing to convert.
    fn between(from: i32, to: i32) -> Option<Self> {
        if from == to || from == SQL_ASCII || to == SQL_ASCII {
            return None;
        }
        // SAFETY: a catalog lookup.
        let procedure = unsafe { pg_sys::FindDefaultConversionProc(from, to) };
        (procedure != pg_sys::InvalidOid).then_some(Self { procedure, from, to })
    }

    /// Converts the beginning of `bytes`, as far as that goes: how many bytes. What they become is at the beginning of
    /// `converted`, with a zero behind it.
    fn some(&self, bytes: &[u8], converted: &mut [u8; PIECE * GROWTH + 1]) -> usize {
        let len = bytes.len().min(PIECE);
        converted[0] = 0;
        // SAFETY: a conversion of so many bytes, which it does not change, into a buffer of that size. It raises
        // nothing for what it can't convert.
        let done = unsafe {
            pg_sys::pg_do_encoding_conversion_buf(
                self.procedure,
                self.from,
                self.to,
                bytes.as_ptr().cast_mut(),
                len as i32,
                converted.as_mut_ptr(),
                converted.len() as i32,
                true,
            )
        };
        usize::try_from(done).unwrap_or(0).min(len)
    }

    /// Calls `good` with each piece that can be converted, and with what it becomes, and `bad` with each character that
    /// can't.
    fn each<T>(
        &self,
        bytes: &[u8],
        state: &mut T,
        good: impl Fn(&mut T, &[u8], &[u8]),
        bad: impl Fn(&mut T, &[u8]),
    ) {
        let mut converted = [0; PIECE * GROWTH + 1];
        let mut rest = bytes;
        while !rest.is_empty() {
            pgrx::check_for_interrupts!();
            let done = self.some(rest, &mut converted);
            let end = converted.iter().position(|byte| *byte == 0).unwrap_or(0);
            if done > 0 {
                good(state, &rest[..done], &converted[..end]);
                rest = &rest[done..];
                // Else it ended between two characters, or in the midst of one that is whole in the next piece.
                if rest.is_empty() || done + MAX_CHARACTER > PIECE {
                    continue;
                }
            }
            // SAFETY: reads no more than the first two bytes, the second of which is a zero at the worst.
            let len = unsafe {
                let first = [rest[0], rest.get(1).copied().unwrap_or(0), 0];
                pg_sys::pg_encoding_mblen(self.from, first.as_ptr().cast::<c_char>())
            };
            let (character, after) = rest.split_at((len.max(1) as usize).min(rest.len()));
            bad(state, character);
            rest = after;
        }
    }

    /// All of `bytes`; what can't be converted is what `replace` adds for it.
    fn replacing(&self, bytes: &[u8], replace: impl Fn(&[u8], &mut Vec<u8>)) -> Vec<u8> {
        let mut all = Vec::new();
        self.each(
            bytes,
            &mut all,
            |all, _, converted| extend(all, converted),
            |all, character| replace(character, all),
        );
        all
    }

    /// JSON in which what can't be converted is escaped, in the encoding that it has.
    fn escaping(&self, json: &[u8]) -> Vec<u8> {
        let to_utf8 = Self::between(self.from, UTF8);
        let escape = |all: &mut Vec<u8>, character: &[u8]| {
            let utf8 = match &to_utf8 {
                None => Cow::Borrowed(character),
                Some(c) => Cow::Owned(c.replacing(character, |_, _| ())),
            };
            let text = std::str::from_utf8(&utf8).unwrap_or_default();
            push_escape(all, text.chars().next().unwrap_or('\u{fffd}'), r"\\");
        };
        let mut all = Vec::new();
        self.each(json, &mut all, |all, bytes, _| extend(all, bytes), escape);
        all
    }
}

/// What a session's client can be sent.
pub enum Client {
    /// Every text of the database's.
    All,
    /// What this converts.
    Converted(Conversion),
    /// From a database without an encoding: what is right in this one.
    Right(i32),
}

impl Client {
    /// Of this session. In a transaction.
    pub fn of_session() -> Self {
        // SAFETY: reads a global.
        let client = unsafe { pg_sys::pg_get_client_encoding() };
        if of_server() == SQL_ASCII && client != SQL_ASCII {
            return Self::Right(client);
        }
        Conversion::between(of_server(), client).map_or(Self::All, Self::Converted)
    }

    /// JSON in the server's encoding that the client can be sent: a character that the client's encoding does not have
    /// is a backslash with its number in UTF-16, as JSON escapes it. (As it is the value of a jsonb that is escaped, the
    /// client reads the backslash: it does not stand for the character.)
    pub fn json(&self, json: Vec<u8>) -> Vec<u8> {
        match self {
            Self::All => json,
            _ if json.is_ascii() => json,
            Self::Converted(to_client) => to_client.escaping(&json),
            Self::Right(encoding) => replacing_wrong(*encoding, json),
        }
    }
}

/// Text in no known encoding as text in this one. What is wrong in that is replaced.
fn replacing_wrong(encoding: i32, mut text: Vec<u8>) -> Vec<u8> {
    // SAFETY: reads so many bytes.
    let is_right =
        unsafe { pg_sys::pg_verify_mbstr(encoding, text.as_ptr().cast::<c_char>(), text.len() as i32, true) };
    if is_right {
        return text;
    }
    if encoding == UTF8 {
        return copy(String::from_utf8_lossy(&text).as_bytes());
    }
    text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    text
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
    extend(&mut copy, bytes);
    copy
}

/// Adds bytes. 53200 when there is no memory for them.
fn extend(all: &mut Vec<u8>, bytes: &[u8]) {
    if all.try_reserve(bytes.len()).is_err() {
        ErrorReport::from(Error::OutOfMemory).report(PgLogLevel::ERROR);
    }
    all.extend_from_slice(bytes);
}
