//! Members and leaders: who leads, when not, and what other nodes see of it.

use fallible_iterator::FallibleIterator;
use postgres::Client;

use crate::support::{Ask, Cluster, Stuck, code, wait_for, wait_until};

fn leads(client: &mut Client) -> bool {
    client.one("SELECT oban_is_leader()")
}

fn join(client: &mut Client, node: &str) -> i64 {
    client.query_one("SELECT oban_join($1, candidate => true)", &[&node]).unwrap().get(0)
}

/// Node and term of the row in oban_peers, whoever wrote it.
fn leader(client: &mut Client) -> Option<(String, Option<i64>)> {
    let row = client.query_opt("SELECT node, term FROM oban_leader()", &[]).unwrap();
    row.map(|r| (r.get(0), r.get(1)))
}

#[test]
fn a_sole_member_leads_when_join_returns() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    join(&mut client, "a");
    assert!(leads(&mut client));
    let term: Option<i64> = client.one("SELECT oban_term()");
    assert_eq!(leader(&mut client), Some(("a".into(), term)));
    assert!(term.is_some());
    let views = client.query_one(
        "SELECT m.node, m.kind, m.pid = pg_backend_pid(), m.leader, l.node, l.term
         FROM oban_members m JOIN oban_leadership l USING (prefix, name)",
        &[],
    );
    let row = views.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2), row.get(3)), ("a", "session", true, true));
    assert_eq!((row.get(4), row.get(5)), ("a", term));
    let mut other = cluster.client();
    assert!(!leads(&mut other), "another session is no member");
    let of_node = "SELECT oban_is_leader(node => 'a'), oban_term(node => 'a'), oban_is_leader(node => 'b')";
    let row = other.query_one(of_node, &[]).unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (true, term, false));
}

#[test]
fn a_member_whose_process_is_killed_is_replaced_at_once() {
    let cluster = Cluster::installed();
    let mut first = cluster.shell();
    first.ask("SELECT oban_join('first')");
    assert_eq!(first.ask("SELECT oban_is_leader()"), "t");
    first.ask("SELECT oban_gossip_put('first', 'default') IS NULL");
    let mut second = cluster.client();
    join(&mut second, "second");
    assert!(!leads(&mut second));
    let before = leader(&mut second).unwrap().1;

    second.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    first.kill();
    // No timer could do this: the lease has nearly 30 s to go.
    wait_until("the second leads", || leads(&mut second));
    assert!(leader(&mut second).unwrap().1 > before, "a later term");
    let gossip = second.query_one("SELECT count(*) FROM oban_gossip", &[]).unwrap();
    assert_eq!(gossip.get::<_, i64>(0), 0, "its queues went with it");
    let heard: Vec<String> =
        second.notifications().iter().map(|n| Ok(n.payload().to_owned())).collect().unwrap();
    assert_eq!(heard, [r#"{"down":"Oban"}"#], "announced once");
}

#[test]
fn leaving_ends_it_and_only_for_its_own_role() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE ROLE other LOGIN;
             GRANT SELECT, INSERT ON oban_jobs TO app, other",
        )
        .unwrap();
    let (mut app, mut other) = (cluster.client_as("postgres", "app"), cluster.client_as("postgres", "other"));
    let id = join(&mut app, "a");
    assert_eq!(code(&mut other, &format!("SELECT oban_leave({id})")), "42501");
    assert_eq!(code(&mut other, "SELECT oban_join('a')"), "23505");
    assert_eq!(code(&mut other, "SELECT oban_join('a', replace => true)"), "42501");
    assert!(leads(&mut app));

    let leave = format!("SELECT oban_leave({id})");
    assert!(app.one::<bool>(&leave));
    assert!(!app.one::<bool>(&leave), "it is none any more");
    assert!(!leads(&mut app));
    wait_until("the row is gone", || leader(&mut client).is_none());
    join(&mut other, "a");
    wait_until("the next leads", || leads(&mut other));
}

