//! The files in `tuning/`: every setting in them exists, under the kernel's or the server's name.
//! Also the documents: their links, their width, their versions.

use crate::support::server::Setup;
use crate::support::skipped;
use serde_json::Value;
use std::collections::BTreeMap;

fn text(name: &str) -> String {
    // Cargo runs a test in the root folder of its package.
    std::fs::read_to_string(format!("tuning/{name}")).expect("the file is there")
}

/// Returns the settings of a file of `name = value` lines. A name that is set twice has both
/// values.
fn settings(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
        let (name, value) = line.split_once('=').expect("a line sets something");
        let values = settings.entry(name.trim().to_owned()).or_default();
        values.push(value.trim().to_owned());
    }
    settings
}

#[test]
fn each_sysctl_is_one_of_the_kernel_and_the_backlog_is_the_server_s() {
    let settings = settings(&text("sysctl.conf"));
    assert_eq!(
        settings["net.core.somaxconn"],
        [etherply::limits::LISTEN_BACKLOG.to_string()]
    );
    let mut found = 0;
    for name in settings.keys().filter(|name| !name.starts_with('-')) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        // A container may not expose all of them.
        let group = path.rsplit_once('/').expect("a path has slashes").0;
        if std::path::Path::new(group).is_dir() {
            assert!(std::path::Path::new(&path).exists(), "{name}");
            found += 1;
        }
    }
    assert!(found > 0, "this host shows some of them");
}

#[test]
fn the_seccomp_profile_allows_rings_and_denies_what_it_does_not_name() {
    let profile: Value = serde_json::from_str(&text("seccomp.json")).expect("it is JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().expect("a list of rules");
    let mut names = Vec::new();
    for rule in rules {
        assert_eq!(rule["action"], "SCMP_ACT_ALLOW", "{rule}");
        let of_rule = rule["names"].as_array().expect("a list of names");
        names.extend(of_rule.iter().map(|name| name.as_str().expect("a name")));
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "each call is named once");
    for call in [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "fdatasync",
        "execve",
    ] {
        assert!(names.binary_search(&call).is_ok(), "{call} is allowed");
    }
    for call in ["mount", "ptrace", "bpf", "unshare", "keyctl", "init_module"] {
        assert!(names.binary_search(&call).is_err(), "{call} is not allowed");
    }
}

#[tokio::test]
async fn the_unit_sets_variables_that_the_server_knows_and_lets_rings_through() {
    let unit = settings(&text("etherply.service"));
    let help = Setup::new().run_only(&["serve", "--help"]).await.stdout;
    for assignment in &unit["Environment"] {
        let (variable, _) = assignment.split_once('=').expect("a variable has a value");
        assert!(help.contains(variable), "serve knows {variable}");
    }
    let calls = unit["SystemCallFilter"].join(" ");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(calls.split(' ').any(|one| one == call), "{call} is allowed");
    }
    let stop_s: u64 = unit["TimeoutStopSec"][0].parse().expect("seconds");
    let drain_us = etherply::limits::DRAIN_MS_DEFAULT * 1000 + etherply::limits::LINGER_US;
    assert!(
        stop_s * etherply::limits::SECOND_US > drain_us,
        "a stop has time for its drain"
    );
}

#[test]
fn the_socket_is_the_one_that_the_server_would_open() {
    let socket = settings(&text("etherply.socket"));
    assert_eq!(socket["ListenStream"], ["8080"]);
    assert_eq!(socket["Accept"], ["no"]);
    assert_eq!(
        socket["Backlog"],
        [etherply::limits::LISTEN_BACKLOG.to_string()]
    );
    let unit = settings(&text("etherply.service"));
    assert_eq!(unit["Type"], ["notify"]);
    // The server reports that it is ready once the log is read.
    assert_eq!(unit["TimeoutStartSec"], ["infinity"]);
    assert!(unit["After"][0].contains("etherply.socket"));
    let sets_address = |line: &&String| line.contains("_HOST=") || line.contains("_PORT=");
    assert_eq!(unit["Environment"].iter().find(sets_address), None);
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut verify = std::process::Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for name in ["etherply.service", "etherply.socket"] {
        let installed = "/usr/local/bin/etherply";
        let unit = text(name).replace(installed, env!("CARGO_BIN_EXE_etherply"));
        let path = folder.path().join(name);
        std::fs::write(&path, unit).expect("the folder can be written");
        verify.arg(path);
    }
    let output = match verify.output() {
        Ok(output) => output,
        // .ci/run installs it.
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
            skipped("systemd-analyze is not installed");
            return;
        }
    };
    let told = String::from_utf8_lossy(&output.stderr);
    // It also checks what the units refer to, and the host may have faults of its own.
    let of_ours: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("etherply"))
        .collect();
    assert!(of_ours.is_empty(), "{of_ours:?}");
}

#[test]
fn what_the_index_names_is_there_and_the_other_way_round() {
    let index = text("README.md");
    let entries = std::fs::read_dir("tuning").expect("the folder is there");
    for entry in entries {
        let name = entry.expect("a readable folder").file_name();
        let name = name.to_string_lossy();
        let is_told = [format!("[{name}]({name})"), format!("[{name}/")];
        let is_told = is_told.iter().any(|link| index.contains(link));
        assert!(name == "README.md" || is_told, "README.md names {name}");
    }
    for link in index.split("](").skip(1) {
        let name = link.split(')').next().expect("a link ends");
        assert!(!text(name).is_empty(), "{name}");
    }
}

