//! The texts of states: how much of them may be on its way, and the encoding of large ones, a part in each turn.

use std::rc::Rc;

use crate::core::contract::Clock;
use crate::core::fanout::window::Chunk;
use crate::core::shard::Shard;
use crate::core::snapshot::encoded::{Part, Texts, Wanted};
use crate::limits::{
    ANSWER_BYTES_MAX, INIT_BYTES_KEPT_MAX, RETRY_AFTER_S, SNAPSHOT_RESERVE_SHARE,
    SNAPSHOT_SMALL_BYTES,
};
use crate::wire::upgrade::Answer;

impl Shard {
    /// The state of a room, for one who joins or looks. What of it is large is whole some turns later.
    pub(super) fn texts(
        &mut self,
        room_slot: u32,
        wanted: Wanted,
        clock: Clock,
    ) -> Result<Texts, Answer> {
        let at_hand = self.rooms[room_slot as usize].texts_at_hand(wanted);
        let texts = match at_hand {
            Some(texts) => texts,
            None => self.new_texts(room_slot, wanted, clock)?,
        };
        if let Some(init) = texts.init.chunk() {
            self.keep_init(init);
        }
        Ok(texts)
    }

    fn new_texts(&mut self, room_slot: u32, wanted: Wanted, clock: Clock) -> Result<Texts, Answer> {
        if !self.may_encode(room_slot, wanted, clock) {
            self.counters.refused_snapshot_bytes += 1;
            let why = "the server has as much on its way as it may";
            return Err(Answer::unavailable(why, RETRY_AFTER_S));
        }
        let room = &mut self.rooms[room_slot as usize];
        let missing = room.texts_missing(wanted);
        let is_small = missing.bytes <= self.config.snapshot_part_bytes;
        // A room without a state may be forgotten when the last one leaves.
        if room.workspace.is_untouched() || is_small && !missing.is_awaited {
            let texts = room.encode_texts(wanted);
            let init = texts.init.chunk().filter(|_| missing.held_bytes == 0);
            let stamps = texts.stamps.as_ref().and_then(|stamps| stamps.chunk());
            for chunk in init.into_iter().chain(stamps) {
                self.snapshot_budget.add(chunk);
            }
            return Ok(texts);
        }
        let (texts, is_more) = room.begin_texts(wanted);
        self.snapshot_budget.promise(missing.bytes);
        if is_more {
            self.encoding_queue.push_back(room_slot);
        }
        Ok(texts)
    }

    /// Whether what is missing of a state may be made. Where there is no room for it, what nobody
    /// takes gives way.
    fn may_encode(&mut self, room_slot: u32, wanted: Wanted, clock: Clock) -> bool {
        let missing = self.rooms[room_slot as usize].texts_missing(wanted);
        // As much as any session may have waiting: those who take so little are not kept out by those who take much.
        let is_tiny = missing.bytes <= ANSWER_BYTES_MAX;
        let most = self.snapshot_bytes_for(missing.bytes);
        if self.snapshot_budget.bytes() + missing.bytes <= most {
            return true;
        }
        self.kept_init = None;
        self.snapshot_budget.sweep_all();
        let missing = self.rooms[room_slot as usize].texts_missing(wanted);
        let most = self.snapshot_bytes_for(missing.bytes);
        // One state that is larger than all that may be is served, too.
        let is_alone = self.snapshot_budget.bytes() <= missing.held_bytes;
        if is_alone || self.snapshot_budget.bytes() + missing.bytes <= most {
            return true;
        }
        self.give_up_states(missing.bytes, most, clock);
        // What it shares may have been given up.
        let missing = self.rooms[room_slot as usize].texts_missing(wanted);
        is_tiny
            || self.snapshot_budget.bytes() + missing.bytes
                <= self.snapshot_bytes_for(missing.bytes)
    }

    /// What all states may take with one of so many bytes: large ones leave a reserve for those
    /// that are not.
    fn snapshot_bytes_for(&self, bytes: usize) -> usize {
        let most = self.config.snapshot_bytes_max;
        if bytes <= SNAPSHOT_SMALL_BYTES {
            most
        } else {
            most - most / SNAPSHOT_RESERVE_SHARE
        }
    }

    /// Goes on with the states that are being encoded: with all together as far as one turn may, and with each in its turn.
    pub(super) fn encode_parts(&mut self) {
        let mut left_bytes = self.config.snapshot_part_bytes;
        let mut is_any_whole = false;
        while left_bytes > 0
            && let Some(room_slot) = self.encoding_queue.pop_front()
        {
            let progress = self.rooms[room_slot as usize].encode_part(left_bytes);
            left_bytes = left_bytes.saturating_sub(progress.step.bytes);
            self.snapshot_budget.release(progress.released_bytes);
            if progress.goes_on {
                self.encoding_queue.push_back(room_slot);
            }
            if let Some((part, chunk)) = &progress.step.whole {
                is_any_whole = true;
                self.snapshot_budget.add(chunk);
                if *part == Part::Init {
                    self.keep_init(chunk);
                }
            }
        }
        if is_any_whole {
            self.sends.wake(&mut self.sessions);
        }
    }

    /// Who comes next, a moment after the last one has it all, is to find it encoded.
    fn keep_init(&mut self, init: &Chunk) {
        if init.len() <= INIT_BYTES_KEPT_MAX {
            self.kept_init = Some(Rc::clone(init));
        }
    }
}
