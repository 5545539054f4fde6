//! A room's texts against those of one step.

use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const STATE_BYTES: usize = 2000;

fn write(room: &mut Room, pool: &mut ChunkPool, key: &str, value: &str) {
    let timestamp = room.workspace.seq() + 1;
    room.workspace.apply(key, value, timestamp, 0);
    let position = LogPosition::new(timestamp * 10);
    room.broadcast(key, value, timestamp, position, pool);
}

fn is_same(one: &Text, other: &Text) -> bool {
    Rc::ptr_eq(one.chunk().unwrap(), other.chunk().unwrap())
}

fn texts(room: &mut Room, wanted: Wanted) -> Texts {
    let at_hand = room.texts_at_hand(wanted);
    at_hand.unwrap_or_else(|| room.encode_texts(wanted))
}

#[test]
fn one_encoding_of_init_serves_all_who_join_while_it_is_cheap() {
    let frame_fixed_bytes = message::op_frame_bytes("k", &"1".repeat(500), 3) - 500;
    // What was written since, as frame bytes beyond half of the init message; whether the
    // window still has it; whether the encoding is still good.
    for (over_half_bytes, is_kept, is_shared) in [
        (None, true, true),
        (None, false, true),
        (Some(-400), true, true),
        (Some(-400), false, false),
        (Some(0), true, true),
        (Some(1), true, false),
    ] {
        let mut pool = ChunkPool::default();
        let mut room = Room::new(Workspace::new("w", 1));
        write(&mut room, &mut pool, "j", "1");
        write(&mut room, &mut pool, "k", &"1".repeat(STATE_BYTES));
        let first = texts(&mut room, Wanted::Init);
        assert_eq!(
            (first.point.at, first.point.gate),
            (room.window.end(), LogPosition::new(20))
        );
        if let Some(over_half_bytes) = over_half_bytes {
            let frame_bytes = (first.init.bytes() / 2).strict_add_signed(over_half_bytes);
            let value = "1".repeat(frame_bytes - frame_fixed_bytes);
            write(&mut room, &mut pool, "k", &value);
            assert_eq!(room.window.end().bytes_since(first.point.at), frame_bytes);
        }
        if !is_kept {
            room.window.drop_before(room.window.end(), &mut pool);
        }
        let second = texts(&mut room, Wanted::Init);
        let case = format!("{over_half_bytes:?} {is_kept}");
        assert_eq!(is_same(&first.init, &second.init), is_shared, "{case}");
        let expected = if is_shared {
            (first.point.at, first.point.gate)
        } else {
            (room.window.end(), LogPosition::new(30))
        };
        assert_eq!((second.point.at, second.point.gate), expected, "{case}");
    }
}

#[test]
fn an_init_that_is_on_its_way_to_nobody_is_let_go() {
    let mut room = Room::new(Workspace::new("w", 1));
    let first = Rc::downgrade(texts(&mut room, Wanted::Init).init.chunk().unwrap());
    assert!(first.upgrade().is_none());
    let second = texts(&mut room, Wanted::Init);
    assert!(second.init.chunk().unwrap().ends_with(b"{}}"));
}

