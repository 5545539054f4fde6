//! The files in `tuning/`: every setting in them exists, under the kernel's or the server's name.
//! Also the documents: their links, their width, their versions.

use crate::support::server::Setup;
use crate::support::skipped;
use serde_json::Value;
use std::collections::BTreeMap;

fn text(name: &str) -> String {
    // Cargo runs a test in the root folder of its package.
    std::fs::read_to_string(format!("tuning/{name}")).expect("the file exists")
}

/// Returns the settings of a file of `name = value` lines. A name that is set twice has both
/// values.
fn settings(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
        let (name, value) = line.split_once('=').expect("each line is an assignment");
        let values = settings.entry(name.trim().to_owned()).or_default();
        values.push(value.trim().to_owned());
    }
    settings
}

#[test]
fn each_sysctl_exists_and_the_backlog_matches_the_server() {
    let settings = settings(&text("sysctl.conf"));
    assert_eq!(
        settings["net.core.somaxconn"],
        [etherply::limits::LISTEN_BACKLOG.to_string()]
    );
    let mut found = 0;
    for name in settings.keys().filter(|name| !name.starts_with('-')) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        // A container may not expose all of them.
        let group = path.rsplit_once('/').expect("the path has a directory").0;
        if std::path::Path::new(group).is_dir() {
            assert!(std::path::Path::new(&path).exists(), "{name}");
            found += 1;
        }
    }
    assert!(found > 0, "no sysctl of the file exists on this host");
}

#[test]
fn the_seccomp_profile_allows_rings_and_denies_what_it_does_not_name() {
    let profile: Value = serde_json::from_str(&text("seccomp.json")).expect("the text is JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"]
        .as_array()
        .expect("the rules are an array");
    let mut names = Vec::new();
    for rule in rules {
        assert_eq!(rule["action"], "SCMP_ACT_ALLOW", "{rule}");
        let of_rule = rule["names"].as_array().expect("the names are an array");
        names.extend(of_rule.iter().map(|name| name.as_str().expect("a name")));
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a call is named twice");
    for call in [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "fdatasync",
        "execve",
    ] {
        assert!(names.binary_search(&call).is_ok(), "{call} is not allowed");
    }
    for call in ["mount", "ptrace", "bpf", "unshare", "keyctl", "init_module"] {
        assert!(names.binary_search(&call).is_err(), "{call} is allowed");
    }
}

#[tokio::test]
async fn the_unit_sets_known_variables_and_allows_rings() {
    let unit = settings(&text("etherply.service"));
    let help = Setup::new().run_only(&["serve", "--help"]).await.stdout;
    for assignment in &unit["Environment"] {
        let (variable, _) = assignment.split_once('=').expect("a variable has a value");
        assert!(help.contains(variable), "serve does not know {variable}");
    }
    let calls = unit["SystemCallFilter"].join(" ");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(
            calls.split(' ').any(|one| one == call),
            "{call} is not allowed"
        );
    }
    let stop_s: u64 = unit["TimeoutStopSec"][0].parse().expect("seconds");
    let drain_us = etherply::limits::DRAIN_MS_DEFAULT * 1000 + etherply::limits::LINGER_US;
    assert!(
        stop_s * etherply::limits::SECOND_US > drain_us,
        "the stop timeout is shorter than the drain"
    );
}

