//! What does leadership cost, and for how long is there no leader?
//!
//! A leader is killed, leaves, or lapses. A member asks whether it leads. There are a thousand members, and a
//! hundred leaderships to which nothing happens.
//!
//!     make bench-leaders                  into benches/results/leaders.md (five minutes)
//!     make bench-leaders BENCH=quick      fewer trials: to see whether it runs; writes nothing
//!     make bench-leaders BENCH=failover   500 trials of failover alone; writes nothing
//!
//! Clients on the same host measure the times over a Unix socket. A time begins with the leader's end. It
//! ends when another member's session, which calls `oban_is_leader()` all the time, has the answer true.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
mod common;

use std::fmt::Write;
use std::time::{Duration, Instant};

use common::{about, compare, quantile, spread};
use postgres::Client;
use support::{Ask, Cluster, wait_until};

fn leads(client: &mut Client) -> bool {
    client.one("SELECT oban_is_leader()")
}

fn join(client: &mut Client, node: &str) -> i64 {
    client.one(&format!("SELECT oban_join('{node}')"))
}

/// Waits until this session's member leads. Returns the milliseconds since `since`.
fn until_it_leads(client: &mut Client, since: Instant) -> f64 {
    let statement = client.prepare("SELECT oban_is_leader()").expect("it can be prepared");
    while !client.query_one(&statement, &[]).expect("it answers").get::<_, bool>(0) {}
    since.elapsed().as_secs_f64() * 1e3
}

/// Kills the leader's client (SIGKILL), while its backend is idle.
fn killed(cluster: &Cluster, trials: usize) -> Vec<f64> {
    let trial = |_| {
        let mut first = cluster.shell();
        first.ask("SELECT oban_join('first')");
        wait_until("it leads", || first.ask("SELECT oban_is_leader()") == "t");
        let mut next = cluster.client();
        join(&mut next, "next");
        let since = Instant::now();
        first.kill();
        until_it_leads(&mut next, since)
    };
    (0..trials).map(trial).collect()
}

/// Kills the leader's client beside so many prefixes whose tables another session has locked. In each of them
/// a member waits for an election.
fn killed_beside_locked_tables(cluster: &Cluster, trials: usize, prefixes: usize) -> Vec<f64> {
    let (mut members, mut locker) = (cluster.client(), cluster.client());
    let all = |call: &str| format!("SELECT {call} FROM generate_series(1, {prefixes}) i");
    members.batch_execute(&all("oban_install('locked' || i)")).expect("they are installed");
    let lock: Vec<String> = (1..=prefixes).map(|i| format!("locked{i}.oban_peers")).collect();
    locker.batch_execute(&format!("BEGIN; LOCK TABLE {}", lock.join(", "))).expect("they are locked");
    members.batch_execute(&all("oban_join('waits', prefix => 'locked' || i)")).expect("they join");
    let times = killed(cluster, trials);
    locker.batch_execute("COMMIT").expect("it is open");
    wait_until("each has a leader", || {
        members.one(&format!("SELECT count(*) = {prefixes} FROM oban_leadership WHERE prefix LIKE 'locked%'"))
    });
    members
        .batch_execute("SELECT oban_leave(member) FROM oban_members WHERE node = 'waits'")
        .expect("they leave");
    times
}

/// Makes the leader leave.
fn left(cluster: &Cluster, trials: usize) -> Vec<f64> {
    let trial = |_| {
        let (mut first, mut next) = (cluster.client(), cluster.client());
        let id = join(&mut first, "first");
        wait_until("it leads", || leads(&mut first));
        join(&mut next, "next");
        let since = Instant::now();
        first.batch_execute(&format!("SELECT oban_leave({id})")).expect("it leaves");
        until_it_leads(&mut next, since)
    };
    (0..trials).map(trial).collect()
}

/// Lets the lease of a leader lapse. Returns how long after its end another member knows that it leads, by
/// the server's clock.
fn lapsed(cluster: &Cluster, trials: usize) -> Vec<f64> {
    let trial = |_| {
        let (mut first, mut next) = (cluster.client(), cluster.client());
        first.batch_execute("SELECT oban_join('first', lease => '100 ms')").expect("it joins");
        let ends =
            "SELECT extract(epoch FROM expires_at)::float8 FROM oban_members WHERE node = 'first' AND leader";
        let ends: f64 = first.one(ends);
        join(&mut next, "next");
        loop {
            let row = next
                .query_one("SELECT oban_is_leader(), extract(epoch FROM clock_timestamp())::float8", &[])
                .expect("it answers");
            if row.get(0) {
                return (row.get::<_, f64>(1) - ends) * 1e3;
            }
        }
    };
    (0..trials).map(trial).collect()
}

/// The WAL records and bytes of a time in which nothing happens.
fn idle(client: &mut Client, time: Duration) -> (i64, i64) {
    let from: String = client.one("SELECT pg_current_wal_insert_lsn()::text");
    std::thread::sleep(time);
    let to: String = client.one("SELECT pg_current_wal_insert_lsn()::text");
    if from == to {
        return (0, 0);
    }
    let written = format!(
        "SELECT count(*), coalesce(sum(record_length), 0)::bigint FROM pg_get_wal_records_info('{from}', '{to}')
         WHERE resource_manager NOT IN ('Standby', 'XLOG')"
    );
    let row = client.query_one(&written, &[]).expect("it answers");
    (row.get(0), row.get(1))
}

