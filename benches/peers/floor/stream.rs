//! The frames of a room, in order, in chunks that never move, since sends point into them.

use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// Small enough for the allocator to keep in its caches.
const CHUNK_BYTES: usize = 64 * 1024;
/// The maximum number of pieces of memory in one send.
pub const PIECES_MAX: usize = 16;

/// Memory to which frames are appended. A cursor keeps its chunk and all later ones alive.
pub struct Chunk {
    /// Its start in the stream.
    start: u64,
    bytes: Box<[Cell<u8>]>,
    filled: Cell<usize>,
    next: OnceCell<Rc<Chunk>>,
}

impl Chunk {
    fn new(start: u64, capacity: usize) -> Rc<Self> {
        Rc::new(Self {
            start,
            bytes: vec![Cell::new(0); capacity].into(),
            filled: Cell::new(0),
            next: OnceCell::new(),
        })
    }

    fn end(&self) -> u64 {
        self.start + self.filled.get() as u64
    }
}

/// The frames of a room.
pub struct Stream {
    tail: Rc<Chunk>,
}

impl Stream {
    pub fn new() -> Self {
        Self {
            tail: Chunk::new(0, 0),
        }
    }

    /// Returns a cursor at the end of the stream.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            chunk: Rc::clone(&self.tail),
            at: self.tail.end(),
        }
    }

    /// Appends a text frame with the unmasked payload if the payload starts with `prefix`. Returns
    /// its range in the stream.
    pub fn append(&mut self, masked: &[u8], mask: [u8; 4], prefix: &[u8]) -> Option<Range<u64>> {
        let starts = masked.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b);
        if !starts.take(prefix.len()).eq(prefix.iter().copied()) {
            return None;
        }
        let (header, header_bytes) = text_header(masked.len());
        let frame_bytes = header_bytes + masked.len();
        if self.tail.bytes.len() - self.tail.filled.get() < frame_bytes {
            let next = Chunk::new(self.tail.end(), frame_bytes.max(CHUNK_BYTES));
            let linked = self.tail.next.set(Rc::clone(&next));
            assert!(linked.is_ok(), "the tail already has a successor");
            self.tail = next;
        }
        let from = self.tail.filled.get();
        let (head, payload) = self.tail.bytes[from..from + frame_bytes].split_at(header_bytes);
        for (to, byte) in head.iter().zip(header) {
            to.set(byte);
        }
        unmask(payload, masked, mask);
        let start = self.tail.end();
        self.tail.filled.set(from + frame_bytes);
        Some(start..self.tail.end())
    }
}

/// Returns the header of an unmasked, final text frame, and the length of that header.
pub fn text_header(payload_bytes: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = 0x81;
    let length = (payload_bytes as u64).to_be_bytes();
    let header_bytes = match payload_bytes {
        0..126 => {
            header[1] = length[7];
            2
        }
        126..0x1_0000 => {
            header[1] = 126;
            header[2..4].copy_from_slice(&length[6..]);
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&length);
            10
        }
    };
    (header, header_bytes)
}

fn unmask(to: &[Cell<u8>], masked: &[u8], mask: [u8; 4]) {
    let (to, to_rest) = to.as_chunks::<4>();
    let (masked, masked_rest) = masked.as_chunks::<4>();
    for (to, masked) in to.iter().zip(masked) {
        for at in 0..4 {
            to[at].set(masked[at] ^ mask[at]);
        }
    }
    for (at, (to, masked)) in to_rest.iter().zip(masked_rest).enumerate() {
        to.set(masked ^ mask[at]);
    }
}

/// The position up to which a room's stream has been sent to a member.
pub struct Cursor {
    chunk: Rc<Chunk>,
    at: u64,
}

impl Cursor {
    /// Appends the next pieces of memory, without the frames that the member itself has sent.
    /// Returns the cursor after they have been sent. The pieces stay valid while `self` lives.
    pub fn gather(
        &self,
        own: &mut VecDeque<Range<u64>>,
        pieces: &mut Vec<(*const u8, usize)>,
    ) -> Cursor {
        let mut chunk = &self.chunk;
        let mut at = self.at;
        while pieces.len() < PIECES_MAX {
            if at >= chunk.end() {
                let Some(next) = chunk.next.get() else { break };
                chunk = next;
                continue;
            }
            let mut end = chunk.end();
            if let Some(skipped) = own.front() {
                if skipped.start == at {
                    at = skipped.end;
                    own.pop_front();
                    continue;
                }
                end = end.min(skipped.start);
            }
            let [from, to] = [at, end]
                .map(|at| usize::try_from(at - chunk.start).expect("the range is in the chunk"));
            let bytes = &chunk.bytes[from..to];
            pieces.push((bytes.as_ptr().cast(), bytes.len()));
            at = end;
        }
        Cursor {
            chunk: Rc::clone(chunk),
            at,
        }
    }

    /// Returns whether nothing has been appended since.
    pub fn is_at_end(&self) -> bool {
        self.at >= self.chunk.end() && self.chunk.next.get().is_none()
    }
}
