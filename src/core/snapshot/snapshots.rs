//! The encoded states of a shard: those that are held, those being encoded, and the budget for
//! both.
//!
//! One encoding serves all sessions that want the same state. So clients can use up memory only by
//! requesting the states of many workspaces, or of one workspace at many points in time, without
//! reading them. All encodings share a budget; once it is exhausted, requests are answered with
//! 503.
//!
//! States of at most `step_bytes` together (see [`Snapshots::new`]) are encoded immediately in a
//! turn. A larger one, or one more, would hold up all sessions of the shard, so it is encoded one
//! step per turn while its receivers wait.

use std::collections::VecDeque;
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::fanout::encoded_state::{Chunk, EncodedState};
use crate::core::fanout::room::{Room, RoomId};
use crate::core::snapshot::shared_snapshot::{
    SharedSnapshot, Snapshot, SnapshotKind, SnapshotPart, SnapshotPoint,
};
use crate::core::snapshot::snapshot_budget::SnapshotBudget;
use crate::core::snapshot::state_encoder::{EncodingStep, StateEncoder, encode, part_bytes};
use crate::core::state::workspace::Workspace;
use crate::limits::{
    ANSWER_BYTES_MAX, INIT_BYTES_KEPT_MAX, SNAPSHOT_SEARCH_INTERVAL_US, SNAPSHOTS_SWEPT_PER_TURN,
};
use crate::wire::ProtocolVersion;

/// The encoded states of a shard. Rooms are identified by their slots.
///
/// Invariant: bytes held ≤ budget (for exceptions see [`SnapshotBudget`]), and a room appears in
/// `queue` once for each of its encodings in progress.
pub(in crate::core) struct Snapshots {
    budget: SnapshotBudget,
    /// The total number of bytes that all encodings in progress may write per turn.
    step_bytes: usize,
    /// The number of bytes that were encoded immediately since the last step.
    immediate_bytes: usize,
    /// The rooms that have a snapshot, held or being encoded, and some that used to have one.
    rooms: HashMap<RoomId, RoomSnapshots, FixedState>,
    /// The rooms with encodings in progress, in the order of their turns.
    queue: VecDeque<RoomId>,
    /// The init message that was sent or finished most recently. It is kept so that a session that
    /// joins shortly after its last receiver has finished can reuse it.
    kept_init: Option<Chunk>,
    /// The earliest time of the next search for slow receivers.
    next_search_us: u64,
}

/// The snapshots of one room.
#[derive(Default)]
struct RoomSnapshots {
    shared: SharedSnapshot,
    /// The encodings in progress, oldest first.
    encoders: VecDeque<StateEncoder>,
}

/// The error returned when the budget has no room for a state.
#[derive(Debug, Clone, Copy)]
pub(in crate::core) struct SnapshotShortage {
    /// The number of bytes to encode.
    pub bytes: usize,
    /// The bound on the bytes of all states.
    pub limit_bytes: usize,
}

/// The size of the parts that must be encoded for a snapshot.
struct EncodingNeed {
    bytes: usize,
    /// The number of bytes of the same state that are already held or being encoded.
    shared_bytes: usize,
    /// Whether the shared bytes are still being encoded.
    is_pending: bool,
}

impl Snapshots {
    /// Returns an empty set with a budget of `bytes_max` bytes. States larger than `step_bytes` are
    /// encoded over several turns, `step_bytes` bytes per turn.
    pub fn new(bytes_max: usize, step_bytes: usize) -> Self {
        Self {
            budget: SnapshotBudget::new(bytes_max),
            step_bytes,
            immediate_bytes: 0,
            rooms: HashMap::with_hasher(FixedState::with_seed(0)),
            queue: VecDeque::new(),
            kept_init: None,
            next_search_us: 0,
        }
    }

    /// Removes all rooms and cancels all encodings. States that are being sent to sessions outlive
    /// their rooms, so they still count.
    pub fn reset(&mut self) {
        self.rooms.clear();
        self.queue.clear();
        self.kept_init = None;
        self.budget.release_all();
        self.next_search_us = 0;
    }

    // ---- requests ----

