//! Every numbered rule of the protocol has a test that names it in its doc comment.
//!
//! A test of the JavaScript client does not count; rules that only a client can break are excused
//! by name.

use std::collections::BTreeSet;
use std::path::Path;

use super::files_under;

/// Rules without a test in Rust, with the reason. A rule that has a test must not be listed.
const WITHOUT_TEST: [(u32, &str); 1] = [(50, "a rule for clients, tested with the client module")];

/// Returns the numbers that follow a `P` and form separate words, such as `P12`.
fn numbers(text: &str) -> impl Iterator<Item = u32> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter_map(|word| word.strip_prefix('P')?.parse().ok())
}

/// Returns the rules that a page defines: those in bold at the start of an item.
fn defined(page: &str) -> BTreeSet<u32> {
    let items = page
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- **"));
    items
        .filter_map(|item| numbers(item.split("**").next()?).next())
        .collect()
}

/// Returns the rules that the doc comments of a file's tests name.
fn named(file: &str) -> BTreeSet<u32> {
    let (mut named, mut comment, mut is_test) = (BTreeSet::new(), BTreeSet::new(), false);
    for line in file.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.extend(numbers(text));
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else {
            let comment = std::mem::take(&mut comment);
            if std::mem::take(&mut is_test) {
                named.extend(comment);
            }
        }
    }
    named
}

#[test]
fn every_rule_of_the_protocol_has_a_test_that_names_it() {
    let page = std::fs::read_to_string("src/wire/protocol.md").expect("a readable file");
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        files_under(Path::new(folder), "", &mut files);
    }
    let named: BTreeSet<u32> = files.iter().flat_map(|(_, text)| named(text)).collect();
    let missing: Vec<u32> = defined(&page).difference(&named).copied().collect();
    let excused: Vec<u32> = WITHOUT_TEST.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(
        missing, excused,
        "rules without a test, and rules known to have none"
    );
}

#[test]
fn only_the_doc_comment_of_a_test_names_a_rule() {
    let page = "- **P1** text\n  P2 is named in it.\n  - **P103** more\n| P4 |\n**P5**\n";
    assert_eq!(defined(page), BTreeSet::from([1, 103]));
    for (file, expected) in [
        ("/// P1, P22: text.\n#[test]\nfn f() {}", &[1, 22][..]),
        (
            "    /// P1.\n    /// P2 to P4.\n    #[tokio::test]\n    async fn f() {}",
            &[1, 2, 4],
        ),
        ("/// P1.\n#[cfg(unix)]\n#[test]\nfn f() {}", &[1]),
        ("/// P1.\nfn f() {}\n#[test]\nfn g() {}", &[]),
        ("//! P1.\n#[test]\nfn f() {} // P2", &[]),
        ("/// P1.\n#[cfg(test)]\nmod tests {}", &[]),
        ("/// HTTP1, P, Px1, P1x and GP3.\n#[test]\nfn f() {}", &[]),
    ] {
        assert_eq!(named(file), expected.iter().copied().collect(), "{file}");
    }
}
