//! Which databases does a process of the extension enter?
//!
//! It enters databases that have the extension. It enters each other database once after the server's start
//! or promotion.

use std::fs;

use postgres::Client;

use crate::support::{Ask, Cluster, extensions_folder, wait_for, wait_until};

/// Starts a server that logs which background workers it starts, with the extension in the database postgres.
fn talkative() -> Cluster {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "log_min_messages = debug1"]);
    cluster.client().batch_execute("CREATE EXTENSION obanrs").unwrap();
    looks_are_over(&cluster, &mut cluster.client());
    cluster
}

fn oid(client: &mut Client, database: &str) -> u32 {
    client.one(&format!("SELECT oid FROM pg_database WHERE datname = '{database}'"))
}

/// How many processes of the extension were started for a database, of each kind.
fn entered(cluster: &Cluster, client: &mut Client, database: &str) -> usize {
    let name = format!("for database {}\"", oid(client, database));
    cluster
        .log()
        .lines()
        .filter(|l| l.contains("starting background worker process") && l.contains(&name))
        .count()
}

/// Waits until the looks after the server's start are over. All databases were entered, and none has a look
/// now.
fn looks_are_over(cluster: &Cluster, client: &mut Client) {
    for database in ["template1", "postgres"] {
        wait_until("it is looked into", || entered(cluster, client, database) > 0);
    }
    wait_until("no look is left", || {
        client.one("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'obanrs look'")
    });
}

fn keeper(client: &mut Client, database: &str) -> Option<i32> {
    let sql = "SELECT pid FROM oban_workers WHERE kind = 'keeper' AND state = 'running' AND database = $1";
    client.query_opt(sql, &[&database]).unwrap().map(|row| row.get(0))
}

fn gets_keeper(client: &mut Client, database: &str) {
    wait_for(&format!("the keeper of {database} runs"), || keeper(client, database));
}

/// Waits until the coordinator has done everything of before: it gives a new database its keeper.
fn everything_is_done(cluster: &Cluster, client: &mut Client, database: &str) {
    client.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE template0")).unwrap();
    cluster.client_of(database).batch_execute("CREATE EXTENSION obanrs").unwrap();
    gets_keeper(client, database);
    assert!(entered(cluster, client, database) > 0, "the log shows what is entered");
}

