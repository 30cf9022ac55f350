//! Does every call with hostile arguments end as announced, of each function, procedure and view that the
//! catalogs list?
//!
//! Several roles call at once, in every kind of transaction. Calls are cancelled and sessions terminated.
//! Names shadow Postgres' own. Meanwhile other sessions rename, replace and drop the schemas and tables that
//! the calls are about.
//!
//! The test prints a seed, from which the statements of each session follow. OBANRS_HOSTILE_SEED sets it.
//!
//! This file has the outcomes that are right, and runs and judges the sessions. Its modules have what they
//! do. (`every_sql_error_has_a_test` in tests/structure.rs leaves out a file of this name: its SQLSTATEs
//! prove nothing.)

#[path = "hostile/arguments.rs"]
mod arguments;
#[path = "hostile/ddl.rs"]
mod ddl;
#[path = "hostile/sessions.rs"]
mod sessions;
#[path = "hostile/setup.rs"]
mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fallible_iterator::FallibleIterator;
use postgres::Client;
use sessions::Session;
use setup::{SHADOWED_CODE, prepare};

use super::errors::{Function, functions_like};
use super::memory::Watch;
use crate::support::comments::announced;
use crate::support::{Ask, Cluster, wait_until};

const SETTINGS: [&str; 14] = [
    "shared_preload_libraries = 'obanrs'",
    // These are small, so that they are full at times.
    "obanrs.max_members = 16",
    "obanrs.gossip_memory = 64kB",
    "obanrs.ring_size = 64kB",
    "obanrs.max_transaction_messages = 300",
    "obanrs.gossip_interval = 50ms",
    "obanrs.lease = 1s",
    // A crash ends the server, and with it the test.
    "restart_after_crash = off",
    "statement_timeout = 2s",
    "lock_timeout = 500ms",
    "deadlock_timeout = 50ms",
    "log_line_prefix = '%m [%p] %b %e '",
    "log_min_error_statement = panic",
    "log_error_verbosity = terse",
];

/// The SQLSTATEs that functions raise, each with its reason. The comment on a function announces which of
/// them it may raise. A statement on a view or sequence may end with any of them.
const ANNOUNCED: [(&str, &str); 16] = [
    ("22004", "a null argument"),
    ("22023", "a bad argument"),
    ("23505", "the node has joined already, or another session has created a type"),
    ("25001", "oban_wait or oban_take in a transaction block"),
    ("25006", "a read-only transaction"),
    ("3F000", "no such prefix, or the extension's schema is dropped"),
    ("40001", "the term is not held, the prefix changed meanwhile, or Postgres could not serialize"),
    ("42501", "not allowed"),
    ("42809", "a view or foreign table to watch; Postgres' own for a row of a sequence"),
    ("42939", "a schema of Postgres' own"),
    ("53400", "a bounded table is full"),
    ("54000", "a payload or transaction too large, or chr(0)"),
    ("55000", "no member, no elections, or no extension"),
    ("55P03", "a lock was not had in time"),
    ("0A000", "PREPARE TRANSACTION after oban_notify, staging; Postgres' own for FOR UPDATE of some views"),
    ("42P07", "a relation that was created after oban_install has looked for its name"),
];

/// Those of them that Postgres itself raises in a call of any function, with the beginning of the message.
const OWN_MESSAGES: [(&str, &str, &str); 4] = [
    ("54000", "null character not permitted", "chr(0) in an argument"),
    ("3F000", "schema \"ext\" does not exist", "the extension's schema is dropped"),
    ("40001", "could not serialize access", "in a SERIALIZABLE transaction"),
    ("55P03", "canceling statement due to lock timeout", "lock_timeout is short here"),
];

