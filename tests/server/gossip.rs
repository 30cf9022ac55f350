//! Gossip: what is put is seen, until it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::Client;

use crate::support::{Ask, Cluster, code, stat, wait_for, wait_until};

fn queues(client: &mut Client) -> Vec<String> {
    let rows = client.query("SELECT node || '/' || queue FROM oban_gossip ORDER BY 1", &[]).unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}

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

    // They are about processes: a rollback does not take them back.
    client.batch_execute("BEGIN; SELECT oban_gossip_put('r', 'default'); ROLLBACK").unwrap();
    assert_eq!(queues(&mut client), ["n/default", "r/default"]);
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_memory = '64kB'"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let fill = |c: &mut Client| -> usize {
        let sql = "SELECT oban_gossip_put('a', 'q' || $1::int, jsonb_build_object('pad', repeat('x', 1000)))";
        for i in 0..1000 {
            if let Err(error) = c.query_one(sql, &[&i]) {
                let error = error.as_db_error().expect("the server answers").clone();
                assert_eq!(error.code().code(), "53400");
                assert!(error.hint().unwrap().contains("obanrs.gossip_memory"));
                return i as usize;
            }
        }
        panic!("64 kB hold a megabyte");
    };
    let first = fill(&mut client);
    assert!(first > 20, "{first}");
    for _ in 0..20 {
        assert_eq!(client.one::<i32>("SELECT oban_gossip_delete('a')"), first as i32);
        assert_eq!(fill(&mut client), first);
    }
    // What can't be replaced by something larger keeps its old state.
    let large = "SELECT oban_gossip_put('a', 'q0', jsonb_build_object('pad', repeat('y', 60000)))";
    assert_eq!(code(&mut client, large), "53400");
    let kept = "SELECT length(state->>'pad') FROM oban_gossip WHERE queue = 'q0'";
    assert_eq!(client.one::<i32>(kept), 1000);
}

#[test]
fn what_would_crash_a_reader_is_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for (state, key) in [
        (r#"{"running": 3}"#, "running"),
        (r#"{"running": ["1", null]}"#, "running"),
        (r#"{"limit": "10"}"#, "limit"),
        (r#"{"started_at": "2026-01-31 12:00:00"}"#, "started_at"),
        (r#"{"paused": null}"#, "paused"),
        ("[]", "state"),
    ] {
        let error =
            client.query_one("SELECT oban_gossip_put('a', 'q', $1::text::jsonb)", &[&state]).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "22023", "{state}");
        assert!(error.message().contains(key) && error.hint().is_some(), "{error:?}");
    }
    assert!(queues(&mut client).is_empty(), "bad input changes nothing");
}

#[test]
fn running_jobs_are_named_by_integers_and_by_texts() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let state = r#"{"running": [7, "01HZX3K8Q4E8W7V5N2J6T9R0CB", "9b2f0a1e-0000-4000-8000-0123456789ab", "\u00e9\""]}"#;
    client.query_one("SELECT oban_gossip_put('a', 'q', $1::text::jsonb)", &[&state]).unwrap();
    let row =
        client.query_one("SELECT running, state = $1::text::jsonb FROM oban_gossip", &[&state]).unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, bool>(1)), (4, true));
}

/// Every time that we let in, Postgres reads as we do.
#[test]
fn every_accepted_time_is_a_timestamptz() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for time in ["0001-01-01T00:00:00-14:59", "9999-12-31T23:59:59.999999Z", "2024-02-29 23:59:59.1+00:00"] {
        let sql = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('started_at', $1::text))";
        client.query_one(sql, &[&time]).unwrap();
        let same =
            "SELECT started_at = $1::text::timestamptz AND started_at = (state->>'started_at')::timestamptz
                    FROM oban_gossip";
        assert!(client.query_one(same, &[&time]).unwrap().get::<_, bool>(0), "{time}");
    }
}

