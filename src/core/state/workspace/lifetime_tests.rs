//! Deletes, expiries and the floor, against a naive model with tombstones.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Edit, Source, Verdict, Workspace};
use crate::core::state::segment_usage::UNMARKED;
use crate::log::record::{Change, LoggedOp, op_bytes};
use crate::seq::Seq;

const RETENTION_US: u64 = 50;
const SOURCE: Source = Source {
    writer: 7,
    mark: UNMARKED,
};

/// The entry of a key in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// `None` for a tombstone.
    value: Option<String>,
    timestamp: u64,
    seq: u64,
    /// The expiry of a value, or the time of a delete.
    time_us: Option<u64>,
}

/// A naive model of a workspace.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct TombstoneModel {
    held: BTreeMap<String, Held>,
    seq: u64,
    floor: Option<(u64, u64)>,
}

impl TombstoneModel {
    fn apply(&mut self, edit: &Edit<'_>) -> &'static str {
        let (value, time_us) = match edit.change {
            Change::Write {
                value,
                expires_at_us,
            } => (Some(value.to_owned()), expires_at_us),
            Change::Delete { deleted_at_us } => (None, Some(deleted_at_us)),
            Change::Floor { .. } | Change::Generation { .. } => unreachable!("no client sends it"),
        };
        let held = self.held.get(edit.key);
        if held.is_some_and(|held| held.timestamp == edit.timestamp && held.value == value) {
            return "same";
        }
        let current = held.filter(|held| held.value.is_some());
        let current = current.map_or(0, |held| held.timestamp);
        let is_older = match held {
            Some(held) => edit.timestamp <= held.timestamp,
            None => self.floor.is_some_and(|(floor, _)| edit.timestamp <= floor),
        };
        if is_older || edit.if_timestamp.is_some_and(|at| at != current) {
            return if held.is_some() { "lost" } else { "absent" };
        }
        self.seq += 1;
        let held = Held {
            value,
            timestamp: edit.timestamp,
            seq: self.seq,
            time_us,
        };
        self.held.insert(edit.key.to_owned(), held);
        "won"
    }

    fn oldest_tombstone(&self) -> Option<(String, Held)> {
        let tombstones = self.held.iter().filter(|(_, held)| held.value.is_none());
        let oldest = tombstones.min_by_key(|(_, held)| held.seq)?;
        Some((oldest.0.clone(), oldest.1.clone()))
    }

    fn drop_tombstones(&mut self, now_us: u64) -> u64 {
        let mut count = 0;
        while let Some((key, held)) = self.oldest_tombstone()
            && drop_us(&held) <= now_us
        {
            self.held.remove(&key);
            let (floor, dropped_seq) = self.floor.unwrap_or_default();
            self.floor = Some((floor.max(held.timestamp), dropped_seq.max(held.seq)));
            count += 1;
        }
        count
    }

    fn next_due_us(&self) -> Option<u64> {
        let expiries = self.held.values().filter(|held| held.value.is_some());
        let expiry_us = expiries.filter_map(|held| held.time_us).min();
        let oldest = self.oldest_tombstone();
        let drop_us = oldest.map(|(_, held)| drop_us(&held));
        expiry_us.into_iter().chain(drop_us).min()
    }

    /// Returns the ops of a log without superseded ops.
    fn ops(&self) -> Vec<LoggedOp<'_>> {
        let entries = self.held.iter().map(|(key, held)| LoggedOp {
            workspace: "w",
            key,
            change: change_of(held),
            seq: Seq::new(held.seq),
            timestamp: held.timestamp,
        });
        let floor = self.floor.map(|(timestamp, dropped_seq)| LoggedOp {
            workspace: "w",
            key: "",
            change: Change::Floor {
                dropped_seq: Seq::new(dropped_seq),
            },
            seq: Seq::new(self.seq),
            timestamp,
        });
        entries.chain(floor).collect()
    }
}

/// Returns the time at which a tombstone is dropped: it must not be in the future by then.
fn drop_us(held: &Held) -> u64 {
    let kept_until_us = held.time_us.unwrap() + RETENTION_US;
    kept_until_us.max(held.timestamp)
}

fn change_of(held: &Held) -> Change<'_> {
    match &held.value {
        Some(value) => Change::Write {
            value,
            expires_at_us: held.time_us,
        },
        None => Change::Delete {
            deleted_at_us: held.time_us.unwrap(),
        },
    }
}

