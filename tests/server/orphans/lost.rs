//! Which jobs count as lost, and does a rescue take those and no others?

use super::{GRACE, Process, Way, fetch, leader, orphans, orphans_after, rescue, server, wait_until_heard};
use crate::support::{Ask, heard, wait_until};

#[test]
fn a_cut_connection_is_no_death() {
    let (cluster, mut client) = server(&[]);
    let mut leader = leader(&cluster);
    let alive = Process::start(&cluster, "alive", "u1", "[1]", Way::Member);
    let dead = Process::start(&cluster, "dead", "u2", "[2]", Way::Member);
    alive.fetches(&mut client, 1, "10 minutes");
    dead.fetches(&mut client, 2, "10 minutes");
    wait_until("both gossip", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 2);
    let cut =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'alive'";
    for _ in 0..3 {
        let pid = "SELECT pid FROM oban_members WHERE node = 'alive'";
        let before: Option<i32> = client.query_opt(pid, &[]).unwrap().map(|row| row.get(0));
        assert_eq!(client.one::<i64>(cut), 1);
        assert_eq!(orphans(&mut client), "");
        assert!(rescue(&mut leader, GRACE).is_empty());
        wait_until("it has another connection", || {
            let now: Option<i32> = client.query_opt(pid, &[]).unwrap().map(|row| row.get(0));
            now.is_some() && now != before
        });
    }
    drop(dead);
    client
        .batch_execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'alive'",
        )
        .unwrap();
    // Both connections ended at the same time. So the living process has had as long as it takes to find the
    // dead one.
    wait_until("the other is found", || {
        let found = orphans(&mut client);
        assert!(["", "2 gone"].contains(&&*found), "{found}");
        found == "2 gone"
    });
    client.batch_execute("SELECT oban_listen_channels('{insert}')").unwrap();
    assert_eq!(rescue(&mut leader, GRACE), [2]);
    assert_eq!(client.one::<String>("SELECT state::text FROM oban_jobs WHERE id = 2"), "available");
    wait_until("its queue is told", || {
        heard(&mut client).iter().any(|n| n.payload() == r#"{"queue":"default"}"#)
    });
    drop(alive);
}

#[test]
fn a_fetch_whose_answer_was_lost_is_found() {
    for way in [Way::Put, Way::Notify] {
        let (cluster, mut client) = server(&[]);
        let mut leader = leader(&cluster);
        if way == Way::Notify {
            wait_until_heard(&mut client);
        }
        let process = Process::start(&cluster, "a", "u1", "[1, \"2\"]", way);
        let silent = Process::start(&cluster, "b", "u2", "[]", Way::Put);
        for job in 1..=3 {
            process.fetches(&mut client, job, "10 minutes");
        }
        fetch(&mut client, 4, "a", "u1", "0s"); // it began just now
        silent.fetches(&mut client, 5, "0s");
        client.batch_execute("UPDATE oban_jobs SET queue = 'other' WHERE id = 5").unwrap();
        let mut seen = false;
        wait_until("it is found", || {
            let found = orphans_after(&mut client, "1s");
            assert!(
                ["", "3 not running", "3 not running, 4 not running"].contains(&&*found),
                "jobs 1 and 2 are listed, 5 is of a queue of which nothing is known: {found}"
            );
            seen |= found == "3 not running";
            found.contains("4 not")
        });
        assert!(seen, "the younger is found later");
        let mut rescued = Vec::new();
        wait_until("all are rescued", || {
            rescued.extend(rescue(&mut leader, "1s"));
            rescued.len() == 2
        });
        assert_eq!(rescued, [3, 4]);
        // The next attempt of the job is another one.
        process.runs("[1, 2, 3]");
        process.fetches(&mut client, 3, "0s");
        assert_eq!(orphans_after(&mut client, "1s"), "");
        assert!(rescue(&mut leader, "1s").is_empty());
    }
}

#[test]
fn a_node_that_was_started_anew_has_another_uuid() {
    let (cluster, mut client) = server(&[]);
    let mut leader = leader(&cluster);
    let first = Process::start(&cluster, "a", "u1", "[1]", Way::Put);
    client.batch_execute("UPDATE oban_jobs SET attempt = max_attempts - 1 WHERE id = 1").unwrap();
    first.fetches(&mut client, 1, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip WHERE uuid = 'u1'") == 1);
    drop(first);
    let second = Process::start(&cluster, "a", "u2", "[2]", Way::Put);
    second.fetches(&mut client, 2, "10 minutes");
    // This attempt belongs to a process that was never heard, although its node gossips.
    fetch(&mut client, 3, "a", "u0", "10 minutes");
    wait_until("it is found", || {
        let found = orphans(&mut client);
        assert!(["", "3 unknown", "1 restarted", "1 restarted, 3 unknown"].contains(&&*found), "{found}");
        found.starts_with('1')
    });
    assert_eq!(rescue(&mut leader, GRACE), [1]);
    let spent = "SELECT state = 'discarded' AND discarded_at IS NOT NULL FROM oban_jobs WHERE id = 1";
    assert!(client.one::<bool>(spent), "that was its last attempt");
    drop(second);
}

/// A row that another transaction has locked may be fetched anew, or completed. A rescue does not wait for
/// it.
#[test]
fn a_rescue_takes_no_attempt_that_began_since() {
    let (cluster, mut client) = server(&[]);
    let process = Process::start(&cluster, "a", "u1", "[1, 2]", Way::Put);
    process.fetches(&mut client, 1, "10 minutes");
    process.fetches(&mut client, 2, "10 minutes");
    wait_until("it gossips", || client.one::<i64>("SELECT count(*) FROM oban_gossip") == 1);
    drop(process);
    wait_until("it is gone", || orphans(&mut client) == "1 gone, 2 gone");
    client.batch_execute("BEGIN").unwrap();
    fetch(&mut client, 1, "a", "u9", "0s");
    let mut leader = leader(&cluster);
    assert_eq!(rescue(&mut leader, GRACE), [2]);
    client.batch_execute("COMMIT").unwrap();
    assert!(rescue(&mut leader, GRACE).is_empty());
    assert_eq!(client.one::<String>("SELECT attempted_by[2] FROM oban_jobs WHERE id = 1"), "u9");
}
