//! `CALL oban_take` claims jobs, or waits until there are some.

use std::thread::JoinHandle;

use postgres::Client;
use serde_json::Value;

use super::{executing, fetch, insert, job};
use crate::support::{Ask, Cluster, code, wait_until};

/// A session that waits in oban_take.
struct Taker {
    pid: i32,
    thread: JoinHandle<(Client, Result<Vec<i64>, String>)>,
}

/// The ids of the jobs that `CALL oban_take(arguments)` returns. `Err` is the SQLSTATE.
fn take(client: &mut Client, arguments: &str) -> Result<Vec<i64>, String> {
    let row = client.query_one(&format!("CALL oban_take({arguments})"), &[]);
    // The driver may find the connection closed before it has read why.
    let row = row.map_err(|e| e.code().map_or("57P01".to_owned(), |c| c.code().to_owned()))?;
    let Value::Array(jobs) = row.get(0) else { panic!("no array: {row:?}") };
    Ok(jobs.iter().map(|job| job["id"].as_i64().unwrap()).collect())
}

impl Taker {
    fn start(mut client: Client, arguments: &str) -> Self {
        let pid: i32 = client.one("SELECT pg_backend_pid()");
        let arguments = arguments.to_owned();
        let thread = std::thread::spawn(move || {
            let taken = take(&mut client, &arguments);
            (client, taken)
        });
        Self { pid, thread }
    }

    /// Starts it, and returns when it waits.
    fn waiting(cluster: &Cluster, client: Client, arguments: &str) -> Self {
        let taker = Self::start(client, arguments);
        let mut admin = cluster.client();
        wait_until("it waits", || taker.waits(&mut admin));
        taker
    }

    fn waits(&self, admin: &mut Client) -> bool {
        let sql = format!(
            "SELECT wait_event IN ('Extension', 'ObanrsWait') AND backend_xmin IS NULL AND backend_xid IS NULL
                 AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype <> 'virtualxid')
             FROM pg_stat_activity a WHERE pid = {}",
            self.pid
        );
        admin.one::<Option<bool>>(&sql) == Some(true) && self.sleeps()
    }

    /// Whether the process sleeps already. Postgres sets the wait event a moment before.
    fn sleeps(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    }

    /// How often the process has slept so far.
    fn switches(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap();
        line.rsplit('\t').next().unwrap().parse().unwrap()
    }

    fn taken(self) -> Result<Vec<i64>, String> {
        self.thread.join().unwrap().1
    }
}

const HOUR: &str = "timeout => '1 hour'";

#[test]
fn what_is_there_is_returned_at_once_in_the_form_of_a_fetch() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let columns = "queue, meta, tags, priority";
    let values = "'q', '{\"a\": [1, \"ü\"]}', '{x}', 2";
    let both =
        [insert(&mut client, "public", columns, values), insert(&mut client, "public", columns, values)];
    let row = client.query_one("CALL oban_take('{q}', 'n', uuid => 'u')", &[]).unwrap();
    let taken: Value = row.get(0);
    let fetched: String = client.one("SELECT to_jsonb(j)::text FROM oban_fetch('{q}', 'n', uuid => 'u') j");
    let mut fetched: Value = serde_json::from_str(&fetched).unwrap();
    assert_eq!((taken[0]["id"].as_i64(), fetched["id"].as_i64()), (Some(both[0]), Some(both[1])));
    for key in ["id", "attempted_at", "inserted_at", "scheduled_at"] {
        assert!(!fetched[key].is_null(), "{key}");
        fetched[key] = taken[0][key].clone();
    }
    assert_eq!(taken, Value::Array(vec![fetched]));
    assert_eq!(job(&mut client, "public", both[0])["state"], "executing", "it is committed");
    assert_eq!(take(&mut client, "'{q}', 'n', timeout => '0'"), Ok(vec![]));
    assert_eq!(take(&mut client, "'{q}', 'n', timeout => '10 ms'"), Ok(vec![]));
}

