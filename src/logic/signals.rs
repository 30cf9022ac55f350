//! Queue signals: what goes over the wire, and what is remembered of it.
//!
//! A signal concerns one queue or all (`*`), and one node or all. The wire form names the node by
//! its `ident`, `<name>.<node>`. Without a node the ident is `any`: the signal then concerns the
//! nodes of every instance name.
//!
//! The last pause or resume, and the last scaling, of each key are remembered with their times. No
//! two times in a table are equal, and later signals have later times. So a node finds its state by
//! the newest row that concerns it, for `paused` and for the limit each by itself.

use std::collections::{HashMap, HashSet};

use super::leadership::{MAX_NAME, MAX_NODE};
use super::shape::{ConstraintKind, Shape};
use super::times::WallTime;
use super::wire;

/// The longest name of a queue, in characters. Oban's tables refuse a longer one.
pub const MAX_QUEUE_CHARS: usize = 127;

/// The name that stands for all queues, in a pause and a resume.
pub const EVERY_QUEUE: &str = "*";

/// The most rows that a prefix's table keeps.
pub const MAX_ROWS: usize = 2_000;

/// The most rows of a table that is read. Only the table's owner can have put more rows there.
const MOST_READ: usize = 2 * MAX_ROWS;

/// The greatest size of a table that is read, in bytes. `MAX_ROWS` of the longest rows take 2 MB. The
/// rest is room for old versions of rows. To read so much takes some 10 ms.
const MOST_BYTES: u64 = 32 << 20;

/// What a signal asks of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pause,
    Resume,
    Scale(i32),
    Start(i32),
    Stop,
}

impl Action {
    /// Returns the value of the key `action`.
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Scale(_) => "scale",
            Self::Start(_) => "start",
            Self::Stop => "stop",
        }
    }

    /// Returns the limit that the signal gives the queue. `None`: the signal gives none.
    pub fn limit(self) -> Option<i32> {
        match self {
            Self::Scale(limit) | Self::Start(limit) => Some(limit),
            Self::Pause | Self::Resume | Self::Stop => None,
        }
    }

    /// Returns whether Oban's nodes know this action for all queues, by the name `*`.
    pub fn knows_every_queue(self) -> bool {
        matches!(self, Self::Pause | Self::Resume)
    }

    /// Returns what is remembered of the signal. `None`: nothing is.
    pub fn change(self) -> Option<Change> {
        match self {
            Self::Pause => Some(Change::Paused(true)),
            Self::Resume => Some(Change::Paused(false)),
            Self::Scale(limit) => Some(Change::Limit(limit)),
            Self::Start(_) | Self::Stop => None,
        }
    }
}

/// Which queue of which nodes a signal concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The instance name that the call gave. Without a node the signal concerns every name.
    pub name: String,
    /// A queue, or `EVERY_QUEUE`.
    pub queue: String,
    /// `None`: all nodes.
    pub node: Option<String>,
}

impl Key {
    /// Returns how many bytes of memory it takes.
    pub fn size(&self) -> usize {
        let node = self.node.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.name.len() + self.queue.len() + node
    }

    /// Returns the value of the key `ident` by which nodes find out whether they are meant.
    fn ident(&self) -> String {
        self.node.as_ref().map_or("any".to_owned(), |node| format!("{}.{node}", self.name))
    }

    /// Returns whether a signal with this key concerns a queue of a node. `node` is `None` for what
    /// concerns the nodes of which no signal names one. As nodes do, it compares whole idents: a name
    /// and a node may have dots.
    fn concerns(&self, name: &str, queue: &str, node: Option<&str>) -> bool {
        let queue = self.queue == EVERY_QUEUE || self.queue == queue;
        let ident = || node.map(|node| format!("{name}.{node}"));
        queue && (self.node.is_none() || ident().is_some_and(|ident| ident == self.ident()))
    }
}

