//! `etherply log`: inspects and repairs the log of a server, running or stopped.

use crate::support::client::{Client, state_of};
use crate::support::files;
use crate::support::server::{Outcome, Server, Setup};
use crate::support::skipped;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `etherply log` with these arguments on a data directory.
async fn tool(data_dir: &Path, arguments: &[&str]) -> Outcome {
    let data_dir = data_dir.display().to_string();
    let arguments = [&["log"], arguments, &["--data-dir", &data_dir]].concat();
    Setup::new().run_only(&arguments).await
}

/// Runs a command as [`tool`] does, expects it to succeed, and returns its output.
async fn tool_output(data_dir: &Path, arguments: &[&str]) -> String {
    let outcome = tool(data_dir, arguments).await;
    assert_eq!(outcome.code, Some(0), "{arguments:?}: {outcome:?}");
    assert_eq!(outcome.stderr, "", "{arguments:?}");
    outcome.stdout
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(parse).collect()
}

/// Writes the values `0..count` to `keys` keys in turn and waits until all of them are on disk.
async fn write(server: &Server, workspace: &str, count: u64, keys: u64) {
    let mut writer = Client::connect(server, workspace).await;
    let mut reader = Client::connect(server, workspace).await;
    for number in 0..count {
        writer
            .write(&format!("key {}", number % keys), json!(number))
            .await;
    }
    for _ in 0..count {
        reader.next_op().await;
    }
}

/// Returns a stopped server whose log has 40 ops of `demo` on 4 keys, 3 ops of `other`, and the
/// generation of each of its 2 shards.
async fn stopped() -> Server {
    let mut server = Server::start().await;
    write(&server, "demo", 40, 4).await;
    write(&server, "other", 3, 3).await;
    server.stop().await;
    server
}

/// Returns the path of the segment that contains the workspace `demo`.
fn demo_segment(data_dir: &Path) -> PathBuf {
    files::find(data_dir, "demo").0
}

/// Returns every file of a data directory with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if !path.ends_with("LOCK") {
            let bytes = std::fs::read(&path).expect("a readable file");
            found.insert(path, bytes);
        }
    }
    found
}

// ---- stat ----

#[tokio::test]
async fn stat_counts_records_live_and_dead() {
    let server = stopped().await;
    let text = tool_output(server.data_dir(), &["stat", "--json"]).await;
    let stat = parse(&text);
    assert_eq!(stat["records"], 43 + 2);
    assert_eq!(stat["segments"], 2);
    assert_eq!(stat["workspaces_total"], 2);
    let bytes: usize = files::segments(server.data_dir())
        .iter()
        .map(|path| files::log_len(&std::fs::read(path).expect("a segment")))
        .sum();
    assert_eq!(stat["bytes"], bytes);
    let folders = stat["folders"].as_array().expect("an array");
    let names: Vec<_> = folders.iter().map(|folder| &folder["folder"]).collect();
    assert_eq!(names, ["shard-00", "shard-01"]);
    for field in ["segments", "records", "bytes", "live_bytes", "dead_bytes"] {
        let sum: u64 = folders
            .iter()
            .filter_map(|folder| folder[field].as_u64())
            .sum();
        assert_eq!(stat[field], sum, "{field}");
    }
    let demo = &stat["workspaces"][0];
    // A record is 29 bytes plus `demo`, `key N` and a number.
    let expected = json!({
        "workspace": "demo", "keys": 4, "tombstones": 0, "last_seq": 40, "floor": null, "records": 40,
        "bytes": 40 * 38 + 10 + 2 * 30, "live_bytes": 4 * 40, "dead_bytes": 10 * 39 + 26 * 40,
    });
    assert_eq!(demo, &expected);
    assert_eq!(stat["workspaces"][1]["dead_bytes"], 0);

    let table = tool_output(server.data_dir(), &["stat"]).await;
    for part in [
        "shard-00",
        "shard-01",
        "total",
        "\"demo\"",
        "\"other\"",
        "45",
    ] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
}

