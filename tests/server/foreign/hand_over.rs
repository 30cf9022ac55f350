//! When does a leadership pass between a foreign node and a member?

use fallible_iterator::FallibleIterator;
use postgres::Client;

use super::row;
use crate::support::elixir::{Form, elect, resign, upsert};
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, code, heard, wait_until};

/// The update counts as a DELETE and an INSERT. The new holder has a term of its own and no boot. The holder
/// before leads no more from that commit on.
#[test]
fn an_update_of_the_node_hands_the_leadership_over() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{leader}')").unwrap();
    heard(&mut listener);
    join(&mut ours, "a");
    wait_until("it leads", || leads(&mut ours));
    // Oban's own test suite runs this statement.
    let take = |node: &str| {
        format!(
            "UPDATE oban_peers SET node = '{node}', expires_at = timezone('utc', now()) + interval '30 s'
             WHERE name = 'Oban'"
        )
    };
    let fresh = "SELECT boot IS NULL AND abs(extract(epoch FROM timezone('UTC', clock_timestamp()) - started_at)) < 20
                 FROM oban_peers";
    let (_, mut before, _) = row(&mut elixir).unwrap();
    for node in ["web.B", "web.C", "a"] {
        // A savepoint that is rolled back changes nothing.
        elixir.batch_execute(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; COMMIT", take(node))).unwrap();
        assert_eq!((leads(&mut ours), row(&mut elixir).unwrap().1), (node == "web.B", before));
        elixir.batch_execute(&format!("BEGIN; {}", take(node))).unwrap();
        assert_eq!(leads(&mut ours), node == "web.B", "not before it commits");
        elixir.batch_execute("COMMIT").unwrap();
        assert!(!leads(&mut ours), "{node}");
        let (holder, term, left) = row(&mut ours).unwrap();
        assert!(holder == node && term > before && left > 25.0 && left <= 30.0, "{holder} {term} {left}");
        assert!(ours.one::<bool>(fresh), "{node}");
        assert_eq!(code(&mut ours, &format!("SELECT oban_fence({before})")), "40001", "{node}");
        ours.batch_execute(&format!("SELECT oban_fence({term})")).unwrap();
        assert_eq!(ours.one::<String>("SELECT node FROM oban_leader()"), node);
        assert_eq!(ours.one::<String>("SELECT node FROM oban_leadership"), node);
        before = term;
    }
    // No end was announced. A DELETE announces none, either.
    let down = |listener: &mut Client| heard(listener).iter().any(|n| n.payload().contains("down"));
    assert!(!down(&mut listener));
    // The new holder's lease runs, and its own node renews it.
    assert!(elect(&mut elixir, "a", Form::ByNode, "0").unwrap());
    assert!(!elect(&mut elixir, "b", Form::ByNode, "0").unwrap());
    // This hand-over has a lease that is over. The member leads again, and its election is announced.
    elixir
        .batch_execute(
            "UPDATE oban_peers SET node = 'late', expires_at = timezone('utc', now()) - interval '1 s'",
        )
        .unwrap();
    wait_until("ours leads", || leads(&mut ours));
    assert!(row(&mut ours).unwrap().1 > before);
    // These times come from another clock. What counts is the lease's length between them.
    elixir
        .batch_execute(
            "UPDATE oban_peers SET node = 'x', started_at = now() - interval '5 hours',
             expires_at = now() - interval '5 hours' + interval '20 s'",
        )
        .unwrap();
    let (_, _, left) = row(&mut ours).unwrap();
    assert!(left > 15.0 && left <= 20.0, "{left}");
    // When the lease is over, the member leads. Shared memory knows the deadline of the row that was handed
    // over.
    elixir
        .batch_execute(
            "UPDATE oban_peers SET node = 'y', expires_at = timezone('utc', now()) + interval '1 s'",
        )
        .unwrap();
    assert!(!leads(&mut ours));
    wait_until("ours leads", || leads(&mut ours));
}

