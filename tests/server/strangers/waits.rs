//! For which locks and tables does an election wait, and which other elections do they delay?

use super::{Strangers, assert_no_leaks, complaints, installed};
use crate::support::elixir::{Form, upsert};
use crate::support::{Ask, Cluster, wait_until};

/// REINDEX CONCURRENTLY keeps a second index of the same shape for as long as an old transaction runs.
#[test]
fn elections_go_on_while_an_index_is_built_anew() {
    let mut strangers = Strangers::new();
    strangers.tenant.batch_execute("CREATE INDEX i ON t.oban_peers (expires_at)").unwrap();
    let mut old = strangers.cluster.client();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t.oban_peers").unwrap();
    let mut builder = strangers.cluster.client_as("postgres", "t");
    let built = std::thread::spawn(move || builder.batch_execute("REINDEX TABLE CONCURRENTLY t.oban_peers"));
    let waits = "SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'";
    wait_until("it waits for the old transaction", || strangers.root.one(waits));
    let id = strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers.renew_and_leave(id, "beside it");
    assert_eq!(strangers.obstacles(), None);
    old.batch_execute("ROLLBACK").unwrap();
    built.join().unwrap().unwrap();
    let id = strangers.join();
    wait_until("it leads by the new index", || strangers.leads());
    strangers.renew_and_leave(id, "by the new index");
    assert_no_leaks(&strangers.cluster);
}

/// A tenant locks all of its many tables. The keeper waits a moment for one table. It must not wait for each
/// of them while other prefixes have no leader.
#[test]
fn many_locked_tables_are_not_waited_for_one_by_one() {
    const TABLES: usize = 40;
    let mut strangers = Strangers::with(&["log_lock_waits = on", "deadlock_timeout = 10ms"]);
    let prefixes: Vec<String> = (0..TABLES).map(|i| format!("t{i}")).collect();
    for prefix in &prefixes {
        let join = format!(
            "CREATE SCHEMA {prefix}; SELECT oban_install('{prefix}'); SELECT oban_join('a', prefix => '{prefix}')"
        );
        strangers.tenant.batch_execute(&join).unwrap();
    }
    let everywhere = format!("SELECT count(*) = {TABLES} FROM oban_leadership");
    wait_until("each has a leader", || strangers.root.one(&everywhere));
    let tables: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix}.oban_peers")).collect();
    let lock = format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", "));
    strangers.tenant.batch_execute(&lock).unwrap();
    // Each leader's lease is due for a renewal twice a second.
    wait_until("the keeper has been at all of them", || {
        complaints(&strangers.cluster).iter().filter(|line| line.contains("wait for a lock")).count()
            == TABLES
    });
    strangers.others_elect();
    strangers.tenant.batch_execute("COMMIT").unwrap();
    strangers.others_elect();
    let log = strangers.cluster.log();
    let waits =
        log.lines().filter(|l| l.contains("obanrs keeper") && l.contains("still waiting for")).count();
    assert!((1..TABLES / 2).contains(&waits), "the keeper waited for {waits} of {TABLES} locked tables");
}

/// The keeper does not read a large table again after each of many changes.
#[test]
fn a_large_table_takes_a_small_share_of_the_keepers_time() {
    const CHANGES: i64 = 60;
    let mut strangers = Strangers::new();
    strangers
        .tenant
        .batch_execute(
            "ALTER TABLE t.oban_peers DISABLE TRIGGER USER;
             INSERT INTO t.oban_peers
                 SELECT 'n' || i, 'x', now(), 'infinity', 1, NULL FROM generate_series(1, 400000) i;
             ALTER TABLE t.oban_peers ENABLE TRIGGER USER",
        )
        .unwrap();
    let scans = "SELECT pg_stat_get_numscans('t.oban_peers'::regclass)";
    let before: i64 = strangers.root.one(scans);
    let change = "INSERT INTO t.oban_peers VALUES (gen_random_uuid(), 'x', now(), now() + interval '1 hour')";
    strangers.tenant.batch_execute(change).unwrap();
    wait_until("the keeper has read it", || strangers.root.one::<i64>(scans) > before);
    let before: i64 = strangers.root.one(scans);
    for _ in 0..CHANGES {
        strangers.tenant.batch_execute(change).unwrap();
        strangers.others_elect();
    }
    let read = strangers.root.one::<i64>(scans) - before;
    assert!(read < CHANGES / 2, "it was read {read} times for {CHANGES} changes");
    wait_until("it is read at last", || strangers.root.one::<i64>(scans) - before > read);
}

/// A transaction can lock an index without its table.
#[test]
fn a_locked_index_is_waited_for_by_nobody_else() {
    let mut strangers = Strangers::new();
    for sql in [
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE s LOCATION ''",
        "GRANT CREATE ON TABLESPACE s TO t",
    ] {
        strangers.root.batch_execute(sql).unwrap();
    }
    strangers.tenant.batch_execute("BEGIN; ALTER INDEX t.oban_peers_pkey SET TABLESPACE s").unwrap();
    // oban_check answers a monitoring program.
    strangers.root.batch_execute("SET statement_timeout = '10s'").unwrap();
    let said = strangers.obstacles().expect("something is in the way");
    assert!(said.contains("lock"), "{said}");
    let mut member = strangers.cluster.client();
    member.batch_execute("SELECT oban_join('a', lease => '1 hour', prefix => 't')").unwrap();
    strangers.others_elect();
    strangers.tenant.batch_execute("COMMIT").unwrap();
    wait_until("it leads", || strangers.leads());
    assert_eq!(strangers.obstacles(), None);
}

