//! The whole path, thin.

use crate::support::{Cluster, wait_until};

#[test]
fn a_sole_member_leads_when_join_returns() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let id: i64 = client.query_one("SELECT oban_join('a')", &[]).unwrap().get(0);
    let row =
        client.query_one("SELECT oban_is_leader(), oban_term(), node, term FROM oban_leader()", &[]).unwrap();
    assert!(row.get::<_, bool>(0));
    assert_eq!(row.get::<_, i64>(1), row.get::<_, i64>(3));
    assert_eq!(row.get::<_, String>(2), "a");
    let mut second = cluster.client();
    second.query_one("SELECT oban_join('b')", &[]).unwrap();
    assert!(client.query_one("SELECT oban_leave($1)", &[&id]).unwrap().get::<_, bool>(0));
    wait_until("b leads", || second.query_one("SELECT oban_is_leader()", &[]).unwrap().get(0));
}
