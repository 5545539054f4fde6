//! The HTTP part of the protocol except for tokens: the response to every kind of request,
//! handshake or not.

use crate::support::client::{Client, Op, op_text, unfinished_head};
use crate::support::raw::{Answer, Raw, TEXT, handshake_head, masked_frame};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, now_s, stamp, token, within};
use serde_json::json;
use std::process::Command;
use std::time::{Duration, Instant};

/// The value that a server must derive from the sample key of the RFC (RFC 6455 section 1.3).
const ACCEPT_OF_SAMPLE_KEY: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

async fn answer_to(server: &Server, request: &str) -> Answer {
    let mut socket = Raw::connect(server.addr()).await;
    socket.send(request.as_bytes()).await;
    socket.answer().await
}

// ---- 101 ----

/// P7.
#[tokio::test]
async fn a_handshake_with_a_valid_token_is_answered_101_with_the_accept_key() {
    let server = Server::start().await;
    let answer = server.handshake(&Server::sync_path("room")).await;
    assert_eq!(answer.status, 101);
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some(ACCEPT_OF_SAMPLE_KEY)
    );
    assert!(
        answer
            .header("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
    );
    assert!(
        answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("upgrade"))
    );
}

#[tokio::test]
async fn a_handshake_arriving_byte_by_byte_is_answered_101() {
    let server = Server::start().await;
    let mut socket = Raw::connect(server.addr()).await;
    for byte in handshake_head(&Server::sync_path("room"), "").as_bytes() {
        socket.send(&[*byte]).await;
    }
    assert_eq!(socket.answer().await.status, 101);
}

#[tokio::test]
async fn a_frame_right_after_the_handshake_is_served() {
    let server = Server::start().await;
    let mut other = Client::connect(&server, "room").await;
    let mut socket = Raw::connect(server.addr()).await;
    let mut bytes = handshake_head(&Server::sync_path("room"), "").into_bytes();
    let op = Op::new("early", json!(1), stamp());
    bytes.extend(masked_frame(TEXT, op_text(&op).as_bytes()));
    socket.send(&bytes).await;
    assert_eq!(socket.answer().await.status, 101);
    other.expect_op(&op).await;
}

/// P7.
#[tokio::test]
async fn upgrade_headers_are_case_insensitive_and_may_list_other_members() {
    let server = Server::start().await;
    let path = Server::sync_path("room");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHOST: test\r\nuPGRADE: WebSocket\r\n\
         CONNECTION: keep-alive, UPGRADE\r\n\
         sec-websocket-version: 13\r\nSEC-WEBSOCKET-KEY: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    assert_eq!(answer_to(&server, &request).await.status, 101);
}

/// P7.
#[tokio::test]
async fn offered_extensions_are_not_accepted() {
    let server = Server::start().await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let answer = Raw::connect(server.addr())
        .await
        .handshake(&Server::sync_path("room"), offer)
        .await;
    assert_eq!(
        (answer.status, answer.header("sec-websocket-extensions")),
        (101, None)
    );
}

/// P11.
#[tokio::test]
async fn unknown_query_parameters_such_as_user_id_are_ignored() {
    let server = Server::start().await;
    let token = token::valid();
    for query in [
        format!("userId=ann&token={token}"),
        format!("token={token}&userId=ann&x"),
        format!("&a=b&&token={token}&="),
    ] {
        let answer = server.handshake(&format!("/v1/sync/room?{query}")).await;
        assert_eq!(answer.status, 101, "query {query}");
    }
}

// ---- the workspace id ----

/// Checks whether two spellings name one workspace, as `same` states: whether an op written under
/// the first is in the state received under the second.
async fn assert_same_room(server: &Server, first: &str, second: &str, same: bool) {
    let path = |segment: &str| format!("/v1/sync/{segment}?token={}", token::valid());
    let mut writer = Client::connect_path(server, &path(first)).await;
    let mut peer = Client::connect_path(server, &path(first)).await;
    let op = writer
        .write(&format!("{first} and {second}"), json!(1))
        .await;
    peer.expect_op(&op).await;
    let joined = Client::connect_path(server, &path(second)).await;
    assert_eq!(
        joined.init.contains_key(&op.key),
        same,
        "{first} and {second} are the same workspace: expected {same}"
    );
}

