//! What Oban's own nodes gossip, taken apart: whose checks a message holds.
//!
//! Since Oban Web 2.10 and in Python a message is `{"checks": [check, ...]}`; up to Oban 2.16 it is a check
//! itself. A check that has no name, node or queue, or a key that would trip one of our readers up, is
//! malformed; the others of its message are taken all the same.

use super::check::{self, Members};
use super::text::Text;
use super::{peer, wire};
use serde_json::value::RawValue;

/// What a wire form, of at most 8 kB, may unpack to here. A thousand queues fit; anybody may NOTIFY.
const MAX_UNPACKED: usize = 1 << 20;

/// The state of one queue on another node.
#[derive(Debug, PartialEq, Eq)]
pub struct Heard {
    pub name: String,
    pub node: String,
    pub queue: String,
    /// A JSON object: the check without these three.
    pub state: String,
    /// When it started, if the check says so.
    pub started_at: Option<i64>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Intake {
    pub checks: Vec<Heard>,
    pub malformed: usize,
}

/// The checks of a message, in any of the three wire forms.
pub fn take_apart(wire: &str) -> Intake {
    let malformed = Intake { checks: Vec::new(), malformed: 1 };
    let Ok(json) = wire::decode_up_to(wire, MAX_UNPACKED) else { return malformed };
    let Some(message) = Members::of(&json) else { return malformed };
    let checks: Vec<&str> = match message.get("checks") {
        Some(checks) => match serde_json::from_str::<Vec<&RawValue>>(checks) {
            Ok(checks) => checks.into_iter().map(RawValue::get).collect(),
            Err(_) => return malformed,
        },
        None => vec![&json],
    };
    let mut intake = Intake::default();
    for check in checks {
        match heard(check) {
            Some(heard) => intake.checks.push(heard),
            None => intake.malformed += 1,
        }
    }
    intake
}

fn heard(check: &str) -> Option<Heard> {
    let members = Members::of(check)?;
    let text = |key: &str| -> Option<String> {
        let text: String = serde_json::from_str(members.get(key)?).ok()?;
        (!text.is_empty()).then_some(text)
    };
    let (name, node, queue) = (text("name")?, text("node")?, text("queue")?);
    let fits = Text::<{ peer::MAX_NAME }>::new(&name).is_some()
        && Text::<{ peer::MAX_NODE }>::new(&node).is_some()
        && queue.len() <= check::MAX_QUEUE
        && check.len() <= check::MAX_STATE
        && !has_huge_number(check);
    if !fits || check::validate_foreign(&members).is_err() {
        return None;
    }
    let mut state = String::with_capacity(check.len());
    for (key, value) in members.iter().filter(|(key, _)| !["name", "node", "queue"].contains(key)) {
        state.push(if state.is_empty() { '{' } else { ',' });
        state.push_str(&serde_json::to_string(key).ok()?);
        state.push(':');
        state.push_str(value);
    }
    state.push_str(if state.is_empty() { "{}" } else { "}" });
    Some(Heard { name, node, queue, state, started_at: check::started_at(&members) })
}

/// Whether JSON has a number like 1e100000, which Postgres keeps in a few bytes and prints in as many digits:
/// whoever reads it pays.
fn has_huge_number(json: &str) -> bool {
    let (mut quoted, mut escaped, mut digit) = (false, false, false);
    json.char_indices().any(|(at, c)| {
        let exponent = !quoted && digit && matches!(c, 'e' | 'E');
        digit = c.is_ascii_digit();
        if escaped {
            escaped = false;
        } else {
            escaped = quoted && c == '\\';
            quoted ^= c == '"';
        }
        let digits = || json[at + 1..].trim_start_matches(['+', '-']).trim_start_matches('0');
        exponent && digits().bytes().take_while(u8::is_ascii_digit).count() > 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_of_each_kind_and_what_is_none() {
        let check =
            r#"{"name": "Oban", "queue": "default", "node": "web.1", "limit": 10, "x": {"y": [1.50]}}"#;
        let heard = Heard {
            name: "Oban".into(),
            node: "web.1".into(),
            queue: "default".into(),
            state: r#"{"limit":10,"x":{"y": [1.50]}}"#.into(),
            started_at: None,
        };
        let legacy = take_apart(check);
        assert_eq!((&legacy.checks[..], legacy.malformed), (&[heard][..], 0));
        let several = take_apart(&format!(r#"{{"checks": [{check}, 5, {{}}, {check}]}}"#));
        assert_eq!((several.checks.len(), several.malformed), (2, 2));
        assert_eq!(take_apart(r#"{"checks": []}"#), Intake::default());
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
            r#"{"checks": [{"name": "Oban", "node": "a", "queue": "q", "running": 3}]}"#,
        ] {
            assert_eq!(take_apart(bad), Intake { checks: vec![], malformed: 1 }, "{bad}");
        }
        let empty = take_apart(r#"{"name": "Oban", "node": "a", "queue": "q"}"#);
        assert_eq!(empty.checks[0].state, "{}");
        let long =
            format!(r#"{{"name": "Oban", "node": "a", "queue": "{}"}}"#, "q".repeat(check::MAX_QUEUE + 1));
        assert_eq!(take_apart(&long).malformed, 1);
    }

    /// What Oban's releases send, in each form in which any of them sends it.
    #[test]
    fn every_sample_of_real_nodes_is_taken_in() {
        let samples = include_str!("../../tests/fixtures/gossip/samples.json");
        let samples: Vec<serde_json::Value> = serde_json::from_str(samples).expect("JSON");
        assert_eq!(samples.len(), 9);
        for sample in samples {
            let plain = sample["message"].to_string();
            // `encode` packs only what is long; spaces behind a JSON text are none of it.
            let packed = wire::encode(&format!("{plain}{}", " ".repeat(8_000))).expect("it packs well");
            for form in [&plain, &packed, &format!("Z:{packed}")] {
                let intake = take_apart(form);
                let queues: Vec<&str> = intake.checks.iter().map(|c| &*c.queue).collect();
                let wanted: Vec<&str> =
                    sample["queues"].as_array().unwrap().iter().flat_map(|q| q.as_str()).collect();
                assert_eq!((queues, intake.malformed), (wanted, 0), "{} as {form}", sample["from"]);
            }
        }
    }

    #[test]
    fn numbers_of_a_thousand_digits_are_malformed() {
        let check = |x: &str| {
            take_apart(&format!(r#"{{"name": "n", "node": "o", "queue": "q", "x": {x}}}"#)).malformed == 0
        };
        for fine in ["1e99", "1.5E-0099", r#""1e1000""#, r#""\"1e1000""#, "true", "[1e1, {\"e1000\": 1}]"] {
            assert!(check(fine), "{fine}");
        }
        for huge in ["1e100", "[1, 1E+131000]", "{\"x\": 0.1e-16000}", "1e00131000"] {
            assert!(!check(huge), "{huge}");
        }
    }

    #[test]
    fn a_bomb_is_malformed() {
        let json = format!(r#"{{"checks": [], "pad": "{}"}}"#, " ".repeat(2 << 20));
        let wire = wire::encode(&json).expect("it packs well");
        assert!(wire.len() < 8_000);
        assert_eq!(take_apart(&wire).malformed, 1);
    }

    proptest! {
        /// Whatever comes, nothing panics, and what is taken in is an object with fine keys.
        #[test]
        fn anything_may_come(text in any::<String>(), key in "[a-z_]{1,8}", value in "[0-9\\[\\]{},\":a-z]{0,12}") {
            take_apart(&text);
            let json = format!(r#"{{"checks":[{{"name":"n","node":"o","queue":"q","{key}":{value}}}]}}"#);
            for heard in take_apart(&json).checks {
                let members = Members::of(&heard.state).expect("an object");
                prop_assert_eq!(check::validate_foreign(&members), Ok(()));
            }
        }
    }
}
