//! Is the memory bounded, shared between roles, and given back?

use postgres::Client;

use super::queues;
use crate::support::{Ask, Cluster, code, stat, wait_until};

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
    // An entry whose larger replacement does not fit keeps its old state.
    let large = "SELECT oban_gossip_put('a', 'q0', jsonb_build_object('pad', repeat('y', 60000)))";
    assert_eq!(code(&mut client, large), "53400");
    let kept = "SELECT length(state->>'pad') FROM oban_gossip WHERE queue = 'q0'";
    assert_eq!(client.one::<i32>(kept), 1000);
}

/// The table is filled with entries of all sizes and emptied in each way, a thousand times. As much fits at
/// the end as at first.
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

/// Puts entries for nodes that begin with `node` until one is refused. Returns how many fit, and the error.
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
    // The share counts over all prefixes.
    greedy.batch_execute("SELECT oban_gossip_put('there', 'q', prefix => 'g')").unwrap();
    let (many, error) = fill(&mut greedy, "n", "public");
    assert!(error.message().contains("greedy has its share of obanrs.gossip_memory"), "{error:?}");
    assert!(error.hint().unwrap().contains("obanrs.role_share"), "{error:?}");
    assert!((30..60).contains(&many), "{many}: a quarter of some 170");
    // Bytes count, too. What a replacement frees belongs to the same role.
    let large = "SELECT oban_gossip_put('n0', 'q', jsonb_build_object('pad', repeat('x', 1000)))";
    assert_eq!(code(&mut greedy, large), "53400");
    greedy.batch_execute("SELECT oban_gossip_delete('n1'), oban_gossip_delete('n2'), oban_gossip_delete('n3'), oban_gossip_delete('n4')").unwrap();
    greedy.batch_execute(large).unwrap();
    assert_eq!(fill(&mut greedy, "m", "public").0, 0);
    greedy.batch_execute("SELECT oban_gossip_put('n0', 'q')").unwrap();
    assert_eq!(fill(&mut greedy, "m", "public").0, 4);

    // Other roles have shares of their own. A role that replaces an entry owns it from then on.
    let mut modest = cluster.client_as("postgres", "modest");
    modest.batch_execute("SELECT oban_gossip_put('m0', 'q'), oban_gossip_put('own', 'q')").unwrap();
    assert_eq!(fill(&mut greedy, "l", "public").0, 1);
    // The current role counts.
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

    // A reload changes the share. What ends is given back, however it ends.
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
