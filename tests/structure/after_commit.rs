//! After the commit nothing may raise: an ERROR would be a PANIC of the whole server (see the head of
//! src/bus/mod.rs). Two signs tell what runs then: a function is a callback of transactions (`on_event`),
//! or its comment says that it is callable after the commit. This file looks at each name and each macro of
//! these functions, and of all that they call by name. It does not see an index out of bounds, an overflow,
//! what a function pointer hides, and the `drop` of a value except a lock's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::reach::{self, Function, Reach, words};
use super::sources;

/// What a comment says of a function that runs after the commit. In lower case, with single spaces.
const SAYS_SO: &[&str] = &["after commit", "runs after the commit"];

/// What raises, or may: names of std, of pgrx and of src.
const RAISES: &[&str] = &[
    "ErrorReport",
    "Spi",
    "direct_function_call",
    "expect",
    "expect_err",
    "panic_any",
    "pgrx",
    "report",
    "resume_unwind",
    "rethrow",
    "unwrap",
    "unwrap_err",
];

/// What allocates. Without memory Rust ends the process, which is a crash restart of the server.
const ALLOCATES: &[&str] = &[
    "Box",
    "String",
    "clone",
    "collect",
    "extend",
    "insert",
    "push",
    "reserve",
    "to_owned",
    "to_string",
    "to_vec",
    "with_capacity",
];

/// What may be there of Postgres and of the C library, and why it does not raise.
const OF_POSTGRES: &[(&str, &str)] = &[
    ("GetCurrentTimestamp", "reads the clock"),
    (
        "GetNamedLWLockTranche",
        "raises without the tranche only, and where the segment is attached the tranche is",
    ),
    ("LWLockAcquire", "raises with 200 locks held, and a process holds one of the segment's at most"),
    ("LWLockHeldByMe", "reads memory of the process"),
    ("LWLockMode", "a type"),
    ("LWLockRelease", "raises for a lock that is not held, and the guard asks before"),
    ("MaxBackends", "a global"),
    ("MyDatabaseId", "a global"),
    ("MyProc", "a global"),
    ("MyProcNumber", "a global"),
    ("MyProcPid", "a global"),
    ("ProcSendSignal", "sets a latch"),
    ("XactEvent", "a type"),
    ("clock_gettime", "reads the clock"),
    ("max_worker_processes", "a global"),
];

/// What may be there all the same: file, function, name, and why that is right.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[
    ("logic/ring/mod.rs", "append", "debug_assert!", "a release has none"),
    ("logic/outbox.rs", "take", "collect", "PRE_COMMIT has emptied the outbox, so this is for other ends"),
    ("logic/staging/alarm.rs", "load", "load", "an atomic's"),
    ("logic/staging/alarm.rs", "tell", "load", "of the trait for atomics"),
    ("logic/staging/alarm.rs", "tell", "lower", "of the trait for atomics"),
    ("logic/gossip/mod.rs", "new", "with_capacity", "of a batch, and only `Fnv::new` is called"),
    ("logic/leadership/plan.rs", "leaderships", "collect", "named as the segment's door is, which is called"),
];

/// The parts of a condition between `operator`s that are in no parentheses.
fn parts<'c>(condition: &'c str, operator: &str) -> Vec<&'c str> {
    let (mut found, mut begin, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in condition.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= begin && condition[at..].starts_with(operator) => {
                found.push(&condition[begin..at]);
                begin = at + operator.len();
            }
            _ => {}
        }
    }
    found.push(&condition[begin..]);
    found
}

/// Whether a condition is false at each end of a transaction, because it asks for a moment before the end.
/// `names` are values that ask for that.
fn is_before_the_end(condition: &str, names: &[&str]) -> bool {
    let asks = ["xact::is_before_commit(event)", "xact::is_before_prepare(event)"];
    let is_before = |part: &str| {
        let part = part.trim().trim_start_matches("pg::");
        asks.contains(&part) || names.contains(&part)
    };
    parts(condition, "||").iter().all(|part| parts(part, "&&").into_iter().any(is_before))
}

/// The text of a callback without the branches that run before the end of a transaction only.
fn at_the_end(body: &str) -> String {
    let mut names = Vec::new();
    for pair in body.split("let (").skip(1) {
        // Such as `let (before, ends) = (…, …);`
        if let Some((bound, value)) = pair.split(';').next().and_then(|l| l.split_once(")"))
            && let Some(value) = value.trim_start_matches([' ', '=', '\n']).strip_prefix('(')
            && let Some((first, _)) = value.split_once(", ")
            && is_before_the_end(first, &[])
        {
            names.extend(bound.split(',').next());
        }
    }
    let (mut kept, mut rest) = (String::new(), body);
    while let Some((before, after)) = rest.split_once("if ") {
        kept.push_str(before);
        let brace = after.find('{').unwrap_or(after.len());
        let condition = &after[..brace];
        if is_before_the_end(condition, &names) {
            kept.push_str("if false {}");
            rest = &after[brace + reach::block(&after[brace..]).len()..];
        } else {
            kept.push_str("if ");
            rest = after;
        }
    }
    kept + rest
}

