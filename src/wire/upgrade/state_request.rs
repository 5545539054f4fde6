//! Requests that read a workspace without a WebSocket: its state, or its connected users.

use std::fmt;

/// The resource to read: the state of a workspace, or its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTarget {
    /// The state: `/v1/workspaces/{id}` (P80).
    State,
    /// The connected users: `/v1/presence/{id}` (P83).
    Presence,
}

/// A well-formed request to read a workspace. Its token is not checked yet.
#[derive(Clone, PartialEq, Eq)]
pub struct StateRequest {
    /// The resource to read.
    pub target: ReadTarget,
    /// The workspace id, percent-decoded: 1 to 256 bytes, no control characters.
    pub workspace: String,
    /// The token, from the query or the `Authorization` header; never empty.
    pub token: Option<String>,
    /// The `Origin` of the requesting page. Only browsers send one.
    pub origin: Option<String>,
    /// The entity tags of the states that the client already has (RFC 9110 section 13.1.2).
    pub if_none_match: Option<String>,
    /// Whether it is a HEAD request, whose answer has no body.
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
