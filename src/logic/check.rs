//! The state of one queue on one node, in the keys of Oban's *check* (what Oban's producers
//! gossip).
//!
//! Readers of checks trust them. oban_met takes `length(running)`, and the web page adds up limits
//! and parses `started_at`. Each of these readers crashes on a value of another type. So the known
//! keys are tested before a state gets into the gossip table.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::iso8601;
use super::jsonb::{Container, Number, Unreadable, Value};
use super::times::WallTime;

/// The longest state, in bytes of JSON text without spaces between its tokens.
pub const MAX_STATE: usize = 64 << 10;

/// The longest name of a queue, in bytes. Oban's own limit is 127 characters, each of up to four
/// bytes.
pub const MAX_QUEUE: usize = 508;

/// The members of a JSON object in their order. Each value is kept as it is written.
#[derive(Debug)]
pub struct JsonObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> JsonObject<'a> {
    /// Returns the members of a JSON object, or `None` if `json` is no JSON object.
    pub fn of(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Returns the value of the last member `key`, or `None` if there is no such member.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.get())
    }

    /// Returns each key with its value, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (&**key, value.get()))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = JsonObject<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<JsonObject<'de>, M::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some((Key(key), value)) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(JsonObject(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The error of a known key: the key, and what its value has to be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadKey {
    pub key: &'static str,
    pub wanted: &'static str,
}

/// What is wrong with a state.
#[derive(Debug, PartialEq, Eq)]
pub enum InvalidState {
    /// The state is no JSON object.
    NoObject,
    /// The state has this many bytes as text, more than `MAX_STATE`.
    TooLong(usize),
    /// A number in the state would be printed with more than `MAX_DIGITS` digits before or behind
    /// its point. Readers that make a float of it may crash, and a few bytes in memory become
    /// thousands on the wire.
    HugeNumber,
    /// The state is nested deeper than `jsonb::MAX_DEPTH`, or its bytes are no `jsonb`.
    TooDeep,
    /// A known key has a value that readers do not expect.
    Key(BadKey),
}

/// The most digits before a number's point, and behind it. (The greatest float has 309.)
pub const MAX_DIGITS: usize = 300;

const COUNT: &str = "an integer from 0 to 2147483647";
const TIME: &str =
    "an ISO 8601 time with an offset, such as \"2026-01-31T12:00:00Z\", of the years 1 to 9999";
const GLOBAL_LIMIT: &str = "null, or an object with an integer allowed, and if it has a partition, with arrays of texts as its fields and keys";
const RATE_LIMIT: &str = "null, or an object with integers allowed and period, and if it has windows, with integers curr_count and prev_count in each";

