//! Crowds of clients that disconnect at any moment and reconnect immediately: in the middle of a
//! head, a frame, an init message, a broadcast. Whatever was in flight for them, the clients that
//! stay receive every op, and the disconnected ones leave nothing behind.

use crate::support::client::{Client, Op, op_text, state_of, unfinished_head};
use crate::support::raw::{CLOSE, TEXT, handshake_head, masked_frame};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, stamp, within};
use etherply::core::testing::Dice;
use rustix::net::sockopt::set_socket_linger;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

const ROOMS_COUNT: u64 = 3;
const KEPT_OPS_COUNT: usize = 120;
const CROWD_COUNT: u64 = 24;

fn room_name(room: u64) -> String {
    format!("room {room}")
}

/// Has `writer` send ops and `witness` receive them, and counts each op that arrives in `progress`.
async fn stay(mut writer: Client, mut witness: Client, progress: watch::Sender<usize>) {
    for number in 0..KEPT_OPS_COUNT {
        let op = writer
            .write(
                &format!("kept {number}"),
                json!("k".repeat(200 * (number % 100))),
            )
            .await;
        let arrived = async {
            loop {
                let next = witness.next_op().await;
                if next.key.starts_with("kept") {
                    return next;
                }
            }
        };
        assert_eq!(within("the op of a remaining client", arrived).await, op);
        progress.send_modify(|count| *count += 1);
    }
}

/// Returns a request followed by a burst of ops, to be sent in one piece.
fn burst(room: u64, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = handshake_head(&Server::sync_path(&room_name(room)), "").into_bytes();
    for number in 0..dice.below(30) {
        let filler = "n".repeat(dice.below(4000));
        let op = Op::new(&format!("noise {number}"), json!(filler), stamp());
        bytes.extend(masked_frame(TEXT, op_text(&op).as_bytes()));
    }
    bytes
}

/// Connects with a small receive buffer, so that data sent to the client soon queues up in the
/// server.
async fn connect(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .set_recv_buffer_size(4096)
        .expect("the buffer size can be set");
    within("a connection", socket.connect(server.addr()))
        .await
        .expect("the server listens")
}

/// Connects and disconnects once, in one of several ways.
async fn connect_and_vanish(
    server: &Server,
    room: u64,
    dice: &mut Dice,
    mut progress: watch::Receiver<usize>,
) {
    let mut stream = connect(server).await;
    if dice.one_in(2) {
        // The connection is reset instead of closed.
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("the socket option can be set");
    }
    let mut bytes = burst(room, dice);
    match dice.below(5) {
        0 => bytes = unfinished_head(&room_name(room)).into_bytes(),
        1 => {
            bytes.truncate(dice.below(bytes.len()));
        }
        2 => bytes.extend(masked_frame(CLOSE, &1000_u16.to_be_bytes())),
        _ => {}
    }
    // The server may have hung up already, after a close frame.
    let _ = within("space in the socket", stream.write_all(&bytes)).await;
    match dice.below(3) {
        0 => {}
        1 => {
            let mut some = [0; 300];
            // Nothing arrives after half a head, so this also waits for progress.
            tokio::select! {
                _ = stream.read(&mut some) => {}
                _ = progress.changed() => {}
            }
        }
        _ => {
            // The client does not read until its socket is full of unread data.
            let now = *progress.borrow();
            let _ = progress.wait_for(|count| *count >= now + 10).await;
        }
    }
}

/// Has a crowd connect and disconnect until every sender of progress is done.
async fn crowd(server: &Server, progress: watch::Receiver<usize>) {
    let members = (0..CROWD_COUNT).map(|number| {
        let progress = progress.clone();
        async move {
            let mut dice = Dice::new(number + 1);
            let mut count = 0;
            while progress.has_changed().is_ok() {
                let room = dice.below_u64(ROOMS_COUNT);
                connect_and_vanish(server, room, &mut dice, progress.clone()).await;
                count += 1;
            }
            count
        }
    });
    let count: u64 = futures_util::future::join_all(members).await.iter().sum();
    assert!(count > 2 * CROWD_COUNT, "only {count} connections in total");
}

async fn expect_nothing_left(server: &Server, open_before: usize) {
    let left = async || (server.open_sockets_count() <= open_before).then_some(());
    eventually("the connections of all vanished clients are closed", left).await;
}

async fn check_remaining_clients_receive_every_op(setup: Setup) {
    let mut server = setup.start().await;
    let (sender, progress) = watch::channel(0);
    let mut pairs = Vec::new();
    for room in 0..ROOMS_COUNT {
        let writer = Client::connect(&server, &room_name(room)).await;
        let witness = Client::connect(&server, &room_name(room)).await;
        pairs.push((writer, witness));
    }
    // The rooms are spread over both shards, so the rings of both are open by now.
    let open_before = server.open_sockets_count() - 2 * pairs.len();
    let stays: Vec<_> = pairs
        .into_iter()
        .map(|(writer, witness)| tokio::spawn(stay(writer, witness, sender.clone())))
        .collect();
    drop(sender);
    crowd(&server, progress).await;
    for stay in stays {
        stay.await.expect("the remaining clients receive every op");
    }
    expect_nothing_left(&server, open_before).await;
    for room in 0..ROOMS_COUNT {
        let state = state_of(&server, &room_name(room)).await;
        let kept = state.keys().filter(|key| key.starts_with("kept")).count();
        assert_eq!(kept, KEPT_OPS_COUNT);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_that_disconnect_and_return_disturb_nobody_and_leave_nothing_behind() {
    check_remaining_clients_receive_every_op(Setup::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_that_disconnect_and_return_disturb_nobody_on_old_kernels() {
    for variable in [
        ("ETHERPLY_RING", "compat"),
        ("ETHERPLY_FAULT_OLD_KERNEL", "1"),
    ] {
        let setup = Setup::new().env(variable.0, variable.1);
        check_remaining_clients_receive_every_op(setup).await;
    }
}

/// Repeatedly sends an op that is shown, then makes its shard fail. Each time, the sends to a whole
/// crowd are in flight.
async fn fail_repeatedly(server: &Server, progress: watch::Sender<usize>) {
    for number in 0..10 {
        let mut writer = Client::connect_at_last(server, &room_name(0)).await;
        let mut witness = Client::connect_at_last(server, &room_name(0)).await;
        let op = writer.write(&format!("kept {number}"), json!(number)).await;
        let shown = async { while witness.next_op().await != op {} };
        within("the op before the fault", shown).await;
        let faulty = Op::new("planted fault", json!(1), stamp());
        writer.send_op(&faulty).await;
        assert_eq!(witness.close_code().await, 1011);
        progress.send_modify(|count| *count += 1);
    }
    drop(progress);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_fails_under_a_crowd_leaves_nothing_behind_and_loses_no_delivered_op() {
    let setup = Setup::new().env("ETHERPLY_FAULT_PANIC_KEY", "planted fault");
    let mut server = setup.start().await;
    // These rooms are spread over both shards, so the rings of both are open then.
    let early = [
        Client::connect(&server, &room_name(0)).await,
        Client::connect(&server, &room_name(1)).await,
    ];
    let open_before = server.open_sockets_count() - early.len();
    drop(early);
    let (sender, progress) = watch::channel(0);
    tokio::join!(fail_repeatedly(&server, sender), crowd(&server, progress));
    expect_nothing_left(&server, open_before).await;
    let state = Client::connect_at_last(&server, &room_name(0)).await.init;
    for number in 0..10 {
        assert_eq!(state.get(&format!("kept {number}")), Some(&json!(number)));
    }
    server.stop().await;
}
