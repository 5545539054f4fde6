//! Version 2 of the protocol: the handshake, ops and deletes alongside version 1, errors, `saved`,
//! and resuming after a crash.

use crate::support::client::{Client, Op};
use crate::support::raw::Raw;
use crate::support::server::Server;
use crate::support::{now_s, stamp, token};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const V2: &str = "etherply.v2";

/// Connects with version 2 and a token among the protocols. Returns the client and its `welcome`.
async fn join(server: &Server, workspace: &str, query: &str) -> (Client, Value) {
    let protocols = format!("{V2}, bearer.{}", token::valid());
    let path = format!("/v1/sync/{workspace}{query}");
    let dialed = Client::dial_protocols(server.addr(), &path, &protocols).await;
    let (mut client, chosen) =
        dialed.unwrap_or_else(|error| panic!("the handshake fails: {error}"));
    assert_eq!(
        chosen.as_deref(),
        Some(V2),
        "the token is not part of the answer"
    );
    let mut welcome = client.next().await;
    assert_eq!(welcome["type"], "welcome");
    (client, welcome["payload"].take())
}

/// Applies the messages that a client receives, by the merge rule, until `synced`. Returns its seq.
async fn sync(client: &mut Client, held: &mut BTreeMap<String, (Option<Value>, u64)>) -> u64 {
    loop {
        let message = client.next().await;
        let seq = message["seq"].as_u64().expect("each of them has a seq");
        if message["type"] == "synced" {
            return seq;
        }
        assert_eq!(message["type"], "state", "{message}");
        let list = |name: &str| message["payload"][name].as_array().expect("a list").clone();
        let text = |value: &Value| value.as_str().expect("a key").to_owned();
        for entry in list("entries") {
            let timestamp = entry[2].as_u64().expect("a timestamp");
            held.insert(text(&entry[0]), (Some(entry[1].clone()), timestamp));
        }
        for entry in list("deleted") {
            held.insert(
                text(&entry[0]),
                (None, entry[1].as_u64().expect("a timestamp")),
            );
        }
    }
}

fn live(held: &BTreeMap<String, (Option<Value>, u64)>) -> Value {
    let live = held
        .iter()
        .filter_map(|(key, (value, _))| Some((key.clone(), value.clone()?)));
    Value::Object(live.collect())
}

fn write(id: u64, key: &str, value: &Value, timestamp: u64) -> String {
    let payload = json!({"key": key, "value": value, "timestamp": timestamp});
    json!({"type": "op", "id": id, "payload": payload}).to_string()
}

fn delete(id: u64, key: &str, timestamp: u64) -> String {
    let payload = json!({"key": key, "deleted": true, "timestamp": timestamp});
    json!({"type": "op", "id": id, "payload": payload}).to_string()
}

/// P100, P101, P102, P103, P131: the first offered name is chosen and repeated in the answer;
/// without a known name, a client gets version 1 as before.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_chooses_the_version() {
    let server = Server::start().await;
    let token = token::valid();
    for (protocols, chosen, first) in [
        (format!("{V2}, bearer.{token}"), Some(V2), "welcome"),
        (
            format!("bearer.{token}, etherply.v1, {V2}"),
            Some("etherply.v1"),
            "init",
        ),
        (format!("chat, {V2}, etherply.v1"), Some(V2), "welcome"),
        ("etherply.v1".to_owned(), Some("etherply.v1"), "init"),
        ("chat".to_owned(), None, "init"),
        ("Etherply.V2".to_owned(), None, "init"),
    ] {
        let has_token = protocols.contains("bearer");
        let path = if has_token {
            "/v1/sync/w".to_owned()
        } else {
            Server::sync_path("w")
        };
        let mut raw = Raw::connect(server.addr()).await;
        let headers = format!("Sec-WebSocket-Protocol: {protocols}\r\n");
        let answer = raw.handshake(&path, &headers).await;
        assert_eq!(answer.status, 101, "{protocols}: {answer:?}");
        assert_eq!(
            answer.header("sec-websocket-protocol"),
            chosen,
            "{protocols}"
        );
        assert!(
            !format!("{answer:?}").contains(&token),
            "the token is not repeated"
        );
        let frame = raw.frame().await;
        let message: Value = serde_json::from_slice(&frame.payload).expect("JSON");
        assert_eq!(message["type"], first, "{protocols}");
    }
    assert!(!server.log().contains(&token), "a token is never logged");
}

/// P103: a token may be sent in three places, but all of them must hold the same one.
#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_that_differ_are_refused_with_400() {
    let server = Server::start().await;
    let one = token::valid();
    let other = token::with_claims(&json!({"sub": "another", "exp": now_s() + 3600}));
    for (query, bearer, element, status) in [
        (Some(&one), Some(&one), Some(&one), 101),
        (Some(&one), None, None, 101),
        (None, Some(&one), None, 101),
        (None, None, Some(&one), 101),
        (Some(&one), None, Some(&other), 400),
        (None, Some(&one), Some(&other), 400),
        (Some(&one), Some(&other), None, 400),
        (None, None, None, 401),
    ] {
        let query = query.map_or(String::new(), |token| format!("?token={token}"));
        let bearer = bearer.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let element = element.map_or(String::new(), |token| format!(", bearer.{token}"));
        let headers = format!("{bearer}Sec-WebSocket-Protocol: {V2}{element}\r\n");
        let path = format!("/v1/sync/w{query}");
        let answer = Raw::connect(server.addr())
            .await
            .handshake(&path, &headers)
            .await;
        assert_eq!(answer.status, status, "{headers}");
    }
}

