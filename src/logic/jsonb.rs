//! Reading a `jsonb` as Postgres keeps it (utils/jsonb.h, the same since 9.4: it is what is on disk), to test what
//! is put without making a text of it.
//!
//! Bytes that are not what they should be read as `Unreadable`; nothing here panics or reads beyond them.

/// What is here is no jsonb, or nested deeper than `MAX_DEPTH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The deepest nesting that is read.
pub const MAX_DEPTH: usize = 100;

#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number<'a>),
    /// In the server's encoding.
    String(&'a [u8]),
    Array(Container<'a>),
    Object(Container<'a>),
}

/// An array's elements, or an object's members in the order of their keys' lengths.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    count: usize,
    /// How many times that many entries there are: an object has keys, then values.
    kinds: usize,
    /// A word for each entry.
    entries: &'a [u8],
    /// What they describe.
    data: &'a [u8],
}

const COUNT: u32 = 0x0fff_ffff;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;
const ARRAY: u32 = 0x4000_0000;

const ENTRY_KIND: u32 = 0x7000_0000;
/// The entry has the end of its value, not its length.
const ENTRY_HAS_END: u32 = 0x8000_0000;

fn word(bytes: &[u8], at: usize) -> Result<u32, Unreadable> {
    let word = bytes.get(at..at + 4).ok_or(Unreadable)?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

/// The value of a jsonb, given with the four bytes of its length in front.
pub fn read(bytes: &[u8]) -> Result<Value<'_>, Unreadable> {
    let root = bytes.get(4..).ok_or(Unreadable)?;
    let scalar = word(root, 0)? & SCALAR != 0;
    match Container::read(root)? {
        Value::Array(array) if scalar => array.iter().next().ok_or(Unreadable)?.map(|(_, value)| value),
        value => Ok(value),
    }
}

/// How long a jsonb is as JSON text without spaces, if it is nested no more than `depth` levels deep. A few bytes may
/// be many as text: a number of 12 bytes has up to 131,072 digits.
pub fn text_len(bytes: &[u8], depth: usize) -> Result<usize, Unreadable> {
    read(bytes)?.walk_in(depth, &mut |_| {})
}

impl<'a> Container<'a> {
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

    /// The elements, or the members with their keys.
    pub fn iter(&self) -> impl Iterator<Item = Result<(&'a [u8], Value<'a>), Unreadable>> {
        let container = *self;
        // Values lie behind the keys, so those are gone through first.
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

    pub fn get(&self, key: &str) -> Result<Option<Value<'a>>, Unreadable> {
        for member in self.iter() {
            let (name, value) = member?;
            if name == key.as_bytes() {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn end_of_keys(&self) -> Result<usize, Unreadable> {
        let mut end = 0;
        for i in 0..self.count {
            end = self.end(i, end)?.1;
        }
        Ok(end)
    }

    /// What the i-th entry says, and where its value ends that begins at `start`.
    fn end(&self, i: usize, start: usize) -> Result<(u32, usize), Unreadable> {
        let entry = word(self.entries, i * 4)?;
        let number = (entry & COUNT) as usize;
        Ok((entry, if entry & ENTRY_HAS_END != 0 { number } else { start + number }))
    }

    /// The value of the i-th entry, which begins where the one before has ended.
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

/// A `numeric`: digits of base 10,000, the first of which counts 10,000 to the power of `weight`.
#[derive(Clone, Copy, Debug)]
pub struct Number<'a> {
    negative: bool,
    weight: i32,
    /// Decimal digits that are printed behind the point.
    scale: usize,
    digits: &'a [u8],
}

impl<'a> Number<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let header = word(bytes, 0)?;
        let len = if cfg!(target_endian = "big") { header & COUNT } else { header >> 2 } as usize;
        // One with a short header is never in a jsonb.
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
            // NaN and the infinities, which JSON does not have.
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

    fn digits(&self) -> impl Iterator<Item = i64> {
        self.digits.chunks_exact(2).map(|d| i64::from(u16::from_ne_bytes([d[0], d[1]])))
    }

    /// If it is an integer, and printed as one.
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

    /// How many digits are printed before the point, and behind it.
    pub fn printed(&self) -> (usize, usize) {
        let first = self.digits().next().unwrap_or(0).max(1);
        let before = if self.weight < 0 { 1 } else { first.ilog10() as usize + 1 + 4 * self.weight as usize };
        (before, self.scale)
    }

    fn text_len(&self) -> usize {
        let (before, behind) = self.printed();
        usize::from(self.negative) + before + if behind > 0 { behind + 1 } else { 0 }
    }
}

impl<'a> Value<'a> {
    /// Calls `number` for each number in it, and says how long it is as JSON text without spaces.
    #[cfg(any(test, feature = "pg_test"))]
    pub fn walk(&self, number: &mut impl FnMut(&Number<'a>)) -> Result<usize, Unreadable> {
        self.walk_in(MAX_DEPTH, number)
    }

    /// Gives each member of an object to `member`, calls `number` for each number in it, and says how long it is as
    /// JSON text without spaces.
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
                // Brackets, and commas.
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

/// As Postgres prints it, with its quotes.
fn string_len(text: &[u8]) -> usize {
    // Without a branch for each byte, as hardly any has to be escaped.
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

/// For tests: the same as serde has it.
#[cfg(any(test, feature = "pg_test"))]
impl Value<'_> {
    #[allow(dead_code)] // of the two kinds of tests only one has a Postgres
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

/// For tests: JSON as Postgres would keep it.
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
            // As Postgres: the end of every 32nd, the length of the others.
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

    /// `-?[0-9]+(.[0-9]+)?`
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

    /// `{"a": [1, -2.50, 123456789012], "bb": {"c": null}}`, as Postgres 15 has it.
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
        /// What is written is read, and its length is that of serde's text, which escapes as Postgres does.
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

        /// Whatever the bytes are, nothing panics.
        #[test]
        fn any_bytes_can_be_read(at in 0usize..200, byte in any::<u8>(), cut in 0usize..200, junk in any::<Vec<u8>>()) {
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
