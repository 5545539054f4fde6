//! Parsing the messages of a version 2 client.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use simd_json::{Node, StaticNode};

use super::client::{
    ClientChange, ClientEnvelope, ClientMessage, ClientMessageError, ClientOp, RefusedMessage,
};
use super::refused;
use crate::limits::{
    CAST_VALUE_BYTES_MAX, KEY_BYTES_MAX, MESSAGE_ID_MAX, PRESENCE_VALUE_BYTES_MAX,
    TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, TTL_MS_MAX,
};
use crate::wire::message::error::MessageError;
use crate::wire::message::walk::{Parser, Walk, timestamp_us};

impl Parser {
    /// Parses one text message of a version 2 client, ignoring unknown fields.
    pub fn parse_v2<'a>(&'a mut self, text: &'a str) -> ClientEnvelope<'a> {
        self.read(text, |walk| match walk {
            Ok(walk) => envelope(walk),
            Err(error) => refused::envelope(text, error),
        })
    }
}

/// A field of an object: its node, its text as sent, and a cursor at its start.
#[derive(Clone, Copy)]
struct Field<'a, 'n> {
    node: Node<'a>,
    text: &'a str,
    start: Walk<'a, 'n>,
}

/// The known fields of an object.
struct Fields<'a, 'n, const N: usize> {
    /// The fields in the order of the requested names, without those that appear twice.
    found: [Option<Field<'a, 'n>>; N],
    /// The path of the first field that appears twice.
    twice: Option<&'static str>,
}

impl<'a, 'n, const N: usize> Fields<'a, 'n, N> {
    /// Reads an object. Each name comes with its path in the message. Returns `None` if `walk` is
    /// not at an object.
    fn read(mut walk: Walk<'a, 'n>, names: [(&str, &'static str); N]) -> Option<Self> {
        let (mut found, mut seen, mut twice) = ([None; N], [false; N], None);
        for _ in 0..walk.enter()? {
            let name = walk.name();
            let (start, node) = (walk, walk.node());
            let text = walk.skip();
            let Some(index) = names.iter().position(|(known, _)| *known == name) else {
                continue;
            };
            if seen[index] {
                found[index] = None;
                twice = twice.or(Some(names[index].1));
            } else {
                found[index] = Some(Field { node, text, start });
                seen[index] = true;
            }
        }
        Some(Self { found, twice })
    }

    fn check_twice(&self) -> Result<(), MessageError> {
        self.twice
            .map_or(Ok(()), |path| Err(MessageError::Twice(path)))
    }
}

fn envelope<'a>(walk: Walk<'a, '_>) -> ClientEnvelope<'a> {
    let names = [("type", "type"), ("payload", "payload"), ("id", "id")];
    let Some(fields) = Fields::read(walk, names) else {
        let error = ClientMessageError::from(MessageError::NotAnObject);
        return ClientEnvelope {
            id: None,
            content: Err(error.without_key()),
        };
    };
    let [kind, payload, id_field] = fields.found;
    let id = id_field.and_then(|id| integer(id.node, 1..=MESSAGE_ID_MAX));
    let envelope_error = if let Some(path) = fields.twice {
        Some(MessageError::Twice(path).into())
    } else {
        (id_field.is_some() && id.is_none()).then_some(ClientMessageError::Id)
    };
    let content = match (content(kind, payload), envelope_error) {
        (content, None) => content,
        // The key of the op is read even if the envelope is already refused.
        (Ok(ClientMessage::Op(op)), Some(error)) => Err(RefusedMessage {
            key: Some(Cow::Borrowed(op.key)),
            error,
        }),
        (Ok(_), Some(error)) => Err(error.without_key()),
        (Err(refused), Some(error)) => Err(RefusedMessage { error, ..refused }),
    };
    ClientEnvelope { id, content }
}

fn content<'a>(
    kind: Option<Field<'a, '_>>,
    payload: Option<Field<'a, '_>>,
) -> Result<ClientMessage<'a>, RefusedMessage<'a>> {
    let Some(Node::String(kind)) = kind.map(|kind| kind.node) else {
        return Err(ClientMessageError::UnknownType.without_key());
    };
    let message = match kind {
        "op" => return op(payload).map(ClientMessage::Op),
        "ping" => Ok(ClientMessage::Ping),
        "presence" => short_value(payload, PRESENCE_VALUE_BYTES_MAX)
            .map(|value| ClientMessage::Presence { value }),
        "cast" => {
            short_value(payload, CAST_VALUE_BYTES_MAX).map(|value| ClientMessage::Cast { value })
        }
        "token" => token(payload).map(|token| ClientMessage::Token { token }),
        _ => Err(ClientMessageError::UnknownType),
    };
    message.map_err(ClientMessageError::without_key)
}

fn payload_fields<'a, 'n, const N: usize>(
    payload: Option<Field<'a, 'n>>,
    names: [(&str, &'static str); N],
) -> Result<Fields<'a, 'n, N>, ClientMessageError> {
    let fields = payload.and_then(|payload| Fields::read(payload.start, names));
    Ok(fields.ok_or(MessageError::Payload)?)
}

fn op<'a>(payload: Option<Field<'a, '_>>) -> Result<ClientOp<'a>, RefusedMessage<'a>> {
    let names = [
        ("key", "payload.key"),
        ("value", "payload.value"),
        ("deleted", "payload.deleted"),
        ("timestamp", "payload.timestamp"),
        ("if_timestamp", "payload.if_timestamp"),
        ("ttl_ms", "payload.ttl_ms"),
    ];
    let fields = payload_fields(payload, names).map_err(ClientMessageError::without_key)?;
    let key = match fields.found[0].map(|key| key.node) {
        Some(Node::String(key)) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(key),
        _ => None,
    };
    op_of(&fields, key).map_err(|error| RefusedMessage {
        key: key.map(Cow::Borrowed),
        error,
    })
}

fn op_of<'a>(
    fields: &Fields<'a, '_, 6>,
    key: Option<&'a str>,
) -> Result<ClientOp<'a>, ClientMessageError> {
    fields.check_twice()?;
    let [_, value, deleted, timestamp, if_timestamp, ttl_ms] = fields.found;
    let key = key.ok_or(MessageError::Key)?;
    let change = change(value, deleted, ttl_ms)?;
    let timestamp = timestamp_us(timestamp.map(|timestamp| timestamp.node))?;
    if timestamp < TIMESTAMP_MIN_US {
        return Err(ClientMessageError::Milliseconds);
    }
    let if_timestamp = match if_timestamp {
        None => None,
        Some(field) => {
            Some(integer(field.node, 0..=TIMESTAMP_MAX_US).ok_or(ClientMessageError::IfTimestamp)?)
        }
    };
    Ok(ClientOp {
        key,
        change,
        timestamp,
        if_timestamp,
    })
}

