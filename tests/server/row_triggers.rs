//! The triggers on oban_jobs: which updates wake which queues, what a bulk load costs a statement, what
//! logical replication brings, and how the trigger of an earlier version is replaced.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use postgres::Client;

use crate::support::{Ask, Cluster, JOBS, code, wait_until};

/// The trigger that versions before 0.9.0 have made.
const OLD: &str = "AFTER INSERT ON {table} REFERENCING NEW TABLE AS obanrs_inserted
                   FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert()";

struct Listener(Client);

impl Listener {
    fn new(cluster: &Cluster) -> Self {
        let mut client = cluster.client();
        client.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
        Self(client)
    }

    /// Returns the queues that were woken since the last time, sorted.
    fn woken(&mut self) -> Vec<String> {
        let heard = crate::support::heard(&mut self.0);
        let queue = |payload: &str| {
            let payload: serde_json::Value = serde_json::from_str(payload).unwrap();
            payload["queue"].as_str().unwrap().to_owned()
        };
        let mut queues: Vec<_> = heard.iter().map(|message| queue(message.payload())).collect();
        queues.sort();
        queues
    }
}

#[test]
fn a_job_that_becomes_available_wakes_its_queue() {
    let cluster = Cluster::installed();
    let (mut client, mut listener) = (cluster.client(), Listener::new(&cluster));
    client.batch_execute("SELECT oban_install(stage => false)").unwrap(); // only this test's updates count
    let all = [
        "available",
        "suspended",
        "scheduled",
        "executing",
        "retryable",
        "completed",
        "discarded",
        "cancelled",
    ];
    for (id, state) in all.iter().enumerate() {
        let insert =
            format!("INSERT INTO oban_jobs (id, worker, queue, state) VALUES ({id}, 'w', 'q', '{state}')");
        client.batch_execute(&insert).unwrap();
        assert_eq!(listener.woken(), if *state == "available" { vec!["q"] } else { vec![] }, "{state}");
    }
    for state in all {
        for (to, wakes) in [("available", state != "available"), ("completed", false)] {
            client
                .batch_execute(&format!("TRUNCATE oban_jobs; INSERT INTO oban_jobs (id, worker, queue, state) VALUES (1, 'w', 'q', '{state}')"))
                .unwrap();
            listener.woken();
            client.batch_execute(&format!("UPDATE oban_jobs SET state = '{to}'")).unwrap();
            assert_eq!(listener.woken(), if wakes { vec!["q"] } else { vec![] }, "{state} to {to}");
        }
    }
    // Another queue of an available job is woken. What else changes wakes nothing.
    client.batch_execute("UPDATE oban_jobs SET state = 'available', queue = 'a'").unwrap();
    assert_eq!(listener.woken(), ["a"]);
    client.batch_execute("UPDATE oban_jobs SET queue = 'b', priority = 2").unwrap();
    assert_eq!(listener.woken(), ["b"]);
    client.batch_execute("UPDATE oban_jobs SET priority = 3, queue = 'b', args = '{\"a\": 1}'").unwrap();
    client.batch_execute("UPDATE oban_jobs SET state = 'executing', queue = 'c'").unwrap();
    assert_eq!(listener.woken(), Vec::<String>::new());
    // The state that a BEFORE trigger sets counts, not the one in the statement.
    client
        .batch_execute(
            "CREATE FUNCTION resume() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.state := 'available'; RETURN NEW; END $$;
             CREATE TRIGGER resume BEFORE UPDATE ON oban_jobs FOR EACH ROW EXECUTE FUNCTION resume();
             UPDATE oban_jobs SET priority = 0",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["c"]);
    client
        .batch_execute("DROP TRIGGER resume ON oban_jobs; UPDATE oban_jobs SET state = 'scheduled'")
        .unwrap();
    client
        .batch_execute(
            "MERGE INTO oban_jobs j USING (VALUES (1), (2)) v (id) ON j.id = v.id
             WHEN MATCHED THEN UPDATE SET state = 'available', queue = 'merged'
             WHEN NOT MATCHED THEN INSERT (id, worker, queue) VALUES (v.id, 'w', 'new')",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["merged", "new"]);
    client
        .batch_execute(
            "UPDATE oban_jobs SET state = 'executing';
             BEGIN; SAVEPOINT s; UPDATE oban_jobs SET state = 'available'; ROLLBACK TO s;
             UPDATE oban_jobs SET state = 'available' WHERE id = 1; COMMIT",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["merged"], "what was rolled back is not heard, and hides nothing");
    client
        .batch_execute(
            "BEGIN; SAVEPOINT s; INSERT INTO oban_jobs (id, worker, queue) VALUES (9, 'w', 'kept'); ROLLBACK TO s;
             INSERT INTO oban_jobs (id, worker, queue) VALUES (9, 'w', 'kept'); COMMIT",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["kept"], "an INSERT that was rolled back hides no other, and is not heard");
    client.batch_execute("DELETE FROM oban_jobs WHERE queue = 'kept'").unwrap();
    // The retry of Oban for Elixir.
    client.batch_execute("UPDATE oban_jobs SET state = 'retryable'").unwrap();
    client
        .batch_execute(
            "UPDATE oban_jobs AS o0 SET state = 'available', max_attempts = GREATEST(o0.max_attempts, o0.attempt + 1),
                 scheduled_at = now(), completed_at = NULL WHERE o0.state NOT IN ('available', 'executing')",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["merged", "new"]);
}

#[test]
fn a_job_that_moves_to_another_partition_wakes_its_queue() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE TABLE oban_jobs {JOBS} PARTITION BY LIST (state);
             CREATE TABLE todo PARTITION OF oban_jobs FOR VALUES IN ('available') PARTITION BY LIST (queue);
             CREATE TABLE todo_a PARTITION OF todo FOR VALUES IN ('a');
             CREATE TABLE todo_rest PARTITION OF todo DEFAULT;
             CREATE TABLE others PARTITION OF oban_jobs DEFAULT;
             SELECT oban_install()"
        ))
        .unwrap();
    let mut listener = Listener::new(&cluster);
    client
        .batch_execute(
            "INSERT INTO oban_jobs (id, queue, state) VALUES (1, 'a', 'executing'), (2, 'b', 'scheduled')",
        )
        .unwrap();
    assert_eq!(listener.woken(), Vec::<String>::new());
    client.batch_execute("UPDATE oban_jobs SET state = 'available'").unwrap();
    assert_eq!(listener.woken(), ["a", "b"]);
    client.batch_execute("UPDATE oban_jobs SET state = 'executing'").unwrap();
    assert_eq!(listener.woken(), Vec::<String>::new());
    // A partition that is attached has the triggers, and so have its own partitions.
    client
        .batch_execute(
            "CREATE TABLE later (LIKE oban_jobs INCLUDING DEFAULTS) PARTITION BY LIST (queue);
             CREATE TABLE later_c PARTITION OF later FOR VALUES IN ('c');
             ALTER TABLE oban_jobs ATTACH PARTITION later FOR VALUES IN ('suspended', 'retryable');
             INSERT INTO oban_jobs (id, queue, state) VALUES (3, 'c', 'retryable');
             UPDATE oban_jobs SET state = 'available' WHERE id = 3",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["c"]);
    // A detached one is no table of jobs.
    client
        .batch_execute("ALTER TABLE oban_jobs DETACH PARTITION todo; INSERT INTO todo_a (queue) VALUES ('a')")
        .unwrap();
    assert_eq!(listener.woken(), Vec::<String>::new());
    client.batch_execute("ALTER TABLE oban_jobs ATTACH PARTITION todo FOR VALUES IN ('available')").unwrap();
    client.batch_execute("INSERT INTO todo_a (queue) VALUES ('a')").unwrap();
    assert_eq!(listener.woken(), ["a"]);
}

/// A transition table is spooled whatever its trigger does with it: a statement that passes without obanrs
/// failed with 53400.
#[test]
fn a_bulk_load_writes_no_temporary_file() {
    let cluster = Cluster::installed();
    let (mut client, mut listener) = (cluster.client(), Listener::new(&cluster));
    client
        .batch_execute(
            "CREATE TABLE src AS SELECT i FROM generate_series(1, 60000) i;
             SET temp_file_limit = '1MB'; SET work_mem = '64kB'",
        )
        .unwrap();
    let files = "SELECT temp_files FROM pg_stat_database WHERE datname = 'postgres'";
    let before: i64 = client.one(files);
    client.batch_execute("INSERT INTO oban_jobs (worker) SELECT 'W' FROM src").unwrap();
    let mut copy = client.copy_in("COPY oban_jobs (worker, queue) FROM STDIN").unwrap();
    for _ in 0..60_000 {
        copy.write_all(b"w\tcopied\n").unwrap();
    }
    copy.finish().unwrap();
    client
        .batch_execute("UPDATE oban_jobs SET state = 'executing'; UPDATE oban_jobs SET state = 'available'")
        .unwrap();
    assert_eq!(
        listener.woken().into_iter().collect::<BTreeSet<_>>(),
        ["copied".into(), "default".into()].into()
    );
    client.batch_execute("RESET temp_file_limit; SELECT pg_stat_force_next_flush()").unwrap();
    assert_eq!(client.one::<i64>(files), before);
}

fn fires(client: &mut Client) -> String {
    client.one(
        "SELECT string_agg(tgname || ' ' || tgenabled::text, ', ' ORDER BY tgrelid::regclass::text, tgname)
         FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%'",
    )
}

#[test]
fn on_replica_is_kept_until_it_is_given() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let (origin, always) =
        ("obanrs_jobs_insert O, obanrs_jobs_update O", "obanrs_jobs_insert A, obanrs_jobs_update A");
    for (call, expected) in [
        ("SELECT oban_install()", origin),
        ("SELECT oban_install(on_replica => true)", always),
        ("SELECT oban_install(on_replica => true)", always),
        ("SELECT oban_install()", always),
        ("DROP TRIGGER obanrs_jobs_update ON oban_jobs; SELECT oban_install()", always),
        ("SELECT oban_install(on_replica => false)", origin),
        (
            "ALTER TABLE oban_jobs DISABLE TRIGGER obanrs_jobs_insert; SELECT oban_install(on_replica => false)",
            "obanrs_jobs_insert D, obanrs_jobs_update O",
        ),
        ("SELECT oban_install(on_replica => true)", always),
        (
            "ALTER TABLE oban_jobs ENABLE REPLICA TRIGGER obanrs_jobs_insert; SELECT oban_install(on_replica => false)",
            origin,
        ),
        ("SELECT oban_uninstall(); SELECT oban_install(on_replica => true)", always),
    ] {
        client.batch_execute(call).unwrap();
        assert_eq!(fires(&mut client), expected, "{call}");
    }
    // A table in use is not locked if nothing changes.
    let mut other = cluster.client();
    other.batch_execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    client.batch_execute("SELECT oban_install(on_replica => true)").unwrap();
    assert_eq!(code(&mut client, "SELECT oban_install(on_replica => false)"), "55P03");
    other.batch_execute("COMMIT").unwrap();
    let mut listener = Listener::new(&cluster);
    client
        .batch_execute(
            "SET session_replication_role = replica; INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'r')",
        )
        .unwrap();
    assert_eq!(listener.woken(), ["r"]);
    client.batch_execute("RESET session_replication_role; SELECT oban_install(on_replica => false)").unwrap();
    client
        .batch_execute(
            "SET session_replication_role = replica; INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'r')",
        )
        .unwrap();
    assert_eq!(listener.woken(), Vec::<String>::new());
}

/// What a user has disabled on a single partition stays disabled. All else follows the call.
#[test]
fn a_partitions_trigger_that_is_off_stays_off() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE TABLE oban_jobs {JOBS} PARTITION BY LIST (queue);
             CREATE TABLE a PARTITION OF oban_jobs FOR VALUES IN ('a');
             CREATE TABLE b PARTITION OF oban_jobs DEFAULT PARTITION BY LIST (queue);
             CREATE TABLE bb PARTITION OF b DEFAULT; SELECT oban_install()"
        ))
        .unwrap();
    let states = "SELECT string_agg(tgrelid::regclass || ' ' || tgenabled::text, ' ' ORDER BY tgname, tgrelid::regclass::text)
                  FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%'";
    for (change, on_replica, expected) in [
        ("", "NULL", "a O b O bb O oban_jobs O"),
        ("ALTER TABLE a DISABLE TRIGGER {t}", "false", "a D b O bb O oban_jobs O"),
        ("", "true", "a D b A bb A oban_jobs A"),
        ("", "NULL", "a D b A bb A oban_jobs A"),
        ("", "false", "a D b O bb O oban_jobs O"),
        // What a user has set on a partition reaches no further, and is changed by a call about it.
        ("ALTER TABLE b ENABLE ALWAYS TRIGGER {t}", "NULL", "a D b A bb A oban_jobs O"),
        ("", "false", "a D b O bb O oban_jobs O"),
        ("ALTER TABLE bb ENABLE REPLICA TRIGGER {t}", "NULL", "a D b O bb R oban_jobs O"),
        ("", "false", "a D b O bb O oban_jobs O"),
        ("ALTER TABLE bb ENABLE REPLICA TRIGGER {t}", "true", "a D b A bb A oban_jobs A"),
        ("ALTER TABLE a ENABLE TRIGGER {t}", "NULL", "a O b A bb A oban_jobs A"),
        ("", "true", "a A b A bb A oban_jobs A"),
        // What is disabled as a whole is enabled by on_replica => true alone.
        ("ALTER TABLE oban_jobs DISABLE TRIGGER {t}", "false", "a D b D bb D oban_jobs D"),
        ("ALTER TABLE b ENABLE TRIGGER {t}", "false", "a D b O bb O oban_jobs D"),
        ("", "true", "a A b A bb A oban_jobs A"),
        ("ALTER TABLE b DISABLE TRIGGER {t}", "false", "a O b D bb D oban_jobs O"),
    ] {
        for trigger in ["obanrs_jobs_insert", "obanrs_jobs_update"] {
            client.batch_execute(&change.replace("{t}", trigger)).unwrap();
        }
        let call = format!("SELECT oban_install(on_replica => {on_replica})");
        client.batch_execute(&call).unwrap();
        assert_eq!(client.one::<String>(states), format!("{expected} {expected}"), "{change}; {call}");
        // The same call finds nothing to do, and takes no lock.
        let mut other = cluster.client();
        other.batch_execute("BEGIN; INSERT INTO oban_jobs (queue) VALUES ('a')").unwrap();
        client.batch_execute(&call).unwrap();
        other.batch_execute("ROLLBACK").unwrap();
    }
    // A query of the session may use the partition meanwhile.
    client
        .batch_execute(
            "BEGIN; DECLARE a CURSOR FOR SELECT FROM a; FETCH a; SELECT oban_install(on_replica => true);
             FETCH a; ROLLBACK",
        )
        .unwrap();
    // Another reason to replace the triggers changes nothing of that, either.
    client
        .batch_execute(
            "ALTER TABLE a ENABLE ALWAYS TRIGGER obanrs_jobs_update; DROP TRIGGER obanrs_jobs_insert ON oban_jobs;
             SELECT oban_install()",
        )
        .unwrap();
    let expected = "a O b O bb O oban_jobs O a A b D bb D oban_jobs O";
    assert_eq!(client.one::<String>(states), expected);
    let off: String = client.one(
        "SELECT string_agg(item, ', ' ORDER BY item) FROM oban_check() WHERE detail LIKE 'disabled, so that what %'",
    );
    assert!(off.contains("b") && !off.contains("oban_jobs"), "{off}");
    // A partition's own trigger of an earlier version.
    client.batch_execute("SELECT oban_uninstall()").unwrap();
    for table in ["oban_jobs", "a", "b", "bb"] {
        let old = OLD.replace("{table}", table);
        client.batch_execute(&format!("CREATE TRIGGER obanrs_jobs_insert {old}")).unwrap();
    }
    client
        .batch_execute(
            "ALTER TABLE a DISABLE TRIGGER obanrs_jobs_insert; ALTER TABLE bb ENABLE ALWAYS TRIGGER obanrs_jobs_insert;
             SELECT oban_install()",
        )
        .unwrap();
    assert_eq!(client.one::<String>(states), "a D b O bb O oban_jobs O a O b O bb O oban_jobs O");
}