fn main() {
    let quick = std::env::args().any(|a| a == "quick");
    let failover = std::env::args().any(|a| a == "failover");
    let trials = if quick {
        5
    } else if failover {
        500
    } else {
        100
    };
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'obanrs'",
        "fsync = on",
        "obanrs.max_members = 1100",
        "obanrs.lease = 4s",
    ]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); CREATE EXTENSION pg_walinspect")
        .expect("they can be made");
    let mut text = format!("Measured by `make bench-leaders`: {}.\n\n", about(&cluster));
    let mut line = |what: &str, figure: String| {
        eprintln!("{what}: {figure}");
        writeln!(text, "| {what} | {figure} |").expect("memory");
    };
    line("figure", format!("{trials} trials"));
    line("---", "---".into());
    let times = |of: Vec<f64>| {
        format!(
            "p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
            quantile(&of, 0.5),
            quantile(&of, 0.9),
            quantile(&of, 0.99),
            quantile(&of, 1.0)
        )
    };
    line(
        "leader's client killed → the next member's `oban_is_leader()` true",
        times(killed(&cluster, trials)),
    );
    line(
        "the same beside 20 prefixes whose tables are locked",
        times(killed_beside_locked_tables(&cluster, trials, 20)),
    );
    if failover {
        return;
    }
    line("clean leave → the next leader", times(left(&cluster, trials)));
    line("leased leader lapsed: past the end of its lease", times(lapsed(&cluster, trials)));

    let mut member = cluster.client();
    join(&mut member, "member");
    wait_until("it leads", || leads(&mut member));
    let calls = |function: &str| {
        format!("DO $$ BEGIN FOR i IN 1..100000 LOOP PERFORM {function}(); END LOOP; END $$")
    };
    let (asked, empty) = (calls("oban_is_leader"), calls("obanrs_bench_is_leader"));
    let rounds = if quick { 2 } else { 10 };
    line(
        "`oban_is_leader()` in a loop of one statement, processor time ÷ an empty function of the same signature",
        spread(compare(&mut member, rounds, "", [&asked, &empty])),
    );
    let statements = |function: &str| format!("SELECT {function}();").repeat(2_000);
    let (asked, empty) = (statements("oban_is_leader"), statements("obanrs_bench_is_leader"));
    line("the same, each a statement", spread(compare(&mut member, rounds, "", [&asked, &empty])));
    drop(member);

    for members in [2, 1_000] {
        let (mut leader, mut many) = (cluster.client(), cluster.client());
        join(&mut leader, "leader");
        wait_until("it leads", || leads(&mut leader));
        // These have leases: without one, a session can be only one node of a name.
        let others =
            format!("SELECT oban_join('n' || i, lease => '1 hour') FROM generate_series(2, {members}) i");
        many.batch_execute(&others).expect("they join");
        let elections = "SELECT value FROM oban_stats WHERE counter = 'elections'";
        let before: i64 = client.one(elections);
        let from: String = client.one("SELECT pg_current_wal_insert_lsn()::text");
        let since = Instant::now();
        drop(leader);
        let time = until_it_leads(&mut many, since);
        let to: String = client.one("SELECT pg_current_wal_insert_lsn()::text");
        let written = format!(
            "SELECT count(DISTINCT xid::text) FILTER (WHERE resource_manager = 'Transaction'), count(*) FILTER (WHERE resource_manager = 'Heap')
             FROM pg_get_wal_records_info('{from}', '{to}')"
        );
        let row = client.query_one(&written, &[]).expect("it answers");
        let (commits, rows): (i64, i64) = (row.get(0), row.get(1));
        let elected = client.one::<i64>(elections) - before;
        line(
            &format!("{members} members of one name, the leader ends"),
            format!(
                "{elected} election, {commits} committed transaction, {rows} WAL records of rows; {time:.1} ms"
            ),
        );
        many.batch_execute("SELECT oban_leave(member) FROM oban_members").expect("they leave");
        wait_until("nobody leads", || client.one("SELECT count(*) = 0 FROM oban_peers"));
    }

    let time = Duration::from_secs(if quick { 2 } else { 20 });
    let (records, bytes) = idle(&mut client, time);
    line("no leader, idle", format!("{records} WAL records, {bytes} bytes in {} s", time.as_secs()));
    let mut many = cluster.client();
    many.batch_execute("SELECT oban_join('n', 'Name' || i) FROM generate_series(1, 100) i")
        .expect("they join");
    wait_until("each has a leader", || many.one("SELECT count(*) = 100 FROM oban_leadership"));
    let before: i64 =
        many.one("SELECT sum(n_tup_upd)::bigint FROM pg_stat_user_tables WHERE relname = 'oban_peers'");
    let (records, bytes) = idle(&mut client, time);
    let after: i64 =
        many.one("SELECT sum(n_tup_upd)::bigint FROM pg_stat_user_tables WHERE relname = 'oban_peers'");
    line(
        "100 leaderships with leases of 4 s, idle",
        format!("{records} WAL records, {bytes} bytes in {} s, {} renewals", time.as_secs(), after - before),
    );
    if !quick {
        std::fs::create_dir_all("benches/results").expect("it can be made");
        std::fs::write("benches/results/leaders.md", text).expect("it can be written");
    }
}