/// P104, P105, P106, P107: the version 2 parameters are checked only in version 2.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_parameter_is_refused_with_400() {
    let server = Server::start().await;
    for (query, status) in [
        ("since=0&generation=0123456789abcdef", 101),
        (
            "since=18446744073709551615&generation=0123456789abcdef",
            101,
        ),
        ("presence=1", 101),
        ("presence=1&replaces=7", 101),
        ("since=0", 400),
        ("generation=0123456789abcdef", 400),
        ("since=-1&generation=0123456789abcdef", 400),
        (
            "since=18446744073709551616&generation=0123456789abcdef",
            400,
        ),
        ("since=&generation=0123456789abcdef", 400),
        ("since=0&since=0&generation=0123456789abcdef", 400),
        ("since=0&generation=0123456789ABCDEF", 400),
        ("since=0&generation=12", 400),
        ("presence=0", 400),
        ("presence=", 400),
        ("replaces=x", 400),
    ] {
        let path = format!("{}&{query}", Server::sync_path("w"));
        let headers = format!("Sec-WebSocket-Protocol: {V2}\r\n");
        let answer = Raw::connect(server.addr())
            .await
            .handshake(&path, &headers)
            .await;
        assert_eq!(answer.status, status, "{query}");
        let answer = Raw::connect(server.addr()).await.handshake(&path, "").await;
        assert_eq!(answer.status, 101, "{query} in version 1");
    }
}

