//! What the characters of a Rust source are: code, comment, or part of a string literal.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Code,
    Comment,
    /// Part of a string literal, its quotes included.
    Text,
}

/// Returns the length of the string literal that begins here, in characters. `None`: none begins here.
/// `follows_word` says whether a letter is before, so that an `r` is the end of a name.
fn literal(rest: &[char], follows_word: bool) -> Option<usize> {
    let hashes = match rest {
        ['r', raw @ ..] if !follows_word => Some(raw.iter().take_while(|c| **c == '#').count()),
        _ => None,
    };
    match hashes {
        Some(hashes) if rest.get(hashes + 1) == Some(&'"') => {
            let end = |at: &usize| rest[*at] == '"' && rest[at + 1..].iter().take(hashes).all(|c| *c == '#');
            let close = (hashes + 2..rest.len()).find(end)?;
            Some(close + hashes + 1)
        }
        _ if rest.first() == Some(&'"') => {
            let mut at = 1;
            while *rest.get(at)? != '"' {
                at += if rest[at] == '\\' { 2 } else { 1 };
            }
            Some(at + 1)
        }
        _ => None,
    }
}

/// Returns the length of the character literal that begins here, such as that of a quote. `None`: none begins
/// here.
fn character(rest: &[char]) -> Option<usize> {
    match rest {
        ['\'', '\\', _, more @ ..] => Some(more.iter().position(|c| *c == '\'')? + 4),
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// Returns each character with its kind. Newlines of comments and literals have the kind of these.
pub fn kinds(source: &str) -> Vec<(char, Kind)> {
    let chars: Vec<char> = source.chars().collect();
    let mut out: Vec<(char, Kind)> = Vec::with_capacity(chars.len());
    while out.len() < chars.len() {
        let at = out.len();
        let rest = &chars[at..];
        // The prefixes of byte and C strings are no part of a name that ends in r.
        let follows_word = at > 0 && chars[at - 1].is_alphanumeric() && !matches!(chars[at - 1], 'b' | 'c');
        let (length, kind) = if rest.starts_with(&['/', '/']) {
            (rest.iter().take_while(|c| **c != '\n').count(), Kind::Comment)
        } else if let Some(length) = literal(rest, follows_word) {
            (length, Kind::Text)
        } else {
            (character(rest).unwrap_or(1), Kind::Code)
        };
        out.extend(rest[..length].iter().map(|c| (*c, kind)));
    }
    out
}

/// Returns the lines of a source, without their newlines.
pub fn lines(source: &str) -> Vec<Vec<(char, Kind)>> {
    kinds(source).split(|(c, _)| *c == '\n').map(<[_]>::to_vec).collect()
}

/// Returns a source without its comments.
pub fn without_comments(source: &str) -> String {
    let kept = kinds(source).into_iter().filter(|(_, kind)| *kind != Kind::Comment);
    kept.map(|(c, _)| c).collect()
}

#[test]
fn comments_and_literals_are_told_apart() {
    let source = r##"let a = "x // \" y"; // "z"
let b = r#"\" // "#; let c = '"'; let d = '\''; f::<'a>(br"\"); // e
let for_ = "multi
    // line";"##;
    let shown: String = kinds(source)
        .into_iter()
        .map(|(c, kind)| match kind {
            _ if c == '\n' => '\n',
            Kind::Code => c,
            Kind::Comment => '/',
            Kind::Text => 'T',
        })
        .collect();
    assert_eq!(
        shown,
        "let a = TTTTTTTTTTT; //////\n\
         let b = TTTTTTTTTTT; let c = '\"'; let d = '\\''; f::<'a>(bTTTT); ////\n\
         let for_ = TTTTTT\nTTTTTTTTTTTT;"
    );
    assert_eq!(without_comments("a // b\n// c\nd"), "a \n\nd");
}
