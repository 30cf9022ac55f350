//! Joining without being a candidate, and what oban_join says when no member can be elected.

use std::sync::{Arc, Mutex};

use postgres::Client;
use postgres::error::DbError;

use crate::support::elixir::{Form, elect, resign};
use crate::support::{Ask, Cluster, code, wait_for, wait_until};

fn leads(client: &mut Client) -> bool {
    client.one("SELECT oban_is_leader()")
}

fn candidates(client: &mut Client) -> String {
    client.one(
        "SELECT coalesce(string_agg(node || ' ' || candidate, ', ' ORDER BY node), '') FROM obanrs_memberships()",
    )
}

/// The messages since the last call: severity, SQLSTATE, text, and whether there is a hint.
fn told(notices: &Arc<Mutex<Vec<DbError>>>) -> Vec<(String, String, String, bool)> {
    let notices: Vec<DbError> = std::mem::take(&mut *notices.lock().unwrap());
    // On a busy machine the keeper may take longer than oban_join waits. These tests do not look at that
    // notice.
    let told = notices.iter().filter(|n| !n.message().contains("no election within a second")).map(|n| {
        (n.severity().to_owned(), n.code().code().to_owned(), n.message().to_owned(), n.hint().is_some())
    });
    told.collect()
}

#[test]
fn an_observer_is_seen_and_never_leads() {
    let cluster = Cluster::installed();
    let (mut first, mut second) = (cluster.client(), cluster.client());
    first.batch_execute("SELECT oban_join('watch', candidate => false)").unwrap();
    assert!(!leads(&mut first));
    assert_eq!(candidates(&mut first), "watch false");
    let red = "SELECT count(*) FROM oban_check() WHERE NOT ok AND item LIKE 'leaders of%'";
    assert_eq!(first.one::<i64>(red), 0, "nobody has to lead");

    second.batch_execute("SELECT oban_join('later')").unwrap();
    assert!(leads(&mut second));
    assert_eq!(candidates(&mut first), "later true, watch false");
    drop(second);
    wait_until("the leader is gone", || first.one("SELECT count(*) = 0 FROM oban_peers"));
    assert!(!leads(&mut first), "the only member that is left");

    // A member with a lease is an observer in the same way.
    let member: i64 = first.one("SELECT oban_join('leased', lease => '1 minute', candidate => false)");
    assert_eq!(first.one::<Option<i64>>(&format!("SELECT oban_renew({member})")), None);
    assert!(!first.one::<bool>(&format!("SELECT oban_resign({member})")));
    assert!(first.one::<bool>(&format!("SELECT oban_leave({member})")));
}

#[test]
fn a_members_candidacy_may_change() {
    let cluster = Cluster::installed();
    let (mut first, mut second) = (cluster.client(), cluster.client());
    let member: i64 = first.one("SELECT oban_join('first')");
    second.batch_execute("SELECT oban_join('second')").unwrap();
    assert!(leads(&mut first));
    assert_eq!(first.one::<i64>("SELECT oban_join('first')"), member);
    assert!(leads(&mut first), "it did not say otherwise");
    assert_eq!(first.one::<i64>("SELECT oban_join('first', candidate => false)"), member);
    assert!(!leads(&mut first));
    wait_until("the other one leads", || leads(&mut second));
    assert_eq!(candidates(&mut first), "first false, second true");
    assert_eq!(first.one::<i64>("SELECT oban_join('first')"), member);
    assert_eq!(candidates(&mut first), "first false, second true", "it did not say otherwise");
    assert_eq!(first.one::<i64>("SELECT oban_join('first', candidate => true)"), member);
    drop(second);
    wait_until("it leads again", || leads(&mut first));
}

