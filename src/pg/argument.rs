//! Arguments of SQL functions that may have any size: each is measured before it is read.
//!
//! When Rust gets no memory, it ends its process, and with it the server; Postgres would raise 53200. So the
//! size is tested before the value is copied, on the value as the caller passes it, which may be compressed
//! or stored out of line. A value that is then read is small, or is copied in such a way that a lack of
//! memory is an ERROR.
//!
//! No value of these types may be kept after the call of its function.

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::datum::{Array, Datum, UnboxDatum};
use pgrx::nullable::Nullable;
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

use super::datum::{RawJsonb, Text, size, sql_name};
use super::encoding;
use crate::error::{Error, TextValue, given};

/// A `text`.
#[derive(Clone, Copy, Debug)]
pub struct TextArgument(pg_sys::Datum);

/// A `jsonb`.
#[derive(Clone, Copy, Debug)]
pub struct JsonbArgument(pg_sys::Datum);

/// A `text[]`.
#[derive(Clone, Copy, Debug)]
pub struct TextArray(pg_sys::Datum);

/// A `jsonb[]`.
#[derive(Clone, Copy, Debug)]
pub struct JsonbArray(pg_sys::Datum);

/// Whether a call leaves out the argument in this place, so that it has its default. The parser puts the default there,
/// and nothing marks it but that it has no place in the statement's text. A constant that the planner has computed has
/// none either, and counts as left out. False where nobody knows.
pub fn is_left_out(fcinfo: pg_sys::FunctionCallInfo, place: usize) -> bool {
    // SAFETY: the expression of a call is null or a node, whose tag says what it is, as do those of its arguments.
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

/// The argument in a place of a call, counted from 0, of a function whose declaration is ours. `None`: it is null.
pub fn at<T: FromDatum>(fcinfo: pg_sys::FunctionCallInfo, place: usize) -> Option<T> {
    // SAFETY: the call's own struct, of a function that is declared with an argument of this type there.
    unsafe { pgrx::fcinfo::pg_getarg(fcinfo, place) }
}

impl TextArgument {
    /// 22023 when the text has more than `most` bytes.
    fn measure(&self, argument: &'static str, most: usize) -> Result<(), Error> {
        let bytes = self.bytes();
        if bytes > most { Err(Error::too_long(argument, bytes, most)) } else { Ok(()) }
    }

    /// The text in any encoding of the server. 22023 when it has more than `most` bytes in that encoding.
    pub fn text(&self, argument: &'static str, most: usize) -> Result<Text, Error> {
        self.measure(argument, most)?;
        Ok(Text(encoding::argument(argument, self.content())?.into_owned()))
    }

    /// The text, which has to be a name that shared memory and tables can have, in any function of this database.
    pub fn name(&self, argument: &'static str, most: usize) -> Result<Text, Error> {
        self.with_text(argument, most, |text| Text(text.to_owned()))
    }

    /// The bytes of the text, uncompressed, in the server's encoding: only of one that was measured.
    fn content(&self) -> &[u8] {
        // SAFETY: a text that is not null, as every value of this type. What it is unpacked to lives as long as the call.
        unsafe { pgrx::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(self.0.cast_mut_ptr())) }
    }
}

impl TextValue for TextArgument {
    /// What `read` returns for the text. 22023 for one that is not ASCII, in a database of another encoding than UTF-8.
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
    /// The whole value, uncompressed. Postgres raises when it has no memory for it.
    pub fn open(&self) -> Option<RawJsonb> {
        // SAFETY: a jsonb that is not null.
        unsafe { RawJsonb::from_datum(self.0, false) }
    }
}

impl TextArray {
    /// The elements. 22023 for more than `most` elements, and for an element of more than `each` bytes.
    pub fn texts(&self, argument: &'static str, most: usize, each: usize) -> Result<Vec<Text>, Error> {
        /// The most bytes that an element and an array take beside the texts.
        const ELEMENT: usize = 12;
        const ARRAY: usize = 128;
        let refused =
            |what: String| Error::bad(what, format!("At most {most} elements of at most {each} bytes fit."));
        let bytes = self.bytes();
        if bytes > most * (each + ELEMENT) + ARRAY {
            return Err(refused(format!("argument \"{argument}\" has {bytes} bytes")));
        }
        // SAFETY: an array of texts that is not null.
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
    /// The elements, none of which is read yet. Postgres raises when it has no memory for the array.
    pub fn open(&self) -> Option<Array<'_, JsonbArgument>> {
        // SAFETY: an array of jsonb that is not null.
        unsafe { Array::from_datum(self.0, false) }
    }
}

macro_rules! argument {
    ($rust:ty, $sql:literal) => {
        impl $rust {
            /// How many bytes the value has when it is uncompressed. Reads neither a compressed value nor one
            /// that is stored out of line.
            pub fn bytes(&self) -> usize {
                // SAFETY: an argument, or an element of one, of a type of variable length.
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
        // SAFETY: it keeps the word and reads nothing.
        unsafe impl UnboxDatum for $rust {
            type As<'src> = Self;
            unsafe fn unbox<'src>(datum: Datum<'src>) -> Self
            where
                Self: 'src,
            {
                // SAFETY: the same word.
                Self(unsafe { std::mem::transmute::<Datum<'src>, pg_sys::Datum>(datum) })
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
        sql_name!($rust, $sql);
    };
}

argument!(TextArgument, "text");
argument!(JsonbArgument, "jsonb");
argument!(TextArray, "text[]");
argument!(JsonbArray, "jsonb[]");
