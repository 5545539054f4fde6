//! Failures while serving, with the two causes of error 500: a panic, and a log that cannot be
//! written or synced.
//!
//! Faulty disks: a limit on file sizes (EFBIG, no requirements), a full tmpfs (ENOSPC, requires
//! root), and an in-memory disk that refuses writes (EIO, requires root and zram).

use crate::support::client::{Client, Event, Op, error_of, op_text, state_of};
use crate::support::disk::{Ballast, Journal, MemoryDisk, Mount, limit_file_size, may_mount};
use crate::support::raw::{CLOSE, Raw, handshake_head};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, files, skipped, stamp};
use etherply::core::testing::Dice;
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::Message;

// ---- a disk that fails ----

/// The ops that were shown. Each op has its own key, so that every op must be found again.
type Shown = Map<String, Value>;

fn filler() -> String {
    "f".repeat(3000)
}

/// Writes ops one by one and waits for the witness to receive each. Returns at the first that is
/// not shown.
async fn write_until_it_fails(writer: &mut Client, witness: &mut Client, shown: &mut Shown) {
    for number in 0.. {
        assert!(number < 20_000, "the disk never failed");
        let op = writer
            .write(&format!("during {number}"), json!(filler()))
            .await;
        match witness.event().await {
            Event::Text(text) => {
                assert_eq!(
                    Op::parse(&text),
                    Some(op),
                    "the witness received another op"
                );
                shown.insert(format!("during {number}"), json!(filler()));
            }
            Event::Close(1011, _) => return,
            event => panic!("expected the op or a close with 1011, got {event:?}"),
        }
    }
}

async fn write_some(writer: &mut Client, witness: &mut Client, when: &str, shown: &mut Shown) {
    for number in 0..20 {
        let op = writer
            .write(&format!("{when} {number}"), json!(number))
            .await;
        witness.expect_op(&op).await;
        shown.insert(op.key, op.value);
    }
}

fn check_nothing_lost(state: &Map<String, Value>, shown: &Shown, when: &str) {
    for (key, value) in shown {
        assert_eq!(
            state.get(key),
            Some(value),
            "{when}: {key} was delivered but is lost"
        );
    }
}

/// Writes until the disk fails, and checks for 500, 1011 and 503 for as long as it stays broken.
async fn check_failure(server: &Server, break_disk: impl FnOnce()) -> Shown {
    let mut shown = Shown::new();
    let mut writer = Client::connect(server, "room").await;
    let mut witness = Client::connect(server, "room").await;
    let mut idle = Client::connect(server, "an idle room").await;
    write_some(&mut writer, &mut witness, "before", &mut shown).await;

    break_disk();
    write_until_it_fails(&mut writer, &mut witness, &mut shown).await;
    assert_eq!(
        writer.expect_error(500).await,
        "Internal Server Error",
        "the sender of the lost op received no error"
    );
    writer.expect_close(1011).await;
    idle.expect_close(1011).await;
    server.until_ready_is(503).await;
    let answer = server.handshake(&Server::sync_path("room")).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (500, &json!("Internal Server Error"))
    );
    assert_eq!(
        server.get("/healthz").await.status,
        200,
        "/healthz does not return 200"
    );
    assert_eq!(
        server.handshake("/v1/sync/room").await.status,
        401,
        "an invalid token is not refused with 401"
    );
    shown
}

/// Checks that the server serves again once the disk works, without a restart and without losing an
/// op. Ops that a new client receives count as shown.
async fn check_recovery(server: &Server, shown: &mut Shown) {
    server.until_ready_is(200).await;
    let mut writer = Client::connect(server, "room").await;
    check_nothing_lost(&writer.init, shown, "after the disk was repaired");
    shown.extend(writer.init.clone());
    let mut witness = Client::connect(server, "room").await;
    write_some(&mut writer, &mut witness, "after", shown).await;
}

async fn check_restart(server: &mut Server, shown: &Shown) {
    for shards in [1, 3] {
        server.restart(shards).await;
        check_nothing_lost(
            &state_of(server, "room").await,
            shown,
            &format!("after a restart with {shards} shards"),
        );
        server.kill9();
    }
}

/// P13, P62.
#[tokio::test]
async fn after_a_write_error_clients_get_500_1011_and_503_and_the_server_recovers() {
    let mut server = Setup::new().shards(1).start().await;
    let pid = server.pid();
    let mut shown = Shown::new();
    for _ in 0..3 {
        // Each round breaks the disk at a different point in the life of a segment.
        shown.extend(check_failure(&server, || limit_file_size(pid, Some(1))).await);
        limit_file_size(pid, None);
        check_recovery(&server, &mut shown).await;
    }
    server.kill9();
    check_restart(&mut server, &shown).await;
}

