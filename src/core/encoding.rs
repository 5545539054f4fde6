//! The texts of states: what is made of them, and how much of it may be on its way.

use std::rc::Rc;

use crate::core::shard::Shard;
use crate::core::snapshot::{Texts, Wanted};
use crate::limits::{ANSWER_BYTES_MAX, INIT_BYTES_KEPT_MAX, RETRY_AFTER_S};
use crate::wire::upgrade::Answer;

impl Shard {
    /// The state of a room, for one who joins or looks.
    pub(super) fn texts(&mut self, room_slot: u32, wanted: Wanted) -> Result<Texts, Answer> {
        let room = &self.rooms[room_slot as usize];
        let texts = if let Some(texts) = room.texts_at_hand(wanted) {
            texts
        } else {
            if !self.may_encode(room_slot, wanted) {
                self.counters.refused_snapshot_bytes += 1;
                return Err(Answer::unavailable(
                    "the server has as much on its way as it may",
                    RETRY_AFTER_S,
                ));
            }
            let room = &mut self.rooms[room_slot as usize];
            let (_, held_bytes) = room.texts_missing(wanted);
            let texts = room.encode_texts(wanted);
            if held_bytes == 0 {
                self.ledger.add(&texts.init);
            }
            if let Some(stamps) = &texts.stamps {
                self.ledger.add(stamps);
            }
            texts
        };
        // Who comes next, a moment after this one has it all, is to find it encoded.
        if texts.init.len() <= INIT_BYTES_KEPT_MAX {
            self.kept_init = Some(Rc::clone(&texts.init));
        }
        Ok(texts)
    }

    /// Whether what is missing of a state may be made.
    fn may_encode(&mut self, room_slot: u32, wanted: Wanted) -> bool {
        let most = self.config.snapshot_bytes_max;
        let (missing_bytes, _) = self.rooms[room_slot as usize].texts_missing(wanted);
        // As much as any session may have waiting: those who take so little are not kept out by those who take much.
        if missing_bytes <= ANSWER_BYTES_MAX || self.ledger.bytes() + missing_bytes <= most {
            return true;
        }
        self.kept_init = None;
        self.ledger.sweep_all();
        let (missing_bytes, held_bytes) = self.rooms[room_slot as usize].texts_missing(wanted);
        // One state that is larger than all that may be is served, too.
        let is_alone = self.ledger.bytes() <= held_bytes;
        is_alone || self.ledger.bytes() + missing_bytes <= most
    }
}