#[test]
fn joining_is_about_the_process_not_about_the_transaction() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let id = {
        let mut transaction = client.transaction().unwrap();
        let id: i64 = transaction.one("SELECT oban_join('a')");
        assert!(transaction.one::<bool>("SELECT oban_is_leader()"));
        transaction.rollback().unwrap();
        id
    };
    assert!(leads(&mut client), "it survives the rollback");
    assert_eq!(join(&mut client, "a"), id, "the same session: the same id");
    let mut second = cluster.client();
    let error = second.query_one("SELECT oban_join('a')", &[]).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "23505");
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    assert!(error.hint().unwrap().contains(&pid.to_string()), "{:?}", error.hint());

    second.query_one("SELECT oban_join('a', replace => true)", &[]).unwrap();
    wait_until("the replacement leads", || leads(&mut second));
    assert!(!leads(&mut client), "the replaced one does not");
}

#[test]
fn names_prefixes_and_databases_have_leaders_of_their_own() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('Größe \"1\"')").unwrap();
    client.batch_execute("CREATE DATABASE other").unwrap();
    let mut other = cluster.client_of("other");
    other.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let mut second = cluster.client();
    join(&mut client, "a");
    second.query_one("SELECT oban_join('a', 'Another')", &[]).unwrap();
    second.query_one(r#"SELECT oban_join('a', prefix => 'Größe "1"')"#, &[]).unwrap();
    join(&mut other, "a");
    assert!(leads(&mut client) && !leads(&mut second));
    wait_until("the other database's leads", || leads(&mut other));
    for sql in ["SELECT oban_is_leader('Another')", r#"SELECT oban_is_leader(prefix => 'Größe "1"')"#] {
        assert!(second.one::<bool>(sql), "{sql}");
    }
    let count = |c: &mut Client, view: &str| -> i64 { c.one(&format!("SELECT count(*) FROM {view}")) };
    assert_eq!((count(&mut client, "oban_members"), count(&mut client, "oban_leadership")), (3, 3));
    assert_eq!((count(&mut other, "oban_members"), count(&mut other, "oban_leadership")), (1, 1));
}

fn lease_of_a_second(client: &mut Client) {
    client.batch_execute("ALTER SYSTEM SET obanrs.lease = '1s'").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until("the setting is read", || {
        client.one::<String>("SELECT current_setting('obanrs.lease')") == "1s"
    });
}

#[test]
fn a_lease_is_renewed_by_the_keeper_and_only_its_own() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    join(&mut client, "a");
    let row = |c: &mut Client| -> (String, String) {
        let row = c.query_one("SELECT started_at::text, expires_at::text FROM oban_peers", &[]).unwrap();
        (row.get(0), row.get(1))
    };
    let first = row(&mut client);
    for _ in 0..2 {
        let before = row(&mut client).1;
        wait_until("it was renewed", || row(&mut client).1 > before);
    }
    assert_eq!(row(&mut client).0, first.0, "started_at stays");
    assert!(leads(&mut client));

    // Another node's row in its place: the renewal leaves it alone, and ours leads no more.
    client
        .batch_execute(
            "BEGIN; DELETE FROM oban_peers; INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Oban', 'elixir', timezone('UTC', now()), timezone('UTC', now()) + interval '1 hour'); COMMIT",
        )
        .unwrap();
    wait_until("ours noticed", || !leads(&mut client));
    assert_eq!(leader(&mut client).unwrap().0, "elixir");
    let hour: bool =
        client.one("SELECT expires_at > timezone('UTC', now()) + interval '50 minutes' FROM oban_peers");
    assert!(hour, "its lease was not touched");
}

