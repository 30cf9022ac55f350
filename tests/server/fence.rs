//! A stale leader's write is refused, and there is no other leader while a leader's write is on its way.

use postgres::Client;

use crate::readme;
use crate::support::elixir::{Form, elect};
use crate::support::{Ask, Cluster, code, stat, wait_until};

fn term(client: &mut Client, node: &str) -> i64 {
    client.one::<i64>(&format!("SELECT oban_join('{node}', candidate => true)"));
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    client.one("SELECT oban_term()")
}

fn refused(client: &mut Client) -> i64 {
    stat(client, "fences_refused")
}

#[test]
fn a_fence_passes_with_the_term_that_is_held_and_no_other() {
    let cluster = Cluster::installed();
    let (mut leader, mut other) = (cluster.client(), cluster.client());
    let held = term(&mut leader, "a");
    // Any session that has the term may fence, such as a session of a pool.
    for client in [&mut leader, &mut other] {
        client.batch_execute(&format!("SELECT oban_fence({held})")).unwrap();
        for wrong in [held - 1, held + 1, 0, i64::MAX] {
            assert_eq!(code(client, &format!("SELECT oban_fence({wrong})")), "40001");
        }
        assert_eq!(code(client, &format!("SELECT oban_fence({held}, 'Another')")), "40001");
    }
    assert_eq!(refused(&mut other), 10);
    assert_eq!(code(&mut other, &format!("BEGIN READ ONLY; SELECT oban_fence({held})")), "25006");
    other.batch_execute("ROLLBACK").unwrap();
    let next: i64 = other.one("SELECT oban_join('b')");
    leader.batch_execute("SELECT oban_leave(member) FROM oban_members WHERE node = 'a'").unwrap();
    wait_until("the next leads", || other.one("SELECT oban_is_leader()"));
    assert_eq!(code(&mut leader, &format!("SELECT oban_fence({held})")), "40001", "a stale leader");
    let held: i64 = other.one(&format!("SELECT oban_renew({next})"));
    other.batch_execute(&format!("SELECT oban_fence({held})")).unwrap();
}

#[test]
fn nobody_else_leads_until_the_fencing_transaction_ends() {
    let cluster = Cluster::installed();
    let mut watch = cluster.client();
    for end in ["COMMIT", "ROLLBACK", "ROLLBACK TO s", "the session's end", "COMMIT PREPARED 'p'"] {
        let (mut leader, mut worker, mut next) = (cluster.client(), cluster.client(), cluster.client());
        let held = term(&mut leader, "a");
        let second: i64 = next.one("SELECT oban_join('b')");
        worker.batch_execute(&format!("BEGIN; SAVEPOINT s; SELECT oban_fence({held})")).unwrap();
        if end.ends_with("'p'") {
            worker.batch_execute("PREPARE TRANSACTION 'p'").unwrap();
        }
        // A renewal of the lease does not wait for the fence. Otherwise the keeper could not renew.
        let renewed = "UPDATE oban_peers SET expires_at = expires_at + interval '1 s'";
        watch
            .batch_execute(&format!(
                "SET session_replication_role = replica; SET lock_timeout = '1s'; {renewed}"
            ))
            .unwrap();
        drop(leader);
        wait_until("the leader is gone", || watch.one("SELECT count(*) = 1 FROM oban_members"));
        // When this join returns, the keeper has been through a pass. It has tried the row and left it.
        cluster.client().batch_execute("SELECT oban_join('c')").unwrap();
        assert!(!next.one::<bool>("SELECT oban_is_leader()"));
        assert_eq!(watch.one::<i64>("SELECT term FROM oban_peers"), held, "{end}: its row is there");
        assert_eq!(
            code(&mut watch, &format!("SELECT oban_fence({held})")),
            "40001",
            "{end}: it leads no more"
        );
        if end == "the session's end" {
            drop(worker);
        } else {
            worker.batch_execute(end).unwrap();
        }
        wait_until("the next leads", || next.one("SELECT oban_is_leader()"));
        assert!(watch.one::<i64>("SELECT term FROM oban_peers") > held, "{end}");
        next.batch_execute(&format!("SELECT oban_leave({second})")).unwrap();
        wait_until("no row is left", || watch.one("SELECT count(*) = 0 FROM oban_peers"));
    }
}

