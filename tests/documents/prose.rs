//! Documents are short, their links lead somewhere, and most of their sentences are short.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::read;

/// README, docs and the other documents at the top.
fn documents() -> Vec<PathBuf> {
    let in_folder = |folder: &str| {
        let files = std::fs::read_dir(folder).expect("the folder is there");
        let paths = files.map(|file| file.expect("it can be read").path());
        let paths = paths.map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path));
        paths.filter(|path| path.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>()
    };
    let mut all = in_folder(".");
    all.extend(in_folder("docs"));
    all.push("tests/README.md".into());
    assert!(all.len() > 10, "{all:?}");
    all
}

#[test]
fn readme_and_pages_are_short() {
    for path in documents() {
        let most = match path.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
            "README.md" => 250,
            "reference.md" => continue, // it is generated
            _ if path.starts_with("docs") => 150,
            _ => continue,
        };
        let lines = read(path.to_str().expect("a path is text")).lines().count();
        assert!(lines <= most, "{}: {lines} lines, at most {most}", path.display());
    }
}

#[test]
fn a_page_begins_with_the_question_that_it_answers() {
    for path in
        documents().into_iter().filter(|path| path.starts_with("docs") && !path.ends_with("reference.md"))
    {
        let text = read(path.to_str().expect("a path is text"));
        let title = text.lines().next().unwrap_or_default();
        assert!(title.starts_with("# ") && title.ends_with('?'), "{}: {title}", path.display());
        let readme = read("README.md");
        assert!(
            readme.contains(&format!("]({})", path.display())),
            "README does not link {}",
            path.display()
        );
    }
}

/// The name by which a heading can be linked, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> HashSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let (mut followed, mut broken) = (0, Vec::new());
    for path in documents() {
        let text = read(path.to_str().expect("a path is text"));
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(Path::new("")).join(file),
            };
            let leads = file.exists()
                && (heading.is_empty()
                    || anchors(&read(file.to_str().expect("a path is text"))).contains(heading));
            if !leads {
                broken.push(format!("{}: {target}", path.display()));
            }
            followed += 1;
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
    assert!(followed > 30, "{followed} links");
}

/// Debian's package has docs, and beside it the documents at the top to which docs link. The changelog is
/// there under Debian's own name.
#[test]
fn the_package_has_the_documents_that_docs_link() {
    let (copied, installed) = (read("tools/deb"), read("debian/rules"));
    let mut linked = HashSet::new();
    for path in documents().into_iter().filter(|path| path.starts_with("docs")) {
        let text = read(path.to_str().expect("a path is text"));
        let targets = text.match_indices("](../").map(|(at, _)| &text[at + 5..]);
        let names = targets.filter_map(|target| target.split([')', '#']).next());
        linked.extend(names.filter(|name| !name.contains('/')).map(str::to_owned));
    }
    assert!(linked.remove("CHANGELOG.md"), "the search finds nothing");
    for name in linked {
        let is_packed = |script: &str| script.split_whitespace().any(|word| word == name);
        assert!(is_packed(&copied) && is_packed(&installed), "{name} is not in Debian's package");
    }
}

/// The sentences of the running text: neither code, tables nor headings.
fn sentences(text: &str) -> Vec<String> {
    let mut prose = String::new();
    for (i, part) in text.split("```").enumerate() {
        if i % 2 == 1 {
            prose.push_str(" . ");
            continue;
        }
        for line in part.lines() {
            let line = line.trim().trim_start_matches("> ");
            match line.chars().next() {
                None | Some('|' | '#' | '<' | '!') => prose.push_str(" . "),
                Some('*' | '-') if line[1..].starts_with(' ') => {
                    prose.push_str(&format!(" . {}", &line[2..]))
                }
                _ => prose.push_str(line),
            }
            prose.push(' ');
        }
    }
    // What is in backquotes is one word, whatever it contains.
    let words: String =
        prose.split('`').enumerate().map(|(i, s)| if i % 2 == 1 { "code" } else { s }).collect();
    let plain = words.replace("**", "");
    let ends = plain.replace(": ", ". ").replace("; ", ". ").replace("? ", ". ");
    let sentences = ends.split(". ").map(|s| s.trim().to_owned());
    sentences.filter(|s| s.split_whitespace().count() > 1).collect()
}

#[test]
fn most_sentences_are_short() {
    let mut failures = Vec::new();
    for path in documents() {
        if path.starts_with("tests") || path.ends_with("reference.md") || path.ends_with("CHANGELOG.md") {
            continue;
        }
        let sentences = sentences(&read(path.to_str().expect("a path is text")));
        let long: Vec<_> = sentences.iter().filter(|s| s.split_whitespace().count() > 20).collect();
        if long.len() * 10 > sentences.len() {
            let of = sentences.len();
            failures.push(format!(
                "{}: {} of {of} have more than 20 words: {long:#?}",
                path.display(),
                long.len()
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn sentences_are_told_apart() {
    let text = "# Not this\n\nOne two. Three `a b c` four:\n\n* five six\n* seven eight\n\n| no | no |\n\n```\nno\n```\n";
    assert_eq!(sentences(text), ["One two", "Three code four", "five six", "seven eight"]);
    assert_eq!(anchor(" What does `missed` mean?"), "what-does-missed-mean");
}