/// What a state may be, and what the server adds.
#[test]
fn a_state_is_64_kb_at_most_and_has_the_servers_times() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let put = |c: &mut Client, bytes: i32| {
        let sql = "SELECT oban_gossip_put('a', 'q', jsonb_build_object('pad', repeat('x', $1)))";
        c.query_one(sql, &[&(bytes - r#"{"pad":""}"#.len() as i32)]).map(|_| ())
    };
    put(&mut client, 65_536).unwrap();
    let kept = "SELECT octet_length(state::text) FROM oban_gossip";
    assert_eq!(client.one::<i32>(kept), 65_537, "with the space that Postgres puts behind the colon");
    let error = put(&mut client, 65_537).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22023");
    // Without the spaces that Postgres puts behind commas; these are 60,900 bytes. (As jsonb it is more.)
    let ids = "SELECT oban_gossip_put('a', 'ids', (SELECT jsonb_build_object('running', jsonb_agg(i))
                      FROM generate_series(1, 12000) i))";
    client.batch_execute(ids).unwrap();
    assert_eq!(client.one::<i32>("SELECT running FROM oban_gossip WHERE queue = 'ids'"), 12_000);

    // updated_at is the server's whatever a state says; started_at stays while the entry lives.
    client
        .batch_execute(r#"SELECT oban_gossip_put('b', 'q', '{"updated_at": "2001-01-01T00:00:00Z"}')"#)
        .unwrap();
    let times = "SELECT started_at::text, (updated_at > now() - interval '1 minute')::text,
                        (updated_at > started_at)::text FROM oban_gossip WHERE node = 'b'";
    let texts = |c: &mut Client| -> Vec<String> {
        let row = c.query_one(times, &[]).unwrap();
        (0..3).map(|i| row.get(i)).collect()
    };
    let first = texts(&mut client);
    assert_eq!(first[1..], ["true", "false"]);
    client.batch_execute("SELECT oban_gossip_put('b', 'q')").unwrap();
    let second = texts(&mut client);
    assert_eq!((&second[0], &*second[2]), (&first[0], "true"));
}

/// Every state carries a checksum of itself and the names of its entry. Some sessions put, of many sizes and with
/// a ttl or without, one deletes, entries expire all the time; and others read.
#[test]
fn no_reading_is_torn() {
    read_while_others_write(1_000_000);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_no_reading_is_torn() {
    read_while_others_write(10_000_000);
}

fn read_while_others_write(readings: i64) {
    let cluster =
        Arc::new(Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_interval = 50ms"]));
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install();
             CREATE PROCEDURE put(many int, ttl interval) LANGUAGE plpgsql AS $$
             DECLARE body text; node text; queue text;
             BEGIN
                 FOR i IN 1..many LOOP
                     node := 'n' || (random() * 20)::int;
                     queue := 'q' || (random() * 10)::int;
                     body := repeat(md5(random()::text), (random() * CASE WHEN random() < 0.02 THEN 600 ELSE 12 END)::int);
                     PERFORM oban_gossip_put(node, queue, ttl => ttl * random() + interval '1 microsecond',
                         state => jsonb_build_object('of', node || queue, 'body', body, 'sum', md5(body)));
                 END LOOP;
             END $$",
        )
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let repeatedly = |sql: &'static str| {
        let (mut client, stop) = (cluster.client(), stop.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                client.batch_execute(sql).unwrap();
            }
        })
    };
    let others = [
        repeatedly("CALL put(1000, '1 hour')"),
        repeatedly("CALL put(1000, '20 milliseconds')"),
        repeatedly(
            "SELECT oban_gossip_delete('n' || (random() * 20)::int,
                        CASE WHEN random() < 0.9 THEN 'q' || (random() * 10)::int END)
             FROM generate_series(1, 20)",
        ),
    ];
    let look = "SELECT count(*), count(DISTINCT (node, queue)),
                       count(*) FILTER (WHERE md5(state->>'body') <> state->>'sum' OR state->>'of' <> node || queue)
                FROM oban_gossip";
    let (mut read, mut most) = (0, 0);
    while read < readings {
        let row = client.query_one(look, &[]).unwrap();
        let (rows, entries, torn): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((torn, entries), (0, rows), "after {read} readings");
        read += rows;
        most = most.max(rows);
    }
    stop.store(true, Ordering::Relaxed);
    others.into_iter().for_each(|other| other.join().unwrap());
    assert!(most > 50, "there was something to read: {most} at a time");
    for counter in ["gossip_puts", "gossip_expired", "gossip_broadcasts"] {
        assert!(stat(&mut client, counter) > 10, "{counter}");
    }
}