/// Returns name and node of an ident. `None`: it has no dot with something before and after it, or a
/// part is too long. Where more than one dot may be the one between, the name is the longest that
/// looks like a module of Elixir's (`MyApp.Oban`), or else ends at the first dot.
fn split(ident: &str) -> Option<(&str, &str)> {
    let is_of_module = |part: &str| part.starts_with(|c: char| c.is_ascii_uppercase());
    let mut dots = ident.match_indices('.').map(|(at, _)| at);
    let first = dots.next()?;
    let mut end = first;
    if is_of_module(ident) {
        for dot in dots {
            if !is_of_module(&ident[end + 1..]) {
                break;
            }
            end = dot;
        }
    }
    let (name, node) = (&ident[..end], &ident[end + 1..]);
    let fits = !name.is_empty() && !node.is_empty() && name.len() <= MAX_NAME && node.len() <= MAX_NODE;
    fits.then_some((name, node))
}

/// The most bytes to which a packed signal may unpack. A real one is far shorter.
const MAX_UNPACKED: usize = 8_192;

/// Returns how many bytes of what was heard may wait for one of so many prefixes. It is the same for
/// each, so what comes for one prefix takes nothing from another one. It is enough for a notification
/// of the longest kind.
pub fn room_of_each(prefixes: usize) -> usize {
    const OF_ALL: usize = 16 << 20;
    (OF_ALL / prefixes.max(1)).clamp(16 << 10, 256 << 10)
}

/// Reads a signal that another program has sent. `None`: such a signal is not remembered, or no node
/// of Oban's would act on it.
pub fn read(wire: &str) -> Option<(Key, Change)> {
    let json = wire::decode_up_to(wire, MAX_UNPACKED).ok()?;
    wire::require_flat(&json).ok()?;
    let signal: serde_json::Value = serde_json::from_str(&json).ok()?;
    let text = |key: &str| {
        let text = signal.get(key)?.as_str()?;
        (!text.is_empty() && !text.contains(['\0', '\u{fffd}'])).then_some(text)
    };
    let queue = text("queue").filter(|queue| queue.chars().count() <= MAX_QUEUE_CHARS)?;
    let change = match text("action")? {
        "pause" => Change::Paused(true),
        "resume" => Change::Paused(false),
        "scale" if queue != EVERY_QUEUE && knows_all_keys(&signal) => {
            let limit = signal.get("limit")?.as_i64()?;
            Change::Limit(i32::try_from(limit).ok().filter(|limit| *limit > 0)?)
        }
        _ => return None,
    };
    let (name, node) = match signal.get("ident") {
        None => (DEFAULT_NAME, None),
        Some(ident) if ident == "any" => (DEFAULT_NAME, None),
        Some(_) => {
            let (name, node) = split(text("ident")?)?;
            (name, Some(node.to_owned()))
        }
    };
    Some((Key { name: name.to_owned(), queue: queue.to_owned(), node }, change))
}

/// Returns whether every node knows all keys of a scaling: those that Oban's `scale_queue` sends, and
/// the options of the engines of Oban Pro. A key that a node of Elixir does not know crashes its queue,
/// which starts again with its own configuration. By the key `paused` it would pause the queue, too.
fn knows_all_keys(scaling: &serde_json::Value) -> bool {
    const KEYS: [&str; 9] = [
        "action",
        "queue",
        "ident",
        "limit",
        "node",
        "local_only",
        "local_limit",
        "global_limit",
        "rate_limit",
    ];
    scaling.as_object().is_some_and(|keys| keys.keys().all(|key| KEYS.contains(&key.as_str())))
}

/// The name in the rows of signals that others have sent to all nodes.
pub const DEFAULT_NAME: &str = "Oban";

/// Returns those of the signals that a listener has heard that are not remembered yet, in their
/// order. What the extension's functions send is remembered when it is heard. So a signal is left out
/// if it says what the newest row says. It is not left out after another one that is new: then it was
/// sent later than that one.
pub fn unknown(rows: &[Remembered], heard: Vec<(Key, Change)>) -> Vec<(Key, Change)> {
    let newest = |at: fn(&Remembered) -> Option<WallTime>| {
        rows.iter().filter(|row| at(row).is_some()).max_by_key(|row| at(row))
    };
    let paused = newest(|row| row.paused.map(|(_, at)| at));
    let limit = newest(|row| row.limit.map(|(_, at)| at));
    let (mut new_pause, mut new_limit) = (false, false);
    let known = |row: Option<&Remembered>, key: &Key| {
        row.filter(|row| row.key.queue == key.queue && row.key.ident() == key.ident()).cloned()
    };
    let mut unknown = Vec::new();
    for (key, change) in heard {
        let (row, new) = match change {
            Change::Paused(_) => (known(paused, &key), &mut new_pause),
            Change::Limit(_) => (known(limit, &key), &mut new_limit),
        };
        let says_so = row.is_some_and(|row| match change {
            Change::Paused(to) => row.paused.is_some_and(|(paused, _)| paused == to),
            Change::Limit(to) => row.limit.is_some_and(|(limit, _)| limit == to),
        });
        if *new || !says_so {
            *new = true;
            unknown.push((key, change));
        }
    }
    unknown
}