/// The functions that the text registers as callbacks of transactions.
fn callbacks(text: &str) -> Vec<String> {
    let calls = text.split("xact::on_event(").skip(1);
    calls.filter_map(|rest| Some(words(rest.split_once(')')?.0).last()?.to_owned())).collect()
}

/// The functions whose comments say that they run after the commit. If the head of the file says that: all.
fn said(text: &str) -> Vec<String> {
    let head: String = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let all = head.contains("All functions are callable after commit");
    let mut found = Vec::new();
    let mut comment = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(said) = line.strip_prefix("///") {
            comment.push_str(said);
        } else if !line.starts_with("#[") {
            let comment = std::mem::take(&mut comment).to_lowercase();
            let name = line.split("fn ").nth(1).and_then(|rest| words(rest).next());
            if all || SAYS_SO.iter().any(|says| comment.contains(says)) {
                found.extend(name.map(str::to_owned));
            }
        }
    }
    found
}

struct Found {
    /// What runs after the commit.
    reached: BTreeSet<Function>,
    /// What may raise there or allocates, each with the calls that lead to it.
    wrong: Vec<String>,
    /// The exceptions that were met, by their index.
    met: BTreeSet<usize>,
}

fn find(sources: &[(PathBuf, String)]) -> Found {
    // What calls the callbacks, and what the end of a scope calls.
    let roots = [("pg/xact.rs", "event_happened"), ("pg/lwlock.rs", "drop")];
    let root = |(file, name): (&str, &str)| Function { file: file.into(), name: name.into() };
    let mut roots: Vec<_> = roots.into_iter().map(root).collect();
    let mut texts = Vec::new();
    for (path, text) in sources {
        // The head of the crate is left out of what can be reached, but for its callback.
        let file = if path == Path::new("lib.rs") { PathBuf::from("crate.rs") } else { path.clone() };
        let mut blanked = reach::blanked(text);
        for name in said(text) {
            roots.push(Function { file: file.clone(), name });
        }
        for name in callbacks(&blanked) {
            let at = blanked.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("{path:?} has no {name}"));
            let body = reach::block(&blanked[at..]);
            blanked = blanked.replace(body, &at_the_end(body));
            roots.push(Function { file: file.clone(), name });
        }
        texts.push((file, blanked));
    }
    let reach = Reach::of(&texts);
    let (mut wrong, mut met) = (Vec::new(), BTreeSet::new());
    let reached = reach.called_from(roots);
    for function in reached.keys() {
        let allowed = |name: &String| OF_POSTGRES.iter().any(|(allowed, _)| allowed == name);
        let mut found: BTreeSet<String> =
            reach.foreign(function).into_iter().filter(|n| !allowed(n)).collect();
        for body in reach.bodies(function) {
            let is_bad = |w: &&str| RAISES.contains(w) || ALLOCATES.contains(w) || w.starts_with("Pg");
            found.extend(words(body).filter(is_bad).map(str::to_owned));
            let macros = body.split('!').zip(body.split('!').skip(1));
            let macros = macros.filter(|(before, after)| {
                before.ends_with(char::is_alphanumeric) && after.starts_with(['(', '[', '{'])
            });
            found.extend(macros.filter_map(|(before, _)| words(before).last().map(|m| format!("{m}!"))));
        }
        found.remove("matches!");
        for name in found {
            let exception = EXCEPTIONS.iter().position(|(file, exempt, what, _)| {
                (function.file.as_path(), function.name.as_str(), name.as_str())
                    == (Path::new(file), *exempt, *what)
            });
            match exception {
                Some(exception) => drop(met.insert(exception)),
                None => wrong.push(format!("{} has {name}", Reach::path(&reached, function))),
            }
        }
    }
    Found { reached: reached.into_keys().collect(), wrong, met }
}

