//! Tests that each rule bites: run on made-up sources, it finds the marked lines and no others.

use std::collections::BTreeSet;

use super::source::read;
use super::{COLUMNS, FILE_LINES, FUNCTION_LINES, MAIN_LINES, Rule};
use super::{
    cycles, folder_cycles, headers, layering, leftovers, purity, sizes, type_names, unsafety,
    widths,
};

/// Runs a rule on the files in one text, each preceded by a line `== path`. The rule must find the
/// lines that end in `// <-`.
#[track_caller]
fn check(rule: Rule, text: &str) {
    let mut files: Vec<(String, String)> = Vec::new();
    let mut expected = BTreeSet::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("== ") {
            files.push((path.to_owned(), String::new()));
        } else if let Some((path, content)) = files.last_mut() {
            content.push_str(line);
            content.push('\n');
            if line.ends_with("// <-") {
                expected.insert(format!("{path}:{}", content.lines().count()));
            }
        }
    }
    let mut found = BTreeSet::new();
    let mut listed = String::new();
    for fault in rule(&read(&files)) {
        found.insert(format!("{}:{}", fault.path, fault.line));
        listed = format!("{listed}{fault}\n");
    }
    assert_eq!(found, expected, "{listed}");
}

#[test]
fn layering_bites() {
    check(layering, LAYERS);
    let raw_string = "r#\" \\\" crate::io::ring \"#";
    check(
        layering,
        &format!("== io/ring.rs\n== core/a.rs\nlet a = {raw_string};\nuse crate::io::ring; // <-"),
    );
}

const LAYERS: &str = r#"
== main.rs
use etherply::{command::log, config::Settings, io::ring};
== command/log.rs
use crate::{config, io::ring, log::segment};
== lib.rs
pub mod core;
pub use core::shard::Shard;
== config.rs
use crate::{core::shard::Durability, limits, wire::auth::Secret};
use crate::io::ring; // <-
== limits.rs
use crate::config::Settings; // <-
== io/ring.rs
use crate::{admin, config, core::shard::Shard, log::segment, status::Status, wire};
use crate::command::log as printed; // <-
use crate::Everything; // <-
== admin/mod.rs
use crate::{config, core::shard::contract, status::Status, wire::upgrade};
use crate::io::ring; // <-
use crate::log::commit; // <-
== status.rs
use crate::{core::shard::contract, limits};
use crate::admin::metrics; // <-
use crate::io::ring; // <-
use crate::config; // <-
== core/mod.rs
pub mod shard;
== core/shard.rs
use super::Timers;
use crate::log::{commit, record::Record};
use crate::{limits,
    wire::frame,
    log, // <-
};
use crate::io::ring; // <-
use crate::log::segment; // <-
use crate::Everything; // <-
use crate::admin as shown; // <-
fn f() { crate::wire::frame::g(frame::H) }
fn g() { let settings = crate::config::Settings::default(); } // <-
#[cfg(test)]
mod tests { use crate::io::ring; }
fn h() { crate::io::ring::submit() } // <-
== wire/mod.rs
pub mod frame;
== wire/frame.rs
//! Used by [`crate::io::ring`].
use super::super::core::Shard; // <-
use crate::log::record::Record; // <-
const A: &str = "crate::io::ring"; // crate::io::ring
const B: &str = r"\"; /* /* */ crate::io::ring */ const C: &[u8] = br"\";
use crate::admin; // <-
const D: [char; 2] = ['"', '\'']; fn f<'a>() { crate::io::ring::submit() } // <-
== log/mod.rs
use crate::core; // <-
== log/commit.rs
use super::record;
use super::segment::Segment; // <-
use super::Position; // <-
== log/record.rs
use crate::wire::frame; // <-
== log/segment.rs
use super::{Position, record};
use crate::limits;
use crate::config; // <-
== attic.rs
fn in_no_layer() {} // <-
"#;