/// A trigger of the table of leaders stays disabled when another one is put back.
#[test]
fn a_guard_that_is_off_stays_off() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "ALTER TABLE oban_peers DISABLE TRIGGER obanrs_peers_guard;
             DROP TRIGGER obanrs_peers_end ON oban_peers; SELECT oban_install()",
        )
        .unwrap();
    let states: String = client.one(
        "SELECT string_agg(tgname || ' ' || tgenabled::text, ', ' ORDER BY tgname) FROM pg_trigger
         WHERE tgname LIKE 'obanrs_peers%'",
    );
    assert_eq!(states, "obanrs_peers_end O, obanrs_peers_guard D, obanrs_peers_rows O");
}

#[test]
fn rows_that_logical_replication_brings_wake_queues_if_asked() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "wal_level = logical"]);
    let mut source = cluster.client();
    source.batch_execute("CREATE DATABASE copy").unwrap();
    source.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let mut copy = cluster.client_of("copy");
    copy.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(on_replica => true)").unwrap();
    source.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'first')").unwrap();
    source.batch_execute("CREATE PUBLICATION jobs FOR TABLE oban_jobs").unwrap();
    source.batch_execute("SELECT pg_create_logical_replication_slot('jobs', 'pgoutput')").unwrap();
    let start: i64 = copy.one("SELECT oban_position()");
    let connection = format!("host={} user=postgres dbname=postgres", cluster.socket_folder());
    copy.batch_execute(&format!(
        "CREATE SUBSCRIPTION jobs CONNECTION '{connection}' PUBLICATION jobs WITH (create_slot = false, slot_name = jobs)"
    ))
    .unwrap();
    let woken = format!(
        "SELECT COALESCE(string_agg(m -> 'payload' ->> 'queue', ' '), '')
         FROM oban_poll('{{insert}}', {start}), jsonb_array_elements(messages) m"
    );
    wait_until("the first copy wakes", || copy.one::<String>(&woken) == "first");
    source.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'second')").unwrap();
    wait_until("an insert wakes", || copy.one::<String>(&woken) == "first second");
    source.batch_execute("UPDATE oban_jobs SET state = 'executing'").unwrap();
    source.batch_execute("UPDATE oban_jobs SET state = 'available' WHERE queue = 'second'").unwrap();
    wait_until("an update wakes", || copy.one::<String>(&woken) == "first second second");
    copy.batch_execute("SELECT oban_install(on_replica => false)").unwrap();
    source.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'third')").unwrap();
    wait_until("the row is there", || copy.one("SELECT count(*) = 3 FROM oban_jobs"));
    assert_eq!(copy.one::<String>(&woken), "first second second");
    copy.batch_execute("DROP SUBSCRIPTION jobs").unwrap();
}

