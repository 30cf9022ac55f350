//! What `oban_install` puts on the tables of a prefix.

pub mod insert;
mod install;
pub mod peers;