/// Compares all the state of a workspace with the model.
fn check(workspace: &Workspace, model: &TombstoneModel) {
    let entries = workspace.changed_since(Seq::NONE, None);
    let mut held = BTreeMap::new();
    let mut last_seq = Seq::NONE;
    for (slot, entry) in entries {
        assert!(entry.seq() > last_seq, "in the order of their last change");
        last_seq = entry.seq();
        let time_us = match workspace.change_of(slot) {
            Change::Write { expires_at_us, .. } => expires_at_us,
            Change::Delete { deleted_at_us } => Some(deleted_at_us),
            Change::Floor { .. } | Change::Generation { .. } => unreachable!("not an entry"),
        };
        let value = (!entry.is_deleted()).then(|| entry.value().to_owned());
        let entry_held = Held {
            value,
            timestamp: entry.timestamp(),
            seq: entry.seq().get(),
            time_us,
        };
        held.insert(entry.key().to_owned(), entry_held);
    }
    assert_eq!(held, model.held);
    let floor = workspace.floor();
    let floor = floor.map(|floor| (floor.timestamp, floor.dropped_seq.get()));
    assert_eq!((workspace.seq().get(), floor), (model.seq, model.floor));
    assert_eq!(workspace.next_due_us(RETENTION_US), model.next_due_us());
    let bytes: usize = model.ops().iter().map(op_bytes).sum();
    assert_eq!(workspace.log_bytes(), bytes as u64);
    // The init message contains exactly the live keys and has the announced length.
    let mut init = Vec::new();
    workspace.put_init(&mut init);
    let text = String::from_utf8_lossy(&init[init.len() - workspace.init_fields().len() - 2..])
        .trim_end_matches("}}")
        .to_owned();
    let fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&format!("{{{text}}}")).unwrap();
    let live = model.held.iter().filter(|(_, held)| held.value.is_some());
    assert!(fields.keys().eq(live.map(|(key, _)| key)), "{text}");
    let mut stamps = Vec::new();
    workspace.put_stamps(&mut stamps);
    assert_eq!(stamps.len(), workspace.stamps_bytes());
    if let Some(lifetimes) = &workspace.lifetimes {
        lifetimes.invariants();
    }
}

#[derive(Debug, Clone)]
enum LifetimeStep {
    /// A write or a delete: the key, the value, the timestamp, the time to live and the condition.
    Edit(u8, Option<u8>, u64, Option<u64>, Option<u64>),
    /// Time passes.
    Wait(u64),
    /// The workspace is read back from a log, in order or not, split at this position.
    Restore(bool, usize),
}

fn steps() -> impl Strategy<Value = Vec<LifetimeStep>> {
    let edit = (
        0..5_u8,
        prop::option::weighted(0.7, 0..3_u8),
        1..400_u64,
        prop::option::weighted(0.3, 1..40_u64),
        prop::option::weighted(0.2, 0..60_u64),
    );
    let step = prop_oneof![
        8 => edit.prop_map(|(key, value, timestamp, ttl, condition)| {
            LifetimeStep::Edit(key, value, timestamp, ttl, condition)
        }),
        3 => (1..40_u64).prop_map(LifetimeStep::Wait),
        1 => (any::<bool>(), 0..8_usize).prop_map(|(reverse, split)| {
            LifetimeStep::Restore(reverse, split)
        }),
    ];
    prop::collection::vec(step, 1..80)
}

/// Deletes expired keys and drops old tombstones, as a shard does.
fn pass(workspace: &mut Workspace, model: &mut TombstoneModel, now_us: u64) {
    while let Some((key, timestamp)) = workspace.next_expired(now_us) {
        let key = key.to_owned();
        let edit = Edit {
            key: &key,
            change: Change::Delete {
                deleted_at_us: now_us,
            },
            timestamp: timestamp + 1,
            if_timestamp: None,
        };
        let verdict = workspace.apply_within(0, &edit, SOURCE);
        assert!(
            matches!(verdict, Verdict::Won { .. }),
            "an expiry always wins, even over the limit of the workspace: {verdict:?}"
        );
        assert_eq!(model.apply(&edit), "won");
    }
    let expired = |held: &Held| held.value.is_some() && held.time_us.is_some_and(|at| at <= now_us);
    assert!(
        !model.held.values().any(expired),
        "all of them have expired"
    );
    let dropped = workspace.drop_tombstones((now_us, RETENTION_US), usize::MAX, None, UNMARKED);
    let dropped = dropped.map_or(0, |dropped| dropped.count);
    assert_eq!(dropped, model.drop_tombstones(now_us));
}