/// The trigger of an earlier version works until oban_install() replaces it, on each partition in one
/// transaction. Each committed row wakes its queue, before, during and after that.
#[test]
fn the_old_trigger_is_replaced_while_rows_flow() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(&format!(
            "CREATE TABLE oban_jobs {JOBS} PARTITION BY HASH (queue);
             CREATE TABLE jobs_0 PARTITION OF oban_jobs FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE jobs_1 PARTITION OF oban_jobs FOR VALUES WITH (MODULUS 2, REMAINDER 1) PARTITION BY HASH (queue);
             CREATE TABLE jobs_11 PARTITION OF jobs_1 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
             SELECT oban_install(); SELECT oban_uninstall()"
        ))
        .unwrap();
    let tables = ["oban_jobs", "jobs_0", "jobs_1", "jobs_11"];
    for round in 0..5 {
        for table in tables {
            let old = OLD.replace("{table}", table);
            client.batch_execute(&format!("CREATE TRIGGER obanrs_jobs_insert {old}")).unwrap();
        }
        let start: i64 = client.one("SELECT oban_position()");
        let (stop, number) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (cluster, stop, number) = (&cluster, &stop, &number);
                scope.spawn(move || {
                    let mut client = cluster.client();
                    while !stop.load(Ordering::Relaxed) {
                        let n = number.fetch_add(1, Ordering::Relaxed);
                        // A queue of its own for each row, so that each wake-up counts.
                        let table = if writer == 0 { "oban_jobs" } else { "jobs_1" };
                        let sql = format!("INSERT INTO {table} (queue) VALUES ('{round} {writer} {n}')");
                        match client.batch_execute(&sql) {
                            Ok(()) => {}
                            // The row belongs to another partition.
                            Err(e) if e.code().is_some_and(|code| code.code() == "23514") => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                });
            }
            wait_until("rows flow", || number.load(Ordering::Relaxed) > 200);
            client.batch_execute("SELECT oban_install()").unwrap();
            let replaced = number.load(Ordering::Relaxed);
            wait_until("more rows flow", || number.load(Ordering::Relaxed) > replaced + 200);
            stop.store(true, Ordering::Relaxed);
        });
        let rows: i64 = client.one(&format!("SELECT count(*) FROM oban_jobs WHERE queue LIKE '{round} %'"));
        let woken: i64 = client.one(&format!(
            "SELECT count(*) FROM oban_poll('{{insert}}', {start}, 1000000), jsonb_array_elements(messages) m
             WHERE m -> 'payload' ->> 'queue' LIKE '{round} %'"
        ));
        assert!(rows > 200);
        assert_eq!(woken, rows, "exactly one wake-up for each row");
        let row_triggers: i64 =
            client.one("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%' AND tgtype & 1 = 1");
        assert_eq!(row_triggers, 8);
        assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%'"), 8);
        client.batch_execute("SELECT oban_uninstall()").unwrap();
    }
}

