//! The memory that a shard holds for individual sessions: incomplete messages and request heads,
//! and answers until their last byte is sent.
//!
//! One budget covers all of this memory, so no client can use memory that is not counted. Bytes
//! that are sent to several sessions, such as a correction or a list of users, count once while
//! they are alive. Each session is exempt up to [`SESSION_BYTES_SPARED`], and a session that holds
//! no more than that is never evicted, so other clients cannot affect a client that sends only
//! small messages.
//!
//! When the budget is exceeded, [`SessionBudget::next_to_evict`] returns the session to evict.
//! Sessions are grouped into size classes, each twice the size of the one below. The largest class
//! comes first, and within it the session that has been in the class longest. The choice is
//! therefore deterministic, and costs the same for ten sessions as for ten thousand.
//!
//! The memory of a connection that was shut down is freed once the kernel has ended its send. Until
//! then it is *being freed*: it does not count, and no other session is evicted because of it.

use std::rc::{Rc, Weak};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::fanout::room::RoomId;
use crate::core::fanout::shared_chunks::SharedChunks;
use crate::core::fanout::window::Chunk;
use crate::limits::{CONFLATED_BYTES_MAX, SESSION_BYTES_SPARED};
use crate::seq::Seq;
use crate::wire::ProtocolVersion;

/// The link that marks the end of a list.
const NONE: u32 = u32::MAX;
/// The number of size classes, one for each bit length of a size.
const SIZE_CLASSES: usize = usize::BITS as usize + 1;

/// The memory that a session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SessionMemory {
    /// Memory that only this session holds.
    pub own_bytes: usize,
    /// Memory that other sessions may also hold.
    pub shared_bytes: usize,
    /// The part of the memory that is unused capacity. It counts, but does not move the session to
    /// a larger class. Otherwise, the session of a growing message, whose buffer doubles, would be
    /// evicted before that of a message of the same length that has stopped growing.
    pub spare_bytes: usize,
    /// Whether the connection was shut down.
    pub is_being_freed: bool,
}

impl SessionMemory {
    fn bytes(self) -> usize {
        self.own_bytes + self.shared_bytes
    }

    /// Returns whether the session holds so little that it is never evicted and need not be
    /// tracked.
    pub fn is_exempt(self) -> bool {
        self.bytes() <= SESSION_BYTES_SPARED
    }

    fn charged_bytes(self) -> usize {
        if self.is_being_freed {
            return 0;
        }
        self.own_bytes.saturating_sub(SESSION_BYTES_SPARED)
    }

    /// Returns the shared bytes that do not count because they are being freed.
    fn freed_shared_bytes(self) -> usize {
        if self.is_being_freed && !self.is_exempt() {
            self.shared_bytes
        } else {
            0
        }
    }

    fn size_class(self) -> usize {
        let used_bytes = self.bytes() - self.spare_bytes;
        (usize::BITS - used_bytes.leading_zeros()) as usize
    }

    fn may_be_evicted(self) -> bool {
        !self.is_being_freed && !self.is_exempt()
    }
}

/// A session that holds more than the exempt amount, with links to its neighbours in the list of
/// its size class.
#[derive(Debug, Clone, Copy)]
struct TrackedSession {
    memory: SessionMemory,
    older: u32,
    newer: u32,
}

impl TrackedSession {
    const EMPTY: Self = Self {
        memory: SessionMemory {
            own_bytes: 0,
            shared_bytes: 0,
            spare_bytes: 0,
            is_being_freed: false,
        },
        older: NONE,
        newer: NONE,
    };
}

/// The sessions of a size class, in the order in which they entered it.
#[derive(Debug, Clone, Copy)]
struct SizeClass {
    oldest: u32,
    newest: u32,
}

impl SizeClass {
    const EMPTY: Self = Self {
        oldest: NONE,
        newest: NONE,
    };
}

/// The key of a frame that is sent to several sessions: the id of its room and the seq of its
/// entry.
pub(super) type SharedFrameKey = (RoomId, Seq, ProtocolVersion);

