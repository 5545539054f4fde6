//! The id and the key of a message whose text the parser refuses.
//!
//! Text may be valid JSON and yet be refused: because of a number out of range, half of a surrogate
//! pair (which JavaScript writes for a string that was cut inside a character), or its nesting. The
//! error for such a message should nevertheless carry its id (P112). Only `serde_json`, which skips
//! values without examining them, can still find the id. This second pass runs only for refused
//! messages, so it costs other messages nothing.

use std::borrow::Cow;

use serde::Deserialize;

use super::client::{ClientEnvelope, RefusedMessage};
use crate::limits::{KEY_BYTES_MAX, MESSAGE_ID_MAX};
use crate::wire::message::error::MessageError;

#[derive(Deserialize)]
struct RefusedId {
    id: u64,
}

#[derive(Deserialize)]
struct RefusedOp<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    payload: RefusedPayload<'a>,
}

#[derive(Deserialize)]
struct RefusedPayload<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
}

/// Returns the envelope of a text that the parser refuses. The envelope has an id and a key if the
/// text is a single JSON object with those fields.
pub(super) fn envelope(text: &str, error: MessageError) -> ClientEnvelope<'_> {
    let (mut id, mut key) = (None, None);
    // serde would also accept an array as a struct.
    if text.trim_ascii_start().starts_with('{') {
        if let Ok(refused) = serde_json::from_str::<RefusedId>(text) {
            id = Some(refused.id).filter(|id| (1..=MESSAGE_ID_MAX).contains(id));
        }
        if let Ok(refused) = serde_json::from_str::<RefusedOp<'_>>(text)
            && refused.kind == "op"
            && (1..=KEY_BYTES_MAX).contains(&refused.payload.key.len())
        {
            key = Some(refused.payload.key);
        }
    }
    let error = error.into();
    ClientEnvelope {
        id,
        content: Err(RefusedMessage { key, error }),
    }
}
