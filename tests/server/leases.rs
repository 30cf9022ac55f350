//! Members with a lease: for pooled connections, and for processes that may be stopped.

use postgres::Client;

use crate::support::{Ask, Cluster, code, stat, wait_until};

fn join(client: &mut Client, node: &str, lease: &str) -> i64 {
    client.one(&format!("SELECT oban_join('{node}', lease => '{lease}')"))
}

fn leads(client: &mut Client, node: &str) -> bool {
    client.one(&format!("SELECT oban_is_leader(node => '{node}')"))
}

#[test]
fn a_leased_member_lives_by_its_renewals_from_any_session() {
    let cluster = Cluster::installed();
    let mut watch = cluster.client();
    let id = join(&mut cluster.client(), "pooled", "2 seconds"); // the session ends
    assert!(leads(&mut watch, "pooled"));
    let view = watch
        .query_one("SELECT kind, pid, leader, expires_at > now(), expires_at < now() + interval '3 s' FROM oban_members", &[])
        .unwrap();
    assert_eq!((view.get(0), view.get::<_, Option<i32>>(1)), ("lease", None));
    assert_eq!((view.get(2), view.get(3), view.get(4)), (true, true, true));
    let term: i64 = watch.one("SELECT oban_term(node => 'pooled')");
    let row = "SELECT expires_at::text FROM oban_peers";
    let first: String = watch.one(row);
    let lapses = format!("SELECT timezone('UTC', clock_timestamp()) > '{first}'");
    // Other sessions renew the lease, one after another, beyond the end of the first lease.
    while !watch.one::<bool>(&lapses) {
        let mut any = cluster.client();
        assert_eq!(any.one::<Option<i64>>(&format!("SELECT oban_renew({id})")), Some(term));
        // oban_renew promises that the row holds for so long.
        let promised =
            "SELECT expires_at > timezone('UTC', clock_timestamp()) + interval '900 ms' FROM oban_peers";
        assert!(any.one::<bool>(promised));
        assert!(leads(&mut any, "pooled"));
    }
    // Nobody renews any more. The lease, the membership and the row end by themselves.
    wait_until("it is no member", || watch.one::<i64>("SELECT count(*) FROM oban_members") == 0);
    assert!(!leads(&mut watch, "pooled"));
    wait_until("its row is deleted", || watch.one::<i64>("SELECT count(*) FROM oban_peers") == 0);
    assert_eq!(code(&mut watch, &format!("SELECT oban_renew({id})")), "55000");
    assert!(!watch.one::<bool>(&format!("SELECT oban_leave({id})")));
    assert_eq!(stat(&mut watch, "lapses"), 1);
}

#[test]
fn a_lapsed_leader_is_replaced_and_does_not_come_back_by_renewing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let first = join(&mut client, "first", "1 second");
    let second = join(&mut client, "second", "1 minute");
    assert!(leads(&mut client, "first") && !leads(&mut client, "second"));
    let before: i64 = client.one("SELECT oban_term(node => 'first')");
    wait_until("the second leads", || leads(&mut client, "second"));
    assert!(!leads(&mut client, "first"));
    assert_eq!(code(&mut client, &format!("SELECT oban_renew({first})")), "55000");
    let term: i64 = client.one(&format!("SELECT oban_renew({second})"));
    assert!(term > before);
    assert_eq!(client.one::<Option<i64>>("SELECT oban_term(node => 'first')"), None);
    // The time without a leader is shorter than the keeper would sleep otherwise.
    let micros = stat(&mut client, "last_failover_us");
    assert!((0..15_000_000).contains(&micros), "{micros}");
}

#[test]
fn one_process_for_each_node_and_only_for_its_role() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; GRANT SELECT, INSERT ON oban_jobs TO app, other",
        )
        .unwrap();
    let (mut app, mut other) = (cluster.client_as("postgres", "app"), cluster.client_as("postgres", "other"));
    let id = join(&mut app, "a", "1 minute");
    assert_eq!(join(&mut app, "a", "1 minute"), id, "the same session: the same id");
    let mut again = cluster.client_as("postgres", "app");
    let error = again.batch_execute("SELECT oban_join('a', lease => '1 minute')").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "23505");
    assert!(error.hint().unwrap().contains("replace => true"), "{:?}", error.hint());
    assert_eq!(code(&mut app, "SELECT oban_join('a')"), "23505", "bound to the session, it is another");
    for call in ["oban_renew", "oban_resign", "oban_leave"] {
        assert_eq!(code(&mut other, &format!("SELECT {call}({id})")), "42501");
    }
    let replaced: i64 = again.one("SELECT oban_join('a', lease => '1 minute', replace => true)");
    assert_ne!(replaced, id);
    assert_eq!(code(&mut app, &format!("SELECT oban_renew({id})")), "55000", "its place was taken");
    wait_until("the new one leads", || leads(&mut again, "a"));
    assert!(again.one::<bool>(&format!("SELECT oban_leave({replaced})")));
    wait_until("nobody leads", || client.one::<i64>("SELECT count(*) FROM oban_peers") == 0);
}

