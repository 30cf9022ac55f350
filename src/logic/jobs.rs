//! What a table of jobs has to be for `oban_install`: a table with the columns of Oban's own. Oban
//! for Elixir makes these columns since its migration 11, and Oban for Python in all versions. The
//! triggers read `queue` and `state`; queries read the other columns. Types that differ
//! between Oban's versions are not tested.

use std::fmt::Write;

/// The first version of Oban's migrations that is supported. Before this version, Oban's own
/// trigger sends other messages, and columns come and go.
pub const FIRST_VERSION: i64 = 11;

/// The types that a column may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A text.
    Text,
    /// A text, or an enum with the label `available`.
    State,
    /// An array of texts.
    Texts,
    /// Any type.
    Any,
}

/// The columns of a table of jobs.
const COLUMNS: [(&str, Wanted); 18] = [
    ("id", Wanted::Any),
    ("state", Wanted::State),
    ("queue", Wanted::Text),
    ("worker", Wanted::Text),
    ("args", Wanted::Any),
    ("meta", Wanted::Any),
    ("tags", Wanted::Any),
    ("errors", Wanted::Any),
    ("attempt", Wanted::Any),
    ("max_attempts", Wanted::Any),
    ("priority", Wanted::Any),
    ("inserted_at", Wanted::Any),
    ("scheduled_at", Wanted::Any),
    ("attempted_at", Wanted::Any),
    ("attempted_by", Wanted::Texts),
    ("cancelled_at", Wanted::Any),
    ("completed_at", Wanted::Any),
    ("discarded_at", Wanted::Any),
];

/// The columns that Oban's first migration makes. A table that lacks one of these was not made by
/// Oban.
const OF_FIRST_MIGRATION: [&str; 12] = [
    "id",
    "state",
    "queue",
    "worker",
    "args",
    "errors",
    "attempt",
    "max_attempts",
    "inserted_at",
    "scheduled_at",
    "attempted_at",
    "completed_at",
];

/// The columns that the triggers read.
const READ_BY_TRIGGER: [&str; 2] = ["queue", "state"];

/// A column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// text, varchar or char.
    Text,
    /// An enum with the label `available`.
    States,
    /// An array of texts.
    Texts,
    Other,
}

/// A column of a table of jobs.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: Type,
    /// Whether the column is computed when it is read. In the rows that the trigger reads, such a
    /// column is NULL.
    pub is_virtual: bool,
}

impl Wanted {
    /// Returns whether a column of the type `kind` fits.
    fn is(self, kind: Type) -> bool {
        match self {
            Self::Text => kind == Type::Text,
            Self::State => matches!(kind, Type::Text | Type::States),
            Self::Texts => kind == Type::Texts,
            Self::Any => true,
        }
    }

    /// Returns what is wanted, in words for an error message.
    fn name(self) -> &'static str {
        match self {
            Self::Text => " (a text)",
            Self::State => " (a text, or an enum with the label available)",
            Self::Texts => " (an array of texts)",
            Self::Any => "",
        }
    }
}

/// What is wrong with a table of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The table's comment says that Oban's migrations have brought it to this version, which is
    /// too old.
    TooOld { version: i64 },
    /// The table lacks columns, or has wrong ones.
    Columns(WrongColumns),
    /// The table was not made by Oban, and has what the triggers read. Queries of Oban's
    /// jobs need more.
    Partial(WrongColumns),
}

/// The names of wrong columns, some with the type that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrongColumns {
    pub missing: Vec<String>,
    pub of_another_type: Vec<String>,
    pub virtual_ones: Vec<String>,
}

impl WrongColumns {
    /// Returns the wrong columns in words: "lacks state (a text, or ...), meta; has of another type
    /// queue (a text)".
    pub fn described(&self) -> String {
        let mut text = String::new();
        for (what, columns) in [
            ("lacks", &self.missing),
            ("has of another type", &self.of_another_type),
            ("has as a virtual generated column", &self.virtual_ones),
        ] {
            if !columns.is_empty() {
                let separator = if text.is_empty() { "" } else { "; " };
                let _ = write!(text, "{separator}{what} {}", columns.join(", "));
            }
        }
        text
    }
}

/// Returns the first fault of a table with these columns, or `None`. `comment` is the table's
/// comment, where Oban keeps the version of the migrations.
pub fn fault(comment: Option<&str>, columns: &[Column]) -> Option<Fault> {
    let version = comment.and_then(|comment| comment.trim().parse().ok());
    if let Some(version) = version.filter(|version| *version < FIRST_VERSION) {
        return Some(Fault::TooOld { version });
    }
    let wrong = wrong(columns, |_| true);
    if wrong == WrongColumns::default() {
        return None;
    }
    let is_obans = OF_FIRST_MIGRATION.iter().all(|name| columns.iter().any(|column| column.name == *name));
    let partial = !is_obans && unreadable(columns).is_none();
    Some(if partial { Fault::Partial(wrong) } else { Fault::Columns(wrong) })
}

