//! The page on operating lists the lines that obanrs writes to the server's log, as they are.

use std::fs;
use std::path::Path;

use super::lexer::{Kind, kinds};
use super::read;

/// The text of all sources of a folder, with quotes as the log shows them.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("src is there") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else {
            text.push_str(&fs::read_to_string(&path).expect("a source is text").replace("\\\"", "\""));
        }
    }
    text
}

/// The lines of the table: what stands between backquotes, cut at each "…".
fn listed() -> Vec<Vec<String>> {
    let page = read("docs/operating.md");
    let chapter = page.split("## What do the lines in the log mean?").nth(1).expect("the chapter is there");
    let chapter = chapter.split("\n## ").next().unwrap_or_default();
    let cells = chapter.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let lines = cells.flat_map(|cell| cell.split("`, `").map(|line| line.trim_end_matches('`').to_owned()));
    let pieces = |line: String| line.split('…').map(str::to_owned).filter(|p| p.trim().len() > 2).collect();
    lines.map(pieces).collect()
}

#[test]
fn each_listed_line_is_one_that_the_sources_have() {
    let sources = sources(Path::new("src"));
    let listed = listed();
    assert!(listed.len() > 12, "{listed:?}");
    for line in listed {
        // Some lines are put together: "obanrs: " and what follows it.
        let first = [line[0].as_str(), line[0].trim_start_matches("obanrs: ")];
        let starts = first.iter().flat_map(|first| sources.match_indices(first));
        let there = starts.into_iter().any(|(at, _)| {
            let near = &sources[at..sources.len().min(at + 400)];
            line[1..].iter().all(|piece| near.contains(piece.as_str()))
        });
        assert!(there, "no source logs {line:?}");
    }
}

/// Whether a line of the log is a listed one: it has all pieces of that one, in their order.
fn is_listed(line: &str, listed: &[Vec<String>]) -> bool {
    listed.iter().any(|pieces| {
        let mut rest = line;
        let mut has = |piece: &String| {
            let at = rest.find(piece.trim());
            rest = at.map_or("", |at| &rest[at + piece.trim().len()..]);
            at.is_some()
        };
        pieces.iter().all(&mut has)
    })
}

/// A source without comments. In its text the number of a literal stands for the literal.
struct Code {
    text: String,
    literals: Vec<String>,
}

/// A function of a source: its name, its parameters without `self`, and its body.
struct Function<'c> {
    name: &'c str,
    parameters: Vec<&'c str>,
    body: &'c str,
}

/// From an opening bracket on, what is between it and the one that closes it.
fn within(text: &str) -> &str {
    upto(&text[1..], |c| matches!(c, ')' | ']' | '}'))
}

