//! Nodes of Oban for Elixir beside ours: what they may do to oban_peers, and how soon ours know of it.

use fallible_iterator::FallibleIterator;
use postgres::Client;

use crate::support::elixir::{Form, elect, resign, upsert};
use crate::support::{Ask, Cluster, code, heard, wait_for, wait_until};

fn join(client: &mut Client, node: &str) -> i64 {
    client.query_one("SELECT oban_join($1, candidate => true)", &[&node]).unwrap().get(0)
}

fn leads(client: &mut Client) -> bool {
    client.one("SELECT oban_is_leader()")
}

/// The row: node, term, and for how many seconds it still holds.
fn row(client: &mut Client) -> Option<(String, i64, f64)> {
    let sql = "SELECT node, term, extract(epoch FROM expires_at - timezone('UTC', clock_timestamp()))::float8
               FROM oban_peers WHERE name = 'Oban'";
    client.query_opt(sql, &[]).unwrap().map(|r| (r.get(0), r.get(1), r.get(2)))
}

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
        // A foreign node of the same name as our member is another process, too.
        assert!(!elect(&mut elixir, "a", form, "0").unwrap(), "{form:?}");
    }
    assert_eq!(elixir.execute("UPDATE oban_peers SET expires_at = 'infinity'", &[]).unwrap(), 0);
    assert_eq!(ours.one::<String>(whole), stored, "not touched at all");
    assert!(leads(&mut ours));

    // And between two foreign nodes.
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

/// BEFORE INSERT sees no row that is not committed: only when the upsert comes to update it, it can be told that
/// the row is another's.
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

