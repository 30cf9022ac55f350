//! What `oban_install` puts on the tables of a prefix.

mod attached;
pub mod insert;
mod install;
pub mod peers;
mod tables;
