//! Channel names on the wire: `<prefix>.oban_<channel>`, as Oban's notifiers build them.

use super::text::excerpt;

/// The longest channel name in bytes: NAMEDATALEN - 1. Postgres refuses a longer channel in NOTIFY
/// and cuts it in LISTEN.
pub const MAX_CHANNEL: usize = 63;

/// The channels that every Oban node may listen to. A prefix for which one of these names is too
/// long is refused at install.
pub const STANDARD: [&str; 4] = ["gossip", "insert", "leader", "signal"];

/// Why a name is refused. The error holds no more of the name than a message shows, because the
/// name may be of any length.
#[derive(Debug, PartialEq, Eq)]
pub enum ChannelError {
    /// The prefix is `""`, and the channel has no name.
    Empty,
    /// The channel is not of the form [a-z_][a-z0-9_]*.
    Name(String),
    /// The prefix has a dot. Oban splits a full name at its first dot, so a prefix can't have one.
    DottedPrefix(String),
    /// The full name is longer than `MAX_CHANNEL`: the name, and its length in bytes.
    TooLong(String, usize),
}

/// Returns the error of a full name that is too long.
pub fn too_long(full: &str) -> ChannelError {
    ChannelError::TooLong(excerpt(full), full.len())
}

/// Returns the full name of a prefix's channel. The prefix `""` means that `channel` is the full
/// name. Err: why the name is refused.
pub fn full_name(prefix: &str, channel: &str) -> Result<String, ChannelError> {
    test(prefix, channel).map(|()| joined(prefix, channel))
}

/// Tests a name, as `full_name` does. Err: why the name is refused.
pub fn test(prefix: &str, channel: &str) -> Result<(), ChannelError> {
    let length = if prefix.is_empty() {
        if channel.is_empty() {
            return Err(ChannelError::Empty);
        }
        channel.len()
    } else {
        if prefix.contains('.') {
            return Err(ChannelError::DottedPrefix(excerpt(prefix)));
        }
        if !is_name(channel) {
            return Err(ChannelError::Name(excerpt(channel)));
        }
        prefix.len() + ".oban_".len() + channel.len()
    };
    if length > MAX_CHANNEL {
        let shown = joined(&excerpt(prefix), &excerpt(channel));
        return Err(ChannelError::TooLong(excerpt(&shown), length));
    }
    Ok(())
}

/// Returns the full name without testing it.
fn joined(prefix: &str, channel: &str) -> String {
    if prefix.is_empty() { channel.to_owned() } else { format!("{prefix}.oban_{channel}") }
}

/// Returns whether a channel has the form [a-z_][a-z0-9_]*.
fn is_name(channel: &str) -> bool {
    let mut bytes = channel.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_as_oban_builds_them() {
        assert_eq!(full_name("public", "insert").as_deref(), Ok("public.oban_insert"));
        assert_eq!(full_name("Größe", "signal").as_deref(), Ok("Größe.oban_signal"));
        assert_eq!(full_name("", "orders").as_deref(), Ok("orders"));
        assert_eq!(full_name("", ""), Err(ChannelError::Empty));
        assert_eq!(full_name("a.b", "insert"), Err(ChannelError::DottedPrefix("a.b".into())));
        for bad in ["", "Insert", "1st", "a-b", "a b", "é"] {
            assert_eq!(full_name("public", bad), Err(ChannelError::Name(bad.into())));
        }
    }

    #[test]
    fn the_limit_is_63_bytes() {
        let prefix = "p".repeat(63 - ".oban_insert".len());
        assert_eq!(full_name(&prefix, "insert").map(|n| n.len()), Ok(63));
        assert!(matches!(full_name(&format!("{prefix}p"), "insert"), Err(ChannelError::TooLong(_, 64))));
    }

    #[test]
    fn an_error_shows_little_of_a_long_name() {
        let long = "x".repeat(1_000_000);
        for (prefix, channel) in [(&*long, "insert"), ("public", &*long), ("", &*long), (&long, &long)] {
            let Err(ChannelError::TooLong(shown, bytes)) = full_name(prefix, channel) else {
                panic!("{prefix}")
            };
            assert!(shown.len() < 500 && bytes >= 1_000_000, "{shown}");
        }
        for (prefix, channel) in [(format!("{long}."), "insert"), ("public".into(), &*format!("{long}-"))] {
            match full_name(&prefix, channel) {
                Err(ChannelError::Name(shown) | ChannelError::DottedPrefix(shown)) => {
                    assert!(shown.len() < 500)
                }
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        /// Oban's reverse mapping (split at the first dot, drop `oban_`) gives back prefix and
        /// channel.
        #[test]
        fn a_full_name_splits_back(prefix in "[^.]{1,40}", channel in "[a-z_][a-z0-9_]{0,10}") {
            if let Ok(full) = full_name(&prefix, &channel) {
                let (p, c) = full.split_once('.').unwrap();
                prop_assert_eq!((p, c.strip_prefix("oban_").unwrap()), (&*prefix, &*channel));
            }
        }
    }
}
