//! Members and leaders: the SQL functions. What leading means is in `logic::peer`, who elects in
//! `worker::election`.
//!
//! Joining, renewing, resigning and leaving act at once and survive a rollback, for they are about a process,
//! not about data. A fence is about data: it holds until its transaction ends.

pub mod fence;
pub mod leaders;
pub mod members;

use crate::error::{self, Error, TextValue};
use crate::logic::peer::Electorate;
use crate::pg::session;

fn electorate(name: Option<impl TextValue>, prefix: Option<impl TextValue>) -> Result<Electorate, Error> {
    Ok(Electorate {
        database: session::database(),
        prefix: error::name("prefix", prefix)?,
        name: error::name("name", name)?,
    })
}
