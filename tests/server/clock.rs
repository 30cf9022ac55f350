//! A server whose wall clock is set while it runs: intervals go on by the monotonic clock.
//!
//! A wrong clock would delay something by an hour, or end it at once. So the bounds here are wide.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::{Ask, Cluster, heard, stat, wait_for, wait_until};

const HOUR: i64 = 3_600;

/// The bound is far above the time that anything here takes, and far below the steps of the clock.
const SOON: Duration = Duration::from_secs(15);

fn installed(settings: &[&str]) -> (Cluster, Client) {
    let settings = [&["shared_preload_libraries = 'obanrs'"], settings].concat();
    let cluster = Cluster::start_with_clock(&settings);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    (cluster, client)
}

/// Waits until `condition` holds. Asserts that it does so soon.
fn soon(what: &str, condition: impl FnMut() -> bool) {
    let since = Instant::now();
    wait_until(what, condition);
    assert!(since.elapsed() < SOON, "after {:?}: {what}", since.elapsed());
}

fn join(client: &mut Client, node: &str, lease: &str) -> i64 {
    client.one(&format!("SELECT oban_join('{node}', lease => '{lease}')"))
}

fn renew(client: &mut Client, member: i64) -> Option<i64> {
    client.one(&format!("SELECT oban_renew({member})"))
}

fn leads(client: &mut Client, node: &str) -> bool {
    client.one(&format!("SELECT oban_is_leader(node => '{node}')"))
}

/// The node that oban_leader, oban_leadership and oban_members show. Asserts that they agree.
fn leader(client: &mut Client) -> Option<String> {
    let sql = "SELECT l.node FROM oban_leader() l
               JOIN oban_leadership s ON s.name = 'Oban' AND s.node = l.node AND s.term = l.term
               JOIN oban_members m ON m.leader AND m.node = l.node";
    client.query_opt(sql, &[]).unwrap().map(|row| row.get(0))
}

#[test]
fn the_clock_is_stepped_in_every_process() {
    let (cluster, mut client) = installed(&[]);
    let ahead = |c: &mut Client| -> f64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        c.one::<f64>("SELECT extract(epoch FROM clock_timestamp())::float8") - now
    };
    for (step, wanted) in [(HOUR, 3_600.0), (-2 * HOUR, -3_600.0), (HOUR, 0.0)] {
        cluster.step_clock(step);
        for client in [&mut client, &mut cluster.client()] {
            assert!((ahead(client) - wanted).abs() < 60.0, "{} for {wanted}", ahead(client));
        }
    }
}

#[test]
fn gossip_ends_by_its_ttl_whatever_the_clock_is_set_to() {
    let (cluster, mut client) = installed(&["obanrs.gossip_ttl = 3s"]);
    let nodes = |c: &mut Client| -> String {
        c.one("SELECT coalesce(string_agg(node, ',' ORDER BY node), '') FROM oban_gossip")
    };
    let check = r#"{"name":"Oban","node":"theirs","queue":"q","limit":10,"running":[]}"#;
    wait_until("the relay listens", || {
        client.execute("SELECT pg_notify('public.oban_gossip', $1)", &[&check]).unwrap();
        nodes(&mut client) == "theirs"
    });
    client.batch_execute("SELECT oban_gossip_put('short', 'q', ttl => '2 s')").unwrap();
    client.batch_execute("SELECT oban_gossip_put('long', 'q', ttl => '1 minute')").unwrap();
    cluster.step_clock(-HOUR);
    let expired = stat(&mut client, "gossip_expired");
    soon("the short ones are over", || nodes(&mut client) == "long");
    soon("and swept", || stat(&mut client, "gossip_expired") >= expired + 2);

    let shown = "SELECT node, updated_at <= clock_timestamp(),
                        expires_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute'
                 FROM oban_gossip WHERE node = $1";
    client.batch_execute("SELECT oban_gossip_put('new', 'q', ttl => '1 minute')").unwrap();
    for step in [0, HOUR, HOUR, -2 * HOUR] {
        cluster.step_clock(step);
        assert_eq!(nodes(&mut client), "long,new", "after a step of {step} s");
        let row = client.query_one(shown, &[&"long"]).unwrap();
        assert!(row.get::<_, bool>(2), "when it ends is shown as the clock is set now");
    }
    assert!(client.query_one(shown, &[&"new"]).unwrap().get::<_, bool>(1));
}

