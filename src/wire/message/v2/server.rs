//! Messages to a version 2 client, except for states and presence.
//!
//! Each message is described once, by a function that writes to a [`JsonSink`] and therefore both
//! measures and encodes it.

use crate::generation::Generation;
use crate::limits::KEY_BYTES_MAX;
use crate::seq::Seq;
use crate::wire::frame;
use crate::wire::json::{ByteCount, JsonSink};

/// The longest frame of a message that consists of numbers: `synced`, `saved`, `pong` or `token`.
pub const SHORT_FRAME_BYTES_MAX: usize = 128;

/// Returns the length of the frame that [`put_frame`] appends.
pub(super) fn frame_bytes(write: impl Fn(&mut dyn JsonSink)) -> usize {
    let mut payload = ByteCount::default();
    write(&mut payload);
    frame::header_bytes(payload.0) + payload.0
}

/// Appends a message as a text frame.
pub(super) fn put_frame(out: &mut Vec<u8>, write: impl Fn(&mut dyn JsonSink)) {
    let mut payload = ByteCount::default();
    write(&mut payload);
    frame::put_text_header(out, payload.0);
    write(out);
}

/// Writes a string, or `null`.
pub(super) fn write_nullable(sink: &mut dyn JsonSink, string: Option<&str>) {
    match string {
        Some(string) => sink.string(string),
        None => sink.text("null"),
    }
}

/// The members next to the `type` of an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpEnvelope {
    /// The id of the message that a correction answers (P156).
    pub id: Option<u64>,
    /// The resume point that a broadcast moves the client to (P130).
    pub seq: Option<Seq>,
}

