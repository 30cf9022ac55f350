//! Rows that can't be made available, or that stay as they are, hold up no other row of their prefix.

use postgres::Client;

use super::owners_code::{code, tenants};
use super::{becomes_available, check, schedule, sleeps, stager};
use crate::support::{Ask, wait_until};

/// Inserts scheduled jobs of eve's. The first ones have the queue 'bad'. All are due at one time, or one by
/// one.
fn fill(client: &mut Client, number: usize, bad: usize, at_one_time: bool) {
    let step = if at_one_time { 0 } else { 1 };
    let sql = format!(
        "INSERT INTO eve.oban_jobs (worker, queue, state, scheduled_at)
         SELECT 'w', CASE WHEN i <= {bad} THEN 'bad' ELSE 'good' END, 'scheduled',
                timezone('UTC', now()) - interval '1 hour' + {step} * i * interval '1 ms'
         FROM generate_series(1, {number}) i"
    );
    client.batch_execute(&sql).unwrap();
}

fn left(client: &mut Client, queue: &str) -> i64 {
    client.one(&format!(
        "SELECT count(*) FROM eve.oban_jobs WHERE state <> 'available' AND queue LIKE '{queue}'"
    ))
}

/// Each kind of code that can fail for a row.
#[test]
fn a_row_that_fails_is_set_aside() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    let raises = "BEGIN IF NEW.queue = 'bad' THEN RAISE 'not today'; END IF; RETURN NEW; END";
    let deferred = format!(
        "CREATE OR REPLACE FUNCTION eve.late() RETURNS trigger LANGUAGE plpgsql AS $late$ {raises} $late$;
         CREATE CONSTRAINT TRIGGER act AFTER UPDATE ON eve.oban_jobs DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION eve.late()"
    );
    let pid = sleeps(&mut root, "eve");
    for (number, kind) in ["BEFORE", "AFTER", "deferred"].into_iter().enumerate() {
        match kind {
            "deferred" => eve.batch_execute(&deferred).unwrap(),
            timing => code(&mut eve, timing, raises),
        }
        fill(&mut eve, 300, 3, number % 2 == 0);
        wait_until(&format!("{kind}: the others are staged"), || left(&mut root, "good") == 0);
        wait_until(&format!("{kind}: it is said"), || {
            check(&mut eve, "eve").is_some_and(|(ok, detail)| {
                !ok && detail.contains("3 due jobs are set aside") && detail.contains("not today")
            })
        });
        // Others are on time.
        let id = schedule(&mut root, "eve", "good", 100);
        becomes_available(&mut root, "eve", id);
        assert_eq!(left(&mut root, "bad"), 3, "{kind}");
        eve.batch_execute("DROP TRIGGER act ON eve.oban_jobs").unwrap();
        wait_until(&format!("{kind}: they are tried again"), || left(&mut root, "bad") == 0);
        wait_until(&format!("{kind}: all is well"), || check(&mut eve, "eve").is_some_and(|(ok, _)| ok));
        assert_eq!(
            (sleeps(&mut root, "eve"), stager(&mut root, "eve").unwrap().restarts),
            (pid, 0),
            "{kind}"
        );
        eve.batch_execute("TRUNCATE eve.oban_jobs").unwrap();
    }
    let log = cluster.log();
    assert!(
        log.contains("has set a due job of prefix \"eve\" in database \"postgres\" aside: not today"),
        "{log}"
    );
    assert!(log.matches("aside: not today").count() <= 12, "a line for each row at most: {log}");
}

/// Jobs that a constraint forbids which was added later and never validated.
#[test]
fn rows_that_break_a_constraint_are_set_aside() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    schedule(&mut eve, "eve", "bad", 700);
    let good = schedule(&mut eve, "eve", "good", 900);
    eve.batch_execute("ALTER TABLE eve.oban_jobs ADD CONSTRAINT never CHECK (queue <> 'bad') NOT VALID")
        .unwrap();
    becomes_available(&mut root, "eve", good);
    wait_until("it is said", || check(&mut eve, "eve").is_some_and(|(_, detail)| detail.contains("never")));
    // A row that is changed is another version, and is tried at once.
    eve.batch_execute("UPDATE eve.oban_jobs SET queue = 'mended' WHERE queue = 'bad'").unwrap();
    wait_until("it is staged", || left(&mut root, "mended") == 0);
    wait_until("all is well", || check(&mut eve, "eve").is_some_and(|(ok, _)| ok));
}

/// Fifty rows among 30,000.
#[test]
fn many_rows_that_fail_are_found_among_many_more() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(&mut eve, "AFTER", "BEGIN IF NEW.id % 600 = 7 THEN RAISE 'not today'; END IF; RETURN NEW; END");
    fill(&mut eve, 30_000, 0, true);
    wait_until("all but those are staged", || left(&mut root, "good") == 50);
    wait_until("it is said", || {
        check(&mut eve, "eve").is_some_and(|(_, detail)| detail.contains("50 due jobs are set aside"))
    });
    assert_eq!(stager(&mut root, "eve").unwrap().restarts, 0);
}

