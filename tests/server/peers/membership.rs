//! When does a process become a member, lead, and stop being one?

use fallible_iterator::FallibleIterator;
use postgres::Client;

use super::leader;
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, code, wait_for, wait_until};

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
            Some(wait_for("a session leads", || (0..sessions.len()).find(|i| leads(&mut sessions[*i]))))
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

/// The views are parallel restricted: the leader of a parallel plan runs them, where Postgres takes no new
/// snapshot. (oban_check, which takes one, keeps a plan from being parallel.)
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
