//! The record of `logic::floor`, a file in the data directory. The postmaster writes the record
//! when a run of the server begins and when the run ends. A base backup has the file. So a standby
//! that is promoted begins above the numbers that its primary had given.
//!
//! A run also begins above what the wall clock shows, and above the time at which the control file
//! was written last. Without the file, as before the first start with this library, these two have
//! to do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::logic::floor::Record;
use crate::pg::{session, time};

/// Postgres' own folder for what is written at a shutdown and read at the next start.
const FOLDER: &str = "pg_stat";
const NAME: &str = "obanrs_positions";

/// Returns the number above which the numbers of this run begin, and records it. The postmaster
/// calls this when it makes the segment. `ended` is called when the postmaster ends. All other
/// processes have ended by then.
pub fn begin(now: i64, ended: session::ExitCallback) -> i64 {
    let before = fs::read_to_string(Path::new(FOLDER).join(NAME)).ok().and_then(|text| Record::parse(&text));
    let floor = now.max(time::control_file_written().0).max(before.map_or(0, Record::next));
    // The record is written before any number is given. If it can't be written and this run
    // crashes, the next run counts from the record before.
    write(Record::Began(floor));
    session::after_disconnect(ended); // as Postgres' own modules do that write a file at that time
    floor
}

/// Records the last number of this run. The postmaster calls this at a clean shutdown. Until the
/// record is written, the shutdown counts as a crash.
pub fn end(last: i64) {
    write(Record::Ended(last));
}

/// Writes a record. A failure is logged, and raises no error.
fn write(record: Record) {
    if let Err(why) = replace(&record.to_text()) {
        error::log(
            PgLogLevel::LOG,
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("obanrs can't write {FOLDER}/{NAME}: {why}"),
            "If the wall clock is set back before the next start, positions may go back.",
        );
    }
}

/// Writes the file anew. At any moment the file is whole, either the old one or the new one.
fn replace(text: &str) -> io::Result<()> {
    let (file, new) = (Path::new(FOLDER).join(NAME), Path::new(FOLDER).join(format!("{NAME}.tmp")));
    let mut written = File::create(&new)?;
    written.write_all(text.as_bytes())?;
    sync(&written)?;
    fs::rename(new, file)?;
    sync(&File::open(FOLDER)?)
}

/// Has the system write a file to the disk, unless the setting fsync is off.
fn sync(file: &File) -> io::Result<()> {
    // SAFETY: this is a plain global, the setting fsync.
    if unsafe { pg_sys::enableFsync } { file.sync_all() } else { Ok(()) }
}