#[test]
fn cycles_bite() {
    check(
        cycles,
        "== core/a.rs\nuse super::b::B;\n== core/b.rs\nuse crate::core::c;\n== core/c.rs",
    );
    check(
        cycles,
        "== core/a.rs\nuse super::b::B;\n== core/b.rs\n\nuse crate::core::a; // <-",
    );
    check(
        cycles,
        "== core/a.rs\nuse super::b;\n== core/b.rs\nuse super::c;\n== core/c.rs\nuse super::{a}; // <-",
    );
    // A name is traced to its origin.
    check(
        cycles,
        "== core/mod.rs\n== core/a.rs\nuse super::b;\n== core/b.rs\nuse crate::core;\nfn f() { core::a::g() } // <-",
    );
    // A parent that re-exports its child's names imports the child; one that only declares it does
    // not.
    check(
        cycles,
        "== core/mod.rs\nmod a;\npub use a::A;\n== core/a.rs\nuse super::Shared; // <-",
    );
    check(
        cycles,
        "== core/mod.rs\npub use self::a::A;\n== core/a.rs\nuse super::Shared; // <-",
    );
    check(
        cycles,
        "== core/mod.rs\nmod a;\n== core/a.rs\nuse super::Shared;",
    );
    // Braces of a `use` do not count as those of a module.
    check(
        cycles,
        "== core/mod.rs\n== core/a.rs\nuse {x::Y};\nmod b {}\nuse self::C;\n== core/a/b.rs\nuse super::A;",
    );
    // Inline modules are part of their file, and test code may import backwards, even from a
    // separate file.
    check(
        cycles,
        "== core/mod.rs\n== core/a.rs\nmod inner {\n  use super::A;\n  use super::super::Shared;\n}",
    );
    check(
        cycles,
        "== core/a.rs\nuse super::b::B;\n== core/b.rs\n#[cfg(test)]\nmod tests { use crate::core::a; }",
    );
    check(
        cycles,
        "== core/a.rs\n#[cfg(test)]\nmod tests;\nuse self::tests::X;\n== core/a/tests.rs\nuse super::A;",
    );
}

#[test]
fn folder_cycles_bite() {
    // The files form no cycle, but their top-level folders do; lib.rs plays no part in it.
    check(
        folder_cycles,
        "== lib.rs\npub use core::a::A;\n== core/a.rs\nuse crate::wire::c;\n== core/b.rs\n== wire/c.rs\n\
         == wire/d.rs\nuse crate::core::b; // <-",
    );
    // Cycles further down, through a third module, and between a folder and a file next to it.
    check(
        folder_cycles,
        "== core/x/a.rs\nuse crate::core::y::b;\n== core/y/b.rs\n== core/y/c.rs\nuse crate::core::z;\n\
         == core/z.rs\nuse super::x::d; // <-\n== core/x/d.rs",
    );
    // Each pair of folders is compared where their paths diverge.
    check(
        folder_cycles,
        "== core/x/a.rs\nuse crate::core::y::b;\n== core/y/b.rs\nuse crate::wire::c;\n== wire/c.rs",
    );
    // A file and the folder of the same name count as one.
    check(
        folder_cycles,
        "== core/x.rs\nuse self::a::A;\n== core/x/a.rs\nuse super::X;\n== core/x/b.rs\nuse super::a;",
    );
}

#[test]
fn purity_bites() {
    for path in [
        "core/a.rs",
        "wire/a.rs",
        "log/commit.rs",
        "log/record.rs",
        "limits.rs",
    ] {
        check(purity, &format!("== {path}\n{IMPURITIES}"));
    }
    for path in [
        "main.rs",
        "config.rs",
        "io/worker.rs",
        "log/segment.rs",
        "admin/mod.rs",
    ] {
        check(
            purity,
            &format!("== {path}\n{}", IMPURITIES.replace(" // <-", "")),
        );
    }
}

