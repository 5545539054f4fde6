//! The data directory, or a part of it, is deleted under a running server. The file of the open
//! segment lives on without a name, and its ops are lost when the server exits: none of them may be
//! reported as durable.

use crate::support::client::{Client, Event, Op, state_of};
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, eventually, files};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ALWAYS: &[&str] = &["--durability", "always"];
const INTERVAL: &[&str] = &["--durability", "interval", "--sync-interval-ms", "3600000"];
const NONE: &[&str] = &["--durability", "none"];
const MODES: [&[&str]; 3] = [ALWAYS, INTERVAL, NONE];

/// The folder of the only shard.
const SHARD: &str = "shard-00";

/// A way to delete files, named after what remains of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    AnEmptyFolder,
    AllButTheShard,
    AllButTheOpenSegment,
}

impl Left {
    fn delete_the_rest(self, data_dir: &Path) {
        match self {
            Left::Nothing => std::fs::remove_dir_all(data_dir),
            Left::AnEmptyFolder => {
                std::fs::remove_dir_all(data_dir).and_then(|()| std::fs::create_dir(data_dir))
            }
            Left::AllButTheShard => std::fs::remove_dir_all(data_dir.join(SHARD)),
            Left::AllButTheOpenSegment => {
                let open_segment = files::segments(data_dir).pop();
                std::fs::remove_file(open_segment.expect("a segment is open"))
            }
        }
        .expect("the test can delete the files");
    }
}

/// A server with one shard and some ops in its log, and a backup made before some of those ops.
struct Scene {
    server: Server,
    data_dir: PathBuf,
    backup: BTreeMap<PathBuf, Vec<u8>>,
    in_backup: Map<String, Value>,
}

/// A writer, and a client that receives its ops.
struct Pair {
    writer: Client,
    witness: Client,
}

impl Scene {
    async fn new(mode: &[&str]) -> (Scene, Pair) {
        let setup = Setup::new().shards(1).args(mode);
        let mut server = setup.args(&["--drain-ms", "100"]).start().await;
        let mut writer = Client::connect(&server, "room").await;
        for number in 0..10 {
            writer.write(&format!("k{number}"), json!(number)).await;
        }
        writer.expect_no_answer().await;
        writer.close().await;
        let in_backup = state_of(&server, "room").await;
        assert_eq!(in_backup.len(), 10);
        server.stop().await;
        let data_dir = server.data_dir().to_path_buf();
        let backup = files::image(&data_dir);

        server.restart(1).await;
        let mut pair = Pair {
            writer: Client::connect(&server, "room").await,
            witness: Client::connect(&server, "room").await,
        };
        pair.write("after the backup", json!(1)).await;
        let scene = Scene {
            server,
            data_dir,
            backup,
            in_backup,
        };
        (scene, pair)
    }

    async fn check_failed(&self) {
        let server = &self.server;
        server.until_ready_is(503).await;
        let answer = server.handshake(&Server::sync_path("room")).await;
        assert_eq!(answer.status, 500, "{answer:?}");
        assert_eq!(
            server.get("/healthz").await.status,
            200,
            "/healthz does not return 200"
        );
        // A write that ends during the deletion may find LOCK gone and the segment still present.
        let path = server.data_dir().display().to_string();
        let words = ["the log cannot be written", &path, "was deleted", "start"];
        server.log_line(&words).await;
        let path = server.data_dir().join(SHARD).display().to_string();
        let words = [
            "the shard cannot serve yet",
            &path,
            "was deleted",
            "backup",
            "start the server again",
        ];
        server.log_line(&words).await;
    }

    async fn end(&mut self) {
        self.server.terminate();
        let code = self.server.exit_code_within(PATIENCE).await;
        assert!(
            matches!(code, Some(0 | 1)),
            "{code:?}: {}",
            self.server.log()
        );
    }

    async fn check_the_backup_is_served(&mut self) {
        files::put_back(&self.data_dir, &self.backup);
        for shards in [1, 2] {
            self.server.restart(shards).await;
            let state = state_of(&self.server, "room").await;
            assert_eq!(state, self.in_backup, "with {shards} shards");
            self.server.kill9();
        }
    }
}

