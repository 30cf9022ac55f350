//! Clients behind a real PgBouncer, which gives each transaction another connection.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

use fallible_iterator::FallibleIterator;
use postgres::{Client, NoTls, SimpleQueryMessage};
use serde_json::Value;

use crate::bus::installed_with;
use crate::jobs::crowd::{self, Disturbances};
use crate::support::{Ask, Cluster, program_as_server, wait_for};

const POOL: usize = 20;

struct PgBouncer {
    folder: String,
    /// A shell that ends PgBouncer when its input ends, which is when this process ends.
    shell: Child,
}

impl PgBouncer {
    fn start(cluster: &Cluster) -> Self {
        let folder = cluster.socket_folder().to_owned();
        let file = Path::new(&folder).join("pgbouncer.ini");
        let settings = format!(
            "[databases]\npostgres = host={folder} user=postgres\n\
             [pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nlisten_port = 6432\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = 500\n\
             logfile = {folder}/pgbouncer.log\n"
        );
        fs::write(&file, settings).unwrap();
        let mut sh = program_as_server("/bin/sh".as_ref());
        let program = fs::canonicalize("target/tools/bin/pgbouncer").expect("make drivers gets it");
        sh.args(["-c", r#""$1" -q "$2" & pid=$!; read -r end; kill "$pid"; wait"#, "sh"])
            .arg(program)
            .arg(file);
        let shell = sh.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let pooler = Self { folder, shell };
        wait_for("PgBouncer takes connections", || pooler.try_client());
        pooler
    }

    fn try_client(&self) -> Option<Client> {
        let mut config = postgres::Config::new();
        config.host_path(&self.folder).port(6432).user("postgres").dbname("postgres").connect(NoTls).ok()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// The simple protocol is used, because the driver's named statements belong to one connection.
fn ask(client: &mut Client, sql: &str) -> Vec<Option<String>> {
    let messages = client.simple_query(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = messages.iter().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.unwrap_or_else(|| panic!("{sql}: no row"));
    (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()
}

#[test]
fn two_hundred_clients_on_twenty_connections_publish_poll_and_wait() {
    const CLIENTS: usize = 200;
    let cluster = installed_with(&[]);
    let pooler = Arc::new(PgBouncer::start(&cluster));
    let mut listener = pooler.try_client().unwrap();
    listener.batch_execute("LISTEN \"public.oban_sonar\"").unwrap();
    let mut direct = cluster.client();
    direct.batch_execute("LISTEN \"public.oban_sonar\"").unwrap();
    let start: i64 = direct.one("SELECT oban_position()");

    let clients: Vec<_> = (0..CLIENTS)
        .map(|own| {
            let mut client = pooler.try_client().expect("it takes this many");
            std::thread::spawn(move || {
                ask(&mut client, &format!("SELECT oban_notify('sonar', '{{\"n\": {own}}}')"));
                let (mut after, mut heard) = (start, Vec::new());
                while heard.len() < CLIENTS {
                    let answer = if own % 2 == 0 {
                        ask(&mut client, &format!("SELECT * FROM oban_poll('{{sonar}}', {after})"))
                    } else {
                        ask(&mut client, &format!("CALL oban_wait('{{sonar}}', {after}, '50 milliseconds')"))
                    };
                    let [Some(position), Some(missed), Some(messages)] = &answer[..] else {
                        panic!("{answer:?}")
                    };
                    assert_eq!(missed, "0");
                    after = position.parse().unwrap();
                    let Value::Array(messages) = serde_json::from_str(messages).unwrap() else {
                        panic!("{messages}")
                    };
                    heard.extend(messages.iter().map(|m| m["payload"]["n"].as_u64().unwrap() as usize));
                }
                heard.sort();
                heard
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), (0..CLIENTS).collect::<Vec<_>>());
    }
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    assert!(direct.one::<i64>(connections) <= POOL as i64 + 2);
    // The relay has sent all of it. A session that listens through the pooler has heard nothing.
    assert_eq!(crate::support::heard(&mut direct).len(), CLIENTS);
    assert_eq!(listener.notifications().iter().next().unwrap().map(|n| n.payload().to_owned()), None);
}

/// Each call of these members with a lease is on another connection.
#[test]
fn leased_members_lead_fence_and_follow_through_a_pooler() {
    let cluster = installed_with(&[]);
    let pooler = PgBouncer::start(&cluster);
    let mut clients: Vec<Client> =
        (0..6).map(|_| pooler.try_client().expect("it takes connections")).collect();
    let mut others: Vec<Client> =
        (0..POOL).map(|_| pooler.try_client().expect("it takes connections")).collect();
    let text = |client: &mut Client, sql: &str| ask(client, sql).remove(0).unwrap_or_default();
    let members: Vec<String> = clients
        .iter_mut()
        .enumerate()
        .map(|(i, client)| text(client, &format!("SELECT oban_join('n{i}', lease => '3 s')")))
        .collect();
    let mut last = 0;
    for leader in 0..3 {
        // The work of other clients moves each client to another connection.
        for (other, client) in others.iter_mut().zip(0..) {
            ask(other, &format!("SELECT {client}, pg_backend_pid()"));
        }
        let terms: Vec<String> = clients
            .iter_mut()
            .zip(&members)
            .skip(leader)
            .map(|(client, member)| text(client, &format!("SELECT oban_renew({member})")))
            .collect();
        let term: i64 = terms[0].parse().expect("the first that joined leads");
        assert!(terms[1..].iter().all(String::is_empty), "and nobody else: {terms:?}");
        assert!(term > last);
        last = term;
        let node =
            format!("SELECT oban_is_leader(node => 'n{leader}') AND oban_term(node => 'n{leader}') = {term}");
        assert_eq!(text(&mut clients[5], &node), "t");
        clients[leader].batch_execute(&format!("BEGIN; SELECT oban_fence({term}); COMMIT")).unwrap();
        // The leader does not renew any more. The others go on.
        wait_for("the next leads", || {
            for (client, member) in clients.iter_mut().zip(&members).skip(leader + 1) {
                text(client, &format!("SELECT oban_renew({member})"));
            }
            let next = format!("SELECT oban_is_leader(node => 'n{}')", leader + 1);
            (text(&mut clients[5], &next) == "t").then_some(())
        });
        let error = clients[leader].batch_execute(&format!("SELECT oban_fence({term})")).unwrap_err();
        assert_eq!(error.code().map(|c| c.code()), Some("40001"));
    }
}

/// The calls of a taker come from many connections, and a connection serves many takers.
#[test]
fn takers_behind_a_pooler_do_each_job_once() {
    let cluster = installed_with(&[]);
    let pooler = Arc::new(PgBouncer::start(&cluster));
    let connect: crowd::Connect = Arc::new(move || pooler.try_client());
    crowd::run(&cluster, connect, 60, 40, Disturbances { ends: 3, pauses: true, ..Disturbances::default() });
}
