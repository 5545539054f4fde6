//! Marks, levels, allowances, and a log with compaction at any speed.

use proptest::prelude::*;

use super::*;
use crate::limits::{LIGHT_BURST_BYTES, LIGHT_BYTES_PER_SECOND};
use crate::limits::{LOG_SPARE_BYTES, SEGMENT_BYTES_MIN};

const LIVE: u64 = 100 << 20;

/// Returns the state of a log that was measured, has closed the segments in `since` after that, and
/// was then updated once.
fn space(closed_bytes: u64, since: &[u64], open_bytes: u64) -> LogSpace {
    let mut space = LogSpace::new(LOG_SPARE_BYTES);
    space.measured(LogSize {
        open_index: 10,
        closed_bytes,
        kept_bytes: 0,
        is_compacted: true,
        room_end: LogPosition::MAX,
    });
    for (index, bytes) in (10..).zip(since) {
        space.closed(index, *bytes);
    }
    space.update(open_bytes, LIVE, SECOND_US);
    space
}

#[test]
fn every_part_of_the_log_counts_once() {
    let mut space = space(1000, &[20, 3], 500_000);
    assert_eq!(space.log_bytes(), 501_023);
    // The measurement includes the segments that were closed before it.
    space.measured(LogSize {
        open_index: 11,
        closed_bytes: 700,
        ..space.size
    });
    space.closed(10, 20);
    space.update(0, LIVE, SECOND_US);
    assert_eq!(space.log_bytes(), 703);
}

#[test]
fn the_rate_drops_at_each_mark() {
    let marks = Marks::new(LIVE, LOG_SPARE_BYTES);
    let Marks {
        slow_bytes,
        full_bytes,
        stop_bytes,
    } = marks;
    assert_eq!(slow_bytes, 225 << 20 | 8 << 20);
    let rate = |bytes| match marks.level(bytes) {
        Level::Slow { bytes_per_second } => Some(bytes_per_second),
        Level::Free | Level::Stopped => None,
    };
    assert_eq!(marks.level(slow_bytes - 1), Level::Free);
    assert_eq!(rate(slow_bytes), Some(LOG_BYTES_PER_SECOND));
    let middle = rate(u64::midpoint(slow_bytes, full_bytes)).unwrap();
    assert_eq!(middle, LOG_BYTES_PER_SECOND / 4);
    assert_eq!(rate(full_bytes - 1), Some(0));
    assert_eq!(rate(stop_bytes - 1), Some(0));
    assert_eq!(marks.level(stop_bytes), Level::Stopped);
}

#[test]
fn live_ops_of_other_shards_in_the_folder_do_not_cause_waiting() {
    let mut space = space(3 * LIVE, &[], 0);
    assert!(!space.is_free());
    space.measured(LogSize {
        kept_bytes: 3 * LIVE,
        ..space.size
    });
    space.update(0, LIVE, SECOND_US);
    assert!(space.is_free());
}

#[test]
fn no_client_waits_for_a_failing_compaction() {
    let mut space = space(100 * LIVE, &[], 0);
    assert!(space.is_stopped());
    space.measured(LogSize {
        is_compacted: false,
        ..space.size
    });
    space.update(0, LIVE, SECOND_US);
    assert!(space.is_free());
    assert!(LogSpace::new(0).is_free(), "slowed before a measurement");
}

#[test]
fn a_flood_waits_while_a_light_writer_continues_up_to_the_last_mark() {
    let Marks {
        full_bytes,
        stop_bytes,
        ..
    } = Marks::new(LIVE, LOG_SPARE_BYTES);
    for (bytes, may_light_write) in [(full_bytes, true), (stop_bytes, false)] {
        let mut space = space(bytes, &[], 0);
        let (mut flood, mut light) = (WriteAllowance::default(), WriteAllowance::default());
        let (mut written_bytes, mut light_count) = (0, 0);
        for ms in 1000..3000_u64 {
            let now_us = ms * 1000;
            space.update(0, LIVE, now_us);
            while space.may_write(&mut flood, now_us) {
                space.charge(&mut flood, 1000, now_us);
                written_bytes += 1000;
            }
            if ms % 20 == 0 && space.may_write(&mut light, now_us) {
                space.charge(&mut light, 1000, now_us);
                light_count += 1;
            }
        }
        // The flood may write as much as any light workspace, plus the message that exceeds the
        // limit.
        let allowed = LIGHT_BURST_BYTES + 2 * LIGHT_BYTES_PER_SECOND + 1000;
        assert!(written_bytes <= allowed, "{written_bytes} at {bytes}");
        assert_eq!(light_count, if may_light_write { 100 } else { 0 });
    }
}

#[test]
fn the_disk_counts_as_full_from_a_position_onward() {
    let mut space = space(0, &[], 0);
    assert!(!space.is_disk_full(LogPosition::new(u64::MAX - 1)));
    space.measured(LogSize {
        room_end: LogPosition::new(77),
        ..space.size
    });
    let is_full = |at| space.is_disk_full(LogPosition::new(at));
    assert_eq!([76, 77].map(is_full), [false, true]);
}

proptest! {
    /// Checks a log whose writers write as much as they may, with compaction at any speed. The log
    /// stays below the last mark, except for the turn that reaches it, and no client waits unless a
    /// compaction is due.
    #[test]
    fn a_log_is_bounded_at_any_speed_of_compaction(
        live_mib in 0_u64..200,
        compaction_bytes_per_ms in 0_u64..300_000,
        writers in 1_usize..20,
        message_bytes in 100_u64..100_000,
    ) {
        let live_bytes = live_mib << 20;
        let marks = Marks::new(live_bytes, LOG_SPARE_BYTES);
        let mut space = LogSpace::new(LOG_SPARE_BYTES);
        let mut closed_bytes = live_bytes;
        let (mut open_index, mut open_bytes) = (1, 0);
        let mut allowances = vec![WriteAllowance::default(); writers];
        for ms in 1..600_u64 {
            let now_us = ms * 1000;
            closed_bytes = closed_bytes.saturating_sub(compaction_bytes_per_ms).max(live_bytes);
            space.measured(LogSize {
                open_index,
                closed_bytes,
                kept_bytes: 0,
                is_compacted: true,
                room_end: LogPosition::MAX,
            });
            space.update(open_bytes, live_bytes, now_us);
            let mut turn_bytes = 0;
            for allowance in &mut allowances {
                while turn_bytes < 1 << 20 && space.may_write(allowance, now_us) {
                    if !space.is_free() {
                        space.charge(allowance, message_bytes, now_us);
                    }
                    turn_bytes += message_bytes;
                }
            }
            open_bytes += turn_bytes;
            if open_bytes > SEGMENT_BYTES_MIN.max(live_bytes / 8) {
                closed_bytes += open_bytes;
                (open_index, open_bytes) = (open_index + 1, 0);
            }
            let log_bytes = closed_bytes + open_bytes;
            prop_assert!(log_bytes < marks.stop_bytes + (1 << 20) + 100_000);
            // A writer that is only slightly slowed down soon closes the segment that makes
            // compaction due.
            let waits = match space.level {
                Level::Free => false,
                Level::Slow { bytes_per_second } => bytes_per_second < LOG_BYTES_PER_SECOND / 4,
                Level::Stopped => true,
            };
            if waits {
                let is_due = closed_bytes > crate::limits::COMPACTION_BYTES_MIN
                    && closed_bytes * 100 / live_bytes.max(1)
                        > crate::limits::COMPACTION_START_PERCENT;
                prop_assert!(is_due || open_bytes > SEGMENT_BYTES_MIN + (1 << 20) + 100_000);
            }
        }
    }
}
