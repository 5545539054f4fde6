//! Random logs with random damage.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, Index),
    Cut(Index, Index),
    Zero(Index, Index, usize),
    Remove(Index),
    Rename(Index, Index),
    Meta,
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => any::<(Index, Index)>().prop_map(|(file, at)| Self::Flip(file, at)),
            2 => any::<(Index, Index)>().prop_map(|(file, at)| Self::Cut(file, at)),
            3 => (any::<(Index, Index)>(), 1_usize..300)
                .prop_map(|((file, at), bytes)| Self::Zero(file, at, bytes)),
            2 => any::<Index>().prop_map(Self::Remove),
            1 => any::<(Index, Index)>().prop_map(|(from, to)| Self::Rename(from, to)),
            1 => Just(Self::Meta),
        ]
    }

    fn strike(&self, log: &Log, paths: &[PathBuf]) {
        let change = |file: &Index, change: &dyn Fn(&mut Vec<u8>)| {
            let path = file.get(paths);
            if let Ok(mut bytes) = fs::read(path)
                && !bytes.is_empty()
            {
                change(&mut bytes);
                fs::write(path, bytes).unwrap();
            }
        };
        match self {
            Self::Flip(file, at) => change(file, &|bytes| {
                let at = at.index(bytes.len());
                bytes[at] ^= 0x40;
            }),
            Self::Cut(file, at) => change(file, &|bytes| bytes.truncate(at.index(bytes.len()))),
            Self::Zero(file, at, count) => change(file, &|bytes| {
                let begin = at.index(bytes.len());
                let end = bytes.len().min(begin + count);
                bytes[begin..end].fill(0);
            }),
            Self::Remove(file) => drop(fs::remove_file(file.get(paths))),
            Self::Rename(from, to) => drop(fs::rename(from.get(paths), to.get(paths))),
            Self::Meta => drop(fs::remove_file(log.data().join(META))),
        }
    }
}

/// Rounds of a server: each has a shard count and some segments of batches of workspaces, and may
/// end with a compaction.
type Rounds = Vec<(u32, Vec<Vec<Vec<u32>>>, bool)>;

fn rounds() -> impl Strategy<Value = Rounds> {
    let batch = prop::collection::vec(0_u32..4, 0..5);
    let segment = prop::collection::vec(batch, 0..5);
    let segments = prop::collection::vec(segment, 1..5);
    let round = (1_u32..4, segments, prop::bool::weighted(0.3));
    prop::collection::vec(round, 1..4)
}

fn build(rounds: &Rounds) -> Log {
    const NAMES: [&str; 4] = ["w0", "w1", "w2", "w3"];
    let mut log = Log::new();
    for (shards, segments, is_compacted) in rounds {
        for batches in segments {
            for shard in 0..*shards {
                let of = |batch: &Vec<u32>| {
                    let own = batch.iter().filter(|id| *id % shards == shard);
                    own.map(|id| NAMES[*id as usize]).collect()
                };
                let batches: Vec<Vec<&str>> = batches.iter().map(of).collect();
                log.segment(shard, &batches);
            }
        }
        if *is_compacted {
            log.compact();
        }
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_repair_keeps_intact_data_and_loses_no_file(
        rounds in rounds(),
        damages in prop::collection::vec(Damage::any(), 1..4),
    ) {
        let log = build(&rounds);
        let (headers, ops) = (log.headers(), log.ops());
        let paths = log.segments();
        for damage in &damages {
            damage.strike(&log, &paths);
        }
        let undamaged = log.undamaged(&headers);
        let (kept, gaps) = log.repair();
        prop_assert!(kept.is_subset(&ops));
        prop_assert!(kept.is_superset(&undamaged), "{:?}", undamaged.difference(&kept));
        // Ops that a compaction dropped may be reported as missing, too.
        let was_compacted = rounds.iter().any(|(_, _, is_compacted)| *is_compacted);
        for gap in gaps {
            for seq in gap.seqs.start().get()..=gap.seqs.end().get() {
                let is_it = |op: &&Written| (&op.0, op.1) == (&gap.workspace, seq);
                prop_assert!(!kept.iter().any(|op| is_it(&op)), "{gap:?}");
                prop_assert!(was_compacted || ops.iter().any(|op| is_it(&op)), "{gap:?}");
            }
        }
    }
}