#[test]
fn a_database_made_after_the_start_is_not_entered() {
    let cluster = talkative();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE plain").unwrap();
    client.batch_execute("CREATE DATABASE tmpl IS_TEMPLATE true TEMPLATE template0").unwrap();
    let mut plain = cluster.client_of("plain");
    plain.batch_execute("DROP EXTENSION plpgsql; CREATE EXTENSION plpgsql; LISTEN x; NOTIFY x").unwrap();
    plain.batch_execute("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'p'").unwrap();
    plain.batch_execute("COMMIT PREPARED 'p'").unwrap();
    plain.batch_execute("BEGIN; CREATE EXTENSION obanrs; ROLLBACK").unwrap();
    plain.batch_execute("BEGIN; SAVEPOINT s; CREATE EXTENSION obanrs; ROLLBACK TO s; COMMIT").unwrap();
    plain.batch_execute("BEGIN; CREATE EXTENSION obanrs; PREPARE TRANSACTION 'q'").unwrap();
    plain.batch_execute("ROLLBACK PREPARED 'q'").unwrap();
    drop(plain);
    client.batch_execute("ALTER DATABASE tmpl IS_TEMPLATE false").unwrap();
    wait_until("the session has ended", || {
        client.batch_execute("ALTER DATABASE plain RENAME TO renamed").is_ok()
    });
    client.batch_execute("CREATE DATABASE copy TEMPLATE renamed").unwrap();
    let names = ["renamed", "copy", "tmpl"];

    // Another coordinator does not enter them, either.
    let running = "SELECT pid FROM oban_workers WHERE kind = 'coordinator'";
    let before: Option<i32> = client.one(running);
    client.query_one("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
    wait_until("another one runs", || {
        client.one::<Option<i32>>(running).is_some_and(|pid| Some(pid) != before)
    });
    everything_is_done(&cluster, &mut client, "ours");
    for name in names {
        assert_eq!(entered(&cluster, &mut client, name), 0, "{name}");
    }

    // After the next start each of them is entered once, and no other database is.
    cluster.restart();
    let mut client = cluster.client();
    gets_keeper(&mut client, "ours");
    for name in names {
        wait_until("it is looked into", || entered(&cluster, &mut client, name) == 1);
    }
    everything_is_done(&cluster, &mut client, "again");
    for name in names {
        assert_eq!(entered(&cluster, &mut client, name), 1, "{name}");
    }
    assert_eq!(entered(&cluster, &mut client, "template0"), 0, "it takes no connections");
}

/// This command bypasses the hook for statements.
#[test]
fn an_extension_that_requires_ours_brings_it_along() {
    let cluster = talkative();
    let write = |name: &str, text: &str| fs::write(extensions_folder().join(name), text).unwrap();
    write("needs_obanrs.control", "default_version = '1'\nrequires = 'obanrs'\nrelocatable = true\n");
    write("needs_obanrs--1.sql", "CREATE TABLE needy ();\n");
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE other").unwrap();
    let mut other = cluster.client_of("other");
    other.batch_execute("CREATE EXTENSION needs_obanrs CASCADE").unwrap();
    gets_keeper(&mut client, "other");
    other.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("it goes with it", || keeper(&mut client, "other").is_none());
}

#[test]
fn prepared_transactions_create_and_drop_the_extension() {
    let cluster = talkative();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE other").unwrap();
    let mut other = cluster.client_of("other");
    other.batch_execute("BEGIN; CREATE EXTENSION obanrs; PREPARE TRANSACTION 'p'").unwrap();
    everything_is_done(&cluster, &mut client, "second");
    assert_eq!(entered(&cluster, &mut client, "other"), 0);
    other.batch_execute("COMMIT PREPARED 'p'").unwrap();
    gets_keeper(&mut client, "other");
    other.batch_execute("BEGIN; DROP EXTENSION obanrs; PREPARE TRANSACTION 'p'").unwrap();
    other.batch_execute("ROLLBACK PREPARED 'p'").unwrap();
    other.batch_execute("BEGIN; DROP EXTENSION obanrs; PREPARE TRANSACTION 'p'").unwrap();
    assert!(keeper(&mut client, "other").is_some());
    other.batch_execute("COMMIT PREPARED 'p'").unwrap();
    wait_until("its slot is free", || {
        client.one("SELECT count(*) = 0 FROM oban_workers WHERE database = 'other'")
    });
}

/// A commit that tells of the extension does not wait for a session that has locked pg_extension. (CREATE
/// EXTENSION releases its own lock early.)
#[test]
fn a_commit_waits_for_no_lock() {
    let cluster = talkative();
    let mut client = cluster.client();
    for (name, end) in [("first", "COMMIT"), ("second", "COMMIT PREPARED 'p'")] {
        client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).unwrap();
        let (mut other, mut locker) = (cluster.client_of(name), cluster.client_of(name));
        other.batch_execute("SET lock_timeout = '20s'; BEGIN; CREATE EXTENSION obanrs").unwrap();
        if end != "COMMIT" {
            other.batch_execute("PREPARE TRANSACTION 'p'").unwrap();
        }
        locker.batch_execute("BEGIN; LOCK TABLE pg_extension").unwrap();
        other.batch_execute(end).unwrap();
        locker.batch_execute("ROLLBACK").unwrap();
        gets_keeper(&mut client, name);
    }
}

#[test]
fn copies_of_databases_and_templates_with_the_extension_have_it_too() {
    let cluster = talkative();
    let mut client = cluster.client();
    cluster.client_of("template1").batch_execute("CREATE EXTENSION obanrs").unwrap();
    client.batch_execute("CREATE DATABASE first").unwrap();
    gets_keeper(&mut client, "first");
    client.batch_execute("CREATE DATABASE second IS_TEMPLATE true TEMPLATE first").unwrap();
    client.batch_execute("CREATE DATABASE third TEMPLATE second").unwrap();
    gets_keeper(&mut client, "third");

    cluster.restart();
    let mut client = cluster.client();
    gets_keeper(&mut client, "first");
    client.batch_execute("CREATE DATABASE fourth").unwrap();
    client.batch_execute("CREATE DATABASE fifth TEMPLATE second").unwrap();
    gets_keeper(&mut client, "fourth");
    gets_keeper(&mut client, "fifth");
    assert_eq!(keeper(&mut client, "second"), None, "a template has none");
    assert_eq!(keeper(&mut client, "template1"), None);

    cluster.client_of("template1").batch_execute("DROP EXTENSION obanrs").unwrap();
    wait_until("it can be copied", || client.batch_execute("CREATE DATABASE plain").is_ok());
    everything_is_done(&cluster, &mut client, "sixth");
    assert_eq!(entered(&cluster, &mut client, "plain"), 0);
}

