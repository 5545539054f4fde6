//! The version of the protocol that the clients of a load speak. Pure.

use clap::ValueEnum;

/// The version of the protocol, and how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, ValueEnum)]
pub enum ClientProtocol {
    /// Version 1.
    #[default]
    V1,
    /// Version 2; the messages have no ids, so the server sends no `saved`.
    V2WithoutIds,
    /// Version 2; each message has an id, and the sender must receive `saved` for it.
    V2,
}

impl ClientProtocol {
    pub fn is_v2(self) -> bool {
        self != Self::V1
    }

    /// Returns whether the server must send `saved`.
    pub fn has_ids(self) -> bool {
        self == Self::V2
    }

    /// Returns the name that a client offers in `Sec-WebSocket-Protocol`, if it offers any.
    pub fn subprotocol(self) -> Option<&'static str> {
        self.is_v2().then_some("etherply.v2")
    }

    /// Returns the name in the tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2WithoutIds => "v2 without ids",
            Self::V2 => "v2",
        }
    }
}