/// Postgres' own SQLSTATEs, with which any call may end, each with its reason.
const EXPECTED: [(&str, &str); 20] = [
    ("57014", "cancelled, or timed out"),
    ("57P01", "terminated"),
    ("25P02", "in a transaction that has failed"),
    ("40P01", "a deadlock with DDL beside"),
    ("42883", "the extension is dropped: no such function"),
    ("42P01", "the extension is dropped: no such view"),
    ("26000", "a prepared statement that DISCARD ALL or an error took away"),
    ("34000", "a cursor that an error or a rollback took away"),
    ("25P01", "DECLARE after a BEGIN that was cancelled"),
    ("42P05", "a prepared statement that was to be deallocated, in vain"),
    ("42P03", "a cursor that was to be closed, in vain"),
    ("42704", "a function of a prepared statement that was dropped with the extension"),
    ("22P02", "no such value of the type"),
    ("22P05", "no such character in jsonb"),
    ("22003", "a number out of range"),
    ("22007", "no interval (infinity, before 17)"),
    ("22008", "an interval out of range"),
    ("22021", "no valid UTF-8"),
    ("42804", "a function of a trigger in FROM"),
    ("39P01", "a function of a trigger elsewhere"),
];

/// The messages of XX000 that Postgres itself raises when DDL races with DDL, in statements that call nothing
/// of the extension.
const OWN_RACES: [&str; 5] = [
    "tuple concurrently",
    "cache lookup failed for",
    "could not open relation with OID",
    "could not find tuple for",
    "relation with OID",
];

/// Messages of the same kind in a call whose function or view was dropped with the extension after the
/// statement was parsed.
const DROPPED_UNDER_WAY: [&str; 2] = ["cache lookup failed for function", "could not open relation with OID"];

/// Lines of the server's log that tell of a crash, a leak, or a panic.
const FATEFUL: [&str; 9] = [
    "terminated by signal",
    "PANIC:",
    "refcount leak",
    "reference leak",
    "was not closed",
    "TRAP:",
    "problem in alloc set",
    "you don't own a lock",
    "panicked",
];

/// The state that all sessions share.
struct World {
    cluster: Cluster,
    functions: Vec<Function>,
    relations: Vec<String>,
    stop: AtomicBool,
    calls: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    /// The key is whether it was a call, and the SQLSTATE. The value is how many there were, and by object an
    /// example.
    codes: BTreeMap<(bool, String), (u64, BTreeMap<String, String>)>,
    succeeded: BTreeSet<String>,
    called: BTreeSet<String>,
    slowest: (Duration, String),
    lost: u64,
    /// The outcomes that are not right.
    wrong: BTreeSet<String>,
}

/// Ends the sessions when it is dropped, also when the test fails.
struct Stop(Arc<World>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether a call of an object, or a statement without an object, may end with this code and message.
fn is_right(object: Option<&str>, code: &str, message: &str) -> bool {
    let is_listed = |list: &[(&str, &str)]| list.iter().any(|(listed, _)| *listed == code);
    let is_own = || OWN_MESSAGES.iter().any(|(of, begins, _)| *of == code && message.starts_with(begins));
    let is_announced = || match object.and_then(announced) {
        Some(codes) => codes.contains(code) || is_own(),
        None => is_listed(&ANNOUNCED),
    };
    let was_dropped = || DROPPED_UNDER_WAY.iter().any(|dropped| message.starts_with(dropped));
    match object.is_some() {
        _ if code == "00000" => true,
        true => is_listed(&EXPECTED) || is_announced() || was_dropped(),
        // DDL of other sessions may end with any other code.
        false if code.starts_with("XX") => OWN_RACES.iter().any(|race| message.contains(race)),
        false => code != SHADOWED_CODE,
    }
}

impl World {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, object: Option<&str>, code: &str, example: &str, took: Duration) {
        let shown: String = example.chars().take(700).collect();
        let mut tally = self.tally.lock().expect("no session panicked");
        if !is_right(object, code, example) && tally.wrong.len() < 100 {
            tally.wrong.insert(format!("{code} {}: {shown}", object.unwrap_or_default()));
        }
        if took > tally.slowest.0 {
            tally.slowest = (took, shown.clone());
        }
        let (count, of) = tally.codes.entry((object.is_some(), code.to_owned())).or_default();
        *count += 1;
        of.entry(object.unwrap_or_default().to_owned()).or_insert(shown);
        if let Some(object) = object {
            self.calls.fetch_add(1, Ordering::Relaxed);
            tally.called.insert(object.to_owned());
            if code == "00000" {
                tally.succeeded.insert(object.to_owned());
            }
        }
    }
}

