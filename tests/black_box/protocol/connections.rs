//! The lifecycle of a connection: pings, silent clients, clients that do not read, many clients,
//! the server's shutdown.

use crate::support::client::{Client, Event, Op, state_of};
use crate::support::raw::{CLOSE, PING, PONG, Raw, TEXT};
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, eventually, eventually_in, stamp, within};
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;

// ---- pings ----

/// P70.
#[tokio::test]
async fn the_server_pings_every_interval_and_a_client_that_answers_stays() {
    let server = Server::start_with(&["--ping-interval-ms", "200"]).await;
    let mut socket = Raw::open(server.addr(), &Server::sync_path("room")).await;
    for _ in 0..10 {
        let ping = socket.frame().await;
        assert_eq!(ping.first_byte, PING, "expected a ping, got {ping:?}");
        socket.send_frame(PONG, &ping.payload).await;
    }
}

/// P70.
#[tokio::test]
async fn a_silent_client_is_closed_after_two_and_a_half_intervals() {
    let server = Server::start_with(&["--ping-interval-ms", "200"]).await;
    let begun = Instant::now();
    let mut silent = Raw::open(server.addr(), &Server::sync_path("room")).await;
    let mut pings_count = 0;
    let rest = silent.rest().await;
    let mut at = 0;
    while at + 2 <= rest.len() && rest[at] == PING {
        pings_count += 1;
        at += 2 + usize::from(rest[at + 1]);
    }
    assert!(
        at == rest.len() || rest[at] == CLOSE,
        "expected only pings and at most a close frame, got {rest:?}"
    );
    assert!(pings_count >= 1, "the client was never pinged");
    assert!(
        begun.elapsed() >= Duration::from_millis(450),
        "closed too early: {:?}",
        begun.elapsed()
    );
}

/// P32, P70.
#[tokio::test]
async fn any_message_is_a_sign_of_life_including_the_ping_message() {
    let server = Server::start_with(&["--ping-interval-ms", "200"]).await;
    let mut talks = Raw::open(server.addr(), &Server::sync_path("room")).await;
    let begun = Instant::now();
    // Four times longer than a silent client is tolerated, without a single pong.
    while begun.elapsed() < Duration::from_secs(2) {
        talks.send_frame(TEXT, br#"{"type":"ping"}"#).await;
        let ping = talks.frame().await;
        assert_eq!(ping.first_byte, PING, "expected a ping, got {ping:?}");
    }
}

/// P70.
#[tokio::test]
async fn a_client_library_that_only_reads_stays_connected_by_its_pongs() {
    let server = Server::start_with(&["--ping-interval-ms", "100"]).await;
    let mut reader = Client::connect(&server, "room").await;
    let mut pinged = Raw::open(server.addr(), &Server::sync_path("room")).await;
    let fifteen_intervals = async {
        for _ in 0..15 {
            let ping = pinged.frame().await;
            pinged.send_frame(PONG, &ping.payload).await;
        }
        drop(pinged);
        let mut other = Client::connect(&server, "room").await;
        other.write("k", json!("after fifteen intervals")).await
    };
    let (event, op) = tokio::join!(reader.event(), fifteen_intervals);
    match event {
        Event::Text(text) => assert_eq!(Op::parse(&text), Some(op)),
        event => panic!("expected the op, got {event:?}"),
    }
}

// ---- a server that is stopped ----

#[tokio::test]
async fn a_suspended_server_closes_nobody_when_it_resumes() {
    let server = Server::start_with(&["--ping-interval-ms", "1000"]).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::connect(&server, "room").await);
    }
    server.signal(Signal::STOP);
    // Longer than a silent client is tolerated, whichever check was due next.
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.signal(Signal::CONT);
    // The clients answer pings while they read; a client that was closed would see the close frame.
    let woken = Instant::now();
    let mut number = 0;
    while woken.elapsed() < Duration::from_secs(4) {
        let count = clients.len();
        let op = clients[number % count].write("k", json!(number)).await;
        for place in (0..count).filter(|place| *place != number % count) {
            clients[place].expect_op(&op).await;
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server
        .log_line(&["WARN", "was suspended or got no CPU time"])
        .await;
}

// ---- a client that stops reading ----

const SLOW_OPS_COUNT: usize = 5000;
const SLOW_VALUE_BYTES: usize = 10_000;
const SLOW_KEYS_COUNT: usize = 50;

/// Connects a client whose kernel buffers little on its behalf.
async fn connect_with_small_buffer(server: &Server) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .set_recv_buffer_size(16 * 1024)
        .expect("the buffer size can be set");
    let stream = socket
        .connect(server.addr())
        .await
        .expect("the server listens");
    let mut client = Client::dial_over(stream, &Server::sync_path("room"))
        .await
        .expect("the handshake succeeds");
    assert_eq!(client.next().await["type"], "init");
    client
}

