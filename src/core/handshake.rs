//! The first part of a session's life: the request head, the token, joining a workspace.

use crate::core::contract::{Clock, Output, Ticket, shard_of};
use crate::core::room::Room;
use crate::core::session::{Intake, Session, SessionId, State};
use crate::core::shard::{Drain, Health, Shard};
use crate::core::workspace::Workspace;
use crate::limits::{HEAD_TIMEOUT_US, RETRY_AFTER_S};
use crate::wire::frame;
use crate::wire::upgrade::{self, Answer, Request, SyncRequest};

impl Shard {
    pub(super) fn open_session(&mut self, over_limit: bool, clock: Clock) -> SessionId {
        self.generation = self.generation.wrapping_add(1);
        let deadline_us = clock.now_us + HEAD_TIMEOUT_US;
        let session = Session::new(self.generation, over_limit, clock.now_us, deadline_us);
        let slot = self.sessions.insert(session);
        let slot = u32::try_from(slot).expect("fewer sessions than descriptors");
        let id = SessionId {
            slot,
            generation: self.generation,
        };
        self.schedule(id, deadline_us);
        id
    }

    /// Takes bytes of the request head.
    pub(super) fn read_head(&mut self, id: SessionId, bytes: &[u8], clock: Clock) {
        let Some(session) = self.session(id) else {
            return;
        };
        session.unparsed.extend_from_slice(bytes);
        match upgrade::parse_head(&session.unparsed) {
            Ok(None) => self.receive_queue.push(id),
            Ok(Some((head_bytes, request))) => {
                session.unparsed.drain(..head_bytes);
                let answer = match request {
                    Request::Sync(request) => self.admit(id, request, clock).err(),
                    Request::Healthz { head_only } => Some(Answer::health(true, head_only, "ok")),
                    Request::Readyz { head_only } => Some(self.readiness(head_only)),
                };
                if let Some(answer) = answer {
                    self.answer(id, &answer, clock);
                }
            }
            Err(answer) => self.answer(id, &answer, clock),
        }
    }

    fn readiness(&self, head_only: bool) -> Answer {
        if self.drain != Drain::No {
            return Answer::health(false, head_only, "draining");
        }
        if self.health == Health::Recovering {
            let percent = self.surroundings.recovered_percent;
            let text = format!("the log is being read: {percent} %");
            return Answer::health(false, head_only, &text);
        }
        let ready = self.surroundings.ready && self.health.is_serving();
        Answer::health(
            ready,
            head_only,
            if ready {
                "ready"
            } else {
                "a shard cannot write its log"
            },
        )
    }

    /// Lets a client in, here or at the shard that owns its workspace.
    fn admit(&mut self, id: SessionId, request: SyncRequest, clock: Clock) -> Result<(), Answer> {
        let grant = self
            .config
            .verifier
            .verify(request.token.as_deref(), clock.unix_us)
            .map_err(|error| Answer::unauthorized(&error.to_string()))?;
        let session = &mut self.sessions[id.slot as usize];
        if session.over_limit {
            return Err(Answer::unavailable(
                "the server has as many connections as it may",
                RETRY_AFTER_S,
            ));
        }
        let owner = shard_of(&request.workspace, self.config.shards);
        let SyncRequest {
            workspace,
            accept_key,
            ..
        } = request;
        let unparsed = std::mem::take(&mut session.unparsed);
        let ticket = Ticket {
            workspace,
            grant,
            accept_key,
            unparsed,
        };
        if owner == self.config.shard {
            self.join(id, ticket, clock);
        } else {
            self.retire(id);
            self.outputs.push_back(Output::Handoff(id, owner, ticket));
        }
        Ok(())
    }

    /// Makes a client a member of its workspace: 101, then init.
    pub(super) fn join(&mut self, id: SessionId, ticket: Ticket, clock: Clock) {
        if self.drain != Drain::No {
            return self.answer(
                id,
                &Answer::unavailable("the server is stopping", RETRY_AFTER_S),
                clock,
            );
        }
        if self.health == Health::Recovering {
            let answer = Answer::unavailable("the server is starting", RETRY_AFTER_S);
            return self.answer(id, &answer, clock);
        }
        if !self.health.is_serving() {
            return self.answer(id, &Answer::internal_server_error(), clock);
        }
        let room_slot = self.enter_room(&ticket.workspace);
        let room = &mut self.rooms[room_slot as usize];
        let init = room.init();
        let member = u32::try_from(room.members.len()).expect("fewer members than descriptors");
        room.members.push(id.slot);

        let session = &mut self.sessions[id.slot as usize];
        session.state = State::Open {
            room: room_slot,
            member,
        };
        session.expires_at_us = ticket.grant.expires_at_us;
        session.deadline_us = u64::MAX;
        // Pings are spread over the interval by a walk of the golden ratio over the slots.
        let spread =
            (u64::from(id.slot.wrapping_mul(0x9E37_79B9)) * self.config.ping_interval_us) >> 32;
        session.next_ping_us = clock.now_us + self.config.ping_interval_us - spread / 2;
        let answer = self.pool.fill(256, |out| {
            upgrade::switching_protocols(&ticket.accept_key, out);
        });
        session.outbox.follow(init.at);
        session.outbox.push(answer, init.at, 0, &mut self.pool);
        session
            .outbox
            .push(init.chunk, init.at, init.gate, &mut self.pool);
        session.intake = if ticket.unparsed.is_empty() {
            Intake::Receiving
        } else {
            Intake::Unread
        };
        session.unparsed = ticket.unparsed;
        if session.intake == Intake::Unread {
            self.unread_queue.push_back(id);
        } else {
            session.unparsed = Vec::new();
            self.receive_queue.push(id);
        }
        self.enqueue(id);
        self.reschedule(id, clock);
    }

    /// The slot of a workspace's room; one that was never seen begins empty.
    fn enter_room(&mut self, workspace: &str) -> u32 {
        if let Some(slot) = self.room_index.get(workspace) {
            return *slot;
        }
        self.insert_room(Room::new(Workspace::new(workspace, self.config.hash_seed)))
    }

    pub(super) fn insert_room(&mut self, room: Room) -> u32 {
        let id = Box::from(room.workspace.id());
        let slot = u32::try_from(self.rooms.insert(room)).expect("fewer rooms than 2^32");
        self.room_index.insert(id, slot);
        slot
    }

    /// Answers a request with something else than 101, and closes.
    pub(super) fn answer(&mut self, id: SessionId, answer: &Answer, clock: Clock) {
        let chunk = self.pool.fill(512, |out| answer.encode(out));
        self.send_last(id, chunk, clock);
    }

    /// Closes an open session with a close frame.
    pub(super) fn close(&mut self, id: SessionId, code: u16, reason: &str, clock: Clock) {
        let chunk = self
            .pool
            .fill(128, |out| frame::put_close(out, code, reason));
        self.send_last(id, chunk, clock);
    }
}
