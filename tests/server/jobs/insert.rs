//! Jobs are inserted as Oban inserts them, and a unique one once.

use std::collections::BTreeSet;

use postgres::Client;
use serde_json::{Value, json};

use super::{cluster_of, fetch, job};
use crate::support::{Ask, Cluster, code, heard, wait_until};

/// Calls `oban_insert_job(...)`. Returns the id, and whether an equal job is there.
fn insert_job(client: &mut Client, arguments: &str) -> (i64, bool) {
    let row = client.query_one(&format!("SELECT * FROM oban_insert_job({arguments})"), &[]).unwrap();
    (row.get(0), row.get(1))
}

/// Calls `oban_insert_jobs(...)`, and returns the ids and conflicts in the order of the result.
fn insert_jobs(client: &mut Client, jobs: &Value) -> Vec<(i64, bool)> {
    let sql = "SELECT * FROM oban_insert_jobs($1::text::jsonb)";
    client.query(sql, &[&jobs.to_string()]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn count(client: &mut Client) -> i64 {
    client.one("SELECT count(*) FROM oban_jobs")
}

/// A job without what differs from insertion to insertion. Times are told by how far off they are.
fn shape(client: &mut Client, id: i64) -> Value {
    let mut job = job(client, "public", id);
    let off: f64 = client.one(&format!(
        "SELECT round(extract(epoch FROM scheduled_at - inserted_at) / 60)::float8 FROM oban_jobs WHERE id = {id}"
    ));
    let fields = job.as_object_mut().unwrap();
    ["id", "inserted_at", "scheduled_at"].iter().for_each(|key| drop(fields.remove(*key)));
    fields.insert("due".into(), json!(off));
    job
}

/// The statements are those of Oban's clients: Ecto leaves out what is nil, and Python's is insert_job.sql.
#[test]
fn rows_are_those_that_oban_writes() {
    for python in [false, true] {
        let cluster = cluster_of(python);
        let mut client = cluster.client();
        let errors = if python { "'[]'" } else { "'{}'" };
        let oban = |state: &str, due: &str| {
            format!(
                "INSERT INTO oban_jobs (state, queue, worker, args, meta, tags, errors, attempt, max_attempts, priority, scheduled_at)
                 VALUES ('{state}', 'mail', 'Mailer', '{{\"to\": 7}}', '{{\"m\": 1.50}}', '{{urgent,\"a b\"}}', {errors}, 0, 5, 3, {due}) RETURNING id"
            )
        };
        let ours = "'Mailer', '{\"to\": 7}', 'mail', priority => 3, max_attempts => 5, meta => '{\"m\": 1.50}', tags => '{\" Urgent\",urgent,\"\",\"A b\"}'";
        for (state, due, with) in [
            ("available", "timezone('UTC', now())", ""),
            ("scheduled", "timezone('UTC', now()) + interval '2 h'", ", schedule_in => '2 h'"),
            (
                "scheduled",
                "timezone('UTC', now()) + interval '2 h'",
                ", scheduled_at => now() + interval '2 h'",
            ),
            // As Oban has it, a job with a time is scheduled.
            (
                "scheduled",
                "timezone('UTC', now()) - interval '2 h'",
                ", scheduled_at => now() - interval '2 h'",
            ),
        ] {
            client.batch_execute("SET timezone = 'Asia/Tokyo'").unwrap();
            let theirs: i64 = client.one(&oban(state, due));
            let (id, conflict) = insert_job(&mut client, &format!("{ours}{with}"));
            assert_eq!(shape(&mut client, id), shape(&mut client, theirs), "python: {python}, {with}");
            assert!(!conflict);
        }
        // Only the worker is given.
        let theirs: i64 =
            client.one("INSERT INTO oban_jobs (worker, args) VALUES ('Mailer', '{}') RETURNING id");
        let (id, _) = insert_job(&mut client, "'Mailer'");
        assert_eq!(shape(&mut client, id), shape(&mut client, theirs));
        assert_eq!(fetch(&mut client, "'{default}', 'n'").len(), 1, "it is due at once");
    }
}

#[test]
fn many_jobs_come_back_in_the_order_of_the_array() {
    for python in [false, true] {
        let cluster = cluster_of(python);
        let mut client = cluster.client();
        let (one, _) = insert_job(
            &mut client,
            "'W', '{\"a\": [1, 2]}', 'q', schedule_in => '90 s', priority => 1, max_attempts => 2, \
             tags => '{x}', meta => '{\"m\": null}'",
        );
        let jobs = json!([
            {"worker": "W", "queue": "q", "args": {"a": [1, 2]}, "schedule_in": 90, "priority": 1,
             "max_attempts": 2, "tags": [" X", "x", ""], "meta": {"m": null}},
            {"worker": "First"},
            {"worker": "Second", "queue": null, "args": null, "tags": null, "scheduled_at": null},
            {"worker": "Timed", "scheduled_at": "2031-01-31T12:00:00.5+09:00"},
            {"worker": "Third", "schedule_in": 0.5},
            {"worker": "Fourth", "tags": []},
        ]);
        let inserted = insert_jobs(&mut client, &jobs);
        let ids: Vec<i64> = inserted.iter().map(|(id, _)| *id).collect();
        assert!(ids.is_sorted() && inserted.iter().all(|(_, conflict)| !conflict), "{inserted:?}");
        assert_eq!(shape(&mut client, ids[0]), shape(&mut client, one));
        let workers: Vec<String> =
            ids.iter().map(|id| job(&mut client, "public", *id)["worker"].as_str().unwrap().into()).collect();
        assert_eq!(workers, ["W", "First", "Second", "Timed", "Third", "Fourth"]);
        let timed = job(&mut client, "public", ids[3]);
        assert_eq!(
            (&timed["scheduled_at"], &timed["state"]),
            (&json!("2031-01-31T03:00:00.5"), &json!("scheduled"))
        );
        let second = job(&mut client, "public", ids[2]);
        assert_eq!(
            json!([second["queue"], second["args"], second["state"]]),
            json!(["default", {}, "available"])
        );
        assert!(insert_jobs(&mut client, &json!([])).is_empty());
        // Numbers stay as they are.
        let (id, _) = insert_jobs_text(
            &mut client,
            "[{\"worker\": \"N\", \"args\": {\"n\": 12345678901234567890.10}}]",
        );
        assert_eq!(
            client.one::<String>(&format!("SELECT args::text FROM oban_jobs WHERE id = {id}")),
            "{\"n\": 12345678901234567890.10}"
        );
    }
}

fn insert_jobs_text(client: &mut Client, jobs: &str) -> (i64, bool) {
    let row = client.query_one("SELECT * FROM oban_insert_jobs($1::text::jsonb)", &[&jobs]).unwrap();
    (row.get(0), row.get(1))
}

/// The largest call, which is one statement: a trigger for each statement fires once.
#[test]
fn ten_thousand_jobs_are_one_statement() {
    let cluster = cluster_of(false);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE fired (); CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO fired DEFAULT VALUES; RETURN NULL; END';
             CREATE TRIGGER fire AFTER INSERT ON oban_jobs EXECUTE FUNCTION fire()",
        )
        .unwrap();
    let jobs = |many: usize| Value::from_iter((0..many).map(|i| json!({"worker": "w", "args": {"i": i}})));
    let ids: Vec<i64> = insert_jobs(&mut client, &jobs(10_000)).into_iter().map(|(id, _)| id).collect();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM fired"), 1);
    assert!(ids.is_sorted() && ids.len() == 10_000);
    assert!(client.one::<bool>("SELECT bool_and((args->>'i')::int = id - 1) FROM oban_jobs"));
    let refused = |client: &mut Client, jobs: &Value| {
        let error =
            client.query("SELECT oban_insert_jobs($1::text::jsonb)", &[&jobs.to_string()]).unwrap_err();
        error.as_db_error().unwrap().message().to_owned()
    };
    assert_eq!(refused(&mut client, &jobs(10_001)), "jobs has 10001 elements");
    let unique =
        Value::from_iter((0..1001).map(|i| json!({"worker": "u", "args": {"i": i}, "unique_keys": []})));
    assert_eq!(refused(&mut client, &unique), "jobs has 1001 jobs that are unique");
    let unique = Value::from_iter(unique.as_array().unwrap()[..1000].iter().cloned());
    assert_eq!(insert_jobs(&mut client, &unique).len(), 1000);
    let large = json!([{"worker": "w", "args": {"x": "x".repeat(33 << 20)}}]);
    assert!(refused(&mut client, &large).contains("bytes"));
    assert_eq!(count(&mut client), 11_000);
}

#[test]
fn one_wrong_job_keeps_all_out() {
    let cluster = cluster_of(false);
    let mut client = cluster.client();
    for (wrong, shows) in [
        (json!(7), "jobs[1]: it is no JSON object, but of the kind number"),
        (json!({}), "jobs[1]: \"worker\" is missing"),
        (json!({"worker": ""}), "jobs[1]: worker has 0 characters"),
        (json!({"worker": "w", "Queue": "q"}), "jobs[1]: \"Queue\" is no key of a job"),
        (json!({"worker": "w", "prefix": "q"}), "jobs[1]: \"prefix\" is no key of a job"),
        (json!({"worker": "w", "queue": ["q"]}), "jobs[1]: \"queue\" is of the kind array"),
        (json!({"worker": "w", "args": []}), "jobs[1]: \"args\" is of the kind array"),
        (json!({"worker": "w", "priority": 1.5}), "jobs[1]: \"priority\" is 1.5"),
        (json!({"worker": "w", "priority": "1"}), "jobs[1]: \"priority\" is of the kind string"),
        (json!({"worker": "w", "priority": 10}), "jobs[1]: priority is 10"),
        (json!({"worker": "w", "max_attempts": 1e300}), "jobs[1]: argument \"max_attempts\""),
        (json!({"worker": "w", "max_attempts": 32768}), "jobs[1]: max_attempts is 32768"),
        (json!({"worker": "w", "schedule_in": -1}), "jobs[1]: schedule_in is -1 s"),
        (json!({"worker": "w", "schedule_in": 1e30}), "jobs[1]: schedule_in is 9223372036854.775 s"),
        (json!({"worker": "w", "schedule_in": "1 hour"}), "jobs[1]: \"schedule_in\" is of the kind string"),
        (json!({"worker": "w", "scheduled_at": "tomorrow"}), "jobs[1]: \"scheduled_at\" is \"tomorrow\""),
        (json!({"worker": "w", "scheduled_at": "2031-01-31T12:00:00"}), "jobs[1]: \"scheduled_at\" is"),
        (json!({"worker": "w", "scheduled_at": "2031-01-31T12:00:00Z", "schedule_in": 1}), "jobs[1]: both"),
        (json!({"worker": "w", "tags": [1]}), "jobs[1]: \"tags\" has an element of the kind number"),
        (json!({"worker": "w", "tags": [null]}), "jobs[1]: \"tags\" is missing, or has a null"),
        (json!({"worker": "w", "unique_states": ["done"]}), "jobs[1]: unique_states has no state"),
        (json!({"worker": "w", "unique_for": 0}), "jobs[1]: unique_for is 0 s"),
    ] {
        let jobs = json!([{"worker": "w"}, wrong, {"worker": "w"}]).to_string();
        let error = client.query("SELECT oban_insert_jobs($1::text::jsonb)", &[&jobs]).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "22023", "{jobs}: {error}");
        assert!(error.message().starts_with(shows), "{jobs}: {error}");
    }
    assert_eq!(count(&mut client), 0);
}

