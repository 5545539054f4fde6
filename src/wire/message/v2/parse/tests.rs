//! Messages of version 2 clients: tables, and random ops compared with the values that they were
//! built from.

use proptest::prelude::*;

use super::*;
use crate::wire::message::v2::ClientMessageError as E;

/// A timestamp that is not refused.
const T: u64 = TIMESTAMP_MIN_US;

/// Checks that `text` is parsed into this id and this content, where an error comes with its key.
fn check(
    text: &str,
    id: Option<u64>,
    expected: Result<ClientMessage<'_>, (Option<&str>, ClientMessageError)>,
) {
    let mut parser = Parser::new();
    for round in 0..2 {
        let envelope = parser.parse_v2(text);
        let refused =
            |refused: RefusedMessage<'_>| (refused.key.map(Cow::into_owned), refused.error);
        let content = envelope.content.map_err(refused);
        let expected = expected.map_err(|(key, error)| (key.map(str::to_owned), error));
        assert_eq!(
            (envelope.id, content),
            (id, expected),
            "{text}, round {round}"
        );
        // Nothing carries over in the buffers from one message to the next.
        let other = r#"{"id":9,"type":"op","payload":{"key":"\u0041","value":[1,[2]]}}"#;
        let _ = parser.parse_v2(other);
    }
}

fn write(key: &'static str, value: &'static str, ttl_ms: Option<u64>) -> ClientOp<'static> {
    ClientOp {
        key,
        change: ClientChange::Write { value, ttl_ms },
        timestamp: T,
        if_timestamp: None,
    }
}

