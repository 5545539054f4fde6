//! What is answered without a WebSocket: looks at a workspace, pages, and what pages of other origins may do.

use crate::core::contract::{Clock, Wish};
use crate::core::room::Room;
use crate::core::session::SessionId;
use crate::core::shard::Shard;
use crate::limits::STALL_TIMEOUT_US;
use crate::wire::state::{self, Register};
use crate::wire::upgrade::{Answer, Look, LookRequest, matches_tag};

impl Shard {
    /// Checks a request for a look, and gives it to the shard that owns the workspace.
    pub(super) fn admit_look(
        &mut self,
        id: SessionId,
        request: LookRequest,
        clock: Clock,
    ) -> Result<(), Answer> {
        let head_only = request.head_only;
        let allow_origin = self.allow_origin(request.origin.as_deref());
        let wish = Wish::Look {
            look: request.look,
            allow_origin: allow_origin.clone(),
            if_none_match: request.if_none_match,
            head_only,
        };
        self.verified(request.token.as_deref(), clock)
            .and_then(|_| self.pass_on(id, request.workspace, wish, clock))
            .map_err(|refusal| for_allowed(refusal, allow_origin.as_deref()).for_method(head_only))
    }

    /// The answer to a look, and the log position that must be visible before it may be shown.
    pub(super) fn look(
        &self,
        look: Look,
        workspace: &str,
        if_none_match: Option<&str>,
    ) -> (Answer, u64) {
        let room = self.room_index.get(workspace);
        let room = room.map(|slot| &self.rooms[*slot as usize]);
        match look {
            Look::State => {
                let seq = room.map_or(0, |room| room.workspace.seq());
                let tag = format!("\"{seq}\"");
                let is_known = if_none_match.is_some_and(|list| matches_tag(list, &tag));
                let answer = if is_known {
                    Answer::not_modified()
                } else {
                    let mut body = Vec::new();
                    let connections = room.map_or(0, |room| room.members.len());
                    let entries = room.into_iter().flat_map(|room| room.workspace.entries());
                    let fields = entries.map(|entry| Register {
                        key: entry.key(),
                        value: entry.value(),
                        timestamp: entry.timestamp(),
                    });
                    state::put_state(&mut body, fields, seq, connections);
                    Answer::json(body)
                };
                // Weak: the number of connections changes without the state.
                let answer = answer
                    .with("ETag", &format!("W/{tag}"))
                    .with("Cache-Control", "no-cache");
                (answer, room.map_or(0, Room::gate))
            }
            Look::Presence => {
                let mut users: Vec<&str> = room
                    .into_iter()
                    .flat_map(|room| &room.members)
                    .filter_map(|slot| self.users.get(slot).map(Box::as_ref))
                    .collect();
                users.sort_unstable();
                users.dedup();
                let mut body = Vec::new();
                state::put_presence(&mut body, &users);
                (Answer::json(body).with("Cache-Control", "no-store"), 0)
            }
        }
    }

    /// Sends a page that was made for a session.
    pub(super) fn paged(&mut self, id: SessionId, answer: Answer, clock: Clock) {
        let Some(session) = self.session(id) else {
            return;
        };
        let answer = answer.for_method(session.head_only);
        self.answer_gated(id, &answer, 0, clock);
    }

    /// Answers a request, once `gate` is visible, with what may be long.
    pub(super) fn answer_gated(&mut self, id: SessionId, answer: &Answer, gate: u64, clock: Clock) {
        self.counters.responses.answered(answer.status());
        let chunk = self.pool.fill(512, |out| answer.encode(out));
        self.queue_last(id, chunk, gate, clock);
        self.sessions[id.slot as usize].deadline_us = clock.now_us + STALL_TIMEOUT_US;
        self.reschedule(id, clock);
    }

    /// Whether pages of this origin may connect and read.
    pub(super) fn is_allowed(&self, origin: &str) -> bool {
        let allowed = &self.config.origins;
        allowed.is_empty() || allowed.iter().any(|allowed| allowed == origin)
    }

    /// What `Access-Control-Allow-Origin` says to a page of this origin (the Fetch standard, "CORS protocol").
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

/// The answer, readable for pages of that origin; without one, for those of the server's own alone.
pub(super) fn for_allowed(answer: Answer, allow_origin: Option<&str>) -> Answer {
    // A cache must not show one origin what was said to another.
    let answer = answer.with("Vary", "Origin");
    match allow_origin {
        Some(origin) => answer
            .with("Access-Control-Allow-Origin", origin)
            .with("Access-Control-Expose-Headers", "ETag"),
        None => answer,
    }
}