/// The statement of a foreign node's transaction that is open when the keeper elects, and whether the node
/// had a row before.
const FOREIGN: [(&str, bool); 6] = [
    ("INSERT INTO oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour')", false),
    ("upsert", false),
    (
        "INSERT INTO oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour') ON CONFLICT DO NOTHING",
        false,
    ),
    ("DELETE FROM oban_peers WHERE name = 'Oban'", true),
    ("upsert", true),
    ("UPDATE oban_peers SET expires_at = expires_at + interval '1 s' WHERE name = 'Oban'", true),
];

#[test]
fn an_open_transaction_of_a_foreign_node_delays_its_own_name_only() {
    let cluster = Cluster::installed();
    let (mut foreign, mut ours, mut watch) = (cluster.client(), cluster.client(), cluster.client());
    for (statement, has_row) in FOREIGN {
        let statement = match statement {
            "upsert" => upsert(Form::ByNode, "timezone('UTC', clock_timestamp())").replace("$1", "'f'"),
            own => own.to_owned(),
        };
        for end in ["COMMIT", "ROLLBACK"] {
            let what = format!("{statement}, {end}, with a row before: {has_row}");
            if has_row {
                let row = "INSERT INTO oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour')";
                foreign.batch_execute(row).unwrap();
            }
            foreign.batch_execute(&format!("BEGIN; {statement}")).unwrap();
            let id: i64 = ours.one("SELECT oban_join('a', lease => '1 hour', candidate => true)");
            // Neither another name nor a member of this name waits for that transaction.
            let other: i64 = watch.one("SELECT oban_join('b', 'Other', '1 hour')");
            let leads = "SELECT oban_is_leader('Other', node => 'b')";
            wait_until("another name has a leader", || watch.one(leads));
            watch.query_one("SELECT oban_leave($1)", &[&other]).unwrap();
            foreign.batch_execute(end).unwrap();
            wait_until(&format!("a member leads: {what}"), || {
                watch.one("SELECT count(*) = 1 FROM oban_leader() WHERE node IN ('a', 'f')")
            });
            // The member leads as soon as the foreign node resigns.
            foreign.batch_execute("DELETE FROM oban_peers WHERE name = 'Oban' AND node = 'f'").unwrap();
            wait_until(&format!("ours leads: {what}"), || watch.one("SELECT oban_is_leader(node => 'a')"));
            ours.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
            wait_until("no row is left", || watch.one("SELECT count(*) = 0 FROM oban_peers"));
        }
    }
    assert_eq!(complaints(&cluster), [] as [String; 0]);
    let log = cluster.log();
    assert!(!log.contains(" ERROR: "), "{log}");
    assert_no_leaks(&cluster);
}

/// Foreign nodes write node names of any length, and names as long as an index entry can be.
#[test]
fn long_rows_of_foreign_nodes_are_no_burden_to_ours() {
    let cluster = installed(&[]);
    let (mut ours, mut foreign) = (cluster.client(), cluster.client());
    foreign
        .batch_execute(
            "INSERT INTO oban_peers SELECT 'long', string_agg(md5(i::text), ''), now(), now() + interval '1 hour'
                 FROM generate_series(1, 100000) i;
             INSERT INTO oban_peers SELECT string_agg(md5(i::text), ''), 'n', now(), now() + interval '1 hour'
                 FROM generate_series(1, 60) i;
             INSERT INTO oban_peers VALUES (repeat('n', 100000), 'n', now(), now() + interval '1 hour')",
        )
        .unwrap();
    ours.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || ours.one("SELECT oban_is_leader(node => 'a')"));
    let joined: i64 = ours.one("SELECT oban_join('b', 'long', '1 hour', candidate => true)");
    assert!(!ours.one::<bool>("SELECT oban_is_leader('long', node => 'b')"), "that name has a leader");
    for _ in 0..20 {
        let ends = "SELECT expires_at::text FROM oban_peers WHERE name = 'Oban'";
        let before: String = ours.one(ends);
        wait_until("the lease is renewed", || ours.one::<String>(ends) != before);
        foreign
            .batch_execute(
                "UPDATE oban_peers SET expires_at = expires_at + interval '1 s' WHERE name <> 'Oban'",
            )
            .unwrap();
    }
    foreign.batch_execute("DELETE FROM oban_peers WHERE name = 'long'").unwrap();
    wait_until("ours leads", || ours.one("SELECT oban_is_leader('long', node => 'b')"));
    ours.query_one("SELECT oban_leave($1)", &[&joined]).unwrap();
    assert_eq!(complaints(&cluster), [] as [String; 0]);
    assert_no_leaks(&cluster);
}
