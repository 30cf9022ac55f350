//! When does a prefix have a stager, and what becomes of it when something around it changes?

use super::{Seen, becomes_available, check, installed, running, schedule, sleeps, stager};
use crate::support::{Ask, Cluster, code, wait_until};

const TOTAL: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'obanrs stager'";

#[test]
fn stage_is_on_for_new_tables_off_for_adopted_ones_and_stays_as_it_is() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let stages = |client: &mut postgres::Client, prefix: &str| -> bool {
        client.one(&format!(
            "SELECT bool_and(tgnargs = 1 AND tgargs = 'stage\\000') FROM pg_trigger
             WHERE tgrelid = '{prefix}.oban_jobs'::regclass AND tgname LIKE 'obanrs%'"
        ))
    };
    let index = |client: &mut postgres::Client, prefix: &str| -> bool {
        client.one(&format!("SELECT to_regclass('{prefix}.obanrs_jobs_due') IS NOT NULL"))
    };
    client
        .batch_execute(
            "SELECT oban_install('new'); SELECT oban_install('never', stage => false);
             CREATE SCHEMA adopted; CREATE TABLE adopted.oban_jobs (LIKE new.oban_jobs INCLUDING ALL); DROP INDEX adopted.oban_jobs_scheduled_at_idx;
             SELECT oban_install('adopted')",
        )
        .unwrap();
    for (prefix, staged) in [("new", true), ("never", false), ("adopted", false)] {
        assert_eq!((stages(&mut client, prefix), index(&mut client, prefix)), (staged, staged), "{prefix}");
        client
            .batch_execute(&format!(
                "SELECT oban_install('{prefix}'), oban_install('{prefix}', on_replica => true)"
            ))
            .unwrap();
        assert_eq!(stages(&mut client, prefix), staged, "{prefix} again");
    }
    sleeps(&mut client, "new");
    assert!(stager(&mut client, "adopted").is_none() && check(&mut client, "adopted").is_none());
    for (prefix, staged) in [("new", false), ("adopted", true), ("never", true), ("never", false)] {
        client.batch_execute(&format!("SELECT oban_install('{prefix}', stage => {staged})")).unwrap();
        assert_eq!((stages(&mut client, prefix), index(&mut client, prefix)), (staged, staged), "{prefix}");
        if staged {
            sleeps(&mut client, prefix);
        } else {
            wait_until("its stager has gone", || stager(&mut client, prefix).is_none());
        }
    }
    let id = schedule(&mut client, "adopted", "q", 100);
    becomes_available(&mut client, "adopted", id);
    client.batch_execute("SELECT oban_uninstall('adopted')").unwrap();
    assert!(!index(&mut client, "adopted"), "uninstall removes the index");
    wait_until("none is left", || client.one::<i64>(TOTAL) == 0);
}

/// A prefix that a version before 0.9.0 has installed is off, also after `oban_install` has replaced its
/// trigger.
#[test]
fn a_prefix_of_an_earlier_version_is_off() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client
        .batch_execute(
            "SELECT oban_install(stage => false); DROP TRIGGER obanrs_jobs_update ON oban_jobs; DROP TRIGGER obanrs_jobs_insert ON oban_jobs;
             CREATE TRIGGER obanrs_jobs_insert AFTER INSERT ON oban_jobs REFERENCING NEW TABLE AS obanrs_inserted
             FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert();
             SELECT oban_install()",
        )
        .unwrap();
    assert!(
        !client.one::<bool>("SELECT bool_or(tgnargs > 0) FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%'")
    );
    assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs_jobs%'"), 2);
    client.batch_execute("SELECT oban_install('other')").unwrap();
    sleeps(&mut client, "other");
    assert!(stager(&mut client, "public").is_none());
}

