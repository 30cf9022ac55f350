//! Reports of what goes wrong in a worker: one line in the server's log, and `last_error` in the
//! view oban_workers.

use pgrx::prelude::*;

use super::process;
use crate::error;
use crate::logic::lifecycle::Kind;
use crate::shmem::Segment;

/// Reports a trouble of the worker `kind` of this process's database. `shown` is for oban_workers,
/// `message` and `hint` are for the log. The caller reports a lasting trouble once
/// (`logic::retry`).
pub fn report(
    segment: Segment,
    kind: Kind,
    shown: &str,
    code: PgSqlErrorCode,
    message: impl Into<String>,
    hint: impl Into<String>,
) {
    segment.registry(|r| r.note_error(kind, process::database(), shown));
    error::log(PgLogLevel::WARNING, code, message, hint);
}
