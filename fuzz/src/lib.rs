//! Fuzz targets for everything that reads bytes from elsewhere: from clients and from the disk.
//!
//! | target | reads | judged by |
//! | --- | --- | --- |
//! | `head` | `wire::upgrade::parse_head` | every shorter prefix; tungstenite's handshake |
//! | `frames` | `wire::frame::Decoder` | tungstenite's reader |
//! | `messages` | `wire::message::Parser::parse` | `serde_json`; a model of simd-json's refusals |
//! | `messages_v2` | `Parser::parse_v2` | the same, and a model of version 2 |
//! | `records` | a segment with one change, by `log::record::Reader` | the encoder |
//! | `segments` | any bytes as a segment, and in parts; `damage_behind` | encoder; naive search |
//!
//! # How to run
//!
//! All of them, for 20 s each, as in CI: `.ci/fuzz` (`.ci/fuzz 300` for 5 minutes each). A single
//! one, without a time limit, from the root of the repository (this requires the nightly compiler
//! and `cargo install cargo-fuzz --locked`):
//!
//! ```text
//! cargo +nightly fuzz run frames
//! cargo +nightly fuzz run frames fuzz/artifacts/frames/crash-…     one input again
//! cargo +nightly fuzz tmin frames fuzz/artifacts/frames/crash-…    the same, made smaller
//! ```
//!
//! A finding first becomes a test of the crate, then it is fixed.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds` writes the committed seeds in
//! `corpus/`. Inputs that a run adds to them are not committed.

pub mod json;

use etherply::log::position::LogPosition;
use etherply::log::record::SegmentHeader;

/// Returns the header of the segment that the log's targets write and read.
#[must_use]
pub fn segment_header() -> SegmentHeader {
    SegmentHeader::new(3, *b"0123456789abcdef", 7, LogPosition::new(1_000_000))
}

/// Splits an input from the front. After its end, everything is zero or empty, so that every input
/// is valid.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// Returns the next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Returns the next byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// Returns the next `N` bytes as a little-endian number.
    pub fn number<const N: usize>(&mut self) -> u64 {
        self.bytes(N)
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Returns the next `N` bytes as a number below `end`, or 0 if `end` is 0.
    pub fn index<const N: usize>(&mut self, end: usize) -> usize {
        let number = self.number::<N>();
        usize::try_from(number % (end.max(1) as u64)).expect("the value fits in a usize")
    }

    /// Reads a length byte and returns up to that many bytes as a string, in which invalid UTF-8 is
    /// replaced.
    pub fn text(&mut self) -> String {
        let len = self.byte();
        String::from_utf8_lossy(self.bytes(len.into())).into_owned()
    }
}
