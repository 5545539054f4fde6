//! The parameters of a load. Pure.

use std::time::Duration;

use super::op::FieldOrder;
use super::pace::Pace;
use super::protocol::ClientProtocol;

/// The interval at which the load generator checks for late deliveries.
pub const LATENESS_CHECK: Duration = Duration::from_millis(100);
/// The rate up to which every delivery is timed, since reading the clock then costs next to
/// nothing.
const TIMED_DELIVERIES_PER_S: u64 = 100_000;
/// At a higher rate, one delivery in this many is timed.
const SAMPLE: u64 = 16;

#[derive(Debug, Clone)]
pub struct Plan {
    pub rooms: u32,
    /// The number of receivers in each room, in addition to its sender.
    pub receivers: u32,
    pub pace: Pace,
    /// The protocol that the clients speak.
    pub protocol: ClientProtocol,
    /// The order in which the server writes the fields of an op.
    pub field_order: FieldOrder,
    /// Whether a client that joins receives the state.
    pub has_state: bool,
    pub warm_up: Duration,
    pub measured: Duration,
    /// A delivery that takes longer than this is a failure.
    pub late: Duration,
}

impl Plan {
    /// Returns the number of ops that may be in flight in a room: with a schedule, all ops that are
    /// due before the first one is late; otherwise, as many as the pace allows.
    pub fn ops_in_flight_max(&self) -> usize {
        match self.pace {
            Pace::Open { ops_per_s } => {
                let each_s = f64::from(ops_per_s) / f64::from(self.rooms);
                ops_within(each_s, self.late + LATENESS_CHECK) + 1
            }
            Pace::Closed { in_flight } => in_flight as usize,
        }
    }

    /// Returns the number *n* such that one delivery in *n* is timed.
    pub fn sample(&self) -> u64 {
        match self.pace {
            Pace::Open { ops_per_s }
                if u64::from(ops_per_s) * u64::from(self.receivers) <= TIMED_DELIVERIES_PER_S =>
            {
                1
            }
            _ => SAMPLE,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate and a time are positive, and their product is small"
)]
fn ops_within(ops_per_s: f64, time: Duration) -> usize {
    (ops_per_s * time.as_secs_f64()).ceil() as usize
}
