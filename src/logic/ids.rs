//! Types for numbers that must not be mixed up: oids, processes, members and terms.
//!
//! All are plain data: zeroed memory is the value that names nothing.

use std::fmt;

/// Declares types for the numbers of things, each for things of one kind.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($number:ty),)*) => {
        $(
            $(#[$doc])*
            #[repr(transparent)]
            #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub $number);

            impl $name {
                /// The number that names nothing.
                pub const NONE: Self = Self(0);

                /// Returns whether this is the number that names nothing.
                pub fn is_none(self) -> bool {
                    self == Self::NONE
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

ids! {
    /// The oid of a database.
    DatabaseOid(u32),
    /// The oid of a schema, which is a prefix.
    SchemaOid(u32),
    /// The oid of a relation: mostly a table.
    TableOid(u32),
    /// The oid of a role.
    RoleOid(u32),
    /// The id of a member. No id is given twice, over restarts of the server either.
    MemberId(i64),
    /// The term of a leadership: a fencing token, which only rises. `NONE`: the row has no term,
    /// because a foreign node wrote it before the table had its triggers.
    Term(i64),
}

/// A process of this server.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// The process id; 0 for no process.
    pub pid: i32,
    /// The process number, by which its latch is set.
    pub procno: i32,
}

impl Process {
    /// No process.
    pub const NONE: Self = Self { pid: 0, procno: 0 };
}

impl Term {
    /// The term of a row that may have none.
    pub fn of_row(term: Option<Self>) -> Self {
        term.unwrap_or(Self::NONE)
    }
}
