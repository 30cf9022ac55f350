//! `oban_install`, `oban_uninstall`, and the triggers that they add to the tables of a prefix and
//! remove.

pub mod insert;
mod install;
pub mod peers;
mod tables;
