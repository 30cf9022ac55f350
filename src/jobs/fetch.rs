//! `oban_fetch`: claims jobs of some queues, as Oban's Basic engine does.
//!
//! There is a statement for each queue, because an index finds the first jobs of one queue only. The
//! queue that comes first is random, so that no queue waits for ever behind a full one.

use std::hash::{BuildHasher, RandomState};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Jobs;
use crate::backend::available_jobs;
use crate::error::{self, Error, given};
use crate::logic::leadership::{MAX_NAME, MAX_NODE};
use crate::logic::signals::MAX_QUEUE_CHARS;
use crate::logic::takers::{Claimed, MAX_QUEUES};
use crate::logic::text::{Text, excerpt};
use crate::logic::times::WallTime;
use crate::pg::argument::{self, TextArgument, TextArray};
use crate::pg::datum::Parameter;
use crate::pg::datum::Shown;
use crate::pg::result_set::ResultSet;
use crate::pg::spi::{self, SqlRow};
use crate::pg::{clock, encoding, session, time};
use crate::prefix::rights::Right;
use crate::shmem::Segment;
use crate::signal;

/// The most jobs of a call. They are in memory at once.
const MOST_JOBS: i32 = 10_000;

/// Declares the columns of the result, of a job `j`. Times are `timestamptz`, whatever the table has.
macro_rules! small_columns {
    () => {
        "j.id::pg_catalog.int8 AS id, j.state::pg_catalog.text AS state, j.queue::pg_catalog.text AS queue,
        j.worker::pg_catalog.text AS worker, j.attempt::pg_catalog.int4 AS attempt,
        j.max_attempts::pg_catalog.int4 AS max_attempts, j.priority::pg_catalog.int4 AS priority,
        j.attempted_by::pg_catalog.text[] AS attempted_by,
        pg_catalog.timezone('UTC', j.inserted_at) AS inserted_at,
        pg_catalog.timezone('UTC', j.scheduled_at) AS scheduled_at,
        pg_catalog.timezone('UTC', j.attempted_at) AS attempted_at"
    };
}

/// The columns that are small.
pub(super) const SMALL_COLUMNS: &str = small_columns!();

/// All columns, those that may be large at the end.
pub(super) const COLUMNS: &str = concat!(
    small_columns!(),
    ", j.args::pg_catalog.jsonb AS args, j.meta::pg_catalog.jsonb AS meta, j.tags::pg_catalog.text[] AS tags,
    pg_catalog.to_jsonb(j.errors) AS errors"
);

/// The place of each column of oban_fetch in `COLUMNS`.
const PLACES: [usize; WIDTH] = [0, 1, 2, 3, 11, 12, 13, 14, 4, 5, 6, 7, 8, 9, 10];

/// How many columns these are.
const WIDTH: usize = 15;

/// The columns of a job that may be large.
pub(super) const LARGE: [&str; 4] = ["args", "meta", "tags", "errors"];

/// The bytes that these columns may take in the table, of a job that is surely small enough for a jsonb.
/// Compressed, they may stand for 255 times as much.
const SURELY_SMALL: usize = 512 << 10;

/// What the rows of the result are.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    /// The columns `COLUMNS`.
    Columns,
    /// A `jsonb`, which is an object of these columns, and the id. The object is NULL if the job may be too
    /// large for a jsonb.
    Jsonb,
}

/// What a claim is told.
pub(super) struct Claim {
    /// At least one queue and at most `MAX_QUEUES`, each once.
    pub queues: Vec<String>,
    node: String,
    uuid: Option<String>,
    max_jobs: i32,
}

impl Claim {
    /// `Err` is 22004 or 22023.
    pub fn of(
        queues: Option<TextArray>,
        node: Option<TextArgument>,
        max_jobs: Option<i32>,
        uuid: Option<TextArgument>,
    ) -> Result<Self, Error> {
        let texts = given("queues", queues)?.texts("queues", MAX_QUEUES, 4 * MAX_QUEUE_CHARS)?;
        let mut queues: Vec<String> = Vec::new();
        for queue in texts {
            let chars = queue.0.chars().count();
            if !(1..=MAX_QUEUE_CHARS).contains(&chars) {
                return Err(Error::bad(
                    format!("queues has an element of {chars} characters: \"{}\"", excerpt(&queue.0)),
                    format!("A queue of Oban's has 1 to {MAX_QUEUE_CHARS} characters."),
                ));
            }
            if !queues.contains(&queue.0) {
                queues.push(queue.0);
            }
        }
        if queues.is_empty() {
            return Err(Error::bad("queues is empty", "Name the queues, as in '{default,mail}'."));
        }
        let node: Text<MAX_NODE> = error::name("node", node)?;
        let max_jobs = given("max_jobs", max_jobs)?;
        if !(1..=MOST_JOBS).contains(&max_jobs) {
            return Err(Error::bad(
                format!("max_jobs is {max_jobs}"),
                format!("It is from 1 to {MOST_JOBS}."),
            ));
        }
        let uuid: Option<Text<MAX_NAME>> = uuid.map(|uuid| error::name("uuid", Some(uuid))).transpose()?;
        Ok(Self {
            queues,
            node: node.as_str().to_owned(),
            uuid: uuid.map(|uuid| uuid.as_str().to_owned()),
            max_jobs,
        })
    }
}

