//! Fuzz targets for everything that reads bytes which somebody else may have written: clients, and the disk.
//!
//! | target | reads | judged by |
//! | --- | --- | --- |
//! | `head` | `wire::upgrade::parse_head` | every shorter prefix; tungstenite's handshake |
//! | `frames` | `wire::frame::Decoder` | tungstenite's reader |
//! | `messages` | `wire::message::Parser::parse` | `serde_json`, and a model of what simd-json refuses |
//! | `messages_v2` | `wire::message::Parser::parse_v2` | the same, and a model of version 2 |
//! | `records` | a segment with one change, by `log::record::Reader` | the encoder |
//! | `segments` | any bytes as a segment, whole and in parts, `log::record::damage_behind` | the encoder; a naive search |
//!
//! # How to run
//!
//! All of them, 20 s each, as CI does: `.ci/fuzz` (`.ci/fuzz 300` for 5 minutes each). One of them, without an end, from the
//! root of the repository, with the nightly compiler and `cargo install cargo-fuzz --locked`:
//!
//! ```text
//! cargo +nightly fuzz run frames
//! cargo +nightly fuzz run frames fuzz/artifacts/frames/crash-…     one input again
//! cargo +nightly fuzz tmin frames fuzz/artifacts/frames/crash-…    the same, made smaller
//! ```
//!
//! A finding becomes a test of the crate first, then a fix.
//!
//! The committed seeds in `corpus/` are written by `cargo run --manifest-path fuzz/Cargo.toml --example seeds`; what a run finds
//! beside them is not committed.

pub mod json;

use etherply::log::position::LogPosition;
use etherply::log::record::SegmentHeader;

/// The segment that the log's targets write and read. The only place that builds a header.
#[must_use]
pub fn segment_header() -> SegmentHeader {
    SegmentHeader::new(3, *b"0123456789abcdef", 7, LogPosition::new(1_000_000))
}

/// Takes an input apart from its front. Where it has ended, everything is zero or empty, so every input means something.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// The next `N` bytes as a little-endian number.
    pub fn number<const N: usize>(&mut self) -> u64 {
        self.bytes(N)
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The next `N` bytes as a number below `end`; 0 where that is 0.
    pub fn index<const N: usize>(&mut self, end: usize) -> usize {
        let number = self.number::<N>();
        usize::try_from(number % (end.max(1) as u64)).expect("less than a usize")
    }

    /// A text with its length in the first byte. What is not UTF-8 is replaced.
    pub fn text(&mut self) -> String {
        let len = self.byte();
        String::from_utf8_lossy(self.bytes(len.into())).into_owned()
    }
}
