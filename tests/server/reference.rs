//! Is docs/reference.md what the database says?
//!
//! Signatures, types and defaults come from the catalogs, and texts from the comments on functions and views.
//! `make reference` writes the page.
//!
//! A comment has a form (tests/support/comments.rs). These tests hold it to its object: it describes each
//! argument and column in their order, and no other.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use postgres::Client;

use crate::support::Cluster;
use crate::support::comments::{self, Comment, Item};

const PAGE: &str = "docs/reference.md";

/// The chapters, each with its functions and views.
const CHAPTERS: [(&str, &[&str]); 8] = [
    ("Tables of a prefix", &["oban_install", "oban_uninstall"]),
    (
        "Notifications",
        &[
            "oban_notify",
            "oban_notify_many",
            "oban_notify_text",
            "oban_listen_channels",
            "oban_unlisten_channels",
            "oban_poll",
            "oban_wait",
            "oban_position",
            "oban_encode",
            "oban_decode",
        ],
    ),
    ("Watched tables", &["oban_watch", "oban_unwatch", "oban_watches"]),
    (
        "Members and leaders",
        &[
            "oban_join",
            "oban_renew",
            "oban_resign",
            "oban_leave",
            "oban_is_leader",
            "oban_term",
            "oban_fence",
            "oban_leader",
            "oban_members",
            "oban_leadership",
        ],
    ),
    ("Gossip", &["oban_gossip_put", "oban_gossip_delete", "oban_gossip", "oban_orphans", "oban_rescue"]),
    (
        "Jobs",
        &[
            "oban_insert_job",
            "oban_insert_jobs",
            "oban_fetch",
            "oban_take",
            "oban_complete_job",
            "oban_fail_job",
            "oban_snooze_job",
            "oban_cancel_job",
            "oban_discard_job",
            "oban_retry_job",
            "oban_prune",
        ],
    ),
    (
        "Queue signals",
        &[
            "oban_pause_queue",
            "oban_resume_queue",
            "oban_scale_queue",
            "oban_start_queue",
            "oban_stop_queue",
            "oban_pkill_job",
            "oban_queue_state",
            "oban_queue_signals",
        ],
    ),
    ("Health", &["oban_version", "oban_check", "oban_workers", "oban_stats"]),
];

const BEGINNING: &str = "\
# Reference

<!-- `make reference` writes this page from the comments in the database. A test compares the two. -->

Every function, view and setting of obanrs. psql shows the same texts: `\\x`, then `\\df+ oban_join` or
`\\dv+ oban_members`. The view `pg_settings` has those of the settings.

| word | what it means here |
| --- | --- |
| prefix | the schema that has the job tables: `public`, unless a call names another one |
| channel | what messages are sent on. Its full name is `<prefix>.oban_<channel>` |
| wake-up | a message on the channel `insert`: a queue has new jobs |
| node | the name under which a process takes part, such as `web.1` |
| name | the name of an instance. Its members have one leader at a time |
| member | a process that has joined a name with `oban_join` |
| foreign node | one of Oban's own nodes. It elects through the table `oban_peers` and has not joined |
| lease | for how long a membership or a leadership holds if it is not renewed |
| term | the number of a leadership (a fencing token). A later leadership has a greater one |
| gossip | what each node tells of its queues. A *check* is one entry of it, as Oban's nodes send it |
| ring | shared memory with the last messages of a database |
| keeper, relay | background workers: one holds elections, one sends notifications (`oban_workers`) |
| to stage, stager | to make due jobs available; the background worker that does it for a prefix |
| preload | obanrs is in `shared_preload_libraries`. Without it there are no members, gossip and workers |

What holds for all functions:

* Rights are those of the current role. Where a prefix has no table `oban_jobs`, `USAGE` on the schema stands for
  `SELECT` on it, and `CREATE` on the schema for the other rights.
* Names of prefixes, members, nodes and queues have to be ASCII in a database of another encoding than UTF8 (22023).
* A SQLSTATE of Postgres itself can end any call: 57014 when it is cancelled, 53200 without memory, 42501 without
  `EXECUTE` on the function, 42883 when its schema is not in `search_path`.