/// Returns a number that says which queue comes first.
fn turn() -> usize {
    // The hasher of a process has random keys, and the time is another one in each call.
    RandomState::new().hash_one(clock::now()) as usize
}

/// The declaration of oban_fetch is in sql/56_jobs.sql.
#[pg_extern(sql = false)]
pub fn oban_fetch(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    let text = |place| argument::at::<TextArgument>(fcinfo, place);
    let claim =
        Claim::of(argument::at::<TextArray>(fcinfo, 0), text(1), argument::at::<i32>(fcinfo, 2), text(3))?;
    let jobs = Jobs::of(text(4), Right::Signal, "claim jobs")?;
    let mut rows = ResultSet::of(fcinfo);
    let claimed = claim.claim_jobs(&jobs, Rows::Columns, |row| {
        rows.push(PLACES.map(|place| row.datum(place)));
    })?;
    let queues = claim.queues.iter().zip(0..).filter(|(_, number)| claimed.of & (1 << number) != 0);
    queues.for_each(|(queue, _)| available_jobs::is_claimed(jobs.schema, &encoding::to_server(queue)));
    Ok(())
}

impl Claim {
    /// Claims jobs, and calls `body` with each of them. Returns what was claimed; the numbers of queues are
    /// those in `queues`. `Err`: what is remembered of signals can't be read (`signal::view`).
    pub fn claim_jobs(
        &self,
        jobs: &Jobs,
        rows: Rows,
        mut body: impl FnMut(&SqlRow),
    ) -> Result<Claimed, Error> {
        let paused =
            signal::view::paused_queues(jobs.schema, jobs.prefix.as_str(), &self.queues, &self.node)?;
        let (turn, most) = (turn() % self.queues.len(), u64::from(self.max_jobs.unsigned_abs()));
        let (mut left, mut claimed, now) = (most, Claimed::default(), time::now());
        for number in 0..self.queues.len() {
            let place = (turn + number) % self.queues.len();
            let queue = &self.queues[place];
            if paused.contains(queue) {
                claimed.paused |= 1 << place;
            } else if left > 0 {
                let some = self.claim_of_queue(jobs, queue, left, now, rows, &mut body).min(left);
                left -= some;
                claimed.of |= u32::from(some > 0) << place;
            }
        }
        (claimed.jobs, claimed.is_full) = (most - left, left == 0);
        if let Some(segment) = Segment::attached().filter(|_| claimed.jobs > 0) {
            let uuid = self.uuid.as_deref().map(encoding::to_server);
            segment.note_claim((session::database(), jobs.schema), &self.node, uuid.as_deref(), now);
        }
        Ok(claimed)
    }

    /// Claims at most `most` jobs of a queue at the time `now`. Returns how many it has claimed.
    fn claim_of_queue(
        &self,
        jobs: &Jobs,
        queue: &str,
        most: u64,
        now: WallTime,
        rows: Rows,
        body: impl FnMut(&SqlRow),
    ) -> u64 {
        let values = [
            Parameter::of(Some(Shown(queue.to_owned()))),
            Parameter::of(Some(most as i64)),
            Parameter::typed(pg_sys::TIMESTAMPOID, Some(pg_sys::Datum::from(now.0))),
            Parameter::of(Some(Shown(self.node.clone()))),
            Parameter::of(self.uuid.clone().map(Shown)),
        ];
        spi::prepared(&statement(&jobs.table, rows), &values, body)
    }
}

/// Returns the statement that claims jobs of a queue. $1 is the queue, $2 the most jobs, $3 the time, $4
/// the node and $5 its uuid or null. A job without an attempt left is passed over.
fn statement(table: &str, rows: Rows) -> String {
    let columns = match rows {
        Rows::Columns => COLUMNS.to_owned(),
        Rows::Jsonb => format!(
            "CASE WHEN {size} OPERATOR(pg_catalog.<=) {SURELY_SMALL}
                THEN (SELECT pg_catalog.to_jsonb(job) FROM (SELECT {COLUMNS}) job) END, j.id::pg_catalog.int8",
            size = LARGE
                .map(|column| format!("COALESCE(pg_catalog.pg_column_size(j.{column}), 0)"))
                .join(" OPERATOR(pg_catalog.+) ")
        ),
    };
    let result = format!("SELECT {columns} FROM claimed j ORDER BY j.priority, j.scheduled_at, j.id");
    // An array of ids, and no join with them: Postgres takes an array for ten elements, so it finds the
    // rows by the primary key whatever the table's statistics say. The same plan serves all values
    // (`spi::prepared`).
    format!(
        "WITH claimed AS (
            UPDATE {table} j SET state = 'executing', attempt = j.attempt OPERATOR(pg_catalog.+) 1,
                attempted_at = $3, attempted_by = pg_catalog.array_remove(ARRAY[$4, $5], NULL)
            WHERE j.state OPERATOR(pg_catalog.=) 'available' AND j.id OPERATOR(pg_catalog.=) ANY (ARRAY(
                SELECT j.id FROM {table} j
                WHERE j.state OPERATOR(pg_catalog.=) 'available' AND j.queue OPERATOR(pg_catalog.=) $1
                    AND j.scheduled_at OPERATOR(pg_catalog.<=) $3
                    AND j.attempt OPERATOR(pg_catalog.<) j.max_attempts
                ORDER BY j.priority, j.scheduled_at, j.id LIMIT $2 FOR UPDATE SKIP LOCKED))
            RETURNING j.*
         )
         {result}"
    )
}
