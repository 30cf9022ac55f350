//! How many bytes of notifications a process keeps. NOTIFY needs no right, so any role may send any
//! number.

use std::collections::HashMap;

/// The room that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes for all channels together.
    Together(usize),
    /// Each channel has its own bytes, so a flood on one channel takes no room of another one.
    Apart {
        /// The bytes of a channel that is not in `left`.
        each: usize,
        left: HashMap<Vec<u8>, usize>,
    },
}

impl Default for Room {
    fn default() -> Self {
        Self::Together(0)
    }
}

impl Room {
    /// Takes room for a notification of so many bytes. False: there is no room for it.
    pub fn take(&mut self, channel: &[u8], bytes: usize) -> bool {
        let left = match self {
            Self::Together(left) => left,
            Self::Apart { each, left } => left.entry(channel.to_vec()).or_insert(*each),
        };
        let enough = *left >= bytes;
        if enough {
            *left -= bytes;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn channels_share_the_room_or_have_their_own() {
        let mut together = Room::Together(10);
        assert!(together.take(b"a", 6) && !together.take(b"b", 5) && together.take(b"b", 4));
        let mut apart = Room::Apart { each: 10, left: HashMap::from([(b"b".to_vec(), 3)]) };
        assert!(apart.take(b"a", 10) && !apart.take(b"a", 1));
        assert!(!apart.take(b"b", 4) && apart.take(b"b", 3) && apart.take(b"c", 10));
        assert!(!Room::default().take(b"a", 1));
    }

    proptest! {
        /// A channel gets no more than its own bytes, and gets them whatever comes on others.
        #[test]
        fn a_channel_has_its_bytes_whatever_comes_on_others(
            all in proptest::collection::vec((0_u8..3, 0_usize..9), 0..40), each in 0_usize..30
        ) {
            let mut room = Room::Apart { each, left: HashMap::new() };
            let taken: Vec<_> = all.iter().map(|(channel, bytes)| room.take(&[*channel], *bytes)).collect();
            for channel in 0..3 {
                let mut alone = Room::Together(each);
                for ((_, bytes), taken) in all.iter().zip(&taken).filter(|((own, _), _)| *own == channel) {
                    prop_assert_eq!(alone.take(&[channel], *bytes), *taken);
                }
            }
        }
    }
}
