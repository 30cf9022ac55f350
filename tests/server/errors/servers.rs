//! What does each function say on a server on which it can't work, and does any error show the machine?

use postgres::Client;

use super::{functions, outcome, refused};
use crate::support::{Ask, Cluster};

/// Postgres' own trigger functions raise the same SQLSTATE.
#[test]
fn a_trigger_function_that_is_called_says_so() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for function in ["obanrs_jobs_insert", "obanrs_peers"] {
        refused(&mut client, &format!("SELECT {function}()"), "39P01", function, "oban_install");
    }
    refused(&mut client, "SELECT obanrs_watched()", "39P01", "obanrs_watched", "oban_watch");
}

/// Asserts that the functions in `works` work, and that every other one raises 55000 with this message and
/// hint.
fn works_or_says_why_not(client: &mut Client, works: &[&str], shows: &str, helps: &str) {
    let functions = functions(client);
    for name in works {
        assert!(functions.iter().any(|f| f.name == *name), "there is no {name}");
    }
    for function in functions {
        let call = function.call(&[]);
        if works.contains(&function.name.as_str()) {
            outcome(client, &call).unwrap_or_else(|e| panic!("{call}: {e}"));
        } else {
            refused(client, &call, "55000", shows, helps);
        }
    }
}

/// Without preload, functions that need no shared memory work. Every other one says what is missing.
#[test]
fn without_preload_functions_work_or_say_why_not() {
    let cluster = Cluster::start(&[]);
    let mut client = cluster.client();
    client.batch_execute("CREATE SCHEMA \"Odd_one\"").unwrap();
    // The notice goes to the client. With this setting it goes to the log, too.
    client
        .batch_execute("SET log_min_messages = notice; CREATE EXTENSION obanrs SCHEMA \"Odd_one\"")
        .unwrap();
    assert!(cluster.log().contains("obanrs is not loaded at server start"), "{}", cluster.log());
    assert!(outcome(&mut client, "SELECT oban_version()").is_err(), "it is where the user wanted it");
    client.batch_execute("SET search_path = \"Odd_one\", public; SELECT oban_install()").unwrap();
    client
        .batch_execute("SELECT oban_listen_channels(); INSERT INTO oban_jobs (worker) VALUES ('w')")
        .unwrap();
    let works = [
        "oban_version",
        "oban_check",
        "oban_install",
        "oban_uninstall",
        "oban_watch",
        "oban_unwatch",
        "oban_notify",
        "oban_notify_many",
        "oban_notify_text",
        "oban_listen_channels",
        "oban_unlisten_channels",
        "oban_encode",
        "oban_decode",
        "oban_leader",
        "oban_pause_queue",
        "oban_resume_queue",
        "oban_scale_queue",
        "oban_start_queue",
        "oban_stop_queue",
        "oban_pkill_job",
        "oban_queue_state",
        "oban_fetch",
        "oban_complete_job",
        "oban_fail_job",
        "oban_snooze_job",
        "oban_cancel_job",
        "oban_discard_job",
        "oban_retry_job",
        "oban_insert_job",
        "oban_insert_jobs",
        "oban_prune",
    ];
    works_or_says_why_not(&mut client, &works, "not loaded", "shared_preload_libraries");
    // A query of a monitoring program gets rows, or none, and no error.
    client.batch_execute("SELECT oban_unwatch('oban_jobs')").unwrap();
    for view in ["oban_members", "oban_gossip", "oban_workers", "oban_stats", "oban_watches"] {
        assert_eq!(client.one::<i64>(&format!("SELECT count(*) FROM {view}")), 0, "{view}");
    }
    let why = "SELECT detail FROM oban_check() WHERE item = 'preload' AND NOT ok";
    let why: String = client.one(why);
    assert!(why.contains("views are empty") && why.contains("shared_preload_libraries"), "{why}");
    outcome(&mut client, "SELECT * FROM oban_leadership").unwrap();
    outcome(&mut client, "SELECT * FROM oban_queue_signals").unwrap();
}

