//! `oban_fetch` claims jobs as Oban's Basic engine does.

use serde_json::json;

use super::{call, changed, fetch, insert, job, outcome};
use crate::support::{Ask, Cluster, code};

#[test]
fn a_claim_has_the_order_the_state_and_the_columns_of_obans() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install(stage => false)").unwrap();
    let late = insert(&mut client, "public", "queue, priority", "'q', 3");
    let second = insert(&mut client, "public", "queue, scheduled_at", "'q', '2020-01-02'");
    let first = insert(&mut client, "public", "queue, scheduled_at", "'q', '2020-01-01'");
    let third = insert(&mut client, "public", "queue, scheduled_at", "'q', '2020-01-02'");
    insert(&mut client, "public", "queue, scheduled_at", "'q', now() + interval '1 day'");
    insert(&mut client, "public", "queue, state, scheduled_at", "'q', 'scheduled', now()");
    insert(&mut client, "public", "queue, attempt, max_attempts", "'q', 20, 20");
    insert(&mut client, "public", "queue", "'other'");
    let before = job(&mut client, "public", first);
    assert_eq!(fetch(&mut client, "'{q}', 'web.1', 3, 'u-1'"), [first, second, third]);
    let after = job(&mut client, "public", first);
    assert_eq!(changed(&before, &after), ["attempt", "attempted_at", "attempted_by", "state"]);
    assert_eq!(
        json!([after["state"], after["attempt"], after["attempted_by"]]),
        json!(["executing", 1, ["web.1", "u-1"]])
    );
    assert!(client.one::<bool>(&format!(
        "SELECT attempted_at BETWEEN timezone('UTC', now()) - interval '1 minute' AND timezone('UTC', now())
         FROM oban_jobs WHERE id = {first}"
    )));
    assert_eq!(fetch(&mut client, "'{q}', 'web.1', 10"), [late]);
    assert_eq!(job(&mut client, "public", late)["attempted_by"], json!(["web.1"]));
    assert_eq!(fetch(&mut client, "'{q}', 'web.1', 10"), [] as [i64; 0], "the rest is not to be had");
}

#[test]
fn the_result_is_the_job_with_times_that_have_a_zone() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SET timezone = 'Asia/Tokyo'").unwrap();
    let id = insert(
        &mut client,
        "public",
        "queue, tags, meta, errors, scheduled_at",
        "'q', '{a,b}', '{\"m\": 1}', ARRAY['{\"attempt\": 1}']::jsonb[], '2020-01-01 00:00:00.000001'",
    );
    let row: String = client.one("SELECT to_jsonb(j)::text FROM oban_fetch('{q}', 'n', uuid => 'u') j");
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    assert_eq!(
        json!([
            row["id"],
            row["state"],
            row["queue"],
            row["worker"],
            row["args"],
            row["meta"],
            row["tags"],
            row["errors"]
        ]),
        json!([id, "executing", "q", "w", {}, {"m": 1}, ["a", "b"], [{"attempt": 1}]])
    );
    assert_eq!(
        json!([
            row["attempt"],
            row["max_attempts"],
            row["priority"],
            row["attempted_by"],
            row["scheduled_at"]
        ]),
        json!([1, 20, 0, ["n", "u"], "2020-01-01T09:00:00.000001+09:00"])
    );
}

/// A claim that is open hides its jobs from others, and gives them back if it is rolled back.
#[test]
fn two_claims_at_a_time_take_different_jobs() {
    let cluster = Cluster::installed();
    let (mut one, mut other) = (cluster.client(), cluster.client());
    let ids: Vec<i64> = (0..3).map(|_| insert(&mut one, "public", "queue", "'q'")).collect();
    one.batch_execute("BEGIN").unwrap();
    assert_eq!(fetch(&mut one, "'{q}', 'a', 2"), ids[..2]);
    assert_eq!(fetch(&mut other, "'{q}', 'b', 2"), ids[2..]);
    one.batch_execute("ROLLBACK").unwrap();
    assert_eq!(fetch(&mut other, "'{q}', 'b', 9"), ids[..2]);
    assert_eq!(outcome(&mut one, "public", ids[0]), json!(["executing", 1, 20]));
}

/// Any queue may come first, so a full one holds up no other, whatever else the session fetches.
#[test]
fn queues_take_turns() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "INSERT INTO oban_jobs (worker, args, queue) SELECT 'w', '{}', q FROM unnest('{a,b}'::text[]) q, generate_series(1, 200)",
        )
        .unwrap();
    let mut of = std::collections::BTreeMap::<String, i32>::new();
    for _ in 0..60 {
        let queues: String = client.one("SELECT string_agg(queue, ' ') FROM oban_fetch('{a,b,a}', 'n', 2)");
        *of.entry(queues).or_default() += 1;
        fetch(&mut client, "'{empty}', 'n'");
    }
    // Each has an even chance: 60 calls without 5 of one happen once in 10^11 runs.
    assert!(of.len() == 2 && of["a a"] >= 5 && of["b b"] >= 5, "{of:?}");
    // What one queue lacks comes from another.
    client.batch_execute("DELETE FROM oban_jobs WHERE queue = 'b'").unwrap();
    assert_eq!(fetch(&mut client, "'{a,b}', 'n', 5").len(), 5);
    assert_eq!(fetch(&mut client, "'{a,b}', 'n', 5").len(), 5);
}

