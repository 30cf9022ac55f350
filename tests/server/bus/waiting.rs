//! What does a session hold while it waits, and what ends its wait?

use super::{Answer, installed_with, numbers, ping};
use crate::support::{Ask, Cluster, Stuck, code, wait_until};

/// A waiting session holds no snapshot and no lock. A message, a cancellation and each kind of end reach it.
#[test]
fn a_waiter_holds_nothing_and_obeys() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin.batch_execute("SELECT oban_install('other')").unwrap();
    let waiting = |cluster: &Cluster, database: &str| {
        let mut client = cluster.client_of(database);
        let pid: i32 = client.one("SELECT pg_backend_pid()");
        let thread = std::thread::spawn(move || {
            let row = client.query_one("CALL oban_wait('{sonar}', timeout => '1 hour')", &[]);
            // The driver may find the connection closed before it has read why.
            let code = |e: postgres::Error| e.code().map_or("57P01".into(), |c| c.code().to_owned());
            row.map(|row| Answer::of(&row)).map_err(code)
        });
        let mut admin = cluster.client();
        let sql = format!(
            "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
        );
        wait_until("it waits", || admin.one::<Option<bool>>(&sql) == Some(true));
        (pid, thread)
    };
    let (pid, thread) = waiting(&cluster, "postgres");
    let holds = format!(
        "SELECT backend_xmin IS NULL AND backend_xid IS NULL
             AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype <> 'virtualxid')
         FROM pg_stat_activity a WHERE pid = {pid}"
    );
    assert!(admin.one::<bool>(&holds), "no snapshot, no transaction id, no lock");
    // Messages of another channel, of another prefix, or of a verbatim channel of the same name do not wake
    // it.
    let switches = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap().to_owned();
        line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()
    };
    let before = switches(pid);
    for n in 0..200 {
        admin.batch_execute(&format!("SELECT oban_notify('gossip', '{{\"n\":{n}}}'), oban_notify('sonar', '{{\"n\":{n}}}', 'other'), oban_notify('public.oban_sonar', '{{\"n\":{n}}}', '')")).unwrap();
    }
    assert_eq!(switches(pid), before, "nothing wakes it");
    admin.batch_execute(&ping(7)).unwrap();
    let answer = thread.join().unwrap().unwrap();
    assert_eq!((numbers(&answer.payloads), answer.missed), (vec![7], Some(0)));

    let (pid, thread) = waiting(&cluster, "postgres");
    admin.execute("SELECT pg_cancel_backend($1)", &[&pid]).unwrap();
    assert_eq!(thread.join().unwrap(), Err("57014".into()));
    let (pid, thread) = waiting(&cluster, "postgres");
    admin.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    assert_eq!(thread.join().unwrap(), Err("57P01".into()));
    admin.batch_execute(&ping(8)).unwrap();

    admin.batch_execute("CREATE DATABASE doomed").unwrap();
    cluster.client_of("doomed").batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let (_, thread) = waiting(&cluster, "doomed");
    admin.batch_execute("DROP DATABASE doomed WITH (FORCE)").unwrap();
    assert_eq!(thread.join().unwrap(), Err("57P01".into()));

    // A client ends without a word.
    let mut shell = cluster.shell();
    let pid: i32 = shell.ask("SELECT pg_backend_pid()").parse().unwrap();
    shell.tell("CALL oban_wait(timeout => '1 hour')");
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    let waits = format!("{sql} AND wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker')");
    wait_until("it waits", || admin.one::<i64>(&waits) == 1);
    shell.kill();
    wait_until("its session is gone, too", || admin.one::<i64>(&sql) == 0);

    // DROP EXTENSION wakes a waiter, which finds that there is nothing to wait for any more.
    admin.batch_execute("CREATE DATABASE plain").unwrap();
    let mut plain = cluster.client_of("plain");
    plain.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let (_, thread) = waiting(&cluster, "plain");
    plain.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    assert_eq!(thread.join().unwrap(), Err("55000".into()));

    let (_, thread) = waiting(&cluster, "postgres");
    cluster.stop("fast");
    assert_eq!(thread.join().unwrap(), Err("57P01".into()));
}

/// A termination that comes while a CALL still commits ends the session before it waits.
#[test]
fn a_termination_during_the_commit_is_not_slept_over() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE PROCEDURE insert_and_wait() LANGUAGE plpgsql AS $$
             DECLARE p bigint; m bigint; j jsonb;
             BEGIN
                 INSERT INTO oban_jobs (worker) VALUES ('w');
                 CALL oban_wait('{sonar}', timeout => '1 hour', \"position\" => p, missed => m, messages => j);
             END $$",
        )
        .unwrap();
    let probe = Stuck::start(&cluster, cluster.client(), "INSERT INTO oban_jobs (worker) VALUES ('w')");
    // Now every commit waits for a standby, also the one in the midst of a CALL.
    let call = Stuck::start(&cluster, cluster.client(), "CALL insert_and_wait()");
    let gone = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {})", call.pid);
    call.end(&mut admin, "pg_terminate_backend");
    wait_until("it is gone", || admin.one(&gone));
    probe.end(&mut admin, "pg_terminate_backend");
}

#[test]
fn a_right_that_is_revoked_while_waiting_is_gone() {
    let cluster = installed_with(&[]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE ROLE joe LOGIN; GRANT SELECT (id) ON oban_jobs TO joe").unwrap();
    let mut joe = cluster.client_as("postgres", "joe");
    let pid: i32 = joe.one("SELECT pg_backend_pid()");
    let thread = std::thread::spawn(move || code(&mut joe, "CALL oban_wait('{sonar}')"));
    let waits = format!(
        "SELECT wait_event IN ('Extension', 'ObanrsWait', 'ObanrsWorker') FROM pg_stat_activity WHERE pid = {pid}"
    );
    wait_until("it waits", || admin.one::<Option<bool>>(&waits) == Some(true));
    admin.batch_execute("REVOKE SELECT (id) ON oban_jobs FROM joe").unwrap();
    admin.batch_execute(&ping(1)).unwrap();
    assert_eq!(thread.join().unwrap(), "42501");
}