/// The jobs of a trigger that leaves some out would not be known apart.
#[test]
fn a_trigger_that_leaves_jobs_out_keeps_all_out() {
    let cluster = cluster_of(false);
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN IF NEW.worker = 'no' THEN RETURN NULL; END IF; RETURN NEW; END $$;
             CREATE TRIGGER picky BEFORE INSERT ON oban_jobs FOR EACH ROW EXECUTE FUNCTION picky()",
        )
        .unwrap();
    for call in ["oban_insert_job('no')", "oban_insert_jobs('[{\"worker\": \"w\"}, {\"worker\": \"no\"}]')"] {
        assert_eq!(code(&mut client, &format!("SELECT {call}")), "27000", "{call}");
    }
    assert_eq!(count(&mut client), 0);
}

/// Equal are jobs of a worker and a queue whose args are equal as JSON.
#[test]
fn an_equal_job_keeps_another_out() {
    for python in [false, true] {
        let cluster = cluster_of(python);
        let mut client = cluster.client();
        let args = "'{\"a\": 1, \"b\": {\"c\": [1, 1], \"d\": null}}'";
        let (id, _) = insert_job(&mut client, &format!("'w', {args}, unique_for => '1 minute'"));
        for same in [
            args,
            "'{\"b\": {\"d\": null, \"c\": [1, 1]}, \"a\": 1}'",
            "'{\"a\": 1.0, \"b\": {\"c\": [1, 1.00], \"d\": null}}'",
        ] {
            for unique in [
                "unique_for => '1 minute'",
                "unique_for => '1000 years'",
                "unique_keys => '{}'",
                "unique_states => '{available}'",
            ] {
                let call = format!("'w', {same}, {unique}");
                assert_eq!(insert_job(&mut client, &call), (id, true), "python: {python}: {call}");
            }
        }
        assert_eq!(count(&mut client), 1);
        let mut ids = BTreeSet::from([id]);
        for other in [
            format!("'v', {args}"),
            format!("'w', {args}, 'q'"),
            "'w', '{\"a\": 1, \"b\": {\"c\": [1], \"d\": null}}'".into(),
            "'w', '{\"a\": 1, \"b\": {\"c\": [1, 1]}}'".into(),
            "'w', '{\"a\": \"1\", \"b\": {\"c\": [1, 1], \"d\": null}}'".into(),
            "'w', '{\"a\": 1}'".into(),
            "'w', '{}'".into(),
        ] {
            let (id, conflict) = insert_job(&mut client, &format!("{other}, unique_for => '1 minute'"));
            assert!(!conflict && ids.insert(id), "python: {python}: {other}");
            assert_eq!(
                insert_job(&mut client, &format!("{other}, unique_keys => '{{}}'")),
                (id, true),
                "{other}"
            );
        }
        // Without a word about it, a job is not unique.
        assert!(!insert_job(&mut client, &format!("'w', {args}")).1);
    }
}