#[test]
fn a_row_of_a_name_with_observers_only_is_swept_up() {
    let cluster = Cluster::installed();
    let (mut watch, mut elixir) = (cluster.client(), cluster.client());
    watch.batch_execute("SELECT oban_join('watch', candidate => false)").unwrap();
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap());
    assert_eq!(watch.one::<String>("SELECT node FROM oban_leader()"), "elixir");
    watch.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    elixir
        .batch_execute(
            "UPDATE oban_peers SET expires_at = timezone('utc', clock_timestamp()) + interval '1 s'",
        )
        .unwrap();
    wait_until("the row is gone", || watch.one("SELECT count(*) = 0 FROM oban_peers"));
    // A candidate finds a foreign row that is there.
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap());
    let mut late = cluster.client();
    late.batch_execute("SELECT oban_join('late', candidate => true)").unwrap();
    assert!(!leads(&mut late));
    resign(&mut elixir, "elixir").unwrap();
    wait_until("it leads", || leads(&mut late));
    assert!(!leads(&mut watch));
}

#[test]
fn a_member_yields_where_a_foreign_node_leads_or_has_led() {
    let cluster = Cluster::installed();
    let (mut elixir, mut admin) = (cluster.client(), cluster.client());
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap());
    let (mut first, notices) = cluster.client_with_notices();
    first.batch_execute("SELECT oban_join('first')").unwrap();
    let said = told(&notices);
    assert_eq!(said.len(), 1, "{said:?}");
    let (severity, code, message, hinted) = &said[0];
    assert_eq!((severity.as_str(), code.as_str(), *hinted), ("NOTICE", "00000", true));
    assert!(message.contains("the node \"elixir\"") && message.contains("leads \"Oban\""), "{message}");
    resign(&mut elixir, "elixir").unwrap();
    wait_until("nobody leads", || admin.one("SELECT count(*) = 0 FROM oban_peers"));
    assert!(!leads(&mut first));

    // No foreign node leads any more, but one has led.
    let (mut second, notices) = cluster.client_with_notices();
    second.batch_execute("SELECT oban_join('second', lease => '1 minute')").unwrap();
    let said = told(&notices);
    assert!(said.len() == 1 && said[0].2.contains("has led \"Oban\" since the server started"), "{said:?}");
    assert_eq!(candidates(&mut admin), "first false, second false");

    // A process that says whether it is a candidate gets no notice. Another name is another fleet.
    let (mut third, notices) = cluster.client_with_notices();
    third.batch_execute("SELECT oban_join('third', candidate => false), oban_join('third', 'Own')").unwrap();
    assert!(third.one::<bool>("SELECT oban_is_leader('Own')"));
    assert_eq!(told(&notices), []);
    let (mut fourth, notices) = cluster.client_with_notices();
    fourth.batch_execute("SELECT oban_join('fourth', candidate => true)").unwrap();
    assert!(leads(&mut fourth));
    assert_eq!(told(&notices), []);

    // A foreign node counts for its schema and name, not for the name alone.
    admin.batch_execute("SELECT oban_install('billing')").unwrap();
    fourth.batch_execute("SELECT oban_join('fourth', prefix => 'billing')").unwrap();
    assert!(fourth.one::<bool>("SELECT oban_is_leader(prefix => 'billing')"));

    cluster.restart();
    let (mut fifth, notices) = cluster.client_with_notices();
    fifth.batch_execute("SELECT oban_join('fifth')").unwrap();
    wait_until("it leads", || leads(&mut fifth));
    assert_eq!(told(&notices), [], "of another life of the server");
}

/// The table has no triggers, so nothing has told the keeper of the row.
#[test]
fn a_foreign_row_counts_in_a_table_without_triggers() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("ALTER TABLE oban_peers DISABLE TRIGGER USER").unwrap();
    admin
        .batch_execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Oban', 'quiet', timezone('utc', now()), timezone('utc', now()) + interval '30 s')",
        )
        .unwrap();
    let (mut client, notices) = cluster.client_with_notices();
    client.batch_execute("SELECT oban_join('a')").unwrap();
    assert_eq!(told(&notices).len(), 1);
    assert_eq!(candidates(&mut client), "a false");
}

