//! Everything served without a WebSocket: the state and presence of a workspace (to pages from
//! other origins as well), the console, and the client module.

use crate::support::client::{Client, Op};
use crate::support::raw::{Answer, Raw};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, stamp, token};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Sends a request with these header lines, each ending in CRLF, and returns the response.
async fn ask(server: &Server, line: &str, headers: &str) -> Answer {
    let mut socket = Raw::connect(server.addr()).await;
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    socket.send(head.as_bytes()).await;
    socket.answer().await
}

fn bearer() -> String {
    format!("Authorization: Bearer {}\r\n", token::valid())
}

// ---- the state ----

/// P47, P80.
#[tokio::test]
async fn the_state_is_json_with_values_exactly_as_written() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "a/b c").await;
    let mut reader = Client::connect(&server, "a/b c").await;
    let ops = [
        Op::new("k", json!({"n": 1}), stamp()),
        Op::new("\"quoted\"\n", json!(null), stamp()),
    ];
    for op in &ops {
        writer.send_op(op).await;
        reader.expect_op(op).await;
    }
    let spelled = writer.write_spelled("spelled", "1.0").await;
    reader.next_op().await;
    let answer = ask(&server, "GET /v1/workspaces/a%2Fb%20c", &bearer()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.body.contains(r#""spelled":1.0"#), "{}", answer.body);
    assert_eq!(
        answer.json(),
        json!({
            "data": {"k": {"n": 1}, "\"quoted\"\n": null, "spelled": 1.0},
            "timestamps": {
                "k": ops[0].timestamp,
                "\"quoted\"\n": ops[1].timestamp,
                "spelled": spelled,
            },
            "seq": 3,
            "connections": 2,
        })
    );
    let query = format!("GET /v1/workspaces/a%2Fb%20c?token={}", token::valid());
    assert_eq!(ask(&server, &query, "").await.json(), answer.json());
}

/// P80.
#[tokio::test]
async fn an_unknown_workspace_is_empty() {
    let server = Server::start().await;
    let answer = ask(&server, "GET /v1/workspaces/new", &bearer()).await;
    assert_eq!(
        answer.json(),
        json!({"data": {}, "timestamps": {}, "seq": 0, "connections": 0})
    );
    assert_eq!(
        ask(&server, "GET /v1/presence/new", &bearer()).await.json(),
        json!([])
    );
}

/// P81.
#[tokio::test]
async fn a_state_that_the_client_already_has_is_not_resent() {
    let server = Setup::new().shards(3).start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    for is_first in [true, false] {
        let op = writer.write("k", json!(is_first)).await;
        reader.expect_op(&op).await;
        let first = ask(&server, "GET /v1/workspaces/room", &bearer()).await;
        let tag = first.header("etag").expect("an entity tag").to_owned();
        for (tags, status) in [
            (tag.as_str(), 304),
            (&format!("\"x\", {tag}"), 304),
            ("*", 304),
            ("W/\"0\"", 200),
        ] {
            let headers = format!("{}If-None-Match: {tags}\r\n", bearer());
            let answer = ask(&server, "GET /v1/workspaces/room", &headers).await;
            assert_eq!(answer.status, status, "{tags}");
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
            assert_eq!(answer.body.is_empty(), status == 304, "{tags}");
        }
    }
}

/// Returns the entity tag of the state of `room`.
async fn tag_of(server: &Server) -> String {
    let answer = ask(server, "GET /v1/workspaces/room", &bearer()).await;
    answer.header("etag").expect("an entity tag").to_owned()
}

/// Writes a value to the key `k` of `room`, and waits until it is shown.
async fn write_k(server: &Server, value: &str) {
    let mut writer = Client::connect(server, "room").await;
    let mut reader = Client::connect(server, "room").await;
    let op = writer.write("k", json!(value)).await;
    reader.expect_op(&op).await;
}

/// Expects that a client with `tag` is sent the state, in which `k` has this value.
async fn expect_other_state(server: &Server, tag: &str, value: &str) {
    let headers = format!("{}If-None-Match: {tag}\r\n", bearer());
    let answer = ask(server, "GET /v1/workspaces/room", &headers).await;
    assert_eq!(
        answer.status, 200,
        "{tag} belongs to another state: {answer:?}"
    );
    assert_eq!(answer.json()["data"], json!({ "k": value }));
}

/// P81.
#[tokio::test]
async fn an_entity_tag_from_another_data_directory_never_matches() {
    let (one, other) = (Server::start().await, Server::start().await);
    write_k(&one, "of one").await;
    write_k(&other, "of the other").await;
    expect_other_state(&other, &tag_of(&one).await, "of the other").await;
}

/// P81.
#[tokio::test]
async fn an_entity_tag_from_before_a_restore_never_matches() {
    let mut server = Server::start().await;
    write_k(&server, "copied").await;
    server.stop().await;
    let copy = TempDir::new().expect("a temporary folder");
    let copied = copy.path().join("data");
    copy_folder(server.data_dir(), &copied);

    server.restart(2).await;
    write_k(&server, "before").await;
    let tag = tag_of(&server).await;
    server.stop().await;

    std::fs::remove_dir_all(server.data_dir()).expect("the folder can be removed");
    copy_folder(&copied, server.data_dir());
    server.restart(2).await;
    write_k(&server, "after").await;
    expect_other_state(&server, &tag, "after").await;
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("the folder can be created");
    for entry in std::fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("the folder can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("the file can be copied");
        }
    }
}

