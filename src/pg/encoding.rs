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

/// Returns whether a text needs no conversion between UTF-8 and the server's encoding. In a
/// database without an encoding (SQL_ASCII) no text is converted, because the bytes' encoding is
/// not known.
fn is_native(bytes: &[u8]) -> bool {
    // SAFETY: the function reads a global.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    encoding == UTF8 || encoding == SQL_ASCII || bytes.is_ascii()
}

/// Returns whether this database's encoding is UTF-8.
pub fn is_utf8() -> bool {
    // SAFETY: the function reads a global.
    unsafe { pg_sys::GetDatabaseEncoding() == UTF8 }
}

/// Returns the name of this database's encoding.
pub fn of_database() -> &'static CStr {
    // SAFETY: the function returns a static string.
    unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) }
}

/// Returns a Rust text in the server's encoding. Raises 22P05 for a character that the encoding
/// does not have.
pub fn to_server(text: &str) -> Cow<'_, [u8]> {
    if is_native(text.as_bytes()) {
        return Cow::Borrowed(text.as_bytes());
    }
    // SAFETY: the conversion reads `len` bytes. The result is a new string, because `is_native` has
    // caught every text that needs no conversion.
    Cow::Owned(unsafe {
        let len = text.len() as i32;
        copied(pg_sys::pg_any_to_server(text.as_ptr().cast::<c_char>(), len, UTF8))
    })
}

/// Returns a character in the server's encoding. `None`: the encoding lacks the character, or the
/// database has no encoding (SQL_ASCII) and the character is not ASCII. Needs a transaction.
pub fn character(c: char) -> Option<Vec<u8>> {
    let utf8 = c.to_string().into_bytes();
    if c.is_ascii() || is_utf8() {
        return Some(utf8);
    }
    let (mut converted, mut is_lacking) = (Vec::new(), false);
    Conversion::between(UTF8, of_server())?.each(
        &utf8,
        &mut (&mut converted, &mut is_lacking),
        |(converted, _), _, bytes| extend(converted, bytes),
        |(_, is_lacking), _| **is_lacking = true,
    );
    (!is_lacking).then_some(converted)
}

/// Raises 22021: a database without an encoding (SQL_ASCII) holds a text that is not UTF-8.
fn not_utf8() -> ! {
    pgrx::ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
        "invalid byte sequence: the database has no encoding, and this text is not UTF-8",
        "Send texts in UTF-8."
    );
}

/// Returns a text in the server's encoding as UTF-8. Raises 22021 if the database has no encoding
/// and the text is not UTF-8.
pub fn to_utf8(bytes: &[u8]) -> Cow<'_, str> {
    if is_native(bytes) {
        return Cow::Borrowed(std::str::from_utf8(bytes).unwrap_or_else(|_| not_utf8()));
    }
    // SAFETY: the conversion reads `bytes.len()` bytes, and its result is a new string, as in
    // `to_server`.
    let utf8 = unsafe {
        copied(pg_sys::pg_server_to_any(bytes.as_ptr().cast::<c_char>(), bytes.len() as i32, UTF8))
    };
    Cow::Owned(String::from_utf8(utf8).unwrap_or_default())
}

/// Returns a text in the server's encoding as UTF-8, without raising an error. What can't be
/// converted is replaced by U+FFFD.
pub fn to_utf8_lossy(bytes: &[u8]) -> Cow<'_, str> {
    if is_native(bytes) {
        return String::from_utf8_lossy(bytes);
    }
    let replaced = Conversion::between(of_server(), UTF8)
        .map(|c| c.replacing(bytes, |_, utf8| utf8.extend_from_slice("\u{fffd}".as_bytes())));
    Cow::Owned(String::from_utf8(replaced.unwrap_or_default()).unwrap_or_default())
}

/// Returns a Rust text in the server's encoding, without raising an error. A character that the
/// encoding does not have becomes "?".
pub fn to_server_lossy(text: &str) -> Cow<'_, [u8]> {
    if is_native(text.as_bytes()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let replaced = Conversion::between(UTF8, of_server())
        .map(|c| c.replacing(text.as_bytes(), |_, server| server.push(b'?')));
    Cow::Owned(replaced.unwrap_or_default())
}

/// Returns the text of an argument as UTF-8. Raises 22023 if the text can't be converted to UTF-8.
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

/// Returns a name that an argument gives, for shared memory and tables. Raises 22023 for a name
/// that this database can't have there. In UTF-8 any text is a name. Without an encoding
/// (SQL_ASCII), a name has to be UTF-8. In any other encoding, a name has to be ASCII.
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
            "This database's encoding is {}: names of members, nodes, queues and prefixes have to be ASCII \
             here, or the database UTF8.",
            self::name()
        ),
    ))
}

/// Returns whether a prefix in this database can have this name. The name comes from the catalogs,
/// through `to_utf8_lossy`.
pub fn is_name(name: &str) -> bool {
    match of_server() {
        UTF8 => true,
        SQL_ASCII => !name.contains('\u{fffd}'),
        _ => name.is_ascii(),
    }
}

/// Returns a message in a form that Postgres can take, which expects messages in the server's
/// encoding. Where the server's encoding or the client's encoding may read the bytes of a character
/// otherwise, the character is replaced by an escape.
pub fn shown(message: &str) -> String {
    // SAFETY: the function reads a global.
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

/// Adds a character as JSON escapes it, with `backslash` in place of the backslash.
fn push_escape(to: &mut Vec<u8>, c: char, backslash: &str) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        to.extend_from_slice(format!("{backslash}u{unit:04x}").as_bytes());
    }
}