/// A row of a member does not count as a foreign node's.
#[test]
fn members_do_not_yield_to_members() {
    let cluster = Cluster::installed();
    let (mut first, mut second) = (cluster.client(), cluster.client());
    first.batch_execute("SELECT oban_join('first', lease => '1 minute')").unwrap();
    second.batch_execute("SELECT oban_join('second')").unwrap();
    // The update shortens the member's lease from outside.
    second
        .batch_execute("UPDATE oban_peers SET expires_at = expires_at - interval '1 s' WHERE node = 'first'")
        .unwrap();
    cluster.restart();
    let (mut third, notices) = cluster.client_with_notices();
    third.batch_execute("SELECT oban_join('third')").unwrap();
    assert_eq!(told(&notices), []);
    assert_eq!(candidates(&mut third), "third true");
}

#[test]
fn a_session_is_one_node_of_a_name() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let member: i64 = client.one("SELECT oban_join('a')");
    let refused = client.batch_execute("SELECT oban_join('b')").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "55000");
    assert_eq!(refused.message(), "this session is the node \"a\" of \"Oban\" already");
    assert!(refused.hint().unwrap().contains("lease => '30s'"));
    assert_eq!(code(&mut client, "SELECT oban_join('b', replace => true)"), "55000");
    assert_eq!(code(&mut client, "SELECT oban_join('b', candidate => false)"), "55000");
    client.batch_execute("SELECT oban_join('b', 'Other'), oban_join('b', lease => '1 minute')").unwrap();
    client
        .batch_execute(&format!("SELECT oban_leave({member}); SELECT oban_leave(member) FROM oban_members"))
        .unwrap();
    client.batch_execute("SELECT oban_join('b')").unwrap();
    client.batch_execute("DISCARD ALL").unwrap();
    client.batch_execute("SELECT oban_join('c')").unwrap();
    assert_eq!(candidates(&mut client), "c true");
}

#[test]
fn a_role_or_database_may_require_leases() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE ROLE app LOGIN; GRANT ALL ON oban_jobs TO app; ALTER ROLE app SET obanrs.require_lease = on",
        )
        .unwrap();
    let mut app = cluster.client_as("postgres", "app");
    let refused = app.batch_execute("SELECT oban_join('a')").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "55000");
    assert!(refused.hint().unwrap().contains("obanrs.require_lease"));
    assert_eq!(code(&mut app, "SELECT oban_join('a', candidate => false)"), "55000");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM oban_members"), 0);
    app.batch_execute("SELECT oban_join('a', lease => '1 minute')").unwrap();
    admin.batch_execute("SELECT oban_join('b')").unwrap();
    admin.batch_execute("ALTER DATABASE postgres SET obanrs.require_lease = on").unwrap();
    assert_eq!(code(&mut cluster.client(), "SELECT oban_join('c')"), "55000");
}

#[test]
fn no_term_is_a_term_that_is_not_held() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let refused = client.batch_execute("SELECT oban_fence(oban_term())").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "40001");
    assert_eq!(refused.message(), "no term of \"Oban\" is held here");
    assert!(refused.hint().unwrap().contains("does not lead"));
    assert_eq!(code(&mut client, "SELECT oban_fence(NULL, 'Nobody')"), "40001");
    // An error in the call comes first.
    assert_eq!(code(&mut client, "SELECT oban_fence(NULL, NULL)"), "22004");
    assert_eq!(code(&mut client, "SELECT oban_fence(NULL, prefix => 'nowhere')"), "3F000");
    assert_eq!(code(&mut client, "BEGIN READ ONLY; SELECT oban_fence(NULL)"), "25006");
    client.batch_execute("ROLLBACK").unwrap();
    client.batch_execute("SELECT oban_join('a'); SELECT oban_fence(oban_term())").unwrap();
}

