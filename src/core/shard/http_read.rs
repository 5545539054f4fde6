//! Requests that are answered without a WebSocket: reads of a workspace, pages, and the CORS
//! permissions of pages from other origins.

use std::iter;
use std::ops::Range;

use smallvec::smallvec;

use crate::core::fanout::outbox::Due;
use crate::core::fanout::room::RoomId;
use crate::core::fanout::window::Chunk;
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::Shard;
use crate::core::shard::contract::{Clock, Intent};
use crate::core::shard::session::{Session, SessionId, StateTransfer};
use crate::core::snapshot::shared_snapshot::{Snapshot, SnapshotKind};
use crate::limits::STALL_TIMEOUT_US;
use crate::log::position::LogPosition;
use crate::seq::Seq;
use crate::wire::state;
use crate::wire::upgrade::{Answer, ReadTarget, StateRequest, matches_tag};

/// The header field of a presence answer that contains the total number of users; the body may list
/// only some of them.
const USER_COUNT: &str = "X-Total-Count";

/// The answer to a read over HTTP, and the log position that must be visible before it may be sent.
pub(super) struct ReadAnswer {
    pub answer: Answer,
    pub visible_from: LogPosition,
    state: Option<StateBody>,
    /// A body that may be sent to several sessions.
    shared: Option<Chunk>,
}

/// A state that follows the head of an answer.
struct StateBody {
    room_id: RoomId,
    snapshot: Snapshot,
    /// The range of the state within the init message.
    fields: Range<usize>,
    connections: usize,
}

impl From<Answer> for ReadAnswer {
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            visible_from: LogPosition::NONE,
            state: None,
            shared: None,
        }
    }
}

impl Shard {
    /// Verifies a request to read a workspace, and forwards it to the shard that owns the
    /// workspace.
    pub(super) fn admit_http_read(
        &mut self,
        id: SessionId,
        request: StateRequest,
        clock: Clock,
    ) -> Result<(), Answer> {
        let head_only = request.head_only;
        let allow_origin = self.allow_origin(request.origin.as_deref());
        let intent = Intent::Read {
            target: request.target,
            allow_origin: allow_origin.clone(),
            if_none_match: request.if_none_match,
            head_only,
        };
        self.verified(request.token.as_deref(), clock)
            .and_then(|_| self.pass_on(id, request.workspace, intent, clock))
            .map_err(|refusal| for_allowed(refusal, allow_origin.as_deref()).for_method(head_only))
    }

    /// Returns the answer to a read over HTTP.
    pub(super) fn http_read(
        &mut self,
        target: ReadTarget,
        workspace: &str,
        if_none_match: Option<&str>,
        head_only: bool,
        clock: Clock,
    ) -> ReadAnswer {
        let room_id = self.rooms.find(workspace);
        match target {
            ReadTarget::State => self.read_state(room_id, if_none_match, head_only, clock),
            ReadTarget::Presence => self.read_presence(room_id),
        }
    }

    /// Returns the answer with the users of a room: a list of limited length, and the total number
    /// of users.
    fn read_presence(&mut self, room_id: Option<RoomId>) -> ReadAnswer {
        let room = room_id.map(|id| &mut self.rooms[id]);
        let presence = room.and_then(|room| room.presence.as_mut());
        let (text, count) = match presence {
            None => (Chunk::new(b"[]".to_vec()), 0),
            Some(presence) => {
                let text = presence.text().unwrap_or_else(|| {
                    let text = presence.encode();
                    self.budget.add_shared(&text);
                    text
                });
                // Keep the list so that the next request finds it even after this one has been
                // answered.
                self.kept_presence = Some(Chunk::clone(&text));
                (text, presence.count())
            }
        };
        let answer = Answer::json_start(Vec::new(), text.len())
            .with("Cache-Control", "no-store")
            .with(USER_COUNT, &count.to_string());
        ReadAnswer {
            shared: Some(text),
            ..ReadAnswer::from(answer)
        }
    }

    fn read_state(
        &mut self,
        room_id: Option<RoomId>,
        if_none_match: Option<&str>,
        head_only: bool,
        clock: Clock,
    ) -> ReadAnswer {
        let room = room_id.map(|id| &self.rooms[id]);
        let (seq, visible_from) = room.map_or((Seq::NONE, LogPosition::NONE), |room| {
            (room.workspace.seq(), room.visible_from())
        });
        let tag = self.entity_tag(seq);
        let mut read_answer = if if_none_match.is_some_and(|list| matches_tag(list, &tag)) {
            ReadAnswer::from(Answer::not_modified())
        } else if let Some(room_id) = room_id {
            match self.state_of(room_id, head_only, clock) {
                Ok(read_answer) => read_answer,
                Err(refusal) => return ReadAnswer::from(refusal),
            }
        } else {
            let mut body = Vec::new();
            state::put_http_state(&mut body, iter::empty(), Seq::NONE, 0);
            ReadAnswer::from(Answer::json(body))
        };
        read_answer.visible_from = visible_from;
        read_answer.answer = read_answer
            .answer
            .with("ETag", &tag)
            .with("Cache-Control", "no-cache");
        read_answer
    }

    /// Returns the entity tag of a workspace's state at `seq`.
    ///
    /// A seq is reused for another op when the server starts on a restored copy of its log, and
    /// when a shard rebuilds its state from a log that has lost ops already sent in `interval` or
    /// `none` mode. So the tag also contains the generation. It is weak, because the number of
    /// connections may change while the state does not.
    fn entity_tag(&self, seq: Seq) -> String {
        let generation = self.generations.current();
        format!("W/\"{generation}.{seq}\"")
    }

