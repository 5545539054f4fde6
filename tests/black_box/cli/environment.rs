//! The environment of the process: foreign variables, invalid values, and the names in error
//! messages.

use crate::support::disk::{Mount, may_mount};
use crate::support::raw::Raw;
use crate::support::server::{Outcome, Server, Setup};
use crate::support::skipped;
use crate::support::token::{self, OTHER_SECRET, SECRET};

/// Expects the refusal for a missing secret, which comes only after all settings were found valid.
fn expect_settings_accepted(outcome: &Outcome, what: &str) {
    assert_eq!(outcome.code, Some(1), "{what}: {outcome:?}");
    let line = outcome.expect_refusal();
    assert!(
        line.contains("no secret to sign tokens with"),
        "{what}: {line}"
    );
}

/// Returns the variables that the help of `serve` lists for its flags.
async fn variables() -> Vec<String> {
    let help = Setup::new().run_only(&["serve", "--help"]).await.stdout;
    let named = help.split("[env: ").skip(1);
    let named = named.map(|rest| rest.split([']', '=']).next().unwrap_or_default().to_owned());
    let found: Vec<String> = named.collect();
    assert!(found.len() > 20, "{found:?}");
    found
}

// ---- variables that others set ----

#[tokio::test]
async fn kubernetes_service_links_are_ignored() {
    let mut setup = Setup::new().env("PORT", "0");
    for (name, value) in [
        // A Service named etherply, with a port named ws.
        ("ETHERPLY_PORT", "tcp://10.96.12.7:8080"),
        ("ETHERPLY_SERVICE_HOST", "10.96.12.7"),
        ("ETHERPLY_SERVICE_PORT", "8080"),
        ("ETHERPLY_SERVICE_PORT_WS", "8080"),
        ("ETHERPLY_PORT_8080_TCP", "tcp://10.96.12.7:8080"),
        ("ETHERPLY_PORT_8080_TCP_PROTO", "tcp"),
        ("ETHERPLY_PORT_8080_TCP_PORT", "8080"),
        ("ETHERPLY_PORT_8080_TCP_ADDR", "10.96.12.7"),
        // A Service named etherply-admin, whose first variable is also one of ours.
        ("ETHERPLY_ADMIN_PORT", "udp://10.96.12.8:9090"),
        ("ETHERPLY_ADMIN_SERVICE_HOST", "10.96.12.8"),
        ("ETHERPLY_ADMIN_PORT_9090_UDP_ADDR", "10.96.12.8"),
    ] {
        setup = setup.env(name, value);
    }
    let mut server = setup.start().await;
    assert_eq!(server.get("/healthz").await.status, 200);
    server.stop().await;
    assert!(!server.log().contains("ETHERPLY_"), "{}", server.log());
}

#[tokio::test]
async fn an_unknown_variable_causes_one_warning_with_the_nearest_name() {
    for (name, nearest) in [
        ("ETHERPLY_SHRADS", Some("ETHERPLY_SHARDS")),
        ("ETHERPLY_MAX_CONECTIONS", Some("ETHERPLY_MAX_CONNECTIONS")),
        ("ETHERPLY_JWT_SECRT", Some("ETHERPLY_JWT_SECRET")),
        ("ETHERPLY_data_dir", Some("ETHERPLY_DATA_DIR")),
        ("ETHERPLY_FLAVOUR", None),
    ] {
        let mut server = Setup::new().env(name, "private value").start().await;
        server.stop().await;
        let log = server.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(name)).collect();
        let [line] = lines[..] else {
            panic!("expected exactly one line with {name}:\n{log}");
        };
        assert!(line.contains("WARN"), "{line}");
        assert!(
            nearest.is_none_or(|nearest| line.contains(nearest)),
            "{line}"
        );
        assert_eq!(line.contains("did you mean"), nearest.is_some(), "{line}");
        assert!(
            !log.contains("private value"),
            "the log contains the value: {log}"
        );
    }
}

#[tokio::test]
async fn the_servers_own_variables_cause_no_warning() {
    let mut server = Setup::new()
        .env("ETHERPLY_JWT_SECRET_PREVIOUS", OTHER_SECRET)
        .env("ETHERPLY_LOG_LEVEL", "info")
        .env("ETHERPLY_FAULT_OLD_KERNEL", "1")
        .start()
        .await;
    server.stop().await;
    assert!(!server.log().contains("ETHERPLY_"), "{}", server.log());
}

