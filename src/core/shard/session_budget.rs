//! What a shard holds for single sessions: unfinished messages and heads, and answers until the
//! last byte is sent.
//!
//! One budget covers all of it, so that no kind of client can take memory that nobody counts. What
//! several sessions are sent, a correction or a list of users, is counted once, as long as it is
//! alive. A session may hold [`SESSION_BYTES_SPARED`] that do not count, and with no more than that
//! it is never given up: a client with small messages does not notice what others do.
//!
//! Over the budget, [`SessionBudget::heaviest`] names the session to give up. Sessions stand in
//! classes by what they hold, each twice as heavy as the one before; within a class the one that
//! has been in it for longest comes first. So the choice depends on nothing but the past, and
//! costs the same for ten sessions and for ten thousand.
//!
//! What the kernel still sends for a connection that was shut down is *returning*: it comes back
//! by itself, so it does not count, and no other session is given up for it.

use std::rc::{Rc, Weak};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::fanout::room::RoomId;
use crate::core::fanout::shared_chunks::SharedChunks;
use crate::core::fanout::window::Chunk;
use crate::limits::SESSION_BYTES_SPARED;
use crate::seq::Seq;

/// No session: the end of a list.
const NONE: u32 = u32::MAX;
/// A class for each length of a number.
const CLASSES: usize = usize::BITS as usize + 1;

/// What a session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// For itself.
    pub own_bytes: usize,
    /// What others may hold, too.
    pub shared_bytes: usize,
    /// The part of it that is unused capacity. It counts, but does not make a message that grows
    /// heavier than one that has stopped.
    pub spare_bytes: usize,
    /// Its connection was shut down: it comes back by itself.
    pub is_returning: bool,
}

impl Held {
    fn weight(self) -> usize {
        self.own_bytes + self.shared_bytes
    }

    /// Whether it needs no account.
    pub fn is_spared(self) -> bool {
        self.weight() <= SESSION_BYTES_SPARED
    }

    fn charged_bytes(self) -> usize {
        if self.is_returning {
            return 0;
        }
        self.own_bytes.saturating_sub(SESSION_BYTES_SPARED)
    }

    fn class(self) -> usize {
        let weight = self.weight() - self.spare_bytes;
        (usize::BITS - weight.leading_zeros()) as usize
    }

    fn is_listed(self) -> bool {
        !self.is_returning && !self.is_spared()
    }
}

/// A session that holds more than it is spared, and its neighbours in its class.
#[derive(Debug, Clone, Copy)]
struct Account {
    held: Held,
    older: u32,
    newer: u32,
}

impl Account {
    const EMPTY: Self = Self {
        held: Held {
            own_bytes: 0,
            shared_bytes: 0,
            spare_bytes: 0,
            is_returning: false,
        },
        older: NONE,
        newer: NONE,
    };
}

/// The sessions of a class, in the order in which they came into it.
#[derive(Debug, Clone, Copy)]
struct Class {
    oldest: u32,
    newest: u32,
}

/// The name of a text that several sessions are sent: a room and the seq of its entry.
pub(super) type TextKey = (RoomId, Seq);

/// The budget of a shard.
///
/// Invariant: `charged_bytes` is the sum over all accounts, and an account stands in the list of
/// its class if and only if it is not spared and not returning.
pub(super) struct SessionBudget {
    bytes_max: usize,
    /// By the slots of the sessions.
    accounts: Vec<Account>,
    classes: [Class; CLASSES],
    charged_bytes: usize,
    /// Of texts that several are sent, what comes back by itself at most.
    returning_bytes: usize,
    texts: SharedChunks,
    frames: HashMap<TextKey, Weak<Vec<u8>>, FixedState>,
}

