//! The schedule.

use super::*;

#[test]
fn a_schedule_does_not_drift() {
    let schedule = Schedule {
        start_ns: 7,
        ops_per_s: 3,
    };
    assert_eq!(schedule.due_ns(0), 7);
    assert_eq!(schedule.due_ns(1), 333_333_340);
    assert_eq!(schedule.due_ns(3), 1_000_000_007);
    assert_eq!(schedule.due_ns(3_000_000_000), 1_000_000_000_000_000_007);
}
