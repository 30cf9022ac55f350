//! `oban_check` finds what is wrong, and the statements that it names help.
//!
//! Each file here answers one question about it. This file has what they share.

mod prefix;
mod server;

use postgres::Client;

use crate::support::{Ask, Cluster, wait_until};

/// The rows that are not ok: item and detail.
fn wrong(client: &mut Client) -> Vec<(String, String)> {
    let rows = client.query("SELECT item, detail FROM oban_check() WHERE NOT ok", &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Asserts that this one item is not ok. Returns its detail.
fn only_wrong(client: &mut Client, item: &str) -> String {
    let mut wrong = wrong(client);
    assert_eq!(wrong.iter().map(|(item, _)| item.as_str()).collect::<Vec<_>>(), [item], "{wrong:?}");
    wrong.pop().unwrap().1
}

/// Runs the statement with which a detail ends.
fn follow(client: &mut Client, detail: &str) {
    let (_, statement) = detail.rsplit_once(": ").unwrap();
    client.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
}

fn healthy(cluster: &Cluster) -> Client {
    let mut client = cluster.client();
    wait_until("all is well", || client.one("SELECT bool_and(ok) FROM oban_check()"));
    client
}
