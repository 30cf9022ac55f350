//! Arguments and results of SQL functions as Rust has them, whatever the server's encoding is. (pgrx's own
//! types are for databases in UTF-8.)

use std::ffi::CStr;
use std::ops::Deref;
use std::ptr::{NonNull, null_mut};

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::{Datum, UnboxDatum};
use pgrx::nullable::Nullable;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use super::encoding::{to_server, to_utf8};
use crate::error::Error;

/// The longest JSON that is read, in bytes as Postgres prints it: what a wire form may unpack to.
const MAX_TEXT: usize = 16 << 20;

/// A `text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// As a `text`.
pub fn text(text: &str) -> Option<pg_sys::Datum> {
    let bytes = to_server(text);
    // SAFETY: the bytes are copied.
    unsafe { Some(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32).into()) }
}

/// A `jsonb` as Postgres prints it. As a result any JSON text will do.
#[derive(Clone, Debug)]
pub struct Jsonb(pub String);

impl FromDatum for Text {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: a text, says whoever calls this.
        let bytes =
            unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr())) };
        Some(Self(to_utf8(bytes).into_owned()))
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

impl FromDatum for Jsonb {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: a jsonb, says whoever calls this; its text is copied and freed.
        unsafe {
            let text: &CStr = pgrx::direct_function_call(pg_sys::jsonb_out, &[Some(datum)])?;
            // Postgres has memory for it or has raised; Rust would end the server.
            if text.count_bytes() > MAX_TEXT {
                ErrorReport::from(Error::PayloadTooLarge(format!("{} bytes as text", text.count_bytes())))
                    .report(PgLogLevel::ERROR);
            }
            let copy = to_utf8(text.to_bytes()).into_owned();
            pg_sys::pfree(text.as_ptr().cast_mut().cast());
            Some(Self(copy))
        }
    }
}

impl IntoDatum for Jsonb {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        ServerJson(to_server(&self.0).into_owned()).into_datum()
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

/// A `jsonb` that is given as JSON text in the server's encoding.
#[derive(Clone, Debug)]
pub struct ServerJson(pub Vec<u8>);

impl IntoDatum for ServerJson {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let text = super::c_string(self.0);
        // SAFETY: the text lives for the call.
        unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[text.as_c_str().into_datum()]) }
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

/// A `jsonb` as Postgres keeps it, in memory of the current context: not to be kept beyond the call, or the
/// transaction, that it was made in. Its bytes mean the same in every process of this database.
#[derive(Clone, Debug)]
pub struct RawJsonb(NonNull<pg_sys::varlena>);

impl RawJsonb {
    /// From JSON text. Raises what Postgres has against it (a NUL, a number out of range).
    pub fn parse(json: &str) -> Option<Self> {
        let datum = ServerJson(to_server(json).into_owned()).into_datum()?;
        // SAFETY: a jsonb that was just made.
        unsafe { Self::from_datum(datum, false) }
    }

    /// From what `bytes` gave.
    pub fn copy(bytes: &[u8]) -> Self {
        // SAFETY: as much memory as is copied; palloc never returns null.
        unsafe {
            let copy = pg_sys::palloc(bytes.len().max(size_of::<u32>())).cast::<u8>();
            copy.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            Self(NonNull::new_unchecked(copy.cast()))
        }
    }

    /// All of it, with its length in front.
    pub fn bytes(&self) -> &[u8] {
        let pointer = self.0.as_ptr();
        // SAFETY: detoasted, so that the length in front is of the whole.
        unsafe { std::slice::from_raw_parts(pointer.cast(), pgrx::varlena::varsize_any(pointer)) }
    }

    /// As Postgres prints it: only of one whose length as text is known to be small.
    pub fn text(&self) -> String {
        // SAFETY: a jsonb, detoasted; the text is copied and freed.
        unsafe {
            let jsonb = self.0.as_ptr().cast::<pg_sys::Jsonb>();
            let text = pg_sys::JsonbToCString(null_mut(), &raw mut (*jsonb).root, self.bytes().len() as i32);
            let copy = to_utf8(CStr::from_ptr(text).to_bytes()).into_owned();
            pg_sys::pfree(text.cast());
            copy
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
        // SAFETY: a jsonb, says whoever calls this.
        NonNull::new(unsafe { pg_sys::pg_detoast_datum(datum.cast_mut_ptr()) }).map(Self)
    }
}

impl IntoDatum for RawJsonb {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(pg_sys::Datum::from(self.0.as_ptr()))
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

macro_rules! sql_type {
    ($rust:ty, $sql:literal) => {
        // SAFETY: by FromDatum, which copies.
        unsafe impl UnboxDatum for $rust {
            type As<'src> = Self;
            unsafe fn unbox<'src>(datum: Datum<'src>) -> Self
            where
                Self: 'src,
            {
                // SAFETY: a datum of this type that is not null, as the trait promises.
                unsafe { Self::from_datum(std::mem::transmute::<Datum<'src>, pg_sys::Datum>(datum), false) }
                    .unwrap_or_else(|| pgrx::error!("an element is null"))
            }
        }
        // SAFETY: as pgrx does for its own types of this kind.
        unsafe impl<'fcx> ArgAbi<'fcx> for $rust {
            unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
                // SAFETY: an argument of this type.
                unsafe { arg.unbox_arg_using_from_datum() }
                    .unwrap_or_else(|| pgrx::error!("an argument is null"))
            }
            unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
                // SAFETY: as above.
                unsafe { arg.unbox_arg_using_from_datum::<Self>() }.into()
            }
        }
        sql_result!($rust, $sql);
    };
}

macro_rules! sql_result {
    ($rust:ty, $sql:literal) => {
        // SAFETY: as pgrx does for its own types of this kind.
        unsafe impl BoxRet for $rust {
            unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
                match self.into_datum() {
                    // SAFETY: a datum of the function's type.
                    Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
                    None => fcinfo.return_null(),
                }
            }
        }
        // SAFETY: this is its type in SQL.
        unsafe impl SqlTranslatable for $rust {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($rust);
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal($sql));
            const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
                Ok(ReturnsRef::One(SqlMappingRef::literal($sql)));
        }
    };
}

sql_type!(Text, "text");
sql_type!(Jsonb, "jsonb");
sql_type!(RawJsonb, "jsonb");
sql_result!(ServerJson, "jsonb");
