//! Bugs that other systems had with their leaders and sessions: does this extension have them?
//!
//! Each test names the system that had the bug, and links to it.

use fallible_iterator::FallibleIterator;
use postgres::Client;

use crate::support::elixir::{Form, elect};
use crate::support::members::{join, leads};
use crate::support::{Ask, Cluster, code, stat, wait_for, wait_until};

fn row(client: &mut Client) -> String {
    let sql = "SELECT coalesce(string_agg(name || ' ' || node || ' ' || term || ' ' || expires_at, ', '), '') FROM oban_peers";
    client.one(sql)
}

fn keeper(client: &mut Client) -> i32 {
    let sql = "SELECT pid FROM oban_workers WHERE kind = 'keeper' AND state = 'running'";
    wait_for("a keeper", || client.query_opt(sql, &[]).unwrap().map(|r| r.get(0)))
}

/// Oban 2.11 to 2.23.0: a leader that had been paused renewed any row that it found, also another node's. It
/// led beside another for 19 days.
/// https://github.com/oban-bg/oban/issues/1488
#[test]
fn a_leader_that_was_paused_past_its_lease_leads_no_more() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"]);
    let mut ours = cluster.client();
    ours.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    join(&mut ours, "ours");
    assert!(leads(&mut ours));
    let mut elixir = cluster.client();
    // The keeper, which renews for the member, is paused. Meanwhile another node leads.
    let keeper = keeper(&mut ours);
    cluster.signal("STOP", keeper);
    wait_until("the lease is over", || !leads(&mut ours));
    wait_until("another leads", || elect(&mut elixir, "elixir", Form::ByNode, "0").unwrap());
    let before = row(&mut elixir);
    cluster.signal("CONT", keeper);
    let mut third = cluster.client();
    join(&mut third, "third"); // the keeper has been through a pass when it returns
    assert!(!leads(&mut ours) && !leads(&mut third));
    assert_eq!(row(&mut elixir), before, "the foreign row was not extended");

    // Here a member with a lease is paused itself.
    let mut client = cluster.client();
    let paused: i64 = client.one("SELECT oban_join('paused', 'Other', lease => '1 s')");
    let term: i64 = client.one("SELECT oban_term('Other', 'paused')");
    client.batch_execute("SELECT oban_join('next', 'Other')").unwrap();
    wait_until("another leads", || client.one("SELECT oban_is_leader('Other', 'next')"));
    assert_eq!(code(&mut client, &format!("SELECT oban_renew({paused})")), "55000");
    assert_eq!(code(&mut client, &format!("SELECT oban_fence({term}, 'Other')")), "40001");
}

/// Oban until 2.23.0 kept its leadership when an election failed.
/// https://github.com/oban-bg/oban/issues/1488
#[test]
fn an_election_that_fails_ends_the_leadership() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    join(&mut client, "a");
    assert!(leads(&mut client));
    // Elections would have to ignore the constraint, so the keeper can't renew.
    client.batch_execute("ALTER TABLE oban_peers ADD CONSTRAINT no CHECK (name <> '')").unwrap();
    wait_until("it leads no more", || !leads(&mut client));
    let error = "SELECT last_error LIKE '%holds no elections%check constraint no:%' FROM oban_workers WHERE kind = 'keeper'";
    wait_until("it is said why", || client.one(error));
    client.batch_execute("ALTER TABLE oban_peers DROP CONSTRAINT no").unwrap();
    wait_until("it leads again", || leads(&mut client));
}

