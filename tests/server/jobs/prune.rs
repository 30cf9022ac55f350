//! `oban_prune` deletes what Oban's pruners delete, and nothing else.

use postgres::Client;

use super::cluster_of;
use crate::support::{Ask, Cluster, code, stat};

fn prune(client: &mut Client, arguments: &str) -> i32 {
    client.one(&format!("SELECT oban_prune({arguments})"))
}

/// The jobs that are left, as their workers.
fn left(client: &mut Client) -> String {
    client.one("SELECT COALESCE(string_agg(worker, ' ' ORDER BY worker), '') FROM oban_jobs")
}

/// Inserts a job in each state. All of its times are `hours` ago, but for one.
fn a_job_in_each_state(client: &mut Client, name: &str, but: &str, but_hours: i32, hours: i32) {
    let at = |column: &str| {
        let hours = if column == but { but_hours } else { hours };
        format!("timezone('UTC', now()) - interval '{hours} h'")
    };
    let columns =
        ["scheduled_at", "completed_at", "cancelled_at", "discarded_at", "inserted_at", "attempted_at"];
    client
        .batch_execute(&format!(
            "INSERT INTO oban_jobs (worker, state, {}) SELECT '{name}-' || s, s, {} FROM unnest(enum_range(NULL::oban_job_state)) s",
            columns.join(", "),
            columns.map(at).join(", ")
        ))
        .unwrap();
}

#[test]
fn jobs_that_ended_long_ago_are_deleted() {
    for python in [false, true] {
        let cluster = cluster_of(python);
        let mut client = cluster.client();
        let kept = "available executing retryable scheduled suspended";
        let of = |name: &str, states: &str| {
            states.split(' ').map(|state| format!("{name}-{state}")).collect::<Vec<_>>().join(" ")
        };
        a_job_in_each_state(&mut client, "new", "", 0, 23);
        assert_eq!(prune(&mut client, ""), 0);
        client.batch_execute("DELETE FROM oban_jobs").unwrap();
        a_job_in_each_state(&mut client, "old", "", 0, 25);
        assert_eq!(prune(&mut client, "max_age => '26 h'"), 0);
        assert_eq!(prune(&mut client, ""), 3);
        assert_eq!(left(&mut client), of("old", kept));
        // Each state has its own time.
        let of_completed = if python { "completed_at" } else { "scheduled_at" };
        for (column, state) in
            [(of_completed, "completed"), ("cancelled_at", "cancelled"), ("discarded_at", "discarded")]
        {
            client.batch_execute("DELETE FROM oban_jobs").unwrap();
            a_job_in_each_state(&mut client, "x", column, 2, 0);
            assert_eq!(prune(&mut client, "max_age => '1 h'"), 1, "python: {python}: {state}");
            assert_eq!(
                client.one::<i64>(&format!("SELECT count(*) FROM oban_jobs WHERE state = '{state}'")),
                0
            );
        }
        assert_eq!(stat(&mut client, "dropped"), 0);
    }
}

#[test]
fn a_call_deletes_no_more_than_it_may() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let insert = "INSERT INTO oban_jobs (worker, state, scheduled_at, cancelled_at)
         SELECT 'w' || i, (ARRAY['completed', 'cancelled'])[i % 2 + 1]::oban_job_state, t, t
         FROM generate_series(1, 100) i, LATERAL (SELECT timezone('UTC', now()) - make_interval(days => i)) o (t)";
    client.batch_execute(insert).unwrap();
    assert_eq!(prune(&mut client, "max_jobs => 70"), 70);
    assert_eq!(prune(&mut client, "max_jobs => 20"), 20);
    assert_eq!(prune(&mut client, ""), 10);
    assert_eq!(left(&mut client), "");
    // The oldest come first where an index has the order.
    client.batch_execute(insert).unwrap();
    client.batch_execute("DELETE FROM oban_jobs WHERE state = 'completed'").unwrap();
    assert_eq!(prune(&mut client, "max_jobs => 10"), 10);
    assert_eq!(client.one::<i32>("SELECT max(substr(worker, 2)::int) FROM oban_jobs"), 79);
}

