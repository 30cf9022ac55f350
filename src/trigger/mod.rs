//! `oban_install`, `oban_uninstall`, and the triggers that they add to the tables of a prefix and
//! remove.

mod due_index;
mod install;
pub mod jobs;
pub mod peers;
pub mod repeats;
mod tables;
pub mod watch;
pub mod watched;