/// More rows fail than can be set aside. Others are staged all the same, also those that are due later.
#[test]
fn more_rows_that_fail_than_can_be_set_aside_hold_up_no_other() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(&mut eve, "AFTER", "BEGIN IF NEW.queue = 'bad' THEN RAISE 'not today'; END IF; RETURN NEW; END");
    for at_one_time in [false, true] {
        fill(&mut eve, 100, 90, at_one_time);
        wait_until("the others are staged", || left(&mut root, "good") == 0);
        wait_until("it is said", || {
            check(&mut eve, "eve").is_some_and(|(_, detail)| detail.contains("64 due jobs are set aside"))
        });
        let id = schedule(&mut root, "eve", "good", 100);
        becomes_available(&mut root, "eve", id);
        assert_eq!(left(&mut root, "bad"), 90);
        eve.batch_execute("TRUNCATE eve.oban_jobs").unwrap();
    }
    // All fail. When the code is gone, all are staged.
    fill(&mut eve, 300, 300, true);
    let id = schedule(&mut root, "eve", "good", 100);
    becomes_available(&mut root, "eve", id);
    eve.batch_execute("DROP TRIGGER act ON eve.oban_jobs").unwrap();
    wait_until("all are staged", || left(&mut root, "%") == 0);
    wait_until("all is well", || check(&mut eve, "eve").is_some_and(|(ok, _)| ok));
    assert_eq!(stager(&mut root, "eve").unwrap().restarts, 0);
    assert!(cluster.log().matches("not today").count() < 20, "{}", cluster.log());
}

/// What is set aside is a version of a row. Versions that are gone take no place.
#[test]
fn rows_that_were_changed_or_deleted_are_not_set_aside_any_more() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(
        &mut eve,
        "AFTER",
        "BEGIN IF NEW.queue = 'bad' AND NEW.state = 'available' THEN RAISE 'not today'; END IF; RETURN NEW; END",
    );
    let aside = |client: &mut Client, said: &str| {
        wait_until(&format!("{said} set aside"), || {
            check(client, "eve").is_some_and(|(_, detail)| detail.contains(said))
        });
    };
    fill(&mut eve, 64, 64, true);
    aside(&mut eve, "64 due jobs are");
    eve.batch_execute("DELETE FROM eve.oban_jobs").unwrap();
    schedule(&mut eve, "eve", "bad", 0);
    aside(&mut eve, "1 due job is");
    // One row has a hundred versions.
    for _ in 0..100 {
        eve.batch_execute("UPDATE eve.oban_jobs SET priority = 0").unwrap();
    }
    let id = schedule(&mut root, "eve", "good", 0);
    becomes_available(&mut root, "eve", id);
    aside(&mut eve, "1 due job is");
    // After VACUUM FULL a good row has the place and the transaction of the bad one.
    eve.batch_execute("DELETE FROM eve.oban_jobs").unwrap();
    fill(&mut eve, 5, 1, true);
    wait_until("the others are staged", || left(&mut root, "good") == 0);
    aside(&mut eve, "1 due job is");
    eve.batch_execute("VACUUM FULL eve.oban_jobs").unwrap();
    let id = schedule(&mut root, "eve", "good", 0);
    becomes_available(&mut root, "eve", id);
    eve.batch_execute("UPDATE eve.oban_jobs SET queue = 'mended' WHERE queue = 'bad'").unwrap();
    wait_until("it is staged", || left(&mut root, "mended") == 0);
    wait_until("all is well", || check(&mut eve, "eve").is_some_and(|(ok, _)| ok));
    assert_eq!(stager(&mut root, "eve").unwrap().restarts, 0);
}

/// A row that fails for a moment only is tried soon, also beside rows that have failed for long.
#[test]
fn each_row_has_delays_of_its_own() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute("CREATE TABLE eve.switch ()").unwrap();
    code(
        &mut eve,
        "AFTER",
        "BEGIN IF NEW.queue = 'bad' OR (NEW.queue = 'moment' AND to_regclass('eve.switch') IS NOT NULL)
               THEN RAISE 'not today'; END IF; RETURN NEW; END",
    );
    fill(&mut eve, 30, 30, true);
    let trials = |root: &mut Client| -> i64 {
        root.one("SELECT n_tup_upd FROM pg_stat_all_tables WHERE relid = 'eve.oban_jobs'::regclass")
    };
    wait_until("they were tried a few times", || trials(&mut root) > 120);
    let id = schedule(&mut root, "eve", "moment", 0);
    wait_until("it is set aside", || {
        check(&mut eve, "eve").is_some_and(|(_, detail)| detail.contains("31 due jobs are"))
    });
    eve.batch_execute("DROP TABLE eve.switch").unwrap();
    becomes_available(&mut root, "eve", id);
    assert_eq!(left(&mut root, "bad"), 30);
}

