//! `oban_fence`: it refuses the writes of a session that no longer leads.
//!
//! A fence locks the row of the leadership until its transaction ends. Nobody can delete the row
//! until then, so no other node can become leader. A keeper skips the row, and the end of the
//! transaction wakes the keeper (`backend::xact_end`). The DELETE of a foreign node waits. A
//! renewal of the lease does not wait.
//!
//! The access methods of the table lock the row, without SQL. So `oban_fence` itself tests what SQL
//! would test: the right on oban_jobs, a read-only transaction, recovery, parallel mode. No right
//! on oban_peers is needed. Row level security that binds the table's owner is an obstacle
//! (`logic::shape`). Other row level security does not apply.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Names;
use crate::backend::xact_end::{Note, note};
use crate::error::Error;
use crate::logic::counter::Counter;
use crate::logic::ids::{SchemaOid, Term};
use crate::logic::leadership::{RowIdentity, verdict};
use crate::logic::shape;
use crate::pg::argument::TextArgument;
use crate::pg::heap::TableLock;
use crate::pg::{clock, session, time};
use crate::prefix::peers::{PeersTable, Unusable};
use crate::prefix::rights::Right;
use crate::shmem::{Segment, stats};

#[pg_extern(volatile, parallel_unsafe)]
fn oban_fence(
    term: Option<i64>,
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<(), ErrorReport> {
    Ok(fence(term, name, prefix)?)
}

/// Does what `oban_fence` does, for another function of the extension as well. `Err` is 40001 if the
/// term is not held, and otherwise as the comment on oban_fence says.
pub fn fence(
    term: Option<i64>,
    name: Option<TextArgument>,
    prefix: Option<TextArgument>,
) -> Result<(), Error> {
    let names = Names::of(name, prefix)?;
    let electorate = names.electorate(Right::Write)?;
    let name = electorate.name.as_str();
    session::require_writable("fence")?;
    session::prevent_in_parallel_mode(c"oban_fence()");
    let segment = Segment::require()?;
    // oban_term and oban_renew return NULL to a process that does not lead. Such a process holds no
    // term.
    let Some(term) = term else {
        stats::count(Counter::FencesRefused, 1);
        return Err(Error::TermOver { name: name.to_owned(), term: None });
    };
    let term = Term(term);
    let table = open(electorate.schema, names.prefix())?;
    note(Note::Fence); // before the row is locked, so that the end of any such transaction wakes the keeper
    // A leadership that began after a fixed snapshot was taken may have written what this
    // transaction can't see.
    let known = !session::has_fixed_snapshot() || table.is_in_own_snapshot(name, term);
    let row = if known { table.fence(name, term) } else { None };
    // The clocks are read after the row is locked, because from then on the row's lease can only be
    // extended. Shared memory knows how long the lease of a row runs. A row that shared memory does
    // not know is judged by the wall clock.
    let (now, wall) = (clock::now(), time::now());
    let over = segment.leaderships_view(|v| v.is_over(&electorate, term, now));
    let held = row.is_some_and(|row| {
        let row_is = RowIdentity { term, started_at: row.started_at, expires_at: row.expires_at };
        let holds = segment.leaderships_view(|v| v.holds(&electorate, row_is, now));
        holds.unwrap_or(wall < row.expires_at) && verdict::outlives_start(row.boot, segment.boot())
    });
    if !held || over {
        stats::count(Counter::FencesRefused, 1);
        return Err(Error::TermOver { name: name.to_owned(), term: Some(term.0) });
    }
    Ok(())
}

/// Opens the table of leaders of a schema, under a lock that keeps the table's name, owner and
/// shape as they are. `prefix` is the schema's name, for messages. `Err` is 55000: the table is
/// missing, or has an obstacle.
fn open(schema: SchemaOid, prefix: &str) -> Result<PeersTable<'static>, Error> {
    loop {
        match PeersTable::open(schema, TableLock::RowShare, true) {
            Ok(table) => return Ok(table),
            Err(Unusable::Missing) => return Err(Error::NotInstalled(prefix.to_owned())),
            Err(Unusable::Obstacles(obstacles)) => {
                let what = shape::described(&obstacles);
                return Err(Error::NoElections { prefix: prefix.to_owned(), what });
            }
            // The table was replaced while this process waited for the table's lock.
            Err(Unusable::Replaced | Unusable::Locked) => {
                pgrx::check_for_interrupts!();
            }
        }
    }
}