/// Oban for Python announces that it resigns before it deletes its row. Other nodes hold their elections too
/// early, and sleep for half a minute.
/// https://github.com/oban-bg/oban-py/blob/05825443562bd2540360736d7fff8e1a6e918f47/oban/_leader.py
#[test]
fn a_resignation_and_its_announcement_are_one_transaction() {
    let cluster = Cluster::installed();
    let (mut elixir, mut ours) = (cluster.client(), cluster.client());
    elixir.batch_execute("LISTEN \"public.oban_leader\"").unwrap();
    for round in 0..20 {
        let id = join(&mut ours, "ours");
        wait_until("ours leads", || leads(&mut ours));
        let how = if round % 2 == 0 { "oban_resign" } else { "oban_leave" };
        assert!(ours.one::<bool>(&format!("SELECT {how}({id})")));
        let heard = elixir.notifications().blocking_iter().next().unwrap().expect("it is open");
        assert_eq!(heard.payload(), r#"{"down":"Oban"}"#);
        assert!(
            elect(&mut elixir, "elixir", Form::DoNothing, "0").unwrap(),
            "{how}: its row was still there"
        );
        ours.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
        elixir.batch_execute("DELETE FROM oban_peers").unwrap();
        assert_eq!(elixir.notifications().iter().count().unwrap(), 0, "once");
    }
}

/// Three bugs of River. The interval of renewals was as long as the lease:
/// https://github.com/riverqueue/river/pull/217
/// A past leader renewed the row of the next leader, and believed that it led:
/// https://github.com/riverqueue/river/pull/199
/// A leader that had resigned elected itself again:
/// https://github.com/riverqueue/river/pull/286
#[test]
fn a_leader_renews_in_time_and_leads_no_more_once_another_does_or_it_resigned() {
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'obanrs'",
        "obanrs.lease = 1s",
        "log_min_messages = info",
    ]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    join(&mut client, "a");
    // The interval of renewals is half of the lease, and no setting changes that. So a leader never lapses.
    let left = "SELECT min(extract(epoch FROM expires_at - clock_timestamp()))::float8 FROM oban_leader()";
    let first = row(&mut client);
    let mut renewals = 0;
    let (mut last, mut least) = (first.clone(), f64::MAX);
    wait_until("five renewals", || {
        least = least.min(client.one::<f64>(left));
        let now = row(&mut client);
        renewals += i32::from(now != last);
        last = now;
        renewals >= 5
    });
    assert!(least > 0.0 && leads(&mut client));
    assert_eq!(stat(&mut client, "lapses"), 0);

    // Now a member leads no more because another one does.
    let past: i64 = client.one("SELECT oban_join('past', 'Past', lease => '500 ms')");
    let (term, mut next): (i64, Client) = (client.one("SELECT oban_term('Past', 'past')"), cluster.client());
    next.batch_execute("SELECT oban_join('next', 'Past')").unwrap();
    wait_until("another leads", || next.one("SELECT oban_is_leader('Past')"));
    assert_eq!(code(&mut client, &format!("SELECT oban_renew({past})")), "55000");
    assert!(next.one::<i64>("SELECT oban_term('Past')") > term);

    // A member that stops first resigns, and then leaves.
    let elections = |cluster: &Cluster| cluster.log().matches("node \"stopping\" leads").count();
    let stopping: i64 = client.one("SELECT oban_join('stopping', 'Stopping')");
    assert_eq!(elections(&cluster), 1);
    assert!(client.one::<bool>(&format!("SELECT oban_resign({stopping})")));
    next.batch_execute("SELECT oban_join('b', 'Unrelated')").unwrap(); // makes another pass of the keeper
    assert!(client.one::<bool>(&format!("SELECT oban_leave({stopping})")));
    wait_until("nobody leads", || client.one("SELECT count(*) = 0 FROM oban_leader('Stopping')"));
    assert_eq!(elections(&cluster), 1, "{}", cluster.log());
}

