//! Parts of a `jsonb`, through Postgres' own functions: numbers and texts stay as they are, and
//! Postgres allocates all memory.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::argument::{JsonbArgument, TextArgument};
use super::datum;

impl JsonbArgument {
    /// Returns what kind of JSON the value is: `object`, `array`, `string`, `number`, `boolean` or `null`.
    pub fn json_kind(self) -> String {
        // SAFETY: the function takes a jsonb and returns a text.
        let kind = unsafe { text_of(pg_sys::jsonb_typeof, &[self.into_datum()]) };
        kind.and_then(|kind| kind.in_server_encoding(16).ok())
            .map_or(String::new(), |kind| String::from_utf8_lossy(&kind).into_owned())
    }

    /// Returns how many elements an array has, or how many keys an object has.
    pub fn json_size(self) -> usize {
        /// The bits of a container's head that are its size.
        const SIZE: u32 = 0x0FFF_FFFF;
        let Some(value) = self.open() else { return 0 };
        let head = value.bytes().get(4..8).and_then(|head| head.try_into().ok());
        head.map_or(0, |head| u32::from_ne_bytes(head) & SIZE) as usize
    }

    /// Returns an element of an array, counted from 0. `None`: there is no such element.
    pub fn json_element(self, place: usize) -> Option<Self> {
        let place = i32::try_from(place).ok()?.into_datum();
        // SAFETY: the function takes a jsonb and an integer, and returns a jsonb.
        unsafe { part_of(pg_sys::jsonb_array_element, &[self.into_datum(), place]) }
    }

    /// Returns the element of an array as text, a string without its quotes. `None`: there is no
    /// such element, or it is null.
    pub fn json_element_text(self, place: usize) -> Option<TextArgument> {
        let place = i32::try_from(place).ok()?.into_datum();
        // SAFETY: the function takes a jsonb and an integer, and returns a text.
        unsafe { text_of(pg_sys::jsonb_array_element_text, &[self.into_datum(), place]) }
    }

    /// Returns the value of a key of an object. `None`: there is no such key.
    pub fn json_field(self, key: &str) -> Option<Self> {
        // SAFETY: the function takes a jsonb and a text, and returns a jsonb.
        unsafe { part_of(pg_sys::jsonb_object_field, &[self.into_datum(), datum::text(key)]) }
    }

    /// Returns the value of a key of an object as text, a string without its quotes. `None`: there is
    /// no such key, or it is null.
    pub fn json_field_text(self, key: &str) -> Option<TextArgument> {
        // SAFETY: the function takes a jsonb and a text, and returns a text.
        unsafe { text_of(pg_sys::jsonb_object_field_text, &[self.into_datum(), datum::text(key)]) }
    }
}

/// A function of Postgres' own that SQL calls.
type Function = unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum;

/// # Safety
/// The function takes these values, and returns a jsonb.
unsafe fn part_of(function: Function, values: &[Option<pg_sys::Datum>]) -> Option<JsonbArgument> {
    // SAFETY: the caller promises that the types are right. A null result is `None`.
    unsafe { JsonbArgument::from_datum(pgrx::direct_function_call_as_datum(function, values)?, false) }
}

/// # Safety
/// The function takes these values, and returns a text.
unsafe fn text_of(function: Function, values: &[Option<pg_sys::Datum>]) -> Option<TextArgument> {
    // SAFETY: the caller promises that the types are right. A null result is `None`.
    unsafe { TextArgument::from_datum(pgrx::direct_function_call_as_datum(function, values)?, false) }
}
