//! What does a fence hold, for how long, and which rights does it test?

use postgres::Client;

use super::{assert_no_leaks, installed};
use crate::support::{Ask, Cluster, code, wait_until};

fn bound(client: &mut Client) -> (i64, i64) {
    let id: i64 = client.one("SELECT oban_join('a')");
    wait_until("it leads", || client.one("SELECT oban_is_leader(node => 'a')"));
    (id, client.one("SELECT oban_term()"))
}

/// Whether a deletion of the row waits for another transaction. The deletion is rolled back.
fn deletion_waits(client: &mut Client) -> bool {
    client.batch_execute("SET lock_timeout = '300ms'; BEGIN").unwrap();
    let waits = match client.batch_execute("DELETE FROM oban_peers WHERE name = 'Oban'") {
        Ok(()) => false,
        Err(e) => {
            assert_eq!(e.code().map(|code| code.code()), Some("55P03"), "{e:?}");
            true
        }
    };
    client.batch_execute("ROLLBACK").unwrap();
    waits
}

#[test]
fn a_fence_holds_through_renewals_before_beside_and_after_it() {
    let cluster = installed(&[]);
    let (mut ours, mut worker, mut deleter) = (cluster.client(), cluster.client(), cluster.client());
    let mut renewer = cluster.client();
    let (_, term) = bound(&mut ours);
    renewer.batch_execute("SET session_replication_role = replica").unwrap();
    let renewal = "UPDATE oban_peers SET expires_at = expires_at + interval '1 s'";
    let fence = format!("SELECT oban_fence({term})");
    let ends = "SELECT expires_at::text FROM oban_peers";
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let begin = format!("BEGIN ISOLATION LEVEL {level}; SELECT 1");
        // The renewal comes after the fence: the keeper's new version of the row takes the lock along.
        worker.batch_execute(&format!("{begin}; {fence}")).unwrap();
        let before: String = ours.one(ends);
        wait_until("it is renewed under the fence", || ours.one::<String>(ends) != before);
        assert!(deletion_waits(&mut deleter), "{level}: a renewal after the fence");
        worker.batch_execute("COMMIT").unwrap();
        assert!(!deletion_waits(&mut deleter), "{level}: the fence is over");
        // The renewal comes before the fence: there is no 40001, although the snapshot is older than the
        // newest version of the row.
        worker.batch_execute(&begin).unwrap();
        worker.batch_execute("SELECT count(*) FROM oban_jobs").unwrap();
        let before: String = ours.one(ends);
        wait_until("it is renewed after the snapshot", || ours.one::<String>(ends) != before);
        worker.batch_execute(&fence).unwrap();
        assert!(deletion_waits(&mut deleter), "{level}: a renewal before the fence");
        worker.batch_execute("COMMIT").unwrap();
        // The renewal runs beside the fence: the version that it writes is the row soon.
        for end in ["COMMIT", "ROLLBACK"] {
            renewer.batch_execute(&format!("BEGIN; {renewal}")).unwrap();
            worker.batch_execute(&format!("{begin}; {fence}")).unwrap();
            renewer.batch_execute(end).unwrap();
            assert!(deletion_waits(&mut deleter), "{level}: a renewal beside the fence, {end}");
            worker.batch_execute("COMMIT").unwrap();
            assert!(!deletion_waits(&mut deleter), "{level}: the fence is over, {end}");
        }
    }
    assert_no_leaks(&cluster);
}

#[test]
fn a_fence_lasts_as_long_as_its_savepoint() {
    let cluster = Cluster::installed();
    let (mut ours, mut worker, mut deleter) = (cluster.client(), cluster.client(), cluster.client());
    let (_, term) = bound(&mut ours);
    let fence = format!("SELECT oban_fence({term})");
    for (statements, held) in [
        (format!("SAVEPOINT s; {fence}; ROLLBACK TO s"), false),
        (format!("SAVEPOINT s; {fence}; RELEASE s"), true),
        (format!("{fence}; SAVEPOINT s; {fence}; ROLLBACK TO s"), true),
        (format!("SAVEPOINT s; {fence}; ROLLBACK TO s; {fence}"), true),
        (format!("SAVEPOINT s; SAVEPOINT u; {fence}; RELEASE u; ROLLBACK TO s"), false),
        (
            format!(
                "DO $$ BEGIN PERFORM oban_fence({term}); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN END $$"
            ),
            false,
        ),
        (
            format!(
                "DO $$ BEGIN PERFORM oban_fence(1); EXCEPTION WHEN serialization_failure THEN PERFORM oban_fence({term}); END $$"
            ),
            true,
        ),
    ] {
        worker.batch_execute(&format!("BEGIN; {statements}")).unwrap();
        assert_eq!(deletion_waits(&mut deleter), held, "{statements}");
        worker.batch_execute("ROLLBACK").unwrap();
        assert!(!deletion_waits(&mut deleter), "{statements}: it is over");
    }
    worker.batch_execute(&format!("BEGIN; {fence}; PREPARE TRANSACTION 'p'")).unwrap();
    assert!(deletion_waits(&mut deleter), "a prepared fence");
    deleter.batch_execute("ROLLBACK PREPARED 'p'").unwrap();
    assert!(!deletion_waits(&mut deleter), "it is over");
    assert_no_leaks(&cluster);
}

#[test]
fn a_fence_tests_what_sql_would_test() {
    let cluster = Cluster::installed();
    let (mut ours, mut root) = (cluster.client(), cluster.client());
    root.batch_execute("CREATE ROLE poor LOGIN; REVOKE ALL ON oban_peers FROM PUBLIC").unwrap();
    let mut poor = cluster.client_as("postgres", "poor");
    let (id, term) = bound(&mut ours);
    let fence = format!("SELECT oban_fence({term})");
    assert_eq!(code(&mut poor, &fence), "42501");
    root.batch_execute("GRANT INSERT ON oban_jobs TO poor").unwrap();
    assert_eq!(code(&mut poor, "SELECT * FROM oban_peers"), "42501", "it has no right on the table");
    poor.batch_execute(&fence).unwrap();
    for (before, expected) in [
        ("BEGIN READ ONLY", "25006"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "25006"),
        ("BEGIN; SET TRANSACTION READ ONLY", "25006"),
    ] {
        assert_eq!(code(&mut poor, &format!("{before}; {fence}")), expected, "{before}");
        poor.batch_execute("ROLLBACK").unwrap();
    }
    // A leadership that began after the snapshot may have written what this transaction does not see.
    poor.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    root.batch_execute("SELECT count(*) FROM oban_jobs").unwrap();
    ours.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
    wait_until("nobody leads", || ours.one("SELECT count(*) = 0 FROM oban_peers"));
    let (_, next) = bound(&mut ours);
    assert!(next > term);
    assert_eq!(code(&mut poor, &format!("SELECT oban_fence({next})")), "40001");
    poor.batch_execute("ROLLBACK").unwrap();
    poor.batch_execute(&format!("SELECT oban_fence({next})")).unwrap();
    // A policy that does not bind the owner stops neither elections nor fences.
    root.batch_execute("ALTER TABLE oban_peers ENABLE ROW LEVEL SECURITY").unwrap();
    poor.batch_execute(&format!("SELECT oban_fence({next})")).unwrap();
    root.batch_execute("ALTER TABLE oban_peers ADD CHECK (true) NOT VALID").unwrap();
    assert_eq!(code(&mut poor, &format!("SELECT oban_fence({next})")), "55000");
    assert_no_leaks(&cluster);
}
