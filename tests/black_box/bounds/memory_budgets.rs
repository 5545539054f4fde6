//! Memory that clients can make the server hold: unfinished messages, and responses and states that
//! they do not read. Each is bounded, and clients that do read are not affected.

use crate::support::client::{Client, Op};
use crate::support::eventually;
use crate::support::raw::{PONG, Raw, TEXT, TEXT_BEGIN, handshake_head, masked_frame};
use crate::support::server::{Server, Setup};
use crate::support::token;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};

const MIB: u64 = 1024 * 1024;
/// The memory that one shard may hold for individual connections. The slack below is for the
/// allocator and the process.
const BUDGET_BYTES: u64 = 64 * MIB;
const SLACK_BYTES: u64 = 24 * MIB;

/// Returns a figure from `/metrics`, by its name and labels.
async fn figure(server: &Server, name: &str, labels: &str) -> u64 {
    let page = server.get("/metrics").await.body;
    let lines = page.lines().filter(|line| line.starts_with(name));
    let lines = lines.filter(|line| line.contains(labels));
    let numbers = lines.map(|line| {
        line.rsplit(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok())
    });
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    let sum = numbers.map(|number| number.expect("a number")).sum::<f64>() as u64;
    sum
}

async fn one_shard() -> Server {
    Setup::new()
        .shards(1)
        .args(&["--metrics-public"])
        .start()
        .await
}

/// Connects a client with a small receive buffer, so that unread data queues up in the server.
async fn narrow(server: &Server, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .set_recv_buffer_size(4096)
        .expect("the buffer size can be set");
    let mut stream = socket
        .connect(server.addr())
        .await
        .expect("the server listens");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .expect("the request fits in the socket buffer");
    stream
}

fn join_head(workspace: &str) -> String {
    handshake_head(&Server::sync_path(workspace), "")
}

fn http_read_head(path: &str) -> String {
    let token = token::valid();
    format!("GET {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n")
}