impl SessionBudget {
    /// Of so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        let empty = Class {
            oldest: NONE,
            newest: NONE,
        };
        Self {
            bytes_max,
            accounts: Vec::new(),
            classes: [empty; CLASSES],
            charged_bytes: 0,
            returning_bytes: 0,
            texts: SharedChunks::default(),
            frames: HashMap::with_hasher(FixedState::with_seed(0)),
        }
    }

    // ---- sessions ----

    /// Takes what the session in a slot holds now. Returns whether it has an account, whose change
    /// must be told.
    pub fn weigh(&mut self, slot: u32, held: Held) -> bool {
        let place = slot as usize;
        if place >= self.accounts.len() {
            if held.is_spared() {
                return false;
            }
            self.accounts.resize(place + 1, Account::EMPTY);
        }
        let before = self.accounts[place].held;
        self.charged_bytes += held.charged_bytes();
        self.charged_bytes -= before.charged_bytes();
        self.returning_bytes += returning_bytes(held);
        self.returning_bytes -= returning_bytes(before);
        let is_moved = before.class() != held.class() || before.is_listed() != held.is_listed();
        if before.is_listed() && is_moved {
            self.unlist(slot);
        }
        self.accounts[place].held = held;
        if held.is_listed() && is_moved {
            self.list(slot);
        }
        !held.is_spared()
    }

    /// The slot of the session to be given up first.
    pub fn heaviest(&self) -> Option<u32> {
        let heaviest_first = self.classes.iter().rev();
        let mut oldest = heaviest_first.map(|class| class.oldest);
        oldest.find(|oldest| *oldest != NONE)
    }

    /// Forgets all accounts: they are to be weighed again.
    pub fn forget_sessions(&mut self) {
        let empty = Self::new(self.bytes_max);
        self.accounts.clear();
        self.classes = empty.classes;
        (self.charged_bytes, self.returning_bytes) = (0, 0);
    }

    fn list(&mut self, slot: u32) {
        let class = &mut self.classes[self.accounts[slot as usize].held.class()];
        let older = std::mem::replace(&mut class.newest, slot);
        match older {
            NONE => class.oldest = slot,
            older => self.accounts[older as usize].newer = slot,
        }
        let account = &mut self.accounts[slot as usize];
        (account.older, account.newer) = (older, NONE);
    }

    fn unlist(&mut self, slot: u32) {
        let Account { held, older, newer } = self.accounts[slot as usize];
        let class = &mut self.classes[held.class()];
        match older {
            NONE => class.oldest = newer,
            older => self.accounts[older as usize].newer = newer,
        }
        match newer {
            NONE => class.newest = older,
            newer => self.accounts[newer as usize].older = older,
        }
    }

    // ---- what several are sent ----

    /// The frame of this name, if anybody is still sent it.
    pub fn frame(&self, key: TextKey) -> Option<Chunk> {
        self.frames.get(&key)?.upgrade()
    }

    /// Adds the frame of this name, which was just made.
    pub fn add_frame(&mut self, key: TextKey, frame: &Chunk) {
        self.add_text(frame);
        // As many as are alive, twice at the most: a name costs far less than its frame.
        if self.frames.len() >= 2 * self.texts.len() {
            self.frames.retain(|_, frame| frame.strong_count() > 0);
        }
        self.frames.insert(key, Rc::downgrade(frame));
    }

    /// Adds a text that several may be sent.
    pub fn add_text(&mut self, text: &Chunk) {
        self.texts.add(text);
    }

    /// The names of rooms mean others from now on.
    pub fn forget_frames(&mut self) {
        self.frames.clear();
    }

    /// Looks at some of the texts, and forgets those that are sent to nobody any more.
    pub fn sweep(&mut self, count: usize) {
        self.texts.sweep(count);
    }

    /// The same of all.
    pub fn sweep_all(&mut self) {
        self.texts.sweep_all();
    }

    // ---- the sum ----

    /// What sessions hold for themselves beyond what they are spared.
    pub fn charged_bytes(&self) -> usize {
        self.charged_bytes
    }

    /// What counts against the budget.
    pub fn bytes(&self) -> usize {
        self.charged_bytes + self.texts.bytes().saturating_sub(self.returning_bytes)
    }

    /// What several are sent, and what of that was let go and not swept yet.
    pub fn text_bytes(&self) -> usize {
        self.texts.bytes()
    }

    /// Whether sessions must be given up.
    pub fn is_over(&self) -> bool {
        self.bytes() > self.bytes_max
    }

    /// Whether enough were given up: a part below the budget, so that looking for what can go is
    /// paid for by what must come in before it is looked for again.
    pub fn is_relieved(&self) -> bool {
        self.bytes() <= self.bytes_max - self.bytes_max / 16
    }

    /// Whether so much is held that each session is allowed less.
    pub fn is_tight(&self) -> bool {
        self.bytes() > self.bytes_max / 2
    }
}

