//! The state of a workspace as texts on their way out, encoded once for all who are sent it.

use std::rc::{Rc, Weak};

use crate::core::window::Chunk;

/// What of a state is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The init message, for one who then follows the window.
    Init,
    /// All that a look shows: the newest state, its timestamps too.
    Look,
}

/// A state at one point of the order of the ops.
pub(crate) struct Texts {
    /// The init message.
    pub init: Chunk,
    /// The stamps of a look, where they were wanted.
    pub stamps: Option<Chunk>,
    /// The window offset behind which all ops follow that are not in it.
    pub at: u64,
    /// The log position that must be visible before it may be shown.
    pub gate: u64,
}

/// The texts that were made last. They are there as long as they are on their way to anybody.
#[derive(Default)]
pub(super) struct Snapshot {
    pub seq: u64,
    pub at: u64,
    pub gate: u64,
    pub init: Weak<Vec<u8>>,
    pub stamps: Weak<Vec<u8>>,
}

impl Snapshot {
    /// The init message, if anybody is still sent it.
    pub fn init(&self) -> Option<Chunk> {
        self.init.upgrade()
    }

    /// The texts, with those stamps.
    pub fn texts(&self, init: Chunk, stamps: Option<Chunk>) -> Texts {
        Texts {
            init,
            stamps,
            at: self.at,
            gate: self.gate,
        }
    }
}

/// A chunk of exactly these bytes.
pub(super) fn chunk_of(bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Chunk {
    let mut text = Vec::with_capacity(bytes);
    write(&mut text);
    assert_eq!(text.len(), bytes, "a text has the length that was told");
    Rc::new(text)
}
