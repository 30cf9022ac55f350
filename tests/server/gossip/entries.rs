//! Which entries does a session see, and until when?

use postgres::Client;

use super::queues;
use crate::support::{Ask, Cluster, stat, wait_for, wait_until};

#[test]
fn a_state_is_seen_with_its_columns_and_replaced() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            r#"SELECT oban_gossip_put('web.1', 'default', '{"limit": 10, "paused": false, "running": [7, 8],
               "uuid": "u-1", "started_at": "2026-01-31T12:00:00.5+02:00", "mine": {"n": 12345678901234567890.5}}')"#,
        )
        .unwrap();
    let sql = "SELECT prefix, name, node, queue, paused, local_limit, running, uuid,
                      started_at = '2026-01-31 10:00:00.5Z', updated_at <= now(),
                      expires_at > now() + interval '29 seconds', state->'mine'->>'n'
               FROM oban_gossip";
    let row = client.query_one(sql, &[]).unwrap();
    let texts: Vec<String> = (0..4).map(|i| row.get(i)).collect();
    assert_eq!(texts, ["public", "Oban", "web.1", "default"]);
    assert_eq!((row.get(4), row.get(5), row.get(6), row.get(7)), (false, 10, 2, "u-1"));
    assert_eq!((row.get(8), row.get(9), row.get(10)), (true, true, true));
    assert_eq!(row.get::<_, &str>(11), "12345678901234567890.5", "numbers stay exact");

    client.batch_execute(r#"SELECT oban_gossip_put('web.1', 'default', '{"local_limit": 3}')"#).unwrap();
    let row =
        client.query_one("SELECT paused, local_limit, running, state::text FROM oban_gossip", &[]).unwrap();
    assert_eq!((row.get::<_, Option<bool>>(0), row.get::<_, Option<i32>>(1)), (None, Some(3)));
    assert_eq!((row.get::<_, Option<i32>>(2), row.get::<_, &str>(3)), (None, r#"{"local_limit": 3}"#));
}

#[test]
fn entries_end_by_ttl_by_deletion_and_with_their_member() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_gossip_put('a', 'short', ttl => '200 milliseconds')").unwrap();
    for queue in ["1", "2", "3"] {
        client.query_one("SELECT oban_gossip_put('a', $1)", &[&queue]).unwrap();
    }
    wait_until("the short one expired", || queues(&mut client) == ["a/1", "a/2", "a/3"]);
    let deleted = |c: &mut Client, sql: &str| -> i32 { c.one(sql) };
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('a', '1')"), 1);
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('a', '1')"), 0);
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('b')"), 0);
    assert_eq!(queues(&mut client), ["a/2", "a/3"]);
    assert_eq!(deleted(&mut client, "SELECT oban_gossip_delete('a')"), 2);

    let mut member = cluster.shell();
    member.ask("SELECT oban_join('m')");
    member.ask("SELECT oban_gossip_put('m', 'default') IS NULL");
    client.batch_execute("SELECT oban_gossip_put('n', 'default')").unwrap();
    assert_eq!(queues(&mut client), ["m/default", "n/default"]);
    member.kill();
    wait_until("the killed member's are gone", || queues(&mut client) == ["n/default"]);

    // Entries belong to processes: a rollback does not take them back.
    client.batch_execute("BEGIN; SELECT oban_gossip_put('r', 'default'); ROLLBACK").unwrap();
    assert_eq!(queues(&mut client), ["n/default", "r/default"]);
}

#[test]
fn a_killed_nodes_entries_end_at_once_if_it_was_a_member_else_by_their_ttl() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let (mut member, mut other) = (cluster.shell(), cluster.shell());
    member.ask("SELECT oban_join('member')");
    member.ask("SELECT oban_gossip_put('member', 'default', ttl => '1 hour') IS NULL");
    other.ask("SELECT oban_gossip_put('other', 'long', ttl => '1 hour') IS NULL");
    other.ask("SELECT oban_gossip_put('other', 'short', ttl => '2 seconds') IS NULL");
    member.kill();
    other.kill();
    wait_until("the member's are gone", || !queues(&mut client).contains(&"member/default".into()));
    wait_until("the short one is over", || queues(&mut client) == ["other/long"]);
    wait_until("and counted", || stat(&mut client, "gossip_expired") == 1);
}

#[test]
fn a_crash_leaves_an_empty_working_table() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for queue in ["1", "2"] {
        client.query_one("SELECT oban_gossip_put('a', $1)", &[&queue]).unwrap();
    }
    cluster.crash(client.one("SELECT pg_backend_pid()"));
    let mut client = wait_for_server(&cluster);
    assert!(queues(&mut client).is_empty());
    client.batch_execute("SELECT oban_gossip_put('a', '3'), oban_listen_channels('{gossip}')").unwrap();
    assert_eq!(queues(&mut client), ["a/3"]);
    wait_until("it is broadcast again", || stat(&mut client, "gossip_broadcasts") > 1);
}

fn wait_for_server(cluster: &Cluster) -> Client {
    wait_for("the server is back", || {
        let mut client = cluster.try_client("postgres", "postgres").ok()?;
        client.simple_query("SELECT * FROM oban_gossip").ok().map(|_| client)
    })
}