/// A transaction whose snapshot is older than the election must not write for the new leader.
#[test]
fn a_snapshot_older_than_the_election_is_refused() {
    let cluster = Cluster::installed();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let (mut old, mut leader) = (cluster.client(), cluster.client());
        old.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT 1 FROM oban_jobs")).unwrap();
        let held = term(&mut leader, "a");
        assert_eq!(code(&mut old, &format!("SELECT oban_fence({held})")), "40001", "{level}");
        old.batch_execute("ROLLBACK").unwrap();
        // A transaction that began after the election may fence, also when the lease was renewed meanwhile.
        old.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT 1 FROM oban_jobs")).unwrap();
        let renew = "SET session_replication_role = replica; UPDATE oban_peers SET expires_at = expires_at + interval '1 s'";
        cluster.client().batch_execute(renew).unwrap();
        old.batch_execute(&format!("SELECT oban_fence({held}); COMMIT")).unwrap();
        leader.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
        wait_until("nobody leads", || old.one("SELECT count(*) = 0 FROM oban_peers"));
    }
}

/// A leader was stopped, is replaced, and goes on as the pages of docs teach. At no point does it get a term
/// that it could fence with.
#[test]
fn a_stale_leader_can_not_fence_itself_in_by_what_the_pages_teach() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let stale: i64 = client.one("SELECT oban_join('stale', lease => '1 second')");
    let next: i64 = client.one("SELECT oban_join('next', lease => '1 hour')");
    let held: i64 = client.one(&format!("SELECT oban_renew({stale})"));
    wait_until("it was replaced", || client.one("SELECT oban_is_leader(node => 'next')"));
    assert_eq!(code(&mut client, &format!("SELECT oban_fence({held})")), "40001");
    assert_eq!(code(&mut client, &format!("SELECT oban_renew({stale})")), "55000");
    assert_eq!(client.one::<Option<i64>>("SELECT oban_term(node => 'stale')"), None);
    // oban_term returns NULL here. A fence with NULL is an error.
    assert_eq!(code(&mut client, "SELECT oban_fence(oban_term(node => 'stale'))"), "40001");
    let again: i64 = client.one("SELECT oban_join('stale', lease => '1 hour')");
    assert_eq!(client.one::<Option<i64>>(&format!("SELECT oban_renew({again})")), None, "it follows");
    let taught = readme::blocks_with("oban_fence(");
    assert!(taught.len() > 2, "{taught:?}");
    for line in taught.iter().flat_map(|block| block.lines()).filter(|line| line.contains("oban_fence(")) {
        assert!(!line.contains("oban_leader"), "a page teaches another process's term: {line}");
    }
    let held: i64 = client.one(&format!("SELECT oban_renew({next})"));
    client.batch_execute(&format!("SELECT oban_fence({held})")).unwrap();
}

/// Foreign leaders get terms, and can fence with them. A statement that ends their lease waits for the fence.
#[test]
fn foreign_leaders_can_fence_too() {
    let cluster = Cluster::installed();
    let (mut elixir, mut ours) = (cluster.client(), cluster.client());
    assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
    let held: i64 = elixir.one("SELECT term FROM oban_peers WHERE node = 'x'");
    ours.batch_execute("SELECT oban_join('a', candidate => true)").unwrap();
    elixir.batch_execute(&format!("BEGIN; SELECT oban_fence({held})")).unwrap();
    let pid: i32 = ours.one("SELECT pg_backend_pid()");
    let deletes = std::thread::spawn(move || {
        ours.batch_execute("DELETE FROM oban_peers").unwrap();
        ours
    });
    let mut watch = cluster.client();
    let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
    wait_until("the DELETE waits", || watch.one(&waits));
    elixir.batch_execute("COMMIT").unwrap();
    let mut ours = deletes.join().unwrap();
    wait_until("ours leads", || ours.one("SELECT oban_is_leader()"));
    assert_eq!(code(&mut elixir, &format!("SELECT oban_fence({held})")), "40001");
}

