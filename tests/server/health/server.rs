//! What does `oban_check` say about the server: its workers, its settings and its memory?

use super::{follow, healthy, only_wrong, wrong};
use crate::support::{Ask, Cluster, code, wait_for, wait_until};

#[test]
fn without_workers_it_says_why() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_worker_processes = 2"]);
    // One slot is the logical replication launcher's, one the coordinator's.
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let detail = wait_for("the keeper could not start", || {
        let wrong = wrong(&mut client).into_iter();
        wrong.filter(|(item, _)| item == "keeper").map(|(_, detail)| detail).find(|d| d.contains("backoff"))
    });
    assert!(detail.contains("max_worker_processes"), "{detail}");
    cluster.configure(&["max_worker_processes = 1"]);
    cluster.restart();
    let mut client = cluster.client();
    let wrong = wrong(&mut client);
    let named = |item: &str| wrong.iter().any(|(i, d)| i == item && d.contains("max_worker_processes"));
    assert!(named("coordinator"), "{wrong:?}");
}

#[test]
fn more_databases_than_slots_and_worker_processes_are_shown() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_databases = 1"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    client.batch_execute("CREATE DATABASE other").unwrap();
    healthy(&cluster);
    let mut other = cluster.client_of("other");
    other.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    wait_until("it has no slot", || cluster.log().contains("Raise obanrs.max_databases"));
    let found = wrong(&mut other);
    let items: Vec<&str> = found.iter().map(|(item, _)| item.as_str()).collect();
    assert_eq!(items, ["keeper", "relay"]);
    assert!(found.iter().all(|(_, detail)| detail.contains("obanrs.max_databases")), "{found:?}");
    client.batch_execute("SET idle_session_timeout = '1h'").unwrap();
    assert!(only_wrong(&mut client, "idle_session_timeout").contains("1h"));
    client.batch_execute("RESET idle_session_timeout; SET obanrs.wakeups = off").unwrap();
    assert!(only_wrong(&mut client, "wakeups").contains("RESET obanrs.wakeups"));
    client.batch_execute("RESET obanrs.wakeups; SET idle_session_timeout = '1h'").unwrap();
}

/// Each call that a database without a place refuses says so, and names the limit.
#[test]
fn a_database_without_a_place_hears_of_it() {
    let preload = "shared_preload_libraries = 'obanrs'";
    let cluster = Cluster::start(&[preload, "obanrs.max_databases = 1", "max_worker_processes = 4"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(stage => false)").unwrap();
    healthy(&cluster);
    let warnings =
        |cluster: &Cluster| cluster.log().matches("WARNING:  database \"other\" gets no elections").count();
    client.batch_execute("CREATE DATABASE other").unwrap();
    let mut other = cluster.client_of("other");
    other.batch_execute("BEGIN; CREATE EXTENSION obanrs; ROLLBACK").unwrap();
    assert_eq!(warnings(&cluster), 0, "{}", cluster.log());
    other.batch_execute("CREATE EXTENSION obanrs").unwrap();
    assert_eq!(warnings(&cluster), 1);
    other.batch_execute("SELECT oban_install(stage => false)").unwrap();
    assert_eq!(warnings(&cluster), 2);
    other.batch_execute("DROP EXTENSION plpgsql").unwrap();
    assert_eq!(warnings(&cluster), 2, "that has nothing to do with it");
    // With one more database, there would be too few worker processes as well.
    for call in ["SELECT oban_join('a')", "SELECT oban_position()"] {
        let error = other.batch_execute(call).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "53400", "{call}");
        assert!(error.message().contains("obanrs.max_databases"), "{error}");
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("obanrs.max_databases") && hint.contains("max_worker_processes to 5"),
            "{hint}"
        );
    }
    assert_eq!(other.one::<i64>("SELECT count(*) FROM oban_members"), 0);
    let counters: i64 = client.one("SELECT count(*) FROM oban_stats");
    assert_eq!(other.one::<i64>("SELECT count(*) FROM oban_stats WHERE value = 0"), counters);
    let found = wrong(&mut other);
    assert_eq!(found.iter().map(|(item, _)| item.as_str()).collect::<Vec<_>>(), ["keeper", "relay"]);
    assert!(found.iter().all(|(_, detail)| detail.contains("\"other\"")), "{found:?}");
    // A template needs no place.
    cluster.client_of("template1").batch_execute("CREATE EXTENSION obanrs").unwrap();
    assert_eq!(cluster.log().matches("WARNING:  database").count(), 2, "{}", cluster.log());

    // When the database has a place, the message of before is over.
    client.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("it leads", || {
        other.batch_execute("SELECT oban_join('a')").is_ok() && other.one("SELECT oban_is_leader()")
    });
    wait_until("all is well", || wrong(&mut other).is_empty());
}

