//! What nodes of Oban for Elixir run in an election, statement by statement, in the forms that are out there.

use postgres::{Client, Error};

/// How a node that believes it leads renews its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Until 2.23.0: by name alone, whoever's row it is.
    ByName,
    /// Since 2.23.1: of its own node only.
    ByNode,
    /// Until 2.23.0, of a node that does not believe it leads.
    DoNothing,
}

/// One election of a node, with a clock that is wrong by `skew` (an interval): whether it leads from now on, as
/// far as it knows.
pub fn elect(client: &mut Client, node: &str, form: Form, skew: &str) -> Result<bool, Error> {
    let mut transaction = client.transaction()?;
    let now = format!("(timezone('UTC', clock_timestamp()) + interval '{skew}')");
    transaction
        .batch_execute(&format!("DELETE FROM oban_peers WHERE name = 'Oban' AND expires_at < {now}"))?;
    let rows = transaction.execute(&upsert(form, &now), &[&node])?;
    transaction.commit()?;
    Ok(rows == 1)
}

/// The second of its two statements; $1 is the node.
pub fn upsert(form: Form, now: &str) -> String {
    let lease = format!("{now} + interval '30 seconds'");
    let on_conflict = match form {
        Form::ByName => format!("DO UPDATE SET expires_at = {lease}"),
        Form::ByNode => format!("DO UPDATE SET expires_at = {lease} WHERE o.node = $1"),
        Form::DoNothing => "DO NOTHING".to_owned(),
    };
    format!(
        "INSERT INTO oban_peers AS o (name, node, started_at, expires_at)
         VALUES ('Oban', $1::text, {now}, {lease}) ON CONFLICT (name) {on_conflict}"
    )
}

/// What a node does when it stops: its row and the announcement in one transaction.
pub fn resign(client: &mut Client, node: &str) -> Result<(), Error> {
    let mut transaction = client.transaction()?;
    transaction.execute("DELETE FROM oban_peers WHERE name = 'Oban' AND node = $1", &[&node])?;
    transaction.batch_execute("SELECT pg_notify('public.oban_leader', '{\"down\":\"Oban\"}')")?;
    transaction.commit()
}
