//! A string of bounded length as plain bytes, which shared memory can hold.

/// At most `N` bytes of UTF-8. Any bit pattern is a valid value. `as_str` shows bytes that are no
/// UTF-8 as an empty string instead of trusting them, because other processes write this memory. A
/// zeroed value is the empty string. The lock of the struct that holds the value guards it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    /// The length in bytes. A length above `N` counts as `N`.
    len: u16,
    /// The bytes; those beyond `len` count for nothing.
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    /// Returns `s` as plain bytes, or `None` if `s` is longer than `N` bytes.
    pub fn new(s: &str) -> Option<Self> {
        (s.len() <= N).then(|| Self::truncated(s))
    }

    /// Returns as much of `s` as fits, cut between characters.
    pub fn truncated(s: &str) -> Self {
        let mut end = s.len().min(N).min(u16::MAX as usize);
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        bytes[..end].copy_from_slice(&s.as_bytes()[..end]);
        Self { len: end as u16, bytes }
    }

    /// Returns the string, or an empty one if the bytes are no UTF-8.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..(self.len as usize).min(N)]
    }
}

/// Returns as much of a text as an error message shows: the first 100 characters.
pub fn excerpt(text: &str) -> String {
    const MAX_EXCERPT: usize = 100;
    match text.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> std::fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit_and_cuts_between_characters() {
        assert_eq!(Text::<4>::new("abcd").map(|t| t.as_str().to_owned()), Some("abcd".into()));
        assert!(Text::<4>::new("abcde").is_none());
        assert_eq!(Text::<4>::truncated("aéé").as_str(), "aé");
        assert_eq!(Text::<2>::truncated("\u{1F600}").as_str(), "");
    }

    #[test]
    fn an_excerpt_is_short_and_whole_characters() {
        assert_eq!(excerpt(&"é".repeat(100)), "é".repeat(100));
        assert_eq!(excerpt(&"é".repeat(101)), format!("{}...", "é".repeat(100)));
    }

    #[test]
    fn bytes_that_are_no_text_show_as_nothing() {
        let torn = Text::<4> { len: 9, bytes: [0xff; 4] };
        assert_eq!(torn.as_str(), "");
    }
}