impl Pair {
    async fn write(&mut self, key: &str, value: Value) {
        let op = self.writer.write(key, value).await;
        self.witness.expect_op(&op).await;
    }

    /// Keeps writing until the server has noticed the deletion. Modes that show an op before it is
    /// written show some ops until then.
    async fn write_until_it_is_noticed(mut self, mode: &[&str], server: &Server) {
        for number in 0.. {
            assert!(number < 1000, "ops are still written to a deleted file");
            let key = format!("after {number}");
            let op = self.writer.write(&key, json!(number)).await;
            match self.witness.event().await {
                Event::Text(text) => {
                    assert_eq!(Op::parse(&text), Some(op));
                    assert_ne!(mode, ALWAYS, "{text} was delivered but is not stored");
                }
                Event::Close(1011, _) => break,
                event => panic!("expected a close with 1011, got {event:?}"),
            }
        }
        // The check that runs once a second may run before the op; the op was then never accepted.
        let log = server.log();
        if mode == ALWAYS && !log.contains("(data directory: ") {
            let text = self.writer.expect_error(500).await;
            assert_eq!(
                text, "Internal Server Error",
                "the sender received another reason"
            );
        }
        assert_eq!(self.writer.close_code().await, 1011);
    }
}

async fn check(mode: &[&str], left: Left) {
    println!("{mode:?}, left: {left:?}");
    let (mut scene, pair) = Scene::new(mode).await;
    left.delete_the_rest(&scene.data_dir);
    let rest = files::image(&scene.data_dir);
    pair.write_until_it_is_noticed(mode, &scene.server).await;
    scene.check_failed().await;
    scene.end().await;
    assert_eq!(
        files::image(&scene.data_dir),
        rest,
        "files left by the server would get in the way of a restore"
    );
    if left != Left::Nothing {
        Left::Nothing.delete_the_rest(&scene.data_dir);
    }
    scene.check_the_backup_is_served().await;
}

#[tokio::test]
async fn a_data_directory_deleted_under_the_server_stops_service_in_every_mode() {
    for mode in MODES {
        check(mode, Left::Nothing).await;
    }
}

#[tokio::test]
async fn a_data_directory_emptied_under_the_server_stops_service_in_every_mode() {
    for mode in MODES {
        check(mode, Left::AnEmptyFolder).await;
    }
}

#[tokio::test]
async fn a_shard_folder_deleted_under_the_server_stops_service_in_every_mode() {
    for mode in MODES {
        check(mode, Left::AllButTheShard).await;
    }
}

#[tokio::test]
async fn an_open_segment_deleted_under_the_server_stops_service_in_every_mode() {
    for mode in MODES {
        check(mode, Left::AllButTheOpenSegment).await;
    }
}

#[tokio::test]
async fn a_backup_restored_under_the_running_server_is_not_modified() {
    for mode in MODES {
        let (mut scene, pair) = Scene::new(mode).await;
        Left::Nothing.delete_the_rest(&scene.data_dir);
        files::put_back(&scene.data_dir, &scene.backup);
        pair.write_until_it_is_noticed(mode, &scene.server).await;
        scene.check_failed().await;
        scene.end().await;
        assert_eq!(files::image(&scene.data_dir), scene.backup, "{mode:?}");
        scene.check_the_backup_is_served().await;
    }
}

#[tokio::test]
async fn a_copy_of_the_running_log_restored_under_the_same_names_is_not_modified() {
    let (mut scene, mut pair) = Scene::new(ALWAYS).await;
    scene.backup = files::image(&scene.data_dir);
    scene.in_backup = state_of(&scene.server, "room").await;
    pair.write("after the copy", json!(1)).await;
    Left::Nothing.delete_the_rest(&scene.data_dir);
    files::put_back(&scene.data_dir, &scene.backup);
    pair.write_until_it_is_noticed(ALWAYS, &scene.server).await;
    scene.check_failed().await;
    scene.end().await;
    assert_eq!(files::image(&scene.data_dir), scene.backup);
    scene.check_the_backup_is_served().await;
}

// ---- without writes ----

