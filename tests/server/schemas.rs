//! A prefix is a schema, not a name: what becomes of members and leaders when schemas and tables are renamed,
//! moved, dropped and made anew?
//!
//! The tests ask right after the commit, without waiting, whether a member believes that it leads: nothing
//! may come in between.

use postgres::Client;

use crate::support::{Ask, Cluster, code, heard, wait_until};

const APP: &str = "SELECT oban_install('app')";

/// Starts a server with the prefix `app`. Returns a session whose member leads there, and another session.
fn led() -> (Cluster, Client, Client) {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute(APP).unwrap();
    let mut leader = cluster.client();
    join(&mut leader, "web.1", "app");
    assert!(leads(&mut leader, "app"));
    (cluster, leader, admin)
}

fn join(client: &mut Client, node: &str, prefix: &str) -> i64 {
    client.query_one("SELECT oban_join($1, prefix => $2)", &[&node, &prefix]).unwrap().get(0)
}

fn leads(client: &mut Client, prefix: &str) -> bool {
    client.query_one("SELECT oban_is_leader(prefix => $1)", &[&prefix]).unwrap().get(0)
}

fn term(client: &mut Client, prefix: &str) -> Option<i64> {
    client.query_one("SELECT oban_term(prefix => $1)", &[&prefix]).unwrap().get(0)
}

fn leader(client: &mut Client, prefix: &str) -> Option<String> {
    client.query_opt("SELECT node FROM oban_leader(prefix => $1)", &[&prefix]).unwrap().map(|row| row.get(0))
}

