//! What does a statement of a foreign node change on a row of oban_peers?

use postgres::Client;

use super::row;
use crate::support::elixir::{Form, elect, resign, upsert};
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, code, wait_until};

#[test]
fn a_renewal_by_name_alone_changes_nothing_on_another_nodes_row() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    join(&mut ours, "a");
    let before = row(&mut ours).unwrap();
    let whole = "SELECT oban_peers::text || xmin FROM oban_peers";
    let stored: String = ours.one(whole);
    for form in [Form::ByName, Form::ByNode, Form::DoNothing] {
        assert!(!elect(&mut elixir, "elixir", form, "0").unwrap(), "{form:?}");
        // A foreign node of the same name as the member is another process.
        assert!(!elect(&mut elixir, "a", form, "0").unwrap(), "{form:?}");
    }
    assert_eq!(elixir.execute("UPDATE oban_peers SET expires_at = 'infinity'", &[]).unwrap(), 0);
    assert_eq!(ours.one::<String>(whole), stored, "not touched at all");
    assert!(leads(&mut ours));

    // The same holds between two foreign nodes.
    drop(ours);
    wait_until("its row is gone", || row(&mut elixir).is_none());
    assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
    let mut other = cluster.client();
    for form in [Form::ByName, Form::ByNode] {
        assert!(!elect(&mut other, "y", form, "0").unwrap());
        assert!(elect(&mut elixir, "x", form, "0").unwrap(), "its own row it renews");
    }
    let after = row(&mut elixir).unwrap();
    assert_eq!(after.0, "x");
    assert!(after.1 > before.1, "a term of its own, above ours");
}

/// BEFORE INSERT sees no row that is not committed. Only when the upsert comes to update the row, the trigger
/// can tell that the row is another node's.
#[test]
fn an_upsert_that_waited_for_an_uncommitted_row_changes_nothing() {
    let cluster = Cluster::installed();
    for form in [Form::ByName, Form::ByNode] {
        let (mut first, mut second) = (cluster.client(), cluster.client());
        let pid: i32 = second.one("SELECT pg_backend_pid()");
        let mut transaction = first.transaction().unwrap();
        let now = "timezone('UTC', clock_timestamp())";
        assert_eq!(transaction.execute(&upsert(Form::ByNode, now), &[&"first"]).unwrap(), 1);
        let late = std::thread::spawn(move || elect(&mut second, "second", form, "0").unwrap());
        let mut watch = cluster.client();
        let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
        wait_until("the second waits for the first", || watch.one(&waits));
        transaction.commit().unwrap();
        assert!(!late.join().unwrap(), "{form:?}");
        assert_eq!(row(&mut watch).unwrap().0, "first");
        resign(&mut first, "first").unwrap();
    }
}

/// The trigger must not remember beyond its statement what the statement proposed.
#[test]
fn a_proposal_ends_with_its_statement() {
    let cluster = Cluster::installed();
    let (mut elixir, mut other) = (cluster.client(), cluster.client());
    assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
    let expires = |c: &mut Client| -> String { c.one("SELECT expires_at::text FROM oban_peers") };
    for before in [
        // These statements do nothing, are rolled back to a savepoint, or fail in a block.
        "INSERT INTO oban_peers VALUES ('Oban', 'y', now(), now() + interval '30 s') ON CONFLICT DO NOTHING",
        "SAVEPOINT s; SELECT 1; ROLLBACK TO s",
        "DO $$ BEGIN INSERT INTO oban_peers VALUES ('Oban', 'y', now(), now() + interval '30 s');
               EXCEPTION WHEN unique_violation THEN NULL; END $$",
    ] {
        let was = expires(&mut elixir);
        other.batch_execute(&format!("BEGIN; {before}")).unwrap();
        // Another client library renews by UPDATE.
        let renewal =
            "UPDATE oban_peers SET expires_at = timezone('UTC', clock_timestamp()) + interval '30 s'";
        assert_eq!(other.execute(renewal, &[]).unwrap(), 1, "after {before}");
        other.batch_execute("COMMIT").unwrap();
        assert!(expires(&mut elixir) > was, "after {before}");
    }
}

