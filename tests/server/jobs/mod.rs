//! Can a worker in any language insert and claim jobs, and say what became of them, by calls alone?

mod ack;
pub mod crowd;
mod fetch;
mod insert;
mod prune;
mod take;

use postgres::Client;
use serde_json::{Value, json};

use crate::support::{Ask, Cluster};

/// A server with a table of Oban for Elixir, or of Oban for Python.
fn cluster_of(python: bool) -> Cluster {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut client = cluster.client();
    if python {
        let tables = std::fs::read_to_string("tests/fixtures/oban/python-0.7.0.sql").unwrap();
        client.batch_execute(&tables).unwrap();
    }
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(stage => false)").unwrap();
    cluster
}

/// Inserts a job, and returns its id. `columns` and `values` are those that differ from the defaults.
fn insert(client: &mut Client, prefix: &str, columns: &str, values: &str) -> i64 {
    client.one(&format!(
        "INSERT INTO {prefix}.oban_jobs (worker, args, {columns}) VALUES ('w', '{{}}', {values}) RETURNING id"
    ))
}

/// Claims jobs by `oban_fetch(...)`. Returns their ids in the order of the result.
fn fetch(client: &mut Client, arguments: &str) -> Vec<i64> {
    let sql = format!("SELECT id FROM oban_fetch({arguments})");
    client.query(&sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Inserts a job that is executing in this attempt, by a claim.
fn executing(client: &mut Client, prefix: &str) -> i64 {
    let id = insert(client, prefix, "queue", "'run'");
    assert_eq!(fetch(client, &format!("'{{run}}', 'n', prefix => '{prefix}'")), [id]);
    id
}

/// A job as JSON.
fn job(client: &mut Client, prefix: &str, id: i64) -> Value {
    let text: String =
        client.one(&format!("SELECT to_jsonb(j)::text FROM {prefix}.oban_jobs j WHERE id = {id}"));
    serde_json::from_str(&text).unwrap()
}

/// What a call returns for a job, as text; `None` for NULL.
fn call(client: &mut Client, call: &str) -> Option<String> {
    client.query_one(&format!("SELECT {call}::text"), &[]).unwrap().get(0)
}

/// The names of the keys of a job that differ before and after.
fn changed(before: &Value, after: &Value) -> Vec<String> {
    let (before, after) = (before.as_object().unwrap(), after.as_object().unwrap());
    after.iter().filter(|(key, value)| before[*key] != **value).map(|(key, _)| key.clone()).collect()
}

/// The state of a job, its attempt and the most attempts.
fn outcome(client: &mut Client, prefix: &str, id: i64) -> Value {
    let job = job(client, prefix, id);
    json!([job["state"], job["attempt"], job["max_attempts"]])
}
