//! obanrs: Oban's coordination layer inside Postgres.
//!
//! | part | what it is |
//! | --- | --- |
//! | `config` | the settings |
//! | `logic` | the rules, in pure Rust: wire format, ring, elections, gossip table, life of a worker |
//! | `error` | the errors that users see |
//! | `pg` | Postgres, one concept a file |
//! | `prefix` | Oban's tables of a prefix, and the extension itself, as the catalogs have them |
//! | `shmem` | the segment of shared memory and its locks |
//! | `backend` | what a process remembers of a transaction or a session, and tells at the end |
//! | `bus` | how a message leaves its transaction |
//! | `notifier`, `peer`, `gossip`, `signal`, `trigger` | SQL functions, one concern each |
//! | `health` | the SQL function `oban_check`, which looks at the others |
//! | `jobs` | SQL functions that insert jobs, claim them, say what became of them, and delete them |
//! | `rescue` | the SQL function `oban_rescue`, which gives jobs of dead processes back |
//! | `worker` | the background workers, the hooks that make them leave, and the view oban_workers |
//!
//! The lowest layers come first: a part uses only parts of earlier rows. `error` and `pg` do not
//! use `config`, and `shmem` does not use `prefix`. Parts of the last rows do not use each
//! other, except that `health` uses `peer`, `rescue` uses `gossip` and `peer`, and `jobs` uses
//! `signal`. tests/structure.rs (`dependencies_point_one_way`) holds the parts to this.

// The limit stands in clippy.toml. Tests are stories, and some are long.
#![cfg_attr(not(any(test, feature = "pg_test")), warn(clippy::too_many_lines))]

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

mod backend;
mod bus;
mod config;
mod error;
mod gossip;
mod health;
mod jobs;
mod logic;
mod notifier;
mod peer;
mod pg;
mod prefix;
mod rescue;
mod shmem;
mod signal;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod trigger;
mod worker;

#[cfg(test)]
pub use tests::pg_test;

#[cfg(not(panic = "unwind"))]
compile_error!("a panic has to unwind: pgrx turns it into an ERROR, an abort would restart the server");

pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/10_schema.sql", bootstrap);
extension_sql_file!(
    "../sql/50_views.sql",
    name = "views",
    requires = [
        peer::members::obanrs_memberships,
        peer::leaders::obanrs_leadership,
        gossip::obanrs_gossip,
        worker::view::obanrs_workers,
        worker::view::obanrs_stagers,
        notifier::stats::obanrs_stats,
        trigger::watch::obanrs_watches,
        signal::view::obanrs_queue_signals
    ]
);
extension_sql_file!(
    "../sql/55_orphans.sql",
    name = "orphans",
    requires = [gossip::orphans::oban_orphans, rescue::oban_rescue]
);
extension_sql_file!(
    "../sql/56_jobs.sql",
    name = "jobs",
    requires = [jobs::fetch::oban_fetch, jobs::enqueue::oban_insert_job, jobs::enqueue::oban_insert_jobs]
);
extension_sql_file!(
    "../sql/60_procedures.sql",
    name = "procedures",
    requires = [notifier::poll::oban_wait_queues, jobs::taker::oban_take]
);
extension_sql_file!("../sql/90_finish.sql", finalize);

/// Sets the library up in a process. If the server has loaded the library at its start, all of
/// obanrs is there. If a session has loaded the library (CREATE EXTENSION without preload), the
/// functions are there, and those that need shared memory or workers raise 55000. If pg_upgrade
/// runs the server, the functions are there, and nothing starts by itself.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::session::disable_backtraces();
    error::show_with(pg::encoding::shown);
    if pg::session::is_binary_upgrade() {
        return;
    }
    let preloading = pg::session::is_preloading();
    config::register(preloading);
    bus::register();
    trigger::repeats::register();
    trigger::jobs::register();
    trigger::watched::register();
    trigger::peers::register();
    signal::register();
    if preloading {
        shmem::request();
        backend::register();
        worker::register();
    } else if pg::session::is_creating_extension() {
        pg::xact::on_event(say_not_preloaded);
    }
}

/// Raises a NOTICE before the commit of CREATE EXTENSION: the extension may be used without
/// preload, but a part of obanrs is not available then. The script of the extension can't raise the
/// notice, because Postgres sends no notices while such a script runs.
fn say_not_preloaded(event: pg_sys::XactEvent::Type) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let (commits, ends) = (pg::xact::is_before_commit(event), pg::xact::is_end(event));
    if !(commits || ends) || SAID.swap(true, Ordering::Relaxed) {
        return; // the notice was raised before, or CREATE EXTENSION was rolled back
    }
    if commits {
        error::log(
            PgLogLevel::NOTICE,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            "obanrs is not loaded at server start: members, leaders and gossip are not available",
            "Add obanrs to shared_preload_libraries and restart the server.",
        );
    }
}

/// Returns the version of the library that this session runs.
#[pg_extern(immutable, parallel_safe)]
fn oban_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
