//! The wire form of a message. Oban has three forms: plain JSON, `H4sI…` (base64 of gzip, Oban 2.15
//! to 2.20 and Oban for Python) and `Z:H4sI…` (Oban 2.21 on). Every node reads plain JSON, every
//! node since 2.15 reads `H4sI…`, and only new Elixir nodes read `Z:`. So obanrs writes the first
//! two forms and reads all three.

use std::fmt;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, GzBuilder, read::GzDecoder, read::GzEncoder};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The longest payload in bytes: NOTIFY_PAYLOAD_MAX_LENGTH - 1. Postgres refuses a payload of 8,000
/// bytes.
pub const MAX_PAYLOAD: usize = 7_999;

/// The most bytes to which a wire form of a few kilobytes may unpack. A real payload is far
/// shorter.
pub const MAX_UNPACKED: usize = 16 << 20;

/// Why a message has no wire form, or why a wire form can't be read.
#[derive(Debug, PartialEq, Eq)]
pub enum WireError {
    /// The packed form is too long: it has this many bytes.
    TooLong(usize),
    /// The reason why `decode` can't read the form.
    Malformed(&'static str),
    /// The form unpacks to more bytes than allowed, or the text to pack is longer than
    /// `MAX_UNPACKED`.
    Bomb,
    /// The JSON is nested more than `MAX_DEPTH` levels deep.
    TooDeep,
    /// The process has no memory for the text.
    OutOfMemory,
}

/// Returns the wire form of a JSON object given as text: the text itself if it fits into a payload,
/// else the packed form.
pub fn encode(json: String) -> Result<String, WireError> {
    if json.len() <= MAX_PAYLOAD {
        return Ok(json);
    }
    if json.len() > MAX_UNPACKED {
        return Err(WireError::Bomb); // no reader would unpack it
    }
    let packed = Piece::read(GzEncoder::new(json.as_bytes(), Compression::default()), MAX_PAYLOAD, true)
        .map_err(|failed| failed.unwrap_or(WireError::Malformed("it can't be compressed")))?;
    let len = packed.len.div_ceil(3) * 4;
    if len > MAX_PAYLOAD {
        return Err(WireError::TooLong(len));
    }
    Ok(STANDARD.encode(packed.bytes))
}

/// The time of modification in the gzip header of the form that `encode_marked` writes. Readers
/// skip this field.
const MARK: u32 = u32::from_le_bytes(*b"oban");

/// The first characters of a form that `encode_marked` writes: the base64 of the first nine bytes
/// of the gzip header.
pub const MARKED: &str = "H4sIAG9iYW4A";

/// Returns the packed form of a JSON object, which begins with `MARKED`. Err: the packed form is
/// too long for a payload; the value is its length, or `usize::MAX` if the text can't be
/// compressed.
pub fn encode_marked(json: &str) -> Result<String, usize> {
    let marked = GzBuilder::new().mtime(MARK).read(json.as_bytes(), Compression::default());
    let packed = Piece::read(marked, MAX_PAYLOAD, true).map_err(|_| usize::MAX)?;
    let len = packed.len.div_ceil(3) * 4;
    if len > MAX_PAYLOAD { Err(len) } else { Ok(STANDARD.encode(packed.bytes)) }
}

/// The first bytes that a reader gives.
struct Piece {
    /// The bytes, no more of them than `Piece::read` was to keep.
    bytes: Vec<u8>,
    /// How many bytes were read, kept or not.
    len: usize,
}

impl Piece {
    /// Reads from `reader` and keeps up to `most` bytes. With `counted`, reads to the end, so that
    /// `len` is the length of all that there is. Without it, reads on only until `len` is greater
    /// than `most`. Err(None): the reader failed. Err(Some): there is no memory.
    fn read(mut reader: impl Read, most: usize, counted: bool) -> Result<Self, Option<WireError>> {
        let mut piece = Self { bytes: Vec::new(), len: 0 };
        let mut buffer = [0; 8192];
        while counted || piece.len <= most {
            let read = reader.read(&mut buffer).map_err(|_| None)?;
            if read == 0 {
                break;
            }
            let kept = read.min(most - piece.bytes.len());
            piece.bytes.try_reserve(kept).map_err(|_| Some(WireError::OutOfMemory))?;
            piece.bytes.extend_from_slice(&buffer[..kept]);
            piece.len += read;
        }
        Ok(piece)
    }
}

/// Returns the JSON text of a wire form. The caller's parser finds out whether the text is JSON.
pub fn decode(wire: &str) -> Result<String, WireError> {
    decode_up_to(wire, MAX_UNPACKED)
}

/// Returns the JSON text of a wire form, as `decode` does, if it unpacks to at most `most` bytes.
/// Plain JSON is not limited.
pub fn decode_up_to(wire: &str, most: usize) -> Result<String, WireError> {
    let packed = match wire.strip_prefix("Z:") {
        Some(packed) => packed,
        None if wire.starts_with("H4sI") => wire,
        None => return copied(wire),
    };
    let packed = STANDARD.decode(packed).map_err(|_| WireError::Malformed("it is not base64"))?;
    let json = Piece::read(GzDecoder::new(&*packed), most, false)
        .map_err(|failed| failed.unwrap_or(WireError::Malformed("it is not gzip")))?;
    if json.len > most {
        return Err(WireError::Bomb);
    }
    String::from_utf8(json.bytes).map_err(|_| WireError::Malformed("it is not UTF-8"))
}

/// The deepest nesting of a payload. Each reader parses the payload again, deeper in its stack than
/// the sender was.
pub const MAX_DEPTH: usize = 500;

/// Tells which characters of a JSON text belong to strings. The caller gives it one character after
/// the other.
#[derive(Default)]
struct Strings {
    /// Whether the next character is inside of a string.
    quoted: bool,
    /// Whether the last character was a backslash that escapes the next one.
    escaped: bool,
}

impl Strings {
    /// Returns whether `c` is inside of a string, or the quote that ends a string.
    fn contain(&mut self, c: char) -> bool {
        let inside = self.quoted;
        if self.escaped {
            self.escaped = false;
        } else {
            self.escaped = inside && c == '\\';
            self.quoted ^= c == '"';
        }
        inside
    }
}

/// Returns JSON that Postgres printed, without the spaces that Postgres puts between tokens. Err:
/// the JSON is nested too deep, or there is no memory.
pub fn compact(json: &str) -> Result<String, WireError> {
    require_flat(json)?;
    let (mut compact, mut strings) = (String::new(), Strings::default());
    compact.try_reserve_exact(json.len()).map_err(|_| WireError::OutOfMemory)?;
    compact.extend(json.chars().filter(|c| strings.contain(*c) || *c != ' '));
    Ok(compact)
}

/// Returns Err(TooDeep) if the JSON is nested more than `MAX_DEPTH` levels deep. Text that is no
/// JSON is for the caller's parser to refuse.
pub fn require_flat(json: &str) -> Result<(), WireError> {
    let (mut strings, mut depth) = (Strings::default(), 0usize);
    for c in json.chars() {
        if strings.contain(c) {
            continue;
        }
        match c {
            '{' | '[' if depth == MAX_DEPTH => return Err(WireError::TooDeep),
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Returns a copy of a text. Err: there is no memory for the copy.
fn copied(text: &str) -> Result<String, WireError> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| WireError::OutOfMemory)?;
    copy.push_str(text);
    Ok(copy)
}

/// Returns `{"<key>":"<value>"}` in the server's encoding. The object is built byte by byte,
/// because a trigger has to cope with every server encoding. Each of these encodings keeps ASCII as
/// it is, and uses only bytes above ASCII for other characters.
pub fn object_of_one(key: &str, value: &[u8]) -> Vec<u8> {
    let mut json = Vec::with_capacity(key.len() + value.len() + 8);
    json.extend_from_slice(b"{\"");
    json.extend_from_slice(key.as_bytes());
    json.extend_from_slice(b"\":");
    push_string(&mut json, value);
    json.push(b'}');
    json
}

/// Returns a message for the channel `leadership`, in the server's encoding as in `object_of_one`.
/// `change` is a single word.
pub fn change_of_leader(change: &str, node: &[u8], name: &[u8], term: Option<i64>) -> Vec<u8> {
    let mut json = format!("{{\"{change}\":").into_bytes();
    push_string(&mut json, node);
    json.extend_from_slice(b",\"name\":");
    push_string(&mut json, name);
    let term = term.map_or_else(|| "null".to_owned(), |term| term.to_string());
    json.extend_from_slice(format!(",\"term\":{term}}}").as_bytes());
    json
}

/// Returns the text of the key `queue` of a payload. `None`: the payload has no such key, or its
/// value is no string.
pub fn queue_of(payload: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(field_identifier, rename_all = "lowercase")]
    enum Key {
        Queue,
        #[serde(other)]
        Other,
    }
    /// The last value of the key, as `jsonb` takes the last of equal keys.
    struct OfQueue(Option<String>);
    impl<'de> serde::Deserialize<'de> for OfQueue {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Keys)
        }
    }
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = OfQueue;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<OfQueue, M::Error> {
            let mut queue = None;
            while let Some(key) = map.next_key()? {
                match key {
                    Key::Queue => queue = serde_json::from_str(map.next_value::<&RawValue>()?.get()).ok(),
                    Key::Other => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(OfQueue(queue))
        }
    }
    // This test finds most payloads without a queue, and is cheaper than parsing them.
    if !payload.contains("\"queue\"") && !payload.contains("\\u") {
        return None;
    }
    serde_json::from_str::<OfQueue>(payload).ok()?.0
}

