//! Reads the sources: as tokens, and as the paths that each file names.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, Spacing, Span, TokenStream, TokenTree};

use super::Fault;

#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
}

/// A path that a file names: its segments, starting with `crate` or the name of another crate.
pub(super) struct Named {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

pub(super) struct Source {
    /// The path relative to `src/`.
    pub(super) path: String,
    /// The path of the module: `wire::frame` for `wire/frame.rs`, `wire` for `wire/mod.rs`, and
    /// empty for `lib.rs`.
    pub(super) module: String,
    pub(super) raw: String,
    /// The number of lines that are neither blank nor only comments.
    pub(super) code_lines: usize,
    /// The tokens, without comments and literals.
    pub(super) tokens: Vec<Token>,
    /// The types that non-test code defines, except for associated types, and their lines.
    pub(super) types: Vec<(String, usize)>,
    /// The paths that non-test code names; test code may import and use anything.
    pub(super) named: Vec<Named>,
}

impl Source {
    /// Returns the tokens that equal `word`, with their indices.
    pub(super) fn words(&self, word: &str) -> impl Iterator<Item = (usize, &Token)> {
        let numbered = self.tokens.iter().enumerate();
        numbered.filter(move |(_, token)| token.text == word)
    }

    pub(super) fn fault(&self, line: usize, what: impl Into<String>) -> Fault {
        Fault {
            path: self.path.clone(),
            line,
            what: what.into(),
        }
    }
}

// ---- reading ----

/// Reads files given as (path in `src/`, text).
pub(super) fn read(files: &[(String, String)]) -> Vec<Source> {
    let mut test_modules = BTreeSet::new();
    let mut sources = Vec::new();
    for (path, raw) in files {
        let module = path
            .trim_end_matches(".rs")
            .trim_end_matches("/mod")
            .replace('/', "::");
        let module = if module == "lib" {
            String::new()
        } else {
            module
        };
        let (tokens, code_lines) = tokens(raw);
        let (product, declared) = without_tests(&tokens);
        test_modules.extend(declared.into_iter().map(|name| join(&module, &name)));
        let named = named(&product, &module);
        let types = types(&product);
        sources.push(Source {
            path: path.clone(),
            module,
            raw: raw.clone(),
            code_lines,
            tokens,
            types,
            named,
        });
    }
    for source in &mut sources {
        let is_test = |test: &String| {
            source.module == *test || source.module.starts_with(&format!("{test}::"))
        };
        if test_modules.iter().any(is_test) {
            source.named.clear();
            source.types.clear();
        }
    }
    sources
}

/// Returns the types defined at module level, and not those within a trait, an impl or a function.
fn types(tokens: &[Token]) -> Vec<(String, usize)> {
    let mut depth = 0;
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "struct" | "enum" | "trait" | "type" if depth == 0 => {
                found.push((text_at(tokens, i + 1).to_owned(), token.line));
            }
            _ => {}
        }
    }
    found
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}::{name}")
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Splits a text into words, `::`, and every other character of code on its own. Also returns the
/// number of lines that contain any part of a token or a literal.
fn tokens(text: &str) -> (Vec<Token>, usize) {
    let stream: TokenStream = text.parse().expect("the source can be tokenized");
    let mut lexed = Lexed {
        lines: text.lines().collect(),
        tokens: Vec::new(),
        code_lines: BTreeSet::new(),
    };
    lexed.read(stream);
    (lexed.tokens, lexed.code_lines.len())
}

/// The tokens of a text, in a flat list.
struct Lexed<'a> {
    lines: Vec<&'a str>,
    tokens: Vec<Token>,
    code_lines: BTreeSet<usize>,
}

