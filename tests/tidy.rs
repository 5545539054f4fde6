//! The house rules for `src/`: which layer may import which, what a pure layer never names, where
//! `unsafe` may appear, and how long a line, a function and a file may be.
//!
//! Each rule is a function from the sources to the places that break it. The tests in this file run
//! the rules on `src/`, and those in `bites` run them on small made-up sources, so that each is
//! known to bite. The sources are read as tokens (by the lexer of `syn`), not as a syntax tree: the
//! rules see the inside of a macro call, but not its expansion.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use source::{Source, imports, item_end, read, text_at};

#[path = "tidy/bites.rs"]
mod bites;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

/// Every file has fewer lines of code than this. Comments and blank lines do not count, so that
/// leaving out an explanation never saves a line.
const FILE_LINES: usize = 600;
/// Every function has fewer lines than this, from its `fn` line to its closing brace.
const FUNCTION_LINES: usize = 70;
/// The binary is thin: `main.rs` has fewer lines of code than this.
const MAIN_LINES: usize = 100;
/// The maximum number of columns in a line, including comments and literals.
const COLUMNS: usize = 100;
/// The only files in which `unsafe` may appear.
const UNSAFE_FILES: [&str; 3] = ["io/ring.rs", "io/ring/calls.rs", "io/buffers.rs"];

/// Paths that give access to a clock, randomness, files, sockets, threads or an executor. In a pure
/// layer, time is an argument.
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

/// A part of the crate that the layering rule treats as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Main,
    Command,
    Root,
    Io,
    Admin,
    Status,
    Config,
    Core,
    Log,
    LogPure,
    Wire,
    Limits,
}

impl Layer {
    /// Returns the layer of a module; `None` if it has none yet.
    fn of(module: &str) -> Option<Layer> {
        let (first, rest) = module.split_once("::").unwrap_or((module, ""));
        Some(match first {
            "main" => Layer::Main,
            "command" => Layer::Command,
            "" => Layer::Root,
            "io" => Layer::Io,
            "admin" => Layer::Admin,
            "status" => Layer::Status,
            "config" => Layer::Config,
            "core" => Layer::Core,
            "log" => match rest.split("::").next() {
                Some("commit" | "position" | "record") => Layer::LogPure,
                _ => Layer::Log,
            },
            "wire" => Layer::Wire,
            "generation" | "limits" | "seq" => Layer::Limits,
            _ => return None,
        })
    }

