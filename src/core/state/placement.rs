//! The assignment of workspaces to shards.

/// Returns the shard that owns a workspace. The result is the same on every start with the same
/// number of shards, and workspaces are spread evenly.
#[must_use]
pub fn shard_of(workspace: &str, shards: u32) -> u32 {
    let hash = crc32c::crc32c(workspace.as_bytes());
    // Multiply and shift rather than take a remainder, so that all bits of the hash count (Lemire,
    // 2016).
    u32::try_from((u64::from(hash) * u64::from(shards)) >> 32)
        .expect("the remainder is less than the number of shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspaces_are_spread_over_the_shards_and_stay_there() {
        for shards in [1_u32, 2, 3, 7, 64] {
            let mut counts = vec![0_u32; shards as usize];
            for workspace in 0..6400 {
                let id = format!("workspace-{workspace}");
                counts[shard_of(&id, shards) as usize] += 1;
                assert_eq!(shard_of(&id, shards), shard_of(&id, shards));
            }
            let fair = 6400 / shards;
            assert!(
                counts
                    .iter()
                    .all(|count| (fair / 2..=fair * 2).contains(count)),
                "{shards}: {counts:?}"
            );
        }
    }
}
