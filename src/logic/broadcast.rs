//! The messages that tell Oban's nodes and Oban Web about the local queues. A message is
//! `{"checks": [check, ...]}`, as oban_met's examiner sends it. Each message is a complete object
//! that NOTIFY can carry.
//!
//! Readers crash on a key that is missing: they add up limits, take the length of `running` and
//! parse `started_at`. So each check has all of these keys, whatever the state has.

use super::check::{Id, JsonObject, ids};
use super::wire::{self, MAX_PAYLOAD};

/// The state of one queue on one node. Times are ISO 8601 with an offset.
#[derive(Clone, Debug)]
pub struct Queue<'a> {
    pub name: &'a str,
    pub node: &'a str,
    pub queue: &'a str,
    /// The state as JSON without spaces between its tokens.
    pub state: &'a str,
    pub started_at: &'a str,
    pub updated_at: &'a str,
}

/// What one broadcast sends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Broadcast {
    /// The wire forms, in the order in which they are to be sent.
    pub messages: Vec<String>,
    /// The number of checks in `messages`.
    pub checks: usize,
    /// The number of those checks that lost some of their state. A check is shortened only if it
    /// does not fit into a message alone, compressed.
    pub shortened: usize,
}

/// The beginning of an uncompressed message. No other sender writes the space after the brace, and
/// every reader skips it. By this space a relay recognizes a broadcast of obanrs that comes back to
/// it, whichever route the broadcast took.
const BEFORE: &str = r#"{ "checks":["#;
/// The end of an uncompressed message.
const AFTER: &str = "]}";

/// How many bytes a shortened check keeps of the keys that readers do without. The limits of Oban
/// Pro fit.
const MAX_OTHERS: usize = 1_024;

/// The longest check that fits into a message, in bytes on the wire.
const MAX_CHECK: usize = MAX_PAYLOAD - BEFORE.len() - AFTER.len();

/// The most bytes of checks that are compressed for one broadcast: about ten milliseconds of work.
/// Long checks beyond this budget are shortened instead.
const MAX_COMPRESSED: usize = 512 << 10;

/// How often a check is compressed, each time with fewer jobs, until its compressed form fits.
const TRIES: usize = 3;

/// Returns whether a message is a broadcast of obanrs.
pub fn is_own_broadcast(wire: &[u8]) -> bool {
    wire.starts_with(BEFORE.as_bytes()) || wire.starts_with(wire::MARKED.as_bytes())
}