    /// Returns the layers that this one may import, in addition to itself. Settings are above the
    /// layers whose types they hold, and code shared by `io` and `admin` is below both.
    fn may_import(self) -> &'static [Layer] {
        use Layer::{Admin, Command, Config, Core, Io, Limits, Log, LogPure, Root, Status, Wire};
        match self {
            Layer::Main | Layer::Root => &[
                Root, Command, Io, Admin, Status, Config, Core, Log, LogPure, Wire, Limits,
            ],
            // A command prints and asks questions: nothing that the server does may depend on one.
            Layer::Command => &[
                Root, Io, Admin, Status, Config, Core, Log, LogPure, Wire, Limits,
            ],
            Layer::Io => &[Admin, Status, Config, Core, Log, LogPure, Wire, Limits],
            Layer::Admin => &[Status, Config, Core, Wire, Limits],
            Layer::Status => &[Core, Limits],
            Layer::Config => &[Core, Log, LogPure, Wire, Limits],
            Layer::Core => &[LogPure, Wire, Limits],
            Layer::Log => &[LogPure, Limits],
            Layer::LogPure | Layer::Wire => &[Limits],
            Layer::Limits => &[],
        }
    }

    fn is_pure(self) -> bool {
        matches!(
            self,
            Layer::Core | Layer::LogPure | Layer::Wire | Layer::Limits
        )
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

/// Checks that imports go one way: main → command → io → admin → {status, config} → core → {wire,
/// log/commit, log/record} → limits; the rest of log is between config and log/commit.
fn layering(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (source, imported) in sources.iter().zip(imports(sources)) {
        let Some(layer) = Layer::of(&source.module) else {
            faults.push(source.fault(1, "this file is in no layer: add it to `Layer::of`"));
            continue;
        };
        for (target, line) in imported {
            let target = &sources[target].module;
            let target_layer = Layer::of(target);
            if target_layer.is_some_and(|to| to != layer && !layer.may_import().contains(&to)) {
                let name = if target.is_empty() { "lib.rs" } else { target };
                faults.push(source.fault(line, format!("{layer:?} may not import {name}")));
            }
        }
    }
    faults
}

/// Checks that the imports of modules form no cycle. A module is a file.
fn cycles(sources: &[Source]) -> Vec<Fault> {
    let mut graph = Graph::default();
    for (source, imported) in sources.iter().zip(imports(sources)) {
        for (target, line) in imported {
            graph.add(&source.path, &sources[target].path, (source, line));
        }
    }
    graph.cycles("a cycle of imports")
}

/// Checks that of two modules in the same folder, at most one depends on the other, directly or
/// through others. Here, a module is a file together with everything in the folder of the same
/// name.
fn folder_cycles(sources: &[Source]) -> Vec<Fault> {
    let mut graph = Graph::default();
    for (source, imported) in sources.iter().zip(imports(sources)) {
        for (target, line) in imported {
            let from: Vec<&str> = source.module.split("::").collect();
            let to: Vec<&str> = sources[target].module.split("::").collect();
            let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            // A file and everything in the folder of the same name count as one.
            if shared < from.len() && shared < to.len() && !sources[target].module.is_empty() {
                let (from, to) = (from[..=shared].join("/"), to[..=shared].join("/"));
                graph.add(&from, &to, (source, line));
            }
        }
    }
    graph.cycles("a cycle of folders")
}

/// The imports between named modules, each with the first line that makes it.
#[derive(Default)]
struct Graph<'a> {
    edges: BTreeMap<String, BTreeMap<String, (&'a Source, usize)>>,
    /// The names with edges, in the order in which they were added.
    starts: Vec<String>,
    /// The names from the start of the search to its current position.
    path: Vec<String>,
    done: BTreeSet<String>,
    faults: Vec<Fault>,
}

impl<'a> Graph<'a> {
    fn add(&mut self, from: &str, to: &str, place: (&'a Source, usize)) {
        if !self.edges.contains_key(from) {
            self.starts.push(from.to_owned());
        }
        let edges = self.edges.entry(from.to_owned()).or_default();
        edges.entry(to.to_owned()).or_insert(place);
    }

    fn cycles(mut self, what: &str) -> Vec<Fault> {
        for start in self.starts.clone() {
            self.visit(&start, what);
        }
        self.faults
    }

    /// Searches depth-first. An import of a name on the path to the importer closes a cycle.
    fn visit(&mut self, at: &str, what: &str) {
        if self.done.contains(at) {
            return;
        }
        self.path.push(at.to_owned());
        for (target, (source, line)) in self.edges.get(at).cloned().unwrap_or_default() {
            let Some(start) = self.path.iter().position(|passed| *passed == target) else {
                self.visit(&target, what);
                continue;
            };
            let mut round = self.path[start..].to_vec();
            round.push(target);
            let what = format!("{what}: {}", round.join(" → "));
            self.faults.push(source.fault(line, what));
        }
        self.path.pop();
        self.done.insert(at.to_owned());
    }
}

/// Checks that a pure layer has no clock, no randomness, no file, no socket, no thread and no
/// executor.
fn purity(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let is_pure = |source: &&Source| Layer::of(&source.module).is_some_and(Layer::is_pure);
    for source in sources.iter().filter(is_pure) {
        for named in &source.named {
            let path = named.segments.join("::");
            let is_impure = |impure: &&str| match path.strip_suffix('*') {
                // A glob can import anything under its parent, and its parent may be under an
                // impure path.
                Some(parent) => {
                    impure.starts_with(parent) || parent.starts_with(&format!("{impure}::"))
                }
                None => path == **impure || path.starts_with(&format!("{impure}::")),
            };
            if IMPURE.iter().any(is_impure) {
                faults.push(source.fault(named.line, format!("a pure layer names {path}")));
            }
        }
    }
    faults
}

/// Checks that `unsafe` appears in only three files, and that each block and impl says why it is
/// sound.
fn unsafety(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let lines: Vec<&str> = source.raw.lines().map(str::trim).collect();
        // Between the comment and the `unsafe` there may only be attributes and the rest of its
        // statement.
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
                let what = format!("`unsafe` is allowed only in {}", UNSAFE_FILES.join(" and "));
                faults.push(source.fault(token.line, what));
            } else if needs_reason && !has_reason(token.line) {
                let what = "`unsafe` without a `// SAFETY:` comment above it";
                faults.push(source.fault(token.line, what));
            }
        }
    }
    faults
}

