//! A workspace as JSON texts: what its clients are sent when they join, and what a look at it shows.

use super::frame;
use super::message::{json_string_bytes, put_json_string};

const INIT_START: &str = r#"{"type":"init","data":{"#;
const INIT_END: &str = "}}";

/// A register of a workspace.
pub struct Register<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its value, as JSON text.
    pub value: &'a str,
    /// When it was written, Unix microseconds.
    pub timestamp: u64,
}

/// The bytes of one field of an init message, with its comma.
#[must_use]
pub fn init_field_bytes(key: &str, value: &str) -> usize {
    json_string_bytes(key) + value.len() + 2
}

/// Appends an init message as a text frame. `fields_bytes` is the sum of [`init_field_bytes`] over `fields`.
///
/// # Panics
/// Where the sum is not that of the fields: the frame's header would lie.
pub fn put_init<'a>(
    out: &mut Vec<u8>,
    fields_bytes: usize,
    fields: impl Iterator<Item = (&'a str, &'a str)>,
) {
    // The last field has no comma.
    let payload_bytes = INIT_START.len() + fields_bytes.saturating_sub(1) + INIT_END.len();
    out.reserve_exact(frame::header_bytes(payload_bytes) + payload_bytes);
    frame::put_text_header(out, payload_bytes);
    let payload_start = out.len();
    out.extend_from_slice(INIT_START.as_bytes());
    for (index, (key, value)) in fields.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        put_json_string(out, key);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(INIT_END.as_bytes());
    assert_eq!(
        out.len() - payload_start,
        payload_bytes,
        "the state's byte count is the state's"
    );
}

/// Appends a workspace as a JSON text: `{"data":{…},"timestamps":{…},"seq":n,"connections":n}`.
pub fn put_state<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = Register<'a>> + Clone,
    seq: u64,
    connections: usize,
) {
    let mut digits = itoa::Buffer::new();
    let put_name = |out: &mut Vec<u8>, index, key| {
        if index > 0 {
            out.push(b',');
        }
        put_json_string(out, key);
        out.push(b':');
    };
    out.extend_from_slice(br#"{"data":{"#);
    for (index, field) in fields.clone().enumerate() {
        put_name(out, index, field.key);
        out.extend_from_slice(field.value.as_bytes());
    }
    out.extend_from_slice(br#"},"timestamps":{"#);
    for (index, field) in fields.enumerate() {
        put_name(out, index, field.key);
        out.extend_from_slice(digits.format(field.timestamp).as_bytes());
    }
    out.extend_from_slice(br#"},"seq":"#);
    out.extend_from_slice(digits.format(seq).as_bytes());
    out.extend_from_slice(br#","connections":"#);
    out.extend_from_slice(digits.format(connections).as_bytes());
    out.push(b'}');
}

/// Appends who is there as a JSON text: `[{"userId":…,"status":"online"},…]`.
pub fn put_presence(out: &mut Vec<u8>, users: &[&str]) {
    out.push(b'[');
    for (index, user) in users.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"userId":"#);
        put_json_string(out, user);
        out.extend_from_slice(br#","status":"online"}"#);
    }
    out.push(b']');
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
        put_state(&mut out, fields, 7, 2);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_state_is_the_values_as_they_were_written() {
        let empty = r#"{"data":{},"timestamps":{},"seq":7,"connections":2}"#;
        check(&[], empty);
        check(
            &[("a\"", "1.0", 3), ("b", r#"{ "c":null}"#, u64::MAX)],
            r#"{"data":{"a\"":1.0,"b":{ "c":null}},"timestamps":{"a\"":3,"b":18446744073709551615},"seq":7,"connections":2}"#,
        );
    }

    #[test]
    fn presence_is_a_list() {
        for (users, expected) in [
            (&[][..], "[]"),
            (&["<b>\"\n"], r#"[{"userId":"<b>\"\n","status":"online"}]"#),
            (
                &["a", "b"],
                r#"[{"userId":"a","status":"online"},{"userId":"b","status":"online"}]"#,
            ),
        ] {
            let mut out = Vec::new();
            put_presence(&mut out, users);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