#[tokio::test]
async fn an_empty_variable_counts_as_unset() {
    let mut setup = Setup::new().without_envs();
    for name in variables().await {
        setup = setup.env(&name, "");
    }
    setup = setup.env("PORT", "").env("ETHERPLY_JWT_SECRET", "");
    setup = setup.env("ETHERPLY_JWT_SECRET_PREVIOUS", "");
    expect_settings_accepted(&setup.run().await, "all are empty");

    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let path = folder.path().join("secret");
    std::fs::write(&path, SECRET).expect("the file can be written");
    let setup = Setup::new()
        .without_envs()
        .env("ETHERPLY_JWT_SECRET", "")
        .env("ETHERPLY_JWT_SECRET_PREVIOUS", "")
        .args(&["--jwt-secret-file", &path.display().to_string()]);
    let server = setup.start().await;
    let answer = server.handshake(&Server::sync_path("room")).await;
    assert_eq!(answer.status, 101);
}

// ---- values ----

#[tokio::test]
async fn a_boolean_variable_accepts_common_spellings() {
    for variable in [
        "ETHERPLY_NO_PIN",
        "ETHERPLY_CONSOLE",
        "ETHERPLY_METRICS_PUBLIC",
    ] {
        for value in ["1", "0", "true", "FALSE", "Yes", "no"] {
            let outcome = Setup::new().without_envs().env(variable, value).run().await;
            expect_settings_accepted(&outcome, &format!("{variable}={value}"));
        }
    }
    for (value, is_dev) in [
        ("1", true),
        ("TRUE", true),
        ("yes", true),
        ("0", false),
        ("False", false),
        ("no", false),
    ] {
        let setup = Setup::new().without_envs().env("ETHERPLY_DEV", value);
        let outcome = setup.args(&["--host", "192.0.2.1"]).run().await;
        assert_eq!(outcome.code, Some(1), "{value}: {outcome:?}");
        let said = &outcome.stderr;
        assert_eq!(
            said.contains("--dev listens on loopback"),
            is_dev,
            "{value}: {said}"
        );
        assert_eq!(
            said.contains("no secret to sign"),
            !is_dev,
            "{value}: {said}"
        );
    }
    for (value, status) in [("yes", 200), ("0", 404)] {
        let server = Setup::new().env("ETHERPLY_CONSOLE", value).start().await;
        assert_eq!(server.get("/").await.status, status, "{value}");
    }
    let outcome = Setup::new().env("ETHERPLY_CONSOLE", "maybe").run().await;
    expect_usage_line(&outcome, &["ETHERPLY_CONSOLE", "maybe", "yes", "0"]);
}

/// Expects exit code 2 and one line with these words, and returns the line.
fn expect_usage_line<'a>(outcome: &'a Outcome, words: &[&str]) -> &'a str {
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    let line = outcome.stderr.trim_end_matches('\n');
    assert!(!line.contains('\n'), "expected one line: {line}");
    for word in words {
        assert!(line.contains(word), "the line does not name {word}: {line}");
    }
    line
}

#[tokio::test]
async fn an_error_for_a_value_from_a_variable_names_the_variable() {
    for (variable, flag, value, takes) in [
        ("ETHERPLY_SHARDS", "--shards", "abc", "whole number from 1"),
        ("ETHERPLY_PORT", "--port", "http", "whole number from 0"),
        ("ETHERPLY_HOST", "--host", "here", "IP address"),
        ("ETHERPLY_DURABILITY", "--durability", "often", "interval"),
        (
            "ETHERPLY_ALLOW_ORIGIN",
            "--allow-origin",
            "a.example",
            "https://",
        ),
        (
            "ETHERPLY_DRAIN_MS",
            "--drain-ms",
            "-1",
            "whole number from 0",
        ),
    ] {
        let outcome = Setup::new().env(variable, value).run().await;
        let line = expect_usage_line(
            &outcome,
            &[variable, value, takes, "`etherply serve --help`"],
        );
        assert!(
            !line.contains(flag),
            "the line does not name the variable: {line}"
        );
    }
    // The flag takes precedence.
    let setup = Setup::new().env("ETHERPLY_DRAIN_MS", "abc");
    let outcome = setup.args(&["--drain-ms=xyz"]).run().await;
    let line = expect_usage_line(&outcome, &["--drain-ms", "xyz"]);
    assert!(!line.contains("ETHERPLY_DRAIN_MS"), "{line}");
    let outcome = Setup::new().env("PORT", "http").run().await;
    let line = outcome.expect_refusal();
    assert!(line.contains("PORT") && line.contains("'http'"), "{line}");
    assert!(!line.contains("--port"), "{line}");
}

