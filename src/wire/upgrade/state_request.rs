//! A look at a workspace without a WebSocket: its state, or who is in it.

use std::fmt;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTarget {
    /// The state: `/v1/workspaces/{id}`.
    State,
    /// Who is connected: `/v1/presence/{id}`.
    Presence,
}

/// A well-formed request for a look. Its token is not checked yet.
#[derive(Clone, PartialEq, Eq)]
pub struct StateRequest {
    /// What is looked at.
    pub target: ReadTarget,
    /// The workspace id, percent-decoded: 1 to 256 bytes, no control characters.
    pub workspace: String,
    /// The token, from the query or the `Authorization` header; never empty.
    pub token: Option<String>,
    /// The `Origin` of the page that asks.
    pub origin: Option<String>,
    /// The entity tags that the client has the state of (RFC 9110 section 13.1.2).
    pub if_none_match: Option<String>,
    /// A HEAD request: the answer has no body.
    pub head_only: bool,
}

impl fmt::Debug for StateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateRequest")
            .field("target", &self.target)
            .field("workspace", &self.workspace)
            .field("token", &self.token.as_ref().map(|_| "[redacted]"))
            .field("origin", &self.origin)
            .field("if_none_match", &self.if_none_match)
            .field("head_only", &self.head_only)
            .finish()
    }
}