/// P8.
#[tokio::test]
async fn a_workspace_id_is_percent_decoded() {
    let server = Server::start().await;
    assert_same_room(&server, "%72oom", "room", true).await;
    assert_same_room(&server, "caf%C3%A9", "caf%c3%a9", true).await;
    assert_same_room(&server, "a+b", "a%2Bb", true).await;
    assert_same_room(&server, "a+b", "a%20b", false).await;
    assert_same_room(&server, "room", "Room", false).await;
    assert_same_room(&server, "100%25", "100", false).await;
}

/// P8.
#[tokio::test]
async fn an_encoded_slash_is_part_of_the_id_and_not_a_separator() {
    let server = Server::start().await;
    assert_same_room(&server, "team%2Froom", "team%2froom", true).await;
    assert_same_room(&server, "team%2Froom", "team", false).await;
    let token = token::valid();
    assert_eq!(
        server
            .handshake(&format!("/v1/sync/team/room?token={token}"))
            .await
            .status,
        404
    );
}

/// P8.
#[tokio::test]
async fn a_workspace_id_of_256_bytes_is_the_longest() {
    let server = Server::start().await;
    assert_eq!(
        server
            .handshake(&Server::sync_path(&"w".repeat(256)))
            .await
            .status,
        101
    );
    assert_eq!(
        server
            .handshake(&Server::sync_path(&"é".repeat(128)))
            .await
            .status,
        101
    );
    assert_eq!(
        server
            .handshake(&Server::sync_path(&"w".repeat(257)))
            .await
            .status,
        400
    );
    assert_eq!(
        server
            .handshake(&Server::sync_path(&"é".repeat(129)))
            .await
            .status,
        400
    );
}

/// P8.
#[tokio::test]
async fn a_bad_workspace_id_is_answered_400() {
    let server = Server::start().await;
    let token = token::valid();
    let empty = "";
    let not_utf8 = ["%FF", "a%C3", "%ED%A0%80"];
    let control_characters = ["%00", "a%0Ab", "%1F", "%7F", "%C2%85"];
    for segment in [empty].iter().chain(&not_utf8).chain(&control_characters) {
        let answer = server
            .handshake(&format!("/v1/sync/{segment}?token={token}"))
            .await;
        assert_eq!(answer.status, 400, "id {segment:?}: {answer:?}");
    }
}

// ---- 400, 426: not a handshake ----

/// P4.
#[tokio::test]
async fn a_bad_request_line_or_header_is_answered_400() {
    let server = Server::start().await;
    let bad = [
        "rubbish\r\n\r\n",
        "GET /healthz\r\n\r\n",
        "GET  /healthz HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /healthz HTTP/7.1\r\nHost: test\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nno colon here\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nbad name: x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nx: a\0b\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
    ];
    for request in bad {
        let answer = answer_to(&server, request).await;
        assert_eq!(answer.status, 400, "request {request:?}: {answer:?}");
    }
}

/// P5.
#[tokio::test]
async fn an_invalid_host_is_answered_400() {
    let server = Server::start().await;
    let good = handshake_head(&Server::sync_path("room"), "");
    for (host, status) in [
        ("Host: a.example:8080", 101),
        ("Host: [2001:db8::1]:80", 101),
        ("Host:", 101),
        ("Host: a/b", 400),
        ("Host: a b", 400),
        ("Host: a, b", 400),
        ("Host: [::1", 400),
        ("Host: user@a", 400),
        ("Host: a:port", 400),
        ("Host: a\r\nHost: a", 400),
        ("X: y", 400),
    ] {
        let answer = answer_to(&server, &good.replace("Host: test", host)).await;
        assert_eq!(answer.status, status, "{host}: {answer:?}");
    }
}

/// P6.
#[tokio::test]
async fn a_body_whose_length_is_unclear_is_answered_400() {
    let server = Server::start().await;
    let path = format!("/v1/workspaces/room?token={}", token::valid());
    for (fields, status) in [
        ("Content-Length: 5\r\n", 200),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 200),
        ("Transfer-Encoding: chunked\r\n", 200),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 6\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: five\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Transfer-Encoding: gzip\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
    ] {
        for path in [path.as_str(), "/healthz", "/client.mjs"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
            let answer = answer_to(&server, &request).await;
            assert_eq!(answer.status, status, "{path} {fields}: {answer:?}");
        }
    }
}

/// P7.
#[tokio::test]
async fn a_handshake_without_a_valid_key_is_answered_400() {
    let server = Server::start().await;
    let good = handshake_head(&Server::sync_path("room"), "");
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for replacement in [
        "",
        "Sec-WebSocket-Key: \r\n",
        "Sec-WebSocket-Key: c2hvcnQ=\r\n",
    ] {
        let answer = answer_to(&server, &good.replace(key, replacement)).await;
        assert_eq!(answer.status, 400, "key {replacement:?}: {answer:?}");
    }
}

