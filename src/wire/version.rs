//! The versions of the protocol, and their names in a handshake.

/// A version of the protocol. A connection speaks one, from its handshake to its end (P100).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// Version 1, rules P1 to P94. A client that requests no version gets it.
    V1,
    /// Version 2, which adds rules from P100 on: deletes, `saved`, resuming and presence.
    V2,
}

impl ProtocolVersion {
    /// All versions, in ascending order.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// Returns the name under which a client offers the version (RFC 6455 section 1.9) and the
    /// server accepts it.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::V1 => "etherply.v1",
            Self::V2 => "etherply.v2",
        }
    }
}
