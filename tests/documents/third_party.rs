//! THIRD-PARTY-LICENSES: what is linked into the library, as Cargo.lock has it, with the texts of its
//! licences. `make licenses` writes the file with this same code.
//!
//! Linked is what `cargo tree` calls normal dependencies, without procedural macros: these, and what build
//! scripts need, run while the library is built and are no part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::read;

const FILE: &str = "THIRD-PARTY-LICENSES";
/// The platforms that packages are built for.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
/// The one that is chosen where a crate offers several: the first of these.
const PREFERRED: [&str; 6] = ["MIT", "ISC", "BSD-3-Clause", "Zlib", "Unicode-3.0", "Apache-2.0"];
/// Crates whose packages in the registry lack the text that their licence asks for, and the file of
/// tools/licenses that has it.
const SUPPLIED: [(&str, &str); 4] = [
    ("pgrx", "pgrx.txt"),
    ("pgrx-pg-sys", "pgrx.txt"),
    ("pgrx-sql-entity-graph", "pgrx.txt"),
    ("seahash", "seahash.txt"),
];
const HEAD: &str = "\
Licences of what is linked into obanrs

The library obanrs.so is linked statically with the Rust crates that are listed
here, with the Rust standard library, and with inline functions of the headers
of Postgres. Where a crate offers several licences, the one that is named last
in its line was chosen. Procedural macros and build scripts run while the
library is built, and are no part of it.

Written by `make licenses` from Cargo.lock.
";

type Crate = (String, String);

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

fn linked() -> BTreeSet<Crate> {
    let mut found = BTreeSet::new();
    for target in TARGETS {
        let tree = cargo(&[
            "tree",
            "--locked",
            "--edges",
            "normal,no-proc-macro",
            "--target",
            target,
            "--no-default-features",
            "--features",
            "pg15,pg16,pg17,pg18",
            "--prefix",
            "none",
            "--no-dedupe",
        ]);
        for line in tree.lines() {
            let mut words = line.split(' ');
            let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
            found.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
        }
    }
    found.retain(|(name, _)| name != env!("CARGO_PKG_NAME"));
    found
}

/// Of an expression such as `(MIT OR Apache-2.0) AND Unicode-3.0`, one licence of each part.
fn chosen(expression: &str) -> Vec<&str> {
    let part = |part: &'_ str| {
        let offered: Vec<_> = part.trim_matches(['(', ')', ' ']).split([' ', '/']).collect();
        let preferred = PREFERRED.iter().find(|licence| offered.contains(licence));
        *preferred.unwrap_or_else(|| panic!("no licence of {expression:?} is among {PREFERRED:?}"))
    };
    expression.split(" AND ").map(part).collect()
}

/// A text is that of the licence if it says what no other says.
fn is_text_of(licence: &str, text: &str) -> bool {
    let says = |words: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").contains(words);
    match licence {
        "MIT" => says("Permission is hereby granted, free of charge, to any person obtaining a copy"),
        "ISC" => says("Permission to use, copy, modify, and/or distribute this software for any purpose"),
        "BSD-3-Clause" => says("Redistributions in binary form must reproduce the above copyright"),
        "Zlib" => says("Altered source versions must be plainly marked as such"),
        "Unicode-3.0" => says("UNICODE LICENSE V3"),
        "Apache-2.0" => says("TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"),
        other => panic!("nothing tells a text of {other}"),
    }
}

