use super::super::ids::{DatabaseOid, SchemaOid};
use super::super::times::{ClockTime, WallTime};
use super::*;
use crate::logic::gossip::memory::{GossipProcess, Processes, ProcessesHead, remembered};
use crate::logic::gossip::{
    Block, BlockUsage, EntryBatch, GossipEntry, GossipHead, Key, MAX_BLOCK_USAGES, NewEntry, Quota, Source,
    Table, View, memory::Identity,
};
use proptest::prelude::*;
use serde_json::json;

const GRACE: i64 = 5;
const TTL: i64 = 4;
const SCHEMA: u32 = 7;

/// The memory of a server.
struct Server {
    head: GossipHead,
    buckets: Vec<u32>,
    entries: Vec<GossipEntry>,
    blocks: Vec<Block>,
    block_usages: Vec<BlockUsage>,
    processes_head: ProcessesHead,
    process_buckets: Vec<u32>,
    processes: Vec<GossipProcess>,
    suspects: Vec<Suspect>,
    knows_since: i64,
    coverage: Coverage,
}

impl Server {
    fn started(now: i64) -> Self {
        Self {
            head: GossipHead::default(),
            buckets: vec![0; 16],
            entries: vec![GossipEntry::default(); 16],
            blocks: vec![Block::default(); 64],
            block_usages: vec![BlockUsage::default(); MAX_BLOCK_USAGES],
            processes_head: ProcessesHead::default(),
            process_buckets: vec![0; 4],
            processes: vec![GossipProcess::default(); 8],
            suspects: vec![Suspect::default(); 16],
            knows_since: now,
            coverage: Coverage { since: ClockTime(now), at: ClockTime(now) },
        }
    }

    fn table(&mut self) -> Table<'_> {
        Table {
            head: &mut self.head,
            buckets: &mut self.buckets,
            entries: &mut self.entries,
            blocks: &mut self.blocks,
            block_usages: &mut self.block_usages,
            processes: Processes {
                head: &mut self.processes_head,
                buckets: &mut self.process_buckets,
                processes: &mut self.processes,
            },
        }
    }

    fn key<'a>(node: &'a str, queue: &'a str) -> Key<'a> {
        Key { database: DatabaseOid(1), schema: SchemaOid(SCHEMA), name: "Oban", node, queue }
    }

    fn put(&mut self, node: &str, queue: &str, state: &serde_json::Value, now: i64, foreign: bool) {
        let (key, state) = (Self::key(node, queue), jsonb::writing::jsonb(state));
        let uuid = match jsonb::read(&state) {
            Ok(Value::Object(state)) => check::uuid(state.get("uuid").ok().flatten()),
            _ => None,
        };
        let source = if foreign { Source::Foreign } else { Source::Local(None::<Quota>) };
        let identity = Identity::of(&key, uuid);
        let expires_at = now + TTL;
        let (state, started_at) = (&*state, None);
        let new = NewEntry {
            state,
            started_at,
            updated_at: WallTime(now),
            now: ClockTime(now),
            expires_at: ClockTime(expires_at),
            source,
            identity,
        };
        self.table().put(&key, &new).expect("there is room");
    }

    fn evidence(&self, now: i64, grace: i64) -> Evidence {
        let times = Times {
            now: ClockTime(now),
            wall_ahead: 1_000_000,
            knows_since: ClockTime(self.knows_since),
            grace,
        };
        let mut evidence = Evidence::new(times, self.coverage);
        remembered(&self.processes, DatabaseOid(1), SchemaOid(SCHEMA), ClockTime(now))
            .for_each(|process| evidence.add_process(process));
        let view =
            View { entries: &self.entries, blocks: &self.blocks, touched: self.head.entries_touched() };
        let mut piece = EntryBatch::new();
        assert!(view.read(DatabaseOid(1), false, ClockTime(now), &mut piece));
        piece.take(|entry| evidence.add_entry(&entry));
        evidence
    }

    /// Returns what a call of oban_orphans says of a row.
    fn call(&mut self, row: &Job<'_>, now: i64) -> Option<(Reason, i64)> {
        self.call_with(row, now, GRACE)
    }

    fn call_with(&mut self, row: &Job<'_>, now: i64, grace: i64) -> Option<(Reason, i64)> {
        let verdict = self.evidence(now, grace).judge(row, &ClaimEvidence::default());
        let attempt = Attempt::of(DatabaseOid(1), SchemaOid(SCHEMA), row);
        let mut suspects = Suspects(&mut self.suspects);
        match verdict {
            Verdict::Orphan { reason, since } => Some((reason, since.0)),
            Verdict::NotListed { put_at, began } => suspects
                .sight(&attempt, (put_at, began), ClockTime(now), grace)
                .map(|since| (Reason::NotRunning, since.0)),
            Verdict::Listed => {
                suspects.clear(&attempt);
                None
            }
            Verdict::Fine => None,
        }
    }
}