#[tokio::test]
async fn stat_lists_the_largest_workspaces_or_all() {
    let mut server = Server::start().await;
    for number in 0..25 {
        let mut client = Client::connect(&server, &format!("room {number}")).await;
        client.write("key", json!("x".repeat(number))).await;
        client.expect_no_answer().await;
    }
    server.stop().await;
    let printed = async |arguments: &[&str]| {
        let stat = parse(&tool_output(server.data_dir(), arguments).await);
        let workspaces = stat["workspaces"].as_array().expect("an array").clone();
        let names = workspaces.iter().map(|one| {
            one["workspace"]
                .as_str()
                .expect("the id is a string")
                .to_owned()
        });
        names.collect::<Vec<_>>()
    };
    let largest = printed(&["stat", "--json"]).await;
    assert_eq!((largest.len(), largest[0].as_str()), (20, "room 24"));
    assert_eq!(printed(&["stat", "--json", "--all"]).await.len(), 25);
    let table = tool_output(server.data_dir(), &["stat"]).await;
    assert!(
        table.ends_with("and 5 more; use --all to list them\n"),
        "{table}"
    );
}

// ---- verify ----

#[tokio::test]
async fn verify_finds_the_first_fault_with_its_file_and_offset() {
    let server = stopped().await;
    let data_dir = server.data_dir();
    let printed = tool_output(data_dir, &["verify"]).await;
    assert!(
        printed.starts_with("the log is intact: 2 segments with 45 records in "),
        "{printed}"
    );
    let path = demo_segment(data_dir);
    let at = files::find(data_dir, "demo").1;
    files::flip(&path, at);
    // A record has 29 bytes before its texts.
    let expected = format!("error: {} is damaged at byte {}: ", path.display(), at - 29);
    let outcome = tool(data_dir, &["verify"]).await;
    let line = outcome.expect_refusal();
    assert!(line.starts_with(&expected), "{line}");
    let command = format!("etherply log repair --data-dir {}", data_dir.display());
    assert!(line.ends_with(&command), "{line}");
    assert_eq!(outcome.stdout, "");
}

#[tokio::test]
async fn a_torn_tail_is_reported_but_is_not_an_error() {
    let mut server = Server::start().await;
    write(&server, "demo", 10, 4).await;
    server.kill9();
    let path = demo_segment(server.data_dir());
    let whole_len = files::log_len(&std::fs::read(&path).expect("a segment"));
    files::append_to_log(&path, &[7; 11]);
    let printed = tool_output(server.data_dir(), &["verify"]).await;
    let tail = format!(
        "{} ends with an unfinished batch (11 bytes from byte {})",
        path.display(),
        whole_len
    );
    assert!(printed.contains(&tail), "{printed}");
    let table = tool_output(server.data_dir(), &["stat"]).await;
    assert!(table.contains(&tail), "{table}");
    let stat = parse(&tool_output(server.data_dir(), &["stat", "--json"]).await);
    let tails = stat["folders"].as_array().expect("an array").iter();
    let tails: Vec<_> = tails
        .map(|folder| &folder["torn_tail"])
        .filter(|tail| !tail.is_null())
        .collect();
    let expected = json!({"file": path.display().to_string(), "offset": whole_len, "bytes": 11});
    assert_eq!(tails, [&expected]);
    // The command cuts nothing off; only a start does that.
    assert_eq!(
        std::fs::read(&path).expect("a segment").len(),
        whole_len + 11
    );
}

/// Alters a log as if a second server had truncated a segment while the first kept writing.
#[tokio::test]
async fn records_beyond_the_end_of_a_segment_have_their_own_exit_code() {
    let mut server = Setup::new().shards(1).start().await;
    write(&server, "demo", 10, 4).await;
    server.kill9();
    let path = demo_segment(server.data_dir());
    let whole = std::fs::read(&path).expect("a segment");
    let end = whole.windows(4).rposition(|bytes| bytes == b"\xFFEPB");
    let end = end.expect("the log has batches");
    let last_ops = whole[end..]
        .windows(4)
        .filter(|bytes| bytes == b"demo")
        .count();
    files::cut(&path, end);
    server.restart(1).await;
    write(&server, "other", 2, 2).await;
    server.stop().await;
    tool_output(server.data_dir(), &["verify"]).await;
    std::fs::write(&path, &whole).expect("a writable segment");

    let records = if last_ops == 1 {
        "1 record".to_owned()
    } else {
        format!("{last_ops} records")
    };
    let line = format!(
        "{} has {records} past its end at byte {end} (not served): ",
        path.display()
    );
    for command in [&["verify"][..], &["repair"]] {
        let outcome = tool(server.data_dir(), command).await;
        assert_eq!(outcome.code, Some(3), "{outcome:?}");
        assert_eq!(outcome.stderr, "", "{outcome:?}");
        assert!(
            outcome.stdout.contains("the log is intact: 2 segments"),
            "{outcome:?}"
        );
        assert!(
            outcome.stdout.contains(&line),
            "{line} is missing in {outcome:?}"
        );
    }
    let table = tool_output(server.data_dir(), &["stat"]).await;
    assert!(table.contains(&line), "{line} is missing in {table}");
    let stat = parse(&tool_output(server.data_dir(), &["stat", "--json"]).await);
    let expected =
        json!([{"file": path.display().to_string(), "offset": end, "records": last_ops}]);
    assert_eq!(stat["folders"][0]["beyond"], expected);
    server.restart(1).await;
    let state = state_of(&server, "demo").await;
    assert!(
        !state.values().any(|value| value == 9),
        "the records are served: {state:?}"
    );
}