#[test]
fn databases_and_prefixes_see_only_their_own() {
    let cluster = Cluster::installed();
    let mut first = cluster.client();
    first
        .batch_execute(
            "SELECT oban_install('other'); CREATE ROLE app LOGIN; GRANT SELECT ON oban_jobs TO app",
        )
        .unwrap();
    first.batch_execute("CREATE DATABASE second").unwrap();
    let mut second = cluster.client_of("second");
    second.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let put = |c: &mut Client, limit: i32, prefix: &str| {
        let sql = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('limit', $1::int), prefix => $2)";
        c.query_one(sql, &[&limit, &prefix]).unwrap();
    };
    put(&mut first, 1, "public");
    put(&mut first, 2, "other");
    put(&mut second, 3, "public");
    let limits = |c: &mut Client| -> String {
        c.one("SELECT string_agg(prefix || local_limit, ',' ORDER BY prefix) FROM oban_gossip")
    };
    assert_eq!((limits(&mut first), limits(&mut second)), ("other2,public1".into(), "public3".into()));
    assert_eq!(limits(&mut cluster.client_as("postgres", "app")), "public1", "what it may read");
    assert_eq!(first.one::<i32>("SELECT oban_gossip_delete('a', 'q')"), 1);
    assert_eq!((limits(&mut first), limits(&mut second)), ("other2".into(), "public3".into()));
    second.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("its workers have gone", || {
        !first.one::<bool>("SELECT EXISTS (SELECT FROM oban_workers WHERE database = 'second')")
    });
    second.batch_execute("CREATE EXTENSION obanrs").unwrap();
    assert_eq!(second.one::<i64>("SELECT count(*) FROM oban_gossip"), 0, "nothing is left of the one before");
    assert_eq!(limits(&mut first), "other2");
}

/// Entries of a schema that is gone belong to no prefix, and are soon forgotten.
#[test]
fn a_new_schema_of_an_old_name_has_nothing_of_the_old_one() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_interval = 50ms"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install('s')").unwrap();
    let put = "SELECT oban_gossip_put('old', 'q', ttl => '1 hour', prefix => 's')";
    client.batch_execute(put).unwrap();
    client.batch_execute("DROP SCHEMA s CASCADE; SELECT oban_install('s')").unwrap();
    assert!(queues(&mut client).is_empty());
    assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('old', prefix => 's')"), 0);
    client.batch_execute("SELECT oban_gossip_put('new', 'q', ttl => '1 hour', prefix => 's')").unwrap();
    assert_eq!(queues(&mut client), ["new/q"]);
    wait_until("the old one is forgotten", || stat(&mut client, "gossip_entries") == 1);
    assert_eq!(queues(&mut client), ["new/q"]);

    // A transaction that creates a schema may put entries before it commits, while others broadcast.
    let mut maker = cluster.client();
    maker.batch_execute("BEGIN; DROP SCHEMA s CASCADE; SELECT oban_install('s')").unwrap();
    maker.batch_execute(put).unwrap();
    assert_eq!(
        (queues(&mut maker), queues(&mut client)),
        (vec!["old/q".to_owned()], vec!["new/q".to_owned()])
    );
    let rounds = stat(&mut client, "gossip_broadcasts");
    wait_until("others are told of", || stat(&mut client, "gossip_broadcasts") > rounds + 3);
    maker.batch_execute("COMMIT").unwrap();
    assert_eq!(queues(&mut client), ["old/q"]);
    // A transaction that is rolled back has put an entry for a schema that never was.
    maker.batch_execute("BEGIN; DROP SCHEMA s CASCADE; SELECT oban_install('s')").unwrap();
    maker
        .batch_execute("SELECT oban_gossip_put('never', 'q', ttl => '1 hour', prefix => 's'); ROLLBACK")
        .unwrap();
    assert_eq!(queues(&mut client), ["old/q"]);
    wait_until("it is forgotten", || stat(&mut client, "gossip_entries") == 1);
    assert_eq!(queues(&mut client), ["old/q"]);
}

/// The function behind the view returns a table wherever Postgres may call it.
#[test]
fn the_rows_come_wherever_a_table_is_wanted() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_gossip_put('a', '1'), oban_gossip_put('a', '2')").unwrap();
    assert_eq!(client.one::<String>("SELECT (obanrs_gossip()).queue ORDER BY 1 LIMIT 1"), "1");
    let joined = "SELECT count(*) FROM oban_gossip a JOIN oban_gossip b USING (node)";
    assert_eq!(client.one::<i64>(joined), 4);
    client
        .batch_execute(
            "BEGIN; DECLARE c SCROLL CURSOR FOR SELECT queue FROM oban_gossip ORDER BY queue; MOVE LAST IN c",
        )
        .unwrap();
    assert_eq!(client.one::<String>("FETCH BACKWARD 1 FROM c"), "1");
    client.batch_execute("COMMIT").unwrap();
    let lateral =
        "SELECT count(*) FROM generate_series(1, 3) i, LATERAL (SELECT i, * FROM obanrs_gossip()) g";
    assert_eq!(client.one::<i64>(lateral), 6);
}