#[test]
fn keys_ages_and_states_limit_which_job_is_equal() {
    let cluster = cluster_of(false);
    let mut client = cluster.client();
    let by_keys = |args: &str| format!("'k', '{args}', unique_keys => '{{id,on}}'");
    let (id, _) = insert_job(&mut client, &by_keys("{\"id\": 7, \"on\": {\"x\": 1}, \"more\": 1}"));
    for (args, same) in [
        ("{\"on\": {\"x\": 1.0}, \"id\": 7, \"more\": 2}", true),
        ("{\"on\": {\"x\": 1, \"y\": 2}, \"id\": 7}", false),
        ("{\"id\": 7}", false),
        ("{\"id\": 7, \"on\": null}", false),
    ] {
        assert_eq!(insert_job(&mut client, &by_keys(args)).1, same || args.contains("null"), "{args}");
    }
    assert!(insert_job(&mut client, "'k', '{\"id\": 7, \"more\": 1}', unique_keys => '{id}'").1, "one key");
    // Jobs that lack the keys are equal, and a key that is missing is a null.
    let (none, _) = insert_job(&mut client, &by_keys("{\"x\": 1}"));
    assert_ne!(none, id);
    assert_eq!(insert_job(&mut client, &by_keys("{\"y\": 1, \"id\": null}")), (none, true));
    // What is no object, which only an INSERT can write, is equal to nothing and breaks nothing.
    client
        .batch_execute("INSERT INTO oban_jobs (worker, args) VALUES ('k', '[7]'), ('k', '\"id\"')")
        .unwrap();
    assert_eq!(insert_job(&mut client, &by_keys("{\"y\": 1}")), (none, true));

    let (old, _) = insert_job(&mut client, "'age', unique_for => '1 hour'");
    client.batch_execute("UPDATE oban_jobs SET inserted_at = inserted_at - interval '2 h'").unwrap();
    assert_eq!(insert_job(&mut client, "'age', unique_for => '3 hours'"), (old, true));
    let (new, conflict) = insert_job(&mut client, "'age', unique_for => '1 hour'");
    assert!(!conflict && new != old);

    for (state, keeps) in [
        ("available", true),
        ("scheduled", true),
        ("suspended", true),
        ("executing", true),
        ("retryable", true),
        ("completed", true),
        ("discarded", false),
        ("cancelled", false),
    ] {
        client
            .batch_execute(&format!(
                "DELETE FROM oban_jobs; INSERT INTO oban_jobs (worker, state) VALUES ('s', '{state}')"
            ))
            .unwrap();
        for (unique, keeps) in [
            ("unique_for => '1 day'".to_owned(), keeps),
            (format!("unique_states => '{{{state}}}'"), true),
            (
                format!(
                    "unique_for => '1 day', unique_states => '{{{}}}'",
                    if state == "scheduled" { "available" } else { "scheduled" }
                ),
                false,
            ),
        ] {
            client.batch_execute("BEGIN").unwrap();
            assert_eq!(insert_job(&mut client, &format!("'s', {unique}")).1, keeps, "{state}: {unique}");
            client.batch_execute("ROLLBACK").unwrap();
        }
    }
}