#[tokio::test]
async fn a_large_state_arrives_complete() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    let value = json!("x".repeat(500_000));
    for number in 0..6 {
        let op = writer.write(&format!("k{number}"), value.clone()).await;
        reader.expect_op(&op).await;
    }
    let answer = ask(&server, "GET /v1/workspaces/room", &bearer()).await;
    assert_eq!(answer.json()["data"]["k5"], value);
    assert_eq!(
        answer.json()["data"].as_object().map(serde_json::Map::len),
        Some(6)
    );
}

/// P20.
#[tokio::test]
async fn without_a_valid_token_nothing_is_revealed() {
    let server = Server::start().await;
    for path in ["/v1/workspaces/room", "/v1/presence/room"] {
        for headers in ["", "Authorization: Bearer x.y.z\r\n"] {
            let answer = ask(&server, &format!("GET {path}"), headers).await;
            assert_eq!(answer.status, 401);
            assert_eq!(answer.json()["error"], "Unauthorized");
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        }
        for (line, status) in [
            (format!("POST {path}"), 405),
            (format!("GET {path}/x"), 404),
            (format!("GET {path}%00"), 400),
        ] {
            assert_eq!(
                ask(&server, &line, &bearer()).await.status,
                status,
                "{line}"
            );
        }
    }
}

// ---- presence ----

/// P83, P84.
#[tokio::test]
async fn presence_lists_each_user_id_once() {
    let server = Setup::new().shards(2).start().await;
    let path = |user: &str| format!("{}&userId={user}", Server::sync_path("room"));
    let mut clients = Vec::new();
    for user in ["ben", "%C3%84nn%20%3Cb%3E", "ben", "", "%0A"] {
        clients.push(Client::connect_path(&server, &path(user)).await);
    }
    clients.push(Client::connect(&server, "room").await);
    let _elsewhere = Client::connect_path(
        &server,
        &format!("{}&userId=carl", Server::sync_path("other")),
    )
    .await;
    let online = |names: &[&str]| -> Value {
        let entry = |name: &&str| json!({"userId": name, "status": "online"});
        names.iter().map(entry).collect()
    };
    let answer = ask(&server, "GET /v1/presence/room", &bearer()).await;
    assert_eq!(answer.json(), online(&["ben", "Änn <b>"]));
    clients.remove(0).close().await;
    clients.remove(0).close().await;
    eventually("the clients that left are gone", async || {
        let answer = ask(&server, "GET /v1/presence/room", &bearer()).await;
        (answer.json() == online(&["ben"])).then_some(())
    })
    .await;
}

/// P11, P83.
#[tokio::test]
async fn queries_are_form_encoded() {
    let server = Setup::new().shards(1).start().await;
    let mut clients = Vec::new();
    // As written by `new URLSearchParams({userId})`, and by `encodeURIComponent`.
    for user in ["Ann+Lee", "C%2B%2B+dev", "B%26B%3D1", "no%20plus", "%41nn"] {
        let path = format!("{}&user%49d={user}", Server::sync_path("room"));
        clients.push(Client::connect_path(&server, &path).await);
    }
    let answer = ask(&server, "GET /v1/presence/room", &bearer()).await;
    let names: Vec<Value> = answer.json().as_array().expect("an array").clone();
    let names: Vec<&str> = names
        .iter()
        .filter_map(|entry| entry["userId"].as_str())
        .collect();
    assert_eq!(names, ["Ann", "Ann Lee", "B&B=1", "C++ dev", "no plus"]);
    // A path is not form-encoded: a plus in it is a plus.
    let _plus = Client::connect_path(&server, &Server::sync_path("a+b")).await;
    let state = ask(&server, "GET /v1/workspaces/a+b", &bearer()).await;
    assert_eq!(state.json()["connections"], 1);
}

