//! Randomness from the operating system. The core has none.

use std::io;

/// Returns a random number.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::from)?;
    Ok(u64::from_ne_bytes(bytes))
}
