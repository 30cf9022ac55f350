//! `oban_orphans`: the executing jobs of a prefix that no live process runs. The rules are in
//! `logic::orphans`.
//!
//! Gossip is read first. Then the table is read by a snapshot that is taken after that, also in a
//! transaction that has an older snapshot. The table is read by SQL with the caller's rights, so
//! that the reading may run what any SELECT of the table runs.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::{self, Error, given};
use crate::logic::check::MAX_QUEUE;
use crate::logic::claimants::ClaimEvidence;
use crate::logic::ids::{DatabaseOid, SchemaOid};
use crate::logic::leadership::{MAX_NODE, MAX_PREFIX};
use crate::logic::orphans::{Attempt, Evidence, Job, Reason, Suspects, Times, Verdict};
use crate::logic::text::Text;
use crate::logic::times::{ClockTime, WallTime};
use crate::pg::argument::{self, TextArgument};
use crate::pg::result_set::ResultSet;
use crate::pg::spi::{self, SqlRow};
use crate::pg::{catalog, clock, datum, encoding, session, time};
use crate::prefix::rights::{self, Right};
use crate::shmem::Segment;

/// The longest grace in microseconds: a year. A longer grace is a mistake in the unit.
const MAX_GRACE: i64 = 366 * 86_400 * 1_000_000;

/// The columns that are read of the table, in the order of `Columns`.
const COLUMNS: &str = "j.id::pg_catalog.int8, j.queue::pg_catalog.text, j.worker::pg_catalog.text, \
    j.attempted_by[1]::pg_catalog.text, j.attempted_by[2]::pg_catalog.text, \
    pg_catalog.date_part('epoch', j.attempted_at)";

enum Columns {
    Id,
    Queue,
    Worker,
    Node,
    Uuid,
    AttemptedAt,
}

/// The declaration of oban_orphans is in sql/55_orphans.sql.
#[pg_extern(sql = false)]
pub fn oban_orphans(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let (prefix, grace) = (argument::at::<TextArgument>(fcinfo, 0), argument::at::<Interval>(fcinfo, 1));
    let search = Search::of(prefix, grace)?.allowed(Right::Read, "look for orphans")?;
    let mut rows = ResultSet::of(fcinfo);
    search.each_orphan("", |row, reason, since| {
        rows.push([
            row.datum(Columns::Id as usize),
            row.datum(Columns::Queue as usize),
            row.datum(Columns::Worker as usize),
            row.datum(Columns::Node as usize),
            datum::text(reason.name()),
            time::timestamptz(since).into_datum(),
        ]);
    })?;
    Ok(())
}

/// What a search for orphans is told.
pub struct Search {
    prefix: Text<MAX_PREFIX>,
    grace: i64,
}

/// A search that the current role may make, on a server where it can be made.
pub struct AllowedSearch {
    prefix: Text<MAX_PREFIX>,
    pub schema: SchemaOid,
    grace: i64,
    segment: Segment,
}

impl Search {
    /// `Err` is 22004 or 22023: an argument is NULL, or out of range.
    pub fn of(prefix: Option<TextArgument>, grace: Option<Interval>) -> Result<Self, Error> {
        let prefix: Text<MAX_PREFIX> = error::name("prefix", prefix)?;
        Ok(Self { prefix, grace: microseconds(given("grace", grace)?)? })
    }

    /// `Err` is 55000 without preload or in recovery, and 3F000, 42501 or 42939 without the prefix
    /// or the right on it. `doing` is what the call does, for messages.
    pub fn allowed(self, right: Right, doing: &'static str) -> Result<AllowedSearch, Error> {
        let segment = Segment::require()?;
        // In recovery there is no gossip.
        if session::in_recovery() {
            return Err(Error::InRecovery(doing));
        }
        let schema = rights::require(self.prefix.as_str(), right)?;
        Ok(AllowedSearch { prefix: self.prefix, schema, grace: self.grace, segment })
    }
}

impl AllowedSearch {
    /// Calls `body` for each orphan with its row, why the job is an orphan, and since when. The row
    /// has the columns of `Columns`, and after these what `more` adds to the list (as in ", j.a").
    /// `Err` is 40001: the schema was renamed meanwhile.
    pub fn each_orphan(
        &self,
        more: &str,
        mut body: impl FnMut(&SqlRow, Reason, WallTime),
    ) -> Result<(), Error> {
        let (segment, schema) = (self.segment, self.schema);
        // Another transaction may hold the table's lock for long. Gossip and the rows are read after
        // the wait for that lock.
        if let Some(table) = catalog::relation(schema, "oban_jobs") {
            catalog::lock_name(table);
        }
        let (database, wall_ahead) = (session::database(), clock::wall_ahead());
        let knows_since = segment.gossip().knows_since();
        let times = Times { now: clock::now(), wall_ahead, knows_since, grace: self.grace };
        let claims = segment.claim_evidence(database, schema);
        let evidence = gather(segment, database, schema, times);
        let suspected = segment.gossip().suspects(|suspects| suspects.any(database, schema));

        let table = self.jobs_table();
        let sql =
            format!("SELECT {COLUMNS}{more} FROM {table} j WHERE j.state OPERATOR(pg_catalog.=) 'executing'");
        spi::each(&sql, |row| {
            pgrx::check_for_interrupts!();
            if let Some((reason, since)) =
                judge(segment, row, &evidence, &claims, (database, schema), suspected)
            {
                body(row, reason, since.to_wall(wall_ahead));
            }
        });
        self.confirm_schema()
    }

