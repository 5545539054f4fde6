//! The generation of a workspace's history.

use std::fmt;
use std::str::FromStr;

/// The id of a stretch of a workspace's history in which no op was lost: from a start of the
/// server, or from a rebuild of the shard, to the next one. It is random, so that two servers that
/// continue copies of the same data directory are told apart. Clients treat it as opaque text.
///
/// Every layer uses it, from the log's records to the protocol, so it lives below all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
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

/// The form in messages and queries: 16 lower-case hexadecimal digits.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The reason why a text is not a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a generation is 16 lower-case hexadecimal digits")]
pub struct GenerationError;

impl FromStr for Generation {
    type Err = GenerationError;

    fn from_str(text: &str) -> Result<Self, GenerationError> {
        let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if text.len() != 16 || !text.as_bytes().iter().all(is_digit) {
            return Err(GenerationError);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| GenerationError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_read_back_from_its_text() {
        for id in [0, 1, 0xABC, u64::MAX] {
            let generation = Generation::new(id);
            assert_eq!(generation.to_string().parse(), Ok(generation));
        }
        for text in [
            "",
            "1",
            "000000000000000g",
            "ABCDEF0123456789",
            "+00000000000000a",
        ] {
            assert_eq!(text.parse::<Generation>(), Err(GenerationError), "{text}");
        }
    }
}
