//! The statements that nodes of Oban for Elixir run in an election, in the forms of all its versions.

use postgres::{Client, Error};

/// The statement with which a node that believes it leads renews its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Until 2.23.0 a renewal is by name alone, also of another node's row.
    ByName,
    /// Since 2.23.1 a renewal is of the node's own row only.
    ByNode,
    /// Until 2.23.0 a node that does not believe it leads runs this.
    DoNothing,
}

/// Holds one election of a node whose clock is wrong by `skew`, an interval. Returns whether the node
/// believes that it leads from now on.
pub fn elect(client: &mut Client, node: &str, form: Form, skew: &str) -> Result<bool, Error> {
    let mut transaction = client.transaction()?;
    let now = format!("(timezone('UTC', clock_timestamp()) + interval '{skew}')");
    transaction
        .batch_execute(&format!("DELETE FROM oban_peers WHERE name = 'Oban' AND expires_at < {now}"))?;
    let rows = transaction.execute(&upsert(form, &now), &[&node])?;
    transaction.commit()?;
    Ok(rows == 1)
}

/// The second statement of an election. $1 is the node.
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

/// Ends a node: one transaction deletes its row and announces that.
pub fn resign(client: &mut Client, node: &str) -> Result<(), Error> {
    let mut transaction = client.transaction()?;
    transaction.execute("DELETE FROM oban_peers WHERE name = 'Oban' AND node = $1", &[&node])?;
    transaction.batch_execute("SELECT pg_notify('public.oban_leader', '{\"down\":\"Oban\"}')")?;
    transaction.commit()
}