#[tokio::test]
async fn a_write_that_fails_halfway_loses_no_delivered_op() {
    let mut server = Setup::new().shards(1).start().await;
    let pid = server.pid();
    let mut shown = Shown::new();
    for room_left in [700, 2999, 4096] {
        let sizes = files::segments(server.data_dir()).into_iter();
        let longest = sizes
            .map(|path| path.metadata().expect("the segment exists").len())
            .max();
        let mut writer = Client::connect(&server, "room").await;
        let mut witness = Client::connect(&server, "room").await;
        limit_file_size(pid, longest.map(|longest| longest + room_left));
        write_until_it_fails(&mut writer, &mut witness, &mut shown).await;
        limit_file_size(pid, None);
        check_recovery(&server, &mut shown).await;
    }
    server.kill9();
    check_restart(&mut server, &shown).await;
}

/// Returns everything that a new client receives until it is turned away, before or after the
/// handshake.
async fn read_everything(newcomer: &mut Raw) -> String {
    let answer = newcomer.answer().await;
    if answer.status != 101 {
        return answer.body;
    }
    let mut seen = String::new();
    loop {
        let frame = newcomer.frame_but_ping().await;
        if frame.first_byte == CLOSE {
            return seen;
        }
        seen.push_str(&String::from_utf8_lossy(&frame.payload));
    }
}

/// P60.
#[tokio::test]
async fn an_init_never_contains_an_op_that_was_not_kept() {
    let server = Setup::new().shards(1).start().await;
    for round in 0..20 {
        let key = format!("k{round}");
        let mut writer = Client::connect_at_last(&server, "room").await;
        let mut witness = Client::connect_at_last(&server, "room").await;
        write_some(&mut writer, &mut witness, "between", &mut Shown::new()).await;
        let head = handshake_head(&Server::sync_path("room"), "");
        let (most, rest) = head.as_bytes().split_at(head.len() - 1);
        let mut joining = Raw::connect(server.addr()).await;
        joining.send(most).await;
        limit_file_size(server.pid(), Some(1));
        // Back to back, so that the op is applied but not yet written when the new client joins.
        writer.write(&key, json!(round)).await;
        joining.send_lossy(rest).await;
        assert_eq!(writer.close_code().await, 1011);
        let shown = read_everything(&mut joining)
            .await
            .contains(&format!("{key:?}"));
        limit_file_size(server.pid(), None);
        let state = Client::connect_at_last(&server, "room").await.init;
        assert!(
            !shown || state.contains_key(&key),
            "{key} was delivered in an init but is lost"
        );
    }
}

#[tokio::test]
async fn a_correction_never_contains_an_op_that_was_not_kept() {
    let server = Setup::new().shards(1).start().await;
    for round in 0..10 {
        let mut writer = Client::connect_at_last(&server, "room").await;
        let mut rival = Client::connect_at_last(&server, "room").await;
        write_some(&mut writer, &mut rival, "between", &mut Shown::new()).await;
        limit_file_size(server.pid(), Some(1));
        let winner = Op::new(&format!("k{round}"), json!("the winner"), 1000);
        writer.send_op(&winner).await;
        let loser = Op::new(&winner.key, json!("the loser"), 999);
        rival.try_send(Message::text(op_text(&loser))).await;
        let mut was_shown = false;
        while let Event::Text(text) = rival.event().await {
            was_shown |= Op::parse(&text).as_ref() == Some(&winner);
        }
        assert_eq!(writer.close_code().await, 1011);
        limit_file_size(server.pid(), None);
        let state = Client::connect_at_last(&server, "room").await.init;
        let is_kept = state.get(&winner.key) == Some(&winner.value);
        assert!(
            !was_shown || is_kept,
            "the winner was delivered in a correction but is lost"
        );
    }
}

#[tokio::test]
async fn a_start_on_a_full_disk_is_refused_and_loses_nothing() {
    if !may_mount() {
        return;
    }
    let Some(disk) = Mount::tmpfs("16m") else {
        return;
    };
    let setup = Setup::new().in_data_dir(&disk.path().join("data"));
    let mut server = setup.start().await;
    let mut shown = Shown::new();
    let mut writer = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    write_some(&mut writer, &mut witness, "before", &mut shown).await;
    server.kill9();
    // The start frees the preallocated space of a segment, which it could otherwise use.
    for segment in files::segments(server.data_dir()) {
        files::append_to_log(&segment, &[]);
    }
    let ballast = Ballast::fill(disk.path());
    for _ in 0..2 {
        let outcome = server.setup().run().await;
        let log = outcome.stderr.lines();
        let errors: Vec<&str> = log.filter(|line| line.starts_with("error:")).collect();
        let [line] = errors[..] else {
            panic!("expected one line with the reason: {outcome:?}");
        };
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(!outcome.stdout.contains("listening"), "{outcome:?}");
        assert!(line.contains("No space left on device"), "{line}");
        let path = server.data_dir().display().to_string();
        assert!(
            line.contains(&path),
            "the line does not name the folder: {line}"
        );
    }
    ballast.remove();
    check_restart(&mut server, &shown).await;
}

