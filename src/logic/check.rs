//! The state of one queue on one node, in the keys of Oban's *check* (what its producers gossip).
//!
//! Readers of checks trust them: oban_met takes `length(running)`, the web page adds up limits and parses
//! `started_at`, and all of them crash on another type. So the known keys are tested before a state gets in.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::iso8601;

/// Longest state in bytes of JSON text, without spaces between its tokens.
pub const MAX_STATE: usize = 64 << 10;

/// Oban's own limit of a queue's name is 127 characters, of up to four bytes.
pub const MAX_QUEUE: usize = 508;

/// The members of a JSON object in their order, each value as it is written.
#[derive(Debug)]
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// `None` for what is no JSON object.
    pub fn of(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// The value of a key; of a key that is there twice, the last.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.get())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (&**key, value.get()))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some((Key(key), value)) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The key, what it is and what it has to be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadKey {
    pub key: &'static str,
    pub value: String,
    pub wanted: &'static str,
}

const COUNT: &str = "an integer from 0 to 2147483647";
const TIME: &str = "an ISO 8601 time with an offset, such as \"2026-01-31T12:00:00Z\"";
const OBJECT: &str = "an object, or null";

/// A known key, what its value has to be, and whether a value (as it is written) is that.
type Rule = (&'static str, &'static str, fn(&str) -> bool);

const RULES: [Rule; 10] = [
    ("uuid", "a string", |v| v.starts_with('"')),
    ("limit", COUNT, is_count),
    ("local_limit", COUNT, is_count),
    ("paused", "a boolean", |v| v == "true" || v == "false"),
    ("running", "an array of job ids (integers)", |v| ids(v).is_some()),
    ("started_at", TIME, is_quoted_time),
    ("updated_at", TIME, is_quoted_time),
    ("shutdown_started_at", TIME, |v| v == NULL || is_quoted_time(v)),
    ("global_limit", OBJECT, is_object_or_null),
    ("rate_limit", OBJECT, is_object_or_null),
];

const NULL: &str = "null";

/// Tests the known keys of a state that is put here; others are kept as they are.
pub fn validate(state: &Members<'_>) -> Result<(), BadKey> {
    test(state, |_, _| false)
}

/// The same of a state that another node gossips, which knows its own readers: what is null is left so,
/// except where a reader of ours would trip over it, and limits of Oban Pro are its business.
pub fn validate_foreign(state: &Members<'_>) -> Result<(), BadKey> {
    test(state, |key, value| {
        matches!(key, "global_limit" | "rate_limit") || (value == NULL && key != "running")
    })
}

fn test(state: &Members<'_>, allowed: fn(&str, &str) -> bool) -> Result<(), BadKey> {
    for (key, value) in state.iter() {
        let Some((key, wanted, holds)) = RULES.into_iter().find(|(known, ..)| *known == key) else {
            continue;
        };
        if !holds(value) && !allowed(key, value) {
            return Err(BadKey { key, value: excerpt(value), wanted });
        }
    }
    Ok(())
}