/// What is before the first of these characters that is in no brackets.
fn upto(text: &str, is_end: impl Fn(char) -> bool) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            _ if depth == 0 && is_end(c) => return &text[..at],
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// The parts of a list between commas.
fn items(list: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), list);
    while !rest.trim().is_empty() {
        let item = upto(rest, |c| c == ',');
        found.push(item.trim());
        rest = rest[item.len()..].trim_start_matches(',');
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Code {
    fn of(source: &str) -> Self {
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or(source);
        let (mut code, mut before) = (Self { text: String::new(), literals: Vec::new() }, Kind::Code);
        for (c, kind) in kinds(source) {
            match kind {
                Kind::Code => code.text.push(c),
                Kind::Comment => {}
                Kind::Text if before == kind => code.literals.last_mut().expect("it has begun").push(c),
                Kind::Text => {
                    code.text.push_str(&format!("\"{}\"", code.literals.len()));
                    code.literals.push(String::new()); // without the first quote
                }
            }
            before = kind;
        }
        for literal in &mut code.literals {
            *literal =
                literal.trim_end_matches('#').strip_suffix('"').expect("it ends").replace("\\\"", "\"");
        }
        code
    }

    fn functions(&self) -> Vec<Function<'_>> {
        let function = |at: usize| {
            let rest = &self.text[at + 3..];
            let name = &rest[..rest.find(|c| !is_word(c))?];
            let list = &rest[rest.find('(')?..];
            let parameters = within(list);
            let body = within(&list[list.find('{')?..]);
            let parameters =
                items(parameters).into_iter().filter_map(|p| Some(p.split_once(':')?.0)).collect();
            Some(Function { name, parameters, body })
        };
        self.text.match_indices("fn ").filter_map(|(at, _)| function(at)).collect()
    }

    /// The literals in a piece of the text, each with where it is there.
    fn literals_in<'c>(&'c self, text: &str) -> Vec<(usize, &'c str)> {
        let numbers = text.match_indices('"').step_by(2);
        let literal = |at: usize| {
            let number: usize = text[at + 1..].split('"').next()?.parse().ok()?;
            Some((at, self.literals[number].as_str()))
        };
        numbers.filter_map(|(at, _)| literal(at)).collect()
    }

    /// What a name of a function may stand for, as far as literals tell: by `let`, or as a parameter in calls
    /// from the same file.
    fn meanings(&self, function: &Function<'_>, name: &str, depth: usize) -> Vec<String> {
        let all = |text: &str, within: &Function<'_>| -> Vec<String> {
            // What follows a comma is an argument of `format!`.
            let literals = self.literals_in(text).into_iter();
            let literals = literals.filter(|(at, _)| !text[..*at].trim_end().ends_with(','));
            let literals = literals.map(|(_, literal)| literal);
            literals.flat_map(|literal| self.expanded(literal, within, depth + 1)).collect()
        };
        let lets: Vec<_> = function.body.split(&format!("let {name} =")).skip(1).collect();
        if !lets.is_empty() {
            return lets.iter().flat_map(|rest| all(upto(rest, |c| c == ';'), function)).collect();
        }
        let Some(nth) = function.parameters.iter().position(|p| *p == name) else { return Vec::new() };
        let mut found = Vec::new();
        for caller in self.functions() {
            for (at, call) in caller.body.match_indices(&format!("{}(", function.name)) {
                if caller.body[..at].ends_with(is_word) {
                    continue;
                }
                let given = within(&caller.body[at + call.len() - 1..]);
                let Some(given) = items(given).get(nth).copied() else { continue };
                found.extend(all(given, &caller));
                if given.trim_start_matches('&').chars().all(is_word) {
                    found.extend(self.meanings(&caller, given.trim_start_matches('&'), depth + 1));
                }
            }
        }
        found
    }

    /// A literal with what its named placeholders may stand for: as many texts as there are meanings.
    fn expanded(&self, literal: &str, function: &Function<'_>, depth: usize) -> Vec<String> {
        let mut texts = vec![literal.to_owned()];
        for name in literal.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)) {
            if name.is_empty() || !name.chars().all(is_word) || depth > 4 {
                continue;
            }
            let meanings = self.meanings(function, name, depth);
            if !meanings.is_empty() {
                let with = |text: &String| {
                    let texts = meanings.iter().map(|meaning| text.replace(&format!("{{{name}}}"), meaning));
                    texts.collect::<Vec<_>>()
                };
                texts = texts.iter().flat_map(with).collect();
            }
        }
        texts
    }

    /// The lines that begin with the name of the extension, as the log shows them but for placeholders.
    fn lines(&self) -> Vec<String> {
        let mut found = Vec::new();
        for function in self.functions() {
            for (at, literal) in self.literals_in(function.body) {
                let before = function.body[..at].trim_end_matches("&format!(");
                // Not the name of a process, nor c"…", which pg_stat_activity shows.
                let is_name =
                    before.ends_with("name: ") || before.ends_with("kind: ") || before.ends_with('c');
                if (literal.starts_with("obanrs ") || literal.starts_with("obanrs: ")) && !is_name {
                    found.extend(self.expanded(literal, &function, 0));
                }
            }
        }
        found
    }
}

/// The lines of all sources of a folder.
fn lines_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src is there") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            found.extend(lines_of(&path));
        } else {
            found.extend(Code::of(&fs::read_to_string(&path).expect("a source is text")).lines());
        }
    }
    found
}

#[test]
fn each_line_of_the_workers_is_listed() {
    let listed = listed();
    let lines: Vec<String> =
        ["src/worker", "src/shmem"].into_iter().flat_map(|f| lines_of(Path::new(f))).collect();
    assert!(lines.len() > 15, "{lines:?}");
    assert!(listed.iter().all(|pieces| !pieces.is_empty()), "a listed line says nothing: {listed:?}");
    for line in &lines {
        assert!(is_listed(line, &listed), "{line:?} is not in docs/operating.md");
    }
    // These are put together.
    for known in [
        "obanrs: no place for ",
        "obanrs: can't start a ",
        "obanrs in {}: NOTIFY's queue is full",
        "obanrs in {}: looking for expired leaders",
        "obanrs in {}: election of ",
        "obanrs in {}: elections in prefix ",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(known)), "the search does not find {known:?}");
    }
}

#[test]
fn what_a_line_is_put_together_of_is_found() {
    let source = r#"
impl Retries {
    fn failed(&mut self, failed: &Failed) {
        let what = if x { format!("one \"{}\": {why}", "not this") } else { format!("two") };
        self.report(1, &what);
        self.report(2, "three");
        self.other("not that");
    }
    // self.report(3, "in a comment");
    fn report(&self, n: u32, what: &str) {
        let message = format!("obanrs in {}: {what}", database());
        log(message);
        run(c"obanrs: an activity", name: &format!("obanrs {n}"));
    }
    fn unannounced() {
        let what = "four";
        log!("obanrs: {what}, {later}");
    }
}"#;
    let lines = Code::of(source).lines();
    let expected = ["in {}: one \"{}\": {why}", "in {}: two", "in {}: three"];
    let expected: Vec<String> = expected.iter().map(|line| format!("obanrs {line}")).collect();
    assert_eq!(lines, [expected, vec!["obanrs: four, {later}".into()]].concat());

    let listed = [vec!["obanrs ".to_owned(), " rings of ".to_owned()], vec![": four ".to_owned()]];
    for (line, expected) in [
        ("obanrs {}: {} rings of {}", true),
        ("obanrs: four, {later}", true),
        ("obanrs in {}: two", false),
        ("{} rings of obanrs", false),
    ] {
        assert_eq!(is_listed(line, &listed), expected, "{line}");
    }
}