impl Lexed<'_> {
    fn read(&mut self, stream: TokenStream) {
        let mut trees = stream.into_iter().peekable();
        while let Some(tree) = trees.next() {
            if self.is_doc_comment(&tree) {
                // It arrives as the equivalent attribute: `#`, `!` if it is an inner one, `[…]`.
                let is_bang = |tree: &TokenTree| matches!(tree, TokenTree::Punct(_));
                trees.next_if(is_bang);
                trees.next();
                continue;
            }
            match tree {
                TokenTree::Group(group) => {
                    let (open, close) = match group.delimiter() {
                        Delimiter::Parenthesis => ("(", ")"),
                        Delimiter::Brace => ("{", "}"),
                        Delimiter::Bracket => ("[", "]"),
                        Delimiter::None => ("", ""),
                    };
                    self.push(open, group.span_open());
                    self.read(group.stream());
                    self.push(close, group.span_close());
                }
                TokenTree::Ident(ident) => self.push(&ident.to_string(), ident.span()),
                TokenTree::Punct(punct) => {
                    let is_joint = punct.as_char() == ':' && punct.spacing() == Spacing::Joint;
                    let is_colon = |tree: &TokenTree| match tree {
                        TokenTree::Punct(next) => next.as_char() == ':',
                        _ => false,
                    };
                    let is_path = is_joint && trees.next_if(is_colon).is_some();
                    let one = punct.as_char().to_string();
                    self.push(if is_path { "::" } else { &one }, punct.span());
                }
                TokenTree::Literal(literal) => self.count_lines(literal.span()),
            }
        }
    }

    fn is_doc_comment(&self, tree: &TokenTree) -> bool {
        if !matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '#') {
            return false;
        }
        let start = tree.span().start();
        self.lines[start.line - 1].chars().nth(start.column) == Some('/')
    }

    fn push(&mut self, text: &str, span: Span) {
        self.count_lines(span);
        self.tokens.push(Token {
            text: text.to_owned(),
            line: span.start().line,
        });
    }

    /// Counts the lines of a token as code. Blank lines within a literal do not count.
    fn count_lines(&mut self, span: Span) {
        let all = span.start().line..=span.end().line;
        let lines = &self.lines;
        let has_text = |line: &usize| !lines[line - 1].trim().is_empty();
        self.code_lines.extend(all.filter(has_text));
    }
}

pub(super) fn text_at(tokens: &[Token], at: usize) -> &str {
    tokens.get(at).map_or("", |token| token.text.as_str())
}

/// Returns the index of the last token of the item that starts at `at`: its closing brace, its
/// semicolon, or, for a field or an argument, the token before the bracket that closes the list.
pub(super) fn item_end(tokens: &[Token], at: usize) -> usize {
    let (mut depth, mut braces) = (0_i32, 0_i32);
    for (i, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" if depth == 0 => return i - 1,
            ")" | "]" => depth -= 1,
            "{" if depth == 0 => braces += 1,
            "}" if depth == 0 && braces == 0 => return i - 1,
            "}" if depth == 0 && braces == 1 => return i,
            "}" if depth == 0 => braces -= 1,
            ";" if depth == 0 && braces == 0 => return i,
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}

/// Returns the tokens without the items under `#[cfg(test)]`, and the modules in other files that
/// are declared under it.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut product, mut declared) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if (0..CFG_TEST.len()).all(|i| text_at(tokens, at + i) == CFG_TEST[i]) {
            let end = item_end(tokens, at);
            if text_at(tokens, end) == ";" && end >= 2 && text_at(tokens, end - 2) == "mod" {
                declared.push(tokens[end - 1].text.clone());
            }
            at = end + 1;
        } else {
            product.push(tokens[at].clone());
            at += 1;
        }
    }
    (product, declared)
}

// ---- paths ----

/// One leaf of a path or of a `use` tree, as written, and the name that a `use` gives it.
struct Leaf {
    segments: Vec<String>,
    name: String,
    line: usize,
}

/// Reads the path or `use` tree at `at` into `leaves`, and returns the index after it.
fn read_path(tokens: &[Token], mut at: usize, prefix: &[String], leaves: &mut Vec<Leaf>) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    if text_at(tokens, at) == "::" {
        at += 1;
    }
    loop {
        match text_at(tokens, at) {
            "{" => {
                at += 1;
                while !matches!(text_at(tokens, at), "}" | "") {
                    let is_comma = text_at(tokens, at) == ",";
                    at = if is_comma {
                        at + 1
                    } else {
                        read_path(tokens, at, &segments, leaves)
                    };
                }
                return at + 1;
            }
            "self" if !segments.is_empty() => {}
            segment => segments.push(segment.to_owned()),
        }
        at += 1;
        let goes_on = text_at(tokens, at + 1).starts_with(|c| is_word(c) || c == '{' || c == '*');
        if text_at(tokens, at) != "::" || !goes_on {
            break;
        }
        at += 1;
    }
    let mut name = segments.last().cloned().unwrap_or_default();
    if text_at(tokens, at) == "as" {
        text_at(tokens, at + 1).clone_into(&mut name);
        at += 2;
    }
    leaves.push(Leaf {
        segments,
        name,
        line,
    });
    at
}

