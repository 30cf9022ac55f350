//! Splits a gossip message of foreign nodes into checks, and reads the queue of each check.
//!
//! Since Oban Web 2.10 and in Python a message is `{"checks": [check, ...]}`. Up to Oban 2.16 a
//! message is a single check. A check without a name, a node or a queue is malformed. The other
//! checks of the message are ingested all the same. (The other keys of a check are tested when the
//! state is a `jsonb`: `check::validate_foreign`.)
//!
//! Any role may NOTIFY, and a few kilobytes unpack to many. So a message is ingested in two steps:
//! `parse_message` splits it, and `heard` reads one check. The caller can spread the second step over
//! time.

use super::check::{self, JsonObject};
use super::{leadership, wire};
use serde_json::value::RawValue;

/// The most bytes to which a wire form, of at most 8 kB, may unpack here. A thousand queues fit.
/// The bound is low because any role may NOTIFY.
const MAX_UNPACKED: usize = 512 << 10;

/// How many checks of a message are ingested: far more than a node has queues.
pub const MAX_CHECKS: usize = 1_000;

/// The state of one queue on another node.
#[derive(Debug, PartialEq, Eq)]
pub struct ForeignCheck {
    pub name: String,
    pub node: String,
    pub queue: String,
    /// The check without name, node and queue, as a JSON object.
    pub state: String,
}

/// The content of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ParsedMessage {
    /// The checks as they are written, for `heard`.
    pub checks: Vec<String>,
    /// 1 if the message is malformed, else 0.
    pub malformed: usize,
    /// How many checks beyond `MAX_CHECKS` the message has. These are not read.
    pub too_many: usize,
}

/// Splits a message, in any of the three wire forms, into its checks.
pub fn parse_message(wire: &str) -> ParsedMessage {
    let malformed = ParsedMessage { malformed: 1, ..ParsedMessage::default() };
    let Ok(json) = wire::decode_up_to(wire, MAX_UNPACKED) else { return malformed };
    let Some(message) = JsonObject::of(&json) else { return malformed };
    let checks: Vec<&str> = match message.get("checks") {
        Some(checks) => match serde_json::from_str::<Vec<&RawValue>>(checks) {
            Ok(checks) => checks.into_iter().map(RawValue::get).collect(),
            Err(_) => return malformed,
        },
        None => vec![&json],
    };
    ParsedMessage {
        too_many: checks.len().saturating_sub(MAX_CHECKS),
        checks: checks.into_iter().take(MAX_CHECKS).map(str::to_owned).collect(),
        malformed: 0,
    }
}