#[test]
fn what_is_invalid_or_takes_no_connections_is_not_entered() {
    let cluster = talkative();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE invalid").unwrap();
    client.batch_execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'invalid'").unwrap();
    client.batch_execute("CREATE DATABASE closed ALLOW_CONNECTIONS false TEMPLATE postgres").unwrap();
    client.batch_execute("CREATE DATABASE plain ALLOW_CONNECTIONS false").unwrap();
    for _ in 0..2 {
        client.batch_execute("DROP DATABASE IF EXISTS ours").unwrap();
        everything_is_done(&cluster, &mut client, "ours");
        for name in ["invalid", "closed", "plain"] {
            assert_eq!(entered(&cluster, &mut client, name), 0, "{name}");
        }
        cluster.restart();
        client = cluster.client();
        gets_keeper(&mut client, "postgres");
    }
    // A copy of a database that could not be entered is entered.
    client.batch_execute("CREATE DATABASE copy TEMPLATE closed").unwrap();
    gets_keeper(&mut client, "copy");
    client.batch_execute("ALTER DATABASE closed ALLOW_CONNECTIONS true").unwrap();
    gets_keeper(&mut client, "closed");
    client.batch_execute("ALTER DATABASE plain ALLOW_CONNECTIONS true").unwrap();
    wait_until("it is looked into", || entered(&cluster, &mut client, "plain") == 1);
    everything_is_done(&cluster, &mut client, "last");
    assert_eq!(entered(&cluster, &mut client, "plain"), 1, "once");
    assert_eq!(entered(&cluster, &mut client, "invalid"), 0);
}

/// A promoted standby finds databases that came while it was a standby.
#[test]
fn a_promoted_standby_looks_into_its_databases() {
    let primary = talkative();
    let standby = primary.standby(&[]);
    let mut client = primary.client();
    client.batch_execute("CREATE DATABASE other").unwrap();
    client.batch_execute("CREATE DATABASE plain").unwrap();
    primary.client_of("other").batch_execute("CREATE EXTENSION obanrs").unwrap();
    primary.wait_for_standby(&standby);
    standby.promote();
    let mut client = standby.client();
    gets_keeper(&mut client, "other");
    gets_keeper(&mut client, "postgres");
    wait_until("it is looked into", || entered(&standby, &mut client, "plain") == 1);
}

/// A look does not wait for a lock, neither while it connects nor while it reads. It ends, and is tried
/// again.
#[test]
fn a_look_waits_for_nobodys_lock() {
    let cluster = talkative();
    let mut client = cluster.client();
    // These databases could not be entered after the server's start.
    for name in ["first", "second"] {
        client
            .batch_execute(&format!("CREATE DATABASE {name} ALLOW_CONNECTIONS false TEMPLATE postgres"))
            .unwrap();
    }
    cluster.restart();
    let mut client = cluster.client();
    looks_are_over(&cluster, &mut client);
    let timeouts = || cluster.log().matches("due to lock timeout").count();
    client.batch_execute("UPDATE pg_database SET datallowconn = true WHERE datname = 'first'").unwrap();
    let mut locker = cluster.client_of("first");
    for (name, lock) in [("first", "pg_extension"), ("second", "pg_db_role_setting")] {
        let before = timeouts();
        locker.batch_execute(&format!("BEGIN; LOCK TABLE {lock}")).unwrap();
        client.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).unwrap();
        wait_until("it gave up twice", || timeouts() >= before + 2);
        assert_eq!(keeper(&mut client, name), None);
        locker.batch_execute("ROLLBACK").unwrap();
        gets_keeper(&mut client, name);
    }
}

/// A call from within a database needs no look.
#[test]
fn a_reader_in_a_database_that_nobody_has_looked_into_is_served() {
    let cluster = talkative();
    let mut client = cluster.client();
    client.batch_execute("CREATE DATABASE other ALLOW_CONNECTIONS false TEMPLATE postgres").unwrap();
    cluster.restart();
    let mut client = cluster.client();
    looks_are_over(&cluster, &mut client);
    client.batch_execute("UPDATE pg_database SET datallowconn = true WHERE datname = 'other'").unwrap();
    let mut other = cluster.client_of("other");
    assert!(other.one::<i64>("SELECT oban_position()") > 0);
    gets_keeper(&mut client, "other");
}
