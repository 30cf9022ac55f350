//! What the documents say of the project, held to what it is. No server is needed.

use std::fs;

#[path = "documents/figures.rs"]
mod figures;
#[path = "documents/log_lines.rs"]
mod log_lines;
#[path = "documents/prose.rs"]
mod prose;

/// The text of a file of the checkout.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The version in Cargo.toml, which every other place repeats.
const VERSION: &str = env!("CARGO_PKG_VERSION");