    /// Returns a snapshot of a room, and starts encoding one if none is usable. If the budget has
    /// no room for it, only states that no session holds are evicted.
    pub fn request(
        &mut self,
        slot: RoomId,
        room: &Room,
        kind: SnapshotKind,
    ) -> Result<Snapshot, SnapshotShortage> {
        if let Some(snapshot) = self.at_hand(slot, room, kind) {
            self.keep(&snapshot);
            return Ok(snapshot);
        }
        if !self.has_room_for(slot, room, kind) {
            self.kept_init = None;
            self.budget.sweep_all();
            let need = self.need(slot, room, kind);
            // A state of any size is served if there is no other.
            let is_alone = self.budget.bytes() <= need.shared_bytes;
            if !self.budget.has_room_for(need.bytes) {
                if !is_alone {
                    return Err(SnapshotShortage {
                        bytes: need.bytes,
                        limit_bytes: self.budget.limit_with(need.bytes),
                    });
                }
                self.budget.admit_over(need.bytes);
            }
        }
        Ok(self.encode(slot, room, kind))
    }

    /// Returns a snapshot of a room after a shortage, when slow receivers have been dropped. A
    /// state no larger than the answers that any session may have queued is encoded even if it
    /// exceeds the budget, so that clients of large workspaces do not keep out those of small ones.
    pub fn request_again(
        &mut self,
        slot: RoomId,
        room: &Room,
        kind: SnapshotKind,
    ) -> Result<Snapshot, SnapshotShortage> {
        let need = self.need(slot, room, kind);
        if !self.budget.has_room_for(need.bytes) {
            if need.bytes > ANSWER_BYTES_MAX {
                return Err(SnapshotShortage {
                    bytes: need.bytes,
                    limit_bytes: self.budget.limit_with(need.bytes),
                });
            }
            self.budget.admit_over(need.bytes);
        }
        Ok(self.encode(slot, room, kind))
    }

    fn has_room_for(&self, slot: RoomId, room: &Room, kind: SnapshotKind) -> bool {
        self.budget.has_room_for(self.need(slot, room, kind).bytes)
    }

    fn at_hand(&self, slot: RoomId, room: &Room, kind: SnapshotKind) -> Option<Snapshot> {
        let held = self.rooms.get(&slot)?;
        match kind {
            SnapshotKind::Init => held.init_at_hand(room),
            SnapshotKind::HttpRead => held.read_at_hand(room),
        }
    }

    fn need(&self, slot: RoomId, room: &Room, kind: SnapshotKind) -> EncodingNeed {
        let workspace = &room.workspace;
        let held = self.rooms.get(&slot);
        let is_pending =
            held.is_some_and(|held| held.newest_encoder(room, SnapshotPart::Init).is_some());
        let is_held = is_pending || held.is_some_and(|held| held.newest_init(room).is_some());
        let init_bytes = part_bytes(workspace, SnapshotPart::Init);
        let (bytes, shared_bytes) = if is_held {
            (0, init_bytes)
        } else {
            (init_bytes, 0)
        };
        let timestamps_bytes = match kind {
            SnapshotKind::Init => 0,
            SnapshotKind::HttpRead => part_bytes(workspace, SnapshotPart::Timestamps),
        };
        EncodingNeed {
            bytes: bytes + timestamps_bytes,
            shared_bytes,
            is_pending,
        }
    }

    /// Encodes a snapshot that is not available yet, or starts encoding it.
    fn encode(&mut self, slot: RoomId, room: &Room, kind: SnapshotKind) -> Snapshot {
        let need = self.need(slot, room, kind);
        let is_small = need.bytes <= self.step_bytes.saturating_sub(self.immediate_bytes);
        // A room without state may be removed when its last member leaves, so it must not have an
        // encoding in progress. If the init message is pending, the rest is not encoded
        // immediately, however small it is, because timestamps must not be ready before their init
        // message.
        let snapshot = if room.workspace.is_untouched() || is_small && !need.is_pending {
            self.immediate_bytes += need.bytes;
            self.encode_at_once(slot, room, kind)
        } else {
            self.budget.promise(need.bytes);
            self.begin(slot, room, kind)
        };
        self.keep(&snapshot);
        snapshot
    }

