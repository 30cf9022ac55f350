//! What reviewers would have to look for by hand: which part depends on which, where the dangerous is, and
//! whether prose is plain and its names are right.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "structure/after_commit.rs"]
mod after_commit;
#[path = "structure/architecture.rs"]
mod architecture;
#[path = "structure/lexer.rs"]
mod lexer;
#[path = "structure/names.rs"]
mod names;
#[path = "structure/prose.rs"]
mod prose;
#[path = "structure/reach.rs"]
mod reach;
#[path = "structure/wording.rs"]
mod wording;

use reach::{Function, Reach};

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src is there") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source is text");
            found.push((path.strip_prefix("src").unwrap_or(&path).to_owned(), text));
        }
    }
    found
}

/// The part of the crate that a file belongs to: its folder, or its own name.
fn part(path: &Path) -> String {
    let first = path.iter().next().expect("it has a name").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn dependencies_point_one_way() {
    let below = |part: &str| -> &[&str] {
        match part {
            "logic" => &[],
            "config" => &[],
            "error" => &["logic"],
            "pg" => &["error", "logic"],
            "prefix" => &["pg", "config", "error", "logic"],
            "shmem" => &["logic", "pg", "config", "error"],
            "backend" => &["shmem", "prefix", "logic", "pg", "config", "error"],
            "bus" => &["backend", "shmem", "prefix", "logic", "pg", "config", "error"],
            // It tells the state of all others.
            "health" => &["peer", "bus", "backend", "shmem", "prefix", "logic", "pg", "config", "error"],
            // It takes what gossip has found, within a fence.
            "rescue" => {
                &["gossip", "peer", "bus", "backend", "shmem", "prefix", "logic", "pg", "config", "error"]
            }
            // It asks which queues are paused, and ends a job that is cancelled.
            "jobs" => &["signal", "bus", "backend", "shmem", "prefix", "logic", "pg", "config", "error"],
            _ => &["bus", "backend", "shmem", "prefix", "logic", "pg", "config", "error"],
        }
    };
    let mut looked_at = 0;
    for (path, text) in sources(Path::new("src")) {
        let own = part(&path);
        if own == "lib" || own == "tests" {
            continue;
        }
        for line in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let used: String =
                    line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(!used.is_empty(), "{path:?} imports several parts in one `use`: {line}");
                let known = [
                    "logic", "pg", "prefix", "shmem", "config", "error", "notifier", "peer", "gossip",
                    "trigger", "worker", "health", "bus", "backend", "signal", "rescue", "jobs",
                ];
                if known.contains(&used.as_str()) {
                    looked_at += 1;
                    assert!(
                        used == own || below(&own).contains(&used.as_str()),
                        "{path:?} ({own}) uses {used}: {line}"
                    );
                }
            }
        }
    }
    assert!(looked_at > 50, "only {looked_at} dependencies were found: is the search still right?");
}

#[test]
fn versions_of_postgres_are_told_apart_in_pg_only() {
    let mut there = 0;
    for (path, text) in sources(Path::new("src")) {
        let versions = code(&text).filter(|l| l.contains("feature = \"pg1")).count();
        if part(&path) == "pg" {
            there += versions;
        } else {
            assert_eq!(versions, 0, "{path:?}");
        }
    }
    assert!(there > 0, "the search finds nothing at all");
}

/// See the head of src/pg/hooks.rs.
#[test]
fn hooks_are_bare() {
    let text = fs::read_to_string("src/pg/hooks.rs").expect("it is there");
    for hook in ["utility", "access"] {
        let at = text.find(&format!("unsafe extern \"C-unwind\" fn {hook}(")).expect("the hook is there");
        let (before, body) = text.split_at(at);
        assert!(!before.trim_end().ends_with("pg_guard]"), "{hook} must not be guarded");
        let body = &body[..body.find("\n}\n").expect("it ends")];
        for owning in
            ["String", "Vec", "format!", "Box", "to_owned", "CString", "pg_sys::standard_ProcessUtility"]
        {
            assert!(!body.contains(owning), "{hook} must own nothing that an error would leak: {owning}");
        }
    }
}