/// Returns every path in the tokens of a module. A name that a `use` brought in
/// (`use crate::wire;`) or that a `mod` declares is traced to its origin, even if it only begins
/// the path (`wire::frame::decode`).
fn named(tokens: &[Token], module: &str) -> Vec<Named> {
    let mut inside: Vec<String> = vec!["crate".to_owned()];
    inside.extend(
        module
            .split("::")
            .filter(|name| !name.is_empty() && *name != "main")
            .map(str::to_owned),
    );
    let mut origins = BTreeMap::new();
    for (i, token) in tokens.iter().enumerate() {
        if token.text == "mod" && text_at(tokens, i + 2) == ";" {
            let name = text_at(tokens, i + 1).to_owned();
            origins.insert(name.clone(), [inside.clone(), vec![name]].concat());
        }
    }
    let mut found = Vec::new();
    // The brace depths at which the enclosing inline modules were opened.
    let (mut depth, mut opened) = (0, Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let is_use = at > 0 && text_at(tokens, at - 1) == "use";
        let is_path = text_at(tokens, at).starts_with(is_word) && text_at(tokens, at + 1) == "::";
        if !is_use && !is_path {
            match text_at(tokens, at) {
                "mod" if text_at(tokens, at + 2) == "{" => {
                    opened.push(depth);
                    inside.push(text_at(tokens, at + 1).to_owned());
                }
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if text_at(tokens, at) == "}" && opened.last() == Some(&depth) {
                opened.pop();
                inside.pop();
            }
            at += 1;
            continue;
        }
        let mut leaves = Vec::new();
        at = read_path(tokens, at, &[], &mut leaves);
        for leaf in leaves {
            let segments = from_root(&leaf.segments, &inside, &origins);
            // Types are named like `Instant`; only modules and crates come before a `::` that
            // matters here.
            if is_use && leaf.name.starts_with(|c: char| c.is_lowercase()) {
                origins.insert(leaf.name, segments.clone());
            }
            found.push(Named {
                segments,
                line: leaf.line,
            });
        }
    }
    found
}

/// Returns the path starting with `crate` or with another crate's name.
fn from_root(
    written: &[String],
    inside: &[String],
    origins: &BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let (first, rest) = written.split_first().expect("the path is not empty");
    let supers = written
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    match first.as_str() {
        "crate" => [&["crate".to_owned()], rest].concat(),
        "self" => [inside, rest].concat(),
        "super" => [
            &inside[..inside.len().saturating_sub(supers).max(1)],
            &written[supers..],
        ]
        .concat(),
        name => origins
            .get(name)
            .map_or_else(|| written.to_vec(), |origin| [&origin[..], rest].concat()),
    }
}

/// Returns the module, among those that are files, in which a path of this crate ends.
fn module_of<'a>(segments: &[String], modules: &BTreeMap<&'a str, usize>) -> Option<&'a str> {
    let (first, rest) = segments.split_first()?;
    let mut lengths = (0..=rest.len()).rev();
    let found = lengths.find_map(|len| modules.get_key_value(rest[..len].join("::").as_str()));
    found
        .filter(|_| first == "crate")
        .map(|(module, _)| *module)
}

/// Returns, for each source, the modules that it imports as (index of the source, line). Its own
/// inline modules do not count as imports.
pub(super) fn imports(sources: &[Source]) -> Vec<Vec<(usize, usize)>> {
    let numbered = sources
        .iter()
        .enumerate()
        .filter(|(_, source)| source.module != "main");
    let modules: BTreeMap<&str, usize> = numbered
        .map(|(i, source)| (source.module.as_str(), i))
        .collect();
    let of_source = |source: &Source| {
        let targets = source
            .named
            .iter()
            .filter_map(|named| Some((modules[module_of(&named.segments, &modules)?], named.line)));
        targets
            .filter(|(target, _)| sources[*target].module != source.module)
            .collect()
    };
    sources.iter().map(of_source).collect()
}