#[test]
fn a_lease_that_is_not_renewed_ends_in_its_time() {
    for step in [-20, -HOUR] {
        let (cluster, mut client) = installed(&[]);
        let first = join(&mut client, "l3", "2 s");
        let term = renew(&mut client, first).expect("it leads");
        join(&mut client, "l4", "1 hour");
        cluster.step_clock(step);
        soon("the other leads", || leads(&mut client, "l4"));
        assert!(!leads(&mut client, "l3"));
        soon("which all of them say", || leader(&mut client).as_deref() == Some("l4"));
        assert!(client.one::<i64>("SELECT oban_term(node => 'l4')") > term);
        assert!(stat(&mut client, "last_failover_us") < SOON.as_micros() as i64);
    }
}

#[test]
fn a_step_forward_ends_no_lease() {
    let (cluster, mut client) = installed(&[]);
    let (first, second) = (join(&mut client, "a", "20 s"), join(&mut client, "b", "20 s"));
    let term = renew(&mut client, first);
    assert!(term.is_some());
    for step in [30, HOUR, 24 * HOUR] {
        assert_eq!((renew(&mut client, first), renew(&mut client, second)), (term, None));
        cluster.step_clock(step);
        assert!(leads(&mut client, "a"), "after a step of {step} s");
        assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_members"), 2);
        assert_eq!((renew(&mut client, first), renew(&mut client, second)), (term, None));
        soon("all of them say so", || leader(&mut client).as_deref() == Some("a"));
        let ends =
            "SELECT bool_and(expires_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '21 s')
                    FROM oban_members";
        assert!(client.one::<bool>(ends), "shown as the clock is set now");
    }
    assert_eq!(stat(&mut client, "lapses"), 0);
}

/// The member renews its row by the new clock. So foreign nodes, which know no other clock, see that the
/// lease holds.
#[test]
fn a_session_leads_over_every_step() {
    let (cluster, mut client) = installed(&["obanrs.lease = 2s"]);
    let mut watch = cluster.client();
    client.batch_execute("SELECT oban_join('a')").unwrap();
    soon("it leads", || leader(&mut watch).as_deref() == Some("a"));
    watch.batch_execute("SELECT oban_join('next')").unwrap();
    let term: i64 = watch.one("SELECT oban_term(node => 'a')");
    let row = "SELECT expires_at::text FROM oban_peers";
    let held = "SELECT expires_at BETWEEN timezone('utc', clock_timestamp())
                                  AND timezone('utc', clock_timestamp()) + interval '10 s' FROM oban_peers";
    for step in [HOUR, -HOUR, -HOUR, HOUR, 2 * HOUR, -2 * HOUR] {
        cluster.step_clock(step);
        assert!(leads(&mut watch, "a"), "after a step of {step} s");
        soon("its row is held by the clock as it is now", || watch.one(held));
        for _ in 0..2 {
            let before: String = watch.one(row);
            soon("it renews", || watch.one::<String>(row) != before);
        }
        soon("all of them say so", || leader(&mut watch).as_deref() == Some("a"));
        assert!(leads(&mut watch, "a") && client.one::<bool>("SELECT oban_is_leader()"));
        assert_eq!(watch.one::<i64>("SELECT oban_term(node => 'a')"), term, "it never lost it");
    }
    drop(client);
    soon("then the next leads", || leads(&mut watch, "next"));
}

/// Writes a row as nodes of Oban for Elixir write it.
fn foreign_row(client: &mut Client, seconds: i32) {
    let sql = "INSERT INTO oban_peers (name, node, started_at, expires_at)
               VALUES ('Oban', 'foreign', timezone('utc', now()), timezone('utc', now()) + $1 * interval '1 s')";
    assert_eq!(client.execute(sql, &[&f64::from(seconds)]).unwrap(), 1);
}

#[test]
fn a_foreign_leader_that_does_not_renew_lets_go() {
    let (cluster, mut client) = installed(&[]);
    foreign_row(&mut client, 4);
    client.batch_execute("SELECT oban_join('ours', candidate => true)").unwrap();
    assert!(!leads(&mut client, "ours"));
    cluster.step_clock(-HOUR);
    soon("ours leads", || leads(&mut client, "ours"));
    soon("which all of them say", || leader(&mut client).as_deref() == Some("ours"));
}