    fn encode_at_once(&mut self, slot: RoomId, room: &Room, kind: SnapshotKind) -> Snapshot {
        let held = self.rooms.get(&slot);
        let shared = held.and_then(|held| held.newest_init(room));
        let init = shared.unwrap_or_else(|| self.encode_part(slot, room, SnapshotPart::Init));
        let timestamps = (kind == SnapshotKind::HttpRead)
            .then(|| self.encode_part(slot, room, SnapshotPart::Timestamps));
        Snapshot {
            point: point_of(room),
            init: EncodedState::Ready(init),
            timestamps: timestamps.map(EncodedState::Ready),
        }
    }

    fn encode_part(&mut self, slot: RoomId, room: &Room, part: SnapshotPart) -> Chunk {
        let chunk = encode(&room.workspace, part);
        let shared = &mut self.room_mut(slot).shared;
        shared.remember(part, point_of(room), &chunk);
        self.budget.add(&chunk);
        chunk
    }

    fn begin(&mut self, slot: RoomId, room: &Room, kind: SnapshotKind) -> Snapshot {
        let held = self.room_mut(slot);
        let before = held.encoders.len();
        let shared = held.newest_init(room).map(EncodedState::Ready);
        let init = shared.unwrap_or_else(|| held.begin_part(room, SnapshotPart::Init));
        let timestamps = (kind == SnapshotKind::HttpRead)
            .then(|| held.begin_part(room, SnapshotPart::Timestamps));
        let begun = held.encoders.len() - before;
        self.queue.extend(std::iter::repeat_n(slot, begun));
        Snapshot {
            point: point_of(room),
            init,
            timestamps,
        }
    }

    fn keep(&mut self, snapshot: &Snapshot) {
        if let Some(init) = snapshot.init.chunk() {
            self.keep_init(init);
        }
    }

    fn keep_init(&mut self, init: &Chunk) {
        if init.len() <= INIT_BYTES_KEPT_MAX {
            self.kept_init = Some(Rc::clone(init));
        }
    }

    // ---- rooms ----

    /// Preserves the states that are being encoded. Must be called before an op with this key and
    /// timestamp is applied.
    pub fn preserve(&mut self, slot: RoomId, workspace: &Workspace, key: &str, timestamp: u64) {
        // In nearly all cases nothing is being encoded, and an op costs only this comparison.
        if self.queue.is_empty() {
            return;
        }
        let held = self.rooms.get_mut(&slot);
        let Some(held) = held.filter(|held| !held.encoders.is_empty()) else {
            return;
        };
        let slot = workspace.slot_of(key);
        if let Some((slot, entry)) = slot.and_then(|slot| Some((slot, workspace.entry(slot)?))) {
            if timestamp <= entry.timestamp() {
                return;
            }
            for encoder in &mut held.encoders {
                encoder.preserve(slot, entry);
            }
        }
    }

    /// Removes a room whose slot may be reused.
    pub fn forget_room(&mut self, slot: RoomId) {
        let held = self.rooms.remove(&slot);
        assert!(
            held.is_none_or(|held| held.encoders.is_empty()),
            "the room exists while its state is being encoded"
        );
    }

    fn room_mut(&mut self, slot: RoomId) -> &mut RoomSnapshots {
        // Each live room has a state that is held or in progress. So the scan is worth its cost: it
        // removes at least half of the rooms in the map.
        let alive_max = self.budget.len() + self.queue.len();
        if !self.rooms.contains_key(&slot) && self.rooms.len() >= 2 * alive_max {
            self.rooms.retain(|_, held| held.is_alive());
        }
        self.rooms.entry(slot).or_default()
    }

    // ---- encodings in progress ----

    /// Returns whether any encoding is in progress.
    pub fn is_encoding(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Continues the encodings in progress until this turn's byte limit is reached. Returns whether
    /// a part was finished, in which case the waiting sessions must be checked.
    pub fn step<'a>(&mut self, workspace_of: impl Fn(RoomId) -> &'a Workspace) -> bool {
        self.immediate_bytes = 0;
        let mut left_bytes = self.step_bytes;
        let mut is_any_finished = false;
        while left_bytes > 0
            && let Some(slot) = self.queue.pop_front()
        {
            let step = self.step_room(slot, workspace_of(slot), left_bytes);
            left_bytes = left_bytes.saturating_sub(step.bytes);
            is_any_finished |= step.finished.is_some();
        }
        is_any_finished
    }

