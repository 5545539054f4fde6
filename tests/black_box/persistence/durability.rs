//! The durability promise, and what the data directory survives: crashes, stops, torn tails,
//! damage, foreign files.

use crate::support::client::{Client, Op, state_of};
use crate::support::files;
use crate::support::server::{Outcome, Server, Setup};
use crate::support::{eventually, stamp};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes these values under `k0`, `k1`, …. Each has reached a witness, and is therefore durable,
/// before the next is sent.
async fn write_one_by_one(server: &Server, values: &[&str]) {
    let mut writer = Client::connect(server, "room").await;
    let mut witness = Client::connect(server, "room").await;
    for (index, value) in values.iter().enumerate() {
        let op = writer.write(&format!("k{index}"), json!(value)).await;
        witness.expect_op(&op).await;
    }
}

async fn state(server: &Server) -> Value {
    json!(state_of(server, "room").await)
}

// ---- always ----

/// P60.
#[tokio::test]
async fn a_delivered_broadcast_survives_kill_9() {
    let mut server = Server::start().await;
    for round in 0..10 {
        let mut writer = Client::connect(&server, "room").await;
        let mut witness = Client::connect(&server, "room").await;
        let op = writer.write("k", json!(round)).await;
        witness.expect_op(&op).await;
        server.kill9();
        server.restart(2).await;
        assert_eq!(state(&server).await, json!({"k": round}));
    }
}

/// P60.
#[tokio::test]
async fn a_delivered_correction_survives_kill_9() {
    let mut server = Server::start().await;
    for round in 0..10 {
        let mut client = Client::connect(&server, "room").await;
        // The two ops are sent back to back, so the correction is due before the winner is durable.
        let winner = Op::new("k", json!(round), stamp());
        client.send_op(&winner).await;
        client.send_op(&Op::new("k", json!("loser"), 1)).await;
        client.expect_op(&winner).await;
        server.kill9();
        server.restart(2).await;
        assert_eq!(state(&server).await, json!({"k": round}));
    }
}

/// P60.
#[tokio::test]
async fn a_delivered_init_survives_kill_9() {
    let mut server = Server::start().await;
    for round in 0..10 {
        let mut writer = Client::connect(&server, "room").await;
        let path = Server::sync_path("room");
        let (joined, ()) = tokio::join!(Client::connect_path(&server, &path), async {
            for number in 0..5 {
                writer.write("k", json!([round, number])).await;
            }
        });
        server.kill9();
        server.restart(2).await;
        let shown = joined.init.get("k").map(ToString::to_string);
        let held = state_of(&server, "room")
            .await
            .get("k")
            .map(ToString::to_string);
        assert!(
            held >= shown,
            "round {round}: {shown:?} was delivered, but the server has {held:?}"
        );
    }
}

// ---- clean stops, in every mode ----

