//! Obstacles: what a table of leaders must not have. Elections write the table through its access
//! methods. Access methods do not apply what the executor applies: constraints, expressions of
//! indexes, defaults, generated columns, rules and policies. Elections would ignore these, so a
//! table that has one of them holds no elections.

use std::fmt::Write;

/// The columns that elections write.
pub const COLUMNS: [(&str, Wanted); 6] = [
    ("name", Wanted::Text),
    ("node", Wanted::Text),
    ("started_at", Wanted::Timestamp),
    ("expires_at", Wanted::Timestamp),
    ("term", Wanted::Bigint),
    ("boot", Wanted::Bigint),
];

/// The type that a column has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Text,
    Timestamp,
    Bigint,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Timestamp => "timestamp",
            Self::Bigint => "bigint",
        }
    }
}

/// A column's type, without a modifier unless it is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// text or varchar.
    Text,
    Timestamp,
    Bigint,
    /// A domain over any type.
    Domain,
    Other,
}

impl Type {
    fn is(self, wanted: Wanted) -> bool {
        matches!(
            (self, wanted),
            (Self::Text, Wanted::Text)
                | (Self::Timestamp, Wanted::Timestamp)
                | (Self::Bigint, Wanted::Bigint)
        )
    }
}

/// A column of a table of leaders.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: Type,
    pub not_null: bool,
    pub has_default: bool,
    /// The column is generated (stored or virtual), or an identity column.
    pub generated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConstraintKind {
    Check,
    ForeignKey,
    Exclusion,
    /// A constraint of this kind is no obstacle by itself. UNIQUE and PRIMARY KEY are judged as
    /// indexes, and NOT NULL as a column. Elections fire no constraint trigger.
    Other,
}

#[derive(Clone, Debug)]
pub struct Constraint {
    pub name: String,
    pub kind: ConstraintKind,
}

#[derive(Clone, Debug)]
pub struct Index {
    /// The name, qualified and quoted.
    pub name: String,
    /// The constraint that the index belongs to.
    pub constraint: Option<String>,
    pub unique: bool,
    /// The only key column is `name`.
    pub on_name: bool,
    /// The names of the key columns, without expressions.
    pub key_columns: Vec<String>,
    pub deferrable: bool,
    pub valid: bool,
    pub exclusion: bool,
    pub has_expressions: bool,
    pub has_predicate: bool,
    /// The access method, the operator classes and the types of the keys are Postgres' own.
    pub built_in: bool,
    /// The index never treats texts with different bytes as equal.
    pub deterministic: bool,
}

impl Index {
    /// Returns whether this index can find a row by its name, and refuses a second row of the same
    /// name.
    pub fn is_key(&self) -> bool {
        self.unique && self.on_name && self.valid && self.deterministic && !self.deferrable && self.is_plain()
    }

    /// Returns whether this index belongs to a constraint, and would be a key if its column had
    /// another collation.
    fn needs_collation(&self) -> bool {
        let deterministic = Self { deterministic: true, ..self.clone() };
        self.constraint.is_some() && !self.deterministic && deterministic.is_key()
    }

    /// Returns whether this is an index on columns only, of all rows, by Postgres' own means.
    pub fn is_plain(&self) -> bool {
        !self.exclusion && !self.has_expressions && !self.has_predicate && self.built_in
    }
}

/// How the table's publications fit its replica identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// Updates or deletions are published, and nothing identifies the row.
    pub lacks_identity: bool,
    /// A row filter, a column list or a generated column does not fit the replica identity.
    pub misfit: bool,
}

/// A locked table, as the catalogs describe it.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// The table is an ordinary table.
    pub is_table: bool,
    pub is_temporary: bool,
    /// The table's access method is heap.
    pub is_heap: bool,
    pub is_partition: bool,
    /// The table inherits from a table, or a table inherits from this one.
    pub inherits: bool,
    pub rules: Vec<String>,
    /// The table's policies bind its owner.
    pub policies_bind_owner: bool,
    /// Those of INSERT, UPDATE and DELETE that the table's owner may not do.
    pub owner_lacks: Vec<&'static str>,
    /// The name of the table's owner, quoted.
    pub owner: String,
    pub columns: Vec<Column>,
    pub constraints: Vec<Constraint>,
    /// The foreign keys of other tables that refer to this table: each table, qualified and quoted,
    /// and its constraint.
    pub referenced_by: Vec<(String, String)>,
    pub indexes: Vec<Index>,
    pub publication: Publication,
}