#[test]
fn one_job_wakes_the_taker_that_has_waited_longest_and_no_other() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    let start = |_| Taker::waiting(&cluster, cluster.client(), &format!("'{{a,b}}', 'n', 2, {HOUR}"));
    let mut takers: Vec<Taker> = (0..6).map(start).collect();
    let other = Taker::waiting(&cluster, cluster.client(), &format!("'{{other}}', 'n', {HOUR}"));
    while !takers.is_empty() {
        let before: Vec<u64> = takers.iter().skip(1).map(Taker::switches).collect();
        let id = insert(&mut admin, "public", "queue", "'b'");
        assert_eq!(takers.remove(0).taken(), Ok(vec![id]));
        assert_eq!(takers.iter().map(Taker::switches).collect::<Vec<_>>(), before, "they sleep on");
    }
    // Several jobs of one commit wake several takers, and each full claim wakes the next.
    let takers: Vec<Taker> = (0..6)
        .map(|_| Taker::waiting(&cluster, cluster.client(), &format!("'{{a}}', 'n', {HOUR}")))
        .collect();
    admin
        .batch_execute("INSERT INTO oban_jobs (worker, queue) SELECT 'w', 'a' FROM generate_series(1, 6)")
        .unwrap();
    for taker in takers {
        assert_eq!(taker.taken().unwrap().len(), 1);
    }
    let id = insert(&mut admin, "public", "queue", "'other'");
    assert_eq!(other.taken(), Ok(vec![id]));
}

/// A taker that has not looked yet passes its wake-up on, however it ends.
#[test]
fn a_taker_that_fails_wakes_the_next() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    // The claim of node `bad` waits for a lock that the test holds, and then fails or is ended.
    admin
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.attempted_by[1] = 'bad' THEN
                     PERFORM pg_advisory_xact_lock(7);
                     RAISE EXCEPTION 'bad' USING ERRCODE = '22012';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER slow BEFORE UPDATE ON oban_jobs FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .unwrap();
    let mut holder = cluster.client();
    for end in ["pg_advisory_unlock(7)", "pg_cancel_backend({pid})", "pg_terminate_backend({pid})"] {
        holder.batch_execute("SELECT pg_advisory_lock(7)").unwrap();
        let bad = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'bad', {HOUR}"));
        let good = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'good', {HOUR}"));
        let id = insert(&mut admin, "public", "queue", "'q'");
        let locked = format!("SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE pid = {}", bad.pid);
        wait_until("it has the job", || admin.one::<Option<bool>>(&locked) == Some(true));
        // The other looks meanwhile, and finds the job locked.
        holder.batch_execute("SELECT pg_notify('x', 'y')").unwrap();
        assert!(good.waits(&mut admin));
        holder.batch_execute(&format!("SELECT {}", end.replace("{pid}", &bad.pid.to_string()))).unwrap();
        assert_eq!(good.taken(), Ok(vec![id]), "{end}");
        let code = bad.taken().unwrap_err();
        assert!(["22012", "57014", "57P01"].contains(&&*code), "{code}");
        holder.batch_execute("SELECT pg_advisory_unlock_all()").unwrap();
    }
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM oban_jobs WHERE attempt <> 1"), 0);
}

#[test]
fn whatever_makes_a_job_available_wakes_a_taker() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 2"]);
    let mut admin = cluster.client();
    admin
        .batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(), oban_install('bare', stage => false)")
        .unwrap();
    admin.batch_execute("SELECT oban_uninstall('bare')").unwrap();
    let woken = |what: &str, prefix: &str, id: i64, statement: &str| {
        let arguments = format!("'{{run,q}}', 'n', {HOUR}, prefix => '{prefix}'");
        let taker = Taker::waiting(&cluster, cluster.client(), &arguments);
        let mut client = cluster.client();
        statement
            .split(';')
            .for_each(|sql| client.batch_execute(&sql.replace("{id}", &id.to_string())).unwrap());
        assert_eq!(taker.taken(), Ok(vec![id]), "{what}");
    };
    let mut other = cluster.client();
    let id = executing(&mut other, "public");
    woken("an UPDATE", "public", id, "UPDATE oban_jobs SET state = 'available' WHERE id = {id}");
    woken("a snooze", "public", id, "SELECT oban_snooze_job({id}, 2, '10 ms')");
    woken("a retry", "public", id, "SELECT oban_fail_job({id}, 3, 'e', retry_in => '10 ms')");
    woken("a due time", "public", id, "SELECT oban_complete_job({id}, 4);
        UPDATE oban_jobs SET state = 'available', scheduled_at = timezone('UTC', clock_timestamp() + '50 ms') WHERE id = {id}");
    woken("a rescue", "public", id, "SELECT oban_rescue(grace => '0', include_unknown => true)");
    woken("an operator", "public", id, "SELECT oban_complete_job({id}, 6); SELECT oban_retry_job({id})");
    woken(
        "a prepared transaction",
        "public",
        id,
        "SELECT oban_complete_job({id}, 7);
        BEGIN; SELECT oban_retry_job({id}); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'",
    );
    let available = "UPDATE oban_jobs SET state = 'available', attempt = max_attempts WHERE id = {id}";
    admin.batch_execute(&available.replace("{id}", &id.to_string())).unwrap();
    woken(
        "another limit",
        "public",
        id,
        "UPDATE oban_jobs SET max_attempts = max_attempts + 5 WHERE id = {id}",
    );
    let later =
        "UPDATE oban_jobs SET state = 'available', scheduled_at = now() + interval '1 day' WHERE id = {id}";
    admin.batch_execute(&later.replace("{id}", &id.to_string())).unwrap();
    woken(
        "an earlier time",
        "public",
        id,
        "UPDATE oban_jobs SET scheduled_at = timezone('UTC', now()) WHERE id = {id}",
    );
    // Without triggers.
    let id = executing(&mut other, "bare");
    woken(
        "an operator",
        "bare",
        id,
        "SELECT oban_complete_job({id}, 1, 'bare'); SELECT oban_retry_job({id}, 'bare')",
    );
    woken("a rescue", "bare", id, "SELECT oban_rescue('bare', grace => '0', include_unknown => true)");
}