#[test]
fn a_foreign_leader_is_respected_until_its_lease_ends() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Oban', 'elixir', timezone('UTC', now()), timezone('UTC', clock_timestamp()) + interval '4 seconds')",
        )
        .unwrap();
    join(&mut client, "a");
    assert_eq!(leader(&mut client).unwrap().0, "elixir");
    assert!(!leads(&mut client));
    client.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    wait_until("ours takes over", || leads(&mut client));
    let heard: Vec<String> =
        client.notifications().iter().map(|n| Ok(n.payload().to_owned())).collect().unwrap();
    assert_eq!(heard, [r#"{"down":"Oban"}"#]);
}

#[test]
fn a_keeper_that_dies_does_not_cost_the_leader_its_place() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    join(&mut client, "a");
    let before = leader(&mut client);
    for _ in 0..5 {
        let kill = "SELECT pid FROM oban_workers, pg_terminate_backend(pid) WHERE kind = 'keeper' AND pid IS NOT NULL";
        wait_for("a keeper to kill", || client.query_opt(kill, &[]).unwrap());
        assert!(leads(&mut client));
    }
    let mut second = cluster.client();
    join(&mut second, "b");
    assert!(leads(&mut client) && !leads(&mut second));
    assert_eq!(leader(&mut client), before);
    drop(client);
    wait_until("the second leads", || leads(&mut second));
}

/// What a keeper leaves that died between its commit and telling shared memory: a row of this start of
/// the server. If the row's session lives it leads, if not the row is void.
#[test]
fn a_row_that_nobody_knows_of_is_adopted_or_voided() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    join(&mut client, "a");
    let forget = |c: &mut Client, node: &str| {
        // The row gets another identity than shared memory knows, so that the next renewal misses it.
        let sql = "UPDATE oban_peers SET node = $1, term = term + 100";
        c.batch_execute("SET session_replication_role = replica").unwrap(); // past the triggers
        assert_eq!(c.execute(sql, &[&node]).unwrap(), 1);
        c.batch_execute("RESET session_replication_role").unwrap();
    };
    let term = leader(&mut client).unwrap().1.unwrap();
    forget(&mut client, "a");
    wait_until("the row's term is taken over", || {
        client.one::<Option<i64>>("SELECT oban_term()") == Some(term + 100)
    });
    forget(&mut client, "a session that is gone");
    wait_until("the row is void and a new election held", || {
        leader(&mut client).is_some_and(|(node, _)| node == "a") && leads(&mut client)
    });
}

#[test]
fn a_locked_table_delays_elections_and_nothing_else() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('second')").unwrap();
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; LOCK TABLE public.oban_peers").unwrap();
    join(&mut client, "a");
    assert!(!leads(&mut client));
    let other = "SELECT oban_join('a', prefix => 'second')";
    client.query_one(other, &[]).unwrap();
    let sql = "SELECT oban_is_leader(prefix => 'second')";
    wait_until("the other prefix has a leader", || client.one(sql));
    assert_eq!(
        cluster.log().matches("wait for a lock on its table of leaders").count(),
        1,
        "it is logged once"
    );
    let shown = "SELECT last_error FROM oban_workers WHERE kind = 'keeper'";
    let shown: String = client.one(shown);
    assert!(shown.contains("\"public\"") && shown.contains("wait for a lock"), "{shown}");
    locker.batch_execute("COMMIT").unwrap();
    wait_until("the first has one now", || leads(&mut client));
}

#[test]
fn a_missing_table_turns_leadership_off_until_it_appears() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for name in ["Oban", "Other"] {
        client.query_one("SELECT oban_join('a', $1)", &[&name]).unwrap();
    }
    assert!(!leads(&mut client));
    assert!(leader(&mut client).is_none());
    let hints =
        |cluster: &Cluster| cluster.log().matches("obanrs holds no elections in prefix \"public\"").count();
    assert_eq!(hints(&cluster), 1, "one warning for the prefix:\n{}", cluster.log());
    client.batch_execute("SELECT oban_install()").unwrap();
    wait_until("it leads", || leads(&mut client));
    assert_eq!(hints(&cluster), 1);
}

