//! The background workers, and the hooks that make them leave a database before a command that
//! needs it alone.
//!
//! Workers race with each other, with sessions, and with commands that create, change or drop what
//! they work on. Section "Races" of ARCHITECTURE.md lists each race that the design has to survive,
//! with the mechanism that decides it and the test that shows it.
//!
//! | file | what is there |
//! | --- | --- |
//! | `coordinator` | the one worker of the server, which starts all others |
//! | `look` | the worker that finds out whether a database has the extension |
//! | `keeper` | the worker of a database that holds elections and sends stranded messages |
//! | `election` | what a keeper does: elections, and the sweep of expired rows |
//! | `relay` | the worker of a database that sends the messages in its ring |
//! | `exchange` | the exchange of gossip with foreign nodes, which runs in the relay |
//! | `signals` | remembering the queue signals that others send, which runs in the keeper |
//! | `stager` | the worker of a prefix that makes its due jobs available |
//! | `stagers` | what a keeper does for stagers: which there are, when they start and leave |
//! | `process` | how a keeper or a relay begins and ends |
//! | `trouble` | reports of what goes wrong in a worker |
//! | `ddl` | the hooks: commands that need a database alone, and commands that change what workers use |
//! | `view` | the rows of the view oban_workers |
#![allow(unsafe_code)] // the exported main functions

mod coordinator;
mod ddl;
mod election;
mod exchange;
mod keeper;
mod look;
mod process;
mod relay;
mod signals;
mod stager;
mod stagers;
mod trouble;
pub mod view;

/// Installs the hooks and registers the coordinator. `_PG_init` calls this while the server
/// preloads the library.
pub fn register() {
    ddl::install();
    coordinator::register();
}
