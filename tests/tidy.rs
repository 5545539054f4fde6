//! The house rules, held on `src/`: which room may import which, what a pure room never names, where `unsafe` may stand,
//! and how long a file and a function may be.
//!
//! Each rule is a function from the sources to the places that break it. The tests in this file run them on `src/`, those in
//! `bites` on small made-up sources, so that each is known to bite. The sources are read as tokens, not as a syntax
//! tree: what a macro expands to is not seen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use source::{Source, imports, item_end, read, text_at};

#[path = "tidy/bites.rs"]
mod bites;
#[path = "tidy/source.rs"]
mod source;

/// A file has fewer lines of code than this: comments and blank lines do not count, so that nobody
/// saves a line by leaving an explanation out.
const FILE_LINES: usize = 600;
/// A function has fewer lines than this, from its `fn` line to its closing brace.
const FUNCTION_LINES: usize = 70;
/// The binary is thin: `main.rs` has fewer lines of code than this.
const MAIN_LINES: usize = 100;
/// The only files in which `unsafe` may stand.
const UNSAFE_FILES: [&str; 2] = ["io/ring.rs", "io/buffers.rs"];

/// What gives a clock, randomness, a file, a socket, a thread or an executor. Time is an argument in a pure room.
const IMPURE: &[&str] = &[
    "core_affinity",
    "getrandom",
    "io_uring",
    "libc",
    "rand",
    "rustix",
    "signal_hook",
    "std::env",
    "std::fs",
    "std::io::stderr",
    "std::io::stdin",
    "std::io::stdout",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "tokio_uring",
    "tracing",
    "tracing_subscriber",
];

/// A part of the house that the layering rule treats as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Main,
    Command,
    Root,
    Admin,
    Io,
    Config,
    Core,
    Log,
    LogPure,
    Wire,
    Limits,
}

impl Room {
    /// The room of a module; `None` for one that nobody has given a room yet.
    fn of(module: &str) -> Option<Room> {
        let (first, rest) = module.split_once("::").unwrap_or((module, ""));
        Some(match first {
            "main" => Room::Main,
            "command" => Room::Command,
            "" => Room::Root,
            "admin" => Room::Admin,
            "io" => Room::Io,
            "config" => Room::Config,
            "core" => Room::Core,
            "log"
                if matches!(
                    rest.split("::").next(),
                    Some("commit" | "position" | "record")
                ) =>
            {
                Room::LogPure
            }
            "log" => Room::Log,
            "wire" => Room::Wire,
            "limits" => Room::Limits,
            _ => return None,
        })
    }

    /// The rooms that this one may import, beside itself. Settings stand above the rooms whose types they hold.
    fn may_import(self) -> &'static [Room] {
        use Room::{Admin, Command, Config, Core, Io, Limits, Log, LogPure, Root, Wire};
        match self {
            Room::Main | Room::Root => &[
                Root, Command, Admin, Io, Config, Core, Log, LogPure, Wire, Limits,
            ],
            // A command prints and asks: nothing that the server does may come to depend on that.
            Room::Command | Room::Admin | Room::Io => {
                &[Root, Admin, Io, Config, Core, Log, LogPure, Wire, Limits]
            }
            Room::Config => &[Core, Log, LogPure, Wire, Limits],
            Room::Core => &[LogPure, Wire, Limits],
            Room::Log => &[LogPure, Limits],
            Room::LogPure | Room::Wire => &[Limits],
            Room::Limits => &[],
        }
    }

    fn is_pure(self) -> bool {
        matches!(self, Room::Core | Room::LogPure | Room::Wire | Room::Limits)
    }
}

/// A place that breaks a rule.
struct Fault {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.path, self.line, self.what)
    }
}

// ---- the rules ----

/// main → command → io → core → {wire, log/commit, log/record} → limits.
fn layering(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (source, imported) in sources.iter().zip(imports(sources)) {
        let Some(room) = Room::of(&source.module) else {
            faults.push(source.fault(1, "this file is in no room: give it one in `Room::of`"));
            continue;
        };
        for (target, line) in imported {
            let target = &sources[target].module;
            let target_room = Room::of(target);
            if target_room.is_some_and(|to| to != room && !room.may_import().contains(&to)) {
                let name = if target.is_empty() { "lib.rs" } else { target };
                faults.push(source.fault(line, format!("{room:?} may not import {name}")));
            }
        }
    }
    faults
}

/// The imports of the modules form no cycle; a module is a file.
fn cycles(sources: &[Source]) -> Vec<Fault> {
    let graph: Vec<BTreeMap<usize, usize>> = imports(sources)
        .into_iter()
        .map(|edges| edges.into_iter().rev().collect())
        .collect();
    let mut walk = Walk {
        sources,
        graph,
        way: Vec::new(),
        done: vec![false; sources.len()],
        faults: Vec::new(),
    };
    for start in 0..sources.len() {
        walk.visit(start);
    }
    walk.faults
}

/// A walk along the imports, deep first. An import of a module that is on the way to the importer closes a cycle.
struct Walk<'a> {
    sources: &'a [Source],
    /// For each source: the sources that it imports, and the first line that does.
    graph: Vec<BTreeMap<usize, usize>>,
    way: Vec<usize>,
    done: Vec<bool>,
    faults: Vec<Fault>,
}

impl Walk<'_> {
    fn visit(&mut self, at: usize) {
        if self.done[at] {
            return;
        }
        self.way.push(at);
        for (target, line) in self.graph[at].clone() {
            let Some(start) = self.way.iter().position(|passed| *passed == target) else {
                self.visit(target);
                continue;
            };
            let round = self.way[start..].iter().chain([&target]);
            let names: Vec<&str> = round.map(|i| self.sources[*i].path.as_str()).collect();
            let what = format!("a cycle of imports: {}", names.join(" → "));
            self.faults.push(self.sources[at].fault(line, what));
        }
        self.way.pop();
        self.done[at] = true;
    }
}