#[test]
fn want_of_worker_processes_is_told() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_worker_processes = 2"]);
    // One slot is the logical replication launcher's, one the coordinator's.
    let mut client = cluster.client();
    let warnings = |what: &str| cluster.log().matches(&format!("WARNING:  {what}")).count();
    client.batch_execute("CREATE EXTENSION obanrs").unwrap();
    assert_eq!(warnings("database \"postgres\" gets no elections"), 1);
    client.batch_execute("SELECT oban_install()").unwrap();
    assert_eq!(warnings("database \"postgres\" gets no elections"), 2);
    wait_until("it is logged", || cluster.log().contains("can't start a keeper for database \"postgres\""));
    client.batch_execute("SELECT oban_join('a')").unwrap();
    assert_eq!(warnings("nobody elects leaders in this database now"), 1);
    assert!(cluster.log().contains("max_worker_processes is 2"));
    client.batch_execute("CREATE ROLE app LOGIN").unwrap();
    let mut app = cluster.client_as("postgres", "app");
    let told =
        |(item, detail): &(String, String)| item == "keeper" && detail.contains("raise max_worker_processes");
    assert!(wrong(&mut app).iter().any(told), "not only roles that may see errors");
}

#[test]
fn settings_of_gossip_that_do_not_fit_and_full_memory_are_shown() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.gossip_memory = '64kB'"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    healthy(&cluster);
    for (setting, named) in [
        ("obanrs.gossip_interval = '31s'", "31 s"),
        ("obanrs.gossip_interval = '1s'", ""),
        ("obanrs.gossip_ttl = '900ms'", "0.9 s"),
        ("obanrs.gossip_interval = 0", ""),
    ] {
        cluster.configure(&[setting]);
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
        wait_until("the session knows", || match named {
            "" => wrong(&mut client).is_empty(),
            named => wrong(&mut client).iter().any(|(item, d)| item == "gossip" && d.contains(named)),
        });
    }
    let fill = "DO $$ BEGIN FOR i IN 1..10000 LOOP PERFORM oban_gossip_put('a', 'q' || i, ttl => '1 hour'); END LOOP; END $$";
    assert_eq!(code(&mut client, fill), "53400");
    assert!(only_wrong(&mut client, "gossip").contains("raise obanrs.gossip_memory"));
}

#[test]
fn without_preload_it_says_so() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs").unwrap();
    let found = wrong(&mut client);
    assert_eq!(found.iter().map(|(item, _)| item.as_str()).collect::<Vec<_>>(), ["preload", "prefix"]);
    assert!(found[0].1.contains("shared_preload_libraries"));
    follow(&mut client, "tables: SELECT oban_install()");
    only_wrong(&mut client, "preload");
    client.batch_execute("UPDATE pg_extension SET extversion = '0.0' WHERE extname = 'obanrs'").unwrap();
    assert!(wrong(&mut client)[1].1.contains("0.0"));
    client.batch_execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").unwrap();
    let mut latin = cluster.client_of("latin");
    latin.batch_execute("CREATE EXTENSION obanrs").unwrap();
    assert!(wrong(&mut latin).iter().any(|(item, d)| item == "encoding" && d.contains("LATIN1")));
}
