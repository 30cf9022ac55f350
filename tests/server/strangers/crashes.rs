//! Does the table agree with its indexes after crashes under load?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use postgres::Client;

use crate::support::elixir::{Form, upsert};
use crate::support::{Ask, Cluster, wait_for, wait_until};

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// Runs `work` again and again until `stop`, with a new connection after each lost one. Returns how often it
/// succeeded. Ignores only errors that other threads' work can cause.
fn worker(
    cluster: &Arc<Cluster>,
    stop: &Arc<AtomicBool>,
    mut work: impl FnMut(&mut Client) -> Result<(), postgres::Error> + Send + 'static,
) -> JoinHandle<u32> {
    let (cluster, stop) = (cluster.clone(), stop.clone());
    std::thread::spawn(move || {
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut client) = cluster.try_client("postgres", "postgres") else { continue };
            while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                match work(&mut client) {
                    Ok(()) => done += 1,
                    Err(e) => {
                        let Some(e) = e.as_db_error().filter(|e| e.severity() == "ERROR") else { continue };
                        let expected =
                            ["40001", "40P01", "55000", "23505", "55P03", "42P07", "42704", "25P02"];
                        let code = e.code().code();
                        assert!(expected.contains(&code) || code.starts_with("57"), "{e:?}");
                    }
                }
            }
        }
        done
    })
}

