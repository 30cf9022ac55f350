//! Real Oban leaders stage the same rows, and other sessions lock them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{becomes_available, installed, schedule, sleeps};
use crate::support::{Ask, wait_until};

/// Oban's own statement (lib/oban/stager.ex), by the client's clock.
const OBANS: &str = "UPDATE oban_jobs SET state = 'available'
    FROM (SELECT id, state FROM oban_jobs WHERE state IN ('scheduled', 'retryable')
          AND scheduled_at <= timezone('UTC', clock_timestamp())
          ORDER BY scheduled_at DESC, id DESC LIMIT 5000) s
    WHERE oban_jobs.id = s.id RETURNING oban_jobs.id";

#[test]
fn a_row_that_somebody_has_locked_delays_no_other() {
    let (cluster, mut client) = installed();
    let locked = schedule(&mut client, "public", "locked", 200);
    let mut other = cluster.client();
    other.batch_execute(&format!("BEGIN; SELECT FROM oban_jobs WHERE id = {locked} FOR UPDATE")).unwrap();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(schedule(&mut client, "public", "q", 250));
    }
    ids.into_iter().for_each(|id| becomes_available(&mut client, "public", id));
    assert!(client.one::<bool>(&format!("SELECT state = 'scheduled' FROM oban_jobs WHERE id = {locked}")));
    // Others are on time as long as it is locked.
    let id = schedule(&mut client, "public", "q", 100);
    becomes_available(&mut client, "public", id);
    other.batch_execute("COMMIT").unwrap();
    becomes_available(&mut client, "public", locked);
}

/// A table that is locked for long is waited for without a failure, and without a busy loop.
#[test]
fn a_table_that_is_locked_is_waited_for() {
    let (cluster, mut client) = installed();
    let pid = sleeps(&mut client, "public");
    let id = schedule(&mut client, "public", "q", 300);
    let mut other = cluster.client();
    other.batch_execute("BEGIN; LOCK TABLE oban_jobs").unwrap();
    let waits =
        format!("SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
    wait_until("the stager waits for the table", || client.one(&waits));
    sleeps(&mut client, "public"); // it gives way
    other.batch_execute("COMMIT").unwrap();
    becomes_available(&mut client, "public", id);
    assert_eq!(sleeps(&mut client, "public"), pid, "the same process");
}

/// Each job is staged once, and no statement fails, of the leader's either.
#[test]
fn a_leader_of_obans_that_stages_the_same_rows_does_no_harm() {
    let (cluster, mut client) = installed();
    client
        .batch_execute(
            "CREATE TABLE staged (id bigint);
             CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO public.staged VALUES (NEW.id); RETURN NULL; END $$;
             CREATE TRIGGER log_it AFTER UPDATE ON oban_jobs FOR EACH ROW
             WHEN (OLD.state <> 'available' AND NEW.state = 'available') EXECUTE FUNCTION log_it()",
        )
        .unwrap();
    let stop = AtomicBool::new(false);
    let by_leader = std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            let mut leader = cluster.client();
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                count += leader.query(OBANS, &[]).expect("the leader's statement does not fail").len();
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            count
        });
        for _ in 0..40 {
            client
                .batch_execute(
                    "INSERT INTO oban_jobs (worker, state, scheduled_at)
                     SELECT 'w', 'scheduled', timezone('UTC', clock_timestamp()) + i * interval '1 ms'
                     FROM generate_series(-20, 79) i",
                )
                .unwrap();
        }
        wait_until("all are staged", || {
            client.one("SELECT NOT EXISTS (SELECT FROM oban_jobs WHERE state = 'scheduled')")
        });
        stop.store(true, Ordering::Relaxed);
        leader.join().unwrap()
    });
    let (staged, once): (i64, bool) = {
        let row =
            client.query_one("SELECT count(*), count(*) = count(DISTINCT id) FROM staged", &[]).unwrap();
        (row.get(0), row.get(1))
    };
    assert!(once && staged == 4_000, "{staged} were staged, {by_leader} of them by the leader");
    assert_eq!(super::stager(&mut client, "public").unwrap().restarts, 0);
    assert!(!cluster.log().contains("ERROR"), "{}", cluster.log());
}