#[test]
fn the_files_that_the_doctor_sends_its_readers_to_are_there() {
    let mut folders = vec![std::path::PathBuf::from("src/command/doctor")];
    let mut named = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(path).expect("a readable file");
            let of_file = source.split("tuning/").skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                rest[..end.unwrap_or(rest.len())]
                    .trim_end_matches('.')
                    .to_owned()
            });
            named.extend(of_file);
        }
    }
    assert!(named.len() > 10, "the doctor names some: {named:?}");
    for name in named {
        assert!(!text(&name).is_empty(), "tuning/{name}");
    }
}

#[tokio::test]
async fn the_settings_of_the_package_are_variables_of_the_server() {
    let settings =
        std::fs::read_to_string("tuning/package/environment").expect("the file is there");
    let help = Setup::new().run_only(&["serve", "--help"]).await.stdout;
    let assignments = settings.lines().filter_map(|line| line.split_once('='));
    let variables: Vec<&str> = assignments
        .map(|(name, _)| name.trim_start_matches('#'))
        .collect();
    assert!(variables.len() > 3, "it shows some: {variables:?}");
    for variable in variables {
        assert!(help.contains(variable), "serve knows {variable}");
    }
}

#[test]
fn the_proxies_wait_for_longer_than_the_server_does_for_a_sign_of_life() {
    let silence_ms = etherply::limits::PING_INTERVAL_MS_DEFAULT * 5 / 2;
    for (file, setting) in [
        ("haproxy.cfg", "timeout tunnel "),
        ("nginx.conf", "proxy_read_timeout "),
        ("nginx.conf", "proxy_send_timeout "),
    ] {
        let text = text(file);
        let mut lines = text.lines().map(str::trim);
        let value = lines.find_map(|line| line.strip_prefix(setting));
        let seconds = value.map(|value| value.trim_end_matches([';', 's']).parse());
        let seconds: u64 = seconds.expect("it is set").expect("in whole seconds");
        assert!(seconds * 1000 > silence_ms, "{file}: {setting}");
    }
}

#[test]
fn the_image_is_made_by_the_compiler_of_the_project() {
    let toolchain = std::fs::read_to_string("rust-toolchain.toml").expect("the file is there");
    let channel = toolchain.split('"').nth(1).expect("it has a channel");
    let version = channel.rsplit_once('.').expect("with a patch level").0;
    let from = format!("FROM rust:{version}-");
    assert!(text("Dockerfile").contains(&from), "the image is {from}…");
}

// ---- the documents ----

/// Returns the documents of the repository.
fn documents() -> Vec<std::path::PathBuf> {
    let mut documents = vec!["README.md".into(), "src/wire/protocol.md".into()];
    for folder in [".github", "benches", "tests", "tuning"] {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("a readable folder").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents
}

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the names under which GitHub and rustdoc link to the headings of a document.
fn anchors(document: &str) -> Vec<String> {
    let headings = document
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let anchor = |heading: &str| heading.to_lowercase().chars().filter(kept).collect();
    headings
        .map(anchor)
        .map(|anchor: String| anchor.replace(' ', "-"))
        .collect()
}

#[test]
fn each_link_of_the_documents_leads_to_a_file_and_a_heading() {
    let mut links = 0;
    for path in documents() {
        let document = read(&path);
        for link in document.split("](").skip(1) {
            let link = link.split(')').next().expect("a link ends");
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("a file is in a folder").join(file),
            };
            assert!(target.exists(), "{} links to {link}", path.display());
            if !anchor.is_empty() {
                let known = anchors(&read(&target)).iter().any(|name| name == anchor);
                assert!(known, "{} links to {link}", path.display());
            }
            links += 1;
        }
    }
    assert!(links > 60, "the documents have links: {links}");
}

#[test]
fn the_documents_are_as_wide_and_the_readme_is_as_long_as_a_reader_wants() {
    assert!(read("README.md".as_ref()).lines().count() <= 150);
    for path in documents() {
        for (number, line) in read(&path).lines().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            assert!(line.chars().count() <= 100, "{place} is over 100 columns");
        }
    }
}

#[test]
fn both_changelogs_have_the_version_that_is_built() {
    let version = env!("CARGO_PKG_VERSION");
    let ours = read(".github/CHANGELOG.md".as_ref());
    assert!(ours.contains(&format!("\n## {version}\n")));
    assert!(text("package/changelog").starts_with(&format!("etherply ({version}-1)")));
}

/// Collects the Rust files under a folder.
fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_rule_that_a_comment_names_is_in_the_protocol() {
    let protocol = read("src/wire/protocol.md".as_ref());
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(folder.as_ref(), &mut files);
    }
    let mut named = 0;
    for path in files {
        let text = read(&path);
        let comments = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("//"));
        let words = comments.flat_map(|comment| comment.split(|c: char| !c.is_alphanumeric()));
        for word in words {
            let number = word.strip_prefix('P').unwrap_or_default();
            if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let is_known = protocol.contains(&format!("- **{word}** "));
            assert!(is_known, "{} names {word}", path.display());
            named += 1;
        }
    }
    assert!(named > 100, "tests and sources name rules: {named}");
}