/// In the modes that show an op before it is durable, a failure loses the last ops, but none that
/// precedes a durable one.
///
/// P61, P62.
#[tokio::test]
async fn a_write_error_in_interval_or_none_mode_leaves_no_gap() {
    for mode in [&["--durability", "none"][..], &["--durability", "interval"]] {
        let setup = Setup::new().shards(1).args(mode);
        let mut server = setup.start().await;
        let mut writer = Client::connect(&server, "room").await;
        let mut witness = Client::connect(&server, "room").await;
        let mut shown = Shown::new();
        write_some(&mut writer, &mut witness, "before", &mut shown).await;
        eventually("these ops are written", async || {
            let segment = files::segments(server.data_dir()).pop()?;
            let bytes = std::fs::read(segment).ok()?;
            let last = b"before 19";
            bytes
                .windows(last.len())
                .any(|part| part == last)
                .then_some(())
        })
        .await;
        limit_file_size(server.pid(), Some(30_000));
        let mut during = Shown::new();
        write_until_it_fails(&mut writer, &mut witness, &mut during).await;
        limit_file_size(server.pid(), None);
        server.until_ready_is(200).await;

        let state = state_of(&server, "room").await;
        check_nothing_lost(&state, &shown, "ops written before the failure");
        let kept_count = state.len() - shown.len();
        for number in 0..kept_count {
            let key = format!("during {number}");
            assert!(
                state.contains_key(&key),
                "{key} is missing, but later ops are not"
            );
        }
        server.kill9();
        check_restart(&mut server, &state).await;
    }
}

/// Mounts a file system on a disk that fails on demand. Returns `None`, and prints a reason, if the
/// host does not permit mounting or has no such disk.
fn disk_that_fails(journal: Journal) -> Option<(Mount, MemoryDisk)> {
    if !may_mount() {
        return None;
    }
    let disk = MemoryDisk::ext4("64M", journal)?;
    // The fields drop in order: the file system is unmounted before its disk is removed.
    Some((Mount::disk(&disk)?, disk))
}

#[tokio::test]
async fn with_a_failing_disk_clients_get_500_1011_and_503_and_the_server_recovers() {
    let Some((mount, disk)) = disk_that_fails(Journal::No) else {
        return;
    };
    let setup = Setup::new()
        .shards(1)
        .in_data_dir(&mount.path().join("data"));
    let mut server = setup.start().await;
    let mut shown = check_failure(&server, || disk.fail()).await;
    disk.mend();
    check_recovery(&server, &mut shown).await;
    server.kill9();
    check_restart(&mut server, &shown).await;
}

#[tokio::test]
async fn a_failed_commit_is_never_mistaken_for_a_successful_one() {
    let Some((mount, disk)) = disk_that_fails(Journal::Yes) else {
        return;
    };
    let data_dir = |mount: &Mount| mount.path().join("data");
    let mut server = Setup::new()
        .shards(1)
        .in_data_dir(&data_dir(&mount))
        .start()
        .await;
    let shown = check_failure(&server, || disk.fail()).await;
    disk.mend();

    // Unmounting drops the kernel's cache, and with it the writes that never reached the disk.
    server.kill9();
    drop(mount);
    let Some(mount) = Mount::disk(&disk) else {
        return;
    };
    let again = server
        .setup()
        .clone()
        .in_data_dir(&data_dir(&mount))
        .start()
        .await;
    check_nothing_lost(
        &state_of(&again, "room").await,
        &shown,
        "when read only from the disk",
    );
}

// ---- a panic ----

const PANIC_KEY: &str = "the key of the planted panic";

/// Starts a server that panics on an op with [`PANIC_KEY`]. Returns `None` without debug
/// assertions, because only builds with them have that hook.
async fn panicking_server(shards: u32) -> Option<Server> {
    if !cfg!(debug_assertions) {
        skipped("the planted panic is a hook of debug builds");
        return None;
    }
    Some(
        Setup::new()
            .shards(shards)
            .env("ETHERPLY_FAULT_PANIC_KEY", PANIC_KEY)
            .start()
            .await,
    )
}

