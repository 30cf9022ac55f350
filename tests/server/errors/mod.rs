//! Errors are an interface: the SQLSTATE, the value that was wrong, and a hint that helps.
//!
//! The tests call each function that the catalog lists, so that none is left out. Each file here answers one
//! question about errors. This file has what they share.

mod announced;
mod servers;
mod values;

use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};

use crate::support::comments::announced;

/// A function of the SQL surface. An argument is its name, type and default.
pub struct Function {
    pub name: String,
    pub is_procedure: bool,
    pub arguments: Vec<(String, String, Option<String>)>,
}

fn functions(client: &mut Client) -> Vec<Function> {
    functions_like(client, "oban\\_%")
}

pub fn functions_like(client: &mut Client, pattern: &str) -> Vec<Function> {
    let sql = "
        SELECT p.proname::text, a.name, format_type(a.type, NULL), pg_get_function_arg_default(p.oid, a.n::int),
               p.prokind = 'p'
        FROM pg_depend d
        JOIN pg_proc p ON p.oid = d.objid
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs'
        LEFT JOIN LATERAL unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY a (name, type, n)
            ON a.type IS NOT NULL
        WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND p.proname LIKE $1
        ORDER BY p.oid, a.n";
    let mut found: Vec<Function> = Vec::new();
    for row in client.query(sql, &[&pattern]).unwrap() {
        let name: String = row.get(0);
        if found.last().is_none_or(|f| f.name != name) {
            found.push(Function { name, is_procedure: row.get(4), arguments: Vec::new() });
        }
        if let Some(argument) = row.get::<_, Option<String>>(1) {
            found.last_mut().unwrap().arguments.push((argument, row.get(2), row.get(3)));
        }
    }
    assert!(found.len() > 15, "{} functions were found", found.len());
    found
}

/// A valid value for an argument of that name.
fn valid(argument: &str) -> &'static str {
    match argument {
        "after" | "position" | "missed" | "messages" => "NULL",
        "channel" => "'insert'",
        "condition" | "on_replica" | "payload_column" | "queue_column" => "NULL",
        "events" => "'{insert}'",
        "grace" => "'1 minute'",
        "channels" => "'{insert}'",
        "candidate" => "true",
        "include_unknown" => "false",
        "job_id" | "queue_limit" => "1",
        "lease" | "stage" | "ttl" => "NULL",
        "queues" => "'{default}'",
        "id" | "attempt" | "max_attempts" | "max_jobs" => "1",
        "args" | "meta" | "tags" => "'{}'",
        "jobs" => "'[{\"worker\": \"Mailer\"}]'",
        "max_age" => "'1 day'",
        "priority" => "0",
        "scheduled_at" | "schedule_in" | "unique_for" | "unique_keys" | "unique_states" => "NULL",
        "worker" => "'Mailer'",
        "error" => "'it broke'",
        "retry_in" | "snooze_for" => "'1 minute'",
        "reason" | "uuid" => "NULL",
        "max_messages" => "10",
        "member" => "1",
        "name" => "'Oban'",
        "node" => "'web.1'",
        "payload" => "'{}'",
        "payloads" => "ARRAY['{}']::jsonb[]",
        "prefix" => "'public'",
        "queue" => "'default'",
        "queue_table" => "'oban_jobs'",
        "replace" => "false",
        "state" => "'{}'",
        "term" => "1",
        "timeout" => "'1 millisecond'",
        "wire" => "'{}'",
        other => panic!("what is a valid {other}? Say so here"),
    }
}

impl Function {
    /// A call with valid arguments, except those in `but`.
    pub fn call(&self, but: &[(&str, &str)]) -> String {
        let argument = |(name, kind, _): &(String, String, Option<String>)| {
            let value = but.iter().find(|(n, _)| n == name).map_or(valid(name), |(_, value)| value);
            format!("\"{name}\" => ({value})::{kind}")
        };
        let arguments: Vec<String> = self.arguments.iter().map(argument).collect();
        let verb = if self.is_procedure { "CALL" } else { "SELECT * FROM" };
        format!("{verb} {}({})", self.name, arguments.join(", "))
    }

    /// Whether an argument is the text of a job's error, which may be any text.
    pub fn takes_error(&self, argument: &str) -> bool {
        self.name.ends_with("_job") && ["error", "reason"].contains(&argument)
    }

    fn has(&self, argument: &str) -> bool {
        self.arguments.iter().any(|(name, ..)| name == argument)
    }
}

fn outcome(client: &mut Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, DbError> {
    client.simple_query(sql).map_err(|e| e.as_db_error().unwrap_or_else(|| panic!("{sql}: {e}")).clone())
}

/// The name of the function that a statement calls.
fn function_of(sql: &str) -> &str {
    let calls = sql.match_indices("oban").map(|(at, _)| {
        let end = sql[at..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(sql.len() - at);
        (&sql[at..at + end], &sql[at + end..])
    });
    let mut called = calls.filter(|(_, rest)| rest.starts_with('(')).map(|(name, _)| name);
    called.next().unwrap_or_else(|| panic!("{sql} calls no function"))
}

/// Asserts that the comment on the function which a statement calls announces this SQLSTATE.
fn is_announced(sql: &str, code: &str) {
    let function = function_of(sql);
    let announced = announced(function).unwrap_or_else(|| panic!("{function} has no comment"));
    assert!(announced.contains(code), "{code} is not under Errors in the comment on {function}: {sql}");
}

/// Asserts that the statement fails with this SQLSTATE, and that its function announces that. The message has
/// to show `shows`, and the hint has to name `helps`.
fn refused(client: &mut Client, sql: &str, code: &str, shows: &str, helps: &str) {
    let error = outcome(client, sql).expect_err(sql);
    assert_eq!(error.code().code(), code, "{sql}: {error}");
    is_announced(sql, code);
    assert!(error.message().contains(shows), "{sql}: the message does not show {shows}: {error}");
    let hint = error.hint().unwrap_or_else(|| panic!("{sql}: no hint: {error}"));
    assert!(hint.contains(helps), "{sql}: the hint does not name {helps}: {hint}");
    assert!(error.detail().is_none_or(|d| !d.contains("backtrace")), "{sql}: {:?}", error.detail());
}