/// Tables of Oban's migrations before 14 have no state `suspended`.
#[test]
fn a_table_without_the_latest_state_is_searched() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    client
        .batch_execute(&std::fs::read_to_string("tests/fixtures/oban/elixir-2.16.3-v11.sql").unwrap())
        .unwrap();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(stage => false)").unwrap();
    let (id, _) = insert_job(&mut client, "'w', unique_for => '1 day'");
    assert_eq!(insert_job(&mut client, "'w', unique_for => '1 day'"), (id, true));
    assert!(!insert_job(&mut client, "'w', unique_states => '{suspended}'").1, "no job has that state");
}

#[test]
fn unique_jobs_of_an_array_are_compared_with_those_before_them() {
    let cluster = cluster_of(false);
    let mut client = cluster.client();
    let unique = |i: i32| json!({"worker": "w", "args": {"i": i}, "unique_for": 60});
    let jobs = json!([unique(1), {"worker": "w", "args": {"i": 2}}, unique(2), unique(1), unique(3)]);
    let inserted = insert_jobs(&mut client, &jobs);
    let (first, second) = (inserted[0].0, inserted[1].0);
    assert_eq!(inserted[..4], [(first, false), (second, false), (second, true), (first, true)]);
    assert_eq!(count(&mut client), 3);
    assert!(
        insert_jobs(&mut client, &json!([unique(3), unique(2), unique(1)]))
            .iter()
            .all(|(_, conflict)| *conflict)
    );
    assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), 0);
}