/// One thing that keeps a table from holding elections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The obstacle in words: "it has a check constraint c".
    pub what: String,
    /// The statement that removes it.
    pub remedy: String,
    /// Whether this is about the owner's rights, not about the table.
    pub of_owner: bool,
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns all obstacles of the table with the name `table` (qualified and quoted). If the list is
/// empty, the table can hold elections.
pub fn obstacles(shape: &Shape, table: &str) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |what: String, remedy: String| {
        // An exclusion constraint and its index have the same remedy, so they are one obstacle.
        if !found.iter().any(|before: &Obstacle| before.remedy == remedy) {
            found.push(Obstacle { what, remedy, of_owner: false });
        }
    };
    let replace = format!("ALTER TABLE {table} RENAME TO oban_peers_old, then SELECT oban_install(...)");
    if !shape.is_table || shape.is_temporary {
        add("it is no ordinary table".into(), replace);
        return found;
    }
    if !shape.is_heap {
        add("its access method is not heap".into(), format!("ALTER TABLE {table} SET ACCESS METHOD heap"));
    }
    if shape.is_partition {
        add("it is a partition".into(), format!("ALTER TABLE ... DETACH PARTITION {table}"));
    }
    if shape.inherits {
        add("it inherits, or is inherited from".into(), format!("ALTER TABLE {table} NO INHERIT ..."));
    }
    for rule in &shape.rules {
        add(format!("it has a rule {rule}"), format!("DROP RULE {} ON {table}", quoted(rule)));
    }
    for column in &shape.columns {
        if let Some((what, remedy)) = column_obstacle(column, table) {
            add(what, remedy);
        }
    }
    for constraint in &shape.constraints {
        let kind = match constraint.kind {
            ConstraintKind::Check => "a check constraint",
            ConstraintKind::ForeignKey => "a foreign key",
            ConstraintKind::Exclusion => "an exclusion constraint",
            ConstraintKind::Other => continue,
        };
        add(
            format!("it has {kind} {}", constraint.name),
            format!("ALTER TABLE {table} DROP CONSTRAINT {}", quoted(&constraint.name)),
        );
    }
    for (other, constraint) in &shape.referenced_by {
        add(
            format!("a foreign key {constraint} of {other} refers to it"),
            format!("ALTER TABLE {other} DROP CONSTRAINT {}", quoted(constraint)),
        );
    }
    for index in &shape.indexes {
        if let Some(what) = index_obstacle(index) {
            add(format!("its index {} {what}", index.name), index_remedy(index, table));
        }
    }
    if !shape.indexes.iter().any(|index| index.is_key() || index.needs_collation()) {
        add("it has no unique index on (name)".into(), format!("ALTER TABLE {table} ADD PRIMARY KEY (name)"));
    }
    if shape.publication.lacks_identity {
        add(
            "it is published without a replica identity".into(),
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL"),
        );
    }
    if shape.publication.misfit {
        add(
            "it is published with a row filter or a column list that its replica identity does not cover"
                .into(),
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL, or ALTER PUBLICATION ... DROP TABLE {table}"),
        );
    }
    found.extend(obstacles_of_owner(shape, table));
    found
}

/// Returns the statement that removes an index that is an obstacle.
fn index_remedy(index: &Index, table: &str) -> String {
    match &index.constraint {
        // If the constraint were dropped and added again, its index would have the column's
        // collation again.
        Some(_) if index.needs_collation() => {
            format!("ALTER TABLE {table} ALTER COLUMN \"name\" TYPE text COLLATE \"default\"")
        }
        Some(constraint) => format!("ALTER TABLE {table} DROP CONSTRAINT {}", quoted(constraint)),
        None => format!("DROP INDEX {}", index.name),
    }
}

/// Returns the obstacles that concern the owner's rights.
fn obstacles_of_owner(shape: &Shape, table: &str) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let owner = &shape.owner;
    if shape.policies_bind_owner {
        found.push(Obstacle {
            what: format!("its row level security binds its owner {owner}"),
            remedy: format!("ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"),
            of_owner: true,
        });
    }
    if !shape.owner_lacks.is_empty() {
        let rights = shape.owner_lacks.join(", ");
        found.push(Obstacle {
            what: format!("its owner {owner} lacks {rights}"),
            remedy: format!("GRANT {rights} ON {table} TO {owner}"),
            of_owner: true,
        });
    }
    found
}