/// In River a leader whose services failed to start stayed leader.
/// https://github.com/riverqueue/river/issues/1161
#[test]
fn a_half_started_leader_does_not_stay_leader() {
    let cluster = Cluster::installed();
    let mut watch = cluster.client();
    for round in 0..5 {
        // The session dies while it waits for its election, which can't be held yet.
        let mut locker = cluster.client();
        locker.batch_execute("BEGIN; LOCK TABLE oban_peers").unwrap();
        let mut starting = cluster.shell();
        starting.tell(&format!("SELECT oban_join('starting-{round}')"));
        wait_until("it has joined", || watch.one("SELECT count(*) = 1 FROM oban_members"));
        starting.kill();
        if round % 2 == 0 {
            wait_until("it is gone", || watch.one("SELECT count(*) = 0 FROM oban_members"));
        }
        locker.batch_execute("COMMIT").unwrap();
        wait_until("it is gone", || watch.one("SELECT count(*) = 0 FROM oban_members"));
        wait_until("nobody leads", || row(&mut watch).is_empty());
        let mut next = cluster.client();
        let id = join(&mut next, "next");
        wait_until("the next leads", || leads(&mut next));
        next.batch_execute(&format!("SELECT oban_leave({id})")).unwrap();
        wait_until("nobody leads", || row(&mut watch).is_empty());
    }
}

/// In pg-boss a half-open connection of a listener looked alive. The test takes down a network of its own, so
/// that no word of the client's end can reach the server. https://github.com/timgit/pg-boss/issues/850
#[test]
fn a_half_open_socket_is_noticed_and_its_place_freed() {
    let cluster = Cluster::start_in_own_network(&[
        "shared_preload_libraries = 'obanrs'",
        "listen_addresses = '127.0.0.1'",
    ]);
    let mut watch = cluster.client();
    watch.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let joined = cluster.in_own_network(
        "mkfifo $FOLDER/pipe; (exec 3>$FOLDER/pipe; sleep 600) & \
         timeout 600 psql -X -q -h 127.0.0.1 -U postgres postgres <$FOLDER/pipe >$FOLDER/said 2>&1 & \
         echo \"SELECT oban_join('vanishing'); SHOW tcp_user_timeout;\" >$FOLDER/pipe",
    );
    assert!(joined, "the client was started");
    wait_until("it leads", || watch.one("SELECT oban_is_leader(node => 'vanishing')"));
    let settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name ~ '^tcp_'";
    join(&mut watch, "next");
    assert_eq!(watch.one::<String>(settings), "0 0 0 0", "over a Unix socket they mean nothing");
    // Sessions that only listen or wait get the settings, too. A value that the user has set stays.
    for (n, name, call, options) in [
        (1, "hears", "SELECT oban_listen_channels('{insert}')", ""),
        (2, "hears", "CALL oban_wait(timeout => '1 ms'); CALL oban_wait(timeout => '1 hour')", ""),
        (3, "keeps", "SELECT oban_listen_channels('{insert}')", "-c tcp_keepalives_idle=77"),
    ] {
        let started = cluster.in_own_network(&format!(
            "mkfifo $FOLDER/pipe{n}; (exec 3>$FOLDER/pipe{n}; sleep 600) & \
             PGAPPNAME={name} PGOPTIONS='{options}' timeout 600 psql -X -q -A -t -h 127.0.0.1 -U postgres \
                 postgres <$FOLDER/pipe{n} >$FOLDER/said{n} 2>&1 & \
             echo \"{shown} {call}; {shown}\" >$FOLDER/pipe{n}",
            shown =
                "SELECT 'set', string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name ~ '^tcp_';",
        ));
        assert!(started, "the client was started");
    }
    for (n, expected) in [(1, "5 3 1 8000"), (3, "5 77 1 8000")] {
        wait_until("it is set", || {
            cluster.in_own_network(&format!("grep -q 'set|{expected}' $FOLDER/said{n}"))
        });
    }
    assert!(cluster.in_own_network("grep -q 'set|[0-9]* 77 [0-9]* 0' $FOLDER/said3"), "only by the call");
    wait_until("they hear", || {
        watch.one(
            "SELECT count(*) FILTER (WHERE query LIKE '%CALL%' AND state = 'active') = 1 AND count(*) = 2
                   FROM pg_stat_activity WHERE application_name = 'hears'",
        )
    });
    assert!(cluster.in_own_network("ip link set lo down"), "the network is down");
    wait_until("the next leads", || leads(&mut watch));
    assert_eq!(watch.one::<String>("SELECT string_agg(node, ',') FROM oban_members"), "next");
    let own = "client_addr IS NOT NULL AND application_name NOT IN ('hears', 'keeps')";
    assert_eq!(watch.one::<i64>(&format!("SELECT count(*) FROM pg_stat_activity WHERE {own}")), 0);
    wait_until("those that hear are gone, too", || {
        watch.one("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'hears'")
    });
}

