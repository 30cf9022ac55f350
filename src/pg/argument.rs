//! Arguments of SQL functions that may have any size: each argument is measured before it is read.
//!
//! When an allocation by Rust fails, Rust ends the process, and with the process the whole server.
//! Postgres would raise 53200. So the size is tested before the value is copied. The test reads the
//! value as the caller passes it, which may be compressed or stored out of line. A value that
//! passes the test is small, or is copied in such a way that a lack of memory is an ERROR.
//!
//! A value of these types must not be kept after the call to which it is an argument.

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::datum::{Array, Datum, UnboxDatum};
use pgrx::nullable::Nullable;
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use super::datum::{Parameter, RawJsonb, Text, size, sql_name};
use super::encoding;
use crate::error::{Error, TextValue, given};

/// An argument of type `text`.
#[derive(Clone, Copy, Debug)]
pub struct TextArgument(pg_sys::Datum);

/// An argument of type `jsonb`.
#[derive(Clone, Copy, Debug)]
pub struct JsonbArgument(pg_sys::Datum);

/// An argument of type `text[]`.
#[derive(Clone, Copy, Debug)]
pub struct TextArray(pg_sys::Datum);

/// An argument of type `jsonb[]`.
#[derive(Clone, Copy, Debug)]
pub struct JsonbArray(pg_sys::Datum);

/// Returns whether a call leaves out the argument in this place (counted from 0), so that the
/// argument has its default. The parser inserts the default. The only mark of an inserted default
/// is that it has no location in the statement's text. A constant that the planner has computed has
/// no location either, and counts as left out. Returns false if the call's expression is not known.
pub fn is_left_out(fcinfo: pg_sys::FunctionCallInfo, place: usize) -> bool {
    // SAFETY: the expression of a call is null or a node, and so is each of the call's arguments.
    // The tag of a node says what the node is.
    unsafe {
        let call = (*(*fcinfo).flinfo).fn_expr;
        if call.is_null() || (*call).type_ != pg_sys::NodeTag::T_FuncExpr {
            return false;
        }
        let arguments = pgrx::PgList::<pg_sys::Node>::from_pg((*call.cast::<pg_sys::FuncExpr>()).args);
        arguments.get_ptr(place).is_some_and(|argument| {
            (*argument).type_ == pg_sys::NodeTag::T_Const && (*argument.cast::<pg_sys::Const>()).location < 0
        })
    }
}

/// Returns the argument in a place of a call, counted from 0. The called function is one that this
/// library declares. `None`: the argument is null.
pub fn at<T: FromDatum>(fcinfo: pg_sys::FunctionCallInfo, place: usize) -> Option<T> {
    // SAFETY: `fcinfo` is the struct of the running call, and the function is declared with an
    // argument of type `T` in this place.
    unsafe { pgrx::fcinfo::pg_getarg(fcinfo, place) }
}

/// An argument of type `name`, as UTF-8. Bytes that are not valid text are replaced.
#[derive(Clone, Debug)]
pub struct NameArgument(pub String);

impl FromDatum for NameArgument {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller promises a name, which ends with a zero within its 64 bytes.
        let name = unsafe { std::ffi::CStr::from_ptr(datum.cast_mut_ptr()) };
        Some(Self(encoding::to_utf8_lossy(name.to_bytes()).into_owned()))
    }
}

impl TextArgument {
    /// Raises 22023 if the text has more than `most` bytes.
    fn measure(&self, argument: &'static str, most: usize) -> Result<(), Error> {
        let bytes = self.bytes();
        if bytes > most { Err(Error::too_long(argument, bytes, most)) } else { Ok(()) }
    }

    /// Returns the text, converted from the server's encoding. Raises 22023 if the text has more
    /// than `most` bytes in that encoding, or can't be converted to UTF-8.
    pub fn text(&self, argument: &'static str, most: usize) -> Result<Text, Error> {
        self.measure(argument, most)?;
        Ok(Text(encoding::argument(argument, self.content())?.into_owned()))
    }

    /// Returns the text, which has to be a name that shared memory and tables of this database can
    /// hold. Raises 22023 as `with_text` does.
    pub fn name(&self, argument: &'static str, most: usize) -> Result<Text, Error> {
        self.with_text(argument, most, |text| Text(text.to_owned()))
    }

    /// Returns a text of this library's own, as if it were an argument. The text is ASCII.
    pub fn made(text: &str) -> Option<Self> {
        super::datum::text(text).map(Self)
    }

    /// Returns the text as the value of a statement's parameter.
    pub fn parameter(&self) -> Parameter {
        Parameter::typed(pg_sys::TEXTOID, Some(self.0))
    }

    /// Returns a copy of the text in the server's encoding, which need not be UTF-8. `Err` is the
    /// length of a text of more than `most` bytes.
    pub fn in_server_encoding(&self, most: usize) -> Result<Vec<u8>, usize> {
        let bytes = self.bytes();
        if bytes > most { Err(bytes) } else { Ok(self.content().to_vec()) }
    }

    /// Returns the bytes of the text, uncompressed, in the server's encoding. The caller has
    /// measured the text.
    fn content(&self) -> &[u8] {
        // SAFETY: the value is a text that is not null, as every value of this type is. The
        // unpacked copy lives as long as the call.
        unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(self.0.cast_mut_ptr())) }
    }
}