async fn check_survives_sigterm(mode: &[&str]) {
    let mut server = Setup::new().args(mode).start().await;
    let values: Vec<String> = (0..50).map(|number| format!("value {number}")).collect();
    write_one_by_one(
        &server,
        &values.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    let before = state(&server).await;
    assert_eq!(before.as_object().map(serde_json::Map::len), Some(50));
    for shards in [1, 3, 2] {
        server.stop().await;
        server.restart(shards).await;
        assert_eq!(
            state(&server).await,
            before,
            "{mode:?} with {shards} shards"
        );
    }
}

#[tokio::test]
async fn the_state_survives_sigterm_in_always_mode() {
    check_survives_sigterm(&["--durability", "always"]).await;
}

#[tokio::test]
async fn the_state_survives_sigterm_in_interval_mode() {
    check_survives_sigterm(&["--durability", "interval", "--sync-interval-ms", "60000"]).await;
}

#[tokio::test]
async fn the_state_survives_sigterm_in_none_mode() {
    check_survives_sigterm(&["--durability", "none"]).await;
}

/// P61.
#[tokio::test]
async fn interval_mode_broadcasts_immediately_without_waiting_for_the_timer() {
    let server =
        Server::start_with(&["--durability", "interval", "--sync-interval-ms", "3600000"]).await;
    write_one_by_one(&server, &["shown long before an hour has passed"]).await;
}

#[tokio::test]
async fn ops_delivered_right_before_sigterm_are_kept() {
    for mode in ["always", "interval", "none"] {
        let mut server = Server::start_with(&["--durability", mode, "--drain-ms", "200"]).await;
        let mut writer = Client::connect(&server, "room").await;
        let mut witness = Client::connect(&server, "room").await;
        for number in 0..100 {
            writer.write("count", json!(number)).await;
        }
        let last_shown = witness.next_op().await.value.as_u64();
        server.stop().await;
        server.restart(2).await;
        let held = state_of(&server, "room").await["count"].as_u64();
        assert!(
            held >= last_shown,
            "{mode}: {last_shown:?} was delivered, but the server has {held:?}"
        );
    }
}

// ---- shards ----

#[tokio::test]
async fn a_restart_with_another_number_of_shards_redistributes_the_workspaces() {
    let mut server = Setup::new().shards(2).start().await;
    for shards in [1, 3, 2, 5, 1] {
        for room in 0..12 {
            let name = format!("room {room}");
            let mut writer = Client::connect(&server, &name).await;
            let mut witness = Client::connect(&server, &name).await;
            let op = writer.write("k", json!([room, shards])).await;
            witness.expect_op(&op).await;
            let op = writer.write(&format!("with {shards}"), json!(room)).await;
            witness.expect_op(&op).await;
        }
        server.kill9();
        server.restart(shards).await;
        for room in 0..12 {
            let state = state_of(&server, &format!("room {room}")).await;
            assert_eq!(state["k"], json!([room, shards]));
            assert_eq!(state[&format!("with {shards}")], json!(room));
        }
    }
}

// ---- the data directory ----

#[tokio::test]
async fn a_second_server_is_refused_while_the_data_directory_is_locked() {
    let server = Server::start().await;
    let outcome = server.setup().run().await;
    let line = outcome.expect_refusal();
    assert!(
        line.contains(&*server.data_dir().to_string_lossy()),
        "the line does not name the folder: {line}"
    );
    assert!(
        line.contains("lock") || line.contains("another"),
        "the line gives no reason: {line}"
    );
    assert_eq!(
        server.get("/readyz").await.status,
        200,
        "the first server stopped serving"
    );
}

#[tokio::test]
async fn a_lock_left_by_a_killed_server_does_not_block_the_next() {
    let mut server = Server::start().await;
    server.kill9();
    server.restart(2).await;
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn an_unwritable_data_directory_is_refused_and_named() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let file = folder.path().join("a file and no folder");
    std::fs::write(&file, "").expect("the file can be written");
    let data_dir = file.join("data");
    let outcome = Setup::new().in_data_dir(&data_dir).run().await;
    let line = outcome.expect_refusal();
    assert!(
        line.contains("a file and no folder"),
        "the line does not name the folder: {line}"
    );
}

#[tokio::test]
async fn a_data_directory_readable_by_others_is_reported_with_a_remedy() {
    let mode_of = |path: &Path| {
        let meta = std::fs::metadata(path).expect("the file exists");
        meta.permissions().mode() & 0o777
    };
    let mut server = Setup::new().shards(1).prepared("umask 000").start().await;
    write_one_by_one(&server, &["value"]).await;
    let data_dir = server.data_dir().to_path_buf();
    for file in files::image(&data_dir).keys() {
        assert_eq!(mode_of(&data_dir.join(file)), 0o600, "{}", file.display());
    }
    assert_eq!(mode_of(&data_dir), 0o700);
    assert_eq!(mode_of(&data_dir.join("shard-00")), 0o700);
    server.stop().await;
    assert!(!server.log().contains("other users"), "{}", server.log());

    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&data_dir, permissions).expect("the test owns the folder");
    server.restart(1).await;
    let path = data_dir.display().to_string();
    let command = format!("chmod -R o-rwx {path}");
    server
        .log_line(&["WARN", "other users", "mode 0755", &command])
        .await;
    assert_eq!(mode_of(&data_dir), 0o755, "the mode was changed");
    server.stop().await;
}

