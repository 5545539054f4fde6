//! The command line: help, settings, secrets, the development mode, tokens.

use crate::support::client::Client;
use crate::support::raw::Raw;
use crate::support::server::{Outcome, Server, Setup};
use crate::support::token::{self, OTHER_SECRET, SECRET};
use crate::support::{eventually, now_s};
use rustix::process::Signal;
use serde_json::json;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const FLAGS: [&str; 25] = [
    "--admin-host",
    "--admin-port",
    "--metrics-public",
    "--host",
    "--port",
    "--shards",
    "--data-dir",
    "--durability",
    "--sync-interval-ms",
    "--ping-interval-ms",
    "--outbox-max-bytes",
    "--max-message-bytes",
    "--max-connections",
    "--presence-interval-ms",
    "--max-presence-bytes",
    "--max-future-skew",
    "--tombstone-retention",
    "--drain-ms",
    "--no-pin",
    "--ring",
    "--log-level",
    "--log-format",
    "--jwt-secret-file",
    "--dev",
    "--help",
];

// ---- help ----

#[tokio::test]
async fn help_lists_each_flag_with_its_variable_and_default() {
    let help = Setup::new().run_only(&["serve", "--help"]).await;
    assert_eq!(help.code, Some(0));
    for flag in FLAGS {
        assert!(help.stdout.contains(flag), "--help does not list {flag}");
        if flag != "--help" {
            let variable = format!(
                "ETHERPLY_{}",
                flag.trim_start_matches("--")
                    .replace('-', "_")
                    .to_uppercase()
            );
            assert!(
                help.stdout.contains(&variable),
                "--help does not list {variable}"
            );
        }
    }
    for word in [
        "8080",
        "1000",
        "25000",
        "1048576",
        "24h",
        "5000",
        "always",
        "interval",
        "none",
        "ETHERPLY_JWT_SECRET",
    ] {
        assert!(help.stdout.contains(word), "--help does not say {word}");
    }
}