/// The choice is in the catalogs: a restart, a dump and a copy of the database keep it.
#[test]
fn the_choice_survives_restarts_dumps_and_copies() {
    let (cluster, mut client) = installed();
    client.batch_execute("SELECT oban_install('off', stage => false)").unwrap();
    drop(client);
    cluster.restart();
    let mut client = cluster.client();
    sleeps(&mut client, "public");
    assert!(stager(&mut client, "off").is_none());
    let dump = cluster.program("pg_dump").arg("postgres").output().unwrap();
    assert!(dump.status.success());
    client.batch_execute("CREATE DATABASE restored").unwrap();
    let file = cluster.data_folder().join("dump.sql");
    std::fs::write(&file, &dump.stdout).unwrap();
    let restored = cluster
        .program("psql")
        .args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-d", "restored", "-f"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let mut restored = cluster.client_of("restored");
    let id = schedule(&mut restored, "public", "q", 100);
    becomes_available(&mut restored, "public", id);
    assert_eq!(
        restored.one::<String>(
            "SELECT string_agg(prefix, ',') FROM oban_workers WHERE kind = 'stager' AND database = 'restored'"
        ),
        "public"
    );
}

#[test]
fn commands_that_need_the_database_alone_have_stagers_leave() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    for _ in 0..3 {
        client.batch_execute("CREATE DATABASE ours").unwrap();
        let mut ours = cluster.client_of("ours");
        ours.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(); SELECT oban_install('two')")
            .unwrap();
        let runs = "SELECT count(*) FROM oban_workers WHERE kind = 'stager' AND state = 'running'";
        wait_until("both run", || client.one::<i64>(runs) == 2);
        // One of them is in the middle of a statement.
        ours.batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE UPDATE ON oban_jobs FOR EACH ROW EXECUTE FUNCTION slow();
             INSERT INTO oban_jobs (worker, state, scheduled_at) VALUES ('w', 'scheduled', '-infinity')",
        )
        .unwrap();
        wait_until("it sleeps in the owner's code", || {
            client.one("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'obanrs stager' AND wait_event = 'PgSleep'")
        });
        drop(ours);
        let since = std::time::Instant::now();
        client.batch_execute("ALTER DATABASE ours RENAME TO renamed").unwrap();
        assert!(since.elapsed() < std::time::Duration::from_secs(3), "{:?}", since.elapsed());
        wait_until("both are back", || client.one::<i64>(runs) == 2);
        client.batch_execute("DROP DATABASE renamed").unwrap();
    }
    wait_until("none is left", || client.one::<i64>(TOTAL) == 0);
}

#[test]
fn stagers_end_with_the_extension_the_table_and_the_schema() {
    let (_cluster, mut client) = installed();
    for (create, drop) in [
        ("SELECT oban_install('p')", "DROP TABLE p.oban_jobs CASCADE"),
        ("SELECT oban_install('p')", "DROP SCHEMA p CASCADE"),
        ("SELECT oban_install('p')", "ALTER TABLE p.oban_jobs RENAME TO others; DROP TABLE p.others CASCADE"),
        (
            "SELECT oban_install('p')",
            "DROP TRIGGER obanrs_jobs_insert ON p.oban_jobs; DROP TABLE p.oban_jobs CASCADE",
        ),
    ] {
        client.batch_execute(create).unwrap();
        sleeps(&mut client, "p");
        client.batch_execute(drop).unwrap();
        wait_until(drop, || stager(&mut client, "p").is_none());
    }
    client.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    wait_until("all have gone", || client.one::<i64>(TOTAL) == 0);
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(stage => true)").unwrap();
    sleeps(&mut client, "public");
}

#[test]
fn a_new_owner_or_table_has_a_stager_of_its_own() {
    let (cluster, mut client) = installed();
    let before = sleeps(&mut client, "public");
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app; ALTER TABLE oban_jobs OWNER TO app",
        )
        .unwrap();
    let user = |client: &mut postgres::Client| -> Option<String> {
        let sql = "SELECT usename::text FROM pg_stat_activity WHERE backend_type = 'obanrs stager'";
        client.query_opt(sql, &[]).unwrap().and_then(|row| row.get(0))
    };
    wait_until("it is connected as the new owner", || user(&mut client).as_deref() == Some("app"));
    assert_ne!(sleeps(&mut client, "public"), before);
    let id = schedule(&mut client, "public", "q", 50);
    becomes_available(&mut client, "public", id);
    // A table in its place.
    client
        .batch_execute(
            "BEGIN; ALTER TABLE oban_jobs RENAME TO old_jobs; CREATE TABLE oban_jobs (LIKE old_jobs INCLUDING ALL); COMMIT;
             DROP INDEX obanrs_jobs_due; SELECT oban_install(stage => true)",
        )
        .unwrap();
    wait_until("it is connected as that one's owner", || user(&mut client).as_deref() == Some("postgres"));
    let id = schedule(&mut client, "public", "q", 50);
    becomes_available(&mut client, "public", id);
    drop(cluster);
}