/// Returns what is wrong with a column, and the statement that removes it. `None`: the column is no
/// obstacle.
fn column_obstacle(column: &Column, table: &str) -> Option<(String, String)> {
    let (name, alter) = (&column.name, format!("ALTER TABLE {table} ALTER COLUMN {}", quoted(&column.name)));
    let drop = format!("ALTER TABLE {table} DROP COLUMN {}", quoted(name));
    let own = COLUMNS.iter().find(|(own, _)| own == name).map(|(_, wanted)| *wanted);
    if column.generated {
        return Some((format!("its column {name} is generated"), drop));
    }
    if let Some(wanted) = own {
        return (!column.kind.is(wanted)).then(|| {
            (
                format!("its column {name} is not exactly of type {}", wanted.name()),
                format!("{alter} TYPE {}", wanted.name()),
            )
        });
    }
    let (mut what, mut changes) = (Vec::new(), Vec::new());
    if column.not_null {
        what.push("is NOT NULL");
        changes.push("DROP NOT NULL");
    }
    if column.has_default {
        what.push("has a default");
        changes.push("DROP DEFAULT");
    }
    if !what.is_empty() {
        let changes: Vec<String> =
            changes.iter().map(|change| format!("ALTER COLUMN {} {change}", quoted(name))).collect();
        Some((
            format!("its added column {name} {}", what.join(" and ")),
            format!("ALTER TABLE {table} {}", changes.join(", ")),
        ))
    } else if column.kind == Type::Domain {
        Some((format!("its added column {name} is of a domain"), drop))
    } else {
        None
    }
}

/// Returns what is wrong with an index, or `None` if the index is no obstacle.
fn index_obstacle(index: &Index) -> Option<&'static str> {
    if index.exclusion {
        Some("is of an exclusion constraint")
    } else if index.has_expressions {
        Some("is on an expression")
    } else if index.has_predicate {
        Some("is partial")
    } else if !index.built_in {
        Some("uses an access method, an operator class or a type that is not Postgres' own")
    } else if !index.unique {
        None
    } else if !index.on_name {
        Some("is unique on something else than (name)")
    } else if index.deferrable {
        Some("is deferrable")
    } else if !index.deterministic {
        Some("takes different names for equal")
    } else {
        // An invalid index is no obstacle either: REINDEX CONCURRENTLY makes an invalid index
        // beside the old one, perhaps for hours.
        None
    }
}