/// Each of 8 sessions inserts the same jobs, alone or in arrays of any order.
#[test]
fn of_equal_jobs_at_a_time_one_is_inserted() {
    for python in [false, true] {
        let cluster = cluster_of(python);
        let sessions: Vec<_> = (0..8)
            .map(|session| {
                let mut client = cluster.client();
                std::thread::spawn(move || {
                    let mut new = 0;
                    for round in 0..20 {
                        let args = |i: i32| json!({"round": round, "i": i});
                        let job =
                            |i: i32| json!({"worker": "w", "args": args(i), "unique_keys": ["i", "round"]});
                        let inserted = match session % 3 {
                            0 => insert_jobs(&mut client, &json!([job(1), job(2), job(3)])),
                            1 => insert_jobs(&mut client, &json!([job(3), job(1), job(2)])),
                            _ => [2, 3, 1]
                                .map(|i| {
                                    let keys = "unique_keys => '{round,i}'";
                                    insert_job(&mut client, &format!("'w', '{}', {keys}", args(i)))
                                })
                                .to_vec(),
                        };
                        new += inserted.iter().filter(|(_, conflict)| !conflict).count();
                    }
                    new
                })
            })
            .collect();
        let new: usize = sessions.into_iter().map(|session| session.join().unwrap()).sum();
        assert_eq!(new, 60, "python: {python}");
        assert_eq!(count(&mut cluster.client()), 60);
    }
}