";

/// An argument of a function, or a column of its result or of a view.
struct Field {
    name: String,
    kind: String,
    /// The default as SQL. `None` means that there is none.
    default: Option<String>,
    /// The argument is part of the result as well.
    inout: bool,
}

struct Object {
    name: String,
    kind: Kind,
    comment: Comment,
    arguments: Vec<Field>,
    columns: Vec<Field>,
    /// What a function returns.
    result: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Function,
    Procedure,
    View,
    Sequence,
}

impl Object {
    fn is_internal(&self) -> bool {
        self.name.starts_with("obanrs_")
    }

    /// Asserts that a comment describes each argument and column, in their order.
    fn is_described(&self) {
        let name = &self.name;
        let described = |items: &[Item]| items.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let there = |fields: &[Field]| fields.iter().map(|field| field.name.clone()).collect::<Vec<_>>();
        if self.is_internal() {
            assert!(self.comment.first.starts_with("Internal: "), "{name}");
            return;
        }
        assert_eq!(described(&self.comment.arguments), there(&self.arguments), "arguments of {name}");
        assert_eq!(described(&self.comment.columns), there(&self.columns), "columns of {name}");
        assert_eq!(self.comment.result.is_some(), self.kind != Kind::View, "{name} says what it returns");
        assert!(self.comment.rights.is_some(), "{name} says what rights it needs");
        let codes: Vec<&String> = self.comment.errors.iter().map(|(code, _)| code).collect();
        assert!(codes.iter().all(|code| code.len() == 5), "SQLSTATEs of {name}: {codes:?}");
        assert_eq!(
            codes.iter().collect::<BTreeSet<_>>().len(),
            codes.len(),
            "{name} has one twice: {codes:?}"
        );
    }

    /// How the object is called.
    fn signature(&self) -> String {
        let argument = |field: &Field| {
            let default = field.default.as_ref().map(|default| format!(" DEFAULT {default}"));
            let inout = if field.inout { "INOUT " } else { "" };
            format!("{inout}{} {}{}", field.name, field.kind, default.unwrap_or_default())
        };
        let arguments: Vec<String> = self.arguments.iter().map(argument).collect();
        let call = if self.kind == Kind::Procedure { "CALL " } else { "" };
        let result = self.result.as_ref().map(|result| format!(" → {result}")).unwrap_or_default();
        let line = format!("{call}{}({}){result}", self.name, arguments.join(", "));
        if line.chars().count() <= 100 {
            return line;
        }
        format!("{call}{}(\n    {}\n){result}", self.name, arguments.join(",\n    "))
    }
}

