//! The messages of the [protocol](crate::wire): incoming JSON texts (P30 to P36) and outgoing
//! frames (P45 to P48).
//!
//! [`Parser`] reads a client's message with simd-json and finds the bytes of `payload.value` as
//! they were sent. simd-json's first stage yields the byte offsets of all structural characters,
//! and its second stage the tape of unescaped nodes. This module walks both in lockstep. The value
//! is never reformatted, so `1.0`, `"\u00e9"` and inner spaces reach the other clients unchanged
//! (P47).
//!
//! Invariant: parsing allocates nothing once the parser's buffers have grown to the size of the
//! messages.

use simd_json::{Buffers, INPUT_PADDING, Node, StaticNode, Tape};

use crate::limits::{KEY_BYTES_MAX, TIMESTAMP_MAX_US};
use crate::wire::frame;

mod depth;

pub use depth::DeepField;

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
    /// The timestamp in Unix microseconds, at most [`TIMESTAMP_MAX_US`].
    pub timestamp: u64,
}

/// The reason why a text is not a valid message.
///
/// The error's text is sent to the client. It names the field and says what the field must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The text is not JSON that simd-json accepts.
    #[error(
        "the message must be one valid JSON object, with numbers that fit u64, i64 or f64 and \
         strings without lone surrogates"
    )]
    Json,
    /// The value is nested deeper than [`VALUE_DEPTH_MAX`](crate::limits::VALUE_DEPTH_MAX), or
    /// another field is nested too deep.
    #[error("{0} must not be nested deeper than {levels} levels", levels = .0.levels_max())]
    Depth(DeepField),
    /// The text is JSON, but not an object.
    #[error("the message must be a JSON object")]
    NotAnObject,
    /// `type` is missing or not a string that the server knows.
    #[error("type must be \"op\" or \"ping\"")]
    Type,
    /// `payload` is missing or not an object.
    #[error("payload must be an object")]
    Payload,
    /// `payload.key` is missing, not a string, empty or too long.
    #[error("payload.key must be a string of 1 to {KEY_BYTES_MAX} bytes")]
    Key,
    /// `payload.value` is missing.
    #[error("payload.value is required (any JSON value, including null)")]
    Value,
    /// `payload.timestamp` is missing or not an integer.
    #[error("payload.timestamp must be an integer (Unix microseconds)")]
    Timestamp,
    /// `payload.timestamp` is an integer out of range.
    #[error(
        "payload.timestamp must be an integer from 0 to {TIMESTAMP_MAX_US} (Unix microseconds)"
    )]
    TimestampRange,
    /// A field appears twice in its object.
    #[error("{0} must be given only once")]
    Twice(&'static str),
}