    /// Continues the oldest encoding of a room, and requeues the room if the encoding is not
    /// finished.
    fn step_room(&mut self, slot: RoomId, workspace: &Workspace, bytes_max: usize) -> EncodingStep {
        let held = self.rooms.get_mut(&slot).expect("a queued room exists");
        let encoder = held.encoders.pop_front();
        let mut encoder = encoder.expect("a queued room is being encoded");
        let pending_bytes = encoder.pending_bytes();
        let mut step = EncodingStep::default();
        if encoder.is_wanted() {
            step = encoder.step(workspace, bytes_max);
        }
        if let Some((part, chunk)) = &step.finished {
            held.shared.remember(*part, encoder.point(), chunk);
        }
        let mut still_pending_bytes = 0;
        if !encoder.is_done() && encoder.is_wanted() {
            still_pending_bytes = encoder.pending_bytes();
            held.encoders.push_front(encoder);
            self.queue.push_back(slot);
        }
        self.budget.release(pending_bytes - still_pending_bytes);
        if let Some((part, chunk)) = &step.finished {
            self.budget.add(chunk);
            if *part == SnapshotPart::Init {
                self.keep_init(chunk);
            }
        }
        step
    }

    // ---- the budget ----

    /// Returns the number of bytes that count against the budget.
    pub fn bytes(&self) -> usize {
        self.budget.bytes()
    }

    /// Stops counting some of the released states. Returns the number of bytes that are being
    /// encoded or sent.
    pub fn sweep(&mut self) -> usize {
        self.budget.sweep(SNAPSHOTS_SWEPT_PER_TURN);
        let kept = self.kept_init.as_ref();
        let idle = kept.filter(|init| Rc::strong_count(init) == 1);
        self.budget.bytes() - idle.map_or(0, |init| init.len())
    }

    /// Returns whether slow receivers may be searched for. A search visits every session, so after
    /// one that freed too little, the next must wait a while.
    pub fn may_search(&self, now_us: u64) -> bool {
        now_us >= self.next_search_us
    }

    /// Records that a search freed too little.
    pub fn searched_in_vain(&mut self, now_us: u64) {
        self.next_search_us = now_us + SNAPSHOT_SEARCH_INTERVAL_US;
    }

    /// Abandons a room's state whose receivers were all aborted. It no longer counts, so it must
    /// not be sent to any other session.
    pub fn give_up(&mut self, slot: RoomId, chunk: &Chunk) {
        self.budget.write_off(chunk);
        if let Some(held) = self.rooms.get_mut(&slot) {
            held.shared.forget(chunk);
        }
    }

    #[cfg(test)]
    pub fn kept_init(&self) -> Option<&Chunk> {
        self.kept_init.as_ref()
    }

    #[cfg(test)]
    pub fn set_step_bytes(&mut self, step_bytes: usize) {
        self.step_bytes = step_bytes;
    }

    /// Checks the invariants.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn invariants(&self) {
        let mut pending_bytes = 0;
        for (slot, held) in &self.rooms {
            let queued = self.queue.iter().filter(|queued| *queued == slot);
            assert_eq!(
                queued.count(),
                held.encoders.len(),
                "a room is queued more often than it has encodings"
            );
            for encoder in &held.encoders {
                assert!(!encoder.is_done(), "a finished encoder is still queued");
                pending_bytes += encoder.pending_bytes();
            }
        }
        let is_known = |slot: &RoomId| self.rooms.contains_key(slot);
        assert!(self.queue.iter().all(is_known), "a queued room exists");
        self.budget.invariants(pending_bytes);
    }
}

impl RoomSnapshots {
    fn is_alive(&self) -> bool {
        self.shared.is_held() || !self.encoders.is_empty()
    }

