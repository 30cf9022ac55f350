//! Members and leaders: the SQL functions. What leading means is in `logic::peer`, who elects in
//! `worker::election`.
//!
//! Joining, renewing, resigning and leaving act at once and survive a rollback, for they are about a process,
//! not about data. A fence is about data: it holds until its transaction ends.

pub mod fence;
pub mod leaders;
pub mod members;

use crate::error::{self, Error};
use crate::logic::peer::Electorate;
use crate::pg::session;

fn electorate(name: Option<&str>, prefix: Option<&str>) -> Result<Electorate, Error> {
    Ok(Electorate {
        database: session::database(),
        prefix: error::name("prefix", prefix)?,
        name: error::name("name", name)?,
    })
}
