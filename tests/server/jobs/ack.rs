//! What became of a job: only the attempt that a call names counts, and Oban's columns are written.

use serde_json::json;

use super::{call, changed, cluster_of, executing, fetch, insert, job, outcome};
use crate::support::{Ask, Cluster, code, heard, wait_until};

#[test]
fn a_job_is_completed_once() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let id = executing(&mut client, "public");
    let before = job(&mut client, "public", id);
    for attempt in [0, 2, -1] {
        assert_eq!(
            call(&mut client, &format!("oban_complete_job({id}, {attempt})")).as_deref(),
            Some("false")
        );
    }
    assert_eq!(job(&mut client, "public", id), before);
    assert_eq!(call(&mut client, &format!("oban_complete_job({id}, 1)")).as_deref(), Some("true"));
    let after = job(&mut client, "public", id);
    assert_eq!(changed(&before, &after), ["completed_at", "state"]);
    assert_eq!(after["state"], "completed");
    assert_eq!(call(&mut client, &format!("oban_complete_job({id}, 1)")).as_deref(), Some("false"));
    assert_eq!(call(&mut client, "oban_complete_job(4711, 1)").as_deref(), Some("false"));
}

/// A job that was rescued, and claimed again, belongs to the later attempt.
#[test]
fn a_worker_that_lost_its_job_changes_nothing() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let id = executing(&mut client, "public");
    client.batch_execute("UPDATE oban_jobs SET state = 'available'").unwrap();
    let calls = |id: i64| {
        [
            format!("oban_complete_job({id}, 1)"),
            format!("oban_fail_job({id}, 1, 'x')"),
            format!("oban_snooze_job({id}, 1, '1 s')"),
            format!("oban_cancel_job({id}, 1)"),
            format!("oban_discard_job({id}, 1)"),
        ]
    };
    for claimed in [false, true] {
        if claimed {
            assert_eq!(fetch(&mut client, "'{run}', 'm'"), [id]);
        }
        let before = job(&mut client, "public", id);
        for lost in calls(id) {
            let result = call(&mut client, &lost);
            assert!(matches!(result.as_deref(), None | Some("false")), "{lost}: {result:?}");
        }
        assert_eq!(job(&mut client, "public", id), before);
    }
    assert_eq!(call(&mut client, &format!("oban_complete_job({id}, 2)")).as_deref(), Some("true"));
}

/// What Oban's own Basic engine writes: `errors` is an array of jsonb, or one jsonb in Python.
#[test]
fn a_failed_attempt_is_recorded_and_tried_again() {
    for python in [false, true] {
        let cluster = cluster_of(python);
        let mut client = cluster.client();
        let id = executing(&mut client, "public");
        let before = job(&mut client, "public", id);
        let error = "** (RuntimeError) it broke\n    \"quoted\" \\ 'text'";
        let fail = format!("oban_fail_job({id}, 1, $e${error}$e$)");
        assert_eq!(call(&mut client, &fail).as_deref(), Some("retryable"));
        let after = job(&mut client, "public", id);
        assert_eq!(changed(&before, &after), ["errors", "scheduled_at", "state"], "python: {python}");
        let entry = after["errors"][0].as_object().unwrap();
        assert_eq!(entry.keys().collect::<Vec<_>>(), ["at", "attempt", "error"]);
        assert_eq!((entry["attempt"].as_i64(), entry["error"].as_str()), (Some(1), Some(error)));
        let soon = "SELECT scheduled_at - timezone('UTC', now()) BETWEEN interval '15 s' AND interval '20 s' FROM oban_jobs";
        assert!(client.one::<bool>(soon), "17 s, and up to a tenth more");
        // The second and last attempt.
        client
            .batch_execute("UPDATE oban_jobs SET state = 'available', scheduled_at = now() - interval '1 day', max_attempts = 2")
            .unwrap();
        assert_eq!(fetch(&mut client, "'{run}', 'n'"), [id]);
        let before = job(&mut client, "public", id);
        assert_eq!(
            call(&mut client, &format!("oban_fail_job({id}, 2, 'again')")).as_deref(),
            Some("discarded")
        );
        let after = job(&mut client, "public", id);
        assert_eq!(changed(&before, &after), ["discarded_at", "errors", "state"]);
        assert_eq!(after["errors"].as_array().unwrap().len(), 2);
    }
}

