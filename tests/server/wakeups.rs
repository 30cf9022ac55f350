//! The insert trigger: which rows wake which queues?

use postgres::Client;

use crate::support::{Ask, Cluster, JOBS, code};

struct Listener {
    client: Client,
}

impl Listener {
    fn new(cluster: &Cluster) -> Self {
        let mut client = cluster.client();
        client.batch_execute("SELECT oban_listen_channels()").unwrap();
        Self { client }
    }

    /// Returns what was heard since the last time, sorted. The last message is one of the test's own, so that
    /// the test need not wait.
    fn heard(&mut self) -> Vec<String> {
        let heard = crate::support::heard(&mut self.client);
        let mut heard: Vec<String> =
            heard.iter().map(|n| format!("{} {}", n.channel(), n.payload())).collect();
        heard.sort();
        heard
    }
}

fn queues(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| format!("public.oban_insert {{\"queue\":\"{n}\"}}")).collect()
}

/// Starts a server whose scheduled jobs stay as they are.
fn unstaged() -> Cluster {
    let cluster = Cluster::with_extension();
    cluster.client().batch_execute("SELECT oban_install(stage => false)").unwrap();
    cluster
}

const INSERT: &str = "INSERT INTO oban_jobs (worker, queue, state)";

#[test]
fn one_wake_up_for_each_queue_with_available_rows() {
    let cluster = unstaged();
    let mut listener = Listener::new(&cluster);
    let mut client = cluster.client();
    let mut run = |sql: &str| client.batch_execute(sql).unwrap();

    run(&format!("{INSERT} VALUES ('w', 'a', 'available')"));
    assert_eq!(listener.heard(), queues(&["a"]));
    run(&format!(
        "{INSERT} VALUES ('w', 'a', 'available'), ('w', 'b', 'available'), ('w', 'a', 'available')"
    ));
    assert_eq!(listener.heard(), queues(&["a", "b"]));
    run(&format!(
        "{INSERT} VALUES ('w', 'a', 'scheduled'), ('w', 'b', 'completed'), ('w', 'c', 'suspended')"
    ));
    run(&format!("{INSERT} SELECT 'w', 'a', 'available' WHERE false"));
    assert_eq!(listener.heard(), queues(&[]));
    run(&format!(
        "{INSERT} SELECT 'w', 'q' || i % 7, CASE WHEN i % 7 < 3 THEN 'available' ELSE 'scheduled' END::oban_job_state FROM generate_series(1, 10000) i"
    ));
    assert_eq!(listener.heard(), queues(&["q0", "q1", "q2"]));
    run(&format!("BEGIN; {INSERT} VALUES ('w', 'a', 'available'); ROLLBACK"));
    run(&format!(
        "BEGIN; SAVEPOINT s; {INSERT} VALUES ('w', 'a', 'available'); ROLLBACK TO s; {INSERT} VALUES ('w', 'b', 'available'); COMMIT"
    ));
    assert_eq!(listener.heard(), queues(&["b"]));
    run(r#"INSERT INTO oban_jobs (worker, queue) VALUES ('w', E'quo"te\\back\ttab'), ('w', 'größe')"#);
    assert_eq!(listener.heard(), queues(&[r#"größe"#, r#"quo\"te\\back\u0009tab"#]));
    run(
        "SET work_mem = '64kB'; INSERT INTO oban_jobs (worker, queue, meta) SELECT 'w', 'disk', jsonb_build_object('pad', repeat('x', 200)) FROM generate_series(1, 5000)",
    );
    assert_eq!(listener.heard(), queues(&["disk"]));
    run(&format!(
        "BEGIN; SAVEPOINT s; {INSERT} VALUES ('w', 'a', 'available'); ROLLBACK TO s; {INSERT} VALUES ('w', 'a', 'available');
         SAVEPOINT s; {INSERT} VALUES ('w', 'b', 'available'); RELEASE s; {INSERT} VALUES ('w', 'b', 'available'); COMMIT"
    ));
    assert_eq!(listener.heard(), queues(&["a", "b"]), "heard once each, as nothing of it was rolled back");
}

#[test]
fn copy_and_on_conflict_and_with() {
    let cluster = unstaged();
    let mut listener = Listener::new(&cluster);
    let mut client = cluster.client();
    let mut copy = client.copy_in("COPY oban_jobs (worker, queue, state) FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, b"w\tc1\tavailable\nw\tc2\tscheduled\nw\tc3\tavailable\n").unwrap();
    copy.finish().unwrap();
    assert_eq!(listener.heard(), queues(&["c1", "c3"]));

    let mut run = |sql: &str| client.batch_execute(sql).unwrap();
    run("INSERT INTO oban_jobs (id, worker, queue) VALUES (1000, 'w', 'old')");
    listener.heard();
    run(
        "INSERT INTO oban_jobs (id, worker, queue) VALUES (1000, 'w', 'x'), (1001, 'w', 'new') ON CONFLICT (id) DO NOTHING",
    );
    assert_eq!(listener.heard(), queues(&["new"]));
    run("INSERT INTO oban_jobs (id, worker, queue) VALUES (1000, 'w', 'x'), (1002, 'w', 'newer')
         ON CONFLICT (id) DO UPDATE SET queue = 'updated'");
    assert_eq!(listener.heard(), queues(&["newer", "updated"]), "an available job has another queue");
    run("WITH one AS (INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'cte') RETURNING id)
         INSERT INTO oban_jobs (worker, queue) SELECT 'w', 'main' FROM one");
    assert_eq!(listener.heard(), queues(&["cte", "main"]));
}

#[test]
fn wake_ups_are_turned_off_by_session_transaction_role_database_or_function() {
    let cluster = unstaged();
    let mut listener = Listener::new(&cluster);
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE ROLE quiet LOGIN; GRANT ALL ON oban_jobs, oban_jobs_id_seq TO quiet;
             ALTER ROLE quiet SET obanrs.wakeups = off;
             CREATE ROLE app LOGIN; GRANT ALL ON oban_jobs, oban_jobs_id_seq TO app;
             CREATE FUNCTION load(queue text) RETURNS void LANGUAGE sql SET obanrs.wakeups = off
                 AS 'INSERT INTO oban_jobs (worker, queue) VALUES (''w'', queue)'",
        )
        .unwrap();
    let counted = "SELECT string_agg(counter || ' ' || value, ', ' ORDER BY counter) FROM oban_stats
                   WHERE counter IN ('published', 'dropped', 'native', 'gaps')";
    let job = |queue: &str| format!("{INSERT} VALUES ('w', '{queue}', 'available')");
    let (off, on) = (job("off"), job("on"));

    // No reader of any kind gets a message, and no counter changes.
    let start: i64 = admin.one("SELECT oban_position()");
    let before: String = admin.one(counted);
    let mut role = cluster.client_as("postgres", "quiet");
    role.batch_execute(&off).unwrap();
    let mut app = cluster.client_as("postgres", "app");
    app.batch_execute(&format!("SET obanrs.wakeups = off; {off}; {INSERT} SELECT 'w', 'off', 'available'"))
        .unwrap();
    let mut copy = app.copy_in("COPY oban_jobs (worker, queue) FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, b"w\toff\n").unwrap();
    copy.finish().unwrap();
    admin.batch_execute("SELECT load('off')").unwrap();
    admin.batch_execute(&format!("BEGIN; SET LOCAL obanrs.wakeups = off; {off}; COMMIT")).unwrap();
    admin.batch_execute(&format!("SET obanrs.notifier = postgres; SET obanrs.wakeups = off; {off}")).unwrap();
    admin.batch_execute("RESET ALL").unwrap();
    assert_eq!(admin.one::<String>(counted), before);
    let polled = format!("SELECT messages::text FROM oban_poll('{{insert}}', {start})");
    assert_eq!(admin.one::<String>(&polled), "[]");
    assert_eq!(listener.heard(), queues(&[]));

    // The setting ends with its transaction, function or session. A role for which it is off can turn it on
    // again.
    admin.batch_execute(&on).unwrap();
    assert_eq!(listener.heard(), queues(&["on"]));
    app.batch_execute(&format!("RESET obanrs.wakeups; {on}")).unwrap();
    assert_eq!(listener.heard(), queues(&["on"]));
    role.batch_execute(&format!("SET obanrs.wakeups = on; {on}")).unwrap();
    assert_eq!(listener.heard(), queues(&["on"]));

    // A change in the middle of a transaction counts from then on. A rollback to a savepoint takes it back.
    let (first, last) = (job("first"), job("last"));
    app.batch_execute(&format!(
        "BEGIN; {first}; SET obanrs.wakeups = off; {off}; SET obanrs.wakeups = on; {last}; COMMIT"
    ))
    .unwrap();
    assert_eq!(listener.heard(), queues(&["first", "last"]));
    app.batch_execute(&format!(
        "BEGIN; SAVEPOINT s; SET obanrs.wakeups = off; {off}; ROLLBACK TO s; {last}; COMMIT; {on}"
    ))
    .unwrap();
    assert_eq!(listener.heard(), queues(&["last", "on"]));

    // A call of oban_notify sends all the same.
    app.batch_execute(&format!(
        "BEGIN; SET LOCAL obanrs.wakeups = off; {off}; SELECT oban_notify('insert', '{{\"queue\": \"hand\"}}'),
         oban_notify('signal', '{{\"action\": \"pause\"}}'); COMMIT"
    ))
    .unwrap();
    let mut wanted = queues(&["hand"]);
    wanted.push("public.oban_signal {\"action\":\"pause\"}".to_owned());
    assert_eq!(listener.heard(), wanted);

    admin.batch_execute("ALTER DATABASE postgres SET obanrs.wakeups = off").unwrap();
    cluster.client_as("postgres", "app").batch_execute(&off).unwrap();
    assert_eq!(listener.heard(), queues(&[]));
    assert_eq!(code(&mut admin, "SET obanrs.wakeups = 'insert'"), "22023");
}

/// Without preload the first INSERT loads the library, which finds the settings of before.
#[test]
fn wake_ups_are_turned_off_before_the_library_is_loaded() {
    let cluster = Cluster::start(&[]);
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install();
             CREATE ROLE app LOGIN; GRANT ALL ON oban_jobs, oban_jobs_id_seq TO app",
        )
        .unwrap();
    let mut listener = Listener::new(&cluster);
    for before in ["SET obanrs.wakeups = off", ""] {
        let mut app = cluster.client_as("postgres", "app");
        app.batch_execute(&format!("{before}; {INSERT} VALUES ('w', 'a', 'available')")).unwrap();
        let wanted: &[&str] = if before.is_empty() { &["a"] } else { &[] };
        assert_eq!(listener.heard(), queues(wanted));
    }
}

#[test]
fn columns_dropped_added_and_reordered() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE TYPE oban_job_state AS ENUM ('scheduled', 'available');
             CREATE TABLE others {JOBS}; ALTER TABLE others DROP COLUMN queue, DROP COLUMN worker, DROP COLUMN state;
             CREATE TABLE oban_jobs (junk int, queue text, gone text, worker text, state oban_job_state DEFAULT 'available',
                 LIKE others);
             ALTER TABLE oban_jobs DROP COLUMN gone; ALTER TABLE oban_jobs ADD COLUMN later int DEFAULT 7;
             SELECT oban_install()"
        ))
        .unwrap();
    let mut listener = Listener::new(&cluster);
    client
        .batch_execute(&format!(
            "{INSERT} VALUES ('w', 'a', 'available'), ('w', 'b', 'scheduled'), ('w', NULL, 'available')"
        ))
        .unwrap();
    assert_eq!(listener.heard(), queues(&["a"]));
    // A table whose rows the trigger can't read still takes its rows.
    client.batch_execute("ALTER TABLE oban_jobs RENAME COLUMN queue TO lane").unwrap();
    client.batch_execute("INSERT INTO oban_jobs (lane) VALUES ('a')").unwrap();
    client.batch_execute("ALTER TABLE oban_jobs RENAME COLUMN lane TO queue; ALTER TABLE oban_jobs ALTER COLUMN state TYPE text").unwrap();
    client
        .batch_execute("INSERT INTO oban_jobs (queue, state) VALUES ('t', 'available'), ('u', 'scheduled')")
        .unwrap();
    assert_eq!(listener.heard(), queues(&["t"]), "a state that is text");
    // One queue is too long for a notification. Another has 5,000 bytes and is stored compressed.
    client
        .batch_execute("INSERT INTO oban_jobs (queue, state) VALUES (repeat('x', 9000), 'available')")
        .unwrap();
    client
        .batch_execute("INSERT INTO oban_jobs (queue, state) VALUES (repeat('y', 5000), 'available')")
        .unwrap();
    assert_eq!(listener.heard(), queues(&[&"y".repeat(5000)]));
}

#[test]
fn partitions_by_the_table_and_directly() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE SCHEMA elsewhere;
             CREATE TABLE oban_jobs {JOBS} PARTITION BY LIST (queue);
             CREATE TABLE jobs_a PARTITION OF oban_jobs FOR VALUES IN ('a');
             CREATE TABLE others {JOBS}; ALTER TABLE others DROP COLUMN queue, DROP COLUMN state;
             CREATE TABLE elsewhere.jobs_b (LIKE others, state text DEFAULT 'available', queue text);
             ALTER TABLE oban_jobs ATTACH PARTITION elsewhere.jobs_b FOR VALUES IN ('b');
             SELECT oban_install()"
        ))
        .unwrap();
    let mut listener = Listener::new(&cluster);
    client.batch_execute("INSERT INTO oban_jobs (queue) VALUES ('a'), ('b'), ('a')").unwrap();
    assert_eq!(listener.heard(), queues(&["a", "b"]));
    client.batch_execute("INSERT INTO jobs_a (queue) VALUES ('a')").unwrap();
    client.batch_execute("INSERT INTO elsewhere.jobs_b (queue) VALUES ('b')").unwrap();
    assert_eq!(listener.heard(), queues(&["a", "b"]), "on the channel of the partitioned table's prefix");

    client.batch_execute("CREATE TABLE jobs_c PARTITION OF oban_jobs FOR VALUES IN ('c')").unwrap();
    client.batch_execute("INSERT INTO jobs_c (queue) VALUES ('c')").unwrap();
    assert_eq!(listener.heard(), queues(&["c"]), "a partition that came later");
}

