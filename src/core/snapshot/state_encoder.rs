//! Encoding of states. Small ones are encoded immediately, large ones in steps while ops continue
//! to be applied.
//!
//! # A large state
//!
//! A [`StateEncoder`] writes the state as of the moment when the encoding began, no matter how long
//! it takes:
//!
//! ```text
//!   begin ─► init message ──► done
//!                │
//!                └─ add_timestamps ─► timestamps ──► done
//!   begin ─► timestamps ──► done         (the init message is there already)
//! ```
//!
//! An entry never leaves its slot, and a new key gets a slot after all others. So the state at one
//! moment consists of the slots that existed then, with their entries at that time. Before an op
//! overwrites an entry that still has to be read, [`StateEncoder::preserve`] saves a copy of it. So
//! only the entries that change in the meantime are copied, not the whole state.

use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::fanout::encoded_state::{Chunk, EncodedState, PendingState};
use crate::core::snapshot::shared_snapshot::{SnapshotPart, SnapshotPoint};
use crate::core::state::workspace::{ENTRY_BYTES, Entry, Workspace};
use crate::seq::Seq;
use crate::wire::state;

/// Returns the length of a part of the current state, in bytes.
pub(in crate::core) fn part_bytes(workspace: &Workspace, part: SnapshotPart) -> usize {
    match part {
        SnapshotPart::Init => workspace.init_bytes(),
        SnapshotPart::Timestamps => workspace.stamps_bytes(),
    }
}

/// Encodes a part of the current state in a single step.
pub(in crate::core) fn encode(workspace: &Workspace, part: SnapshotPart) -> Chunk {
    let bytes = part_bytes(workspace, part);
    let mut out = Vec::with_capacity(bytes);
    match part {
        SnapshotPart::Init => workspace.put_init(&mut out),
        SnapshotPart::Timestamps => workspace.put_stamps(&mut out),
    }
    assert_eq!(out.len(), bytes, "a part has another length than announced");
    Rc::new(out)
}

/// A stepwise encoder of the state at one moment.
pub(in crate::core) struct StateEncoder {
    point: SnapshotPoint,
    /// The length of the fields of the init message, which determines the length in its header.
    init_fields_bytes: usize,
    frozen: FrozenState,
    /// The part that is being written, before `next`. `None` once all parts are done.
    current: Option<PartWriter>,
    next: Option<PartWriter>,
}

/// The outcome of one encoding step.
#[derive(Default)]
pub(in crate::core) struct EncodingStep {
    /// The bytes that were written.
    pub bytes: usize,
    /// The part that was finished, if any.
    pub finished: Option<(SnapshotPart, Chunk)>,
}

impl StateEncoder {
    /// Starts encoding a part of the current state, which is the state at `point`.
    pub fn begin(workspace: &Workspace, point: SnapshotPoint, part: SnapshotPart) -> Self {
        Self {
            point,
            init_fields_bytes: workspace.init_fields_bytes(),
            frozen: FrozenState::new(workspace),
            current: Some(PartWriter::new(workspace, part)),
            next: None,
        }
    }

    pub fn point(&self) -> SnapshotPoint {
        self.point
    }

    /// Returns an unfinished part, for one more receiver.
    pub fn pending(&self, part: SnapshotPart) -> Option<EncodedState> {
        let writer = self.writers().find(|writer| writer.part == part)?;
        Some(EncodedState::Pending(Rc::clone(&writer.pending)))
    }

    /// Schedules the timestamps for encoding after the init message.
    ///
    /// # Panics
    /// If an op has won since the encoding began, because entries read before that op have not been
    /// kept for a second pass, or if the timestamps are already being encoded.
    pub fn add_timestamps(&mut self, workspace: &Workspace) {
        assert_eq!(
            workspace.seq(),
            self.point.seq,
            "the workspace changed while it was being encoded"
        );
        let is_init = |writer: &PartWriter| writer.part == SnapshotPart::Init;
        assert!(
            self.current.as_ref().is_some_and(is_init) && self.next.is_none(),
            "timestamps must be encoded once, after the init message"
        );
        self.frozen.keep_for_second_pass();
        self.next = Some(PartWriter::new(workspace, SnapshotPart::Timestamps));
    }

    /// Saves a copy of an entry that an op may overwrite, if the entry still has to be read.
    pub fn preserve(&mut self, slot: u32, entry: Entry<'_>) {
        self.frozen.preserve(slot, entry, self.point.seq);
    }

    /// Returns the total length of the parts that are not finished yet.
    pub fn pending_bytes(&self) -> usize {
        self.writers().map(|writer| writer.pending.bytes()).sum()
    }

    /// Returns whether any session is still waiting for a part.
    pub fn is_wanted(&self) -> bool {
        self.writers()
            .any(|writer| Rc::strong_count(&writer.pending) > 1)
    }

    /// Returns whether all parts are finished.
    pub fn is_done(&self) -> bool {
        self.current.is_none()
    }

