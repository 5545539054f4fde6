//! The request head: a table for each kind of request (P1 to P11, P20, P21).

use proptest::prelude::*;

use super::*;
use crate::generation::Generation;
use crate::seq::Seq;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The fields of a valid upgrade request.
const FIELDS: [&str; 5] = [
    "Host: localhost:8080",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

fn head(line: &str, fields: &[&str]) -> Vec<u8> {
    let mut head = format!("{line}\r\n");
    for field in fields {
        head.push_str(field);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Returns a valid upgrade request in which `fields` replace the line that starts with `name`.
fn upgrade_with(name: &str, fields: &[&str]) -> Vec<u8> {
    let kept = FIELDS
        .into_iter()
        .filter(|field| name.is_empty() || !field.starts_with(name));
    let all: Vec<&str> = kept.chain(fields.iter().copied()).collect();
    head("GET /v1/sync/room?token=a.b.c HTTP/1.1", &all)
}

fn sync(workspace: &str, token: Option<&str>) -> Request {
    sync_by(workspace, token, None, None)
}

fn sync_by(
    workspace: &str,
    token: Option<&str>,
    user: Option<&str>,
    origin: Option<&str>,
) -> Request {
    Request::Sync(SyncRequest {
        user: user.map(Into::into),
        origin: origin.map(Into::into),
        ..sync_request_of(workspace, token)
    })
}

fn sync_request_of(workspace: &str, token: Option<&str>) -> SyncRequest {
    SyncRequest {
        workspace: workspace.into(),
        token: token.map(Into::into),
        user: None,
        origin: None,
        accept_key: ACCEPT.into(),
        version: ProtocolVersion::V1,
        subprotocol: None,
        resume: None,
        has_presence: false,
        replaces: None,
    }
}

fn read(target: ReadTarget, workspace: &str, token: Option<&str>, tags: Option<&str>) -> Request {
    Request::State(StateRequest {
        target,
        workspace: workspace.into(),
        token: token.map(Into::into),
        origin: None,
        if_none_match: tags.map(Into::into),
        head_only: false,
    })
}

fn page(page: WebPage) -> Request {
    Request::Page(PageRequest {
        page,
        provenance: Provenance {
            is_forwarded: false,
            is_host_loopback: true,
        },
        if_none_match: None,
        head_only: false,
    })
}

/// Parses `bytes` as a whole, followed by frames, and cut at every byte, and checks the outcome.
fn check(bytes: &[u8], expected: Result<&Request, u16>) {
    let shown = String::from_utf8_lossy(bytes);
    let outcome = parse_head(bytes);
    match (&outcome, expected) {
        (Ok(Some((head_bytes, request))), Ok(expected)) => {
            assert_eq!((*head_bytes, request), (bytes.len(), expected), "{shown}");
            let followed = [bytes, b"\x81\x80GET / HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(parse_head(&followed), outcome, "{shown}");
        }
        (Err(answer), Err(status)) => assert_eq!(answer.status(), status, "{shown}: {answer:?}"),
        _ => panic!("{shown}: {outcome:?}"),
    }
    // An error may be found before the end.
    for cut in 0..bytes.len() {
        let early = parse_head(&bytes[..cut]);
        let is_legal = early == Ok(None) || early.is_err() && expected.is_err();
        assert!(is_legal, "{shown} truncated at {cut}: {early:?}");
    }
}

/// P7.
#[test]
fn good_requests() {
    let room = sync("room", Some("a.b.c"));
    for (name, fields) in [
        ("", &[] as &[&str]),
        ("", &["Sec-WebSocket-Extensions: permessage-deflate", "X:"]),
        ("", &["Content-Length: 0"]),
        ("", &["Content-Length: 0", "Content-Length: 0"]),
        ("Host", &["host:"]),
        ("Host", &["Host: [::1]:80"]),
        ("Connection", &["connection: keep-alive, UPGRADE"]),
        (
            "Connection",
            &["Connection: keep-alive", "Connection: ,upgrade ,"],
        ),
        ("Upgrade", &["UPGRADE: h2c, WebSocket"]),
        ("Sec-WebSocket-Version", &["sec-websocket-version:   13  "]),
        (
            "Sec-WebSocket-Key",
            &[&format!("sec-websocket-key:\t{KEY}\t")],
        ),
        ("", &["Authorization: Bearer other"]),
    ] {
        check(&upgrade_with(name, fields), Ok(&room));
    }
    let from_page = sync_by("room", Some("a.b.c"), None, Some("http://x"));
    check(&upgrade_with("", &["Origin: http://x"]), Ok(&from_page));
}

#[test]
fn targets() {
    for (target, expected) in [
        (
            "/v1/sync/workspace-123?token=t",
            Ok(sync("workspace-123", Some("t"))),
        ),
        (
            "/v1/sync/a%2Fb%20c+d?userId=a%2Bb+c&token=t",
            Ok(sync_by("a/b c+d", Some("t"), Some("a+b c"), None)),
        ),
        (
            "/v1/workspaces/a%2Fb?token=t",
            Ok(read(ReadTarget::State, "a/b", Some("t"), None)),
        ),
        (
            "/v1/presence/a",
            Ok(read(ReadTarget::Presence, "a", None, None)),
        ),
        ("/", Ok(page(WebPage::Console))),
        ("/?x", Ok(page(WebPage::Console))),
        ("/console/session.json", Ok(page(WebPage::ConsoleSession))),
        ("/client.mjs", Ok(page(WebPage::ClientModule))),
        ("/metrics", Ok(page(WebPage::Metrics))),
        ("http://[::1]:80/metrics", Ok(page(WebPage::Metrics))),
        ("/v1/workspaces/", Err(400)),
        ("/v1/workspaces", Err(404)),
        ("/v1/presence/a/b", Err(404)),
        ("/console", Err(404)),
        ("/v1/sync/a", Ok(sync("a", None))),
        ("/v1/sync/a?token=", Ok(sync("a", None))),
        (
            "http://localhost/v1/sync/a?token=t",
            Ok(sync("a", Some("t"))),
        ),
        ("/v1/sync/", Err(400)),
        ("/v1/sync/%", Err(400)),
        ("/v1/sync/%FF", Err(400)),
        ("/v1/sync/%00", Err(400)),
        ("/v1/sync/a#b", Err(400)),
        ("http:///v1/sync/a", Err(400)),
        ("http://user@localhost/v1/sync/a", Err(400)),
        ("*", Err(400)),
        ("v1/sync/a", Err(400)),
        ("/v1/sync", Err(404)),
        ("/v1/sync/a/b", Err(404)),
        ("/v1/sync/a/", Err(404)),
        ("//v1/sync/a", Err(404)),
        ("/V1/sync/a", Err(404)),
        ("/healthz/", Err(404)),
    ] {
        check(
            &head(&format!("GET {target} HTTP/1.1"), &FIELDS),
            expected.as_ref().map_err(|status| *status),
        );
    }
}

/// P21.
#[test]
fn bearer_tokens() {
    for (fields, token) in [
        (&[] as &[&str], None),
        (&["Authorization: Bearer a.b.c"], Some("a.b.c")),
        (&["authorization: bEARER   a.b.c "], Some("a.b.c")),
        (&["Authorization: Bearer"], None),
        (&["Authorization: Bearer "], None),
        (&["Authorization: Bearera.b.c"], None),
        (&["Authorization: Basic abc"], None),
        (
            &["Authorization: Basic abc", "Authorization: Bearer a"],
            Some("a"),
        ),
    ] {
        for target in ["/v1/sync/a", "/v1/sync/a?token="] {
            let all = [&FIELDS, fields].concat();
            check(
                &head(&format!("GET {target} HTTP/1.1"), &all),
                Ok(&sync("a", token)),
            );
        }
    }
}

/// Checks a request for the workspace `a` with this query and these fields.
fn check_offer(query: &str, fields: &[&str], expected: Result<SyncRequest, u16>) {
    let all = [&FIELDS, fields].concat();
    let head = head(&format!("GET /v1/sync/a?{query} HTTP/1.1"), &all);
    let expected = expected.map(Request::Sync);
    check(&head, expected.as_ref().map_err(|status| *status));
}

/// Returns a request for the workspace `a` in a version that is requested by name.
fn named(version: ProtocolVersion, token: Option<&str>) -> SyncRequest {
    SyncRequest {
        version,
        subprotocol: Some(version.subprotocol()),
        ..sync_request_of("a", token)
    }
}

const OTHER_TOKEN: &str = "Authorization: Bearer other";

/// P100, P101, P103, P104, P105, P106, P107.
#[test]
fn version_2_offers() {
    let offer = "Sec-WebSocket-Protocol: etherply.v2, bearer.a.b.c";
    let whole = SyncRequest {
        resume: Some(ResumePoint {
            since: Seq::new(7),
            generation: Generation::new(0x9f2c),
        }),
        has_presence: true,
        replaces: Some(3),
        ..named(ProtocolVersion::V2, Some("a.b.c"))
    };
    let resume = "since=7&generation=0000000000009f2c&presence=1&replaces=3";
    let plain = named(ProtocolVersion::V2, Some("a.b.c"));
    check_offer("", &[offer], Ok(plain.clone()));
    check_offer("token=a.b.c", &[offer], Ok(plain));
    check_offer(resume, &[offer], Ok(whole));
    for query in ["since=7", "presence=2", "replaces=-", "token=x"] {
        check_offer(query, &[offer], Err(400));
    }
    check_offer("", &[offer, OTHER_TOKEN], Err(400));
}

/// P21, P101, P102, P103.
#[test]
fn version_1_offers() {
    // Version 1 knows no parameters other than `token` and `userId`, whether or not it is requested
    // by name.
    let later = "since=x&presence=2&replaces=y";
    let v1 = "Sec-WebSocket-Protocol: etherply.v1";
    check_offer(later, &[v1], Ok(named(ProtocolVersion::V1, None)));
    check_offer("token=x", &[v1, OTHER_TOKEN], Err(400));
    check_offer("token=other", &[v1, OTHER_TOKEN], {
        Ok(named(ProtocolVersion::V1, Some("other")))
    });
    // A client that offers neither name is a version 1 client, as it always was.
    for (query, fields, token) in [
        (later, &[][..], None),
        ("token=x", &[OTHER_TOKEN], Some("x")),
        (
            "token=x&token=y",
            &["Sec-WebSocket-Protocol: chat"],
            Some("x"),
        ),
        ("token=x", &["Sec-WebSocket-Protocol: bearer.y"], Some("x")),
        ("", &["Sec-WebSocket-Protocol: bearer.y"], None),
        (
            "",
            &["Sec-WebSocket-Protocol: a b,(,\"", OTHER_TOKEN],
            Some("other"),
        ),
    ] {
        check_offer(query, fields, Ok(sync_request_of("a", token)));
    }
    let control = "Sec-WebSocket-Protocol: a,\x01";
    check_offer("", &[control], Err(400));
}

/// P4 to P7.
#[test]
fn refused_upgrades() {
    let key = |value: &str| format!("Sec-WebSocket-Key: {value}");
    for (name, fields, status) in [
        ("Host", &[] as &[&str], 400),
        ("", &["Host: twice"], 400),
        ("Host", &["Host: a/b"], 400),
        ("Host", &["Host: a b"], 400),
        ("Host", &["Host: a, b"], 400),
        ("Host", &["Host: [::1"], 400),
        ("Host", &["Host: user@a"], 400),
        ("", &["Content-Length: 0", "Content-Length: 1"], 400),
        ("", &["Content-Length: -0"], 400),
        ("", &["Transfer-Encoding: gzip"], 400),
        ("Connection", &[], 426),
        ("Connection", &["Connection: keep-alive"], 426),
        ("Connection", &["Connection: upgrades"], 426),
        ("Upgrade", &[], 426),
        ("Upgrade", &["Upgrade: h2c"], 426),
        ("Sec-WebSocket-Version", &[], 400),
        ("Sec-WebSocket-Version", &["Sec-WebSocket-Version: 8"], 426),
        (
            "Sec-WebSocket-Version",
            &["Sec-WebSocket-Version: 13, 8"],
            426,
        ),
        (
            "Sec-WebSocket-Version",
            &["Sec-WebSocket-Version: 013"],
            426,
        ),
        ("", &["Sec-WebSocket-Version: 13"], 400),
        ("Sec-WebSocket-Key", &[], 400),
        ("", &[&key(KEY)], 400),
        ("Sec-WebSocket-Key", &[&key("")], 400),
        ("Sec-WebSocket-Key", &[&key("dGhlIHNhbXBsZSBub25jZQ")], 400),
        (
            "Sec-WebSocket-Key",
            &[&key("dGhlIHNhbXBsZSBub25jZQ=A")],
            400,
        ),
        ("Sec-WebSocket-Key", &[&key("dGhlIHNhbXBsZSBub25j===")], 400),
        (
            "Sec-WebSocket-Key",
            &[&key("dGhlIHNhbXBsZSBub25jZ-==")],
            400,
        ),
        (
            "Sec-WebSocket-Key",
            &[&key("dGhlIHNhbXBsZSBub25jZQAAAA==")],
            400,
        ),
        ("", &["Content-Length: 5"], 400),
        ("", &["Transfer-Encoding: chunked"], 400),
        ("", &["No colon"], 400),
        ("", &["Spaced : x"], 400),
        ("", &["X: a", " folded"], 400),
        ("", &["X: a\0b"], 400),
        ("", &["X: a\x7fb"], 400),
        ("", &["X: a\rb"], 400),
    ] {
        check(&upgrade_with(name, fields), Err(status));
    }
}

/// P4, P90, P91.
#[test]
fn request_lines() {
    let alive = |head_only| Ok(Request::Healthz { head_only });
    let ready = |head_only| Ok(Request::Readyz { head_only });
    for (line, expected) in [
        ("GET /healthz HTTP/1.1", alive(false)),
        ("HEAD /healthz HTTP/1.1", alive(true)),
        ("GET /healthz?verbose HTTP/1.0", alive(false)),
        ("GET /readyz HTTP/1.0", ready(false)),
        ("HEAD /readyz HTTP/1.1", ready(true)),
        ("POST /healthz HTTP/1.1", Err(405)),
        ("get /healthz HTTP/1.1", Err(405)),
        ("DELETE /readyz HTTP/1.1", Err(405)),
        ("POST /v1/sync/a HTTP/1.1", Err(405)),
        ("HEAD /v1/sync/a HTTP/1.1", Err(405)),
        ("GET /v1/sync/a HTTP/1.0", Err(426)),
        ("OPTIONS / HTTP/1.1", Err(405)),
        ("POST / HTTP/1.1", Err(405)),
        ("POST /v1/workspaces/a HTTP/1.1", Err(405)),
        (
            "OPTIONS /v1/presence/a HTTP/1.1",
            Ok(Request::Preflight { origin: None }),
        ),
        ("HEAD /client.mjs HTTP/1.1", {
            let Request::Page(request) = page(WebPage::ClientModule) else {
                unreachable!("the page request is a page");
            };
            Ok(Request::Page(PageRequest {
                head_only: true,
                ..request
            }))
        }),
        ("GET /healthz HTTP/2.0", Err(400)),
        ("GET /healthz", Err(400)),
        ("GET  /healthz HTTP/1.1", Err(400)),
        ("G\x01T /healthz HTTP/1.1", Err(400)),
        ("GET /heal\0thz HTTP/1.1", Err(400)),
        ("GET /heal thz HTTP/1.1", Err(400)),
        (" GET /healthz HTTP/1.1", Err(400)),
    ] {
        check(
            &head(line, &FIELDS),
            expected.as_ref().map_err(|status| *status),
        );
    }
    check(
        b"GET /healthz HTTP/1.0\r\n\r\n",
        Ok(&Request::Healthz { head_only: false }),
    );
    check(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", Err(400));
}

/// P9.
#[test]
fn sizes() {
    let with_padding = |head_bytes: usize| {
        let bare = upgrade_with("", &["X: "]).len();
        upgrade_with("", &[&format!("X: {}", "x".repeat(head_bytes - bare))])
    };
    let room = sync("room", Some("a.b.c"));
    for (head_bytes, expected) in [
        (HEAD_BYTES_MAX - 1, Ok(&room)),
        (HEAD_BYTES_MAX, Ok(&room)),
        (HEAD_BYTES_MAX + 1, Err(431)),
        (4 * HEAD_BYTES_MAX, Err(431)),
    ] {
        let bytes = with_padding(head_bytes);
        assert_eq!(bytes.len(), head_bytes);
        let outcome = parse_head(&bytes).map_err(|answer| answer.status());
        assert_eq!(
            outcome,
            expected.map(|request| Some((head_bytes, request.clone())))
        );
    }
    let endless = with_padding(2 * HEAD_BYTES_MAX);
    assert_eq!(parse_head(&endless[..HEAD_BYTES_MAX - 1]), Ok(None));
    assert_eq!(
        parse_head(&endless[..HEAD_BYTES_MAX]).unwrap_err().status(),
        431
    );

    for more in [HEADERS_USUAL - FIELDS.len(), HEADERS_USUAL, 200] {
        check(&upgrade_with("", &vec!["X: y"; more]), Ok(&room));
    }
}

/// Checks that heads with as many of the shortest fields as possible reach the size limit (P9).
#[test]
fn a_head_is_too_long_before_it_has_too_many_fields() {
    let shortest = |count: usize| format!("G / HTTP/1.0\n{}\n", "a:\n".repeat(count));
    let fit = (HEAD_BYTES_MAX - shortest(0).len()) / 3;
    for (count, status) in [(fit, 405), (fit + 1, 431), (HEADERS_MAX + 1, 431)] {
        let answer = parse_head(shortest(count).as_bytes()).unwrap_err();
        assert_eq!(answer.status(), status, "{count} of {HEADERS_MAX}");
    }
    let room = sync("room", Some("a.b.c"));
    let bare = upgrade_with("", &[]);
    let fit = (HEAD_BYTES_MAX - bare.len()) / 3;
    let mut bytes = bare[..bare.len() - 2].to_vec();
    bytes.extend_from_slice("a:\n".repeat(fit).as_bytes());
    bytes.extend_from_slice(b"\r\n");
    assert_eq!(parse_head(&bytes), Ok(Some((bytes.len(), room))));
    let cut = parse_head(&bytes[..bytes.len() - 1]);
    assert_eq!(cut, Ok(None), "the head is not complete yet");
}

#[test]
fn a_wrong_body_length_is_reported_for_every_request() {
    for line in [
        "GET /healthz",
        "POST /",
        "GET /nothing",
        "HEAD /v1/presence/a",
    ] {
        for field in ["Content-Length: x", "Transfer-Encoding: gzip"] {
            let head = head(&format!("{line} HTTP/1.1"), &["Host: h", field]);
            check(&head, Err(400));
        }
    }
}

#[test]
fn answers_list_the_allowed_methods_and_versions() {
    for (line, fields, expected) in [
        (
            "POST /healthz HTTP/1.1",
            &FIELDS[..],
            "\r\nAllow: GET, HEAD\r\n",
        ),
        (
            "POST /v1/sync/a HTTP/1.1",
            &FIELDS[..],
            "\r\nAllow: GET\r\n",
        ),
        (
            "GET /v1/sync/a HTTP/1.1",
            &FIELDS[..1],
            "\r\nUpgrade: websocket\r\n",
        ),
        (
            "GET /v1/sync/a HTTP/1.1",
            &FIELDS[..1],
            "\r\nSec-WebSocket-Version: 13\r\n",
        ),
    ] {
        let mut out = Vec::new();
        parse_head(&head(line, fields))
            .unwrap_err()
            .encode(0, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains(expected) && out.contains("\r\nConnection: close"),
            "{out}"
        );
    }
}

#[test]
fn an_error_for_head_has_no_body() {
    for (line, has_body) in [
        ("HEAD /nowhere HTTP/1.1", false),
        ("GET /nowhere HTTP/1.1", true),
    ] {
        let mut out = Vec::new();
        parse_head(&head(line, &FIELDS))
            .unwrap_err()
            .encode(0, &mut out);
        assert_eq!(!out.ends_with(b"\r\n\r\n"), has_body, "{line}");
    }
}

/// P2.
#[test]
fn no_token_is_shown() {
    let offer = "Sec-WebSocket-Protocol: etherply.v2, bearer.hidden";
    let bytes = upgrade_with("", &["Authorization: Bearer hidden", offer]);
    let bytes = String::from_utf8(bytes).unwrap().replace("a.b.c", "hidden");
    let shown = format!("{:?}", parse_head(bytes.as_bytes()));
    assert!(
        shown.contains("redacted") && !shown.contains("hidden"),
        "{shown}"
    );
    for (from, to) in [
        ("GET", "PUT"),
        ("room", "ro/om"),
        ("room", "%"),
        ("13", "12"),
        ("Host", "X"),
        ("Bearer hidden", "Bearer hidden too"),
        ("bearer.hidden", "bearer.hidden-too"),
        ("?", "?since=hidden&generation=hidden&"),
        ("?", "?presence=hidden&"),
        ("?", "?replaces=hidden&"),
    ] {
        let broken = bytes.replacen(from, to, 1);
        let answer = parse_head(broken.as_bytes()).unwrap_err();
        let mut out = Vec::new();
        answer.encode(0, &mut out);
        let shown = format!("{answer:?} {}", String::from_utf8_lossy(&out));
        assert!(!shown.contains("hidden"), "{shown}");
    }
}

/// P101.
#[test]
fn switching() {
    let text = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    for (subprotocol, field) in [
        (None, ""),
        (
            Some("etherply.v1"),
            "Sec-WebSocket-Protocol: etherply.v1\r\n",
        ),
        (
            Some("etherply.v2"),
            "Sec-WebSocket-Protocol: etherply.v2\r\n",
        ),
    ] {
        let mut out = Vec::new();
        switching_protocols(ACCEPT, subprotocol, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("{text}{field}\r\n")
        );
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_head(&bytes);
    }

    #[test]
    fn a_changed_head(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = upgrade_with("", &["Authorization: Bearer x"]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(Some((head_bytes, Request::Sync(request)))) = parse_head(&bytes) {
            prop_assert!(head_bytes <= bytes.len());
            prop_assert!((1..=256).contains(&request.workspace.len()));
            prop_assert!(request.token.is_none_or(|token| !token.is_empty()));
        }
        let cut = cut.index(bytes.len());
        let _ = parse_head(&bytes[..cut]);
    }

    #[test]
    fn any_target(target in "/v1/sync/[^ \r\n\t\0\x01-\x1f\x7f]{0,40}") {
        let bytes = head(&format!("GET {target} HTTP/1.1"), &FIELDS);
        match parse_head(&bytes) {
            Ok(Some((_, Request::Sync(request)))) => {
                prop_assert!(!request.workspace.contains(char::is_control));
            }
            Ok(other) => prop_assert!(false, "{other:?}"),
            Err(answer) => prop_assert!([400, 404].contains(&answer.status())),
        }
    }
}