/// One way to damage the data directory of an idle server, and the way to undo it.
struct Harm {
    what: &'static str,
    apply: fn(&Path),
    undo: Option<fn(&Path)>,
    /// The words that the server's message must contain.
    words: &'static [&'static str],
}

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).expect("the test can rename the files");
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("aside")
}

const HARMS: &[Harm] = &[
    Harm {
        what: "LOCK is deleted",
        apply: |data_dir| std::fs::remove_file(data_dir.join("LOCK")).expect("the file exists"),
        undo: None,
        words: &["LOCK was deleted or replaced", "stop every server"],
    },
    Harm {
        what: "LOCK is replaced",
        apply: |data_dir| {
            let lock = data_dir.join("LOCK");
            std::fs::copy(&lock, aside(&lock)).expect("the file exists");
            rename(&aside(&lock), &lock);
        },
        undo: None,
        words: &["LOCK was deleted or replaced", "stop every server"],
    },
    Harm {
        what: "the data directory is moved away",
        apply: |data_dir| rename(data_dir, &aside(data_dir)),
        undo: Some(|data_dir| rename(&aside(data_dir), data_dir)),
        words: &["was deleted or moved", "move the data directory back"],
    },
    Harm {
        what: "the data directory is moved away and recreated",
        apply: |data_dir| {
            rename(data_dir, &aside(data_dir));
            std::fs::create_dir(data_dir).expect("the folder can be created");
        },
        undo: Some(|data_dir| {
            std::fs::remove_dir(data_dir).expect("the folder is still empty");
            rename(&aside(data_dir), data_dir);
        }),
        words: &["was deleted or moved", "move the data directory back"],
    },
    Harm {
        what: "the shard's folder is moved away",
        apply: |data_dir| rename(&data_dir.join(SHARD), &data_dir.join("aside")),
        undo: Some(|data_dir| rename(&data_dir.join("aside"), &data_dir.join(SHARD))),
        words: &["was deleted or moved", "move the data directory back"],
    },
    Harm {
        what: "the shard's folder is replaced by a copy",
        apply: |data_dir| {
            let shard = data_dir.join(SHARD);
            let image = files::image(&shard);
            rename(&shard, &data_dir.join("aside"));
            files::put_back(&shard, &image);
        },
        undo: None,
        words: &["was deleted or moved", "move the data directory back"],
    },
];

#[tokio::test]
async fn an_idle_server_notices_that_its_data_directory_is_missing() {
    for Harm {
        what,
        apply,
        undo,
        words,
    } in HARMS
    {
        println!("{what}");
        let (mut scene, mut pair) = Scene::new(ALWAYS).await;
        let state = state_of(&scene.server, "room").await;
        apply(&scene.data_dir);
        scene.server.until_ready_is(503).await;
        assert_eq!(pair.witness.close_code().await, 1011);
        scene.server.log_line(words).await;
        let answer = scene.server.handshake(&Server::sync_path("room")).await;
        assert_eq!(answer.status, 500, "{answer:?}");
        let Some(undo) = undo else {
            scene.end().await;
            continue;
        };
        undo(&scene.data_dir);
        scene.server.until_ready_is(200).await;
        assert_eq!(state_of(&scene.server, "room").await, state, "{what}");
        scene.server.stop().await;
        scene.server.restart(1).await;
        assert_eq!(state_of(&scene.server, "room").await, state, "{what}");
    }
}

#[tokio::test]
async fn no_op_is_delivered_after_the_lock_file_is_deleted() {
    let (mut scene, pair) = Scene::new(ALWAYS).await;
    std::fs::remove_file(scene.data_dir.join("LOCK")).expect("the file exists");
    pair.write_until_it_is_noticed(ALWAYS, &scene.server).await;
    scene.end().await;
}