/// A hand-over may be prepared, rolled back, or fail at its commit. What is prepared ends the leadership.
/// What fails leaves it.
#[test]
fn a_hand_over_ends_a_leadership_as_a_deletion_does() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 5"]);
    cluster.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    join(&mut ours, "a");
    wait_until("it leads", || leads(&mut ours));
    let take = "UPDATE oban_peers SET node = 'x' WHERE name = 'Oban'";
    elixir.batch_execute(&format!("BEGIN; {take}; PREPARE TRANSACTION 'p'")).unwrap();
    assert!(!leads(&mut ours), "at PREPARE TRANSACTION");
    elixir.batch_execute("COMMIT PREPARED 'p'").unwrap();
    assert!(!leads(&mut ours) && row(&mut ours).unwrap().0 == "x");
    elixir.batch_execute("DELETE FROM oban_peers").unwrap();
    wait_until("it leads", || leads(&mut ours));
    elixir.batch_execute(&format!("BEGIN; {take}; PREPARE TRANSACTION 'p'")).unwrap();
    elixir.batch_execute("ROLLBACK PREPARED 'p'").unwrap();
    wait_until("it leads again", || leads(&mut ours));
    // The commit fails after the hand-over. The member is elected anew.
    elixir
        .batch_execute(
            "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
    assert_eq!(code(&mut elixir, &format!("BEGIN; {take}; INSERT INTO child VALUES (1); COMMIT")), "23503");
    wait_until("it leads as ever", || leads(&mut ours));
}

#[test]
fn ours_takes_over_the_moment_a_foreign_leader_resigns_and_the_other_way_round() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    elixir.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
    let member = join(&mut ours, "a");
    let mut last = row(&mut elixir).unwrap().1;
    for _ in 0..3 {
        assert!(!leads(&mut ours), "the foreign leader is respected");
        resign(&mut elixir, "x").unwrap();
        wait_until("ours leads", || leads(&mut ours));
        let term = row(&mut elixir).unwrap().1;
        assert!(term > last);

        // The member resigns. The Elixir node hears of that and holds its election.
        elixir.notifications().iter().count().unwrap(); // discards the notifications before
        assert!(ours.query_one("SELECT oban_resign($1)", &[&member]).unwrap().get::<_, bool>(0));
        let mut notifications = elixir.notifications();
        let heard = notifications.blocking_iter().next().unwrap().expect("the connection is open");
        assert_eq!(heard.payload(), r#"{"down":"Oban"}"#);
        drop(notifications);
        assert!(elect(&mut elixir, "x", Form::DoNothing, "0").unwrap());
        last = row(&mut elixir).unwrap().1;
        assert!(last > term);
    }
    // A savepoint that takes the deletion back takes the resignation back.
    let mut transaction = elixir.transaction().unwrap();
    transaction.batch_execute("SAVEPOINT s; DELETE FROM oban_peers; ROLLBACK TO s").unwrap();
    transaction.commit().unwrap();
    assert_eq!(row(&mut ours).unwrap().1, last);
    assert!(!leads(&mut ours));
}

#[test]
fn a_delete_of_our_row_ends_our_leadership_with_its_commit() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    join(&mut ours, "a");
    let term = row(&mut ours).unwrap().1;
    for how in ["DELETE FROM oban_peers", "TRUNCATE oban_peers", "DELETE FROM oban_peers WHERE name = 'Oban'"]
    {
        // A deletion that is rolled back, as a whole or to a savepoint, changes nothing.
        let before = row(&mut ours).unwrap().1;
        elixir.batch_execute(&format!("BEGIN; {how}; ROLLBACK")).unwrap();
        elixir.batch_execute(&format!("BEGIN; SAVEPOINT s; {how}; ROLLBACK TO s; COMMIT")).unwrap();
        assert!(leads(&mut ours), "{how}");
        assert_eq!(row(&mut ours).unwrap().1, before);
        // The transaction inserts a row of its own in place of the deleted one. The member does not lead from
        // that commit on.
        let now = "timezone('UTC', clock_timestamp())";
        elixir
            .batch_execute(&format!(
                "BEGIN; {how}; {}",
                upsert(Form::ByNode, now).replace("$1::text", "'x'").replace("$1", "'x'")
            ))
            .unwrap();
        elixir.batch_execute("COMMIT").unwrap();
        assert!(!leads(&mut ours), "{how}: the next statement of any session knows it");
        assert_eq!(row(&mut ours).unwrap().0, "x");
        resign(&mut elixir, "x").unwrap();
        wait_until("ours leads again", || leads(&mut ours));
    }
    assert!(row(&mut ours).unwrap().1 > term);

    // PREPARE TRANSACTION ends the leadership.
    elixir.batch_execute("BEGIN; DELETE FROM oban_peers; PREPARE TRANSACTION 'p'").unwrap();
    assert!(!leads(&mut ours));
    elixir.batch_execute("COMMIT PREPARED 'p'").unwrap();
    wait_until("ours leads again, with another term", || leads(&mut ours));
}
