//! The identity of a section of a workspace's history.

use std::fmt;
use std::str::FromStr;

/// The number of hex digits in which a generation is written.
const DIGITS: usize = 16;

/// A random id for the history that a shard adds to: new at each start of the server and after each
/// rebuild of a shard from its log. Two histories of a workspace that diverge after some seq (after
/// a restored backup, or in a copied directory) have different generations, too.
///
/// It is written as 16 lower-case hex digits. Clients send it back unchanged and do not interpret
/// it. Every layer uses it, from the log's records to the protocol, so it lives below all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation(u64);

impl Generation {
    /// Returns the generation with this id.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Returns the id.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The error for text that is not a [`Generation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a generation must be 16 lower-case hex digits")]
pub struct ParseGenerationError;

impl FromStr for Generation {
    type Err = ParseGenerationError;

    fn from_str(text: &str) -> Result<Self, ParseGenerationError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return Err(ParseGenerationError);
        }
        let id = u64::from_str_radix(text, 16);
        id.map(Self).map_err(|_| ParseGenerationError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_16_lower_case_hex_digits_are_a_generation() {
        for (text, expected) in [
            ("9f2c000000000001", Some(0x9f2c_0000_0000_0001)),
            ("0000000000000000", Some(0)),
            ("ffffffffffffffff", Some(u64::MAX)),
            ("", None),
            ("9f2c", None),
            ("9F2C000000000001", None),
            ("+f2c000000000001", None),
            ("9f2c00000000000g", None),
            ("9f2c0000000000012", None),
            (" 9f2c00000000001", None),
            ("9f2c0000000000é", None),
        ] {
            let parsed = text.parse().map(Generation::get);
            assert_eq!(parsed, expected.ok_or(ParseGenerationError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_displayed_generation_can_be_parsed(id: u64) {
            let generation = Generation::new(id);
            prop_assert_eq!(generation.to_string().parse(), Ok(generation));
        }
    }
}
