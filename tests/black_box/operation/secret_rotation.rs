//! Rotation of secrets while the server runs: SIGHUP makes it read their files again.

use crate::support::client::Client;
use crate::support::server::{Server, Setup};
use crate::support::token::{OTHER_SECRET, SECRET, signed};
use crate::support::{eventually, now_s};
use rustix::process::Signal;
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

const THIRD_SECRET: &str = "the third secret of the rotation, over 32 bytes";

/// The files of the secrets, whose content the test sets.
struct Files {
    folder: TempDir,
}

impl Files {
    /// Creates the file of the current secret, with the test suite's secret in it, and no previous
    /// one.
    fn new() -> Files {
        let folder = TempDir::new().expect("a temporary folder");
        let files = Files { folder };
        files.write("current", SECRET);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("the file can be written");
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("the file existed");
    }

    fn setup(&self) -> Setup {
        let flag = |flag: &str, name: &str| format!("{flag}={}", self.path(name).display());
        Setup::new().without_envs().args(&[
            &flag("--jwt-secret-file", "current"),
            &flag("--jwt-secret-previous-file", "previous"),
        ])
    }
}

fn token_of(secret: &str) -> String {
    let claims = json!({"sub": "tester", "exp": now_s() + 3600});
    signed(&json!({"alg": "HS256"}), &claims, secret)
}

fn path_of(secret: &str) -> String {
    format!("/v1/sync/room?token={}", token_of(secret))
}

/// Sends SIGHUP and returns the log line that reports the outcome.
async fn reload(server: &Server, words: &[&str]) -> String {
    let count = || {
        let log = server.log();
        let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
        let lines: Vec<String> = log.lines().filter(has_all).map(String::from).collect();
        lines
    };
    let before = count().len();
    server.signal(Signal::HUP);
    let what = format!("a new line with {words:?}; the log:\n{}", server.log());
    eventually(&what, async || count().get(before).cloned()).await
}

/// Waits until handshakes consistently get these statuses. Each shard receives the secrets
/// separately.
async fn until_statuses_are(server: &Server, expected: [(&str, u16); 3]) {
    eventually(&format!("the statuses are {expected:?}"), async || {
        for (secret, status) in expected {
            for _ in 0..8 {
                if server.handshake(&path_of(secret)).await.status != status {
                    return None;
                }
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test]
async fn secrets_rotate_under_live_connections_and_the_previous_one_is_accepted_until_removed() {
    let files = Files::new();
    let mut server = files.setup().start().await;
    until_statuses_are(
        &server,
        [(SECRET, 101), (OTHER_SECRET, 401), (THIRD_SECRET, 401)],
    )
    .await;
    let mut writer = Client::connect_path(&server, &path_of(SECRET)).await;
    let mut reader = Client::connect_path(&server, &path_of(SECRET)).await;

    files.write("previous", SECRET);
    files.write("current", &format!("{OTHER_SECRET}\n"));
    let line = reload(&server, &["the secrets were reread"]).await;
    assert!(line.contains("current=\"new\""), "{line}");
    assert!(line.contains("previous=\"new\""), "{line}");
    until_statuses_are(
        &server,
        [(SECRET, 101), (OTHER_SECRET, 101), (THIRD_SECRET, 401)],
    )
    .await;

    files.remove("previous");
    let line = reload(&server, &["the secrets were reread"]).await;
    assert!(line.contains("current=\"unchanged\""), "{line}");
    assert!(line.contains("previous=\"none\""), "{line}");
    until_statuses_are(
        &server,
        [(SECRET, 401), (OTHER_SECRET, 101), (THIRD_SECRET, 401)],
    )
    .await;

    let op = writer
        .write("k", json!("from a token that is refused now"))
        .await;
    reader.expect_op(&op).await;
    server.stop().await;
    check_no_secret_is_logged(&server);
}

fn check_no_secret_is_logged(server: &Server) {
    for secret in [SECRET, OTHER_SECRET, THIRD_SECRET] {
        assert!(!server.log().contains(secret), "{}", server.log());
    }
}

#[tokio::test]
async fn replacing_a_secret_without_a_previous_one_causes_a_warning() {
    let files = Files::new();
    let server = files.setup().start().await;
    server.log_line(&["no previous secret"]).await;
    files.write("current", OTHER_SECRET);
    reload(
        &server,
        &["WARN", "refused from now on", "--jwt-secret-previous-file"],
    )
    .await;
    until_statuses_are(
        &server,
        [(SECRET, 401), (OTHER_SECRET, 101), (THIRD_SECRET, 401)],
    )
    .await;
}

type Break = fn(&Files);

#[tokio::test]
async fn a_bad_secret_file_changes_nothing_and_is_named_in_one_line() {
    let files = Files::new();
    files.write("previous", OTHER_SECRET);
    let mut server = files.setup().start().await;
    let cases: [(&str, Break); 4] = [
        ("current", |files| files.remove("current")),
        ("current", |files| files.write("current", "\n")),
        ("previous", |files| files.write("previous", "")),
        ("previous", |files| {
            files.remove("previous");
            std::fs::create_dir(files.path("previous")).expect("the folder can be created");
        }),
    ];
    for (name, break_it) in cases {
        // The valid one of the two must not take effect either.
        files.write("current", THIRD_SECRET);
        break_it(&files);
        let path = files.path(name).display().to_string();
        let before = server.log().lines().count();
        reload(&server, &["ERROR", "the secrets are unchanged", &path]).await;
        assert_eq!(server.log().lines().count(), before + 1, "{}", server.log());
        until_statuses_are(
            &server,
            [(SECRET, 101), (OTHER_SECRET, 101), (THIRD_SECRET, 401)],
        )
        .await;
        if files.path("previous").is_file() {
            files.write("previous", OTHER_SECRET);
        }
    }
    std::fs::remove_dir(files.path("previous")).expect("the folder can be removed");
    reload(&server, &["the secrets were reread"]).await;
    until_statuses_are(
        &server,
        [(SECRET, 401), (OTHER_SECRET, 401), (THIRD_SECRET, 101)],
    )
    .await;
    server.stop().await;
    check_no_secret_is_logged(&server);
}

#[tokio::test]
async fn without_files_sighup_logs_that_the_environment_cannot_change_and_the_server_continues() {
    let mut server = Server::start().await;
    for _ in 0..2 {
        let line = reload(&server, &["SIGHUP has no effect", "environment"]).await;
        assert!(line.contains("--jwt-secret-file"), "{line}");
    }
    until_statuses_are(
        &server,
        [(SECRET, 101), (OTHER_SECRET, 401), (THIRD_SECRET, 401)],
    )
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_secret_from_the_environment_stays_valid_when_a_file_changes() {
    let files = Files::new();
    files.write("previous", OTHER_SECRET);
    let flag = format!(
        "--jwt-secret-previous-file={}",
        files.path("previous").display()
    );
    let server = Setup::new().args(&[&flag]).start().await;
    files.write("previous", THIRD_SECRET);
    reload(
        &server,
        &["the secrets were reread", "did not come from a file"],
    )
    .await;
    until_statuses_are(
        &server,
        [(SECRET, 101), (OTHER_SECRET, 401), (THIRD_SECRET, 101)],
    )
    .await;
}
