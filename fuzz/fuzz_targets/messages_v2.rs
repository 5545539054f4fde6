//! The messages of a version 2 client, compared with a model for which `serde_json` extracts the
//! fields: the id, the key of a refused op, and the content or the error. Input: texts for a single
//! parser, separated by the byte 1E (which no JSON contains).
#![no_main]

use etherply::limits::{
    CAST_VALUE_BYTES_MAX, KEY_BYTES_MAX, MESSAGE_ID_MAX, PRESENCE_VALUE_BYTES_MAX,
    TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, TTL_MS_MAX,
};
use etherply::seq::Seq;
use etherply::wire::message::v2::{
    ClientChange, ClientMessage, ClientMessageError as E, ClientOp, OpEnvelope, PresenceFrame,
    StateChunk, cast_frame_bytes, error_frame_bytes, op_frame_bytes, put_cast, put_error, put_op,
    put_peer,
};
use etherply::wire::message::{MessageError, Parser};
use etherply_fuzz::json::{
    DEPTH_MAX, Fields, brackets, deep_field, depth, has_refused_token, is_json, payload, string,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut parser = Parser::new();
    for text in input.split(|byte| *byte == 0x1e) {
        if let Ok(text) = str::from_utf8(text) {
            check(&mut parser, text);
        }
    }
});

fn check(parser: &mut Parser, text: &str) {
    let expected = Model::of(text);
    let envelope = parser.parse_v2(text);
    assert_eq!(envelope.id, expected.id, "{text:?}");
    match envelope.content {
        Ok(message) => {
            assert_eq!(Ok(Content::from(message)), expected.content, "{text:?}");
            check_frames(message);
        }
        Err(refused) => {
            assert_eq!(refused.key.as_deref(), expected.key.as_deref(), "{text:?}");
            if let Some(key) = refused.key {
                check_error(refused.error, envelope.id, &key);
            }
            let is_deep = brackets(text) > DEPTH_MAX
                && matches!(
                    refused.error,
                    E::Common(MessageError::Depth(_) | MessageError::NotAnObject)
                );
            let is_json = expected.content != Err(Refusal::Other(MessageError::Json.into()));
            // If there are two reasons to refuse a text, it is not specified which one is found
            // first.
            if is_json || !is_deep {
                assert_eq!(
                    Err(Refusal::from(refused.error)),
                    expected.content,
                    "{text:?}"
                );
            }
        }
    }
}

/// The content of a message, with owned texts.
#[derive(Debug, PartialEq)]
enum Content {
    Op {
        key: String,
        value: Option<String>,
        ttl_ms: Option<u64>,
        timestamp: u64,
        if_timestamp: Option<u64>,
    },
    Ping,
    Presence(String),
    Cast(String),
    Token(String),
}

impl From<ClientMessage<'_>> for Content {
    fn from(message: ClientMessage<'_>) -> Self {
        match message {
            ClientMessage::Op(op) => {
                let (value, ttl_ms) = match op.change {
                    ClientChange::Write { value, ttl_ms } => (Some(value.to_owned()), ttl_ms),
                    ClientChange::Delete => (None, None),
                };
                Self::Op {
                    key: op.key.to_owned(),
                    value,
                    ttl_ms,
                    timestamp: op.timestamp,
                    if_timestamp: op.if_timestamp,
                }
            }
            ClientMessage::Ping => Self::Ping,
            ClientMessage::Presence { value } => Self::Presence(value.to_owned()),
            ClientMessage::Cast { value } => Self::Cast(value.to_owned()),
            ClientMessage::Token { token } => Self::Token(token.to_owned()),
        }
    }
}

/// The reason why a text is refused. The deep field is in its displayed form, because only the
/// parser can construct it.
#[derive(Debug, PartialEq)]
enum Refusal {
    Depth { field: String, levels_max: usize },
    Other(E),
}

impl From<E> for Refusal {
    fn from(error: E) -> Self {
        match error {
            E::Common(MessageError::Depth(field)) => Self::Depth {
                field: field.to_string(),
                levels_max: field.levels_max(),
            },
            error => Self::Other(error),
        }
    }
}

impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Self {
        E::from(error).into()
    }
}

/// The meaning of a text according to protocol.md.
struct Model {
    id: Option<u64>,
    /// The key of an op, whether or not the op is refused.
    key: Option<String>,
    content: Result<Content, Refusal>,
}

impl Model {
    fn of(text: &str) -> Self {
        let fields = Fields::of(text);
        let id = fields
            .as_ref()
            .and_then(|fields| integer(fields.only("id")?, 1, MESSAGE_ID_MAX));
        Self {
            id,
            key: fields.as_ref().and_then(key),
            content: content(text, fields.as_ref(), id),
        }
    }
}