/// Returns the payload of a signal, as Oban's nodes read it. A key that they do not expect would
/// crash some of them, and so would a limit that is no positive integer.
pub fn payload(action: Action, key: &Key) -> String {
    let (queue, ident) = (quoted(&key.queue), quoted(&key.ident()));
    let limit = action.limit().map_or(String::new(), |limit| format!(",\"limit\":{limit}"));
    format!("{{\"action\":\"{}\",\"queue\":{queue},\"ident\":{ident}{limit}}}", action.name())
}

/// Returns the payload of the signal that ends a running job.
pub fn pkill_payload(job: i64) -> String {
    format!("{{\"action\":\"pkill\",\"job_id\":{job}}}")
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Makes the payload of the transaction's signal number `nth`, counted from 0, differ from the
/// payloads of the other signals. NOTIFY drops a notification that equals an earlier one of the
/// transaction, and the last of pause, resume and pause must count. What is added is white space,
/// which no reader of JSON sees. The first signal is byte by byte what Oban sends.
pub fn set_apart(payload: &mut String, nth: u32) {
    let mut rest = nth;
    while rest > 0 {
        rest -= 1;
        payload.push(if rest.is_multiple_of(2) { ' ' } else { '\t' });
        rest /= 2;
    }
}

/// A part of a remembered row that a signal sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Paused(bool),
    Limit(i32),
}

/// Returns the changes that count in the end: the last pause or resume, and the last scaling, of each
/// key, in the order in which they came.
pub fn last_of_each(changes: Vec<(Key, Change)>) -> Vec<(Key, Change)> {
    let mut later: HashSet<(bool, Key)> = HashSet::new();
    let mut last: Vec<_> = changes.into_iter().rev().collect();
    last.retain(|(key, change)| later.insert((matches!(change, Change::Paused(_)), key.clone())));
    last.reverse();
    last
}

/// What is remembered of the signals with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub key: Key,
    /// Whether the queue is paused, and since when. `None`: it was neither paused nor resumed.
    pub paused: Option<(bool, WallTime)>,
    /// The limit, and since when. `None`: the queue was not scaled.
    pub limit: Option<(i32, WallTime)>,
}

impl Remembered {
    /// Returns the time of the last signal. `None`: the row has no signal.
    pub fn since(&self) -> Option<WallTime> {
        self.paused.map(|(_, at)| at).max(self.limit.map(|(_, at)| at))
    }
}

/// Returns the time of the last signal of all rows. `None`: there is none.
pub fn newest(rows: &[Remembered]) -> Option<WallTime> {
    rows.iter().filter_map(Remembered::since).max()
}

/// What a commit writes into the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// The rows that are new or change, as they are then.
    pub put: Vec<Remembered>,
    /// The rows that are deleted to make room.
    pub delete: Vec<Key>,
}

