//! A state at one point in the sequence of its workspace's ops, encoded and shared by many
//! sessions.

use std::rc::{Rc, Weak};

use crate::core::fanout::encoded_state::{Chunk, EncodedState};
use crate::core::fanout::window_offset::WindowOffset;
use crate::log::position::LogPosition;
use crate::seq::Seq;

/// The purpose of a snapshot, which determines its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotKind {
    /// The init message, for a session that then follows the window. The state may be slightly old,
    /// as long as the frames after it are still in the window.
    Init,
    /// The newest state with its timestamps, for an HTTP read, which is not followed by frames.
    HttpRead,
}

/// A part of a snapshot. Each part is encoded once and shared separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotPart {
    /// The init message. A read over HTTP uses only its fields.
    Init,
    /// The timestamps of all keys, and the seq.
    Timestamps,
}

/// A point in the sequence of a workspace's ops.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SnapshotPoint {
    /// The last op before the point.
    pub seq: Seq,
    /// The window offset at which later ops begin.
    pub at: WindowOffset,
    /// The log position that must be visible before the state may be shown.
    pub visible_from: LogPosition,
}

/// An encoded state at one point.
pub(crate) struct Snapshot {
    pub point: SnapshotPoint,
    /// The init message.
    pub init: EncodedState,
    /// The timestamps, in a snapshot for a read over HTTP. They are never ready before the init
    /// message, so an answer with both may be sent as soon as they are ready.
    pub timestamps: Option<EncodedState>,
}

/// The most recently encoded snapshot of a workspace, available for as long as any session holds
/// it.
///
/// The references are weak: a snapshot is freed as soon as all receivers have received it, and a
/// workspace that no client joins costs nothing.
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

    /// Returns whether any session still holds a part of the snapshot, so that it can be sent
    /// again.
    pub fn is_held(&self) -> bool {
        self.init.strong_count() > 0 || self.timestamps.strong_count() > 0
    }

    /// Forgets a part, so that it is not sent to any other session.
    pub fn forget(&mut self, chunk: &Chunk) {
        for part in [&mut self.init, &mut self.timestamps] {
            if std::ptr::eq(part.as_ptr(), Rc::as_ptr(chunk)) {
                *part = Weak::new();
            }
        }
    }

    /// Remembers a newly encoded part, unless it is older than the parts already held.
    pub fn remember(&mut self, part: SnapshotPart, point: SnapshotPoint, chunk: &Chunk) {
        match part {
            SnapshotPart::Init if self.point.seq <= point.seq => {
                *self = Self {
                    point,
                    init: Rc::downgrade(chunk),
                    timestamps: Weak::new(),
                };
            }
            // Timestamps are useless without the init message from the same point, since a read
            // needs both.
            SnapshotPart::Timestamps if self.point.seq == point.seq => {
                self.timestamps = Rc::downgrade(chunk);
            }
            SnapshotPart::Init | SnapshotPart::Timestamps => {}
        }
    }
}
