//! What does the keeper do with the row of each leader?

use fallible_iterator::FallibleIterator;
use postgres::Client;

use super::{leader, lease_of_a_second};
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, wait_for, wait_until};

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

    // Another node's row takes its place. The renewal leaves that row alone, and the member leads no more.
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

/// A keeper may die after its commit and before it tells shared memory. It leaves a row of this start of the
/// server. If the row's session lives, that session leads. If not, the row is void.
#[test]
fn a_row_that_nobody_knows_of_is_adopted_or_voided() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    join(&mut client, "a");
    let forget = |c: &mut Client, node: &str| {
        // The row gets an identity that shared memory does not know, so that the next renewal misses it.
        let sql = "UPDATE oban_peers SET node = $1, term = term + 100";
        c.batch_execute("SET session_replication_role = replica").unwrap(); // the triggers do not fire
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

/// The keeper does not wait for the end of the lease when a foreign node resigns.
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
