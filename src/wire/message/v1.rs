//! The version 1 messages: parsing (P30 to P36) and encoding (P46 to P48).

use simd_json::Node;

use super::error::MessageError;
use super::walk::{Parser, Walk, timestamp_us};
use crate::limits::KEY_BYTES_MAX;
use crate::wire::frame;
use crate::wire::json::{json_string_bytes, put_json_string};

/// A message from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A write of one key.
    Op(Op<'a>),
    /// A keep-alive, which is not answered.
    Ping,
}

/// The payload of an op message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op<'a> {
    /// The key, unescaped: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: &'a str,
    /// The JSON text of the value, byte for byte as sent, without surrounding white space.
    pub value: &'a str,
    /// The timestamp in Unix microseconds, at most
    /// [`TIMESTAMP_MAX_US`](crate::limits::TIMESTAMP_MAX_US).
    pub timestamp: u64,
}

impl Parser {
    /// Parses one text message of a version 1 client, ignoring unknown fields.
    pub fn parse<'a>(&'a mut self, text: &'a str) -> Result<Message<'a>, MessageError> {
        self.read(text, |walk| message(walk?))
    }
}

fn message<'a>(mut walk: Walk<'a, '_>) -> Result<Message<'a>, MessageError> {
    let fields = walk.enter().ok_or(MessageError::NotAnObject)?;
    let (mut kind, mut payload) = (None, None);
    for _ in 0..fields {
        let name = walk.name();
        match name {
            "type" if kind.is_some() => return Err(MessageError::Twice("type")),
            "type" => kind = Some(walk.node()),
            "payload" if payload.is_some() => return Err(MessageError::Twice("payload")),
            "payload" => payload = Some(walk),
            _ => {}
        }
        walk.skip();
    }
    match kind {
        Some(Node::String("ping")) => Ok(Message::Ping),
        Some(Node::String("op")) => op(payload.ok_or(MessageError::Payload)?).map(Message::Op),
        _ => Err(MessageError::Type),
    }
}

fn op<'a>(mut walk: Walk<'a, '_>) -> Result<Op<'a>, MessageError> {
    let fields = walk.enter().ok_or(MessageError::Payload)?;
    let (mut key, mut value, mut timestamp) = (None, None, None);
    for _ in 0..fields {
        let name = walk.name();
        let node = walk.node();
        let text = walk.skip();
        let (seen, field) = match name {
            "key" => (key.replace(node).is_some(), "payload.key"),
            "value" => (value.replace(text).is_some(), "payload.value"),
            "timestamp" => (timestamp.replace(node).is_some(), "payload.timestamp"),
            _ => continue,
        };
        if seen {
            return Err(MessageError::Twice(field));
        }
    }
    let key = match key {
        Some(Node::String(key)) if (1..=KEY_BYTES_MAX).contains(&key.len()) => key,
        _ => return Err(MessageError::Key),
    };
    let value = value.ok_or(MessageError::Value)?;
    Ok(Op {
        key,
        value,
        timestamp: timestamp_us(timestamp)?,
    })
}

const OP_START: &str = r#"{"type":"op","payload":{"key":"#;
const OP_VALUE: &str = r#","value":"#;
const OP_TIMESTAMP: &str = r#","timestamp":"#;
const OP_END: &str = "}}";

/// Returns the length in bytes of the frame that [`put_op`] appends.
#[must_use]
pub fn op_frame_bytes(key: &str, value: &str, timestamp: u64) -> usize {
    let payload_bytes = op_payload_bytes(key, value, timestamp);
    frame::header_bytes(payload_bytes) + payload_bytes
}

/// Appends an op as a text frame.
pub fn put_op(out: &mut Vec<u8>, key: &str, value: &str, timestamp: u64) {
    frame::put_text_header(out, op_payload_bytes(key, value, timestamp));
    out.extend_from_slice(OP_START.as_bytes());
    put_json_string(out, key);
    out.extend_from_slice(OP_VALUE.as_bytes());
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(OP_TIMESTAMP.as_bytes());
    out.extend_from_slice(itoa::Buffer::new().format(timestamp).as_bytes());
    out.extend_from_slice(OP_END.as_bytes());
}

fn op_payload_bytes(key: &str, value: &str, timestamp: u64) -> usize {
    let fixed = OP_START.len() + OP_VALUE.len() + OP_TIMESTAMP.len() + OP_END.len();
    let digits = timestamp.checked_ilog10().map_or(1, |log| log as usize + 1);
    fixed + json_string_bytes(key) + value.len() + digits
}

/// Appends an error message (P48) as a text frame.
pub fn put_error(out: &mut Vec<u8>, code: u16, message: &str) {
    put_json(
        out,
        &serde_json::json!({"type": "error", "payload": {"code": code, "message": message}}),
    );
}

