//! The comments on the extension's objects: what can be said of them without a server.

use std::fs;

#[path = "../support/comments.rs"]
mod comments;

use comments::{FILE, object_and_text, parse, statements};

/// A sentence has no more words than a tired reader takes in at once.
const MOST_WORDS: usize = 25;

/// Words on which a sentence turns whose subject should have its name.
const UNNAMED: [&str; 5] = ["who", "whoever", "whom", "one's", "somebody"];

#[test]
fn comments_have_one_form_and_short_sentences() {
    let script = fs::read_to_string(FILE).expect("it is there");
    let statements = statements(&script);
    assert!(statements.len() > 35, "{} comments were found", statements.len());
    for statement in statements {
        let (object, text) = object_and_text(statement);
        let comment = parse(&text).unwrap_or_else(|wrong| panic!("{object}: {wrong}"));
        assert!(text.is_ascii(), "{object}: databases of every encoding run the script");
        assert!(!text.contains('@'), "{object}: CREATE EXTENSION replaces some words between two of these");
        assert_eq!(
            object.contains(" @extschema@.obanrs_"),
            comment.first.starts_with("Internal: "),
            "{object}"
        );
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_unnamed = |word: &&str| UNNAMED.contains(&word.trim_matches(|c: char| !c.is_alphabetic()));
            assert!(!words.iter().any(is_unnamed), "{object}: the sentence's subject has no name: {line}");
            for sentence in words.split_inclusive(|word| word.ends_with(['.', ';', ':'])) {
                let count = sentence.len();
                assert!(count <= MOST_WORDS, "{object}: {count} words: {}", sentence.join(" "));
            }
        }
    }
}

#[test]
fn a_comment_of_another_form_is_refused() {
    let fine = "Does it.\n\nArguments:\na: what.\n\nResult: one.\n\nIt does. See: there.\nRights: none.\n\nErrors:\n22004: a.";
    let comment = parse(fine).expect("it is fine");
    assert_eq!(comment.arguments, [("a".into(), "what.".into())]);
    assert_eq!(comment.errors, [("22004".into(), "a.".into())]);
    assert_eq!((comment.result.as_deref(), comment.rights.as_deref()), (Some("one."), Some("none.")));
    assert_eq!(comment.sentences, ["It does. See: there."]);
    let long = "x".repeat(80);
    for (wrong, why) in [
        (long.as_str(), "no line of fewer"),
        ("Two\nlines.", "no line of fewer"),
        ("Does it.\n\nReturns: one.", "an unknown section"),
        ("Does it.\n\nErrors:\n22004: a.\n\nArguments:\na: what.", "out of its order"),
        ("Does it.\n\nResult: one.\n\nResult: two.", "out of its order"),
        ("Does it.\n\nArguments:\njust so.", "no name"),
    ] {
        let refused = parse(wrong).expect_err(wrong);
        assert!(refused.contains(why), "{wrong}: {refused}");
    }
}

/// Or a database that was updated would keep the old ones.
#[test]
fn the_newest_update_brings_every_comment_word_for_word() {
    let ending = format!("--{}.sql", env!("CARGO_PKG_VERSION"));
    let scripts =
        fs::read_dir("sql").expect("it is there").map(|entry| entry.expect("it can be read").path());
    let updates: Vec<_> = scripts
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&ending)))
        .collect();
    assert_eq!(updates.len(), 1, "{updates:?}");
    let (script, update) = (fs::read_to_string(FILE).unwrap(), fs::read_to_string(&updates[0]).unwrap());
    for (own, updated) in statements(&script).iter().zip(statements(&update)) {
        assert_eq!(*own, updated, "tools/comments writes them into {:?}", updates[0]);
    }
    assert_eq!(statements(&script).len(), statements(&update).len(), "tools/comments writes them");
}
