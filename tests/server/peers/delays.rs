//! What delays an election, and which others does it leave alone?

use fallible_iterator::FallibleIterator;
use postgres::Client;

use super::{leader, lease_of_a_second};
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, Stuck, wait_until};

#[test]
fn a_locked_table_delays_elections_and_nothing_else() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('second')").unwrap();
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; LOCK TABLE public.oban_peers").unwrap();
    join(&mut client, "a");
    assert!(!leads(&mut client));
    let other = "SELECT oban_join('a', prefix => 'second')";
    client.query_one(other, &[]).unwrap();
    let sql = "SELECT oban_is_leader(prefix => 'second')";
    wait_until("the other prefix has a leader", || client.one(sql));
    assert_eq!(
        cluster.log().matches("wait for a lock on its table of leaders").count(),
        1,
        "it is logged once"
    );
    let shown = "SELECT last_error FROM oban_workers WHERE kind = 'keeper'";
    let shown: String = client.one(shown);
    assert!(shown.contains("\"public\"") && shown.contains("wait for a lock"), "{shown}");
    locker.batch_execute("COMMIT").unwrap();
    wait_until("the first has one now", || leads(&mut client));
}

#[test]
fn a_missing_table_turns_leadership_off_until_it_appears() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for name in ["Oban", "Other"] {
        client.query_one("SELECT oban_join('a', $1)", &[&name]).unwrap();
    }
    assert!(!leads(&mut client));
    assert!(leader(&mut client).is_none());
    let hints =
        |cluster: &Cluster| cluster.log().matches("obanrs holds no elections in prefix \"public\"").count();
    assert_eq!(hints(&cluster), 1, "one warning for the prefix:\n{}", cluster.log());
    client.batch_execute("SELECT oban_install()").unwrap();
    wait_until("it leads", || leads(&mut client));
    assert_eq!(hints(&cluster), 1);
}

/// A commit that waits for its standby holds the lock that every NOTIFY of the server queues for.
#[test]
fn a_failover_waits_for_other_peoples_notifications_and_is_not_rolled_back() {
    let cluster = Cluster::installed();
    let mut first = cluster.shell();
    first.ask("SELECT oban_join('first')");
    let mut second = cluster.client();
    join(&mut second, "second");

    let mut stuck = cluster.client();
    stuck.batch_execute("SET obanrs.notifier = postgres").unwrap();
    let stuck = Stuck::start(&cluster, stuck, "INSERT INTO oban_jobs (worker) VALUES ('w')");
    first.kill();
    // This is longer than the keeper waits for a lock of a user's table.
    wait_until("the keeper goes on waiting for that commit", || {
        let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   WHERE NOT l.granted AND a.backend_type = 'obanrs keeper'
                     AND clock_timestamp() - l.waitstart > interval '150 milliseconds'";
        second.one::<i64>(sql) == 1
    });
    stuck.end(&mut second, "pg_cancel_backend");
    wait_until("the second leads", || leads(&mut second));
    assert!(!cluster.log().contains("will try again"), "{}", cluster.log());
}

/// A keeper that waits for a lock resets its latch there, and could lose the wakeup about the leader's end.
/// (Then Postgres' own timer for the lock would happen to wake the keeper some 45 ms later. A test of
/// `logic::lifecycle` shows that the keeper does not rely on that.)
#[test]
fn nothing_is_slept_over_while_a_table_is_locked() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('locked')").unwrap();
    for round in 0..10 {
        let mut leader = cluster.client();
        join(&mut leader, "leader");
        wait_until("it leads", || leads(&mut leader));
        let mut next = cluster.client();
        join(&mut next, "next");
        let mut locker = cluster.client();
        locker.batch_execute("BEGIN; LOCK TABLE locked.oban_peers").unwrap();
        // The keeper waits for that lock now, and meanwhile the leader of the other prefix ends.
        let node = format!("n{round}");
        let joiner = std::thread::spawn({
            let mut session = cluster.client();
            move || session.query_one("SELECT oban_join($1, prefix => 'locked')", &[&node]).map(|_| session)
        });
        wait_until("the keeper waits for the lock", || {
            let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                       WHERE NOT l.granted AND a.backend_type = 'obanrs keeper'";
            client.one::<i64>(sql) == 1
        });
        drop(leader);
        wait_until("the leader is gone", || {
            let sql = "SELECT count(*) FROM oban_members WHERE prefix = 'public'";
            client.one::<i64>(sql) == 1
        });
        locker.batch_execute("COMMIT").unwrap();
        wait_until("the next leads", || leads(&mut next));
        joiner.join().unwrap().unwrap();
    }
}