/// A row whose trigger ends the process, again and again.
#[test]
fn a_row_that_ends_its_process_is_set_aside() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(
        &mut eve,
        "BEFORE",
        "BEGIN IF NEW.queue = 'bad' THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF;
         RETURN NEW; END",
    );
    fill(&mut eve, 30, 3, true);
    wait_until("the others are staged", || left(&mut root, "good") == 0);
    wait_until("it is said", || {
        check(&mut eve, "eve").is_some_and(|(_, detail)| {
            detail.contains("3 due jobs are set aside") && detail.contains("its process was ended")
        })
    });
    let id = schedule(&mut root, "eve", "good", 100);
    becomes_available(&mut root, "eve", id);
}

/// Code that the planner runs may raise the error of a name that is lost.
#[test]
fn an_error_of_the_planner_is_told() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute(
        "CREATE TABLE eve.gone (); ALTER TABLE eve.oban_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE FUNCTION eve.f() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN RETURN (SELECT count(*) >= 0 FROM eve.gone); END $$;
         CREATE POLICY p ON eve.oban_jobs USING (eve.f()); DROP TABLE eve.gone",
    )
    .unwrap();
    schedule(&mut root, "eve", "q", 0);
    wait_until("it is said", || {
        check(&mut root, "eve")
            .is_some_and(|(ok, detail)| !ok && detail.contains("\"eve.gone\" does not exist"))
    });
}

/// A row whose code takes too long costs a few processes, and then it is set aside.
#[test]
fn a_row_that_takes_too_long_is_set_aside() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(
        &mut eve,
        "BEFORE",
        "BEGIN IF NEW.queue = 'bad' THEN PERFORM pg_sleep(3600); END IF; RETURN NEW; END",
    );
    fill(&mut eve, 200, 1, false);
    for times in 1..=2 {
        wait_until("the batch is ended", || stager(&mut root, "eve").is_some_and(|s| s.restarts >= times));
    }
    wait_until("the others are staged", || left(&mut root, "good") == 0);
    wait_until("it is said", || {
        check(&mut eve, "eve").is_some_and(|(ok, detail)| !ok && detail.contains("1 due job is"))
    });
    assert!(stager(&mut root, "eve").unwrap().last_error.contains("took longer than 10 s"));
}

/// A batch that takes too long as a whole becomes smaller. 5 ms a row are 100 s for a whole batch.
#[test]
fn a_batch_that_takes_too_long_is_tried_with_fewer_rows() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(&mut eve, "BEFORE", "BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END");
    fill(&mut eve, 3_000, 0, true);
    wait_until("all are staged", || left(&mut root, "good") == 0);
    assert!(stager(&mut root, "eve").unwrap().restarts <= 2);
}

/// A trigger keeps rows as they are. There are more of them than a batch has, at one time or at many.
#[test]
fn rows_that_a_trigger_keeps_hold_up_no_other() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    code(
        &mut eve,
        "BEFORE",
        "BEGIN IF NEW.queue = 'bad' AND NEW.state = 'available' THEN RETURN NULL; END IF; RETURN NEW; END",
    );
    for at_one_time in [true, false] {
        fill(&mut eve, 45_000, 44_990, at_one_time);
        wait_until("the others are staged", || left(&mut root, "good") == 0);
        let id = schedule(&mut root, "eve", "good", 100);
        becomes_available(&mut root, "eve", id);
        assert_eq!(left(&mut root, "bad"), 44_990);
        eve.batch_execute("TRUNCATE eve.oban_jobs").unwrap();
    }
    assert_eq!(stager(&mut root, "eve").unwrap().restarts, 0);
}

/// A trigger makes rows due again at once.
#[test]
fn rows_that_a_trigger_resets_hold_up_no_other() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    for reset in ["", "NEW.scheduled_at = timezone('UTC', now());"] {
        code(
            &mut eve,
            "BEFORE",
            &format!(
                "BEGIN IF NEW.queue = 'bad' AND NEW.state = 'available' THEN
                     NEW.state = 'scheduled'; {reset} END IF; RETURN NEW; END"
            ),
        );
        fill(&mut eve, 30, 20, false);
        wait_until("the others are staged", || left(&mut root, "good") == 0);
        let id = schedule(&mut root, "eve", "good", 100);
        becomes_available(&mut root, "eve", id);
        assert_eq!(left(&mut root, "bad"), 20);
        eve.batch_execute("TRUNCATE eve.oban_jobs").unwrap();
    }
}