/// Writes the end of a payload and of its message, with the `seq` between them if there is one.
fn write_end(sink: &mut dyn JsonSink, seq: Option<Seq>) {
    if let Some(seq) = seq {
        sink.text(r#"},"seq":"#);
        sink.number(seq.get());
        sink.text("}");
    } else {
        sink.text("}}");
    }
}

// ---- ops ----

/// The start of an op, in front of its `id`, if it has one.
const OP_START: &str = r#"{"type":"op""#;

fn write_op(
    sink: &mut dyn JsonSink,
    key: &str,
    value: Option<&str>,
    timestamp: u64,
    envelope: OpEnvelope,
) {
    sink.text(OP_START);
    write_id(sink, envelope.id);
    sink.text(r#","payload":{"key":"#);
    sink.string(key);
    if let Some(value) = value {
        sink.text(r#","value":"#);
        sink.text(value);
    } else {
        sink.text(r#","deleted":true"#);
    }
    sink.text(r#","timestamp":"#);
    sink.number(timestamp);
    write_end(sink, envelope.seq);
}

/// Returns the length of the frame that [`put_op`] appends.
#[must_use]
pub fn op_frame_bytes(
    key: &str,
    value: Option<&str>,
    timestamp: u64,
    envelope: OpEnvelope,
) -> usize {
    frame_bytes(|sink| write_op(sink, key, value, timestamp, envelope))
}

/// Appends an op as a text frame (P122): a write, or a delete if there is no value.
///
/// A broadcast has a `seq`. A correction has none, because it does not advance the resume point,
/// but has the `id` of the message that it answers.
pub fn put_op(
    out: &mut Vec<u8>,
    key: &str,
    value: Option<&str>,
    timestamp: u64,
    envelope: OpEnvelope,
) {
    put_frame(out, |sink| write_op(sink, key, value, timestamp, envelope));
}

/// Appends the start of the frame of an op with this `id`, and returns where the rest of it begins
/// in the frame of the same op without one, whose length is `plain_frame_bytes`.
pub fn put_op_start(out: &mut Vec<u8>, id: u64, plain_frame_bytes: usize) -> usize {
    let mut start = ByteCount::default();
    write_id(&mut start, Some(id));
    let plain_bytes = plain_frame_bytes - frame::header_bytes_of(plain_frame_bytes);
    frame::put_text_header(out, plain_bytes + start.0);
    out.text(OP_START);
    write_id(out, Some(id));
    plain_frame_bytes - plain_bytes + OP_START.len()
}

// ---- joining ----

/// The first message of a connection (P131).
#[derive(Debug, Clone, Copy)]
pub struct Welcome<'a> {
    /// The id of the connection, never reused while the server runs.
    pub connection: u64,
    /// The `sub` of the client's token.
    pub user: Option<&'a str>,
    /// The history to which the client's resume point refers.
    pub generation: Generation,
    /// The server's time, in Unix microseconds.
    pub time_us: u64,
    /// The state that follows, and why.
    pub reason: WelcomeReason,
    /// The value of `--durability`: `always`, `interval` or `none`.
    pub durability: &'static str,
    /// The interval of the server's pings, in milliseconds.
    pub ping_interval_ms: u64,
    /// The limits that apply to the client.
    pub limits: WelcomeLimits,
}

/// The state that a client receives after its [`Welcome`], and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WelcomeReason {
    /// A full state, since the client did not ask to resume.
    First,
    /// The changes after the client's resume point.
    Resumed,
    /// A full state, since the client's resume point belongs to another history.
    OtherGeneration,
    /// A full state, since the server no longer knows all deletes after the client's resume point.
    TooOld,
}

impl WelcomeReason {
    /// Returns whether the whole state follows, rather than the changes since the client's resume
    /// point.
    #[must_use]
    pub fn is_full(self) -> bool {
        self != Self::Resumed
    }

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Resumed => "resumed",
            Self::OtherGeneration => "other_generation",
            Self::TooOld => "too_old",
        }
    }
}

/// The limits of the server that matter to a client. `None` means no limit.
#[derive(Debug, Clone, Copy)]
pub struct WelcomeLimits {
    /// `--max-message-bytes`.
    pub message_bytes: usize,
    /// `--max-workspace-bytes`.
    pub workspace_bytes: Option<u64>,
    /// `--max-ops-per-second`.
    pub ops_per_second: Option<u32>,
}

impl Welcome<'_> {
    /// Returns the length of the frame that [`put`](Self::put) appends.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(|sink| self.write(sink))
    }

    /// Appends the message as a text frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_frame(out, |sink| self.write(sink));
    }

    fn write(&self, sink: &mut dyn JsonSink) {
        sink.text(r#"{"type":"welcome","payload":{"connection":""#);
        sink.number(self.connection);
        sink.text(r#"","user":"#);
        write_nullable(sink, self.user);
        sink.text(r#","generation":""#);
        write_generation(sink, self.generation);
        sink.text(r#"","time":"#);
        sink.number(self.time_us);
        sink.text(r#","state":""#);
        sink.text(if self.reason.is_full() {
            "full"
        } else {
            "changes"
        });
        sink.text(r#"","why":""#);
        sink.text(self.reason.name());
        sink.text(r#"","durability":""#);
        sink.text(self.durability);
        sink.text(r#"","ping_interval_ms":"#);
        sink.number(self.ping_interval_ms);
        sink.text(r#","limits":{"message_bytes":"#);
        sink.number(self.limits.message_bytes as u64);
        sink.text(r#","key_bytes":"#);
        sink.number(KEY_BYTES_MAX as u64);
        sink.text(r#","workspace_bytes":"#);
        write_limit(sink, self.limits.workspace_bytes);
        sink.text(r#","ops_per_second":"#);
        write_limit(sink, self.limits.ops_per_second.map(u64::from));
        sink.text("}}}");
    }
}

fn write_generation(sink: &mut dyn JsonSink, generation: Generation) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 16];
    for (byte, pair) in generation
        .get()
        .to_be_bytes()
        .iter()
        .zip(text.as_chunks_mut().0)
    {
        *pair = [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
    }
    sink.text(str::from_utf8(&text).expect("hex digits are ASCII"));
}

fn write_limit(sink: &mut dyn JsonSink, limit: Option<u64>) {
    match limit {
        Some(limit) => sink.number(limit),
        None => sink.text("null"),
    }
}

/// Appends a `synced` message (P134): the client holds the state up to `seq`.
pub fn put_synced(out: &mut Vec<u8>, seq: Seq) {
    put_frame(out, |sink| {
        sink.text(r#"{"type":"synced","payload":{"#);
        write_end(sink, Some(seq));
    });
}

// ---- answers ----

/// Appends a `saved` message (P150): the client's messages up to `id` are settled.
///
/// It has a `seq` only if everything up to that seq has been sent to the client.
pub fn put_saved(out: &mut Vec<u8>, id: u64, seq: Option<Seq>) {
    put_frame(out, |sink| {
        sink.text(r#"{"type":"saved","payload":{"id":"#);
        sink.number(id);
        write_end(sink, seq);
    });
}

fn write_error(
    sink: &mut dyn JsonSink,
    code: u16,
    message: &str,
    id: Option<u64>,
    key: Option<&str>,
) {
    sink.text(r#"{"type":"error""#);
    write_id(sink, id);
    sink.text(r#","payload":{"code":"#);
    sink.number(code.into());
    sink.text(r#","message":"#);
    sink.string(message);
    if let Some(key) = key {
        sink.text(r#","key":"#);
        sink.string(key);
    }
    sink.text("}}");
}

/// Writes the `id` of the message being answered, if it had one.
fn write_id(sink: &mut dyn JsonSink, id: Option<u64>) {
    if let Some(id) = id {
        sink.text(r#","id":"#);
        sink.number(id);
    }
}

/// Returns the length of the frame that [`put_error`] appends.
#[must_use]
pub fn error_frame_bytes(code: u16, message: &str, id: Option<u64>, key: Option<&str>) -> usize {
    frame_bytes(|sink| write_error(sink, code, message, id, key))
}

/// Appends an error message (P113). `id` and `key` are those of the message that it answers.
pub fn put_error(out: &mut Vec<u8>, code: u16, message: &str, id: Option<u64>, key: Option<&str>) {
    put_frame(out, |sink| write_error(sink, code, message, id, key));
}

/// Appends a pong (P180): the server's time in Unix microseconds, and the id of the ping.
pub fn put_pong(out: &mut Vec<u8>, time_us: u64, id: Option<u64>) {
    put_frame(out, |sink| {
        sink.text(r#"{"type":"pong""#);
        write_id(sink, id);
        sink.text(r#","payload":{"time":"#);
        sink.number(time_us);
        sink.text("}}");
    });
}

/// Appends the answer to an accepted new token (P182): its `exp` in Unix seconds, if it has one.
pub fn put_token(out: &mut Vec<u8>, expires_s: Option<u64>) {
    put_frame(out, |sink| {
        sink.text(r#"{"type":"token","payload":{"expires":"#);
        write_limit(sink, expires_s);
        sink.text("}}");
    });
}

// ---- casts ----

fn write_cast(sink: &mut dyn JsonSink, from: u64, user: Option<&str>, value: &str) {
    sink.text(r#"{"type":"cast","payload":{"from":""#);
    sink.number(from);
    sink.text(r#"","user":"#);
    write_nullable(sink, user);
    sink.text(r#","value":"#);
    sink.text(value);
    sink.text("}}");
}

/// Returns the length of the frame that [`put_cast`] appends.
#[must_use]
pub fn cast_frame_bytes(from: u64, user: Option<&str>, value: &str) -> usize {
    frame_bytes(|sink| write_cast(sink, from, user, value))
}

/// Appends a cast (P167) from the connection `from`, whose token has `user` as its `sub`.
pub fn put_cast(out: &mut Vec<u8>, from: u64, user: Option<&str>, value: &str) {
    put_frame(out, |sink| write_cast(sink, from, user, value));
}

#[cfg(test)]
mod tests;
