//! The entries about individual connections in the server's log, for operators who enable them
//! (`--log-level debug`).
//!
//! The shard keeps this record only if
//! [`ShardConfig::has_journal`](crate::core::shard::contract::ShardConfig) is set. Otherwise, a
//! session takes no additional memory, and each of its events costs a single check of an `Option`.

use crate::core::shard::session::SessionId;

/// The code for a connection that ends without a close frame (RFC 6455 section 7.4.1).
const LOST: u16 = 1006;
/// The code for a close frame that contains no code (RFC 6455 section 7.4.1).
const NO_STATUS: u16 = 1005;
/// The length of the longest text from a client that is logged in full. A longer text is truncated.
const TEXT_BYTES_MAX: usize = 128;

/// A connection event to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The client has become a member of a workspace.
    Joined(Member),
    /// The version 1 client has sent an op with a timestamp before 2001, for the first time.
    EarlyTimestamp(u64),
    /// The connection has ended.
    Ended(Ended),
}

/// A client in its workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The id of the workspace.
    pub workspace: String,
    /// The `sub` claim of the client's token, which may be any text; a long one is truncated.
    pub subject: Option<String>,
}

/// The side that ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The client closed first.
    Client,
    /// The server closed first.
    Server,
    /// Neither: the connection was lost or aborted.
    Nobody,
}

impl Party {
    /// Returns the name that the server's log uses for the party.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Nobody => "nobody",
        }
    }
}

/// The reason for the end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The status of the answer, or the close code for a member.
    pub code: u16,
    /// The reason. A reason sent by the client is truncated.
    pub reason: String,
    /// The side that closed first.
    pub closed_by: Party,
}

/// The totals of a connection that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The client in its workspace, or `None` if it never joined one.
    pub member: Option<Member>,
    /// The reason, or `None` if the client sent no request or did not wait for the answer.
    pub ending: Option<Ending>,
    /// The time at which the connection was accepted or arrived from another shard.
    pub begun_us: u64,
    /// The number of bytes that were received from the client.
    pub bytes_received: u64,
    /// The number of bytes that the socket accepted.
    pub bytes_sent: u64,
    /// The number of ops that the client sent, including refused ones.
    pub ops: u64,
    /// Whether one of them had a timestamp before 2001.
    pub has_early_timestamp: bool,
}

/// The records of a shard's connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectionLog {
    /// Entries, indexed by the slots of their sessions.
    entries: Vec<Option<Box<Ended>>>,
}

impl ConnectionLog {
    /// Begins the entry of a session.
    pub fn begin(&mut self, id: SessionId, now_us: u64) {
        let slot = id.slot as usize;
        if slot >= self.entries.len() {
            self.entries.resize_with(slot + 1, || None);
        }
        self.entries[slot] = Some(Box::new(Ended {
            member: None,
            ending: None,
            begun_us: now_us,
            bytes_received: 0,
            bytes_sent: 0,
            ops: 0,
            has_early_timestamp: false,
        }));
    }

    /// Removes the entry of a session that continues on another shard.
    pub fn forget(&mut self, id: SessionId) {
        if let Some(entry) = self.entries.get_mut(id.slot as usize) {
            *entry = None;
        }
    }

    /// Records that a session joined, and returns the note to be logged.
    pub fn joined(&mut self, id: SessionId, workspace: &str, subject: Option<&str>) -> Note {
        let member = Member {
            workspace: workspace.to_owned(),
            subject: subject.map(cut),
        };
        if let Some(ended) = self.entry(id) {
            ended.member = Some(member.clone());
        }
        Note::Joined(member)
    }

    pub fn received(&mut self, id: SessionId, bytes: usize) {
        if let Some(ended) = self.entry(id) {
            ended.bytes_received += bytes as u64;
        }
    }

    pub fn sent(&mut self, id: SessionId, bytes: usize) {
        if let Some(ended) = self.entry(id) {
            ended.bytes_sent += bytes as u64;
        }
    }

    pub fn op(&mut self, id: SessionId) {
        if let Some(ended) = self.entry(id) {
            ended.ops += 1;
        }
    }

