//! The state of a workspace as JSON: the init message for a client that joins (P45), and the body
//! of an HTTP read of the state (P80).
//!
//! Both contain the same fields, so a state is encoded only once, no matter how many clients join
//! or read the workspace. The *stamps* are the part after the fields:
//!
//! ```text
//! init  header {"type":"init","data":{ "k":1 }}
//! HTTP                       {"data":{ "k":1 },"timestamps":{"k":7},"seq":2,"connections": 5}
//!       own                            shared  shared: the stamps                         own
//! ```

use std::ops::Range;

use super::frame;
use super::json::{json_string_bytes, put_json_string, put_number};
use crate::seq::Seq;

pub use super::json::digits;

const INIT_START: &str = r#"{"type":"init","data":{"#;
const INIT_END: &str = "}}";
const HTTP_START: &str = r#"{"data":{"#;
const HTTP_END: &str = "}";
const STAMPS_START: &str = r#"},"timestamps":{"#;
const STAMPS_SEQ: &str = r#"},"seq":"#;
const STAMPS_END: &str = r#","connections":"#;

/// An entry of a workspace, in the form that the encoders accept.
pub struct Register<'a> {
    /// The key, unescaped.
    pub key: &'a str,
    /// The JSON text of the value, as its writer sent it.
    pub value: &'a str,
    /// The timestamp chosen by its writer, in Unix microseconds.
    pub timestamp: u64,
}

// ---- the init message ----

/// Returns the length of one field of an init message, including its comma.
#[must_use]
pub fn init_field_bytes(key: &str, value: &str) -> usize {
    json_string_bytes(key) + value.len() + 2
}

/// Returns the length of the frame of an init message.
///
/// `fields_bytes` is the sum of [`init_field_bytes`] over its fields.
#[must_use]
pub fn init_frame_bytes(fields_bytes: usize) -> usize {
    let payload_bytes = init_payload_bytes(fields_bytes);
    frame::header_bytes(payload_bytes) + payload_bytes
}

/// Returns the range of the fields within the frame of an init message.
#[must_use]
pub fn init_fields(fields_bytes: usize) -> Range<usize> {
    let end = init_frame_bytes(fields_bytes) - INIT_END.len();
    end - fields_bytes.saturating_sub(1)..end
}

/// Appends an init message as a text frame.
///
/// `fields_bytes` is the sum of [`init_field_bytes`] over `fields`.
///
/// # Panics
/// If `fields_bytes` is not that sum, because the frame header would announce a wrong length.
pub fn put_init<'a>(
    out: &mut Vec<u8>,
    fields_bytes: usize,
    fields: impl Iterator<Item = (&'a str, &'a str)>,
) {
    let (start, frame_bytes) = (out.len(), init_frame_bytes(fields_bytes));
    out.reserve_exact(frame_bytes);
    put_init_start(out, fields_bytes);
    for (key, value) in fields {
        put_init_field(out, key, value);
    }
    put_init_end(out);
    assert_eq!(
        out.len() - start,
        frame_bytes,
        "the byte count of the state is wrong"
    );
}

/// Appends the frame header and the start of an init message, up to its fields.
pub fn put_init_start(out: &mut Vec<u8>, fields_bytes: usize) {
    frame::put_text_header(out, init_payload_bytes(fields_bytes));
    out.extend_from_slice(INIT_START.as_bytes());
}

/// Appends one field, after [`put_init_start`] or another field.
pub fn put_init_field(out: &mut Vec<u8>, key: &str, value: &str) {
    put_name(out, key);
    out.extend_from_slice(value.as_bytes());
}

/// Appends the end of an init message, after its fields.
pub fn put_init_end(out: &mut Vec<u8>) {
    out.extend_from_slice(INIT_END.as_bytes());
}

/// Returns the length of the payload of an init message. The last field has no comma.
fn init_payload_bytes(fields_bytes: usize) -> usize {
    INIT_START.len() + fields_bytes.saturating_sub(1) + INIT_END.len()
}

// ---- the state over HTTP ----

/// Returns the length of one field of the stamps, including its comma.
#[must_use]
pub fn stamp_field_bytes(key: &str, timestamp: u64) -> usize {
    json_string_bytes(key) + digits(timestamp) + 2
}

/// Returns the length of the stamps.
///
/// `fields_bytes` is the sum of [`stamp_field_bytes`] over their fields.
#[must_use]
pub fn stamps_bytes(fields_bytes: usize, seq: Seq) -> usize {
    let fixed = STAMPS_START.len() + STAMPS_SEQ.len() + STAMPS_END.len();
    fixed + fields_bytes.saturating_sub(1) + digits(seq.get())
}

/// Appends the stamps: everything between the fields of the state and the number of connections.
pub fn put_stamps<'a>(out: &mut Vec<u8>, seq: Seq, fields: impl Iterator<Item = (&'a str, u64)>) {
    put_stamps_start(out);
    for (key, timestamp) in fields {
        put_stamp_field(out, key, timestamp);
    }
    put_stamps_end(out, seq);
}

/// Appends the start of the stamps, up to their fields.
pub fn put_stamps_start(out: &mut Vec<u8>) {
    out.extend_from_slice(STAMPS_START.as_bytes());
}

/// Appends one field, after [`put_stamps_start`] or another field.
pub fn put_stamp_field(out: &mut Vec<u8>, key: &str, timestamp: u64) {
    put_name(out, key);
    put_number(out, timestamp);
}

