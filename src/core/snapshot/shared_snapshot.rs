//! A state at one point in the order of its workspace's ops, as bytes that many sessions are sent.

use std::rc::{Rc, Weak};

use crate::core::fanout::encoded_state::{Chunk, EncodedState};
use crate::core::fanout::window_offset::WindowOffset;
use crate::log::position::LogPosition;
use crate::seq::Seq;

/// The purpose of a snapshot, which determines its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotKind {
    /// The init message, for a session that then follows the window: a state that is a little
    /// older will do, as long as the frames since are there.
    Init,
    /// The newest state with its timestamps, for a read over HTTP, which nothing follows.
    HttpRead,
}

/// A part of a snapshot. Each is encoded once and shared by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotPart {
    /// The init message. A read over HTTP is sent its fields only.
    Init,
    /// The timestamps of all keys, and the seq.
    Timestamps,
}

/// A point in the order of a workspace's ops.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SnapshotPoint {
    /// The last op before it.
    pub seq: Seq,
    /// The window offset after which the later ops follow.
    pub at: WindowOffset,
    /// The log position that must be visible before the state may be shown.
    pub visible_from: LogPosition,
}

/// A state at one point.
pub(crate) struct Snapshot {
    pub point: SnapshotPoint,
    /// The init message.
    pub init: EncodedState,
    /// The timestamps, in a snapshot for a read over HTTP. They are never ready before the init
    /// message is, so an answer that has both may begin as soon as they are.
    pub timestamps: Option<EncodedState>,
}

/// The snapshot of a workspace that was encoded last, as long as any session holds it.
///
/// The references are weak: a snapshot that everybody has received is freed at once, and a
/// workspace that nobody joins costs nothing.
#[derive(Default)]
pub(in crate::core) struct SharedSnapshot {
    point: SnapshotPoint,
    init: Weak<Vec<u8>>,
    timestamps: Weak<Vec<u8>>,
}

impl SharedSnapshot {
    pub fn point(&self) -> SnapshotPoint {
        self.point
    }

    /// Returns the init message, if any session still holds it.
    pub fn init(&self) -> Option<Chunk> {
        self.init.upgrade()
    }

    /// Returns the timestamps, if any session still holds them.
    pub fn timestamps(&self) -> Option<Chunk> {
        self.timestamps.upgrade()
    }

    /// Whether a session that comes now could be sent any of it.
    pub fn is_held(&self) -> bool {
        self.init.strong_count() > 0 || self.timestamps.strong_count() > 0
    }

    /// Forgets a part: no session is sent it from now on.
    pub fn forget(&mut self, chunk: &Chunk) {
        for part in [&mut self.init, &mut self.timestamps] {
            if std::ptr::eq(part.as_ptr(), Rc::as_ptr(chunk)) {
                *part = Weak::new();
            }
        }
    }

    /// Remembers a part that was just encoded, unless it is older than the ones that are there.
    pub fn remember(&mut self, part: SnapshotPart, point: SnapshotPoint, chunk: &Chunk) {
        match part {
            SnapshotPart::Init if self.point.seq <= point.seq => {
                *self = Self {
                    point,
                    init: Rc::downgrade(chunk),
                    timestamps: Weak::new(),
                };
            }
            // Timestamps of another point than the init message's are of no use: a read needs both.
            SnapshotPart::Timestamps if self.point.seq == point.seq => {
                self.timestamps = Rc::downgrade(chunk);
            }
            SnapshotPart::Init | SnapshotPart::Timestamps => {}
        }
    }
}