#[test]
fn a_join_says_why_there_are_no_elections() {
    let cluster = Cluster::installed();
    let (mut client, notices) = cluster.client_with_notices();
    client.batch_execute("CREATE SCHEMA mine; SELECT oban_join('a', prefix => 'mine')").unwrap();
    let said = told(&notices);
    assert_eq!(said.len(), 1, "{said:?}");
    let (severity, code, message, hinted) = &said[0];
    assert_eq!((severity.as_str(), code.as_str(), *hinted), ("WARNING", "55000", true));
    assert!(message.contains("prefix \"mine\" holds no elections"), "{message}");
    client.batch_execute("SELECT oban_install('mine')").unwrap();
    client.batch_execute("SELECT oban_join('a', prefix => 'mine')").unwrap();
    assert_eq!(told(&notices), []);
    wait_until("it leads", || client.one("SELECT oban_is_leader(prefix => 'mine')"));

    client.batch_execute("CREATE ROLE tenant").unwrap();
    for (schema, obstacle, named) in [
        ("a1", "ADD CHECK (node <> 'x')", "CHECK"),
        ("a2", "ADD COLUMN note text NOT NULL", "note"),
        ("a3", "OWNER TO tenant, ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", "security"),
    ] {
        client
            .batch_execute(&format!(
                "SELECT oban_install('{schema}'); ALTER TABLE {schema}.oban_peers {obstacle}"
            ))
            .unwrap();
        client.batch_execute(&format!("SELECT oban_join('a', prefix => '{schema}')")).unwrap();
        let said = told(&notices);
        assert!(said.len() == 1 && said[0].0 == "WARNING", "{schema}: {said:?}");
        assert!(said[0].2.to_lowercase().contains(&named.to_lowercase()), "{said:?}");
    }
}

/// Stops the keeper while it sleeps, when it holds no lock of shared memory.
fn stop_keeper(cluster: &Cluster, admin: &mut Client) -> i32 {
    let sleeping = "SELECT a.pid FROM oban_workers w JOIN pg_stat_activity a USING (pid)
        WHERE w.kind = 'keeper' AND a.wait_event_type = 'Extension'";
    let pid = wait_for("the keeper sleeps", || admin.query_opt(sleeping, &[]).unwrap()).get(0);
    cluster.signal("STOP", pid);
    pid
}

#[test]
fn a_join_without_a_keeper_says_so() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    let (mut client, notices) = cluster.client_with_notices();
    let pid = stop_keeper(&cluster, &mut admin);
    client.batch_execute("SELECT oban_join('a')").unwrap();
    cluster.signal("CONT", pid);
    let said: Vec<String> = notices.lock().unwrap().iter().map(|n| n.message().to_owned()).collect();
    assert!(said.len() == 1 && said[0].contains("no election within a second"), "{said:?}");
    wait_until("it leads", || leads(&mut client));
    client.batch_execute("ALTER DATABASE postgres SET default_transaction_read_only = on").unwrap();
    let (mut late, notices) = cluster.client_with_notices();
    late.batch_execute("SET default_transaction_read_only = off; SELECT oban_join('b', 'Late')").unwrap();
    let said = told(&notices);
    assert!(said.len() == 1 && said[0].2.contains("read-only by default"), "{said:?}");
}

/// The row of a leader that is gone does not count as a leader.
#[test]
fn a_row_that_nobody_can_delete_is_no_leader() {
    let cluster = Cluster::installed();
    let (mut first, mut admin) = (cluster.client(), cluster.client());
    first.batch_execute("SELECT oban_join('first', 'Late')").unwrap();
    wait_until("it leads", || first.one("SELECT oban_is_leader('Late')"));
    admin.batch_execute("ALTER TABLE oban_peers ADD x int NOT NULL DEFAULT 3").unwrap();
    drop(first);
    wait_until("it is gone", || admin.one("SELECT count(*) = 0 FROM oban_members"));
    let (mut second, notices) = cluster.client_with_notices();
    second.batch_execute("SELECT oban_join('second', 'Late')").unwrap();
    let said = told(&notices);
    assert!(said.len() == 1 && said[0].0 == "WARNING", "{said:?}");
}