#[tokio::test]
async fn a_data_directory_in_a_newer_format_is_refused() {
    let mut server = Server::start().await;
    write_one_by_one(&server, &["value"]).await;
    server.stop().await;
    let path = server.data_dir().join("meta.json");
    let text = std::fs::read_to_string(&path).expect("meta.json can be read");
    let mut meta: Value = serde_json::from_str(&text).expect("meta.json is JSON");
    let fields = meta.as_object_mut().expect("meta.json is an object");
    let versions = fields.iter_mut().filter(|(name, value)| {
        value.is_u64() && (name.contains("format") || name.contains("version"))
    });
    let raised = versions.map(|(_, value)| *value = json!(1000)).count();
    assert_eq!(
        raised, 1,
        "meta.json does not have exactly one format version: {text}"
    );
    std::fs::write(&path, meta.to_string()).expect("meta.json can be written");
    let outcome = server.setup().run().await;
    let line = outcome.expect_refusal();
    assert!(
        line.contains("newer") && line.contains("1000"),
        "the line does not say what is wrong: {line}"
    );
    std::fs::write(&path, text).expect("meta.json can be written");
    server.restart(2).await;
    assert_eq!(
        state(&server).await,
        json!({"k0": "value"}),
        "something was changed"
    );
}

// ---- torn tails ----

#[tokio::test]
async fn a_torn_tail_is_truncated_and_reported_with_its_byte_count() {
    let mut server = Setup::new().shards(1).start().await;
    write_one_by_one(&server, &["one", "two", "three"]).await;
    // Bytes that were not written are zeros up to the edge of a sector, or lie past the end of the
    // file.
    for (missing_sectors, written_len) in [(0, 1), (0, 27), (1, 1), (3, 5000)] {
        server.kill9();
        let last = files::segments(server.data_dir())
            .pop()
            .expect("the log has segments");
        let whole = std::fs::read(&last).expect("the segment can be read");
        let edge = files::log_len(&whole) % 512;
        let missing_len = missing_sectors * 512 + if missing_sectors == 0 { 0 } else { 512 - edge };
        let written =
            (0..written_len).map(|index| u8::try_from(index % 251).expect("below 256") | 1);
        let garbage: Vec<u8> = std::iter::repeat_n(0, missing_len).chain(written).collect();
        files::append_to_log(&last, &garbage);
        server.restart(1).await;
        let name = last
            .file_name()
            .expect("a segment has a name")
            .to_string_lossy()
            .into_owned();
        server.log_line(&[&name, &garbage.len().to_string()]).await;
        assert_eq!(
            state(&server).await,
            json!({"k0": "one", "k1": "two", "k2": "three"})
        );
        write_one_by_one(&server, &["one", "two", "three"]).await;
    }
}

#[tokio::test]
async fn a_record_cut_at_any_byte_costs_only_that_record() {
    let mut server = Setup::new().shards(1).start().await;
    write_one_by_one(&server, &["first", "second"]).await;
    server.kill9();
    let (path, at) = files::find(server.data_dir(), "second");
    let whole = std::fs::read(&path).expect("the segment can be read");
    for len in [at - 20, at - 1, at, at + 1, at + 3, at + 5] {
        files::cut(&path, len);
        server.restart(1).await;
        assert_eq!(
            state(&server).await,
            json!({"k0": "first"}),
            "truncated at {len} of {}",
            whole.len()
        );
        server.kill9();
        for segment in files::segments(server.data_dir()) {
            if segment != path {
                std::fs::remove_file(segment).expect("the segment can be removed");
            }
        }
        std::fs::write(&path, &whole).expect("the segment can be written");
    }
    server.restart(1).await;
    assert_eq!(state(&server).await, json!({"k0": "first", "k1": "second"}));
}

#[tokio::test]
async fn ops_written_after_a_torn_tail_survive_the_next_restart() {
    let mut server = Setup::new().shards(1).start().await;
    write_one_by_one(&server, &["old"]).await;
    server.kill9();
    let last = files::segments(server.data_dir())
        .pop()
        .expect("the log has segments");
    files::append(&last, b"half a batch that a crash left");
    server.restart(1).await;
    write_one_by_one(&server, &["new"]).await;
    for shards in [2, 1] {
        server.kill9();
        server.restart(shards).await;
        assert_eq!(state(&server).await, json!({"k0": "new"}));
    }
}