/// oban_install gives up after 2 s, and the old trigger is there as it was.
#[test]
fn a_replacement_that_waits_too_long_changes_nothing() {
    let cluster = Cluster::installed();
    let (mut client, mut listener) = (cluster.client(), Listener::new(&cluster));
    let old = OLD.replace("{table}", "oban_jobs");
    client
        .batch_execute(&format!(
            "SELECT oban_uninstall(); SELECT oban_install(); DROP TRIGGER obanrs_jobs_update ON oban_jobs;
             CREATE OR REPLACE TRIGGER obanrs_jobs_insert {old}"
        ))
        .unwrap();
    let mut other = cluster.client();
    other.batch_execute("BEGIN; INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'other')").unwrap();
    assert_eq!(code(&mut client, "SELECT oban_install()"), "55P03");
    other.batch_execute("COMMIT; INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'old')").unwrap();
    assert_eq!(listener.woken(), ["old", "other"]);
    let definition = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%'";
    assert!(client.one::<String>(definition).contains("FOR EACH STATEMENT"));
    client.batch_execute("BEGIN; SELECT oban_install(); ROLLBACK").unwrap();
    assert!(client.one::<String>(definition).contains("FOR EACH STATEMENT"));
    client
        .batch_execute("SELECT oban_install(); INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'new')")
        .unwrap();
    assert_eq!(listener.woken(), ["new"]);
}

