//! What the documents say of the project, held to what it is. No server is needed.

use std::fs;

#[path = "documents/changelog.rs"]
mod changelog;
#[path = "documents/figures.rs"]
mod figures;
#[path = "structure/lexer.rs"]
#[allow(dead_code)] // the suite of structure needs more of it
mod lexer;
#[path = "documents/licence.rs"]
mod licence;
#[path = "documents/log_lines.rs"]
mod log_lines;
#[path = "documents/meta.rs"]
mod meta;
#[path = "documents/prose.rs"]
mod prose;
#[path = "documents/third_party.rs"]
mod third_party;

/// The text of a file of the checkout.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The version in Cargo.toml, which every other place repeats.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The value of a key of a table of a TOML file, where it is one string in one line.
fn toml_string(text: &str, table: &str, key: &str) -> Option<String> {
    let body = text.split(&format!("[{table}]\n")).nth(1)?;
    let body = body.split("\n[").next()?;
    let line = body.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))?;
    Some(line.trim().trim_matches('"').to_owned())
}
