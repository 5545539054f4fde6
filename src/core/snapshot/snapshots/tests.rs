//! The snapshots of a room, compared with the state at each point encoded in one piece.

use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::core::fanout::room::ShownOp;
use crate::core::fanout::window::WindowPool;
use crate::core::state::workspace::{Edit, Source, Verdict};
use crate::log::position::LogPosition;
use crate::log::record::Change;
use crate::seq::Seq;
use crate::wire::ProtocolVersion::V1;
use crate::wire::message;

const STATE_BYTES: usize = 2000;
const BUDGET_BYTES: usize = 1 << 30;
const SLOT: usize = 3;

/// A room and the snapshots of its shard.
struct RoomRig {
    room: Room,
    pool: WindowPool,
    snapshots: Snapshots,
}

impl RoomRig {
    fn new(step_bytes: usize) -> Self {
        let (mut room, mut pool) = (Room::new(Workspace::new("w", 1)), WindowPool::default());
        room.open_feed(V1, &mut pool);
        room.add_member(V1, 0);
        Self {
            room,
            pool,
            snapshots: Snapshots::new(BUDGET_BYTES, step_bytes),
        }
    }

    fn write(&mut self, key: &str, value: &str) {
        let timestamp = self.room.workspace.seq().next().get();
        assert!(self.op(key, value, timestamp));
    }

    /// Applies an op and returns whether it won.
    fn op(&mut self, key: &str, value: &str, timestamp: u64) -> bool {
        let Self {
            room,
            pool,
            snapshots,
        } = self;
        snapshots.preserve(RoomId::new(SLOT), &room.workspace, key, timestamp);
        let source = Source { writer: 0, mark: 0 };
        let workspace = &mut room.workspace;
        let change = Change::write(value);
        let edit = Edit {
            key,
            change,
            timestamp,
            if_timestamp: None,
        };
        let verdict = workspace.apply_within(u64::MAX, &edit, source);
        let is_won = matches!(verdict, Verdict::Won { .. });
        if is_won {
            let position = LogPosition::new(workspace.seq().get() * 10);
            let shown = ShownOp {
                key,
                value: Some(value),
                timestamp,
            };
            room.broadcast(shown, position, pool);
        }
        is_won
    }

    fn request(&mut self, kind: SnapshotKind) -> Snapshot {
        let snapshot = self.snapshots.request(RoomId::new(SLOT), &self.room, kind);
        self.snapshots.invariants();
        snapshot.expect("the budget is large")
    }
}

fn is_same(one: &EncodedState, other: &EncodedState) -> bool {
    Rc::ptr_eq(one.chunk().unwrap(), other.chunk().unwrap())
}

#[test]
fn states_that_are_encoded_immediately_are_limited_together() {
    let mut rig = RoomRig::new(2 * STATE_BYTES + 500);
    rig.write("k", &"1".repeat(STATE_BYTES));
    let mut snapshots = Vec::new();
    for turn in [0, 10] {
        for (number, is_immediate) in [(0, true), (1, true), (2, false), (3, false)] {
            let slot = RoomId::new(turn + number);
            let snapshot = rig.snapshots.request(slot, &rig.room, SnapshotKind::Init);
            let snapshot = snapshot.expect("the budget is large");
            assert_eq!(snapshot.init.chunk().is_some(), is_immediate, "{slot:?}");
            snapshots.push(snapshot);
        }
        let workspace = &rig.room.workspace;
        assert!(rig.snapshots.step(|_| workspace), "the others follow");
        rig.snapshots.invariants();
        let all = snapshots.iter();
        assert!(
            all.map(|snapshot| snapshot.init.chunk())
                .all(|chunk| chunk.is_some())
        );
    }
}

#[test]
fn one_init_encoding_serves_all_joins_while_that_is_cheap() {
    let frame_fixed_bytes = message::op_frame_bytes("k", &"1".repeat(500), 3) - 500;
    // Each case: the length of the frames written since, relative to half of the init message;
    // whether the window still holds them; and whether the encoding is still shared.
    for (over_half_bytes, is_kept, is_shared) in [
        (None, true, true),
        (None, false, true),
        (Some(-400), true, true),
        (Some(-400), false, false),
        (Some(0), true, true),
        (Some(1), true, false),
    ] {
        let mut rig = RoomRig::new(usize::MAX);
        rig.write("j", "1");
        rig.write("k", &"1".repeat(STATE_BYTES));
        let first = rig.request(SnapshotKind::Init);
        assert_eq!(
            (first.point.at, first.point.visible_from),
            (rig.room.window_end(V1), LogPosition::new(20))
        );
        if let Some(over_half_bytes) = over_half_bytes {
            let frame_bytes = (first.init.bytes() / 2).strict_add_signed(over_half_bytes);
            let value = "1".repeat(frame_bytes - frame_fixed_bytes);
            rig.write("k", &value);
            let since = rig.room.window_end(V1).bytes_since(first.point.at);
            assert_eq!(since, frame_bytes);
        }
        if !is_kept {
            let end = rig.room.window_end(V1);
            rig.room.feed_mut(V1).window.drop_before(end, &mut rig.pool);
        }
        let second = rig.request(SnapshotKind::Init);
        let case = format!("{over_half_bytes:?} {is_kept}");
        assert_eq!(is_same(&first.init, &second.init), is_shared, "{case}");
        let expected = if is_shared {
            (first.point.at, first.point.visible_from)
        } else {
            (rig.room.window_end(V1), LogPosition::new(30))
        };
        assert_eq!(
            (second.point.at, second.point.visible_from),
            expected,
            "{case}"
        );
    }
}