/// A known key, what its value has to be in words, and a function that tells whether a value is
/// that.
type Rule = (&'static str, &'static str, fn(&Value<'_>) -> bool);

const RULES: [Rule; 10] = [
    ("uuid", "a string", |v| matches!(v, Value::String(_))),
    ("limit", COUNT, is_count),
    ("local_limit", COUNT, is_count),
    ("paused", "a boolean", |v| matches!(v, Value::Bool(_))),
    ("running", "an array of job ids (integers or strings)", is_ids),
    ("started_at", TIME, |v| time(v).is_some()),
    ("updated_at", TIME, |v| time(v).is_some()),
    ("shutdown_started_at", TIME, |v| matches!(v, Value::Null) || time(v).is_some()),
    ("global_limit", GLOBAL_LIMIT, is_global_limit),
    ("rate_limit", RATE_LIMIT, is_rate_limit),
];

/// Tests a state that a local member puts: its size, its numbers and its known keys. Other keys are
/// not tested. Returns `started_at` in microseconds since 2000, or `None` if the state has
/// no such time. Err: what is wrong with the state.
pub fn validate(state: Result<Value<'_>, Unreadable>) -> Result<Option<WallTime>, InvalidState> {
    test(state, |_, _| false)
}

/// Tests a state that a foreign node gossips, as `validate` does, but less strictly. A foreign node
/// knows its own readers. So a null is allowed in any known key except `running`, where a reader of
/// the gossip table would crash on it. Limits of Oban Pro may have any form.
pub fn validate_foreign(state: Result<Value<'_>, Unreadable>) -> Result<Option<WallTime>, InvalidState> {
    test(state, |key, value| {
        matches!(key, "global_limit" | "rate_limit") || (matches!(value, Value::Null) && key != "running")
    })
}

/// Tests a state, as `validate` does. A known key with a wrong value is passed over if `allowed`
/// returns true for the key and the value.
fn test(
    state: Result<Value<'_>, Unreadable>,
    allowed: fn(&str, &Value<'_>) -> bool,
) -> Result<Option<WallTime>, InvalidState> {
    let state = state.map_err(|Unreadable| InvalidState::TooDeep)?;
    let Value::Object(object) = state else { return Err(InvalidState::NoObject) };
    let (mut huge, mut bad, mut started_at) = (false, None, None);
    let mut number = |number: &Number<'_>| {
        let (before, behind) = number.printed();
        huge |= before > MAX_DIGITS || behind > MAX_DIGITS;
    };
    let len = Value::walk_members(&object, &mut number, |key, value| {
        let rule = RULES.into_iter().find(|(known, ..)| known.as_bytes() == key);
        let Some((key, wanted, holds)) = rule else { return };
        if !holds(value) && !allowed(key, value) {
            bad.get_or_insert(BadKey { key, wanted });
        }
        if key == "started_at" {
            started_at = time(value).map(WallTime);
        }
    });
    match (len.map_err(|Unreadable| InvalidState::TooDeep)?, bad) {
        _ if huge => Err(InvalidState::HugeNumber),
        (len, _) if len > MAX_STATE => Err(InvalidState::TooLong(len)),
        (_, Some(bad)) => Err(InvalidState::Key(bad)),
        _ => Ok(started_at),
    }
}

/// Returns as much of a value as an error message has room for.
pub fn excerpt(value: &str) -> String {
    const MAX_EXCERPT: usize = 60;
    match value.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

/// Returns whether a value is an integer that fits a Postgres integer and is not negative.
fn is_count(value: &Value<'_>) -> bool {
    matches!(value, Value::Number(n) if n.integer().is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n)))
}

/// Returns whether a value is an array of integers and strings.
fn is_ids(value: &Value<'_>) -> bool {
    all(value, |id| match id {
        Value::Number(n) => n.integer().is_some(),
        Value::String(_) => true,
        _ => false,
    })
}

/// Returns whether a value is an array for each element of which `holds` returns true.
fn all(value: &Value<'_>, holds: impl Fn(&Value<'_>) -> bool) -> bool {
    matches!(value, Value::Array(array) if array.iter().all(|e| e.is_ok_and(|(_, element)| holds(&element))))
}

/// Returns the time that a string names, in microseconds since 2000, or `None` if the value names
/// no time.
fn time(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::String(text) => iso8601::micros(std::str::from_utf8(text).ok()?),
        _ => None,
    }
}

/// Returns whether `holds` is true for the value of `key`. If there is no such member, returns
/// `optional`.
fn member(object: &Container<'_>, key: &str, optional: bool, holds: fn(&Value<'_>) -> bool) -> bool {
    match object.get(key) {
        Ok(Some(value)) => holds(&value),
        Ok(None) => optional,
        Err(Unreadable) => false,
    }
}

/// Returns whether a value is null, or an object for which `holds` returns true.
fn is_null_or(value: &Value<'_>, holds: impl Fn(&Container<'_>) -> bool) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => holds(object),
        _ => false,
    }
}

