//! A leader's writes, refused once it leads no more.
//!
//! A fence locks the row of the leadership until its transaction ends, so that nobody can delete it, and so
//! nobody else can lead: neither a keeper, which skips such a row and is woken by the end of the transaction
//! (`shmem::at_end`), nor a foreign node, whose DELETE waits. A renewal of the lease does not wait.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::electorate;
use crate::error::{Error, given};
use crate::logic::peer::rows;
use crate::pg::acl::{self, Right};
use crate::pg::{catalog, session, spi, time};
use crate::shmem;
use crate::shmem::at_end::{Note, note};
use crate::shmem::rings::{self, Counter};

#[pg_extern(volatile, parallel_unsafe)]
fn oban_fence(
    term: Option<i64>,
    name: default!(Option<&str>, "'Oban'"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<(), ErrorReport> {
    let term = given("term", term)?;
    let electorate = electorate(name, prefix)?;
    let (name, prefix) = (electorate.name.as_str(), electorate.prefix.as_str());
    acl::require(prefix, Right::Write)?;
    session::require_writable("fence")?;
    let boot = shmem::boot()?;
    let not_installed = || Error::NotInstalled(prefix.to_owned());
    let named = || catalog::peers_table(prefix).filter(|t| t.installed).ok_or_else(not_installed);

    let mut table = named()?;
    loop {
        catalog::lock_for_row_locks(table.oid);
        // Not one that was replaced while its lock was waited for.
        let now = named()?;
        if now.oid == table.oid {
            table = now;
            break;
        }
        table = now;
    }
    note(Note::Fence); // first: whatever happens from here on, a keeper that waits for it is woken
    let row =
        spi::as_owner(table.elector, || spi::lock_leader(&spi::qualified(prefix, "oban_peers"), name, term));
    // Judged once the row is locked: from here on it can only become longer.
    let now = time::now();
    let over = shmem::peers_view(|v| v.is_over(&electorate, term, now))?;
    let held = row.is_some_and(|(expires_at, row_boot)| {
        expires_at.is_some_and(|ends| now < ends) && rows::outlives_start(row_boot, boot)
    });
    if !held || over {
        rings::count(Counter::FencesRefused, 1);
        return Err(Error::TermOver { name: name.to_owned(), term }.into());
    }
    Ok(())
}
