//! The request head, cut anywhere. Input: four cuts of two bytes each, then the bytes of the
//! connection. Each byte 01 among them stands for 4 KiB of `a`, so that short inputs reach the size
//! limit of the head.
#![no_main]

use etherply::limits::{HEAD_BYTES_MAX, USER_ID_BYTES_MAX, WORKSPACE_ID_BYTES_MAX};
use etherply::wire::ProtocolVersion;
use etherply::wire::upgrade::{
    Answer, Request, StateRequest, SyncRequest, parse_head, switching_protocols,
};
use etherply_fuzz::Script;
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tungstenite::Error;
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{self, create_response};

const LONG: &[u8] = &[b'a'; 4096];

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let cuts = [(); 4].map(|()| script.index::<2>(1 << 16));
    let parts: Vec<&[u8]> = script.0.split(|byte| *byte == 1).collect();
    let bytes = parts.join(LONG);

    let whole = parse_head(&bytes);
    for cut in cuts {
        check_cut(&bytes, cut % (bytes.len() + 1), &whole);
    }
    if let Some(longest) = bytes.get(..HEAD_BYTES_MAX) {
        let longest = parse_head(longest);
        assert_eq!(longest, whole, "bytes beyond the limit were read");
        assert_ne!(longest, Ok(None), "an endless head is not refused");
    }
    match &whole {
        Ok(Some((head_bytes, request))) => {
            let head = &bytes[..*head_bytes];
            assert!(head.len() <= HEAD_BYTES_MAX && head.ends_with(b"\n"));
            assert_eq!(parse_head(head), whole, "bytes after the head were read");
            assert_eq!(
                parse_head(&head[..head.len() - 1]),
                Ok(None),
                "the head ends at two offsets"
            );
            match request {
                Request::Sync(request) => check_request(request),
                Request::State(request) => check_http_read(request),
                _ => {}
            }
        }
        Ok(None) => {}
        Err(answer) => check_answer(answer, bytes.trim_ascii_start().starts_with(b"HEAD ")),
    }
    check_oracle(&bytes, &whole);
});

type Outcome = Result<Option<(usize, Request)>, Answer>;

/// Checks that a prefix of the bytes has either no outcome yet or the same one.
fn check_cut(bytes: &[u8], cut: usize, whole: &Outcome) {
    let early = parse_head(&bytes[..cut]);
    assert!(
        early == Ok(None) || early == *whole,
        "truncated at {cut}: {early:?}, complete: {whole:?}"
    );
}

/// Checks the guarantees about a request, and that it has the same meaning when it is written
/// canonically.
fn check_request(request: &SyncRequest) {
    let SyncRequest {
        workspace,
        token,
        user,
        origin,
        accept_key,
        version,
        subprotocol,
        resume,
        has_presence,
        replaces,
    } = request;
    assert!(subprotocol.is_none_or(|name| name == version.subprotocol()));
    let is_version_2 = *version == ProtocolVersion::V2;
    let has_parameters = resume.is_some() || *has_presence || replaces.is_some();
    assert!(if is_version_2 {
        subprotocol.is_some()
    } else {
        !has_parameters
    });
    check_names(workspace, token.as_deref());
    assert!(user.as_ref().is_none_or(|user| {
        (1..=USER_ID_BYTES_MAX).contains(&user.len()) && !user.contains(char::is_control)
    }));
    let plain = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let origin = origin
        .as_ref()
        .map(|origin| format!("Origin: {origin}\r\n"));
    let parameters = [
        resume.map(|from| format!("&since={}&generation={}", from.since, from.generation)),
        has_presence.then(|| "&presence=1".to_owned()),
        replaces.map(|connection| format!("&replaces={connection}")),
    ];
    let offer = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: x,{name}\r\n"));
    let head = format!(
        "GET /v1/sync/{}?token={}&userId={}{} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         {}{}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        plain(workspace),
        plain(token.as_deref().unwrap_or_default()),
        plain(user.as_deref().unwrap_or_default()),
        parameters.map(Option::unwrap_or_default).concat(),
        origin.unwrap_or_default(),
        offer.unwrap_or_default(),
    );
    if head.len() <= HEAD_BYTES_MAX {
        let accept_key_of_sample = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        let again = SyncRequest {
            accept_key: accept_key_of_sample,
            ..request.clone()
        };
        assert_eq!(
            parse_head(head.as_bytes()),
            Ok(Some((head.len(), Request::Sync(again))))
        );
    }
    let mut answer = Vec::new();
    switching_protocols(accept_key, *subprotocol, &mut answer);
    check_http(&answer, 101);
}

fn check_names(workspace: &str, token: Option<&str>) {
    assert!((1..=WORKSPACE_ID_BYTES_MAX).contains(&workspace.len()));
    assert!(!workspace.contains(char::is_control));
    assert!(token.is_none_or(|token| !token.is_empty()));
}