#[test]
fn many_members_and_one_leader_at_a_time() {
    let cluster = Cluster::installed();
    let mut watch = cluster.client();
    let mut sessions: Vec<Client> = (0..20).map(|_| cluster.client()).collect();
    for (i, session) in sessions.iter_mut().enumerate() {
        join(session, &format!("n{i}"));
    }
    let mut terms = Vec::new();
    while let Some(at) = {
        let leading: Vec<usize> = (0..sessions.len()).filter(|i| leads(&mut sessions[*i])).collect();
        assert!(leading.len() <= 1, "{leading:?} lead");
        if sessions.is_empty() {
            None
        } else {
            Some(wait_for("somebody leads", || (0..sessions.len()).find(|i| leads(&mut sessions[*i]))))
        }
    } {
        terms.push(leader(&mut watch).unwrap().1.unwrap());
        drop(sessions.swap_remove(at));
    }
    assert_eq!(terms.len(), 20);
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    wait_until("nobody leads", || leader(&mut watch).is_none());
}

#[test]
fn a_full_table_of_members_is_an_error_that_names_the_setting() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_members = 2"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let a = join(&mut client, "a");
    let (mut second, mut third) = (cluster.client(), cluster.client());
    join(&mut second, "b");
    let error = third.query_one("SELECT oban_join('c')", &[]).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "53400");
    assert!(error.hint().unwrap().contains("obanrs.max_members"));
    client.query_one("SELECT oban_leave($1)", &[&a]).unwrap();
    join(&mut third, "c");
}

/// The row of a foreign node that resigns is not waited for until its lease ends.
#[test]
fn a_foreign_leader_that_resigns_is_noticed() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    client
        .batch_execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Oban', 'elixir', timezone('UTC', now()), timezone('UTC', now()) + interval '1 hour')",
        )
        .unwrap();
    join(&mut client, "a");
    assert!(!leads(&mut client));
    client.batch_execute("DELETE FROM oban_peers").unwrap();
    wait_until("ours takes over", || leads(&mut client));
}

#[test]
fn terms_rise_over_a_new_extension() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    join(&mut client, "a");
    let first = leader(&mut client).unwrap().1;
    let again = "DROP EXTENSION obanrs CASCADE; CREATE EXTENSION obanrs; SELECT oban_install()";
    client.batch_execute(again).unwrap();
    join(&mut client, "a");
    wait_until("it leads in the new extension, too", || leads(&mut client));
    let mut second = cluster.client();
    join(&mut second, "b");
    drop(client);
    wait_until("the second leads", || leads(&mut second));
    assert!(leader(&mut second).unwrap().1 > first, "{first:?}, {:?}", leader(&mut second));
}

#[test]
fn a_member_may_join_in_the_transaction_that_creates_the_extension() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    client
        .batch_execute("BEGIN; CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_join('a')")
        .unwrap();
    client.batch_execute("COMMIT").unwrap();
    wait_until("it leads", || leads(&mut client));
}

/// A commit that waits for its standby holds the lock that every NOTIFY of the server queues for.
#[test]
fn a_failover_waits_for_other_peoples_notifications_and_is_not_rolled_back() {
    let cluster = Cluster::installed();
    let mut first = cluster.shell();
    first.ask("SELECT oban_join('first')");
    let mut second = cluster.client();
    join(&mut second, "second");

    let mut stuck = cluster.client();
    stuck.batch_execute("SET obanrs.notifier = postgres").unwrap();
    let stuck = Stuck::start(&cluster, stuck, "INSERT INTO oban_jobs (worker) VALUES ('w')");
    first.kill();
    // Longer than any lock of a user's table is waited for.
    wait_until("the keeper goes on waiting for that commit", || {
        let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   WHERE NOT l.granted AND a.backend_type = 'obanrs keeper'
                     AND clock_timestamp() - l.waitstart > interval '150 milliseconds'";
        second.one::<i64>(sql) == 1
    });
    stuck.end(&mut second, "pg_cancel_backend");
    wait_until("the second leads", || leads(&mut second));
    assert!(!cluster.log().contains("will try again"), "{}", cluster.log());
}

