//! Reads a `jsonb` in Postgres' own binary form (utils/jsonb.h). The form is the same since 9.4,
//! because it is the form on disk. So a state that is put can be tested without printing it as
//! text.
//!
//! Bytes that do not have this form read as `Unreadable`. Nothing here panics or reads beyond the
//! bytes.

/// The error of bytes that are no `jsonb`, or of a `jsonb` that is nested deeper than the limit
/// that the caller set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The deepest nesting that `Value::walk_members` reads.
pub const MAX_DEPTH: usize = 100;

/// A value inside a `jsonb`, as a reference into its bytes.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number<'a>),
    /// The text, in the server's encoding.
    String(&'a [u8]),
    Array(Container<'a>),
    Object(Container<'a>),
}

/// The elements of an array, or the members of an object in the order of their keys' lengths.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// The number of elements or of members.
    count: usize,
    /// How many entries each of these has: an element has one; a member has two, a key and a value.
    /// All keys come before all values.
    kinds: usize,
    /// One 32-bit word for each entry: the kind of a value and its end or length.
    entries: &'a [u8],
    /// The bytes of the keys and values, which `entries` describes.
    data: &'a [u8],
}

/// The bits that hold the number of elements or members in a container's header, and the end or
/// length in an entry.
const COUNT: u32 = 0x0fff_ffff;
/// The header's flag of an array that wraps a single scalar.
const SCALAR: u32 = 0x1000_0000;
/// The header's flag of an object.
const OBJECT: u32 = 0x2000_0000;
/// The header's flag of an array.
const ARRAY: u32 = 0x4000_0000;

/// The bits of an entry that hold the kind of the value.
const ENTRY_KIND: u32 = 0x7000_0000;
/// The flag of an entry that holds the end of the value, not the length.
const ENTRY_HAS_END: u32 = 0x8000_0000;

/// Returns the 32-bit word that begins at the byte `at`. Err: the bytes end before it does.
fn word(bytes: &[u8], at: usize) -> Result<u32, Unreadable> {
    let word = bytes.get(at..at + 4).ok_or(Unreadable)?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

/// Returns the value of a `jsonb`. `bytes` begins with the four bytes of the length. Err: the bytes
/// are no `jsonb`.
pub fn read(bytes: &[u8]) -> Result<Value<'_>, Unreadable> {
    let root = bytes.get(4..).ok_or(Unreadable)?;
    let scalar = word(root, 0)? & SCALAR != 0;
    match Container::read(root)? {
        Value::Array(array) if scalar => array.iter().next().ok_or(Unreadable)?.map(|(_, value)| value),
        value => Ok(value),
    }
}

/// Returns the length of a `jsonb` as JSON text without spaces. Err: the `jsonb` is nested deeper
/// than `depth` levels, or unreadable. The text of a few bytes may be long: a number of 12 bytes
/// has up to 131,072 digits.
pub fn text_len(bytes: &[u8], depth: usize) -> Result<usize, Unreadable> {
    read(bytes)?.walk_in(depth, &mut |_| {})
}

impl<'a> Container<'a> {
    /// Returns the array or the object that begins at the first byte. Err: `bytes` holds neither.
    fn read(bytes: &'a [u8]) -> Result<Value<'a>, Unreadable> {
        let header = word(bytes, 0)?;
        let count = (header & COUNT) as usize;
        let kinds = match header & (OBJECT | ARRAY) {
            OBJECT => 2,
            ARRAY => 1,
            _ => return Err(Unreadable),
        };
        let end = 4 + count.checked_mul(4 * kinds).ok_or(Unreadable)?;
        let (entries, data) = (bytes.get(4..end).ok_or(Unreadable)?, bytes.get(end..).ok_or(Unreadable)?);
        let container = Self { count, kinds, entries, data };
        Ok(if kinds == 2 { Value::Object(container) } else { Value::Array(container) })
    }

    /// Returns the elements of an array, each with an empty key, or the members of an object, each
    /// with its key. An item is Err where the bytes are unreadable.
    pub fn iter(&self) -> impl Iterator<Item = Result<(&'a [u8], Value<'a>), Unreadable>> {
        let container = *self;
        // The values lie behind the keys, so the keys are passed over first.
        let values = if self.kinds == 2 { container.end_of_keys() } else { Ok(0) };
        let (mut key_end, mut value_end) = (0, values);
        (0..self.count).map(move |i| {
            let key = match container.kinds {
                2 => match container.entry(i, &mut key_end)? {
                    Value::String(key) => key,
                    _ => return Err(Unreadable),
                },
                _ => &[],
            };
            let mut end = value_end?;
            let value = container.entry(i + container.count * (container.kinds - 1), &mut end)?;
            value_end = Ok(end);
            Ok((key, value))
        })
    }

    /// Returns the value of the member `key`, or `None` if there is no such member.
    pub fn get(&self, key: &str) -> Result<Option<Value<'a>>, Unreadable> {
        for member in self.iter() {
            let (name, value) = member?;
            if name == key.as_bytes() {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Returns the offset in `data` at which the last key ends.
    fn end_of_keys(&self) -> Result<usize, Unreadable> {
        let mut end = 0;
        for i in 0..self.count {
            end = self.end(i, end)?.1;
        }
        Ok(end)
    }

    /// Returns the word of the i-th entry, and the end of the value, which begins at `start`.
    fn end(&self, i: usize, start: usize) -> Result<(u32, usize), Unreadable> {
        let entry = word(self.entries, i * 4)?;
        let number = (entry & COUNT) as usize;
        Ok((entry, if entry & ENTRY_HAS_END != 0 { number } else { start + number }))
    }

    /// Returns the value of the i-th entry. `end` is the end of the entry before, where the value
    /// begins, and becomes the end of this value.
    fn entry(&self, i: usize, end: &mut usize) -> Result<Value<'a>, Unreadable> {
        let start = *end;
        let entry;
        (entry, *end) = self.end(i, start)?;
        let bytes = self.data.get(start..*end).ok_or(Unreadable)?;
        // Numbers and containers begin at a multiple of four.
        let aligned = || bytes.get(start.next_multiple_of(4) - start..).ok_or(Unreadable);
        match (entry & ENTRY_KIND) >> 28 {
            0 => Ok(Value::String(bytes)),
            1 => Ok(Value::Number(Number::read(aligned()?)?)),
            2 => Ok(Value::Bool(false)),
            3 => Ok(Value::Bool(true)),
            4 => Ok(Value::Null),
            5 => Self::read(aligned()?),
            _ => Err(Unreadable),
        }
    }
}

/// A `numeric`: digits of base 10,000. The first digit counts 10,000 to the power of `weight`.
#[derive(Clone, Copy, Debug)]
pub struct Number<'a> {
    negative: bool,
    weight: i32,
    /// The number of decimal digits that are printed behind the point.
    scale: usize,
    /// The digits of base 10,000, two bytes each.
    digits: &'a [u8],
}

impl<'a> Number<'a> {
    /// Returns the number whose length word is at the beginning of `bytes`. Err: the bytes hold no
    /// number.
    fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let header = word(bytes, 0)?;
        let len = if cfg!(target_endian = "big") { header & COUNT } else { header >> 2 } as usize;
        // A `numeric` with a one-byte length never occurs in a `jsonb`.
        if cfg!(target_endian = "little") && header & 3 != 0 {
            return Err(Unreadable);
        }
        let bytes = bytes.get(4..len).ok_or(Unreadable)?;
        let half = |at: usize| -> Result<u16, Unreadable> {
            let half = bytes.get(at..at + 2).ok_or(Unreadable)?;
            Ok(u16::from_ne_bytes([half[0], half[1]]))
        };
        let header = half(0)?;
        match header >> 14 {
            // This is NaN or an infinity. JSON has neither.
            3 => Err(Unreadable),
            2 => Ok(Self {
                negative: header & 0x2000 != 0,
                weight: i32::from(header & 0x3f) - i32::from(header & 0x40),
                scale: usize::from((header & 0x1f80) >> 7),
                digits: &bytes[2..],
            }),
            sign => Ok(Self {
                negative: sign == 1,
                weight: i32::from(half(2)? as i16),
                scale: usize::from(header & 0x3fff),
                digits: &bytes[4..],
            }),
        }
    }

    /// Returns the digits of base 10,000, from the first on.
    fn digits(&self) -> impl Iterator<Item = i64> {
        self.digits.chunks_exact(2).map(|d| i64::from(u16::from_ne_bytes([d[0], d[1]])))
    }

    /// Returns the value, or `None` if the number is not printed as an integer or does not fit into
    /// an i64.
    pub fn integer(&self) -> Option<i64> {
        if self.scale > 0 || self.weight > 4 {
            return None;
        }
        let sign = if self.negative { -1 } else { 1 };
        let mut digits = self.digits();
        let mut value = 0i64;
        for _ in 0..=self.weight {
            value = value.checked_mul(10_000)?.checked_add(sign * digits.next().unwrap_or(0))?;
        }
        Some(value)
    }

    /// Returns how many decimal digits are printed before the point, and how many behind it.
    pub fn printed(&self) -> (usize, usize) {
        let first = self.digits().next().unwrap_or(0).max(1);
        let before = if self.weight < 0 { 1 } else { first.ilog10() as usize + 1 + 4 * self.weight as usize };
        (before, self.scale)
    }

    /// Returns the length of the number as text.
    fn text_len(&self) -> usize {
        let (before, behind) = self.printed();
        usize::from(self.negative) + before + if behind > 0 { behind + 1 } else { 0 }
    }
}

impl<'a> Value<'a> {
    /// Calls `number` for each number in the value. Returns the value's length as JSON text without
    /// spaces. Err: the value is unreadable, or nested deeper than `MAX_DEPTH`.
    #[cfg(any(test, feature = "pg_test"))]
    pub fn walk(&self, number: &mut impl FnMut(&Number<'a>)) -> Result<usize, Unreadable> {
        self.walk_in(MAX_DEPTH, number)
    }

    /// Gives each member of `object` to `member`, and calls `number` for each number in the object.
    /// Returns the object's length as JSON text without spaces. Err: the object is unreadable, or
    /// nested deeper than `MAX_DEPTH`.
    pub fn walk_members(
        object: &Container<'a>,
        number: &mut impl FnMut(&Number<'a>),
        mut member: impl FnMut(&'a [u8], &Value<'a>),
    ) -> Result<usize, Unreadable> {
        let mut len = 2 + object.count.saturating_sub(1);
        for next in object.iter() {
            let (key, value) = next?;
            member(key, &value);
            len += value.walk_in(MAX_DEPTH - 1, number)? + string_len(key) + 1;
        }
        Ok(len)
    }

    /// Calls `number` for each number in the value. Returns the value's length as JSON text without
    /// spaces. Err: the value is unreadable, or nested deeper than `depth` levels.
    fn walk_in(&self, depth: usize, number: &mut impl FnMut(&Number<'a>)) -> Result<usize, Unreadable> {
        Ok(match self {
            Value::Null | Value::Bool(true) => 4,
            Value::Bool(false) => 5,
            Value::String(text) => string_len(text),
            Value::Number(n) => {
                number(n);
                n.text_len()
            }
            Value::Array(container) | Value::Object(container) => {
                let depth = depth.checked_sub(1).ok_or(Unreadable)?;
                let is_object = container.kinds == 2;
                // The two brackets, and the commas between the members.
                let mut len = 2 + container.count.saturating_sub(1);
                for member in container.iter() {
                    let (key, value) = member?;
                    len += value.walk_in(depth, number)? + if is_object { string_len(key) + 1 } else { 0 };
                }
                len
            }
        })
    }
}

/// Returns the length of a string as Postgres prints it, with its quotes.
fn string_len(text: &[u8]) -> usize {
    // The test has no branch for each byte, because hardly any byte has to be escaped.
    let special = |byte: &u8| *byte < 32 || *byte == b'"' || *byte == b'\\';
    if !text.iter().fold(false, |any, byte| any | special(byte)) {
        return text.len() + 2;
    }
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..32 => 6,
        _ => 1,
    };
    2 + text.iter().map(escaped).sum::<usize>()
}

/// For tests: the value as serde has it.
#[cfg(any(test, feature = "pg_test"))]
impl Value<'_> {
    /// Returns the value as serde has it. Err: the value is unreadable.
    #[allow(dead_code)] // only one of the two kinds of tests has a Postgres
    pub fn as_serde(&self) -> Result<serde_json::Value, Unreadable> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::String(s) => text(s).into(),
            Value::Number(n) => serde_json::from_str(&n.print()).map_err(|_| Unreadable)?,
            Value::Array(a) => a.iter().map(|e| e?.1.as_serde()).collect::<Result<Vec<_>, _>>()?.into(),
            Value::Object(o) => {
                let members = o.iter().map(|m| m.and_then(|(key, value)| Ok((text(key), value.as_serde()?))));
                serde_json::Value::Object(members.collect::<Result<_, _>>()?)
            }
        })
    }
}