/// A foreign node's renewal counts from the moment of its commit. (The keeper looks at the row later, when
/// the wall clock may have been set.)
#[test]
fn a_foreign_leader_that_renews_stays_over_every_step() {
    let (cluster, mut client) = installed(&[]);
    foreign_row(&mut client, 4);
    client.batch_execute("SELECT oban_join('ours', candidate => true)").unwrap();
    for step in [0, 40, 0, -40, HOUR, 0, -HOUR] {
        // This is the renewal of Oban's nodes.
        let renewed = client
            .execute(
                "INSERT INTO oban_peers (name, node, started_at, expires_at)
                 VALUES ('Oban', 'foreign', timezone('utc', now()), timezone('utc', now()) + interval '4 s')
                 ON CONFLICT (name) DO UPDATE SET expires_at = EXCLUDED.expires_at",
                &[],
            )
            .unwrap();
        assert_eq!(renewed, 1, "it still has its row, before the clock is stepped by {step} s");
        cluster.step_clock(step);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(2) {
            assert!(
                !leads(&mut client, "ours"),
                "the foreign node leads, with the clock stepped by {step} s"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
    soon("when it renews no more, ours leads", || leads(&mut client, "ours"));
}

/// No member has joined this name. The keeper sweeps the row when its lease is over, and not before.
#[test]
fn a_foreign_leader_without_members_beside_it_keeps_its_row() {
    let (cluster, mut client) = installed(&[]);
    foreign_row(&mut client, 3);
    let term: i64 = client.one("SELECT term FROM oban_peers");
    for (name, step) in [("a", 0), ("b", 40), ("c", HOUR)] {
        client
            .execute(
                "UPDATE oban_peers SET expires_at = timezone('utc', now()) + interval '3 s' WHERE node = 'foreign'",
                &[],
            )
            .unwrap();
        cluster.step_clock(step);
        // The new member wakes the keeper, which finds out about the step. The next row is written after the
        // step.
        client.execute("SELECT oban_join('ours', $1)", &[&name]).unwrap();
        thread::sleep(Duration::from_millis(1_500));
        let kept = "SELECT coalesce(max(term), 0) FROM oban_peers WHERE node = 'foreign'";
        assert_eq!(client.one::<i64>(kept), term, "{step}");
    }
    soon("the row is swept up", || client.one("SELECT count(*) = 0 FROM oban_peers WHERE node = 'foreign'"));
}

/// Restarts the server with its clock an hour back. Then it does not know what the clock showed when a row
/// was written.
fn restart_an_hour_back(write: impl FnOnce(&mut Client), most: Duration) {
    let (cluster, mut client) = installed(&[]);
    write(&mut client);
    drop(client);
    cluster.stop("fast");
    cluster.step_clock(-HOUR);
    cluster.start_again();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('alive', candidate => true)").unwrap();
    let since = Instant::now();
    while !leads(&mut client, "alive") {
        assert!(since.elapsed() < most, "a leader that is gone leads after {:?}", since.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "a minute: make soak"]
fn soak_a_dead_leader_does_not_lead_for_an_hour_after_a_restart() {
    restart_an_hour_back(
        |client| {
            join(client, "dead", "5 s");
        },
        Duration::from_secs(90),
    );
}

#[test]
#[ignore = "a minute: make soak"]
fn soak_a_foreign_leader_does_not_lead_for_an_hour_after_a_restart() {
    restart_an_hour_back(|client| foreign_row(client, 30), Duration::from_secs(90));
}

#[test]
fn workers_come_back_and_the_relay_sends() {
    let (cluster, mut client) = installed(&[]);
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN news").unwrap();
    let running = |c: &mut Client, kind: &str| -> Option<i32> {
        let sql = "SELECT pid FROM oban_workers WHERE kind = $1 AND state = 'running'";
        c.query_opt(sql, &[&kind]).unwrap().map(|row| row.get(0))
    };
    wait_until("they run", || ["relay", "keeper"].iter().all(|k| running(&mut client, k).is_some()));
    let mut told = 0;
    let mut tell = |client: &mut Client, listener: &mut Client| {
        told += 1;
        let payload = format!(r#"{{"n":{told}}}"#);
        client.query_one("SELECT oban_notify('news', $1::text::jsonb, '')", &[&payload]).unwrap();
        let relay = running(client, "relay").expect("it runs");
        let news: Vec<_> = heard(listener).into_iter().filter(|n| n.channel() == "news").collect();
        let of_relay: Vec<_> = news.iter().map(|n| (n.process_id(), n.payload())).collect();
        assert_eq!(of_relay, [(relay, r#"{"n": X}"#.replace(" X", &told.to_string()).as_str())]);
    };
    for step in [HOUR, -HOUR, -HOUR, HOUR] {
        cluster.step_clock(step);
        tell(&mut client, &mut listener);
        for kind in ["relay", "keeper"] {
            let pid = running(&mut client, kind).expect("it runs");
            client.execute("SELECT pg_terminate_backend($1, 10000)", &[&pid]).unwrap();
            cluster.step_clock(-HOUR);
            soon("another one runs", || running(&mut client, kind).is_some_and(|other| other != pid));
            cluster.step_clock(HOUR);
        }
        tell(&mut client, &mut listener);
    }
}

#[test]
fn a_wait_takes_as_long_as_it_was_told() {
    let (cluster, _) = installed(&[]);
    for step in [-HOUR, HOUR] {
        let mut waiting = cluster.client();
        let pid: i32 = waiting.one("SELECT pg_backend_pid()");
        let since = Instant::now();
        let waiting = thread::spawn(move || {
            waiting.batch_execute("CALL oban_wait(timeout => '3 s')").unwrap();
            since.elapsed()
        });
        let mut client = cluster.client();
        let waits = format!("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = {pid}");
        wait_until("it waits", || client.one::<Option<bool>>(&waits) == Some(true));
        cluster.step_clock(step);
        let took = waiting.join().expect("it ends");
        assert!(took > Duration::from_millis(2_500) && took < SOON, "{took:?} with a step of {step} s");
    }
}

/// The server restarts in each way, and also without the file that it left before.
#[test]
fn positions_and_members_never_go_back() {
    let cluster = installed(&[]).0;
    let (mut position, mut member) = (0, 0);
    let mut further = |client: &mut Client, what: &str| {
        let now: i64 = client.one("SELECT oban_position()");
        let joined: i64 = client.one("SELECT oban_join('a', lease => '1 s', replace => true)");
        assert!(now > position && joined > member, "{what}: {now} after {position}, {joined} after {member}");
        client
            .batch_execute(
                "SELECT oban_notify('news', jsonb_build_object('n', n), '') FROM generate_series(1, 100) n",
            )
            .unwrap();
        let answer = client.query_one("SELECT * FROM oban_poll('{news}', $1, 5, '')", &[&position]).unwrap();
        assert_eq!(
            answer.get::<_, Option<i64>>("missed"),
            None,
            "{what}: an earlier reader is told that it was long ago"
        );
        (position, member) = (client.one("SELECT oban_position()"), joined);
        assert!(position >= now + 100);
    };
    cluster.step_clock(HOUR);
    cluster.restart();
    let mut client = cluster.client();
    further(&mut client, "an hour ahead");
    cluster.step_clock(-HOUR);
    client.batch_execute("CHECKPOINT").unwrap();
    cluster.restart();
    client = cluster.client();
    further(&mut client, "set right");
    for mode in ["smart", "fast", "immediate"] {
        cluster.step_clock(-HOUR);
        drop(client);
        cluster.stop(mode);
        cluster.start_again();
        client = cluster.client();
        further(&mut client, mode);
    }
    cluster.step_clock(-HOUR);
    let coordinator = "SELECT pid FROM oban_workers WHERE kind = 'coordinator'";
    let before: Option<i32> = client.one(coordinator);
    cluster.signal("KILL", client.one("SELECT pg_backend_pid()"));
    // Until the postmaster notices the crash, the server of before goes on.
    client = wait_for("the server is back", || {
        let mut client = cluster.try_client("postgres", "postgres").ok()?;
        let now: Option<i32> = client.query_one(coordinator, &[]).ok()?.get(0);
        now.filter(|_| now != before)?;
        client.simple_query("SELECT oban_position()").ok().map(|_| client)
    });
    further(&mut client, "after a crash");
    let file = cluster.data_folder().join("pg_stat/obanrs_positions");
    for text in [Some("nonsense"), None] {
        drop(client);
        cluster.stop("fast");
        match text {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        cluster.start_again();
        client = cluster.client();
        client.one::<i64>("SELECT oban_position()");
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("began "));
    }
}