// ---- origins ----

/// P85, P86.
#[tokio::test]
async fn without_configured_origins_pages_from_any_origin_may_read() {
    let server = Server::start().await;
    for path in ["/v1/workspaces/room", "/v1/presence/room", "/client.mjs"] {
        let origin = "Origin: https://app.example\r\n";
        let headers = format!("{}{origin}", bearer());
        let answer = ask(&server, &format!("GET {path}"), &headers).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("*"),
            "{path}"
        );
        let preflight = ask(&server, &format!("OPTIONS {path}"), origin).await;
        assert_eq!((preflight.status, preflight.body.as_str()), (204, ""));
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        assert_eq!(
            preflight.header("access-control-allow-headers"),
            Some("Authorization, If-None-Match")
        );
    }
}

/// P85, P86.
#[tokio::test]
async fn only_pages_from_allowed_origins_may_connect_and_read() {
    let origins = "https://app.example,http://localhost:3000";
    let server = Server::start_with(&["--allow-origin", origins]).await;
    for (origin, is_allowed) in [
        ("https://app.example", true),
        ("http://localhost:3000", true),
        ("https://app.example.evil", false),
        ("http://app.example", false),
        ("null", false),
    ] {
        let field = format!("Origin: {origin}\r\n");
        let mut socket = Raw::connect(server.addr()).await;
        let answer = socket.handshake(&Server::sync_path("room"), &field).await;
        assert_eq!(
            answer.status,
            if is_allowed { 101 } else { 403 },
            "{origin}"
        );
        for line in ["GET /v1/workspaces/room", "OPTIONS /v1/workspaces/room"] {
            let answer = ask(&server, line, &format!("{}{field}", bearer())).await;
            assert_eq!(
                answer.header("access-control-allow-origin"),
                is_allowed.then_some(origin),
                "{origin}"
            );
            assert_eq!(answer.header("vary"), Some("Origin"));
        }
    }
    // Only browsers send an Origin header, so a request without one is allowed.
    assert_eq!(
        server.handshake(&Server::sync_path("room")).await.status,
        101
    );
}

#[tokio::test]
async fn an_origin_with_the_default_port_matches_the_form_that_browsers_send() {
    let origins = "HTTPS://App.Example:443,http://plain.example:80,http://other.example:443";
    let server = Server::start_with(&["--allow-origin", origins]).await;
    for (origin, status) in [
        ("https://app.example", 101),
        ("http://plain.example", 101),
        ("http://other.example:443", 101),
        ("http://other.example", 403),
        ("http://app.example", 403),
    ] {
        let field = format!("Origin: {origin}\r\n");
        let mut socket = Raw::connect(server.addr()).await;
        let answer = socket.handshake(&Server::sync_path("room"), &field).await;
        assert_eq!(answer.status, status, "{origin}");
    }
}

#[tokio::test]
async fn an_origin_that_no_browser_sends_is_rejected_at_startup() {
    for (origin, reason) in [
        ("https://app.example/", "without a path"),
        ("https://*.example", "wildcards are not supported"),
        ("app.example", "a scheme"),
    ] {
        let outcome = Setup::new().args(&["--allow-origin", origin]).run().await;
        assert_eq!(outcome.code, Some(2), "{origin}");
        for part in ["--allow-origin", origin, reason] {
            assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
        }
    }
}

// ---- pages ----

/// P93.
#[tokio::test]
async fn the_console_is_served_only_if_enabled() {
    let pages = [
        ("/", "text/html; charset=utf-8"),
        ("/console.css", "text/css; charset=utf-8"),
        ("/console.mjs", "text/javascript; charset=utf-8"),
        ("/console/session.json", "application/json"),
        ("/console/stats.json", "application/json"),
    ];
    let (with, without) = (
        Server::start_with(&["--console"]).await,
        Server::start().await,
    );
    for (path, content_type) in pages {
        let answer = with.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some(content_type), "{path}");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
        assert_eq!(without.get(path).await.status, 404, "{path}");
    }
    let session = with.get("/console/session.json").await.json();
    assert_eq!(session, json!({"workspace": "demo"}));
    for server in [&with, &without] {
        let module = server.get("/client.mjs").await;
        assert_eq!(
            module.header("content-type"),
            Some("text/javascript; charset=utf-8")
        );
    }
}

