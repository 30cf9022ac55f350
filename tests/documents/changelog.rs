//! CHANGELOG.md has each version, the newest first.

use std::fs;

use crate::{VERSION, read};

/// The versions whose install scripts are kept, with this one.
fn versions() -> Vec<Vec<u32>> {
    let numbers = |version: &str| version.split('.').map(|n| n.parse().expect("a number")).collect();
    let mut found = vec![numbers(VERSION)];
    for entry in fs::read_dir("sql/archive").expect("it is there") {
        let name = entry.expect("it can be read").file_name().into_string().expect("it is text");
        let version = name.strip_prefix("obanrs--").and_then(|name| name.strip_suffix(".sql"));
        found.push(numbers(version.unwrap_or_else(|| panic!("sql/archive/{name}"))));
    }
    found.sort();
    found.dedup();
    found.reverse();
    found
}

#[test]
fn the_changelog_has_each_version_with_its_date() {
    let text = read("CHANGELOG.md");
    let headings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut dates = Vec::new();
    let mut listed = Vec::new();
    for (n, heading) in headings.iter().enumerate() {
        let (version, date) = heading.split_once(" (").unwrap_or_else(|| panic!("no date: ## {heading}"));
        let date = date.strip_suffix(')').unwrap_or_else(|| panic!("## {heading}"));
        listed.push(version.split('.').map(|n| n.parse().expect("a number")).collect::<Vec<u32>>());
        if n == 0 && date == "unreleased" {
            continue;
        }
        let digits = date.bytes().filter(u8::is_ascii_digit).count();
        assert!(date.len() == 10 && digits == 8 && date.split('-').count() == 3, "## {heading}: {date}");
        dates.push(date);
    }
    assert_eq!(listed, versions(), "the sections of CHANGELOG.md, and the versions that there were");
    assert!(dates.is_sorted_by(|newer, older| newer >= older), "{dates:?}");
}

/// What docs/versions.md promises: an update script from each version to the next.
#[test]
fn each_version_has_an_update_script_from_the_one_before_it() {
    for pair in versions().windows(2) {
        let [newer, older] = [0, 1].map(|n| pair[n].iter().map(u32::to_string).collect::<Vec<_>>().join("."));
        let script = format!("sql/obanrs--{older}--{newer}.sql");
        assert!(fs::exists(&script).expect("sql can be read"), "{script} is missing");
    }
}