#[test]
fn name_term_and_boot_do_not_change() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    for who in ["ours", "theirs"] {
        if who == "ours" {
            join(&mut ours, "a");
        } else {
            assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
        }
        let whole = "SELECT oban_peers::text FROM oban_peers";
        let before: String = ours.one(whole);
        for set in [
            "term = term + 1",
            "term = NULL",
            "boot = 7",
            "name = 'Mine'",
            "started_at = now()",
            "node = 'me', term = term + 1",
            "node = 'me', boot = 7",
            "node = 'me', name = 'Mine'",
        ] {
            let update = format!("UPDATE oban_peers SET {set}");
            assert_eq!(code(&mut elixir, &update), "22023", "{who}: {update}");
        }
        let take_over = "INSERT INTO oban_peers VALUES ('Oban', 'me', now(), now() + interval '30 s')
                         ON CONFLICT (name) DO UPDATE SET node = EXCLUDED.node, expires_at = EXCLUDED.expires_at";
        assert_eq!(elixir.execute(take_over, &[]).unwrap(), 0, "{who}: it has lost, which is no error");
        assert_eq!(ours.one::<String>(whole), before, "{who}");
        if who == "ours" {
            ours.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
            wait_until("its row is gone", || row(&mut elixir).is_none());
        }
    }
}

/// A node's clock may be hours off. The server's clock sets a row's times, and the node sets the length of
/// its lease.
#[test]
fn times_are_the_servers() {
    let cluster = Cluster::installed();
    for skew in ["-5 hours", "5 hours"] {
        let mut elixir = cluster.client();
        for _ in 0..2 {
            // The second round is a renewal. A node with a slow clock takes its own row for unexpired, too.
            assert!(elect(&mut elixir, "x", Form::ByNode, skew).unwrap());
            let (node, _, left) = row(&mut elixir).unwrap();
            assert!(node == "x" && left > 25.0 && left <= 30.0, "{skew}: {left} s are left");
            let begun = "SELECT abs(extract(epoch FROM started_at - timezone('UTC', clock_timestamp()))) < 20 FROM oban_peers";
            assert!(elixir.one::<bool>(begun), "{skew}");
        }
        resign(&mut elixir, "x").unwrap();
    }
    // The trigger ignores a term, a boot and an endless lease in the statement.
    let mut client = cluster.client();
    client
        .batch_execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at, term, boot)
             VALUES ('Oban', 'x', now(), 'infinity', 9223372036854775807, 1)",
        )
        .unwrap();
    let (_, term, left) = row(&mut client).unwrap();
    assert!(term < 2 << 40 && left <= 30.0, "{term}, {left}");
    assert!(client.one::<bool>("SELECT boot IS NULL FROM oban_peers"));
}

/// Code of other triggers runs between the two halves of an upsert. It must not make the trigger forget whose
/// upsert it is.
#[test]
fn triggers_of_others_do_not_come_between_the_halves_of_an_upsert() {
    let cluster = Cluster::installed();
    let (mut x, mut y) = (cluster.client(), cluster.client());
    x.batch_execute("SELECT oban_install('second')").unwrap();
    x.batch_execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             BEGIN INSERT INTO no_such_table VALUES (1); EXCEPTION WHEN OTHERS THEN NULL; END;
             INSERT INTO second.oban_peers VALUES (NEW.name, 'audit', now(), now() + interval '1 h')
             ON CONFLICT (name) DO UPDATE SET expires_at = EXCLUDED.expires_at;
             RETURN NEW; END $$;
         CREATE TRIGGER z_audit BEFORE INSERT OR UPDATE ON oban_peers FOR EACH ROW EXECUTE FUNCTION audit()",
    )
    .unwrap();
    assert!(elect(&mut x, "x", Form::ByName, "0").unwrap());
    assert!(!elect(&mut y, "y", Form::ByName, "0").unwrap(), "x's row is not renewed");
    assert!(elect(&mut x, "x", Form::ByName, "0").unwrap(), "its own is");
}