/// Appends the end of the stamps, after their fields.
pub fn put_stamps_end(out: &mut Vec<u8>, seq: Seq) {
    out.extend_from_slice(STAMPS_SEQ.as_bytes());
    put_number(out, seq.get());
    out.extend_from_slice(STAMPS_END.as_bytes());
}

/// Appends the start of a state over HTTP, up to its fields.
pub fn put_http_state_start(out: &mut Vec<u8>) {
    out.extend_from_slice(HTTP_START.as_bytes());
}

/// Appends the end of a state over HTTP, after its stamps.
pub fn put_http_state_end(out: &mut Vec<u8>, connections: usize) {
    put_number(out, connections as u64);
    out.extend_from_slice(HTTP_END.as_bytes());
}

/// Returns the total length of what [`put_http_state_start`] and [`put_http_state_end`] append.
#[must_use]
pub fn http_state_ends_bytes(connections: usize) -> usize {
    HTTP_START.len() + digits(connections as u64) + HTTP_END.len()
}

/// Appends a complete state over HTTP: `{"data":{…},"timestamps":{…},"seq":n,"connections":n}`.
pub fn put_http_state<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = Register<'a>> + Clone,
    seq: Seq,
    connections: usize,
) {
    put_http_state_start(out);
    for field in fields.clone() {
        put_init_field(out, field.key, field.value);
    }
    put_stamps(out, seq, fields.map(|field| (field.key, field.timestamp)));
    put_http_state_end(out, connections);
}

// ---- presence ----

/// A peer (P160) in the list of a workspace's users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedPeer<'a> {
    /// The id of its connection.
    pub connection: u64,
    /// The `sub` of its token.
    pub user: Option<&'a str>,
    /// Its value, as JSON text.
    pub value: &'a [u8],
}

/// Appends the connected users as JSON: `[{"userId":…,"status":"online"},…]` (P83), and after them
/// the peers, which also have `connection` and `value`, and `null` as `userId` if their token names
/// no user (P168).
pub fn put_presence<'a>(
    out: &mut Vec<u8>,
    users: impl Iterator<Item = &'a str>,
    peers: impl Iterator<Item = ListedPeer<'a>>,
) {
    out.push(b'[');
    for user in users {
        put_user(out, Some(user));
        out.push(b'}');
    }
    for peer in peers {
        put_user(out, peer.user);
        out.extend_from_slice(br#","connection":""#);
        put_number(out, peer.connection);
        out.extend_from_slice(br#"","value":"#);
        out.extend_from_slice(peer.value);
        out.push(b'}');
    }
    out.push(b']');
}

/// Appends the start of a user's entry, preceded by a comma unless it is the first one.
fn put_user(out: &mut Vec<u8>, user: Option<&str>) {
    if out.last() != Some(&b'[') {
        out.push(b',');
    }
    out.extend_from_slice(br#"{"userId":"#);
    match user {
        Some(user) => put_json_string(out, user),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","status":"online""#);
}

/// Appends the name of a field, preceded by a comma unless it is the first field.
///
/// Before the first field the text ends in `{`, and no value ends in that character.
fn put_name(out: &mut Vec<u8>, key: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    put_json_string(out, key);
    out.push(b':');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registers: &[(&str, &str, u64)], expected: &str) {
        let fields = registers.iter().map(|(key, value, timestamp)| Register {
            key,
            value,
            timestamp: *timestamp,
        });
        let mut out = Vec::new();
        put_http_state(&mut out, fields, Seq::new(7), 2);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    /// P47, P80.
    #[test]
    fn a_state_contains_values_exactly_as_written() {
        let empty = r#"{"data":{},"timestamps":{},"seq":7,"connections":2}"#;
        check(&[], empty);
        check(
            &[("a\"", "1.0", 3), ("b", r#"{ "c":null}"#, u64::MAX)],
            concat!(
                r#"{"data":{"a\"":1.0,"b":{ "c":null}},"#,
                r#""timestamps":{"a\"":3,"b":18446744073709551615},"seq":7,"connections":2}"#,
            ),
        );
    }

    /// P83, P168.
    #[test]
    fn presence_is_a_list_of_users_and_peers() {
        let peer = |connection, user, value: &'static str| ListedPeer {
            connection,
            user,
            value: value.as_bytes(),
        };
        let ann = peer(7, Some("ann"), r#"{"x": 1.0}"#);
        let nobody = peer(9, None, "[]");
        for (users, peers, expected) in [
            (&[][..], &[][..], "[]"),
            (
                &["<b>\"\n"],
                &[],
                r#"[{"userId":"<b>\"\n","status":"online"}]"#,
            ),
            (
                &["a", "b"],
                &[],
                r#"[{"userId":"a","status":"online"},{"userId":"b","status":"online"}]"#,
            ),
            (
                &[],
                &[nobody],
                r#"[{"userId":null,"status":"online","connection":"9","value":[]}]"#,
            ),
            (
                &["a"],
                &[ann, nobody],
                concat!(
                    r#"[{"userId":"a","status":"online"},"#,
                    r#"{"userId":"ann","status":"online","connection":"7","value":{"x": 1.0}},"#,
                    r#"{"userId":null,"status":"online","connection":"9","value":[]}]"#,
                ),
            ),
        ] {
            let mut out = Vec::new();
            put_presence(&mut out, users.iter().copied(), peers.iter().copied());
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
