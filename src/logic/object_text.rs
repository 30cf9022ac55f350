//! Any text as JSON. A text that a `jsonb` takes as an object is that object; every other text is
//! a JSON string.
//!
//! The rules are those of `jsonb_in`, so that no text makes a reader's call fail. They are tested
//! here because Postgres 15 has no `jsonb_in` that refuses without an ERROR. The texts are in the
//! server's encoding. Each of these encodings uses ASCII bytes for ASCII characters only, so the
//! rules need to look at nothing else.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::wire;

/// A JSON object in the server's encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// The text. No escape in it stands for a character above ASCII: each is written out.
    pub json: Cow<'a, [u8]>,
    /// How many bytes its numbers take up in addition when Postgres prints them, at most. Postgres
    /// prints `1e9` with ten digits.
    pub printed_more: usize,
}

/// The most digits that a `numeric` has after the point, and the greatest power of ten that it
/// holds.
const MAX_SCALE: i64 = 0x3fff;
const MAX_POWER: i64 = 131_071;

/// Returns the object that a text is. `None`: the text is no JSON object, a `jsonb` refuses it, or
/// it is nested more than `wire::MAX_DEPTH` levels deep, or its numbers are longer than
/// `wire::MAX_UNPACKED` in print. `encode` returns the bytes of a character above ASCII in the
/// server's encoding, or `None` if the encoding lacks the character.
pub fn object_of(text: &[u8], encode: impl Fn(char) -> Option<Vec<u8>>) -> Option<Object<'_>> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return None; // most texts
    }
    // The other bytes are no part of JSON's grammar but in strings, where any of them may be.
    let ascii: String =
        text.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect();
    wire::require_flat(&ascii).ok()?;
    serde_json::from_str::<IgnoredAny>(&ascii).ok()?;
    let (mut json, mut copied, mut at, mut printed_more) = (Vec::new(), 0, 0, 0);
    let mut quoted = false;
    while let Some(byte) = text.get(at) {
        let rest = &text[at..];
        at += match byte {
            b'"' => {
                quoted = !quoted;
                1
            }
            b'\\' if rest.get(1) == Some(&b'u') => {
                let (character, len) = escaped(rest)?;
                if !character.is_ascii() {
                    json.extend_from_slice(&text[copied..at]);
                    json.extend_from_slice(&encode(character)?);
                    copied = at + len;
                }
                len
            }
            b'\\' => 2,
            b'-' | b'0'..=b'9' if !quoted => {
                let (len, more) = number(rest)?;
                printed_more += more;
                len
            }
            _ => 1,
        };
    }
    if printed_more > wire::MAX_UNPACKED {
        return None;
    }
    if copied == 0 {
        return Some(Object { json: Cow::Borrowed(text), printed_more });
    }
    json.extend_from_slice(&text[copied..]);
    Some(Object { json: Cow::Owned(json), printed_more })
}

/// Returns the character of a `\u` escape at the beginning of `json`, and how many bytes the escape
/// has. `None`: the escape is NUL, which a `jsonb` can't hold, or half of a pair.
fn escaped(json: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let first = unit(0)?;
    let (pair, len) = match first {
        0 => return None,
        0xd800..0xdc00 => ([first, unit(6)?], 12),
        _ => ([first, 0], 6),
    };
    let character = char::decode_utf16(pair[..len / 6].iter().copied()).next()?;
    Some((character.ok()?, len))
}