fn job<'a>(id: i64, node: &'a str, uuid: &'a str, attempted_at: i64) -> Job<'a> {
    let attempted_at = Some(WallTime(attempted_at + 1_000_000));
    Job { id, queue: Some("q"), node: Some(node), uuid: Some(uuid.as_bytes()), attempted_at }
}

fn state(uuid: &str, running: &[i64]) -> serde_json::Value {
    json!({ "uuid": uuid, "running": running })
}

#[test]
fn silence_says_nothing_of_a_process_that_was_never_heard() {
    let mut server = Server::started(100);
    for now in 100..200 {
        server.put("a", "q", &state("other", &[]), now, false);
    }
    // The job is of an unknown process, although its node gossips.
    assert_eq!(server.call(&job(1, "a", "u", 50), 200), Some((Reason::Unknown, 100)));
    assert_eq!(server.call(&job(1, "a", "u", 150), 200), Some((Reason::Unknown, 150)));
    assert_eq!(server.call(&job(1, "a", "u", 196), 200), None, "not before the grace is over");
    let nobody = Job { node: None, uuid: None, attempted_at: None, ..job(1, "", "", 0) };
    assert_eq!(server.call(&nobody, 200), Some((Reason::Unknown, 100)));
    let no_uuid = Job { uuid: None, ..job(1, "a", "", 150) };
    assert_eq!(server.call(&no_uuid, 200), Some((Reason::Unknown, 150)), "it may be any process");
}

#[test]
fn a_process_that_ended_is_gone_after_the_grace() {
    let mut server = Server::started(0);
    server.put("a", "q", &state("u", &[1]), 10, false);
    assert!(server.table().delete(&Server::key("a", "q"), ClockTime(12)));
    assert_eq!(server.call(&job(1, "a", "u", 5), 16), None);
    assert_eq!(server.call(&job(1, "a", "u", 5), 17), Some((Reason::Gone, 12)));
    // A job that the process fetched later is a sign of life.
    assert_eq!(server.call(&job(2, "a", "u", 14), 18), None);
    assert_eq!(server.call(&job(2, "a", "u", 14), 19), Some((Reason::Gone, 14)));
    // The process puts again, because only its connection was cut.
    server.put("a", "q", &state("u", &[1, 2]), 20, false);
    assert_eq!(server.call(&job(1, "a", "u", 5), 20), None);
}

#[test]
fn a_process_in_whose_place_another_gossips_was_restarted() {
    let mut server = Server::started(0);
    server.put("a", "q", &state("u", &[1]), 10, false);
    for now in 11..20 {
        server.put("a", "q", &state("v", &[]), now, false);
    }
    assert_eq!(server.call(&job(1, "a", "u", 5), 15), None);
    assert_eq!(server.call(&job(1, "a", "u", 5), 16), Some((Reason::Restarted, 11)));
}

#[test]
fn a_lost_fetch_is_named_at_the_second_look() {
    let mut server = Server::started(0);
    let mut named = Vec::new();
    for now in 10..40 {
        server.put("a", "q", &state("u", &[1]), now, false);
        if let Some(found) = server.call(&job(2, "a", "u", 12), now) {
            named.push((now, found));
        }
        assert_eq!(server.call(&job(1, "a", "u", 5), now), None);
    }
    // The job is suspected when a put was made a grace after its attempt began. The job is named
    // when another put was made a grace later.
    assert_eq!(named[0], (22, (Reason::NotRunning, 17)));
    assert_eq!(named.len(), 18);
    // A job that is listed at a look is no suspect any more.
    server.put("a", "q", &state("u", &[1, 2]), 40, false);
    assert_eq!(server.call(&job(2, "a", "u", 12), 40), None);
    server.put("a", "q", &state("u", &[1]), 41, false);
    assert_eq!(server.call(&job(2, "a", "u", 12), 41), None);
    // The next attempt of a job is a new suspect.
    assert_eq!(server.call(&job(2, "a", "u", 36), 42), None);
}

#[test]
fn what_lists_nothing_says_nothing_of_its_jobs() {
    for state in
        [json!({"uuid": "u"}), json!({"uuid": "u", "running": 5}), json!({"uuid": "u", "running": ["7"]})]
    {
        let mut server = Server::started(0);
        for now in 10..40 {
            server.put("a", "q", &state, now, false);
            assert_eq!(server.call(&job(7, "a", "u", 5), now), None, "{state}");
            let other_queue = Job { queue: Some("other"), ..job(8, "a", "u", 5) };
            assert_eq!(server.call(&other_queue, now), None, "{state}");
        }
    }
}

