//! What `oban_watch` writes into the arguments of its triggers, and what it reads there.

/// The events that can be watched, by the names that users give them, in the order of the view
/// oban_watches.
pub const EVENTS: [&str; 3] = ["insert", "update", "delete"];

/// What a message of a watched table has as its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Empty,
    /// `{"queue": ...}`, with the value of a column.
    Queue,
    /// The value of a column, as text.
    Payload,
}

impl Content {
    const ALL: [Self; 3] = [Self::Empty, Self::Queue, Self::Payload];

    /// Returns the word that stands for it in a trigger's arguments.
    pub fn word(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Queue => "queue",
            Self::Payload => "payload",
        }
    }

    /// Returns the content that a word stands for. `None`: none has this word.
    pub fn of(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|content| content.word().as_bytes() == word)
    }
}

/// One watch of a table, as users give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    pub channel: String,
    pub content: Content,
    /// The column whose value is sent; empty for `Content::Empty`.
    pub column: String,
    /// The condition under which a row is announced; empty if each is.
    pub condition: String,
}

impl Watch {
    /// Returns the arguments of the watch's triggers.
    pub fn arguments(&self) -> [&str; 4] {
        [&self.channel, self.content.word(), &self.column, &self.condition]
    }

    /// Returns the watch that a trigger's arguments describe. `None`: `oban_watch` did not write
    /// them.
    pub fn of(arguments: &[String]) -> Option<Self> {
        let [channel, content, column, condition] = arguments else { return None };
        Some(Self {
            channel: channel.clone(),
            content: Content::of(content.as_bytes())?,
            column: column.clone(),
            condition: condition.clone(),
        })
    }
}

/// Returns the arguments of a trigger, as `pg_trigger.tgargs` has them: a zero behind each.
pub fn arguments_of(tgargs: &[u8]) -> Vec<&[u8]> {
    tgargs.strip_suffix(&[0]).map_or_else(Vec::new, |all| all.split(|byte| *byte == 0).collect())
}

/// Returns the name of a watch's trigger. Watches of a table are numbered.
pub fn trigger_name(number: u32, event: usize) -> String {
    format!("obanrs_watch_{number}_{}", EVENTS[event])
}

/// Returns the number in the name of a watch's trigger. `None`: it is the name of another trigger.
pub fn number_of(name: &str) -> Option<u32> {
    let (number, event) = name.strip_prefix("obanrs_watch_")?.split_once('_')?;
    if EVENTS.contains(&event) { number.parse().ok() } else { None }
}

/// Returns the least number that no trigger of these names has.
pub fn free_number<'n>(names: impl Iterator<Item = &'n str>) -> u32 {
    let taken: std::collections::BTreeSet<u32> = names.filter_map(number_of).collect();
    (1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_numbers_and_the_least_free_one_is_taken() {
        for number in [1, 2, 30, u32::MAX] {
            for event in 0..EVENTS.len() {
                assert_eq!(number_of(&trigger_name(number, event)), Some(number));
            }
        }
        for other in
            ["", "obanrs_watch_", "obanrs_watch_1", "obanrs_watch_x_insert", "obanrs_watch_1_truncate", "own"]
        {
            assert_eq!(number_of(other), None, "{other}");
        }
        let names = ["obanrs_watch_1_insert", "obanrs_watch_1_update", "obanrs_watch_3_delete", "own"];
        assert_eq!(free_number(names.into_iter()), 2);
        assert_eq!(free_number(std::iter::empty()), 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            channel in "[^\0]{1,20}",
            column in "[^\0]{0,20}",
            condition in "[^\0]{0,40}",
            content in 0usize..3,
        ) {
            let watch = Watch { channel, content: Content::ALL[content], column, condition };
            let stored: Vec<u8> =
                watch.arguments().iter().flat_map(|a| [a.as_bytes(), &[0]].concat()).collect();
            let read: Vec<String> =
                arguments_of(&stored).iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            prop_assert_eq!(Watch::of(&read), Some(watch));
        }
    }
}