/// P7.
#[tokio::test]
async fn a_websocket_version_other_than_13_is_answered_426_naming_13() {
    let server = Server::start().await;
    let good = handshake_head(&Server::sync_path("room"), "");
    for version in ["8", "12", "14", "thirteen"] {
        let request = good.replace(
            "Sec-WebSocket-Version: 13",
            &format!("Sec-WebSocket-Version: {version}"),
        );
        let answer = answer_to(&server, &request).await;
        assert_eq!(answer.status, 426, "version {version}");
        assert_eq!(
            answer.header("sec-websocket-version"),
            Some("13"),
            "version {version}"
        );
    }
}

/// P7.
#[tokio::test]
async fn a_sync_request_without_an_upgrade_is_answered_426() {
    let server = Server::start().await;
    let path = Server::sync_path("room");
    let bare = server.get(&path).await;
    let other_protocol = answer_to(
        &server,
        &format!(
            "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
        ),
    )
    .await;
    for answer in [bare, other_protocol] {
        assert_eq!(answer.status, 426);
        assert!(
            answer
                .header("upgrade")
                .is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
            "{answer:?}"
        );
    }
}

// ---- 404, 405 ----

#[tokio::test]
async fn an_unknown_path_is_answered_404() {
    let server = Server::start().await;
    let token = token::valid();
    for path in [
        "/",
        "/nope",
        "/v1",
        "/v1/sync",
        "/v1/synchrony",
        "/v2/sync/room",
        "/v1/sync/a/b",
        "/healthz/x",
        "/HEALTHZ",
    ] {
        let answer = server.handshake(&format!("{path}?token={token}")).await;
        assert_eq!(answer.status, 404, "path {path}");
    }
}

#[tokio::test]
async fn an_unsupported_method_is_answered_405_with_allow() {
    let server = Server::start().await;
    let sync = Server::sync_path("room");
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in [sync.as_str(), "/healthz", "/readyz"] {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
            let answer = answer_to(&server, &request).await;
            assert_eq!(answer.status, 405, "for {method} {path}");
            let allow = answer.header("allow").unwrap_or_default();
            assert!(
                allow.split(',').any(|allowed| allowed.trim() == "GET"),
                "Allow of {method} {path}: {allow:?}"
            );
        }
    }
}

// ---- 431, 408 ----

/// P9.
#[tokio::test]
async fn a_head_over_16_kib_is_answered_431() {
    let server = Server::start().await;
    let bare = handshake_head(&Server::sync_path("room"), "").len();
    for (total, status) in [(16 * 1024, 101), (16 * 1024 + 1, 431)] {
        let filler = "x".repeat(total - bare - "X-Filler: \r\n".len());
        let head = handshake_head(
            &Server::sync_path("room"),
            &format!("X-Filler: {filler}\r\n"),
        );
        assert_eq!(head.len(), total, "the head has another length");
        assert_eq!(
            answer_to(&server, &head).await.status,
            status,
            "head of {total} bytes"
        );
    }
}

/// P9.
#[tokio::test]
async fn a_head_with_many_fields_is_answered_normally_up_to_16_kib() {
    let server = Server::start().await;
    let path = Server::sync_path("room");
    let bare = handshake_head(&path, "").len();
    let most = (16 * 1024 - bare) / "a:\n".len();
    for (count, status) in [(60, 101), (200, 101), (most, 101), (most + 1, 431)] {
        let head = handshake_head(&path, &"a:\n".repeat(count));
        let answer = answer_to(&server, &head).await;
        assert_eq!(answer.status, status, "{count} extra fields");
        if status == 431 {
            assert!(answer.body.contains("16 KiB"), "{answer:?}");
        }
    }
}

/// P3.
#[tokio::test]
async fn every_answer_except_101_has_a_date() {
    let server = Server::start().await;
    for path in [
        "/healthz",
        "/readyz",
        "/nope",
        "/client.mjs",
        "/metrics",
        "/v1/workspaces/room",
        &format!("/v1/workspaces/room?token={}", token::valid()),
        &Server::sync_path("room"),
    ] {
        let answer = server.get(path).await;
        let date = answer
            .header("date")
            .unwrap_or_else(|| panic!("{path}: {answer:?}"));
        // `date -u` serves as the reference for the format (RFC 9110 section 5.6.7).
        let read = Command::new("date")
            .args(["-u", "-d", date, "+%s %a, %d %b %Y %T GMT"])
            .env("LC_ALL", "C")
            .output();
        let read = String::from_utf8(read.expect("date(1) can be run").stdout).expect("text");
        let (unix_s, again) = read
            .trim()
            .split_once(' ')
            .unwrap_or_else(|| panic!("{path}: {date}"));
        assert_eq!(again, date, "{path}");
        let unix_s: u64 = unix_s.parse().expect("a number");
        assert!(now_s().abs_diff(unix_s) < 60, "{path}: {date}");
    }
    assert_eq!(
        server
            .handshake(&Server::sync_path("room"))
            .await
            .header("date"),
        None
    );
}