#[test]
fn a_schema_that_is_renamed_keeps_its_stager() {
    let (_cluster, mut client) = installed();
    client.batch_execute("SELECT oban_install('before')").unwrap();
    let pid = sleeps(&mut client, "before");
    let id = schedule(&mut client, "before", "q", 400);
    client.batch_execute("ALTER SCHEMA before RENAME TO after").unwrap();
    becomes_available(&mut client, "after", id);
    wait_until("its name is shown", || stager(&mut client, "after").is_some_and(|s| s.pid == Some(pid)));
}

/// Stagers run on without a keeper, and the next keeper knows them. A stager that ends comes back.
#[test]
fn whatever_is_terminated_comes_back() {
    let (cluster, mut client) = installed();
    let pid = sleeps(&mut client, "public");
    for kind in ["keeper", "coordinator"] {
        client
            .query_one(
                &format!("SELECT pg_terminate_backend(pid) FROM oban_workers WHERE kind = '{kind}'"),
                &[],
            )
            .unwrap();
        let id = schedule(&mut client, "public", "q", 50);
        becomes_available(&mut client, "public", id);
    }
    wait_until("another keeper runs", || {
        client.one("SELECT count(*) = 1 FROM oban_workers WHERE kind = 'keeper' AND state = 'running'")
    });
    assert_eq!(running(&mut client, "public"), pid);
    for restarts in 1..=3 {
        let pid = sleeps(&mut client, "public");
        client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
        wait_until("another stager runs", || {
            stager(&mut client, "public")
                .is_some_and(|s| s.state == "running" && s.pid != Some(pid) && s.restarts == restarts)
        });
        let id = schedule(&mut client, "public", "q", 50);
        becomes_available(&mut client, "public", id);
    }
    let log = cluster.log();
    assert!(!log.contains("can't stage") && !log.contains("FATAL") && !log.contains("ERROR"), "{log}");
    // A crash makes shared memory anew.
    let pid = sleeps(&mut client, "public");
    cluster.crash(pid);
    wait_until("the server is back", || {
        cluster.try_client("postgres", "postgres").is_ok_and(|mut client| {
            client
                .query_one(
                    "SELECT count(*) = 1 FROM oban_workers WHERE kind = 'stager' AND state = 'running'",
                    &[],
                )
                .is_ok_and(|row| row.get(0))
        })
    });
    let mut client = cluster.client();
    let id = schedule(&mut client, "public", "q", 50);
    becomes_available(&mut client, "public", id);
}

/// While a catalog is locked, the keeper can't find out which prefixes stage. It waits, and is no busy loop.
#[test]
fn a_locked_catalog_delays_the_start_of_a_stager() {
    let (cluster, mut client) = installed();
    let id = schedule(&mut client, "public", "q", 100);
    becomes_available(&mut client, "public", id);
    let pid = sleeps(&mut client, "public");
    let mut locker = cluster.client();
    locker.batch_execute("BEGIN; LOCK TABLE pg_trigger").unwrap();
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_until("it has gone", || stager(&mut client, "public").is_some_and(|s| s.state == "backoff"));
    let waits = "SELECT state = 'idle' AND wait_event_type = 'Extension' FROM pg_stat_activity
                 WHERE backend_type = 'obanrs keeper'";
    let mut in_a_row = 0;
    wait_until("the keeper waits", || {
        in_a_row = if client.one(waits) { in_a_row + 1 } else { 0 };
        in_a_row > 30
    });
    locker.batch_execute("COMMIT").unwrap();
    sleeps(&mut client, "public");
    let id = schedule(&mut client, "public", "q", 100);
    becomes_available(&mut client, "public", id);
}

