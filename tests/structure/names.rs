//! Names in prose are names of the code. ARCHITECTURE.md and the comments of src are held to this.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use super::lexer::without_comments;

/// Three of these files plant wrong names. The install scripts of releases have names of the past, and the
/// drivers have names of others.
const NOT_SEARCHED: [&str; 5] = [
    "tests/structure/architecture.rs",
    "tests/structure/names.rs",
    "tests/structure/prose.rs",
    "tests/drivers/node_modules",
    "sql/archive",
];

/// Returns what stands between backquotes.
pub fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns whether a word may be the name of something in the code, or a path of such names.
pub fn is_identifier(word: &str) -> bool {
    let is_part = |c: char| c == '_' || c == ':' || c.is_ascii_alphanumeric();
    !word.is_empty() && word.chars().all(is_part) && !word.ends_with(':')
}

/// Returns the name of the field that a line of a struct declares. `None`: the line declares no field.
fn field(line: &str) -> Option<&str> {
    let line = line.trim();
    let declared = line.strip_prefix("pub(super) ").or(line.strip_prefix("pub ")).unwrap_or(line);
    let (name, _) = declared.strip_suffix(',')?.split_once(": ")?;
    name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()).then_some(name)
}

/// A file that may have the names.
pub struct Source {
    /// Its words without those of comments, and the parts of its path: a module has the name of its file.
    words: HashSet<String>,
    /// The words that follow `fn` and `mod`, and those of fields.
    members: HashSet<String>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { without_comments(text) } else { text.to_owned() };
        let is_word = |c: char| c == '_' || c.is_ascii_alphanumeric();
        let all: Vec<&str> = code.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
        let declared = all.windows(2).filter(|pair| ["fn", "mod"].contains(&pair[0]));
        let fields = code.lines().filter_map(field);
        let of_path = path.split(|c| !is_word(c));
        Self {
            members: declared.map(|pair| pair[1]).chain(fields).map(str::to_owned).collect(),
            words: all.iter().copied().chain(of_path).map(str::to_owned).collect(),
        }
    }

    /// Returns whether a name is in this file. `Type::function` and `Type::field` are there if both parts
    /// are, and the second is a function or a field. A variant only has to be a word.
    fn has(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split("::").collect();
        let is_there = parts.iter().all(|part| self.words.contains(*part));
        let is_member = |last: &&str| *last != last.to_lowercase() || self.members.contains(*last);
        is_there && (parts.len() == 1 || parts.last().is_some_and(is_member))
    }
}

/// Returns the names that no source has.
pub fn missing<'a>(names: BTreeSet<&'a str>, sources: &[Source]) -> Vec<&'a str> {
    names.into_iter().filter(|name| !sources.iter().any(|source| source.has(name))).collect()
}

/// Calls `each` with the path and the text of all files under a path.
pub fn each_file(path: &Path, each: &mut impl FnMut(&str, &str)) {
    let shown = path.to_string_lossy();
    if NOT_SEARCHED.contains(&&*shown) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("the folder is there") {
            each_file(&entry.expect("it can be read").path(), each);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        each(&shown, &text);
    }
}

/// Returns everything that has names of the code. Other documents prove nothing.
pub fn code() -> Vec<Source> {
    let mut sources = Vec::new();
    for path in ["src", "tests", "sql", "tools", "Makefile"] {
        each_file(Path::new(path), &mut |path, text| {
            if !path.ends_with(".md") {
                sources.push(Source::new(path, text));
            }
        });
    }
    sources
}

#[test]
fn a_name_that_is_in_no_code_is_found() {
    let source = "#[test]\nfn is_there() {}\n/// `only_said` is not code.\n";
    let sources = [
        Source::new("src/file.rs", "impl Type { fn call(&self, planted: u8) { Self::Variant } }"),
        Source::new(
            "src/other.rs",
            "struct Other {\n    pub field: u8,\n}\nconst LIMIT: u8 = a_lock + a_lock_of_another_name",
        ),
        Source::new("src/tests.rs", source),
    ];
    let there = ["is_there", "Type::call", "Type::Variant", "file::call", "LIMIT", "a_lock", "Other::field"];
    assert_eq!(missing(BTreeSet::from(there), &sources), [""; 0]);
    // These are a type's name with another type's function and with a parameter, a part of a name, and a name
    // that only a comment has.
    let wrong = ["Other::call", "Type::planted", "a_lock_of", "only_said"];
    assert_eq!(missing(BTreeSet::from(wrong), &sources), wrong);
}