/// Returns the key of an op, whether or not the op is valid otherwise.
fn key(fields: &Fields<'_>) -> Option<String> {
    let kind = string(fields.only("type")?)?;
    let payload = Fields::of(fields.only("payload")?)?;
    let key = string(payload.only("key")?)?;
    (kind == "op" && (1..=KEY_BYTES_MAX).contains(&key.len())).then_some(key)
}

fn content(text: &str, fields: Option<&Fields<'_>>, id: Option<u64>) -> Result<Content, Refusal> {
    if !is_json(text) || has_refused_token(text) {
        return Err(MessageError::Json.into());
    }
    if depth(text) > DEPTH_MAX {
        return Err(match deep_field(text) {
            Some((field, levels_max)) => Refusal::Depth { field, levels_max },
            None => MessageError::NotAnObject.into(),
        });
    }
    let fields = fields.ok_or(MessageError::NotAnObject)?;
    if let Some(path) = fields.twice(&[("type", "type"), ("payload", "payload"), ("id", "id")]) {
        return Err(MessageError::Twice(path).into());
    }
    if fields.get("id").is_some() && id.is_none() {
        return Err(E::Id.into());
    }
    let payload = || {
        let payload = fields.get("payload").and_then(Fields::of);
        payload.ok_or(MessageError::Payload)
    };
    let kind = fields.get("type").and_then(string);
    match kind.as_deref() {
        Some("op") => op(&payload()?).map_err(Refusal::from),
        Some("ping") => Ok(Content::Ping),
        Some("presence") => {
            let value = value(&payload()?, PRESENCE_VALUE_BYTES_MAX)?;
            Ok(Content::Presence(value))
        }
        Some("cast") => Ok(Content::Cast(value(&payload()?, CAST_VALUE_BYTES_MAX)?)),
        Some("token") => {
            let payload = payload()?;
            if let Some(path) = payload.twice(&[("token", "payload.token")]) {
                return Err(MessageError::Twice(path).into());
            }
            let token = payload.get("token").and_then(string);
            let token = token.filter(|token| !token.is_empty());
            Ok(Content::Token(token.ok_or(E::Token)?))
        }
        _ => Err(E::UnknownType.into()),
    }
}

fn value(payload: &Fields<'_>, bytes_max: usize) -> Result<String, E> {
    if let Some(path) = payload.twice(&[("value", "payload.value")]) {
        return Err(MessageError::Twice(path).into());
    }
    let value = payload.get("value").ok_or(MessageError::Value)?;
    if value.len() > bytes_max {
        return Err(E::ValueTooLong { bytes_max });
    }
    Ok(value.to_owned())
}

fn op(payload: &Fields<'_>) -> Result<Content, E> {
    let twice = payload.twice(&[
        ("key", "payload.key"),
        ("value", "payload.value"),
        ("deleted", "payload.deleted"),
        ("timestamp", "payload.timestamp"),
        ("if_timestamp", "payload.if_timestamp"),
        ("ttl_ms", "payload.ttl_ms"),
    ]);
    if let Some(path) = twice {
        return Err(MessageError::Twice(path).into());
    }
    let key = payload.get("key").and_then(string);
    let key = key.filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()));
    let key = key.ok_or(MessageError::Key)?;
    let (value, ttl_ms) = (payload.get("value"), payload.get("ttl_ms"));
    match payload.get("deleted") {
        Some(deleted) if deleted != "true" => return Err(E::Deleted),
        Some(_) if value.is_some() => return Err(E::ValueOrDeleted),
        Some(_) if ttl_ms.is_some() => return Err(E::DeletedTtl),
        None if value.is_none() => return Err(E::ValueOrDeleted),
        _ => {}
    }
    let optional = |field: Option<&str>, min, max, error| match field {
        None => Ok(None),
        Some(text) => integer(text, min, max).map(Some).ok_or(error),
    };
    let ttl_ms = optional(ttl_ms, 1, TTL_MS_MAX, E::Ttl)?;
    let timestamp = payload
        .get("timestamp")
        .and_then(|text| text.parse::<i128>().ok());
    let timestamp = match u64::try_from(timestamp.ok_or(MessageError::Timestamp)?) {
        Ok(timestamp) if timestamp <= TIMESTAMP_MAX_US => timestamp,
        _ => return Err(MessageError::TimestampRange.into()),
    };
    if timestamp < TIMESTAMP_MIN_US {
        return Err(E::Milliseconds);
    }
    let if_timestamp = payload.get("if_timestamp");
    Ok(Content::Op {
        key,
        value: value.map(str::to_owned),
        ttl_ms,
        timestamp,
        if_timestamp: optional(if_timestamp, 0, TIMESTAMP_MAX_US, E::IfTimestamp)?,
    })
}