    /// Returns the answer with the state of a room. With `head_only`, nothing is encoded and only
    /// the length is computed.
    fn state_of(
        &mut self,
        room_id: RoomId,
        head_only: bool,
        clock: Clock,
    ) -> Result<ReadAnswer, Answer> {
        let room = &self.rooms[room_id];
        let workspace = &room.workspace;
        let (connections, fields) = (room.members_count(), workspace.init_fields());
        let shared_bytes = fields.len() + workspace.stamps_bytes();
        let mut start = Vec::new();
        state::put_http_state_start(&mut start);
        let own_bytes = state::http_state_ends_bytes(connections) - start.len();
        let answer = Answer::json_start(start, shared_bytes + own_bytes);
        let state = if head_only {
            None
        } else {
            Some(StateBody {
                room_id,
                snapshot: self.snapshot(room_id, SnapshotKind::HttpRead, clock)?,
                fields,
                connections,
            })
        };
        Ok(ReadAnswer {
            state,
            ..ReadAnswer::from(answer)
        })
    }

    /// Queues the answer to a read over HTTP. Its parts are sent either all together or not at all.
    pub(super) fn answer_read(&mut self, id: SessionId, read_answer: ReadAnswer, clock: Clock) {
        let ReadAnswer {
            answer,
            visible_from,
            state,
            shared,
        } = read_answer;
        let timestamps = state
            .as_ref()
            .map(|state| state.snapshot.timestamps.clone());
        let due = Due {
            at: WindowOffset::START,
            visible_from,
            awaits: timestamps.flatten(),
        };
        self.answer_due(id, &answer, due.clone(), clock);
        if let Some(shared) = shared.filter(|_| answer.has_body()) {
            let outbox = &mut self.sessions[id].outbox;
            outbox.push_shared(shared, due, &mut self.pool);
            return self.update_memory(id);
        }
        let Some(StateBody {
            room_id,
            snapshot,
            fields,
            connections,
        }) = state
        else {
            return;
        };
        let pool = &mut self.pool;
        let end = pool.fill(32, |out| state::put_http_state_end(out, connections));
        let Session {
            outbox, transfer, ..
        } = &mut self.sessions[id];
        let Snapshot {
            init, timestamps, ..
        } = snapshot;
        let timestamps = timestamps.expect("a snapshot for an HTTP read has timestamps");
        // Eviction uses the transfers to find a state's receivers and how far they lag behind.
        let both = smallvec![init.clone(), timestamps.clone()];
        *transfer = Some(Box::new(StateTransfer::new(room_id, both)));
        outbox.push_state(init, fields, due.clone(), pool);
        let all = 0..timestamps.bytes();
        outbox.push_state(timestamps, all, due.clone(), pool);
        outbox.push_due(end, due, pool);
        self.update_memory(id);
    }

    /// Sends a rendered page to a session.
    pub(super) fn paged(&mut self, id: SessionId, answer: Answer, clock: Clock) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let answer = answer.for_method(session.head_only);
        self.answer_when_visible(id, &answer, LogPosition::NONE, clock);
    }

    /// Answers a request once the log position `visible_from` is visible. The answer may be long.
    pub(super) fn answer_when_visible(
        &mut self,
        id: SessionId,
        answer: &Answer,
        visible_from: LogPosition,
        clock: Clock,
    ) {
        let due = Due {
            at: WindowOffset::START,
            visible_from,
            awaits: None,
        };
        self.answer_due(id, answer, due, clock);
    }

    fn answer_due(&mut self, id: SessionId, answer: &Answer, due: Due, clock: Clock) {
        self.note_answer(id, answer);
        self.counters.responses.answered(answer.status());
        let chunk = self.pool.fill(512, |out| answer.encode(clock.unix_us, out));
        self.begin_closing(id, clock);
        let outbox = &mut self.sessions[id].outbox;
        outbox.push_due(chunk, due, &mut self.pool);
        self.update_memory(id);
        let session = &mut self.sessions[id];
        session.ends_long = true;
        session.deadline_us = clock.now_us + STALL_TIMEOUT_US;
        self.reschedule(id, clock);
    }

    /// Returns whether pages of `origin` may connect and read.
    pub(super) fn is_allowed(&self, origin: &str) -> bool {
        let allowed = &self.config.origins;
        allowed.is_empty() || allowed.iter().any(|allowed| allowed == origin)
    }

    /// Returns the `Access-Control-Allow-Origin` for a page of `origin` (the Fetch standard, "CORS
    /// protocol").
    fn allow_origin(&self, origin: Option<&str>) -> Option<String> {
        if self.config.origins.is_empty() {
            return Some("*".to_owned());
        }
        origin
            .filter(|origin| self.is_allowed(origin))
            .map(str::to_owned)
    }

    pub(super) fn for_origin(&self, answer: Answer, origin: Option<&str>) -> Answer {
        for_allowed(answer, self.allow_origin(origin).as_deref())
    }
}

/// Allows pages of `allow_origin` to read an answer. With `None`, only pages of the server's own
/// origin can read it.
pub(super) fn for_allowed(answer: Answer, allow_origin: Option<&str>) -> Answer {
    // A cache must not serve an answer for one origin to another.
    let answer = answer.with("Vary", "Origin");
    match allow_origin {
        Some(origin) => answer
            .with("Access-Control-Allow-Origin", origin)
            .with("Access-Control-Expose-Headers", "ETag, X-Total-Count"),
        None => answer,
    }
}
