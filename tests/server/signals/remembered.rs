//! What is remembered of signals: is it what the nodes have heard last?

use std::collections::HashMap;
use std::thread;

use super::signals;
use crate::splitbrain::Dice;
use crate::support::{Ask, Cluster, code, wait_until};

/// The rows of the view, as text.
pub const ROWS: &str = "SELECT coalesce(string_agg(concat_ws(' ', prefix, name, queue, coalesce(node, '-'),
    coalesce(paused::text, '-'), coalesce(queue_limit::text, '-')), ', ' ORDER BY prefix, name, queue, node), '')
    FROM oban_queue_signals";

#[test]
fn the_last_pause_resume_and_scaling_of_each_key_are_remembered() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let told = [
        ("oban_pause_queue('media')", "public Oban media - true -"),
        ("oban_scale_queue('media', 5)", "public Oban media - true 5"),
        ("oban_resume_queue('media')", "public Oban media - false 5"),
        ("oban_scale_queue('media', 6)", "public Oban media - false 6"),
        ("oban_start_queue('media', 1)", "public Oban media - false 6"),
        ("oban_stop_queue('media')", "public Oban media - false 6"),
        ("oban_pkill_job(1)", "public Oban media - false 6"),
        ("oban_pause_queue('media', 'a')", "public Oban media a true -, public Oban media - false 6"),
    ];
    for (call, rows) in told {
        client.batch_execute(&format!("SELECT {call}")).unwrap();
        assert_eq!(client.one::<String>(ROWS), rows, "{call}");
    }
    client.batch_execute("SELECT oban_pause_queue('*', 'a', 'B')").unwrap();
    assert_eq!(
        client.one::<String>(ROWS),
        "public B * a true -, public Oban media a true -, public Oban media - false 6"
    );
    // The own transaction sees what it has sent, until it rolls back.
    client.batch_execute("BEGIN; SELECT oban_resume_queue('media', 'a')").unwrap();
    assert!(client.one::<String>(ROWS).contains("media a false"));
    assert!(cluster.client().one::<String>(ROWS).contains("media a true"));
    client.batch_execute("ROLLBACK").unwrap();
    assert!(client.one::<String>(ROWS).contains("media a true"));
}

/// A node that starts asks for its state. Of all rows that concern it, the newest one counts.
#[test]
fn a_node_that_starts_learns_its_state() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let mut state = |call: &str, asked: &str| -> String {
        if !call.is_empty() {
            client.batch_execute(&format!("SELECT {call}")).unwrap();
        }
        client.one(&format!(
            "SELECT concat_ws(' ', coalesce(paused::text, '-'), coalesce(queue_limit::text, '-'), since IS NOT NULL)
             FROM oban_queue_state({asked})"
        ))
    };
    assert_eq!(state("", "'media'"), "- - f");
    assert_eq!(state("oban_pause_queue('*')", "'media', 'a'"), "true - t");
    assert_eq!(state("oban_resume_queue('media')", "'media', 'a'"), "false - t");
    assert_eq!(state("", "'other', 'a'"), "true - t");
    assert_eq!(state("oban_pause_queue('media', 'a')", "'media', 'a'"), "true - t");
    assert_eq!(state("", "'media', 'b'"), "false - t");
    assert_eq!(state("", "'media'"), "false - t");
    assert_eq!(state("", "'media', 'a', 'Other'"), "false - t", "another instance's node of that name");
    // A scaling says nothing of the pause, which is newer than the queue's last resume.
    assert_eq!(state("oban_pause_queue('*')", "'media', 'b'"), "true - t");
    assert_eq!(state("oban_scale_queue('media', 3)", "'media', 'b'"), "true 3 t");
    assert_eq!(state("oban_resume_queue('*')", "'media', 'a'"), "false 3 t");
    // Without a node, a signal concerns the nodes of every name.
    assert_eq!(state("oban_pause_queue('media', name => 'Other')", "'media', 'a'"), "true 3 t");
}