#[test]
fn what_is_heard_by_notify_counts_as_far_as_it_was_listened_to() {
    let ended = |coverage: Coverage| {
        let mut server = Server::started(0);
        server.put("a", "q", &state("u", &[]), 10, true);
        server.table().expire(ClockTime(14), |_| {});
        server.coverage = coverage;
        server.call(&job(1, "a", "u", 5), 30)
    };
    assert_eq!(ended(Coverage { since: ClockTime(9), at: ClockTime(19) }), Some((Reason::Gone, 14)));
    for coverage in [
        Coverage::default(),
        Coverage { since: ClockTime(0), at: ClockTime(30) },
        Coverage { since: ClockTime(11), at: ClockTime(30) },
        Coverage { since: ClockTime(9), at: ClockTime(18) },
    ] {
        assert_eq!(ended(coverage), Some((Reason::Unknown, 5)), "{coverage:?}");
    }
    // A list that is late, or may have been shortened, does not count.
    let looks = |ids: i64, caught_up: bool| {
        let (mut server, running) = (Server::started(0), (100..100 + ids).collect::<Vec<_>>());
        let mut named = None;
        for now in 1..40 {
            server.put("a", "q", &state("u", &running), now, true);
            server.coverage.at = if caught_up { ClockTime(now) } else { ClockTime(5) };
            named = named.or(server.call(&job(1, "a", "u", 5), now));
        }
        named
    };
    assert_eq!(looks(10, true), Some((Reason::NotRunning, 10)));
    assert_eq!((looks(10, false), looks(600, true)), (None, None));
}

#[test]
fn a_schema_does_not_take_the_suspects_of_others() {
    let mut all = vec![Suspect::default(); 16];
    let attempt = |schema: SchemaOid, id: i64| Attempt { database: DatabaseOid(1), schema, id, attempt: 0 };
    let mut suspects = Suspects(&mut all);
    for id in 0..1_000 {
        assert_eq!(
            suspects.sight(&attempt(SchemaOid(1), id), (ClockTime(10), ClockTime(0)), ClockTime(10), GRACE),
            None
        );
    }
    assert_eq!(
        suspects.sight(&attempt(SchemaOid(2), 5), (ClockTime(10), ClockTime(0)), ClockTime(10), GRACE),
        None
    );
    // Of too many suspects some are named. When those are over, others are.
    let found = |suspects: &mut Suspects<'_>, now: i64| -> Vec<i64> {
        let sight = |id: &i64| {
            suspects
                .sight(&attempt(SchemaOid(1), *id), (ClockTime(now), ClockTime(0)), ClockTime(now), GRACE)
                .is_some()
        };
        (0..1_000).filter(sight).collect()
    };
    let first = found(&mut suspects, 15);
    assert_eq!((first.len(), found(&mut suspects, 20)), (8, first.clone()));
    assert_eq!(
        suspects.sight(&attempt(SchemaOid(2), 5), (ClockTime(15), ClockTime(0)), ClockTime(15), GRACE),
        Some(ClockTime(10))
    );
    assert!(suspects.any(DatabaseOid(1), SchemaOid(2)) && !suspects.any(DatabaseOid(2), SchemaOid(2)));
    suspects.clear(&attempt(SchemaOid(2), 5));
    assert!(!suspects.any(DatabaseOid(1), SchemaOid(2)));
    let later = 30 + STALE;
    let others = |id: &i64| !first.contains(id);
    for id in (0..1_000).filter(others) {
        suspects.sight(&attempt(SchemaOid(1), id), (ClockTime(later), ClockTime(0)), ClockTime(later), GRACE);
    }
    let second = found(&mut suspects, later + GRACE);
    assert!(second.len() == 8 && second.iter().all(others), "{second:?}");
}