fn delete(key: &'static str) -> ClientOp<'static> {
    ClientOp {
        change: ClientChange::Delete,
        ..write(key, "", None)
    }
}

/// Returns an op message with these members in its payload.
fn op_text(members: &str) -> String {
    format!(r#"{{"type":"op","id":5,"payload":{{{members}}}}}"#)
}

/// P115, P116, P118 to P120.
#[test]
fn good_ops() {
    let conditional = |op, if_timestamp| ClientOp {
        if_timestamp: Some(if_timestamp),
        ..op
    };
    for (members, expected) in [
        (
            r#""key":"k","value":1.0,"timestamp":T"#,
            write("k", "1.0", None),
        ),
        (
            r#""value": [ 1 , 2 ] ,"timestamp":T,"key":"\u006b""#,
            write("k", "[ 1 , 2 ]", None),
        ),
        (
            r#""key":"k","value":null,"timestamp":T"#,
            write("k", "null", None),
        ),
        (r#""key":"k","deleted":true,"timestamp":T"#, delete("k")),
        (
            r#""key":"k","value":1,"timestamp":T,"ttl_ms":1"#,
            write("k", "1", Some(1)),
        ),
        (
            r#""key":"k","value":1,"timestamp":T,"ttl_ms":315360000000"#,
            write("k", "1", Some(TTL_MS_MAX)),
        ),
        (
            r#""key":"k","value":1,"timestamp":T,"if_timestamp":0"#,
            conditional(write("k", "1", None), 0),
        ),
        (
            r#""key":"k","deleted":true,"timestamp":T,"if_timestamp":9223372036854775807"#,
            conditional(delete("k"), TIMESTAMP_MAX_US),
        ),
        (
            r#""x":[{"key":2}],"key":"k","value":1,"timestamp":T,"ttl-ms":[],"delete":1"#,
            write("k", "1", None),
        ),
    ] {
        let text = op_text(&members.replace('T', &T.to_string()));
        check(&text, Some(5), Ok(ClientMessage::Op(expected)));
    }
    let latest = op_text(r#""key":"k","value":1,"timestamp":9223372036854775807"#);
    let expected = ClientOp {
        timestamp: TIMESTAMP_MAX_US,
        ..write("k", "1", None)
    };
    check(&latest, Some(5), Ok(ClientMessage::Op(expected)));
}

/// Checks that an op with the key `k` and these further members is refused with this error.
fn check_refused(members: &str, error: ClientMessageError) {
    let text = op_text(&format!(r#""key":"k",{members}"#).replace('T', &T.to_string()));
    check(&text, Some(5), Err((Some("k"), error)));
}

/// P31, P113.
#[test]
fn bad_keys() {
    let timestamp_missing = E::Common(MessageError::Timestamp);
    let longest = "k".repeat(KEY_BYTES_MAX);
    let too_long = format!("\"{longest}k\"");
    for key in ["1", "null", "\"\"", &too_long] {
        let text = op_text(&format!(r#""key":{key},"value":1,"timestamp":{T}"#));
        check(&text, Some(5), Err((None, E::Common(MessageError::Key))));
    }
    check(
        &op_text(""),
        Some(5),
        Err((None, E::Common(MessageError::Key))),
    );
    let twice = E::Common(MessageError::Twice("payload.key"));
    check(
        &op_text(r#""key":"k","key":"l","value":1"#),
        Some(5),
        Err((None, twice)),
    );
    let text = op_text(&format!(r#""key":"{longest}","value":1"#));
    check(&text, Some(5), Err((Some(&longest), timestamp_missing)));
    let text = op_text(r#""key":"\u00e9","value":1"#);
    check(&text, Some(5), Err((Some("é"), timestamp_missing)));
}

/// P115, P119.
#[test]
fn bad_changes() {
    for (members, error) in [
        (r#""timestamp":T"#, E::ValueOrDeleted),
        (
            r#""value":1,"deleted":true,"timestamp":T"#,
            E::ValueOrDeleted,
        ),
        (r#""value":1,"deleted":false,"timestamp":T"#, E::Deleted),
        (r#""deleted":false,"timestamp":T"#, E::Deleted),
        (r#""deleted":1,"timestamp":T"#, E::Deleted),
        (r#""deleted":"true","timestamp":T"#, E::Deleted),
        (r#""deleted":null,"timestamp":T"#, E::Deleted),
        (r#""deleted":true,"timestamp":T,"ttl_ms":1"#, E::DeletedTtl),
        (r#""value":1,"timestamp":T,"ttl_ms":0"#, E::Ttl),
        (r#""value":1,"timestamp":T,"ttl_ms":315360000001"#, E::Ttl),
        (r#""value":1,"timestamp":T,"ttl_ms":-1"#, E::Ttl),
        (r#""value":1,"timestamp":T,"ttl_ms":1.0"#, E::Ttl),
        (r#""value":1,"timestamp":T,"ttl_ms":null"#, E::Ttl),
    ] {
        check_refused(members, error);
    }
}

/// P117, P118.
#[test]
fn bad_timestamps() {
    let timestamp = E::Common(MessageError::Timestamp);
    let range = E::Common(MessageError::TimestampRange);
    for (members, error) in [
        (r#""value":1"#, timestamp),
        (r#""value":1,"timestamp":1e15"#, timestamp),
        (r#""value":1,"timestamp":"T""#, timestamp),
        (r#""value":1,"timestamp":-1"#, range),
        (r#""value":1,"timestamp":9223372036854775808"#, range),
        (r#""value":1,"timestamp":1700000000000"#, E::Milliseconds),
        (r#""value":1,"timestamp":978307199999999"#, E::Milliseconds),
        (r#""deleted":true,"timestamp":0"#, E::Milliseconds),
        (
            r#""value":1,"timestamp":T,"if_timestamp":-1"#,
            E::IfTimestamp,
        ),
        (
            r#""value":1,"timestamp":T,"if_timestamp":1.0"#,
            E::IfTimestamp,
        ),
        (
            r#""value":1,"timestamp":T,"if_timestamp":null"#,
            E::IfTimestamp,
        ),
        (
            r#""value":1,"timestamp":T,"if_timestamp":9223372036854775808"#,
            E::IfTimestamp,
        ),
    ] {
        check_refused(members, error);
    }
    let shown = E::Milliseconds.to_string();
    assert!(
        shown.starts_with("payload.timestamp looks like milliseconds"),
        "{shown}"
    );
}

/// P33, P116.
#[test]
fn members_that_appear_twice() {
    for (members, path) in [
        (r#""value":1,"value":1"#, "payload.value"),
        (r#""deleted":true,"deleted":true"#, "payload.deleted"),
        (r#""timestamp":1,"timestamp":1"#, "payload.timestamp"),
        (
            r#""if_timestamp":1,"i\u0066_timestamp":1"#,
            "payload.if_timestamp",
        ),
        (r#""ttl_ms":1,"ttl_ms":1,"ttl_ms":1"#, "payload.ttl_ms"),
        (
            r#""ttl_ms":1,"value":1,"value":1,"ttl_ms":1"#,
            "payload.value",
        ),
    ] {
        check_refused(members, E::Common(MessageError::Twice(path)));
    }
}

/// P111, P112.
#[test]
fn ids() {
    for (id, expected) in [
        ("1", Some(1)),
        ("9007199254740991", Some(MESSAGE_ID_MAX)),
        ("9007199254740992", None),
        ("0", None),
        ("-1", None),
        ("1.0", None),
        ("1e3", None),
        ("\"1\"", None),
        ("null", None),
        ("[1]", None),
    ] {
        let text = format!(r#"{{"id":{id},"type":"ping"}}"#);
        let content = expected.map(|_| ClientMessage::Ping).ok_or((None, E::Id));
        check(&text, expected, content);
        let text = format!(
            r#"{{"type":"op","payload":{{"key":"k","value":1,"timestamp":{T}}},"id":{id}}}"#
        );
        let op = ClientMessage::Op(write("k", "1", None));
        check(
            &text,
            expected,
            expected.map(|_| op).ok_or((Some("k"), E::Id)),
        );
    }
    check(r#"{"type":"ping"}"#, None, Ok(ClientMessage::Ping));
    check(
        r#"{"Id":4,"type":"ping","seq":5}"#,
        None,
        Ok(ClientMessage::Ping),
    );
    let twice = E::Common(MessageError::Twice("id"));
    check(r#"{"id":4,"id":4,"type":"ping"}"#, None, Err((None, twice)));
    check(
        r#"{"id":4,"i\u0064":5,"type":"op","payload":{"key":"k"}}"#,
        None,
        Err((Some("k"), twice)),
    );
}

/// P110, P112, P114.
#[test]
fn the_error_for_a_bad_envelope_has_the_id() {
    let common = |error| Err((None, E::Common(error)));
    for (text, id, expected) in [
        ("", None, common(MessageError::Json)),
        ("[]", None, common(MessageError::NotAnObject)),
        (r#"[{"id":4}]"#, None, common(MessageError::NotAnObject)),
        ("{}", None, Err((None, E::UnknownType))),
        (r#"{"id":4}"#, Some(4), Err((None, E::UnknownType))),
        (r#"{"id":4,"type":1}"#, Some(4), Err((None, E::UnknownType))),
        (
            r#"{"id":4,"type":"OP"}"#,
            Some(4),
            Err((None, E::UnknownType)),
        ),
        (
            r#"{"id":4,"type":"init","payload":{}}"#,
            Some(4),
            Err((None, E::UnknownType)),
        ),
        (
            r#"{"id":4,"type":"op"}"#,
            Some(4),
            common(MessageError::Payload),
        ),
        (
            r#"{"id":4,"type":"op","payload":[]}"#,
            Some(4),
            common(MessageError::Payload),
        ),
        (
            r#"{"id":4,"type":"cast","payload":1}"#,
            Some(4),
            common(MessageError::Payload),
        ),
        (
            r#"{"id":4,"type":"token"}"#,
            Some(4),
            common(MessageError::Payload),
        ),
        (
            r#"{"id":4,"type":"op","type":"op","payload":{"key":"k"}}"#,
            Some(4),
            common(MessageError::Twice("type")),
        ),
        (
            r#"{"payload":{},"type":"ping","payload":{},"id":4}"#,
            Some(4),
            common(MessageError::Twice("payload")),
        ),
    ] {
        check(text, id, expected);
    }
}

/// P112.
#[test]
fn text_that_simd_json_refuses_has_its_id_in_the_error() {
    let deep = "[".repeat(129) + &"]".repeat(129);
    let nest = |value: &str| {
        format!(r#" {{"id":4,"type":"op","payload":{{"key":"\u006b\"","value":{value}}}}}"#)
    };
    let json = E::Common(MessageError::Json);
    for value in ["1e400", "123456789012345678901", r#""\ud800""#] {
        check(&nest(value), Some(4), Err((Some("k\""), json)));
    }
    let text = nest(&deep);
    let mut parser = Parser::new();
    let envelope = parser.parse_v2(&text);
    let refused = envelope.content.unwrap_err();
    assert_eq!(
        (envelope.id, refused.key.as_deref()),
        (Some(4), Some("k\""))
    );
    assert_eq!(
        refused.error.to_string(),
        "payload.value must not be nested deeper than 128 levels"
    );
    for (text, id, key) in [
        (r#"{"id":4,"x":1e400}"#, Some(4), None),
        (
            r#"{"id":4,"type":"cast","payload":{"key":"k","value":1e400}}"#,
            Some(4),
            None,
        ),
        (
            r#"{"id":4,"type":"op","payload":{"key":"","value":1e400}}"#,
            Some(4),
            None,
        ),
        (
            r#"{"id":4,"type":"op","payload":{"key":"k","x":"\udc00"}}"#,
            Some(4),
            Some("k"),
        ),
        (r#"{"id":4,"type":"op","payload":[1e400]}"#, Some(4), None),
        (r#"{"id":4,"id":4,"x":1e400}"#, None, None),
        (r#"{"id":0,"x":1e400}"#, None, None),
        (r#"{"id":9007199254740992,"x":1e400}"#, None, None),
        (r#"{"id":1e400}"#, None, None),
        ("[4,1e400]", None, None),
        (r#"{"id":4,"x":1e400"#, None, None),
        (r#"{"id":4}{"x":1e400}"#, None, None),
    ] {
        check(text, id, Err((key, json)));
    }
}

/// P161, P162, P167, P180, P182.
#[test]
fn other_messages() {
    let of_length = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    check(
        r#"{"type":"ping","payload":[1]}"#,
        None,
        Ok(ClientMessage::Ping),
    );
    check(
        r#"{"type":"presence","id":1,"payload":{"value": {"x": 1.0} }}"#,
        Some(1),
        Ok(ClientMessage::Presence {
            value: r#"{"x": 1.0}"#,
        }),
    );
    check(
        r#"{"type":"cast","payload":{"key":"k","value":null}}"#,
        None,
        Ok(ClientMessage::Cast { value: "null" }),
    );
    check(
        r#"{"type":"token","payload":{"token":"a.\u0062.c"}}"#,
        None,
        Ok(ClientMessage::Token { token: "a.b.c" }),
    );
    let twice = |path| Err((None, E::Common(MessageError::Twice(path))));
    for (kind, bytes_max) in [("presence", 4096), ("cast", 16_384)] {
        let text = |value: &str| format!(r#"{{"type":"{kind}","payload":{{"value": {value} }}}}"#);
        let longest = of_length(bytes_max);
        let message = match kind {
            "cast" => ClientMessage::Cast { value: &longest },
            _ => ClientMessage::Presence { value: &longest },
        };
        check(&text(&longest), None, Ok(message));
        let too_long = Err((None, E::ValueTooLong { bytes_max }));
        check(&text(&of_length(bytes_max + 1)), None, too_long);
        let none = format!(r#"{{"type":"{kind}","payload":{{}}}}"#);
        check(&none, None, Err((None, E::Common(MessageError::Value))));
        check(&text("1,\"value\":2"), None, twice("payload.value"));
    }
    for token in ["1", "null", "\"\""] {
        let text = format!(r#"{{"type":"token","payload":{{"token":{token}}}}}"#);
        check(&text, None, Err((None, E::Token)));
    }
    check(
        r#"{"type":"token","payload":{}}"#,
        None,
        Err((None, E::Token)),
    );
    let text = r#"{"type":"token","payload":{"token":"a","token":"a"}}"#;
    check(text, None, twice("payload.token"));
}

/// P182.
#[test]
fn no_token_is_shown() {
    let mut parser = Parser::new();
    for text in [
        r#"{"type":"token","id":1,"payload":{"token":"hidden"}}"#,
        r#"{"type":"token","id":0,"payload":{"token":"hidden"}}"#,
        r#"{"type":"token","id":1,"payload":{"token":["hidden"]}}"#,
        r#"{"type":"token","id":1,"payload":{"token":"hidden","x":1e400}}"#,
    ] {
        let envelope = parser.parse_v2(text);
        let error = envelope.content.as_ref().err();
        let shown = format!(
            "{envelope:?} {:?}",
            error.map(|error| error.error.to_string())
        );
        assert!(!shown.contains("hidden"), "{shown}");
    }
}

proptest! {
    /// P112, P115: with its members in any order, and with spaces.
    #[test]
    fn parsing_recovers_the_parts_of_any_op(
        key in ".{1,20}",
        string in ".{0,20}",
        is_write: bool,
        timestamp in TIMESTAMP_MIN_US..=TIMESTAMP_MAX_US,
        if_timestamp in prop::option::of(0..=TIMESTAMP_MAX_US),
        ttl_ms in prop::option::of(1..=TTL_MS_MAX),
        id in prop::option::of(1..=MESSAGE_ID_MAX),
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        space in "[ \n\t\r]{0,2}",
    ) {
        let json = |text: &str| serde_json::to_string(text).unwrap();
        let value = format!("[ {},{{}} ]", json(&string));
        let ttl_ms = ttl_ms.filter(|_| is_write);
        let member = |name: &str, value: String| format!("\"{name}\"{space}:{space}{value}{space}");
        let members = [
            Some(member("key", json(&key))),
            Some(if is_write {
                member("value", value.clone())
            } else {
                member("deleted", "true".into())
            }),
            Some(member("timestamp", timestamp.to_string())),
            if_timestamp.map(|if_timestamp| member("if_timestamp", if_timestamp.to_string())),
            ttl_ms.map(|ttl_ms| member("ttl_ms", ttl_ms.to_string())),
            Some(member("other", value.clone())),
        ];
        let in_order = order.iter().filter_map(|index| members.get(*index)?.clone());
        let payload = in_order.collect::<Vec<_>>().join(",");
        let id_text = id.map(|id| format!("\"id\":{id},")).unwrap_or_default();
        let text = format!(r#"{space}{{{id_text}"payload":{{{payload}}},"type":"op"}}{space}"#);
        let change = if is_write {
            ClientChange::Write { value: &value, ttl_ms }
        } else {
            ClientChange::Delete
        };
        let op = ClientOp { key: &key, change, timestamp, if_timestamp };
        let expected = ClientEnvelope { id, content: Ok(ClientMessage::Op(op)) };
        let mut parser = Parser::new();
        prop_assert_eq!(parser.parse_v2(&text), expected);
    }

    /// P116: anything that a version 1 client may send means the same, except for old timestamps.
    #[test]
    fn a_version_1_op_is_a_version_2_op(
        text in "\\{\"type\":\"(op|ping)\",\"payload\":\\{\"key\":\"[ab]{0,2}\",\
                 \"value\":[12]{0,2},\"timestamp\":(T|T|5|-1|x)\\}\\}",
    ) {
        use crate::wire::message::{Message, Op};
        let text = text.replace('T', &T.to_string());
        let (mut parser, mut other) = (Parser::new(), Parser::new());
        let content = other.parse_v2(&text).content.map_err(|refused| refused.error);
        match parser.parse(&text) {
            Ok(Message::Ping) => prop_assert_eq!(content, Ok(ClientMessage::Ping)),
            Ok(Message::Op(Op { timestamp: 5, .. })) => {
                prop_assert_eq!(content, Err(E::Milliseconds));
            }
            Ok(Message::Op(Op { key, value, timestamp })) => {
                let change = ClientChange::Write { value, ttl_ms: None };
                let op = ClientOp { key, change, timestamp, if_timestamp: None };
                prop_assert_eq!(content, Ok(ClientMessage::Op(op)));
            }
            Err(error) => prop_assert_eq!(content, Err(E::Common(error))),
        }
    }

    #[test]
    fn any_text_is_parsed_without_a_panic(
        text in "\\PC{0,60}|[{}\\[\\]:,\"a-z0-9 \\\\]{0,60}",
    ) {
        let _ = Parser::new().parse_v2(&text);
    }
}
