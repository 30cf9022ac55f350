//! What does an administrator see of the workers in the server's log and in pg_stat_activity?

use postgres::Client;

use crate::support::{Ask, Cluster, Stuck, wait_until};

/// Words that monitoring of a log takes for an alarm.
const ALARMS: [&str; 6] =
    ["FATAL:", "ERROR:", "WARNING:", "PANIC:", "exited with exit code", "terminated by signal"];

fn alarms(cluster: &Cluster) -> Vec<String> {
    let log = cluster.log();
    let alarms = log.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    // Postgres' own launcher writes such a line at each stop.
    alarms.filter(|line| !line.contains("logical replication launcher")).map(str::to_owned).collect()
}

fn lines(cluster: &Cluster, what: &str) -> Vec<String> {
    cluster.log().lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
}

/// Starts a server with two databases that have a leader each.
fn busy() -> Cluster {
    let cluster = Cluster::installed();
    cluster.client().batch_execute("CREATE DATABASE two").unwrap();
    cluster.client_of("two").batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    for database in ["postgres", "two"] {
        let mut client = cluster.client_of(database);
        client.batch_execute("SELECT oban_join('leased', lease => '1 h')").unwrap();
        wait_until("it leads", || client.one("SELECT oban_is_leader(node => 'leased')"));
    }
    wait_until("all run", || workers(&mut cluster.client()).len() == 7);
    cluster
}

