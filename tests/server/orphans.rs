//! Jobs that nobody runs any more: they are found, and no job that a live process runs is ever taken for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postgres::Client;

use crate::readme;
use crate::support::{Ask, Cluster, code, heard, stat, wait_for, wait_until};

/// Long enough for what is cut off to come back on a busy machine.
const GRACE: &str = "3s";

/// A process that says every 100 ms what it runs, on connections of its own that may be cut at any time.
struct Process {
    node: String,
    uuid: String,
    running: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By oban_gossip_put, as a member that is bound to its session.
    Member,
    Put,
    /// As Oban's own nodes do.
    Notify,
}

impl Process {
    fn start(cluster: &Arc<Cluster>, node: &str, uuid: &str, running: &str, way: Way) -> Self {
        let (stop, running) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(running.to_owned())));
        let thread = {
            let (cluster, node, uuid) = (cluster.clone(), node.to_owned(), uuid.to_owned());
            let (stop, running) = (stop.clone(), running.clone());
            thread::spawn(move || {
                let mut client = None;
                while !stop.load(Ordering::Relaxed) {
                    client = client.or_else(|| connected(&cluster, &node, way));
                    let state = running.lock().unwrap().clone();
                    if client.as_mut().is_some_and(|c| !say(c, &node, &uuid, &state, way)) {
                        client = None;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            })
        };
        let (node, uuid) = (node.to_owned(), uuid.to_owned());
        Self { node, uuid, running, stop, thread: Some(thread) }
    }

    fn runs(&self, running: &str) {
        *self.running.lock().unwrap() = running.to_owned();
    }

    /// Has it fetch a job, some time ago.
    fn fetches(&self, client: &mut Client, job: i64, ago: &str) {
        fetch(client, job, &self.node, &self.uuid, ago);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|e| e.is_ok()));
    }
}

fn connected(cluster: &Cluster, node: &str, way: Way) -> Option<Client> {
    let mut client = cluster.try_client("postgres", "postgres").ok()?;
    let name = format!("SET application_name = '{node}'");
    client.batch_execute(&name).ok()?;
    if way == Way::Member {
        client.query_one("SELECT oban_join($1, replace => true)", &[&node]).ok()?;
    }
    Some(client)
}