/// Returns the messages for these queues, in the order of instance name, node and queue. A queue
/// whose state can't be read is left out. `wire_len` returns how many bytes a text has on the wire.
pub fn messages(queues: &[Queue<'_>], wire_len: impl Fn(&str) -> usize) -> Broadcast {
    let mut queues: Vec<_> = queues.iter().collect();
    queues.sort_by_key(|q| (q.name, q.node, q.queue));
    let mut broadcast = Broadcast::default();
    let (mut message, mut taken, mut budget) = (String::new(), 0, MAX_COMPRESSED);
    for queue in queues {
        let Some(Made { text, whole, message_of_its_own }) = check(queue, &wire_len, &mut budget) else {
            continue;
        };
        let len = wire_len(&text);
        if taken > 0 && (message_of_its_own || taken + 1 + len > MAX_CHECK) {
            broadcast.messages.push(enclosed(&message));
            (message, taken) = (String::new(), 0);
        }
        broadcast.checks += 1;
        broadcast.shortened += usize::from(!whole);
        if message_of_its_own {
            broadcast.messages.push(text);
            continue;
        }
        if taken > 0 {
            message.push(',');
            taken += 1;
        }
        message.push_str(&text);
        taken += len;
    }
    if taken > 0 {
        broadcast.messages.push(enclosed(&message));
    }
    broadcast
}

/// Returns the message with these checks.
fn enclosed(checks: &str) -> String {
    format!("{BEFORE}{checks}{AFTER}")
}

/// A check that fits into a message.
struct Made {
    /// The check as JSON, or a whole message.
    text: String,
    /// Whether the check has all that the state has.
    whole: bool,
    /// Whether `text` is a whole message, compressed.
    message_of_its_own: bool,
}

/// Returns the check of a queue, unchanged if it fits into a message. A longer check is compressed:
/// whole if that fits, else with the newest running jobs. If compressing does not help, or `budget`
/// is used up, the check has as many of the newest jobs as fit uncompressed. The check then loses
/// the keys that readers do without, if those are longer than `MAX_OTHERS`. (Names are too short to
/// fill a message.) `None`: the state can't be read.
fn check(queue: &Queue<'_>, wire_len: impl Fn(&str) -> usize, budget: &mut usize) -> Option<Made> {
    let state = JsonObject::of(queue.state)?;
    let running = ids(state.get("running").unwrap_or("[]"))?;
    let all: Vec<&str> = running.iter().map(|(_, id)| *id).collect();
    let whole = Check { queue, state: &state, only_needed: false };
    let mut text = whole.with(&all);
    if wire_len(&text) <= MAX_CHECK {
        return Some(Made { text, whole: true, message_of_its_own: false });
    }
    let newest = newest(&running);
    let mut kept = running.len();
    for _ in 0..TRIES {
        let Some(left) = budget.checked_sub(text.len()) else { break };
        *budget = left;
        let len = match wire::encode_marked(&enclosed(&text)) {
            Ok(text) => {
                return Some(Made { text, whole: kept == running.len(), message_of_its_own: true });
            }
            Err(len) => len,
        };
        // The next try keeps as many jobs as would fit if all jobs were equally long, less a tenth.
        kept = (kept as u128 * MAX_PAYLOAD as u128 * 9 / 10 / len as u128) as usize;
        text = whole.with(&in_order(&running, &newest[..kept]));
    }
    let bare = Check { only_needed: true, ..whole };
    let [with_others, without] = [whole, bare].map(|check| wire_len(&check.with(&[])));
    let (check, len) =
        if with_others <= without + MAX_OTHERS { (whole, with_others) } else { (bare, without) };
    let fitting = fitting(&running, &newest, MAX_CHECK.checked_sub(len)?, wire_len);
    let text = check.with(&in_order(&running, &newest[..fitting]));
    Some(Made { text, whole: false, message_of_its_own: false })
}

/// Returns the indexes of the ids, the newest first.
fn newest(ids: &[(Id<'_>, &str)]) -> Vec<usize> {
    let mut newest: Vec<usize> = (0..ids.len()).collect();
    newest.sort_by(|a, b| ids[*b].0.cmp(&ids[*a].0));
    newest
}

/// Returns how many of the newest ids fit into `room` bytes with commas between them.
fn fitting(ids: &[(Id<'_>, &str)], newest: &[usize], room: usize, wire_len: impl Fn(&str) -> usize) -> usize {
    let mut left = room + 1;
    let fits = newest.iter().take_while(|i| {
        let needs = wire_len(ids[**i].1) + 1;
        let fits = needs <= left;
        left = left.saturating_sub(needs);
        fits
    });
    fits.count()
}

/// Returns the ids with the indexes `some`, in the order in which they stand in `ids`.
fn in_order<'a>(ids: &[(Id<'_>, &'a str)], some: &[usize]) -> Vec<&'a str> {
    let mut some = some.to_vec();
    some.sort_unstable();
    some.into_iter().map(|i| ids[i].1).collect()
}

/// A check that can be written with all running jobs or with some of them.
#[derive(Clone, Copy)]
struct Check<'a> {
    queue: &'a Queue<'a>,
    state: &'a JsonObject<'a>,
    /// Whether the check has only the keys that readers need.
    only_needed: bool,
}

/// The keys that `Check::with` writes one by one, in this order. The other keys of a state follow.
const WRITTEN: [&str; 11] = [
    "uuid",
    "name",
    "node",
    "queue",
    "limit",
    "local_limit",
    "paused",
    "running",
    "started_at",
    "updated_at",
    "shutdown_started_at",
];

impl Check<'_> {
    /// Returns the check as JSON text with these running jobs.
    fn with(&self, running: &[&str]) -> String {
        let mut json = Json(String::with_capacity(512));
        let state = |key: &str| self.state.get(key);
        let given = |json: &mut Json, key: &str| {
            if let Some(value) = state(key) {
                json.member(key, value);
            }
        };
        if !self.only_needed {
            given(&mut json, "uuid");
        }
        json.text("name", self.queue.name);
        json.text("node", self.queue.node);
        json.text("queue", self.queue.queue);
        given(&mut json, "limit");
        given(&mut json, "local_limit");
        if state("limit").or(state("local_limit")).is_none() {
            json.member("local_limit", "0");
        }
        json.member("paused", state("paused").unwrap_or("false"));
        json.member("running", &format!("[{}]", running.join(",")));
        match state("started_at") {
            Some(time) => json.member("started_at", time),
            None => json.text("started_at", self.queue.started_at),
        }
        json.text("updated_at", self.queue.updated_at);
        json.member("shutdown_started_at", state("shutdown_started_at").unwrap_or("null"));
        if !self.only_needed {
            let others = self.state.iter().filter(|(key, _)| !WRITTEN.contains(key));
            others.for_each(|(key, value)| json.member(key, value));
        }
        json.0.push('}');
        json.0
    }
}

/// A JSON object that is being written. The last brace is missing until the end.
struct Json(String);

impl Json {
    /// Appends a member whose value is JSON text.
    fn member(&mut self, key: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push_str(&quoted(key));
        self.0.push(':');
        self.0.push_str(value);
    }

    /// Appends a member whose value is a string.
    fn text(&mut self, key: &str, value: &str) {
        self.member(key, &quoted(value));
    }
}

/// Returns a text as a JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::{check, ingest};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn queue<'a>(queue: &'a str, state: &'a str) -> Queue<'a> {
        Queue {
            name: "Oban",
            node: "web.1",
            queue,
            state,
            started_at: "2026-01-31T12:00:00+00:00",
            updated_at: "2026-01-31T12:00:01.5+00:00",
        }
    }

    fn checks(broadcast: &Broadcast) -> Vec<Value> {
        let all = broadcast.messages.iter().flat_map(|message| {
            assert!(
                message.len() <= MAX_PAYLOAD && is_own_broadcast(message.as_bytes()),
                "{}",
                message.len()
            );
            let message = wire::decode(message).expect("what any node reads");
            let message: Value = serde_json::from_str(&message).expect("a complete object");
            assert_eq!(message.as_object().map(|m| m.len()), Some(1));
            message["checks"].as_array().expect("an array").clone()
        });
        all.collect()
    }

    /// Returns ids that can hardly be compressed.
    fn noise(many: usize) -> Vec<i64> {
        let mut random = 1u64;
        let next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 1) as i64
        };
        std::iter::repeat_with(next).take(many).collect()
    }

    fn noisy_text(len: usize) -> String {
        noise(len / 16 + 1).iter().map(|n| format!("{n:016x}")).collect::<String>()[..len].to_owned()
    }

    #[test]
    fn a_broadcast_as_it_is_kept_in_the_golden_file() {
        let full = r#"{"uuid":"8b2ff8a5-9f2c-4a5e-9d57-0b8f8e1a2b3c","name":"other","limit":10,"paused":true,"running":[7,8,9007199254740993],"started_at":"2026-01-30T12:00:00Z","updated_at":"2020-01-01T00:00:00Z","shutdown_started_at":"2026-01-31T11:59:59Z","x":1.50,"rate_limit":{"period":60,"allowed":1,"windows":[{"curr_count":1,"prev_count":2}],"window_time":"12:00:00"},"refresh_interval":60000}"#;
        let queues = [
            queue("media", "{}"),
            queue("\"é\"", full),
            queue("default", r#"{"local_limit":3,"running":[]}"#),
        ];
        let broadcast = messages(&queues, str::len);
        let golden = include_str!("../../tests/fixtures/gossip/broadcast.json");
        assert_eq!(broadcast.messages, [golden.trim_end()]);
        assert!(is_own_broadcast(golden.as_bytes()) && !is_own_broadcast(b"{\"checks\":[]}"));
        assert_eq!((broadcast.checks, broadcast.shortened), (3, 0));
    }

    #[test]
    fn every_check_has_what_readers_need() {
        let broadcast = messages(&[queue("q", "{}")], str::len);
        let wanted = json!({
            "name": "Oban", "node": "web.1", "queue": "q", "local_limit": 0, "paused": false, "running": [],
            "started_at": "2026-01-31T12:00:00+00:00", "updated_at": "2026-01-31T12:00:01.5+00:00",
            "shutdown_started_at": null,
        });
        assert_eq!(checks(&broadcast), [wanted]);
        assert_eq!(messages(&[], str::len), Broadcast::default());
    }

    #[test]
    fn many_queues_are_split_and_none_is_lost() {
        let names: Vec<String> = (0..500).map(|n| format!("queue_{n:03}")).collect();
        let queues: Vec<_> = names.iter().map(|name| queue(name, r#"{"limit":5}"#)).collect();
        let broadcast = messages(&queues, str::len);
        let sent: Vec<String> =
            checks(&broadcast).iter().map(|c| c["queue"].as_str().unwrap().into()).collect();
        assert_eq!((sent, broadcast.shortened), (names, 0));
        let most = broadcast.messages.iter().map(String::len).max().unwrap();
        assert!(most > MAX_PAYLOAD - 300, "they are filled: {most}");
    }

    #[test]
    fn a_check_that_is_too_long_is_compressed() {
        let ids: Vec<i64> = (1_000_000..1_001_200).collect();
        let uuids: Vec<Value> =
            noise(250).iter().map(|n| json!(format!("{n:032x}"))).chain([json!(7)]).collect();
        for running in [json!(ids), json!(uuids)] {
            let state = json!({"limit": 5, "running": running}).to_string();
            assert!(state.len() > MAX_PAYLOAD);
            let broadcast = messages(&[queue("a", "{}"), queue("b", &state), queue("c", "{}")], str::len);
            let checks = checks(&broadcast);
            assert_eq!((checks.len(), broadcast.checks, broadcast.shortened), (3, 3, 0));
            assert_eq!(broadcast.messages.len(), 3);
            assert!(broadcast.messages[1].starts_with("H4sI") && checks[1]["running"] == running);
        }
    }

    #[test]
    fn what_is_too_long_compressed_keeps_its_newest_jobs() {
        let ids: Vec<i64> = (1_000_000..1_009_000).rev().collect();
        let state = format!(r#"{{"limit":5,"running":{}}}"#, json!(ids));
        let broadcast = messages(&[queue("a", "{}"), queue("b", &state), queue("c", "{}")], str::len);
        let sent = checks(&broadcast);
        assert_eq!((sent.len(), broadcast.checks, broadcast.shortened), (3, 3, 1));
        let kept: Vec<i64> = serde_json::from_value(sent[1]["running"].clone()).unwrap();
        assert_eq!(kept, ids[..kept.len()], "the greatest, in their order");
        assert!(kept.len() > 2_000 && broadcast.messages[1].starts_with("H4sI"), "{}", kept.len());

        // Compressing many large checks would exceed the budget. Checks beyond the budget are sent
        // all the same, uncompressed.
        let large: Vec<_> = (0..20).map(|_| queue("q", &state)).collect();
        let broadcast = messages(&large, str::len);
        assert_eq!((checks(&broadcast).len(), broadcast.shortened), (20, 20));
        let kept: Vec<i64> = serde_json::from_value(checks(&broadcast)[19]["running"].clone()).unwrap();
        let last = broadcast.messages.last().expect("it is sent");
        assert_eq!(kept, ids[..kept.len()], "the greatest, in their order");
        assert!(last.starts_with('{') && last.len() > MAX_PAYLOAD - 9, "no room for another: {}", last.len());
    }

    #[test]
    fn keys_that_nobody_needs_go_first_if_they_are_long() {
        let noise_of = noisy_text(24_000);
        let (uuid, x) = noise_of.split_at(12_000);
        let state = json!({"uuid": uuid, "x": x, "limit": 2, "running": [1, 2]});
        let broadcast = messages(&[queue("q", &state.to_string())], str::len);
        let check = &checks(&broadcast)[0];
        assert_eq!((&check["limit"], &check["running"], broadcast.shortened), (&json!(2), &json!([1, 2]), 1));
        assert!(check.get("x").is_none() && check.get("uuid").is_none());
        // Long keys are left out before running jobs are. Short keys stay.
        let state = json!({"x": noisy_text(11_800), "limit": 2, "running": (0..1_000).collect::<Vec<_>>()});
        let broadcast = messages(&[queue("q", &state.to_string())], str::len);
        let check = &checks(&broadcast)[0];
        assert!(check.get("x").is_none() && check["running"] == state["running"] && broadcast.shortened == 1);
        let state = json!({"x": "x".repeat(700), "running": noise(3_000)});
        let broadcast = messages(&[queue("q", &state.to_string())], str::len);
        assert!(checks(&broadcast)[0]["x"] == state["x"] && broadcast.shortened == 1);
    }

    #[test]
    fn jobs_that_are_named_by_texts_are_shortened_as_well() {
        // Like ULIDs, these ids sort by age: the newest is the last.
        let ids: Vec<String> = (0..1_500u128)
            .map(|n| format!("01HZX{n:05}{:016X}", (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) as u64))
            .collect();
        let state = json!({"limit": 5, "running": ids});
        let broadcast = messages(&[queue("q", &state.to_string())], str::len);
        let kept: Vec<String> = serde_json::from_value(checks(&broadcast)[0]["running"].clone()).unwrap();
        assert_eq!((&kept[..], broadcast.shortened), (&ids[ids.len() - kept.len()..], 1));
        assert!(kept.len() > 200, "{}", kept.len());
    }

    /// These are the longest names, of characters that JSON writes in six bytes.
    #[test]
    fn names_never_fill_a_message() {
        let name = "\u{1}".repeat(crate::logic::leadership::MAX_NAME);
        let node = "\u{1}".repeat(crate::logic::leadership::MAX_NODE);
        let long = "\u{1}".repeat(check::MAX_QUEUE);
        let long = Queue { name: &name, node: &node, ..queue(&long, "{}") };
        assert_eq!(messages(&[long], str::len).checks, 1);
    }

    #[test]
    fn lengths_are_those_of_the_wire() {
        let names: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
        let queues: Vec<_> = names.iter().map(|name| queue(name, r#"{"limit":5}"#)).collect();
        let broadcast = messages(&queues, |text| 2 * text.len());
        assert!(broadcast.messages.iter().all(|m| m.len() <= MAX_PAYLOAD / 2 + 8));
    }

    proptest! {
        /// A broadcast can be ingested. Its checks list the same jobs as long as all jobs fit.
        #[test]
        fn what_is_broadcast_can_be_taken_in(
            names in prop::collection::btree_set("[a-z\"\u{e9}]{1,20}", 1..10),
            ids in prop::collection::vec(any::<i64>(), 0..900),
            limit in 0..=i32::MAX,
        ) {
            let state = format!(r#"{{"limit":{limit},"running":{}}}"#, json!(ids));
            let names: Vec<String> = names.into_iter().collect();
            let queues: Vec<_> = names.iter().map(|name| queue(name, &state)).collect();
            let broadcast = messages(&queues, str::len);
            let mut heard = Vec::new();
            for message in &broadcast.messages {
                prop_assert!(message.len() <= MAX_PAYLOAD);
                let parsed = ingest::parse_message(message);
                prop_assert_eq!(parsed.malformed, 0);
                heard.extend(parsed.checks.iter().map(|check| ingest::parse_check(check).expect("a check")));
            }
            let queues: Vec<_> = heard.iter().map(|h| h.queue.clone()).collect();
            prop_assert_eq!(&queues, &names);
            for heard in heard {
                let kept: Value = serde_json::from_str(&heard.state).expect("an object");
                let mut kept: Vec<i64> = serde_json::from_value(kept["running"].clone()).expect("ids");
                prop_assert!(broadcast.shortened > 0 || kept == ids);
                let mut newest = ids.clone();
                newest.sort_unstable();
                kept.sort_unstable();
                prop_assert_eq!(&kept[..], &newest[newest.len() - kept.len()..]);
            }
        }
    }
}