/// What a statement proposed must not be remembered past it.
#[test]
fn a_proposal_ends_with_its_statement() {
    let cluster = Cluster::installed();
    let (mut elixir, mut other) = (cluster.client(), cluster.client());
    assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
    let expires = |c: &mut Client| -> String { c.one("SELECT expires_at::text FROM oban_peers") };
    for before in [
        // Did nothing; failed; was rolled back to a savepoint; failed in a block.
        "INSERT INTO oban_peers VALUES ('Oban', 'y', now(), now() + interval '30 s') ON CONFLICT DO NOTHING",
        "SAVEPOINT s; SELECT 1; ROLLBACK TO s",
        "DO $$ BEGIN INSERT INTO oban_peers VALUES ('Oban', 'y', now(), now() + interval '30 s');
               EXCEPTION WHEN unique_violation THEN NULL; END $$",
    ] {
        let was = expires(&mut elixir);
        other.batch_execute(&format!("BEGIN; {before}")).unwrap();
        // A renewal of another client library, by UPDATE.
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

/// As a DELETE and an INSERT: the new holder has a term of its own and no boot, and the one before leads no more from
/// that commit on.
#[test]
fn an_update_of_the_node_hands_the_leadership_over() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{leader}')").unwrap();
    heard(&mut listener);
    join(&mut ours, "a");
    wait_until("it leads", || leads(&mut ours));
    // As Oban's own test suite does it.
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
        // Rolled back, nothing has happened.
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
    // Nobody has announced an end, as nobody does after a DELETE.
    let down = |listener: &mut Client| heard(listener).iter().any(|n| n.payload().contains("down"));
    assert!(!down(&mut listener));
    // Its lease runs, and its own node renews it.
    assert!(elect(&mut elixir, "a", Form::ByNode, "0").unwrap());
    assert!(!elect(&mut elixir, "b", Form::ByNode, "0").unwrap());
    // A hand-over with a lease that is over: the member leads again, and that is announced.
    elixir
        .batch_execute(
            "UPDATE oban_peers SET node = 'late', expires_at = timezone('utc', now()) - interval '1 s'",
        )
        .unwrap();
    wait_until("ours leads", || leads(&mut ours));
    assert!(row(&mut ours).unwrap().1 > before);
    // By another clock: what the statement says of both is how long the lease is.
    elixir
        .batch_execute(
            "UPDATE oban_peers SET node = 'x', started_at = now() - interval '5 hours',
             expires_at = now() - interval '5 hours' + interval '20 s'",
        )
        .unwrap();
    let (_, _, left) = row(&mut ours).unwrap();
    assert!(left > 15.0 && left <= 20.0, "{left}");
    // And when that lease is over, ours leads: memory knows the deadline of what was handed over.
    elixir
        .batch_execute(
            "UPDATE oban_peers SET node = 'y', expires_at = timezone('utc', now()) + interval '1 s'",
        )
        .unwrap();
    assert!(!leads(&mut ours));
    wait_until("ours leads", || leads(&mut ours));
}

/// Each end of the transaction that hands over: what is prepared ends the leadership, what fails leaves it.
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
    // A commit that fails after it: elected anew.
    elixir
        .batch_execute(
            "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
    assert_eq!(code(&mut elixir, &format!("BEGIN; {take}; INSERT INTO child VALUES (1); COMMIT")), "23503");
    wait_until("it leads as ever", || leads(&mut ours));
}

/// Hours off, fast or slow: a row's times are the server's, and a lease is as long as its node says.
#[test]
fn times_are_the_servers() {
    let cluster = Cluster::installed();
    for skew in ["-5 hours", "5 hours"] {
        let mut elixir = cluster.client();
        for _ in 0..2 {
            // The second is its renewal: a clock that is slow takes its own row for unexpired, too.
            assert!(elect(&mut elixir, "x", Form::ByNode, skew).unwrap());
            let (node, _, left) = row(&mut elixir).unwrap();
            assert!(node == "x" && left > 25.0 && left <= 30.0, "{skew}: {left} s are left");
            let begun = "SELECT abs(extract(epoch FROM started_at - timezone('UTC', clock_timestamp()))) < 20 FROM oban_peers";
            assert!(elixir.one::<bool>(begun), "{skew}");
        }
        resign(&mut elixir, "x").unwrap();
    }
    // A term or a start of the server that somebody brings along count for nothing, nor does an endless lease.
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

        // Ours steps down; a node of Oban's hears of it and holds its election.
        elixir.notifications().iter().count().unwrap(); // those before
        assert!(ours.query_one("SELECT oban_resign($1)", &[&member]).unwrap().get::<_, bool>(0));
        let mut notifications = elixir.notifications();
        let heard = notifications.blocking_iter().next().unwrap().expect("the connection is open");
        assert_eq!(heard.payload(), r#"{"down":"Oban"}"#);
        drop(notifications);
        assert!(elect(&mut elixir, "x", Form::DoNothing, "0").unwrap());
        last = row(&mut elixir).unwrap().1;
        assert!(last > term);
    }
    // The same over a savepoint: what is taken back is no resignation.
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
        // Rolled back, as a whole or in part: nothing has happened.
        let before = row(&mut ours).unwrap().1;
        elixir.batch_execute(&format!("BEGIN; {how}; ROLLBACK")).unwrap();
        elixir.batch_execute(&format!("BEGIN; SAVEPOINT s; {how}; ROLLBACK TO s; COMMIT")).unwrap();
        assert!(leads(&mut ours), "{how}");
        assert_eq!(row(&mut ours).unwrap().1, before);
        // With a row of its own in place: ours does not lead from that commit on.
        let now = "timezone('UTC', clock_timestamp())";
        elixir
            .batch_execute(&format!(
                "BEGIN; {how}; {}",
                upsert(Form::ByNode, now).replace("$1::text", "'x'").replace("$1", "'x'")
            ))
            .unwrap();
        elixir.batch_execute("COMMIT").unwrap();
        assert!(!leads(&mut ours), "{how}: the next statement of anybody knows it");
        assert_eq!(row(&mut ours).unwrap().0, "x");
        resign(&mut elixir, "x").unwrap();
        wait_until("ours leads again", || leads(&mut ours));
    }
    assert!(row(&mut ours).unwrap().1 > term);

    // Prepared: it is over with that.
    elixir.batch_execute("BEGIN; DELETE FROM oban_peers; PREPARE TRANSACTION 'p'").unwrap();
    assert!(!leads(&mut ours));
    elixir.batch_execute("COMMIT PREPARED 'p'").unwrap();
    wait_until("ours leads again, with another term", || leads(&mut ours));
}