#[test]
fn a_look_is_the_newest_state_and_shares_what_is_on_its_way() {
    let mut pool = ChunkPool::default();
    let mut room = Room::new(Workspace::new("w", 1));
    write(&mut room, &mut pool, "j", &"1".repeat(STATE_BYTES));
    let joined = texts(&mut room, Wanted::Init);
    assert!(joined.stamps.is_none());
    let first = texts(&mut room, Wanted::ReadTarget);
    assert!(is_same(&first.init, &joined.init));
    let second = texts(&mut room, Wanted::ReadTarget);
    assert!(is_same(&second.init, &joined.init));
    let stamps = [first, second].map(|look| look.stamps.unwrap());
    assert!(is_same(&stamps[0], &stamps[1]));
    assert!(
        stamps[0]
            .chunk()
            .unwrap()
            .starts_with(br#"},"timestamps":{"j":1},"seq":1"#)
    );
    write(&mut room, &mut pool, "k", "1");
    let newest = texts(&mut room, Wanted::ReadTarget);
    assert!(!is_same(&newest.init, &joined.init), "one op is missing");
    assert_eq!(
        (newest.point.at, newest.point.gate),
        (room.window.end(), LogPosition::new(20))
    );
    // Who joins takes the newest too.
    let again = texts(&mut room, Wanted::Init);
    assert!(is_same(&newest.init, &again.init));
}

// ---- in parts ----

/// The JSON of an init message without its frame's header.
fn init_json(bytes: &[u8]) -> Value {
    let start = bytes.windows(7).position(|at| at == b"{\"type\"").unwrap();
    serde_json::from_slice(&bytes[start..]).unwrap()
}

/// The JSON of stamps.
fn stamps_json(bytes: &[u8]) -> Value {
    let text = str::from_utf8(bytes).unwrap();
    serde_json::from_str(&format!(r#"{{"data":{{{text}0}}"#)).unwrap()
}

#[derive(Debug, Clone)]
enum Action {
    /// The key, the length of the value, how far the timestamp is ahead of the last one.
    Op(u8, usize, i64),
    Want(bool),
    Part(usize),
    /// One of those who wait goes.
    Leave(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => (0..12_u8, 1..40_usize, -2..5_i64).prop_map(|(key, bytes, ahead)| Action::Op(key, bytes, ahead)),
        3 => any::<bool>().prop_map(Action::Want),
        6 => (1..60_usize).prop_map(Action::Part),
        1 => any::<usize>().prop_map(Action::Leave),
    ];
    prop::collection::vec(action, 0..120)
}

/// A room, its texts in one step at each point, and what was asked of it.
struct Rig {
    room: Room,
    pool: ChunkPool,
    /// By seq.
    states: HashMap<u64, (Value, Value)>,
    waiting: Vec<Texts>,
    /// Encodings that the shard knows of.
    queued: usize,
    promised_bytes: usize,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            room: Room::new(Workspace::new("w", 1)),
            pool: ChunkPool::default(),
            states: HashMap::new(),
            waiting: Vec::new(),
            queued: 0,
            promised_bytes: 0,
        };
        rig.note();
        rig
    }

    fn note(&mut self) {
        let workspace = &self.room.workspace;
        let (init, stamps) = (
            encode(workspace, Part::Init),
            encode(workspace, Part::Stamps),
        );
        let state = (init_json(&init), stamps_json(&stamps));
        self.states.insert(workspace.seq(), state);
    }

    fn op(&mut self, key: u8, bytes: usize, ahead: i64) {
        let seq = self.room.workspace.seq();
        let (key, value) = (format!("k{key}"), "1".repeat(bytes.min(18)));
        let timestamp = (seq + 10).saturating_add_signed(ahead);
        let source = Source { writer: 0, mark: 0 };
        let verdict = self
            .room
            .apply_within(u64::MAX, &key, &value, timestamp, source);
        if matches!(verdict, Verdict::Won { .. }) {
            let position = LogPosition::new((seq + 1) * 10);
            self.room
                .broadcast(&key, &value, timestamp, position, &mut self.pool);
            self.note();
        }
    }

    fn want(&mut self, wanted: Wanted) {
        let texts = self.room.texts_at_hand(wanted).unwrap_or_else(|| {
            let missing = self.room.texts_missing(wanted);
            let (texts, is_more) = self.room.begin_texts(wanted);
            let stamps_bytes = texts.stamps.as_ref().map_or(0, Text::bytes);
            assert_eq!(
                missing.bytes + missing.held_bytes,
                texts.init.bytes() + stamps_bytes
            );
            self.queued += usize::from(is_more);
            self.promised_bytes += missing.bytes;
            texts
        });
        if wanted == Wanted::ReadTarget {
            assert_eq!(texts.point.seq, self.room.workspace.seq());
            assert!(texts.stamps.is_some());
        }
        assert_eq!(texts.point.gate.get(), texts.point.seq * 10);
        let seq = self.room.window.seq_at(texts.point.at);
        assert_eq!(texts.point.seq, seq, "the frames behind it follow");
        self.waiting.push(texts);
    }

    fn part(&mut self, bytes_max: usize) {
        let progress = self.room.encode_part(bytes_max);
        assert!(progress.step.bytes < bytes_max + 60, "a field more at most");
        self.promised_bytes -= progress.released_bytes;
        if self.queued > 0 && !progress.goes_on {
            self.queued -= 1;
        }
        assert_eq!(self.queued, self.room.encodings.len());
        let promised_bytes: usize = self.room.encodings.iter().map(Encoding::bytes).sum();
        assert_eq!(self.promised_bytes, promised_bytes);
        let (room, states) = (&self.room, &self.states);
        self.waiting.retain(|texts| {
            let (init, stamps) = &states[&texts.point.seq];
            let told = texts.init.chunk().map(|told| init_json(told));
            assert!(told.as_ref().is_none_or(|told| told == init));
            let told_stamps = texts.stamps.as_ref().map(Text::chunk);
            if let Some(Some(told_stamps)) = told_stamps {
                assert!(told.is_some(), "the state comes first");
                assert_eq!(&stamps_json(told_stamps), stamps);
            }
            let is_whole = told.is_some() && told_stamps != Some(None);
            assert!(is_whole || !room.encodings.is_empty(), "it is written");
            !is_whole
        });
    }
}

#[test]
fn of_a_look_the_state_is_whole_before_its_timestamps() {
    let mut rig = Rig::new();
    rig.op(0, 1, 0);
    rig.want(Wanted::ReadTarget);
    // Its init message is whole, then it is gone, and so is that message; its timestamps are not written to their end.
    rig.part(100);
    rig.waiting.clear();
    rig.want(Wanted::Init);
    rig.want(Wanted::ReadTarget);
    while !rig.room.encodings.is_empty() {
        rig.part(100);
    }
    assert!(rig.waiting.is_empty());
}

proptest! {
    #[test]
    fn a_state_in_parts_is_that_of_one_point(actions in actions()) {
        let mut rig = Rig::new();
        for action in actions {
            match action {
                Action::Op(key, bytes, ahead) => rig.op(key, bytes, ahead),
                Action::Want(true) => rig.want(Wanted::ReadTarget),
                Action::Want(false) => rig.want(Wanted::Init),
                Action::Part(bytes_max) => rig.part(bytes_max),
                Action::Leave(place) if !rig.waiting.is_empty() => {
                    rig.waiting.swap_remove(place % rig.waiting.len());
                }
                Action::Leave(_) => {}
            }
        }
        while !rig.room.encodings.is_empty() {
            rig.part(1000);
        }
        rig.part(1000);
        prop_assert!(rig.waiting.is_empty());
        prop_assert_eq!(rig.promised_bytes, 0);
    }
}
