//! Runs each `#[pg_test]` of the crate. In a build with the feature pg_test they are functions of the schema
//! `tests`. Each runs in a transaction of its own, which is rolled back.
//!
//! (`make pgrx-test` runs the same functions in pgrx's own way. This runner is built once and tests every
//! major.)

mod support;

use support::Cluster;

#[test]
fn every_backend_test_passes() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let names = client
        .query(
            "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = 'tests' AND p.pronargs = 0 ORDER BY 1",
            &[],
        )
        .expect("the tests can be listed");
    let (mut passed, mut failed) = (0, Vec::new());
    for name in names.iter().map(|row| row.get::<_, String>(0)) {
        let mut transaction = client.transaction().expect("a transaction begins");
        match transaction.batch_execute(&format!("SELECT tests.\"{name}\"()")) {
            Ok(()) => {
                passed += 1;
                println!("backend test {name} ... ok");
            }
            Err(error) => {
                println!("backend test {name} ... FAILED: {error:?}");
                failed.push(name);
            }
        }
        transaction.rollback().expect("the server still answers");
    }
    println!("{passed} backend tests passed, {} failed", failed.len());
    assert!(failed.is_empty(), "failed: {failed:?}");
    assert!(passed > 0, "no backend test was found: is this a build with the feature pg_test?");
}