#[test]
fn an_init_message_that_no_session_holds_is_released() {
    let mut rig = RoomRig::new(usize::MAX);
    rig.write("k", &"1".repeat(INIT_BYTES_KEPT_MAX));
    let first = Rc::downgrade(rig.request(SnapshotKind::Init).init.chunk().unwrap());
    assert!(first.upgrade().is_none());
    // A shorter one is kept for the next session, but only one for all rooms.
    rig.write("k", "1");
    let second = Rc::downgrade(rig.request(SnapshotKind::Init).init.chunk().unwrap());
    assert!(second.upgrade().is_some());
    let other = Room::new(Workspace::new("v", 1));
    let other_init = rig
        .snapshots
        .request(RoomId::new(9), &other, SnapshotKind::Init);
    assert!(second.upgrade().is_none());
    let other_init = other_init.ok().unwrap().init;
    assert!(other_init.chunk().unwrap().ends_with(b"{}}"));
}

#[test]
fn an_http_read_is_the_newest_state_and_shares_held_chunks() {
    let mut rig = RoomRig::new(usize::MAX);
    rig.write("j", &"1".repeat(STATE_BYTES));
    let joined = rig.request(SnapshotKind::Init);
    assert!(joined.timestamps.is_none());
    let first = rig.request(SnapshotKind::HttpRead);
    assert!(is_same(&first.init, &joined.init));
    let second = rig.request(SnapshotKind::HttpRead);
    assert!(is_same(&second.init, &joined.init));
    let timestamps = [first, second].map(|read| read.timestamps.unwrap());
    assert!(is_same(&timestamps[0], &timestamps[1]));
    assert!(
        timestamps[0]
            .chunk()
            .unwrap()
            .starts_with(br#"},"timestamps":{"j":1},"seq":1"#)
    );
    rig.write("k", "1");
    let newest = rig.request(SnapshotKind::HttpRead);
    assert!(!is_same(&newest.init, &joined.init), "one op is missing");
    assert_eq!(
        (newest.point.at, newest.point.visible_from),
        (rig.room.window_end(V1), LogPosition::new(20))
    );
    // A session that joins is also sent the newest state.
    let again = rig.request(SnapshotKind::Init);
    assert!(is_same(&newest.init, &again.init));
}

#[test]
fn rooms_whose_snapshots_nobody_holds_are_forgotten() {
    let mut snapshots = Snapshots::new(BUDGET_BYTES, usize::MAX);
    let rooms: Vec<Room> = (0..1000)
        .map(|number| Room::new(Workspace::new(&format!("w{number}"), 1)))
        .collect();
    let kept = snapshots
        .request(RoomId::new(0), &rooms[0], SnapshotKind::Init)
        .ok();
    for (slot, room) in (1..).zip(&rooms[1..]) {
        assert!(
            snapshots
                .request(RoomId::new(slot), room, SnapshotKind::Init)
                .is_ok()
        );
        snapshots.sweep();
    }
    assert!(snapshots.rooms.len() < 20, "{}", snapshots.rooms.len());
    let again = snapshots
        .request(RoomId::new(0), &rooms[0], SnapshotKind::Init)
        .ok();
    assert!(is_same(&kept.unwrap().init, &again.unwrap().init));
    snapshots.invariants();
    snapshots.reset();
    snapshots.invariants();
    assert!(snapshots.rooms.is_empty());
}

// ---- encoding in steps ----

/// Returns the JSON of an init message, without the header of its frame.
fn init_json(bytes: &[u8]) -> Value {
    let start = bytes.windows(7).position(|at| at == b"{\"type\"").unwrap();
    serde_json::from_slice(&bytes[start..]).unwrap()
}

/// Returns encoded timestamps as valid JSON.
fn timestamps_json(bytes: &[u8]) -> Value {
    let text = str::from_utf8(bytes).unwrap();
    serde_json::from_str(&format!(r#"{{"data":{{{text}0}}"#)).unwrap()
}

#[derive(Debug, Clone)]
enum SnapshotAction {
    /// The key, the length of the value, and an offset that is added to the timestamp.
    Op(u8, usize, i64),
    Request(SnapshotKind),
    Step(usize),
    /// One of the waiting sessions leaves.
    Leave(usize),
}

fn actions() -> impl Strategy<Value = Vec<SnapshotAction>> {
    let kind = prop_oneof![Just(SnapshotKind::Init), Just(SnapshotKind::HttpRead)];
    let action = prop_oneof![
        6 => (0..12_u8, 1..40_usize, -2..5_i64)
            .prop_map(|(key, bytes, ahead)| SnapshotAction::Op(key, bytes, ahead)),
        3 => kind.prop_map(SnapshotAction::Request),
        6 => (1..60_usize).prop_map(SnapshotAction::Step),
        1 => any::<usize>().prop_map(SnapshotAction::Leave),
    ];
    prop::collection::vec(action, 0..120)
}

/// A room whose state is always encoded in steps, and its state at each point.
struct StepwiseRig {
    rig: RoomRig,
    /// The init message and the timestamps at each point, by seq.
    states: HashMap<Seq, (Value, Value)>,
    waiting: Vec<Snapshot>,
}

impl StepwiseRig {
    fn new() -> Self {
        let mut rig = Self {
            rig: RoomRig::new(0),
            states: HashMap::new(),
            waiting: Vec::new(),
        };
        rig.note();
        rig
    }

    fn note(&mut self) {
        let workspace = &self.rig.room.workspace;
        let init = encode(workspace, SnapshotPart::Init);
        let timestamps = encode(workspace, SnapshotPart::Timestamps);
        let state = (init_json(&init), timestamps_json(&timestamps));
        self.states.insert(workspace.seq(), state);
    }

    fn op(&mut self, key: u8, bytes: usize, ahead: i64) {
        let (key, value) = (format!("k{key}"), "1".repeat(bytes.min(18)));
        let seq = self.rig.room.workspace.seq().get();
        let timestamp = (seq + 10).saturating_add_signed(ahead);
        if self.rig.op(&key, &value, timestamp) {
            self.note();
        }
    }

    fn request(&mut self, kind: SnapshotKind) {
        let snapshot = self.rig.request(kind);
        let room = &self.rig.room;
        if kind == SnapshotKind::HttpRead {
            assert_eq!(snapshot.point.seq, room.workspace.seq());
            assert!(snapshot.timestamps.is_some());
        }
        assert_eq!(
            snapshot.point.visible_from.get(),
            snapshot.point.seq.get() * 10
        );
        let seq = room.feed(V1).window.seq_at(snapshot.point.at);
        assert_eq!(snapshot.point.seq, seq, "the later frames follow");
        self.waiting.push(snapshot);
        self.check();
    }

    fn step(&mut self, bytes_max: usize) {
        let RoomRig {
            room, snapshots, ..
        } = &mut self.rig;
        if let Some(slot) = snapshots.queue.pop_front() {
            let step = snapshots.step_room(slot, &room.workspace, bytes_max);
            assert!(
                step.bytes < bytes_max + 60,
                "more than one extra field was encoded"
            );
        }
        snapshots.invariants();
        self.check();
    }

    /// Checks everything that is ready, and removes the sessions whose snapshots are complete.
    fn check(&mut self) {
        let (is_encoding, states) = (self.rig.snapshots.is_encoding(), &self.states);
        self.waiting.retain(|snapshot| {
            let (init, timestamps) = &states[&snapshot.point.seq];
            let ready = snapshot.init.chunk().map(|ready| init_json(ready));
            assert!(ready.as_ref().is_none_or(|ready| ready == init));
            let ready_timestamps = snapshot.timestamps.as_ref().map(EncodedState::chunk);
            if let Some(Some(ready_timestamps)) = ready_timestamps {
                assert!(ready.is_some(), "the init message is not ready first");
                assert_eq!(&timestamps_json(ready_timestamps), timestamps);
            }
            let is_complete = ready.is_some() && ready_timestamps != Some(None);
            assert!(is_complete || is_encoding, "the state is being encoded");
            !is_complete
        });
    }
}

#[test]
fn an_http_read_may_be_dropped_between_its_init_message_and_its_timestamps() {
    let mut rig = StepwiseRig::new();
    rig.op(0, 1, 0);
    rig.request(SnapshotKind::HttpRead);
    // The init message is ready, but the timestamps are not. Then the session leaves, and the init
    // message is dropped with it.
    rig.step(100);
    rig.waiting.clear();
    rig.rig.snapshots.kept_init = None;
    rig.request(SnapshotKind::Init);
    rig.request(SnapshotKind::HttpRead);
    while rig.rig.snapshots.is_encoding() {
        rig.step(100);
    }
    assert!(rig.waiting.is_empty());
}

proptest! {
    #[test]
    fn a_state_encoded_in_steps_is_from_one_point_in_time(
        actions in actions(),
        is_init_kept in any::<bool>(),
    ) {
        let mut rig = StepwiseRig::new();
        for action in actions {
            match action {
                SnapshotAction::Op(key, bytes, ahead) => rig.op(key, bytes, ahead),
                SnapshotAction::Request(kind) => rig.request(kind),
                SnapshotAction::Step(bytes_max) => rig.step(bytes_max),
                SnapshotAction::Leave(place) if !rig.waiting.is_empty() => {
                    rig.waiting.swap_remove(place % rig.waiting.len());
                }
                SnapshotAction::Leave(_) => {}
            }
            if !is_init_kept {
                rig.rig.snapshots.kept_init = None;
            }
        }
        while rig.rig.snapshots.is_encoding() {
            rig.step(1000);
        }
        rig.step(1000);
        prop_assert!(rig.waiting.is_empty());
    }
}
