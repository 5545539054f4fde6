//! The limit on open files: a server that starts with a low limit refuses connections in time, and
//! one that reaches its limit pauses accepting, keeps serving, and resumes.

use crate::support::client::{Client, state_of};
use crate::support::disk::{limit_file_size, limit_open_files};
use crate::support::raw::{Raw, handshake_head};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, stamp};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// The number of connections that arrive while none can be accepted.
const KNOCKING_COUNT: usize = 120;
/// The approximate number of them that initially get a descriptor.
const FREE_COUNT: u64 = 40;

struct Scene {
    server: Server,
    writer: Client,
    witness: Client,
    shown: Map<String, Value>,
    knocking: Vec<Raw>,
}

impl Scene {
    /// Starts a server and drives it to its limit, with two existing members and with connections
    /// that wait in the kernel's queue.
    async fn new(setup: Setup) -> Scene {
        let server = setup.start().await;
        let mut scene = Scene {
            writer: Client::connect(&server, "room").await,
            witness: Client::connect(&server, "room").await,
            shown: Map::new(),
            knocking: Vec::new(),
            server,
        };
        scene.check_pair_still_works("before").await;
        let limit = scene.server.open_files_count() as u64 + FREE_COUNT;
        limit_open_files(scene.server.pid(), limit);
        let head = handshake_head(&Server::sync_path("room"), "");
        for _ in 0..KNOCKING_COUNT {
            let mut raw = Raw::connect(scene.server.addr()).await;
            raw.send(head.as_bytes()).await;
            scene.knocking.push(raw);
        }
        let words = [
            "accepting connections is paused",
            "Too many open files",
            "ulimit -n",
        ];
        scene.server.log_line(&words).await;
        scene
    }

    async fn check_pair_still_works(&mut self, when: &str) {
        for number in 0..20 {
            let key = format!("{when} {number}");
            let op = self.writer.write(&key, json!(number)).await;
            self.witness.expect_op(&op).await;
            self.shown.insert(op.key, op.value);
        }
    }

    /// Closes enough of the first connections for all others to get a descriptor, and checks that
    /// they join.
    async fn check_accepting_resumes(&mut self) {
        drop(self.knocking.drain(..100));
        for raw in &mut self.knocking {
            assert_eq!(
                raw.answer().await.status,
                101,
                "a waiting connection was not served"
            );
        }
        let mut newcomer = Client::connect(&self.server, "room").await;
        assert_eq!(newcomer.init.len(), self.shown.len());
        let op = newcomer.write("of a newcomer", json!(stamp())).await;
        self.witness.expect_op(&op).await;
        self.writer.expect_op(&op).await;
        self.shown.insert(op.key, op.value);
        assert_eq!(self.server.get("/readyz").await.status, 200);
    }

    async fn check_nothing_lost(&mut self) {
        self.server.kill9();
        self.server.restart(1).await;
        assert_eq!(state_of(&self.server, "room").await, self.shown);
    }
}

#[tokio::test]
async fn at_the_limit_accepting_pauses_and_resumes_and_all_ops_are_kept() {
    let mut scene = Scene::new(Setup::new()).await;
    scene.check_pair_still_works("at the limit").await;
    scene.check_accepting_resumes().await;
    scene.check_pair_still_works("after it").await;
    scene.check_nothing_lost().await;
}

#[tokio::test]
async fn a_long_pause_is_logged_occasionally_and_not_at_every_attempt() {
    let begun = Instant::now();
    let mut scene = Scene::new(Setup::new().shards(1)).await;
    let paused = Instant::now();
    // Enough for at least ten attempts, with a pause of 100 ms after each.
    for round in 0.. {
        scene
            .check_pair_still_works(&format!("round {round}"))
            .await;
        if paused.elapsed() > Duration::from_millis(1500) {
            break;
        }
    }
    let warnings = scene
        .server
        .log()
        .matches("accepting connections is paused")
        .count() as u64;
    let most = 1 + begun.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&warnings), "{}", scene.server.log());
}

#[tokio::test]
async fn a_log_that_fails_at_the_limit_is_reopened_once_descriptors_are_free() {
    let setup = Setup::new().shards(1);
    let mut scene = Scene::new(setup).await;
    let pid = scene.server.pid();
    limit_file_size(pid, Some(1));
    scene.writer.write("lost", json!(1)).await;
    scene.writer.expect_error(500).await;
    assert_eq!(scene.writer.close_code().await, 1011);
    assert_eq!(scene.witness.close_code().await, 1011);
    limit_file_size(pid, None);
    scene.knocking.clear();
    scene.writer = Client::connect_at_last(&scene.server, "room").await;
    scene.witness = Client::connect(&scene.server, "room").await;
    assert_eq!(scene.writer.init, scene.shown);
    scene.check_pair_still_works("after it").await;
    scene.check_nothing_lost().await;
}

#[tokio::test]
async fn with_a_low_limit_clients_get_503_before_it_is_reached() {
    let server = Setup::new().open_files_limit(200).start().await;
    let mut members = Vec::new();
    let refusal = loop {
        let mut raw = Raw::connect(server.addr()).await;
        let answer = raw.handshake(&Server::sync_path("room"), "").await;
        if answer.status != 101 {
            break answer;
        }
        members.push(raw);
    };
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(refusal.header("retry-after").is_some());
    assert!(
        members.len() > 20,
        "only {} clients were admitted",
        members.len()
    );
    let open = server.open_files_count();
    assert!(
        open < 150,
        "{open} of 200 files are open while connections are refused"
    );
    assert!(
        !server.log().contains("accepting connections is paused"),
        "{}",
        server.log()
    );

    members.truncate(10);
    eventually("a slot is free again", async || {
        let mut raw = Raw::connect(server.addr()).await;
        let answer = raw.handshake(&Server::sync_path("room"), "").await;
        (answer.status == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_open_files_limit_too_low_to_serve_prevents_startup() {
    for (limit, shards) in [(6, 1), (10, 2), (20, 2), (64, 1), (128, 2), (200, 32)] {
        let setup = Setup::new().shards(shards).open_files_limit(limit);
        let outcome = setup.run().await;
        let line = outcome.expect_refusal();
        let (limit, shards) = (limit.to_string(), shards.to_string());
        for word in ["ulimit -n", &limit, &shards] {
            assert!(line.contains(word), "{word:?} is missing in: {line}");
        }
        assert!(!setup.data_dir().exists(), "something was changed: {line}");
    }
}
