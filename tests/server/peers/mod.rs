//! Members and leaders: when a member leads, when not, and what other nodes see of it.
//!
//! Each file here answers one question about them. This file has what they share.

mod delays;
mod membership;
mod rows;

use postgres::Client;

use crate::support::{Ask, wait_until};

/// The node and the term of the row in oban_peers.
fn leader(client: &mut Client) -> Option<(String, Option<i64>)> {
    let row = client.query_opt("SELECT node, term FROM oban_leader()", &[]).unwrap();
    row.map(|r| (r.get(0), r.get(1)))
}

fn lease_of_a_second(client: &mut Client) {
    client.batch_execute("ALTER SYSTEM SET obanrs.lease = '1s'").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until("the setting is read", || {
        client.one::<String>("SELECT current_setting('obanrs.lease')") == "1s"
    });
}