#[test]
fn install_twice_takes_no_lock_and_uninstall_leaves_tables() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; LOCK TABLE oban_jobs, oban_peers IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    client.batch_execute("BEGIN; SELECT oban_install()").unwrap();
    let strong = "SELECT count(*) FROM pg_locks l WHERE pid = pg_backend_pid() AND mode NOT LIKE 'Access%' AND mode <> 'ExclusiveLock'";
    assert_eq!(client.one::<i64>(strong), 0);
    client.batch_execute("COMMIT").unwrap();

    let error = client.batch_execute("SELECT oban_uninstall()").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "55P03");
    assert!(error.hint().is_some());
    locker.batch_execute("COMMIT").unwrap();
    client.batch_execute("SELECT oban_uninstall()").unwrap();
    let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs%'";
    assert_eq!(client.one::<i64>(left), 0);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 1);
    client
        .batch_execute("SELECT oban_uninstall(); SELECT oban_install(); DROP EXTENSION obanrs CASCADE")
        .unwrap();
    client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();

    client.batch_execute("CREATE ROLE app LOGIN; GRANT ALL ON oban_jobs, oban_peers TO app").unwrap();
    let mut app = cluster.client_as("postgres", "app");
    app.batch_execute("SELECT oban_install()").unwrap(); // nothing is missing, so nothing is refused
    assert_eq!(code(&mut app, "SELECT oban_uninstall()"), "42501");
    client.batch_execute("DROP TRIGGER obanrs_jobs_update ON oban_jobs").unwrap();
    assert_eq!(code(&mut app, "SELECT oban_install()"), "42501");
    assert_eq!(code(&mut client, "SELECT oban_install('has.dot')"), "22023");
    assert_eq!(code(&mut client, &format!("SELECT oban_install('{}')", "p".repeat(52))), "22023");
    assert_eq!(code(&mut client, "SELECT oban_uninstall('nowhere')"), "3F000");
}