#[test]
fn a_paused_queue_is_passed_on_and_taken_after_the_resume() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.signal_ingest = on"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    for (pause, resume) in [
        ("SELECT oban_pause_queue('q')", "SELECT oban_resume_queue('q')"),
        ("SELECT oban_pause_queue('*')", "SELECT oban_resume_queue('*')"),
        ("SELECT oban_pause_queue('q', 'a')", "SELECT oban_resume_queue('q', 'a')"),
        // A signal without a node concerns nodes of every name, and a name and a node are one text.
        ("SELECT oban_pause_queue('q')", "SELECT oban_resume_queue('q', name => 'Other')"),
        ("SELECT oban_pause_queue('q', name => 'Other')", "SELECT oban_resume_queue('q', name => 'Other')"),
        // The row of the pause is deleted to make room.
        (
            "SELECT oban_pause_queue('q', 'a')",
            "SELECT oban_scale_queue('z' || i, 5) FROM generate_series(1, 2100) i",
        ),
        ("SELECT oban_pause_queue('q')", "SELECT oban_resume_queue('q')"),
        // What Oban's nodes send.
        (
            r#"SELECT pg_notify('public.oban_signal', '{"action": "pause", "queue": "q", "ident": "any"}')"#,
            r#"SELECT pg_notify('public.oban_signal', '{"action": "resume", "queue": "q", "ident": "any"}')"#,
        ),
    ] {
        // The keeper may not listen yet.
        wait_until("it is remembered", || {
            admin.batch_execute(pause).unwrap();
            admin.one::<Option<bool>>("SELECT paused FROM oban_queue_state('q', 'a')") == Some(true)
        });
        let taker = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'a', {HOUR}"));
        let id = insert(&mut admin, "public", "queue", "'q'");
        wait_until("it sleeps again", || taker.waits(&mut admin));
        assert_eq!(job(&mut admin, "public", id)["state"], "available", "{pause}");
        admin.batch_execute(resume).unwrap();
        assert_eq!(taker.taken(), Ok(vec![id]), "{resume}");
    }
    // A queue that is paused for one node is the other's.
    admin.batch_execute("SELECT oban_pause_queue('q', 'a')").unwrap();
    let paused = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'a', {HOUR}"));
    let other = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'b', {HOUR}"));
    let id = insert(&mut admin, "public", "queue", "'q'");
    assert_eq!(other.taken(), Ok(vec![id]));
    admin.execute("SELECT pg_cancel_backend($1)", &[&paused.pid]).unwrap();
    assert_eq!(paused.taken(), Err("57014".into()));
}

/// A role that sees no row of a queue must not swallow the wake-up of a role that does.
#[test]
fn row_security_hides_jobs_and_swallows_no_wakeup() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE ROLE blind LOGIN; GRANT SELECT, UPDATE ON oban_jobs TO blind;
             ALTER TABLE oban_jobs ENABLE ROW LEVEL SECURITY;
             CREATE POLICY own ON oban_jobs TO blind USING (worker = 'blind')",
        )
        .unwrap();
    let blind = |_| {
        let client = cluster.client_as("postgres", "blind");
        Taker::waiting(&cluster, client, &format!("'{{q}}', 'blind', {HOUR}"))
    };
    let blind: Vec<Taker> = (0..2).map(blind).collect();
    let seeing = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'seeing', {HOUR}"));
    let id = insert(&mut admin, "public", "queue", "'q'");
    assert_eq!(seeing.taken(), Ok(vec![id]));
    wait_until("they sleep", || blind.iter().all(|taker| taker.waits(&mut admin)));
    for _ in &blind {
        // Each job wakes all of them that wait.
        admin.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('blind', 'q')").unwrap();
    }
    let mut taken: Vec<i64> = blind.into_iter().flat_map(|taker| taker.taken().unwrap()).collect();
    taken.sort_unstable();
    assert_eq!(taken, [id + 1, id + 2]);
}