/// Pushes ops through the room, all of which the reader receives in order. Returns the peak
/// resident memory observed in the meantime.
async fn push(server: &Server, writer: &mut Client, reader: &mut Client, ops_count: usize) -> u64 {
    const AHEAD: usize = 16;
    let mut resident_max = 0;
    let mut sent = std::collections::VecDeque::new();
    for number in 0..ops_count {
        let value = format!("{number:08}{}", "v".repeat(SLOW_VALUE_BYTES));
        sent.push_back(
            writer
                .write(&format!("k{}", number % SLOW_KEYS_COUNT), json!(value))
                .await,
        );
        if sent.len() > AHEAD {
            reader
                .expect_op(&sent.pop_front().expect("an op is in flight"))
                .await;
        }
        if number % 100 == 0 {
            resident_max = resident_max.max(server.resident_bytes());
        }
    }
    for op in sent {
        reader.expect_op(&op).await;
    }
    resident_max.max(server.resident_bytes())
}

/// Applies incoming ops until the client holds this state, and checks that no key ever goes back.
async fn read_until(client: &mut Client, truth: &Map<String, Value>) {
    let mut held = Map::new();
    let mut newest: std::collections::HashMap<String, u64> = std::collections::HashMap::new();
    while &held != truth {
        let op = client.next_op().await;
        let before = newest.insert(op.key.clone(), op.timestamp);
        assert!(
            before.is_none_or(|before| before <= op.timestamp),
            "{} went back in time",
            op.key
        );
        held.insert(op.key, op.value);
    }
}

#[tokio::test]
#[cfg_attr(
    address_sanitizer,
    ignore = "what was freed stays resident in the sanitizer's quarantine"
)]
async fn a_client_that_stops_reading_costs_no_memory_slows_nobody_and_ends_with_the_same_state() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    let mut stalled = connect_with_small_buffer(&server).await;
    push(&server, &mut writer, &mut reader, 2 * SLOW_KEYS_COUNT).await;
    let before = server.resident_bytes();
    let resident_max = push(&server, &mut writer, &mut reader, SLOW_OPS_COUNT).await;
    let growth = resident_max.saturating_sub(before);
    assert!(
        growth < 8 * 1024 * 1024,
        "memory grew by {growth} bytes while a client left 50 MB unread"
    );

    let truth = state_of(&server, "room").await;
    read_until(&mut stalled, &truth).await;
    let op = writer
        .write("k0", json!("one more, after it has caught up"))
        .await;
    stalled.expect_op(&op).await;
    reader.expect_op(&op).await;
    stalled.expect_silence(&mut writer).await;
}

/// P71, P72.
#[tokio::test]
async fn a_client_that_fell_behind_receives_the_latest_op_of_each_key_in_order_of_last_change() {
    let server = Server::start_with(&["--outbox-max-bytes", "65536"]).await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    let mut stalled = connect_with_small_buffer(&server).await;
    push(&server, &mut writer, &mut reader, 1500).await;
    let truth = state_of(&server, "room").await;
    let mut seen: Vec<Op> = Vec::new();
    let mut held = Map::new();
    while held != truth {
        let op = stalled.next_op().await;
        held.insert(op.key.clone(), op.value.clone());
        seen.push(op);
    }
    // The writer's timestamps increase, so the last changes are in timestamp order.
    assert!(
        seen.is_sorted_by_key(|op| op.timestamp),
        "the ops arrive in the order of the changes"
    );
    assert!(
        seen.len() < 1500,
        "the client received all {} ops instead of conflated ones",
        seen.len()
    );
}

/// P46, P72.
#[tokio::test]
async fn a_client_that_fell_behind_receives_its_own_ops_back_only_as_corrections() {
    let server = Server::start_with(&["--outbox-max-bytes", "65536"]).await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    let mut stalled = connect_with_small_buffer(&server).await;
    let own = stalled.write("its own", json!("never echoed")).await;
    reader.expect_op(&own).await;
    assert_eq!(writer.next_op().await, own);
    push(&server, &mut writer, &mut reader, 1500).await;
    let last = writer.write("last", json!("the last")).await;
    loop {
        let op = stalled.next_op().await;
        assert_ne!(op.key, "its own", "an op was sent back to its sender");
        if op == last {
            return;
        }
    }
}

