//! The comments on the extension's objects, as sql/90_finish.sql has them: their form and their parts.
//!
//! Users read them in psql and in docs/reference.md. The suites hold functions to the SQLSTATEs that they
//! announce.
#![allow(dead_code)] // each user takes a part

use std::collections::BTreeSet;
use std::sync::OnceLock;

/// The file that gives each object its comment.
pub const FILE: &str = "sql/90_finish.sql";

/// A first line is shorter than this, so that it fits into a line of `\df+`.
const FIRST_LINE: usize = 80;

/// A name and what it means: an argument, a column, a counter or an SQLSTATE.
pub type Item = (String, String);

/// A comment in its parts. A part that the comment lacks is empty.
#[derive(Debug, Default)]
pub struct Comment {
    pub first: String,
    pub arguments: Vec<Item>,
    pub result: Option<String>,
    /// The columns of a view, or of a function's result.
    pub columns: Vec<Item>,
    pub counters: Vec<Item>,
    pub sentences: Vec<String>,
    pub rights: Option<String>,
    pub errors: Vec<Item>,
}

/// Returns the statements of a script that give comments, word for word.
pub fn statements(script: &str) -> Vec<&str> {
    let begins = script.match_indices("COMMENT ON ").map(|(at, _)| at);
    let begins = begins.filter(|at| *at == 0 || script[..*at].ends_with('\n'));
    begins.map(|at| &script[at..at + script[at..].find("';").expect("it ends") + 2]).collect()
}

/// Returns the object of a statement, as in `FUNCTION @extschema@.oban_version()`, and the text of the
/// comment.
pub fn object_and_text(statement: &str) -> (&str, String) {
    let statement = statement.strip_prefix("COMMENT ON ").expect("it begins so");
    let (object, text) = statement.split_once(" IS\n'").expect("the text begins on a line of its own");
    (object, text.strip_suffix("';").expect("it ends").replace("''", "'"))
}

/// Returns the parts of a comment. `Err` says how its form is wrong.
pub fn parse(text: &str) -> Result<Comment, String> {
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    if first.is_empty() || first.contains('\n') || first.len() >= FIRST_LINE {
        return Err(format!("the first paragraph is no line of fewer than {FIRST_LINE} characters: {first}"));
    }
    let mut comment = Comment { first: first.to_owned(), ..Comment::default() };
    let mut last = 0;
    for paragraph in paragraphs {
        let mut lines = paragraph.lines();
        let head = lines.next().unwrap_or_default();
        let place = match head {
            "Arguments:" => (1, &mut comment.arguments),
            "Columns:" => (2, &mut comment.columns),
            "Counters:" => (3, &mut comment.counters),
            "Errors:" => (5, &mut comment.errors),
            _ if head.starts_with("Result: ") => {
                comment.result = head.strip_prefix("Result: ").map(str::to_owned);
                (2, &mut comment.columns)
            }
            _ => {
                for line in paragraph.lines() {
                    note(line, &mut comment)?;
                }
                lines = "".lines();
                (4, &mut Vec::new())
            }
        };
        let (rank, items) = place;
        if rank <= last {
            return Err(format!("out of its order, or twice: {head}"));
        }
        last = rank;
        for line in lines {
            let item = line.split_once(": ").filter(|(name, _)| !name.contains(' '));
            let (name, meaning) = item.ok_or_else(|| format!("under {head} there is no name: {line}"))?;
            items.push((name.to_owned(), meaning.to_owned()));
        }
    }
    Ok(comment)
}

/// Takes a line beside the lists into the comment. `Err` says how its form is wrong.
fn note(line: &str, comment: &mut Comment) -> Result<(), String> {
    let section = line.split_once(':').map(|(word, rest)| (word, rest.trim_start()));
    match section {
        Some(("Rights", rights)) if comment.rights.is_none() => comment.rights = Some(rights.to_owned()),
        Some((word, _)) if word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphabetic) => {
            return Err(format!("an unknown section: {line}"));
        }
        _ => comment.sentences.push(line.to_owned()),
    }
    Ok(())
}

/// Returns the SQLSTATEs that the comment on a function or procedure of the extension announces. `None` means
/// that there is no such function.
pub fn announced(function: &str) -> Option<&'static BTreeSet<String>> {
    static ALL: OnceLock<Vec<(String, BTreeSet<String>)>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let script = std::fs::read_to_string(FILE).expect("it is there");
        let of = |statement: &&str| {
            let (object, text) = object_and_text(statement);
            let (_, name) = object.split_once(" @extschema@.").expect("it is qualified");
            let (name, _) = name.split_once('(')?; // or it is a view
            let comment = parse(&text).unwrap_or_else(|wrong| panic!("{object}: {wrong}"));
            Some((name.to_owned(), comment.errors.into_iter().map(|(code, _)| code).collect()))
        };
        statements(&script).iter().filter_map(of).collect()
    });
    all.iter().find(|(name, _)| name == function).map(|(_, codes)| codes)
}
