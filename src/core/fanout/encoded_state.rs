//! An encoded state, shared by its receivers. Its encoding may still be in progress.

use std::cell::OnceCell;
use std::rc::Rc;

/// Outgoing bytes, shared by all sessions that receive them.
pub type Chunk = Rc<Vec<u8>>;

/// A state, or a part of one, as the bytes that sessions receive.
#[derive(Debug, Clone)]
pub enum EncodedState {
    /// All bytes are encoded.
    Ready(Chunk),
    /// The bytes are still being encoded.
    Pending(Rc<PendingState>),
}

/// Bytes that are still being encoded. Their length is known from the start.
///
/// The encoder holds one reference and each receiver another, so the reference count shows whether
/// any receiver is still waiting.
#[derive(Debug)]
pub struct PendingState {
    bytes: usize,
    chunk: OnceCell<Chunk>,
}

impl EncodedState {
    /// Returns the length in bytes, which is known before the bytes are encoded.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Ready(chunk) => chunk.len(),
            Self::Pending(pending) => pending.bytes,
        }
    }

    /// Returns the bytes, once all of them are encoded.
    #[must_use]
    pub fn chunk(&self) -> Option<&Chunk> {
        match self {
            Self::Ready(chunk) => Some(chunk),
            Self::Pending(pending) => pending.chunk.get(),
        }
    }
}

impl PendingState {
    /// Creates a pending state of this length.
    #[must_use]
    pub fn new(bytes: usize) -> Rc<Self> {
        Rc::new(Self {
            bytes,
            chunk: OnceCell::new(),
        })
    }

    /// Returns the length that was passed to [`PendingState::new`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the finished bytes available to all receivers.
    ///
    /// # Panics
    /// If called twice, or if the length differs from the one passed to [`PendingState::new`],
    /// which outboxes rely on from the moment they queue the state.
    pub fn complete(&self, chunk: Chunk) {
        assert_eq!(
            chunk.len(),
            self.bytes,
            "the state has another length than announced"
        );
        let outcome = self.chunk.set(chunk);
        assert!(outcome.is_ok(), "the state was already complete");
    }
}
