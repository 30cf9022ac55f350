//! Values of any type as text, as `value::text` in SQL has it. No user's function runs: a cast to
//! text that is not Postgres' own gives way to the type's output function, and only superusers
//! write such functions.

use pgrx::pg_sys;

use super::tuple::{Column, Tuple};

/// How to make text of a column's values.
#[derive(Clone, Copy)]
pub struct ValueText {
    column: Column,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    /// The value is stored as a text is.
    Stored,
    /// By one of Postgres' own functions, from the value to a text.
    Cast { function: pg_sys::Oid, is_varlena: bool },
    /// By the type's output function.
    Output { function: pg_sys::Oid, is_varlena: bool },
}

/// How many times as many bytes a value may have as its text is allowed to have. Most values are
/// smaller than their text, or a few times as large. A value that is larger than this is not turned
/// into text at all, because its text would not fit into memory either.
const MAX_RATIO: usize = 8;

impl ValueText {
    /// Returns how to make text of a column's values.
    pub fn of(column: Column) -> Self {
        // SAFETY: the functions look up the type in caches.
        unsafe {
            let base = pg_sys::getBaseType(column.type_oid);
            let mut function = pg_sys::InvalidOid;
            let pathway = pg_sys::find_coercion_pathway(
                pg_sys::TEXTOID,
                base,
                pg_sys::CoercionContext::COERCION_EXPLICIT,
                &raw mut function,
            );
            let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(base, &raw mut output, &raw mut is_varlena);
            // The owner of a type may have made a cast of it, by a function that does not expect to
            // be called so. Only a superuser can make a cast of one of Postgres' types, or one
            // without a function.
            let is_own = [base, function].iter().all(|oid| oid.to_u32() < pg_sys::FirstNormalObjectId);
            let way = match pathway {
                pg_sys::CoercionPathType::COERCION_PATH_RELABELTYPE => Way::Stored,
                pg_sys::CoercionPathType::COERCION_PATH_FUNC if is_own => Way::Cast { function, is_varlena },
                _ => Way::Output { function: output, is_varlena },
            };
            Self { column, way }
        }
    }

    /// Calls `read` with the text of the row's value, in the server's encoding, and returns the
    /// result. `None`: the text has more than `most` bytes, or the value is NULL.
    pub fn with<R>(self, row: &Tuple, most: usize, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let Self { column, way } = self;
        if let Way::Cast { is_varlena: true, .. } | Way::Output { is_varlena: true, .. } = way {
            // SAFETY: a value of variable length has a header with its length.
            let size = unsafe { super::datum::size(row.datum(column)?) };
            if size > most * MAX_RATIO {
                return None;
            }
        }
        match way {
            Way::Stored => row.with_short_text(column, most, read),
            Way::Cast { function, .. } => {
                let datum = row.datum(column)?;
                // SAFETY: the function is a cast of Postgres' own from the column's type to text.
                unsafe {
                    let collation = pg_sys::DEFAULT_COLLATION_OID;
                    let text = pg_sys::OidFunctionCall1Coll(function, collation, datum);
                    let text = text.cast_mut_ptr::<pg_sys::varlena>();
                    let bytes = pgrx::varlena_to_byte_slice(text);
                    let result = (bytes.len() <= most).then(|| read(bytes));
                    pg_sys::pfree(text.cast());
                    result
                }
            }
            Way::Output { function, .. } => {
                let datum = row.datum(column)?;
                // SAFETY: the function is the output function of the column's type.
                unsafe {
                    let text = pg_sys::OidOutputFunctionCall(function, datum);
                    let bytes = std::ffi::CStr::from_ptr(text).to_bytes();
                    let result = (bytes.len() <= most).then(|| read(bytes));
                    pg_sys::pfree(text.cast());
                    result
                }
            }
        }
    }

    /// Returns whether the row's value is NULL.
    pub fn is_null(self, row: &Tuple) -> bool {
        row.datum(self.column).is_none()
    }
}
