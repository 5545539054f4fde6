//! Limits that the system sets on the process: locked memory, threads, file sizes, standard
//! streams. If one is too low, the server names it and the remedy, or works without the resource.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread::available_parallelism;

use crate::support::client::{Client, Event, state_of};
use crate::support::server::{Outcome, Server, Setup};
use crate::support::skipped;
use rustix::process::geteuid;
use serde_json::{Map, Value, json};

/// Returns the setup of a server that runs as an unprivileged user, under a limit set by
/// prlimit(1). Returns `None`, and prints a reason, if the test may not change its user. Each test
/// has its own user, because some limits count all processes of a user.
fn of_user(user: &str, limit: &str) -> Option<Setup> {
    let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !geteuid().is_root() || !has("setpriv") || !has("prlimit") {
        skipped("this needs root, and setpriv(1) and prlimit(1)");
        return None;
    }
    let setup = Setup::new();
    let folder = setup
        .data_dir()
        .parent()
        .expect("the directory has a parent");
    let everyone = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder, everyone).expect("the test owns the folder");
    let no_capability = ["--inh-caps=-all", "--bounding-set=-all"];
    let of_user = [
        "setpriv",
        "--reuid",
        user,
        "--regid",
        user,
        "--clear-groups",
    ];
    let limited = ["prlimit", limit, "--"];
    Some(setup.wrapped(&[&of_user[..], &no_capability, &limited].concat()))
}

// ---- locked memory ----

/// Returns the locked memory of a shard's ring on this kernel, or `None` if the kernel does not
/// count it as locked.
fn ring_kib() -> Option<u32> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next(), numbers.next());
    if version < (Some(5), Some(12)) {
        Some(320)
    } else {
        (version >= (Some(6), Some(14))).then_some(204)
    }
}

/// Returns the doctor's report on the rings and on locked memory: the verdicts and all of the text.
async fn doctor(setup: &Setup, shards: &str) -> (Outcome, Vec<String>, String) {
    let data_dir = setup.data_dir().display().to_string();
    let arguments = ["doctor", "--json", "--port", "0", "--shards", shards];
    let outcome = setup
        .run_only(&[&arguments[..], &["--data-dir", &data_dir]].concat())
        .await;
    let report: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks is an array");
    let is_it = |check: &&Value| check["check"] == "io_uring" || check["check"] == "locked memory";
    let found: Vec<&Value> = checks.iter().filter(is_it).collect();
    let verdicts = found.iter().map(|check| check["verdict"].to_string());
    let text = found.iter().map(ToString::to_string).collect();
    (outcome, verdicts.collect(), text)
}