// ---- damage ----

/// Expects that a start on damaged files fails and that the message names the file, an offset
/// shortly before the damage, and the command to run.
fn expect_damage(outcome: &Outcome, path: &Path, damaged_at: usize) {
    let line = outcome.expect_refusal();
    let name = path
        .file_name()
        .expect("a segment has a name")
        .to_string_lossy();
    assert!(
        line.contains(&*name),
        "the line does not name the file {name}: {line}"
    );
    assert!(
        line.contains("etherply log repair"),
        "the line gives no remedy: {line}"
    );
    let numbers = line
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse::<usize>().ok());
    let near = damaged_at.saturating_sub(200)..=damaged_at;
    assert!(
        numbers.into_iter().any(|number| near.contains(&number)),
        "no offset in {near:?} is named: {line}"
    );
}

#[tokio::test]
async fn a_flipped_bit_in_an_earlier_batch_prevents_startup_and_changes_nothing() {
    let mut server = Setup::new().shards(1).start().await;
    write_one_by_one(&server, &["zero", "the damaged one", "two", "three"]).await;
    server.kill9();
    let (path, at) = files::find(server.data_dir(), "the damaged one");
    for offset in [at - 1, at, at + 10] {
        files::flip(&path, offset);
        let damaged = std::fs::read(&path).expect("the segment can be read");
        let outcome = server.setup().run().await;
        expect_damage(&outcome, &path, offset);
        assert_eq!(
            std::fs::read(&path).expect("the segment can be read"),
            damaged,
            "the refused start changed the data directory"
        );
        files::flip(&path, offset);
    }
    server.restart(2).await;
    assert_eq!(
        state(&server).await,
        json!({"k0": "zero", "k1": "the damaged one", "k2": "two", "k3": "three"})
    );
}

/// Until another write follows, no later batch proves that the last one was on disk.
#[tokio::test]
async fn a_flipped_bit_in_the_last_batch_after_a_kill_prevents_startup_and_is_repaired() {
    for mode in ["always", "interval", "none"] {
        let mut server = Setup::new()
            .shards(1)
            .args(&["--durability", mode])
            .start()
            .await;
        write_one_by_one(&server, &["first", "the damaged one"]).await;
        let text = "the damaged one";
        eventually("the op is in the file", async || {
            let segments = files::segments(server.data_dir()).into_iter();
            let mut contents = segments.filter_map(|path| std::fs::read(path).ok());
            let has_it = |bytes: &Vec<u8>| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            };
            contents.any(|bytes| has_it(&bytes)).then_some(())
        })
        .await;
        server.kill9();
        let (path, at) = files::find(server.data_dir(), text);
        for offset in [at, at - 29] {
            files::flip(&path, offset);
            let outcome = server.setup().run().await;
            expect_damage(&outcome, &path, offset);
            let data_dir = server.data_dir().display().to_string();
            let tool = async |arguments: &[&str]| {
                let arguments = [&["log"], arguments, &["--data-dir", &data_dir]].concat();
                Setup::new().run_only(&arguments).await
            };
            expect_damage(&tool(&["verify"]).await, &path, offset);
            if offset == at {
                files::flip(&path, offset);
                continue;
            }
            let repaired = tool(&["repair", "--yes"]).await;
            assert_eq!(repaired.code, Some(0), "{repaired:?}");
            assert!(repaired.stdout.contains("are lost"), "{repaired:?}");
        }
        server.restart(1).await;
        assert_eq!(state(&server).await, json!({"k0": "first"}), "{mode}");
    }
}

#[tokio::test]
async fn a_flipped_bit_before_ops_of_a_later_start_prevents_startup() {
    let mut server = Setup::new().shards(1).start().await;
    write_one_by_one(&server, &["the damaged one"]).await;
    server.kill9();
    server.restart(1).await;
    let mut writer = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    let op = writer.write("later", json!("the later one")).await;
    witness.expect_op(&op).await;
    server.kill9();
    let (path, at) = files::find(server.data_dir(), "the damaged one");
    files::flip(&path, at);
    expect_damage(&server.setup().run().await, &path, at);
}