/// P63.
#[tokio::test]
async fn after_a_panic_its_cause_gets_500_and_other_clients_of_the_shard_get_1011() {
    let Some(server) = panicking_server(1).await else {
        return;
    };
    let mut culprit = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    let mut elsewhere = Client::connect(&server, "another room").await;
    culprit.write(PANIC_KEY, json!(1)).await;
    assert_eq!(culprit.expect_error(500).await, "Internal Server Error");
    culprit.expect_close(1011).await;
    witness.expect_close(1011).await;
    elsewhere.expect_close(1011).await;
}

#[tokio::test]
async fn after_a_panic_the_shard_is_rebuilt_from_its_log_and_serves_again() {
    let Some(mut server) = panicking_server(1).await else {
        return;
    };
    let mut shown = Shown::new();
    for round in 0..3 {
        let mut writer = Client::connect_at_last(&server, "room").await;
        let mut witness = Client::connect_at_last(&server, "room").await;
        check_nothing_lost(&writer.init, &shown, "after a panic");
        assert!(
            !writer.init.contains_key(PANIC_KEY),
            "the op that caused the panic was applied"
        );
        write_some(
            &mut writer,
            &mut witness,
            &format!("round {round}"),
            &mut shown,
        )
        .await;
        writer.write(PANIC_KEY, json!(round)).await;
        assert_eq!(witness.close_code().await, 1011);
        server.until_ready_is(200).await;
    }
    check_nothing_lost(
        &Client::connect_at_last(&server, "room").await.init,
        &shown,
        "after three panics",
    );
    server.kill9();
    server.restart(2).await;
    check_nothing_lost(&state_of(&server, "room").await, &shown, "after a restart");
}

#[tokio::test]
async fn a_panic_in_one_shard_does_not_affect_the_other() {
    let Some(server) = panicking_server(2).await else {
        return;
    };
    let mut rooms = Vec::new();
    for index in 0..32 {
        let name = format!("room {index}");
        rooms.push((
            Client::connect(&server, &name).await,
            Client::connect(&server, &name).await,
        ));
    }
    let (mut culprit, mut witness) = rooms.pop().expect("the shard has rooms");
    culprit.write(PANIC_KEY, json!(1)).await;
    assert_eq!(culprit.close_code().await, 1011);
    assert_eq!(witness.close_code().await, 1011);
    let mut untouched_count = 0;
    for (writer, reader) in &mut rooms {
        // A room of the failed shard may close while the writer uses it, so the reader decides.
        writer.try_send(Message::text(r#"{"type":"ping"}"#)).await;
        let op = op_text(&Op::new("k", json!(1), stamp()));
        writer.try_send(Message::text(op)).await;
        match reader.event().await {
            Event::Text(_) => untouched_count += 1,
            Event::Close(1011, _) => {}
            event => panic!("expected the op or a close with 1011, got {event:?}"),
        }
    }
    assert!(
        (1..31).contains(&untouched_count),
        "one of two shards failed, but {untouched_count} of 31 rooms were unaffected"
    );
}

#[tokio::test]
async fn ops_of_other_clients_during_a_panic_are_kept_if_delivered() {
    let Some(server) = panicking_server(1).await else {
        return;
    };
    let mut bystander = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    let mut culprit = Client::connect(&server, "room").await;
    let mut shown = Shown::new();
    for number in 0..50 {
        bystander.write(&format!("k{number}"), json!(number)).await;
    }
    culprit.write(PANIC_KEY, json!(1)).await;
    loop {
        match witness.event().await {
            Event::Text(text) => {
                let op = Op::parse(&text).unwrap_or_else(|| panic!("expected an op, got {text}"));
                shown.insert(op.key, op.value);
            }
            Event::Close(code, _) => break assert_eq!(code, 1011),
            Event::Lost(error) => panic!("expected a close frame, got {error}"),
        }
    }
    loop {
        match bystander.event().await {
            Event::Text(text) => assert!(
                error_of(&text, 500).is_some(),
                "expected an error 500, got {text}"
            ),
            Event::Close(code, _) => break assert_eq!(code, 1011),
            Event::Lost(error) => panic!("expected a close frame, got {error}"),
        }
    }
    check_nothing_lost(
        &Client::connect_at_last(&server, "room").await.init,
        &shown,
        "after the panic",
    );
}

#[tokio::test]
async fn no_kind_of_invalid_input_makes_the_server_panic() {
    let server = Server::start().await;
    let mut dice = Dice::new(11);
    let mut byte = || u8::try_from(dice.below_u64(256)).expect("below 256");
    for _ in 0..200 {
        let noise: Vec<u8> = (0..64).map(|_| byte()).collect();
        let mut bare = Raw::connect(server.addr()).await;
        bare.send_lossy(&noise).await;
        let mut open = Raw::open(server.addr(), &Server::sync_path("room")).await;
        open.send_lossy(&noise).await;
    }
    let mut writer = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    let op = writer.write("k", json!(1)).await;
    witness.expect_op(&op).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