/// Waits until a session waits for an advisory lock.
fn waits_for_lock(client: &mut Client, pid: i32) {
    let waits =
        format!("SELECT wait_event IS NOT DISTINCT FROM 'advisory' FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("it waits for the lock", || client.one(&waits));
}

/// What a second session does while the first has inserted an equal job, and not committed.
fn second_of_two(end: &str, begin: &str) -> (i64, (i64, bool)) {
    let cluster = cluster_of(false);
    let (mut first, mut second, mut other) = (cluster.client(), cluster.client(), cluster.client());
    let pid: i32 = second.one("SELECT pg_backend_pid()");
    first.batch_execute("BEGIN").unwrap();
    let (id, _) = insert_job(&mut first, "'w', unique_for => '1 day'");
    second.batch_execute(begin).unwrap();
    if !begin.is_empty() {
        assert_eq!(count(&mut second), 0, "its snapshot is older");
    }
    let waiting = std::thread::spawn(move || {
        let inserted = insert_job(&mut second, "'w', unique_for => '1 day'");
        second.batch_execute("COMMIT").unwrap();
        inserted
    });
    waits_for_lock(&mut other, pid);
    let kinds = "SELECT string_agg(DISTINCT objsubid::text, ' ') FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(other.one::<String>(kinds), "3", "no lock of Oban's, and none that pg_advisory_lock takes");
    // Another job of the worker waits for none.
    assert!(!insert_job(&mut other, "'w', '{\"x\": 1}', unique_for => '1 day'").1);
    first.batch_execute(end).unwrap();
    let inserted = waiting.join().unwrap();
    assert_eq!(other.one::<i64>("SELECT count(*) FROM oban_jobs WHERE args = '{}'"), 1);
    (id, inserted)
}

#[test]
fn the_second_of_two_waits_for_the_first() {
    let (id, second) = second_of_two("COMMIT", "");
    assert_eq!(second, (id, true));
    let (id, second) = second_of_two("ROLLBACK", "");
    assert!(second.0 != id && !second.1, "{second:?}");
}

/// A snapshot of the transaction would not show the other's job.
#[test]
fn an_older_snapshot_hides_no_equal_job() {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let begin = format!("BEGIN ISOLATION LEVEL {level}");
        let (id, second) = second_of_two("COMMIT", &begin);
        assert_eq!(second, (id, true), "{level}");
        let (_, second) = second_of_two("ROLLBACK", &begin);
        assert!(!second.1, "{level}");
    }
}

#[test]
fn the_wait_for_an_equal_job_ends_as_other_waits_do() {
    let cluster = cluster_of(false);
    let (mut first, mut second) = (cluster.client(), cluster.client());
    first.batch_execute("BEGIN").unwrap();
    insert_job(&mut first, "'w', unique_for => '1 day'");
    let unique = "SELECT oban_insert_job('w', unique_for => '1 day')";
    assert_eq!(code(&mut second, &format!("SET lock_timeout = '1 ms'; {unique}")), "55P03");
    assert_eq!(
        code(&mut second, &format!("SET lock_timeout = 0; SET statement_timeout = '1 ms'; {unique}")),
        "57014"
    );
    second.batch_execute("SET statement_timeout = 0").unwrap();
    // A job that is not unique waits for none.
    insert_job(&mut second, "'w'");
    // Two transactions that wait for each other are a deadlock, as with rows.
    second.batch_execute("BEGIN; SET LOCAL deadlock_timeout = '1 d'").unwrap();
    insert_job(&mut second, "'v', unique_for => '1 day'");
    let pid: i32 = second.one("SELECT pg_backend_pid()");
    let waiting = std::thread::spawn(move || {
        insert_job(&mut second, "'w', unique_for => '1 day'");
        second.batch_execute("COMMIT").unwrap();
    });
    waits_for_lock(&mut cluster.client(), pid);
    first.batch_execute("SET LOCAL deadlock_timeout = '1 ms'").unwrap();
    assert_eq!(code(&mut first, "SELECT oban_insert_job('v', unique_for => '1 day')"), "40P01");
    first.batch_execute("ROLLBACK").unwrap();
    waiting.join().unwrap();
}

