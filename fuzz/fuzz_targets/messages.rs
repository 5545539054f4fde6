//! The messages of a client, compared with `serde_json`, which decides what is valid JSON and
//! extracts the fields. What simd-json refuses in addition is modelled here. Input: texts for a
//! single parser, separated by the byte 1E (which no JSON contains).
#![no_main]

use std::fmt;

use etherply::limits::{KEY_BYTES_MAX, TIMESTAMP_MAX_US, VALUE_DEPTH_MAX};
use etherply::wire::frame;
use etherply::wire::message::{Message, MessageError, Op, Parser, op_frame_bytes, put_op};
use etherply::wire::state::{init_field_bytes, put_init};
use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The message and its payload add one level each around the value.
const DEPTH_MAX: usize = VALUE_DEPTH_MAX + 2;

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

/// The fields of an object in order, with names and values as sent.
struct RawFields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Deserialize<'a> for RawFields<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'a> Visitor<'a> for Collect {
            type Value = RawFields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<RawFields<'a>, M::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    fields.push((
                        name.get()
                            .strip_prefix('"')
                            .and_then(|name| name.strip_suffix('"'))
                            .expect("a name is a string"),
                        value.get(),
                    ));
                }
                Ok(RawFields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl<'a> RawFields<'a> {
    /// Returns the first field of an object that is nested deeper than `levels`.
    fn deeper_than(text: &'a str, levels: usize) -> Option<(&'a str, &'a str)> {
        let fields: RawFields<'_> = serde_json::from_str(text).ok()?;
        fields.0.into_iter().find(|field| depth(field.1) > levels)
    }
}

/// The fields of an object in order, with unescaped names and with values as sent.
struct Fields<'a>(Vec<(String, &'a str)>);

impl<'a> Deserialize<'a> for Fields<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'a> Visitor<'a> for Collect {
            type Value = Fields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Fields<'a>, M::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    fields.push((name, value.get()));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl<'a> Fields<'a> {
    fn of(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|field| field.0 == name)
            .map(|field| field.1)
    }

    /// Returns an error for the first known name that occurs a second time.
    fn twice(&self, names: &[(&str, &'static str)]) -> Result<(), MessageError> {
        for (index, (name, _)) in self.0.iter().enumerate() {
            let known = names.iter().find(|known| known.0 == name);
            if let Some((_, field_name)) = known
                && self.0[..index].iter().any(|before| before.0 == *name)
            {
                return Err(MessageError::Twice(field_name));
            }
        }
        Ok(())
    }
}

/// Returns the meaning of a text according to protocol.md: an op, or `None` for a ping.
fn model(text: &str) -> Result<Option<(String, &str, u64)>, Refusal> {
    if serde_json::from_str::<&RawValue>(text).is_err() || has_refused_token(text) {
        return Err(MessageError::Json.into());
    }
    if depth(text) > DEPTH_MAX {
        return Err(deep(text));
    }
    model_of_shallow(text).map_err(Refusal::from)
}

/// Returns the reason why a text that is nested too deeply is refused, including the field.
fn deep(text: &str) -> Refusal {
    let Some((name, value)) = RawFields::deeper_than(text, DEPTH_MAX - 1) else {
        return MessageError::NotAnObject.into();
    };
    let in_payload = RawFields::deeper_than(value, DEPTH_MAX - 2).filter(|_| name == "payload");
    let (parent, name, levels_max) = match in_payload {
        Some((name, _)) => ("payload.", name, DEPTH_MAX - 2),
        None => ("", name, DEPTH_MAX - 1),
    };
    Refusal::Depth {
        field: format!("{parent}{}", &name[..name.floor_char_boundary(48)]),
        levels_max,
    }
}

fn model_of_shallow(text: &str) -> Result<Option<(String, &str, u64)>, MessageError> {
    let fields = Fields::of(text).ok_or(MessageError::NotAnObject)?;
    fields.twice(&[("type", "type"), ("payload", "payload")])?;
    let string = |text| serde_json::from_str::<String>(text).ok();
    match fields.get("type").and_then(string).as_deref() {
        Some("ping") => return Ok(None),
        Some("op") => {}
        _ => return Err(MessageError::Type),
    }
    let payload = fields
        .get("payload")
        .and_then(Fields::of)
        .ok_or(MessageError::Payload)?;
    payload.twice(&[
        ("key", "payload.key"),
        ("value", "payload.value"),
        ("timestamp", "payload.timestamp"),
    ])?;
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

/// Calls `visit` with each string, number and bracket of a valid JSON text.
fn tokens<'a>(text: &'a str, mut visit: impl FnMut(&'a str)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        let start = at;
        at += 1;
        match first {
            b'"' => {
                while bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_number =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                at += bytes[at..]
                    .iter()
                    .take_while(|byte| is_number(byte))
                    .count();
            }
            b'[' | b']' | b'{' | b'}' => {}
            _ => continue,
        }
        visit(&text[start..at]);
    }
}

/// Returns whether a text has a token that simd-json refuses although it is JSON: a number outside
/// u64, i64 and f64, or a lone surrogate.
fn has_refused_token(text: &str) -> bool {
    let mut is_refused = false;
    tokens(text, |token| {
        is_refused |= match token.as_bytes()[0] {
            b'"' => serde_json::from_str::<String>(token).is_err(),
            b'[' | b']' | b'{' | b'}' => false,
            _ if token.contains(['.', 'e', 'E']) => !token.parse().is_ok_and(f64::is_finite),
            _ => token.parse::<u64>().is_err() && token.parse::<i64>().is_err(),
        };
    });
    is_refused
}

fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    tokens(text, |token| match token {
        "[" | "{" => {
            depth += 1;
            deepest = deepest.max(depth);
        }
        "]" | "}" => depth -= 1,
        _ => {}
    });
    deepest
}

/// Returns an upper bound for the depth of a text that may not be JSON.
fn brackets(text: &str) -> usize {
    text.bytes()
        .filter(|byte| matches!(byte, b'[' | b'{'))
        .count()
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

/// Returns the payload of the only frame in `out`.
fn payload(out: &[u8]) -> &str {
    let fits =
        |header: &usize| out.len() > *header && frame::header_bytes(out.len() - header) == *header;
    let header_bytes = [2, 4, 10].into_iter().find(fits).expect("a frame");
    str::from_utf8(&out[header_bytes..]).expect("a text frame")
}