fn say(client: &mut Client, node: &str, uuid: &str, running: &str, way: Way) -> bool {
    let state = format!(r#"{{"uuid":"{uuid}","limit":10,"running":{running}}}"#);
    let check = format!(
        r#"{{"checks":[{{"name":"Oban","node":"{node}","queue":"default","uuid":"{uuid}","limit":10,"running":{running}}}]}}"#
    );
    let said = match way {
        Way::Notify => client.execute("SELECT pg_notify('public.oban_gossip', $1)", &[&check]),
        _ => client
            .execute("SELECT oban_gossip_put($1, 'default', $2::text::jsonb, ttl => '1s')", &[&node, &state]),
    };
    said.is_ok()
}

fn fetch(client: &mut Client, job: i64, node: &str, uuid: &str, ago: &str) {
    let sql = format!(
        "UPDATE oban_jobs SET state = 'executing', attempt = attempt + 1, attempted_by = ARRAY[$2, $3],
             attempted_at = timezone('UTC', clock_timestamp() - interval '{ago}') WHERE id = $1"
    );
    assert_eq!(client.execute(&sql, &[&job, &node, &uuid]).unwrap(), 1);
}

/// With ten jobs, 1 to 10.
fn server(settings: &[&str]) -> (Arc<Cluster>, Client) {
    let settings = [&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_ttl = 1s"], settings].concat();
    let cluster = Cluster::start(&settings);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    client.batch_execute("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 10)").unwrap();
    (Arc::new(cluster), client)
}

/// What oban_orphans says: "1 gone, 2 unknown". Each was so for the grace.
fn orphans(client: &mut Client) -> String {
    orphans_after(client, GRACE)
}

fn orphans_after(client: &mut Client, grace: &str) -> String {
    let sql = format!(
        "SELECT coalesce(string_agg(o.id || ' ' || o.reason, ', ' ORDER BY o.id), ''),
                coalesce(bool_and(o.since <= clock_timestamp() - interval '{grace}'
                                  AND timezone('UTC', o.since) >= coalesce(j.attempted_at, '-infinity')), true),
                coalesce(bool_and(o.queue = j.queue AND o.worker = j.worker
                                  AND o.node IS NOT DISTINCT FROM j.attempted_by[1]), true)
         FROM oban_orphans(grace => '{grace}') o JOIN oban_jobs j USING (id)"
    );
    let row = client.query_one(&sql, &[]).unwrap();
    assert!(row.get::<_, bool>(1) && row.get::<_, bool>(2), "{}", row.get::<_, &str>(0));
    row.get(0)
}

/// The rescue that the page on who is alive teaches, after a grace: the jobs that it took.
fn rescue(client: &mut Client, grace: &str) -> Vec<i64> {
    let taught = readme::blocks_with("WITH rescued");
    assert_eq!(taught.len(), 1);
    let sql = taught[0].replace("oban_orphans()", &format!("oban_orphans(grace => '{grace}')"));
    assert_ne!(sql, taught[0]);
    let executing = "SELECT coalesce(array_agg(id), '{}') FROM oban_jobs WHERE state = 'executing'";
    let before: Vec<i64> = client.one(executing);
    client.batch_execute(&sql).unwrap();
    let after: Vec<i64> = client.one(executing);
    before.into_iter().filter(|id| !after.contains(id)).collect()
}

/// A session that leads, as the one that rescues does.
fn leader(cluster: &Cluster) -> Client {
    let mut leader = cluster.client();
    leader.batch_execute("SELECT oban_join('leader')").unwrap();
    wait_until("it leads", || leader.one("SELECT oban_is_leader()"));
    leader
}

/// Waits until the relay has heard a message on the gossip channel.
fn wait_until_heard(client: &mut Client) {
    let before = stat(client, "gossip_taken_in");
    wait_until("the relay listens", || {
        let check = r#"{"name":"Oban","node":"probe","queue":"q","running":[]}"#;
        client.execute("SELECT pg_notify('public.oban_gossip', $1)", &[&check]).unwrap();
        stat(client, "gossip_taken_in") > before
    });
}

#[test]
fn after_a_restart_nobody_is_known_and_nobody_is_taken() {
    let (cluster, mut client) = server(&[]);
    let alive = Process::start(&cluster, "alive", "u1", "[1]", Way::Member);
    let gone = Process::start(&cluster, "gone", "u2", "[2]", Way::Member);
    alive.fetches(&mut client, 1, "10 minutes");
    gone.fetches(&mut client, 2, "10 minutes");
    fetch(&mut client, 3, "elixir@host", "u3", "10 minutes");
    let nodes = "SELECT count(*) FROM oban_gossip";
    wait_until("both gossip", || client.one::<i64>(nodes) == 2);
    drop(gone);
    drop(alive);
    cluster.restart();
    let mut client = cluster.client();
    let mut leader = leader(&cluster);
    wait_until("all are listed", || orphans(&mut client) == "1 unknown, 2 unknown, 3 unknown");
    assert!(rescue(&mut leader, GRACE).is_empty());
    // What is heard again is known.
    let alive = Process::start(&cluster, "alive", "u1", "[1]", Way::Member);
    wait_until("it is heard", || orphans(&mut client) == "2 unknown, 3 unknown");
    assert!(rescue(&mut leader, GRACE).is_empty());
    drop(alive);
    wait_until("it is gone", || orphans(&mut client) == "1 gone, 2 unknown, 3 unknown");
    assert_eq!(rescue(&mut leader, GRACE), [1]);
}

#[test]
fn a_cut_connection_is_no_death() {
    let (cluster, mut client) = server(&[]);
    let mut leader = leader(&cluster);
    let alive = Process::start(&cluster, "alive", "u1", "[1]", Way::Member);
    let dead = Process::start(&cluster, "dead", "u2", "[2]", Way::Member);
    alive.fetches(&mut client, 1, "10 minutes");
    dead.fetches(&mut client, 2, "10 minutes");
    wait_until("both gossip", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 2);
    let cut =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'alive'";
    for _ in 0..3 {
        let pid = "SELECT pid FROM oban_members WHERE node = 'alive'";
        let before: Option<i32> = client.query_opt(pid, &[]).unwrap().map(|row| row.get(0));
        assert_eq!(client.one::<i64>(cut), 1);
        assert_eq!(orphans(&mut client), "");
        assert!(rescue(&mut leader, GRACE).is_empty());
        wait_until("it has another connection", || {
            let now: Option<i32> = client.query_opt(pid, &[]).unwrap().map(|row| row.get(0));
            now.is_some() && now != before
        });
    }
    drop(dead);
    client
        .batch_execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'alive'",
        )
        .unwrap();
    // As long after the end of both as it takes to find the dead one.
    wait_until("the other is found", || {
        let found = orphans(&mut client);
        assert!(["", "2 gone"].contains(&&*found), "{found}");
        found == "2 gone"
    });
    client.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    assert_eq!(rescue(&mut leader, GRACE), [2]);
    assert_eq!(client.one::<String>("SELECT state::text FROM oban_jobs WHERE id = 2"), "available");
    wait_until("its queue is told", || {
        heard(&mut client).iter().any(|n| n.payload() == r#"{"queue":"default"}"#)
    });
    drop(alive);
}

#[test]
fn a_fetch_whose_answer_was_lost_is_found() {
    for way in [Way::Put, Way::Notify] {
        let (cluster, mut client) = server(&[]);
        let mut leader = leader(&cluster);
        if way == Way::Notify {
            wait_until_heard(&mut client);
        }
        let process = Process::start(&cluster, "a", "u1", "[1, \"2\"]", way);
        let silent = Process::start(&cluster, "b", "u2", "[]", Way::Put);
        for job in 1..=3 {
            process.fetches(&mut client, job, "10 minutes");
        }
        fetch(&mut client, 4, "a", "u1", "0s"); // just now
        silent.fetches(&mut client, 5, "0s");
        client.batch_execute("UPDATE oban_jobs SET queue = 'other' WHERE id = 5").unwrap();
        let mut seen = false;
        wait_until("it is found", || {
            let found = orphans_after(&mut client, "1s");
            assert!(
                ["", "3 not running", "3 not running, 4 not running"].contains(&&*found),
                "jobs 1 and 2 are listed, 5 is of a queue of which nothing is known: {found}"
            );
            seen |= found == "3 not running";
            found.contains("4 not")
        });
        assert!(seen, "the younger is found later");
        let mut rescued = Vec::new();
        wait_until("all are rescued", || {
            rescued.extend(rescue(&mut leader, "1s"));
            rescued.len() == 2
        });
        assert_eq!(rescued, [3, 4]);
        // The next attempt is none of the last one's.
        process.runs("[1, 2, 3]");
        process.fetches(&mut client, 3, "0s");
        assert_eq!(orphans_after(&mut client, "1s"), "");
        assert!(rescue(&mut leader, "1s").is_empty());
    }
}

/// A job that ends is no orphan in a transaction that began before it ended.
#[test]
fn an_old_snapshot_sees_no_orphans() {
    let (cluster, mut client) = server(&[]);
    let process = Process::start(&cluster, "a", "u1", "[1]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE running = 1") == 1);
    let mut old = cluster.client();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM oban_jobs").unwrap();
    process.fetches(&mut client, 2, "10 minutes");
    client.batch_execute("UPDATE oban_jobs SET state = 'completed' WHERE id = 1").unwrap();
    process.runs("[]");
    let executing = "SELECT array_agg(id ORDER BY id) FROM oban_jobs WHERE state = 'executing'";
    let found = |c: &mut Client| -> Vec<i64> {
        c.one("SELECT coalesce(array_agg(id), '{}') FROM oban_orphans(grace => '1s')")
    };
    wait_until("what it lost is found", || found(&mut old) == [2]);
    assert_eq!(old.one::<Vec<i64>>(executing), [1], "by the transaction's own snapshot");
    // What this transaction has done it sees.
    client.batch_execute("BEGIN; UPDATE oban_jobs SET state = 'available' WHERE id = 2").unwrap();
    assert!(found(&mut client).is_empty());
    client.batch_execute("ROLLBACK").unwrap();
    drop(process);
}

#[test]
fn a_node_that_was_started_anew_has_another_uuid() {
    let (cluster, mut client) = server(&[]);
    let mut leader = leader(&cluster);
    let first = Process::start(&cluster, "a", "u1", "[1]", Way::Put);
    client.batch_execute("UPDATE oban_jobs SET attempt = max_attempts - 1 WHERE id = 1").unwrap();
    first.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE uuid = 'u1'") == 1);
    drop(first);
    let second = Process::start(&cluster, "a", "u2", "[2]", Way::Put);
    second.fetches(&mut client, 2, "10 minutes");
    // Of a process that was never heard, although the node gossips.
    fetch(&mut client, 3, "a", "u0", "10 minutes");
    wait_until("it is found", || {
        let found = orphans(&mut client);
        assert!(["", "3 unknown", "1 restarted", "1 restarted, 3 unknown"].contains(&&*found), "{found}");
        found.starts_with('1')
    });
    assert_eq!(rescue(&mut leader, GRACE), [1]);
    let spent = "SELECT state = 'discarded' AND discarded_at IS NOT NULL FROM oban_jobs WHERE id = 1";
    assert!(client.one::<bool>(spent), "that was its last attempt");
    drop(second);
}

/// While a rescue waits for a row, others may rescue the job, and fetch it anew.
#[test]
fn a_rescue_takes_no_attempt_that_began_since() {
    let (cluster, mut client) = server(&[]);
    let process = Process::start(&cluster, "a", "u1", "[1, 2]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    process.fetches(&mut client, 2, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 1);
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 gone, 2 gone");
    client.batch_execute("BEGIN").unwrap();
    fetch(&mut client, 1, "a", "u9", "0s");
    let mut leader = leader(&cluster);
    let pid: i32 = leader.one("SELECT pg_backend_pid()");
    let rescuer = thread::spawn(move || rescue(&mut leader, GRACE));
    let mut other = cluster.client();
    let waits = format!("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("it waits", || other.one::<Option<bool>>(&waits) == Some(true));
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(rescuer.join().unwrap(), [2]);
    assert_eq!(client.one::<String>("SELECT attempted_by[2] FROM oban_jobs WHERE id = 1"), "u9");
}

/// Nodes of Oban without metrics never gossip. README's rescue, again and again, leaves them their jobs; a process
/// that did gossip and is gone shows that it works.
fn nodes_without_gossip_keep_their_jobs(at_least: Duration) {
    let (cluster, mut client) = server(&[]);
    let mut leader = leader(&cluster);
    // As Oban for Elixir and Oban for Python write it; and one that writes no uuid.
    fetch(&mut client, 1, "web@10.0.0.1", "9b2f0a1e-7a3c-4c3e-8f59-0123456789ab", "0s");
    fetch(&mut client, 2, "worker-7f9c", "0f8fad5bd9cb469fa16570867728950e", "1 hour");
    fetch(&mut client, 3, "alone", "", "1 hour");
    client
        .batch_execute(
            "UPDATE oban_jobs SET attempted_by = '{alone}' WHERE id = 3;
             UPDATE oban_jobs SET state = 'executing' WHERE id = 4",
        )
        .unwrap();
    let held = "SELECT count(*) FROM oban_jobs WHERE id <= 4 AND state = 'executing'";
    let since = Instant::now();
    let mut turns = 0;
    loop {
        client.batch_execute("UPDATE oban_jobs SET attempt = 0 WHERE id = 5").unwrap();
        let process = Process::start(&cluster, "gossips", &format!("u{turns}"), "[5]", Way::Put);
        process.fetches(&mut client, 5, "0s");
        wait_until("it gossips", || {
            client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE node = 'gossips'") == 1
        });
        drop(process);
        wait_until("what is lost is rescued", || rescue(&mut leader, "1s") == [5]);
        assert_eq!(client.one::<i64>(held), 4);
        turns += 1;
        if since.elapsed() >= at_least && turns >= 2 {
            break;
        }
    }
    assert_eq!(orphans_after(&mut client, "1s"), "1 unknown, 2 unknown, 3 unknown, 4 unknown");
}

#[test]
fn no_rescue_takes_a_job_of_a_node_without_gossip() {
    nodes_without_gossip_keep_their_jobs(Duration::ZERO);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_no_rescue_takes_a_job_of_a_node_without_gossip() {
    nodes_without_gossip_keep_their_jobs(Duration::from_secs(300));
}

#[test]
fn after_a_promotion_nobody_is_known_and_nobody_is_taken() {
    let (primary, mut client) = server(&[]);
    let process = Process::start(&primary, "a", "u1", "[1]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 1);
    let standby = Arc::new(primary.standby(&[]));
    primary.wait_for_standby(&standby);
    assert_eq!(code(&mut standby.client(), "SELECT * FROM oban_orphans()"), "55000");
    drop(process);
    standby.promote();
    let (mut client, mut leader) = (standby.client(), leader(&standby));
    wait_until("it is listed", || orphans(&mut client) == "1 unknown");
    let sql = "SELECT since > attempted_at AT TIME ZONE 'UTC' + interval '5 minutes'
               FROM oban_orphans(grace => '1s') JOIN oban_jobs USING (id)";
    assert!(client.one::<bool>(sql), "since the promotion");
    assert!(rescue(&mut leader, GRACE).is_empty());
    let process = Process::start(&standby, "a", "u1", "[1]", Way::Put);
    wait_until("it is known again", || orphans(&mut client).is_empty());
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 gone");
}

#[test]
fn what_is_heard_by_notify_counts_while_the_relay_listens() {
    let (cluster, mut client) = server(&[]);
    wait_until_heard(&mut client);
    let process = Process::start(&cluster, "elixir", "u1", "[1]", Way::Notify);
    process.fetches(&mut client, 1, "10 minutes");
    let heard = |client: &mut Client| {
        client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE node = 'elixir'") == 1
    };
    wait_until("it is heard", || heard(&mut client));
    // Nobody listens: silence says nothing.
    let set = |client: &mut Client, value: &str| {
        cluster.configure(&[&format!("obanrs.gossip_ingest = {value}")]);
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    set(&mut client, "off");
    wait_until("it is listed", || {
        let found = orphans(&mut client);
        assert!(["", "1 unknown"].contains(&&*found), "{found}");
        found == "1 unknown"
    });
    set(&mut client, "on");
    wait_until("it is heard", || orphans(&mut client).is_empty() && heard(&mut client));
    // A relay that is stopped hears nobody either.
    let relay: i32 = client.one("SELECT pid FROM oban_workers WHERE kind = 'relay'");
    cluster.signal("STOP", relay);
    wait_until("it is listed", || {
        let found = orphans(&mut client);
        assert!(["", "1 unknown"].contains(&&*found), "{found}");
        found == "1 unknown"
    });
    cluster.signal("CONT", relay);
    wait_until("it is heard", || orphans(&mut client).is_empty() && heard(&mut client));
    drop(process);
    wait_until("it is gone", || {
        let found = orphans(&mut client);
        assert!(["", "1 unknown", "1 gone"].contains(&&*found), "{found}");
        found == "1 gone"
    });
}

/// The table is read as the caller reads it: its rights, its policies; and nobody's operators.
#[test]
fn a_role_sees_what_it_may_read() {
    let (cluster, mut client) = server(&[]);
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE ROLE peeper LOGIN; CREATE ROLE nobody LOGIN;
             GRANT SELECT ON oban_jobs TO app; GRANT SELECT (id, state) ON oban_jobs TO peeper;
             UPDATE oban_jobs SET queue = 'secret' WHERE id = 2;
             CREATE POLICY p ON oban_jobs FOR SELECT TO app USING (queue <> 'secret');
             ALTER TABLE oban_jobs ENABLE ROW LEVEL SECURITY",
        )
        .unwrap();
    for job in 1..=2 {
        fetch(&mut client, job, "a", "u", "1 hour");
    }
    wait_until("all are listed", || orphans(&mut client) == "1 unknown, 2 unknown");
    let ids = "SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM oban_orphans(grace => '3s')";
    assert_eq!(cluster.client_as("postgres", "app").one::<Vec<i64>>(ids), [1]);
    for role in ["peeper", "nobody"] {
        assert_eq!(code(&mut cluster.client_as("postgres", role), ids), "42501", "{role}");
    }
    // Another prefix is another.
    client.batch_execute("SELECT oban_install('next')").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_orphans('next', '1s')"), 0);
    client.batch_execute("ALTER SCHEMA next RENAME TO \"Odd \"\"one\"").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_orphans('Odd \"one', '1s')"), 0);
    assert_eq!(code(&mut client, "SELECT * FROM oban_orphans('next')"), "3F000");
    client.batch_execute("CREATE SCHEMA bare").unwrap();
    assert_eq!(code(&mut client, "SELECT * FROM oban_orphans('bare')"), "42P01");

    client
        .batch_execute(
            "CREATE SCHEMA evil;
             CREATE FUNCTION evil.f(oban_job_state, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
             CREATE OPERATOR evil.= (LEFTARG = oban_job_state, RIGHTARG = text, FUNCTION = evil.f);
             CREATE FUNCTION evil.date_part(text, timestamp) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
             CREATE TABLE evil.oban_jobs (x int);
             SET search_path = evil, public, pg_catalog",
        )
        .unwrap();
    assert_eq!(
        client.one::<Vec<i64>>("SELECT pg_catalog.array_agg(id) FROM oban_orphans(grace => '3s')"),
        [1, 2]
    );
}

/// What is no time, and what no column of Oban's has.
#[test]
fn any_table_is_read() {
    let (_cluster, mut client) = server(&[]);
    client
        .batch_execute(
            "CREATE SCHEMA own;
             CREATE TABLE own.oban_jobs (id int, state text, queue varchar, worker name, attempted_by varchar[], attempted_at timestamptz)
                 PARTITION BY LIST (state);
             CREATE TABLE own.part PARTITION OF own.oban_jobs DEFAULT;
             INSERT INTO own.oban_jobs VALUES
                 (1, 'executing', 'default', 'W', '{a,u}', now() - interval '1 hour'), (2, 'executing', NULL, NULL, NULL, NULL),
                 (3, 'executing', 'q', 'W', ARRAY[repeat('x', 1000000)], '-infinity'), (4, 'executing', 'q', 'W', '{}', 'infinity'),
                 (5, 'available', 'q', 'W', NULL, NULL)",
        )
        .unwrap();
    let sql = "SELECT coalesce(string_agg(id || ' ' || reason, ', ' ORDER BY id), '') FROM oban_orphans('own', '1s')";
    wait_until("they are listed", || client.one::<String>(sql) == "1 unknown, 2 unknown, 3 unknown");
    let put =
        "SELECT oban_gossip_put('a', 'default', '{\"uuid\": \"u\", \"running\": [1]}', prefix => 'own')";
    client.batch_execute(put).unwrap();
    wait_until("it is known", || client.one::<String>(sql) == "1 gone, 2 unknown, 3 unknown");
    // By the time of the row, in any time zone.
    client
        .batch_execute("SET timezone = 'Asia/Tokyo'; UPDATE own.oban_jobs SET attempted_at = now()")
        .unwrap();
    assert_eq!(client.one::<String>(sql), "");
}

/// A process that is forgotten for want of room is one that was never heard.
#[test]
fn what_is_forgotten_is_unknown() {
    let (cluster, mut client) = server(&["obanrs.gossip_memory = 64kB"]);
    let mut leader = leader(&cluster);
    let process = Process::start(&cluster, "a", "u1", "[1]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 1);
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 gone");
    let others = "SELECT count(oban_gossip_put('b', 'q', jsonb_build_object('uuid', i))) FROM generate_series(1, 2000) i";
    let others = others.replace("'uuid', i", "'uuid', i::text");
    assert_eq!(client.one::<i64>(&others), 2000);
    assert_eq!(orphans(&mut client), "1 unknown");
    assert!(rescue(&mut leader, GRACE).is_empty());
    // Memory goes on working.
    let process = wait_for("another is remembered", || {
        let process = Process::start(&cluster, "c", "u3", "[3]", Way::Put);
        wait_until("it gossips", || {
            client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE node = 'c'") == 1
        });
        Some(process)
    });
    process.fetches(&mut client, 3, "10 minutes");
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 unknown, 3 gone");
}