fn change<'a>(
    value: Option<Field<'a, '_>>,
    deleted: Option<Field<'a, '_>>,
    ttl_ms: Option<Field<'a, '_>>,
) -> Result<ClientChange<'a>, ClientMessageError> {
    let is_true = |field: Field<'_, '_>| field.node == Node::Static(StaticNode::Bool(true));
    match (value, deleted) {
        (_, Some(deleted)) if !is_true(deleted) => Err(ClientMessageError::Deleted),
        (None, Some(_)) if ttl_ms.is_some() => Err(ClientMessageError::DeletedTtl),
        (None, Some(_)) => Ok(ClientChange::Delete),
        (Some(value), None) => {
            let ttl_ms = match ttl_ms {
                None => None,
                Some(field) => {
                    Some(integer(field.node, 1..=TTL_MS_MAX).ok_or(ClientMessageError::Ttl)?)
                }
            };
            Ok(ClientChange::Write {
                value: value.text,
                ttl_ms,
            })
        }
        (Some(_), Some(_)) | (None, None) => Err(ClientMessageError::ValueOrDeleted),
    }
}

/// Returns the value of a presence message or a cast.
fn short_value<'a>(
    payload: Option<Field<'a, '_>>,
    bytes_max: usize,
) -> Result<&'a str, ClientMessageError> {
    let fields = payload_fields(payload, [("value", "payload.value")])?;
    fields.check_twice()?;
    let [value] = fields.found;
    let value = value.ok_or(MessageError::Value)?.text;
    if value.len() > bytes_max {
        return Err(ClientMessageError::ValueTooLong { bytes_max });
    }
    Ok(value)
}

fn token<'a>(payload: Option<Field<'a, '_>>) -> Result<&'a str, ClientMessageError> {
    let fields = payload_fields(payload, [("token", "payload.token")])?;
    fields.check_twice()?;
    match fields.found[0].map(|token| token.node) {
        Some(Node::String(token)) if !token.is_empty() => Ok(token),
        _ => Err(ClientMessageError::Token),
    }
}

/// Returns an integer in `range`.
fn integer(node: Node<'_>, range: RangeInclusive<u64>) -> Option<u64> {
    let number = match node {
        Node::Static(StaticNode::U64(number)) => number,
        Node::Static(StaticNode::I64(number)) => u64::try_from(number).ok()?,
        _ => return None,
    };
    range.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests;