    fn init_at_hand(&self, room: &Room) -> Option<Snapshot> {
        let shared = self.shared.init().map(EncodedState::Ready);
        let shared = shared.map(|init| (self.shared.point(), init));
        let pending = self.encoders.iter().rev().filter_map(|encoder| {
            let init = encoder.pending(SnapshotPart::Init)?;
            Some((encoder.point(), init))
        });
        let mut all = shared.into_iter().chain(pending);
        let (point, init) = all.find(|(point, init)| is_init_usable(room, *point, init.bytes()))?;
        // The newest state may be older than the window, which starts over with its first member.
        let is_newest = is_newest(room, point);
        let point = if is_newest { point_of(room) } else { point };
        Some(Snapshot {
            point,
            init,
            timestamps: None,
        })
    }

    fn read_at_hand(&self, room: &Room) -> Option<Snapshot> {
        let (init, timestamps) = if let Some(init) = self.newest_init(room) {
            let shared = self.shared.timestamps().map(EncodedState::Ready);
            let part = SnapshotPart::Timestamps;
            let pending = || self.newest_encoder(room, part)?.pending(part);
            (EncodedState::Ready(init), shared.or_else(pending)?)
        } else {
            // Both must come from the same encoder: another encoder's timestamps might be ready
            // before this one's init message.
            let encoder = self.newest_encoder(room, SnapshotPart::Init)?;
            let timestamps = encoder.pending(SnapshotPart::Timestamps)?;
            (encoder.pending(SnapshotPart::Init)?, timestamps)
        };
        Some(Snapshot {
            point: point_of(room),
            init,
            timestamps: Some(timestamps),
        })
    }

    /// Returns the init message of the newest state, if any session holds it.
    fn newest_init(&self, room: &Room) -> Option<Chunk> {
        let is_newest = is_newest(room, self.shared.point());
        self.shared.init().filter(|_| is_newest)
    }

    /// Returns the encoder that will produce this part of the newest state.
    fn newest_encoder(&self, room: &Room, part: SnapshotPart) -> Option<&StateEncoder> {
        let mut newest_first = self.encoders.iter().rev();
        newest_first
            .find(|encoder| is_newest(room, encoder.point()) && encoder.pending(part).is_some())
    }

    /// Starts encoding a part of the newest state, using the encoder of its init message if that is
    /// still running.
    fn begin_part(&mut self, room: &Room, part: SnapshotPart) -> EncodedState {
        let newest_first = self.encoders.iter_mut().rev();
        let mut of_newest_init = newest_first
            .filter(|encoder| is_newest(room, encoder.point()))
            .filter(|encoder| encoder.pending(SnapshotPart::Init).is_some());
        if let Some(encoder) = of_newest_init.next() {
            if encoder.pending(part).is_none() {
                encoder.add_timestamps(&room.workspace);
            }
            return encoder.pending(part).expect("the room was just added");
        }
        let encoder = StateEncoder::begin(&room.workspace, point_of(room), part);
        let pending = encoder.pending(part).expect("the encoding has just begun");
        self.encoders.push_back(encoder);
        pending
    }
}

/// Returns the point after the last op of a room.
fn point_of(room: &Room) -> SnapshotPoint {
    SnapshotPoint {
        seq: room.workspace.seq(),
        at: room.window_end(ProtocolVersion::V1),
        visible_from: room.visible_from(),
    }
}

fn is_newest(room: &Room, point: SnapshotPoint) -> bool {
    point.seq == room.workspace.seq()
}

/// Returns whether an init message of `bytes` bytes, of the state at `point`, is usable for a
/// session that joins now. The newest message always is. An older one is usable as long as all
/// later frames are still in the window and their total length is at most half that of the message.
fn is_init_usable(room: &Room, point: SnapshotPoint, bytes: usize) -> bool {
    let version = ProtocolVersion::V1;
    let is_cheap = room.window_start(version).is_some_and(|start| {
        // The window of a room without members misses ops, and a window that starts over begins
        // later.
        point.at >= start && room.window_end(version).bytes_since(point.at) <= bytes / 2
    });
    is_newest(room, point) || is_cheap
}

#[cfg(test)]
mod tests;