/// The fleet's first election is not committed yet when the program joins.
#[test]
fn a_member_yields_to_a_foreign_node_that_was_elected_while_it_joined() {
    let cluster = Cluster::installed();
    let mut foreign = cluster.client();
    foreign
        .batch_execute(
            "BEGIN; INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Oban', 'elixir', timezone('utc', now()), timezone('utc', now()) + interval '30 s')",
        )
        .unwrap();
    // The keeper can't answer until the row is committed.
    let mut admin = cluster.client();
    let (mut client, notices) = cluster.client_with_notices();
    let pid = stop_keeper(&cluster, &mut admin);
    let joins = std::thread::spawn(move || {
        client.batch_execute("SELECT oban_join('a')").unwrap();
        client
    });
    wait_until("it has joined", || admin.one("SELECT count(*) = 1 FROM oban_members"));
    foreign.batch_execute("COMMIT").unwrap();
    cluster.signal("CONT", pid);
    let mut client = joins.join().unwrap();
    let said = told(&notices);
    assert!(said.len() == 1 && said[0].0 == "NOTICE", "{said:?}");
    assert_eq!(candidates(&mut client), "a false");
    foreign.batch_execute("DELETE FROM oban_peers").unwrap();
    wait_until("nobody leads", || admin.one("SELECT count(*) = 0 FROM oban_peers"));
    assert!(!leads(&mut client));
}

/// Each of these is a way in which a statement can give an argument.
#[test]
fn what_is_said_is_told_from_what_is_left_out() {
    let cluster = Cluster::installed();
    let (mut elixir, mut client) = (cluster.client(), cluster.client());
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap());
    client
        .batch_execute(
            "PREPARE said AS SELECT oban_join($1, lease => '1 h', candidate => $2);
             CREATE FUNCTION joins(node text, stands bool) RETURNS bigint LANGUAGE plpgsql AS
                 $$ BEGIN RETURN oban_join(node, lease => '1 h', candidate => stands); END $$;
             CREATE FUNCTION left_out(node text) RETURNS bigint LANGUAGE plpgsql AS
                 $$ BEGIN RETURN oban_join(node, lease => '1 h'); END $$;
             CREATE TABLE t AS SELECT true AS yes",
        )
        .unwrap();
    for (call, candidate) in [
        ("SELECT oban_join('a', lease => '1 h')", false),
        ("SELECT oban_join('a', 'Oban', '1 h', false, 'public', true)", true),
        ("SELECT oban_join('a', lease => '1 h', candidate => true)", true),
        ("SELECT oban_join('a', lease => '1 h', candidate => 'yes')", true),
        ("SELECT oban_join('a', lease => '1 h', candidate => false)", false),
        ("SELECT oban_join('a', lease => '1 h', candidate => yes) FROM t", true),
        ("EXECUTE said('a', true)", true),
        ("EXECUTE said('a', false)", false),
        ("SET plan_cache_mode = force_custom_plan; EXECUTE said('a', true); RESET plan_cache_mode", true),
        ("SET plan_cache_mode = force_generic_plan; EXECUTE said('a', true); RESET plan_cache_mode", true),
        ("SELECT joins('a', true)", true),
        ("SELECT left_out('a')", false),
    ] {
        client.batch_execute(call).unwrap();
        assert_eq!(candidates(&mut client), format!("a {candidate}"), "{call}");
        client.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
    }
    assert_eq!(code(&mut client, "SELECT oban_join('a', candidate => NULL)"), "22004");
    let join = "SELECT oban_join('a', lease => '1 h', candidate => $1)";
    client.query_one(join, &[&true]).unwrap();
    assert_eq!(candidates(&mut client), "a true", "by a driver's argument");
}