/// Checks that every file and every function is short enough to keep in mind. Tests are no
/// exception.
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

/// Checks that lines are narrow enough for two files side by side on a screen. rustfmt leaves
/// comments and literals as they are.
fn widths(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        for (line, text) in (1..).zip(source.raw.lines()) {
            let columns = text.chars().count();
            if columns > COLUMNS {
                let what = format!("{columns} columns; a line has at most {COLUMNS}");
                faults.push(source.fault(line, what));
            }
        }
    }
    faults
}

/// Checks that a type name means one type in the whole crate. Test modules may reuse a name, the
/// name of an associated type comes from its trait, and the `cfg` variants of a type are in one
/// file.
fn type_names(sources: &[Source]) -> Vec<Fault> {
    let mut homes: BTreeMap<&str, &str> = BTreeMap::new();
    let mut faults = Vec::new();
    for source in sources {
        for (name, line) in &source.types {
            let home = *homes.entry(name).or_insert(&source.path);
            if home != source.path {
                faults.push(source.fault(*line, format!("`{name}` is also a type of {home}")));
            }
        }
    }
    faults
}

/// Checks that nothing is left unfinished and that no test is ignored.
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

/// Checks that every file begins by saying what it is.
fn headers(sources: &[Source]) -> Vec<Fault> {
    let bare = sources
        .iter()
        .filter(|source| !source.raw.starts_with("//!"));
    bare.map(|source| source.fault(1, "a file starts with a `//!` that says what it is"))
        .collect()
}

// ---- run on src/ ----

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
    let listed: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert!(
        faults.is_empty(),
        "the house rules are violated:\n{}",
        listed.join("\n")
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
fn folders_form_no_cycle() {
    hold(folder_cycles);
}

#[test]
fn pure_layers_name_nothing_impure() {
    hold(purity);
}

#[test]
fn unsafe_is_in_three_files_and_is_justified() {
    hold(unsafety);
}

#[test]
fn files_and_functions_are_short() {
    hold(sizes);
}

#[test]
fn lines_are_narrow() {
    hold(widths);
}

/// Outside `src`, a line with a string literal may be longer: rustfmt cannot wrap it, and JSON in a
/// test is easier to read in one piece.
#[test]
fn lines_outside_the_sources_are_narrow() {
    let mut files = Vec::new();
    for folder in [
        "tests",
        "benches",
        "examples",
        "fuzz/fuzz_targets",
        "fuzz/src",
        "fuzz/examples",
    ] {
        files_under(Path::new(folder), &format!("{folder}/"), &mut files);
    }
    let is_wide = |line: &str| line.chars().count() > COLUMNS && !line.contains('"');
    let wide = files.iter().flat_map(|(path, text)| {
        let lines = (1..).zip(text.lines());
        let wide = lines.filter(|(_, line)| is_wide(line));
        wide.map(move |(number, _)| format!("{path}:{number}"))
    });
    let wide: Vec<String> = wide.collect();
    assert_eq!(wide, [""; 0], "lines of more than {COLUMNS} columns");
}

#[test]
fn a_type_name_means_one_type() {
    hold(type_names);
}

#[test]
fn nothing_unfinished_is_left() {
    hold(leftovers);
}

#[test]
fn every_file_says_what_it_is() {
    hold(headers);
}
