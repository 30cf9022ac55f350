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
    signatures: BTreeMap<String, Vec<Signature>>,
    /// The functions without a body: those of Postgres and of the C library, and those of traits.
    declared: BTreeSet<String>,
    /// The types, and the modules within the file.
    types: BTreeSet<String>,
    /// The modules that it names in a `use`, or in a path.
    imports: BTreeSet<String>,
}

/// What is known of a function without its body.
struct Signature {
    /// What is between the name and the body.
    text: String,
    /// The types and traits of the `impl` or the trait that has the function.
    owners: Vec<String>,
}

impl Signature {
    fn is_method(&self) -> bool {
        let mut depth = 0;
        let mut before = ' ';
        for (at, c) in self.text.char_indices() {
            match c {
                '<' => depth += 1,
                '>' if before != '-' => depth -= 1,
                '(' if depth == 0 => {
                    let first = self.text[at..].split([',', ')']).next().unwrap_or_default();
                    return words(first).any(|word| word == "self");
                }
                _ => {}
            }
            before = c;
        }
        false
    }
}

pub struct Reach {
    sources: BTreeMap<PathBuf, Source>,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with comments and the contents of strings blanked, up to the file's unit tests.
pub fn blanked(text: &str) -> String {
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
pub fn block(text: &str) -> &str {
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
            signatures: BTreeMap::new(),
            declared: BTreeSet::new(),
            types: BTreeSet::new(),
            imports: BTreeSet::new(),
        };
        let owners = owners(&text);
        for (at, _) in text.match_indices("fn ") {
            let before = text[..at].chars().next_back();
            let name: String = text[at + 3..].chars().take_while(|c| is_word(*c)).collect();
            let rest = &text[at..];
            if name.is_empty() || before.is_some_and(is_word) {
                continue;
            }
            match body_of(rest) {
                Some(brace) => {
                    let own = owners.iter().filter(|(block, _)| block.contains(&at));
                    let signature = Signature {
                        text: rest[3 + name.len()..brace].to_owned(),
                        owners: own.flat_map(|(_, names)| names.clone()).collect(),
                    };
                    source.signatures.entry(name.clone()).or_default().push(signature);
                    source.functions.entry(name).or_default().push(block(&rest[brace..]).to_owned());
                }
                None => _ = source.declared.insert(name),
            }
        }
        for keyword in ["struct ", "enum ", "trait ", "mod "] {
            for (at, _) in text.match_indices(keyword) {
                let name = text[at + keyword.len()..].chars().take_while(|c| is_word(*c)).collect();
                source.types.insert(name);
            }
        }
        source.imports = words(&text).map(str::to_owned).collect();
        source
    }

    /// The functions of this name: those that are methods, or the others.
    fn named(&self, name: &str, method: bool) -> impl Iterator<Item = &Signature> {
        let signatures = self.signatures.get(name).into_iter().flatten();
        signatures.filter(move |signature| signature.is_method() == method)
    }
}

/// Where each `impl` and each trait is, and the types and traits of its head.
fn owners(text: &str) -> Vec<(std::ops::Range<usize>, Vec<String>)> {
    let starts = ["impl", "trait "].into_iter().flat_map(|keyword| text.match_indices(keyword));
    let begins = |at: usize| {
        let before = text[..at].rsplit('\n').next().unwrap_or_default();
        words(before).all(|word| ["pub", "super", "crate", "unsafe"].contains(&word))
    };
    let owner = |at: usize| {
        let length = text[at..].find('{')?;
        let names = words(&text[at..at + length]).map(str::to_owned).collect();
        Some((at..at + length + block(&text[at + length..]).len(), names))
    };
    starts.map(|(at, _)| at).filter(|at| begins(*at)).filter_map(owner).collect()
}

/// The names and numbers of a text.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty())
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

/// A name that a body writes as a call, or as a function that it gives to another one.
struct Call<'b> {
    qualifier: Option<&'b str>,
    name: &'b str,
    method: bool,
}

/// The names that a body gives to values: by `let`, as the argument of a closure, or in a pattern.
fn bound(body: &str) -> impl Iterator<Item = &str> {
    let lets = body.split("let ").skip(1).filter_map(|rest| rest.split(['=', ';']).next());
    let closures = body.split('|').skip(1).step_by(2);
    let arms = body.lines().filter_map(|line| Some(line.split_once("=>")?.0));
    let loops = body.split("for ").skip(1).filter_map(|rest| Some(rest.split_once(" in ")?.0));
    lets.chain(closures).chain(arms).chain(loops).flat_map(words)
}