/// Returns the columns that keep the triggers from telling what to wake. `None`: the trigger
/// can read the rows.
pub fn unreadable(columns: &[Column]) -> Option<WrongColumns> {
    let wrong = wrong(columns, |name| READ_BY_TRIGGER.contains(&name));
    (wrong != WrongColumns::default()).then_some(wrong)
}

/// Returns what is wrong with those columns for whose names `counts` returns true.
fn wrong(columns: &[Column], counts: impl Fn(&str) -> bool) -> WrongColumns {
    let mut wrong = WrongColumns::default();
    for (name, wanted) in COLUMNS.into_iter().filter(|(name, _)| counts(name)) {
        let said = || format!("{name}{}", wanted.name());
        match columns.iter().find(|column| column.name == name) {
            None => wrong.missing.push(said()),
            Some(column) if !wanted.is(column.kind) => wrong.of_another_type.push(said()),
            Some(column) if column.is_virtual && READ_BY_TRIGGER.contains(&name) => {
                wrong.virtual_ones.push(name.to_owned());
            }
            Some(_) => {}
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obans() -> Vec<Column> {
        let kind = |wanted| match wanted {
            Wanted::Text => Type::Text,
            Wanted::State => Type::States,
            Wanted::Texts => Type::Texts,
            Wanted::Any => Type::Other,
        };
        let column = |(name, wanted): (&str, Wanted)| Column {
            name: name.to_owned(),
            kind: kind(wanted),
            is_virtual: false,
        };
        COLUMNS.into_iter().map(column).collect()
    }

    fn of(name: &str, change: impl FnOnce(&mut Column)) -> Vec<Column> {
        let mut columns = obans();
        change(columns.iter_mut().find(|column| column.name == name).unwrap());
        columns
    }

    #[test]
    fn obans_own_tables_have_no_fault() {
        for comment in
            [None, Some("11"), Some("14"), Some("99"), Some("\u{221e}"), Some("the jobs of billing")]
        {
            assert_eq!(fault(comment, &obans()), None, "{comment:?}");
        }
        assert_eq!(fault(None, &of("state", |c| c.kind = Type::Text)), None);
        assert_eq!(unreadable(&obans()), None);
    }

    #[test]
    fn tables_of_earlier_migrations_are_known_by_their_comment_or_their_columns() {
        for version in 0..FIRST_VERSION {
            let comment = version.to_string();
            assert_eq!(fault(Some(&comment), &obans()), Some(Fault::TooOld { version }));
        }
        let second: Vec<_> =
            obans().into_iter().filter(|c| !["meta", "tags"].contains(&c.name.as_str())).collect();
        let Some(Fault::Columns(wrong)) = fault(None, &second) else { panic!("it has no meta") };
        assert_eq!(wrong.described(), "lacks meta, tags");
        assert_eq!(unreadable(&second), None, "the trigger can do without");
    }

    #[test]
    fn each_wrong_column_is_named() {
        for (columns, said) in [
            (
                of("state", |c| c.name = "status".into()),
                "lacks state (a text, or an enum with the label available)",
            ),
            (of("queue", |c| c.kind = Type::Other), "has of another type queue (a text)"),
            (of("state", |c| c.kind = Type::Other), "another type state (a text, or an enum"),
            (of("queue", |c| c.is_virtual = true), "has as a virtual generated column queue"),
        ] {
            let Some(Fault::Columns(wrong)) = fault(Some("14"), &columns) else { panic!("{said}") };
            assert!(wrong.described().contains(said), "{}", wrong.described());
            assert_eq!(unreadable(&columns), Some(wrong), "{said}");
        }
        let Some(Fault::Columns(wrong)) = fault(None, &of("attempted_by", |c| c.kind = Type::Other)) else {
            panic!("no array")
        };
        assert_eq!(wrong.described(), "has of another type attempted_by (an array of texts)");
        assert_eq!(fault(None, &of("meta", |c| c.is_virtual = true)), None, "queries read it");
        let few: Vec<_> =
            obans().into_iter().filter(|c| ["id", "state", "queue"].contains(&c.name.as_str())).collect();
        assert!(matches!(fault(None, &few), Some(Fault::Partial(_))), "the table of another application");
        let few: Vec<_> = few.into_iter().filter(|c| c.name != "state").collect();
        assert!(matches!(fault(None, &few), Some(Fault::Columns(_))));
        let all = fault(None, &[]);
        assert!(matches!(all, Some(Fault::Columns(wrong)) if wrong.missing.len() == COLUMNS.len()));
    }
}
