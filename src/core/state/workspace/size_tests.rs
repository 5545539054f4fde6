//! The size limit of a workspace, compared with a naive model of its size.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Edit, Source, Verdict, Workspace};
use crate::core::state::segment_usage::UNMARKED;
use crate::log::record::{Change, EXTRA_BYTES, OP_HEADER_BYTES};

const SOURCE: Source = Source {
    writer: 0,
    mark: UNMARKED,
};

fn edit<'a>(key: &'a str, value: &'a str, timestamp: u64) -> Edit<'a> {
    Edit {
        key,
        change: Change::write(value),
        timestamp,
        if_timestamp: None,
    }
}

type State = BTreeMap<String, (String, u64)>;

fn state(workspace: &Workspace) -> State {
    let entries = workspace.entries();
    entries
        .map(|entry| {
            let held = (entry.value().to_owned(), entry.timestamp());
            (entry.key().to_owned(), held)
        })
        .collect()
}

/// Returns the length of a state in the log, for a workspace with a one-byte id.
fn bytes(state: &State) -> u64 {
    let entries = state.iter();
    entries
        .map(|(key, (value, _))| (OP_HEADER_BYTES + 1 + key.len() + value.len()) as u64)
        .sum()
}

#[test]
fn the_bound_is_exact_to_the_byte() {
    let mut workspace = Workspace::new("w", 1);
    let entry_bytes = (OP_HEADER_BYTES + 3) as u64;
    for (bytes_max, key, value, timestamp, expected) in [
        (entry_bytes - 1, "k", "1", 1, "too large, nothing is there"),
        (entry_bytes, "k", "1", 1, "won"),
        (entry_bytes, "k", "12", 2, "too large, 1 is there"),
        (entry_bytes + 1, "k", "12", 2, "won"),
        (2 * entry_bytes, "j", "1", 3, "too large, nothing is there"),
        (2 * entry_bytes + 1, "j", "1", 3, "won"),
        // The limit was lowered: an op that does not grow the workspace still wins.
        (0, "k", "34", 4, "won"),
        (0, "k", "5", 5, "won"),
        (0, "k", "56", 6, "too large, 5 is there"),
        // An op that loses or is resent receives its usual answer.
        (0, "k", "789", 4, "lost to 5"),
        (0, "k", "5", 5, "same"),
        (u64::MAX, "k", "789", 7, "won"),
    ] {
        let verdict = match workspace.apply_within(bytes_max, &edit(key, value, timestamp), SOURCE)
        {
            Verdict::Won { .. } => "won".to_owned(),
            Verdict::Same => "same".to_owned(),
            Verdict::Lost(held) => format!("lost to {}", held.value()),
            Verdict::Absent(floor) => format!("lost to the floor {floor}"),
            Verdict::TooLarge(None) => "too large, nothing is there".to_owned(),
            Verdict::TooLarge(Some(held)) => format!("too large, {} is there", held.value()),
        };
        assert_eq!(
            verdict, expected,
            "{key}={value}@{timestamp} in {bytes_max}"
        );
    }
    assert_eq!(workspace.seq().get(), 6, "a refused op gets no seq");
}

/// P126: tombstones of keys that never existed cannot fill the memory, and each key with an entry
/// can be deleted however full its workspace is.
#[test]
fn a_key_without_an_entry_is_deleted_up_to_twice_the_bound() {
    let mut workspace = Workspace::new("w", 1);
    let live_bytes = (OP_HEADER_BYTES + 3) as u64;
    let tombstone_bytes = (OP_HEADER_BYTES + EXTRA_BYTES + 2) as u64;
    let half = (live_bytes + 6 * tombstone_bytes).div_ceil(2);
    let most = half - 1;
    for (bytes_max, key, value, timestamp, expected) in [
        (most, "a", Some("1"), 1, "won"),
        (most, "b", None, 1, "won"),
        (most, "c", None, 1, "won"),
        (most, "d", Some("1"), 1, "too large"),
        (most, "d", None, 1, "won"),
        (most, "e", None, 1, "won"),
        (most, "f", None, 1, "won"),
        (most, "g", None, 1, "too large"),
        (half, "g", None, 1, "won"),
        // A key with an entry, live or deleted, is deleted whatever the limit.
        (0, "a", None, 2, "won"),
        (0, "b", None, 2, "won"),
        (0, "h", None, 2, "too large"),
        (u64::MAX, "h", None, 2, "won"),
    ] {
        let change = match value {
            Some(value) => Change::write(value),
            None => Change::Delete { deleted_at_us: 1 },
        };
        let edit = Edit {
            key,
            change,
            timestamp,
            if_timestamp: None,
        };
        let verdict = match workspace.apply_within(bytes_max, &edit, SOURCE) {
            Verdict::Won { .. } => "won",
            Verdict::TooLarge(None) => "too large",
            verdict => panic!("{key}: {verdict:?}"),
        };
        assert_eq!(verdict, expected, "{key} in {bytes_max}");
    }
}

proptest! {
    #[test]
    fn an_op_never_grows_a_workspace_beyond_the_bound(
        ops in prop::collection::vec((0..5_u8, 0..40_usize, 0..60_u64, 0..300_u64), 0..80),
    ) {
        let mut workspace = Workspace::new("w", 3);
        let mut count = 0;
        for (key, value_bytes, timestamp, bytes_max) in ops {
            let (key, value) = (format!("k{key}"), "1".repeat(value_bytes + 1));
            let before = state(&workspace);
            let mut after = before.clone();
            after.insert(key.clone(), (value.clone(), timestamp));
            let wins = before.get(&key).is_none_or(|held| held.1 < timestamp);
            let fits = bytes(&after) <= bytes(&before).max(bytes_max);
            let edit = edit(&key, &value, timestamp);
            let is_won = match workspace.apply_within(bytes_max, &edit, SOURCE) {
                Verdict::Won { .. } => true,
                Verdict::TooLarge(held) => {
                    prop_assert!(wins && !fits);
                    let held = held.map(|held| (held.value().to_owned(), held.timestamp()));
                    prop_assert_eq!(held.as_ref(), before.get(&key));
                    false
                }
                Verdict::Same | Verdict::Lost(_) | Verdict::Absent(_) => {
                    prop_assert!(!wins);
                    false
                }
            };
            prop_assert_eq!(is_won, wins && fits);
            prop_assert_eq!(&state(&workspace), if is_won { &after } else { &before });
            prop_assert_eq!(workspace.log_bytes(), bytes(&state(&workspace)));
            count += u64::from(is_won);
            prop_assert_eq!(workspace.seq().get(), count);
        }
    }
}