fn restored(model: &TombstoneModel, is_reversed: bool, split: usize) -> Workspace {
    let mut ops = model.ops();
    if is_reversed {
        ops.reverse();
    }
    let split = split.min(ops.len());
    let mut parts = [Workspace::new("w", 1), Workspace::new("w", 1)];
    for (place, op) in ops.iter().enumerate() {
        let part = &mut parts[usize::from(place >= split)];
        part.restore(op.key, &op.change, op.timestamp, op.seq);
    }
    let [mut workspace, other] = parts;
    workspace.restore_from(&other);
    workspace.finish_restore();
    workspace.begin_generation();
    assert_eq!(workspace.begun_seq(), workspace.seq());
    workspace
}

proptest! {
    /// P120, P124, P127, P128: deletes, expiries and dropped tombstones, also across restarts.
    #[test]
    fn a_workspace_agrees_with_a_model_that_has_tombstones(steps in steps()) {
        let mut workspace = Workspace::new("w", 1);
        let (mut model, mut now_us) = (TombstoneModel::default(), 100);
        for step in steps {
            match step {
                LifetimeStep::Edit(key, value, timestamp, ttl_us, if_timestamp) => {
                    let (key, value) = (format!("k{key}"), value.map(|value| value.to_string()));
                    let change = match &value {
                        Some(value) => Change::Write {
                            value,
                            expires_at_us: ttl_us.map(|ttl_us| now_us + ttl_us),
                        },
                        None => Change::Delete { deleted_at_us: now_us },
                    };
                    let edit = Edit { key: &key, change, timestamp, if_timestamp };
                    let expected = model.apply(&edit);
                    let verdict = match workspace.apply_within(u64::MAX, &edit, SOURCE) {
                        Verdict::Won { .. } => "won",
                        Verdict::Same => "same",
                        Verdict::Lost(_) => "lost",
                        Verdict::Absent(_) => "absent",
                        Verdict::TooLarge(_) => "too large",
                    };
                    prop_assert_eq!(verdict, expected);
                }
                LifetimeStep::Wait(us) => now_us += us,
                LifetimeStep::Restore(is_reversed, split) => {
                    workspace = restored(&model, is_reversed, split);
                }
            }
            pass(&mut workspace, &mut model, now_us);
            check(&workspace, &model);
        }
    }
}

#[test]
fn a_resend_of_a_conditional_write_that_won_is_the_same_op() {
    let mut workspace = Workspace::new("w", 1);
    let edit = |if_timestamp, timestamp| Edit {
        key: "k",
        change: Change::write("1"),
        timestamp,
        if_timestamp,
    };
    for (if_timestamp, timestamp, expected) in [
        (Some(5), 10, "absent"),
        (Some(0), 10, "won"),
        (Some(0), 10, "same"),
        (Some(0), 11, "lost"),
        (Some(10), 9, "lost"),
        (Some(10), 11, "won"),
        (None, 12, "won"),
    ] {
        let verdict = workspace.apply_within(u64::MAX, &edit(if_timestamp, timestamp), SOURCE);
        let verdict = match verdict {
            Verdict::Won { .. } => "won",
            Verdict::Same => "same",
            Verdict::Lost(_) => "lost",
            Verdict::Absent(_) => "absent",
            Verdict::TooLarge(_) => "too large",
        };
        assert_eq!(verdict, expected, "{if_timestamp:?} at {timestamp}");
    }
}

#[test]
fn a_tombstone_that_another_part_of_the_log_needs_is_not_dropped_before_the_merge() {
    let delete = Change::Delete { deleted_at_us: 1 };
    let floor = Change::Floor {
        dropped_seq: Seq::new(2),
    };
    let mut one = Workspace::new("w", 1);
    one.restore("k", &delete, 10, Seq::new(2));
    one.restore("", &floor, 10, Seq::new(3));
    one.finish_restore();
    let mut other = Workspace::new("w", 1);
    other.restore("k", &Change::write("1"), 5, Seq::new(1));
    other.finish_restore();
    one.restore_from(&other);
    one.finish_restore();
    one.begin_generation();
    assert!(one.get("k").is_none(), "the old write does not come back");
    assert_eq!(one.seq(), Seq::new(3));
}
