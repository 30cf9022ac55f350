//! The life of the workers: the races that src/worker/mod.rs lists, each with a test of that name.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::{Ask, Cluster, stat, wait_for, wait_until};

/// The keeper's pid in a database, from any session of the server.
fn keeper(client: &mut Client, database: &str) -> Option<i32> {
    let sql = "SELECT pid FROM oban_workers WHERE kind = 'keeper' AND state = 'running' AND database = $1";
    client.query_opt(sql, &[&database]).unwrap().map(|row| row.get(0))
}

fn running_keeper(client: &mut Client, database: &str) -> i32 {
    wait_for(&format!("the keeper of {database} runs"), || keeper(client, database))
}

fn coordinator(client: &mut Client) -> Option<i32> {
    client.one("SELECT pid FROM oban_workers WHERE kind = 'coordinator'")
}

/// How many keepers pg_stat_activity shows. oban_workers has to agree with it.
fn keepers_in_activity(client: &mut Client, database: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'obanrs keeper' AND datname = $1";
    client.query_one(sql, &[&database]).unwrap().get(0)
}

#[test]
fn extension_created_and_dropped_in_any_order() {
    let cluster = Cluster::with_extension();
    let mut watch = cluster.client();
    watch.batch_execute("CREATE DATABASE other").unwrap();
    let mut other = cluster.client_of("other");
    assert_eq!(keeper(&mut watch, "other"), None);

    other.batch_execute("BEGIN; CREATE EXTENSION obanrs; ROLLBACK").unwrap();
    for _ in 0..20 {
        other.batch_execute("CREATE EXTENSION obanrs").unwrap();
        other.batch_execute("DROP EXTENSION obanrs").unwrap();
    }
    other.batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut watch, "other");

    other.batch_execute("BEGIN; DROP EXTENSION obanrs; ROLLBACK").unwrap();
    other.batch_execute("BEGIN; SAVEPOINT a; DROP EXTENSION obanrs; ROLLBACK TO a; COMMIT").unwrap();
    other.batch_execute("BEGIN; DROP EXTENSION obanrs; CREATE EXTENSION obanrs; COMMIT").unwrap();
    running_keeper(&mut watch, "other");

    other.batch_execute("DROP EXTENSION obanrs").unwrap();
    wait_until("its keeper has gone", || keepers_in_activity(&mut watch, "other") == 0);
    other.batch_execute("CREATE SCHEMA s; CREATE EXTENSION obanrs SCHEMA s").unwrap();
    running_keeper(&mut watch, "other");
    other.batch_execute("DROP SCHEMA s CASCADE").unwrap();
    wait_until("it went with its schema", || keepers_in_activity(&mut watch, "other") == 0);
    running_keeper(&mut watch, "postgres");
}

#[test]
fn a_terminated_keeper_comes_back() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for _ in 0..3 {
        let pid = running_keeper(&mut client, "postgres");
        assert!(client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap().get::<_, bool>(0));
        wait_until("another keeper runs", || keeper(&mut client, "postgres").is_some_and(|new| new != pid));
    }
    let restarts: i32 = client.one("SELECT restarts FROM oban_workers WHERE kind = 'keeper'");
    assert_eq!(restarts, 3);
    assert_eq!(keepers_in_activity(&mut client, "postgres"), 1);
}

#[test]
fn a_terminated_coordinator_comes_back() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let keeper_before = running_keeper(&mut client, "postgres");
    let pid = coordinator(&mut client).unwrap();
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_until("another coordinator runs", || coordinator(&mut client).is_some_and(|new| new != pid));
    assert_eq!(keeper(&mut client, "postgres"), Some(keeper_before), "the keeper runs on");

    // The new coordinator knows the keepers of the old one: it restarts a keeper that ends.
    client.query_one("SELECT pg_terminate_backend($1)", &[&keeper_before]).unwrap();
    wait_until("another keeper runs", || {
        keeper(&mut client, "postgres").is_some_and(|new| new != keeper_before)
    });

    // The new coordinator finds a database that came while there was no coordinator.
    let pid = coordinator(&mut client).unwrap();
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    client.batch_execute("CREATE DATABASE other").unwrap();
    cluster.client_of("other").batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut client, "other");
}