/// A hand-over by UPDATE waits for a fence, as a DELETE does. A later fence waits for the hand-over, and is
/// refused.
#[test]
fn a_hand_over_waits_for_fences_and_fences_wait_for_it() {
    let cluster = Cluster::installed();
    let mut watch = cluster.client();
    let pid = |client: &mut Client| client.one::<i32>("SELECT pg_backend_pid()");
    let waits = |watch: &mut Client, pid: i32| {
        let sql = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
        wait_until("it waits", || watch.one(&sql));
    };
    let take = "UPDATE oban_peers SET node = 'x', expires_at = timezone('utc', now()) + interval '30 s'";
    for (foreign, level, end) in [
        (false, "READ COMMITTED", "COMMIT"),
        (true, "READ COMMITTED", "COMMIT"),
        (false, "REPEATABLE READ", "ROLLBACK"),
        (false, "READ COMMITTED", "ROLLBACK TO s"),
    ] {
        let (mut leader, mut worker, mut other, mut late) =
            (cluster.client(), cluster.client(), cluster.client(), cluster.client());
        let held = if foreign {
            assert!(elect(&mut leader, "e", Form::ByNode, "0").unwrap());
            leader.one("SELECT term FROM oban_peers")
        } else {
            term(&mut leader, "a")
        };
        let fence = format!("SELECT oban_fence({held})");
        worker.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SAVEPOINT s; {fence}")).unwrap();
        let (taking, fencing) = (pid(&mut other), pid(&mut late));
        let took = std::thread::spawn(move || {
            // The transaction stays open after the update, so the row is still locked.
            other.batch_execute(&format!("BEGIN; {take}")).unwrap();
            other
        });
        waits(&mut watch, taking);
        let current = "SELECT term FROM oban_peers";
        assert_eq!(watch.one::<i64>(current), held, "{level} {end}");
        if !foreign {
            assert!(leader.one::<bool>("SELECT oban_is_leader()"), "nothing has happened yet");
        }
        // The session of the fence may fence again.
        worker.batch_execute(&fence).unwrap();
        worker.batch_execute(end).unwrap();
        let mut other = took.join().unwrap();
        // A new fence waits for the end of the hand-over.
        let fenced = std::thread::spawn(move || {
            let result = late.batch_execute(&fence);
            result.map_err(|e| e.code().unwrap().code().to_owned())
        });
        waits(&mut watch, fencing);
        other.batch_execute("COMMIT").unwrap();
        assert_eq!(fenced.join().unwrap(), Err("40001".to_owned()), "{level} {end}");
        assert!(watch.one::<i64>(current) > held, "{level} {end}");
        assert_eq!(watch.one::<String>("SELECT node FROM oban_leader()"), "x");
        watch.batch_execute("DELETE FROM oban_peers").unwrap();
        drop(leader);
        wait_until("no row is left", || {
            watch.one(
                "SELECT (SELECT count(*) = 0 FROM oban_members) AND (SELECT count(*) = 0 FROM oban_peers)",
            )
        });
    }
}

/// An obstacle may come while the row is fenced, because creating an index needs no lock that conflicts with
/// a fence.
#[test]
fn a_fence_holds_also_where_elections_have_ended_since() {
    let cluster = Cluster::installed();
    let (mut leader, mut other, mut watch) = (cluster.client(), cluster.client(), cluster.client());
    let held = term(&mut leader, "a");
    leader.batch_execute(&format!("BEGIN; SELECT oban_fence({held})")).unwrap();
    watch.batch_execute("CREATE INDEX odd ON oban_peers (upper(node))").unwrap();
    assert!(!watch.one::<bool>("SELECT ok FROM oban_check() WHERE item = 'elections in public'"));
    let pid: i32 = other.one("SELECT pg_backend_pid()");
    let took = std::thread::spawn(move || other.batch_execute("UPDATE oban_peers SET node = 'x'"));
    let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
    wait_until("it waits", || watch.one(&waits));
    leader.batch_execute("COMMIT").unwrap();
    took.join().unwrap().unwrap();
    assert!(watch.one::<bool>(&format!("SELECT term > {held} AND node = 'x' FROM oban_peers")));
}

/// Fences and hand-overs run at once. A write behind a fence never has a term that was over when it
/// committed. The table `w` has a row for each such write. Its lock gives the order of their commits.
#[test]
fn no_fenced_write_commits_after_a_hand_over() {
    const HANDS: usize = 60;
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE w (n bigserial, term bigint, at bigint)").unwrap();
    assert!(elect(&mut client, "n0", Form::ByNode, "0").unwrap());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let mut worker = cluster.client();
                let done = &done;
                scope.spawn(move || {
                    let mut written = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let held: i64 = worker.one("SELECT term FROM oban_peers");
                        // Behind the fence the row has the same term until the transaction ends.
                        let write = format!(
                            "BEGIN; SELECT oban_fence({held}); INSERT INTO w (term) VALUES ({held}); SELECT pg_sleep(0.001);
                             UPDATE w SET at = (SELECT term FROM oban_peers) WHERE term = {held} AND at IS NULL; COMMIT"
                        );
                        match worker.batch_execute(&write) {
                            Ok(()) => written += 1,
                            Err(e) => {
                                assert_eq!(e.code().unwrap().code(), "40001", "{e}");
                                worker.batch_execute("ROLLBACK").unwrap();
                            }
                        }
                    }
                    written
                })
            })
            .collect();
        for i in 1..=HANDS {
            let take = format!(
                "UPDATE oban_peers SET node = 'n{i}', expires_at = timezone('utc', now()) + interval '30 s'"
            );
            client.batch_execute(&take).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let written: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert!(written > 0);
    });
    assert_eq!(client.one::<i64>("SELECT count(*) FROM w WHERE at <> term"), 0);
    assert_eq!(client.one::<String>("SELECT node FROM oban_peers"), format!("n{HANDS}"));
}
