//! Last write wins: which op wins, which clients receive it, and that all replicas converge.

use crate::support::client::{Client, Op, state_of};
use crate::support::server::Server;
use crate::support::{PATIENCE, stamp, within};
use etherply::core::testing::Dice;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Returns a server and a room with a sender and a witness.
async fn room() -> (Server, Client, Client) {
    let server = Server::start().await;
    let sender = Client::connect(&server, "room").await;
    let witness = Client::connect(&server, "room").await;
    (server, sender, witness)
}

/// P55, P56.
#[tokio::test]
async fn the_greater_timestamp_wins_and_is_broadcast() {
    let (server, mut sender, mut witness) = room().await;
    for (value, timestamp) in [("first", 100), ("second", 101), ("third", 5000)] {
        let op = Op::new("k", json!(value), timestamp);
        sender.send_op(&op).await;
        witness.expect_op(&op).await;
    }
    assert_eq!(
        json!(state_of(&server, "room").await),
        json!({"k": "third"})
    );
}

/// P57.
#[tokio::test]
async fn a_loser_is_not_broadcast_and_only_its_sender_receives_the_winner() {
    let (server, mut sender, mut witness) = room().await;
    let mut late = Client::connect(&server, "room").await;
    let winner = Op::new("k", json!("winner"), 1000);
    sender.send_op(&winner).await;
    witness.expect_op(&winner).await;
    late.expect_op(&winner).await;

    late.send_op(&Op::new("k", json!("loser"), 999)).await;
    late.expect_op(&winner).await;
    witness.expect_silence(&mut late).await;
    let barrier = witness.write("barrier", json!(1)).await;
    assert_eq!(sender.next_op().await.key, "barrier of expect_silence");
    sender.expect_op(&barrier).await;
    late.expect_op(&barrier).await;
    assert_eq!(state_of(&server, "room").await["k"], "winner");
}

/// P57.
#[tokio::test]
async fn a_sender_that_loses_to_its_own_earlier_op_receives_that_op() {
    let (_server, mut sender, mut witness) = room().await;
    let winner = Op::new("k", json!("mine, later"), 1000);
    sender.send_op(&winner).await;
    witness.expect_op(&winner).await;
    sender
        .send_op(&Op::new("k", json!("mine, earlier"), 1))
        .await;
    sender.expect_op(&winner).await;
    witness.expect_silence(&mut sender).await;
}

/// P55, P57.
#[tokio::test]
async fn on_equal_timestamps_the_first_op_stays_and_the_second_sender_is_corrected() {
    let (server, mut sender, mut witness) = room().await;
    let first = Op::new("k", json!("first"), 1000);
    sender.send_op(&first).await;
    witness.expect_op(&first).await;
    witness.send_op(&Op::new("k", json!("second"), 1000)).await;
    witness.expect_op(&first).await;
    sender.expect_silence(&mut witness).await;
    assert_eq!(state_of(&server, "room").await["k"], "first");
}

/// P58, P64.
#[tokio::test]
async fn a_resend_equal_in_timestamp_and_value_is_accepted_silently() {
    let (_server, mut sender, mut witness) = room().await;
    let op = Op::new("k", json!({"a": [1, "x"]}), 1000);
    sender.send_op(&op).await;
    witness.expect_op(&op).await;
    sender.send_op(&op).await;
    sender.expect_no_answer().await;
    witness.send_op(&op).await;
    witness.expect_no_answer().await;
    sender.expect_silence(&mut witness).await;
    witness.expect_silence(&mut sender).await;
}

#[tokio::test]
async fn keys_and_workspaces_are_independent() {
    let (server, mut sender, mut witness) = room().await;
    for (key, timestamp) in [("a", 1000), ("b", 1), ("c", 500)] {
        let op = Op::new(key, json!(timestamp), timestamp);
        sender.send_op(&op).await;
        witness.expect_op(&op).await;
    }
    let mut elsewhere = Client::connect(&server, "elsewhere").await;
    let mut elsewhere_too = Client::connect(&server, "elsewhere").await;
    let op = Op::new("a", json!("a lower timestamp, another workspace"), 2);
    elsewhere.send_op(&op).await;
    elsewhere_too.expect_op(&op).await;
}

#[tokio::test]
async fn the_rules_hold_across_a_restart() {
    let (mut server, mut sender, mut witness) = room().await;
    let winner = Op::new("k", json!("winner"), 1000);
    sender.send_op(&winner).await;
    witness.expect_op(&winner).await;
    server.kill9();
    server.restart(3).await;
    let mut sender = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    sender.send_op(&Op::new("k", json!("loser"), 999)).await;
    sender.expect_op(&winner).await;
    sender.send_op(&Op::new("k", json!("tie"), 1000)).await;
    sender.expect_op(&winner).await;
    sender.send_op(&winner).await;
    sender.expect_no_answer().await;
    let next = Op::new("k", json!("next"), 1001);
    sender.send_op(&next).await;
    witness.expect_op(&next).await;
}

