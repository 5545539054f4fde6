//! The positions of the frames in a stream of ops. Pure.
//!
//! The ops of a load share one layout, but version 2 numbers them, and the number gets a digit
//! longer at each power of ten.

use std::rc::Rc;

/// The maximum number of digits of a number in a frame.
pub const DIGITS_MAX: u32 = 12;

/// A range of ops whose frames have the same length. It ends where the next one begins.
#[derive(Debug, Clone, Copy)]
struct Band {
    first: u64,
    /// The position of the first op in the stream.
    position: u64,
    frame_bytes: u64,
}

/// The positions of all frames in a stream.
#[derive(Debug, Clone)]
pub struct FrameLayout {
    bands: Rc<[Band]>,
}

impl FrameLayout {
    /// Returns the layout of frames that all have this length.
    pub fn fixed(frame_bytes: usize) -> Self {
        let band = Band {
            first: 0,
            position: 0,
            frame_bytes: frame_bytes as u64,
        };
        Self {
            bands: [band].into(),
        }
    }

    /// Returns the layout of frames that have this length and a number: op `n` contains the number
    /// `n + 1` in decimal digits.
    pub fn numbered(bytes_without_number: usize) -> Self {
        let (mut first, mut position) = (0, 0);
        let bands = (1..=DIGITS_MAX).map(|digits| {
            let frame_bytes = bytes_without_number as u64 + u64::from(digits);
            let band = Band {
                first,
                position,
                frame_bytes,
            };
            let next = 10_u64.pow(digits) - 1;
            position += (next - first) * frame_bytes;
            first = next;
            band
        });
        Self {
            bands: bands.collect(),
        }
    }

    /// Returns the length of the longest frame.
    pub fn frame_bytes_max(&self) -> usize {
        let last = self.bands.last().expect("there is at least one");
        usize::try_from(last.frame_bytes).expect("a frame is short")
    }

    /// Returns the position at which the frame of an op begins.
    pub fn start_of(&self, number: u64) -> u64 {
        let band = self.band(|band| band.first <= number);
        band.position + (number - band.first) * band.frame_bytes
    }

    /// Returns the number of the op at a position, and the offset in its frame.
    pub fn locate(&self, position: u64) -> (u64, u64) {
        let band = self.band(|band| band.position <= position);
        let ahead = position - band.position;
        (
            band.first + ahead / band.frame_bytes,
            ahead % band.frame_bytes,
        )
    }

    fn band(&self, begins_before: impl Fn(&Band) -> bool) -> &Band {
        let found = self.bands.iter().rev().find(|band| begins_before(band));
        found.expect("the first band begins at 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_where_the_frames_before_it_end() {
        for (layout, is_numbered) in [
            (FrameLayout::fixed(7), false),
            (FrameLayout::numbered(7), true),
        ] {
            let mut position = 0;
            for number in 0..12_345_u64 {
                let digits = (number + 1).to_string().len() as u64;
                let frame_bytes = 7 + if is_numbered { digits } else { 0 };
                assert_eq!(layout.start_of(number), position);
                assert_eq!(layout.locate(position), (number, 0));
                let last = position + frame_bytes - 1;
                assert_eq!(layout.locate(last), (number, frame_bytes - 1));
                position += frame_bytes;
            }
        }
    }
}