/// P113, P114, P115, P117, P118, P119: an error about a message goes only to its sender, with the
/// message's id.
#[tokio::test(flavor = "multi_thread")]
async fn every_error_reaches_the_client_with_a_description() {
    let server = Server::start().await;
    let (mut client, _) = join(&server, "w", "").await;
    let mut other = join(&server, "w", "").await.0;
    for client in [&mut client, &mut other] {
        assert_eq!(sync(client, &mut BTreeMap::new()).await, 0);
    }
    let at = stamp();
    let op = |fields: &str| format!(r#"{{"type":"op","id":ID,"payload":{{{fields}}}}}"#);
    let in_time = |fields: &str| op(&format!(r#"{fields},"timestamp":{at}"#));
    let mut id = 0;
    for (text, words, key) in [
        (r#"{"type":"none","id":ID}"#.to_owned(), "type", None),
        (r#"{"id":ID}"#.to_owned(), "type", None),
        (op(r#""key":"k","value":1"#), "timestamp", Some("k")),
        (
            op(r#""key":"k","value":1,"timestamp":1700000000000"#),
            "milliseconds",
            Some("k"),
        ),
        (in_time(r#""value":1"#), "key", None),
        (in_time(r#""key":"","value":1"#), "key", None),
        (in_time(r#""key":"k""#), "value", Some("k")),
        (
            in_time(r#""key":"k","value":1,"deleted":true"#),
            "deleted",
            Some("k"),
        ),
        (
            in_time(r#""key":"k","deleted":false"#),
            "deleted",
            Some("k"),
        ),
        (
            in_time(r#""key":"k","deleted":true,"ttl_ms":5"#),
            "ttl_ms",
            Some("k"),
        ),
        (
            in_time(r#""key":"k","value":1,"ttl_ms":0"#),
            "ttl_ms",
            Some("k"),
        ),
        (
            in_time(r#""key":"k","value":1,"if_timestamp":-1"#),
            "if_timestamp",
            Some("k"),
        ),
    ] {
        id += 1;
        client.send_text(&text.replace("ID", &id.to_string())).await;
        let error = client.next().await;
        let payload = &error["payload"];
        assert_eq!(
            (&error["type"], &error["id"]),
            (&json!("error"), &json!(id)),
            "{error}"
        );
        assert_eq!(payload["code"], 400, "{text}");
        assert_eq!(payload.get("key").and_then(Value::as_str), key, "{text}");
        let message = payload["message"].as_str().expect("a text");
        assert!(message.contains(words), "{text}: {message}");
        let saved = client.next().await;
        assert_eq!(saved["payload"]["id"], id, "{saved}");
    }
    client
        .send_text(&write(id + 1, "after", &json!(1), stamp()))
        .await;
    assert_eq!(
        other.next().await["payload"]["key"],
        "after",
        "nothing came before it"
    );
}

/// P46, P80, P121, P122, P150: clients of both versions share a workspace.
#[tokio::test(flavor = "multi_thread")]
async fn both_versions_share_a_workspace() {
    let server = Server::start().await;
    let mut old = Client::connect(&server, "w").await;
    let (mut new, _) = join(&server, "w", "").await;
    assert_eq!(sync(&mut new, &mut BTreeMap::new()).await, 0);
    let op = old.write("k", json!({"a": [1, null]})).await;
    let expected = json!({"type": "op", "seq": 1, "payload": {
        "key": "k", "value": {"a": [1, null]}, "timestamp": op.timestamp,
    }});
    assert_eq!(new.next().await, expected);
    let at = stamp();
    new.send_text(&delete(3, "k", at)).await;
    old.expect_op(&Op::new("k", Value::Null, at)).await;
    let saved = json!({"type": "saved", "payload": {"id": 3}, "seq": 2});
    assert_eq!(new.next().await, saved);
    let late = Client::connect(&server, "w").await;
    assert_eq!(late.init.len(), 0, "the deleted key is missing");
}

/// P136, P141, P143, P150, P155: saved ops survive kill -9, a client that resumes misses nothing,
/// and deleted keys do not come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_resumes_after_a_crash() {
    let mut server = Server::start().await;
    let (mut client, welcome) = join(&server, "w", "").await;
    let mut held = BTreeMap::new();
    assert_eq!(sync(&mut client, &mut held).await, 0);
    let first = stamp();
    for (id, key) in [(1, "a"), (2, "b"), (3, "c")] {
        client
            .send_text(&write(id, key, &json!(id), first + id))
            .await;
    }
    client.send_text(&delete(4, "b", first + 10)).await;
    let seq = loop {
        let saved = client.next().await;
        assert_eq!(saved["type"], "saved");
        if saved["payload"]["id"] == 4 {
            break saved["seq"].as_u64().expect("the client is not behind");
        }
    };
    assert_eq!(seq, 4);
    server.kill9();
    server.restart(1).await;
    let query = format!(
        "?since={seq}&generation={}",
        welcome["generation"].as_str().expect("one")
    );
    for query in ["", query.as_str()] {
        let (mut client, again) = join(&server, "w", query).await;
        assert_ne!(
            again["generation"], welcome["generation"],
            "a new one at each start"
        );
        let mut held = BTreeMap::new();
        if again["state"] == "changes" {
            held.insert("a".to_owned(), (Some(json!(1)), first + 1));
            held.insert("c".to_owned(), (Some(json!(3)), first + 3));
        }
        assert_eq!(sync(&mut client, &mut held).await, 4, "{again}");
        assert_eq!(live(&held), json!({"a": 1, "c": 3}), "{again}");
        // An old write of a deleted key, and a resend.
        client.send_text(&write(1, "b", &json!(2), first + 2)).await;
        let correction = client.next().await;
        assert_eq!(correction["payload"]["deleted"], true, "{correction}");
        assert_eq!(client.next().await["payload"]["id"], 1);
        client.send_text(&write(2, "c", &json!(3), first + 3)).await;
        let saved = json!({"type": "saved", "payload": {"id": 2}, "seq": 4});
        assert_eq!(client.next().await, saved);
    }
}

/// P77, P183: a server that stops closes version 2 clients with 1012, and version 1 clients
/// with 1001.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_closes_version_2_clients_with_1012() {
    let server = Server::start_with(&["--drain-ms", "100"]).await;
    let mut old = Client::connect(&server, "w").await;
    let (mut new, _) = join(&server, "w", "").await;
    sync(&mut new, &mut BTreeMap::new()).await;
    server.terminate();
    assert_eq!(new.close_code().await, 1012);
    assert_eq!(old.close_code().await, 1001);
}

/// P180, P182: pings and a new token over the same connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_alive_and_its_token_renewed() {
    let server = Server::start().await;
    let (mut client, welcome) = join(&server, "w", "").await;
    assert_eq!(welcome["user"], "tester");
    sync(&mut client, &mut BTreeMap::new()).await;
    client.send_text(r#"{"type":"ping","id":1}"#).await;
    let pong = client.next().await;
    assert_eq!((&pong["type"], &pong["id"]), (&json!("pong"), &json!(1)));
    let time = pong["payload"]["time"].as_u64().expect("a time");
    assert!(time.abs_diff(crate::support::now_us()) < 60_000_000);
    assert_eq!(client.next().await["type"], "saved");
    let expires = now_s() + 1800;
    let renewed = token::with_claims(&json!({"sub": "tester", "exp": expires}));
    let message = json!({"type": "token", "payload": {"token": renewed}});
    client.send_text(&message.to_string()).await;
    let answer = json!({"type": "token", "payload": {"expires": expires}});
    assert_eq!(client.next().await, answer);
    let foreign = token::with_claims(&json!({"sub": "eve", "exp": expires}));
    let message = json!({"type": "token", "id": 9, "payload": {"token": foreign}});
    client.send_text(&message.to_string()).await;
    let error = client.next().await;
    assert_eq!(
        (&error["payload"]["code"], &error["id"]),
        (&json!(401), &json!(9))
    );
}