/// The name, the type and the default of each argument of a function, and of each column of its result. The
/// type `timestamptz` has its short name.
const FIELDS: &str = "
    SELECT f.name, replace(format_type(f.type, NULL), 'timestamp with time zone', 'timestamptz'),
        regexp_replace(pg_get_function_arg_default(p.oid, f.n::int), '::[a-z ]+(\\[\\])?$', ''),
        COALESCE(f.mode, 'i') = 't', COALESCE(f.mode, 'i') = 'b'
    FROM pg_proc p,
        unnest(p.proargnames, COALESCE(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes)
            WITH ORDINALITY f (name, type, mode, n)
    WHERE p.oid = $1 ORDER BY f.n";

/// Returns all objects of the extension, as the catalogs have them.
fn objects(client: &mut Client) -> Vec<Object> {
    let members = "
        SELECT p.proname::text, p.oid, CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END,
            obj_description(p.oid, 'pg_proc'),
            replace(pg_get_function_result(p.oid), 'timestamp with time zone', 'timestamptz')
        FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs' WHERE d.deptype = 'e'
        UNION ALL
        SELECT c.relname::text, c.oid, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' END,
            obj_description(c.oid, 'pg_class'), NULL
        FROM pg_depend d JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs' WHERE d.deptype = 'e'
        ORDER BY 1";
    let all = client.query(members, &[]).unwrap();
    let objects = all.iter().map(|row| {
        let (name, oid): (String, u32) = (row.get(0), row.get(1));
        let kind = match row.get(2) {
            "function" => Kind::Function,
            "procedure" => Kind::Procedure,
            "view" => Kind::View,
            _ => Kind::Sequence,
        };
        let text: Option<String> = row.get(3);
        let text = text.unwrap_or_else(|| panic!("{name} has no comment"));
        let comment = comments::parse(&text).unwrap_or_else(|wrong| panic!("the comment on {name}: {wrong}"));
        let (mut arguments, mut columns) = (Vec::new(), Vec::new());
        if matches!(kind, Kind::Function | Kind::Procedure) {
            for field in client.query(FIELDS, &[&oid]).unwrap() {
                let is_column: bool = field.get(3);
                let to = if is_column { &mut columns } else { &mut arguments };
                let (name, kind, default) = (field.get(0), field.get(1), field.get(2));
                to.push(Field { name, kind, default, inout: field.get(4) });
            }
        } else if kind == Kind::View {
            let sql = "SELECT a.attname::text,
                replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz')
                FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 ORDER BY a.attnum";
            for column in client.query(sql, &[&oid]).unwrap() {
                columns.push(Field { name: column.get(0), kind: column.get(1), default: None, inout: false });
            }
        }
        Object { name, kind, comment, arguments, columns, result: row.get(4) }
    });
    objects.collect()
}

/// Turns text into a cell or a line of Markdown. Names with an underscore, settings and the function's own
/// arguments become code. Names of functions and views become links to their part of the page.
struct Markdown<'a> {
    linked: &'a BTreeSet<String>,
    /// The part of the page that the text is in, and its arguments.
    own: &'a str,
    arguments: Vec<&'a str>,
}

/// After these words an argument's name is a plain word.
const ARTICLES: &[&str] = &[
    "a", "an", "the", "this", "its", "no", "one", "one's", "each", "Another", "another", "other", "any",
    "foreign", "job", "two",
];

impl Markdown<'_> {
    fn text(&self, text: &str) -> String {
        let before = std::iter::once("").chain(text.split(' '));
        let words = before.zip(text.split(' ')).map(|(before, word)| self.word(before, word));
        words.collect::<Vec<_>>().join(" ")
    }

    fn word(&self, before: &str, word: &str) -> String {
        let is_edge = |c: char| !(c.is_alphanumeric() || "<>*_".contains(c));
        let core = word.trim_matches(is_edge);
        let is_argument = || self.arguments.contains(&core) && !ARTICLES.contains(&before);
        let is_code = core.contains('_') || core.starts_with("obanrs.") || is_argument();
        if !is_code || word.contains('"') {
            return escaped(word);
        }
        let at = word.find(core).expect("it is a part of it");
        let end = at + core.len() + if word[at + core.len()..].starts_with("()") { 2 } else { 0 };
        let (before, core, after) = (&word[..at], &word[at..end], &word[end..]);
        let code = if self.linked.contains(core) && core != self.own {
            format!("[`{core}`](#{core})")
        } else {
            format!("`{core}`")
        };
        format!("{}{code}{}", escaped(before), escaped(after))
    }
}

fn escaped(text: &str) -> String {
    text.replace('<', "&lt;").replace('|', "\\|").replace('*', "\\*")
}

