//! Types for numbers that must not be mixed up: oids, processes, members and terms.
//!
//! All are plain data: zeroed memory is the value that names nothing.

/// Declares a type for the oids of one kind of object.
macro_rules! oid {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $(
            $(#[$doc])*
            #[repr(transparent)]
            #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub u32);

            impl $name {
                /// The oid that no object has.
                pub const NONE: Self = Self(0);

                /// Whether this is the oid that no object has.
                pub fn is_none(self) -> bool {
                    self == Self::NONE
                }
            }

            impl std::fmt::Debug for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    self.0.fmt(f)
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

oid! {
    /// The oid of a database.
    DatabaseOid,
    /// The oid of a schema, which is a prefix.
    SchemaOid,
    /// The oid of a relation: mostly a table.
    TableOid,
    /// The oid of a role.
    RoleOid,
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

/// Declares a type for numbers of one kind.
macro_rules! number {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $(
            $(#[$doc])*
            #[repr(transparent)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub i64);

            impl $name {
                /// The number that names nothing.
                pub const NONE: Self = Self(0);

                /// Whether this is the number that names nothing.
                pub fn is_none(self) -> bool {
                    self == Self::NONE
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

number! {
    /// The id of a member. No id is given twice, over restarts of the server either.
    MemberId,
    /// The term of a leadership: a fencing token, which only rises. `NONE`: the row has no term, because a
    /// foreign node wrote it before the table had its triggers.
    Term,
}

impl Term {
    /// The term of a row that may have none.
    pub fn of_row(term: Option<Self>) -> Self {
        term.unwrap_or(Self::NONE)
    }
}