/// A pure room has no clock, no randomness, no file, no socket, no thread and no executor.
fn purity(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let is_pure = |source: &&Source| Room::of(&source.module).is_some_and(Room::is_pure);
    for source in sources.iter().filter(is_pure) {
        for named in &source.named {
            let path = named.segments.join("::");
            let is_impure = |impure: &&str| match path.strip_suffix('*') {
                // A glob takes in what stands under its parent, and what its parent stands under.
                Some(parent) => {
                    impure.starts_with(parent) || parent.starts_with(&format!("{impure}::"))
                }
                None => path == **impure || path.starts_with(&format!("{impure}::")),
            };
            if IMPURE.iter().any(is_impure) {
                faults.push(source.fault(named.line, format!("a pure room names {path}")));
            }
        }
    }
    faults
}

/// `unsafe` stands in two files, and each block and impl says why it is sound.
fn unsafety(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let lines: Vec<&str> = source.raw.lines().map(str::trim).collect();
        // Above the `unsafe` come, at most, the rest of its statement and attributes, and then the comment.
        let has_reason = |line: usize| {
            let above = lines[..line - 1].iter().rev();
            let mut above = above.take_while(|line| {
                line.starts_with("//") || !line.ends_with([';', '{', '}', ',']) && !line.is_empty()
            });
            above.any(|line| line.starts_with("// SAFETY:"))
        };
        for (i, token) in source.words("unsafe") {
            let needs_reason = matches!(text_at(&source.tokens, i + 1), "{" | "impl");
            if !UNSAFE_FILES.contains(&source.path.as_str()) {
                let what = format!("`unsafe` may stand only in {}", UNSAFE_FILES.join(" and "));
                faults.push(source.fault(token.line, what));
            } else if needs_reason && !has_reason(token.line) {
                let what = "`unsafe` without a `// SAFETY:` comment above it";
                faults.push(source.fault(token.line, what));
            }
        }
    }
    faults
}

/// A file and a function can be held in one's head. Tests are no exception.
fn sizes(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let lines = source.code_lines;
        let is_main = source.path == "main.rs";
        let limit = if is_main { MAIN_LINES } else { FILE_LINES };
        if lines >= limit {
            let what = format!("{lines} lines of code; this file has to have fewer than {limit}");
            faults.push(source.fault(source.raw.lines().count(), what));
        }
        for (i, token) in source.words("fn") {
            let name = text_at(&source.tokens, i + 1);
            let lines = source.tokens[item_end(&source.tokens, i)].line - token.line + 1;
            // `fn(` is a type.
            if name != "(" && lines >= FUNCTION_LINES {
                let what = format!(
                    "`{name}` has {lines} lines; a function has fewer than {FUNCTION_LINES}"
                );
                faults.push(source.fault(token.line, what));
            }
        }
    }
    faults
}

/// Nothing unfinished, and no test that is not run.
fn leftovers(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        for (i, line) in source.raw.lines().enumerate() {
            let words = ["TODO", "FIXME"]
                .into_iter()
                .filter(|word| line.contains(word));
            faults
                .extend(words.map(|word| source.fault(i + 1, format!("{word}: make it an issue"))));
        }
        for (i, token) in source.tokens.iter().enumerate() {
            let next = text_at(&source.tokens, i + 1);
            let is_macro =
                matches!(token.text.as_str(), "todo" | "unimplemented" | "dbg") && next == "!";
            let is_ignored = token.text == "ignore"
                && i >= 2
                && text_at(&source.tokens, i - 1) == "["
                && text_at(&source.tokens, i - 2) == "#";
            if is_macro || is_ignored {
                faults.push(source.fault(token.line, format!("`{}` does not stay", token.text)));
            }
        }
    }
    faults
}

/// A file says first what it is.
fn headers(sources: &[Source]) -> Vec<Fault> {
    let bare = sources
        .iter()
        .filter(|source| !source.raw.starts_with("//!"));
    bare.map(|source| source.fault(1, "a file starts with a `//!` that says what it is"))
        .collect()
}

// ---- held on src/ ----

type Rule = fn(&[Source]) -> Vec<Fault>;

fn files_under(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let entry = entry.expect("a readable folder");
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            files_under(&entry.path(), &format!("{path}/"), files);
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            files.push((
                path,
                std::fs::read_to_string(entry.path()).expect("a readable file"),
            ));
        }
    }
}

fn hold(rule: Rule) {
    let mut files = Vec::new();
    // Cargo runs a test in the folder of its package.
    files_under(Path::new("src"), "", &mut files);
    files.sort();
    let faults = rule(&read(&files));
    let told: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert!(
        faults.is_empty(),
        "the house rules are broken:\n{}",
        told.join("\n")
    );
}

#[test]
fn imports_run_one_way() {
    hold(layering);
}

#[test]
fn imports_form_no_cycle() {
    hold(cycles);
}

#[test]
fn pure_rooms_name_nothing_impure() {
    hold(purity);
}

#[test]
fn unsafe_stands_in_two_files_and_gives_its_reasons() {
    hold(unsafety);
}

#[test]
fn files_and_functions_are_short() {
    hold(sizes);
}

#[test]
fn nothing_unfinished_stays() {
    hold(leftovers);
}

#[test]
fn every_file_says_what_it_is() {
    hold(headers);
}