/// The workers that run: their kinds, databases and PIDs.
fn workers(client: &mut Client) -> Vec<(String, Option<String>, i32)> {
    let sql =
        "SELECT kind, database::text, pid FROM oban_workers WHERE state = 'running' ORDER BY kind, database";
    client.query(sql, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn pid_of(client: &mut Client, kind: &str, database: &str) -> i32 {
    client.one(&format!("SELECT pid FROM oban_workers WHERE kind = '{kind}' AND database = '{database}'"))
}

#[test]
fn workers_leave_without_a_word() {
    let cluster = busy();
    for mode in ["fast", "smart", "immediate"] {
        // The workers have something to do when they are told to stop.
        let mut client = cluster.client();
        client
            .batch_execute("LISTEN anything; SELECT oban_notify('sonar', '{}'), oban_join('late', 'Late')")
            .unwrap();
        drop(client);
        cluster.stop(mode);
        cluster.start_again();
        wait_until("all are back", || workers(&mut cluster.client()).len() == 7);
    }
    let alarms: Vec<String> = alarms(&cluster);
    assert_eq!(alarms, Vec::<String>::new());
    // Each start logs the sizes.
    let sizes = lines(&cluster, &format!("LOG:  obanrs {}: 8 rings of ", env!("CARGO_PKG_VERSION")));
    assert_eq!(sizes.len(), 4, "{sizes:?}");
}

/// Workers are terminated while they are idle, and in the midst of a transaction. They log nothing, and are
/// back at once.
#[test]
fn terminated_workers_come_back_without_an_alarm() {
    let cluster = busy();
    let mut admin = cluster.client();
    for _ in 0..3 {
        let before = workers(&mut admin);
        for (_, _, pid) in &before {
            admin.query_one("SELECT pg_terminate_backend($1)", &[pid]).unwrap();
        }
        wait_until("others run", || {
            let now = workers(&mut admin);
            now.len() == 7 && now.iter().zip(&before).all(|(now, before)| now.2 != before.2)
        });
    }
    assert!(
        alarms(&cluster).iter().all(|line| line.contains("obanrs coordinator")),
        "{:?}",
        alarms(&cluster)
    );
    let back =
        |what: &str| lines(&cluster, &format!("LOG:  obanrs: the {what} is back after a failure")).len();
    assert_eq!(back("coordinator"), 3);
    for worker in
        ["keeper of database \"two\"", "relay of database \"two\"", "relay of database \"postgres\""]
    {
        assert_eq!(back(worker), 3, "{worker}: {}", cluster.log());
    }

    // A commit holds the lock that all NOTIFYs share. The relay waits for it in its transaction.
    let before = alarms(&cluster).len();
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{sonar}')").unwrap();
    let holder = Stuck::start(&cluster, cluster.client(), "NOTIFY elsewhere");
    let mut sender = cluster.client();
    sender.batch_execute("SET synchronous_commit = off; SELECT oban_notify('sonar', '{}')").unwrap();
    let relay = pid_of(&mut admin, "relay", "postgres");
    let waits = format!("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {relay}");
    wait_until("it waits for the lock", || admin.one(&waits));
    // A cancellation does not end the relay's wait.
    for _ in 0..20 {
        admin.query_one("SELECT pg_cancel_backend($1)", &[&relay]).unwrap();
    }
    assert!(admin.one::<bool>(&waits), "it waits on");
    admin.query_one("SELECT pg_terminate_backend($1)", &[&relay]).unwrap();
    wait_until("it is gone", || {
        admin.one(&format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {relay})"))
    });
    let alarmed = alarms(&cluster);
    assert_eq!(alarmed.len(), before, "{alarmed:?}");
    holder.end(&mut admin, "pg_terminate_backend");
    assert_eq!(crate::support::heard(&mut listener).len(), 1, "the next one sends it");
}

/// Cancellations come while a worker is idle, and while it works.
#[test]
fn a_cancel_ends_no_worker() {
    let cluster = busy();
    let mut admin = cluster.client();
    let before = workers(&mut admin);
    let mut client = cluster.client_of("two");
    for n in 0..200 {
        for (_, _, pid) in &before {
            admin.query_one("SELECT pg_cancel_backend($1)", &[pid]).unwrap();
        }
        client.batch_execute(&format!("SELECT oban_notify('sonar', '{{\"n\": {n}}}')")).unwrap();
        if n % 20 == 0 {
            client.batch_execute(&format!("SELECT oban_leave(oban_join('n', 'N{n}'))")).unwrap();
        }
    }
    // Postgres' own timers still end a wait.
    let mut locker = cluster.client_of("two");
    locker.batch_execute("BEGIN; LOCK TABLE oban_peers").unwrap();
    client.batch_execute("SELECT oban_join('late', 'Late')").unwrap();
    wait_until("the keeper has given up", || {
        !lines(&cluster, "wait for a lock on its table of leaders").is_empty()
    });
    locker.batch_execute("COMMIT").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader('Late')"));
    assert_eq!(workers(&mut admin), before, "the same processes");
    // The keeper and oban_join say that they wait.
    let expected = |line: &String| line.contains("wait for a lock") || line.contains("waits for a lock");
    let alarms: Vec<String> = alarms(&cluster).into_iter().filter(|line| !expected(line)).collect();
    assert_eq!(alarms, Vec::<String>::new());
}

/// log_line_prefix may lack the database.
#[test]
fn each_line_names_the_database() {
    let cluster = busy();
    let mut client = cluster.client_of("two");
    client.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
    wait_until("its row is gone", || client.one("SELECT count(*) = 0 FROM oban_peers"));
    client.batch_execute("CREATE SCHEMA bare; SELECT oban_join('x', prefix => 'bare')").unwrap();
    wait_until("it is said", || !lines(&cluster, "holds no elections").is_empty());
    client.batch_execute("BEGIN; LOCK TABLE oban_peers; SELECT oban_join('y')").unwrap();
    wait_until("it waits", || !lines(&cluster, "wait for a lock").is_empty());
    client.batch_execute("ROLLBACK").unwrap();
    let of_two: Vec<String> = cluster
        .log()
        .lines()
        .filter(|line| line.contains("obanrs") && (line.contains("keeper") || line.contains("relay")))
        .filter(|line| line.contains("LOG:") || line.contains("WARNING:"))
        .map(str::to_owned)
        .collect();
    assert!(of_two.len() >= 5, "{of_two:?}");
    for line in of_two {
        assert!(line.contains("database \"two\"") || line.contains("database \"postgres\""), "{line}");
    }
}

/// Since Postgres 17 a module's waits have names of their own.
#[test]
fn waits_have_names() {
    let cluster = busy();
    let mut client = cluster.client();
    let has_names: bool = client.one("SELECT current_setting('server_version_num')::int >= 170000");
    let mut waiter = cluster.client();
    let pid: i32 = waiter.one("SELECT pg_backend_pid()");
    let waiting = std::thread::spawn(move || waiter.batch_execute("CALL oban_wait(timeout => '1 hour')"));
    let name = |name: &'static str| if has_names { name } else { "Extension" };
    for (who, event) in [
        ("backend_type = 'obanrs keeper'".to_owned(), name("ObanrsKeeper")),
        ("backend_type = 'obanrs relay'".to_owned(), name("ObanrsRelay")),
        ("backend_type = 'obanrs stager'".to_owned(), name("ObanrsStager")),
        ("backend_type = 'obanrs coordinator'".to_owned(), name("ObanrsCoordinator")),
        (format!("pid = {pid}"), name("ObanrsWait")),
    ] {
        let sql = format!(
            "SELECT bool_and(wait_event = '{event}' AND wait_event_type = 'Extension') FROM pg_stat_activity WHERE {who}"
        );
        wait_until(event, || client.one(&sql));
    }
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    assert!(waiting.join().unwrap().is_err());
    // A crash of another process makes shared memory anew, and the names with it.
    let mut victim = cluster.client();
    cluster.crash(victim.one("SELECT pg_backend_pid()"));
    wait_until("the server is back", || {
        cluster.try_client("postgres", "postgres").is_ok_and(|mut client| {
            let sql = format!(
                "SELECT count(*) = 2 FROM pg_stat_activity WHERE wait_event = '{}' AND backend_type = 'obanrs keeper'",
                name("ObanrsKeeper")
            );
            client.query_one(&sql, &[]).is_ok_and(|row| row.get(0))
        })
    });
}