/// Returns what `changes`, in their order, make of the table's `rows`. The times of the changes are
/// `now` or later, and later than all times of the rows, whatever clock has written these.
///
/// The table keeps `most` rows. Beyond that the oldest rows go: first those of single nodes,
/// because nodes come and go, and a role that may signal may send any number of names. The row of the
/// last change goes last, so the table has the last signal even if it is full of other queues.
pub fn writes(rows: &[Remembered], changes: &[(Key, Change)], now: WallTime, most: usize) -> Writes {
    let greatest = newest(rows).unwrap_or(WallTime::ZERO);
    let first = now.max(greatest.saturating_add(1));
    let mut all: Vec<Remembered> = rows.to_vec();
    let mut places: HashMap<Key, usize> = rows.iter().map(|row| row.key.clone()).zip(0..).collect();
    let (mut changed, mut last) = (vec![false; all.len()], None);
    for ((key, change), nth) in changes.iter().zip(0..) {
        let place = *places.entry(key.clone()).or_insert_with(|| {
            all.push(Remembered { key: key.clone(), paused: None, limit: None });
            changed.push(true);
            all.len() - 1
        });
        let (row, at) = (&mut all[place], first.saturating_add(nth));
        match change {
            Change::Paused(paused) => row.paused = Some((*paused, at)),
            Change::Limit(limit) => row.limit = Some((*limit, at)),
        }
        changed[place] = true;
        last = Some(place);
    }
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|place| (last == Some(*place), all[*place].key.node.is_none(), all[*place].since()));
    let mut gone = vec![false; all.len()];
    order[..all.len().saturating_sub(most)].iter().for_each(|place| gone[*place] = true);
    let mut writes = Writes::default();
    for (row, place) in all.into_iter().zip(0..) {
        if gone[place] {
            if place < rows.len() {
                writes.delete.push(row.key);
            }
        } else if changed[place] {
            writes.put.push(row);
        }
    }
    writes
}

/// What a node that starts has to do with a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub paused: Option<bool>,
    pub limit: Option<i32>,
    /// The time of the later of the two signals.
    pub since: Option<WallTime>,
}

/// Returns the state of a queue on a node: of the rows that concern it, the newest pause or resume
/// and the newest scaling.
pub fn state(rows: &[Remembered], name: &str, queue: &str, node: Option<&str>) -> State {
    let ours = || rows.iter().filter(|row| row.key.concerns(name, queue, node));
    let paused = ours().filter_map(|row| row.paused).max_by_key(|(_, at)| *at);
    let limit = ours().filter_map(|row| row.limit).max_by_key(|(_, at)| *at);
    State {
        paused: paused.map(|(paused, _)| paused),
        limit: limit.map(|(limit, _)| limit),
        since: paused.map(|(_, at)| at).max(limit.map(|(_, at)| at)),
    }
}

/// The columns of the table, in the table's order. The last four may be NULL.
pub const COLUMNS: [&str; 7] = ["name", "queue", "node", "paused", "queue_limit", "paused_at", "limit_at"];

const KEY: [&str; 3] = ["name", "queue", "node"];

const NULLABLE: [&str; 4] = ["paused", "queue_limit", "paused_at", "limit_at"];

/// Returns why a table of so many bytes is not read. `None`: it is read.
pub fn too_large(bytes: u64) -> Option<String> {
    (bytes > MOST_BYTES).then(|| format!("it is larger than {} MB", MOST_BYTES >> 20))
}

/// Returns why a table of so many rows, or more, is not read. `None`: it is read.
pub fn too_many(rows: usize) -> Option<String> {
    (rows > MOST_READ).then(|| format!("it has more than {MOST_READ} rows"))
}