#[tokio::test]
async fn a_usage_error_points_to_the_relevant_help() {
    for (arguments, words) in [
        (
            &["serve", "--prot", "1"][..],
            &[
                "'--prot'",
                "did you mean '--port'?",
                "`etherply serve --help`",
            ][..],
        ),
        (
            &["serve", "--durability", "alwais"],
            &["did you mean 'always'?", "`etherply serve --help`"],
        ),
        (
            &["srve"],
            &["'srve'", "did you mean 'serve'?", "`etherply --help`"],
        ),
        (
            &["serve", "--drain-ms", "-1"],
            &["'-1'", "whole number from 0", "`etherply serve --help`"],
        ),
        (
            &["serve", "--max-future-skew", "-5s"],
            &["'-5s'", "24h", "`etherply serve --help`"],
        ),
        (
            &["serve", "--admin-host", "::1"],
            &["--admin-port", "`etherply serve --help`"],
        ),
        (&["serve", "--port"], &["--port", "`etherply serve --help`"]),
        (&["token"], &["--sub", "`etherply token --help`"]),
        (
            &["token", "--sub", "a", "--ttl", "0"],
            &["--ttl", "'0'", "1s", "100years", "`etherply token --help`"],
        ),
        (&["token", "--sub", "a", "--ttl", "100ms"], &["--ttl", "1s"]),
        (
            &["log", "--data-dir", "stat", "verify", "--all"],
            &["'--all'", "`etherply log verify --help`"],
        ),
        (
            &["log", "dump"],
            &["--workspace", "`etherply log dump --help`"],
        ),
        (&["log"], &["command", "`etherply log --help`"]),
        (
            &["doctor", "--shards", "0"],
            &["'0'", "`etherply doctor --help`"],
        ),
        (
            &["completions", "ksh"],
            &["'ksh'", "bash", "`etherply completions --help`"],
        ),
        (&["manual"], &["<DIR>", "`etherply manual --help`"]),
        (&[], &["command", "serve", "`etherply --help`"]),
    ] {
        let outcome = Setup::new().run_only(arguments).await;
        let line = expect_usage_line(&outcome, words);
        assert!(line.starts_with("error: "), "{line}");
    }
    let years = ["token", "--sub", "a", "--ttl", "100y"];
    assert_eq!(Setup::new().run_only(&years).await.code, Some(0));
}

// ---- ports ----

#[tokio::test]
async fn the_error_for_a_port_in_use_names_the_setting_the_user_chose() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken
        .local_addr()
        .expect("the listener is bound")
        .port()
        .to_string();
    let address = format!("127.0.0.1:{port}");
    for (setup, name, other) in [
        (Setup::new().args(&["--port", &port]), "--port", "PORT"),
        (
            Setup::new().env("ETHERPLY_PORT", &port),
            "ETHERPLY_PORT",
            "--port",
        ),
        (Setup::new().env("PORT", &port), "PORT", "ETHERPLY_PORT"),
        (
            Setup::new().args(&["--admin-port", &port]),
            "--admin-port",
            "ETHERPLY",
        ),
        (
            Setup::new().env("ETHERPLY_ADMIN_PORT", &port),
            "ETHERPLY_ADMIN_PORT",
            "--admin-port",
        ),
    ] {
        let outcome = setup.run().await;
        let line = outcome.expect_refusal();
        assert!(line.contains(&address), "{line}");
        assert!(
            line.contains(&format!("another port with {name}")),
            "{line}"
        );
        assert!(!line.contains(&format!(" {other}")), "{line}");
    }
}

