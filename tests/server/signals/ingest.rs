//! With obanrs.signal_ingest, is what others send by NOTIFY remembered in the order in which nodes hear it?

use std::thread;

use postgres::Client;

use super::remembered::{ROWS, call, of_a_listener};
use super::signals;
use crate::splitbrain::Dice;
use crate::support::{Ask, Cluster, wait_until};

/// Starts a server that remembers what others send. Returns a session once the keeper listens.
fn server() -> (Cluster, Client) {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.signal_ingest = on"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    wait_until_heard(&mut client, "public");
    (cluster, client)
}

/// Waits until the keeper has heard a signal on a prefix's channel.
fn wait_until_heard(client: &mut Client, prefix: &str) {
    wait_until("the keeper listens", || {
        notify(client, prefix, r#"{"action":"pause","queue":"probe","ident":"any"}"#);
        client.one(&format!(
            "SELECT coalesce(paused, false) FROM oban_queue_state('probe', prefix => '{prefix}')"
        ))
    });
    client.batch_execute(&format!("DELETE FROM \"{prefix}\".obanrs_queue_signals")).unwrap();
    // What was sent meanwhile is heard before this one.
    notify(client, prefix, r#"{"action":"pause","queue":"last","ident":"any"}"#);
    wait_until("all is heard", || {
        client.one(&format!(
            "SELECT coalesce(paused, false) FROM oban_queue_state('last', prefix => '{prefix}')"
        ))
    });
    client.batch_execute(&format!("DELETE FROM \"{prefix}\".obanrs_queue_signals")).unwrap();
}

fn notify(client: &mut Client, prefix: &str, payload: &str) {
    client.execute("SELECT pg_notify($1 || '.oban_signal', $2)", &[&prefix, &payload]).unwrap();
}

/// Waits until the view has these rows.
fn wait_for_rows(client: &mut Client, rows: &str) {
    wait_until(rows, || client.one::<String>(ROWS) == rows);
}

#[test]
fn without_the_setting_nothing_of_others_is_remembered() {
    let (cluster, mut client) = server();
    cluster.configure(&["obanrs.signal_ingest = off"]);
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until("the keeper listens no more", || {
        client.batch_execute("DELETE FROM obanrs_queue_signals").unwrap();
        notify(&mut client, "public", r#"{"action":"pause","queue":"media","ident":"any"}"#);
        // A fence of one election: what the keeper has heard before is written by then.
        client.batch_execute("SELECT oban_join('a'); SELECT oban_leave(member) FROM oban_members").unwrap();
        client.one::<String>(ROWS).is_empty()
    });
    for _ in 0..20 {
        notify(&mut client, "public", r#"{"action":"pause","queue":"media","ident":"any"}"#);
    }
    client.batch_execute("SELECT oban_pause_queue('own')").unwrap();
    assert_eq!(client.one::<String>(ROWS), "public Oban own - true -");
}

#[test]
fn what_others_send_is_remembered() {
    let (cluster, mut client) = server();
    // As Oban for Python, old and new Oban for Elixir and a program send it. Others say nothing that counts.
    for payload in [
        "H4sIAAhhDWsC/6tWSkwuyczPU7JSKkgsLU5V0lEqLE0tTQXyc1NTMhOB/MyU1LwSIN8/KTFPrzw1Sc9QqRYAfBOR8jcAAAA=",
        "Z:H4sIAAhhDWsC/6tWSkwuyczPU7JSKkgsLU5V0lEqLE0tTQXyc1NTMhOB/MyU1LwSIN8/KTFPrzw1Sc9QqRYAfBOR8jcAAAA=",
        r#"{"ident":"any","queue":"mail","action":"scale","limit":7,"node":"x"}"#,
        r#"{"action":"scale","queue":"mail","ident":"any","limit":"8"}"#,
        r#"{"action":"start","queue":"mail","ident":"any","limit":9}"#,
        r#"{"action":"pause","queue":"mail","ident":"nodots"}"#,
        "junk",
        "",
        "[]",
        r#"{"action":"pause"}"#,
    ] {
        notify(&mut client, "public", payload);
    }
    client
        .batch_execute(
            r#"SELECT oban_notify('signal', '{"action":"pause","queue":"*","ident":"My.Oban.a.b"}')"#,
        )
        .unwrap();
    wait_for_rows(
        &mut client,
        "public My.Oban * a.b true -, public Oban mail - - 7, public Oban media web.1 true -",
    );
    assert!(client.one::<bool>("SELECT paused FROM oban_queue_state('any', 'a.b', 'My.Oban')"));
    assert!(
        client.one::<bool>("SELECT paused FROM oban_queue_state('any', 'b', 'My.Oban.a')"),
        "the same ident"
    );
    // A prefix that comes, and one that is renamed.
    client.batch_execute("SELECT oban_install('later')").unwrap();
    wait_until_heard(&mut client, "later");
    client.batch_execute("ALTER SCHEMA later RENAME TO renamed").unwrap();
    wait_until_heard(&mut client, "renamed");
    // A keeper that comes back listens again.
    client
        .batch_execute("SELECT pg_terminate_backend(pid) FROM oban_workers WHERE kind = 'keeper' AND database = 'postgres'")
        .unwrap();
    wait_until_heard(&mut client, "renamed");
    assert!(!cluster.log().contains("can't remember"), "{}", cluster.log());
}

/// Some call the functions, others NOTIFY. In the end the table has what a node has that heard all.
#[test]
fn functions_and_others_are_remembered_in_one_order() {
    let (cluster, mut client) = server();
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_signal\"").unwrap();
    thread::scope(|scope| {
        for seed in 0..4 {
            let cluster = &cluster;
            scope.spawn(move || {
                let (mut client, mut dice) = (cluster.client(), Dice(seed));
                for _ in 0..60 {
                    let calls: Vec<_> = (0..1 + dice.below(3)).map(|_| any_call(&mut dice)).collect();
                    client.batch_execute(&format!("BEGIN; {}; COMMIT", calls.join("; "))).unwrap();
                }
            });
        }
    });
    let (paused, limits) = of_a_listener(&signals(&mut listener));
    assert!(!paused.is_empty() && !limits.is_empty());
    for ((queue, node), paused) in paused {
        let sql =
            format!("SELECT paused IS NOT DISTINCT FROM {paused} FROM oban_queue_state('{queue}', '{node}')");
        wait_until(&sql, || client.one(&sql));
    }
    for ((queue, node), limit) in limits {
        let sql = format!(
            "SELECT queue_limit IS NOT DISTINCT FROM {limit} FROM oban_queue_state('{queue}', '{node}')"
        );
        wait_until(&sql, || client.one(&sql));
    }
}

/// A call of a function, or a NOTIFY of what it would send.
fn any_call(dice: &mut Dice) -> String {
    let call = call(dice);
    if dice.below(2) == 0 {
        return call;
    }
    let parts: Vec<&str> = call.split(['\'', '(', ')', ' ', ',']).filter(|part| !part.is_empty()).collect();
    let (action, queue) = (parts[1].split('_').nth(1).unwrap(), parts[2]);
    let (limit, node) = if action == "scale" { (parts[3], parts.get(4)) } else { ("0", parts.get(3)) };
    let ident = node.map_or("any".to_owned(), |node| format!("Oban.{node}"));
    let limit = if action == "scale" { format!(r#","limit":{limit}"#) } else { String::new() };
    format!(
        r#"SELECT pg_notify('public.oban_signal', '{{"queue":"{queue}","action":"{action}","ident":"{ident}"{limit}}}')"#
    )
}

/// A tenant's lock on the table, and a flood, delay what others send and nothing else.
#[test]
fn a_locked_table_and_a_flood_hold_up_no_election() {
    let (cluster, mut client) = server();
    client.batch_execute("SELECT oban_install('other')").unwrap();
    wait_until_heard(&mut client, "other");
    let mut holder = cluster.client();
    holder.batch_execute("BEGIN; LOCK TABLE obanrs_queue_signals").unwrap();
    notify(&mut client, "public", r#"{"action":"pause","queue":"a","ident":"any"}"#);
    notify(&mut client, "other", r#"{"action":"pause","queue":"b","ident":"any"}"#);
    let other = "SELECT coalesce(paused, false) FROM oban_queue_state('b', prefix => 'other')";
    wait_until("the other prefix goes on", || client.one(other));
    let mut member = cluster.client();
    member.batch_execute("SELECT oban_join('a')").unwrap();
    assert!(member.one::<bool>("SELECT oban_is_leader()"), "it has waited for the election");
    holder.batch_execute("ROLLBACK").unwrap();
    wait_until("what waited is remembered", || {
        client.one("SELECT coalesce(paused, false) FROM oban_queue_state('a')")
    });

    holder.batch_execute("BEGIN; LOCK TABLE obanrs_queue_signals").unwrap();
    client.batch_execute(FLOOD).unwrap();
    member.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
    member.batch_execute("SELECT oban_join('b')").unwrap();
    assert!(member.one::<bool>("SELECT oban_is_leader()"), "it has waited for the election");
    holder.batch_execute("ROLLBACK").unwrap();
    wait_until("what comes after the flood is remembered", || {
        notify(&mut client, "public", r#"{"action":"resume","queue":"a","ident":"any"}"#);
        client.one("SELECT NOT coalesce(paused, true) FROM oban_queue_state('a')")
    });
    assert!(client.one::<i64>("SELECT count(*) FROM obanrs_queue_signals") <= 2_000);
}

/// More signals than the keeper keeps, in one statement.
const FLOOD: &str = r#"SELECT pg_notify('public.oban_signal', '{"action":"pause","ident":"any","queue":"' || repeat('x', 100) || i || '"}')
    FROM generate_series(1, 5000) i"#;

/// A prefix whose table is locked, and which is flooded, loses its own signals and no other prefix's.
#[test]
fn one_prefixs_flood_takes_nothing_from_another_prefix() {
    let (cluster, mut client) = server();
    client.batch_execute("SELECT oban_install('other')").unwrap();
    wait_until_heard(&mut client, "other");
    let mut holder = cluster.client();
    holder.batch_execute("BEGIN; LOCK TABLE obanrs_queue_signals").unwrap();
    for queue in ["b", "c", "d"] {
        // They are sent at once, so the keeper hears them at once.
        client
            .batch_execute(&format!(
                r#"BEGIN; {FLOOD}; SELECT pg_notify('other.oban_signal', '{{"action":"pause","queue":"{queue}","ident":"any"}}'); COMMIT"#
            ))
            .unwrap();
        let other =
            format!("SELECT coalesce(paused, false) FROM oban_queue_state('{queue}', prefix => 'other')");
        wait_until("the other prefix's signal is remembered", || client.one(&other));
    }
    holder.batch_execute("ROLLBACK").unwrap();
}

/// What is heard is written at once, so a node that starts never reads the state of a part of it.
#[test]
fn a_transactions_signals_are_remembered_at_once() {
    let (_cluster, mut client) = server();
    client
        .batch_execute(
            r#"BEGIN; SELECT pg_notify('public.oban_signal', '{"action":"pause","queue":"a","ident":"any"}');
               SELECT pg_notify('public.oban_signal', '{"action":"scale","queue":"q' || i || '","ident":"any","limit":1}')
               FROM generate_series(1, 700) i;
               SELECT pg_notify('public.oban_signal', '{"action":"resume","queue":"a","ident":"any"}'); COMMIT"#,
        )
        .unwrap();
    wait_until("they are remembered", || {
        let row = client.query_one("SELECT count(*), bool_or(paused) FROM oban_queue_signals", &[]).unwrap();
        let (count, paused): (i64, Option<bool>) = (row.get(0), row.get(1));
        assert!(count == 0 || (count, paused) == (701, Some(false)), "{count} {paused:?}");
        count > 0
    });
}

/// Others pause a queue, and then a function resumes it. From its commit on the queue is resumed: the keeper
/// does not write the pause after it.
#[test]
fn what_was_sent_earlier_replaces_no_functions_signal() {
    let (_cluster, mut client) = server();
    for nth in 0..300 {
        notify(&mut client, "public", r#"{"action":"pause","queue":"a","ident":"any"}"#);
        client.batch_execute("SELECT oban_resume_queue('a')").unwrap();
        for _ in 0..20 {
            assert!(client.one::<bool>("SELECT NOT paused FROM oban_queue_state('a')"), "round {nth}");
        }
    }
}

/// A table that its owner has filled is left alone, and `oban_check` says so.
#[test]
fn a_table_that_its_owner_has_filled_is_left_alone() {
    let (_cluster, mut client) = server();
    client.batch_execute("SELECT oban_install('t')").unwrap();
    wait_until_heard(&mut client, "t");
    let found = "SELECT coalesce(string_agg(detail, ''), '') FROM oban_check() WHERE item = 't.obanrs_queue_signals' AND NOT ok";
    let row = "SELECT count(*) FROM t.obanrs_queue_signals WHERE queue = 'a'";
    let fence = |client: &mut Client, queue: &str| {
        notify(client, "t", r#"{"action":"pause","queue":"a","ident":"any"}"#);
        notify(client, "public", &format!(r#"{{"action":"pause","queue":"{queue}","ident":"any"}}"#));
        let sql = format!("SELECT coalesce(paused, false) FROM oban_queue_state('{queue}')");
        wait_until("what came later is remembered", || client.one(&sql));
    };
    client
        .batch_execute(
            "INSERT INTO t.obanrs_queue_signals SELECT 'x', repeat('x', 900) || i, '', true, 1, now(), now()
                 FROM generate_series(1, 40000) i",
        )
        .unwrap();
    assert!(client.one::<String>(found).contains("larger than 32 MB"), "{}", client.one::<String>(found));
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_queue_signals WHERE prefix = 't'"), 0);
    fence(&mut client, "first");
    client.batch_execute("DELETE FROM t.obanrs_queue_signals WHERE queue NOT LIKE '%00'").unwrap();
    client.batch_execute("VACUUM FULL t.obanrs_queue_signals").unwrap();
    assert_eq!(client.one::<String>(found), "");
    client
        .batch_execute("INSERT INTO t.obanrs_queue_signals SELECT 'x', i, '' FROM generate_series(1, 4000) i")
        .unwrap();
    assert!(client.one::<String>(found).contains("more than 4000 rows"), "{}", client.one::<String>(found));
    fence(&mut client, "second");
    assert_eq!(client.one::<i64>(row), 0);
    client.batch_execute("DELETE FROM t.obanrs_queue_signals").unwrap();
    assert_eq!(client.one::<String>(found), "");
    wait_until_heard(&mut client, "t");
}

/// The keeper loses the end of a flood. The pause at its beginning does not replace the resume at its end,
/// which the function has remembered.
#[test]
fn a_signal_whose_successor_was_lost_replaces_nothing() {
    let (_cluster, mut client) = server();
    client
        .batch_execute(&format!(
            r#"BEGIN; SELECT pg_notify('public.oban_signal', '{{"action":"pause","queue":"a","ident":"any"}}');
               {FLOOD}; SELECT oban_resume_queue('a'); COMMIT"#
        ))
        .unwrap();
    wait_until("what comes after the flood is remembered", || {
        notify(&mut client, "public", r#"{"action":"pause","queue":"after","ident":"any"}"#);
        client.one("SELECT coalesce(paused, false) FROM oban_queue_state('after')")
    });
    assert!(client.one::<bool>("SELECT NOT paused FROM oban_queue_state('a')"));
}