/// The budget of a shard's sessions.
///
/// Invariant: `charged_bytes` is the sum over all tracked sessions, and a session is in the list of
/// its size class if and only if it may be evicted.
pub(super) struct SessionBudget {
    bytes_max: usize,
    /// The tracked sessions, indexed by slot.
    tracked: Vec<TrackedSession>,
    size_classes: [SizeClass; SIZE_CLASSES],
    charged_bytes: usize,
    /// The memory of the incomplete messages and heads of all sessions.
    unfinished_bytes: usize,
    /// An upper bound on the shared bytes that are being freed. Several sessions may hold the same
    /// bytes.
    freed_shared_bytes: usize,
    shared: SharedChunks,
    /// The frames among `shared`, by key.
    frames: HashMap<SharedFrameKey, Weak<Vec<u8>>, FixedState>,
}

impl SessionBudget {
    /// Returns an empty budget with a limit of `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            tracked: Vec::new(),
            size_classes: [SizeClass::EMPTY; SIZE_CLASSES],
            charged_bytes: 0,
            unfinished_bytes: 0,
            freed_shared_bytes: 0,
            shared: SharedChunks::default(),
            frames: HashMap::with_hasher(FixedState::with_seed(0)),
        }
    }

    // ---- sessions ----

    /// Updates the memory of the session in a slot. Returns whether the session is now tracked. If
    /// so, its next change must be passed in as well, even if it then holds little.
    pub fn update(&mut self, slot: u32, memory: SessionMemory) -> bool {
        let index = slot as usize;
        if index >= self.tracked.len() {
            if memory.is_exempt() {
                return false;
            }
            self.tracked.resize(index + 1, TrackedSession::EMPTY);
        }
        let before = self.tracked[index].memory;
        self.charged_bytes += memory.charged_bytes();
        self.charged_bytes -= before.charged_bytes();
        self.freed_shared_bytes += memory.freed_shared_bytes();
        self.freed_shared_bytes -= before.freed_shared_bytes();
        // A session keeps its position within its class, so that growth does not make it newer.
        let is_moved = before.size_class() != memory.size_class()
            || before.may_be_evicted() != memory.may_be_evicted();
        if before.may_be_evicted() && is_moved {
            self.unlink(slot);
        }
        self.tracked[index].memory = memory;
        if memory.may_be_evicted() && is_moved {
            self.link(slot);
        }
        !memory.is_exempt()
    }

    /// Updates the memory of an incomplete message or head.
    pub fn update_unfinished(&mut self, before_bytes: usize, bytes: usize) {
        self.unfinished_bytes += bytes;
        self.unfinished_bytes -= before_bytes;
    }

    /// Returns the memory of all incomplete messages and heads.
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes
    }

    /// Returns the slot of the session to be evicted first.
    pub fn next_to_evict(&self) -> Option<u32> {
        let largest_first = self.size_classes.iter().rev();
        let mut oldest = largest_first.map(|class| class.oldest);
        oldest.find(|oldest| *oldest != NONE)
    }

    /// Forgets all sessions. The memory of each must be passed in again. Shared bytes still count.
    fn forget_sessions(&mut self) {
        self.tracked.clear();
        self.size_classes = [SizeClass::EMPTY; SIZE_CLASSES];
        (self.charged_bytes, self.freed_shared_bytes) = (0, 0);
        self.unfinished_bytes = 0;
    }

    /// Forgets all sessions and rooms. The remaining sessions must be passed in again. Shared bytes
    /// still count, but the keys of their frames are dropped, since they will refer to other
    /// frames.
    pub fn reset(&mut self) {
        self.forget_sessions();
        self.frames.clear();
    }

    fn link(&mut self, slot: u32) {
        let class = &mut self.size_classes[self.tracked[slot as usize].memory.size_class()];
        let older = std::mem::replace(&mut class.newest, slot);
        match older {
            NONE => class.oldest = slot,
            older => self.tracked[older as usize].newer = slot,
        }
        let session = &mut self.tracked[slot as usize];
        (session.older, session.newer) = (older, NONE);
    }

    fn unlink(&mut self, slot: u32) {
        let TrackedSession {
            memory,
            older,
            newer,
        } = self.tracked[slot as usize];
        let class = &mut self.size_classes[memory.size_class()];
        match older {
            NONE => class.oldest = newer,
            older => self.tracked[older as usize].newer = newer,
        }
        match newer {
            NONE => class.newest = older,
            newer => self.tracked[newer as usize].older = older,
        }
    }

    // ---- shared bytes ----

    /// Returns the frame with this key, if any session still holds it.
    pub fn frame(&self, key: SharedFrameKey) -> Option<Chunk> {
        self.frames.get(&key)?.upgrade()
    }

    /// Adds the frame with this key, which has just been encoded.
    pub fn add_frame(&mut self, key: SharedFrameKey, frame: &Chunk) {
        self.add_shared(frame);
        // There are at most twice as many keys as live chunks. A key costs far less than its frame,
        // and the cost of removing dead keys is amortized over the insertions.
        if self.frames.len() >= 2 * self.shared.len() {
            self.frames.retain(|_, frame| frame.strong_count() > 0);
        }
        self.frames.insert(key, Rc::downgrade(frame));
    }

    /// Adds bytes that may be sent to several sessions.
    pub fn add_shared(&mut self, chunk: &Chunk) {
        self.shared.add(chunk);
    }

    /// Checks at least the next `count` shared chunks and drops those that no session holds.
    pub fn sweep(&mut self, count: usize) {
        self.shared.sweep(count);
    }

    /// Checks all shared chunks and drops those that no session holds.
    pub fn sweep_all(&mut self) {
        self.shared.sweep_all();
    }

    // ---- totals ----

    /// Returns the memory that individual sessions hold beyond the exempt amount.
    pub fn charged_bytes(&self) -> usize {
        self.charged_bytes
    }

    /// Returns the memory that counts against the budget.
    pub fn bytes(&self) -> usize {
        let shared_bytes = self.shared.bytes();
        self.charged_bytes + shared_bytes.saturating_sub(self.freed_shared_bytes)
    }

    /// Returns the bytes that are shared by several sessions, including those that were released
    /// but have not been swept yet.
    pub fn shared_bytes(&self) -> usize {
        self.shared.bytes()
    }

    /// Returns whether sessions must be evicted.
    pub fn is_over(&self) -> bool {
        self.bytes() > self.bytes_max
    }

    /// Returns whether enough sessions were evicted. The memory must be a sixteenth below the
    /// budget, so that the next eviction comes only after that much has been added.
    pub fn is_relieved(&self) -> bool {
        self.bytes() <= self.bytes_max - self.bytes_max / 16
    }

    /// Returns whether more than half of the budget is in use, so that each session is allowed
    /// less.
    pub fn is_tight(&self) -> bool {
        self.bytes() > self.bytes_max / 2
    }

    /// Returns the number of bytes that are encoded at a time for a session that receives a state
    /// or has fallen behind.
    pub fn part_bytes_max(&self) -> usize {
        if self.is_tight() {
            SESSION_BYTES_SPARED
        } else {
            CONFLATED_BYTES_MAX
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPARED: usize = SESSION_BYTES_SPARED;

    fn own(own_bytes: usize) -> SessionMemory {
        SessionMemory {
            own_bytes,
            ..SessionMemory::default()
        }
    }

    #[test]
    fn the_largest_is_evicted_first_and_the_oldest_within_its_class() {
        let mut budget = SessionBudget::new(1 << 20);
        assert_eq!(budget.next_to_evict(), None);
        for (slot, bytes, next) in [
            (7, SPARED, None),
            (7, SPARED + 1, Some(7)),
            (3, 3 * SPARED, Some(3)),
            (9, 3 * SPARED + 9, Some(3)),
            // The session grows within its class and keeps its position.
            (3, 3 * SPARED + 10, Some(3)),
            (3, 0, Some(9)),
            (3, 3 * SPARED, Some(9)),
            (7, 9 * SPARED, Some(7)),
            (7, SPARED, Some(9)),
        ] {
            assert_eq!(budget.update(slot, own(bytes)), bytes > SPARED);
            assert_eq!(budget.next_to_evict(), next, "{slot} {bytes}");
        }
    }

    #[test]
    fn a_shared_frame_counts_once_and_not_while_it_is_being_freed() {
        let mut budget = SessionBudget::new(20_000);
        let frame: Chunk = Rc::new(vec![0; 30_000]);
        budget.add_frame((RoomId::new(1), Seq::new(5), ProtocolVersion::V1), &frame);
        let mut held = SessionMemory {
            own_bytes: 100,
            shared_bytes: 30_000,
            ..SessionMemory::default()
        };
        for slot in 0..3 {
            budget.update(slot, held);
        }
        assert_eq!((budget.bytes(), budget.next_to_evict()), (30_000, Some(0)));
        assert!(budget.is_over() && budget.is_tight() && !budget.is_relieved());
        assert!(Rc::ptr_eq(
            &budget
                .frame((RoomId::new(1), Seq::new(5), ProtocolVersion::V1))
                .unwrap(),
            &frame
        ));
        assert!(
            budget
                .frame((RoomId::new(1), Seq::new(6), ProtocolVersion::V1))
                .is_none()
        );
        held.is_being_freed = true;
        budget.update(0, held);
        assert_eq!((budget.bytes(), budget.next_to_evict()), (0, Some(1)));
        drop(frame);
        budget.sweep_all();
        assert!(
            budget
                .frame((RoomId::new(1), Seq::new(5), ProtocolVersion::V1))
                .is_none()
        );
        budget.update(0, SessionMemory::default());
        assert_eq!((budget.bytes(), budget.shared_bytes()), (0, 0));
    }

    #[test]
    fn names_of_freed_frames_are_soon_dropped() {
        let mut budget = SessionBudget::new(1 << 20);
        let kept: Chunk = Rc::new(vec![0; 10]);
        budget.add_frame((RoomId::new(0), Seq::new(0), ProtocolVersion::V1), &kept);
        for seq in 1..1000 {
            budget.add_frame(
                (RoomId::new(0), Seq::new(seq), ProtocolVersion::V1),
                &Rc::new(vec![0; 10]),
            );
            budget.sweep(2);
        }
        assert!(budget.frames.len() < 20, "{}", budget.frames.len());
        assert!(
            budget
                .frame((RoomId::new(0), Seq::new(0), ProtocolVersion::V1))
                .is_some()
        );
    }

    proptest! {
        /// Compares the budget with a plain list of what each session holds and when it entered its
        /// class.
        #[test]
        fn the_budget_agrees_with_a_plain_list(
            steps in prop::collection::vec(
                (0..6_u32, 0..80_000_usize, 0..3_usize, any::<bool>()),
                1..100,
            ),
        ) {
            let mut budget = SessionBudget::new(100_000);
            let mut model: Vec<(SessionMemory, usize)> = vec![(SessionMemory::default(), 0); 6];
            for (step, (slot, bytes, kind, is_being_freed)) in steps.into_iter().enumerate() {
                let memory = match kind {
                    0 => own(bytes),
                    1 => SessionMemory {
                        shared_bytes: bytes,
                        is_being_freed,
                        ..SessionMemory::default()
                    },
                    _ => SessionMemory {
                        own_bytes: bytes,
                        shared_bytes: bytes / 3,
                        spare_bytes: bytes / 2,
                        is_being_freed,
                    },
                };
                let list = |memory: SessionMemory| (memory.size_class(), memory.may_be_evicted());
                let (before, since) = model[slot as usize];
                let stays = list(before) == list(memory);
                model[slot as usize] = (memory, if stays { since } else { step });
                budget.update(slot, memory);
                let memories = || model.iter().map(|(memory, _)| memory);
                let charged_bytes: usize = memories().map(|memory| memory.charged_bytes()).sum();
                prop_assert_eq!(budget.charged_bytes, charged_bytes);
                let freed_bytes: usize = memories().map(|memory| memory.freed_shared_bytes()).sum();
                prop_assert_eq!(budget.freed_shared_bytes, freed_bytes);
                let listed = (0..).zip(&model).filter(|(_, (memory, _))| memory.may_be_evicted());
                let next = listed.max_by_key(|(_, (memory, since))| {
                    (memory.size_class(), usize::MAX - since)
                });
                prop_assert_eq!(budget.next_to_evict(), next.map(|(slot, _)| slot));
            }
        }
    }
}