/// Before Postgres 17 no worker can connect as a role with NOLOGIN.
#[test]
fn an_owner_with_nologin_is_refused_or_served() {
    let (cluster, mut client) = installed();
    let serves: bool = client.one("SELECT current_setting('server_version_num')::int >= 170000");
    client
        .batch_execute("CREATE ROLE nobody_logs_in; GRANT CREATE ON DATABASE postgres TO nobody_logs_in")
        .unwrap();
    let (mut told, notices) = cluster.client_with_notices();
    told.batch_execute("SET ROLE nobody_logs_in; SELECT oban_install('default')").unwrap();
    let noticed = notices.lock().unwrap().iter().any(|n| n.message().contains("nobody_logs_in has NOLOGIN"));
    assert_eq!(noticed, !serves);
    if serves {
        sleeps(&mut client, "default");
        return;
    }
    assert!(stager(&mut client, "default").is_none());
    client.batch_execute("SET ROLE nobody_logs_in").unwrap();
    assert_eq!(code(&mut client, "SELECT oban_install('default', stage => true)"), "55000");
    assert_eq!(code(&mut client, "SELECT oban_install('other', stage => true)"), "55000");
    client
        .batch_execute(
            "RESET ROLE; ALTER ROLE nobody_logs_in LOGIN; SELECT oban_install('default', stage => true)",
        )
        .unwrap();
    let pid = sleeps(&mut client, "default");
    client.batch_execute("ALTER ROLE nobody_logs_in NOLOGIN").unwrap();
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    let left_out = |s: &Seen| s.state == "backoff" && s.last_error.contains("has NOLOGIN");
    wait_until("it is left out", || stager(&mut client, "default").as_ref().is_some_and(left_out));
    let (ok, detail) = check(&mut client, "default").unwrap();
    assert!(!ok && detail.contains("ALTER ROLE nobody_logs_in LOGIN"), "{detail}");
    client.batch_execute("ALTER ROLE nobody_logs_in LOGIN").unwrap();
    sleeps(&mut client, "default");
}

/// On a large table the index is built first, by the command of the hint.
#[test]
fn a_large_adopted_table_is_refused_with_the_command_to_run_first() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_install(stage => false)").unwrap();
    client
        .batch_execute(
            "ALTER TABLE oban_jobs SET (fillfactor = 10); ALTER TABLE oban_jobs DISABLE TRIGGER USER; DROP INDEX oban_jobs_args_index, oban_jobs_meta_index;
             INSERT INTO oban_jobs (worker, args) SELECT 'w', jsonb_build_object('x', repeat('x', 300)) FROM generate_series(1, 30000);
             ALTER TABLE oban_jobs ENABLE TRIGGER USER",
        )
        .unwrap();
    let error = client.batch_execute("SELECT oban_install(stage => true)").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "55000", "{error:?}");
    let hint = error.hint().unwrap();
    let command = &hint[hint.find("CREATE INDEX").unwrap()..hint.find(';').unwrap()];
    assert!(command.starts_with("CREATE INDEX CONCURRENTLY obanrs_jobs_due ON public.oban_jobs"), "{hint}");
    client.batch_execute(command).unwrap();
    client.batch_execute("SELECT oban_install(stage => true)").unwrap();
    sleeps(&mut client, "public");
}

/// A stager without due jobs takes no transaction id, writes nothing and has no timer.
#[test]
fn a_stager_without_due_jobs_is_idle() {
    let (_cluster, mut client) = installed();
    let pid = sleeps(&mut client, "public");
    let state = format!("SELECT state_change::text FROM pg_stat_activity WHERE pid = {pid}");
    let before: String = client.one(&state);
    let xid: String = client.one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text");
    client.batch_execute("SELECT pg_sleep(17)").unwrap(); // longer than a process with a deadline sleeps
    assert_eq!(client.one::<String>(&state), before);
    assert_eq!(client.one::<String>("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"), xid);
}
