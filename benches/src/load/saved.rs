//! The `saved` messages that a version 2 sender must receive, and the check that it does. Pure.
//!
//! A room's sender is its only writer, so its message `n` gets the seq `n`. The id in a `saved`
//! message must be that of a message that was sent, must increase, and must equal the `saved`
//! message's seq.

use std::io;

use tungstenite::protocol::frame::FrameHeader;

use super::check::{Mismatch, answer_control, describe};
use super::op::TEXT;

const START: &[u8] = br#"{"type":"saved","payload":{"id":"#;
const SEQ: &[u8] = br#"},"seq":"#;

/// A sender's progress through the ids of its messages.
#[derive(Default)]
pub struct SavedCursor {
    /// The highest id that was reported as saved.
    saved: u64,
    /// The number of `saved` messages.
    messages: u64,
    /// The first bytes of an incomplete frame.
    held: Vec<u8>,
}

impl SavedCursor {
    /// Returns the highest id that was reported as saved.
    pub fn saved(&self) -> u64 {
        self.saved
    }

    /// Returns the number of `saved` messages received so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Checks received bytes; `sent` is the highest id that was sent. Answers to pings are appended
    /// to `answers`.
    pub fn take(&mut self, sent: u64, bytes: &[u8], answers: &mut Vec<u8>) -> Result<(), Mismatch> {
        self.held.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(frame_bytes) = self.take_frame(taken, sent, answers)? {
            taken += frame_bytes;
        }
        self.held.drain(..taken);
        Ok(())
    }

    /// Checks the frame that begins at `at`. Returns its length, or `None` if more must arrive.
    fn take_frame(
        &mut self,
        at: usize,
        sent: u64,
        answers: &mut Vec<u8>,
    ) -> Result<Option<usize>, Mismatch> {
        let frame = &self.held[at..];
        let mut reader = io::Cursor::new(frame);
        let wrong = || Mismatch::Saved {
            saved: self.saved,
            sent,
            seen: describe(frame),
        };
        let Some((header, bytes)) = FrameHeader::parse(&mut reader).map_err(|_| wrong())? else {
            return Ok(None);
        };
        let start = usize::try_from(reader.position()).expect("a header is short");
        // A frame that is too long is an error, so the rest is not awaited.
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= 125);
        let end = start + bytes.ok_or_else(wrong)?;
        let Some(payload) = frame.get(start..end) else {
            return Ok(None);
        };
        if frame[0] != TEXT {
            let is_control = answer_control(header.opcode, payload, answers)?;
            return if is_control {
                Ok(Some(end))
            } else {
                Err(wrong())
            };
        }
        let id = saved_id(payload).filter(|id| (self.saved + 1..=sent).contains(id));
        self.saved = id.ok_or_else(wrong)?;
        self.messages += 1;
        Ok(Some(end))
    }
}

/// Returns the id of a `saved` message whose seq is the same number.
fn saved_id(payload: &[u8]) -> Option<u64> {
    let rest = payload.strip_prefix(START)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (id, rest) = rest.split_at(digits);
    let seq = rest.strip_prefix(SEQ)?.strip_suffix(b"}")?;
    (id == seq).then_some(())?;
    str::from_utf8(id).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use etherply::seq::Seq;
    use etherply::wire::message::v2::put_saved;

    use super::*;

    fn saved(id: u64, seq: Option<u64>) -> Vec<u8> {
        let mut frame = Vec::new();
        put_saved(&mut frame, id, seq.map(Seq::new));
        frame
    }

    #[test]
    fn saved_messages_may_arrive_in_pieces_of_any_size() {
        let stream = [saved(1, Some(1)), vec![0x89, 1, b'x'], saved(12, Some(12))].concat();
        for piece in 1..=stream.len() {
            let (mut cursor, mut answers) = (SavedCursor::default(), Vec::new());
            for piece in stream.chunks(piece) {
                cursor.take(12, piece, &mut answers).unwrap();
            }
            assert_eq!((cursor.saved(), cursor.messages()), (12, 2));
            assert!(!answers.is_empty(), "the ping is answered");
        }
    }

    #[test]
    fn impossible_messages_are_detected() {
        let wrong = [
            saved(4, Some(4)),
            [saved(2, Some(2)), saved(2, Some(2))].concat(),
            [saved(2, Some(2)), saved(1, Some(1))].concat(),
            saved(2, Some(3)),
            saved(2, None),
            vec![TEXT, 2, b'{', b'}'],
        ];
        for stream in wrong {
            let outcome = SavedCursor::default().take(3, &stream, &mut Vec::new());
            let seen = String::from_utf8_lossy(&stream);
            assert!(matches!(outcome, Err(Mismatch::Saved { .. })), "{seen}");
        }
    }
}