/// Returns the first three obstacles in one line, each with its remedy, and how many more there
/// are: "it has a rule r: DROP RULE ...; ...; and 2 more".
pub fn described<'a>(obstacles: impl IntoIterator<Item = &'a Obstacle>) -> String {
    const MAX_DESCRIBED: usize = 3;
    let (mut text, mut more) = (String::new(), 0);
    for (i, obstacle) in obstacles.into_iter().enumerate() {
        if i >= MAX_DESCRIBED {
            more += 1;
            continue;
        }
        let separator = if i == 0 { "" } else { "; " };
        let _ = write!(text, "{separator}{}: {}", obstacle.what, obstacle.remedy);
    }
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: Type) -> Column {
        Column { name: name.into(), kind, not_null: false, has_default: false, generated: false }
    }

    fn key() -> Index {
        Index {
            name: "p.oban_peers_pkey".into(),
            constraint: Some("oban_peers_pkey".into()),
            unique: true,
            on_name: true,
            key_columns: vec!["name".into()],
            deferrable: false,
            valid: true,
            exclusion: false,
            has_expressions: false,
            has_predicate: false,
            built_in: true,
            deterministic: true,
        }
    }

    fn obans_own() -> Shape {
        let kind = |wanted| match wanted {
            Wanted::Text => Type::Text,
            Wanted::Timestamp => Type::Timestamp,
            Wanted::Bigint => Type::Bigint,
        };
        let columns = COLUMNS.iter().map(|(name, wanted)| Column {
            not_null: *wanted != Wanted::Bigint,
            ..column(name, kind(*wanted))
        });
        Shape {
            is_table: true,
            is_heap: true,
            columns: columns.collect(),
            indexes: vec![key()],
            constraints: vec![Constraint { name: "oban_peers_pkey".into(), kind: ConstraintKind::Other }],
            ..Shape::default()
        }
    }

    fn said(change: impl FnOnce(&mut Shape)) -> String {
        let mut shape = obans_own();
        change(&mut shape);
        described(&obstacles(&shape, "p.oban_peers"))
    }

    #[test]
    fn obans_own_table_has_none() {
        assert_eq!(obstacles(&obans_own(), "t"), []);
        // Access methods honour these columns and indexes, or nothing has to honour them.
        assert_eq!(said(|s| s.columns.push(column("note", Type::Other))), "");
        assert_eq!(said(|s| s.columns[4].has_default = true), "", "elections write all six columns");
        assert_eq!(
            said(|s| s.indexes.push(Index { unique: false, on_name: false, valid: false, ..key() })),
            ""
        );
    }

    #[test]
    fn each_obstacle_is_named_with_what_removes_it() {
        let constraint =
            |kind| move |s: &mut Shape| s.constraints.push(Constraint { name: "c\"".into(), kind });
        let drop = "ALTER TABLE p.oban_peers DROP CONSTRAINT \"c\"\"\"";
        for kind in [ConstraintKind::Check, ConstraintKind::ForeignKey, ConstraintKind::Exclusion] {
            assert!(said(constraint(kind)).ends_with(drop), "{kind:?}");
        }
        assert!(said(|s| s.rules.push("r".into())).ends_with("DROP RULE \"r\" ON p.oban_peers"));
        let added = |change: fn(&mut Column)| {
            move |s: &mut Shape| {
                let mut new = column("x", Type::Other);
                change(&mut new);
                s.columns.push(new);
            }
        };
        assert!(said(added(|c| c.not_null = true)).contains("DROP NOT NULL"));
        assert!(said(added(|c| c.has_default = true)).contains("DROP DEFAULT"));
        assert!(said(added(|c| c.generated = true)).contains("DROP COLUMN"));
        assert!(said(added(|c| c.kind = Type::Domain)).contains("DROP COLUMN"));
        for at in 0..6 {
            assert!(said(|s| s.columns[at].kind = Type::Domain).contains(" TYPE "), "{at}");
            assert!(said(|s| s.columns[at].kind = Type::Other).contains(" TYPE "), "{at}");
        }
    }

    #[test]
    fn a_key_is_plain_immediate_unique_and_on_name() {
        let spoil: [fn(&mut Index); 9] = [
            |i| i.unique = false,
            |i| i.on_name = false,
            |i| i.deferrable = true,
            |i| i.valid = false,
            |i| i.exclusion = true,
            |i| i.has_expressions = true,
            |i| i.has_predicate = true,
            |i| i.built_in = false,
            |i| i.deterministic = false,
        ];
        for (i, spoil) in spoil.into_iter().enumerate() {
            let mut index = key();
            spoil(&mut index);
            index.constraint = None;
            assert!(!index.is_key(), "{i}");
            assert!(said(|s| s.indexes[0] = index.clone()).contains("no unique index on (name)"), "{i}");
            let harmless = i == 0 || i == 3;
            assert_eq!(index_obstacle(&index).is_none(), harmless, "{i}: beside a good one");
        }
    }

    /// A constraint takes its column's collation. So it would change nothing to drop and add the
    /// constraint.
    #[test]
    fn a_keys_collation_is_changed_with_its_column() {
        assert_eq!(
            said(|s| s.indexes[0].deterministic = false),
            "its index p.oban_peers_pkey takes different names for equal: \
             ALTER TABLE p.oban_peers ALTER COLUMN \"name\" TYPE text COLLATE \"default\""
        );
    }

    #[test]
    fn what_an_index_and_its_constraint_have_in_common_is_said_once() {
        let exclusion = Index { exclusion: true, constraint: Some("c".into()), ..key() };
        let text = said(|s| {
            s.constraints.push(Constraint { name: "c".into(), kind: ConstraintKind::Exclusion });
            s.indexes.push(exclusion.clone());
        });
        assert_eq!(text.matches("DROP CONSTRAINT").count(), 1, "{text}");
    }

    #[test]
    fn everything_that_is_set_is_an_obstacle() {
        let changes: [fn(&mut Shape); 10] = [
            |s| s.is_table = false,
            |s| s.is_temporary = true,
            |s| s.is_heap = false,
            |s| s.is_partition = true,
            |s| s.inherits = true,
            |s| s.policies_bind_owner = true,
            |s| s.owner_lacks.push("INSERT"),
            |s| s.referenced_by.push(("o".into(), "c".into())),
            |s| s.publication.lacks_identity = true,
            |s| s.publication.misfit = true,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert_ne!(said(change), "", "{i}");
        }
    }
}