/// Returns the value of a JSON text that is written as an integer.
fn integer(text: &str, min: u64, max: u64) -> Option<u64> {
    let number = u64::try_from(text.parse::<i128>().ok()?).ok()?;
    (min..=max).contains(&number).then_some(number)
}

/// Checks that accepted content is sent exactly as it was received.
fn check_frames(message: ClientMessage<'_>) {
    let mut out = Vec::new();
    match message {
        ClientMessage::Op(op) => check_op(&op),
        ClientMessage::Cast { value } => {
            put_cast(&mut out, 7, Some(value), value);
            assert_eq!(out.len(), cast_frame_bytes(7, Some(value), value));
            let cast = payload_of(&out);
            assert_eq!(cast.get("value"), Some(value));
            assert_eq!(cast.get("user").and_then(string).as_deref(), Some(value));
        }
        ClientMessage::Presence { value } => {
            let (mut peer, mut frame) = (Vec::new(), PresenceFrame::new());
            put_peer(&mut peer, 7, None, Some(value));
            frame.push_peer(&peer);
            let frame_bytes = frame.frame_bytes(true);
            frame.finish(&mut out, true);
            assert_eq!(out.len(), frame_bytes);
            let peers = payload_of(&out).get("peers").and_then(Fields::of);
            let peer = peers.expect("peers").get("7").and_then(Fields::of);
            assert_eq!(peer.expect("the peer").get("value"), Some(value));
        }
        ClientMessage::Ping | ClientMessage::Token { .. } => {}
    }
}

fn check_op(op: &ClientOp<'_>) {
    let value = match op.change {
        ClientChange::Write { value, .. } => Some(value),
        ClientChange::Delete => None,
    };
    let mut out = Vec::new();
    let number = op.timestamp >> 10;
    // A broadcast has a seq, a correction an id.
    let sent = OpEnvelope {
        id: (op.timestamp % 2 == 0 && number > 0).then_some(number),
        seq: (op.timestamp % 2 == 1).then(|| Seq::new(number)),
    };
    put_op(&mut out, op.key, value, op.timestamp, sent);
    let frame_bytes = op_frame_bytes(op.key, value, op.timestamp, sent);
    assert_eq!(out.len(), frame_bytes);
    // A client may also send the server's op.
    let plain = ClientOp {
        change: match op.change {
            ClientChange::Write { value, .. } => ClientChange::Write {
                value,
                ttl_ms: None,
            },
            ClientChange::Delete => ClientChange::Delete,
        },
        if_timestamp: None,
        ..*op
    };
    let mut parser = Parser::new();
    let envelope = parser.parse_v2(payload(&out));
    assert_eq!(envelope.id, sent.id);
    assert_eq!(envelope.content, Ok(ClientMessage::Op(plain)));

    out.clear();
    let mut chunk = StateChunk::new();
    for _ in 0..2 {
        match value {
            Some(value) => chunk.push_entry(op.key, value, op.timestamp),
            None => chunk.push_deleted(op.key, op.timestamp),
        }
    }
    let frame_bytes = chunk.frame_bytes(Seq::new(op.timestamp));
    chunk.finish(&mut out, Seq::new(op.timestamp));
    assert_eq!(out.len(), frame_bytes);
    let state = payload_of(&out);
    let key = serde_json::to_string(op.key).expect("a string");
    let (name, item) = match value {
        Some(value) => ("entries", format!("[{key},{value},{}]", op.timestamp)),
        None => ("deleted", format!("[{key},{}]", op.timestamp)),
    };
    assert_eq!(state.get(name), Some(&*format!("[{item},{item}]")));
}

fn check_error(error: E, id: Option<u64>, key: &str) {
    let (mut out, message) = (Vec::new(), error.to_string());
    put_error(&mut out, 400, &message, id, Some(key));
    assert_eq!(out.len(), error_frame_bytes(400, &message, id, Some(key)));
    let envelope = Fields::of(payload(&out)).expect("a message is an object");
    assert_eq!(
        envelope.get("id").map(str::to_owned),
        id.map(|id| id.to_string())
    );
    let content = payload_of(&out);
    assert_eq!(content.get("key").and_then(string).as_deref(), Some(key));
    assert_eq!(content.get("message").and_then(string), Some(message));
}

/// Returns the payload of the message in the only frame in `out`.
fn payload_of(out: &[u8]) -> Fields<'_> {
    let message = Fields::of(payload(out)).expect("a message is an object");
    let content = message.get("payload").and_then(Fields::of);
    content.expect("a payload is an object")
}