#[test]
fn databases_can_be_dropped_renamed_and_copied() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE unrelated").unwrap();
    client.batch_execute("ALTER DATABASE unrelated RENAME TO renamed").unwrap();
    client.batch_execute("CREATE DATABASE copied TEMPLATE renamed").unwrap();
    client.batch_execute("DROP DATABASE renamed").unwrap();
    client.batch_execute("DROP DATABASE copied").unwrap();

    for _ in 0..5 {
        client.batch_execute("CREATE DATABASE ours").unwrap();
        cluster.client_of("ours").batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
        running_keeper(&mut client, "ours");
        client.batch_execute("ALTER DATABASE ours RENAME TO renamed").unwrap();
        running_keeper(&mut client, "renamed");
        client.batch_execute("CREATE DATABASE copied TEMPLATE renamed").unwrap();
        running_keeper(&mut client, "renamed");
        client.batch_execute("DROP DATABASE copied").unwrap();
        client.batch_execute("ALTER DATABASE renamed SET TABLESPACE pg_default").unwrap();
        running_keeper(&mut client, "renamed");
        client.batch_execute("DROP DATABASE renamed WITH (FORCE)").unwrap();
    }
    wait_until("what is left is our own", || {
        let slots = client.query_one("SELECT count(*) FROM oban_workers WHERE kind = 'keeper'", &[]).unwrap();
        slots.get::<_, i64>(0) == 1
    });
}

#[test]
fn a_command_that_fails_gives_the_keeper_back() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE other").unwrap();
    let _in_use = cluster.client_of("other");
    let mut other = cluster.client_of("other");
    other.batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut client, "other");

    // Another session is connected.
    let error = client.batch_execute("ALTER DATABASE other RENAME TO another").unwrap_err();
    assert_eq!(error.code().unwrap().code(), "55006");
    running_keeper(&mut client, "other");
    // The command is cancelled while Postgres waits for other sessions to leave.
    let mut doomed = cluster.client();
    doomed.batch_execute("SET statement_timeout = '50ms'").unwrap();
    assert!(doomed.batch_execute("DROP DATABASE other").is_err());
    running_keeper(&mut client, "other");

    // The session is terminated in the middle of the command.
    let mut doomed = cluster.client();
    let pid: i32 = doomed.one("SELECT pg_backend_pid()");
    let dropping = std::thread::spawn(move || doomed.batch_execute("DROP DATABASE other").is_err());
    wait_until("its keeper was sent away", || keepers_in_activity(&mut client, "other") == 0);
    assert!(client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap().get::<_, bool>(0));
    assert!(dropping.join().unwrap());
    running_keeper(&mut client, "other");

    // A role that may not drop a database does not stop its keeper either.
    client.batch_execute("CREATE ROLE mallory LOGIN").unwrap();
    let before = running_keeper(&mut client, "other");
    let mut mallory = cluster.client_as("postgres", "mallory");
    for sql in
        ["DROP DATABASE other", "ALTER DATABASE other RENAME TO mine", "CREATE DATABASE mine TEMPLATE other"]
    {
        assert_eq!(mallory.batch_execute(sql).unwrap_err().code().unwrap().code(), "42501", "{sql}");
    }
    assert_eq!(keeper(&mut client, "other"), Some(before));
}

#[test]
fn a_database_made_from_a_template_gets_a_keeper() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    running_keeper(&mut client, "postgres");
    client.batch_execute("CREATE DATABASE copy TEMPLATE postgres").unwrap();
    running_keeper(&mut client, "copy");
    running_keeper(&mut client, "postgres");
}