#[test]
fn every_unsafe_block_says_why() {
    for (path, text) in sources(Path::new("src")) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            if line.contains("unsafe {") && !line.starts_with("//") {
                let near = &lines[i.saturating_sub(12)..i];
                assert!(near.iter().any(|l| l.contains("SAFETY:")), "{path:?}:{}: {line}", i + 1);
            }
        }
    }
}

#[test]
fn every_sql_error_has_a_test() {
    // hostile.rs lists what it may meet.
    let tests =
        sources(Path::new("tests/server")).into_iter().filter(|(path, _)| !path.ends_with("hostile.rs"));
    let tests: String = tests.map(|(_, text)| text).collect();
    let codes = [
        "22004", "22023", "23505", "25006", "3F000", "40001", "42501", "53400", "54000", "55000", "55P03",
        "0A000",
    ];
    for code in codes {
        assert!(tests.contains(&format!("\"{code}\"")), "no test meets {code}");
    }
}

/// What an election, a fence and a trigger on oban_peers must not do to a table of a user's: run SQL, plan,
/// act as another role, or look a name up.
const RUNS_USERS_CODE: &[&str] = &[
    "Spi::",
    "SPI_",
    "spi::",
    "direct_function_call",
    "OidFunctionCall",
    "SetUserIdAndSecContext",
    "as_role",
    "get_namespace_oid",
    "get_relname_relid",
    "get_extension_oid",
    "namespace_now",
    "relation_now",
];

/// The functions that do it all the same, and why that is right.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[
    (
        "pg/sequence.rs",
        "set",
        "direct_function_call",
        "setval, C code of Postgres', on the extension's own sequence",
    ),
    ("pg/sequence.rs", "set", "as_role", "the same: setval tests the rights on the extension's own sequence"),
    ("pg/session.rs", "as_role", "SetUserIdAndSecContext", "for that"),
    (
        "pg/notify.rs",
        "is_queue_full",
        "direct_function_call",
        "pg_notification_queue_usage, C code of Postgres'",
    ),
    ("prefix/peers.rs", "open_heap", "relation_now", "the same; the lock and all that follows go by the oid"),
    (
        "worker/signals.rs",
        "remember_heard",
        "namespace_now",
        "a notification has the schema's name; all that follows goes by the oid",
    ),
    ("prefix/signals.rs", "open", "relation_now", "as for oban_peers"),
    ("prefix/signals.rs", "odd", "relation_now", "as for oban_peers"),
    ("prefix/signals.rs", "is_too_large", "relation_now", "as for oban_peers"),
    (
        "prefix/extension.rs",
        "sequence_of_terms",
        "relation_now",
        "in the extension's own schema, a member of it",
    ),
    (
        "pg/catalog.rs",
        "has_index",
        "relation_now",
        "what has the name counts only as an index of that table's oid",
    ),
    ("pg/catalog.rs", "namespace", "get_namespace_oid", "rights on a prefix are asked by its name"),
    ("pg/catalog.rs", "relation", "get_relname_relid", "rights on a prefix are those on its oban_jobs"),
    ("worker/election/table.rs", "open", "spi::", "quotes a name for a hint"),
    ("error.rs", "hint", "spi::", "quotes a name for a hint"),
    ("error.rs", "quote", "spi::", "quotes a name for a hint"),
    (
        "pg/datum.rs",
        "parse",
        "direct_function_call",
        "jsonb_in, C code of Postgres', for results of functions",
    ),
];

#[test]
fn the_search_for_what_can_be_reached_follows_calls() {
    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    let reach = Reach::of(&[
        file("a.rs", "use crate::b; fn root() { b::free(); let t: T; t.method(); \"c::not_called()\"; }"),
        file(
            "b.rs",
            "pub struct T; impl T { fn method(&self, n: [u8; 2]) -> [u8; 2] { Self::inner() } fn inner() {} } pub fn free();\n pub fn free() {}",
        ),
        file("c.rs", "fn not_called() { '{'; } // free()"),
    ]);
    let names: Vec<String> = reach.from(reach.functions_of(&["a.rs"])).into_keys().map(|f| f.name).collect();
    assert_eq!(names, ["root", "free", "inner", "method"]);
}