/// As much of a value as an error message has room for.
fn excerpt(value: &str) -> String {
    const MOST: usize = 60;
    match value.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

fn is_count(value: &str) -> bool {
    value.parse().is_ok_and(|n: i64| (0..=i64::from(i32::MAX)).contains(&n))
}

fn is_object_or_null(value: &str) -> bool {
    value == NULL || value.starts_with('{')
}

/// The elements of an array of integers, each as it is written; `None` for anything else.
pub fn ids(value: &str) -> Option<Vec<(i64, &str)>> {
    let inner = value.strip_prefix('[')?.strip_suffix(']')?.trim();
    if inner.is_empty() {
        return Some(Vec::new());
    }
    let id = |id: &'_ str| -> Option<i64> { id.parse().ok() };
    inner.split(',').map(str::trim).map(|text| Some((id(text)?, text))).collect()
}

fn is_quoted_time(value: &str) -> bool {
    time_of(value).is_some()
}

fn time_of(value: &str) -> Option<i64> {
    iso8601::micros(value.strip_prefix('"')?.strip_suffix('"')?)
}

/// When the queue started, as its state says, in microseconds since 2000.
pub fn started_at(state: &Members<'_>) -> Option<i64> {
    state.get("started_at").and_then(time_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn check(state: Value) -> Result<(), BadKey> {
        validate(&Members::of(&state.to_string()).unwrap())
    }

    #[test]
    fn a_check_of_oban_2_23_is_fine() {
        let state = serde_json::json!({
            "uuid": "8b2ff8a5-9f2c-4a5e-9d57-0b8f8e1a2b3c", "name": "Oban", "node": "web.1",
            "queue": "default", "limit": 10, "paused": false, "running": [1, 2, 9007199254740993i64],
            "started_at": "2026-01-31T12:00:00.123456Z", "updated_at": "2026-01-31T12:00:01Z",
            "shutdown_started_at": null, "refresh_interval": 60000,
            "rate_limit": {"allowed": 3, "windows": []},
        });
        assert_eq!(check(state), Ok(()));
        assert_eq!(check(serde_json::json!({})), Ok(()));
    }

    #[test]
    fn wrong_types_name_the_key() {
        for (key, bad) in [
            ("uuid", serde_json::json!(7)),
            ("limit", serde_json::json!("10")),
            ("limit", serde_json::json!(-1)),
            ("local_limit", serde_json::json!(2147483648u32)),
            ("paused", serde_json::json!("false")),
            ("paused", Value::Null),
            ("running", serde_json::json!(3)),
            ("running", serde_json::json!(["1"])),
            ("running", serde_json::json!([1.5])),
            ("started_at", serde_json::json!("2026-01-31T12:00:00")),
            ("started_at", serde_json::json!(1769860800)),
            ("updated_at", serde_json::json!("2026-02-30T12:00:00Z")),
            ("shutdown_started_at", serde_json::json!("soon")),
            ("global_limit", serde_json::json!(5)),
            ("rate_limit", serde_json::json!([])),
        ] {
            let state = Value::Object([(key.to_owned(), bad.clone())].into_iter().collect());
            assert_eq!(check(state).unwrap_err().key, key, "{bad}");
        }
    }

    #[test]
    fn what_another_node_leaves_open_is_its_business_unless_a_reader_would_trip() {
        let foreign = |json: &str| validate_foreign(&Members::of(json).unwrap()).map_err(|bad| bad.key);
        assert_eq!(foreign(r#"{"uuid": null, "limit": null, "paused": null, "started_at": null}"#), Ok(()));
        assert_eq!(foreign(r#"{"global_limit": 5, "rate_limit": "any"}"#), Ok(()));
        assert_eq!(foreign(r#"{"running": null}"#), Err("running"));
        assert_eq!(foreign(r#"{"limit": "5"}"#), Err("limit"));
    }

    #[test]
    fn a_long_value_is_not_shown_whole() {
        let bad = check(serde_json::json!({ "running": "é".repeat(1000) })).unwrap_err();
        assert!(bad.value.ends_with("...") && bad.value.chars().count() == 63, "{}", bad.value);
    }

    #[test]
    fn members_are_as_they_are_written() {
        let members = Members::of(r#"{"a" : 1.50e3, "b\u0041": {"x": [1, 2]}, "a": "last"}"#).unwrap();
        assert_eq!(members.get("a"), Some("\"last\""));
        assert_eq!(members.get("bA"), Some(r#"{"x": [1, 2]}"#));
        assert_eq!(members.iter().next(), Some(("a", "1.50e3")));
        assert!(["", "[]", "1", "{", "null", "{\"a\": }"].iter().all(|bad| Members::of(bad).is_none()));
        assert_eq!(started_at(&members), None);
        let started = Members::of(r#"{"started_at": "2000-01-01T00:00:01Z"}"#).unwrap();
        assert_eq!(started_at(&started), Some(1_000_000));
        assert_eq!(ids("[]"), Some(vec![]));
        assert_eq!(ids("[ 1,-2 ]"), Some(vec![(1, "1"), (-2, "-2")]));
        assert!(
            ["[1,]", "[[1]]", "1", "[1.0]", "[9223372036854775808]", "[\"1\"]"]
                .iter()
                .all(|v| ids(v).is_none())
        );
    }
}