#[test]
fn a_waiting_taker_obeys_and_follows() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("SELECT oban_install('p')").unwrap();
    let wait = |arguments: &str| Taker::waiting(&cluster, cluster.client(), arguments);
    for (function, code) in [("pg_cancel_backend", "57014"), ("pg_terminate_backend", "57P01")] {
        let taker = wait(&format!("'{{q}}', 'n', {HOUR}"));
        admin.execute(&format!("SELECT {function}($1)"), &[&taker.pid]).unwrap();
        assert_eq!(taker.taken(), Err(code.into()));
    }
    // A rename is followed, and a schema that is dropped is an error.
    let taker = wait(&format!("'{{q}}', 'n', {HOUR}, prefix => 'p'"));
    admin.batch_execute("ALTER SCHEMA p RENAME TO q").unwrap();
    let id = insert(&mut admin, "q", "queue", "'q'");
    assert_eq!(taker.taken(), Ok(vec![id]));
    // A right that is revoked is gone.
    admin.batch_execute("CREATE ROLE joe LOGIN; GRANT SELECT, UPDATE ON oban_jobs TO joe").unwrap();
    let joe = cluster.client_as("postgres", "joe");
    let taker = Taker::waiting(&cluster, joe, &format!("'{{q}}', 'n', {HOUR}"));
    admin.batch_execute("REVOKE UPDATE ON oban_jobs FROM joe").unwrap();
    insert(&mut admin, "public", "queue", "'q'");
    assert_eq!(taker.taken(), Err("42501".into()));
    assert_eq!(fetch(&mut admin, "'{q}', 'n'").len(), 1);
    // DROP EXTENSION ends the wait.
    let takers: Vec<Taker> = (0..3).map(|_| wait(&format!("'{{q}}', 'n', {HOUR}"))).collect();
    admin.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    takers.into_iter().for_each(|taker| assert_eq!(taker.taken(), Err("55000".into())));
}

#[test]
fn it_runs_at_read_committed_outside_of_blocks_only() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for level in ["repeatable read", "serializable"] {
        client.batch_execute(&format!("SET default_transaction_isolation = '{level}'")).unwrap();
        let taker = Taker::waiting(&cluster, client, &format!("'{{q}}', 'n', {HOUR}"));
        let id = insert(&mut cluster.client(), "public", "queue", "'q'");
        let (session, taken) = taker.thread.join().unwrap();
        client = session;
        assert_eq!(taken, Ok(vec![id]));
        assert_eq!(client.one::<String>("SELECT current_setting('transaction_isolation')"), level);
    }
    let id = insert(&mut client, "public", "queue", "'q'");
    for sql in [
        "BEGIN; CALL oban_take('{q}', 'n'); COMMIT",
        "DO $$ DECLARE j jsonb; BEGIN BEGIN CALL oban_take('{q}', 'n', jobs => j); EXCEPTION WHEN sqlstate '22000' THEN END; END $$",
    ] {
        let code = code(&mut client, sql);
        client.batch_execute("ROLLBACK").unwrap();
        assert!(["25001", "2D000"].contains(&&*code), "{sql}: {code}");
    }
    assert_eq!(job(&mut client, "public", id)["state"], "available");
    assert_eq!(take(&mut client, "'{q}', 'n'"), Ok(vec![id]));
}

/// What can't be returned is not claimed.
#[test]
fn a_claim_of_more_than_an_answer_has_room_for_is_rolled_back() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "INSERT INTO oban_jobs (worker, queue, args)
             SELECT 'w', 'q', jsonb_build_object('x', repeat('x', 1000000)) FROM generate_series(1, 280)",
        )
        .unwrap();
    assert_eq!(take(&mut client, "'{q}', 'n', 1000, timeout => '0'"), Err("54000".into()));
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs WHERE state = 'available'"), 280);
    assert_eq!(take(&mut client, "'{q}', 'n', 2").unwrap().len(), 2);
}