#[tokio::test]
async fn top_level_help_lists_the_commands() {
    let help = Setup::new().run_only(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    for command in ["serve", "token", "log", "doctor"] {
        assert!(
            help.stdout.contains(command),
            "--help does not list {command}"
        );
    }
}

// ---- invalid values ----

/// Expects that the start is refused in one line that contains all these words.
fn expect_usage_error(outcome: &Outcome, words: &[&str]) {
    assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
    let first = outcome.stderr.lines().next().unwrap_or_default();
    assert!(
        words.iter().all(|word| first.contains(word)),
        "no single line contains {words:?}: {}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[tokio::test]
async fn the_error_for_a_wrong_value_is_one_line_with_the_flag_the_value_and_the_valid_values() {
    let cases: [(&str, &str, &[&str]); 15] = [
        ("--port", "http", &[]),
        ("--port", "65536", &["65535"]),
        ("--host", "nowhere at all", &[]),
        ("--shards", "0", &["1"]),
        ("--shards", "many", &[]),
        ("--durability", "sometimes", &["always", "interval", "none"]),
        ("--sync-interval-ms", "1s", &[]),
        ("--ping-interval-ms", "-5", &[]),
        ("--outbox-max-bytes", "1MB", &[]),
        ("--max-message-bytes", "huge", &[]),
        ("--max-connections", "0", &["1"]),
        ("--max-future-skew", "a day", &["24h"]),
        ("--tombstone-retention", "0s", &["1s", "7days"]),
        ("--log-level", "loud", &["info"]),
        ("--log-format", "xml", &["text", "json"]),
    ];
    for (flag, value, takes) in cases {
        let outcome = Setup::new().args(&[&format!("{flag}={value}")]).run().await;
        expect_usage_error(&outcome, &[&[flag, value], takes].concat());
    }
}

#[tokio::test]
async fn an_unknown_flag_or_command_is_a_usage_error() {
    for arguments in [&["serve", "--frobnicate"][..], &["frobnicate"], &[]] {
        let outcome = Setup::new().run_only(arguments).await;
        assert_eq!(outcome.code, Some(2), "for {arguments:?}: {outcome:?}");
    }
}

// ---- variables ----

#[tokio::test]
async fn every_setting_can_come_from_a_variable() {
    let setup = Setup::new()
        .env("ETHERPLY_HOST", "127.0.0.1")
        .env("ETHERPLY_PORT", "0")
        .env("ETHERPLY_SHARDS", "1")
        .env("ETHERPLY_DURABILITY", "interval")
        .env("ETHERPLY_SYNC_INTERVAL_MS", "50")
        .env("ETHERPLY_PING_INTERVAL_MS", "5000")
        .env("ETHERPLY_OUTBOX_MAX_BYTES", "65536")
        .env("ETHERPLY_MAX_MESSAGE_BYTES", "2000")
        .env("ETHERPLY_MAX_CONNECTIONS", "1")
        .env("ETHERPLY_MAX_FUTURE_SKEW", "1m")
        .env("ETHERPLY_DRAIN_MS", "100")
        .env("ETHERPLY_LOG_LEVEL", "debug")
        .env("ETHERPLY_LOG_FORMAT", "json");
    let server = setup.start().await;
    let mut client = Client::connect(&server, "room").await;
    assert_eq!(
        server.handshake(&Server::sync_path("room")).await.status,
        503,
        "ETHERPLY_MAX_CONNECTIONS has no effect"
    );
    client.send_text(&"x".repeat(2001)).await;
    assert_eq!(
        client.close_code().await,
        1009,
        "ETHERPLY_MAX_MESSAGE_BYTES has no effect"
    );
}

#[tokio::test]
async fn the_data_directory_can_come_from_a_variable() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let data_dir = folder.path().join("from a variable");
    let server = Setup::new()
        .env("ETHERPLY_DATA_DIR", &data_dir.display().to_string())
        .start()
        .await;
    assert!(data_dir.join("meta.json").exists());
    drop(server);
}

#[tokio::test]
async fn a_flag_overrides_its_variable() {
    let server = Setup::new()
        .env("ETHERPLY_MAX_MESSAGE_BYTES", "100")
        .args(&["--max-message-bytes", "5000"])
        .start()
        .await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let op = sender.write("k", json!("v".repeat(3000))).await;
    other.expect_op(&op).await;
}

/// Returns a port that nothing is currently listening on.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener
        .local_addr()
        .expect("a listener has an address")
        .port()
}

#[tokio::test]
async fn the_port_variable_also_sets_the_port() {
    let port = free_port();
    let server = Setup::new().env("PORT", &port.to_string()).start().await;
    assert_eq!(server.addr().port(), port);
}

#[tokio::test]
async fn the_port_flag_sets_the_port() {
    let port = free_port();
    let server = Setup::new()
        .args(&["--port", &port.to_string()])
        .start()
        .await;
    assert_eq!(server.addr().port(), port);
}

// ---- the secret ----

#[tokio::test]
async fn without_a_secret_the_server_refuses_to_start_and_says_how_to_set_one() {
    for setup in [
        Setup::new().without_envs(),
        Setup::new().without_envs().env("ETHERPLY_JWT_SECRET", ""),
    ] {
        let outcome = setup.run().await;
        assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
        for way in ["ETHERPLY_JWT_SECRET", "--jwt-secret-file"] {
            assert!(
                outcome.stderr.contains(way),
                "the message does not name {way}: {}",
                outcome.stderr
            );
        }
    }
}

#[tokio::test]
async fn a_secret_is_never_a_plain_flag() {
    let outcome = Setup::new()
        .without_envs()
        .args(&[&format!("--jwt-secret={SECRET}")])
        .run()
        .await;
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}

#[tokio::test]
async fn a_secret_can_come_from_a_file_without_its_final_line_break() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    for text in [SECRET.to_string(), format!("{SECRET}\n")] {
        let path = folder.path().join("secret");
        std::fs::write(&path, text).expect("the file can be written");
        let setup = Setup::new()
            .without_envs()
            .args(&["--jwt-secret-file", &path.display().to_string()]);
        let server = setup.start().await;
        assert_eq!(
            server.handshake(&Server::sync_path("room")).await.status,
            101
        );
    }
    let missing = folder.path().join("missing").display().to_string();
    let outcome = Setup::new()
        .without_envs()
        .args(&["--jwt-secret-file", &missing])
        .run()
        .await;
    assert!(outcome.expect_refusal().contains(&missing));
}