#[cfg(any(test, feature = "pg_test"))]
impl Number<'_> {
    /// Returns the number as text.
    #[allow(dead_code)]
    fn print(&self) -> String {
        let digit = |i: i32| usize::try_from(i).ok().and_then(|i| self.digits().nth(i)).unwrap_or(0);
        let whole: String = (0..=self.weight).map(|i| format!("{:04}", digit(i))).collect();
        let whole = whole.trim_start_matches('0');
        let behind: String = (0..self.scale.div_ceil(4) as i32)
            .map(|i| format!("{:04}", digit(self.weight + 1 + i)))
            .collect();
        let sign = if self.negative { "-" } else { "" };
        let point = if self.scale > 0 { "." } else { "" };
        format!("{sign}{}{point}{}", if whole.is_empty() { "0" } else { whole }, &behind[..self.scale])
    }
}

/// For tests: builds the `jsonb` that Postgres would build from JSON.
#[cfg(test)]
pub mod writing {
    use serde_json::Value;

    pub fn jsonb(json: &Value) -> Vec<u8> {
        let root = match json {
            Value::Array(_) | Value::Object(_) => container(json, 0),
            scalar => container(&Value::Array(vec![scalar.clone()]), super::SCALAR),
        };
        with_length(&root)
    }

    fn with_length(bytes: &[u8]) -> Vec<u8> {
        let len = ((bytes.len() + 4) as u32) << 2;
        [&len.to_le_bytes(), bytes].concat()
    }

