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
use super::fetch::{Claim, Rows};
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

/// The most bytes of an answer, as JSON. The client gets it in one piece, which Postgres limits to 1 GB.
const MAX_ANSWER: usize = 256 << 20;

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
        let (mut jobs, mut printed) = (Vec::new(), 0);
        let claimed = self.claim.claim_jobs(table, Rows::Jsonb, |row| {
            let Some(job) = row.datum(0).and_then(StoredJson::copy) else { return };
            let size = jsonb::text_len(job.bytes(), MAX_DEPTH).ok().filter(|size| *size <= MAX_JOB);
            printed += size.unwrap_or_default();
            jobs.push((job, size.is_some()));
        })?;
        if (jobs.len() as u64) < claimed.jobs {
            return Err(Error::OutOfMemory);
        }
        if printed > MAX_ANSWER {
            return Err(Error::AnswerTooLarge { most: MAX_ANSWER });
        }
        // All of this comes before the commit. An answer that can't be made rolls the claim back.
        let jobs = jobs.into_iter().map(|(job, fits)| if fits { job } else { without_contents(job) });
        let answer = array(jobs.collect())?.for_client()?;
        if claimed.jobs > 0 {
            taker::note_claim(claimed);
        }
        Ok((claimed, answer))
    }
}

/// Returns a job without what may be large, and with the mark `too_large`.
fn without_contents(job: StoredJson) -> StoredJson {
    let sql = "SELECT $1 OPERATOR(pg_catalog.||) '{\"args\": null, \"meta\": null, \"tags\": null,
        \"errors\": null, \"too_large\": true}'::pg_catalog.jsonb";
    let mut short = None;
    spi::prepared(sql, &[Parameter::of(Some(job))], |row| short = row.datum(0).and_then(StoredJson::copy));
    short.unwrap_or_default()
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