/// A database that becomes a template gets no workers. Otherwise only its owner could copy it.
#[test]
fn a_keeper_leaves_a_database_that_becomes_a_template() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE tmpl").unwrap();
    cluster.client_of("tmpl").batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut client, "tmpl");
    client.batch_execute("ALTER DATABASE tmpl IS_TEMPLATE true").unwrap();
    wait_until("its keeper has gone", || keepers_in_activity(&mut client, "tmpl") == 0);
    client.batch_execute("CREATE ROLE maker LOGIN CREATEDB").unwrap();
    cluster.client_as("postgres", "maker").batch_execute("CREATE DATABASE copied TEMPLATE tmpl").unwrap();
    running_keeper(&mut client, "copied");
    client.batch_execute("ALTER DATABASE tmpl IS_TEMPLATE false").unwrap();
    running_keeper(&mut client, "tmpl");
}

#[test]
fn many_databases_without_the_extension_are_looked_into_quietly() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for i in 0..12 {
        client.batch_execute(&format!("CREATE DATABASE d{i} STRATEGY wal_log")).unwrap();
    }
    cluster.client_of("d7").batch_execute("CREATE EXTENSION obanrs").unwrap();
    cluster.restart();
    let mut client = cluster.client();
    running_keeper(&mut client, "postgres");
    running_keeper(&mut client, "d7");
    wait_until("the others need no slot", || {
        let sql = "SELECT count(*) FROM oban_workers WHERE kind = 'keeper'";
        client.one::<i64>(sql) == 2
    });
    assert!(!cluster.log().contains("Raise "), "{}", cluster.log());
}

#[test]
fn every_database_with_the_extension_has_a_keeper_after_a_restart() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let names = ["a", "b", "c", "d"];
    for name in names {
        client.batch_execute(&format!("CREATE DATABASE {name} STRATEGY wal_log")).unwrap();
        cluster.client_of(name).batch_execute("CREATE EXTENSION obanrs").unwrap();
    }
    cluster.restart();
    let mut client = cluster.client();
    for name in names {
        running_keeper(&mut client, name);
    }
}

/// The hooks see no update of pg_database. The call that needs the workers finds the database.
#[test]
fn a_database_that_became_usable_behind_our_back_gets_a_keeper() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE other IS_TEMPLATE true").unwrap();
    client.batch_execute("UPDATE pg_database SET datistemplate = false WHERE datname = 'other'").unwrap();
    cluster.client_of("other").batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut client, "other");
}

#[test]
fn a_restart_brings_everything_back() {
    let cluster = Cluster::installed();
    let term = |client: &mut Client| -> i64 {
        client.query_one("SELECT oban_join('a')", &[]).unwrap();
        client.one::<Option<i64>>("SELECT oban_term()").expect("it leads")
    };
    let mut client = cluster.client();
    running_keeper(&mut client, "postgres");
    let first = term(&mut client);
    client.batch_execute("SELECT oban_gossip_put('a', 'default')").unwrap();

    cluster.stop("fast");
    cluster.start_again();
    let mut client = cluster.client();
    running_keeper(&mut client, "postgres");
    let second = term(&mut client);
    assert!(second > first, "the leadership from before the restart is void, and terms only rise");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_gossip"), 0);

    // SIGKILL ends a backend. Postgres restarts everything, with new shared memory.
    let mut doomed = cluster.client();
    let pid: i32 = doomed.one("SELECT pg_backend_pid()");
    cluster.signal("KILL", pid);
    wait_until("the crash was noticed", || client.batch_execute("SELECT 1").is_err());
    let mut client =
        wait_for("connections are taken again", || cluster.try_client("postgres", "postgres").ok());
    running_keeper(&mut client, "postgres");
    assert!(term(&mut client) > second);
}

/// A worker that does not notice the shutdown makes it slow. Then pg_ctl gives up and fails.
#[test]
fn shutdown_is_fast() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    running_keeper(&mut client, "postgres");
    client.query_one("SELECT oban_join('a')", &[]).unwrap();
    // The keeper is in the middle of an election, and waits for a lock.
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; LOCK TABLE oban_peers").unwrap();
    drop(client);
    let since = Instant::now();
    cluster.stop("fast");
    println!("fast shutdown took {:?}", since.elapsed());
}