/// A taker passes over what is locked, and is woken when the lock was for nothing.
#[test]
fn a_job_that_is_locked_and_released_wakes_a_taker() {
    let cluster = Cluster::installed();
    let mut holder = cluster.client();
    for (hold, release) in [
        ("SELECT oban_cancel_job(max(id)) FROM oban_jobs", "ROLLBACK"),
        ("SELECT oban_discard_job(max(id)) FROM oban_jobs", "ROLLBACK"),
        ("SELECT FROM oban_fetch('{q}', 'x')", "ROLLBACK"),
        ("SAVEPOINT s; SELECT FROM oban_fetch('{q}', 'x')", "ROLLBACK TO s; COMMIT"),
        ("UPDATE oban_jobs SET priority = 3", "COMMIT"),
    ] {
        let id = insert(&mut holder, "public", "queue", "'q'");
        holder.batch_execute(&format!("BEGIN; {hold}")).unwrap();
        let taker = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'n', {HOUR}"));
        holder.batch_execute(release).unwrap();
        assert_eq!(taker.taken(), Ok(vec![id]), "{hold}");
    }
}

#[test]
fn a_table_that_takes_the_place_of_another_wakes_a_taker() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("CREATE TABLE new (LIKE oban_jobs INCLUDING ALL)").unwrap();
    admin.batch_execute("INSERT INTO new (id, worker, queue) VALUES (77, 'w', 'q')").unwrap();
    let taker = Taker::waiting(&cluster, cluster.client(), &format!("'{{q}}', 'n', {HOUR}"));
    admin.batch_execute("ALTER TABLE oban_jobs RENAME TO old; ALTER TABLE new RENAME TO oban_jobs").unwrap();
    assert_eq!(taker.taken(), Ok(vec![77]));
}

/// A job that can't be returned does not keep the queue from going on.
#[test]
fn a_job_that_is_too_large_is_returned_without_its_contents() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "INSERT INTO oban_jobs (id, worker, queue, args) SELECT 1, 'w', 'q', jsonb_build_object('a', jsonb_agg('1e131071'::jsonb))
                 FROM generate_series(1, 8500);
             INSERT INTO oban_jobs (id, worker, queue, args) VALUES (2, 'w', 'q', ('{\"a\":' || repeat('[', 6400) || repeat(']', 6400) || '}')::jsonb);
             INSERT INTO oban_jobs (id, worker, queue, args) VALUES (3, 'w', 'q', '{\"a\": 1e1000}')",
        )
        .unwrap();
    // No jsonb could hold the first of these. The second has some megabytes.
    client
        .batch_execute(
            "INSERT INTO oban_jobs (id, worker, queue, args, meta) SELECT 4, 'w', 'q', o, o
                 FROM jsonb_build_object('a', repeat('x', 140000000)) o;
             INSERT INTO oban_jobs (id, worker, queue, args) SELECT 5, 'w', 'q', jsonb_build_object('a', string_agg(md5(i::text), ''))
                 FROM generate_series(1, 100000) i",
        )
        .unwrap();
    let row = client.query_one("CALL oban_take('{q}', 'n', 10)", &[]).unwrap();
    let Value::Array(jobs) = row.get(0) else { panic!("{row:?}") };
    let marks: Vec<_> = jobs.iter().map(|job| (job["id"].as_i64(), job["too_large"].as_bool())).collect();
    let large = Some(true);
    assert_eq!(
        marks,
        [(Some(1), large), (Some(2), large), (Some(3), None), (Some(4), large), (Some(5), None)]
    );
    assert_eq!(jobs[4]["args"]["a"].as_str().map(str::len), Some(3_200_000));
    assert!(jobs[0]["args"].is_null() && jobs[2]["args"].is_object(), "{jobs:?}");
    assert_eq!((jobs[0]["attempt"].as_i64(), jobs[0]["queue"].as_str()), (Some(1), Some("q")));
}

/// What is not known to concern a queue wakes one taker of each queue, and not all.
#[test]
fn a_prepared_transaction_wakes_one_taker_of_each_queue() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_prepared_transactions = 2"]);
    let mut admin = cluster.client();
    admin
        .batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); CREATE TABLE other (id int)")
        .unwrap();
    let takers: Vec<Taker> = (0..8)
        .map(|n| {
            Taker::waiting(&cluster, cluster.client(), &format!("'{{{}}}', 'n', {HOUR}", ["a", "b"][n % 2]))
        })
        .collect();
    let before: Vec<u64> = takers.iter().map(Taker::switches).collect();
    admin.batch_execute("BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'x'").unwrap();
    admin.batch_execute("COMMIT PREPARED 'x'").unwrap();
    let woken = || takers.iter().zip(&before).filter(|(taker, before)| taker.switches() > **before).count();
    wait_until("two are woken", || woken() == 2);
    wait_until("they sleep again", || takers.iter().all(|taker| taker.waits(&mut admin)));
    assert_eq!(woken(), 2);
}
