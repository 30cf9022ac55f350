//! Which functions of src can be reached from which, by their text: a call is followed to every function that
//! it may mean. What a macro builds or a function pointer hides is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A function of src.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    pub file: PathBuf,
    pub name: String,
}

/// A source file, without comments, strings and test modules.
struct Source {
    /// The last part of its module's path.
    module: String,
    /// The type of each `impl`, and functions with their bodies.
    functions: BTreeMap<String, Vec<String>>,
    types: BTreeSet<String>,
    /// The modules that it names in a `use`, or in a path.
    imports: BTreeSet<String>,
}

pub struct Reach {
    sources: BTreeMap<PathBuf, Source>,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with comments and the contents of strings blanked, up to the file's unit tests.
fn blanked(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let (mut out, mut chars) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                for c in chars.by_ref() {
                    if c == '\n' {
                        out.push('\n');
                        break;
                    }
                }
            }
            '"' => {
                out.push('"');
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                out.push('"');
            }
            // A brace or a quote as a character.
            '\'' => {
                let mut ahead = chars.clone();
                let first = ahead.next();
                let is_char = match first {
                    Some('\\') => true,
                    _ => ahead.next() == Some('\''),
                };
                out.push(' ');
                if is_char {
                    if chars.next() == Some('\\') {
                        chars.next();
                    }
                    chars.next();
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// From an opening brace on, what is between it and the brace that closes it.
fn block(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return &text[..=at];
                }
            }
            _ => {}
        }
    }
    text
}

/// Where the body of a function begins, of a text that begins with its declaration. `None` without a body.
/// The semicolon of an array's type does not end a declaration.
fn body_of(declaration: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in declaration.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(at),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

impl Source {
    fn of(path: &Path, text: &str) -> Self {
        let text = blanked(text);
        let stem = path.file_stem().expect("it has a name").to_string_lossy();
        let module = match stem.as_ref() {
            "mod" => path.parent().and_then(Path::file_name).map_or("crate".into(), |n| n.to_string_lossy()),
            stem => stem.to_owned().into(),
        };
        let mut source = Self {
            module: module.into_owned(),
            functions: BTreeMap::new(),
            types: BTreeSet::new(),
            imports: BTreeSet::new(),
        };
        for (at, _) in text.match_indices("fn ") {
            let before = text[..at].chars().next_back();
            let name: String = text[at + 3..].chars().take_while(|c| is_word(*c)).collect();
            let rest = &text[at..];
            if !name.is_empty()
                && !before.is_some_and(is_word)
                && let Some(brace) = body_of(rest)
            {
                source.functions.entry(name).or_default().push(block(&rest[brace..]).to_owned());
            }
        }
        for keyword in ["struct ", "enum ", "trait "] {
            for (at, _) in text.match_indices(keyword) {
                let name = text[at + keyword.len()..].chars().take_while(|c| is_word(*c)).collect();
                source.types.insert(name);
            }
        }
        let mut word = String::new();
        for c in text.chars() {
            if is_word(c) {
                word.push(c);
            } else if !word.is_empty() {
                source.imports.insert(std::mem::take(&mut word));
            }
        }
        source
    }
}

/// What a body calls: an optional qualifier, the name, and whether it is a method.
fn calls(body: &str) -> Vec<(Option<String>, String, bool)> {
    let chars: Vec<char> = body.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        if !is_word(chars[at]) {
            at += 1;
            continue;
        }
        let start = at;
        while at < chars.len() && is_word(chars[at]) {
            at += 1;
        }
        let name: String = chars[start..at].iter().collect();
        let before = |n: usize| start.checked_sub(n).and_then(|i| chars.get(i)).copied();
        let qualifier = (before(1) == Some(':') && before(2) == Some(':')).then(|| {
            let end = start - 2;
            let mut begin = end;
            while begin > 0 && is_word(chars[begin - 1]) {
                begin -= 1;
            }
            chars[begin..end].iter().collect::<String>()
        });
        // A function may also be given to another one, without being called here.
        found.push((qualifier, name, before(1) == Some('.')));
    }
    found
}

impl Reach {
    pub fn of(sources: &[(PathBuf, String)]) -> Self {
        let sources = sources.iter().filter(|(path, _)| {
            !["tests.rs", "lib.rs"].contains(&path.to_string_lossy().as_ref()) && !path.ends_with("tests.rs")
        });
        Self { sources: sources.map(|(path, text)| (path.clone(), Source::of(path, text))).collect() }
    }

    /// The bodies of a function.
    pub fn bodies(&self, function: &Function) -> &[String] {
        &self.sources[&function.file].functions[&function.name]
    }

    /// Every function of these files.
    pub fn functions_of(&self, files: &[&str]) -> Vec<Function> {
        let mut found = Vec::new();
        for file in files {
            let file = PathBuf::from(file);
            let source =
                self.sources.get(&file).unwrap_or_else(|| panic!("src/{} is not there", file.display()));
            found.extend(
                source.functions.keys().map(|name| Function { file: file.clone(), name: name.clone() }),
            );
        }
        found
    }

    /// What a call in `file` may mean.
    fn meant(&self, file: &Path, qualifier: Option<&str>, name: &str, method: bool) -> Vec<Function> {
        let own = &self.sources[file];
        let candidates = self.sources.iter().filter(|(_, s)| s.functions.contains_key(name));
        let meant = candidates.filter(|(path, source)| {
            let here = path.as_path() == file;
            match qualifier {
                Some("Self" | "self") => here,
                // A module, or a type of it.
                Some(qualifier) => source.module == qualifier || source.types.contains(qualifier),
                // A method of any type whose module, or one of whose types, is named in this file.
                None if method => {
                    here || own.imports.contains(&source.module)
                        || source.types.iter().any(|t| own.imports.contains(t))
                }
                None => here || own.imports.contains(&source.module),
            }
        });
        meant.map(|(path, _)| Function { file: path.clone(), name: name.to_owned() }).collect()
    }

    /// Everything that can be reached from these functions, themselves included, each with its caller.
    pub fn from(&self, roots: Vec<Function>) -> BTreeMap<Function, Option<Function>> {
        let mut reached = BTreeMap::new();
        let mut todo: Vec<(Function, Option<Function>)> =
            roots.into_iter().map(|root| (root, None)).collect();
        while let Some((function, caller)) = todo.pop() {
            if reached.contains_key(&function) {
                continue;
            }
            reached.insert(function.clone(), caller);
            for body in self.bodies(&function) {
                for (qualifier, name, method) in calls(body) {
                    let meant = self.meant(&function.file, qualifier.as_deref(), &name, method);
                    todo.extend(meant.into_iter().map(|called| (called, Some(function.clone()))));
                }
            }
        }
        reached
    }

    /// The calls that lead to a function, as a message shows them.
    pub fn path(reached: &BTreeMap<Function, Option<Function>>, function: &Function) -> String {
        let (mut path, mut at) = (Vec::new(), Some(function));
        while let Some(function) = at {
            path.push(format!("{}: {}", function.file.display(), function.name));
            at = reached[function].as_ref();
        }
        path.reverse();
        path.join(" > ")
    }
}