/// Sessions send signals at the same time, some in long transactions. What is remembered at the end is what
/// a node has that heard everything in the order in which NOTIFY delivered it.
#[test]
fn what_is_remembered_is_what_was_heard_last() {
    let cluster = Cluster::installed();
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_signal\"").unwrap();
    thread::scope(|scope| {
        for seed in 0..6 {
            let cluster = &cluster;
            scope.spawn(move || {
                let (mut client, mut dice) = (cluster.client(), Dice(seed));
                for _ in 0..60 {
                    let calls: Vec<_> = (0..1 + dice.below(4)).map(|_| call(&mut dice)).collect();
                    let end = if dice.below(6) == 0 { "ROLLBACK" } else { "COMMIT" };
                    client.batch_execute(&format!("BEGIN; {}; {end}", calls.join("; "))).unwrap();
                }
            });
        }
    });
    let all = signals(&mut listener);
    assert!(all.len() > 300, "{}", all.len());
    let (paused, limits) = of_a_listener(&all);
    let mut client = cluster.client();
    for ((queue, node), paused) in paused {
        let sql = "SELECT paused FROM oban_queue_state($1, $2)";
        assert_eq!(client.query_one(sql, &[&queue, &node]).unwrap().get::<_, Option<bool>>(0), Some(paused));
    }
    for ((queue, node), limit) in limits {
        let sql = "SELECT queue_limit::bigint FROM oban_queue_state($1, $2)";
        assert_eq!(client.query_one(sql, &[&queue, &node]).unwrap().get::<_, Option<i64>>(0), Some(limit));
    }
}

/// By queue and node, for some of both.
type Of<T> = HashMap<(String, String), T>;

/// Which queues of which nodes are paused, and what their limits are, after they have heard these signals.
pub fn of_a_listener(all: &[String]) -> (Of<bool>, Of<i64>) {
    let mut paused: Of<bool> = HashMap::new();
    let mut limits: Of<i64> = HashMap::new();
    for signal in all {
        let signal: serde_json::Value = serde_json::from_str(signal.split_once(' ').unwrap().1).unwrap();
        for queue in ["a", "b"] {
            for node in ["n1", "n2"] {
                let ident = signal["ident"].as_str().unwrap();
                let meant = signal["queue"] == "*" || signal["queue"] == queue;
                if !meant || ident != "any" && ident != format!("Oban.{node}") {
                    continue;
                }
                let key = (queue.to_owned(), node.to_owned());
                match signal["action"].as_str().unwrap() {
                    "scale" => drop(limits.insert(key, signal["limit"].as_i64().unwrap())),
                    action => drop(paused.insert(key, action == "pause")),
                }
            }
        }
    }
    (paused, limits)
}

pub fn call(dice: &mut Dice) -> String {
    let queue = ["*", "a", "b"][dice.below(3) as usize];
    let node = ["", ", 'n1'", ", 'n2'"][dice.below(3) as usize];
    match dice.below(3) {
        0 => format!("SELECT oban_pause_queue('{queue}'{node})"),
        1 => format!("SELECT oban_resume_queue('{queue}'{node})"),
        _ => format!("SELECT oban_scale_queue('a', {}{node})", 1 + dice.below(100)),
    }
}

/// A transaction that has signalled and goes on holds up no other one, whatever queues both signal.
#[test]
fn an_open_transaction_holds_up_no_signal() {
    let cluster = Cluster::installed();
    let (mut first, mut second) = (cluster.client(), cluster.client());
    second.batch_execute("SET lock_timeout = '10s'").unwrap();
    first.batch_execute("BEGIN; SELECT oban_pause_queue('a'), oban_pause_queue('b')").unwrap();
    second.batch_execute("BEGIN; SELECT oban_resume_queue('b'), oban_resume_queue('a'); COMMIT").unwrap();
    first.batch_execute("COMMIT").unwrap();
    assert_eq!(first.one::<String>(ROWS), "public Oban a - true -, public Oban b - true -");
}