/// The members: prefix, node, and whether each leads.
fn members(client: &mut Client) -> Vec<(String, String, bool)> {
    let rows =
        client.query("SELECT prefix, node, leader FROM oban_members ORDER BY prefix, node", &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn leadership(client: &mut Client) -> Vec<(String, String)> {
    let rows = client.query("SELECT prefix, node FROM oban_leadership ORDER BY prefix, node", &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn member(prefix: &str, node: &str, leads: bool) -> (String, String, bool) {
    (prefix.into(), node.into(), leads)
}

/// The table as Oban's own migration makes it, without the columns and triggers that oban_install adds.
const PEERS_OF_OBAN: &str = "CREATE UNLOGGED TABLE app.oban_peers (name text PRIMARY KEY, node text NOT NULL,
    started_at timestamp NOT NULL, expires_at timestamp NOT NULL)";

const FOREIGN_LEADER: &str = "INSERT INTO app.oban_peers VALUES ('Oban', 'ex', timezone('utc', now()),
    timezone('utc', now()) + interval '60 s')";

#[test]
fn members_and_leaders_follow_a_renamed_schema() {
    let (cluster, mut leader_session, mut admin) = led();
    let before = term(&mut leader_session, "app");
    leader_session.batch_execute("SELECT oban_gossip_put('web.1', 'media', prefix => 'app')").unwrap();
    admin.batch_execute("ALTER SCHEMA app RENAME TO app2").unwrap();
    let mut other = cluster.client();
    join(&mut other, "web.2", "app2");
    assert!(!leads(&mut other, "app2"), "web.1 leads");
    assert!(leads(&mut leader_session, "app2") && !leads(&mut leader_session, "app"));
    assert_eq!(term(&mut leader_session, "app2"), before);
    assert_eq!(leader(&mut admin, "app2").as_deref(), Some("web.1"));
    assert_eq!(members(&mut admin), [member("app2", "web.1", true), member("app2", "web.2", false)]);
    assert_eq!(leadership(&mut admin), [("app2".into(), "web.1".into())]);
    let fence = format!("BEGIN; SELECT oban_fence({}, prefix => 'app2'); COMMIT", before.unwrap());
    leader_session.batch_execute(&fence).unwrap();
    assert_eq!(code(&mut admin, "SELECT oban_leader(prefix => 'app')"), "3F000");

    // The end is announced under the new name. A schema with the old name has no leader.
    admin.batch_execute("SELECT oban_install('app')").unwrap();
    other
        .batch_execute(
            "SELECT oban_listen_channels('{leader}', 'app'), oban_listen_channels('{leader}', 'app2')",
        )
        .unwrap();
    leader_session.batch_execute("SELECT oban_leave(member) FROM oban_members WHERE node = 'web.1'").unwrap();
    wait_until("web.2 leads", || leads(&mut other, "app2"));
    let heard: Vec<String> =
        heard(&mut other).iter().map(|n| format!("{} {}", n.channel(), n.payload())).collect();
    assert_eq!(heard, [r#"app2.oban_leader {"down":"Oban"}"#]);
    assert_eq!(leader(&mut admin, "app"), None);
    assert_eq!(members(&mut admin), [member("app2", "web.2", true)]);
    assert!(admin.query("SELECT FROM oban_gossip WHERE prefix = 'app'", &[]).unwrap().is_empty());
}

#[test]
fn two_schemas_that_swap_their_names_keep_their_leaders() {
    let (cluster, mut one, mut admin) = led();
    admin.batch_execute("SELECT oban_install('tmp')").unwrap();
    let mut two = cluster.client();
    join(&mut two, "web.2", "tmp");
    let terms = (term(&mut one, "app"), term(&mut two, "tmp"));
    for round in 0..10 {
        admin
            .batch_execute(
                "BEGIN; ALTER SCHEMA app RENAME TO between; ALTER SCHEMA tmp RENAME TO app;
                 ALTER SCHEMA between RENAME TO tmp; COMMIT",
            )
            .unwrap();
        let (of_one, of_two) = if round % 2 == 0 { ("tmp", "app") } else { ("app", "tmp") };
        assert!(leads(&mut one, of_one) && !leads(&mut one, of_two));
        assert!(leads(&mut two, of_two) && !leads(&mut two, of_one));
        assert_eq!((term(&mut one, of_one), term(&mut two, of_two)), terms);
        assert_eq!(leader(&mut admin, of_one).as_deref(), Some("web.1"));
    }
}

#[test]
fn a_dropped_schema_ends_all_of_it() {
    let (cluster, mut bound, mut admin) = led();
    let mut leased = cluster.client();
    let leased_id: i64 = leased.one("SELECT oban_join('web.2', lease => '1 h', prefix => 'app')");
    leased.batch_execute("SELECT oban_gossip_put('web.2', 'media', prefix => 'app')").unwrap();
    // A drop that is rolled back ends nothing. Neither does one within a savepoint of a transaction that
    // commits.
    for sql in [
        "BEGIN; DROP SCHEMA app CASCADE; ROLLBACK",
        "BEGIN; SAVEPOINT s; DROP SCHEMA app CASCADE; ROLLBACK TO s; CREATE TABLE x (); DROP TABLE x; COMMIT",
        "DO $$ BEGIN DROP SCHEMA app CASCADE; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END $$",
    ] {
        admin.batch_execute(sql).unwrap();
        assert!(leads(&mut bound, "app"), "{sql}");
    }
    admin.batch_execute("DROP SCHEMA app CASCADE").unwrap();
    assert!(!leads(&mut bound, "app"));
    assert_eq!(term(&mut bound, "app"), None);
    assert_eq!(members(&mut admin), []);
    assert_eq!(code(&mut leased, &format!("SELECT oban_renew({leased_id})")), "55000");
    assert!(!leased.one::<bool>(&format!("SELECT oban_leave({leased_id})")));
    for call in [
        "oban_fence(1, prefix => 'app')",
        "oban_join('web.1', prefix => 'app')",
        "oban_leader(prefix => 'app')",
    ] {
        assert_eq!(code(&mut bound, &format!("SELECT {call}")), "3F000", "{call}");
    }

    admin.batch_execute(APP).unwrap();
    assert_eq!((members(&mut admin), leadership(&mut admin)), (vec![], vec![]));
    assert!(!leads(&mut bound, "app"));
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM oban_gossip"), 0);
    join(&mut bound, "web.1", "app");
    assert!(leads(&mut bound, "app"), "it is a member again");
}

/// Each way to take the table away is followed by a way to bring one back.
#[test]
fn a_table_that_goes_takes_its_leaders_along() {
    for (away, back) in [
        ("DROP TABLE app.oban_peers", APP),
        ("DROP TABLE app.oban_peers CASCADE", APP),
        ("ALTER TABLE app.oban_peers RENAME TO old", "ALTER TABLE app.old RENAME TO oban_peers"),
        ("ALTER TABLE app.oban_peers SET SCHEMA other", "ALTER TABLE other.oban_peers SET SCHEMA app"),
        ("DO $$ BEGIN EXECUTE 'DROP TABLE app.oban_peers'; END $$", APP),
        ("BEGIN; SAVEPOINT s; DROP TABLE app.oban_peers; RELEASE s; COMMIT", APP),
        ("DROP OWNED BY dropper", APP),
        ("SELECT oban_uninstall('app')", "DELETE FROM app.oban_peers"),
        ("ALTER TABLE app.oban_peers DROP COLUMN term", "DELETE FROM app.oban_peers"),
        ("BEGIN; DROP TABLE app.oban_peers; PREPARE TRANSACTION 'p'", "COMMIT PREPARED 'p'"),
    ] {
        let cluster =
            Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 2"]);
        let mut admin = cluster.client();
        admin
            .batch_execute(
                "CREATE EXTENSION obanrs; CREATE SCHEMA other; CREATE ROLE dropper; SELECT oban_install('app')",
            )
            .unwrap();
        admin.batch_execute("ALTER TABLE app.oban_peers OWNER TO dropper").unwrap();
        let mut session = cluster.client();
        join(&mut session, "web.1", "app");
        wait_until("it leads", || leads(&mut session, "app"));
        let before = term(&mut session, "app");
        admin.batch_execute(away).unwrap();
        assert!(!leads(&mut session, "app"), "{away}");
        assert_eq!(members(&mut admin), [member("app", "web.1", false)], "{away}");
        admin.batch_execute(back).unwrap();
        admin.batch_execute(APP).unwrap();
        wait_until("it leads again", || leads(&mut session, "app"));
        // A row that comes back with its table is the same leadership, with the same term or a later one.
        assert!(term(&mut session, "app") >= before, "{away}");
        let found = "SELECT count(*) FROM oban_check() WHERE item = 'leaders of app' AND ok";
        wait_until("oban_check agrees", || admin.one::<i64>(found) == 1);
    }
}

/// No trigger tells of changes of such a table. A member stops believing that it leads soon, long before half
/// of its lease.
#[test]
fn a_table_without_its_triggers_is_believed_for_a_moment() {
    for unguard in [
        "ALTER TABLE app.oban_peers DISABLE TRIGGER ALL",
        "ALTER TABLE app.oban_peers DISABLE TRIGGER obanrs_peers_rows",
        "ALTER TABLE app.oban_peers ENABLE REPLICA TRIGGER obanrs_peers_rows",
        "DROP TRIGGER obanrs_peers_rows ON app.oban_peers",
        "CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE OR REPLACE TRIGGER obanrs_peers_rows AFTER INSERT OR UPDATE OR DELETE ON app.oban_peers
         FOR EACH ROW EXECUTE FUNCTION noop()",
        "BEGIN; DROP EXTENSION obanrs CASCADE; CREATE EXTENSION obanrs; COMMIT",
    ] {
        let (_cluster, mut session, mut admin) = led();
        admin.batch_execute("SET client_min_messages = error").unwrap();
        admin.batch_execute(unguard).unwrap();
        wait_until("it leads", || leads(&mut session, "app"));
        let taken_over = format!("BEGIN; DELETE FROM app.oban_peers; {FOREIGN_LEADER}; COMMIT");
        admin
            .batch_execute(&taken_over.replace("VALUES", "(name, node, started_at, expires_at) VALUES"))
            .unwrap();
        let since = std::time::Instant::now();
        wait_until("it leads no more", || !leads(&mut session, "app"));
        assert!(since.elapsed().as_secs() < 8, "{unguard}: after {:?}", since.elapsed());
        assert_eq!(leader(&mut admin, "app").as_deref(), Some("ex"), "{unguard}");
    }
}

/// Any role may create temporary tables, so any role may write to a schema of its own.
#[test]
fn a_schema_of_postgres_is_no_prefix() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("CREATE ROLE stranger LOGIN").unwrap();
    let mut stranger = cluster.client_as("postgres", "stranger");
    stranger.batch_execute("CREATE TEMP TABLE t ()").unwrap();
    let own: String = stranger.one("SELECT nspname::text FROM pg_namespace WHERE oid = pg_my_temp_schema()");
    for prefix in [&own, "pg_catalog", "information_schema"] {
        for call in [
            format!("oban_notify('x', '{{}}', '{prefix}')"),
            format!("oban_join('n', prefix => '{prefix}')"),
            format!("oban_gossip_put('n', 'q', prefix => '{prefix}')"),
            format!("oban_listen_channels(prefix => '{prefix}')"),
        ] {
            assert_eq!(code(&mut stranger, &format!("SELECT {call}")), "42939", "{call}");
            assert_eq!(code(&mut admin, &format!("SELECT {call}")), "42939", "{call}");
        }
    }
}

#[test]
fn a_rolled_back_drop_ends_nothing() {
    let (_cluster, mut session, mut admin) = led();
    let before = term(&mut session, "app");
    for sql in [
        "BEGIN; DROP TABLE app.oban_peers; ROLLBACK",
        "BEGIN; SAVEPOINT s; ALTER TABLE app.oban_peers RENAME TO x; ROLLBACK TO s; COMMIT",
        "BEGIN; ALTER TABLE app.oban_peers RENAME TO x; ALTER TABLE app.x RENAME TO oban_peers; COMMIT",
    ] {
        admin.batch_execute(sql).unwrap();
        assert_eq!((leads(&mut session, "app"), term(&mut session, "app")), (true, before), "{sql}");
    }
}

/// Oban's migration goes below version 11 and up again, and a real node leads in its table.
#[test]
fn views_agree_on_a_table_that_oban_has_made_anew() {
    let (_cluster, mut session, mut admin) = led();
    admin.batch_execute("DROP TABLE app.oban_peers").unwrap();
    admin.batch_execute(PEERS_OF_OBAN).unwrap();
    admin.batch_execute(FOREIGN_LEADER).unwrap();
    assert!(!leads(&mut session, "app"));
    assert_eq!(leader(&mut admin, "app").as_deref(), Some("ex"));
    assert_eq!(leadership(&mut admin), [("app".into(), "ex".into())]);
    assert_eq!(members(&mut admin), [member("app", "web.1", false)]);
    let detail: String =
        admin.one("SELECT detail FROM oban_check() WHERE item = 'leaders of app' AND NOT ok");
    assert!(detail.contains("ex leads Oban"), "{detail}");

    // The prefix is installed again. The member waits until the foreign lease is over.
    admin.batch_execute(APP).unwrap();
    wait_until("the keeper knows", || admin.one("SELECT ok FROM oban_check() WHERE item = 'leaders of app'"));
    assert!(!leads(&mut session, "app"));
    admin.batch_execute("DELETE FROM app.oban_peers").unwrap();
    wait_until("it leads", || leads(&mut session, "app"));
}

/// One transaction drops and creates the table, so the table is never missing.
#[test]
fn a_replaced_table_has_its_own_election() {
    let (_cluster, mut session, mut admin) = led();
    let before = term(&mut session, "app");
    admin.batch_execute("BEGIN; DROP TABLE app.oban_peers; SELECT oban_install('app'); COMMIT").unwrap();
    wait_until("it leads in the new table", || leads(&mut session, "app"));
    assert!(term(&mut session, "app") > before);
    assert_eq!(leader(&mut admin, "app").as_deref(), Some("web.1"));

    // A foreign leader that is there from the first moment is respected.
    admin
        .batch_execute(&format!(
            "BEGIN; DROP TABLE app.oban_peers; {PEERS_OF_OBAN}; {FOREIGN_LEADER}; COMMIT"
        ))
        .unwrap();
    assert!(!leads(&mut session, "app"));
    assert_eq!(leader(&mut admin, "app").as_deref(), Some("ex"));
}

#[test]
fn prepared_transactions_end_what_they_drop() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 2"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install('app')").unwrap();
    let mut session = cluster.client();
    join(&mut session, "web.1", "app");
    admin.batch_execute("BEGIN; DROP SCHEMA app CASCADE; PREPARE TRANSACTION 'p'").unwrap();
    assert!(!leads(&mut session, "app"), "from then on nobody can renew it");
    admin.batch_execute("ROLLBACK PREPARED 'p'").unwrap();
    wait_until("it leads again", || leads(&mut session, "app"));

    admin.batch_execute("BEGIN; DROP SCHEMA app CASCADE; PREPARE TRANSACTION 'p'").unwrap();
    admin.batch_execute("COMMIT PREPARED 'p'").unwrap();
    assert!(!leads(&mut session, "app"));
    admin.batch_execute(APP).unwrap();
    wait_until("the old members are gone", || members(&mut admin).is_empty());
    join(&mut session, "web.1", "app");
    assert!(leads(&mut session, "app"));
}

/// Joining acts at once, also when the schema is not committed yet.
#[test]
fn a_member_may_join_in_the_transaction_that_creates_the_schema() {
    let cluster = Cluster::installed();
    let mut session = cluster.client();
    for (end, led) in [("ROLLBACK", false), ("COMMIT", true)] {
        session
            .batch_execute("BEGIN; SELECT oban_install('new'); SELECT oban_join('web.1', prefix => 'new')")
            .unwrap();
        session.batch_execute(end).unwrap();
        if led {
            wait_until("it leads", || leads(&mut session, "new"));
        } else {
            assert!(!leads(&mut session, "new"));
        }
    }
    assert_eq!(members(&mut session), [member("new", "web.1", true)]);
}

/// Any role may create a temporary table with the trigger on it. No other session sees that table.
#[test]
fn wake_ups_of_temporary_tables_take_no_room() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("CREATE ROLE stranger LOGIN").unwrap();
    let before: i64 = admin.one("SELECT oban_position()");
    let mut stranger = cluster.client_as("postgres", "stranger");
    stranger
        .batch_execute(
            "CREATE TEMP TABLE t (queue text, state text);
             CREATE TRIGGER t AFTER INSERT ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT
                 EXECUTE FUNCTION obanrs_jobs_insert();
             INSERT INTO t SELECT 'q' || i, 'available' FROM generate_series(1, 100) i",
        )
        .unwrap();
    assert_eq!(admin.one::<i64>("SELECT oban_position()"), before);
    assert_eq!(stranger.one::<i64>("SELECT count(*) FROM t"), 100);
}

