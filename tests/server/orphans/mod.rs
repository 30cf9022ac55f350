//! Jobs that no process runs any more: `oban_orphans` lists them, and never a job that a live process runs.
//!
//! Each file here answers one question about them. This file has the processes under test, and what the files
//! share.

mod claims;
mod lost;
mod rescue;
mod tables;
mod unknown;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use postgres::Client;

use crate::readme;
use crate::support::{Ask, Cluster, stat, wait_until};

/// A process that is cut off comes back within this time, also on a busy machine.
const GRACE: &str = "3s";

/// A process that says every 100 ms what it runs. Its connections may be cut at any time.
struct Process {
    node: String,
    uuid: String,
    running: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The process says it by oban_gossip_put, as a member that is bound to its session.
    Member,
    Put,
    /// The process says it by NOTIFY, as Oban's own nodes do.
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

    /// Makes the process fetch a job, at a time in the past.
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

/// Starts a server whose prefix has the jobs 1 to 10.
fn server(settings: &[&str]) -> (Arc<Cluster>, Client) {
    let settings = [&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_ttl = 1s"], settings].concat();
    let cluster = Cluster::start(&settings);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    client.batch_execute("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 10)").unwrap();
    (Arc::new(cluster), client)
}

/// Returns what oban_orphans says, such as "1 gone, 2 unknown". Asserts that each was so for the grace.
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

/// Runs the rescue that the page on living nodes teaches, with this grace. Returns the jobs that it took.
fn rescue(client: &mut Client, grace: &str) -> Vec<i64> {
    let taught = readme::blocks_with("oban_rescue()");
    assert_eq!(taught.len(), 1);
    let sql = taught[0].replace("oban_rescue()", &format!("oban_rescue(grace => '{grace}')"));
    assert_ne!(sql, taught[0]);
    let executing = "SELECT coalesce(array_agg(id), '{}') FROM oban_jobs WHERE state = 'executing'";
    let before: Vec<i64> = client.one(executing);
    client.batch_execute(&sql).unwrap();
    let after: Vec<i64> = client.one(executing);
    before.into_iter().filter(|id| !after.contains(id)).collect()
}

/// A session that leads, as a session that rescues does.
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