/// On a standby, functions that read work. Functions that would write name the primary.
#[test]
fn in_recovery_functions_work_or_name_the_primary() {
    let primary = Cluster::installed();
    let mut client = primary.client();
    client
        .batch_execute(
            "SELECT oban_install('unlogged'); ALTER TABLE unlogged.oban_peers SET UNLOGGED;
             ALTER TABLE unlogged.obanrs_queue_signals SET UNLOGGED; SELECT oban_pause_queue('media')",
        )
        .unwrap();
    client.batch_execute("CREATE SCHEMA bare; SELECT oban_join('web.1')").unwrap();
    crate::support::wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    let standby = primary.standby(&[]);
    primary.wait_for_standby(&standby);
    let mut client = standby.client();
    let works = [
        "oban_version",
        "oban_check",
        "oban_unlisten_channels",
        "oban_encode",
        "oban_decode",
        "oban_leader",
        "oban_queue_state",
        "oban_is_leader",
        "oban_term",
        "oban_leave",
        "oban_gossip_delete",
    ];
    works_or_says_why_not(&mut client, &works, "recovery", "primary");
    refused(&mut client, "SELECT oban_install('bare')", "55000", "recovery", "primary");
    refused(&mut client, "SELECT oban_install()", "55000", "recovery", "primary");
    refused(&mut client, "SELECT oban_uninstall()", "55000", "recovery", "primary");
    refused(&mut client, "SELECT oban_install('new')", "55000", "recovery", "primary");
    let views = [
        "oban_members",
        "oban_leadership",
        "oban_gossip",
        "oban_queue_signals",
        "oban_workers",
        "oban_stats",
        "oban_watches",
    ];
    for view in views {
        outcome(&mut client, &format!("SELECT * FROM {view}")).unwrap();
    }
    assert_eq!(client.one::<String>("SELECT node FROM oban_leader()"), "web.1");
    assert_eq!(client.one::<String>("SELECT prefix FROM oban_leadership"), "public");
    assert!(
        !client.one::<bool>("SELECT oban_is_leader(node => 'web.1')"),
        "it is a member over there, not here"
    );
    let unlogged = "SELECT * FROM oban_leader(prefix => 'unlogged')";
    refused(&mut client, unlogged, "55000", "unlogged.oban_peers", "SET LOGGED");
    let unlogged = "SELECT * FROM oban_queue_state('media', prefix => 'unlogged')";
    refused(&mut client, unlogged, "55000", "unlogged.obanrs_queue_signals", "SET LOGGED");
    assert!(client.one::<bool>("SELECT paused FROM oban_queue_state('media')"), "a standby remembers, too");
    let workers =
        "SELECT bool_and(ok) FROM oban_check() WHERE item IN ('preload', 'coordinator', 'keeper', 'relay')";
    assert!(client.one::<bool>(workers), "a standby needs no workers");
}

/// A backtrace shows the functions and paths of the machine that built the library. Errors must not show
/// them.
#[test]
fn no_error_has_a_backtrace() {
    for preload in ["shared_preload_libraries = 'obanrs'", "port = 5432"] {
        let cluster =
            Cluster::start_in(&[preload], &[("RUST_BACKTRACE", "1"), ("RUST_LIB_BACKTRACE", "full")]);
        let mut client = cluster.client();
        client.batch_execute("CREATE EXTENSION obanrs").unwrap();
        // This is another session: the one before has loaded the library for CREATE EXTENSION.
        let mut client = cluster.client();
        for call in ["oban_notify(NULL, '{}')", "oban_fence(1)", "oban_decode('no')", "obanrs_peers()"] {
            let error = client.batch_execute(&format!("SELECT {call}")).unwrap_err();
            let error = error.as_db_error().unwrap_or_else(|| panic!("{call}: {error}"));
            assert_eq!(error.detail(), None, "{call}");
        }
        assert!(!cluster.log().contains("std::backtrace"), "nor has the log one");
    }
}