/// Cheap statements of a role without rights on a prefix do not make the keeper renew others' rows.
#[test]
fn statements_of_strangers_renew_nobodys_lease() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 2"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install('app')").unwrap();
    admin.batch_execute("CREATE ROLE stranger LOGIN; GRANT CREATE ON DATABASE postgres TO stranger").unwrap();
    let mut session = cluster.client();
    join(&mut session, "web.1", "app");
    let expires = "SELECT expires_at::text FROM app.oban_peers";
    let before: String = admin.one(expires);
    let mut stranger = cluster.client_as("postgres", "stranger");
    for _ in 0..20 {
        stranger.batch_execute("CREATE SCHEMA x; DROP SCHEMA x").unwrap();
        assert_eq!(code(&mut stranger, "COMMIT PREPARED 'nothing'"), "42704");
        let tables: String =
            (0..70).map(|n| format!("CREATE TEMP TABLE t{n} (i int primary key);")).collect();
        stranger.batch_execute(&format!("BEGIN; {tables} COMMIT; DISCARD TEMP")).unwrap();
    }
    // When this join returns, the keeper has been through a pass.
    join(&mut stranger_member(&cluster), "other", "other");
    assert_eq!(admin.one::<String>(expires), before);
    assert!(leads(&mut session, "app"));
}

