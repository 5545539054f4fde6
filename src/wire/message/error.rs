//! The reasons for refusing a message that both versions have in common.

use super::depth::DeepField;
use crate::limits::{KEY_BYTES_MAX, TIMESTAMP_MAX_US};

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