#[tokio::test]
async fn a_secret_under_32_bytes_causes_a_warning() {
    for (secret, is_short) in [
        ("only a few bytes".to_string(), true),
        ("x".repeat(31), true),
        ("x".repeat(32), false),
    ] {
        let mut server = Setup::new()
            .without_envs()
            .env("ETHERPLY_JWT_SECRET", &secret)
            .start()
            .await;
        let token = token::signed(&json!({"alg": "HS256"}), &json!({}), &secret);
        assert_eq!(
            server
                .handshake(&format!("/v1/sync/room?token={token}"))
                .await
                .status,
            101,
            "the token is not accepted"
        );
        server.stop().await;
        let warned = server.log().lines().any(|line| line.contains("32 bytes"));
        assert_eq!(
            warned,
            is_short,
            "for {} bytes:\n{}",
            secret.len(),
            server.log()
        );
    }
}

#[tokio::test]
async fn secrets_and_tokens_never_appear_in_output_or_logs() {
    for format in ["text", "json"] {
        let setup = Setup::new().env("ETHERPLY_JWT_SECRET_PREVIOUS", OTHER_SECRET);
        let mut server = setup
            .args(&["--log-level", "trace", "--log-format", format])
            .start()
            .await;
        let good = token::valid();
        let forged = token::signed(
            &json!({"alg": "HS256"}),
            &json!({}),
            "a secret that is not right, over 32 bytes",
        );
        let mut client =
            Client::connect_path(&server, &format!("/v1/sync/room?token={good}")).await;
        client.write("k", json!("a value")).await;
        client.close().await;
        server
            .handshake(&format!("/v1/sync/room?token={forged}"))
            .await;
        server
            .handshake(&format!("/v1/sync/bad%FFid?token={good}"))
            .await;
        server.handshake(&format!("/nope?token={good}")).await;
        server.get(&format!("/v1/sync/room?token={good}")).await;
        Raw::connect(server.addr())
            .await
            .handshake(
                "/v1/sync/room",
                &format!("Authorization: Bearer {good}\r\n"),
            )
            .await;
        server.stop().await;
        let log = server.log();
        assert!(!log.is_empty(), "the log is empty");
        for hidden in [
            SECRET,
            OTHER_SECRET,
            &good,
            &forged,
            last_part(&good),
            last_part(&forged),
        ] {
            assert!(!log.contains(hidden), "{hidden} is in the log:\n{log}");
        }
    }
}

fn last_part(token: &str) -> &str {
    token.rsplit('.').next().expect("a token has parts")
}

#[tokio::test]
async fn json_logs_are_one_object_per_line() {
    let mut server = Server::start_with(&["--log-format", "json", "--log-level", "debug"]).await;
    Client::connect(&server, "room").await.close().await;
    server.stop().await;
    for line in server.log().lines() {
        let parsed: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(parsed.is_object(), "{line}");
    }
}

#[tokio::test]
async fn ops_are_not_logged_individually() {
    let mut server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for number in 0..300 {
        let op = sender.write("k", json!(number)).await;
        other.expect_op(&op).await;
    }
    server.stop().await;
    let lines_count = server.log().lines().count();
    assert!(
        lines_count < 100,
        "{lines_count} lines for 300 ops and 2 clients"
    );
}

// ---- --dev ----

/// Starts a development server and returns it with the URL that it printed.
async fn dev_server(setup: Setup) -> (Server, String) {
    let mut server = setup.args(&["--dev"]).start().await;
    let url = loop {
        let line = server.stdout_line().await;
        if let Some(url) = line
            .split_whitespace()
            .find(|word| word.starts_with("ws://"))
        {
            break url.to_string();
        }
    };
    (server, url)
}

/// Checks that two clients that connect to the printed URL, unchanged, receive each other's ops.
async fn check_url_works(server: &Server, url: &str) {
    let prefix = format!("ws://{}", server.addr());
    let path = url
        .strip_prefix(&prefix)
        .unwrap_or_else(|| panic!("{url} does not start with {prefix}"));
    assert!(path.starts_with("/v1/sync/demo?token="), "{url}");
    let mut one = Client::connect_path(server, path).await;
    let mut two = Client::connect_path(server, path).await;
    let op = one.write("k", json!(1)).await;
    two.expect_op(&op).await;
}

