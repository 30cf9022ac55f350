//! The record of `logic::floor`, a file in the data directory: written when a life of the server begins and when it
//! ends. Both are in the postmaster. A base backup has the file, so that a standby that is promoted begins above what
//! its primary had given.
//!
//! Without the file, as before the first start with it, what the wall clock shows has to do, and when the last life
//! wrote the control file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error;
use crate::logic::floor::Record;
use crate::pg::{session, time};

/// Postgres' own place for what is written at a shutdown and read at the next start.
const FOLDER: &str = "pg_stat";
const NAME: &str = "obanrs_positions";

/// In the postmaster, when it makes the segment: the number above which this life's begin. `ended` is
/// called when the postmaster ends; all other processes have gone by then.
pub fn begin(now: i64, ended: session::ExitCallback) -> i64 {
    let before = fs::read_to_string(Path::new(FOLDER).join(NAME)).ok().and_then(|text| Record::parse(&text));
    let floor = now.max(time::control_file_written()).max(before.map_or(0, Record::next));
    // Before anything is given. If it can't be written, a crash of this life counts from the record before.
    write(Record::Began(floor));
    session::after_disconnect(ended); // as Postgres' own modules do that write a file then
    floor
}

/// In the postmaster, at a clean shutdown. Until it is written the shutdown is a crash.
pub fn end(last: i64) {
    write(Record::Ended(last));
}

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

/// Writes the file anew: at any moment it is whole, the old one or the new one.
fn replace(text: &str) -> io::Result<()> {
    let (file, new) = (Path::new(FOLDER).join(NAME), Path::new(FOLDER).join(format!("{NAME}.tmp")));
    let mut written = File::create(&new)?;
    written.write_all(text.as_bytes())?;
    sync(&written)?;
    fs::rename(new, file)?;
    sync(&File::open(FOLDER)?)
}

fn sync(file: &File) -> io::Result<()> {
    // SAFETY: a setting of Postgres'.
    if unsafe { pg_sys::enableFsync } { file.sync_all() } else { Ok(()) }
}