fn table(page: &mut String, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    writeln!(page, "| {} |\n|{}", head.join(" | "), " --- |".repeat(head.len())).unwrap();
    for cells in rows {
        writeln!(page, "| {} |", cells.join(" | ")).unwrap();
    }
    page.push('\n');
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

/// Returns the part of the page about one function or view.
fn describe(page: &mut String, object: &Object, linked: &BTreeSet<String>) {
    let comment = &object.comment;
    let plain = Markdown { linked, own: &object.name, arguments: Vec::new() };
    let arguments = object.arguments.iter().filter(|field| !field.inout).map(|field| field.name.as_str());
    let markdown = Markdown { linked, own: &object.name, arguments: arguments.collect() };
    writeln!(page, "### {}\n\n{}\n", object.name, plain.text(&comment.first)).unwrap();
    if object.kind != Kind::View {
        writeln!(page, "```\n{}\n```\n", object.signature()).unwrap();
    }
    if !object.arguments.is_empty() {
        let rows = object.arguments.iter().zip(&comment.arguments).map(|(field, (_, meaning))| {
            let default = field.default.as_ref().map_or("required".to_owned(), |default| code(default));
            let inout = if field.inout { "INOUT " } else { "" };
            vec![code(&field.name), format!("{inout}{}", field.kind), default, plain.text(meaning)]
        });
        table(page, &["argument", "type", "default", "meaning"], rows);
    }
    if let Some(result) = &comment.result {
        writeln!(page, "Result: {}\n", plain.text(result)).unwrap();
    }
    if !object.columns.is_empty() {
        let rows =
            object.columns.iter().zip(&comment.columns).map(|(field, (_, meaning))| {
                vec![code(&field.name), field.kind.clone(), plain.text(meaning)]
            });
        table(page, &["column", "type", "meaning"], rows);
    }
    if !comment.counters.is_empty() {
        let rows = comment.counters.iter().map(|(name, meaning)| vec![code(name), plain.text(meaning)]);
        table(page, &["counter", "what it counts"], rows);
    }
    for sentence in &comment.sentences {
        writeln!(page, "* {}", markdown.text(sentence)).unwrap();
    }
    if let Some(rights) = &comment.rights {
        writeln!(page, "* **Rights:** {}\n", markdown.text(rights)).unwrap();
    }
    if !comment.errors.is_empty() {
        let rows = comment.errors.iter().map(|(code, when)| vec![code.clone(), markdown.text(when)]);
        table(page, &["SQLSTATE", "when"], rows);
    }
}

/// A number of milliseconds or kilobytes, in the greatest unit in which it is whole.
fn in_units(number: i64, unit: Option<&str>) -> String {
    let units: &[(i64, &str)] = match unit {
        Some("ms") => &[(3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")],
        Some("kB") => &[(1 << 20, "GB"), (1 << 10, "MB"), (1, "kB")],
        Some(other) => panic!("say how {other} is shown"),
        None => return number.to_string(),
    };
    let (size, unit) = units.iter().find(|(size, _)| number % size == 0).expect("1 divides it");
    if number == 0 { "0".into() } else { format!("{} {unit}", number / size) }
}

fn settings(page: &mut String, client: &mut Client, linked: &BTreeSet<String>) {
    let sql = "SELECT name, current_setting(name), vartype, min_val::bigint, max_val::bigint, unit,
            array_to_string(enumvals, ', '), context, short_desc, extra_desc
        FROM pg_settings WHERE name LIKE 'obanrs.%' ORDER BY name";
    let markdown = Markdown { linked, own: "", arguments: Vec::new() };
    let settings = client.query(sql, &[]).unwrap();
    assert!(settings.len() >= 15, "{} settings", settings.len());
    let rows = settings.iter().map(|row| {
        let column = |i: usize| row.get::<_, String>(i);
        let unit: Option<String> = row.get(5);
        let range = match column(2).as_str() {
            "bool" => "on, off".to_owned(),
            "enum" => column(6),
            _ => {
                let bound = |i: usize| in_units(row.get::<_, i64>(i), unit.as_deref());
                format!("{} to {}", bound(3), bound(4))
            }
        };
        let changes = match column(7).as_str() {
            "postmaster" => "a restart",
            "sighup" => "a reload",
            "user" => "`SET`, `ALTER ROLE`, `ALTER DATABASE`",
            other => panic!("say what {other} means"),
        };
        let meaning = markdown.text(&format!("{} {}", column(8), column(9)));
        vec![code(&column(0)), column(1), range, changes.to_owned(), meaning]
    });
    table(page, &["setting", "default", "range", "changes with", "meaning"], rows);
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

fn page(client: &mut Client) -> String {
    let objects = objects(client);
    objects.iter().for_each(Object::is_described);
    let counters = client.query("SELECT counter FROM oban_stats", &[]).unwrap();
    let counters: Vec<String> = counters.iter().map(|row| row.get(0)).collect();
    let (internal, public): (Vec<_>, Vec<_>) = objects.iter().partition(|object| object.is_internal());
    let linked: BTreeSet<String> = public.iter().map(|object| object.name.clone()).collect();
    let listed: BTreeSet<String> =
        CHAPTERS.iter().flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned())).collect();
    assert_eq!(listed, linked, "each is in a chapter");
    let of = |name: &str| public.iter().find(|object| object.name == name).expect("it is there");

    let mut page = BEGINNING.to_owned();
    page.push_str("\n## Contents\n\n");
    for (chapter, names) in CHAPTERS {
        writeln!(page, "* [{chapter}](#{})", anchor(chapter)).unwrap();
        for name in names {
            let first = escaped(&of(name).comment.first);
            writeln!(page, "  * [`{name}`](#{name}): {first}").unwrap();
        }
    }
    page.push_str("* [Settings](#settings)\n* [Internal functions](#internal-functions)\n\n");
    for (chapter, names) in CHAPTERS {
        writeln!(page, "## {chapter}\n").unwrap();
        for name in names {
            let object = of(name);
            if *name == "oban_stats" {
                let described: Vec<_> =
                    object.comment.counters.iter().map(|(name, _)| name.clone()).collect();
                assert_eq!(described, counters, "counters of oban_stats");
            }
            describe(&mut page, object, &linked);
        }
    }
    page.push_str("## Settings\n\n");
    settings(&mut page, client, &linked);
    page.push_str("## Internal functions\n\nDo not call these. They may change with any version.\n\n");
    let markdown = Markdown { linked: &linked, own: "", arguments: Vec::new() };
    let rows = internal.iter().map(|object| {
        let first = object.comment.first.trim_start_matches("Internal: ");
        vec![code(&object.name), markdown.text(first)]
    });
    table(&mut page, &["function or sequence", "what calls it"], rows);
    format!("{}\n", page.trim_end())
}

#[test]
fn the_reference_is_what_the_database_says() {
    let cluster = Cluster::with_extension();
    let page = page(&mut cluster.client());
    if std::env::var("OBANRS_WRITE_REFERENCE").is_ok() {
        fs::create_dir_all("docs").unwrap();
        fs::write(PAGE, page).unwrap();
    } else {
        let written = fs::read_to_string(PAGE).unwrap_or_default();
        assert!(written == page, "{PAGE} is not what the database says: `make reference` writes it");
    }
}

#[test]
fn text_becomes_markdown_that_says_the_same() {
    let linked = BTreeSet::from(["oban_poll".to_owned()]);
    let markdown = Markdown { linked: &linked, own: "oban_wait", arguments: vec!["after"] };
    for (text, expected) in [
        ("a < b | c * d", "a &lt; b \\| c \\* d"),
        ("as in oban_poll.", "as in [`oban_poll`](#oban_poll)."),
        ("(oban_wait), obanrs.ring_size", "(`oban_wait`), `obanrs.ring_size`"),
        ("after is less, or after, the after", "`after` is less, or `after`, the after"),
        ("obanrs_gossip() does", "`obanrs_gossip()` does"),
        ("sets tcp_keepalives_* here", "sets `tcp_keepalives_*` here"),
        ("<prefix>.oban_<channel>.", "`<prefix>.oban_<channel>`."),
        ("{\"seq\", \"sent_at\"}", "{\"seq\", \"sent_at\"}"),
    ] {
        assert_eq!(markdown.text(text), expected);
    }
    assert_eq!(in_units(90_000, Some("ms")), "90 s");
    assert_eq!(in_units(1 << 20, Some("kB")), "1 GB");
    assert_eq!(in_units(0, Some("ms")), "0");
    assert_eq!(in_units(100, None), "100");
}