/// Rows that no member of ours has anything to do with.
#[test]
fn expired_rows_of_foreign_names_are_swept_with_one_announcement() {
    let cluster = Cluster::installed();
    let (mut elixir, mut watch) = (cluster.client(), cluster.client());
    watch.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    let insert = "INSERT INTO oban_peers VALUES ($1, 'x', now(), now() + interval '1 second')";
    elixir.execute(insert, &[&"Foreign"]).unwrap();
    elixir
        .execute("INSERT INTO oban_peers VALUES ('Stays', 'x', now(), now() + interval '1 hour')", &[])
        .unwrap();
    let heard = watch.notifications().blocking_iter().next().unwrap().expect("it is announced");
    assert_eq!(heard.payload(), r#"{"down":"Foreign"}"#);
    let names = "SELECT string_agg(name, ',' ORDER BY name) FROM oban_peers";
    assert_eq!(watch.one::<String>(names), "Stays", "deleted with the announcement");

    // What a session of ours left before a crash of the server, too.
    let mut ours = cluster.shell();
    ours.ask("SELECT oban_join('a')");
    assert_eq!(ours.ask("SELECT oban_is_leader()"), "t");
    cluster.stop("immediate");
    cluster.start_again();
    let mut watch = cluster.client();
    wait_until("only the living row stays", || watch.one::<String>(names) == "Stays");
    let mut second = cluster.client();
    second.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    elixir = cluster.client();
    for _ in 0..3 {
        // Renewed in time: nobody is told of anything.
        let renew = "INSERT INTO oban_peers AS o VALUES ('Renewed', 'x', now(), now() + interval '2 seconds')
                     ON CONFLICT (name) DO UPDATE SET expires_at = EXCLUDED.expires_at";
        elixir.batch_execute(renew).unwrap();
        let expires: String = elixir.one("SELECT expires_at::text FROM oban_peers WHERE name = 'Renewed'");
        let half = format!(
            "SELECT timezone('UTC', clock_timestamp()) > '{expires}'::timestamp - interval '1 second'"
        );
        wait_until("half of its lease is over", || elixir.one(&half));
    }
    assert_eq!(watch.one::<String>(names), "Renewed,Stays");
    assert_eq!(second.notifications().iter().count().unwrap(), 0);
    wait_for("it ends when it is not renewed", || (watch.one::<String>(names) == "Stays").then_some(()));
}

/// A term is drawn before the row is had. Whoever stalls in between must not lead with one that others have passed.
#[test]
fn terms_rise_in_the_order_of_the_rows() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$;
             CREATE TRIGGER z_stall BEFORE INSERT ON oban_peers FOR EACH ROW WHEN (NEW.node LIKE 'slow%')
             EXECUTE FUNCTION stall(); ALTER TABLE oban_peers ENABLE ALWAYS TRIGGER z_stall",
        )
        .unwrap();
    let (mut quick, mut watch) = (cluster.client(), cluster.client());
    let mut holder = cluster.client();
    holder.batch_execute("SELECT pg_advisory_lock(7)").unwrap();
    let mut slow = cluster.client();
    let pid: i32 = slow.one("SELECT pg_backend_pid()");
    let stalled = std::thread::spawn(move || {
        assert!(elect(&mut slow, "slow", Form::ByNode, "0").unwrap());
    });
    let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
    wait_until("it stalls", || watch.one(&waits));
    assert!(elect(&mut quick, "quick", Form::ByNode, "0").unwrap());
    let passed = row(&mut quick).unwrap().1;
    resign(&mut quick, "quick").unwrap();
    holder.batch_execute("SELECT pg_advisory_unlock_all()").unwrap();
    stalled.join().unwrap();
    wait_until("it leads", || row(&mut watch).is_some_and(|(node, ..)| node == "slow"));
    assert!(row(&mut watch).unwrap().1 > passed);
}

/// What others run between the two halves of an upsert must not make it forget whose it is.
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

/// Any role may put our trigger on a table of its own, and call that whatever it likes.
#[test]
fn only_the_prefixs_own_table_tells() {
    let cluster = Cluster::installed();
    let mut ours = cluster.client();
    ours.batch_execute("CREATE ROLE mallory LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO mallory").unwrap();
    join(&mut ours, "a");
    let term = row(&mut ours).unwrap().1;
    let mut mallory = cluster.client_as("postgres", "mallory");
    mallory
        .batch_execute(&format!(
            "CREATE TABLE public.t (name text PRIMARY KEY, node text, started_at timestamp, expires_at timestamp, term bigint, boot bigint);
             CREATE TRIGGER a BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION obanrs_peers();
             CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION obanrs_peers();
             CREATE TRIGGER c AFTER INSERT OR TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION obanrs_peers();
             INSERT INTO t VALUES ('Oban', 'x', now(), now() + interval '1 h', {term}); DELETE FROM t; TRUNCATE t;
             CREATE TEMP TABLE oban_peers (LIKE t);
             CREATE TRIGGER c AFTER INSERT OR TRUNCATE ON pg_temp.oban_peers FOR EACH STATEMENT EXECUTE FUNCTION obanrs_peers();
             TRUNCATE pg_temp.oban_peers;
             CREATE VIEW v AS SELECT * FROM t;
             CREATE TRIGGER d INSTEAD OF DELETE ON v FOR EACH ROW EXECUTE FUNCTION obanrs_peers()",
        ))
        .unwrap();
    mallory.batch_execute(&format!("INSERT INTO t VALUES ('Oban', 'x', now(), now(), {term})")).unwrap();
    assert!(mallory.batch_execute("DELETE FROM v").is_err(), "a view is none of its tables");
    for sql in ["SELECT obanrs_peers()", "CALL obanrs_peers()"] {
        assert!(mallory.batch_execute(sql).is_err(), "{sql}");
    }
    assert!(leads(&mut ours));
    assert_eq!(row(&mut ours).unwrap().1, term);
}

