//! SQL values as Rust types, for every server encoding. (pgrx's own types are for databases in
//! UTF-8.) Arguments of functions are read through `argument`.

use std::ffi::CStr;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::ptr::{NonNull, null_mut};

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::{Datum, UnboxDatum};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use super::encoding::{self, to_server, to_server_lossy, to_string, to_utf8, to_utf8_lossy};
use crate::error::Error;

/// Returns how many bytes a value has when it is whole, without its header. The value may be
/// compressed, or still be stored in a table.
///
/// # Safety
/// `datum` is of a type of variable length, and is not null.
pub unsafe fn size(datum: pg_sys::Datum) -> usize {
    use pgrx::varlena::{varatt_is_1b_e, varatt_is_4b_c, varsize_any_exhdr};
    let value = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: the caller promises a value of variable length, and only headers are read.
    unsafe {
        if varatt_is_1b_e(value) || varatt_is_4b_c(value) {
            return (pg_sys::toast_raw_datum_size(datum) as usize).saturating_sub(pg_sys::VARHDRSZ);
        }
        varsize_any_exhdr(value) // most values are whole, and this line calls no C function
    }
}

/// A `text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Returns the text as a `text`. Raises 22P05 for a character that the server's encoding does not
/// have.
pub fn text(text: &str) -> Option<pg_sys::Datum> {
    let bytes = to_server(text);
    // SAFETY: the bytes are copied.
    unsafe { Some(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32).into()) }
}

/// Returns the value of a `double precision`.
pub fn float8(datum: pg_sys::Datum) -> f64 {
    f64::from_bits(datum.value() as u64)
}

impl FromDatum for Text {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller promises that `datum` is a text.
        let bytes =
            unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr())) };
        Some(Self(to_string(bytes)))
    }
}

impl IntoDatum for Text {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        text(&self.0)
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

/// A `text` for people to read. A character that the server's encoding does not have is replaced,
/// in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown(pub String);

/// Returns the text as a `text` for people to read. Raises nothing: a character that the server's
/// encoding does not have becomes "?".
pub fn shown(text: &str) -> Option<pg_sys::Datum> {
    let bytes = to_server_lossy(text);
    // SAFETY: the bytes are copied.
    unsafe { Some(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32).into()) }
}

impl FromDatum for Shown {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller promises that `datum` is a text.
        let bytes =
            unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr())) };
        Some(Self(to_utf8_lossy(bytes).into_owned()))
    }
}

impl IntoDatum for Shown {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        shown(&self.0)
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

// SAFETY: `unbox` copies the text.
unsafe impl UnboxDatum for Shown {
    type As<'src> = Self;
    unsafe fn unbox<'src>(datum: Datum<'src>) -> Self
    where
        Self: 'src,
    {
        // SAFETY: both types are the same word, which is a text that is not null.
        unsafe {
            let datum = std::mem::transmute::<Datum<'src>, pg_sys::Datum>(datum);
            Self::from_datum(datum, false).unwrap_or_default()
        }
    }
}

/// A `jsonb` that is given as JSON text in the server's encoding.
#[derive(Clone, Debug)]
pub struct ServerJson(pub Vec<u8>);

impl IntoDatum for ServerJson {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        parse(&self.0)
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

/// A `jsonb` as Postgres stores it, in Rust's memory, so that it outlives a transaction.
#[derive(Clone, Debug, Default)]
pub struct StoredJson(Vec<u8>);

impl StoredJson {
    /// Makes the value from JSON text in the server's encoding. Raises what `parse` raises. `Err` is 53200.
    pub fn of(json: &[u8]) -> Result<Self, Error> {
        parse(json).and_then(Self::copy).ok_or(Error::OutOfMemory)
    }

