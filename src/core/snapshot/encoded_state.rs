//! A text that many are sent, and that may not be written to its end yet.

use std::cell::OnceCell;
use std::rc::Rc;

/// Bytes on their way out, shared by all who are sent them.
pub type Chunk = Rc<Vec<u8>>;

/// A text that many are sent.
#[derive(Debug, Clone)]
pub enum Text {
    /// All of it is there.
    Whole(Chunk),
    /// It is being written.
    Awaited(Rc<Promise>),
}

/// A text that is being written: of a length that is known.
#[derive(Debug)]
pub struct Promise {
    bytes: usize,
    chunk: OnceCell<Chunk>,
}

impl Text {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Whole(chunk) => chunk.len(),
            Self::Awaited(promise) => promise.bytes,
        }
    }

    /// The text, once it is whole.
    #[must_use]
    pub fn chunk(&self) -> Option<&Chunk> {
        match self {
            Self::Whole(chunk) => Some(chunk),
            Self::Awaited(promise) => promise.chunk.get(),
        }
    }
}

impl Promise {
    /// A text of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Rc<Self> {
        Rc::new(Self {
            bytes,
            chunk: OnceCell::new(),
        })
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// It is whole.
    ///
    /// # Panics
    /// Where it was already, or has another length.
    pub fn keep(&self, chunk: Chunk) {
        assert_eq!(
            chunk.len(),
            self.bytes,
            "a text has the length that was told"
        );
        let outcome = self.chunk.set(chunk);
        assert!(outcome.is_ok(), "a text is written once");
    }
}