/// Filled with entries of all sizes, emptied in each of the ways that there are, and filled again: a thousand
/// times, and as much fits as at first.
#[test]
fn a_table_can_be_filled_and_emptied_for_ever() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_memory = '64kB'"]);
    let mut client = cluster.client();
    client
        .batch_execute(
            r#"CREATE EXTENSION obanrs; SELECT oban_install();
             -- As many entries as fit, of sizes that the seed decides, in another order each time.
             CREATE FUNCTION fill(seed int, life interval) RETURNS int LANGUAGE plpgsql AS $$
             DECLARE n int := 0;
             BEGIN
                 LOOP
                     PERFORM oban_gossip_put('n' || n % 5, 'q' || n, ttl => life,
                         state => jsonb_build_object('pad', repeat('x', (n * 7919 + seed * 104729) % 1500)));
                     n := n + 1;
                 END LOOP;
             EXCEPTION WHEN configuration_limit_exceeded THEN
                 RETURN n;
             END $$;
             CREATE FUNCTION clear(way int) RETURNS bigint LANGUAGE sql AS $$
                 SELECT CASE way
                     WHEN 0 THEN (SELECT sum(oban_gossip_delete('n' || n)) FROM generate_series(4, 0, -1) n)
                     WHEN 1 THEN (SELECT sum(oban_gossip_delete(node, queue)) FROM
                                  (SELECT node, queue FROM oban_gossip ORDER BY md5(queue)) q)
                 END
             $$"#,
        )
        .unwrap();
    let fill = |c: &mut Client, seed: i32, life: &str| -> i64 {
        i64::from(c.one::<i32>(&format!("SELECT fill({seed}, '{life}')")))
    };
    let firsts: Vec<i64> = (0..7)
        .map(|seed| {
            let filled = fill(&mut client, seed, "1 hour");
            assert_eq!(client.one::<i64>("SELECT clear(0)"), filled);
            filled
        })
        .collect();
    assert!(firsts.iter().all(|n| *n > 20), "{firsts:?}");
    for round in 0..1000 {
        let seed = round % 7;
        let expires = round % 10 == 9;
        let filled = fill(&mut client, seed, if expires { "50 milliseconds" } else { "1 hour" });
        assert!(filled == firsts[seed as usize] || expires, "round {round}: {filled} of {firsts:?}");
        if expires {
            wait_until("they have expired", || queues(&mut client).is_empty());
        } else {
            let way = round % 2;
            assert_eq!(client.one::<i64>(&format!("SELECT clear({way})")), filled, "round {round}");
        }
    }
    assert_eq!(stat(&mut client, "gossip_entries"), 0);
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
    cluster.signal("KILL", client.one("SELECT pg_backend_pid()"));
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

/// What was of a schema that is gone is nobody's, and takes no room for long.
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

    // The transaction that makes a schema may put into it before it commits, and others broadcast meanwhile.
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
    // One that is rolled back has put into a schema that never was.
    maker.batch_execute("BEGIN; DROP SCHEMA s CASCADE; SELECT oban_install('s')").unwrap();
    maker
        .batch_execute("SELECT oban_gossip_put('never', 'q', ttl => '1 hour', prefix => 's'); ROLLBACK")
        .unwrap();
    assert_eq!(queues(&mut client), ["old/q"]);
    wait_until("it is forgotten", || stat(&mut client, "gossip_entries") == 1);
    assert_eq!(queues(&mut client), ["old/q"]);
}

/// How many entries a session can put for nodes that begin with `node`.
fn fill(client: &mut Client, node: &str, prefix: &str) -> (i32, postgres::error::DbError) {
    let sql = "SELECT oban_gossip_put($1, 'q', prefix => $2)";
    for n in 0..1_000 {
        if let Err(error) = client.query_one(sql, &[&format!("{node}{n}"), &prefix]) {
            let error = error.as_db_error().expect("the server answers").clone();
            assert_eq!(error.code().code(), "53400");
            return (n, error);
        }
    }
    panic!("64 kB hold a thousand entries")
}