/// Returns what distinguishes a table from the one that `oban_install` makes, so that its rows are
/// not written. They are written through access methods, which ignore what the executor applies.
/// `None`: nothing does. The types of the columns are not tested here.
pub fn fault(shape: &Shape) -> Option<String> {
    if !shape.is_table || shape.is_temporary || !shape.is_heap {
        return Some("it is no ordinary table".into());
    }
    if shape.is_partition || shape.inherits {
        return Some("it inherits, is inherited from or is a partition".into());
    }
    if let Some(rule) = shape.rules.first() {
        return Some(format!("it has a rule {rule}"));
    }
    if shape.policies_bind_owner {
        return Some("its row level security binds its owner".into());
    }
    if !shape.owner_lacks.is_empty() {
        return Some(format!("its owner lacks {}", shape.owner_lacks.join(", ")));
    }
    for column in &shape.columns {
        let is_odd = !COLUMNS.contains(&column.name.as_str())
            || column.generated
            || column.not_null && NULLABLE.contains(&column.name.as_str());
        if is_odd {
            return Some(format!("its column {} is not as oban_install makes it", column.name));
        }
    }
    let is_obstacle = |kind| kind != ConstraintKind::Other;
    if let Some(constraint) = shape.constraints.iter().find(|constraint| is_obstacle(constraint.kind)) {
        return Some(format!("it has a constraint {}", constraint.name));
    }
    if let Some((other, constraint)) = shape.referenced_by.first() {
        return Some(format!("a foreign key {constraint} of {other} refers to it"));
    }
    // A unique index on other columns, or one that treats different texts as equal, would refuse rows.
    // REINDEX CONCURRENTLY makes a second index on the same columns. While it lasts, and after a
    // failure, one of the two is not valid. That index refuses no row that the other one takes.
    let is_odd = |index: &&super::shape::Index| {
        let is_on_key = index.key_columns.len() == KEY.len()
            && KEY.iter().all(|column| index.key_columns.iter().any(|own| own == column));
        let refuses = index.unique && !is_on_key || !index.deterministic;
        !index.is_plain() || index.deferrable || refuses
    };
    if let Some(index) = shape.indexes.iter().find(is_odd) {
        return Some(format!("it has an index {} that oban_install does not make", index.name));
    }
    if shape.publication.lacks_identity || shape.publication.misfit {
        return Some("it is published without a fitting replica identity".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::shape::Index;
    use super::*;

    fn key(name: &str, queue: &str, node: &str) -> Key {
        let node = (!node.is_empty()).then(|| node.to_owned());
        Key { name: name.into(), queue: queue.into(), node }
    }

    #[test]
    fn payloads_are_obans() {
        let every = key("Oban", "*", "");
        let one = key("MyApp.Oban", "media", "worker@10.0.0.3");
        for (action, key, expected) in [
            (Action::Pause, &every, r#"{"action":"pause","queue":"*","ident":"any"}"#),
            (
                Action::Resume,
                &one,
                r#"{"action":"resume","queue":"media","ident":"MyApp.Oban.worker@10.0.0.3"}"#,
            ),
            (
                Action::Scale(5),
                &one,
                r#"{"action":"scale","queue":"media","ident":"MyApp.Oban.worker@10.0.0.3","limit":5}"#,
            ),
            (
                Action::Start(1),
                &key("Oban", "a\"b", ""),
                r#"{"action":"start","queue":"a\"b","ident":"any","limit":1}"#,
            ),
            (Action::Stop, &every, r#"{"action":"stop","queue":"*","ident":"any"}"#),
        ] {
            assert_eq!(payload(action, key), expected);
        }
        assert_eq!(pkill_payload(-7), r#"{"action":"pkill","job_id":-7}"#);
    }

    /// A long queue, name and node of characters that JSON escapes still make a notification.
    #[test]
    fn payloads_fit_into_a_notification() {
        let key = Key {
            name: "\u{1}".repeat(MAX_NAME),
            queue: "\u{1}".repeat(MAX_QUEUE_CHARS),
            node: Some("\u{1}".repeat(MAX_NODE)),
        };
        let mut payload = payload(Action::Scale(i32::MAX), &key);
        set_apart(&mut payload, u32::MAX);
        assert!(payload.len() <= wire::MAX_PAYLOAD, "{}", payload.len());
    }

    #[test]
    fn idents_are_split_between_name_and_node() {
        for (ident, parts) in [
            ("Oban.web.1", Some(("Oban", "web.1"))),
            ("MyApp.Oban.worker@10.0.0.3", Some(("MyApp.Oban", "worker@10.0.0.3"))),
            ("oban.web.1", Some(("oban", "web.1"))),
            ("Oban.Web", Some(("Oban", "Web"))),
            ("{:oban, 1}.web", Some(("{:oban, 1}", "web"))),
            ("Oban", None),
            ("Oban.", None),
            (".web", None),
            ("", None),
        ] {
            assert_eq!(split(ident), parts, "{ident}");
        }
        assert_eq!(split(&format!("Oban.{}", "x".repeat(MAX_NODE + 1))), None);
    }

    #[test]
    fn what_others_send_is_read_if_a_node_would_act_on_it() {
        // As Oban for Python sends it.
        let packed = "H4sIAAhhDWsC/6tWSkwuyczPU7JSKkgsLU5V0lEqLE0tTQXyc1NTMhOB/MyU1LwSIN8/KTFPrzw1Sc9QqRYAfBOR8jcAAAA=";
        assert_eq!(read(packed), Some((key("Oban", "media", "web.1"), Change::Paused(true))));
        for (wire, expected) in [
            (
                r#"{"action":"pause","queue":"*","ident":"any"}"#,
                Some((key("Oban", "*", ""), Change::Paused(true))),
            ),
            (r#"{"queue":"a","action":"resume"}"#, Some((key("Oban", "a", ""), Change::Paused(false)))),
            (
                r#"{"action":"scale","queue":"a","limit":5,"ident":"B.n","node":"n"}"#,
                Some((key("B", "a", "n"), Change::Limit(5))),
            ),
            (r#"{"action":"scale","queue":"a","limit":"5","ident":"any"}"#, None),
            (
                r#"{"action":"scale","queue":"a","limit":5,"ident":"any","local_only":false,"rate_limit":{}}"#,
                Some((key("Oban", "a", ""), Change::Limit(5))),
            ),
            (r#"{"action":"scale","queue":"a","limit":5,"ident":"any","more":1}"#, None),
            (r#"{"action":"scale","queue":"a","limit":5,"ident":"any","paused":true}"#, None),
            (
                r#"{"action":"pause","queue":"a","ident":"any","more":1}"#,
                Some((key("Oban", "a", ""), Change::Paused(true))),
            ),
            (r#"{"action":"scale","queue":"a","limit":0,"ident":"any"}"#, None),
            (r#"{"action":"scale","queue":"*","limit":5,"ident":"any"}"#, None),
            (r#"{"action":"start","queue":"a","limit":5,"ident":"any"}"#, None),
            (r#"{"action":"pkill","job_id":5}"#, None),
            (r#"{"action":"pause","queue":"","ident":"any"}"#, None),
            (r#"{"action":"pause","queue":7,"ident":"any"}"#, None),
            (r#"{"action":"pause","queue":"a\u0000","ident":"any"}"#, None),
            (r#"{"action":"pause","queue":"a","ident":null}"#, None),
            (r#"{"action":"pause","queue":"a","ident":"nodots"}"#, None),
            ("[1]", None),
            ("", None),
        ] {
            assert_eq!(read(wire), expected, "{wire}");
        }
        let long = format!(r#"{{"action":"pause","queue":"{}","ident":"any"}}"#, "ü".repeat(128));
        assert_eq!(read(&long), None);
    }

    #[test]
    fn the_first_signal_of_a_transaction_is_as_it_is() {
        let made = [0, 1, 2].map(|nth| {
            let mut payload = "{}".to_owned();
            set_apart(&mut payload, nth);
            payload
        });
        assert_eq!(made, ["{}", "{} ", "{}\t"]);
    }

    fn index(change: impl FnOnce(&mut Index)) -> Option<String> {
        let mut index = Index {
            name: "p.i".into(),
            constraint: None,
            unique: true,
            on_name: false,
            key_columns: KEY.map(str::to_owned).to_vec(),
            deferrable: false,
            valid: true,
            exclusion: false,
            has_expressions: false,
            has_predicate: false,
            built_in: true,
            deterministic: true,
        };
        change(&mut index);
        fault(&Shape { is_table: true, is_heap: true, indexes: vec![index], ..Shape::default() })
    }

    #[test]
    fn an_index_that_refuses_rows_is_a_fault_and_a_second_one_on_the_key_is_none() {
        let fits: [fn(&mut Index); 5] = [
            |_| {},
            |i| i.valid = false, // as REINDEX CONCURRENTLY makes it
            |i| i.key_columns.reverse(),
            |i| (i.unique, i.key_columns) = (false, vec!["queue".into()]),
            |i| (i.unique, i.valid, i.key_columns) = (false, false, vec!["paused".into()]),
        ];
        for (nth, change) in fits.into_iter().enumerate() {
            assert_eq!(index(change), None, "{nth}");
        }
        let spoils: [fn(&mut Index); 8] = [
            |i| drop(i.key_columns.pop()),
            |i| i.key_columns.push("paused".into()),
            |i| i.key_columns[0] = "queue".into(),
            |i| i.deferrable = true,
            |i| i.deterministic = false,
            |i| i.has_expressions = true,
            |i| i.has_predicate = true,
            |i| i.built_in = false,
        ];
        for (nth, change) in spoils.into_iter().enumerate() {
            assert!(index(change).is_some_and(|fault| fault.contains("p.i")), "{nth}");
        }
    }

    #[test]
    fn prefixes_have_equal_parts_of_a_bounded_room() {
        let parts = [0, 1, 64, 128, 1_000, 100_000].map(room_of_each);
        assert_eq!(parts, [256 << 10, 256 << 10, 256 << 10, 128 << 10, 16_777, 16 << 10]);
        assert!(parts[5] > 2 * wire::MAX_PAYLOAD);
    }

    #[test]
    fn a_table_that_its_owner_has_filled_is_not_read() {
        assert_eq!((too_large(MOST_BYTES), too_many(MOST_READ)), (None, None));
        assert_eq!(too_large(MOST_BYTES + 1).as_deref(), Some("it is larger than 32 MB"));
        assert_eq!(too_many(MOST_READ + 1).as_deref(), Some("it has more than 4000 rows"));
    }

    #[test]
    fn what_is_scaled_after_a_pause_of_all_stays_paused() {
        let (all, one) = (key("Oban", "*", ""), key("Oban", "media", ""));
        let changes =
            [(one.clone(), Change::Paused(false)), (all, Change::Paused(true)), (one, Change::Limit(5))];
        let rows = writes(&[], &changes, WallTime(10), MAX_ROWS).put;
        let state = state(&rows, "Oban", "media", Some("web.1"));
        assert_eq!(state, State { paused: Some(true), limit: Some(5), since: Some(WallTime(12)) });
    }

    #[test]
    fn the_rows_of_nodes_go_first_and_the_oldest_of_them() {
        let changes = [
            (key("Oban", "old", ""), Change::Paused(true)),
            (key("Oban", "a", "n1"), Change::Paused(true)),
            (key("Oban", "b", "n1"), Change::Paused(true)),
        ];
        let rows = writes(&[], &changes, WallTime(1), 3).put;
        let new = [(key("Oban", "new", ""), Change::Limit(1))];
        let made = writes(&rows, &new, WallTime(9), 3);
        assert_eq!(made.delete, [key("Oban", "a", "n1")]);
        assert_eq!(made.put.len(), 1);
        let none = writes(&rows, &new, WallTime(9), 0);
        assert_eq!((none.delete.len(), none.put.len()), (3, 0));
    }

    fn keys() -> impl Strategy<Value = Key> {
        let text = |values: &'static [&'static str]| proptest::sample::select(values);
        let queues = text(&["*", "a", "b"]);
        (text(&["A", "B"]), queues, text(&["", "n1", "n2"]))
            .prop_map(|(name, queue, node)| key(name, queue, node))
    }

    fn changes() -> impl Strategy<Value = Vec<(Key, Change)>> {
        let change = prop_oneof![any::<bool>().prop_map(Change::Paused), (1..9).prop_map(Change::Limit)];
        proptest::collection::vec((keys(), change), 0..30)
    }

    /// What live nodes have in memory after these signals: the model of `state`.
    fn live(changes: &[(Key, Change)], name: &str, queue: &str, node: &str) -> (Option<bool>, Option<i32>) {
        let (mut paused, mut limit) = (None, None);
        for (key, change) in changes.iter().filter(|(key, _)| key.concerns(name, queue, Some(node))) {
            match (change, key) {
                (Change::Paused(to), _) => paused = Some(*to),
                (Change::Limit(to), _) => limit = Some(*to),
            }
        }
        (paused, limit)
    }

    proptest! {
        /// A node that starts and asks has the state of a node that was there for all signals,
        /// however these were spread over transactions and clocks.
        #[test]
        fn a_node_that_asks_has_the_state_of_one_that_heard(
            transactions in proptest::collection::vec((changes(), 0_i64..100), 0..6)
        ) {
            let (mut rows, mut all): (Vec<Remembered>, Vec<_>) = (Vec::new(), Vec::new());
            for (changes, now) in &transactions {
                let made = writes(&rows, changes, WallTime(*now), MAX_ROWS);
                prop_assert!(made.delete.is_empty());
                for row in made.put {
                    rows.retain(|old| old.key != row.key);
                    rows.push(row);
                }
                all.extend(changes.iter().cloned());
            }
            let asked = [("A", "a", "n1"), ("A", "b", "n2"), ("B", "a", "n1"), ("B", "c", "n3")];
            for (name, queue, node) in asked {
                let state = state(&rows, name, queue, Some(node));
                prop_assert_eq!((state.paused, state.limit), live(&all, name, queue, node));
            }
        }

        /// A listener hears what the functions have sent, some of which is remembered, and what others
        /// have sent. When all is remembered, the last one of all counts, as it does for a node.
        #[test]
        fn what_was_heard_counts_in_its_order(
            all in changes(),
            own in proptest::collection::vec(any::<bool>(), 30)
        ) {
            let mut rows: Vec<Remembered> = Vec::new();
            let put = |rows: &mut Vec<Remembered>, changes: &[(Key, Change)]| {
                for row in writes(rows, changes, WallTime(0), MAX_ROWS).put {
                    rows.retain(|old| old.key != row.key);
                    rows.push(row);
                }
            };
            for (change, _) in all.iter().zip(&own).filter(|(_, own)| **own) {
                put(&mut rows, std::slice::from_ref(change));
            }
            let unknown = unknown(&rows, last_of_each(all.clone()));
            put(&mut rows, &unknown);
            for (name, queue, node) in [("A", "a", "n1"), ("A", "b", "n2"), ("B", "a", "n1")] {
                let state = state(&rows, name, queue, Some(node));
                prop_assert_eq!((state.paused, state.limit), live(&all, name, queue, node));
            }
        }

        /// It does not matter to a node whether it hears all or what counts in the end.
        #[test]
        fn the_last_of_each_leads_to_the_same_state(all in changes()) {
            let last = last_of_each(all.clone());
            for (name, queue, node) in [("A", "a", "n1"), ("A", "b", "n2"), ("B", "a", "n1")] {
                prop_assert_eq!(live(&last, name, queue, node), live(&all, name, queue, node));
            }
            let kinds: HashSet<_> =
                last.iter().map(|(key, change)| (key, matches!(change, Change::Limit(_)))).collect();
            prop_assert_eq!(kinds.len(), last.len(), "one of each");
            prop_assert_eq!(last_of_each(last.clone()), last);
        }

        /// What a listener reads of a signal is what is remembered of it.
        #[test]
        fn what_is_sent_is_read(key in keys(), limit in 1..9_i32, nth in 0_u32..9) {
            for action in [Action::Pause, Action::Resume, Action::Scale(limit), Action::Stop] {
                let mut payload = payload(action, &key);
                set_apart(&mut payload, nth);
                let read = read(&payload);
                let expected = action.change().filter(|_| action.knows_every_queue() || key.queue != "*");
                prop_assert_eq!(read.as_ref().map(|(_, change)| *change), expected);
                if let Some((read, _)) = read {
                    prop_assert_eq!((read.queue == key.queue, read.ident()), (true, key.ident()));
                }
            }
        }

        #[test]
        fn the_table_is_bounded(changes in changes(), most in 0_usize..6) {
            let rows = writes(&[], &changes, WallTime(0), MAX_ROWS).put;
            let made = writes(&rows, &changes, WallTime(50), most);
            let kept = rows.iter().filter(|row| !made.delete.contains(&row.key));
            let new = made.put.iter().filter(|row| !rows.iter().any(|old| old.key == row.key));
            prop_assert!(kept.count() + new.count() <= most);
            // The last signal is remembered, whatever fills the table.
            if let (Some((key, _)), true) = (changes.last(), most > 0) {
                prop_assert!(made.put.iter().any(|row| row.key == *key));
            }
        }

        #[test]
        fn signals_of_a_transaction_are_set_apart(first in 0_u32..100_000, second in 0_u32..100_000) {
            let made = |nth| {
                let mut payload = pkill_payload(1);
                set_apart(&mut payload, nth);
                payload
            };
            prop_assert_eq!(first == second, made(first) == made(second));
            let first = made(first);
            prop_assert_eq!(first.trim_end(), pkill_payload(1));
        }
    }
}
