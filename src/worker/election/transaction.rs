//! The transaction of one step. The transaction is short, has a time limit, and has another limit
//! for the wait at the commit.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::prelude::*;

use super::{COMMIT_LOCK_TIMEOUT, Outcome, TABLE_LOCK_TIMEOUT, table};
use crate::logic::ids::SchemaOid;
use crate::pg::{session, xact};
use crate::shmem::Segment;

/// The longest that one step may take until its commit, in milliseconds. Nothing limits the size of
/// a table. The commit may wait for `COMMIT_LOCK_TIMEOUT` more.
const STEP_LIMIT: i32 = 1_000;

/// Why a step failed.
pub struct Failed {
    /// The message of the ERROR.
    pub message: String,
    /// Whether NOTIFY's queue was full at the commit.
    pub queue_full: bool,
}

impl From<String> for Failed {
    fn from(message: String) -> Self {
        Self { message, queue_full: false }
    }
}

/// Runs one step in a transaction. `Err` says which ERROR ended it. A lock that could not be taken
/// in time (55P03) is the outcome `R::locked()`, if there is one. `activity` is for
/// pg_stat_activity.
pub fn transaction<R: Locks>(
    segment: Segment,
    activity: &'static CStr,
    step: impl FnOnce() -> R,
) -> Result<R, Failed> {
    // The commit may wait for another lock, that of NOTIFY.
    let committing = Cell::new(false);
    let result = xact::contain(|| {
        let outcome = xact::run(activity, || {
            let outcome = xact::limit(STEP_LIMIT, step);
            session::set(c"lock_timeout", COMMIT_LOCK_TIMEOUT);
            committing.set(true);
            outcome
        });
        session::set(c"lock_timeout", TABLE_LOCK_TIMEOUT); // an abort restores it by itself
        outcome
    });
    table::keep_unannounced(segment, result.is_ok());
    match result {
        Err(caught) if caught.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE && !committing.get() => {
            R::locked().ok_or(caught.message.into())
        }
        result => result.map_err(|caught| Failed {
            queue_full: caught.code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED && committing.get(),
            message: caught.message,
        }),
    }
}

/// The result of a step that could not take a lock in time.
pub trait Locks: Sized {
    /// The outcome; `None`: the step has failed as by any other ERROR.
    fn locked() -> Option<Self>;
}

impl Locks for Vec<SchemaOid> {
    fn locked() -> Option<Self> {
        None
    }
}

impl Locks for bool {
    fn locked() -> Option<Self> {
        None
    }
}

impl Locks for Outcome {
    fn locked() -> Option<Self> {
        Some(Self::Locked)
    }
}
