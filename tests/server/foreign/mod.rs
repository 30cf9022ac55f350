//! Nodes of Oban for Elixir beside members of this extension, on the same table of leaders.
//!
//! Each file here answers one question about them. This file has what they share.

mod hand_over;
mod rows;
mod upserts;

use postgres::Client;

/// The row: its node, its term, and the seconds until its lease ends.
fn row(client: &mut Client) -> Option<(String, i64, f64)> {
    let sql = "SELECT node, term, extract(epoch FROM expires_at - timezone('UTC', clock_timestamp()))::float8
               FROM oban_peers WHERE name = 'Oban'";
    client.query_opt(sql, &[]).unwrap().map(|r| (r.get(0), r.get(1), r.get(2)))
}