impl TextValue for TextArgument {
    /// Returns what `read` returns for the text. Raises 22023 if the text has more than `most`
    /// bytes, or is not a name that this database can hold (`encoding::name_argument`).
    fn with_text<R>(
        &self,
        argument: &'static str,
        most: usize,
        read: impl FnOnce(&str) -> R,
    ) -> Result<R, Error> {
        self.measure(argument, most)?;
        Ok(read(encoding::name_argument(argument, self.content())?))
    }
}

impl JsonbArgument {
    /// Returns the whole value, uncompressed. Postgres raises 53200 if there is no memory for the
    /// value.
    pub fn open(&self) -> Option<RawJsonb> {
        // SAFETY: the value is a jsonb that is not null.
        unsafe { RawJsonb::from_datum(self.0, false) }
    }
}

impl From<RawJsonb> for JsonbArgument {
    fn from(value: RawJsonb) -> Self {
        Self(value.as_datum())
    }
}

impl TextArray {
    /// Returns an array of these elements, as if it were an argument. `None` is null.
    pub fn made(elements: Vec<Option<TextArgument>>) -> Option<Self> {
        elements.into_datum().map(Self)
    }

    /// Returns the elements. Raises 22023 if the array has more than `most` elements, or if an
    /// element has more than `each` bytes or can't be converted to UTF-8. Raises 22004 if an
    /// element is null.
    pub fn texts(&self, argument: &'static str, most: usize, each: usize) -> Result<Vec<Text>, Error> {
        /// How many bytes, at most, an element and an array take in addition to the texts.
        const ELEMENT: usize = 12;
        const ARRAY: usize = 128;
        let refused =
            |what: String| Error::bad(what, format!("At most {most} elements of at most {each} bytes fit."));
        let bytes = self.bytes();
        if bytes > most * (each + ELEMENT) + ARRAY {
            return Err(refused(format!("argument \"{argument}\" has {bytes} bytes")));
        }
        // SAFETY: the value is an array of texts that is not null.
        let array = unsafe { Array::<TextArgument>::from_datum(self.0, false) };
        let array = array.ok_or(Error::NullArgument(argument))?;
        if array.len() > most {
            return Err(refused(format!("{argument} has {} elements", array.len())));
        }
        let element = |element: Option<TextArgument>| {
            let element = given(argument, element)?;
            match element.bytes() {
                bytes if bytes > each => {
                    Err(refused(format!("argument \"{argument}\" has an element of {bytes} bytes")))
                }
                _ => element.text(argument, each),
            }
        };
        array.iter().map(element).collect()
    }
}

impl JsonbArray {
    /// Returns the elements, without reading any of them. Postgres raises 53200 if there is no
    /// memory for the array.
    pub fn open(&self) -> Option<Array<'_, JsonbArgument>> {
        // SAFETY: the value is an array of jsonb that is not null.
        unsafe { Array::from_datum(self.0, false) }
    }
}

macro_rules! argument {
    ($rust:ty, $sql:literal, $oid:expr) => {
        impl $rust {
            /// Returns how many bytes the value has when it is uncompressed. Reads neither a
            /// compressed value nor a value that is stored out of line.
            pub fn bytes(&self) -> usize {
                // SAFETY: the value is an argument, or an element of an argument, of a type of
                // variable length.
                unsafe { size(self.0) }
            }
        }
        impl FromDatum for $rust {
            unsafe fn from_polymorphic_datum(
                datum: pg_sys::Datum,
                is_null: bool,
                _type: pg_sys::Oid,
            ) -> Option<Self> {
                (!is_null && !datum.is_null()).then_some(Self(datum))
            }
        }
        // SAFETY: `unbox` keeps the word and reads nothing.
        unsafe impl UnboxDatum for $rust {
            type As<'src> = Self;
            unsafe fn unbox<'src>(datum: Datum<'src>) -> Self
            where
                Self: 'src,
            {
                // SAFETY: both types are the same word.
                Self(unsafe { std::mem::transmute::<Datum<'src>, pg_sys::Datum>(datum) })
            }
        }
        // SAFETY: the implementation does what pgrx does for its own types of this kind.
        unsafe impl<'fcx> ArgAbi<'fcx> for $rust {
            unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
                // SAFETY: `arg` is an argument of this type.
                unsafe { arg.unbox_arg_using_from_datum() }
                    .unwrap_or_else(|| pgrx::error!("an argument is null"))
            }
            unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
                // SAFETY: `arg` is an argument of this type.
                unsafe { arg.unbox_arg_using_from_datum::<Self>() }.into()
            }
        }
        impl IntoDatum for $rust {
            fn into_datum(self) -> Option<pg_sys::Datum> {
                Some(self.0)
            }
            fn type_oid() -> pg_sys::Oid {
                $oid
            }
        }
        sql_name!($rust, $sql);
    };
}

argument!(TextArgument, "text", pg_sys::TEXTOID);
argument!(JsonbArgument, "jsonb", pg_sys::JSONBOID);
argument!(TextArray, "text[]", pg_sys::TEXTARRAYOID);
argument!(JsonbArray, "jsonb[]", pg_sys::JSONBARRAYOID);
