//! What reviewers would have to look for by hand: who depends on whom, and where the dangerous is.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src is there") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source is text");
            found.push((path.strip_prefix("src").unwrap_or(&path).to_owned(), text));
        }
    }
    found
}

/// The part of the crate that a file belongs to: its folder, or its own name.
fn part(path: &Path) -> String {
    let first = path.iter().next().expect("it has a name").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn dependencies_point_one_way() {
    let below = |part: &str| -> &[&str] {
        match part {
            "logic" => &[],
            "config" => &[],
            "error" => &["logic"],
            "pg" => &["error", "logic"],
            "prefix" => &["pg", "error", "logic"],
            "shmem" => &["logic", "pg", "config", "error"],
            "bus" => &["shmem", "logic", "pg", "config", "error"],
            _ => &["bus", "shmem", "prefix", "logic", "pg", "config", "error"],
        }
    };
    let mut looked_at = 0;
    for (path, text) in sources(Path::new("src")) {
        let own = part(&path);
        if own == "lib" || own == "tests" {
            continue;
        }
        for line in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let used: String =
                    line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(!used.is_empty(), "{path:?} imports several parts in one `use`: {line}");
                let known = [
                    "logic", "pg", "prefix", "shmem", "config", "error", "notifier", "peer", "gossip",
                    "trigger", "worker", "health", "bus",
                ];
                if known.contains(&used.as_str()) {
                    looked_at += 1;
                    assert!(
                        used == own || below(&own).contains(&used.as_str()),
                        "{path:?} ({own}) uses {used}: {line}"
                    );
                }
            }
        }
    }
    assert!(looked_at > 50, "only {looked_at} dependencies were found: is the search still right?");
}

#[test]
fn versions_of_postgres_are_told_apart_in_pg_only() {
    let mut there = 0;
    for (path, text) in sources(Path::new("src")) {
        let versions = code(&text).filter(|l| l.contains("feature = \"pg1")).count();
        if part(&path) == "pg" {
            there += versions;
        } else {
            assert_eq!(versions, 0, "{path:?}");
        }
    }
    assert!(there > 0, "the search finds nothing at all");
}

/// See the head of src/pg/hooks.rs.
#[test]
fn hooks_are_bare() {
    let text = fs::read_to_string("src/pg/hooks.rs").expect("it is there");
    for hook in ["utility", "access"] {
        let at = text.find(&format!("unsafe extern \"C-unwind\" fn {hook}(")).expect("the hook is there");
        let (before, body) = text.split_at(at);
        assert!(!before.trim_end().ends_with("pg_guard]"), "{hook} must not be guarded");
        let body = &body[..body.find("\n}\n").expect("it ends")];
        for owning in
            ["String", "Vec", "format!", "Box", "to_owned", "CString", "pg_sys::standard_ProcessUtility"]
        {
            assert!(!body.contains(owning), "{hook} must own nothing that an error would leak: {owning}");
        }
    }
}

#[test]
fn every_unsafe_block_says_why() {
    for (path, text) in sources(Path::new("src")) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            if line.contains("unsafe {") && !line.starts_with("//") {
                let near = &lines[i.saturating_sub(12)..i];
                assert!(near.iter().any(|l| l.contains("SAFETY:")), "{path:?}:{}: {line}", i + 1);
            }
        }
    }
}

#[test]
fn every_sql_error_has_a_test() {
    let tests: String = sources(Path::new("tests/server")).into_iter().map(|(_, text)| text).collect();
    let codes = [
        "22004", "22023", "23505", "25006", "3F000", "40001", "42501", "53400", "54000", "55000", "55P03",
        "0A000",
    ];
    for code in codes {
        assert!(tests.contains(&format!("\"{code}\"")), "no test meets {code}");
    }
}
