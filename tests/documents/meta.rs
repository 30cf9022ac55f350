//! META.json, by the specification of PGXN (https://pgxn.org/meta/spec.txt, version 1.0.0).

use std::path::Path;

use serde_json::Value;

use crate::{VERSION, read, toml_string};

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    let found = value.pointer(path).and_then(Value::as_str);
    found.filter(|s| !s.is_empty()).unwrap_or_else(|| panic!("META.json has no text {path}"))
}

/// The majors that Cargo.toml has features for.
fn majors() -> Vec<u32> {
    let cargo = read("Cargo.toml");
    let features = cargo.lines().filter_map(|line| line.strip_prefix("pg")?.split(' ').next());
    features.filter_map(|major| major.parse().ok()).collect()
}

#[test]
fn meta_json_is_what_pgxn_asks_for() {
    let meta: Value = serde_json::from_str(&read("META.json")).expect("META.json is JSON");
    let cargo = read("Cargo.toml");
    let about = toml_string(&cargo, "package", "description").expect("Cargo.toml has a description");

    assert_eq!(text(&meta, "/name"), "obanrs");
    assert_eq!(text(&meta, "/version"), VERSION);
    assert_eq!(text(&meta, "/abstract"), about);
    assert_eq!(text(&meta, "/license"), "postgresql");
    assert_eq!(text(&meta, "/maintainer"), "the obanrs authors");
    assert_eq!(text(&meta, "/meta-spec/version"), "1.0.0");
    assert!(["stable", "testing", "unstable"].contains(&text(&meta, "/release_status")));
    text(&meta, "/description");

    let provides = meta["provides"].as_object().expect("provides is an object");
    assert_eq!(provides.keys().collect::<Vec<_>>(), ["obanrs"]);
    assert_eq!(text(&meta, "/provides/obanrs/version"), VERSION);
    for file in ["file", "docfile"] {
        let file = text(&meta, &format!("/provides/obanrs/{file}"));
        assert!(Path::new(file).is_file(), "META.json names {file}, which is not there");
    }
    let control = read("obanrs.control");
    let comment = control.lines().find_map(|line| line.strip_prefix("comment = "));
    let comment = comment.expect("the control file has a comment").trim_matches('\'').replace("''", "'");
    assert_eq!(comment, about, "obanrs.control says something else than Cargo.toml");

    let majors = majors();
    assert!(majors.len() > 3, "{majors:?}");
    let (first, last) = (majors[0], majors[majors.len() - 1]);
    for phase in ["build", "runtime"] {
        let range = text(&meta, &format!("/prereqs/{phase}/requires/PostgreSQL"));
        assert_eq!(range, format!(">= {first}.0.0, < {}.0.0", last + 1));
    }
    let tags = meta["tags"].as_array().expect("tags is an array");
    assert!(!tags.is_empty() && tags.iter().all(|tag| tag.as_str().is_some_and(|tag| tag.len() < 256)));

    // Where the sources are is said by both or by none.
    let repository = meta.pointer("/resources/repository/web").and_then(Value::as_str);
    assert_eq!(
        repository,
        toml_string(&cargo, "package", "repository").as_deref(),
        "resources.repository.web"
    );
}

/// The keys that the specification knows; others begin with x_.
#[test]
fn meta_json_has_no_key_that_pgxn_does_not_know() {
    let known = [
        "name",
        "abstract",
        "description",
        "version",
        "release_status",
        "maintainer",
        "license",
        "provides",
        "prereqs",
        "no_index",
        "resources",
        "tags",
        "generated_by",
        "meta-spec",
    ];
    let meta: Value = serde_json::from_str(&read("META.json")).expect("META.json is JSON");
    for key in meta.as_object().expect("it is an object").keys() {
        assert!(known.contains(&key.as_str()) || key.to_lowercase().starts_with("x_"), "META.json: {key}");
    }
}