/// Another transaction changes how many attempts are left, while a failure waits for it.
#[test]
fn a_failure_counts_whatever_becomes_of_max_attempts() {
    let cluster = Cluster::installed();
    let (mut client, mut other) = (cluster.client(), cluster.client());
    for (before, after, state) in [(1, 5, "retryable"), (5, 1, "discarded")] {
        let id = insert(&mut client, "public", "queue, max_attempts", &format!("'run', {before}"));
        assert_eq!(fetch(&mut client, "'{run}', 'n'"), [id]);
        other
            .batch_execute(&format!("BEGIN; UPDATE oban_jobs SET max_attempts = {after} WHERE id = {id}"))
            .unwrap();
        let mut session = cluster.client();
        let pid: i32 = session.one("SELECT pg_backend_pid()");
        let failing =
            std::thread::spawn(move || call(&mut session, &format!("oban_fail_job({id}, 1, 'boom')")));
        wait_until("it waits for the row", || {
            client.one(&format!(
                "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = {pid}"
            ))
        });
        other.batch_execute("COMMIT").unwrap();
        assert_eq!(failing.join().unwrap().as_deref(), Some(state));
    }
}

/// Oban's delay: 15 s and 2 to the power of the attempt, of 20 in all, and up to a tenth more.
#[test]
fn the_delay_grows_as_obans_does() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install(stage => false)").unwrap();
    for (attempt, most, seconds) in
        [(1, 20, 17.0), (10, 20, 1039.0), (19, 20, 524_303.0), (50, 100, 1039.0), (3, 5, 23.0)]
    {
        let id = insert(
            &mut client,
            "public",
            "state, attempt, max_attempts, attempted_at",
            &format!("'executing', {attempt}, {most}, now()"),
        );
        assert_eq!(
            call(&mut client, &format!("oban_fail_job({id}, {attempt}, 'x')")).as_deref(),
            Some("retryable")
        );
        let delay: f64 = client.one(&format!(
            "SELECT extract(epoch FROM scheduled_at - timezone('UTC', now()))::float8 FROM oban_jobs WHERE id = {id}"
        ));
        assert!(delay > seconds - 10.0 && delay <= seconds * 1.1, "{attempt} of {most}: {delay}");
    }
    let id = executing(&mut client, "public");
    call(&mut client, &format!("oban_fail_job({id}, 1, 'x', retry_in => '1 hour')"));
    assert!(client.one::<bool>(&format!(
        "SELECT scheduled_at - timezone('UTC', now()) BETWEEN interval '59 min' AND interval '1 hour' FROM oban_jobs WHERE id = {id}"
    )));
    for bad in ["'-1 s'", "'200 years'"] {
        let sql = format!("SELECT oban_fail_job({id}, 1, 'x', retry_in => {bad})");
        assert_eq!(code(&mut client, &sql), "22023", "{sql}");
    }
    assert_eq!(code(&mut client, &format!("SELECT oban_fail_job({id}, 1, NULL)")), "22004");
}

/// A snooze is no failure, and the attempt's number does not fall.
#[test]
fn a_snoozed_job_keeps_its_attempts() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install(stage => false)").unwrap();
    let id = executing(&mut client, "public");
    let before = job(&mut client, "public", id);
    assert_eq!(call(&mut client, &format!("oban_snooze_job({id}, 1, '1 min')")).as_deref(), Some("true"));
    let after = job(&mut client, "public", id);
    assert_eq!(changed(&before, &after), ["max_attempts", "meta", "scheduled_at", "state"]);
    assert_eq!(
        json!([after["state"], after["attempt"], after["max_attempts"], after["meta"]]),
        json!(["scheduled", 1, 21, {"snoozed": 1}])
    );
    client
        .batch_execute("UPDATE oban_jobs SET state = 'available', scheduled_at = now() - interval '1 day'")
        .unwrap();
    assert_eq!(fetch(&mut client, "'{run}', 'n'"), [id]);
    call(&mut client, &format!("oban_snooze_job({id}, 2, '0 s')"));
    assert_eq!(outcome(&mut client, "public", id), json!(["scheduled", 2, 22]));
    assert_eq!(job(&mut client, "public", id)["meta"], json!({"snoozed": 2}));
    assert_eq!(code(&mut client, &format!("SELECT oban_snooze_job({id}, 2, NULL)")), "22004");
}