#[test]
fn a_paused_queue_is_left_alone() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let id = insert(&mut client, "public", "queue", "'q'");
    for (pause, resume) in [
        ("oban_pause_queue('q')", "oban_resume_queue('q')"),
        ("oban_pause_queue('*')", "oban_resume_queue('*')"),
        ("oban_pause_queue('q', node => 'n')", "oban_resume_queue('q')"),
    ] {
        client.batch_execute(&format!("SELECT {pause}")).unwrap();
        assert_eq!(fetch(&mut client, "'{q}', 'n'"), [] as [i64; 0], "{pause}");
        client.batch_execute(&format!("SELECT {resume}")).unwrap();
        client.batch_execute("BEGIN").unwrap();
        assert_eq!(fetch(&mut client, "'{q}', 'n'"), [id], "{resume}");
        client.batch_execute("ROLLBACK").unwrap();
    }
    // A pause for another node, and of another queue.
    client.batch_execute("SELECT oban_pause_queue('q', node => 'm'), oban_pause_queue('x')").unwrap();
    assert_eq!(fetch(&mut client, "'{q}', 'm'"), [] as [i64; 0]);
    assert_eq!(fetch(&mut client, "'{q,x}', 'n'"), [id]);
}

#[test]
fn jobs_of_oban_for_python_are_claimed() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    client.batch_execute(&std::fs::read_to_string("tests/fixtures/oban/python-0.7.0.sql").unwrap()).unwrap();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    let id = insert(&mut client, "public", "queue, errors", "'q', '[{\"attempt\": 1}]'");
    let errors: String = client.one("SELECT errors::text FROM oban_fetch('{q}', 'n', uuid => 'u')");
    assert_eq!(errors, r#"[{"attempt": 1}]"#);
    assert_eq!(job(&mut client, "public", id)["attempted_by"], json!(["n", "u"]));
}

/// It works without preload, and within the rights of the caller.
#[test]
fn it_is_a_statement_of_the_caller() {
    let cluster = Cluster::start(&[]);
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE EXTENSION obanrs; SELECT oban_install('p', stage => false); CREATE ROLE worker LOGIN; CREATE ROLE reader LOGIN;
         GRANT USAGE ON SCHEMA p TO worker, reader; GRANT SELECT, UPDATE ON p.oban_jobs TO worker; GRANT SELECT ON p.oban_jobs TO reader",
    )
    .unwrap();
    let id = insert(&mut root, "p", "queue", "'q'");
    let mut reader = cluster.client_as("postgres", "reader");
    let sql = "SELECT * FROM oban_fetch('{q}', 'n', prefix => 'p')";
    assert_eq!(code(&mut reader, sql), "42501");
    let mut worker = cluster.client_as("postgres", "worker");
    root.batch_execute(
        "ALTER TABLE p.oban_jobs ENABLE ROW LEVEL SECURITY; CREATE POLICY no ON p.oban_jobs USING (queue <> 'q')",
    )
    .unwrap();
    assert_eq!(fetch(&mut worker, "'{q}', 'n', prefix => 'p'"), [] as [i64; 0]);
    root.batch_execute("ALTER TABLE p.oban_jobs DISABLE ROW LEVEL SECURITY").unwrap();
    assert_eq!(fetch(&mut worker, "'{q}', 'n', prefix => 'p'"), [id]);
    assert_eq!(
        call(&mut worker, &format!("oban_complete_job({id}, 1, prefix => 'p')")).as_deref(),
        Some("true")
    );
    for (sql, expected) in [
        ("SELECT * FROM oban_fetch('{}', 'n', prefix => 'p')", "22023"),
        ("SELECT * FROM oban_fetch('{q}', '', prefix => 'p')", "22023"),
        ("SELECT * FROM oban_fetch('{q}', 'n', 0, prefix => 'p')", "22023"),
        ("SELECT * FROM oban_fetch('{q,NULL}', 'n', prefix => 'p')", "22004"),
        ("SELECT * FROM oban_fetch(NULL, 'n', prefix => 'p')", "22004"),
        ("SELECT * FROM oban_fetch('{q}', 'n', prefix => 'nowhere')", "3F000"),
        ("BEGIN READ ONLY; SELECT * FROM oban_fetch('{q}', 'n', prefix => 'p')", "25006"),
    ] {
        assert_eq!(code(&mut worker, sql), expected, "{sql}");
        worker.batch_execute("ROLLBACK").unwrap();
    }
    root.batch_execute("CREATE SCHEMA bare; CREATE TABLE p.x ()").unwrap();
    assert_eq!(code(&mut root, "SELECT * FROM oban_fetch('{q}', 'n', prefix => 'bare')"), "42P01");
}

/// A session keeps its plans, and plans anew when a table has changed or another has its name.
#[test]
fn a_session_outlives_changes_of_the_table() {
    let cluster = Cluster::with_extension();
    let (mut client, mut root) = (cluster.client(), cluster.client());
    root.batch_execute("SELECT oban_install('p', stage => false), oban_install('q', stage => false)")
        .unwrap();
    for change in [
        "SELECT",
        "ALTER TABLE p.oban_jobs ADD note text",
        "ALTER TABLE p.oban_jobs DROP note, ALTER id TYPE int",
        "ALTER SCHEMA p RENAME TO gone; ALTER SCHEMA q RENAME TO p",
        "DROP TABLE p.oban_jobs; SELECT oban_install('p', stage => false)",
    ] {
        root.batch_execute(change).unwrap();
        for _ in 0..7 {
            let id: i64 =
                root.one("INSERT INTO p.oban_jobs (worker, queue) VALUES ('w', 'q') RETURNING id::int8");
            assert_eq!(fetch(&mut client, "'{q}', 'n', prefix => 'p'"), [id], "{change}");
            let done = call(&mut client, &format!("oban_complete_job({id}, 1, 'p')"));
            assert_eq!(done.as_deref(), Some("true"), "{change}");
        }
    }
}
