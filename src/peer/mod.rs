//! Members and leaders: the SQL functions. `logic::leadership` has the rules of leaderships, and
//! `worker::election` holds the elections.
//!
//! Joining, renewing, resigning and leaving act at once and survive a rollback, because they are
//! about a process and not about data. A fence is about data: it holds until its transaction ends.

pub mod fence;
pub mod leaders;
pub mod members;

use crate::error::{self, Error, TextValue};
use crate::logic::ids::SchemaOid;
use crate::logic::leadership::{Electorate, MAX_NAME, MAX_PREFIX};
use crate::logic::text::Text;
use crate::pg::{catalog, session};
use crate::prefix::rights::{self, Right};

/// The names that a call gives.
struct Names {
    prefix: Text<MAX_PREFIX>,
    name: Text<MAX_NAME>,
}

impl Names {
    fn of(name: Option<impl TextValue>, prefix: Option<impl TextValue>) -> Result<Self, Error> {
        Ok(Self { prefix: error::name("prefix", prefix)?, name: error::name("name", name)? })
    }

    fn prefix(&self) -> &str {
        self.prefix.as_str()
    }

    /// Returns the electorate that the names stand for, to a role that has this right on the
    /// prefix. `Err` is 3F000 if there is no such schema, 42501 if the role lacks the right, and
    /// 42939 if the schema belongs to Postgres.
    fn electorate(&self, right: Right) -> Result<Electorate, Error> {
        session::see_changes(); // what the names meant before this statement does not count
        Ok(self.of_schema(rights::require(self.prefix(), right)?))
    }

    /// Returns the electorate that the names stand for. `None`: there is no such schema. The caller
    /// needs no right.
    fn known(&self) -> Option<Electorate> {
        session::see_changes();
        catalog::namespace(self.prefix()).map(|schema| self.of_schema(schema))
    }

    fn of_schema(&self, schema: SchemaOid) -> Electorate {
        Electorate { database: session::database(), schema, name: self.name }
    }
}
