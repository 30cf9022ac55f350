//! The state of one queue on one node, in the keys of Oban's *check* (what its producers gossip).
//!
//! Readers of checks trust them: oban_met takes `length(running)` and the web page parses
//! `started_at`, and both crash on another type. So the known keys are tested before a state gets in.

use serde_json::{Map, Value};

/// Longest state in bytes of JSON text.
pub const MAX_STATE: usize = 64 << 10;

/// The key and what it has to be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadKey {
    pub key: &'static str,
    pub wanted: &'static str,
}

const COUNT: &str = "an integer from 0 to 2147483647";
const TIME: &str = "an ISO 8601 time with an offset, such as \"2026-01-31T12:00:00Z\"";

/// Tests the known keys of a state; others are kept as they are.
pub fn validate(state: &Map<String, Value>) -> Result<(), BadKey> {
    let rules: [(&'static str, &'static str, fn(&Value) -> bool); 8] = [
        ("uuid", "a string", Value::is_string),
        ("limit", COUNT, is_count),
        ("local_limit", COUNT, is_count),
        ("paused", "a boolean", Value::is_boolean),
        ("running", "an array of job ids (integers)", is_ids),
        ("started_at", TIME, is_time_value),
        ("updated_at", TIME, is_time_value),
        ("shutdown_started_at", TIME, |v| v.is_null() || is_time_value(v)),
    ];
    for (key, wanted, holds) in rules {
        if state.get(key).is_some_and(|value| !holds(value)) {
            return Err(BadKey { key, wanted });
        }
    }
    Ok(())
}

fn is_count(value: &Value) -> bool {
    value.as_i64().is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n))
}

fn is_ids(value: &Value) -> bool {
    value.as_array().is_some_and(|ids| ids.iter().all(|id| id.as_i64().is_some()))
}

fn is_time_value(value: &Value) -> bool {
    value.as_str().is_some_and(is_time)
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction]` and `Z` or `±HH:MM`: what Elixir's `DateTime.from_iso8601` and
/// Postgres' `timestamptz` both read.
fn is_time(text: &str) -> bool {
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|b| wanted.contains(b));
    let parts = (|| {
        let date = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let time = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        Some((date, time))
    })();
    let Some(((year, month, day), (hour, minute, second))) = parts else { return false };
    if !(mark(4, b"-") && mark(7, b"-") && mark(10, b"T ") && mark(13, b":") && mark(16, b":")) {
        return false;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => return false,
    };
    let in_range = year > 0 && (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    let rest = &text[19..];
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=9).contains(&digits) {
                return false;
            }
            &fraction[digits..]
        }
        None => rest,
    };
    in_range && is_zone(zone)
}

fn is_zone(zone: &str) -> bool {
    match zone.as_bytes() {
        b"Z" => true,
        [b'+' | b'-', a, b, b':', c, d] => {
            [a, b, c, d].iter().all(|d| d.is_ascii_digit()) && (a - b'0') * 10 + (b - b'0') < 15 && *c < b'6'
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(state: Value) -> Result<(), BadKey> {
        validate(state.as_object().unwrap())
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
        ] {
            let state = Value::Object([(key.to_owned(), bad.clone())].into_iter().collect());
            assert_eq!(check(state).unwrap_err().key, key, "{bad}");
        }
    }

    #[test]
    fn times_with_an_offset_and_only_they() {
        for good in ["2024-02-29T23:59:59Z", "2026-01-31 12:00:00.5+02:00", "0001-01-01T00:00:00-14:59"] {
            assert!(is_time(good), "{good}");
        }
        for bad in [
            "",
            "2026",
            "2023-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:60Z",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00.Z",
            "0000-01-01T00:00:00Z",
            "2026-01-31T12:00:00+2:00",
            "2026-01-31T12:00:00+15:00",
            "2026-01-31T12:00:00+02:60",
            "2026-01-31T12:00:00Zjunk",
            "+026-01-31T12:00:00Z",
            "２026-01-31T12:00:00Z",
        ] {
            assert!(!is_time(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn time_never_panics(text in any::<String>()) {
            is_time(&text);
        }
    }
}
