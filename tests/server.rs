//! Real servers, real clients: commit, workers, failover, restart. Each test has a server of its own.

mod support;

#[path = "server/lifecycle.rs"]
mod lifecycle;
#[path = "server/path.rs"]
mod path;
