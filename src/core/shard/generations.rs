//! The generations of a shard's history, and which clients may resume in them.
//!
//! A generation begins at each start of the server and after each rebuild of the shard. It has a
//! random id, and its record in the log comes before its first op. So if two servers continue
//! copies of one data directory, or one server continues an older copy, a client that has seen one
//! history is not sent only the changes of the other.

use crate::core::shard::contract::{LoggedGenerations, RestoredState};
use crate::core::state::workspace::Workspace;
use crate::generation::Generation;
use crate::log::record::{Change, LoggedOp};
use crate::seq::Seq;
use crate::wire::message::v2::WelcomeReason;
use crate::wire::upgrade::ResumePoint;

/// The record of a generation, which is logged before its first op.
pub(super) struct GenerationRecord {
    /// The number of the shard, in decimal digits.
    key: Box<str>,
    number: u64,
    id: Generation,
    shards: u32,
}

impl GenerationRecord {
    pub fn op(&self) -> LoggedOp<'_> {
        LoggedOp {
            workspace: "",
            key: &self.key,
            change: Change::Generation {
                id: self.id,
                shards: self.shards,
            },
            seq: Seq::new(self.number),
            timestamp: self.number,
        }
    }
}

/// The current generation of a shard, and the one directly before it.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// `None` while the log is being read for the first time.
    current: Option<Generation>,
    /// The generation that the current one continues; `None` if it is not known.
    previous: Option<Generation>,
    /// The number of the current generation, which is greater than those before it in the log.
    number: u64,
    /// Whether each op is durable before it is sent.
    is_durable: bool,
}

impl Generations {
    /// Begins the generation of a state that was read from the log, which may be continued later
    /// only if `is_durable`.
    ///
    /// If ops are sent before they are durable, a crash may undo some of them. A part of a state
    /// that was sent before the crash omits the entry that such an op had replaced, and a client
    /// that resumes from that part is not sent the entry either. So no client may resume in this
    /// case.
    pub fn begin(&mut self, state: &RestoredState, is_durable: bool) {
        let LoggedGenerations {
            last_number,
            previous,
        } = state.logged.unwrap_or(LoggedGenerations {
            last_number: self.number,
            previous: self.current,
        });
        *self = Self {
            current: Some(state.generation),
            previous: previous.filter(|_| is_durable),
            number: last_number + 1,
            is_durable,
        };
    }

    /// Returns the current generation of a shard that serves.
    pub fn current(&self) -> Generation {
        self.current.expect("a generation begins with the state")
    }

    /// Returns the record of the current generation of a shard, which is one of `shards`.
    pub fn record(&self, shard: u32, shards: u32) -> GenerationRecord {
        GenerationRecord {
            key: shard.to_string().into(),
            number: self.number,
            id: self.current(),
            // No later start continues a generation of 0 shards.
            shards: if self.is_durable { shards } else { 0 },
        }
    }

    /// Returns the state that a version 2 client is sent when it joins a workspace, and why.
    /// `resume` is the point at which it asks to resume, if it does; `workspace` is `None` if
    /// nobody has written to it.
    ///
    /// The client may resume if its history is a prefix of the current one. That is certain in the
    /// current generation. Of the previous one, only ops that were read back from the log belong to
    /// the current history: later ops were lost, or came from a server that continued a copy.
    pub fn welcome_reason(
        &self,
        resume: Option<ResumePoint>,
        workspace: Option<&Workspace>,
    ) -> WelcomeReason {
        let Some(ResumePoint { since, generation }) = resume else {
            return WelcomeReason::First;
        };
        let known_seq = if Some(generation) == self.current {
            workspace.map_or(Seq::NONE, Workspace::seq)
        } else if Some(generation) == self.previous {
            workspace.map_or(Seq::NONE, Workspace::begun_seq)
        } else {
            return WelcomeReason::OtherGeneration;
        };
        if since > known_seq {
            return WelcomeReason::OtherGeneration;
        }
        let floor = workspace.and_then(Workspace::floor);
        if floor.is_some_and(|floor| since < floor.dropped_seq) {
            return WelcomeReason::TooOld;
        }
        WelcomeReason::Resumed
    }
}