/// While another transaction holds the table's lock, a signal fails at its commit, after 2 s or the
/// session's own lock_timeout. It is not sent.
#[test]
fn a_lock_on_the_table_is_waited_for_and_not_for_ever() {
    let cluster = Cluster::installed();
    let (mut listener, mut holder, mut client) = (cluster.client(), cluster.client(), cluster.client());
    listener.batch_execute("LISTEN \"public.oban_signal\"").unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE obanrs_queue_signals IN ROW EXCLUSIVE MODE").unwrap();
    let error = client.batch_execute("SELECT oban_pause_queue('a')").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "55P03");
    assert!(error.message().contains("obanrs_queue_signals of prefix \"public\" is locked"), "{error:?}");
    assert!(error.hint().unwrap().contains("pg_locks"), "{error:?}");
    client.batch_execute("SET lock_timeout = '50ms'").unwrap();
    assert_eq!(code(&mut client, "SELECT oban_pause_queue('a')"), "55P03");
    client.batch_execute("SET lock_timeout = 0; SELECT oban_stop_queue('a')").unwrap();
    assert_eq!(client.one::<String>("SHOW lock_timeout"), "0");
    assert_eq!(signals(&mut listener).len(), 1, "only the one that is not remembered");
    // A view of all prefixes does not wait for a table that nobody can read.
    holder.batch_execute("LOCK TABLE obanrs_queue_signals").unwrap();
    assert_eq!(client.one::<String>(ROWS), "");
    let waiter = thread::spawn({
        let mut client = cluster.client();
        move || client.batch_execute("SELECT oban_pause_queue('a')")
    });
    wait_until("it waits for the lock", || {
        client.one("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    });
    holder.batch_execute("ROLLBACK").unwrap();
    waiter.join().unwrap().unwrap();
    assert_eq!(client.one::<String>(ROWS), "public Oban a - true -");
    client.batch_execute("SELECT oban_resume_queue('a')").unwrap();
}

#[test]
fn what_is_remembered_outlives_a_crash_and_is_dumped() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_pause_queue('media'), oban_scale_queue('*x', 2, 'a')").unwrap();
    let rows: String = client.one(ROWS);
    cluster.stop("immediate");
    cluster.start_again();
    let mut client = cluster.client();
    assert_eq!(client.one::<String>(ROWS), rows);
    let file = format!("{}/dump", cluster.socket_folder());
    let dumped = cluster.program("pg_dump").args(["-Fc", "-f", &file, "postgres"]).status().unwrap();
    assert!(dumped.success());
    client.batch_execute("CREATE DATABASE restored").unwrap();
    let restored = cluster.program("pg_restore").args(["-e", "-d", "restored", &file]).status().unwrap();
    assert!(restored.success());
    let mut restored = cluster.client_of("restored");
    assert_eq!(restored.one::<String>(ROWS), rows);
    restored.batch_execute("SELECT oban_install(), oban_resume_queue('media')").unwrap();
    assert!(restored.one::<String>(ROWS).contains("media - false"));
}

/// The wall clock may be set back. A later signal counts all the same.
#[test]
fn a_later_signal_counts_when_the_clock_was_set_back() {
    let cluster = Cluster::start_with_clock(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    client.batch_execute("SELECT oban_pause_queue('*')").unwrap();
    cluster.step_clock(-3_600);
    client.batch_execute("SELECT oban_resume_queue('media')").unwrap();
    assert!(!client.one::<bool>("SELECT paused FROM oban_queue_state('media')"));
}

/// A prefix that an earlier version has installed has no table: the signal is sent, and a NOTICE says what
/// helps. That is `oban_install`.
#[test]
fn a_prefix_without_the_table_sends_and_says_so() {
    let cluster = Cluster::installed();
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_signal\"").unwrap();
    let (mut client, told) = cluster.client_with_notices();
    let before: String = client.one(
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    );
    client.batch_execute("DROP TABLE obanrs_queue_signals; SELECT oban_pause_queue('a')").unwrap();
    client.batch_execute("SELECT oban_stop_queue('a')").unwrap();
    assert_eq!(signals(&mut listener).len(), 2);
    {
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].code().code(), told[0].severity()), ("00000", "NOTICE"));
        assert!(told[0].hint().unwrap().contains("oban_install('public')"), "{told:?}");
    }
    assert_eq!(client.one::<String>(ROWS), "");
    assert!(client.one::<Option<bool>>("SELECT paused FROM oban_queue_state('a')").is_none());
    client.batch_execute("SELECT oban_install(), oban_pause_queue('a')").unwrap();
    assert_eq!(told.lock().unwrap().len(), 1);
    assert_eq!(client.one::<String>(ROWS), "public Oban a - true -");
    let after: String = client.one(
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    );
    assert_eq!(after, before);
    // A second run takes no lock on the table.
    let mut holder = cluster.client();
    holder.batch_execute("BEGIN; LOCK TABLE obanrs_queue_signals").unwrap();
    client.batch_execute("SELECT oban_install()").unwrap();
    holder.batch_execute("ROLLBACK").unwrap();
    client.batch_execute("SELECT oban_uninstall()").unwrap();
    assert!(client.one::<bool>("SELECT to_regclass('obanrs_queue_signals') IS NULL"));
}

/// A role that may signal may send any number of names. The table keeps 2,000 rows: those of single nodes
/// go first, and the oldest.
#[test]
fn the_table_is_bounded() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_pause_queue('kept')").unwrap();
    client.batch_execute("SELECT oban_resume_queue('q', 'n' || i) FROM generate_series(1, 2100) i").unwrap();
    let count = "SELECT count(*) FROM obanrs_queue_signals";
    assert_eq!(client.one::<i64>(count), 2_000);
    client.batch_execute("SELECT oban_pause_queue('new')").unwrap();
    assert_eq!(client.one::<i64>(count), 2_000);
    assert!(client.one::<bool>("SELECT paused FROM oban_queue_state('kept')"));
    assert!(client.one::<bool>("SELECT paused FROM oban_queue_state('new')"));
    let oldest = "SELECT count(*) FROM oban_queue_signals WHERE node IN ('n101', 'n102', 'n103')";
    assert_eq!(client.one::<i64>(oldest), 1, "n103 stays");
}