/// Appends a text as a JSON string, in the server's encoding as in `object_of_one`.
pub fn push_string(json: &mut Vec<u8>, text: &[u8]) {
    json.push(b'"');
    for &byte in text {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', byte]),
            0..0x20 => json.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => json.push(byte),
        }
    }
    json.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_change_of_leader_is_an_object() {
        let told = change_of_leader("elected", b"web.\"1\"", b"Oban", Some(1 << 40));
        assert_eq!(told, br#"{"elected":"web.\"1\"","name":"Oban","term":1099511627776}"#);
        let told = change_of_leader("ended", b"a", b"b", None);
        assert_eq!(told, br#"{"ended":"a","name":"b","term":null}"#);
    }

    #[test]
    fn the_queue_of_a_payload() {
        let queue = |payload| queue_of(payload);
        assert_eq!(queue(r#"{"queue":"default"}"#).as_deref(), Some("default"));
        assert_eq!(
            queue(r#"{"action":"pause","queue":"a\"b\u00e9","x":[{}]}"#).as_deref(),
            Some("a\"b\u{e9}")
        );
        assert_eq!(queue(r#"{"q\u0075eue":"default"}"#).as_deref(), Some("default"));
        assert_eq!(queue(r#" {"queue":"a","queue":1,"queue":"b","x":[]} "#).as_deref(), Some("b"));
        assert_eq!(queue(r#"{"queue":"a","queue":{"queue":"b"}}"#), None);
        for other in [
            r#"{}"#,
            r#"{"queue":1}"#,
            r#"{"queue":null}"#,
            r#"{"x":{"queue":"a"}}"#,
            r#"{"x":"queue"}"#,
            "[",
        ] {
            assert_eq!(queue(other), None, "{other}");
        }
    }

    #[test]
    fn golden_vectors_of_oban_2_15() {
        let queue = "H4sIAAAAAAAAA6tWKixNLU1VslJKSU1LLM0pUaoFAJj2NkcTAAAA";
        let down = "H4sIAAAAAAAAA6tWSskvz1OyUvJPSsxTqgUAnp/LGg8AAAA=";
        assert_eq!(decode(queue).as_deref(), Ok(r#"{"queue":"default"}"#));
        assert_eq!(decode(down).as_deref(), Ok(r#"{"down":"Oban"}"#));
        assert_eq!(decode(&format!("Z:{down}")).as_deref(), Ok(r#"{"down":"Oban"}"#));
    }

    #[test]
    fn a_marked_form_is_read_as_any_other() {
        for times in [1, 1_000] {
            let json = serde_json::json!({ "checks": ["a".repeat(times)] }).to_string();
            let wire = encode_marked(&json).expect("it is short");
            assert!(wire.starts_with(MARKED), "{wire}");
            assert_eq!(decode(&wire), Ok(json));
        }
        let other = encode("x".repeat(MAX_PAYLOAD + 1)).expect("it is short");
        assert!(other.starts_with("H4sI") && !other.starts_with(MARKED));
    }

    #[test]
    fn malformed_forms_are_refused() {
        assert_eq!(decode("Z:"), Err(WireError::Malformed("it is not gzip")));
        assert_eq!(decode("Z:{}"), Err(WireError::Malformed("it is not base64")));
        assert_eq!(decode("H4sIAAAA"), Err(WireError::Malformed("it is not gzip")));
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut packed = Vec::new();
        let zeros = std::io::repeat(b' ').take(MAX_UNPACKED as u64 + 1);
        GzEncoder::new(zeros, Compression::best()).read_to_end(&mut packed).unwrap();
        assert_eq!(decode(&STANDARD.encode(packed)), Err(WireError::Bomb));
    }

    #[test]
    fn the_limit_is_500_levels() {
        let nested = |levels: usize| {
            format!("{{\"a\": \"[[[\", \"b\": {}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
        };
        assert!(compact(&nested(500)).is_ok());
        assert_eq!(compact(&nested(501)), Err(WireError::TooDeep));
    }

    #[test]
    fn what_does_not_compress_is_refused_with_its_packed_length() {
        let mut random = 1u64;
        let noise: String = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            char::from(b' ' + (random >> 33) as u8 % 64)
        })
        .take(100_000)
        .collect();
        let Err(WireError::TooLong(len)) = encode(noise) else { panic!("it has 600,000 bits") };
        assert!((75_000..150_000).contains(&len) && len % 4 == 0, "{len}");
    }

    #[test]
    fn brackets_in_strings_are_no_levels() {
        assert_eq!(require_flat(&format!(r#"["\"{}"]"#, "[".repeat(1_000))), Ok(()));
        assert_eq!(require_flat(&"[".repeat(100_000)), Err(WireError::TooDeep));
        assert_eq!(require_flat(&"]".repeat(100_000)), Ok(()));
    }

    #[test]
    fn the_limit_is_7999_bytes() {
        let plain = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_PAYLOAD - 8));
        assert_eq!(encode(plain.clone()), Ok(plain.clone()));
        let packed = encode(format!("{plain} ")).unwrap();
        assert!(packed.starts_with("H4sI") && packed.len() < 100);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back(body in "[ -~]{0,40}", times in 1usize..600) {
            let json = serde_json::json!({ "body": body.repeat(times) }).to_string();
            if let Ok(wire) = encode(json.clone()) {
                prop_assert!(wire.len() <= MAX_PAYLOAD);
                prop_assert_eq!(decode(&wire), Ok(json));
            }
        }

        #[test]
        fn compacting_changes_nothing_but_spaces(
            key in any::<String>(), value in any::<String>(), n in any::<i32>()
        ) {
            let object = serde_json::json!({ key: [n, value], "x": { "y": null, "z": "a \\\" b: , " } });
            let printed = object.to_string().replace("\":", "\": ").replace("\",", "\", ");
            // The replacement also added spaces inside of strings. These spaces stay.
            let read: serde_json::Value = serde_json::from_str(&printed).unwrap();
            prop_assert_eq!(compact(&printed), Ok(read.to_string()));
        }

        #[test]
        fn decode_never_panics(wire in "(Z:)?(H4sI)?[ -~]{0,60}") {
            let _ = decode(&wire);
        }

        #[test]
        fn one_key_objects_are_json(value in any::<String>()) {
            let json = object_of_one("queue", value.as_bytes());
            let read: serde_json::Value = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(read, serde_json::json!({ "queue": value }));
        }
    }
}