    /// Records an op with a timestamp before 2001. Returns the note to be logged if it is the first
    /// one of its connection.
    pub fn early_timestamp(&mut self, id: SessionId, timestamp: u64) -> Option<Note> {
        let ended = self.entry(id)?;
        let is_first = !std::mem::replace(&mut ended.has_early_timestamp, true);
        is_first.then_some(Note::EarlyTimestamp(timestamp))
    }

    /// Records why a connection is about to end. Only the first reason is kept.
    pub fn ending(&mut self, id: SessionId, code: u16, reason: &str, closed_by: Party) {
        if let Some(ended) = self.entry(id) {
            ended.ending.get_or_insert_with(|| Ending {
                code,
                reason: cut(reason),
                closed_by,
            });
        }
    }

    /// Records that the client is closing the connection, with the code and reason that it sent.
    pub fn closed_by_client(&mut self, id: SessionId, close: Option<(u16, &str)>) {
        let (code, reason) = close.unwrap_or((NO_STATUS, ""));
        self.ending(id, code, reason, Party::Client);
    }

    /// Ends the entry of a session and returns the note to be logged. Returns `None` if the session
    /// has no entry.
    pub fn end(&mut self, id: SessionId) -> Option<Note> {
        let mut ended = *self.entries.get_mut(id.slot as usize)?.take()?;
        if ended.member.is_some() {
            ended.ending.get_or_insert_with(|| Ending {
                code: LOST,
                reason: "the connection was lost".to_owned(),
                closed_by: Party::Nobody,
            });
        }
        Some(Note::Ended(ended))
    }

    fn entry(&mut self, id: SessionId) -> Option<&mut Ended> {
        self.entries.get_mut(id.slot as usize)?.as_deref_mut()
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> SessionId {
        SessionId {
            slot,
            generation: 1,
        }
    }

    fn ended(note: Option<Note>) -> Ended {
        match note {
            Some(Note::Ended(ended)) => ended,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_is_logged_from_its_join_to_its_end() {
        let mut journal = ConnectionLog::default();
        journal.begin(id(3), 1_000);
        journal.received(id(3), 300);
        let member = Member {
            workspace: "w".to_owned(),
            subject: Some("s".repeat(TEXT_BYTES_MAX)),
        };
        let long = "s".repeat(200);
        let joined = journal.joined(id(3), "w", Some(&long));
        assert_eq!(joined, Note::Joined(member.clone()));
        journal.received(id(3), 50);
        journal.sent(id(3), 70);
        journal.op(id(3));
        journal.ending(id(3), 1008, "too many messages", Party::Server);
        journal.closed_by_client(id(3), Some((1000, "bye")));
        let expected = Ended {
            member: Some(member),
            ending: Some(Ending {
                code: 1008,
                reason: "too many messages".to_owned(),
                closed_by: Party::Server,
            }),
            begun_us: 1_000,
            bytes_received: 350,
            bytes_sent: 70,
            ops: 1,
            has_early_timestamp: false,
        };
        assert_eq!(ended(journal.end(id(3))), expected);
        assert_eq!(journal.end(id(3)), None, "a session ended twice");
    }

    #[test]
    fn an_end_without_a_reason_is_a_lost_connection_of_a_member_only() {
        let mut journal = ConnectionLog::default();
        for slot in [0, 1] {
            journal.begin(id(slot), 0);
        }
        journal.joined(id(1), "w", None);
        assert_eq!(ended(journal.end(id(0))).ending, None);
        let ending = ended(journal.end(id(1))).ending;
        assert_eq!(ending.map(|ending| ending.code), Some(LOST));
    }

    #[test]
    fn a_session_that_was_handed_off_is_not_logged() {
        let mut journal = ConnectionLog::default();
        journal.begin(id(0), 0);
        journal.forget(id(0));
        journal.received(id(0), 1);
        assert_eq!(journal.end(id(0)), None);
        assert_eq!(journal.end(id(7)), None, "an unknown session has an end");
    }

    #[test]
    fn a_close_frame_without_a_code_is_logged_as_1005() {
        let mut journal = ConnectionLog::default();
        journal.begin(id(0), 0);
        journal.joined(id(0), "w", None);
        journal.closed_by_client(id(0), None);
        let ending = ended(journal.end(id(0)))
            .ending
            .expect("the end is recorded");
        assert_eq!((ending.code, ending.closed_by), (NO_STATUS, Party::Client));
    }
}