/// The triggers on the table do the rest.
#[test]
fn an_inserted_job_wakes_its_queue() {
    let cluster = cluster_of(false);
    let (mut client, mut listener) = (cluster.client(), cluster.client());
    listener.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    insert_job(&mut client, "'w', queue => 'one'");
    insert_jobs(
        &mut client,
        &json!([{"worker": "w", "queue": "two"}, {"worker": "w", "queue": "late", "schedule_in": 60}]),
    );
    insert_job(&mut client, "'w', queue => 'last'");
    let mut payloads = Vec::new();
    wait_until("the last one is heard", || {
        payloads.extend(heard(&mut listener).iter().map(|n| n.payload().to_owned()));
        payloads.iter().any(|payload| payload.contains("last"))
    });
    let named = |queue: &str| payloads.iter().any(|payload| payload.contains(queue));
    assert!(named("one") && named("two") && !named("late"), "{payloads:?}");
}

/// It is a statement of the caller, and runs no code but that of the table.
#[test]
fn inserting_has_the_rights_of_the_caller() {
    let cluster = Cluster::start(&[]);
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE EXTENSION obanrs; SELECT oban_install(stage => false); CREATE ROLE app LOGIN; CREATE ROLE writer LOGIN;
         GRANT SELECT, INSERT ON oban_jobs TO app; GRANT INSERT ON oban_jobs TO writer; GRANT USAGE ON SEQUENCE oban_jobs_id_seq TO app, writer",
    )
    .unwrap();
    let mut writer = cluster.client_as("postgres", "writer");
    assert_eq!(code(&mut writer, "SELECT oban_insert_job('w')"), "42501", "the id is read");
    let mut app = cluster.client_as("postgres", "app");
    let (id, _) = insert_job(&mut app, "'w', queue => 'theirs', unique_for => '1 day'");
    root.batch_execute(
        "ALTER TABLE oban_jobs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON oban_jobs USING (queue <> 'theirs')",
    )
    .unwrap();
    for call in [
        "oban_insert_job('w', queue => 'theirs')",
        "oban_insert_jobs('[{\"worker\": \"w\", \"queue\": \"theirs\"}]')",
    ] {
        assert_eq!(code(&mut app, &format!("SELECT {call}")), "42501", "{call}");
    }
    let (own, _) = insert_job(&mut app, "'w', unique_for => '1 day'");
    assert_eq!(insert_job(&mut app, "'w', unique_for => '1 day'"), (own, true));
    assert!(!insert_job(&mut app, "'w', '{\"id\": 1}', unique_for => '1 day'").1);
    assert_eq!(
        insert_job(&mut root, "'w', queue => 'theirs', unique_for => '1 day'"),
        (id, true),
        "root sees all"
    );
    assert_eq!(count(&mut root), 3);
}

/// Operators and functions that shadow Postgres' own raise an error.
#[test]
fn a_hostile_search_path_is_not_used() {
    let cluster = cluster_of(false);
    let mut client = cluster.client();
    client.batch_execute("CREATE SCHEMA shadow").unwrap();
    for (left, right) in [
        ("jsonb", "jsonb"),
        ("jsonb", "text"),
        ("text", "text"),
        ("timestamp", "interval"),
        ("timestamp", "timestamp"),
        ("anyenum", "anyenum"),
        ("int8", "int8"),
    ] {
        let name = format!("shadow.boom_{left}_{right}");
        client
            .batch_execute(&format!(
                "CREATE FUNCTION {name}({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'shadowed'; END $$"
            ))
            .unwrap();
        for operator in ["=", "<>", "<", "<=", ">=", "+", "-", "->", "@>"] {
            client
                .batch_execute(&format!(
                    "CREATE OPERATOR shadow.{operator} (FUNCTION = {name}, LEFTARG = {left}, RIGHTARG = {right})"
                ))
                .unwrap();
        }
    }
    for function in [
        "unnest(anyarray)",
        "now()",
        "clock_timestamp()",
        "timezone(text, timestamptz)",
        "jsonb_strip_nulls(jsonb)",
    ] {
        client
            .batch_execute(&format!(
                "CREATE FUNCTION shadow.{function} RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'shadowed'; END $$"
            ))
            .unwrap();
    }
    client.batch_execute("SET search_path = shadow, pg_catalog").unwrap();
    for (unique, conflict) in
        [("unique_keys => '{a}'", true), ("unique_for => '1 day'", true), ("schedule_in => '1 s'", false)]
    {
        let call = format!("'w', '{{\"a\": 1}}', tags => '{{x}}', {unique}");
        for round in [false, conflict] {
            let row =
                client.query_one(&format!("SELECT * FROM public.oban_insert_job({call})"), &[]).unwrap();
            assert!(row.get::<_, bool>(1) || !round, "{call}");
        }
    }
    client.batch_execute("SELECT public.oban_prune(max_age => '0 s')").unwrap();
}