enum Until {
    Calls(u64),
    Seconds(u64),
}

fn relations(client: &mut Client) -> Vec<String> {
    let sql = "SELECT c.relname::text FROM pg_depend d
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs'
        JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        WHERE d.deptype = 'e' ORDER BY 1";
    client.query(sql, &[]).expect("the catalogs can be read").iter().map(|row| row.get(0)).collect()
}

fn run(until: &Until, rarely: u64) {
    let seed = std::env::var("OBANRS_HOSTILE_SEED").map(|s| s.parse().expect("a number"));
    let seed: u64 = seed.unwrap_or_else(|_| match until {
        Until::Calls(_) => 1,
        Until::Seconds(_) => SystemTime::UNIX_EPOCH.elapsed().expect("it is later").as_secs(),
    });
    eprintln!("OBANRS_HOSTILE_SEED={seed}");
    let cluster = Cluster::start(&SETTINGS);
    let mut client = cluster.client();
    prepare(&mut client);
    let mut functions = functions_like(&mut client, "%");
    functions.iter_mut().for_each(|f| f.name = format!("ext.{}", f.name));
    let relations = relations(&mut client);
    assert!(relations.len() > 4, "{relations:?}");
    let mut watch = Watch::begin(&cluster);
    watch.client.batch_execute("SET application_name = 'watch'; SET statement_timeout = 0").unwrap();
    let world = Arc::new(World {
        cluster,
        functions,
        relations,
        stop: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        tally: Mutex::default(),
    });
    let stop = Stop(world.clone());
    let spawn = |nth: u64, work: fn(&mut Session, u64)| {
        let world = world.clone();
        std::thread::spawn(move || work(&mut Session::new(&world, seed.wrapping_mul(100) + nth), rarely))
    };
    let mut threads = Vec::new();
    for nth in 0..6 {
        threads.push(spawn(nth, |session, _| session.work()));
    }
    // Racing sessions may bring an outcome that no run has met yet. So only a soak has them.
    if matches!(until, Until::Seconds(_)) {
        threads.push(spawn(10, |session, _| session.alter(&["owner"])));
        threads.push(spawn(11, |session, _| session.alter(&["postgres", "owner"])));
        threads.push(spawn(12, |session, rarely| session.sabotage(rarely)));
    }

    let since = Instant::now();
    let on = || match until {
        Until::Calls(calls) => world.calls.load(Ordering::Relaxed) < *calls,
        Until::Seconds(seconds) => since.elapsed() < Duration::from_secs(*seconds),
    };
    while on() {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(watch.client.query_one("SELECT 1", &[]).expect("the server lives").get::<_, i32>(0), 1);
        let ended = threads.iter().any(|t| t.is_finished());
        assert!(!ended, "a session panicked");
    }
    drop(stop);
    threads.into_iter().for_each(|t| t.join().expect("no session panicked"));
    let took = since.elapsed();

    let tally = world.tally.lock().expect("no session panicked");
    report(&tally, took);
    watch.nothing_has_ended(&world.cluster, "hostile use");
    let log = world.cluster.log();
    let fateful: Vec<&str> = log.lines().filter(|line| FATEFUL.iter().any(|f| line.contains(f))).collect();
    assert!(fateful.is_empty(), "in the log: {fateful:#?}");
    let of_workers: BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.split_once("] obanrs ").map(|(_, what)| what))
        .filter(|what| what.contains(" XX"))
        .collect();
    assert!(of_workers.is_empty(), "workers: {of_workers:#?}");
    judge(&tally, &world);
    drop(tally);
    all_is_well(&world.cluster, &mut watch);
}

