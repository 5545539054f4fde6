//! The messages of a client, compared with `serde_json`, which decides what is valid JSON and
//! extracts the fields. simd-json's additional refusals are modelled here. Input: texts for a
//! single parser, separated by the byte 1E (which no JSON contains).
#![no_main]

use etherply::limits::{KEY_BYTES_MAX, TIMESTAMP_MAX_US};
use etherply::wire::message::{Message, MessageError, Op, Parser, op_frame_bytes, put_op};
use etherply::wire::state::{init_field_bytes, put_init};
use etherply_fuzz::json::{
    DEPTH_MAX, Fields, brackets, deep_field, depth, has_refused_token, is_json, payload, string,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut parser = Parser::new();
    for text in input.split(|byte| *byte == 0x1e) {
        if let Ok(text) = str::from_utf8(text) {
            let ours = parser.parse(text);
            let key;
            let expected = match model(text) {
                Ok(None) => Ok(Message::Ping),
                Ok(Some((k, value, timestamp))) => {
                    key = k;
                    Ok(Message::Op(Op {
                        key: &key,
                        value,
                        timestamp,
                    }))
                }
                Err(error) => Err(error),
            };
            let is_deep = brackets(text) > DEPTH_MAX
                && matches!(
                    ours,
                    Err(MessageError::Depth(_) | MessageError::NotAnObject)
                );
            let is_json = expected != Err(Refusal::Other(MessageError::Json));
            // If there are two reasons to refuse a text, it is not specified which one is found
            // first.
            if is_json || !is_deep {
                assert_eq!(ours.map_err(Refusal::from), expected, "{text:?}");
            }
            if let Ok(Message::Op(op)) = ours {
                check_frames(&op);
            }
        }
    }
});

/// The reason why a text is refused. The deep field is in its displayed form, because only the
/// parser can construct it.
#[derive(Debug, PartialEq)]
enum Refusal {
    Depth { field: String, levels_max: usize },
    Other(MessageError),
}

impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Depth(field) => Self::Depth {
                field: field.to_string(),
                levels_max: field.levels_max(),
            },
            error => Self::Other(error),
        }
    }
}

/// Returns the meaning of a text according to protocol.md: an op, or `None` for a ping.
fn model(text: &str) -> Result<Option<(String, &str, u64)>, Refusal> {
    if !is_json(text) || has_refused_token(text) {
        return Err(MessageError::Json.into());
    }
    if depth(text) > DEPTH_MAX {
        return Err(match deep_field(text) {
            Some((field, levels_max)) => Refusal::Depth { field, levels_max },
            None => MessageError::NotAnObject.into(),
        });
    }
    model_of_shallow(text).map_err(Refusal::from)
}

fn model_of_shallow(text: &str) -> Result<Option<(String, &str, u64)>, MessageError> {
    let fields = Fields::of(text).ok_or(MessageError::NotAnObject)?;
    if let Some(path) = fields.twice(&[("type", "type"), ("payload", "payload")]) {
        return Err(MessageError::Twice(path));
    }
    match fields.get("type").and_then(string).as_deref() {
        Some("ping") => return Ok(None),
        Some("op") => {}
        _ => return Err(MessageError::Type),
    }
    let payload = fields
        .get("payload")
        .and_then(Fields::of)
        .ok_or(MessageError::Payload)?;
    let twice = payload.twice(&[
        ("key", "payload.key"),
        ("value", "payload.value"),
        ("timestamp", "payload.timestamp"),
    ]);
    if let Some(path) = twice {
        return Err(MessageError::Twice(path));
    }
    let key = payload
        .get("key")
        .and_then(string)
        .filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()));
    let key = key.ok_or(MessageError::Key)?;
    let value = payload.get("value").ok_or(MessageError::Value)?;
    let timestamp = payload
        .get("timestamp")
        .and_then(|text| text.parse::<i128>().ok());
    match u64::try_from(timestamp.ok_or(MessageError::Timestamp)?) {
        Ok(timestamp) if timestamp <= TIMESTAMP_MAX_US => Ok(Some((key, value, timestamp))),
        _ => Err(MessageError::TimestampRange),
    }
}

/// Checks that the op is sent exactly as it was received, both in a broadcast and in an init
/// message.
fn check_frames(op: &Op<'_>) {
    let Op {
        key,
        value,
        timestamp,
    } = *op;
    let mut out = Vec::new();
    put_op(&mut out, key, value, timestamp);
    assert_eq!(out.len(), op_frame_bytes(key, value, timestamp));
    assert_eq!(Parser::new().parse(payload(&out)), Ok(Message::Op(*op)));
    assert_eq!(
        model(payload(&out)),
        Ok(Some((key.to_owned(), value, timestamp)))
    );

    out.clear();
    let fields = [(key, value), (value, "0")];
    let fields_bytes = fields
        .iter()
        .map(|(key, value)| init_field_bytes(key, value))
        .sum();
    put_init(&mut out, fields_bytes, fields.into_iter());
    let init = Fields::of(payload(&out)).expect("the init message is an object");
    let data = init
        .get("data")
        .and_then(Fields::of)
        .expect("init has an object as data");
    assert_eq!(data.0, fields.map(|(key, value)| (key.to_owned(), value)));
}
