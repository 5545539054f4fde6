//! Messages from a version 2 client.

use std::borrow::Cow;
use std::fmt;

#[cfg(doc)]
use crate::limits::{
    CAST_VALUE_BYTES_MAX, KEY_BYTES_MAX, PRESENCE_VALUE_BYTES_MAX, TIMESTAMP_MIN_US,
};
use crate::limits::{MESSAGE_ID_MAX, TIMESTAMP_MAX_US, TTL_MS_MAX};
use crate::wire::message::error::MessageError;

/// A message from a version 2 client, or the reason why it is refused.
#[derive(Debug, PartialEq)]
pub struct ClientEnvelope<'a> {
    /// The number that the client assigned to the message, from 1 to [`MESSAGE_ID_MAX`]. It is
    /// known even if the message is refused, unless the id itself is malformed. Whether ids
    /// increase is not checked here.
    pub id: Option<u64>,
    /// The message itself.
    pub content: Result<ClientMessage<'a>, RefusedMessage<'a>>,
}

/// The content of a message from a version 2 client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// A write or a delete of one key (P115).
    Op(ClientOp<'a>),
    /// A request for the server's time, which is answered with a pong (P180).
    Ping,
    /// A new presence value for the client (P162).
    Presence {
        /// The JSON text of the value, at most [`PRESENCE_VALUE_BYTES_MAX`] bytes.
        value: &'a str,
    },
    /// A value for all other connections of the workspace (P167).
    Cast {
        /// The JSON text of the value, at most [`CAST_VALUE_BYTES_MAX`] bytes.
        value: &'a str,
    },
    /// A new token for the connection (P182).
    Token {
        /// The token, not verified and not empty. It must not be printed.
        token: &'a str,
    },
}

impl fmt::Debug for ClientMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Op(op) => f.debug_tuple("Op").field(op).finish(),
            Self::Ping => f.write_str("Ping"),
            Self::Presence { value } => f.debug_struct("Presence").field("value", value).finish(),
            Self::Cast { value } => f.debug_struct("Cast").field("value", value).finish(),
            Self::Token { token: _ } => f.write_str("Token([redacted])"),
        }
    }
}

/// The payload of a version 2 op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOp<'a> {
    /// The key, unescaped: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: &'a str,
    /// The op's effect on the key.
    pub change: ClientChange<'a>,
    /// The timestamp in Unix microseconds, [`TIMESTAMP_MIN_US`] to [`TIMESTAMP_MAX_US`].
    pub timestamp: u64,
    /// The timestamp that the key's entry must have for the op to win; 0 if the key must have no
    /// value.
    pub if_timestamp: Option<u64>,
}

/// The effect of a client's op on its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientChange<'a> {
    /// The key is set to a value.
    Write {
        /// The JSON text of the value, byte for byte as sent, without surrounding white space.
        value: &'a str,
        /// The time after which the server deletes the key, 1 to [`TTL_MS_MAX`] milliseconds.
        ttl_ms: Option<u64>,
    },
    /// The key is deleted.
    Delete,
}

/// A message that is refused.
#[derive(Debug, PartialEq)]
pub struct RefusedMessage<'a> {
    /// The key of the op, if the message is an op with a valid key.
    pub key: Option<Cow<'a, str>>,
    /// The reason.
    pub error: ClientMessageError,
}

/// The reason why a text is not a valid version 2 message.
///
/// The error's text is sent to the client. It names the field and says what the field must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientMessageError {
    /// A reason that also exists in version 1.
    #[error(transparent)]
    Common(#[from] MessageError),
    /// `type` is missing or not a string that the server knows.
    #[error("type must be \"op\", \"ping\", \"presence\", \"cast\" or \"token\"")]
    UnknownType,
    /// `id` is not an integer in its range.
    #[error("id must be an integer from 1 to {MESSAGE_ID_MAX}")]
    Id,
    /// An op has both or neither of `payload.value` and `payload.deleted`.
    #[error("payload must have either value (any JSON value) or \"deleted\":true")]
    ValueOrDeleted,
    /// `payload.deleted` is not `true`.
    #[error("payload.deleted must be true if it is given")]
    Deleted,
    /// `payload.timestamp` is before 2001.
    #[error(
        "payload.timestamp looks like milliseconds: it must be Unix microseconds, and not before \
         2001-01-01"
    )]
    Milliseconds,
    /// `payload.if_timestamp` is not an integer in its range.
    #[error("payload.if_timestamp must be an integer from 0 to {TIMESTAMP_MAX_US}")]
    IfTimestamp,
    /// `payload.ttl_ms` is not an integer in its range.
    #[error("payload.ttl_ms must be an integer from 1 to {TTL_MS_MAX} (3,650 days)")]
    Ttl,
    /// A delete has `payload.ttl_ms`.
    #[error("payload.ttl_ms is only for writes, not with \"deleted\":true")]
    DeletedTtl,
    /// The value of a presence message or a cast is too long.
    #[error("payload.value must be at most {bytes_max} bytes of JSON")]
    ValueTooLong {
        /// The maximum for this type of message.
        bytes_max: usize,
    },
    /// `payload.token` is missing, empty or not a string.
    #[error("payload.token must be a string that is not empty")]
    Token,
}

impl ClientMessageError {
    /// Returns the reason without a key.
    pub(super) fn without_key<'a>(self) -> RefusedMessage<'a> {
        RefusedMessage {
            key: None,
            error: self,
        }
    }
}