/// The lock on the table is held as long as the table is read and written. The table is read once, however
/// many rows change.
#[test]
fn a_commit_reads_the_table_once() {
    let cluster = Cluster::installed();
    let (mut client, mut watcher) = (cluster.client(), cluster.client());
    let read = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'obanrs_queue_signals'";
    let mut scans = |sql: &str| {
        let before: i64 = watcher.one(read);
        client.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
        client.batch_execute(sql).unwrap();
        client.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
        watcher.one::<i64>(read) - before
    };
    assert_eq!(scans("SELECT oban_pause_queue('q' || i, 'n' || i) FROM generate_series(1, 500) i"), 1);
    let both = "SELECT oban_resume_queue('q' || i, 'n' || i), oban_scale_queue('q' || i, i, 'n' || i)
        FROM generate_series(251, 750) i";
    assert_eq!(scans(both), 1);
    let rows = "SELECT count(*) FILTER (WHERE paused), count(*) FILTER (WHERE NOT paused AND queue_limit = substr(queue, 2)::int),
        count(*) FROM oban_queue_signals";
    let row = watcher.query_one(rows, &[]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (250, 500, 750));
}

/// Each signal makes a new version of its row. Old versions go without a VACUUM, when the page is read.
#[test]
fn many_signals_leave_the_table_small() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for nth in 0..1_000 {
        client.batch_execute(&format!("SELECT oban_scale_queue('a', {})", nth + 1)).unwrap();
    }
    assert!(client.one::<i64>("SELECT pg_relation_size('obanrs_queue_signals')") <= 16_384);
}

/// A sender reads what other senders have written since its snapshot. That is no conflict: the order of the
/// commits is what counts.
#[test]
fn serializable_senders_do_not_conflict() {
    let cluster = Cluster::installed();
    cluster
        .client()
        .batch_execute("CREATE TABLE other (a int PRIMARY KEY); INSERT INTO other VALUES (1)")
        .unwrap();
    let mut senders: Vec<_> = (0..4).map(|_| cluster.client()).collect();
    for _ in 0..2 {
        for sender in &mut senders {
            sender.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT a FROM other").unwrap();
        }
        for sender in &mut senders {
            sender.batch_execute("SELECT oban_pause_queue('a'), oban_scale_queue('b', 5)").unwrap();
        }
        senders[0].batch_execute("UPDATE other SET a = 1").unwrap();
        for sender in &mut senders {
            sender.batch_execute("COMMIT").unwrap();
        }
        senders.reverse();
    }
    assert_eq!(cluster.client().one::<String>(ROWS), "public Oban a - true -, public Oban b - - 5");
}

/// REINDEX CONCURRENTLY makes a second index, which is left behind when the command is cancelled.
#[test]
fn a_reindexing_that_has_failed_keeps_no_signal_from_being_remembered() {
    let cluster = Cluster::installed();
    let (mut client, told) = cluster.client_with_notices();
    client.batch_execute("SELECT oban_pause_queue('a')").unwrap();
    let mut reader = cluster.client();
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM obanrs_queue_signals").unwrap();
    let reindexing = thread::spawn({
        let mut client = cluster.client();
        move || client.batch_execute("REINDEX TABLE CONCURRENTLY obanrs_queue_signals")
    });
    let left =
        "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = 'obanrs_queue_signals'::regclass AND indisready
        AND NOT indisvalid)";
    wait_until("it has made an index", || client.one(left));
    client
        .batch_execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'REINDEX TABLE CONCURRENTLY%'")
        .unwrap();
    assert!(reindexing.join().unwrap().is_err());
    reader.batch_execute("COMMIT").unwrap();
    assert!(client.one::<bool>(left));
    client
        .batch_execute("SELECT oban_resume_queue('a'), oban_pause_queue('b'), oban_pause_queue('c', 'n')")
        .unwrap();
    assert_eq!(
        client.one::<String>(ROWS),
        "public Oban a - false -, public Oban b - true -, public Oban c n true -"
    );
    assert!(told.lock().unwrap().is_empty(), "{:?}", told.lock().unwrap());
    client.batch_execute("DROP INDEX obanrs_queue_signals_pkey_ccnew").unwrap();
}