// ---- dump ----

#[tokio::test]
async fn dump_prints_each_op_as_sent_in_seq_order() {
    const SPELLINGS: [&str; 5] = [
        "1.0",
        "12345678901234567890",
        r#""\u00e9 \"quoted\"""#,
        r#"{ "a" :  [1, 2 ] }"#,
        "null",
    ];
    let mut server = Setup::new().shards(1).start().await;
    let mut timestamps = Vec::new();
    // Different shard counts, so that the workspace moves between folders.
    for shards in [3, 1, 2] {
        let mut client = Client::connect(&server, "a \"room\"").await;
        for spelling in SPELLINGS {
            timestamps.push(client.write_spelled("key \"1\"", spelling).await);
        }
        client.expect_no_answer().await;
        server.stop().await;
        server.restart(shards).await;
    }
    server.stop().await;
    let printed = tool_output(server.data_dir(), &["dump", "--workspace", "a \"room\""]).await;
    let (generations, ops): (Vec<&str>, Vec<&str>) = printed
        .lines()
        .partition(|line| line.contains(r#""generation":"#));
    let expected = timestamps.iter().enumerate().map(|(number, timestamp)| {
        let (value, seq) = (SPELLINGS[number % SPELLINGS.len()], number + 1);
        format!(
            r#"{{"workspace":"a \"room\"","key":"key \"1\"","value":{value},"seq":{seq},"timestamp":{timestamp}}}"#
        )
    });
    let expected: Vec<String> = expected.collect();
    assert_eq!(ops, expected);
    check_generations(&printed, &generations, SPELLINGS.len());
    let state = tool_output(
        server.data_dir(),
        &["dump", "--workspace", "a \"room\"", "--state"],
    )
    .await;
    assert_eq!(
        state.lines().collect::<Vec<_>>(),
        expected[expected.len() - 1..]
    );
}

/// Checks the generations that a dump prints: a new one before each `ops_count` ops, for a server
/// whose count of shards was 1, then 3, then 1.
fn check_generations(printed: &str, generations: &[&str], ops_count: usize) {
    let places: Vec<usize> = printed
        .lines()
        .enumerate()
        .filter(|(_, line)| generations.contains(line))
        .map(|(place, _)| place)
        .collect();
    assert_eq!(places, [0, ops_count + 1, 2 * (ops_count + 1)], "{printed}");
    let generations: Vec<Value> = generations.iter().map(|line| parse(line)).collect();
    for (generation, shards) in generations.iter().zip([1, 3, 1]) {
        assert_eq!(generation["workspace"], "a \"room\"");
        assert_eq!(generation["shards"], shards);
        let shard = generation["shard"].as_u64().expect("the shard's number");
        assert!(shard < shards, "{generation}");
    }
    let ids = generations.iter().map(|generation| {
        let id = generation["generation"].as_str().expect("the id is text");
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        assert!(id.len() == 16 && id.bytes().all(is_hex), "{id}");
        id
    });
    let ids: BTreeSet<&str> = ids.collect();
    assert_eq!(ids.len(), generations.len(), "each has an id of its own");
}

#[tokio::test]
async fn dump_prints_a_multi_line_value_on_one_line() {
    let mut server = Server::start().await;
    let mut client = Client::connect(&server, "room").await;
    client.write_spelled("key", "[1,\r\n2]").await;
    client.expect_no_answer().await;
    server.stop().await;
    let printed = tool_output(server.data_dir(), &["dump", "--workspace", "room"]).await;
    assert!(printed.contains(r#""value":[1,  2],"#), "{printed}");
    let lines = lines(&printed);
    assert_eq!(lines.len(), 2, "a generation and an op: {printed}");
    assert_eq!(lines[1]["value"], json!([1, 2]));
}

#[tokio::test]
async fn dump_of_the_state_matches_what_a_client_receives() {
    let mut server = stopped().await;
    let printed = tool_output(
        server.data_dir(),
        &["dump", "--workspace", "demo", "--state"],
    )
    .await;
    server.restart(2).await;
    let pairs = lines(&printed).into_iter().map(|mut line| {
        let key = line["key"].as_str().expect("a key").to_owned();
        (key, line["value"].take())
    });
    let state: serde_json::Map<String, Value> = pairs.collect();
    assert_eq!(state, state_of(&server, "demo").await);
    assert_eq!(state.len(), 4);
}

#[tokio::test]
async fn dump_of_an_unknown_workspace_says_so() {
    let server = stopped().await;
    let outcome = tool(server.data_dir(), &["dump", "--workspace", "nowhere"]).await;
    let line = outcome.expect_refusal();
    assert!(
        line.starts_with(r#"error: no workspace "nowhere" in this log"#),
        "{line}"
    );
    assert_eq!(outcome.stdout, "");
}

#[tokio::test]
async fn a_closed_pipe_is_not_an_error() {
    let mut server = Server::start().await;
    let mut client = Client::connect(&server, "room").await;
    for number in 0..40 {
        client
            .write(&format!("key {number}"), json!("x".repeat(20_000)))
            .await;
    }
    client.expect_no_answer().await;
    server.stop().await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_etherply"))
        .args(["log", "dump", "--workspace", "room", "--data-dir"])
        .arg(server.data_dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // The pipe holds less than the whole dump: with the reader gone, a write fails.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the process exits");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

// ---- a running server ----

#[tokio::test]
async fn a_running_servers_log_is_read_without_a_false_alarm() {
    let server = Server::start().await;
    let mut client = Client::connect(&server, "demo").await;
    // The op is in the log once another client receives it.
    let mut reader = Client::connect(&server, "demo").await;
    let first = client.write("first", json!(0)).await;
    reader.expect_op(&first).await;
    drop(reader);
    let writer = tokio::spawn(async move {
        for number in 0..4000 {
            client
                .write(&format!("key {}", number % 50), json!("y".repeat(3000)))
                .await;
            if number % 100 == 99 {
                client.expect_no_answer().await;
            }
        }
        client
    });
    let mut last_seq = 0;
    for _ in 0..12 {
        tool_output(server.data_dir(), &["verify"]).await;
        let stat = parse(&tool_output(server.data_dir(), &["stat", "--json"]).await);
        let seq = stat["workspaces"][0]["last_seq"]
            .as_u64()
            .expect("a number");
        assert!(seq >= last_seq, "{seq} after {last_seq}");
        let dump = tool_output(server.data_dir(), &["dump", "--workspace", "demo"]).await;
        let lines = lines(&dump);
        let (generation, ops) = lines.split_first().expect("the dump has lines");
        assert!(generation["generation"].is_string(), "{generation}");
        let seqs = ops
            .iter()
            .map(|line| line["seq"].as_u64().expect("a number"));
        let seqs: Vec<u64> = seqs.collect();
        assert!(seqs.is_sorted(), "{seqs:?}");
        last_seq = *seqs.last().expect("the dump has ops");
        assert!(last_seq >= seq, "{last_seq} after {seq}");
    }
    let mut client = writer.await.expect("the writer task succeeds");
    client.expect_no_answer().await;
    assert_eq!(server.get("/readyz").await.status, 200);
    let stat = parse(&tool_output(server.data_dir(), &["stat", "--json"]).await);
    assert_eq!(stat["workspaces"][0]["last_seq"], 4001);
}

#[tokio::test]
async fn commands_that_change_the_log_refuse_if_a_server_is_running() {
    let server = Server::start().await;
    write(&server, "demo", 3, 1).await;
    let before = contents(server.data_dir());
    for arguments in [&["repair", "--yes"][..], &["compact"]] {
        let outcome = tool(server.data_dir(), arguments).await;
        let line = outcome.expect_refusal();
        assert!(line.contains("is in use by another server"), "{line}");
    }
    assert_eq!(contents(server.data_dir()), before);
}

// ---- repair ----

#[tokio::test]
async fn repair_keeps_intact_data_and_the_server_starts() {
    let mut server = stopped().await;
    let data_dir = server.data_dir().to_path_buf();
    let (path, at) = files::find(&data_dir, "demo");
    files::flip(&path, at);
    let refused = server.setup().run().await;
    assert!(
        refused.expect_refusal().contains("etherply log repair"),
        "{refused:?}"
    );

    let before = contents(&data_dir);
    let outcome = tool(&data_dir, &["repair"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("pass --yes"), "{outcome:?}");
    assert_eq!(
        contents(&data_dir),
        before,
        "without confirmation, nothing changes"
    );

    let printed = tool_output(&data_dir, &["repair", "--yes"]).await;
    let short = path
        .strip_prefix(&data_dir)
        .expect("the log has a file")
        .display()
        .to_string();
    for part in [
        &format!("{short}: damaged"),
        &format!("bytes {} to {} are lost", at - 29, at + 9),
        "workspace \"demo\": seq 1\n",
        "damaged-1",
        // 42 ops, the generations of the shards, and the one that the repair begins.
        "repaired\nthe log is intact: 2 segments with 45 records",
    ] {
        assert!(printed.contains(part), "{part} is missing in\n{printed}");
    }
    let aside = data_dir.join("damaged-1").join(&short);
    assert_eq!(
        std::fs::read(aside).expect("the file is set aside"),
        before[&path]
    );
    tool_output(&data_dir, &["verify"]).await;
    let again = tool_output(&data_dir, &["repair"]).await;
    assert!(again.starts_with("nothing to repair"), "{again}");

    server.restart(2).await;
    let state = state_of(&server, "demo").await;
    assert_eq!(state.len(), 4);
    for number in 36..40 {
        assert_eq!(state[&format!("key {}", number % 4)], number);
    }
    write(&server, "demo", 4, 4).await;
    server.stop().await;
    tool_output(&data_dir, &["verify"]).await;
}

/// A function that damages a data directory.
type Damage = fn(&Path);

#[tokio::test]
async fn repair_fixes_each_kind_of_damage() {
    let damages: [(&str, Damage); 6] = [
        ("a lost meta.json", |data| {
            std::fs::remove_file(data.join("meta.json")).expect("the file exists");
        }),
        ("a segment header", |data| {
            files::flip(&demo_segment(data), 20);
        }),
        ("a missing segment", |data| {
            std::fs::remove_file(demo_segment(data)).expect("the file exists");
        }),
        ("another name", |data| {
            let path = demo_segment(data);
            std::fs::rename(&path, path.with_file_name("copy.aof")).expect("the file exists");
        }),
        ("a file that is not a segment", |data| {
            let path = demo_segment(data).with_file_name("0000000009.aof");
            std::fs::write(path, "nothing").expect("a writable folder");
        }),
        ("zeros", |data| {
            let (path, at) = files::find(data, "demo");
            let mut bytes = std::fs::read(&path).expect("a segment");
            bytes[at..at + 100].fill(0);
            std::fs::write(&path, bytes).expect("a writable segment");
        }),
    ];
    for (name, damage) in damages {
        let mut server = stopped().await;
        // This leaves two segments with `demo` in them. The damage is in the last one.
        server.restart(2).await;
        write(&server, "demo", 4, 4).await;
        server.stop().await;
        let data_dir = server.data_dir().to_path_buf();
        damage(&data_dir);
        tool_output(&data_dir, &["repair", "--yes"]).await;
        tool_output(&data_dir, &["verify"]).await;
        server.restart(2).await;
        let state = state_of(&server, "demo").await;
        assert_eq!(state.len(), 4, "{name}");
    }
}

/// Covers a missing segment that was the only one, so that no other segment refers to it.
#[tokio::test]
async fn a_shard_without_its_only_segment_prevents_startup_until_repaired() {
    let damages: [Damage; 2] = [
        |segment| std::fs::remove_file(segment).expect("the file exists"),
        |segment| {
            let folder = segment.parent().expect("the segment has a parent");
            std::fs::remove_dir_all(folder).expect("the file exists");
        },
    ];
    for damage in damages {
        let mut server = stopped().await;
        let data_dir = server.data_dir().to_path_buf();
        let segment = demo_segment(&data_dir);
        damage(&segment);
        let expected = format!("{} is damaged at byte 0: all segments", segment.display());
        let start = server.setup().run().await;
        let printed = tool(&data_dir, &["verify"]).await;
        for outcome in [start, printed] {
            let line = outcome.expect_refusal();
            assert!(line.contains(&expected), "{expected} is missing in {line}");
            assert!(line.contains("etherply log repair"), "{line}");
        }
        let printed = tool_output(&data_dir, &["repair", "--yes"]).await;
        assert!(printed.contains("missing"), "{printed}");
        server.restart(2).await;
        assert_eq!(state_of(&server, "demo").await.len(), 0);
        write(&server, "demo", 4, 4).await;
        server.stop().await;
        tool_output(&data_dir, &["verify"]).await;
    }
}

#[tokio::test]
async fn repair_asks_for_confirmation_on_a_terminal() {
    let server = stopped().await;
    let data_dir = server.data_dir().display().to_string();
    let path = demo_segment(server.data_dir());
    files::flip(&path, files::find(server.data_dir(), "demo").1);
    let binary = env!("CARGO_BIN_EXE_etherply");
    let asked = async |answer: &str| {
        let line = format!(
            "echo {answer} | script -qec '{binary} log repair --data-dir {data_dir}' /dev/null"
        );
        let output = Command::new("sh")
            .args(["-c", &line])
            .output()
            .expect("a shell");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let has_script = Command::new("script").arg("--version").output();
    if !has_script.is_ok_and(|output| output.status.success()) {
        skipped("script(1), which provides a terminal, is not installed");
        return;
    }
    let before = contents(server.data_dir());
    for answer in ["n", "", "never"] {
        let printed = asked(answer).await;
        assert!(
            printed.contains("Continue? [y/N]") && printed.contains("nothing was changed"),
            "{printed}"
        );
        assert_eq!(contents(server.data_dir()), before);
    }
    let printed = asked("y").await;
    assert!(printed.contains("repaired"), "{printed}");
    tool_output(server.data_dir(), &["verify"]).await;
}

// ---- compact ----

#[tokio::test]
async fn compact_keeps_only_the_state() {
    let mut server = Server::start().await;
    write(&server, "demo", 400, 4).await;
    server.kill9();
    let data_dir = server.data_dir().to_path_buf();
    files::append_to_log(&demo_segment(&data_dir), &[7; 5]);
    let printed = tool_output(&data_dir, &["compact"]).await;
    assert!(
        printed.contains("a torn tail of 5 bytes was cut off"),
        "{printed}"
    );
    let stat = parse(&tool_output(&data_dir, &["stat", "--json"]).await);
    // The generation of each shard is kept.
    assert_eq!(
        (&stat["records"], &stat["dead_bytes"]),
        (&json!(4 + 2), &json!(0))
    );
    assert_eq!(stat["workspaces"][0]["last_seq"], 400);
    tool_output(&data_dir, &["verify"]).await;
    server.restart(3).await;
    let state = state_of(&server, "demo").await;
    let expected: Vec<_> = (396..400).map(|number| json!(number)).collect();
    assert_eq!(state.values().cloned().collect::<Vec<_>>(), expected);
}

// ---- the command line ----

#[tokio::test]
async fn folders_that_are_not_data_directories_are_left_alone() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    for path in [folder.path().to_path_buf(), folder.path().join("missing")] {
        for command in [
            &["stat"][..],
            &["verify"],
            &["dump", "--workspace", "w"],
            &["repair", "--yes"],
            &["compact"],
        ] {
            let outcome = tool(&path, command).await;
            let line = outcome.expect_refusal();
            assert!(line.contains("is not a server's data directory"), "{line}");
            assert!(line.contains("--data-dir"), "{line}");
        }
    }
    assert_eq!(
        std::fs::read_dir(folder.path())
            .expect("the folder exists")
            .count(),
        0
    );
}

#[tokio::test]
async fn the_data_directory_comes_from_the_flag_or_the_variable() {
    let server = stopped().await;
    let data_dir = server.data_dir().display().to_string();
    let by_variable = Setup::new().env("ETHERPLY_DATA_DIR", &data_dir);
    let before = Setup::new();
    for outcome in [
        by_variable.run_only(&["log", "verify"]).await,
        before
            .run_only(&["log", "--data-dir", &data_dir, "verify"])
            .await,
    ] {
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_wrong_log_command_is_a_usage_error() {
    for (arguments, part) in [
        (&["log"][..], "log"),
        (&["log", "mend"], "mend"),
        (&["log", "dump"], "--workspace"),
        (&["log", "stat", "--json=1"], "--json"),
    ] {
        let outcome = Setup::new().run_only(arguments).await;
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(part), "{outcome:?}");
    }
    let help = Setup::new().run_only(&["log", "--help"]).await;
    for command in [
        "stat",
        "verify",
        "dump",
        "repair",
        "compact",
        "--data-dir",
        "ETHERPLY_DATA_DIR",
    ] {
        assert!(
            help.stdout.contains(command),
            "--help does not list {command}"
        );
    }
}