/// P73, P78.
#[tokio::test]
async fn a_client_that_reads_nothing_for_60_s_is_closed_with_1013() {
    // The ping interval is so long that no client is closed for silence in this test.
    let server = Server::start_with(&["--ping-interval-ms", "3600000"]).await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    let mut stalled = connect_with_small_buffer(&server).await;
    push(&server, &mut writer, &mut reader, 1500).await;
    let open_before = server.open_sockets_count();
    let begun = Instant::now();
    let gone = async || (server.open_sockets_count() < open_before).then_some(());
    eventually_in(
        Duration::from_secs(90),
        "the server drops a client that reads nothing",
        gone,
    )
    .await;
    assert!(
        begun.elapsed() > Duration::from_secs(50),
        "a client was closed after {:?} instead of 60 s",
        begun.elapsed()
    );
    // The close frame follows the data that the kernel already held; a reset of the connection may
    // discard it.
    loop {
        // A client that only listens cannot tell a lost connection from a live one, so this one
        // also sends.
        stalled.try_send(Message::text(r#"{"type":"ping"}"#)).await;
        match stalled.event().await {
            Event::Text(_) => {}
            Event::Close(code, _) => break assert_eq!(code, 1013),
            Event::Lost(_) => break,
        }
    }
    let op = writer.write("after", json!(1)).await;
    reader.expect_op(&op).await;
}

// ---- many ----

/// P46.
#[tokio::test]
async fn five_hundred_clients_of_one_workspace_receive_the_same_ops_in_the_same_order() {
    let server = Server::start().await;
    let mut clients = Vec::new();
    for _ in 0..500 {
        clients.push(Client::connect(&server, "room").await);
    }
    let mut writers = [
        Client::connect(&server, "room").await,
        Client::connect(&server, "room").await,
    ];
    for number in 0..10 {
        for (index, writer) in writers.iter_mut().enumerate() {
            writer
                .send_op(&Op::new(
                    &format!("{index}-{number}"),
                    json!(number),
                    stamp(),
                ))
                .await;
        }
    }
    let mut first_order: Option<Vec<Op>> = None;
    for client in &mut clients {
        let mut order = Vec::new();
        for _ in 0..20 {
            order.push(client.next_op().await);
        }
        assert_eq!(first_order.get_or_insert_with(|| order.clone()), &order);
    }
    assert_eq!(state_of(&server, "room").await.len(), 20);
}

#[tokio::test]
async fn two_servers_with_their_own_ports_and_folders_are_independent() {
    let one = Server::start().await;
    let two = Server::start().await;
    let mut writer = Client::connect(&one, "room").await;
    let mut witness = Client::connect(&one, "room").await;
    let mut stranger = Client::connect(&two, "room").await;
    let op = writer.write("k", json!(1)).await;
    witness.expect_op(&op).await;
    stranger.expect_no_answer().await;
    assert!(state_of(&two, "room").await.is_empty());
}

// ---- shutdown ----

async fn check_drain(signal: Signal) {
    const DRAIN: Duration = Duration::from_secs(1);
    let mut server = Setup::new().args(&["--drain-ms", "1000"]).start().await;
    let mut clients = Vec::new();
    for index in 0..20 {
        clients.push(Client::connect(&server, &format!("room {}", index % 5)).await);
    }
    let addr = server.addr();
    server.signal(signal);
    let begun = Instant::now();
    for client in &mut clients {
        assert_eq!(client.close_code().await, 1001);
    }
    assert_eq!(
        server.exit_code_within(PATIENCE).await,
        Some(0),
        "the log:\n{}",
        server.log()
    );
    assert!(
        begun.elapsed() < DRAIN + Duration::from_secs(2),
        "the server stopped after {:?}",
        begun.elapsed()
    );
    tokio::net::TcpStream::connect(addr)
        .await
        .expect_err("a connection was accepted after the stop");
}

/// P77, P78.
#[tokio::test]
async fn sigterm_closes_all_clients_with_1001_and_exits_0_within_the_drain_time() {
    check_drain(Signal::TERM).await;
}

/// P77.
#[tokio::test]
async fn sigint_closes_all_clients_with_1001_and_exits_0_within_the_drain_time() {
    check_drain(Signal::INT).await;
}

#[tokio::test]
async fn sigterm_ends_a_server_even_if_clients_do_not_read_or_never_finish_a_request() {
    let mut server = Setup::new().args(&["--drain-ms", "500"]).start().await;
    let _half_a_head = {
        let mut raw = Raw::connect(server.addr()).await;
        raw.send(b"GET /v1/sy").await;
        raw
    };
    let _silent = Raw::open(server.addr(), &Server::sync_path("room")).await;
    server.terminate();
    assert_eq!(server.exit_code_within(PATIENCE).await, Some(0));
}

/// P12, P77.
#[tokio::test]
async fn no_new_client_is_served_while_draining() {
    let mut server = Setup::new().args(&["--drain-ms", "2000"]).start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::connect(&server, "room").await);
    }
    server.terminate();
    let first_close = futures_util::future::select_all(
        clients
            .iter_mut()
            .map(|client| Box::pin(client.close_code())),
    );
    assert_eq!(
        within("the first close of the drain", first_close).await.0,
        1001
    );
    assert!(
        Client::dial(server.addr(), &Server::sync_path("room"))
            .await
            .is_err(),
        "a client was admitted while draining"
    );
    drop(clients);
    assert_eq!(server.exit_code_within(PATIENCE).await, Some(0));
}

#[tokio::test]
async fn an_idle_server_stops_without_waiting_for_the_drain_time() {
    let mut server = Setup::new().args(&["--drain-ms", "3600000"]).start().await;
    server.stop().await;
}

#[tokio::test]
#[should_panic(expected = "the server exited unexpectedly")]
async fn a_server_that_dies_unnoticed_fails_the_test() {
    let server = Server::start().await;
    server.signal(Signal::ABORT);
    let is_gone = async || {
        let connected = tokio::net::TcpStream::connect(server.addr()).await;
        connected.is_err().then_some(())
    };
    eventually("the port is closed", is_gone).await;
}
