//! How a program writes its table of jobs. Oban for Elixir and Oban for Python keep errors in
//! columns of different types, by which their tables are known apart.

use pgrx::pg_sys;

use crate::logic::ids::SchemaOid;
use crate::pg::catalog;

/// Now, as a `timestamp` in UTC. It is the time of the call, not of the transaction.
pub const UTC: &str = "pg_catalog.timezone('UTC', pg_catalog.clock_timestamp())";

/// Whose table of jobs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Oban for Elixir: `errors` is an array of jsonb.
    Elixir,
    /// Oban for Python: `errors` is a jsonb.
    Python,
    /// Another table: errors are not recorded.
    Other,
}

impl Dialect {
    /// Returns whose table `oban_jobs` in a schema is.
    pub fn of(schema: SchemaOid) -> Self {
        let errors =
            catalog::relation(schema, "oban_jobs").and_then(|jobs| catalog::column_type(jobs, "errors"));
        match errors {
            Some(pg_sys::JSONBARRAYOID) => Self::Elixir,
            Some(pg_sys::JSONBOID) => Self::Python,
            _ => Self::Other,
        }
    }

    /// Returns the assignment that adds an error to the job `j`, after a comma. `text` is the text of
    /// the error, as SQL. The entry has the keys that both programs write.
    pub fn add_error(self, text: &str) -> String {
        let entry = format!(
            "pg_catalog.jsonb_build_object(
                'at', pg_catalog.to_char({UTC}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
                'attempt', j.attempt, 'error', {text})"
        );
        match self {
            Self::Elixir => format!(", errors = pg_catalog.array_append(j.errors, {entry})"),
            Self::Python => {
                format!(", errors = j.errors OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_array({entry})")
            }
            Self::Other => String::new(),
        }
    }
}

/// Returns the assignment that counts in `meta` of the job `j` how often something has happened to the
/// job, after a comma. A `meta` that is no object stays as it is.
pub fn count_in_meta(key: &str) -> String {
    format!(
        ", meta = CASE WHEN pg_catalog.jsonb_typeof(j.meta) OPERATOR(pg_catalog.=) 'object'
            THEN j.meta OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('{key}', 1 OPERATOR(pg_catalog.+)
                CASE WHEN pg_catalog.jsonb_typeof(j.meta OPERATOR(pg_catalog.->) '{key}') OPERATOR(pg_catalog.=) 'number'
                THEN (j.meta OPERATOR(pg_catalog.->) '{key}')::pg_catalog.numeric ELSE 0 END)
            ELSE j.meta END"
    )
}