#[test]
fn a_role_may_hold_its_share_of_the_memory() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_memory = '64kB'"]);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install();
             CREATE ROLE greedy LOGIN; CREATE ROLE modest LOGIN; CREATE ROLE owner LOGIN;
             CREATE SCHEMA g AUTHORIZATION greedy; GRANT SELECT, INSERT ON oban_jobs TO greedy, modest;
             ",
        )
        .unwrap();
    client.batch_execute("CREATE DATABASE owned OWNER owner").unwrap();
    let mut greedy = cluster.client_as("postgres", "greedy");
    // Over all prefixes.
    greedy.batch_execute("SELECT oban_gossip_put('there', 'q', prefix => 'g')").unwrap();
    let (many, error) = fill(&mut greedy, "n", "public");
    assert!(error.message().contains("greedy has its share of obanrs.gossip_memory"), "{error:?}");
    assert!(error.hint().unwrap().contains("obanrs.role_share"), "{error:?}");
    assert!((30..60).contains(&many), "{many}: a quarter of some 170");
    // Bytes count, too, and what it replaces is its own again.
    let large = "SELECT oban_gossip_put('n0', 'q', jsonb_build_object('pad', repeat('x', 1000)))";
    assert_eq!(code(&mut greedy, large), "53400");
    greedy.batch_execute("SELECT oban_gossip_delete('n1'), oban_gossip_delete('n2'), oban_gossip_delete('n3'), oban_gossip_delete('n4')").unwrap();
    greedy.batch_execute(large).unwrap();
    assert_eq!(fill(&mut greedy, "m", "public").0, 0);
    greedy.batch_execute("SELECT oban_gossip_put('n0', 'q')").unwrap();
    assert_eq!(fill(&mut greedy, "m", "public").0, 4);

    // Other roles have theirs. A role that replaces an entry has it from then on.
    let mut modest = cluster.client_as("postgres", "modest");
    modest.batch_execute("SELECT oban_gossip_put('m0', 'q'), oban_gossip_put('own', 'q')").unwrap();
    assert_eq!(fill(&mut greedy, "l", "public").0, 1);
    // What counts is the current role.
    client.batch_execute("SET ROLE greedy").unwrap();
    assert_eq!(fill(&mut client, "k", "public").0, 0);
    client.batch_execute("RESET ROLE; SELECT oban_gossip_put('k', 'q')").unwrap();
    let mut owner = cluster.client_as("owned", "owner");
    cluster.client_of("owned").batch_execute("CREATE EXTENSION obanrs").unwrap();
    owner.batch_execute("SELECT oban_install('o')").unwrap();
    let (rest, error) = fill(&mut owner, "o", "o");
    assert!(rest > 60 && error.message().starts_with("no room for"), "{rest}: {error:?}");
    assert_eq!(
        owner.one::<i64>("SELECT sum(oban_gossip_delete(node, prefix => 'o')) FROM oban_gossip"),
        i64::from(rest)
    );

    // A reload changes it; what ends is given back in each way.
    cluster.configure(&["obanrs.role_share = 50"]);
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until("the setting counts", || greedy.one::<String>("SHOW obanrs.role_share") == "50");
    let (more, _) = fill(&mut greedy, "j", "public");
    assert!((many - 2..=many + 2).contains(&more), "{more} beside {many}");
    greedy.batch_execute("SELECT oban_gossip_delete(node) FROM oban_gossip WHERE prefix = 'public'").unwrap();
    for _ in 0..3 {
        let sql =
            "SELECT count(oban_gossip_put('e' || i, 'q', ttl => '100 ms')) FROM generate_series(1, $1) i";
        assert_eq!(
            greedy.query_one(sql, &[&(many + more)]).unwrap().get::<_, i64>(0),
            i64::from(many + more)
        );
        wait_until("they have expired", || {
            client.one("SELECT NOT EXISTS (SELECT FROM oban_gossip WHERE node LIKE 'e%')")
        });
    }
}

/// A reading of many entries and a key that moves among them.
#[test]
fn many_entries_are_read_once_each() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let sql = "SELECT count(oban_gossip_put('n' || i % 100, 'q' || i)) FROM generate_series(1, 9000) i";
    assert_eq!(client.one::<i64>(sql), 9000);
    let stop = Arc::new(AtomicBool::new(false));
    let mover = {
        let (mut client, stop) = (cluster.client(), stop.clone());
        thread::spawn(move || {
            let mut moved = 0;
            while !stop.load(Ordering::Relaxed) {
                client
                    .batch_execute(
                        "SELECT oban_gossip_delete('n1', 'q1'); SELECT oban_gossip_put('n1', 'q1')",
                    )
                    .unwrap();
                client
                    .batch_execute(
                        "SELECT oban_gossip_delete('n2', 'q2'); SELECT oban_gossip_put('n2', 'q2')",
                    )
                    .unwrap();
                moved += 1;
            }
            moved
        })
    };
    for _ in 0..100 {
        let row =
            client.query_one("SELECT count(*), count(DISTINCT (node, queue)) FROM oban_gossip", &[]).unwrap();
        let (rows, keys): (i64, i64) = (row.get(0), row.get(1));
        assert!(rows == keys && (8998..=9000).contains(&rows), "{rows} rows, {keys} keys");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(mover.join().unwrap() > 10);
}

/// A function that returns a table, wherever it may be called.
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