fn returning_bytes(held: Held) -> usize {
    if held.is_returning && !held.is_spared() {
        held.shared_bytes
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPARED: usize = SESSION_BYTES_SPARED;

    fn own(own_bytes: usize) -> Held {
        Held {
            own_bytes,
            ..Held::default()
        }
    }

    #[test]
    fn the_heaviest_is_the_one_that_has_been_so_heavy_for_longest() {
        let mut budget = SessionBudget::new(1 << 20);
        assert_eq!(budget.heaviest(), None);
        for (slot, bytes, heaviest) in [
            (7, SPARED, None),
            (7, SPARED + 1, Some(7)),
            (3, 3 * SPARED, Some(3)),
            (9, 3 * SPARED + 9, Some(3)),
            // It grows within its class, and keeps its place.
            (3, 3 * SPARED + 10, Some(3)),
            (3, 0, Some(9)),
            (3, 3 * SPARED, Some(9)),
            (7, 9 * SPARED, Some(7)),
            (7, SPARED, Some(9)),
        ] {
            assert_eq!(budget.weigh(slot, own(bytes)), bytes > SPARED);
            assert_eq!(budget.heaviest(), heaviest, "{slot} {bytes}");
        }
    }

    #[test]
    fn a_text_counts_once_and_not_while_it_comes_back() {
        let mut budget = SessionBudget::new(20_000);
        let frame: Chunk = Rc::new(vec![0; 30_000]);
        budget.add_frame((RoomId::new(1), Seq::new(5)), &frame);
        let mut held = Held {
            own_bytes: 100,
            shared_bytes: 30_000,
            ..Held::default()
        };
        for slot in 0..3 {
            budget.weigh(slot, held);
        }
        assert_eq!((budget.bytes(), budget.heaviest()), (30_000, Some(0)));
        assert!(budget.is_over() && budget.is_tight() && !budget.is_relieved());
        assert!(Rc::ptr_eq(
            &budget.frame((RoomId::new(1), Seq::new(5))).unwrap(),
            &frame
        ));
        assert!(budget.frame((RoomId::new(1), Seq::new(6))).is_none());
        held.is_returning = true;
        budget.weigh(0, held);
        assert_eq!((budget.bytes(), budget.heaviest()), (0, Some(1)));
        drop(frame);
        budget.sweep_all();
        assert!(budget.frame((RoomId::new(1), Seq::new(5))).is_none());
        budget.weigh(0, Held::default());
        assert_eq!((budget.bytes(), budget.text_bytes()), (0, 0));
    }

    #[test]
    fn names_do_not_outlive_their_frames_by_far() {
        let mut budget = SessionBudget::new(1 << 20);
        let kept: Chunk = Rc::new(vec![0; 10]);
        budget.add_frame((RoomId::new(0), Seq::new(0)), &kept);
        for seq in 1..1000 {
            budget.add_frame((RoomId::new(0), Seq::new(seq)), &Rc::new(vec![0; 10]));
            budget.sweep(2);
        }
        assert!(budget.frames.len() < 20, "{}", budget.frames.len());
        assert!(budget.frame((RoomId::new(0), Seq::new(0))).is_some());
    }

    proptest! {
        /// Against a plain list of what each session holds, and since when it is in its class.
        #[test]
        fn it_agrees_with_a_plain_list(
            steps in prop::collection::vec(
                (0..6_u32, 0..80_000_usize, 0..3_usize, any::<bool>()),
                1..100,
            ),
        ) {
            let mut budget = SessionBudget::new(100_000);
            let mut model: Vec<(Held, usize)> = vec![(Held::default(), 0); 6];
            for (step, (slot, bytes, kind, is_returning)) in steps.into_iter().enumerate() {
                let held = match kind {
                    0 => own(bytes),
                    1 => Held { shared_bytes: bytes, is_returning, ..Held::default() },
                    _ => Held {
                        own_bytes: bytes,
                        shared_bytes: bytes / 3,
                        spare_bytes: bytes / 2,
                        is_returning,
                    },
                };
                let (before, since) = model[slot as usize];
                let stays = before.class() == held.class() && before.is_listed() == held.is_listed();
                model[slot as usize] = (held, if stays { since } else { step });
                budget.weigh(slot, held);
                let sum: usize = model.iter().map(|(held, _)| held.charged_bytes()).sum();
                prop_assert_eq!(budget.charged_bytes, sum);
                let returning: usize = model.iter().map(|(held, _)| returning_bytes(*held)).sum();
                prop_assert_eq!(budget.returning_bytes, returning);
                let listed = (0..).zip(&model).filter(|(_, (held, _))| held.is_listed());
                let order = |held: &Held, since: &usize| (held.class(), usize::MAX - since);
                let heaviest = listed.max_by_key(|(_, (held, since))| order(held, since));
                prop_assert_eq!(budget.heaviest(), heaviest.map(|(slot, _)| slot));
            }
        }
    }
}
