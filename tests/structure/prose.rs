//! The comments of src and the width of all Rust: rules of CONTRIBUTING.md that a search can test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::lexer::{Kind, lines};
use super::names::{code, is_identifier, missing, quoted};
use super::sources;

/// Words on which a sentence turns whose subject should have its name.
const UNNAMED: [&str; 6] = ["who", "whoever", "whom", "of ours", "of its", "is none"];

/// How many lines of comments may have one of these words. Some sentences are right with them.
const MAX_UNNAMED: usize = 9;

/// The columns of a line, as in rustfmt.toml and .editorconfig.
const WIDTH: usize = 110;

/// Returns whether a text has these words as words of their own, in upper or lower case.
fn has_words(text: &str, words: &str) -> bool {
    let text = text.to_lowercase();
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    text.match_indices(words).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + words.len()..]);
        !before.ends_with(is_word) && !after.starts_with(is_word)
    })
}

/// Returns the lines of comments that turn on one of the words.
fn unnamed(source: &str) -> Vec<&str> {
    let comments = source.lines().map(str::trim_start).filter(|line| line.starts_with("//"));
    comments.filter(|line| UNNAMED.iter().any(|words| has_words(line, words))).collect()
}

#[test]
fn comments_name_their_subjects() {
    let mut found = Vec::new();
    for (path, text) in sources(Path::new("src")) {
        found.extend(unnamed(&text).into_iter().map(|line| format!("{}: {line}", path.display())));
    }
    let count = found.len();
    assert!(count <= MAX_UNNAMED, "{count} lines turn on {UNNAMED:?}, at most {MAX_UNNAMED}: {found:#?}");
}

/// Returns whether a string literal keeps this line from being shorter. A literal does if it would be too
/// long even on a line of its own. A literal that goes over several lines does if its part in this line is
/// too long. A literal that a backslash breaks can be broken at an earlier word, so it does not. If the
/// backslash follows `\n`, the line is a line of the literal's text, and stays as it is.
fn is_unbreakable(line: &[(char, Kind)], after_backslash: bool) -> bool {
    let text: String = line.iter().map(|(c, _)| *c).collect();
    if text.ends_with("\\n\\") {
        return true;
    }
    let indent = line.iter().take_while(|(c, _)| *c == ' ').count();
    let mut start = 0;
    line.chunk_by(|(_, a), (_, b)| a == b).any(|part| {
        let (from, to) = (start, start + part.len());
        start = to;
        let goes_on = to == line.len() && text.ends_with('\\');
        let is_broken = goes_on || (from == 0 && after_backslash);
        // Behind a literal is a comma, a semicolon or a bracket.
        let alone = match from {
            0 => to + usize::from(to < line.len()),
            _ => indent + 4 + part.len() + 1,
        };
        part[0].1 == Kind::Text && !is_broken && alone > WIDTH
    })
}

/// Returns the numbers of the lines that are too long and could be shorter.
fn too_long(source: &str) -> Vec<usize> {
    let (mut found, mut after_backslash) = (Vec::new(), false);
    for (at, line) in lines(source).into_iter().enumerate() {
        if line.len() > WIDTH && !is_unbreakable(&line, after_backslash) {
            found.push(at + 1);
        }
        after_backslash = line.last() == Some(&('\\', Kind::Text));
    }
    found
}

#[test]
fn lines_have_at_most_110_columns() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        for (path, text) in sources(Path::new(folder)) {
            found.extend(too_long(&text).into_iter().map(|line| format!("{}:{line}", path.display())));
        }
    }
    assert!(found.is_empty(), "longer than {WIDTH} columns: {found:#?}");
}

/// Returns the files that have no head, except those with the tests of another file.
fn without_head(files: &[(PathBuf, String)]) -> Vec<&Path> {
    let has_head = |(path, text): &&(PathBuf, String)| text.starts_with("//! ") || path.ends_with("tests.rs");
    files.iter().filter(|file| !has_head(file)).map(|(path, _)| path.as_path()).collect()
}

#[test]
fn each_file_begins_with_what_it_is_for() {
    assert_eq!(without_head(&sources(Path::new("src"))), Vec::<&Path>::new(), "no //! in the first line");
}

/// Returns the comments of a source as texts without their markers. Lines that follow each other are one
/// text.
fn comments(source: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in lines(source) {
        let Some(from) = line.iter().position(|(_, kind)| *kind == Kind::Comment) else {
            goes_on = false;
            continue;
        };
        let is_whole = line[..from].iter().all(|(c, _)| c.is_whitespace());
        let text: String = line[from..].iter().map(|(c, _)| *c).collect();
        let text = text.trim_start_matches(['/', '!']).trim();
        match found.last_mut() {
            Some(last) if goes_on && is_whole => *last += &format!("\n{text}"),
            _ => found.push(text.to_owned()),
        }
        goes_on = is_whole;
    }
    found
}

/// Returns the names in a comment that look like those of functions, types and constants.
fn names(comment: &str) -> BTreeSet<&str> {
    let is_camel_case = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_uppercase()) && word.contains(|c: char| c.is_ascii_lowercase())
    };
    let is_name = |word: &&str| is_identifier(word) && (word.contains(['_', ':']) || is_camel_case(word));
    comment.split("```").step_by(2).flat_map(quoted).filter(is_name).collect()
}

#[test]
fn each_name_in_a_comment_exists() {
    let code = code();
    let (mut count, mut found) = (0, Vec::new());
    for (path, text) in sources(Path::new("src")) {
        for comment in comments(&text) {
            let names = names(&comment);
            count += names.len();
            found.extend(missing(names, &code).iter().map(|name| format!("{}: {name}", path.display())));
        }
    }
    assert!(count > 200, "{count} names: is the search still right?");
    assert!(found.is_empty(), "comments name what is in no source: {found:#?}");
}

#[test]
fn a_planted_fault_is_found() {
    let source = "\
//! Whom it wakes.
fn f() {} // who
    /// The rest is none.
/// What belongs to a whole: none is whose.
let s = \"
// who\";
";
    assert_eq!(unnamed(source), ["//! Whom it wakes.", "/// The rest is none.", "// who\";"]);

    let (x, y) = ("x".repeat(99), "x y ".repeat(28));
    let long =
        format!("// {x}{x}\nlet a = {x} + {x};\nlet b = \"{y}\";\nlet c = {x}(\"short\", \"enough\");\n");
    assert_eq!(too_long(&long), [1, 2, 4]);
    let broken =
        format!("    \"{y} \\\n     and so on\\n\\\n     {y}\"\n    \"{y}\\n\\\n    \"; {x} // {x}\n");
    assert_eq!(too_long(&broken), [1, 3, 5]);
    let over_lines =
        format!("let a = \"SELECT\n    {y}\";\nlet b = \"a\n    b\"; // {x}\nlet d = 'é'; // {x}");
    assert_eq!(too_long(&over_lines), [5], "columns are characters");

    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    let files =
        [file("a.rs", "//! It is.\n"), file("b.rs", "use a;\n//! Late.\n"), file("c/tests.rs", "use a;\n")];
    assert_eq!(without_head(&files), [Path::new("b.rs")]);

    let source = "/// `Type::call` and `a\n/// b`, `of_one`.\n/// ```\n/// `in_code`\n/// ```\nx(\"// `a_text`\"); // `Late`\n// `word`, `LIMIT`";
    let comments = comments(source);
    let found: Vec<&str> = comments.iter().flat_map(|comment| names(comment)).collect();
    assert_eq!(found, ["Type::call", "of_one", "Late"]);
}