fn stranger_member(cluster: &Cluster) -> Client {
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('other')").unwrap();
    client
}

/// A table comes back with the row of an earlier leadership. Meanwhile there was a later term.
#[test]
fn a_row_that_comes_back_after_a_later_term_leads_no_more() {
    let (_cluster, mut session, mut admin) = led();
    let first = term(&mut session, "app").unwrap();
    admin.batch_execute("ALTER TABLE app.oban_peers RENAME TO old").unwrap();
    admin.batch_execute(APP).unwrap();
    wait_until("it leads in the new table", || term(&mut session, "app") > Some(first));
    let second = term(&mut session, "app").unwrap();
    admin
        .batch_execute(
            "BEGIN; ALTER TABLE app.oban_peers RENAME TO new; ALTER TABLE app.old RENAME TO oban_peers; COMMIT",
        )
        .unwrap();
    wait_until("it leads in the old table", || term(&mut session, "app") > Some(second));
}

/// The transaction drops more schemas than its lists hold.
#[test]
fn a_transaction_may_drop_many_schemas() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_locks_per_transaction = 512"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE EXTENSION obanrs").unwrap();
    let mut session = cluster.client();
    for n in 0..70 {
        admin.batch_execute(&format!("SELECT oban_install('s{n}')")).unwrap();
        join(&mut session, "web.1", &format!("s{n}"));
    }
    wait_until("all are led", || admin.one::<i64>("SELECT count(*) FROM oban_members WHERE leader") == 70);
    let drop: String = (0..70).map(|n| format!("DROP SCHEMA s{n} CASCADE;")).collect();
    admin.batch_execute(&format!("BEGIN; {drop} COMMIT")).unwrap();
    assert_eq!(members(&mut admin), []);
    for n in 0..70 {
        assert!(!leads(&mut session, &format!("s{n}")));
    }
    // The keeper forgets members of schemas that the lists did not hold. When such a name comes back, it has
    // no members.
    wait_until("no member is left", || {
        admin.batch_execute("SELECT oban_install('s69')").unwrap();
        members(&mut admin).is_empty()
    });
}

