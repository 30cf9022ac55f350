//! The licence is the PostgreSQL License, and every place that names one says so.

use serde_json::Value;

use crate::{read, toml_string};

const HOLDER: &str = "Copyright (c) 2026, the obanrs authors";

#[test]
fn every_document_names_the_same_licence() {
    let licence = read("LICENSE");
    assert!(licence.starts_with(HOLDER), "LICENSE begins with another copyright");
    assert!(licence.contains("without fee, and without a written agreement"), "LICENSE is another licence");

    let cargo = toml_string(&read("Cargo.toml"), "package", "license");
    assert_eq!(cargo.as_deref(), Some("PostgreSQL"), "Cargo.toml: license");

    let meta: Value = serde_json::from_str(&read("META.json")).expect("META.json is JSON");
    assert_eq!(meta["license"], "postgresql", "META.json: license");

    let notice = read("NOTICE");
    assert!(notice.contains(HOLDER), "NOTICE: another copyright");
    for part in
        ["independent project, not affiliated with Oban", "Apache License, Version 2.0", "Parker Selbert"]
    {
        assert!(notice.contains(part), "NOTICE says nothing of: {part}");
    }
}

/// Of the text without line ends and without Debian's marks for them.
fn words(text: &str) -> String {
    text.split_whitespace().filter(|word| *word != ".").collect::<Vec<_>>().join(" ")
}

#[test]
fn debians_copyright_is_the_licence() {
    let copyright = read("debian/copyright");
    let (head, licence) =
        copyright.split_once("\nLicense: PostgreSQL\n\nLicense: PostgreSQL\n").expect("two fields");
    assert!(head.starts_with("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"));
    assert!(head.contains("\nFiles: *\nCopyright: 2026, the obanrs authors"), "debian/copyright: {head}");
    let ours = read("LICENSE").replacen(HOLDER, "", 1);
    assert_eq!(words(licence), words(&ours), "debian/copyright and LICENSE have different texts");
}

#[test]
fn readme_names_the_licence() {
    assert!(
        read("README.md").contains("[PostgreSQL License](LICENSE)"),
        "README.md does not lead to LICENSE"
    );
}

#[test]
fn the_dependencies_licences_are_held_to_a_list() {
    let deny = read("deny.toml");
    assert!(deny.contains("\"PostgreSQL\""), "deny.toml does not allow obanrs' own licence");
    assert!(!deny.contains("ignore"), "deny.toml ignores something");
}
