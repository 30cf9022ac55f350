//! `oban_rescue`: the orphans that `oban_orphans` finds go back to their queues.
//!
//! The statements are SQL with the caller's rights, so triggers and policies of the table apply as
//! they do to the caller's own UPDATE. A job is taken only as it was when it was found to be an
//! orphan: the attempt, its time and its process are compared again once the row is locked. So two
//! rescues at a time take each job once, and a job that was fetched again meanwhile stays.

use std::collections::BTreeSet;

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::bus::wakeups;
use crate::config;
use crate::error::{self, given};
use crate::gossip::orphans::{OWN_COLUMNS, Search};
use crate::logic::leadership::MAX_NAME;
use crate::logic::orphans::Reason;
use crate::logic::text::Text;
use crate::logic::wire;
use crate::peer::fence;
use crate::pg::argument::{self, TextArgument};
use crate::pg::result_set::ResultSet;
use crate::pg::{session, spi};
use crate::prefix::dialect::{self, Dialect, UTC};
use crate::prefix::rights::Right;

/// The attempt of a job, as a text that no other attempt of the job has. The text is ASCII in every
/// encoding.
const ATTEMPT: &str = "pg_catalog.encode(pg_catalog.convert_to(pg_catalog.jsonb_build_array(\
    j.attempt, j.attempted_at, j.attempted_by)::pg_catalog.text, pg_catalog.getdatabaseencoding()), 'hex')";

/// The declaration of oban_rescue is in sql/55_orphans.sql.
#[pg_extern(sql = false)]
pub fn oban_rescue(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let text = |place| argument::at::<TextArgument>(fcinfo, place);
    let search = Search::of(text(0), argument::at::<Interval>(fcinfo, 1))?;
    let include_unknown = given("include_unknown", argument::at::<bool>(fcinfo, 4))?;
    let term = argument::at::<i64>(fcinfo, 2);
    let _: Text<MAX_NAME> = error::name("name", text(3))?;
    let search = search.allowed(Right::Signal, "rescue jobs")?;
    session::require_writable("rescue jobs")?;
    // The fence comes before what the leader looks at, so that no later leader has acted on it.
    if term.is_some() {
        fence::fence(term, text(3), text(0))?;
    }
    let mut rows = ResultSet::of(fcinfo);
    let (mut ids, mut attempts) = (Vec::new(), Vec::new());
    search.each_orphan(&format!(", {ATTEMPT}"), |row, reason, _| {
        if reason == Reason::Unknown && !include_unknown {
            return;
        }
        if let (Some(id), Some(attempt)) = (row.datum(0), row.datum(OWN_COLUMNS)) {
            ids.push(id.value() as i64);
            attempts.push(String::from_utf8_lossy(row.bytes(attempt)).into_owned());
        }
    })?;
    if ids.is_empty() {
        return Ok(());
    }
    let (rescue, discard) = statements(&search.jobs_table(), Dialect::of(search.schema));
    spi::update(&discard, ids.clone(), attempts.clone(), |row| rows.push([row.datum(0), row.datum(1)]));
    let mut queues = BTreeSet::new();
    spi::update(&rescue, ids, attempts, |row| {
        rows.push([row.datum(0), row.datum(1)]);
        let queue = row.datum(2).map(|queue| row.bytes(queue));
        queues.extend(queue.filter(|queue| queue.len() <= wire::MAX_PAYLOAD).map(<[u8]>::to_vec));
    });
    search.confirm_schema()?;
    // The table may not have the triggers of the extension. A wake-up of a trigger is equal, and is merged
    // with this one.
    if config::wakeups() {
        queues.iter().for_each(|queue| wakeups::wake(search.schema, queue));
    }
    Ok(())
}

/// Returns the statements that make jobs available again, and that discard those without an attempt
/// left. Both do what Oban's own rescue does: Oban for Python also counts the rescues in `meta`. A
/// job that is discarded also gets an error, in the form in which Oban records errors.
fn statements(table: &str, dialect: Dialect) -> (String, String) {
    let changed = |condition: &str, set: &str| {
        format!(
            "WITH rescued AS MATERIALIZED (
                SELECT j.id FROM {table} j
                JOIN ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS orphan (id, attempt)
                    ON j.id OPERATOR(pg_catalog.=) orphan.id
                WHERE j.state OPERATOR(pg_catalog.=) 'executing'
                    AND {ATTEMPT} OPERATOR(pg_catalog.=) orphan.attempt
                    AND j.attempt OPERATOR(pg_catalog.{condition}) j.max_attempts
                FOR UPDATE OF j SKIP LOCKED
            )
            UPDATE {table} j SET {set} FROM rescued
            WHERE j.id OPERATOR(pg_catalog.=) rescued.id
            RETURNING j.id::pg_catalog.int8, j.state::pg_catalog.text, j.queue::pg_catalog.text"
        )
    };
    let rescued = if dialect == Dialect::Python { dialect::count_in_meta("rescued") } else { String::new() };
    let recorded = dialect.add_error(
        "pg_catalog.concat('oban_rescue: attempt ', j.attempt, ', the last one, has lost its process (node ',
            j.attempted_by[1], ')')",
    );
    (
        changed("<", &format!("state = 'available'{rescued}")),
        changed(">=", &format!("state = 'discarded', discarded_at = {UTC}{recorded}")),
    )
}