/// P76.
#[tokio::test]
async fn unfinished_messages_are_bounded_and_the_largest_is_closed() {
    let server = one_shard().await;
    let path = Server::sync_path("room");
    let mut small = Raw::open(server.addr(), &path).await;
    small.send_frame(TEXT_BEGIN, br#"{"type":"#).await;
    let before_bytes = server.resident_bytes();
    let fragment = masked_frame(TEXT_BEGIN, &vec![b'x'; 1_000_000]);
    let mut attackers = Vec::new();
    for _ in 0..100 {
        let mut attacker = Raw::open(server.addr(), &path).await;
        attacker.send_lossy(&fragment).await;
        attackers.push(attacker);
    }
    eventually("all clients are connected", async || {
        let held = figure(&server, "etherply_outbox_bytes", "kind=\"unfinished\"").await;
        assert!(held < BUDGET_BYTES + MIB, "{held}");
        let given_up = figure(&server, "etherply_given_up_total", "session_bytes").await;
        (given_up >= 30 && held > BUDGET_BYTES / 2).then_some(())
    })
    .await;
    let grown_bytes = server.resident_bytes().saturating_sub(before_bytes);
    assert!(
        grown_bytes < BUDGET_BYTES + SLACK_BYTES,
        "{grown_bytes} bytes"
    );
    // The oldest was closed first, with a reason; the newest is still connected.
    attackers.remove(0).expect_close(1013).await;
    attackers
        .pop()
        .expect("one attacker is left")
        .send_frame(PONG, b"")
        .await;
    // A client with a small message is not affected.
    small.send_frame(0x80, br#""nothing"}"#).await;
    let answer = small.frame_but_ping().await;
    let error: Value = serde_json::from_slice(&answer.payload).expect("the message is JSON");
    assert_eq!(
        (answer.first_byte, &error["payload"]["code"]),
        (TEXT, &json!(400))
    );
}

#[tokio::test]
async fn corrections_and_presence_are_shared_by_all_receivers() {
    const CLIENTS: usize = 60;
    let server = one_shard().await;
    let mut writer = Client::connect(&server, "room").await;
    let winner = writer.write("k", json!("v".repeat(900_000))).await;
    let loser = Op::new("k", json!(1), 1);
    let mut members = Vec::new();
    for number in 0..1500 {
        let user = format!("{number:04}{}", "%22".repeat(200));
        let path = format!("{}&userId={user}", Server::sync_path("crowd"));
        members.push(Raw::open(server.addr(), &path).await);
    }
    let before_bytes = server.resident_bytes();
    let mut losers = Vec::new();
    for _ in 0..CLIENTS {
        let mut member = Client::connect(&server, "room").await;
        member.send_op(&loser).await;
        member.send_op(&loser).await;
        losers.push(member);
    }
    let mut presence_readers = Vec::new();
    for _ in 0..CLIENTS {
        presence_readers.push(narrow(&server, &http_read_head("/v1/presence/crowd")).await);
    }
    let grown_bytes = server.resident_bytes().saturating_sub(before_bytes);
    assert!(grown_bytes < SLACK_BYTES, "{grown_bytes} bytes");
    for mut member in losers {
        member.expect_op(&winner).await;
        member.expect_op(&winner).await;
    }
    let mut socket = Raw::connect(server.addr()).await;
    socket
        .send(http_read_head("/v1/presence/crowd").as_bytes())
        .await;
    let answer = socket.answer().await;
    assert_eq!(answer.header("x-total-count"), Some("1500"));
    assert_eq!(answer.json().as_array().map(Vec::len), Some(1000));
    assert_eq!(figure(&server, "etherply_given_up_total", "").await, 0);
    drop(presence_readers);
}

/// P12.
#[tokio::test]
async fn states_that_nobody_reads_do_not_lock_out_another_workspace() {
    // The budget is filled by five of the large states, or by four of them and the reserve, plus
    // some of the small ones.
    const KEYS: usize = 53;
    const ROUNDS: usize = 6;
    let server = one_shard().await;
    let mut writer = Client::connect(&server, "large").await;
    let fill = "x".repeat(1_000_000);
    for key in 0..KEYS {
        writer.write(&format!("k{key}"), json!(fill)).await;
        writer.expect_no_answer().await;
    }
    let mut innocent = Client::connect(&server, "innocent").await;
    let mut held = Vec::new();
    for round in 0..ROUNDS {
        // Each round encodes a new version of each state.
        writer.write("k0", json!(round)).await;
        writer.expect_no_answer().await;
        for key in ["k", "l"] {
            let value = format!("{round}{}", "y".repeat(800_000));
            innocent.write(key, json!(value)).await;
            innocent.expect_no_answer().await;
        }
        let before = figure(&server, "etherply_outbox_bytes", "snapshots").await;
        held.push(narrow(&server, &http_read_head("/v1/workspaces/large")).await);
        eventually("a large state is sent, or there is no space", async || {
            let refused = "etherply_handshakes_refused_total";
            let refused = figure(&server, refused, "snapshot_bytes").await;
            let given_up = figure(&server, "etherply_given_up_total", "snapshot_bytes").await;
            let bytes = figure(&server, "etherply_outbox_bytes", "snapshots").await;
            (refused + given_up > 0 || bytes > before + 50_000_000).then_some(())
        })
        .await;
        held.push(narrow(&server, &join_head("innocent")).await);
    }
    // This used to take a minute, which is longer than anything is waited for here.
    eventually("a client of another workspace is admitted", async || {
        let answer = server.handshake(&Server::sync_path("innocent")).await;
        (answer.status == 101).then_some(())
    })
    .await;
    eventually("another large state is sent", async || {
        let mut socket = Raw::connect(server.addr()).await;
        socket
            .send(http_read_head("/v1/workspaces/large").as_bytes())
            .await;
        (socket.answer().await.status == 200).then_some(())
    })
    .await;
    let given_up = figure(&server, "etherply_given_up_total", "snapshot_bytes").await;
    assert!(given_up >= 1, "{given_up}");
    drop(held);
}