/// Appends an error message that identifies the refused op, as a text frame.
pub fn put_op_error(out: &mut Vec<u8>, code: u16, message: &str, op: &Op<'_>) {
    let payload = serde_json::json!({
        "code": code, "message": message, "key": op.key, "timestamp": op.timestamp,
    });
    put_json(
        out,
        &serde_json::json!({"type": "error", "payload": payload}),
    );
}

fn put_json(out: &mut Vec<u8>, message: &serde_json::Value) {
    let text = message.to_string();
    frame::put_text_header(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TIMESTAMP_MAX_US;
    use proptest::prelude::*;

    fn check(text: &str, expected: Result<(&str, &str, u64), MessageError>) {
        let mut parser = Parser::new();
        let expected = expected.map(|(key, value, timestamp)| {
            Message::Op(Op {
                key,
                value,
                timestamp,
            })
        });
        assert_eq!(parser.parse(text), expected, "{text}");
        // Nothing carries over in the buffers from one message to the next.
        let _ = parser
            .parse(r#"{"type":"op","payload":{"key":"\u0041","value":[1,[2]],"timestamp":1}}"#);
        assert_eq!(parser.parse(text), expected, "{text}, again");
    }

    fn op(key: &str, value: &str, timestamp: &str) -> String {
        format!(
            r#"{{"type":"op","payload":{{"key":{key},"value":{value},"timestamp":{timestamp}}}}}"#
        )
    }

    /// P47.
    #[test]
    fn a_value_keeps_its_bytes() {
        let deep = "[".repeat(128) + &"]".repeat(128);
        for value in [
            "null",
            "true",
            "1.0",
            "-0",
            "1e2",
            "12345678901234567890",
            r#""\u00e9""#,
            r#""é\n\"""#,
            "{}",
            "[]",
            r#"{ "a" : [ 1 , {"b" : null} ] }"#,
            "[ [], {}, \"}\" ]",
            r#""\ud83d\ude00""#,
            &deep,
        ] {
            check(&op("\"k\"", value, "7"), Ok(("k", value, 7)));
            let payload = format!("{{ \"timestamp\":7 , \"value\" :\t{value}\n , \"key\":\"k\" }}");
            let spaced =
                format!(" {{\r\n\"payload\" : {payload} ,\"x\":[{value}],\"type\":\"op\"}} ");
            check(&spaced, Ok(("k", value, 7)));
        }
    }

    /// P33, P34.
    #[test]
    fn names_and_keys_are_compared_unescaped() {
        check(
            r#"{"\u0074ype":"\u006fp","payload":{"ke\u0079":"\u0061\"","value":1,"timestamp":1}}"#,
            Ok(("a\"", "1", 1)),
        );
        check(
            r#"{"type":"op","payload":{"key":"a","k\u0065y":"b","value":1,"timestamp":1}}"#,
            Err(MessageError::Twice("payload.key")),
        );
    }

    /// P31, P35, P36.
    #[test]
    fn the_error_for_a_bad_message_names_the_field() {
        use MessageError as E;
        let long = format!("\"{}\"", "k".repeat(KEY_BYTES_MAX + 1));
        for (text, error) in [
            ("", E::Json),
            ("x", E::Json),
            ("{", E::Json),
            (r#"{"type":"op"}x"#, E::Json),
            ("{}{}", E::Json),
            ("[]", E::NotAnObject),
            ("1", E::NotAnObject),
            ("\"op\"", E::NotAnObject),
            ("null", E::NotAnObject),
            ("{}", E::Type),
            (r#"{"type":1}"#, E::Type),
            (r#"{"type":"OP"}"#, E::Type),
            (r#"{"type":null}"#, E::Type),
            (r#"{"type":"op"}"#, E::Payload),
            (r#"{"type":"op","payload":[]}"#, E::Payload),
            (r#"{"type":"op","payload":{}}"#, E::Key),
            (r#"{"type":"op","type":"op"}"#, E::Twice("type")),
            (
                r#"{"type":"op","payload":{},"payload":{}}"#,
                E::Twice("payload"),
            ),
            (&op("1", "1", "1"), E::Key),
            (&op("\"\"", "1", "1"), E::Key),
            (&op(&long, "1", "1"), E::Key),
            (
                r#"{"type":"op","payload":{"key":"k","timestamp":1}}"#,
                E::Value,
            ),
            (
                r#"{"type":"op","payload":{"key":"k","value":1,"value":1,"timestamp":1}}"#,
                E::Twice("payload.value"),
            ),
            (
                r#"{"type":"op","payload":{"key":"k","value":1}}"#,
                E::Timestamp,
            ),
            (&op("\"k\"", "1", "1.0"), E::Timestamp),
            (&op("\"k\"", "1", "1e3"), E::Timestamp),
            (&op("\"k\"", "1", "\"1\""), E::Timestamp),
            (&op("\"k\"", "1", "null"), E::Timestamp),
            (&op("\"k\"", "1", "-1"), E::TimestampRange),
            (&op("\"k\"", "1", "9223372036854775808"), E::TimestampRange),
            (&op("\"k\"", "1e400", "1"), E::Json),
            (&op("\"k\"", "123456789012345678901", "1"), E::Json),
            (&op("\"k\"", r#""\ud800""#, "1"), E::Json),
            (&op("\"k\"", "01", "1"), E::Json),
        ] {
            check(text, Err(error));
        }
        check(
            &op("\"k\"", "1", "9223372036854775807"),
            Ok(("k", "1", TIMESTAMP_MAX_US)),
        );
        let longest = "k".repeat(KEY_BYTES_MAX);
        check(
            &op(&format!("\"{longest}\""), "1", "0"),
            Ok((&longest, "1", 0)),
        );
    }

    /// P36.
    #[test]
    fn the_error_names_a_field_that_is_nested_too_deeply() {
        let deep = "[".repeat(129) + &"]".repeat(129);
        for (text, expected) in [
            (
                &op("\"k\"", &deep, "1"),
                "payload.value must not be nested deeper than 128 levels",
            ),
            (
                &format!(r#"{{"type":"op","u":[{deep}],"payload":{{}}}}"#),
                "u must not be nested deeper than 129 levels",
            ),
            (&format!("[[{deep}]]"), "the message must be a JSON object"),
        ] {
            let error = Parser::new().parse(text).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    /// P32.
    #[test]
    fn a_ping_needs_no_other_field() {
        let mut parser = Parser::new();
        for text in [
            r#"{"type":"ping"}"#,
            r#"{"timestamp":1,"type":"ping","payload":[]}"#,
        ] {
            assert_eq!(parser.parse(text), Ok(Message::Ping));
        }
    }

    /// Generates arbitrary JSON, as text with white space between its tokens.
    fn json_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("false".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f32>()
                .prop_filter("JSON has no infinity", |f| f.is_finite())
                .prop_map(|f| format!("{f:?}")),
            ".{0,8}".prop_map(|s| serde_json::to_string(&s).unwrap()),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let space = "[ \n\t\r]{0,2}";
            prop_oneof![
                prop::collection::vec((inner.clone(), space), 0..4).prop_map(|items| {
                    format!(
                        "[{}]",
                        items
                            .iter()
                            .map(|(i, s)| format!("{s}{i}{s}"))
                            .collect::<Vec<_>>()
                            .join(",")
                    )
                }),
                prop::collection::vec((".{0,3}", inner, space), 0..4).prop_map(|items| {
                    let field = |(k, v, s): &(String, String, String)| {
                        format!("{s}{}{s}:{s}{v}{s}", serde_json::to_string(k).unwrap())
                    };
                    format!(
                        "{{{}}}",
                        items.iter().map(field).collect::<Vec<_>>().join(",")
                    )
                }),
            ]
        })
    }

    proptest! {
        /// P31, P46, P47.
        #[test]
        fn any_value_is_passed_on_unchanged(
            value in json_text(),
            key in ".{1,20}",
            timestamp in 0..=TIMESTAMP_MAX_US,
            other in json_text(),
        ) {
            let key_text = serde_json::to_string(&key).unwrap();
            let payload = format!(
                r#"{{"o":{other},"value": {value} ,"key":{key_text},"timestamp":{timestamp}}}"#
            );
            let text = format!(r#"{{"other":{other},"type":"op","payload":{payload}}}"#);
            let mut parser = Parser::new();
            let parsed = parser.parse(&text);
            let expected = Message::Op(Op { key: &key, value: &value, timestamp });
            prop_assert_eq!(parsed, Ok(expected));
            let mut out = Vec::new();
            put_op(&mut out, &key, &value, timestamp);
            prop_assert_eq!(out.len(), op_frame_bytes(&key, &value, timestamp));
            let payload = &out[out.len() - op_payload_bytes(&key, &value, timestamp)..];
            let text = std::str::from_utf8(payload).unwrap();
            let mut again = Parser::new();
            prop_assert_eq!(again.parse(text), Ok(expected));
        }

        #[test]
        fn any_text_is_parsed_without_a_panic(
            text in "\\PC{0,60}|[{}\\[\\]:,\"a-z0-9 \\\\]{0,60}",
        ) {
            let _ = Parser::new().parse(&text);
        }
    }
}