#[tokio::test]
async fn a_dev_server_hands_its_token_only_to_local_pages() {
    let server = Setup::new().args(&["--dev"]).start().await;
    for (host, is_given) in [
        ("localhost", true),
        ("127.0.0.1:8080", true),
        ("[::1]:80", true),
        ("rebound.example", false),
        ("localhost.example", false),
    ] {
        let mut socket = Raw::connect(server.addr()).await;
        let head = format!("GET /console/session.json HTTP/1.1\r\nHost: {host}\r\n\r\n");
        socket.send(head.as_bytes()).await;
        let answer = socket.answer().await;
        assert_eq!(answer.status, if is_given { 200 } else { 403 }, "{host}");
        let given = answer.json()["token"].as_str().map(str::to_owned);
        assert_eq!(given.is_some(), is_given, "{host}");
        if let Some(token) = given {
            let path = format!("/v1/sync/demo?token={token}");
            assert_eq!(server.handshake(&path).await.status, 101);
        }
    }
}

/// P92 to P94.
#[tokio::test]
async fn console_and_metrics_are_served_only_locally() {
    let server = Server::start_with(&["--console"]).await;
    let pages = [
        "/",
        "/console.css",
        "/console.mjs",
        "/console/session.json",
        "/console/stats.json",
        "/metrics",
    ];
    let requests = [
        ("localhost:8080", "", 200),
        ("app.localhost", "", 200),
        ("127.8.9.10", "", 200),
        ("[::1]:80", "", 200),
        ("localhost", "X-Forwarded-For: 192.0.2.1\r\n", 403),
        ("localhost", "CF-Connecting-IP: 192.0.2.1\r\n", 403),
        ("evil.example", "", 403),
        ("localhost.evil.example", "", 403),
        ("127.0.0.1.evil.example:80", "", 403),
        ("", "", 403),
    ];
    for page in pages {
        for (host, headers, status) in requests {
            let head = format!("GET {page} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
            let mut socket = Raw::connect(server.addr()).await;
            socket.send(head.as_bytes()).await;
            let answer = socket.answer().await;
            assert_eq!(answer.status, status, "{head}{answer:?}");
            if status == 403 {
                let message = answer.json()["message"].to_string();
                assert!(
                    message.contains("--admin-port"),
                    "the message gives no remedy: {message}"
                );
            }
        }
    }
    // The target of a proxied request names the host, and the Host field is ignored (RFC 9112
    // section 3.2.2).
    let head = "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut socket = Raw::connect(server.addr()).await;
    socket.send(head.as_bytes()).await;
    assert_eq!(socket.answer().await.status, 403);
}

#[tokio::test]
async fn pages_are_sent_once_and_then_revalidated() {
    let server = Server::start_with(&["--console"]).await;
    for path in ["/client.mjs", "/", "/console.css", "/console.mjs"] {
        let first = server.get(path).await;
        let tag = first.header("etag").expect("an entity tag").to_owned();
        assert!(tag.starts_with('"'), "the entity tag is not strong: {tag}");
        assert_eq!(first.header("cache-control"), Some("no-cache"), "{path}");
        for (tags, status) in [
            (tag.as_str(), 304),
            (&format!("\"a,b\", W/{tag}"), 304),
            ("*", 304),
            ("\"other\"", 200),
        ] {
            let headers = format!("If-None-Match: {tags}\r\n");
            let answer = ask(&server, &format!("GET {path}"), &headers).await;
            assert_eq!(answer.status, status, "{path} {tags}");
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
            assert_eq!(answer.body.is_empty(), status == 304, "{path} {tags}");
            for name in ["cache-control", "access-control-allow-origin"] {
                assert_eq!(answer.header(name), first.header(name), "{path} {name}");
            }
        }
    }
}

#[tokio::test]
async fn console_stats_reflect_what_happened() {
    let server = Setup::new().shards(2).args(&["--console"]).start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    for _ in 0..5 {
        let op = writer.write("k", json!(1)).await;
        reader.expect_op(&op).await;
    }
    eventually("the stats are up to date", async || {
        let stats = server.get("/console/stats.json").await.json();
        let shards = stats["shards"].as_array().expect("shards is an array");
        let sum = |name: &str| {
            shards
                .iter()
                .filter_map(|shard| shard[name].as_u64())
                .sum::<u64>()
        };
        assert_eq!(shards.len(), 2);
        let is_up_to_date = (sum("ops"), sum("deliveries"), sum("workspaces")) == (5, 5, 1)
            && sum("connections") == 2
            && sum("sync_count") >= 5
            && sum("sync_us_p50") > 0;
        is_up_to_date.then_some(())
    })
    .await;
}