#[tokio::test]
async fn the_error_for_a_privileged_port_says_how_to_get_the_capability() {
    if std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .is_ok_and(|start| start.trim() == "0")
    {
        skipped("every user may listen on every port here");
        return;
    }
    // Without the capability, not even root may bind the port.
    let setup = Setup::new().args(&["--port", "81"]);
    let without = [
        "--bounding-set=-net_bind_service",
        "--inh-caps=-net_bind_service",
    ];
    let wrapper = [&["setpriv"], &without[..]].concat();
    let outcome = setup.wrapped(&wrapper).run().await;
    let line = outcome.expect_refusal();
    for word in ["127.0.0.1:81", "CAP_NET_BIND_SERVICE", "--port"] {
        assert!(line.contains(word), "{line}");
    }
}

#[tokio::test]
async fn the_admin_port_announces_what_it_serves() {
    for (console, line, status, words) in [
        (&[][..], "metrics on 127.0.0.1:", 404, "--console"),
        (&["--console"], "metrics and console on 127.0.0.1:", 200, ""),
    ] {
        let arguments = [&["--admin-port", "0"], console].concat();
        let mut server = Server::start_with(&arguments).await;
        let said = server.stdout_line().await;
        let admin = said.strip_prefix(line);
        let admin = admin.unwrap_or_else(|| panic!("{said} does not start with {line}"));
        let address = format!("127.0.0.1:{admin}").parse().expect("an address");
        let mut socket = Raw::connect(address).await;
        let request = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        socket.send(request.as_bytes()).await;
        let answer = socket.answer().await;
        assert_eq!(answer.status, status);
        assert!(answer.body.contains(words), "{answer:?}");
        assert_eq!(server.get("/").await.status, 404);
    }
}

// ---- the data directory ----

#[tokio::test]
async fn a_data_directory_that_is_not_a_folder_is_reported() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "text").expect("the file can be written");
    for path in ["/dev/null".into(), file.clone(), file.join("inside")] {
        let outcome = Setup::new().in_data_dir(&path).run().await;
        let line = outcome.expect_refusal();
        assert!(line.contains("is not a folder"), "{line}");
        assert!(line.contains(&path.display().to_string()), "{line}");
        assert!(line.contains("--data-dir"), "{line}");
    }
}

#[tokio::test]
async fn a_new_log_is_not_created_among_other_files() {
    let setup = Setup::new();
    let data = setup.data_dir().to_owned();
    std::fs::create_dir(&data).expect("the folder can be created");
    std::fs::write(data.join("holiday.jpg"), "").expect("the file can be written");
    let outcome = setup.run().await;
    let line = outcome.expect_refusal();
    for word in ["holiday.jpg", "empty", "--data-dir"] {
        assert!(line.contains(word), "{line}");
    }
    let names = std::fs::read_dir(&data).expect("the folder exists");
    assert_eq!(names.count(), 1, "the folder was changed");
    let path = data.display().to_string();
    let doctor = setup
        .run_only(&["doctor", "--port", "0", "--data-dir", &path])
        .await;
    assert!(doctor.stdout.contains("holiday.jpg"), "{doctor:?}");
    assert_eq!(
        doctor.code,
        Some(1),
        "the doctor passes a setup that the server refuses"
    );

    // Files that file systems and tools leave behind do no harm, nor does any other file next to an
    // existing log.
    std::fs::remove_file(data.join("holiday.jpg")).expect("the file exists");
    for name in ["lost+found", ".snapshot", "damaged-1"] {
        std::fs::create_dir(data.join(name)).expect("the folder can be created");
    }
    for name in [".gitkeep", "dev-secret"] {
        std::fs::write(data.join(name), "").expect("the file can be written");
    }
    setup.clone().start().await.stop().await;
    std::fs::write(data.join("README"), "").expect("the file can be written");
    setup.start().await.stop().await;
}

#[tokio::test]
async fn an_unwritable_disk_is_reported_with_the_cause() {
    if !may_mount() {
        return;
    }
    for (options, words) in [
        // The root directory of the file system is an inode, and the only one.
        ("1m,nr_inodes=1", &["(df -h)", "(df -i)"][..]),
        // Directories on a tmpfs take up no space, but files do.
        ("4k", &["(df -h)", "(df -i)"]),
        ("1m,ro", &["remount its file system read-write"]),
    ] {
        let Some(disk) = Mount::tmpfs(options) else {
            return;
        };
        let outcome = Setup::new().in_data_dir(disk.path()).run().await;
        let line = outcome.expect_refusal();
        for word in words {
            assert!(line.contains(word), "{options}: {line}");
        }
        assert!(!line.contains("write access"), "{options}: {line}");
    }
}