/// Checks the guarantees about a state request, and that its debug output does not reveal its
/// token.
fn check_http_read(request: &StateRequest) {
    check_names(&request.workspace, request.token.as_deref());
    let hidden = StateRequest {
        token: request.token.as_ref().map(|_| "x".to_owned()),
        ..request.clone()
    };
    assert_eq!(format!("{request:?}"), format!("{hidden:?}"));
}

/// Checks that a response is complete HTTP, with a status that protocol.md specifies for a head.
fn check_answer(answer: &Answer, may_lack_body: bool) {
    assert!(matches!(answer.status(), 400 | 404 | 405 | 426 | 431));
    let mut bytes = Vec::new();
    answer.encode(0, &mut bytes);
    let (length, body) = check_http(&bytes, answer.status());
    if body.is_empty() && may_lack_body {
        return;
    }
    assert_eq!(length, body.len().to_string());
    let body: serde_json::Value = serde_json::from_slice(body).expect("the body is JSON");
    assert!(body["error"].is_string() && body["message"].is_string());
}

/// Parses a response and returns its Content-Length and its body.
fn check_http(bytes: &[u8], status: u16) -> (String, &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut answer = httparse::Response::new(&mut fields);
    let head_bytes = answer.parse(bytes).expect("the answer is HTTP").unwrap();
    assert_eq!(answer.code, Some(status));
    let length = answer
        .headers
        .iter()
        .find(|field| field.name == "Content-Length");
    let length = length.map_or(&b""[..], |field| field.value);
    (
        String::from_utf8_lossy(length).into_owned(),
        &bytes[head_bytes..],
    )
}

/// Performs tungstenite's own handshake on the same bytes, up to the size limit of the head.
/// Returns the length of the head and the accept key.
fn by_tungstenite(bytes: &[u8]) -> Result<Option<(usize, String)>, Error> {
    let within_limit = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let Some((head_bytes, mut request)) = server::Request::try_parse(within_limit)? else {
        return Ok(None);
    };
    // tungstenite treats a space in the list as a comma.
    let connection = request.headers().get("Connection");
    let is_upgrade = |element: &str| element.trim().eq_ignore_ascii_case("upgrade");
    if !connection.is_some_and(|list| {
        list.to_str()
            .is_ok_and(|list| list.split(',').any(is_upgrade))
    }) {
        return Err(ProtocolError::MissingConnectionUpgradeHeader.into());
    }
    // tungstenite checks the last four bits of the key's base64 text, which have no meaning.
    let key = request.headers().get("Sec-WebSocket-Key");
    let key = key.map_or_else(Vec::new, |key| key.as_bytes().to_vec());
    if let Some(last_digit) = key.len().checked_sub(3) {
        let plain = [&key[..last_digit], b"A", &key[last_digit + 1..]].concat();
        request.headers_mut().insert(
            "Sec-WebSocket-Key",
            plain.try_into().map_err(tungstenite::http::Error::from)?,
        );
    }
    create_response(&request)?;
    Ok(Some((head_bytes, derive_accept_key(&key))))
}

/// Compares with tungstenite, which knows neither paths nor tokens, and is laxer or stricter in
/// known cases.
fn check_oracle(bytes: &[u8], ours: &Outcome) {
    match (ours, by_tungstenite(bytes)) {
        (Ok(Some((ours, Request::Sync(request)))), Ok(Some((theirs, key)))) => {
            assert_eq!((*ours, &request.accept_key), (theirs, &key));
        }
        (Ok(Some((_, Request::Sync(_)))), Err(Error::Protocol(error))) => {
            let is_known = matches!(
                error,
                // tungstenite looks only at the first line of a list, and does not treat Upgrade as
                // a list.
                ProtocolError::MissingConnectionUpgradeHeader
                    | ProtocolError::MissingUpgradeWebSocketHeader
            );
            assert!(is_known, "tungstenite rejects it: {error}");
        }
        // tungstenite has room for 124 fields.
        (
            Ok(None | Some((_, Request::Sync(_)))),
            Err(Error::Capacity(CapacityError::TooManyHeaders)),
        ) => {}
        // `http` accepts fewer targets and field values than httparse.
        (Ok(Some((_, Request::Sync(_)))), Err(Error::HttpFormat(_))) => {}
        (Ok(Some((_, Request::Sync(_)))), theirs) => panic!("tungstenite decodes {theirs:?}"),
        // A bad path, host, key, id or body, or a head that is too long.
        (Err(answer), Ok(Some(_))) => {
            assert!(
                matches!(answer.status(), 400 | 404 | 405 | 431),
                "{answer:?}"
            );
        }
        (Ok(None), theirs) => assert!(matches!(theirs, Ok(None)), "tungstenite decodes {theirs:?}"),
        _ => {}
    }
}
