//! Are jobs of a dead process found that was a member when it claimed them, though it never gossiped?

use postgres::Client;

use crate::support::{Ask, Cluster, wait_until};

/// The orphans as `id reason`, with this grace.
fn orphans(client: &mut Client, grace: &str) -> Vec<String> {
    let sql = format!("SELECT id || ' ' || reason FROM oban_orphans('public', '{grace}') ORDER BY id");
    client.query(&sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Inserts a job, and has a process claim it. Returns the job's id.
fn claim(client: &mut Client, how: &str) -> i64 {
    let id: i64 = client.one("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q') RETURNING id");
    client.batch_execute(how).unwrap();
    assert!(client.one::<bool>(&format!("SELECT state = 'executing' FROM oban_jobs WHERE id = {id}")));
    id
}

const TAKE: &str = "CALL oban_take('{q}', 'web.1', uuid => 'u')";
const FETCH: &str = "SELECT FROM oban_fetch('{q}', 'web.1', uuid => 'u')";

#[test]
fn the_jobs_of_a_session_that_was_a_member_are_orphans_once_it_has_ended() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    let mut worker = cluster.client();
    let before = claim(&mut worker, TAKE);
    worker.batch_execute("SELECT oban_join('web.1', 'Web')").unwrap();
    // This process believes for a second that its node has no member.
    let mut other = cluster.client();
    let (taken, fetched) = (claim(&mut other, TAKE), claim(&mut other, FETCH));
    let first = [format!("{before} unknown")];
    assert_eq!(orphans(&mut admin, "0 s"), first, "nothing is known of the first claim");
    drop(worker);
    let [unknown] = first;
    let gone = [unknown, format!("{taken} gone"), format!("{fetched} gone")];
    wait_until("they are found", || orphans(&mut admin, "0 s") == gone);
    assert_eq!(orphans(&mut admin, "1 hour"), [] as [String; 0], "the grace is not over");
    // Another process of the node may be the same one, until it claims with another uuid.
    let mut next = cluster.client();
    next.batch_execute("SELECT oban_join('web.1', 'Web')").unwrap();
    assert_eq!(orphans(&mut admin, "0 s"), gone[..1]);
    claim(&mut cluster.client(), "CALL oban_take('{q}', 'web.1', uuid => 'v')");
    let restarted = [gone[0].clone(), format!("{taken} restarted"), format!("{fetched} restarted")];
    assert_eq!(orphans(&mut admin, "0 s"), restarted);
    let rescued: i64 = admin.one("SELECT count(*) FROM oban_rescue('public', '0 s')");
    assert_eq!(rescued, 2);
}

/// Behind a pooler a session says nothing of a process. Its lease does.
#[test]
fn the_jobs_of_a_leased_member_are_orphans_once_its_lease_is_over() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    let member: i64 = admin.one("SELECT oban_join('web.1', 'Web', lease => '1 day')");
    let id = claim(&mut cluster.client(), TAKE);
    assert_eq!(orphans(&mut admin, "0 s"), [] as [String; 0]);
    admin.batch_execute(&format!("SELECT oban_leave({member})")).unwrap();
    assert_eq!(orphans(&mut admin, "0 s"), [format!("{id} gone")]);
    // The process has joined again, and goes on.
    let member: i64 = admin.one("SELECT oban_join('web.1', 'Web', lease => '1 day')");
    let second = claim(&mut cluster.client(), TAKE);
    assert_eq!(orphans(&mut admin, "0 s"), [] as [String; 0]);
    let both = [format!("{id} gone"), format!("{second} gone")];
    admin.batch_execute(&format!("SELECT oban_leave({member})")).unwrap();
    assert_eq!(orphans(&mut admin, "0 s"), both);
    // A lease that is over is the same as a member that has left.
    admin.batch_execute("SELECT oban_join('web.1', 'Web', lease => '5 s')").unwrap();
    let third = claim(&mut cluster.client(), TAKE);
    let all = [&both[..], &[format!("{third} gone")]].concat();
    wait_until("the lease is over", || orphans(&mut admin, "0 s") == all);
}