#[test]
fn elections_fences_and_triggers_on_oban_peers_run_nobodys_code() {
    let reach = Reach::of(&sources(Path::new("src")));
    let roots = reach.functions_of(&[
        "worker/keeper.rs",
        "worker/process.rs",
        "worker/signals.rs",
        "worker/election/mod.rs",
        "worker/election/record.rs",
        "worker/election/retries.rs",
        "worker/election/sweep.rs",
        "worker/election/table.rs",
        "worker/election/transaction.rs",
        "peer/fence.rs",
        "trigger/peers.rs",
        "signal/remember.rs",
        "prefix/signals.rs",
    ]);
    let reached = reach.from(roots);
    for known in [
        ("pg/heap.rs", "insert"),
        ("pg/heap.rs", "update"),
        ("pg/index.rs", "open_to_insert"),
        ("pg/heap.rs", "lock_row"),
        ("pg/shape.rs", "of"),
        ("pg/sequence.rs", "next"),
    ] {
        let known = Function { file: known.0.into(), name: known.1.into() };
        assert!(reached.contains_key(&known), "the search does not find {known:?}");
    }
    let (mut met, mut wrong) = (std::collections::BTreeSet::new(), Vec::new());
    for function in reached.keys() {
        for &token in RUNS_USERS_CODE {
            let name = function.name.as_str();
            if !reach.bodies(function).iter().any(|body| body.contains(token)) {
                continue;
            }
            let exception = EXCEPTIONS.iter().position(|(file, exempt, what, _)| {
                (function.file.as_path(), name, token) == (Path::new(file), *exempt, *what)
            });
            match exception {
                Some(exception) => drop(met.insert(exception)),
                None => wrong.push(format!("{} has {token}", Reach::path(&reached, function))),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let stale: Vec<_> = (0..EXCEPTIONS.len()).filter(|i| !met.contains(i)).map(|i| EXCEPTIONS[i]).collect();
    assert!(stale.is_empty(), "no exceptions any more: {stale:?}");
}

#[test]
fn setup_says_what_to_do_about_rust_before_it_installs_anything() {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rust");
    for (printed, home, wanted) in [
        (Some("rustc 1.63.0 (Debian)"), "home", Some("this is Rust 1.63.0, and obanrs needs")),
        (Some("rustc 1.9.0"), "home", Some("this is Rust 1.9.0, and obanrs needs")),
        (Some("error: rustup has none"), "home", Some("this is a rustup without a Rust, and obanrs needs")),
        (Some(format!("rustc {needed}.0 (1a2b3c 2026-01-01)").as_str()), "home", None),
        (Some("rustc 1.100.0-nightly (1a2b3c 2026-01-01)"), "home", None),
        (Some(format!("rustc {needed}.0 (minimal)").as_str()), "home", Some("rustfmt is missing: run")),
        (None, "home", Some("Rust is missing. Install")),
        (None, "installed", Some("Rust is installed, but not in PATH")),
    ] {
        let _ = fs::remove_dir_all(&folder);
        let program = |place: &str, text: &str| {
            let place = folder.join(place);
            fs::create_dir_all(place.parent().expect("it is in a folder")).expect("the folder is ours");
            fs::write(&place, format!("#!/bin/sh\n{text}\n")).expect("it is ours");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&place, mode).expect("it is ours");
        };
        program("installed/bin/cargo", "");
        // The machine's own Rust may be beside what the script needs.
        for tool in ["bash", "basename", "dirname", "head", "id", "sed", "sort"] {
            program(&format!("bin/{tool}"), &format!("exec /usr/bin/{tool} \"$@\""));
        }
        if let Some(printed) = printed {
            program("bin/cargo", "");
            program("bin/rustc", &format!("echo '{printed}'"));
            program("bin/rustfmt", if printed.contains("minimal") { "exit 1" } else { "" });
        }
        let output = std::process::Command::new("tools/setup")
            .arg("--test-rust")
            .env("PATH", folder.join("bin"))
            .env("CARGO_HOME", folder.join(home))
            .output()
            .expect("bash runs it");
        let said = String::from_utf8_lossy(&output.stderr);
        match wanted {
            Some(wanted) => assert!(said.contains(wanted), "{printed:?}: {said:?}"),
            None => assert_eq!(said, ""),
        }
        assert_eq!(output.status.success(), wanted.is_none(), "{printed:?}: {said:?}");
    }
}