/// P9.
#[tokio::test]
async fn an_endless_head_is_answered_431_after_16_kib() {
    let server = Server::start().await;
    let endless = format!("GET /{} HTTP/1.1\r\n", "x".repeat(17 * 1024));
    assert_eq!(answer_to(&server, &endless).await.status, 431);
}

/// P10.
#[tokio::test]
async fn a_head_not_finished_in_10_seconds_is_answered_408_even_if_it_trickles_in() {
    let server = Server::start().await;
    let begun = Instant::now();
    let mut silent = Raw::connect(server.addr()).await;
    silent.send(unfinished_head("room").as_bytes()).await;
    let mut dripping = Raw::connect(server.addr()).await;
    let drip = async {
        loop {
            dripping.send_lossy(b"G").await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let answer = tokio::select! {
        answer = silent.answer() => answer,
        () = drip => unreachable!("the bytes never stop"),
    };
    assert_eq!(answer.status, 408);
    assert!(
        begun.elapsed() > Duration::from_secs(9),
        "a head was allowed {:?} instead of 10 seconds",
        begun.elapsed()
    );
    silent.expect_end().await;
    assert_eq!(dripping.answer().await.status, 408);
    dripping.expect_end().await;
}

// ---- 503 ----

/// P12.
#[tokio::test]
async fn a_handshake_over_the_connection_limit_is_answered_503_with_retry_after() {
    let server = Server::start_with(&["--max-connections", "2"]).await;
    let first = Client::connect(&server, "room").await;
    let mut second = Client::connect(&server, "room").await;
    let answer = server.handshake(&Server::sync_path("room")).await;
    assert_eq!(answer.status, 503);
    assert!(
        answer
            .header("retry-after")
            .is_some_and(|value| value.parse::<u32>().is_ok()),
        "{answer:?}"
    );

    first.close().await;
    let mut third = Client::connect_at_last(&server, "room").await;
    let op = third.write("room again", json!(1)).await;
    second.expect_op(&op).await;
}

/// P12, P91.
#[tokio::test]
async fn a_handshake_while_draining_is_answered_503_with_retry_after_and_readyz_is_503() {
    let server = Setup::new()
        .shards(1)
        .args(&["--drain-ms", "5000"])
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::connect(&server, "room").await);
    }
    // Accepted before the drain begins; the request is completed once it has begun.
    let mut late = Raw::connect(server.addr()).await;
    late.send(unfinished_head("room").as_bytes()).await;
    let mut probe = Raw::connect(server.addr()).await;
    probe.send(b"GET /readyz HTTP/1.1\r\nHost: test\r\n").await;
    assert_eq!(
        server.get("/healthz").await.status,
        200,
        "the earlier connections were not accepted"
    );

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
    late.send_lossy(b"\r\n").await;
    let answer = late.answer().await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    probe.send_lossy(b"\r\n").await;
    assert_eq!(probe.answer().await.status, 503);
}

// ---- health ----

/// P90, P91.
#[tokio::test]
async fn healthz_and_readyz_return_200_without_a_token_while_serving() {
    let server = Server::start().await;
    for path in ["/healthz", "/readyz", "/healthz?verbose=1"] {
        assert_eq!(server.get(path).await.status, 200, "for {path}");
    }
}

#[tokio::test]
async fn ended_connections_are_forgotten() {
    let server = Server::start().await;
    // The first of each kind may open something that stays open.
    Client::connect(&server, "room").await.close().await;
    server.get("/nope").await;
    let before = server.open_sockets_count();
    for _ in 0..20 {
        drop(Client::connect(&server, "room").await);
        assert_eq!(server.handshake("/v1/sync/room").await.status, 401);
        assert_eq!(server.get("/nope").await.status, 404);
    }
    eventually("the sockets are closed", async || {
        (server.open_sockets_count() <= before).then_some(())
    })
    .await;
}