fn of_server() -> i32 {
    // SAFETY: the function reads a global.
    unsafe { pg_sys::GetDatabaseEncoding() }
}

fn name() -> Cow<'static, str> {
    of_database().to_string_lossy()
}

/// A conversion from one encoding to another.
pub struct Conversion {
    procedure: pg_sys::Oid,
    from: i32,
    to: i32,
}

/// How many bytes are converted at a time, and how many bytes one such byte may become at most.
const PIECE: usize = 16 * 1024;
const GROWTH: usize = 4;

/// How many bytes a character has at most, in any encoding.
const MAX_CHARACTER: usize = 4;

impl Conversion {
    /// Returns the conversion between two encodings. Needs a transaction. `None`: there is nothing
    /// to convert, or Postgres has no such conversion.
    fn between(from: i32, to: i32) -> Option<Self> {
        if from == to || from == SQL_ASCII || to == SQL_ASCII {
            return None;
        }
        // SAFETY: the function looks up a catalog row.
        let procedure = unsafe { pg_sys::FindDefaultConversionProc(from, to) };
        (procedure != pg_sys::InvalidOid).then_some(Self { procedure, from, to })
    }

    /// Converts the beginning of `bytes`, as far as the conversion succeeds, and returns how many
    /// bytes were converted. The result is at the beginning of `converted`, and ends with a zero.
    fn some(&self, bytes: &[u8], converted: &mut [u8; PIECE * GROWTH + 1]) -> usize {
        let len = bytes.len().min(PIECE);
        converted[0] = 0;
        // SAFETY: the conversion reads `len` bytes, does not change them, and writes into a buffer
        // of the given size. The conversion raises no error for bytes that it can't convert.
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

    /// Calls `good` with each piece that can be converted and with the result, and `bad` with each
    /// character that can't be converted.
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
                // Close to the piece's end, the conversion ended between two characters, or inside
                // a character that the next piece contains whole. Anywhere else it ended at a
                // character that can't be converted.
                if rest.is_empty() || done + MAX_CHARACTER > PIECE {
                    continue;
                }
            }
            // SAFETY: the function reads no more than the first two bytes. The array has three, so
            // the second byte is a zero at worst.
            let len = unsafe {
                let first = [rest[0], rest.get(1).copied().unwrap_or(0), 0];
                pg_sys::pg_encoding_mblen(self.from, first.as_ptr().cast::<c_char>())
            };
            let (character, after) = rest.split_at((len.max(1) as usize).min(rest.len()));
            bad(state, character);
            rest = after;
        }
    }

    /// Returns all of `bytes`, converted. For each character that can't be converted, `replace`
    /// adds a replacement.
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

    /// Returns JSON in its present encoding, with an escape for each character that can't be
    /// converted.
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

/// What may be sent to a session's client.
pub enum Client {
    /// Every text of the database.
    All,
    /// Every text that this conversion can convert.
    Converted(Conversion),
    /// From a database without an encoding: every text that is valid in this encoding.
    Right(i32),
}

impl Client {
    /// Returns what may be sent to this session's client. Needs a transaction.
    pub fn of_session() -> Self {
        // SAFETY: the function reads a global.
        let client = unsafe { pg_sys::pg_get_client_encoding() };
        if of_server() == SQL_ASCII && client != SQL_ASCII {
            return Self::Right(client);
        }
        Conversion::between(of_server(), client).map_or(Self::All, Self::Converted)
    }

    /// Returns JSON in the server's encoding that may be sent to the client. A character that the
    /// client's encoding does not have becomes a backslash with the character's number in UTF-16,
    /// as JSON escapes a character. (The function escapes the value of a jsonb, so the client reads
    /// the backslash itself: the escape does not stand for the character.)
    pub fn json(&self, json: Vec<u8>) -> Vec<u8> {
        match self {
            Self::All => json,
            _ if json.is_ascii() => json,
            Self::Converted(to_client) => to_client.escaping(&json),
            Self::Right(encoding) => replacing_wrong(*encoding, json),
        }
    }
}

/// Returns a text in an unknown encoding as a text that is valid in this encoding. Invalid bytes
/// are replaced.
fn replacing_wrong(encoding: i32, mut text: Vec<u8>) -> Vec<u8> {
    // SAFETY: the function reads `text.len()` bytes.
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

/// Returns a copy of a converted text, and frees the text.
///
/// # Safety
/// `converted` was allocated by a conversion, and nothing else uses it.
unsafe fn copied(converted: *mut c_char) -> Vec<u8> {
    // SAFETY: the caller promises the result of a conversion, which ends with a zero.
    unsafe {
        let bytes = copy(CStr::from_ptr(converted).to_bytes());
        pg_sys::pfree(converted.cast());
        bytes
    }
}

/// Returns a text in the server's encoding as UTF-8, in Rust's memory. Raises 22021 as `to_utf8`
/// does, and 53200 if there is no memory.
pub fn to_string(bytes: &[u8]) -> String {
    match to_utf8(bytes) {
        Cow::Borrowed(text) => String::from_utf8(copy(text.as_bytes())).unwrap_or_default(),
        Cow::Owned(text) => text,
    }
}

/// Returns a copy. Raises 53200 if there is no memory. (A value of SQL may be large, and a failed
/// allocation by Rust would end the server.)
fn copy(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::new();
    extend(&mut copy, bytes);
    copy
}

/// Adds bytes. Raises 53200 if there is no memory for them.
fn extend(all: &mut Vec<u8>, bytes: &[u8]) {
    if all.try_reserve(bytes.len()).is_err() {
        ErrorReport::from(Error::OutOfMemory).report(PgLogLevel::ERROR);
    }
    all.extend_from_slice(bytes);
}
