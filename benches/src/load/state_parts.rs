//! The parts in which a version 2 client must receive a state, and the check that it does. Pure.
//!
//! The entries and their order are known, but the server chooses where a part ends. The length in a
//! part's header determines that end, so everything after the header is compared byte by byte, and
//! none of it is kept.

use std::io;
use std::io::Write as _;
use std::rc::Rc;

use tungstenite::protocol::frame::FrameHeader;

use super::op::TEXT;

const START: &[u8] = br#"{"type":"state","payload":{"entries":["#;
const TAIL: &[u8] = br#"],"deleted":[]},"seq":"#;
const END: &[u8] = b"}";

/// A state as version 2 sends it: its entries in the order of their changes, the first of which has
/// seq 1.
#[derive(Debug, Default)]
pub struct ExpectedEntries {
    /// The entries, with a comma after each.
    bytes: Vec<u8>,
    /// The start of each entry, and the end of the last.
    starts: Vec<usize>,
}

impl ExpectedEntries {
    /// Returns the entries, each with its key and its value as JSON texts.
    pub fn new(entries: impl IntoIterator<Item = (String, String)>, timestamp_us: u64) -> Self {
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for (key, value) in entries {
            bytes.extend_from_slice(format!("[{key},{value},{timestamp_us}],").as_bytes());
            starts.push(bytes.len());
        }
        Self { bytes, starts }
    }

    /// Returns the number of entries, which is the seq of the last.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns the length of a part with the entries `from..to`, without its header.
    fn part_bytes(&self, from: usize, to: usize) -> usize {
        let entries_bytes = self.starts[to] - self.starts[from] - ",".len();
        let seq_digits = to.ilog10() as usize + 1;
        START.len() + entries_bytes + TAIL.len() + seq_digits + END.len()
    }

    /// Returns the end of the part that begins with the entry `from` and has this length.
    fn part_end(&self, from: usize, bytes: usize) -> Option<usize> {
        // A part with more entries would be longer.
        let (mut low, mut high) = (from + 1, self.count());
        while low < high {
            let middle = low.midpoint(high);
            if self.part_bytes(from, middle) < bytes {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (self.part_bytes(from, low) == bytes).then_some(low)
    }
}

/// The position of a client in the state.
#[derive(Debug)]
pub struct PartsCursor {
    entries: Rc<ExpectedEntries>,
    /// The first entry that has not begun to arrive.
    next: usize,
    /// The start and the end of the frame that is arriving, and the entries between them, as a
    /// range of bytes. Empty if a header is next.
    start: Vec<u8>,
    middle: std::ops::Range<usize>,
    end: Vec<u8>,
    /// The number of bytes of the frame that have arrived.
    at: usize,
    /// The first bytes of an incomplete header.
    held: Vec<u8>,
    is_synced: bool,
}

impl PartsCursor {
    /// Expects the entries after the seq `since`, and then the end of the state.
    pub fn new(entries: Rc<ExpectedEntries>, since: usize) -> Self {
        assert!(since <= entries.count(), "a client knows at most all");
        Self {
            entries,
            next: since,
            start: Vec::new(),
            middle: 0..0,
            end: Vec::new(),
            at: 0,
            held: Vec::new(),
            is_synced: false,
        }
    }

    /// Returns whether the whole state has arrived.
    pub fn is_complete(&self) -> bool {
        self.is_synced && self.start.is_empty()
    }

    /// Checks received bytes up to the end of the state. Returns those after it.
    pub fn take<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], String> {
        while !bytes.is_empty() && !self.is_complete() {
            bytes = if self.start.is_empty() {
                self.take_header(bytes)?
            } else {
                self.take_payload(bytes)?
            };
        }
        Ok(bytes)
    }

    fn take_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], String> {
        let held = self.held.len();
        // A header of a server has at most 10 bytes.
        self.held
            .extend_from_slice(&bytes[..bytes.len().min(10 - held)]);
        let mut reader = io::Cursor::new(&self.held);
        let parsed = FrameHeader::parse(&mut reader).map_err(|error| error.to_string())?;
        let Some((_, payload_bytes)) = parsed else {
            return Ok(&[]);
        };
        let header_bytes = usize::try_from(reader.position()).expect("a header is short");
        if self.held[0] != TEXT {
            return Err(format!(
                "a frame of kind {:#x} came in a state",
                self.held[0]
            ));
        }
        self.expect_payload(usize::try_from(payload_bytes).unwrap_or(usize::MAX))?;
        self.held.clear();
        Ok(&bytes[header_bytes - held..])
    }

    /// Expects the payload of the frame whose header has arrived.
    fn expect_payload(&mut self, payload_bytes: usize) -> Result<(), String> {
        let Self { entries, next, .. } = self;
        let count = entries.count();
        let seq = if *next == count {
            self.start
                .extend_from_slice(br#"{"type":"synced","payload":{},"seq":"#);
            self.is_synced = true;
            count
        } else {
            let to = entries.part_end(*next, payload_bytes).ok_or_else(|| {
                format!(
                    "after {next} of {count} entries came a message of {payload_bytes} bytes, \
                     which no part of the state has",
                )
            })?;
            self.start.extend_from_slice(START);
            self.middle = entries.starts[*next]..entries.starts[to] - ",".len();
            self.end.extend_from_slice(TAIL);
            *next = to;
            to
        };
        write!(self.end, "{seq}}}").expect("a vector grows");
        let expected_bytes = self.start.len() + self.middle.len() + self.end.len();
        if payload_bytes == expected_bytes {
            return Ok(());
        }
        Err(format!(
            "all {count} entries have come, and then a message of {payload_bytes} bytes",
        ))
    }

    /// Compares the bytes with those of the frame that is arriving. Returns those after the frame.
    fn take_payload<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], String> {
        let mut skipped = self.at;
        for piece in [
            &self.start[..],
            &self.entries.bytes[self.middle.clone()],
            &self.end[..],
        ] {
            let expected = piece.get(skipped..).unwrap_or_default();
            skipped = skipped.saturating_sub(piece.len());
            let length = expected.len().min(bytes.len());
            if expected[..length] != bytes[..length] {
                let same = expected.iter().zip(bytes).take_while(|(a, b)| a == b);
                let same = same.count();
                return Err(format!(
                    "byte {} of a message up to entry {} is wrong\n  expected {:?}\n  \
                     seen     {:?}",
                    self.at + same,
                    self.next,
                    quoted(&expected[same..]),
                    quoted(&bytes[same..])
                ));
            }
            self.at += length;
            bytes = &bytes[length..];
        }
        if self.at == self.start.len() + self.middle.len() + self.end.len() {
            self.start.clear();
            self.middle = 0..0;
            self.end.clear();
            self.at = 0;
        }
        Ok(bytes)
    }
}

fn quoted(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

#[cfg(test)]
mod tests;
