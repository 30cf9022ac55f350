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
use crate::logic::takers::{Claimed, Next, QueueKey};
use crate::pg::argument::{self, TextArgument, TextArray};
use crate::pg::datum::StoredJson;
use crate::pg::procedure::{self, Call, InoutRecord};
use crate::pg::{acl, catalog, encoding, latch, session};
use crate::prefix::rights::Right;
use crate::shmem::Segment;

/// The most bytes of an answer, as JSON. The client gets it in one piece, which Postgres limits to 1 GB.
const MAX_ANSWER: usize = 256 << 20;

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
    let taken = call.commit(|| Taker { segment, call: &call, claim, jobs }.wait_for_jobs(timeout))?;
    Ok(row.with([taken.into_datum()]))
}

struct Taker<'c> {
    segment: Segment,
    call: &'c Call,
    claim: Claim,
    jobs: Jobs,
}

impl Taker<'_> {
    /// Claims jobs as soon as there are some. Returns an array of them, which is empty if there were none
    /// for `timeout`. After an error the abort of the transaction ends the wait.
    fn wait_for_jobs(mut self, timeout: Duration) -> Result<StoredJson, Error> {
        let since = Instant::now();
        let queues = self.claim.queues.iter();
        let keys: Vec<QueueKey> =
            queues.map(|queue| self.segment.queue_key(&encoding::to_server(queue))).collect();
        taker::arrive(self.segment, self.jobs.schema, &keys);
        loop {
            let (claimed, jobs) = procedure::run_transaction(|| self.look_for_jobs())?;
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

    /// Looks for jobs once, in a transaction. Returns the jobs as an array.
    fn look_for_jobs(&mut self) -> Result<(Claimed, StoredJson), Error> {
        latch::reset();
        self.jobs = super::look_up_again(&self.jobs, Right::Signal)?;
        if !self.call.is_still_there() {
            return Err(Error::NoExtension);
        }
        let table = self.jobs.oid;
        let restricted = !catalog::is_any_table(table) || acl::row_security_applies(table);
        taker::begin_look(self.segment, restricted);
        let mut json = Vec::new();
        let mut too_large = false;
        let claimed = self.claim.claim_jobs(&self.jobs, Rows::Json, |row| {
            let job = row.datum(0).map_or(&[][..], |job| row.bytes(job));
            too_large |= json.len() + job.len() > MAX_ANSWER || json.try_reserve(job.len() + 2).is_err();
            if !too_large {
                json.push(b',');
                json.extend_from_slice(job);
            }
        })?;
        if too_large {
            return Err(Error::AnswerTooLarge { most: MAX_ANSWER });
        }
        match json.first_mut() {
            Some(comma) => *comma = b'[',
            None => json.push(b'['),
        }
        json.push(b']');
        // This comes before the commit. An answer that can't be made rolls the claim back.
        let jobs = StoredJson::of(&encoding::Client::of_session().json(json))?;
        if claimed.jobs > 0 {
            taker::note_claim(claimed);
        }
        Ok((claimed, jobs))
    }
}