/// Reads one check. `None`: the check is malformed.
pub fn parse_check(check: &str) -> Option<ForeignCheck> {
    if check.len() > check::MAX_STATE {
        return None;
    }
    let members = JsonObject::of(check)?;
    let text = |key: &str, most: usize| -> Option<String> {
        let text: String = serde_json::from_str(members.get(key)?).ok()?;
        // JSON allows the character NUL. A text of Postgres does not.
        (!text.is_empty() && text.len() <= most && !text.contains('\0')).then_some(text)
    };
    let (name, node) = (text("name", leadership::MAX_NAME)?, text("node", leadership::MAX_NODE)?);
    let queue = text("queue", check::MAX_QUEUE)?;
    let mut state = String::with_capacity(check.len());
    for (key, value) in members.iter().filter(|(key, _)| !["name", "node", "queue"].contains(key)) {
        state.push(if state.is_empty() { '{' } else { ',' });
        state.push_str(&serde_json::to_string(key).ok()?);
        state.push(':');
        state.push_str(value);
    }
    state.push_str(if state.is_empty() { "{}" } else { "}" });
    Some(ForeignCheck { name, node, queue, state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct All {
        checks: Vec<ForeignCheck>,
        malformed: usize,
    }

    fn all(wire: &str) -> All {
        let ParsedMessage { checks, malformed, .. } = parse_message(wire);
        let heard: Vec<_> = checks.iter().map(|check| parse_check(check)).collect();
        let malformed = malformed + heard.iter().filter(|h| h.is_none()).count();
        All { checks: heard.into_iter().flatten().collect(), malformed }
    }

    #[test]
    fn one_of_each_kind_and_what_is_none() {
        let check =
            r#"{"name": "Oban", "queue": "default", "node": "web.1", "limit": 10, "x": {"y": [1.50]}}"#;
        let heard = ForeignCheck {
            name: "Oban".into(),
            node: "web.1".into(),
            queue: "default".into(),
            state: r#"{"limit":10,"x":{"y": [1.50]}}"#.into(),
        };
        let legacy = all(check);
        assert_eq!((&legacy.checks[..], legacy.malformed), (&[heard][..], 0));
        let several = all(&format!(r#"{{"checks": [{check}, 5, {{}}, {check}]}}"#));
        assert_eq!((several.checks.len(), several.malformed), (2, 2));
        assert_eq!(all(r#"{"checks": []}"#), All::default());
        for bad in [
            "",
            "[]",
            "junk",
            "H4sIjunk",
            "Z:junk",
            r#"{"ping": 1}"#,
            r#"{"checks": {}}"#,
            r#"{"checks": [{"name": "Oban", "node": "a"}]}"#,
            r#"{"checks": [{"name": "Oban", "node": "a", "queue": ""}]}"#,
            r#"{"checks": [{"name": null, "node": "a", "queue": "q"}]}"#,
        ] {
            assert_eq!(all(bad), All { malformed: 1, ..All::default() }, "{bad}");
        }
        let empty = all(r#"{"name": "Oban", "node": "a", "queue": "q"}"#);
        assert_eq!(empty.checks[0].state, "{}");
        let long =
            format!(r#"{{"name": "Oban", "node": "a", "queue": "{}"}}"#, "q".repeat(check::MAX_QUEUE + 1));
        assert_eq!(all(&long).malformed, 1);
    }

    /// Each sample is what some release of Oban sends, and is ingested in each form in which any
    /// release sends it.
    #[test]
    fn every_sample_of_real_nodes_is_taken_in() {
        let samples = include_str!("../../tests/fixtures/gossip/samples.json");
        let samples: Vec<serde_json::Value> = serde_json::from_str(samples).expect("JSON");
        assert_eq!(samples.len(), 9);
        for sample in samples {
            let plain = sample["message"].to_string();
            // `encode` packs only a long text, so spaces that do not belong to the JSON make it
            // long.
            let packed = wire::encode(format!("{plain}{}", " ".repeat(8_000))).expect("it packs well");
            for form in [&plain, &packed, &format!("Z:{packed}")] {
                let parsed = all(form);
                let queues: Vec<&str> = parsed.checks.iter().map(|c| &*c.queue).collect();
                let wanted: Vec<&str> =
                    sample["queues"].as_array().unwrap().iter().flat_map(|q| q.as_str()).collect();
                assert_eq!((queues, parsed.malformed), (wanted, 0), "{} as {form}", sample["from"]);
            }
        }
    }

    #[test]
    fn a_name_that_is_no_text_of_postgres_is_malformed() {
        for bad in [r#""\u0000""#, r#""a\u0000b""#, r#""\ud800""#, r#""""#, "5"] {
            for key in ["name", "node", "queue"] {
                let check = r#"{"name": "n", "node": "o", "queue": "q"}"#;
                let right = format!(
                    "\"{key}\": \"{}\"",
                    match key {
                        "name" => "n",
                        "node" => "o",
                        _ => "q",
                    }
                );
                let check = check.replace(&right, &format!("\"{key}\": {bad}"));
                assert_eq!((check.contains(bad), all(&check).malformed), (true, 1), "{check}");
            }
        }
    }

    #[test]
    fn a_message_of_more_checks_than_anybody_has_is_not_taken_whole() {
        let check = r#"{"name":"n","node":"o","queue":"q"}"#;
        let message = format!(r#"{{"checks":[{}]}}"#, vec![check; MAX_CHECKS + 5].join(","));
        let parsed = parse_message(&wire::encode(message).expect("it packs well"));
        assert_eq!((parsed.checks.len(), parsed.malformed, parsed.too_many), (MAX_CHECKS, 0, 5));
    }

    #[test]
    fn a_bomb_is_malformed() {
        let json = format!(r#"{{"checks": [], "pad": "{}"}}"#, " ".repeat(2 << 20));
        let wire = wire::encode(json).expect("it packs well");
        assert!(wire.len() < 8_000);
        assert_eq!(all(&wire).malformed, 1);
    }

    proptest! {
        /// No input makes the parser panic. A state that is ingested is an object with valid keys.
        #[test]
        fn anything_may_come(
            text in any::<String>(), key in "[a-z_]{1,8}", value in "[0-9\\[\\]{},\":a-z]{0,12}"
        ) {
            all(&text);
            let json = format!(r#"{{"checks":[{{"name":"n","node":"o","queue":"q","{key}":{value}}}]}}"#);
            for heard in all(&json).checks {
                prop_assert!(JsonObject::of(&heard.state).is_some(), "an object");
            }
        }
    }
}
