//! `etherply doctor`: its report on this host, and on hosts with a planted fault.

use crate::support::server::{Outcome, Server, Setup};
use serde_json::Value;
use std::net::TcpListener;
use std::path::Path;

/// Returns the report on this host with these arguments, on a free port unless they specify one.
async fn report(setup: &Setup, arguments: &[&str]) -> (Outcome, Value) {
    let data_dir = setup.data_dir().display().to_string();
    let fixed = ["doctor", "--json", "--data-dir", &data_dir];
    let port: &[&str] = if arguments.contains(&"--port") {
        &[]
    } else {
        &["--port", "0"]
    };
    let outcome = setup.run_only(&[&fixed, port, arguments].concat()).await;
    let report = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("not JSON ({error}): {outcome:?}"));
    (outcome, report)
}

/// Returns the verdict of a check, and its text including the advice.
fn check(report: &Value, name: &str) -> (String, String) {
    let checks = report["checks"].as_array().expect("checks is an array");
    let found = checks.iter().find(|check| check["check"] == name);
    let found = found.unwrap_or_else(|| panic!("the report lacks {name}: {report}"));
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("found") + " " + &text("advice"))
}

/// Expects the report that the server would not work on this host because of this check.
fn expect_failure(outcome: &Outcome, report: &Value, name: &str, words: &[&str]) {
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_eq!(report["works"], false);
    let (verdict, text) = check(report, name);
    assert_eq!(verdict, "fail", "{text}");
    for word in words {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    assert!(outcome.stderr.starts_with("error: "), "{outcome:?}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a readable folder");
    let names = entries.map(|entry| entry.expect("a readable folder").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn the_doctor_approves_the_test_host_and_leaves_nothing_behind() {
    let setup = Setup::new();
    let (outcome, report) = report(&setup, &["--shards", "1"]).await;
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(0), ""),
        "{outcome:?}"
    );
    assert_eq!(report["works"], true);
    assert_eq!(check(&report, "io_uring").0, "ok");
    assert_eq!(check(&report, "data directory").0, "ok");
    let times = &report["facts"]["directory"]["sync"];
    let us = |field: &str| times[field].as_u64().unwrap_or_else(|| panic!("{report}"));
    assert!(us("appends") > 0 && us("p50_us") <= us("p99_us") && us("p99_us") <= us("max_us"));
    let parent = setup
        .data_dir()
        .parent()
        .expect("the directory has a parent");
    assert_eq!(
        names(parent),
        [""; 0],
        "the doctor created a data directory"
    );
}

#[tokio::test]
async fn without_json_each_check_is_a_line_starting_with_its_verdict() {
    let setup = Setup::new();
    let data_dir = setup.data_dir().display().to_string();
    let outcome = setup
        .run_only(&["doctor", "--port", "0", "--data-dir", &data_dir])
        .await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let (last, lines) = lines.split_last().expect("the output has lines");
    assert!(
        last.contains("warning") && last.ends_with("0 failures"),
        "{last}"
    );
    for check in ["kernel", "io_uring", "open files", "fdatasync", "shards"] {
        let is_it = |line: &&&str| {
            line.starts_with("ok") && line[6..].starts_with(check)
                || line.starts_with("warn") && line[6..].starts_with(check)
        };
        assert_eq!(
            lines.iter().filter(is_it).count(),
            1,
            "{check}: {outcome:?}"
        );
    }
    let is_known = |line: &&str| {
        ["ok ", "warn ", "    "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    assert!(lines.iter().all(is_known), "{outcome:?}");
}

#[tokio::test]
async fn a_port_in_use_by_another_process_fails() {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = listener
        .local_addr()
        .expect("the listener is bound")
        .port()
        .to_string();
    let (outcome, report) = report(&Setup::new(), &["--port", &port]).await;
    expect_failure(&outcome, &report, "port", &[&port, "in use"]);
}

#[tokio::test]
async fn a_running_server_is_detected_and_not_disturbed() {
    let server = Server::start().await;
    let port = server.addr().port().to_string();
    let arguments = ["--host", "127.0.0.1", "--port", &port];
    let (outcome, report) = report(server.setup(), &arguments).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let pid = format!("pid {}", server.pid().as_raw_nonzero());
    let (verdict, text) = check(&report, "data directory");
    assert!(verdict == "ok" && text.contains(&pid), "{text}");
    let (verdict, text) = check(&report, "port");
    assert!(verdict == "warn" && text.contains(&pid), "{text}");
    assert_eq!(server.get("/readyz").await.status, 200);
    let is_probe = |name: &String| name.contains("doctor");
    assert!(!names(server.data_dir()).iter().any(is_probe));
}

#[tokio::test]
async fn a_file_in_place_of_the_data_directory_fails() {
    let setup = Setup::new();
    std::fs::write(setup.data_dir(), "no folder").expect("the file can be written");
    let (outcome, json_report) = report(&setup, &[]).await;
    expect_failure(
        &outcome,
        &json_report,
        "data directory",
        &["is not a folder"],
    );
    let below = setup.clone().in_data_dir(&setup.data_dir().join("below"));
    let (outcome, json_report) = report(&below, &[]).await;
    expect_failure(
        &outcome,
        &json_report,
        "data directory",
        &["is not a folder"],
    );
}

#[tokio::test]
async fn an_unwritable_folder_fails() {
    // No user can create a file there, not even root.
    let setup = Setup::new().in_data_dir(Path::new("/proc/etherply"));
    let (outcome, report) = report(&setup, &[]).await;
    expect_failure(&outcome, &report, "data directory", &["/proc"]);
}

#[tokio::test]
async fn the_open_files_check_fails_if_the_server_would_refuse_to_start() {
    for (limit, shards, works) in [(148, "2", false), (149, "2", true), (149, "3", false)] {
        let setup = Setup::new().open_files_limit(limit);
        let (outcome, report) = report(&setup, &["--shards", shards]).await;
        let limit = limit.to_string();
        if works {
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            assert_eq!(
                check(&report, "open files").0,
                "warn",
                "there is room for one client"
            );
        } else {
            expect_failure(&outcome, &report, "open files", &[&limit, "ulimit"]);
            let refusal = setup.args(&["--shards", shards]).run().await;
            assert!(refusal.expect_refusal().contains(&limit));
        }
    }
}

#[tokio::test]
async fn more_connections_than_the_limit_allows_causes_a_warning() {
    let setup = Setup::new().open_files_limit(1024);
    let arguments = ["--max-connections", "5000", "--shards", "1"];
    let (outcome, report) = report(&setup, &arguments).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let (verdict, text) = check(&report, "open files");
    assert!(verdict == "warn" && text.contains("5,000"), "{text}");
}

#[tokio::test]
async fn settings_come_from_the_same_variables_as_the_server() {
    let setup = Setup::new()
        .env("ETHERPLY_SHARDS", "3")
        .env("ETHERPLY_HOST", "127.0.0.1")
        .env("PORT", "0");
    let data_dir = setup.data_dir().display().to_string();
    let setup = setup.env("ETHERPLY_DATA_DIR", &data_dir);
    let outcome = setup.run_only(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(report["facts"]["wanted"]["shards"], 3);
    assert_eq!(report["facts"]["wanted"]["address"], "127.0.0.1:0");
    assert_eq!(report["facts"]["directory"]["path"], data_dir.as_str());
}
