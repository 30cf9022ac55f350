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

#[test]
fn the_dependencies_licences_are_held_to_a_list() {
    let deny = read("deny.toml");
    assert!(deny.contains("\"PostgreSQL\""), "deny.toml does not allow obanrs' own licence");
    assert!(!deny.contains("ignore"), "deny.toml ignores something");
}