#[test]
fn nothing_raises_after_the_commit() {
    let sources = sources(Path::new("src"));
    let Found { reached, wrong, met } = find(&sources);
    for known in [
        ("bus/mod.rs", "publish"),
        ("crate.rs", "say_not_preloaded"),
        ("logic/gossip/mod.rs", "delete_node"),
        ("logic/gossip/mod.rs", "forget_schema"),
        ("logic/leadership/mod.rs", "leave"),
        ("logic/leadership/mod.rs", "require_recheck"),
        ("logic/leadership/mod.rs", "row_changed"),
        ("logic/lifecycle/looks.rs", "copied"),
        ("logic/lifecycle/mod.rs", "fence_ended"),
        ("logic/ring/mod.rs", "append"),
        ("logic/ring/mod.rs", "wake"),
        ("pg/latch.rs", "wake"),
        ("pg/lwlock.rs", "acquire"),
        ("shmem/stats.rs", "set"),
        ("shmem/stats.rs", "count_at"),
        ("shmem/slots.rs", "slot"),
        ("shmem/stagers.rs", "tell_stager"),
        ("trigger/peers.rs", "transaction_event"),
    ] {
        let known = Function { file: known.0.into(), name: known.1.into() };
        assert!(reached.contains(&known), "the search does not find {known:?}");
    }
    assert_eq!(wrong, Vec::<String>::new());
    for unknown in [("backend/ddl_changes.rs", "look"), ("bus/mod.rs", "prepare"), ("error.rs", "log")] {
        let unknown = Function { file: unknown.0.into(), name: unknown.1.into() };
        assert!(!reached.contains(&unknown), "{unknown:?} is called before the commit only");
    }
    let stale: Vec<_> = (0..EXCEPTIONS.len()).filter(|i| !met.contains(i)).map(|i| EXCEPTIONS[i]).collect();
    assert!(stale.is_empty(), "no exceptions any more: {stale:?}");
}

#[test]
fn what_raises_after_the_commit_is_found() {
    let callback = |body: &str| {
        let before = "use crate::door::{self, Door}; fn register() { xact::on_event(ended); } fn helper() {";
        format!("{before} unwrap_or(); }} fn ended(event: Type) {{ {body} }}")
    };
    let door = "
        pub struct Door; pub struct Table;
        impl Door { pub fn with<R>(self, body: impl FnOnce(&mut Table) -> R) -> R { todo } }
        impl Table { fn change(&mut self) { vec![1]; } }
        extern { fn of_c(n: i32); }
        pub fn log() { ErrorReport::new().report(ERROR); }
        pub fn calls_c() { unsafe { of_c(1) } }
        /// It is callable
        /// after commit.
        pub fn said() { let x = unsafe { pg_sys::MyProc }; }";
    let wrong = |callback: String, door: &str| {
        let always = [
            ("pg/lwlock.rs", "impl Drop for Guard { fn drop(&mut self) {} }".to_owned()),
            ("pg/xact.rs", "fn event_happened() {}".to_owned()),
        ];
        let sources = [[("a.rs", callback), ("door.rs", door.to_owned())], always].concat();
        let sources: Vec<_> = sources.into_iter().map(|(path, text)| (path.into(), text)).collect();
        find(&sources).wrong
    };
    for (body, expected) in [
        ("helper(); door::said();", &[][..]),
        ("if xact::is_end(event) { door::log() }", &["a.rs: ended > door.rs: log has ErrorReport"][..]),
        ("list.for_each(door::calls_c)", &["a.rs: ended > door.rs: calls_c has of_c"]),
        ("Door.with(|table| table.change())", &["a.rs: ended > door.rs: change has vec!"]),
        ("unsafe { pg_sys::palloc(8) };", &["a.rs: ended has palloc"]),
        ("Some(1).unwrap(); format!(\"{x}\");", &["a.rs: ended has format!", "a.rs: ended has unwrap"]),
        // What runs before the end only.
        ("if xact::is_before_commit(event) || xact::is_before_prepare(event) { door::log(); }", &[]),
        ("if a { b } else if x && xact::is_before_commit(event) { if c { door::log() } }", &[]),
        ("let (early, end) = (xact::is_before_commit(event), x); if early { door::log() }", &[]),
        ("if !xact::is_before_commit(event) { panic!() }", &["a.rs: ended has panic!"]),
        ("if x || y && xact::is_before_commit(event) { panic!() }", &["a.rs: ended has panic!"]),
        ("if !(x && xact::is_before_commit(event) && y) { panic!() }", &["a.rs: ended has panic!"]),
        ("if xact::is_before_commit(event) { x } else { panic!() }", &["a.rs: ended has panic!"]),
    ] {
        let wrong = wrong(callback(body), door);
        let there = expected.iter().all(|expected| wrong.iter().any(|wrong| wrong == expected));
        assert!(there && wrong.is_empty() == expected.is_empty(), "{body}: {wrong:?}");
    }
    let wrong = wrong(callback(""), &door.replace("MyProc", "SearchSysCache1"));
    assert_eq!(wrong, ["door.rs: said has SearchSysCache1"]);
}
