//! ARCHITECTURE.md names tests, files and what the code calls its parts. Each of them exists.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use super::names::{Source, code, each_file, is_identifier, missing, quoted};

const PAGE: &str = "ARCHITECTURE.md";

/// The head of the table whose third column names tests.
const HEAD: [&str; 3] = ["race", "mechanism", "test"];

/// Beginnings and endings of words that are paths of this checkout.
const FOLDERS: [&str; 5] = ["src/", "tests/", "docs/", "tools/", "sql/"];
const ENDINGS: [&str; 5] = [".rs", ".md", ".toml", ".json", ".sql"];

/// Returns the cells of a row of a table. `None`: the line is no row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(row.split('|').map(str::trim).collect())
}

/// Returns the lines outside of blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    page.split("```").step_by(2).flat_map(str::lines)
}

/// Returns each race of the table of races, with the tests that its third column names. `Err`: a row has
/// another form.
fn races(page: &str) -> Result<Vec<(&str, Vec<&str>)>, String> {
    let rows = prose(page).skip_while(|line| cells(line).is_none_or(|row| row != HEAD)).skip(2);
    let rows = rows.map_while(cells).map(|row| match row[..] {
        [race, _, tests] if quoted(tests).next().is_some() => Ok((race, quoted(tests).collect())),
        _ => Err(format!("a race has three columns, and a test in the third: {row:?}")),
    });
    rows.collect()
}

/// Returns the paths that a page names.
fn paths(page: &str) -> BTreeSet<&str> {
    let is_path = |word: &&str| {
        let word = *word;
        let starts = FOLDERS.iter().any(|folder| word.starts_with(folder));
        starts || (!word.contains(' ') && ENDINGS.iter().any(|ending| word.ends_with(ending)))
    };
    prose(page).flat_map(quoted).filter(is_path).collect()
}

/// Returns the names on a page that look like those of functions, types and constants.
fn names(page: &str) -> BTreeSet<&str> {
    let is_name = |word: &&str| {
        is_identifier(word) && word.contains(|c: char| c == '_' || c == ':' || c.is_ascii_uppercase())
    };
    prose(page).flat_map(quoted).filter(is_name).collect()
}

/// Returns the names of the functions of a source that are tests.
fn tests(source: &str) -> Vec<&str> {
    let (mut found, mut marked) = (Vec::new(), false);
    for line in source.lines().map(str::trim) {
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        match function.and_then(|rest| rest.split_once('(')) {
            Some((name, _)) if marked => found.push(name),
            _ => {}
        }
        let is_marked = line.starts_with("#[test]") || line.starts_with("#[pg_test");
        // Other attributes and comments may stand between the two.
        marked = is_marked || (marked && (line.starts_with('#') || line.starts_with("//")));
    }
    found
}

/// Returns the tests that are named and not known.
fn unknown<'a>(races: &[(&str, Vec<&'a str>)], known: &HashSet<String>) -> Vec<&'a str> {
    let named = races.iter().flat_map(|(_, tests)| tests);
    named.copied().filter(|name| !known.contains(*name)).collect()
}

#[test]
fn each_test_of_a_race_exists() {
    let page = fs::read_to_string(PAGE).expect("it is there");
    let races = races(&page).unwrap_or_else(|wrong| panic!("{PAGE}: {wrong}"));
    assert!(races.len() > 40, "{} races: is the search still right?", races.len());
    let mut known = HashSet::new();
    for folder in ["src", "tests"] {
        each_file(Path::new(folder), &mut |path, text| {
            if path.ends_with(".rs") {
                known.extend(tests(text).into_iter().map(str::to_owned));
            }
        });
    }
    assert_eq!(unknown(&races, &known), Vec::<&str>::new(), "{PAGE} names tests that do not exist");
}

#[test]
fn each_path_of_the_page_exists() {
    let page = fs::read_to_string(PAGE).expect("it is there");
    let paths = paths(&page);
    assert!(paths.len() > 40, "{} paths: is the search still right?", paths.len());
    let missing: Vec<_> = paths.into_iter().filter(|path| !Path::new(path).exists()).collect();
    assert_eq!(missing, Vec::<&str>::new(), "{PAGE} names what is not there");
}

#[test]
fn each_name_of_the_page_exists() {
    let page = fs::read_to_string(PAGE).expect("it is there");
    let names = names(&page);
    assert!(names.len() > 150, "{} names: is the search still right?", names.len());
    assert_eq!(missing(names, &code()), Vec::<&str>::new(), "{PAGE} names what is in no source");
}

#[test]
fn a_wrong_name_is_found() {
    let page = "\
| another | table | test |
| --- | --- | --- |
| `src/a.rs` | no race | `not_looked_at` |

| race | mechanism | test |
| --- | --- | --- |
| one | `a_lock` | `is_there`, `is_planted` |
| two | order | `is_ignored` |

`sql/b.sql` and `c/d.rs`, `a word`, `Type`, `Type::call`, `Type::planted`, `Other::call`, `Type::Variant`, `word`
```
`tests/e.rs`, `in_code`
```
`docs/f.md`, `G.md`, `LIMIT`, `file::call`
";
    let races = races(page).expect("its form is right");
    assert_eq!(races, [("one", vec!["is_there", "is_planted"]), ("two", vec!["is_ignored"])]);
    let paths: Vec<_> = paths(page).into_iter().collect();
    assert_eq!(paths, ["G.md", "c/d.rs", "docs/f.md", "sql/b.sql", "src/a.rs"]);
    let source = "\
#[test]
fn is_there() {}
/// Says what it is.
    #[test]
    #[ignore = \"it takes minutes\"]
    // It does.
    fn is_ignored(number in 0..2) {}
fn is_planted() {}
";
    assert_eq!(tests(source), ["is_there", "is_ignored"], "a function that is no test proves nothing");
    let known = tests(source).into_iter().map(str::to_owned).collect();
    assert_eq!(unknown(&races, &known), ["is_planted"]);
    let empty = page.replace("`is_ignored`", "none yet");
    assert!(self::races(&empty).is_err_and(|wrong| wrong.contains("none yet")), "a race without a test");
    let sources = [
        Source::new("src/file.rs", "impl Type { fn call(&self, planted: u8) { Self::Variant } }"),
        Source::new("src/other.rs", "struct Other; const LIMIT: u8 = a_lock + a_lock_of_another_name"),
        Source::new("src/tests.rs", source),
    ];
    assert_eq!(missing(names(page), &sources), ["Other::call", "Type::planted", "not_looked_at"]);
}
