//! obanrs: Oban's coordination layer inside Postgres.
//!
//! | where | what |
//! | --- | --- |
//! | `logic` | the rules, in pure Rust: wire format, elections, gossip table, life of a worker |
//! | `pg` | Postgres, one concept a file |
//! | `prefix` | Oban's tables of a prefix, and the extension itself, as the catalogs have them |
//! | `shmem` | the segment of shared memory and its locks |
//! | `bus` | the way of a message out of its transaction |
//! | `notifier`, `peer`, `gossip`, `trigger`, `health` | the SQL functions, one concern each |
//! | `worker` | the background workers and the hooks that keep them out of the way |
//! | `config`, `error` | every setting; every error |
//!
//! Dependencies point from the bottom of this table to its top, but for the last row, which all others may use; `logic`
//! depends on nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

mod backend;
mod bus;
mod config;
mod error;
mod gossip;
mod health;
mod logic;
mod notifier;
mod peer;
mod pg;
mod prefix;
mod shmem;
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
        notifier::stats::obanrs_stats
    ]
);
extension_sql_file!("../sql/55_orphans.sql", name = "orphans", requires = [gossip::orphans::oban_orphans]);
extension_sql_file!(
    "../sql/60_procedures.sql",
    name = "procedures",
    requires = [notifier::poll::oban_wait_queues]
);
extension_sql_file!("../sql/90_finish.sql", finalize);

/// Loaded with the server: everything. Loaded by a session (CREATE EXTENSION without preload): the
/// functions, of which those that need shared memory or workers raise 55000. Loaded by pg_upgrade:
/// the functions, and nothing that starts by itself.
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
    trigger::peers::register();
    if preloading {
        shmem::request();
        backend::register();
        worker::register();
    } else if pg::session::is_creating_extension() {
        pg::xact::on_event(say_not_preloaded);
    }
}

/// With the commit of CREATE EXTENSION, for its script may not send notices: that this is allowed, but
/// not all there is.
fn say_not_preloaded(event: pg_sys::XactEvent::Type) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let (commits, ends) = (pg::xact::is_before_commit(event), pg::xact::is_end(event));
    if !(commits || ends) || SAID.swap(true, Ordering::Relaxed) {
        return; // said, or CREATE EXTENSION was rolled back
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

/// The version of the library that this session runs.
#[pg_extern(immutable, parallel_safe)]
fn oban_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