    fn container(json: &Value, flags: u32) -> Vec<u8> {
        let mut members: Vec<(&str, &Value)> = match json {
            Value::Object(object) => object.iter().map(|(key, value)| (&**key, value)).collect(),
            Value::Array(array) => array.iter().map(|element| ("", element)).collect(),
            scalar => panic!("{scalar}"),
        };
        let mut header = super::ARRAY | flags | members.len() as u32;
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        let mut add = |kind: u32, value: Vec<u8>, aligned: bool| {
            let start = data.len();
            if aligned {
                data.resize(start.next_multiple_of(4), 0);
            }
            data.extend(value);
            // As in Postgres, every 32nd entry holds the end of the value. The others hold the
            // length.
            let end = entries.len() % 32 == 0;
            let number =
                if end { data.len() as u32 | super::ENTRY_HAS_END } else { (data.len() - start) as u32 };
            entries.push(kind << 28 | number);
        };
        if json.is_object() {
            header = super::OBJECT | members.len() as u32;
            members.sort_by_key(|(key, _)| (key.len(), *key));
            members.iter().for_each(|(key, _)| add(0, key.as_bytes().to_vec(), false));
        }
        for (_, value) in members {
            match value {
                Value::Null => add(4, Vec::new(), false),
                Value::Bool(b) => add(2 + u32::from(*b), Vec::new(), false),
                Value::String(s) => add(0, s.as_bytes().to_vec(), false),
                Value::Number(n) => add(1, with_length(&numeric(&n.to_string())), true),
                nested => add(5, container(nested, 0), true),
            }
        }
        let words = entries.iter().flat_map(|e| e.to_le_bytes());
        header.to_le_bytes().into_iter().chain(words).chain(data).collect()
    }