/// A renewal belongs to the process: a rollback does not take it back.
#[test]
fn renewing_survives_a_rollback() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let id = join(&mut client, "a", "1 minute");
    let ends = "SELECT expires_at::text FROM oban_members";
    let before: String = client.one(ends);
    client.batch_execute(&format!("BEGIN; SELECT oban_renew({id}); ROLLBACK")).unwrap();
    assert!(client.one::<String>(ends) > before);
}

#[test]
fn resigning_lets_another_lead_and_stays_a_member() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let a = join(&mut client, "a", "1 hour");
    let terms = |c: &mut Client| -> Option<i64> {
        c.query_opt("SELECT term FROM oban_leader()", &[]).unwrap().and_then(|r| r.get(0))
    };
    let first = terms(&mut client);
    assert!(client.one::<bool>(&format!("SELECT oban_resign({a})")));
    // The only member stands back, for nodes that are no members.
    assert!(!leads(&mut client, "a"));
    assert_eq!(terms(&mut client), None, "its row was gone when the call returned");
    assert!(!client.one::<bool>(&format!("SELECT oban_resign({a})")), "it does not lead");
    let b = join(&mut client, "b", "1 hour");
    assert!(leads(&mut client, "b"));
    assert!(terms(&mut client) > first);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_members"), 2);
    // When the second member resigns, the first may lead again.
    assert!(client.one::<bool>(&format!("SELECT oban_resign({b})")));
    assert!(leads(&mut client, "a") && !leads(&mut client, "b"), "when the call returned");
}

#[test]
fn discard_all_leaves_what_is_bound_to_the_session() {
    let cluster = Cluster::installed();
    let (mut client, mut watch) = (cluster.client(), cluster.client());
    client.batch_execute("SELECT oban_join('bound'), oban_gossip_put('bound', 'q')").unwrap();
    join(&mut client, "leased", "1 hour");
    assert_eq!(code(&mut client, "BEGIN; DISCARD ALL"), "25001");
    client.batch_execute("ROLLBACK").unwrap();
    let members = "SELECT string_agg(node, ',' ORDER BY node) FROM oban_members";
    assert_eq!(watch.one::<String>(members), "bound,leased", "it did not happen");
    client.batch_execute("DISCARD PLANS").unwrap();
    assert_eq!(watch.one::<String>(members), "bound,leased");
    client.batch_execute("DISCARD ALL").unwrap();
    assert_eq!(watch.one::<String>(members), "leased");
    assert_eq!(watch.one::<i64>("SELECT count(*) FROM oban_gossip"), 0);
    wait_until("the other leads", || leads(&mut watch, "leased"));
    client.batch_execute("SELECT oban_join('bound')").unwrap();
    assert_eq!(watch.one::<String>(members), "bound,leased", "the next process may join");
}

/// After a crash of the server, a session's membership is void, and a member with a lease comes back as it
/// was.
#[test]
fn a_restart_voids_sessions_and_keeps_leases() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('bound', 'Bound')").unwrap();
    client.batch_execute("SELECT oban_join('leased', 'Leased', lease => '1 minute')").unwrap();
    client.batch_execute("SELECT oban_join('gone', 'Gone', lease => '3 seconds')").unwrap();
    let terms =
        "SELECT string_agg(name || ' ' || node || ' ' || term, ', ' ORDER BY name) FROM oban_leadership";
    let before: String = client.one(terms);
    assert_eq!(before.split(", ").count(), 3);
    cluster.stop("immediate");
    cluster.start_again();
    let mut client = cluster.client();
    // Another node joins each name. A leader with a lease stays.
    client
        .batch_execute("SELECT oban_join('other', n) FROM unnest('{Bound,Leased,Gone}'::text[]) n")
        .unwrap();
    let leads = |c: &mut Client, name: &str| -> bool { c.one(&format!("SELECT oban_is_leader('{name}')")) };
    wait_until("the sessions of before are void", || leads(&mut client, "Bound"));
    assert!(!leads(&mut client, "Leased"), "a lease outlives the server's start");
    client.batch_execute("SELECT oban_join('leased', 'Leased', lease => '1 minute')").unwrap();
    wait_until("the member with a lease leads again", || {
        client.one("SELECT oban_is_leader('Leased', 'leased')")
    });
    let after: String = client.one(terms);
    let of_leased = |all: &str| all.split(", ").find(|l| l.starts_with("Leased")).unwrap().to_owned();
    assert_eq!(of_leased(&after), of_leased(&before), "with its row and its term");
    wait_until("a lease that nobody renews runs out", || leads(&mut client, "Gone"));
}