const IMPURITIES: &str = r#"
use std::time::Duration;
use std::io::{self, Write};
use strand::rand_core; use tokio_like::x;
fn f() -> io::Result<Duration> { io::empty() }
fn g() { io::stdout().lock() } // <-
use std::time::Instant; // <-
use std::{collections::BTreeMap, time::{Duration, SystemTime}}; // <-
use std::time::*; // <-
use std::fs::*; // <-
use std::time;
fn h() { time::Instant::now() } // <-
use std as base;
fn i() { base::thread::yield_now() } // <-
fn j() { ::std::fs::read(x) } // <-
fn k() { tracing::info!(x) } // <-
use {std::net::TcpStream, smallvec::SmallVec}; // <-
use tokio; // <-
use tokio_uring::net; // <-
use rustix::fs; // <-
use getrandom::fill; // <-
use rand::Rng; // <-
/// Like [`std::fs`].
const A: &str = "\" std::fs::read";
#[cfg(test)] use std::fs;
#[cfg(test)]
mod tests { use std::time::Instant; }
struct A { #[cfg(test)] at: std::time::Instant }
fn l(#[cfg(test)] at: std::time::Instant) {}
use std::net::IpAddr; // <-
"#;

#[test]
fn unsafety_bites() {
    check(
        unsafety,
        "== core/a.rs\n#![allow(unsafe_code)]\n// unsafe\nfn f() { unsafe { g() } } // <-",
    );
    check(unsafety, UNSAFETIES);
}

const UNSAFETIES: &str = r"
== io/ring.rs
// SAFETY: it is ours.
unsafe { f() };
unsafe { g() }; // <-

// SAFETY: it is ours,
// and stays.
#[allow(unsafe_code)]
let a =
    unsafe { h() };

// It is ours.
unsafe impl Send for A {} // <-
unsafe fn i() {
    unsafe { j() } // <-
}
== io/worker.rs
// SAFETY: it is ours.
unsafe { f() }; // <-
";

#[test]
fn sizes_bite() {
    let file = |path: &str, lines: usize, end: &str| {
        let code = "use x; // x\n".repeat(lines - 1);
        check(sizes, &format!("== {path}\n{code}use x;{end}"));
    };
    file("core/a.rs", FILE_LINES - 1, "");
    file("core/a.rs", FILE_LINES, " // <-");
    file("main.rs", MAIN_LINES - 1, "");
    file("main.rs", MAIN_LINES, " // <-");
    // Comments and blank lines are free; text inside a literal that only looks like one is not.
    let comments = "\n//! x\n\n  // x\n/// x\n/* x\n  x; */\n".repeat(FILE_LINES);
    file("core/a.rs", FILE_LINES - 1, &comments);
    file("core/a.rs", FILE_LINES - 2, "/*\n*/ use x; // x");
    file(
        "core/a.rs",
        FILE_LINES - 3,
        "\nconst A: &str = \"\n// x\n\n\"; // <-",
    );

    // A function: its head, a body of `lines` lines, and the brace that closes it.
    let function = |head: &str, lines: usize| {
        let body = "g(|x: [u8; 4]| { h(\"}\", '}') });\n".repeat(lines);
        check(
            sizes,
            &format!("== core/a.rs\ntype F = fn(u8);\n{head}\n{body}}}"),
        );
    };
    function("fn f() {", FUNCTION_LINES - 3);
    function("fn f() { // <-", FUNCTION_LINES - 2);
    function(
        "pub fn f( // <-\n  a: [u8; 4],\n)\nwhere\n  A: B,\n{",
        FUNCTION_LINES - 7,
    );
    function(
        "#[cfg(test)]\nmod tests {}\n#[test]\nfn f() { // <-",
        FUNCTION_LINES - 2,
    );
    function("trait T {\n  fn f();\n}\nimpl U {", FUNCTION_LINES);
}

#[test]
fn widths_bite() {
    let line = |start: &str, columns: usize| {
        let end = if start.ends_with('"') {
            "\"; // <-"
        } else {
            " // <-"
        };
        let padding = columns - start.chars().count() - end.len();
        format!("{start}{}{end}", "ä".repeat(padding))
    };
    for start in ["//! ", "use x; //", "    /// ", "let a = \"", "// https://"] {
        let narrow = line(start, COLUMNS).replace(" // <-", " // < ");
        let wide = line(start, COLUMNS + 1);
        check(widths, &format!("== core/a.rs\n{narrow}\n{wide}\n{narrow}"));
    }
}

#[test]
fn leftovers_bite() {
    check(leftovers, LEFTOVERS);
}

const LEFTOVERS: &str = r#"
== core/a.rs
// TODO: later // <-
/* FIXME */ // <-
fn f() { todo!() } // <-
fn g() { unimplemented!("x") } // <-
let a = dbg!(b); // <-
#[ignore = "slow"] // <-
#[test]
fn h() {}
// ignore, dbg!
let todo = "todo!()"; let b = [ignore];
"#;

#[test]
fn headers_bite() {
    check(
        headers,
        "== core/a.rs\n//! The core.\nuse x;\n== core/b.rs\nuse x; // <-\n//! Late.",
    );
}

#[test]
fn type_names_bite() {
    check(
        type_names,
        "== core/a.rs\npub struct A;\nenum B {}\nimpl X for A { type Y = u8; }\n\
         == core/b.rs\nstruct B; // <-\ntrait C {}\nimpl X for C { type Y = u8; }\n\
         #[cfg(test)]\nmod tests { struct A; }\nfn f() { struct A; }\n\
         == core/c.rs\npub(crate) type A = u8; // <-\n#[cfg(x)]\nstruct D;\n#[cfg(not(x))]\nstruct D;",
    );
}