/// All members share a table of 1,024 places. One role may have a quarter of them.
#[test]
fn one_role_does_not_take_all_members() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_members = 40"]);
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE EXTENSION obanrs; CREATE ROLE tenant LOGIN; CREATE ROLE other LOGIN;
             CREATE SCHEMA app; CREATE SCHEMA app2; GRANT ALL ON SCHEMA app TO tenant; GRANT ALL ON SCHEMA app2 TO other",
        )
        .unwrap();
    let mut tenant = cluster.client_as("postgres", "tenant");
    let joins =
        "SELECT oban_join('n' || i, 'N' || i, '1 day', prefix => 'app') FROM generate_series(1, 11) i";
    let error = tenant.batch_execute(joins).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "53400");
    assert!(
        error.message().contains("tenant") && error.message().contains("obanrs.max_members"),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("obanrs.role_share"), "{error:?}");
    let of_tenant = "SELECT count(*) FROM oban_members WHERE prefix = 'app'";
    assert_eq!(admin.one::<i64>(of_tenant), 10);
    // Members of that role may renew and may be replaced. Another role and the owner of the database have
    // room.
    tenant.batch_execute("SELECT oban_renew(member) FROM oban_members").unwrap();
    tenant.batch_execute("SELECT oban_join('n1', 'N1', '1 day', true, 'app')").unwrap();
    let mut other = cluster.client_as("postgres", "other");
    other.batch_execute("SELECT oban_join('n', prefix => 'app2')").unwrap();
    let all = "SELECT count(oban_join('n' || i, 'N' || i, '1 day', prefix => 'app2')) FROM generate_series(1, 29) i";
    assert_eq!(admin.one::<i64>(all), 29);
    assert_eq!(
        code(&mut other, "SELECT oban_join('m', 'M', prefix => 'app2')"),
        "53400",
        "the table is full"
    );
    // A member that leaves makes room.
    tenant.batch_execute("SELECT oban_leave(member) FROM oban_members WHERE prefix = 'app'").unwrap();
    tenant.batch_execute(&joins.replace("11", "10")).unwrap();
}