#[tokio::test]
async fn without_the_lock_file_a_second_server_is_refused_and_no_delivered_op_is_lost() {
    let (mut scene, pair) = Scene::new(ALWAYS).await;
    drop(pair);
    let state = state_of(&scene.server, "room").await;
    let before = files::image(&scene.data_dir.join(SHARD));
    std::fs::remove_file(scene.data_dir.join("LOCK")).expect("the file exists");
    let second = scene.server.setup().run().await;
    let line = second.expect_refusal();
    assert!(
        line.contains("is in use by another server (pid unknown)"),
        "{line}"
    );
    let data_dir = scene.data_dir.display().to_string();
    for tool in [&["log", "compact"][..], &["log", "repair", "--yes"]] {
        let outcome = Setup::new()
            .run_only(&[tool, &["--data-dir", &data_dir]].concat())
            .await;
        let line = outcome.expect_refusal();
        assert!(line.contains("is in use by another server"), "{line}");
    }
    assert_eq!(files::image(&scene.data_dir.join(SHARD)), before);
    scene.end().await;
    scene.server.restart(1).await;
    assert_eq!(state_of(&scene.server, "room").await, state);
}

/// Deletes everything while nothing is in flight, stops the server, and returns its log.
async fn log_of_stop_after_deletion(mode: &[&str]) -> String {
    let (mut scene, pair) = Scene::new(mode).await;
    drop(pair);
    eventually("the last op is written", async || {
        let bytes = std::fs::read(files::segments(&scene.data_dir).pop()?).ok()?;
        let key = b"after the backup";
        bytes
            .windows(key.len())
            .find(|part| part == key)
            .map(|_| ())
    })
    .await;
    assert_eq!(scene.server.get("/readyz").await.status, 200);
    Left::AnEmptyFolder.delete_the_rest(&scene.data_dir);
    scene.end().await;
    assert!(files::image(&scene.data_dir).is_empty(), "{mode:?}");
    let log = scene.server.log();
    assert!(log.contains("was deleted"), "{mode:?}: {log}");
    scene.check_the_backup_is_served().await;
    log
}

#[tokio::test]
async fn a_server_whose_data_directory_was_deleted_unnoticed_stops_promptly() {
    for (mode, operation) in [
        (ALWAYS, "(write: "),
        (INTERVAL, "(fdatasync: "),
        (NONE, "(fdatasync: "),
    ] {
        // The write of the last op may not have completed yet, or the periodic check may run first:
        // the deletion is then noticed there.
        for attempt in 0.. {
            assert!(
                attempt < 10,
                "{mode:?}: operations on a deleted file still succeed"
            );
            let log = log_of_stop_after_deletion(mode).await;
            if log.contains(operation) {
                break;
            }
        }
    }
}

/// Returns a scene in which the next op needs a new segment before anything is written.
async fn scene_at_segment_end() -> (Scene, Pair) {
    // The size of a segment with as little live data as here (src/limits.rs).
    const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
    let (scene, mut pair) = Scene::new(ALWAYS).await;
    let open_segment = files::segments(&scene.data_dir).pop();
    let open_segment = open_segment.expect("a segment is open");
    let filler = "f".repeat(1_000_000);
    while open_segment.metadata().expect("the file exists").len() < SEGMENT_BYTES {
        pair.write("filler", json!(filler)).await;
    }
    (scene, pair)
}

#[tokio::test]
async fn after_a_deletion_no_segment_is_created_without_its_predecessors() {
    let (mut scene, pair) = scene_at_segment_end().await;
    Left::AnEmptyFolder.delete_the_rest(&scene.data_dir);
    pair.write_until_it_is_noticed(ALWAYS, &scene.server).await;
    scene.check_failed().await;
    scene.end().await;
    let left = files::image(&scene.data_dir);
    assert!(left.is_empty(), "unexpected files: {:?}", left.keys());
    scene.check_the_backup_is_served().await;
}

#[tokio::test]
async fn a_log_that_was_moved_away_does_not_continue_in_its_replacement() {
    let (mut scene, pair) = scene_at_segment_end().await;
    let elsewhere = scene.data_dir.with_extension("moved");
    std::fs::rename(&scene.data_dir, &elsewhere).expect("the folder can be renamed");
    files::put_back(&scene.data_dir, &scene.backup);
    pair.write_until_it_is_noticed(ALWAYS, &scene.server).await;
    scene.check_failed().await;
    scene.end().await;
    assert_eq!(files::image(&scene.data_dir), scene.backup);
    scene.check_the_backup_is_served().await;
}