#[test]
fn a_locked_row_costs_only_its_own_name() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    lease_of_a_second(&mut client);
    // The name that will be locked comes first in every list.
    client.query_one("SELECT oban_join('a', 'Locked')", &[]).unwrap();
    join(&mut client, "a");
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; SELECT FROM oban_peers WHERE name = 'Locked' FOR UPDATE").unwrap();
    let locked = "SELECT oban_is_leader('Locked')";
    wait_until("its lease runs out", || !client.one::<bool>(locked));
    let expiry =
        |c: &mut Client| -> String { c.one("SELECT expires_at::text FROM oban_peers WHERE name = 'Oban'") };
    let term = leader(&mut client);
    for _ in 0..4 {
        let before = expiry(&mut client);
        wait_until("the other name's lease is renewed", || expiry(&mut client) > before);
        assert!(leads(&mut client));
    }
    assert_eq!(leader(&mut client), term, "without an interruption");
    locker.batch_execute("COMMIT").unwrap();
    wait_until("the locked one leads again", || client.one(locked));
}

/// The keeper does not look again and again for a missing table. The call that the warning names makes it
/// find a table that is back.
#[test]
fn a_missing_table_costs_nothing_while_it_is_missing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    join(&mut client, "a");
    client.batch_execute("ALTER TABLE oban_peers RENAME TO away").unwrap();
    client.batch_execute("SELECT oban_join('a', 'Other')").unwrap(); // so the keeper looks at the table
    wait_until("it has warned", || cluster.log().contains("holds no elections"));
    let keeper = "SELECT wait_event_type || ' ' || state_change FROM pg_stat_activity WHERE backend_type = 'obanrs keeper'";
    let mut before = String::new();
    // An earlier keeper looked again after some time. This is twice that time.
    wait_until("it sleeps", || {
        let now: String = client.one(keeper);
        let same = now == before && now.starts_with("Extension");
        before = now;
        same
    });
    let slept: String = client.one("SELECT clock_timestamp()::text");
    let later = format!("SELECT clock_timestamp() > '{slept}'::timestamptz + interval '2.5 s'");
    wait_until("some time has passed", || client.one(&later));
    assert_eq!(client.one::<String>(keeper), before, "it has done nothing since");
    client.batch_execute("ALTER TABLE away RENAME TO oban_peers; SELECT oban_install()").unwrap();
    wait_until("both lead", || client.one("SELECT count(*) = 2 FROM oban_members WHERE leader"));
}

/// A listener that stays in its transaction makes NOTIFY's queue fill. Elections do not wait for that. The
/// keeper, also a new one, announces as soon as there is room what it could not announce before.
#[test]
fn elections_go_on_while_notifys_queue_is_full() {
    let old = "SELECT current_setting('server_version_num')::int < 170000";
    if Cluster::installed().client().one::<bool>(old) {
        return; // the queue of these versions has 8 GB
    }
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_notify_queue_pages = 64"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let mut listener = cluster.client();
    listener.batch_execute("LISTEN \"public.oban_leader\"; LISTEN junk").unwrap();
    // The listener reads nothing until its transaction ends.
    listener.batch_execute("BEGIN; SELECT 1").unwrap();
    let fill = "SELECT pg_notify('junk', n || repeat('x', 7000)) FROM generate_series(1, 20) n";
    let full = (0..1_000).any(|_| client.batch_execute(fill).is_err());
    assert!(full, "the queue can be filled");

    // A leader ends, and a row of a foreign node expires.
    client
        .batch_execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at)
             VALUES ('Other', 'ex', timezone('utc', now()), timezone('utc', now()) + interval '1 s')",
        )
        .unwrap();
    let mut first = cluster.client();
    join(&mut first, "first");
    let mut second = cluster.client();
    join(&mut second, "second");
    let term: i64 = first.one("SELECT oban_term()");
    drop(first);
    wait_until("the second leads", || leads(&mut second));
    assert!(second.one::<i64>("SELECT oban_term()") > term);
    wait_until("the expired row is gone", || client.one("SELECT count(*) = 1 FROM oban_peers"));
    assert!(leads(&mut second));

    let kill =
        "SELECT count(pg_terminate_backend(pid)) FROM oban_workers WHERE kind = 'keeper' AND pid IS NOT NULL";
    assert_eq!(client.one::<i64>(kill), 1);
    listener.batch_execute("COMMIT").unwrap();
    let mut downs = Vec::new();
    wait_until("both ends are announced", || {
        let mut notifications = listener.notifications();
        let mut heard = notifications.timeout_iter(std::time::Duration::from_millis(100));
        while let Some(n) = heard.next().unwrap() {
            if n.channel() == "public.oban_leader" {
                downs.push(n.payload().to_owned());
            }
        }
        downs.len() >= 2
    });
    downs.sort();
    assert_eq!(downs, [r#"{"down":"Oban"}"#, r#"{"down":"Other"}"#]);
}