/// Leaders from before the table had its triggers.
#[test]
fn a_leader_from_before_gets_its_term_with_its_next_renewal() {
    let cluster = Cluster::with_extension();
    let mut elixir = cluster.client();
    elixir
        .batch_execute(
            "CREATE UNLOGGED TABLE oban_peers (name text PRIMARY KEY, node text NOT NULL, started_at timestamp NOT NULL, expires_at timestamp NOT NULL)",
        )
        .unwrap();
    assert!(elect(&mut elixir, "x", Form::ByNode, "0").unwrap());
    elixir.batch_execute("SELECT oban_install()").unwrap();
    let term = |c: &mut Client| -> Option<i64> { c.one("SELECT term FROM oban_leader()") };
    assert_eq!(term(&mut elixir), None);
    let mut ours = cluster.client();
    join(&mut ours, "a");
    assert!(!leads(&mut ours), "it is respected");
    assert!(elect(&mut elixir, "x", Form::ByName, "0").unwrap());
    let first = term(&mut elixir).expect("it has one now");
    elixir.batch_execute(&format!("SELECT oban_fence({first})")).unwrap();
    assert!(elect(&mut elixir, "x", Form::ByName, "0").unwrap());
    assert_eq!(term(&mut elixir), Some(first));
    // An extension that is made anew goes on above what is in the tables.
    drop(ours);
    wait_until("ours is gone", || elixir.one("SELECT count(*) = 0 FROM oban_members"));
    elixir
        .batch_execute("DROP EXTENSION obanrs CASCADE; CREATE EXTENSION obanrs; SELECT oban_install()")
        .unwrap();
    resign(&mut elixir, "x").unwrap();
    assert!(elect(&mut elixir, "x", Form::ByName, "0").unwrap());
    assert!(term(&mut elixir).unwrap() > first);
}

/// A table that is dropped tells nobody; who installs anew does.
#[test]
fn a_table_that_was_replaced_has_a_leader_of_its_own() {
    let cluster = Cluster::installed();
    let (mut ours, mut elixir) = (cluster.client(), cluster.client());
    join(&mut ours, "a");
    elixir.batch_execute("ALTER TABLE oban_peers RENAME TO old; SELECT oban_install()").unwrap();
    wait_until("ours leads in it", || row(&mut elixir).is_some_and(|(node, ..)| node == "a"));
    assert_eq!(row(&mut elixir).map(|r| r.1), Some(ours.one("SELECT oban_term()")));
    elixir.batch_execute("TRUNCATE old; DROP TABLE old").unwrap();
    assert!(leads(&mut ours));
    // And when a foreign node comes first, ours knows with its commit.
    let now = "timezone('UTC', clock_timestamp())";
    let insert = upsert(Form::DoNothing, now).replace("$1::text", "'x'");
    let replace = "ALTER TABLE oban_peers RENAME TO older; SELECT oban_install()";
    elixir.batch_execute(&format!("BEGIN; {replace}; {insert}; COMMIT")).unwrap();
    assert!(!leads(&mut ours));
    assert_eq!(row(&mut elixir).unwrap().0, "x");
}

/// The command that removes an obstacle tells the keeper nothing. The election that succeeds again does.
#[test]
fn rows_that_lapsed_beside_an_obstacle_are_swept_once_it_is_gone() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "ALTER TABLE oban_peers ADD CONSTRAINT c CHECK (name <> '');
             INSERT INTO oban_peers VALUES ('Other', 'x', timezone('utc', now()), timezone('utc', now()) + interval '300 ms');
             SELECT oban_join('a')",
        )
        .unwrap();
    let lapsed = "SELECT count(*) = 1 FROM oban_peers WHERE expires_at < timezone('utc', clock_timestamp())";
    wait_until("it lapses, and stays", || client.one(lapsed));
    wait_until("the keeper has given up on the table", || cluster.log().contains("holds no elections"));
    client.batch_execute("ALTER TABLE oban_peers DROP CONSTRAINT c").unwrap();
    wait_until("ours leads", || client.one("SELECT oban_is_leader()"));
    wait_until("the other row is swept", || client.one("SELECT count(*) = 1 FROM oban_peers"));
}