/// Asserts that the table and its indexes have the same rows. Where amcheck is installed, it has to agree.
fn assert_stored_right(client: &mut Client) {
    let indexes = client
        .query(
            "SELECT c.relname::text, a.amname::text, pg_get_indexdef(c.oid, 1, false), c.oid
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
             WHERE i.indrelid = 'oban_peers'::regclass AND i.indisvalid",
            &[],
        )
        .unwrap();
    assert!(indexes.len() >= 4, "{} indexes", indexes.len());
    let amcheck: bool = client.one("SELECT count(*) = 1 FROM pg_available_extensions WHERE name = 'amcheck'");
    if amcheck {
        client.batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck").unwrap();
        let wrong = client.query("SELECT msg FROM verify_heapam('oban_peers')", &[]).unwrap();
        assert_eq!(wrong.iter().map(|row| row.get(0)).collect::<Vec<String>>(), [] as [String; 0]);
    }
    for index in indexes {
        let (name, method, column): (String, String, String) = (index.get(0), index.get(1), index.get(2));
        let oid: u32 = index.get(3);
        if method == "btree" && amcheck {
            client
                .query("SELECT bt_index_check($1::oid::regclass, true)", &[&oid])
                .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
        // Each value of the table is looked up by itself.
        let by = |client: &mut Client, how: &str| -> (i64, i64, String) {
            client.batch_execute(how).unwrap();
            let row = client
                .query_one(
                    &format!(
                        "SELECT count(*), count(DISTINCT p.ctid), coalesce(string_agg(p.ctid::text, ' ' ORDER BY p.ctid), '')
                         FROM (SELECT DISTINCT {column} AS v FROM oban_peers) x, LATERAL (SELECT ctid FROM oban_peers WHERE {column} = x.v OFFSET 0) p"
                    ),
                    &[],
                )
                .unwrap();
            (row.get(0), row.get(1), row.get(2))
        };
        // Both scans have one snapshot, because leases end and the keeper goes on.
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
        let sequential = by(
            client,
            "SET enable_seqscan = on; SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
        );
        let bitmap = if method == "brin" { "on" } else { "off" };
        let indexed = by(
            client,
            &format!("SET enable_seqscan = off; SET enable_indexscan = on; SET enable_bitmapscan = {bitmap}"),
        );
        client.batch_execute("ROLLBACK").unwrap();
        assert_eq!(sequential, indexed, "index {name} on {column}");
        assert_eq!(sequential.0, sequential.1, "index {name} on {column}");
    }
    let names: i64 = client.one("SELECT count(*) - count(DISTINCT name) FROM oban_peers");
    assert_eq!(names, 0, "each name has one row");
}

/// Runs all that writes the table and all that rebuilds it, and crashes the server in the midst of it.
fn storage(kills: u32) {
    let settings = [
        "shared_preload_libraries = 'obanrs'",
        "obanrs.lease = 1s",
        "restart_after_crash = on",
        "deadlock_timeout = 100ms",
    ];
    let cluster = Arc::new(Cluster::start(&settings));
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); ALTER TABLE oban_peers ADD COLUMN gone text, ADD COLUMN note text;
             ALTER TABLE oban_peers DROP COLUMN gone; ALTER TABLE oban_peers SET LOGGED;
             CREATE INDEX by_end ON oban_peers (expires_at); CREATE INDEX by_node ON oban_peers USING hash (node);
             CREATE INDEX by_block ON oban_peers USING brin (term) WITH (pages_per_range = 1); CREATE INDEX by_term ON oban_peers (term) INCLUDE (boot);
             INSERT INTO oban_peers SELECT 'long', string_agg(md5(i::text), ''), now(), now() + interval '1 hour' FROM generate_series(1, 1000) i",
        )
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for i in 0..2u64 {
        let mut dice = Dice(i);
        workers.push(("members", worker(&cluster, &stop, move |client| {
            let name = format!("n{}", dice.below(4));
            let node = format!("m{i}");
            let join = "SELECT oban_join($1, $2, '1 s', replace => true, candidate => true)";
            let id: i64 = client.query_one(join, &[&node, &name])?.get(0);
            for _ in 0..dice.below(6) {
                let term: Option<i64> = client.query_one("SELECT oban_renew($1)", &[&id])?.get(0);
                if let Some(term) = term {
                    client.batch_execute(&format!("BEGIN; SELECT oban_fence({term}, '{name}'); SAVEPOINT s; SELECT oban_fence({term}, '{name}'); ROLLBACK TO s; COMMIT"))
                        .or_else(|e| client.batch_execute("ROLLBACK").and(Err(e)))?;
                }
            }
            client.query_one("SELECT oban_leave($1)", &[&id]).map(drop)
        })));
    }
    let mut dice = Dice(7);
    workers.push((
        "foreign nodes",
        worker(&cluster, &stop, move |client| {
            let form = [Form::ByName, Form::ByNode, Form::DoNothing][dice.below(3) as usize];
            let name = format!("'n{}'", dice.below(5));
            let sql = upsert(form, "timezone('UTC', clock_timestamp())")
                .replace("'Oban'", &name)
                .replace("$1", "'f'");
            let end = if dice.below(4) == 0 { "ROLLBACK" } else { "COMMIT" };
            client
                .batch_execute(&format!("BEGIN; {sql}; {end}"))
                .or_else(|e| client.batch_execute("ROLLBACK").and(Err(e)))?;
            client.batch_execute(&match dice.below(3) {
                0 => format!("DELETE FROM oban_peers WHERE name = {name} AND node = 'f'"),
                1 => format!("INSERT INTO oban_peers VALUES ({name}, 'g', now(), now() + interval '1 s')"),
                _ => "UPDATE oban_peers SET expires_at = expires_at + interval '1 ms' WHERE name = 'long'"
                    .to_owned(),
            })
        }),
    ));
    let mut dice = Dice(8);
    workers.push((
        "builders",
        worker(&cluster, &stop, move |client| {
            client.batch_execute(
                [
                    "VACUUM (INDEX_CLEANUP on) oban_peers",
                    "VACUUM (FREEZE) oban_peers",
                    "REINDEX TABLE CONCURRENTLY oban_peers",
                    "CREATE INDEX CONCURRENTLY extra ON oban_peers (started_at, name)",
                    "DROP INDEX CONCURRENTLY IF EXISTS extra",
                    "CREATE INDEX extra ON oban_peers (started_at)",
                    "DROP INDEX IF EXISTS extra",
                    "REINDEX TABLE oban_peers",
                    "ALTER TABLE oban_peers SET (fillfactor = 50)",
                ][dice.below(9) as usize],
            )
        }),
    ));
    let mut dice = Dice(9);
    for _ in 0..kills {
        let mut watch = wait_for("the server is up", || cluster.try_client("postgres", "postgres").ok());
        // So many bytes of WAL were written since the last crash.
        let written = "SELECT pg_current_wal_lsn() - '0/0' > $1::text::numeric";
        let most: String = watch.one("SELECT (pg_current_wal_lsn() - '0/0' + 300000)::text");
        wait_until("there is something to lose", || {
            watch.query_one(written, &[&most]).is_ok_and(|row| row.get(0))
        });
        let of = if dice.below(2) == 0 {
            "backend_type = 'obanrs keeper'"
        } else {
            "backend_type = 'client backend' AND pid <> pg_backend_pid() AND state = 'active'"
        };
        let victim = watch.query_opt(&format!("SELECT pid FROM pg_stat_activity WHERE {of} LIMIT 1"), &[]);
        let Ok(Some(victim)) = victim else { continue };
        cluster.signal("KILL", victim.get(0));
        wait_until("the server has noticed", || {
            watch.is_closed() || watch.batch_execute("SELECT 1").is_err()
        });
    }
    let mut watch = wait_for("the server is up", || cluster.try_client("postgres", "postgres").ok());
    let keeper = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'obanrs keeper'";
    wait_until("there is a keeper", || watch.one(keeper));
    let mut last = wait_for("a session joins", || {
        watch
            .query_one("SELECT oban_join('last', 'last', '1 hour', replace => true, candidate => true)", &[])
            .ok()
    });
    wait_until("elections go on", || {
        watch.query_one("SELECT oban_is_leader('last', node => 'last')", &[]).is_ok_and(|row| row.get(0))
    });
    last = watch.query_one("SELECT oban_leave($1)", &[&last.get::<_, i64>(0)]).unwrap();
    drop(last);
    stop.store(true, Ordering::Relaxed);
    for (what, thread) in workers {
        let done = thread.join().expect("only what was expected went wrong");
        assert!(done > 0, "{what} did nothing");
    }
    assert_stored_right(&mut watch);
    let log = cluster.log();
    let wrong =
        ["leak", "TRAP:", "PANIC", "signal 6", "signal 11", "still referenced", "missing chunk", "XX00"];
    let found: Vec<&str> = log.lines().filter(|line| wrong.iter().any(|word| line.contains(word))).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_table_and_its_indexes_agree_after_crashes_under_load() {
    storage(4);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_the_table_and_its_indexes_agree_after_crashes_under_load() {
    storage(60);
}