/// What a body calls, by the form of the call: other words are no calls.
fn written_calls<'b>(body: &'b str, signature: &'b str) -> Vec<Call<'b>> {
    let mut found = Vec::new();
    let bound: BTreeSet<&str> = bound(body).chain(words(signature)).collect();
    let mut at = 0;
    while let Some(start) = body[at..].find(is_word).map(|n| at + n) {
        let end = body[start..].find(|c| !is_word(c)).map_or(body.len(), |n| start + n);
        at = end;
        let (before, after) = (&body[..start], &body[end..]);
        let qualifier = before.strip_suffix("::").map(|path| {
            let begin = path.rfind(|c| !is_word(c)).map_or(0, |n| n + 1);
            &path[begin..]
        });
        let (before, after) = (before.trim_end(), after.trim_start());
        let is_argument = before.ends_with(['(', ',']) && after.starts_with([')', ',']);
        let is_argument = is_argument && !bound.contains(&body[start..end]);
        let is_value = (qualifier.is_some() && !after.starts_with("::")) || is_argument;
        if after.starts_with('(') || after.starts_with("::<") || is_value {
            found.push(Call { qualifier, name: &body[start..end], method: before.ends_with('.') });
        }
    }
    found
}

impl Reach {
    /// What a function calls, by the form of each call and by the types that can be meant: those that its
    /// file names, and those in the signatures of what it calls. `from` follows more: it takes each word for
    /// a call.
    fn called_by(&self, function: &Function) -> BTreeSet<Function> {
        let own = &self.sources[&function.file];
        let mut found: BTreeSet<Function> = BTreeSet::new();
        let calls = self.calls_of(function);
        let is_type = |name: &String| self.sources.values().any(|source| source.types.contains(name));
        loop {
            let signatures = found.iter().flat_map(|f| &self.sources[&f.file].signatures[&f.name]);
            let known: BTreeSet<&str> = signatures.flat_map(|s| words(&s.text)).collect();
            let is_known = |t: &String| (own.imports.contains(t) || known.contains(t.as_str())) && is_type(t);
            let mut more = found.clone();
            for Call { qualifier, name, method } in &calls {
                let is_here = own.named(name, *method).next().is_some();
                for (path, source) in self.sources.iter().filter(|(_, s)| s.functions.contains_key(*name)) {
                    let here = *path == function.file;
                    let imported = own.imports.contains(&source.module);
                    let is_meant = match qualifier {
                        Some("Self" | "self") => here,
                        Some(q) => source.module == *q || source.types.contains(*q),
                        None if *method => {
                            let mut owners = source.named(name, true).flat_map(|s| &s.owners);
                            owners.any(is_known)
                        }
                        None => source.named(name, false).next().is_some() && (here || imported && !is_here),
                    };
                    if is_meant {
                        more.insert(Function { file: path.clone(), name: (*name).to_owned() });
                    }
                }
            }
            if more == found {
                return found;
            }
            found = more;
        }
    }

    /// The calls in the bodies of a function.
    fn calls_of(&self, function: &Function) -> Vec<Call<'_>> {
        let signatures = &self.sources[&function.file].signatures[&function.name];
        let bodies = self.bodies(function).iter().zip(signatures);
        bodies.flat_map(|(body, signature)| written_calls(body, &signature.text)).collect()
    }

    /// Everything that these functions lead to by calls (`called_by`), themselves included, each with its
    /// caller.
    pub fn called_from(&self, roots: Vec<Function>) -> BTreeMap<Function, Option<Function>> {
        let mut reached = BTreeMap::new();
        let mut todo: std::collections::VecDeque<_> = roots.into_iter().map(|root| (root, None)).collect();
        while let Some((function, caller)) = todo.pop_front() {
            if !reached.contains_key(&function) {
                reached.insert(function.clone(), caller);
                let called = self.called_by(&function);
                todo.extend(called.into_iter().map(|called| (called, Some(function.clone()))));
            }
        }
        reached
    }

    /// What a function has of Postgres and of the C library: names behind `pg_sys::`, and functions that its
    /// file declares without a body.
    pub fn foreign(&self, function: &Function) -> BTreeSet<String> {
        let declared = &self.sources[&function.file].declared;
        let bodies = self.bodies(function);
        let calls = self.calls_of(function).into_iter().map(|call| call.name);
        let called = calls.filter(|name| declared.contains(*name)).map(str::to_owned);
        let named = bodies.iter().flat_map(|body| body.split("pg_sys::").skip(1));
        let named = named.map(|rest| rest.chars().take_while(|c| is_word(*c)).collect());
        called.chain(named).collect()
    }

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
