//! The wire form of a message. Oban has three: plain JSON, `H4sI…` (base64 of gzip, Oban 2.15 to
//! 2.20 and Oban for Python) and `Z:H4sI…` (Oban 2.21 on). Plain JSON is understood by all of them,
//! `H4sI…` by all since 2.15, `Z:` by new Elixir nodes only; so we write the first two and read all.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, GzBuilder, read::GzDecoder, read::GzEncoder};

/// NOTIFY_PAYLOAD_MAX_LENGTH - 1: Postgres refuses a payload of 8,000 bytes.
pub const MAX_PAYLOAD: usize = 7_999;

/// What a wire form of at most a few kilobytes may unpack to; a real payload is far below.
pub const MAX_UNPACKED: usize = 16 << 20;

#[derive(Debug, PartialEq, Eq)]
pub enum WireError {
    /// The packed form's length in bytes.
    TooLong(usize),
    /// What kept `decode` from reading the form.
    Malformed(&'static str),
    /// It unpacks to more bytes than it may.
    Bomb,
    /// It is nested more than `MAX_DEPTH` levels deep.
    TooDeep,
    OutOfMemory,
}

/// The wire form of a JSON object given as text.
pub fn encode(json: String) -> Result<String, WireError> {
    if json.len() <= MAX_PAYLOAD {
        return Ok(json);
    }
    if json.len() > MAX_UNPACKED {
        return Err(WireError::Bomb); // nobody would read it
    }
    let packed = Piece::read(GzEncoder::new(json.as_bytes(), Compression::default()), MAX_PAYLOAD, true)
        .map_err(|failed| failed.unwrap_or(WireError::Malformed("it can't be compressed")))?;
    let len = packed.len.div_ceil(3) * 4;
    if len > MAX_PAYLOAD {
        return Err(WireError::TooLong(len));
    }
    Ok(STANDARD.encode(packed.bytes))
}

/// How the compressed form begins that `encode_marked` gives: a gzip header with this time of modification, which
/// readers skip.
const MARK: u32 = u32::from_le_bytes(*b"oban");

/// The first characters of such a form: of nine bytes of a header.
pub const MARKED: &str = "H4sIAG9iYW4A";

/// The compressed form of a JSON object, with a mark by which `MARKED` knows it again. `Err` is how long it
/// would be, where that is too long.
pub fn encode_marked(json: &str) -> Result<String, usize> {
    let marked = GzBuilder::new().mtime(MARK).read(json.as_bytes(), Compression::default());
    let packed = Piece::read(marked, MAX_PAYLOAD, true).map_err(|_| usize::MAX)?;
    let len = packed.len.div_ceil(3) * 4;
    if len > MAX_PAYLOAD { Err(len) } else { Ok(STANDARD.encode(packed.bytes)) }
}

/// The beginning of what a reader gives.
struct Piece {
    /// No more than were wanted.
    bytes: Vec<u8>,
    /// How many there are.
    len: usize,
}

impl Piece {
    /// Keeps up to `most` bytes; looks how many more there are if that is to be `counted`, else only for one. `None`
    /// is the reader's error.
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

/// The JSON text of a wire form; whether it is JSON is for the caller's parser to say.
pub fn decode(wire: &str) -> Result<String, WireError> {
    decode_up_to(wire, MAX_UNPACKED)
}

/// The same for a wire form that may unpack to so many bytes.
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

/// Each reader parses it again, deeper in its stack than the sender was.
pub const MAX_DEPTH: usize = 500;

/// Whether a character of JSON is part of a string, told one after the other.
#[derive(Default)]
struct Strings {
    quoted: bool,
    escaped: bool,
}

impl Strings {
    /// Whether this one is inside of a string, or its last quote.
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

/// JSON as Postgres prints it, without the spaces that it puts between tokens.
pub fn compact(json: &str) -> Result<String, WireError> {
    require_flat(json)?;
    let (mut compact, mut strings) = (String::new(), Strings::default());
    compact.try_reserve_exact(json.len()).map_err(|_| WireError::OutOfMemory)?;
    compact.extend(json.chars().filter(|c| strings.contain(*c) || *c != ' '));
    Ok(compact)
}

/// Refuses what is nested more than `MAX_DEPTH` levels deep. What is no JSON is for the caller's parser to refuse.
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

/// A copy for which there may be no memory.
fn copied(text: &str) -> Result<String, WireError> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| WireError::OutOfMemory)?;
    copy.push_str(text);
    Ok(copy)
}

/// `{"<key>":"<value>"}` in the server's encoding. Byte by byte, because a trigger has to cope with
/// every server encoding: all of them keep ASCII as it is and use only bytes above it for the rest.
pub fn object_of_one(key: &str, value: &[u8]) -> Vec<u8> {
    let mut json = Vec::with_capacity(key.len() + value.len() + 8);
    json.extend_from_slice(b"{\"");
    json.extend_from_slice(key.as_bytes());
    json.extend_from_slice(b"\":");
    push_string(&mut json, value);
    json.push(b'}');
    json
}

/// A message on the channel `leadership`, in the server's encoding as above. `change` is a word.
pub fn change_of_leader(change: &str, node: &[u8], name: &[u8], term: Option<i64>) -> Vec<u8> {
    let mut json = format!("{{\"{change}\":").into_bytes();
    push_string(&mut json, node);
    json.extend_from_slice(b",\"name\":");
    push_string(&mut json, name);
    let term = term.map_or_else(|| "null".to_owned(), |term| term.to_string());
    json.extend_from_slice(format!(",\"term\":{term}}}").as_bytes());
    json
}

/// The text of the key `queue` of a payload. `None`: the payload has none, or another kind of value.
pub fn queue_of(payload: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct OfQueue {
        queue: String,
    }
    // Most payloads on other channels are told by this from those that have to be read.
    if !payload.contains("\"queue\"") && !payload.contains("\\u") {
        return None;
    }
    serde_json::from_str::<OfQueue>(payload).ok().map(|payload| payload.queue)
}

/// Adds a text as a JSON string, in the server's encoding as well.
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
        fn compacting_changes_nothing_but_spaces(key in any::<String>(), value in any::<String>(), n in any::<i32>()) {
            let object = serde_json::json!({ key: [n, value], "x": { "y": null, "z": "a \\\" b: , " } });
            let printed = object.to_string().replace("\":", "\": ").replace("\",", "\", ");
            // What the replacement has done inside of strings stays.
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
