//! Where numbers begin that must not be given twice over restarts: positions of rings, and ids of members.
//!
//! A life of the server begins above all that the ones before have given. A record in a file says how far those came:
//! exactly after a shutdown, and at least after a crash, which leaves no time to write it. The wall clock is no such
//! record: somebody may have set it back since.

/// More than a life that ends in a crash can have given: a million a second for twelve days.
const MAX_IN_A_RUN: i64 = 1 << 40;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A life began above this; it runs, or has crashed.
    Began(i64),
    /// A life ended, and had given nothing above this.
    Ended(i64),
}

impl Record {
    /// Where the next life begins at least: nothing that was given before is as high.
    pub fn next(self) -> i64 {
        match self {
            Self::Began(above) => above.saturating_add(MAX_IN_A_RUN),
            Self::Ended(last) => last.saturating_add(1),
        }
    }

    /// `None` for what `to_text` does not write.
    pub fn parse(text: &str) -> Option<Self> {
        let (word, number) = text.strip_suffix('\n')?.split_once(' ')?;
        let number = number.parse().ok().filter(|number| *number >= 0)?;
        match word {
            "began" => Some(Self::Began(number)),
            "ended" => Some(Self::Ended(number)),
            _ => None,
        }
    }

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
            // A part of it, as of a disk that was full, is none or is not written at all.
            let text = record.to_text();
            prop_assert_eq!(Record::parse(&text[..text.len() - 1]), None);
        }

        /// Lives that give some numbers each, end or crash, and a clock that is set at will.
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