#[tokio::test]
async fn dev_prints_a_working_url_and_generates_its_own_secret() {
    let (server, url) = dev_server(Setup::new().without_envs()).await;
    check_url_works(&server, &url).await;
    assert_eq!(
        server.handshake(&Server::sync_path("demo")).await.status,
        401,
        "another secret is accepted"
    );
    let (_other, other_url) = dev_server(Setup::new().without_envs()).await;
    assert_ne!(
        last_part(&url),
        last_part(&other_url),
        "two data directories share a secret"
    );
}

#[tokio::test]
async fn a_dev_token_is_still_valid_after_a_restart() {
    let setup = Setup::new().without_envs();
    let (mut server, url) = dev_server(setup.clone()).await;
    let path = url.split_once("/v1/").expect("a path").1;
    let path = format!("/v1/{path}");
    let file = setup.data_dir().join("dev-secret");
    let secret = std::fs::read_to_string(&file).expect("the secret file exists");
    assert!(
        secret.trim().len() >= 64,
        "the secret is not 32 random bytes in hex"
    );
    assert_eq!(mode_of(&file), 0o600);
    for _ in 0..2 {
        server.kill9();
        let log = server.log();
        assert!(
            !log.contains(secret.trim()),
            "the secret was printed: {log}"
        );
        let (next, next_url) = dev_server(setup.clone()).await;
        server = next;
        assert_eq!(server.handshake(&path).await.status, 101);
        let next_path = next_url.split_once("/v1/").expect("a path").1;
        assert_eq!(
            server.handshake(&format!("/v1/{next_path}")).await.status,
            101
        );
        assert_eq!(
            std::fs::read_to_string(&file).expect("the secret file still exists"),
            secret
        );
    }
    // A token can be created from a second terminal, too.
    let file = file.display().to_string();
    let minted = setup
        .run_only(&["token", "--sub", "me", "--jwt-secret-file", &file])
        .await;
    let path = format!("/v1/sync/demo?token={}", minted.stdout.trim());
    assert_eq!(server.handshake(&path).await.status, 101);
    // A server with a configured secret does not accept the tokens of the file's secret.
    server.stop().await;
    let server = Setup::new().in_data_dir(setup.data_dir()).start().await;
    assert_eq!(server.handshake(&path).await.status, 401);
}

#[tokio::test]
async fn a_dev_secret_readable_by_others_causes_a_warning_and_a_bad_one_is_refused() {
    let setup = Setup::new().without_envs();
    let (mut server, _) = dev_server(setup.clone()).await;
    assert!(
        !server.log().contains("dev-secret can be read"),
        "{}",
        server.log()
    );
    server.stop().await;
    let file = setup.data_dir().join("dev-secret");
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("the test owns the file");
    let (mut server, _) = dev_server(setup.clone()).await;
    server.log_line(&["dev-secret", "chmod 600"]).await;
    server.stop().await;
    for content in ["", "\n"] {
        std::fs::write(&file, content).expect("the test owns the file");
        let outcome = setup.clone().args(&["--dev"]).run().await;
        let line = outcome.expect_refusal();
        assert!(line.contains("dev-secret is empty"), "{line}");
        assert!(line.contains("remove it"), "{line}");
    }
}

#[tokio::test]
async fn the_dev_token_follows_a_changed_secret() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, SECRET).expect("the file can be written");
    let file = file.display().to_string();
    let setup = Setup::new()
        .without_envs()
        .args(&["--jwt-secret-file", &file]);
    let (server, url) = dev_server(setup).await;
    let mut token = url.split_once("token=").expect("a token").1.to_owned();
    for secret in [OTHER_SECRET, SECRET] {
        std::fs::write(&file, secret).expect("the file can be written");
        server.signal(Signal::HUP);
        token = eventually("the console receives another token", async || {
            let session = server.get("/console/session.json").await.json();
            let next = session["token"].as_str().expect("a token").to_owned();
            (next != token).then_some(next)
        })
        .await;
        eventually("that token is accepted", async || {
            let path = format!("/v1/sync/demo?token={token}");
            (server.handshake(&path).await.status == 101).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_log_tools_leave_the_dev_secret_alone() {
    let setup = Setup::new().without_envs();
    let (mut server, _) = dev_server(setup.clone()).await;
    server.stop().await;
    let folder = setup.data_dir().display().to_string();
    for arguments in [
        &["log", "verify", "--data-dir", &folder][..],
        &["log", "stat", "--data-dir", &folder],
        &["log", "compact", "--data-dir", &folder],
        &["log", "repair", "--yes", "--data-dir", &folder],
    ] {
        let outcome = setup.run_only(arguments).await;
        assert_eq!(outcome.code, Some(0), "{arguments:?}: {outcome:?}");
        assert!(
            setup.data_dir().join("dev-secret").exists(),
            "{arguments:?}"
        );
    }
    // A directory whose log was removed manually starts afresh, with the same secret.
    for entry in std::fs::read_dir(setup.data_dir()).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path).expect("the test owns the folder");
        } else if !path.ends_with("dev-secret") {
            std::fs::remove_file(&path).expect("the test owns the file");
        }
    }
    let (mut server, _) = dev_server(setup.clone()).await;
    server.stop().await;
}