#[tokio::test]
async fn the_server_and_the_doctor_report_a_memlock_limit_that_is_too_low_and_the_amount_needed() {
    let Some(setup) = of_user("64121", "--memlock=262144:262144") else {
        return;
    };
    let (outcome, verdicts, text) = doctor(&setup, "4").await;
    let Some(ring_kib) = ring_kib() else {
        skipped("on this kernel, rings do not count as locked memory");
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        return;
    };
    assert_eq!(verdicts, ["\"fail\"", "\"fail\""], "{text}");
    for word in [
        "the rings of 4 shards",
        "256.00 KiB",
        "ulimit -l",
        "--shards",
    ] {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
    let refused = setup.clone().shards(4).run().await;
    let line = refused.expect_refusal();
    for word in [
        "4 shards",
        "256 KiB",
        "ulimit -l",
        "LimitMEMLOCK=",
        "--ulimit memlock=",
        "--shards",
    ] {
        assert!(line.contains(word), "expected {word:?} in: {line}");
    }
    let need = format!("{} KiB", 4 * ring_kib);
    assert!(line.contains(&need), "expected {need:?} in: {line}");
}

#[tokio::test]
async fn a_server_starts_with_a_memlock_limit_that_is_just_enough() {
    // Plus a little for the small rings that are tried first.
    let limit = 2 * ring_kib().unwrap_or(0) * 1024 + 48 * 1024;
    let Some(setup) = of_user("64122", &format!("--memlock={limit}:{limit}")) else {
        return;
    };
    let (outcome, _, text) = doctor(&setup, "2").await;
    assert!(outcome.code == Some(0) && !text.contains("fail"), "{text}");
    let server = setup.shards(2).start().await;
    server.until_ready_is(200).await;
}

// ---- threads ----

#[tokio::test]
async fn if_a_thread_cannot_be_spawned_startup_fails_and_names_the_limit_and_a_remedy() {
    for (limit, shards) in [("1", 1), ("3", 4), ("5", 4)] {
        let Some(setup) = of_user("64123", &format!("--nproc={limit}:{limit}")) else {
            return;
        };
        let refused = setup.shards(shards).run().await;
        let line = refused.expect_refusal();
        let limit = format!("may run {limit} processes and threads");
        for word in [
            "the thread etherply-",
            &limit,
            "ulimit -u",
            "LimitNPROC=",
            "--pids-limit",
        ] {
            assert!(line.contains(word), "expected {word:?} in: {line}");
        }
    }
}

#[tokio::test]
async fn many_more_shards_than_cores_cause_a_warning_with_their_cost() {
    let cores = available_parallelism()
        .expect("the number of cores is known")
        .get();
    let shards = u32::try_from(4 * cores + 1).expect("the number of shards fits in 32 bits");
    let server = Setup::new().shards(shards).start().await;
    let shards = format!("{shards} shards on {cores} cores");
    server
        .log_line(&["WARN", &shards, "MiB of memory", "--shards"])
        .await;
    let few = Setup::new().shards(1).start().await;
    assert!(!few.log().contains("WARN"), "{}", few.log());
}

// ---- the size of files ----

#[tokio::test]
async fn a_file_size_limit_acts_like_a_full_disk_and_kills_no_process() {
    // The limit is in blocks of 512 bytes: a segment has room for two and a half of the ops below.
    let setup = Setup::new().shards(1).prepared("ulimit -f 2048");
    let mut server = setup.start().await;
    let mut shown = Map::new();
    let mut failures = 0;
    let value = json!("x".repeat(400_000));
    for round in 0..4 {
        let mut writer = Client::connect_at_last(&server, "room").await;
        let mut witness = Client::connect_at_last(&server, "room").await;
        for number in 0..4 {
            let key = format!("{round} {number}");
            let op = writer.write(&key, value.clone()).await;
            match witness.event().await {
                Event::Text(_) => drop(shown.insert(op.key, op.value)),
                Event::Close(1011, _) => {
                    writer.expect_error(500).await;
                    failures += 1;
                    break;
                }
                event => panic!("expected the op or a close with 1011, got {event:?}"),
            }
        }
    }
    assert!(failures > 0, "the limit was never reached");
    server.until_ready_is(200).await;
    server.kill9();
    let server = Setup::new().in_data_dir(server.data_dir()).start().await;
    let state = state_of(&server, "room").await;
    for key in shown.keys() {
        assert!(state.contains_key(key), "{key} was delivered but is lost");
    }
    assert!(!shown.is_empty(), "no op was delivered");
}

// ---- the standard streams ----

/// Opens a pipe without a reader as stdout.
const NO_READER: &str = "mkfifo \"$TMP_FIFO\" && exec 4<>\"$TMP_FIFO\" >\"$TMP_FIFO\" 4<&-";

fn without_reader(setup: Setup) -> (Setup, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = folder.path().join("fifo").display().to_string();
    (setup.env("TMP_FIFO", &fifo).prepared(NO_READER), folder)
}

#[tokio::test]
async fn a_server_with_an_unwritable_stdout_reports_it_once_and_serves() {
    let (closed, _folder) = without_reader(Setup::new());
    for setup in [Setup::new().prepared("exec >/dev/full"), closed] {
        let mut server: Server = setup.start_reading().await;
        server.until_ready_is(200).await;
        server.log_line(&["WARN", "cannot write to stdout"]).await;
        let mut writer = Client::connect(&server, "room").await;
        let mut witness = Client::connect(&server, "room").await;
        let op = writer.write("k", json!(1)).await;
        witness.expect_op(&op).await;
        assert_eq!(
            server.log().matches("stdout").count(),
            1,
            "{}",
            server.log()
        );
        server.stop().await;
    }
}

#[tokio::test]
async fn a_command_fails_on_unwritable_output_but_not_on_a_closed_pipe() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    let op = writer.write("k", json!(1)).await;
    witness.expect_op(&op).await;
    let data_dir = server.data_dir().display().to_string();
    let data_dir = data_dir.as_str();
    let mut server = server;
    server.kill9();
    let log = ["log", "--data-dir", data_dir];
    let commands: [&[&str]; 10] = [
        &["token", "--sub", "ann"],
        &[&log[..], &["stat"]].concat(),
        &[&log[..], &["verify"]].concat(),
        &[&log[..], &["dump", "--workspace", "room"]].concat(),
        &[
            "doctor",
            "--port",
            "0",
            "--shards",
            "1",
            "--data-dir",
            data_dir,
        ],
        &["completions", "bash"],
        &["--help"],
        &["serve", "--help"],
        &["--version"],
        &[&log[..], &["compact"]].concat(),
    ];
    for command in commands {
        let full = Setup::new().prepared("exec >/dev/full");
        let outcome = full.run_only(command).await;
        assert_eq!(outcome.code, Some(1), "{command:?}: {outcome:?}");
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        let [line] = lines[..] else {
            panic!("{command:?} does not print exactly one line: {outcome:?}");
        };
        let words = ["error:", "output", "No space left on device"];
        assert!(
            words.iter().all(|word| line.contains(word)),
            "{command:?}: {line}"
        );
        let (closed, _folder) = without_reader(Setup::new());
        let outcome = closed.run_only(command).await;
        let silent = (Some(0), "");
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            silent,
            "{command:?}"
        );
    }
}

#[tokio::test]
async fn an_error_that_cannot_be_printed_still_sets_the_exit_code() {
    let full = Setup::new().prepared("exec 2>/dev/full");
    for (command, code) in [
        (&["serve", "--port", "x"][..], 2),
        (&["log", "--data-dir", "/nowhere", "verify"], 1),
    ] {
        let outcome = full.run_only(command).await;
        assert_eq!(outcome.code, Some(code), "{command:?}: {outcome:?}");
    }
}
