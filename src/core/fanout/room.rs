//! A workspace on its shard: the state, the frames of its recent past, and who is in it.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::core::fanout::outbox::View;
use crate::core::fanout::presence::Presence;
use crate::core::fanout::window::{Chunk, ChunkPool, Window};
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::log_space::Allowance;
use crate::core::snapshot::encoded::{
    Encoding, Part, Point, Snapshot, Step, Texts, Wanted, encode,
};
use crate::core::snapshot::encoded_state::Text;
use crate::core::state::workspace::{Source, Verdict, Workspace};
use crate::log::position::LogPosition;
use crate::wire::message;

/// What of a state must be encoded.
pub(crate) struct Missing {
    pub bytes: usize,
    /// What of the same state is there already, or is promised.
    pub held_bytes: usize,
    /// That is being encoded.
    pub is_awaited: bool,
}

/// What a part of an encoding has done.
#[derive(Default)]
pub(crate) struct Progress {
    pub step: Step,
    /// What is not promised any more.
    pub released_bytes: usize,
    pub goes_on: bool,
}

/// A workspace on its shard.
pub(crate) struct Room {
    pub workspace: Workspace,
    pub window: Window,
    /// The slots of the sessions in it.
    pub members: Vec<u32>,
    /// None: nobody in it has a name.
    pub presence: Option<Box<Presence>>,
    /// It stands in the list of rooms that have news or frames to let go.
    pub touched: bool,
    /// The window offset up to which its members were queued to be sent.
    pub announced_end: WindowOffset,
    /// What it has written lately, while the log is long.
    pub allowance: Allowance,
    /// The log position of its last op; `NONE` where that came from the disk.
    position: LogPosition,
    snapshot: Snapshot,
    /// The states that are being encoded, the oldest first.
    encodings: VecDeque<Encoding>,
}

impl Room {
    pub fn new(workspace: Workspace) -> Self {
        let window = Window::new(workspace.seq());
        Self {
            workspace,
            window,
            members: Vec::new(),
            presence: None,
            touched: false,
            announced_end: WindowOffset::START,
            allowance: Allowance::default(),
            position: LogPosition::NONE,
            snapshot: Snapshot::default(),
            encodings: VecDeque::new(),
        }
    }

    /// A client of this name has come.
    pub fn user_came(&mut self, user: Rc<str>) {
        self.presence.get_or_insert_default().add(user);
    }

    /// A client of this name has gone.
    pub fn user_left(&mut self, user: &str) {
        let presence = self.presence.as_mut().expect("one who goes was here");
        presence.remove(user);
        self.presence.take_if(|presence| presence.count() == 0);
    }

    /// A text of its state was given up: nobody else is sent it.
    pub fn forget_text(&mut self, text: &Chunk) {
        self.snapshot.forget(text);
    }

    /// The position that must be visible before the newest op may be shown.
    pub fn gate(&self) -> LogPosition {
        self.position
    }

