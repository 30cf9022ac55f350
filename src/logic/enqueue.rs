//! What Oban does to a job before it inserts the job: the form of tags, and the states in which a job
//! counts as the same job as another.

/// The states of a job, in the order of Oban's type.
pub const STATES: [&str; 8] =
    ["available", "scheduled", "suspended", "executing", "retryable", "completed", "discarded", "cancelled"];

/// The states in which a job keeps an equal one out, unless the call names others. They are those of
/// Oban's group "successful".
pub const UNIQUE_STATES: [&str; 6] =
    ["available", "scheduled", "suspended", "executing", "retryable", "completed"];

/// Returns tags as Oban writes them: in lower case, without space around them, each once and none empty.
pub fn tags(given: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    for tag in given {
        let tag = tag.trim().to_lowercase();
        if !tag.is_empty() && !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// Returns the states that a call names, each once and in the order of `STATES`. `Err`: the first text
/// that is no state.
pub fn states<'a>(named: &'a [&'a str]) -> Result<Vec<&'static str>, &'a str> {
    match named.iter().find(|name| !STATES.contains(name)) {
        Some(unknown) => Err(unknown),
        None => Ok(STATES.into_iter().filter(|state| named.contains(state)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection;
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use super::{STATES, UNIQUE_STATES, states, tags};

    #[test]
    fn tags_are_written_as_oban_writes_them() {
        let given = [" Urgent", "urgent ", "", "\u{a0}", "ÄÖ", "b c"].map(String::from);
        assert_eq!(tags(given), ["urgent", "äö", "b c"]);
    }

    #[test]
    fn states_are_oban_s() {
        assert_eq!(states(&["completed", "available", "completed"]), Ok(vec!["available", "completed"]));
        assert_eq!(states(&["available", "done", "x"]), Err("done"));
        assert_eq!(states(&UNIQUE_STATES), Ok(UNIQUE_STATES.to_vec()));
    }

    proptest! {
        #[test]
        fn written_tags_stay_as_they_are(given in collection::vec("[ a-cA-C\u{e9}\u{c9}]{0,4}", 0..8)) {
            let once = tags(given);
            prop_assert!(once.iter().all(|tag| !tag.is_empty() && tag.trim() == tag));
            prop_assert_eq!(tags(once.clone()), once);
        }

        #[test]
        fn the_order_of_states_does_not_count(mut named in subsequence(STATES.to_vec(), 0..8)) {
            let forwards = states(&named).unwrap();
            named.reverse();
            prop_assert_eq!(states(&named).unwrap(), forwards);
        }
    }
}