    /// Returns the name of the table of jobs, as SQL has it.
    pub fn jobs_table(&self) -> String {
        spi::qualified(self.prefix.as_str(), "oban_jobs")
    }

    /// Returns an error (40001) if another schema has the prefix's name by now. SQL looks the table
    /// up by that name, and may have met a table of the other schema.
    pub fn confirm_schema(&self) -> Result<(), Error> {
        session::see_changes();
        if catalog::namespace(self.prefix.as_str()) != Some(self.schema) {
            return Err(Error::PrefixChanged(self.prefix.as_str().to_owned()));
        }
        Ok(())
    }
}

/// How many columns the row of an orphan has before those that the caller adds.
pub const OWN_COLUMNS: usize = Columns::AttemptedAt as usize + 1;

/// Returns a grace in microseconds. `Err` is 22023: the grace is negative, or longer than a year.
fn microseconds(grace: Interval) -> Result<i64, Error> {
    match i64::try_from(grace.as_micros()) {
        Ok(micros) if (0..=MAX_GRACE).contains(&micros) => Ok(micros),
        _ => Err(Error::bad(
            format!("grace is {} s", grace.as_micros() as f64 / 1e6),
            "It has to be at least 0 and at most a year. Nodes gossip once a second: less than some seconds is for tests.",
        )),
    }
}

/// Returns the evidence that gossip gives about the jobs of a schema.
fn gather(segment: Segment, database: DatabaseOid, schema: SchemaOid, times: Times) -> Evidence {
    let mut evidence = Evidence::new(times, segment.coverage(database));
    let processes = segment.gossip().remembered(database, schema, times.now);
    processes.into_iter().for_each(|process| evidence.add_process(process));
    // An entry that moves meanwhile may be read twice. Then both states count, which can only delay
    // that a job is found to be an orphan.
    segment.gossip().each(database, false, |piece| {
        pgrx::check_for_interrupts!();
        piece.take(|entry| {
            if entry.schema == schema {
                evidence.add_entry(&entry);
            }
        });
    });
    // The relay goes through the messages that it has not read yet. The next call has the result.
    if evidence.needs_coverage() {
        segment.update_coverage(database);
    }
    evidence
}

/// Returns why the job of a row is an orphan, and since when. `None`: the job is no orphan.
fn judge(
    segment: Segment,
    row: &SqlRow,
    evidence: &Evidence,
    claims: &ClaimEvidence,
    (database, schema): (DatabaseOid, SchemaOid),
    suspected: bool,
) -> Option<(Reason, ClockTime)> {
    let text = |column: Columns| row.datum(column as usize).map(|text| row.bytes(text));
    let short = |bytes: &&[u8]| bytes.len() <= 4 * MAX_NODE.max(MAX_QUEUE);
    let queue = text(Columns::Queue).filter(short).map(encoding::to_utf8_lossy);
    let node = text(Columns::Node).filter(short).map(encoding::to_utf8_lossy);
    let job = Job {
        id: row.datum(Columns::Id as usize)?.value() as i64,
        queue: queue.as_deref(),
        node: node.as_deref(),
        uuid: text(Columns::Uuid),
        attempted_at: row.datum(Columns::AttemptedAt as usize).map(|at| time::of_epoch(datum::float8(at))),
    };
    let verdict = evidence.judge(&job, claims);
    let of_suspect = |body: &dyn Fn(&mut Suspects<'_>, &Attempt) -> Option<ClockTime>| {
        let attempt = Attempt::of(database, schema, &job);
        segment.gossip().suspects(|suspects| body(suspects, &attempt))
    };
    match verdict {
        Verdict::Orphan { reason, since } => Some((reason, since)),
        Verdict::NotListed { put_at, began } => {
            let now = clock::now();
            let since = of_suspect(&|s, attempt| s.sight(attempt, (put_at, began), now, evidence.grace()))?;
            Some((Reason::NotRunning, since))
        }
        Verdict::Listed if suspected => {
            of_suspect(&|suspects, attempt| {
                suspects.clear(attempt);
                None
            });
            None
        }
        Verdict::Listed | Verdict::Fine => None,
    }
}