/// A promoted standby may have missed terms. Its new terms lie above all of them, also for a leader that goes
/// on.
#[test]
fn terms_rise_over_a_promotion_that_lost_some() {
    let primary = Cluster::installed();
    let mut client = primary.client();
    client.batch_execute("SELECT oban_join('bound', 'Bound')").unwrap();
    client.batch_execute("SELECT oban_join('leased', 'Leased', lease => '5 minutes')").unwrap();
    client
        .batch_execute("INSERT INTO oban_peers VALUES ('Foreign', 'x', now(), now() + interval '5 minutes')")
        .unwrap();
    let standby = primary.standby(&[]);
    primary.wait_for_standby(&standby);
    standby.client().batch_execute("SELECT pg_wal_replay_pause()").unwrap();
    let terms = |c: &mut Client| -> Vec<(String, i64)> {
        let rows = c.query("SELECT name, term FROM oban_peers ORDER BY name", &[]).unwrap();
        rows.iter().map(|r| (r.get(0), r.get(1))).collect()
    };
    let known = terms(&mut standby.client());
    assert_eq!(known, terms(&mut client), "what it knows");
    // The standby never sees these terms, because it loses its primary before.
    let mut last = known.iter().map(|(_, term)| *term).max().unwrap();
    for n in 0..40 {
        let id: i64 = client.one(&format!("SELECT oban_join('n{n}', 'Lost')"));
        wait_until("it leads", || client.one("SELECT oban_is_leader('Lost')"));
        last = client.one("SELECT oban_term('Lost')");
        client.batch_execute(&format!("SELECT oban_leave({id})")).unwrap();
        wait_until("nobody leads", || client.one("SELECT count(*) = 0 FROM oban_peers WHERE name = 'Lost'"));
    }
    primary.stop("immediate");
    standby.promote();
    let mut client = standby.client();
    client.batch_execute("SELECT oban_join('new', 'Bound')").unwrap();
    wait_until("the first that joins leads", || client.one("SELECT oban_is_leader('Bound')"));
    assert!(client.one::<i64>("SELECT oban_term('Bound')") > last);
    assert_eq!(code(&mut client, &format!("SELECT oban_fence({last}, 'Bound')")), "40001");

    client
        .batch_execute("SELECT oban_join('new', 'Foreign', candidate => true), oban_join('new', 'Leased')")
        .unwrap();
    assert!(
        !client.one::<bool>("SELECT oban_is_leader('Foreign') OR oban_is_leader('Leased')"),
        "they stand"
    );
    let leased: i64 = client.one("SELECT oban_join('leased', 'Leased', lease => '5 minutes')");
    wait_until("the member with a lease leads again", || {
        client.one("SELECT oban_is_leader('Leased', 'leased')")
    });
    assert!(client.one::<i64>(&format!("SELECT oban_renew({leased})")) > last, "above what was lost");
    client.batch_execute("DELETE FROM oban_peers WHERE name = 'Foreign'").unwrap();
    wait_until("ours follows", || client.one("SELECT oban_is_leader('Foreign')"));
    assert!(client.one::<i64>("SELECT oban_term('Foreign')") > last);
}

/// oban_is_leader ignores the transaction's snapshot: shared memory has no snapshots.
#[test]
fn the_leader_is_known_at_every_isolation_level_and_in_read_only_transactions() {
    let cluster = Cluster::installed();
    let (mut client, mut other) = (cluster.client(), cluster.client());
    join(&mut other, "next", "1 hour");
    for mode in ["ISOLATION LEVEL REPEATABLE READ", "ISOLATION LEVEL SERIALIZABLE READ ONLY", "READ ONLY"] {
        let leader: i64 = other.one("SELECT member FROM oban_members WHERE leader");
        client.batch_execute(&format!("BEGIN {mode}; SELECT 1 FROM oban_jobs")).unwrap();
        assert!(leads(&mut client, "next"), "{mode}");
        let term: i64 = client.one("SELECT oban_term(node => 'next')");
        other.batch_execute(&format!("SELECT oban_leave({leader})")).unwrap();
        assert!(!leads(&mut client, "next"), "{mode}: it has just left");
        assert_eq!(client.one::<Option<i64>>("SELECT oban_term(node => 'next')"), None);
        join(&mut other, "next", "1 hour");
        assert!(leads(&mut client, "next"), "{mode}");
        assert!(client.one::<i64>("SELECT oban_term(node => 'next')") > term);
        client.batch_execute("COMMIT").unwrap();
    }
}