/// A parser of messages. Each shard has one, and reuses its buffers for every message.
pub struct Parser {
    buffers: Buffers,
    // Always empty between calls, so that no node outlives the text that it points into.
    tape: Vec<Node<'static>>,
    scratch: Vec<u8>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Creates a parser with small buffers, which grow with the messages.
    #[must_use]
    pub fn new() -> Self {
        let buffers = Buffers::with_max_depth(1024, depth::DEPTH_MAX);
        Self {
            buffers,
            tape: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Parses one text message, ignoring unknown fields.
    pub fn parse<'a>(&'a mut self, text: &'a str) -> Result<Message<'a>, MessageError> {
        let Self {
            buffers,
            tape,
            scratch,
        } = self;
        // simd-json unescapes strings in place, but the value is needed as sent, so it is given a
        // copy.
        scratch.clear();
        scratch.extend_from_slice(text.as_bytes());
        scratch.resize(text.len() + INPUT_PADDING, b' ');
        let mut nodes = Tape(std::mem::take(tape)).reset();
        let outcome = match simd_json::fill_tape_padded(scratch, text.len(), buffers, &mut nodes) {
            Ok(()) => {
                let structurals = buffers.structural_indexes();
                Walk {
                    text,
                    structurals,
                    nodes: &nodes.0,
                    structural: 0,
                    node: 0,
                }
                .message()
            }
            Err(error) if matches!(error.error(), simd_json::ErrorType::DepthLimitExceeded) => {
                let field = depth::deep_field(text);
                Err(field.map_or(MessageError::NotAnObject, MessageError::Depth))
            }
            Err(_) => Err(MessageError::Json),
        };
        *tape = nodes.reset().0;
        outcome
    }
}

/// A cursor over a parsed text: the next node of the tape and its structural character, in
/// lockstep.
#[derive(Clone, Copy)]
struct Walk<'a, 'n> {
    text: &'a str,
    structurals: &'n [u32],
    nodes: &'n [Node<'a>],
    structural: usize,
    node: usize,
}

impl<'a> Walk<'a, '_> {
    fn message(mut self) -> Result<Message<'a>, MessageError> {
        let fields = self.enter().ok_or(MessageError::NotAnObject)?;
        let (mut kind, mut payload) = (None, None);
        for _ in 0..fields {
            let name = self.name();
            match name {
                "type" if kind.is_some() => return Err(MessageError::Twice("type")),
                "type" => kind = Some(self.nodes[self.node]),
                "payload" if payload.is_some() => return Err(MessageError::Twice("payload")),
                "payload" => payload = Some(self),
                _ => {}
            }
            self.skip();
        }
        match kind {
            Some(Node::String("ping")) => Ok(Message::Ping),
            Some(Node::String("op")) => payload.ok_or(MessageError::Payload)?.op().map(Message::Op),
            _ => Err(MessageError::Type),
        }
    }

    fn op(mut self) -> Result<Op<'a>, MessageError> {
        let fields = self.enter().ok_or(MessageError::Payload)?;
        let (mut key, mut value, mut timestamp) = (None, None, None);
        for _ in 0..fields {
            let name = self.name();
            let node = self.nodes[self.node];
            let text = self.skip();
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

    /// Steps into an object and returns its number of fields, or `None` if the node is not an
    /// object.
    fn enter(&mut self) -> Option<usize> {
        let Node::Object { len, .. } = self.nodes[self.node] else {
            return None;
        };
        self.node += 1;
        self.structural += 1;
        Some(len)
    }

    /// Returns a field's unescaped name and steps to its value.
    fn name(&mut self) -> &'a str {
        let Node::String(name) = self.nodes[self.node] else {
            unreachable!("the tape has a string before each value of an object");
        };
        self.node += 1;
        // The opening quote and the colon; a closing quote is not structural.
        self.structural += 2;
        name
    }

    /// Steps over a value and the comma or bracket after it, and returns the value's text as sent.
    fn skip(&mut self) -> &'a str {
        let start = self.structurals[self.structural] as usize;
        self.node += match self.nodes[self.node] {
            Node::Object { count, .. } | Node::Array { count, .. } => count + 1,
            Node::String(_) | Node::Static(_) => 1,
        };
        // A scalar has one structural character; an object or array ends at its matching bracket.
        let mut depth = 0_usize;
        loop {
            match self.text.as_bytes()[self.structurals[self.structural] as usize] {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.structural += 1;
            if depth == 0 {
                break;
            }
        }
        let end = self.structurals[self.structural] as usize;
        self.structural += 1;
        self.text[start..end].trim_end_matches([' ', '\t', '\n', '\r'])
    }
}

fn timestamp_us(node: Option<Node<'_>>) -> Result<u64, MessageError> {
    match node {
        Some(Node::Static(StaticNode::U64(timestamp))) if timestamp <= TIMESTAMP_MAX_US => {
            Ok(timestamp)
        }
        Some(Node::Static(StaticNode::I64(timestamp))) => {
            u64::try_from(timestamp).map_err(|_| MessageError::TimestampRange)
        }
        Some(Node::Static(StaticNode::U64(_))) => Err(MessageError::TimestampRange),
        _ => Err(MessageError::Timestamp),
    }
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

pub(super) fn put_json_string(out: &mut Vec<u8>, string: &str) {
    serde_json::to_writer(out, string).expect("a string can always be serialized");
}

/// Returns the number of bytes that [`put_json_string`] appends.
///
/// A frame's header needs the length of the payload before the payload is encoded.
pub(super) fn json_string_bytes(string: &str) -> usize {
    let escapes: usize = string
        .bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
            0..0x20 => 5,
            _ => 0,
        })
        .sum();
    string.len() + escapes + 2
}

#[cfg(test)]
mod tests {
    use super::*;
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
        // The buffers carry nothing over from one message to the next.
        let _ = parser
            .parse(r#"{"type":"op","payload":{"key":"\u0041","value":[1,[2]],"timestamp":1}}"#);
        assert_eq!(parser.parse(text), expected, "{text}, parsed again");
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
        fn every_value_is_passed_on_unchanged(
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
        fn arbitrary_text_is_parsed_without_a_panic(
            text in "\\PC{0,60}|[{}\\[\\]:,\"a-z0-9 \\\\]{0,60}",
        ) {
            let _ = Parser::new().parse(&text);
        }

        #[test]
        fn the_length_of_a_json_string_is_correct(string in any::<String>()) {
            let mut out = Vec::new();
            put_json_string(&mut out, &string);
            prop_assert_eq!(out.len(), json_string_bytes(&string));
        }
    }
}