#[test]
fn the_socket_unit_matches_the_socket_that_the_server_opens() {
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
fn systemd_accepts_the_units() {
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
    let error_output = String::from_utf8_lossy(&output.stderr);
    // It also checks what the units refer to, and the host may have unrelated faults.
    let of_ours: Vec<&str> = error_output
        .lines()
        .filter(|line| line.contains("etherply"))
        .collect();
    assert!(of_ours.is_empty(), "{of_ours:?}");
}

#[test]
fn the_index_lists_every_file_and_every_listed_file_exists() {
    let index = text("README.md");
    let entries = std::fs::read_dir("tuning").expect("the folder exists");
    for entry in entries {
        let name = entry.expect("a readable folder").file_name();
        let name = name.to_string_lossy();
        let is_listed = [format!("[{name}]({name})"), format!("[{name}/")];
        let is_listed = is_listed.iter().any(|link| index.contains(link));
        assert!(
            name == "README.md" || is_listed,
            "README.md does not list {name}"
        );
    }
    for link in index.split("](").skip(1) {
        let name = link.split(')').next().expect("a link is terminated");
        assert!(!text(name).is_empty(), "{name}");
    }
}

#[test]
fn the_files_that_the_doctor_refers_to_exist() {
    let mut folders = vec![std::path::PathBuf::from("src/command/doctor")];
    let mut named = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder exists") {
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
    assert!(
        named.len() > 10,
        "the doctor names too few files: {named:?}"
    );
    for name in named {
        assert!(!text(&name).is_empty(), "tuning/{name}");
    }
}

#[tokio::test]
async fn package_settings_are_variables_of_the_server() {
    let settings = std::fs::read_to_string("tuning/package/environment").expect("the file exists");
    let help = Setup::new().run_only(&["serve", "--help"]).await.stdout;
    let assignments = settings.lines().filter_map(|line| line.split_once('='));
    let variables: Vec<&str> = assignments
        .map(|(name, _)| name.trim_start_matches('#'))
        .collect();
    assert!(variables.len() > 3, "too few variables: {variables:?}");
    for variable in variables {
        assert!(help.contains(variable), "serve does not know {variable}");
    }
}

#[test]
fn proxy_timeouts_are_longer_than_the_servers_silence_timeout() {
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
        let seconds: u64 = seconds
            .expect("the timeout is set")
            .expect("the timeout is in whole seconds");
        assert!(seconds * 1000 > silence_ms, "{file}: {setting}");
    }
}

#[test]
fn the_image_is_built_with_the_projects_compiler() {
    let toolchain = std::fs::read_to_string("rust-toolchain.toml").expect("the file exists");
    let channel = toolchain
        .split('"')
        .nth(1)
        .expect("the toolchain has a channel");
    let version = channel
        .rsplit_once('.')
        .expect("the version has a patch level")
        .0;
    let from = format!("FROM rust:{version}-");
    assert!(
        text("Dockerfile").contains(&from),
        "the Dockerfile does not start with {from}"
    );
}

// ---- the documents ----

/// Returns the documents of the repository.
fn documents() -> Vec<std::path::PathBuf> {
    let mut documents = vec!["README.md".into(), "src/wire/protocol.md".into()];
    for folder in [".github", "benches", "tests", "tuning"] {
        for entry in std::fs::read_dir(folder).expect("the folder exists") {
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
fn every_link_in_the_documents_leads_to_a_file_and_a_heading() {
    let mut links = 0;
    for path in documents() {
        let document = read(&path);
        for link in document.split("](").skip(1) {
            let link = link.split(')').next().expect("a link is terminated");
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("the path has a parent").join(file),
            };
            assert!(
                target.exists(),
                "{} has a broken link to {link}",
                path.display()
            );
            if !anchor.is_empty() {
                let known = anchors(&read(&target)).iter().any(|name| name == anchor);
                assert!(known, "{} has a broken link to {link}", path.display());
            }
            links += 1;
        }
    }
    assert!(links > 60, "the documents have only {links} links");
}

#[test]
fn the_documents_and_the_readme_stay_within_their_size_limits() {
    assert!(read("README.md".as_ref()).lines().count() <= 150);
    for path in documents() {
        for (number, line) in read(&path).lines().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            assert!(line.chars().count() <= 100, "{place} is over 100 columns");
        }
    }
}

#[test]
fn both_changelogs_list_the_current_version() {
    let version = env!("CARGO_PKG_VERSION");
    let ours = read(".github/CHANGELOG.md".as_ref());
    assert!(ours.contains(&format!("\n## {version}\n")));
    assert!(text("package/changelog").starts_with(&format!("etherply ({version}-1)")));
}

/// Collects the Rust files under a folder.
fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_rule_that_a_comment_names_is_in_the_protocol() {
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
            assert!(is_known, "{} names an unknown rule {word}", path.display());
            named += 1;
        }
    }
    assert!(named > 100, "only {named} rules are named");
}