// ---- secrets ----

#[tokio::test]
async fn a_whitespace_only_secret_is_refused() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let path = folder.path().join("secret");
    std::fs::write(&path, " \t\n").expect("the file can be written");
    let path = path.display().to_string();
    for (setup, name) in [
        (
            Setup::new().without_envs().env("ETHERPLY_JWT_SECRET", " "),
            "ETHERPLY_JWT_SECRET",
        ),
        (
            Setup::new().env("ETHERPLY_JWT_SECRET_PREVIOUS", "\n"),
            "ETHERPLY_JWT_SECRET_PREVIOUS",
        ),
        (
            Setup::new()
                .without_envs()
                .args(&["--jwt-secret-file", &path]),
            "--jwt-secret-file",
        ),
        (
            Setup::new()
                .without_envs()
                .env("ETHERPLY_JWT_SECRET_FILE", &path),
            "ETHERPLY_JWT_SECRET_FILE",
        ),
        (
            Setup::new().args(&["--jwt-secret-previous-file", &path]),
            "--jwt-secret-previous-file",
        ),
    ] {
        let outcome = setup.run().await;
        let line = outcome.expect_refusal();
        assert!(line.contains(name), "{line}");
        assert!(line.contains("white space"), "{line}");
    }
    // Each message names its own remedy.
    let outcome = Setup::new()
        .env("ETHERPLY_JWT_SECRET_PREVIOUS", " ")
        .run()
        .await;
    assert!(outcome.expect_refusal().contains("unset it"), "{outcome:?}");
}

#[tokio::test]
async fn a_secret_file_readable_by_others_causes_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let path = folder.path().join("secret");
    std::fs::write(&path, SECRET).expect("the file can be written");
    for (mode, warned) in [(0o644, true), (0o604, true), (0o640, false), (0o600, false)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("the file exists");
        let text = path.display().to_string();
        let setup = Setup::new()
            .without_envs()
            .args(&["--jwt-secret-file", &text]);
        let mut server = setup.start().await;
        server.stop().await;
        let log = server.log();
        let line = log.lines().find(|line| line.contains("chmod 600"));
        assert_eq!(line.is_some(), warned, "{mode:o}:\n{log}");
        assert!(line.is_none_or(|line| line.contains(&text)), "{line:?}");
    }
}

#[tokio::test]
async fn a_trailing_line_break_is_not_part_of_a_secret() {
    let with_break = format!("{SECRET}\n");
    let mut server = Setup::new()
        .without_envs()
        .env("ETHERPLY_JWT_SECRET", &with_break)
        .start()
        .await;
    // As with a file. Tokens that were signed with the unmodified value are still accepted.
    for secret in [SECRET, &with_break] {
        let claims = serde_json::json!({});
        let token = token::signed(&serde_json::json!({"alg": "HS256"}), &claims, secret);
        let path = format!("/v1/sync/room?token={token}");
        assert_eq!(server.handshake(&path).await.status, 101, "{secret:?}");
    }
    server.stop().await;
    let log = server.log();
    let line = log.lines().find(|line| line.contains("line break"));
    assert!(
        line.is_some_and(|line| line.contains("ETHERPLY_JWT_SECRET")),
        "{log}"
    );
    let printed = async |secret: &str| {
        let setup = Setup::new()
            .without_envs()
            .env("ETHERPLY_JWT_SECRET", secret);
        setup
            .run_only(&["token", "--sub", "a", "--ttl", "1h"])
            .await
    };
    let token = printed(&with_break).await.stdout;
    // The token is signed with the secret without the line break.
    token::claims(token.trim(), SECRET);
}

// ---- sockets ----

#[tokio::test]
async fn a_passed_socket_without_listen_pid_is_not_used() {
    let passed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = passed.local_addr().expect("the listener is bound").port();
    let setup = Setup::new().passing(passed).prepared("unset LISTEN_PID");
    let server = setup
        .args(&["--port", "0", "--host", "127.0.0.1"])
        .start()
        .await;
    assert_ne!(server.addr().port(), port);
    server.log_line(&["LISTEN_FDS", "LISTEN_PID"]).await;
}