/// An operator cancels a job in any state but the last ones. Of a job that runs, the nodes hear.
#[test]
fn a_job_is_cancelled_and_a_running_one_is_killed() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let mut node = cluster.client();
    node.batch_execute("SELECT oban_listen_channels('{signal}')").unwrap();
    for state in ["available", "scheduled", "retryable", "suspended", "executing"] {
        let id = insert(
            &mut client,
            "public",
            "state, scheduled_at",
            &format!("'{state}', now() + interval '1 day'"),
        );
        let before = job(&mut client, "public", id);
        assert_eq!(call(&mut client, &format!("oban_cancel_job({id})")).as_deref(), Some("true"), "{state}");
        let after = job(&mut client, "public", id);
        assert_eq!(
            (changed(&before, &after), &after["state"]),
            (vec!["cancelled_at".into(), "state".into()], &json!("cancelled"))
        );
        let signals: Vec<String> = heard(&mut node).iter().map(|n| n.payload().to_owned()).collect();
        let expected = format!(r#"{{"action":"pkill","job_id":{id}}}"#);
        assert_eq!(signals, if state == "executing" { vec![expected] } else { vec![] }, "{state}");
        assert_eq!(call(&mut client, &format!("oban_cancel_job({id})")).as_deref(), Some("false"));
    }
    for state in ["completed", "discarded"] {
        let id = insert(&mut client, "public", "state", &format!("'{state}'"));
        for end in ["cancel", "discard"] {
            assert_eq!(call(&mut client, &format!("oban_{end}_job({id})")).as_deref(), Some("false"));
        }
    }
    // A worker says why.
    let id = executing(&mut client, "public");
    assert_eq!(
        call(&mut client, &format!("oban_cancel_job({id}, 1, 'no such user')")).as_deref(),
        Some("true")
    );
    assert_eq!(job(&mut client, "public", id)["errors"][0]["error"], "no such user");
    let id = executing(&mut client, "public");
    assert_eq!(call(&mut client, &format!("oban_discard_job({id}, 1, 'hopeless')")).as_deref(), Some("true"));
    let after = job(&mut client, "public", id);
    assert_eq!((&after["state"], &after["errors"][0]["error"]), (&json!("discarded"), &json!("hopeless")));
    assert!(!after["discarded_at"].is_null());
    // A signal that is rolled back with its transaction is not heard.
    let id = executing(&mut client, "public");
    heard(&mut node);
    client.batch_execute(&format!("BEGIN; SELECT oban_cancel_job({id}); ROLLBACK")).unwrap();
    assert!(heard(&mut node).is_empty());
}

/// The retry of Oban's: any job that has ended, or waits for later.
#[test]
fn a_job_is_tried_again_and_its_queue_is_woken() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let mut listener = cluster.client();
    for state in ["scheduled", "retryable", "completed", "discarded", "cancelled", "suspended"] {
        let id = insert(
            &mut client,
            "public",
            "queue, state, attempt, max_attempts, scheduled_at, completed_at, cancelled_at, discarded_at",
            &format!("'q', '{state}', 3, 3, now() + interval '1 day', now(), now(), now()"),
        );
        listener.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
        assert_eq!(call(&mut client, &format!("oban_retry_job({id})")).as_deref(), Some("true"), "{state}");
        assert_eq!(outcome(&mut client, "public", id), json!(["available", 3, 4]));
        let after = job(&mut client, "public", id);
        assert!(["completed_at", "cancelled_at", "discarded_at"].iter().all(|at| after[*at].is_null()));
        assert_eq!(fetch(&mut client, "'{q}', 'n'"), [id], "it is due");
        assert_eq!(heard(&mut listener).iter().filter(|n| n.payload().contains("\"q\"")).count(), 1);
        assert_eq!(call(&mut client, &format!("oban_retry_job({id})")).as_deref(), Some("false"), "it runs");
    }
}