    /// What may be shown now.
    pub fn view(&mut self, visible_position: LogPosition) -> View<'_> {
        View {
            visible_end: self.window.visible_end(visible_position),
            window: &mut self.window,
        }
    }

    /// Encodes the op that just won, once for all members; gives the offsets of its frame. Without
    /// another member than its sender there is nobody to tell.
    pub fn broadcast(
        &mut self,
        key: &str,
        value: &str,
        timestamp: u64,
        position: LogPosition,
        pool: &mut ChunkPool,
    ) -> (WindowOffset, WindowOffset) {
        self.position = position;
        let start = self.window.end();
        let bytes = message::op_frame_bytes(key, value, timestamp);
        self.window
            .push(pool, self.workspace.seq(), position, bytes, |out| {
                message::put_op(out, key, value, timestamp);
            });
        (start, self.window.end())
    }

    /// The point behind its last op.
    fn point(&self) -> Point {
        Point {
            seq: self.workspace.seq(),
            at: self.window.end(),
            gate: self.position,
        }
    }

    fn is_newest(&self, point: Point) -> bool {
        point.seq == self.workspace.seq()
    }

    /// Whether a text of that length, of the state at that point, will do for one who joins: the newest will, and an older one as long
    /// as the frames since are at hand and few.
    fn is_init(&self, point: Point, bytes: usize) -> bool {
        let behind = self.window.end().bytes_since(point.at);
        let is_cheap = point.at >= self.window.start() && behind <= bytes / 2;
        self.is_newest(point) || is_cheap
    }

    /// The init message of the newest state, if there is one.
    fn newest_init(&self) -> Option<Chunk> {
        let snapshot = &self.snapshot;
        snapshot.init().filter(|_| self.is_newest(snapshot.point))
    }

    /// The encoding of the newest state that this text is still to come from.
    fn newest_encoding(&self, part: Part) -> Option<&Encoding> {
        let mut newest_first = self.encodings.iter().rev();
        newest_first
            .find(|encoding| self.is_newest(encoding.point) && encoding.text(part).is_some())
    }

    /// The state as it is on its way to others already, or is being encoded for them, if that will do: for a look only the newest.
    pub fn texts_at_hand(&self, wanted: Wanted) -> Option<Texts> {
        match wanted {
            Wanted::Init => {
                let whole = (self.snapshot.point, self.snapshot.init().map(Text::Whole));
                let awaited = self.encodings.iter().rev();
                let awaited = awaited.map(|encoding| (encoding.point, encoding.text(Part::Init)));
                let mut all = std::iter::once(whole)
                    .chain(awaited)
                    .filter_map(|(point, init)| Some((point, init?)));
                let (point, init) = all.find(|(point, init)| self.is_init(*point, init.bytes()))?;
                Some(Texts {
                    point,
                    init,
                    stamps: None,
                })
            }
            Wanted::ReadTarget => {
                let (init, stamps) = if let Some(init) = self.newest_init() {
                    let whole = self.snapshot.stamps().map(Text::Whole);
                    let awaited = || self.newest_encoding(Part::Stamps)?.text(Part::Stamps);
                    (Text::Whole(init), whole.or_else(awaited)?)
                } else {
                    // Those of another encoding might be whole before the init message is.
                    let encoding = self.newest_encoding(Part::Init)?;
                    (encoding.text(Part::Init)?, encoding.text(Part::Stamps)?)
                };
                Some(Texts {
                    point: self.point(),
                    init,
                    stamps: Some(stamps),
                })
            }
        }
    }

    /// What must be encoded where nothing is at hand.
    pub fn texts_missing(&self, wanted: Wanted) -> Missing {
        let init_bytes = self.workspace.init_bytes();
        let is_awaited = self.newest_encoding(Part::Init).is_some();
        let is_held = is_awaited || self.newest_init().is_some();
        let (bytes, held_bytes) = if is_held {
            (0, init_bytes)
        } else {
            (init_bytes, 0)
        };
        let stamps_bytes = match wanted {
            Wanted::Init => 0,
            Wanted::ReadTarget => self.workspace.stamps_bytes(),
        };
        Missing {
            bytes: bytes + stamps_bytes,
            held_bytes,
            is_awaited,
        }
    }

    /// The state as it is now, encoded in one step. What of it is on its way to others already is not encoded again.
    pub fn encode_texts(&mut self, wanted: Wanted) -> Texts {
        let point = self.point();
        let init = self.newest_init().unwrap_or_else(|| {
            let init = encode(&self.workspace, Part::Init);
            self.snapshot.take(Part::Init, point, &init);
            init
        });
        let stamps = (wanted == Wanted::ReadTarget).then(|| {
            let stamps = encode(&self.workspace, Part::Stamps);
            self.snapshot.take(Part::Stamps, point, &stamps);
            Text::Whole(stamps)
        });
        Texts {
            point,
            init: Text::Whole(init),
            stamps,
        }
    }

    /// Begins to encode the state as it is now, in parts; whether that is one encoding more than there was.
    pub fn begin_texts(&mut self, wanted: Wanted) -> (Texts, bool) {
        let before = self.encodings.len();
        let held = self.newest_init().map(Text::Whole);
        let init = held.unwrap_or_else(|| self.begin_text(Part::Init));
        let stamps = (wanted == Wanted::ReadTarget).then(|| self.begin_text(Part::Stamps));
        let texts = Texts {
            point: self.point(),
            init,
            stamps,
        };
        (texts, self.encodings.len() > before)
    }

    fn begin_text(&mut self, part: Part) -> Text {
        let point = self.point();
        let newest = self.encodings.iter_mut().rev();
        let mut writes_init = newest
            .filter(|encoding| encoding.point.seq == point.seq)
            .filter(|encoding| encoding.text(Part::Init).is_some());
        if let Some(encoding) = writes_init.next() {
            if encoding.text(part).is_none() {
                encoding.add_stamps(&self.workspace);
            }
            return encoding.text(part).expect("it was just added");
        }
        let encoding = Encoding::new(&self.workspace, point, part);
        let text = encoding.text(part).expect("it has just begun");
        self.encodings.push_back(encoding);
        text
    }

    /// Applies an op to the workspace; a state that is being encoded stays as it was.
    pub fn apply_within(
        &mut self,
        log_bytes_max: u64,
        key: &str,
        value: &str,
        timestamp: u64,
        source: Source,
    ) -> Verdict<'_> {
        self.put_aside(key, timestamp);
        self.workspace
            .apply_within(log_bytes_max, key, value, timestamp, source)
    }

    /// Puts aside what a key has, where a state is being encoded and an op of that time may win.
    fn put_aside(&mut self, key: &str, timestamp: u64) {
        if self.encodings.is_empty() {
            return;
        }
        if let Some(slot) = self.workspace.slot_of(key) {
            let entry = self.workspace.entry(slot);
            if timestamp <= entry.timestamp() {
                return;
            }
            for encoding in &mut self.encodings {
                encoding.put_aside(slot, entry);
            }
        }
    }

    /// Goes on with the encoding that began first, for about so many bytes.
    pub fn encode_part(&mut self, bytes_max: usize) -> Progress {
        let Some(mut encoding) = self.encodings.pop_front() else {
            return Progress::default();
        };
        let promised_bytes = encoding.bytes();
        let mut step = Step::default();
        if encoding.is_wanted() {
            step = encoding.write(&self.workspace, bytes_max);
        }
        if let Some((part, chunk)) = &step.whole {
            self.snapshot.take(*part, encoding.point, chunk);
        }
        let goes_on = !encoding.is_over() && encoding.is_wanted();
        let kept_bytes = if goes_on { encoding.bytes() } else { 0 };
        if goes_on {
            self.encodings.push_front(encoding);
        }
        Progress {
            step,
            released_bytes: promised_bytes - kept_bytes,
            goes_on,
        }
    }
}

#[cfg(test)]
mod tests;