/// A process that keeps to the conditions of the rules.
#[derive(Clone, Debug)]
struct Node {
    name: usize,
    uuid: usize,
    foreign: bool,
    lists: bool,
    dies_at: i64,
    /// Whether the process is cut off at each time. A silence is never as long as the grace.
    cut: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Run {
    process: usize,
    begins: i64,
    /// When the process learns that it has the job. `None`: it never does.
    heard: Option<i64>,
    ends: i64,
    completed: i64,
}

#[derive(Clone, Debug)]
enum Trouble {
    /// The server restarts, with nothing in its memory.
    Restart,
    /// The relay does not run for this long.
    Deaf(i64),
    /// The relay is stopped for this long. Messages wait, and are then ingested a few at a time.
    Stopped(i64),
    /// Other processes come and go, more of them than there is memory for.
    Crowd,
    Nothing,
}

const LAST: i64 = 120;

fn node() -> impl Strategy<Value = Node> {
    let cut = prop::collection::vec(prop::bool::weighted(0.3), LAST as usize + 1);
    (0usize..2, 0usize..3, any::<bool>(), prop::bool::weighted(0.8), 10..LAST + 40, cut).prop_map(
        |(name, uuid, foreign, lists, dies_at, mut cut)| {
            // A silence is shorter than the grace.
            for at in 0..cut.len() {
                if at >= GRACE as usize - 2 && cut[at + 2 - GRACE as usize..at].iter().all(|cut| *cut) {
                    cut[at] = false;
                }
            }
            Node { name, uuid, foreign, lists, dies_at, cut }
        },
    )
}

fn run() -> impl Strategy<Value = Run> {
    let late = prop::option::weighted(0.8, 0..=GRACE);
    (0usize..4, 0..LAST, late, 0i64..60, 0..GRACE).prop_map(|(process, begins, late, takes, ack)| {
        let heard = late.map(|late| begins + late);
        let ends = heard.unwrap_or(begins) + takes;
        Run { process, begins, heard, ends, completed: ends + ack }
    })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        60 => Just(Trouble::Nothing),
        1 => Just(Trouble::Restart),
        1 => (1i64..30).prop_map(Trouble::Deaf),
        1 => (1i64..30).prop_map(Trouble::Stopped),
        1 => Just(Trouble::Crowd),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// No job that a live process runs is named. A lost job is named, where the rules say so.
    #[test]
    fn no_live_job_is_named(
        nodes in prop::collection::vec(node(), 4),
        runs in prop::collection::vec(run(), 0..12),
        troubles in prop::collection::vec(trouble(), LAST as usize + 1),
        asked in prop::collection::vec(prop::option::weighted(0.8, any::<bool>()), LAST as usize + 1),
    ) {
        // Two processes with the same node and uuid would be one.
        let mut nodes = nodes;
        for (i, node) in nodes.iter_mut().enumerate() {
            node.uuid += 10 * i;
        }
        let mut server = Server::started(1);
        let (mut deaf_until, mut stopped_until) = (0, 0);
        let mut sent = std::collections::VecDeque::new();
        for now in 1..=LAST {
            match troubles[now as usize] {
                Trouble::Restart => {
                    server = Server::started(now);
                    sent.clear();
                }
                Trouble::Deaf(long) => deaf_until = deaf_until.max(now + long),
                Trouble::Stopped(long) => stopped_until = stopped_until.max(now + long),
                Trouble::Crowd => for n in 0..40 {
                    server.put("crowd", "q", &state(&n.to_string(), &[]), now, n % 2 == 0);
                },
                Trouble::Nothing => {}
            }
            server.table().expire(ClockTime(now), |_| {});
            for (i, node) in nodes.iter().enumerate() {
                if node.cut[now as usize] || now >= node.dies_at {
                    continue;
                }
                let lists = |run: &Run| {
                    run.process == i && run.heard.is_some_and(|heard| heard <= now) && now < run.ends
                };
                let ids = (0..).zip(&runs).filter(|(_, run)| lists(run)).map(|(id, _)| id);
                let ids: Vec<i64> = ids.collect();
                let uuid = node.uuid.to_string();
                let state = if node.lists { state(&uuid, &ids) } else { json!({ "uuid": uuid }) };
                match node.foreign {
                    true => sent.push_back((node.name.to_string(), state)),
                    false => server.put(&node.name.to_string(), "q", &state, now, false),
                }
            }
            if now < deaf_until {
                sent.clear();
                server.coverage.since = ClockTime(now + 1);
            } else if now >= stopped_until {
                for (name, state) in sent.drain(..sent.len().min(6)) {
                    server.put(&name, "q", &state, now, true);
                }
                if sent.is_empty() {
                    server.coverage.at = ClockTime(now);
                }
            }
            let Some(hasty) = asked[now as usize] else { continue };
            for (id, run) in runs.iter().enumerate() {
                let node = &nodes[run.process];
                let done = run.heard.is_some() && run.completed <= now && run.completed <= node.dies_at;
                // A process fetches while it lives.
                if now < run.begins || run.begins >= node.dies_at || done {
                    continue;
                }
                let (name, uuid) = (node.name.to_string(), node.uuid.to_string());
                let row = job(id as i64, &name, &uuid, run.begins);
                // Some calls have a grace that is too short. Their result may be wrong, but other
                // calls stay right.
                if hasty {
                    server.call_with(&row, now, 1);
                    continue;
                }
                let found = server.call(&row, now);
                if let Some((reason, since)) = found {
                    let due = since >= run.begins && since + GRACE <= now;
                    prop_assert!(due, "{:?} since {} at {}", reason, since, now);
                    let lives = now < node.dies_at && run.heard.is_some();
                    prop_assert!(reason == Reason::Unknown || !lives, "{:?} of {:?} at {}", reason, run, now);
                    if reason == Reason::NotRunning {
                        prop_assert!(node.lists && run.heard.is_none());
                    }
                }
            }
        }
    }
}