/// Texts keep the database's encoding.
#[test]
fn jobs_are_inserted_in_any_encoding() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    cluster
        .client()
        .batch_execute(
            "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        )
        .unwrap();
    let mut client = cluster.client_of("latin");
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(stage => false)").unwrap();
    let call = "'Métier', '{\"clé\": \"é\"}', 'filé', tags => '{É}', unique_keys => '{clé}'";
    let (id, _) = insert_job(&mut client, call);
    assert_eq!(insert_job(&mut client, call), (id, true));
    let args = json!({"clé": "é"});
    let jobs =
        json!([{"worker": "Métier", "args": args, "queue": "filé", "tags": ["É"], "unique_keys": ["clé"]}]);
    assert_eq!(insert_jobs(&mut client, &jobs), [(id, true)]);
    let job = job(&mut client, "public", id);
    assert_eq!(
        json!([job["worker"], job["args"], job["queue"], job["tags"]]),
        json!(["Métier", {"clé": "é"}, "filé", ["é"]])
    );
}

/// A role without rights on a prefix holds up no call there, though it can compute the number of each lock.
#[test]
fn a_lock_of_another_prefix_is_another_lock() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install('other')").unwrap();
    let held =
        "SELECT locktag FROM (SELECT classid, objid, objsubid, array[classid, objid] AS locktag FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid()) l ORDER BY 1";
    client.batch_execute("BEGIN").unwrap();
    for prefix in ["public", "other"] {
        client.one::<i64>(&format!(
            "SELECT id FROM oban_insert_job('w', unique_keys => '{{}}', prefix => '{prefix}')"
        ));
    }
    let tags: Vec<Vec<u32>> = client.query(held, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    let schemas: Vec<u32> = ["public", "other"]
        .map(|schema| client.one::<u32>(&format!("SELECT '{schema}'::regnamespace::oid")))
        .to_vec();
    let of: Vec<u32> = tags.iter().map(|tag| tag[0]).collect();
    assert!(of.len() == 2 && schemas.iter().all(|schema| of.contains(schema)), "{tags:?}");
    client.batch_execute("ROLLBACK").unwrap();
}

/// Whether a large array contains another one takes time that grows with the square of its length.
#[test]
fn large_args_are_compared_in_time() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SET statement_timeout = '20 s'").unwrap();
    let large = "(SELECT jsonb_build_object('l', jsonb_agg(i)) FROM generate_series(1, 100000) i)";
    let first = insert_job(&mut client, &format!("'Q', {large}, unique_keys => '{{}}'"));
    assert_eq!(insert_job(&mut client, &format!("'Q', {large}, unique_keys => '{{}}'")), (first.0, true));
}

#[test]
fn intervals_with_a_negative_part_are_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for call in [
        "SELECT * FROM oban_insert_job('w', unique_for => '-9 mon 271 days')",
        "SELECT * FROM oban_insert_job('w', schedule_in => '1 mon -1 day')",
        "SELECT oban_prune(max_age => '-9 mon 271 days')",
    ] {
        assert_eq!(code(&mut client, call), "22023", "{call}");
    }
    assert_eq!(count(&mut client), 0);
}