#[test]
fn idle_means_idle() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.signal_ingest = on"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    running_keeper(&mut client, "postgres");
    // Whatever reads the new tables first may tidy up their pages in the catalogs.
    let looked = "SELECT count(*) = 1 FROM pg_stat_activity
                  WHERE backend_type = 'obanrs stager' AND state = 'idle' AND wait_event_type = 'Extension'";
    wait_until("the stager has looked", || client.one(looked));
    client.query_one("SELECT oban_gossip_put('a', 'default', ttl => '1 hour')", &[]).unwrap();
    client.batch_execute("CHECKPOINT").unwrap();
    let mut look = || -> (String, String) {
        let row = client.query_one(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text",
            &[],
        );
        let row = row.unwrap();
        (row.get(0), row.get(1))
    };
    let (xid, from) = look();
    // No event shows idleness. The test observes it for this time.
    std::thread::sleep(Duration::from_secs(3));
    let (later, to) = look();
    assert_eq!(xid, later, "transaction ids were taken");
    if from != to {
        client.batch_execute("CHECKPOINT").unwrap(); // makes the WAL readable
        let mut waldump = cluster.program("pg_waldump");
        waldump.arg("--path").arg(cluster.data_folder().join("pg_wal"));
        let written = waldump.args(["--start", &from, "--end", &to]).output().unwrap();
        assert!(written.status.success(), "{written:?}");
        // The background writer's record of running transactions does not count.
        let written = String::from_utf8(written.stdout).unwrap();
        let ours: Vec<&str> = written.lines().filter(|l| !l.contains("RUNNING_XACTS")).collect();
        assert!(ours.is_empty() && !written.is_empty(), "written: {written}");
    }
}

#[test]
fn a_server_without_worker_slots_says_so_and_serves() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_worker_processes = 2"]);
    // The launcher of logical replication takes one slot, the coordinator the other.
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let error = wait_for("the keeper is in backoff", || {
        let sql = "SELECT last_error FROM oban_workers WHERE kind = 'keeper' AND state = 'backoff'";
        client.query_opt(sql, &[]).unwrap().map(|row| row.get::<_, String>(0))
    });
    assert!(error.contains("max_worker_processes"), "{error}");
    assert!(cluster.log().contains("Raise max_worker_processes"));
    client.query_one("SELECT oban_join('a')", &[]).unwrap();
    assert!(!client.one::<bool>("SELECT oban_is_leader()"));

    cluster.configure(&["max_worker_processes = 8"]);
    cluster.restart();
    let mut client = cluster.client();
    running_keeper(&mut client, "postgres");
}

#[test]
fn more_databases_than_slots_are_logged_once() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_databases = 1"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut client, "postgres");
    client.batch_execute("CREATE DATABASE other").unwrap();
    cluster.client_of("other").batch_execute("CREATE EXTENSION obanrs").unwrap();
    let logged = || cluster.log().matches("LOG:  obanrs: no place for database \"other\"").count();
    wait_until("it is logged", || logged() == 1);
    assert!(cluster.log().contains("Raise obanrs.max_databases"));
    client.batch_execute("DROP EXTENSION obanrs").unwrap();
    // The slot that this frees goes to the other database.
    let mut other = cluster.client_of("other");
    running_keeper(&mut other, "other");
    assert_eq!(logged(), 1);
}

#[test]
fn a_session_never_counts_for_the_database_that_has_its_old_slot() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_databases = 1"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut client, "postgres");
    let put = "SELECT oban_gossip_put('a', 'default')";
    client.batch_execute(put).unwrap();
    client.batch_execute("CREATE DATABASE other").unwrap();
    client.batch_execute("DROP EXTENSION obanrs").unwrap();
    let mut other = cluster.client_of("other");
    other.batch_execute("CREATE EXTENSION obanrs").unwrap();
    running_keeper(&mut other, "other");
    other.batch_execute(put).unwrap();
    client.batch_execute("CREATE EXTENSION obanrs").unwrap();
    client.batch_execute(put).unwrap();
    assert_eq!(stat(&mut other, "gossip_puts"), 1);
}