/// The text of a licence in the package of a crate: in a file of its folder or of LICENSES.
fn own_text(folder: &Path, licence: &str) -> Option<String> {
    let mut files = Vec::new();
    for place in [folder.to_owned(), folder.join("LICENSES")] {
        for entry in fs::read_dir(place).into_iter().flatten() {
            let path = entry.expect("a package can be read").path();
            let name = path.file_name().expect("it has a name").to_string_lossy().to_uppercase();
            let named = ["LICEN", "COPYING", "MIT", "ZLIB", "APACHE"].iter().any(|n| name.starts_with(n));
            if named && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.find(|text| is_text_of(licence, text))
}

fn tidy(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    let text = lines.join("\n").trim_matches('\n').to_owned() + "\n";
    text.trim_start_matches('\u{feff}').to_owned()
}

/// What the file has to be, and the faults that keep it from being whole.
fn written() -> (String, Vec<String>) {
    let mut packages = BTreeMap::new();
    for target in TARGETS {
        let answer = cargo(&["metadata", "--locked", "--format-version", "1", "--filter-platform", target]);
        let metadata: Value = serde_json::from_str(&answer).expect("cargo metadata prints JSON");
        for package in metadata["packages"].as_array().expect("it lists packages") {
            let of = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
            packages.insert((of("name"), of("version")), (of("license"), of("manifest_path")));
        }
    }
    let (mut list, mut faults) = (String::new(), Vec::new());
    // Crates with the same text share it.
    let mut texts = BTreeMap::<(&str, String), Vec<String>>::new();
    let linked = linked();
    let width = linked.iter().map(|(name, version)| name.len() + version.len() + 1).max().unwrap_or(0);
    for package in &linked {
        let title = format!("{} {}", package.0, package.1);
        let (expression, manifest) = &packages[package];
        let licences = chosen(expression);
        let licences: Vec<_> =
            licences.iter().map(|l| *PREFERRED.iter().find(|p| *p == l).expect("is one of them")).collect();
        list += &format!("{title:width$}  {expression} => {}\n", licences.join(" AND "));
        let folder = Path::new(manifest).parent().expect("it is in a folder");
        let supplied = SUPPLIED.iter().find(|(name, _)| *name == package.0);
        for licence in licences {
            let text = match (own_text(folder, licence), supplied) {
                (Some(_), Some((_, file))) => {
                    faults.push(format!("{title} has its own text now: tools/licenses/{file} is too much"));
                    continue;
                }
                (Some(text), None) => text,
                (None, Some((_, file))) => read(&format!("tools/licenses/{file}")),
                (None, None) => {
                    faults.push(format!("{title}: its package has no text of {licence}; see SUPPLIED"));
                    continue;
                }
            };
            assert!(is_text_of(licence, &text), "{title}: what is supplied is no text of {licence}");
            texts.entry((licence, tidy(&text))).or_default().push(title.clone());
        }
    }
    for (name, _) in SUPPLIED {
        if !linked.iter().any(|(linked, _)| linked == name) {
            faults.push(format!("{name} is linked no more: take it out of SUPPLIED"));
        }
    }
    let line = "-".repeat(79);
    let mut file = format!("{HEAD}\n{list}");
    for ((licence, text), crates) in &texts {
        file += &format!("\n{line}\n{licence}: {}\n{line}\n\n{text}", crates.join(", "));
    }
    for (title, supplied) in [("The Rust standard library", "rust.txt"), ("Postgres", "postgresql.txt")] {
        file +=
            &format!("\n{line}\n{title}\n{line}\n\n{}", tidy(&read(&format!("tools/licenses/{supplied}"))));
    }
    (file, faults)
}

#[test]
fn third_party_licences_are_those_of_what_is_linked() {
    let (file, faults) = written();
    assert!(faults.is_empty(), "{faults:#?}");
    if std::env::var_os("OBANRS_WRITE_LICENSES").is_some() {
        fs::write(FILE, &file).expect("it can be written");
    }
    let there = read(FILE);
    let missing: Vec<_> = file.lines().filter(|line| !there.contains(*line)).take(20).collect();
    assert!(
        there == file,
        "{FILE} is not what Cargo.lock asks for: run `make licenses`; it lacks {missing:#?}"
    );
}

#[test]
fn one_licence_of_each_part_is_chosen() {
    assert_eq!(chosen("Apache-2.0 OR MIT"), ["MIT"]);
    assert_eq!(chosen("MIT/Apache-2.0"), ["MIT"]);
    assert_eq!(chosen("(MIT OR Apache-2.0) AND Unicode-3.0"), ["MIT", "Unicode-3.0"]);
    assert_eq!(chosen("0BSD OR MIT OR Apache-2.0"), ["MIT"]);
    assert!(std::panic::catch_unwind(|| chosen("GPL-3.0-only")).is_err());
}
