//! Members under the name `Oban` of the prefix `public`, as several suites join them.

use postgres::Client;

use super::Ask;

/// Joins as a session that may lead. Returns the member's id.
pub fn join(client: &mut Client, node: &str) -> i64 {
    client.query_one("SELECT oban_join($1, candidate => true)", &[&node]).unwrap().get(0)
}

/// Whether this session's member leads.
pub fn leads(client: &mut Client) -> bool {
    client.one("SELECT oban_is_leader()")
}