#[test]
fn two_sessions_install_at_once() {
    let cluster = Cluster::with_extension();
    assert_eq!(install_four_times_at_once(&cluster, "public"), [true; 4]);
    for i in 0..5 {
        cluster.client().batch_execute("DROP TRIGGER obanrs_jobs_insert ON oban_jobs").unwrap();
        assert_eq!(install_four_times_at_once(&cluster, "public"), [true; 4], "only the trigger was missing");
        assert_eq!(
            install_four_times_at_once(&cluster, &format!("new {i}")),
            [true; 4],
            "not even the schema"
        );
    }
}

/// A transaction with an old snapshot finds what others have installed since.
#[test]
fn install_looks_at_what_is_there_now() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE t (); CREATE SCHEMA a; CREATE SCHEMA b").unwrap();
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO t DEFAULT VALUES").unwrap();
    let mut other = cluster.client();
    other.batch_execute("SELECT oban_install('a'); CREATE TABLE b.oban_peers (LIKE a.oban_peers)").unwrap();
    client.batch_execute("SELECT oban_install('a'), oban_install('b'), oban_uninstall('a'); COMMIT").unwrap();
    let triggers =
        "SELECT string_agg(tgrelid::regclass::text, ' ') FROM pg_trigger WHERE tgname = 'obanrs_jobs_insert'";
    assert_eq!(client.one::<String>(triggers), "b.oban_jobs");
}

#[test]
fn install_says_when_it_can_not_use_what_is_there() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE oban_peers (name text PRIMARY KEY, node text, started_at timestamptz, expires_at timestamptz)").unwrap();
    assert_eq!(code(&mut client, "SELECT oban_install()"), "22023");
    client.batch_execute("CREATE SCHEMA v; CREATE VIEW v.oban_jobs AS SELECT 1 AS id").unwrap();
    assert_eq!(code(&mut client, "SELECT oban_install('v')"), "22023");
    let left = "SELECT count(*) FROM pg_class WHERE relname = 'oban_jobs' AND relkind = 'r'";
    assert_eq!(client.one::<i64>(left), 0, "nothing half done");
}

fn install_four_times_at_once(cluster: &Cluster, prefix: &str) -> Vec<bool> {
    let install = |mut client: Client| client.execute("SELECT oban_install($1)", &[&prefix]).is_ok();
    let results: Vec<bool> = std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..4).map(|_| scope.spawn(move || install(cluster.client()))).collect();
        sessions.into_iter().map(|s| s.join().unwrap()).collect()
    });
    results
}