/// The sleeping worker of pg_net kept DROP DATABASE waiting.
/// https://github.com/supabase/pg_net/issues/78
#[test]
fn drop_database_with_waiting_sessions_finishes() {
    let cluster = Cluster::with_extension();
    let mut admin = cluster.client();
    admin.batch_execute("CREATE DATABASE doomed").unwrap();
    let mut owner = cluster.client_of("doomed");
    owner.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let mut leader = cluster.client_of("doomed");
    join(&mut leader, "leader");
    let waiting: Vec<_> = [
        "CALL oban_wait(timeout => '1 day')",
        "SELECT oban_join('waits')",
        "SELECT oban_renew(oban_join('r', 'R', lease => '1 h'))",
    ]
    .into_iter()
    .map(|sql| {
        let mut session = cluster.client_of("doomed");
        std::thread::spawn(move || while session.batch_execute(sql).is_ok() {})
    })
    .collect();
    wait_until("one waits", || {
        admin.one("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'doomed' AND query LIKE 'CALL%' AND state = 'active'")
    });
    drop(owner);
    // A fence is held as well, in a transaction that does not end.
    leader.batch_execute("BEGIN; SELECT oban_fence(oban_term())").unwrap();
    admin.batch_execute("DROP DATABASE doomed WITH (FORCE)").unwrap();
    waiting.into_iter().for_each(|w| w.join().unwrap());
    assert!(leader.batch_execute("SELECT 1").is_err());
    wait_until("nothing of it is left", || {
        admin.one("SELECT count(*) = 0 FROM oban_workers WHERE database = 'doomed'")
    });
}

/// Oban 2.11.0 with ten nodes inserted and deleted 2.5 million times an hour.
/// https://github.com/oban-bg/oban/issues/651
#[test]
fn a_dead_leader_of_a_thousand_peers_costs_one_election() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_members = 1100"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let writes = "SELECT (n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables WHERE relname = 'oban_peers'";
    let next_xid = "SELECT pg_current_xact_id()::text::bigint";
    let mut cost = Vec::new();
    for members in [2, 1_000] {
        let mut leader = cluster.client();
        join(&mut leader, "leader");
        wait_until("it leads", || leads(&mut leader));
        let mut many = cluster.client();
        let join = format!(
            "SELECT oban_join('n' || i, lease => '1 hour') FROM generate_series(1, {}) i",
            members - 1
        );
        many.batch_execute(&join).unwrap();
        assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_members"), members);
        let elections = "SELECT value FROM oban_stats WHERE counter = 'elections'";
        let before: i64 = client.one(elections);
        let (xid, written): (i64, i64) = (client.one(next_xid), client.one(writes));
        drop(leader);
        wait_until("another leads", || leads(&mut many));
        assert_eq!(client.one::<i64>(next_xid) - xid - 1, 1, "one transaction that writes");
        cost.push(client.one::<i64>(writes) - written);
        assert_eq!(client.one::<i64>(elections), before + 1);
        many.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
        wait_until("nobody leads", || row_is_gone(&mut client));
    }
    assert_eq!(cost[0], cost[1], "writes do not grow with the members");
    assert!(cost[0] > 0);
}

fn row_is_gone(client: &mut Client) -> bool {
    client.one("SELECT count(*) = 0 FROM oban_peers")
}
