//! Nodes, each a session of its own, that do something once a second, each at its own moment.

use std::cell::Cell;
use std::fs;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::STATE;
use super::common::on_processor;
use super::support::Cluster;

pub struct Load {
    pub database: &'static str,
    pub nodes: usize,
    /// The statement that each node runs once a second. $1 is the node's name.
    pub statement: String,
    /// How many times the statement takes a state, from $2 on.
    pub arguments: usize,
    pub listening: bool,
}

/// The measurements of one run of a load.
pub struct Measured {
    /// The processor time of the server ÷ the time that passed.
    pub processor: f64,
    pub calls: f64,
    pub heard: f64,
    pub wal: i64,
    pub xids: i64,
}

/// A statement that puts all queues of a node.
pub fn puts(function: &str, queues: usize) -> String {
    let calls: Vec<String> =
        (0..queues).map(|i| format!("{function}($1, 'queue_{i}', ${}::text::jsonb)", i + 2)).collect();
    format!("SELECT {}", calls.join(", "))
}

/// The statement of Oban for Elixir, with the message of oban_met for two queues. (Packed, the message has
/// some 350 bytes.)
pub fn native() -> String {
    let packed = "H4sIAAAAAAAAA".to_owned() + &"A".repeat(340);
    format!(
        "SELECT pg_notify('public.oban_gossip', payload) FROM json_array_elements_text(json_build_array($1::text || '{packed}')) AS payload"
    )
}

pub fn measure(cluster: &Cluster, load: &Load, time: Duration) -> Measured {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it can be built");
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(run(cluster, load, time)))
}

async fn run(cluster: &Cluster, load: &Load, time: Duration) -> Measured {
    let (heard, calls) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(0u64)));
    let stop = Rc::new(Cell::new(false));
    let watch = connect(cluster, load.database, Rc::default()).await;
    let mut nodes = Vec::new();
    for number in 0..load.nodes {
        let client = connect(cluster, load.database, heard.clone()).await;
        if load.listening {
            client.batch_execute("LISTEN \"public.oban_gossip\"").await.expect("it listens");
        }
        let statement = client.prepare(&load.statement).await.expect("it can be prepared");
        // The sixth run makes Postgres keep a plan, as it has one in a node that has run for a while.
        let name = format!("node.{number}");
        for _ in 0..6 {
            client.query(&statement, &arguments(&name, load.arguments)).await.expect("it runs");
        }
        nodes.push((client, statement, name));
    }
    let began = tokio::time::Instant::now() + Duration::from_millis(100);
    let spacing = Duration::from_secs(1) / load.nodes as u32;
    let states = load.arguments;
    let running: Vec<_> = nodes
        .into_iter()
        .enumerate()
        .map(|(number, (client, statement, name))| {
            let (calls, stop) = (calls.clone(), stop.clone());
            tokio::task::spawn_local(async move {
                let mut at = began + spacing * number as u32;
                let arguments = arguments(&name, states);
                loop {
                    tokio::time::sleep_until(at).await;
                    if stop.get() {
                        return;
                    }
                    client.query(&statement, &arguments).await.expect("it runs");
                    calls.set(calls.get() + states.max(1) as u64);
                    at += Duration::from_secs(1);
                }
            })
        })
        .collect();
    // After this time each node has begun.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let before = used(cluster);
    let (wal, xids) = written(&watch).await;
    let since = Instant::now();
    calls.set(0);
    heard.set(0);
    tokio::time::sleep(time).await;
    let seconds = since.elapsed().as_secs_f64();
    let processor = (used(cluster) - before) / seconds;
    let (wal_after, xids_after) = written(&watch).await;
    let (calls, heard) = (calls.get() as f64 / seconds, heard.get() as f64 / seconds);
    stop.set(true);
    for node in running {
        node.await.expect("it ends");
    }
    Measured { processor, calls, heard, wal: wal_after - wal, xids: xids_after - xids }
}

/// The arguments of a statement: the node's name, and states.
fn arguments(name: &String, states: usize) -> Vec<&(dyn ToSql + Sync)> {
    let mut arguments: Vec<&(dyn ToSql + Sync)> = vec![name];
    arguments.extend((0..states).map(|_| &STATE as &(dyn ToSql + Sync)));
    arguments
}

/// Processor time of all processes of a server, in seconds.
fn used(cluster: &Cluster) -> f64 {
    let file = fs::read_to_string(cluster.data_folder().join("postmaster.pid")).expect("it runs");
    let postmaster = file.lines().next().expect("its pid").to_owned();
    let processes = fs::read_dir("/proc").expect("there are processes");
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_it = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        parent == Some(&postmaster) || *pid.to_string() == postmaster
    };
    pids.filter(of_it).map(on_processor).sum()
}

/// The WAL position and the next transaction id, without taking an id.
async fn written(client: &Client) -> (i64, i64) {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8, pg_snapshot_xmax(pg_current_snapshot())::text::int8";
    let row = client.query_one(sql, &[]).await.expect("it answers");
    (row.get(0), row.get(1))
}

/// Connects a session, and counts the notifications that it hears.
async fn connect(cluster: &Cluster, database: &str, heard: Rc<Cell<u64>>) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.host(cluster.socket_folder()).user("postgres").dbname(database);
    let (client, mut connection) = config.connect(NoTls).await.expect("it connects");
    tokio::task::spawn_local(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            heard.set(heard.get() + u64::from(matches!(message, AsyncMessage::Notification(_))));
        }
    });
    client
}