fn mode_of(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path).expect("the file exists");
    metadata.permissions().mode() & 0o777
}

#[tokio::test]
async fn dev_uses_a_configured_secret() {
    let (server, url) = dev_server(Setup::new()).await;
    check_url_works(&server, &url).await;
    assert_eq!(
        server.handshake(&Server::sync_path("demo")).await.status,
        101
    );
}

#[tokio::test]
async fn dev_refuses_a_non_loopback_host() {
    for host in ["0.0.0.0", "192.0.2.1"] {
        let outcome = Setup::new().args(&["--dev", "--host", host]).run().await;
        assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
        assert!(
            outcome.stderr.contains("--dev") && outcome.stderr.contains(host),
            "{}",
            outcome.stderr
        );
        assert!(!outcome.stdout.contains("ws://"), "{}", outcome.stdout);
    }
}

// ---- the log ----

#[tokio::test]
async fn an_unwritable_log_output_does_not_stop_the_server() {
    let mut server = Setup::new().prepared("exec 2>/dev/full").start().await;
    // Each of these writes a log line.
    server.signal(Signal::HUP);
    Client::connect(&server, "room").await;
    server.stop().await;
    assert_eq!(server.log(), "");
}

// ---- token ----

async fn printed_token(arguments: &[&str]) -> String {
    let outcome = Setup::new()
        .run_only(&[&["token"], arguments].concat())
        .await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let token = outcome
        .stdout
        .strip_suffix('\n')
        .expect("the token is on a line of its own")
        .to_string();
    assert!(
        !token.contains(char::is_whitespace),
        "the output is more than a token: {token:?}"
    );
    token
}

#[tokio::test]
async fn the_token_command_prints_a_token_that_the_server_accepts() {
    let server = Server::start().await;
    for arguments in [
        &["--sub", "ann"][..],
        &["--sub", "ann", "--ttl", "1h"],
        &["--sub", "Ann Ö", "--ttl", "30s"],
    ] {
        let token = printed_token(arguments).await;
        assert_eq!(
            server
                .handshake(&format!("/v1/sync/room?token={token}"))
                .await
                .status,
            101,
            "for {arguments:?}"
        );
    }
}

#[tokio::test]
async fn the_ttl_determines_the_exp_of_a_printed_token() {
    for (ttl, ttl_s) in [("1h", 3600), ("24h", 86_400), ("90s", 90)] {
        let token = printed_token(&["--sub", "ann", "--ttl", ttl]).await;
        let claims = token::claims(&token, SECRET);
        assert_eq!(claims["sub"], "ann");
        let expected = now_s() + ttl_s;
        let exp = claims["exp"].as_u64().expect("exp is a number");
        assert!(
            (expected - 30..=expected).contains(&exp),
            "exp {exp} is not {ttl} from now"
        );
    }
}

#[tokio::test]
async fn the_token_command_without_a_secret_says_how_to_set_one() {
    let outcome = Setup::new()
        .without_envs()
        .run_only(&["token", "--sub", "ann"])
        .await;
    assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
    assert!(
        outcome.stderr.contains("ETHERPLY_JWT_SECRET"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stdout.is_empty(), "{}", outcome.stdout);
}

#[tokio::test]
async fn the_token_command_without_a_sub_is_a_usage_error() {
    let outcome = Setup::new().run_only(&["token"]).await;
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("--sub"), "{}", outcome.stderr);
}