/// A keeper that waits for a lock resets its latch there, and with it the news of the leader's end.
/// (Were the news lost, Postgres' own timer for the lock would happen to wake it some 45 ms later; that
/// the keeper does not rely on it is tested in `logic::lifecycle`.)
#[test]
fn nothing_is_slept_over_while_a_table_is_locked() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('locked')").unwrap();
    for round in 0..10 {
        let mut leader = cluster.client();
        join(&mut leader, "leader");
        wait_until("it leads", || leads(&mut leader));
        let mut next = cluster.client();
        join(&mut next, "next");
        let mut locker = cluster.client();
        locker.batch_execute("BEGIN; LOCK TABLE locked.oban_peers").unwrap();
        // The keeper runs into that lock now, and meanwhile the leader of the other prefix goes.
        let node = format!("n{round}");
        let joiner = std::thread::spawn({
            let mut session = cluster.client();
            move || session.query_one("SELECT oban_join($1, prefix => 'locked')", &[&node]).map(|_| session)
        });
        wait_until("the keeper waits for the lock", || {
            let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                       WHERE NOT l.granted AND a.backend_type = 'obanrs keeper'";
            client.one::<i64>(sql) == 1
        });
        drop(leader);
        wait_until("the leader is gone", || {
            let sql = "SELECT count(*) FROM oban_members WHERE prefix = 'public'";
            client.one::<i64>(sql) == 1
        });
        locker.batch_execute("COMMIT").unwrap();
        wait_until("the next leads", || leads(&mut next));
        joiner.join().unwrap().unwrap();
    }
}

#[test]
fn a_locked_row_costs_only_its_own_name() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    // The one that will be locked comes first in every list.
    client.query_one("SELECT oban_join('a', 'Locked')", &[]).unwrap();
    join(&mut client, "a");
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; SELECT FROM oban_peers WHERE name = 'Locked' FOR UPDATE").unwrap();
    let locked = "SELECT oban_is_leader('Locked')";
    wait_until("its lease runs out", || !client.one::<bool>(locked));
    let expiry =
        |c: &mut Client| -> String { c.one("SELECT expires_at::text FROM oban_peers WHERE name = 'Oban'") };
    let term = leader(&mut client);
    for _ in 0..4 {
        let before = expiry(&mut client);
        wait_until("the other name's lease is renewed", || expiry(&mut client) > before);
        assert!(leads(&mut client));
    }
    assert_eq!(leader(&mut client), term, "without an interruption");
    locker.batch_execute("COMMIT").unwrap();
    wait_until("the locked one leads again", || client.one(locked));
}

#[test]
fn a_row_that_can_not_be_renewed_is_no_busy_loop() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    join(&mut client, "a");
    wait_until("it leads", || leads(&mut client));
    let first = leader(&mut client).unwrap().1;
    let mut holder = cluster.client();
    holder.batch_execute("BEGIN; SELECT FROM oban_peers FOR UPDATE").unwrap();
    wait_until("the lease runs out", || !leads(&mut client));
    holder.batch_execute("COMMIT").unwrap();
    wait_until("another leadership begins", || leader(&mut client).is_some_and(|(_, term)| term > first));
    let leads = cluster.log().matches(" leads ").count();
    assert!(leads <= 2, "{leads} elections in two leases:\n{}", cluster.log());
    assert!(!cluster.log().contains("failed"), "nothing failed:\n{}", cluster.log());
}

/// A table that is missing is not asked for again and again; one that is back is found by the call that the
/// warning names.
#[test]
fn a_missing_table_costs_nothing_while_it_is_missing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    join(&mut client, "a");
    client.batch_execute("ALTER TABLE oban_peers RENAME TO away").unwrap();
    client.batch_execute("SELECT oban_join('a', 'Other')").unwrap(); // the keeper finds out
    wait_until("it has warned", || cluster.log().contains("holds no elections"));
    let keeper = "SELECT wait_event_type || ' ' || state_change FROM pg_stat_activity WHERE backend_type = 'obanrs keeper'";
    let mut before = String::new();
    // Twice the time after which it looked again once.
    wait_until("it sleeps", || {
        let now: String = client.one(keeper);
        let same = now == before && now.starts_with("Extension");
        before = now;
        same
    });
    let slept: String = client.one("SELECT clock_timestamp()::text");
    let later = format!("SELECT clock_timestamp() > '{slept}'::timestamptz + interval '2.5 s'");
    wait_until("some time has passed", || client.one(&later));
    assert_eq!(client.one::<String>(keeper), before, "it has done nothing since");
    client.batch_execute("ALTER TABLE away RENAME TO oban_peers; SELECT oban_install()").unwrap();
    wait_until("both lead", || client.one("SELECT count(*) = 2 FROM oban_members WHERE leader"));
}

