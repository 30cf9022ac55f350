//! Postgres, one concept a file: the smallest wrappers that let the rest of the crate be plain
//! Rust. Every `cfg(pgNN)` of the crate is in this folder. Depends on pgrx, `config`, `error` and
//! `logic`.
#![allow(unsafe_code)]

pub mod acl;
pub mod argument;
pub mod bgworker;
pub mod catalog;
mod catalog_scan;
pub mod catalog_watch;
pub mod clock;
pub mod datum;
pub mod ddl;
pub mod encoding;
pub mod expression;
pub mod heap;
pub mod hooks;
pub mod index;
pub mod json;
pub mod latch;
pub mod lwlock;
pub mod notify;
mod partition;
pub mod procedure;
pub mod result_set;
pub mod row_trigger;
pub mod scan;
pub mod sequence;
pub mod session;
pub mod shape;
pub mod spi;
pub mod statement;
pub mod time;
pub mod transition_table;
pub mod trigger;
pub mod tuple;
pub mod user_lock;
pub mod value_text;
pub mod xact;

use crate::logic::ids::{DatabaseOid, RoleOid, SchemaOid, TableOid};

/// Converts the typed oids of `logic` to those of Postgres and back.
macro_rules! convert_oids {
    ($($name:ident),*) => {
        $(
            impl From<$name> for pgrx::pg_sys::Oid {
                fn from(oid: $name) -> Self {
                    Self::from(oid.0)
                }
            }

            impl From<pgrx::pg_sys::Oid> for $name {
                fn from(oid: pgrx::pg_sys::Oid) -> Self {
                    Self(oid.to_u32())
                }
            }
        )*
    };
}

convert_oids!(DatabaseOid, RoleOid, SchemaOid, TableOid);

/// Returns a C string for Postgres. Text from SQL has no NUL bytes. A string with a NUL becomes
/// empty, because a name with a NUL would name nothing.
fn c_string(s: impl Into<Vec<u8>>) -> std::ffi::CString {
    std::ffi::CString::new(s).unwrap_or_default()
}

/// Returns a Rust name as a C string in the server's encoding. Raises 22P05 for a character that
/// the encoding does not have.
fn c_name(name: &str) -> std::ffi::CString {
    c_string(encoding::to_server(name))
}

/// Returns the i-th attribute of a tuple descriptor, counting from 0.
///
/// # Safety
/// `descriptor` is valid and has more than `i` attributes.
#[cfg(not(feature = "pg18"))]
unsafe fn catalog_attribute(
    descriptor: pgrx::pg_sys::TupleDesc,
    i: i32,
) -> *const pgrx::pg_sys::FormData_pg_attribute {
    // SAFETY: the caller promises a descriptor with more than `i` attributes.
    unsafe { (*descriptor).attrs.as_ptr().add(i as usize) }
}

/// Returns the i-th attribute of a tuple descriptor, counting from 0. Since Postgres 18 the
/// attributes follow the compact ones.
///
/// # Safety
/// `descriptor` is valid and has more than `i` attributes.
#[cfg(feature = "pg18")]
unsafe fn catalog_attribute(
    descriptor: pgrx::pg_sys::TupleDesc,
    i: i32,
) -> *const pgrx::pg_sys::FormData_pg_attribute {
    // SAFETY: the caller promises a descriptor with more than `i` attributes.
    unsafe {
        let compact = (*descriptor).compact_attrs.as_ptr().add((*descriptor).natts as usize);
        compact.cast::<pgrx::pg_sys::FormData_pg_attribute>().add(i as usize)
    }
}
