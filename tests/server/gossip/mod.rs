//! Gossip: an entry is seen from when it is put until it ends.
//!
//! Each file here answers one question about it. This file has what they share.

mod entries;
mod memory;
mod readings;
mod states;

use postgres::Client;

fn queues(client: &mut Client) -> Vec<String> {
    let rows = client.query("SELECT node || '/' || queue FROM oban_gossip ORDER BY 1", &[]).unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}
