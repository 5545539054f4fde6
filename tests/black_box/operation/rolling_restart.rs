//! Restarts on a socket that the server inherits (`sd_listen_fds(3)`): no connection is refused and
//! no op is lost.

mod load;

use crate::support::client::Client;
use crate::support::raw::{Raw, handshake_head};
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, within};
use load::Load;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::process::Signal;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering::Relaxed;
use tokio::net::UnixDatagram;

/// Returns the parent's socket, which outlives the servers.
fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn passing(listener: &TcpListener) -> Setup {
    Setup::new().passing(listener.try_clone().expect("a free file descriptor"))
}

fn address_of(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("the listener is bound")
}

/// Connects and sends a handshake, to whichever server accepts it.
async fn knock(addr: SocketAddr) -> Raw {
    let mut raw = Raw::connect(addr).await;
    let head = handshake_head(&Server::sync_path("room 0"), "");
    raw.send(head.as_bytes()).await;
    raw
}

// ---- the restart ----

/// The shard count after each restart, and whether the restart began with kill -9.
const RESTARTS: [(u32, bool); 6] = [
    (3, false),
    (1, false),
    (2, true),
    (2, false),
    (4, false),
    (2, false),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_refuse_no_connection_and_lose_no_op() {
    let listener = listener();
    let addr = address_of(&listener);
    let setup = passing(&listener).args(&["--drain-ms", "200"]);
    let mut server = setup.start().await;
    assert_eq!(
        server.addr(),
        addr,
        "the server does not listen on the passed socket"
    );
    let load = Load::start(addr);
    for (round, (shards, by_kill)) in RESTARTS.into_iter().enumerate() {
        load.until_more_is_shown(300).await;
        let mut knocks = Vec::new();
        let let_in_before = load.tally.let_in.load(Relaxed);
        if by_kill {
            load.tally.may_be_cut.store(true, Relaxed);
            server.kill9();
        } else {
            server.terminate();
            let code = server.exit_code_within(PATIENCE).await;
            assert_eq!(code, Some(0), "restart {round}: {}", server.log());
        }
        // No process listens on the socket now.
        for _ in 0..3 {
            knocks.push(knock(addr).await);
        }
        server.restart(shards).await;
        for mut knock in knocks {
            assert_eq!(knock.answer().await.status, 101, "restart {round}");
        }
        // By then, each client has noticed the end of its connection.
        load.until_all_are_back(let_in_before).await;
        load.tally.may_be_cut.store(false, Relaxed);
    }
    load.until_more_is_shown(300).await;
    let ledger = load.finish().await;
    let tally = &ledger.tally;
    println!("{tally:?}, {} ops shown", ledger.shown.len());
    assert_eq!(tally.refused.load(Relaxed), 0, "{tally:?}");
    assert_eq!(tally.cut.load(Relaxed), 0, "{tally:?}");
    ledger.check(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_connects_during_a_drain_waits_for_the_new_server() {
    for old_kernel in [false, true] {
        let listener = listener();
        let mut setup = passing(&listener).shards(1).args(&["--drain-ms", "1000"]);
        if old_kernel {
            setup = setup.env("ETHERPLY_FAULT_OLD_KERNEL", "1");
        }
        let mut server = setup.start().await;
        let mut first = Client::connect(&server, "room 0").await;
        let mut second = Client::connect(&server, "room 0").await;
        server.terminate();
        assert_eq!(first.expect_close(1001).await, "the server is stopping");
        let mut knock = knock(server.addr()).await;
        second.expect_close(1001).await;
        // Both ends are closed, so the old server need not wait for them.
        drop((first, second));
        assert_eq!(server.exit_code_within(PATIENCE).await, Some(0));
        server.restart(1).await;
        let answer = knock.answer().await;
        // Before Linux 5.19, an accept cannot be cancelled and takes one more connection.
        if old_kernel {
            assert_eq!(answer.status, 503);
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
        } else {
            assert_eq!(answer.status, 101);
        }
        Client::connect(&server, "room 0").await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_connects_while_the_log_is_read_waits_even_through_sighup() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gate = folder.path().join("gate");
    let listener = listener();
    let setup = passing(&listener);
    setup.clone().start().await.stop().await;
    let held = setup.env("ETHERPLY_FAULT_HOLD_RECOVERY", &gate.display().to_string());
    let mut server = held.start_reading().await;
    assert_eq!(server.addr(), address_of(&listener));
    let mut knock = knock(server.addr()).await;
    // By this time, a server that was accepting would long since have read the handshake.
    server.log_line(&["reading the log"]).await;
    server.signal(Signal::HUP);
    server.log_line(&["SIGHUP has no effect"]).await;
    std::fs::write(&gate, "").expect("the folder can be written");
    server.until_it_listens().await;
    assert_eq!(knock.answer().await.status, 101);
    server.stop().await;
}

// ---- the passed socket ----

#[tokio::test]
async fn a_passed_socket_is_made_blocking_and_the_port_variable_is_ignored() {
    let listener = listener();
    listener
        .set_nonblocking(true)
        .expect("the socket option can be set");
    let setup = passing(&listener).env("PORT", "1");
    let mut server = setup.start().await;
    assert_eq!(server.addr(), address_of(&listener));
    // O_NONBLOCK is a flag of the open file description that both descriptors share.
    let flags = fcntl_getfl(&listener).expect("the socket is open");
    assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
    for _ in 0..3 {
        Client::connect(&server, "room 0").await;
    }
    server.stop().await;
    TcpStream::connect(address_of(&listener)).expect("the socket outlives the server");
}

#[tokio::test]
async fn a_passed_socket_and_an_address_conflict() {
    let listener = listener();
    let address = address_of(&listener).to_string();
    for (setup, setting) in [
        (passing(&listener).args(&["--port", "0"]), "--port"),
        (passing(&listener).args(&["--host", "127.0.0.1"]), "--host"),
        (
            passing(&listener).env("ETHERPLY_PORT", "0"),
            "ETHERPLY_PORT",
        ),
        (
            passing(&listener).args(&["--host", "127.0.0.1", "--port", "0"]),
            "--host and --port",
        ),
    ] {
        let outcome = setup.run().await;
        let line = outcome.expect_refusal();
        for word in ["LISTEN_FDS", &address, setting, "leave out"] {
            assert!(line.contains(word), "{line}");
        }
    }
}

#[tokio::test]
async fn anything_but_a_listening_tcp_socket_is_refused_with_one_clear_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases: [(OwnedFd, &str); 4] = [
        (
            tempfile::tempfile().expect("a file").into(),
            "is not a socket",
        ),
        (
            UdpSocket::bind("127.0.0.1:0").expect("a port").into(),
            "not a valid tcp socket",
        ),
        (
            UnixListener::bind(folder.path().join("socket"))
                .expect("a path")
                .into(),
            "not a valid tcp socket",
        ),
        (connected(), "it does not listen"),
    ];
    for (passed, why) in cases {
        let outcome = Setup::new().passing(passed).run().await;
        let line = outcome.expect_refusal();
        for word in [why, "LISTEN_FDS", "ListenStream=", "Accept=no"] {
            assert!(line.contains(word), "{word}: {line}");
        }
    }
    let two = Setup::new()
        .passing(listener())
        .prepared("export LISTEN_FDS=2");
    let outcome = two.run().await;
    let line = outcome.expect_refusal();
    assert!(line.contains("2 sockets were passed"), "{line}");
}

/// Returns a connection, which is a TCP socket that does not listen.
fn connected() -> OwnedFd {
    let listener = listener();
    let stream = TcpStream::connect(address_of(&listener));
    stream.expect("the server listens").into()
}

#[tokio::test]
async fn dev_refuses_a_socket_that_others_can_reach() {
    let open = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let outcome = passing(&open).args(&["--dev"]).run().await;
    let line = outcome.expect_refusal();
    assert!(line.contains("--dev") && line.contains("0.0.0.0"), "{line}");
    let loopback = listener();
    let mut server = passing(&loopback).args(&["--dev"]).start().await;
    assert_eq!(server.addr(), address_of(&loopback));
    server.stop().await;
}

#[tokio::test]
async fn a_socket_for_another_process_is_not_used() {
    let listener = listener();
    let setup = passing(&listener).prepared("export LISTEN_PID=1");
    let mut server = setup
        .args(&["--port", "0", "--host", "127.0.0.1"])
        .start()
        .await;
    assert_ne!(server.addr(), address_of(&listener));
    server.stop().await;
}

// ---- the service manager ----

#[tokio::test]
async fn the_service_manager_is_notified_when_the_server_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a path");
    let setup = Setup::new().env("NOTIFY_SOCKET", &path.display().to_string());
    let mut server = setup.start().await;
    for expected in ["READY=1\n", "STOPPING=1\n"] {
        let mut message = [0; 100];
        let length = within(expected, manager.recv(&mut message)).await;
        let length = length.expect("the socket is open");
        assert_eq!(std::str::from_utf8(&message[..length]), Ok(expected));
        // The first signal stops the server, the second one speeds up the stop.
        server.terminate();
    }
    assert_eq!(server.exit_code_within(PATIENCE).await, Some(0));
}

#[tokio::test]
async fn a_missing_service_manager_is_logged_and_serving_continues() {
    let setup = Setup::new().env("NOTIFY_SOCKET", "/nowhere/notify");
    let mut server = setup.start().await;
    server.log_line(&["WARN", "NOTIFY_SOCKET", "READY=1"]).await;
    Client::connect(&server, "room 0").await;
    server.stop().await;
}
