//! `oban_take`: claims jobs of some queues, or waits until there are some.
//!
//! Each look for jobs is a transaction, and between two looks the session holds no lock and no snapshot.
//! `logic::takers` says when a taker looks, and `backend::taker` what happens if a look fails or if this
//! process dies.

use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Jobs;
use super::fetch::{self, Claim, Rows};
use crate::backend::taker;
use crate::error::Error;
use crate::logic::jsonb;
use crate::logic::takers::{Claimed, Next, QueueKey};
use crate::pg::argument::{self, TextArgument, TextArray};
use crate::pg::datum::{Parameter, StoredJson};
use crate::pg::procedure::{self, Call, InoutRecord};
use crate::pg::{acl, catalog, encoding, latch, session, spi};
use crate::prefix::rights::Right;
use crate::shmem::Segment;

/// The most bytes of a job, as JSON. A larger one is returned without its contents, so that it does not keep
/// the queue from going on.
const MAX_JOB: usize = 64 << 20;

/// The most bytes of an answer, as JSON and as a jsonb. Postgres limits the latter to 256 MB.
const MAX_ANSWER: usize = 250 << 20;

/// How deep a job may be nested. A deeper one counts as too large.
const MAX_DEPTH: usize = 5_000;

/// The declaration of oban_take is in sql/60_procedures.sql.
#[pg_extern(sql = false)]
pub fn oban_take(
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<pgrx::composite_type!('static, "record"), ErrorReport> {
    Ok(call_take(fcinfo)?)
}

fn call_take(fcinfo: pg_sys::FunctionCallInfo) -> Result<pgrx::composite_type!('static, "record"), Error> {
    let text = |place| argument::at::<TextArgument>(fcinfo, place);
    let claim =
        Claim::of(argument::at::<TextArray>(fcinfo, 0), text(1), argument::at::<i32>(fcinfo, 2), text(4))?;
    let timeout = procedure::waiting_time(argument::at::<Interval>(fcinfo, 3))?;
    let segment = Segment::require()?;
    let jobs = Jobs::of(text(5), Right::Signal, "claim jobs")?;
    let call = Call::of(fcinfo);
    if call.is_atomic() {
        return Err(Error::InTransactionBlock { call: "oban_take", instead: "oban_fetch" });
    }
    let row = InoutRecord::of(fcinfo);
    session::notice_vanished_client();
    let taken = call.commit(|| Taker { segment, claim, jobs }.wait_for_jobs(timeout))?;
    Ok(row.with([taken.into_datum()]))
}

struct Taker {
    segment: Segment,
    claim: Claim,
    jobs: Jobs,
}

impl Taker {
    /// Claims jobs as soon as there are some. Returns an array of them, which is empty if there were none
    /// for `timeout`. After an error the abort of the transaction ends the wait.
    fn wait_for_jobs(&self, timeout: Duration) -> Result<StoredJson, Error> {
        let since = Instant::now();
        let queues = self.claim.queues.iter();
        let keys: Vec<QueueKey> =
            queues.map(|queue| self.segment.queue_key(&encoding::to_server(queue))).collect();
        taker::arrive(self.segment, self.jobs.schema, &keys);
        loop {
            let look = |jobs: Jobs| self.look_for_jobs(&jobs);
            let (claimed, jobs) = procedure::run_transaction(|| self.begin_look(), look)?;
            if claimed.jobs > 0 {
                return Ok(jobs);
            }
            let mut next = taker::found_nothing(self.segment, claimed.paused);
            while next == Next::Sleep || since.elapsed() >= timeout {
                let left = timeout.saturating_sub(since.elapsed());
                if left.is_zero() {
                    taker::leave();
                    return Ok(jobs);
                }
                latch::wait_with_client(left);
                latch::reset();
                if self.segment.is_woken_taker() {
                    next = Next::Look;
                }
            }
        }
    }

    /// Begins a look for jobs, and returns their table as it is now. The snapshot comes after it.
    fn begin_look(&self) -> Result<Jobs, Error> {
        latch::reset();
        let jobs = super::look_up_again(&self.jobs, Right::Signal)?;
        let restricted = !catalog::is_any_table(jobs.oid) || acl::row_security_applies(jobs.oid);
        if taker::begin_look(self.segment, restricted) { Ok(jobs) } else { Err(Error::NoExtension) }
    }

    /// Looks for jobs once, in a transaction. Returns the jobs as an array.
    fn look_for_jobs(&self, table: &Jobs) -> Result<(Claimed, StoredJson), Error> {
        let mut rows = Vec::new();
        let claimed = self.claim.claim_jobs(table, Rows::Jsonb, |row| {
            let job = row.datum(0).map(|job| StoredJson::copy(job).ok_or(Error::OutOfMemory));
            rows.push((job, row.datum(1).map_or(0, |id| id.value() as i64)));
        })?;
        // All of this comes before the commit. An answer that can't be made rolls the claim back.
        let (mut jobs, mut total) = (Vec::new(), 0);
        for (job, id) in rows {
            let job = job.unwrap_or_else(|| large_job(table, id))?;
            let size = jsonb::text_len(job.bytes(), MAX_DEPTH).ok().filter(|size| *size <= MAX_JOB);
            let job = if size.is_some() { job } else { without_contents(table, id)? };
            total += size.unwrap_or_default().max(job.bytes().len());
            if total > MAX_ANSWER {
                return Err(Error::AnswerTooLarge { most: MAX_ANSWER });
            }
            jobs.push(job);
        }
        let answer = array(jobs)?.for_client()?;
        if claimed.jobs > 0 {
            taker::note_claim(claimed);
        }
        Ok((claimed, answer))
    }
}

/// Returns a job that may be too large for a jsonb, without its contents if it is. `Err` is 53200.
fn large_job(table: &Jobs, id: i64) -> Result<StoredJson, Error> {
    let sql = format!(
        "SELECT {} FROM {} j WHERE j.id OPERATOR(pg_catalog.=) $1",
        fetch::LARGE.map(|column| format!("j.{column}")).join(", "),
        table.table
    );
    let mut size = 0;
    spi::prepared(&sql, &[Parameter::of(Some(id))], |row| {
        size += (0..fetch::LARGE.len()).map(|column| row.raw_size(column)).sum::<usize>();
    });
    if size > MAX_JOB { without_contents(table, id) } else { job(table, id, fetch::COLUMNS) }
}

/// Returns a job without what may be large, and with the mark `too_large`. `Err` is 53200.
fn without_contents(table: &Jobs, id: i64) -> Result<StoredJson, Error> {
    let nulls = fetch::LARGE.map(|column| format!("NULL AS {column}")).join(", ");
    job(table, id, &format!("{}, {nulls}, true AS too_large", fetch::SMALL_COLUMNS))
}

/// Returns these columns of a job as an object. `Err` is 53200.
fn job(table: &Jobs, id: i64, columns: &str) -> Result<StoredJson, Error> {
    let sql = format!(
        "SELECT pg_catalog.to_jsonb(job) FROM (
            SELECT {columns} FROM {} j WHERE j.id OPERATOR(pg_catalog.=) $1 LIMIT 1) job",
        table.table
    );
    let mut found = None;
    spi::prepared(&sql, &[Parameter::of(Some(id))], |row| found = row.datum(0).and_then(StoredJson::copy));
    found.ok_or(Error::OutOfMemory)
}

/// Returns an array of these values. `Err` is 53200.
fn array(values: Vec<StoredJson>) -> Result<StoredJson, Error> {
    if values.is_empty() {
        return StoredJson::of(b"[]");
    }
    let mut array = None;
    let sql = "SELECT pg_catalog.jsonb_agg(v) FROM pg_catalog.unnest($1) v";
    spi::prepared(sql, &[Parameter::of(Some(values))], |row| array = row.datum(0).and_then(StoredJson::copy));
    array.ok_or(Error::OutOfMemory)
}