/// A job that another transaction changes is not waited for.
#[test]
fn locked_jobs_are_passed_over() {
    let cluster = Cluster::installed();
    let (mut client, mut other) = (cluster.client(), cluster.client());
    client
        .batch_execute("INSERT INTO oban_jobs (worker, state, scheduled_at) SELECT 'w' || i, 'completed', '2020-01-01' FROM generate_series(1, 3) i")
        .unwrap();
    other.batch_execute("BEGIN; SELECT FROM oban_jobs WHERE worker = 'w2' FOR UPDATE").unwrap();
    assert_eq!(prune(&mut client, ""), 2);
    assert_eq!(left(&mut client), "w2");
    other.batch_execute("SELECT oban_retry_job(id) FROM oban_jobs; COMMIT").unwrap();
    assert_eq!(prune(&mut client, ""), 0, "it is available again");
    client
        .batch_execute("BEGIN; UPDATE oban_jobs SET state = 'cancelled', cancelled_at = '2020-01-01'")
        .unwrap();
    assert_eq!(prune(&mut client, ""), 1);
    client.batch_execute("ROLLBACK").unwrap();
    assert_eq!(left(&mut client), "w2");
}

#[test]
fn pruning_has_the_rights_of_the_caller() {
    let cluster = Cluster::start(&[]);
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE EXTENSION obanrs; SELECT oban_install(stage => false); CREATE ROLE pruner LOGIN; CREATE ROLE half LOGIN;
         GRANT SELECT, UPDATE, DELETE ON oban_jobs TO pruner; GRANT SELECT, DELETE ON oban_jobs TO half;
         INSERT INTO oban_jobs (worker, queue, state, scheduled_at) VALUES ('w', 'theirs', 'completed', '2020-01-01')",
    )
    .unwrap();
    assert_eq!(
        code(&mut cluster.client_as("postgres", "half"), "SELECT oban_prune()"),
        "42501",
        "it locks rows"
    );
    root.batch_execute(
        "ALTER TABLE oban_jobs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON oban_jobs USING (queue <> 'theirs')",
    )
    .unwrap();
    let mut pruner = cluster.client_as("postgres", "pruner");
    assert_eq!(prune(&mut pruner, ""), 0);
    root.batch_execute("DROP POLICY own ON oban_jobs; CREATE POLICY all_of_them ON oban_jobs USING (true)")
        .unwrap();
    assert_eq!(prune(&mut pruner, ""), 1);
    for bad in ["max_age => '-1 us'", "max_age => '200 years'", "max_jobs => 0", "max_jobs => 100001"] {
        assert_eq!(code(&mut pruner, &format!("SELECT oban_prune({bad})")), "22023", "{bad}");
    }
}

/// A call counts from its own time, not from that of the statement that has called a procedure.
#[test]
fn a_procedure_that_prunes_again_and_again_gets_older() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "INSERT INTO oban_jobs (state, worker, scheduled_at) VALUES ('completed', 'w', timezone('UTC', clock_timestamp()));
             SELECT pg_sleep(0.01)",
        )
        .unwrap();
    let body = "DECLARE pruned int := 0; BEGIN
        WHILE pruned = 0 LOOP pruned := oban_prune(max_age => '100 ms'); COMMIT; PERFORM pg_sleep(0.01); END LOOP; END";
    client.batch_execute("SET statement_timeout = '20 s'").unwrap();
    client.batch_execute(&format!("DO $$ {body} $$")).unwrap();
    assert_eq!(left(&mut client), "");
}

/// In a partitioned table the id alone may be that of another job.
#[test]
fn a_job_with_the_id_of_an_old_one_stays() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE SCHEMA p; CREATE TABLE p.oban_jobs (LIKE oban_jobs INCLUDING DEFAULTS) PARTITION BY LIST (state);
             CREATE TABLE p.rest PARTITION OF p.oban_jobs DEFAULT;
             INSERT INTO p.oban_jobs (id, state, worker, scheduled_at) VALUES
                 (77, 'completed', 'old', now() - interval '3 d'), (77, 'available', 'new', now())",
        )
        .unwrap();
    assert_eq!(prune(&mut client, "'p'"), 1);
    assert_eq!(client.one::<String>("SELECT string_agg(worker, ' ') FROM p.oban_jobs"), "new");
}