fn report(tally: &Tally, took: Duration) {
    for calls in [true, false] {
        let of: Vec<_> = tally.codes.iter().filter(|((call, _), _)| *call == calls).collect();
        let all: u64 = of.iter().map(|(_, (count, _))| count).sum();
        eprintln!("{all} {} in {took:.0?}", if calls { "calls" } else { "statements beside" });
        for ((_, code), (count, of)) in of {
            let objects: Vec<&str> = of.keys().map(String::as_str).collect();
            eprintln!("  {code} {count:>8}  {}", objects.join(" "));
        }
    }
    eprintln!(
        "{} connections were lost; the slowest took {:.1?}: {}",
        tally.lost, tally.slowest.0, tally.slowest.1
    );
    if std::env::var_os("OBANRS_HOSTILE_EXAMPLES").is_some() {
        for ((_, code), (_, of)) in &tally.codes {
            of.iter().for_each(|(object, example)| eprintln!("{code} {object}: {example}"));
        }
    }
}

fn judge(tally: &Tally, world: &World) {
    assert!(tally.wrong.is_empty(), "wrong outcomes: {:#?}", tally.wrong);
    let all: BTreeSet<String> = world
        .functions
        .iter()
        .map(|f| f.name.trim_start_matches("ext.").to_owned())
        .chain(world.relations.iter().cloned())
        .collect();
    assert_eq!(all, tally.called, "each was called");
    let failed: Vec<_> = all.difference(&tally.succeeded).collect();
    assert!(failed.iter().all(|f| TRIGGERS.contains(&f.as_str())), "none succeeded: {failed:?}");
    assert!(tally.slowest.0 < Duration::from_secs(20), "{:?}", tally.slowest);
}

const TRIGGERS: [&str; 3] = ["obanrs_jobs_insert", "obanrs_peers", "obanrs_watched"];

/// Asserts that a member of a new prefix leads soon after all of it.
fn all_is_well(cluster: &Cluster, watch: &mut Watch) {
    let client = &mut watch.client;
    let idle = "SELECT count(*) = 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE a.backend_type LIKE 'obanrs%' AND l.locktype <> 'virtualxid'";
    let run = "SELECT count(*) = 3 FROM ext.oban_workers w JOIN pg_stat_activity a USING (pid)
        WHERE w.state = 'running' AND (w.kind IN ('keeper', 'relay') AND w.database = 'postgres' OR w.kind = 'coordinator')";
    wait_until("the workers run", || client.one(run));
    client.batch_execute("SELECT ext.oban_leave(member) FROM ext.oban_members").unwrap();
    client.batch_execute("SELECT ext.oban_install('afterwards')").unwrap();
    let mut member = cluster.client();
    let since = Instant::now();
    member.batch_execute("SELECT ext.oban_join('new', prefix => 'afterwards')").unwrap();
    wait_until("it leads", || member.one("SELECT ext.oban_is_leader(prefix => 'afterwards')"));
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "it led after {took:?}");
    member.batch_execute("SELECT ext.oban_listen_channels(prefix => 'afterwards')").unwrap();
    client.batch_execute("INSERT INTO afterwards.oban_jobs (worker) VALUES ('w')").unwrap();
    let mut notifications = member.notifications();
    let mut iter = notifications.timeout_iter(Duration::from_secs(10));
    wait_until("it hears of the job", || {
        iter.next().expect("the connection is open").is_some_and(|n| n.channel() == "afterwards.oban_insert")
    });
    wait_until("the workers hold no locks", || client.one(idle));
}

/// A few thousand calls without racing sessions.
#[test]
fn hostile_calls_end_with_what_was_announced() {
    run(&Until::Calls(8_000), 150);
}

#[test]
#[ignore = "an hour: make soak"]
fn soak_hostile_calls() {
    let seconds = std::env::var("OBANRS_SOAK_SECONDS").map_or(3_600, |s| s.parse().expect("a number"));
    run(&Until::Seconds(seconds), 400);
}
