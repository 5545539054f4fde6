//! The state of a workspace as texts on their way out, encoded once for all who are sent it: a small one at once, a large one in
//! parts, while ops go on.

use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use crate::core::fanout::window::Chunk;
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::snapshot::cut::Cut;
use crate::core::snapshot::encoded_state::{Promise, Text};
use crate::core::state::workspace::{Entry, Workspace};
use crate::log::position::LogPosition;
use crate::wire::state;

/// What of a state is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The init message, for one who then follows the window.
    Init,
    /// All that a look shows: the newest state, its timestamps too.
    ReadTarget,
}

/// A point in the order of the ops of a room.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Point {
    /// The last op before it.
    pub seq: u64,
    /// The window offset behind which the ops follow.
    pub at: WindowOffset,
    /// The log position that must be visible before the state there may be shown.
    pub gate: LogPosition,
}

/// A state at one point.
pub(crate) struct Texts {
    pub point: Point,
    /// The init message.
    pub init: Text,
    /// The stamps of a look, where they were wanted. When they are whole, the init message is, too.
    pub stamps: Option<Text>,
}

/// The texts that were made last. They are there as long as they are on their way to anybody.
#[derive(Default)]
pub(in crate::core) struct Snapshot {
    pub point: Point,
    init: Weak<Vec<u8>>,
    stamps: Weak<Vec<u8>>,
}

impl Snapshot {
    /// The init message, if anybody is still sent it.
    pub fn init(&self) -> Option<Chunk> {
        self.init.upgrade()
    }

    /// The stamps, likewise.
    pub fn stamps(&self) -> Option<Chunk> {
        self.stamps.upgrade()
    }

    /// Forgets a text.
    pub fn forget(&mut self, text: &Chunk) {
        for held in [&mut self.init, &mut self.stamps] {
            if std::ptr::eq(held.as_ptr(), Rc::as_ptr(text)) {
                *held = Weak::new();
            }
        }
    }

    /// Takes the text of a point, unless it has that of a later one.
    pub fn take(&mut self, part: Part, point: Point, chunk: &Chunk) {
        match part {
            Part::Init if self.point.seq <= point.seq => {
                *self = Self {
                    point,
                    init: Rc::downgrade(chunk),
                    stamps: Weak::new(),
                };
            }
            Part::Stamps if self.point.seq == point.seq => self.stamps = Rc::downgrade(chunk),
            Part::Init | Part::Stamps => {}
        }
    }
}

/// A text of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Init,
    Stamps,
}

/// A part of a state in one step.
pub(in crate::core) fn encode(workspace: &Workspace, part: Part) -> Chunk {
    let bytes = part_bytes(workspace, part);
    let mut text = Vec::with_capacity(bytes);
    match part {
        Part::Init => workspace.put_init(&mut text),
        Part::Stamps => workspace.put_stamps(&mut text),
    }
    assert_eq!(text.len(), bytes, "a text has the length that was told");
    Rc::new(text)
}

fn part_bytes(workspace: &Workspace, part: Part) -> usize {
    match part {
        Part::Init => workspace.init_bytes(),
        Part::Stamps => workspace.stamps_bytes(),
    }
}

/// A text that is being written.
struct Writing {
    part: Part,
    out: Vec<u8>,
    promise: Rc<Promise>,
}

impl Writing {
    fn new(workspace: &Workspace, part: Part) -> Self {
        let promise = Promise::new(part_bytes(workspace, part));
        Self {
            part,
            out: Vec::new(),
            promise,
        }
    }
}

/// What a step of an encoding has done.
#[derive(Default)]
pub(in crate::core) struct Step {
    /// Bytes that were written.
    pub bytes: usize,
    /// The text that is whole now.
    pub whole: Option<(Part, Chunk)>,
}

/// A state that is being encoded: its texts one after another.
pub(in crate::core) struct Encoding {
    pub point: Point,
    fields_bytes: usize,
    cut: Cut,
    writings: VecDeque<Writing>,
}

impl Encoding {
    /// The text of a state as it is now.
    pub fn new(workspace: &Workspace, point: Point, part: Part) -> Self {
        Self {
            point,
            fields_bytes: workspace.init_fields_bytes(),
            cut: Cut::new(workspace),
            writings: VecDeque::from([Writing::new(workspace, part)]),
        }
    }

    /// The text, if it is not whole yet.
    pub fn text(&self, part: Part) -> Option<Text> {
        let mut writings = self.writings.iter();
        let writing = writings.find(|writing| writing.part == part)?;
        Some(Text::Awaited(Rc::clone(&writing.promise)))
    }

    /// Writes the stamps, too, behind the init message. Nothing must have won since.
    pub fn add_stamps(&mut self, workspace: &Workspace) {
        assert_eq!(workspace.seq(), self.point.seq, "the state is still that");
        assert_eq!(self.writings.len(), 1, "stamps are written once");
        self.cut.read_again();
        let stamps = Writing::new(workspace, Part::Stamps);
        self.writings.push_back(stamps);
    }

    /// Puts aside what stands in a slot: it may be written over.
    pub fn put_aside(&mut self, slot: u32, entry: &Entry) {
        self.cut.put_aside(slot, entry);
    }

    /// What its texts take, or will take.
    pub fn bytes(&self) -> usize {
        let promises = self.writings.iter().map(|writing| &writing.promise);
        promises.map(|promise| promise.bytes()).sum()
    }

    /// Whether anybody waits for it.
    pub fn is_wanted(&self) -> bool {
        let mut promises = self.writings.iter().map(|writing| &writing.promise);
        promises.any(|promise| Rc::strong_count(promise) > 1)
    }

    /// Whether all is written.
    pub fn is_over(&self) -> bool {
        self.writings.is_empty()
    }

    /// Goes on for so many bytes, and the rest of an entry, or to the end of a text.
    pub fn write(&mut self, workspace: &Workspace, bytes_max: usize) -> Step {
        let Some(writing) = self.writings.front_mut() else {
            return Step::default();
        };
        let (out, part) = (&mut writing.out, writing.part);
        let start = out.len();
        if start == 0 {
            out.reserve_exact(writing.promise.bytes());
            match part {
                Part::Init => state::put_init_start(out, self.fields_bytes),
                Part::Stamps => state::put_stamps_start(out),
            }
        }
        while out.len() - start < bytes_max && !self.cut.is_at_end() {
            self.cut
                .read_next(workspace, |key, value, timestamp| match part {
                    Part::Init => state::put_init_field(out, key, value),
                    Part::Stamps => state::put_stamp_field(out, key, timestamp),
                });
        }
        let bytes = out.len() - start;
        let whole = self.cut.is_at_end().then(|| self.end_text());
        Step { bytes, whole }
    }

    fn end_text(&mut self) -> (Part, Chunk) {
        let writing = self.writings.pop_front().expect("a text is being written");
        let Writing {
            part,
            mut out,
            promise,
        } = writing;
        match part {
            Part::Init => state::put_init_end(&mut out),
            Part::Stamps => state::put_stamps_end(&mut out, self.point.seq),
        }
        let chunk = Rc::new(out);
        promise.keep(Rc::clone(&chunk));
        if !self.is_over() {
            self.cut.rewind();
        }
        (part, chunk)
    }
}