fn is_partition(value: &Value<'_>) -> bool {
    let texts: fn(&Value<'_>) -> bool =
        |v| matches!(v, Value::Null) || all(v, |text| matches!(text, Value::String(_)));
    is_null_or(value, |p| member(p, "fields", true, texts) && member(p, "keys", true, texts))
}

fn is_global_limit(value: &Value<'_>) -> bool {
    is_null_or(value, |limit| {
        member(limit, "allowed", false, is_count) && member(limit, "partition", true, is_partition)
    })
}

fn is_window(value: &Value<'_>) -> bool {
    let count = |window: &Container<'_>, key: &str| member(window, key, false, is_count);
    matches!(value, Value::Object(window) if count(window, "curr_count") && count(window, "prev_count"))
}

fn is_rate_limit(value: &Value<'_>) -> bool {
    let count = |window: &Container<'_>, key: &str| member(window, key, false, is_count);
    let windows: fn(&Value<'_>) -> bool = |value| all(value, is_window);
    let printable: fn(&Value<'_>) -> bool = |value| !matches!(value, Value::Array(_) | Value::Object(_));
    is_null_or(value, |limit| {
        count(limit, "allowed")
            && count(limit, "period")
            && member(limit, "window_time", true, printable)
            && member(limit, "windows", true, windows)
            && member(limit, "partition", true, is_partition)
    })
}

/// Returns the uuid of a state, in the server's encoding, or `None` if the value is no string.
pub fn uuid(value: Option<Value<'_>>) -> Option<&[u8]> {
    match value {
        Some(Value::String(uuid)) => Some(uuid),
        _ => None,
    }
}

/// Returns the ids in the value of `running` that are integers, or strings that hold an integer.
/// Other ids are left out. `None`: the value is no readable array.
pub fn listed(running: &Value<'_>) -> Option<HashSet<i64>> {
    let Value::Array(array) = running else { return None };
    let id = |id: Value<'_>| match id {
        Value::Number(n) => n.integer(),
        Value::String(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    };
    let elements: Result<Vec<Value<'_>>, Unreadable> = array.iter().map(|e| Ok(e?.1)).collect();
    Some(elements.ok()?.into_iter().filter_map(id).collect())
}

/// The id of a job. Ids compare in the order in which jobs are made. Integers count up. Strings
/// count up if they begin with a time (ULIDs, UUIDs of version 7).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id<'a> {
    Number(i64),
    Text(Cow<'a, str>),
}

/// Returns the ids of an array, each with the text that stands for it in `value`. `None`: `value`
/// is no array of integers and strings.
pub fn ids(value: &str) -> Option<Vec<(Id<'_>, &str)>> {
    fn id(raw: &RawValue) -> Option<(Id<'_>, &str)> {
        let text = raw.get();
        let id = match text.starts_with('"') {
            true => Id::Text(serde_json::from_str(text).ok()?),
            false => Id::Number(text.parse().ok()?),
        };
        Some((id, text))
    }
    serde_json::from_str::<Vec<&RawValue>>(value).ok()?.into_iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::jsonb;

    fn check(state: serde_json::Value) -> Result<Option<WallTime>, InvalidState> {
        validate(jsonb::read(&jsonb::writing::jsonb(&state)))
    }

    fn key(state: serde_json::Value) -> &'static str {
        match check(state) {
            Err(InvalidState::Key(bad)) => bad.key,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_check_of_oban_2_23_is_fine() {
        let state = serde_json::json!({
            "uuid": "8b2ff8a5-9f2c-4a5e-9d57-0b8f8e1a2b3c", "name": "Oban", "node": "web.1",
            "queue": "default", "limit": 10, "paused": false, "running": [1, 2, 9007199254740993i64],
            "started_at": "2026-01-31T12:00:00.123456Z", "updated_at": "2026-01-31T12:00:01Z",
            "shutdown_started_at": null, "refresh_interval": 60000,
            "rate_limit": {"allowed": 3, "period": 60, "windows": [{"curr_count": 1, "prev_count": 0}]},
            "global_limit": {"allowed": 3, "partition": {"fields": ["worker"], "keys": null}},
        });
        assert_eq!(check(state), Ok(iso8601::micros("2026-01-31T12:00:00.123456Z").map(WallTime)));
        assert_eq!(check(serde_json::json!({})), Ok(None));
    }

    #[test]
    fn wrong_types_name_the_key() {
        for (wanted, bad) in [
            ("uuid", serde_json::json!(7)),
            ("limit", serde_json::json!("10")),
            ("limit", serde_json::json!(-1)),
            ("local_limit", serde_json::json!(2147483648u32)),
            ("paused", serde_json::json!("false")),
            ("paused", serde_json::Value::Null),
            ("running", serde_json::json!(3)),
            ("running", serde_json::json!([1.5])),
            ("running", serde_json::json!(["1", null])),
            ("started_at", serde_json::json!("2026-01-31T12:00:00")),
            ("started_at", serde_json::json!(1769860800)),
            ("updated_at", serde_json::json!("2026-02-30T12:00:00Z")),
            ("shutdown_started_at", serde_json::json!("soon")),
            ("global_limit", serde_json::json!(5)),
            ("rate_limit", serde_json::json!([])),
        ] {
            assert_eq!(key(serde_json::json!({ wanted: bad })), wanted);
        }
    }

    #[test]
    fn what_another_node_leaves_open_is_its_business_unless_a_reader_would_trip() {
        let foreign = |state| validate_foreign(jsonb::read(&jsonb::writing::jsonb(&state)));
        let fine = serde_json::json!({
            "uuid": null, "limit": null, "paused": null, "started_at": null, "rate_limit": 5
        });
        assert_eq!(foreign(fine), Ok(None));
        for (key, state) in [
            ("running", serde_json::json!({"running": null})),
            ("limit", serde_json::json!({"limit": "5"})),
            ("started_at", serde_json::json!({"started_at": "now"})),
        ] {
            assert!(matches!(foreign(state), Err(InvalidState::Key(bad)) if bad.key == key));
        }
    }

    /// Oban Web crashes on wrong values inside the limits of Oban Pro.
    #[test]
    fn limits_are_looked_into() {
        for limit in [
            serde_json::json!({}),
            serde_json::json!({"allowed": null}),
            serde_json::json!({"allowed": "5"}),
            serde_json::json!({"allowed": {}}),
            serde_json::json!({"allowed": 1, "partition": 5}),
            serde_json::json!({"allowed": 1, "partition": {"fields": [{}]}}),
        ] {
            assert_eq!(key(serde_json::json!({ "global_limit": limit })), "global_limit");
        }
        for limit in [
            serde_json::json!({}),
            serde_json::json!({"allowed": 1}),
            serde_json::json!({"allowed": 1, "period": {}}),
            serde_json::json!({"allowed": 1, "period": 1, "windows": [{}]}),
            serde_json::json!({"allowed": 1, "period": 1, "windows": 5}),
            serde_json::json!({"allowed": 1, "period": 1, "window_time": {}}),
        ] {
            assert_eq!(key(serde_json::json!({ "rate_limit": limit })), "rate_limit");
        }
        let fine = serde_json::json!({"global_limit": null, "rate_limit": null});
        assert_eq!(check(fine), Ok(None));
    }

    #[test]
    fn no_state_is_too_long_too_deep_or_has_a_number_that_is_no_float() {
        let of = |x: &str| check(serde_json::from_str(&format!(r#"{{"x": [{x}]}}"#)).expect("JSON"));
        assert_eq!(of(&"9".repeat(MAX_DIGITS)), Ok(None));
        assert_eq!(of(&"9".repeat(MAX_DIGITS + 1)), Err(InvalidState::HugeNumber));
        assert_eq!(of(&format!("0.{}1", "0".repeat(MAX_DIGITS))), Err(InvalidState::HugeNumber));
        let pad = |len: usize| check(serde_json::json!({ "x": "x".repeat(len - 8) }));
        assert_eq!(
            (pad(MAX_STATE), pad(MAX_STATE + 1)),
            (Ok(None), Err(InvalidState::TooLong(MAX_STATE + 1)))
        );
        let deep = |n: usize| of(&format!("{}{}", "[".repeat(n), "]".repeat(n)));
        assert_eq!(
            (deep(jsonb::MAX_DEPTH - 2), deep(jsonb::MAX_DEPTH - 1)),
            (Ok(None), Err(InvalidState::TooDeep))
        );
        assert_eq!(check(serde_json::json!([])), Err(InvalidState::NoObject));
        assert_eq!(check(serde_json::json!(5)), Err(InvalidState::NoObject));
    }

    #[test]
    fn a_long_value_is_not_shown_whole() {
        let shown = excerpt(&"é".repeat(1000));
        assert!(shown.ends_with("...") && shown.chars().count() == 63, "{shown}");
    }

    #[test]
    fn members_are_as_they_are_written() {
        let members = JsonObject::of(r#"{"a" : 1.50e3, "b\u0041": {"x": [1, 2]}, "a": "last"}"#).unwrap();
        assert_eq!(members.get("a"), Some("\"last\""));
        assert_eq!(members.get("bA"), Some(r#"{"x": [1, 2]}"#));
        assert_eq!(members.iter().next(), Some(("a", "1.50e3")));
        assert!(["", "[]", "1", "{", "null", "{\"a\": }"].iter().all(|bad| JsonObject::of(bad).is_none()));
        assert_eq!(ids("[]"), Some(vec![]));
        assert_eq!(ids("[ 1,-2 ]"), Some(vec![(Id::Number(1), "1"), (Id::Number(-2), "-2")]));
        let mixed = [(Id::Text("a,\"]".into()), r#""a,\"]""#), (Id::Number(1), "1")];
        assert_eq!(ids(r#"["a,\"]", 1]"#), Some(mixed.to_vec()));
        assert!(
            ["[1,]", "[[1]]", "1", "[1.0]", "[9223372036854775808]", "[null]"]
                .iter()
                .all(|v| ids(v).is_none())
        );
    }
}
