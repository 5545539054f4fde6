//! The memory of the answers to a session: of those that are queued, and of those in flight.

use std::ops::{AddAssign, SubAssign};

/// The memory held by an answer.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_field_names, reason = "a unit comes last in a name")]
pub(super) struct AnswerCost {
    /// Memory that only this session holds.
    pub own_bytes: usize,
    /// Memory that other sessions may hold too: corrections and lists of users, which count towards
    /// the budget in `core::shard::session_budget`.
    pub shared_bytes: usize,
    /// Memory of encoded states, which have a budget of their own.
    pub state_bytes: usize,
    /// How much of `own_bytes` and `shared_bytes` is a part of a state, which does not answer a
    /// message of the client: the next part is queued only when no answer is.
    pub part_bytes: usize,
}

/// The memory of the answers that the send in flight completes. The kernel owns it until the send
/// ends.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_field_names, reason = "a unit comes last in a name")]
pub(super) struct InFlight {
    pub own_bytes: u32,
    pub shared_bytes: u32,
    /// How much of both is a part of a state.
    pub part_bytes: u32,
}

impl InFlight {
    pub fn add(&mut self, cost: AnswerCost) {
        // No answer is longer than the largest frame, and a send carries little more than one
        // answer.
        let narrow = |bytes: usize| u32::try_from(bytes).expect("a send is smaller than 4 GiB");
        self.own_bytes += narrow(cost.own_bytes);
        self.shared_bytes += narrow(cost.shared_bytes);
        self.part_bytes += narrow(cost.part_bytes);
    }
}

impl AnswerCost {
    pub fn bytes(self) -> usize {
        self.own_bytes + self.shared_bytes + self.state_bytes
    }
}

impl AddAssign for AnswerCost {
    fn add_assign(&mut self, other: Self) {
        self.own_bytes += other.own_bytes;
        self.shared_bytes += other.shared_bytes;
        self.state_bytes += other.state_bytes;
        self.part_bytes += other.part_bytes;
    }
}

impl SubAssign for AnswerCost {
    fn sub_assign(&mut self, other: Self) {
        self.own_bytes -= other.own_bytes;
        self.shared_bytes -= other.shared_bytes;
        self.state_bytes -= other.state_bytes;
        self.part_bytes -= other.part_bytes;
    }
}