    /// Writes about `bytes_max` bytes of the current part. It stops at the end of the part, or
    /// after the field that reaches that length. `workspace` is the current state of the encoded
    /// workspace.
    pub fn step(&mut self, workspace: &Workspace, bytes_max: usize) -> EncodingStep {
        let Some(PartWriter { part, out, pending }) = &mut self.current else {
            return EncodingStep::default();
        };
        let part = *part;
        let start = out.len();
        if start == 0 {
            // Reserve exactly the announced length up front: growing would copy everything written
            // so far, and might round up the capacity.
            out.reserve_exact(pending.bytes());
            match part {
                SnapshotPart::Init => state::put_init_start(out, self.init_fields_bytes),
                SnapshotPart::Timestamps => state::put_stamps_start(out),
            }
        }
        let mut passed_bytes = 0;
        while out.len() - start + passed_bytes < bytes_max && !self.frozen.is_read() {
            let seq = self.point.seq;
            let is_live =
                self.frozen
                    .read_next(workspace, seq, |key, value, timestamp| match part {
                        SnapshotPart::Init => state::put_init_field(out, key, value),
                        SnapshotPart::Timestamps => state::put_stamp_field(out, key, timestamp),
                    });
            // A slot without a live entry takes time too, although nothing is written.
            passed_bytes += if is_live { 0 } else { ENTRY_BYTES };
        }
        let bytes = out.len() - start;
        let finished = self.frozen.is_read().then(|| self.finish_part());
        EncodingStep { bytes, finished }
    }

    fn finish_part(&mut self) -> (SnapshotPart, Chunk) {
        let writer = self.current.take().expect("the part is being written");
        let PartWriter {
            part,
            mut out,
            pending,
        } = writer;
        match part {
            SnapshotPart::Init => state::put_init_end(&mut out),
            SnapshotPart::Timestamps => state::put_stamps_end(&mut out, self.point.seq),
        }
        let chunk = Rc::new(out);
        pending.complete(Rc::clone(&chunk));
        self.current = self.next.take();
        if !self.is_done() {
            self.frozen.rewind();
        }
        (part, chunk)
    }

    fn writers(&self) -> impl Iterator<Item = &PartWriter> {
        self.current.iter().chain(&self.next)
    }
}

/// A part that is being written.
struct PartWriter {
    part: SnapshotPart,
    /// Empty and unallocated until the first step.
    out: Vec<u8>,
    pending: Rc<PendingState>,
}

impl PartWriter {
    fn new(workspace: &Workspace, part: SnapshotPart) -> Self {
        Self {
            part,
            out: Vec::new(),
            pending: PendingState::new(part_bytes(workspace, part)),
        }
    }
}

/// The state at one moment, read entry by entry while ops overwrite entries (copy-on-write).
struct FrozenState {
    /// A number greater than any slot at that moment. Lower slots may also have been free, and
    /// belong to keys that were added later.
    slots: u32,
    /// The next slot to be read.
    next: u32,
    /// Whether a second pass will follow, so that entries already read must be preserved too.
    has_second_pass: bool,
    overwritten: HashMap<u32, OverwrittenEntry, FixedState>,
}

/// An entry as it was before an op overwrote it.
struct OverwrittenEntry {
    key: Box<str>,
    value: Box<str>,
    timestamp: u64,
}

impl FrozenState {
    fn new(workspace: &Workspace) -> Self {
        Self {
            slots: workspace.slots(),
            next: 0,
            has_second_pass: false,
            overwritten: HashMap::with_hasher(FixedState::with_seed(0)),
        }
    }

    /// Makes the state readable a second time. No entry may have been overwritten so far.
    fn keep_for_second_pass(&mut self) {
        self.has_second_pass = true;
    }

    fn preserve(&mut self, slot: u32, entry: Entry<'_>, seq: Seq) {
        // Neither a tombstone nor an entry that is newer than the state is part of it.
        if entry.is_deleted() || entry.seq() > seq {
            return;
        }
        let is_still_read = slot >= self.next || self.has_second_pass;
        if slot < self.slots && is_still_read {
            self.overwritten
                .entry(slot)
                .or_insert_with(|| OverwrittenEntry {
                    key: entry.key().into(),
                    value: entry.value().into(),
                    timestamp: entry.timestamp(),
                });
        }
    }

    /// Passes the key, value and timestamp of the entry in the next slot to `read`, if there was a
    /// live entry in it at the moment of the state, which is the one after the op `seq`. Returns
    /// whether there was.
    fn read_next(
        &mut self,
        workspace: &Workspace,
        seq: Seq,
        read: impl FnOnce(&str, &str, u64),
    ) -> bool {
        let slot = self.next;
        self.next += 1;
        if let Some(overwritten) = self.overwritten.get(&slot) {
            read(&overwritten.key, &overwritten.value, overwritten.timestamp);
            if !self.has_second_pass {
                self.overwritten.remove(&slot);
            }
            return true;
        }
        // An entry that is newer than the state was added later, or has replaced a tombstone.
        let entry = workspace.entry(slot);
        let entry = entry.filter(|entry| !entry.is_deleted() && entry.seq() <= seq);
        if let Some(entry) = entry {
            let (key, value) = entry.key_and_value();
            read(key, value, entry.timestamp());
        }
        entry.is_some()
    }

    /// Returns whether all entries of this pass have been read.
    fn is_read(&self) -> bool {
        self.next == self.slots
    }

    /// Begins the second pass.
    fn rewind(&mut self) {
        assert!(
            self.has_second_pass,
            "the values of the first pass are no longer available"
        );
        (self.next, self.has_second_pass) = (0, false);
    }
}
