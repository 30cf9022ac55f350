//! Drivers of applications hear notifications while they are idle, and after a transaction block in which
//! they can't hear any.
//!
//! Each driver runs the same script: psycopg and node-postgres as programs in tests/drivers, tokio-postgres
//! here.

use std::future::poll_fn;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tokio_postgres::{AsyncMessage, NoTls};

use crate::support::{Cluster, PATIENCE};

/// The lines that a driver prints, and the means to let it go on.
struct Driver {
    lines: Receiver<String>,
    go_on: Box<dyn FnMut()>,
}

/// Runs the script: what every driver has to print at which point.
fn hears(cluster: &Cluster, mut driver: Driver) {
    let mut writer = cluster.client();
    let mut insert = |queue: &str| {
        writer.execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', $1)", &[&queue]).unwrap();
    };
    let says = |expected: &str| {
        let line = driver.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("no \"{expected}\": {e}"));
        assert_eq!(line, expected);
    };
    says("listening public.oban_insert");
    insert("first");
    says(r#"idle public.oban_insert {"queue":"first"}"#);
    says("in transaction 1");
    insert("second");
    (driver.go_on)();
    says("in transaction nothing");
    says(r#"after public.oban_insert {"queue":"second"}"#);
    says("ended well");
}

fn program(command: &mut Command) -> Driver {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
        command.env_remove(name);
    }
    let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = started.unwrap_or_else(|e| panic!("{command:?} (make drivers gets it): {e}"));
    let (mut input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let (says, lines) = channel();
    std::thread::spawn(move || {
        output.lines().map_while(Result::ok).for_each(|line| drop(says.send(line)));
        let ended = if child.wait().unwrap().success() { "ended well" } else { "failed" };
        let _ = says.send(ended.to_owned());
    });
    Driver { lines, go_on: Box::new(move || writeln!(input).unwrap()) }
}

#[test]
fn psycopg_hears() {
    let cluster = Cluster::installed();
    let mut python = Command::new("target/python/bin/python");
    hears(&cluster, program(python.arg("tests/drivers/hear_psycopg.py").arg(cluster.socket_folder())));
}

#[test]
fn node_postgres_hears() {
    let cluster = Cluster::installed();
    let mut node = Command::new("node");
    hears(&cluster, program(node.arg("tests/drivers/hear_node_postgres.mjs").arg(cluster.socket_folder())));
}

#[test]
fn tokio_postgres_hears() {
    let cluster = Cluster::installed();
    let folder = cluster.socket_folder().to_owned();
    let (says, lines) = channel();
    let (go_on, goes_on) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio_client(&folder, says, goes_on));
    });
    let mut go_on = Some(go_on);
    let go_on = Box::new(move || go_on.take().expect("once").send(()).unwrap());
    hears(&cluster, Driver { lines, go_on });
}

async fn tokio_client(
    folder: &str,
    says: std::sync::mpsc::Sender<String>,
    goes_on: tokio::sync::oneshot::Receiver<()>,
) {
    let mut config = tokio_postgres::Config::new();
    config.host_path(folder).user("postgres").dbname("postgres");
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let (hears, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(n) = message.unwrap() {
                hears.send(format!("{} {}", n.channel(), n.payload())).unwrap();
            }
        }
    });
    let say = |line: String| says.send(line).unwrap();

    let channels = client.query("SELECT oban_listen_channels('{insert}')", &[]).await.unwrap();
    say(format!("listening {}", channels[0].get::<_, String>(0)));
    say(format!("idle {}", heard.recv().await.unwrap()));
    client.batch_execute("BEGIN").await.unwrap();
    let one = client.query_one("SELECT 1", &[]).await.unwrap();
    say(format!("in transaction {}", one.get::<_, i32>(0)));
    goes_on.await.unwrap(); // meanwhile another session notifies
    client.batch_execute("SELECT 1").await.unwrap();
    say(format!("in transaction {}", if heard.is_empty() { "nothing" } else { "too early" }));
    client.batch_execute("COMMIT").await.unwrap();
    say(format!("after {}", heard.recv().await.unwrap()));
    say("ended well".to_owned());
}
