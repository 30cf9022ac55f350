//! The number above which a run of the server gives numbers that must not repeat over restarts:
//! positions of rings, and ids of members. A run lasts from the creation of shared memory to a
//! shutdown or a crash.
//!
//! A run begins above all numbers that earlier runs have given. A record in a file says how far
//! those runs came. The record is exact after a shutdown. After a crash, which leaves no time to
//! write it, the record is a lower bound, and the next run begins far above it. The wall clock is
//! no such record, because an administrator may have set it back since.

/// More numbers than a run that ends in a crash can have given: a million a second for twelve days.
const MAX_IN_A_RUN: i64 = 1 << 40;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A run began above this number. The run is not over, or has crashed.
    Began(i64),
    /// A run ended, and had given no number above this one.
    Ended(i64),
}

impl Record {
    /// Returns the least number at which the next run may begin. All numbers that were given before
    /// are lower.
    pub fn next(self) -> i64 {
        match self {
            Self::Began(above) => above.saturating_add(MAX_IN_A_RUN),
            Self::Ended(last) => last.saturating_add(1),
        }
    }

    /// Returns the record that a text holds, or `None` for a text that `to_text` does not write.
    pub fn parse(text: &str) -> Option<Self> {
        let (word, number) = text.strip_suffix('\n')?.split_once(' ')?;
        let number = number.parse().ok().filter(|number| *number >= 0)?;
        match word {
            "began" => Some(Self::Began(number)),
            "ended" => Some(Self::Ended(number)),
            _ => None,
        }
    }

    /// Returns the text of the record in the file.
    pub fn to_text(self) -> String {
        match self {
            Self::Began(above) => format!("began {above}\n"),
            Self::Ended(last) => format!("ended {last}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            "",
            "\n",
            "began",
            "began 1",
            "began -1\n",
            "began 1 \n",
            "ended\n",
            "began 99999999999999999999\n",
        ] {
            assert_eq!(Record::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(number in 0i64.., ended in any::<bool>()) {
            let record = if ended { Record::Ended(number) } else { Record::Began(number) };
            prop_assert_eq!(Record::parse(&record.to_text()), Some(record));
            // A part of the text, as a full disk may leave it, is no record or is not written at
            // all.
            let text = record.to_text();
            prop_assert_eq!(Record::parse(&text[..text.len() - 1]), None);
        }

        /// Each run gives some numbers, and ends or crashes. Meanwhile the clock is set at will.
        #[test]
        fn no_number_is_given_twice(
            lives in prop::collection::vec((0i64..1 << 50, 0i64..1 << 39, any::<bool>()), 1..40)
        ) {
            let (mut record, mut last) = (None, -1);
            for (clock, given, crashes) in lives {
                let begin = record.map_or(0, Record::next).max(clock);
                prop_assert!(begin > last);
                last = begin + given;
                record = Some(if crashes { Record::Began(begin) } else { Record::Ended(last) });
            }
        }
    }
}