/// P57.
#[tokio::test]
async fn a_loser_is_not_logged() {
    let (mut server, mut sender, mut witness) = room().await;
    let winner = Op::new("k", json!("the winner"), 1000);
    sender.send_op(&winner).await;
    witness.expect_op(&winner).await;
    for timestamp in 0..50 {
        sender
            .send_op(&Op::new(
                "k",
                json!("a loser that must not be in the file"),
                timestamp,
            ))
            .await;
        sender.expect_op(&winner).await;
    }
    server.stop().await;
    let log = all_bytes(server.data_dir());
    let contains = |text: &str| {
        log.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(contains("the winner") && !contains("a loser that must not be in the file"));
}

/// Returns the contents of all files in a folder, concatenated.
fn all_bytes(folder: &Path) -> Vec<u8> {
    let entries = std::fs::read_dir(folder).expect("the data directory can be read");
    let contents = entries.map(|entry| {
        let path = entry.expect("the data directory can be read").path();
        if path.is_dir() {
            all_bytes(&path)
        } else {
            std::fs::read(path).expect("the file can be read")
        }
    });
    contents.collect::<Vec<_>>().concat()
}

// ---- convergence ----

/// A client that follows the protocol's recommendation: it applies its own writes immediately, and
/// every incoming op that is not older.
struct Replica {
    client: Client,
    held: HashMap<String, (u64, Value)>,
}

impl Replica {
    async fn join(server: &Server) -> Replica {
        let client = Client::connect(server, "room").await;
        assert!(client.init.is_empty(), "the room is not empty");
        Replica {
            client,
            held: HashMap::new(),
        }
    }

    fn apply(&mut self, op: Op) {
        if self
            .held
            .get(&op.key)
            .is_none_or(|(timestamp, _)| op.timestamp >= *timestamp)
        {
            self.held.insert(op.key, (op.timestamp, op.value));
        }
    }

    async fn write(&mut self, op: Op) {
        self.client.send_op(&op).await;
        self.apply(op);
    }

    async fn read_one(&mut self) {
        let op = self.client.next_op().await;
        self.apply(op);
    }

    fn state(&self) -> Map<String, Value> {
        self.held
            .iter()
            .map(|(key, (_, value))| (key.clone(), value.clone()))
            .collect()
    }

    /// Reads until the replica holds this state.
    async fn read_until(&mut self, truth: &Map<String, Value>, who: &str) {
        while &self.state() != truth {
            let held = self.state();
            let reading = tokio::time::timeout(PATIENCE, self.read_one());
            assert!(
                reading.await.is_ok(),
                "{who} keeps {held:?}, but the state is {truth:?}"
            );
        }
    }
}

/// Writes at random with a clock that drifts from those of other writers, with few keys and many
/// ties.
async fn write_randomly(mut replica: Replica, writer: u64, seed: u64) -> Replica {
    let mut dice = Dice::new(seed * 100 + writer);
    for number in 0..150 {
        let key = format!("k{}", dice.below(4));
        let timestamp = 1000 + number / 10 + dice.below_u64(12);
        replica
            .write(Op::new(
                &key,
                json!(format!("{writer}/{number}")),
                timestamp,
            ))
            .await;
        if dice.one_in(3) {
            // Apply the ops that have arrived so far, without waiting for more.
            while tokio::time::timeout(std::time::Duration::from_millis(1), replica.read_one())
                .await
                .is_ok()
            {}
        }
    }
    replica
}

/// P59.
#[tokio::test]
async fn concurrent_writers_with_ties_and_skewed_clocks_converge_on_the_servers_state() {
    for seed in 1..=5 {
        println!("seed {seed}");
        let mut server = Server::start().await;
        let mut watcher = Replica::join(&server).await;
        let mut joined = Vec::new();
        for _ in 0..5 {
            joined.push(Replica::join(&server).await);
        }
        let writing: Vec<_> = (0..)
            .zip(joined)
            .map(|(writer, replica)| tokio::spawn(write_randomly(replica, writer, seed)))
            .collect();
        let mut replicas = Vec::new();
        for task in writing {
            replicas.push(
                within("the end of a writer", task)
                    .await
                    .expect("the writer task succeeds"),
            );
        }
        // The last op of all: once the watcher has it, all earlier ones have been applied.
        let end = Op::new("end", json!("end"), stamp());
        for replica in &mut replicas {
            replica
                .client
                .send_text(r#"{"type":"are all mine served?"}"#)
                .await;
        }
        for replica in &mut replicas {
            read_to_error(replica).await;
        }
        replicas[0].write(end.clone()).await;
        while !watcher.held.contains_key("end") {
            watcher.read_one().await;
        }
        let truth = state_of(&server, "room").await;
        assert_eq!(watcher.state(), truth, "the watcher has another state");
        for (writer, replica) in replicas.iter_mut().enumerate() {
            replica
                .read_until(&truth, &format!("writer {writer}"))
                .await;
        }
        server.kill9();
        server.restart(1).await;
        assert_eq!(
            state_of(&server, "room").await,
            truth,
            "the log holds another state"
        );
    }
}

/// Applies ops until the error that answers the message sent after the last write.
async fn read_to_error(replica: &mut Replica) {
    loop {
        let text = replica.client.next_text().await;
        match Op::parse(&text) {
            Some(op) => replica.apply(op),
            None => {
                return assert!(
                    text.contains(r#""error""#),
                    "expected an op or the error, got {text}"
                );
            }
        }
    }
}