    /// Copies a jsonb. `None`: there is no memory.
    pub fn copy(value: pg_sys::Datum) -> Option<Self> {
        let mut stored = Vec::new();
        // SAFETY: the value is a jsonb, by the caller's query. It begins with its length, and is copied
        // before anything frees it.
        let bytes = unsafe {
            let value: *const pg_sys::varlena = pg_sys::pg_detoast_datum(value.cast_mut_ptr());
            std::slice::from_raw_parts(value.cast::<u8>(), pgrx::varsize_any(value))
        };
        stored.try_reserve_exact(bytes.len()).ok()?;
        stored.extend_from_slice(bytes);
        Some(Self(stored))
    }

    /// The value in Postgres' binary form, from its length on.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the value as it can be sent to this session's client. A character that the client's encoding
    /// does not have becomes an escape (`encoding::Client::json`). `Err` is 53200.
    pub fn for_client(self) -> Result<Self, Error> {
        let client = encoding::Client::of_session();
        if matches!(client, encoding::Client::All) || self.0.is_ascii() {
            return Ok(self);
        }
        let value = self.into_datum().ok_or(Error::OutOfMemory)?;
        // SAFETY: the value is a jsonb, and jsonb_out returns a text that ends with a zero.
        let text = unsafe {
            let text = pgrx::direct_function_call_as_datum(pg_sys::jsonb_out, &[Some(value)]);
            let text = text.ok_or(Error::OutOfMemory)?;
            CStr::from_ptr(text.cast_mut_ptr()).to_bytes().to_vec()
        };
        Self::of(&client.json(text))
    }
}

impl IntoDatum for StoredJson {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        // SAFETY: `palloc` never returns null, and there is room for the bytes.
        unsafe {
            let value = pg_sys::palloc(self.0.len()).cast::<u8>();
            value.copy_from_nonoverlapping(self.0.as_ptr(), self.0.len());
            Some(pg_sys::Datum::from(value))
        }
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

/// Returns a `jsonb` from JSON text in the server's encoding. Postgres allocates all the memory,
/// and raises 53200 if there is no memory. Raises the error of Postgres' own parser if the text is
/// not valid JSON.
fn parse(json: &[u8]) -> Option<pg_sys::Datum> {
    // A NUL would end the text early. No JSON that this library writes contains a NUL. An empty
    // text is not valid JSON, so Postgres raises.
    let json = if json.contains(&0) { &[] } else { json };
    // SAFETY: the text ends with a zero and lives as long as the call. `palloc` never returns null.
    unsafe {
        let text = pg_sys::palloc(json.len() + 1).cast::<u8>();
        text.copy_from_nonoverlapping(json.as_ptr(), json.len());
        text.add(json.len()).write(0);
        let datum = pg_sys::Datum::from(text);
        let jsonb = pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(datum)]);
        pg_sys::pfree(text.cast());
        jsonb
    }
}

/// Returns whether an error is of class 22, or says that a database without an encoding does not
/// have a character.
fn is_data_exception(code: PgSqlErrorCode) -> bool {
    let class = |code: PgSqlErrorCode| code as i32 & 0xfff;
    class(code) == class(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION)
        || code == PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
}

/// A `jsonb` as Postgres stores it, in memory of the current context. The value must not be kept
/// beyond the call, or the transaction, in which it was made. The bytes mean the same in every
/// process of this database.
#[derive(Clone, Debug)]
pub struct RawJsonb(NonNull<pg_sys::varlena>);

impl RawJsonb {
    /// Returns the `jsonb` of a JSON text. Raises the error of Postgres' own parser if Postgres
    /// refuses the text, for example because of a NUL or of a number out of range.
    pub fn parse(json: &str) -> Option<Self> {
        let datum = parse(&to_server(json))?;
        // SAFETY: `datum` is a jsonb that was just made.
        unsafe { Self::from_datum(datum, false) }
    }

    /// Returns the `jsonb` of a JSON text, as `parse` does. If Postgres refuses the text, raises
    /// the error that `refused` makes of Postgres' message.
    pub fn parse_or(json: &str, refused: fn(&str) -> Error) -> Option<Self> {
        PgTryBuilder::new(|| AssertUnwindSafe(Self::parse(json)))
            .catch_others(move |error| match error {
                CaughtError::PostgresError(e) if is_data_exception(e.sql_error_code()) => {
                    ErrorReport::from(refused(e.message())).report(PgLogLevel::ERROR);
                    unreachable!("an ERROR does not return")
                }
                other => other.rethrow(),
            })
            .execute()
            .0
    }