    /// Returns the bytes of a `numeric` for text of the form `-?[0-9]+(.[0-9]+)?`.
    fn numeric(text: &str) -> Vec<u8> {
        let (negative, text) = (text.starts_with('-'), text.trim_start_matches('-'));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let whole = format!("{}{whole}", "0".repeat(whole.len().next_multiple_of(4) - whole.len()));
        let fraction_digits =
            format!("{fraction}{}", "0".repeat(fraction.len().next_multiple_of(4) - fraction.len()));
        let all = whole.clone() + &fraction_digits;
        let mut digits: Vec<u16> =
            all.as_bytes().chunks(4).map(|d| std::str::from_utf8(d).unwrap().parse().unwrap()).collect();
        let mut weight = whole.len() as i32 / 4 - 1;
        while digits.first() == Some(&0) {
            digits.remove(0);
            weight -= 1;
        }
        while digits.last() == Some(&0) {
            digits.pop();
        }
        if digits.is_empty() {
            weight = 0;
        }
        let sign = negative && !digits.is_empty();
        let mut bytes = if fraction.len() < 64 && (-64..64).contains(&weight) {
            let header =
                0x8000 | u16::from(sign) << 13 | (fraction.len() as u16) << 7 | (weight & 0x7f) as u16;
            header.to_le_bytes().to_vec()
        } else {
            let header = u16::from(sign) << 14 | fraction.len() as u16;
            [header.to_le_bytes(), (weight as i16).to_le_bytes()].concat()
        };
        bytes.extend(digits.iter().flat_map(|d| d.to_le_bytes()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The `jsonb` of `{"a": [1, -2.50, 123456789012], "bb": {"c": null}}`, as Postgres 15 builds
    /// it.
    const SAMPLE: &str = "\
        64010000020000200100008002000000310000500d0000506162620003000040080000900a0000100e00001020000000\
        008001002800000000a1020088130000300000000280d2042e16342301000020010000800000004063";

    fn sample() -> Vec<u8> {
        let hex = |i| u8::from_str_radix(&SAMPLE[i..i + 2], 16).expect("hex");
        (0..SAMPLE.len()).step_by(2).map(hex).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_sample_is_read() {
        let bytes = sample();
        let value = read(&bytes).unwrap();
        let text = r#"{"a":[1,-2.50,123456789012],"bb":{"c":null}}"#;
        let json = serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!((value.as_serde().unwrap(), writing::jsonb(&json)), (json, bytes.clone()));
        let mut numbers = Vec::new();
        let len = value.walk(&mut |n| numbers.push((n.integer(), n.printed())));
        assert_eq!(len, Ok(text.len()));
        assert_eq!(numbers, [(Some(1), (1, 0)), (None, (1, 2)), (Some(123456789012), (12, 0))]);
        let Value::Object(object) = value else { panic!("{value:?}") };
        assert!(
            matches!(object.get("bb"), Ok(Some(Value::Object(_)))) && matches!(object.get("c"), Ok(None))
        );
    }

    #[test]
    fn the_length_is_told_up_to_a_depth() {
        let bytes = writing::jsonb(&serde_json::json!([[["x"]]]));
        assert_eq!((text_len(&bytes, 3), text_len(&bytes, 2)), (Ok(9), Err(Unreadable)));
        assert_eq!(text_len(&writing::jsonb(&serde_json::json!(12.5)), 1), Ok(4));
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let number = prop_oneof![
            any::<i64>().prop_map(Value::from),
            (-99_999i64..99_999).prop_map(Value::from),
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,80})?".prop_filter_map("-0 is 0", |text| {
                let zero = text.starts_with('-') && text.bytes().all(|b| !(b'1'..=b'9').contains(&b));
                (!zero).then(|| serde_json::from_str::<Value>(&text).expect("a number"))
            }),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[ -~é\\u{1}-\\u{1f}]{0,9}".prop_map(Value::from),
            number,
        ];
        leaf.prop_recursive(4, 200, 40, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..40).prop_map(Value::from),
                prop::collection::btree_map("[a-zé]{0,6}", inner, 0..40)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What was written is read back. Its length is the length of serde's text, because serde
        /// escapes as Postgres does.
        #[test]
        fn what_is_written_is_read(json in json()) {
            let bytes = writing::jsonb(&json);
            let value = read(&bytes).unwrap();
            prop_assert_eq!(&value.as_serde().unwrap(), &json);
            let mut integers = Vec::new();
            let len = value.walk(&mut |n| integers.push(n.integer()));
            prop_assert_eq!(len, Ok(json.to_string().len()));
            prop_assert_eq!(text_len(&bytes, MAX_DEPTH), len);
            fn wanted(json: &serde_json::Value, into: &mut Vec<Option<i64>>) {
                match json {
                    serde_json::Value::Number(n) => into.push(n.as_i64()),
                    serde_json::Value::Array(a) => a.iter().for_each(|e| wanted(e, into)),
                    serde_json::Value::Object(o) => {
                        let mut keys: Vec<_> = o.iter().collect();
                        keys.sort_by_key(|(key, _)| (key.len(), *key));
                        keys.into_iter().for_each(|(_, e)| wanted(e, into));
                    }
                    _ => {}
                }
            }
            let mut all = Vec::new();
            wanted(&json, &mut all);
            prop_assert_eq!(integers, all);
        }

        /// No bytes make the reader panic.
        #[test]
        fn any_bytes_can_be_read(
            at in 0usize..200, byte in any::<u8>(), cut in 0usize..200, junk in any::<Vec<u8>>()
        ) {
            let mut bytes = sample();
            let len = bytes.len();
            bytes[at % len] = byte;
            for bytes in [&bytes[..], &bytes[..cut % len], &junk] {
                if let Ok(value) = read(bytes) {
                    let _ = value.walk(&mut |n| { n.integer(); });
                    let _ = value.as_serde();
                }
            }
        }
    }
}