/// A dump that was made of an earlier version has its trigger.
#[test]
fn a_dump_of_an_earlier_version_is_restored() {
    let cluster = Cluster::with_extension();
    let mut client = super::upgrade::installed(&cluster, "0.4.0");
    let old = OLD.replace("{table}", "oban_jobs");
    client
        .batch_execute(&format!(
            "DROP TRIGGER obanrs_jobs_update ON oban_jobs; CREATE OR REPLACE TRIGGER obanrs_jobs_insert {old}"
        ))
        .unwrap();
    let folder = cluster.socket_folder().to_owned();
    let dump = cluster
        .program("pg_dump")
        .args(["-h", &folder, "-U", "postgres", "-d", "from 0.4.0"])
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    cluster.client().batch_execute("CREATE DATABASE restored").unwrap();
    let mut psql = cluster
        .program("psql")
        .args(["-h", &folder, "-U", "postgres", "-d", "restored", "-v", "ON_ERROR_STOP=1", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
    assert!(psql.wait().unwrap().success());
    let mut restored = cluster.client_of("restored");
    let mut listener = cluster.client_of("restored");
    listener.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    for (sql, heard) in [
        ("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')", 1),
        (
            "UPDATE oban_jobs SET state = 'executing'; UPDATE oban_jobs SET state = 'available' WHERE queue = 'q'",
            0,
        ),
        (
            "SELECT oban_install(); UPDATE oban_jobs SET state = 'executing'; UPDATE oban_jobs SET state = 'available' WHERE queue = 'q'",
            1,
        ),
        ("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')", 1),
    ] {
        restored.batch_execute(sql).unwrap();
        assert_eq!(crate::support::heard(&mut listener).len(), heard, "{sql}");
    }
    let wrong = "SELECT COALESCE(string_agg(item || ': ' || detail, '; '), '') FROM oban_check() WHERE NOT ok AND item LIKE '%public%'";
    assert_eq!(restored.one::<String>(wrong), "");
}

/// A table of another name may have the trigger, too. For a role that may not publish in the schema, it
/// wakes nobody.
#[test]
fn a_trigger_on_another_table_is_no_way_around_rights() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute("CREATE ROLE stranger LOGIN; GRANT CREATE ON SCHEMA public TO stranger; CREATE ROLE app LOGIN; GRANT INSERT ON oban_jobs TO app")
        .unwrap();
    let mut listener = Listener::new(&cluster);
    let mut stranger = cluster.client_as("postgres", "stranger");
    assert_eq!(code(&mut stranger, "SELECT oban_notify('insert', '{}')"), "42501");
    for each in ["FOR EACH ROW", "REFERENCING NEW TABLE AS n FOR EACH STATEMENT"] {
        stranger
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS mine; CREATE TABLE mine (queue text, state text); GRANT INSERT ON mine TO app;
                 CREATE TRIGGER t AFTER INSERT ON mine {each} EXECUTE FUNCTION obanrs_jobs_insert();
                 INSERT INTO mine VALUES ('spoof', 'available')"
            ))
            .unwrap();
        assert_eq!(listener.woken(), Vec::<String>::new(), "{each}");
        let mut app = cluster.client_as("postgres", "app");
        app.batch_execute("INSERT INTO mine VALUES ('q', 'available')").unwrap();
        assert_eq!(listener.woken(), ["q"], "{each}");
    }
}