    /// Returns the value whose `bytes` are these.
    pub fn copy(bytes: &[u8]) -> Self {
        // SAFETY: the allocation is at least as large as what is copied. `palloc` never returns
        // null.
        unsafe {
            let copy = pg_sys::palloc(bytes.len().max(size_of::<u32>())).cast::<u8>();
            copy.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            Self(NonNull::new_unchecked(copy.cast()))
        }
    }

    /// Returns all bytes of the value, with the length at the beginning.
    pub fn bytes(&self) -> &[u8] {
        let pointer = self.0.as_ptr();
        // SAFETY: the value is detoasted, so the length at the beginning is the length of the whole
        // value.
        unsafe { std::slice::from_raw_parts(pointer.cast(), pgrx::varlena::varsize_any(pointer)) }
    }

    /// Returns the value as a SQL value.
    pub(super) fn as_datum(&self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.0.as_ptr())
    }

    /// Returns the value as Postgres prints it. The caller knows that the printed value is small.
    pub fn text(&self) -> String {
        self.with_text(str::to_owned)
    }

    /// Calls `read` with the value as Postgres prints it, without a copy in Rust's memory, and
    /// returns the result.
    pub fn with_text<R>(&self, read: impl FnOnce(&str) -> R) -> R {
        // SAFETY: the value is a detoasted jsonb. The text is freed after `read` has returned.
        unsafe {
            let jsonb = self.0.as_ptr().cast::<pg_sys::Jsonb>();
            let text = pg_sys::JsonbToCString(null_mut(), &raw mut (*jsonb).root, self.bytes().len() as i32);
            let result = read(&to_utf8(CStr::from_ptr(text).to_bytes()));
            pg_sys::pfree(text.cast());
            result
        }
    }
}

impl FromDatum for RawJsonb {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller promises that `datum` is a jsonb.
        NonNull::new(unsafe { pg_sys::pg_detoast_datum(datum.cast_mut_ptr()) }).map(Self)
    }
}

impl IntoDatum for RawJsonb {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(self.as_datum())
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

/// Declares the SQL name of a Rust type of this library, as the type of an argument and of a
/// result.
macro_rules! sql_name {
    ($rust:ty, $sql:literal) => {
        // SAFETY: `$sql` is the SQL type of the Rust type.
        unsafe impl SqlTranslatable for $rust {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($rust);
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal($sql));
            const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
                Ok(ReturnsRef::One(SqlMappingRef::literal($sql)));
        }
    };
}
pub(super) use sql_name;

macro_rules! sql_result {
    ($rust:ty, $sql:literal) => {
        // SAFETY: the implementation does what pgrx does for its own types of this kind.
        unsafe impl BoxRet for $rust {
            unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
                match self.into_datum() {
                    // SAFETY: `datum` is of the function's result type.
                    Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
                    None => fcinfo.return_null(),
                }
            }
        }
        sql_name!($rust, $sql);
    };
}

sql_result!(Text, "text");
sql_result!(Shown, "text");
sql_result!(RawJsonb, "jsonb");
sql_result!(ServerJson, "jsonb");

/// The value of a parameter of an SQL statement.
#[derive(Clone, Copy)]
pub struct Parameter {
    pub(super) kind: pg_sys::Oid,
    pub(super) datum: Option<pg_sys::Datum>,
}

impl Parameter {
    /// A value of a type of Rust's. `None` is null.
    pub fn of<T: IntoDatum>(value: Option<T>) -> Self {
        Self { kind: T::type_oid(), datum: value.and_then(IntoDatum::into_datum) }
    }

    /// An argument of the running call, of this type. `None` is null.
    pub fn typed(kind: pg_sys::Oid, datum: Option<pg_sys::Datum>) -> Self {
        Self { kind, datum }
    }
}
