//! The page on operating lists the lines that obanrs writes to the server's log, as they are.

use std::fs;
use std::path::Path;

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

#[test]
fn each_line_of_the_workers_is_listed() {
    let listed = listed();
    let mut found = 0;
    for folder in ["src/worker", "src/shmem"] {
        let sources = sources(Path::new(folder));
        for (at, _) in sources.match_indices("\"obanrs") {
            let literal = sources[at + 1..].split(['\n', '{']).next().unwrap_or_default();
            // Not the name of a process or of a symbol, nor c"…", which pg_stat_activity shows.
            let logged = literal.starts_with("obanrs ") || literal.starts_with("obanrs: ");
            if !logged
                || sources[..at].ends_with('c')
                || literal.len() < 15
                || literal.contains("coordinator\"")
            {
                continue;
            }
            let whole = &sources[at..sources.len().min(at + 200)];
            let known = listed.iter().flatten().any(|piece| whole.contains(piece.as_str()));
            assert!(known, "{literal:?} is not in docs/operating.md");
            found += 1;
        }
    }
    assert!(found > 8, "{found} lines");
}