/// Returns how many bytes the number at the beginning of `json` has, and how many more it may have
/// in print. `None`: no `numeric` holds the number.
fn number(json: &[u8]) -> Option<(usize, usize)> {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let len = json.iter().position(|byte| !is_part(byte)).unwrap_or(json.len());
    let number = std::str::from_utf8(&json[..len]).ok()?;
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    // An exponent of too many digits for this type is too great for a `numeric`.
    let exponent: i64 = exponent.parse::<i32>().ok().filter(|e| e.abs() < i32::MAX / 2)?.into();
    let (whole, fraction) = digits.trim_start_matches('-').split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('-');
    let first = whole.bytes().chain(fraction.bytes()).position(|digit| digit != b'0');
    let power = first.map(|first| whole.len() as i64 - 1 - first as i64 + exponent);
    let fits = fraction.len() as i64 - exponent <= MAX_SCALE && power.is_none_or(|power| power <= MAX_POWER);
    fits.then_some((len, if power.is_some() || exponent < 0 { exponent.unsigned_abs() as usize } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utf8(character: char) -> Option<Vec<u8>> {
        Some(character.to_string().into_bytes())
    }

    fn object(text: &str) -> Option<String> {
        object_of(text.as_bytes(), utf8).map(|o| String::from_utf8(o.json.into_owned()).unwrap())
    }

    #[test]
    fn an_object_is_itself() {
        for text in [
            "{}",
            " \n\t\r{ } ",
            r#"{"a":1,"a":[{"b":null}]}"#,
            r#"{"a":"{\"\\\\u0000\"}"}"#,
            "{\"é\":\"\u{7f}\"}",
        ] {
            assert_eq!(object(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn every_other_text_is_none() {
        for text in [
            "",
            "42",
            "[1]",
            "null",
            "\"q\"",
            "{",
            "{broken",
            "{}}",
            "{} {}",
            "{'a':1}",
            "{\"a\":01}",
            "{\"a\":\"\n\"}",
            "{\"a\":1é}",
            "{\"a\":é}",
            "H4sIAAAA",
            "\u{a0}{}",
            "{\"a\":\"\\é\"}",
            "{\"a\":\"\\u00é9\"}",
        ] {
            assert_eq!(object(text), None, "{text}");
        }
    }

    #[test]
    fn escapes_are_written_out_or_refuse_the_text() {
        assert_eq!(
            object(r#"{"\u00e9":"\ud83d\ude00\u0001\u0041"}"#).as_deref(),
            Some("{\"é\":\"😀\\u0001\\u0041\"}")
        );
        for refused in ["0000", "d83d", "de00", "d83d\\u0041", "d83d\\\\ude00", "d83dude00"] {
            assert_eq!(object(&format!("{{\"a\":\"\\u{refused}\"}}")), None, "{refused}");
            assert_eq!(object(&format!("{{\"\\u{refused}\":1}}")), None, "{refused}");
            assert!(
                object(&format!("{{\"a\":\"\\\\u{refused}\"}}")).is_some(),
                "an escaped backslash: {refused}"
            );
        }
        let latin = |character: char| u8::try_from(character).ok().map(|byte| vec![byte]);
        let shown = |text: &[u8]| object_of(text, latin).map(|o| o.json.into_owned());
        assert_eq!(shown(b"{\"\\u00e9\":\"\xe9\"}").as_deref(), Some(&b"{\"\xe9\":\"\xe9\"}"[..]));
        assert_eq!(shown(b"{\"a\":\"\\u20ac\"}"), None, "the encoding lacks the character");
    }

    #[test]
    fn numbers_are_those_that_a_numeric_holds() {
        let more = |number: &str| {
            object_of(format!("{{\"a\":[{number}]}}").as_bytes(), utf8).map(|o| o.printed_more)
        };
        for (number, printed_more) in [
            ("0", 0),
            ("-1.50", 0),
            ("1e131071", 131_071),
            ("0.001e131074", 131_074),
            ("1E-16383", 16_383),
            ("-1.5e-16382", 16_382),
            ("0e99999", 0),
            ("12e+3,1e2", 5),
        ] {
            assert_eq!(more(number), Some(printed_more), "{number}");
        }
        for number in [
            "1e131072",
            "10e131071",
            "-1e400000",
            "1e-16384",
            "1.5e-16383",
            "0e-16384",
            "1e99999999999999999999",
            "0e2147483647",
        ] {
            assert_eq!(more(number), None, "{number}");
        }
        assert_eq!(more(&["1e131071"; 127].join(",")), Some(127 * 131_071));
        assert_eq!(more(&["1e131071"; 129].join(",")), None, "over 16 MB in print");
    }

    #[test]
    fn depth_is_limited() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(object(&nested(wire::MAX_DEPTH)).is_some());
        assert_eq!(object(&nested(wire::MAX_DEPTH + 1)), None);
        assert_eq!(object(&"{\"a\":".repeat(10_000)), None);
    }

    fn values() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(|n| serde_json::json!(n)),
            any::<f64>().prop_map(|n| serde_json::json!(n)),
            "[^\0]{0,6}".prop_map(|s| serde_json::json!(s)),
            Just(serde_json::json!(null)),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|a| serde_json::json!(a)),
                prop::collection::hash_map("[^\0]{0,4}", inner, 0..4).prop_map(|o| serde_json::json!(o)),
            ]
        })
    }

    fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec!["\\u", "\"", "{\"a\":", "1e5", "}", "d83d", "\\"]);
        let piece = prop_oneof![piece.prop_map(|p| p.as_bytes().to_vec()), any::<u8>().prop_map(|b| vec![b])];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn it_never_panics(text in nearly_json()) {
            if let Some(object) = object_of(&text, utf8) {
                serde_json::from_slice::<IgnoredAny>(&object.json).unwrap();
            }
        }

        /// Escapes of any characters change the text and not the object.
        #[test]
        fn objects_survive(value in values(), pretty: bool, escapes: bool) {
            let value = serde_json::json!({ "x": value });
            let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            let escaped: String = text.chars().flat_map(|c| {
                let mut units = [0; 2];
                let units: Vec<u16> = c.encode_utf16(&mut units).to_vec();
                let escape = units.iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
                if c.is_ascii() || !escapes { c.to_string() } else { escape }.chars().collect::<Vec<_>>()
            }).collect();
            let object = object(&escaped).unwrap();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&object).unwrap(), value);
            prop_assert_eq!(object, text);
        }
    }
}
