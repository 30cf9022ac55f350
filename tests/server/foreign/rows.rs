//! Which rows of which table tell the leader, with which terms, and when are they swept?

use fallible_iterator::FallibleIterator;
use postgres::Client;

use super::row;
use crate::support::elixir::{Form, elect, resign, upsert};
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, wait_for, wait_until};

/// No member of this extension has anything to do with these rows.
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

    // The row of a session from before a crash of the server is swept, too.
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
        // A row that is renewed in time is not announced.
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

/// A term is drawn before its row is inserted. A node that stalls in between must not lead with a term that
/// others have passed.
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

/// Any role may put the extension's trigger on a table of its own, under any name.
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

/// The table had a leader before it had its triggers.
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
    // A new extension draws terms above those in the tables.
    drop(ours);
    wait_until("ours is gone", || elixir.one("SELECT count(*) = 0 FROM oban_members"));
    elixir
        .batch_execute("DROP EXTENSION obanrs CASCADE; CREATE EXTENSION obanrs; SELECT oban_install()")
        .unwrap();
    resign(&mut elixir, "x").unwrap();
    assert!(elect(&mut elixir, "x", Form::ByName, "0").unwrap());
    assert!(term(&mut elixir).unwrap() > first);
}

/// Statements on a table that was replaced change no leader. Those on the table that oban_install made do.
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
    // When a foreign node comes first, the member knows that with the foreign commit.
    let now = "timezone('UTC', clock_timestamp())";
    let insert = upsert(Form::DoNothing, now).replace("$1::text", "'x'");
    let replace = "ALTER TABLE oban_peers RENAME TO older; SELECT oban_install()";
    elixir.batch_execute(&format!("BEGIN; {replace}; {insert}; COMMIT")).unwrap();
    assert!(!leads(&mut ours));
    assert_eq!(row(&mut elixir).unwrap().0, "x");
}

/// The command that removes an obstacle tells the keeper nothing. The next election that succeeds does.
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