/// The views are parallel restricted: the leader of a parallel plan runs them, where Postgres takes no new snapshot.
/// (oban_check, which takes one, keeps a plan from being parallel.)
#[test]
fn views_of_leaders_can_be_part_of_a_parallel_plan() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    join(&mut client, "a");
    wait_until("it leads", || leads(&mut client));
    client
        .batch_execute(
            "CREATE TABLE big AS SELECT i FROM generate_series(1, 200000) i; ANALYZE big;
             SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
        )
        .unwrap();
    client.batch_execute("SELECT oban_gossip_put('a', 'q')").unwrap();
    let query =
        "SELECT count(*) FROM big b, oban_leadership l, oban_members m, oban_leader() o, oban_gossip g,
                     (SELECT count(*) FROM oban_stats) s, (SELECT count(*) FROM oban_workers) w
                 WHERE b.i > 199000 AND oban_is_leader() AND oban_term(node => 'a') > 0";
    let plan = client.query(&format!("EXPLAIN {query}"), &[]).unwrap();
    assert!(plan.iter().any(|line| line.get::<_, &str>(0).contains("Gather")), "it is parallel");
    assert_eq!(client.one::<i64>(query), 1_000);
    client.query("SELECT count(*) FROM big b, oban_check() c WHERE b.i > 199000", &[]).unwrap();
}

/// A listener that stays in its transaction has NOTIFY's queue fill. Elections do not wait for it, and what they could
/// not announce is announced as soon as there is room, by another keeper, too.
#[test]
fn elections_go_on_while_notifys_queue_is_full() {
    let old = "SELECT current_setting('server_version_num')::int < 170000";
    if Cluster::installed().client().one::<bool>(old) {
        return; // the queue has 8 GB
    }
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_notify_queue_pages = 64"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_leader\"; LISTEN junk").unwrap();
    listener.batch_execute("BEGIN; SELECT 1").unwrap(); // it reads nothing until it ends
    let fill = "SELECT pg_notify('junk', n || repeat('x', 7000)) FROM generate_series(1, 20) n";
    let full = (0..1_000).any(|_| client.batch_execute(fill).is_err());
    assert!(full, "the queue can be filled");

    // A leader that goes, and a row of a foreign node that expires.
    client
        .batch_execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Other', 'ex', timezone('utc', now()), timezone('utc', now()) + interval '1 s')",
        )
        .unwrap();
    let mut first = cluster.client();
    join(&mut first, "first");
    let mut second = cluster.client();
    join(&mut second, "second");
    let term: i64 = first.one("SELECT oban_term()");
    drop(first);
    wait_until("the second leads", || leads(&mut second));
    assert!(second.one::<i64>("SELECT oban_term()") > term);
    wait_until("the expired row is gone", || client.one("SELECT count(*) = 1 FROM oban_peers"));
    assert!(leads(&mut second));

    let kill =
        "SELECT count(pg_terminate_backend(pid)) FROM oban_workers WHERE kind = 'keeper' AND pid IS NOT NULL";
    assert_eq!(client.one::<i64>(kill), 1);
    listener.batch_execute("COMMIT").unwrap();
    let mut downs = Vec::new();
    wait_until("both ends are announced", || {
        let mut notifications = listener.notifications();
        let mut heard = notifications.timeout_iter(std::time::Duration::from_millis(100));
        while let Some(n) = heard.next().unwrap() {
            if n.channel() == "public.oban_leader" {
                downs.push(n.payload().to_owned());
            }
        }
        downs.len() >= 2
    });
    downs.sort();
    assert_eq!(downs, [r#"{"down":"Oban"}"#, r#"{"down":"Other"}"#]);
}
